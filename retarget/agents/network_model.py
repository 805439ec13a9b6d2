"""A planner whose model is a neural network: of each state and action it says which state comes next.

`retarget.training.dynamics` fits the network to data, and gives the planner that can be trained further.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np

from retarget.agent import Agent, Carry, Part, Real, SlotWrite, own
from retarget.agents.neural import Architecture, call
from retarget.agents.planner import Planner
from retarget.errors import AgentError
from retarget.goal import StateGoal

#: Rows of states and actions that go through the network at once.
ROWS = 4096


@dataclass(frozen=True, eq=False)
class NetworkModelPlanner(Agent):
    """Plans to the fixed point over the successors that a network finds likeliest.

    The network's input is the state (one cell a state; or, with `place`, one cell a row and one a column) and the
    action (one cell an action); its outputs are the logits of the S states that may come next. Where a table of counts
    has nothing to say, the network says something: it names some successor of every state and action.

    It acts as `Planner` does over these successors: a state's reward is collected on entering it, and ends the episode
    there if it is not zero; ties go to the lowest action; where no reward is in reach, it acts uniformly.

    Attributes:
        reward: float64 `[S]`, the goal slot.
        architecture: of the network: `inputs_of(...)` inputs and S outputs.
        weights: float arrays by part name; the architecture's names and shapes, no others. Evaluated in float64.
        n_actions: A.
        place: int `[S, 2]` row and column of each state, all of them different, if that is what the network sees; None
            for the state itself.
        gamma: discount, in (0, 1).
        starts: int `[N]` start states of the data, or None.
        seed: of its initial weights, or None where it is not known.

    Raises:
        AgentError: when weights do not fit, or places do not tell states apart. Weights so large that the network's
            scores overflow are refused when it first plans.

    >>> shape = Architecture.of("mlp", inputs=3, outputs=2, hidden=(4,))
    >>> agent = NetworkModelPlanner(np.array([0.0, 1.0]), shape, shape.initial(0), n_actions=1)
    >>> agent.successors.shape, list(agent.parts)[:2]
    ((2, 1), ['reward', 'hidden.0.0.weight'])
    """

    reward: np.ndarray
    architecture: Architecture
    weights: Mapping[str, np.ndarray]
    n_actions: int
    place: np.ndarray | None = None
    gamma: float = 0.95
    starts: np.ndarray | None = None
    seed: int | None = None
    kind = "network_model_planner"

    def __post_init__(self) -> None:
        reward = np.asarray(self.reward, np.float64)
        if reward.ndim != 1 or not reward.size or self.n_actions < 1 or not 0 < self.gamma < 1:
            raise AgentError(
                f"a network model needs reward [S], at least one action and gamma in (0, 1), "
                f"got {reward.shape}, {self.n_actions} and {self.gamma}"
            )
        object.__setattr__(self, "reward", own(reward))
        if self.place is not None:
            object.__setattr__(self, "place", own(_places(self.place, len(reward))))
        object.__setattr__(self, "weights", self._checked_weights())
        sizes = {k: v for k, v in self.architecture.options if k in ("inputs", "outputs")}
        expected = {"inputs": inputs_of(len(reward), self.n_actions, self.place), "outputs": len(reward)}
        if sizes != expected:
            raise AgentError(f"the network of this model needs {expected}, got {sizes}; make it with inputs_of(...)")

    def _checked_weights(self) -> dict[str, np.ndarray]:
        template = dict(self.architecture.template.named_parameters())
        expected = {short: tuple(template[name].shape) for short, name in self.architecture.names.items()}
        found = {name: np.shape(array) for name, array in self.weights.items()}
        if expected != found:
            wrong = sorted(set(expected.items()) ^ set(found.items()))[0][0]
            raise AgentError(
                f"weight {wrong!r} should have shape {expected.get(wrong, 'none')}, got {found.get(wrong, 'none')}"
            )
        for name in expected:
            if not np.isfinite(self.weights[name]).all():
                raise AgentError(f"weight {name!r} holds a value that is not finite; replace NaN and infinities first")
        return {name: own(np.asarray(self.weights[name], np.float64)) for name in expected}

    @property
    def config(self) -> Mapping[str, object]:
        return {"architecture": self.architecture.as_dict(), "gamma": self.gamma, "n_actions": self.n_actions}

    @property
    def fixed_arrays(self) -> Mapping[str, np.ndarray]:
        return {} if self.place is None else {"place": self.place}

    @cached_property
    def parts(self) -> Mapping[str, Part]:
        weights = {name: Part(name, "model", array, Real()) for name, array in self.weights.items()}
        return {"reward": Part("reward", "goal_slot", self.reward, Real()), **weights}

    @property
    def n_states(self) -> int:
        return len(self.reward)

    @property
    def seen_starts(self) -> np.ndarray | None:
        return self.starts

    @cached_property
    def successors(self) -> np.ndarray:
        """Int32 `[S, A]`: the state that the network finds likeliest to come next, the lowest of equals.

        Raises:
            AgentError: where its scores are not finite.
        """
        import torch

        tensors = {name: torch.tensor(array) for name, array in self.weights.items()}
        n = self.n_states * self.n_actions
        out = np.empty(n, np.int32)
        for begin in range(0, n, ROWS):
            rows = np.arange(begin, min(begin + ROWS, n))
            x = inputs(rows // self.n_actions, rows % self.n_actions, self.n_states, self.n_actions, self.place)
            with torch.no_grad():
                scores = call(self.architecture, tensors, torch.from_numpy(x), None)[0].numpy()
            bad = np.flatnonzero(~np.isfinite(scores).all(1))
            if bad.size:
                largest = max(float(np.abs(w).max()) for w in self.weights.values())
                raise AgentError(
                    f"the network's scores of state {rows[bad[0]] // self.n_actions} are not finite; its weights, "
                    f"up to {largest:.3g}, are too large"
                )
            out[rows] = scores.argmax(1)
        return own(out.reshape(self.n_states, self.n_actions))

    @cached_property
    def planner(self) -> Planner:
        """The planner over these successors."""
        nxt = self.successors[:, :, None]
        return Planner(self.reward, nxt, np.ones(nxt.shape), self.gamma)

    @property
    def simulations_per_action(self) -> int:
        """State-action backups of one decision, planned from scratch."""
        return self.planner.simulations_per_action

    @property
    def flops_per_action(self) -> float:
        """One decision from scratch: a forward pass for each of S A states and actions, then the planner's backups."""
        return self.architecture.flops * self.n_states * self.n_actions + self.planner.flops_per_action

    def with_arrays(self, arrays: Mapping[str, np.ndarray]) -> Self:
        self.check_arrays(arrays)
        weights = {name: arrays.get(name, array) for name, array in self.weights.items()}
        return replace(self, reward=arrays.get("reward", self.reward), weights=weights)

    def policy(self, obs: np.ndarray, carry: Carry = None) -> tuple[np.ndarray, Carry]:
        return self.planner.policy(obs)

    def blank(self, seed: int) -> Self:
        """No goal, and the weights that training began from (its own seed's, where that is known)."""
        weights = self.architecture.initial(seed if self.seed is None else self.seed)
        return replace(self, reward=np.zeros_like(self.reward), weights=weights, starts=None)

    def slot_writes(self, goal: StateGoal) -> tuple[SlotWrite, ...]:
        return (SlotWrite("reward", 0.0, tuple((s, 1.0) for s in goal.states)),)

    def slot_candidates(self) -> tuple[SlotWrite, ...]:
        return tuple(SlotWrite("reward", 0.0, ((s, 1.0),)) for s in range(self.n_states))


