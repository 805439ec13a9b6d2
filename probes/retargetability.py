"""Retargetability: the length of the change against the length of the difference in behaviour that it buys."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import numpy as np

from retarget.agent import Agent, Categorical
from retarget.agents.compiled import compile_policy
from retarget.agents.wrappers import Padded
from retarget.code import ENUMERATIVE, FIXED_WIDTH
from retarget.edit import Edit, Slot, Sparse, difference
from retarget.editors import Candidate, Editor, RandomEditor, Task, default_editors, points, prove, shortest
from retarget.editors.base import MOST_CHECKED, Draws, draws
from retarget.editors.bound import fewest_cells_for_level, fewest_cells_for_success
from retarget.editors.exceptions import behaviour_of
from retarget.errors import AgentError, GoalError
from retarget.exact import Yardstick, policy_table
from retarget.judge import Judge, judge_of
from retarget.probe import UNIVERSAL_LAWS, Law, Metric, Outcome, Probe, Progress, Subject
from retarget.row import FrontierPoint, Kind, Measurement
from retarget.trials import Trials
from retarget.world import FiniteWorld

_BITS = "least over editors: an upper bound"


class Retargetability(Probe):
    """How cheaply the agent's goal can be changed from A to B, at the required competence.

    `retargetability = log2(behaviour_bits / edit_bits)`, where `edit_bits` is the shortest edit found of the agent,
    and `behaviour_bits` the shortest found of the table compiled from it (same editors, same code).

    Args:
        editors: who competes; by default slot, table, sparse and retrain.
        draws: number of random edits in the control.
        dead: number of dead cells in the control of location bits.
        budget: most candidates that one editor may build and score.

    >>> import retarget
    >>> from retarget.agents import exact_planner
    >>> world = retarget.make_world("FourRooms", size=9)
    >>> a, b = world.as_goal((1, 1)), world.as_goal((7, 7))
    >>> outcome = Retargetability(draws=4).measure(retarget.Subject(exact_planner(world, a), world, a, b))
    >>> outcome["edit_bits"].editor, outcome["retargetability"].value > 1
    ('slot', True)
    """

    name: ClassVar[str] = "retargetability"
    kind: ClassVar[Kind] = "experiment"
    needs_goal_b: ClassVar[bool] = True
    metrics: ClassVar = {
        "competence_a": Metric("1", "competence on the agent's own goal", 0.0, 1.0, "evaluation"),
        "required_competence": Metric(
            "1", "level times competence_a: what counts as retargeted", 0.0, 1.0, "observation"
        ),
        "competence_b_before": Metric("1", "competence on B of the unedited agent", 0.0, 1.0, "evaluation"),
        "competence_b_after": Metric("1", "competence on B of the agent with the shortest edit applied", 0.0, 1.0),
        "competence_b_fresh": Metric("1", "the same on fresh starts, where estimated, or with fresh seeds", 0.0, 1.0),
        "edit_bits": Metric("bit", f"length of the shortest edit of the agent, {_BITS}", 0.0, None),
        "behaviour_bits": Metric("bit", f"the same for the table compiled from the agent, {_BITS}", 0.0, None),
        "retargetability": Metric("log2", "log2(behaviour_bits / edit_bits)", None, None),
        "edit_bits_plain": Metric("bit", "length of the shortest edit in the fixed-width code", 0.0, None),
        "behaviour_bits_plain": Metric("bit", "the same for the compiled table", 0.0, None),
        "retargetability_plain": Metric("log2", "log2 of the ratio of the two above", None, None),
        "blank_bits": Metric("bit", f"the same for the agent before training, {_BITS}", 0.0, None),
        "blank_ratio": Metric("1", "edit_bits / blank_bits: below 1, what the agent knows saves bits", 0.0, None),
        "compute_ratio": Metric("1", "operations to find the edit, over those for the blank's", 0.0, None),
        "kt_bits": Metric("bit", "edit_bits + log2(operations to find the edit), Levin's Kt", 0.0, None),
        "random_competence": Metric("1", "control: mean competence on B after random edits of the same size", 0.0, 1.0),
        "random_success_rate": Metric("1", "control: share of those random edits that meet the requirement", 0.0, 1.0),
        "dead_location_bits": Metric("bit", "control: what dead cells in the edited part add to the edit", 0.0, None),
        "cells_bare_success": Metric("cells", "fewest table cells found for reaching B from every start", 0.0, None),
        "cells_bare_success_bound": Metric(
            "cells", "proven fewest for that (minimum-cost arborescence)", 0.0, None, "characterization"
        ),
        "cells_found": Metric("cells", "fewest table cells found for the required competence", 0.0, None),
        "cells_bound": Metric("cells", "proven lower bound on that", 0.0, None, "characterization"),
    }  # fmt: skip
    # not `relabel_invariant` as it stands: retraining draws its episodes by the names of states; without the editors
    # that retrain it is, and a test holds it to that
    laws: ClassVar[frozenset[Law]] = UNIVERSAL_LAWS

    def __init__(
        self, *, editors: Sequence[Editor] | None = None, draws: int = 32, dead: int = 64, budget: int = 4096
    ) -> None:
        self.editors = tuple(editors) if editors is not None else default_editors()
        self.draws, self.dead, self.budget = draws, dead, budget

    def measure(self, subject: Subject, *, progress: Progress | None = None) -> Outcome:
        tell = progress or (lambda done, words: None)
        if subject.goal_b is None:
            return self.all_not_applicable("no goal B was given")
        try:
            known, task, nothing = asked(subject, self.budget)
        except (GoalError, AgentError) as error:
            return self.all_not_applicable(str(error))
        if task is None:
            return closed(self, known, nothing)

        tell(0.1, "editing the agent")
        agent = task.agent
        table = compiled(task)
        found = self._search(task)
        tell(0.4, "editing its compiled table")
        of_table = found if table.digest == agent.digest else self._search(_of(task, table))
        tell(0.7, "editing its blank")
        blank = agent.blank(subject.seed)
        of_blank = self._search(_of(task, blank))
        tell(0.9, "controls")
        search = _Search(task, found, _of(task, table), of_table, _of(task, blank), of_blank)
        measurements = {m.metric: m for m in (*known, *search.lengths(), *self._controls(search), *search.cells())}
        return Outcome(tuple(measurements[name] for name in self.metrics), search.frontier())

    def _search(self, task: Task) -> tuple[Candidate, ...]:
        return tuple(c for editor in self.editors for c in editor.search(task))

    def _controls(self, search: _Search) -> list[Measurement]:
        best = search.best
        if best is None:
            reason = "there is no edit to compare with"
            names = ("random_competence", "random_success_rate", "dead_location_bits")
            return [Measurement.not_applicable(n, reason) for n in names]
        drawn = RandomEditor(best.edit, draws=self.draws).search(search.task)
        competence = np.array([c.competence for c in drawn])
        hits = float(np.mean([search.task.enough(c) for c in competence]))
        low, high = _interval(competence)
        return [
            Measurement.ok("random_competence", competence.mean(), ci_low=low, ci_high=high, n=self.draws),
            Measurement.ok("random_success_rate", hits, n=self.draws),
            _dead_cells(search.task, best, self.dead),
        ]


def asked(subject: Subject, budget: int) -> tuple[tuple[Measurement, ...], Task | None, str]:
    """What a subject asks of the editors.

    Returns:
        Competences before any edit; the task, or None where there is nothing to measure; and the reason why not.

    Raises:
        GoalError, AgentError: where its competence cannot be measured.
    """
    agent, world, goal_b = subject.agent, subject.world, subject.goal_b
    if goal_b is None:
        return (), None, "no goal B was given"
    own = judge_of(world, subject.goal_a, gamma=subject.gamma, seed=subject.seed)
    judge = judge_of(world, goal_b, gamma=subject.gamma, seed=subject.seed)
    level = Level(own.score(agent).competence, judge.score(agent).competence, subject.level)
    nothing = level.nothing_to_measure(own.uniform_competence, judge.uniform_competence)
    if not nothing and not agent.parts:
        nothing = "it exposes no parts: there is nothing to edit"
    if nothing:
        return level.measurements(), None, nothing
    check: Trials | Draws | None = None
    if isinstance(judge, Yardstick) and isinstance(own, Yardstick) and draws(agent):
        check = Draws.of(agent, own, judge, level=subject.level, seed=subject.seed)
    if isinstance(judge, Trials):
        check = Trials.of(judge.world, judge.goal, gamma=judge.gamma, n=256, seed=subject.seed, purpose="check")
    task = Task(agent, world, judge, level.required, budget, subject.seed, check)
    return level.measurements(), task, ""


def closed(probe: Probe, known: Sequence[Measurement], reason: str) -> Outcome:
    """What is known, and every other metric of the probe as `not_applicable` for one reason."""
    have = {m.metric: m for m in known}
    return Outcome(tuple(have.get(n, Measurement.not_applicable(n, reason)) for n in probe.metrics))


@dataclass(frozen=True)
class Level:
    """An agent's competence on A and on B before any edit, and the share of the first that counts as retargeted.

    Attributes:
        competence_a, before: in [0, 1].
        level: in (0, 1].
    """

    competence_a: float
    before: float
    level: float

    @property
    def required(self) -> float:
        return self.level * self.competence_a

    def measurements(self) -> tuple[Measurement, ...]:
        return (
            Measurement.ok("competence_a", self.competence_a),
            Measurement.ok("required_competence", self.required),
            Measurement.ok("competence_b_before", self.before),
        )

    def nothing_to_measure(self, uniform: float, uniform_b: float) -> str:
        if self.competence_a <= uniform + 1e-9:
            return (
                f"its competence on A ({self.competence_a:.4g}) is not above "
                f"a uniform policy's ({uniform:.4g}): it has no goal to change"
            )
        if self.before >= self.required - 1e-9:
            return f"unedited, it already reaches B ({self.before:.4g}, required {self.required:.4g})"
        if self.required <= uniform_b + 1e-9:
            return f"a uniform policy already reaches B as required ({uniform_b:.4g}, required {self.required:.4g})"
        return ""


def compiled(task: Task) -> Agent:
    """The table of an agent's behaviour: over states where they can be listed, else exceptions to what it does now."""
    if task.exact is not None and isinstance(task.world, FiniteWorld):
        return compile_policy(task.agent, task.world)
    return behaviour_of(task.agent, task)


