"""Decomposition: the joint code of the agents for n goals, as reasoning (intercept) and n times a goal (slope)."""

from __future__ import annotations

import math
from typing import ClassVar

from retarget.agent import Agent
from retarget.code import ENUMERATIVE
from retarget.edit import Edit, difference
from retarget.editors.base import shortest_form
from retarget.editors.family import Family, stages_of
from retarget.editors.joint import Joint, Line, doses, line_through, mean_lengths
from retarget.errors import AgentError, EditError, GoalError
from retarget.probe import UNIVERSAL_LAWS, Law, Metric, Outcome, Probe, Progress, Subject
from retarget.probes.goal_map import counts, family_of, nothing_found, of_table
from retarget.probes.options import check_goal_numbers, check_range
from retarget.rng import stream
from retarget.row import Kind, Measurement

ORDER = "A first, then goals in an order drawn by the seed; the mean over its rotations"
_SLOPES = ("slope_bits", "slope_seen_bits", "slope_held_out_bits")
_TABLE = ("table_slope_bits", "slope_over_table", "slope_shuffled_bits")


class Decomposition(Probe):
    """What a family of agents, one for each goal, has in common, and what each further goal adds.

    The agent is written first, every part in full. Each further agent is the shortest of: the agent with its edit;
    another one written before with the difference; in full (`retarget.editors.joint.Joint`). `slope_bits` is what a
    goal adds, `intercept_bits` the rest: least squares over n = 1, 2, 4, …, with a jackknife interval over goals.

    Args:
        n_seen, n_held_out: training and held-out goals at most, beside A.
        budget: most candidates that one editor may build and score for one goal.
        editors: who searches the edits: `quick` (gradients only where nothing else has an edit) or `full`.

    >>> import retarget
    >>> from retarget.agents import exact_planner
    >>> world = retarget.make_world("FourRooms", size=9)
    >>> goal = world.as_goal((1, 1))
    >>> outcome = Decomposition().measure(retarget.Subject(exact_planner(world, goal), world, goal))
    >>> outcome["slope_bits"].value, outcome["shared"].value > 0.95
    (18.0, True)
    """

    name: ClassVar[str] = "decomposition"
    kind: ClassVar[Kind] = "characterization"
    metrics: ClassVar = {
        "joint_bits": Metric("bit", "joint code of the agents for n goals, A among them", 0.0, None),
        "intercept_bits": Metric("bit", "reasoning: the joint code at n = 0, by the line through it", None, None),
        "slope_bits": Metric("bit", "goal: what each further goal adds, by the line", 0.0, None),
        "slope_seen_bits": Metric("bit", "the same over training goals alone", 0.0, None),
        "slope_held_out_bits": Metric("bit", "the same over held-out goals alone", 0.0, None),
        "first_bits": Metric("bit", "the whole agent, every part in full", 0.0, None),
        "blank_first_bits": Metric("bit", "the agent as a difference from its blank: what training wrote", 0.0, None),
        "shared": Metric("1", "1 - slope / first: 0 where each goal is a new agent, 1 where goals are free", None, 1.0),
        "table_slope_bits": Metric("bit", "the slope of the tables compiled from the agent, edited", 0.0, None),
        "slope_over_table": Metric("log2", "log2(table slope / slope): above 0, goals cost less", None, None),
        "slope_shuffled_bits": Metric("bit", "control: table slope with actions shuffled over states", 0.0, None),
        "goals_used": Metric("goals", "goals beside A that an edit was found for", 0.0, None),
        "goals_left_out": Metric("goals", "goals met already by the unedited agent, or out of reach", 0.0, None),
        "goals_not_found": Metric("goals", "goals that no edit was found for", 0.0, None),
    }  # fmt: skip
    # goals are drawn by the names of states: renaming them draws others
    laws: ClassVar[frozenset[Law]] = UNIVERSAL_LAWS

    def __init__(self, *, n_seen: int = 4, n_held_out: int = 4, budget: int = 1024, editors: str = "quick") -> None:
        stages_of(editors)
        check_goal_numbers(("n_seen", n_seen), ("n_held_out", n_held_out))
        check_range("budget", budget, low=1, whole=True)
        self.n_seen, self.n_held_out, self.budget, self.editors = n_seen, n_held_out, budget, editors

    def measure(self, subject: Subject, *, progress: Progress | None = None) -> Outcome:
        tell = progress or (lambda done, words: None)
        try:
            family = family_of(
                subject, n_seen=self.n_seen, n_held_out=self.n_held_out, budget=self.budget, editors=self.editors,
                tell=lambda done, words: tell(0.8 * done, words),
            )  # fmt: skip
        except (GoalError, AgentError) as error:
            return self.all_not_applicable(str(error))
        known = counts(family)
        if not family.used:
            return nothing_found(self, known, family)
        tell(0.8, "writing the family down")
        whole = _Written(family, subject.seed)
        measured = [*whole.lengths(subject), *known]
        measured += _table(whole, of_table(family, self.editors), subject.seed)
        by_name: dict[str, list[Measurement]] = {}
        for m in measured:
            by_name.setdefault(m.metric, []).append(m)
        return Outcome(tuple(m for name in self.metrics for m in by_name[name]))


