"""Leading principal components of a covariance, how spread a spectrum is, and what two classes are pooled to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.linalg import eigh
from scipy.linalg.blas import dsymv
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

from retarget.analysis.layers.moments import Moments
from retarget.errors import LayersError, unknown
from retarget.rng import stream

Pooling = Literal["balanced", "within", "paired"]
POOLINGS: tuple[Pooling, ...] = ("balanced", "within", "paired")

#: From this width on Lanczos beats a dense solver. Milliseconds on one core for k = 5, on isotropic noise (the
#: hardest case) and on a decaying spectrum: d = 256: dense 2; d = 400: dense 10 to 13, Lanczos 2.5 and 1;
#: d = 768: 72, 28 and 10; d = 1024: 190, 54 and 18; d = 2048: 1500 to 1900, 250 and 67. With the product X^T X, that is
#: 3.0 to 35 times as fast as the SVD of the centred data (d = 768: 115 for 400 rows, 1400 to 1900 for 4000).
_LANCZOS_FROM = 320
#: Variances below this share of the largest one, a dimension, are rounding.
_ROUNDING = 1e-13


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The leading eigenpairs of a covariance.

    Attributes:
        values: float64 `[k]`, falling.
        vectors: float64 `[d, k]`, orthonormal; of each, the entry of largest size is positive.
        total: the trace: all of the variance.
        clear: bool `[k]`: whether there is variance along the component, and its value is not shared with a
            neighbour, so that the component is a direction at all.
    """

    values: np.ndarray
    vectors: np.ndarray
    total: float
    clear: np.ndarray

    @property
    def explained(self) -> np.ndarray:
        """float64 `[k]`: share of the variance along each component."""
        return np.asarray(self.values / self.total)


def leading(matrix: np.ndarray, k: int, *, n_rows: int | None = None, accuracy: float = 1e-7) -> Spectrum | None:
    """The k leading eigenpairs of a symmetric matrix without negative eigenvalues.

    Dense (LAPACK's tridiagonal reduction) for small widths, few rows, or k near d; Lanczos (ARPACK, from a fixed
    start) for wide matrices, checked by its residuals and by a power iteration on what it left over, with the dense
    solver behind it.

    Args:
        matrix: float64 `[d, d]`.
        k: how many; at most d are returned.
        n_rows: rows that it was made from, where known: of few rows the matrix has low rank, and goes to the dense
            solver.
        accuracy: of Lanczos: length of its residuals relative to the largest eigenvalue. Errors of the subspace are
            about as large, over the gap to the next eigenvalue; those of the eigenvalues are their square.

    Returns:
        None where the matrix is 0: there is no variance and no component.

    Raises:
        LayersError: for a matrix that is not square or not finite, or k below 1.

    >>> s = leading(np.diag([1.0, 4.0, 2.0]), 2)
    >>> s.values.round(6).tolist(), s.vectors.T.round(6).tolist(), s.clear.tolist()
    ([4.0, 2.0], [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], [True, True])
    """
    d = len(matrix)
    if matrix.shape != (d, d) or k < 1:
        raise LayersError(f"components need a square matrix and k of at least 1, got {matrix.shape} and k={k}")
    total = float(np.trace(matrix))
    if not np.isfinite(total):
        raise LayersError("a covariance is not finite; float16 overflow? try dtype float32 or bfloat16")
    if total <= 0:
        return None
    k = min(k, d)
    more = min(k + 1, d)  # the next one tells whether the last is a direction of its own
    found = None
    if d >= _LANCZOS_FROM and more <= d // 8 and (n_rows is None or n_rows > 3 * _basis(more, d)):
        found = _lanczos(matrix, more, accuracy)
    values, vectors = _dense(matrix, more) if found is None else found
    values = np.maximum(values, 0.0)
    noise = _ROUNDING * d * max(values[0], 1e-300)
    gaps = np.full(more, np.inf)
    gaps[:-1] = values[:-1] - values[1:]
    gaps[1:] = np.minimum(gaps[1:], values[:-1] - values[1:])
    clear = (values > noise) & (gaps > noise)
    largest = vectors[np.abs(vectors).argmax(0), np.arange(more)]
    vectors = vectors * np.where(largest < 0, -1.0, 1.0)
    return Spectrum(values[:k], vectors[:, :k], total, clear[:k])


