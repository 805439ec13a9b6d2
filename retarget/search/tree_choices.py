"""Compiled tree search, what a node chooses: the arrays of a tree, and the rules of PUCT and Gumbel over them.

The definition is `retarget.search.reference`; every number here comes of the same operations in the same order. Walks
are in `retarget.search.tree_kernels`. A compiled file is kept until it changes itself: touch that one after a change
here.
"""

# mypy: disable-error-code="untyped-decorator, no-any-return, return-value, arg-type, assignment"
from __future__ import annotations

import math
from typing import Any, NamedTuple

import numba
import numpy as np

ROOT, ZERO = np.uint32(0), np.uint32(0)

# Without reference counts (nothing is allocated here), a named tuple of arrays costs nothing; with them, each reading
# of an array takes two atomic operations, and the whole is thirty times slower.
_OPTIONS: dict[str, Any] = {"cache": True, "error_model": "numpy", "_nrt": False}
whole = numba.njit(**_OPTIONS)
part = numba.njit(**_OPTIONS, forceinline=True)


class Rules(NamedTuple):
    """The settings that the kernels read, and the sizes of the model."""

    gumbel: bool
    by_max: bool
    tables: bool  # leaves are judged by tables of states, not by calls
    quick: bool  # scaled values are small enough for `_guess`
    n_states: int
    n_actions: int
    n_successors: int
    simulations: int
    rollout_steps: int
    gamma: float
    exploration: float
    visit_scale: float
    value_scale: float
    gumbel_scale: float
    schedule: np.ndarray  # float64 [simulations]: visits that an action of the root must have to be looked at (gumbel)


class Facts(NamedTuple):
    """The model. A walk that enters a state with `ends` stops there, worth `worth`; state S stands for "not known"."""

    next_state: np.ndarray  # uint32 [S, A, K]
    prob: np.ndarray  # float64 [S, A, K]
    ends: np.ndarray  # bool [S + 1]
    worth: np.ndarray  # float64 [S + 1]
    value: np.ndarray  # float64 [S]


class Priors(NamedTuple):
    """What is thought of the actions: rows of states `[1, S, A]`, or of the nodes of each tree `[T, N, A]`."""

    pull: np.ndarray  # float64: c P for puct, P + 1e-12 for gumbel
    logit: np.ndarray  # float64, for gumbel: log(P + 1e-12)
    base: np.ndarray  # float64, for gumbel: softmax of the logits
    first: np.ndarray  # uint32 [1, S] or [T, N]: what a new node chooses


class Trees(NamedTuple):
    """T trees side by side, each with room for N nodes: the root, and one for each simulation."""

    more: np.ndarray  # float64 [T, N, A]: 1 + walks through an edge
    sums: np.ndarray  # float64 [T, N, A]: sum of an edge's returns; its value, where the backup is `max`
    shown: np.ndarray  # float64 [T, N, A]: value of an edge, scaled for puct; 0 where it was not tried
    child: np.ndarray  # uint32 [T, N, A * K]: links
    visits: np.ndarray  # float64 [T, N]: walks that came to a node, the one that made it included
    raw: np.ndarray  # float64 [T, N]: what it was worth when made
    best: np.ndarray  # float64 [T, N]: what it is worth now, where the backup is `max`
    pick: np.ndarray  # uint32 [T, N]: the action that it will choose next
    link: np.ndarray  # uint32 [T, N]: where that leads, for one successor
    state: np.ndarray  # uint32 [T, N]
    stamp: np.ndarray  # uint32 [T, N]: puct: number of the range that `shown` is scaled by; gumbel: was a return not 0
    path: np.ndarray  # uint32 [T, N]: nodes of the walk under way
    range: np.ndarray  # float64 [T, 3]: least and greatest value of an edge, and greatest less least
    count: np.ndarray  # int64 [T, 4]: nodes, steps, number of the range, length of the walk under way
    leaf: np.ndarray  # uint32 [T, 3]: link that the walk came to, its place among the parent's, the state there
    noise: np.ndarray  # float64 [T, A]: of the root, its logits added
    key: np.ndarray  # uint64 [T]: names the random numbers
    scores: np.ndarray  # float64 [2, A]: scratch


class Answers(NamedTuple):
    """As `retarget.search.settings.Found`."""

    visits: np.ndarray
    q: np.ndarray
    value: np.ndarray
    action: np.ndarray
    policy: np.ndarray
    steps: np.ndarray
    nodes: np.ndarray


# ------------------------------------------------------------------------------------------------ choosing


@part
def largest(scores: np.ndarray, n: int) -> np.uint32:
    """Number of the first of the largest."""
    best, top = ZERO, scores[0]
    for i in range(1, n):
        better = scores[i] > top
        best = np.uint32(i) if better else best
        top = scores[i] if better else top
    return best


