"""The figures of a report: Altair charts, drawn to static SVG that follows the page's colours."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from retarget.analysis.layout import Box, place_boxes, spread
from retarget.analysis.statistics import Estimate
from retarget.analysis.summary import (
    AgentName,
    agent_names,
    dial_of,
    estimate,
    growth,
    growth_points,
    identical_pairs,
    sized,
    wide_rows,
    worlds,
)

if TYPE_CHECKING:
    import polars as pl

# Stand-ins for the page's colours: the drawing carries these, and `svg_of` turns them into CSS variables, so that
# one drawing is readable on light and dark pages.
INK, MUTED, GRID, CARD = "#010203", "#040506", "#070809", "#0a0b0c"
#: Okabe and Ito's palette, safe for the colour-blind; yellow is left out, it cannot be read on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F5AA2", "#808080")
_SERIES = tuple(f"#10000{i}" for i in range(len(PALETTE)))
_VARIABLES = {INK: "var(--ink,#1b1f24)", MUTED: "var(--muted,#5b6470)", GRID: "var(--grid,#e3e6ea)"}
_VARIABLES |= {CARD: "var(--card,#ffffff)"}
_VARIABLES |= {s: f"var(--c{i},{PALETTE[i]})" for i, s in enumerate(_SERIES)}

_SHAPES = ("circle", "diamond", "triangle-up", "cross", "triangle-down", "triangle-right", "triangle-left")
_ROLE_COLOUR = {
    "planner": 0,
    "depth planner": 5,
    "learned model, everywhere": 2,
    "learned model, near": 2,
    "network model, everywhere": 2,
    "network model, near": 2,
    "path search": 0,
    "tree search": 5,
    "search, trained values": 4,
    "Bayesian search": 3,
    "controller": 3,
    "goal-indexed table": 4,
    "table, to the limit": 1,
    "table, little training": 1,
    "table": 1,
    "network": 6,
    "network, many goals": 6,
    "network, goals shuffled": 7,
    "file": 6,
    "other": 7,
}
_EDITOR_COLOUR = {
    "slot": 0, "table": 1, "exceptions": 1, "sparse": 2, "sparse_weights": 2, "retrain": 3, "retrain_weights": 3,
    "random": 7, "low_rank": 4, "activation": 5, "bias": 6,
}  # fmt: skip
_SUBJECTS = ("agent", "table", "blank")


@dataclass(frozen=True)
class KeyItem:
    """One line of a figure's key.

    Attributes:
        label: what a reader sees.
        colour: CSS colour.
        shape: a mark's shape, or `solid`, `dashed`, `dotted` for a line.
        hollow: whether the mark is drawn as an outline.
    """

    label: str
    colour: str
    shape: str
    hollow: bool = False


@dataclass(frozen=True)
class Figure:
    """A drawing and what it shows.

    Attributes:
        name: unique on the page; also the prefix of the ids inside the drawing.
        title: what is seen.
        caption: how to read it.
        svg: static SVG.
        folded: shown on demand only.
        key: what marks and lines mean, where they are not labelled in place.
    """

    name: str
    title: str
    caption: str
    svg: str
    folded: bool = False
    key: tuple[KeyItem, ...] = ()


def colour(name: AgentName) -> str:
    """The stand-in colour of an agent: one per role, so that an agent looks the same in every figure."""
    return _SERIES[_ROLE_COLOUR[name.role]]


def svg_of(chart: Any, name: str) -> str:
    """Draw a chart: static SVG whose colours are CSS variables and whose ids start with `name`.

    Deterministic: the same chart gives the same text, however many were drawn before.
    """
    import altair as alt
    import vl_convert

    version = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    svg = str(vl_convert.vegalite_to_svg(_drawable(_themed(chart).to_dict(validate=False)), vl_version=version))
    # The drawing library numbers its clip paths on and on; fresh numbers keep pages equal and ids unique on a page.
    ids: dict[str, str] = {}
    for found in re.findall(r'<(?:clipPath|linearGradient|radialGradient) id="([^"]+)"', svg):
        ids.setdefault(found, f"{name}-{len(ids)}")
    for old, new in ids.items():
        svg = svg.replace(f'id="{old}"', f'id="{new}"').replace(f"url(#{old})", f"url(#{new})")
    for old, new in _VARIABLES.items():
        svg = svg.replace(old, new)
    # On wide pages a drawing grows a little, on narrow ones it scrolls rather than shrink beyond reading.
    size = re.match(r'<svg[^>]* width="([0-9.]+)" height="([0-9.]+)"', svg)
    wide = float(size.group(1)) if size else 0.0
    width = f' style="min-width:{min(wide, 560):.0f}px;max-width:{1.3 * wide:.0f}px"' if size else ""
    svg = re.sub(r'^(<svg[^>]*?) width="[0-9.]+" height="[0-9.]+"', r"\1", svg)
    return svg.replace("<svg", f'<svg role="img" aria-labelledby="{name}-title"{width}', 1)


def _drawable(spec: Any) -> Any:
    """A chart's description without characters that do not print, which abort the drawing library, and without
    labels that no figure has room for."""
    if isinstance(spec, dict):
        return {k: _drawable(v) for k, v in spec.items()}
    if isinstance(spec, list):
        return [_drawable(v) for v in spec]
    return _shortened("".join(c if c.isprintable() else "�" for c in spec)) if isinstance(spec, str) else spec


def _shortened(label: str) -> str:
    return label if len(label) <= 100 else f"{label[:60]}…{label[-30:]}"


def _themed(chart: Any) -> Any:
    text: dict[str, Any] = {
        "labelColor": MUTED,
        "titleColor": INK,
        "labelFontSize": 11,
        "titleFontSize": 12,
        "titleFontWeight": 500,
    }
    return (
        chart.configure(background="transparent", font="Helvetica, Arial, sans-serif", aria=False)
        .configure_view(stroke=GRID)
        .configure_axis(gridColor=GRID, domainColor=MUTED, tickColor=MUTED, titlePadding=8, **text)
        .configure_title(color=INK, fontSize=12, anchor="start", fontWeight=600, offset=6)
    )


def _data(rows: list[dict[str, Any]]) -> Any:
    import altair as alt

    return alt.Data(values=rows)


# --- the plane ---------------------------------------------------------------------------------------------------


def plane_points(results: pl.DataFrame, world: str | None = None) -> list[tuple[AgentName, Estimate, Estimate]]:
    """Each agent's robustness and retargetability, where both were measured; over all worlds, or in one."""
    import polars as pl

    rows = results.filter((pl.col("status") == "ok") & pl.col("metric").is_in(["robustness", "retargetability"]))
    rows = rows if world is None else rows.filter(pl.col("world") == world)
    out = []
    for name in agent_names(rows) if rows.height else ():
        mine = rows.filter((pl.col("agent") == name.label) & (pl.col("agent_id") == name.agent_id))
        across = mine.filter(pl.col("metric") == "robustness")["value"].sort().to_list()
        up = mine.filter(pl.col("metric") == "retargetability")["value"].sort().to_list()
        if across and up:
            out.append((name, estimate("robustness", across), estimate("retargetability", up)))
    return out


