"""The layerwise statistics against rows taken by hand, dense solvers, and known populations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import subspace_angles

from retarget.analysis.layers.expected import expected_cos, gaussian_expectation
from retarget.analysis.layers.moments import Moments, relabellings
from retarget.analysis.layers.nulls import component_null, difference_null, rank_one_cosines
from retarget.analysis.layers.onset import find_onset
from retarget.analysis.layers.overlaps import subspace_overlap, subspace_without
from retarget.analysis.layers.resample import Replicates, cos_of, fisher, group_weights, resample, weighted
from retarget.analysis.layers.separable import probe, silhouette
from retarget.analysis.layers.spectrum import Pooling, leading, participation_ratio, pooled
from retarget.errors import LayersError
from retarget.rng import stream


def classes(
    n_negative: int, n_positive: int, d: int, *, distance: float = 0.0, seed: int = 0, spread: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Two Gaussian classes, a given distance apart along the first axis; rows in random order."""
    random = stream(seed, "classes", n_negative, n_positive, d)
    label = random.permutation(np.repeat([0, 1], [n_negative, n_positive]))
    x = random.standard_normal((len(label), d)) * (np.ones(d) if spread is None else spread)
    x[:, 0] += distance * label
    return x, label


def by_rows(x: np.ndarray, label: np.ndarray, pooling: str) -> tuple[np.ndarray, np.ndarray]:
    """(covariance, difference) of rows, by NumPy's own covariance."""
    a, b = x[label == 0], x[label == 1]
    difference = b.mean(0) - a.mean(0)
    within = (np.cov(a.T, bias=True) + np.cov(b.T, bias=True)).reshape(x.shape[1], -1) / 2
    return within + (np.outer(difference, difference) / 4 if pooling == "balanced" else 0), difference


# --- components ---------------------------------------------------------------------------------------------------


@given(st.integers(2, 60), st.integers(2, 12), st.integers(0, 10**6), st.sampled_from(["within", "balanced"]))
@settings(max_examples=40, deadline=None)
def test_pooled_covariances_are_numpys(n: int, d: int, seed: int, pooling: Pooling) -> None:
    x, label = classes(n, n + 3, d, distance=2.0, seed=seed)
    expected, difference = by_rows(x, label, pooling)
    m = Moments.of(x, label, n_groups=3)
    assert np.allclose(pooled(m, pooling), expected, rtol=0, atol=1e-12 * max(1.0, np.abs(expected).max()))
    assert np.allclose(m.difference, difference, rtol=0, atol=1e-12)
    if pooling == "balanced" and n > 2:
        same, equal = classes(n, n, d, distance=2.0, seed=seed)
        assert np.allclose(pooled(Moments.of(same, equal), "balanced"), np.cov(same.T, bias=True), atol=1e-11)


@pytest.mark.parametrize(("n", "d"), [(30, 5), (30, 80), (200, 150), (300, 400), (900, 400), (60, 400)])
@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_leading_components_are_those_of_a_singular_value_decomposition(n: int, d: int, decay: float) -> None:
    x = stream(0, "svd", n, d).standard_normal((n, d)) * (1.0 + np.arange(d)) ** -decay
    x -= x.mean(0)
    _, s, vt = np.linalg.svd(x, full_matrices=False)
    found = leading(x.T @ x, 5, n_rows=n)
    assert found is not None and found.clear.all()
    assert np.allclose(found.values, s[:5] ** 2, rtol=1e-9)
    assert np.abs(found.vectors - vt[:5].T @ (vt[:5] @ found.vectors)).max() < 1e-5
    assert np.allclose(np.abs((vt[:5] * found.vectors.T).sum(1)), 1.0, atol=1e-7)
    assert np.allclose(found.explained, s[:5] ** 2 / (s**2).sum(), rtol=1e-9)
    again = leading(x.T @ x, 5, n_rows=n)
    assert again is not None and again.vectors.tobytes() == found.vectors.tobytes()
    assert (found.vectors[np.abs(found.vectors).argmax(0), np.arange(5)] > 0).all()


