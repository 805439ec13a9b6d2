"""The same summary for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from retarget.analysis.checks import number
from retarget.analysis.summary import summarise

if TYPE_CHECKING:
    import polars as pl
    from rich.table import Table


def terminal_table(results: pl.DataFrame) -> Table:
    """One line per agent, over all worlds, goals and seeds: means with half of the 95% interval, and counts.

    Args:
        results: rows of `RESULT_COLUMNS`; may be empty, which gives a table without lines.
    """
    import polars as pl
    from rich.table import Table
    from rich.text import Text

    table = Table(title="means over worlds, goals and seeds; ± half of the 95% interval; counts of goal pairs")
    table.add_column("agent", overflow="fold", min_width=14)
    heads = ("robust-\nness", "retarget-\nability", "edit\n(bit)", "behav.\n(bit)", "ok/n.a./\nfailed")
    for name in heads:
        table.add_column(name, justify="right", no_wrap=True)
    for row in summarise(results).filter(pl.col("scope") == "all").rows(named=True):
        counts = f"{row['pairs_ok']}/{row['pairs_not_applicable']}/{row['pairs_failed']}"
        table.add_row(
            # Labels come from users: Text takes them literally, a string would be read as markup.
            Text("".join(c if c.isprintable() else "�" for c in row["agent"])),
            _mean(row, "robustness"),
            _mean(row, "retargetability"),
            number(row["edit_bits"]),
            number(row["behaviour_bits"]),
            counts,
        )
    return table


def _mean(row: dict[str, float | None], metric: str) -> str:
    value, low, high = row[metric], row[f"{metric}_low"], row[f"{metric}_high"]
    if value is None:
        return "–"
    if low is None or high is None:
        return _short(value)
    # Intervals that are cut at a bound are not symmetric: the wider side is shown.
    return f"{_short(value)} ± {_short(max(high - value, value - low))}"


def _short(value: float) -> str:
    """Two decimals, so that a table fits a narrow terminal; a share just below 1 is not rounded up to it."""
    text = f"{value:.2f}"
    return number(value) if abs(value) < 1 and text in ("1.00", "-1.00") else text.replace("-", "−")
