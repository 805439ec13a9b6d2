"""What two Gaussian classes are expected to show: the cosine of the first component and the difference of means."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from retarget.analysis.layers.nulls import rank_one_cosines
from retarget.errors import LayersError
from retarget.rng import stream


@dataclass(frozen=True)
class GaussianExpectation:
    """Limits of |cos|^2 for two Gaussian classes, as d and the numbers of rows grow together.

    Attributes:
        sample: of the first component with the difference of the sample means, which is what is measured; 0 at and
            below the threshold.
        population: of the first component with the difference of the true means.
        threshold: mean distance above which the first component is drawn to the difference at all.
        strength: limit of |sample difference|^2 / 4, noise included.
    """

    sample: float
    population: float
    threshold: float
    strength: float


def gaussian_expectation(
    *, width: int, n_negative: int, n_positive: int, distance: float, sigma: float = 1.0
) -> GaussianExpectation:
    """Two classes N(m0, sigma^2 I) and N(m1, sigma^2 I) in d dimensions, |m1 - m0| = distance, balanced pooling.

    The pooled covariance is `W + e e^T / 4` with W the mean of the two within-class covariances and e the difference
    of the sample means. For Gaussian classes W and e are independent, and W has no preferred direction: so this is a
    rank-one addition of strength `t = |e|^2 / 4` along a random direction, and its first component obeys Benaych-
    Georges & Nadakuditi (2011): with G the Stieltjes transform of the limit spectrum of W and z its inverse function,
    the component comes out of the bulk at `z(1/t)`, where `|cos|^2 = -z'(1/t) / t^2`, as long as that is above 0.
    Here (Marchenko & Pastur 1967; Silverstein 1995, rows of class c weighted by 1/(2 n_c))

        z(G) = 1/G + sum_c (sigma^2 / 2) / (1 - sigma^2 d G / (2 n_c)),

    hence, with `a_c = sigma^2 d / (2 n_c)` and `t -> distance^2 / 4 + (a_0 + a_1) / 2`,

        |cos|^2 with the sample difference = 1 - sum_c (sigma^2 a_c / 2) / (t - a_c)^2.

    In the direction of the true difference the sample difference has the part `distance^2 / (4 t)` of its squared
    length, and what the component has beside the sample difference is noise in no direction, so that the cosine with
    the true difference is that times `distance^2 / (4 t)`.

    For classes of equal size, with `g = d / n` and `l = (distance / 2 sigma)^2`, the two become `1 - g / l^2` and
    `(1 - g / l^2) / (1 + g / l)`, above the threshold `l = sqrt(g)` of Baik, Ben Arous & Péché (2005); the second is
    the formula of Paul (2007) for the spike l of a covariance `I + l v v^T`.

    Below the threshold the limits are 0. What is left at a finite width is somewhat above 1 / sqrt(d) (mean |cos| is
    0.12 at d = 100 and 400 rows without any difference), and no limit tells it: use `expected_cos` on a spectrum.

    Simulated at d = 100 to 400 and 200 to 400 rows, classes of equal and unequal size, 40 samples each: from 1.6 times
    the threshold on, means of |cos|^2 are within 0.01 of both limits; at 1.2 times up to 0.06 below; at 0.9 times 0.05
    to 0.14 are left.

    Args:
        width: d.
        n_negative, n_positive: rows of each class.
        distance: of the true means.
        sigma: standard deviation along any direction.

    Raises:
        LayersError: for numbers that are not positive (distance may be 0).

    >>> e = gaussian_expectation(width=100, n_negative=50, n_positive=50, distance=4.0)
    >>> round(e.sample, 9), round(e.population, 9), round(e.threshold, 9)
    (0.9375, 0.75, 2.0)
    """
    if min(width, n_negative, n_positive) < 1 or not (distance >= 0 and sigma > 0) or math.isinf(distance + sigma):
        raise LayersError(
            f"an expectation needs a width, rows and a sigma above 0 and a distance from 0 on, got {width}, "
            f"{n_negative}, {n_positive}, {sigma}, {distance}"
        )
    noise = [sigma**2 * width / (2 * n) for n in (n_negative, n_positive)]

    def squared(t: float) -> float:
        return 1.0 - sum(sigma**2 * a / 2 / (t - a) ** 2 for a in noise) if t > max(noise) else -math.inf

    # |cos|^2 grows with t; its zero is the threshold
    low, high = max(noise), max(noise) + sigma**2 + sum(noise)
    while squared(high) < 0:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if squared(middle) < 0 else (low, middle)
    floor = sum(noise) / 2
    strength = distance**2 / 4 + floor
    sample = max(squared(strength), 0.0)
    return GaussianExpectation(
        sample=sample,
        population=sample * distance**2 / 4 / strength,
        threshold=2 * math.sqrt(max(high - floor, 0.0)),
        strength=strength,
    )


def expected_cos(within: np.ndarray, length: float, *, draws: int = 200, seed: int = 0) -> float | None:
    """Mean |cos| of the first component of `W + e e^T / 4` with e, where e has a given length and any direction.

    This is the spiked model of `gaussian_expectation` at a finite width and with the measured spectrum in place of
    the limit one: real activations are never isotropic. It is the exact mean over directions, but for the noise of
    the draws (standard error below 0.02): of each random direction the secular equation is solved
    (`rank_one_cosines`). It needs no threshold, and below it gives what is left at this width. If |cos| is well below
    it, the difference lies where the classes vary little; if above, where they vary most.

    Args:
        within: float64 `[d]`: eigenvalues of W, the covariance within classes, in any order, or W itself `[d, d]`.
        length: of the sample difference of means.
        draws: directions.
        seed: of their random stream.

    Returns:
        None where the length or W is 0.

    Raises:
        LayersError: for a spectrum or length that is not finite or below 0.

    >>> expected_cos(np.ones(50), 1e3), expected_cos(np.ones(50), 0.0)
    (1.0, None)
    """
    values = np.linalg.eigvalsh(within) if within.ndim == 2 else np.sort(np.asarray(within, dtype=np.float64))
    if not (np.isfinite(values).all() and 0 <= length < math.inf) or draws < 1:
        raise LayersError(f"an expectation needs finite variances, a finite length and draws, got {length} and {draws}")
    values = np.maximum(values[::-1], 0.0)
    if not (length > 0 and values[0] > 0):
        return None
    z = stream(seed, "layers_expected", len(values), draws).standard_normal((draws, len(values)))
    z *= length / np.linalg.norm(z, axis=1, keepdims=True)
    return float(rank_one_cosines(values, z, np.full(draws, 0.25), 1).mean())
