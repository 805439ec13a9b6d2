"""What directions do: interventions beside their controls, and the selection among saved directions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from retarget.analysis.figures import _SERIES, _VARIABLES, GRID, INK, MUTED, Figure, KeyItem, _data, svg_of
from retarget.analysis.layers.lines import (
    Across,
    Row,
    Series,
    Up,
    across,
    by,
    colours_of,
    fit,
    heading,
    key_of,
    line_of,
    panel,
    pieces,
    real,
    stack,
    who,
)

if TYPE_CHECKING:
    import polars as pl

# --- causes ------------------------------------------------------------------------------------------------------

_DIRECTIONS = {"difference": (0, "circle"), "random": (7, "square"), "shuffled": (4, "diamond")}
_DIRECTIONS |= {"other_layer": (2, "triangle-up")}
INTERVENTIONS = {
    "none": "untouched",
    "ablate_all": "ablated at all layers",
    "ablate_layer": "ablated at one layer",
    "add_layer": "added at one layer",
    "orthogonalise": "taken out of the weights",
}
_MOST_CAUSES = 30


def direction_words(kind: object) -> str:
    """A kind of direction, in words.

    >>> direction_words("other_layer")
    'difference of another layer'
    """
    words = {
        "random": "random direction",
        "shuffled": "of relabelled rows",
        "other_layer": "difference of another layer",
    }
    return words.get(str(kind), str(kind))


def together(causes: pl.DataFrame | None) -> list[Row]:
    """Rows of `CAUSES`, those of one direction and one kind of input together, in the order they first come in."""
    if causes is None or causes.is_empty():
        return []
    parts = by(causes, "model", "contrast", "layer", "position", "on").values()
    return [r for part in parts for r in part.rows(named=True)]


def causes_figure(causes: pl.DataFrame | None) -> Figure | None:
    """Scores under each intervention, for the direction and for its controls, on both kinds of input.

    Args:
        causes: rows of `CAUSES`, or None.
    """
    if causes is None or causes.is_empty() or causes["score"].drop_nulls().is_empty():
        return None
    measures = [
        (key, title, width)
        for key, title, width in (
            ("score", "log odds of the wanted tokens (nats)", 330),
            ("rate", "wanted token likeliest (share)", 150),
            ("kl", "divergence from untouched (nats)", 150),
        )
        if causes[key].drop_nulls().len()
    ]
    axes = {key: _cause_axis(causes, key, title) for key, title, _ in measures}
    panels, left = [], 0
    for (model, contrast, on), mine in by(causes, "model", "contrast", "on").items():
        lines = _cause_rows(mine)
        left += max(0, len(lines) - _MOST_CAUSES)
        lines = lines[:_MOST_CAUSES]
        title = ", ".join(p for p in (who(causes, model, contrast), f"{on} inputs") if p)
        for k, (key, _, width) in enumerate(measures):
            panels.append(_cause_panel(lines, key, axes[key], width, title if k == 0 else "", named=k == 0))
    kinds = [d for d in _DIRECTIONS if (causes["direction"] == d).any()]
    items = [KeyItem(direction_words(d), _VARIABLES[_SERIES[_DIRECTIONS[d][0]]], _DIRECTIONS[d][1]) for d in kinds]
    return Figure(
        "layers-causes",
        "What the direction does: ablated, and added",
        "Scores at the last token with 95% intervals; the dotted line is the untouched model. A direction is used "
        "where taking it out lowers the score on positive inputs, or adding it raises it on negative ones, and the "
        "controls (a random direction of the same length, one of relabelled rows, another layer's) do not do as much."
        + (f" {left} further rows are in the table only." if left else ""),
        svg_of(stack(panels, len(measures)), "layers-causes"),
        key=tuple(items),
    )


def _cause_axis(causes: pl.DataFrame, key: str, title: str) -> Callable[[str], Any]:
    import altair as alt

    names = [n for n in (key, f"{key}_low", f"{key}_high") if n in causes.columns]
    values = [v for n in names for v in map(real, causes[n].to_list()) if v is not None]
    low, high = (0.0, 1.0) if key == "rate" else (min([0.0, *values]), max(values))
    room = 0.05 * (high - low) or 1.0
    scale = alt.Scale(domain=[low - room, high + room], nice=False)
    axis = alt.Axis(title=title, tickCount=5 if key == "score" else 3)
    return lambda field: alt.X(f"{field}:Q", scale=scale, axis=axis)


def _cause_rows(rows: pl.DataFrame) -> list[dict[str, Any]]:
    """Lines of a panel in reading order, each with its name."""
    order, kinds = list(INTERVENTIONS), list(_DIRECTIONS)
    places = rows.filter(rows["intervention"] != "none").select("layer", "position").unique().height

    def rank(r: Row) -> tuple[Any, ...]:
        where = (-1 if r["layer"] is None else r["layer"], str(r["position"]))
        known = [order.index(r["intervention"])] if r["intervention"] in order else [len(order)]
        kind = kinds.index(r["direction"]) if r["direction"] in kinds else len(kinds)
        return (r["intervention"] != "none", where, *known, kind)

    out, seen = [], False
    for r in sorted(rows.rows(named=True), key=rank):
        plain = r["intervention"] == "none"
        if plain and seen:  # the untouched model is the same whatever the direction is from
            continue
        seen = seen or plain
        name = INTERVENTIONS.get(r["intervention"], str(r["intervention"]))
        where = f"layer {r['layer']}, {r['position']}: ".replace("-", "−") if places > 1 and not plain else ""
        out.append(dict(r) | {"name": f"{where}{name}"})
    return out


def _cause_panel(
    lines: list[dict[str, Any]], key: str, x: Callable[[str], Any], width: int, title: str, *, named: bool
) -> Any:
    import altair as alt

    rows: list[dict[str, Any]] = []
    names: list[dict[str, Any]] = []
    previous = ""
    for i, r in enumerate(lines):
        number, shape = _DIRECTIONS.get(str(r["direction"]), (7, "cross"))
        if r["intervention"] == "none":
            number, shape = 6, "cross"
        value = real(r[key])
        ends = [real(r.get(f"{key}_{e}")) for e in ("low", "high")]
        rows.append({"row": i, key: value, "low": ends[0], "high": ends[1], "c": _SERIES[number], "s": shape})
        if r["name"] != previous:
            names.append({"row": i, "name": r["name"]})
        previous = r["name"]
    y = alt.Y("row:Q", scale=alt.Scale(domain=[-0.6, len(lines) - 0.4], reverse=True, nice=False), axis=None)
    tints, shapes = sorted({r["c"] for r in rows}), sorted({r["s"] for r in rows})
    tint = alt.Color("c:N", scale=alt.Scale(domain=tints, range=tints), legend=None)
    shaped = alt.Shape("s:N", scale=alt.Scale(domain=shapes, range=shapes), legend=None)
    edges = alt.Chart(_data([{"row": n["row"] - 0.5} for n in names[1:]])).mark_rule(color=GRID)
    layers: list[Any] = [edges.encode(y=y)]
    base = [
        r[key] for r, line in zip(rows, lines, strict=True) if line["intervention"] == "none" and r[key] is not None
    ]
    if base:
        rule = alt.Chart(_data([{key: base[0]}])).mark_rule(color=MUTED, strokeDash=[2, 2])
        layers.append(rule.encode(x=x(key)))
    shown = [r for r in rows if r[key] is not None]
    spans = [r for r in shown if r["low"] is not None and r["high"] is not None]
    if spans:
        rule = alt.Chart(_data(spans)).mark_rule(strokeWidth=1.8, opacity=0.75)
        layers.append(rule.encode(x=x("low"), x2="high:Q", y=y, color=tint))
    spot = alt.Chart(_data(shown)).mark_point(size=46, filled=True, opacity=1)
    layers.append(spot.encode(x=x(key), y=y, color=tint, shape=shaped))
    if named:
        words = alt.Chart(_data(names)).mark_text(align="right", dx=-8, fontSize=11.5, color=INK, limit=250)
        layers.append(words.encode(x=alt.value(0), y=y, text="name:N"))
    height = max(17 * len(lines), 34)
    return alt.layer(*layers).properties(width=width, height=height, title=heading(title, width))


# --- saved directions ----------------------------------------------------------------------------------------------


def _labelled(frame: pl.DataFrame) -> pl.DataFrame:
    """Positions as text, in order."""
    import polars as pl

    return frame.sort("position", "layer").with_columns(pl.col("position").cast(pl.String))


def _by_position(frame: pl.DataFrame, at: Across, key: str, colours: Mapping[str, str]) -> list[Series]:
    parts = by(frame, "position")
    return [line_of(colours[p], rows.rows(named=True), at, key) for (p,), rows in parts.items() if p in colours]


#: Saved directions that are shorter than this share of the longest are zero but for rounding.
_ROUNDED = 1e-6


def without_rounding(norms: pl.DataFrame, adjacent: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The same with null lengths and cosines where a direction is zero but for rounding.

    Before the first block all rows hold the same vectors at the tokens of a template, so that what is left of their
    difference, and where it points, is rounding.
    """
    import polars as pl

    known = [v for v in map(real, norms["norm"].to_list()) if v is not None]
    least = _ROUNDED * max(known, default=0.0)
    short = {(r["position"], r["layer"]) for r in norms.rows(named=True) if (real(r["norm"]) or 0.0) <= least}
    cosines = [
        None if {(r["position"], r["layer"]), (r["position"], r["layer"] + 1)} & short else real(r["cos"])
        for r in adjacent.rows(named=True)
    ]
    lengths = [None if (r["position"], r["layer"]) in short else real(r["norm"]) for r in norms.rows(named=True)]
    return (
        norms.with_columns(pl.Series("norm", lengths, dtype=pl.Float64)),
        adjacent.with_columns(pl.Series("cos", cosines, dtype=pl.Float64)),
    )


