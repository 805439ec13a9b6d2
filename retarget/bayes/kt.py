"""The Krichevsky-Trofimov estimator: what a sequence of bits is worth when nothing is known of its bias.

It is the mixture of all coins under the density `1 / (π sqrt(θ (1 - θ)))` (source: Krichevsky and Trofimov 1981).
"""

from __future__ import annotations

import math

from retarget.errors import RetargetError

#: log Γ(1/2)
_LOG_GAMMA_HALF = 0.5 * math.log(math.pi)


def kt_next(zeros: float, ones: float) -> float:
    """Probability that the next bit is 1, after so many zeros and ones: `(b + 1/2) / (a + b + 1)`.

    >>> kt_next(0, 0), kt_next(1, 0)
    (0.5, 0.25)
    """
    return (ones + 0.5) / (zeros + ones + 1.0)


def kt_log_block(zeros: float, ones: float) -> float:
    """Natural log of the probability of any one sequence with so many zeros and ones, in closed form.

    `KT(a, b) = B(a + 1/2, b + 1/2) / B(1/2, 1/2)`, with B the Beta function.

    Raises:
        RetargetError: on negative counts.

    >>> round(math.exp(kt_log_block(1, 1)), 12)
    0.125
    """
    if zeros < 0 or ones < 0:
        raise RetargetError(f"counts of bits must not be negative, got {zeros!r} zeros and {ones!r} ones")
    top = math.lgamma(zeros + 0.5) + math.lgamma(ones + 0.5)
    return top - 2.0 * _LOG_GAMMA_HALF - math.lgamma(zeros + ones + 1.0)
