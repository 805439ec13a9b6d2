"""Features of goals: the numbers that a map from goals to edits may look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retarget.agent import own
from retarget.errors import GoalError, unknown
from retarget.goal import Goal, RegionGoal, StateGoal
from retarget.world import FiniteWorld, World

KINDS = ("auto", "coordinates", "one_hot")


@dataclass(frozen=True, eq=False)
class Features:
    """Numbers that describe a goal. What they are is known to whoever decodes a map; a goal is given to both sides.

    Attributes:
        label: what they are, for a protocol.
        states: float64 `[S, F]`, of the states of a finite world; a goal of several states has their mean. None in a
            world with continuous states.
        names: the features of continuous states whose set-points count, where `states` is None.
        scale: float64 `[F]`, what to divide by so that they lie within [-1, 1] or near.
    """

    label: str
    states: np.ndarray | None
    names: tuple[str, ...]
    scale: np.ndarray

    @classmethod
    def of_states(cls, world: FiniteWorld, table: np.ndarray, *, label: str) -> Features:
        """From a table of one's own.

        Args:
            world: whose states they describe.
            table: float `[S, F]`, one row for each state.
            label: what they are.

        Raises:
            GoalError: for a table of another size, or numbers that are not finite.

        >>> import retarget
        >>> world = retarget.make_world("OpenGrid", size=5)
        >>> Features.of_states(world, [[0.0]], label="row")
        Traceback (most recent call last):
        ...
        retarget.errors.GoalError: goal features need one row for each of the 25 states, got shape (1, 1); make it \
[25, F]
        """
        rows, n = np.asarray(table, dtype=np.float64), world.model.n_states
        if rows.ndim != 2 or len(rows) != n or rows.shape[1] == 0:
            raise GoalError(
                f"goal features need one row for each of the {n} states, got shape {rows.shape}; make it [{n}, F]"
            )
        if not np.isfinite(rows).all():
            bad = int(np.flatnonzero(~np.isfinite(rows).all(1))[0])
            raise GoalError(f"the goal features of state {bad} are {rows[bad].tolist()}; replace what is not finite")
        return cls(label, own(rows), (), own(_scale(rows)))

    def __call__(self, goal: Goal) -> np.ndarray:
        """Float64 `[F + 1]`: the features, and a 1 at the end.

        Raises:
            GoalError: for a goal of another kind of world.
        """
        if isinstance(goal, StateGoal) and self.states is not None:
            goal.mask(len(self.states))
            return np.append(self.states[list(goal.states)].mean(0), 1.0)
        if isinstance(goal, RegionGoal) and self.states is None:
            centres = {name: centre for name, centre, _ in goal.targets}
            return np.array([*(centres.get(name, 0.0) for name in self.names), 1.0])
        raise GoalError(f"goal {goal.label} is a {type(goal).__name__}, which features of {self.label} do not describe")

    def of(self, goals: Sequence[Goal]) -> np.ndarray:
        """Float64 `[N, F + 1]` of several goals."""
        return np.stack([self(g) for g in goals])


def _scale(rows: np.ndarray) -> np.ndarray:
    most = np.abs(rows).max(0)
    return np.asarray(np.where(most > 0, most, 1.0))


def check_kind(kind: str) -> None:
    """Raise GoalError unless it is a kind of features."""
    if kind not in KINDS:
        raise GoalError(unknown("goal features", kind, KINDS))


def features_of(world: World, goals: Sequence[Goal], *, kind: str = "auto") -> Features:
    """The features of a world's goals.

    Args:
        world: a finite world, or one with continuous states (then: the set-points of all features that `goals` name).
        goals: the goals in question.
        kind: `coordinates` (row and column), `one_hot` (one number for each state), or `auto`: coordinates where the
            world has them.

    Raises:
        GoalError: for an unknown kind, or coordinates that the world does not have.

    >>> import retarget
    >>> world = retarget.make_world("OpenGrid", size=5)
    >>> features_of(world, world.goals)(world.as_goal((1, 3))).tolist()
    [1.0, 3.0, 1.0]
    """
    check_kind(kind)
    if not isinstance(world, FiniteWorld):
        regions = [g for g in goals if isinstance(g, RegionGoal)]
        names = tuple(sorted({name for g in regions for name, _, _ in g.targets}))
        centres = [[{n: c for n, c, _ in g.targets}.get(name, 0.0) for name in names] for g in regions]
        return Features(
            ", ".join(names) or "nothing", None, names, own(_scale(np.array(centres).reshape(-1, len(names))))
        )
    if kind == "coordinates" and world.coordinates is None:
        raise GoalError(f"{world.spec_data.label} has no coordinates; use features = 'one_hot'")
    if kind != "one_hot" and world.coordinates is not None:
        return Features.of_states(world, world.coordinates, label="row, column")
    return Features.of_states(world, np.eye(world.model.n_states), label="one-hot state")
