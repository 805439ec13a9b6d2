"""Intervals and comparisons. Each says what it assumes; none draws from a global random state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retarget.errors import RetargetError
from retarget.probes.growth import Estimate, growth_exponent, line_slope, student_quantile
from retarget.rng import CellKey, stream

#: Values this close, relative to their size (at least 1), differ by rounding only.
ROUNDING = 1e-12

__all__ = [
    "Estimate",
    "OrderChange",
    "bootstrap_interval",
    "geometric_mean_interval",
    "growth_exponent",
    "line_slope",
    "mean_interval",
    "order_change",
    "share_interval",
    "welch_difference",
]


def mean_interval(
    values: Sequence[float], *, confidence: float = 0.95, low: float | None = None, high: float | None = None
) -> Estimate:
    """Mean with a Student-t interval. The values are taken as independent draws.

    Args:
        values: float `[N]`, N >= 1.
        confidence: of the interval, in (0, 1).
        low, high: bounds of the quantity; the interval is cut there.

    Returns:
        The mean. With one value the interval is None: one draw says nothing about the spread. With values that
        are all equal (but for rounding) both ends are that value: no spread was seen, which is not a proof that
        there is none.

    Raises:
        RetargetError: without values, or with one that is not finite.

    >>> mean_interval([1.0, 2.0, 3.0]).value
    2.0
    >>> mean_interval([0.0, 0.0])
    Estimate(value=0.0, ci_low=0.0, ci_high=0.0, n=2)
    >>> mean_interval([5.0])
    Estimate(value=5.0, ci_low=None, ci_high=None, n=1)
    """
    n = _check(values, confidence)
    if n == 1:
        return Estimate(float(values[0]), None, None, 1)
    mean = math.fsum(values) / n
    if max(values) - min(values) <= ROUNDING * max(1.0, abs(mean)):
        value = float(values[0]) if min(values) == max(values) else mean
        return Estimate(value, value, value, n)
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    half = student_quantile(0.5 + confidence / 2, n - 1) * deviation / math.sqrt(n)
    return Estimate(mean, _cut(mean - half, low, high), _cut(mean + half, low, high), n)


def geometric_mean_interval(values: Sequence[float], *, confidence: float = 0.95) -> Estimate:
    """Geometric mean of positive ratios, with a Student-t interval on their logarithms.

    >>> round(geometric_mean_interval([0.5, 2.0]).value, 12)
    1.0
    """
    _check(values, confidence)
    if min(values) <= 0:
        raise RetargetError(f"a geometric mean needs positive values, got {min(values)!r}")
    logs = mean_interval([math.log2(v) for v in values], confidence=confidence)
    if logs.ci_low is None or logs.ci_high is None:
        return Estimate(2.0**logs.value, None, None, logs.n)
    return Estimate(2.0**logs.value, 2.0**logs.ci_low, 2.0**logs.ci_high, logs.n)


def bootstrap_interval(
    values: Sequence[float],
    *cell: CellKey,
    seed: int = 0,
    resamples: int = 2000,
    confidence: float = 0.95,
    median: bool = False,
) -> Estimate:
    """Mean (or median) with a percentile bootstrap interval, drawn from the named stream of (seed, cell).

    Args:
        values: float `[N]`, N >= 1; taken as independent draws.
        cell: tells two uses apart.
        seed: names the stream.
        resamples: number of resamples.
        confidence: of the interval, in (0, 1).
        median: take the median instead of the mean.

    Returns:
        The estimate; interval None with one value.

    >>> a = bootstrap_interval([0.0, 1.0, 2.0, 3.0], "demo")
    >>> a == bootstrap_interval([0.0, 1.0, 2.0, 3.0], "demo"), a.value
    (True, 1.5)
    """
    n = _check(values, confidence)
    if resamples < 1:
        raise RetargetError(f"a bootstrap needs at least one resample, got {resamples!r}")
    array = np.asarray(values, dtype=np.float64)
    statistic = np.median if median else np.mean
    value = float(statistic(array))
    if n == 1:
        return Estimate(value, None, None, 1)
    picks = stream(seed, "bootstrap", *cell).integers(0, n, size=(resamples, n))
    tail = (1 - confidence) / 2
    ends = np.quantile(statistic(array[picks], axis=1), [tail, 1 - tail])
    return Estimate(value, float(ends[0]), float(ends[1]), n)


def share_interval(hits: int, n: int, *, confidence: float = 0.95) -> Estimate:
    """Share of hits with the exact (Clopper-Pearson) interval.

    >>> share_interval(0, 10).ci_low
    0.0
    """
    if n < 1 or not 0 <= hits <= n:
        raise RetargetError(f"a share needs 0 <= hits <= n and n >= 1, got {hits} of {n}")
    from scipy.special import betaincinv

    tail = (1 - confidence) / 2
    low = 0.0 if hits == 0 else float(betaincinv(hits, n - hits + 1, tail))
    high = 1.0 if hits == n else float(betaincinv(hits + 1, n - hits, 1 - tail))
    return Estimate(hits / n, low, high, n)


def welch_difference(first: Sequence[float], second: Sequence[float], *, confidence: float = 0.95) -> Estimate:
    """Difference of means, first minus second, with Welch's interval (variances may differ).

    The interval is None when either sample has fewer than two values.

    >>> welch_difference([3.0, 3.0], [1.0, 1.0])
    Estimate(value=2.0, ci_low=2.0, ci_high=2.0, n=4)
    """
    n, m = _check(first, confidence), _check(second, confidence)
    mean_a, mean_b = math.fsum(first) / n, math.fsum(second) / m
    value = mean_a - mean_b
    if n < 2 or m < 2:
        return Estimate(value, None, None, n + m)
    va = math.fsum((v - mean_a) ** 2 for v in first) / (n - 1) / n
    vb = math.fsum((v - mean_b) ** 2 for v in second) / (m - 1) / m
    if va + vb == 0:
        return Estimate(value, value, value, n + m)
    dof = (va + vb) ** 2 / (va**2 / (n - 1) + vb**2 / (m - 1))
    from scipy.special import stdtrit

    half = float(stdtrit(dof, 0.5 + confidence / 2)) * math.sqrt(va + vb)
    return Estimate(value, value - half, value + half, n + m)


@dataclass(frozen=True)
class OrderChange:
    """How two scores order the same things.

    Attributes:
        compared: pairs of things that both scores tell apart.
        swapped: those that the two scores order oppositely, as index pairs.
    """

    compared: int
    swapped: tuple[tuple[int, int], ...]


def order_change(first: Sequence[float], second: Sequence[float], *, tolerance: float = 1e-9) -> OrderChange:
    """Which pairs of things two scores order oppositely. Ties (within `tolerance`) in either are not compared.

    >>> order_change([1.0, 2.0, 3.0], [10.0, 30.0, 20.0])
    OrderChange(compared=3, swapped=((1, 2),))
    """
    if len(first) != len(second):
        raise RetargetError(f"two orders need the same things, got {len(first)} and {len(second)}")
    compared, swapped = 0, []
    for i in range(len(first)):
        for j in range(i + 1, len(first)):
            a, b = first[j] - first[i], second[j] - second[i]
            if abs(a) <= tolerance or abs(b) <= tolerance:
                continue
            compared += 1
            if (a > 0) != (b > 0):
                swapped.append((i, j))
    return OrderChange(compared, tuple(swapped))


def _check(values: Sequence[float], confidence: float) -> int:
    if not 0 < confidence < 1:
        raise RetargetError(f"confidence must lie strictly between 0 and 1, got {confidence!r}")
    if len(values) == 0:
        raise RetargetError("a mean needs at least one value, got none; count the rows instead")
    bad = [v for v in values if not math.isfinite(v)]
    if bad:
        raise RetargetError(f"a mean needs finite values, got {bad[0]!r}; leave out rows without a value")
    return len(values)


def _cut(value: float, low: float | None, high: float | None) -> float:
    value = value if low is None else max(value, low)
    return value if high is None else min(value, high)
