"""The figures of the layerwise analyses, layer by layer: alignment, strength, updates, components, two models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from retarget.analysis.figures import _SERIES, _VARIABLES, MUTED, Figure, KeyItem, _data, svg_of
from retarget.analysis.layers.effects import causes_figure, saved_figure, selection_figure
from retarget.analysis.layers.lines import (
    BAND,
    LINES,
    PANELS,
    Across,
    Row,
    Series,
    Up,
    across,
    by,
    drawn,
    fit,
    highest,
    key_of,
    left_out,
    line_of,
    norm_key,
    panel,
    panels_of,
    place,
    stack,
    trunk,
    who,
)
from retarget.analysis.layers.maps import heat_figure, overlap_figure

if TYPE_CHECKING:
    import polars as pl

__all__ = [
    "alignment_figure",
    "causes_figure",
    "compare_figure",
    "components_figure",
    "difference_figure",
    "heat_figure",
    "overlap_figure",
    "saved_figure",
    "selection_figure",
    "strength_figure",
    "update_figure",
]

# --- one layer at a time -----------------------------------------------------------------------------------------


def alignment_figure(layers: pl.DataFrame, onsets: pl.DataFrame) -> Figure | None:
    """|cos| of the first component and the difference by layer, with its interval, expectation, null and onset.

    Args:
        layers: rows of `LAYERS`.
        onsets: rows of `ONSETS`.

    Returns:
        None where no cosine is defined.
    """
    if layers.is_empty() or layers["pc1_cos"].drop_nulls().is_empty():
        return None
    rows, colours, note = drawn(layers)
    at = across(rows)
    groups = by(rows, "model", "contrast")
    size = (640, 300) if len(groups) == 1 else (395, 250)
    at = at.wide(size[0])
    top = 1.02 + 0.055 * len(colours) if onsets["onset"].drop_nulls().len() else 1.02
    up = Up("|cos| of first component and difference", (0, top), values=(0, 0.2, 0.4, 0.6, 0.8, 1))
    panels = []
    for (model, contrast), mine in groups.items():
        series = []
        for (position,), part in by(mine, "position").items():
            lines = part.rows(named=True)
            series.append(line_of(colours[position], lines, at, "pc1_cos_expected", dashed=True))
            series.append(line_of(colours[position], lines, at, "pc1_cos", ends=True))
        found = [
            r
            for r in onsets.rows(named=True)
            if (r["model"], r["contrast"]) == (model, contrast) and r["position"] in colours
        ]
        panels.append(
            panel(
                at,
                up,
                series,
                title=who(rows, model, contrast),
                null=[highest(mine, at, "pc1_cos_null")],
                over=_onset_marks(found, at, up, colours),
                size=size,
            )
        )
    return Figure(
        "layers-alignment",
        "Where the first principal component is the difference of means",
        "1: the largest axis of variation is the difference itself. Bands are 95% intervals, one layer at a time; "
        "dashed is what two Gaussian clouds with the measured distance, spread and number of rows give; the grey band "
        "reaches to the 95th percentile over random relabellings (the highest of the positions). A vertical line is an "
        "onset, the first layer from which the first component keeps to the difference; the bar above 1 is its 95% "
        "interval, open at the right where the onset is not reached in some draws. Gaps: not defined there." + note,
        svg_of(stack(panels, 2), "layers-alignment"),
        key=key_of(colours, KeyItem("expected of two Gaussians", _VARIABLES[MUTED], "dashed"), BAND, *norm_key(at)),
    )


def _onset_marks(onsets: Sequence[Row], at: Across, up: Up, colours: Mapping[str, str]) -> list[Any]:
    import altair as alt

    out = []
    order = list(colours)[::-1]
    for r in onsets:
        if r["onset"] is None:
            continue
        y = 1.045 + 0.055 * order.index(r["position"])
        low = r["onset"] if r["onset_low"] is None else r["onset_low"]
        high = r["onset_high"]
        if high is None:
            high = r["onset"] if r["onset_low"] is None else at.high + 0.5
        base = alt.Chart(_data([{"x": r["onset"], "low": low, "high": high, "y": y, "zero": 0}]))
        line: dict[str, Any] = {"color": colours[r["position"]]}
        x, across, upward = at.x(), at.x("low"), up.y()
        out.append(base.mark_rule(strokeWidth=1.2, opacity=0.75, **line).encode(x=x, y=up.y("zero"), y2="y:Q"))
        out.append(base.mark_rule(strokeWidth=3, opacity=0.8, **line).encode(x=across, x2="high:Q", y=upward))
        out.append(
            base.mark_point(size=44, filled=True, opacity=1, shape="triangle-down", **line).encode(x=x, y=upward)
        )
    return out


@dataclass(frozen=True)
class _Measure:
    """One column of panels."""

    key: str
    title: str
    of: str = ""
    ends: bool = False
    log: bool = False
    level: float = 0.0


def _measures(layers: pl.DataFrame, measures: Sequence[_Measure], width: int) -> tuple[Any, tuple[KeyItem, ...], str]:
    """A row of panels for each model, on axes that are shared; the chart is None where nothing is defined."""
    rows, colours, note = drawn(layers)
    at = across(rows)
    groups = by(rows, "model", "contrast")

    def lines(mine: pl.DataFrame, m: _Measure) -> list[Series]:
        return [
            line_of(colours[p], part.rows(named=True), at, m.key, of=m.of, ends=m.ends)
            for (p,), part in by(mine, "position").items()
        ]

    drawings = [[lines(mine, m) for m in measures] for mine in groups.values()]
    axes = [
        fit([s for d in drawings for s in d[k]], m.title, log=m.log, include=(m.level,)) for k, m in enumerate(measures)
    ]
    found = [(k, m, up) for k, (m, up) in enumerate(zip(measures, axes, strict=True)) if up is not None]
    panels = [
        panel(at, up, drawing[k], levels=(m.level,), size=(width, 190), title=who(rows, *g) if k == found[0][0] else "")
        for g, drawing in zip(groups, drawings, strict=True)
        for k, m, up in found
    ]
    return (stack(panels, len(found)) if panels else None), key_of(colours, *norm_key(at)), note


def strength_figure(layers: pl.DataFrame) -> Figure | None:
    """How strong the difference is by layer: its relative length, its signal over noise, a linear probe."""
    if layers.is_empty():
        return None
    measures = (
        _Measure("diff_norm", "difference / length of vectors", of="rms_norm", ends=True),
        _Measure("diff_signal", "signal over noise (log scale)", log=True, level=1.0),
        _Measure("probe_d_prime", "probe d′, held out"),
    )
    chart, key, note = _measures(layers, measures, 245)
    if chart is None:
        return None
    return Figure(
        "layers-strength",
        "How strong the difference is",
        "Length of the difference of class means over the vectors' own root mean square length, with its 95% interval; "
        "the same length over what sampling noise alone would give (dotted line at 1: no difference); and a linear "
        "probe's d′, the distance of the classes along it over their spread, in rows that it was not fitted on." + note,
        svg_of(chart, "layers-strength"),
        key=key,
    )


def update_figure(layers: pl.DataFrame) -> Figure | None:
    """What each block adds to the difference: along it and across it, over the vectors' length."""
    if layers.is_empty():
        return None
    measures = (
        _Measure("update_along", "along / length of vectors", of="rms_norm"),
        _Measure("update_across", "across / length of vectors", of="rms_norm"),
    )
    chart, key, note = _measures(layers, measures, 380)
    if chart is None:
        return None
    return Figure(
        "layers-update",
        "What each block adds to the difference",
        "The change of the difference of means from the layer before, split along the difference that was there (above "
        "0: it grows, below: it shrinks) and across it (the length of what is new: the direction turns). Both over the "
        "vectors' root mean square length at the layer." + note,
        svg_of(chart, "layers-update"),
        key=key,
    )


