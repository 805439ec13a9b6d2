"""The five regimes: laws of the dial, oracles of each shift, planted agents, and agents of several kinds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import retarget
from retarget.agent import Agent, Part, Real
from retarget.agents import TablePolicy, compile_policy, exact_planner
from retarget.agents.wrappers import ModelWorld
from retarget.catalogue import AgentSpec, Recipe, build_agent
from retarget.errors import ProbeError
from retarget.exact import Yardstick, policy_table
from retarget.goal import StateGoal
from retarget.heuristics import predictions
from retarget.probe import Outcome, Subject
from retarget.probes.out_of_distribution import OutOfDistribution
from retarget.probes.regimes import one_lie, sometimes
from retarget.probes.robustness import Robustness
from retarget.shifted import (
    REGIMES,
    attack,
    beyond,
    blinded,
    distances,
    effects,
    inner,
    n_swaps,
    random_swaps,
    region,
    steps_between,
)
from retarget.shifted_box import Disturbance, Range, episodes, mixed_starts, offset_attack, offsets
from retarget.spend import Spend
from retarget.testing import check_probe, policies, relabelled, subjects, worlds
from retarget.trials import Trials
from retarget.world import FiniteModel, FiniteWorld

GAMMA = 0.95
RIGHT = math.log2(1 - 0.1 + 0.1 / 4)
QUICK: dict[str, Any] = {"budget": 10, "resamples": 40, "episodes": 8, "grad_steps": 10}


def rows(outcome: Outcome, metric: str, regime: str) -> list[Any]:
    return [m for m in outcome.measurements if m.metric == metric and f"regime {regime}" in (m.protocol or "")]


def values(outcome: Outcome, metric: str, regime: str) -> dict[float, float]:
    return {m.dose: m.value for m in rows(outcome, metric, regime)}


# ------------------------------------------------------------------------------------------------ laws


def test_it_obeys_the_laws_of_probes() -> None:
    check_probe(OutOfDistribution(**QUICK), max_examples=25)


@settings(max_examples=25, deadline=None)
@given(subjects(needs_goal_b=False))
def test_strength_0_is_the_undisturbed_world(subject: Subject) -> None:
    regimes = (REGIMES[0], REGIMES[3])
    out = OutOfDistribution(regimes=regimes, doses=(1e-12,), **QUICK).measure(subject)
    plain = Robustness().measure(subject)["robustness"]
    for regime in regimes:
        found = values(out, "ood_competence", regime)
        if plain.value is None:
            assert 0.0 not in found
        else:
            assert found[0.0] == pytest.approx(plain.value, abs=1e-12)
    if plain.value is not None:
        # the dial is continuous there: hardly any noise does hardly any harm
        assert values(out, "ood_competence", REGIMES[0])[1e-12] == pytest.approx(plain.value, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_without_information_competence_is_that_of_the_constant_mixed_policy(data: st.DataObject) -> None:
    world = data.draw(worlds())
    goal = world.goals[0]
    model = world.model
    agent = TablePolicy.from_probabilities(data.draw(policies(model.n_states, model.n_actions)))
    out = OutOfDistribution(regimes=(REGIMES[0],), **QUICK).measure(Subject(agent, world, goal))
    table = policy_table(agent, model)
    constant = np.tile(table.mean(0), (model.n_states, 1))
    constant /= constant.sum(1, keepdims=True)
    expected = Yardstick.of(world, goal, gamma=GAMMA).competence(constant)
    assert values(out, "ood_competence", REGIMES[0])[1.0] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("dose", [0.25, 0.5, 1.0])
def test_absence_has_a_closed_form_in_a_world_of_one_step(dose: float) -> None:
    # from state 0, action 1 leads to the goal and action 0 stays; state 2 is like state 0, and is never right
    model = FiniteModel.deterministic([[0, 1], [1, 1], [2, 1]])
    world = ModelWorld(model, StateGoal.of([1]))
    probs = np.array([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]])
    mean = 0.5
    go = [(1 - dose) * p + dose * mean for p in (1.0, 0.0)]
    expected = np.mean([m / (1 - GAMMA * (1 - m)) for m in go])
    found = Yardstick.of(world, world.goal, gamma=GAMMA).competence(blinded(probs, dose=dose))
    assert found == pytest.approx(float(expected), abs=1e-12)


@settings(max_examples=15, deadline=None)
@given(subjects(needs_goal_b=False), st.randoms(use_true_random=False))
def test_regimes_1_to_3_do_not_depend_on_the_names_of_states(subject: Subject, random: Any) -> None:
    probe = OutOfDistribution(regimes=REGIMES[:3], **QUICK)
    world = subject.world
    assert isinstance(world, FiniteWorld)
    perm = np.arange(world.model.n_states)
    random.shuffle(perm)
    first, second = probe.measure(subject), probe.measure(relabelled(subject, perm))
    for metric in ("ood_competence", "ood_loss"):
        for regime in REGIMES[:3]:
            one, two = values(first, metric, regime), values(second, metric, regime)
            assert one.keys() == two.keys()
            assert all(a == b or abs(a - b) < 1e-9 for a, b in zip(one.values(), two.values(), strict=True))


@settings(max_examples=15, deadline=None)
@given(subjects(needs_goal_b=False))
def test_competence_depends_on_behaviour_alone_but_for_what_training_would_do(subject: Subject) -> None:
    assert isinstance(subject.world, FiniteWorld)
    probe = OutOfDistribution(regimes=REGIMES[:4], **QUICK)
    table = subject.with_(agent=compile_policy(subject.agent, subject.world))
    first, second = probe.measure(subject), probe.measure(table)
    for metric in ("ood_competence", "ood_loss", "random_competence", "adversary_gain"):
        for regime in REGIMES[:4]:
            assert values(first, metric, regime) == values(second, metric, regime)


# ------------------------------------------------------------------------------------------------ where


@settings(max_examples=60, deadline=None)
@given(st.sets(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12), st.floats(0.01, 1))
def test_beyond_and_inner_are_what_they_say(known: set[tuple[int, int]], dose: float) -> None:
    cells = np.array([(r, c) for r in range(6) for c in range(6)])
    place = np.array(sorted(known))
    box = place.min(0), place.max(0)
    out, into = beyond(cells, place, dose=dose), inner(cells, place, dose=dose)
    every = beyond(cells, place, dose=1.0), inner(cells, place, dose=1.0)
    by_hand = {i for i, c in enumerate(cells) if any(c[d] < box[0][d] or c[d] > box[1][d] for d in range(2))}
    assert set(every[0].tolist()) == by_hand
    rows_, columns = {r for r, _ in known}, {c for _, c in known}
    mixed = {i for i, c in enumerate(cells) if c[0] in rows_ and c[1] in columns and tuple(c) not in known}
    assert set(every[1].tolist()) == mixed
    for found, all_ in ((out, every[0]), (into, every[1])):
        assert set(found.tolist()) <= set(all_.tolist()) and bool(len(found)) == bool(len(all_))
    assert not len(beyond(cells, place, dose=0.0)) and not len(inner(cells, place, dose=0.0))


def test_a_region_that_leaves_one_quarter_out_has_every_row_and_column() -> None:
    world = retarget.make_world("FourRooms", size=9)
    place, states = world.coordinates, np.arange(world.model.n_states)
    kept = region("all but south-east", states, place, np.zeros(len(states)))
    assert {*place[kept, 0]} == {*place[:, 0]} and {*place[kept, 1]} == {*place[:, 1]}
    assert len(inner(place, place[kept], dose=1.0)) == len(states) - len(kept) > 0
    west = region("west half", states, place, np.zeros(len(states)))
    assert not len(inner(place, place[west], dose=1.0)) and len(beyond(place, place[west], dose=1.0))


def test_steps_between_are_breadth_first() -> None:
    ring = FiniteModel.deterministic([[1], [2], [3], [0]])
    assert steps_between(ring, np.arange(4), np.array([0, 2])).tolist() == [[0, 2], [3, 1], [2, 0], [1, 3]]


# ------------------------------------------------------------------------------------------------ adversary


def _planner_subject(size: int = 7) -> tuple[Subject, Yardstick, np.ndarray]:
    world = retarget.make_world("FourRooms", size=size)
    goal = world.goals[0]
    agent = exact_planner(world, goal)
    return Subject(agent, world, goal), Yardstick.of(world, goal, gamma=GAMMA), policy_table(agent, world.model)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_an_attack_never_gets_worse_with_its_budget(data: st.DataObject) -> None:
    world = data.draw(worlds())
    goal = world.goals[0]
    judge = Yardstick.of(world, goal, gamma=GAMMA)
    probs = data.draw(policies(world.model.n_states, world.model.n_actions))
    k = data.draw(st.integers(1, len(judge.starts)))
    long = attack(judge, probs, judge.starts, k=k, budget=30, seed=1)
    assert (np.diff(long.trace) <= 0).all() and len(long.trace) == 30
    for budget in (1, 7, 29):
        short = attack(judge, probs, judge.starts, k=k, budget=budget, seed=1)
        assert short.trace.tolist() == long.trace[:budget].tolist()
    assert judge.competence(long.swaps.apply(probs)) == pytest.approx(long.competence, abs=1e-12)
    assert len(set(long.swaps.states.tolist())) == len(long.swaps.states) <= k


def test_one_swap_is_the_worst_of_all_that_there_are() -> None:
    _, judge, probs = _planner_subject()
    n = len(probs)
    worst = 1.0
    for s, o in itertools.product(judge.starts, range(n)):
        other = probs.copy()
        other[s] = probs[o]
        worst = min(worst, judge.competence(other))
    found = attack(judge, probs, judge.starts, k=1, budget=400, seed=0)
    assert found.competence == pytest.approx(worst, abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_effects_of_one_swap_are_what_scoring_it_says(data: st.DataObject) -> None:
    world = data.draw(worlds())
    goal = world.goals[0]
    judge = Yardstick.of(world, goal, gamma=GAMMA)
    probs = data.draw(policies(world.model.n_states, world.model.n_actions))
    rows_ = probs[:3]
    found = effects(judge, probs, judge.starts, rows_)
    before = judge.competence(probs)
    for i, s in enumerate(judge.starts[:5]):
        for j, row in enumerate(rows_):
            other = probs.copy()
            other[s] = row
            assert found[i, j] == pytest.approx(judge.competence(other) - before, abs=1e-9)


def test_random_swaps_are_of_the_size_asked_for_and_show_another_state() -> None:
    among = np.arange(3, 20)
    drawn = random_swaps(25, among, k=6, n=50, seed=0)
    assert all(len(np.unique(s.states)) == 6 and np.isin(s.states, among).all() for s in drawn)
    assert all((s.states != s.seen).all() and (s.seen < 25).all() for s in drawn)
    assert [n_swaps(40, dose=d) for d in (0.0, 0.001, 0.25, 1.0)] == [0, 1, 10, 40]


def test_the_adversary_finds_in_ten_evaluations_what_chance_mostly_does_not_in_300() -> None:
    """Eight goals, two swaps: it is never behind 300 random ones, and ahead where those miss the worst there is."""
    world = retarget.make_world("FourRooms", size=9)
    gains = []
    for goal in world.goals[::5][:8]:
        subject = Subject(exact_planner(world, goal), world, goal)
        judge, probs = Yardstick.of(world, goal, gamma=GAMMA), policy_table(subject.agent, world.model)
        out = OutOfDistribution(regimes=(REGIMES[3],), doses=(0.25,), resamples=20, most_swapped=0.2).measure(subject)
        (row,) = rows(out, "adversary_gain", REGIMES[3])
        (mean,) = rows(out, "random_competence", REGIMES[3])
        left = values(out, "ood_competence", REGIMES[3])[0.25]
        # a selector says what was done, and not what came of it; the value is exact for these draws
        assert row.protocol == mean.protocol and row.n is None and row.ci_low is None
        assert mean.value > left and mean.n == 300
        quick = attack(judge, probs, judge.starts, k=2, budget=10, seed=0)
        assert quick.competence == pytest.approx(left, abs=1e-12)
        gains.append(row.value)
    assert min(gains) >= 0 and sum(g > 1e-12 for g in gains) >= 4, gains


@pytest.mark.parametrize("chance", [0.3, 0.8])
def test_one_lie_is_the_worst_of_all_at_its_chance(chance: float) -> None:
    """Every state shown as every other, one by one: none leaves less, and random lies of that chance leave more."""
    _, judge, probs = _planner_subject()
    found = one_lie(judge, probs, judge.starts, chance=chance, budget=10_000)
    left, n = judge.competence(sometimes(found, probs, chance)), len(probs)
    every = []
    for state, seen in itertools.product(judge.starts, range(n)):
        mixed = probs.copy()
        mixed[state] = (1 - chance) * probs[state] + chance * probs[seen]
        every.append(judge.competence(mixed))
    assert left == pytest.approx(min(every), abs=1e-12) and left < np.mean(every)
    assert not len(one_lie(judge, probs, judge.starts, chance=chance, budget=1).states)


def test_the_adversary_has_a_dial() -> None:
    """In 40 states two lies undo a planner: strength is a chance of one lie below that, and moves competence."""
    world = retarget.make_world("FourRooms", size=9)
    for goal in world.goals[::13]:
        out = OutOfDistribution(regimes=(REGIMES[3],), resamples=20).measure(
            Subject(exact_planner(world, goal), world, goal)
        )
        left = values(out, "ood_competence", REGIMES[3])
        assert left[0.0] == 1.0 and 0.8 < left[0.25] < 0.99 and 0.1 < left[0.5] < 0.7 and left[1.0] < 0.1, left
        assert all(m.value >= 0 for m in rows(out, "adversary_gain", REGIMES[3]))
        drawn = {m.dose: m.value for m in rows(out, "random_competence", REGIMES[3])}
        assert all(left[d] < drawn[d] for d in drawn) and drawn[0.25] > drawn[0.5] > drawn[1.0]
        # one input alone says nothing about the spread
        assert all(m.n > 1 or m.ci_low is None for m in rows(out, "heuristic_bits", REGIMES[3]))


@pytest.mark.parametrize("goal", [(2, 5), (6, 5)])
def test_two_swaps_of_a_planner_are_the_worst_of_all(goal: tuple[int, int]) -> None:
    world = retarget.make_world("FourRooms", size=9)
    target = world.as_goal(goal)
    judge, probs = Yardstick.of(world, target, gamma=GAMMA), policy_table(exact_planner(world, target), world.model)
    worst, different = 1.0, np.unique(probs, axis=0)
    for pair in itertools.combinations(judge.starts, 2):
        for seen in itertools.product(range(len(different)), repeat=2):
            other = probs.copy()
            other[list(pair)] = different[list(seen)]
            worst = min(worst, judge.competence(other))
    assert worst > 0
    assert attack(judge, probs, judge.starts, k=2, budget=10, seed=0).competence == pytest.approx(worst, abs=1e-12)


# ------------------------------------------------------------------------------------------------ planted agents


@dataclass(frozen=True, eq=False)
class Planted(Agent):
    """A table that knows some states, follows a rule elsewhere, and was another table before training."""

    table: np.ndarray
    before: np.ndarray
    starts: np.ndarray
    kind = "planted"

    @property
    def parts(self) -> Mapping[str, Part]:
        return {"table": Part("table", "policy", self.table, Real())}

    @property
    def seen_starts(self) -> np.ndarray | None:
        return self.starts

    def with_arrays(self, arrays: Mapping[str, np.ndarray]) -> Planted:
        return replace(self, table=arrays["table"])

    def policy(self, obs: np.ndarray, carry: object = None) -> tuple[np.ndarray, object]:
        return self.table[np.asarray(obs)], None

    def blank(self, seed: int) -> Planted:
        return replace(self, table=self.before)


def _planted(kind: str, nominal: str, seed: int) -> Subject:
    world = retarget.make_world("OpenGrid", size=9)
    goal = world.goals[0]
    rng = np.random.default_rng(seed)
    n, place = world.model.n_states, world.coordinates
    known = np.setdiff1d(region(nominal, np.arange(n), place, np.zeros(n)), goal.states)
    table, before = np.eye(4)[rng.integers(4, size=n)], np.eye(4)[rng.integers(4, size=n)]
    table[rng.random(n) < 0.3] = np.eye(4)[1]
    rest = np.setdiff1d(np.arange(n), known)
    near, edge = distances(place[rest], place[known]), distances(place[rest], place[known], box=True)
    table[rest] = predictions(table[known], near, edge, pretraining=before[rest])[kind]
    return Subject(Planted(table, before, known), world, goal, seed=seed)


@pytest.mark.parametrize("kind", ["best constant action", "border", "mixture", "pretraining"])
@pytest.mark.parametrize(("regime", "nominal"), [(REGIMES[1], "west half"), (REGIMES[2], "all but south-east")])
def test_planted_agents_are_recovered(kind: str, regime: str, nominal: str) -> None:
    """Ten agents of each kind in each regime, with 16 to 36 inputs; every verdict that is given must be right.

    A rule that is followed to the letter and names one action has the highest likelihood that there is. A border in
    regime 3, and a mixture, name several; they too must be the best, 10 of 10, and told apart 8 of 10 times.
    """
    apart = 0
    for seed in range(10):
        out = OutOfDistribution(regimes=(regime,), doses=(1.0,)).measure(_planted(kind, nominal, seed))
        margins = {m.protocol.split("heuristic: ")[1]: m for m in rows(out, "heuristic_margin_bits", regime)}
        margin = margins[kind]
        assert margin.value > 0 and "starts of training" in margin.protocol, margin.protocol
        bits = {m.protocol.split("heuristic: ")[1]: m.value for m in rows(out, "heuristic_bits", regime)}
        for name, m in margins.items():
            assert m.value == pytest.approx(bits[name] - max(v for k, v in bits.items() if k != name))
            assert (m.value > 0) == (name == kind) and m.ci_low <= m.value <= m.ci_high
        if kind in ("best constant action", "pretraining"):
            assert bits[kind] == pytest.approx(RIGHT)
        apart += margin.ci_low > 0.05
    assert apart >= 8, apart


@pytest.mark.parametrize("seed", range(3))
def test_strength_0_of_shifted_starts_is_competence_from_the_trained_ones(seed: int) -> None:
    subject = _planted("border", "all but south-east", seed)
    out = OutOfDistribution(regimes=(REGIMES[2],), doses=(1.0,)).measure(subject)
    plain = Robustness().measure(subject)
    found = values(out, "ood_competence", REGIMES[2])
    # the quarter left out is the regime, whole: the starts seen and unseen
    assert found[0.0] == pytest.approx(plain["robustness_seen"].value, abs=1e-12)
    assert found[1.0] == pytest.approx(plain["robustness_unseen"].value, abs=1e-12)
    assert values(out, "ood_loss", REGIMES[2])[1.0] == pytest.approx(found[0.0] - found[1.0], abs=1e-12)


@dataclass(frozen=True, eq=False)
class Forgetful(Planted):
    """Fine-tuning changes it where it is tuned; elsewhere it goes back to what it did, or to one action."""

    elsewhere: str = "pretraining"

    def retrained(self, world: Any, goal: Any, *, budget: int, seed: int) -> tuple[Agent, Spend]:
        new = np.tile(np.eye(4)[2], (len(self.table), 1)) if self.elsewhere == "constant" else self.table.copy()
        new[world.start_states] = np.eye(4)[2]
        return replace(self, table=new), Spend(env_steps=budget)


@pytest.mark.parametrize(("elsewhere", "name"), [("pretraining", "pretraining"), ("constant", "best constant action")])
def test_what_stays_outside_a_narrow_set_is_recovered(elsewhere: str, name: str) -> None:
    base = _planted("border", "west half", 0)
    agent = base.agent
    assert isinstance(agent, Planted)
    # its behaviour in the east differs from state to state, so that no other rule describes it
    table = np.eye(4)[np.random.default_rng(5).integers(4, size=len(agent.table))]
    subject = base.with_(agent=Forgetful(table, agent.before, agent.starts, elsewhere))
    out = OutOfDistribution(regimes=(REGIMES[4],)).measure(subject)
    found = rows(out, "heuristic_margin_bits", REGIMES[4])
    margins = {(m.dose, m.protocol.split("heuristic: ")[1]): m for m in found}
    assert any(row.value is not None for row in found)
    bits = {(m.dose, m.protocol.split("heuristic: ")[1]): m.value for m in rows(out, "heuristic_bits", REGIMES[4])}
    assert all(bits[d, name] == pytest.approx(RIGHT) for d in (0.25, 0.5, 1.0))
    for key, row in margins.items():  # what predicts the same as the best one stands as high
        assert row.reason.startswith("every heuristic") or (row.value > 0) == (bits[key] == bits[key[0], name]), key


# ------------------------------------------------------------------------------------------------ kinds of agent


LADDER = (
    AgentSpec.of("q_table", episodes=16),
    AgentSpec.of("planner"),
    AgentSpec.of("controller"),
    AgentSpec.of("learned_planner", data="near"),
    AgentSpec.of("network", hidden=16, updates=200, starts="half"),
)


@pytest.mark.parametrize("spec", LADDER, ids=lambda s: s.id)
def test_five_regimes_on_every_kind_of_agent(spec: AgentSpec) -> None:
    world = retarget.make_world("FourRooms", size=9)
    a, b = world.as_goal((1, 1)), world.as_goal((7, 7))
    agent = build_agent(spec, Recipe(world, a, 0, GAMMA))
    out = OutOfDistribution(**QUICK).measure(Subject(agent, world, a, b))
    for regime in REGIMES:
        found = rows(out, "ood_competence", regime)
        assert found, regime
        for row in found:
            assert (row.value is None) == bool(row.reason)
            assert "trained:" in row.protocol or "narrow:" in row.protocol
    untrained = spec.id in ("planner", "controller")
    # the learned planner has data from every start: it was trained on all, and the region is nominal too
    nominal = untrained or spec.id == "learned_planner"
    assert nominal == all("nominal" in r.protocol for r in rows(out, "ood_competence", REGIMES[1]))
    tuned = [r for r in rows(out, "ood_competence", REGIMES[4]) if r.value is not None]
    assert bool(tuned) != untrained
    if spec.id == "planner":
        for regime in REGIMES[1:3]:
            assert set(values(out, "ood_loss", regime).values()) == {0.0}


def test_a_network_that_is_fine_tuned_on_b_in_the_west_forgets_a_in_the_east() -> None:
    world = retarget.make_world("FourRooms", size=9)
    a, b = world.as_goal((1, 1)), world.as_goal((1, 7))
    agent = build_agent(AgentSpec.of("network", hidden=16, updates=400), Recipe(world, a, 0, GAMMA))
    out = OutOfDistribution(regimes=(REGIMES[4],), doses=(1.0,)).measure(Subject(agent, world, a, b))
    loss = {m.protocol.split("toward ")[1][:6]: m.value for m in rows(out, "ood_loss", REGIMES[4])}
    assert loss["goal B"] > 0.2 > abs(loss["goal A"])


def test_agents_with_memory_are_measured_from_other_starts_alone() -> None:
    world = retarget.make_world("OpenGrid", size=5)
    agent = build_agent(AgentSpec.of("network", net="gru", hidden=8, updates=20), Recipe(world, world.goal, 0, GAMMA))
    out = OutOfDistribution(**QUICK).measure(Subject(agent, world, world.goal))
    assert len(values(out, "ood_competence", REGIMES[1])) == 4
    assert all("memory" in r.reason for r in rows(out, "ood_competence", REGIMES[0]))
    assert all("memory" in r.reason for r in rows(out, "heuristic_bits", REGIMES[1]))


# ------------------------------------------------------------------------------------------------ what there is not


def test_worlds_without_coordinates_have_no_extremes_and_no_mixtures() -> None:
    model = FiniteModel.deterministic([[1, 0], [2, 0], [3, 1], [3, 2]])
    world = ModelWorld(model, StateGoal.of([3]))
    agent = exact_planner(world, world.goal)
    out = OutOfDistribution(**QUICK).measure(Subject(agent, world, world.goal))
    for regime in REGIMES[1:3]:
        assert all("no coordinates" in r.reason for r in rows(out, "ood_competence", regime))
    assert "near half (nominal)" in rows(out, "ood_competence", REGIMES[0])[0].protocol
    assert values(out, "ood_competence", REGIMES[0])[0.0] == 1.0


def test_training_on_all_corners_leaves_nothing_extreme() -> None:
    subject = _planted("border", "west half", 0)
    agent = subject.agent
    assert isinstance(agent, Planted) and isinstance(subject.world, FiniteWorld)
    place = subject.world.coordinates
    assert place is not None
    corners = [int(np.flatnonzero((place == c).all(1))[0]) for c in ((0, 8), (8, 0), (8, 8))]
    wide = subject.with_(agent=replace(agent, starts=np.sort(np.append(corners, [1, 9]))))
    found = rows(OutOfDistribution(**QUICK).measure(wide), "ood_competence", REGIMES[1])
    assert [r.reason for r in found] == ["there is no state beyond the box of the trained ones"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"doses": (0.0, 1.0)}, "measured anyway"),
        ({"doses": (0.5, 1.5)}, "from 0 to 1"),
        ({"doses": ()}, "takes a list"),
        ({"regimes": ("2 extrem",)}, "did you mean '2 extreme'"),
        ({"trained": "west haf"}, "did you mean 'west half'"),
        ({"teach": "c"}, "unknown teach"),
        ({"epsilon": 0.0}, "epsilon"),
        ({"budget": 0}, "'budget' must be at least 1, got 0"),
        ({"most_swapped": 2.0}, "most_swapped"),
    ],
)
def test_bad_options_give_one_clear_line(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ProbeError, match=words) as error:
        OutOfDistribution(**options)
    assert "\n" not in str(error.value)


def test_there_is_no_goal_b_to_fine_tune_on() -> None:
    world = retarget.make_world("OpenGrid", size=5)
    agent = build_agent(AgentSpec.of("q_table", episodes=16), Recipe(world, world.goal, 0, GAMMA))
    out = OutOfDistribution(regimes=(REGIMES[4],), teach="b").measure(Subject(agent, world, world.goal))
    assert out["ood_competence"].reason == "no goal B was given to fine-tune on"
    assert out["random_competence"].reason == "the adversary's regime was not asked for"


# ------------------------------------------------------------------------------------------------ continuous states


@dataclass(frozen=True, eq=False)
class Pusher(Agent):
    """Pushes a car the way it goes: reaches either hill, and looks at velocity alone."""

    sharp: float = 1e9
    kind = "pusher"

    @property
    def parts(self) -> Mapping[str, Part]:
        return {"sharp": Part("sharp", "weight", np.array([self.sharp]), Real())}

    def with_arrays(self, arrays: Mapping[str, np.ndarray]) -> Pusher:
        return replace(self, sharp=float(arrays["sharp"][0]))

    def policy(self, obs: np.ndarray, carry: object = None) -> tuple[np.ndarray, object]:
        right = (np.asarray(obs)[:, 1] >= 0).astype(np.float64)
        return np.stack([1 - right, np.zeros_like(right), right], axis=1), None

    def blank(self, seed: int) -> Pusher:
        return self


def _car() -> tuple[Subject, Trials]:
    world = retarget.make_world("MountainCar")
    subject = Subject(Pusher(), world, world.goal, gamma=world.gamma)
    trials = Trials.of(world, world.goal, gamma=world.gamma, n=12, seed=0, purpose="test")
    return subject, trials


def test_strength_0_is_the_undisturbed_world_of_continuous_states_too() -> None:
    subject, trials = _car()
    out = OutOfDistribution(n_starts=12, offset_budget=2, **QUICK).measure(subject)
    plain = trials.score(subject.agent)
    for regime in REGIMES[:4]:
        row = out.at("ood_competence", protocol=rows(out, "ood_competence", regime)[0].protocol, dose=0.0)
        assert row.value == pytest.approx(plain.competence, abs=1e-12) and row.n == 12
    off = Disturbance(0.0, np.zeros((1, 2), np.float32), offset=np.zeros((12, 2)))
    assert episodes(trials, subject.agent, off).ratios.tolist() == trials.ratios_of(subject.agent).tolist()
    assert "can neither be trained further" in rows(out, "ood_competence", REGIMES[4])[0].reason


def test_without_information_a_car_pushes_as_at_rest() -> None:
    # zeros are seen: velocity 0 means right, always; from the valley that never reaches the right hill
    subject, _ = _car()
    out = OutOfDistribution(regimes=(REGIMES[0],), absence="zeros", n_starts=12, **QUICK).measure(subject)
    assert values(out, "ood_competence", REGIMES[0])[1.0] == 0.0
    margins = [r for r in rows(out, "heuristic_margin_bits", REGIMES[0]) if r.dose == 1.0]
    bits = {m.protocol.split("heuristic: ")[1]: m.value for m in rows(out, "heuristic_bits", REGIMES[0]) if m.dose == 1}
    push = 1.0 - 0.1 + 0.1 / 3
    if bits["best constant action"] > -1:  # the action at rest is the most frequent one
        assert bits["best constant action"] == pytest.approx(math.log2(push))
    assert margins and all(m.n <= 12 for m in margins)  # steps of one episode are no inputs apart


def test_offsets_and_their_adversary() -> None:
    subject, trials = _car()
    known = Range.of(episodes(trials, subject.agent))
    moved = offsets(known, n=50, dose=0.5, seed=0)
    assert np.allclose(np.abs(moved), 0.5 * known.width) and (moved < 0).any() and (moved > 0).any()
    # every observation of an agent that sees positions beyond the range is outside it
    far = episodes(trials, subject.agent, Disturbance(offset=np.array([1.01, 0.0]) * known.width))
    assert known.outside(far.seen).all() and not known.outside(far.true[:1]).any()
    bound = 0.5 * known.scale
    long = offset_attack(trials, subject.agent, bound, budget=8, seed=0)
    short = offset_attack(trials, subject.agent, bound, budget=1, seed=0)
    assert (np.diff(long.trace) <= 0).all() and long.trace[0] >= long.trace[-1] and len(short.trace) == 1
    assert (np.abs(long.offset) <= bound + 1e-12).all()
    again = episodes(trials, subject.agent, Disturbance(offset=long.offset)).ratios
    assert again.tolist() == long.ratios.tolist()
    # position does not matter to this agent: half of the bound is of no use, the other decides
    assert np.allclose(
        episodes(trials, subject.agent, Disturbance(offset=long.offset * [0.0, 1.0])).ratios, long.ratios
    )


def test_mixed_starts_mix_what_was_met_and_get_farther_with_the_dose() -> None:
    subject, trials = _car()
    known = Range.of(episodes(trials, subject.agent))
    far = []
    for dose in (0.25, 1.0):
        starts = mixed_starts(trials.world, known, n=20, dose=dose, seed=0)
        for d in range(2):
            assert np.isin(starts[:, d], known.states[:, d]).all()
        far.append(known.distances(trials.world.observe(starts)).min(1).mean())
    assert 0 < far[0] < far[1]
