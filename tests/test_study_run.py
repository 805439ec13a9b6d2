"""Runs: shards, resuming, the number of workers, and the bytes of the tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retarget.errors import JournalError, StudyError
from retarget.row import FRONTIER_COLUMNS, RESULT_COLUMNS, schema
from retarget.study.cells import Cell, CellResult, plan
from retarget.study.executor import Lost, ProcessPool, Serial
from retarget.study.journal import Journal
from retarget.study.run import RunReport, Shard, run_study, study_digest
from retarget.study.spec import Study, parse_study

TINY = """
name = "tiny"
seeds = [0, 1]
goal_pairs = 2
[[worlds]]
id = "OpenGrid"
size = [5, 6]
[[agents]]
id = "planner"
[[agents]]
id = "q_table"
episodes = 3
[[probes]]
id = "robustness"
[[probes]]
id = "behaviour"
"""


@pytest.fixture(scope="module")
def study() -> Study:
    return parse_study(TINY)


@pytest.fixture(scope="module")
def whole(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    out = tmp_path_factory.mktemp("whole")
    report = run_study(study, out, executor=Serial())
    assert report.complete and not report.errors and report.resumed == 0
    return out


def _tables(out: Path) -> tuple[bytes, bytes]:
    return (out / "results.parquet").read_bytes(), (out / "frontiers.parquet").read_bytes()


def test_the_tables_have_the_documented_columns_and_every_row(study: Study, whole: Path) -> None:
    results = pl.read_parquet(whole / "results.parquet")
    assert dict(results.schema) == schema(RESULT_COLUMNS)
    assert dict(pl.read_parquet(whole / "frontiers.parquet").schema) == schema(FRONTIER_COLUMNS)
    assert set(results["cell"]) == {c.key for c in plan(study)}
    assert results["cell"].is_sorted()
    timings = pl.read_parquet(whole / "timings.parquet")
    assert timings["cell"].to_list() == sorted(c.key for c in plan(study)) and (timings["wall_s"] > 0).all()
    assert sorted(p.name for p in whole.iterdir()) == [
        "frontiers.parquet", "journal.sqlite", "results.parquet", "study.json", "timings.parquet",
    ]  # fmt: skip
    assert json.loads((whole / "study.json").read_text())["worlds"][0] == {"id": "OpenGrid", "size": 5}


def test_workers_do_not_change_a_byte(study: Study, whole: Path, tmp_path: Path) -> None:
    pool = ProcessPool(2, group=lambda c: c.group)
    assert run_study(study, tmp_path, executor=pool).complete
    assert _tables(tmp_path) == _tables(whole)


class Stopping(Serial):
    """Stops after some cells, as Ctrl-C does, or loses some of them."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def map(
        self, function: Callable[..., CellResult], cells: Iterable[Cell]
    ) -> Iterator[tuple[Cell, CellResult | Lost]]:
        for number, answer in enumerate(super().map(function, cells)):
            if number == self.after:
                raise KeyboardInterrupt
            yield answer


def test_a_stopped_run_goes_on_where_it_was(study: Study, whole: Path, tmp_path: Path) -> None:
    total = len(plan(study))
    done = 0
    for step in (0, 1, 5):
        with pytest.raises(KeyboardInterrupt):
            run_study(study, tmp_path, executor=Stopping(step))
        done += step
        assert not (tmp_path / "results.parquet").exists()
    heard: list[Cell] = []
    begun: list[tuple[int, int]] = []
    report = run_study(
        study,
        tmp_path,
        executor=Serial(),
        on_start=lambda cells, before: begun.append((len(cells), before)),
        on_done=lambda cell, result: heard.append(cell),
    )
    assert begun == [(total, done)] and len(heard) == total - done
    assert report == RunReport(tmp_path, total, total, done, True, ())
    assert _tables(tmp_path) == _tables(whole)