@part
def settle(trees: Trees, t: int, node: np.uint32, action: np.uint32, n_successors: int) -> None:
    trees.pick[t, node] = action
    if n_successors == 1:
        trees.link[t, node] = trees.child[t, node, action]


@part
def table_of(rules: Rules, t: int) -> int:
    """Which of the tables of priors a tree reads."""
    return 0 if rules.tables else t


@part
def row_of(trees: Trees, rules: Rules, t: int, node: np.uint32) -> np.uint32:
    """Which row of it a node reads."""
    return trees.state[t, node] if rules.tables else node


@part
def _puct_of(trees: Trees, priors: Priors, rules: Rules, t: int, node: np.uint32, n: int) -> np.uint32:
    u, row = table_of(rules, t), row_of(trees, rules, t, node)
    root = math.sqrt(trees.visits[t, node])
    best, top = ZERO, -np.inf
    for i in range(n):
        s = trees.shown[t, node, i] + priors.pull[u, row, i] * root / trees.more[t, node, i]
        better = s > top
        best = np.uint32(i) if better else best
        top = s if better else top
    return best


@part
def choose_puct(trees: Trees, priors: Priors, rules: Rules, t: int, node: np.uint32) -> None:
    """argmax of scaled value + c P sqrt(N) / (1 + n)."""
    # a loop whose length the compiler knows is unrolled: four actions are what grids have
    if rules.n_actions == 4:
        action = _puct_of(trees, priors, rules, t, node, 4)
    else:
        action = _puct_of(trees, priors, rules, t, node, rules.n_actions)
    settle(trees, t, node, action, rules.n_successors)


@whole
def refresh(trees: Trees, priors: Priors, rules: Rules, t: int, node: np.uint32) -> None:
    """Scale the values of a node's edges by the range that its tree has now, and choose again."""
    low, span = trees.range[t, 0], trees.range[t, 2]
    for i in range(rules.n_actions):
        n = trees.more[t, node, i] - 1.0
        shown = 0.0
        if n > 0.0 and span > 0.0:
            q = trees.sums[t, node, i] if rules.by_max else trees.sums[t, node, i] / n
            shown = (q - low) / span
        trees.shown[t, node, i] = shown
    trees.stamp[t, node] = np.uint32(trees.count[t, 2])
    choose_puct(trees, priors, rules, t, node)


@part
def _values(trees: Trees, priors: Priors, rules: Rules, t: int, node: np.uint32, n: int) -> tuple[float, float, float]:
    """Completed values of a node's actions, into `scores[0]`; their least, their span, and the factor on them."""
    u, row = table_of(rules, t), row_of(trees, rules, t, node)
    total = trees.visits[t, node] - 1.0
    most, weight, weighted = 1.0, 0.0, 0.0
    for i in range(n):
        m, p, q = trees.more[t, node, i], priors.pull[u, row, i], trees.shown[t, node, i]
        most = max(most, m)
        # no branch on "was tried", which no predictor guesses; to add 0 changes no bit
        p = p if m > 1.0 else 0.0
        weight += p
        weighted += p * q
    raw = trees.raw[t, node]
    mixed = raw if total == 0.0 else (raw + total * (weighted / weight)) / (1.0 + total)
    low, high = np.inf, -np.inf
    for i in range(n):
        v = trees.shown[t, node, i]
        v = v if trees.more[t, node, i] > 1.0 else mixed
        trees.scores[0, i] = v
        low, high = min(low, v), max(high, v)
    return low, max(high - low, 1e-8), (rules.visit_scale + (most - 1.0)) * rules.value_scale


@part
def _completed(trees: Trees, priors: Priors, rules: Rules, t: int, node: np.uint32) -> None:
    """Scaled completed values of a node's actions, into `scores[0]`."""
    low, span, factor = _values(trees, priors, rules, t, node, rules.n_actions)
    for i in range(rules.n_actions):
        trees.scores[0, i] = factor * ((trees.scores[0, i] - low) / span)


@whole
def improved(trees: Trees, priors: Priors, rules: Rules, t: int, node: np.uint32) -> None:
    """Softmax of logits and scaled completed values, into `scores[0]`."""
    u, row = table_of(rules, t), row_of(trees, rules, t, node)
    _completed(trees, priors, rules, t, node)
    out = trees.scores
    top = -np.inf
    for i in range(rules.n_actions):
        out[0, i] = priors.logit[u, row, i] + out[0, i]
        top = max(top, out[0, i])
    total = 0.0
    for i in range(rules.n_actions):
        out[0, i] = math.exp(out[0, i] - top)
        total += out[0, i]
    for i in range(rules.n_actions):
        out[0, i] = out[0, i] / total


