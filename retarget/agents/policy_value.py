"""A small network that says what a state is worth and what to try there: the leaf of searches that learn by search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Literal, get_args

import numpy as np

from retarget.agent import Fit, Part, Real, Role, own
from retarget.agents.leaves import UNLIKELY, Leaf, Opinion, softmax
from retarget.errors import AgentError, unknown
from retarget.exact import best_actions, optimal_values
from retarget.goal import StateGoal
from retarget.rng import stream
from retarget.world import FiniteWorld

Features = Literal["state", "place"]

#: A value bias of this makes the logistic function 0 to the last bit, and costs few bits to write.
SILENT = -1024.0
#: Values are kept this far from 0 and 1 before the logistic function is inverted.
MARGIN = 1e-3
#: Ridge penalty of fits by formula, per state: enough to settle what the data leave open, too little to be seen.
RIDGE = 1e-6


@dataclass(frozen=True, eq=False)
class PolicyValue(Leaf):
    """A multilayer perceptron with two heads. Parts: `trunk.i.weight`, `trunk.i.bias` (weight), `value.weight`,
    `value.bias` (value), `policy.weight`, `policy.bias` (policy).

    The value is the logistic function of the value head, in (0, 1); the prior is the softmax of the policy head.

    Attributes:
        weights: float64 arrays by part name; `[out, in]` and `[out]`.
        features: float64 `[S, F]`, what each state looks like.
        hidden: widths of the trunk's layers.
        n_actions: A.
        seed: of its initial weights.

    >>> leaf = PolicyValue.initial(np.eye(3), n_actions=2, hidden=(4,), seed=0)
    >>> leaf.judge(np.zeros(3), 2, 0.9).prior.shape
    (3, 2)
    """

    weights: Mapping[str, np.ndarray]
    features: np.ndarray
    hidden: tuple[int, ...]
    n_actions: int
    seed: int
    kind: ClassVar[str] = "network"

    def __post_init__(self) -> None:
        features = np.asarray(self.features, dtype=np.float64)
        if features.ndim != 2 or 0 in features.shape or not np.isfinite(features).all():
            raise AgentError(f"features of states must be finite numbers [S, F], got shape {features.shape}")
        object.__setattr__(self, "features", own(features))
        expected = shapes_of(features.shape[1], self.hidden, self.n_actions)
        found = {name: np.shape(array) for name, array in self.weights.items()}
        if found != expected:
            wrong = sorted(set(expected.items()) ^ set(found.items()))[0][0]
            raise AgentError(
                f"weight {wrong!r} should have shape {expected.get(wrong, 'none')}, got {found.get(wrong, 'none')}"
            )
        weights = {name: np.asarray(self.weights[name], dtype=np.float64) for name in expected}
        for name, array in weights.items():
            if not np.isfinite(array).all():
                raise AgentError(f"weight {name!r} must hold finite numbers; replace NaN and infinities first")
        object.__setattr__(self, "weights", {name: own(array) for name, array in weights.items()})

    @classmethod
    def initial(cls, features: np.ndarray, *, n_actions: int, hidden: tuple[int, ...], seed: int) -> PolicyValue:
        """Fresh weights: uniform within ±1/sqrt(inputs) of each layer, in single precision as they will be trained."""
        for width in hidden:
            if isinstance(width, bool) or not isinstance(width, int) or width < 1:
                raise AgentError(f"a hidden layer needs at least one unit, got hidden={hidden!r}; e.g. hidden=(64,)")
        rng = stream(seed, "policy_value")
        weights = {}
        for name, shape in shapes_of(np.shape(features)[1], hidden, n_actions).items():
            if name.endswith("weight"):
                bound = 1.0 / np.sqrt(shape[1])
            weights[name] = rng.uniform(-bound, bound, size=shape).astype(np.float32).astype(np.float64)
        return cls(weights, features, tuple(hidden), n_actions, seed)

    @cached_property
    def parts(self) -> Mapping[str, Part]:
        return {name: Part(name, role_of(name), array, Real()) for name, array in self.weights.items()}

    def with_arrays(self, arrays: Mapping[str, np.ndarray]) -> PolicyValue:
        return replace(self, weights={**self.weights, **arrays})

    @property
    def config(self) -> Mapping[str, object]:
        return {"kind": self.kind, "hidden": list(self.hidden), "seed": self.seed}

    @property
    def fixed_arrays(self) -> Mapping[str, np.ndarray]:
        return {"features": self.features}

    @property
    def flops(self) -> float:
        """Two operations a weight of a matrix."""
        return float(sum(2 * a.size for a in self.weights.values() if a.ndim == 2))

    def blank(self, seed: int) -> PolicyValue:
        """Its own initial weights."""
        return PolicyValue.initial(self.features, n_actions=self.n_actions, hidden=self.hidden, seed=self.seed)

    @cached_property
    def trunk(self) -> np.ndarray:
        """What the heads read: float64 `[S, H]`."""
        x = self.features
        with np.errstate(over="ignore", invalid="ignore"):
            for i in range(len(self.hidden)):
                x = np.maximum(_layer(x, self.weights[f"trunk.{i}.weight"], self.weights[f"trunk.{i}.bias"]), 0.0)
        return x

    def judge(self, reward: np.ndarray, n_actions: int, gamma: float) -> Opinion:
        if len(self.features) != len(reward) or n_actions != self.n_actions:
            raise AgentError(
                f"a network for {(len(self.features), self.n_actions)} states and actions was given for a world of "
                f"{(len(reward), n_actions)}"
            )
        with np.errstate(over="ignore", invalid="ignore"):
            score = _layer(self.trunk, self.weights["value.weight"], self.weights["value.bias"])[:, 0]
            logits = _layer(self.trunk, self.weights["policy.weight"], self.weights["policy.bias"])
        if not (np.isfinite(score).all() and np.isfinite(logits).all()):
            raise AgentError("the network's values or priors overflow; its weights are too large")
        return Opinion(logistic(score), softmax(logits))

    def fits(self, world: FiniteWorld, goal: StateGoal, *, gamma: float) -> tuple[Fit, ...]:
        """Heads by formula, the trunk kept: silenced, or ridge regressions on what the trunk says (values through the
        inverse of the logistic function; logits 0 for optimal actions and `UNLIKELY` for others).

        "exact values" are exact only as far as the trunk tells states apart, which takes about as many units as states.
        """
        if not np.isfinite(self.trunk).all():
            return ()
        value = np.clip(optimal_values(world.model, goal, gamma=gamma), MARGIN, 1 - MARGIN)
        right = best_actions(world.model, goal, gamma=gamma)
        # walks end on the goal: what is thought there is never read, and would cost the other states their fit
        taught = ~goal.mask(world.model.n_states)
        if not taught.any():
            return ()
        seen = self.trunk[taught]
        weights, bias = ridge(seen, np.log(value / (1 - value))[taught, None])
        prior, prior_bias = ridge(seen, np.where(right, 0.0, UNLIKELY)[taught])
        off, even = np.zeros_like(self.weights["value.weight"]), np.zeros_like(self.weights["policy.weight"])
        return (
            Fit("no values", {"value.weight": off, "value.bias": np.array([SILENT])}),
            Fit("exact values", {"value.weight": weights, "value.bias": bias}),
            Fit("even prior", {"policy.weight": even, "policy.bias": np.zeros(self.n_actions)}),
            Fit("best actions", {"policy.weight": prior, "policy.bias": prior_bias}),
        )


def _layer(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    # einsum without its optimiser sums in one order, however many rows there are: a batch of n is n batches of one
    return np.asarray(np.einsum("sf,of->so", x, weight, optimize=False) + bias)


def logistic(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), without overflow; 0 to the last bit far below 0."""
    part = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1.0 / (1.0 + part), part / (1.0 + part)))


