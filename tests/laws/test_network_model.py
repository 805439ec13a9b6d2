"""Laws of network models: those of agents, the same bits from the same seed, clean words for what cannot be planned."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import retarget
from retarget.agent import HasGoalSlot, Trainable
from retarget.agents.network_model import NetworkModelPlanner
from retarget.agents.neural import Architecture
from retarget.edit import Edit, Sparse
from retarget.errors import AgentError
from retarget.exact import policy_table
from retarget.probes import Retargetability
from retarget.testing import check_agent
from retarget.training.base import TrainingError
from retarget.training.dynamics import DynamicsSettings, LearnedNetworkModel, fit_dynamics, network_model_planner


def _agent(world: Any, goal: Any = None, **options: Any) -> LearnedNetworkModel:
    given = {"everywhere": True, "episodes": 40, "epsilon": 0.1, "seed": 0, "hidden": (8,)} | options
    return network_model_planner(world, goal or world.goal, **given)


@pytest.mark.parametrize("features", ["state", "place"])
@pytest.mark.parametrize("everywhere", [True, False])
@pytest.mark.parametrize("slip", [0.0, 0.25])
def test_network_models_obey_the_laws_of_agents(features: str, everywhere: bool, slip: float) -> None:
    world = retarget.make_world("OpenGrid", size=5, **({"slip": slip} if slip else {}))
    agent = _agent(world, features=features, everywhere=everywhere)
    check_agent(agent, world, max_examples=15)
    check_agent(agent.blank(1), world, max_examples=5)
    assert isinstance(agent, HasGoalSlot) and isinstance(agent, Trainable)
    assert {p.role for p in agent.parts.values()} == {"goal_slot", "model"}


def test_the_same_seed_gives_the_same_bits_and_takes_nobody_elses_numbers() -> None:
    world = retarget.make_world("FourRooms", size=7)
    before = torch.random.get_rng_state()
    one, two, other = _agent(world), _agent(world), _agent(world, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert one.digest == two.digest != other.digest
    again = [one.retrained(world, world.goals[-1], budget=16, seed=2) for _ in range(2)]
    assert again[0][0].digest == again[1][0].digest
    assert again[0][1] == again[1][1]
    assert one.digest == two.digest  # retraining leaves the agent as it was


def test_a_blank_is_what_training_began_from() -> None:
    world = retarget.make_world("OpenGrid", size=5)
    agent, untrained = _agent(world), _agent(world, episodes=0)
    blank = agent.blank(7)
    assert agent.seed == 0
    for name, array in blank.weights.items():
        np.testing.assert_array_equal(array, untrained.weights[name])
    assert not blank.reward.any()
    assert blank.counts is not None and not blank.counts.any()
    assert blank.seen_starts is None
    assert (policy_table(blank, world.model) == 0.25).all()
    # without a seed of its own, the seed that is asked for
    assert replace(agent, seed=None).blank(7).digest != blank.digest


def test_a_network_names_a_successor_where_it_never_saw_one() -> None:
    world = retarget.make_world("FourRooms", size=9)
    agent = _agent(world, everywhere=False, episodes=5, epsilon=0.0)
    assert agent.counts is not None
    assert (agent.counts.sum(2) == 0).any()
    assert (agent.successors < world.model.n_states).all()


def test_weights_that_overflow_are_told_in_one_line_when_it_plans() -> None:
    world = retarget.make_world("OpenGrid", size=5)
    agent = _agent(world)
    largest = {name: np.full(w.shape, 1e300) for name, w in agent.weights.items()}
    mixed = {name: np.where(np.arange(w.size).reshape(w.shape) % 2, 1e300, -1e300) for name, w in largest.items()}
    for arrays in (largest, mixed):
        edited = agent.with_arrays(arrays)
        with pytest.raises(AgentError, match=r"scores of state 0 are not finite.*1e\+300, are too large") as error:
            policy_table(edited, world.model)
        assert "\n" not in str(error.value)
    with pytest.raises(AgentError, match="not finite"):
        agent.with_arrays({"out.bias": np.full(agent.weights["out.bias"].shape, np.nan)})


def test_an_edit_of_one_weight_changes_what_it_believes() -> None:
    world = retarget.make_world("OpenGrid", size=5)
    agent = _agent(world)
    goal = world.goal.states[0]
    edited = Edit.of(agent, Sparse("out.bias", np.array([goal]), np.array([1e6]))).apply(agent)
    assert isinstance(edited, NetworkModelPlanner)
    assert (edited.successors == goal).all()
    # all actions seem to lead there: the lowest is as good as any
    assert (policy_table(edited, world.model)[:, 0] == 1).all()


def test_the_probe_of_retargetability_takes_it() -> None:
    world = retarget.make_world("OpenGrid", size=5)
    a, b = world.goals[0], world.goals[-1]
    agent = _agent(world, a, episodes=100)
    outcome = Retargetability(draws=4).measure(retarget.Subject(agent, world, a, b))
    assert outcome["edit_bits"].editor == "slot"
    assert outcome["competence_b_after"].value == pytest.approx(1.0)
    assert outcome["blank_bits"].value > outcome["edit_bits"].value  # type: ignore[operator]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"episodes": -1}, "episodes >= 0"),
        ({"epsilon": 1.5}, r"epsilon in \[0, 1\]"),
        ({"features": "pixels"}, "one of state, place"),
    ],
)
def test_bad_options_are_told_in_one_line(options: dict, words: str) -> None:
    with pytest.raises(AgentError, match=words) as error:
        _agent(retarget.make_world("OpenGrid", size=5), **options)
    assert "\n" not in str(error.value)


def test_places_must_tell_states_apart() -> None:
    with pytest.raises(AgentError, match="do not tell the states apart"):
        _agent(retarget.make_world("KeyDoor", size=6), features="place")
    with pytest.raises(AgentError, match="has no coordinates"):
        _agent(_placeless(), features="place")


def _placeless() -> Any:
    from retarget.agents.wrappers import ModelWorld

    world = retarget.make_world("OpenGrid", size=5)
    return ModelWorld(world.model, world.goal)


def test_parts_that_do_not_fit_are_refused() -> None:
    shape = Architecture.of("mlp", inputs=4, outputs=3, hidden=(2,))
    made = NetworkModelPlanner(np.zeros(3), shape, shape.initial(0), n_actions=1)
    for change, words in (
        ({"reward": np.zeros(2)}, "needs {'inputs': 3, 'outputs': 2}"),
        ({"reward": np.zeros((3, 1))}, r"needs reward \[S\]"),
        ({"gamma": 1.0}, "gamma in"),
        ({"n_actions": 2}, "needs {'inputs': 5"),
        ({"weights": {}}, "should have shape"),
        ({"place": np.zeros((3, 2), int)}, "do not tell the states apart"),
        ({"place": np.zeros((2, 2), int)}, "rows and columns from 0"),
    ):
        with pytest.raises(AgentError, match=words):
            replace(made, **change)  # type: ignore[arg-type]


def test_training_refuses_what_it_cannot_do() -> None:
    world = retarget.make_world("OpenGrid", size=5)
    agent = _agent(world)
    with pytest.raises(TrainingError, match="rate of DynamicsSettings must be above 0"):
        DynamicsSettings(rate=0.0)
    with pytest.raises(TrainingError, match="updates of DynamicsSettings must be at least 0"):
        DynamicsSettings(updates=-1)
    with pytest.raises(AgentError, match="counts and next_state must be"):
        fit_dynamics(agent, np.zeros((2, 4, 1), int), world.model.next_state)
    assert agent.counts is not None
    with pytest.raises(TrainingError, match="use a lower rate"):
        fit_dynamics(agent.blank(0), agent.counts, world.model.next_state, settings=DynamicsSettings(rate=1e38))
    with pytest.raises(AgentError, match="needs a finite world"):
        replace(agent, counts=None).retrained(world, world.goal, budget=4, seed=0)
