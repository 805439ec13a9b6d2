"""MiniGrid's environments as finite worlds, by stepping it from every state. Needs the extra `minigrid`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from gymnasium.envs.registration import registry

from retarget.envs.catalogue import WorldOption
from retarget.envs.from_gym import GYM_OPTIONS, GymWorld, _read_table
from retarget.envs.observe import Observer
from retarget.envs.places import Places
from retarget.errors import GoalError, WorldError, nearest, unknown
from retarget.goal import StateGoal
from retarget.world import WorldSpec

#: States beyond which an environment is refused: finding them takes about 30 microseconds a state and action.
MAX_STATES = 20_000
OPTIONS: Mapping[str, WorldOption] = {
    **GYM_OPTIONS,
    "seed": WorldOption(0, "seed of MiniGrid's reset, which lays out the grid", low=0, high=2**31 - 1),
    "starts": WorldOption("all", "begin anywhere with nothing moved, or where MiniGrid does", choices=("all", "own")),
}
_ID = re.compile(r"MiniGrid-[\w-]+-v\d+")


def minigrid_world(name: str, **options: object) -> GymWorld:
    """A MiniGrid environment as a finite world.

    A state is what the grid holds, the agent's place and direction, and what it carries. The model is exact: every
    action of MiniGrid's seven is taken in MiniGrid itself from every state that can be reached. States in which it
    ends the episode absorb, as in every wrapped environment; those that it pays for are the default goal. A cell as a
    goal stands for every state on it; a text such as `"green goal"` for standing on that object or, where that cannot
    be, facing it; `"carry red key"` for holding it.

    Args:
        name: id of an environment of MiniGrid's, e.g. "MiniGrid-Empty-8x8-v0".
        options: `OPTIONS`: those of every wrapped environment, `seed` and `starts`.

    Raises:
        WorldError: without the package; for an unknown id or option; where MiniGrid moves by chance, ends an episode
            for something else than the state, or has more than 20,000 states.
        GoalError: for a goal or start that does not exist.
    """
    opts = _resolve(name, options)
    inner = _build(name)
    seed = int(opts["seed"])  # type: ignore[call-overload]
    found = _explore(inner, seed, name)
    weights = np.zeros(len(found.keys))
    weights[found.untouched if opts["starts"] == "all" else [0]] = 1.0
    table = _read_table(SimpleNamespace(P=found.table, initial_state_distrib=weights), name)
    if opts["goal"] is None and not table.best:
        raise WorldError(f"{name} pays for no state that can be reached, so there is no default goal; pass goal=...")
    given = {k: v for k, v in opts.items() if v != OPTIONS[k].default}
    spec = WorldSpec.of(name, **given)
    return GymWorld(
        table.model,
        table.starts,
        places=_Places(name, found),
        spec_data=spec,
        goal=set(table.best) if opts["goal"] is None else opts["goal"],
        start=opts["start"],
        observer=Observer(
            str(opts["observation"]), table.n_states, with_goal=bool(opts["observe_goal"]), state_cell=found.cells
        ),
        coordinates=found.cells,
        max_episode_steps=int(opts["max_episode_steps"]),  # type: ignore[call-overload]
    )


def _resolve(name: str, given: Mapping[str, object]) -> dict[str, object]:
    out = {k: o.default for k, o in OPTIONS.items()}
    for key, value in given.items():
        if key not in OPTIONS:
            raise WorldError(unknown(f"option of world {name!r}", key, OPTIONS))
        try:
            out[key] = OPTIONS[key].accept(value)
        except ValueError:
            raise WorldError(
                f"option {key!r} of world {name!r} must be {OPTIONS[key].expects}, got {value!r}"
            ) from None
    return out


def _build(name: str) -> Any:
    import gymnasium

    if not _ID.fullmatch(name):
        raise WorldError(f"{name!r} is no id of MiniGrid's; they look like 'MiniGrid-Empty-8x8-v0'")
    try:
        import minigrid  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise WorldError(
            f"world {name!r} needs the package minigrid; install it with: pip install 'retarget[minigrid]'"
        ) from error
    if not any(map(_ID.fullmatch, registry)):  # some releases register when they are imported, some when asked
        getattr(minigrid, "register_minigrid_envs", lambda: None)()
    if name not in registry or not str(registry[name].entry_point).startswith("minigrid."):
        raise WorldError(unknown("world", name, [n for n in registry if _ID.fullmatch(n)]))
    return gymnasium.make(name, disable_env_checker=True).unwrapped


# -- finding the states -------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Found:
    """What stepping found: a key for each state, the table `P`, and where each state is."""

    keys: list[object]
    table: dict[int, dict[int, list[tuple[float, int, float, bool]]]]
    cells: np.ndarray
    untouched: list[int]
    objects: dict[str, tuple[int, ...]]


class _Stage:
    """One MiniGrid environment, put into any state. Objects keep their identity, which the environment may rely on."""

    def __init__(self, inner: Any, seed: int) -> None:
        self.env = inner
        inner.reset(seed=seed)
        inner.gen_obs = dict  # what an agent would see is most of the work of a step, and is not wanted
        self.things: list[Any] = []
        pending = [o for o in inner.grid.grid if o is not None and o.type != "wall"]
        while pending:
            thing = pending.pop()
            self.things.append(thing)
            if getattr(thing, "contains", None) is not None:
                pending.append(thing.contains)

    def key(self) -> object:
        """What tells two states apart."""
        env = self.env
        boxes = tuple((i, _name(o.contains)) for i, o in enumerate(env.grid.grid) if o is not None and o.type == "box")
        held = env.carrying
        inside = None if held is None else _name(getattr(held, "contains", None))
        place = tuple(int(v) for v in env.agent_pos)
        return env.grid.encode().tobytes(), place, int(env.agent_dir), _name(held), inside, boxes

    def save(self) -> tuple[Any, ...]:
        env = self.env
        marks = tuple(dict(o.__dict__) for o in self.things)
        return list(env.grid.grid), tuple(env.agent_pos), env.agent_dir, env.carrying, marks

    def load(self, saved: tuple[Any, ...]) -> None:
        env = self.env
        env.grid.grid = list(saved[0])
        env.agent_pos, env.agent_dir, env.carrying = np.array(saved[1]), saved[2], saved[3]
        for thing, mark in zip(self.things, saved[4], strict=True):
            thing.__dict__.clear()
            thing.__dict__.update(mark)
        env.step_count = 0

    def labels(self) -> list[str]:
        """What the agent stands on, faces or carries."""
        env = self.env
        under = env.grid.get(*env.agent_pos)
        front = env.grid.get(*env.front_pos) if _within(env) else None
        out = [] if under is None else [_name(under)]
        if front is not None and front.type != "wall" and (front.type == "door" or not front.can_overlap()):
            out.append(_name(front))
        return [*out, *([] if env.carrying is None else [f"carry {_name(env.carrying)}"])]


def _within(env: Any) -> bool:
    x, y = env.front_pos
    return bool(0 <= x < env.grid.width and 0 <= y < env.grid.height)


def _name(thing: Any) -> str:
    return "" if thing is None else f"{thing.color} {thing.type}"


def _explore(inner: Any, seed: int, name: str) -> _Found:
    stage = _Stage(inner, seed)
    chance = inner.np_random.bit_generator.state
    first = stage.key()
    number: dict[object, int] = {first: 0}
    keys, saved, over = [first], [stage.save()], [False]
    table: dict[int, dict[int, list[tuple[float, int, float, bool]]]] = {}
    objects: dict[str, list[int]] = {}
    state = 0
    while state < len(keys):
        stage.load(saved[state])
        for label in stage.labels():
            objects.setdefault(label, []).append(state)
        table[state] = {}
        for action in range(int(inner.action_space.n)):
            if over[state]:  # an episode that has ended goes nowhere
                table[state][action] = [(1.0, state, 0.0, True)]
                continue
            stage.load(saved[state])
            _, reward, terminated, _, _ = inner.step(action)
            key = stage.key()
            if key not in number:
                if len(keys) >= MAX_STATES:
                    raise WorldError(f"{name} has more than {MAX_STATES:,} states; choose a smaller one")
                number[key] = len(keys)
                keys.append(key)
                saved.append(stage.save())
                over.append(bool(terminated))
            table[state][action] = [(1.0, number[key], float(reward), bool(terminated))]
        state += 1
    if inner.np_random.bit_generator.state != chance:
        raise WorldError(f"{name} moves by chance, so that stepping it does not give its model; choose another")
    cells = np.array([(k[1][1], k[1][0]) for k in keys], dtype=np.int32)  # type: ignore[index]
    kept = [(k[0], k[3], k[5]) for k in keys]  # type: ignore[index]
    untouched = [i for i, k in enumerate(kept) if k == kept[0] and not over[i]]
    return _Found(keys, table, cells, untouched, {label: tuple(s) for label, s in objects.items()})


class _Places(Places):
    """Places of a MiniGrid world: cells, states, and objects by name."""

    def __init__(self, name: str, found: _Found) -> None:
        super().__init__(name, len(found.keys), state_cell=found.cells)
        self.objects = found.objects

    def goal(self, value: object) -> StateGoal:
        if not isinstance(value, str):
            return super().goal(value)
        if value not in self.objects:
            known = ", ".join(sorted(self.objects)) or "no object"
            raise GoalError(f"goal {value!r} is nothing in {self.label}{nearest(value, self.objects)}; known: {known}")
        return StateGoal.of(self.objects[value], value)
