"""Best paths and batched value iteration against independent ways to get them: graph searches, exact solves, twins."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import retarget
from retarget.agents.paths import PathPlanner, path_planner
from retarget.agents.planner import Planner, exact_planner, reward_for
from retarget.exact import optimal_values, policy_table
from retarget.goal import StateGoal
from retarget.kernels import reach_backups
from retarget.search import path_kernels
from retarget.search.paths import best_paths
from retarget.search.sweeps import Sweeps, solve, stack
from retarget.testing import models, worlds
from retarget.world import FiniteModel

METHODS = ("bfs", "astar", "deepening")


def twin(nxt: np.ndarray, reward: np.ndarray, gamma: float, depth: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First action, length and worth of the best path, by shortest paths of networkx between states without reward."""
    n, n_actions = nxt.shape
    free = [s for s in range(n) if reward[s] == 0]
    graph = nx.DiGraph()
    graph.add_nodes_from(free)
    graph.add_edges_from((s, int(t)) for s in free for t in nxt[s] if t < n and reward[t] == 0)
    far = dict(nx.all_pairs_shortest_path_length(graph))
    action, length, worth = np.full(n, -1), np.full(n, -1), np.zeros(n)
    ends = [(s, int(t)) for s in free for t in nxt[s] if t < n and reward[t] > 0]
    for root in range(n):
        found = []
        for a in range(n_actions):
            t = int(nxt[root, a])
            if t == n or reward[t] < 0:
                continue
            if reward[t] > 0:
                found.append((reward[t], a, 1))
                continue
            for s, goal in ends:
                if s in far[t] and far[t][s] + 2 <= depth:
                    steps = far[t][s] + 2
                    found.append((gamma ** (steps - 1) * reward[goal], a, steps))
        if found:
            worth[root] = max(found)[0]
            tied = [(a, steps) for v, a, steps in found if v >= worth[root] * (1 - 1e-12)]
            action[root], length[root] = min(tied)
    return action, length, worth