def components_figure(components: pl.DataFrame, *, rest: bool = False) -> Figure | None:
    """Variance and |cos| with the difference of the leading components by layer (balanced pooling).

    Args:
        components: rows of `COMPONENTS`.
        rest: the panels after the first ones, as a folded figure.
    """
    import polars as pl

    frame = components.filter(pl.col("pooling") == "balanced")
    if frame.is_empty() or frame["cos"].drop_nulls().is_empty():
        return None
    frame = trunk(frame).filter(pl.col("component") <= LINES)
    groups, left = panels_of(frame, rest)
    if not groups:
        return None
    at = across(frame)
    charts, numbers = [], sorted(frame["component"].unique().to_list())
    for title, mine in groups:
        parts = [
            (_SERIES[c - 1], mine.filter(pl.col("component") == c).rows(named=True)) for c in reversed(numbers)
        ]  # first component on top
        shares = [line_of(tint, rows, at, "explained") for tint, rows in parts]
        # Bands of five components hide each other: the first one's, and its strongest rival's.
        later = (
            mine.filter(pl.col("component") > 1).drop_nulls("cos").sort("cos", "component", descending=[True, False])
        )
        banded = {_SERIES[0]} | ({_SERIES[later["component"][0] - 1]} if later.height else set())
        cosines = [line_of(tint, rows, at, "cos", ends=tint in banded) for tint, rows in parts]
        up = fit(shares, "variance explained (share)", include=(0.0,)) or Up("variance explained (share)", (0, 1))
        cos = Up("|cos| with the difference", (0, 1.02), values=(0, 0.25, 0.5, 0.75, 1))
        null = [highest(mine, at, "cos_null")]
        charts += [panel(at, up, shares, title=title, size=(370, 170))]
        charts += [panel(at, cos, cosines, null=null, size=(370, 170))]
    name = "layers-components" + ("-more" if rest else "")
    key = [KeyItem(f"component {c}", _VARIABLES[_SERIES[c - 1]], "circle") for c in numbers]
    return Figure(
        name,
        "Which component carries the difference",
        "Leading principal components of both classes pooled, weighted alike. Where a component other than the first "
        "stands high on the right, something else varies more than the difference does, and has taken the first "
        "component. Bands are 95% intervals, of the first and of its strongest rival." + left_out(left),
        svg_of(stack(charts, 2), name),
        rest,
        (*key, BAND, *norm_key(at)),
    )


