"""Edits one after the other: bit strings that hold several words of the project's code, and how to read them back."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from retarget.agent import Categorical, Layout
from retarget.code import ENUMERATIVE, Encoded, _payload, _Reader, _width, unrank_combination
from retarget.edit import Dense, Edit, Patch, Slot
from retarget.errors import CodeError


def word_of(edit: Edit, layout: Layout) -> str:
    """The code word of an edit as a string of 0 and 1, without the padding of its last byte.

    >>> from retarget.agents.tabular import TablePolicy
    >>> agent = TablePolicy.from_actions([0] * 4, n_actions=2)
    >>> word_of(Edit(agent.digest, ()), agent.layout)
    '010'
    """
    return bits_of(ENUMERATIVE.encode(edit, layout))


def bits_of(word: Encoded) -> str:
    """The bits of an encoded word."""
    return format(int.from_bytes(word.data, "big"), f"0{8 * len(word.data)}b")[: word.n_bits] if word.data else ""


def packed(bits: str) -> Encoded:
    """A bit string as bytes, padded with zeros."""
    n_bytes = (len(bits) + 7) // 8
    return Encoded(int(bits.ljust(8 * n_bytes, "0") or "0", 2).to_bytes(n_bytes, "big"), len(bits))


class Stream:
    """Reads several words from one string of bits. The code is a prefix code: each word says where it ends.

    >>> from retarget.agents.tabular import TablePolicy
    >>> agent = TablePolicy.from_actions([0] * 4, n_actions=2)
    >>> stream = Stream("10" + word_of(Edit(agent.digest, ()), agent.layout))
    >>> stream.fixed(2), stream.edit(agent.layout, agent_digest=agent.digest).patches, stream.rest
    (2, (), 0)
    """

    def __init__(self, bits: str) -> None:
        self._reader = _Reader(b"")
        self._reader.text = bits

    def fixed(self, width: int) -> int:
        """An integer of `width` bits. Raises CodeError where the stream is too short."""
        return self._reader.fixed(width)

    @property
    def rest(self) -> int:
        """Bits that were not read yet."""
        return len(self._reader.text) - self._reader.at

    def edit(self, layout: Layout, *, agent_digest: str) -> Edit:
        """The next word. Raises CodeError where there is none."""
        src = self._reader
        m = src.count(len(layout))
        if m > len(layout):
            raise CodeError(f"the code patches {m} parts, the layout has {len(layout)}")
        rank = src.fixed(_width(math.comb(len(layout), m)))
        if rank >= math.comb(len(layout), m):
            raise CodeError(f"the code names set {rank} of {m} parts, which does not exist")
        radices: list[int] = []
        chosen = unrank_combination(rank, len(layout), m)
        pending = [ENUMERATIVE._read_patch(src, layout[i], radices) for i in chosen]
        digits: Sequence[int] = _payload(src, radices)
        patches: list[Patch] = []
        for make, n in pending:
            patches.append(make(digits[:n]))
            digits = digits[n:]
        edit = Edit(agent_digest, tuple(patches))
        edit.check(layout)
        return edit


def whole(name: str, array: np.ndarray, layout: Layout) -> Patch:
    """A whole part, whatever it held: all of its cells, or its commonest value and the exceptions, the shorter."""
    part = next(p for p in layout if p.name == name)
    flat = np.asarray(array, dtype=part.alphabet.dtype).reshape(-1)
    values, counts = np.unique(flat, return_counts=True)
    rest = values[counts.argmax()]
    options: list[Patch] = [Dense(name, flat.reshape(part.shape))]
    signed = not isinstance(part.alphabet, Categorical) and bool((np.signbit(flat) & (flat == 0)).any())
    if not signed:
        named = np.flatnonzero(flat != rest)
        options.append(Slot(name, float(rest), named, flat[named]))
    return min(options, key=lambda p: ENUMERATIVE.length(Edit("", (p,)), (part,)))
