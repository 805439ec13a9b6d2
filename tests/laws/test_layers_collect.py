"""Laws of collecting: one pass gives what two passes over stored activations give, however the rows are cut."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retarget.analysis.layers.collect import collect
from retarget.analysis.layers.collected import Collected, Inputs, Labelled
from retarget.analysis.layers.models import ModuleModel
from retarget.analysis.layers.policies import ArrayInputs
from retarget.analysis.layers.positions import Positions
from retarget.analysis.layers.readable import Batch, Pass, Readable, Reader, Site, Write
from retarget.analysis.layers.steering import directions_of
from retarget.analysis.layers.tables import layer_tables
from retarget.errors import LayersError

torch.set_num_threads(1)
law = settings(max_examples=30, deadline=None)

WIDTH, VOCABULARY = 5, 11
HOOKS = ("first", "second")


@dataclass(frozen=True, eq=False)
class Echo(Readable):
    """A network whose vectors are known beforehand: two tables, looked up by token and shifted by place."""

    tables: np.ndarray

    @property
    def label(self) -> str:
        return "echo"

    @property
    def digest(self) -> str:
        return "0"

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(Site(h, i, "residual", self.tables.shape[2]) for i, h in enumerate(HOOKS))

    def site(self, hook: str) -> Site:
        return self.sites[HOOKS.index(hook)]

    def vectors(self, tokens: np.ndarray, hook: str) -> np.ndarray:
        """float64 `[..., T, d]`."""
        return self.tables[HOOKS.index(hook)][tokens] + np.arange(tokens.shape[-1])[:, None]

    def run(
        self,
        batch: Batch,
        *,
        read: Mapping[str, Reader] | None = None,
        write: Sequence[Write] = (),
        logits: bool = True,
    ) -> Pass:
        for hook, reader in (read or {}).items():
            reader(torch.tensor(self.vectors(batch.inputs, hook)))
        return Pass(None)


@dataclass(frozen=True, eq=False)
class Rows(Inputs):
    """Ragged rows of tokens: the negative ones first, in the order given or any other."""

    rows: tuple[np.ndarray, ...]
    sizes: tuple[int, int]
    order: np.ndarray

    @property
    def names(self) -> tuple[str, str]:
        return ("negative", "positive")

    @property
    def count(self) -> tuple[int, int]:
        return self.sizes

    def batches(self, size: int) -> Iterator[Labelled]:
        label, rank = np.repeat([0, 1], self.sizes), np.concatenate([np.arange(n) for n in self.sizes])
        for begin in range(0, len(self.order), size):
            chosen = self.order[begin : begin + size]
            length = np.array([len(self.rows[i]) for i in chosen])
            tokens = np.zeros((len(chosen), length.max()), dtype=np.int64)
            for i, row in enumerate(chosen):
                tokens[i, : length[i]] = self.rows[row]
            mask = np.arange(tokens.shape[1]) < length[:, None]
            yield Labelled(Batch(tokens, mask, np.maximum(length - 2, 0)), label[chosen], chosen, rank[chosen])


@st.composite
def rows(draw: st.DrawFn, most: int = 12) -> Rows:
    sizes = (draw(st.integers(1, most)), draw(st.integers(1, most)))
    made = tuple(
        np.array(draw(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=6))) for _ in range(sum(sizes))
    )
    return Rows(made, sizes, np.array(draw(st.permutations(range(sum(sizes))))))


def echo(seed: int = 0, offset: float = 0.0) -> Echo:
    return Echo(np.random.default_rng(seed).normal(size=(2, VOCABULARY, WIDTH)) + offset)


KINDS = st.one_of(
    st.builds(lambda n: Positions("last", n=n), st.integers(1, 4)),
    st.builds(lambda n: Positions("after_instruction", n=n), st.integers(1, 3)),
    st.builds(lambda t: Positions("token", token=t), st.integers(0, VOCABULARY - 1)),
    st.just(Positions("every")),
)


def chosen(row: np.ndarray, positions: Positions, label: str) -> list[int]:
    """Places in a row that belong to a label, in plain words."""
    if positions.kind == "every":
        return list(range(len(row)))
    if positions.kind == "token":
        return [i for i, t in enumerate(row) if t == positions.token][-1:]
    place = len(row) + int(label)
    first = max(len(row) - 2, 0) if positions.kind == "after_instruction" else 0
    return [place] if place >= first else []


@law
@given(rows(), KINDS, st.integers(1, 9), st.integers(1, 4), st.sampled_from([0.0, 1e4]))
def test_one_pass_equals_two_over_what_was_stored(
    inputs: Rows, positions: Positions, size: int, groups: int, offset: float
) -> None:
    model = echo(offset=offset)
    found = collect(model, inputs, positions=positions, batch_size=size, n_groups=groups, n_relabellings=3)
    label = np.repeat([0, 1], inputs.sizes)
    rank = np.concatenate([np.arange(n) for n in inputs.sizes])
    for (hook, place), moments in found.moments.items():
        stored: dict[tuple[int, int], list[np.ndarray]] = {}
        absent = [0, 0]
        for i, row in enumerate(inputs.rows):
            at = chosen(row, positions, place)
            absent[label[i]] += not at
            stored.setdefault((rank[i] % moments.n_groups, label[i]), []).extend(model.vectors(row, hook)[at])
        assert found.absent[place] == tuple(absent)
        assert moments.n_groups == min(groups, *inputs.sizes)
        for (g, c), vectors in stored.items():
            x = np.array(vectors).reshape(-1, WIDTH)
            assert moments.count[g, c] == len(x)
            if not len(x):
                continue
            scale = np.abs(x).max()
            np.testing.assert_allclose(moments.mean[g, c], x.mean(0), rtol=1e-10, atol=1e-10 * scale)
            spread = x - x.mean(0)
            assert moments.scatter is not None
            np.testing.assert_allclose(moments.scatter[g, c], spread.T @ spread, rtol=1e-10, atol=1e-10 * scale)


def same(a: Collected, b: Collected, tolerance: float = 1e-10) -> None:
    assert a.moments.keys() == b.moments.keys() and a.absent == b.absent and a.n_rows == b.n_rows
    for key, one in a.moments.items():
        other = b.moments[key]
        for name in ("count", "mean", "scatter", "swapped", "swapped_count", "paired", "paired_sum"):
            x, y = getattr(one, name), getattr(other, name)
            assert (x is None) == (y is None)
            if x is not None:
                np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance * max(1.0, np.abs(y).max()))


@law
@given(rows(), KINDS, st.integers(1, 9), st.integers(1, 9), st.randoms(use_true_random=False))
def test_neither_the_batch_size_nor_the_order_of_rows_changes_anything(
    inputs: Rows, positions: Positions, one: int, other: int, random: object
) -> None:
    order = inputs.order.copy()
    random.shuffle(order)  # type: ignore[attr-defined]
    a = collect(echo(), inputs, positions=positions, batch_size=one, n_relabellings=5)
    b = collect(echo(), replace(inputs, order=order), positions=positions, batch_size=other, n_relabellings=5)
    same(a, b)


@law
@given(rows(), st.integers(1, 9))
def test_labels_swapped_turn_the_difference_and_nothing_else(inputs: Rows, size: int) -> None:
    n = inputs.sizes
    back = Rows((*inputs.rows[n[0] :], *inputs.rows[: n[0]]), (n[1], n[0]), inputs.order)
    a, b = (collect(echo(), i, batch_size=size, n_relabellings=0, n_groups=2) for i in (inputs, back))
    for key, one in a.moments.items():
        other = b.moments[key]
        np.testing.assert_allclose(one.difference, -other.difference, atol=1e-12)
        np.testing.assert_allclose(one.mean[:, ::-1], other.mean, atol=1e-12)
        assert one.scatter is not None and other.scatter is not None
        np.testing.assert_allclose(one.scatter[:, ::-1], other.scatter, atol=1e-9)


@law
@given(st.integers(1, 10), st.integers(2, 9), st.integers(1, 6), st.integers(0, 2**31))
def test_a_network_in_float64_gives_the_same_on_any_batches(n: int, size: int, other: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 4)).double()
    model = ModuleModel.of(net, sites=["1", "2"], example=np.zeros((1, 3)))
    inputs = ArrayInputs(rng.normal(size=(n, 3)), rng.normal(size=(n, 3)) + 1, paired=True)
    a = collect(model, inputs, batch_size=size, paired=True, n_relabellings=4)
    same(a, collect(model, inputs, batch_size=other + 1, paired=True, n_relabellings=4))
    with torch.no_grad():
        x, y = (torch.tanh(net[0](torch.tensor(v))).numpy() for v in (inputs.positive, inputs.negative))
    moments = a.moments["1", "-1"]
    assert moments.paired is not None and moments.paired_sum is not None and moments.paired_count == n
    np.testing.assert_allclose(moments.difference, x.mean(0) - y.mean(0), atol=1e-12)
    np.testing.assert_allclose(moments.paired, (x - y).T @ (x - y), atol=1e-10)


def test_of_a_pair_that_lacks_a_position_both_are_left_out() -> None:
    made = tuple(np.arange(1, 1 + n) for n in (3, 1, 3, 3, 3, 1))
    inputs = Rows(made, (3, 3), np.array([0, 3, 1, 4, 2, 5]))
    found = collect(echo(), inputs, positions=Positions("last", n=2), paired=True, batch_size=2, n_relabellings=2)
    moments = found.moments["first", "-2"]
    assert found.absent == {"-2": (2, 2), "-1": (0, 0)}
    assert moments.count.sum() == 2 and moments.paired_count == 1
    with pytest.raises(LayersError, match="torn apart"):
        collect(echo(), inputs, paired=True, batch_size=3)


def many(n: int, length: int = 4) -> Rows:
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (2 * n, length))
    return Rows(tuple(tokens), (n, n), np.arange(2 * n))


def test_fewer_groups_where_memory_is_short_and_an_error_where_there_is_none() -> None:
    model, inputs = Echo(np.zeros((2, VOCABULARY, 64))), many(40)
    whole = collect(model, inputs, n_relabellings=0, n_groups=20)
    assert {m.n_groups for m in whole.moments.values()} == {20}
    # two places, two classes, 64 x 64 numbers of 8 bytes, and what waits
    group, other = 2 * 2 * 64 * (64 + 17 + 1) * 8, 2 * 64 * 256 * 8
    for limit, groups in ((20 * group + other, 20), (7 * group + other + 9, 7), (group + other, 1)):
        found = collect(model, inputs, n_relabellings=0, n_groups=20, memory_limit_bytes=limit)
        assert {m.n_groups for m in found.moments.values()} == {groups}
    need = group + other
    with pytest.raises(LayersError, match=rf"take {need} bytes, the limit is {need - 1}; read fewer places"):
        collect(model, inputs, n_relabellings=0, memory_limit_bytes=need - 1)
    means = collect(model, inputs, n_relabellings=0, memory_limit_bytes=need - 1, scatter=False)
    assert all(m.scatter is None for m in means.moments.values())
    np.testing.assert_array_equal(means.moments["first", "-1"].mean.shape[1:], (2, 64))


def test_memory_does_not_grow_with_the_number_of_rows() -> None:
    model, peaks = Echo(np.zeros((2, VOCABULARY, 32))), []
    for n in (100, 100, 400, 1600):  # the first warms up
        inputs = many(n)
        tracemalloc.start()
        collect(model, inputs, n_relabellings=0, positions=Positions("every"), batch_size=8)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    grown = [b - a for a, b in pairwise(peaks[1:])]
    # a few whole numbers a row, where storing one place would take 1024 bytes a row
    assert max(grown) < 64 * 2 * 1200
    assert grown[1] < 1024 * 1200 / 4


def test_progress_is_told_and_places_come_in_order() -> None:
    told: list[tuple[int, int]] = []
    found = collect(
        echo(), many(5), batch_size=4, sites=["second", "first", "second"], progress=lambda *n: told.append(n)
    )
    assert told == [(4, 10), (8, 10), (10, 10)]
    assert [s.hook for s in found.sites] == ["first", "second"]
    assert (found.model, found.contrast, found.positions) == ("echo", "positive - negative", ("-1",))
    seeds = [collect(echo(), many(5), seed=s).moments["first", "-1"].swapped for s in (0, 0, 1)]
    np.testing.assert_array_equal(seeds[0], seeds[1])
    assert not np.array_equal(seeds[0], seeds[2])


@dataclass(frozen=True, eq=False)
class Single(Echo):
    """An echo whose forward pass is in float32, or another precision."""

    dtype: torch.dtype = torch.float32

    def run(
        self,
        batch: Batch,
        *,
        read: Mapping[str, Reader] | None = None,
        write: Sequence[Write] = (),
        logits: bool = True,
    ) -> Pass:
        for hook, reader in (read or {}).items():
            reader(torch.tensor(self.vectors(batch.inputs, hook)).to(self.dtype))
        return Pass(None)


EVEN = Rows(tuple(np.array([i % VOCABULARY]) for i in range(40)), (20, 20), np.arange(40))


@pytest.mark.parametrize("scatter", [True, False])
@given(st.integers(0, 2**31))
@settings(max_examples=10, deadline=None)
def test_what_float32_rounds_is_no_difference(scatter: bool, seed: int) -> None:
    random = np.random.default_rng(seed)
    # a unit in the last place or two of a vector that all tokens share
    shared = random.normal(size=(2, 1, 64))
    tables = shared * (1 + random.integers(-2, 3, (2, VOCABULARY, 64)) * 2.0**-23)
    found = collect(Single(tables), EVEN, n_relabellings=30, n_groups=5, scatter=scatter)
    assert found.epsilon == 2.0**-23
    assert all(np.linalg.norm(m.difference) > 0 for m in found.moments.values())
    assert not directions_of(found)
    tables_ = layer_tables(found, k=2)
    for row in tables_.layers.iter_rows(named=True):
        assert row["diff_norm"] == 0.0 and row["diff_signal"] is None and row["pc1_cos"] is None
        assert row["diff_p"] is None and row["pc1_p"] is None and row["reason"]
    assert tables_.onsets["onset"].to_list() == [None]
    # the same numbers of a float64 pass are no rounding
    assert len(directions_of(collect(Echo(tables), EVEN, n_relabellings=0, n_groups=5, scatter=scatter))) == 2


@pytest.mark.parametrize("spread", [0.0, 1e-6, 1e-3, 0.5])
def test_a_difference_of_a_thousandth_in_float32_stays(spread: float) -> None:
    random = np.random.default_rng(3)
    shared, axis = random.normal(size=(2, 1, 64)), random.normal(size=64)
    rms = np.linalg.norm(shared[0, 0])
    tables = shared + spread * random.normal(size=(2, 40, 64))
    tables[:, 20:] += 1e-3 * rms * axis / np.linalg.norm(axis)
    inputs = Rows(tuple(np.array([i]) for i in range(40)), (20, 20), np.arange(40))
    found = collect(Single(tables), inputs, n_relabellings=30, n_groups=5)
    assert len(directions_of(found)) == 2
    rows = layer_tables(found, k=2).layers
    assert rows["diff_p"].null_count() == 0 and rows["diff_norm"].min() > 0.5e-3 * rms
    # within classes that differ by rounding only there is nothing to hold it against
    assert rows["diff_signal"].null_count() == (2 if spread < 1e-5 else 0)


def test_a_small_difference_among_rows_that_vary_is_left_to_its_p_value() -> None:
    random = np.random.default_rng(5)
    inputs = Rows(tuple(np.array([i]) for i in range(40)), (20, 20), np.arange(40))
    for dtype, shift in ((torch.float32, 1e-6), (torch.bfloat16, 0.1)):
        half = random.normal(size=(2, 20, 64))
        tables = np.concatenate([half, half + shift], axis=1)
        found = collect(Single(tables, dtype), inputs, n_relabellings=30, n_groups=5)
        assert found.epsilon == torch.finfo(dtype).eps
        assert layer_tables(found, k=2).layers["diff_norm"].min() > 0 and len(directions_of(found)) == 2


def test_the_epsilon_is_known_at_every_position_and_in_float64() -> None:
    inputs = many(5)
    assert collect(echo(), inputs).epsilon == np.finfo(np.float64).eps
    single = Single(echo().tables)
    assert collect(single, inputs, positions=Positions("every")).epsilon == np.finfo(np.float32).eps
