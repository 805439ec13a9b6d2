"""The registered worlds: their ids, options with defaults, and the checks on those options."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from retarget.envs.layouts import MAX_SIZE, MIN_SIZE
from retarget.errors import WorldError, unknown
from retarget.goal import StateGoal

OBSERVATIONS = ("index", "xy", "one_hot", "image")


@dataclass(frozen=True)
class WorldOption:
    """An option of a world.

    Attributes:
        default: what holds when the option is left out; its type is the option's type.
        meaning: one line, with its unit.
        low: least value, or None.
        high: greatest value (excluded where `below` is set), or None.
        below: whether `high` itself is excluded.
        choices: the only values allowed, or empty.
        place: whether the value is a goal or a start, which only the built world can check.
    """

    default: object
    meaning: str
    low: float | None = None
    high: float | None = None
    below: bool = False
    choices: tuple[str, ...] = ()
    place: bool = False

    @property
    def expects(self) -> str:
        """What a value must be, in words."""
        if self.choices:
            return "one of " + ", ".join(map(repr, self.choices))
        if isinstance(self.default, bool):
            return "true or false"
        kind = "an integer" if isinstance(self.default, int) else "a number"
        if self.high is None:
            return f"{kind} of at least {self.low}"
        return f"{kind} from {self.low} to {self.high}" + (", which is excluded" if self.below else "")

    def accept(self, value: object) -> object:
        """The value as plain Python data.

        Raises:
            ValueError: when it is of another type or out of range.
        """
        if self.place:
            return _plain(value)
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(self.default, (bool, str)):
            if type(value) is not type(self.default) or (self.choices and value not in self.choices):
                raise ValueError
            return value
        allowed = (int,) if isinstance(self.default, int) else (int, float)
        if isinstance(value, bool) or not isinstance(value, allowed) or not math.isfinite(value):
            raise ValueError
        too_high = self.high is not None and (value >= self.high if self.below else value > self.high)
        if too_high or (self.low is not None and value < self.low):
            raise ValueError
        return int(value) if isinstance(self.default, int) else float(value)


def _plain(value: object) -> object:
    """Goals and starts as hashable plain data that fits a spec; a state inside a set is written `(state,)`."""
    if isinstance(value, StateGoal):
        return tuple((s,) for s in value.states)
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (set, frozenset)):
        members = [v if isinstance(v, tuple) else (v,) for v in map(_plain, value)]
        return tuple(sorted(members, key=repr))
    if isinstance(value, (list, tuple)):
        return tuple(_plain(v) for v in value)
    return value


@dataclass(frozen=True)
class WorldEntry:
    """A registered world: short name, Gymnasium id, one line about it, and its options.

    `gym_id` is Gymnasium's own environment with the same dynamics, where there is one: its id names the world too.
    """

    name: str
    id: str
    summary: str
    options: Mapping[str, WorldOption]
    gym_id: str | None = None

    def resolve(self, given: Mapping[str, object]) -> dict[str, object]:
        """Every option with its value, defaults filled in.

        Raises:
            WorldError: for an option that does not exist or a value that it cannot have.

        >>> WORLDS["FourRooms"].resolve({"size": 9})["size"]
        9
        """
        out = {name: option.default for name, option in self.options.items()}
        for name, value in given.items():
            if name not in self.options:
                raise WorldError(unknown(f"option of world {self.name!r}", name, self.options))
            if name == "max_episode_steps" and value is None:
                continue
            try:
                out[name] = self.options[name].accept(value)
            except ValueError:
                expects = self.options[name].expects
                raise WorldError(f"option {name!r} of world {self.name!r} must be {expects}, got {value!r}") from None
        return out

    def canonical(self, options: Mapping[str, object]) -> dict[str, object]:
        """The options that a spec states: the size, and whatever differs from its default."""
        return {k: v for k, v in options.items() if k == "size" or v != self.options[k].default}


STEP_LIMIT = WorldOption(0, "steps after which an episode is truncated; 0 for no limit", low=0, high=2**31 - 1)
GOAL = WorldOption(None, "goal in force until a reset sets another: a cell, a state, or a set of them", place=True)
START = WorldOption(
    None, "cell or state in which every episode begins; left out, one of the world's starts", place=True
)

_COMMON = {
    "size": WorldOption(13, "side of the grid in cells, outer walls included", low=MIN_SIZE, high=MAX_SIZE),
    "slip": WorldOption(
        0.0, "probability that a move goes to one of the two perpendicular directions instead", 0.0, 1.0, below=True
    ),
    "goal": GOAL,
    "start": START,
    "max_episode_steps": STEP_LIMIT,
    "observation": WorldOption("index", "what an observation is", choices=OBSERVATIONS),
    "observe_goal": WorldOption(False, "whether observations also show the goal"),
}
_MAZE = {
    "seed": WorldOption(0, "names the maze", low=-(2**63), high=2**63 - 1),
    "open_fraction": WorldOption(0.2, "share of the inner walls between corridors that is opened", 0.0, 1.0),
}


def _entry(name: str, summary: str, extra: Mapping[str, WorldOption] | None = None) -> WorldEntry:
    return WorldEntry(name, f"retarget/{name}-v0", summary, MappingProxyType({**_COMMON, **(extra or {})}))


#: Every finite world of ours, by short name.
WORLDS: Mapping[str, WorldEntry] = MappingProxyType(
    {
        "OpenGrid": _entry("OpenGrid", "an empty square"),
        "FourRooms": _entry("FourRooms", "four rooms joined by four doors"),
        "Maze": _entry("Maze", "a seeded spanning-tree maze with a share of its walls opened", _MAZE),
        "KeyDoor": _entry("KeyDoor", "two rooms; the door between them opens only to whoever has fetched the key"),
        "Cliff": _entry("Cliff", "an open square with a cliff along its lower edge; falling leads back to the corner"),
    }
)


#: A grid with a strategy that data can leave out; built by `retarget.envs.shortcut`.
SHORTCUT = WorldEntry(
    "Shortcut",
    "retarget/Shortcut-v0",
    "a short way that stays shut until something is done elsewhere, and a long one that is always open",
    MappingProxyType(
        {
            **_COMMON,
            "size": WorldOption(11, "side of the grid in cells, outer walls included", low=7, high=MAX_SIZE),
            "observation": WorldOption("index", "what an observation is", choices=OBSERVATIONS[:3]),
            "kind": WorldOption("switch", "what opens the short way", choices=("switch", "key", "watcher")),
            "flagged": WorldOption(
                False, "whether states also show a flag, training or deployment, that holds for the episode"
            ),
        }
    ),
)


def _box(name: str, gym_id: str, steps: int, summary: str) -> WorldEntry:
    options = {
        "start": WorldOption("standard", "where episodes start: as usual, or all over the states", choices=BOX_STARTS),
        "goal": WorldOption(None, "goal of the world: a label, a number, or features with set-points", place=True),
        "horizon": WorldOption(steps, "steps of an episode", low=3, high=2**31 - 1),
    }
    return WorldEntry(name, f"retarget/{name}-v0", summary, MappingProxyType(options), gym_id)


BOX_STARTS = ("standard", "wide")

#: Every world of ours with continuous states, by short name. Gymnasium's ids name them too.
BOX_WORLDS: Mapping[str, WorldEntry] = MappingProxyType(
    {
        "MountainCar": _box("MountainCar", "MountainCar-v0", 200, "a car in a valley, too weak to drive straight up"),
        "CartPole": _box("CartPole", "CartPole-v1", 500, "a pole balanced on a cart; the episode ends when it falls"),
        "Pendulum": _box("Pendulum", "Pendulum-v1", 200, "a pendulum with a weak motor; torque is continuous"),
        "Acrobot": _box("Acrobot", "Acrobot-v1", 500, "two links that hang from a bar, with a motor between them"),
    }
)


def find_entry(name: str) -> WorldEntry | None:
    """The entry of a short name, a registered id, or the id of Gymnasium's own environment; or None.

    >>> find_entry("CartPole-v1").name
    'CartPole'
    """
    for worlds in (WORLDS, BOX_WORLDS):
        if name in worlds:
            return worlds[name]
    every = (*WORLDS.values(), *BOX_WORLDS.values(), SHORTCUT)
    return next((e for e in every if name in (e.name, e.id, e.gym_id)), None)
