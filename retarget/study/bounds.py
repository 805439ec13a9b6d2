"""Bounds on errors and means, from few values whose distribution nobody knows.

Student's interval of values that are all alike has no width, however few they are. Where n independent values are all
v, the first may be anything, and the other n - 1 agree with it with a chance of q**(n - 1), where a share q of all
values is v: so, at confidence 1 - alpha, at most 1 - alpha**(1 / (n - 1)) of them are another, and the mean is no
farther from v than if all those lay at an end of the metric's range (the argument of Clopper and Pearson 1934, with v
not known beforehand). A metric without a range bounds nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from retarget.probes.growth import student_quantile


@dataclass(frozen=True)
class Error:
    """What an instrument gets wrong, from agents of known truth.

    Attributes:
        bias, bias_low, bias_high: mean of measured less true, with its interval; ends None for one value.
        spread: standard deviation; None for one value.
        n: rows of known truth.
        bound: what the error does not exceed at the confidence asked for, at least 0; None where n is too small.
        reason: why there is no bound, else empty.
    """

    bias: float | None
    bias_low: float | None
    bias_high: float | None
    spread: float | None
    n: int
    bound: float | None
    reason: str = ""


def error_of(
    errors: Sequence[float],
    *,
    alpha: float,
    clusters: Sequence[float] | None = None,
    limits: tuple[float, float] = (-math.inf, math.inf),
) -> Error:
    """Bias, spread and bound of errors on agents of known truth.

    Args:
        errors: `[N]` measured less true, one a row.
        alpha: chance, at most, that a further error exceeds the bound.
        clusters: for means over rows: mean errors of groups of rows that are independent of each other. The bound is
            then of the bias alone.
        limits: between what an error can lie, by the range of the metric.

    >>> error_of([0.1, -0.2, 0.1], alpha=0.25).bound
    0.2
    >>> error_of([0.1, -0.2, 0.1], alpha=0.05).reason
    '3 rows of known truth bound the error with confidence 0.75 at most; 0.95 takes 19'
    """
    n = len(errors)
    units = list(errors if clusters is None else clusters)
    bias, low, high = mean_of(units, 1 - alpha, limits)
    spread = _deviation(errors) if n > 1 else None
    if clusters is not None:
        if low is None or high is None:
            return Error(bias, None, None, spread, n, None, f"known truth bounds no bias: {no_interval(len(units))}")
        return Error(bias, low, high, spread, n, max(abs(low), abs(high)))
    # rounded first, so that 0.95 * 20 is 19 and not a little more
    rank = math.ceil(round((1 - alpha) * (n + 1), 9))
    if rank > n:
        most, needed = n / (n + 1), math.ceil(round(1 / alpha, 9)) - 1
        reason = f"{n} rows of known truth bound the error with confidence {most:.3g} at most; "
        reason += f"{1 - alpha:.3g} takes {needed}"
        return Error(bias, low, high, spread, n, None, reason)
    return Error(bias, low, high, spread, n, sorted(map(abs, errors))[rank - 1])


def mean_of(
    values: Sequence[float], confidence: float, limits: tuple[float, float]
) -> tuple[float | None, float | None, float | None]:
    """Mean and its interval: Student's, or that of the share of others, where they are all alike (see above)."""
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return mean, None, None
    # means of equal numbers of rows differ in the last place
    if max(values) - min(values) <= 1e-9 * max(1.0, abs(mean)):
        if not all(map(math.isfinite, limits)):
            return mean, None, None
        others = 1 - (1 - confidence) ** (1 / (n - 1))
        return mean, mean - others * max(0.0, mean - limits[0]), mean + others * max(0.0, limits[1] - mean)
    half = student_quantile(0.5 + confidence / 2, n - 1) * _deviation(values) / math.sqrt(n)
    return mean, mean - half, mean + half


def no_interval(n: int) -> str:
    """Why a mean over n worlds and seeds has no interval, in a few words."""
    if n < 2:
        return "one world and seed alone"
    words = "and the metric has no range: how far others may differ is not known"
    return f"the value is the same in all {n} worlds and seeds, {words}"


def _deviation(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
