"""Maximum-entropy goal-directedness: how much better a utility predicts a policy than chance does.

MacDermott, Fox, Belardinelli, Everitt (2024), "Measuring Goal-Directedness", arXiv 2412.04758: the maximum-entropy
policies toward a utility U are the soft-optimal ones, `π_β`, one for each rationality β from minus to plus infinity
(Ziebart 2010); how far a policy π is directed at U is

    MEG_U(π) = sup over β of E_π[ Σ_t γ^t (log π_β(a_t | s_t) - log 1/|A|) ]        in nats.

Here episodes are discounted, as in soft value iteration (Bloem and Bambos 2014), and end in stated states, where no
decision is left. U is a reward r on arriving in a state. With `v` the soft value relative to uniform choice,

    q(s, a) = Σ p(s' | s, a) (β r(s') + γ v(s')),    v(s) = log 1/|A| Σ_a exp q(s, a),    v = 0 at the end,

`π_β(a|s) = exp(q(s, a) - v(s)) / |A|`. Choices at the end would be uniform under every π_β and would count nothing, so
that this is the paper's sum with a fixed number of decisions. It telescopes to `β J(π) - E v(s_0)`, J the expected
utility: concave in β, with slope `J(π) - J(π_β)`, and concave in the reward of every state together. Both suprema can
therefore be climbed to from anywhere: no restarts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from retarget.errors import ProbeError
from retarget.exact import check_policy
from retarget.world import FiniteModel

#: Above this rationality, in units of the largest reward, differences of soft values drown in rounding.
MOST_BETA = 2.0**24
_ROUNDS = 200
#: Weight of half the squared rewards, nats; and how close to the top Newton's steps are taken whole.
_RIDGE, _CLOSE = 1e-9, 1e-6


@dataclass(frozen=True, eq=False)
class Episodes:
    """Where a policy is explained: dynamics, where episodes begin and end, and the discount.

    Attributes:
        model: the dynamics.
        ends: bool `[S]`: states in which an episode is over.
        start: float64 `[S]`: distribution of the first state.
        gamma: discount in [0, 1): what the decision at time t weighs, γ^t.

    Raises:
        ProbeError: when the shapes do not fit, or `start` is no distribution.
    """

    model: FiniteModel
    ends: np.ndarray
    start: np.ndarray
    gamma: float

    def __post_init__(self) -> None:
        n = self.model.n_states
        ends, start = np.array(self.ends, dtype=np.bool_), np.array(self.start, dtype=np.float64)
        if ends.shape != (n,) or start.shape != (n,):
            raise ProbeError(f"ends and start need one entry for each of {n} states, got {ends.shape}, {start.shape}")
        if not (start >= 0).all() or abs(start.sum() - 1) > 1e-9:
            raise ProbeError(f"start must be a distribution over states, it sums to {start.sum():.12g}")
        if not 0 <= self.gamma < 1:
            raise ProbeError(f"gamma must lie in [0, 1), got {self.gamma!r}")
        for name, array in (("ends", ends), ("start", start)):
            array.setflags(write=False)
            object.__setattr__(self, name, array)

    @cached_property
    def chances(self) -> np.ndarray:
        """Float64 `[S, A, S]` transition probabilities; zero from states where the episode is over."""
        out = self.model.dense()
        out[self.ends] = 0.0
        return out

    def ending_at(self, ends: np.ndarray) -> Episodes:
        """The same with more ends: bool `[S]`."""
        return replace(self, ends=self.ends | ends)

    def step(self, probs: np.ndarray) -> np.ndarray:
        """Float64 `[S, S]` chances of a policy's next state."""
        return np.asarray(np.einsum("sa,sat->st", probs, self.chances))

    def backward(self, probs: np.ndarray, gain: np.ndarray) -> np.ndarray:
        """`Σ_t γ^t gain` from each state: solves for float64 `[S]` or `[S, N]`."""
        return np.asarray(np.linalg.solve(np.eye(len(self.ends)) - self.gamma * self.step(probs), gain))

    def visits(self, probs: np.ndarray) -> np.ndarray:
        """Expected discounted decisions in each state: float64 `[S]`, exactly zero where none is ever taken."""
        matrix = np.eye(len(self.ends)) - self.gamma * self.step(probs)
        return np.where(self.reached(probs), np.linalg.solve(matrix.T, self.start), 0.0)

    def reached(self, probs: np.ndarray) -> np.ndarray:
        """Bool `[S]`: states in which a policy takes decisions, from the graph alone."""
        edges, found = self.step(probs) > 0, self.start > 0
        while not np.array_equal(found, more := found | edges[found].any(0)):
            found = more
        return np.asarray(found & ~self.ends)


