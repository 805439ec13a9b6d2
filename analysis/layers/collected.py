"""What one pass over labelled inputs leaves behind: moments by place and position, and where they come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from retarget.analysis.layers.moments import Moments
from retarget.analysis.layers.readable import Batch, Site

#: Numbers of the two classes of a contrast. Differences are positive minus negative.
NEGATIVE, POSITIVE = 0, 1


@dataclass(frozen=True, eq=False)
class Labelled:
    """A batch and what is known of its rows.

    Attributes:
        batch: the inputs.
        label: int64 `[B]`: NEGATIVE or POSITIVE.
        row: int64 `[B]`: number of the row among all, 0 to N - 1: the same however rows are cut into batches.
        rank: int64 `[B]`: number of the row within its class; rows of equal rank are a pair where rows are paired.
    """

    batch: Batch
    label: np.ndarray
    row: np.ndarray
    rank: np.ndarray


class Inputs(ABC):
    """Two classes of inputs, such as harmful and harmless prompts, or the same places under goal A and goal B."""

    @property
    @abstractmethod
    def names(self) -> tuple[str, str]:
        """(negative, positive), for people."""

    @property
    @abstractmethod
    def count(self) -> tuple[int, int]:
        """Rows of each class, both at least 1."""

    @abstractmethod
    def batches(self, size: int) -> Iterator[Labelled]:
        """All rows once, at most `size` a batch. The order may be any; row numbers do not depend on it."""

    @property
    def contrast(self) -> str:
        """`positive - negative`, by name."""
        return f"{self.names[POSITIVE]} - {self.names[NEGATIVE]}"


@dataclass(frozen=True, eq=False)
class Collected:
    """Moments of every site and position of one model.

    Attributes:
        model: the model's label.
        digest: of the model's weights.
        contrast: see `Inputs.contrast`.
        sites: the places read, in order of layers.
        positions: labels of the positions, in order.
        moments: by (hook, position).
        n_rows: rows of each class (negative, positive), before any are left out.
        absent: by position: rows of each class that have no such position (too short, no such token).
        paired: whether rows of equal rank were treated as pairs.
        seed: of the relabellings.
        epsilon: machine epsilon of the activations that were read, the coarsest of them.
    """

    model: str
    digest: str
    contrast: str
    sites: tuple[Site, ...]
    positions: tuple[str, ...]
    moments: Mapping[tuple[str, str], Moments]
    n_rows: tuple[int, int]
    absent: Mapping[str, tuple[int, int]]
    paired: bool
    seed: int
    epsilon: float = 2.220446049250313e-16

    @property
    def rounding(self) -> float:
        """Share of the vectors' own length below which what tells them apart is rounding of the forward pass.

        `32 epsilon`, for what many operations add up to, but at most 0.02: of half precision 32 epsilon is as much as
        vectors differ by in earnest.
        """
        return min(32 * self.epsilon, 0.02)

    def alike(self, moments: Moments) -> bool:
        """Whether the vectors of a place differ by rounding only: the class means, and the rows within the classes.

        Where rows vary in earnest, a small difference of means is not called rounding: its noise and its p-value tell
        what it is worth. Where there are neither second moments nor groups to see that by, the means decide alone.

        Args:
            moments: of two classes that both have rows.
        """
        count = moments.count[..., None]
        n = count.sum(0)
        middle = (count * moments.mean).sum(0) / n
        between = (moments.count * ((moments.mean - middle) ** 2).sum(2)).sum(0)
        filled = int((moments.count > 0).all(1).sum())
        if moments.scatter is not None:
            spread = (between + np.trace(moments.scatter, axis1=2, axis2=3).sum(0)) / n[:, 0]
        else:  # means of groups vary as much less as they have rows, and have a degree of freedom less
            spread = between / max(filled - 1, 1)
        size = float(((middle**2).sum(1) + spread).mean())
        least = self.rounding**2 * size
        return bool(((middle[1] - middle[0]) ** 2).sum() <= least and spread.mean() <= least)
