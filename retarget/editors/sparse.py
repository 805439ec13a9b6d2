"""Keep only the cells that matter: of a retrained agent, or of a model given the truth where it is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import numpy as np

from retarget.agent import Agent, HasGoalSlot, HasModel, HasTable, Trainable
from retarget.edit import Edit, Sparse, difference
from retarget.editors.base import Candidate, Scorer, Task, shortest_form
from retarget.editors.retrain import learned
from retarget.editors.rows import search_rows
from retarget.editors.slot import slot_edit
from retarget.exact import policy_table
from retarget.spend import Spend


class SparseEditor:
    """Shrinks a large sparse edit by delta debugging (Zeller and Hildebrandt 2002): whole chunks of cells are put
    back, then halves of chunks, down to single cells, as long as the requirement holds. What is shrunk: B in the slot
    with the true successors where a table would have to change; or, where there is no such edit, the difference to
    the agent retrained.

    For agents whose table can be searched exactly (`HasTable`) the table editor is this one done better; they are
    passed over.

    Args:
        first, doublings: budgets of retraining, in episodes, as for `RetrainEditor`.
        trials: most candidates to score while shrinking.
    """

    name: ClassVar[str] = "sparse"

    def __init__(self, *, first: int = 16, doublings: int = 10, trials: int = 384) -> None:
        self.first, self.doublings, self.trials = first, doublings, trials

    def search(self, task: Task) -> Sequence[Candidate]:
        agent = task.agent
        if isinstance(agent, HasTable):
            return ()
        scorer = Scorer(task, self.name)
        for whole in _with_true_successors(scorer):
            if task.enough(scorer.score(whole.apply(agent))):
                return self._shrunk(scorer, whole)
        if not isinstance(agent, Trainable):
            return ()
        for i in range(self.doublings + 1):
            trained, spend = agent.retrained(task.world, task.goal, budget=self.first * 2**i, seed=task.seed)
            scorer.spend = scorer.spend + spend
            whole = learned(task, trained)
            if task.frozen and not whole.patches:
                continue
            if task.enough(scorer.score(whole.apply(agent))):
                return self._shrunk(scorer, whole)
        return ()

    def _shrunk(self, scorer: Scorer, whole: Edit) -> list[Candidate]:
        task = scorer.task
        shrinking = _Subset(task.agent, whole)
        out = [self._candidate(scorer, shrinking.edit(np.arange(shrinking.n_cells)))]
        limit = min(task.budget, self.trials) + scorer.spend.simulations
        passes = debugged(
            shrinking.n_cells,
            good=lambda keep: task.enough(scorer.score(shrinking.agent(keep))),
            going=lambda: scorer.spend.simulations < limit,
        )
        out += [self._candidate(scorer, shrinking.edit(kept)) for kept in passes]
        return out

    def _candidate(self, scorer: Scorer, edit: Edit) -> Candidate:
        short = shortest_form(scorer.task.agent, edit)
        return scorer.candidate(short, scorer.score(short.apply(scorer.task.agent)))


def debugged(n_cells: int, *, good: Callable[[np.ndarray], bool], going: Callable[[], bool]) -> Iterator[np.ndarray]:
    """Delta debugging (Zeller and Hildebrandt 2002): chunks of cells are put back, then halves of chunks, down to
    single cells, as long as the rest is good.

    Args:
        n_cells: how many there are.
        good: whether the cells kept, int `[k]` rising, still do what is required.
        going: whether another trial may be made.

    Yields:
        The cells kept after each pass that put some back.

    >>> [kept.tolist() for kept in debugged(4, good=lambda k: 2 in k, going=lambda: True)]
    [[2, 3], [2]]
    """
    kept = np.arange(n_cells)
    size = max(1, kept.size // 2)
    while kept.size and going():
        at, before = 0, kept.size
        while at < kept.size and going():
            trial = np.concatenate([kept[:at], kept[at + size :]])
            if good(trial):
                kept = trial
            else:
                at += size
        if kept.size < before:
            yield kept
        elif size == 1:
            break
        size = max(1, size // 2)


def _with_true_successors(scorer: Scorer) -> list[Edit]:
    """B in the slot, and in the model the true successors of what a table would have to do differently.

    The model then holds the patched table's behaviour, so that planning in it is at least as good, as far as the rest
    of the model is true. At most one edit; none for agents without a slot or a model of single successors, or where
    the model is right already.
    """
    task, agent = scorer.task, scorer.task.agent
    if not isinstance(agent, HasModel) or not isinstance(agent, HasGoalSlot) or task.exact is None:
        return []
    model, judge = task.exact
    part, cell = agent.model_cells()
    if part in task.frozen:
        return []
    likely = np.take_along_axis(model.next_state, model.prob.argmax(2)[:, :, None], axis=2)[:, :, 0]
    for write in agent.slot_writes(task.goal):
        if write.part in task.frozen:
            continue
        aimed = slot_edit(agent, write).apply(agent)
        points = search_rows(judge, policy_table(aimed, model), required=task.required)
        good = [p for p in points if task.enough(p.competence)]
        if not good:
            return []
        scorer.spend = scorer.spend + Spend(simulations=points[-1].simulations, flops=points[-1].flops)
        array = aimed.parts[part].array.copy()
        for s, a in min(good, key=len).rows:
            array.reshape(-1)[cell[s, a]] = likely[s, a]
        whole = difference(agent, aimed.with_arrays({part: array}))
        return [whole] if part in whole.parts_touched else []
    return []


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
