"""Training along random directions in an agent's numbers, by least squares on its scores: how many directions suffice.

What is trained for is a goal's advantages, the exact action values less their mean over actions: scores are to be a
multiple of them. Each state counts by its relative error, so that states far from the goal, whose advantages are small,
count as much as near ones. The multiple is the one at which the agent's own scores are as large: neither the scale of
the scores nor the discount decides what is learned first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from retarget.agent import Agent, HasScores, Scores
from retarget.errors import AgentError, GoalError
from retarget.exact import Yardstick, action_values
from retarget.goal import StateGoal
from retarget.gradients import centred, features, least_squares
from retarget.rng import stream
from retarget.world import FiniteWorld

#: Singular values below this share of the largest one are rounding.
RANK = 1e-7


@dataclass(frozen=True, eq=False)
class Lesson:
    """What a goal asks for, state by state.

    Attributes:
        yardstick: measures competence on the goal.
        states: int `[N]` where it is told: all that can reach the goal and where actions differ.
        about: int `[N]` the state that each row speaks of: the same, unless lessons are shuffled.
        unit: float64 `[N, A]` advantages of the state spoken of, at length one.
        size: float64 `[N]` their length.
    """

    yardstick: Yardstick
    states: np.ndarray
    about: np.ndarray
    unit: np.ndarray
    size: np.ndarray

    @classmethod
    def of(cls, world: FiniteWorld, goal: StateGoal, *, gamma: float) -> Lesson:
        """Raises GoalError where no start can reach the goal, or no action is better than another."""
        yardstick = Yardstick.of(world, goal, gamma=gamma)
        wanted = centred(action_values(world.model, yardstick.optimal, gamma=gamma))
        size = np.sqrt((wanted * wanted).sum(1))
        told = (yardstick.optimal > 0) & ~goal.mask(world.model.n_states) & (size > 1e-12 * yardstick.optimal)
        if not told.any():
            raise GoalError(f"on the way to {goal.label} every action is as good as another; choose another goal")
        states = np.flatnonzero(told)
        return cls(yardstick, states, states, wanted[states] / size[states, None], size[states])

    def shuffled(self, seed: int) -> Lesson:
        """Each state is told what another one should be; competence is of the policy with the states put back."""
        order = stream(seed, "shuffled_lesson").permutation(len(self.states))
        return replace(self, about=self.about[order], unit=self.unit[order], size=self.size[order])

    def relative(self, scores: np.ndarray) -> np.ndarray:
        """Scores `[N, A, ...]` centred over actions, in lengths of the advantages of the state spoken of."""
        return np.asarray(centred(scores) / self.size.reshape(-1, *[1] * (scores.ndim - 1)))

    def multiple(self, relative: np.ndarray) -> float:
        """The multiple of the advantages that is as large as these relative scores `[N, A]`; 1 where they are 0."""
        size = float(np.sqrt((relative * relative).sum(1).mean()))
        return size if size > 0 else 1.0

    def competence(self, scores: np.ndarray) -> float:
        """Competence on the goal of the greedy policy of scores `[N, A]`, in [0, 1]."""
        model = self.yardstick.model
        probs = np.zeros((model.n_states, model.n_actions))
        probs[:, 0] = 1.0
        probs[self.about] = np.eye(model.n_actions)[scores.argmax(1)]
        return self.yardstick.competence(probs)


@dataclass(frozen=True, eq=False)
class Straight:
    """A lesson for scores that are linear in the numbers.

    Attributes:
        lesson: what is asked.
        start: float64 `[N A]` relative scores before training.
        target: float64 `[N A]` what they are to gain.
        axes: float64 `[N A, R]`: the relative centred Jacobian in coordinates of its R directions that move anything.
    """

    lesson: Lesson
    start: np.ndarray
    target: np.ndarray
    axes: np.ndarray

    @classmethod
    def of(cls, scores: Scores, lesson: Lesson) -> Straight:
        """From scores at the lesson's states."""
        start = lesson.relative(scores.value)
        target = lesson.multiple(start) * lesson.unit - start
        rows = features(lesson.relative(scores.jacobian))
        left, size, _ = np.linalg.svd(rows.reshape(start.size, rows.shape[2]), full_matrices=False)
        kept = size > RANK * size.max(initial=0.0)
        return cls(lesson, start.reshape(-1), target.reshape(-1), left[:, kept] * size[kept])

    def competence(self, gain: np.ndarray) -> float:
        """Competence once the scores have gained `[N A]`."""
        return self.lesson.competence((self.start + gain).reshape(self.lesson.unit.shape))

    @property
    def solution(self) -> float:
        """Competence after training all numbers."""
        basis = np.linalg.qr(self.axes)[0]
        return self.competence(basis @ (basis.T @ self.target))

    def needed(self, level: float, rng: np.random.Generator) -> int | None:
        """The least number of nested random directions from which on training reaches a level of competence; 0 where
        the agent is there already, None where all R do not.

        A Gaussian direction in the numbers is one in any orthonormal coordinates of them, so that it is drawn in R.
        """
        columns = self.axes @ rng.standard_normal((self.axes.shape[1],) * 2)
        enough = [self.competence(gain) >= level - 1e-9 for gain in nested_fits(columns, self.target)]
        if enough[0]:
            return 0
        # a few directions may suffice by luck, and a few more spoil it
        return None if not enough[-1] else len(enough) - enough[::-1].index(False)


