"""What an agent sees: states (and goals) as an index, a place, a one-hot vector or an image."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from retarget.envs.layouts import CLIFF, DOOR, FREE, KEY, WALL
from retarget.errors import GoalError, WorldError
from retarget.goal import StateGoal

#: Colours of cells that stay apart for colour-blind readers.
COLOURS = {
    FREE: (240, 240, 240),
    WALL: (60, 60, 60),
    CLIFF: (120, 40, 31),
    KEY: (240, 200, 40),
    DOOR: (150, 100, 50),
}
AGENT_COLOUR = (0, 90, 200)
GOAL_COLOUR = (0, 158, 115)


class Observer:
    """Turns states into observations.

    Modes: `index` the state, an int; `xy` row and column, then the state's flags where it has any, int32; `one_hot`
    int8 `[S]`; `image` uint8 `[H, W, 3]`, one pixel a cell, walls, key, door and agent in it. With `with_goal`
    an observation is a dictionary of `observation` and `goal`: the goal's first state (`index`), its cell (`xy`), ones
    on its states (`one_hot`), or a `[H, W, 1]` image that is 255 on its cells.

    Raises:
        WorldError: when the mode needs a grid and there is none.
    """

    def __init__(
        self,
        mode: str,
        n_states: int,
        *,
        with_goal: bool = False,
        state_cell: np.ndarray | None = None,
        flags: np.ndarray | None = None,
        cells: np.ndarray | None = None,
    ) -> None:
        if mode in ("xy", "image") and (state_cell is None or (mode == "image" and cells is None)):
            raise WorldError(
                f"observation {mode!r} needs a grid, which this world does not have; use 'index' or 'one_hot'"
            )
        self.mode = mode
        self.n_states = n_states
        self.with_goal = with_goal
        self._cell = state_cell
        self._flags = np.zeros((n_states, 0), np.int32) if flags is None else flags
        self._cells = cells
        seen, shown = self._spaces()
        self.space: spaces.Space[Any] = spaces.Dict({"observation": seen, "goal": shown}) if with_goal else seen

    def _spaces(self) -> tuple[spaces.Space[Any], spaces.Space[Any]]:
        if self.mode == "index":
            return spaces.Discrete(self.n_states, dtype=np.int32), spaces.Discrete(self.n_states, dtype=np.int32)
        if self.mode == "one_hot":
            return spaces.MultiBinary(self.n_states), spaces.MultiBinary(self.n_states)
        assert self._cell is not None
        if self.mode == "xy":
            top = np.maximum(self._cell.max(0), 1).astype(np.int32)
            high = np.concatenate([top, np.ones(self._flags.shape[1], np.int32)])
            return spaces.Box(np.zeros_like(high), high, dtype=np.int32), spaces.Box(
                np.zeros_like(top), top, dtype=np.int32
            )
        assert self._cells is not None
        shape = self._cells.shape
        return spaces.Box(0, 255, (*shape, 3), np.uint8), spaces.Box(0, 255, (*shape, 1), np.uint8)

    def check(self, goal: StateGoal) -> None:
        """Raise GoalError when observations show the goal but cannot express this one."""
        if not self.with_goal or self.mode not in ("index", "xy") or len(goal.states) == 1:
            return
        if self._cell is None or len(np.unique(self._cell[list(goal.states)], axis=0)) > 1:
            raise GoalError(
                f"observation {self.mode!r} shows goals of one cell, got {goal.label}; use 'one_hot' or 'image'"
            )

    def one(self, state: int, goal: StateGoal) -> Any:
        """The observation of one state: fresh data on every call."""
        if self.mode == "index":
            return {"observation": state, "goal": goal.states[0]} if self.with_goal else state
        seen = self.states(np.array([state]))[0]
        return {"observation": seen, "goal": self.goal(goal)} if self.with_goal else seen

    def batch(self, states: np.ndarray, goal: StateGoal) -> Any:
        """Observations `[B, ...]` of int `[B]` states, all with one goal."""
        self.check(goal)
        if states.ndim != 1 or states.dtype.kind not in "iu":
            raise WorldError(f"states must be an int array [B], got shape {states.shape} of {states.dtype}")
        if states.size and (states.min() < 0 or states.max() >= self.n_states):
            bad = int(states.min() if states.min() < 0 else states.max())
            raise WorldError(f"state {bad} does not exist; states are 0 to {self.n_states - 1}")
        seen = self.states(states)
        if not self.with_goal:
            return seen
        return {"observation": seen, "goal": np.repeat(np.asarray(self.goal(goal))[None], len(states), axis=0)}

    def states(self, states: np.ndarray) -> np.ndarray:
        """Only the states' part, `[B, ...]`, unchecked."""
        if self.mode == "index":
            return states.astype(np.int32)
        if self.mode == "one_hot":
            out = np.zeros((len(states), self.n_states), dtype=np.int8)
            out[np.arange(len(states)), states] = 1
            return out
        assert self._cell is not None
        if self.mode == "xy":
            return np.concatenate([self._cell[states], self._flags[states]], axis=1).astype(np.int32)
        return self._images(states)

    def goal(self, goal: StateGoal) -> Any:
        """Only the goal's part."""
        if self.mode == "index":
            return np.int32(goal.states[0])
        if self.mode == "one_hot":
            return goal.mask(self.n_states).astype(np.int8)
        assert self._cell is not None
        if self.mode == "xy":
            return self._cell[goal.states[0]].astype(np.int32)
        assert self._cells is not None
        out = np.zeros((*self._cells.shape, 1), dtype=np.uint8)
        where = self._cell[list(goal.states)]
        out[where[:, 0], where[:, 1]] = 255
        return out

    def _images(self, states: np.ndarray) -> np.ndarray:
        assert self._cells is not None and self._cell is not None
        out = np.repeat(palette(self._cells)[None], len(states), axis=0)
        flags = self._flags[states]
        for column, kind in ((0, KEY), (1, DOOR)) if flags.shape[1] == 2 else ():
            row, col = np.argwhere(self._cells == kind)[0]
            out[flags[:, column] == 1, row, col] = COLOURS[FREE]  # the key is taken, the door is open
        where = self._cell[states]
        out[np.arange(len(states)), where[:, 0], where[:, 1]] = AGENT_COLOUR
        return out


def palette(cells: np.ndarray) -> np.ndarray:
    """Uint8 `[H, W, 3]` colours of uint8 `[H, W]` kinds of cell."""
    table: np.ndarray = np.array([COLOURS[k] for k in sorted(COLOURS)], dtype=np.uint8)
    out: np.ndarray = table[cells]
    return out
