"""Goal gradient: whether a change of goal is one direction in the agent's numbers, or another one in every state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import numpy as np

from retarget.agent import Agent, HasScores, Scores
from retarget.errors import AgentError, GoalError
from retarget.exact import action_values, optimal_values
from retarget.goal import StateGoal
from retarget.gradients import (
    centred,
    cosines,
    effective_rank,
    features,
    least_squares,
    plain,
    share_in_span,
    single_reward_values,
)
from retarget.pairs import goals_around
from retarget.probe import UNIVERSAL_LAWS, Law, Metric, Outcome, Probe, Progress, Subject
from retarget.probes.growth import student_quantile
from retarget.probes.options import check_goal_numbers, check_range
from retarget.rng import stream
from retarget.row import Kind, Measurement
from retarget.world import FiniteModel, FiniteWorld

HALVES, REGIONS, ALL = "random halves of the states", "two regions of near states", "all states"


class GoalGradient(Probe):
    """Whether one direction in the agent's numbers gives it another goal everywhere, or each state needs its own.

    What goal g asks for in a state are the advantages `y_g(s, a) = Q*_g(s, a) - mean_a Q*_g(s, a)` of the exact action
    values. For a set X of states, the least-squares direction of a change from A to g is the least change of the
    numbers that moves the scores on X by `y_g - y_A` (Gauss-Newton, damped), and the plain one is the gradient of
    `sum over X of scores · (y_g - y_A)`. Directions found on disjoint sets X and Y of states are compared: in a table
    each state has numbers of its own, and the cosine is exactly 0; where the numbers are a goal slot it is as near 1 as
    the states of X, and those of Y, tell goals apart (`coherence_slot` says how near). Formulas: `retarget.gradients`.

    Intervals are 95% Student-t intervals over goals (each goal's mean over splits), or over splits for shares. States
    on a goal, or from which it is out of reach, are left out of what concerns it.

    Args:
        seen, held_out: training goals and held-out goals to change to, at most.
        splits: ways to draw two disjoint sets, for each protocol.
        damping: of least squares, as a share of the mean squared length of a score's gradient.
        states: most states; a random draw of them in larger worlds.

    >>> import retarget
    >>> from retarget.agents import compile_policy, exact_planner
    >>> world = retarget.make_world("OpenGrid", size=5)
    >>> planner = exact_planner(world, world.goals[0])
    >>> of_planner = GoalGradient(splits=2).measure(retarget.Subject(planner, world, world.goals[0]))
    >>> of_table = GoalGradient(splits=2).measure(
    ...     retarget.Subject(compile_policy(planner, world), world, world.goals[0])
    ... )
    >>> of_table["goal_coherence"].value, of_planner["goal_coherence"].value > 0.5
    (0.0, True)
    """

    name: ClassVar[str] = "goal_gradient"
    kind: ClassVar[Kind] = "characterization"
    metrics: ClassVar = {
        "goal_coherence": Metric("1", "mean cosine of least-squares directions from A to g, on X and on Y", -1.0, 1.0),
        "gradient_cosine": Metric("1", "the same of the plain gradients", -1.0, 1.0),
        "goal_transfer": Metric(
            "1", "mean cosine, over scores on Y, of what the direction found on X does and what g asks for", -1.0, 1.0
        ),
        "coherence_other_goal": Metric("1", "control: goal_coherence of different goals on X and on Y", -1.0, 1.0),
        "coherence_shuffled": Metric("1", "control: each state is told a change between two random goals", -1.0, 1.0),
        "coherence_slot": Metric("1", "reference: goal_coherence of a slot of rewards in this world", -1.0, 1.0),
        "coherence_in_slot": Metric("1", "goal_coherence where the numbers of goal slots alone may change", -1.0, 1.0),
        "transfer_in_slot": Metric("1", "goal_transfer where the numbers of goal slots alone may change", -1.0, 1.0),
        "coherence_seen": Metric("1", "goal_coherence over the plan's training goals alone", -1.0, 1.0),
        "coherence_held_out": Metric("1", "goal_coherence over the plan's held-out goals alone", -1.0, 1.0),
        "goal_rank": Metric("1", "effective rank of the goals' least-squares directions, over their number", 0.0, 1.0),
        "goal_share": Metric(
            "1", "share of A's squared gradient on Y in the span of the goal-change directions found on X", 0.0, 1.0
        ),
        "complement_share": Metric("1", "1 - goal_share", 0.0, 1.0),
        "goal_share_shuffled": Metric("1", "control: goal_share of as many shuffled directions", 0.0, 1.0),
    }  # fmt: skip
    # splits are drawn by the names of states: with the sets renamed too, renaming changes nothing, and a test holds it
    # to that
    laws: ClassVar[frozenset[Law]] = UNIVERSAL_LAWS | {"dead_parameters"}

    def __init__(
        self, *, seen: int = 4, held_out: int = 4, splits: int = 8, damping: float = 1e-6, states: int = 256
    ) -> None:
        check_goal_numbers(("seen", seen), ("held_out", held_out))
        check_range("splits", splits, low=1, whole=True)
        check_range("damping", damping, above=0)
        check_range("states", states, low=2, whole=True)
        self.seen, self.held_out, self.splits = seen, held_out, splits
        self.damping, self.states = damping, states

    def measure(self, subject: Subject, *, progress: Progress | None = None) -> Outcome:
        tell = progress or (lambda done, words: None)
        world = subject.world
        if not isinstance(world, FiniteWorld) or not isinstance(subject.goal_a, StateGoal):
            return self.all_not_applicable("what a goal asks for is exact in finite worlds alone")
        try:
            seen, held_out = goals_around(
                world, subject.goal_a, plan=subject.plan, n_seen=self.seen, n_held_out=self.held_out, seed=subject.seed
            )
            states = some_states(world, self.states, subject.seed)
            tell(0.1, "differentiating the scores")
            scores = finite_scores(subject.agent, world.model, states)
        except (AgentError, GoalError) as error:
            return self.all_not_applicable(str(error))
        aims = (subject.goal_a, *(g for g in (*seen, *held_out) if isinstance(g, StateGoal)))
        question = Question.of(world.model, aims, states, gamma=subject.gamma)
        if not question.asked.any():
            return self.all_not_applicable("no state can be asked to change its goal: every change asks for nothing")
        coordinates = features(scores.jacobian)
        if not coordinates.any():
            return self.all_not_applicable("no number of it moves the scores of one action against another's")
        tell(0.4, "comparing directions")
        found = {
            protocol: Comparison(coordinates, question, sets, self.damping, subject.seed)
            for protocol, sets in self.sets(world, states, subject.seed).items()
        }
        slot = features(single_reward_values(world.model.next_state, world.model.prob, states, gamma=subject.gamma))
        reference = {
            protocol: Comparison(slot, question, c.sets, self.damping, subject.seed) for protocol, c in found.items()
        }
        in_slot = replace(found[HALVES], features=features(_of_slots(scores, subject.agent)))
        tell(0.9, "shares")
        return Outcome(tuple(_rows(found, reference, in_slot, len(seen))))

    def sets(self, world: FiniteWorld, states: np.ndarray, seed: int) -> dict[str, tuple[Sets, ...]]:
        """Pairs of disjoint sets, bool `[B]` each, by protocol."""
        label = world.spec_data.label
        rng = stream(seed, "goal_gradient_halves", label)
        halves = []
        for _ in range(self.splits):
            first = np.zeros(len(states), np.bool_)
            first[rng.permutation(len(states))[: len(states) // 2]] = True
            halves.append((first, ~first))
        rng = stream(seed, "goal_gradient_regions", label)
        steps = _steps(world.model)[np.ix_(states, states)]
        return {HALVES: tuple(halves), REGIONS: tuple(two_regions(steps, rng) for _ in range(self.splits))}


Sets = tuple[np.ndarray, np.ndarray]


def some_states(world: FiniteWorld, most: int, seed: int) -> np.ndarray:
    """Int `[B]`: all states, or a random draw of `most` of them, in order."""
    n = world.model.n_states
    if n <= most:
        return np.arange(n)
    return np.sort(stream(seed, "goal_gradient_states", world.spec_data.label).permutation(n)[:most])


def finite_scores(agent: Agent, model: FiniteModel, states: np.ndarray) -> Scores:
    """Scores of an agent at states of a finite world, with their Jacobian.

    Raises:
        AgentError: where it has none, or does not fit the world.
    """
    if not isinstance(agent, HasScores):
        raise AgentError(f"agent {agent.kind!r} has no scores of actions that move smoothly with its numbers")
    if agent.n_states not in (None, model.n_states):
        raise AgentError(
            f"agent {agent.kind!r} is for a world of {agent.n_states} states, this one has {model.n_states}; "
            "measure it in its own"
        )
    scores = agent.scores_at(states)
    if scores.value.shape != (len(states), model.n_actions):
        raise AgentError(
            f"agent {agent.kind!r} scores {scores.value.shape[1]} actions, this world has {model.n_actions}"
        )
    return scores


def _of_slots(scores: Scores, agent: Agent) -> np.ndarray:
    """The columns of a Jacobian that belong to goal slots: `[B, A, L]`, L may be 0."""
    slot = [name in agent.parts and agent.parts[name].role == "goal_slot" for name in scores.parts]
    return scores.jacobian[:, :, np.repeat(slot, list(scores.parts.values()))]


def two_regions(steps: np.ndarray, rng: np.random.Generator) -> Sets:
    """Two sets by steps `[B, B]` (row: to that state; -1 for never): nearer to one drawn at random, or nearer to the
    state that is farthest from it. Ties go to the first; states that lead to neither are in none."""
    far = np.where(steps < 0, np.inf, steps.astype(np.float64))
    first = int(rng.integers(len(far)))
    reach = np.where(np.isfinite(far[first]), far[first], -1.0)
    second = int(reach.argmax())
    near = far[first] <= far[second]
    return near & np.isfinite(far[first]), ~near


def _steps(model: FiniteModel) -> np.ndarray:
    from retarget.kernels import all_distances

    own = np.arange(model.n_states, dtype=np.int32)[:, None, None]
    edges = np.where(model.prob > 0, model.next_state, own).reshape(model.n_states, -1)
    return np.asarray(all_distances(edges.astype(np.int32)))


@dataclass(frozen=True, eq=False)
class Question:
    """What goals ask for.

    Attributes:
        advantages: float64 `[1 + G, B, A]` of goal A and of G others, centred over actions.
        counted: bool `[1 + G, B]`: states that are not on the goal and can reach it.
    """

    advantages: np.ndarray
    counted: np.ndarray

    @classmethod
    def of(cls, model: FiniteModel, goals: Sequence[StateGoal], states: np.ndarray, *, gamma: float) -> Question:
        """From exact values; the first goal is A."""
        advantages, counted = [], []
        for goal in goals:
            value = optimal_values(model, goal, gamma=gamma)
            able = (value > 0) & ~goal.mask(model.n_states)
            wanted = centred(action_values(model, value, gamma=gamma))
            # centring leaves a hair where all actions are as good
            wanted[np.abs(wanted).max(1) <= 1e-14] = 0.0
            advantages.append(wanted[states])
            counted.append(able[states])
        return cls(np.stack(advantages), np.stack(counted))

    @property
    def n_goals(self) -> int:
        return len(self.advantages) - 1

    @cached_property
    def asked(self) -> np.ndarray:
        """Bool `[G, B]`: states that count for the change from A to each goal and are asked for anything."""
        moved = np.abs(self.advantages[1:] - self.advantages[0]).max(2) > 0
        return np.asarray(self.counted[1:] & self.counted[0] & moved)

    def change(self, goal: int) -> tuple[np.ndarray, np.ndarray]:
        """The change from A to one of the G goals: target `[B, A]`, and which states count, bool `[B]`."""
        return self.advantages[1 + goal] - self.advantages[0], self.counted[1 + goal] & self.counted[0]

    def shuffled(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """As `change`, but each state is told a change between two different goals of its own, drawn at random."""
        n, b = self.counted.shape
        start = rng.integers(n, size=b)
        end = (start + 1 + rng.integers(n - 1, size=b)) % n
        row = np.arange(b)
        target = self.advantages[end, row] - self.advantages[start, row]
        return target, self.counted[start, row] & self.counted[end, row]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Directions on pairs of disjoint sets of states, and how they agree.

    Attributes:
        features: float64 `[B, A, F]`: see `retarget.gradients.features`.
        question: what goals ask for.
        sets: pairs of bool `[B]`.
        damping: of least squares.
        seed: names the stream of what is shuffled.
    """

    features: np.ndarray
    question: Question
    sets: tuple[Sets, ...]
    damping: float
    seed: int

    def _direction(self, target: np.ndarray, counted: np.ndarray, *, gradient: bool = False) -> np.ndarray:
        _, n_actions, width = self.features.shape
        rows = self.features[counted].reshape(int(counted.sum()) * n_actions, width)
        wanted = target[counted].reshape(-1)
        return plain(rows, wanted) if gradient else least_squares(rows, wanted, damping=self.damping)

    def _directions(self, inside: np.ndarray, *, gradient: bool = False) -> np.ndarray:
        changes = (self.question.change(g) for g in range(self.question.n_goals))
        return np.stack([self._direction(t, c & inside, gradient=gradient) for t, c in changes])

    @cached_property
    def found(self) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
        """Least-squares directions `[G, F]` on both sets of each split."""
        return tuple((self._directions(x), self._directions(y)) for x, y in self.sets)

    @cached_property
    def coherence(self) -> np.ndarray:
        """Cosine of every goal's direction on the first set with every goal's on the second: `[N, G, G]`."""
        return np.stack([cosines(x, y) for x, y in self.found])

    @property
    def same_goal(self) -> np.ndarray:
        """`[N, G]`."""
        return np.diagonal(self.coherence, axis1=1, axis2=2)

    @property
    def other_goal(self) -> np.ndarray:
        """`[N, G]`: mean over the other goals, of the second set."""
        apart = np.where(np.eye(self.question.n_goals, dtype=np.bool_), np.nan, self.coherence)
        return _mean(apart, axis=2)

    @cached_property
    def gradient(self) -> np.ndarray:
        """`[N, G]`: cosine of the plain gradients on both sets."""
        pairs = ((self._directions(x, gradient=True), self._directions(y, gradient=True)) for x, y in self.sets)
        return np.stack([np.diagonal(cosines(x, y)) for x, y in pairs])

    @cached_property
    def transfer(self) -> np.ndarray:
        """`[N, G]`: cosine, over scores on one set, of what the direction found on the other does and what is asked;
        mean of both ways. 0 where it does nothing."""
        out = np.full((2, len(self.sets), self.question.n_goals), np.nan)
        for n, (pair, sets) in enumerate(zip(self.found, self.sets, strict=True)):
            for way in (0, 1):
                for g in range(self.question.n_goals):
                    out[way, n, g] = self._effect(pair[way][g], g, sets[1 - way])
        return _mean(out, axis=0)

    def _effect(self, direction: np.ndarray, goal: int, inside: np.ndarray) -> float:
        target, counted = self.question.change(goal)
        wanted = target[counted & inside].reshape(1, -1)
        if not direction.any() or not wanted.any():
            return float("nan")
        moved = (self.features[counted & inside] @ direction).reshape(1, -1)
        return float(cosines(moved, wanted)[0, 0]) if moved.any() else 0.0

    @cached_property
    def told_at_random(self) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
        """As `found`, with shuffled changes, as many as there are goals."""
        rng = stream(self.seed, "goal_gradient_shuffle")
        out = []
        for x, y in self.sets:
            changes = [self.question.shuffled(rng) for _ in range(self.question.n_goals)]
            first, second = (np.stack([self._direction(t, c & inside) for t, c in changes]) for inside in (x, y))
            out.append((first, second))
        return tuple(out)

    @property
    def shuffled(self) -> np.ndarray:
        """`[N, G]`: as `same_goal`, of shuffled changes."""
        return np.stack([np.diagonal(cosines(x, y)) for x, y in self.told_at_random])

    def shares(self, directions: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """`[N]`: share of A's plain gradient on one set that lies in the span of directions on the other; mean of both
        ways."""
        wanted, counted = self.question.advantages[0], self.question.counted[0]
        out = np.empty((2, len(self.sets)))
        for n, (pair, sets) in enumerate(zip(directions, self.sets, strict=True)):
            for way in (0, 1):
                own = self._direction(wanted, counted & sets[1 - way], gradient=True)
                out[way, n] = share_in_span(own, pair[way]) if pair[way].any() else np.nan
        return _mean(out, axis=0)

    @property
    def rank(self) -> float:
        """Effective rank over goals of the directions found on all states, over their number; NaN without any."""
        found = self._directions(np.ones(self.features.shape[0], np.bool_))
        some = int(found.any(axis=1).sum())
        return effective_rank(found) / some if some else float("nan")


def _mean(values: np.ndarray, *, axis: int) -> np.ndarray:
    """Mean along an axis of what is not NaN; NaN where nothing is left."""
    known = np.isfinite(values)
    number = known.sum(axis)
    total = np.where(known, values, 0.0).sum(axis)
    return np.asarray(np.where(number > 0, total / np.maximum(number, 1), np.nan))


def _rows(
    found: dict[str, Comparison], reference: dict[str, Comparison], in_slot: Comparison, n_seen: int
) -> list[Measurement]:
    nothing = "on every pair of sets, no number moves the scores of one of them as a goal asks"
    two = "it takes two goals beside A" if found[HALVES].question.n_goals < 2 else nothing
    out: list[Measurement] = []
    for protocol, c in found.items():
        out.append(over_goals("goal_coherence", c.same_goal, protocol, nothing))
    for protocol, c in found.items():
        out.append(over_goals("gradient_cosine", c.gradient, protocol, nothing))
    for protocol, c in found.items():
        out.append(over_goals("goal_transfer", c.transfer, protocol, nothing))
    for protocol, c in found.items():
        out.append(over_goals("coherence_other_goal", c.other_goal, protocol, two))
    for protocol, c in found.items():
        out.append(over_goals("coherence_shuffled", c.shuffled, protocol, nothing))
    for protocol, c in reference.items():
        out.append(over_goals("coherence_slot", c.same_goal, protocol, nothing))
    slotless = "it has no goal slot whose numbers move its scores as a goal asks"
    out.append(over_goals("coherence_in_slot", in_slot.same_goal, HALVES, slotless))
    out.append(over_goals("transfer_in_slot", in_slot.transfer, HALVES, slotless))
    halves = found[HALVES]
    seen, held_out = halves.same_goal[:, :n_seen], halves.same_goal[:, n_seen:]
    out.append(over_goals("coherence_seen", seen, HALVES, "no training goal beside A gives a direction"))
    out.append(over_goals("coherence_held_out", held_out, HALVES, "no held-out goal gives a direction"))
    rank = np.array([[halves.rank]])
    # exact for these goals: no estimate, of which n would be the sample
    out.append(replace(over_goals("goal_rank", rank, ALL, nothing), n=None))
    share = halves.shares(halves.found)[:, None]
    out.append(over_goals("goal_share", share, HALVES, nothing))
    out.append(over_goals("complement_share", 1.0 - share, HALVES, nothing))
    out.append(over_goals("goal_share_shuffled", halves.shares(halves.told_at_random)[:, None], HALVES, nothing))
    return out


def over_goals(metric: str, values: np.ndarray, protocol: str, reason: str) -> Measurement:
    """Mean of `[N, G]` values over goals, each of which counts by its mean over splits; NaN where there is none.

    The interval is Student's t over goals; over splits where there is one goal. It is cut to the metric's range.
    """
    known = values[:, np.isfinite(values).any(axis=0)]
    if known.size == 0:
        return Measurement.not_applicable(metric, reason, protocol=protocol)
    unit = _mean(known, axis=0) if known.shape[1] > 1 else known[np.isfinite(known)]
    mean, n = float(unit.mean()), len(unit)
    if n == 1:
        return Measurement.ok(metric, mean, n=1, protocol=protocol)
    half = student_quantile(0.975, n - 1) * float(unit.std(ddof=1)) / math.sqrt(n)
    least = -1.0 if GoalGradient.metrics[metric].low == -1.0 else 0.0
    low, high = max(mean - half, least), min(mean + half, 1.0)
    return Measurement.ok(metric, mean, ci_low=low, ci_high=high, n=n, protocol=protocol)
