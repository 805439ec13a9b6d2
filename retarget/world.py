"""What a world is: a finite model, and a protocol for environments whose goal and start can be set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np

from retarget.digest import digest_of
from retarget.errors import WorldError
from retarget.goal import RegionGoal, StateGoal


@dataclass(frozen=True, eq=False)
class FiniteModel:
    """The exact dynamics of a finite world, without a goal.

    Attributes:
        next_state: int32 `[S, A, K]`, the K possible successors of each state and action.
        prob: float64 `[S, A, K]`, their probabilities; each `[s, a]` sums to 1. A successor may appear twice.

    Raises:
        WorldError: on wrong shapes, successors outside the world, or rows that are no distribution.

    >>> chain = FiniteModel.deterministic([[1, 0], [1, 0]])
    >>> chain.n_states, chain.n_actions, chain.is_deterministic
    (2, 2, True)
    """

    next_state: np.ndarray
    prob: np.ndarray

    def __post_init__(self) -> None:
        nxt = np.array(self.next_state, dtype=np.int32, order="C")
        prob = np.array(self.prob, dtype=np.float64, order="C")
        if nxt.ndim != 3 or nxt.shape != prob.shape or 0 in nxt.shape:
            raise WorldError(
                f"a model needs next_state and prob of one shape [S, A, K], got {nxt.shape} and {prob.shape}"
            )
        if nxt.min() < 0 or nxt.max() >= nxt.shape[0]:
            bad = int(nxt.min() if nxt.min() < 0 else nxt.max())
            raise WorldError(f"successor {bad} is outside the states 0 to {nxt.shape[0] - 1}")
        if not np.isfinite(prob).all() or prob.min() < 0 or np.abs(prob.sum(-1) - 1).max() > 1e-9:
            raise WorldError("transition probabilities must be non-negative and sum to 1 for every state and action")
        nxt.setflags(write=False)
        prob.setflags(write=False)
        object.__setattr__(self, "next_state", nxt)
        object.__setattr__(self, "prob", prob)

    @classmethod
    def deterministic(cls, next_state: Sequence[Sequence[int]] | np.ndarray) -> FiniteModel:
        """A model with one successor for each state and action, from int `[S, A]`."""
        nxt = np.asarray(next_state)
        if nxt.ndim != 2:
            raise WorldError(f"a deterministic model needs next_state [S, A], got shape {nxt.shape}")
        return cls(nxt[:, :, None], np.ones((*nxt.shape, 1)))

    @property
    def n_states(self) -> int:
        return int(self.next_state.shape[0])

    @property
    def n_actions(self) -> int:
        return int(self.next_state.shape[1])

    @cached_property
    def is_deterministic(self) -> bool:
        """True when K is 1; a model with K > 1 is treated as stochastic throughout."""
        return int(self.next_state.shape[2]) == 1

    @cached_property
    def digest(self) -> str:
        return digest_of("model", {}, [("next_state", self.next_state), ("prob", self.prob)])

    def dense(self) -> np.ndarray:
        """Float64 `[S, A, S]` transition probabilities. Memory grows as S²: for small worlds and for oracles."""
        s, a, k = self.next_state.shape
        out = np.zeros((s, a, s))
        rows, cols = np.indices((s, a))
        for j in range(k):
            np.add.at(out, (rows, cols, self.next_state[:, :, j]), self.prob[:, :, j])
        return out

    def relabel(self, perm: np.ndarray) -> FiniteModel:
        """The same world with state `s` renamed to `perm[s]`."""
        inverse = np.argsort(perm)
        return FiniteModel(np.asarray(perm)[self.next_state[inverse]], self.prob[inverse])


@dataclass(frozen=True)
class WorldSpec:
    """What rebuilds a world: a registered id and its options. Plain data; fits a TOML file and a journal.

    >>> WorldSpec.of("FourRooms", size=9)
    WorldSpec(id='FourRooms', options=(('size', 9),))
    """

    id: str
    options: tuple[tuple[str, object], ...] = ()

    @classmethod
    def of(cls, id: str, **options: object) -> WorldSpec:
        return cls(id, tuple(sorted(options.items())))

    @property
    def label(self) -> str:
        """What a reader sees, e.g. `FourRooms(size=9)`."""
        inside = ", ".join(f"{k}={v}" for k, v in self.options)
        return f"{self.id}({inside})" if inside else self.id

    def as_dict(self) -> dict[str, object]:
        return {"id": self.id, **dict(self.options)}


@runtime_checkable
class FiniteWorld(Protocol):
    """A Gymnasium environment with an exact finite model, whose goal and start can be set.

    `reset(options={"goal": ..., "start": ...})` takes whatever `as_goal` and `as_state` take.
    """

    @property
    def spec_data(self) -> WorldSpec: ...

    @property
    def model(self) -> FiniteModel: ...

    @property
    def goal(self) -> StateGoal:
        """The goal in force."""
        ...

    @property
    def start_states(self) -> np.ndarray:
        """Int `[N]`: every state in which an episode may begin (before the goal's own states are taken out)."""
        ...

    @property
    def goals(self) -> tuple[StateGoal, ...]:
        """Goals that a study may draw from: each reachable from at least one start."""
        ...

    @property
    def coordinates(self) -> np.ndarray | None:
        """Int `[S, 2]` row and column of each state, or None where states have no place."""
        ...

    @property
    def action_moves(self) -> np.ndarray | None:
        """Int `[A, 2]` intended (row, column) move of each action, or None."""
        ...

    def as_goal(self, value: object) -> StateGoal: ...

    def as_state(self, value: object) -> int: ...


WorldOptions = Mapping[str, object]


class Expert(Protocol):
    """Who shows what to do toward one goal of a world with continuous states: a teacher and a yardstick.

    It need not be optimal. What it reaches is a lower bound on the best that can be reached.
    """

    def act(self, state: np.ndarray) -> np.ndarray:
        """Actions for float64 `[B, D]` states: int64 `[B]`, or float64 `[B, K]` where actions are continuous."""
        ...


@runtime_checkable
class BoxWorld(Protocol):
    """A world with continuous states, whose goal and start can be set, followed for many states at once.

    It is a set of pure functions: no episode is in progress in it. `retarget.envs` gives the Gymnasium environment of
    one. Dynamics are deterministic; all chance is in the start.
    """

    @property
    def spec_data(self) -> WorldSpec: ...

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the D numbers of a state, with units where they have one."""
        ...

    @property
    def n_actions(self) -> int | None:
        """Number of discrete actions, or None where actions are continuous."""
        ...

    @property
    def action_range(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Lowest and highest action, float64 `[K]` each, or None where actions are discrete."""
        ...

    @property
    def observation_size(self) -> int:
        """Length O of an observation."""
        ...

    @property
    def horizon(self) -> int:
        """Steps of an episode."""
        ...

    @property
    def gamma(self) -> float:
        """Discount of competence that suits the world's horizon."""
        ...

    @property
    def gym_id(self) -> str | None:
        """The Gymnasium environment whose dynamics these are, in which published returns are counted; or None."""
        ...

    @property
    def goal(self) -> RegionGoal:
        """The goal that the world comes with."""
        ...

    @property
    def goals(self) -> tuple[RegionGoal, ...]:
        """Goals that a study may draw from; the world's own is the first."""
        ...

    @property
    def goal_features(self) -> tuple[str, ...]:
        """Features that a goal may name."""
        ...

    def as_goal(self, value: object) -> RegionGoal:
        """A `RegionGoal` of this world; the label of one of `goals`; or a number, the set-point of the main feature.

        Raises:
            GoalError: with what is there.
        """
        ...

    def starts(self, n: int, *, rng: np.random.Generator) -> np.ndarray:
        """Start states float64 `[n, D]`, stratified over the world's distribution of starts."""
        ...

    def observe(self, state: np.ndarray) -> np.ndarray:
        """What an agent sees: float32 `[B, O]` of float64 `[B, D]`."""
        ...

    def advance(self, state: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One step: float64 `[B, D]` next states, and bool `[B]` where the world ended the episode (a fall, say).

        Args:
            state: float64 `[B, D]`.
            action: int64 `[B]`, or float64 `[B, K]`, clipped to the range.
        """
        ...

    def inside(self, state: np.ndarray, goal: RegionGoal) -> np.ndarray:
        """Bool `[B]`: which states are in the goal."""
        ...

    def expert(self, goal: RegionGoal) -> Expert:
        """The best teacher that the world has for a goal."""
        ...


World = FiniteWorld | BoxWorld
