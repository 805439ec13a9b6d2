"""Laws of judges, lessons and behaviour tables: one verb for agents with memory and without, in any kind of world."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import retarget
from retarget.agent import Agent, Part
from retarget.agents import TablePolicy, compile_policy, exact_planner
from retarget.agents.behaviour import EPISODES, BehaviourTable, Tiles, behaviour_table
from retarget.code import ENUMERATIVE
from retarget.edit import Edit, Sparse
from retarget.editors import Task, prove
from retarget.editors.exceptions import ExceptionEditor, behaviour_of
from retarget.errors import AgentError, GoalError, WorldError
from retarget.exact import best_actions, optimal_values
from retarget.goal import RegionGoal, StateGoal
from retarget.judge import judge_of
from retarget.lessons import agreement, lessons_of
from retarget.probe import Subject
from retarget.probes import PROBES
from retarget.testing import agents, goals, worlds
from retarget.world import BoxWorld, FiniteWorld

GAMMA = 0.95


@dataclass(frozen=True, eq=False)
class Remembering(Agent):
    """Acts as the table inside it does, and counts its steps: memory that changes nothing before `limit` steps."""

    inner: TablePolicy
    limit: int = 1_000_000
    kind: str = "remembering"

    @property
    def parts(self) -> Mapping[str, Part]:
        return self.inner.parts

    def with_arrays(self, arrays: Mapping[str, np.ndarray]) -> Remembering:
        return Remembering(self.inner.with_arrays(arrays), self.limit)

    def blank(self, seed: int) -> Remembering:
        return Remembering(self.inner.blank(seed), self.limit)

    @property
    def config(self) -> Mapping[str, object]:
        return {"limit": self.limit}

    @property
    def has_memory(self) -> bool:
        return True

    def policy(self, obs: np.ndarray, carry: object = None) -> tuple[np.ndarray, object]:
        time = int(carry) if isinstance(carry, int) else 0
        probs, _ = self.inner.policy(obs)
        if time >= self.limit:  # from here on it always takes action 0
            probs = np.eye(probs.shape[1])[np.zeros(len(obs), dtype=int)]
        return probs, time + 1


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_memory_that_changes_nothing_does_not_change_the_score(data: st.DataObject) -> None:
    world = data.draw(worlds().filter(lambda w: w.model.is_deterministic))
    goal = data.draw(goals(world))
    other = data.draw(goals(world))
    mixed = exact_planner(world, other).policy(np.arange(world.model.n_states))[0]
    table = TablePolicy.from_actions(mixed.argmax(1), n_actions=world.model.n_actions)
    judge = judge_of(world, goal, gamma=GAMMA)
    known, followed = judge.score(table), judge.score(Remembering(table))
    assert followed.competence == pytest.approx(known.competence, abs=1e-6)
    assert followed.success == pytest.approx(known.success, abs=1e-12)
    assert followed.env_steps > 0 and known.env_steps == 0


def test_memory_that_draws_is_refused() -> None:
    world = retarget.make_world("OpenGrid", size=5)
    uniform = TablePolicy.from_probabilities(np.full((world.model.n_states, 4), 0.25))
    with pytest.raises(AgentError, match="greedy"):
        judge_of(world, world.goal, gamma=GAMMA).score(Remembering(uniform))


def test_memory_that_runs_out_is_seen() -> None:
    world = retarget.make_world("OpenGrid", size=5)
    goal = world.as_goal((4, 4))
    table = compile_policy(exact_planner(world, goal), world)
    judge = judge_of(world, goal, gamma=GAMMA)
    short = judge.score(Remembering(table, limit=1))
    assert judge.score(Remembering(table)).success == 1.0
    # with one step left, only neighbours of the goal reach it, unless action 0 leads there
    assert 0 < short.success < 0.5


def test_memory_in_a_world_of_chance_is_refused() -> None:
    world = retarget.make_world("OpenGrid", size=5, slip=0.2)
    table = compile_policy(exact_planner(world, world.goal), world)
    with pytest.raises(AgentError, match="a world without chance"):
        judge_of(world, world.goal, gamma=GAMMA).score(Remembering(table))


def test_goals_of_another_kind_are_refused() -> None:
    grid, car = retarget.make_world("OpenGrid", size=5), retarget.make_world("MountainCar")
    with pytest.raises(WorldError, match=r"make it with world\.as_goal"):
        judge_of(grid, car.goal, gamma=GAMMA)
    with pytest.raises(GoalError, match="cannot have"):
        Subject(exact_planner(grid, grid.goal), grid, car.goal)
    with pytest.raises(GoalError, match="half width above 0"):
        RegionGoal.of(position=(0.0, 0.0))
    assert RegionGoal.of(x=(1.0, 0.5), hold=True) == RegionGoal.of(hold=True, x=(1, 0.5), label="other words")


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_lessons_of_a_finite_world_are_its_optimal_actions(data: st.DataObject) -> None:
    world = data.draw(worlds())
    goal = data.draw(goals(world))
    lessons = lessons_of(world, goal, gamma=GAMMA)
    reached = optimal_values(world.model, goal, gamma=GAMMA) > 0
    expected = [s for s in range(world.model.n_states) if reached[s] and s not in goal.states]
    assert lessons.obs.tolist() == expected
    assert ((lessons.right > 0) == best_actions(world.model, goal, gamma=GAMMA)[lessons.obs]).all()
    assert lessons.right.sum(1) == pytest.approx(1) and lessons.weight.sum() == pytest.approx(1)
    # whoever does what is right has the agreement of 1, and the competence of 1
    table = np.full((world.model.n_states, world.model.n_actions), 1.0 / world.model.n_actions)
    table[lessons.obs] = lessons.right
    pupil = TablePolicy.from_probabilities(table)
    assert agreement(pupil, world, lessons) == pytest.approx(1)
    assert judge_of(world, goal, gamma=GAMMA).score(pupil).competence == pytest.approx(1, abs=1e-6)


def test_lessons_in_episodes_are_the_same_lessons_in_order() -> None:
    world = retarget.make_world("FourRooms", size=9)
    goal = world.goals[3]
    whole = lessons_of(world, goal, gamma=GAMMA)
    episodes = lessons_of(world, goal, gamma=GAMMA, steps=12, n=10, seed=4)
    assert len(episodes) == 120 and episodes.steps == 12
    for row in np.flatnonzero(episodes.weight):
        at = whole.obs.tolist().index(episodes.obs[row])
        assert (whole.right[at] == episodes.right[row]).all()
    # one step of the right action leads from each row to the next, until the goal
    obs = episodes.obs.reshape(10, 12)
    live = episodes.weight.reshape(10, 12) > 0
    for e in range(10):
        for t in range(11):
            if live[e, t]:
                allowed = world.model.next_state[obs[e, t], episodes.right[e * 12 + t] > 0, 0]
                assert obs[e, t + 1] in allowed
            else:
                assert obs[e, t + 1] == obs[e, t] == goal.states[0]


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_a_behaviour_table_without_exceptions_is_the_agent(data: st.DataObject) -> None:
    world = data.draw(worlds())
    agent = data.draw(agents(world, data.draw(goals(world))))
    none = np.zeros((0,), dtype=np.int64)
    table = behaviour_table(agent, world, first=none, horizon=0)
    states = np.arange(world.model.n_states)
    assert (table.policy(states)[0] == agent.policy(states)[0]).all()
    assert behaviour_table(table, world, first=none, horizon=0) is table
    state, action = data.draw(st.sampled_from(states.tolist())), data.draw(st.integers(0, world.model.n_actions - 1))
    edited = Edit.of(table, Sparse("states", [state], [1 + action])).apply(table)
    after = edited.policy(states)[0]
    assert after[state].tolist() == np.eye(world.model.n_actions)[action].tolist()
    assert (np.delete(after, state, axis=0) == np.delete(agent.policy(states)[0], state, axis=0)).all()


@given(st.integers(1, 6), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_tiles_cover_the_space_and_are_boxes(bins: int, axes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    low = rng.normal(size=axes)
    tiles = Tiles(bins, low, low + rng.uniform(0.1, 2, size=axes))
    obs = rng.normal(size=(50, axes)) * 3
    cell = tiles.cell(obs)
    assert cell.min() >= 0 and cell.max() < tiles.n_cells
    # an independent reading: the digits of the cell are the bins along each axis
    for x, c in zip(obs, cell, strict=True):
        digits = []
        for axis in range(axes):
            edges = np.linspace(tiles.low[axis], tiles.high[axis], bins + 1)[1:-1]
            digits.append(int(np.searchsorted(edges, x[axis], side="right")))
        value = 0
        for d in digits:
            value = value * bins + d
        assert value == c


@dataclass(frozen=True, eq=False)
class Expertly(Agent):
    """Does what the expert of a world does for one goal; observations must be the state."""

    world: BoxWorld
    goal: RegionGoal
    kind: str = "expertly"

    @property
    def parts(self) -> Mapping[str, Part]:
        return {}

    def with_arrays(self, arrays: Mapping[str, np.ndarray]) -> Expertly:
        return self

    def blank(self, seed: int) -> Expertly:
        return self

    @property
    def config(self) -> Mapping[str, object]:
        return {"goal": self.goal.label}

    def policy(self, obs: np.ndarray, carry: object = None) -> tuple[np.ndarray, object]:
        assert self.world.n_actions is not None
        return np.eye(self.world.n_actions)[self.world.expert(self.goal).act(np.asarray(obs, np.float64))], None


@pytest.fixture(scope="module")
def car_task() -> Task:
    world = retarget.make_world("MountainCar")
    judge = judge_of(world, world.as_goal("left hill"), gamma=world.gamma, n=16)
    return Task(Expertly(world, world.goal), world, judge, 0.9)


def test_exceptions_to_an_expert_give_it_another_goal(car_task: Task) -> None:
    table = behaviour_of(car_task.agent, car_task)
    task = Task(table, car_task.world, car_task.judge, car_task.required)
    assert not task.enough(task.judge.score(table).competence)
    found = ExceptionEditor(trials=12, rounds=2).search(task)
    good = [c for c in found if task.enough(c.competence)]
    assert good, "no exceptions were found"
    forms = {p.part for c in good for p in c.edit.patches}
    assert any(name.startswith("tiles_") for name in forms)
    for candidate in good[:4]:
        prove(task, candidate)
        word = ENUMERATIVE.encode(candidate.edit, table.layout)
        assert word.n_bits == candidate.bits
        assert ENUMERATIVE.decode(word.data, table.layout, agent_digest=table.digest) == candidate.edit


def test_exceptions_of_episodes_happen_there_and_then_only(car_task: Task) -> None:
    table = behaviour_of(car_task.agent, car_task)
    world = car_task.world
    assert isinstance(world, BoxWorld) and isinstance(table, BehaviourTable)
    before = car_task.judge.traces(table)  # type: ignore[union-attr]
    horizon = table.episodes.shape[1]
    start, step = 3, 5
    other = 1 + (int(before.actions[step, start]) + 1) % 3
    edited = Edit.of(table, Sparse(EPISODES, [start * horizon + step], [other])).apply(table)
    after = car_task.judge.traces(edited)  # type: ignore[union-attr]
    n = min(len(before.actions), len(after.actions))
    same = [i for i in range(before.actions.shape[1]) if i != start]
    assert (before.actions[:n, same] == after.actions[:n, same]).all()
    assert (before.actions[:step, start] == after.actions[:step, start]).all()
    assert after.actions[step, start] == other - 1 != before.actions[step, start]


def test_retargetability_of_behaviour_alone_is_zero_in_a_continuous_world(car_task: Task) -> None:
    table = behaviour_of(car_task.agent, car_task)
    world = car_task.world
    assert isinstance(world, BoxWorld)
    probe = PROBES["retargetability"](editors=(ExceptionEditor(trials=4, rounds=1),), draws=2)  # type: ignore[call-arg]
    subject = Subject(table, world, world.goal, world.as_goal("left hill"), gamma=world.gamma, level=0.8)
    outcome = probe.measure(subject)
    assert outcome["retargetability"].status == "ok", outcome["retargetability"].reason
    assert outcome["retargetability"].value == 0.0
    assert outcome["cells_bound"].status == "not_applicable"
    fresh = outcome["competence_b_fresh"]
    assert fresh.status == "ok" and fresh.n is not None and fresh.n > 200 and fresh.ci_low is not None
    assert outcome["behaviour_bits"].value == outcome["edit_bits"].value


def test_lessons_of_a_visitor_are_where_it_goes(car_task: Task) -> None:
    world = car_task.world
    assert isinstance(world, BoxWorld) and not isinstance(world, FiniteWorld)
    goal = world.as_goal("left hill")
    own = lessons_of(world, goal, gamma=world.gamma, n=6)
    visited = lessons_of(world, goal, gamma=world.gamma, n=6, visited_by=car_task.agent)
    live = visited.obs[visited.weight > 0]
    # the visitor drives to the right hill, where the teacher of the left one never goes
    assert live[:, 0].max() > 0.4 > own.obs[own.weight > 0][:, 0].max()
    assert (visited.right.sum(1) == 1).all() and isinstance(goal, RegionGoal) and not isinstance(goal, StateGoal)