def test_wide_matrices_with_shared_eigenvalues_or_low_rank_are_solved_too() -> None:
    d = 400
    same = leading(np.eye(d) + np.diag([3.0] + [0.0] * (d - 1)), 3)
    assert same is not None and np.allclose(same.values, [4, 1, 1]) and same.clear.tolist() == [True, False, False]
    x = stream(0, "low rank").standard_normal((3, d))
    low = leading(x.T @ x, 5)
    assert low is not None and low.clear.tolist() == [True] * 3 + [False] * 2
    twice = leading(np.diag([2.0, 2.0] + [1.0 / (i + 2) for i in range(d - 2)]), 1)
    assert twice is not None and not twice.clear[0]
    assert leading(np.zeros((3, 3)), 1) is None
    with pytest.raises(LayersError, match="square"):
        leading(np.zeros((3, 2)), 1)
    with pytest.raises(LayersError, match="not finite"):
        leading(np.full((2, 2), np.nan), 1)


def test_participation_ratio_of_known_spectra() -> None:
    assert participation_ratio(np.diag([4.0, 4, 4, 0]) * 1e-200) == pytest.approx(3.0)
    assert participation_ratio(np.diag([2.0, 1.0])) == pytest.approx(9 / 5)
    assert participation_ratio(np.zeros((2, 2))) is None


# --- nulls --------------------------------------------------------------------------------------------------------


@given(st.integers(1, 12), st.integers(0, 10**6), st.floats(-9, 3), st.booleans())
@settings(max_examples=80, deadline=None)
def test_rank_one_changes_are_those_of_a_dense_solver(d: int, seed: int, size: float, up: bool) -> None:
    random = stream(seed, "rank one", d)
    values = np.sort(random.exponential(size=d) + 0.01)[::-1]
    z = random.standard_normal(d)
    # downwards no further than to a matrix without negative eigenvalues
    c = 10.0**size if up else -random.uniform(0, 1) / float((z**2 / values).sum())
    _, v = np.linalg.eigh(np.diag(values) + c * np.outer(z, z))
    direct = np.abs(v[:, ::-1].T @ z) / np.linalg.norm(z)
    assert np.allclose(rank_one_cosines(values, z[None], np.array([c]), d)[0], direct, atol=1e-7)


@pytest.mark.parametrize("sizes", [(20, 20), (10, 30)])
@pytest.mark.parametrize("pooling", ["balanced", "within"])
@pytest.mark.parametrize("d", [6, 60])
def test_the_null_is_what_relabelled_rows_give(sizes: tuple[int, int], pooling: Pooling, d: int) -> None:
    x, label = classes(*sizes, d, distance=1.5, seed=d, spread=np.linspace(2, 0.5, d))
    swaps = relabellings(label, n=25, seed=2)
    m = Moments.of(x + 50.0, label, n_groups=4, relabellings=swaps)
    found = component_null(m, 3, pooling)
    lengths = difference_null(m)
    assert found is not None and lengths is not None
    for chosen, row, length in zip(
        [label == 1, *swaps],
        [found.observed, *found.drawn],
        [lengths.observed[0], *lengths.drawn[:, 0]],
        strict=True,
    ):
        a, b = x[~chosen], x[chosen]
        difference = b.mean(0) - a.mean(0)
        apart = np.concatenate([a - a.mean(0), b - b.mean(0)])
        matrix = apart.T @ apart / len(x) + (np.outer(difference, difference) / 4 if pooling == "balanced" else 0)
        _, v = np.linalg.eigh(matrix)
        direct = np.abs(v[:, ::-1][:, :3].T @ difference) / np.linalg.norm(difference)
        assert np.allclose(row, direct, atol=1e-7)
        assert length == pytest.approx(float(np.linalg.norm(difference)), rel=1e-10)


