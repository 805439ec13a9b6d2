"""Laws of the compiled tree search."""

import os
import subprocess
import sys
import textwrap
import tracemalloc
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from retarget.search import Found, TreeModel, TreeSettings, search
from retarget.search.compiled import bytes_needed
from retarget.testing import models

DRAWN = settings(deadline=None, max_examples=150, derandomize=True)
SEEDS = st.integers(0, 2**32)


def general(model, rng, *, reward=0.3, unknown=0.1, low=-1.0):
    """A model to search, all numbers in general position."""
    s, a, _ = model.next_state.shape
    nxt = np.where(rng.random(model.next_state.shape) < unknown, s, model.next_state)
    rewards = np.where(rng.random(s) < reward, rng.uniform(low, 1, s), 0.0)
    return TreeModel(nxt, model.prob, rewards, rng.uniform(low, 1, s), rng.dirichlet(np.ones(a), s))


@st.composite
def settings_of(draw, *, most=100, noise=True, rollouts=True):
    method = draw(st.sampled_from(("puct", "gumbel")))
    return TreeSettings(
        method=method,
        backup="mean" if method == "gumbel" else draw(st.sampled_from(("mean", "max"))),
        simulations=draw(st.integers(1, most)),
        gamma=draw(st.sampled_from((0.5, 0.95, 1.0))),
        rollout_steps=draw(st.sampled_from((0, 6))) if rollouts else 0,
        considered=draw(st.sampled_from((2, 16))),
        gumbel_scale=draw(st.sampled_from((0.0, 1.0))) if noise else 0.0,
    )


def asked(model):
    """The model's own tables, as calls."""
    return lambda states: (model.value[states], model.prior[states])


def assert_equal(one: Found, other: Found):
    for field in fields(Found):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name), err_msg=field.name)


@DRAWN
@given(models(), settings_of(), SEEDS)
def test_counts_add_up(model, how, seed):
    searched = general(model, np.random.default_rng(seed))
    found = search(searched, np.arange(model.n_states), settings=how, seed=seed)
    n = how.simulations
    assert (found.visits.sum(1) == n).all() and (found.visits >= 0).all()
    assert (found.nodes <= n + 1).all() and (found.nodes >= 2).all()
    assert (found.steps >= n).all()
    assert (found.q[found.visits == 0] == 0).all()
    assert ((found.action >= 0) & (found.action < model.n_actions)).all()
    np.testing.assert_allclose(found.policy.sum(1), 1, atol=1e-12)
    assert (found.policy >= 0).all()
    if how.method == "puct":
        np.testing.assert_array_equal(found.policy, found.visits / n)
        assert (found.visits[np.arange(model.n_states), found.action] == found.visits.max(1)).all()


@DRAWN
@given(models(), settings_of(), SEEDS, st.sampled_from((-1.0, 0.0)))
def test_values_are_within_the_bounds_of_rewards_and_leaf_values(model, how, seed, low):
    """A return is γ to a power of at least 1, times a reward, a leaf value or 0."""
    searched = general(model, np.random.default_rng(seed), low=low)
    found = search(searched, np.arange(model.n_states), settings=how, seed=seed)
    possible = np.concatenate([searched.reward, searched.value, [0.0]])
    least, greatest = how.gamma * possible.min(), how.gamma * possible.max()
    for array in (found.q, found.value):
        assert array.min() >= least - 1e-12 and array.max() <= greatest + 1e-12


@DRAWN
@given(models(), settings_of(noise=False, rollouts=False), SEEDS, st.randoms(use_true_random=False))
def test_relabelling_actions_permutes_what_is_found(model, how, seed, random):
    """In general position, where no two scores are equal: then the numbering breaks no ties."""
    searched = general(model, np.random.default_rng(seed))
    perm = np.arange(model.n_actions)
    random.shuffle(perm)
    renamed = replace(
        searched, next_state=searched.next_state[:, perm], prob=searched.prob[:, perm], prior=searched.prior[:, perm]
    )
    roots = np.arange(model.n_states)
    one, other = (search(m, roots, settings=how, seed=seed) for m in (searched, renamed))
    np.testing.assert_array_equal(one.visits[:, perm], other.visits)
    np.testing.assert_array_equal(one.nodes, other.nodes)
    np.testing.assert_array_equal(one.steps, other.steps)
    for name in ("q", "policy"):
        np.testing.assert_allclose(getattr(one, name)[:, perm], getattr(other, name), atol=1e-9)
    np.testing.assert_allclose(one.value, other.value, atol=1e-12)


