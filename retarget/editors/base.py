"""What an editor is: a search for edits under a budget, and the exact judge that scores what it finds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar, Protocol

import numpy as np

from retarget.agent import Agent, HasDraws, Layout
from retarget.code import ENUMERATIVE, FIXED_WIDTH
from retarget.edit import Dense, Edit, Patch, Slot, Sparse
from retarget.errors import EditError
from retarget.exact import Yardstick
from retarget.goal import Goal
from retarget.rng import word
from retarget.row import FrontierPoint
from retarget.spend import Spend
from retarget.trials import Score, Trials
from retarget.world import FiniteModel, FiniteWorld, World

#: How close two exact competences must be to count as equal.
TOLERANCE = 1e-9


#: Candidates that are tried on other starts, or with other random numbers, the shortest first.
MOST_CHECKED = 64

#: Seeds that finalists are tried with first, and those that they are tried with after, where an agent draws numbers.
SCREENED, CONFIRMED = 5, 15


#: Standard errors of the first seeds' mean by which an edit must be short to be given up.
_CLEARLY = 3.0


@dataclass(frozen=True, eq=False)
class Draws:
    """Judges an agent that draws random numbers with fresh seeds, where the search for edits saw one draw alone.

    Attributes:
        agent: as it is, before any edit.
        own, judge: exact judges of goals A and B.
        level: share of the agent's own mean competence on A, over the same seeds, that counts as retargeted.
        seeds: fresh ones.
    """

    agent: Agent
    own: Yardstick
    judge: Yardstick
    level: float
    seeds: tuple[int, ...]

    @classmethod
    def of(
        cls, agent: Agent, own: Yardstick, judge: Yardstick, *, level: float, seed: int, purpose: str = "check"
    ) -> Draws:  # fmt: skip
        """With seeds named by (seed, purpose)."""
        n = SCREENED + CONFIRMED
        return cls(agent, own, judge, level, tuple(word(seed, "draws", purpose, i) for i in range(n)))

    @cached_property
    def screen(self) -> Draws:
        """With the first few seeds: what is clearly short of the requirement needs no more."""
        return replace(self, seeds=self.seeds[:SCREENED])

    @cached_property
    def rest(self) -> Draws:
        """With the others."""
        return replace(self, seeds=self.seeds[SCREENED:])

    def holds(self, edited: Agent) -> tuple[bool, Spend]:
        """Whether an edited agent meets the requirement, as its mean over all seeds, and what it took to tell.

        It is given up after the first seeds where they are clearly short of it: by more than three standard errors.
        """
        first = self.screen.score(edited)
        spent = Spend(simulations=first.n, flops=first.flops)
        wide = 0.0 if first.ci_high is None else (first.ci_high - first.competence) * _CLEARLY / 1.96
        high = first.competence + wide
        if high < self.screen.required - TOLERANCE:
            return False, spent
        more = self.rest.score(edited)
        spent = spent + Spend(simulations=more.n, flops=more.flops)
        n, m = len(self.screen.seeds), len(self.rest.seeds)
        required = (n * self.screen.required + m * self.rest.required) / (n + m)
        return (n * first.competence + m * more.competence) / (n + m) >= required - TOLERANCE, spent

    @cached_property
    def required(self) -> float:
        """Mean competence on B that counts as retargeted. Taken when it is first asked for."""
        return self.level * float(np.mean([self.own.score(a).competence for a in self._seeded(self.agent)]))

    @cached_property
    def _kept(self) -> dict[str, Score]:
        return {}

    def _seeded(self, agent: Agent) -> list[Agent]:
        if not isinstance(agent, HasDraws):  # pragma: no cover - tasks of agents that draw nothing have no such check
            return [agent]
        return [agent.reseeded(seed) for seed in self.seeds]

    def score(self, agent: Agent) -> Score:
        """Mean over the seeds on B, with a normal 95% interval over them; each agent is judged once."""
        if agent.digest not in self._kept:
            scores = [self.judge.score(a) for a in self._seeded(agent)]
            values = np.array([s.competence for s in scores])
            half = 1.96 * float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 1.0
            mean = float(values.mean())
            self._kept[agent.digest] = Score(
                mean, float(np.mean([s.success for s in scores])), len(values), max(0.0, mean - half),
                min(1.0, mean + half), sum(s.env_steps for s in scores), sum(s.flops for s in scores),
            )  # fmt: skip
        return self._kept[agent.digest]


def draws(agent: Agent) -> bool:
    """Whether an agent's decisions rest on random numbers that a seed names."""
    return isinstance(agent, HasDraws) and agent.draws


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
        check: where competence is estimated, a judge on other starts, on which a find must hold too; for an agent that
            draws random numbers, one with other seeds; None elsewhere.
        frozen: names of parts that no edit may touch. Candidates that do are not counted (`allowed`); editors that know
            better do not build them.
    """

    agent: Agent
    world: World
    judge: Yardstick | Trials
    required: float
    budget: int = 4096
    seed: int = 0
    check: Trials | Draws | None = None
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

    def holds(self, candidate: Candidate) -> tuple[bool, Spend]:
        """Whether a candidate that meets the requirement also meets that of the check, and what trying it with other
        seeds took (other starts are no part of the search)."""
        if self.check is None:
            return True, Spend()
        edited = candidate.edit.apply(self.agent)
        if isinstance(self.check, Draws):
            return self.check.holds(edited)
        return self.enough(self.check.score(edited).competence), Spend()


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
    edits that just pass on its own starts would else be believed too often. Where the agent draws random numbers, it
    must meet it with other seeds, for the same reason; what that took is added to its spend.
    """
    spent = Spend()
    good = sorted((c for c in candidates if task.enough(c.competence)), key=lambda c: (c.bits, c.spend.flops, c.editor))
    for candidate in good[:MOST_CHECKED]:
        held, spend = task.holds(candidate)
        spent = spent + spend
        if held:
            return replace(candidate, spend=candidate.spend + spent) if spent != Spend() else candidate
    return None


def plain_bits(edit: Edit, layout: Layout) -> int:
    """Length in the fixed-width code."""
    return FIXED_WIDTH.length(edit, layout)
