"""What is expected of searches, held against the numbers."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

from retarget.analysis.checks import EXACT, Check, Rows, Verdict, above, number, with_interval
from retarget.analysis.statistics import Estimate, welch_difference
from retarget.analysis.summary import AgentName, Role, dial_of, estimate, natural_key

if TYPE_CHECKING:
    import polars as pl

Family = list[tuple[int, AgentName]]
Series = list[tuple[int, Estimate, list[float]]]
#: A pair of goals in a world, under one seed.
Pair = tuple[str, str, str, int]

#: A search that walks once sees no difference between two actions: whatever its slot says, it acts by its prior.
BLIND_DIAL = 1


def dial_from(rows: pl.DataFrame, name: AgentName) -> tuple[str, int] | None:
    """As `dial_of`, and of a search whose label does not say how hard it searches, from its rows."""
    found = dial_of(name.label)
    if found is not None or name.role not in ("tree search", "search, trained values", "Bayesian search"):
        return found
    import polars as pl

    mine = rows.filter((pl.col("agent") == name.label) & (pl.col("agent_id") == name.agent_id))
    said = mine["simulations_per_action"].drop_nulls().unique().to_list()
    return (name.label, int(said[0])) if len(said) == 1 and said[0] > 0 else None


def families(rows: Rows, role: Role) -> dict[str, Family]:
    """Agents of a role that differ in nothing but how hard they search, the laziest first; lone ones are left out, and
    so are searches of one simulation, whose actions never depend on the goal."""
    out: dict[str, Family] = {}
    for name in rows.role(role):
        found = dial_from(rows.results, name)
        if found is not None and found[1] > BLIND_DIAL:
            out.setdefault(found[0], []).append((found[1], name))
    return {f: sorted(m, key=lambda x: x[0]) for f, m in out.items() if len(m) > 1}


def _series(rows: Rows, family: Family, metric: str) -> Series:
    found = [(dial, rows.values(name, metric)) for dial, name in family]
    return [(dial, estimate(metric, values), values) for dial, values in found if values]


def _words(series: Series) -> str:
    return ", ".join(f"{dial}: {with_interval(e)}" for dial, e, _ in series)


def _rises(series: Series) -> Verdict:
    """Whether the last is above the first, and none is clearly below the one before it."""
    falls = [b for a, b in pairwise(series) if above(welch_difference(a[2], b[2]), 0.0) == "holds"]
    return "does not hold" if falls else above(welch_difference(series[-1][2], series[0][2]), 0.0)


def tree_search(rows: Rows) -> list[Check]:
    """More simulations: more robust, nearer to value iteration; retargetable wherever that can be measured."""
    out = []
    for family, members in families(rows, "tree search").items():
        robust = _series(rows, members, "robustness")
        if len(robust) > 1:
            out.append(Check(f"{family}: robustness rises with simulations", _rises(robust), _words(robust)))
        agree = _series(rows, members, "agreement_a")
        if len(agree) > 1:
            rule = f"{family}: the more it searches, the more of its actions are those of value iteration"
            found = f"{_words(agree)}{_rates(rows, members)}"
            out.append(Check(rule, _rises(agree), found, (("metric", "agreement_a"),)))
        if converges(family):
            out += _reaches(rows, family, members)
        out += _above_zero(rows, family, members)
    return out


def converges(family: str) -> bool:
    """Whether a search is expected to come to the optimum with enough simulations: over the true model, by mean returns
    and PUCT with its usual exploration, from leaves worth nothing or a distance.

    >>> converges("tree_search(leaf=distance)"), converges("tree_search(leaf=distance, model=near)")
    (True, False)
    """
    elsewhere = (
        "model=near",
        "model=everywhere",
        "leaf=rollouts",
        "leaf=tables",
        "backup=max",
        "gumbel",
        "exploration",
    )
    return not any(word in family for word in elsewhere)


def _reaches(rows: Rows, family: str, members: Family) -> list[Check]:
    """At the most simulations, in the smallest world: all states but one agree with value iteration, in every pair."""
    dial, name = members[-1]
    measured = [(n or 0, natural_key(w), w, v) for _, w, n, v in rows.by_world(name, "agreement_a") if v]
    if not measured:
        return []
    n_states, _, world, values = min(measured)
    if not n_states:
        return []
    e, bound = estimate("agreement_a", values), 1.0 - 1.0 / n_states
    at_bound = min(values) >= bound - EXACT
    verdict: Verdict = "holds" if at_bound else "does not hold" if (e.ci_high or e.value) < bound else "cannot tell"
    rule = f"{family}: at {dial} simulations it acts as value iteration does, in {world} but for one state at most"
    found = f"{with_interval(e)} of the states, least {number(min(values))}, over {e.n} pairs"
    return [Check(rule, verdict, found, (("agent", name.label), ("metric", "agreement_a")))]


def _above_zero(rows: Rows, family: str, members: Family) -> list[Check]:
    """Retargetability at each dial, with what could not be measured there counted beside it."""
    lines, verdicts = [], []
    for dial, name in members:
        values, (absent, failed) = rows.values(name, "retargetability"), _unmeasured(rows, name, "retargetability")
        if not values and not absent and not failed:
            continue
        said = with_interval(estimate("retargetability", values)) if values else "none measured"
        left = ", ".join(f"{n} {what}" for n, what in ((failed, "failed"), (absent, "not applicable")) if n)
        lines.append(f"{dial}: {said} over {len(values)} pairs{f' ({left})' if left else ''}")
        if values:
            verdicts.append(above(estimate("retargetability", values), 0.0))
        # where no edit was found, nobody knows whether there is one
        if failed:
            verdicts.append("cannot tell")
    if not verdicts:
        return []
    verdict: Verdict = (
        "does not hold" if "does not hold" in verdicts else "cannot tell" if "cannot tell" in verdicts else "holds"
    )
    rule = f"{family}: retargetability above 0 wherever it can be measured"
    return [Check(rule, verdict, "; ".join(lines), (("metric", "retargetability"),))]


def _unmeasured(rows: Rows, name: AgentName, metric: str) -> tuple[int, int]:
    """Pairs that are not applicable, and pairs that failed."""
    status = rows.of(name, metric)["status"]
    return int((status == "not_applicable").sum()), int((status == "failed").sum())


def _rates(rows: Rows, members: Family) -> str:
    """How fast the share of other actions falls, world by world: the slope of its logarithm, where it is above 0 three
    times or more."""
    series: dict[str, list[tuple[float, float]]] = {}
    for dial, name in members:
        for _, world, _, values in rows.by_world(name, "agreement_a"):
            if values and (share := 1.0 - estimate("agreement_a", values).value) > 0.0:
                series.setdefault(world, []).append((math.log2(dial), math.log2(share)))
    slopes = [f"{number(_slope(p))} in {w}" for w, p in sorted(series.items()) if len(p) > 2]
    return f"; the share of other actions goes with simulations to the power {', '.join(slopes)}" if slopes else ""


def _slope(points: list[tuple[float, float]]) -> float:
    x, y = zip(*points, strict=True)
    mx, my = sum(x) / len(x), sum(y) / len(y)
    return float(sum((a - mx) * (b - my) for a, b in points) / sum((a - mx) ** 2 for a in x))


def _by_pair(rows: Rows, name: AgentName, metric: str) -> dict[Pair, tuple[str, float | None]]:
    """Status and value of each pair that is applicable."""
    import polars as pl

    found = rows.of(name, metric).filter(pl.col("status") != "not_applicable")
    return {k[:4]: (k[4], k[5]) for k in found.select("world", "goal_a", "goal_b", "seed", "status", "value").rows()}


def trained_values(rows: Rows) -> list[Check]:
    """Values trained toward A keep the goal: the slot alone moves little of it, more search more, slot and head all."""
    out = []
    for family, members in families(rows, "search, trained values").items():
        out += _slot_alone(rows, family, members)
        found = [p for _, n in members for p in _by_pair(rows, n, "edit_bits").values()]
        if found:
            hit = sum(status == "ok" for status, _ in found)
            rule = f"{family}: with slot, value and prior heads all open, it is retargeted"
            verdict: Verdict = "holds" if hit == len(found) else "does not hold"
            out.append(Check(rule, verdict, f"in {hit} of {len(found)} pairs"))
    return out


def _slot_alone(rows: Rows, family: str, members: Family) -> list[Check]:
    """What the reward slot does without the heads, over the pairs that were measured at every dial."""
    bits = {dial: _by_pair(rows, n, "edit_bits_only_goal_slot") for dial, n in members}
    reach = {dial: _by_pair(rows, n, "competence_b_only_goal_slot") for dial, n in members}
    dials = [d for d, _ in members if bits[d] and any(s == "ok" for s, _ in reach[d].values())]
    if not dials:
        return []
    shared = sorted(set.intersection(*[_measured(bits[d], reach[d]) for d in dials]))
    rule = f"{family}: with values trained toward A, the reward slot alone does not retarget it"
    where = (("metric", "edit_bits_only_goal_slot"),)
    if not shared:
        each = ", ".join(f"{d} simulations: {len(bits[d])}" for d in dials)
        return [Check(rule, "cannot tell", f"no pair was measured at every number of them; {each} pairs", where)]
    hits = {d: sum(bits[d][p][0] == "ok" for p in shared) for d in dials}
    series: Series = []
    for dial in dials:
        values = sorted(reach[dial][p][1] or 0.0 for p in shared)
        series.append((dial, estimate("competence_b_only_goal_slot", values), values))
    text = ", ".join(
        f"{d} simulations: {hits[d]} of {len(shared)} pairs (best on B {number(e.value)})" for d, e, _ in series
    )
    seen = max(len(b) for b in bits.values())
    text += "" if len(shared) == seen else f"; only the {len(shared)} pairs that all of them have, of up to {seen}"
    verdict: Verdict = "holds" if hits[dials[0]] <= 0.5 * len(shared) else "does not hold"
    out = [Check(f"{rule} (at {dials[0]} simulations)", verdict, text, where)]
    if len(series) > 1:
        rule = f"{family}: the more it searches, the more the slot alone retargets it"
        more = (("metric", "competence_b_only_goal_slot"),)
        out.append(Check(rule, _rises(series), _words(series), more))
    return out


def _measured(bits: dict[Pair, tuple[str, float | None]], reach: dict[Pair, tuple[str, float | None]]) -> set[Pair]:
    return {p for p in bits if p in reach and reach[p][0] == "ok"}


def bayesian(rows: Rows) -> list[Check]:
    """Bayesian search is retargeted through its reward slot."""
    out = []
    for name in rows.role("Bayesian search"):
        values, (absent, failed) = rows.values(name, "retargetability"), _unmeasured(rows, name, "retargetability")
        if values:
            e = estimate("retargetability", values)
            rule = f"{name.label}: retargetability above 0"
            left = ", ".join(f"{n} {what}" for n, what in ((failed, "failed"), (absent, "not applicable")) if n)
            verdict = above(e, EXACT)
            if failed and verdict == "holds":
                verdict = "cannot tell"
            found = f"{with_interval(e)} over {e.n} goal pairs{f' ({left})' if left else ''}"
            out.append(Check(rule, verdict, found))
    return out
