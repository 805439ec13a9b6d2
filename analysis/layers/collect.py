"""One pass over labelled inputs: chosen vectors leave the network, moments are kept, activations never."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from retarget.analysis.layers.collected import Collected, Inputs, Labelled
from retarget.analysis.layers.moments import Gatherer, Moments, relabellings
from retarget.analysis.layers.positions import Positions
from retarget.analysis.layers.readable import Readable, Reader, Site
from retarget.errors import LayersError

if TYPE_CHECKING:
    from torch import Tensor

#: The last token of each row.
LAST = Positions()
#: Vectors of a place wait until there are so many, since few at a time cost more to add.
WAITING = 256
#: What all moments together may take, unless told otherwise: one gigabyte.
MEMORY = 1 << 30
#: Told how many rows are done, and how many there are.
Progress = Callable[[int, int], None]


def collect(
    model: Readable,
    inputs: Inputs,
    *,
    sites: Sequence[str] | None = None,
    positions: Positions = LAST,
    batch_size: int = 32,
    n_groups: int = 10,
    n_relabellings: int = 200,
    scatter: bool = True,
    paired: bool = False,
    seed: int = 0,
    memory_limit_bytes: int = MEMORY,
    progress: Progress | None = None,
) -> Collected:
    """Moments of what a network holds for two classes of inputs, at places and positions, in one pass.

    Only the vectors at the positions leave the network, in one transfer a batch (with positions `every`, one a place);
    sums are kept in float64. The memory does not depend on the number of inputs, except for a byte for each row and
    relabelling. What a batch size changes is what it changes in the network's own arithmetic, and no more.

    Args:
        model: the network.
        inputs: the two classes.
        sites: names of places; None for the model's residual stream, or the places between its layers.
        positions: which tokens or steps.
        batch_size: rows a forward pass.
        n_groups: shards of the rows that are kept apart, for intervals. Fewer are kept where the memory would not
            do: `Moments.n_groups` says how many there are.
        n_relabellings: random relabellings of the rows for permutation nulls; 0 for none.
        scatter: whether second moments are kept; without, means and their nulls alone.
        paired: whether rows of equal rank are pairs (the same place under two goals, say): needs inputs that keep
            pairs in one batch. Where one of a pair lacks a position, both are left out there.
        seed: of the relabellings.
        memory_limit_bytes: what all moments together may take.
        progress: is told of progress.

    Raises:
        LayersError: for unknown places, classes that are empty or do not pair, moments that would not fit the memory,
            activations that are not finite.

    >>> import torch
    >>> from retarget.analysis.layers.models import ModuleModel
    >>> from retarget.analysis.layers.policies import ArrayInputs
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2)).double()
    >>> _ = net[0].weight.data.copy_(torch.eye(2)), net[0].bias.data.zero_()
    >>> model = ModuleModel.of(net, sites=["0"], example=np.zeros((1, 2)))
    >>> found = collect(model, ArrayInputs(np.zeros((3, 2)), np.ones((4, 2))), n_relabellings=0, n_groups=1)
    >>> found.moments["0", "-1"].difference.tolist(), found.n_rows
    ([1.0, 1.0], (3, 4))
    """
    if batch_size < 1 or n_groups < 1 or n_relabellings < 0:
        raise LayersError(
            f"batch_size and n_groups must be at least 1 and n_relabellings at least 0, "
            f"got {batch_size}, {n_groups} and {n_relabellings}"
        )
    places = _places(model, sites)
    rows = _survey(inputs, batch_size, paired=paired)
    groups = _groups(places, positions, rows, n_groups, n_relabellings, scatter, paired, memory_limit_bytes)
    swaps = rows.relabellings(n_relabellings, seed, paired=paired)
    gatherers = {
        (site.hook, label): Gatherer(
            width=site.width, n_groups=groups, scatter=scatter, relabellings=swaps, paired=paired
        )
        for site in places
        for label in positions.labels
    }
    sweep = _Sweep(model, places, positions, gatherers, paired)
    done = 0
    for batch in inputs.batches(batch_size):
        sweep.add(batch)
        done += batch.batch.n
        if progress is not None:
            progress(done, sum(rows.count))
    sweep.finish()
    moments: dict[tuple[str, str], Moments] = {}
    for key in list(gatherers):  # each gives its memory back before the next is finished
        moments[key] = gatherers.pop(key).done()
    return Collected(
        model.label, model.digest, inputs.contrast, places, positions.labels, moments, rows.count,
        {label: (n[0], n[1]) for label, n in sweep.absent.items()}, paired, seed, sweep.epsilon,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ settings


def _places(model: Readable, sites: Sequence[str] | None) -> tuple[Site, ...]:
    if sites is None:
        return model.sites
    if not sites:
        raise LayersError("no places to read; name some, or leave sites out for the residual stream")
    found = {site.hook: site for site in map(model.site, sites)}
    return tuple(sorted(found.values(), key=lambda s: s.layer))


@dataclass(frozen=True, eq=False)
class _Rows:
    """Which class, and which pair, each row belongs to: int64 `[N]` each."""

    label: np.ndarray
    rank: np.ndarray

    @property
    def count(self) -> tuple[int, int]:
        return int((self.label == 0).sum()), int((self.label == 1).sum())

    def relabellings(self, n: int, seed: int, *, paired: bool) -> np.ndarray | None:
        if not n:
            return None
        return relabellings(self.label, n=n, seed=seed, ranks=self.rank if paired else None)


def _survey(inputs: Inputs, size: int, *, paired: bool) -> _Rows:
    """Go through the inputs once without the network.

    Raises:
        LayersError: for rows that are missing or come twice, a class without rows, pairs that are none.
    """
    total = sum(inputs.count)
    label, rank = np.full(total, -1, dtype=np.int64), np.full(total, -1, dtype=np.int64)
    for part in inputs.batches(size):
        row = np.asarray(part.row)
        if len(row) and (row.min() < 0 or row.max() >= total or (label[row] != -1).any() or len(set(row)) != len(row)):
            raise LayersError(f"rows of the inputs must be numbered 0 to {total - 1}, each once")
        label[row], rank[row] = part.label, part.rank
        if paired:
            lone = np.setxor1d(part.rank[part.label == 0], part.rank[part.label == 1])
            if len(lone):
                raise LayersError(
                    f"the pair of rank {int(lone[0])} is torn apart: pass inputs that are made with paired=True"
                )
    rows = _Rows(label, rank)
    if (label < 0).any() or not all(rows.count) or rows.count != tuple(inputs.count):
        raise LayersError(
            f"inputs declare {inputs.count} rows of the two classes and give {rows.count}; both need at least 1"
        )
    return rows


def _groups(
    places: Sequence[Site],
    positions: Positions,
    rows: _Rows,
    n_groups: int,
    n_relabellings: int,
    scatter: bool,
    paired: bool,
    limit: int,
) -> int:
    """How many groups fit the memory; never more than the smaller class has rows.

    Raises:
        LayersError: where not even one does.
    """
    n = len(positions.labels)
    one, fixed = 0, n_relabellings * sum(rows.count)
    for site in places:
        d = site.width
        waiting = min(max(d // 8, 16), 256) + 1
        one += n * 2 * d * ((d if scatter else 0) + waiting + 1) * 8
        fixed += n * d * (n_relabellings + (d if paired else 0) + WAITING) * 8
    fit = (limit - fixed) // one
    if fit < 1:
        raise LayersError(
            f"the moments of {len(places)} places x {n} positions take {fixed + one} bytes, the limit is {limit}; read "
            "fewer places or positions, raise the limit, or keep means alone (scatter=False)"
        )
    return int(min(n_groups, fit, *rows.count))


# ---------------------------------------------------------------------------------------------------------------- pass


class _Sweep:
    """Reads batches and hands what was chosen to the gatherers."""

    def __init__(
        self,
        model: Readable,
        places: Sequence[Site],
        positions: Positions,
        gatherers: dict[tuple[str, str], Gatherer],
        paired: bool,
    ) -> None:
        self.model, self.places, self.positions = model, places, positions
        self.gatherers, self.paired = gatherers, paired
        self.absent = {label: [0, 0] for label in positions.labels}
        self.waiting: dict[tuple[str, str], list[tuple[np.ndarray, ...]]] = {key: [] for key in gatherers}
        self.epsilon = float(np.finfo(np.float64).eps)

    def add(self, part: Labelled) -> None:
        """One forward pass."""
        index = self.positions.index(part.batch)
        present = index >= 0
        if self.positions.kind == "every":
            self._count(self.positions.labels[0], part, np.asarray(present.any(1)))
            readers = {s.hook: self._everything(s.hook, part, present) for s in self.places}
            self.model.run(part.batch, read=readers, logits=False)
            return
        keep = np.stack([self._kept(part, here) for here in present.T], axis=1)
        for label, here in zip(self.positions.labels, keep.T, strict=True):
            self._count(label, part, here)
        if not keep.any():
            return
        picked: dict[str, Tensor] = {}
        readers = {s.hook: _picker(picked, s.hook, np.maximum(index, 0), part.batch.mask.shape[1]) for s in self.places}
        self.model.run(part.batch, read=readers, logits=False)
        for tensor in picked.values():
            self._precision(tensor)
        for hook, x in _moved(picked, self.places).items():
            for p, label in enumerate(self.positions.labels):
                self._gather(hook, label, x[:, p][keep[:, p]], part, np.flatnonzero(keep[:, p]))

    def _kept(self, part: Labelled, here: np.ndarray) -> np.ndarray:
        """Rows that have the position; of pairs, those where both have it."""
        if not self.paired:
            return here
        lone = np.setxor1d(part.rank[here & (part.label == 0)], part.rank[here & (part.label == 1)])
        return np.asarray(here & ~np.isin(part.rank, lone))

    def _count(self, label: str, part: Labelled, here: np.ndarray) -> None:
        for c in (0, 1):
            self.absent[label][c] += int((~here & (part.label == c)).sum())

    def _everything(self, hook: str, part: Labelled, present: np.ndarray) -> Reader:
        label = self.positions.labels[0]
        rows = np.nonzero(present)[0]

        def take(x: Tensor) -> None:
            import torch

            _same_steps(hook, x, present.shape[1])
            self._precision(x)
            chosen = x[torch.tensor(present, device=x.device)]
            self._gather(hook, label, chosen.cpu().double().numpy(), part, rows)

        return take

    def _precision(self, x: Tensor) -> None:
        """Keep the coarsest machine epsilon of what was read."""
        import torch

        if x.is_floating_point():
            self.epsilon = max(self.epsilon, float(torch.finfo(x.dtype).eps))

    def _gather(self, hook: str, label: str, x: np.ndarray, part: Labelled, which: np.ndarray) -> None:
        waiting = self.waiting[hook, label]
        waiting.append((x, part.label[which], part.row[which], part.rank[which]))
        if sum(len(w[0]) for w in waiting) >= WAITING:
            self._pass_on(hook, label)

    def _pass_on(self, hook: str, label: str) -> None:
        waiting = self.waiting[hook, label]
        if not waiting:
            return
        x, classes, row, rank = (np.concatenate(parts) for parts in zip(*waiting, strict=True))
        waiting.clear()
        try:
            self.gatherers[hook, label].add(x, label=classes, row=row, rank=rank)
        except LayersError as error:
            raise LayersError(f"at {hook!r}: {error}") from error

    def finish(self) -> None:
        """Pass on what still waits."""
        for hook, label in self.waiting:
            self._pass_on(hook, label)


def _picker(picked: dict[str, Tensor], hook: str, index: np.ndarray, steps: int) -> Reader:
    def take(x: Tensor) -> None:
        import torch

        _same_steps(hook, x, steps)
        where = torch.tensor(index, device=x.device)
        # advanced indexing copies: what the network holds can be freed
        picked[hook] = x[torch.arange(len(x), device=x.device)[:, None], where]

    return take


def _same_steps(hook: str, x: Tensor, steps: int) -> None:
    if x.shape[1] != steps:
        raise LayersError(f"{hook!r} gave {x.shape[1]} vectors a row, the inputs have {steps} tokens or steps")


def _moved(picked: dict[str, Tensor], places: Sequence[Site]) -> dict[str, np.ndarray]:
    """Float64 `[B, P, d]` on the host, by place: one transfer for all of them."""
    import torch

    flat = torch.cat([picked[s.hook].flatten() for s in places]).cpu().double().numpy()
    ends = np.cumsum([picked[s.hook].numel() for s in places])
    parts = np.split(flat, ends[:-1])
    return {s.hook: part.reshape(picked[s.hook].shape) for s, part in zip(places, parts, strict=True)}
