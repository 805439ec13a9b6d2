"""Which simple rule describes a policy best where training never went: predictions of the rules, and their likelihood.

Each heuristic predicts a distribution over actions at each input, from the agent's behaviour at the inputs that it
knows (those of training). A rule is softened to `(1 - ε) rule + ε / A`, so that one wrong prediction does not forbid
it, and scored by `Σ_a π(a) log2 prediction(a)`, the exact expectation over the agent's own actions: in bits a decision,
0 at best, `-log2 A` for the uniform rule. No rule has anything to fit, so that likelihoods compare as they stand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from retarget.errors import ProbeError
from retarget.rng import stream

#: Names of the rules, in the order in which they are listed.
CONSTANT, ODDS, BORDER, MIXTURE, PRETRAINING, OPTIMAL, UNIFORM = HEURISTICS = (
    "best constant action", "best constant odds", "border", "mixture", "pretraining", "optimal", "uniform",
)  # fmt: skip
#: Bits a decision by which the best rule must beat the others to be told apart: half of what softening costs a rule
#: that is right (0.1 at ε = 0.1 and four actions).
LEAST = 0.05
#: Fewer inputs than this tell nothing: a sign test on five cannot reach 5% on two sides.
FEWEST = 6
_SAME = 1e-9


def predictions(
    known: np.ndarray,
    near: np.ndarray,
    edge: np.ndarray,
    *,
    pretraining: np.ndarray | None = None,
    optimal: np.ndarray | None = None,
    k: int = 3,
) -> dict[str, np.ndarray]:
    """What each heuristic predicts at N inputs, from the behaviour at M known ones.

    `best constant action`: the action of most weight over the known inputs, the optimal constant under 0-1 loss, and
    `best constant odds`: the mean distribution over them, the optimal constant under log loss (Kang, Setlur, Tomlin
    and Levine 2024, "Deep neural networks tend to extrapolate predictably": networks revert to the optimal constant
    solution of their loss). `border`: the behaviour at the known input nearest to the input's nearest point of the
    trained range. `mixture`: that of the `k` nearest known inputs other than the input itself, weighted by 1 over their
    distance. `pretraining`: what the agent did before training. Two references: `optimal`, what is best there, evenly
    over the actions that are (an agent that goes on rightly follows no heuristic, but may look as if it did where the
    best policy is a simple one); and `uniform`. Ties are shared evenly.

    Args:
        known: float64 `[M, A]`, behaviour at the known inputs.
        near: float64 `[N, M]`, distances from the inputs to the known ones.
        edge: float64 `[N, M]`, the same from the inputs' nearest points of the trained range; `near` where there is no
            range.
        pretraining, optimal: float64 `[N, A]`, or None where it is not known.
        k: neighbours to mix.

    Raises:
        ProbeError: when nothing is known, or shapes do not fit.

    >>> known = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> near = np.array([[1.0, 3.0, 2.0]])
    >>> found = predictions(known, near, near, k=2)
    >>> found["border"].tolist(), found["mixture"].round(3).tolist()
    ([[1.0, 0.0]], [[0.667, 0.333]])
    """
    known, near, edge = (np.asarray(x, dtype=np.float64) for x in (known, near, edge))
    if known.ndim != 2 or not len(known) or near.ndim != 2 or near.shape != edge.shape or near.shape[1] != len(known):
        raise ProbeError(
            f"heuristics need behaviour [M, A] and distances [N, M] twice, got {known.shape}, {near.shape} and "
            f"{edge.shape}; give at least one known input"
        )
    n, n_actions = len(near), known.shape[1]
    odds = known.mean(0)
    top = np.abs(odds - odds.max()) <= _SAME
    out = {
        CONSTANT: np.tile(top / top.sum(), (n, 1)),
        ODDS: np.tile(odds / odds.sum(), (n, 1)),
        BORDER: _weighted(edge <= edge.min(1, keepdims=True) + _SAME, known),
        MIXTURE: _weighted(_neighbours(near, k), known),
    }
    for name, rule in ((PRETRAINING, pretraining), (OPTIMAL, optimal)):
        if rule is not None:
            out[name] = np.asarray(rule, dtype=np.float64)
    return out | {UNIFORM: np.full((n, n_actions), 1.0 / n_actions)}


def _weighted(weight: np.ndarray, known: np.ndarray) -> np.ndarray:
    total = weight.sum(1, keepdims=True)
    return np.asarray(weight @ known / total)


def _neighbours(near: np.ndarray, k: int) -> np.ndarray:
    """Weights `[N, M]`: 1 over the distance of the k nearest, and of those as far as the k-th; not of the input itself,
    unless nothing else is known."""
    other = np.where(near > _SAME, near, np.inf)
    alone = ~np.isfinite(other).any(1)
    other[alone] = np.maximum(near[alone], 1.0)
    place = min(max(k, 1), near.shape[1]) - 1
    farthest = np.partition(other, place, axis=1)[:, place : place + 1]
    # a known input may be the only one that lies elsewhere: then there are fewer than k
    return np.where((other <= farthest + _SAME) & np.isfinite(other), 1.0 / other, 0.0)


def soften(prediction: np.ndarray, epsilon: float) -> np.ndarray:
    """`(1 - ε) prediction + ε / A`: float64 `[N, A]`.

    >>> soften(np.array([[1.0, 0.0]]), 0.5).tolist()
    [[0.75, 0.25]]
    """
    return np.asarray((1.0 - epsilon) * prediction + epsilon / prediction.shape[1])


@dataclass(frozen=True, eq=False)
class Contest:
    """How well each heuristic describes a policy, and which does so best.

    Attributes:
        names: of the heuristics; those that predict the same everywhere share a name, joined by ` = `.
        bits: float64 `[H]`, mean log-likelihood a decision, best first.
        low, high: float64 `[H]`, 95% intervals of `bits` over resampled inputs. One input has none: both are NaN.
        margins: float64 `[H]`, `bits` of each less the most of the others: not negative for the best alone, and for
            what ties with it; None where there is one heuristic alone.
        margins_low, margins_high: float64 `[H]`, 95% intervals over the same resamples, in each of which the best of
            the others is sought anew; NaN and None as above.
        rivals: those that the best one does not beat by more than `LEAST`, by the lower ends of the intervals.
        n: inputs, or groups of them: what was resampled.
    """

    names: tuple[str, ...]
    bits: np.ndarray
    low: np.ndarray
    high: np.ndarray
    margins: np.ndarray | None
    margins_low: np.ndarray | None
    margins_high: np.ndarray | None
    rivals: tuple[str, ...]
    n: int

    @property
    def best(self) -> str:
        return self.names[0]

    @property
    def told_apart(self) -> bool:
        """Whether the best one has no rivals, on `FEWEST` inputs at least."""
        return len(self.names) > 1 and self.n >= FEWEST and not self.rivals

    @property
    def verdict(self) -> str:
        """A few words on the best, the runner-up, and whether there is a difference."""
        if len(self.names) < 2:
            return f"{self.best}; every heuristic predicts the same"
        words = f"cannot tell from: {', '.join(self.rivals)}" if self.rivals else "told apart from all"
        if self.n < FEWEST:
            words = "cannot tell: too few inputs"
        return f"best: {self.best}; then: {self.names[1]}; {words}"


def contest(
    behaviour: np.ndarray,
    rules: Mapping[str, np.ndarray],
    *,
    groups: np.ndarray | None = None,
    epsilon: float = 0.1,
    resamples: int = 500,
    seed: int = 0,
) -> Contest:
    """Score heuristics on a policy's behaviour.

    Intervals are percentiles over resampled inputs (Efron 1979), the same resamples for every heuristic, so that
    differences are paired. They say how the result would move with other inputs of the same kind. Inputs that come in
    groups (the steps of an episode) are resampled by the group, as they tell less than as many inputs apart.

    Args:
        behaviour: float64 `[N, A]`.
        rules: by name, float64 `[N, A]` predictions.
        groups: int `[N]`, which group each input is of; each one by itself where there are none.
        epsilon: share of the uniform distribution in each prediction.
        resamples: number of resamples.
        seed: names their stream.

    Raises:
        ProbeError: for no inputs, an epsilon outside (0, 1], or shapes that do not fit.

    >>> policy = np.tile([1.0, 0.0], (8, 1))
    >>> found = contest(policy, {"left": policy, "uniform": np.full((8, 2), 0.5)}, epsilon=0.5)
    >>> found.verdict, found.bits.round(3).tolist()
    ('best: left; then: uniform; told apart from all', [-0.415, -1.0])
    """
    behaviour = np.asarray(behaviour, dtype=np.float64)
    if behaviour.ndim != 2 or not len(behaviour) or not rules:
        raise ProbeError(f"a contest needs behaviour [N, A] at one input or more, got shape {behaviour.shape}")
    if not 0 < epsilon <= 1:
        raise ProbeError(f"epsilon must lie in (0, 1], got {epsilon!r}; without it one surprise rules a heuristic out")
    odd = next((name for name, rule in rules.items() if rule.shape != behaviour.shape), None)
    if odd is not None:
        raise ProbeError(f"heuristic {odd!r} predicts {rules[odd].shape}, the behaviour has shape {behaviour.shape}")
    merged = _merge(rules)
    names = list(merged)
    each = np.stack([(behaviour * np.log2(soften(merged[name], epsilon))).sum(1) for name in names], axis=1)
    bits = each.mean(0)
    drawn, n = _resampled(each, groups, resamples=resamples, seed=seed)
    order = np.argsort(-bits.round(12), kind="stable")
    gaps = drawn[:, order[:1]] - drawn[:, order[1:]]
    beaten = np.percentile(gaps, 2.5, axis=0) > LEAST
    rivals = tuple(names[i] for i, b in zip(order[1:], beaten, strict=True) if not b)
    bits, drawn = np.minimum(bits[order], 0.0), np.minimum(drawn[:, order], 0.0)
    low, high = _ends(bits, drawn, n)
    margins = margins_low = margins_high = None
    if len(order) > 1:
        margins = over_others(bits[None])[0]
        margins_low, margins_high = _ends(margins, over_others(drawn), n)
    found = tuple(names[i] for i in order)
    return Contest(found, bits, low, high, margins, margins_low, margins_high, rivals, n)


def over_others(values: np.ndarray) -> np.ndarray:
    """Each value less the most of the others in its row: float64 `[R, H]`, H at least 2.

    >>> over_others(np.array([[-1.0, -3.0, -2.0]])).tolist()
    [[1.0, -2.0, -1.0]]
    """
    first, second = -np.sort(-values, axis=1)[:, :2].T
    best = np.arange(values.shape[1]) == values.argmax(1)[:, None]
    return np.asarray(values - np.where(best, second[:, None], first[:, None]))


def _ends(values: np.ndarray, drawn: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Ends of 95% intervals `[H]` over resamples `[R, H]`; NaN for one input, of which every resample is itself."""
    if n < 2:
        return np.full(len(values), np.nan), np.full(len(values), np.nan)
    low, high = np.percentile(drawn, (2.5, 97.5), axis=0)
    return np.minimum(low, values), np.maximum(high, values)


