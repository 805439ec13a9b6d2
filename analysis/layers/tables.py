"""The layerwise tables: everything that one pass left behind, as data frames with fixed columns."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from retarget.analysis.layers.collected import Collected
from retarget.analysis.layers.columns import COMPONENTS, COSINES, LAYERS, ONSETS, OVERLAPS, TABLES, LayerColumn
from retarget.analysis.layers.onset import find_onset
from retarget.analysis.layers.overlaps import subspace_overlap
from retarget.analysis.layers.places import Choices, Place, Row, measure
from retarget.analysis.layers.resample import Method, Replicates
from retarget.analysis.layers.spectrum import cosine
from retarget.errors import FileError, LayersError

if TYPE_CHECKING:
    import polars as pl

#: Streams that a block adds to: along them a difference is carried from layer to layer.
_CARRIED = ("embedding", "residual")
_DTYPES = {"text": "String", "whole": "Int64", "real": "Float64", "truth": "Boolean"}


@dataclass(frozen=True, eq=False)
class LayerTables:
    """Tables of one model and contrast; their columns are those of `columns.TABLES`.

    Attributes:
        layers: one row a place and position.
        components: one row a place, pooling and component.
        cosines: one row a pair of places of one position and width.
        overlaps: the same pairs.
        onsets: one row a position.
        causes: one row an intervention; None where none was done.
    """

    layers: pl.DataFrame
    components: pl.DataFrame
    cosines: pl.DataFrame
    overlaps: pl.DataFrame
    onsets: pl.DataFrame
    causes: pl.DataFrame | None = None

    def __post_init__(self) -> None:
        for f in fields(self):
            table = getattr(self, f.name)
            if table is not None and dict(table.schema) != schema(TABLES[f.name]):
                raise LayersError(f"table {f.name!r} does not have the columns and types of columns.TABLES")

    def with_causes(self, causes: pl.DataFrame) -> LayerTables:
        """The same with a table of interventions."""
        return replace(self, causes=causes)

    def save(self, folder: Path | str) -> Path:
        """Write one Parquet file a table into a folder, made where it is missing. Files there are replaced whole.

        Raises:
            FileError: where it cannot be written.
        """
        out = Path(folder)
        try:
            out.mkdir(parents=True, exist_ok=True)
            for f in fields(self):
                table, path = getattr(self, f.name), out / f"{f.name}.parquet"
                if table is None:
                    path.unlink(missing_ok=True)
                    continue
                draft = path.with_name(f".{path.name}.new-{os.getpid()}")
                try:
                    table.write_parquet(draft, compression="zstd", compression_level=3, statistics=True)
                    draft.replace(path)
                finally:
                    draft.unlink(missing_ok=True)
        except OSError as error:
            raise FileError(
                f"{str(out)!r}: cannot be written ({error.strerror or error}); choose another folder"
            ) from None
        return out

    @classmethod
    def load(cls, folder: Path | str) -> LayerTables:
        """Read what `save` wrote.

        Raises:
            FileError: where a table is missing, is no Parquet, or has other columns.
        """
        causes = Path(folder) / "causes.parquet"
        read = {name: _read(Path(folder), name) for name in TABLES if name != "causes"}
        return cls(**read, causes=_read(Path(folder), "causes") if causes.exists() else None)

    def summary(self) -> pl.DataFrame:
        """The layers in short: where, how strong, how much along the first component, how separable.

        Sorted by position and layer, in the order of the table.
        """
        names = ["hook", "layer", "position", "diff_norm", "diff_signal", "diff_p", "pc1_cos", "pc1_cos_low"]
        names += ["pc1_cos_high", "pc1_cos_expected", "pc1_cos_null", "pc1_variance", "probe_accuracy", "reason"]
        return self.layers.select(names)


def schema(columns: Sequence[LayerColumn]) -> dict[str, pl.DataType]:
    """Polars types by column: text is String, whole Int64, real Float64, truth Boolean.

    >>> list(schema(LAYERS[:1]).items())
    [('model', String)]
    """
    import polars as pl

    return {c.name: getattr(pl, _DTYPES[c.kind])() for c in columns}


def frame(rows: Iterable[Row], columns: Sequence[LayerColumn]) -> pl.DataFrame:
    """A data frame of rows with exactly these columns; a missing value is null, NaN and infinities are refused.

    Raises:
        LayersError: for a row with an unknown column or a number that is not finite.

    >>> frame([{"model": "a"}], LAYERS[:2]).rows()
    [('a', None)]
    """
    import polars as pl

    names = [c.name for c in columns]
    data: dict[str, list[object]] = {name: [] for name in names}
    for row in rows:
        odd = sorted(row.keys() - set(names))
        if odd:
            raise LayersError(f"a row has unknown columns: {', '.join(odd)}")
        for name in names:
            value = row.get(name)
            if isinstance(value, float) and not np.isfinite(value):
                raise LayersError(f"column {name!r} would hold {value}; give None and a reason")
            data[name].append(value)
    return pl.DataFrame(data, schema=schema(columns), strict=True)


def _read(folder: Path, name: str) -> pl.DataFrame:
    import polars as pl

    path = folder / f"{name}.parquet"
    if not path.is_file():
        raise FileError(f"{str(path)!r}: there is no such file; save the tables with LayerTables.save")
    try:
        table = pl.read_parquet(path)
    except Exception as error:  # Polars and Rust raise many kinds on broken files
        text = " ".join(str(error).split())[:200]
        raise FileError(f"{str(path)!r}: is no Parquet table ({text}); save the tables again") from None
    wanted = schema(TABLES[name])
    if dict(table.schema) != wanted:
        odd = sorted(set(table.schema.items()) ^ set(wanted.items()), key=str)
        shown = ", ".join(sorted({column for column, _ in odd})) or "their order"
        raise FileError(f"{str(path)!r}: has other columns than this version ({shown}); make the tables again")
    return table


def layer_tables(
    collected: Collected,
    *,
    k: int = 5,
    threshold: float = 0.9,
    confidence: float = 0.95,
    interval: Method = "jackknife",
    draws: int = 200,
) -> LayerTables:
    """All tables of one model, from its moments. A function of them and of these arguments.

    Args:
        collected: moments of one pass; with groups for intervals and probes, with relabellings for nulls.
        k: components, and dimensions of the subspaces that are compared; less where the width is.
        threshold: |cos| of the first component and the difference, for the onset.
        confidence: of the intervals.
        interval: `jackknife` or `bootstrap`, over groups; see `resample` for what each covers.
        draws: of the bootstrap, and permutations of coordinates.

    Returns:
        The tables. What is not defined is null, with the reason beside it.

    Raises:
        LayersError: for moments that fit no site, or arguments out of range.

    >>> from retarget.analysis.layers.moments import Moments
    >>> from retarget.analysis.layers.readable import Site
    >>> x, label = np.array([[0.0, 1.0], [0.0, -1.0], [9.0, 1.0], [9.0, -1.0]]), np.array([0, 0, 1, 1])
    >>> place, at = Site("blocks.0.hook_in", 0, "residual", 2), {("blocks.0.hook_in", "-1"): Moments.of(x, label)}
    >>> c = Collected("m", "0", "yes - no", (place,), ("-1",), at, (2, 2), {"-1": (0, 0)}, False, 0)
    >>> layer_tables(c).layers.select("diff_norm", "pc1_cos", "silhouette").row(0)[:2]
    (9.0, 1.0)
    """
    choices = Choices(k=k, threshold=threshold, confidence=confidence, interval=interval, draws=draws)
    return assemble(collected, list(measure(collected, choices)), choices)


def assemble(collected: Collected, places: Sequence[Place], choices: Choices) -> LayerTables:
    """The tables of places that were measured one by one (see `measure`)."""
    cosines: list[Row] = []
    overlaps: list[Row] = []
    onsets: list[Row] = []
    by_position = {p: [q for q in places if q.position == p] for p in collected.positions}
    for position, here in by_position.items():
        for i, first in enumerate(here):
            for second in here[i + 1 :]:
                if first.site.width != second.site.width:
                    continue
                pair = _pair(collected, position, first, second)
                cosines.append({**pair, **_cosine(first, second)})
                overlaps.append({**pair, **_overlap(first, second, choices, collected.seed)})
        if here:
            onsets.append(_onset(collected, position, here, choices))
    return LayerTables(
        frame(layer_rows(places), LAYERS),
        frame([row for place in places for row in place.components], COMPONENTS),
        frame(cosines, COSINES),
        frame(overlaps, OVERLAPS),
        frame(onsets, ONSETS),
    )


def layer_rows(places: Sequence[Place]) -> list[Row]:
    """Rows of the table `layers`: those of the places, and each block's change of the difference."""
    updates = {key: row for q in {p.position for p in places} for key, row in _updates(places, q).items()}
    rows: list[Row] = []
    for place in places:
        more = updates[place.site.hook, place.position]
        reasons = [str(r["reason"]) for r in (place.row, more) if r["reason"] is not None]
        rows.append({**place.row, **more, "reason": "; ".join(reasons) or None})
    return rows


