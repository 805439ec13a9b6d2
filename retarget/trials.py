"""Estimated values in worlds with continuous states: of a policy, of the world's expert, and the competence between.

Toward a goal to *reach*, `V(s)` is `γ^T`, T the first step inside the goal, 0 where that does not come within the
horizon. Toward a goal to *hold*, `V(s)` is the discounted share of steps inside,
`Σ_{t=0..H} γ^t 1[inside] / Σ_{t=0..H} γ^t`. V* is not known; `best` is what the world's expert reaches from the same
start, a lower bound on it, so that a competence here is an upper bound on V/V*.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from retarget.agent import Agent
from retarget.errors import AgentError, GoalError
from retarget.goal import RegionGoal
from retarget.rng import stream
from retarget.world import BoxWorld

#: Starts that competence is estimated over, unless told otherwise.
DEFAULT_STARTS = 64


@dataclass(frozen=True)
class Score:
    """What an agent is worth on a goal.

    Attributes:
        competence: mean of V/V* over the starts, in [0, 1].
        success: share of starts from which the goal is reached (surely, in finite worlds), or is held at the end.
        n: number of starts.
        ci_low, ci_high: normal 95% interval of the competence over starts; None where it is exact.
        env_steps: transitions that scoring took; 0 where it was solved exactly.
        flops: operations that scoring took, by formula.
    """

    competence: float
    success: float
    n: int
    ci_low: float | None = None
    ci_high: float | None = None
    env_steps: int = 0
    flops: float = 0.0


@dataclass(frozen=True, eq=False)
class Traces:
    """Episodes of one policy from N starts, side by side.

    Attributes:
        states: float64 `[T + 1, N, D]`; states stay as they are once an episode has ended.
        actions: int64 `[T, N]` or float64 `[T, N, K]`.
        inside: bool `[T + 1, N]`: in the goal, and the episode had not ended before.
        live: bool `[T, N]`: whether the step was taken.
    """

    states: np.ndarray
    actions: np.ndarray
    inside: np.ndarray
    live: np.ndarray

    @property
    def n_steps(self) -> int:
        return int(self.live.sum())


#: From observations `[B, O]`, states `[B, D]` and the memory so far (None at first) to actions and the next memory.
Actor = Callable[[np.ndarray, np.ndarray, object], tuple[np.ndarray, object]]


def follow(world: BoxWorld, act: Actor, starts: np.ndarray, goal: RegionGoal, *, horizon: int | None = None) -> Traces:
    """Follow a policy from every start until the horizon, the world's end, or a goal that is to be reached.

    Args:
        world: where.
        act: what chooses the actions of all N episodes at once.
        starts: float64 `[N, D]`.
        goal: where an episode ends, if it is not to be held.
        horizon: steps at most; the world's own without.
    """
    steps = world.horizon if horizon is None else horizon
    state = np.array(starts, dtype=np.float64)
    live = np.ones(len(state), dtype=np.bool_)
    states, actions, lives = [state], [], []
    inside = [world.inside(state, goal)]
    if not goal.hold:
        live = live & ~inside[0]
    carry: object = None
    for _ in range(steps):
        if not live.any():
            break
        action, carry = act(world.observe(state), state, carry)
        after, ended = world.advance(state, action)
        keep = live.reshape(-1, *([1] * (state.ndim - 1)))
        state = np.where(keep, after, state)
        lives.append(live)
        states.append(state)
        actions.append(action)
        entered = world.inside(state, goal) & live & ~ended
        inside.append(entered)
        live = live & ~ended & (~entered if not goal.hold else True)
    shape = (0, len(state)) if world.n_actions is not None else (0, len(state), len(world.action_range[0]))  # type: ignore[index]
    kind = np.int64 if world.n_actions is not None else np.float64
    return Traces(
        np.stack(states),
        np.stack(actions) if actions else np.zeros(shape, kind),
        np.stack(inside),
        np.stack(lives) if lives else np.zeros((0, len(state)), np.bool_),
    )


def values(traces: Traces, goal: RegionGoal, *, gamma: float, horizon: int) -> np.ndarray:
    """V at each start: float64 `[N]` in [0, 1]."""
    n_times = traces.inside.shape[0]
    weight = gamma ** np.arange(n_times, dtype=np.float64)
    if not goal.hold:
        first = np.where(traces.inside.any(0), traces.inside.argmax(0), -1)
        return np.asarray(np.where(first >= 0, gamma ** np.maximum(first, 0), 0.0))
    whole = (1 - gamma ** (horizon + 1)) / (1 - gamma)
    return np.asarray((weight[:, None] * traces.inside).sum(0) / whole)


def actor(agent: Agent, world: BoxWorld, *, rng: np.random.Generator) -> Actor:
    """What chooses actions from an agent's distributions: its one action where it is sure, a draw elsewhere."""

    def act(obs: np.ndarray, state: np.ndarray, carry: object) -> tuple[np.ndarray, object]:
        out, carry = agent.policy(obs, carry)
        return choose(check_distribution(out, world, len(obs)), rng), carry

    return act


def check_distribution(out: np.ndarray, world: BoxWorld, n: int) -> np.ndarray:
    """Return action distributions float64 `[B, A]` or `[B, 2, K]`, or raise AgentError that says what is wrong."""
    out = np.asarray(out, dtype=np.float64)
    expected = (n, world.n_actions) if world.n_actions is not None else (n, 2, len(world.action_range[0]))  # type: ignore[index]
    if out.shape != expected:
        raise AgentError(
            f"a policy in {world.spec_data.label} needs distributions of shape {expected}, got {out.shape}"
        )
    if np.isnan(out).any():
        raise AgentError("the policy returned NaN; its weights or its observations are not finite")
    if out.ndim == 2 and ((out < 0).any() or np.abs(out.sum(1) - 1).max() > 1e-6):
        raise AgentError(f"the policy returned no distribution: {out[np.abs(out.sum(1) - 1).argmax()].tolist()}")
    return out


