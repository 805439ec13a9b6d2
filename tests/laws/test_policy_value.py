"""Laws of networks of values and priors, and of searches that use them."""

from __future__ import annotations

from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

import retarget
from retarget.agents import tree_searcher
from retarget.agents.leaves import UNLIKELY, Blind, Distance, Leaf, Rollouts, Tables
from retarget.agents.policy_value import MARGIN, RIDGE, SILENT, PolicyValue, features_of, logistic, ridge
from retarget.agents.wrappers import ModelWorld
from retarget.errors import AgentError
from retarget.rng import stream
from retarget.search import TreeSettings
from retarget.testing import check_agent

WORLD = retarget.make_world("OpenGrid", size=5)
GOAL, OTHER = WORLD.goals[0], WORLD.goals[5]
S = WORLD.model.n_states

HUGE = {"value.weight": np.full((1, 6), 1e308), "trunk.0.bias": np.full(6, 9.0)}


def network(seed: int = 0, hidden: tuple[int, ...] = (6,)) -> PolicyValue:
    return PolicyValue.initial(np.eye(WORLD.model.n_states), n_actions=4, hidden=hidden, seed=seed)


@pytest.mark.parametrize(
    "leaf",
    [Blind(), Rollouts(4), Distance(WORLD.coordinates), Tables.for_goal(WORLD, GOAL, gamma=0.95), network()],
    ids=lambda leaf: leaf.kind,
)
@pytest.mark.parametrize("method", ["puct", "gumbel"])
def test_searches_with_any_leaf_are_agents(leaf: Leaf, method: str) -> None:
    how = TreeSettings(simulations=4, method=method)
    check_agent(tree_searcher(WORLD, GOAL, settings=how, leaf=leaf), WORLD, max_examples=15)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 5), st.lists(st.integers(1, 5), max_size=3), st.integers(1, 6))
def test_the_forward_pass_is_that_of_torch(seed: int, hidden: list[int], n: int) -> None:
    leaf = PolicyValue.initial(stream(seed, "x").normal(size=(n, 3)), n_actions=2, hidden=tuple(hidden), seed=seed)
    x = torch.tensor(leaf.features)
    for i in range(len(hidden)):
        x = torch.relu(
            torch.nn.functional.linear(x, *(torch.tensor(leaf.weights[f"trunk.{i}.{w}"]) for w in ("weight", "bias")))
        )
    value, logits = (
        torch.nn.functional.linear(x, *(torch.tensor(leaf.weights[f"{head}.{w}"]) for w in ("weight", "bias")))
        for head in ("value", "policy")
    )
    found = leaf.judge(np.zeros(n), 2, 0.9)
    assert np.allclose(found.value, torch.sigmoid(value)[:, 0].numpy(), rtol=1e-12, atol=1e-15)
    assert np.allclose(found.prior, torch.softmax(logits, 1).numpy(), rtol=1e-12, atol=1e-15)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 9), st.integers(1, 12), st.integers(1, 20), st.lists(st.integers(1, 20), max_size=2))
def test_each_state_is_judged_alone(seed: int, n: int, f: int, hidden: list[int]) -> None:
    seen = stream(seed, "seen").normal(size=(n, f))
    leaf = PolicyValue.initial(seen, n_actions=3, hidden=tuple(hidden), seed=seed)
    whole = leaf.judge(np.zeros(n), 3, 0.9)
    for s in range(n):
        one = replace(leaf, features=leaf.features[s : s + 1]).judge(np.zeros(1), 3, 0.9)
        assert one.value[0] == whole.value[s] and np.array_equal(one.prior[0], whole.prior[s])


def test_parts_say_what_they_are_for() -> None:
    roles = {name: part.role for name, part in network(0, (3, 2)).parts.items()}
    trunk = {f"trunk.{i}.{w}": "weight" for i in (0, 1) for w in ("weight", "bias")}
    heads = {f"{role}.{w}": role for role in ("value", "policy") for w in ("weight", "bias")}
    assert roles == trunk | heads


@pytest.mark.parametrize("name", sorted(network().weights))
def test_the_digest_is_bound_to_every_weight(name: str) -> None:
    agent = tree_searcher(WORLD, GOAL, settings=TreeSettings(simulations=1), leaf=network())
    array = agent.parts[name].array.copy()
    array.reshape(-1)[-1] = np.nextafter(array.reshape(-1)[-1], np.inf)
    assert agent.with_arrays({name: array}).digest != agent.digest


def test_the_digest_is_bound_to_what_is_seen_and_to_the_seed() -> None:
    leaf = network()
    others = [leaf, replace(leaf, features=leaf.features[::-1]), replace(leaf, seed=1)]
    agents = [tree_searcher(WORLD, GOAL, settings=TreeSettings(simulations=1), leaf=x) for x in others]
    assert len({a.digest for a in agents}) == 3


def test_places_are_seen_as_a_row_and_a_column() -> None:
    place = WORLD.coordinates
    seen = features_of(WORLD, "place")
    rows = place[:, 0].max() + 1
    assert np.array_equal(np.stack([seen[:, :rows].argmax(1), seen[:, rows:].argmax(1)], 1), place)
    assert (seen.sum(1) == 2).all() and set(np.unique(seen)) == {0.0, 1.0}
    assert np.array_equal(features_of(WORLD), np.eye(S))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 9), st.sampled_from(WORLD.goals))