@dataclass(frozen=True, eq=False)
class Soft:
    """A maximum-entropy policy: soft values float64 `[S]`, relative to uniform choice; log-probabilities `[S, A]`."""

    value: np.ndarray
    log_probs: np.ndarray

    @property
    def probs(self) -> np.ndarray:
        return np.asarray(np.exp(self.log_probs))


def soft_policy(
    episodes: Episodes, reward: np.ndarray, *, guess: np.ndarray | None = None, allowed: np.ndarray | None = None
) -> Soft:
    """The maximum-entropy policy toward a reward (rationality included): soft policy iteration, to rounding.

    Args:
        episodes: where.
        reward: float64 `[S]`, on arriving in each state.
        guess: float64 `[S]` soft values to begin from.
        allowed: bool `[S, A]`: actions to choose among; None for all. At least one in each state.

    >>> two = Episodes(FiniteModel.deterministic([[1, 2], [1, 1], [2, 2]]), np.array([0, 1, 1]), np.array([1, 0, 0]), 0)
    >>> soft_policy(two, np.log([1.0, 3.0, 1.0])).probs[0].round(6).tolist()
    [0.75, 0.25]
    """
    n_actions = episodes.model.n_actions
    gain = episodes.chances @ reward
    value = np.zeros(len(reward)) if guess is None else guess
    best = np.inf
    for _ in range(_ROUNDS):
        now = _choose(gain + episodes.gamma * (episodes.chances @ value), allowed)
        probs = now.probs
        # evaluating the soft-greedy policy is Newton's step on the soft Bellman equation
        with np.errstate(invalid="ignore"):
            surprise = np.where(probs > 0, probs * (now.log_probs + math.log(n_actions)), 0.0)
        value = episodes.backward(probs, np.where(episodes.ends, 0.0, (probs * gain - surprise).sum(1)))
        gap = float(np.abs(now.value - value).max())
        # past quadratic convergence rounding alone is left, which no longer falls
        if gap <= 1e-14 * max(1.0, float(np.abs(value).max())) or (gap < 1e-9 and gap >= best):
            break
        best = gap
    return _choose(gain + episodes.gamma * (episodes.chances @ value), allowed)


def _choose(q: np.ndarray, allowed: np.ndarray | None) -> Soft:
    masked = q if allowed is None else np.where(allowed, q, -np.inf)
    top = masked.max(1, keepdims=True)
    log_sum = top + np.log(np.exp(masked - top).sum(1, keepdims=True))
    return Soft(log_sum[:, 0] - math.log(q.shape[1]), masked - log_sum)


def best_choices(episodes: Episodes, reward: np.ndarray) -> np.ndarray:
    """Which actions are optimal for a reward `[S]` on arrival: bool `[S, A]` (Howard 1960).

    Ties are those within 1e-9 of the value and 1e-12 of the largest reward.
    """
    scale = float(np.abs(reward).max()) or 1.0
    gain = episodes.chances @ reward
    chosen = np.zeros(len(reward), dtype=np.int64)
    rows = np.arange(len(reward))
    for _ in range(_ROUNDS):
        probs = np.eye(gain.shape[1])[chosen]
        value = episodes.backward(probs, gain[rows, chosen])
        q = gain + episodes.gamma * (episodes.chances @ value)
        better = q.max(1) > q[rows, chosen] + 1e-12 * scale
        if not better.any():
            break
        chosen = np.where(better, q.argmax(1), chosen)
    top = q.max(1, keepdims=True)
    return np.asarray(q >= top - 1e-9 * np.abs(top) - 1e-12 * scale)


@dataclass(frozen=True)
class Directedness:
    """How far a policy is directed at a utility.

    Attributes:
        nats: MEG, at least 0.
        beta: the rationality that explains it best, per unit of reward; minus or plus infinity in the limit.
        decisions: expected discounted number of decisions of an episode; `nats <= decisions * log |A|`.
    """

    nats: float
    beta: float
    decisions: float

    @property
    def per_decision(self) -> float:
        """Nats a decision; 0 where there is none."""
        return self.nats / self.decisions if self.decisions > 0 else 0.0


