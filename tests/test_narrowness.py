"""Narrowness: laws of regions and occupancies, known truths of tables and planners, closed forms of the frontier."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from retarget.agents import compile_policy, exact_planner
from retarget.agents.tabular import GoalTable
from retarget.code import ENUMERATIVE
from retarget.edit import Edit, Sparse
from retarget.envs import make_world
from retarget.errors import ProbeError
from retarget.exact import best_actions, policy_table
from retarget.goal import StateGoal
from retarget.probe import Outcome, Subject
from retarget.probes.narrowness import Narrowness, _Answer
from retarget.regions import (
    check_region,
    commonest_action,
    decisions,
    occupancy,
    reachable,
    region_of,
    softened_kl,
    steps_to,
)
from retarget.testing import check_probe, models, policies, relabelled, subjects
from retarget.world import FiniteWorld

GAMMA = 0.95
FOUR_ROOMS = make_world("FourRooms", size=9)
MAZE = make_world("Maze", size=9)


def _subject(world: FiniteWorld, i: int, j: int, **rest: object) -> Subject:
    a, b = world.goals[i], world.goals[j]
    return Subject(exact_planner(world, a), world, a, b, **rest)  # type: ignore[arg-type]


def _frontier(outcome: Outcome, metric: str = "narrow_bits") -> dict[str | None, list[float | None]]:
    """Values by protocol, in the order of the doses."""
    out: dict[str | None, list[float | None]] = {}
    for m in outcome.measurements:
        if m.metric == metric:
            out.setdefault(m.protocol, []).append(m.value)
    return out


# ------------------------------------------------------------------------------------------------ regions


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_occupancy_is_the_discounted_sum_of_the_distributions_of_states(data: st.DataObject) -> None:
    model = data.draw(models())
    probs = data.draw(policies(model.n_states, model.n_actions))
    goal = StateGoal.of([data.draw(st.integers(0, model.n_states - 1))])
    found = occupancy(model, probs, goal, np.arange(model.n_states), gamma=0.8)
    # an independent second way: follow the distribution of states step by step
    step = np.einsum("sa,sat->st", probs, model.dense())
    step[list(goal.states)] = np.eye(model.n_states)[list(goal.states)]
    now = (np.arange(model.n_states) != goal.states[0]).astype(float)
    now /= now.sum()
    total = np.zeros(model.n_states)
    for t in range(200):
        total += 0.2 * 0.8**t * now
        now = now @ step
    assert np.allclose(found, total, atol=1e-12)
    assert abs(found.sum() - 1) < 1e-12
    shares = decisions(found, goal)
    assert shares[goal.states[0]] == 0.0
    assert abs(shares.sum() - 1) < 1e-12


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_the_softened_divergence_is_none_for_equals_and_grows_with_the_difference(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 5))
    p, q = data.draw(policies(4, n)), data.draw(policies(4, n))
    kl = softened_kl(p, q, 0.01)
    assert (kl >= 0).all() and np.isfinite(kl).all()
    assert np.array_equal(kl < 1e-15, (np.abs(p - q) < 1e-15).all(1))
    assert (softened_kl(p, p, 0.01) == 0).all()


def test_the_softened_divergence_of_two_sure_actions_has_a_closed_form() -> None:
    p, q = np.eye(4)[[0]], np.eye(4)[[2]]
    sure, other = 0.99 + 0.0025, 0.0025
    assert abs(softened_kl(p, q, 0.01)[0] - (sure - other) * np.log2(sure / other)) < 1e-12


def test_regions_hold_what_their_words_say() -> None:
    world, (a, b) = FOUR_ROOMS, (FOUR_ROOMS.as_goal((1, 1)), FOUR_ROOMS.as_goal((7, 7)))
    probs = policy_table(exact_planner(world, a), world.model)
    rest = {"goal_a": a, "goal_b": b, "probs": probs, "gamma": GAMMA}
    place = world.coordinates
    assert place is not None

    near = region_of(world, "near b", radius=2, **rest).inside
    # no wall stands within two steps of this corner
    assert np.array_equal(near, np.abs(place - place[b.states[0]]).sum(1) <= 2)
    assert region_of(world, "near a", radius=0, **rest).inside.sum() == 1
    half = region_of(world, "half", radius=0, **rest).inside
    assert np.array_equal(half, place[:, 0] > 4)
    assert np.flatnonzero(region_of(world, "states 5 3", radius=0, **rest).inside).tolist() == [3, 5]
    state = region_of(world, "state", radius=0, **rest).inside
    often = decisions(occupancy(world.model, probs, a, world.start_states, gamma=GAMMA), a)
    assert state.sum() == 1 and often[state] == np.delete(often, [*a.states, *b.states]).max()
    strategy = region_of(world, "commonest action", radius=0, **rest).inside
    taken = np.array([often[probs.argmax(1) == k].sum() for k in range(4)])
    assert np.array_equal(strategy, probs.argmax(1) == taken.argmax())
    assert commonest_action(probs, often) == taken.argmax()


def test_half_of_a_world_without_places_is_what_is_nearer_to_b() -> None:
    from retarget.agents.wrappers import ModelWorld
    from retarget.world import FiniteModel

    ring = ModelWorld(FiniteModel.deterministic([[(s + 1) % 8, (s - 1) % 8] for s in range(8)]), StateGoal.of([0]))
    rest = {"goal_a": StateGoal.of([0]), "goal_b": StateGoal.of([4]), "probs": np.full((8, 2), 0.5), "gamma": GAMMA}
    assert np.flatnonzero(region_of(ring, "half", radius=0, **rest).inside).tolist() == [3, 4, 5]


@pytest.mark.parametrize("words", ["", "nowhere", "near c", "states", "states x", "states -1", 7, "state 3"])
def test_words_that_are_no_region_are_refused(words: object) -> None:
    with pytest.raises(ProbeError):
        check_region(words)


# ------------------------------------------------------------------------------------------------ the probe's laws


def test_narrowness_keeps_the_universal_laws() -> None:
    check_probe(
        Narrowness(draws=2, budget=96, regions=("near b", "half", "commonest action", "state")), max_examples=15
    )


@given(subjects(), st.randoms(use_true_random=False))
@settings(max_examples=15, deadline=None)
def test_names_of_states_do_not_matter(subject: Subject, random: object) -> None:
    # a control agent's model keeps its old names, and this probe writes a model by the world's
    assume(all(p.role != "model" for p in subject.agent.parts.values()))
    probe = Narrowness(regions=("near b", "near a", "half"), after=False, draws=0, budget=4096)
    assert isinstance(subject.world, FiniteWorld)
    perm = np.arange(subject.world.model.n_states)
    random.shuffle(perm)  # type: ignore[attr-defined]
    before, after = probe.measure(subject), probe.measure(relabelled(subject, perm))
    for x, y in zip(before.measurements, after.measurements, strict=True):
        if x.metric not in ("collateral_other_goals",):  # its goals are drawn by the world's name
            assert (x.metric, x.protocol, x.dose, x.status) == (y.metric, y.protocol, y.dose, y.status)
            assert x.value is None or abs(x.value - y.value) < 1e-9, (x, y)  # type: ignore[operator]


@given(subjects())
@settings(max_examples=25, deadline=None)
def test_more_collateral_allowed_never_costs_more_bits(subject: Subject) -> None:
    outcome = Narrowness(draws=0, budget=128, after=False).measure(subject)
    for metric in ("narrow_bits", "narrow_bits_table"):
        for bits in _frontier(outcome, metric).values():
            numbers = [np.inf if b is None else b for b in bits]
            assert numbers == sorted(numbers, reverse=True)
    for m in outcome.measurements:
        assert m.metric != "empty_collateral" or m.value in (0.0, None)


# ------------------------------------------------------------------------------------------------ known truths


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_a_table_pays_the_code_of_its_cells_and_spoils_nothing(data: st.DataObject) -> None:
    subject = data.draw(subjects())
    world = subject.world
    assert isinstance(world, FiniteWorld) and isinstance(subject.goal_b, StateGoal)
    table = compile_policy(subject.agent, world)
    outcome = Narrowness(regions=("near b",), radius=1, after=False, draws=0, allowed=(0.0,)).measure(
        subject.with_(agent=table, level=1.0)
    )
    bits = outcome["narrow_bits"]
    assume(bits.status == "ok")
    # by hand: the states within one step of B, which lack a best action; every choice of best actions
    probs, best = policy_table(table, world.model), best_actions(world.model, subject.goal_b, gamma=subject.gamma)
    inside = (steps_to(world.model, subject.goal_b) <= 1) & reachable(world.model, subject.goal_b, gamma=subject.gamma)
    lacking = np.flatnonzero(inside & ((probs * ~best).sum(1) > 0))
    choices = [np.flatnonzero(best[s]) for s in lacking]
    assume(np.prod([len(c) for c in choices]) <= 256)
    lengths = [
        ENUMERATIVE.length(Edit.of(table, Sparse("policy", lacking, np.array(c))), table.layout)
        for c in product(*choices)
    ]
    fills = [n for n in (bits.value,) if n is not None and n < min(lengths)]
    assert fills == [] or (bits.n_cells is not None and bits.n_cells < len(lacking))
    if not fills:
        assert bits.value >= min(lengths)
        if len(lengths) == 1:
            assert bits.value == lengths[0]
    assert outcome["narrowness"].value == 0.0
    assert outcome["least_collateral"].value == 0.0


@pytest.mark.parametrize("world", [FOUR_ROOMS, MAZE])
@pytest.mark.parametrize(("i", "j"), [(0, 20), (5, 30), (17, 2)])
def test_a_planners_model_can_lie_about_a_region_and_spoil_nothing(world: FiniteWorld, i: int, j: int) -> None:
    outcome = Narrowness(after=False, draws=0).measure(_subject(world, i, j, level=1.0))
    rows = [m for m in outcome.measurements if m.metric == "least_collateral"]
    assert [m.value for m in rows] == [0.0, 0.0]


def test_writing_the_goal_is_short_and_broad() -> None:
    outcome = Narrowness(regions=("near b",), after=False).measure(_subject(FOUR_ROOMS, 0, len(FOUR_ROOMS.goals) - 1))
    short, clean = outcome.at("narrow_bits", dose=100.0), outcome.at("narrow_bits", dose=0.0)
    assert short.editor == "slot" and short.value is not None and clean.value is not None
    assert short.value < clean.value
    assert outcome["collateral_kl_bits"].value > 0.1  # type: ignore[operator]
    assert outcome["collateral_changed"].value > 0.01  # type: ignore[operator]
    # the slot is written anew for another goal: nothing of the edit is left
    assert outcome["collateral_other_goals"].value == 0.0


def test_other_goals_of_a_goal_table_lose_nothing_by_cells_of_the_active_row() -> None:
    goals = tuple(FOUR_ROOMS.goals[:6])
    rows = np.stack([compile_policy(exact_planner(FOUR_ROOMS, g), FOUR_ROOMS).symbols for g in goals])
    agent = GoalTable(rows, 0, goals, 4)
    subject = Subject(agent, FOUR_ROOMS, goals[0], FOUR_ROOMS.goals[20])
    outcome = Narrowness(regions=("near b",), radius=1, after=False, others=40).measure(subject)
    assert outcome.at("narrow_bits", dose=0.0).editor == "table"
    found = outcome["collateral_other_goals"]
    assert found.status == "ok" and found.n is None  # exact for these goals
    assert outcome["collateral_other_goals"].value == 0.0


def test_what_is_asked_after_an_edit_is_what_is_asked_of_the_agent_that_it_made() -> None:
    subject = _subject(FOUR_ROOMS, 0, 39)
    twice = Narrowness(regions=("near b",), draws=0).measure(subject)
    protocols = list(_frontier(twice))
    label = str(protocols[1]).rpartition("goal ")[2]
    third = next(g for g in FOUR_ROOMS.goals if g.label == label)
    alone = Narrowness(regions=("near b",), draws=0, after=False).measure(
        subject.with_(agent=exact_planner(FOUR_ROOMS, third), goal_a=third)
    )
    for metric in ("narrow_bits", "region_decisions", "collateral_kl_bits", "collateral_competence_a"):
        assert _frontier(twice, metric)[protocols[1]] == next(iter(_frontier(alone, metric).values()))


def test_one_state_and_one_action_cost_one_cell() -> None:
    # 40 cells of 5 symbols: one cell is a choice of 40 * 5 in ceil(log2(200)) = 8 bits, beside its header
    world = FOUR_ROOMS
    subject = _subject(world, 0, 39).with_(agent=compile_policy(exact_planner(world, world.goals[0]), world))
    probs = policy_table(subject.agent, world.model)
    action = (int(probs[20].argmax()) + 1) % 4
    probe = Narrowness(regions=("states 20",), wanted=f"action {action}", after=False, allowed=(0.0,))
    found = probe.measure(subject)["narrow_bits"]
    by_hand = ENUMERATIVE.length(Edit.of(subject.agent, Sparse("policy", [20], [action])), subject.agent.layout)
    assert (found.value, found.n_cells) == (by_hand, 1)
    assert by_hand - 8 < 8


def test_a_networks_edits_do_what_they_say() -> None:
    from retarget.catalogue.entries import AgentSpec, Recipe, build_agent

    world = make_world("OpenGrid", size=5)
    a, b = world.goals[0], world.goals[-1]
    agent = build_agent(AgentSpec.of("network", updates=600, hidden=16), Recipe(world, a, 0, GAMMA))
    probe = Narrowness(regions=("states 12",), wanted="action 3", after=False, budget=300, draws=4)
    outcome = probe.measure(Subject(agent, world, a, b))
    broad = outcome.at("narrow_bits", dose=100.0)
    assert broad.status == "ok" and broad.editor == "weights"
    assert outcome["narrow_inside"].value == 1.0
    assert outcome["inside_before"].value == 0.0


# ------------------------------------------------------------------------------------------------ nothing to measure


@pytest.mark.parametrize(
    "options",
    [
        {"regions": ()}, {"regions": ("near b", "near b")}, {"regions": ("far",)}, {"radius": -1}, {"radius": True},
        {"wanted": "action"}, {"wanted": "best"}, {"allowed": (0.1, 0.0)}, {"allowed": ()}, {"allowed": (-1.0,)},
        {"allowed": (float("nan"),)}, {"epsilon": 0.0}, {"epsilon": 1.0}, {"budget": 0}, {"draws": 0.5},
    ],
)  # fmt: skip
def test_bad_options_are_refused_in_one_line(options: dict[str, object]) -> None:
    with pytest.raises(ProbeError) as error:
        Narrowness(**options)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"regions": ("states 40",)}, "states 0 to 39"),
        ({"regions": ("near b",), "radius": 0}, "nothing is wanted there"),
        ({"wanted": "action 4"}, "the world has 4 actions"),
    ],
)
def test_a_region_without_anything_to_do_says_why(options: dict[str, object], reason: str) -> None:
    outcome = Narrowness(after=False, **options).measure(_subject(FOUR_ROOMS, 0, 39))  # type: ignore[arg-type]
    assert {m.status for m in outcome.measurements} == {"not_applicable"}
    assert all(reason in m.reason for m in outcome.measurements)


def test_what_is_done_already_is_not_asked_for() -> None:
    subject = _subject(FOUR_ROOMS, 0, 39)
    assert subject.goal_b is not None
    aimed = subject.with_(agent=exact_planner(FOUR_ROOMS, subject.goal_b))  # type: ignore[arg-type]
    outcome = Narrowness(regions=("near b",), after=False).measure(aimed)
    assert outcome["inside_before"].value == 1.0
    assert "unedited" in outcome["narrow_bits"].reason


def test_intervals_of_the_controls_are_students() -> None:
    # from a table of Student's t: 12.7062 standard errors on each side of two draws; one draw has none
    answer = _Answer(None, None, None, None, "protocol")  # type: ignore[arg-type]
    row = answer._mean("random_collateral", [9.0, 10.0], 100.0)
    assert (row.ci_low, row.ci_high) == pytest.approx((9.5 - 6.3531, 9.5 + 6.3531), abs=1e-4) and row.n == 2
    row = answer._mean("random_collateral", [9.0], 100.0)
    assert (row.value, row.ci_low, row.n) == (9.0, None, 1)