@pytest.mark.parametrize("judged", ["tables", "calls"])
@settings(DRAWN, max_examples=60)
@given(model=models(), how=settings_of(most=40), seed=SEEDS)
def test_a_batch_is_its_roots_one_by_one_in_any_order(judged, model, how, seed):
    rng = np.random.default_rng(seed)
    searched = general(model, rng)
    roots = rng.integers(0, model.n_states, rng.integers(1, 8))
    keys = rng.integers(0, 2**63, roots.size).astype(np.uint64)
    evaluate = asked(searched) if judged == "calls" else None
    whole = search(searched, roots, settings=how, keys=keys, evaluate=evaluate)
    order = rng.permutation(roots.size)
    shuffled = search(searched, roots[order], settings=how, keys=keys[order], evaluate=evaluate)
    for field in fields(Found):
        np.testing.assert_array_equal(getattr(whole, field.name)[order], getattr(shuffled, field.name))
    for i in range(roots.size):
        alone = search(searched, roots[i : i + 1], settings=how, keys=keys[i : i + 1], evaluate=evaluate)
        for field in fields(Found):
            np.testing.assert_array_equal(getattr(whole, field.name)[i], getattr(alone, field.name)[0])


@DRAWN
@given(models(), settings_of(), SEEDS)
def test_calls_that_read_the_tables_find_what_the_tables_do(model, how, seed):
    searched = general(model, np.random.default_rng(seed))
    roots = np.arange(model.n_states)
    tables, calls = (search(searched, roots, settings=how, seed=seed, evaluate=e) for e in (None, asked(searched)))
    assert_equal(tables, calls)


@DRAWN
@given(models(), settings_of(), SEEDS)
def test_keys_alone_decide_the_draws(model, how, seed):
    rng = np.random.default_rng(seed)
    searched, root = general(model, rng), np.array([int(rng.integers(model.n_states))])
    keys = rng.integers(0, 2**63, 2).astype(np.uint64)
    first, again, other = (search(searched, root, settings=how, keys=keys[i : i + 1]) for i in (0, 0, 1))
    assert_equal(first, again)
    if model.is_deterministic and not how.rollout_steps and not (how.method == "gumbel" and how.gumbel_scale):
        assert_equal(first, other)


@pytest.mark.parametrize("how", [TreeSettings(), TreeSettings(rollout_steps=8), TreeSettings(method="gumbel")])
def test_where_there_is_chance_keys_matter(how):
    rng = np.random.default_rng(0)
    chance = how.rollout_steps == 0
    shape = (20, 3, 2) if chance else (20, 3, 1)
    prob = np.full(shape, 1 / shape[2])
    reward = np.where(np.arange(20) < 4, 1.0, 0.0)
    model = TreeModel(rng.integers(0, 20, shape), prob, reward, np.zeros(20), np.full((20, 3), 1 / 3))
    found = search(model, np.full(50, 10), settings=how, keys=np.arange(50, dtype=np.uint64))
    assert len(np.unique(found.value)) > 10


