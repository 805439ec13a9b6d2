"""Training against plain Python: Q-learning, data gathering, models learned from data."""

from __future__ import annotations

import math
from collections import Counter

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retarget.agents import QTable, TablePolicy, exact_planner, learned_planner, train_q_table
from retarget.agents.planner import most_seen
from retarget.agents.wrappers import ModelWorld
from retarget.envs import make_world
from retarget.exact import Yardstick, optimal_values, policy_table
from retarget.goal import StateGoal
from retarget.kernels import gather
from retarget.rng import stream, word
from retarget.testing import models
from retarget.world import FiniteModel

GAMMA = 0.95


def _distances(model: FiniteModel, goal: StateGoal) -> dict[int, int]:
    """Fewest steps to a goal, by networkx over edges turned around."""
    graph = nx.DiGraph()
    graph.add_nodes_from(range(model.n_states))
    graph.add_edges_from(
        (int(t), s) for s in range(model.n_states) if s not in goal.states for t in model.next_state[s].flat
    )
    return {
        s: min(far)
        for s in range(model.n_states)
        if (far := [d for g in goal.states if (d := _steps(graph, g).get(s)) is not None])
    }


def _steps(graph: nx.DiGraph, source: int) -> dict[int, int]:
    return dict(nx.single_source_shortest_path_length(graph, source))


def _plain_q_learning(model: FiniteModel, goal: StateGoal, starts: np.ndarray, episodes: int) -> np.ndarray:
    """Watkins' rule, straight from the book, with a generator of its own."""
    rng = stream(7, "plain_q_learning")
    q = np.zeros((model.n_states, model.n_actions))
    for _ in range(episodes):
        s = int(rng.choice(starts))
        for _ in range(4 * model.n_states):
            if s in goal.states:
                break
            greedy = np.flatnonzero(q[s] == q[s].max())
            a = int(rng.integers(model.n_actions) if rng.random() < 0.3 else rng.choice(greedy))
            t = int(model.next_state[s, a, 0])
            q[s, a] = 1.0 if t in goal.states else GAMMA * q[t].max()
            s = t
    return q


@pytest.mark.parametrize(
    ("name", "options"), [("OpenGrid", {"size": 5}), ("FourRooms", {"size": 9}), ("Maze", {"size": 9})]
)
def test_to_the_limit_the_values_are_the_closed_form(name: str, options: dict[str, int]) -> None:
    world = make_world(name, **options)
    far = _distances(world.model, world.goal)
    trained, spend = train_q_table(world, world.goal, episodes=0, exploring=True, seed=0, gamma=GAMMA)
    # one step lands next to the goal: distance d from there is worth gamma ** d
    want = np.array([[GAMMA ** far[int(t)] for t in row] for row in world.model.next_state[:, :, 0]])
    free = ~world.goal.mask(world.model.n_states)
    np.testing.assert_allclose(trained.q[free], want[free], rtol=1e-12)
    # nothing is learned on the goal itself: episodes end there
    assert not trained.q[~free].any()
    assert trained.visited[free].all()
    assert not trained.visited[~free].any()
    assert spend.env_steps > 0
    assert spend.flops == spend.env_steps * 2 * (world.model.n_actions + 2)


def test_a_plain_python_loop_reaches_the_same_values() -> None:
    world = make_world("OpenGrid", size=5)
    starts = np.setdiff1d(world.start_states, world.goal.states)
    plain = _plain_q_learning(world.model, world.goal, starts, episodes=1500)
    for seed in (0, 1):
        trained, _ = train_q_table(world, world.goal, episodes=1500, exploring=True, seed=seed, gamma=GAMMA)
        np.testing.assert_array_equal(trained.q, plain)


@settings(deadline=None, max_examples=40)
@given(models(deterministic=True), st.integers(1, 40), st.integers(0, 3), st.booleans())
def test_values_in_training_never_exceed_the_closed_form(
    model: FiniteModel, episodes: int, seed: int, exploring: bool
) -> None:
    # from zero, with exact backups, every value is that of some path, and paths are no shorter than the shortest
    world = ModelWorld(model, StateGoal.of([0]))
    trained, spend = train_q_table(
        world, world.goal, episodes=episodes, exploring=exploring, seed=seed, gamma=GAMMA, horizon=5
    )
    far = _distances(model, world.goal)
    best = np.array(
        [[GAMMA ** far[int(t)] if int(t) in far else 0.0 for t in row] for row in model.next_state[:, :, 0]]
    )
    assert (trained.q <= best + 1e-12).all()
    assert 0 < spend.env_steps <= 5 * episodes
    seen = trained.seen_starts
    assert seen is not None
    assert 0 not in seen
    assert 1 <= len(seen) <= (min(episodes, model.n_states - 1) if exploring else 1)
    assert trained.visited.sum() <= spend.env_steps


