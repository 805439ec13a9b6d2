"""What chance would give: rank-one changes of a spectrum, solved exactly, over random relabellings of the rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh

from retarget.analysis.layers.moments import Moments
from retarget.analysis.layers.spectrum import Pooling
from retarget.errors import LayersError

#: Halvings of an interval after which a root no longer moves in float64.
_HALVINGS = 120


def rank_one_cosines(values: np.ndarray, parts: np.ndarray, strength: np.ndarray, k: int) -> np.ndarray:
    """|cos| of the leading components of `diag(values) + c z z^T` with z itself.

    The eigenvalues m solve the secular equation `1 + c sum z_i^2 / (l_i - m) = 0` (Golub 1973), one between each two
    neighbours of `values`; the eigenvector is `z_i / (l_i - m)`, and its cosine with z is therefore
    `1 / (|c| |z| |z / (l - m)|)`. Roots are sought by halving, from the nearer one of the two poles, so that a root
    close to its pole keeps its digits.

    Args:
        values: float64 `[d]`, falling.
        parts: float64 `[R, d]`: each z in the eigenvectors' frame.
        strength: float64 `[R]`: each c, of either sign; 0 gives the components of diag(values).
        k: how many components.

    Returns:
        float64 `[R, k]`; NaN where z is 0.

    >>> rank_one_cosines(np.array([2.0, 1.0]), np.array([[0.0, 1.0]]), np.array([3.0]), 2).round(6).tolist()
    [[1.0, 0.0]]
    """
    d = len(values)
    k = min(k, d)
    length = np.linalg.norm(parts, axis=1)
    alive = length > 0
    z = np.abs(parts) / np.where(alive, length, 1.0)[:, None]
    # a part that is exactly 0 would take its pole away; one at the level of rounding changes nothing else
    z = np.maximum(z, 1e-16)
    c = strength * length**2
    out = np.full((len(parts), k), np.nan)
    plain = alive & (np.abs(c) <= 1e-15 * max(float(values[0]), 1e-300))
    out[plain] = z[plain, :k]
    moved = np.flatnonzero(alive & ~plain)
    for j in range(k if len(moved) else 0):
        out[moved, j] = _one_cosine(values, z[moved] ** 2, c[moved], j)
    return np.asarray(np.minimum(out, 1.0))


def _one_cosine(values: np.ndarray, weight: np.ndarray, c: np.ndarray, j: int) -> np.ndarray:
    """|cos| `[R]` of component j (from 0), where weights `[R, d]` are squares of a z of length 1."""
    d = len(values)
    up = c > 0
    # the root lies between values[j] and its upper neighbour for c > 0, its lower one for c < 0
    above = values[j - 1] - values[j] if j else np.inf
    below = values[j] - values[j + 1] if j + 1 < d else np.inf
    gap = np.minimum(np.where(up, above, below), np.abs(c))
    sign = np.where(up, 1.0, -1.0)

    def secular(pole: np.ndarray, offset: np.ndarray) -> np.ndarray:
        """sign * (1 + c sum w / (l - m)) at m = values[pole] + offset: grows with the distance from values[j]."""
        away = values[None] - values[pole][:, None] - offset[:, None]
        with np.errstate(divide="ignore", over="ignore"):
            return np.asarray(1.0 + c * np.divide(weight, away, out=away).sum(axis=1))

    here = np.full(len(c), j)
    bounded = (np.where(up, above, below) <= np.abs(c)) & (gap > 0)
    other = np.where(bounded, np.where(up, max(j - 1, 0), min(j + 1, d - 1)), j)
    # near its own pole the function is below 0, near the other one above: the sign in the middle says which half
    own = ~bounded | (secular(here, sign * gap / 2) >= 0)
    pole = np.where(own, here, other)
    direction = np.where(own, sign, -sign)
    low, high = np.zeros(len(c)), np.where(bounded, gap / 2, gap)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        past = (secular(pole, direction * middle) >= 0) == own
        high, low = np.where(past, middle, high), np.where(past, low, middle)
        if (high - low <= 1e-15 * high).all():
            break
    offset = direction * np.maximum(high, np.finfo(np.float64).tiny)
    away = values[None] - values[pole][:, None] - offset[:, None]
    with np.errstate(divide="ignore", over="ignore"):
        size = np.sqrt(np.sum(weight / away**2, axis=1))
        cos = 1.0 / (np.abs(c) * size)
    return np.where(gap > 0, cos, 0.0)


@dataclass(frozen=True, eq=False)
class Null:
    """Values of one statistic under random relabellings, and on the true labels by the same formula.

    Attributes:
        observed: float64 `[k]`.
        drawn: float64 `[R, k]`.
    """

    observed: np.ndarray
    drawn: np.ndarray

    @property
    def high(self) -> np.ndarray:
        """float64 `[k]`: 95th percentile of the draws."""
        return np.asarray(np.quantile(self.drawn, 0.95, axis=0))

    @property
    def p(self) -> np.ndarray:
        """float64 `[k]`: (1 + draws that are no smaller) / (1 + draws). Valid at any number of draws."""
        # rounding must not tell apart what is equal, as two relabellings of few rows may be
        as_large = self.drawn >= self.observed * (1 - 1e-9) - 1e-12 * np.abs(self.drawn).max(axis=0)
        return np.asarray((1 + as_large.sum(0)) / (1 + len(self.drawn)))


def swapped_differences(moments: Moments) -> tuple[np.ndarray, np.ndarray] | None:
    """Differences of means `[R, d]` of the relabelled classes, and their numbers of rows `[R, 2]`.

    None without relabellings, or where each of them has left a class empty.
    """
    if moments.swapped is None or moments.swapped_count is None:
        return None
    m = moments.total()
    n = int(m.count.sum())
    positive = moments.swapped_count.astype(np.float64)
    alive = (positive > 0) & (positive < n)
    if not alive.any():
        return None
    positive = positive[alive]
    grand = (m.count[0][:, None] * m.mean[0]).sum(0) / n
    # mean1 - mean0 = (n / n0) (mean1 - grand)
    apart = (moments.swapped[alive] / positive[:, None] - grand) * (n / (n - positive))[:, None]
    return apart, np.stack([n - positive, positive], axis=1)


def difference_null(moments: Moments) -> Null | None:
    """Permutation null of the length of the difference of means, k = 1. None where `swapped_differences` is."""
    found = swapped_differences(moments)
    if found is None:
        return None
    return Null(np.array([np.linalg.norm(moments.difference)]), np.linalg.norm(found[0], axis=1)[:, None])


def component_null(moments: Moments, k: int, pooling: Pooling) -> Null | None:
    """Permutation null of |cos| of the k leading components and the difference of means.

    A relabelling leaves the scatter S of all rows about their common mean as it is. With d the difference of the
    relabelled means and p the share of class 1, the covariance within classes is `S/n - p (1 - p) d d^T`, and that of
    the even mixture `S/n + (1/4 - p (1 - p)) d d^T`: rank-one changes of one matrix, so that one eigendecomposition
    serves all relabellings (`rank_one_cosines`); with classes of equal size the mixture does not change at all. For
    pairs, swapped within each pair, the second moment of the differences does not change either.

    Where the classes differ in size, classes are not weighted alike in S; so that the test stays exact, `observed`
    is the same formula on the true labels. It is another statistic than |cos| of the component of `pooled`, which
    weights classes alike, and may be far from it: a class of many rows can have its own leading component. The tables
    give no null where the two are more than 0.02 apart.

    Args:
        moments: with relabellings; those of pairs within pairs (see `relabellings`).
        k: how many components, at most d.
        pooling: of the covariance.

    Returns:
        None where `swapped_differences` is.

    Raises:
        LayersError: where the moments hold no second moments, or no pairs.
    """
    found = swapped_differences(moments)
    if found is None:
        return None
    m = moments.total()
    apart, sizes = found
    if pooling == "paired":
        if m.paired is None or not m.paired_count:
            raise LayersError("paired components need pairs; collect with paired=True")
        base, share = m.paired / m.paired_count, None
        true = m.difference
    else:
        if m.scatter is None:
            raise LayersError("components need second moments; only means were collected")
        n = m.count[0]
        true = m.difference
        base = m.scatter[0].sum(0) / n.sum() + (n[0] * n[1] / n.sum() ** 2) * np.outer(true, true)
        share = np.concatenate([[n[1] / n.sum()], sizes[:, 1] / sizes.sum(1)])
    both = np.concatenate([true[None], apart])
    mixed = 0.25 if pooling == "balanced" else 0.0
    strength = np.zeros(len(both)) if share is None else mixed - share * (1 - share)
    values, vectors = _frame(base, k, whole=bool(np.abs(strength).max() > 1e-14))
    cosines = rank_one_cosines(values, both @ vectors, strength, k)
    if vectors.shape[1] < vectors.shape[0]:
        # only leading vectors were needed: the parts seen there are not all of each difference
        seen = np.linalg.norm(both @ vectors, axis=1) / np.maximum(np.linalg.norm(both, axis=1), 1e-300)
        cosines = cosines * seen[:, None]
    alive = np.isfinite(cosines).all(1)
    if not alive[1:].any():
        return None
    return Null(cosines[0], cosines[1:][alive[1:]])


def _frame(matrix: np.ndarray, k: int, *, whole: bool) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, falling, and eigenvectors: all, or just the leading ones where nothing is added to the matrix."""
    d = len(matrix)
    if whole or k > d // 4 or d <= 48:
        values, vectors = np.linalg.eigh(matrix)
    else:
        values, vectors = eigh(matrix, subset_by_index=[d - k, d - 1], check_finite=False)
    return np.maximum(values[::-1], 0.0), vectors[:, ::-1]
