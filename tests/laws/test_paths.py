"""Laws of path search and of batched value iteration: names do not matter, batches fall apart, bad input is told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import retarget
from retarget.agent import Agent, Categorical
from retarget.agents.paths import PathPlanner, path_planner
from retarget.agents.planner import exact_planner
from retarget.edit import Edit, Slot, Sparse
from retarget.errors import AgentError, WorldError
from retarget.exact import policy_table
from retarget.search.paths import best_paths
from retarget.search.sweeps import bytes_needed, free_bytes, solve, stack
from retarget.testing import check_agent, models

METHODS = ("bfs", "astar", "deepening")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("name", "options"), [("OpenGrid", {"size": 5}), ("FourRooms", {"size": 7}), ("KeyDoor", {"size": 6})]
)
def test_path_planners_obey_the_laws_of_agents(method: Any, name: str, options: dict) -> None:
    world = retarget.make_world(name, **options)
    for depth in (None, 3):
        check_agent(path_planner(world, world.goal, method=method, depth=depth), world, max_examples=10)


@settings(deadline=None, max_examples=150)
@given(models(max_states=12, deterministic=True), st.data())
def test_renaming_states_renames_the_paths(model: Any, data: st.DataObject) -> None:
    n = model.n_states
    reward = np.array(data.draw(st.lists(st.sampled_from((0.0, 0.0, 1.0, 0.9, -1.0)), min_size=n, max_size=n)))
    place = np.array(data.draw(st.lists(st.integers(0, 3), min_size=2 * n, max_size=2 * n))).reshape(n, 2)
    perm = np.array(data.draw(st.permutations(range(n))))
    renamed, back = model.relabel(perm), np.argsort(perm)
    for method in METHODS:
        one = best_paths(model.next_state[:, :, 0], reward, method=method, gamma=0.9, place=place)
        two = best_paths(renamed.next_state[:, :, 0], reward[back], method=method, gamma=0.9, place=place[back])
        for name in ("action", "length", "value"):
            np.testing.assert_array_equal(getattr(two, name)[perm], getattr(one, name))
        if method != "astar":  # which of two equally promising nodes comes first depends on the heap
            np.testing.assert_array_equal(two.expanded[perm], one.expanded)


@settings(deadline=None, max_examples=150)
@given(models(max_states=12, deterministic=True), st.data())
def test_following_the_first_steps_is_the_path(model: Any, data: st.DataObject) -> None:
    n, nxt = model.n_states, model.next_state[:, :, 0]
    goal = data.draw(st.integers(0, n - 1))
    reward = np.eye(n)[goal]
    for method in METHODS:
        found = best_paths(nxt, reward, method=method, gamma=0.9)
        assert ((found.length >= 0) == (found.action >= 0)).all()
        assert (found.length <= n).all()
        for s in range(n):
            x, steps = s, 0
            while found.length[s] > 0:
                x, steps = int(nxt[x, found.action[x]]), steps + 1
                if x == goal:
                    break
            assert steps == max(found.length[s], 0)


@settings(deadline=None, max_examples=80)
@given(models(max_states=12, deterministic=True), st.data())
def test_more_depth_never_loses_a_path(model: Any, data: st.DataObject) -> None:
    nxt = model.next_state[:, :, 0]
    reward = np.eye(model.n_states)[data.draw(st.integers(0, model.n_states - 1))]
    for method in METHODS:
        whole = best_paths(nxt, reward, method=method, gamma=0.9)
        for depth in range(1, 6):
            found = best_paths(nxt, reward, method=method, gamma=0.9, depth=depth)
            within = (whole.length >= 0) & (whole.length <= depth)
            np.testing.assert_array_equal(found.length, np.where(within, whole.length, -1))


def test_goals_that_are_nowhere_cost_nothing() -> None:
    world = retarget.make_world("OpenGrid", size=5)
    for method in METHODS:
        blank = path_planner(world, world.goal, method=method).blank(0)
        assert blank.simulations_per_action == 0
        assert (policy_table(blank, world.model) == 0.25).all()
        walls = PathPlanner(-np.ones(world.model.n_states), world.model.next_state[:, :, 0], method)
        assert walls.simulations_per_action == 0


def test_search_is_paid_for_where_it_is_done() -> None:
    world = retarget.make_world("FourRooms", size=9)
    spent = {m: path_planner(world, world.goal, method=m) for m in METHODS}
    assert spent["astar"].simulations_per_action < spent["bfs"].simulations_per_action
    assert spent["bfs"].simulations_per_action < spent["deepening"].simulations_per_action
    near = path_planner(world, world.goal, method="bfs", depth=1)
    # from each state but the goal's itself, one node: the state
    assert near.simulations_per_action == 1
    assert near.flops_per_action == 2 * world.model.n_actions


def test_an_edit_of_the_slot_retargets_and_one_of_the_model_misleads() -> None:
    world = retarget.make_world("FourRooms", size=7)
    a, b = world.goals[0], world.goals[-1]
    agent = path_planner(world, a, method="astar")
    write = agent.slot_writes(b)[0]
    moved: Agent = Edit.of(agent, Slot.of(write, agent.parts["reward"].alphabet)).apply(agent)
    np.testing.assert_array_equal(policy_table(moved, world.model), policy_table(exact_planner(world, b), world.model))
    # a far jump to the goal in the model: the guide must not overlook it
    s = int(np.argmax(agent.paths.length))
    cell = np.array([s * world.model.n_actions + 2])
    jump = Edit.of(agent, Sparse("next_state", cell, np.array([a.states[0]]))).apply(agent)
    assert isinstance(jump, PathPlanner)
    assert (jump.paths.length[s], jump.paths.action[s]) == (1, 2)
    assert isinstance(agent.parts["next_state"].alphabet, Categorical)
    assert agent.parts["next_state"].alphabet.size == world.model.n_states


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": "dfs"}, "one of bfs, astar, deepening"),
        ({"depth": 0}, "depth must be an integer of at least 1"),
        ({"depth": 2.0}, "depth must be an integer of at least 1"),
        ({"gamma": 1.0}, "gamma must lie strictly between"),
        ({"reward": np.array([0.0, np.nan])}, "reward of state 1 is nan"),
        ({"reward": np.zeros(3)}, "one successor"),
        ({"next_state": np.array([[0], [3]])}, "successors must be 0 to 2"),
        ({"next_state": np.array([[0.0], [1.0]])}, "next_state int"),
        ({"next_state": np.zeros((2, 1, 2), int)}, "use exact_planner"),
        ({"place": np.zeros((3, 2), int)}, "place must hold row and column of each of 2 states"),
    ],
)
def test_bad_searches_are_told_in_one_line(change: dict, words: str) -> None:
    given = {"reward": np.array([0.0, 1.0]), "next_state": np.array([[1], [1]]), "method": "bfs"} | change
    with pytest.raises(AgentError, match=words) as error:
        PathPlanner(**given)
    assert "\n" not in str(error.value)


def test_chance_is_refused_with_the_remedy() -> None:
    world = retarget.make_world("OpenGrid", size=5, slip=0.2)
    with pytest.raises(AgentError, match=r"without chance.*use exact_planner"):
        path_planner(world, world.goal, method="bfs")


# -- value iteration for many worlds -------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.lists(models(max_states=7), min_size=2, max_size=4), st.data())
def test_a_batch_of_worlds_is_batches_of_one(batch: list, data: st.DataObject) -> None:
    rewards = [np.eye(m.n_states)[data.draw(st.integers(0, m.n_states - 1))] for m in batch]
    whole = solve(*stack(batch, rewards), gamma=0.9, max_sweeps=16, tolerance=0.0)
    for w, (model, reward) in enumerate(zip(batch, rewards, strict=True)):
        one = solve(*stack([model], [reward]), gamma=0.9, max_sweeps=whole.n_sweeps, tolerance=0.0)
        if one.n_sweeps == whole.n_sweeps:
            np.testing.assert_allclose(whole.value[w, : model.n_states], one.value[0], rtol=1e-14)
        assert (whole.value[w] >= 0.0).all() and (whole.value[w] <= 1.0 + 1e-12).all()


def test_a_batch_too_large_for_memory_names_the_limit() -> None:
    model = retarget.make_world("OpenGrid", size=5).model
    batch = stack([model] * 10, [np.eye(model.n_states)[0]] * 10)
    needed = bytes_needed(batch[0].shape)
    solve(*batch, gamma=0.9, memory_limit_bytes=needed)
    with pytest.raises(WorldError, match=f"needs {needed} bytes.*limit is {needed - 1}; solve at most 9 worlds"):
        solve(*batch, gamma=0.9, memory_limit_bytes=needed - 1)
    with pytest.raises(WorldError, match="not even one world fits"):
        solve(*batch, gamma=0.9, memory_limit_bytes=100)
    assert free_bytes() > needed
    assert bytes_needed(batch[0].shape, dtype="float32") < needed
    # 32-bit places no longer reach
    assert bytes_needed((1, 2**31, 1, 1)) > 2**31 * bytes_needed((1, 1, 1, 1))


def test_worlds_solved_in_groups_are_worlds_solved_together(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = (retarget.make_world("FourRooms", size=n, slip=0.2).model for n in (7, 9))
    batch = stack([small, large] * 5, [np.eye(m.n_states)[i] for i, m in enumerate([small, large] * 5)])
    found = [solve(*batch, gamma=0.9, tolerance=1e-13)]
    for cache in (1, 200_000):
        monkeypatch.setattr("retarget.search.sweeps.CACHE_BYTES", cache)
        found.append(solve(*batch, gamma=0.9, tolerance=1e-13))
    for other in found[1:]:
        np.testing.assert_allclose(other.value, found[0].value, atol=1e-12)
        np.testing.assert_allclose(other.q, found[0].q, atol=1e-12)
        assert (other.residual <= 1e-13).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gamma": 0.0}, "gamma must lie"),
        ({"max_sweeps": 0}, "max_sweeps at least 1"),
        ({"tolerance": float("nan")}, "tolerance must be at least 0"),
        ({"dtype": "float16"}, "dtype must be one of float64, float32"),
        ({"device": "nowhere"}, "use device='cpu'"),
        ({"reward": np.zeros((1, 3))}, "rewards of shape"),
        ({"reward": np.array([[0.0, np.inf]])}, "must be finite"),
        ({"prob": np.full((1, 2, 1, 1), 0.5)}, "sum to 1"),
        ({"prob": np.ones((1, 2, 1, 2))}, "of one shape"),
        ({"next_state": np.full((1, 2, 1, 1), 3)}, "successors must be 0 to 2"),
    ],
)
def test_bad_batches_are_told_in_one_line(change: dict, words: str) -> None:
    given: dict[str, Any] = {
        "next_state": np.zeros((1, 2, 1, 1), int), "prob": np.ones((1, 2, 1, 1)), "reward": np.zeros((1, 2)),
        "gamma": 0.9,
    }  # fmt: skip
    given |= change
    arrays = [given.pop(name) for name in ("next_state", "prob", "reward")]
    with pytest.raises(WorldError, match=words) as error:
        solve(*arrays, **given)
    assert "\n" not in str(error.value)


def test_stacks_need_a_reward_for_each_model() -> None:
    model = retarget.make_world("OpenGrid", size=5).model
    with pytest.raises(WorldError, match="one reward for each model"):
        stack([model], [])
    with pytest.raises(WorldError, match="reward of world 0 needs shape"):
        stack([model], [np.zeros(3)])
