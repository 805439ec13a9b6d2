"""Robustness and retargetability against what one decision computes: the ladder of searches as one figure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from retarget.analysis.figures import _SERIES, _VARIABLES, INK, Figure, KeyItem, _data, _ends, svg_of
from retarget.analysis.summary import AgentName, agent_names, dial_of, estimate

if TYPE_CHECKING:
    import polars as pl

_SHAPES = ("circle", "diamond", "triangle-up", "square", "cross", "triangle-down", "triangle-right", "triangle-left")
_METRICS = (("robustness", "robustness (0 to 1)"), ("retargetability", "retargetability (log2 ratio)"))


def compute_points(results: pl.DataFrame) -> list[dict[str, Any]]:
    """A row for each family of searches, dial and metric: `family`, `dial`, `metric`, `flops` (mean operations of one
    decision), `value`, `low`, `high`, `n`. Families with one setting, and tables compiled from a search, are left out.
    """
    import polars as pl

    families: dict[str, list[tuple[int, AgentName]]] = {}
    for name in agent_names(results):
        found = None if name.compiled else dial_of(name.label)
        if found is not None:
            families.setdefault(found[0], []).append((found[1], name))
    out = []
    for family, members in families.items():
        if len(members) < 2:
            continue
        for dial, name in sorted(members, key=lambda m: m[0]):
            mine = results.filter(
                (pl.col("agent") == name.label) & (pl.col("agent_id") == name.agent_id) & (pl.col("status") == "ok")
            )
            for metric, _ in _METRICS:
                rows = mine.filter(pl.col("metric") == metric)
                flops = rows["flops_per_action"].drop_nulls()
                if rows.is_empty() or flops.is_empty():
                    continue
                e = estimate(metric, rows["value"].sort().to_list())
                low, high = _ends(e)
                out.append(
                    {"family": family, "dial": dial, "metric": metric, "flops": max(float(flops.sort().mean()), 1.0)}  # type: ignore[arg-type]
                    | {"value": e.value, "low": low, "high": high, "n": e.n}
                )
    return out


def compute_figure(results: pl.DataFrame) -> Figure | None:
    """Robustness and retargetability against operations of one decision, a line for each kind of search."""
    import altair as alt

    rows = compute_points(results)
    families = list(dict.fromkeys(r["family"] for r in rows))
    if not families:
        return None
    style = {f: (_SERIES[i % len(_SERIES)], _SHAPES[i % len(_SHAPES)]) for i, f in enumerate(families)}
    low, high = min(r["flops"] for r in rows), max(r["flops"] for r in rows)
    x = alt.X(
        "flops:Q",
        scale=alt.Scale(type="log", domain=[low / 1.5, high * 1.5], nice=False),
        axis=alt.Axis(title="operations of one decision", format="~s", tickCount=6),
    )
    panels = []
    for metric, title in _METRICS:
        mine = [r for r in rows if r["metric"] == metric]
        if not mine:
            continue
        ends = min(0.0, *[r["low"] for r in mine]), max(1.0, *[r["high"] for r in mine])
        pad = 0.03 * (ends[1] - ends[0])
        y = alt.Y(
            "value:Q",
            scale=alt.Scale(domain=[ends[0] - pad, ends[1] + pad], nice=False),
            axis=alt.Axis(title=title),
        )
        layers = []
        if ends[0] < 0:
            layers.append(alt.Chart(_data([{"zero": 0}])).mark_rule(color=INK, opacity=0.4).encode(y="zero:Q"))
        for family in families:
            line = alt.Chart(_data([r for r in mine if r["family"] == family]))
            tint, shape = style[family]
            layers += [
                line.mark_rule(color=tint, strokeWidth=1.2, opacity=0.7).encode(x=x, y=alt.Y("low:Q"), y2="high:Q"),
                line.mark_line(color=tint, strokeWidth=1.8).encode(x=x, y=y, order="dial:Q"),
                line.mark_point(color=tint, fill=tint, shape=shape, size=38).encode(x=x, y=y),
            ]
        panels.append(alt.layer(*layers).properties(width=330, height=260, title=metric))
    return Figure(
        "compute",
        "What search buys: robustness and retargetability against compute",
        "Each line is one kind of search, each mark one setting of its simulations or its depth: mean over worlds, "
        "goals and seeds with the 95% interval. Settings at which no goal pair could be measured have no mark. "
        "Operations are counted by formula and averaged over states, so that work moved to decision time shows.",
        svg_of(alt.hconcat(*panels, spacing=30), "compute"),
        key=tuple(KeyItem(f, _VARIABLES[style[f][0]], style[f][1]) for f in families),
    )