def test_training_is_named_by_its_seed_and_by_nothing_else() -> None:
    world = make_world("FourRooms", size=9)

    def q(seed: int, exploring: bool = True) -> np.ndarray:
        return train_q_table(world, world.goal, episodes=5, exploring=exploring, seed=seed)[0].q

    first = q(0)
    q(1)
    np.testing.assert_array_equal(q(0), first)
    assert any((q(s) != first).any() for s in (1, 2))
    starts = {
        int(train_q_table(world, world.goal, episodes=1, exploring=False, seed=s)[0].starts[0])  # type: ignore[index]
        for s in range(8)
    }
    assert len(starts) > 3


@pytest.mark.parametrize(("name", "size"), [("FourRooms", 13), ("Maze", 15)])
def test_a_little_training_is_not_enough_and_the_limit_is(name: str, size: int) -> None:
    world = make_world(name, size=size)
    judge = Yardstick.of(world, world.goal, gamma=GAMMA)
    for seed in range(4):
        little, _ = train_q_table(world, world.goal, episodes=20, exploring=False, seed=seed)
        limit, _ = train_q_table(world, world.goal, episodes=0, exploring=True, seed=seed)
        assert judge.competence(policy_table(little, world.model)) < 0.5
        assert judge.competence(policy_table(limit, world.model)) == 1.0


def test_to_the_limit_under_slip_is_optimal_too() -> None:
    world = make_world("OpenGrid", size=5, slip=0.2)
    trained, _ = train_q_table(world, world.goal, episodes=0, exploring=True, seed=0)
    judge = Yardstick.of(world, world.goal, gamma=GAMMA)
    assert judge.competence(policy_table(trained, world.model)) >= 1 - 1e-9


def test_q_learning_under_chance_tends_to_the_true_values() -> None:
    # states 0, 1 and the goal 2; from each, one action goes on with 3/4, the other with 1/4, else back to 0
    nxt = np.array([[[1, 0], [1, 0]], [[2, 0], [2, 0]], [[2, 2], [2, 2]]])
    prob = np.tile(np.array([[0.75, 0.25], [0.25, 0.75]]), (3, 1, 1))
    world = ModelWorld(FiniteModel(nxt, prob), StateGoal.of([2]))
    value = optimal_values(world.model, world.goal, gamma=0.9)
    # the reward is paid on entering the goal: a value is a discount of one step less than the way is long
    want = (prob * value[nxt]).sum(-1)
    trained, _ = train_q_table(world, world.goal, episodes=60_000, exploring=True, seed=0, gamma=0.9, epsilon=0.5)
    np.testing.assert_allclose(trained.q[:2], want[:2], atol=0.03)


def test_training_to_the_limit_settles_where_some_states_are_never_met() -> None:
    # 0 -> 1 (goal); 2 leads to 0, and nothing leads to 2
    model = FiniteModel.deterministic([[1], [1], [0]])
    world = ModelWorld(model, StateGoal.of([1]), starts=np.array([0]))
    _, spend = train_q_table(world, world.goal, episodes=0, exploring=True, seed=0, max_env_steps=50_000)
    assert spend.env_steps < 50_000


def test_the_cap_on_training_to_the_limit_is_kept() -> None:
    world = make_world("FourRooms", size=9)
    _, spend = train_q_table(world, world.goal, episodes=0, exploring=True, seed=0, max_env_steps=1)
    assert spend.env_steps <= 16 * 4 * world.model.n_states


# -- data and models learned from them ----------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(models(), st.integers(1, 20), st.integers(1, 6), st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 9))
def test_gathered_counts_are_those_of_walks_over_the_model(
    model: FiniteModel, episodes: int, horizon: int, epsilon: float, seed: int
) -> None:
    s, a, _ = model.next_state.shape
    goal = np.zeros(s, np.bool_)
    goal[0] = True
    policy = np.eye(a)[np.arange(s) % a]
    counts = gather(
        policy, model.next_state, np.cumsum(model.prob, axis=2), goal, np.arange(1, s), episodes, horizon, epsilon,
        word(seed, "gather"), np.zeros(s, np.bool_),
    )  # fmt: skip
    assert counts.shape == model.next_state.shape
    assert episodes <= counts.sum() <= episodes * horizon
    # nothing leaves the goal; only what can happen happens; without exploration only what the policy does
    assert not counts[goal].any()
    assert not counts[model.prob == 0].any()
    if epsilon == 0:
        assert not counts[policy == 0].any()
    # flow: what leaves a state has either entered it, or begun or ended an episode there
    left = counts.sum((1, 2))
    entered = np.bincount(model.next_state.ravel(), weights=counts.ravel(), minlength=s)
    assert np.abs(left - entered)[~goal].sum() + entered[goal].sum() <= 2 * episodes


