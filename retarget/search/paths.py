"""Exact search in deterministic models: the best path from every state at once, and what finding it took."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from retarget.agent import own
from retarget.errors import AgentError

PathMethod = Literal["bfs", "astar", "deepening"]


@dataclass(frozen=True, eq=False)
class Paths:
    """Best paths, one from each state.

    Attributes:
        action: int64 `[S]` first action of a best path, the lowest where several have one; -1 where there is no path.
        length: int64 `[S]` its number of steps, -1 where there is none.
        value: float64 `[S]` what it is worth, `γ^(length - 1)` times the reward at its end; 0 where there is none.
        expanded: int64 `[S]` nodes whose successors were looked at.
    """

    action: np.ndarray
    length: np.ndarray
    value: np.ndarray
    expanded: np.ndarray

    def __post_init__(self) -> None:
        for name in ("action", "length", "value", "expanded"):
            object.__setattr__(self, name, own(getattr(self, name)))


def best_paths(
    next_state: np.ndarray,
    reward: np.ndarray,
    *,
    method: PathMethod,
    gamma: float,
    depth: int | None = None,
    place: np.ndarray | None = None,
) -> Paths:
    """The best path from every state of a deterministic model.

    A path begins with a step (its first state's own reward plays no part), and ends in the first state whose reward is
    not 0. It is worth that reward, times γ for each step after the first. A negative reward is a wall: no path is worth
    taking into it. All three methods find the same paths; they differ in the nodes that they expand.

    Args:
        next_state: int `[S, A]`; the symbol S stands for "not known", and leads nowhere.
        reward: float `[S]`.
        method: `bfs`, breadth first; `astar` (Hart, Nilsson and Raphael 1968), guided by an admissible bound on the
            steps left: the Manhattan distance over the largest move of the model, with `place`, else none (then it is
            uniform-cost search); `deepening`, depth first to limit 1, 2, … (Korf 1985), with a memory of how soon each
            state was reached.
        gamma: discount in (0, 1).
        depth: longest path; None for no limit.
        place: int `[S, 2]` row and column of each state, for `astar`.

    Raises:
        AgentError: on wrong shapes, successors outside 0 to S, rewards that are not finite, or values out of range.

    >>> chain = np.array([[1, 0], [2, 0], [2, 1]])
    >>> found = best_paths(chain, np.array([0.0, 0.0, 1.0]), method="bfs", gamma=0.5)
    >>> found.action.tolist(), found.length.tolist(), found.value.tolist()
    ([0, 0, 0], [2, 1, 1], [0.5, 1.0, 1.0])
    """
    check_model(next_state, reward, method=method, gamma=gamma, depth=depth, place=place)
    nxt, worth = np.ascontiguousarray(next_state, np.int32), np.ascontiguousarray(reward, np.float64)
    # no best path is longer than the number of states
    limit = len(nxt) if depth is None else min(depth, len(nxt))
    # numba takes long to load
    from retarget.search import path_kernels

    if method == "bfs":
        return Paths(*path_kernels.breadth_first(nxt, worth, gamma, limit))
    if method == "deepening":
        return Paths(*path_kernels.deepening(nxt, worth, gamma, limit))
    where = np.zeros((0, 2), np.int64) if place is None else np.ascontiguousarray(place, np.int64)
    bound = path_kernels.bounds(nxt, worth, gamma, where) if (worth > 0).any() else np.zeros(len(nxt))
    return Paths(*path_kernels.a_star(nxt, worth, gamma, limit, bound))


def check_model(
    next_state: np.ndarray,
    reward: np.ndarray,
    *,
    method: str,
    gamma: float,
    depth: int | None = None,
    place: np.ndarray | None = None,
) -> None:
    """Raise AgentError unless `best_paths` can be asked this."""
    nxt, worth = np.asarray(next_state), np.asarray(reward, np.float64)
    if nxt.ndim != 2 or 0 in nxt.shape or nxt.dtype.kind not in "iu" or worth.shape != nxt.shape[:1]:
        raise AgentError(
            f"a search for paths needs next_state int [S, A] and reward [S], got {nxt.dtype} {nxt.shape} "
            f"and {worth.shape}; it takes one successor for each state and action"
        )
    n = len(nxt)
    if nxt.min() < 0 or nxt.max() > n:
        bad = int(nxt.min() if nxt.min() < 0 else nxt.max())
        raise AgentError(f"successors must be 0 to {n} ({n} for not known), got {bad}")
    if not np.isfinite(worth).all():
        bad = int(np.flatnonzero(~np.isfinite(worth))[0])
        raise AgentError(f"the reward of state {bad} is {worth[bad]}; a search needs finite rewards")
    if method not in get_args(PathMethod):
        raise AgentError(f"method of a path search must be one of {', '.join(get_args(PathMethod))}, got {method!r}")
    if not 0 < gamma < 1:
        raise AgentError(f"gamma must lie strictly between 0 and 1, got {gamma!r}")
    if depth is not None and (isinstance(depth, bool) or not isinstance(depth, int) or depth < 1):
        raise AgentError(f"depth must be an integer of at least 1, got {depth!r}; use None for no limit")
    if place is not None and (np.shape(place) != (n, 2) or np.asarray(place).dtype.kind not in "iu"):
        raise AgentError(f"place must hold row and column of each of {n} states as integers, got {np.shape(place)}")
