"""Laws of the code: it decodes, its lengths are those of real bytes, and Kraft's inequality holds."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retarget.agent import Categorical, PartLayout, Real
from retarget.code import ENUMERATIVE, FIXED_WIDTH, rank_combination, unrank_combination
from retarget.edit import Dense, Edit, LowRank, Slot, Sparse
from retarget.errors import CodeError, EditError
from retarget.rng import stream
from retarget.testing import edits, layouts

CODES = (ENUMERATIVE, FIXED_WIDTH)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_edits_survive_and_lengths_are_those_of_the_bytes(data):
    layout = data.draw(layouts())
    edit = data.draw(edits(layout))
    for code in CODES:
        word = code.encode(edit, layout)
        assert len(word.data) == math.ceil(word.n_bits / 8)
        assert code.length(edit, layout) == word.n_bits
        assert code.decode(word.data, layout, agent_digest=edit.agent_digest) == edit


def _random_edit(rng, layout):
    patches = []
    for part in layout:
        kind = rng.integers(5)
        n = part.n_cells
        cells = np.sort(rng.choice(n, size=rng.integers(1, n + 1), replace=False))

        def values(k, part=part):
            if isinstance(part.alphabet, Categorical):
                # now and then very uneven symbols, where counting them is shorter
                spread = part.alphabet.size if rng.random() < 0.5 else min(2, part.alphabet.size)
                return rng.integers(spread, size=k)
            draw = rng.integers(3)
            if draw == 0:
                return rng.integers(-4, 5, size=k).astype(np.float64)
            return rng.normal(size=k) if draw == 1 else rng.normal(size=k).astype(np.float32).astype(np.float64)

        if kind == 1:
            patches.append(Sparse(part.name, cells, values(cells.size)))
        elif kind == 2:
            patches.append(Slot(part.name, float(abs(values(1)[0])), cells, values(cells.size)))
        elif kind == 3:
            patches.append(Dense(part.name, values(n).reshape(part.shape)))
        elif kind == 4 and isinstance(part.alphabet, Real) and len(part.shape) == 2:
            r = int(rng.integers(1, 3))
            left, right = (values(d * r).reshape(d, r) for d in part.shape)
            patches.append(LowRank(part.name, left, right))
    return Edit("d" * 32, tuple(patches))


def test_ten_thousand_edits_of_all_kinds_survive():
    rng = stream(0, "ten_thousand_edits")
    layout = (
        PartLayout("reward", (30,), Real()),
        PartLayout("matrix", (6, 4), Real()),
        PartLayout("policy", (50,), Categorical(5)),
        PartLayout("goal", (1,), Categorical(7)),
    )
    kinds = set()
    for _ in range(10_000):
        edit = _random_edit(rng, layout)
        kinds |= {p.kind for p in edit.patches}
        word = ENUMERATIVE.encode(edit, layout)
        assert word.n_bits == ENUMERATIVE.length(edit, layout) <= 8 * len(word.data) < word.n_bits + 8
        assert ENUMERATIVE.decode(word.data, layout, agent_digest="d" * 32) == edit
    assert kinds == {"sparse", "slot", "dense", "lowrank"}


def _all_edits(cells, size):
    layout = (PartLayout("t", (cells,), Categorical(size)),)
    symbols = range(size)
    for k in range(1, cells + 1):
        for index in itertools.combinations(range(cells), k):
            for value in itertools.product(symbols, repeat=k):
                yield layout, Edit("x", (Sparse("t", np.array(index), np.array(value)),))
    for k in range(cells + 1):
        for index in itertools.combinations(range(cells), k):
            for value in itertools.product(symbols, repeat=k):
                for rest in symbols:
                    yield layout, Edit("x", (Slot("t", rest, np.array(index, int), np.array(value, int)),))
    for value in itertools.product(symbols, repeat=cells):
        yield layout, Edit("x", (Dense("t", np.array(value)),))
    yield layout, Edit("x", ())


@pytest.mark.parametrize(("cells", "size"), [(1, 2), (3, 2), (4, 3), (5, 2), (2, 1)])
def test_kraft_over_all_edits_of_a_categorical_part_and_no_word_begins_another(cells, size):
    words = []
    for layout, edit in _all_edits(cells, size):
        word = ENUMERATIVE.encode(edit, layout)
        bits = format(int.from_bytes(word.data, "big"), f"0{8 * len(word.data)}b")[: word.n_bits] if word.data else ""
        words.append(bits)
    assert sum(Fraction(1, 2 ** len(w)) for w in words) <= 1
    ordered = sorted(words)
    assert len(set(ordered)) == len(ordered)
    assert not any(b.startswith(a) for a, b in itertools.pairwise(ordered))


def test_kraft_over_single_numbers_is_nearly_all_of_one_half():
    # every float16 as the value of one cell: distinct, prefix-free words
    layout = (PartLayout("r", (1,), Real()),)
    numbers = np.arange(2**16, dtype=np.uint16).view(np.float16)
    total = Fraction(0)
    for x in numbers[np.isfinite(numbers)].astype(np.float64):
        total += Fraction(1, 2 ** ENUMERATIVE.length(Edit("x", (Sparse("r", np.array([0]), np.array([x])),)), layout))
    assert 0 < total <= 1


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)))))
def test_combinations_have_consecutive_ranks(case):
    n, chosen = case
    cells = sorted(chosen)
    rank = rank_combination(cells)
    assert 0 <= rank < math.comb(n, len(cells))
    assert unrank_combination(rank, n, len(cells)) == cells


@settings(max_examples=300, deadline=None)
@given(layouts(), st.binary(max_size=40))
def test_any_bytes_are_an_edit_or_one_clear_error(layout, data):
    for code in CODES:
        try:
            edit = code.decode(data, layout, agent_digest="x")
        except (CodeError, EditError) as error:
            assert "\n" not in str(error)
            continue
        # what decodes is the code word of what it decodes to: no two strings for one edit
        assert code.encode(edit, layout).data == data


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_shortened_code_word_is_refused(data):
    layout = data.draw(layouts())
    edit = data.draw(edits(layout))
    word = ENUMERATIVE.encode(edit, layout)
    if word.n_bits > 8:
        with pytest.raises((CodeError, EditError)):
            ENUMERATIVE.decode(word.data[:-1], layout, agent_digest=edit.agent_digest)


@given(st.integers(2, 400), st.integers(2, 9), st.data())
def test_a_sparse_edit_costs_the_closed_form(n, size, data):
    # 1 bit for "one part", none for which of one, 2 for the kind, gamma(k), 1 for the sub-code, then the payload
    k = data.draw(st.integers(1, min(n, size - 1)))
    cells = np.array(sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=k, max_size=k))))
    layout = (PartLayout("t", (n,), Categorical(size)),)
    edit = Edit("x", (Sparse("t", cells, np.zeros(k, np.int64)),))
    payload = math.ceil(math.log2(math.comb(n, k) * size**k) - 1e-9)
    assert ENUMERATIVE.length(edit, layout) == 1 + 2 + (2 * k.bit_length() - 1) + 1 + payload


@given(st.integers(2, 60), st.integers(1, 200))
def test_dead_cells_cost_location_bits_only(n, dead):
    k = n // 2
    edit = Edit("x", (Sparse("t", np.arange(k), np.zeros(k, np.int64)),)) if k else Edit("x", ())
    short = ENUMERATIVE.length(edit, (PartLayout("t", (n,), Categorical(4)),))
    long = ENUMERATIVE.length(edit, (PartLayout("t", (n + dead,), Categorical(4)),))
    location = math.log2(math.comb(n + dead, k)) - math.log2(math.comb(n, k))
    assert abs((long - short) - location) < 1 + 1e-9


@pytest.mark.parametrize(
    ("patch", "words"),
    [
        (Sparse("q", np.array([9]), np.array([1.0])), "cell 9 is outside part 'q'"),
        (Sparse("q", np.array([1, 1]), np.array([1.0, 2.0])), "strictly increasing"),
        (Sparse("q", np.array([], int), np.array([])), "names no cell"),
        (Sparse("q", np.array([0]), np.array([np.nan])), "not finite"),
        (Sparse("t", np.array([0]), np.array([7])), "symbol 7 cannot be written"),
        (Dense("q", np.zeros((2, 2))), "needs shape (2, 3)"),
        (LowRank("t", np.zeros((2, 1)), np.zeros((3, 1))), "needs a real matrix"),
        (LowRank("q", np.zeros((2, 1)), np.zeros((2, 1))), "needs left [2, r] and right [3, r]"),
        (Slot("q", -0.0, np.array([0]), np.array([1.0])), "is -0.0"),
        (Slot("t", 0.5, np.array([0]), np.array([1])), "is no symbol"),
        (Sparse("z", np.array([0]), np.array([1.0])), "no part 'z'"),
    ],
)
def test_an_edit_that_does_not_fit_names_what_is_wrong(patch, words):
    layout = (PartLayout("q", (2, 3), Real()), PartLayout("t", (4,), Categorical(3)))
    with pytest.raises(EditError) as caught:
        ENUMERATIVE.encode(Edit("x", (patch,)), layout)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
