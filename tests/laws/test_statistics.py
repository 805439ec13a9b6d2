"""Laws of the statistics: what must hold on any sample, and coverage against known populations."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from retarget.analysis.layout import Box, place_boxes, spread
from retarget.analysis.statistics import (
    bootstrap_interval,
    geometric_mean_interval,
    growth_exponent,
    line_slope,
    mean_interval,
    order_change,
    share_interval,
    welch_difference,
)
from retarget.errors import ProbeError, RetargetError
from retarget.rng import stream

NUMBERS = st.floats(-1e6, 1e6, allow_subnormal=False)
SAMPLES = st.lists(NUMBERS, min_size=2, max_size=30)


@given(SAMPLES, st.randoms(use_true_random=False))
def test_a_mean_does_not_depend_on_the_order(values: list[float], random: object) -> None:
    shuffled = list(values)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert mean_interval(values) == mean_interval(shuffled)


@given(SAMPLES)
def test_a_mean_lies_in_its_interval_and_in_the_sample(values: list[float]) -> None:
    e = mean_interval(values)
    assert e.ci_low is not None and e.ci_high is not None
    assert e.ci_low <= e.value <= e.ci_high
    assert min(values) - 1e-6 <= e.value <= max(values) + 1e-6
    assert e.n == len(values)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=30).filter(lambda v: max(v) - min(v) > 1e-3))
def test_intervals_of_means_are_those_of_scipy(values: list[float]) -> None:
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    e = mean_interval(values)
    assert (e.ci_low, e.ci_high) == pytest.approx((low, high), rel=1e-7, abs=1e-7)


@given(NUMBERS, st.integers(2, 40))
def test_no_spread_is_a_point_and_one_value_has_no_interval(value: float, n: int) -> None:
    e = mean_interval([value] * n)
    assert (e.value, e.ci_low, e.ci_high) == (value, value, value)
    assert mean_interval([value]).ci_low is None
    assert bootstrap_interval([value], "x").ci_low is None


@given(st.lists(st.floats(0, 1), min_size=2, max_size=20))
def test_bounds_cut_the_interval(values: list[float]) -> None:
    e = mean_interval(values, low=0.0, high=1.0)
    assert e.ci_low is not None and e.ci_high is not None
    assert 0 <= e.ci_low <= e.ci_high <= 1


@given(st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=20))
def test_geometric_means_turn_over_with_their_ratios(values: list[float]) -> None:
    e, inverse = geometric_mean_interval(values), geometric_mean_interval([1 / v for v in values])
    assert e.value * inverse.value == pytest.approx(1)
    assert e.ci_low is not None and inverse.ci_high is not None
    assert e.ci_low * inverse.ci_high == pytest.approx(1)


@given(st.lists(st.tuples(st.floats(-100, 100), st.floats(-100, 100)), min_size=3, max_size=25))
def test_slopes_are_those_of_scipy(points: list[tuple[float, float]]) -> None:
    x, y = [p[0] for p in points], [p[1] for p in points]
    if np.var(x) < 1e-3 or np.var(y) < 1e-6:  # the oracle divides by both
        return
    e, oracle = line_slope(x, y), stats.linregress(x, y)
    assert e.value == pytest.approx(oracle.slope, rel=1e-6, abs=1e-6)
    half = stats.t.ppf(0.975, len(x) - 2) * oracle.stderr
    assert e.ci_low is not None and e.ci_high is not None
    assert (e.ci_high - e.ci_low) / 2 == pytest.approx(half, rel=1e-4, abs=1e-6 * (1 + abs(e.value)))


@given(st.floats(-2, 3), st.floats(0.1, 1e3), st.lists(st.integers(2, 10**6), min_size=2, max_size=12, unique=True))
def test_growth_finds_a_power_law(exponent: float, factor: float, sizes: list[int]) -> None:
    e = growth_exponent(sizes, [factor * n**exponent for n in sizes])
    spread_of_sizes = math.log2(max(sizes) / min(sizes))
    assert e.value == pytest.approx(exponent, abs=1e-9 / min(spread_of_sizes, 1))
    assert (e.ci_low is None) == (len(sizes) == 2)


@given(st.lists(st.integers(1, 10**4), min_size=3, max_size=8, unique=True), st.floats(0.01, 100))
def test_growth_does_not_depend_on_the_unit_of_length(sizes: list[int], unit: float) -> None:
    bits = [float(1 + (n * 7919) % 101) for n in sizes]
    first, second = growth_exponent(sizes, bits), growth_exponent(sizes, [unit * b for b in bits])
    assert first.value == pytest.approx(second.value, rel=1e-6, abs=1e-6)


@given(st.lists(NUMBERS, min_size=1, max_size=20))
def test_a_bootstrap_stays_inside_the_sample_and_repeats(values: list[float]) -> None:
    e = bootstrap_interval(values, "law", resamples=50)
    assert e == bootstrap_interval(values, "law", resamples=50)
    if e.ci_low is not None and e.ci_high is not None:
        slack = 1e-9 * max(1.0, *map(abs, values))
        assert min(values) - slack <= e.ci_low <= e.ci_high <= max(values) + slack


def test_streams_of_bootstraps_differ_by_name() -> None:
    values = stream(0, "sample").normal(size=20).tolist()
    assert bootstrap_interval(values, "a").ci_low != bootstrap_interval(values, "b").ci_low
    assert bootstrap_interval(values, "a").ci_low != bootstrap_interval(values, "a", seed=1).ci_low


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_shares_are_those_of_the_exact_test(case: tuple[int, int]) -> None:
    hits, n = case
    oracle = stats.binomtest(hits, n).proportion_ci(0.95, method="exact")
    e = share_interval(hits, n)
    assert (e.ci_low, e.ci_high) == pytest.approx((oracle.low, oracle.high), abs=1e-9)


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=15), st.lists(st.floats(-50, 50), min_size=2, max_size=15))
def test_welch_is_that_of_scipy(first: list[float], second: list[float]) -> None:
    if min(np.var(first), np.var(second)) < 1e-6:  # the oracle warns of samples without spread
        return
    oracle = stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    e = welch_difference(first, second)
    assert (e.ci_low, e.ci_high) == pytest.approx((oracle.low, oracle.high), rel=1e-5, abs=1e-5)


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=12))
def test_an_order_keeps_itself_and_turns_over(scores: list[int]) -> None:
    values = [float(s) for s in scores]
    same, turned = order_change(values, values), order_change(values, [-v for v in values])
    assert same.swapped == ()
    assert len(turned.swapped) == turned.compared == same.compared


def test_coverage_of_intervals_of_means() -> None:
    """95% intervals of 4,000 normal samples: a miss rate outside 5% ± 1.6 points has probability below 1e-5."""
    draws = stream(0, "coverage").normal(2.0, 3.0, size=(4000, 6))
    missed = sum(not (e.ci_low <= 2.0 <= e.ci_high) for e in map(mean_interval, draws.tolist()))  # type: ignore[operator]
    assert 0.034 < missed / 4000 < 0.066


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval([]), "at least one value"),
        (lambda: mean_interval([1.0, math.nan]), "finite values, got nan"),
        (lambda: mean_interval([1.0, 2.0], confidence=1.0), "strictly between 0 and 1"),
        (lambda: geometric_mean_interval([1.0, 0.0]), "positive values, got 0.0"),
        (lambda: bootstrap_interval([1.0], resamples=0), "at least one resample"),
        (lambda: share_interval(3, 2), "got 3 of 2"),
        (lambda: order_change([1.0], []), "got 1 and 0"),
    ],
)
def test_bad_samples_are_refused(call: object, message: str) -> None:
    with pytest.raises(RetargetError, match=message):
        call()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("sizes", "bits", "message"),
    [
        ([4, 4], [1, 2], "two distinct"),
        ([4, 8], [1], "as many x as y"),
        ([4, 8], [0, 2], "positive bits, got 0"),
        ([-4, 8], [1, 2], "positive n_states, got -4"),
        ([4, 8], [1, math.inf], "positive bits, got inf"),
    ],
)
def test_bad_growth_is_refused(sizes: list[int], bits: list[float], message: str) -> None:
    with pytest.raises(ProbeError, match=message):
        growth_exponent(sizes, bits)


# --- the geometry of labels --------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 300), min_size=1, max_size=12), st.floats(1, 20))
def test_spread_keeps_order_gap_and_bounds(positions: list[float], gap: float) -> None:
    out = spread(positions, gap, 0.0, 300.0)
    order = sorted(range(len(positions)), key=lambda i: (positions[i], i))
    placed = [out[i] for i in order]
    assert all(-1e-6 <= p <= 300 + 1e-6 for p in placed)
    assert all(b - a >= gap - 1e-6 for a, b in pairwise(placed))


@given(st.lists(st.floats(20, 280), min_size=1, max_size=8))
def test_spread_leaves_what_is_apart(positions: list[float]) -> None:
    gap = 0.0
    assert spread(positions, gap, 0.0, 300.0) == pytest.approx(tuple(positions))


@settings(max_examples=40)
@given(st.lists(st.tuples(st.floats(100, 700), st.floats(60, 400)), min_size=1, max_size=8))
def test_labels_do_not_overlap_where_there_is_room(anchors: list[tuple[float, float]]) -> None:
    boxes = place_boxes(anchors, [(90.0, 14.0)] * len(anchors), Box(0, 0, 900, 480))
    for i, first in enumerate(boxes):
        assert first.outside(Box(0, 0, 900, 480)) < 1e-6
        assert all(first.overlap(other) < 1e-6 for other in boxes[i + 1 :])
