"""Floor plans: which cells exist, which states stand for them, and where each move leads. Plain NumPy, no goal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from retarget.rng import stream

FREE, WALL, CLIFF, KEY, DOOR = 0, 1, 2, 3, 4
CELL_NAMES = {FREE: "free", WALL: "a wall", CLIFF: "a cliff", KEY: "the key's cell", DOOR: "the door"}
#: (row, column) moves of the actions up, right, down, left; perpendicular ones are a - 1 and a + 1 modulo 4.
MOVES = np.array([[-1, 0], [0, 1], [1, 0], [0, -1]], dtype=np.int32)
MOVES.setflags(write=False)
MIN_SIZE, MAX_SIZE = 5, 101

Cell = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Layout:
    """A floor plan with its states.

    Attributes:
        cells: uint8 `[H, W]` kinds of cell (`FREE`, `WALL`, `CLIFF`, `KEY`, `DOOR`).
        state_cell: int32 `[S, 2]` row and column of each state.
        flags: int32 `[S, F]` what else the state holds (has key, door open), each 0 or 1; F is 0 or 2.
        next_state: int32 `[S, 4]` where each intended move leads.
        starts: int32 `[N]` states in which an episode may begin.
        goal_cell: the default goal.
    """

    cells: np.ndarray
    state_cell: np.ndarray
    flags: np.ndarray
    next_state: np.ndarray
    starts: np.ndarray
    goal_cell: Cell

    def __post_init__(self) -> None:
        for name in ("cells", "state_cell", "flags", "next_state", "starts"):
            array = np.ascontiguousarray(getattr(self, name))
            array.setflags(write=False)
            object.__setattr__(self, name, array)


def slip_model(next_state: np.ndarray, slip: float) -> tuple[np.ndarray, np.ndarray]:
    """Successors and probabilities when a move slips to one of the two perpendicular directions.

    Args:
        next_state: int `[S, 4]` of intended moves, in an order in which neighbours are perpendicular.
        slip: probability of slipping, split evenly, in [0, 1).

    Returns:
        int32 `[S, 4, K]` and float64 `[S, 4, K]`; K is 1 without slip and 3 with it (intended, left, right).

    >>> _, prob = slip_model(np.array([[0, 1, 0, 0], [1, 1, 1, 0]]), 0.2)
    >>> prob[0, 0].tolist()
    [0.8, 0.1, 0.1]
    """
    if slip == 0:
        return next_state[:, :, None], np.ones((*next_state.shape, 1))
    sides = (next_state, np.roll(next_state, 1, axis=1), np.roll(next_state, -1, axis=1))
    prob = np.broadcast_to(np.array([1 - slip, slip / 2, slip / 2]), (*next_state.shape, 3))
    return np.stack(sides, axis=2), prob


def _targets(cells: np.ndarray, where: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row and column `[N, 4]` that each move aims at; a move off the grid aims at its own cell."""
    rows = np.clip(where[:, 0, None] + MOVES[:, 0], 0, cells.shape[0] - 1)
    cols = np.clip(where[:, 1, None] + MOVES[:, 1], 0, cells.shape[1] - 1)
    return rows, cols


def _plain(cells: np.ndarray, goal: Cell, fall_to: Cell | None = None) -> Layout:
    """One state for each free cell, in row-major order; walls stop a move, cliffs send it to `fall_to`."""
    where = np.argwhere(cells == FREE).astype(np.int32)
    index = np.full(cells.shape, -1, dtype=np.int32)
    index[where[:, 0], where[:, 1]] = np.arange(len(where), dtype=np.int32)
    rows, cols = _targets(cells, where)
    nxt = index[rows, cols]
    if fall_to is not None:
        nxt = np.where(cells[rows, cols] == CLIFF, index[fall_to], nxt)
    own = np.arange(len(where), dtype=np.int32)
    nxt = np.where(nxt < 0, own[:, None], nxt).astype(np.int32)
    return Layout(cells, where, np.zeros((len(where), 0), np.int32), nxt, own, goal)


def _walled(size: int) -> np.ndarray:
    cells = np.full((size, size), FREE, dtype=np.uint8)
    cells[[0, -1], :] = WALL
    cells[:, [0, -1]] = WALL
    return cells


def open_grid(size: int) -> Layout:
    """An empty square without inner or outer walls: `size * size` cells."""
    return _plain(np.full((size, size), FREE, dtype=np.uint8), (size - 1, size - 1))