def nested_fits(columns: np.ndarray, target: np.ndarray) -> Iterator[np.ndarray]:
    """Least-squares fits `[N]` of a target by none, by the first, by the first two, … of some columns `[N, R]`.

    >>> [fit.round(3).tolist() for fit in nested_fits(np.array([[1.0, 0.0], [1.0, 1.0]]), np.array([1.0, 3.0]))]
    [[0.0, 0.0], [2.0, 2.0], [1.0, 3.0]]
    """
    fit = np.zeros_like(target)
    yield fit
    for axis in np.linalg.qr(columns)[0].T:
        fit = fit + axis * float(axis @ target)
        yield fit


@dataclass(frozen=True, eq=False)
class Bent:
    """A lesson for an agent whose own scores are differentiable, and not linear in the numbers.

    Attributes:
        agent: where training begins.
        lesson: what is asked.
        start: its scores at the lesson's states.
        steps: linearisations, at most, of one training.
    """

    agent: Agent
    lesson: Lesson
    start: Scores
    steps: int

    @property
    def live(self) -> np.ndarray:
        """Bool `[P]`: numbers that move a score where the agent stands."""
        return np.asarray(self.start.jacobian.any(axis=(0, 1)))

    def moved(self, shift: np.ndarray) -> Scores:
        """Scores of the agent with its numbers moved by `[P]`.

        Raises:
            AgentError: where the numbers are not the cells of the parts, or become too large to compute with.
        """
        arrays, at = {}, 0
        for name, count in self.start.parts.items():
            old = self.agent.parts[name].array
            if old.size != count:
                raise AgentError(f"part {name!r} has {old.size} cells and {count} numbers: they cannot be written back")
            arrays[name] = old + shift[at : at + count].reshape(old.shape)
            at += count
        moved = self.agent.with_arrays(arrays)
        assert isinstance(moved, HasScores)
        return moved.scores_at(self.lesson.states)

    def trained(self, directions: np.ndarray | None, *, enough: float) -> float:
        """Best competence met in training along `[L, D]` directions in the live numbers (None for all of them).

        Levenberg-Marquardt (Levenberg 1944; Marquardt 1963): a step that lowers the squared error is kept, and the
        damping cut to a third; one that does not is dropped, and the damping made ten times as strong.
        """
        live, lesson = self.live, self.lesson
        multiple = lesson.multiple(lesson.relative(self.start.value))
        shift, now, damping = np.zeros(live.size), self.start, 1.0
        error = _error(now, lesson, multiple)
        best = lesson.competence(now.value)
        for _ in range(self.steps):
            if best >= enough - 1e-9:
                break
            rows = lesson.relative(now.jacobian[:, :, live]).reshape(error.size, -1)
            rows = rows if directions is None else rows @ directions
            step = least_squares(rows, error.reshape(-1), damping=damping)
            tried = shift.copy()
            tried[live] += step if directions is None else directions @ step
            after = self.moved(tried)
            best = max(best, lesson.competence(after.value))
            left = _error(after, lesson, multiple)
            if (left * left).sum() < (error * error).sum():
                shift, now, error, damping = tried, after, left, damping / 3
            else:
                damping *= 10
        return best

    def needed(self, level: float, *, begin: int, rng: np.random.Generator) -> int | None:
        """A number of nested random directions whose training reaches a level, while an eighth fewer do not; None where
        as many as there are live numbers, or scores, do not. Sought by doubling from `begin`, then by halving."""
        if self.lesson.competence(self.start.value) >= level - 1e-9:
            return 0
        live = int(self.live.sum())
        most = min(live, self.lesson.unit.size)
        drawn = rng.standard_normal((live, most))
        drawn /= np.sqrt((drawn * drawn).sum(0))
        low, high = 0, min(max(begin, 1), most)
        while self.trained(drawn[:, :high], enough=level) < level - 1e-9:
            if high == most:
                return None
            low, high = high, min(2 * high, most)
        while high - low > max(1, high // 8):
            middle = (low + high) // 2
            if self.trained(drawn[:, :middle], enough=level) >= level - 1e-9:
                high = middle
            else:
                low = middle
        return high


def _error(scores: Scores, lesson: Lesson, multiple: float) -> np.ndarray:
    return np.asarray(multiple * lesson.unit - lesson.relative(scores.value))
