"""From which layer on a cosine keeps above a threshold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retarget.analysis.layers.resample import Replicates, fisher
from retarget.errors import LayersError


@dataclass(frozen=True)
class Onset:
    """The first layer from which a value keeps at or above a threshold, up to the last layer.

    Attributes:
        layer: that layer; None where the last layer is below the threshold.
        low, high: ends of its interval; None where it is not reached in more draws than the interval leaves out.
        reached: share of draws in which it is reached; None without draws.
    """

    layer: int | None
    low: int | None = None
    high: int | None = None
    reached: float | None = None


def onset_of(values: np.ndarray, threshold: float) -> np.ndarray:
    """Index of the first of the values from which on all are at or above the threshold; L where the last one is not.

    Args:
        values: float64 `[..., L]`; NaN counts as below.
        threshold: to be reached.

    Returns:
        int64 `[...]`.

    >>> onset_of(np.array([[0.95, 0.2, 0.9, 0.99], [1.0, 1.0, 1.0, 0.5]]), 0.9).tolist()
    [2, 4]
    """
    kept = np.asarray(values) >= threshold
    return np.asarray(np.logical_and.accumulate(kept[..., ::-1], axis=-1).sum(-1) * -1 + kept.shape[-1])


def find_onset(
    layers: Sequence[int],
    cosines: Sequence[float | None],
    replicates: Sequence[Replicates | None],
    *,
    threshold: float = 0.9,
    confidence: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> Onset:
    """Onset of |cos| over layers, with an interval from resampled groups.

    One draw weights the groups alike at all layers: a group of odd rows is odd at each of them.

    Args:
        layers: numbers of the layers, rising.
        cosines: |cos| at each; None where it is not defined, which counts as not reached.
        replicates: Fisher's z of it at each, no axes; None where there are none.
        threshold: to be reached, in (0, 1].
        confidence: of the interval.
        draws, seed: of the resampling.

    Raises:
        LayersError: for a threshold outside (0, 1], or no layers.

    >>> find_onset([0, 1, 2], [0.1, 0.93, 0.97], [None] * 3)
    Onset(layer=1, low=None, high=None, reached=None)
    """
    if not 0 < threshold <= 1 or not layers:
        raise LayersError(f"an onset needs layers and a threshold in (0, 1], got {len(layers)} layers and {threshold}")
    values = np.array([math.nan if c is None else c for c in cosines])
    first = int(onset_of(values, threshold))
    layer = layers[first] if first < len(layers) else None
    drawn = [
        None if r is None or c is None else r.sample(draws, seed=seed) for r, c in zip(replicates, cosines, strict=True)
    ]
    known = [z for z in drawn if z is not None and np.isfinite(z).all()]
    if not known or any(r is None and c is not None for r, c in zip(replicates, cosines, strict=True)):
        return Onset(layer)
    blank = np.full(len(known[0]), -math.inf)
    z = np.stack([blank if d is None or not np.isfinite(d).all() else d for d in drawn], axis=-1)
    found = np.sort(onset_of(z, float(fisher(np.asarray(threshold)))))
    tail = (1 - confidence) / 2
    ends = found[math.floor(tail * (len(found) - 1))], found[math.ceil((1 - tail) * (len(found) - 1))]
    low, high = (layers[int(e)] if e < len(layers) else None for e in ends)
    return Onset(layer, low, high, float((found < len(layers)).mean()))
