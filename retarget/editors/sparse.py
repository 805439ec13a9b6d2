"""Keep only the cells of a retrained agent that matter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from retarget.agent import Agent, HasTable, Trainable
from retarget.edit import Edit, Patch, Sparse, difference
from retarget.editors.base import Candidate, Scorer, Task, shortest_form


class SparseEditor:
    """Shrinks the difference to a retrained agent by delta debugging (Zeller and Hildebrandt 2002): whole chunks of
    cells are put back, then halves of chunks, down to single cells, as long as the requirement holds.

    For agents whose table can be searched exactly (`HasTable`) the table editor is this one done better; they are
    passed over.

    Args:
        first, doublings: budgets of retraining, in episodes, as for `RetrainEditor`.
        trials: most candidates to score while shrinking.
    """

    name: ClassVar[str] = "sparse"

    def __init__(self, *, first: int = 16, doublings: int = 10, trials: int = 768) -> None:
        self.first, self.doublings, self.trials = first, doublings, trials

    def search(self, task: Task) -> Sequence[Candidate]:
        agent = task.agent
        if isinstance(agent, HasTable) or not isinstance(agent, Trainable):
            return ()
        scorer = Scorer(task, self.name)
        for i in range(self.doublings + 1):
            trained, spend = agent.retrained(task.world, task.goal, budget=self.first * 2**i, seed=task.seed)
            scorer.spend = scorer.spend + spend
            whole = difference(agent, trained)
            if task.enough(scorer.score(whole.apply(agent))):
                return self._shrunk(scorer, whole)
        return ()

    def _shrunk(self, scorer: Scorer, whole: Edit) -> list[Candidate]:
        agent, task = scorer.task.agent, scorer.task
        cells = [(p.part, i) for p in whole.patches if isinstance(p, Sparse) for i in range(p.n_cells)]
        kept, size = list(range(len(cells))), max(1, len(cells) // 2)
        out = [self._candidate(scorer, _edit(agent, whole, cells, kept))]
        limit = min(task.budget, self.trials) + scorer.spend.simulations
        while kept and scorer.spend.simulations < limit:
            at, before = 0, len(kept)
            while at < len(kept) and scorer.spend.simulations < limit:
                trial = kept[:at] + kept[at + size :]
                if task.enough(scorer.score(_edit(agent, whole, cells, trial).apply(agent))):
                    kept = trial
                else:
                    at += size
            if len(kept) < before:
                out.append(self._candidate(scorer, _edit(agent, whole, cells, kept)))
            elif size == 1:
                break
            size = max(1, size // 2)
        return out

    def _candidate(self, scorer: Scorer, edit: Edit) -> Candidate:
        short = shortest_form(scorer.task.agent, edit)
        return scorer.candidate(short, scorer.score(short.apply(scorer.task.agent)))


def _edit(agent: Agent, whole: Edit, cells: Sequence[tuple[str, int]], keep: Sequence[int]) -> Edit:
    """Only the kept cells of an edit."""
    chosen: dict[str, list[int]] = {}
    for j in keep:
        part, i = cells[j]
        chosen.setdefault(part, []).append(i)
    patches: list[Patch] = []
    for patch in whole.patches:
        if isinstance(patch, Sparse) and patch.part in chosen:
            pick = np.array(chosen[patch.part])
            patches.append(Sparse(patch.part, patch.index[pick], patch.value[pick]))
    return Edit(agent.digest, tuple(patches))