def _ends(e: Estimate) -> tuple[float, float]:
    return (e.value if e.ci_low is None else e.ci_low, e.value if e.ci_high is None else e.ci_high)


def _plane_rows(points: list[tuple[AgentName, Estimate, Estimate]]) -> list[dict[str, Any]]:
    return [
        {"agent": n.label, "x": x.value, "x0": _ends(x)[0], "x1": _ends(x)[1]}
        | {"y": y.value, "y0": _ends(y)[0], "y1": _ends(y)[1]}
        # Drawn in reverse, so that the first in the key lies on top.
        for n, x, y in reversed(points)
    ]


def _y_domain(points: list[tuple[AgentName, Estimate, Estimate]]) -> tuple[float, float]:
    low = min([-1.0, *[_ends(y)[0] for _, _, y in points]])
    high = max([1.0, *[_ends(y)[1] for _, _, y in points]])
    return low - 0.06 * (high - low), high + 0.06 * (high - low)


def _style(names: Sequence[AgentName]) -> tuple[list[str], list[str], list[str], list[str]]:
    """Labels, and for each its stroke, fill and shape: hollow squares are compiled tables."""
    seen: dict[str, int] = {}
    shape_of: dict[tuple[str, str], str] = {}
    for n in names:
        if (n.agent_id, n.base) not in shape_of:
            shape_of[(n.agent_id, n.base)] = _SHAPES[seen.get(colour(n), 0) % len(_SHAPES)]
            seen[colour(n)] = seen.get(colour(n), 0) + 1
    shapes = ["square" if n.compiled else shape_of[(n.agent_id, n.base)] for n in names]
    return (
        [n.label for n in names],
        [colour(n) for n in names],
        [CARD if n.compiled else colour(n) for n in names],
        shapes,
    )