def saved_figure(norms: pl.DataFrame, adjacent: pl.DataFrame) -> Figure | None:
    """Lengths of saved directions by layer, and their cosine with the next layer's.

    Args:
        norms: rows of position, layer, norm.
        adjacent: rows of position, layer (the earlier of the two), cos.
    """
    if norms.is_empty() or norms["norm"].drop_nulls().is_empty():
        return None
    norms, adjacent = (_labelled(f) for f in without_rounding(norms, adjacent))
    at, colours = across(norms), colours_of(norms)
    lengths, cosines = _by_position(norms, at, "norm", colours), _by_position(adjacent, at, "cos", colours)
    panels = []
    up = fit(lengths, "length of the direction (log scale)", log=True)
    if up is not None:
        panels.append(panel(at, up, lengths, size=(400, 250)))
    up = fit(cosines, "cosine with the next layer's", include=(1.0,))
    if up is not None:
        panels.append(panel(at, Up(up.title, (up.domain[0], 1.0)), cosines, size=(400, 250)))
    if not panels:
        return None
    return Figure(
        "saved-geometry",
        "Saved directions, layer by layer",
        "Left, the length of each direction; right, its cosine with the next layer's at the same position: near 1, the "
        "block between them keeps the direction. Directions that are zero but for rounding are left out.",
        svg_of(stack(panels, 2), "saved-geometry"),
        key=key_of(colours),
    )