def test_fits_keep_shapes_and_touch_one_role(seed: int, goal: retarget.StateGoal) -> None:
    leaf = network(seed)
    for fit in leaf.fits(WORLD, goal, gamma=0.95):
        assert len({leaf.parts[name].role for name in fit.arrays}) == 1
        assert all(np.shape(a) == leaf.parts[name].array.shape for name, a in fit.arrays.items())
        changed = leaf.with_arrays(fit.arrays)
        kept = [n for n in leaf.weights if n not in fit.arrays]
        assert all(np.array_equal(changed.weights[n], leaf.weights[n]) for n in kept)
    fits = {f.name: f.arrays for f in leaf.fits(WORLD, goal, gamma=0.95)}
    silent = leaf.with_arrays({**fits["no values"], **fits["even prior"]}).judge(np.zeros(S), 4, 0.9)
    assert (silent.value == 0.0).all() and (silent.prior == 0.25).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 9), st.sampled_from(WORLD.goals))
def test_heads_are_fitted_by_least_squares_to_all_states_but_the_goal(seed: int, goal: retarget.StateGoal) -> None:
    leaf = network(seed, (9,))
    fits = {f.name: f.arrays for f in leaf.fits(WORLD, goal, gamma=0.95)}
    off = np.setdiff1d(np.arange(S), goal.states)
    seen = np.hstack([leaf.trunk[off], np.ones((off.size, 1))])
    penalty = np.sqrt(RIDGE * off.size) * np.eye(9, 10)
    value = np.clip(retarget.exact.optimal_values(WORLD.model, goal, gamma=0.95), MARGIN, 1 - MARGIN)[off]
    right = retarget.exact.best_actions(WORLD.model, goal, gamma=0.95)[off]
    for name, head, wanted in (
        ("exact values", "value", np.log(value / (1 - value))[:, None]),
        ("best actions", "policy", np.where(right, 0.0, UNLIKELY)),
    ):
        longer = np.vstack([wanted, np.zeros((9, wanted.shape[1]))])
        want = np.linalg.lstsq(np.vstack([seen, penalty]), longer, rcond=None)[0]
        found = np.vstack([fits[name][f"{head}.weight"].T, fits[name][f"{head}.bias"]])
        # predictions, not weights: units that never speak leave weights open
        assert np.allclose(seen @ found, seen @ want, atol=1e-6)


def test_a_world_that_is_all_goal_leaves_nothing_to_fit() -> None:
    assert network().fits(WORLD, retarget.StateGoal.of(range(S)), gamma=0.95) == ()


def test_a_wide_trunk_takes_values_of_another_goal() -> None:
    leaf = network(0, (64,))
    exact = retarget.exact.optimal_values(WORLD.model, OTHER, gamma=0.95)
    fit = next(f for f in leaf.fits(WORLD, OTHER, gamma=0.95) if f.name == "exact values")
    off = np.setdiff1d(np.arange(S), OTHER.states)
    found = leaf.with_arrays(fit.arrays).judge(np.zeros(S), 4, 0.95).value
    assert np.abs(found - exact)[off].max() < 0.02  # 64 random features of few states leave room for any values


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 20), st.integers(2, 6), st.integers(1, 3))
def test_the_ridge_is_a_least_squares_of_the_longer_problem(seed: int, n: int, d: int) -> None:
    rng = stream(seed, "ridge")
    x, y = rng.normal(size=(n, d)), rng.normal(size=(n, 2))
    weight, bias = ridge(x, y)
    penalty = np.hstack([np.sqrt(RIDGE * n) * np.eye(d), np.zeros((d, 1))])
    long_x = np.vstack([np.hstack([x, np.ones((n, 1))]), penalty])
    want = np.linalg.lstsq(long_x, np.vstack([y, np.zeros((d, 2))]), rcond=None)[0]
    assert np.allclose(np.hstack([x, np.ones((n, 1))]) @ np.vstack([weight.T, bias]), long_x[:n] @ want, atol=1e-6)


def test_the_logistic_function_is_silent_where_it_should_be() -> None:
    assert logistic(np.array([SILENT]))[0] == 0.0
    x = np.linspace(-30, 30, 7)
    assert np.allclose(logistic(x) + logistic(-x), 1.0, atol=1e-15) and logistic(np.zeros(1))[0] == 0.5


def test_leaf_values_are_cut_to_what_rewards_allow() -> None:
    leaf = Tables(np.full(S, 7.0), np.zeros((S, 4)))
    agent = tree_searcher(WORLD, GOAL, settings=TreeSettings(simulations=8), leaf=leaf)
    assert agent.tree_model.value.max() == 1.0 and agent.found.value.max() <= 1.0
    assert (agent.blank(0).tree_model.value == 0.0).all()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: network().with_arrays({"value.bias": np.array([np.nan])}), "finite"),
        (lambda: network().with_arrays({"value.bias": np.zeros(2)}), "should have shape"),
        (lambda: network().with_arrays({"nothing": np.zeros(2)}), "nothing"),
        (lambda: network().with_arrays(HUGE).judge(np.zeros(S), 4, 0.9), "overflow"),
        (lambda: network().judge(np.zeros(9), 4, 0.9), "was given for a world"),
        (lambda: network(hidden=(4, 0)), "at least one unit"),
        (lambda: features_of(WORLD, "plce"), "did you mean 'place'"),
        (lambda: features_of(ModelWorld(WORLD.model, GOAL), "place"), "have no place"),
        (lambda: Tables(np.zeros(3), np.zeros((4, 2))), r"value \[S\]"),
        (lambda: Distance(np.full((2, 2), np.nan)), "finite"),
    ],
)  # fmt: skip
def test_bad_networks_are_refused_in_one_line(make: object, words: str) -> None:
    with pytest.raises(AgentError, match=words) as error:
        make()  # type: ignore[operator]
    assert "\n" not in str(error.value)
