"""A run: the cells of a study that are not yet in the journal, through an executor, into the journal and the tables."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from retarget.digest import canonical_json
from retarget.errors import JournalError, StudyError
from retarget.study.cells import Cell, CellResult, failed_result, plan, run_cell
from retarget.study.executor import Executor, Lost
from retarget.study.journal import Journal, Record, read_records
from retarget.study.spec import Study
from retarget.study.table import write_tables


@dataclass(frozen=True)
class Shard:
    """Part `number` of `count`, counted from 1. Cells are dealt by their keys: disjoint, and complete together.

    >>> Shard.parse("2/4")
    Shard(number=2, count=4)
    """

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read `i/n`.

        Raises:
            StudyError: unless 1 <= i <= n.
        """
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
        number, count = (int(match.group(1)), int(match.group(2))) if match else (0, 0)
        if not 1 <= number <= count:
            raise StudyError(f"shard {text!r} is not of the form i/n; shards of four are 1/4, 2/4, 3/4 and 4/4")
        return cls(number, count)

    def holds(self, key: str) -> bool:
        """Whether the cell with this key (hex digits) is in the shard."""
        return int(key, 16) % self.count == self.number - 1

    @property
    def journal_name(self) -> str:
        """Name of the shard's own journal file."""
        return f"journal{self._suffix}.sqlite"

    @property
    def failures_name(self) -> str:
        """Name of the file with the shard's unexpected errors."""
        return f"failures{self._suffix}.txt"

    @property
    def _suffix(self) -> str:
        return "" if self.count == 1 else f"-{self.number}-of-{self.count}"


@dataclass(frozen=True)
class RunReport:
    """How a run ended.

    Attributes:
        out: the run's folder.
        total: cells of the whole study.
        share: cells of this shard.
        resumed: cells of this shard that had been done before.
        complete: whether every cell of the study is done, so that the tables were written.
        errors: label and error of each cell that ended unexpectedly (of this shard, or of all when complete); they
            are in `failures.txt` too, with tracebacks.
    """

    out: Path
    total: int
    share: int
    resumed: int
    complete: bool
    errors: tuple[tuple[str, str], ...]


def study_digest(study: Study) -> str:
    """SHA-256 (first 32 hex digits) of a study's content: what a journal is bound to."""
    return hashlib.sha256(canonical_json(study.as_dict()).encode()).hexdigest()[:32]


def run_study(
    study: Study,
    out: Path,
    *,
    executor: Executor,
    shard: Shard | None = None,
    retry_failed: bool = False,
    on_start: Callable[[Sequence[Cell], int], None] | None = None,
    on_done: Callable[[Cell, CellResult], None] | None = None,
) -> RunReport:
    """Run what is left of a study, and write the tables once every cell is done.

    Args:
        study: what to measure.
        out: the run's folder, made when it does not exist; nothing in it is deleted.
        executor: what runs the cells.
        shard: which part of the cells to run; all of them when None.
        retry_failed: run the cells again that an unexpected error had ended.
        on_start: told the shard's cells, and how many of them were done before.
        on_done: told of each cell when it is in the journal.

    Raises:
        JournalError: when the folder's journal is damaged, in use, of another version or of another study.
        StudyError: when two cells would be the same.
    """
    shard = shard or Shard()
    cells = plan(study)
    mine = [c for c in cells if shard.holds(c.key)]
    digest = study_digest(study)
    with Journal(out / shard.journal_name, digest) as journal:
        _write_study(study, out)
        done = journal.keys() - (journal.failed_keys() if retry_failed else set())
        done |= {r.key for r in _elsewhere(out, shard, digest) if not (retry_failed and r.error)}
        left = [c for c in mine if c.key not in done]
        if on_start is not None:
            on_start(mine, len(mine) - len(left))
        _run_cells(left, journal, executor, on_done)
        records = list(journal.records())
    # only now, with this journal closed: of shards that end together, the last one sees all
    records += _elsewhere(out, shard, digest)
    complete = {c.key for c in cells} <= {r.key for r in records}
    if complete:
        write_tables(records, out)
    errors = _errors(cells if complete else mine, records)
    _write_failures(out / shard.failures_name, errors)
    named = tuple((label, error.splitlines()[0]) for label, error in errors)
    return RunReport(out, len(cells), len(mine), len(mine) - len(left), complete, named)


def _run_cells(
    cells: Sequence[Cell], journal: Journal, executor: Executor, on_done: Callable[[Cell, CellResult], None] | None
) -> None:
    answers = executor.map(run_cell, cells)
    try:
        for cell, answer in answers:
            result = failed_result(cell, answer.reason) if isinstance(answer, Lost) else answer
            journal.add(Record(cell.key, result.rows, result.frontier, result.error, result.wall_s))
            if on_done is not None:
                on_done(cell, result)
    finally:
        if hasattr(answers, "close"):  # a generator: its workers end now, not when it is collected
            answers.close()


def _errors(cells: Sequence[Cell], records: Sequence[Record]) -> list[tuple[str, str]]:
    """Label and error of the cells that ended unexpectedly, by key; of two records of one cell the first counts."""
    first = {r.key: r.error for r in reversed(records)}
    return [(c.label, first[c.key]) for c in sorted(cells, key=lambda c: c.key) if first.get(c.key)]


def _write_failures(path: Path, errors: Sequence[tuple[str, str]]) -> None:
    path.unlink(missing_ok=True)
    if errors:
        path.write_text("\n".join(f"{label}\n{error}\n" for label, error in errors), encoding="utf-8")


def _elsewhere(out: Path, shard: Shard, digest: str) -> list[Record]:
    """Records of the other journals in the folder: of those that are closed, since an open one has more to come."""
    records: list[Record] = []
    for path in sorted(out.glob("journal*.sqlite")):
        if path.name == shard.journal_name or path.with_name(path.name + "-wal").exists():
            continue
        try:
            records += read_records(path, digest)
        except JournalError as error:
            if "in use" not in str(error):
                raise
    return records


def _write_study(study: Study, out: Path) -> None:
    text = json.dumps(study.as_dict(), indent=2, sort_keys=True) + "\n"
    draft = out / f".study.json.new-{os.getpid()}"
    draft.write_text(text, encoding="utf-8")
    draft.replace(out / "study.json")
