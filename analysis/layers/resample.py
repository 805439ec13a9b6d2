"""Intervals from groups of rows: leaving each out, or drawing them anew."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import stdtrit

from retarget.analysis.layers.moments import Moments
from retarget.analysis.layers.spectrum import leading
from retarget.errors import LayersError, unknown
from retarget.rng import stream

Method = Literal["jackknife", "bootstrap"]
METHODS: tuple[Method, ...] = ("jackknife", "bootstrap")

#: Fewer groups than this give no interval: a spread of so few numbers says nothing.
LEAST_GROUPS = 5
#: |cos| is taken as no closer to 1 than this, so that Fisher's z stays finite.
_EDGE = 1e-12


@dataclass(frozen=True, eq=False)
class Replicates:
    """A statistic on all rows, and on resampled groups of them.

    Attributes:
        method: `jackknife`: draw g leaves out group g; `bootstrap`: each draw takes as many groups as there are, with
            replacement.
        n_groups: G, groups that have rows.
        estimate: float64 `[...]`: on all rows.
        drawn: float64 `[D, ...]`: D is G for the jackknife.
    """

    method: Method
    n_groups: int
    estimate: np.ndarray
    drawn: np.ndarray

    def deviations(self) -> np.ndarray:
        """float64 `[D, ...]`: draws about their own mean, scaled to the spread of the estimate.

        About their own mean, not about the estimate: with a group left out, or rows repeated, a statistic is biased,
        all draws in the same direction. That bias is of the resampling, not of the estimate.
        """
        apart = self.drawn - self.drawn.mean(0)
        n = self.n_groups
        return np.asarray(apart * (n - 1) / np.sqrt(n) if self.method == "jackknife" else apart * np.sqrt(n / (n - 1)))

    def interval(self, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper ends `[...]`: the estimate and Student's t, with G - 1 degrees of freedom, standard errors
        to either side. NaN where a draw is. Percentiles of the bootstrap would be too narrow for few groups."""
        apart = self.deviations()
        error = np.sqrt((apart**2).sum(0) / (self.n_groups - 1 if self.method == "jackknife" else len(apart)))
        reach = stdtrit(self.n_groups - 1, (1 + confidence) / 2) * error
        return self.estimate - reach, self.estimate + reach

    def sample(self, n: int, *, seed: int) -> np.ndarray:
        """float64 `[n, ...]`: draws of the estimate, one set of group weights for all its entries.

        For the jackknife: its deviations under random signs and sizes, a multivariate t of their covariance with
        G - 1 degrees of freedom. For the bootstrap: its recentred draws.
        """
        apart = self.deviations()
        if self.method == "bootstrap":
            return np.asarray(self.estimate + apart)
        random = stream(seed, "layers_sample", n, len(apart))
        freedom = self.n_groups - 1
        weights = random.standard_normal((n, len(apart))) / np.sqrt(random.chisquare(freedom, (n, 1)))
        return np.asarray(self.estimate + np.tensordot(weights, apart, 1))


def fisher(cos: np.ndarray) -> np.ndarray:
    """Fisher's z of |cos|: `atanh`, in which its spread hardly depends on its value.

    >>> fisher(np.array([0.0, 1.0])).round(2).tolist()
    [0.0, 14.16]
    """
    return np.asarray(np.arctanh(np.minimum(np.abs(cos), 1 - _EDGE)))


def cos_of(z: np.ndarray) -> np.ndarray:
    """|cos| of a Fisher's z; below 0 it is 0.

    >>> cos_of(fisher(np.array([0.25]))).round(9).tolist()
    [0.25]
    """
    return np.asarray(np.tanh(np.maximum(z, 0.0)))


def group_weights(
    moments: Moments, method: Method, *, draws: int = 200, seed: int = 0, paired: bool = False
) -> np.ndarray | None:
    """Weights of groups `[D, G, 2]` by draw, group and class. None with fewer than 5 groups that have rows.

    The jackknife leaves out one group of both classes at a time. The bootstrap draws groups of each class on their
    own, or together where rows are paired. Weights depend on the groups and the seed alone: they are the same at
    every layer.

    Raises:
        LayersError: for an unknown method.
    """
    if method not in METHODS:
        raise LayersError(unknown("interval", method, METHODS))
    filled = np.flatnonzero(moments.count.sum(1))
    n = len(filled)
    if n < LEAST_GROUPS:
        return None
    if method == "jackknife":
        weights = np.ones((n, moments.n_groups, 2))
        weights[np.arange(n), filled] = 0.0
        return weights
    random = stream(seed, "layers_bootstrap", draws, n)
    drawn = random.multinomial(n, np.full(n, 1 / n), size=(draws, 2)).astype(np.float64)
    weights = np.zeros((draws, moments.n_groups, 2))
    weights[:, filled] = np.swapaxes(drawn[:, [0, 0]] if paired else drawn, 1, 2)
    return weights


