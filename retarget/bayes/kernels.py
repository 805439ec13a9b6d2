"""Compiled factored action-conditional CTW: one pool of nodes for all trees, exact undo, no logarithms.

A node keeps `β = P_kt / (P_w(left) P_w(right))`, the odds that the tree stops there (source: Willems and Tjalkens'
ratio form of context tree weighting), so that a prediction is a blend up one path, and an update multiplies β by
`P_kt(bit) / P_below(bit)`. Below a node whose visits all came by one context, nothing is stored: all nodes there would
have the same counts and β = 1, so that the node keeps the place of that context in the history (its *tail*), and
nodes are made when a second context parts from it. Both are exact; the reference is `retarget.bayes.ctw`.

Numba is loaded with this module, so import it late.
"""

# mypy: disable-error-code="untyped-decorator, no-any-return, return-value, arg-type, assignment"
from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from retarget.bayes.ctw import Coding
from retarget.errors import RetargetError
from retarget.kernels import unit

#: Most bits of history; places in it are 31-bit numbers.
MOST_BITS = 2**31 - 1


class Nodes(NamedTuple):
    """The state of a model. Arrays are written in place; `copy_nodes` makes another.

    Attributes:
        ints: int32 `[N, 8]`: zeros, ones, left child, right child, tail (-1 for none), unused, and two for β. Row 0 is
            no node; rows 1 to P are the roots.
        odds: the same memory as float64 `[N, 4]`; column 3 is β.
        history: uint8 `[H]`, bits so far.
        used: int64 `[2]`: rows in use, bits in use.
    """

    ints: np.ndarray
    odds: np.ndarray
    history: np.ndarray
    used: np.ndarray


def new_nodes(coding: Coding, n: int) -> Nodes:
    """A model that has seen nothing; the history is `depth` zeros."""
    roots = coding.percept_bits
    buffer = np.zeros((max(n, 2 * roots + 2), 4))
    ints = buffer.view(np.int32)
    ints[:, 4] = -1
    buffer[1 : roots + 1, 3] = 1.0
    history = np.zeros(coding.depth + 64 * coding.cycle_bits, np.uint8)
    return Nodes(ints, buffer, history, np.array([roots + 1, coding.depth], np.int64))


def copy_nodes(nodes: Nodes) -> Nodes:
    """The same model in memory of its own."""
    return _resized(nodes, len(nodes.odds), len(nodes.history))


def _resized(nodes: Nodes, rows: int, bits: int) -> Nodes:
    buffer = np.zeros((rows, 4))
    history = np.zeros(bits, np.uint8)
    n, h = int(nodes.used[0]), int(nodes.used[1])
    buffer[:n] = nodes.odds[:n]
    history[:h] = nodes.history[:h]
    return Nodes(buffer.view(np.int32), buffer, history, nodes.used.copy())


def log_size(coding: Coding, cycles: int) -> int:
    """Entries of the undo log that so many cycles can take."""
    return cycles * coding.percept_bits * (coding.depth + coding.percept_bits + 3)


def roomy(nodes: Nodes, coding: Coding, cycles: int) -> Nodes:
    """The model with room for so many cycles more; at least doubled where it has to grow."""
    rows = int(nodes.used[0]) + log_size(coding, cycles)
    bits = int(nodes.used[1]) + cycles * coding.cycle_bits
    if bits > MOST_BITS or rows > MOST_BITS:
        raise RetargetError(f"a history is limited to {MOST_BITS} bits and as many nodes; learn for fewer cycles")
    if rows <= len(nodes.odds) and bits <= len(nodes.history):
        return nodes
    more = lambda need, have: have if need <= have else max(need, 2 * have)  # noqa: E731
    return _resized(nodes, more(rows, len(nodes.odds)), more(bits, len(nodes.history)))