def _agent_key(names: Sequence[AgentName]) -> tuple[KeyItem, ...]:
    labels, strokes, fills, shapes = _style(names)
    return tuple(
        KeyItem(label, _VARIABLES[stroke], shape, fill == CARD)
        for label, stroke, fill, shape in zip(labels, strokes, fills, shapes, strict=True)
    )


def _marks(
    rows: list[dict[str, Any]],
    names: Sequence[AgentName],
    scales: tuple[Any, Any],
    *,
    size: int = 90,
    short: bool = False,
) -> list[Any]:
    """Layers of a plane: intervals on both axes and one mark per agent."""
    import altair as alt

    x_scale, y_scale = scales
    labels, strokes, fills, shapes = _style(names)
    line = alt.Color("agent:N", scale=alt.Scale(domain=labels, range=strokes), legend=None)
    x_axis = alt.Axis(title="robustness (0 to 1)", values=[0, 0.25, 0.5, 0.75, 1], format=".2~f")
    y_axis = alt.Axis(title="retargetability (log2)" if short else "retargetability (log2 ratio; 0: a table)")
    base = alt.Chart(_data(rows))
    rule = base.mark_rule(strokeWidth=1.6, opacity=0.6)
    return [
        rule.encode(
            x=alt.X("x0:Q", scale=x_scale, axis=x_axis),
            x2="x1:Q",
            y=alt.Y("y:Q", scale=y_scale, axis=y_axis),
            color=line,
        ),
        rule.encode(
            x=alt.X("x:Q", scale=x_scale, axis=x_axis),
            y=alt.Y("y0:Q", scale=y_scale, axis=y_axis),
            y2="y1:Q",
            color=line,
        ),
        base.mark_point(size=size, strokeWidth=2, opacity=1).encode(
            x=alt.X("x:Q", scale=x_scale, axis=x_axis),
            y=alt.Y("y:Q", scale=y_scale, axis=y_axis),
            stroke=alt.Stroke("agent:N", scale=alt.Scale(domain=labels, range=strokes), legend=None),
            fill=alt.Fill("agent:N", scale=alt.Scale(domain=labels, range=fills), legend=None),
            shape=alt.Shape("agent:N", scale=alt.Scale(domain=labels, range=shapes), legend=None),
        ),
    ]


_PLANE_W, _PLANE_H, _PLANE_LABELS = 620, 430, 230
#: With more agents than this not every one has its name in the plane.
_MANY = 24


def plane_figure(results: pl.DataFrame) -> Figure | None:
    """The optimizer-table plane: one mark per agent, means over all worlds, goals and seeds."""
    import altair as alt

    points = plane_points(results)
    if not points:
        return None
    names = [n for n, _, _ in points]
    domain = _y_domain(points)
    shown = _worth_a_label(points)
    scales = (alt.Scale(domain=[-0.03, 1.03], nice=False), alt.Scale(domain=list(domain), nice=False))
    zero = alt.Chart(_data([{"y": 0}])).mark_rule(color=MUTED, strokeDash=[4, 4])
    layers = [
        zero.encode(y="y:Q"),
        *_plane_labels(points, domain, shown),
        *_marks(_plane_rows(points), names, scales),
    ]
    return Figure(
        "plane",
        "The optimizer–table plane: robustness across, retargetability up",
        "One mark an agent: mean over worlds, goals and seeds, with 95% intervals on both axes. Hollow squares are "
        "tables compiled from an agent: they act as it does in every state, so that they stand at the same "
        "robustness. Up is an optimizer, zero is a lookup table, below zero the goal is more tangled than in a table."
        + ("" if len(shown) == len(points) else " Of searches that differ in effort, only the ends are named."),
        svg_of(alt.layer(*layers).properties(width=_PLANE_W, height=_PLANE_H), "plane"),
    )


def _worth_a_label(points: list[tuple[AgentName, Estimate, Estimate]]) -> list[AgentName]:
    """All agents where they are few; of many, those that are no middle rung of a ladder of search effort."""
    names = [n for n, _, _ in points]
    if len(names) <= _MANY:
        return names
    rungs = {n: dial_of(n.label) for n in names if not n.compiled}
    ends: dict[str, list[int]] = {}
    for rung in rungs.values():
        if rung is not None:
            ends.setdefault(rung[0], []).append(rung[1])
    middle = {n for n, r in rungs.items() if r is not None and min(ends[r[0]]) < r[1] < max(ends[r[0]])}
    return [n for n in names if n not in middle]


