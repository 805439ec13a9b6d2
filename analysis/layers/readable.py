"""What the layerwise analyses need of a network: named places in it, a forward pass that can be read and written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from retarget.errors import LayersError, unknown

if TYPE_CHECKING:
    from torch import Tensor

#: What flows at a place. `residual` is before the final norm, `final_norm` after it: the two are never mixed.
Stream = Literal["embedding", "residual", "final_norm", "attention", "mlp", "other"]


@dataclass(frozen=True)
class Site:
    """A place in a network whose vectors are read.

    Attributes:
        hook: its name in the network, e.g. `blocks.3.hook_out`.
        layer: how many blocks have been passed there: 0 at the embedding, l between block l - 1 and block l (counted
            from 0), L after the last block. So `layer` l is the input of block l, as in Arditi et al. 2024.
        stream: what flows there.
        width: length of the vectors, d.
    """

    hook: str
    layer: int
    stream: Stream
    width: int


@dataclass(frozen=True, eq=False)
class Batch:
    """Inputs of one forward pass.

    Attributes:
        inputs: int64 tokens `[B, T]`, padded on the right; or observations of a policy, `[B, ...]`, where T is 1, or
            `[B, T, ...]` for episodes.
        mask: bool `[B, T]`, True where there is a token or a step, False on padding. Rows begin with True.
        instruction: int64 `[B]`: number of tokens up to and with the last one of the instruction itself; those after
            it belong to the template. None where there is no template.
    """

    inputs: np.ndarray
    mask: np.ndarray
    instruction: np.ndarray | None = None

    def __post_init__(self) -> None:
        inputs, mask = np.asarray(self.inputs), np.asarray(self.mask)
        if mask.ndim != 2 or mask.dtype != np.bool_:
            raise LayersError(f"a mask must be bool [B, T], got {mask.dtype} {mask.shape}")
        if len(inputs) != len(mask) or (inputs.ndim > 1 and mask.shape[1] not in (1, inputs.shape[1])):
            raise LayersError(f"inputs of shape {inputs.shape} do not go with a mask of shape {mask.shape}")
        if not mask[:, 0].all():
            raise LayersError("a row of the batch begins with padding; pad on the right, and leave no row empty")
        if (np.diff(mask.astype(np.int8), axis=1) > 0).any():
            raise LayersError("a mask has tokens after padding; pad on the right")
        if self.instruction is not None and np.shape(self.instruction) != (len(mask),):
            raise LayersError(f"instruction must have shape ({len(mask)},), got {np.shape(self.instruction)}")

    @property
    def n(self) -> int:
        return len(self.mask)

    @property
    def lengths(self) -> np.ndarray:
        """int64 `[B]`: number of tokens or steps of each row."""
        return np.asarray(self.mask.sum(1), dtype=np.int64)


#: Gets the vectors of one site for a whole batch, `[B, T, d]` on the network's device, padding included. Must not
#: change them.
Reader = Callable[["Tensor"], None]


@dataclass(frozen=True, eq=False)
class Write:
    """A change of what flows at one place: data, so that it can be stored and told.

    Attributes:
        hook: where.
        direction: float64 `[d]`, as given; it is made of unit length for `ablate`.
        kind: `ablate`: x - (x · u) u with u = direction / |direction|; `add`: x + coefficient · direction.
        coefficient: for `add`.
        positions: `all`, or `last` for the last token of each row.
    """

    hook: str
    direction: np.ndarray
    kind: Literal["ablate", "add"]
    coefficient: float = 1.0
    positions: Literal["all", "last"] = "all"

    def __post_init__(self) -> None:
        vector = np.array(self.direction, dtype=np.float64)
        if vector.ndim != 1 or not np.isfinite(vector).all() or not np.isfinite(self.coefficient):
            raise LayersError(
                f"a direction to write at {self.hook!r} must be a finite vector, got shape {vector.shape}"
            )
        if self.kind not in ("ablate", "add"):
            raise LayersError(unknown("kind of write", self.kind, ("ablate", "add")))
        if self.kind == "ablate" and not vector.any():
            raise LayersError(f"the direction to ablate at {self.hook!r} is zero; there is nothing to take out")
        vector.setflags(write=False)
        object.__setattr__(self, "direction", vector)


@dataclass(frozen=True, eq=False)
class Pass:
    """What one forward pass gave.

    Attributes:
        logits: `[B, T, V]` (or `[B, 1, A]` for a policy) on the network's device, or None where it was not asked for.
        fired: how often each write changed a tensor, by number in the order given. A write that did not fire raises.
    """

    logits: Tensor | None
    fired: tuple[int, ...] = field(default=())


class Readable(ABC):
    """A network that can be read and written while it runs. Its weights never change."""

    @property
    @abstractmethod
    def label(self) -> str:
        """Short name for tables, without a path."""

    @property
    @abstractmethod
    def digest(self) -> str:
        """Content digest of the architecture and the weights."""

    @property
    @abstractmethod
    def sites(self) -> tuple[Site, ...]:
        """The residual stream from the embedding on, in order, one site a layer, `final_norm` last where there is one.

        For other networks: the places between layers, in order.
        """

    @abstractmethod
    def site(self, hook: str) -> Site:
        """Any named place. Raises LayersError, with the nearest right name, where there is none."""

    @abstractmethod
    def run(
        self,
        batch: Batch,
        *,
        read: Mapping[str, Reader] | None = None,
        write: Sequence[Write] = (),
        logits: bool = True,
    ) -> Pass:
        """One forward pass without gradients.

        Writes at a place are done before it is read, in the order given. The network is left as it was, also when
        something raises: no hook stays behind.

        Args:
            batch: what goes in.
            read: by hook name, what gets the vectors there. Each is called once.
            write: changes on the way.
            logits: whether the outputs are wanted; without, the work after the last place read may be left out.

        Raises:
            LayersError: for an unknown hook, a vector of another width, a reader or a write that did not fire.
        """
