"""Exact values against independent ways to get them: linear solves, pointer doubling, Monte Carlo, closed forms."""

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from retarget.agents.wrappers import ModelWorld
from retarget.envs import make_world, world_from_gym
from retarget.errors import AgentError, GoalError
from retarget.exact import Yardstick, check_policy, optimal_values, reach_values, surely_reaches
from retarget.goal import StateGoal
from retarget.rng import stream
from retarget.testing import models, policies
from retarget.world import FiniteModel

GAMMA = 0.9


def solve(model, probs, goal, gamma):
    """The textbook linear system, from the dense model."""
    transition = np.einsum("sa,sat->st", probs, model.dense())
    mask = goal.mask(model.n_states)
    matrix = np.eye(model.n_states) - gamma * transition * ~mask[:, None]
    return np.linalg.solve(matrix, mask.astype(float))


def double(successor, mask, gamma):
    """Pointer doubling: the discount of 2^i steps from that of 2^(i-1), with an absorbing goal."""
    jump = np.where(mask, np.arange(successor.size), successor)
    factor = np.where(mask, 1.0, gamma)
    for _ in range(int(np.ceil(np.log2(successor.size))) + 1):
        factor, jump = factor * factor[jump], jump[jump]
    return np.where(mask[jump], factor, 0.0)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_values_of_any_policy_are_those_of_the_linear_system(data):
    model = data.draw(models())
    probs = data.draw(policies(model.n_states, model.n_actions))
    goal = StateGoal.of(data.draw(st.sets(st.integers(0, model.n_states - 1), min_size=1)))
    value = reach_values(model, probs, goal, gamma=GAMMA)
    np.testing.assert_allclose(value, solve(model, probs, goal, GAMMA), atol=1e-12)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_deterministic_values_are_those_of_pointer_doubling(data):
    model = data.draw(models(max_states=20, deterministic=True))
    n = model.n_states
    actions = np.array(data.draw(st.lists(st.integers(0, model.n_actions - 1), min_size=n, max_size=n)))
    goal = StateGoal.of([data.draw(st.integers(0, model.n_states - 1))])
    probs = np.eye(model.n_actions)[actions]
    successor = model.next_state[np.arange(model.n_states), actions, 0]
    mask = goal.mask(model.n_states)
    want = double(successor, mask, GAMMA)
    np.testing.assert_allclose(reach_values(model, probs, goal, gamma=GAMMA), want, rtol=1e-12)


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_best_values_are_those_of_value_iteration(data):
    model = data.draw(models())
    goal = StateGoal.of([data.draw(st.integers(0, model.n_states - 1))])
    mask, dense = goal.mask(model.n_states), model.dense()
    value = mask.astype(float)
    for _ in range(400):
        value = np.where(mask, 1.0, GAMMA * (dense @ value).max(1))
    np.testing.assert_allclose(optimal_values(model, goal, gamma=GAMMA), value, atol=1e-10)


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_sure_success_is_probability_one_without_discount(data):
    model = data.draw(models())
    probs = data.draw(policies(model.n_states, model.n_actions))
    goal = StateGoal.of([data.draw(st.integers(0, model.n_states - 1))])
    mask = goal.mask(model.n_states)
    transition = np.einsum("sa,sat->st", probs, model.dense())
    transition[mask] = 0
    transition[mask, np.flatnonzero(mask)[0]] = 1
    reached = np.linalg.matrix_power(transition, 2**16)[:, mask].sum(1)
    sure = surely_reaches(model, probs, goal)
    assert (reached[sure] > 1 - 1e-6).all()
    assert (reached[~sure] < 1 - 1e-9).all()


def test_sparse_and_dense_solves_agree_on_a_large_world(monkeypatch):
    world = make_world("FourRooms", size=13, slip=0.2)
    probs = np.full((world.model.n_states, 4), 0.25)
    dense = reach_values(world.model, probs, world.goal, gamma=0.95)
    monkeypatch.setattr("retarget.exact.DENSE_LIMIT", 10)
    np.testing.assert_allclose(reach_values(world.model, probs, world.goal, gamma=0.95), dense, atol=1e-12)