def ridge(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights `[out, in]` and bias `[out]` that minimise the squared error of `[S, in]` to `[S, out]`, plus a penalty
    on the weights alone."""
    mean, level = x.mean(0), y.mean(0)
    centred = x - mean
    gram = centred.T @ centred + RIDGE * len(x) * np.eye(x.shape[1])
    weight = np.linalg.solve(gram, centred.T @ (y - level)).T
    return weight, level - weight @ mean


def shapes_of(n_features: int, hidden: tuple[int, ...], n_actions: int) -> dict[str, tuple[int, ...]]:
    """Shapes of all weights, by part name, in order."""
    out: dict[str, tuple[int, ...]] = {}
    before = n_features
    for i, width in enumerate(hidden):
        out[f"trunk.{i}.weight"], out[f"trunk.{i}.bias"] = (width, before), (width,)
        before = width
    out["value.weight"], out["value.bias"] = (1, before), (1,)
    out["policy.weight"], out["policy.bias"] = (n_actions, before), (n_actions,)
    return out


def role_of(name: str) -> Role:
    """The role of a weight, by its name."""
    if name.startswith("value."):
        return "value"
    return "policy" if name.startswith("policy.") else "weight"


def features_of(world: FiniteWorld, kind: Features = "state") -> np.ndarray:
    """What states look like to the network: float64 `[S, F]` of zeros and ones.

    Args:
        world: where.
        kind: `state`, one cell for each state (F = S); or `place`, one cell for each row and one for each column, which
            lets what was learned in one state speak for its neighbours. States that share a place look the same.

    Raises:
        AgentError: for another kind, or places in a world that has none.

    >>> import retarget
    >>> features_of(retarget.make_world("OpenGrid", size=5), "place").sum(1).tolist()[:3]
    [2.0, 2.0, 2.0]
    """
    if kind not in get_args(Features):
        raise AgentError(unknown("kind of features", kind, get_args(Features)))
    if kind == "state":
        return np.eye(world.model.n_states)
    place = world.coordinates
    if place is None:
        raise AgentError(f"states of {world.spec_data.label} have no place; pass features='state'")
    return np.concatenate([np.eye(int(axis.max()) + 1)[axis] for axis in np.asarray(place, dtype=np.int64).T], axis=1)
