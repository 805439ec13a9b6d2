"""Exact evaluation of every single-cell candidate edit of a policy table, at 104 states."""

# mypy: disable-error-code="untyped-decorator"
from __future__ import annotations

import numba
import numpy as np

from benchmarks.timing import Effort, Line, Race, agree
from retarget.envs import make_world
from retarget.exact import Yardstick, best_actions, discounted_transitions
from retarget.kernels import (
    candidate_gains,
    functional_flow,
    functional_gains,
    functional_steps,
    replace_row,
    tree_intervals,
)

TOPIC = "edits"
GAMMA = 0.95


@numba.njit
def each_from_scratch(
    successor: np.ndarray, next_state: np.ndarray, goal: np.ndarray, powers: np.ndarray, weight: np.ndarray
) -> np.ndarray:
    """Each candidate followed from every state anew, each state once: compiled, O(S² A)."""
    n, n_actions = next_state.shape
    out = np.zeros((n, n_actions))
    changed = successor.copy()
    for s in range(n):
        for a in range(n_actions):
            changed[s] = next_state[s, a]
            steps = functional_steps(changed, goal)
            for x in range(n):
                if steps[x] >= 0:
                    out[s, a] += weight[x] * powers[steps[x]]
        changed[s] = successor[s]
    return out


@numba.njit
def each_by_rollout(
    successor: np.ndarray, next_state: np.ndarray, goal: np.ndarray, powers: np.ndarray, weight: np.ndarray
) -> np.ndarray:
    """Each candidate rolled out from each start, at most S steps: what the NumPy peer does, compiled. O(S³ A)."""
    n, n_actions = next_state.shape
    out = np.zeros((n, n_actions))
    changed = successor.copy()
    for s in range(n):
        for a in range(n_actions):
            changed[s] = next_state[s, a]
            for start in range(n):
                x, t = start, 0
                while t < n and not goal[x]:
                    x = changed[x]
                    t += 1
                if goal[x]:
                    out[s, a] += weight[start] * powers[t]
        changed[s] = successor[s]
    return out


