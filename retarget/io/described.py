"""Safetensors with a description beside them: `policy.safetensors` and `policy.json`.

The description, a JSON object:

- `network`: the kind of network and its options, as in `retarget.agents.networks`: e.g.
  `{"kind": "mlp", "inputs": 4, "outputs": 2, "hidden": [64, 64], "act": "tanh"}`.
- `tensors`: the file's name of each weight, by the network's own; without it, the names are alike.
- `head`: `logits`, `values`, or `mean` for continuous actions, which then need `action_range`: `[lowest, highest]`,
  a list of numbers each.
- `normalise`: `{"mean": […], "var": […], "clip_obs": 10, "epsilon": 1e-8}`, where it was trained on that.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import ValidationError

from retarget.errors import FileError, RetargetError, nearest
from retarget.io.architectures import OPTIONS, count_weights
from retarget.io.archive import fail, parse_json, short
from retarget.io.limits import open_bounded, read_header, read_tensor
from retarget.io.native import first_error
from retarget.io.network import MAX_WEIGHTS, confirmed, tensor
from retarget.io.normalise import Normalisation

if TYPE_CHECKING:
    from retarget.agents.neural import Architecture, Decision, Sensor
    from retarget.agents.wrapped import ForeignNetwork
    from retarget.world import World

MAX_BYTES = 64 << 20
MAX_DESCRIPTION = 1 << 20
_KINDS = ("mlp", "gru")
_FIELDS = ("network", "tensors", "head", "action_range", "normalise")


def load_described(
    path: Path, *, world: World | None, normalise: Normalisation | None, decision: Decision
) -> ForeignNetwork:
    """Read a network from safetensors, as its description says.

    Raises:
        FileError: in one line.
    """
    file = path.with_suffix(".json")
    fields = _description(path, file)
    architecture, shapes = _architecture(file, fields)
    names = _names(file, fields, shapes)
    found = read_weights(path, set(names.values()))
    weights = {}
    for short_name, name in names.items():
        array = tensor(path, found, name)
        if array.shape != shapes[short_name]:
            fail(path, f"tensor {name[:80]!r} has shape {array.shape}, its network needs {shapes[short_name]}")
        weights[short_name] = array
    head = fields.get("head", "logits")
    if head not in ("logits", "values", "mean"):
        fail(file, f"head is {head!r:.40}; it is logits, values or mean")
    return confirmed(
        path, architecture, weights, _sensor(path, file, fields, normalise, architecture), head, decision,
        box=_box(file, fields, head, architecture, world), algorithm="described", names=names, notes=(),
        inputs=_inputs(architecture),
    )  # fmt: skip


def _description(path: Path, file: Path) -> dict[str, object]:
    try:
        if not file.is_file():
            fail(path, f"needs a description beside it, {file.name!r}, see docs/checkpoints.md")
        with file.open("rb") as handle:
            data = handle.read(MAX_DESCRIPTION + 1)
    except OSError as error:
        fail(file, f"cannot be read ({error.strerror}); check its permissions")
    if len(data) > MAX_DESCRIPTION:
        fail(file, f"has more than the {MAX_DESCRIPTION} bytes that a description may have")
    fields = parse_json(file, data)
    unknown_fields = [k for k in fields if k not in _FIELDS]
    if unknown_fields:
        field = unknown_fields[0][:40]
        fail(file, f"has an unknown field {field!r}{nearest(field, _FIELDS)}; fields are {', '.join(_FIELDS)}")
    return fields


def _architecture(file: Path, fields: Mapping[str, object]) -> tuple[Architecture, dict[str, tuple[int, ...]]]:
    """The network, and the shapes of its weights; found without memory for them, which a file could ask too much of."""
    import torch

    from retarget.agents.neural import Architecture

    given = fields.get("network")
    if not isinstance(given, dict) or given.get("kind") not in _KINDS:
        fail(file, f"network needs a kind, one of {', '.join(_KINDS)}, and its options; got {given!r:.80}")
    kind, plain = str(given["kind"]), {k: v for k, v in given.items() if k != "kind"}
    try:
        OPTIONS[kind].model_validate(plain)
        n_weights = count_weights(kind, plain)
        if not 0 < n_weights <= MAX_WEIGHTS:
            fail(file, f"describes {n_weights} weights; a policy here has 1 to {MAX_WEIGHTS}")
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()}
        architecture = Architecture.of(kind, **options)
        with torch.device("meta"):
            shapes = {n: tuple(p.shape) for n, p in architecture.build().named_parameters()}
    except FileError:
        raise
    except ValidationError as error:
        fail(file, f"network: {first_error(error)}; see docs/checkpoints.md")
    except Exception as error:  # a wrong option breaks torch in many ways
        fail(file, f"no network can be built of these options ({short(error)}); see docs/checkpoints.md")
    return architecture, shapes


def _names(file: Path, fields: Mapping[str, object], shapes: Mapping[str, object]) -> dict[str, str]:
    given = fields.get("tensors", {n: n for n in shapes})
    if not isinstance(given, dict) or not all(isinstance(v, str) for v in given.values()) or set(given) != set(shapes):
        fail(file, f"tensors must name one tensor of the file for each of: {', '.join(shapes)}")
    if len(set(given.values())) != len(given):
        fail(file, "tensors names one tensor of the file twice; weights that are shared are not read")
    return {n: given[n] for n in shapes}


def _inputs(architecture: Architecture) -> int:
    return int(str(dict(architecture.options)["inputs"]))


def _sensor(
    path: Path, file: Path, fields: Mapping[str, object], normalise: Normalisation | None, architecture: Architecture
) -> Sensor:
    from retarget.agents.neural import Sensor

    given = fields.get("normalise")
    if given is not None and normalise is None:
        if not isinstance(given, dict):
            fail(file, f"normalise must be an object with mean and var, got {given!r:.40}")
        try:
            normalise = Normalisation.of(given)
        except RetargetError as error:
            fail(file, f"normalise: {error}")
    if normalise is None:
        return Sensor()
    if len(normalise.mean) != _inputs(architecture):
        fail(path, f"takes {_inputs(architecture)} numbers, the statistics are of {len(normalise.mean)}")
    return normalise.sensor()


def _box(
    file: Path, fields: Mapping[str, object], head: object, architecture: Architecture, world: World | None
) -> tuple[np.ndarray, np.ndarray] | None:
    from retarget.world import BoxWorld

    outputs = dict(architecture.options).get("outputs")
    if world is not None:
        _check_world(file, architecture, head, world)
    if head != "mean":
        return None
    given = fields.get("action_range")
    if given is None and isinstance(world, BoxWorld):
        return world.action_range
    try:
        low, high = (np.array(bound, dtype=np.float64) for bound in given)  # type: ignore[attr-defined]
        fits = low.shape == high.shape == (outputs,) and bool((low < high).all() and np.isfinite([low, high]).all())
    except (TypeError, ValueError, OverflowError):
        fits = False
    if not fits:
        fail(file, f"action_range must be [lowest, highest], {outputs} numbers each, got {given!r:.60}")
    return low, high


def _check_world(file: Path, architecture: Architecture, head: object, world: World) -> None:
    from retarget.world import BoxWorld

    if not isinstance(world, BoxWorld):
        fail(file, f"describes a policy of observations, {world.spec_data.label} has numbered states")
    options, label = dict(architecture.options), world.spec_data.label
    discrete = world.n_actions is not None
    if discrete == (head == "mean"):
        kind = "discrete" if discrete else "continuous"
        fail(file, f"has head {head!r}, but {label} has {kind} actions; give the world it is for")
    outputs = world.n_actions if world.action_range is None else len(world.action_range[0])
    if (options.get("inputs"), options.get("outputs")) != (world.observation_size, outputs):
        fail(
            file,
            f"describes {options.get('inputs')} inputs and {options.get('outputs')} outputs, "
            f"{label} has {world.observation_size} and {outputs}; give the world it is for",
        )


# -- safetensors -------------------------------------------------------------------------------------------------------


def read_weights(path: Path, wanted: set[str]) -> dict[str, np.ndarray]:
    """Real tensors by name, of those wanted; the header is checked against the file before anything is read.

    Raises:
        FileError: in one line, for a header that is too long, lies about the file, or describes other than F16, F32
            and F64 where they are wanted.
    """
    handle, size = open_bounded(path, MAX_BYTES, remedy="pass the path of a policy's safetensors")
    with handle:
        entries, start = read_header(path, handle, size)
        for name in sorted(wanted & set(entries)):
            if entries[name].dtype not in ("F16", "F32", "F64"):
                fail(path, f"tensor {name[:80]!r} is of type {entries[name].dtype}; weights are F32, F64 or F16")
        return {name: read_tensor(path, handle, entries[name], start) for name in sorted(wanted & set(entries))}
