"""Time to the first line of help, in fresh processes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.timing import Effort, Line, Race, agree

TOPIC = "startup"


def _call(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _command() -> Sequence[str]:
    """The installed script where there is one, else the module."""
    script = Path(sys.executable).with_name("retarget")
    return (str(script),) if script.exists() else (sys.executable, "-m", "retarget.cli")


def run(effort: Effort) -> list[Line]:
    """Every line of this topic. The bar, twice the time at most, is a ratio of at least 0.5."""
    command = _command()
    agree("retarget --help prints help", "Usage" in _call(*command, "--help"))
    names = "retarget --help", "python -c 'import typer, rich'", "python -c pass"
    work = {
        names[0]: lambda: _call(*command, "--help"),
        names[1]: lambda: _call(sys.executable, "-c", "import typer, rich"),
        names[2]: lambda: _call(sys.executable, "-c", "pass"),
    }
    race = Race(work, Effort(max(effort.rounds, 15), 0.0), clock=time.perf_counter)
    units = dict.fromkeys(work, 1.0)
    return [
        race.line(names[0], names[1], topic=TOPIC, unit="starts", units=units, bar=0.5),
        race.line(names[0], names[2], topic=TOPIC, unit="starts", units=units, kind="limit"),
    ]
