"""Goal maps: one map from goals to edits, against the edits themselves, and on goals that it was not fitted on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from retarget.agents.compiled import compile_policy
from retarget.code import ENUMERATIVE
from retarget.editors.base import shortest_form
from retarget.editors.family import Family, Member, family, question_of_table, stages_of
from retarget.editors.goal_cells import KINDS
from retarget.editors.goal_features import Features, check_kind, features_of
from retarget.editors.goal_fit import MapResult, Results, all_maps, least, shuffled_maps
from retarget.errors import AgentError, EditError, GoalError
from retarget.goal import Goal
from retarget.pairs import goals_around
from retarget.probe import UNIVERSAL_LAWS, Law, Metric, Outcome, Probe, Progress, Subject
from retarget.probes.options import check_goal_numbers, check_range
from retarget.probes.retargetability import asked, closed
from retarget.row import Kind, Measurement
from retarget.world import FiniteWorld

_COUNTS = ("goals_used", "goals_left_out", "goals_not_found")


def family_of(
    subject: Subject, *, n_seen: int, n_held_out: int, budget: int, editors: str = "quick", tell: Progress | None = None
) -> Family:  # fmt: skip
    """The shortest edit found for each of several goals around the subject's own.

    Args:
        subject: its plan names the goals; where it has none they are drawn.
        n_seen, n_held_out: training and held-out goals, at most.
        budget: most candidates that one editor may build and score for one goal.
        editors: `quick` or `full` (see `retarget.editors.family.stages_of`).
        tell: called with the fraction done.

    Raises:
        GoalError, AgentError: where the agent's competence cannot be measured at all.
    """
    goals = goals_around(
        subject.world, subject.goal_a, plan=subject.plan, n_seen=n_seen, n_held_out=n_held_out, seed=subject.seed
    )
    stages, left_out = stages_of(editors), list[tuple[Goal, str]]()
    members: list[Member] = []
    competence, every = 0.0, [(g, seen) for seen, part in zip((True, False), goals, strict=True) for g in part]
    for i, (goal, seen) in enumerate(every):
        if tell is not None:
            tell(i / len(every), f"editing toward goal {goal.label}")
        try:
            known, task, nothing = asked(subject.with_(goal_b=goal), budget)
        except GoalError as error:
            left_out.append((goal, str(error)))
            continue
        competence = next(m.value for m in known if m.metric == "competence_a") or 0.0
        if task is None:
            left_out.append((goal, nothing))
        else:
            members += family(subject.agent, competence, [(task, seen)], stages=stages).members
    return Family(subject.agent, competence, tuple(members), tuple(left_out))


def of_table(found: Family, editors: str = "quick") -> Family | str:
    """The same goals asked of the table compiled from the agent; or why there is no such table."""
    if not found.members or not isinstance(found.world, FiniteWorld) or found.members[0].task.exact is None:
        return "a table of behaviour exists in finite worlds, for agents without memory"
    table = compile_policy(found.agent, found.world)
    tasks = [(question_of_table(m.task, table), m.seen) for m in found.members]
    return family(table, found.competence, tasks, stages=stages_of(editors))


def counts(found: Family) -> list[Measurement]:
    """How many goals were used, left out, and not found."""
    used = len(found.used)
    numbers = (used, len(found.left_out), len(found.members) - used)
    return [Measurement.ok(name, n) for name, n in zip(_COUNTS, numbers, strict=True)]


def nothing_found(probe: Probe, known: Sequence[Measurement], found: Family) -> Outcome:
    """An outcome without a single edit: `not_applicable` where nothing was asked, `failed` where nothing was found."""
    if not found.members:
        why = found.left_out[0][1] if found.left_out else "there is no goal beside A"
        return closed(probe, known, f"no goal of {len(found.left_out)} asks for an edit: {why}")
    n, have = len(found.members), {m.metric: m for m in known}
    reason = f"no editor found an edit that suffices for any of {n} goal{'s' if n > 1 else ''}"
    return Outcome(tuple(have.get(m, Measurement.failed(m, reason)) for m in probe.metrics))


class GoalMap(Probe):
    """Maps from goals to edits, fitted on training goals and applied to held-out ones without a search.

    Six maps: `constant` (one edit whatever the goal: the control), `nearest` (the edit of the nearest training goal),
    `linear` in features of the goal, `network` (a small one on the same), `slot` (the agent's own way of writing a
    goal), and `planner` (a whole planner that solves the world and writes down what it found: it pays with the world's
    model, and is kept out of the gains).

    `two_part_bits` = the map's code + what mends it for each goal; `map_gain` = log2(single edits / the shortest
    two-part code). How maps are written: `retarget.editors.goal_maps`; how they are mended:
    `retarget.editors.goal_fit.residual`.

    Args:
        n_seen, n_held_out: training and held-out goals at most.
        budget: most candidates that one editor may build and score for one goal.
        features: `auto` (row and column where states have a place, else one number a state), `coordinates`, `one_hot`.
        editors: who searches the single edits: `quick` (gradients only where nothing else has an edit) or `full`.
        units, steps: hidden units and updates of the network.
        shuffles: how often the control shuffles goals.

    >>> import retarget
    >>> from retarget.agents import exact_planner
    >>> world = retarget.make_world("FourRooms", size=9)
    >>> goal = world.as_goal((1, 1))
    >>> outcome = GoalMap().measure(retarget.Subject(exact_planner(world, goal), world, goal))
    >>> slot = "map: slot: the agent's own writes"
    >>> outcome.at("map_hits", protocol=slot).value, outcome.at("map_edit_bits", protocol=slot).value
    (1.0, 17.0)
    """

    name: ClassVar[str] = "goal_map"
    kind: ClassVar[Kind] = "experiment"
    metrics: ClassVar = {
        "map_competence": Metric("1", "competence on held-out goals over the agent's own on A, mean", 0.0, None),
        "map_hits": Metric("1", "share of held-out goals that meet the requirement", 0.0, 1.0),
        "map_competence_seen": Metric("1", "the mean over training goals", 0.0, None),
        "map_hits_seen": Metric("1", "the share over training goals", 0.0, 1.0),
        "map_bits": Metric("bit", "length of the map", 0.0, None),
        "map_edit_bits": Metric("bit", "mean length of the edits that the map writes, over held-out goals", 0.0, None),
        "residual_bits": Metric("bit", "what mends the map, over all goals used", 0.0, None),
        "two_part_bits": Metric("bit", "map_bits + residual_bits", 0.0, None),
        "map_fit_flops": Metric("flop", "operations to fit the map, beside those of the single searches", 0.0, None),
        "map_apply_flops": Metric("flop", "operations to apply the map to one goal", 0.0, None),
        "single_bits": Metric("bit", "sum of the single edits over the same goals", 0.0, None),
        "single_flops": Metric("flop", "operations of the single searches, for one goal, mean", 0.0, None),
        "map_gain": Metric("log2", "log2(single_bits / least two_part_bits of a map that is no planner)", None, None),
        "map_gain_held_out": Metric("log2", "the same over held-out goals, the map paid for before", None, None),
        "map_gain_shuffled": Metric("log2", "control: map_gain with goals shuffled among training edits", None, None),
        "map_gain_table": Metric("log2", "map_gain of the table compiled from the agent, edited", None, None),
        "map_gain_over_table": Metric("log2", "map_gain - map_gain_table: beyond what behaviour shares", None, None),
        "map_compute_gain": Metric("log2", "log2(single_flops / operations of the best map for one goal)", None, None),
        "goals_used": Metric("goals", "goals beside A that an edit was found for", 0.0, None),
        "goals_left_out": Metric("goals", "goals met already by the unedited agent, or out of reach", 0.0, None),
        "goals_not_found": Metric("goals", "goals that no edit was found for", 0.0, None),
    }  # fmt: skip
    # goals are drawn by the names of states: renaming them draws others
    laws: ClassVar[frozenset[Law]] = UNIVERSAL_LAWS

    def __init__(
        self, *, n_seen: int = 4, n_held_out: int = 4, budget: int = 1024, editors: str = "quick",
        features: str = "auto", units: int = 8, steps: int = 300, shuffles: int = 4,
    ) -> None:  # fmt: skip
        stages_of(editors)
        check_kind(features)
        check_goal_numbers(("n_seen", n_seen), ("n_held_out", n_held_out))
        for name, value, low in (
            ("budget", budget, 1),
            ("units", units, 1),
            ("steps", steps, 1),
            ("shuffles", shuffles, 0),
        ):
            check_range(name, value, low=low, whole=True)
        self.n_seen, self.n_held_out, self.budget, self.editors = n_seen, n_held_out, budget, editors
        self.features, self.units, self.steps, self.shuffles = features, units, steps, shuffles

    def measure(self, subject: Subject, *, progress: Progress | None = None) -> Outcome:
        tell = progress or (lambda done, words: None)
        try:
            found = family_of(
                subject, n_seen=self.n_seen, n_held_out=self.n_held_out, budget=self.budget, editors=self.editors,
                tell=lambda done, words: tell(0.7 * done, words),
            )  # fmt: skip
            features = self._features(subject, found)
        except (GoalError, AgentError) as error:
            return self.all_not_applicable(str(error))
        known = counts(found)
        if not found.used:
            return nothing_found(self, known, found)
        tell(0.7, "fitting maps")
        results = self._maps(found, features, subject.seed)
        best = least(results, found.used)
        once = [
            Measurement.ok("single_bits", found.bits, code=ENUMERATIVE.name),
            Measurement.ok("single_flops", found.spend.flops / len(found.used), spend=found.spend),
            gain("map_gain", found.used, best),
            held_out_gain(found, results),
        ]
        tell(0.85, "controls")
        table = self._of_table(found, features, subject.seed, results)
        once += [self._shuffled(found, features, subject.seed, results), table, _over_table(once[2], table)]
        once += [_compute(found, best), *known]
        by_name = {m.metric: [m] for m in once}
        for m in (m for kind in KINDS for m in rows_of(kind, results[kind], found, features)):
            by_name.setdefault(m.metric, []).append(m)
        return Outcome(tuple(m for name in self.metrics for m in by_name[name]))

    def _features(self, subject: Subject, found: Family) -> Features:
        return features_of(subject.world, [m.goal for m in found.members], kind=self.features)

    def _maps(self, found: Family, features: Features, seed: int) -> dict[str, MapResult | str]:
        return all_maps(found, features, units=self.units, steps=self.steps, seed=seed)

    def _shuffled(self, found: Family, features: Features, seed: int, own: Results) -> Measurement:
        name, gains = "map_gain_shuffled", []
        for draw in range(self.shuffles):
            try:
                mixed = shuffled_maps(found, features, seed=seed, draw=draw, constant=own["constant"])
            except EditError as error:
                return Measurement.not_applicable(name, str(error))
            gains.append(gain(name, found.used, least(mixed, found.used)).value)
        values = [g for g in gains if g is not None]
        if not values:
            return Measurement.not_applicable(name, "no map was fitted to shuffled goals")
        low, high = mean_interval(np.array(values))
        return Measurement.ok(name, float(np.mean(values)), ci_low=low, ci_high=high, n=len(values))

    def _of_table(self, found: Family, features: Features, seed: int, own: Results) -> Measurement:
        name, tables = "map_gain_table", of_table(found, self.editors)
        if isinstance(tables, str):
            return Measurement.not_applicable(name, tables)
        if not tables.used:
            return Measurement.failed(name, "no edit of the compiled table was found for these goals")
        results = own if tables.agent.digest == found.agent.digest else self._maps(tables, features, seed)
        return gain(name, tables.used, least(results, tables.used))


# ------------------------------------------------------------------------------------------------------- rows


def rows_of(kind: str, result: MapResult | str, found: Family, features: Features) -> list[Measurement]:
    """The measurements of one map."""
    names = (
        "map_competence", "map_hits", "map_competence_seen", "map_hits_seen", "map_bits", "map_edit_bits",
        "residual_bits", "two_part_bits", "map_fit_flops", "map_apply_flops",
    )  # fmt: skip
    if isinstance(result, str):
        return [Measurement.not_applicable(n, result, protocol=f"map: {kind}") for n in names]
    protocol = f"map: {result.map.label}"
    out: list[Measurement] = []
    for end, seen in (("", False), ("_seen", True)):
        out += _on_goals(result, [m for m in found.members if m.seen == seen], found.competence, end, protocol)
    held_out = [m for m in found.members if not m.seen]
    mended, bits = result.residual_bits(found.used), result.bits
    ok = Measurement.ok
    out += [ok(n, v, protocol=protocol, code=ENUMERATIVE.name)
            for n, v in (("map_bits", bits), ("residual_bits", mended), ("two_part_bits", bits + mended))]  # fmt: skip
    if held_out:
        layout = found.agent.layout
        written = [shortest_form(found.agent, result.map.edit(m.goal)) for m in held_out]
        mean = float(np.mean([ENUMERATIVE.length(e, layout) for e in written]))
        out.append(ok("map_edit_bits", mean, protocol=protocol, code=ENUMERATIVE.name))
    else:
        out.append(_no_goals("map_edit_bits", "held-out", protocol))
    out.append(ok("map_fit_flops", result.fit.flops, protocol=protocol, spend=result.fit))
    out.append(ok("map_apply_flops", result.map.apply_flops, protocol=protocol))
    return out


def _on_goals(
    result: MapResult, members: Sequence[Member], own: float, end: str, protocol: str
) -> list[Measurement]:  # fmt: skip
    names = (f"map_competence{end}", f"map_hits{end}")
    if not members:
        return [_no_goals(n, "training" if end else "held-out", protocol) for n in names]
    trials = [result.trials[m.goal] for m in members]
    values = np.array([t.competence / own for t in trials])
    hits, n = sum(t.met for t in trials), len(trials)
    low, high = mean_interval(values)
    lowest, highest = share_interval(hits, n)
    return [
        Measurement.ok(names[0], float(values.mean()), ci_low=low, ci_high=high, n=n, protocol=protocol),
        Measurement.ok(names[1], hits / n, ci_low=lowest, ci_high=highest, n=n, protocol=protocol),
    ]


def gain(name: str, used: Sequence[Member], best: MapResult | None) -> Measurement:
    """log2 of the sum of single edits over the two-part code of the best map."""
    if best is None:
        return Measurement.not_applicable(name, "no map can be fitted: no training goal has an edit")
    if len(used) < 2:  # a map fitted to one goal is a search for a shorter edit, no more
        return Measurement.not_applicable(name, "one goal alone has an edit: there is nothing that goals could share")
    single = sum(m.found.bits for m in used if m.found is not None)
    both = best.bits + best.residual_bits(used)
    return Measurement.ok(name, math.log2(single / both), editor=best.map.kind)


def held_out_gain(found: Family, results: Results) -> Measurement:
    """The same over held-out goals: the map is the one with the shortest two-part code over training goals, chosen
    without a look at the others, and is not paid for again."""
    name = "map_gain_held_out"
    seen, fresh = (tuple(m for m in found.used if m.seen == flag) for flag in (True, False))
    best = least(results, seen) if seen else None
    if best is None or not fresh:
        return _no_goals(name, "training" if best is None else "held-out", None)
    single = sum(m.found.bits for m in fresh if m.found is not None)
    return Measurement.ok(name, math.log2(single / best.residual_bits(fresh)), editor=best.map.kind)


def _over_table(own: Measurement, table: Measurement) -> Measurement:
    name = "map_gain_over_table"
    if own.value is None or table.value is None:
        return Measurement.not_applicable(name, own.reason or table.reason)
    return Measurement.ok(name, own.value - table.value)


def _compute(found: Family, best: MapResult | None) -> Measurement:
    if best is None:
        return Measurement.not_applicable("map_compute_gain", "no map can be fitted: no training goal has an edit")
    n = len(found.members)
    map_, single = best.fit.flops / n + best.map.apply_flops, found.spend.flops / len(found.used)
    if map_ <= 0 or single <= 0:
        which = f"the map {best.map.kind!r}" if map_ <= 0 else "the single search"
        return Measurement.not_applicable("map_compute_gain", f"{which} takes no operations: there is no ratio")
    return Measurement.ok("map_compute_gain", math.log2(single / map_), editor=best.map.kind, spend=best.fit)


def _no_goals(name: str, which: str, protocol: str | None) -> Measurement:
    return Measurement.not_applicable(name, f"there is no {which} goal with an edit to ask for", protocol=protocol)


def mean_interval(values: np.ndarray) -> tuple[float | None, float | None]:
    """95% interval of a mean, by Student's t, cut at 0 for what is not negative; None for one value."""
    from scipy.special import stdtrit  # heavy: only where an interval is wanted

    if values.size < 2:
        return None, None
    half = float(stdtrit(values.size - 1, 0.975)) * float(values.std(ddof=1)) / math.sqrt(values.size)
    low = float(values.mean()) - half
    return (max(0.0, low) if (values >= 0).all() else low), float(values.mean()) + half


def share_interval(hits: int, n: int) -> tuple[float, float]:
    """95% interval of a share (Wilson 1927).

    >>> [round(x, 3) for x in share_interval(4, 4)]
    [0.51, 1.0]
    """
    z, p = 1.959964, hits / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n))
