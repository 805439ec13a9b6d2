"""How well two classes can be told apart: a linear probe on groups it has not seen, and silhouettes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.special import ndtr

from retarget.analysis.layers.moments import Moments
from retarget.analysis.layers.resample import weighted


@dataclass(frozen=True)
class Probe:
    """What a linear probe does on rows it was not made from.

    Attributes:
        d_prime: difference of the class means along the probe over the spread about them, held out; below 0 where
            the probe points the wrong way.
        accuracy: Phi(d'/2), that of the best threshold were the classes Gaussian and equally frequent.
        folds: in how many parts the groups were held out.
    """

    d_prime: float
    accuracy: float
    folds: int


def probe(moments: Moments, *, folds: int = 5) -> Probe | None:
    """A ridge discriminant, made from some groups of rows and scored on the others, each group held out once.

    The direction is `(W + r I)^-1 (m1 - m0)` (Fisher 1936) from the training groups, with W their covariance within
    classes and `r = (d / n) tr W / d`: more rows, less ridge. Numerator and spread are averaged over the folds before
    they are divided. Only moments are needed: the probe is linear. Rows of one rank are in one group, so that no
    prompt, nor the partner of one, is on both sides.

    Args:
        moments: with groups.
        folds: at most so many parts; group g is held out in part g mod folds.

    Returns:
        None where there are only means, fewer than 2 groups with rows, fewer than 2 rows of a class held out, or
        nothing varies.
    """
    filled = np.flatnonzero(moments.count.sum(1))
    folds = min(folds, len(filled))
    if moments.scatter is None or folds < 2:
        return None
    weights = np.zeros((folds, moments.n_groups, 2))
    weights[np.arange(len(filled)) % folds, filled] = 1.0
    along = spread = 0.0
    parts = zip(weights, weighted(moments, 1 - weights), weighted(moments, weights), strict=True)
    for weight, training, held in parts:
        rows = (weight * moments.count).sum(0)
        direction = _direction(moments, training, int(moments.count.sum() - rows.sum()))
        if direction is None or held[0] is None or held[1] is None or rows.min() < 2:
            return None
        along += float(direction @ held[0])
        # the spread of held-out rows about their own means, without its bias
        spread += float(direction @ held[1] @ direction) * float((rows / (rows - 1)).mean())
    if not spread > 0:
        return None
    d_prime = along / folds / float(np.sqrt(spread / folds))
    return Probe(d_prime, float(ndtr(d_prime / 2)), folds)


def _direction(
    moments: Moments, training: tuple[np.ndarray | None, np.ndarray | None], n_rows: int
) -> np.ndarray | None:
    """The discriminant, of spread 1 in the training rows."""
    difference, within = training
    if difference is None or within is None:
        return None
    ridge = float(np.trace(within)) / max(n_rows, 1)
    if not ridge > 0:
        return None
    matrix = within + ridge * np.eye(moments.width)
    try:
        direction = cho_solve(cho_factor(matrix, overwrite_a=True, check_finite=False), difference)
    except LinAlgError:
        return None
    size = float(np.sqrt(max(direction @ within @ direction + ridge * direction @ direction, 0.0)))
    return None if not size > 0 else direction / size


def silhouette(moments: Moments) -> float | None:
    """(between - within) / the larger one, of mean squared distances; in [-1, 1], about 0 for one and the same cloud.

    `between` is the mean over all pairs of rows of different classes, `within` the mean over pairs of different rows
    of one class, averaged over the classes (Rousseeuw 1987, with mean squares in place of single distances).

    Returns:
        None where there are only means, a class has fewer than 2 rows, or all rows are equal.

    >>> silhouette(Moments.of(np.array([[0.0], [0.0], [1.0], [1.0]]), np.array([0, 0, 1, 1])))
    1.0
    """
    m = moments.total()
    n = m.count[0]
    if m.scatter is None or n.min() < 2:
        return None
    spread = np.trace(m.scatter[0], axis1=1, axis2=2)
    between = float((spread / n).sum() + (m.difference**2).sum())
    within = float((2 * spread / (n - 1)).mean())
    larger = max(between, within)
    return (between - within) / larger if larger > 0 else None
