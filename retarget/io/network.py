"""From somebody's tensors to an agent: the checks, the names, and a forward pass that confirms them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from retarget.errors import RetargetError
from retarget.io.archive import fail, short
from retarget.rng import stream

if TYPE_CHECKING:
    from retarget.agents.neural import Architecture, Decision, Head, Sensor
    from retarget.agents.wrapped import ForeignNetwork
    from retarget.io.normalise import Normalisation
    from retarget.world import World

#: Weights that an acting network may have.
MAX_WEIGHTS = 1 << 21
#: States that a policy of numbered states may tell apart.
MAX_STATES = 4096


@dataclass(frozen=True, eq=False)
class Recipe:
    """A feed-forward policy as a file describes it; None for what the file does not say.

    Attributes:
        path: of the file, for errors.
        algorithm: that it was trained with.
        tensors: by the file's own names.
        layers: (weight, bias) names from input to output.
        head: what comes out of it.
        squash: whether tanh follows the last layer.
        activation: between layers.
        inputs, outputs: numbers of observation and of action that the file declares.
        n_observations: number of states, where observations are numbers of states.
        low, high: range of continuous actions.
        normalised: whether it was trained on normalised observations.
        notes: what was assumed.
    """

    path: Path
    algorithm: str
    tensors: Mapping[str, np.ndarray]
    layers: tuple[tuple[str, str | None], ...]
    head: Head | None
    squash: bool
    activation: str
    inputs: int | None = None
    outputs: int | None = None
    n_observations: int | None = None
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    normalised: bool | None = None
    notes: tuple[str, ...] = ()


def agent_of(
    recipe: Recipe, *, world: World | None, normalise: Normalisation | None, decision: Decision
) -> ForeignNetwork:
    """The agent that a recipe makes, confirmed by a forward pass.

    Raises:
        FileError: in one line, for weights that do not fit together, the world, or the statistics.
    """
    from retarget.agents.neural import Architecture

    recipe = _in_world(recipe, world)
    weights, names = _named(recipe)
    widths = [int(recipe.tensors[w].shape[0]) for w, _ in recipe.layers]
    inputs = int(recipe.tensors[recipe.layers[0][0]].shape[1])
    _check_sizes(recipe, inputs, widths[-1])
    options: dict[str, object] = {
        "inputs": inputs, "outputs": widths[-1], "hidden": tuple(widths[:-1]), "act": recipe.activation,
        "bias": recipe.layers[0][1] is not None,
    }  # fmt: skip
    if recipe.squash:
        options |= {"squash": True, "scale": _scale(recipe)}
    architecture = Architecture.of("mlp", **options)
    sensor = _sensor(recipe, inputs, normalise)
    notes = recipe.notes + _about_normalisation(recipe, normalise)
    return confirmed(
        recipe.path, architecture, weights, sensor, recipe.head or "logits", decision,
        box=_box(recipe), algorithm=recipe.algorithm, names=names, notes=notes, inputs=inputs,
    )  # fmt: skip


def confirmed(
    path: Path, architecture: Architecture, weights: Mapping[str, np.ndarray], sensor: Sensor, head: Head,
    decision: Decision, *, box: tuple[np.ndarray, np.ndarray] | None, algorithm: str, names: Mapping[str, str],
    notes: tuple[str, ...], inputs: int,
) -> ForeignNetwork:  # fmt: skip
    """Build the agent, and let it act on random observations.

    Raises:
        FileError: when it cannot be built, or what comes out is not finite.
    """
    import torch

    from retarget.agents.wrapped import ForeignNetwork

    if decision == "sample" and head != "logits":
        fail(path, f"its network gives {head}, which no action can be drawn from; use decision='greedy'")
    try:
        agent = ForeignNetwork(
            architecture, weights, sensor, head, decision, box, algorithm=algorithm, tensor_names=names, notes=notes
        )
        obs = np.arange(min(agent.n_states or 0, 64))
        if agent.n_states is None:
            obs = stream(0, "confirm").standard_normal((16, inputs)).astype(np.float32)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scores, _ = agent.step(agent.tensors, torch.from_numpy(obs))
        if not torch.isfinite(scores).all():
            fail(path, "its output is not finite on observations of ordinary size; its weights are broken")
        agent.policy(obs)
    except RetargetError as error:
        fail(path, str(error).removeprefix(f"{str(path)!r}: "))
    except Exception as error:  # torch raises many kinds
        fail(path, f"its network cannot act ({short(error)}); check its description")
    return agent


def _in_world(recipe: Recipe, world: World | None) -> Recipe:
    """Fill what the file leaves open from the world, and check the rest against it."""
    from retarget.world import BoxWorld, FiniteWorld

    if world is None:
        if recipe.head is None:
            fail(recipe.path, "does not say whether its actions are discrete; say world=, which tells")
        return recipe
    label = world.spec_data.label
    n_actions: int | None
    box: tuple[np.ndarray, np.ndarray] | None
    if isinstance(world, FiniteWorld):
        n_actions, box = world.model.n_actions, None
        if recipe.n_observations is None:
            recipe = replace(recipe, n_observations=world.model.n_states)
        if recipe.n_observations != world.model.n_states:
            there = world.model.n_states
            fail(recipe.path, f"is for {recipe.n_observations} states, {label} has {there}; give the world it is for")
    else:
        assert isinstance(world, BoxWorld)
        n_actions, box = world.n_actions, world.action_range
        if recipe.n_observations is not None:
            fail(recipe.path, f"is for {recipe.n_observations} numbered states, {label} has none; give a finite world")
        _agree(recipe, "inputs", world.observation_size, f"observations of {label}")
        recipe = replace(recipe, inputs=world.observation_size)
    if recipe.head is None:
        recipe = replace(recipe, head="logits" if box is None else "mean")
    if (recipe.head == "mean") != (box is not None):
        kind = "continuous" if recipe.head == "mean" else "discrete"
        fail(recipe.path, f"takes {kind} actions, {label} does not; give the world it is for")
    if box is None:
        _agree(recipe, "outputs", n_actions, f"actions of {label}")
        return replace(recipe, outputs=n_actions)
    _agree(recipe, "outputs", len(box[0]), f"actions of {label}")
    low, high = (tuple(float(x) for x in bound) for bound in box)
    return replace(recipe, outputs=len(low), low=recipe.low or low, high=recipe.high or high)


def _agree(recipe: Recipe, name: str, size: int | None, what: str) -> None:
    said = getattr(recipe, name)
    if said is not None and said != size:
        fail(recipe.path, f"declares {said} {name}, the {what} have {size}; give the world it was trained in")


def _named(recipe: Recipe) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Weights by the names of an MLP here, and the file's own names by those."""
    weights: dict[str, np.ndarray] = {}
    names: dict[str, str] = {}
    biased = {bias is not None for _, bias in recipe.layers}
    if len(biased) > 1:
        fail(recipe.path, "some of its layers have a bias and some have none; wrap it in Python instead")
    before: int | None = None
    for i, (weight, bias) in enumerate(recipe.layers):
        here = "out" if i == len(recipe.layers) - 1 else f"hidden.{i}.0"
        matrix = tensor(recipe.path, recipe.tensors, weight, ndim=2)
        if before is not None and matrix.shape[1] != before:
            fail(recipe.path, f"{weight!r} takes {matrix.shape[1]} numbers, the layer before gives {before}")
        before = matrix.shape[0]
        weights[f"{here}.weight"], names[f"{here}.weight"] = matrix, weight
        if bias is not None:
            vector = tensor(recipe.path, recipe.tensors, bias, ndim=1)
            if vector.shape != (before,):
                fail(recipe.path, f"{bias!r} has shape {vector.shape}, its layer gives {before} numbers")
            weights[f"{here}.bias"], names[f"{here}.bias"] = vector, bias
    n_weights = sum(w.size for w in weights.values())
    if n_weights > MAX_WEIGHTS:
        fail(recipe.path, f"has {n_weights} weights, more than the {MAX_WEIGHTS} that a policy here may have")
    return weights, names


