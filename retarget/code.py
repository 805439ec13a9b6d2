"""The code that edits are measured in. It encodes and decodes; a length is the length of real bytes.

An edit is written for a *layout* (names, shapes and alphabets of an agent's parts, which both sides know), as one
bit string:

    header    which parts are patched; for each: the kind of patch, the sub-code of its values, its number of cells,
              and any value that is a real number, each in a prefix code
    payload   one integer in a mixed radix: the rank of each set of cells among all sets of that size, and the symbols
              of categorical cells (or the rank of their arrangement), in ceil(log2(number of possibilities)) bits

The header fixes the number of possibilities of the payload, so the whole is a prefix code: Kraft's inequality holds
over all edits of a layout, and no end marker is needed. Bytes are the bits, padded with zeros at the end.

Sources: Elias 1975 (gamma code); Cover 1973 (enumerative source coding); Knuth, TAOCP 4A 7.2.1.3 (combinations).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from retarget.agent import Alphabet, Categorical, Layout, PartLayout
from retarget.edit import Dense, Edit, LowRank, Patch, Slot, Sparse
from retarget.errors import CodeError

KINDS: tuple[type[Patch], ...] = (Sparse, Slot, Dense, LowRank)
_REAL_CODES = ("dyadic", "float16", "float32", "float64")
_REAL_CODE_BITS = (1, 2, 3, 3)


@dataclass(frozen=True)
class Encoded:
    """A code word. `data` is `ceil(n_bits / 8)` bytes, the last one padded with zero bits."""

    data: bytes
    n_bits: int


class Code(Protocol):
    """A stated, decodable code for edits."""

    name: str

    def encode(self, edit: Edit, layout: Layout) -> Encoded: ...

    def decode(self, data: bytes, layout: Layout, *, agent_digest: str) -> Edit: ...

    def length(self, edit: Edit, layout: Layout) -> int:
        """The number of bits that `encode` would give."""
        ...


# ------------------------------------------------------------------------------------------------ bits


class _Writer:
    """Collects header bits, and payload digits with their radices."""

    def __init__(self) -> None:
        self.bits: list[str] = []
        self.value, self.total = 0, 1

    def fixed(self, value: int, width: int) -> None:
        if width:
            self.bits.append(format(value, f"0{width}b"))

    def gamma(self, n: int) -> None:
        self.bits.append("0" * (n.bit_length() - 1) + format(n, "b"))

    def digit(self, value: int, radix: int) -> None:
        self.value += value * self.total
        self.total *= radix

    def done(self) -> Encoded:
        self.fixed(self.value, _width(self.total))
        text = "".join(self.bits)
        n_bits = len(text)
        n_bytes = (n_bits + 7) // 8
        return Encoded(int(text.ljust(8 * n_bytes, "0") or "0", 2).to_bytes(n_bytes, "big"), n_bits)


class _Reader:
    """Reads what `_Writer` wrote. Any string that is no code word raises CodeError."""

    def __init__(self, data: bytes) -> None:
        self.text = format(int.from_bytes(data, "big"), f"0{8 * len(data)}b") if data else ""
        self.at = 0

    def fixed(self, width: int) -> int:
        if self.at + width > len(self.text):
            raise CodeError(f"the code ends after {len(self.text)} bits, in the middle of an edit")
        chunk = self.text[self.at : self.at + width]
        self.at += width
        return int(chunk, 2) if width else 0

    def gamma(self, limit: int) -> int:
        zeros = 0
        while self.fixed(1) == 0:
            zeros += 1
            if zeros > limit.bit_length():
                raise CodeError(f"the code names a number larger than {limit}, which this layout does not allow")
        return (1 << zeros) | self.fixed(zeros)

    def count(self, limit: int) -> int:
        n = self.gamma(limit + 1)
        return (1, 0)[n - 1] if n <= 2 else n - 1

    def done(self) -> None:
        rest = self.text[self.at :]
        if len(rest) >= 8 or "1" in rest:
            raise CodeError(f"{len(rest)} bits follow the end of the edit; expected fewer than 8, all zero")


def _width(possibilities: int) -> int:
    """Bits of a fixed-width integer below `possibilities`: ceil(log2)."""
    return (possibilities - 1).bit_length()


def _gamma_bits(n: int) -> int:
    return 2 * n.bit_length() - 1


def _one_first(n: int) -> int:
    """Swap 0 and 1, then count from 1: the count 1 gets the shortest gamma code word, 0 the next."""
    return (2, 1)[n] if n < 2 else n + 1


# ------------------------------------------------------------------------------------------------ real numbers


def _dyadic(x: float) -> tuple[int, int]:
    """(m, e) with |x| = m 2**e, m odd."""
    numerator, denominator = abs(x).as_integer_ratio()
    twos = (numerator & -numerator).bit_length() - 1
    return numerator >> twos, twos - (denominator.bit_length() - 1)


def _zigzag(e: int) -> int:
    return 2 * e if e >= 0 else -2 * e - 1


def _bit_length(n: np.ndarray) -> np.ndarray:
    """Bit lengths of positive integers below 2**53, elementwise."""
    return np.frexp(n.astype(np.float64))[1].astype(np.int64)


def _dyadic_bits(values: np.ndarray) -> int:
    """Bits of all numbers of an array in the dyadic code: what `_write_dyadic` would write."""
    rest = values[values != 0]
    fraction, exponent = np.frexp(np.abs(rest))
    mantissa = np.ldexp(fraction, 53).astype(np.int64)
    twos = _bit_length(mantissa & -mantissa) - 1
    e = exponent - 53 + twos
    folded = np.where(e >= 0, 2 * e, -2 * e - 1) + 1
    gammas = 2 * _bit_length(((mantissa >> twos) + 1) // 2) - 1 + 2 * _bit_length(folded) - 1
    return int(values.size - rest.size + 2 * rest.size + gammas.sum())


def _write_dyadic(out: _Writer, x: float) -> None:
    # a flag for "not zero"; then the sign, the odd mantissa and the exponent
    out.fixed(int(x != 0), 1)
    if x != 0:
        out.fixed(int(x < 0), 1)
        m, e = _dyadic(x)
        out.gamma((m + 1) // 2)
        out.gamma(_zigzag(e) + 1)


def _read_dyadic(src: _Reader) -> float:
    x, negative = 0.0, 0
    if src.fixed(1):
        negative = src.fixed(1)
        m = 2 * src.gamma(1 << 52) - 1
        z = src.gamma(4096) - 1
        e = z // 2 if z % 2 == 0 else -(z + 1) // 2
        try:
            x = math.ldexp(m, e)
        except OverflowError as error:
            raise CodeError(f"the code holds {m} * 2**{e}, which is no float64") from error
        if x == 0 or _dyadic(x) != (m, e):
            raise CodeError(f"the code holds {m} * 2**{e}, which is no float64")
    return -x if negative else x


_RAW = {"float16": (16, "e", "H"), "float32": (32, "f", "I"), "float64": (64, "d", "Q")}


def _fits(values: np.ndarray, name: str) -> bool:
    if name == "dyadic":
        # a negative zero has no dyadic code word of its own
        return not bool((np.signbit(values) & (values == 0)).any())
    if name == "float64":
        return True
    with np.errstate(over="ignore"):
        return bool((values.astype(name).astype(np.float64) == values).all())


def _real_bits(values: np.ndarray, name: str) -> int:
    if name == "dyadic":
        return _dyadic_bits(values)
    return _RAW[name][0] * values.size


def _best_real_code(values: np.ndarray) -> int:
    lengths = [(_REAL_CODE_BITS[i] + _real_bits(values, n), i) for i, n in enumerate(_REAL_CODES) if _fits(values, n)]
    return min(lengths)[1]


def _write_float(out: _Writer, x: float, name: str) -> None:
    width, floating, integer = _RAW[name]
    out.fixed(struct.unpack(f">{integer}", struct.pack(f">{floating}", x))[0], width)


def _read_float(src: _Reader, name: str) -> float:
    width, floating, integer = _RAW[name]
    return float(struct.unpack(f">{floating}", struct.pack(f">{integer}", src.fixed(width)))[0])


def _write_reals(out: _Writer, values: np.ndarray) -> None:
    code = _best_real_code(values)
    out.bits.append(("0", "10", "110", "111")[code])
    for x in values:
        if code == 0:
            _write_dyadic(out, float(x))
        else:
            _write_float(out, float(x), _REAL_CODES[code])


def _read_reals(src: _Reader, n: int) -> np.ndarray:
    code = 0
    while code < 3 and src.fixed(1):
        code += 1
    values = np.empty(n)
    for i in range(n):
        if code == 0:
            values[i] = _read_dyadic(src)
        else:
            values[i] = _read_float(src, _REAL_CODES[code])
    if not np.isfinite(values).all():
        raise CodeError("the code holds a number that is not finite")
    if n and code != _best_real_code(values):
        raise CodeError(f"the code writes its numbers as {_REAL_CODES[code]}, though a shorter way exists")
    return values


def _reals_length(values: np.ndarray) -> int:
    code = _best_real_code(values)
    return _REAL_CODE_BITS[code] + _real_bits(values, _REAL_CODES[code])


# ------------------------------------------------------------------------------------------------ combinatorics


def rank_combination(cells: Sequence[int]) -> int:
    """Rank of an increasing k-subset in colexicographic order: sum of C(c_i, i+1).

    >>> [rank_combination(c) for c in [(0, 1), (0, 2), (1, 2), (0, 3)]]
    [0, 1, 2, 3]
    """
    return sum(math.comb(int(c), i + 1) for i, c in enumerate(cells))


def unrank_combination(rank: int, n: int, k: int) -> list[int]:
    """The k-subset of range(n) with a given rank; the inverse of `rank_combination`.

    >>> unrank_combination(3, 4, 2)
    [0, 3]
    """
    out: list[int] = []
    c = n - 1
    choose = math.comb(c, k) if k else 0
    for i in range(k, 0, -1):
        while choose > rank:
            # C(c-1, i) = C(c, i) (c-i) / c
            choose = choose * (c - i) // c
            c -= 1
        out.append(c)
        rank -= choose
        # from C(c, i) to C(c-1, i-1) = C(c, i) i / c, the next position lies below c
        choose = choose * i // c if c else 0
        c -= 1
        if i > 1 and choose == 0 and c >= 0:
            choose = math.comb(c, i - 1)
    return out[::-1]


def _arrangements(counts: Sequence[int]) -> int:
    total, out = 0, 1
    for n in counts:
        total += n
        out *= math.comb(total, n)
    return out


def _write_arrangement(symbols: np.ndarray, size: int) -> int:
    """Rank of a sequence among all sequences with the same symbol counts, as a mixed radix of subset ranks."""
    rank, radix = 0, 1
    for symbol in range(size - 1, 0, -1):
        keep = symbols <= symbol
        symbols = symbols[keep]
        where = np.flatnonzero(symbols == symbol)
        rank += rank_combination(where.tolist()) * radix
        radix *= math.comb(symbols.size, where.size)
    return rank


def _read_arrangement(rank: int, counts: Sequence[int]) -> np.ndarray:
    size = len(counts)
    places: list[list[int]] = []
    for symbol in range(size - 1, 0, -1):
        below = sum(counts[: symbol + 1])
        radix = math.comb(below, counts[symbol])
        rank, digit = divmod(rank, radix)
        places.append(unrank_combination(digit, below, counts[symbol]))
    out = np.zeros(counts[0], dtype=np.int64)
    for symbol in range(1, size):
        where = places[size - 1 - symbol]
        merged = np.full(out.size + len(where), -1, dtype=np.int64)
        merged[where] = symbol
        merged[merged < 0] = out
        out = merged
    return out


# ------------------------------------------------------------------------------------------------ the codes


def _typed_extra(n: int, size: int) -> int:
    """Bits of the symbol counts of n symbols: each count but the last, uniform over 0..n."""
    return (size - 1) * _width(n + 1)


class EnumerativeCode:
    """The project's code: exact to the bit, one integer for everything that is uniform."""

    name = "enumerative"

    def encode(self, edit: Edit, layout: Layout) -> Encoded:
        """The code word of an edit for a layout.

        >>> from retarget.agents.tabular import TablePolicy
        >>> agent = TablePolicy.from_actions([0] * 100, n_actions=4)
        >>> edit = Edit.of(agent, Sparse("policy", [17], [3]))
        >>> word = ENUMERATIVE.encode(edit, agent.layout)
        >>> word.n_bits, len(word.data)
        (14, 2)
        >>> ENUMERATIVE.decode(word.data, agent.layout, agent_digest=agent.digest) == edit
        True
        """
        edit.check(layout)
        out = _Writer()
        chosen = [i for i, p in enumerate(layout) if p.name in edit.parts_touched]
        out.gamma(_one_first(len(chosen)))
        out.fixed(rank_combination(chosen), _width(math.comb(len(layout), len(chosen))))
        for patch in edit.patches:
            self._write_patch(out, patch, next(p for p in layout if p.name == patch.part))
        return out.done()

    def length(self, edit: Edit, layout: Layout) -> int:
        """Bits of the code word, without making it."""
        edit.check(layout)
        m = len(edit.patches)
        bits = _gamma_bits(_one_first(m)) + _width(math.comb(len(layout), m))
        radix = 1
        for patch in edit.patches:
            extra, r = self._patch_cost(patch, next(p for p in layout if p.name == patch.part))
            bits += extra
            radix *= r
        return bits + _width(radix)

    # The two halves below mirror each other; a law holds `length` to `encode`.

    def _patch_cost(self, patch: Patch, layout: PartLayout) -> tuple[int, int]:
        header, radix = _width(len(KINDS)), 1
        if isinstance(patch, Sparse):
            k = patch.n_cells
            bits, values_radix = self._values_cost(patch.value, layout.alphabet)
            header += _gamma_bits(k) + bits
            radix = math.comb(layout.n_cells, k) * values_radix
        elif isinstance(patch, Slot):
            k = patch.n_cells
            value = patch.value if k else np.zeros(0, layout.alphabet.dtype)
            bits, values_radix = self._values_cost(value, layout.alphabet)
            rest_bits, rest_radix = self._rest_cost(patch.rest, layout.alphabet)
            header += _gamma_bits(_one_first(k)) + bits + rest_bits
            radix = math.comb(layout.n_cells, k) * values_radix * rest_radix
        elif isinstance(patch, Dense):
            bits, radix = self._values_cost(patch.value.reshape(-1), layout.alphabet)
            header += bits
        elif isinstance(patch, LowRank):
            header += _gamma_bits(patch.left.shape[1])
            header += _reals_length(_factors(patch))
        return header, radix

    def _write_patch(self, out: _Writer, patch: Patch, layout: PartLayout) -> None:
        out.fixed(KINDS.index(type(patch)), _width(len(KINDS)))
        if isinstance(patch, Sparse):
            out.gamma(patch.n_cells)
            self._write_values(out, patch.value, layout.alphabet)
            out.digit(rank_combination(patch.index.tolist()), math.comb(layout.n_cells, patch.n_cells))
        elif isinstance(patch, Slot):
            out.gamma(_one_first(patch.n_cells))
            if isinstance(layout.alphabet, Categorical):
                out.digit(int(patch.rest), layout.alphabet.size)
            else:
                _write_dyadic(out, patch.rest)
            self._write_values(out, patch.value, layout.alphabet)
            out.digit(rank_combination(patch.index.tolist()), math.comb(layout.n_cells, patch.n_cells))
        elif isinstance(patch, Dense):
            self._write_values(out, patch.value.reshape(-1), layout.alphabet)
        elif isinstance(patch, LowRank):
            out.gamma(patch.left.shape[1])
            _write_reals(out, _factors(patch))

    def _rest_cost(self, rest: float, alphabet: Alphabet) -> tuple[int, int]:
        return (0, alphabet.size) if isinstance(alphabet, Categorical) else (_dyadic_bits(np.array([rest])), 1)

    def _values_cost(self, value: np.ndarray, alphabet: Alphabet) -> tuple[int, int]:
        """Header bits and payload radix of a list of values, in the shorter sub-code."""
        if value.size == 0:
            return 0, 1
        if not isinstance(alphabet, Categorical):
            return _reals_length(value), 1
        if alphabet.size == 1:
            return 0, 1
        uniform, typed, counts = self._categorical_options(value, alphabet.size)
        if typed is None or counts is None:
            return 1, uniform
        return 1 + _typed_extra(value.size, alphabet.size), typed

    def _categorical_options(self, value: np.ndarray, size: int) -> tuple[int, int | None, list[int] | None]:
        uniform = size**value.size
        # counts of more symbols than cells never pay; deciding by size alone keeps both sides in step
        if size > value.size:
            return uniform, None, None
        counts = np.bincount(value, minlength=size).tolist()
        typed = _arrangements(counts)
        if _typed_extra(value.size, size) + _width(typed) < _width(uniform):
            return uniform, typed, counts
        return uniform, None, None

    def _write_values(self, out: _Writer, value: np.ndarray, alphabet: Alphabet) -> None:
        if value.size == 0:
            return
        if not isinstance(alphabet, Categorical):
            _write_reals(out, value)
            return
        if alphabet.size == 1:
            return
        uniform, typed, counts = self._categorical_options(value, alphabet.size)
        out.fixed(int(typed is not None), 1)
        if typed is None or counts is None:
            out.digit(_positional(value.tolist(), alphabet.size), uniform)
            return
        for n in counts[:-1]:
            out.fixed(n, _width(value.size + 1))
        out.digit(_write_arrangement(value, alphabet.size), typed)

    def decode(self, data: bytes, layout: Layout, *, agent_digest: str) -> Edit:
        """The edit that a byte string is the code of.

        Raises:
            CodeError: when the bytes are not exactly one code word.
        """
        src = _Reader(data)
        m = src.count(len(layout))
        if m > len(layout):
            raise CodeError(f"the code patches {m} parts, the layout has {len(layout)}")
        rank = src.fixed(_width(math.comb(len(layout), m)))
        if rank >= math.comb(len(layout), m):
            raise CodeError(f"the code names set {rank} of {m} parts, which does not exist")
        pending: list[_Pending] = []
        radices: list[int] = []
        for i in unrank_combination(rank, len(layout), m):
            pending.append(self._read_patch(src, layout[i], radices))
        digits = _payload(src, radices)
        src.done()
        patches: list[Patch] = []
        for make, n in pending:
            patches.append(make(digits[:n]))
            digits = digits[n:]
        edit = Edit(agent_digest, tuple(patches))
        edit.check(layout)
        return edit

    def _read_patch(self, src: _Reader, layout: PartLayout, radices: list[int]) -> _Pending:
        """Read a patch's header; return how to finish it from its payload digits, whose radices are appended."""
        kind = KINDS[src.fixed(_width(len(KINDS)))]
        name, cells = layout.name, layout.n_cells
        if kind is LowRank:
            if isinstance(layout.alphabet, Categorical) or len(layout.shape) != 2:
                raise CodeError(f"the code holds a low-rank patch, but part {name!r} is no real matrix")
            r = src.gamma(cells)
            a, b = layout.shape
            flat = _read_reals(src, r * (a + b))
            low = LowRank(name, flat[: r * a].reshape(a, r), flat[r * a :].reshape(b, r))
            return (lambda digits: low), 0
        if kind is Dense:
            value, n_values = self._read_values(src, cells, layout.alphabet, radices)
            return (lambda digits: Dense(name, value(digits).reshape(layout.shape))), n_values
        k = src.count(cells) if kind is Slot else src.gamma(cells)
        if k > cells:
            raise CodeError(f"the code names {k} cells, part {name!r} has {cells}")
        rest_digit = 0
        rest = 0.0
        if kind is Slot and isinstance(layout.alphabet, Categorical):
            radices.append(layout.alphabet.size)
            rest_digit = 1
        elif kind is Slot:
            rest = _read_dyadic(src)
        value, n_values = self._read_values(src, k, layout.alphabet, radices)
        radices.append(math.comb(cells, k))

        def finish(digits: Sequence[int]) -> Patch:
            index = np.array(unrank_combination(digits[rest_digit + n_values], cells, k), dtype=np.int64)
            values = value(digits[rest_digit:])
            if kind is Sparse:
                return Sparse(name, index, values)
            return Slot(name, float(digits[0]) if rest_digit else rest, index, values)

        return finish, rest_digit + n_values + 1

    def _read_values(
        self, src: _Reader, n: int, alphabet: Alphabet, radices: list[int]
    ) -> tuple[Callable[[Sequence[int]], np.ndarray], int]:
        if n == 0:
            return (lambda digits: np.zeros(0, alphabet.dtype)), 0
        if not isinstance(alphabet, Categorical):
            values = _read_reals(src, n)
            return (lambda digits: values), 0
        if alphabet.size == 1:
            return (lambda digits: np.zeros(n, np.int64)), 0
        size = alphabet.size
        if not src.fixed(1):
            radices.append(size**n)
            return (lambda digits: np.array(_positions(digits[0], size, n), dtype=np.int64)), 1
        if size > n:
            raise CodeError(f"the code counts {size} symbols of {n} cells, which is never shorter")
        counts = [src.fixed(_width(n + 1)) for _ in range(size - 1)]
        counts.append(n - sum(counts))
        if counts[-1] < 0:
            raise CodeError(f"the symbol counts of the code exceed its {n} cells")
        typed = _arrangements(counts)
        if _typed_extra(n, size) + _width(typed) >= _width(size**n):
            raise CodeError("the code counts its symbols, though writing them plainly is no longer")
        radices.append(typed)
        return (lambda digits: _read_arrangement(digits[0], counts)), 1


