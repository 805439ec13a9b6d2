"""Rank correlations: against SciPy and closed forms, laws, coverage on planted populations, and bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from retarget.analysis.correlations import Correlation, holm, rank_correlation
from retarget.errors import RetargetError
from retarget.rng import stream

#: Few distinct values, so that ties are common.
SCORES = st.integers(4, 12).flatmap(
    lambda n: st.tuples(*[st.lists(st.integers(-4, 4).map(float), min_size=n, max_size=n) for _ in range(3)])
)


def correlate(x: list[float], y: list[float], **rest: object) -> Correlation:
    return rank_correlation(x, y, kinds=rest.pop("kinds", range(len(x))), **rest)  # type: ignore[arg-type]


def differ(*scores: list[float]) -> None:
    assume(all(len(set(s)) > 1 for s in scores))


@given(SCORES)
def test_the_interval_leaves_out_nothing_where_p_says_so(scores):
    x, y, _ = scores
    differ(x, y)
    found = correlate(x, y)
    assume(abs(found.p - 0.05) > 1e-9)
    assert 0 <= found.p <= 1
    assert (found.p < 0.05) == (found.ci_low > 0 or found.ci_high < 0)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_as_the_step_down_procedure_does(p):
    order, expected = sorted(range(len(p)), key=lambda i: p[i]), [False] * len(p)
    for step, i in enumerate(order):
        if (len(p) - step) * p[i] > 0.05:
            break
        expected[i] = True
    assert [a <= 0.05 for a in holm(p)] == expected
    assert all(a >= b for a, b in zip(holm(p), p, strict=True)) and max(holm(p)) <= 1


@given(SCORES)
def test_it_is_spearmans_with_ties_too(scores):
    x, y, _ = scores
    differ(x, y)
    assert correlate(x, y).value == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


@given(SCORES)
def test_the_partial_form_is_the_closed_form(scores):
    x, y, z = scores
    differ(x, y, z)
    xy, xz, yz = (stats.spearmanr(a, b).statistic for a, b in ((x, y), (x, z), (y, z)))
    assume(len(x) > 4 and max(abs(xz), abs(yz)) < 1 - 1e-6)
    closed = (xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2))
    assert correlate(x, y, fixed=z).value == pytest.approx(closed, abs=1e-9)


@given(SCORES)
def test_it_is_symmetric_odd_and_blind_to_rising_transforms(scores):
    x, y, _ = scores
    differ(x, y)
    found = correlate(x, y)
    swapped, turned = correlate(y, x), correlate([-v for v in x], y)
    bent = correlate([math.exp(v) for v in x], [v**3 for v in y])
    for other, sign in ((swapped, 1), (turned, -1), (bent, 1)):
        ends = sorted((sign * other.ci_low, sign * other.ci_high))
        assert (sign * other.value, *ends) == pytest.approx((found.value, found.ci_low, found.ci_high), abs=1e-9)


@given(SCORES, st.randoms(use_true_random=False))
def test_the_order_of_the_points_does_not_enter(scores, random):
    x, y, z = scores
    differ(x, y, z)
    kinds = [f"kind {i % 6}" for i in range(len(x))]
    assume(len(set(kinds)) > 4)
    order = list(range(len(x)))
    random.shuffle(order)
    try:
        first = correlate(x, y, fixed=z, kinds=kinds)
    except RetargetError:
        return  # z tells x or y alone
    second = correlate(
        [x[i] for i in order], [y[i] for i in order], fixed=[z[i] for i in order], kinds=[kinds[i] for i in order]
    )
    assert (second.value, second.ci_low, second.ci_high) == pytest.approx((first.value, first.ci_low, first.ci_high))


@given(SCORES)
def test_the_value_lies_in_its_interval_and_both_in_range(scores):
    x, y, _ = scores
    differ(x, y)
    found = correlate(x, y)
    assert -1 <= found.ci_low <= found.value <= found.ci_high <= 1
    assert (found.n, found.kinds) == (len(x), len(x))


@given(SCORES)
def test_ranks_within_one_stratum_are_ranks(scores):
    x, y, _ = scores
    differ(x, y)
    assert correlate(x, y, strata=["w"] * len(x)) == correlate(x, y)


def test_differences_between_strata_count_for_nothing_within_them():
    rng = stream(0, "strata")
    worlds = [w for w in range(2) for _ in range(8)]
    kinds = list(range(8)) * 2
    x, y = (rng.random(16) + 10 * np.array(worlds) for _ in range(2))
    pooled, within = correlate(x, y, kinds=kinds), correlate(x, y, kinds=kinds, strata=worlds)
    assert pooled.value > 0.7
    by_world = [stats.spearmanr(x[i : i + 8], y[i : i + 8]).statistic for i in (0, 8)]
    assert within.value == pytest.approx(np.mean(by_world), abs=1e-12)


def test_a_perfect_order_of_few_kinds_does_not_exclude_much():
    """Of 4 kinds one order in 24 is perfect by chance: the interval must hold 0. Of 12 it may not."""
    few, many = ([float(i) for i in range(n)] for n in (4, 12))
    assert (correlate(few, few).value, correlate(few, few).ci_low < 0) == (1.0, True)
    assert correlate(many, many).ci_low > 0.5
    assert correlate(many, many[::-1]).ci_high < -0.5


def test_what_rests_on_one_kind_alone_tells_nothing():
    x = [0.0] * 7 + [1.0]
    found = correlate(x, x)
    assert (found.value, found.ci_low, found.ci_high) == (1.0, -1.0, 1.0)


def test_worlds_and_seeds_of_one_kind_do_not_count_as_more_kinds():
    """Every point written down four times: the same correlation, and no narrower an interval."""
    rng = stream(1, "repeated")
    x, y = rng.random(10), rng.random(10)
    once, four = correlate(x, y), correlate(np.repeat(x, 4), np.repeat(y, 4), kinds=np.repeat(range(10), 4).tolist())
    assert four.value == pytest.approx(once.value, abs=1e-12)
    assert (four.ci_low, four.ci_high) == pytest.approx((once.ci_low, once.ci_high), abs=1e-9)
    assert (once.n, four.n, four.kinds) == (10, 40, 10)


def planted(rng: np.random.Generator, kinds: int, *, clumps: bool) -> np.ndarray:
    """Three scores `[kinds * 4, 3]`: correlations 0.5 of the first two, 0.6 of each with the third, kinds in common."""
    mix = np.linalg.cholesky(np.array([[1, 0.5, 0.6], [0.5, 1, 0.6], [0.6, 0.6, 1]]))
    own, each = rng.standard_normal((kinds, 1, 3)), rng.standard_normal((kinds, 4, 3))
    out = ((math.sqrt(0.7) * own + math.sqrt(0.3) * each) @ mix.T).reshape(-1, 3)
    return np.where(out < 0, 0.0, np.round(out, 1)) if clumps else out


@pytest.mark.parametrize("clumps", [False, True])
@pytest.mark.parametrize("partial", [False, True])
def test_intervals_hold_the_planted_truth_about_as_often_as_they_say(clumps, partial):
    """n = 400 draws of 12 kinds with 4 points. At a coverage of 0.93 fewer than 352 hits have a chance of 2e-4."""
    rng = stream(2, "coverage", clumps, partial)
    many = stats.spearmanr(planted(rng, 20_000, clumps=clumps)).statistic
    truth = many[0, 1]
    if partial:
        rest = (1 - many[0, 2] ** 2) * (1 - many[1, 2] ** 2)
        truth = (many[0, 1] - many[0, 2] * many[1, 2]) / math.sqrt(rest)
    kinds, hits = np.repeat(range(12), 4).tolist(), 0
    for _ in range(400):
        v = planted(rng, 12, clumps=clumps)
        found = rank_correlation(v[:, 0], v[:, 1], kinds=kinds, fixed=v[:, 2] if partial else None)
        hits += found.ci_low <= truth <= found.ci_high
    assert hits >= 352
    assert hits < 400  # nor are they so wide that they say nothing


def test_no_correlation_is_seldom_called_one():
    """n = 400 draws of two scores without any relation: at 5% false alarms more than 36 have a chance of 3e-4."""
    rng = stream(3, "nothing")
    alarms = 0
    for _ in range(400):
        own = rng.standard_normal((12, 2)).repeat(4, axis=0) + 0.5 * rng.standard_normal((48, 2))
        found = rank_correlation(own[:, 0], own[:, 1], kinds=np.repeat(range(12), 4).tolist())
        alarms += found.ci_low > 0 or found.ci_high < 0
    assert alarms <= 36


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        ({"x": [1.0, 2, 3], "y": [1.0, 2, 3], "kinds": "abc"}, "at least 4 kinds of agent, got 3"),
        ({"x": [1.0, 2, 3, 4], "y": [1.0, 2, 3, 4], "kinds": "aaaa"}, "at least 4 kinds of agent, got 1"),
        ({"x": [], "y": [], "kinds": ""}, "at least 4 kinds of agent, got 0"),
        ({"x": [1.0, 2, 3, 4], "y": [4.0, 2, 3, 1], "kinds": "abcd", "fixed": [1.0, 3, 2, 4]}, "at least 5 kinds"),
        ({"x": [1.0, 2, 3], "y": [1.0, 2, 3, 4], "kinds": "abcd"}, "as many of each"),
        ({"x": [1.0, 2, 3, math.nan], "y": [1.0, 2, 3, 4], "kinds": "abcd"}, "finite values, got nan"),
        ({"x": [1.0, 1, 1, 1], "y": [1.0, 2, 3, 4], "kinds": "abcd"}, "the first score is the same for all 4 points"),
        ({"x": [1.0, 2, 3, 4], "y": [2.0, 2, 2, 2], "kinds": "abcd"}, "the second score is the same for all 4 points"),
        ({"x": [1.0, 2, 3, 4, 5], "y": [2.0, 1, 4, 3, 5], "kinds": "abcde", "fixed": [1.0, 2, 3, 4, 5]}, "held fixed"),
        ({"x": [1.0, 2, 3, 4], "y": [1.0, 2, 3, 4], "kinds": "abcd", "confidence": 1.0}, "strictly between 0 and 1"),
    ],
)
def test_bad_input_is_one_clear_line(given_, words):
    x, y = given_.pop("x"), given_.pop("y")
    with pytest.raises(RetargetError, match=words) as error:
        rank_correlation(x, y, **given_)
    assert "\n" not in str(error.value)
