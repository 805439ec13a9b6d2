"""Compiled tree search, the loops: walks down, leaves, the way back, and whole searches. Arrays in, arrays out.

The definition is `retarget.search.reference`; every number here comes of the same operations in the same order. What
differs is when they are done. What a node will choose depends on its own edges (and, for `puct`, on the range of values
in its tree) alone, so it is worked out when those change, on the way back, where the nodes of a path do not wait for
each other; the way down then only follows links.
"""

# mypy: disable-error-code="untyped-decorator, no-any-return, return-value, arg-type, assignment"
from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np import arrayobj

from retarget.kernels import mix, unit
from retarget.search.tree_choices import (
    ROOT,
    ZERO,
    Answers,
    Facts,
    Priors,
    Rules,
    Trees,
    choose_gumbel,
    choose_puct,
    improved,
    largest,
    part,
    refresh,
    root_action,
    settle,
    table_of,
    whole,
)

#: A link that leads nowhere yet, and the bit of a link to an end (which is never walked out of).
EMPTY, END, INDEX = np.uint32(0xFFFFFFFF), np.uint32(0x80000000), np.uint32(0x7FFFFFFF)
_ROLLOUT, _GUMBEL = np.uint64(0x5EED0001), np.uint64(0x5EED0002)
#: So many trees ahead, what the way back will need is fetched.
AHEAD = 4


# ------------------------------------------------------------------------------------------------ walking


@part
def _successor(facts: Facts, rules: Rules, state: np.uint32, action: np.uint32, u: float) -> np.uint32:
    total = 0.0
    for j in range(rules.n_successors - 1):
        total += facts.prob[state, action, j]
        if u < total:
            return np.uint32(j)
    return np.uint32(rules.n_successors - 1)


@part
def _walk(trees: Trees, facts: Facts, priors: Priors, rules: Rules, t: int, simulation: int) -> None:
    """From the root to a link that has no node yet, or leads to an end."""
    k = rules.n_successors
    base = mix(trees.key[t] ^ np.uint64(simulation)) if k > 1 else np.uint64(0)
    number = np.uint32(trees.count[t, 2])
    node, depth, j = ROOT, 0, ZERO
    if rules.gumbel:
        settle(trees, t, ROOT, root_action(trees, priors, rules, t, rules.schedule[simulation]), k)
    while True:
        if not rules.gumbel and trees.stamp[t, node] != number:
            refresh(trees, priors, rules, t, node)
        trees.path[t, depth] = node
        if k == 1:
            link = trees.link[t, node]
        else:
            action = trees.pick[t, node]
            j = _successor(facts, rules, trees.state[t, node], action, unit(base ^ np.uint64(depth)))
            link = trees.child[t, node, action * np.uint32(k) + j]
        depth += 1
        if link >= END:
            break
        node = link
    action = trees.pick[t, node]
    trees.count[t, 1] += depth
    trees.count[t, 3] = depth
    trees.leaf[t, 0] = link
    trees.leaf[t, 1] = action * np.uint32(k) + j
    trees.leaf[t, 2] = facts.next_state[trees.state[t, node], action, j]


@whole
def _rollout(facts: Facts, rules: Rules, state: np.uint32, key: np.uint64, simulation: int) -> tuple[float, int]:
    """Return and steps of a uniformly random walk."""
    scale = 1.0
    base = mix(mix(key ^ _ROLLOUT) ^ np.uint64(simulation))
    for s in range(rules.rollout_steps):
        a = np.uint32(min(int(unit(base ^ np.uint64(2 * s)) * rules.n_actions), rules.n_actions - 1))
        j = ZERO
        if rules.n_successors > 1:
            j = _successor(facts, rules, state, a, unit(base ^ np.uint64(2 * s + 1)))
        state = facts.next_state[state, a, j]
        scale *= rules.gamma
        if facts.ends[state]:
            return (scale * facts.worth[state] if state < rules.n_states else 0.0), s + 1
    return 0.0, rules.rollout_steps


@part
def _plant(trees: Trees, rules: Rules, t: int, node: np.uint32, state: np.uint32, value: float, first: int) -> None:
    """Write a node that can be walked out of, with no edge tried."""
    for i in range(rules.n_actions):
        trees.more[t, node, i] = 1.0
        trees.sums[t, node, i] = 0.0
        trees.shown[t, node, i] = 0.0
    for i in range(rules.n_actions * rules.n_successors):
        trees.child[t, node, i] = EMPTY
    trees.visits[t, node] = 1.0
    trees.raw[t, node] = value
    trees.best[t, node] = value
    trees.state[t, node] = state
    trees.pick[t, node] = first
    trees.link[t, node] = EMPTY
    trees.stamp[t, node] = np.uint32(value != 0.0) if rules.gumbel else np.uint32(trees.count[t, 2])