def test_pairs_are_relabelled_within_pairs() -> None:
    x, label = classes(15, 15, 5, distance=1.0, seed=1)
    rank = np.zeros(30, dtype=int)
    for c in (0, 1):
        rank[label == c] = np.arange(15)
    swaps = relabellings(label, n=12, seed=0, ranks=rank)
    m = Moments.of(x, label, rank=rank, relabellings=swaps, paired=True)
    found = component_null(m, 2, "paired")
    assert found is not None
    pairs = np.stack([x[(rank == r) & (label == 1)][0] - x[(rank == r) & (label == 0)][0] for r in range(15)])
    _, v = np.linalg.eigh(pairs.T @ pairs)
    for chosen, row in zip(swaps, found.drawn, strict=True):
        difference = x[chosen].mean(0) - x[~chosen].mean(0)
        assert np.allclose(row, np.abs(v[:, ::-1][:, :2].T @ difference) / np.linalg.norm(difference), atol=1e-9)


def test_p_values_raise_false_alarms_as_often_as_they_say() -> None:
    """200 data sets without a difference, unequal classes, 39 relabellings: p <= 0.1 in 10%, so that the count has
    mean 20 and standard deviation 4.2; outside 6 to 34 once in more than a thousand runs."""
    cos, length = 0, 0
    for seed in range(200):
        x, label = classes(12, 20, 8, seed=seed)
        m = Moments.of(x, label, relabellings=relabellings(label, n=39, seed=seed))
        a, b = component_null(m, 1, "balanced"), difference_null(m)
        assert a is not None and b is not None
        cos, length = cos + int(a.p[0] <= 0.1), length + int(b.p[0] <= 0.1)
    assert 6 <= cos <= 34 and 6 <= length <= 34


# --- what two Gaussian classes give -------------------------------------------------------------------------------


