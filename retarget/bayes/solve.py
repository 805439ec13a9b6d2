"""The best average reward of a domain, exactly: relative value iteration over the beliefs that can be reached."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retarget.bayes.domains import Domain
from retarget.errors import WorldError

#: Beliefs that agree to so many decimals are one.
_DECIMALS = 10


@dataclass(frozen=True, eq=False)
class Solution:
    """The best that can be done in a domain by an agent that knows its rules and sees only percepts.

    Attributes:
        low, high: bounds on the best average reward a cycle (they are proven, up to the merging of beliefs).
        beliefs: float64 `[B, S]`, row 0 the start.
        after: int64 `[B, A, P]`: the belief after a percept, -1 where it cannot come.
        gap: float64 `[B, A]`, not negative: what an action gives away against the best one, in reward.
    """

    low: float
    high: float
    beliefs: np.ndarray
    after: np.ndarray
    gap: np.ndarray

    @property
    def average(self) -> float:
        return 0.5 * (self.low + self.high)

    def given_away(self, actions: np.ndarray, percepts: np.ndarray) -> np.ndarray:
        """What each action of a history from the start gave away: float64 `[T]`.

        Its mean estimates how far a policy's average reward lies below the best, with far less noise than the mean of
        the rewards: `r_t = average - gap_t + h(b_t) - h(b_t+1) + noise`, and neither noise nor h counts in the mean.
        """
        out, b = np.empty(len(actions)), 0
        for t, (a, p) in enumerate(zip(actions.tolist(), percepts.tolist(), strict=True)):
            out[t] = self.gap[b, a]
            b = int(self.after[b, a, p])
            if b < 0:
                raise WorldError(f"percept {p} cannot come after action {a} in cycle {t}: another domain's history?")
        return out


def _successors(domain: Domain, belief: np.ndarray) -> list[list[tuple[int, float, np.ndarray]]]:
    """For each action: percepts that can come, with probability and next belief."""
    percept = (domain.observation << domain.reward_bits) | domain.symbol
    out = []
    for a in range(domain.n_actions):
        weight = belief[:, None] * domain.prob[:, a]
        rows = []
        for p in np.unique(percept[:, a][weight > 0]):
            joint = np.bincount(
                domain.next_state[:, a].reshape(-1),
                np.where(percept[:, a] == p, weight, 0.0).reshape(-1),
                minlength=domain.n_states,
            )
            total = float(joint.sum())
            rows.append((int(p), total, joint / total))
        out.append(rows)
    return out


def _reachable(domain: Domain, limit: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Beliefs `[B, S]`, transition probabilities and next beliefs `[B, A, P]`."""
    percepts = 1 << (domain.observation_bits + domain.reward_bits)
    index = {tuple(np.round(domain.start, _DECIMALS)): 0}
    beliefs, prob, after = [domain.start], [], []
    at = 0
    while at < len(beliefs):
        p, t = np.zeros((domain.n_actions, percepts)), np.full((domain.n_actions, percepts), -1, np.int64)
        for a, rows in enumerate(_successors(domain, beliefs[at])):
            for percept, weight, belief in rows:
                key = tuple(np.round(belief, _DECIMALS) + 0.0)
                if key not in index:
                    index[key] = len(beliefs)
                    beliefs.append(belief)
                p[a, percept], t[a, percept] = weight, index[key]
        prob.append(p)
        after.append(t)
        at += 1
        if len(beliefs) > limit:
            raise WorldError(f"domain {domain.name!r} has more than {limit} beliefs; raise limit, or estimate it")
    return np.array(beliefs), np.array(prob), np.array(after)


def solve(
    domain: Domain, rewards: np.ndarray | None = None, *, tolerance: float = 1e-9, limit: int = 20_000
) -> Solution:
    """The best average reward, by relative value iteration on the belief process (source: Puterman 1994, section 8.5).

    Args:
        domain: where.
        rewards: float64 `[2**reward_bits]`, what each reward symbol is worth; the domain's own without.
        tolerance: how near the bounds must come.
        limit: most beliefs.

    Raises:
        WorldError: when there are more beliefs than that.

    >>> from retarget.bayes.domains import biased_rps
    >>> round(solve(biased_rps()).average, 6)
    0.25
    """
    worth = domain.rewards if rewards is None else np.asarray(rewards, np.float64)
    if worth.shape != domain.rewards.shape or not np.isfinite(worth).all():
        raise WorldError(f"rewards of {domain.name!r} must be finite numbers of shape {domain.rewards.shape}")
    beliefs, prob, after = _reachable(domain, limit)
    used = np.flatnonzero((prob > 0).any((0, 1)))
    p, t = prob[:, :, used], np.maximum(after[:, :, used], 0)
    expected = (p * worth[used & ((1 << domain.reward_bits) - 1)]).sum(-1)
    value = np.zeros(len(beliefs))
    for _ in range(1_000_000):
        q = expected + (p * value[t]).sum(-1)
        step = q.max(1) - value
        if step.max() - step.min() <= tolerance:
            gap = q.max(1, keepdims=True) - q
            return Solution(float(step.min()), float(step.max()), beliefs, after, gap)
        # half of the time nothing happens: periodic processes come to rest too, at the same average
        value = value + 0.5 * step
        value -= value[0]
    raise WorldError(f"value iteration in {domain.name!r} did not settle; is every belief reachable again?")