@numba.njit(cache=True)
def _descend(
    nodes: Nodes, root: int, depth: int, path: np.ndarray, kt: np.ndarray, below: np.ndarray
) -> tuple[int, int]:
    """Follow the present context from a root down as far as there are nodes.

    Writes the rows `path[0..d]`, their estimates `kt[0..d]`, and in `below[k]` the probability of a 1 that depth k
    gives, for all k down to where it is known.

    Returns:
        d, and e: the depth of the last node that the tail's context shares with the present one; -1 where d is a leaf
        (or stands for one), -2 where its child is missing.
    """
    ints, odds, history, used = nodes
    end = used[1]
    node = root
    d = 0
    e = -1
    while True:
        zeros = ints[node, 0]
        ones = ints[node, 1]
        estimate = (ones + 0.5) / (zeros + ones + 1.0)
        path[d] = node
        kt[d] = estimate
        if d == depth:
            break
        tail = ints[node, 4]
        if tail >= 0:
            k = d
            while k < depth and history[tail - 1 - k] == history[end - 1 - k]:
                k += 1
            if k < depth:
                e = k
            break
        child = ints[node, 2 + history[end - 1 - d]]
        if child == 0:
            e = -2
            break
        node = child
        d += 1
    if e == -1:
        p = kt[d]
        below[d] = p
        top = d - 1
    elif e == -2:
        p = 0.5
        below[d + 1] = p
        top = d
    else:
        p = 0.5
        below[e + 1] = p
        for k in range(e, d - 1, -1):
            p = 0.5 * (kt[d] + p)
            below[k] = p
        top = d - 1
    for k in range(top, -1, -1):
        beta = odds[path[k], 3]
        p += (kt[k] - p) * (beta / (beta + 1.0))
        below[k] = p
    return d, e


@numba.njit(cache=True)
def _fresh(nodes: Nodes, zeros: int, ones: int, tail: int) -> int:
    ints, odds, _, used = nodes
    row = used[0]
    used[0] = row + 1
    ints[row, 0] = zeros
    ints[row, 1] = ones
    ints[row, 2] = 0
    ints[row, 3] = 0
    ints[row, 4] = tail
    odds[row, 3] = 1.0
    return row


@numba.njit(cache=True)
def _odds(beta: float, kt: float, below: float, bit: int) -> float:
    ratio = kt / below if bit else (1.0 - kt) / (1.0 - below)
    # beyond these bounds a weight is below 1e-300: nothing can be told apart there, and nothing must overflow
    return min(max(beta * ratio, 2.0**-1000), 2.0**1000)


@numba.njit(cache=True)
def _part(nodes: Nodes, node: int, d: int, e: int, bit: int, kt: float, below: np.ndarray) -> None:
    """Make the nodes on which two contexts agree, below a node with a tail, and the two where they part."""
    ints, odds, history, used = nodes
    end = used[1]
    tail = ints[node, 4]
    zeros = ints[node, 0]
    ones = ints[node, 1]
    ints[node, 4] = -1
    here = node
    for k in range(d, e):
        child = _fresh(nodes, zeros, ones, -1)
        ints[child, bit] += 1
        odds[child, 3] = _odds(1.0, kt, below[k + 2], bit)
        ints[here, 2 + history[end - 1 - k]] = child
        here = child
    was = history[tail - 1 - e]
    ints[here, 2 + was] = _fresh(nodes, zeros, ones, tail)
    ints[here, 3 - was] = _fresh(nodes, 1 - bit, bit, end)


@numba.njit(cache=True)
def _take(
    nodes: Nodes,
    d: int,
    e: int,
    bit: int,
    path: np.ndarray,
    kt: np.ndarray,
    below: np.ndarray,
    log_node: np.ndarray,
    log_beta: np.ndarray,
    n: int,
) -> int:
    """Learn one bit along a path that `_descend` found, and log what it takes to undo it. Returns the log's length.

    A log entry of a plain node is `2 row + bit` with its β; of a change of structure `-1 - row` with the old tail, or
    -1 - side for a child that was added.
    """
    ints, odds, history, used = nodes
    last = path[d]
    if e != -1:
        log_node[n] = -1 - last
        log_beta[n] = ints[last, 4] if e >= 0 else -1.0 - history[used[1] - 1 - d]
        n += 1
    if e >= 0:
        _part(nodes, last, d, e, bit, kt[d], below)
    elif e == -2:
        ints[last, 2 + history[used[1] - 1 - d]] = _fresh(nodes, 1 - bit, bit, used[1])
    for k in range(d + 1):
        row = path[k]
        log_node[n] = 2 * row + bit
        log_beta[n] = odds[row, 3]
        n += 1
        ints[row, bit] += 1
        if k < d or e != -1:
            odds[row, 3] = _odds(odds[row, 3], kt[k], below[k + 1], bit)
    return n


