"""Robustness and retargetability against what one decision computes: the ladder of searches as one figure."""

from __future__ import annotations

import math
from string import ascii_lowercase
from typing import TYPE_CHECKING, Any

from retarget.analysis.figures import _SERIES, _VARIABLES, CARD, INK, Figure, KeyItem, _data, _ends, svg_of
from retarget.analysis.search_checks import dial_from
from retarget.analysis.summary import AgentName, agent_names, estimate

if TYPE_CHECKING:
    import polars as pl

_SHAPES = ("circle", "diamond", "triangle-up", "square", "cross", "triangle-down", "triangle-right", "triangle-left")
_METRICS = (("robustness", "robustness (0 to 1)"), ("retargetability", "retargetability (log2 ratio)"))
_WIDE, _HIGH = 350, 280
#: Letters of lone agents nearer than this, in pixels, are written as one text.
_NEAR = 13.0


def compute_points(results: pl.DataFrame) -> list[dict[str, Any]]:
    """A row for each family of searches, dial and metric: `family`, `dial`, `metric`, `flops` (mean operations of one
    decision), `value`, `low`, `high`, `n`, and `lone`: whether the family has one setting only (its dial may then be
    unknown, None). Agents that do not search when they decide, and tables compiled from a search, are left out.
    """
    families: dict[str, list[tuple[int | None, AgentName]]] = {}
    for name in agent_names(results):
        if name.compiled:
            continue
        found = dial_from(results, name)
        family, dial = found if found is not None else (name.label, None)
        families.setdefault(family, []).append((dial, name))
    out = []
    for family, members in families.items():
        for dial, name in sorted(members, key=lambda m: m[0] or 0):
            out += [
                {"family": family, "dial": dial, "lone": len(members) < 2} | point for point in _points(results, name)
            ]
    return out


def _points(results: pl.DataFrame, name: AgentName) -> list[dict[str, Any]]:
    """What was measured of one agent that searches at decision time."""
    import polars as pl

    mine = results.filter(
        (pl.col("agent") == name.label) & (pl.col("agent_id") == name.agent_id) & (pl.col("status") == "ok")
    )
    if not (mine["simulations_per_action"].max() or 0):
        return []
    out: list[dict[str, Any]] = []
    for metric, _ in _METRICS:
        rows = mine.filter(pl.col("metric") == metric)
        flops = rows["flops_per_action"].drop_nulls().sort().mean()
        if rows.is_empty() or flops is None:
            continue
        e = estimate(metric, rows["value"].sort().to_list())
        low, high = _ends(e)
        out.append(
            {"metric": metric, "flops": max(float(flops), 1.0), "value": e.value, "low": low, "high": high, "n": e.n}  # type: ignore[arg-type]
        )
    return out


def compute_figure(results: pl.DataFrame) -> Figure | None:
    """Robustness and retargetability against operations of one decision: a line for each kind of search, a letter for
    each agent of one setting. None where no kind of search has two settings."""
    import altair as alt

    rows = compute_points(results)
    families = list(dict.fromkeys(r["family"] for r in rows if not r["lone"]))
    if not families:
        return None
    style = {f: (_SERIES[i % len(_SERIES)], _SHAPES[i % len(_SHAPES)]) for i, f in enumerate(families)}
    lone = {f: _letter(i) for i, f in enumerate(dict.fromkeys(r["family"] for r in rows if r["lone"]))}
    low, high = min(r["flops"] for r in rows) / 1.5, max(r["flops"] for r in rows) * 1.5
    x = alt.X(
        "flops:Q",
        scale=alt.Scale(type="log", domain=[low, high], nice=False),
        axis=alt.Axis(title="operations of one decision", format="~s", tickCount=6),
    )
    panels = []
    for metric, title in _METRICS:
        mine = [r for r in rows if r["metric"] == metric]
        if not mine:
            continue
        ends = min(0.0, *[r["low"] for r in mine]), max(1.0, *[r["high"] for r in mine])
        pad = 0.03 * (ends[1] - ends[0])
        span = ends[0] - pad, ends[1] + pad
        y = alt.Y("value:Q", scale=alt.Scale(domain=list(span), nice=False), axis=alt.Axis(title=title))
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
        layers += _lone(mine, lone, (low, high), span, x, y)
        panels.append(alt.layer(*layers).properties(width=_WIDE, height=_HIGH, title=metric))
    return Figure(
        "compute",
        "What search buys: robustness and retargetability against compute",
        "Each line is one kind of search, each mark on it one setting of its simulations or its depth; agents of one "
        "setting are rings with letters: mean over worlds, goals and seeds, and the 95% interval of lines. Settings at "
        "which no goal pair could be measured have no mark. Operations are counted by formula and averaged over "
        "states, so that work moved to decision time shows.",
        svg_of(alt.hconcat(*panels, spacing=30), "compute"),
        key=(
            *(KeyItem(f, _VARIABLES[style[f][0]], style[f][1]) for f in families),
            *(KeyItem(f"{letter}: {f}", _VARIABLES[INK], "circle", True) for f, letter in lone.items()),
        ),
    )


def _letter(i: int) -> str:
    """a, b, …, z, a2, b2, …"""
    turn, at = divmod(i, len(ascii_lowercase))
    return ascii_lowercase[at] + (str(turn + 1) if turn else "")


def _lone(
    rows: list[dict[str, Any]],
    letters: dict[str, str],
    xs: tuple[float, float],
    ys: tuple[float, float],
    x: Any,
    y: Any,
) -> list[Any]:
    """Rings for agents of one setting, with their letters; those that lie together share one text."""
    import altair as alt

    points = [r | {"text": letters[r["family"]]} for r in rows if r["lone"]]
    if not points:
        return []
    texts: list[tuple[float, float, dict[str, Any]]] = []
    for point in points:
        at = _WIDE * math.log(point["flops"] / xs[0]) / math.log(xs[1] / xs[0])
        up = _HIGH * (point["value"] - ys[0]) / (ys[1] - ys[0])
        near = next((t for px, py, t in texts if math.hypot(px - at, py - up) < _NEAR), None)
        if near is None:
            texts.append((at, up, {k: point[k] for k in ("flops", "value", "text")}))
        else:
            near["text"] += f" {point['text']}"
    font: dict[str, Any] = {"baseline": "bottom", "dy": -5, "fontSize": 11.5, "fontWeight": 600}
    words = alt.Chart(_data([t for _, _, t in texts])).encode(x=x, y=y, text="text:N")
    ring = alt.Chart(_data(points)).mark_point(color=INK, fill=CARD, shape="circle", size=34, strokeWidth=1.4)
    halo = words.mark_text(**font, color=CARD, stroke=CARD, strokeWidth=3)
    return [ring.encode(x=x, y=y), halo, words.mark_text(**font, color=INK)]
