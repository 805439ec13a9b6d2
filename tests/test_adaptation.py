"""Adaptation: what a change of the world is, against plain loops; who adapts, and who only does where it was shown."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from retarget.agent import Agent
from retarget.agents import compile_policy, exact_planner
from retarget.agents.controller import Controller
from retarget.agents.planner import learned_planner
from retarget.agents.tabular import GoalTable
from retarget.agents.wrappers import ModelWorld
from retarget.envs import make_world
from retarget.errors import GoalError, ProbeError
from retarget.exact import policy_table
from retarget.goal import StateGoal
from retarget.probe import Outcome, Subject
from retarget.probes.adaptation import Adaptation, Change, local_change
from retarget.testing import check_probe, worlds
from retarget.world import FiniteWorld

GAMMA = 0.95
FOUR_ROOMS = make_world("FourRooms", size=9)
MAZE = make_world("Maze", size=9)


def _measured(agent: Agent, world: FiniteWorld, goal: StateGoal, *changes: str) -> Outcome:
    return Adaptation(changes=changes).measure(Subject(agent, world, goal))


# ------------------------------------------------------------------------------------------------ what changes


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_a_change_is_local_and_cuts_nobody_off(data: st.DataObject) -> None:
    world = data.draw(worlds())
    goal = data.draw(st.sampled_from(world.goals))
    change: Change = data.draw(st.sampled_from(("wall", "turn", "reward")))
    try:
        local = local_change(world, goal, change, radius=data.draw(st.integers(1, 3)), gamma=GAMMA)
    except GoalError:
        return
    old, new = world.model, local.world.model
    differs = (old.next_state != new.next_state).any(2) | (old.prob != new.prob).any(2)
    assert {(int(s), int(a)) for s, a in np.argwhere(differs)} == {(int(s), int(a)) for s, a in local.at}
    assert local.moved_reward == (change == "reward") == (not local.at.size)
    assert local.inside[local.at[:, 0]].all() if local.at.size else local.inside[list(local.goal.states)].all()
    # all that changes is done in one state, next to the goal
    assert len(set(local.at[:, 0].tolist())) <= 1
    for s in set(local.at[:, 0].tolist()):
        assert np.isin(old.next_state[s], goal.states).any()
    before, after = (_can_reach(m, local.goal if change == "reward" else goal) for m in (old, new))
    assert after[world.start_states][before[world.start_states]].all()


def _can_reach(model: object, goal: StateGoal) -> np.ndarray:
    """By repeated squaring of the graph: nothing of the library's searches."""
    edges = model.dense().max(1) > 0  # type: ignore[attr-defined]
    reach = np.eye(len(edges), dtype=bool) | edges
    for _ in range(len(edges).bit_length()):
        reach = (reach.astype(int) @ reach.astype(int)) > 0
    return reach[:, list(goal.states)].any(1)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_nobody_leaves_a_fence_and_nothing_inside_it_changes(data: st.DataObject) -> None:
    world = data.draw(worlds())
    goal = data.draw(st.sampled_from(world.goals))
    try:
        local = local_change(world, goal, "reward", radius=data.draw(st.integers(1, 2)), gamma=GAMMA)
    except GoalError:
        assume(False)
    fenced, free, inside = local.fenced.model, local.world.model, local.inside
    assert inside[fenced.next_state[inside]].all()
    stays = free.next_state == fenced.next_state
    assert stays[~inside].all()
    assert np.array_equal(stays[inside], inside[free.next_state[inside]])
    assert np.isin(local.fenced.start_states, np.flatnonzero(inside)).all()


def test_of_the_walls_the_one_that_costs_most_is_built() -> None:
    # two doors into the goal, 2: from 1 it is one step, from 3 the world's long way round
    ring = [[(s + 1) % 8, (s - 1) % 8] for s in range(8)]
    from retarget.world import FiniteModel

    world = ModelWorld(FiniteModel.deterministic(ring), StateGoal.of([2]), np.array([0, 1]))
    local = local_change(world, StateGoal.of([2]), "wall", radius=1, gamma=GAMMA)
    assert local.at.tolist() == [[1, 0]]
    assert local.world.model.next_state[1, :, 0].tolist() == [1, 0]


# ------------------------------------------------------------------------------------------------ who adapts


def test_adaptation_keeps_the_universal_laws() -> None:
    check_probe(Adaptation(episodes=32), max_examples=25)


@pytest.mark.parametrize("world", [FOUR_ROOMS, MAZE])
@pytest.mark.parametrize("i", [0, 11, 25])
def test_a_planner_that_is_told_adapts_everywhere(world: FiniteWorld, i: int) -> None:
    outcome = _measured(exact_planner(world, world.goals[i]), world, world.goals[i], "reward", "turn")
    values = {m.metric: [] for m in outcome.measurements}  # type: ignore[var-annotated]
    for m in outcome.measurements:
        values[m.metric].append(m.value)
    for metric in ("local_competence", "global_competence", "global_competence_all"):
        assert np.allclose(values[metric], 1.0, atol=1e-12)
    assert np.allclose(values["loca_gap"], 0.0, atol=1e-12)
    assert outcome.measurements[0].protocol is not None and outcome.measurements[0].protocol.endswith("by slot")


