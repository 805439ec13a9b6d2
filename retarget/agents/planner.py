"""Planners: value iteration over a model that is a part of the agent, with the goal in a reward slot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from retarget.agent import Agent, Carry, Categorical, Part, Real, Scores, SlotWrite, own
from retarget.agents.tabular import default_palette, starts_beside
from retarget.errors import AgentError
from retarget.goal import StateGoal
from retarget.spend import Spend
from retarget.world import FiniteWorld


@dataclass(frozen=True, eq=False)
class Planner(Agent):
    """Acts best for the reward in its slot, by what its model says.

    A state's reward is collected on entering it, and ends the episode there if it is not zero. Ties go to the lowest
    action; where no reward is in reach (of the model, or of the depth), it acts uniformly.

    Attributes:
        reward: float64 `[S]`, the goal slot.
        next_state: int `[S, A, K]`, the model; the symbol S means "not known" and is worth nothing.
        prob: float64 `[S, A, K]`, probabilities of the successors.
        gamma: discount, in (0, 1).
        depth: number of Bellman backups that one decision looks ahead; None plans to the fixed point.
        learned: whether the model was learned from data (then a blank has none).
        starts: start states of the data, where the model was learned.

    >>> chain = np.array([[[1], [0]], [[2], [0]], [[2], [1]]])
    >>> p = Planner(np.array([0.0, 0.0, 1.0]), chain, np.ones_like(chain, float), gamma=0.9)
    >>> p.policy(np.array([0, 1]))[0].tolist()
    [[1.0, 0.0], [1.0, 0.0]]
    """

    reward: np.ndarray
    next_state: np.ndarray
    prob: np.ndarray
    gamma: float = 0.95
    depth: int | None = None
    learned: bool = False
    starts: np.ndarray | None = None

    def __post_init__(self) -> None:
        nxt, prob = np.asarray(self.next_state, np.int32), np.asarray(self.prob, np.float64)
        reward = np.asarray(self.reward, np.float64)
        if nxt.ndim != 3 or nxt.shape != prob.shape or reward.shape != nxt.shape[:1]:
            raise AgentError(
                f"a planner needs reward [S] and next_state, prob [S, A, K], "
                f"got {reward.shape}, {nxt.shape} and {prob.shape}"
            )
        if nxt.min() < 0 or nxt.max() > len(nxt):
            raise AgentError(f"model successors must be 0 to {len(nxt)} (unknown), got {int(nxt.max())}")
        if self.depth is not None and self.depth < 1:
            raise AgentError(f"depth must be at least 1, got {self.depth}; use None to plan to the fixed point")
        if not 0 < self.gamma < 1:
            raise AgentError(f"gamma must lie strictly between 0 and 1, got {self.gamma}")
        for name, value in (("reward", reward), ("next_state", nxt), ("prob", prob)):
            object.__setattr__(self, name, own(value))

    @property
    def kind(self) -> str:  # type: ignore[override]
        if self.learned:
            return "learned_planner"
        return "planner" if self.depth is None else "depth_planner"

    @property
    def config(self) -> Mapping[str, object]:
        return {"gamma": self.gamma, "depth": self.depth}

    @cached_property
    def parts(self) -> Mapping[str, Part]:
        n_symbols = len(self.reward) + (1 if self.learned else 0)
        parts = {
            "reward": Part("reward", "goal_slot", self.reward, Real()),
            "next_state": Part("next_state", "model", self.next_state, Categorical(n_symbols)),
        }
        if self.next_state.shape[2] > 1:
            parts["prob"] = Part("prob", "model", self.prob, Real())
        return parts

    @property
    def n_states(self) -> int:
        return len(self.reward)

    @property
    def seen_starts(self) -> np.ndarray | None:
        return self.starts

    @cached_property
    def _plan(self) -> tuple[np.ndarray, int]:
        """Action probabilities `[S, A]`, and the number of backups that they took."""
        from retarget.kernels import reach_backups

        # from V = 0, backups of rewards that are not negative only rise, also in floating point: they come to rest
        settled = 0.0 if (self.reward >= 0).all() else 1e-14
        limit, tolerance = (self.depth, -1.0) if self.depth is not None else (100_000, settled)
        q, _, sweeps = reach_backups(self.next_state, self.prob, self.reward, self.gamma, limit, tolerance)
        best = q.max(1, keepdims=True)
        symbol = np.where(best[:, 0] > 0, (q >= best - 1e-12 * np.abs(best)).argmax(1), q.shape[1])
        return default_palette(q.shape[1])[symbol], sweeps

    @property
    def simulations_per_action(self) -> int:
        """State-action backups of one decision, planned from scratch."""
        return int(self._plan[1] * self.next_state.shape[0] * self.next_state.shape[1])

    @property
    def flops_per_action(self) -> float:
        """Two operations a successor and one comparison, for each backup."""
        return float(self.simulations_per_action * (2 * self.next_state.shape[2] + 1))

    def with_arrays(self, arrays: Mapping[str, np.ndarray]) -> Planner:
        self.check_arrays(arrays)
        return replace(self, **dict(arrays))  # type: ignore[arg-type]

    def policy(self, obs: np.ndarray, carry: Carry = None) -> tuple[np.ndarray, Carry]:
        return self._plan[0][np.asarray(obs)], None

    def blank(self, seed: int) -> Planner:
        """No goal; no model either where the model was learned."""
        nxt = np.full_like(self.next_state, len(self.reward)) if self.learned else self.next_state
        return replace(self, reward=np.zeros_like(self.reward), next_state=nxt, starts=None)

    def slot_writes(self, goal: StateGoal) -> tuple[SlotWrite, ...]:
        return (SlotWrite("reward", 0.0, tuple((s, 1.0) for s in goal.states)),)

    def slot_candidates(self) -> tuple[SlotWrite, ...]:
        return tuple(SlotWrite("reward", 0.0, ((s, 1.0),)) for s in range(len(self.reward)))

    def scores_at(self, obs: np.ndarray) -> Scores:
        """A mixture of the plans for one rewarded state each, weighted by the slot; exact where one is rewarded."""
        from retarget.agents.scores import planner_scores

        return planner_scores(self, obs)


def reward_for(goal: StateGoal, n_states: int) -> np.ndarray:
    """Float64 `[S]`: 1 on the goal."""
    return goal.mask(n_states).astype(np.float64)


def exact_planner(world: FiniteWorld, goal: StateGoal, *, gamma: float = 0.95, depth: int | None = None) -> Planner:
    """A planner over the world's true model, to the fixed point or to a depth.

    >>> import retarget
    >>> world = retarget.make_world("OpenGrid", size=5)
    >>> exact_planner(world, world.goals[0]).kind
    'planner'
    """
    model = world.model
    return Planner(reward_for(goal, model.n_states), model.next_state, model.prob, gamma=gamma, depth=depth)


@dataclass(frozen=True, eq=False)
class LearnedPlanner(Planner):
    """A planner whose model is the successor most often seen in its data; what was never seen is unknown.

    Attributes beside the planner's:
        counts: int `[S, A, K]` how often the data took each successor of the world (kept out of the parts: it is the
            record of the data, not what the agent acts on).
    """

    counts: np.ndarray | None = None

    @property
    def fixed_arrays(self) -> Mapping[str, np.ndarray]:
        return {} if self.counts is None else {"counts": self.counts}

    def model_cells(self) -> tuple[str, np.ndarray]:
        return "next_state", np.arange(self.next_state.size).reshape(self.next_state.shape[:2])

    def retrained(self, world: object, goal: StateGoal, *, budget: int, seed: int) -> tuple[Agent, Spend]:
        """The planner after `budget` episodes of uniformly random action more, with the new goal in its slot."""
        from retarget.kernels import gather
        from retarget.rng import word

        if not isinstance(world, FiniteWorld) or self.counts is None:
            raise AgentError("retraining a learned planner needs a finite world and the planner's own data counts")
        model = world.model
        starts = starts_beside(world, goal)
        uniform = np.full((model.n_states, model.n_actions), 1.0 / model.n_actions)
        started = np.zeros(model.n_states, np.bool_)
        fresh = gather(
            uniform, model.next_state, np.cumsum(model.prob, axis=2), goal.mask(model.n_states), starts, budget,
            model.n_states, 1.0, word(seed, "retrain_model", world.spec_data.label, budget), started,
        )  # fmt: skip
        counts = self.counts + fresh
        steps = int(fresh.sum())
        nxt = most_seen(counts, model.next_state)
        seen = np.union1d(np.flatnonzero(started), [] if self.starts is None else self.starts).astype(np.int64)
        agent = replace(self, reward=reward_for(goal, model.n_states), next_state=nxt, counts=counts, starts=seen)
        return agent, Spend(env_steps=steps, flops=3.0 * steps)

    def blank(self, seed: int) -> Planner:
        """No goal, no model, no data."""
        nothing = None if self.counts is None else np.zeros_like(self.counts)
        return replace(
            self,
            reward=np.zeros_like(self.reward),
            next_state=np.full_like(self.next_state, len(self.reward)),
            counts=nothing,
            starts=None,
        )


def most_seen(counts: np.ndarray, next_state: np.ndarray) -> np.ndarray:
    """Int32 `[S, A, 1]`: the successor seen most often, S where none was."""
    s, _a, k = counts.shape
    total = np.zeros_like(counts)
    # the same successor may stand in several places: add its counts up
    for i in range(k):
        for j in range(k):
            total[:, :, i] += np.where(next_state[:, :, i] == next_state[:, :, j], counts[:, :, j], 0)
    best = np.take_along_axis(next_state, total.argmax(2)[:, :, None], axis=2)
    return np.where(total.max(2, keepdims=True) > 0, best, s).astype(np.int32)


def learned_planner(
    world: FiniteWorld,
    goal: StateGoal,
    *,
    everywhere: bool,
    episodes: int,
    epsilon: float,
    seed: int,
    gamma: float = 0.95,
) -> LearnedPlanner:
    """A planner on a model learned from data.

    Args:
        world: where the data come from.
        goal: in the slot; near data follow the best policy toward it.
        everywhere: uniformly random actions from every start (True), or the best policy for `goal` with a share
            `epsilon` of random actions (False: data near one policy).
        episodes: number of episodes, each from a random start, of at most S steps.
        epsilon: share of random actions in near data.
        seed: names the stream.
        gamma: discount.
    """
    from retarget.exact import policy_table
    from retarget.kernels import gather
    from retarget.rng import word

    model = world.model
    if episodes < 0 or not 0 <= epsilon <= 1:
        raise AgentError(f"data need episodes >= 0 and epsilon in [0, 1], got {episodes!r} and {epsilon!r}")
    starts = starts_beside(world, goal)
    behaviour = policy_table(exact_planner(world, goal, gamma=gamma), model)
    # data everywhere do not stop at the goal: nothing there is special to them
    mask = np.zeros(model.n_states, np.bool_) if everywhere else goal.mask(model.n_states)
    started = np.zeros(model.n_states, np.bool_)
    counts = gather(
        behaviour, model.next_state, np.cumsum(model.prob, axis=2), mask, starts, episodes, model.n_states,
        1.0 if everywhere else epsilon, word(seed, "gather_model", world.spec_data.label, everywhere), started,
    )  # fmt: skip
    nxt = most_seen(counts, model.next_state)
    reward = reward_for(goal, model.n_states)
    return LearnedPlanner(reward, nxt, np.ones(nxt.shape), gamma, None, True, np.flatnonzero(started), counts)