def choose(out: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Actions drawn from distributions: int64 `[B]` of `[B, A]` probabilities, float64 `[B, K]` of `[B, 2, K]` mean and
    log standard deviation (minus infinity for none)."""
    if out.ndim == 3:
        return np.asarray(out[:, 0] + np.exp(out[:, 1]) * rng.standard_normal(out[:, 0].shape))
    # one number a row is drawn whether it is needed or not, so that rows do not shift one another
    draw = rng.random(len(out))
    drawn = (np.cumsum(out, axis=1) <= draw[:, None]).sum(1)
    return np.asarray(np.where(out.max(1) == 1.0, out.argmax(1), np.minimum(drawn, out.shape[1] - 1)), dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Trials:
    """What competence on one goal is measured against, and from where; made once for each goal.

    Attributes:
        world, goal, gamma: of the question.
        starts: float64 `[N, D]` starts that count: outside a goal to be reached, and of use to the expert.
        best: float64 `[N]`: V of the expert from the same starts, above 0.
        n_excluded: starts that were left out.
        seed: names the stream that stochastic policies draw from: the same draws for every agent.
    """

    world: BoxWorld
    goal: RegionGoal
    gamma: float
    starts: np.ndarray
    best: np.ndarray
    n_excluded: int
    seed: int

    @classmethod
    def of(
        cls, world: BoxWorld, goal: RegionGoal, *, gamma: float, n: int = DEFAULT_STARTS, seed: int = 0,
        purpose: str = "search",
    ) -> Trials:  # fmt: skip
        """Draw the starts from the stream (seed, "starts", world, purpose) and follow the expert from each.

        Args:
            world: where.
            goal: what counts.
            gamma: discount in (0, 1).
            n: starts to draw.
            seed: names the stream.
            purpose: "search" while an edit is sought, "test" to score what was found on fresh starts.

        Raises:
            GoalError: when the expert reaches the goal from no start.
        """
        starts = world.starts(n, rng=stream(seed, "starts", world.spec_data.label, purpose))
        expert = world.expert(goal)
        traces = follow(world, lambda obs, state, carry: (expert.act(state), None), starts, goal)
        best = values(traces, goal, gamma=gamma, horizon=world.horizon)
        able = (best > 0) & (goal.hold | ~traces.inside[0])
        if not able.any():
            raise GoalError(
                f"the expert of {world.spec_data.label} reaches goal {goal.label} from none of {n} starts "
                f"within {world.horizon} steps; choose another goal"
            )
        return cls(world, goal, gamma, starts[able], best[able], int((~able).sum()), seed)

    def traces(self, agent: Agent) -> Traces:
        """Episodes of an agent from the starts."""
        rng = stream(self.seed, "actions", self.world.spec_data.label)
        return follow(self.world, actor(agent, self.world, rng=rng), self.starts, self.goal)

    def ratios(self, traces: Traces) -> np.ndarray:
        """`V^π / V*` at each start: float64 `[N]`, cut at 1 where the agent does better than the expert."""
        value = values(traces, self.goal, gamma=self.gamma, horizon=self.world.horizon)
        return np.asarray(np.minimum(value / self.best, 1.0))

    def ratios_of(self, agent: Agent) -> np.ndarray:
        """`V^π / V*` of an agent at each start: float64 `[N]`, in [0, 1]."""
        return self.ratios(self.traces(agent))

    def score_traces(self, traces: Traces, flops_per_action: float = 0.0) -> Score:
        """Score of episodes that were followed from the starts."""
        ratios = self.ratios(traces)
        mean, n = float(ratios.mean()), len(ratios)
        half = 1.96 * float(ratios.std(ddof=1)) / math.sqrt(n) if n > 1 else 1.0
        success = traces.inside.any(0) if not self.goal.hold else traces.inside[-1]
        return Score(
            mean, float(success.mean()), n, max(0.0, mean - half), min(1.0, mean + half), traces.n_steps,
            traces.n_steps * flops_per_action,
        )  # fmt: skip

    def score(self, agent: Agent) -> Score:
        """Follow an agent from the starts, and score it."""
        return self.score_traces(self.traces(agent), agent.flops_per_action)

    def beaten(self, agent: Agent) -> float:
        """Share of starts from which the agent does better than the expert, which shows that V* is higher."""
        value = values(self.traces(agent), self.goal, gamma=self.gamma, horizon=self.world.horizon)
        return float((value > self.best * (1 + 1e-9)).mean())

    @cached_property
    def uniform_competence(self) -> float:
        """Competence of acting uniformly at random."""
        rng = stream(self.seed, "uniform", self.world.spec_data.label)
        n_actions, box = self.world.n_actions, self.world.action_range

        def act(obs: np.ndarray, state: np.ndarray, carry: object) -> tuple[np.ndarray, object]:
            if n_actions is not None:
                return rng.integers(n_actions, size=len(obs)), None
            assert box is not None
            return rng.uniform(box[0], box[1], size=(len(obs), len(box[0]))), None

        return float(self.ratios(follow(self.world, act, self.starts, self.goal)).mean())
