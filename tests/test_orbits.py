"""Retargetability over orbits: closed forms for planted agents, and the inequality of the theorem."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from retarget.agents import compile_policy, exact_planner
from retarget.agents.tabular import GoalTable, TablePolicy
from retarget.agents.wrappers import ModelWorld
from retarget.envs import make_world
from retarget.errors import ProbeError
from retarget.exact import Yardstick, policy_table
from retarget.goal import StateGoal
from retarget.probe import Outcome, Subject
from retarget.probes.orbits import Orbit, OrbitRetargetability
from retarget.testing import check_probe
from retarget.world import FiniteModel, FiniteWorld

GAMMA = 0.95
OPEN = make_world("OpenGrid", size=5)
#: Each action leads straight to one state: who wants a state is there in one step, and serves no other.
STAR = ModelWorld(FiniteModel.deterministic([list(range(12))] * 12), StateGoal.of([0]))


def _planted(aims: list[int], world: FiniteWorld = STAR) -> GoalTable:
    """An agent whose slot takes every goal of the star, and which then goes to a goal of its own choosing."""
    rows = np.array([[g] * world.model.n_states for g in aims])
    return GoalTable(rows, 0, world.goals[: len(aims)], world.model.n_actions)  # type: ignore[arg-type]


def _measured(agent: object, world: FiniteWorld, goal: StateGoal, **options: int) -> Outcome:
    return OrbitRetargetability(**options).measure(Subject(agent, world, goal))  # type: ignore[arg-type]


def test_orbit_retargetability_keeps_the_universal_laws() -> None:
    check_probe(OrbitRetargetability(episodes=16), max_examples=25)


def test_a_planner_reaches_all_of_its_orbit() -> None:
    outcome = _measured(exact_planner(OPEN, OPEN.goals[3]), OPEN, OPEN.goals[3])
    n = len(OPEN.goals)
    assert outcome["orbit_size"].value == n and outcome["orbit_reached"].value == 1.0
    assert outcome["orbit_prefers_a"].value == (n // 4) / n
    assert outcome["orbit_prefers_b"].value == 1 - (n // 4) / n
    assert outcome["orbit_holds"].value == 1.0


def test_an_agent_that_takes_no_parameter_reaches_one_of_n() -> None:
    agent = TablePolicy.from_actions([0] * 12, n_actions=12)
    outcome = _measured(agent, STAR, STAR.goals[0])
    still = {m.metric: m.value for m in outcome.measurements if "left as it is" in str(m.protocol)}
    assert still["orbit_reached"] == still["orbit_reached_constant"] == 1 / 12
    assert (still["orbit_prefers_a"], still["orbit_prefers_b"], still["orbit_holds"]) == (1.0, 0.0, 0.0)
    assert still["orbit_ratio"] == 0.0
    trained = {m.metric: m.value for m in outcome.measurements if "retrained" in str(m.protocol)}
    assert trained["orbit_reached"] == 1.0 and trained["orbit_holds"] == 1.0


@given(st.permutations(range(12)))
@settings(max_examples=25, deadline=None)
def test_whatever_is_renamed_a_retargetable_agent_obeys_the_theorem(aims: list[int]) -> None:
    agent = _planted(aims)
    outcome = _measured(agent, STAR, StateGoal.of([aims[0]]))
    assert outcome["orbit_multiple"].value == 3.0
    assert outcome["orbit_ratio"].value == 3.0
    assert outcome["orbit_holds"].value == 1.0
    # it reaches what it is told where it chooses just that
    assert outcome["orbit_reached"].value == sum(i == g for i, g in enumerate(aims)) / 12


@given(st.lists(st.integers(0, 11), min_size=12, max_size=12))
@settings(max_examples=40, deadline=None)
def test_preferences_are_counted_as_they_were_planted(aims: list[int]) -> None:
    goal = StateGoal.of([aims[0]])
    outcome = _measured(_planted(aims), STAR, goal)
    orbit = Orbit.of(STAR, goal, gamma=GAMMA, most=48, seed=0)
    small = {g.states[0] for g, s in zip(orbit.goals, orbit.small, strict=True) if s}
    assert goal.states[0] in small and len(small) == 3
    n_a = sum(g in small for g in aims)
    assert outcome["orbit_prefers_a"].value == n_a / 12
    assert outcome["orbit_prefers_b"].value == (12 - n_a) / 12
    assert outcome["orbit_holds"].value == float(12 - n_a >= 3 * n_a)
    assert outcome["orbit_ratio"].value == (12 - n_a) / n_a


def test_a_goal_table_reaches_the_goals_that_it_knows() -> None:
    goals = OPEN.goals[:5]
    rows = np.stack([compile_policy(exact_planner(OPEN, g), OPEN).symbols for g in goals])
    outcome = _measured(GoalTable(rows, 0, tuple(goals), 4), OPEN, goals[0])
    # what is told but not known leaves it at goal A: count by hand which of these A's policy serves anyway
    policy = policy_table(exact_planner(OPEN, goals[0]), OPEN.model)
    served = [g in goals or Yardstick.of(OPEN, g, gamma=GAMMA).competence(policy) >= 0.95 for g in OPEN.goals]
    assert outcome["orbit_reached"].value == pytest.approx(np.mean(served), abs=1e-12)


def test_a_large_orbit_is_sampled_and_says_so() -> None:
    world = make_world("FourRooms", size=9)
    outcome = _measured(exact_planner(world, world.goals[7]), world, world.goals[7], most=8)
    reached = outcome["orbit_reached"]
    assert (outcome["orbit_size"].value, reached.n) == (8.0, 8)
    wilson = binomtest(8, 8).proportion_ci(method="wilson")
    assert reached.ci_low == pytest.approx(wilson.low, abs=1e-4)
    assert reached.ci_high == pytest.approx(1.0, abs=1e-9)
    again = _measured(exact_planner(world, world.goals[7]), world, world.goals[7], most=8)
    assert again.measurements == outcome.measurements
    whole = _measured(exact_planner(world, world.goals[7]), world, world.goals[7])
    assert whole["orbit_reached"].ci_low is None


def test_goals_of_several_states_have_an_orbit_of_their_own() -> None:
    goals = tuple(StateGoal.of(states) for states in ([0, 1], [2, 3], [4, 5], [6, 7], [8]))
    world = ModelWorld(STAR.model, goals[0], goal_list=goals)
    outcome = _measured(exact_planner(world, goals[0]), world, goals[0])
    assert outcome["orbit_size"].value == 4.0
    assert outcome["orbit_reached"].value == 1.0


def test_an_agent_without_a_goal_and_a_world_without_others_have_nothing_to_measure() -> None:
    idle = TablePolicy.from_probabilities(np.full((12, 12), 1 / 12))
    assert "it has no goal to move" in _measured(idle, STAR, STAR.goals[0])["orbit_reached"].reason
    alone = ModelWorld(STAR.model, STAR.goal, goal_list=(STAR.goals[0],))
    assert "the orbit is goal A alone" in _measured(_planted([0]), alone, STAR.goals[0])["orbit_reached"].reason


@pytest.mark.parametrize("options", [{"most": 1}, {"most": 2.0}, {"episodes": 0}, {"episodes": True}])
def test_bad_options_are_refused_in_one_line(options: dict[str, int]) -> None:
    with pytest.raises(ProbeError) as error:
        OrbitRetargetability(**options)
    assert "\n" not in str(error.value)
