"""MC-AIXI in finite worlds: context trees for a model, ρUCT for a planner, and the goal in a reward slot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from retarget.agent import Agent, Carry, Part, Real, SlotWrite, own
from retarget.agents.planner import reward_for
from retarget.agents.tabular import starts_beside
from retarget.errors import AgentError
from retarget.goal import StateGoal
from retarget.rng import word
from retarget.spend import Spend
from retarget.world import FiniteWorld

#: The trees' predictions are a table `[S, A, S]`: no more states than this.
MOST_STATES = 512


@dataclass(frozen=True, eq=False)
class BayesPlanner(Agent):
    """Acts by ρUCT in what factored context trees predict (source: Veness et al. 2011, for a context of one cycle).

    The state's number is seen, in `ceil(log2 S)` bits, and predicted bit by bit from the state and the action before
    it; a state's reward is collected on entering it, and ends the episode there if it is not zero. The agent needs no
    memory. Its decision in each state is drawn once, from the seed: the action of the highest mean return; where
    several are equal (no reward was met in any simulation, say), they share the probability.

    Attributes:
        reward: float64 `[S]`, the goal slot.
        counts: float64 `[S, A, S]`, how often each transition was seen. The KT counts of all nodes of all context trees
            are sums of these: `counts[s, a, t]` counts in every tree along the context (s, a, earlier bits of t), as
            the next bit of t. A negative count is read as none.
        gamma: discount, in (0, 1).
        simulations: of one decision.
        horizon: steps that a simulation looks ahead.
        bonus: weight of the upper confidence bound, with returns scaled to [0, 1].
        seed: names the random numbers of its decisions.
        starts: start states of the data, where it has any.

    >>> counts = np.zeros((3, 2, 3))
    >>> for s, a, t in ((0, 0, 1), (1, 0, 2), (2, 0, 2), (0, 1, 0), (1, 1, 0), (2, 1, 1)):
    ...     counts[s, a, t] = 50
    >>> BayesPlanner(np.array([0.0, 0.0, 1.0]), counts).policy(np.array([0, 1]))[0].tolist()
    [[1.0, 0.0], [1.0, 0.0]]
    """

    reward: np.ndarray
    counts: np.ndarray
    gamma: float = 0.95
    simulations: int = 4096
    horizon: int = 64
    bonus: float = 1.0
    seed: int = 0
    starts: np.ndarray | None = None

    kind = "mc_aixi"

    def __post_init__(self) -> None:
        reward, counts = np.asarray(self.reward, np.float64), np.asarray(self.counts, np.float64)
        if counts.ndim != 3 or counts.shape != (len(reward), counts.shape[1], len(reward)) or 0 in counts.shape:
            raise AgentError(f"an MC-AIXI agent needs reward [S] and counts [S, A, S], got {reward.shape} and "
                             f"{counts.shape}")  # fmt: skip
        _check_size(len(reward))
        _check_search(self.gamma, self.simulations, self.horizon, self.bonus)
        object.__setattr__(self, "reward", own(reward))
        object.__setattr__(self, "counts", own(counts))

    @property
    def config(self) -> Mapping[str, object]:
        return {
            "gamma": self.gamma, "simulations": self.simulations, "horizon": self.horizon, "bonus": self.bonus,
            "seed": self.seed,
        }  # fmt: skip

    @cached_property
    def parts(self) -> Mapping[str, Part]:
        return {
            "reward": Part("reward", "goal_slot", self.reward, Real()),
            "counts": Part("counts", "model", self.counts, Real()),
        }

    @property
    def n_states(self) -> int:
        return len(self.reward)

    @property
    def seen_starts(self) -> np.ndarray | None:
        return self.starts

    @cached_property
    def predictions(self) -> np.ndarray:
        """What the model says comes next: float64 `[S, A, S]`; what is missing to 1 lies on numbers that are no states.
        """  # fmt: skip
        from retarget.bayes.finite import predictive

        n, n_actions = self.counts.shape[:2]
        return np.asarray(predictive(np.maximum(self.counts, 0.0), *_bits(n, n_actions)))

    @cached_property
    def _planned(self) -> tuple[np.ndarray, int]:
        """Mean returns float64 `[S, A]` of a decision in each state, and the steps that all of them walked."""
        from retarget.bayes.finite import plan_all

        if not self.reward.any():
            return np.zeros(self.counts.shape[:2]), 0
        key = np.uint64(word(self.seed, "mc_aixi", self.n_states))
        returns, steps = plan_all(
            self.predictions, np.append(self.reward, 0.0), self.gamma, self.simulations, self.horizon, self.bonus, key
        )
        return np.asarray(returns), int(steps)

    @property
    def returns(self) -> np.ndarray:
        """Mean return of each action in the simulations of one decision: float64 `[S, A]`."""
        return self._planned[0]

    @cached_property
    def _table(self) -> np.ndarray:
        tied = self.returns == self.returns.max(1, keepdims=True)
        return np.asarray(tied / tied.sum(1, keepdims=True))

    @property
    def plans_once(self) -> bool:
        return False

    @property
    def simulations_per_action(self) -> int:
        return self.simulations

    @property
    def flops_per_action(self) -> float:
        """6 operations an action and 12 for chance in each step that was walked, a mean over states; and 24 a node
        of the context trees to predict from the counts anew."""
        n, n_actions = self.counts.shape[:2]
        state_bits, action_bits = _bits(n, n_actions)
        nodes = sum(2 << (i + state_bits + action_bits) for i in range(state_bits))
        return float(self._planned[1] / n * (6 * n_actions + 12) + 24 * nodes)

    @property
    def draws(self) -> bool:
        return True

    def reseeded(self, seed: int) -> BayesPlanner:
        """The same counts and reward, with decisions drawn from another seed."""
        return replace(self, seed=seed)

    def with_arrays(self, arrays: Mapping[str, np.ndarray]) -> BayesPlanner:
        self.check_arrays(arrays)
        return replace(self, **dict(arrays))  # type: ignore[arg-type]

    def policy(self, obs: np.ndarray, carry: Carry = None) -> tuple[np.ndarray, Carry]:
        return self._table[np.asarray(obs)], None

    def blank(self, seed: int) -> BayesPlanner:
        """No goal and no counts."""
        return replace(self, reward=np.zeros_like(self.reward), counts=np.zeros_like(self.counts), starts=None)

    def slot_writes(self, goal: StateGoal) -> tuple[SlotWrite, ...]:
        return (SlotWrite("reward", 0.0, tuple((s, 1.0) for s in goal.states)),)

    def slot_candidates(self) -> tuple[SlotWrite, ...]:
        return tuple(SlotWrite("reward", 0.0, ((s, 1.0),)) for s in range(len(self.reward)))

    def retrained(self, world: object, goal: StateGoal, *, budget: int, seed: int) -> tuple[Agent, Spend]:
        """The agent after `budget` episodes of S uniformly random steps at most, with the new goal in its slot."""
        if not isinstance(world, FiniteWorld):
            raise AgentError("retraining an MC-AIXI agent needs a finite world")
        counts = np.maximum(self.counts, 0.0)
        started = np.zeros(self.n_states, np.bool_)
        key = word(seed, "retrain_mc_aixi", world.spec_data.label, budget)
        cycles = budget * self.n_states
        _gather(self, world, goal, counts, cycles=cycles, epsilon=1.0, decay=1.0, key=key, started=started, stop=False)
        seen = np.union1d(np.flatnonzero(started), [] if self.starts is None else self.starts).astype(np.int64)
        agent = replace(self, reward=reward_for(goal, self.n_states), counts=counts, starts=seen)
        return agent, Spend(env_steps=cycles, flops=3.0 * cycles)


def mc_aixi(
    world: FiniteWorld,
    goal: StateGoal,
    *,
    cycles: int,
    simulations: int = 4096,
    horizon: int = 64,
    gamma: float = 0.95,
    epsilon: float = 0.999,
    seed: int,
    everywhere: bool,
    bonus: float = 1.0,
) -> BayesPlanner:
    """An MC-AIXI agent that has learned its model by acting in the world.

    Args:
        world: where.
        goal: in the slot, while it learns and after.
        cycles: of learning.
        simulations, horizon, gamma, bonus: of its decisions.
        epsilon: share of random actions in the first cycle; it decays evenly in its logarithm to 1% of that in the last
            (False), or stays at 1 (True).
        seed: names all random numbers.
        everywhere: uniformly random actions through episodes of S steps from random starts that no goal ends (True), or
            its own actions, with random ones among them, through episodes that end on the goal (False).

    >>> import retarget
    >>> from retarget.exact import Yardstick
    >>> world = retarget.make_world("OpenGrid", size=5)
    >>> agent = mc_aixi(world, world.goal, cycles=20_000, simulations=1024, seed=0, everywhere=True)
    >>> Yardstick.of(world, world.goal, gamma=0.95).score(agent).competence > 0.9
    True
    """
    n, n_actions = world.model.n_states, world.model.n_actions
    _check_size(n)
    if isinstance(cycles, bool) or not isinstance(cycles, int) or cycles < 0 or not 0 <= epsilon <= 1:
        raise AgentError(f"learning needs cycles >= 0 and epsilon in [0, 1], got {cycles!r} and {epsilon!r}")
    agent = BayesPlanner(
        reward_for(goal, n), np.zeros((n, n_actions, n)), gamma, simulations, horizon, bonus, seed
    )  # fmt: skip
    counts, started = np.zeros((n, n_actions, n)), np.zeros(n, np.bool_)
    key = word(seed, "learn_mc_aixi", world.spec_data.label, everywhere)
    decay = 1.0 if everywhere else 0.01 ** (1.0 / max(cycles, 1))
    _gather(
        agent, world, goal, counts, cycles=cycles, epsilon=1.0 if everywhere else epsilon, decay=decay, key=key,
        started=started, stop=not everywhere,
    )  # fmt: skip
    return replace(agent, counts=counts, starts=np.flatnonzero(started))


def _gather(
    agent: BayesPlanner, world: FiniteWorld, goal: StateGoal, counts: np.ndarray, *, cycles: int, epsilon: float,
    decay: float, key: int, started: np.ndarray, stop: bool,
) -> None:  # fmt: skip
    """Act in the world, and write what was seen into `counts` and `started`."""
    from retarget.bayes.finite import act_and_count

    model = world.model
    if model.n_states != agent.n_states or model.n_actions != agent.counts.shape[1]:
        raise AgentError(
            f"agent 'mc_aixi' is for a world of {agent.n_states} states and {agent.counts.shape[1]} actions, "
            f"this one has {model.n_states} and {model.n_actions}; measure it in its own"
        )
    ends = goal.mask(model.n_states) if stop else np.zeros(model.n_states, np.bool_)
    act_and_count(
        model.next_state, np.cumsum(model.prob, axis=2), ends, starts_beside(world, goal),
        np.append(agent.reward, 0.0), counts, cycles, model.n_states, epsilon, decay, 8, agent.gamma,
        agent.simulations, agent.horizon, agent.bonus, *_bits(model.n_states, model.n_actions), np.uint64(key),
        started,
    )  # fmt: skip


def _bits(n_states: int, n_actions: int) -> tuple[int, int]:
    return (n_states - 1).bit_length(), (n_actions - 1).bit_length()


def _check_size(n: int) -> None:
    if n > MOST_STATES:
        raise AgentError(f"an MC-AIXI agent predicts a table [S, A, S]: at most {MOST_STATES} states, got {n}")


def _check_search(gamma: float, simulations: int, horizon: int, bonus: float) -> None:
    if not 0 < gamma < 1:
        raise AgentError(f"gamma must lie strictly between 0 and 1, got {gamma}")
    for what, value in (("simulations", simulations), ("horizon", horizon)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise AgentError(f"{what} must be a whole number of at least 1, got {value!r}")
    if not bonus >= 0 or bonus == float("inf"):
        raise AgentError(f"bonus must be a finite number of at least 0, got {bonus!r}")
