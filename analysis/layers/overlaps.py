"""How much two layers' leading subspaces have in common once given directions are taken out of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retarget.analysis.layers.spectrum import leading
from retarget.errors import LayersError
from retarget.rng import stream

#: Directions shorter than this, of unit vectors with others taken out, are rounding.
_ROUNDING = 1e-7


@dataclass(frozen=True)
class Overlap:
    """Overlap of two subspaces of k dimensions.

    Attributes:
        value: `|U^T V|_F^2`, the sum of squared cosines of the principal angles: k for the same subspace, 0 for none
            in common.
        expected: its mean for random subspaces, `k^2 / (d - r)` where r dimensions are taken out.
        null_high: 95th percentile with the coordinates of V permuted; None without permutations.
        p: (1 + permutations that are no smaller) / (1 + permutations); None without them.
    """

    value: float
    expected: float
    null_high: float | None
    p: float | None


def free_basis(directions: Sequence[np.ndarray], width: int) -> np.ndarray:
    """Orthonormal basis `[d, r]` of what the directions span; zero and repeated ones count for nothing.

    >>> free_basis([np.array([0.0, 2.0]), np.array([0.0, -1.0]), np.zeros(2)], 2).shape
    (2, 1)
    """
    units = [v / np.linalg.norm(v) for v in directions if np.any(v)]
    if not units:
        return np.zeros((width, 0))
    u, s, _ = np.linalg.svd(np.stack(units, axis=1), full_matrices=False)
    return np.asarray(u[:, s > _ROUNDING])


def subspace_without(matrix: np.ndarray, direction: np.ndarray, k: int, *, n_rows: int | None = None) -> np.ndarray:
    """Leading eigenvectors `[d, k']` of a covariance after a direction is projected out; k' < k where rank is lacking.

    Args:
        matrix: float64 `[d, d]`.
        direction: float64 `[d]`; a zero one takes nothing out.
        k: how many, at most d.
        n_rows: see `leading`.
    """
    basis = free_basis([direction], len(matrix))
    image = matrix @ basis
    inside = basis.T @ image
    left = matrix - image @ basis.T - basis @ image.T + basis @ inside @ basis.T
    found = leading(left, k, n_rows=n_rows)
    if found is None:
        return np.zeros((len(matrix), 0))
    # what rounding leaves along the direction is no variance
    return found.vectors[:, found.values > 1e-12 * float(np.trace(matrix))]


def subspace_overlap(
    u: np.ndarray, v: np.ndarray, *, out: Sequence[np.ndarray] = (), permutations: int = 200, seed: int = 0
) -> Overlap | None:
    """Overlap of the spans of U and V, with directions projected out of both.

    The null permutes the d coordinates of V, before the directions are taken out: it keeps how V is spread over the
    coordinates, and breaks what they are coordinates of. A permuted subspace that leaves the others no less in common
    than the true one did speaks against a shared subspace.

    Args:
        u, v: float64 `[d, k]`, columns of full rank.
        out: directions `[d]` to take out; zero ones take nothing out.
        permutations: of the null; 0 for none.
        seed: of the permutations; the same for every pair of layers.

    Returns:
        None where the directions leave less than k dimensions of either.

    Raises:
        LayersError: for shapes that differ.

    >>> e = np.eye(6)
    >>> subspace_overlap(e[:, :2], e[:, 1:3], out=[e[:, 5]], permutations=0)
    Overlap(value=1.0, expected=0.8, null_high=None, p=None)
    """
    if u.shape != v.shape or u.ndim != 2 or not u.shape[1]:
        raise LayersError(f"subspaces to compare must have the same shape [d, k], got {u.shape} and {v.shape}")
    d, k = u.shape
    basis = free_basis(out, d)
    if d - basis.shape[1] < k:
        return None
    first, second = _orthonormal(u, basis), _orthonormal(v, basis)
    if first is None or second is None:
        return None
    value = float(np.sum((first.T @ second) ** 2))
    expected = k * k / (d - basis.shape[1])
    if permutations < 1:
        return Overlap(value, expected, None, None)
    random = stream(seed, "layers_coordinates", d, permutations)
    orders = random.permuted(np.tile(np.arange(d), (permutations, 1)), axis=1)
    drawn = _permuted(first, v, basis, orders)
    if not len(drawn):
        return Overlap(value, expected, None, None)
    p = float((1 + (drawn >= value - 1e-9).sum()) / (1 + len(drawn)))
    return Overlap(value, expected, float(np.quantile(drawn, 0.95)), p)


def _orthonormal(u: np.ndarray, basis: np.ndarray) -> np.ndarray | None:
    left = u - basis @ (basis.T @ u)
    q, s, _ = np.linalg.svd(left, full_matrices=False)
    return None if s[-1] < _ROUNDING * max(float(np.abs(u).max()), 1e-300) else np.asarray(q)


def _permuted(first: np.ndarray, v: np.ndarray, basis: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """Overlaps `[P]` of U with V's permutations, by `tr(M^T M (W^T W)^-1)` with M = U^T W: no one needs W's basis."""
    out = []
    for part in np.array_split(orders, max(1, orders.size * v.shape[1] // 4_000_000)):
        w = v[part]  # [P, d, k]
        w = w - basis @ (basis.T @ w)
        gram = np.swapaxes(w, 1, 2) @ w
        alive = np.linalg.eigvalsh(gram)[:, 0] > _ROUNDING**2
        m = first.T @ w[alive]
        inner = np.swapaxes(m, 1, 2) @ m
        out.append(np.trace(np.linalg.solve(gram[alive], inner), axis1=1, axis2=2))
    return np.concatenate(out)