def goal_directedness(episodes: Episodes, probs: np.ndarray, reward: np.ndarray) -> Directedness:
    """MEG toward a known utility (MacDermott et al. 2024, definition 3 and their algorithm for MDPs).

    Exact: the supremum over β is the root of `J(π) = J(π_β)`; where π takes best (or worst) actions alone it lies at
    infinity, and the limit is the maximum-entropy policy among the optimal ones, which is uniform over the optimal
    actions of a last decision, and weighs an earlier one by how many optimal ways to go on it leaves open.

    Args:
        episodes: where.
        probs: float64 `[S, A]`.
        reward: float64 `[S]`, on arriving in each state.

    >>> two = Episodes(FiniteModel.deterministic([[1, 2], [1, 1], [2, 2]]), np.array([0, 1, 1]), np.array([1, 0, 0]), 0)
    >>> sure = goal_directedness(two, np.array([[1.0, 0.0], [0.5, 0.5], [0.5, 0.5]]), np.array([0.0, 1.0, 0.0]))
    >>> round(sure.nats, 6), sure.beta
    (0.693147, inf)
    """
    probs = check_policy(probs, episodes.model)
    visits = episodes.visits(probs)
    decisions = float(visits.sum())
    scale = float(np.abs(reward).max()) or 1.0
    unit = reward / scale
    utility = float(visits @ (probs * (episodes.chances @ unit)).sum(1))
    slope, _, soft = _slope(episodes, unit, 0.0, utility, None)
    if abs(slope) <= 1e-12 * max(1.0, decisions):
        return Directedness(0.0, 0.0, decisions)
    sign = math.copysign(1.0, slope)
    allowed = best_choices(episodes, sign * unit)
    if not ((probs > 0) & ~allowed)[episodes.reached(probs)].any():
        limit = soft_policy(episodes, np.zeros(len(unit)), allowed=allowed)
        return Directedness(_nats(visits, probs, limit.log_probs), sign * math.inf, decisions)
    beta, soft = _climb(episodes, unit, utility, sign)
    return Directedness(_nats(visits, probs, soft.log_probs), beta / scale, decisions)


def _nats(visits: np.ndarray, probs: np.ndarray, log_probs: np.ndarray) -> float:
    """`E Σ_t γ^t (log π_β + log |A|)`; β = 0 gives 0, so that a hair below it is rounding."""
    taken = (probs > 0) & (visits > 0)[:, None]
    each = np.where(taken, probs, 0.0) * (np.where(taken, log_probs, 0.0) + math.log(probs.shape[1]))
    return max(0.0, float(visits @ each.sum(1)))


def _slope(
    episodes: Episodes, unit: np.ndarray, beta: float, utility: float, guess: np.ndarray | None
) -> tuple[float, float, Soft]:
    """First and second derivative in β of what is to be maximised, and the soft policy there."""
    soft = soft_policy(episodes, beta * unit, guess=guess)
    gain = episodes.chances @ unit
    worth = episodes.backward(soft.probs, (soft.probs * gain).sum(1))
    q = gain + episodes.gamma * (episodes.chances @ worth)
    mean = (soft.probs * q).sum(1, keepdims=True)
    variance = (soft.probs * (q - mean) ** 2).sum(1)
    return utility - float(episodes.start @ worth), -float(episodes.visits(soft.probs) @ variance), soft


def _climb(episodes: Episodes, unit: np.ndarray, utility: float, sign: float) -> tuple[float, Soft]:
    """The root of the slope on one side of zero: Newton's steps, kept between what is too low and too high."""
    low, high, x = 0.0, math.inf, 1.0
    guess = None
    for _ in range(_ROUNDS):
        slope, bend, soft = _slope(episodes, unit, sign * x, utility, guess)
        guess = soft.value
        if sign * slope > 0:
            low = x
        else:
            high = x
        new = x - sign * slope / bend if bend < 0 else math.inf
        if not low < new < min(high, 8.0 * x + 1.0):
            new = 4.0 * x if math.isinf(high) else (low + high) / 2
        if abs(new - x) <= 1e-13 * x or low >= MOST_BETA:
            break
        x = min(new, MOST_BETA)
    return sign * x, soft


