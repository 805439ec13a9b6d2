"""What a run shows in the terminal: two bars while it goes on, tables when it has ended."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table

if TYPE_CHECKING:
    import polars as pl

    from retarget.study.cells import Cell, CellResult

_RENEW_EVERY_S = 0.1
#: Where nothing can move (a log, a pipe), a line this often.
_LINE_EVERY_S = 30.0


class Screen:
    """Two progress bars: cells of the whole run, and the fraction done of the cell that was heard of last.

    Implements `retarget.study.executor.Watcher`. Where the output is no terminal it prints a line now and then.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bars = Progress(
            # labels come from users: they give way when the terminal is narrow, and are never read as markup
            TextColumn(
                "{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
            ),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            transient=True,
            expand=True,
        )
        self.renewed = 0.0
        self.begun = self.said = time.monotonic()
        self.total = self.finished = 0
        self.all = self.bars.add_task("cells", total=None)
        self.one = self.bars.add_task("", total=100)

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def begin(self, cells: Sequence[Cell], before: int) -> None:
        """Told of the run's cells, and how many were done before."""
        words = f"cells ({before} done before)" if before else "cells"
        self.begun = self.said = time.monotonic()
        self.total, self.finished = len(cells) - before, 0
        self.bars.reset(self.all, total=self.total, description=words)

    def started(self, cell: Cell) -> None:
        now = time.monotonic()
        if now - self.renewed >= _RENEW_EVERY_S:  # drawing takes longer than many a cell
            self.renewed = now
            self.bars.reset(self.one, total=100, description=cell.label)

    def progressed(self, cell: Cell, fraction: float, words: str) -> None:
        self.bars.update(self.one, completed=round(100 * fraction), description=f"{cell.label}: {words}")

    def done(self, cell: Cell, result: CellResult) -> None:
        """Told of a cell that is in the journal."""
        self.bars.advance(self.all)
        self.finished += 1
        now = time.monotonic()
        if not self.console.is_terminal and now - self.said >= _LINE_EVERY_S:
            self.said = now
            self.console.print(progress_line(self.finished, self.total, now - self.begun), highlight=False)
        if result.error:
            text = f"failed: {cell.label}: {result.error.splitlines()[0]}"
            self.bars.console.print(text, markup=False, highlight=False, soft_wrap=True)


def progress_line(done: int, total: int, passed_s: float) -> str:
    """How far a run is, for a log.

    >>> progress_line(50, 200, 60.0)
    '50 of 200 cells after 1 min, about 3 min left'
    """
    left_s = passed_s / max(done, 1) * max(total - done, 0)
    return f"{done} of {total} cells after {passed_s / 60:.0f} min, about {left_s / 60:.0f} min left"


def number(value: object) -> str:
    """A number for a reader: at most four significant digits.

    >>> number(0.123456), number(12.0), number(None)
    ('0.1235', '12', '–')
    """
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
    return str(value)


def with_interval(value: object, low: object, high: object) -> str:
    """A number with its interval, where it has one.

    >>> with_interval(0.5, 0.25, 0.75)
    '0.5 [0.25, 0.75]'
    """
    if value is None or low is None or high is None or low == high:
        return number(value)
    return f"{number(value)} [{number(low)}, {number(high)}]"


def metric_table(means: pl.DataFrame, title: str) -> Table:
    """One line a metric, from `retarget.analysis.summary.metric_means`."""
    table = Table(title=_plain(title))
    table.add_column("metric", no_wrap=True)
    for heading in ("mean [95% interval]", "unit", "ok", "n.a.", "failed"):
        table.add_column(heading, justify="left" if heading == "unit" else "right", overflow="fold")
    for row in means.iter_rows(named=True):
        value = with_interval(row["mean"], row["ci_low"], row["ci_high"])
        counts = (row["ok"], row["not_applicable"], row["failed"])
        ways = [v if isinstance(v, str) else number(v) for v in (row["protocol"], row["dose"]) if v is not None]
        under = "".join(f"  {way}" for way in ways)
        table.add_row(_plain(row["metric"] + under), value, _plain(row["unit"]), *map(number, counts))
    return table


def goal_table(results: pl.DataFrame, *, most: int = 12) -> Table:
    """One line a goal B: what the change costs, by which editor, and what it is held against."""
    table = Table(title="by goal")
    table.add_column("goal B")
    for heading in ("log2 ratio", "edit bit", "by", "behav. bit", "blank bit", "after"):
        table.add_column(heading, justify="left" if heading == "by" else "right")
    named = results.filter(results["goal_b"].is_not_null())
    for goal in named["goal_b"].unique(maintain_order=True).to_list()[:most]:
        rows = {r["metric"]: r for r in named.filter(named["goal_b"] == goal).iter_rows(named=True)}

        def shown(metric: str, rows: dict[str, dict[str, object]] = rows) -> str:
            row = rows.get(metric)
            return "–" if row is None or row["status"] != "ok" else number(row["value"])

        by = rows.get("edit_bits", {}).get("editor")
        table.add_row(
            _plain(goal),
            shown("retargetability"),
            shown("edit_bits"),
            _plain(by),
            shown("behaviour_bits"),
            shown("blank_bits"),
            shown("competence_b_after"),
        )
    return table


def reasons(results: pl.DataFrame, *, most: int = 5) -> list[str]:
    """Why there is no retargetability where there is none: one line a reason, the commonest first."""
    missing = results.filter((results["metric"] == "retargetability") & (results["status"] != "ok"))
    counts = missing.group_by("status", "reason").len().rows()
    ordered = sorted(counts, key=lambda row: (-row[2], row[0], row[1]))
    lines = [f"{n} {status.replace('_', ' ')}: {reason}" for status, reason, n in ordered]
    return lines[:most] + ([f"… and {len(lines) - most} more reasons"] if len(lines) > most else [])


def nowhere(results: pl.DataFrame) -> list[str]:
    """Agents that nothing could be measured on in a world, with the commonest reason: one line each."""
    lines = []
    for (agent, world), rows in sorted(results.group_by("agent", "world"), key=lambda g: (str(g[0][0]), str(g[0][1]))):
        if not (rows["status"] == "ok").any():
            reason = rows["reason"].drop_nulls().mode().sort()
            lines.append(f"{agent} in {world}: {reason[0] if len(reason) else 'nothing was measured'}")
    return lines


def _plain(text: object) -> str:
    return "–" if text is None else str(text).replace("[", r"\[")
