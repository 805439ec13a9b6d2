"""Narrowness, the dual of retargetability: bits to change behaviour in one region, and what that changes elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from retarget.agent import Agent, HasGoalSlot, HasTable
from retarget.agents.compiled import compile_policy
from retarget.code import ENUMERATIVE
from retarget.edit import Edit
from retarget.editors.base import Task, shortest
from retarget.editors.gradient import Differentiable, Tuner, names_of
from retarget.editors.narrow import (
    ANY,
    Ask,
    Effect,
    Narrow,
    narrow_edits,
    random_narrow,
    shortest_narrow,
    table_edits,
)  # fmt: skip
from retarget.editors.slot import slot_edit
from retarget.editors.table import TableEditor
from retarget.errors import AgentError, GoalError, ProbeError
from retarget.exact import Yardstick, best_actions, policy_table
from retarget.goal import StateGoal
from retarget.lessons import lessons_of
from retarget.pairs import goals_around
from retarget.probe import Metric, Outcome, Probe, Progress, Subject
from retarget.probes.growth import student_quantile
from retarget.probes.options import check_numbers, check_range
from retarget.regions import check_region, commonest_action, decisions, occupancy, reachable, region_of
from retarget.row import Kind, Measurement
from retarget.world import FiniteWorld

Rows = dict[str, list[Measurement]]
_OF_SHORTEST = "of the shortest edit that suffices"


class Narrowness(Probe):
    """How few bits change what the agent does in a stated region, and how much else they change: a frontier.

    Inside the region, what is wanted is an action that is best for goal B (in `commonest action`: any action but that
    one); outside, what the agent did before. An edit suffices when a wanted action has a probability of at least the
    subject's level, as a mean over the region's states (uniformly weighted; those from which B is out of reach do not
    count). Collateral is `KL(edited || unedited)` in bits a decision, over the discounted occupancy of the unedited
    agent toward A (exact: a linear solve), summed over states outside; both policies are softened by `epsilon`.

    `narrow_bits` is given at several allowed collaterals (the dose, in bits; 100 stands for any): a bound from above,
    the least over the cells of a table, the goal slot, the model, the weights.

    Args:
        regions: what is asked, one protocol each; see `retarget.regions`.
        radius: steps that count as near, for `near a` and `near b`.
        wanted: `best for b`, or `action K`.
        allowed: collaterals that are allowed, in bits a decision, rising.
        epsilon: share of the uniform policy that policies are softened by.
        after: ask the first region again, of the agent after an edit to a third goal.
        others: other goals whose competence is compared, at most.
        draws: random edits in the control; 0 for none.
        budget: most candidates of one route.

    Raises:
        ProbeError: for options out of range.

    >>> import retarget
    >>> from retarget.agents import compile_policy, exact_planner
    >>> world = retarget.make_world("FourRooms", size=9)
    >>> a, b = world.as_goal((1, 1)), world.as_goal((7, 7))
    >>> planner = exact_planner(world, a)
    >>> probe = Narrowness(regions=("near b",), after=False)
    >>> outcome = probe.measure(retarget.Subject(planner, world, a, b))
    >>> outcome.at("narrow_bits", dose=100.0).value < outcome.at("narrow_bits", dose=0.0).value
    True
    >>> table = compile_policy(planner, world)
    >>> probe.measure(retarget.Subject(table, world, a, b)).at("narrowness", dose=0.0).value
    0.0
    """

    name: ClassVar[str] = "narrowness"
    kind: ClassVar[Kind] = "experiment"
    needs_goal_b: ClassVar[bool] = True
    metrics: ClassVar = {
        "inside_before": Metric("1", "share of what is wanted inside that the unedited agent does", 0.0, 1.0),
        "region_decisions": Metric("1", "share of the unedited agent's decisions that fall inside", 0.0, 1.0),
        "narrow_bits": Metric("bit", "shortest edit found that suffices at the collateral allowed (dose)", 0.0, None),
        "narrow_bits_table": Metric("bit", "the same for the table compiled from the agent", 0.0, None),
        "narrowness": Metric("log2", "log2(narrow_bits_table / narrow_bits) at one dose", None, None),
        "narrow_inside": Metric("1", f"share of what is wanted inside, {_OF_SHORTEST}", 0.0, 1.0),
        "collateral_kl_bits": Metric("bit", f"KL(edited || unedited) a decision, outside, {_OF_SHORTEST}", 0.0, None),
        "collateral_changed": Metric("1", f"share of decisions that differ outside, {_OF_SHORTEST}", 0.0, 1.0),
        "collateral_competence_a": Metric(
            "1", f"competence on A that starts outside lose, {_OF_SHORTEST}", -1.0, 1.0
        ),
        "collateral_other_goals": Metric(
            "1", f"competence that other goals, written into the slot, lose, {_OF_SHORTEST}", -1.0, 1.0
        ),
        "least_collateral": Metric("bit", "least collateral of all edits found that suffice", 0.0, None),
        "empty_collateral": Metric("bit", "control: collateral of the empty edit", 0.0, None),
        "random_inside": Metric("1", "control: share of what is wanted after random edits of the same size", 0.0, 1.0),
        "random_collateral": Metric("bit", "control: collateral of these random edits", 0.0, None),
    }  # fmt: skip

    def __init__(
        self,
        *,
        regions: tuple[str, ...] = ("near b", "commonest action"),
        radius: int = 3,
        wanted: str = "best for b",
        allowed: tuple[float, ...] = (0.0, 0.01, 0.1, 1.0, ANY),
        epsilon: float = 0.01,
        after: bool = True,
        others: int = 4,
        draws: int = 16,
        budget: int = 1024,
    ) -> None:
        self.regions = (regions,) if isinstance(regions, str) else tuple(regions)
        if not self.regions or len(set(self.regions)) < len(self.regions):
            raise ProbeError(f"regions must name at least one region, and each once, got {regions!r}")
        for text in self.regions:
            check_region(text)
        self.allowed = check_numbers("allowed", allowed)
        rising = all(x < y for x, y in zip(self.allowed, self.allowed[1:], strict=False))
        if not rising or self.allowed[0] < 0:
            raise ProbeError(f"allowed must be rising numbers of bits, from 0, got {allowed!r}; e.g. (0.0, 0.1, {ANY})")
        check_range("epsilon", epsilon, above=0)
        if epsilon >= 1:
            raise ProbeError(f"epsilon must lie strictly between 0 and 1, got {epsilon!r}")
        for name, value, low in (
            ("radius", radius, 0),
            ("others", others, 0),
            ("draws", draws, 0),
            ("budget", budget, 1),
        ):
            check_range(name, value, low=low, whole=True)
        self.action = _action(wanted)
        self.radius, self.epsilon, self.after = radius, float(epsilon), after
        self.others, self.draws, self.budget = others, draws, budget

    def measure(self, subject: Subject, *, progress: Progress | None = None) -> Outcome:
        tell = progress or (lambda done, words: None)
        world, a, b = subject.world, subject.goal_a, subject.goal_b
        if b is None:
            return self.all_not_applicable("no goal B was given")
        if not isinstance(world, FiniteWorld) or not isinstance(a, StateGoal) or not isinstance(b, StateGoal):
            return self.all_not_applicable("states cannot be listed here: the world is not finite")
        try:
            policy_table(subject.agent, world.model)
        except AgentError as error:
            return self.all_not_applicable(str(error))
        where = _Where(world, a, b)
        parts = []
        for i, text in enumerate(self.regions):
            tell(i / (len(self.regions) + 1), f"editing {text}")
            parts.append(self._asked(subject, where, subject.agent, text, "before other edits"))
        if self.after:
            tell(0.7, "editing after another edit")
            parts.append(self._again(subject, where))
        return Outcome(tuple(m for name in self.metrics for rows in parts for m in rows[name]))

    def _again(self, subject: Subject, where: _Where) -> Rows:
        """The first region once more, of the agent after it was given a third goal."""
        try:
            goal, agent = _third_goal(subject, where)
        except (GoalError, AgentError) as error:
            return self._nothing(f"{self.regions[0]}; after another edit", str(error))
        moved = _Where(where.world, goal, where.b)
        return self._asked(subject, moved, agent, self.regions[0], f"after an edit to goal {goal.label}")

    def _asked(self, subject: Subject, where: _Where, agent: Agent, text: str, when: str) -> Rows:
        try:
            ask, protocol = self._ask(subject, where, agent, text, when)
        except (ProbeError, GoalError, AgentError) as error:
            return self._nothing(f"inside: {text}; {when}", str(error))
        before = ask.effect(ask.before)
        first = {
            "inside_before": [Measurement.ok("inside_before", before.inside, protocol=protocol)],
            "region_decisions": [
                Measurement.ok("region_decisions", min(1.0, ask.often[~ask.outside].sum()), protocol=protocol)
            ],
        }
        if ask.enough(before):
            return self._nothing(protocol, f"unedited, it does {before.inside:.4g} of what is wanted inside") | first
        if not agent.parts:
            return self._nothing(protocol, "it exposes no parts: there is nothing to edit") | first
        return self._nothing(protocol, "") | first | _Answer(self, subject, where, ask, protocol).rows()

    def _ask(self, subject: Subject, where: _Where, agent: Agent, text: str, when: str) -> tuple[Ask, str]:
        world, model, gamma = where.world, where.world.model, subject.gamma
        probs = policy_table(agent, model)
        region = region_of(world, text, radius=self.radius, goal_a=where.a, goal_b=where.b, probs=probs, gamma=gamma)
        often = decisions(occupancy(model, probs, where.a, world.start_states, gamma=gamma), where.a)
        counted, wanted, words = region.inside.copy(), best_actions(model, where.b, gamma=gamma), "one best for goal B"
        if self.action is not None:
            if self.action >= model.n_actions:
                raise ProbeError(f"action {self.action} is wanted, the world has {model.n_actions} actions")
            wanted = np.zeros_like(wanted)
            wanted[:, self.action], words = True, f"action {self.action}"
        elif text == "commonest action":
            action = commonest_action(probs, often)
            wanted = np.ones_like(wanted)
            wanted[:, action], words = False, f"any action but {action}"
            counted[list(where.a.states)] = False  # it decides nothing there
            if model.n_actions == 1:
                raise ProbeError("there is one action alone: no other can be wanted")
            if not counted.any():
                raise ProbeError("its commonest action is none that it takes anywhere off goal A")
        else:
            counted &= reachable(model, where.b, gamma=gamma)
            if not counted.any():
                raise ProbeError(f"goal B cannot be reached from region {text!r}: nothing is wanted there")
        ask = Ask(
            agent, world, where.a, where.b, gamma, counted, wanted, ~region.inside, often, subject.level, self.epsilon,
            subject.seed, self.budget,
        )  # fmt: skip
        return ask, f"inside: {region.words}; wanted: {words}; outside: as before; {when}"

    def _nothing(self, protocol: str, reason: str) -> Rows:
        """Every metric as not applicable for one reason."""
        reason = reason or "not asked"
        return {n: [Measurement.not_applicable(n, reason, protocol=protocol)] for n in self.metrics}


def _action(wanted: object) -> int | None:
    if wanted == "best for b":
        return None
    words = wanted.split() if isinstance(wanted, str) else []
    if len(words) != 2 or words[0] != "action" or not (words[1].isascii() and words[1].isdigit()):
        raise ProbeError(f"wanted must be 'best for b' or e.g. 'action 2', got {wanted!r}")
    return int(words[1])


@dataclass(frozen=True, eq=False)
class _Where:
    """A world, the goal that the agent has, and goal B."""

    world: FiniteWorld
    a: StateGoal
    b: StateGoal


def _other_goals(subject: Subject, where: _Where, n: int) -> tuple[StateGoal, ...]:
    """Goals other than A and B: those of training first, then held-out ones."""
    seen, held_out = goals_around(
        where.world, where.a, plan=subject.plan, n_seen=n + 1, n_held_out=n + 1, seed=subject.seed
    )
    mixed = [g for g in (*held_out[:1], *seen, *held_out[1:]) if isinstance(g, StateGoal)]
    return tuple(g for g in mixed if g not in (where.a, where.b, subject.goal_a))[:n]


def _third_goal(subject: Subject, where: _Where) -> tuple[StateGoal, Agent]:
    """The agent after it was given a third goal, by its slot, its table, or its weights, whichever it has first.

    Raises:
        GoalError: where there is no third goal, or the agent was not brought to pursue it.
    """
    agent, world, gamma = subject.agent, where.world, subject.gamma
    own = Yardstick.of(world, where.a, gamma=gamma).score(agent).competence
    goals = _other_goals(subject, where, 4)
    if not goals:
        raise GoalError("the world has no third goal")
    for goal in goals:
        judge = Yardstick.of(world, goal, gamma=gamma)
        task = Task(agent, world, judge, subject.level * own, seed=subject.seed)
        for edited in _given(task, goal):
            if task.enough(judge.score(edited).competence):
                return goal, edited
    raise GoalError(f"no edit to a third goal was found: {len(goals)} were tried, by slot, table and weights")


def _given(task: Task, goal: StateGoal) -> Iterable[Agent]:
    agent = task.agent
    if isinstance(agent, HasGoalSlot):
        yield from (slot_edit(agent, w).apply(agent) for w in agent.slot_writes(goal)[:1])
    if isinstance(agent, HasTable):
        best = shortest(task, TableEditor().search(task))
        if best is not None:
            yield best.edit.apply(agent)
    names = names_of(agent, "weight")
    if names and isinstance(agent, Differentiable):
        lessons = lessons_of(task.world, goal, gamma=task.judge.gamma, seed=task.seed)
        tuner = Tuner(agent, names, lessons, seed=task.seed)
        yield agent.with_arrays(tuner.arrays(tuner.fit(tuner.base, steps=400, lr=0.01)))


@dataclass(frozen=True, eq=False)
class _Answer:
    """What was found for one question."""

    probe: Narrowness
    subject: Subject
    where: _Where
    ask: Ask
    protocol: str

    @cached_property
    def found(self) -> tuple[Narrow, ...]:
        return narrow_edits(self.ask)

    @cached_property
    def best(self) -> Narrow | None:
        return shortest_narrow(self.ask, self.found)

    def rows(self) -> Rows:
        out = [*self._frontier(), *self._of_best(), *self._controls()]
        rows: Rows = {}
        for m in out:
            rows.setdefault(m.metric, []).append(m)
        return rows

    def _ok(self, metric: str, value: float, **rest: object) -> Measurement:
        return Measurement.ok(metric, value, protocol=self.protocol, **rest)

    def _none(self, metric: str, reason: str, *, failed: bool = False, dose: float | None = None) -> Measurement:
        make = Measurement.failed if failed else Measurement.not_applicable
        return make(metric, reason, protocol=self.protocol, dose=dose)

    def _frontier(self) -> list[Measurement]:
        """The shortest edit for each collateral that is allowed, of the agent and of its compiled table."""
        ask, out = self.ask, []
        table = _of_table(ask)
        cells = table_edits(table)
        top = max((n.effect.inside for n in self.found), default=0.0)
        for dose in self.probe.allowed:
            best, of_table = shortest_narrow(ask, self.found, dose), shortest_narrow(table, cells, dose)
            assert of_table is not None  # the cells of the region always suffice, and change nothing else
            out.append(self._bits("narrow_bits_table", table, of_table, dose))
            if best is None:
                least = min((n.effect.kl_bits for n in self.found if ask.enough(n.effect)), default=None)
                short = f"the best found does {top:.4g} of what is wanted inside, {ask.level:.4g} is required"
                why = short if least is None else f"the least collateral found is {least:.4g} bits, {dose:g} is allowed"
                out += [self._none(n, why, failed=True, dose=dose) for n in ("narrow_bits", "narrowness")]
                continue
            out.append(self._bits("narrow_bits", ask, best, dose))
            out.append(self._ok("narrowness", math.log2(of_table.bits / best.bits), dose=dose))
        return out

    def _bits(self, metric: str, ask: Ask, best: Narrow, dose: float) -> Measurement:
        _prove(ask, best)
        return self._ok(
            metric, best.bits, dose=dose, editor=best.editor, parts="+".join(best.edit.parts_touched),
            n_cells=best.edit.n_cells, code=ENUMERATIVE.name,
        )  # fmt: skip

    def _of_best(self) -> list[Measurement]:
        names = [n for n in self.probe.metrics if n == "narrow_inside" or n.startswith("collateral_")]
        if self.best is None:
            reason = "no edit was found that suffices"
            return [self._none(n, reason, failed=True) for n in (*names, "least_collateral")]
        effect, edited = self.best.effect, self.best.edit.apply(self.ask.agent)
        least = min(n.effect.kl_bits for n in self.found if self.ask.enough(n.effect))
        return [
            self._ok("narrow_inside", effect.inside),
            self._ok("collateral_kl_bits", effect.kl_bits),
            self._ok("collateral_changed", effect.changed),
            self._competence_a(edited),
            self._other_goals(edited),
            self._ok("least_collateral", least),
        ]

    def _competence_a(self, edited: Agent) -> Measurement:
        name, ask = "collateral_competence_a", self.ask
        try:
            judge = Yardstick.of(ask.world, ask.goal_a, gamma=ask.gamma)
        except GoalError as error:
            return self._none(name, str(error))
        outside = ask.outside[judge.starts]
        if not outside.any():
            return self._none(name, "every start that can reach goal A lies inside")
        lost = (judge.ratios(ask.before) - judge.ratios(ask.behaviour(edited)))[outside]
        return self._ok(name, float(np.clip(np.sort(lost).mean(), -1.0, 1.0)))

    def _other_goals(self, edited: Agent) -> Measurement:
        name, ask, lost = "collateral_other_goals", self.ask, []
        if not isinstance(ask.agent, HasGoalSlot):
            return self._none(name, "the agent has no goal slot to write another goal into")
        try:
            goals = _other_goals(self.subject, self.where, self.probe.others)
            for goal in goals:
                judge = Yardstick.of(ask.world, goal, gamma=ask.gamma)
                before, after = (_written(a, goal) for a in (ask.agent, edited))
                if before is not None and after is not None:
                    lost.append(judge.competence(ask.behaviour(before)) - judge.competence(ask.behaviour(after)))
        except GoalError as error:
            return self._none(name, str(error))
        if not lost:
            return self._none(name, f"none of {len(goals)} other goals can be written into its slot")
        return self._ok(name, float(np.clip(np.mean(lost), -1.0, 1.0)))

    def _controls(self) -> list[Measurement]:
        empty = self.ask.effect(self.ask.behaviour(Edit.of(self.ask.agent).apply(self.ask.agent)))
        out = [self._ok("empty_collateral", empty.kl_bits)]
        if self.best is None or not self.probe.draws:
            reason = "there is no edit to compare with" if self.probe.draws else "no random edits were asked for"
            return [*out, *(self._none(n, reason) for n in ("random_inside", "random_collateral"))]
        drawn = random_narrow(self.ask, self.best.edit, self.probe.draws)
        return [
            *out,
            self._mean("random_inside", [e.inside for e in drawn], 1.0),
            self._mean("random_collateral", [e.kl_bits for e in drawn], math.inf),
        ]

    def _mean(self, metric: str, values: Sequence[float], high: float) -> Measurement:
        """A mean over draws, with Student's 95% interval."""
        mean, n = float(np.mean(values)), len(values)
        if n < 2:
            return self._ok(metric, mean, n=n)
        half = student_quantile(0.975, n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n)
        return self._ok(metric, mean, ci_low=max(0.0, mean - half), ci_high=min(high, mean + half), n=n)


def _of_table(ask: Ask) -> Ask:
    """The same question to the table compiled from the agent."""
    return ask.of(compile_policy(ask.agent, ask.world))


def _prove(ask: Ask, found: Narrow) -> None:
    """Raise ProbeError unless the edit does what the search promised."""
    again: Effect = ask.effect(ask.behaviour(found.edit.apply(ask.agent)))
    if abs(again.inside - found.effect.inside) > 1e-9 or abs(again.kl_bits - found.effect.kl_bits) > 1e-9:
        raise ProbeError(f"editor {found.editor!r} promised {found.effect}, the edited agent does {again}")


def _written(agent: Agent, goal: StateGoal) -> Agent | None:
    """The agent with a goal in its slot; None where the slot cannot hold it."""
    writes = agent.slot_writes(goal) if isinstance(agent, HasGoalSlot) else ()
    return slot_edit(agent, writes[0]).apply(agent) if writes else None
