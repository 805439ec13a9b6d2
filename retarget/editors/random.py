"""The control: an edit of the same size and shape, its places and values drawn at random."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from retarget.agent import Agent, Categorical
from retarget.code import ENUMERATIVE
from retarget.edit import Dense, Edit, LowRank, Patch, Slot, Sparse
from retarget.editors.base import Candidate, Scorer, Task
from retarget.rng import stream


class RandomEditor:
    """Random edits of the same size as a given one. A control: it never counts as an editor's find.

    Args:
        like: the edit whose kinds of patch, parts and numbers of cells are copied.
        draws: number of edits to draw.
    """

    name: ClassVar[str] = "random"

    def __init__(self, like: Edit, *, draws: int = 32) -> None:
        self.like, self.draws = like, draws

    def search(self, task: Task) -> Sequence[Candidate]:
        scorer = Scorer(task, self.name)
        # the stream is named by the edit that is copied: by what it writes, not by names of states
        word = ENUMERATIVE.encode(self.like, task.agent.layout)
        rng = stream(task.seed, "random_edit", word.data.hex(), self.draws)
        out = []
        for _ in range(self.draws):
            edit = Edit.of(task.agent, *(_random_like(task.agent, p, rng) for p in self.like.patches))
            out.append(scorer.candidate(edit, scorer.score(edit.apply(task.agent))))
        return out


def _random_like(agent: Agent, patch: Patch, rng: np.random.Generator) -> Patch:
    part = agent.parts[patch.part]
    n = part.array.size

    def values(like: np.ndarray) -> np.ndarray:
        if isinstance(part.alphabet, Categorical):
            return rng.integers(part.alphabet.size, size=like.shape)
        # the same numbers in another order: their code is as long; a copy, since NumPy shuffles an empty array in place
        return rng.permutation(like.reshape(-1).copy()).reshape(like.shape)

    if isinstance(patch, Sparse):
        cells = np.sort(rng.choice(n, size=patch.n_cells, replace=False))
        return Sparse(patch.part, cells, values(patch.value))
    if isinstance(patch, Slot):
        cells = np.sort(rng.choice(n, size=patch.n_cells, replace=False))
        rest = float(rng.integers(part.alphabet.size)) if isinstance(part.alphabet, Categorical) else patch.rest
        return Slot(patch.part, rest, cells, values(patch.value))
    if isinstance(patch, LowRank):
        return LowRank(patch.part, values(patch.left), values(patch.right))
    assert isinstance(patch, Dense)
    return Dense(patch.part, values(patch.value))