def _chain(here: Sequence[Place], streams: Sequence[str] = _CARRIED) -> list[Place]:
    """The places of the residual stream, one a layer, rising; of two at one layer the later one."""
    by_layer = {p.site.layer: p for p in here if p.site.stream in streams}
    return [by_layer[layer] for layer in sorted(by_layer)]


def _updates(places: Sequence[Place], position: str) -> dict[tuple[str, str], Row]:
    """The block's change of the difference, by (hook, position)."""
    here = [p for p in places if p.position == position]
    chain = _chain(here)
    before = {b.site.hook: a for a, b in pairwise(chain)}
    out: dict[tuple[str, str], Row] = {}
    for place in here:
        row: Row = {"update_norm": None, "update_along": None, "update_across": None, "reason": None}
        last = before.get(place.site.hook)
        if last is None:
            why = "no layer before" if place in chain else "not a place between blocks"
            row["reason"] = f"update: {why}"
        elif last.site.layer != place.site.layer - 1 or last.site.width != place.site.width:
            row["reason"] = "update: the layer before was not collected, or has another width"
        elif place.difference is None or last.difference is None:
            row["reason"] = "update: a difference is missing"
        else:
            change = place.difference - last.difference
            row["update_norm"] = float(np.linalg.norm(change))
            size = float(np.linalg.norm(last.difference))
            if size > 0:
                unit = last.difference / size
                row["update_along"] = float(change @ unit)
                row["update_across"] = float(np.linalg.norm(change - (change @ unit) * unit))
            else:
                row["reason"] = "update_along, update_across: the difference before is zero"
        out[place.site.hook, place.position] = row
    return out


