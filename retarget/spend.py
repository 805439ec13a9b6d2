"""What finding an edit took. Never mixed with its bits, except in the stated sum of Levin's Kt."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Spend:
    """Compute spent on a search. Fields add; each is counted, not estimated from time.

    Attributes:
        env_steps: transitions sampled from the world.
        grad_steps: optimiser updates.
        simulations: simulated rollouts or candidate behaviours that were scored.
        flops: floating point operations, counted by the formulas in `docs/measures.md`.

    Wall time is kept in the journal, never here: two runs of the same cell must give the same row.

    >>> Spend(env_steps=3) + Spend(env_steps=4, flops=2.0)
    Spend(env_steps=7, grad_steps=0, simulations=0, flops=2.0)
    """

    env_steps: int = 0
    grad_steps: int = 0
    simulations: int = 0
    flops: float = 0.0

    def __add__(self, other: Spend) -> Spend:
        return Spend(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(Spend)})

    def kt_bits(self, edit_bits: float) -> float:
        """Levin's Kt of an edit: `edit_bits + log2(flops)` (Levin 1973), with at least one operation.

        >>> Spend(flops=1024.0).kt_bits(15)
        25.0
        """
        return edit_bits + math.log2(max(self.flops, 1.0))
