"""Cells: what their keys depend on, which there are, and what a run of one gives."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import fields, replace
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import retarget.study.cells as cells_module
from retarget.catalogue import AgentSpec, NotApplicableHere
from retarget.errors import RetargetError, StudyError
from retarget.probe import Metric, Outcome, Probe, Progress, Subject
from retarget.row import FRONTIER_COLUMNS, RESULT_COLUMNS, FrontierPoint, Measurement, frame
from retarget.spend import Spend
from retarget.study.cells import Cell, CellResult, failed_result, plan, run_cell
from retarget.study.spec import ProbeSpec, Study, StudyAgent, parse_study
from retarget.world import WorldSpec

NAMES = st.text("abcxyz_", min_size=1, max_size=6)
SCALARS = st.one_of(st.integers(-9, 9), st.floats(-2, 2), st.booleans(), NAMES)
OPTIONS = st.dictionaries(NAMES.filter(lambda n: n not in ("id", "name", "compiled")), SCALARS, max_size=3)
CELLS = st.builds(
    Cell,
    study=NAMES,
    world=st.builds(lambda i, o: WorldSpec(i, tuple(sorted(o.items()))), NAMES, OPTIONS),
    agent=st.builds(
        lambda i, o, c, n: AgentSpec(i, tuple(sorted(o.items())), c, n), NAMES, OPTIONS, st.booleans(), NAMES
    ),
    probe=st.builds(lambda i, o: ProbeSpec(i, tuple(sorted(o.items()))), NAMES, OPTIONS),
    seed=st.integers(0, 5),
    pair=st.integers(0, 5),
    goal_pairs=st.integers(1, 6),
    gamma=st.sampled_from([0.9, 0.95]),
    level=st.sampled_from([0.9, 1.0]),
)


def _same_result(a: Cell, b: Cell) -> bool:
    """Whether two cells ask for the same: equal in every field that counts, types of options included."""
    kept = [replace(c, study="", agent=replace(c.agent, name="")) for c in (a, b)]
    return repr(kept[0]) == repr(kept[1])


@given(CELLS, CELLS, st.sampled_from([f.name for f in fields(Cell)]))
def test_a_key_changes_with_every_field_that_counts_and_with_no_other(a: Cell, b: Cell, name: str) -> None:
    changed = replace(a, **{name: getattr(b, name)})
    assert (a.key == changed.key) == _same_result(a, changed)


@given(CELLS, st.randoms())
def test_a_key_does_not_depend_on_the_order_of_options(cell: Cell, random: object) -> None:
    options = list(cell.agent.options)
    random.shuffle(options)  # type: ignore[attr-defined]
    assert replace(cell, agent=replace(cell.agent, options=tuple(options))).key == cell.key


@given(CELLS)
def test_a_key_survives_pickling_and_is_hex(cell: Cell) -> None:
    assert pickle.loads(pickle.dumps(cell)).key == cell.key == f"{int(cell.key, 16):032x}"


@pytest.mark.parametrize(("name", "value"), [("__version__", "99.0"), ("SCHEMA_VERSION", 99)])
def test_a_key_changes_with_the_version(monkeypatch: pytest.MonkeyPatch, name: str, value: object) -> None:
    cell = Cell("s", WorldSpec.of("Maze"), AgentSpec.of("planner"), ProbeSpec.of("robustness"), 0, 0, 1, 0.9, 1.0)
    before = cell.key
    monkeypatch.setattr(cells_module, name, value)
    assert replace(cell).key != before


# -- which cells there are ------------------------------------------------------------------------------------------


class OneGoal(Probe):
    """Counts the states; needs no goal B."""

    name = "one_goal"
    metrics: ClassVar = {"states": Metric("states", "number of states")}

    def __init__(self, fail: str = "") -> None:
        self.fail = fail

    def measure(self, subject: Subject, *, progress: Progress | None = None) -> Outcome:
        if self.fail == "raise":
            raise RuntimeError("first line\nsecond line")
        if self.fail == "other":
            return Outcome((Measurement.ok("elsewhere", 1.0),))
        if progress is not None:
            progress(0.5, "half")
        point = FrontierPoint("e", "agent", 3, 4, 0.5, 0.25, 1, "policy", Spend(env_steps=2))
        return Outcome((Measurement.ok("states", subject.world.model.n_states),), (point,))


class TwoGoals(OneGoal):
    """The same, for pairs."""

    name = "two_goals"
    needs_goal_b = True


PROBES = {"one_goal": OneGoal, "two_goals": TwoGoals}


@pytest.fixture(autouse=True)
def _probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retarget.probes.PROBES", PROBES)


def _study(**changes: object) -> Study:
    base = {
        "name": "s",
        "seeds": (0, 1),
        "worlds": (WorldSpec.of("OpenGrid", size=5), WorldSpec.of("OpenGrid", size=6)),
        "agents": (StudyAgent(AgentSpec.of("planner")), StudyAgent(AgentSpec.of("planner", compiled=True))),
        "probes": (ProbeSpec.of("one_goal"), ProbeSpec.of("two_goals")),
        "goal_pairs": 5,
    }
    return Study(**(base | changes))  # type: ignore[arg-type]


def test_a_probe_of_one_goal_gets_one_cell_for_each_goal_a() -> None:
    study = _study()
    found = plan(study)
    assert len({c.key for c in found}) == len(found)
    for world in study.worlds:
        for seed in study.seeds:
            pairs = cells_module.draw_goals(world, seed, 5).pairs
            for agent in study.agents:
                mine = [c for c in found if (c.world, c.seed, c.agent) == (world, seed, agent.spec)]
                assert [c.pair for c in mine if c.probe.id == "two_goals"] == list(range(5))
                ones = [pairs[c.pair][0] for c in mine if c.probe.id == "one_goal"]
                assert sorted(ones) == sorted({a for a, _ in pairs})


def test_an_agent_runs_only_in_its_worlds() -> None:
    only = StudyAgent(AgentSpec.of("planner"), ("Maze",))
    study = _study(worlds=(WorldSpec.of("OpenGrid", size=5), WorldSpec.of("Maze", size=7)), agents=(only,))
    assert {c.world.id for c in plan(study)} == {"Maze"}


def test_doubled_cells_are_refused() -> None:
    twice = StudyAgent(AgentSpec.of("planner", name="again"))
    with pytest.raises(StudyError, match="same cell twice"):
        plan(_study(agents=(StudyAgent(AgentSpec.of("planner")), twice)))


def test_cells_that_share_an_agent_stand_together() -> None:
    groups = [c.group for c in plan(_study())]
    runs = [g for i, g in enumerate(groups) if i == 0 or groups[i - 1] != g]
    assert len(runs) == len(set(groups))


# -- what a run of one gives ----------------------------------------------------------------------------------------


def _cell(probe: ProbeSpec, agent: AgentSpec | None = None) -> Cell:
    return Cell("s", WorldSpec.of("OpenGrid", size=5), agent or AgentSpec.of("planner"), probe, 0, 1, 3, 0.95, 0.9)


def _checked(result: CellResult) -> list[dict[str, object]]:
    frame(list(result.rows), RESULT_COLUMNS)
    frame(list(result.frontier), FRONTIER_COLUMNS)
    return list(result.rows)


def test_rows_say_what_was_measured() -> None:
    cell = _cell(ProbeSpec.of("two_goals"))
    heard: list[float] = []
    result = run_cell(cell, lambda fraction, words: heard.append(fraction))
    (row,) = _checked(result)
    a, b = cells_module.draw_goals(cell.world, 0, 3).pairs[1]
    assert (row["goal_a"], row["goal_b"], row["seed"], row["gamma"], row["level"]) == (a.label, b.label, 0, 0.95, 0.9)
    assert (row["metric"], row["unit"], row["status"], row["value"], row["cell"]) == (
        "states",
        "states",
        "ok",
        25.0,
        cell.key,
    )
    assert row["n_states"] == 25 and row["reason"] is None and row["goal_b_seen"] is None
    assert isinstance(row["agent_digest"], str) and heard == [0.5] and result.error == "" and result.wall_s > 0
    (point,) = result.frontier
    assert (point["bits"], point["spend_env_steps"], point["cell"]) == (3, 2, cell.key)


def test_a_probe_of_one_goal_shows_no_goal_b() -> None:
    (row,) = _checked(run_cell(_cell(ProbeSpec.of("one_goal"))))
    assert row["goal_b"] is None and row["goal_a"]


def test_goals_of_training_are_told_from_others() -> None:
    seen = set()
    for pair in range(4):
        cell = replace(
            _cell(ProbeSpec.of("two_goals"), AgentSpec.of("goal_table", episodes=5)), pair=pair, goal_pairs=4
        )
        goals = cells_module.draw_goals(cell.world, 0, 4)
        (row,) = _checked(run_cell(cell))
        assert row["goal_b_seen"] == (goals.pairs[pair][1] in goals.training)
        seen.add(row["goal_b_seen"])
    assert seen == {True, False}


@pytest.mark.parametrize(("fail", "words"), [("raise", "RuntimeError: first line"), ("other", "ProbeError: ")])
def test_what_goes_wrong_becomes_failed_rows(fail: str, words: str) -> None:
    result = run_cell(_cell(ProbeSpec.of("one_goal", fail=fail)))
    (row,) = _checked(result)
    assert row["status"] == "failed" and row["value"] is None and str(row["reason"]).startswith(words)
    assert "\n" not in str(row["reason"]) and result.error.startswith(words) and "Traceback" in result.error
    assert result.frontier == ()


def test_a_world_that_cannot_be_made_becomes_failed_rows() -> None:
    cell = replace(_cell(ProbeSpec.of("one_goal")), world=WorldSpec.of("Nowhere"))
    (row,) = _checked(run_cell(cell))
    assert row["status"] == "failed" and "Nowhere" in str(row["reason"]) and row["n_states"] is None


def test_an_agent_that_cannot_exist_here_is_not_applicable(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise NotApplicableHere("no coordinates\nin this world")

    monkeypatch.setattr(cells_module, "build_agent", refuse)
    cell = _cell(ProbeSpec.of("two_goals"), AgentSpec.of("controller"))
    result = run_cell(cell)
    (row,) = _checked(result)
    assert (row["status"], row["reason"], row["agent_digest"]) == (
        "not_applicable",
        "no coordinates in this world",
        None,
    )
    assert result.error == "" and row["simulations_per_action"] is None


def test_a_lost_worker_becomes_failed_rows() -> None:
    result = failed_result(_cell(ProbeSpec.of("one_goal")), "WorkerLost: gone")
    (row,) = _checked(result)
    assert (row["status"], row["reason"]) == ("failed", "WorkerLost: gone")


def test_the_order_in_which_cells_run_changes_no_row() -> None:
    found = plan(_study(goal_pairs=2))

    def rows(order: Callable[[int], list[int]]) -> dict[str, object]:
        cells_module._worlds.kept.clear()
        cells_module._agents.kept.clear()
        return {found[i].key: run_cell(found[i]).rows for i in order(len(found))}

    assert rows(lambda n: list(range(n))) == rows(lambda n: [int(i) for i in np.random.default_rng(0).permutation(n)])


def test_probe_options_that_a_probe_refuses_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Picky(OneGoal):
        def __init__(self, depth: int = 1) -> None:
            if depth < 1:
                raise ValueError("depth must be at least 1")

    monkeypatch.setattr("retarget.probes.PROBES", {"picky": Picky})
    text = (
        'name = "s"\nseeds = [0]\n[[worlds]]\nid = "OpenGrid"\n[[agents]]\nid = "planner"\n[[probes]]\nid = "picky"\n'
    )
    with pytest.raises(RetargetError, match=r"line 7: probe picky\(depth=0\) cannot be made: depth must be at least 1"):
        parse_study(text + "depth = 0\n")