def _plane_labels(
    points: list[tuple[AgentName, Estimate, Estimate]], domain: tuple[float, float], shown: list[AgentName]
) -> list[Any]:
    """Labels beside the marks, and lines to those that had to move away. Marks at one spot share one block."""
    import altair as alt

    def px(x: float) -> float:
        return (x + 0.03) / 1.06 * _PLANE_W

    def py(y: float) -> float:
        return (domain[1] - y) / (domain[1] - domain[0]) * _PLANE_H

    groups: list[list[tuple[AgentName, Estimate, Estimate]]] = []
    for point in (p for p in points if p[0] in shown):
        spot = (px(point[1].value), py(point[2].value))
        near = [g for g in groups if math.dist(spot, (px(g[0][1].value), py(g[0][2].value))) < 7]
        if near:
            near[0].append(point)
        else:
            groups.append([point])
    groups.sort(key=len)
    anchors = [(px(g[0][1].value), py(g[0][2].value)) for g in groups]
    sizes = [(max(6.1 * len(_shortened(n.label)) for n, _, _ in g) + 4, 13.5 * len(g)) for g in groups]
    blocked = [Box(x - 7, y - 7, x + 7, y + 7) for x, y in anchors] + [Box(0, py(0) - 2, _PLANE_W, py(0) + 2)]
    for _, x, y in points:
        (x0, x1), (y0, y1) = _ends(x), _ends(y)
        blocked += [Box(px(x0), py(y.value) - 2, px(x1), py(y.value) + 2)]
        blocked += [Box(px(x.value) - 2, py(y1), px(x.value) + 2, py(y0))]
    boxes = place_boxes(anchors, sizes, Box(2, 2, _PLANE_W + _PLANE_LABELS, _PLANE_H - 2), blocked)
    texts, lines = [], []
    for group, box, (ax, ay) in zip(groups, boxes, anchors, strict=True):
        tip = box.nearest(ax, ay)
        if math.dist(tip, (ax, ay)) > 14:
            lines.append({"x": _unpx(ax), "y": _unpy(ay, domain), "x2": _unpx(tip[0]), "y2": _unpy(tip[1], domain)})
        for i, (name, _, _) in enumerate(group):
            middle = _unpy(box.top + 13.5 * (i + 0.5), domain)
            texts.append({"x": _unpx(box.left + 2), "y": middle, "text": name.label})
    leader = alt.Chart(_data(lines)).mark_rule(color=MUTED, strokeWidth=0.8)
    font: dict[str, Any] = {"align": "left", "baseline": "middle", "fontSize": 11.5}
    base = alt.Chart(_data(texts)).encode(x="x:Q", y="y:Q", text="text:N")
    # A halo in the page's colour keeps labels readable where a line has to pass behind them.
    halo = base.mark_text(**font, color=CARD, stroke=CARD, strokeWidth=3)
    leaders = [leader.encode(x="x:Q", y="y:Q", x2="x2:Q", y2="y2:Q")] if lines else []
    return [*leaders, halo, base.mark_text(**font, color=INK)]


def _unpx(x: float) -> float:
    return x / _PLANE_W * 1.06 - 0.03


def _unpy(y: float, domain: tuple[float, float]) -> float:
    return domain[1] - y / _PLANE_H * (domain[1] - domain[0])


def plane_by_world(results: pl.DataFrame) -> Figure | None:
    """The plane once per world, on shared axes."""
    import altair as alt

    found = [(w, plane_points(results, w[1])) for w in worlds(results)]
    found = [(w, p) for w, p in found if p]
    if len(found) < 2:
        return None
    every = [p for _, points in found for p in points]
    present = {n for n, _, _ in every}
    names = [n for n in agent_names(results) if n in present]
    scales = (alt.Scale(domain=[-0.06, 1.06], nice=False), alt.Scale(domain=list(_y_domain(every)), nice=False))
    charts = []
    for (_, world, n_states), points in found:
        zero = alt.Chart(_data([{"y": 0}])).mark_rule(color=MUTED, strokeDash=[4, 4]).encode(y="y:Q")
        layers = [zero, *_marks(_plane_rows(points), names, scales, size=55, short=True)]
        title = sized(world, n_states)
        charts.append(alt.layer(*layers).properties(width=215, height=170, title=title))
    return Figure(
        "plane-by-world",
        "The same plane, world by world",
        "Axes are shared. Where an agent is missing from a panel, nothing could be measured there; the counts below "
        "say why.",
        svg_of(alt.concat(*charts, columns=3, spacing=18), "plane-by-world"),
        key=_agent_key(names),
    )


# --- the frontier ------------------------------------------------------------------------------------------------