@dataclass(frozen=True, eq=False)
class Unknown:
    """How far a policy is directed at some utility of states.

    Attributes:
        nats: what the best reward found gives: a lower bound on the supremum.
        bound: an upper bound on the supremum, by Gibbs' inequality.
        reward: float64 `[S]`, on arriving in each state, rationality included.
        steps: Newton steps taken.
        settled: whether it came to rest before the steps were used up.
    """

    nats: float
    bound: float
    reward: np.ndarray
    steps: int
    settled: bool


def directedness_at_states(episodes: Episodes, probs: np.ndarray, *, steps: int = 100) -> Unknown:
    """MEG toward the best of all utilities that are sums of a reward for each state (their unknown utility).

    `F(θ) = θ · n(π) - E v_θ(s_0)`, n the discounted arrivals of π, is concave in the rewards θ; its gradient is
    `n(π) - n(π_θ)`. Newton's steps climb `F(θ) - λ|θ|²/2` from 0, with λ so small that it costs next to nothing, but
    keeps rewards finite where the supremum lies at infinity (a policy without chance). F there is a lower bound on the
    supremum. Upper bound: no soft-optimal policy tells apart two actions with the same successors, so that none
    predicts better than π, averaged over them.

    Args:
        episodes: where.
        probs: float64 `[S, A]`.
        steps: most steps.
    """
    probs = check_policy(probs, episodes.model)
    visits = episodes.visits(probs)
    arrivals = episodes.step(probs).T @ visits
    theta = np.zeros(len(visits))
    soft = soft_policy(episodes, theta)
    taken, settled, before = 0, False, math.inf
    while taken < steps and not settled:
        taken += 1
        gradient, hessian = _bends(episodes, soft, arrivals)
        gradient -= _RIDGE * theta
        step = np.linalg.solve(hessian + _RIDGE * np.eye(len(theta)), gradient)
        promised = float(gradient @ step)
        # close to the top a climb drowns in rounding, while Newton's step itself still halves what is left
        settled = promised < _CLOSE and (promised >= before / 4 or promised < 1e-24)
        share = 1.0 if promised < _CLOSE else _share(episodes, theta, step, soft, arrivals, promised)
        theta, before = theta + share * step, promised
        soft = soft_policy(episodes, theta, guess=soft.value)
    found = _nats(visits, probs, soft.log_probs)
    return Unknown(found, max(found, _ceiling(episodes, probs, visits)), theta, taken, settled)


def _share(
    episodes: Episodes, theta: np.ndarray, step: np.ndarray, soft: Soft, arrivals: np.ndarray, promised: float
) -> float:
    """How much of a step to take: halved until it climbs a quarter of what it promises."""
    for share in (0.5**i for i in range(12)):
        tried = soft_policy(episodes, theta + share * step, guess=soft.value)
        risen = share * float(step @ arrivals) - float(episodes.start @ (tried.value - soft.value))
        risen -= _RIDGE * share * float(step @ (theta + share * step / 2))
        if risen >= 0.25 * share * promised:
            return share
    return 0.0


def _bends(episodes: Episodes, soft: Soft, arrivals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gradient `[S]` and negative Hessian `[S, S]` in the rewards."""
    probs = soft.probs
    visits, step = episodes.visits(probs), episodes.step(probs)
    s, a, _ = episodes.chances.shape
    slope = episodes.backward(probs, step)
    flat = episodes.chances.reshape(s * a, s)
    q = flat + episodes.gamma * (flat @ slope)
    mean = (probs[:, :, None] * q.reshape(s, a, s)).sum(1)
    weight = (visits[:, None] * probs).reshape(-1, 1)
    return arrivals - step.T @ visits, q.T @ (weight * q) - mean.T @ (visits[:, None] * mean)


def _ceiling(episodes: Episodes, probs: np.ndarray, visits: np.ndarray) -> float:
    same = (np.abs(episodes.chances[:, :, None] - episodes.chances[:, None]) < 1e-12).all(-1).astype(np.float64)
    pooled = np.einsum("sab,sb->sa", same, probs) / same.sum(-1)
    with np.errstate(divide="ignore"):
        return _nats(visits, pooled, np.log(pooled))
