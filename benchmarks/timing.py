"""Interleaved timing, and what one line of the benchmark holds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import numpy as np

Work = Callable[[], object]


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        rounds: rounds in which every contender runs once.
        sample_s: least length of one sample in seconds; short work is repeated to fill it.
    """

    rounds: int
    sample_s: float


@dataclass(frozen=True)
class Line:
    """One comparison.

    Attributes:
        topic: which benchmark it belongs to.
        what: ours, and the other one.
        unit: what is counted per second.
        ours, other: units per second, medians over the rounds.
        ratio, low, high: median and quartiles of the ratios ours/other of single rounds.
        bar: least ratio that is asked for; None for lines that only inform.
        aim: ratio to move toward, which decides nothing.
        kind: `peer` (more is better), or `limit` (the ratio is the share of a tight compiled loop that is reached).
    """

    topic: str
    what: str
    against: str
    unit: str
    ours: float
    other: float
    ratio: float
    low: float
    high: float
    bar: float | None = None
    aim: float | None = None
    kind: str = "peer"

    @property
    def met(self) -> bool | None:
        return None if self.bar is None else self.ratio >= self.bar

    def as_dict(self) -> dict[str, object]:
        return {**asdict(self), "met": self.met}


class Race:
    """Seconds per call of several contenders, measured in turns so that a busy machine slows all of them.

    Args:
        contenders: what to call; each is called twice first, which takes compilation and cold caches out.
        effort: how long to measure.
        clock: by default the CPU time of this thread: all contenders are single-threaded and wait for nothing, so
            that on an idle machine it is the wall time, and on a busy one it leaves out the time of others.
    """

    def __init__(
        self, contenders: Mapping[str, Work], effort: Effort, *, clock: Callable[[], float] = time.thread_time
    ) -> None:
        calls = {name: _calls(work, effort.sample_s) for name, work in contenders.items()}
        self.seconds: dict[str, np.ndarray] = {name: np.empty(effort.rounds) for name in contenders}
        for i in range(effort.rounds):
            for name, work in contenders.items():
                begin = clock()
                for _ in range(calls[name]):
                    work()
                self.seconds[name][i] = (clock() - begin) / calls[name]

    def line(
        self,
        ours: str,
        other: str,
        *,
        topic: str,
        unit: str,
        units: Mapping[str, float],
        bar: float | None = None,
        aim: float | None = None,
        kind: str = "peer",
    ) -> Line:
        """Compare two contenders, which do `units[name]` units of work in one call."""
        a, b = units[ours] / self.seconds[ours], units[other] / self.seconds[other]
        ratio, low, high = (float(x) for x in np.quantile(a / b, [0.5, 0.25, 0.75]))
        rate, against = float(np.median(a)), float(np.median(b))
        return Line(topic, ours, other, unit, rate, against, ratio, low, high, bar, aim, kind)


def _calls(work: Work, sample_s: float) -> int:
    work()
    begin = time.perf_counter()
    work()
    once = time.perf_counter() - begin
    if once >= sample_s:
        return 1
    n = max(1, int(sample_s / max(once, 1e-7)) // 8)
    begin = time.perf_counter()
    for _ in range(n):
        work()
    return max(1, round(sample_s * n / (time.perf_counter() - begin)))


class MismatchError(AssertionError):
    """Two contenders that must agree did not: their speeds mean nothing."""


def agree(what: str, good: object) -> None:
    """Raise MismatchError unless `good`."""
    if not good:
        raise MismatchError(f"{what}: the contenders disagree; fix that before timing them")
