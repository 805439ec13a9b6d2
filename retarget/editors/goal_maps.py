"""Maps from goals to edits: fitted on the edits of some goals, applied to others without a search.

Each map is written in the project's code: three bits say which kind it is, then follow one or two edits of a layout of
its own (which cells it writes; its numbers), or edits of the agent. The decoder is given the agent, the features of
goals, and the training goals in order; the same is given to the code of single edits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol

import numpy as np

from retarget.agent import Agent, Categorical, HasGoalSlot, HasTable, Layout, PartLayout, Real
from retarget.edit import Dense, Edit, Patch, Sparse
from retarget.editors.base import shortest_form
from retarget.editors.family import Family
from retarget.editors.goal_cells import KINDS, NAME_BITS, Cells, LinearMap, NetworkMap, name_bits, read_numbers
from retarget.editors.goal_features import Features
from retarget.editors.slot import slot_edit
from retarget.editors.words import Stream, word_of
from retarget.errors import CodeError, EditError
from retarget.exact import policy_table
from retarget.goal import Goal, StateGoal
from retarget.world import FiniteModel


class GoalEditMap(Protocol):
    """From goals to edits of one agent."""

    kind: ClassVar[str]

    @property
    def label(self) -> str:
        """What it is, for a protocol."""
        ...

    @property
    def word(self) -> str:
        """Its code word, a string of 0 and 1."""
        ...

    @property
    def apply_flops(self) -> float:
        """Operations that one goal takes."""
        ...

    def edit(self, goal: Goal) -> Edit:
        """The edit of the agent for a goal."""
        ...


# ------------------------------------------------------------------------------------------- without parameters


@dataclass(frozen=True, eq=False)
class ConstantMap:
    """One edit whatever the goal: the control that ignores it."""

    agent: Agent
    one: Edit
    kind: ClassVar[str] = "constant"
    apply_flops: ClassVar[float] = 0.0

    @property
    def label(self) -> str:
        return "constant"

    @property
    def word(self) -> str:
        return name_bits(self.kind) + word_of(self.one, self.agent.layout)

    def edit(self, goal: Goal) -> Edit:
        return self.one


@dataclass(frozen=True, eq=False)
class NearestMap:
    """The edit of the nearest training goal, in features divided by their scale; the first of equally near ones.

    Attributes:
        places: float64 `[N, F + 1]`, features of the training goals: known to the decoder.
        edits: theirs.
    """

    agent: Agent
    features: Features
    places: np.ndarray
    edits: tuple[Edit, ...]
    kind: ClassVar[str] = "nearest"

    @property
    def label(self) -> str:
        return f"nearest by {self.features.label}"

    @property
    def word(self) -> str:
        return name_bits(self.kind) + "".join(word_of(e, self.agent.layout) for e in self.edits)

    @property
    def apply_flops(self) -> float:
        return 3.0 * self.places.size

    def edit(self, goal: Goal) -> Edit:
        off = (self.places - self.features(goal))[:, :-1] / self.features.scale
        return self.edits[int(np.round((off**2).sum(1), 12).argmin())]


@dataclass(frozen=True, eq=False)
class SlotMap:
    """The agent's own way of writing a goal. Its code is one example: how the first training goal is written.

    Attributes:
        shown: the goal of the example.
        which: which of the agent's ways.
    """

    agent: Agent
    shown: Goal
    which: int
    kind: ClassVar[str] = "slot"
    apply_flops: ClassVar[float] = 0.0

    @property
    def label(self) -> str:
        return "slot: the agent's own writes"

    @property
    def word(self) -> str:
        return name_bits(self.kind) + word_of(self.edit(self.shown), self.agent.layout)

    def edit(self, goal: Goal) -> Edit:
        writes = self.agent.slot_writes(goal) if isinstance(self.agent, HasGoalSlot) else ()
        if len(writes) <= self.which:
            return Edit.of(self.agent)
        return slot_edit(self.agent, writes[self.which])


@dataclass(frozen=True, eq=False)
class PlannerMap:
    """A whole planner as a map: it holds the world's model, solves it for the goal, and writes what it found.

    Into a table: its own choice in every state where the agent does something else. Into any other agent: the shortest
    edit that the editors find with that model, since what the world does is all that they are told. Its code is the
    model: every successor, every probability where there is chance, and where episodes start.

    Attributes:
        model, starts: of the world.
        gamma: discount that it plans with.
        searched: edits that the search found, by goal, and what each took.
    """

    agent: Agent
    model: FiniteModel
    starts: np.ndarray
    gamma: float
    searched: Mapping[Goal, tuple[Edit, float]]
    kind: ClassVar[str] = "planner"

    @property
    def label(self) -> str:
        return f"planner: {'writes the table' if isinstance(self.agent, HasTable) else 'searches edits'}"

    @cached_property
    def layout(self) -> Layout:
        shape, n = self.model.next_state.shape, self.model.n_states
        parts = [PartLayout("next_state", shape, Categorical(n)), PartLayout("starts", (n,), Categorical(1))]
        return tuple(parts if shape[2] == 1 else [*parts, PartLayout("prob", shape, Real())])

    @property
    def word(self) -> str:
        at = np.sort(self.starts)
        moves = self.model.next_state.astype(np.int64)
        patches: list[Patch] = [Dense("next_state", moves), Sparse("starts", at, np.zeros(len(at), np.int64))]
        patches += [Dense("prob", self.model.prob)] if len(self.layout) == 3 else []
        return name_bits(self.kind) + word_of(Edit("", tuple(patches)), self.layout)

    @cached_property
    def _planned(self) -> dict[Goal, tuple[np.ndarray, float]]:
        return {}

    def plan(self, goal: StateGoal) -> tuple[np.ndarray, float]:
        """Values `[S, A]` by backups to the fixed point, and operations: (2 K + 1) S A for each."""
        if goal not in self._planned:
            from retarget.kernels import reach_backups

            reward = goal.mask(self.model.n_states).astype(np.float64)
            q, _, sweeps = reach_backups(self.model.next_state, self.model.prob, reward, self.gamma, 100_000, 1e-14)
            s, a, k = self.model.next_state.shape
            self._planned[goal] = q, float(sweeps * s * a * (2 * k + 1))
        return self._planned[goal]

    @property
    def apply_flops(self) -> float:
        spent = [self.plan(g)[1] if isinstance(self.agent, HasTable) else f for g, (_, f) in self.searched.items()
                 if isinstance(g, StateGoal)]  # fmt: skip
        return float(np.mean(spent)) if spent else 0.0

    def edit(self, goal: Goal) -> Edit:
        if not isinstance(self.agent, HasTable) or not isinstance(goal, StateGoal):
            return self.searched[goal][0] if goal in self.searched else Edit.of(self.agent)
        q, view = self.plan(goal)[0], self.agent.table_view()
        best = q.max(1, keepdims=True)
        choice = (q >= best - 1e-12 * np.abs(best)).argmax(1)
        now = policy_table(self.agent, self.model)
        matters = (best[:, 0] > 0) & ~goal.mask(self.model.n_states)
        rows = np.flatnonzero(matters & (now[np.arange(len(now)), choice] < 1.0))
        if not rows.size:
            return Edit.of(self.agent)
        cells, values = view.cell[rows, choice[rows]], view.value[rows, choice[rows]]
        at = np.argsort(cells)
        return shortest_form(self.agent, Edit.of(self.agent, Sparse(view.part, cells[at], values[at])))


# ---------------------------------------------------------------------------------------------------- decoding


def decode_map(bits: str, family: Family, features: Features, *, units: int = 8) -> GoalEditMap:
    """The map that a code word stands for.

    Args:
        bits: `word` of a map.
        family: gives the agent, and the training goals in order (those with an edit); their edits are not looked at.
        features: of goals.
        units: of a network.

    Raises:
        CodeError: for bits that are no such word, or a planner (which is read with its own `layout`).
    """
    source = Stream(bits)
    out = read_map(source, family, features, units=units)
    if source.rest:
        raise CodeError(f"{source.rest} bits follow the map")
    return out


def read_map(source: Stream, family: Family, features: Features, *, units: int = 8) -> GoalEditMap:
    """As `decode_map`, from a stream in which more may follow."""
    agent, which = family.agent, source.fixed(NAME_BITS)
    kind = KINDS[which] if which < len(KINDS) else "nothing"
    goals = [m.goal for m in family.used if m.seen]
    if kind == "constant":
        return ConstantMap(agent, source.edit(agent.layout, agent_digest=agent.digest))
    if kind == "nearest":
        edits = tuple(source.edit(agent.layout, agent_digest=agent.digest) for _ in goals)
        return NearestMap(agent, features, features.of(goals), edits)
    if kind in ("linear", "network"):
        cells, rows = Cells.read(agent, source), len(features.scale) + 1
        if kind == "linear":
            return LinearMap(cells, features, *read_numbers(source, [(rows, cells.n_outputs)]))
        return NetworkMap(cells, features, *read_numbers(source, [(rows, units), (units + 1, cells.n_outputs)]))
    if kind == "slot" and isinstance(agent, HasGoalSlot):
        example, shown = source.edit(agent.layout, agent_digest=agent.digest), slot_goal(family)
        ways = [slot_edit(agent, w) for w in agent.slot_writes(shown)]
        if example not in ways:
            raise CodeError(f"the example of a slot map is none of the agent's ways of writing {shown.label}")
        return SlotMap(agent, shown, ways.index(example))
    raise CodeError(f"the code names a map of the kind {kind!r}, which cannot be read here")


def slot_goal(family: Family) -> Goal:
    """The goal that a slot map's example is of: the first training goal that the agent's slot can express, else the
    first goal that it can.

    Raises:
        EditError: where the slot can express none.
    """
    agent = family.agent
    for member in sorted(family.members, key=lambda m: not m.seen):
        if isinstance(agent, HasGoalSlot) and agent.slot_writes(member.goal):
            return member.goal
    raise EditError("the agent has no slot, or none that can express one of these goals")
