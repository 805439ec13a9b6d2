"""The command that holds criteria against the rows of a run. Everything heavy loads inside it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retarget.cli_shared import make_console

if TYPE_CHECKING:
    import polars as pl
    from rich.table import Table

VERDICTS = "verdicts.parquet"


def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    criteria: Annotated[Path, typer.Argument(help="File of criteria (TOML).")],
    out: Annotated[
        Path | None, typer.Option(help="Where to write the verdicts, .parquet or .csv; RUN/verdicts.parquet without.")
    ] = None,
) -> None:
    """Hold criteria against the rows of a run: a verdict only where the instrument's own error allows it."""
    from retarget.errors import FileError
    from retarget.study.criteria import load_criteria
    from retarget.study.table import write_parquet
    from retarget.study.verdicts import evaluate as judge
    from retarget.study.verdicts import read_compiled, read_results

    path = out if out is not None else run / VERDICTS
    if path.suffix not in (".parquet", ".csv"):
        raise FileError(f"verdicts are written as .parquet or .csv, not to {str(path)!r}; choose another --out")
    asked = load_criteria(criteria)
    verdicts = judge(read_results(run), asked, compiled=read_compiled(run))
    console = make_console()
    console.print(verdict_table(verdicts))
    for line in doubts(verdicts):
        console.print(line, markup=False, highlight=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".csv":
            _inert(verdicts).write_csv(path)
        else:
            write_parquet(verdicts, path)
    except OSError as error:
        raise FileError(f"{str(path)!r} cannot be written ({error.strerror}); choose another --out") from None
    typer.echo(f"verdicts: {path}")


def verdict_table(verdicts: pl.DataFrame) -> Table:
    """One line a criterion and agent: how many verdicts of each sort, and the error that they rest on."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="verdicts")
    for heading in ("criterion", "agent", "asked"):
        table.add_column(heading, overflow="fold")
    for heading in ("meets", "does not", "cannot tell", "error", "bias", "known"):
        table.add_column(heading, justify="right")
    keys = ["criterion", "agent", "metric", "asked", "error", "bias", "known_rows"]
    for key, rows in verdicts.group_by(keys, maintain_order=True):
        name, agent, metric, asked, error, bias, known = key
        counts = Counter(rows["verdict"].to_list())
        sorts = [str(counts[v] or "–") for v in ("meets", "does not meet", "cannot tell")]
        shown = ["–" if v is None else f"{v:.3g}" for v in (error, bias)]
        table.add_row(escape(str(name)), escape(str(agent)), escape(f"{metric} {asked}"), *sorts, *shown, str(known))
    return table


def doubts(verdicts: pl.DataFrame, *, most: int = 8) -> list[str]:
    """Why it cannot be told where it cannot: one line a criterion and reason, the commonest first."""
    import re

    rows = verdicts.filter(verdicts["verdict"] == "cannot tell").select("criterion", "reason").rows()
    groups: dict[tuple[str, str], list[str]] = {}
    for name, reason in rows:
        groups.setdefault((name, re.sub(r"-?\d+(\.\d+)?(e-?\d+)?", "…", reason or "")), []).append(reason)
    ordered = sorted(groups.items(), key=lambda g: (-len(g[1]), g[0]))
    # numbers are shown where they are the same in all
    lines = [f"cannot tell {len(r)} x {name}: {r[0] if len(set(r)) == 1 else like}" for (name, like), r in ordered]
    return lines[:most] + ([f"and {len(lines) - most} more reasons"] if len(lines) > most else [])


def _inert(table: pl.DataFrame) -> pl.DataFrame:
    """Texts that a spreadsheet would run as formulas get a quote before them."""
    import polars as pl

    def quoted(name: str) -> pl.Expr:
        text = pl.col(name)
        return pl.when(text.str.contains(r"^[=+\-@\t\r]")).then("'" + text).otherwise(text).alias(name)

    return table.with_columns([quoted(name) for name, kind in table.schema.items() if kind == pl.String])
