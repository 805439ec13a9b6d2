"""What one forward pass reads and writes at its places, whatever kind of network it goes through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from retarget.analysis.layers.readable import Batch, Pass, Readable, Reader, Site, Write
from retarget.errors import LayersError

if TYPE_CHECKING:
    from torch import Tensor


class Stop(Exception):  # noqa: N818
    """Everything that was to be read was read: the rest of the forward pass is left out."""


class Taps:
    """What one forward pass reads and writes, and whether it came there.

    Args:
        model: whose places they are.
        batch: what goes in.
        read, write: as `Readable.run` takes them.
        stop: leave the pass as soon as every place was reached.
    """

    def __init__(
        self, model: Readable, batch: Batch, read: Mapping[str, Reader] | None, write: Sequence[Write], *, stop: bool
    ) -> None:
        self.readers: dict[str, list[Reader]] = {}
        self.writes: dict[str, list[tuple[int, Write]]] = {}
        self.sites: dict[str, Site] = {}
        for hook, reader in (read or {}).items():
            self.readers.setdefault(self._place(model, hook), []).append(reader)
        for i, change in enumerate(write):
            site = self.sites[self._place(model, change.hook)]
            if len(change.direction) != site.width:
                raise LayersError(
                    f"a direction of length {len(change.direction)} cannot be written at {change.hook!r}, "
                    f"whose vectors have length {site.width}"
                )
            self.writes.setdefault(site.hook, []).append((i, change))
        self.fired = [0] * len(write)
        self.reached = dict.fromkeys(self.sites, 0)
        self.batch, self.stop = batch, stop

    def _place(self, model: Readable, hook: str) -> str:
        site = model.site(hook)
        self.sites[site.hook] = site
        return site.hook

    def at(self, hook: str, x: Tensor) -> Tensor | None:
        """Vectors `[B, T, ..., d]` that flow there: those that flow on, or None where nothing was written.

        Readers get `[B, T, d]`; axes between (cells of an image) are averaged.
        """
        site = self.sites[hook]
        if x.shape[-1] != site.width:
            raise LayersError(f"{hook!r} gave vectors of length {x.shape[-1]}, {site.width} were expected")
        self.reached[hook] += 1
        out = None
        for i, change in self.writes.get(hook, ()):
            x = out = written(x, change, self.batch)
            self.fired[i] += 1
        for reader in self.readers.get(hook, ()):
            if self.reached[hook] > 1:
                raise LayersError(
                    f"a forward pass goes through {hook!r} more than once; read a place that it passes once"
                )
            reader(x if x.ndim == 3 else x.flatten(2, -2).mean(2))
        if self.stop and all(self.reached.values()):
            raise Stop
        return out

    def checked(self, logits: Tensor | None) -> Pass:
        """What the pass gave.

        Raises:
            LayersError: for a place that it never came to.
        """
        missed = [hook for hook, times in self.reached.items() if not times]
        if missed:
            raise LayersError(f"the forward pass never went through {missed[0]!r}; choose another place")
        return Pass(logits, tuple(self.fired))


def written(x: Tensor, change: Write, batch: Batch) -> Tensor:
    """`x` `[B, T, ..., d]` after a write, in its own precision; the sums are made in float32 or better."""
    import torch

    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    vector = change.direction
    if change.kind == "ablate":
        unit = torch.tensor(vector / np.linalg.norm(vector), dtype=wide.dtype, device=x.device)
        new = wide - (wide @ unit).unsqueeze(-1) * unit
    else:
        new = wide + torch.tensor(change.coefficient * vector, dtype=wide.dtype, device=x.device)
    new = new.to(x.dtype)
    if change.positions == "all":
        return new
    last = np.arange(batch.mask.shape[1]) == batch.lengths[:, None] - 1
    where = (
        torch.tensor(last, device=x.device) if last.shape[1] == x.shape[1] else torch.ones(1, 1, device=x.device) > 0
    )
    return torch.where(where.reshape(*where.shape, *[1] * (x.ndim - 2)), new, x)
