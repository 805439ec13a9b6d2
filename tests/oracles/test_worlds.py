"""Worlds against independent oracles: drawings, Gymnasium's own tables, linear algebra."""

from __future__ import annotations

import math

import gymnasium
import networkx as nx
import numpy as np
import pytest

from retarget.envs import VectorWorld, make_world, rollout, world_from_gym

FOUR_ROOMS = (
    "#############",
    "#.....#.....#",
    "#.....#.....#",
    "#...........#",
    "#.....#.....#",
    "#.....#.....#",
    "##.######.###",
    "#.....#.....#",
    "#.....#.....#",
    "#.....#.....#",
    "#...........#",
    "#.....#.....#",
    "#############",
)

TOY_TEXT = [
    ("FrozenLake-v1", {}),
    ("FrozenLake-v1", {"is_slippery": False}),
    ("FrozenLake-v1", {"desc": ("SFH", "FFF", "HFG")}),
    ("FrozenLake8x8-v1", {}),
    ("CliffWalking-v1", {}),
    ("CliffWalkingSlippery-v1", {}),
    ("Taxi-v4", {}),
    ("Taxi-v4", {"is_rainy": True}),
]


def test_four_rooms_is_the_drawing() -> None:
    world = make_world("FourRooms", size=13)
    assert world.model.n_states == 104 == sum(row.count(".") for row in FOUR_ROOMS)
    free = [(r, c) for r, row in enumerate(FOUR_ROOMS) for c, cell in enumerate(row) if cell == "."]
    assert [tuple(cell) for cell in world.coordinates.tolist()] == free
    number = {cell: s for s, cell in enumerate(free)}
    for (r, c), s in number.items():
        for a, (dr, dc) in enumerate([(-1, 0), (0, 1), (1, 0), (0, -1)]):
            assert world.model.next_state[s, a].tolist() == [number.get((r + dr, c + dc), s)]


def test_slip_in_a_corner_by_hand() -> None:
    world = make_world("OpenGrid", size=5, slip=0.2)
    up = world.model.dense()[0, 0]  # bumps into the border; left bumps too, right goes to cell (0, 1)
    assert up[0] == pytest.approx(0.9) and up[1] == pytest.approx(0.1)
    right = world.model.dense()[0, 1]  # right, or slip up (bump) or down
    assert right[1] == pytest.approx(0.8) and right[0] == pytest.approx(0.1) and right[5] == pytest.approx(0.1)


def test_falling_leads_back_to_the_corner() -> None:
    world = make_world("Cliff", size=6)
    corner = world.as_state((5, 0))
    for col in range(1, 5):
        assert world.model.next_state[world.as_state((4, col)), 2, 0] == corner
    assert world.model.next_state[corner, 1, 0] == corner


@pytest.mark.parametrize("seed", range(5))
def test_a_maze_without_openings_is_a_tree(seed: int) -> None:
    world = make_world("Maze", size=21, seed=seed, open_fraction=0.0)
    graph = nx.Graph((s, int(t)) for s, row in enumerate(world.model.next_state[:, :, 0]) for t in row if t != s)
    assert nx.is_tree(graph) and graph.number_of_nodes() == world.model.n_states == 2 * 100 - 1


def test_different_seeds_give_different_mazes() -> None:
    assert len({make_world("Maze", size=9, seed=seed).model.digest for seed in range(20)}) > 15


def test_the_key_must_be_fetched_first() -> None:
    """Shortest way from the door's near side to its far side: by hand, through the key."""
    world = make_world("KeyDoor", size=7)  # key at (5, 1), door at (3, 3)
    graph = nx.DiGraph((s, int(t)) for s, row in enumerate(world.model.next_state[:, :, 0]) for t in row)
    far = world.as_goal((3, 4)).states
    lengths = nx.single_source_shortest_path_length(graph, world.as_state((3, 2)))
    assert min(lengths[s] for s in far if s in lengths) == 3 + 3 + 2  # to the key, back, through the door


@pytest.mark.parametrize(("name", "options"), TOY_TEXT)
def test_gymnasium_tables_are_reproduced(name: str, options: dict[str, object]) -> None:
    inner = gymnasium.make(name, **options).unwrapped
    world = world_from_gym(name, **options)
    n, a = int(inner.observation_space.n), int(inner.action_space.n)
    table, ends = np.zeros((n, a, n)), set()
    for s in range(n):
        for b in range(a):
            for p, t, _, done in inner.P[s][b]:
                table[s, b, t] += p
                if done:
                    ends.add(int(t))
    for s in ends:  # what lies behind an end is no part of an episode
        table[s] = np.eye(n)[s]
    np.testing.assert_allclose(world.model.dense(), table, atol=1e-12)
    assert set(world.start_states) == set(np.flatnonzero(inner.initial_state_distrib))


def test_frozen_lake_needs_no_correction() -> None:
    """Its ends already absorb in its own table, which must come back entry by entry."""
    inner = gymnasium.make("FrozenLake-v1").unwrapped
    dense = world_from_gym(gymnasium.make("FrozenLake-v1")).model.dense()
    for s, row in inner.P.items():
        for a, entries in row.items():
            expected = np.zeros(16)
            for p, t, _, _ in entries:
                expected[t] += p
            np.testing.assert_allclose(dense[s, a], expected, atol=1e-12)