def _of(task: Task, agent: Agent) -> Task:
    """The same question to another agent, without the check of seeds where that one draws nothing."""
    check = None if isinstance(task.check, Draws) and not draws(agent) else task.check
    return replace(task, agent=agent, check=check)


def _interval(values: np.ndarray) -> tuple[float | None, float | None]:
    """Normal 95% interval of a mean in [0, 1]; None for one draw."""
    if values.size < 2:
        return None, None
    half = 1.96 * float(values.std(ddof=1)) / math.sqrt(values.size)
    mean = float(values.mean())
    return max(0.0, mean - half), min(1.0, mean + half)


@dataclass(frozen=True, eq=False)
class _Search:
    """What the editors found for the agent, for its compiled table and for its blank."""

    task: Task
    found: tuple[Candidate, ...]
    table_task: Task
    of_table: tuple[Candidate, ...]
    blank_task: Task
    of_blank: tuple[Candidate, ...]

    @cached_property
    def best(self) -> Candidate | None:
        return shortest(self.task, self.found)

    def lengths(self) -> list[Measurement]:
        best, table = self.best, shortest(self.table_task, self.of_table)
        out = [length_of("edit_bits", self.task, best, self.found)]
        out.append(length_of("behaviour_bits", self.table_task, table, self.of_table))
        out.append(_log_ratio("retargetability", table.bits if table else None, best.bits if best else None))
        plain = _least_plain(self.task, self.found), _least_plain(self.table_task, self.of_table)
        out.append(_plain("edit_bits_plain", plain[0], out[0].reason))
        out.append(_plain("behaviour_bits_plain", plain[1], out[1].reason))
        out.append(_log_ratio("retargetability_plain", plain[1], plain[0]))
        if best is None:
            reason = out[0].reason
            out += [Measurement.failed(n, reason) for n in ("kt_bits", "competence_b_after")]
        else:
            prove(self.task, best)
            out.append(Measurement.ok("kt_bits", best.spend.kt_bits(best.bits), spend=best.spend))
            out.append(Measurement.ok("competence_b_after", best.competence))
        out.append(self._fresh(best))
        if table is not None:
            prove(self.table_task, table)
        return out + self._blank(best)

    def _fresh(self, best: Candidate | None) -> Measurement:
        """The shortest edit on starts, or with seeds, that its search never saw (nor the check of finalists)."""
        name, judge, check = "competence_b_fresh", self.task.judge, self.task.check
        fresh: Judge | Draws
        if isinstance(judge, Trials):
            fresh = judge_of(judge.world, judge.goal, gamma=judge.gamma, seed=judge.seed, n=256, purpose="test")
        elif isinstance(check, Draws):
            seed = self.task.seed
            fresh = Draws.of(check.agent, check.own, check.judge, level=check.level, seed=seed, purpose="test")
        else:
            return Measurement.not_applicable(name, "competence_b_after is exact, over every start")
        if best is None:
            return Measurement.failed(name, "there is no edit to try")
        score = fresh.score(best.edit.apply(self.task.agent))
        return Measurement.ok(name, score.competence, ci_low=score.ci_low, ci_high=score.ci_high, n=score.n)

    def _blank(self, best: Candidate | None) -> list[Measurement]:
        names = ("blank_bits", "blank_ratio", "compute_ratio")
        before = self.task.judge.score(self.blank_task.agent).competence
        if self.task.enough(before):
            return [Measurement.not_applicable(n, f"the blank already reaches B ({before:.4g})") for n in names]
        blank = shortest(self.blank_task, self.of_blank)
        bits = length_of("blank_bits", self.blank_task, blank, self.of_blank)
        if blank is None or best is None:
            reason = "there is no edit of the agent" if best is None else bits.reason
            return [bits, *(Measurement.failed(n, reason) for n in names[1:])]
        prove(self.blank_task, blank)
        compute = best.spend.flops / max(blank.spend.flops, 1.0)
        return [
            bits,
            Measurement.ok("blank_ratio", best.bits / blank.bits),
            Measurement.ok("compute_ratio", compute, spend=best.spend),
        ]

    def cells(self) -> list[Measurement]:
        """Fewest cells of the compiled table, found and proven, for bare success and for the required level."""
        task = self.table_task
        if task.exact is None:
            names = ("cells_bare_success", "cells_bare_success_bound", "cells_found", "cells_bound")
            reason = "cells are counted in finite worlds, for agents without memory"
            return [Measurement.not_applicable(n, reason) for n in names]
        model, judge = task.exact
        probs = policy_table(task.agent, model)
        bare = level = None
        for candidate in self.of_table:
            edited = candidate.edit.apply(task.agent)
            # cells that come out different: a table filled and then written has changed more than it names
            changed = difference(task.agent, edited).n_cells
            if task.enough(candidate.competence):
                level = min(changed, level) if level is not None else changed
            if judge.success(policy_table(edited, model)) >= 1.0:
                bare = min(changed, bare) if bare is not None else changed
        reasons = "no table edit was found that does it"
        bare_reason = "the bound needs every state that can reach B to be a start"
        level_reason = "the bound takes S² memory: at most 1,024 states"
        return [
            _count("cells_bare_success", bare, reasons),
            _proven("cells_bare_success_bound", fewest_cells_for_success(judge, probs), bare_reason),
            _count("cells_found", level, reasons),
            _proven("cells_bound", fewest_cells_for_level(judge, probs, task.required), level_reason),
        ]

    def frontier(self) -> tuple[FrontierPoint, ...]:
        return (
            *points(self.task, self.found, subject="agent"),
            *points(self.table_task, self.of_table, subject="table"),
            *points(self.blank_task, self.of_blank, subject="blank"),
        )


