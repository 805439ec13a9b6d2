"""Fit maps from goals to edits, round them, try them on goals, and add up the two-part code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from retarget.agent import Agent, HasGoalSlot
from retarget.code import ENUMERATIVE
from retarget.edit import Edit, difference
from retarget.editors.base import Candidate, shortest_form
from retarget.editors.family import Family, Member
from retarget.editors.goal_cells import MOST_OUTPUTS, Cells, Fitted, LinearMap, NetworkMap
from retarget.editors.goal_features import Features
from retarget.editors.goal_maps import ConstantMap, GoalEditMap, NearestMap, PlannerMap, SlotMap, slot_goal
from retarget.editors.hunt import cheapest
from retarget.editors.words import Stream, word_of
from retarget.errors import AgentError, EditError
from retarget.goal import Goal
from retarget.rng import stream
from retarget.spend import Spend
from retarget.world import FiniteWorld

#: Loss of competence on a training goal that rounding a map may bring.
SLACK = 0.01
#: Tolerances of rounding, as shares of the largest number of each output: the coarsest first.
_TOLERANCES = tuple(2.0**-i for i in range(1, 24))

#: A training goal, and the agent that it was given: what maps are fitted on.
Lesson = tuple[Goal, Agent]


@dataclass(frozen=True)
class Trial:
    """What an edit does on one goal: its competence there, and whether that meets the requirement."""

    competence: float
    met: bool


@dataclass(eq=False)
class Bench:
    """Tries edits on goals, each once, and keeps the account."""

    spend: Spend = field(default_factory=Spend)
    _kept: dict[tuple[Goal, Edit], Trial] = field(default_factory=dict)

    def trial(self, member: Member, edit: Edit) -> Trial:
        """An edit that the agent refuses (numbers that make no sense for it) does nothing on any goal."""
        key = (member.goal, edit)
        if key not in self._kept:
            self._kept[key] = self._try(member, edit)
        return self._kept[key]

    def _try(self, member: Member, edit: Edit) -> Trial:
        task = member.task
        try:
            found = task.judge.score(edit.apply(task.agent))
        except (AgentError, EditError):
            return Trial(0.0, False)
        self.spend = self.spend + Spend(simulations=1, env_steps=found.env_steps, flops=found.flops)
        met = task.enough(found.competence)
        if met and task.check is not None:
            bits = ENUMERATIVE.length(edit, task.agent.layout)
            met, spent = task.holds(Candidate("map", edit, bits, found.competence, Spend()))
            self.spend = self.spend + spent
        return Trial(found.competence, met)


# ---------------------------------------------------------------------------------------------------------- fits


def fit_constant(family: Family, bench: Bench) -> ConstantMap:
    """The training edit that serves all training goals best: most met, then most competence, then shortest."""
    used = _training(family)

    def worth(edit: Edit) -> tuple[float, float, int]:
        tried = [bench.trial(m, edit) for m in used]
        met, mean = sum(t.met for t in tried), round(float(np.mean([t.competence for t in tried])), 9)
        return -met, -mean, ENUMERATIVE.length(edit, family.agent.layout)

    return ConstantMap(family.agent, min((m.found.edit for m in used if m.found is not None), key=worth))


def fit_nearest(family: Family, features: Features, lessons: Sequence[Lesson] | None = None) -> NearestMap:
    """The training edits, with the goals that they are for (or the goals of `lessons`, in the order of the edits)."""
    used = _training(family)
    edits = [m.found.edit for m in used if m.found is not None]
    if lessons is not None:  # shuffled: an edit stands at the goal of its lesson
        at = {id(m.agent): e for m, e in zip(used, edits, strict=True)}
        edits = [at[id(agent)] for _, agent in lessons]
    return NearestMap(family.agent, features, features.of([m.goal for m in used]), tuple(edits))


def lessons_in(family: Family) -> tuple[Lesson, ...]:
    """The training goals with their edited agents."""
    return tuple((m.goal, m.agent) for m in _training(family))


def fit_linear(agent: Agent, features: Features, lessons: Sequence[Lesson]) -> tuple[LinearMap, Spend]:
    """Least squares, of least norm; a symbol is read as a number where that gives every training symbol back, else by
    scores that are fitted to 1 for the symbol and 0 for the others.

    Raises:
        EditError: where it would have too many outputs.
    """
    x = features.of([g for g, _ in lessons])
    edited = [a for _, a in lessons]
    inverse = np.linalg.pinv(x)
    cells = Cells.touched(agent, edited).read_as_numbers(lambda y: x @ (inverse @ y), edited)
    targets = _targets(cells, edited)
    n, f = x.shape
    flops = 2.0 * n * f * min(n, f) + 2.0 * n * f * targets.shape[1]
    return LinearMap(cells, features, inverse @ targets), Spend(flops=flops)


def fit_network(
    agent: Agent, features: Features, lessons: Sequence[Lesson], *, units: int, steps: int, seed: int
) -> tuple[NetworkMap, Spend]:
    """Squared error, full batch, by Adam (Kingma and Ba 2015); the same readings of symbols as the linear map's.

    Raises:
        EditError: where it would have too many outputs.
    """
    edited = [a for _, a in lessons]
    cells = fit_linear(agent, features, lessons)[0].cells
    x = features.of([g for g, _ in lessons]) / np.append(features.scale, 1.0)
    y = _targets(cells, edited)
    rng = stream(seed, "map_network", units)
    theta = [rng.normal(size=(x.shape[1], units)), np.zeros((units + 1, y.shape[1]))]
    moment, square = [np.zeros_like(t) for t in theta], [np.zeros_like(t) for t in theta]
    for i in range(1, steps + 1):
        hidden = np.hstack([np.tanh(x @ theta[0]), np.ones((len(x), 1))])
        error = (hidden @ theta[1] - y) / len(x)
        back = (error @ theta[1].T)[:, :-1] * (1 - hidden[:, :-1] ** 2)
        for k, gradient in enumerate((x.T @ back, hidden.T @ error)):
            moment[k] = 0.9 * moment[k] + 0.1 * gradient
            square[k] = 0.99 * square[k] + 0.01 * gradient**2
            step = moment[k] / (1 - 0.9**i) / (np.sqrt(square[k] / (1 - 0.99**i)) + 1e-8)
            theta[k] = theta[k] - 0.05 * step
    flops = 6.0 * steps * len(x) * sum(t.size for t in theta)
    return NetworkMap(cells, features, *theta), Spend(grad_steps=steps, flops=flops)


def _targets(cells: Cells, edited: Sequence[Agent]) -> np.ndarray:
    if cells.n_outputs > MOST_OUTPUTS:
        raise EditError(
            f"the edits touch cells that take {cells.n_outputs} numbers; a map gives {MOST_OUTPUTS} at most"
        )
    return np.stack([cells.targets(a) for a in edited])


def rounded(fitted: Fitted, family: Family, bench: Bench) -> Fitted:
    """The map with its numbers as short as they can be while no training goal loses by it: none that was met is missed,
    and no competence falls by more than 0.01. The coarsest tolerance that does is found by bisection."""
    used = _training(family)
    before = [bench.trial(m, fitted.edit(m.goal)) for m in used]

    def good(trial: Fitted) -> bool:
        now = [bench.trial(m, trial.edit(m.goal)) for m in used]
        return all(
            (b.met or not a.met) and b.competence >= a.competence - SLACK for a, b in zip(before, now, strict=True)
        )

    best = fitted
    low, high = 0, len(_TOLERANCES)  # the finest is at the end; `high` stands for no rounding at all
    while low < high:
        middle = (low + high) // 2
        trial = fitted.with_arrays([_near(a, _TOLERANCES[middle]) for a in fitted.arrays])
        if good(trial):
            best, high = trial, middle
        else:
            low = middle + 1
    return best


def _near(array: np.ndarray, share: float) -> np.ndarray:
    """Short numbers near those of a map: within a share of the largest one of their column."""
    most = np.abs(array).max(0, keepdims=True) if array.size else array
    flat = cheapest(array.reshape(-1), np.broadcast_to(share * most, array.shape).reshape(-1))
    return flat.reshape(array.shape)


def fit_slot(family: Family, bench: Bench) -> SlotMap:
    """The agent's way of writing goals that serves the training goals best, the first of equally good ones.

    Raises:
        EditError: for an agent without a slot that can express one of the goals.
    """
    agent, shown = family.agent, slot_goal(family)
    seen = [m for m in family.members if m.seen] or list(family.members)
    assert isinstance(agent, HasGoalSlot)
    maps = [SlotMap(agent, shown, i) for i in range(len(agent.slot_writes(shown)))]

    def worth(option: SlotMap) -> tuple[int, float]:
        tried = [bench.trial(m, option.edit(m.goal)) for m in seen]
        return -sum(t.met for t in tried), -round(float(np.mean([t.competence for t in tried])), 9)

    return min(maps, key=worth)


def make_planner(family: Family) -> PlannerMap:
    """Raises EditError where there is no model to write down."""
    world = family.world
    if not isinstance(world, FiniteWorld):
        raise EditError(f"{world.spec_data.label} has continuous states: there is no model to write down")
    searched = {m.goal: (m.found.edit, m.found.spend.flops) for m in family.used if m.found is not None}
    gamma = family.members[0].task.judge.gamma
    return PlannerMap(family.agent, world.model, np.asarray(world.start_states), gamma, searched)


def _training(family: Family) -> tuple[Member, ...]:
    used = tuple(m for m in family.used if m.seen)
    if not used:
        raise EditError("no edit was found for any training goal: there is nothing to fit")
    return used


# ------------------------------------------------------------------------------------------------- two-part code


def residual(member: Member, edit: Edit, trial: Trial) -> int:
    """Bits that mend what a map writes for one goal: 1 where it meets the requirement; else 2 and the shorter of the
    difference from the mapped agent to the edited one, and the single edit.

    Raises:
        EditError: for a goal without a single edit, which the map does not meet.
    """
    if trial.met:
        return 1
    if member.found is None:
        raise EditError(f"no edit was found for goal {member.goal.label}; ask for members that are `used`")
    options = [member.found.bits]
    try:
        mapped = edit.apply(member.task.agent)
        change = shortest_form(mapped, difference(mapped, member.agent))
        options.append(ENUMERATIVE.length(change, mapped.layout))
    except (AgentError, EditError):  # a map that the agent refuses, or a symbol that cannot be written back
        pass
    return 2 + min(options)


def two_part_word(result: MapResult, family: Family) -> str:
    """A map and what mends it, as a string of 0 and 1: the map's word, then for each goal with an edit, in order, 1; or
    01 and the difference from the mapped agent; or 00 and the single edit."""
    out = [result.map.word]
    for member in family.used:
        assert member.found is not None
        if result.trials[member.goal].met:
            out.append("1")
            continue
        options = ["00" + word_of(member.found.edit, family.agent.layout)]
        try:
            mapped = result.map.edit(member.goal).apply(family.agent)
            change = shortest_form(mapped, difference(mapped, member.agent))
            options.append("01" + word_of(change, mapped.layout))
        except (AgentError, EditError):
            pass
        out.append(min(options, key=len))
    return "".join(out)


def read_mended(source: Stream, map_: GoalEditMap, agent: Agent, goals: Sequence[Goal]) -> tuple[Agent, ...]:
    """The agents for several goals, from a map that was read before and what mends it.

    Raises:
        CodeError: for bits that are no such code.
    """
    out: list[Agent] = []
    for goal in goals:
        if source.fixed(1):
            out.append(map_.edit(goal).apply(agent))
            continue
        base = map_.edit(goal).apply(agent) if source.fixed(1) else agent
        out.append(source.edit(agent.layout, agent_digest=base.digest).apply(base))
    return tuple(out)


@dataclass(frozen=True, eq=False)
class MapResult:
    """One map, what fitting it took, and what it does on each goal.

    Attributes:
        trials: by goal, for every member.
        residuals: by goal, in bits, for those with a single edit.
    """

    map: GoalEditMap
    fit: Spend
    trials: Mapping[Goal, Trial]
    residuals: Mapping[Goal, int]

    @property
    def bits(self) -> int:
        """Length of the map's code word."""
        return len(self.map.word)

    def residual_bits(self, members: Sequence[Member]) -> int:
        """Sum of the residuals of some goals."""
        return sum(self.residuals[m.goal] for m in members)