def _resampled(each: np.ndarray, groups: np.ndarray | None, *, resamples: int, seed: int) -> tuple[np.ndarray, int]:
    """Means `[R, H]` over resampled inputs, or groups of them, of values `[N, H]`; and how many there are."""
    if groups is None:
        sums, sizes = each, np.ones(len(each))
    else:
        names, member = np.unique(np.asarray(groups), return_inverse=True)
        sums = np.zeros((len(names), each.shape[1]))
        np.add.at(sums, member, each)
        sizes = np.bincount(member).astype(np.float64)
    # in an order of their own, so that the names of the inputs do not enter through the resamples
    rows = np.lexsort((sizes, *sums.round(12).T[::-1]))
    sums, sizes, n = sums[rows], sizes[rows], len(sums)
    counts = stream(seed, "contest", n).multinomial(n, np.full(n, 1.0 / n), size=resamples)
    return (counts @ sums) / (counts @ sizes)[:, None], n


def _merge(rules: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    out: dict[str, np.ndarray] = {}
    for name, rule in rules.items():
        twin = next((n for n, r in out.items() if np.abs(r - rule).max() <= _SAME), None)
        if twin is None:
            out[name] = rule
        else:
            out = {f"{n} = {name}" if n == twin else n: r for n, r in out.items()}
    return out
