"""Laws of one-pass moments: any cut into batches, any order, any split into shards gives the two-pass result."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retarget.analysis.layers.moments import Gatherer, Moments, relabellings
from retarget.errors import LayersError
from retarget.rng import stream

Vectors = tuple[np.ndarray, np.ndarray, np.ndarray]


@st.composite
def samples(draw: st.DrawFn) -> Vectors:
    """Vectors `[N, d]`, labels and ranks of two classes; the mean may be 10^4 times the spread."""
    seed, d = draw(st.integers(0, 2**20)), draw(st.integers(1, 40))
    sizes = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    far = draw(st.sampled_from([0.0, 1.0, 1e4]))
    random = stream(seed, "sample", d, *sizes)
    label = random.permutation(np.repeat([0, 1], sizes))
    x = random.standard_normal((len(label), d)) * random.uniform(0.2, 2, d) + far * random.choice([-1, 1], d)
    rank = np.zeros(len(label), dtype=np.int64)
    for c in (0, 1):
        rank[label == c] = np.arange(sizes[c])
    return x, label, rank


def two_pass(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and scatter by their definition, in extended precision."""
    wide = x.astype(np.longdouble)
    mean = wide.mean(0)
    apart = wide - mean
    return mean.astype(np.float64), (apart[:, :, None] * apart[:, None, :]).sum(0).astype(np.float64)


def close(a: np.ndarray, b: np.ndarray, relative: float = 1e-10) -> bool:
    """Whether all entries agree relative to the largest one."""
    return bool(np.abs(a - b).max(initial=0.0) <= relative * np.abs(b).max(initial=0.0))


def gather(
    sample: Vectors, order: np.ndarray, cuts: list[int], *, n_groups: int = 1, swaps: np.ndarray | None = None
) -> Moments:
    x, label, rank = sample
    g = Gatherer(width=x.shape[1], n_groups=n_groups, relabellings=swaps)
    for part in np.split(order, sorted(c % (len(x) + 1) for c in cuts)):
        g.add(x[part], label=label[part], row=part, rank=rank[part])
    return g.done()


