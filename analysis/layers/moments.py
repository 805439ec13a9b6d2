"""Counts, means and scatters of classes of vectors, collected in one pass and merged exactly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retarget.errors import LayersError


@dataclass(frozen=True, eq=False)
class Moments:
    """Statistics of vectors `[d]` in C classes, kept apart for G groups of rows; all in float64.

    Groups are shards of the rows (row i belongs to group i mod G within its class), so that intervals can be found
    by leaving groups out or drawing them anew. G = 1 keeps none apart.

    Attributes:
        count: int64 `[G, C]`.
        mean: float64 `[G, C, d]`; 0 where the count is.
        scatter: float64 `[G, C, d, d]`: sum of (x - mean)(x - mean)^T over the class's rows of the group; None where
            only means were asked for.
        swapped: float64 `[R, d]`: for each of R random relabellings, the sum of the rows that it gives to class 1
            (it keeps the sizes of the classes); None without a permutation null. The relabelling is a function of
            (seed, R, total number of rows) alone.
        swapped_count: int64 `[R]`: rows that each relabelling has given to class 1 so far.
        paired: float64 `[d, d]`: sum of (x1 - x0)(x1 - x0)^T over pairs, not centred; None without pairs.
        paired_sum: float64 `[d]`, and paired_count.
    """

    count: np.ndarray
    mean: np.ndarray
    scatter: np.ndarray | None = None
    swapped: np.ndarray | None = None
    swapped_count: np.ndarray | None = None
    paired: np.ndarray | None = None
    paired_sum: np.ndarray | None = None
    paired_count: int = 0

    def __post_init__(self) -> None:
        if self.count.ndim != 2 or self.mean.shape[:2] != self.count.shape or self.mean.ndim != 3:
            raise LayersError(f"count [G, C] and mean [G, C, d] do not fit: {self.count.shape} and {self.mean.shape}")
        if self.scatter is not None and self.scatter.shape != (*self.mean.shape, self.width):
            raise LayersError(f"a scatter must be [G, C, d, d], got {self.scatter.shape} for means {self.mean.shape}")

    @property
    def width(self) -> int:
        return int(self.mean.shape[2])

    @property
    def n_groups(self) -> int:
        return int(self.count.shape[0])

    @property
    def n_classes(self) -> int:
        return int(self.count.shape[1])
