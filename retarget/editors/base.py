"""What an editor is: a search for edits under a budget, and the exact judge that scores what it finds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol

import numpy as np

from retarget.agent import Agent, Layout
from retarget.code import ENUMERATIVE, FIXED_WIDTH
from retarget.edit import Dense, Edit, Patch, Slot, Sparse
from retarget.errors import EditError
from retarget.exact import Yardstick
from retarget.goal import Goal
from retarget.row import FrontierPoint
from retarget.spend import Spend
from retarget.trials import Score, Trials
from retarget.world import FiniteModel, FiniteWorld, World

#: How close two exact competences must be to count as equal.
TOLERANCE = 1e-9


#: Candidates that are tried on other starts, the shortest first.
MOST_CHECKED = 64


@dataclass(frozen=True, eq=False)
class Task:
    """What an editor is asked: give `agent` the goal of `judge`.

    Attributes:
        agent: the agent to edit.
        world: where.
        judge: scores behaviour on goal B, exactly in a finite world.
        required: competence that counts as retargeted, in (0, 1].
        budget: most candidate agents that the editor may build and score.
        seed: names the random streams.
        check: where competence is estimated, a judge on other starts, on which a find must hold too; None elsewhere.
        frozen: names of parts that no edit may touch. Candidates that do are not counted (`allowed`); editors that know
            better do not build them.
    """

    agent: Agent
    world: World
    judge: Yardstick | Trials
    required: float
    budget: int = 4096
    seed: int = 0
    check: Trials | None = None
    frozen: frozenset[str] = frozenset()

    @property
    def goal(self) -> Goal:
        return self.judge.goal

    @property
    def exact(self) -> tuple[FiniteModel, Yardstick] | None:
        """The exact model and judge, in a finite world and for an agent without memory; None elsewhere."""
        if isinstance(self.judge, Yardstick) and isinstance(self.world, FiniteWorld) and not self.agent.has_memory:
            return self.world.model, self.judge
        return None

    def allowed(self, edit: Edit) -> bool:
        """Whether an edit leaves the frozen parts alone."""
        return not self.frozen.intersection(edit.parts_touched)

    def enough(self, competence: float) -> bool:
        """Whether a competence meets the requirement."""
        return competence >= self.required - TOLERANCE


@dataclass(frozen=True, eq=False)
class Candidate:
    """An edit with what it buys, exactly, and what finding it took (from the start of its editor's search)."""

    editor: str
    edit: Edit
    bits: int
    competence: float
    spend: Spend


class Editor(Protocol):
    """A search for edits. Returns any number of candidates; none where it has nothing to offer for this agent."""

    name: ClassVar[str]

    def search(self, task: Task) -> Sequence[Candidate]: ...


@dataclass(eq=False)
class Scorer:
    """Builds and scores candidate agents, and keeps the account of what that took."""

    task: Task
    editor: str
    spend: Spend = field(default_factory=Spend)

    def score(self, agent: Agent) -> float:
        """Competence of an agent on B; counts its decisions (planned once for all states) and the evaluation."""
        found: Score = self.task.judge.score(agent)
        self.spend = self.spend + Spend(simulations=1, env_steps=found.env_steps, flops=found.flops)
        return found.competence

    def candidate(self, edit: Edit, competence: float) -> Candidate:
        bits = ENUMERATIVE.length(edit, self.task.agent.layout)
        return Candidate(self.editor, edit, bits, competence, self.spend)


def shortest_form(agent: Agent, edit: Edit) -> Edit:
    """The same change written in the fewest bits: each patch sparse, as a slot, or dense, whichever is shorter.

    Low-rank patches stay as they are: written out, they would not give the same rounding.
    """
    kept = tuple(p for p in edit.patches if _rewrites(agent, p) != [None])
    best, before = replace(edit, patches=kept), -1
    # the patches share one rounding, so that the shortest form of one can depend on that of another
    while before != (before := ENUMERATIVE.length(best, agent.layout)):
        for patch in best.patches:
            options = [best, *(_swap(best, patch, p) for p in _rewrites(agent, patch))]
            best = min(options, key=lambda e: ENUMERATIVE.length(e, agent.layout))
    return best


def _swap(edit: Edit, old: Patch, new: Patch | None) -> Edit:
    patches = tuple(new if p.part == old.part else p for p in edit.patches)
    return replace(edit, patches=tuple(p for p in patches if p is not None))


def _rewrites(agent: Agent, patch: Patch) -> list[Patch | None]:
    if patch.kind == "lowrank":
        return []
    part = agent.parts[patch.part]
    old, new = part.array.reshape(-1), patch.write(part.array).reshape(-1)
    changed = np.flatnonzero(old.view(np.int64) != new.view(np.int64))
    if not changed.size:
        return [None]
    out: list[Patch | None] = [
        Sparse(patch.part, changed, new[changed]),
        Dense(patch.part, new.reshape(part.array.shape)),
    ]
    values, counts = np.unique(new, return_counts=True)
    rest = values[counts.argmax()]
    named = np.flatnonzero(new != rest)
    out.append(Slot(patch.part, float(rest), named, new[named]))
    legal: list[Patch | None] = []
    layout = next(p for p in agent.layout if p.name == patch.part)
    for option in out:
        try:
            if option is not None:
                option.check(layout)
                # -0.0 and 0.0 are different bits: a rewrite must write the very same cells
                if (option.write(part.array).reshape(-1).view(np.int64) == new.view(np.int64)).all():
                    legal.append(option)
        except EditError:
            continue
    return legal


def prove(task: Task, candidate: Candidate) -> None:
    """Raise EditError unless applying the edit gives the competence that the search promised."""
    edited = candidate.edit.apply(task.agent)
    found = task.judge.score(edited).competence
    if abs(found - candidate.competence) > TOLERANCE:
        raise EditError(
            f"editor {candidate.editor!r} promised competence {candidate.competence:.12g}, "
            f"the edited agent has {found:.12g}; the editor is broken"
        )


def points(task: Task, candidates: Iterable[Candidate], *, subject: str) -> tuple[FrontierPoint, ...]:
    """Candidates as points of a frontier: sorted by length, Pareto front marked."""
    ordered = sorted(candidates, key=lambda c: (c.bits, -c.competence, c.editor))
    out: list[FrontierPoint] = []
    best = -1.0
    for c in ordered:
        edited = c.edit.apply(task.agent)
        on_front = c.competence > best + TOLERANCE
        best = max(best, c.competence)
        out.append(
            FrontierPoint(
                editor=c.editor,
                subject=subject,
                bits=c.bits,
                plain_bits=FIXED_WIDTH.length(c.edit, task.agent.layout),
                competence=c.competence,
                success=task.judge.score(edited).success,
                n_cells=c.edit.n_cells,
                parts="+".join(c.edit.parts_touched),
                spend=c.spend,
                on_front=on_front,
            )
        )
    return tuple(out)


def shortest(task: Task, candidates: Iterable[Candidate]) -> Candidate | None:
    """The shortest candidate that meets the requirement, None where none does. Ties: least spend, then name.

    Where competence is estimated, it must meet it on the starts of `task.check` too: a search that keeps the shortest
    edits that just pass on its own starts would else be believed too often.
    """
    good = sorted((c for c in candidates if task.enough(c.competence)), key=lambda c: (c.bits, c.spend.flops, c.editor))
    if task.check is None:
        return good[0] if good else None
    for candidate in good[:MOST_CHECKED]:
        if task.enough(task.check.score(candidate.edit.apply(task.agent)).competence):
            return candidate
    return None


def plain_bits(edit: Edit, layout: Layout) -> int:
    """Length in the fixed-width code."""
    return FIXED_WIDTH.length(edit, layout)