@numba.njit(cache=True)
def undo(nodes: Nodes, log_node: np.ndarray, log_beta: np.ndarray, n: int, rows: int, bits: int) -> None:
    """Take back what a log of n entries says; `rows` and `bits` are what was in use before it."""
    ints, odds, _, used = nodes
    while n > 0:
        n -= 1
        code = log_node[n]
        if code >= 0:
            row = code >> 1
            ints[row, code & 1] -= 1
            odds[row, 3] = log_beta[n]
        else:
            row = -1 - code
            value = log_beta[n]
            if value >= 0.0:
                ints[row, 2] = 0
                ints[row, 3] = 0
                ints[row, 4] = np.int32(value)
            else:
                ints[row, 2 + np.int64(-1.0 - value)] = 0
    used[0] = rows
    used[1] = bits


@numba.njit(cache=True)
def append_bits(nodes: Nodes, number: int, width: int) -> None:
    """Extend the history by a number, highest bit first."""
    history, used = nodes[2], nodes[3]
    for i in range(width - 1, -1, -1):
        history[used[1]] = (number >> i) & 1
        used[1] += 1


@numba.njit(cache=True)
def learn_percept(
    nodes: Nodes, depth: int, width: int, percept: int, log_node: np.ndarray, log_beta: np.ndarray, n: int
) -> tuple[int, float]:
    """Learn from a percept and extend the history by it, logging from entry n on.

    Returns:
        the log's length, and the natural log of the percept's probability before it was learned.
    """
    path = np.empty(depth + width + 1, np.int64)
    kt = np.empty(depth + width + 1)
    below = np.empty(depth + width + 2)
    log_p = 0.0
    for i in range(width):
        bit = (percept >> (width - 1 - i)) & 1
        d, e = _descend(nodes, i + 1, depth + i, path, kt, below)
        log_p += np.log(below[0] if bit else 1.0 - below[0])
        n = _take(nodes, d, e, bit, path, kt, below, log_node, log_beta, n)
        append_bits(nodes, bit, 1)
    return n, log_p


@numba.njit(cache=True)
def percept_probability(nodes: Nodes, depth: int, width: int, percept: int) -> float:
    """Probability of a percept, given the history, which is left as it was."""
    path = np.empty(depth + width + 1, np.int64)
    kt = np.empty(depth + width + 1)
    below = np.empty(depth + width + 2)
    bits = nodes[3][1]
    p = 1.0
    for i in range(width):
        bit = (percept >> (width - 1 - i)) & 1
        _descend(nodes, i + 1, depth + i, path, kt, below)
        p *= below[0] if bit else 1.0 - below[0]
        append_bits(nodes, bit, 1)
    nodes[3][1] = bits
    return p


@numba.njit(cache=True)
def draw_percept(
    nodes: Nodes,
    depth: int,
    width: int,
    key: np.uint64,
    count: int,
    path: np.ndarray,
    kt: np.ndarray,
    below: np.ndarray,
    log_node: np.ndarray,
    log_beta: np.ndarray,
    n: int,
) -> tuple[int, int]:
    """Draw a percept from the model, learn from it and extend the history by it, logging from entry n on.

    Random numbers are `unit(key + count)`, `unit(key + count + 1)`, …, one for each bit.

    Returns:
        the percept, and the log's length.
    """
    percept = 0
    for i in range(width):
        d, e = _descend(nodes, i + 1, depth + i, path, kt, below)
        bit = 1 if unit(key + np.uint64(count + i)) < below[0] else 0
        n = _take(nodes, d, e, bit, path, kt, below, log_node, log_beta, n)
        append_bits(nodes, bit, 1)
        percept = 2 * percept + bit
    return percept, n
