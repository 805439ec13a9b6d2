"""Combine parts: the goal slot, values, priors and others, each left as it is or suited to B by a formula."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import ClassVar

import numpy as np

from retarget.agent import Agent, HasFits, HasGoalSlot, Part, Real, Role
from retarget.code import ENUMERATIVE
from retarget.edit import Edit, Slot, difference
from retarget.editors.base import Candidate, Scorer, Task, shortest_form
from retarget.editors.retrain import significant
from retarget.editors.sparse import debugged
from retarget.errors import AgentError

#: Significant bits that real values are rounded to, coarsest first.
PRECISIONS = (1, 2, 3, 4, 6, 8)

#: Combinations that touch the same roles, of which more are not shortened.
MOST_ALIKE = 2

#: Trials of putting cells back that are made however hard the agent searches.
FEWEST = 24

#: How far a preference is raised above the others of its row.
HEIGHTS = (1.0, 4.0)

Arrays = Mapping[str, np.ndarray]


class FittedEditor:
    """Tries every combination of what the agent's parts can be suited to B by: of each role nothing, a slot write, or a
    fit; the shortest combinations first. The slot alone is scored too, and left to the slot editor to return.

    Those that meet the requirement, and would not with an option less, are shortened (of those that touch the same
    roles, the two shortest): real values are rounded to as few significant bits as will do; cells are put back, to what
    they were or to one value for all, by delta debugging; and what is left is rounded again.

    Agents without fits are passed over.

    Args:
        trials: most candidates to score while cells of one combination are put back, for each way to put them back.
        simulations: most simulations of one decision that they may take together, though `FEWEST` are scored anyway: an
            agent that searches hard has fewer trials.

    >>> import retarget
    >>> from retarget.agents import tree_searcher
    >>> from retarget.agents.leaves import Tables
    >>> from retarget.exact import Yardstick
    >>> from retarget.search import TreeSettings
    >>> world = retarget.make_world("OpenGrid", size=5)
    >>> a, b = world.as_goal((0, 0)), world.as_goal((4, 4))
    >>> leaf = Tables.for_goal(world, a, gamma=0.95)
    >>> agent = tree_searcher(world, a, settings=TreeSettings(simulations=1), leaf=leaf)
    >>> task = Task(agent, world, Yardstick.of(world, b, gamma=0.95), 0.95)
    >>> found = [c for c in FittedEditor().search(task) if task.enough(c.competence)]
    >>> min(found, key=lambda c: c.bits).edit.parts_touched
    ('prior',)
    """

    name: ClassVar[str] = "fitted"
    #: With parts frozen it finds nothing that it does not find without, unless its budget ends the search.
    covers_frozen: ClassVar[bool] = True

    def __init__(self, *, trials: int = 192, simulations: int = 16_384) -> None:
        self.trials, self.simulations = trials, simulations

    def search(self, task: Task) -> Sequence[Candidate]:
        agent = task.agent
        if not isinstance(agent, HasFits):
            return ()
        slots = _options(task, _written(task))
        contents = [fit.arrays for fit in agent.fits(task.world, task.goal)]
        fits = _options(task, contents)
        for height in HEIGHTS:
            fits += _options(task, _raised(agent, contents, height), height)
        if not fits:
            return ()
        tried = _Tried(Scorer(task, self.name))
        good: list[_Combination] = []
        for combination in _combined([*slots, *fits], task.budget):
            worth = tried.score(_arrays(combination), keep=not set(combination) <= set(slots))
            if worth is not None and task.enough(worth):
                good.append(combination)
        for combination in _least(good):
            if not set(combination) <= set(slots):
                self._shorten(tried, combination, fits)
        return tried.found

    def _shorten(self, tried: _Tried, combination: _Combination, fits: Sequence[_Option]) -> None:
        agent = tried.task.agent
        affordable = self.simulations // max(1, agent.simulations_per_action)
        trials = min(self.trials, max(FEWEST, affordable))
        for base in _bases(agent, combination, fits):
            cells, until = _Cells(agent, base, _arrays(combination)), tried.scored + trials
            kept = np.arange(cells.n)
            bits = _coarsest(tried, cells, kept, PRECISIONS)
            for kept in debugged(
                cells.n,
                good=lambda keep, cells=cells, bits=bits: tried.good(cells.arrays(keep, bits)),  # type: ignore[misc]
                going=lambda until=until: tried.left > 0 and tried.scored < until,  # type: ignore[misc]
            ):
                tried.keep(cells.arrays(kept, bits), tried.last_good)
            if len(kept) < cells.n:
                _coarsest(tried, cells, kept, [p for p in PRECISIONS if bits is None or p < bits])


# ---------------------------------------------------------------------------------------------------- combinations


@dataclass(frozen=True, eq=False)
class _Option:
    """New contents for parts of one role.

    Attributes:
        role, arrays: of the parts.
        bits: to write them alone.
        constant: whether each part is filled with one value.
        height: of preferences that were raised; 0 for other contents.
    """

    role: Role
    arrays: Arrays
    bits: int
    constant: bool
    height: float


_Combination = tuple[_Option, ...]


def _written(task: Task) -> list[Arrays]:
    """What the parts hold after each of the agent's own ways to write B into its slot."""
    agent = task.agent
    writes = agent.slot_writes(task.goal) if isinstance(agent, HasGoalSlot) else ()
    patches = [Slot.of(w, agent.parts[w.part].alphabet) for w in writes]
    return [{p.part: p.write(agent.parts[p.part].array)} for p in patches]