def _places(place: np.ndarray, n_states: int) -> np.ndarray:
    found = np.asarray(place)
    if found.shape != (n_states, 2) or found.dtype.kind not in "iu" or found.min() < 0:
        raise AgentError(f"places are rows and columns from 0, int [{n_states}, 2], got {found.dtype} {found.shape}")
    if len(np.unique(found, axis=0)) < n_states:
        raise AgentError("places do not tell the states apart: some share one; leave them out (features='state')")
    return found.astype(np.int64)


def inputs_of(n_states: int, n_actions: int, place: np.ndarray | None = None) -> int:
    """How many inputs the network has.

    >>> inputs_of(5, 4), inputs_of(2, 4, np.array([[0, 2], [1, 1]]))
    (9, 9)
    """
    seen = n_states if place is None else int(place[:, 0].max()) + int(place[:, 1].max()) + 2
    return seen + n_actions


def inputs(
    state: np.ndarray, action: np.ndarray, n_states: int, n_actions: int, place: np.ndarray | None = None
) -> np.ndarray:
    """What the network sees of pairs of states and actions, int `[N]` each: float64 `[N, inputs_of(...)]`.

    >>> inputs(np.array([1]), np.array([0]), 3, 2).tolist()
    [[0.0, 1.0, 0.0, 1.0, 0.0]]
    """
    out = np.zeros((len(state), inputs_of(n_states, n_actions, place)))
    rows = np.arange(len(state))
    if place is None:
        out[rows, state] = 1.0
    else:
        out[rows, place[state, 0]] = 1.0
        out[rows, int(place[:, 0].max()) + 1 + place[state, 1]] = 1.0
    out[rows, out.shape[1] - n_actions + action] = 1.0
    return out