@part
def _arrive(trees: Trees, facts: Facts, rules: Rules, t: int, simulation: int, value: float, first: np.uint32) -> float:
    """Make the leaf that the walk came to, unless it is an end that was there before: what the walk is worth."""
    link = trees.leaf[t, 0]
    if link != EMPTY:
        node = link & INDEX
        trees.visits[t, node] += 1.0
        return trees.raw[t, node]
    state = trees.leaf[t, 2]
    node = np.uint32(trees.count[t, 0])
    trees.count[t, 0] += 1
    parent = trees.path[t, trees.count[t, 3] - 1]
    if facts.ends[state]:
        trees.child[t, parent, trees.leaf[t, 1]] = node | END
        trees.visits[t, node] = 1.0
        trees.raw[t, node] = facts.worth[state]
        trees.best[t, node] = facts.worth[state]
        return facts.worth[state]
    if rules.rollout_steps:
        value, steps = _rollout(facts, rules, state, trees.key[t], simulation)
        trees.count[t, 1] += steps
    trees.child[t, parent, trees.leaf[t, 1]] = node
    _plant(trees, rules, t, node, state, value, first)
    return value


# ------------------------------------------------------------------------------------------------ the way back


@part
def _worth(trees: Trees, rules: Rules, t: int, node: np.uint32, action: np.uint32) -> float:
    """Mean worth of an edge's successors, each weighted by the walks that came to it."""
    total, weighted = 0.0, 0.0
    for j in range(rules.n_successors):
        link = trees.child[t, node, action * np.uint32(rules.n_successors) + np.uint32(j)]
        if link != EMPTY:
            child = link & INDEX
            total += trees.visits[t, child]
            weighted += trees.visits[t, child] * trees.best[t, child]
    return weighted / total


@part
def _best(trees: Trees, rules: Rules, t: int, node: np.uint32) -> float:
    best = -np.inf
    for i in range(rules.n_actions):
        if trees.more[t, node, i] > 1.0:
            best = max(best, trees.sums[t, node, i])
    return best


@part
def _widen(trees: Trees, t: int, q: float) -> None:
    """Take a value into the range of its tree; what was scaled by the old range is then out of date."""
    low, high = trees.range[t, 0], trees.range[t, 1]
    if q < low or q > high:
        low, high = min(low, q), max(high, q)
        trees.range[t, 0] = low
        trees.range[t, 1] = high
        if high > low:
            trees.range[t, 2] = high - low
            trees.count[t, 2] += 1


@part
def _back_puct(trees: Trees, priors: Priors, rules: Rules, t: int, result: float) -> None:
    for d in range(trees.count[t, 3] - 1, -1, -1):
        node = trees.path[t, d]
        action = trees.pick[t, node]
        result = rules.gamma * result
        n = trees.more[t, node, action]
        trees.more[t, node, action] = n + 1.0
        trees.visits[t, node] += 1.0
        if rules.by_max:
            q = rules.gamma * _worth(trees, rules, t, node, action)
            trees.sums[t, node, action] = q
            trees.best[t, node] = _best(trees, rules, t, node)
        else:
            total = trees.sums[t, node, action] + result
            trees.sums[t, node, action] = total
            q = total / n
        _widen(trees, t, q)
        # where the range has just moved, the next walk that comes by chooses
        if trees.stamp[t, node] == np.uint32(trees.count[t, 2]):
            if trees.range[t, 2] > 0.0:
                trees.shown[t, node, action] = (q - trees.range[t, 0]) / trees.range[t, 2]
            choose_puct(trees, priors, rules, t, node)


@part
def _back_gumbel(trees: Trees, priors: Priors, rules: Rules, t: int, result: float) -> None:
    for d in range(trees.count[t, 3] - 1, -1, -1):
        node = trees.path[t, d]
        action = trees.pick[t, node]
        result = rules.gamma * result
        n = trees.more[t, node, action]
        total = trees.sums[t, node, action] + result
        trees.more[t, node, action] = n + 1.0
        trees.visits[t, node] += 1.0
        trees.sums[t, node, action] = total
        trees.shown[t, node, action] = total / n
        trees.stamp[t, node] |= np.uint32(result != 0.0)
        if d > 0:  # the root chooses by the schedule, when a walk begins
            choose_gumbel(trees, priors, rules, t, node)