class _Written:
    """A family's joint code, in the order that a seed draws."""

    def __init__(self, family: Family, seed: int) -> None:
        self.family = family
        used = family.used
        self.joint = joint_of(family)
        self.order = stream(seed, "joint_order", len(used)).permutation(len(used)).tolist()
        self.seen = [i for i in self.order if used[i].seen]
        self.held_out = [i for i in self.order if not used[i].seen]
        self.line = self._line(self.order)

    def _line(self, order: list[int]) -> Line:
        return line_through(self.joint.first_bits, self.joint.alone, self.joint.between, order)

    def lengths(self, subject: Subject) -> list[Measurement]:
        joint, line, first = self.joint, self.line, self.joint.first_bits
        along = mean_lengths(first, joint.alone, joint.between, self.order)
        out = [Measurement.ok("joint_bits", along[n - 1], protocol=ORDER, dose=float(n)) for n in doses(len(along))]
        out.append(_with_interval("intercept_bits", line.intercept, line.intercept_error, line.n))
        for name, order in zip(_SLOPES, (self.order, self.seen, self.held_out), strict=True):
            out.append(_slope(name, self._line(order)) if order else _no_goals(name))
        agent = self.family.agent
        blank = joint_word(agent.blank(subject.seed), agent)
        out.append(Measurement.ok("first_bits", first))
        out.append(
            Measurement.not_applicable("blank_first_bits", "it holds symbols that cannot be written")
            if blank is None
            else Measurement.ok("blank_first_bits", blank)
        )
        half = None if line.slope_error is None else line.slope_error / first
        out.append(_with_interval("shared", 1 - line.slope / first, half, line.n, high=1.0))
        return out


def joint_of(family: Family) -> Joint:
    """The joint code of a family: its agent, then those with an edit."""
    return Joint(family.agent, tuple((m.agent, m.found.edit) for m in family.used if m.found is not None))


def joint_word(before: Agent, after: Agent) -> int | None:
    """Bits of the difference between two agents; None where it cannot be written."""
    try:
        return ENUMERATIVE.length(shortest_form(before, difference(before, after)), before.layout)
    except EditError:
        return None


def _table(whole: _Written, tables: Family | str, seed: int) -> list[Measurement]:
    family = whole.family
    if isinstance(tables, str):
        return [Measurement.not_applicable(n, tables) for n in _TABLE]
    # the same goals for both, so that the ratio compares like with like
    both = {m.goal for m in tables.used}
    own = [i for i in whole.order if family.used[i].goal in both]
    if not own:
        return [Measurement.failed(n, "no edit of the compiled table was found for these goals") for n in _TABLE]
    goals = [m.goal for m in tables.used]
    order = [goals.index(family.used[i].goal) for i in own]
    joint = joint_of(tables)
    line = line_through(joint.first_bits, joint.alone, joint.between, order)
    try:
        mixed = shuffled(joint, seed)
        control = _slope(_TABLE[2], line_through(mixed.first_bits, mixed.alone, mixed.between, order))
    except EditError as error:
        control = Measurement.not_applicable(_TABLE[2], str(error))
    return [
        _slope("table_slope_bits", line),
        Measurement.ok("slope_over_table", math.log2(line.slope / whole._line(own).slope)),
        control,
    ]


def shuffled(joint: Joint, seed: int) -> Joint:
    """Agents whose parts hold what each of a family holds, shuffled over the cells: all that they share is how often
    each symbol stands."""
    others: list[tuple[Agent, Edit]] = []
    for i, (agent, _) in enumerate(joint.others):
        rng = stream(seed, "joint_shuffle", i)
        arrays = {n: rng.permutation(p.array.reshape(-1)).reshape(p.array.shape) for n, p in agent.parts.items()}
        mixed = agent.with_arrays(arrays)
        others.append((mixed, shortest_form(joint.first, difference(joint.first, mixed))))
    return Joint(joint.first, tuple(others))


def _slope(name: str, line: Line) -> Measurement:
    return _with_interval(name, line.slope, line.slope_error, line.n, low=0.0)


def _with_interval(
    name: str, value: float, half: float | None, n: int, *, low: float = -math.inf, high: float = math.inf
) -> Measurement:
    if half is None:
        return Measurement.ok(name, value, n=n)
    return Measurement.ok(name, value, ci_low=max(low, value - half), ci_high=min(high, value + half), n=n)


def _no_goals(name: str) -> Measurement:
    return Measurement.not_applicable(name, f"no such goal has an edit, of which {name} would be the cost")
