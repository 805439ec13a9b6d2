"""Directions in an agent's numbers, from how its scores move with them: plain and least-squares, and how they agree.

Scores are centred over actions, so that a shift of all scores of a state counts for nothing. With M the centred
Jacobian at a set X of states and t what the scores are to gain there, the plain direction is `M^T t`, the gradient of
the sum of `scores · t`. The least-squares direction solves `M d = t` with least norm, damped (Levenberg 1944): it is
`M^T (M M^T + λ)^-1 t`, or the same `(M^T M + λ)^-1 M^T t`. λ is a share of the mean of the diagonal of `M M^T`, so that
neither the scale of the scores nor that of the target matters to an angle.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from retarget.errors import AgentError

#: A direction whose squared length is below this share of what it could be is rounding, and none.
NOTHING = 1e-20


def centred(scores: np.ndarray) -> np.ndarray:
    """Scores `[B, A]` or a Jacobian `[B, A, P]` less the mean over actions.

    >>> centred(np.array([[1.0, 3.0]])).tolist()
    [[-1.0, 1.0]]
    """
    return np.asarray(scores - scores.mean(axis=1, keepdims=True))


def live(jacobian: np.ndarray) -> np.ndarray:
    """A Jacobian `[B, A, P]` without the numbers that move no score: `[B, A, L]`."""
    # always of one layout in memory: sums in another order would tell dead numbers apart by their last bit
    return np.ascontiguousarray(jacobian[:, :, jacobian.any(axis=(0, 1))])


def features(jacobian: np.ndarray) -> np.ndarray:
    """Coordinates in which directions are compared: `[B, A, F]` with the inner products of the centred Jacobian.

    Where there are more numbers than scores, F is at most the number of scores: rows of the eigenvectors of `M M^T`,
    scaled. Lengths and angles of all directions that scores can name are kept. Otherwise it is the centred Jacobian
    itself, without the numbers that move nothing.

    >>> wide = np.array([[[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]])
    >>> features(wide).shape, bool(np.isclose((features(wide)[0, 0] ** 2).sum(), 14 / 4))
    ((1, 2, 2), True)
    """
    b, a, _ = jacobian.shape
    narrow = centred(live(jacobian))
    if narrow.shape[2] <= b * a:
        return narrow
    rows = narrow.reshape(b * a, narrow.shape[2])
    value, vector = np.linalg.eigh(rows @ rows.T)
    return np.asarray((vector * np.sqrt(np.maximum(value, 0.0))).reshape(b, a, -1))


def plain(rows: np.ndarray, target: np.ndarray) -> np.ndarray:
    """`M^T t`: float `[F]` of rows `[N, F]` and targets `[N]`; all zero where nothing but rounding is left."""
    found = rows.T @ target
    most = float((rows * rows).sum()) * float(target @ target)
    return np.zeros_like(found) if float(found @ found) <= NOTHING * most else found


def least_squares(rows: np.ndarray, target: np.ndarray, *, damping: float) -> np.ndarray:
    """The direction of least norm that moves scores as the target asks, damped: float `[F]`.

    Args:
        rows: float `[N, F]`, the centred Jacobian at some states.
        target: float `[N]`, the gain that is asked for.
        damping: λ as a share of the mean of the diagonal of `M M^T`; above 0.

    Returns:
        The direction; all zero where no number moves the scores toward the target.

    Raises:
        AgentError: for a damping that is not above 0.

    >>> least_squares(np.array([[1.0, 1.0]]), np.array([2.0]), damping=1e-9).round(6).tolist()
    [1.0, 1.0]
    """
    if not damping > 0:
        raise AgentError(f"damping must be above 0, got {damping!r}; e.g. 1e-6")
    n, f = rows.shape
    gradient = plain(rows, target)
    if not gradient.any():
        return gradient
    shift = damping * float((rows * rows).sum()) / n
    if n <= f:
        return np.asarray(rows.T @ np.linalg.solve(rows @ rows.T + shift * np.eye(n), target))
    return np.asarray(np.linalg.solve(rows.T @ rows + shift * np.eye(f), gradient))


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosine of each direction of `[N, F]` with each of `[M, F]`: float `[N, M]`, NaN where one of them is zero.

    >>> cosines(np.eye(2), np.array([[1.0, 1.0], [0.0, 0.0]])).round(3).tolist()
    [[0.707, nan], [0.707, nan]]
    """
    lengths = np.sqrt((first * first).sum(1))[:, None] * np.sqrt((second * second).sum(1))[None]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(lengths > 0, np.clip(first @ second.T / lengths, -1.0, 1.0), np.nan))


