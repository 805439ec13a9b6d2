"""Online code lengths against slow, plain computations, and against Bayes' bound."""

import math
from dataclasses import replace

import numpy as np
import pytest

from retarget.agents import exact_planner
from retarget.agents.compiled import compile_policy
from retarget.agents.neural import Architecture, NetworkAgent, Sensor
from retarget.editors.gradient import Tuner, names_of
from retarget.editors.learners import (
    ACTION_CELLS,
    SHARE_PRIOR,
    SHARES,
    SPREADS,
    code_lengths,
    learners_of,
    probability_of_right,
    slot_learner,
    uniform_right,
)
from retarget.envs import make_world
from retarget.exact import best_actions, optimal_values
from retarget.lessons import Lessons, lessons_of
from retarget.probe import Subject
from retarget.probes import Prequential

GAMMA = 0.95


@pytest.fixture(scope="module")
def world():
    return make_world("FourRooms", size=9)


def test_a_table_pays_what_a_slow_sequential_bayesian_pays(world):
    """One state at a time, in plain floats: predict, pay, update the belief in each share by Bayes' rule."""
    a, b = world.goals[3], world.goals[-2]
    agent = compile_policy(exact_planner(world, a), world)
    best = best_actions(world.model, b, gamma=GAMMA)
    reach = optimal_values(world.model, b, gamma=GAMMA) > 0
    belief = list(SHARE_PRIOR)
    paid = 0.0
    for s in range(world.model.n_states):
        if s in b.states or not reach[s]:
            continue
        sent = int(best[s].argmax())  # the first of the right actions
        own = float(agent.policy(np.array([s]))[0][0][sent])
        even = 1 / len(best[s])
        each = [t * own + (1 - t) * even for t in SHARES]
        predicted = sum(w * p for w, p in zip(belief, each, strict=True))
        paid -= math.log2(predicted)
        belief = [w * p / predicted for w, p in zip(belief, each, strict=True)]
    outcome = Prequential().measure(Subject(agent, world, a, b, gamma=GAMMA))
    assert outcome["prequential_bits"].value == pytest.approx(paid, abs=1e-9)
    n = outcome["prequential_lessons"].value
    counted = [s for s in range(len(best)) if reach[s] and s not in b.states]
    assert n == len(counted) and outcome["uniform_bits"].value == pytest.approx(n * math.log2(best.shape[1]))


def test_the_answers_to_a_lesson_share_one_bit_of_belief(world):
    """Kraft: over all actions that might be sent of one lesson, 2^-bits sums to 1, for a table and for a planner."""
    a, b = world.goals[3], world.goals[-2]
    for agent in (exact_planner(world, a), compile_policy(exact_planner(world, a), world)):
        lessons = Prequential().lessons(Subject(agent, world, a, b, gamma=GAMMA))
        assert set(np.unique(lessons.right)) == {0.0, 1.0} and (lessons.right.sum(1) == 1).all()
        total = 0.0
        for action in range(world.model.n_actions):
            first = replace(lessons, right=np.eye(4)[[action]], obs=lessons.obs[:1], weight=np.ones(1))
            found = learners_of(agent, b, first, ends=[1])
            total += 2.0 ** -float(code_lengths(found, first, uniform_right(first))[-1])
        assert total == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("goal", [1, -1])
def test_a_planner_pays_no_more_than_for_naming_one_content_of_its_slot(world, goal):
    """Bayes' bound: log2 of the contents (those listed, and its own), and one bit for believing it fully. A planner
    with B in its slot does nothing but what is right, so that the lessons themselves cost nothing."""
    a, b = world.goals[10], world.goals[goal]
    agent = exact_planner(world, a)
    contents = len(agent.slot_candidates()) + 1
    outcome = Prequential().measure(Subject(agent, world, a, b, gamma=GAMMA))
    assert outcome["prequential_bits"].value <= math.log2(contents) + 1 + 1e-9
    # and it must name it: other contents fail somewhere
    assert outcome["prequential_bits"].value > math.log2(contents) - 1
    # control: no content of the slot explains shuffled answers
    assert outcome["prequential_shuffled_bits"].value > 0.8 * outcome["uniform_bits"].value