def measured(n: tuple[int, int], d: int, distance: float, trials: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """|cos|^2 of the first component with the sample's and the true difference, and what the spectrum expects."""
    sample, true, expected = [], [], []
    for t in range(trials):
        x, label = classes(*n, d, distance=distance, seed=1000 + t)
        m = Moments.of(x, label)
        first = leading(pooled(m, "balanced"), 1)
        assert first is not None
        length = float(np.linalg.norm(m.difference))
        sample.append(float(first.vectors[:, 0] @ m.difference / length) ** 2)
        true.append(float(first.vectors[0, 0]) ** 2)
        expected.append(expected_cos(pooled(m, "within"), length, draws=50, seed=t))
    return np.array(sample), np.array(true), np.array(expected)


@pytest.mark.parametrize("sizes", [(150, 150), (75, 225)])
@pytest.mark.parametrize("factor", [0.0, 0.5, 1.6, 2.5])
def test_planted_classes_lie_on_the_analytic_curve(sizes: tuple[int, int], factor: float) -> None:
    """d = 150, 300 rows, 30 samples. Above the threshold the mean lies within 5 standard errors and 0.01 (what the
    finite width leaves) of the limit; below it the limit is 0, and less than 0.1 is left."""
    d, trials = 150, 30
    threshold = gaussian_expectation(width=d, n_negative=sizes[0], n_positive=sizes[1], distance=0.0).threshold
    distance = factor * threshold
    limit = gaussian_expectation(width=d, n_negative=sizes[0], n_positive=sizes[1], distance=distance)
    sample, true, expected = measured(sizes, d, distance, trials)
    if factor < 1:
        assert limit.sample == limit.population == 0.0
        assert sample.mean() < 0.1 and true.mean() < 0.1
    else:
        assert limit.sample > 0.8 > limit.population or factor > 2
        for values, expectation in ((sample, limit.sample), (true, limit.population)):
            assert abs(values.mean() - expectation) < 0.01 + 5 * values.std() / math.sqrt(trials)
    # the expectation from the measured spectrum needs no threshold: it holds below too
    error = math.sqrt(np.sqrt(sample).var() / trials + expected.var() / trials)
    assert abs(np.sqrt(sample).mean() - expected.mean()) < 0.01 + 5 * error


@given(st.integers(2, 500), st.integers(2, 500), st.integers(2, 500), st.floats(0.1, 10))
def test_the_curve_has_the_known_special_cases(d: int, n: int, other: int, sigma: float) -> None:
    g = d / (2 * n)
    e = gaussian_expectation(width=d, n_negative=n, n_positive=n, distance=0.0, sigma=sigma)
    # Baik, Ben Arous and Peche: a spike l = (distance / 2 sigma)^2 shows above sqrt(g)
    assert (e.threshold / 2 / sigma) ** 2 == pytest.approx(math.sqrt(g), rel=1e-6)
    spike = 2.0 * math.sqrt(g)
    e = gaussian_expectation(width=d, n_negative=n, n_positive=n, distance=2 * sigma * math.sqrt(spike), sigma=sigma)
    assert e.sample == pytest.approx(1 - g / spike**2, rel=1e-9)
    # Paul: the squared cosine with the true spike
    assert e.population == pytest.approx((1 - g / spike**2) / (1 + g / spike), rel=1e-9)
    a = gaussian_expectation(width=d, n_negative=n, n_positive=other, distance=3.0, sigma=sigma)
    b = gaussian_expectation(width=d, n_negative=other, n_positive=n, distance=3.0, sigma=sigma)
    assert a.sample == pytest.approx(b.sample, abs=1e-9) and 0 <= a.population <= a.sample <= 1


def test_expectations_of_bad_numbers() -> None:
    with pytest.raises(LayersError, match="above 0"):
        gaussian_expectation(width=0, n_negative=1, n_positive=1, distance=1.0)
    with pytest.raises(LayersError, match="finite"):
        expected_cos(np.ones(3), math.inf)
    assert expected_cos(np.zeros(3), 1.0) is None


# --- groups of rows -----------------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.sampled_from(["jackknife", "bootstrap"]))
@settings(max_examples=25, deadline=None)
def test_reweighted_groups_are_the_rows_left_or_repeated(seed: int, method: str) -> None:
    x, label = classes(17, 23, 4, distance=1.0, seed=seed)
    rank = np.zeros(40, dtype=int)
    for c in (0, 1):
        rank[label == c] = np.arange((label == c).sum())
    m = Moments.of(x + 1e3, label, rank=rank, n_groups=6)
    weights = group_weights(m, method, draws=20, seed=seed)  # type: ignore[arg-type]
    assert weights is not None and len(weights) == (6 if method == "jackknife" else 20)
    if method == "jackknife":
        assert (weights.sum(1) == 5).all()
    for w, (difference, within) in zip(weights, weighted(m, weights), strict=True):
        times = w[rank % 6, label].astype(int)
        expected, direct = by_rows(np.repeat(x, times, axis=0), np.repeat(label, times), "within")
        assert difference is not None and np.allclose(difference, direct, atol=1e-10)
        assert within is not None and np.allclose(within, expected, atol=1e-10)


@pytest.mark.parametrize(("factor", "d"), [(0.5, 40), (2.0, 40)])
def test_intervals_cover_what_other_samples_give(factor: float, d: int) -> None:
    """100 samples of 120 rows, 10 groups, below and above the threshold. At 95% coverage fewer than 87 of them
    cover once in a thousand runs; the target is the mean of 400 other samples."""
    distance = factor * gaussian_expectation(width=d, n_negative=60, n_positive=60, distance=0.0).threshold
    others = []
    for t in range(400):
        x, label = classes(60, 60, d, distance=distance, seed=50_000 + t)
        matrix, difference = by_rows(x, label, "balanced")
        v = np.linalg.eigh(matrix)[1][:, -1]
        length = np.linalg.norm(difference)
        others.append((abs(v @ difference) / length, length))
    cos, length = np.mean(others, axis=0)
    covered = np.zeros(2, dtype=int)
    widths = []
    for t in range(100):
        x, label = classes(60, 60, d, distance=distance, seed=t)
        r = resample(Moments.of(x, label, n_groups=10), 1)
        assert r is not None and r.balanced is not None
        low, high = (cos_of(e)[0] for e in r.balanced.interval())
        covered[0] += low <= cos <= high
        below, above = r.length.interval()
        covered[1] += below <= length <= above
        widths.append(high - low)
    assert (covered >= 87).all(), covered
    # and they say something: the interval of a clear component is short
    assert factor < 1 or np.mean(widths) < 0.15


def test_a_jackknife_of_means_is_the_usual_standard_error() -> None:
    values = stream(0, "values").standard_normal(12)
    left_out = np.array([np.delete(values, g).mean() for g in range(12)])
    low, high = Replicates("jackknife", 12, np.asarray(values.mean()), left_out).interval()
    from scipy import stats

    assert (low, high) == pytest.approx(stats.t.interval(0.95, 11, values.mean(), stats.sem(values)), rel=1e-9)
    drawn = Replicates("jackknife", 12, np.asarray(values.mean()), left_out).sample(20_000, seed=0)
    # 20 000 draws of a t with 11 degrees of freedom: the quantile has a standard error of about 1%
    assert np.quantile(drawn, [0.025, 0.975]) == pytest.approx([low, high], rel=0.2, abs=0.03)


def test_few_groups_give_no_interval() -> None:
    x, label = classes(20, 20, 3, distance=1.0)
    assert resample(Moments.of(x, label, n_groups=4), 2) is None
    assert resample(Moments.of(x, label, n_groups=5), 2) is not None
    with pytest.raises(LayersError, match="did you mean 'jackknife'"):
        resample(Moments.of(x, label, n_groups=5), 2, "jacknife")  # type: ignore[arg-type]


def test_an_onset_with_one_odd_layer() -> None:
    def replicates(cos: float, error: float) -> Replicates:
        z = fisher(np.asarray(cos))
        return Replicates("jackknife", 10, z, z + error * np.linspace(-1, 1, 10) / 3)

    sure = [replicates(c, 0.001) for c in (0.95, 0.2, 0.99, 0.97)]
    found = find_onset([0, 1, 2, 3], [0.95, 0.2, 0.99, 0.97], sure)
    assert (found.layer, found.low, found.high, found.reached) == (2, 2, 2, 1.0)
    unsure = [replicates(0.1, 0.001), replicates(0.901, 0.5), replicates(0.99, 0.001)]
    found = find_onset([4, 5, 6], [0.1, 0.901, 0.99], unsure)
    assert (found.layer, found.low, found.high, found.reached) == (5, 5, 6, 1.0)
    lost = find_onset([0, 1], [0.99, 0.1], [replicates(0.99, 0.01), replicates(0.1, 0.01)])
    assert (lost.layer, lost.low, lost.high, lost.reached) == (None, None, None, 0.0)
    half = find_onset([0, 1], [0.1, 0.9001], [replicates(0.1, 0.01), replicates(0.9001, 0.5)])
    assert half.layer == 1 and half.low == 1 and half.high is None and half.reached == pytest.approx(0.5, abs=0.1)


# --- telling classes apart ----------------------------------------------------------------------------------------


def test_a_silhouette_is_that_of_all_pairs_of_rows() -> None:
    x, label = classes(9, 14, 5, distance=2.0, seed=3)
    squares = ((x[:, None] - x[None]) ** 2).sum(-1)
    across = squares[label == 0][:, label == 1].mean()
    own = [squares[label == c][:, label == c].sum() / (n * (n - 1)) for c, n in ((0, 9), (1, 14))]
    within = sum(own) / 2
    found = silhouette(Moments.of(x, label, n_groups=3))
    assert found == pytest.approx((across - within) / max(across, within), rel=1e-10)
    assert silhouette(Moments.of(x[:2], np.array([0, 1]))) is None


def test_a_probe_scores_rows_that_it_has_not_seen() -> None:
    x, label = classes(60, 60, 6, distance=2.0, seed=4)
    rank = np.zeros(120, dtype=int)
    for c in (0, 1):
        rank[label == c] = np.arange(60)
    found = probe(Moments.of(x, label, rank=rank, n_groups=5))
    assert found is not None and found.folds == 5
    along, spread = [], []
    for g in range(5):
        held = rank % 5 == g
        within, difference = by_rows(x[~held], label[~held], "within")
        ridge = np.trace(within) / (~held).sum()
        w = np.linalg.solve(within + ridge * np.eye(6), difference)
        w /= np.sqrt(w @ (within + ridge * np.eye(6)) @ w)
        a, b = x[held & (label == 0)] @ w, x[held & (label == 1)] @ w
        along.append(b.mean() - a.mean())
        spread.append((a.var(ddof=1) + b.var(ddof=1)) / 2)
    assert found.d_prime == pytest.approx(np.mean(along) / np.sqrt(np.mean(spread)), rel=1e-9)


@pytest.mark.parametrize("distance", [0.0, 1.5, 3.0])
def test_a_probe_of_planted_classes_finds_their_distance_and_no_more(distance: float) -> None:
    """d = 30 with 20 samples of 400 rows: the optimum is d' = distance; the probe, made from 320 rows, comes within
    15% of it, and the mean of 20 is known to 0.05. Without a difference the mean is 0, not above."""
    found = []
    for seed in range(20):
        x, label = classes(200, 200, 30, distance=distance, seed=seed)
        p = probe(Moments.of(x, label, n_groups=10))
        assert p is not None
        found.append(p.d_prime)
        assert p.accuracy == pytest.approx(0.5 * (1 + math.erf(p.d_prime / 2 / math.sqrt(2))))
    low, high = (-0.15, 0.15) if distance == 0 else (0.8 * distance, 1.03 * distance)
    assert low < np.mean(found) < high


# --- subspaces ----------------------------------------------------------------------------------------------------


def test_random_subspaces_overlap_as_expected_and_their_p_values_are_fair() -> None:
    """300 pairs of random subspaces, d = 40, k = 3, two directions out: the mean overlap is 9 / 38 with a standard
    error of 0.01, and 10% of p-values are at most 0.1 (15 to 46 of 300, outside once in a thousand runs)."""
    random = stream(0, "subspaces")
    values, alarms = [], 0
    for t in range(300):
        u, v = (np.linalg.qr(random.standard_normal((40, 3)))[0] for _ in range(2))
        found = subspace_overlap(u, v, out=list(random.standard_normal((2, 40))), permutations=39, seed=t)
        assert found is not None and found.p is not None and found.expected == pytest.approx(9 / 38)
        values.append(found.value)
        alarms += found.p <= 0.1
    assert np.mean(values) == pytest.approx(9 / 38, abs=0.04)
    assert 15 <= alarms <= 46


@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_overlaps_are_squared_cosines_of_scipys_principal_angles(seed: int, k: int, r: int) -> None:
    random = stream(seed, "angles", k, r)
    u, v, out = random.standard_normal((12, k)), random.standard_normal((12, k)), random.standard_normal((12, r))
    found = subspace_overlap(u, v, out=list(out.T), permutations=5, seed=seed)
    left = np.eye(12) - out @ np.linalg.pinv(out)
    assert found is not None and found.expected == pytest.approx(k * k / (12 - r))
    assert found.value == pytest.approx(float((np.cos(subspace_angles(left @ u, left @ v)) ** 2).sum()), abs=1e-9)


def test_what_is_projected_out_does_not_count() -> None:
    random = stream(1, "shared")
    shared, rest = random.standard_normal(50), random.standard_normal((50, 4))
    u = np.linalg.qr(np.column_stack([shared, rest[:, :2]]))[0]
    v = np.linalg.qr(np.column_stack([shared, rest[:, 2:]]))[0]
    together = subspace_overlap(u, v, permutations=0)
    assert together is not None and together.value > 1
    matrices = [w @ w.T + 1e-3 * np.eye(50) for w in (u, v)]
    left = [subspace_without(m, shared, 2) for m in matrices]
    assert all(np.abs(w.T @ shared).max() < 1e-9 for w in left)
    apart = subspace_overlap(*left, out=[shared, shared * 2, np.zeros(50)], permutations=0)
    assert apart is not None and apart.value < 0.5 and apart.expected == pytest.approx(4 / 49)
    same = subspace_overlap(u, u @ np.linalg.qr(random.standard_normal((3, 3)))[0], permutations=99)
    assert same is not None and same.value == pytest.approx(3) and same.p == 0.01 and same.null_high is not None
    assert same.null_high < 1
    assert subspace_overlap(np.eye(3)[:, :2], np.eye(3)[:, :2], out=[np.eye(3)[0], np.eye(3)[2]]) is None
    with pytest.raises(LayersError, match="same shape"):
        subspace_overlap(u, v[:, :2])