@numba.njit
def one_pass(next_state: np.ndarray, goal: np.ndarray, gamma: float, value: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """The limit: values and flow known, no loop looked for, O(1) for each of the S A candidates."""
    n, n_actions = next_state.shape
    out = np.zeros((n, n_actions))
    for s in range(n):
        if not goal[s]:
            for a in range(n_actions):
                out[s, a] = flow[s] * (gamma * value[next_state[s, a]] - value[s])
    return out


@numba.njit
def in_one_call(
    successor: np.ndarray,
    next_state: np.ndarray,
    goal: np.ndarray,
    gamma: float,
    powers: np.ndarray,
    weight: np.ndarray,
) -> np.ndarray:
    """The kernels that `functional_gains` needs, and itself, without Python between them."""
    n, n_actions = next_state.shape
    steps = functional_steps(successor, goal)
    value = np.zeros(n)
    total = 0.0
    for s in range(n):
        if steps[s] >= 0:
            value[s] = powers[steps[s]]
        total += weight[s] * value[s]
    flow = functional_flow(successor, goal, gamma, weight)
    first, last = tree_intervals(successor, goal)
    out = functional_gains(next_state, goal, gamma, value, flow, first, last)
    for s in range(n):
        for a in range(n_actions):
            out[s, a] += total
    return out


class Question:
    """A policy table on its way from goal A to goal B, judged on B: competence after each single change.

    Args:
        size: of the four rooms.
        share: share of the states, those nearest B, that already take B's actions; the others take A's.
    """

    def __init__(self, size: int, share: float) -> None:
        world = make_world("FourRooms", size=size)
        self.model = model = world.model
        goal_a, goal_b = world.goals[0], world.goals[-1]
        judge = Yardstick.of(world, goal_b, gamma=GAMMA)
        self.n, self.n_actions = model.n_states, model.n_actions
        self.next = np.ascontiguousarray(model.next_state[:, :, 0])
        self.weight, self.goal, self.starts = judge.weight, goal_b.mask(self.n), judge.starts
        actions = best_actions(model, goal_a, gamma=GAMMA).argmax(1)
        moved = np.argsort(-judge.optimal, kind="stable")[: round(share * self.n)]
        actions[moved] = best_actions(model, goal_b, gamma=GAMMA).argmax(1)[moved]
        self.actions = actions
        self.successor = self.next[np.arange(self.n), actions].astype(np.int64)
        self.powers = GAMMA ** np.arange(self.n + 1)
        probs = np.eye(self.n_actions)[actions]
        matrix = discounted_transitions(model, probs, self.goal, GAMMA)
        self.inverse = np.linalg.inv(np.eye(self.n) - matrix)
        # a row that changes in one call and changes back in the next, so that every call does the same work
        self.row = int(moved[len(moved) // 2])
        other = np.zeros(self.n)
        other[self.next[self.row, (actions[self.row] + 1) % self.n_actions]] = GAMMA
        self.rows = [matrix[self.row].copy(), other]

    def functional(self) -> np.ndarray:
        """Ours for a deterministic policy, everything included: steps, values, flow, intervals, gains."""
        steps = functional_steps(self.successor, self.goal)
        value = np.where(steps >= 0, GAMMA ** np.maximum(steps, 0).astype(np.float64), 0.0)
        flow = functional_flow(self.successor, self.goal, GAMMA, self.weight)
        first, last = tree_intervals(self.successor, self.goal)
        gains = functional_gains(self.next, self.goal, GAMMA, value, flow, first, last)
        return np.asarray(self.weight @ value + gains)

    def with_inverse(self) -> np.ndarray:
        """Ours for any policy: the update of the inverse after an accepted change, values, flow, gains."""
        self.rows.reverse()
        replace_row(self.inverse, self.row, self.rows[0])
        value = self.inverse[:, self.goal].sum(1)
        flow = self.weight @ self.inverse
        gains = candidate_gains(self.model.next_state, self.model.prob, self.goal, GAMMA, self.inverse, value, flow)
        return np.asarray(self.weight @ value + gains)

    def numpy_rollouts(self) -> np.ndarray:
        """The peer: for each candidate a rollout from all starts at once, until all have arrived, or S steps."""
        out = np.zeros((self.n, self.n_actions))
        changed = self.successor.copy()
        best = self.weight[self.starts]
        for s in range(self.n):
            for a in range(self.n_actions):
                changed[s] = self.next[s, a]
                x = self.starts
                taken = np.zeros(x.size, np.int64)
                going = ~self.goal[x]
                for _ in range(self.n):
                    x = np.where(going, changed[x], x)
                    taken += going
                    going = ~self.goal[x]
                    if not going.any():
                        break
                out[s, a] = (best * np.where(going, 0.0, self.powers[taken])).sum()
            changed[s] = self.successor[s]
        return out

    def numpy_doubling(self) -> np.ndarray:
        """A better NumPy peer: all candidates at once, by pointer doubling."""
        n_candidates = self.n * self.n_actions
        jump = np.tile(np.where(self.goal, np.arange(self.n), self.successor), (n_candidates, 1))
        state = np.repeat(np.arange(self.n), self.n_actions)
        jump[np.arange(n_candidates), state] = np.where(self.goal[state], state, self.next.reshape(-1))
        discount = np.where(self.goal, 1.0, GAMMA) * np.ones((n_candidates, 1))
        for _ in range(int(self.n).bit_length()):
            discount = discount * np.take_along_axis(discount, jump, 1)
            jump = np.take_along_axis(jump, jump, 1)
        return np.asarray(((discount * self.goal[jump]) @ self.weight).reshape(self.n, self.n_actions))

    def compiled_from_scratch(self) -> np.ndarray:
        return np.asarray(each_from_scratch(self.successor, self.next, self.goal, self.powers, self.weight))

    def compiled_rollouts(self) -> np.ndarray:
        return np.asarray(each_by_rollout(self.successor, self.next, self.goal, self.powers, self.weight))

    def compiled_in_one_call(self) -> np.ndarray:
        return np.asarray(in_one_call(self.successor, self.next, self.goal, GAMMA, self.powers, self.weight))

    def check(self) -> None:
        """Every way gives the same competences, to 1e-9, and they are not all alike."""
        truth = self.numpy_rollouts()
        self.with_inverse()  # the row's change; the call below changes it back
        ways = (
            self.functional,
            self.with_inverse,
            self.numpy_doubling,
            self.compiled_from_scratch,
            self.compiled_rollouts,
            self.compiled_in_one_call,
        )
        for way in ways:
            found = way()
            # a goal's own row changes nothing
            agree(f"competences by {way.__name__}", np.abs(found - truth)[~self.goal].max() < 1e-9)
        agree("candidates differ", np.ptp(truth) > 0.01)


TOGETHER = "the functional kernels in one compiled call"
LIMIT = "compiled loop, one pass, values and flow known"


def run(effort: Effort) -> list[Line]:
    """Every line of this topic."""
    return [
        *_question(Question(13, 0.5), "half-way to B", effort),
        *_question(Question(13, 1.0), "optimal for B", effort),
    ]


def _question(q: Question, label: str, effort: Effort) -> list[Line]:
    q.check()
    steps = functional_steps(q.successor, q.goal)
    value = np.where(steps >= 0, GAMMA ** np.maximum(steps, 0).astype(np.float64), 0.0)
    flow = functional_flow(q.successor, q.goal, GAMMA, q.weight)
    fixed, general = f"functional_gains, {label}", f"candidate_gains, {label}"
    peers = {
        "NumPy rollout of each candidate": q.numpy_rollouts,
        "NumPy, all candidates at once, doubling": q.numpy_doubling,
        "compiled rollout of each candidate": q.compiled_rollouts,
        "compiled functional_steps for each candidate": q.compiled_from_scratch,
    }
    work = {fixed: q.functional, general: q.with_inverse, TOGETHER: q.compiled_in_one_call, **peers}
    work[LIMIT] = lambda: one_pass(q.next, q.goal, GAMMA, value, flow)
    race = Race(work, effort)
    units = dict.fromkeys(work, float(q.n * q.n_actions))
    out = []
    for ours in (fixed, general):
        for i, peer in enumerate(peers):
            out.append(race.line(ours, peer, topic=TOPIC, unit="candidates", units=units, bar=None if i else 200))
        for limit in (TOGETHER, LIMIT) if ours == fixed else (LIMIT,):
            out.append(race.line(ours, limit, topic=TOPIC, unit="candidates", units=units, kind="limit"))
    return out
