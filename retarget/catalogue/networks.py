"""Networks trained here, as a kind of agent: what may be asked for, and how one is built and trained.

Torch and Lightning are loaded when a network is built, not when it is listed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from retarget.agent import Agent
from retarget.catalogue.entries import AgentEntry, NotApplicableHere, Option, Recipe
from retarget.errors import GoalError, StudyError, unknown
from retarget.rng import stream
from retarget.world import FiniteWorld

if TYPE_CHECKING:
    from retarget.training.fit import Method

NETS = ("mlp", "cnn", "gru", "vin", "transformer")
TRAININGS = ("clone", "ppo", "dqn", "clone+ppo")
GOALS, STARTS = ("one", "many"), ("all", "half")
GOAL_INPUTS = ("one_hot", "place", "plane", "token", "set_point")
#: Training goals where no study names them.
SOME_GOALS = 8

OPTIONS = {
    "net": Option("mlp", f"kind of network: {', '.join(NETS)}"),
    "training": Option("clone", f"{', '.join(TRAININGS)}; clone: of optimal behaviour"),
    "goals": Option("one", "'one' goal; or 'many', the study's training goals, shown in the input"),
    "goal_input": Option("", f"how goals are shown: {', '.join(GOAL_INPUTS)}; empty for what suits the network"),
    "shuffled": Option(False, "control: the goal shown in training says nothing about the goal"),
    "starts": Option("all", "training starts: 'all', or a random 'half', the others held out"),
    "hidden": Option(64, "width of hidden layers (transformer: of the residual stream)"),
    "layers": Option(2, "number of hidden layers (cnn: of convolutions; gru and vin have what they have)"),
    "updates": Option(4000, "budget of cloning, in optimiser updates; it stops when the lessons are fitted"),
    "env_steps": Option(200_000, "budget of ppo and dqn, in transitions"),
}


def build_network(
    recipe: Recipe, *, net: str, training: str, goals: str, goal_input: str, shuffled: bool, starts: str, hidden: int,
    layers: int, updates: int, env_steps: int,
) -> Agent:  # fmt: skip
    """Build and train one.

    Raises:
        StudyError: for a value out of range.
        NotApplicableHere: where such a network, or such a training of it, cannot exist.
    """
    _among("net", net, NETS)
    _among("training", training, TRAININGS)
    _among("goals", goals, GOALS)
    _among("starts", starts, STARTS)
    if goal_input:
        _among("goal_input", goal_input, GOAL_INPUTS)
    for name, value, least in (
        ("hidden", hidden, 1), ("layers", layers, 0), ("updates", updates, 0), ("env_steps", env_steps, 0),
    ):  # fmt: skip
        if value < least:
            raise StudyError(f"option {name!r} of agent 'network' must be at least {least}, got {value}")
    _possible(recipe, net, training, goals, goal_input, shuffled)

    from retarget.agents.network_for import network_for
    from retarget.training import train

    aims = (recipe.goal,) if goals == "one" else _aims(recipe)
    shape = _shape(net, hidden, layers) | ({"head": "values"} if training == "dqn" else {})
    blank = network_for(
        recipe.world, recipe.goal, kind=net, goals=None if goals == "one" else aims, goal_input=goal_input or None,
        seed=recipe.seed, **shape,
    )  # fmt: skip
    trained = train(
        blank, recipe.world, goals=aims, method=_methods(net, training, updates, env_steps), gamma=recipe.gamma,
        starts=None if starts == "all" else _half(recipe), shuffled_goals=shuffled, seed=recipe.seed,
        accelerator="cpu",
    )  # fmt: skip
    return trained.agent


def _among(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise StudyError(unknown(f"{name} of agent 'network':", value, known))


def _possible(recipe: Recipe, net: str, training: str, goals: str, goal_input: str, shuffled: bool) -> None:
    finite = isinstance(recipe.world, FiniteWorld)
    placed = isinstance(recipe.world, FiniteWorld) and recipe.world.coordinates is not None
    label = recipe.world.spec_data.label
    if net in ("cnn", "vin") and not placed:
        raise NotApplicableHere(f"a {net} needs states with coordinates, which {label} does not have")
    if net == "transformer" and not finite:
        raise NotApplicableHere(f"a transformer here reads states as tokens, and those of {label} are continuous")
    if goal_input in ("place", "plane") and not placed:
        raise NotApplicableHere(f"goals are shown as a {goal_input} where states have coordinates; {label} has none")
    if net == "gru" and training != "clone":
        raise NotApplicableHere(f"{training} trains networks without memory, and a gru has one; use training='clone'")
    if training == "dqn" and getattr(recipe.world, "n_actions", 1) is None:
        raise NotApplicableHere(f"dqn needs discrete actions, and those of {label} are continuous")
    if goals == "one" and (shuffled or goal_input):
        raise StudyError(
            "options 'shuffled' and 'goal_input' of agent 'network' need goals='many'; there is no goal input"
        )


def _shape(net: str, hidden: int, layers: int) -> dict[str, Any]:
    if net == "mlp":
        return {"hidden": (hidden,) * layers}
    if net == "cnn":
        return {"hidden": hidden, "convs": (16,) * layers}
    if net == "transformer":
        return {"d_model": hidden, "n_layers": layers}
    return {"hidden": hidden}


def _methods(net: str, training: str, updates: int, env_steps: int) -> tuple[Method, ...]:
    from retarget.training import DQN, PPO, Cloning

    cloning = Cloning(updates=updates)
    if net == "vin":
        # an update costs a hundred times one of an mlp's, and the last lessons take most of them
        cloning = Cloning(updates=updates, batch=64, rate=6e-3, enough=0.995)
    elif net == "gru":
        cloning = Cloning(updates=updates, enough=0.999)

    if training == "dqn":
        return (DQN(env_steps=env_steps),)
    if training == "ppo":
        return (PPO(env_steps=env_steps),)
    if training == "clone":
        return (cloning,)
    # a value network that knows nothing yet would undo what was cloned
    return (cloning, PPO(env_steps=env_steps, rate=5e-4, value_only=8))


def _aims(recipe: Recipe) -> tuple[Any, ...]:
    goals = recipe.plan.training if recipe.plan is not None else recipe.world.goals[:SOME_GOALS]
    # sorted, so that the order does not tell which one A is
    return tuple(sorted(dict.fromkeys((recipe.goal, *goals))))


def _half(recipe: Recipe) -> np.ndarray:
    world, goal = recipe.finite()
    rng = stream(recipe.seed, "training_starts", world.spec_data.label)
    starts = np.setdiff1d(world.start_states, goal.states)
    if len(starts) < 2:
        raise GoalError(f"{world.spec_data.label} has {len(starts)} start, of which none can be held out")
    return np.sort(rng.permutation(starts)[: len(starts) // 2])


ENTRIES = {"network": AgentEntry("network", "neural network, trained here: see training", OPTIONS, build_network)}