@part
def _back(trees: Trees, priors: Priors, rules: Rules, t: int, result: float) -> None:
    if rules.gumbel:
        _back_gumbel(trees, priors, rules, t, result)
    else:
        _back_puct(trees, priors, rules, t, result)


# ------------------------------------------------------------------------------------------------ whole searches


@whole
def _weigh(priors: Priors, rules: Rules, u: int, row: np.uint32, prior: np.ndarray, r: int) -> None:
    """Write a row of priors from row r of action probabilities float64 `[R, A]`."""
    pull, logit, base = priors.pull, priors.logit, priors.base
    if not rules.gumbel:
        for i in range(rules.n_actions):
            pull[u, row, i] = rules.exploration * prior[r, i]
        priors.first[u, row] = largest(pull[u, row], rules.n_actions)
        return
    top = -np.inf
    for i in range(rules.n_actions):
        pull[u, row, i] = prior[r, i] + 1e-12
        logit[u, row, i] = math.log(pull[u, row, i])
        top = max(top, logit[u, row, i])
    total = 0.0
    for i in range(rules.n_actions):
        base[u, row, i] = math.exp(logit[u, row, i] - top)
        total += base[u, row, i]
    for i in range(rules.n_actions):
        base[u, row, i] /= total
    priors.first[u, row] = largest(base[u, row], rules.n_actions)


@whole
def _start(
    trees: Trees, facts: Facts, priors: Priors, rules: Rules, t: int, root: np.uint32, key: np.uint64, value: float
) -> None:
    """A tree of one node. Its row of priors has been written."""
    trees.key[t] = key
    trees.range[t, 0], trees.range[t, 1], trees.range[t, 2] = np.inf, -np.inf, 0.0
    trees.count[t, 0], trees.count[t, 1], trees.count[t, 2], trees.count[t, 3] = 1, 0, 0, 0
    if rules.rollout_steps:
        value, steps = _rollout(facts, rules, root, key, rules.simulations)
        trees.count[t, 1] += steps
    u, row = table_of(rules, t), root if rules.tables else ROOT
    _plant(trees, rules, t, ROOT, root, value, priors.first[u, row])
    if rules.gumbel:
        base = mix(mix(key ^ _GUMBEL))
        for i in range(rules.n_actions):
            noise = 0.0
            if rules.gumbel_scale != 0.0:
                noise = -rules.gumbel_scale * math.log(-math.log(unit(base ^ np.uint64(i)) + 1e-300) + 1e-300)
            trees.noise[t, i] = noise + priors.logit[u, row, i]


@whole
def _finish(trees: Trees, priors: Priors, rules: Rules, t: int, b: int, out: Answers) -> None:
    """What tree t says of root b."""
    total, most, scores = 0.0, 0.0, trees.scores
    for i in range(rules.n_actions):
        n = trees.more[t, ROOT, i] - 1.0
        most = max(most, n)
        out.visits[b, i] = np.int32(n)
        out.q[b, i] = 0.0
        if n > 0.0:
            out.q[b, i] = trees.sums[t, ROOT, i] if rules.by_max else trees.sums[t, ROOT, i] / n
        out.policy[b, i] = n / rules.simulations
        total += trees.sums[t, ROOT, i]
    out.value[b] = trees.best[t, ROOT] if rules.by_max else total / rules.simulations
    if rules.gumbel:
        out.action[b] = root_action(trees, priors, rules, t, most)
        improved(trees, priors, rules, t, ROOT)
        for i in range(rules.n_actions):
            out.policy[b, i] = scores[0, i]
    else:
        for i in range(rules.n_actions):
            scores[0, i] = out.q[b, i] if out.visits[b, i] == most else -np.inf
        out.action[b] = largest(scores[0], rules.n_actions)
    out.steps[b] = trees.count[t, 1]
    out.nodes[b] = trees.count[t, 0]