def test_default_goals_are_the_paying_ends() -> None:
    assert world_from_gym("FrozenLake-v1").goal.states == (15,)
    assert world_from_gym("CliffWalking-v1").goal.states == (47,)
    taxi = gymnasium.make("Taxi-v4").unwrapped
    dropped = sorted(taxi.encode(r, c, i, i) for i, (r, c) in enumerate(taxi.locs))
    assert list(world_from_gym("Taxi-v4").goal.states) == dropped


@pytest.mark.parametrize(
    ("name", "moves"),
    [
        ("FrozenLake-v1", [[0, -1], [1, 0], [0, 1], [-1, 0]]),
        ("FrozenLake8x8-v1", [[0, -1], [1, 0], [0, 1], [-1, 0]]),
        ("CliffWalking-v1", [[-1, 0], [0, 1], [1, 0], [0, -1]]),
        ("CliffWalkingSlippery-v1", [[-1, 0], [0, 1], [1, 0], [0, -1]]),
    ],
)
def test_action_moves_are_read_off_the_model(name: str, moves: list[list[int]]) -> None:
    """Against the order of actions in Gymnasium's documentation."""
    assert world_from_gym(name).action_moves.tolist() == moves


def value(world: object, policy: np.ndarray, goal: tuple[int, ...], gamma: float) -> np.ndarray:
    """E[gamma ** T] from each state, by a linear solve."""
    dense = np.einsum("sa,sat->st", policy, world.model.dense())
    dense[list(goal)] = 0
    hit = np.zeros(len(dense))
    hit[list(goal)] = 1
    return np.linalg.solve(np.eye(len(dense)) - gamma * dense, hit)


@pytest.mark.parametrize(("name", "options"), [("FrozenLake-v1", {}), ("FourRooms", {"size": 7, "slip": 0.3})])
def test_random_rollouts_estimate_the_linear_solve(name: str, options: dict[str, object]) -> None:
    """Mean of returns in [0, 1] over 200,000 episodes; Hoeffding, false alarms below 1e-9 a start."""
    world = make_world(name, **options)
    policy = np.random.default_rng(5).dirichlet(np.ones(world.model.n_actions), size=world.model.n_states)
    exact = value(world, policy, world.goal.states, 0.97)
    n = 200_000
    for start in (int(world.start_states[0]), int(world.start_states[-2:][0])):
        mean = rollout(world, policy, starts=np.full(n, start), horizon=3000, gamma=0.97, seed=11).returns.mean()
        assert abs(mean - exact[start]) < math.sqrt(math.log(2 / 1e-9) / (2 * n)) + 0.97**3000
    assert exact[world.start_states[0]] > 0.005


def test_vector_slip_has_the_stated_frequency() -> None:
    """100,000 first steps to the right from one cell; Hoeffding with a false-alarm rate of 1e-9."""
    n = 100_000
    envs = VectorWorld(make_world("OpenGrid", size=5, slip=0.3), n)
    envs.reset(seed=1, options={"start": (2, 2)})
    after = envs.step(np.ones(n, dtype=np.int64))[0]
    bound = math.sqrt(math.log(6 / 1e-9) / (2 * n))
    for cell, p in (((2, 3), 0.7), ((1, 2), 0.15), ((3, 2), 0.15)):
        assert abs((after == cell[0] * 5 + cell[1]).mean() - p) < bound


def test_vector_starts_are_even() -> None:
    """Chi-square over 24 starts and 80,000 draws, 23 degrees of freedom: P(chi2 > 90) is below 1e-9."""
    envs = VectorWorld(make_world("OpenGrid", size=5, goal=(4, 4)), 80_000)
    starts, _ = envs.reset(seed=2)
    count = np.bincount(starts, minlength=25)
    assert count[24] == 0
    expected = 80_000 / 24
    assert ((count[:24] - expected) ** 2 / expected).sum() < 90


def test_every_new_episode_draws_a_new_start() -> None:
    """Resets along one environment's life are as even as resets across environments: 24 starts, P < 1e-9 as above."""
    n, rounds = 100, 800
    envs = VectorWorld(make_world("OpenGrid", size=5, goal=(4, 4), max_episode_steps=1), n)
    envs.reset(seed=3, options={"start": (0, 0)})
    starts = np.empty((rounds, n), int)
    for k in range(rounds):
        _, _, term, trunc, _ = envs.step(np.zeros(n, int))
        assert (term | trunc).all()
        starts[k] = envs.step(np.zeros(n, int))[0]
    count = np.bincount(starts.ravel(), minlength=25)[:24]
    assert ((count - count.mean()) ** 2 / count.mean()).sum() < 90
    repeats = (starts[1:] == starts[:-1]).mean()  # 1 in 24 by chance; Hoeffding over 79,900 pairs
    assert abs(repeats - 1 / 24) < math.sqrt(math.log(2 / 1e-9) / (2 * (rounds - 1) * n))


def test_the_wrapped_world_moves_like_the_original() -> None:
    """Every transition that Gymnasium's own environment makes is one the model allows."""
    env = gymnasium.make("FrozenLake-v1")
    world = world_from_gym(env)
    rng = np.random.default_rng(0)
    for episode in range(200):
        state, _ = env.reset(seed=episode)
        over = False
        while not over:
            action = int(rng.integers(4))
            after, reward, term, trunc, _ = env.step(action)
            assert world.model.dense()[state, action, after] > 0
            assert (reward == 1) == (after in world.goal.states)
            state, over = after, term or trunc