def selection_figure(evaluations: pl.DataFrame, selected: tuple[int | str, int] | None) -> Figure | None:
    """Scores of saved directions by layer; those that the rule leaves out are hollow, the selected one is ringed.

    Args:
        evaluations: rows of position, layer, refusal_score, steering_score, kl_div_score, kept, why.
        selected: (position, layer), or None.
    """
    import altair as alt

    if evaluations.is_empty():
        return None
    frame = _labelled(evaluations)
    at, colours = across(frame), colours_of(frame)
    ring = None if selected is None else (str(selected[0]), int(selected[1]))
    panels = []
    for key, title in (
        ("refusal_score", "refusal score, ablated"),
        ("steering_score", "refusal score, added"),
        ("kl_div_score", "divergence on harmless (nats)"),
    ):
        series = _by_position(frame, at, key, colours)
        up = fit(series, title)
        if up is None:
            continue
        marks = [
            {"x": r["layer"], "y": r[key], "c": colours[r["position"]], "kept": bool(r["kept"])}
            | {"ring": (r["position"], r["layer"]) == ring}
            for r in frame.rows(named=True)
            if r["position"] in colours and real(r[key]) is not None
        ]
        panels.append(_selection_panel(marks, series, at, up))
    if not panels:
        return None
    muted = _VARIABLES[MUTED]
    key_items = [KeyItem("kept by the rule", muted, "circle"), KeyItem("left out", muted, "circle", True)]
    key_items += [KeyItem("selected", _VARIABLES[INK], "square", True)] if any_ring(frame, ring) else []
    return Figure(
        "saved-selection",
        "Which direction is selected, and why",
        "Scores of each direction: ablated on harmful prompts (low: it is needed to refuse), added on harmless ones "
        "(high: it is enough to refuse), and how far ablation moves the next token on harmless prompts (low: it does "
        "little else). The rule of Arditi et al. (2024) takes, of those that are kept, the lowest score when ablated.",
        svg_of(alt.concat(*panels, columns=3, spacing=26), "saved-selection"),
        key=key_of(colours, *key_items),
    )


def any_ring(frame: pl.DataFrame, ring: tuple[str, int] | None) -> bool:
    """Whether the selected direction is among the rows."""
    return ring is not None and any((p, n) == ring for p, n in frame.select("position", "layer").rows())


def _selection_panel(marks: list[dict[str, Any]], series: Sequence[Series], at: Across, up: Up) -> Any:
    import altair as alt

    x, y = at.wide(245).x(), up.y()
    tints = sorted({s.colour for s in series})
    scale = alt.Scale(domain=tints, range=tints)
    lines, _, _ = pieces(series, up)
    line = alt.Chart(_data(lines)).mark_line(strokeWidth=1, opacity=0.55)
    layers = [line.encode(x=x, y=y, color=alt.Color("c:N", scale=scale, legend=None), detail="p:O", order="x:Q")]
    spot = alt.Chart(_data([m for m in marks if m["kept"]])).mark_point(size=34, filled=True, opacity=1)
    layers.append(spot.encode(x=x, y=y, color=alt.Color("c:N", scale=scale, legend=None)))
    spot = alt.Chart(_data([m for m in marks if not m["kept"]])).mark_point(size=24, strokeWidth=1.1, opacity=0.8)
    layers.append(spot.encode(x=x, y=y, stroke=alt.Stroke("c:N", scale=scale, legend=None)))
    ring = alt.Chart(_data([m for m in marks if m["ring"]]))
    layers.append(ring.mark_point(shape="square", size=190, strokeWidth=1.8, color=INK, opacity=1).encode(x=x, y=y))
    return alt.layer(*layers).properties(width=245, height=210)
