"""Context tree weighting, action-conditional and factored: a plain reference, and the compiled model behind one face.

A context tree of depth D weighs every prediction suffix tree of depth at most D by `2^-Γ`, Γ the bits that describe the
tree, with a KT estimator in each leaf (source: Willems, Shtarkov and Tjalkens 1995). Actions extend the history and are
never predicted; percepts are predicted bit by bit, bit i by a tree of its own of depth D + i, so that it sees the
earlier bits of its percept and the D bits before it (source: Veness et al. 2011, sections 5.3 to 5.6).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from retarget.bayes.kt import kt_next
from retarget.errors import RetargetError

if TYPE_CHECKING:
    from retarget.bayes.kernels import Nodes


#: Bits that a context may have: the paper's longest are below 100.
MOST_DEPTH = 10_000


def log_half_sum(x: float, y: float) -> float:
    """`log((e^x + e^y) / 2)`, without overflow.

    >>> log_half_sum(-2000.0, -2000.0)
    -2000.0
    """
    high, low = max(x, y), min(x, y)
    return high + math.log1p(math.exp(low - high)) - math.log(2.0)


@dataclass(slots=True)
class _Node:
    counts: list[int] = field(default_factory=lambda: [0, 0])
    log_kt: float = 0.0
    log_weighted: float = 0.0
    children: list[_Node | None] = field(default_factory=lambda: [None, None])


class ContextTree:
    """One context tree over bits, slow and plain: the compiled one is held against it.

    Contexts are given most recent bit first, and must be at least `depth` bits long. Nodes come into being when their
    context is first seen.

    >>> tree = ContextTree(2)
    >>> tree.predict([0, 1])
    0.5
    >>> tree.update([0, 1], 1)
    >>> round(math.exp(tree.log_block), 6), round(tree.predict([0, 1]), 6)
    (0.5, 0.75)
    """

    def __init__(self, depth: int) -> None:
        if depth < 0:
            raise RetargetError(f"the depth of a context tree must not be negative, got {depth}")
        self.depth = depth
        self._root = _Node()
        self._undo: list[tuple[list[tuple[_Node, int, float, float]], _Node | None, int]] = []

    @property
    def log_block(self) -> float:
        """Natural log of the probability of all bits so far, given their contexts."""
        return self._root.log_weighted

    @property
    def n_nodes(self) -> int:
        """Nodes that exist."""
        queue, n = [self._root], 0
        while queue:
            node = queue.pop()
            n += 1
            queue += [c for c in node.children if c is not None]
        return n

    def update(self, context: Sequence[int], bit: int) -> None:
        """Take in one bit that was seen after `context`."""
        path, added, slot = [self._root], None, 0
        for d in range(self.depth):
            here = path[-1]
            child = here.children[context[d]]
            if child is None:
                child = _Node()
                here.children[context[d]] = child
                added, slot = (here, context[d]) if added is None else (added, slot)
            path.append(child)
        self._undo.append(([(n, bit, n.log_kt, n.log_weighted) for n in path], added, slot))
        for d in range(self.depth, -1, -1):
            node = path[d]
            p = kt_next(*node.counts)
            node.log_kt += math.log(p if bit else 1.0 - p)
            node.counts[bit] += 1
            below = sum(c.log_weighted for c in node.children if c is not None)
            node.log_weighted = node.log_kt if d == self.depth else log_half_sum(node.log_kt, below)

    def revert(self) -> None:
        """Undo the latest update that is not undone yet: the tree is, to the bit, what it was before.

        Raises:
            RetargetError: when there is none.
        """
        if not self._undo:
            raise RetargetError("there is no update to revert; revert at most once for each update")
        changed, added, slot = self._undo.pop()
        for node, bit, log_kt, log_weighted in changed:
            node.counts[bit] -= 1
            node.log_kt, node.log_weighted = log_kt, log_weighted
        if added is not None:
            added.children[slot] = None

    def predict(self, context: Sequence[int], bit: int = 1) -> float:
        """Probability that `bit` comes after `context`: the ratio of two block probabilities."""
        before = self.log_block
        self.update(context, bit)
        after = self.log_block
        self.revert()
        return math.exp(after - before)


@dataclass(frozen=True)
class Coding:
    """How cycles are written as bits: the action, then the observation, then the reward, each highest bit first.

    Attributes:
        action_bits, observation_bits, reward_bits: widths.
        depth: bits of history before a percept that its first bit is predicted from.
    """

    action_bits: int
    observation_bits: int
    reward_bits: int
    depth: int

    def __post_init__(self) -> None:
        if self.depth > MOST_DEPTH:
            raise RetargetError(f"depth of a context is at most {MOST_DEPTH} bits, got {self.depth}; take fewer")
        if min(self.action_bits, self.observation_bits, self.reward_bits, self.depth) < 0 or self.percept_bits == 0:
            raise RetargetError(
                f"a coding needs at least one percept bit and no negative widths, got {self.observation_bits} "
                f"observation bits, {self.reward_bits} reward bits, {self.action_bits} action bits, depth {self.depth}"
            )

    @property
    def percept_bits(self) -> int:
        return self.observation_bits + self.reward_bits

    @property
    def cycle_bits(self) -> int:
        return self.action_bits + self.percept_bits

    def percept(self, observation: int, reward_symbol: int) -> int:
        """One number for a percept: the observation's bits above the reward symbol's."""
        return (observation << self.reward_bits) | reward_symbol


def bits_of(number: int, width: int) -> list[int]:
    """The bits of a number, highest first.

    >>> bits_of(5, 4)
    [0, 1, 0, 1]
    """
    if not 0 <= number < 1 << width:
        raise RetargetError(f"{number} does not fit into {width} bits; the largest number there is {(1 << width) - 1}")
    return [(number >> (width - 1 - i)) & 1 for i in range(width)]


class ReferenceModel:
    """Factored action-conditional CTW in plain Python. The history begins with `depth` zeros.

    >>> model = ReferenceModel(Coding(1, 1, 0, depth=4))
    >>> for _ in range(8):
    ...     model.act(1); model.perceive(1)
    >>> model.act(1); model.probability(1) > 0.8
    True
    """

    def __init__(self, coding: Coding) -> None:
        self.coding = coding
        self.history: list[int] = [0] * coding.depth
        self.trees = [ContextTree(coding.depth + i) for i in range(coding.percept_bits)]

    def act(self, action: int) -> None:
        """Extend the history by an action."""
        self.history += bits_of(action, self.coding.action_bits)

    def perceive(self, percept: int) -> None:
        """Learn from a percept, and extend the history by it."""
        for tree, bit in zip(self.trees, bits_of(percept, self.coding.percept_bits), strict=True):
            tree.update(self.history[::-1], bit)
            self.history.append(bit)

    def forget(self) -> None:
        """Undo the latest percept."""
        for tree in self.trees[::-1]:
            tree.revert()
            self.history.pop()

    def probability(self, percept: int) -> float:
        """Probability of a percept, given the history."""
        total, start = 1.0, len(self.history)
        for tree, bit in zip(self.trees, bits_of(percept, self.coding.percept_bits), strict=True):
            total *= tree.predict(self.history[::-1], bit)
            self.history.append(bit)
        del self.history[start:]
        return total

    @property
    def log_block(self) -> float:
        """Natural log of the probability of all percepts so far, given the actions."""
        return sum(tree.log_block for tree in self.trees)


class CompiledModel:
    """The same model on flat arrays (`retarget.bayes.kernels`), with the same verbs.

    >>> model = CompiledModel(Coding(1, 1, 0, depth=4))
    >>> for _ in range(8):
    ...     model.act(1); model.perceive(1)
    >>> model.act(1); model.probability(1) > 0.8
    True
    """

    def __init__(self, coding: Coding) -> None:
        from retarget.bayes.kernels import new_nodes

        self.coding = coding
        self.nodes: Nodes = new_nodes(coding, 1024)
        self.log_block = 0.0
        self._undo: list[tuple[np.ndarray, np.ndarray, int, int, float]] = []

    @property
    def history(self) -> list[int]:
        return [int(b) for b in self.nodes.history[: int(self.nodes.used[1])]]

    def act(self, action: int) -> None:
        """Extend the history by an action."""
        for bit in bits_of(action, self.coding.action_bits):
            self._append(bit)

    def perceive(self, percept: int) -> None:
        """Learn from a percept, and extend the history by it."""
        from retarget.bayes.kernels import learn_percept, log_size

        bits_of(percept, self.coding.percept_bits)
        self._room()
        log_node, log_beta = np.empty(log_size(self.coding, 1), np.int64), np.empty(log_size(self.coding, 1))
        rows, bits = self.nodes.used.tolist()
        used, log_p = learn_percept(
            self.nodes, self.coding.depth, self.coding.percept_bits, percept, log_node, log_beta, 0
        )
        self._undo.append((log_node[:used].copy(), log_beta[:used].copy(), rows, bits, self.log_block))
        self.log_block += log_p

    def forget(self) -> None:
        """Undo the latest percept.

        Raises:
            RetargetError: when there is none.
        """
        from retarget.bayes.kernels import undo

        if not self._undo:
            raise RetargetError("there is no percept to forget; forget at most once for each percept")
        log_node, log_beta, rows, bits, self.log_block = self._undo.pop()
        undo(self.nodes, log_node, log_beta, len(log_node), rows, bits)

    def probability(self, percept: int) -> float:
        """Probability of a percept, given the history."""
        from retarget.bayes.kernels import percept_probability

        bits_of(percept, self.coding.percept_bits)
        self._room()
        return float(percept_probability(self.nodes, self.coding.depth, self.coding.percept_bits, percept))

    def _append(self, bit: int) -> None:
        self._room()
        self.nodes.history[self.nodes.used[1]] = bit
        self.nodes.used[1] += 1

    def _room(self) -> None:
        from retarget.bayes.kernels import roomy

        self.nodes = roomy(self.nodes, self.coding, 1)
