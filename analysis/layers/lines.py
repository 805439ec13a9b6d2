"""Panels of lines over the layers of a network: axes, bands, gaps, and which rows are drawn."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from retarget.analysis.figures import _SERIES, _VARIABLES, MUTED, KeyItem, _data

if TYPE_CHECKING:
    import polars as pl

Row = Mapping[str, Any]

#: Lines that can be told apart in one panel; grey is kept for what is no measurement.
LINES = len(_SERIES) - 1
#: Panels of one figure that are shown; a second figure, folded, holds as many as this times `_FOLDED`.
PANELS, _FOLDED = 4, 3
#: With more layers than this, a heat map leaves some out, and lines have no marks.
MOST_PLACES, _MOST_MARKS = 40, 40
GREY = _SERIES[-1]


# --- rows, panels and axes ---------------------------------------------------------------------------------------


def trunk(frame: pl.DataFrame) -> pl.DataFrame:
    """Rows of the network's main line, and of `final_norm`: those of attention and MLP outputs are left to the tables.

    Where there is no residual stream, the places between layers stand for it.
    """
    import polars as pl

    for streams in (("embedding", "residual"), ("other",), ("attention",), ("mlp",)):
        if frame["stream"].is_in(streams).any():
            return frame.filter(pl.col("stream").is_in([*streams, "final_norm"]))
    return frame


def real(value: object) -> float | None:
    """A finite number, or None."""
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def ordered(frame: pl.DataFrame) -> pl.DataFrame:
    """The same rows, those of one model, contrast and position together, in the order in which they first come."""
    import polars as pl

    parts = list(by(frame, *[c for c in ("model", "contrast", "position") if c in frame.columns]).values())
    return pl.concat(parts) if parts else frame


def share(row: Row, key: str, of: str) -> float | None:
    """One number of a row as a share of another; None where either is missing or the whole is 0."""
    value, whole = real(row[key]), real(row[of])
    return None if value is None or not whole else value / whole


@dataclass(frozen=True)
class Across:
    """The axis of layers: from `low` to `high`, and the place of `final_norm`, or None."""

    low: int
    high: int
    norm: int | None
    title: str = "layer (blocks passed)"
    width: int = 330

    def wide(self, width: int) -> Across:
        """The same axis on a panel of that many pixels: numbers are thinned until they have room."""
        return replace(self, width=width)

    def of(self, row: Row) -> int:
        return self.norm if row.get("stream") == "final_norm" and self.norm is not None else int(row["layer"])

    def x(self, field: str = "x") -> Any:
        import altair as alt

        end = self.high if self.norm is None else self.norm
        pixels = self.width / (end - self.low + 1)
        step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 10**9) if s * pixels >= 22)
        ticks = [v for v in range(self.low, self.high + 1) if (v - self.low) % step == 0]
        if self.norm is not None:
            ticks = [v for v in ticks if (self.norm - v) * pixels >= 27] + [self.norm]
        label = f"datum.value == {self.norm} ? 'norm' : datum.label" if self.norm is not None else "datum.label"
        axis = alt.Axis(title=self.title, values=ticks, format="d", labelExpr=label, labelOverlap=False)
        return alt.X(f"{field}:Q", scale=alt.Scale(domain=[self.low - 0.5, end + 0.5], nice=False), axis=axis)


def across(rows: pl.DataFrame) -> Across:
    """The scale of layers that all rows have."""
    import polars as pl

    inner = rows.filter(pl.col("stream") != "final_norm") if "stream" in rows.columns else rows
    found = [int(v) for v in (inner if inner.height else rows)["layer"].unique().to_list()]
    return Across(min(found), max(found), max(found) + 1 if 0 < inner.height < rows.height else None)


def colours_of(frame: pl.DataFrame) -> dict[str, str]:
    """A colour for each position that is drawn: the last ones, the very last in the first colour."""
    names = frame["position"].unique(maintain_order=True).to_list()[-LINES:]
    return {p: _SERIES[len(names) - 1 - i] for i, p in enumerate(names)}


def by(frame: pl.DataFrame, *keys: str) -> dict[tuple[Any, ...], pl.DataFrame]:
    """Parts of a frame by the values of columns, in order."""
    return frame.partition_by(list(keys), as_dict=True, maintain_order=True) if frame.height else {}


def place(position: object) -> str:
    """A position as it is read.

    >>> place("-1"), place("token 7")
    ('position −1', 'token 7')
    """
    name = str(position)
    return "position −" + name[1:] if name[:1] == "-" else "all positions" if name == "every" else name


def who(frame: pl.DataFrame, model: object, contrast: object, position: object = None) -> str:
    """What a panel is headed with: only what differs between panels."""
    parts = [str(model)] if frame["model"].n_unique() > 1 else []
    parts += [str(contrast)] if frame["contrast"].n_unique() > 1 else []
    parts += [] if position is None else [place(position)]
    return ", ".join(parts)


def panels_of(frame: pl.DataFrame, rest: bool) -> tuple[list[tuple[str, pl.DataFrame]], int]:
    """One panel a (model, contrast, position), last positions first; and how many are left out altogether."""
    groups = by(frame, "model", "contrast", "position")
    order = frame["position"].unique(maintain_order=True).to_list()
    keys = sorted(groups, key=lambda k: -order.index(k[2]))
    chosen = keys[PANELS : PANELS * (1 + _FOLDED)] if rest else keys[:PANELS]
    return [(who(frame, *k), groups[k]) for k in chosen], max(0, len(keys) - PANELS * (1 + _FOLDED))


def heading(words: str, width: int) -> Any:
    """A title over panels."""
    import altair as alt

    return alt.TitleParams(text=words, limit=width)


def key_of(colours: Mapping[str, str], *more: KeyItem) -> tuple[KeyItem, ...]:
    """The key of positions, and what else there is."""
    return (*[KeyItem(place(p), _VARIABLES[c], "circle") for p, c in colours.items()], *more)


NORM = KeyItem("after the final norm", _VARIABLES[MUTED], "diamond")
BAND = KeyItem("below the null's 95th percentile", "color-mix(in srgb,var(--muted,#5b6470) 30%,transparent)", "square")


# --- lines by layer ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Series:
    """A line over layers. Points are (x, y, low, high, whether after the final norm); y None leaves a gap."""

    colour: str
    points: Sequence[tuple[float, float | None, float | None, float | None, bool]]
    dashed: bool = False

    def ends(self) -> list[float]:
        return [v for p in self.points for v in p[1:4] if v is not None]


def line_of(
    colour: str, rows: Iterable[Row], at: Across, key: str, *, ends: bool = False, of: str = "", dashed: bool = False
) -> Series:
    """A line of one column, as a share of the column `of` where it is named; with `key_low` and `key_high`."""

    def get(row: Row, name: str) -> float | None:
        return share(row, name, of) if of else real(row[name])

    points = [
        (
            float(at.of(r)),
            get(r, key),
            get(r, f"{key}_low") if ends else None,
            get(r, f"{key}_high") if ends else None,
            r.get("stream") == "final_norm",
        )
        for r in sorted(rows, key=at.of)
    ]
    return Series(colour, points, dashed)


@dataclass(frozen=True)
class Up:
    """The vertical axis of a panel."""

    title: str
    domain: tuple[float, float]
    log: bool = False
    values: tuple[float, ...] | None = None

    def y(self, field: str = "y") -> Any:
        import altair as alt

        if self.log:
            scale = alt.Scale(type="log", domain=list(self.domain), nice=False)
            axis = alt.Axis(title=self.title, values=_log_ticks(*self.domain), format=".3~g")
        else:
            scale = alt.Scale(domain=list(self.domain), nice=False, zero=False)
            # Labels that would overlap are dropped with their ticks otherwise, though there is room for all of these.
            marks: dict[str, Any] = {"tickCount": 5} if self.values is None else {"values": list(self.values)}
            axis = alt.Axis(title=self.title, labelOverlap=False, format=".3~g", **marks)
        return alt.Y(f"{field}:Q", scale=scale, axis=axis)


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    for steps in ((1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 7), (1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        found = [s * 10.0**p for p in powers for s in steps if low <= s * 10.0**p <= high]
        if len(found) <= 7:
            return found
    return found[:: math.ceil(len(found) / 7)]


def fit(series: Iterable[Series], title: str, *, log: bool = False, include: Sequence[float] = ()) -> Up | None:
    """An axis that holds every point; None where there is none."""
    values = [v for s in series for v in s.ends() if not log or v > 0]
    if not values:
        return None
    low, high = min([*values, *include]), max([*values, *include])
    if log:
        room = max((high / low) ** 0.06, 1.1)
        return Up(title, (low / room, high * room), True)
    room = 0.06 * (high - low) or 0.5 * abs(high) or 1.0
    return Up(title, (low if low in include else low - room, high + room))


def pieces(series: Sequence[Series], up: Up) -> tuple[list[Any], list[Any], list[Any]]:
    """Marks, stretches of bands, and single intervals, as rows; a new stretch begins after each gap."""
    marks: list[Any] = []
    bands: list[Any] = []
    rules: list[Any] = []
    piece = 0
    for s in series:
        piece += 1
        stretch: list[Any] = []
        for x, y, low, high, norm in [*s.points, (0.0, None, None, None, False)]:
            gone = y is None or (up.log and y <= 0)
            whole = not (gone or norm or low is None or high is None or (up.log and low <= 0))
            if not whole and stretch:
                (bands if len(stretch) > 1 else rules).extend(stretch)
                stretch = []
            if gone or norm:
                piece += 1
            if gone:
                continue
            row = {"x": x, "y": y, "low": low, "high": high, "c": s.colour, "p": piece, "norm": norm}
            marks.append(row | {"dashed": s.dashed})
            if whole:
                stretch.append(row)
            elif norm and low is not None and high is not None:
                rules.append(row)
            piece += norm
    return marks, bands, rules


def panel(
    at: Across,
    up: Up,
    series: Sequence[Series],
    *,
    title: str = "",
    null: Sequence[Series] = (),
    levels: Sequence[float] = (),
    over: Sequence[Any] = (),
    size: tuple[int, int] = (330, 220),
) -> Any:
    """Lines with their bands over layers. `null` is a grey band from the bottom, `levels` are horizontal lines."""
    import altair as alt

    at = at.wide(size[0])
    x, y = at.x(), up.y()
    tints = sorted({s.colour for s in series})
    tint = alt.Color("c:N", scale=alt.Scale(domain=tints, range=tints), legend=None)
    marks, bands, rules = pieces(series, up)
    layers: list[Any] = [_null(s, at, up) for s in null if s.ends()]
    for level in levels:
        rule = alt.Chart(_data([{"y": level}])).mark_rule(color=MUTED, strokeWidth=1, strokeDash=[2, 2])
        layers.append(rule.encode(y=y))
    if bands:
        area = alt.Chart(_data(bands)).mark_area(opacity=0.17)
        layers.append(area.encode(x=x, y=up.y("low"), y2="high:Q", color=tint, detail="p:O"))
    for dashed, stroke in ((True, [5, 3]), (False, [1, 0])):
        line = alt.Chart(_data([m for m in marks if m["dashed"] is dashed and not m["norm"]]))
        width = 1.3 if dashed else 2
        layers.append(
            line.mark_line(strokeDash=stroke, strokeWidth=width).encode(x=x, y=y, color=tint, detail="p:O", order="x:Q")
        )
    if rules:
        rule = alt.Chart(_data(rules)).mark_rule(strokeWidth=1.6, opacity=0.7)
        layers.append(rule.encode(x=x, y=up.y("low"), y2="high:Q", color=tint))
    few = at.high - at.low < _MOST_MARKS
    for norm, shape, area in ((False, "circle", 26 if few else 6), (True, "diamond", 60)):
        spot = alt.Chart(_data([m for m in marks if m["norm"] is norm and not m["dashed"]]))
        spot = spot.mark_point(shape=shape, size=area, filled=True, opacity=1)
        layers.append(spot.encode(x=x, y=y, color=tint))
    tick = alt.Chart(_data([m for m in marks if m["norm"] and m["dashed"]])).mark_tick(size=14, thickness=1.6)
    layers.append(tick.encode(x=x, y=y, color=tint))
    return alt.layer(*layers, *over).properties(width=size[0], height=size[1], title=heading(title, size[0]))


def _null(series: Series, at: Across, up: Up) -> Any:
    import altair as alt

    rows, piece = [], 0
    for x, y, _, _, norm in series.points:
        piece += y is None or norm
        if y is not None:
            # A band is drawn half a layer to both sides, so that one layer alone has one too.
            rows += [{"x": x + dx, "y": max(y, up.domain[0]), "zero": up.domain[0], "p": piece} for dx in (-0.3, 0.3)]
    band = alt.Chart(_data(rows)).mark_area(color=MUTED, opacity=0.18)
    return band.encode(x=at.x(), y=up.y(), y2="zero:Q", detail="p:O")


def highest(rows: pl.DataFrame, at: Across, key: str) -> Series:
    """The highest value of a column at each layer, over positions."""
    best: dict[tuple[int, bool], float | None] = {}
    for r in rows.rows(named=True):
        spot, value = (at.of(r), r.get("stream") == "final_norm"), real(r[key])
        best[spot] = max((v for v in (value, best.get(spot)) if v is not None), default=None)
    return Series(GREY, [(float(x), v, None, None, norm) for (x, norm), v in sorted(best.items())])


def drawn(frame: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, str], str]:
    """Rows of the main line and of the positions that get a colour, those colours, and what is left out."""
    import polars as pl

    rows = trunk(frame)
    colours = colours_of(rows)
    left = rows["position"].n_unique() - len(colours)
    note = f" {left} earlier position{'s are' if left > 1 else ' is'} in the table only." if left else ""
    return rows.filter(pl.col("position").is_in(list(colours))), colours, note


def stack(charts: Sequence[Any], columns: int) -> Any:
    """Panels, so many a row."""
    import altair as alt

    return alt.concat(*charts, columns=columns, spacing=26)


def norm_key(at: Across) -> tuple[KeyItem, ...]:
    """The key of what follows the final norm."""
    return () if at.norm is None else (NORM,)


def left_out(n: int) -> str:
    """How many panels a figure has no room for, as the end of a caption."""
    return f" {n} further panel{'s are' if n > 1 else ' is'} in the table only." if n else ""
