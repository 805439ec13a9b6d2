"""What the description of a network may say: every option has a bound, checked before anything is built from it."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from retarget.agents.neural import KINDS

#: Widths of layers and of inputs, and the number of layers.
MAX_WIDTH, MAX_INPUTS, MAX_LAYERS = 65_536, 1 << 24, 64

Width = Annotated[int, Field(ge=1, le=MAX_WIDTH)]
Inputs = Annotated[int, Field(ge=1, le=MAX_INPUTS)]
Side = Annotated[int, Field(ge=1, le=4096)]
Kernel = Annotated[int, Field(ge=1, le=31)]
Widths = Annotated[list[Width], Field(max_length=MAX_LAYERS)]
Real = Annotated[float, Field(allow_inf_nan=False)]
Act = Literal["relu", "tanh", "gelu", "silu"]


class Strict(BaseModel):
    """Names and types as they are declared, and no others."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class MLPOptions(Strict):
    inputs: Inputs
    outputs: Width
    hidden: Widths = []
    act: Act = "relu"
    squash: bool = False
    scale: Real = 1.0
    bias: bool = True


class CNNOptions(Strict):
    channels: Width
    height: Side
    width: Side
    outputs: Width
    convs: Widths = []
    hidden: Width = 1
    kernel: Kernel = 1
    act: Act = "relu"


class GRUOptions(Strict):
    inputs: Inputs
    outputs: Width
    hidden: Width = 1
    squash: bool = False
    scale: Real = 1.0


class VINOptions(Strict):
    channels: Width
    height: Side
    width: Side
    outputs: Width
    iterations: Annotated[int, Field(ge=1, le=4096)] = 1
    hidden: Width = 1
    inner: Width = 1
    kernel: Kernel = 1
    own_map: bool = False


class TransformerOptions(Strict):
    n_tokens: Annotated[int, Field(ge=1, le=1024)]
    vocabulary: Inputs
    outputs: Width
    d_model: Width = 1
    n_heads: Annotated[int, Field(ge=1, le=1024)] = 1
    n_layers: Annotated[int, Field(ge=1, le=MAX_LAYERS)] = 1
    d_mlp: Annotated[int, Field(ge=1, le=4 * MAX_WIDTH)] | None = None
    act: Literal["relu", "gelu", "silu"] = "relu"


OPTIONS: dict[str, type[Strict]] = {
    "mlp": MLPOptions,
    "cnn": CNNOptions,
    "gru": GRUOptions,
    "vin": VINOptions,
    "transformer": TransformerOptions,
}


def with_defaults(kind: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as the network's class completes them."""
    module, name = KINDS[kind]
    known = inspect.signature(getattr(importlib.import_module(module), name).__init__).parameters
    defaults = {k: p.default for k, p in known.items() if p.default is not inspect.Parameter.empty}
    return {**defaults, **options}


def count_weights(kind: str, options: Mapping[str, Any]) -> int:
    """Number of weights of a network, by formula: nothing is built.

    >>> count_weights("mlp", {"inputs": 2, "outputs": 4, "hidden": (8,)})
    60
    """
    return _COUNTS[kind](with_defaults(kind, options))


def _mlp(o: Mapping[str, Any]) -> int:
    widths = [o["inputs"], *o["hidden"], o["outputs"]]
    return sum((a + bool(o["bias"])) * b for a, b in pairwise(widths))


def _cnn(o: Mapping[str, Any]) -> int:
    planes = [o["channels"], *o["convs"]]
    convs = sum((o["kernel"] ** 2 * a + 1) * b for a, b in pairwise(planes))
    flat = planes[-1] * o["height"] * o["width"]
    return int(convs + (flat + 1) * o["hidden"] + (o["hidden"] + 1) * o["outputs"])


def _gru(o: Mapping[str, Any]) -> int:
    hidden = o["hidden"]
    return int(3 * hidden * (o["inputs"] + hidden + 2) + (hidden + 1) * o["outputs"])


def _vin(o: Mapping[str, Any]) -> int:
    square, hidden, inner = o["kernel"] ** 2, o["hidden"], o["inner"]
    own = o["height"] * o["width"] if o["own_map"] else 0
    return int((square * (o["channels"] - 1) + 1) * hidden + hidden + own + 2 * square * inner
               + (inner + 1) * o["outputs"])  # fmt: skip


def _transformer(o: Mapping[str, Any]) -> int:
    d = o["d_model"]
    wide = 4 * d if o["d_mlp"] is None else o["d_mlp"]
    layer = 4 * (d * d + d) + 4 * d + 2 * d * wide + wide + d
    return int((o["vocabulary"] + o["n_tokens"]) * d + o["n_layers"] * layer + 2 * d + d * o["outputs"])


_COUNTS = {"mlp": _mlp, "cnn": _cnn, "gru": _gru, "vin": _vin, "transformer": _transformer}