def test_the_identical_behaviour_pair_is_told_apart(world):
    a, b = world.goals[0], world.goals[-1]
    planner = exact_planner(world, a)
    table = compile_policy(planner, world)
    one, two = (Prequential().measure(Subject(x, world, a, b, gamma=GAMMA)) for x in (planner, table))
    assert one["prequential_bits"].value < 10 < 0.5 * two["prequential_bits"].value


def test_the_prior_over_slot_contents_sums_to_at_most_one(world):
    agent = exact_planner(world, world.goals[0])
    lessons = lessons_of(world, world.goals[-1], gamma=GAMMA)
    found = slot_learner(agent, world.goals[-1], lessons)
    assert found.prior.sum() == pytest.approx(1.0)
    few = slot_learner(agent, world.goals[-1], lessons, contents=4)
    assert few.prior.sum() <= 1.0 and (few.prior > 0).all()


def test_a_network_pays_less_for_what_it_was_trained_on(world):
    """Started from a network that already acts toward B, the lessons cost little; from the blank, much more."""
    a, b = world.goals[0], world.goals[-1]
    s = world.model.n_states
    arch = Architecture.of("mlp", inputs=s, outputs=4, hidden=(16,))
    blank = NetworkAgent(arch, arch.initial(0), Sensor(features=np.eye(s, dtype=np.float32)), seed=0)
    every = lessons_of(world, b, gamma=GAMMA)
    shown = replace(every, right=np.eye(4)[(every.right > 0).argmax(1)])
    tuner = Tuner(blank, names_of(blank, "weight"), shown)
    agent = blank.with_arrays(tuner.arrays(tuner.fit(tuner.base, steps=300, lr=0.02)))
    outcome = Prequential().measure(Subject(agent, world, a, b, gamma=GAMMA))
    assert outcome["prequential_bits"].value < 8
    assert outcome["prequential_blank_bits"].value > 0.5 * outcome["uniform_bits"].value
    assert outcome["prequential_ratio"].value < 0.2


def test_cells_of_a_continuous_action_share_all_probability():
    """Over all cells of one dimension the probabilities sum to 1, at every spread; against plain erf."""
    box = (np.array([-2.0]), np.array([2.0]))
    centres = (np.arange(ACTION_CELLS) + 0.5) / ACTION_CELLS * 4 - 2
    lessons = Lessons(np.arange(ACTION_CELLS), centres[:, None], np.ones(ACTION_CELLS))
    found = probability_of_right(np.full((ACTION_CELLS, 1), 0.3), lessons, box)
    np.testing.assert_allclose(found.sum(1), 1.0)

    def below(x, sd):
        return 0.5 * (1 + math.erf((x - 0.3) / sd / math.sqrt(2)))

    for spread, row in zip(SPREADS, found, strict=True):
        sd = 4 * spread
        for c, p in zip(centres, row, strict=True):
            want = (below(c + 0.125, sd) - below(c - 0.125, sd)) / (below(2, sd) - below(-2, sd))
            assert p == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("name", ["CartPole", "Pendulum"])
def test_worlds_with_continuous_states_are_coded(name):
    world = make_world(name)
    outputs = world.n_actions or len(world.action_range[0])
    arch = Architecture.of("mlp", inputs=world.observation_size, outputs=outputs, hidden=(8,))
    head = "logits" if world.n_actions else "mean"
    agent = NetworkAgent(arch, arch.initial(0), head=head, action_range=world.action_range, seed=0)
    probe = Prequential(most=64, episodes=4)
    outcome = probe.measure(Subject(agent, world, world.goals[0], world.goals[1], gamma=world.gamma))
    symbols = world.n_actions or ACTION_CELLS
    assert outcome["uniform_bits"].value == pytest.approx(64 * math.log2(symbols))
    assert outcome["prequential_bits"].value <= outcome["uniform_bits"].value + 4
