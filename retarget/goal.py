"""Goals are data: hashable, comparable, never a callable."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from retarget.errors import GoalError


@dataclass(frozen=True, order=True)
class StateGoal:
    """Reach any one of a set of states of a finite world.

    Attributes:
        states: sorted, unique, non-empty state indices.
        label: what a reader sees; it plays no part in equality.

    >>> StateGoal.of([3, 1, 3])
    StateGoal(states=(1, 3), label='1+3')
    >>> StateGoal.of([3, 1]) == StateGoal.of([1, 3], label="corner")
    True
    """

    states: tuple[int, ...]
    label: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if not self.states:
            raise GoalError("a goal needs at least one state, got none; pass a state index or a set of them")
        if any(isinstance(s, bool) or not isinstance(s, int) or s < 0 for s in self.states):
            raise GoalError(f"goal states must be non-negative integers, got {self.states!r}")
        if list(self.states) != sorted(set(self.states)):
            raise GoalError(f"goal states must be sorted and unique, got {self.states!r}; use StateGoal.of(...)")

    @classmethod
    def of(cls, states: Iterable[int], label: str | None = None) -> StateGoal:
        """Build a goal from any iterable of state indices."""
        try:
            unique = tuple(sorted({operator.index(s) for s in states}))
        except TypeError as error:
            raise GoalError(
                f"goal states must be a list of integers, got {states!r}; e.g. StateGoal.of([3])"
            ) from error
        return cls(unique, label if label is not None else "+".join(map(str, unique)))

    def mask(self, n_states: int) -> np.ndarray:
        """Boolean `[S]`, true on the goal's states."""
        if self.states[-1] >= n_states:
            raise GoalError(f"goal state {self.states[-1]} is outside the world, which has states 0 to {n_states - 1}")
        out = np.zeros(n_states, dtype=np.bool_)
        out[list(self.states)] = True
        return out


@dataclass(frozen=True, order=True)
class RegionGoal:
    """Be where some features of a continuous state lie within a distance of their set-points.

    Attributes:
        targets: (feature, centre, half width) for each feature that counts, sorted by feature; a state is inside when
            every |feature - centre| <= half width, the difference taken round the circle where the feature is an angle.
        hold: False: reach it once, and the episode ends there. True: stay; what counts is the discounted share of
            steps spent inside.
        label: what a reader sees; it plays no part in equality.

    >>> RegionGoal.of(position=(-1.0, 0.1))
    RegionGoal(targets=(('position', -1.0, 0.1),), hold=False, label='position=-1')
    >>> RegionGoal.of(hold=True, x=(1.0, 0.25)).label
    'hold x=1'
    """

    targets: tuple[tuple[str, float, float], ...]
    hold: bool = False
    label: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if not self.targets:
            raise GoalError("a goal needs at least one feature, got none; e.g. RegionGoal.of(position=(-1.0, 0.1))")
        if [t[0] for t in self.targets] != sorted({t[0] for t in self.targets}):
            raise GoalError(f"goal features must be sorted and unique, got {self.targets!r}; use RegionGoal.of(...)")
        for name, centre, width in self.targets:
            if not (math.isfinite(centre) and math.isfinite(width) and width > 0):
                raise GoalError(
                    f"feature {name!r} needs a finite centre and a half width above 0, got {centre!r} and {width!r}"
                )

    @classmethod
    def of(cls, *, hold: bool = False, label: str | None = None, **features: tuple[float, float]) -> RegionGoal:
        """Build a goal from features, each with its set-point and half width."""
        try:
            targets = tuple((k, float(c), float(w)) for k, (c, w) in sorted(features.items()))
        except (TypeError, ValueError) as error:
            raise GoalError(f"a feature takes (centre, half width), got {features!r} ({error})") from error
        words = ", ".join(f"{name}={centre:g}" for name, centre, _ in targets)
        return cls(targets, hold, label if label is not None else ("hold " if hold else "") + words)

    @property
    def centres(self) -> tuple[float, ...]:
        """The set-points, in the order of the features' names."""
        return tuple(c for _, c, _ in self.targets)


Goal = StateGoal | RegionGoal