@st.composite
def grids(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Successors int `[S, 4]` and places `[S, 2]` of a small grid with walls, where steps go one cell far."""
    height, width = draw(st.integers(1, 4)), draw(st.integers(2, 6))
    walls = draw(st.sets(st.integers(0, height * width - 1), max_size=height * width // 3))
    cells = [(i // width, i % width) for i in range(height * width) if i not in walls]
    name = {cell: s for s, cell in enumerate(cells)}
    moves = draw(st.permutations([(-1, 0), (0, 1), (1, 0), (0, -1)]))
    return np.array([[name.get((r + i, c + j), name[r, c]) for i, j in moves] for r, c in cells]), np.array(cells)


@st.composite
def searches(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, float, int | None]:
    """A deterministic model (some of it unknown), rewards of both signs and several sizes, places, γ and a depth."""
    if draw(st.booleans()):
        nxt, place = draw(grids())
        n = len(nxt)
    else:
        nxt = draw(models(max_states=14, deterministic=True)).next_state[:, :, 0].copy()
        n = len(nxt)
        place = np.array(draw(st.lists(st.integers(0, 4), min_size=2 * n, max_size=2 * n))).reshape(n, 2)
        unknown = draw(st.sets(st.integers(0, nxt.size - 1), max_size=nxt.size // 3))
        nxt.reshape(-1)[list(unknown)] = n
    # powers of γ make rewards that tie with one another at different distances
    gamma = draw(st.sampled_from((0.5, 0.9, 0.95)))
    size = st.sampled_from((1.0, 1.0, gamma, gamma**2, gamma**3, 0.3, -1.0, 7.0))
    reward = np.zeros(n)
    for s in draw(st.sets(st.integers(0, n - 1), max_size=4)):
        reward[s] = draw(size)
    return nxt, reward, place, gamma, draw(st.sampled_from((None, None, 1, 2, 3, 5)))


@settings(deadline=None, max_examples=300)
@given(searches())
def test_every_method_finds_the_paths_of_an_independent_search(case: tuple) -> None:
    nxt, reward, place, gamma, depth = case
    action, length, worth = twin(nxt, reward, gamma, depth or len(nxt))
    for method, where in (("bfs", None), ("deepening", None), ("astar", None), ("astar", place)):
        found = best_paths(nxt, reward, method=method, gamma=gamma, depth=depth, place=where)
        np.testing.assert_array_equal(found.action, action)
        np.testing.assert_array_equal(found.length, length)
        np.testing.assert_allclose(found.value, worth, rtol=1e-12, atol=0)


@settings(deadline=None, max_examples=200)
@given(searches())
def test_path_planners_act_as_the_planner_does(case: tuple) -> None:
    nxt, reward, place, gamma, depth = case
    planner = Planner(reward, nxt[:, :, None], np.ones((*nxt.shape, 1)), gamma, depth, learned=True)
    want = planner.policy(np.arange(len(nxt)))[0]
    q, _, _ = reach_backups(planner.next_state, planner.prob, reward, gamma, depth or 1000, -1.0)
    for method, where in (("bfs", None), ("deepening", None), ("astar", None), ("astar", place)):
        agent = PathPlanner(reward, nxt, method, gamma, depth, where)
        np.testing.assert_array_equal(agent.policy(np.arange(len(nxt)))[0], want)
        np.testing.assert_allclose(agent.paths.value, np.maximum(q.max(1), 0.0), rtol=1e-12, atol=0)


@settings(deadline=None, max_examples=60)
@given(worlds(), st.data())
def test_in_worlds_path_planners_are_the_exact_planner(world: object, data: st.DataObject) -> None:
    if not world.model.is_deterministic:  # type: ignore[attr-defined]
        return
    goal = data.draw(st.sampled_from(world.goals))  # type: ignore[attr-defined]
    depth = data.draw(st.sampled_from((None, 2, 4)))
    want = policy_table(exact_planner(world, goal, depth=depth), world.model)  # type: ignore[arg-type,attr-defined]
    for method in METHODS:
        agent = path_planner(world, goal, method=method, depth=depth)  # type: ignore[arg-type]
        np.testing.assert_array_equal(policy_table(agent, world.model), want)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "options"),
    [("FourRooms", {"size": 13}), ("Maze", {"size": 15, "seed": 2}), ("KeyDoor", {"size": 7})],
)
def test_lengths_are_the_distances_of_the_world(name: str, options: dict) -> None:
    world = retarget.make_world(name, **options)
    for goal in world.goals[:20]:
        best = optimal_values(world.model, goal, gamma=0.9)
        mask = goal.mask(world.model.n_states)
        for method in METHODS:
            agent = path_planner(world, goal, method=method, gamma=0.9)
            want = policy_table(exact_planner(world, goal, gamma=0.9), world.model)
            np.testing.assert_array_equal(policy_table(agent, world.model), want)
            paths = agent.paths
            np.testing.assert_allclose(0.9 * paths.value[~mask], best[~mask], rtol=1e-12)


def nodes_of_breadth_first(nxt: np.ndarray, goal: int, root: int) -> int:
    """Nodes taken from the queue until the goal is seen, the textbook way."""
    queue, seen, count = [root], {root}, 0
    while queue:
        x = queue.pop(0)
        count += 1
        for t in (int(t) for t in nxt[x]):
            if t == goal:
                return count
            if t not in seen:
                seen.add(t)
                queue.append(t)
    return count


def test_nodes_expanded_are_counted_as_they_are_taken() -> None:
    world = retarget.make_world("FourRooms", size=9)
    nxt, goal = world.model.next_state[:, :, 0], world.goals[2].states[0]
    paths = path_planner(world, StateGoal.of([goal]), method="bfs").paths
    roots = [s for s in range(len(nxt)) if s != goal]
    assert [paths.expanded[s] for s in roots] == [nodes_of_breadth_first(nxt, goal, s) for s in roots]
    # without a guide A* is uniform-cost search: what it expands is nearer than the goal, and all of that
    steps = paths.length
    blind = best_paths(nxt, reward_for(StateGoal.of([goal]), len(nxt)), method="astar", gamma=0.9)
    from_root = nx.DiGraph([(s, int(t)) for s in range(len(nxt)) for t in nxt[s] if t != goal and s != goal])
    for root in roots:
        far = nx.single_source_shortest_path_length(from_root, root)
        nearer = sum(d < steps[root] - 1 for d in far.values())
        within = sum(d < steps[root] for d in far.values())
        assert nearer < blind.expanded[root] <= within


def test_a_guide_never_makes_a_star_expand_more() -> None:
    world = retarget.make_world("FourRooms", size=13)
    for goal in world.goals[:6]:
        reward = reward_for(goal, world.model.n_states)
        nxt = world.model.next_state[:, :, 0]
        blind = best_paths(nxt, reward, method="astar", gamma=0.95)
        led = best_paths(nxt, reward, method="astar", gamma=0.95, place=world.coordinates)
        assert (led.expanded <= blind.expanded).all()
        assert led.expanded.sum() < blind.expanded.sum()


@settings(deadline=None, max_examples=200)
@given(searches())
def test_the_bound_of_a_star_is_admissible_and_consistent(case: tuple) -> None:
    nxt, reward, place, gamma, _ = case
    if not (reward > 0).any():
        return
    bound = path_kernels.bounds(nxt, reward, gamma, place)
    _, _, worth = twin(nxt, reward, gamma, len(nxt))
    reach = worth > 0
    # what a path really costs, in steps: by how much it is worth less than the largest reward at once
    paid = 1 + np.log(reward.max() / worth[reach]) / -np.log(gamma)
    assert (bound[reach] <= paid + 1e-9).all()
    for s in range(len(nxt)):
        for t in nxt[s]:
            if t < len(nxt) and reward[t] == 0:
                assert bound[s] <= 1 + bound[t] + 1e-12


# -- value iteration for many worlds -------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.lists(models(max_states=9), min_size=1, max_size=5), st.data())
def test_sweeps_of_a_batch_are_the_planners_values_of_each_world(batch: list[FiniteModel], data: st.DataObject) -> None:
    size = st.sampled_from((0.0, 0.0, 1.0, 0.5, -1.0))
    rewards = [np.array(data.draw(st.lists(size, min_size=m.n_states, max_size=m.n_states))) for m in batch]
    found = solve(*stack(batch, rewards), gamma=0.9, tolerance=1e-13)
    for w, (model, reward) in enumerate(zip(batch, rewards, strict=True)):
        q, value, _ = reach_backups(model.next_state, model.prob, reward, 0.9, 2000, 1e-14)
        n, n_actions = q.shape
        np.testing.assert_allclose(found.value[w, :n], value, rtol=0, atol=1e-11)
        np.testing.assert_allclose(found.q[w, :n, :n_actions], q, rtol=0, atol=1e-11)
        assert not found.value[w, n:].any()
    assert (found.residual <= 1e-13).all()


@settings(deadline=None, max_examples=60)
@given(models(max_states=10), st.data())
def test_sweeps_are_the_exact_values(model: FiniteModel, data: st.DataObject) -> None:
    goal = StateGoal.of([data.draw(st.integers(0, model.n_states - 1))])
    mask = goal.mask(model.n_states)
    found = solve(*stack([model], [mask.astype(float)]), gamma=0.9)
    want = optimal_values(model, goal, gamma=0.9)
    np.testing.assert_allclose(0.9 * found.value[0][~mask], want[~mask], rtol=0, atol=1e-8)


def test_unknown_successors_are_worth_nothing_and_float32_is_near() -> None:
    nxt = np.array([[[[1], [3]], [[2], [3]], [[2], [2]]]])
    reward = np.array([[0.0, 0.0, 1.0]])
    for dtype in ("float64", "float32"):
        found = solve(nxt, np.ones(nxt.shape), reward, gamma=0.5, dtype=dtype)
        assert found.q.tolist() == [[[0.5, 0.0], [1.0, 0.0], [1.0, 1.0]]]
        assert found.value.dtype == np.dtype(dtype)
    late = solve(nxt, np.ones(nxt.shape), reward, gamma=0.5, max_sweeps=1)
    assert isinstance(late, Sweeps)
    assert (late.n_sweeps, late.residual.tolist()) == (1, [1.0])
