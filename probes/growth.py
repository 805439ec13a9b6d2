"""How a length grows with the size of a world: the slope of a line through logarithms, with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from retarget.errors import ProbeError


@dataclass(frozen=True)
class Estimate:
    """A number with its interval.

    Attributes:
        value: the point estimate.
        ci_low, ci_high: ends of the interval, or both None where the sample says nothing about the spread.
            Both equal `value` where the sample has no spread at all.
        n: sample size.
    """

    value: float
    ci_low: float | None
    ci_high: float | None
    n: int


def student_quantile(probability: float, dof: int) -> float:
    """The quantile of Student's t with `dof` degrees of freedom.

    >>> round(student_quantile(0.975, 10), 4)
    2.2281
    """
    from scipy.special import stdtrit  # heavy: only where an interval is wanted

    return float(stdtrit(dof, probability))


def line_slope(x: Sequence[float], y: Sequence[float], *, confidence: float = 0.95) -> Estimate:
    """Least squares slope of `y` on `x`, with a Student-t interval on n-2 degrees of freedom.

    With two points the line is exact and there is no interval.

    Args:
        x: float `[N]`, at least two distinct values.
        y: float `[N]`.
        confidence: of the interval, in (0, 1).

    Raises:
        ProbeError: on lengths that differ, values that are not finite, or fewer than two distinct `x`.

    >>> line_slope([0.0, 1.0, 2.0], [1.0, 3.0, 5.0])
    Estimate(value=2.0, ci_low=2.0, ci_high=2.0, n=3)
    """
    if len(x) != len(y):
        raise ProbeError(f"a slope needs as many x as y, got {len(x)} and {len(y)}")
    if not all(math.isfinite(v) for v in (*x, *y)):
        raise ProbeError("a slope needs finite numbers; leave out rows without a value")
    if len(set(x)) < 2:
        raise ProbeError(f"a slope needs at least two distinct x, got {len(set(x))}; measure more sizes")
    n = len(x)
    mean_x, mean_y = math.fsum(x) / n, math.fsum(y) / n
    sxx = math.fsum((a - mean_x) ** 2 for a in x)
    slope = math.fsum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sxx
    if n == 2:
        return Estimate(slope, None, None, n)
    residual = math.fsum((b - mean_y - slope * (a - mean_x)) ** 2 for a, b in zip(x, y, strict=True))
    half = student_quantile(0.5 + confidence / 2, n - 2) * math.sqrt(residual / (n - 2) / sxx)
    return Estimate(slope, slope - half, slope + half, n)


def growth_exponent(n_states: Sequence[float], bits: Sequence[float]) -> Estimate:
    """Exponent k of `bits ~ n_states ** k`: the slope of log2(bits) on log2(n_states), with a 95% interval.

    About 1 for a table without shared structure, about 0 where the goal is stored apart from the behaviour.

    Args:
        n_states: `[N]`, positive; at least two distinct sizes.
        bits: `[N]`, positive lengths in bits.

    Returns:
        The exponent; its interval is None when there are only two points.

    Raises:
        ProbeError: on lengths that differ, numbers that are not positive, or a single size.

    >>> growth_exponent([16, 64, 256], [8, 32, 128])
    Estimate(value=1.0, ci_low=1.0, ci_high=1.0, n=3)
    """
    for name, values in (("n_states", n_states), ("bits", bits)):
        bad = [v for v in values if not (math.isfinite(v) and v > 0)]
        if bad:
            raise ProbeError(f"growth needs positive {name}, got {bad[0]!r}; leave out rows without a length")
    return line_slope([math.log2(v) for v in n_states], [math.log2(v) for v in bits])
