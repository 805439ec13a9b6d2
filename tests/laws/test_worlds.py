"""Laws of the worlds, for any layout, size, seed and slip."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from retarget.envs import FiniteEnv, VectorWorld, make_world, rollout

NAMES = ("OpenGrid", "FourRooms", "Maze", "KeyDoor", "Cliff")
SLIPS = st.sampled_from([0.0, 0.1, 0.5, 0.97])
#: Shared by all laws: compilation and world building are not what a deadline should watch.
law = settings(max_examples=40, deadline=None)


@st.composite
def worlds(draw: st.DrawFn, names: tuple[str, ...] = NAMES, slips: st.SearchStrategy[float] = SLIPS) -> FiniteEnv:
    name = draw(st.sampled_from(names))
    options: dict[str, object] = {"size": draw(st.integers(5, 14)), "slip": draw(slips)}
    if name == "Maze":
        options["seed"] = draw(st.integers(-(2**40), 2**40))
        options["open_fraction"] = draw(st.floats(0, 1))
    return make_world(name, **options)


def edges(world: FiniteEnv) -> set[tuple[int, int]]:
    """Pairs of different states that some action joins, by a plain loop."""
    nxt, prob = world.model.next_state, world.model.prob
    return {
        (s, int(nxt[s, a, k]))
        for s in range(nxt.shape[0])
        for a in range(nxt.shape[1])
        for k in range(nxt.shape[2])
        if prob[s, a, k] > 0 and nxt[s, a, k] != s
    }


@law
@given(worlds())
def test_rows_are_distributions_and_moves_are_local(world: FiniteEnv) -> None:
    dense = world.model.dense()
    assert dense.min() >= 0
    np.testing.assert_allclose(dense.sum(-1), 1, atol=1e-12)
    where = world.coordinates
    fall = world.as_state((where.max(), 0)) if world.spec_data.id == "Cliff" else None
    for s, t in edges(world):
        assert np.abs(where[s] - where[t]).sum() == 1 or t == fall


@law
@given(worlds(names=("OpenGrid", "FourRooms", "Maze")))
def test_every_cell_is_reachable_from_every_other(world: FiniteEnv) -> None:
    n = world.model.n_states
    pairs = np.array(sorted(edges(world)))
    graph = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    assert connected_components(graph, directed=True, connection="strong")[0] == 1
    assert len(world.goals) == len(world.start_states) == n


@law
@given(st.integers(5, 20), st.integers(0, 10**6), st.floats(0, 1), st.floats(0, 1))
def test_a_maze_is_a_tree_and_a_larger_fraction_opens_more(size: int, seed: int, a: float, b: float) -> None:
    tree = make_world("Maze", size=size, seed=seed, open_fraction=0.0)
    assert len(edges(tree)) == 2 * (tree.model.n_states - 1)
    few, many = (
        {tuple(c) for c in make_world("Maze", size=size, seed=seed, open_fraction=f).coordinates.tolist()}
        for f in sorted((a, b))
    )
    assert few <= many
    side = (size - 1) // 2
    inner_walls = 2 * side * (side - 1) - (side * side - 1)
    assert len(many) == tree.model.n_states + round(max(a, b) * inner_walls)


@law
@given(st.integers(5, 16), SLIPS)
def test_nobody_passes_the_door_without_the_key(size: int, slip: float) -> None:
    world = make_world("KeyDoor", size=size, slip=slip)
    flags, where, wall = world.layout.flags, world.coordinates, size // 2
    without = flags[:, 0] == 0
    assert (where[without, 1] < wall).all()
    assert without.any() and (flags[:, 0] == 1).any() and (flags[:, 1] == 1).any()
    key = [size - 2, 1]
    for s, t in edges(world):
        assert (flags[t] >= flags[s]).all(), "a key is never lost, a door never shut"
        assert (flags[t, 0] > flags[s, 0]) == (flags[s, 0] == 0 and where[t].tolist() == key)
        assert (flags[t, 1] > flags[s, 1]) == (flags[s, 1] == 0 and where[t, 1] == wall)
    assert set(world.start_states) <= set(np.flatnonzero(without))


@law
@given(worlds())
def test_a_spec_rebuilds_the_world(world: FiniteEnv) -> None:
    again = make_world(world.spec_data)
    assert again.model.digest == world.model.digest
    assert again.spec_data == world.spec_data
    assert again.goal == world.goal
    assert hash(again.spec_data) == hash(world.spec_data)


@law
@given(worlds(), st.data())
def test_goals_and_states_round_trip(world: FiniteEnv, data: st.DataObject) -> None:
    state = data.draw(st.integers(0, world.model.n_states - 1))
    cell = tuple(world.coordinates[state].tolist())
    assert world.as_state(state) == state
    assert world.as_goal(state) == world.as_goal({state}) == world.as_goal(world.as_goal(state))
    same_place = {s for s in range(world.model.n_states) if tuple(world.coordinates[s].tolist()) == cell}
    assert set(world.as_goal(cell).states) == set(world.as_goal([cell]).states) == same_place
    assert world.as_state(cell) == min(same_place)


@law
@given(worlds(), st.sampled_from(["index", "xy", "one_hot", "image"]), st.booleans(), st.integers(0, 99))
def test_observing_many_is_observing_each(world: FiniteEnv, mode: str, with_goal: bool, seed: int) -> None:
    shown = make_world(world.spec_data, observation=mode, observe_goal=with_goal)
    states = np.random.default_rng(seed).integers(shown.model.n_states, size=7)
    outside = [int(s) for s in states if s not in shown.goal.states]
    batch = shown.observe(np.array(outside, dtype=int))
    for i, s in enumerate(outside):
        one, _ = shown.reset(options={"start": s})
        assert one in shown.observation_space
        rows = batch if not with_goal else batch["observation"]
        np.testing.assert_array_equal(rows[i], one if not with_goal else one["observation"])
        if with_goal:
            np.testing.assert_array_equal(batch["goal"][i], one["goal"])


@law
@given(worlds())
def test_different_states_look_different(world: FiniteEnv) -> None:
    for mode in ("index", "xy", "one_hot", "image"):
        seen = make_world(world.spec_data, observation=mode).observe(np.arange(world.model.n_states))
        flat = seen.reshape(len(seen), -1)
        assert len(np.unique(flat, axis=0)) == world.model.n_states


def play(world: FiniteEnv, n: int, actions: np.ndarray, seed: int) -> list[list[np.ndarray]]:
    envs = VectorWorld(world, n)
    first, _ = envs.reset(seed=seed)
    out = [[first, np.zeros(n), np.zeros(n, bool), np.zeros(n, bool)]]
    return out + [list(envs.step(row[:n])[:4]) for row in actions]


@law
@given(worlds(), st.integers(0, 2**40), st.integers(1, 6), st.integers(0, 20))
def test_a_batch_of_n_is_n_of_one(world: FiniteEnv, seed: int, small: int, limit: int) -> None:
    world = make_world(world.spec_data, max_episode_steps=limit)
    actions = np.random.default_rng(seed).integers(4, size=(60, 17))
    few, many = (play(world, n, actions, seed) for n in (small, 17))
    for a, b in zip(few, many, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y[:small])


@law
@given(worlds(), st.integers(0, 2**40), st.integers(0, 12), st.data())
def test_vector_steps_follow_the_model(world: FiniteEnv, seed: int, limit: int, data: st.DataObject) -> None:
    """Against a slow reference: one successor of the model, then reward, end, truncation and the reset after it."""
    n = 5
    world = make_world(world.spec_data, max_episode_steps=limit)
    goals = [data.draw(st.sampled_from(world.goals)) for _ in range(n)]
    per_env = data.draw(st.booleans())
    if not per_env:
        goals = [goals[0]] * n
    envs = VectorWorld(world, n)
    state, _ = envs.reset(seed=seed, options={"goal": goals if per_env else goals[0]})
    for i in range(n):
        assert state[i] in world.start_states and state[i] not in goals[i].states
    age, over = np.zeros(n, int), np.zeros(n, bool)
    for row in np.random.default_rng(seed).integers(4, size=(50, n)):
        after, reward, term, trunc, info = envs.step(row)
        assert info == {}
        for i in range(n):
            if over[i]:
                assert after[i] in world.start_states and after[i] not in goals[i].states
                expected, age[i] = (0.0, False, False), 0
            else:
                possible = world.model.next_state[state[i], row[i]][world.model.prob[state[i], row[i]] > 0]
                assert after[i] in possible
                age[i] += 1
                hit = int(after[i]) in goals[i].states
                expected = (float(hit), hit, bool(not hit and limit and age[i] >= limit))
            assert (reward[i], term[i], trunc[i]) == expected
        state, over = after, term | trunc


@law
@given(worlds(slips=st.just(0.0)), st.integers(0, 10**6), st.integers(1, 60))
def test_a_rollout_is_a_loop_over_the_model(world: FiniteEnv, seed: int, horizon: int) -> None:
    rng = np.random.default_rng(seed)
    policy = rng.integers(4, size=world.model.n_states)
    goal = world.goals[int(rng.integers(len(world.goals)))]
    got = rollout(world, policy, goal=goal, horizon=horizon, gamma=0.9)
    one_hot = rollout(world, np.eye(4)[policy], goal=goal, horizon=horizon, gamma=0.9)
    np.testing.assert_array_equal(got.returns, one_hot.returns)
    for start, value, hit, steps in zip(got.starts, got.returns, got.hits, got.steps, strict=True):
        s, t = int(start), 0
        while s not in goal.states and t < horizon:
            s, t = int(world.model.next_state[s, policy[s], 0]), t + 1
        assert hit == (s in goal.states)
        assert steps == t
        assert value == pytest.approx(0.9**t if hit else 0.0, rel=1e-12)


@law
@given(worlds(), st.integers(0, 10**6), st.integers(1, 50))
def test_a_random_rollout_does_not_depend_on_its_company(world: FiniteEnv, seed: int, horizon: int) -> None:
    policy = np.random.default_rng(seed).dirichlet(np.ones(4), size=world.model.n_states)
    starts = np.resize(np.setdiff1d(world.start_states, world.goal.states), 40)
    long = rollout(world, policy, starts=starts, horizon=horizon, seed=seed)
    short = rollout(world, policy, starts=starts[:3], horizon=horizon, seed=seed)
    np.testing.assert_array_equal(long.steps[:3], short.steps)
    np.testing.assert_array_equal(long.hits[:3], short.hits)


def test_a_vector_seed_is_a_whole_stream() -> None:
    """Resetting with a seed begins it again; resetting without one goes on."""
    envs = gymnasium.make_vec("retarget/FourRooms-v0", num_envs=200)
    first, _ = envs.reset(seed=3)
    second, _ = envs.reset()
    again, _ = envs.reset(seed=3)
    other, _ = envs.reset(seed=4)
    np.testing.assert_array_equal(first, again)
    assert (first != second).any() and (first != other).any()
