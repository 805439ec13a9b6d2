"""Networks trained here, as a kind of agent: what may be asked for, and how one is built and trained.

Torch and Lightning are loaded when a network is built, not when it is listed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from retarget.agent import Agent
from retarget.catalogue.entries import AgentEntry, NotApplicableHere, Option, Recipe
from retarget.errors import GoalError, StudyError
from retarget.rng import stream
from retarget.world import FiniteWorld

if TYPE_CHECKING:
    from retarget.training.fit import Method

NETS = ("mlp", "cnn", "gru", "vin", "transformer")
TRAININGS = ("clone", "distil", "ppo", "dqn", "clone+ppo")
GOALS, STARTS = ("one", "many"), ("all", "half")
GOAL_INPUTS = ("", "one_hot", "place", "plane", "token", "set_point")
#: Training goals where no study names them.
SOME_GOALS = 8

OPTIONS = {
    "net": Option("mlp", f"kind of network: {', '.join(NETS)}", choices=NETS),
    "training": Option(
        "clone",
        f"{', '.join(TRAININGS)}; clone: of all that is optimal, distil: of the exact planner's own choices",
        choices=TRAININGS,
    ),
    "goals": Option("one", "'one' goal; or 'many', the study's training goals, shown in the input", choices=GOALS),
    "goal_input": Option(
        "", f"how goals are shown: {', '.join(GOAL_INPUTS[1:])}; empty for what suits the network", choices=GOAL_INPUTS
    ),
    "shuffled": Option(False, "control: the goal shown in training says nothing about the goal"),
    "starts": Option("all", "training starts: 'all', or a random 'half', the others held out", choices=STARTS),
    "hidden": Option(64, "width of hidden layers (transformer: of the residual stream)", low=1, high=4096),
    "layers": Option(
        2, "number of hidden layers (cnn: of convolutions; gru and vin have what they have)", low=0, high=16
    ),
    "updates": Option(4000, "budget of cloning, in optimiser updates; it stops when the lessons are fitted", low=0),
    "env_steps": Option(200_000, "budget of ppo and dqn, in transitions", low=0),
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
    _possible(recipe, net, training, goals, goal_input, shuffled)

    from retarget.agents.network_for import network_for
    from retarget.agents.planner import exact_planner
    from retarget.training import train

    aims = (recipe.goal,) if goals == "one" else _aims(recipe)
    shape = _shape(net, hidden, layers) | ({"head": "values"} if training == "dqn" else {})
    blank = network_for(
        recipe.world, recipe.goal, kind=net, goals=None if goals == "one" else aims, goal_input=goal_input or None,
        seed=recipe.seed, **shape,
    )  # fmt: skip
    teacher = exact_planner(*recipe.finite(), gamma=recipe.gamma) if training == "distil" else None
    trained = train(
        blank, recipe.world, goals=aims, gamma=recipe.gamma,
        method=_methods(net, training, updates, env_steps, teacher),
        starts=None if starts == "all" else _half(recipe), shuffled_goals=shuffled, seed=recipe.seed,
        accelerator="cpu",
    )  # fmt: skip
    return trained.agent


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
    if net == "gru" and training not in ("clone", "distil"):
        raise NotApplicableHere(f"{training} trains networks without memory, and a gru has one; use training='clone'")
    if training == "distil" and not finite:
        raise NotApplicableHere(f"there is no exact planner to distil in {label}; use training='clone'")
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


def _methods(net: str, training: str, updates: int, env_steps: int, teacher: Agent | None) -> tuple[Method, ...]:
    from retarget.training import DQN, PPO, Cloning

    cloning = Cloning(updates=updates, teacher=teacher)
    if net == "vin":
        # an update costs a hundred times one of an mlp's, and the last lessons take most of them
        cloning = Cloning(updates=updates, teacher=teacher, batch=64, rate=6e-3, enough=0.995)
    elif net == "gru":
        cloning = Cloning(updates=updates, teacher=teacher, enough=0.999)

    if training == "dqn":
        return (DQN(env_steps=env_steps),)
    if training == "ppo":
        return (PPO(env_steps=env_steps),)
    if training in ("clone", "distil"):
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