def test_a_finished_run_is_not_run_again(study: Study, whole: Path, tmp_path: Path) -> None:
    before = (whole / "timings.parquet").read_bytes()
    report = run_study(study, whole, executor=Stopping(0))
    assert report.complete and report.resumed == report.total
    assert (whole / "timings.parquet").read_bytes() == before


def test_another_study_in_the_same_folder_is_refused(study: Study, whole: Path) -> None:
    before = _tables(whole)
    with pytest.raises(JournalError, match="another study"):
        run_study(study.with_seeds([5]), whole, executor=Serial())
    assert _tables(whole) == before
    assert json.loads((whole / "study.json").read_text())["seeds"] == [0, 1]


# -- shards ---------------------------------------------------------------------------------------------------------


@given(st.integers(1, 12), st.lists(st.integers(0, (1 << 128) - 1)))
def test_shards_are_disjoint_and_complete(count: int, numbers: list[int]) -> None:
    for number in numbers:
        holders = [i for i in range(1, count + 1) if Shard(i, count).holds(f"{number:032x}")]
        assert len(holders) == 1


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2", "1/2/3", "", "²/2", "1/99999999999"])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(StudyError, match="shard"):
        Shard.parse(text)


@pytest.mark.parametrize("count", [2, 5])
def test_shards_together_make_the_same_tables(study: Study, whole: Path, tmp_path: Path, count: int) -> None:
    ran: list[str] = []
    for number in range(1, count + 1):
        report = run_study(
            study,
            tmp_path,
            executor=Serial(),
            shard=Shard(number, count),
            on_done=lambda cell, result: ran.append(cell.key),
        )
        assert report.complete == (number == count) == (tmp_path / "results.parquet").exists()
    assert sorted(ran) == sorted(c.key for c in plan(study))
    assert _tables(tmp_path) == _tables(whole)


def test_a_whole_run_takes_over_what_shards_have_done(study: Study, whole: Path, tmp_path: Path) -> None:
    first = run_study(study, tmp_path, executor=Serial(), shard=Shard(1, 2))
    report = run_study(study, tmp_path, executor=Serial())
    assert 0 < first.share == report.resumed < report.total and report.complete
    assert _tables(tmp_path) == _tables(whole)


def test_a_shard_that_still_runs_is_not_counted(study: Study, tmp_path: Path) -> None:
    run_study(study, tmp_path, executor=Serial(), shard=Shard(1, 2))
    with Journal(tmp_path / "journal-1-of-2.sqlite", study_digest(study)):
        report = run_study(study, tmp_path, executor=Serial(), shard=Shard(2, 2))
    assert not report.complete and not (tmp_path / "results.parquet").exists()
    assert run_study(study, tmp_path, executor=Stopping(0), shard=Shard(2, 2)).complete


# -- failures -------------------------------------------------------------------------------------------------------


class Losing(Serial):
    """Loses the worker of the first cell."""

    def map(
        self, function: Callable[..., CellResult], cells: Iterable[Cell]
    ) -> Iterator[tuple[Cell, CellResult | Lost]]:
        for number, (cell, result) in enumerate(super().map(function, cells)):
            yield cell, Lost("WorkerLost: gone") if number == 0 else result


def test_lost_cells_are_in_the_table_and_can_be_retried(study: Study, whole: Path, tmp_path: Path) -> None:
    report = run_study(study, tmp_path, executor=Losing())
    assert report.complete and [error for _, error in report.errors] == ["WorkerLost: gone"]
    results = pl.read_parquet(tmp_path / "results.parquet")
    assert set(results.filter(pl.col("status") == "failed")["reason"]) == {"WorkerLost: gone"}
    assert "WorkerLost: gone" in (tmp_path / "failures.txt").read_text()
    assert run_study(study, tmp_path, executor=Stopping(0)).errors == report.errors
    again = run_study(study, tmp_path, executor=Serial(), retry_failed=True)
    assert again.complete and not again.errors and again.resumed == again.total - 1
    assert _tables(tmp_path) == _tables(whole) and not (tmp_path / "failures.txt").exists()