def representative_pair(results: pl.DataFrame, frontiers: pl.DataFrame, world: str) -> tuple[str, str, int] | None:
    """The (goal A, goal B, seed) of a world whose behaviour bits, averaged over agents, are the median.

    Only of pairs that have a frontier; None where there is none.
    """
    import polars as pl

    rows = results.filter(
        (pl.col("world") == world) & (pl.col("metric") == "behaviour_bits") & (pl.col("status") == "ok")
    ).filter(pl.col("goal_b").is_not_null())
    keys = ["goal_a", "goal_b", "seed"]
    there = frontiers.filter(pl.col("world") == world).select(keys).unique()
    pairs = rows.join(there, on=keys, how="semi").group_by(keys).agg(pl.col("value").sort().mean(), pl.len())
    if pairs.is_empty():
        return None
    # A pair that few agents could be measured on shows few panels.
    pairs = pairs.filter(pl.col("len") == pl.col("len").max()).sort("value", *keys)
    a, b, seed = pairs.select(keys).row((pairs.height - 1) // 2)
    return str(a), str(b), int(seed)


def frontier_figures(results: pl.DataFrame, frontiers: pl.DataFrame) -> list[Figure]:
    """Competence on B against edit bits, in the largest world of each family; the first is shown, the others folded."""
    found: list[Figure] = []
    families: set[str] = set()
    for family, world, n_states in sorted(worlds(frontiers), key=lambda w: (-(w[2] or 0), w[0], w[1])):
        if family in families:
            continue
        families.add(family)
        pair = representative_pair(results, frontiers, world)
        if pair is not None:
            figure = _frontier(
                results, frontiers, world, n_states, pair, name=f"frontier-{len(found)}", folded=bool(found)
            )
            found += [figure] if figure else []
    return found


def _frontier(
    results: pl.DataFrame,
    frontiers: pl.DataFrame,
    world: str,
    n_states: int | None,
    pair: tuple[str, str, int],
    *,
    name: str,
    folded: bool,
) -> Figure | None:
    import altair as alt
    import polars as pl

    a, b, seed = pair
    here = (pl.col("world") == world) & (pl.col("goal_a") == a) & (pl.col("goal_b") == b) & (pl.col("seed") == seed)
    rows = frontiers.filter(here)
    if rows.is_empty():
        return None
    names = agent_names(rows)
    names = tuple(n for n in names if not n.compiled) or names
    bits = [max(int(v), 1) for v in rows["bits"].to_list()]
    scale = alt.Scale(type="log", domain=[0.8 * min(bits), 1.25 * max(bits)], nice=False)
    panels = []
    for agent in names:
        of = (pl.col("agent") == agent.label) & (pl.col("agent_id") == agent.agent_id)
        need = results.filter(here & of & (pl.col("metric") == "required_competence") & (pl.col("status") == "ok"))
        level = float(need["value"][0]) if need.height else None
        panels.append(_frontier_panel(rows.filter(of), agent.label, level, scale))
    return Figure(
        name,
        f"What a change of goal costs: {world}, from goal {a} to goal {b}",
        f"Competence on the new goal against the length of the edit in {sized(world, n_states)}, seed {seed}: the pair "
        "whose change of behaviour has the median length in this world. Lines are the best found at each length: solid "
        "for the agent, dashed for the table of its behaviour, dotted for the untrained (blank) agent. The horizontal "
        "line is the required competence.",
        svg_of(alt.concat(*panels, columns=3, spacing=20), name),
        folded,
        _frontier_key(sorted(rows["editor"].unique().to_list())),
    )


def _editor_colour(editor: str) -> str:
    return _SERIES[_EDITOR_COLOUR.get(editor, 6)]


def _frontier_key(editors: Sequence[str]) -> tuple[KeyItem, ...]:
    muted = _VARIABLES[MUTED]
    subjects = (
        ("agent", "solid", "circle"),
        ("table of its behaviour", "dashed", "square"),
        ("blank", "dotted", "triangle-up"),
    )
    out = [item for name, line, mark in subjects for item in (KeyItem("", muted, line), KeyItem(name, muted, mark))]
    return (*out, *[KeyItem(f"found by {e}", _VARIABLES[_editor_colour(e)], "circle") for e in editors])


def _frontier_panel(rows: pl.DataFrame, title: str, level: float | None, scale: Any) -> Any:
    import altair as alt

    columns = ["subject", "editor", "bits", "competence", "on_front"]
    points = rows.select(columns).unique().sort(columns).to_dicts()
    points = [p | {"bits": max(p["bits"], 1)} for p in points]
    editors = sorted({p["editor"] for p in points})
    hues = [_editor_colour(e) for e in editors]
    x = alt.X("bits:Q", scale=scale, axis=alt.Axis(title="edit length (bit, log scale)", format="~s", tickCount=5))
    y = alt.Y(
        "competence:Q", scale=alt.Scale(domain=[0, 1.02], nice=False), axis=alt.Axis(title="competence on B (0 to 1)")
    )
    base = alt.Chart(_data(points))
    dash = alt.Scale(domain=list(_SUBJECTS), range=[[1, 0], [6, 3], [1.5, 3]])
    front = base.transform_filter("datum.on_front").mark_line(interpolate="step-after", strokeWidth=1.6, color=MUTED)
    layers = [
        front.encode(x=x, y=y, strokeDash=alt.StrokeDash("subject:N", scale=dash, legend=None)),
        base.mark_point(size=38, filled=True).encode(
            x=x,
            y=y,
            opacity=alt.condition("datum.on_front", alt.value(1), alt.value(0.35)),
            color=alt.Color("editor:N", scale=alt.Scale(domain=editors, range=hues), legend=None),
            shape=alt.Shape(
                "subject:N",
                scale=alt.Scale(domain=list(_SUBJECTS), range=["circle", "square", "triangle-up"]),
                legend=None,
            ),
        ),
    ]
    if level is not None:
        rule = alt.Chart(_data([{"y": level}])).mark_rule(color=INK, strokeWidth=1, strokeDash=[2, 2])
        layers.append(rule.encode(y=alt.Y("y:Q")))
    return alt.layer(*layers).properties(width=215, height=150, title=title)


# --- growth ------------------------------------------------------------------------------------------------------


def growth_figure(results: pl.DataFrame) -> Figure | None:
    """Mean edit bits against the number of states, log-log, one panel a family of worlds."""
    import altair as alt
    import polars as pl

    fits, points = growth(results), growth_points(results)
    if fits.is_empty():
        return None
    # One agent's change of behaviour stands for what a table would have to rewrite: names come planners first.
    reference = agent_names(fits)[0]
    panels = []
    for family in sorted(fits["world_id"].unique().to_list()):
        curves = []
        mine = fits.filter(pl.col("world_id") == family)
        for name in agent_names(mine):
            fit = mine.filter((pl.col("agent") == name.label) & (pl.col("agent_id") == name.agent_id)).row(
                0, named=True
            )
            rows = points.filter(
                (pl.col("agent") == name.label) & (pl.col("agent_id") == name.agent_id) & (pl.col("world_id") == family)
            )
            if not name.compiled:
                curves.append(_curve(rows, "edit_bits", name, f"{name.label}: {_exponent(fit, 'edit_exponent')}"))
            if name == reference:
                text = f"behaviour of {name.base}, as a table: {_exponent(fit, 'behaviour_exponent')}"
                curves.append(_curve(rows, "behaviour_bits", name, text))
        panels.append(_growth_panel(family, curves))
    return Figure(
        "growth",
        "How the length of the change grows with the world",
        "Mean edit bits over goals and seeds against the number of states, both on log scales. The number beside each "
        "line is its exponent with the 95% interval: about 1 where every state must be rewritten, about 0 where the "
        "goal is stored apart from the behaviour. Dashed: the same change of behaviour, written as a table.",
        svg_of(alt.vconcat(*panels, spacing=24), "growth"),
    )


def _exponent(fit: dict[str, Any], key: str) -> str:
    low, high = fit[f"{key}_low"], fit[f"{key}_high"]

    def two(value: float) -> str:
        return f"{round(value, 2) + 0.0:.2f}".replace("-", "−")

    return two(fit[key]) if low is None else f"{two(fit[key])} [{two(low)}, {two(high)}]"


def _curve(rows: pl.DataFrame, metric: str, name: AgentName, label: str) -> dict[str, Any]:
    import polars as pl

    means = rows.sort("n_states", "world", "seed").group_by("n_states").agg(pl.col(metric).mean()).sort("n_states")
    return {
        "label": label,
        "colour": colour(name),
        "dash": metric == "behaviour_bits",
        "points": list(zip(means["n_states"].to_list(), means[metric].to_list(), strict=True)),
    }


def _growth_panel(family: str, curves: list[dict[str, Any]]) -> Any:
    import altair as alt

    width, height = 430, 290
    values = [v for c in curves for _, v in c["points"]]
    sizes = sorted({s for c in curves for s, _ in c["points"]})
    y0, y1 = math.log2(min(values)) - 0.3, math.log2(max(values)) + 0.3
    ends = [height * (y1 - math.log2(c["points"][-1][1])) / (y1 - y0) for c in curves]
    places = spread(ends, 14.0, 4.0, height - 4.0)
    y_scale = alt.Scale(type="log", base=2, domain=[2**y0, 2**y1], nice=False)
    x_scale = alt.Scale(type="log", base=2, domain=[sizes[0] * 0.9, sizes[-1] * 1.1], nice=False)
    x = alt.X("n:Q", scale=x_scale, axis=alt.Axis(title="states (log scale)", values=_thin(sizes), format="d"))
    powers = [2.0**k for k in range(math.ceil(y0), math.floor(y1) + 1)]
    y = alt.Y("bits:Q", scale=y_scale, axis=alt.Axis(title="mean length (bit, log scale)", values=powers, format=",~r"))
    layers = []
    for i, (c, place) in reversed(list(enumerate(zip(curves, places, strict=True)))):
        rows = [{"n": s, "bits": v} for s, v in c["points"]]
        base = alt.Chart(_data(rows))
        dash = [6, 4] if c["dash"] else [1, 0]
        layers.append(base.mark_line(color=c["colour"], strokeDash=dash, strokeWidth=2).encode(x=x, y=y))
        layers.append(base.mark_point(color=c["colour"], filled=True, size=36, opacity=1).encode(x=x, y=y))
        end = [{"n": sizes[-1] * 1.1, "bits": 2 ** (y1 - place / height * (y1 - y0)), "text": c["label"], "i": i}]
        tip = [{"n": c["points"][-1][0], "bits": c["points"][-1][1]}, {"n": end[0]["n"], "bits": end[0]["bits"]}]
        layers.append(alt.Chart(_data(tip)).mark_line(color=c["colour"], strokeWidth=0.7).encode(x=x, y=y))
        text = alt.Chart(_data(end)).mark_text(align="left", dx=6, fontSize=11.5, color=INK)
        layers.append(text.encode(x=x, y=y, text="text:N"))
    return alt.layer(*layers).properties(width=width, height=height, title=family)


def _thin(sizes: Sequence[int]) -> list[int]:
    """Sizes that are far enough apart on a log axis to be written."""
    kept: list[int] = []
    span = math.log2(sizes[-1] / sizes[0]) or 1.0
    for s in sizes:
        if not kept or math.log2(s / kept[-1]) / span > 0.08:
            kept.append(s)
    return kept


# --- depth and the identical pair --------------------------------------------------------------------------------


def depth_figure(results: pl.DataFrame) -> Figure | None:
    """Robustness and retargetability against search depth."""
    import altair as alt

    names = [n for n in agent_names(results) if n.role == "depth planner" and n.depth is not None and not n.compiled]
    if len({n.depth for n in names}) < 2:
        return None
    rows = _depth_rows(results, names)
    panels = []
    for metric, title in (("robustness", "robustness (0 to 1)"), ("retargetability", "retargetability (log2 ratio)")):
        mine = [r for r in rows if r["metric"] == metric]
        if not mine:
            continue
        depths = sorted({r["depth"] for r in mine})
        x = alt.X(
            "depth:Q",
            scale=alt.Scale(
                type="log" if depths[0] else "symlog", domain=[depths[0] * 0.8, depths[-1] * 1.12], nice=False
            ),
            axis=alt.Axis(title="search depth (actions)", values=depths, format="d"),
        )
        low = min(0.0, *[r["low"] for r in mine])
        high = max(1.0, *[r["high"] for r in mine])
        y = alt.Y("value:Q", scale=alt.Scale(domain=[low, high * 1.03], nice=False), axis=alt.Axis(title=title))
        each = alt.Chart(_data([r for r in mine if r["world"]]))
        mean = alt.Chart(_data([r for r in mine if not r["world"]]))
        layers = [
            each.mark_line(color=_SERIES[5], opacity=0.5, strokeWidth=1.2).encode(x=x, y=y, detail="world:N"),
            mean.mark_rule(color=_SERIES[0], strokeWidth=1.6).encode(x=x, y=alt.Y("low:Q"), y2="high:Q"),
            mean.mark_line(color=_SERIES[0], strokeWidth=2.4, point={"color": _SERIES[0], "size": 50}).encode(x=x, y=y),
        ]
        panels.append(alt.layer(*layers).properties(width=310, height=230, title=metric))
    return Figure(
        "depth",
        "The depth ladder: what search depth buys",
        "Mean over worlds, goals and seeds with the 95% interval (thick), and each world (thin). Depths at which no "
        "goal pair could be measured have no mark.",
        svg_of(alt.hconcat(*panels, spacing=30), "depth"),
    )


def _depth_rows(results: pl.DataFrame, names: Sequence[AgentName]) -> list[dict[str, Any]]:
    import polars as pl

    out = []
    for name in names:
        mine = results.filter(
            (pl.col("agent") == name.label) & (pl.col("agent_id") == name.agent_id) & (pl.col("status") == "ok")
        )
        for metric in ("robustness", "retargetability"):
            for world in [None, *[w for _, w, _ in worlds(mine)]]:
                rows = mine.filter(pl.col("metric") == metric)
                values = (rows if world is None else rows.filter(pl.col("world") == world))["value"].sort().to_list()
                if values:
                    e = estimate(metric, values)
                    low, high = _ends(e)
                    out.append(
                        {"depth": name.depth, "metric": metric, "world": world or ""}
                        | {"value": e.value, "low": low, "high": high}
                    )
    return out


def pair_figure(results: pl.DataFrame) -> Figure | None:
    """Retargetability over goal pairs of an agent and of the table compiled from it, world by world."""
    import altair as alt
    import polars as pl

    pairs = identical_pairs(results).filter(pl.col("metric") == "retargetability").filter(pl.col("cells") > 0)
    if pairs.is_empty():
        return None
    names = {n.label: n for n in agent_names(results)}
    # The exact planner's pair where there is one: names are sorted by role, planners first.
    first = min(pairs.rows(named=True), key=lambda r: names[r["agent"]].sort_key)
    agent, table = names[first["agent"]], names[first["compiled"]]
    wide = wide_rows(results, ["retargetability"]).drop_nulls("retargetability")
    rows = []
    for i, (_, world, n_states) in enumerate(worlds(wide)):
        for who in (agent, table):
            values = wide.filter((pl.col("world") == world) & (pl.col("agent") == who.label))[
                "retargetability"
            ].to_list()
            for k, value in enumerate(values):
                # A fixed spread across the strip, so that equal values can be counted; no random jitter.
                offset = ((k * 0.618034) % 1 - 0.5) * 0.34 + (0.22 if who.compiled else -0.22)
                rows.append({"world": sized(world, n_states), "row": i + offset, "agent": who.label, "value": value})
    labels = [agent.label, table.label]
    titles = {r["world"]: round(r["row"]) for r in rows}
    span = [min(-0.5, *[r["value"] for r in rows]), max(1.0, *[r["value"] for r in rows]) * 1.04]
    y = alt.Y(
        "row:Q", scale=alt.Scale(domain=[-0.55, max(titles.values()) + 0.55], reverse=True, nice=False), axis=None
    )
    x = alt.X(
        "value:Q",
        scale=alt.Scale(domain=span, nice=False),
        axis=alt.Axis(title="retargetability (log2 ratio), one mark a goal pair"),
    )
    base = alt.Chart(_data(rows))
    marks = base.mark_point(size=42, strokeWidth=1.4, opacity=0.9).encode(
        x=x,
        y=y,
        stroke=alt.Stroke("agent:N", scale=alt.Scale(domain=labels, range=[colour(agent), colour(table)]), legend=None),
        fill=alt.Fill("agent:N", scale=alt.Scale(domain=labels, range=[colour(agent), CARD]), legend=None),
        shape=alt.Shape("agent:N", scale=alt.Scale(domain=labels, range=["circle", "square"]), legend=None),
    )
    names_of = alt.Chart(_data([{"world": w, "row": r, "value": span[0]} for w, r in titles.items()]))
    text = names_of.mark_text(align="right", dx=-8, fontSize=11.5, color=INK).encode(x=x, y=y, text="world:N")
    return Figure(
        "pair",
        f"Same behaviour, different inside: {agent.label} and the table compiled from it",
        "The two act alike in every state, so that every measure of behaviour is equal for both (table below). The "
        "length of the edit that changes the goal is not.",
        svg_of(alt.layer(marks, text).properties(width=560, height=46 * len(titles) + 20), "pair"),
        key=(
            KeyItem(agent.label, _VARIABLES[colour(agent)], "circle"),
            KeyItem(table.label, _VARIABLES[colour(table)], "square", True),
        ),
    )


def draw_all(results: pl.DataFrame, frontiers: pl.DataFrame | None) -> list[Figure]:
    """Every figure that the rows can fill, in reading order."""
    from retarget.analysis.compute import compute_figure

    found = [plane_figure(results), pair_figure(results), plane_by_world(results)]
    found += [growth_figure(results), depth_figure(results), compute_figure(results)]
    if frontiers is not None and frontiers.height:
        found += frontier_figures(results, frontiers)
    return [f for f in found if f is not None]