def four_rooms(size: int) -> Layout:
    """Four rooms in a walled square, joined by four doors placed as in Sutton, Precup and Singh (1999)."""
    cells = _walled(size)
    mid = size // 2
    cells[mid, :] = WALL
    cells[:, mid] = WALL
    first, second = mid - 1, size - 2 - mid  # lengths of a wall before and after the crossing
    doors = [
        (1 + first // 2, mid),
        (mid + 1 + (2 * second) // 3, mid),
        (mid, 1 + first // 3),
        (mid, mid + 1 + second // 2),
    ]
    for door in doors:
        cells[door] = FREE
    return _plain(cells, (size - 2, size - 2))


def maze(size: int, *, seed: int, open_fraction: float) -> Layout:
    """A spanning-tree maze on the odd cells, then a fraction of its remaining inner walls opened.

    The walls are opened in one fixed random order, so a larger fraction of the same seed opens more of the same
    walls. Even sizes leave a double wall at the bottom and at the right.
    """
    rng = stream(seed, "maze", size)
    side = (size - 1) // 2
    right = [((r, c), (r, c + 1)) for r in range(side) for c in range(side - 1)]
    down = [((r, c), (r + 1, c)) for r in range(side - 1) for c in range(side)]
    edges = right + down
    parent = list(range(side * side))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    cells = np.full((size, size), WALL, dtype=np.uint8)
    cells[1 : 2 * side : 2, 1 : 2 * side : 2] = FREE
    closed: list[Cell] = []
    for i in rng.permutation(len(edges)):
        (r0, c0), (r1, c1) = edges[int(i)]
        a, b = root(r0 * side + c0), root(r1 * side + c1)
        wall = (r0 + r1 + 1, c0 + c1 + 1)
        if a == b:
            closed.append(wall)
        else:
            parent[a] = b
            cells[wall] = FREE
    for wall in closed[: round(open_fraction * len(closed))]:
        cells[wall] = FREE
    return _plain(cells, (2 * side - 1, 2 * side - 1))


def key_door(size: int) -> Layout:
    """Two rooms and a locked door. Entering the key's cell picks the key up; the door opens to whoever has it.

    A state is a cell with two flags (has key, door open). Episodes begin in the left room, without the key. Only
    states that can be reached from there exist; they are ordered by flags, then row by row.
    """
    cells = _walled(size)
    mid = size // 2
    cells[:, mid] = WALL
    door, key = (mid, mid), (size - 2, 1)
    cells[door] = DOOR
    cells[key] = KEY
    passable = np.stack([(cells == FREE), cells != WALL, cells != WALL])  # [layer, H, W]
    layer, rows, cols = (a.astype(np.int32) for a in np.nonzero(passable))
    index = np.full(passable.shape, -1, dtype=np.int32)
    index[layer, rows, cols] = np.arange(len(layer), dtype=np.int32)
    where = np.stack([rows, cols], axis=1)
    to_row, to_col = _targets(cells, where)
    kind = cells[to_row, to_col]
    to_layer = np.where((layer[:, None] == 0) & (kind == KEY), 1, layer[:, None])
    to_layer = np.where((layer[:, None] == 1) & (kind == DOOR), 2, to_layer)
    nxt = index[to_layer, to_row, to_col]
    nxt = np.where(nxt < 0, np.arange(len(layer))[:, None], nxt)
    starts = np.flatnonzero((layer == 0) & (cols < mid))
    keep = reachable(nxt[:, :, None], starts)
    new = np.cumsum(keep) - 1
    flags = np.stack([layer >= 1, layer == 2], axis=1).astype(np.int32)
    nxt = new[nxt[keep]].astype(np.int32)
    return Layout(cells, where[keep], flags[keep], nxt, new[starts].astype(np.int32), (size - 2, size - 2))


def cliff(size: int) -> Layout:
    """An open square whose bottom row, between its two corners, is a cliff: falling leads to the bottom-left corner."""
    cells = np.full((size, size), FREE, dtype=np.uint8)
    cells[-1, 1:-1] = CLIFF
    return _plain(cells, (size - 1, size - 1), fall_to=(size - 1, 0))


BUILDERS: dict[str, Callable[..., Layout]] = {
    "OpenGrid": open_grid,
    "FourRooms": four_rooms,
    "Maze": maze,
    "KeyDoor": key_door,
    "Cliff": cliff,
}


def reachable(
    next_state: np.ndarray,
    sources: np.ndarray,
    *,
    prob: np.ndarray | None = None,
    stop: np.ndarray | None = None,
) -> np.ndarray:
    """Boolean `[S]`: states that can be reached from `sources` (they included) in any number of moves.

    Args:
        next_state: int `[S, A, K]` successors.
        sources: int `[N]` states, or boolean `[S]`.
        prob: float `[S, A, K]`; successors of probability 0 do not count.
        stop: boolean `[S]` states that are entered but not left.

    >>> reachable(np.array([[[1]], [[1]], [[0]]]), np.array([0])).tolist()
    [True, True, False]
    """
    seen = np.zeros(next_state.shape[0], dtype=np.bool_)
    seen[sources] = True
    front = np.flatnonzero(seen)
    while front.size:
        if stop is not None:
            front = front[~stop[front]]
        out = next_state[front]
        out = out[prob[front] > 0] if prob is not None else out.ravel()
        fresh = np.unique(out[~seen[out]])
        seen[fresh] = True
        front = fresh
    return seen