def test_gathered_frequencies_are_the_model_s() -> None:
    # 100,000 draws of one state and action with probabilities 0.5, 0.3, 0.2: a false alarm at 5 sigma is 1 in 10^6
    prob = np.array([[[0.5, 0.3, 0.2]]])
    model = FiniteModel(np.zeros((1, 1, 3), int), prob)
    n = 100_000
    counts = gather(
        np.ones((1, 1)), model.next_state, np.cumsum(prob, axis=2), np.zeros(1, np.bool_), np.zeros(1, np.int64), 1, n,
        0.0, word(3, "frequencies"), np.zeros(1, np.bool_),
    )  # fmt: skip
    assert counts.sum() == n
    assert (np.abs(counts[0, 0] / n - prob[0, 0]) < 5 * np.sqrt(prob[0, 0] * (1 - prob[0, 0]) / n)).all()


@settings(deadline=None, max_examples=80)
@given(models(), st.data())
def test_the_successor_most_seen_counts_one_successor_once(model: FiniteModel, data: st.DataObject) -> None:
    shape = model.next_state.shape
    counts = np.array(data.draw(st.lists(st.integers(0, 3), min_size=math.prod(shape), max_size=math.prod(shape))))
    counts = counts.reshape(shape)
    found = most_seen(counts, model.next_state)
    assert found.shape == (*shape[:2], 1)
    for s in range(shape[0]):
        for a in range(shape[1]):
            tally: Counter[int] = Counter()
            for t, n in zip(model.next_state[s, a], counts[s, a], strict=True):
                tally[int(t)] += int(n)
            best = max(tally.values())
            assert tally[int(found[s, a, 0])] == best if best else found[s, a, 0] == shape[0]


def test_split_counts_of_one_successor_outweigh_a_single_larger_one() -> None:
    assert most_seen(np.array([[[2, 3, 2]]]), np.array([[[0, 1, 0]]])).tolist() == [[[0]]]


@pytest.mark.parametrize("slip", [0.0, 0.2])
def test_a_model_learned_everywhere_is_the_true_one(slip: float) -> None:
    world = make_world("FourRooms", size=9, **({"slip": slip} if slip else {}))
    goal = world.goals[3]
    agent = learned_planner(world, goal, everywhere=True, episodes=2000, epsilon=0.0, seed=0)
    # the likeliest successor of each state and action, which a slip of a fifth never overtakes
    dense = world.model.dense()
    np.testing.assert_array_equal(agent.next_state[:, :, 0], dense.argmax(2))
    assert agent.counts is not None
    if not slip:
        true = exact_planner(world, goal)
        np.testing.assert_array_equal(policy_table(agent, world.model), policy_table(true, world.model))


def test_a_model_learned_near_one_policy_knows_only_its_ways() -> None:
    world = make_world("FourRooms", size=9)
    goal = world.goals[3]
    near = learned_planner(world, goal, everywhere=False, episodes=300, epsilon=0.0, seed=0)
    followed = policy_table(exact_planner(world, goal), world.model).argmax(1)
    assert near.counts is not None
    taken = near.counts.sum(2) > 0
    for s in range(world.model.n_states):
        assert not np.delete(taken[s], followed[s]).any()
        assert (near.next_state[s, ~taken[s]] == world.model.n_states).all()
    # it reaches its own goal, and knows no way to another
    judge = Yardstick.of(world, goal, gamma=GAMMA)
    assert judge.competence(policy_table(near, world.model)) == 1.0
    other = world.goals[-1]
    turned = exact_planner(world, other).reward
    moved = near.with_arrays({"reward": turned})
    assert Yardstick.of(world, other, gamma=GAMMA).competence(policy_table(moved, world.model)) < 0.5


def test_retraining_a_learned_planner_adds_to_its_data_and_moves_its_goal() -> None:
    world = make_world("FourRooms", size=9)
    a, b = world.goals[3], world.goals[-1]
    near = learned_planner(world, a, everywhere=False, episodes=50, epsilon=0.0, seed=0)
    after, spend = near.retrained(world, b, budget=500, seed=1)
    assert after.layout == near.layout
    assert (after.counts >= near.counts).all()  # type: ignore[attr-defined]
    assert (after.counts - near.counts).sum() == spend.env_steps  # type: ignore[attr-defined]
    assert Yardstick.of(world, b, gamma=GAMMA).competence(policy_table(after, world.model)) == 1.0
    assert near.retrained(world, b, budget=500, seed=1)[0].digest == after.digest


def test_retraining_a_table_keeps_what_training_never_met() -> None:
    # 0 <-> 1 -> goal 2, and 3 that no start leads to
    model = FiniteModel.deterministic([[1, 0], [2, 0], [2, 2], [0, 3]])
    world = ModelWorld(model, StateGoal.of([0]), starts=np.array([0, 1]))
    agent = TablePolicy.from_actions([1, 1, 1, 1], n_actions=2)
    after, spend = agent.retrained(world, StateGoal.of([2]), budget=200, seed=0)
    # 2 is the goal and 3 is never met
    assert after.parts["policy"].array.tolist() == [0, 0, 1, 1]
    assert spend.env_steps > 0
    values, _ = QTable(np.ones((4, 2))).retrained(world, StateGoal.of([2]), budget=200, seed=0)
    np.testing.assert_allclose(values.parts["q"].array, [[0.95, 0.9025], [1.0, 0.9025], [0, 0], [0, 0]])
