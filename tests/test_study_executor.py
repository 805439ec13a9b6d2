"""Executors: every cell comes back once, whatever its worker does."""

from __future__ import annotations

import importlib
import os
from collections import Counter, deque
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retarget.study.executor import THREAD_VARIABLES, Lost, ProcessPool, Serial, _grouped, _next_cell, _Worker

# Lives in a module of its own, since workers import what they run.
WORK = """
import os, signal, sys, time
def double(cell, report):
    report(0.5, "half")
    return 2 * cell
def die_on_three(cell, report):
    if cell == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if cell == 4:
        os._exit(7)
    return cell
def fail_on_one(cell, report):
    if cell == 1:
        raise OSError("no\\nway")
    return cell
def threads(cell, report):
    return {k: os.environ.get(k) for k in cell}, "numpy" in sys.modules, os.getpid()
def hang(cell, report):
    if cell:
        time.sleep(60)
    return os.getpid()
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    (tmp_path / "retarget_test_work.py").write_text(WORK)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    module = importlib.import_module("retarget_test_work")
    return importlib.reload(module)


class Heard:
    def __init__(self) -> None:
        self.begun: list[object] = []
        self.reports: list[tuple[object, float, str]] = []

    def started(self, cell: object) -> None:
        self.begun.append(cell)

    def progressed(self, cell: object, fraction: float, words: str) -> None:
        self.reports.append((cell, fraction, words))


def test_every_cell_comes_back_once(work: ModuleType) -> None:
    for executor, heard in ((Serial(h := Heard()), h), (ProcessPool(2, watcher=(h := Heard())), h)):
        assert sorted(executor.map(work.double, range(7))) == [(i, 2 * i) for i in range(7)]
        assert sorted(heard.begun) == list(range(7))  # type: ignore[type-var]
        assert set(heard.reports) >= {(0, 0.5, "half")}


def test_no_cells_need_no_workers() -> None:
    assert list(ProcessPool(3).map(print, [])) == []  # type: ignore[arg-type]


def test_a_pool_needs_a_worker() -> None:
    with pytest.raises(ValueError, match="at least one worker"):
        ProcessPool(0)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_dies_takes_its_cell_and_no_other(work: ModuleType, workers: int) -> None:
    found = dict(ProcessPool(workers).map(work.die_on_three, range(7)))
    assert {k: v for k, v in found.items() if not isinstance(v, Lost)} == {i: i for i in (0, 1, 2, 5, 6)}
    assert isinstance(found[3], Lost) and "SIGKILL" in found[3].reason
    assert isinstance(found[4], Lost) and "exit code 7" in found[4].reason


def test_an_error_that_a_cell_lets_out_is_told(work: ModuleType) -> None:
    found = dict(ProcessPool(1).map(work.fail_on_one, range(3)))
    assert found == {0: 0, 1: Lost("OSError: no\nway"), 2: 2}


def test_workers_have_one_thread_and_no_numpy_before_it(work: ModuleType) -> None:
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    ((_, (variables, _, pid)),) = ProcessPool(1).map(work.threads, [THREAD_VARIABLES])  # type: ignore[misc]
    assert variables == dict.fromkeys(THREAD_VARIABLES, "1") and pid != os.getpid()
    assert {name: os.environ.get(name) for name in THREAD_VARIABLES} == before


def test_workers_end_when_the_caller_stops_listening(work: ModuleType) -> None:
    results = ProcessPool(2).map(work.hang, [0, 1, 1])
    _, pid = next(results)
    results.close()  # type: ignore[attr-defined]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)  # type: ignore[arg-type]


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 4), st.randoms())
def test_cells_are_dealt_once_each_and_groups_stay_together(groups: list[int], workers: int, random: object) -> None:
    cells = list(enumerate(groups))
    queues = _grouped(cells, lambda c: c[1])
    team = [_Worker(None, None, deque()) for _ in range(workers)]  # type: ignore[arg-type]
    dealt: dict[int, list[tuple[int, int]]] = {i: [] for i in range(workers)}
    while True:
        turn = random.randrange(workers)  # type: ignore[attr-defined]
        cell = _next_cell(team[turn], queues, team)
        if cell is None:
            assert not any(queues) and not any(w.mine for w in team)
            break
        dealt[turn].append(cell)
    assert Counter(c for mine in dealt.values() for c in mine) == Counter(cells)
    if workers == 1:
        order = [g for _, g in dealt[0]]
        assert order == sorted(order, key=groups.index)