def effective_rank(directions: np.ndarray) -> float:
    """`exp` of the entropy of the singular values, as shares of their sum (Roy and Vetterli 2007): in [1, N].

    Each direction is taken at length one; zero ones are left out. 0 where all of them are.

    >>> round(effective_rank(np.eye(3)), 9), round(effective_rank(np.ones((3, 2))), 9)
    (3.0, 1.0)
    """
    unit = _unit(directions)
    if not len(unit):
        return 0.0
    size = np.linalg.svd(unit, compute_uv=False)
    share = size / size.sum()
    share = share[share > 0]
    return float(np.clip(np.exp(-(share * np.log(share)).sum()), 1.0, len(unit)))


def share_in_span(direction: np.ndarray, directions: np.ndarray) -> float:
    """Share of a direction's squared length that lies in the span of `[N, F]` others: in [0, 1], NaN for zero.

    >>> share_in_span(np.array([1.0, 1.0]), np.array([[2.0, 0.0]]))
    0.5
    """
    length = float(direction @ direction)
    if length == 0:
        return float("nan")
    unit = _unit(directions)
    # nothing in common is exactly nothing: a decomposition would leave a hair
    if not (unit @ direction).any():
        return 0.0
    _, size, basis = np.linalg.svd(unit, full_matrices=False)
    inside = basis[size > 1e-10 * size[0]] @ direction
    return float(min(inside @ inside / length, 1.0))


def _unit(directions: np.ndarray) -> np.ndarray:
    length = np.sqrt((directions * directions).sum(1, keepdims=True))
    return np.asarray((directions / np.where(length > 0, length, 1.0))[length[:, 0] > 0])


def single_reward_values(
    next_state: np.ndarray,
    prob: np.ndarray,
    states: np.ndarray,
    *,
    gamma: float,
    depth: int | None = None,
    rewarded: Sequence[int] | None = None,
) -> np.ndarray:
    """Action values `[B, A, R]` at some states, for a reward of 1 on entering one state alone, which ends there.

    Args:
        next_state: int `[S, A, K]`; a successor S is unknown and worth nothing.
        prob: float `[S, A, K]`.
        states: int `[B]` where the values are wanted.
        gamma: discount in (0, 1).
        depth: number of Bellman backups, None for the fixed point.
        rewarded: the R states; all S of them by default.

    >>> chain = np.array([[[1]], [[2]], [[2]]])
    >>> single_reward_values(chain, np.ones((3, 1, 1)), np.array([0]), gamma=0.5).tolist()
    [[[0.0, 1.0, 0.5]]]
    """
    from retarget.kernels import reach_backups

    n, a, _ = next_state.shape
    wanted = range(n) if rewarded is None else rewarded
    # from V = 0 backups only rise, and come to rest exactly
    limit, tolerance = (depth, -1.0) if depth is not None else (100_000, 0.0)
    out = np.empty((len(states), a, len(wanted)))
    reward = np.zeros(n)
    for column, j in enumerate(wanted):
        reward[j] = 1.0
        out[:, :, column] = reach_backups(next_state, prob, reward, gamma, limit, tolerance)[0][states]
        reward[j] = 0.0
    return out