def tried(map_: GoalEditMap, fit: Spend, family: Family, bench: Bench) -> MapResult:
    """A map on every goal of a family."""
    edits = {m.goal: map_.edit(m.goal) for m in family.members}
    trials = {m.goal: bench.trial(m, edits[m.goal]) for m in family.members}
    residuals = {m.goal: residual(m, edits[m.goal], trials[m.goal]) for m in family.used}
    return MapResult(map_, fit, trials, residuals)


#: What was asked for: a result, or why there is none.
Results = Mapping[str, MapResult | str]


def all_maps(family: Family, features: Features, *, units: int, steps: int, seed: int) -> dict[str, MapResult | str]:
    """Every kind of map, fitted on a family's training goals and tried on all its goals; or, by kind, why not."""
    bench = Bench()
    out: dict[str, MapResult | str] = {}

    def add(kind: str, make: object) -> None:
        before = bench.spend.flops
        try:
            map_, spend = make()  # type: ignore[operator]
        except EditError as error:
            out[kind] = str(error)
            return
        out[kind] = tried(map_, spend + Spend(flops=bench.spend.flops - before), family, bench)

    def linear() -> tuple[GoalEditMap, Spend]:
        found, spend = fit_linear(family.agent, features, lessons_in(family))
        return rounded(found, family, bench), spend

    def network() -> tuple[GoalEditMap, Spend]:
        found, spend = fit_network(family.agent, features, lessons_in(family), units=units, steps=steps, seed=seed)
        return rounded(found, family, bench), spend

    add("constant", lambda: (fit_constant(family, bench), Spend()))
    add("nearest", lambda: (fit_nearest(family, features), Spend()))
    add("linear", linear)
    add("network", network)
    add("slot", lambda: (fit_slot(family, bench), Spend()))
    add("planner", lambda: (make_planner(family), Spend()))
    return out


