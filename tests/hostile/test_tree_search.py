"""Tree searches that cannot be made, or that find nothing: one clear line, or well-defined numbers."""

import re

import numpy as np
import pytest

from retarget.errors import AgentError
from retarget.search import TreeModel, TreeSettings, compiled, search

CHAIN = np.array([[[1], [0]], [[2], [0]], [[2], [1]]])
METHODS = ("puct", "gumbel")


def chain(**changes):
    parts = {
        "next_state": CHAIN,
        "prob": np.ones(CHAIN.shape),
        "reward": np.array([0, 0, 1.0]),
        "value": np.zeros(3),
        "prior": np.full((3, 2), 0.5),
    }
    return TreeModel(**(parts | changes))


def refused(match, call):
    """One line that says what is wrong."""
    with pytest.raises(AgentError, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def judge(states):
    return np.zeros(len(states)), np.full((len(states), 2), 0.5)


@pytest.mark.parametrize("simulations", [0, -3, 65_537, 2.5, True, None])
def test_simulations_out_of_range(simulations):
    refused(
        f"simulations must be an integer from 1 to 65536, got {re.escape(repr(simulations))}",
        lambda: TreeSettings(simulations=simulations),
    )


@pytest.mark.parametrize(
    ("bad", "message"), [([3], "root 3 is outside"), ([-1, 0], "root -1 is outside"), ([], "roots"), ([0.5], "roots")]
)
def test_roots_that_are_no_states(bad, message):
    refused(message, lambda: search(chain(), np.array(bad), settings=TreeSettings()))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("when", [0, 1, 5])
def test_a_value_network_that_is_not_finite(when, bad, method):
    calls = []

    def broken(states):
        value, prior = judge(states)
        if len(calls) == when:
            value[-1] = bad
        calls.append(states)
        return value, prior

    how = TreeSettings(method=method, simulations=8)
    refused("not finite for state", lambda: search(chain(), np.array([0, 1]), settings=how, evaluate=broken))
    assert len(calls) == when + 1


def test_a_network_of_another_shape():
    refused(
        r"shapes \(1,\) and \(1, 2\), got \(1,\) and \(1, 3\)",
        lambda: search(
            chain(), np.array([0]), settings=TreeSettings(), evaluate=lambda s: (np.zeros(len(s)), np.ones((len(s), 3)))
        ),
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("evaluate", [None, judge])
def test_a_model_that_knows_nothing(evaluate, method):
    """Each action leads to an end that is worth nothing: two nodes beside the root, and all values 0."""
    model = chain(next_state=np.full((3, 2, 1), 3))
    found = search(model, np.arange(3), settings=TreeSettings(method=method, simulations=50), evaluate=evaluate)
    assert (found.visits.sum(1) == 50).all() and (found.visits > 0).all()
    assert (found.nodes == 3).all() and (found.steps == 50).all()
    assert not found.q.any() and not found.value.any()
    assert np.isfinite(found.policy).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rollout_steps", [0, 5])
def test_a_terminal_that_cannot_be_reached(rollout_steps, method):
    """States 0 and 1 never come to the reward in state 2: values 0, simulations shared evenly."""
    model = chain(next_state=np.array([[[1], [0]], [[0], [1]], [[2], [2]]]))
    how = TreeSettings(method=method, simulations=64, rollout_steps=rollout_steps)
    found = search(model, np.array([0, 1]), settings=how)
    assert (found.visits == 32).all()
    assert not found.q.any() and not found.value.any()
    np.testing.assert_array_equal(found.policy, np.full((2, 2), 0.5))


@pytest.mark.parametrize("method", METHODS)
def test_no_reward_anywhere(method):
    found = search(chain(reward=np.zeros(3)), np.arange(3), settings=TreeSettings(method=method, simulations=33))
    assert (found.visits.sum(1) == 33).all() and not found.value.any()


@pytest.mark.parametrize("method", METHODS)
def test_a_prior_of_nought(method):
    """Actions that the prior rules out: still a search, and never one that is not a number."""
    model = chain(prior=np.eye(2)[[1, 1, 1]])
    found = search(model, np.arange(3), settings=TreeSettings(method=method, simulations=40))
    assert (found.visits.sum(1) == 40).all() and np.isfinite(found.policy).all()


@pytest.mark.parametrize("size", [1e100, 1e-300])
@pytest.mark.parametrize("method", METHODS)
def test_rewards_of_any_size(size, method):
    model = chain(reward=np.array([-size, 0, size]))
    found = search(model, np.array([1]), settings=TreeSettings(method=method, simulations=40))
    assert np.isfinite(found.q).all() and np.isfinite(found.policy).all()
    assert found.action[0] == 0


@pytest.mark.parametrize("backup", ["mean", "max"])
def test_one_state_one_action(backup):
    model = TreeModel(np.zeros((1, 1, 1), dtype=int), np.ones((1, 1, 1)), np.zeros(1), np.array([0.5]), np.ones((1, 1)))
    found = search(model, np.array([0]), settings=TreeSettings(simulations=4096, gamma=1.0, backup=backup))
    assert found.visits.tolist() == [[4096]] and found.nodes[0] == 4097 and found.value[0] == 0.5
    assert found.steps[0] == 4096 * 4097 // 2


class TestMemory:
    """Refused before anything is made, and before anybody is asked."""

    @staticmethod
    def never(states):
        raise AssertionError("nobody is to be asked where there is no room for the answer")

    def test_a_batch_beyond_the_limit(self):
        how = TreeSettings(simulations=128)
        needed = compiled.bytes_needed(3, how, 2, 1)
        message = refused(
            "take fewer roots or simulations",
            lambda: search(chain(), np.arange(3), settings=how, evaluate=self.never, memory_limit_bytes=needed - 1),
        )
        assert f"needs {needed} bytes" in message and f"limit is {needed - 1}" in message
        search(chain(), np.arange(3), settings=how, evaluate=judge, memory_limit_bytes=needed)

    def test_a_batch_beyond_what_is_free(self):
        roots = np.zeros(10_000_000, dtype=np.int64)
        message = refused(
            "a search of 10000000 roots with 65536 simulations needs",
            lambda: search(chain(), roots, settings=TreeSettings(simulations=65_536), evaluate=self.never),
        )
        assert int(re.search(r"limit is (\d+)", message)[1]) > 0

    def test_tables_need_little_and_are_refused_all_the_same(self):
        how = TreeSettings(simulations=1000)
        search(chain(), np.zeros(1000, dtype=int), settings=how, memory_limit_bytes=1_000_000)
        refused(
            "take fewer roots or simulations",
            lambda: search(chain(), np.zeros(1000, dtype=int), settings=how, memory_limit_bytes=100_000),
        )

    def test_where_the_system_does_not_tell(self, monkeypatch):
        assert compiled.free_bytes() > 1 << 24

        def no_file(*args, **kwargs):
            raise OSError

        monkeypatch.setattr(compiled.Path, "read_text", no_file)
        assert compiled.free_bytes() > 1 << 24
        monkeypatch.delattr(compiled.os, "sysconf")
        assert compiled.free_bytes() == 1 << 30
