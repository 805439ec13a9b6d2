"""The conjectures one by one: holds, does not hold, or cannot tell, by one rule and never by hand."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from retarget.analysis.checks import EXACT, Check, Verdict, above, number, with_interval
from retarget.analysis.conjectures import ENTANGLED, MEASURES, Measure, Points, correlation, rows_of
from retarget.analysis.correlations import Correlation
from retarget.analysis.statistics import Estimate, mean_interval
from retarget.analysis.summary import AgentName, agent_names, estimate

if TYPE_CHECKING:
    import polars as pl

#: Correlations that the conjectures are about: two measures, and what was expected.
EXPECTED: tuple[tuple[str, str, int], ...] = (
    ("retargetability", "slope over table", 1),
    ("retargetability", "shared reasoning", 1),
    ("retargetability", "goal coherence", 1),
    ("slope over table", "goal coherence", 1),
    ("retargetability", "map gain", 1),
    ("goal coherence", "map gain", 1),
    ("retargetability", "narrowness", -1),
    ("retargetability", "least collateral", 1),
    ("retargetability", "OOD competence", 1),
)

#: Measures of others that see behaviour alone, each apart.
_OF_BEHAVIOUR = tuple(
    Measure(metric, "goal_directedness", metric, "nat", "", 0, "behaviour")
    for metric in ("meg_known", "meg_goals", "meg_unknown")
)


def check_conjectures(results: pl.DataFrame, points: Points) -> tuple[Check, ...]:
    """Each conjecture that the rows speak of, with its verdict by one rule.

    A correlation holds when its whole interval has the sign that was expected, does not hold when none of it has, and
    cannot be told otherwise. A difference, or a mean against a bound, likewise.
    """
    out = [c for a, b, sign in EXPECTED for c in _correlated(points, a, b, sign)]
    twins = twins_of(results)
    return (*out, *_map_gains(twins, points), *_same_behaviour(twins), *_shortcuts(results))


def _correlated(points: Points, first: str, second: str, sign: int) -> list[Check]:
    if not points.has(first) or not points.has(second):
        return []
    more = "more" if sign > 0 else "less"
    note = " (they share data by construction)" if frozenset({first, second}) in ENTANGLED else ""
    rule = f"the more {first}, the {more} {second}{note}"
    out = [_told(rule, sign, *correlation(points, first, second))]
    if points.has("robustness"):
        held = correlation(points, first, second, fixed="robustness")
        out.append(_told(f"{rule}; with robustness held fixed", sign, *held))
    return out


def _told(rule: str, sign: int, found: Correlation | None, reason: str) -> Check:
    if found is None:
        return Check(rule, "cannot tell", reason)
    ends = sorted((sign * found.ci_low, sign * found.ci_high))
    verdict = above(Estimate(sign * found.value, ends[0], ends[1], found.n), 0.0)
    return Check(rule, verdict, correlation_words(found))


def correlation_words(found: Correlation) -> str:
    """A correlation as it is read."""
    low, high = number(found.ci_low), number(found.ci_high)
    return f"ρ = {number(found.value)} [{low}, {high}], {found.n} points of {found.kinds} kinds of agent"


def _map_gains(twins: Sequence[Twin], points: Points) -> list[Check]:
    """The map costs less than the edits where the goal has a place of its own, and more so than for a table."""
    out = []
    for name in points.names:
        values = points.of(name, "map gain")
        if name.role == "planner" and not name.compiled and values:
            mean = estimate("map_gain", values)
            rule = f"{name.label}: the map from goals to edits costs less than the single edits"
            found = f"map gain {with_interval(mean)} over worlds and seeds"
            out.append(Check(rule, above(mean, 0.0), found, _where(name, "map_gain")))
    for twin in twins:
        if twin.metric == "map_gain":
            rule = f"the map gains more for {twin.agent} than for its compiled table"
            found = f"{number(twin.first)} against {number(twin.second)}, apart by {with_interval(twin.gap)}"
            out.append(Check(rule, above(twin.gap, EXACT), found, (("agent", twin.agent), ("metric", "map_gain"))))
    return out


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
    out = []
    for label in dict.fromkeys(t.agent for t in twins):
        mine = [t for t in twins if t.agent == label]
        blind = [t for t in mine if t.behaviour and t.metric.startswith("meg_")]
        inside = [t for t in mine if t.metric == "retargetability"]
        if not blind or not inside:
            continue
        off = [t.metric for t in blind if t.far > EXACT]
        verdict: Verdict = "does not hold" if off or inside[0].far <= EXACT else _apart(inside[0].gap)
        rule = f"goal-directedness is the same for {label} and for its compiled table, and retargetability is not"
        alike = f"{', '.join(off)} differ" if off else f"{', '.join(t.metric for t in blind)} equal in every row"
        found = f"{alike}; retargetability apart by {with_interval(inside[0].gap)}"
        out.append(Check(rule, verdict, found, (("agent", label),)))
    return out


def _apart(gap: Estimate) -> Verdict:
    """Whether a mean difference, of whatever sign, is none of chance."""
    if gap.ci_low is None or gap.ci_high is None:
        return "cannot tell"
    return "holds" if gap.ci_low > 0 or gap.ci_high < 0 else "cannot tell"


def share_shown(label: str) -> float | None:
    """The share of demonstrations that know the shortcut, where a label gives one.

    >>> share_shown("demo_table(share=0.25)"), share_shown("planner")
    (0.25, None)
    """
    found = re.search(r"\bshare=(\d+(?:\.\d+)?)", label)
    return float(found.group(1)) if found else None


def _shortcuts(results: pl.DataFrame) -> list[Check]:
    """Three predictions: never where training omitted it, often where training was full of it, and by search anyway."""
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
        elif name.role == "planner" and not name.compiled:
            verdict, rule = above(taken, chance), f"{name.label}: takes the shortcut that no training showed"
        else:
            continue
        out.append(Check(rule, verdict, found, _where(name, "shortcut_rate_in_time")))
    return out


def shortcut_rates(results: pl.DataFrame) -> list[tuple[AgentName, list[float], float]]:
    """Of each agent the rates at which it takes the shortcut in time, over worlds and seeds, and chance's mean rate."""
    import polars as pl

    rows = results.filter((pl.col("probe") == "filtered") & (pl.col("status") == "ok"))
    out = []
    for name in agent_names(rows) if rows.height else ():
        mine = rows.filter((pl.col("agent") == name.label) & (pl.col("agent_id") == name.agent_id))
        taken, chance = (_by_cell(mine, metric) for metric in ("shortcut_rate_in_time", "in_time_uniform"))
        if taken:
            out.append((name, taken, sum(chance) / len(chance) if chance else 0.0))
    return out


def _by_cell(rows: pl.DataFrame, metric: str) -> list[float]:
    import polars as pl

    mine = rows.filter(pl.col("metric") == metric).sort("value").group_by("world", "seed").agg(pl.col("value").mean())
    return list(mine["value"].sort())