def _count(metric: str, value: int | None, reason: str) -> Measurement:
    return Measurement.failed(metric, reason) if value is None else Measurement.ok(metric, value)


def _proven(metric: str, value: int | None, reason: str) -> Measurement:
    return Measurement.not_applicable(metric, reason) if value is None else Measurement.ok(metric, value)


def length_of(metric: str, task: Task, best: Candidate | None, found: Sequence[Candidate]) -> Measurement:
    """The length of the shortest edit, or why there is none among those found."""
    if best is None:
        top = max((c.competence for c in found), default=None)
        if top is not None and task.enough(top):
            return Measurement.failed(metric, f"required competence {task.required:.4g} was not met {elsewhere(task)}")
        reached = "no editor has an edit to offer" if top is None else f"the best edit reaches {top:.4g}"
        return Measurement.failed(metric, f"required competence {task.required:.4g} was not reached: {reached}")
    return Measurement.ok(
        metric, best.bits, editor=best.editor, parts="+".join(best.edit.parts_touched), n_cells=best.edit.n_cells,
        spend=best.spend, code=ENUMERATIVE.name,
    )  # fmt: skip


def elsewhere(task: Task) -> str:
    """Where an edit has to hold beside where it was sought, in words."""
    return "with other seeds" if isinstance(task.check, Draws) else "on other starts"


