"""Registers the worlds with Gymnasium. Light: nothing but Gymnasium's registry is imported, and only when called."""

from __future__ import annotations

BOX_NAMES = ("MountainCar", "CartPole", "Pendulum", "Acrobot")
NAMES = ("OpenGrid", "FourRooms", "Maze", "KeyDoor", "Cliff")


def register_all() -> None:
    """Register `retarget/<Name>-v0` for every world; calling it again changes nothing.

    `import retarget.envs` does it. The name also serves as an entry point of the group `gymnasium.envs`, for
    releases of Gymnasium that read that group.
    """
    from gymnasium.envs.registration import register, registry

    for name in NAMES:
        env_id = f"retarget/{name}-v0"
        if env_id not in registry:
            register(
                id=env_id,
                entry_point="retarget.envs.grid:GridWorld",
                vector_entry_point="retarget.envs.vector:GridVectorWorld",
                kwargs={"layout": name},
            )
    if "retarget/Shortcut-v0" not in registry:
        register(id="retarget/Shortcut-v0", entry_point="retarget.envs.shortcut:ShortcutWorld")
    for name in BOX_NAMES:
        env_id = f"retarget/{name}-v0"
        if env_id not in registry:
            register(id=env_id, entry_point="retarget.envs.control.gym_env:BoxEnv", kwargs={"world": name})