def _raised(agent: Agent, contents: Sequence[Arrays], height: float) -> list[Arrays]:
    """Of preferences `[S, A]`: where a fit does not like all that is liked best now, what it likes best is raised above
    its row, and no other cell is changed."""
    out: list[Arrays] = []
    for name, fitted in (item for arrays in contents for item in arrays.items()):
        part = agent.parts[name]
        if not _preferences(agent, part):
            continue
        now, liked = (a == a.max(1, keepdims=True) for a in (part.array, np.asarray(fitted)))
        rows = np.flatnonzero((now & ~liked).any(1))
        if rows.size:
            array = part.array.copy()
            # whole numbers are short to write
            array[rows, liked[rows].argmax(1)] = np.floor(array[rows].max(1)) + height
            out.append({name: array})
    return out


def _preferences(agent: Agent, part: Part) -> bool:
    """Whether a part holds a number for each state and action (and not weights, say)."""
    rows = part.array.shape[0] if part.array.ndim == 2 else None
    return part.role == "policy" and isinstance(part.alphabet, Real) and rows == agent.n_states


def _options(task: Task, contents: Sequence[Arrays], height: float = 0.0) -> list[_Option]:
    """Those that change something, and nothing that is frozen."""
    agent, out = task.agent, []
    for arrays in contents:
        agent.check_arrays(arrays)
        roles = {agent.parts[name].role for name in arrays}
        if len(roles) > 1:
            raise AgentError(f"a fit of agent {agent.kind!r} touches {', '.join(arrays)}; give one for each role")
        try:
            edit = _edit(agent, agent.with_arrays(arrays))
        except AgentError:
            if not height:
                raise
            continue  # heights are the editor's idea, not the agent's
        if edit.patches and not task.frozen.intersection(arrays):
            constant = all(bool((np.asarray(a) == np.asarray(a).flat[0]).all()) for a in arrays.values())
            out.append(_Option(roles.pop(), arrays, ENUMERATIVE.length(edit, agent.layout), constant, height))
    return out


def _combined(options: Sequence[_Option], limit: int) -> list[_Combination]:
    """At most one option of each role, and at least one in all; the `limit` shortest, shortest first."""
    roles = dict.fromkeys(o.role for o in options)
    choices = [[None, *(o for o in options if o.role == role)] for role in roles]
    whole = (tuple(o for o in choice if o is not None) for choice in product(*choices))
    return heapq.nsmallest(limit, (c for c in whole if c), key=lambda c: (sum(o.bits for o in c), len(c)))


def _arrays(combination: _Combination) -> Arrays:
    return {name: array for option in combination for name, array in option.arrays.items()}


def _within(other: _Combination, whole: _Combination) -> bool:
    """Whether one combination asks for nothing that another does not, with preferences raised no higher."""

    def covers(more: _Option, less: _Option) -> bool:
        raised = 0 < less.height <= more.height and more.arrays.keys() == less.arrays.keys()
        return more is less or raised

    return all(any(covers(more, less) for more in whole) for less in other)


def _least(good: Sequence[_Combination]) -> list[_Combination]:
    """Those that ask for nothing that another does without; of each set of roles the `MOST_ALIKE` that come first."""
    taken: dict[frozenset[str], int] = {}
    out = []
    for whole in good:
        roles = frozenset(o.role for o in whole)
        if taken.get(roles, 0) < MOST_ALIKE and not any(o is not whole and _within(o, whole) for o in good):
            taken[roles] = taken.get(roles, 0) + 1
            out.append(whole)
    return out


