"""What every world with continuous states shares: its goals, its starts, its spec. A world adds its dynamics."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from retarget.envs.control.goals import parse_goal, plain_goal
from retarget.errors import GoalError, WorldError, unknown
from retarget.goal import RegionGoal
from retarget.world import Expert, WorldSpec

#: What is added to a half width, so that rounding does not decide whether the edge of a region belongs to it.
EDGE = 1e-9
STARTS = ("standard", "wide")


@dataclass(frozen=True)
class Feature:
    """Something about a state that a goal may name.

    Attributes:
        low, high: set-points that make sense, in the feature's unit.
        width: half width of a region where none is given.
        column: which number of the state it is; None where the world's `feature` works it out.
        period: length of the circle, for angles; None elsewhere.
        hold: whether a goal that is given as a number is to be held.
        unit: what it is counted in.
    """

    low: float
    high: float
    width: float
    column: int | None = None
    period: float | None = None
    hold: bool = False
    unit: str = "1"

    def offset(self, value: np.ndarray, centre: float) -> np.ndarray:
        """`value - centre`, round the circle where there is one: then within half a period.

        >>> bool(Feature(-3.2, 3.2, 0.1, period=6.0).offset(np.array([2.9]), -2.9).round(9) == -0.2)
        True
        """
        away = np.asarray(value, dtype=np.float64) - centre
        return away if self.period is None else away - self.period * np.round(away / self.period)

    def wrap(self, centre: float) -> float:
        """The set-point's one name on the circle, from minus half a period (excluded) to half a period."""
        if self.period is None or -self.period / 2 < centre <= self.period / 2:
            return centre
        around = math.remainder(centre, self.period)
        return around if around > -self.period / 2 else self.period / 2


@dataclass(frozen=True)
class Axis:
    """How one number of a state is cut up for value iteration: evenly, round the circle where it is periodic."""

    low: float
    high: float
    points: int
    periodic: bool = False


@dataclass(frozen=True, eq=False)
class StartBox:
    """Starts drawn evenly from between two states, `low` and `high`, float `[D]` each."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Float64 `[n, D]`, one in each of n equal slices of every number (source: McKay et al. 1979, Latin hypercube).

        >>> box = StartBox((0.0,), (1.0,))
        >>> np.sort(box.draw(4, np.random.default_rng(0))[:, 0]).__mul__(4).astype(int).tolist()
        [0, 1, 2, 3]
        """
        low, high = np.array(self.low), np.array(self.high)
        slices = np.stack([rng.permutation(n) for _ in low], axis=1) if n else np.zeros((0, len(low)))
        return np.asarray(low + (high - low) * (slices + rng.random((n, len(low)))) / max(n, 1))


