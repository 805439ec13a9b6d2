"""The tables of a run: one fixed order of rows, one fixed way of writing, so that the same rows give the same bytes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from retarget.row import FRONTIER_COLUMNS, RESULT_COLUMNS, Column, frame
from retarget.study.journal import Record

if TYPE_CHECKING:
    import polars as pl

RESULTS = "results.parquet"
FRONTIERS = "frontiers.parquet"
TIMINGS = "timings.parquet"

TIMING_COLUMNS: tuple[Column, ...] = (
    Column("cell", "String", "", "content-derived key of the cell"),
    Column("wall_s", "Float64", "seconds", "wall time of the cell; differs from run to run"),
)


def write_tables(records: Iterable[Record], out: Path) -> tuple[Path, Path, Path]:
    """Write `results.parquet`, `frontiers.parquet` and `timings.parquet`.

    Rows are in the order of the cells' keys, then of the probe's metrics. The first two files depend on the rows
    alone: not on the order in which cells ended, nor on the number of workers.

    Args:
        records: finished cells, in any order; of two with one key the first is taken.
        out: folder to write to; files there are replaced whole.
    """
    kept: dict[str, Record] = {}
    for record in records:
        kept.setdefault(record.key, record)
    ordered = [kept[key] for key in sorted(kept)]
    results = frame([row for r in ordered for row in r.rows], RESULT_COLUMNS)
    frontiers = frame([row for r in ordered for row in r.frontier], FRONTIER_COLUMNS)
    timings = frame([{"cell": r.key, "wall_s": r.wall_s} for r in ordered], TIMING_COLUMNS)
    return (
        write_parquet(results, out / RESULTS),
        write_parquet(frontiers, out / FRONTIERS),
        write_parquet(timings, out / TIMINGS),
    )


def write_parquet(table: pl.DataFrame, path: Path) -> Path:
    """Write a table with every option fixed, under another name first, so that no half of a file is ever seen."""
    draft = path.with_name(f".{path.name}.new-{os.getpid()}")
    try:
        table.write_parquet(draft, compression="zstd", compression_level=3, statistics=True, row_group_size=1 << 16)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path
