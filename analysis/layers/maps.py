"""Layers against layers: the map of cosines, and what they share besides the direction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from retarget.analysis.figures import _SERIES, _VARIABLES, MUTED, Figure, KeyItem, _data, svg_of
from retarget.analysis.layers.lines import (
    BAND,
    GREY,
    MOST_PLACES,
    Across,
    Row,
    Series,
    Up,
    heading,
    left_out,
    panel,
    panels_of,
    real,
    stack,
    trunk,
)

if TYPE_CHECKING:
    import polars as pl

# --- layers against layers ---------------------------------------------------------------------------------------


def _pairs(frame: pl.DataFrame, *keep: str) -> tuple[list[tuple[int, bool]], dict[Any, Row]]:
    """Places in order as (layer, whether after the final norm), and the row of each pair of them, both ways round."""
    spots: dict[tuple[int, bool], None] = {}
    found: dict[Any, Row] = {}
    for r in frame.rows(named=True):
        if r["stream"] not in keep or r["other_stream"] not in keep:
            continue
        a = (r["layer"], r["stream"] == "final_norm")
        b = (r["other_layer"], r["other_stream"] == "final_norm")
        spots |= {a: None, b: None}
        found[a, b] = found[b, a] = r
    return sorted(spots, key=lambda s: (s[1], s[0])), found


def _streams(frame: pl.DataFrame) -> tuple[str, ...]:
    kinds = trunk(frame)["stream"].unique().to_list()
    return tuple(sorted({*kinds, "final_norm"}))


def heat_figure(cosines: pl.DataFrame, *, rest: bool = False) -> Figure | None:
    """Cosine of the differences of every two layers, as a map for each model and position.

    Args:
        cosines: rows of `COSINES`; one row a pair, in either order.
        rest: the panels after the first ones, as a folded figure.
    """
    if cosines.is_empty() or cosines["cos"].drop_nulls().is_empty():
        return None
    groups, left = panels_of(cosines, rest)
    panels, step = [], 1
    side = 330 if len(groups) > 1 else 420
    for title, mine in groups:
        spots, found = _pairs(mine, *_streams(cosines))
        step = max(step, math.ceil(len(spots) / MOST_PLACES))
        if spots:
            panels.append(_heat_panel(title, spots, found, side))
    if not panels:
        return None
    name = "layers-cosines" + ("-more" if rest else "")
    thinned = f" Every {step} layers." if step > 1 else ""
    return Figure(
        name,
        "Is it the same direction from layer to layer?",
        "Cosine of the differences of means at two layers: 1 the same direction, 0 nothing in common, −1 reversed. "
        "Two layers of unrelated directions give values near 0. A small cross: not defined." + thinned + left_out(left),
        svg_of(_with_scale(stack(panels, 2)), name),
        rest,
    )


def _tinted(base: Any, **where: Any) -> list[Any]:
    """Cells in two colours that fade to nothing at 0, so that one drawing reads on light and on dark pages."""
    import altair as alt

    opacity = alt.Opacity("size:Q", scale=alt.Scale(domain=[0, 1], range=[0, 1]), legend=None)
    out = []
    for sign, tint in ((1, _SERIES[0]), (-1, _SERIES[1])):
        cells = base.transform_filter(f"datum.sign == {sign}").mark_rect(color=tint, strokeWidth=0)
        out.append(cells.encode(opacity=opacity, **where))
    return out


def _cell(cos: float) -> dict[str, float]:
    return {"size": round(min(abs(cos), 1.0), 3), "sign": 1 if cos >= 0 else -1}


def _heat_panel(title: str, spots: list[tuple[int, bool]], found: Mapping[Any, Row], side: int) -> Any:
    import altair as alt

    spots = [s for i, s in enumerate(spots) if i % math.ceil(len(spots) / MOST_PLACES) == 0]
    defined = {s for (a, b), r in found.items() if a != b and real(r["cos"]) is not None for s in (a, b)}
    cells, gone = [], []
    for i, a in enumerate(spots):
        for j, b in enumerate(spots):
            row = found.get((a, b))
            cos = real(row["cos"]) if row is not None else 1.0 if a == b and a in defined else None
            spot = {"x": i, "x2": i + 1, "y": j, "y2": j + 1}
            if cos is None:
                gone.append({"x": i + 0.5, "y": j + 0.5})
            else:
                cells.append(spot | _cell(cos))
    n = len(spots)

    def scaled(kind: Any, field: str) -> Any:
        axis = alt.Axis(title="layer", values=[], titlePadding=26, domain=False)
        return kind(f"{field}:Q", scale=alt.Scale(domain=[0, n], nice=False), axis=axis)

    x, y = scaled(alt.X, "x"), scaled(alt.Y, "y")
    layers = _tinted(alt.Chart(_data(cells)), x=x, x2="x2:Q", y=y, y2="y2:Q")
    if gone:
        mark = alt.Chart(_data(gone)).mark_text(text="×", fontSize=max(6, min(14, side / n)), color=MUTED)
        layers.append(mark.encode(x=x, y=y))
    # Places are counted, not measured: layers may be missing, and the final norm has no number of its own.
    every = math.ceil(n / 14)
    names = [
        {"x": i + 0.5, "y": i + 0.5, "name": "norm" if s[1] else str(s[0])}
        for i, s in enumerate(spots)
        if (i % every == 0 and i + every / 2 <= n - 1) or i == n - 1
    ]
    words = alt.Chart(_data(names))
    font: dict[str, Any] = {"fontSize": 11, "color": MUTED}
    layers.append(words.mark_text(baseline="top", dy=6, **font).encode(x=x, y=alt.value(side), text="name:N"))
    layers.append(words.mark_text(align="right", dx=-6, **font).encode(x=alt.value(0), y=y, text="name:N"))
    return alt.layer(*layers).properties(width=side, height=side, title=heading(title, side))


def _with_scale(chart: Any) -> Any:
    """A heat map and, above it, what its colours mean."""
    import altair as alt

    steps = [{"x": -1 + i / 20, "x2": -1 + (i + 1) / 20} | _cell(-1 + (i + 0.5) / 20) for i in range(40)]
    axis = alt.Axis(title="cosine", values=[-1, -0.5, 0, 0.5, 1], format=".1~f", grid=False, domain=False)
    x = alt.X("x:Q", scale=alt.Scale(domain=[-1, 1], nice=False), axis=axis)
    legend = alt.layer(*_tinted(alt.Chart(_data(steps)), x=x, x2="x2:Q")).properties(width=240, height=12)
    return alt.vconcat(legend, chart, spacing=14)


def overlap_figure(overlaps: pl.DataFrame, *, rest: bool = False) -> Figure | None:
    """What is left in common between layers once the difference is projected out, against their distance.

    Args:
        overlaps: rows of `OVERLAPS`.
        rest: the panels after the first ones, as a folded figure.
    """
    if overlaps.is_empty() or overlaps["overlap"].drop_nulls().is_empty():
        return None
    groups, left = panels_of(overlaps, rest)
    keep = tuple(s for s in _streams(overlaps) if s != "final_norm")
    found = [(title, _distances(mine, keep)) for title, mine in groups]
    far = max((r["x"] for _, rows in found for r in rows), default=0)
    if not far:
        return None
    k = max(float(r["k"]) for _, rows in found for r in rows)
    at, up = Across(1, int(far), None, "layers apart (blocks)"), Up("overlap (dimensions)", (0, k * 1.03))
    size = (395, 220) if len(found) > 1 else (640, 260)
    panels = [_overlap_panel(title, rows, at, up, size) for title, rows in found if rows]
    name = "layers-overlaps" + ("-more" if rest else "")
    blue, muted = _VARIABLES[_SERIES[0]], _VARIABLES[MUTED]
    return Figure(
        name,
        "What else do layers have in common?",
        f"The leading {k:.0f} directions of two layers, the difference of means taken out of both: {k:.0f} is the same "
        "subspace, 0 none in common. One mark a pair of layers, against how many blocks lie between them. The dashed "
        "line is what random subspaces share; the grey band reaches to the 95th percentile where the coordinates of "
        "one layer are permuted (mean over pairs)." + left_out(left),
        svg_of(stack(panels, 2), name),
        rest,
        (
            KeyItem("pair of layers", blue, "circle", True),
            KeyItem("mean", blue, "solid"),
            KeyItem("random subspaces", muted, "dashed"),
            BAND,
        ),
    )


def _distances(frame: pl.DataFrame, keep: Sequence[str]) -> list[dict[str, Any]]:
    _, found = _pairs(frame, *keep)
    out = []
    for (a, b), r in sorted(found.items()):
        if a < b and real(r["overlap"]) is not None:
            out.append({"x": abs(a[0] - b[0]), "y": r["overlap"], "k": r["k"]} | _nulls(r))
    return out


def _nulls(row: Row) -> dict[str, float | None]:
    return {"expected": real(row["expected"]), "null": real(row["null_high"])}


def _overlap_panel(title: str, rows: list[dict[str, Any]], at: Across, up: Up, size: tuple[int, int]) -> Any:
    import altair as alt

    def mean(key: str) -> list[tuple[float, float | None, None, None, bool]]:
        out: list[tuple[float, float | None, None, None, bool]] = []
        for x in sorted({r["x"] for r in rows}):
            values = [r[key] for r in rows if r["x"] == x and r[key] is not None]
            out.append((float(x), math.fsum(values) / len(values) if values else None, None, None, False))
        return out

    x = at.wide(size[0]).x()
    points = alt.Chart(_data(rows)).mark_point(size=22, opacity=0.45, strokeWidth=1.2, color=_SERIES[0])
    series = [Series(_SERIES[0], mean("y")), Series(MUTED, mean("expected"), True)]
    return panel(
        at, up, series, title=title, null=[Series(GREY, mean("null"))], over=[points.encode(x=x, y=up.y())], size=size
    )
