"""Counts, means and scatters of classes of vectors, collected in one pass and merged exactly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg.blas import dsyrk

from retarget.errors import LayersError
from retarget.rng import stream

#: Groups of rows that are kept apart where nothing else is said: enough for intervals, few enough for memory.
GROUPS = 10


@dataclass(frozen=True, eq=False)
class Moments:
    """Statistics of vectors `[d]` in C classes, kept apart for G groups of rows; all in float64.

    Groups are shards of the rows (row i belongs to group i mod G within its class), so that intervals can be found
    by leaving groups out or drawing them anew. G = 1 keeps none apart.

    Attributes:
        count: int64 `[G, C]`.
        mean: float64 `[G, C, d]`; 0 where the count is.
        scatter: float64 `[G, C, d, d]`: sum of (x - mean)(x - mean)^T over the class's rows of the group; None where
            only means were asked for.
        swapped: float64 `[R, d]`: for each of R random relabellings, the sum of the rows that it gives to class 1
            (it keeps the sizes of the classes); None without a permutation null. The relabelling is a function of
            (seed, R, total number of rows) alone.
        swapped_count: int64 `[R]`: rows that each relabelling has given to class 1 so far.
        paired: float64 `[d, d]`: sum of (x1 - x0)(x1 - x0)^T over pairs, not centred; None without pairs.
        paired_sum: float64 `[d]`, and paired_count.

    >>> m = Moments.of(np.array([[0.0, 1.0], [2.0, 1.0], [5.0, 0.0]]), np.array([0, 0, 1]))
    >>> m.count.tolist(), m.mean[0].tolist(), m.difference.tolist()
    ([[2, 1]], [[1.0, 1.0], [5.0, 0.0]], [4.0, -1.0])
    """

    count: np.ndarray
    mean: np.ndarray
    scatter: np.ndarray | None = None
    swapped: np.ndarray | None = None
    swapped_count: np.ndarray | None = None
    paired: np.ndarray | None = None
    paired_sum: np.ndarray | None = None
    paired_count: int = 0

    def __post_init__(self) -> None:
        if self.count.ndim != 2 or self.mean.shape[:2] != self.count.shape or self.mean.ndim != 3:
            raise LayersError(f"count [G, C] and mean [G, C, d] do not fit: {self.count.shape} and {self.mean.shape}")
        if self.scatter is not None and self.scatter.shape != (*self.mean.shape, self.width):
            raise LayersError(f"a scatter must be [G, C, d, d], got {self.scatter.shape} for means {self.mean.shape}")
        if (self.swapped is None) != (self.swapped_count is None):
            raise LayersError("swapped and swapped_count go together: give both or neither")
        if (self.paired is None) != (self.paired_sum is None):
            raise LayersError("paired and paired_sum go together: give both or neither")

    @property
    def width(self) -> int:
        return int(self.mean.shape[2])

    @property
    def n_groups(self) -> int:
        return int(self.count.shape[0])

    @property
    def n_classes(self) -> int:
        return int(self.count.shape[1])

    @property
    def difference(self) -> np.ndarray:
        """float64 `[d]`: mean of class 1 minus mean of class 0, over all groups.

        Raises:
            LayersError: where a class has no rows, or there are not two.
        """
        n = self.count.sum(0)
        if len(n) != 2 or not n.all():
            raise LayersError(f"a difference of means needs rows in two classes, got counts {n.tolist()}")
        # relative to one vector that all share, so that a mean far from 0 costs no digits
        shift = self.mean[self.count.sum(1).argmax(), 0]
        means = [(self.count[:, c, None] * (self.mean[:, c] - shift)).sum(0) / n[c] for c in (0, 1)]
        return np.asarray(means[1] - means[0])

    @classmethod
    def of(
        cls,
        x: np.ndarray,
        label: np.ndarray,
        *,
        row: np.ndarray | None = None,
        rank: np.ndarray | None = None,
        n_groups: int = 1,
        scatter: bool = True,
        relabellings: np.ndarray | None = None,
        paired: bool = False,
    ) -> Moments:
        """Moments of vectors that are all at hand.

        Args:
            x: real `[N, d]`.
            label: int `[N]`, 0 or 1.
            row: int `[N]`; 0 to N - 1 where it is not given.
            rank: int `[N]`; the order within the class where it is not given.
            n_groups, scatter, relabellings, paired: see `Gatherer`.
        """
        x, label = np.asarray(x), np.asarray(label)
        if x.ndim != 2:
            raise LayersError(f"vectors must be [N, d], got shape {x.shape}")
        if rank is None:
            rank = np.zeros(len(label), dtype=np.int64)
            for c in (0, 1):
                rank[label == c] = np.arange((label == c).sum())
        gatherer = Gatherer(
            width=x.shape[1], n_groups=n_groups, scatter=scatter, relabellings=relabellings, paired=paired
        )
        gatherer.add(x, label=label, row=np.arange(len(label)) if row is None else row, rank=rank)
        return gatherer.done()

    def merge(self, other: Moments) -> Moments:
        """The moments of both shards together, group by group.

        Raises:
            LayersError: where the two do not hold the same kinds of sums, of the same shapes.
        """
        if self.mean.shape != other.mean.shape:
            raise LayersError(f"moments of shapes {self.mean.shape} and {other.mean.shape} cannot be merged")
        for name in ("scatter", "swapped", "paired"):
            a, b = getattr(self, name), getattr(other, name)
            if (a is None) != (b is None) or (a is not None and a.shape != b.shape):
                raise LayersError(f"one of two moments to merge has no {name} sums, or of another shape")
        count = self.count + other.count
        part = other.count / np.maximum(count, 1)
        apart = other.mean - self.mean
        mean = np.where(self.count[..., None] == 0, other.mean, self.mean + part[..., None] * apart)
        scatter = None
        if self.scatter is not None and other.scatter is not None:
            scale = (self.count * part)[..., None, None]
            scatter = self.scatter + other.scatter + scale * apart[..., :, None] * apart[..., None, :]
        return Moments(
            count,
            mean,
            scatter,
            _plus(self.swapped, other.swapped),
            _plus(self.swapped_count, other.swapped_count),
            _plus(self.paired, other.paired),
            _plus(self.paired_sum, other.paired_sum),
            self.paired_count + other.paired_count,
        )

    def total(self) -> Moments:
        """The same with all groups put together, G = 1."""
        if self.n_groups == 1:
            return self
        n = self.count.sum(0)
        shift = self.mean[self.count.argmax(0), np.arange(self.n_classes)]
        apart = self.mean - shift
        middle = (self.count[..., None] * apart).sum(0) / np.maximum(n, 1)[:, None]
        scatter = None
        if self.scatter is not None:
            scatter = self.scatter.sum(0)
            off = np.sqrt(self.count)[..., None] * (apart - middle)
            scatter += np.einsum("gci,gcj->cij", off, off, optimize=True)
            scatter = scatter[None]
        return Moments(
            n[None],
            np.where(n[:, None] == 0, 0.0, shift + middle)[None],
            scatter,
            self.swapped,
            self.swapped_count,
            self.paired,
            self.paired_sum,
            self.paired_count,
        )


def _plus(a: np.ndarray | None, b: np.ndarray | None) -> np.ndarray | None:
    return None if a is None or b is None else a + b


class Gatherer:
    """Builds the moments of one place and position, batch after batch. The one object here that changes.

    Rows wait in a small buffer of their class and group until they fill it; then the buffer is centred on its own
    mean and joined to what is there by the pairwise update of Chan, Golub & LeVeque (1983), `S = Sa + Sb +
    (na nb / n) (mb - ma)(mb - ma)^T`. So a mean far from 0 costs no digits, a small batch costs no `[d, d]` update,
    and means and scatters are the same to the last bit however rows are cut into batches. Memory: `G C d (d + d/8)`
    numbers.

    Args:
        width: d.
        n_groups: G; a row's group is its rank modulo G.
        scatter: whether second moments are kept.
        relabellings: bool `[R, N]`: column `row` says which relabellings give that row to class 1; see
            `relabellings`. Their sums are taken about the first vector seen, and put back about 0 at the end.
        paired: whether rows of equal rank are pairs. Both of a pair must come in one batch. Where a row comes several
            times in a batch (several tokens of one prompt), the pair is that of the means of its vectors.

    >>> g = Gatherer(width=1)
    >>> g.add(np.array([[1.0], [3.0]]), label=np.array([0, 1]), row=np.array([0, 1]), rank=np.array([0, 0]))
    >>> g.done().difference.tolist()
    [2.0]
    """

    def __init__(
        self,
        *,
        width: int,
        n_groups: int = 1,
        scatter: bool = True,
        relabellings: np.ndarray | None = None,
        paired: bool = False,
    ) -> None:
        if width < 1 or n_groups < 1:
            raise LayersError(f"width and n_groups must be at least 1, got {width} and {n_groups}")
        if relabellings is not None and (relabellings.ndim != 2 or relabellings.dtype != np.bool_):
            raise LayersError(
                f"relabellings must be bool [R, N], got {relabellings.dtype} {relabellings.shape}; see relabellings()"
            )
        self.width, self.n_groups = width, n_groups
        self._count = np.zeros((n_groups, 2), dtype=np.int64)
        self._mean = np.zeros((n_groups, 2, width))
        self._scatter = np.zeros((n_groups, 2, width, width)) if scatter else None
        self._block = min(max(width // 8, 16), 256)
        self._waiting = np.empty((n_groups, 2, self._block + 1, width))
        self._n_waiting = np.zeros((n_groups, 2), dtype=np.int64)
        self._relabellings = relabellings
        self._shift: np.ndarray | None = None
        self._swapped = None if relabellings is None else np.zeros((len(relabellings), width))
        self._swapped_count = None if relabellings is None else np.zeros(len(relabellings), dtype=np.int64)
        self._paired = np.zeros((width, width)) if paired else None
        self._paired_sum = np.zeros(width) if paired else None
        self._paired_count = 0
        self._done = False

    def add(self, x: np.ndarray, *, label: np.ndarray, row: np.ndarray, rank: np.ndarray) -> None:
        """Take in a batch.

        Args:
            x: real `[B, d]`, of any float type.
            label, row, rank: int `[B]`, as in `Labelled`. A row may come several times.

        Raises:
            LayersError: for vectors of another width or that are not finite, labels other than 0 and 1, rows outside
                the relabellings, a pair torn apart.
        """
        if self._done:
            raise LayersError("these moments have been handed over already; gather anew")
        x = np.asarray(x, dtype=np.float64)
        label, row, rank = (np.asarray(a) for a in (label, row, rank))
        self._check(x, label, row, rank)
        if not len(x):
            return
        group = rank % self.n_groups
        for g, c in {(int(g), int(c)) for g, c in zip(group, label, strict=True)}:
            self._buffer(g, c, x[(group == g) & (label == c)])
        if self._relabellings is not None and self._swapped is not None and self._swapped_count is not None:
            if self._shift is None:
                self._shift = x[0].copy()
            chosen = self._relabellings[:, row]
            self._swapped += chosen.astype(np.float64) @ (x - self._shift)
            self._swapped_count += chosen.sum(1)
        if self._paired is not None and self._paired_sum is not None:
            apart = _pairs(x, label, rank)
            self._paired += apart.T @ apart
            self._paired_sum += apart.sum(0)
            self._paired_count += len(apart)

    def done(self) -> Moments:
        """The moments of all that was added. They are handed over without a copy, and nothing can be added after."""
        if self._done:
            raise LayersError("these moments have been handed over already; gather anew")
        for g, c in np.argwhere(self._n_waiting):
            self._flush(int(g), int(c))
        self._done = True
        if self._scatter is not None:
            for matrix in self._scatter.reshape(-1, self.width, self.width):
                _mirror(matrix)
        if self._swapped is not None and self._swapped_count is not None and self._shift is not None:
            self._swapped += self._swapped_count[:, None] * self._shift
        return Moments(
            self._count,
            self._mean,
            self._scatter,
            self._swapped,
            self._swapped_count,
            self._paired,
            self._paired_sum,
            self._paired_count,
        )

    def _check(self, x: np.ndarray, label: np.ndarray, row: np.ndarray, rank: np.ndarray) -> None:
        if x.ndim != 2 or x.shape[1] != self.width:
            raise LayersError(f"vectors must be [B, {self.width}], got shape {x.shape}")
        for name, a in (("label", label), ("row", row), ("rank", rank)):
            if a.shape != (len(x),) or (len(x) and not np.issubdtype(a.dtype, np.integer)):
                raise LayersError(f"{name} must be int [{len(x)}], one a vector, got {a.dtype} {a.shape}")
        if not len(x):
            return
        if label.min() < 0 or label.max() > 1:
            raise LayersError(f"labels must be 0 (negative) or 1 (positive), got {label.min()} to {label.max()}")
        if rank.min() < 0 or row.min() < 0:
            raise LayersError(f"rows and ranks begin at 0, got {min(rank.min(), row.min())}")
        if self._relabellings is not None and row.max() >= self._relabellings.shape[1]:
            raise LayersError(
                f"row {row.max()} is not among the {self._relabellings.shape[1]} rows of the relabellings"
            )
        finite = np.isfinite(x).all(1)
        if not finite.all():
            bad = int(finite.argmin())
            value = x[bad][~np.isfinite(x[bad])][0]
            raise LayersError(
                f"an activation of row {int(row[bad])} is {value}; float16 overflow? try dtype float32 or bfloat16"
            )

    def _buffer(self, g: int, c: int, x: np.ndarray) -> None:
        start = 0
        while start < len(x):
            n = int(self._n_waiting[g, c])
            taken = min(self._block - n, len(x) - start)
            self._waiting[g, c, n : n + taken] = x[start : start + taken]
            self._n_waiting[g, c] = n + taken
            start += taken
            if n + taken == self._block:
                self._flush(g, c)

    def _flush(self, g: int, c: int) -> None:
        """Join what waits to what is there. The shift of the mean goes in as one more row of the product."""
        n = int(self._n_waiting[g, c])
        x = self._waiting[g, c, : n + 1]
        x[n] = x[:n].mean(0)
        x[:n] -= x[n]
        rest = x[:n].mean(0)  # what rounding left of the mean
        x[:n] -= rest
        before = int(self._count[g, c])
        total = before + n
        apart = (x[n] + rest) - self._mean[g, c]
        self._mean[g, c] = x[n] + rest if before == 0 else self._mean[g, c] + (n / total) * apart
        x[n] = np.sqrt(before * n / total) * apart
        if self._scatter is not None:
            # the transpose is in Fortran's order: its upper triangle, in place, is the lower one here
            kept = self._scatter[g, c].T
            product = dsyrk(1.0, x.T, beta=1.0, c=kept, overwrite_c=1, lower=0)
            if not np.shares_memory(product, kept):
                self._scatter[g, c] = product.T
        self._count[g, c] = total
        self._n_waiting[g, c] = 0


def _mirror(matrix: np.ndarray, block: int = 64) -> None:
    """Copy the lower triangle over the upper one, in place, in blocks that stay in the cache."""
    d = len(matrix)
    for i in range(0, d, block):
        j = min(i + block, d)
        matrix[i:j, j:] = matrix[j:, i:j].T
        corner = matrix[i:j, i:j]
        corner[:] = np.tril(corner) + np.tril(corner, -1).T


def _pairs(x: np.ndarray, label: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """float64 `[P, d]`: class 1 minus class 0 of each rank in the batch, in order of ranks."""
    ranks, which = np.unique(rank, return_inverse=True)
    counts = np.stack([np.bincount(which[label == c], minlength=len(ranks)) for c in (0, 1)])
    if not counts.all():
        lone = int(ranks[(counts == 0).any(0)][0])
        raise LayersError(
            f"the pair of rank {lone} is torn apart: both of a pair must come in one batch; put them side by side, "
            "leave both out, or set paired=False"
        )
    means = np.zeros((2, len(ranks), x.shape[1]))
    np.add.at(means, (label, which), x)
    means /= counts[:, :, None]
    return np.asarray(means[1] - means[0])


def relabellings(
    classes: tuple[int, int] | np.ndarray, *, n: int, seed: int, ranks: np.ndarray | None = None
) -> np.ndarray:
    """Random relabellings that keep the sizes of the classes, for permutation nulls.

    Args:
        classes: rows of each class (negative, positive), or int `[N]` labels by row number.
        n: R, how many.
        seed: of the stream of random numbers; the same (seed, R, sizes) give the same relabellings.
        ranks: int `[N]`: give it (with labels) where rows of equal rank are pairs. Labels are then swapped within
            pairs, each with probability 1/2, since rows of a pair may only be exchanged with each other.

    Returns:
        bool `[R, N]`, True where the row is given to class 1.

    Raises:
        LayersError: for an empty class, or pairs that are not pairs.

    >>> relabellings((2, 3), n=4, seed=0).sum(1).tolist()
    [3, 3, 3, 3]
    """
    labels = np.asarray(() if isinstance(classes, tuple) else classes, dtype=np.int64)
    sizes = tuple(int(c) for c in (classes if isinstance(classes, tuple) else np.bincount(labels, minlength=2)))
    if len(sizes) != 2 or min(sizes) < 1 or n < 1:
        raise LayersError(f"relabellings need two classes with rows and n of at least 1, got sizes {sizes} and n={n}")
    total = sum(sizes)
    random = stream(seed, "layers_relabellings", n, total, sizes[1], ranks is not None)
    if ranks is None:
        keys = random.random((n, total))
        chosen = np.zeros((n, total), dtype=np.bool_)
        np.put_along_axis(chosen, np.argpartition(keys, sizes[1] - 1, axis=1)[:, : sizes[1]], True, axis=1)
        return chosen
    if np.shape(ranks) != labels.shape:
        raise LayersError("relabellings within pairs need labels [N] and ranks [N] of the same length")
    order = np.lexsort((labels, ranks))
    first, second = order[::2], order[1::2]
    paired = sizes[0] == sizes[1] and bool(
        (ranks[first] == ranks[second]).all() and (labels[first] == 0).all() and (labels[second] == 1).all()
    )
    if not paired:
        raise LayersError("rows are paired where each rank has one row of each class; these ranks do not")
    swap = random.random((n, len(first))) < 0.5
    chosen = np.zeros((n, total), dtype=np.bool_)
    chosen[:, first], chosen[:, second] = swap, ~swap
    return chosen
