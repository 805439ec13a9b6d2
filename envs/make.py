"""Worlds by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from retarget.envs.catalogue import BOX_WORLDS, SHORTCUT, WORLDS, find_entry
from retarget.errors import WorldError, unknown
from retarget.world import WorldSpec

if TYPE_CHECKING:
    from gymnasium.envs.registration import EnvSpec

    from retarget.envs.base import FiniteEnv

#: Names offered beside our own when a world is unknown; any registered environment with a table works.
_TOY_TEXT = ("FrozenLake", "FrozenLake8x8", "CliffWalking", "CliffWalkingSlippery", "Taxi")


def make_world(world: str | WorldSpec, **options: object) -> Any:
    """Build a world.

    Args:
        world: a short name (`"FourRooms"`, `"MountainCar"`), a registered id (`"retarget/FourRooms-v0"`), a
            `WorldSpec`, or the id of an environment of Gymnasium's that is one of ours (`"MountainCar-v0"`) or carries
            a transition table (`"FrozenLake-v1"`).
        options: options of the world, over those of the spec; `retarget.envs.WORLDS` and `BOX_WORLDS` list them.

    Returns:
        a Gymnasium environment that implements `retarget.world.FiniteWorld`, or, for a world with continuous states, a
        `retarget.world.BoxWorld` (its Gymnasium environment is `retarget.envs.BoxEnv(world)`).

    Raises:
        WorldError: for an unknown world or option, an ill-typed value, or an environment without a table.
        GoalError: for a goal or start that does not exist.

    >>> make_world("FourRooms", size=13).model.n_states
    104
    >>> make_world(make_world("Maze", seed=3).spec_data).spec_data.label
    'Maze(seed=3, size=13)'
    >>> make_world("MountainCar-v0").goal.label
    'right hill'
    """
    if isinstance(world, WorldSpec):
        name, given = world.id, {**dict(world.options), **options}
    else:
        name, given = world, dict(options)
    if not isinstance(name, str):
        raise WorldError(
            f"a world is named by a string or a WorldSpec, got {name!r}; use world_from_gym for environments"
        )
    entry = find_entry(name)
    if entry is None:
        return _from_gym(name, given)
    if entry.name in BOX_WORLDS:
        from retarget.envs.control import control_world

        return control_world(entry.name, **entry.resolve(given))
    if entry.name == SHORTCUT.name:
        from retarget.envs.shortcut import shortcut_world

        return shortcut_world(**given)
    from retarget.envs.grid import GridWorld

    if "layout" in given:
        raise WorldError(unknown(f"option of world {entry.name!r}", "layout", entry.options))
    built = GridWorld(entry.name, **given)  # type: ignore[arg-type]
    built.spec = _gym_spec(entry.id, {"layout": entry.name, **given})
    return built


def _gym_spec(env_id: str, kwargs: dict[str, object]) -> EnvSpec:
    # What `gymnasium.make(...).unwrapped` carries: Gymnasium's own checker rebuilds an environment from it.
    from gymnasium.envs.registration import EnvSpec

    from retarget.envs.registration import register_all

    register_all()
    return EnvSpec(
        id=env_id,
        entry_point="retarget.envs.grid:GridWorld",
        vector_entry_point="retarget.envs.vector:GridVectorWorld",
        order_enforce=False,
        disable_env_checker=True,
        kwargs=kwargs,
    )


def _from_gym(name: str, given: dict[str, object]) -> FiniteEnv:
    # Only an exact key of the registry goes on: Gymnasium would import code for an id such as "module:Env-v0".
    from gymnasium.envs.registration import registry

    if name.startswith("MiniGrid-"):
        from retarget.envs.minigrid import minigrid_world

        return minigrid_world(name, **given)
    if name.startswith("LunarLander"):
        raise WorldError(
            f"{name!r} cannot be a world: its state lies in Box2D's bodies and contacts, which numbers cannot set; "
            "choose one of " + ", ".join(BOX_WORLDS)
        )
    if ":" in name or name.startswith("retarget/") or name not in registry:
        near = [n for n in registry if ":" not in n and not n.startswith("retarget/")]
        known = [*WORLDS, SHORTCUT.name, *BOX_WORLDS, *(n for n in near if n.split("-")[0] in _TOY_TEXT)]
        raise WorldError(unknown("world", name, known))
    from retarget.envs.from_gym import world_from_gym

    return world_from_gym(name, **given)  # type: ignore[arg-type]
