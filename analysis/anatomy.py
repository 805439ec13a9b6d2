"""Where the goal lives: one line for each agent and role of parts, from the rows of the probe `where`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from retarget.agent import ROLES
from retarget.analysis.summary import agent_names, estimate

if TYPE_CHECKING:
    import polars as pl

#: What the columns of the table say, by their name.
COLUMNS = {
    "bits": "shortest edit of all",
    "bits_only": "shortest edit of these parts alone",
    "reached_only": "best on B by these parts alone",
    "retargeted_only": "pairs retargeted by these parts alone",
    "bits_without": "shortest edit without them",
    "reached_without": "best on B without them",
    "retargeted_without": "pairs retargeted without them",
}


def where_table(results: pl.DataFrame) -> pl.DataFrame:
    """Means over goal pairs, by agent and role.

    Returns:
        Columns `agent`, `role`, `pairs` (those with something to measure), then those of `COLUMNS`: mean bits over the
        pairs where such an edit was found, mean of the best competence on B, and the share of pairs that were
        retargeted. Null where the agent has no such parts, or they are all that it has.
    """
    import polars as pl

    rows = results.filter(pl.col("probe") == "where")
    out: list[dict[str, object]] = []
    for name in agent_names(rows) if rows.height else ():
        mine = rows.filter((pl.col("agent") == name.label) & (pl.col("agent_id") == name.agent_id))
        for role in ROLES:
            line = _line(mine, role)
            if line is not None:
                out.append({"agent": name.label, "role": role.replace("_", " "), **line})
    kinds: dict[str, pl.DataType] = {"agent": pl.String(), "role": pl.String(), "pairs": pl.Int64()}
    return pl.DataFrame(out, schema=kinds | {c: pl.Float64() for c in COLUMNS}, strict=True)


def _line(rows: pl.DataFrame, role: str) -> dict[str, object] | None:
    import polars as pl

    only, without = f"competence_b_only_{role}", f"competence_b_without_{role}"
    pairs = rows.filter((pl.col("metric") == only) & (pl.col("status") == "ok")).height
    if not pairs:
        return None
    out: dict[str, object] = {"pairs": pairs, "bits": _mean(rows, "edit_bits")}
    for which, metric in (("only", only), ("without", without)):
        bits = f"edit_bits_{which}_{role}"
        out[f"bits_{which}"] = _mean(rows, bits)
        out[f"reached_{which}"] = _mean(rows, metric)
        tried = rows.filter((pl.col("metric") == bits) & (pl.col("status") != "not_applicable"))["status"]
        out[f"retargeted_{which}"] = float((tried == "ok").sum()) / tried.len() if tried.len() else None
    return out


def _mean(rows: pl.DataFrame, metric: str) -> float | None:
    import polars as pl

    values = rows.filter((pl.col("metric") == metric) & (pl.col("status") == "ok"))["value"].sort().to_list()
    return estimate(metric, values).value if values else None
