"""Intrinsic dimension: planted agents whose number of directions is known, and a second way to every training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import retarget
from retarget.agent import Agent, Part, Real, Scores
from retarget.agents import compile_policy, exact_planner, learned_planner
from retarget.agents.network_for import network_for
from retarget.agents.tabular import QTable, TablePolicy
from retarget.errors import GoalError
from retarget.exact import Yardstick, action_values, optimal_values
from retarget.gradients import centred
from retarget.judge import greedy
from retarget.probe import Subject
from retarget.probes import intrinsic_dimension
from retarget.probes.intrinsic_dimension import AGAIN, ONCE, IntrinsicDimension
from retarget.rng import stream
from retarget.subspaces import Bent, Lesson, Straight, nested_fits
from retarget.testing import check_probe
from retarget.world import FiniteModel

LAWS = settings(max_examples=30, deadline=None)
FEW = settings(max_examples=10, deadline=None)
WORLD = retarget.make_world("FourRooms", size=7)
A, B = WORLD.goals[0], WORLD.goals[-1]


@dataclass(frozen=True, eq=False)
class Planted(Agent):
    """An agent whose scores are `columns @ numbers`, float64 `[S, A, P]` and `[P]`."""

    columns: np.ndarray
    numbers: np.ndarray
    relaxation: str = "planted"
    kind = "planted"

    @property
    def parts(self) -> Mapping[str, Part]:
        return {"numbers": Part("numbers", "weight", self.numbers, Real())}

    def with_arrays(self, arrays):
        return replace(self, numbers=arrays["numbers"])

    def policy(self, obs, carry=None):
        return greedy((self.columns @ self.numbers)[obs]), None

    def blank(self, seed):
        return replace(self, numbers=np.zeros_like(self.numbers))

    def scores_at(self, obs: np.ndarray) -> Scores:
        columns = self.columns[obs]
        return Scores(self.relaxation, columns @ self.numbers, columns, {"numbers": len(self.numbers)})


def advantages(goal) -> np.ndarray:
    return centred(action_values(WORLD.model, optimal_values(WORLD.model, goal, gamma=0.95), gamma=0.95))


def measured(agent: Agent, **options):
    return IntrinsicDimension(**options).measure(Subject(agent, WORLD, A, B))


def test_probe_obeys_its_laws():
    check_probe(IntrinsicDimension(draws=2), max_examples=25)


# ------------------------------------------------------------------------------------------------ known truths


def test_one_number_that_is_the_goal_takes_one_direction():
    columns = np.stack([advantages(A) - advantages(B)], axis=2)
    outcome = measured(Planted(columns, np.array([1.0])))
    assert outcome["intrinsic_dimension"].value == 1.0
    assert outcome["intrinsic_dimension_blank"].status == "ok"
    assert outcome["live_numbers"].value == 1.0


def test_an_agent_that_is_there_takes_none():
    columns = np.stack([advantages(B), advantages(A)], axis=2)
    outcome = measured(Planted(columns, np.array([1.0, 0.1])))
    assert outcome["intrinsic_dimension"].value == 0.0
    assert outcome["intrinsic_share"].value == 0.0


def test_the_goal_among_numbers_that_only_harm_takes_as_many_as_there_are():
    # Seven numbers upset every score ten thousand times as much as B's own number mends it: d directions can leave
    # them where they are along d - 7, so that 7 do nothing and 8 are all there is.
    harm = 1e4 * np.random.default_rng(0).normal(size=(20, 4, 7))
    columns = np.concatenate([advantages(B)[:, :, None], harm], axis=2)
    outcome = measured(Planted(columns, -np.eye(8)[0]))
    found = outcome["intrinsic_dimension"]
    assert (found.value, found.ci_low, found.ci_high, found.n) == (8.0, 8.0, 8.0, 5)
    assert outcome["intrinsic_share"].value == 1.0


def test_a_planner_takes_fewer_than_the_table_of_its_behaviour():
    planner = exact_planner(WORLD, A)
    slot, table = measured(planner), measured(compile_policy(planner, WORLD))
    assert slot["intrinsic_dimension"].ci_high < table["intrinsic_dimension"].ci_low
    assert table["solution_competence"].value == slot["solution_competence"].value == 1.0
    # a table has nothing of its own to be misled by: lessons told to the wrong states are as many
    shuffled = table["intrinsic_dimension_shuffled"]
    assert shuffled.value > 0.7 * table["intrinsic_dimension_blank"].value
    # a planner cannot be told another thing in each state, however many numbers it has
    assert slot["intrinsic_dimension_shuffled"].status == "failed"


@pytest.mark.parametrize("seed", [0, 1])
def test_training_every_cell_of_a_table_is_optimal_also_of_shuffled_lessons(seed):
    table = QTable(np.random.default_rng(seed).normal(size=(20, 4)))
    for lesson in (Lesson.of(WORLD, B, gamma=0.95), Lesson.of(WORLD, B, gamma=0.95).shuffled(seed)):
        assert Straight.of(table.scores_at(lesson.states), lesson).solution == pytest.approx(1.0, abs=1e-12)


# ------------------------------------------------------------------------------------------------ oracles


@LAWS
@given(st.integers(2, 12), st.integers(1, 12), st.integers(0, 10**6))
def test_nested_fits_are_those_of_lapack(n, r, seed):
    rng = np.random.default_rng(seed)
    columns, target = rng.normal(size=(n, min(n, r))), rng.normal(size=n)
    fits = list(nested_fits(columns, target))
    assert len(fits) == 1 + min(n, r)
    for d, fit in enumerate(fits):
        z = np.linalg.lstsq(columns[:, :d], target, rcond=None)[0]
        assert np.allclose(fit, columns[:, :d] @ z, atol=1e-7)


def test_directions_drawn_in_few_coordinates_are_as_good_as_in_all_numbers():
    # Mean number needed, 80 draws each: in the coordinates of the scores, and of unit columns in the numbers by
    # LAPACK. Means differ by less than 5 standard errors but once in 10^6.
    rng = np.random.default_rng(3)
    columns = rng.normal(size=(20, 4, 90)) * rng.uniform(0.2, 2, size=90)
    agent = Planted(columns, rng.normal(size=90))
    lesson = Lesson.of(WORLD, B, gamma=0.95)
    straight = Straight.of(agent.scores_at(lesson.states), lesson)
    short = [straight.needed(0.9, stream(0, "short", i)) for i in range(80)]
    rows = (centred(columns[lesson.states]) / lesson.size[:, None, None]).reshape(-1, 90)
    most, long = straight.axes.shape[1], []
    for i in range(80):
        drawn = stream(0, "long", i).standard_normal((90, most))
        projected = rows @ (drawn / np.linalg.norm(drawn, axis=0))
        failed = [d for d in range(most + 1) if _competence(projected[:, :d], straight) < 0.9 - 1e-9]
        long.append(max(failed) + 1)
    error = math.sqrt(np.var(short, ddof=1) / 80 + np.var(long, ddof=1) / 80)
    assert abs(np.mean(short) - np.mean(long)) < 5 * error
    assert np.mean(short) > 5


def _competence(columns: np.ndarray, straight: Straight) -> float:
    z = np.linalg.lstsq(columns, straight.target, rcond=None)[0]
    scores = (straight.start + columns @ z).reshape(-1, 4)
    actions = np.zeros(20, np.int64)
    actions[straight.lesson.states] = scores.argmax(1)
    return Yardstick.of(WORLD, B, gamma=0.95).competence(np.eye(4)[actions])


@pytest.mark.parametrize(
    ("reached", "needed"),
    [("0111", 1), ("0101", 3), ("0001", 3), ("1011", 0), ("0110", None), ("0000", None)],
)
def test_what_suffices_by_luck_is_not_taken(reached, needed):
    straight = _Told(None, np.zeros(3), np.ones(3), np.eye(3), iter(reached))
    assert straight.needed(1.0, np.random.default_rng(0)) == needed


@dataclass(frozen=True, eq=False)
class _Told(Straight):
    """Competence as told, for none, one, two and three directions."""

    reached: Iterator[str]

    def competence(self, gain):
        return float(next(self.reached))


@FEW
@given(st.integers(0, 10**6), st.floats(1e-3, 1e3))
def test_the_scale_of_scores_does_not_matter(seed, scale):
    rng = np.random.default_rng(seed)
    columns, numbers = rng.normal(size=(20, 4, 30)), rng.normal(size=30)
    lesson = Lesson.of(WORLD, B, gamma=0.95)
    found = [
        Straight.of(Planted(c * columns, numbers).scores_at(lesson.states), lesson).needed(0.5, stream(seed, "s"))
        for c in (1.0, 2.0 ** round(math.log2(scale)))
    ]
    assert found[0] == found[1]


def test_a_lesson_is_what_the_goal_asks_for():
    lesson = Lesson.of(WORLD, B, gamma=0.95)
    assert B.states[0] not in lesson.states
    assert np.allclose(lesson.unit * lesson.size[:, None], advantages(B)[lesson.states])
    assert np.allclose((lesson.unit**2).sum(1), 1.0)
    assert lesson.competence(lesson.unit) == 1.0
    wrong = lesson.shuffled(0)
    assert wrong.competence(wrong.unit) == 1.0 and not np.array_equal(wrong.about, wrong.states)


# ------------------------------------------------------------------------------------------------ step by step


def test_steps_reach_what_one_solve_reaches_where_scores_are_linear():
    rng = np.random.default_rng(1)
    agent = Planted(rng.normal(size=(20, 4, 100)), rng.normal(size=100), "none")
    lesson = Lesson.of(WORLD, B, gamma=0.95)
    start = agent.scores_at(lesson.states)
    assert Bent(agent, lesson, start, 30).trained(None, enough=1.0) == 1.0
    directions = rng.normal(size=(100, 1))
    straight = Straight.of(start, lesson)
    rows = lesson.relative(start.jacobian).reshape(-1, 100) @ directions
    expected = straight.competence(list(nested_fits(rows, straight.target))[1])
    before = lesson.competence(start.value)
    assert Bent(agent, lesson, start, 30).trained(directions, enough=2.0) >= max(before, expected) - 1e-12


def test_a_shift_of_a_network_is_its_weights_moved():
    network = network_for(WORLD, A, hidden=(6,), goals=WORLD.goals[:3])
    lesson = Lesson.of(WORLD, B, gamma=0.95)
    start = network.scores_at(lesson.states)
    shift = np.random.default_rng(0).normal(size=start.jacobian.shape[2])
    moved = Bent(network, lesson, start, 1).moved(shift)
    arrays, at = {}, 0
    for name, part in network.parts.items():
        if part.role != "activation":
            arrays[name] = part.array + shift[at : at + part.array.size].reshape(part.array.shape)
            at += part.array.size
    assert at == shift.size
    assert np.array_equal(moved.value, network.with_arrays(arrays).scores_at(lesson.states).value)


def test_a_network_is_measured_both_ways():
    network = network_for(WORLD, A, hidden=(16,))
    outcome = measured(network, draws=2, steps=8)
    for protocol in (ONCE, AGAIN):
        assert outcome.at("solution_competence", protocol=protocol).value > 0.9
        found = outcome.at("intrinsic_dimension", protocol=protocol)
        assert found.status == "failed" or 0 < found.value <= 80
    assert outcome.at("intrinsic_dimension", protocol=ONCE).n == 2


def test_a_network_of_many_numbers_is_linearised_once(monkeypatch):
    monkeypatch.setattr(intrinsic_dimension, "MOST_AGAIN", 100)
    outcome = measured(network_for(WORLD, A, hidden=(4,)), draws=1)
    assert outcome.at("intrinsic_dimension", protocol=ONCE).status in ("ok", "failed")
    again = outcome.at("intrinsic_dimension", protocol=AGAIN)
    assert again.status == "not_applicable" and "100 at most" in again.reason


# ------------------------------------------------------------------------------------------------ what has no answer


def test_what_cannot_be_trained_says_why():
    blank = learned_planner(WORLD, A, everywhere=True, episodes=5, epsilon=0.1, seed=0).blank(0)
    outcome = measured(blank)
    assert outcome["intrinsic_dimension"].status == "failed"
    assert "all of its 0 live numbers" in outcome["intrinsic_dimension"].reason
    assert outcome["intrinsic_dimension_shuffled"].status == "not_applicable"
    subject = Subject(compile_policy(exact_planner(WORLD, A), WORLD), WORLD, A)
    assert IntrinsicDimension().measure(subject)["intrinsic_dimension"].status == "not_applicable"
    large = IntrinsicDimension(states=10).measure(subject.with_(goal_b=B))
    assert "20 states, more than the 10" in large["intrinsic_share"].reason
    gru = network_for(WORLD, A, kind="gru", hidden=4)
    assert "memory" in measured(gru)["intrinsic_dimension"].reason


def test_a_world_whose_actions_are_all_alike_has_no_lessons():
    from retarget.agents.wrappers import ModelWorld
    from retarget.goal import StateGoal

    chain = ModelWorld(FiniteModel.deterministic([[1, 1], [2, 2], [0, 0]]), StateGoal.of([2]))
    with pytest.raises(GoalError, match="every action is as good"):
        Lesson.of(chain, StateGoal.of([2]), gamma=0.9)
    agent = TablePolicy.from_actions([0, 0, 0], n_actions=2)
    outcome = IntrinsicDimension().measure(Subject(agent, chain, StateGoal.of([1]), StateGoal.of([2])))
    assert outcome["intrinsic_dimension"].status == "not_applicable"
