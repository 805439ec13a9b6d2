"""Identities: what a metric is on some kind of agent whatever the instrument does. They measure no error."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import polars as pl

AgentKind = Literal["compiled", "table", "any"]

_ITSELF = "compares the agent with the table compiled from it, which is the agent itself"
_CELLS = "compares directions in cells of states that are apart: a table has no cell in both"

#: Metrics whose value is settled before anything is measured: on which kind of agent, and why. A `table` is a compiled
#: agent or one that holds a cell for each state (`TABLES`).
IDENTITIES: Mapping[tuple[str, AgentKind], str] = {
    **{
        (metric, "compiled"): _ITSELF
        for metric in (
            "retargetability", "retargetability_plain", "slope_over_table", "map_gain_over_table", "narrowness",
        )
    },
    **{
        (metric, "table"): _CELLS
        for metric in (
            "goal_coherence", "coherence_seen", "coherence_held_out", "coherence_other_goal", "coherence_shuffled",
            "gradient_cosine", "goal_transfer", "goal_share", "goal_share_shuffled", "complement_share",
        )
    },
    ("meg_uniform", "any"): "is read off a uniform policy, and not off the agent",
    ("empty_collateral", "any"): "is read off the edit that changes nothing",
}  # fmt: skip
#: Kinds of the catalogue with a cell for each state and action, compiled or not.
TABLES: frozenset[str] = frozenset({"q_table"})


def identity(row: Mapping[str, Any], compiled: Collection[str]) -> str:
    """Why the value of a row holds by construction; empty where it does not.

    Args:
        row: with `metric`, `agent` and `agent_id`.
        compiled: labels of agents that are compiled tables.

    >>> row = {"metric": "retargetability", "agent": "limit table", "agent_id": "q_table"}
    >>> identity(row, {"limit table"})
    'compares the agent with the table compiled from it, which is the agent itself'
    >>> identity(row | {"metric": "edit_bits"}, {"limit table"})
    ''
    """
    is_compiled = row["agent"] in compiled or row["agent"].endswith(", compiled")
    kinds: list[AgentKind] = ["any"]
    kinds += ["compiled"] if is_compiled else []
    kinds += ["table"] if is_compiled or row["agent_id"] in TABLES else []
    return next((IDENTITIES[row["metric"], kind] for kind in kinds if (row["metric"], kind) in IDENTITIES), "")


def compiled_by_rows(results: pl.DataFrame) -> frozenset[str]:
    """Labels of agents that their rows show to be compiled tables: every edit found of them is one of their table's,
    with the same length. For runs that have no study beside them (an agent from a file, say)."""
    import polars as pl

    keys = ["agent", "world", "goal_a", "goal_b", "seed"]
    rows = results.filter((pl.col("probe") == "retargetability") & (pl.col("status") == "ok"))
    own = rows.filter(pl.col("metric") == "edit_bits").select(*keys, "parts", "value")
    table = rows.filter(pl.col("metric") == "behaviour_bits").select(*keys, pl.col("value").alias("table"))
    both = own.join(table, on=keys, how="left", nulls_equal=True)
    alike = (pl.col("parts") == "table").fill_null(False) & (pl.col("value") == pl.col("table")).fill_null(False)
    found = both.group_by("agent").agg(alike.all().alias("alike"))
    return frozenset(found.filter(pl.col("alike"))["agent"].to_list())