@given(samples(), st.lists(st.integers(0, 10**6), max_size=8), st.integers(1, 7), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_streaming_is_the_two_pass_result(sample: Vectors, cuts: list[int], n_groups: int, random: object) -> None:
    x, label, rank = sample
    order = list(range(len(x)))
    random.shuffle(order)  # type: ignore[attr-defined]
    m = gather(sample, np.array(order), cuts, n_groups=n_groups)
    assert m.scatter is not None
    for g in range(n_groups):
        for c in (0, 1):
            own = x[(label == c) & (rank % n_groups == g)]
            assert m.count[g, c] == len(own)
            if len(own):
                mean, scatter = two_pass(own)
                assert close(m.mean[g, c], mean, 1e-13)
                assert close(m.scatter[g, c], scatter) or len(own) == 1
            else:
                assert not m.mean[g, c].any() and not m.scatter[g, c].any()
    total = m.total()
    assert total.scatter is not None
    for c in (0, 1):
        mean, scatter = two_pass(x[label == c])
        assert close(total.mean[0, c], mean, 1e-13)
        assert close(total.scatter[0, c], scatter) or (label == c).sum() == 1
        assert (total.scatter[0, c] == total.scatter[0, c].T).all() or close(total.scatter[0, c], total.scatter[0, c].T)
    exact = two_pass(x[label == 1])[0] - two_pass(x[label == 0])[0]
    assert np.abs(m.difference - exact).max() <= 1e-11 * (1 + np.abs(x).max())


@given(samples(), st.lists(st.integers(0, 10**6), max_size=8))
@settings(max_examples=30, deadline=None)
def test_the_cut_into_batches_changes_no_bit(sample: Vectors, cuts: list[int]) -> None:
    order = np.arange(len(sample[0]))
    a, b = gather(sample, order, cuts, n_groups=3), gather(sample, order, [], n_groups=3)
    assert a.mean.tobytes() == b.mean.tobytes()
    assert a.scatter is not None and b.scatter is not None and a.scatter.tobytes() == b.scatter.tobytes()


@given(samples(), st.integers(0, 10**6), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_shards_merged_are_the_whole(sample: Vectors, cut: int, n_groups: int) -> None:
    x, label, _ = sample
    swaps = relabellings(tuple(int(c) for c in np.bincount(label, minlength=2)), n=5, seed=3)  # type: ignore[arg-type]
    order = np.arange(len(x))
    at = cut % (len(x) + 1)
    whole = gather(sample, order, [], n_groups=n_groups, swaps=swaps)
    merged = gather(sample, order[:at], [], n_groups=n_groups, swaps=swaps).merge(
        gather(sample, order[at:], [], n_groups=n_groups, swaps=swaps)
    )
    assert (whole.count == merged.count).all()
    assert close(merged.mean, whole.mean, 1e-13)
    assert whole.scatter is not None and merged.scatter is not None and close(merged.scatter, whole.scatter)
    assert whole.swapped is not None and merged.swapped is not None and close(merged.swapped, whole.swapped, 1e-12)
    assert (whole.swapped_count == merged.swapped_count).all()


@given(samples(), st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_swapping_labels_flips_the_difference_and_nothing_else(sample: Vectors, n_groups: int) -> None:
    x, label, rank = sample
    a = gather(sample, np.arange(len(x)), [], n_groups=n_groups)
    b = gather((x, 1 - label, rank), np.arange(len(x)), [], n_groups=n_groups)
    assert a.scatter is not None and b.scatter is not None
    assert (a.count == b.count[:, ::-1]).all() and (a.mean == b.mean[:, ::-1]).all()
    assert (a.scatter == b.scatter[:, ::-1]).all()
    assert np.allclose(a.difference, -b.difference, rtol=0, atol=1e-12 * (1 + np.abs(x).max()))


@given(samples())
@settings(max_examples=30, deadline=None)
def test_relabelled_sums_are_those_of_the_relabelled_rows(sample: Vectors) -> None:
    x, label, _ = sample
    swaps = relabellings(label, n=7, seed=1)
    assert (swaps.sum(1) == label.sum()).all()
    m = gather(sample, np.arange(len(x)), [3, 9], swaps=swaps)
    assert m.swapped is not None and m.swapped_count is not None
    for r in range(7):
        assert close(m.swapped[r], x[swaps[r]].astype(np.longdouble).sum(0).astype(np.float64), 1e-13)
        assert m.swapped_count[r] == label.sum()


def test_relabelled_differences_keep_their_digits_far_from_zero() -> None:
    """The sum of 4000 rows of size 10^4 has an error of about 10^-8 where it is taken about 0."""
    x = stream(0, "far").standard_normal((4000, 6)) + 1e4
    label = np.arange(4000) % 2
    swaps = relabellings(label, n=3, seed=0)
    m = Moments.of(x, label, relabellings=swaps)
    assert m.swapped is not None
    exact = np.stack([x[s].astype(np.longdouble).sum(0) for s in swaps])
    # nothing but the rounding of the result itself is left
    assert np.abs(m.swapped - exact).max() <= 1.01 * np.spacing(2000 * 1e4)


@given(st.integers(1, 30), st.integers(1, 8), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_pairs(n: int, d: int, seed: int) -> None:
    random = stream(seed, "pairs", n, d)
    a, b = random.standard_normal((2, n, d)) + 100.0
    order = random.permutation(2 * n)
    x, label, rank = np.concatenate([a, b])[order], np.repeat([0, 1], n)[order], np.tile(np.arange(n), 2)[order]
    m = Moments.of(x, label, rank=rank, paired=True)
    assert m.paired is not None and m.paired_sum is not None and m.paired_count == n
    assert np.allclose(m.paired, (b - a).T @ (b - a), rtol=1e-11, atol=1e-11)
    assert np.allclose(m.paired_sum / n, m.difference, rtol=1e-9, atol=1e-11)
    swaps = relabellings(label, n=9, seed=seed, ranks=rank)
    for chosen in swaps:
        assert sorted(rank[chosen]) == list(range(n)) and sorted(rank[~chosen]) == list(range(n))


def test_relabellings_are_a_function_of_seed_and_sizes_and_take_each_row_as_often() -> None:
    label = np.repeat([0, 1], [60, 40])
    a = relabellings((60, 40), n=2000, seed=5)
    assert (a == relabellings(label, n=2000, seed=5)).all()
    assert (a != relabellings((60, 40), n=2000, seed=6)).any()
    # 100 binomial shares of 2000 draws: standard error 0.011; 5 of them at 100 rows is a false alarm in 20 000
    assert np.abs(a.mean(0) - 0.4).max() < 5 * np.sqrt(0.4 * 0.6 / 2000)


def test_a_row_may_come_many_times_and_types_do_not_matter() -> None:
    x = stream(0, "tokens").standard_normal((30, 5)).astype(np.float16)
    label, row = np.repeat([0, 1], 15), np.repeat(np.arange(10), 3)
    swaps = relabellings((5, 5), n=4, seed=0)
    m = Moments.of(x, label, row=row, rank=row % 5, n_groups=5, relabellings=swaps)
    assert (m.count == 3).all() and m.swapped_count is not None and (m.swapped_count == 15).all()
    assert m.mean.dtype == np.float64
    assert np.allclose(m.difference, x[15:].astype(float).mean(0) - x[:15].astype(float).mean(0), rtol=1e-12)


def test_means_alone_and_nothing_after_the_result() -> None:
    x, label = np.arange(8.0).reshape(4, 2), np.array([0, 1, 0, 1])
    g = Gatherer(width=2, scatter=False)
    g.add(x, label=label, row=np.arange(4), rank=np.array([0, 0, 1, 1]))
    m = g.done()
    assert m.scatter is None and m.difference.tolist() == [2.0, 2.0] and m.mean[0, 1].tolist() == [4.0, 5.0]
    for again in (g.done, lambda: g.add(x, label=label, row=np.arange(4), rank=np.zeros(4, dtype=int))):
        with pytest.raises(LayersError, match="handed over already"):
            again()


def test_wide_moments_are_symmetric_and_right() -> None:
    x = stream(0, "wide").standard_normal((40, 150)) + 3
    m = Moments.of(x, np.repeat([0, 1], 20))
    assert m.scatter is not None and (m.scatter == np.swapaxes(m.scatter, -1, -2)).all()
    for c in (0, 1):
        assert close(m.scatter[0, c], two_pass(x[20 * c : 20 * c + 20])[1])


def _bad(x: np.ndarray, **changes: np.ndarray) -> None:
    g = Gatherer(width=2, relabellings=relabellings((1, 1), n=1, seed=0), paired="rank" in changes)
    rows = {"label": np.array([0, 1]), "row": np.array([0, 1]), "rank": np.array([0, 0])}
    g.add(x, **{**rows, **changes})


@pytest.mark.parametrize(
    ("x", "changes", "says"),
    [
        (np.array([[1.0, np.nan], [0, 0]]), {}, "row 0 is nan; float16 overflow"),
        (np.array([[1.0, 0], [0, -np.inf]], dtype=np.float16), {}, "row 1 is -inf"),
        (np.zeros((2, 3)), {}, r"\[B, 2\]"),
        (np.zeros((2, 2)), {"label": np.array([0, 2])}, "0 to 2"),
        (np.zeros((2, 2)), {"label": np.array([0.0, 1.0])}, "label must be int"),
        (np.zeros((2, 2)), {"row": np.array([0, 2])}, "row 2 is not among the 2"),
        (np.zeros((2, 2)), {"row": np.array([0, -1])}, "begin at 0"),
        (np.zeros((2, 2)), {"rank": np.array([0, 1])}, "rank 0 is torn apart"),
    ],
)
def test_bad_batches_say_what_is_wrong(x: np.ndarray, changes: dict[str, np.ndarray], says: str) -> None:
    with pytest.raises(LayersError, match=says):
        _bad(x, **changes)


def test_bad_shapes_say_what_is_wrong() -> None:
    a = Moments.of(np.zeros((2, 2)), np.array([0, 1]))
    with pytest.raises(LayersError, match="cannot be merged"):
        a.merge(Moments.of(np.zeros((2, 3)), np.array([0, 1])))
    with pytest.raises(LayersError, match="no scatter sums"):
        a.merge(Moments.of(np.zeros((2, 2)), np.array([0, 1]), scatter=False))
    with pytest.raises(LayersError, match=r"counts \[2, 0\]"):
        _ = Moments.of(np.zeros((2, 2)), np.array([0, 0])).difference
    with pytest.raises(LayersError, match="two classes with rows"):
        relabellings((3, 0), n=2, seed=0)
    with pytest.raises(LayersError, match="these ranks do not"):
        relabellings(np.array([0, 1, 1]), n=2, seed=0, ranks=np.array([0, 0, 1]))
    with pytest.raises(LayersError, match="width and n_groups"):
        Gatherer(width=0)
    with pytest.raises(LayersError, match="bool"):
        Gatherer(width=1, relabellings=np.zeros((1, 2)))