def shuffled_maps(
    family: Family, features: Features, *, seed: int, draw: int, constant: MapResult | str | None = None
) -> dict[str, MapResult | str]:  # fmt: skip
    """The control: constant, nearest and linear maps, fitted with the training goals shuffled so that no edit stands at
    its own goal. An agent's own slot is fitted to nothing, and shuffling leaves none: its example is of another goal.
    The constant map knows no goals and is as it was (`constant`, where it is at hand).

    Raises:
        EditError: with fewer than two training goals.
    """
    lessons = lessons_in(family)
    if len(lessons) < 2:
        raise EditError("fewer than two training goals have an edit: there is nothing to shuffle")
    order = stream(seed, "map_shuffle", draw).permutation(len(lessons))
    # each takes the edit of the next one in a random cycle: nobody keeps their own
    agents = {int(order[i]): lessons[int(order[(i + 1) % len(order)])][1] for i in range(len(order))}
    mixed = [(goal, agents[i]) for i, (goal, _) in enumerate(lessons)]
    bench = Bench()
    out: dict[str, MapResult | str] = {
        "constant": constant if constant is not None else tried(fit_constant(family, bench), Spend(), family, bench)
    }
    out["nearest"] = tried(fit_nearest(family, features, mixed), Spend(), family, bench)
    try:
        found, spend = fit_linear(family.agent, features, mixed)
        out["linear"] = tried(rounded(found, family, bench), spend, family, bench)
    except EditError as error:
        out["linear"] = str(error)
    return out


def least(results: Results, members: Sequence[Member]) -> MapResult | None:
    """The map, planners aside, with the shortest two-part code over some goals; None where there is none."""
    found = [r for kind, r in results.items() if isinstance(r, MapResult) and kind != "planner"]
    return min(found, key=lambda r: r.bits + r.residual_bits(members), default=None)