def tensor(path: Path, tensors: Mapping[str, np.ndarray], name: str, *, ndim: int | None = None) -> np.ndarray:
    """A tensor of real, finite numbers that are not too large for single precision.

    Raises:
        FileError: when it is absent, or is none.
    """
    if name not in tensors:
        fail(path, f"has no tensor {name[:80]!r} of real numbers; save the whole policy in float32")
    array = tensors[name]
    if ndim is not None and array.ndim != ndim:
        fail(path, f"tensor {name[:80]!r} has shape {array.shape}, where {ndim} axes are needed")
    bad = int((~np.isfinite(array)).sum())
    if bad:
        fail(path, f"tensor {name[:80]!r} holds {bad} values that are not finite; the training must have diverged")
    return array


def _check_sizes(recipe: Recipe, inputs: int, outputs: int) -> None:
    wanted = recipe.n_observations if recipe.n_observations is not None else recipe.inputs
    if wanted is not None and wanted != inputs:
        fail(recipe.path, f"its network takes {inputs} numbers, its space of observations has {wanted}")
    if recipe.outputs is not None and recipe.outputs != outputs:
        fail(recipe.path, f"its network gives {outputs} numbers, its space of actions has {recipe.outputs}")
    if recipe.n_observations is not None and inputs > MAX_STATES:
        fail(recipe.path, f"tells {inputs} states apart, more than the {MAX_STATES} that are read")