_Pending = tuple[Callable[[Sequence[int]], Patch], int]


def _positional(symbols: Sequence[int], base: int) -> int:
    """`sum(symbols[i] * base**i)`, by halves, so that long tables stay fast."""
    if len(symbols) <= 16:
        out = 0
        for s in reversed(symbols):
            out = out * base + int(s)
        return out
    half = len(symbols) // 2
    shift: int = base**half
    return _positional(symbols[:half], base) + _positional(symbols[half:], base) * shift


def _positions(value: int, base: int, n: int) -> list[int]:
    if n <= 16:
        out = []
        for _ in range(n):
            value, digit = divmod(value, base)
            out.append(digit)
        return out
    half = n // 2
    high, low = divmod(value, base**half)
    return _positions(low, base, half) + _positions(high, base, n - half)


def _payload(src: _Reader, radices: Sequence[int]) -> list[int]:
    total = math.prod(radices)
    value = src.fixed(_width(total))
    if value >= total:
        raise CodeError("the payload of the code is larger than the number of edits it can name")
    digits = []
    for radix in radices:
        value, digit = divmod(value, radix)
        digits.append(digit)
    return digits


_FORMATS = ("float16", "float32", "float64")
_RANK_BITS = 32


class FixedWidthCode:
    """A second, plainer code, to see whether an ordering depends on the first: every field has a fixed width.

    Two bits name the narrowest float format that holds all of the edit's real numbers. For each part: 3 bits for the
    kind of patch (0 for none); a count in `ceil(log2(N + 1))` bits, positions in `ceil(log2 N)` bits each, symbols in
    `ceil(log2 size)` bits each, real numbers in the width of the format.
    """

    name = "fixed_width"

    def encode(self, edit: Edit, layout: Layout) -> Encoded:
        edit.check(layout)
        out = _Writer()
        form = _narrowest(edit, layout)
        out.fixed(form, 2)
        for part in layout:
            patch = next((p for p in edit.patches if p.part == part.name), None)
            out.fixed(0 if patch is None else 1 + KINDS.index(type(patch)), 3)
            if patch is not None:
                self._write_patch(out, patch, part, form)
        return out.done()

    def _write_patch(self, out: _Writer, patch: Patch, layout: PartLayout, form: int) -> None:
        if isinstance(patch, LowRank):
            out.fixed(patch.left.shape[1], _RANK_BITS)
            self._write_values(out, _factors(patch), layout, form)
        elif isinstance(patch, Dense):
            self._write_values(out, patch.value.reshape(-1), layout, form)
        elif isinstance(patch, (Slot, Sparse)):
            if isinstance(patch, Slot):
                self._write_values(out, np.array([patch.rest]).astype(layout.alphabet.dtype), layout, form)
            out.fixed(patch.n_cells, _width(layout.n_cells + 1))
            for cell in patch.index.tolist():
                out.fixed(cell, _width(layout.n_cells))
            self._write_values(out, patch.value, layout, form)

    def _write_values(self, out: _Writer, values: np.ndarray, layout: PartLayout, form: int) -> None:
        if isinstance(layout.alphabet, Categorical):
            for v in values.tolist():
                out.fixed(int(v), _width(layout.alphabet.size))
        else:
            for x in values.tolist():
                _write_float(out, x, _FORMATS[form])

    def length(self, edit: Edit, layout: Layout) -> int:
        edit.check(layout)
        width = _RAW[_FORMATS[_narrowest(edit, layout)]][0]
        bits = 2 + 3 * len(layout)
        for patch in edit.patches:
            part = next(p for p in layout if p.name == patch.part)
            value = _width(part.alphabet.size) if isinstance(part.alphabet, Categorical) else width
            if isinstance(patch, Dense):
                bits += value * part.n_cells
            elif isinstance(patch, LowRank):
                bits += _RANK_BITS + value * patch.n_cells
            else:
                bits += _width(part.n_cells + 1) + patch.n_cells * (_width(part.n_cells) + value)
                bits += value if isinstance(patch, Slot) else 0
        return bits

    def decode(self, data: bytes, layout: Layout, *, agent_digest: str) -> Edit:
        src = _Reader(data)
        form = src.fixed(2)
        if form >= len(_FORMATS):
            raise CodeError(f"the code names float format {form}; formats are 0 to {len(_FORMATS) - 1}")
        patches: list[Patch] = []
        for part in layout:
            tag = src.fixed(3)
            if tag > len(KINDS):
                raise CodeError(f"the code holds a patch of kind {tag}; kinds are 1 to {len(KINDS)}")
            if tag:
                patches.append(self._read_patch(src, KINDS[tag - 1], part, form))
        src.done()
        edit = Edit(agent_digest, tuple(patches))
        edit.check(layout)
        if form != _narrowest(edit, layout):
            raise CodeError(f"the code writes its numbers as {_FORMATS[form]}, though a narrower format holds them")
        return edit

    def _read_patch(self, src: _Reader, kind: type[Patch], layout: PartLayout, form: int) -> Patch:
        if kind is LowRank:
            if isinstance(layout.alphabet, Categorical) or len(layout.shape) != 2:
                raise CodeError(f"the code holds a low-rank patch, but part {layout.name!r} is no real matrix")
            r = src.fixed(_RANK_BITS)
            a, b = layout.shape
            flat = self._read_values(src, r * (a + b), layout, form)
            return LowRank(layout.name, flat[: r * a].reshape(a, r), flat[r * a :].reshape(b, r))
        if kind is Dense:
            return Dense(layout.name, self._read_values(src, layout.n_cells, layout, form).reshape(layout.shape))
        rest = self._read_values(src, 1, layout, form)[0] if kind is Slot else 0.0
        k = src.fixed(_width(layout.n_cells + 1))
        if k > layout.n_cells:
            raise CodeError(f"the code names {k} cells, part {layout.name!r} has {layout.n_cells}")
        index = np.array([src.fixed(_width(layout.n_cells)) for _ in range(k)], dtype=np.int64)
        value = self._read_values(src, k, layout, form)
        return Sparse(layout.name, index, value) if kind is Sparse else Slot(layout.name, float(rest), index, value)

    def _read_values(self, src: _Reader, n: int, layout: PartLayout, form: int) -> np.ndarray:
        if isinstance(layout.alphabet, Categorical):
            width = _width(layout.alphabet.size)
            return np.array([src.fixed(width) for _ in range(n)], dtype=np.int64)
        return np.array([_read_float(src, _FORMATS[form]) for _ in range(n)], dtype=np.float64)


def _factors(patch: LowRank) -> np.ndarray:
    return np.concatenate([patch.left.reshape(-1), patch.right.reshape(-1)])


def _narrowest(edit: Edit, layout: Layout) -> int:
    """Index of the narrowest float format that holds every real number of an edit."""
    numbers = [np.zeros(0)]
    real = {p.name for p in layout if not isinstance(p.alphabet, Categorical)}
    for patch in edit.patches:
        if patch.part not in real:
            continue
        if isinstance(patch, LowRank):
            numbers.append(_factors(patch))
        elif isinstance(patch, (Dense, Slot, Sparse)):
            numbers.append(patch.value.reshape(-1))
            numbers += [np.array([patch.rest])] if isinstance(patch, Slot) else []
    values = np.concatenate(numbers)
    return next(i for i, name in enumerate(_FORMATS) if _fits(values, name))


ENUMERATIVE = EnumerativeCode()
FIXED_WIDTH = FixedWidthCode()


def edit_bits(edit: Edit, layout: Layout) -> int:
    """Length of an edit in the project's code, in bits: `ENUMERATIVE.length`."""
    return ENUMERATIVE.length(edit, layout)