def _least_plain(task: Task, found: Sequence[Candidate]) -> int | None:
    good = ((FIXED_WIDTH.length(c.edit, task.agent.layout), c) for c in found if task.enough(c.competence))
    ordered = sorted(good, key=lambda pair: pair[0])
    if isinstance(task.check, Draws):
        return next((bits for bits, c in ordered[:MOST_CHECKED] if task.holds(c)[0]), None)
    return ordered[0][0] if ordered else None


def _plain(metric: str, bits: int | None, reason: str) -> Measurement:
    return Measurement.failed(metric, reason) if bits is None else Measurement.ok(metric, bits, code=FIXED_WIDTH.name)


def _log_ratio(metric: str, above: float | None, below: float | None) -> Measurement:
    if above is None or below is None:
        which = "behaviour" if above is None else "agent"
        return Measurement.failed(metric, f"no edit of the {which} met the requirement")
    return Measurement.ok(metric, math.log2(above / below))


def _dead_cells(task: Task, best: Candidate, n_dead: int) -> Measurement:
    """Lengthen the edited part by dead cells: the same edit must do the same, for location bits more."""
    movable = [p for p in best.edit.patches if isinstance(p, (Sparse, Slot))]
    if len(movable) != len(best.edit.patches) or not movable:
        reason = "the shortest edit writes a whole part: it has no locations for dead cells to lengthen"
        return Measurement.not_applicable("dead_location_bits", reason)
    part = task.agent.parts[movable[-1].part]
    dead = np.zeros(n_dead) if not isinstance(part.alphabet, Categorical) else np.zeros(n_dead, np.int64)
    padded = Padded(task.agent, part.name, dead)
    edit = Edit.of(padded, *best.edit.patches)
    competence = task.judge.score(edit.apply(padded)).competence
    if abs(competence - best.competence) > 1e-12:
        return Measurement.failed(
            "dead_location_bits", f"dead cells changed competence from {best.competence:.12g} to {competence:.12g}"
        )
    return Measurement.ok("dead_location_bits", ENUMERATIVE.length(edit, padded.layout) - best.bits)