def weighted(moments: Moments, weights: np.ndarray) -> Iterator[tuple[np.ndarray | None, np.ndarray | None]]:
    """(difference of means `[d]`, covariance within classes `[d, d]`) under each weighting of the groups.

    Args:
        moments: of two classes.
        weights: float64 `[D, G, 2]`; 1 everywhere gives the difference and `pooled(moments, "within")`.

    Yields:
        (None, None) where a class is left empty; no covariance where there are only means.
    """
    total = None if moments.scatter is None else moments.scatter.sum(0)
    shift = moments.mean[moments.count.sum(1).argmax()].mean(0)
    apart = moments.mean - shift
    for w in weights:
        share = w * moments.count
        n = share.sum(0)
        if not n.all():
            yield None, None
            continue
        share = share / n
        middle = np.einsum("gc,gci->ci", share, apart)
        within = None
        if total is not None and moments.scatter is not None:
            off = (np.sqrt(share / 2)[..., None] * (apart - middle)).reshape(-1, moments.width)
            within = off.T @ off
            for c in (0, 1):
                within += total[c] * (0.5 / n[c])
                for g in np.flatnonzero((w[:, c] != 1) & (moments.count[:, c] > 0)):
                    within += moments.scatter[g, c] * ((w[g, c] - 1) * 0.5 / n[c])
        yield middle[1] - middle[0], within


@dataclass(frozen=True, eq=False)
class Resampled:
    """Replicates of what the tables give intervals of; None where there are no second moments.

    Attributes:
        length: of |difference|, no axes.
        balanced: of Fisher's z of |cos| of components and difference, `[k]`.
        within: the same, of the components within classes.
    """

    length: Replicates
    balanced: Replicates | None
    within: Replicates | None


def resample(
    moments: Moments, k: int, method: Method = "jackknife", *, draws: int = 200, seed: int = 0, paired: bool = False
) -> Resampled | None:
    """Replicates of the length of the difference of means and of the cosines of components with it.

    What the intervals cover: the value that another sample of as many rows would give on average. (The length of a
    difference of sample means is above that of the true one, by `diff_noise`; a component of few rows is tilted.)

    Coverage of nominal 95% intervals, simulated: two Gaussian classes, d = 64 and 128, 100 to 200 rows a class, 10
    and 20 groups, mean distances of 0, 0.7, 1, 1.3, 1.8 and 3 times the threshold, 120 samples each (standard error
    2 points). |cos| of the first component: jackknife in Fisher's z 93 to 100%, bootstrap 88 to 100%, the least at
    the threshold. Length of the difference: jackknife 92 to 100%, bootstrap 88 to 100%. At and below the threshold,
    where a component is drawn to the difference by chance or not at all, |cos| is known to +-0.2 to 0.4 only. Above,
    the bootstrap is up to twice as wide: rows that are taken twice leave fewer to find the component with, and tilt
    it. So the jackknife is the default, and costs G eigenproblems in place of 200.

    Those classes are isotropic. With one nuisance axis along which both classes vary more (d = 64, 150 rows a class,
    standard deviation 1.6 to 1.8 along it, 1 along the others) the jackknife's intervals of |cos| covered 89 to 91%.

    Args:
        moments: with at least 5 groups that have rows.
        k: components.
        method: see `Replicates`.
        draws, seed: of the bootstrap.
        paired: whether rows are pairs, so that groups of both classes are drawn together.

    Returns:
        None with fewer than 5 groups, or a class without rows.
    """
    weights = group_weights(moments, method, draws=draws, seed=seed, paired=paired)
    if weights is None or not moments.count.sum(0).all():
        return None
    all_rows = np.ones((1, *weights.shape[1:]))
    k = min(k, moments.width)
    rows = int(moments.count.sum())
    lengths, cosines = [], []
    for difference, within in weighted(moments, np.concatenate([all_rows, weights])):
        lengths.append(np.nan if difference is None else float(np.linalg.norm(difference)))
        if moments.scatter is None:
            continue
        row = np.full((2, k), np.nan)
        if difference is not None and within is not None and lengths[-1] > 0:
            unit = difference / lengths[-1]
            for i, matrix in enumerate((within, within + np.outer(difference, difference) / 4)):
                found = leading(matrix, k, n_rows=rows, accuracy=1e-6)
                if found is not None:
                    row[i] = fisher(unit @ found.vectors)
        cosines.append(row)
    n_groups = int((moments.count.sum(1) > 0).sum())
    length = Replicates(method, n_groups, np.asarray(lengths[0]), np.asarray(lengths[1:]))
    if moments.scatter is None:
        return Resampled(length, None, None)
    z = np.stack(cosines)
    return Resampled(
        length, Replicates(method, n_groups, z[0, 1], z[1:, 1]), Replicates(method, n_groups, z[0, 0], z[1:, 0])
    )