@pytest.mark.parametrize("method", ["puct", "gumbel"])
def test_memory_grows_with_roots_only_where_leaves_are_called_for(method):
    """Peak of what NumPy takes: the answers and a few arrays of a row a root, for tables; `bytes_needed`, for calls."""
    s, a = 30, 4
    rng = np.random.default_rng(0)
    model = TreeModel(
        rng.integers(0, s, (s, a, 1)), np.ones((s, a, 1)), np.zeros(s), np.zeros(s), np.full((s, a), 1 / a)
    )
    how = TreeSettings(method=method, simulations=300)

    def peak(n, evaluate):
        roots = np.zeros(n, dtype=np.int64)
        search(model, roots[:1], settings=how, evaluate=evaluate)
        tracemalloc.start()
        search(model, roots, settings=how, evaluate=evaluate)
        out = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return out

    rows = 400  # bytes a root: answers, roots, keys, and what is asked and answered
    assert peak(2000, None) - peak(10, None) < 2000 * rows
    needed = bytes_needed(200, how, a, 1)
    assert needed > 200 * 300 * a * 3 * 8
    assert needed <= peak(200, asked(model)) < needed + 200 * rows + 200_000


CHECKED = """
import dataclasses
import numpy as np
from retarget.errors import AgentError
from retarget.search import TreeModel, TreeSettings, search
from retarget.search import compiled

rng = np.random.default_rng(7)


def one(budget=None):
    s, a, k = int(rng.integers(1, 9)), int(rng.integers(1, 7)), int(rng.integers(1, 4))
    nxt = rng.integers(0, s + 1, (s, a, k))
    reward = np.where(rng.random(s) < 0.2, rng.choice([-1.0, 1.0], s), 0.0)
    prior = rng.dirichlet(np.ones(a), s) if rng.random() < 0.5 else np.full((s, a), 1 / a)
    model = TreeModel(nxt, rng.dirichlet(np.ones(k), (s, a)), reward, rng.normal(size=s) * rng.integers(2), prior)
    gumbel = bool(rng.integers(2))
    how = TreeSettings(
        method="gumbel" if gumbel else "puct",
        backup="max" if not gumbel and rng.integers(2) else "mean",
        simulations=budget or int(rng.integers(1, 301)),
        rollout_steps=int(rng.choice([0, 0, 9])),
        gumbel_scale=float(rng.integers(2)),
    )
    roots = rng.integers(0, s, int(rng.integers(1, 7)))
    found = search(model, roots, settings=how, seed=1)
    called = search(model, roots, settings=how, seed=1, evaluate=lambda x: (model.value[x], model.prior[x]))
    for field in dataclasses.fields(found):
        assert np.array_equal(getattr(found, field.name), getattr(called, field.name)), field.name


for _ in range(400):
    one()
print("inside")
# the check must be able to fail: trees with room for fewer nodes than there are simulations
whole = compiled._Layout.small
compiled._Layout.small = classmethod(lambda c, n, m, how: whole(n, m, dataclasses.replace(how, simulations=5)))
try:
    one(budget=200)
except IndexError:
    print("caught")
"""


def test_no_budget_indexes_outside_an_array(tmp_path):
    """Kernels compiled anew with checked indices: 400 searches by tables and by calls, of 1 to 300 simulations, with up
    to 6 actions and 3 successors; then one in arrays that are too small, which has to be caught."""
    script = tmp_path / "checked.py"
    script.write_text(textwrap.dedent(CHECKED), encoding="utf-8")
    # a cache of its own: numba does not tell checked code from unchecked
    env = os.environ | {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True, timeout=900, check=False)
    assert done.stdout.split() == ["inside", "caught"], done.stdout + done.stderr


@DRAWN
@given(models(deterministic=True), SEEDS, st.integers(1, 60))
def test_with_max_backup_more_simulations_never_find_less(model, seed, simulations):
    """Without leaf values and penalties, the tree of n + 1 simulations holds that of n."""
    searched = general(model, np.random.default_rng(seed), low=0.0)
    searched = replace(searched, value=np.zeros(model.n_states))
    assume(searched.reward.any())
    roots = np.arange(model.n_states)
    less, more = (
        search(searched, roots, settings=TreeSettings(simulations=n, backup="max"))
        for n in (simulations, simulations + 1)
    )
    assert (less.value <= more.value + 1e-12).all()
    assert ((more.visits - less.visits) >= 0).all() and ((more.visits - less.visits).sum(1) == 1).all()