@part
def quick_exp(x: float) -> float:
    """exp(x) for x <= 0, to 1e-9 relative: 2^k times eight terms of a series."""
    x = x if x > -700.0 else -700.0
    # the sum with 1.5 * 2^52 is rounded to an integer, which then is the last bits of it
    shifted = np.float64(x * 1.4426950408889634 + 6755399441055744.0)
    r = x - (shifted - 6755399441055744.0) * 0.6931471805599453
    r2 = r * r
    low = 1.0 + r + r2 * (0.5 + r * (1.0 / 6.0))
    high = 1.0 / 24.0 + r * (1.0 / 120.0) + r2 * (1.0 / 720.0 + r * (1.0 / 5040.0) + r2 * (1.0 / 40320.0))
    power = np.int64((shifted.view(np.int64) + np.int64(1023)) << np.int64(52)).view(np.float64)
    return (low + r2 * r2 * high) * power


@part
def _guess(trees: Trees, priors: Priors, rules: Rules, t: int, node: np.uint32, n: int) -> tuple[np.uint32, bool]:
    """What `improved` less the share of visits is largest for, and whether that is beyond doubt.

    Scores are multiplied by visits and by the softmax's sum, so that nothing is divided, and exponentials are quick:
    each score is off by less than 1e-8 of that factor. Another action within that of the first is a doubt, unless all
    that its score is made of is the same (and not just its score, which may be rounded to the same).
    """
    u, row, out = table_of(rules, t), row_of(trees, rules, t, node), trees.scores
    low, span, factor = _values(trees, priors, rules, t, node, n)
    scale = factor / span
    top, total = -np.inf, 0.0
    for i in range(n):
        out[0, i] = priors.logit[u, row, i] + scale * (out[0, i] - low)
        top = max(top, out[0, i])
    for i in range(n):
        out[1, i] = quick_exp(out[0, i] - top)
        total += out[1, i]
    visits = trees.visits[t, node]
    for i in range(n):
        out[1, i] = out[1, i] * visits - (trees.more[t, node, i] - 1.0) * total
    best = largest(out[1], n)
    bar = out[1, best] - 1e-8 * total * visits
    doubts = 0
    for i in range(n):
        differs = (trees.shown[t, node, i] != trees.shown[t, node, best]) | (
            trees.more[t, node, i] != trees.more[t, node, best]
        )
        differs |= priors.logit[u, row, i] != priors.logit[u, row, best]
        doubts += differs & (out[1, i] >= bar)
    return best, doubts == 0


@whole
def _exact_gumbel(trees: Trees, priors: Priors, rules: Rules, t: int, node: np.uint32) -> np.uint32:
    improved(trees, priors, rules, t, node)
    for i in range(rules.n_actions):
        trees.scores[0, i] -= (trees.more[t, node, i] - 1.0) / trees.visits[t, node]
    return largest(trees.scores[0], rules.n_actions)


@part
def _prior_less_share(trees: Trees, priors: Priors, rules: Rules, t: int, node: np.uint32, n: int) -> np.uint32:
    u, row = table_of(rules, t), row_of(trees, rules, t, node)
    visits = trees.visits[t, node]
    best, top = ZERO, -np.inf
    for i in range(n):
        s = priors.base[u, row, i] - (trees.more[t, node, i] - 1.0) / visits
        better = s > top
        best = np.uint32(i) if better else best
        top = s if better else top
    return best


@part
def choose_gumbel(trees: Trees, priors: Priors, rules: Rules, t: int, node: np.uint32) -> None:
    """argmax of the improved policy less the share of visits."""
    if not trees.stamp[t, node]:
        # nothing but 0 came back so far: all completed values are equal, and the improved policy is the prior
        if rules.n_actions == 4:
            action = _prior_less_share(trees, priors, rules, t, node, 4)
        else:
            action = _prior_less_share(trees, priors, rules, t, node, rules.n_actions)
    else:
        action, sure = ZERO, False
        if rules.quick and rules.n_actions == 4:
            action, sure = _guess(trees, priors, rules, t, node, 4)
        elif rules.quick:
            action, sure = _guess(trees, priors, rules, t, node, rules.n_actions)
        if not sure:
            action = _exact_gumbel(trees, priors, rules, t, node)
    settle(trees, t, node, action, rules.n_successors)


@part
def root_action(trees: Trees, priors: Priors, rules: Rules, t: int, wanted: float) -> np.uint32:
    """Among the root's actions with the wanted number of visits: argmax of noise + logits + scaled completed values."""
    out = trees.scores
    if trees.stamp[t, ROOT]:
        _completed(trees, priors, rules, t, ROOT)
    else:
        for i in range(rules.n_actions):
            out[0, i] = 0.0
    for i in range(rules.n_actions):
        s = trees.noise[t, i] + out[0, i]
        out[0, i] = s if trees.more[t, ROOT, i] - 1.0 == wanted else -np.inf
    return largest(out[0], rules.n_actions)
