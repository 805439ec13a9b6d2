"""Keep only the cells of a retrained agent that matter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from retarget.agent import Agent, HasTable, Trainable
from retarget.edit import Edit, Sparse, difference
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

    def __init__(self, *, first: int = 16, doublings: int = 10, trials: int = 512) -> None:
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
        task = scorer.task
        shrinking = _Subset(task.agent, whole)
        kept = np.arange(shrinking.n_cells)
        size = max(1, kept.size // 2)
        out = [self._candidate(scorer, shrinking.edit(kept))]
        limit = min(task.budget, self.trials) + scorer.spend.simulations
        while kept.size and scorer.spend.simulations < limit:
            at, before = 0, kept.size
            while at < kept.size and scorer.spend.simulations < limit:
                trial = np.concatenate([kept[:at], kept[at + size :]])
                if task.enough(scorer.score(shrinking.agent(trial))):
                    kept = trial
                else:
                    at += size
            if kept.size < before:
                out.append(self._candidate(scorer, shrinking.edit(kept)))
            elif size == 1:
                break
            size = max(1, size // 2)
        return out

    def _candidate(self, scorer: Scorer, edit: Edit) -> Candidate:
        short = shortest_form(scorer.task.agent, edit)
        return scorer.candidate(short, scorer.score(short.apply(scorer.task.agent)))


class _Subset:
    """Parts of a sparse edit, by the numbers of their cells among all that it writes."""

    def __init__(self, agent: Agent, whole: Edit) -> None:
        self.base = agent
        self.patches = [p for p in whole.patches if isinstance(p, Sparse)]
        self.ends = np.cumsum([p.n_cells for p in self.patches])
        self.n_cells = int(self.ends[-1]) if self.patches else 0

    def _picks(self, keep: np.ndarray) -> list[tuple[Sparse, np.ndarray]]:
        out, begin = [], 0
        for patch, end in zip(self.patches, self.ends, strict=True):
            out.append((patch, keep[(keep >= begin) & (keep < end)] - begin))
            begin = end
        return [(patch, pick) for patch, pick in out if pick.size]

    def edit(self, keep: np.ndarray) -> Edit:
        """The edit that writes these cells only."""
        patches = (Sparse(p.part, p.index[pick], p.value[pick]) for p, pick in self._picks(keep))
        return Edit.of(self.base, *patches)

    def agent(self, keep: np.ndarray) -> Agent:
        """The agent with that edit, without the checks: they were passed by the whole."""
        arrays = {}
        for patch, pick in self._picks(keep):
            array = self.base.parts[patch.part].array.copy()
            array.reshape(-1)[patch.index[pick]] = patch.value[pick]
            arrays[patch.part] = array
        return self.base.with_arrays(arrays)
