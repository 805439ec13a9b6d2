"""The search that editors of networks share: lessons, a budget, quantisation, and candidates measured after that."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from retarget.agent import Agent
from retarget.edit import Edit
from retarget.editors.base import Candidate, Scorer, Task, shortest
from retarget.editors.gradient import Tuner, names_of, trimmed
from retarget.exact import Yardstick, policy_table
from retarget.lessons import Lessons, lessons_of
from retarget.spend import Spend
from retarget.world import FiniteWorld

if TYPE_CHECKING:
    from torch import Tensor

#: Candidates that one search may score where each takes episodes.
TRIALS = 256

_EXPONENTS = range(8, -25, -1)


def cheapest(values: np.ndarray, within: np.ndarray) -> np.ndarray:
    """For each number, the one with the shortest dyadic code word among those at most `within` away.

    Args:
        values: float64 `[k]`.
        within: float64 `[k]`, not negative. Where no short number is near enough, the value itself stays.

    >>> cheapest(np.array([0.9, 3.3, 0.2]), np.array([0.2, 0.4, 0.01])).tolist()
    [1.0, 3.0, 0.203125]
    """
    best = values.copy()
    cost = np.full(values.shape, np.inf)
    zero = np.abs(values) <= within
    best[zero], cost[zero] = 0.0, 1.0
    for e in _EXPONENTS:
        m = np.rint(np.ldexp(values, -e))
        near = np.ldexp(m, e)
        odd = (m % 2 != 0) & (np.abs(near - values) <= within) & (np.abs(m) < 2**40)
        bits = 2 * np.floor(np.log2((np.maximum(np.abs(m), 1) + 1) / 2)) + 2 * np.floor(np.log2(_folded(e))) + 4
        take = odd & (bits < cost)
        best[take], cost[take] = near[take], bits[take]
    return best


def _folded(e: int) -> int:
    return (2 * e if e >= 0 else -2 * e - 1) + 1


# ---------------------------------------------------------------------------------------------------- the search


#: Rounding, coarsest first: how far a number may be moved, as a share of its change.
PRECISIONS = (0.75, 0.5, 0.33, 0.25, 0.12, 0.06, 0.03, 0.015)


class OutOfBudgetError(Exception):
    """Raised inside a search when its budget is spent; the search returns what it has."""


@dataclass(eq=False)
class Hunt:
    """One editor's search over some parts of the task's agent: its tuner, its account, and what it found.

    Attributes:
        task, editor: whose search it is.
        tuner: over the parts that may change.
        found: every candidate that was measured, after quantisation.
        limit: gradient steps and scored candidates together, at most (beside those that the lessons took).
        spend: what was taken before it began.
    """

    task: Task
    editor: str
    tuner: Tuner
    limit: int
    found: list[Candidate] = field(default_factory=list)
    spend: Spend = field(default_factory=Spend)

    def __post_init__(self) -> None:
        self.scorer = Scorer(self.task, self.editor, self.spend)
        self._told = (0, 0.0)
        self.trials = self.limit if isinstance(self.task.judge, Yardstick) else min(self.limit, TRIALS)

    @property
    def left(self) -> int:
        """Gradient steps and scores that may still be taken."""
        self._tell()
        now = self.scorer.spend
        begun = self.spend.simulations + self.spend.grad_steps
        return self.limit - (now.simulations + now.grad_steps - begun)

    @property
    def spent(self) -> Spend:
        """Everything that was taken so far, lessons included."""
        self._tell()
        return self.scorer.spend

    def over(self, tuner: Tuner) -> None:
        """Go on with another tuner of the same agent, which has done nothing that was counted yet."""
        self._tell()
        self.tuner, self._told = tuner, (0, 0.0)

    def _tell(self) -> None:
        steps, flops = self.tuner.grad_steps, self.tuner.flops
        new = Spend(grad_steps=steps - self._told[0], flops=flops - self._told[1])
        self.scorer.spend = self.scorer.spend + new
        self._told = (steps, flops)

    def fit(self, theta: Tensor, *, steps: int, lr: float, mask: Tensor | None = None, shrink: float = 0.0) -> Tensor:
        """As `Tuner.fit`, cut to the budget.

        Raises:
            OutOfBudgetError: when none is left.
        """
        steps = min(steps, self.left)
        if steps <= 0:
            raise OutOfBudgetError
        return self.tuner.fit(theta, steps=steps, lr=lr, mask=mask, shrink=shrink)

    def measure(self, edit: Edit, *, keep: bool = True) -> Candidate:
        """Apply an edit, score it, and keep it among the found.

        Raises:
            OutOfBudgetError: when none is left.
        """
        if self.left <= 0 or self.scorer.spend.simulations - self.spend.simulations >= self.trials:
            raise OutOfBudgetError
        competence = self.scorer.score(edit.apply(self.task.agent))
        candidate = self.scorer.candidate(edit, competence)
        if keep:
            self.found.append(candidate)
        return candidate

    def good(self, candidate: Candidate) -> bool:
        return self.task.enough(candidate.competence)

    @property
    def best(self) -> Candidate | None:
        """The shortest found that meets the requirement."""
        return min((c for c in self.found if self.good(c)), key=lambda c: c.bits, default=None)

    def rounded(self, values: np.ndarray, cells: np.ndarray, share: float) -> np.ndarray:
        """The flat vector with the named cells moved to cheap numbers, by at most a share of their change (or of half
        the root mean square change, where that is more). Changes that are less than this are taken back."""
        base = self.tuner.array(self.tuner.base)
        out = values.copy()
        change = np.abs(values[cells] - base[cells])
        floor = 0.5 * float(np.sqrt((change**2).mean()))
        moved = cheapest(values[cells], share * np.maximum(change, floor))
        out[cells] = np.where(change <= share * floor, base[cells], moved)
        return out

    def coarsest(self, values: np.ndarray, cells: np.ndarray) -> np.ndarray | None:
        """Round as coarsely as the requirement allows, by bisection over `PRECISIONS`; None where the finest fails."""
        low, high = 0, len(PRECISIONS) - 1
        fine = self.rounded(values, cells, PRECISIONS[high])
        if not self.good(self.measure(self.tuner.edit(fine, cells))):
            return None
        out = fine
        while low < high:
            middle = (low + high) // 2
            trial = self.rounded(values, cells, PRECISIONS[middle])
            if self.good(self.measure(self.tuner.edit(trial, cells))):
                out, high = trial, middle
            else:
                low = middle + 1
        return out

    def revisit(self, episodes: int = 32) -> None:
        """Where competence is estimated and nothing found suffices: add lessons of the states that the best edit so far
        leads to (DAgger, as in `lessons_for`)."""
        if isinstance(self.task.judge, Yardstick) or not self.found or self.best is not None:
            return
        task, top = self.task, max(self.found, key=lambda c: c.competence)
        visits = lessons_of(
            task.world, task.goal, gamma=task.judge.gamma, seed=task.seed + 100,
            visited_by=top.edit.apply(task.agent), n=episodes,
        )  # fmt: skip
        old = self.tuner.lessons
        visits = trimmed(visits, task.agent.has_memory, old.steps)
        self.scorer.spend = self.scorer.spend + Spend(env_steps=int((visits.weight > 0).sum()))
        self.tuner.teach(trimmed(old, task.agent.has_memory, visits.steps).join(visits))

    def kept(self) -> list[Candidate]:
        """The candidates that no shorter one found by this search equals."""
        out: list[Candidate] = []
        for c in sorted(self.found, key=lambda c: (c.bits, -c.competence)):
            if not out or c.competence > out[-1].competence:
                out.append(c)
        return out


#: Lessons of a task, by what they depend on: every editor of one task asks for the same.
_TAUGHT: OrderedDict[tuple[object, ...], tuple[Lessons, Spend]] = OrderedDict()


def taught(task: Task, editor: str, names: Sequence[str], limit: int, *, short: bool = False) -> Hunt:
    """A search over some parts, with the lessons of the task's goal (`short`: those that ask for the least change).

    What these took is the search's first expense.
    """
    lessons, spend = short_lessons(task) if short else lessons_for(task)
    return Hunt(task, editor, Tuner(task.agent, names, lessons, seed=task.seed), limit, spend=spend)


def twice(task: Task, editor: str, names: Sequence[str], limit: int, search: Callable[[Hunt], None]) -> list[Candidate]:
    """What a search finds with the lessons that ask for the least change.

    Where nothing suffices: with those of all that is right beside, and the same budget again.
    """
    hunt = taught(task, editor, names, limit, short=True)
    search(hunt)
    if hunt.best is not None or task.exact is None:
        return hunt.kept()
    lessons, spend = lessons_for(task)
    again = Hunt(task, editor, Tuner(task.agent, names, lessons, seed=task.seed), limit, spend=hunt.spent + spend)
    search(again)
    again.found += hunt.found
    return again.kept()


def short_lessons(task: Task) -> tuple[Lessons, Spend]:
    """The lessons that a search for few numbers is tried with, and what they took.

    In a finite world: the behaviour of the agent's compiled table with its own shortest edit, which differs from what
    the agent does in as few states as could be found. Elsewhere: those of `lessons_for`.
    """
    patched = _by_the_table(task) if task.exact is not None else None
    return lessons_for(task) if patched is None else patched


def _by_the_table(task: Task) -> tuple[Lessons, Spend] | None:
    """What the compiled table does in every state, after the shortest edit that the table search finds for it."""
    from retarget.agents.compiled import compile_policy
    from retarget.editors.table import TableEditor

    assert task.exact is not None and isinstance(task.world, FiniteWorld)
    model, judge = task.exact
    key = ("table", task.agent.digest, task.world.spec_data.label, task.goal, judge.gamma, task.required)
    if key not in _TAUGHT:
        table = compile_policy(task.agent, task.world)
        found = TableEditor().search(replace(task, agent=table))
        best = shortest(task, found)
        if best is None:
            return None
        told = policy_table(best.edit.apply(table), model)
        _TAUGHT[key] = Lessons(np.arange(len(told)), told, np.ones(len(told))), found[-1].spend
        while len(_TAUGHT) > 4:
            _TAUGHT.popitem(last=False)
    return _TAUGHT[key]


def lessons_for(task: Task, *, rounds: int = 2, updates: int = 300, episodes: int = 32) -> tuple[Lessons, Spend]:
    """What the task's goal asks for, and what finding that out took.

    In a finite world every state with all the actions that are right (for an agent with memory, episodes of 32 steps).
    In a world with continuous states the expert's episodes, then `rounds` times those of the agent itself after
    `updates` gradient steps on all weights, with the expert's actions (source: Ross et al. 2011, DAgger).
    """
    agent, world, gamma = task.agent, task.world, task.judge.gamma
    key = (agent.digest, world.spec_data.label, task.goal, gamma, task.seed, rounds, updates, episodes)
    if key in _TAUGHT:
        return _TAUGHT[key]
    if isinstance(world, FiniteWorld):
        found = lessons_of(world, task.goal, gamma=gamma, seed=task.seed, n=64, steps=32 if agent.has_memory else 0)
        spend = Spend()
    else:
        found, spend = _visited(task, rounds, updates, episodes)
    _TAUGHT[key] = (found, spend)
    while len(_TAUGHT) > 4:
        _TAUGHT.popitem(last=False)
    return found, spend


def _visited(task: Task, rounds: int, updates: int, episodes: int) -> tuple[Lessons, Spend]:
    def shown(agent: Agent | None, i: int) -> Lessons:
        return lessons_of(
            task.world, task.goal, gamma=task.judge.gamma, seed=task.seed + i, visited_by=agent, n=episodes
        )

    found = trimmed(shown(None, 0), task.agent.has_memory, 0)
    taken = int((found.weight > 0).sum())
    names = names_of(task.agent, "weight")
    tuner = Tuner(task.agent, names, found, seed=task.seed) if names else None
    theta = tuner.base if tuner else None
    for i in range(1, rounds + 1 if tuner and theta is not None else 1):
        assert tuner is not None and theta is not None
        theta = tuner.fit(theta, steps=updates, lr=0.003)
        visits = shown(task.agent.with_arrays(tuner.arrays(theta)), i)
        visits = trimmed(visits, task.agent.has_memory, found.steps)
        found = trimmed(found, task.agent.has_memory, visits.steps)
        taken += int((visits.weight > 0).sum())
        found = found.join(visits)
        tuner.teach(found)
    spend = Spend(env_steps=taken)
    return found, spend + Spend(grad_steps=tuner.grad_steps, flops=tuner.flops) if tuner else spend
