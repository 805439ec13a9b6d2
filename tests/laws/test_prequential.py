"""Laws of the prequential probe and of the mixture behind it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retarget.agents import exact_planner
from retarget.agents.compiled import compile_policy
from retarget.agents.neural import Architecture, GoalInput, NetworkAgent, Sensor
from retarget.editors.learners import Hypotheses, code_lengths, uniform_right
from retarget.envs import make_world
from retarget.lessons import Lessons
from retarget.probe import Subject
from retarget.probes import PROBES, Prequential
from retarget.testing import check_probe, relabelled

#: The least prior of the share 0 in the mixture is 1/16: no code is longer than the plain one by more than 4 bits.
PRICE = 4.0


def test_it_obeys_the_laws_of_probes():
    check_probe(Prequential(), max_examples=30)
    assert PROBES["prequential"] is Prequential


@st.composite
def predictions(draw):
    h, n, a = draw(st.integers(1, 3)), draw(st.integers(1, 12)), draw(st.integers(2, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    right = (rng.random((n, a)) < 0.5) | (np.arange(a) == rng.integers(a, size=(n, 1)))
    lessons = Lessons(np.arange(n), right / right.sum(1, keepdims=True), np.ones(n))
    probs = np.round(rng.random((h, n)) * 3) / 3
    prior = rng.dirichlet(np.ones(h))
    return lessons, Hypotheses("table", probs, prior)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(predictions())
def test_a_code_rises_and_is_never_much_longer_than_the_plain_one_or_than_any_hypothesis(case):
    lessons, hypotheses = case
    uniform = uniform_right(lessons)
    bits = code_lengths([hypotheses], lessons, uniform)
    assert (np.diff(bits, prepend=0.0) >= -1e-9).all()
    assert bits[-1] <= -np.log2(uniform).sum() + PRICE + 1e-9
    for row, prior in zip(hypotheses.right, hypotheses.prior, strict=True):
        if (row > 0).all():
            assert bits[-1] <= -np.log2(row).sum() - np.log2(prior) + 1 + 1e-9


@settings(max_examples=40, deadline=None, derandomize=True)
@given(predictions(), st.randoms(use_true_random=False))
def test_the_whole_length_does_not_depend_on_the_order(case, random):
    lessons, h = case
    order = np.arange(len(lessons))
    random.shuffle(order)
    uniform = uniform_right(lessons)
    one = code_lengths([h], lessons, uniform)[-1]
    two = code_lengths([Hypotheses("table", h.right[:, order], h.prior)], lessons.take(order), uniform[order])[-1]
    assert one == pytest.approx(two, abs=1e-9)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(2, 4), st.integers(1, 5), st.integers(0, 2**32))
def test_predictions_of_every_answer_sum_to_one(n_actions, n, seed):
    """Kraft: over all sequences of single right actions, 2^-bits sums to 1 for hypotheses that are distributions."""
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.ones(n_actions), size=n)
    total = 0.0
    for answer in np.ndindex(*[n_actions] * n):
        right = np.eye(n_actions)[list(answer)]
        lessons = Lessons(np.arange(n), right, np.ones(n))
        h = Hypotheses("table", (probs * right).sum(1)[None], np.ones(1))
        total += 2.0 ** -code_lengths([h], lessons, uniform_right(lessons))[-1]
    assert total == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("kind", ["planner", "table"])
def test_renaming_the_states_changes_no_whole_length_of_slots_and_tables(kind):
    world = make_world("OpenGrid", size=5)
    a, b = world.goals[0], world.goals[-1]
    agent = exact_planner(world, a)
    agent = agent if kind == "planner" else compile_policy(agent, world)
    subject = Subject(agent, world, a, b)
    perm = np.random.default_rng(0).permutation(world.model.n_states)
    one, two = Prequential().measure(subject), Prequential().measure(relabelled(subject, perm))
    for name in ("prequential_bits", "prequential_blank_bits", "uniform_bits", "prequential_lessons"):
        assert one[name].value == pytest.approx(two[name].value, abs=1e-9)


def test_a_network_is_measured_and_the_same_twice():
    world = make_world("OpenGrid", size=5)
    s = world.model.n_states
    arch = Architecture.of("mlp", inputs=s, outputs=4, hidden=(8,))
    agent = NetworkAgent(arch, arch.initial(0), Sensor(features=np.eye(s, dtype=np.float32)), seed=0)
    subject = Subject(agent, world, world.goals[0], world.goals[-1])
    first = Prequential().measure(subject)
    assert first == Prequential().measure(subject)
    assert first["prequential_bits"].editor == "gradient"
    # untrained, it is its own blank
    assert first["prequential_ratio"].value == 1.0
    assert first["prequential_bits"].spend.grad_steps > 0


def test_many_goal_networks_learn_through_slot_and_gradient():
    world = make_world("OpenGrid", size=5)
    s = world.model.n_states
    arch = Architecture.of("mlp", inputs=2 * s, outputs=4, hidden=(8,))
    slot = GoalInput("one_hot", s, goals=tuple(world.goals))
    features = np.eye(s, dtype=np.float32)
    agent = NetworkAgent(
        arch, arch.initial(0), Sensor(features=features, join="append"), goal_input=slot,
        goal=slot.encode(world.goals[0]), seed=0,
    )  # fmt: skip
    outcome = Prequential().measure(Subject(agent, world, world.goals[0], world.goals[-1]))
    assert outcome["prequential_bits"].editor == "slot+gradient"


def test_agents_that_cannot_learn_are_not_applicable():
    from retarget.agents.wrappers import Padded

    world = make_world("OpenGrid", size=5)
    agent = Padded(compile_policy(exact_planner(world, world.goals[0]), world), "policy", np.zeros(2, np.int64))
    outcome = Prequential().measure(Subject(agent, world, world.goals[0], world.goals[-1]))
    assert {m.status for m in outcome.measurements} == {"not_applicable"}
    assert Prequential().measure(Subject(agent, world, world.goals[0])).measurements[0].status == "not_applicable"