def _pair(collected: Collected, position: str, first: Place, second: Place) -> Row:
    return {
        "model": collected.model,
        "contrast": collected.contrast,
        "position": position,
        "hook": first.site.hook,
        "layer": first.site.layer,
        "stream": first.site.stream,
        "other_hook": second.site.hook,
        "other_layer": second.site.layer,
        "other_stream": second.site.stream,
    }


def _cosine(first: Place, second: Place) -> Row:
    if first.difference is None or second.difference is None:
        return {"cos": None, "reason": "a class has no vectors at this position"}
    cos = cosine(first.difference, second.difference)
    return {"cos": cos, "reason": None if cos is not None else "a difference of means is zero"}


def _overlap(first: Place, second: Place, choices: Choices, seed: int) -> Row:
    none: Row = {"k": None, "overlap": None, "expected": None, "null_high": None, "p": None}
    if first.subspace is None or second.subspace is None or first.difference is None or second.difference is None:
        return {**none, "reason": "no second moments at one of the places"}
    k = min(first.subspace.shape[1], second.subspace.shape[1], choices.k)
    if k < 1:
        return {**none, "reason": "nothing varies at one of the places once the difference is projected out"}
    found = subspace_overlap(
        first.subspace[:, :k],
        second.subspace[:, :k],
        out=(first.difference, second.difference),
        permutations=choices.draws,
        seed=seed,
    )
    if found is None:
        return {**none, "k": k, "reason": f"the differences leave less than {k} dimensions"}
    return {
        "k": k,
        "overlap": found.value,
        "expected": found.expected,
        "null_high": found.null_high,
        "p": found.p,
        "reason": None,
    }


def _onset(collected: Collected, position: str, here: Sequence[Place], choices: Choices) -> Row:
    row: Row = {c.name: None for c in ONSETS}
    row.update(
        model=collected.model, contrast=collected.contrast, position=position, threshold=float(choices.threshold)
    )
    # a network without a residual stream has layers all the same
    chain = _chain(here) or _chain(here, ("other",))
    if not chain:
        row["reason"] = "no place between blocks was collected"
        return row
    cosines = [p.row["pc1_cos"] for p in chain]
    found = find_onset(
        [p.site.layer for p in chain],
        [c if isinstance(c, float) else None for c in cosines],
        [_first_component(p) for p in chain],
        threshold=choices.threshold,
        confidence=choices.confidence,
        draws=1000,
        seed=collected.seed,
    )
    row.update(onset=found.layer, onset_low=found.low, onset_high=found.high, reached=found.reached)
    reasons = []
    if found.layer is None:
        reasons.append("onset: the last layer is below the threshold")
    if found.reached is None:
        reasons.append("interval: too few groups of rows, or no cosine")
    elif found.high is None:
        reasons.append("onset_high: not reached in too many draws")
    row["reason"] = "; ".join(reasons) or None
    return row


def _first_component(place: Place) -> Replicates | None:
    r = None if place.resampled is None else place.resampled.balanced
    return None if r is None else Replicates(r.method, r.n_groups, r.estimate[..., 0], r.drawn[..., 0])
