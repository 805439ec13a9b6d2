"""Which tokens or steps of each row are looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from retarget.analysis.layers.readable import Batch
from retarget.errors import LayersError

Kind = Literal["last", "after_instruction", "token", "every"]


@dataclass(frozen=True)
class Positions:
    """A choice of positions, one or several a row.

    Attributes:
        kind: `last`: the last n tokens, labelled -1 to -n; `after_instruction`: the tokens that the chat template puts
            after the instruction, labelled by their distance from the end, at most n; `token`: the last place of the
            token with number `token`; `every`: each token or step counts as an observation of its own.
        n: how many, for `last` and `after_instruction`.
        token: number in the vocabulary, for `token`.

    >>> from retarget.analysis.layers.readable import Batch
    >>> batch = Batch(np.array([[5, 6, 7], [5, 6, 0]]), np.array([[True, True, True], [True, True, False]]))
    >>> Positions("last", n=2).index(batch).tolist()
    [[1, 2], [0, 1]]
    """

    kind: Kind = "last"
    n: int = 1
    token: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("last", "after_instruction", "token", "every"):
            raise LayersError(f"positions must be last, after_instruction, token or every, got {self.kind!r}")
        if self.n < 1:
            raise LayersError(f"positions need n of at least 1, got {self.n}")
        if self.kind == "token" and self.token is None:
            raise LayersError("positions of kind 'token' need the token's number")

    @property
    def labels(self) -> tuple[str, ...]:
        """One label for each column of `index`, e.g. `-2`, `-1`."""
        if self.kind in ("last", "after_instruction"):
            return tuple(str(p) for p in range(-self.n, 0))
        return (f"token {self.token}",) if self.kind == "token" else ("every",)

    def index(self, batch: Batch) -> np.ndarray:
        """int64 `[B, P]`: where each row's positions are; -1 where a row has none (too short, no such token).

        For `every` it is `[B, T]`: all columns belong to one label, and padding is -1.
        """
        steps = np.arange(batch.mask.shape[1])
        if self.kind == "every":
            return np.where(batch.mask, steps, -1)
        lengths = batch.lengths[:, None]
        if self.kind == "token":
            found = (np.asarray(batch.inputs) == self.token) & batch.mask
            return np.where(found.any(1), steps[-1] - found[:, ::-1].argmax(1), -1)[:, None]
        index = lengths + np.arange(-self.n, 0)
        first = np.zeros_like(lengths)
        if self.kind == "after_instruction":
            if batch.instruction is None:
                raise LayersError("these inputs have no template, so that no tokens come after the instruction")
            first = np.asarray(batch.instruction)[:, None]
        return np.where(index >= first, index, -1)