def test_a_learned_planner_is_told_of_transitions_through_its_model() -> None:
    goal = FOUR_ROOMS.goals[0]
    agent = learned_planner(FOUR_ROOMS, goal, everywhere=True, episodes=400, epsilon=0.1, seed=0)
    outcome = _measured(agent, FOUR_ROOMS, goal, "wall")
    assert outcome["global_competence"].value == 1.0
    assert "adapted by model" in str(outcome["global_competence"].protocol)


@pytest.mark.parametrize("world", [FOUR_ROOMS, MAZE])
def test_a_table_learns_where_it_is_shown_alone(world: FiniteWorld) -> None:
    goal = world.goals[0]
    table = compile_policy(exact_planner(world, goal), world)
    outcome = _measured(table, world, goal, "reward")
    assert outcome["local_competence"].value > 0.95  # type: ignore[operator]
    assert outcome["global_competence_all"].value > 0.95  # type: ignore[operator]
    assert outcome["loca_gap"].value > 0.5  # type: ignore[operator]
    # by a plain walk: outside the local states the table still does what it did, and what it learned inside is right
    local = local_change(world, goal, "reward", radius=3, gamma=GAMMA)
    before = policy_table(table, world.model).argmax(1)
    ratios = []
    for start in world.start_states[~local.inside[world.start_states]].tolist():
        s, steps = start, 0
        while not local.inside[s] and steps < 200:
            s, steps = int(world.model.next_state[s, before[s], 0]), steps + 1
        ratios.append(0.0 if not local.inside[s] else 1.0)
    # a start is served only if the old policy runs into the local states, and then at most as well as the best
    assert outcome["global_competence"].value <= np.mean(ratios) + 1e-12  # type: ignore[operator]
    assert outcome["global_before"].value <= outcome["global_competence"].value + 1e-12  # type: ignore[operator]


def test_a_goal_table_is_told_of_goals_that_it_knows_and_retrained_toward_others() -> None:
    world = MAZE
    far = local_change(world, world.goals[0], "reward", radius=3, gamma=GAMMA).goal
    for second, route in ((far, "slot"), (world.goals[1], "episodes")):
        goals = (world.goals[0], second)
        rows = np.stack([compile_policy(exact_planner(world, g), world).symbols for g in goals])
        outcome = _measured(GoalTable(rows, 0, goals, 4), world, goals[0], "reward")
        assert str(outcome["loca_gap"].protocol).endswith(route)
        assert (outcome["global_competence"].value == 1.0) == (route == "slot")


def test_who_can_neither_be_told_nor_retrained_has_nothing_to_measure() -> None:
    position, moves = FOUR_ROOMS.coordinates, FOUR_ROOMS.action_moves
    assert position is not None and moves is not None
    goal = FOUR_ROOMS.goals[0]
    agent = Controller(position[goal.states[0]], moves.astype(np.float64), position, 9)
    outcome = _measured(agent, FOUR_ROOMS, goal, "wall", "reward")
    by_change = {str(m.protocol).split(";")[0]: m for m in outcome.measurements if m.metric == "loca_gap"}
    wall = next(m for p, m in by_change.items() if "wall" in p)
    assert wall.status == "not_applicable" and "neither be retrained nor told" in wall.reason
    assert sum(m.status == "ok" for m in by_change.values()) == 1


def test_a_network_is_tuned_on_what_is_local() -> None:
    from retarget.catalogue.entries import AgentSpec, Recipe, build_agent

    world = make_world("OpenGrid", size=5)
    goal = world.goals[0]
    agent = build_agent(AgentSpec.of("network", updates=600, hidden=16), Recipe(world, goal, 0, GAMMA))
    outcome = Adaptation(changes=("reward",), radius=2).measure(Subject(agent, world, goal))
    assert outcome["global_before"].value < 0.2  # type: ignore[operator]
    assert outcome["local_competence"].value > 0.95  # type: ignore[operator]
    assert outcome["global_competence_all"].value > 0.95  # type: ignore[operator]
    assert outcome["local_competence"].spend.grad_steps == 300  # type: ignore[union-attr]


# ------------------------------------------------------------------------------------------------ nothing to measure


@pytest.mark.parametrize(
    "options",
    [{"changes": ()}, {"changes": ("flood",)}, {"changes": ("wall", "wall")}, {"radius": 0}, {"episodes": 1.5},
     {"updates": True}],
)  # fmt: skip
def test_bad_options_are_refused_in_one_line(options: dict[str, object]) -> None:
    with pytest.raises(ProbeError) as error:
        Adaptation(**options)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_a_goal_at_the_end_of_a_corridor_has_no_wall_that_cuts_nobody_off() -> None:
    from retarget.world import FiniteModel

    line = ModelWorld(FiniteModel.deterministic([[1, 0], [2, 0], [3, 1], [3, 2]]), StateGoal.of([3]))
    outcome = _measured(exact_planner(line, line.goal), line, line.goal, "wall")
    assert {m.status for m in outcome.measurements} == {"not_applicable"}
    assert "every wall cuts off some start" in outcome["loca_gap"].reason