@pytest.mark.parametrize("n", [2, 5, 30])
def test_chain_closed_form(n):
    # always right from state s of a chain: γ^(n-1-s); a fair walk with a wall: V = a cosh form, checked at one end
    right = FiniteModel.deterministic([[min(s + 1, n - 1), max(s - 1, 0)] for s in range(n)])
    goal = StateGoal.of([n - 1])
    always = np.tile([1.0, 0.0], (n, 1))
    want = GAMMA ** np.arange(n - 1, -1, -1)
    np.testing.assert_allclose(reach_values(right, always, goal, gamma=GAMMA), want, rtol=1e-12)
    # the walk's values solve V(s) = γ/2 (V(s-1) + V(s+1)) with V(-1) = V(0): V(s) ∝ cosh((s + 1/2) θ), cosh θ = 1/γ
    theta = np.arccosh(1 / GAMMA)
    shape = np.cosh((np.arange(n) + 0.5) * theta)
    fair = np.full((n, 2), 0.5)
    np.testing.assert_allclose(reach_values(right, fair, goal, gamma=GAMMA), shape / shape[-1], rtol=1e-10)


@pytest.mark.parametrize("name", ["FrozenLake-v1", "CliffWalking-v1"])
def test_gymnasium_toy_text_by_monte_carlo(name):
    # n = 4,000 episodes from each of 4 starts, stepped by Gymnasium's own table. The mean of γ^T lies within
    # sqrt(ln(2/δ) / 2n) of its expectation but with probability δ = 1e-6 (Hoeffding 1963), 4 starts a world:
    # false alarms at most 8e-6 in all.
    world = world_from_gym(gym.make(name))
    table = gym.make(name).unwrapped.P
    rng = stream(0, "monte_carlo_oracle", name)
    n_states, n_actions = world.model.n_states, world.model.n_actions
    probs = np.full((n_states, n_actions), 1.0 / n_actions)
    exact = reach_values(world.model, probs, world.goal, gamma=GAMMA)
    goal, n = set(world.goal.states), 4000
    near = np.argsort(-exact)
    for start in [int(s) for s in near if s not in goal][:4]:
        total = 0.0
        for _ in range(n):
            s, discount, done = start, 1.0, False
            while s not in goal and not done and discount > 1e-9:
                entries = table[s][int(rng.integers(n_actions))]
                _, s, _, done = entries[int(rng.choice(len(entries), p=[e[0] for e in entries]))]
                discount *= GAMMA
            total += discount if s in goal else 0.0
        assert abs(total / n - exact[start]) < np.sqrt(np.log(2 / 1e-6) / (2 * n))


def test_frozen_lake_best_value_is_the_known_one():
    # 4x4, slippery, undiscounted success probability 14/17 from the start (value iteration on the published table)
    world = world_from_gym(gym.make("FrozenLake-v1", map_name="4x4", is_slippery=True))
    value = optimal_values(world.model, world.goal, gamma=0.99999)[0]
    assert value == pytest.approx(14 / 17, abs=2e-3)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_competence_is_between_zero_and_one_and_one_for_the_best(data):
    model = data.draw(models())
    goals = ModelWorld(model, StateGoal.of([0])).goals
    assume(goals)
    world = ModelWorld(model, data.draw(st.sampled_from(goals)))
    judge = Yardstick.of(world, world.goal, gamma=GAMMA)
    probs = data.draw(policies(model.n_states, model.n_actions))
    assert 0 <= judge.competence(probs) <= 1
    q = GAMMA * np.einsum("sat,t->sa", model.dense(), judge.optimal)
    best = np.eye(model.n_actions)[q.argmax(1)]
    # a tie may be broken into a loop only where nothing is gained by it: then the value is the same
    if surely_reaches(model, best, world.goal)[judge.starts].all():
        assert judge.competence(best) == pytest.approx(1, abs=1e-9)


def test_errors_name_the_value_and_the_remedy():
    world = make_world("OpenGrid", size=5)
    with pytest.raises(AgentError, match=r"shape \(25, 4\), got \(3, 4\)"):
        check_policy(np.full((3, 4), 0.25), world.model)
    bad = np.full((25, 4), 0.25)
    bad[7] = [1, 1, 0, 0]
    with pytest.raises(AgentError, match="state 7 is no distribution"):
        check_policy(bad, world.model)
    island = ModelWorld(FiniteModel.deterministic([[0], [1]]), StateGoal.of([0]))
    with pytest.raises(GoalError, match="no start of model can reach goal 1"):
        Yardstick.of(island, StateGoal.of([1]), gamma=0.9)