@whole
def search_tables(
    trees: Trees, facts: Facts, priors: Priors, rules: Rules, prior: np.ndarray,
    roots: np.ndarray, keys: np.ndarray, out: Answers,
) -> None:  # fmt: skip
    """Every root, leaves judged by the model's tables: T trees at a time in one small buffer, in turns, so that each
    computes while the others wait."""
    for s in range(rules.n_states):
        _weigh(priors, rules, 0, np.uint32(s), prior, s)
    side = trees.visits.shape[0]
    for first in range(0, roots.size, side):
        n = min(side, roots.size - first)
        for t in range(n):
            root = np.uint32(roots[first + t])
            _start(trees, facts, priors, rules, t, root, keys[first + t], facts.value[root])
        for simulation in range(rules.simulations):
            for t in range(n):
                _walk(trees, facts, priors, rules, t, simulation)
                state = trees.leaf[t, 2]
                value, choice = 0.0, ZERO
                if state < rules.n_states:
                    value, choice = facts.value[state], priors.first[0, state]
                _back(trees, priors, rules, t, _arrive(trees, facts, rules, t, simulation, value, choice))
        for t in range(n):
            _finish(trees, priors, rules, t, first + t, out)


@part
def _descend(
    trees: Trees,
    facts: Facts,
    priors: Priors,
    rules: Rules,
    t: int,
    simulation: int,
    roots: np.ndarray,
    ask: np.ndarray,
) -> None:
    """One walk; the state to judge into `ask`, the root's where there is none."""
    _walk(trees, facts, priors, rules, t, simulation)
    state = trees.leaf[t, 2]
    ask[t] = roots[t] if trees.leaf[t, 0] != EMPTY or facts.ends[state] else np.int64(state)


@whole
def begin(
    trees: Trees, facts: Facts, priors: Priors, rules: Rules, prior: np.ndarray, value: np.ndarray,
    roots: np.ndarray, keys: np.ndarray, ask: np.ndarray,
) -> None:  # fmt: skip
    """Trees of one node for all roots, given what these are worth float64 `[B]` and their priors float64 `[B, A]`; and
    the first walk in each. States to judge go into `ask` int64 `[B]`."""
    for t in range(roots.size):
        _weigh(priors, rules, t, ROOT, prior, t)
        _start(trees, facts, priors, rules, t, np.uint32(roots[t]), keys[t], value[t])
        _descend(trees, facts, priors, rules, t, 0, roots, ask)


@intrinsic
def _fetch(typing: Any, array: Any, t: Any, node: Any, offset: Any) -> Any:
    """Have the processor fetch what lies `offset` bytes after `array[t, node]`. Nothing is read."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind, byte, number = signature.args[0], ir.IntType(8).as_pointer(), ir.IntType(32)
        index = [
            context.cast(builder, x, k, numba.intp) for x, k in zip(arguments[1:], signature.args[1:], strict=True)
        ]
        start = arrayobj.make_array(kind)(context, builder, arguments[0])
        item = cgutils.get_item_pointer(context, builder, kind, start, index[:2], wraparound=False)
        prefetch = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [byte, number, number, number]), "llvm.prefetch.p0"
        )
        place = builder.gep(builder.bitcast(item, byte), [index[2]])
        builder.call(prefetch, [place, number(0), number(3), number(1)])  # to read, into every cache, data
        return context.get_dummy_value()

    return numba.void(array, t, node, offset), lower


@part
def _fetch_path(trees: Trees, t: int) -> None:
    """Fetch the nodes of the walk under way in a tree."""
    for d in range(trees.count[t, 3]):
        for offset in range(0, trees.visits.strides[1], 64):
            _fetch(trees.visits, t, trees.path[t, d], offset)  # type: ignore[call-arg]


@whole
def turn(
    trees: Trees, facts: Facts, priors: Priors, rules: Rules, prior: np.ndarray, value: np.ndarray,
    roots: np.ndarray, simulation: int, ask: np.ndarray,
) -> None:  # fmt: skip
    """Take the judgements of one simulation in, carry them back, and walk again while the tree is in the cache."""
    for t in range(roots.size):
        if t + AHEAD < roots.size:
            _fetch_path(trees, t + AHEAD)
        choice = ZERO
        if trees.leaf[t, 0] == EMPTY and not facts.ends[trees.leaf[t, 2]]:
            node = np.uint32(trees.count[t, 0])
            _weigh(priors, rules, t, node, prior, t)
            choice = priors.first[t, node]
        _back(trees, priors, rules, t, _arrive(trees, facts, rules, t, simulation, value[t], choice))
        if simulation + 1 < rules.simulations:
            _descend(trees, facts, priors, rules, t, simulation + 1, roots, ask)


@whole
def finish(trees: Trees, priors: Priors, rules: Rules, out: Answers) -> None:
    """What every tree says of its root."""
    for t in range(out.value.size):
        _finish(trees, priors, rules, t, t, out)
