"""Searches, their training and their Bayesian kin, asked for what cannot be: one line, and nothing large is made."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import retarget
from retarget.agents.bayes import BayesPlanner, mc_aixi
from retarget.agents.search import tree_searcher
from retarget.bayes import Coding, evaluate, learn, make_domain
from retarget.errors import AgentError, RetargetError
from retarget.search import TreeModel, TreeSettings, search
from retarget.search.reference import bytes_needed
from retarget.search.sweeps import solve, stack
from retarget.training.alphazero import SelfPlay, train_alphazero
from retarget.training.base import TrainingError

WORLD = retarget.make_world("OpenGrid", size=5)
DOMAIN = make_domain("1d_maze")


def refused(match: str, call: Callable[[], Any], kind: type[RetargetError] = RetargetError) -> None:
    start = time.perf_counter()
    with pytest.raises(kind, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert time.perf_counter() - start < 5


def model() -> TreeModel:
    return tree_searcher(WORLD, WORLD.as_goal((4, 4)), settings=TreeSettings(simulations=8)).tree_model


@pytest.mark.parametrize("value", ["0.9", None, True, [0.9]])
def test_a_gamma_that_is_no_number(value: Any) -> None:
    refused("gamma of a search must lie in", lambda: TreeSettings(gamma=value), AgentError)


@pytest.mark.parametrize("name", ["exploration", "visit_scale", "value_scale", "gumbel_scale"])
@pytest.mark.parametrize("value", [None, "1", True])
def test_a_factor_that_is_no_number(name: str, value: Any) -> None:
    refused(f"{name} of a search must be a finite number", lambda: TreeSettings(**{name: value}), AgentError)


@pytest.mark.parametrize("answer", [None, 1.0, (np.zeros(1),), "ab"])
@pytest.mark.parametrize("engine", ["compiled", "plain"])
def test_a_judge_that_returns_no_two_arrays(answer: Any, engine: Any) -> None:
    refused(
        "evaluate must return two arrays",
        lambda: search(model(), np.array([0]), settings=TreeSettings(), evaluate=lambda _: answer, engine=engine),
        AgentError,
    )


def test_the_plain_engine_keeps_to_the_memory_limit() -> None:
    how = TreeSettings(simulations=64)
    roots = np.arange(3)
    refused(
        "3 roots with 64 simulations needs .* the limit is 1000",
        lambda: search(model(), roots, settings=how, engine="plain", memory_limit_bytes=1000),
        AgentError,
    )
    allowed = search(model(), roots, settings=how, engine="plain", memory_limit_bytes=10**6)
    assert (allowed.visits.sum(1) == 64).all()


@pytest.mark.parametrize("simulations", [64, 512])
def test_what_the_plain_engine_says_that_it_needs_is_what_it_takes(simulations: int) -> None:
    """Of one tree and the answers; within a third of what was seen to be allocated."""
    how, m, roots = TreeSettings(simulations=simulations), model(), np.arange(3)
    search(m, roots, settings=how, engine="plain")
    tracemalloc.start()
    search(m, roots, settings=how, engine="plain")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= bytes_needed(3, how, m.n_actions, m.n_successors) * 1.05
    assert peak >= bytes_needed(3, how, m.n_actions, m.n_successors) * 0.66


def test_rewards_that_are_no_numbers_are_called_that() -> None:
    reward = np.zeros(25)
    reward[7] = np.nan
    refused("reward of state 7 in world 0 is nan", lambda: solve(*stack([WORLD.model], [reward]), gamma=0.9))


@pytest.mark.parametrize("name", ["iterations", "episodes", "updates", "remembered"])
@pytest.mark.parametrize("value", [2.5, True, "3"])
def test_counts_of_training_are_whole(name: str, value: Any) -> None:
    refused(f"{name} of SelfPlay must be a whole number", lambda: SelfPlay(**{name: value}), TrainingError)


def test_training_that_diverges_says_so() -> None:
    refused(
        "training diverged in round 0.*lower rate=1e.30",
        lambda: train_alphazero(
            WORLD, WORLD.goals[0], settings=TreeSettings(simulations=4), play=SelfPlay(iterations=2, rate=1e30)
        ),
        TrainingError,
    )


def test_rollouts_that_a_network_would_not_hear() -> None:
    refused(
        "rollout_steps=8 would not be heard",
        lambda: train_alphazero(WORLD, WORLD.goals[0], settings=TreeSettings(rollout_steps=8)),
        AgentError,
    )


LEARNED = learn(DOMAIN, cycles=20, simulations=4, seed=0, evaluation=4, depth=4, horizon=2).learned


@pytest.mark.parametrize("cycles", [0, -1, 2.5, True, 10**12])
def test_cycles_of_an_evaluation(cycles: Any) -> None:
    refused("cycles must be a whole number from 1 to", lambda: evaluate(LEARNED, cycles=cycles))


@pytest.mark.parametrize("simulations", [0, -1, 2.5, True, 10**10])
def test_simulations_of_an_evaluation(simulations: Any) -> None:
    refused(
        "simulations must be a whole number from 1 to", lambda: evaluate(LEARNED, cycles=5, simulations=simulations)
    )


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"depth": 10**9}, "depth of a context is at most 10000 bits, got 1000000000"),
        ({"horizon": 10**9}, "horizon must be a whole number from 1 to"),
        ({"simulations": 10**12}, "simulations must be a whole number from 1 to"),
        ({"evaluation_simulations": 0}, "evaluation_simulations must be a whole number from 1 to"),
    ],
)
def test_learning_that_would_take_all_memory(given: dict[str, Any], match: str) -> None:
    refused(match, lambda: learn(DOMAIN, **({"cycles": 5, "simulations": 4, "seed": 0} | given)))


def test_a_context_of_the_greatest_depth_is_a_coding() -> None:
    assert Coding(1, 1, 0, depth=10_000).depth == 10_000


@pytest.mark.parametrize("everywhere", [True, False])
def test_more_simulations_than_a_tree_can_have(everywhere: bool) -> None:
    refused(
        "at most 1000000, got 1000000000000",
        lambda: mc_aixi(WORLD, WORLD.goals[0], cycles=2, simulations=10**12, seed=0, everywhere=everywhere),
    )
    planner = BayesPlanner(np.eye(3)[0], np.ones((3, 2, 3)), simulations=10**12)
    refused("at most 1000000, got 1000000000000", lambda: planner.policy(np.array([0])))
