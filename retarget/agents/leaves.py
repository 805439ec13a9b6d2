"""What a tree search thinks of a state before it has searched there: small objects, one for each way to tell."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np

from retarget.agent import Fit, Part, Real, own
from retarget.errors import AgentError
from retarget.exact import best_actions, optimal_values
from retarget.goal import StateGoal
from retarget.world import FiniteWorld

#: Logit of an action that is not optimal, beside 0 for optimal ones, where a prior is made by formula.
UNLIKELY = -3.0


@dataclass(frozen=True, eq=False)
class Opinion:
    """Leaf values float64 `[S]` and action probabilities float64 `[S, A]` of every state."""

    value: np.ndarray
    prior: np.ndarray


class Leaf(ABC):
    """Judges states before they are searched. Frozen; its parts are among those of the agent that searches with it."""

    kind: ClassVar[str]

    @property
    def parts(self) -> Mapping[str, Part]:
        """Editable arrays, by name; roles `value`, `policy`, or `weight` for what serves both."""
        return {}

    def with_arrays(self, arrays: Mapping[str, np.ndarray]) -> Self:
        """The same leaf with some parts replaced."""
        return self

    @property
    def config(self) -> Mapping[str, object]:
        """JSON-able facts that the digest covers."""
        return {"kind": self.kind}

    @property
    def fixed_arrays(self) -> Mapping[str, np.ndarray]:
        """Arrays that the digest covers and that no edit may touch."""
        return {}

    @property
    def rollout_steps(self) -> int:
        """Steps of the random walk that values a new leaf; 0 for none."""
        return 0

    @property
    def flops(self) -> float:
        """Operations of judging one leaf, by formula."""
        return 0.0

    def blank(self, seed: int) -> Leaf:
        """The same before training."""
        return self

    def fits(self, world: FiniteWorld, goal: StateGoal, *, gamma: float) -> tuple[Fit, ...]:
        """Ways to suit its parts to a goal, by formula; see `retarget.agent.HasFits`."""
        return ()

    @abstractmethod
    def judge(self, reward: np.ndarray, n_actions: int, gamma: float) -> Opinion:
        """Values and priors of all states, given what the reward slot holds, float64 `[S]`."""


def _even(n_states: int, n_actions: int) -> np.ndarray:
    return np.full((n_states, n_actions), 1.0 / n_actions)


@dataclass(frozen=True, eq=False)
class Blind(Leaf):
    """Knows nothing: every leaf is worth 0, every action is as likely as another."""

    kind: ClassVar[str] = "none"

    def judge(self, reward: np.ndarray, n_actions: int, gamma: float) -> Opinion:
        return Opinion(np.zeros(len(reward)), _even(len(reward), n_actions))


@dataclass(frozen=True, eq=False)
class Rollouts(Blind):
    """A leaf is worth the return of one uniformly random walk.

    Attributes:
        steps: of a walk, at most.
    """

    steps: int = 32
    kind: ClassVar[str] = "rollouts"

    @property
    def config(self) -> Mapping[str, object]:
        return {"kind": self.kind, "steps": self.steps}

    @property
    def rollout_steps(self) -> int:
        return self.steps


@dataclass(frozen=True, eq=False)
class Distance(Leaf):
    """A leaf is worth what the best reward would be if the way to it were straight: `max_g r(g) γ^d(s, g)`, d the sum
    of distances along each axis. It sees no walls, and it reads the reward slot.

    Attributes:
        place: float64 `[S, D]`, where each state is, in steps.
    """

    place: np.ndarray
    kind: ClassVar[str] = "distance"

    def __post_init__(self) -> None:
        place = np.asarray(self.place, dtype=np.float64)
        if place.ndim != 2 or not np.isfinite(place).all():
            raise AgentError(f"places of states must be finite numbers [S, D], got shape {place.shape}")
        object.__setattr__(self, "place", own(place))

    @property
    def fixed_arrays(self) -> Mapping[str, np.ndarray]:
        return {"place": self.place}

    @property
    def flops(self) -> float:
        """Of one goal: 3 operations an axis, and 2 to discount."""
        return float(3 * self.place.shape[1] + 2)

    def judge(self, reward: np.ndarray, n_actions: int, gamma: float) -> Opinion:
        if len(self.place) != len(reward):
            raise AgentError(f"places of {len(self.place)} states were given for a world of {len(reward)}")
        value = np.zeros(len(reward))
        for g in np.flatnonzero(reward > 0):
            value = np.maximum(value, reward[g] * gamma ** np.abs(self.place - self.place[g]).sum(1))
        return Opinion(value, _even(len(reward), n_actions))


@dataclass(frozen=True, eq=False)
class Tables(Leaf):
    """A value for each state and logits for each state and action, stored. Parts: `value` (role value), `prior` (role
    policy).

    Attributes:
        value: float64 `[S]`.
        logits: float64 `[S, A]`; the prior is their softmax.
    """

    value: np.ndarray
    logits: np.ndarray
    kind: ClassVar[str] = "tables"

    def __post_init__(self) -> None:
        value, logits = np.asarray(self.value, np.float64), np.asarray(self.logits, np.float64)
        if value.ndim != 1 or logits.ndim != 2 or len(value) != len(logits):
            raise AgentError(f"leaf tables need value [S] and logits [S, A], got {value.shape} and {logits.shape}")
        if not (np.isfinite(value).all() and np.isfinite(logits).all()):
            raise AgentError("leaf tables must hold finite numbers; replace NaN and infinities first")
        object.__setattr__(self, "value", own(value))
        object.__setattr__(self, "logits", own(logits))

    @classmethod
    def for_goal(cls, world: FiniteWorld, goal: StateGoal, *, gamma: float) -> Tables:
        """Exact values of the best policy toward a goal, and a prior that favours its actions."""
        n, a = world.model.n_states, world.model.n_actions
        empty = cls(np.zeros(n), np.zeros((n, a)))
        made = {f.name: f.arrays for f in empty.fits(world, goal, gamma=gamma)}
        return empty.with_arrays({**made["exact values"], **made["best actions"]})

    @property
    def parts(self) -> Mapping[str, Part]:
        return {
            "value": Part("value", "value", self.value, Real()),
            "prior": Part("prior", "policy", self.logits, Real()),
        }

    def with_arrays(self, arrays: Mapping[str, np.ndarray]) -> Tables:
        return replace(self, value=arrays.get("value", self.value), logits=arrays.get("prior", self.logits))

    def blank(self, seed: int) -> Tables:
        return replace(self, value=np.zeros_like(self.value), logits=np.zeros_like(self.logits))

    def fits(self, world: FiniteWorld, goal: StateGoal, *, gamma: float) -> tuple[Fit, ...]:
        right = best_actions(world.model, goal, gamma=gamma)
        return (
            Fit("no values", {"value": np.zeros_like(self.value)}),
            Fit("exact values", {"value": optimal_values(world.model, goal, gamma=gamma)}),
            Fit("even prior", {"prior": np.zeros_like(self.logits)}),
            Fit("best actions", {"prior": np.where(right, 0.0, UNLIKELY)}),
        )

    def judge(self, reward: np.ndarray, n_actions: int, gamma: float) -> Opinion:
        if self.logits.shape != (len(reward), n_actions):
            raise AgentError(
                f"leaf tables for {self.logits.shape} states and actions were given for a world of "
                f"{(len(reward), n_actions)}"
            )
        return Opinion(self.value, softmax(self.logits))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities float64 `[S, A]` from finite logits."""
    with np.errstate(over="ignore", under="ignore"):
        # the difference of two huge numbers may be minus infinity, which is a probability of 0
        part = np.exp(np.maximum(logits - logits.max(1, keepdims=True), -745.0))
    return np.asarray(part / part.sum(1, keepdims=True))