def _bases(agent: Agent, combination: _Combination, fits: Sequence[_Option]) -> list[Arrays]:
    """What cells may be put back to: what they were; the value that most cells of a part come to hold; and the one
    value of a fit that holds nothing else. The last two are for values and preferences that were not raised; to what
    they were preferences are never put back, since that is what raising them does."""
    whole = [o for o in combination if o.role in ("value", "policy") and not o.constant and not o.height]
    arrays = {n: np.asarray(a) for o in whole for n, a in o.arrays.items()}
    usual = {n: np.full_like(a, value) for n, a in arrays.items() if (value := _usual(a)) is not None}
    filled = {n: np.asarray(a) for fit in fits if fit.constant for n, a in fit.arrays.items() if n in arrays}
    old = {n: a for n, a in usual.items() if _preferences(agent, agent.parts[n])}
    out: list[Arrays] = []
    for base in (old, usual, usual | filled):
        if not any(_same(base, other) for other in out):
            out.append(base)
    return out


def _usual(array: np.ndarray) -> float | None:
    """The value that most cells hold; None where no two hold the same."""
    values, counts = np.unique(array, return_counts=True)
    return float(values[counts.argmax()]) if counts.max() > 1 else None


def _same(one: Arrays, other: Arrays) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(a, other[n]) for n, a in one.items())


# ---------------------------------------------------------------------------------------------------- shortening


class _Cells:
    """The cells in which new contents differ from a base (what the agent holds, where the base says nothing)."""

    def __init__(self, agent: Agent, base: Arrays, target: Arrays) -> None:
        self.bases = {n: np.asarray(base.get(n, agent.parts[n].array), agent.parts[n].array.dtype) for n in target}
        self.where: dict[str, np.ndarray] = {}
        self.values: dict[str, np.ndarray] = {}
        for name, old in self.bases.items():
            new = np.ascontiguousarray(target[name], dtype=old.dtype).reshape(-1)
            held = np.ascontiguousarray(old).reshape(-1)
            # bit patterns, as the code sees them
            self.where[name] = np.flatnonzero(held.view(np.int64) != new.view(np.int64))
            self.values[name] = new[self.where[name]]
        self.ends = np.cumsum([len(w) for w in self.where.values()])
        self.n = int(self.ends[-1])
        self.real = any(isinstance(agent.parts[n].alphabet, Real) and len(w) for n, w in self.where.items())

    def arrays(self, keep: np.ndarray, bits: int | None) -> Arrays:
        """The base with the cells `keep` of the new contents, real ones rounded to `bits` significant bits."""
        out, begin = {}, 0
        for (name, base), end in zip(self.bases.items(), self.ends, strict=True):
            pick = keep[(keep >= begin) & (keep < end)] - begin
            values = self.values[name][pick]
            array = base.copy()
            array.reshape(-1)[self.where[name][pick]] = (
                significant(values, bits) if bits is not None and values.dtype.kind == "f" else values
            )
            out[name], begin = array, int(end)
        return out


def _coarsest(tried: _Tried, cells: _Cells, keep: np.ndarray, precisions: Sequence[int]) -> int | None:
    """The fewest significant bits that leave what is required, None where none of these does."""
    for bits in precisions if cells.real else ():
        if not tried.left:
            break
        worth = tried.score(cells.arrays(keep, bits))
        if worth is not None and tried.task.enough(worth):
            return bits
    return None


@dataclass(eq=False)
class _Tried:
    """Contents that were scored, with the account of it, and the edits worth keeping, each once."""

    scorer: Scorer
    found: list[Candidate] = field(default_factory=list)
    last_good: float = 0.0

    @property
    def task(self) -> Task:
        return self.scorer.task

    @property
    def scored(self) -> int:
        return self.scorer.spend.simulations

    @property
    def left(self) -> int:
        return max(0, self.task.budget - self.scored)

    def score(self, arrays: Arrays, *, keep: bool = True) -> float | None:
        """Competence on B with these contents; None where the agent refuses them (rounded probabilities, say)."""
        try:
            worth = self.scorer.score(self.task.agent.with_arrays(arrays))
        except AgentError:
            return None
        if keep:
            self.keep(arrays, worth)
        return worth

    def good(self, arrays: Arrays) -> bool:
        worth = self.score(arrays, keep=False)
        if worth is None or not self.task.enough(worth):
            return False
        self.last_good = worth
        return True

    def keep(self, arrays: Arrays, worth: float) -> None:
        edit = _edit(self.task.agent, self.task.agent.with_arrays(arrays))
        if edit.patches and all(edit != c.edit for c in self.found):
            self.found.append(self.scorer.candidate(edit, worth))


def _edit(agent: Agent, edited: Agent) -> Edit:
    return shortest_form(agent, difference(agent, edited))
