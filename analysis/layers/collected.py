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
