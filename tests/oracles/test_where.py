"""Where the goal lives, in agents of which that is known; and combinations of parts against brute force."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

import retarget
from retarget.agent import ROLES, Agent
from retarget.agents import (
    GoalTable,
    compile_policy,
    exact_planner,
    learned_planner,
    train_q_table,
    tree_searcher,
)
from retarget.agents.leaves import Blind, Tables
from retarget.code import ENUMERATIVE
from retarget.edit import Edit, Slot, difference
from retarget.editors import FittedEditor, SlotEditor, Task, shortest, shortest_form
from retarget.exact import Yardstick, best_actions, optimal_values, policy_table
from retarget.pairs import GoalPlan
from retarget.probe import Outcome, Subject
from retarget.probes import Retargetability, Where
from retarget.search import TreeSettings

GAMMA = 0.95


def _where(agent: Agent, world: Any, pair: tuple[Any, Any], **options: Any) -> Outcome:
    return Where(**options).measure(Subject(agent, world, *pair, gamma=GAMMA))


def _pairs(world: Any, n: int) -> tuple[Any, ...]:
    return GoalPlan.draw(world, n_pairs=n, seed=0).pairs


def _statuses(outcome: Outcome, role: str) -> set[str]:
    return {
        outcome[f"{what}_{which}_{role}"].status
        for which in ("without", "only")
        for what in ("edit_bits", "competence_b")
    }


def _made_for(world: Any, goal: Any, *, value: bool = True, prior: bool = True) -> Tables:
    """Values and preferences written by hand: discounted distances, and 0 against -3 for actions that are not best."""
    n, a = world.model.n_states, world.model.n_actions
    values = optimal_values(world.model, goal, gamma=GAMMA) if value else np.zeros(n)
    right = best_actions(world.model, goal, gamma=GAMMA)
    return Tables(values, np.where(right, 0.0, -3.0) if prior else np.zeros((n, a)))


# -- planners and tables ------------------------------------------------------------------------------------------


def _lied_to(agent: Agent, a: int, b: int) -> Agent:
    """By hand: moves to B are said to lead to A, moves to A to bump, and bumps at A to lead next door."""
    nxt = agent.parts["next_state"].array.copy()
    door = next(int(t) for t in nxt[a].reshape(-1) if t not in (a, b))
    for (s, *rest), t in np.ndenumerate(agent.parts["next_state"].array):
        if t == b:
            nxt[(s, *rest)] = a
        elif t == a:
            nxt[(s, *rest)] = s if s != a else door
    return agent.with_arrays({"next_state": nxt})


def test_the_goal_of_a_planner_is_moved_by_its_slot_and_at_more_than_twice_the_length_by_a_model_that_lies() -> None:
    world = retarget.make_world("FourRooms", size=13)
    for a, b in _pairs(world, 3):
        agent = exact_planner(world, a, gamma=GAMMA)
        outcome = _where(agent, world, (a, b))
        # the code's own fields: one part of two, kind, one cell, rest, value, and which of 104 cells
        bits = 1 + 1 + 2 + 1 + 1 + 1 + 4 + 7
        for metric in ("edit_bits", "edit_bits_only_goal_slot", "edit_bits_without_model"):
            assert outcome[metric].value == bits
        assert outcome["competence_b_only_goal_slot"].value == 1.0
        # by hand, without any editor
        lying = _lied_to(agent, a.states[0], b.states[0])
        by_hand = ENUMERATIVE.length(shortest_form(agent, difference(agent, lying)), agent.layout)
        competence = Yardstick.of(world, b, gamma=GAMMA).score(lying).competence
        required = outcome["required_competence"].value
        assert required is not None and competence >= required
        for which in ("only_model", "without_goal_slot"):
            found, best = outcome[f"edit_bits_{which}"].value, outcome[f"competence_b_{which}"].value
            assert found is not None and 2 * bits < found <= by_hand
            assert best is not None and best >= competence - 1e-12
        for role in set(ROLES) - {"goal_slot", "model"}:
            assert _statuses(outcome, role) == {"not_applicable"}


@pytest.mark.parametrize(("name", "options"), [("FourRooms", {"size": 7}), ("OpenGrid", {"size": 5, "slip": 0.1})])
def test_every_planner_that_names_successors_can_be_lied_to(name: str, options: dict[str, Any]) -> None:
    world = retarget.make_world(name, **options)
    (a, b) = _pairs(world, 1)[0]
    judge = Yardstick.of(world, b, gamma=GAMMA)
    agents: list[Agent] = [exact_planner(world, a, gamma=GAMMA)]
    agents.append(tree_searcher(world, a, settings=TreeSettings(simulations=512, gamma=GAMMA), leaf=Blind()))
    for agent in agents:
        outcome = _where(agent, world, (a, b))
        by_hand = judge.score(_lied_to(agent, a.states[0], b.states[0])).competence
        best = outcome["competence_b_without_goal_slot"].value
        assert best is not None and best >= by_hand - 1e-12
        before = outcome["competence_b_before"].value
        assert before is not None and by_hand > before + 0.3


def test_all_of_a_table_is_table() -> None:
    world = retarget.make_world("FourRooms", size=9)
    (a, b) = _pairs(world, 1)[0]
    table = compile_policy(exact_planner(world, a, gamma=GAMMA), world)
    outcome = _where(table, world, (a, b))
    whole = Retargetability(draws=1).measure(Subject(table, world, a, b, gamma=GAMMA))
    assert outcome["edit_bits"].value == outcome["edit_bits_only_table"].value == whole["behaviour_bits"].value
    without = outcome["edit_bits_without_table"]
    assert (without.status, without.reason) == ("not_applicable", "all its parts have this role")
    assert _statuses(outcome, "goal_slot") == {"not_applicable"}
    assert outcome["competence_b_without_goal_slot"].reason == "it has no part with the role 'goal_slot'"


def test_the_goal_of_a_table_for_each_goal_lives_in_its_slot_or_in_its_rows() -> None:
    world = retarget.make_world("FourRooms", size=9)
    a, b = world.as_goal((1, 1)), world.as_goal((7, 7))
    known = tuple(sorted({a, b, *world.goals[:2]}))
    rows = [compile_policy(exact_planner(world, g, gamma=GAMMA), world).symbols for g in known]
    agent = GoalTable(np.stack(rows), known.index(a), known, world.model.n_actions)
    outcome = _where(agent, world, (a, b))
    slot, table = outcome["edit_bits_only_goal_slot"], outcome["edit_bits_without_goal_slot"]
    assert outcome["competence_b_only_goal_slot"].value == 1.0
    assert slot.value == outcome["edit_bits"].value
    assert table.value == outcome["edit_bits_only_table"].value
    assert slot.value is not None and table.value is not None and table.value > 3 * slot.value


def test_a_model_that_knows_one_policy_must_change_whatever_the_slot_holds() -> None:
    world = retarget.make_world("FourRooms", size=9)
    a, b = world.as_goal((1, 1)), world.as_goal((7, 7))
    near = learned_planner(world, a, everywhere=False, episodes=30, epsilon=0.0, seed=0, gamma=GAMMA)
    outcome = _where(near, world, (a, b))
    for metric in ("edit_bits_only_goal_slot", "edit_bits_without_model"):
        assert outcome[metric].status == "failed"
    # the truth with a lie about B: no slot is needed, and the lie alone is not enough
    judge = Yardstick.of(world, b, gamma=GAMMA)
    required, alone = outcome["required_competence"].value, _lied_to(near, a.states[0], b.states[0])
    assert required is not None and judge.score(alone).competence < required
    model = outcome["edit_bits_only_model"]
    assert model.status == "ok" and model.parts == "next_state"
    assert outcome["edit_bits_without_goal_slot"].value == model.value
    # the same cells with the slot beside them: shorter by what the lie about B costs, longer by the slot
    whole = Retargetability(draws=1).measure(Subject(near, world, a, b, gamma=GAMMA))["edit_bits"]
    assert whole.parts == "reward+next_state"
    assert outcome["edit_bits"].value == min(whole.value or 0.0, model.value or 0.0)
    # two roles: without the one is with the other alone
    assert outcome["competence_b_only_model"].value == outcome["competence_b_without_goal_slot"].value
    assert outcome["competence_b_only_goal_slot"].value == outcome["competence_b_without_model"].value


# -- trees --------------------------------------------------------------------------------------------------------


def test_with_one_simulation_the_goal_lives_in_the_prior() -> None:
    world = retarget.make_world("FourRooms", size=9)
    for a, b in _pairs(world, 3):
        settings = TreeSettings(simulations=1, gamma=GAMMA)
        agent = tree_searcher(world, a, settings=settings, leaf=Tables.for_goal(world, a, gamma=GAMMA))
        outcome = _where(agent, world, (a, b))
        # one walk compares nothing: what is likeliest before it is done, whatever slot, model and values hold
        before = outcome["competence_b_before"].value
        for role in ("goal_slot", "model", "value"):
            assert outcome[f"competence_b_only_{role}"].value == before
            assert outcome[f"edit_bits_without_{role}"].value == outcome["edit_bits"].value
        assert outcome["competence_b_without_policy"].value == before
        assert outcome["edit_bits_without_policy"].status == "failed"
        # and a prior that favours what is best for B is optimal
        assert outcome["competence_b_only_policy"].value == pytest.approx(1.0, abs=1e-12)
        assert outcome["edit_bits_only_policy"].value == outcome["edit_bits"].value
        assert outcome["edit_bits"].parts == "prior"


@pytest.mark.parametrize("simulations", [8, 16])
def test_with_values_made_for_a_the_slot_does_not_suffice_and_slot_with_values_do(simulations: int) -> None:
    world = retarget.make_world("FourRooms", size=13)
    a, b = world.as_goal((1, 1)), world.as_goal((11, 11))
    settings = TreeSettings(simulations=simulations, gamma=GAMMA)
    agent = tree_searcher(world, a, settings=settings, leaf=_made_for(world, a, prior=False))
    # by hand, without any editor: B in the slot alone, and with the values of B
    judge = Yardstick.of(world, b, gamma=GAMMA)
    aimed = agent.with_arrays({"reward": b.mask(world.model.n_states).astype(np.float64)})
    both = aimed.with_arrays({"value": optimal_values(world.model, b, gamma=GAMMA)})
    slot_and_value = judge.score(both).competence
    against = aimed.parts["reward"].array - a.mask(world.model.n_states)
    slots = [r * aimed.parts["reward"].array for r in (1.0, 0.5, 2.0**-10)] + [against]
    slot_alone = max(judge.score(agent.with_arrays({"reward": r})).competence for r in slots)
    outcome = _where(agent, world, (a, b))
    required = outcome["required_competence"].value
    assert required is not None and slot_alone < 0.5 * required
    assert slot_and_value >= required
    assert outcome["competence_b_only_goal_slot"].value == slot_alone
    assert outcome["edit_bits_only_goal_slot"].status == "failed"
    without_policy = outcome["competence_b_without_policy"].value
    assert without_policy is not None and without_policy >= slot_and_value
    found = outcome["edit_bits_without_policy"]
    assert found.status == "ok" and "value" in (found.parts or "").split("+")
    assert outcome["edit_bits_only_model"].status == "failed"


def test_without_values_the_slot_suffices_once_the_search_reaches_it() -> None:
    world = retarget.make_world("OpenGrid", size=5)
    a, b = world.as_goal((0, 0)), world.as_goal((4, 4))
    reached = []
    for simulations in (1, 2048):
        settings = TreeSettings(simulations=simulations, gamma=GAMMA, backup="max")
        agent = tree_searcher(world, a, settings=settings, leaf=Blind())
        outcome = _where(agent, world, (a, b))
        reached.append(outcome["edit_bits_only_goal_slot"].status)
        if simulations == 1:
            assert "not above a uniform policy's" in outcome["edit_bits"].reason
            continue
        assert outcome["edit_bits"].editor == "slot"
        assert outcome["edit_bits_without_model"].value == outcome["edit_bits_only_goal_slot"].value
        lie, slot = outcome["edit_bits_without_goal_slot"].value, outcome["edit_bits"].value
        assert lie is not None and slot is not None and lie > 2 * slot
        assert _statuses(outcome, "value") == _statuses(outcome, "policy") == {"not_applicable"}
    assert reached == ["not_applicable", "ok"]


def test_one_cell_of_another_worth_is_found_where_values_made_for_a_outweigh_b_at_full_worth() -> None:
    world = retarget.make_world("OpenGrid", size=5)
    a, b = world.as_goal((1, 0)), world.as_goal((3, 3))
    settings = TreeSettings(simulations=2048, gamma=GAMMA)
    agent = tree_searcher(world, a, settings=settings, leaf=_made_for(world, a, prior=False))
    judge = Yardstick.of(world, b, gamma=GAMMA)
    required = 0.95 * Yardstick.of(world, a, gamma=GAMMA).score(agent).competence
    one, half = (Edit.of(agent, Slot("reward", 0.0, np.array(b.states), np.array([worth]))) for worth in (1.0, 0.5))
    # by hand: B worth 1 does not suffice, B worth a half does
    assert judge.score(one.apply(agent)).competence < required <= judge.score(half.apply(agent)).competence
    found = SlotEditor().search(Task(agent, world, judge, required))
    best = min((c for c in found if c.competence >= required), key=lambda c: c.bits)
    assert best.bits <= ENUMERATIVE.length(half, agent.layout) and best.edit.n_cells == 1
    # what was tried is counted, and keeps to the budget
    assert found[-1].spend.simulations == len(found) <= 4
    assert len(SlotEditor(blind=0, rounds=0).search(Task(agent, world, judge, 1.5, budget=2))) == 2


@pytest.mark.parametrize("simulations", [1, 6, 40])
def test_no_combination_of_whole_parts_does_better_than_what_is_reported(simulations: int) -> None:
    world = retarget.make_world("FourRooms", size=7)
    (a, b) = _pairs(world, 1)[0]
    settings = TreeSettings(simulations=simulations, gamma=GAMMA, backup="max")
    agent = tree_searcher(world, a, settings=settings, leaf=_made_for(world, a))
    judge = Yardstick.of(world, b, gamma=GAMMA)
    outcome = _where(agent, world, (a, b))
    # brute force, part by part: left alone, made for B, or blank
    n = world.model.n_states
    to_b = _made_for(world, b)
    choices = {
        "reward": ("goal_slot", [None, b.mask(n).astype(np.float64)]),
        "value": ("value", [None, to_b.value, np.zeros(n)]),
        "prior": ("policy", [None, to_b.logits, np.zeros_like(to_b.logits)]),
    }
    best: dict[frozenset[str], float] = {}
    for picked in product(*(arrays for _, arrays in choices.values())):
        arrays = {name: array for name, array in zip(choices, picked, strict=True) if array is not None}
        touched = frozenset(choices[name][0] for name in arrays)
        worth = judge.score(agent.with_arrays(arrays)).competence
        best[touched] = max(best.get(touched, 0.0), worth)
    for role in ("goal_slot", "value", "policy"):
        without = outcome[f"competence_b_without_{role}"].value
        only = outcome[f"competence_b_only_{role}"].value
        assert without is not None and without >= max(w for t, w in best.items() if role not in t) - 1e-12
        assert only is not None and only >= best[frozenset({role})] - 1e-12
    required = outcome["required_competence"].value
    assert required is not None
    for role in ("goal_slot", "value", "policy"):
        # what brute force can do without a role, the probe has an edit for
        if max(w for t, w in best.items() if role not in t) >= required:
            assert outcome[f"edit_bits_without_{role}"].status == "ok"


def test_shortened_combinations_are_much_shorter_than_whole_parts() -> None:
    world = retarget.make_world("FourRooms", size=9)
    (a, b) = _pairs(world, 1)[0]
    settings = TreeSettings(simulations=1, gamma=GAMMA)
    agent = tree_searcher(world, a, settings=settings, leaf=Tables.for_goal(world, a, gamma=GAMMA))
    task = Task(agent, world, Yardstick.of(world, b, gamma=GAMMA), 0.95)
    found = FittedEditor().search(task)
    whole = next(
        c for c in found if np.array_equal(c.edit.apply(agent).parts["prior"].array, _made_for(world, b).logits)
    )
    best = shortest(task, found)
    assert best is not None and best.bits < 0.8 * whole.bits
    # no shorter than what any table of the same behaviour would have to name: log2 of the choices of its rows
    after = policy_table(best.edit.apply(agent), world.model)
    changed = (after != policy_table(agent, world.model)).any(1).sum()
    assert best.bits > changed


def test_training_that_touches_one_part_is_not_asked_again() -> None:
    world = retarget.make_world("FourRooms", size=9)
    (a, b) = _pairs(world, 1)[0]
    agent, _ = train_q_table(world, a, episodes=300, exploring=True, seed=0, gamma=GAMMA)
    told: list[str] = []
    subject = Subject(agent, world, a, b, gamma=GAMMA)
    outcome = Where().measure(subject, progress=lambda done, words: told.append(words))
    assert not any("without" in words for words in told)
    assert outcome["edit_bits_only_table"].value == outcome["edit_bits"].value