def _dense(matrix: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    d = len(matrix)
    if d <= 48 or k > d // 4:
        values, vectors = np.linalg.eigh(matrix)
    else:
        values, vectors = eigh(matrix, subset_by_index=[d - k, d - 1], check_finite=False)
    return values[::-1][:k], vectors[:, ::-1][:, :k]


def _basis(k: int, d: int) -> int:
    return min(d - 1, max(2 * k + 1, 24))


def _lanczos(matrix: np.ndarray, k: int, accuracy: float) -> tuple[np.ndarray, np.ndarray] | None:
    """None where it cannot be trusted: no convergence, a residual, or something larger that it has missed."""
    d = len(matrix)
    start = stream(0, "layers_lanczos", d).standard_normal((d, 2))
    columns = np.ascontiguousarray(matrix, dtype=np.float64).T
    # one triangle is read, half of the memory: it is that which takes the time
    product = LinearOperator((d, d), matvec=lambda v: dsymv(1.0, columns, v), dtype=np.float64)
    try:
        values, vectors = eigsh(product, k=k, which="LA", v0=start[:, 0], tol=accuracy, ncv=_basis(k, d), maxiter=300)
    except ArpackError:
        return None
    order = np.argsort(-values)
    values, vectors = values[order], np.linalg.qr(vectors[:, order])[0]
    if values[-1] <= 1e-8 * values[0]:
        return None  # low rank: Lanczos then goes on from random vectors
    residual = np.linalg.norm(matrix @ vectors - vectors * values, axis=0).max()
    if not residual <= 10 * max(accuracy, 1e-12) * values[0] * np.sqrt(d):
        return None
    probe = start[:, 1]
    size = 0.0
    for _ in range(4):
        probe = probe - vectors @ (vectors.T @ probe)
        probe /= np.linalg.norm(probe)
        image = matrix @ probe
        size, probe = float(probe @ image), image
        if not image.any():
            break
    return None if size > values[-1] * (1 + 1e-6) else (values, vectors)


def pooled(moments: Moments, pooling: Pooling) -> np.ndarray:
    """The covariance `[d, d]` that components are taken of.

    Sums are divided by the number of rows (not by one less), classes are weighted alike however many rows they have:

    - `within`: `(S1/n1 + S0/n0) / 2`, the spread about each class's own mean;
    - `balanced`: `within + (m1 - m0)(m1 - m0)^T / 4`, the covariance of an even mixture of the two classes. With
      classes of equal size it is the plain covariance of all rows;
    - `paired`: the mean of `(x1 - x0)(x1 - x0)^T` over pairs, not centred.

    Args:
        moments: of two classes; groups are put together.
        pooling: which.

    Raises:
        LayersError: where the moments do not hold it: only means, no pairs, an empty class.

    >>> m = Moments.of(np.array([[-1.0], [1.0], [3.0], [5.0]]), np.array([0, 0, 1, 1]))
    >>> pooled(m, "within").item(), pooled(m, "balanced").item()
    (1.0, 5.0)
    """
    if pooling == "paired":
        if moments.paired is None or moments.paired_count < 1:
            raise LayersError("paired components need pairs; collect with paired=True")
        return np.asarray(moments.paired / moments.paired_count)
    if pooling not in POOLINGS:
        raise LayersError(unknown("pooling", pooling, POOLINGS))
    if moments.scatter is None:
        raise LayersError("components need second moments; only means were collected")
    m = moments.total()
    n = m.count[0]
    if m.scatter is None or len(n) != 2 or not n.all():
        raise LayersError(f"components need rows in two classes, got counts {n.tolist()}")
    spread = (m.scatter[0, 0] / n[0] + m.scatter[0, 1] / n[1]) / 2
    if pooling == "balanced":
        difference = m.difference
        spread += np.outer(difference, difference) / 4
    return np.asarray(spread)


def participation_ratio(matrix: np.ndarray) -> float | None:
    """How many dimensions the variance is spread over: `(tr S)^2 / tr S^2`, from 1 to d. None without variance.

    >>> participation_ratio(np.diag([1.0, 1.0, 0.0]))
    2.0
    """
    top = float(np.abs(matrix).max())
    if not top > 0:
        return None
    scaled = matrix / top  # squares of very small or large numbers would leave the range
    return float(np.trace(scaled) ** 2 / np.sum(scaled * scaled))


def cosine(a: np.ndarray, b: np.ndarray) -> float | None:
    """Cosine of two vectors in [-1, 1]; None where one of them is 0.

    >>> cosine(np.array([3.0, 4.0]), np.array([-6.0, -8.0])), cosine(np.zeros(2), np.ones(2))
    (-1.0, None)
    """
    size_a, size_b = float(np.abs(a).max(initial=0.0)), float(np.abs(b).max(initial=0.0))
    if not (size_a > 0 and size_b > 0):
        return None
    a, b = a / size_a, b / size_b
    return float(np.clip(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)), -1.0, 1.0))
