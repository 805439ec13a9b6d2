"""The library in one call."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import polars as pl
import pytest

import retarget
from retarget.agents import TablePolicy, compile_policy, exact_planner
from retarget.errors import RetargetError
from retarget.probe import Subject
from retarget.probes import Retargetability, Robustness
from retarget.row import RESULT_COLUMNS, frame, schema


@pytest.fixture(scope="module")
def world() -> Any:
    return retarget.make_world("FourRooms", size=7)


@pytest.fixture(scope="module")
def planner(world: Any) -> Any:
    return exact_planner(world, world.goal)


def test_a_frame_holds_what_the_probes_measure(world: Any, planner: Any) -> None:
    wanted = [(1, 1), (1, 5)]
    got = retarget.measure(planner, world, wanted, seed=3)
    assert got.schema == schema(RESULT_COLUMNS)
    for cell in wanted:
        b = world.as_goal(cell)
        outcome = Retargetability().measure(Subject(planner, world, world.goal, b, seed=3))
        rows = got.filter(probe="retargetability", goal_b=b.label)
        assert rows["metric"].to_list() == list(Retargetability.metrics)
        assert rows["value"].to_list() == [m.value for m in outcome.measurements]
        assert rows["status"].to_list() == [m.status for m in outcome.measurements]
    own = got.filter(probe="robustness")
    assert own["metric"].to_list() == list(Robustness.metrics)
    assert own["goal_b"].is_null().all()
    assert got["seed"].unique().to_list() == [3]
    assert got["agent"].unique().to_list() == ["planner"]
    assert got["n_states"].unique().to_list() == [world.model.n_states]
    assert got["agent_digest"].unique().to_list() == [planner.digest]


def test_calling_twice_gives_the_same_rows_and_touches_nothing(world: Any, planner: Any) -> None:
    digest = planner.digest
    first = retarget.measure(planner, world, goals=2, seed=1)
    retarget.measure(compile_policy(planner, world), world, goals=1, seed=5)
    assert first.equals(retarget.measure(planner, world, goals=2, seed=1))
    assert planner.digest == digest
    assert not first["goal_b"].equals(retarget.measure(planner, world, goals=2, seed=2)["goal_b"])


def test_goals_may_be_drawn_or_named_in_any_form(world: Any, planner: Any) -> None:
    state = world.as_goal((1, 1)).states[0]
    forms: list[Any] = [(1, 1), state, world.as_goal((1, 1))]
    frames = [retarget.measure(planner, world, [f], probes=["behaviour"]) for f in forms]
    assert frames[0].equals(frames[1])
    assert frames[0].equals(frames[2])
    drawn = retarget.measure(planner, world, goals=4, probes=["behaviour"])
    assert drawn["goal_b"].n_unique() == 4
    assert world.goal.label not in drawn["goal_b"].to_list()
    everything = retarget.measure(planner, world, goals=10_000, probes=["behaviour"])
    assert everything["goal_b"].n_unique() == len(set(world.goals) - {world.goal})


def test_the_goal_it_has_and_its_name_can_be_given(world: Any) -> None:
    own = (1, 1)
    agent = exact_planner(world, world.as_goal(own))
    got = retarget.measure(agent, world, [(5, 5)], goal=own, name="mine", level=0.5, gamma=0.8)
    assert got["agent"].unique().to_list() == ["mine"]
    assert got["goal_a"].unique().to_list() == [world.as_goal(own).label]
    assert got.filter(metric="robustness")["value"].to_list() == [1.0]
    assert got.filter(metric="required_competence")["value"].to_list() == [0.5]
    assert got["gamma"].unique().to_list() == [0.8]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"agent": "planner"}, "expected an agent, got str; see retarget.agents"),
        ({"world": "FourRooms"}, "expected a world, got str; make one with retarget.make_world"),
        ({"agent": TablePolicy.from_actions([0], n_actions=4)}, "is for a world of 1 states, this one has"),
        ({"goals": []}, "goals is empty; name at least one goal, or pass a number to draw them"),
        ({"goals": 0}, "0 pairs of goals were asked for; ask for at least 1"),
        ({"goals": ["corner"]}, "goal 'corner' is no place in FourRooms(size=7)"),
        ({"goals": [10**6]}, "goal 1000000 is outside FourRooms(size=7)"),
        ({"goals": [(0, 0)]}, "(0, 0)"),
        ({"goal": (1, 1), "goals": [(1, 1)]}, "goals A and B are the same"),
        ({"probes": ["robust"]}, "unknown probe 'robust' (did you mean 'robustness'?); known: "),
        ({"gamma": 1.0}, "gamma must lie strictly between 0 and 1, got 1.0"),
        ({"level": 0}, "level must lie in (0, 1], got 0"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(world: Any, planner: Any, changes: dict[str, Any], words: str) -> None:
    given = {"agent": planner, "world": world, "goals": [(1, 1)], **changes}
    with pytest.raises(RetargetError) as caught:
        retarget.measure(given.pop("agent"), given.pop("world"), **given)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [{"seed": "x"}, {"seed": 1.5}, {"goals": np.int64(3)}, {"goals": 5.0}, {"goals": None}, {"gamma": "x"}],
    ids=str,
)
def test_values_of_the_wrong_type_are_one_clear_line_or_work(world: Any, planner: Any, changes: dict[str, Any]) -> None:
    try:
        retarget.measure(planner, world, **{"goals": [(1, 1)], "probes": ["behaviour"], **changes})
    except RetargetError as error:
        assert "\n" not in str(error)


def test_names_of_the_package_load_and_unknown_ones_do_not() -> None:
    for name in retarget.__all__:
        assert getattr(retarget, name) is not None
        assert name in dir(retarget)
    assert set(retarget.__all__) == set(retarget._LAZY)
    with pytest.raises(AttributeError, match="module 'retarget' has no attribute 'mesure'"):
        retarget.mesure  # noqa: B018


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = ("torch", "numba", "polars", "gymnasium", "scipy", "altair", "hypothesis", "numpy")
    code = f"import sys, retarget; print([m for m in {heavy!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert out.stdout.strip() == "[]"


def test_a_row_with_other_columns_is_refused() -> None:
    row: dict[str, object] = {c.name: None for c in RESULT_COLUMNS}
    assert frame([row]).schema == schema(RESULT_COLUMNS)
    assert frame([]).schema == schema(RESULT_COLUMNS)
    assert schema(RESULT_COLUMNS)["value"] == pl.Float64
    del row["unit"]
    with pytest.raises(RetargetError, match="a row has the wrong columns: extra, unit missing or unknown"):
        frame([{**row, "extra": 1}])
