"""Change single cells of a table, chosen by exact search; where there is a slot too, on top of its best writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np

from retarget.agent import HasGoalSlot, HasTable, TableView
from retarget.edit import Edit, Patch, Slot, Sparse
from retarget.editors.base import Candidate, Scorer, Task
from retarget.editors.rows import RowPoint, search_rows
from retarget.editors.slot import slot_edit
from retarget.exact import policy_table
from retarget.spend import Spend

Patches = Callable[[Sparse], tuple[Patch, ...]]


class TableEditor:
    """Exact search over the cells of the table that the agent acts on (see `retarget.editors.rows`).

    From the behaviour as it is; as the most promising slot writes leave it; and from tables that always take one
    action, written as that rest and its exceptions (the kind of patch that serves a slot).

    Args:
        slot_bases: number of slot writes to start from.
        n_points: most points of a search to return; the one that just meets the requirement is always among them.
    """

    name: ClassVar[str] = "table"
    #: It tries its table without the slot as it is: with parts frozen it finds nothing that it does not find without.
    covers_frozen: ClassVar[bool] = True

    def __init__(self, *, slot_bases: int = 2, n_points: int = 24) -> None:
        self.slot_bases, self.n_points = slot_bases, n_points

    def search(self, task: Task) -> Sequence[Candidate]:
        agent = task.agent
        if not isinstance(agent, HasTable) or task.exact is None:
            return ()
        if agent.table_view().part in task.frozen:
            return ()
        scorer = Scorer(task, self.name)
        out = self._from(scorer, agent.table_view(), policy_table(agent, task.exact[0]), lambda s: (s,))
        return [*out, *self._on_slots(scorer), *self._filled(scorer, agent.table_view())]

    def _on_slots(self, scorer: Scorer) -> list[Candidate]:
        """On top of the slot writes that bring the agent nearest to B."""
        agent, exact = scorer.task.agent, scorer.task.exact
        if not isinstance(agent, HasGoalSlot) or exact is None:
            return []
        model = exact[0]
        writes = [w for w in agent.slot_candidates() if w.part not in scorer.task.frozen]
        edits = [slot_edit(agent, write) for write in writes[: scorer.task.budget]]
        tried = [(scorer.score(e.apply(agent)), e) for e in edits if e.patches]
        # rounded, so that ties stay ties whatever order the states were summed in
        tried.sort(key=lambda t: -round(t[0], 9))
        out: list[Candidate] = []
        for _, edit in tried[: self.slot_bases]:
            edited = edit.apply(agent)
            if isinstance(edited, HasTable):
                out += self._from(scorer, edited.table_view(), policy_table(edited, model), _after(edit.patches))
        return out

    def _filled(self, scorer: Scorer, view: TableView) -> list[Candidate]:
        out: list[Candidate] = []
        for a, rest in enumerate([] if view.fill is None else view.fill.tolist()):
            probs = np.zeros(view.cell.shape)
            probs[:, a] = 1.0
            out += self._from(scorer, view, probs, _except(float(rest)))
        return out

    def _from(self, scorer: Scorer, view: TableView, probs: np.ndarray, patches: Patches) -> list[Candidate]:
        """Search from one behaviour; `patches` says how cells on top of it are written."""
        task, before = scorer.task, scorer.spend
        assert task.exact is not None
        points = search_rows(task.exact[1], probs, required=task.required)
        out = []
        for point in _thinned(points, task, self.n_points):
            cells = np.array([view.cell[s, a] for s, a in point.rows], dtype=np.int64)
            values = np.array([view.value[s, a] for s, a in point.rows], dtype=view.value.dtype)
            order = np.argsort(cells)
            edit = Edit.of(task.agent, *patches(Sparse(view.part, cells[order], values[order])))
            scorer.spend = before + Spend(simulations=point.simulations, flops=point.flops)
            out.append(scorer.candidate(edit, point.competence))
        if points:
            scorer.spend = before + Spend(simulations=points[-1].simulations, flops=points[-1].flops)
        return out


def _after(patches: tuple[Patch, ...]) -> Patches:
    return lambda cells: (*patches, cells)


def _except(rest: float) -> Patches:
    return lambda cells: (Slot(cells.part, rest, cells.index, cells.value),)


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
