"""Which editor found the shortest edit, and what it saved against starting from a blank agent."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

from retarget.analysis.summary import agent_name, natural_key

if TYPE_CHECKING:
    import polars as pl

#: Columns of numbers in the table, with the heading and unit of each.
EDITOR_COLUMNS: dict[str, tuple[str, str]] = {
    "edit_bits": ("edit", "bit"),
    "blank_bits": ("blank's edit", "bit"),
    "saved_bits": ("saved bits", "ratio"),
    "saved_compute": ("saved compute", "ratio"),
    "retrain_bits": ("retrained", "bit"),
}
_CELL = ["agent_id", "agent", "world", "goal_a", "goal_b", "seed"]


def editor_table(results: pl.DataFrame, frontiers: pl.DataFrame | None) -> pl.DataFrame:
    """One row per agent and world.

    Args:
        results: rows of `RESULT_COLUMNS`.
        frontiers: rows of `FRONTIER_COLUMNS`, or None.

    Returns:
        Columns `agent`, `world`, `winners` (editors with the number of pairs in which each found the shortest edit),
        and those of `EDITOR_COLUMNS`: geometric means over the pairs that have the number, null where none has.
    """
    import polars as pl

    ok = results.filter((pl.col("status") == "ok") & pl.col("goal_b").is_not_null())
    won = ok.filter(pl.col("metric") == "edit_bits")
    trained = _retrained(results, frontiers)
    out: list[dict[str, Any]] = []
    for key in sorted(
        won.select("agent_id", "agent", "world").unique().rows(),
        key=lambda k: (agent_name(k[0], k[1]).sort_key, natural_key(k[2])),
    ):
        here = (pl.col("agent_id") == key[0]) & (pl.col("agent") == key[1]) & (pl.col("world") == key[2])
        mine = _complete(ok.filter(here))
        counts = Counter(won.filter(here)["editor"].drop_nulls().to_list())
        names = ", ".join(f"{e} {n}" for e, n in sorted(counts.items(), key=lambda c: (-c[1], c[0])))
        ratio, compute = _mean(mine, "blank_ratio"), _mean(mine, "compute_ratio")
        out.append(
            {
                "agent": key[1],
                "world": key[2],
                "winners": names,
                "edit_bits": _mean(mine, "edit_bits"),
                "blank_bits": _mean(mine, "blank_bits"),
                "saved_bits": None if ratio is None else 1 / ratio,
                "saved_compute": None if compute is None else 1 / compute,
                "retrain_bits": _geometric(trained.filter(here)["bits"].to_list()) if trained is not None else None,
            }
        )
    schema = {n: pl.String() for n in ("agent", "world", "winners")} | {n: pl.Float64() for n in EDITOR_COLUMNS}
    return pl.DataFrame(out, schema=schema)


def _complete(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows of the pairs that have all the numbers that are compared, so that columns are over the same pairs."""
    import polars as pl

    wanted = ("edit_bits", "blank_bits", "blank_ratio", "compute_ratio")
    there = [m for m in wanted if rows.filter(pl.col("metric") == m).height]
    pairs = rows.filter(pl.col("metric").is_in(there)).group_by(_CELL).agg(pl.col("metric").n_unique())
    return rows.join(pairs.filter(pl.col("metric") == len(there)).select(_CELL), on=_CELL, how="semi")


def _retrained(results: pl.DataFrame, frontiers: pl.DataFrame | None) -> pl.DataFrame | None:
    """The shortest edit of each pair that retraining from the agent gave, among those that meet the requirement."""
    import polars as pl

    if frontiers is None or frontiers.is_empty():
        return None
    need = results.filter((pl.col("metric") == "required_competence") & (pl.col("status") == "ok"))
    need = need.select(*_CELL, pl.col("value").alias("required")).unique(_CELL)
    rows = frontiers.filter((pl.col("subject") == "agent") & pl.col("editor").str.starts_with("retrain"))
    rows = rows.join(need, on=_CELL).filter(pl.col("competence") >= pl.col("required") - 1e-9)
    return rows.group_by(_CELL).agg(pl.col("bits").min())


def _mean(rows: pl.DataFrame, metric: str) -> float | None:
    import polars as pl

    return _geometric(rows.filter(pl.col("metric") == metric)["value"].to_list())


def _geometric(values: list[float]) -> float | None:
    """The geometric mean of the positive values; None where there are none. Sorted, so that the order is no matter."""
    kept = sorted(math.log(v) for v in values if v is not None and v > 0)
    return math.exp(sum(kept) / len(kept)) if kept else None
