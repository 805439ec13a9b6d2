"""Two models side by side: the same rows of both, and their differences with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import stdtrit

from retarget.analysis.layers.collected import Collected
from retarget.analysis.layers.columns import LAYERS, LayerColumn
from retarget.analysis.layers.places import Choices, Place, Row, measure
from retarget.analysis.layers.resample import Method, Replicates, cos_of
from retarget.analysis.layers.spectrum import cosine
from retarget.analysis.layers.tables import LayerTables, frame, layer_rows
from retarget.errors import LayersError

if TYPE_CHECKING:
    import polars as pl

#: Numbers of the table `layers` that have intervals of their own, with their bounds.
_WITH_INTERVALS: Mapping[str, tuple[float, float]] = {"diff_norm": (-math.inf, math.inf), "pc1_cos": (-1.0, 1.0)}
#: What is compared: every real number of the table `layers` but the ends of intervals.
QUANTITIES = tuple(c.name for c in LAYERS if c.kind == "real" and not c.name.endswith(("_low", "_high")))

#: One row a place, position and quantity.
COMPARISON = (
    LayerColumn("first_model", "text", "", "label of one model"),
    LayerColumn("second_model", "text", "", "label of the other"),
    LayerColumn("contrast", "text", "", "positive - negative, by name"),
    LayerColumn("hook", "text", "", "name of the place in the first model, or in the second where it is only there"),
    LayerColumn("second_hook", "text", "", "name of the place in the second model"),
    LayerColumn("stream", "text", "", "what flows there"),
    LayerColumn("layer", "whole", "blocks", "blocks passed there"),
    LayerColumn("position", "text", "", "of the tokens or steps"),
    LayerColumn("quantity", "text", "", "a column of the table `layers`"),
    LayerColumn("first", "real", "", "its value in the first model"),
    LayerColumn("second", "real", "", "in the second"),
    LayerColumn("difference", "real", "", "second - first"),
    LayerColumn("difference_low", "real", "", "95% interval, lower end"),
    LayerColumn("difference_high", "real", "", "upper end"),
    LayerColumn("direction_cos", "real", "", "cosine of the two models' differences of means, signed"),
    LayerColumn("reason", "text", "", "why values are null, or null"),
)


@dataclass(frozen=True, eq=False)
class _Side:
    """The rows of one model, and its places where its moments are at hand."""

    model: str
    rows: tuple[Row, ...]
    places: Mapping[tuple[str, str], Place]


def compare(
    first: LayerTables | Collected,
    second: LayerTables | Collected,
    *,
    same_rows: bool = False,
    confidence: float = 0.95,
    interval: Method = "jackknife",
) -> pl.DataFrame:
    """The rows of two models joined by place and position, second minus first.

    Places are joined by their hooks where the models have hooks in common, else by stream and layer. A place that
    only one of them has keeps its rows, with a reason; so do places of unequal width, whose directions cannot be
    compared.

    Intervals of differences, for what has intervals:

    - of two independent samples: from the two intervals (Zou & Donner 2008), `d - sqrt((b - b_low)^2 + (a_high -
      a)^2)` to `d + sqrt((b_high - b)^2 + (a - a_low)^2)` for `d = b - a`;
    - with `same_rows`, from moments of both: a jackknife of the difference, the same group of rows left out of both
      models at once, so that what rows have in common cancels.

    Args:
        first, second: tables, or the moments that they are made of. Directions are compared, and rows paired, only
            where both are moments.
        same_rows: whether both models saw the same rows in the same order. With tables it is refused.
        confidence: of the intervals; tables keep the confidence that they were made with.
        interval: for moments, see `resample`; `same_rows` takes the jackknife.

    Returns:
        A data frame with the columns of `COMPARISON`.

    Raises:
        LayersError: where the models share no contrast, or no position, or rows are said to be the same and cannot be.
    """
    if same_rows and not (isinstance(first, Collected) and isinstance(second, Collected)):
        raise LayersError("same_rows=True needs the moments of both models; pass what was collected, not tables")
    if same_rows and isinstance(first, Collected) and isinstance(second, Collected) and first.n_rows != second.n_rows:
        raise LayersError(f"models with rows {first.n_rows} and {second.n_rows} have not seen the same rows")
    choices = Choices(k=1, confidence=confidence, interval="jackknife" if same_rows else interval)
    a, b = _side(first, choices), _side(second, choices)
    for name in ("contrast", "position"):
        mine, theirs = ({str(r[name]) for r in s.rows} for s in (a, b))
        if not mine & theirs:
            shown = f"{', '.join(sorted(mine)) or 'none'} and {', '.join(sorted(theirs)) or 'none'}"
            raise LayersError(f"the models share no {name}: {shown}; collect the same one of both")
    rows: list[Row] = []
    for mine_row, their_row in _joined(a.rows, b.rows):
        rows += _compared(a, b, mine_row, their_row, choices, same_rows=same_rows)
    return frame(rows, COMPARISON)


def _side(given: LayerTables | Collected, choices: Choices) -> _Side:
    if isinstance(given, LayerTables):
        table = given.layers
        return _Side(str(table["model"][0]) if len(table) else "none", tuple(table.to_dicts()), {})
    places = list(measure(given, choices))
    return _Side(given.model, tuple(layer_rows(places)), {(p.site.hook, p.position): p for p in places})


def _joined(first: Sequence[Row], second: Sequence[Row]) -> list[tuple[Row | None, Row | None]]:
    shared = {r["hook"] for r in first} & {r["hook"] for r in second}
    names = ("hook",) if shared else ("stream", "layer")

    def key(row: Row) -> tuple[object, ...]:
        return (*(row[n] for n in names), row["position"], row["contrast"])

    theirs = {key(r): r for r in second}
    mine = {key(r) for r in first}
    out: list[tuple[Row | None, Row | None]] = [(r, theirs.get(key(r))) for r in first]
    return out + [(None, r) for r in second if key(r) not in mine]


def _compared(
    a: _Side, b: _Side, mine: Row | None, theirs: Row | None, choices: Choices, *, same_rows: bool
) -> list[Row]:
    known = mine or theirs or {}
    start: Row = {
        "first_model": a.model,
        "second_model": b.model,
        "second_hook": theirs["hook"] if theirs else None,
        **{name: known[name] for name in ("contrast", "hook", "stream", "layer", "position")},
    }
    if mine is None or theirs is None:
        why = f"the {'first' if mine is None else 'second'} model has no such place or position"
        return [
            {**start, "quantity": q, "first": (mine or {}).get(q), "second": (theirs or {}).get(q), "reason": why}
            for q in QUANTITIES
        ]
    places = (
        a.places.get((str(mine["hook"]), str(mine["position"]))),
        b.places.get((str(theirs["hook"]), str(theirs["position"]))),
    )
    direction, no_direction = _direction_cos(mine, theirs, *places)
    rows: list[Row] = []
    for q in QUANTITIES:
        reasons = [] if no_direction is None else [f"direction_cos: {no_direction}"]
        row: Row = {**start, "quantity": q, "first": mine[q], "second": theirs[q], "direction_cos": direction}
        values = mine[q], theirs[q]
        if not (isinstance(values[0], float) and isinstance(values[1], float)):
            reasons.insert(0, "the value is null in one of the models")
        else:
            row["difference"] = values[1] - values[0]
            if q not in _WITH_INTERVALS:
                reasons.insert(0, "interval: this number has none of its own")
            else:
                found = _together(q, *places, choices) if same_rows else _apart(q, mine, theirs)
                if found is None:
                    reasons.insert(0, "interval: one of the models has none")
                else:
                    row["difference_low"], row["difference_high"] = (
                        float(np.clip(v, *_WITH_INTERVALS[q])) for v in found
                    )
        row["reason"] = "; ".join(reasons) or None
        rows.append(row)
    return rows


def _direction_cos(mine: Row, theirs: Row, a: Place | None, b: Place | None) -> tuple[float | None, str | None]:
    if mine["width"] != theirs["width"]:
        return None, f"widths {mine['width']} and {theirs['width']} differ"
    if a is None or b is None:
        return None, "tables do not keep directions; pass what was collected of both"
    if a.difference is None or b.difference is None:
        return None, "a class has no vectors"
    cos = cosine(a.difference, b.difference)
    return cos, None if cos is not None else "a difference of means is zero"


def _apart(quantity: str, mine: Row, theirs: Row) -> tuple[float, float] | None:
    """Interval of a difference of independent estimates, from their own intervals."""
    named = [row[quantity + end] for row in (mine, theirs) for end in ("", "_low", "_high")]
    numbers = [v for v in named if isinstance(v, float)]
    if len(numbers) < 6:
        return None
    a, a_low, a_high, b, b_low, b_high = numbers
    return b - a - math.hypot(b - b_low, a_high - a), b - a + math.hypot(b_high - b, a - a_low)


def _together(quantity: str, a: Place | None, b: Place | None, choices: Choices) -> tuple[float, float] | None:
    """Jackknife of a difference, the same group left out of both models."""
    drawn: list[Replicates] = []
    for place in (a, b):
        if place is None or place.resampled is None:
            return None
        r = place.resampled.length if quantity == "diff_norm" else place.resampled.balanced
        if r is None:
            return None
        if quantity == "pc1_cos":
            r = Replicates(r.method, r.n_groups, cos_of(r.estimate[..., 0]), cos_of(r.drawn[..., 0]))
        drawn.append(r)
    first, second = drawn
    if first.n_groups != second.n_groups:
        return None
    apart = second.deviations() - first.deviations()
    error = math.sqrt(float((apart**2).sum()) / (first.n_groups - 1))
    reach = float(stdtrit(first.n_groups - 1, (1 + choices.confidence) / 2)) * error
    middle = float(second.estimate - first.estimate)
    return (middle - reach, middle + reach) if math.isfinite(reach) else None
