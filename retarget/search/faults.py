"""A compiled look at what leaves are judged by: it is done once a simulation, so that it has to be quick."""

from __future__ import annotations

import numpy as np
from numba import njit

#: What was found wrong: nothing, a number that is not finite, or a row that is no distribution.
NOTHING, FINITE, DISTRIBUTION = 0, 1, 2
#: How far the sum of a row may be from 1.
TOLERANCE = 1e-6


@njit(cache=True)
def fault(value: np.ndarray, prior: np.ndarray) -> tuple[int, int]:
    """The first thing that is wrong with float64 values `[B]` and priors `[B, A]`: (what, in which row).

    Numbers that are not finite come first, in whatever row they are.

    >>> fault(np.zeros(2), np.array([[0.5, 0.5], [0.5, 0.6]]))
    (2, 1)
    >>> fault(np.array([0.0, np.inf]), np.array([[0.5, 0.6], [0.5, 0.5]]))
    (1, 1)
    """
    wrong = -1
    for b in range(value.size):
        total, least = 0.0, 0.0
        for a in range(prior.shape[1]):
            total += prior[b, a]
            least = min(least, prior[b, a])
        if not (np.isfinite(value[b]) and np.isfinite(total)):
            return FINITE, b
        if wrong < 0 and (least < 0.0 or abs(total - 1.0) > TOLERANCE):
            wrong = b
    return (NOTHING, -1) if wrong < 0 else (DISTRIBUTION, wrong)
