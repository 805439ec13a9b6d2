"""What a tree search is told, what it searches, and what it finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from retarget.agent import own
from retarget.errors import AgentError

Method = Literal["puct", "gumbel"]
Backup = Literal["mean", "max"]

#: Simulations of one decision, at most: a tree keeps one node for each.
MOST_SIMULATIONS = 65_536

#: From leaf states int64 `[B]` to their values float64 `[B]` and action probabilities float64 `[B, A]`.
Evaluate = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class TreeSettings:
    """How one decision searches.

    Attributes:
        method: `puct` (Silver et al. 2017, with the values of a tree scaled to [0, 1] as by Schrittwieser et al.
            2020), or `gumbel` (Danihelka et al. 2022: sequential halving at the root, completed values inside).
        simulations: how hard it searches: walks from the root, each adding at most one node.
        gamma: discount in (0, 1].
        exploration: the factor c of PUCT.
        backup: what an edge is worth: the `mean` of the returns of the walks through it; or the `max`, the
            discounted value of what it leads to, a state being worth its best edge that was tried.
        rollout_steps: a new leaf is worth the return of one walk of uniformly random actions of at most this many
            steps; 0 for the leaf values of the model.
        considered: actions that sequential halving begins with, at most.
        visit_scale, value_scale: c_visit and c_scale of the Gumbel method.
        gumbel_scale: factor on its noise; 0 makes it choose the same from every key.

    Raises:
        AgentError: for values out of range.

    >>> TreeSettings(simulations=0)
    Traceback (most recent call last):
        ...
    retarget.errors.AgentError: simulations must be an integer from 1 to 65536, got 0
    """

    method: Method = "puct"
    simulations: int = 64
    gamma: float = 0.95
    exploration: float = 1.25
    backup: Backup = "mean"
    rollout_steps: int = 0
    considered: int = 16
    visit_scale: float = 50.0
    value_scale: float = 0.1
    gumbel_scale: float = 0.0

    def __post_init__(self) -> None:
        ranges = (("simulations", 1, MOST_SIMULATIONS), ("rollout_steps", 0, 65_536), ("considered", 2, 4096))
        for name, low, high in ranges:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise AgentError(f"{name} must be an integer from {low} to {high}, got {value!r}")
        for name, kinds in (("method", Method), ("backup", Backup)):
            if getattr(self, name) not in get_args(kinds):
                known = ", ".join(get_args(kinds))
                raise AgentError(f"{name} of a search must be one of {known}, got {getattr(self, name)!r}")
        if not _is_number(self.gamma) or not 0 < self.gamma <= 1:
            raise AgentError(f"gamma of a search must lie in (0, 1], got {self.gamma!r}")
        for name in ("exploration", "visit_scale", "value_scale", "gumbel_scale"):
            value = getattr(self, name)
            if not (_is_number(value) and np.isfinite(value) and value >= 0):
                raise AgentError(f"{name} of a search must be a finite number of at least 0, got {value!r}")
        if self.method == "gumbel" and self.backup == "max":
            raise AgentError("backup 'max' belongs to method 'puct'; take 'mean' with 'gumbel'")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


@dataclass(frozen=True, eq=False)
class TreeModel:
    """What is searched: a finite model, rewards of entering states, and what is thought of each state beforehand.

    Attributes:
        next_state: int32 `[S, A, K]` successors; the symbol S means "not known": such a walk ends there, worth nothing.
        prob: float64 `[S, A, K]`, their probabilities.
        reward: float64 `[S]`, collected on entering a state; one that is not 0 ends the walk.
        value: float64 `[S]`, the value of a leaf, before any search.
        prior: float64 `[S, A]`, probabilities of actions before any search; rows sum to 1.

    Raises:
        AgentError: on wrong shapes, successors outside 0 to S, or numbers that are not finite.
    """

    next_state: np.ndarray
    prob: np.ndarray
    reward: np.ndarray
    value: np.ndarray
    prior: np.ndarray

    def __post_init__(self) -> None:
        nxt = np.asarray(self.next_state)
        arrays = {n: np.asarray(getattr(self, n), dtype=np.float64) for n in ("prob", "reward", "value", "prior")}
        if nxt.ndim != 3 or 0 in nxt.shape or nxt.dtype.kind not in "iu":
            raise AgentError(f"a search needs successors int [S, A, K], got {nxt.dtype} {nxt.shape}")
        s, a, _ = nxt.shape
        for name, shape in (("prob", nxt.shape), ("reward", (s,)), ("value", (s,)), ("prior", (s, a))):
            if arrays[name].shape != shape:
                raise AgentError(f"a search needs {name} of shape {shape}, got {arrays[name].shape}")
            bad = np.flatnonzero(~np.isfinite(arrays[name]).reshape(s, -1).all(1))
            if bad.size:
                raise AgentError(f"{name} of state {bad[0]} is not finite; a search needs finite numbers")
        if nxt.min() < 0 or nxt.max() > s:
            raise AgentError(f"successors of a search must be 0 to {s} ({s} for not known), got {int(nxt.max())}")
        for name in ("prob", "prior"):
            rows = arrays[name].reshape(-1, arrays[name].shape[-1])
            bad = np.flatnonzero((rows < 0).any(1) | (np.abs(rows.sum(1) - 1) > 1e-6))
            if bad.size:
                where = np.unravel_index(int(bad[0]), arrays[name].shape[:-1])
                raise AgentError(
                    f"{name} of state {where[0]} is no distribution: {rows[bad[0]].tolist()}; "
                    "it needs numbers of at least 0 that sum to 1"
                )
        object.__setattr__(self, "next_state", own(nxt.astype(np.int32)))
        for name, array in arrays.items():
            object.__setattr__(self, name, own(array))

    @property
    def n_states(self) -> int:
        return int(self.next_state.shape[0])

    @property
    def n_actions(self) -> int:
        return int(self.next_state.shape[1])

    @property
    def n_successors(self) -> int:
        return int(self.next_state.shape[2])


@dataclass(frozen=True, eq=False)
class Found:
    """What a search found, for B roots.

    Attributes:
        visits: int32 `[B, A]` walks through each action; they sum to the simulations.
        q: float64 `[B, A]` value of each action, 0 where it was not tried.
        value: float64 `[B]` value of the root: mean return of the walks, or of the best action with backup `max`.
        action: int64 `[B]` the action that the method chooses.
        policy: float64 `[B, A]` the improved policy: shares of visits (`puct`), or softmax of logits and scaled
            completed values (`gumbel`).
        steps: int64 `[B]` model steps that were walked, rollouts included.
        nodes: int32 `[B]` nodes of the tree, root and ends included.
    """

    visits: np.ndarray
    q: np.ndarray
    value: np.ndarray
    action: np.ndarray
    policy: np.ndarray
    steps: np.ndarray
    nodes: np.ndarray

    def __len__(self) -> int:
        return len(self.visits)
