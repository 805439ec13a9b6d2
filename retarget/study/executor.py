"""Running cells: one after another, or in a pool of processes. Another engine needs `map`, and nothing else.

Workers share no state: a cell goes out, its result comes back, and the caller alone writes the journal.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Generic, Protocol, TypeVar

C = TypeVar("C")
R = TypeVar("R")
Report = Callable[[float, str], None]
#: What runs in a worker: a cell, and where to report the fraction done.
Function = Callable[[C, Report], R]

#: One intra-op thread a worker: two processes with two threads each are slower than two with one.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
    "POLARS_MAX_THREADS",
)
_REPORT_EVERY_S = 0.1


@dataclass(frozen=True)
class Lost:
    """Takes the place of a result when the worker ended before the cell did."""

    reason: str


class Executor(Protocol):
    """What runs cells. Results come in any order, each with its cell."""

    def map(self, function: Function[C, R], cells: Iterable[C]) -> Iterator[tuple[C, R | Lost]]: ...


class Watcher(Protocol):
    """Told what goes on, if anybody wants to know."""

    def started(self, cell: Any) -> None: ...

    def progressed(self, cell: Any, fraction: float, words: str) -> None: ...


class Serial:
    """Runs cells one after another in this process.

    >>> list(Serial().map(lambda cell, report: cell * 2, [1, 2]))
    [(1, 2), (2, 4)]
    """

    def __init__(self, watcher: Watcher | None = None) -> None:
        self.watcher = watcher

    def map(self, function: Function[C, R], cells: Iterable[C]) -> Iterator[tuple[C, R | Lost]]:
        for cell in cells:
            if self.watcher is not None:
                self.watcher.started(cell)
            yield cell, function(cell, self._report(cell))

    def _report(self, cell: object) -> Report:
        watcher = self.watcher
        return lambda fraction, words: None if watcher is None else watcher.progressed(cell, fraction, words)


@dataclass(eq=False)
class _Worker(Generic[C]):
    process: SpawnProcess
    pipe: Connection
    mine: deque[C]
    cell: C | None = None


class ProcessPool:
    """Runs cells in `workers` fresh processes, one cell at a time in each.

    A worker that dies takes only its cell with it (`Lost`), and is replaced. Workers end with their parent,
    whatever ends it.

    Args:
        workers: number of processes, at least 1.
        group: cells with the same group go to the same worker while there is other work for the rest.
        watcher: told when cells begin and how far they are.
    """

    def __init__(
        self, workers: int, *, group: Callable[[Any], Hashable] | None = None, watcher: Watcher | None = None
    ) -> None:
        if workers < 1:
            raise ValueError(f"a pool needs at least one worker, got {workers}")
        self.workers, self.group, self.watcher = workers, group, watcher

    def map(self, function: Function[C, R], cells: Iterable[C]) -> Iterator[tuple[C, R | Lost]]:
        queues = _grouped(cells, self.group)
        team: list[_Worker[C]] = []
        with single_threaded():
            try:
                for _ in range(min(self.workers, sum(map(len, queues)))):
                    team.append(_hire(function))
                    self._feed(team[-1], queues, team)
                while busy := {w.pipe: w for w in team if w.cell is not None}:
                    for pipe in wait(list(busy)):
                        yield from self._hear(busy[pipe], function, queues, team)  # type: ignore[index]
            finally:
                for worker in team:
                    _dismiss(worker)

    def _hear(
        self, worker: _Worker[C], function: Function[C, R], queues: deque[deque[C]], team: list[_Worker[C]]
    ) -> Iterator[tuple[C, R | Lost]]:
        cell = worker.cell
        assert cell is not None
        try:
            kind, *rest = worker.pipe.recv()
        except (EOFError, OSError):
            worker.process.join()
            team.remove(worker)
            worker.pipe.close()
            if any(queues) or worker.mine:
                team.append(_hire(function))
                team[-1].mine = worker.mine
                self._feed(team[-1], queues, team)
            yield cell, Lost(_epitaph(worker.process.exitcode))
            return
        if kind == "progress":
            if self.watcher is not None:
                self.watcher.progressed(cell, *rest)
            return
        self._feed(worker, queues, team)
        yield cell, Lost(rest[0]) if kind == "error" else rest[0]

    def _feed(self, worker: _Worker[C], queues: deque[deque[C]], team: list[_Worker[C]]) -> None:
        worker.cell = _next_cell(worker, queues, team)
        if worker.cell is None:
            return
        if self.watcher is not None:
            self.watcher.started(worker.cell)
        with suppress(BrokenPipeError, ConnectionResetError):  # it died just now: the next `recv` from it says so
            worker.pipe.send(worker.cell)


def _grouped(cells: Iterable[C], group: Callable[[C], Hashable] | None) -> deque[deque[C]]:
    queues: dict[Hashable, deque[C]] = {}
    for number, cell in enumerate(cells):
        queues.setdefault(number if group is None else group(cell), deque()).append(cell)
    return deque(queues.values())


def _next_cell(worker: _Worker[C], queues: deque[deque[C]], team: list[_Worker[C]]) -> C | None:
    """The worker's own next cell, else the first of a new group, else the last of the most loaded colleague."""
    if not worker.mine and queues:
        worker.mine = queues.popleft()
    if worker.mine:
        return worker.mine.popleft()
    loaded = max(team, key=lambda w: len(w.mine))
    return loaded.mine.pop() if loaded.mine else None


def _hire(function: Function[C, R]) -> _Worker[C]:
    # spawn, not fork: compiled kernels and Polars keep threads, which a fork would copy half-way
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, function), daemon=True)
    with _interrupts_blocked():
        process.start()
    theirs.close()  # so that the worker's death is the end of the pipe
    return _Worker(process, ours, deque())


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Hold Ctrl-C back while a process starts: the child inherits the mask, and stays quiet while it imports."""
    if not hasattr(signal, "pthread_sigmask"):  # pragma: no cover - Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _dismiss(worker: _Worker[C]) -> None:
    worker.pipe.close()
    if worker.cell is not None:
        worker.process.terminate()
    worker.process.join(5)
    if worker.process.is_alive():
        worker.process.kill()
        worker.process.join()
    worker.process.close()


def _epitaph(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        name = signal.Signals(-exitcode).name
        hint = ", often for want of memory: use fewer workers" if name == "SIGKILL" else ""
        return f"WorkerLost: the worker was ended by {name}{hint}"
    return f"WorkerLost: the worker ended with exit code {exitcode}"


@contextmanager
def single_threaded() -> Iterator[None]:
    """Set the variables that tell numerical libraries to use one thread, for processes started inside."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _serve(pipe: Connection, function: Function[Any, Any]) -> None:
    """What a worker does: cells in, results out, until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_follow_parent, daemon=True).start()
    while True:
        try:
            cell = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            answer: tuple[object, ...] = ("done", function(cell, _reporter(pipe)))
        except Exception as problem:  # the parent turns it into rows
            answer = ("error", f"{type(problem).__name__}: {problem}")
        pipe.send(answer)


def _reporter(pipe: Connection) -> Report:
    last = 0.0

    def report(fraction: float, words: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _REPORT_EVERY_S:
            last = now
            pipe.send(("progress", float(fraction), str(words)))

    return report


def _follow_parent() -> None:
    """End with the parent, even in the middle of a cell: after `kill -9` nobody waits for the result."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