# --- two models, and saved directions ----------------------------------------------------------------------------


def compare_figure(first: pl.DataFrame, second: pl.DataFrame, *, name: str = "layers-compare") -> Figure | None:
    """Two models' alignment and length of the difference by layer, with intervals.

    Args:
        first, second: rows of `LAYERS` of one model each.
        name: of the figure, unique on its page.
    """
    import polars as pl

    if first.is_empty() or second.is_empty():
        return None
    both = [trunk(f) for f in (first, second)]
    at = across(pl.concat(both, how="vertical_relaxed"))
    tints = (_SERIES[0], _SERIES[1])
    shared = [p for p in both[0]["position"].unique(maintain_order=True).to_list() if (both[1]["position"] == p).any()]
    shared = shared[::-1]
    measures = (("pc1_cos", "|cos| of first component"), ("diff_norm", "length of the difference"))
    panels = []
    for position in shared[:PANELS]:
        title = place(position)
        for key, words in measures:
            rows = [f.filter(pl.col("position") == position).rows(named=True) for f in both]
            series = [line_of(t, r, at, key, ends=True) for t, r in zip(tints, rows, strict=True)]
            up = fit(series, words, include=(0.0,))
            if key == "pc1_cos":
                up = up and Up(words, (0, 1.02), values=(0, 0.25, 0.5, 0.75, 1))
            if up is not None:
                panels.append(panel(at, up, series, title=title, size=(380, 200)))
    if not panels:
        return None
    labels = [str(f["model"][0]) for f in (first, second)]
    left = len(shared) - PANELS
    return Figure(
        name,
        "Two models, layer by layer",
        "The same measures on both, with 95% intervals. Intervals that overlap do not tell the two apart; the table of "
        "differences has the interval of the difference itself." + left_out(max(left, 0)),
        svg_of(stack(panels, 2), name),
        key=(*[KeyItem(n, _VARIABLES[t], "circle") for n, t in zip(labels, tints, strict=True)], *norm_key(at)),
    )


def difference_figure(compared: pl.DataFrame, *, name: str = "layers-difference") -> Figure | None:
    """What differs between two models by layer, with the interval of the difference, and how far directions agree.

    Args:
        compared: rows of `compare.COMPARISON` of one pair of models.
        name: of the figure, unique on its page.
    """
    import polars as pl

    frame = trunk(compared) if compared.height else compared
    if frame.is_empty():
        return None
    rows, colours, note = drawn(frame)
    at = across(rows)
    alone = rows.unique(["hook", "second_hook", "position", "contrast"], maintain_order=True)
    charts = (
        (rows.filter(pl.col("quantity") == "pc1_cos"), "difference", "difference of |cos|", 0.0),
        (rows.filter(pl.col("quantity") == "diff_norm"), "difference", "difference of lengths", 0.0),
        (alone, "direction_cos", "cosine of the two directions", 1.0),
    )
    panels = []
    for mine, column, title, level in charts:
        series = [
            line_of(colours[p], part.rows(named=True), at, column, ends=column == "difference")
            for (p,), part in by(mine, "position").items()
        ]
        up = fit(series, title, include=(level,))
        if up is not None:
            panels.append(panel(at, up, series, levels=(level,), size=(245, 200)))
    if not panels:
        return None
    first, second = (str(compared[f"{n}_model"][0]) for n in ("first", "second"))
    return Figure(
        name,
        f"What differs: {second} less {first}",
        "Differences with their 95% intervals, one layer at a time; where the band holds 0 (dotted), the models are "
        "not told apart there." + (" Right: 1 where both hold the same direction." if len(panels) > 2 else "") + note,
        svg_of(stack(panels, 3), name),
        key=key_of(colours, *norm_key(at)),
    )
