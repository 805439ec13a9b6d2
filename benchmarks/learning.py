"""Tabular Q-learning: updates per second."""

# mypy: disable-error-code="untyped-decorator"
from __future__ import annotations

import random

import numba
import numpy as np

from benchmarks.timing import Effort, Line, Race, agree
from retarget.envs import make_world
from retarget.exact import Yardstick, best_actions
from retarget.kernels import q_learning
from retarget.world import FiniteWorld

TOPIC = "learning"
GAMMA, EPSILON = 0.95, 0.3


def python_q_learning(
    next_state: list[list[list[int]]],
    cumulative: list[list[list[float]]],
    goal: list[bool],
    starts: list[int],
    updates: int,
    horizon: int,
) -> list[list[float]]:
    """The same algorithm in plain Python, on lists, for a given number of updates: Q `[S, A]`."""
    n_actions, k = len(next_state[0]), len(next_state[0][0])
    q = [[0.0] * n_actions for _ in next_state]
    visits = [[0] * n_actions for _ in next_state]
    draw = random.Random(0).random
    done = 0
    while True:
        s = starts[int(draw() * len(starts))]
        for _ in range(horizon):
            if goal[s]:
                break
            if done == updates:
                return q
            row = q[s]
            u = draw()
            if u < EPSILON:
                a = int(u / EPSILON * n_actions)
            else:
                best = max(row)
                ties = [b for b in range(n_actions) if row[b] == best]
                a = ties[int(draw() * len(ties))]
            t = next_state[s][a][0]
            if k > 1:
                v = draw()
                for j in range(k):
                    if v < cumulative[s][a][j]:
                        t = next_state[s][a][j]
                        break
            done += 1
            visits[s][a] += 1
            target = 1.0 if goal[t] else GAMMA * max(q[t])
            rate = 1.0 if k == 1 else visits[s][a] ** -0.6
            row[a] += rate * (target - row[a])
            s = t


@numba.njit
def bare_updates(q: np.ndarray, next_state: np.ndarray, goal: np.ndarray, updates: int) -> None:
    """The limit: a draw, a uniform action, a lookup and one update along a walk. No greedy choice, no counts."""
    n_actions = next_state.shape[1]
    s = np.int64(0)
    for i in range(updates):
        x = np.uint64(i) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
        a = np.int64((x >> np.uint64(32)) * np.uint64(n_actions) >> np.uint64(32))
        t = next_state[s, a]
        best = q[t, 0]
        for b in range(1, n_actions):
            best = max(best, q[t, b])
        q[s, a] = 1.0 if goal[t] else GAMMA * best
        s = np.int64(t)


class Learners:
    """Both learners on one world, for the same number of updates."""

    def __init__(self, world: FiniteWorld, episodes: int) -> None:
        model = world.model
        self.world, self.model, self.episodes = world, model, episodes
        self.goal = world.goal.mask(model.n_states)
        self.starts = np.setdiff1d(np.arange(model.n_states), world.goal.states)
        self.horizon = 4 * model.n_states
        self.cumulative = np.cumsum(model.prob, axis=2)
        self.lists = (model.next_state.tolist(), self.cumulative.tolist(), self.goal.tolist(), self.starts.tolist())
        self.updates = self.compiled()[1]

    def compiled(self) -> tuple[np.ndarray, int]:
        shape = (self.model.n_states, self.model.n_actions)
        q = np.zeros(shape)
        steps, _ = q_learning(
            q, np.zeros(shape, np.int64), self.model.next_state, self.cumulative, self.goal, self.starts,
            self.episodes, self.horizon, GAMMA, EPSILON, 0, 0,
            np.zeros(self.model.n_states, np.bool_),
        )  # fmt: skip
        return q, int(steps)

    def plain(self) -> np.ndarray:
        return np.array(python_q_learning(*self.lists, self.updates, self.horizon))

    def competence(self, q: np.ndarray) -> float:
        """Exact competence of the greedy policy."""
        judge = Yardstick.of(self.world, self.world.goal, gamma=GAMMA)
        return judge.competence(np.eye(self.model.n_actions)[q.argmax(1)])

    def optimal(self, q: np.ndarray) -> bool:
        """Whether every greedy action is an optimal one."""
        best = best_actions(self.model, self.world.goal, gamma=GAMMA)
        return bool(best[np.arange(len(q)), q.argmax(1)].all())


def run(effort: Effort) -> list[Line]:
    """Every line of this topic."""
    sure = Learners(make_world("FourRooms", size=13), episodes=8000)
    for q in (sure.compiled()[0], sure.plain()):
        agree("greedy policies of both learners are optimal", sure.optimal(q))
    slips = Learners(make_world("FourRooms", size=13, slip=0.2), episodes=8000)
    ours, theirs = slips.competence(slips.compiled()[0]), slips.competence(slips.plain())
    agree(f"competence above 0.95 on the slippery world ({ours:.4f}, {theirs:.4f})", min(ours, theirs) > 0.95)
    return [*_one(sure, "FourRooms(13)", effort, bar=50), *_one(slips, "FourRooms(13, slip=0.2)", effort, bar=None)]


def _one(learners: Learners, label: str, effort: Effort, *, bar: float | None) -> list[Line]:
    name, plain, loop = f"q_learning, {label}", "plain Python loop", "compiled loop, bare updates"
    q = np.zeros((learners.model.n_states, learners.model.n_actions))
    successor = np.ascontiguousarray(learners.model.next_state[:, :, 0])
    work = {
        name: learners.compiled,
        plain: learners.plain,
        loop: lambda: bare_updates(q, successor, learners.goal, learners.updates),
    }
    race = Race(work, effort)
    units = dict.fromkeys(work, float(learners.updates))
    out = [race.line(name, plain, topic=TOPIC, unit="updates", units=units, bar=bar)]
    if bar is not None:
        out.append(race.line(name, loop, topic=TOPIC, unit="updates", units=units, kind="limit"))
    return out
