"""What to do where: the behaviour that a goal asks for, as data that a learner, an editor or a code can use."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from retarget.agent import Agent
from retarget.errors import AgentError, GoalError, WorldError
from retarget.exact import best_actions, optimal_values, policy_table
from retarget.goal import Goal, RegionGoal, StateGoal
from retarget.rng import stream
from retarget.trials import actor, follow
from retarget.world import BoxWorld, FiniteWorld, World


@dataclass(frozen=True, eq=False)
class Lessons:
    """Observations, each with what is right there.

    Attributes:
        obs: int64 `[N]` states of a finite world, or float32 `[N, O]` observations.
        right: float64 `[N, A]`, a distribution over the actions that are right (evenly, where several are); or float64
            `[N, K]`, the right action, where actions are continuous.
        weight: float64 `[N]`, non-negative, summing to 1.
        steps: rows come in episodes of this many rows, in order of time, for learners with memory; 1 for none.
    """

    obs: np.ndarray
    right: np.ndarray
    weight: np.ndarray
    steps: int = 1

    def __post_init__(self) -> None:
        n = len(self.obs)
        if n == 0 or self.right.ndim != 2 or len(self.right) != n or self.weight.shape != (n,) or n % self.steps:
            raise AgentError(
                f"lessons need one row of right actions and one weight for each of the observations, in whole "
                f"episodes of {self.steps}, got {np.shape(self.obs)}, {self.right.shape} and {self.weight.shape}"
            )
        if not np.isfinite(self.weight).all() or self.weight.min() < 0 or self.weight.sum() <= 0:
            raise AgentError("weights of lessons must be finite, not negative, and not all 0")
        object.__setattr__(self, "weight", self.weight / self.weight.sum())

    def __len__(self) -> int:
        return len(self.obs)

    def take(self, rows: np.ndarray) -> Lessons:
        """The lessons of some rows (whole episodes, where they come in episodes)."""
        return replace(self, obs=self.obs[rows], right=self.right[rows], weight=self.weight[rows])

    def join(self, other: Lessons) -> Lessons:
        """Both, each with half of the weight for its share of the rows."""
        n, m = len(self), len(other)
        weight = np.concatenate([self.weight * n, other.weight * m])
        obs, right = np.concatenate([self.obs, other.obs]), np.concatenate([self.right, other.right])
        return Lessons(obs, right, weight, self.steps)


def lessons_of(
    world: World,
    goal: Goal,
    *,
    gamma: float,
    seed: int = 0,
    visited_by: Agent | None = None,
    n: int = 32,
    steps: int = 0,
) -> Lessons:
    """The lessons of a goal.

    In a finite world without `steps`: every state from which the goal can be reached, with all actions that are
    optimal there, exactly. In a world with continuous states: the states of `n` episodes of the world's expert, or of
    the agent `visited_by` (source: Ross et al. 2011, DAgger), with the expert's action in each.

    Args:
        world, goal, gamma: of the question.
        seed: names the stream of the starts.
        visited_by: whose episodes; the expert's own without.
        n: episodes, where there are any.
        steps: in a finite world, give episodes of this many steps, for learners with memory; 0 for all states at once.

    Raises:
        WorldError: when world and goal are of different kinds.
        GoalError: when every start lies in the goal already.
    """
    if isinstance(world, FiniteWorld) and isinstance(goal, StateGoal):
        states = _finite(world, goal, gamma)
        return states if steps < 2 else _finite_episodes(world, states, goal, visited_by, n, steps, seed)
    if isinstance(world, BoxWorld) and isinstance(goal, RegionGoal):
        return _box(world, goal, visited_by, n, seed)
    raise WorldError(f"goal {getattr(goal, 'label', goal)!r} is none of {world.spec_data.label}")


def _finite(world: FiniteWorld, goal: StateGoal, gamma: float) -> Lessons:
    right = best_actions(world.model, goal, gamma=gamma).astype(np.float64)
    counted = optimal_values(world.model, goal, gamma=gamma) > 0
    counted[list(goal.states)] = False
    states = np.flatnonzero(counted)
    return Lessons(states, right[states] / right[states].sum(1, keepdims=True), np.ones(len(states)))


def _finite_episodes(
    world: FiniteWorld, known: Lessons, goal: StateGoal, agent: Agent | None, n: int, steps: int, seed: int
) -> Lessons:
    rng = stream(seed, "lesson_episodes", world.spec_data.label)
    model = world.model
    right = np.full((model.n_states, model.n_actions), 1.0 / model.n_actions)
    right[known.obs] = known.right
    useful = np.zeros(model.n_states, dtype=np.bool_)
    useful[known.obs] = True
    starts = np.intersect1d(world.start_states, known.obs)
    order = np.concatenate([rng.permutation(starts) for _ in range(-(-n // len(starts)))])[:n]
    state, carry = order.astype(np.int64), None
    seen, weights = [], []
    cum = np.cumsum(model.prob, axis=2)
    for _ in range(steps):
        seen.append(state)
        weights.append(useful[state])
        probs = right[state]
        if agent is not None:
            probs, carry = agent.policy(state, carry)
        action = _draw(probs, rng)
        which = (cum[state, action] <= rng.random(len(state))[:, None]).sum(1)
        after = model.next_state[state, action, np.minimum(which, cum.shape[2] - 1)]
        state = np.where(useful[state], after, state)  # an episode stays where it ended
    obs = np.stack(seen, axis=1).reshape(-1)
    return Lessons(obs, right[obs], np.stack(weights, axis=1).reshape(-1).astype(np.float64), steps)


def _draw(probs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.asarray(np.minimum((np.cumsum(probs, 1) <= rng.random(len(probs))[:, None]).sum(1), probs.shape[1] - 1))


def _box(world: BoxWorld, goal: RegionGoal, agent: Agent | None, n: int, seed: int) -> Lessons:
    expert = world.expert(goal)
    starts = world.starts(n, rng=stream(seed, "lesson_starts", world.spec_data.label))
    if agent is None:
        traces = follow(world, lambda obs, state, carry: (expert.act(state), None), starts, goal)
    else:
        traces = follow(world, actor(agent, world, rng=stream(seed, "lesson_actions")), starts, goal)
    t, m = traces.live.shape
    if not traces.live.any():
        raise GoalError(f"every one of {n} starts lies in goal {goal.label}: there is nothing to show")
    states = traces.states[:-1].transpose(1, 0, 2).reshape(t * m, -1)
    live = traces.live.T.reshape(-1)
    shown = expert.act(states)
    right = np.eye(world.n_actions)[shown] if world.n_actions is not None else shown
    return Lessons(world.observe(states), right, live.astype(np.float64), t)


def agreement(agent: Agent, world: FiniteWorld, lessons: Lessons) -> float:
    """Mean probability, over lessons of a finite world, that the agent gives to right actions: in [0, 1]."""
    probs = policy_table(agent, world.model)[lessons.obs]
    return float(lessons.weight @ (probs * (lessons.right > 0)).sum(1))