class ControlWorld(ABC):
    """A world with continuous states: implements `retarget.world.BoxWorld`. Frozen; equal where the specs are.

    A subclass gives the attributes below and `dynamics`; `observe` and `feature` where what is seen, or what a goal
    names, is not a number of the state itself; `grid` (up to three numbers a state) or `expert`.

    Attributes:
        name: id of its spec.
        gym_id: Gymnasium's environment with the same dynamics, or None.
        state_names: names of the D numbers of a state, with their units.
        n_actions: number of discrete actions, or None.
        action_range: lowest and highest action, float64 `[K]` each, or None.
        steps: length of an episode, unless told otherwise.
        features: what goals may name; the first one is the main one, which a bare number sets.
        standard, wide: where episodes start: as usual, and all over.
        menu: goals to draw from, the world's own first.
        grid: one axis for each number of a state, for value iteration; empty where `expert` needs none.
        levels: continuous actions are tried at this many levels each.

    Args:
        start: "standard", or "wide" for starts all over the state space.
        goal: the goal the world comes with, in any form that `as_goal` takes; the first of `menu` without.
        horizon: steps of an episode, 3 or more; `steps` without.

    Raises:
        WorldError: for a start or a horizon that there is not.
        GoalError: for a goal that there is not.
    """

    name: str
    gym_id: str | None = None
    state_names: tuple[str, ...]
    n_actions: int | None = None
    action_range: tuple[np.ndarray, np.ndarray] | None = None
    steps: int
    features: Mapping[str, Feature]
    standard: StartBox
    wide: StartBox | None = None
    menu: tuple[RegionGoal, ...]
    grid: tuple[Axis, ...] = ()
    levels: int = 9

    def __init__(self, *, start: str = "standard", goal: object = None, horizon: int | None = None) -> None:
        if start not in STARTS:
            raise WorldError(unknown(f"start of world {self.name!r}", start, STARTS))
        steps = self.steps if horizon is None else horizon
        if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or steps < 3:
            raise WorldError(f"horizon must be an integer of at least 3 steps, got {horizon!r}")
        self._start, self._horizon = start, int(steps)
        self._goal = self.menu[0] if goal is None else self.as_goal(goal)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.spec_data == self.spec_data

    def __hash__(self) -> int:
        return hash((type(self), self.spec_data))

    def __repr__(self) -> str:
        return f"<{self.spec_data.label}: {len(self.state_names)} numbers a state, {len(self.menu)} goals>"

    # -- the protocol -------------------------------------------------------------------------------------------

    @cached_property
    def spec_data(self) -> WorldSpec:
        """The id, and the options that differ from their defaults."""
        options: dict[str, object] = {}
        if self._start != "standard":
            options["start"] = self._start
        if self._horizon != self.steps:
            options["horizon"] = self._horizon
        if self._goal != self.menu[0]:
            options["goal"] = plain_goal(self._goal, self.menu)
        return WorldSpec.of(self.name, **options)

    @property
    def horizon(self) -> int:
        """Steps of an episode."""
        return self._horizon

    @property
    def gamma(self) -> float:
        """`1 - 2 / horizon`: half of the horizon is the time over which things count."""
        return 1.0 - 2.0 / self._horizon

    @property
    def goal(self) -> RegionGoal:
        """The goal that the world comes with."""
        return self._goal

    @cached_property
    def goals(self) -> tuple[RegionGoal, ...]:
        """The world's goal, then the others of its menu."""
        return (self._goal, *(g for g in self.menu if g != self._goal))

    @property
    def goal_features(self) -> tuple[str, ...]:
        """Features that a goal may name, the main one first."""
        return tuple(self.features)

    @cached_property
    def observation_size(self) -> int:
        """Length of an observation."""
        return int(self.observe(np.zeros((1, len(self.state_names)))).shape[1])

    @property
    def observation_range(self) -> tuple[np.ndarray, np.ndarray]:
        """Float32 `[O]` bounds of an observation; infinite where a world does not say."""
        bound = np.full(self.observation_size, np.inf, dtype=np.float32)
        return -bound, bound

    def as_goal(self, value: object) -> RegionGoal:
        """A goal of this world.

        Args:
            value: a `RegionGoal`; the label of one of `goals`; a number, the set-point of the main feature, with the
                half width and the `hold` of that feature; a text such as `"hold x=1"`; or a mapping from features to
                set-points or pairs (set-point, half width), with `hold` and `label` where wanted.

        Raises:
            GoalError: with what is there.

        >>> from retarget.envs import make_world
        >>> make_world("CartPole").as_goal(1.0)
        RegionGoal(targets=(('x', 1.0, 0.25),), hold=True, label='hold x=1')
        """
        known = (*(self.goals if hasattr(self, "_goal") else ()), *self.menu)
        goal = parse_goal(value, self.features, known, self.from_number)
        targets = []
        for name, centre, width in goal.targets:
            if name not in self.features:
                raise GoalError(unknown(f"feature of {self.name}", name, self.features))
            feature = self.features[name]
            centre = feature.wrap(centre)
            if feature.period is None and not feature.low - EDGE <= centre <= feature.high + EDGE:
                raise GoalError(
                    f"{name}={centre:g} is outside {self.name}, where {name} goes from {feature.low:g} to "
                    f"{feature.high:g}; choose a set-point between"
                )
            targets.append((name, centre, width))
        return goal if tuple(targets) == goal.targets else RegionGoal(tuple(targets), goal.hold, goal.label)

    def from_number(self, value: float) -> RegionGoal:
        """The goal that a bare number stands for: a set-point of the main feature."""
        name, feature = next(iter(self.features.items()))
        targets: dict[str, tuple[float, float]] = {name: (value, feature.width)}
        return RegionGoal.of(hold=feature.hold, label=None, **targets)

    def starts(self, n: int, *, rng: np.random.Generator) -> np.ndarray:
        """Start states float64 `[n, D]`, one in each of n slices of every number of the state."""
        wide = self.wide if self.wide is not None else self.standard
        return (wide if self._start == "wide" else self.standard).draw(n, rng)

    def observe(self, state: np.ndarray) -> np.ndarray:
        """Float32 `[B, O]` of float64 `[B, D]`: the state itself, unless a world says otherwise."""
        return np.asarray(state, dtype=np.float32)

    def advance(self, state: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One step: float64 `[B, D]` next states, and bool `[B]` where the world ended the episode.

        Raises:
            WorldError: for actions of another shape, or discrete ones that there are not.
        """
        state = np.asarray(state, dtype=np.float64)
        action = np.asarray(action)
        if self.n_actions is not None:
            if action.shape != (len(state),) or action.dtype.kind not in "iu":
                raise WorldError(f"{self.name} takes one integer a state, got {action.dtype} {action.shape}")
            if len(action) and not 0 <= action.min() <= action.max() < self.n_actions:
                bad = int(action.min() if action.min() < 0 else action.max())
                raise WorldError(f"action {bad} does not exist; actions of {self.name} are 0 to {self.n_actions - 1}")
            return self.dynamics(state, action)
        assert self.action_range is not None
        low, high = self.action_range
        if action.shape != (len(state), len(low)):
            raise WorldError(f"{self.name} takes actions [{len(state)}, {len(low)}], got {action.shape}")
        return self.dynamics(state, np.clip(np.asarray(action, dtype=np.float64), low, high))

    def inside(self, state: np.ndarray, goal: RegionGoal) -> np.ndarray:
        """Bool `[B]`: which states are in the goal, the edges of the region included."""
        state = np.asarray(state, dtype=np.float64)
        out = np.ones(len(state), dtype=np.bool_)
        for name, centre, width in goal.targets:
            if name not in self.features:
                raise GoalError(unknown(f"feature of {self.name}", name, self.features))
            out &= np.abs(self.features[name].offset(self.feature(state, name), centre)) <= width + EDGE
        return out

    def expert(self, goal: RegionGoal) -> Expert:
        """Who acts by value iteration on the world's `grid`; worked out once for each goal.

        Raises:
            WorldError: when there is no grid.
        """
        from retarget.envs.control.expert import grid_expert

        return grid_expert(self._plain, self.as_goal(goal))

    @cached_property
    def _plain(self) -> ControlWorld:
        """The same dynamics with the usual starts and goal: they are nothing to an expert, who is shared."""
        plain = copy.copy(self)
        plain._start, plain._goal = "standard", self.menu[0]
        for name in ("spec_data", "goals"):
            plain.__dict__.pop(name, None)
        return plain

    # -- what a world says --------------------------------------------------------------------------------------

    @abstractmethod
    def dynamics(self, state: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`advance`, for states and actions that have been checked (continuous ones clipped to the range)."""

    def feature(self, state: np.ndarray, name: str) -> np.ndarray:
        """Float64 `[B]`: a feature of float64 `[B, D]` states."""
        column = self.features[name].column
        if column is None:
            raise WorldError(f"feature {name!r} of {self.name} has no column; give it one, or override feature()")
        return state[:, column]
