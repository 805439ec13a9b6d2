"""Goals are data: hashable, comparable, never a callable."""

from __future__ import annotations

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
