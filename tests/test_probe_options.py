"""Options that no probe can work with: refused when the probe is made, in one line that names the option."""

from __future__ import annotations

import math

import pytest

from retarget.errors import ProbeError, StudyError
from retarget.probes.options import check_numbers, check_range
from retarget.study.spec import ProbeSpec, make_probe

BAD = [
    ("out_of_distribution", "regimes", ()),
    ("out_of_distribution", "doses", ()),
    ("out_of_distribution", "doses", ("a",)),
    ("out_of_distribution", "doses", (math.nan,)),
    ("out_of_distribution", "epsilon", math.nan),
    ("out_of_distribution", "most_swapped", 0.0),
    ("out_of_distribution", "budget", 0),
    ("goal_gradient", "splits", 0),
    ("goal_gradient", "splits", -1),
    ("goal_gradient", "damping", 0.0),
    ("goal_gradient", "damping", math.nan),
    ("goal_gradient", "damping", math.inf),
    ("goal_gradient", "states", -5),
    ("goal_gradient", "seen", -1),
    ("goal_gradient", "held_out", -1),
    ("intrinsic_dimension", "draws", 0),
    ("intrinsic_dimension", "draws", -1),
    ("intrinsic_dimension", "share", 0.0),
    ("intrinsic_dimension", "share", 2.0),
    ("intrinsic_dimension", "steps", 0),
    ("intrinsic_dimension", "again", -1),
    ("intrinsic_dimension", "states", 0),
    ("goal_map", "units", -1),
    ("goal_map", "units", 0),
    ("goal_map", "steps", 0),
    ("goal_map", "n_seen", -1),
    ("goal_map", "n_held_out", -1),
    ("goal_map", "budget", 0),
    ("goal_map", "shuffles", -1),
    ("decomposition", "n_seen", -2),
    ("decomposition", "n_held_out", -1),
    ("decomposition", "budget", 0),
    ("goal_directedness", "steps", -1),
    ("goal_directedness", "most_states", -1),
    ("narrowness", "allowed", ("a",)),
    ("narrowness", "allowed", (math.inf,)),
    ("narrowness", "epsilon", math.nan),
    ("narrowness", "budget", 0),
    ("weights", "doses", ("a",)),
    ("weights", "doses", (math.nan,)),
    ("weights", "draws", 1),
    ("weights", "steps", 0),
]


@pytest.mark.parametrize(("probe", "option", "value"), BAD)
def test_a_bad_option_is_refused_by_name(probe: str, option: str, value: object) -> None:
    with pytest.raises((StudyError, ProbeError)) as error:
        make_probe(ProbeSpec(probe, ((option, value),)))
    words = str(error.value)
    assert option in words and "\n" not in words and "could not convert" not in words


@pytest.mark.parametrize(
    ("probe", "first", "second"),
    [("goal_gradient", "seen", "held_out"), ("goal_map", "n_seen", "n_held_out")],
)
def test_one_goal_must_be_asked_for(probe: str, first: str, second: str) -> None:
    with pytest.raises(ProbeError, match="at least one goal"):
        make_probe(ProbeSpec(probe, ((first, 0), (second, 0))))
    make_probe(ProbeSpec(probe, ((first, 0), (second, 1))))


@pytest.mark.parametrize("probe", sorted({name for name, _, _ in BAD}))
def test_defaults_pass(probe: str) -> None:
    make_probe(ProbeSpec(probe))


def test_bounds_belong_to_the_range_unless_they_are_open() -> None:
    check_range("x", 1, low=1, high=1, whole=True)
    check_range("x", 1e-300, above=0)
    for value, words in ((0, "above 0"), (True, "number"), (2, "above 0 and at most 1, got 2"), ("1", "number")):
        with pytest.raises(ProbeError, match=words):
            check_range("x", value, above=0, high=1)
    with pytest.raises(ProbeError, match=r"whole number, got 1\.0"):
        check_range("x", 1.0, low=0, whole=True)
    assert check_numbers("x", [1, 0.5]) == (1.0, 0.5)
    for given in ((), "12", (True,), 3, None):
        with pytest.raises(ProbeError, match="list of finite numbers"):
            check_numbers("x", given)
