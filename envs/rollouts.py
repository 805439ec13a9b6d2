"""Fused rollouts: whole episodes inside one compiled loop, from an array of starts to an array of returns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retarget.errors import AgentError, GoalError, WorldError
from retarget.goal import StateGoal
from retarget.rng import word
from retarget.world import FiniteModel, FiniteWorld


@dataclass(frozen=True, eq=False)
class Rollout:
    """What came of one episode from each start.

    Attributes:
        starts: int32 `[N]` where the episodes began.
        returns: float64 `[N]`, `gamma ** T` where the goal was entered after T steps, else 0.
        hits: boolean `[N]`, whether it was entered within the horizon.
        steps: int32 `[N]` steps taken: T, or the horizon.
    """

    starts: np.ndarray
    returns: np.ndarray
    hits: np.ndarray
    steps: np.ndarray

    @property
    def env_steps(self) -> int:
        """Transitions sampled, all episodes together."""
        return int(self.steps.sum(dtype=np.int64))


def rollout(
    world: FiniteWorld,
    policy: np.ndarray,
    *,
    goal: object = None,
    starts: np.ndarray | None = None,
    horizon: int = 1000,
    gamma: float = 0.95,
    seed: int = 0,
) -> Rollout:
    """Run one episode from each start, without leaving compiled code.

    Args:
        world: any finite world.
        policy: int `[S]` actions, or float `[S, A]` probabilities.
        goal: anything `world.as_goal` takes; the goal in force by default.
        starts: int `[N]`, repeated as often as wanted; by default every start state outside the goal, once.
        horizon: most steps of an episode, 1 to 2^30.
        gamma: discount, in (0, 1].
        seed: names the random streams; episode i draws the same numbers whatever runs beside it.

    Returns:
        a `Rollout`; its `returns` estimate the value without bias, up to what lies beyond the horizon. Probabilities
        are exact to M 2^-31, where a state has at most M successors, and exactly 0 and 1 where they are.

    Raises:
        AgentError: when the policy has another shape, or rows that are no distribution.
        GoalError: when a start does not exist or lies in the goal.
        WorldError: for a horizon or discount out of range.

    >>> from retarget.envs import make_world
    >>> world = make_world("OpenGrid", size=5)
    >>> up = rollout(world, np.zeros(25, int), goal=(0, 0), starts=np.array([10, 11]), horizon=50, gamma=0.5)
    >>> up.returns.tolist(), up.hits.tolist(), up.steps.tolist()
    ([0.25, 0.0], [True, False], [2, 50])
    """
    from retarget.envs import kernels

    model = world.model
    target = world.goal if goal is None else world.as_goal(goal)
    # lanes run a little past the horizon, and count in 32 bits
    if not 1 <= horizon <= 2**30 or not 0 < gamma <= 1:
        got = f"got horizon={horizon!r} and gamma={gamma!r}"
        raise WorldError(f"horizon must be at least 1, at most 2^30, and gamma in (0, 1], {got}")
    in_goal = target.mask(model.n_states)
    begin = _starts(world, starts, target, in_goal)
    hits = np.empty(len(begin), np.int32)
    actions = _as_actions(np.asarray(policy), model)
    if actions is not None and model.is_deterministic:
        chain = model.next_state[np.arange(model.n_states), actions, 0]
        kernels.follow(_absorb(chain, in_goal), begin, model.n_states, horizon, hits)
    else:
        slots = _chain_slots(model, np.asarray(policy), actions, in_goal)
        kernels.wander(*slots, begin, model.n_states, horizon, np.uint64(word(seed, "rollout")), hits)
    powers = np.power(float(gamma), np.arange(int(hits.max(initial=0)) + 1))
    out = Rollout(begin, np.empty(len(begin)), np.empty(len(begin), np.bool_), np.empty(len(begin), np.int32))
    kernels.settle(hits, horizon, powers, out.returns, out.hits, out.steps)
    return out


def _starts(world: FiniteWorld, starts: np.ndarray | None, goal: StateGoal, in_goal: np.ndarray) -> np.ndarray:
    from retarget.envs import kernels

    if starts is None:
        return np.ascontiguousarray(world.start_states[~in_goal[world.start_states]], dtype=np.int32)
    begin = np.asarray(starts)
    if begin.ndim != 1 or begin.dtype.kind not in "iu":
        raise GoalError(f"starts must be an int array [N], got shape {begin.shape} of {begin.dtype}")
    # of any other type than int32, a start may not fit in one; those beyond int64 turn negative here
    wide = np.ascontiguousarray(begin, dtype=np.int32 if begin.dtype == np.int32 else np.int64)
    if kernels.starts_exist(wide, in_goal):
        return wide.astype(np.int32, copy=False)
    odd = begin[(begin < 0) | (begin >= len(in_goal))]
    if odd.size:
        raise GoalError(f"start {odd[0]} is outside the world, which has states 0 to {len(in_goal) - 1}")
    raise GoalError(f"start {begin[in_goal[begin]][0]} lies in the goal {goal.label}; leave it out")


def _as_actions(policy: np.ndarray, model: FiniteModel) -> np.ndarray | None:
    """Int `[S]` actions where the policy never draws, else None. Raises unless it is a policy."""
    s, a = model.n_states, model.n_actions
    if policy.shape == (s,) and policy.dtype.kind in "iu":
        if policy.min() < 0 or policy.max() >= a:
            bad = int(policy.min() if policy.min() < 0 else policy.max())
            raise AgentError(f"the policy takes action {bad}, which does not exist; actions are 0 to {a - 1}")
        return policy
    if policy.shape != (s, a) or policy.dtype.kind not in "f":
        raise AgentError(f"a policy is int [{s}] or float [{s}, {a}], got shape {policy.shape} of {policy.dtype}")
    if not np.isfinite(policy).all() or policy.min() < 0 or np.abs(policy.sum(1) - 1).max() > 1e-6:
        raise AgentError("the policy's rows must be non-negative, finite, and sum to 1")
    return policy.argmax(1) if ((policy == 0) | (policy == 1)).all() else None


def _absorb(successor: np.ndarray, in_goal: np.ndarray) -> np.ndarray:
    """Int32 `[S + 1, ...]`: the goal's states replaced by S, which leads to itself."""
    end = len(in_goal)
    out = np.full((end + 1, *successor.shape[1:]), end, dtype=np.int32)
    out[:end] = np.where(in_goal[successor], end, successor)
    return out


