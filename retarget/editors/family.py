"""Families: the shortest edit found for each of several goals of one agent, with what was left out and why."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

from retarget.agent import Agent
from retarget.digest import digest_of
from retarget.editors.base import Candidate, Draws, Editor, Task, draws, prove, shortest
from retarget.editors.exceptions import ExceptionEditor
from retarget.editors.fitted import FittedEditor
from retarget.editors.hunt import Hunt, OutOfBudgetError
from retarget.editors.retrain import RetrainEditor
from retarget.editors.slot import SlotEditor
from retarget.editors.sparse import SparseEditor
from retarget.editors.table import TableEditor
from retarget.editors.weights import RetrainWeightsEditor, SparseWeightsEditor, refine
from retarget.errors import EditError
from retarget.goal import Goal
from retarget.spend import Spend
from retarget.world import FiniteWorld, World

#: Members that are kept, so that two probes of one agent search once.
KEPT = 256


class GrownWeightsEditor(SparseWeightsEditor):
    """The first half of `SparseWeightsEditor`: numbers added as they are needed, tuned in few and large steps. For many
    goals of one network: a third of the time, edits about as short."""

    name: ClassVar[str] = "grown_weights"

    def _from(self, hunt: Hunt) -> None:
        try:
            found = self._grown(hunt)
            if found is not None:
                refine(hunt, *found, steps=self.steps * 3 // 5, lr=self.lr)
        except OutOfBudgetError:
            pass


#: Editors in the order that they are asked in; those of a later stage only where no earlier one has an edit that
#: suffices. The first are done in milliseconds; the others follow the gradients of a network.
Stages = tuple[tuple[Editor, ...], ...]


def quick_editors() -> Stages:
    """The default editors but for those that follow gradients; then sparse weights alone; then all weights retrained.

    >>> [[e.name for e in stage] for stage in quick_editors()][1:]
    [['grown_weights'], ['retrain_weights']]
    """
    first = (SlotEditor(), TableEditor(), FittedEditor(), SparseEditor(), RetrainEditor(), ExceptionEditor())
    return first, (GrownWeightsEditor(steps=50, lr=0.1),), (RetrainWeightsEditor(),)


def stages_of(name: str) -> Stages:
    """`quick` or `full`: `quick_editors`, or all default editors at once.

    Raises:
        EditError: for another name.
    """
    if name == "quick":
        return quick_editors()
    if name == "full":
        from retarget.editors import default_editors

        return (default_editors(),)
    raise EditError(f"editors are 'quick' or 'full', got {name!r}")


@dataclass(frozen=True, eq=False)
class Member:
    """One goal of a family.

    Attributes:
        task: the question; its goal is `goal`.
        seen: whether it is a training goal.
        found: the shortest edit found that meets the requirement, None where none does.
    """

    task: Task
    seen: bool
    found: Candidate | None

    @property
    def goal(self) -> Goal:
        return self.task.goal

    @cached_property
    def agent(self) -> Agent:
        """The edited agent. Raises EditError where no edit was found."""
        if self.found is None:
            raise EditError(f"no edit was found for goal {self.goal.label}; ask for members that are `used`")
        return self.found.edit.apply(self.task.agent)


@dataclass(frozen=True, eq=False)
class Family:
    """The edits of one agent for several goals.

    Attributes:
        agent: before any edit.
        competence: its own, on the goal that it has.
        members: goals that there was something to ask about, training goals first.
        left_out: goals that the unedited agent already meets, or that cannot be met, each with the reason.
    """

    agent: Agent
    competence: float
    members: tuple[Member, ...]
    left_out: tuple[tuple[Goal, str], ...] = ()

    @property
    def used(self) -> tuple[Member, ...]:
        """Members with an edit."""
        return tuple(m for m in self.members if m.found is not None)

    @property
    def world(self) -> World:
        """Raises EditError for a family without members."""
        if not self.members:
            raise EditError("a family of no goals has no world; look at its `left_out` first")
        return self.members[0].task.world

    @property
    def bits(self) -> int:
        """Sum of the single edits, in bits."""
        return sum(m.found.bits for m in self.used if m.found is not None)

    @property
    def spend(self) -> Spend:
        """What finding the edits took, added up."""
        total = Spend()
        for m in self.used:
            total = total + (m.found.spend if m.found is not None else Spend())
        return total

    def part(self, *, seen: bool) -> Family:
        """The training goals alone, or the held-out ones."""
        return replace(self, members=tuple(m for m in self.members if m.seen == seen), left_out=())


def family(
    agent: Agent, competence: float, tasks: Iterable[tuple[Task, bool]], *, stages: Stages | None = None,
    left_out: Sequence[tuple[Goal, str]] = (),
) -> Family:  # fmt: skip
    """Search the shortest edit for each task; n goals at once give what n single searches give.

    Args:
        agent: the agent of all tasks.
        competence: its own, on the goal that it has.
        tasks: each with whether its goal is a training goal.
        stages: who searches; `quick_editors` by default.
        left_out: goals that there is nothing to ask about, to be counted.

    >>> import retarget
    >>> from retarget.agents import exact_planner
    >>> from retarget.judge import judge_of
    >>> world = retarget.make_world("OpenGrid", size=5)
    >>> agent = exact_planner(world, world.goals[0])
    >>> asked = [(Task(agent, world, judge_of(world, g, gamma=0.95), 0.95), True) for g in world.goals[1:3]]
    >>> [m.found.editor for m in family(agent, 1.0, asked).used]
    ['slot', 'slot']
    """
    who = stages if stages is not None else quick_editors()
    members = tuple(Member(task, seen, searched(task, who)) for task, seen in tasks)
    return Family(agent, competence, members, tuple(left_out))


_FOUND: OrderedDict[tuple[object, ...], Candidate | None] = OrderedDict()


def searched(task: Task, stages: Stages) -> Candidate | None:
    """The shortest edit that the stages find for a task, proven; None where they find none that suffices.

    The last few are kept in the process, by everything that they depend on.
    """
    key = _key(task, stages)
    if key not in _FOUND:
        _FOUND[key] = _search(task, stages)
        while len(_FOUND) > KEPT:
            _FOUND.popitem(last=False)
    _FOUND.move_to_end(key)
    return _FOUND[key]


def _search(task: Task, stages: Stages) -> Candidate | None:
    for editors in stages:
        best = shortest(task, [c for editor in editors for c in editor.search(task)])
        if best is not None:
            prove(task, best)
            return best
    return None


def forget() -> None:
    """Drop the searches that were kept. For tests of determinism."""
    _FOUND.clear()


def _key(task: Task, stages: Stages) -> tuple[object, ...]:
    world, check = task.world, task.check
    seeds = (check.own.goal, check.level, check.seeds) if isinstance(check, Draws) else ()
    who = tuple((type(e).__name__, *sorted((k, repr(v)) for k, v in vars(e).items())) for s in stages for e in s)
    return (
        task.agent.digest, _of_world(world), task.goal, task.judge.gamma, task.required, task.budget, task.seed,
        task.frozen, seeds, who,
    )  # fmt: skip


def _of_world(world: World) -> str:
    if isinstance(world, FiniteWorld):
        arrays = [("starts", world.start_states)]
        arrays += [] if world.coordinates is None else [("coordinates", world.coordinates)]
        return digest_of(world.spec_data.label, {"model": world.model.digest}, arrays)
    return world.spec_data.label


def question_of_table(task: Task, table: Agent) -> Task:
    """The same question to another agent, without the check of seeds where that one draws nothing."""
    check = None if isinstance(task.check, Draws) and not draws(table) else task.check
    return replace(task, agent=table, check=check)
