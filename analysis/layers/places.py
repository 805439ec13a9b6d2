"""All that is measured at one place and position of a network, from its moments."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from retarget.analysis.layers.collected import Collected
from retarget.analysis.layers.columns import COMPONENTS, LAYERS
from retarget.analysis.layers.expected import expected_cos
from retarget.analysis.layers.moments import Moments
from retarget.analysis.layers.nulls import Null, component_null, difference_null
from retarget.analysis.layers.overlaps import subspace_without
from retarget.analysis.layers.readable import Site
from retarget.analysis.layers.resample import LEAST_GROUPS, Method, Replicates, Resampled, cos_of, resample
from retarget.analysis.layers.separable import probe, silhouette
from retarget.analysis.layers.spectrum import Pooling, cosine, leading, participation_ratio, pooled
from retarget.errors import LayersError

#: A length below this share of the vectors' own is rounding of the statistics; see also `Collected.rounding`.
_ROUNDING = 1e-12
#: |cos| of a component and of what its null is about, where classes differ in size, may be apart by this much.
_APART = 0.02
_UNEQUAL = "null: classes of unequal size; give as many rows in both"

Row = dict[str, object]


@dataclass(frozen=True)
class Choices:
    """What the tables are made with.

    Attributes:
        k: components, and dimensions of the subspaces that are compared.
        threshold: of |cos|, for the onset.
        confidence: of the intervals.
        interval: how they are found; see `resample`.
        draws: of the bootstrap, of the onset, and permutations of coordinates.
    """

    k: int = 5
    threshold: float = 0.9
    confidence: float = 0.95
    interval: Method = "jackknife"
    draws: int = 200

    def __post_init__(self) -> None:
        if self.k < 1 or self.draws < 20 or not 0 < self.confidence < 1 or not 0 < self.threshold <= 1:
            raise LayersError(
                f"tables need k >= 1, draws >= 20, a confidence in (0, 1) and a threshold in (0, 1], got k={self.k}, "
                f"draws={self.draws}, confidence={self.confidence}, threshold={self.threshold}"
            )


@dataclass(frozen=True, eq=False)
class Place:
    """One place and position.

    Attributes:
        site: where.
        position: label of the position.
        difference: float64 `[d]`: positive minus negative mean; exactly 0 where it is rounding; None where a class
            has no vectors.
        subspace: float64 `[d, k']`: leading components within classes once the difference is projected out; None
            without second moments.
        resampled: see `resample`; None without enough groups.
        row: of the table `layers`, but for the updates.
        components: rows of the table `components`.
    """

    site: Site
    position: str
    difference: np.ndarray | None
    subspace: np.ndarray | None
    resampled: Resampled | None
    row: Row
    components: tuple[Row, ...]


@dataclass(eq=False)
class _Notes:
    """Why values are null: what is missing by the cause, in order."""

    causes: dict[str, list[str]] = field(default_factory=dict)

    def add(self, what: str, cause: str) -> None:
        names = self.causes.setdefault(cause, [])
        if what not in names:
            names.append(what)

    def text(self) -> str | None:
        return "; ".join(f"{', '.join(names)}: {cause}" for cause, names in self.causes.items()) or None


def where(collected: Collected, site: Site, position: str) -> Row:
    """The columns that say where a row is from."""
    return {
        "model": collected.model,
        "digest": collected.digest,
        "contrast": collected.contrast,
        "hook": site.hook,
        "stream": site.stream,
        "layer": site.layer,
        "position": position,
    }


def measure(collected: Collected, choices: Choices) -> Iterator[Place]:
    """Every place and position that has moments, sites in order, positions in order.

    Raises:
        LayersError: where there is none, or moments do not fit their site.
    """
    any_place = False
    for site in collected.sites:
        for position in collected.positions:
            moments = collected.moments.get((site.hook, position))
            if moments is None:
                continue
            if moments.width != site.width or moments.n_classes != 2:
                raise LayersError(
                    f"moments at {site.hook!r} have width {moments.width} and {moments.n_classes} classes; the site "
                    f"has width {site.width}, and a contrast two classes"
                )
            any_place = True
            yield _Measuring(collected, site, position, moments, choices).place()
    if not any_place:
        raise LayersError("nothing was collected: no site has moments at any of the positions")


class _Measuring:
    """The work on one place, step by step."""

    def __init__(self, collected: Collected, site: Site, position: str, moments: Moments, choices: Choices) -> None:
        self.choices, self.site, self.position, self.moments = choices, site, position, moments
        self.paired, self.seed = collected.paired, collected.seed
        self.least = max(_ROUNDING, collected.rounding)
        self.alike = bool(moments.count.sum(0).all()) and collected.alike(moments)
        self.start = where(collected, site, position)
        self.notes = _Notes()
        self.row: Row = {c.name: None for c in LAYERS}
        self.row.update(self.start)
        self.n = moments.count.sum(0)
        self.names = collected.contrast.split(" - ")[::-1] if collected.contrast.count(" - ") == 1 else ["0", "1"]
        self.total = moments.total()
        self.resampled: Resampled | None = None

    def place(self) -> Place:
        self.row.update(width=self.site.width, n_negative=int(self.n[0]), n_positive=int(self.n[1]))
        difference, subspace = None, None
        components: list[Row] = []
        if not self.n.all():
            empty = " and ".join(self.names[c] for c in (0, 1) if not self.n[c])
            self.notes.add("all", f"no vectors of class {empty} at this position")
        else:
            difference = self._difference()
            if self.moments.scatter is None:
                self.notes.add("all but means", "only means were collected")
            else:
                components = self._spread(difference)
                within = pooled(self.total, "within")
                if self.alike:
                    within = np.zeros_like(within)
                subspace = subspace_without(within, difference, self.choices.k, n_rows=int(self.n.sum()))
        self.row["reason"] = self.notes.text()
        return Place(self.site, self.position, difference, subspace, self.resampled, self.row, tuple(components))

    def _difference(self) -> np.ndarray:
        m, row = self.total, self.row
        squares = (m.mean[0] ** 2).sum(1)
        if m.scatter is not None:
            squares = squares + np.trace(m.scatter[0], axis1=1, axis2=2) / self.n
            row["rms_norm"] = math.sqrt(squares.mean())
        scale = math.sqrt(squares.mean())
        difference = m.difference
        length = float(np.linalg.norm(difference))
        if length <= _ROUNDING * scale or self.alike:
            difference, length = np.zeros_like(difference), 0.0
        row["diff_norm"] = length
        self.resampled = resample(
            self.moments,
            self.choices.k,
            self.choices.interval,
            draws=self.choices.draws,
            seed=self.seed,
            paired=self.paired,
        )
        if self.resampled is None:
            self.notes.add("intervals", f"fewer than {LEAST_GROUPS} groups of rows")
        elif length > 0:
            low, high = ends(self.resampled.length, self.choices.confidence)
            row["diff_norm_low"] = None if low is None else max(low, 0.0)
            row["diff_norm_high"] = high
        if m.scatter is not None and self.n.min() >= 2:
            noise = math.sqrt(float((np.trace(m.scatter[0], axis1=1, axis2=2) / (self.n - 1) / self.n).sum()))
            row["diff_noise"] = noise
            spread = math.sqrt(float((np.trace(m.scatter[0], axis1=1, axis2=2) / self.n).mean()))
            if noise > _ROUNDING * scale and spread > self.least * scale:
                row["diff_signal"] = length / noise
            else:
                self.notes.add("diff_signal", "nothing varies within the classes")
        elif m.scatter is not None:
            self.notes.add("diff_noise", "fewer than 2 vectors of a class")
        null = difference_null(m)
        if null is None:
            self.notes.add("p-values", "no relabellings were collected")
        else:
            row["diff_p"] = None if self.alike else float(null.p[0])
        return difference

    def _spread(self, difference: np.ndarray) -> list[Row]:
        row = self.row
        balanced, within = pooled(self.total, "balanced"), pooled(self.total, "within")
        least = (self.least * float(str(row["rms_norm"]))) ** 2
        if self.alike or not float(np.trace(balanced)) > least:
            row["diff_p"] = None
            self.notes.add("components", "the vectors are all the same")
            return []
        row["participation_ratio"] = participation_ratio(balanced)
        if float(np.trace(within)) > least:
            row["participation_ratio_within"] = participation_ratio(within)
            expected = expected_cos(within, float(np.linalg.norm(difference)))
        else:
            self.notes.add("participation_ratio_within, expected", "nothing varies within the classes")
            expected, within = None, np.zeros_like(within)
        self._separability()
        rows = self._components("balanced", balanced, difference, expected)
        first = rows[0]
        row["pc1_variance"] = first["explained"]
        for name in ("cos", "cos_low", "cos_high", "cos_expected", "cos_null"):
            row[f"pc1_{name}"] = first[name]
        row["pc1_p"] = first["p"]
        if first["cos"] is None:
            self.notes.add("pc1_cos", _no_cos(difference, False) or "")
        elif _UNEQUAL in str(first["reason"]):
            self.notes.add("pc1_cos_null, pc1_p", _UNEQUAL)
        rows += self._components("within", within, difference, None)
        if self.moments.paired is not None and self.moments.paired_count:
            rows += self._components("paired", pooled(self.total, "paired"), difference, None)
        return rows

    def _separability(self) -> None:
        found = probe(self.moments)
        if found is None:
            self.notes.add("probe", "fewer than 2 groups, fewer than 2 rows of a class held out, or no spread")
        else:
            self.row["probe_d_prime"], self.row["probe_accuracy"] = found.d_prime, found.accuracy
        self.row["silhouette"] = silhouette(self.total)
        if self.row["silhouette"] is None:
            self.notes.add("silhouette", "fewer than 2 vectors of a class")

    def _components(
        self, pooling: Pooling, matrix: np.ndarray, difference: np.ndarray, expected: float | None
    ) -> list[Row]:
        k = min(self.choices.k, self.site.width)
        spectrum = leading(matrix, k, n_rows=int(self.n.sum()))
        null = component_null(self.total, k, pooling) if spectrum is not None and difference.any() else None
        replicates = None
        if self.resampled is not None and pooling != "paired":
            replicates = self.resampled.balanced if pooling == "balanced" else self.resampled.within
        rows: list[Row] = []
        for j in range(k):
            row: Row = {c.name: None for c in COMPONENTS}
            row.update(self.start, pooling=pooling, component=j + 1)
            notes = _Notes()
            if spectrum is None:
                notes.add("all", "nothing varies within the classes")
            else:
                row["variance"], row["explained"] = float(spectrum.values[j]), float(spectrum.explained[j])
                why = _no_cos(difference, bool(spectrum.clear[j]))
                if why is not None:
                    notes.add("cos", why)
                else:
                    row["cos"] = abs(cosine(spectrum.vectors[:, j], difference) or 0.0)
                    row["cos_expected"] = expected if j == 0 else None
                    self._chance(row, null, notes, pooling)
                    self._interval(row, replicates, notes)
            row["reason"] = notes.text()
            rows.append(row)
        return rows

    def _chance(self, row: Row, null: Null | None, notes: _Notes, pooling: Pooling) -> None:
        if null is None:
            notes.add("cos_null, p", "no relabellings were collected")
            return
        j = int(str(row["component"])) - 1
        unequal = pooling != "paired" and self.n[0] != self.n[1]
        if unequal and abs(float(null.observed[j]) - float(str(row["cos"]))) > _APART:
            notes.add("cos_null, p", _UNEQUAL)
            return
        row["cos_null"], row["p"] = float(null.high[j]), float(null.p[j])

    def _interval(self, row: Row, replicates: Replicates | None, notes: _Notes) -> None:
        cos, j = float(str(row["cos"])), int(str(row["component"])) - 1
        if row["pooling"] == "paired":
            notes.add("cos_low, cos_high", "pairs are not kept apart by groups")
        elif replicates is None:
            notes.add("cos_low, cos_high", f"fewer than {LEAST_GROUPS} groups of rows")
        else:
            z = np.array([v[j] for v in replicates.interval(self.choices.confidence)])
            if np.isfinite(z).all():
                low, high = (float(v) for v in cos_of(z))
                row["cos_low"], row["cos_high"] = min(low, cos), max(high, cos)
            else:
                notes.add("cos_low, cos_high", "a class is empty without one of the groups")


def _no_cos(difference: np.ndarray, clear: bool) -> str | None:
    """Why a component has no cosine with the difference, or None."""
    if not difference.any():
        return "the means of the classes are equal"
    return None if clear else "no variance along it, or as much as along its neighbour"


def ends(replicates: Replicates, confidence: float) -> tuple[float | None, float | None]:
    """Ends of an interval of one number; None where they are not defined."""
    low, high = (float(v) for v in replicates.interval(confidence))
    return (low, high) if math.isfinite(low + high) else (None, None)
