"""The joint code of several agents that one agent was edited into, and the line through its lengths."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from retarget.agent import Agent, Alphabet, Categorical, Layout, PartLayout
from retarget.code import ENUMERATIVE, Encoded
from retarget.edit import Edit, difference
from retarget.editors.base import shortest_form
from retarget.editors.words import Stream, bits_of, packed, whole, word_of
from retarget.errors import CodeError, EditError

#: Bits of "as the first agent, edited"; and of "as another one that stands before", or "in full".
AS_FIRST, OTHERWISE = "1", ("01", "00")

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Joint:
    """Agents to be written one after the other: the first in full, each further one in the shortest of three ways.

    ==============================================  ========================================================
    1, then the word of its edit                    as the first agent, edited
    01, a pointer, then the word of the difference  as another agent that stands before it, with a difference
    00, then the word                               in full
    ==============================================  ========================================================

    The pointer takes ceil(log2 k) bits where k agents stand between. The decoder is given the number of agents and
    their layout (names, shapes and alphabets of parts), what no edit can touch, and the code that runs them; nothing of
    what the parts hold: an agent in full has every part written, a planner its model too.

    Attributes:
        first: the agent that is written first.
        others: the others, each with its shortest edit of the first.
    """

    first: Agent
    others: tuple[tuple[Agent, Edit], ...]

    def __post_init__(self) -> None:
        if any(agent.layout != self.first.layout for agent, _ in self.others):
            raise EditError("a joint code is of agents with the same parts; build them with edits of the first")

    @cached_property
    def layout(self) -> Layout:
        """The layout for agents in full: alphabets as large as the symbols held (a fixed palette may have more rows
        than can be written)."""
        every = (self.first, *(a for a, _ in self.others))
        return tuple(
            PartLayout(p.name, p.shape, _widened(p, [a.parts[p.name].array for a in every])) for p in self.first.layout
        )

    @cached_property
    def first_bits(self) -> int:
        """The first agent in full."""
        return ENUMERATIVE.length(self._full(self.first), self.layout)

    @cached_property
    def alone(self) -> np.ndarray:
        """Int `[N]`: the shorter of "edited from the first" and "in full", flags counted."""
        layout = self.first.layout
        as_first = [len(AS_FIRST) + ENUMERATIVE.length(edit, layout) for _, edit in self.others]
        full = [2 + ENUMERATIVE.length(self._full(agent), self.layout) for agent, _ in self.others]
        return np.minimum(np.array(as_first, np.int64), np.array(full, np.int64))

    @cached_property
    def between(self) -> np.ndarray:
        """Float `[N, N]`: bits of the word that turns agent i into agent j; infinite where it cannot be written."""
        n = len(self.others)
        out = np.full((n, n), np.inf)
        for i, (before, _) in enumerate(self.others):
            for j, (after, _) in enumerate(self.others):
                change = _difference(before, after) if i != j else None
                if change is not None:
                    out[i, j] = ENUMERATIVE.length(change, self.first.layout)
        return out

    def lengths(self, order: Sequence[int]) -> np.ndarray:
        """Int `[len(order) + 1]`: joint length of the first agent, and after each further one, in an order."""
        return np.cumsum([self.first_bits, *marginals(self.alone, self.between, order)])

    def _full(self, agent: Agent) -> Edit:
        return Edit("", tuple(whole(p.name, agent.parts[p.name].array, self.layout) for p in self.layout))

    def encode(self, order: Sequence[int]) -> Encoded:
        """The agents in an order, as bits.

        >>> from retarget.agents.tabular import TablePolicy
        >>> table = TablePolicy.from_actions([0, 1, 0, 1], n_actions=2)
        >>> word = Joint(table, ((table, Edit(table.digest, ())),)).encode([0])
        >>> arrays = decode_joint(word, 2, layout=table.layout, full=table.layout)
        >>> [a["policy"].tolist() for a in arrays]
        [[0, 1, 0, 1], [0, 1, 0, 1]]
        """
        out = [word_of(self._full(self.first), self.layout)]
        layout = self.first.layout
        for at, i in enumerate(order):
            agent, edit = self.others[i]
            options = [AS_FIRST + word_of(edit, layout), OTHERWISE[1] + word_of(self._full(agent), self.layout)]
            for j in range(at):
                change = _difference(self.others[order[j]][0], agent)
                if change is not None:
                    width = (at - 1).bit_length()
                    pointer = format(j, f"0{width}b") if width else ""
                    options.append(OTHERWISE[0] + pointer + word_of(change, layout))
            out.append(min(options, key=len))
        return packed("".join(out))


def decode_joint(word: Encoded, n: int, *, layout: Layout, full: Layout) -> tuple[Arrays, ...]:
    """The parts' contents of `n` agents.

    Args:
        word: what `Joint.encode` gave.
        n: how many agents, the first among them.
        layout: of the agents.
        full: `Joint.layout`.

    Raises:
        CodeError: for bits that are no such code.
    """
    stream = Stream(bits_of(word))
    out = [_in_full(stream, full)]
    for at in range(n - 1):
        if stream.fixed(1):
            base = out[0]
        elif stream.fixed(1):
            if at == 0:
                raise CodeError("the code points to an agent between, and there is none")
            which = stream.fixed((at - 1).bit_length())
            if which >= at:
                raise CodeError(f"the code points to agent {which} of {at}")
            base = out[1 + which]
        else:
            out.append(_in_full(stream, full))
            continue
        edit = stream.edit(layout, agent_digest="")
        out.append({**base, **{p.part: p.write(base[p.part]) for p in edit.patches}})
    if stream.rest:
        raise CodeError(f"{stream.rest} bits follow the last agent")
    return tuple(out)


def _in_full(stream: Stream, layout: Layout) -> dict[str, np.ndarray]:
    edit = stream.edit(layout, agent_digest="")
    empty = {p.name: np.zeros(p.shape, p.alphabet.dtype) for p in layout}
    if edit.parts_touched != tuple(empty):
        raise CodeError("an agent in full has every part written")
    return {p.part: p.write(empty[p.part]) for p in edit.patches}


def _widened(part: PartLayout, arrays: Sequence[np.ndarray]) -> Alphabet:
    if not isinstance(part.alphabet, Categorical):
        return part.alphabet
    return Categorical(max(part.alphabet.size, 1 + max(int(a.max()) for a in arrays)))


def _difference(before: Agent, after: Agent) -> Edit | None:
    try:
        return shortest_form(before, difference(before, after))
    except EditError:  # a cell holds a symbol that can be kept, not written
        return None


def marginals(alone: np.ndarray, between: np.ndarray, order: Sequence[int]) -> np.ndarray:
    """Bits that each further agent adds, in an order: float `[len(order)]`.

    Args:
        alone: `[N]` bits of each agent without the others, flags counted.
        between: `[N, N]` bits of the word that turns agent i into agent j.
        order: which agents, and in which order.

    >>> marginals(np.array([9, 9]), np.array([[np.inf, 3], [3, np.inf]]), [0, 1]).tolist()
    [9.0, 5.0]
    """
    at = np.asarray(order, dtype=np.int64)
    if not at.size:
        return np.zeros(0)
    cost = between[np.ix_(at, at)].astype(np.float64)
    # only what stands before may be pointed to
    cost[np.tril_indices(at.size)] = np.inf
    pointer = np.array([2 + max(k - 1, 0).bit_length() for k in range(at.size)])
    return np.asarray(np.minimum(alone[at], pointer + cost.min(0)))


def doses(n: int) -> tuple[int, ...]:
    """1, 2, 4, … up to n, and n.

    >>> doses(9), doses(1)
    ((1, 2, 4, 8, 9), (1,))
    """
    return tuple(sorted({2**i for i in range(n.bit_length())} | {n}))


def mean_lengths(first: float, alone: np.ndarray, between: np.ndarray, order: Sequence[int]) -> np.ndarray:
    """Joint length after 1, 2, …, N + 1 agents, the mean over all rotations of an order: float64 `[N + 1]`.

    Over the rotations every agent stands in every place once, so that agents which share nothing but the first give a
    straight line.
    """
    n = len(order)
    turned = [marginals(alone, between, [*order[i:], *order[:i]]) for i in range(n)]
    steps = np.mean(turned, axis=0) if n else np.zeros(0)
    return np.asarray(first + np.concatenate([[0.0], np.cumsum(steps)]))


@dataclass(frozen=True)
class Line:
    """Joint length = intercept + slope n, by least squares over n = 1, 2, 4, … and the most.

    Attributes:
        intercept, slope: in bits.
        intercept_error, slope_error: half the width of a 95% interval, None with fewer than two further agents.
        n: number of further agents.
    """

    intercept: float
    slope: float
    intercept_error: float | None
    slope_error: float | None
    n: int


def line_through(first: float, alone: np.ndarray, between: np.ndarray, order: Sequence[int]) -> Line:
    """The line through the joint lengths, with intervals from leaving out one goal after the other.

    The goals are a sample; drawing them again with replacement would write one goal twice, which costs a pointer and no
    more. So the interval is the jackknife's (Quenouille 1956; Tukey 1958), with Student's t on N - 1 degrees of
    freedom.

    Args:
        first: bits of the first agent.
        alone, between, order: as for `mean_lengths`; at least one further agent.

    Raises:
        EditError: where there is no further agent.

    >>> line = line_through(100.0, np.array([10, 12, 14]), np.full((3, 3), np.inf), [0, 1, 2])
    >>> line.intercept, line.slope
    (88.0, 12.0)
    """
    if not len(order):
        raise EditError("a line needs at least two agents, got one; ask for more goals")

    def fit(kept: Sequence[int]) -> tuple[float, float]:
        lengths = mean_lengths(first, alone, between, kept)
        x = np.array(doses(len(lengths)), dtype=np.float64)
        y = lengths[np.array(doses(len(lengths))) - 1]
        slope = float(((x - x.mean()) * y).sum() / ((x - x.mean()) ** 2).sum())
        return round(float(y.mean() - slope * x.mean()), 9), round(slope, 9)

    intercept, slope = fit(order)
    errors = _jackknife(fit, order) if len(order) > 1 else (None, None)
    return Line(intercept, slope, errors[0], errors[1], len(order))


def _jackknife(
    fit: Callable[[Sequence[int]], tuple[float, float]], order: Sequence[int]
) -> tuple[float | None, float | None]:
    from scipy.special import stdtrit  # heavy: only where an interval is wanted

    n = len(order)
    left = np.array([fit([i for i in order if i != gone]) for gone in order])
    spread = np.sqrt((n - 1) / n * ((left - left.mean(0)) ** 2).sum(0))
    half = float(stdtrit(n - 1, 0.975)) * spread
    return float(half[0]), float(half[1])
