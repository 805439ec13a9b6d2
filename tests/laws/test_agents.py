"""Laws of agents: every kind, in every world; the compiled twin; depth; wrappers that change only the description."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retarget.agent import Agent, Categorical, HasGoalSlot, HasTable, Part, Real, SlotWrite, Trainable
from retarget.agents import (
    Controller,
    GoalTable,
    LearnedPlanner,
    Planner,
    QTable,
    TablePolicy,
    compile_policy,
    exact_planner,
    learned_planner,
    train_q_table,
)
from retarget.agents.tabular import default_palette
from retarget.agents.wrappers import (
    ModelWorld,
    Padded,
    Relabelled,
    relabel_agent,
    relabel_goal,
    relabel_world,
)
from retarget.catalogue import AgentSpec, NotApplicableHere, Recipe, build_agent, catalogue, check_spec
from retarget.edit import Edit, Slot, Sparse
from retarget.envs import WORLDS, make_world, world_from_gym
from retarget.errors import AgentError, EditError, GoalError, RetargetError, StudyError
from retarget.exact import Yardstick, policy_table
from retarget.goal import StateGoal
from retarget.pairs import GoalPlan
from retarget.testing import agents, check_agent, models, policies, worlds
from retarget.world import FiniteModel

GAMMA = 0.95

#: Every kind in the catalogue, in the options that change what it is.
SPECS = (
    AgentSpec.of("q_table", episodes=20, starts="one"),
    AgentSpec.of("q_table"),
    AgentSpec.of("goal_table", episodes=40),
    AgentSpec.of("controller"),
    AgentSpec.of("planner"),
    AgentSpec.of("depth_planner", depth=3),
    AgentSpec.of("learned_planner", data="near", episodes=10),
    AgentSpec.of("learned_planner", data="everywhere", episodes=10),
    AgentSpec.of("planner", compiled=True),
    AgentSpec.of("network", hidden=8, updates=60),
    AgentSpec.of("network", hidden=8, updates=60, goals="many"),
    AgentSpec.of("demo_table", share=0.3),
    AgentSpec.of("demo_planner", share=0.3),
    AgentSpec.of("demo_network", share=0.3, hidden=4, updates=20),
    AgentSpec.of("tree_search", simulations=6),
    AgentSpec.of("tree_search", simulations=6, leaf="tables", method="gumbel", model="near", episodes=10),
    AgentSpec.of("alphazero", simulations=4, training_simulations=4, iterations=1, hidden=4),
    AgentSpec.of("path_planner", method="astar"),
    AgentSpec.of("network_model", data="near", episodes=10, hidden=4),
    AgentSpec.of("mc_aixi", cycles=200, simulations=4, horizon=4),
)
PLACES: dict[str, dict[str, Any]] = {
    "Shortcut": {"size": 7},
    **{name: {"size": 6 if name == "KeyDoor" else 5} for name in WORLDS},
    **{f"{name}, slip": {"size": 6 if name == "KeyDoor" else 5, "slip": 0.25} for name in WORLDS},
}


def _world(place: str) -> Any:
    return make_world(place.split(",")[0], **PLACES[place])


def _recipe(world: Any, seed: int = 1) -> Recipe:
    return Recipe(world, world.goal, seed, GAMMA)


def test_every_kind_of_the_catalogue_is_tested_here() -> None:
    assert {s.id for s in SPECS} == set(catalogue())


@pytest.mark.parametrize("place", PLACES)
def test_every_kind_obeys_the_laws_of_agents_in_every_world(place: str) -> None:
    world = _world(place)
    for spec in SPECS:
        if spec.id == "q_table" and not dict(spec.options) and place.startswith("KeyDoor"):
            continue  # some of its states are never met, and training to the limit then runs to its cap
        try:
            agent = build_agent(spec, _recipe(world))
        except NotApplicableHere as reason:
            assert place != "Shortcut"
            if spec.id.startswith("demo_"):
                assert "shortcut" in str(reason)
            else:
                assert spec.id == "path_planner" and "slip" in place and "chance" in str(reason)
            continue
        check_agent(agent, world, max_examples=2)


@pytest.mark.parametrize("name", ["FrozenLake-v1", "CliffWalking-v1"])
def test_every_kind_obeys_the_laws_in_worlds_of_gymnasium(name: str) -> None:
    world = world_from_gym(name)
    for spec in SPECS:
        if spec.id == "q_table" and not dict(spec.options) and name.startswith("Cliff"):
            continue  # as above
        try:
            agent = build_agent(spec, _recipe(world))
        except NotApplicableHere as reason:
            missing = {"controller": "coordinates", "path_planner": "chance"}.get(spec.id, "shortcut")
            assert missing in str(reason) and (missing != "shortcut" or spec.id.startswith("demo_"))
            continue
        check_agent(agent, world, max_examples=2)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_the_compiled_table_acts_alike_everywhere_and_compiling_again_changes_nothing(data: st.DataObject) -> None:
    world = data.draw(worlds())
    goal = data.draw(st.sampled_from(world.goals))
    agent = data.draw(agents(world, goal))
    table = compile_policy(agent, world)
    np.testing.assert_array_equal(policy_table(table, world.model), policy_table(agent, world.model))
    assert [p.role for p in table.parts.values()] == ["table"]
    assert compile_policy(table, world).digest == table.digest
    assert (table.seen_starts is None) == (agent.seen_starts is None)


def test_a_table_compiled_from_a_table_is_that_table_down_to_rows_it_does_not_use() -> None:
    world = ModelWorld(FiniteModel.deterministic([[1, 0], [1, 1]]), StateGoal.of([1]))
    palette = np.vstack([default_palette(2), [[0.7, 0.3]], [[0.1, 0.9]]])
    for symbols in ([0, 1], [4, 3]):
        table = TablePolicy(np.array(symbols), palette)
        assert compile_policy(table, world).digest == table.digest


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 5).flatmap(lambda a: st.integers(1, 6).flatmap(lambda s: policies(s, a))))
def test_a_table_of_any_probabilities_holds_them(probs: np.ndarray) -> None:
    table = TablePolicy.from_probabilities(probs)
    np.testing.assert_allclose(table.policy(np.arange(len(probs)))[0], probs, rtol=0, atol=1e-12)
    # pure and uniform rows, and only these, are written with a symbol that an edit may write
    plain = (probs.max(1) == 1) | np.isclose(probs, 1 / probs.shape[1]).all(1)
    np.testing.assert_array_equal(table.symbols <= probs.shape[1], plain)


# -- planners -----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(models(deterministic=True), st.integers(1, 6), st.data())
def test_depth_search_is_uniform_beyond_its_depth_and_shortest_within(
    model: FiniteModel, depth: int, data: st.DataObject
) -> None:
    goal = StateGoal.of([data.draw(st.integers(0, model.n_states - 1))])
    world = ModelWorld(model, goal)
    nxt = model.next_state[:, :, 0]
    graph = nx.DiGraph([(int(t), s) for s in range(len(nxt)) for t in nxt[s]])
    graph.add_nodes_from(range(len(nxt)))
    far = nx.single_source_shortest_path_length(graph, goal.states[0])
    probs = policy_table(exact_planner(world, goal, depth=depth), model)
    whole = policy_table(exact_planner(world, goal), model)
    for s in set(range(len(nxt))) - set(goal.states):
        if s not in far or far[s] > depth:
            np.testing.assert_array_equal(probs[s], np.full(model.n_actions, 1 / model.n_actions))
        else:
            a = int(probs[s].argmax())
            assert probs[s, a] == 1
            assert far[int(nxt[s, a])] == far[s] - 1
            # ties go to the lowest action, at any depth
            assert a == min(b for b in range(model.n_actions) if far.get(int(nxt[s, b]), np.inf) == far[s] - 1)
            np.testing.assert_array_equal(probs[s], whole[s])
    assert (exact_planner(world, goal, depth=model.n_states).policy(np.arange(len(nxt)))[0] == whole).all()


@pytest.mark.parametrize("slip", [0.0, 0.3])
def test_depth_search_converges_to_the_exact_planner_and_gains_by_depth(slip: float) -> None:
    world = make_world("FourRooms", size=9, **({"slip": slip} if slip else {}))
    judge = Yardstick.of(world, world.goal, gamma=GAMMA)
    exact = policy_table(exact_planner(world, world.goal), world.model)
    found = [
        judge.competence(policy_table(exact_planner(world, world.goal, depth=d), world.model)) for d in (1, 4, 8, 16)
    ]
    assert found == sorted(found)
    assert found[0] < 0.5
    deep = policy_table(exact_planner(world, world.goal, depth=400), world.model)
    np.testing.assert_array_equal(deep, exact)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_the_exact_planner_is_optimal(data: st.DataObject) -> None:
    world = data.draw(worlds())
    goal = data.draw(st.sampled_from(world.goals))
    gamma = data.draw(st.sampled_from([0.8, 0.95]))
    judge = Yardstick.of(world, goal, gamma=gamma)
    assert judge.competence(policy_table(exact_planner(world, goal, gamma=gamma), world.model)) >= 1 - 1e-9


def test_the_exact_planner_is_optimal_however_far_the_goal() -> None:
    world = make_world("OpenGrid", size=41)
    judge = Yardstick.of(world, world.goal, gamma=0.5)
    assert judge.competence(policy_table(exact_planner(world, world.goal, gamma=0.5), world.model)) == 1.0


def test_a_planner_prefers_the_larger_reward_only_when_it_is_worth_the_way() -> None:
    # 0 - 1 - 2 - 3, from 1: a reward of 1 one step to the left, of r two steps to the right
    line = np.array([[0, 1], [0, 2], [1, 3], [2, 3]])[:, :, None]
    for r, action in ((1.05, 0), (1.3, 1)):
        planner = Planner(np.array([1.0, 0, 0, r]), line, np.ones(line.shape), gamma=0.9)
        assert planner.policy(np.array([1]))[0][0].argmax() == action


def test_kinds_and_compute_of_planners() -> None:
    world = make_world("OpenGrid", size=5)
    s, a = world.model.n_states, world.model.n_actions
    exact, deep = exact_planner(world, world.goal), exact_planner(world, world.goal, depth=3)
    learned = learned_planner(world, world.goal, everywhere=True, episodes=2, epsilon=0.1, seed=0)
    assert [p.kind for p in (exact, deep, learned)] == ["planner", "depth_planner", "learned_planner"]
    assert deep.simulations_per_action == 3 * s * a
    assert deep.flops_per_action == 3 * (3 * s * a)
    # far corner: distance 8, and one more backup to see that nothing moves
    assert exact.simulations_per_action == 9 * s * a
    assert compile_policy(exact, world).simulations_per_action == 0


def test_blanks_know_nothing_of_the_goal() -> None:
    world = make_world("FourRooms", size=9)
    learned = learned_planner(world, world.goal, everywhere=True, episodes=20, epsilon=0.1, seed=0)
    trained, _ = train_q_table(world, world.goal, episodes=50, exploring=True, seed=0)
    for agent in (exact_planner(world, world.goal), learned, trained, compile_policy(trained, world)):
        blank = agent.blank(3)
        assert blank.layout == agent.layout
        assert blank.seen_starts is None
        probs = policy_table(blank, world.model)
        np.testing.assert_array_equal(probs, np.full(probs.shape, 0.25))
    # the model of a learned planner is training, that of an exact one is construction
    assert (learned.blank(0).next_state == world.model.n_states).all()
    assert learned.blank(0).counts is not None
    assert not learned.blank(0).counts.any()
    np.testing.assert_array_equal(exact_planner(world, world.goal).blank(0).next_state, world.model.next_state)
    bare = replace(exact_planner(world, world.goal), learned=True).blank(0)
    assert (bare.next_state == world.model.n_states).all()


# -- tables -------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_a_table_of_values_acts_by_them_and_its_view_keeps_its_word(data: st.DataObject) -> None:
    s, a = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    number = st.one_of(st.integers(-3, 3).map(float), st.floats(-1e6, 1e6), st.sampled_from([0.5, 1.0, 2.0, 4.0, -0.0]))
    q = np.array(data.draw(st.lists(number, min_size=s * a, max_size=s * a))).reshape(s, a)
    agent = QTable(q)
    probs = agent.policy(np.arange(s))[0]
    for row, p in zip(q, probs, strict=True):
        want = np.full(a, 1 / a) if len(set(row)) == 1 else np.eye(a)[list(row).index(max(row))]
        np.testing.assert_array_equal(p, want)
    view = agent.table_view()
    for i in range(s):
        for j in range(a):
            cell = Sparse(view.part, [view.cell[i, j]], [view.value[i, j]])
            after = Edit.of(agent, cell).apply(agent).policy(np.arange(s))[0]
            want = probs.copy()
            want[i] = np.eye(a)[j]
            np.testing.assert_array_equal(after, want)


def test_values_of_a_view_are_the_shortest_that_do() -> None:
    # the rivals of the last action are 0.3, -1, 1, 3 and 4
    q = np.array([[0.3, 0.0], [-1.0, -2.0], [1.0, 0.0], [3.0, 0.0], [4.0, 0.0]])
    assert QTable(q).table_view().value[:, 1].tolist() == [1.0, 0.0, 2.0, 4.0, 8.0]


def test_a_view_of_the_largest_values_is_a_clear_error_or_works() -> None:
    world = ModelWorld(FiniteModel.deterministic([[1, 0], [1, 0]]), StateGoal.of([1]))
    agent = QTable(np.full((2, 2), 1.7e308))
    try:
        view = agent.table_view()
    except RetargetError:
        return
    Edit.of(agent, Sparse("q", [view.cell[0, 0]], [view.value[0, 0]])).apply(agent)
    check_agent(agent, world, max_examples=1)


def test_a_goal_table_uses_the_row_of_its_slot_and_edits_that_row() -> None:
    goals = (StateGoal.of([0]), StateGoal.of([2]))
    agent = GoalTable(np.array([[0, 0, 0], [1, 1, 2]]), 1, goals, 2)
    assert agent.policy(np.arange(3))[0].tolist() == [[0, 1], [0, 1], [0.5, 0.5]]
    moved = Edit.of(agent, Slot("goal", 0, [], [])).apply(agent)
    assert moved.policy(np.arange(3))[0].tolist() == [[1, 0]] * 3
    assert moved.table_view().cell[:, 0].tolist() == [0, 1, 2]
    assert agent.table_view().cell[:, 0].tolist() == [3, 4, 5]
    assert agent.training_goals == set(goals)
    assert agent.slot_writes(StateGoal.of([1])) == ()
    assert agent.slot_writes(goals[0]) == (SlotWrite("goal", 0.0, ()),)
    assert len(agent.slot_candidates()) == 2


def test_a_controller_goes_straight_and_stops_at_walls() -> None:
    world = make_world("FourRooms", size=9)
    controller = build_agent(AgentSpec.of("controller"), _recipe(world))
    assert isinstance(controller, Controller)
    probs = policy_table(controller, world.model)
    place, moves = world.coordinates, world.action_moves
    target = place[world.goal.states[0]]
    for s in range(world.model.n_states):
        gap = target - place[s]
        if (gap == 0).all():
            assert (probs[s] == 0.25).all()
        else:
            # the move taken is one that brings it nearest along the longer gap
            assert (moves[probs[s].argmax()] * gap).sum() == np.abs(gap).max()
    flops = controller.flops_per_action
    assert flops == 2 + 4 * 4
    assert controller.blank(0).setpoint.tolist() == [0, 0]
    writes = controller.slot_writes(StateGoal.of([0, 1]))
    assert [dict(w.cells) for w in writes] == [dict(enumerate(place[s])) for s in (0, 1)]
    assert len(controller.slot_candidates()) == world.model.n_states


# -- wrappers -----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_dead_cells_change_no_behaviour_before_or_after_an_edit(data: st.DataObject) -> None:
    world = data.draw(worlds())
    agent = data.draw(agents(world, world.goal))
    part = data.draw(st.sampled_from(sorted(agent.parts)))
    dead = np.arange(data.draw(st.integers(1, 5)))
    padded = Padded(agent, part, dead)
    np.testing.assert_array_equal(policy_table(padded, world.model), policy_table(agent, world.model))
    size = agent.parts[part].array.size
    assert padded.parts[part].array.shape == (size + dead.size,)
    assert padded.blank(0).layout == padded.layout
    assert padded.digest != agent.digest
    # writing a dead cell does nothing; writing a live one does what it does without the dead ones
    new = Sparse(part, [size], np.zeros(1, agent.parts[part].array.dtype))
    rewritten = Edit.of(padded, new).apply(padded)
    np.testing.assert_array_equal(policy_table(rewritten, world.model), policy_table(agent, world.model))
    assert rewritten.parts[part].array[size] == 0
    live = Sparse(part, [0], np.zeros(1, agent.parts[part].array.dtype))
    both = [policy_table(Edit.of(a, live).apply(a), world.model) for a in (padded, agent)]
    np.testing.assert_array_equal(*both)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_an_agent_with_renamed_states_acts_as_before_under_the_new_names(data: st.DataObject) -> None:
    world = data.draw(worlds())
    agent = data.draw(agents(world, world.goal))
    perm = np.array(data.draw(st.permutations(range(world.model.n_states))))
    renamed, place = relabel_agent(agent, perm), relabel_world(world, perm)
    old, new = policy_table(agent, world.model), policy_table(renamed, place.model)
    np.testing.assert_array_equal(new[perm], old)
    assert renamed.layout == agent.layout
    assert renamed.simulations_per_action == agent.simulations_per_action
    assert renamed.flops_per_action == agent.flops_per_action
    for capability in (HasGoalSlot, HasTable):
        assert isinstance(renamed, capability) == isinstance(agent, capability)
    assert relabel_goal(world.goal, perm) == place.goal
    judges = (Yardstick.of(world, world.goal, gamma=GAMMA), Yardstick.of(place, place.goal, gamma=GAMMA))
    assert judges[0].competence(old) == pytest.approx(judges[1].competence(new), abs=1e-12)
    if isinstance(agent, HasGoalSlot) and isinstance(renamed, HasGoalSlot):
        b = data.draw(st.sampled_from(world.goals))
        assert renamed.slot_writes(relabel_goal(b, perm)) == agent.slot_writes(b)
        assert renamed.slot_candidates() == agent.slot_candidates()
    if isinstance(renamed, HasTable):
        view, a = renamed.table_view(), data.draw(st.integers(0, world.model.n_actions - 1))
        for s in range(world.model.n_states):
            cell = Sparse(view.part, [view.cell[s, a]], [view.value[s, a]])
            assert Edit.of(renamed, cell).apply(renamed).policy(np.array([s]))[0][0, a] == 1
    if agent.seen_starts is not None and renamed.seen_starts is not None:
        assert set(renamed.seen_starts) == {int(perm[s]) for s in agent.seen_starts}
    assert not isinstance(renamed, Trainable)


# -- what is frozen -----------------------------------------------------------------------------------------------


def test_parts_are_read_only() -> None:
    for spec in SPECS:
        world = make_world("Shortcut", size=7) if spec.id.startswith("demo_") else make_world("OpenGrid", size=5)
        for part in build_agent(spec, _recipe(world)).parts.values():
            with pytest.raises(ValueError, match="read-only"):
                part.array.reshape(-1)[0] = 0


@pytest.mark.parametrize(
    ("array", "make"),
    [
        (np.zeros((3, 2)), QTable),
        (np.zeros(3, np.int64), lambda x: TablePolicy.from_actions(x, n_actions=2)),
        (np.zeros((1, 3), np.int64), lambda x: GoalTable(x, 0, (StateGoal.of([0]),), 2)),
        (np.zeros(3), lambda x: Planner(x, np.zeros((3, 2, 1), int), np.ones((3, 2, 1)))),
        (np.zeros(2, np.int64), lambda x: Controller(x, np.eye(2), np.array([[0, 0], [0, 1], [1, 0]]), 2)),
    ],
    ids=["values", "policy", "goals", "planner", "controller"],
)
def test_an_agent_does_not_change_when_the_array_it_was_made_from_does(array: np.ndarray, make: Any) -> None:
    want = make(array.copy()).policy(np.arange(3))[0]
    agent = make(array)
    try:
        array.reshape(-1)[0] = 1
    except ValueError:
        return  # as good: the array is frozen with the agent
    np.testing.assert_array_equal(agent.policy(np.arange(3))[0], want)


# -- errors -------------------------------------------------------------------------------------------------------

_CHAIN = np.array([[[1]], [[1]]])
_BAD_AGENTS: dict[str, tuple[Any, str]] = {
    "an alphabet needs at least one symbol, got size=0": (lambda: Categorical(0), "AgentError"),
    "part 'x' has the role 'brain'; roles are table, weight": (
        lambda: Part("x", "brain", np.zeros(1), Real()),  # type: ignore[arg-type]
        "AgentError",
    ),
    "part 'x' is empty; leave out": (lambda: Part("x", "table", np.zeros(0), Real()), "AgentError"),
    "part 'x' holds a value that is not finite; replace": (
        lambda: Part("x", "table", np.array([np.nan]), Real()),
        "AgentError",
    ),
    "part 'x' holds the negative symbol -3": (lambda: Part("x", "table", np.array([-3]), Categorical(2)), "AgentError"),
    "a palette begins with the pure actions": (lambda: TablePolicy(np.array([0]), np.eye(2)), "AgentError"),
    "a policy table needs integer symbols [S], got float64 (1,)": (
        lambda: TablePolicy(np.array([0.5]), default_palette(2)),
        "AgentError",
    ),
    "state 1 holds -1; actions are 0 to 1": (lambda: TablePolicy.from_actions([0, -1], n_actions=2), "AgentError"),
    "state 1 holds action 2; actions are 0 to 1": (
        lambda: TablePolicy.from_actions([0, 2], n_actions=2),
        "AgentError",
    ),
    "a policy needs probabilities [S, A], got shape (2,)": (
        lambda: TablePolicy.from_probabilities(np.ones(2)),
        "AgentError",
    ),
    "policy rows must be non-negative and sum to 1": (
        lambda: TablePolicy.from_probabilities(np.full((1, 2), 0.4)),
        "AgentError",
    ),
    "a table of action values needs shape [S, A], got (2,)": (lambda: QTable(np.zeros(2)), "AgentError"),
    "the value of state 1, action 0 is inf; replace": (
        lambda: QTable(np.array([[0, 0], [np.inf, 0]])),
        "AgentError",
    ),
    "a goal table needs symbols [G, S] with G = 1 goals, got (2, 3)": (
        lambda: GoalTable(np.zeros((2, 3), int), 0, (StateGoal.of([0]),), 2),
        "AgentError",
    ),
    "symbols must be 0 to 2 and the slot 0 to 0": (
        lambda: GoalTable(np.zeros((1, 3), int), 1, (StateGoal.of([0]),), 2),
        "AgentError",
    ),
    "a planner needs reward [S] and next_state, prob [S, A, K], got (3,)": (
        lambda: Planner(np.zeros(3), _CHAIN, np.ones(_CHAIN.shape)),
        "AgentError",
    ),
    "model successors must be 0 to 2 (unknown), got 3": (
        lambda: Planner(np.zeros(2), _CHAIN + 2, np.ones(_CHAIN.shape)),
        "AgentError",
    ),
    "depth must be at least 1, got 0; use None": (
        lambda: Planner(np.zeros(2), _CHAIN, np.ones(_CHAIN.shape), depth=0),
        "AgentError",
    ),
    "gamma must lie strictly between 0 and 1, got 1.0": (
        lambda: Planner(np.zeros(2), _CHAIN, np.ones(_CHAIN.shape), gamma=1.0),
        "AgentError",
    ),
    "a controller needs setpoint [2], gain [A, 2] and position [S, 2], got (3,)": (
        lambda: Controller(np.zeros(3, int), np.eye(2), np.zeros((4, 2), int), 3),
        "AgentError",
    ),
    "agent 'q_table' has no part 'z'; it has q": (
        lambda: Padded(QTable(np.zeros((1, 2))), "z", np.zeros(1)),
        "AgentError",
    ),
    "dead cells must be a list of at least one value, got shape (0,)": (
        lambda: Padded(QTable(np.zeros((1, 2))), "q", np.zeros(0)),
        "AgentError",
    ),
    "agent 'q_table' has no part 'p'": (
        lambda: QTable(np.zeros((1, 2))).with_arrays({"p": np.zeros(1)}),
        "EditError",
    ),
    "part 'q' has shape (1, 2), the new array (3,)": (
        lambda: QTable(np.zeros((1, 2))).with_arrays({"q": np.zeros(3)}),
        "EditError",
    ),
    "expected a finite world, got NoneType; make one with retarget.make_world": (
        lambda: QTable(np.zeros((1, 2))).retrained(None, StateGoal.of([0]), budget=1, seed=0),
        "AgentError",
    ),
    "retraining a learned planner needs a finite world and the planner's own data counts": (
        lambda: LearnedPlanner(np.zeros(2), _CHAIN, np.ones(_CHAIN.shape)).retrained(
            None, StateGoal.of([0]), budget=1, seed=0
        ),
        "AgentError",
    ),
}


@pytest.mark.parametrize("words", _BAD_AGENTS)
def test_a_malformed_agent_is_one_clear_line(words: str) -> None:
    make, kind = _BAD_AGENTS[words]
    with pytest.raises(RetargetError) as caught:
        make()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert type(caught.value).__name__ == kind


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (AgentSpec.of("planer"), "unknown agent 'planer' (did you mean 'planner'?)"),
        (
            AgentSpec.of("depth_planner", dept=2),
            "unknown option of agent 'depth_planner' 'dept' (did you mean 'depth'?)",
        ),
        (AgentSpec.of("depth_planner", depth="2"), "option 'depth' of agent 'depth_planner' takes a value like 8"),
        (AgentSpec.of("depth_planner", depth=True), "takes a value like 8, got True"),
        (AgentSpec.of("q_table", starts="two"), "starts of agent 'q_table' must be 'one' or 'exploring', got 'two'"),
        (AgentSpec.of("q_table", episodes=-1), "episodes of agent 'q_table' must be at least 0, got -1"),
        (
            AgentSpec.of("learned_planner", data="far"),
            "data of agent 'learned_planner' must be 'near' or 'everywhere', got 'far'",
        ),
        (AgentSpec.of("depth_planner", depth=0), "depth of agent 'depth_planner' must be at least 1, got 0"),
    ],
)
def test_a_spec_that_cannot_be_built_says_why(spec: AgentSpec, words: str) -> None:
    world = make_world("OpenGrid", size=5)
    with pytest.raises((StudyError, AgentError)) as caught:
        build_agent(spec, _recipe(world))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_specs_say_what_they_are() -> None:
    assert AgentSpec.of("planner", compiled=True).label == "planner, compiled"
    assert AgentSpec.of("q_table", starts="one", episodes=2).label == "q_table(episodes=2, starts=one)"
    assert AgentSpec.of("planner", name="mine").label == "mine"
    assert AgentSpec.of("q_table", episodes=2).as_dict() == {"id": "q_table", "compiled": False, "episodes": 2}
    check_spec(AgentSpec.of("q_table", epsilon=1))


def test_a_goal_table_is_trained_on_the_goals_of_its_plan_and_on_its_own() -> None:
    world = make_world("OpenGrid", size=5)
    plan = GoalPlan.draw(world, n_pairs=4, seed=2, pool=6)
    goal = plan.held_out[0]
    agent = build_agent(AgentSpec.of("goal_table"), Recipe(world, goal, 2, GAMMA, plan))
    assert isinstance(agent, GoalTable)
    assert agent.training_goals == {goal, *plan.training}
    assert agent.goals[agent.active] == goal
    assert list(agent.goals) == sorted(agent.goals)
    for i, g in enumerate(agent.goals):
        judge = Yardstick.of(world, g, gamma=GAMMA)
        assert judge.competence(policy_table(replace(agent, active=i), world.model)) == 1.0


def test_a_goal_that_covers_every_start_cannot_be_trained_for() -> None:
    world = make_world("OpenGrid", size=5)
    everything = StateGoal.of(range(world.model.n_states), label="all")
    with pytest.raises(GoalError, match=r"goal all covers every start of OpenGrid\(size=5\); choose a smaller goal"):
        train_q_table(world, everything, episodes=1, exploring=True, seed=0)


def test_a_model_cannot_be_learned_where_no_start_is_left() -> None:
    world = ModelWorld(FiniteModel.deterministic([[1], [0]]), StateGoal.of([0]))
    # no episodes, so that nothing outside the array of starts is read while this is not refused
    with pytest.raises(GoalError):
        learned_planner(world, StateGoal.of([0, 1]), everywhere=True, episodes=0, epsilon=0.1, seed=0)


class _Forgetful(TablePolicy):
    def policy(self, obs: np.ndarray, carry: object = None) -> tuple[np.ndarray, object]:
        return super().policy(obs)[0], "memory"


@dataclass(frozen=True, eq=False)
class _Partial(Agent):
    """Knows two states, and does not say so."""

    kind = "partial"

    @property
    def parts(self) -> dict[str, Part]:
        return {"t": Part("t", "table", np.zeros(2), Real())}

    def with_arrays(self, arrays: Any) -> _Partial:
        self.check_arrays(arrays)
        return self

    def policy(self, obs: np.ndarray, carry: object = None) -> tuple[np.ndarray, object]:
        return np.full((2, 4), 0.25)[obs], None

    def blank(self, seed: int) -> _Partial:
        return self


def test_agents_that_do_not_fit_the_world_are_refused() -> None:
    world = make_world("OpenGrid", size=5)
    n = world.model.n_states
    with pytest.raises(AgentError, match="has memory; a table of its behaviour over states does not exist"):
        compile_policy(_Forgetful(np.zeros(n, int), default_palette(4)), world)
    with pytest.raises(AgentError, match=f"is for a world of 3 states, this one has {n}; measure it in its own"):
        compile_policy(TablePolicy.from_actions([0, 0, 0], n_actions=4), world)
    with pytest.raises(AgentError, match="does not know all 25 states of the world"):
        compile_policy(_Partial(), world)
    with pytest.raises(AgentError, match=r"needs probabilities of shape \(25, 4\), got \(25, 2\)"):
        compile_policy(TablePolicy.from_actions([0] * n, n_actions=2), world)
    with pytest.raises(AgentError, match="agent 'table_policy' has no table"):
        from retarget.agents.wrappers import RelabelledTable

        RelabelledTable(_NoTable(np.zeros(n, int), default_palette(4)), np.arange(n)).table_view()
    with pytest.raises(EditError, match="has no part"):
        relabel_agent(exact_planner(world, world.goal), np.arange(n)).with_arrays({"x": np.zeros(1)})
    assert type(relabel_agent(_Partial(), np.arange(n))) is Relabelled


class _NoTable(TablePolicy):
    table_view = None  # type: ignore[assignment]


def test_a_world_of_a_bare_model_offers_the_goals_that_can_be_reached() -> None:
    # 0 -> 1 -> 2, and 3 that nothing leads to
    world = ModelWorld(FiniteModel.deterministic([[1], [2], [2], [0]]), StateGoal.of([2]))
    assert [g.states for g in world.goals] == [(0,), (1,), (2,)]
    assert replace(world, starts=np.array([1])).goals == (StateGoal.of([2]),)
    assert world.as_goal(2) == world.as_goal([2]) == world.as_goal(StateGoal.of([2]))
    assert world.as_state(np.int64(1)) == 1
    own = (StateGoal.of([1]),)
    assert replace(world, goal_list=own).goals == own
