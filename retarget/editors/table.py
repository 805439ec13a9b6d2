"""Change single cells of a table, chosen by exact search; where there is a slot too, on top of its best writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from retarget.agent import Agent, HasGoalSlot, HasTable
from retarget.edit import Edit, Patch, Sparse
from retarget.editors.base import Candidate, Scorer, Task
from retarget.editors.rows import RowPoint, search_rows
from retarget.editors.slot import slot_edit
from retarget.exact import policy_table
from retarget.spend import Spend


class TableEditor:
    """Exact greedy search over the cells of the table that the agent acts on (see `retarget.editors.rows`).

    Args:
        slot_bases: number of slot writes to start from, beside the slot as it is.
        n_points: most points of a search to return; the one that just meets the requirement is always among them.
    """

    name: ClassVar[str] = "table"

    def __init__(self, *, slot_bases: int = 2, n_points: int = 24) -> None:
        self.slot_bases, self.n_points = slot_bases, n_points

    def search(self, task: Task) -> Sequence[Candidate]:
        if not isinstance(task.agent, HasTable):
            return ()
        scorer = Scorer(task, self.name)
        out: list[Candidate] = []
        for base, patches in self._bases(scorer):
            out += self._from(scorer, base, patches)
        return out

    def _bases(self, scorer: Scorer) -> list[tuple[Agent, tuple[Patch, ...]]]:
        """The agent as it is, and as its most promising slot writes leave it."""
        agent = scorer.task.agent
        bases: list[tuple[Agent, tuple[Patch, ...]]] = [(agent, ())]
        if isinstance(agent, HasGoalSlot):
            tried = []
            for write in agent.slot_candidates()[: scorer.task.budget]:
                edit = slot_edit(agent, write)
                if edit.patches:
                    edited = edit.apply(agent)
                    tried.append((scorer.score(edited), edited, edit.patches))
            # rounded, so that ties stay ties whatever order the states were summed in
            tried.sort(key=lambda t: -round(t[0], 9))
            bases += [(edited, patches) for _, edited, patches in tried[: self.slot_bases]]
        return bases

    def _from(self, scorer: Scorer, base: Agent, patches: tuple[Patch, ...]) -> list[Candidate]:
        task = scorer.task
        assert isinstance(base, HasTable)
        probs = policy_table(base, task.world.model)
        points = search_rows(task.judge, probs, required=task.required)
        view = base.table_view()
        before = scorer.spend
        out = []
        for point in _thinned(points, task, self.n_points):
            cells = np.array([view.cell[s, a] for s, a in point.rows], dtype=np.int64)
            values = np.array([view.value[s, a] for s, a in point.rows], dtype=view.value.dtype)
            order = np.argsort(cells)
            edit = Edit.of(task.agent, *patches, Sparse(view.part, cells[order], values[order]))
            scorer.spend = before + Spend(simulations=point.simulations, flops=point.flops)
            out.append(scorer.candidate(edit, point.competence))
        if points:
            last = points[-1]
            scorer.spend = before + Spend(simulations=last.simulations, flops=last.flops)
        return out


def _thinned(points: Sequence[RowPoint], task: Task, limit: int) -> list[RowPoint]:
    """The best point of each number of cells; of those about `limit`, evenly in the logarithm of that number."""
    best: dict[int, RowPoint] = {}
    for p in points:
        if len(p) and (len(p) not in best or p.competence > best[len(p)].competence):
            best[len(p)] = p
    if not best:
        return []
    sizes = sorted(best)
    array = np.array(sizes)
    wanted = {sizes[int(np.abs(array - x).argmin())] for x in np.geomspace(1, sizes[-1], limit)}
    # the smallest sets that meet the level, in both codes' reckoning, are what the search is for
    enough = [k for k in sizes if task.enough(best[k].competence)]
    wanted |= set(enough[:3]) | {sizes[-1]}
    return [best[k] for k in sorted(wanted)]