def _box(recipe: Recipe) -> tuple[np.ndarray, np.ndarray] | None:
    if recipe.head != "mean":
        return None
    if recipe.low is None or recipe.high is None:
        fail(recipe.path, "does not say the range of its actions in plain text; say world=, which has it")
    low, high = np.array(recipe.low), np.array(recipe.high)
    if low.shape != high.shape or low.shape != (recipe.outputs or len(low),) or not (low < high).all():
        fail(recipe.path, f"its actions range from {low.tolist()} to {high.tolist()}, which is no range")
    return low, high


def _scale(recipe: Recipe) -> float:
    """What tanh is multiplied with: `low + (high - low) (x + 1) / 2` is `scale x` where the range is even."""
    box = _box(recipe)
    assert box is not None
    low, high = box
    if not ((-low == high[0]) & (high == high[0])).all():
        fail(recipe.path, "squashes its actions into an uneven range; rebuild it in Python and wrap it instead")
    return float(high[0])


def _sensor(recipe: Recipe, inputs: int, normalise: Normalisation | None) -> Sensor:
    from retarget.agents.neural import Sensor

    if recipe.n_observations is not None:
        if normalise is not None:
            fail(recipe.path, "observes numbers of states, which cannot be normalised; leave normalise out")
        return Sensor(features=np.eye(inputs, dtype=np.float32))
    if normalise is None:
        return Sensor()
    if len(normalise.mean) != inputs:
        fail(recipe.path, f"takes {inputs} numbers, the statistics are of {len(normalise.mean)}; give those of its own")
    return normalise.sensor()


def _about_normalisation(recipe: Recipe, normalise: Normalisation | None) -> tuple[str, ...]:
    if recipe.n_observations is not None or (normalise is None and recipe.normalised is False):
        return ()
    if normalise is not None:
        doubt = recipe.normalised is False
        return ("statistics were given, though it seems to have been trained on plain observations",) if doubt else ()
    if recipe.normalised:
        return (
            "it was trained in a VecNormalize environment, and no statistics were given: "
            "convert them and say normalise=, unless only rewards were normalised",
        )
    return ("it does not say whether it was trained on normalised observations; if it was, say normalise=",)
