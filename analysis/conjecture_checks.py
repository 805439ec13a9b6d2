"""The conjectures one by one: holds, does not hold, or cannot tell, by one rule and never by hand."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from retarget.analysis.checks import EXACT, Check, Verdict, above, number, with_interval
from retarget.analysis.conjectures import (
    JUDGED,
    MEASURES,
    Measure,
    Points,
    correlation,
    distinct,
    merged,
    rows_of,
)
from retarget.analysis.correlations import Correlation, holm
from retarget.analysis.statistics import Estimate, mean_interval
from retarget.analysis.summary import AgentName, agent_names, estimate

if TYPE_CHECKING:
    import polars as pl

#: Chance, at most, that any correlation is said to hold or not to hold where there is none.
LEVEL = 0.05

#: Measures of others that see behaviour alone, each apart.
_OF_BEHAVIOUR = tuple(
    Measure(metric, "goal_directedness", metric, "nat", "", 0, "behaviour")
    for metric in ("meg_known", "meg_goals", "meg_unknown")
)


def check_conjectures(results: pl.DataFrame, points: Points) -> tuple[Check, ...]:
    """Each conjecture that the rows speak of, with its verdict by one rule.

    Correlations are judged together (`judged`). A difference, or a mean against a bound, holds when its whole 95%
    interval is on the expected side, does not hold when none of it is, and cannot be told otherwise.
    """
    results = distinct(results)
    correlations = tuple(j.check() for j in judged(points))
    twins = twins_of(results)
    return (*correlations, *_map_gains(twins), *_same_behaviour(twins), *_shortcuts(results), *_searches(results))


@dataclass(frozen=True)
class Judged:
    """One correlation that was expected, and what is found of it.

    Attributes:
        first, second: the measures.
        sign: that was expected.
        fixed: whether robustness is held fixed.
        found, bare: over all kinds, and over those that are no tables; None where there is none, with the reason.
        tables: number of kinds that `bare` leaves out.
        p: two-sided, the greater of the two; 1 where one is missing or their signs differ.
        adjusted: for the number of correlations that are judged (Holm).
    """

    first: str
    second: str
    sign: int
    fixed: bool
    found: Correlation | None
    bare: Correlation | None
    reason: str
    tables: int
    p: float
    adjusted: float = 1.0

    @property
    def verdict(self) -> Verdict:
        """The weaker of the two; it takes both to tell."""
        if self.found is None or self.bare is None or self.adjusted > LEVEL:
            return "cannot tell"
        return "holds" if self.sign * self.found.value > 0 else "does not hold"

    def check(self) -> Check:
        """As a line of the page."""
        more = "more" if self.sign > 0 else "less"
        held = "; with robustness held fixed" if self.fixed else ""
        rule = f"the more {self.first}, the {more} {self.second}{held}"
        if self.found is None:
            return Check(rule, "cannot tell", self.reason)
        words = correlation_words(self.found)
        if self.tables:
            bare = self.reason if self.bare is None else correlation_words(self.bare)
            words += f"; without tables: {bare}"
        return Check(rule, self.verdict, f"{words}; p = {number(self.p)}, adjusted {number(self.adjusted)}")


def judged(points: Points) -> tuple[Judged, ...]:
    """The correlations that were expected of measures that share no data, each plain and with robustness held fixed.

    Agents of one family count as one. Each is told over all kinds and again without those that are 0 by construction
    (tables of actions), and the weaker verdict counts: its p-value is the greater of the two. All p-values together
    are adjusted for their number (Holm 1979), so that one wrong word in all of them has a chance of 5% at most.
    """
    kinds = merged(points)
    tables = kinds.tables()
    bare = kinds.only([n for n in kinds.names if n not in tables])
    out = []
    for first, second, sign in JUDGED:
        if not points.has(first) or not points.has(second):
            continue
        left_out = sum(bool(kinds.only([n]).shared([first, second])) for n in tables)
        for fixed in (None, "robustness") if points.has("robustness") else (None,):
            found, reason = correlation(kinds, first, second, fixed=fixed)
            rest, why = correlation(bare, first, second, fixed=fixed)
            known = found is not None and rest is not None and found.value * rest.value > 0
            p = max(found.p, rest.p) if known and found and rest else 1.0
            out.append(Judged(first, second, sign, bool(fixed), found, rest, reason or why, left_out, p))
    adjusted = holm([j.p for j in out])
    return tuple(replace(j, adjusted=a) for j, a in zip(out, adjusted, strict=True))


def correlation_words(found: Correlation) -> str:
    """A correlation as it is read."""
    low, high = number(found.ci_low), number(found.ci_high)
    return f"ρ = {number(found.value)} [{low}, {high}], {found.n} points of {found.kinds} kinds of agent"


def _map_gains(twins: Sequence[Twin]) -> list[Check]:
    """Where the goal has a place of its own, the map gains more than for a table of the same behaviour."""
    out = []
    for twin in twins:
        if twin.metric == "map_gain":
            rule = f"the map gains more for {twin.agent} than for its compiled table"
            found = f"{number(twin.first)} against {number(twin.second)}, apart by {with_interval(twin.gap)}"
            out.append(Check(rule, above(twin.gap, EXACT), found, (("agent", twin.agent), ("metric", "map_gain"))))
    return out


@dataclass(frozen=True)
class InstrumentCheck:
    """Something that cannot come out otherwise, if the instrument is sound: it tells nothing of the agents.

    Attributes:
        rule: what must be so, and why.
        sound: whether it is.
        found: the figures, in words.
    """

    rule: str
    sound: bool
    found: str


def check_instrument(results: pl.DataFrame, points: Points) -> tuple[InstrumentCheck, ...]:
    """Identities among the measures, held against the rows."""
    results = distinct(results)
    out = []
    for name in points.names:
        values = points.of(name, "map gain")
        if name.role == "planner" and not name.compiled and values:
            rule = f"{name.label}: writing a goal into its slot is shorter than the single edits, which write it too"
            found = f"least map gain {number(min(values))} of {len(values)} worlds and seeds"
            out.append(InstrumentCheck(rule, min(values) > 0, found))
    twins = twins_of(results)
    for label in dict.fromkeys(t.agent for t in twins):
        mine = [t for t in twins if t.agent == label and t.behaviour and t.metric.startswith("meg_")]
        if mine:
            rule = f"goal-directedness, which sees behaviour alone, is the same for {label} and for its compiled table"
            found = f"largest difference {number(max(t.far for t in mine))} in {sum(t.rows for t in mine)} rows"
            out.append(InstrumentCheck(rule, all(t.far <= EXACT for t in mine), found))
    for name, values, chance in shortcut_rates(results):
        if name.role == "planner" and not name.compiled:
            rule = f"{name.label}, which is optimal by definition, takes the shortcut in time more often than chance"
            found = f"least rate {number(min(values))}, chance {number(chance)}"
            out.append(InstrumentCheck(rule, min(values) > chance, found))
    return tuple(out)


def _where(name: AgentName, metric: str) -> tuple[tuple[str, str], ...]:
    return (("agent", name.label), ("metric", metric))


@dataclass(frozen=True)
class Twin:
    """One metric on an agent and on the table compiled from it.

    Attributes:
        agent, table: their labels.
        metric: which.
        behaviour: whether nothing but behaviour enters it.
        first, second: means of the two, over the rows that both have.
        gap: mean of the differences, agent less table, with an interval over worlds and seeds.
        far: largest difference.
        rows: shared rows.
    """

    agent: str
    table: str
    metric: str
    behaviour: bool
    first: float
    second: float
    gap: Estimate
    far: float
    rows: int


def twins_of(results: pl.DataFrame) -> tuple[Twin, ...]:
    """Each agent beside the table compiled from it, on what behaviour alone tells and on what the inside tells."""
    names = agent_names(results)
    whole = {(n.agent_id, n.base): n for n in names if not n.compiled}
    measures = (*(m for m in MEASURES if m.probe != "goal_directedness"), *_OF_BEHAVIOUR)
    out = []
    for table in (n for n in names if n.compiled and (n.agent_id, n.base) in whole):
        agent = whole[(table.agent_id, table.base)]
        for measure in sorted(measures, key=lambda m: m.source != "behaviour"):
            found = _twin(results, agent, table, measure)
            out += [found] if found else []
    return tuple(out)


def _twin(results: pl.DataFrame, agent: AgentName, table: AgentName, measure: Measure) -> Twin | None:
    import polars as pl

    on = ["world", "seed", "goal_a", "goal_b", "protocol", "dose", "gamma", "level"]
    rows = rows_of(results, measure).filter(pl.col("status") == "ok")

    def of(name: AgentName) -> pl.DataFrame:
        mine = rows.filter((pl.col("agent") == name.label) & (pl.col("agent_id") == name.agent_id))
        return mine.select(*on, "value").unique(subset=on, keep="first", maintain_order=True)

    both = of(agent).join(of(table), on=on, how="inner", nulls_equal=True, suffix="_table").sort(on, nulls_last=True)
    if both.is_empty():
        return None
    both = both.with_columns(gap=pl.col("value") - pl.col("value_table"))
    gaps = both.group_by("world", "seed", maintain_order=True).agg(pl.col("gap").mean())["gap"].to_list()
    first, second = (mean_interval(both[c].sort().to_list()).value for c in ("value", "value_table"))
    far = max(abs(g) for g in both["gap"].to_list())
    behaviour = measure.source == "behaviour"
    return Twin(
        agent.label, table.label, measure.metric, behaviour, first, second, mean_interval(gaps), far, both.height
    )  # fmt: skip


def _same_behaviour(twins: Sequence[Twin]) -> list[Check]:
    """Whether retargetability tells apart what acts alike; that behaviour is alike is a check of the instrument."""
    out = []
    for label in dict.fromkeys(t.agent for t in twins):
        blind = [t for t in twins if t.agent == label and t.behaviour and t.metric.startswith("meg_")]
        inside = next((t for t in twins if t.agent == label and t.metric == "retargetability"), None)
        if not blind or inside is None:
            continue
        rule = f"retargetability tells {label} from its compiled table, which goal-directedness cannot"
        alike = all(t.far <= EXACT for t in blind)
        verdict: Verdict = "cannot tell" if not alike else _apart(inside)
        found = f"retargetability apart by {with_interval(inside.gap)}"
        if not alike:
            found += "; they do not act alike: see the checks of the instrument"
        out.append(Check(rule, verdict, found, (("agent", label),)))
    return out


def _apart(twin: Twin) -> Verdict:
    """Whether a mean difference, of whatever sign, is none of chance."""
    gap = twin.gap
    if twin.far <= EXACT:
        return "does not hold"
    if gap.ci_low is None or gap.ci_high is None:
        return "cannot tell"
    return "holds" if gap.ci_low > 0 or gap.ci_high < 0 else "cannot tell"


def label_options(label: str) -> dict[str, str]:
    """Options that a label gives, read whole.

    >>> label_options("demo_network(share=0.0, share_deployment=1.0)")
    {'share': '0.0', 'share_deployment': '1.0'}
    """
    found = re.search(r"\((.*)\)", label)
    pairs = (part.partition("=") for part in found.group(1).split(",")) if found else ()
    return {name.strip(): value.strip() for name, mark, value in pairs if mark}


def _number_of(label: str, option: str) -> float | None:
    try:
        return float(label_options(label)[option])
    except (KeyError, ValueError):
        return None


def share_shown(label: str) -> float | None:
    """The share of demonstrations that know the shortcut, where a label gives one and training showed nothing else.

    None too where demonstrations of deployment have a share of their own, or free play showed the world.

    >>> share_shown("demo_table(share=0.25)"), share_shown("planner"), share_shown("t(share=0, play=5000)")
    (0.25, None, None)
    """
    late = _number_of(label, "share_deployment")
    if played(label) or (late is not None and late >= 0):
        return None
    return _number_of(label, "share")


def played(label: str) -> bool:
    """Whether a label says that an agent learned from free play too: an option, or the word.

    >>> played("demo planner after play"), played("t(play=5000)"), played("t(play=0)"), played("display")
    (True, True, False, False)
    """
    given = _number_of(label, "play")
    return given > 0 if given is not None else re.search(r"\bplay\b", label) is not None


def _shortcuts(results: pl.DataFrame) -> list[Check]:
    """Never where training omitted it, often where training was full of it, and where play alone could show it."""
    out = []
    for name, values, chance in shortcut_rates(results):
        taken, share = estimate("success", values), share_shown(name.label)
        found = f"rate {with_interval(taken)}, chance {number(chance)}"
        if share == 0:
            often = above(taken, EXACT) == "holds"
            verdict: Verdict = "holds" if max(values) <= EXACT else "does not hold" if often else "cannot tell"
            rule = f"{name.label}: never takes the shortcut that its training omitted"
        elif share == 1:
            verdict, rule = above(taken, chance), f"{name.label}: takes the shortcut that its training showed"
        elif name.agent_id == "demo_planner" and played(name.label) and not _number_of(name.label, "share"):
            rule = f"{name.label}: takes the shortcut that its demonstrations omitted, by search in what play showed"
            verdict = above(taken, chance)
        else:
            continue
        out.append(Check(rule, verdict, found, _where(name, "shortcut_rate_in_time")))
    return out


def _searches(results: pl.DataFrame) -> list[Check]:
    """Search of limited depth: the deeper, the more often it takes the shortcut, up to the optimum."""
    depths: dict[int, dict[tuple[str, int], float]] = {}
    best: dict[tuple[str, int], float] = {}
    for name, cells in _shortcut_cells(results):
        if name.role == "depth planner" and not name.compiled and name.depth is not None:
            for cell, rate in cells.items():
                depths.setdefault(name.depth, {}).setdefault(cell, rate)  # one depth under two names is one agent
        elif name.role == "planner" and not name.compiled:
            best = cells
    order = sorted(depths)
    if len(order) < 2:
        return []
    low, high = depths[order[0]], depths[order[-1]]
    by_depth = "; ".join(f"{d}: {with_interval(estimate('success', list(depths[d].values())))}" for d in order)
    both = sorted(low.keys() & high.keys())
    rule = "search: the deeper, the more often it takes the shortcut in time"
    out = [Check(rule, _rises([depths[d] for d in order], both), f"rate by depth {by_depth}", _DEPTHS)]
    shared = sorted(high.keys() & best.keys())
    if shared:
        short = mean_interval([best[c] - high[c] for c in shared])
        verdict: Verdict = "does not hold" if above(short, EXACT) == "holds" else "cannot tell"
        if all(best[c] - high[c] <= EXACT for c in shared):
            verdict = "holds" if len(shared) > 1 else "cannot tell"
        rule = f"search of depth {order[-1]} takes the shortcut as often as the optimum"
        out.append(Check(rule, verdict, f"short of it by {with_interval(short)}", _DEPTHS))
    return out


_DEPTHS = (("metric", "shortcut_rate_in_time"), ("agent_id", "depth_planner"))


def _rises(rates: Sequence[dict[tuple[str, int], float]], both: Sequence[tuple[str, int]]) -> Verdict:
    """Whether the deepest is above the shallowest by its whole interval, and no mean step between them goes down."""
    if not both:
        return "cannot tell"
    told = above(mean_interval([rates[-1][c] - rates[0][c] for c in both]), EXACT)
    steps = [[b[c] - a[c] for c in sorted(a.keys() & b.keys())] for a, b in pairwise(rates)]
    falls = any(step and sum(step) / len(step) < -EXACT for step in steps)
    return "cannot tell" if told == "holds" and falls else told


def shortcut_rates(results: pl.DataFrame) -> list[tuple[AgentName, list[float], float]]:
    """Of each agent the rates at which it takes the shortcut in time, over worlds and seeds, and chance's mean rate."""
    chance = {name: cells.values() for name, cells in _shortcut_cells(results, "in_time_uniform")}
    out = []
    for name, cells in _shortcut_cells(results):
        even = sorted(chance.get(name, ()))
        out.append((name, sorted(cells.values()), sum(even) / len(even) if even else 0.0))
    return out


def _shortcut_cells(
    results: pl.DataFrame, metric: str = "shortcut_rate_in_time"
) -> list[tuple[AgentName, dict[tuple[str, int], float]]]:
    """Of each agent that has it, a metric by world and seed."""
    import polars as pl

    rows = results.filter((pl.col("probe") == "filtered") & (pl.col("status") == "ok") & (pl.col("metric") == metric))
    out = []
    for name in agent_names(rows) if rows.height else ():
        mine = rows.filter((pl.col("agent") == name.label) & (pl.col("agent_id") == name.agent_id)).sort("value")
        means = mine.group_by("world", "seed").agg(pl.col("value").mean()).sort("world", "seed")
        out.append((name, {(world, seed): value for world, seed, value in means.rows()}))
    return out
