"""From what a user writes (a cell, a state, a set of them) to states, with errors that say what is there instead."""

from __future__ import annotations

import numpy as np

from retarget.envs.layouts import CELL_NAMES
from retarget.errors import GoalError
from retarget.goal import StateGoal


def is_index(value: object) -> bool:
    """Whether a value is a Python or NumPy integer (booleans are not)."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _is_cell(value: object) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(map(is_index, value))


class Places:
    """Resolves goals and starts of one world.

    Args:
        label: how the world is called in messages.
        n_states: S.
        state_cell: int `[S, 2]`, or None in a world without cells.
        cells: uint8 `[H, W]` kinds of cell, or None where every cell of the grid is a state.
    """

    def __init__(
        self,
        label: str,
        n_states: int,
        *,
        state_cell: np.ndarray | None = None,
        cells: np.ndarray | None = None,
    ) -> None:
        self.label = label
        self.n_states = n_states
        self.state_cell = state_cell
        self.cells = cells
        self._by_cell: dict[tuple[int, int], tuple[int, ...]] = {}
        if state_cell is not None:
            for s, (r, c) in enumerate(state_cell.tolist()):
                self._by_cell[r, c] = (*self._by_cell.get((r, c), ()), s)

    @property
    def by_cell(self) -> dict[tuple[int, int], tuple[int, ...]]:
        """The states of each cell, by cell in the order of their first state."""
        return self._by_cell

    def states_of(self, value: object, what: str) -> tuple[int, ...]:
        """The states that one cell or index stands for; `what` is "goal" or "start" for the message.

        Raises:
            GoalError: when there is no such state; the message names the value, what is there, and a remedy.
        """
        if isinstance(value, np.generic):
            value = value.item()
        if is_index(value):
            state = int(value)  # type: ignore[call-overload]
            if not 0 <= state < self.n_states:
                raise GoalError(f"{what} {state} is outside {self.label}, which has states 0 to {self.n_states - 1}")
            return (state,)
        if not _is_cell(value):
            form = "a state index" if self.state_cell is None else "a (row, column) cell or a state index"
            raise GoalError(f"{what} {value!r} is no place in {self.label}; pass {form}")
        cell = tuple(int(v) for v in value)  # type: ignore[attr-defined]
        if self.state_cell is None:
            raise GoalError(f"{what} {cell} is a cell, but {self.label} has no grid; pass a state index")
        if cell not in self._by_cell:
            raise GoalError(self._why_not(cell, what))
        return self._by_cell[cell]

    def _why_not(self, cell: tuple[int, ...], what: str) -> str:
        assert self.state_cell is not None
        shape = self.cells.shape if self.cells is not None else tuple(self.state_cell.max(0) + 1)
        if not all(0 <= v < n for v, n in zip(cell, shape, strict=True)):
            return (
                f"{what} {cell} is outside the {shape[0]}x{shape[1]} grid of {self.label}; "
                f"rows run from 0 to {shape[0] - 1}, columns from 0 to {shape[1] - 1}"
            )
        kind = CELL_NAMES[int(self.cells[cell])] if self.cells is not None else "no state"
        distance = np.abs(self.state_cell - np.array(cell)).sum(1)
        near = tuple(self.state_cell[int(distance.argmin())].tolist())
        return f"{what} {cell} is {kind} in {self.label}; the nearest free cell is {near}"

    def goal(self, value: object) -> StateGoal:
        """A goal from a `StateGoal`, a cell, a state index, or a set or list of them. See `FiniteEnv.as_goal`."""
        if isinstance(value, StateGoal):
            if value.states[-1] >= self.n_states:
                raise GoalError(
                    f"goal state {value.states[-1]} is outside {self.label}, which has states 0 to {self.n_states - 1}"
                )
            return value
        if isinstance(value, np.ndarray):
            value = value.tolist()
        if is_index(value) or _is_cell(value):
            return StateGoal.of(self.states_of(value, "goal"), self._label(value))
        if isinstance(value, (set, frozenset)):
            members = sorted(value, key=lambda v: (isinstance(v, tuple), v))
        elif isinstance(value, (list, tuple)) and not any(map(is_index, value)):
            members = list(value)
        else:
            self.states_of(value, "goal")  # raises with the reason
            raise AssertionError("unreachable")  # pragma: no cover
        if not members:
            raise GoalError(f"a goal needs at least one state, got {value!r}; pass a cell, a state, or a set of them")
        members = [m[0] if isinstance(m, (list, tuple)) and len(m) == 1 else m for m in members]
        states = [s for m in members for s in self.states_of(m, "goal")]
        return StateGoal.of(states, "+".join(dict.fromkeys(map(self._label, members))))

    def _label(self, value: object) -> str:
        if is_index(value) and self.state_cell is not None:
            value = self.state_cell[int(value)].tolist()  # type: ignore[call-overload]
        return f"({value[0]},{value[1]})" if _is_cell(value) else str(value)  # type: ignore[index]