def _chain_slots(
    model: FiniteModel, policy: np.ndarray, actions: np.ndarray | None, in_goal: np.ndarray
) -> tuple[np.ndarray, int]:
    """Alias tables of the Markov chain that the policy makes of the model."""
    from retarget.envs import kernels

    s, rows = model.n_states, np.arange(model.n_states)
    if s >= 2**16:
        raise WorldError(f"random rollouts hold states in 16 bits, got a world of {s} states; use 65535 at most")
    if actions is not None:
        succ, prob = model.next_state[rows, actions], model.prob[rows, actions]
    else:
        succ = model.next_state.reshape(s, -1)
        prob = (policy[:, :, None] * model.prob).reshape(s, -1)
    succ = _absorb(succ, in_goal)
    prob = np.concatenate([prob, np.eye(1, prob.shape[1])])
    succ, prob = _merge(succ, prob / prob.sum(1, keepdims=True))
    slots = np.empty(succ.shape, np.uint64)
    kernels.alias_slots(succ, prob, slots)
    return slots.ravel(), succ.shape[1]


def _merge(succ: np.ndarray, prob: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One entry for each distinct successor of a row, as few columns as that takes; the rest has probability 0."""
    order = np.argsort(np.where(prob > 0, succ, np.iinfo(np.int32).max), axis=1, kind="stable")
    succ, prob = np.take_along_axis(succ, order, 1), np.take_along_axis(prob, order, 1)
    fresh = np.ones(succ.shape, dtype=np.bool_)
    fresh[:, 1:] = (succ[:, 1:] != succ[:, :-1]) & (prob[:, 1:] > 0)
    column = np.cumsum(fresh, axis=1) - 1
    merged = np.zeros(prob.shape)
    rows = np.broadcast_to(np.arange(len(succ))[:, None], succ.shape)
    np.add.at(merged, (rows, column), prob)
    heads = np.zeros_like(succ)
    heads[rows[fresh], column[fresh]] = succ[fresh]
    width = int((column[:, -1] + 1).max())
    # Unused slots repeat the row's first successor with probability 0.
    heads = np.where(np.arange(succ.shape[1]) > column[:, -1:], heads[:, :1], heads)
    return np.ascontiguousarray(heads[:, :width], dtype=np.int32), np.ascontiguousarray(merged[:, :width])
