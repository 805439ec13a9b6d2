"""Shortest exceptions to an agent's behaviour: behaviour bits where states cannot be listed.

What is shown is the world's expert. Exceptions come in two forms, and in each the fewest are kept that meet the
requirement: *tiles* (in this part of what is seen, act so), learned from the expert's episodes and then from the
episodes of the edited agent itself (source: Ross et al. 2011, DAgger), and *episodes* (from this start, act so at these
steps), which need no generalisation and cost the most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np

from retarget.agent import Agent
from retarget.agents.behaviour import EPISODES, BehaviourTable, behaviour_table, nearest_symbol
from retarget.edit import Edit, Patch, Slot, Sparse
from retarget.editors.base import Candidate, Scorer, Task, shortest_form
from retarget.exact import Yardstick
from retarget.lessons import Lessons, lessons_of
from retarget.spend import Spend
from retarget.trials import Trials, follow
from retarget.world import BoxWorld, FiniteWorld


def behaviour_of(agent: Agent, task: Task) -> BehaviourTable:
    """The table of an agent's behaviour, with tiles over what can be seen in the world, and the starts that the task
    is judged from."""
    world, judge = task.world, task.judge
    if isinstance(world, FiniteWorld) and isinstance(judge, Yardstick):
        none = np.zeros((0,), dtype=np.int64)
        return behaviour_table(agent, world, first=none, horizon=0)
    assert isinstance(world, BoxWorld) and isinstance(judge, Trials)
    return behaviour_table(agent, world, first=world.observe(judge.starts), horizon=world.horizon)


class ExceptionEditor:
    """Writes exceptions over a behaviour table; other agents are passed over.

    Args:
        rounds: how often the edited agent's own episodes are added to what is learned from, at each resolution; less
            often where four rounds in a row have brought nothing.
        trials: most candidates to score while exceptions are taken back, at each resolution.
    """

    name: ClassVar[str] = "exceptions"

    def __init__(self, *, rounds: int = 10, trials: int = 48) -> None:
        self.rounds, self.trials = rounds, trials

    def search(self, task: Task) -> Sequence[Candidate]:
        agent = task.agent
        if not isinstance(agent, BehaviourTable):
            return ()
        scorer = Scorer(task, self.name)
        out: list[Candidate] = []
        for number in range(len(agent.grids)):
            if not _spent(scorer):
                out += self._tiles(scorer, number)
        return [*out, *_episodes(scorer)]

    # -- tiles -----------------------------------------------------------------------------------------------------

    def _tiles(self, scorer: Scorer, number: int) -> list[Candidate]:
        task = scorer.task
        lessons = self._lessons(scorer, None)
        best: tuple[float, Edit] | None = None
        idle = 0
        for _ in range(self.rounds + 1):
            edit = _majority(task.agent, number, lessons)
            if not edit.patches:
                return []
            worth = scorer.score(edit.apply(task.agent))
            idle += 1
            if best is None or worth > best[0]:
                best, idle = (worth, edit), 0
            if task.enough(worth) or idle > 4 or _spent(scorer):
                break
            lessons = lessons.join(self._lessons(scorer, edit.apply(task.agent)))
        assert best is not None
        out = [_candidate(scorer, best[1])]
        for whole in (best[1], *self._filled(task.agent, number, best[1])):
            if task.enough(out[0].competence):
                out += self._fewer(scorer, whole)
        return out

    def _lessons(self, scorer: Scorer, agent: Agent | None) -> Lessons:
        task = scorer.task
        steps = 0 if isinstance(task.world, BoxWorld) else 1
        found = lessons_of(
            task.world, task.goal, gamma=task.judge.gamma, seed=task.seed, visited_by=agent, n=32, steps=steps
        )
        scorer.spend = scorer.spend + Spend(env_steps=int((found.weight > 0).sum()))
        return replace(found, steps=1)

    def _filled(self, agent: Agent, number: int, whole: Edit) -> list[Edit]:
        """The same with one action in every tile, and the others as exceptions to that."""
        assert isinstance(agent, BehaviourTable)
        written = whole.apply(agent)
        assert isinstance(written, BehaviourTable)
        table, name = written.tables[number], agent.names[number]
        out = []
        for symbol in np.unique(table[table > 0]).tolist():
            cells = np.flatnonzero((table > 0) & (table != symbol))
            out.append(Edit.of(agent, Slot(name, float(symbol), cells, table[cells])))
        return out

    def _fewer(self, scorer: Scorer, whole: Edit) -> list[Candidate]:
        """Exceptions are taken back in chunks, then halves of chunks, as long as the requirement holds (delta
        debugging, Zeller and Hildebrandt 2002)."""
        task = scorer.task
        if not task.enough(scorer.score(whole.apply(task.agent))):
            return []
        patch = whole.patches[0]
        assert isinstance(patch, (Sparse, Slot))
        kept, size = np.arange(patch.n_cells), max(1, patch.n_cells // 2)
        out, left = [_candidate(scorer, whole)], min(self.trials, task.budget - scorer.spend.simulations)
        while kept.size and left > 0:
            at, before = 0, kept.size
            while at < kept.size and left > 0:
                trial = np.concatenate([kept[:at], kept[at + size :]])
                left -= 1
                if task.enough(scorer.score(_pick(task.agent, patch, trial).apply(task.agent))):
                    kept = trial
                else:
                    at += size
            if kept.size < before:
                out.append(_candidate(scorer, _pick(task.agent, patch, kept)))
            elif size == 1:
                break
            size = max(1, size // 2)
        return out


def _spent(scorer: Scorer) -> bool:
    return scorer.spend.simulations >= scorer.task.budget


def _candidate(scorer: Scorer, edit: Edit) -> Candidate:
    short = shortest_form(scorer.task.agent, edit)
    return scorer.candidate(short, scorer.score(short.apply(scorer.task.agent)))


def _pick(agent: Agent, patch: Patch, keep: np.ndarray) -> Edit:
    assert isinstance(patch, (Sparse, Slot))
    index, value = patch.index[keep], patch.value[keep]
    if isinstance(patch, Slot):
        return Edit.of(agent, Slot(patch.part, patch.rest, index, value))
    return Edit.of(agent, Sparse(patch.part, index, value)) if index.size else Edit.of(agent)


def _majority(agent: Agent, number: int, lessons: Lessons) -> Edit:
    """In each tile that was seen, what is right most often; nothing where the agent does that already."""
    assert isinstance(agent, BehaviourTable)
    live = lessons.weight > 0
    obs, right = lessons.obs[live], lessons.right[live]
    cell = agent.grids[number].cell(obs)
    n_symbols = len(agent.palette)
    votes = np.zeros((agent.grids[number].n_cells, n_symbols))
    if agent.palette.ndim == 1:
        np.add.at(votes, cell, right)
    else:
        np.add.at(votes, (cell, nearest_symbol(agent.palette, right) - 1), 1.0)
    own = np.zeros_like(votes)
    done, _ = agent.base.policy(obs) if not agent.base.has_memory else (None, None)
    if done is not None and done.ndim == 2:
        np.add.at(own, cell, done)
    seen = votes.sum(1) > 0
    wrong = seen & (own.argmax(1) != votes.argmax(1)) if done is not None and done.ndim == 2 else seen
    # where several actions are equally right, one of them may be what the agent does already
    most = votes.max(1, keepdims=True)
    if done is not None and done.ndim == 2:
        wrong &= votes[np.arange(len(votes)), own.argmax(1)] < most[:, 0]
    cells = np.flatnonzero(wrong)
    if not cells.size:
        return Edit.of(agent)
    return Edit.of(agent, Sparse(agent.names[number], cells, votes[cells].argmax(1) + 1))


# -- episodes ----------------------------------------------------------------------------------------------------------


def _episodes(scorer: Scorer) -> list[Candidate]:
    """From the starts where it buys the most for the fewest steps: the expert's actions wherever the agent differs.

    Episodes do not touch one another, so that the best set of them is a matter of sorting.
    """
    task = scorer.task
    agent, judge, world = task.agent, task.judge, task.world
    if not isinstance(judge, Trials) or not isinstance(agent, BehaviourTable) or not isinstance(world, BoxWorld):
        return []
    symbols, ratios = _shown(agent, world, judge)
    before = judge.ratios(judge.traces(agent))
    # a table that was made for other starts cannot name these
    row = agent.row_of(world.observe(judge.starts))
    gain, cost = np.where(row >= 0, ratios - before, 0.0), (symbols > 0).sum(0)
    order = np.argsort(-(gain / np.maximum(cost, 1)))
    reached = before.mean() + np.cumsum(gain[order]) / len(gain)
    good = np.flatnonzero(reached >= task.required)
    take = order[: int(good[0]) + 1] if good.size else order
    take = take[row[take] >= 0]
    table = np.zeros_like(agent.episodes)
    table[row[take], : len(symbols)] = symbols[:, take].T
    cells = np.flatnonzero(table)
    if not cells.size:
        return []
    edit = Edit.of(agent, Sparse(EPISODES, cells, table.reshape(-1)[cells]))
    scorer.spend = scorer.spend + Spend(env_steps=int(symbols.size))
    return [_candidate(scorer, edit)]


def _shown(agent: BehaviourTable, world: BoxWorld, judge: Trials) -> tuple[np.ndarray, np.ndarray]:
    """Symbols int64 `[T, N]` along the expert's episodes (0 where the agent would do the same), and V/V* of them."""
    expert = world.expert(judge.goal)
    said: list[np.ndarray] = []

    def act(obs: np.ndarray, state: np.ndarray, carry: object) -> tuple[np.ndarray, object]:
        out, carry = agent.policy(obs, carry)
        symbol = nearest_symbol(agent.palette, expert.act(state))
        action = agent.palette[symbol - 1]
        same = out[np.arange(len(obs)), action] == 1.0 if out.ndim == 2 else (out[:, 0] == action).all(1)
        said.append(np.where(same, 0, symbol))
        return action, carry

    traces = follow(world, act, judge.starts, judge.goal)
    symbols = np.where(traces.live, np.stack(said), 0) if said else np.zeros((0, len(judge.starts)), np.int64)
    return symbols, judge.ratios(traces)
