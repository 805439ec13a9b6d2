"""Keep only the cells that matter: of a retrained agent, or of a model told the truth, or a lie, where it is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import ClassVar

import numpy as np

from retarget.agent import Agent, Categorical, HasGoalSlot, HasModel, HasTable, Trainable
from retarget.edit import Edit, Sparse, difference
from retarget.editors.base import Candidate, Scorer, Task, shortest_form
from retarget.editors.retrain import learned
from retarget.editors.rows import Rows, search_rows
from retarget.editors.slot import is_reward, slot_edit
from retarget.exact import policy_table
from retarget.spend import Spend
from retarget.world import FiniteModel


class SparseEditor:
    """Shrinks a large sparse edit by delta debugging (Zeller and Hildebrandt 2002): whole chunks of cells are put
    back, then halves of chunks, down to single cells, as long as the requirement holds. What is shrunk: B in the slot
    with the true successors where a table would have to change; where the slot is frozen, a model that lies, so that
    what the slot rewards stands for B; or, where there is no such edit, the difference to the agent retrained.

    For agents whose table can be searched exactly (`HasTable`) the table editor is this one done better; they are
    passed over.

    Args:
        first, doublings: budgets of retraining, in episodes, as for `RetrainEditor`.
        trials: most candidates to score while shrinking.
    """

    name: ClassVar[str] = "sparse"

    def __init__(self, *, first: int = 16, doublings: int = 10, trials: int = 384) -> None:
        self.first, self.doublings, self.trials = first, doublings, trials

    def searches_anew(self, agent: Agent, frozen: frozenset[str]) -> bool:
        """Whether it tries with these parts frozen what it does not try without: a model that lies."""
        return not isinstance(agent, HasTable) and _liable(agent, frozen) is not None

    def search(self, task: Task) -> Sequence[Candidate]:
        agent = task.agent
        if isinstance(agent, HasTable):
            return ()
        scorer = Scorer(task, self.name)
        short_of: list[Candidate] = []
        for whole in chain(_with_true_successors(scorer), _lies(scorer)):
            competence = scorer.score(whole.apply(agent))
            if task.enough(competence):
                return [*short_of, *self._shrunk(scorer, whole)]
            short_of.append(scorer.candidate(shortest_form(agent, whole), competence))
        if not isinstance(agent, Trainable):
            return short_of
        for i in range(self.doublings + 1):
            trained, spend = agent.retrained(task.world, task.goal, budget=self.first * 2**i, seed=task.seed)
            scorer.spend = scorer.spend + spend
            whole = learned(task, trained)
            if task.frozen and not whole.patches:
                continue
            if task.enough(scorer.score(whole.apply(agent))):
                return [*short_of, *self._shrunk(scorer, whole)]
        return short_of

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


def _with_true_successors(scorer: Scorer) -> Iterator[Edit]:
    """B in the slot, and in the model the true successors of what a table would have to do differently.

    The model then holds the patched table's behaviour, so that planning in it is at least as good, as far as the rest
    of the model is true. At most one edit; none for agents without a slot or a model of single successors, or where
    the model is right already.
    """
    task, agent = scorer.task, scorer.task.agent
    if not isinstance(agent, HasModel) or not isinstance(agent, HasGoalSlot) or task.exact is None:
        return
    part, cell = agent.model_cells()
    if part in task.frozen:
        return
    for write in agent.slot_writes(task.goal):
        if write.part in task.frozen:
            continue
        aimed = slot_edit(agent, write).apply(agent)
        rows = _rows_for(scorer, aimed)
        if not rows:
            return
        likely, array = _likely(task.exact[0]), aimed.parts[part].array.copy()
        for s, a in rows:
            array.reshape(-1)[cell[s, a]] = likely[s, a]
        whole = difference(agent, aimed.with_arrays({part: array}))
        if part in whole.parts_touched:
            yield whole
        return


def _rows_for(scorer: Scorer, aimed: Agent) -> Rows:
    """Fewest found of the pairs of state and action that a table of what an agent does would need for B."""
    task = scorer.task
    assert task.exact is not None
    model, judge = task.exact
    points = search_rows(judge, policy_table(aimed, model), required=task.required)
    good = [p for p in points if task.enough(p.competence)]
    if not good:
        return ()
    scorer.spend = scorer.spend + Spend(simulations=points[-1].simulations, flops=points[-1].flops)
    return min(good, key=len).rows


def _likely(model: FiniteModel) -> np.ndarray:
    """Int `[S, A]`: the likeliest successors."""
    return np.asarray(np.take_along_axis(model.next_state, model.prob.argmax(2)[:, :, None], axis=2)[:, :, 0])


@dataclass(frozen=True, eq=False)
class _Liable:
    """A model that can be written though the goal slot cannot.

    Attributes:
        part: name of the model.
        next_state: int `[S, A, K]`, what it holds.
        reward: float64 `[S]`, what the frozen slot holds.
    """

    part: str
    next_state: np.ndarray
    reward: np.ndarray

    @cached_property
    def aside(self) -> np.ndarray:
        """Int `[S]`: where a step to what the slot rewards is said to lead instead: to the state itself (a bump); from
        a rewarded state, to its first successor that is not."""
        out = np.arange(len(self.reward))
        for s in np.flatnonzero(self.reward > 0):
            near = [t for t in self.next_state[s].reshape(-1).tolist() if t < len(out) and self.reward[t] <= 0]
            out[s] = near[0] if near else s
        return out

    def lie(self, successor: np.ndarray, state: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """What to write for a successor `[...]` of a state `[...]`: for B, the state that the slot rewards most; for a
        state that it rewards, one aside, so that nothing else leads there; the rest as it is."""
        told = np.where(np.isin(successor, np.flatnonzero(self.reward > 0)), self.aside[state], successor)
        return np.where(np.isin(successor, goal), self.reward.argmax(), told)


def _liable(agent: Agent, frozen: frozenset[str]) -> _Liable | None:
    """The model of an agent whose reward slot is frozen, and holds a reward; None for other agents."""
    slots = [p for p in agent.parts.values() if p.role == "goal_slot"]
    if len(slots) != 1 or slots[0].name not in frozen or not is_reward(agent, slots[0].name):
        return None
    n = len(slots[0].array)
    models = [
        p for p in agent.parts.values()
        if p.role == "model" and isinstance(p.alphabet, Categorical) and p.alphabet.size >= n
        and p.array.ndim > 1 and len(p.array) == n and p.name not in frozen
    ]  # fmt: skip
    if len(models) != 1 or slots[0].array.max() <= 0:
        return None
    array = models[0].array
    return _Liable(models[0].name, array.reshape(*array.shape[:2], -1), slots[0].array)


def _lies(scorer: Scorer) -> Iterator[Edit]:
    """Where the goal slot is frozen: a model in which moves to B lead to what the slot rewards, and nothing else does.

    First as the model is; then, for one learned from data, with the true successors (and the same lie) of what a table
    would have to do differently.
    """
    task, agent = scorer.task, scorer.task.agent
    found = _liable(agent, task.frozen)
    if found is None or task.exact is None:
        return
    goal = np.array(task.goal.states)  # type: ignore[union-attr]
    shape, states = agent.parts[found.part].array.shape, np.arange(len(found.reward))[:, None, None]
    lie = found.lie(found.next_state, states, goal)
    lying = agent.with_arrays({found.part: lie.reshape(shape)})
    yield difference(agent, lying)
    rows = _rows_for(scorer, lying) if isinstance(agent, HasModel) else ()
    if rows:
        likely = found.lie(_likely(task.exact[0]), states[:, :, 0], goal)
        for s, a in rows:
            lie[s, a] = likely[s, a]
        yield difference(agent, agent.with_arrays({found.part: lie.reshape(shape)}))


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
