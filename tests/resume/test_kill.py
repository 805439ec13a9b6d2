"""Killed at any moment, the same command finishes the run: the same bytes, and no cell done twice."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from retarget.study.journal import Journal
from retarget.study.run import study_digest
from retarget.study.spec import load_study

STUDY = """
name = "killed"
seeds = [0, 1, 2]
goal_pairs = 4
[[worlds]]
id = "OpenGrid"
size = [5, 6, 7]
[[agents]]
id = "planner"
[[agents]]
id = "planner"
compiled = true
[[agents]]
id = "q_table"
episodes = 50
[[probes]]
id = "robustness"
[[probes]]
id = "behaviour"
"""


def _start(study: Path, out: Path, workers: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "retarget.cli", "run", str(study), "--out", str(out), "--workers", str(workers)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def _wait_for_log(run: subprocess.Popen[bytes], out: Path, size: int) -> None:
    """Wait until the journal's log has grown to a size (it grows with every cell), or the run has ended."""
    log = out / "journal.sqlite-wal"
    deadline = time.monotonic() + 30
    while run.poll() is None and time.monotonic() < deadline:
        try:
            if log.stat().st_size >= size:
                return
        except FileNotFoundError:
            pass
        time.sleep(0.001)


def _walls(out: Path, digest: str) -> dict[str, float]:
    """Wall times of the finished cells: no two runs of a cell take the same, so they tell which run did it."""
    copy = out.with_name(out.name + "-copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(out, copy)
    with Journal(copy / "journal.sqlite", digest) as journal:
        return {r.key: r.wall_s for r in journal.records()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The study's file, and the folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("kill")
    study = folder / "study.toml"
    study.write_text(STUDY)
    run = _start(study, folder / "whole", 1)
    output, _ = run.communicate(timeout=60)
    assert run.returncode == 0, output.decode()
    return study, folder / "whole"


@pytest.mark.parametrize(("workers", "kills"), [(1, 3), (2, 3)])
def test_killed_at_any_moment(whole: tuple[Path, Path], tmp_path: Path, workers: int, kills: int) -> None:
    study, reference = whole
    digest = study_digest(load_study(study))
    out = tmp_path / "out"
    chance = random.Random(workers)
    seen: dict[str, float] = {}
    partial = 0
    for _ in range(kills):
        run = _start(study, out, workers)
        _wait_for_log(run, out, chance.choice([0, 1, 30_000, 100_000]))
        time.sleep(chance.uniform(0.0, 0.01))
        run.send_signal(signal.SIGKILL)
        run.communicate(timeout=30)
        walls = _walls(out, digest)
        assert seen.items() <= walls.items()
        seen = walls
        partial += not (out / "results.parquet").exists() and len(walls) > 0
    run = _start(study, out, workers)
    output, _ = run.communicate(timeout=60)
    assert run.returncode == 0, output.decode()
    for name in ("results.parquet", "frontiers.parquet"):
        assert (out / name).read_bytes() == (reference / name).read_bytes()
    timings = dict(pl.read_parquet(out / "timings.parquet").iter_rows())
    assert seen.items() <= timings.items()
    assert partial > 0, "no kill fell into the middle of the run: the test has tested nothing"


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupt_ends_cleanly_and_keeps_what_is_done(
    whole: tuple[Path, Path], tmp_path: Path, workers: int
) -> None:
    study, reference = whole
    out = tmp_path / "out"
    command = [sys.executable, "-m", "retarget.cli", "run", str(study), "--out", str(out), "--workers", str(workers)]
    # a group of processes of its own, so that the signal reaches the workers too, as Ctrl-C in a terminal does
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    _wait_for_log(run, out, 1)
    os.killpg(run.pid, signal.SIGINT)
    output, _ = run.communicate(timeout=30)
    text = output.decode()
    assert run.returncode in (0, 130), text
    assert "Traceback" not in text
    if run.returncode == 130:
        assert "the same command goes on from there" in text
        assert not (out / "results.parquet").exists()
    run = _start(study, out, workers)
    run.communicate(timeout=60)
    assert (out / "results.parquet").read_bytes() == (reference / "results.parquet").read_bytes()
