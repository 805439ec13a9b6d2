"""The expectations, each held against the numbers: holds, does not hold, or cannot tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from retarget.analysis.statistics import (
    ROUNDING,
    Estimate,
    mean_interval,
    order_change,
    share_interval,
    welch_difference,
)
from retarget.analysis.summary import (
    BEHAVIOUR_METRICS,
    AgentName,
    Role,
    agent_names,
    estimate,
    growth,
    identical_pairs,
    wide_rows,
    worlds,
)

if TYPE_CHECKING:
    import polars as pl

Verdict = Literal["holds", "does not hold", "cannot tell"]

#: Differences below this are rounding.
EXACT = 1e-9
#: Share of random edits that may meet the requirement by chance.
RARE = 0.05


@dataclass(frozen=True)
class Check:
    """One expectation and what the numbers say about it.

    Attributes:
        expectation: what was expected, in words.
        verdict: `holds`, `does not hold`, or `cannot tell`.
        found: the figures behind the verdict, in words.
        rows: filters that show the rows behind it, column to value.
    """

    expectation: str
    verdict: Verdict
    found: str
    rows: tuple[tuple[str, str], ...] = field(default=())


def number(value: float | None) -> str:
    """A number as it is read: three significant digits, whole numbers in full.

    >>> number(0.12345), number(-2.0), number(1234.5), number(None), number(0.99999)
    ('0.123', '−2', '1,234', '–', '0.99999')
    """
    if value is None:
        return "–"
    if abs(value) < ROUNDING:
        return "0"
    if abs(value) >= 1e7 or abs(value) < 1e-4:
        text = f"{value:.2e}"
    elif value == int(value) or abs(value) >= 100:
        text = f"{value:,.0f}"
    else:
        digits = 3
        # Rounding must not turn a share just below 1 into 1: that is the difference that counts.
        while digits < 8 and abs(value) < 1 and abs(float(f"{value:.{digits}g}")) == 1:
            digits += 1
        text = f"{value:.{digits}g}"
    return text.replace("-", "−")


def with_interval(e: Estimate) -> str:
    """`mean [low, high]`, or why there is no interval.

    >>> with_interval(Estimate(0.5, 0.25, 0.75, 9)), with_interval(Estimate(1.0, None, None, 1))
    ('0.5 [0.25, 0.75]', '1 (one value)')
    """
    if e.ci_low is None or e.ci_high is None:
        return f"{number(e.value)} ({'one value' if e.n == 1 else f'{e.n} values, no interval'})"
    if e.ci_low == e.ci_high:
        return f"{number(e.value)} (all {e.n} equal)"
    return f"{number(e.value)} [{number(e.ci_low)}, {number(e.ci_high)}]"


def above(e: Estimate, bound: float) -> Verdict:
    """Whether a mean is above a bound: by its whole interval, else it cannot be told."""
    if e.ci_low is None or e.ci_high is None:
        return "cannot tell"
    return "holds" if e.ci_low > bound else "does not hold" if e.ci_high <= bound else "cannot tell"


def _both(*verdicts: Verdict) -> Verdict:
    """All must hold; one that does not settles it."""
    if "does not hold" in verdicts:
        return "does not hold"
    return "cannot tell" if "cannot tell" in verdicts or not verdicts else "holds"


@dataclass(frozen=True)
class Rows:
    """Rows with the look-ups that the checks share."""

    results: pl.DataFrame
    names: tuple[AgentName, ...]

    def role(self, role: Role, *, compiled: bool = False) -> tuple[AgentName, ...]:
        """Agents of a role, the tables compiled from them apart."""
        return tuple(n for n in self.names if n.role == role and n.compiled == compiled)

    def of(self, name: AgentName, metric: str) -> pl.DataFrame:
        """Rows of one agent and metric."""
        import polars as pl

        return self.results.filter(
            (pl.col("agent") == name.label) & (pl.col("agent_id") == name.agent_id) & (pl.col("metric") == metric)
        )

    def values(self, name: AgentName, metric: str) -> list[float]:
        """Its values that are ok, sorted."""
        import polars as pl

        return list(self.of(name, metric).filter(pl.col("status") == "ok")["value"].sort())

    def is_policy_table(self, name: AgentName) -> bool:
        """Whether every shortest edit of an agent touches a policy table and nothing else."""
        import polars as pl

        parts = self.of(name, "edit_bits").filter(pl.col("status") == "ok")["parts"]
        return parts.len() > 0 and set(parts) == {"policy"}

    def by_world(self, name: AgentName, metric: str) -> list[tuple[str, str, int | None, list[float]]]:
        """Its values that are ok, world by world."""
        import polars as pl

        rows = self.of(name, metric).filter(pl.col("status") == "ok")
        return [(f, w, n, list(rows.filter(pl.col("world") == w)["value"].sort())) for f, w, n in worlds(rows)]


def check_all(results: pl.DataFrame) -> tuple[Check, ...]:
    """Every expectation whose agents are in the rows, in reading order."""
    from retarget.analysis import search_checks

    rows = Rows(results, agent_names(results))
    parts: tuple[Callable[[Rows], list[Check]], ...] = (
        _identical,
        _little_table,
        _limit_table,
        _compiled_zero,
        _planner,
        _depth,
        _controller,
        search_checks.tree_search,
        search_checks.trained_values,
        search_checks.bayesian,
        _learned,
        _goal_table,
        _distilled,
        _many_goals,
        _random_edits,
        _plain_code,
        _bounds,
    )
    return tuple(check for part in parts for check in part(rows))


def _identical(rows: Rows) -> list[Check]:
    import polars as pl

    table = identical_pairs(rows.results)
    out = []
    for agent, compiled in table.select("agent", "compiled").unique(maintain_order=True).rows():
        mine = table.filter((pl.col("agent") == agent) & (pl.col("compiled") == compiled))
        alike = mine.filter(pl.col("metric").is_in(list(BEHAVIOUR_METRICS)) & (pl.col("cells") > 0))
        off = alike.filter(pl.col("max_difference") > EXACT)["metric"].to_list()
        if alike.is_empty():
            verdict: Verdict = "cannot tell"
            found = "no measure of behaviour was taken on both"
        elif off:
            verdict, found = "does not hold", f"these differ: {', '.join(off)}"
        else:
            verdict = "holds"
            found = f"equal on {', '.join(alike['metric'].to_list())} ({int(alike['cells'].sum())} shared rows)"
        rule = f"every measure of behaviour is the same for {agent} and for {compiled}"
        out.append(Check(rule, verdict, found, (("agent", agent),)))
        name = next(n for n in rows.names if n.label == agent)
        if name.role == "planner":
            out.append(_far_apart(rows, name, mine))
    return out


def _far_apart(rows: Rows, name: AgentName, mine: pl.DataFrame) -> Check:
    import polars as pl

    gap = mine.filter((pl.col("metric") == "retargetability") & (pl.col("cells") > 0)).rows(named=True)
    rule = f"retargetability tells {name.label} from its compiled table: at least 1 from 100 states on, 3 from 400 on"
    where = (("agent", name.label), ("metric", "retargetability"))
    if not gap:
        return Check(rule, "cannot tell", "no goal pair was measured on both", where)
    verdicts, texts = [], []
    for _, world, n_states, values in rows.by_world(name, "retargetability"):
        if n_states is not None and n_states >= 100:
            mean = estimate("retargetability", values)
            verdicts.append(above(mean, 3.0 if n_states >= 400 else 1.0))
            texts.append(f"{world}, {n_states} states: {with_interval(mean)} over {mean.n} pairs")
    first = Estimate(
        gap[0]["mean_difference"], gap[0]["mean_difference_low"], gap[0]["mean_difference_high"], gap[0]["cells"]
    )
    lead = f"mean difference {with_interval(first)} over {first.n} shared goal pairs"
    return Check(rule, _both(*verdicts), "; ".join([lead, *(texts or ["no world has 100 states"])]), where)


def _little_table(rows: Rows) -> list[Check]:
    out = []
    for name in rows.role("table, little training"):
        values = rows.values(name, "robustness")
        if values:
            mean = estimate("robustness", values)
            flipped = above(Estimate(-mean.value, *_negated(mean), mean.n), -0.5)
            means = [(w, estimate("robustness", v).value) for _, w, _, v in rows.by_world(name, "robustness")]
            off = ", ".join(f"{w}: {number(m)}" for w, m in means if m >= 0.5)
            found = with_interval(mean) + (f"; not so in {off}" if off else "")
            out.append(
                Check(
                    f"{name.label}: robustness below 0.5",
                    flipped,
                    found,
                    (("agent", name.label), ("metric", "robustness")),
                )
            )
    return out


def _negated(e: Estimate) -> tuple[float | None, float | None]:
    return (None if e.ci_high is None else -e.ci_high, None if e.ci_low is None else -e.ci_low)


def _limit_table(rows: Rows) -> list[Check]:
    out = []
    for name in rows.role("table, to the limit"):
        values = rows.values(name, "robustness")
        if values:
            verdict: Verdict = "holds" if min(values) >= 1 - EXACT else "does not hold"
            found = f"mean {with_interval(estimate('robustness', values))}, least {number(min(values))}"
            out.append(
                Check(f"{name.label}: robustness 1", verdict, found, (("agent", name.label), ("metric", "robustness")))
            )
    return out


def _compiled_zero(rows: Rows) -> list[Check]:
    tables = [(n, rows.values(n, "retargetability")) for n in rows.names if n.compiled or rows.is_policy_table(n)]
    tables = [(n, v) for n, v in tables if v]
    if not tables:
        return []
    worst_name, worst = max(((n.label, max(v, key=abs)) for n, v in tables), key=lambda p: abs(p[1]))
    total = sum(len(v) for _, v in tables)
    verdict: Verdict = "holds" if abs(worst) <= EXACT else "does not hold"
    found = f"{total} goal pairs of {' · '.join(n.label for n, _ in tables)}"
    found += f"; farthest from 0: {number(worst)} ({worst_name})"
    return [Check("compiled tables: retargetability exactly 0, their edit is the change of behaviour", verdict, found)]


def _planner(rows: Rows) -> list[Check]:
    import polars as pl

    out = []
    fits = growth(rows.results)
    for name in rows.role("planner"):
        values = rows.values(name, "retargetability")
        where = (("agent", name.label), ("metric", "retargetability"))
        if values:
            mean = estimate("retargetability", values)
            found = f"{with_interval(mean)} over {mean.n} goal pairs, least {number(min(values))}"
            out.append(Check(f"{name.label}: retargetability above 0", above(mean, 0.0), found, where))
        for r in fits.filter((pl.col("agent") == name.label) & (pl.col("agent_id") == name.agent_id)).rows(named=True):
            out.append(_grows(rows, name, r))
    return out


def _grows(rows: Rows, name: AgentName, fit: dict[str, Any]) -> Check:
    """Largest world of a family against its smallest, over goal pairs; the slope beside it."""
    sizes: dict[int, list[float]] = {}
    for family, _, n_states, values in rows.by_world(name, "retargetability"):
        if family == fit["world_id"] and n_states is not None:
            sizes.setdefault(n_states, []).extend(values)
    small, large = min(sizes), max(sizes)
    slope = Estimate(fit["per_doubling"], fit["per_doubling_low"], fit["per_doubling_high"], fit["n_points"])
    gap = welch_difference(sizes[large], sizes[small])
    found = (
        f"from {small:,} to {large:,} states it changes by {with_interval(gap)}, by {with_interval(slope)} a doubling; "
        f"edit bits grow with exponent {number(fit['edit_exponent'])}, the change of behaviour with "
        f"{number(fit['behaviour_exponent'])}"
    )
    rule = f"{name.label}: retargetability grows with the number of states, in {fit['world_id']}"
    return Check(rule, above(gap, 0.0), found, (("agent", name.label), ("metric", "retargetability")))


def _depth(rows: Rows) -> list[Check]:
    names = [n for n in rows.role("depth planner") if n.depth is not None]
    out = []
    steps = [(n, rows.values(n, "robustness")) for n in names]
    steps = [(n, v) for n, v in steps if v]
    if len(steps) > 1:
        means = [estimate("robustness", v) for _, v in steps]
        text = ", ".join(f"depth {n.depth}: {with_interval(m)}" for (n, _), m in zip(steps, means, strict=True))
        falls = [a.value > b.value + EXACT for a, b in pairwise(means)]
        first, last = steps[0][1], steps[-1][1]
        verdict = "does not hold" if any(falls) else above(welch_difference(last, first), 0.0)
        out.append(Check("depth-limited search: robustness rises with depth", verdict, text))
    kept = [(n, rows.values(n, "retargetability")) for n in names]
    measured = [(n, estimate("retargetability", v)) for n, v in kept if v]
    if measured:
        text = ", ".join(f"depth {n.depth}: {with_interval(m)} ({m.n} pairs)" for n, m in measured)
        blank = [str(n.depth) for n, v in kept if not v]
        text += f"; nothing to measure at depth {', '.join(blank)}" if blank else ""
        rule = "depth-limited search: retargetability above 0 at every depth at which it can be measured"
        out.append(Check(rule, _both(*[above(m, 0.0) for _, m in measured]), text))
    return out


def _controller(rows: Rows) -> list[Check]:
    out = []
    for name in rows.role("controller"):
        values = rows.values(name, "retargetability")
        if values:
            mean = estimate("retargetability", values)
            found = f"{with_interval(mean)} over {mean.n} goal pairs"
            rule = f"{name.label}: moving its set-point retargets it (retargetability above 0)"
            out.append(Check(rule, above(mean, 0.0), found, (("agent", name.label),)))
    return out


def _failures(rows: Rows, name: AgentName) -> tuple[int, int]:
    """Pairs in which no edit was found, of those in which there was something to find."""
    import polars as pl

    status = rows.of(name, "retargetability").filter(pl.col("status") != "not_applicable")["status"]
    return int((status == "failed").sum()), len(status)


def _learned(rows: Rows) -> list[Check]:
    kinds: tuple[tuple[Role, Role], ...] = (
        ("learned model, near", "learned model, everywhere"), ("network model, near", "network model, everywhere"),
    )  # fmt: skip
    found = [(rows.role(near), rows.role(far)) for near, far in kinds]
    return [check for near, far in found if near and far for check in _near_and_far(rows, near[0], far[0])]


def _near_and_far(rows: Rows, a: AgentName, b: AgentName) -> list[Check]:
    rule = f"a model learned near one policy ({a.label}) is retargeted worse than one learned everywhere ({b.label})"
    (fail_a, n_a), (fail_b, n_b) = _failures(rows, a), _failures(rows, b)
    va, vb = rows.values(a, "retargetability"), rows.values(b, "retargetability")
    texts, verdicts = [], []
    if n_a and n_b:
        sa, sb = share_interval(fail_a, n_a), share_interval(fail_b, n_b)
        texts.append(f"no edit found in {fail_a} of {n_a} pairs near, {fail_b} of {n_b} everywhere")
        verdicts.append(_apart(sa, sb))
    if va and vb:
        gap = welch_difference(vb, va)
        texts.append(f"retargetability where found: {with_interval(estimate('retargetability', va))} near, "
                     f"{with_interval(estimate('retargetability', vb))} everywhere")  # fmt: skip
        verdicts.append(above(gap, 0.0))
    verdict: Verdict = "holds" if "holds" in verdicts else _both(*verdicts)
    if "holds" in verdicts and "does not hold" in verdicts:
        verdict = "cannot tell"
    return [Check(rule, verdict, "; ".join(texts) or "neither could be measured", (("metric", "retargetability"),))]


def _apart(high: Estimate, low: Estimate) -> Verdict:
    """Whether one share is above another, by intervals that do not touch."""
    if (high.ci_low or 0.0) > (low.ci_high or 0.0):
        return "holds"
    return "does not hold" if (high.ci_high or 0.0) < (low.ci_low or 0.0) else "cannot tell"


def _goal_table(rows: Rows) -> list[Check]:
    import polars as pl

    out = []
    for name in rows.role("goal-indexed table"):
        mine = rows.of(name, "retargetability").filter(pl.col("status") == "ok")
        seen = list(mine.filter(pl.col("goal_b_seen"))["value"].sort())
        held = list(mine.filter(pl.col("goal_b_seen").not_())["value"].sort())
        rule = f"{name.label}: cheap for goals that it was trained on, not for held-out ones"
        where = (("agent", name.label), ("metric", "retargetability"))
        if not seen or not held:
            out.append(
                Check(rule, "cannot tell", f"{len(seen)} trained and {len(held)} held-out goals were measured", where)
            )
            continue
        a, b = estimate("retargetability", seen), estimate("retargetability", held)
        found = f"retargetability {with_interval(a)} for trained goals, {with_interval(b)} for held-out ones"
        out.append(Check(rule, above(welch_difference(seen, held), 0.0), found, where))
    return out


def _distilled(rows: Rows) -> list[Check]:
    """Networks of one goal, beside the planner that they were distilled from and the tables compiled from them."""
    out = []
    planners = [v for n in rows.role("planner") for v in rows.values(n, "retargetability")]
    for name in rows.role("network"):
        if "distil" not in name.label:
            continue
        own = rows.values(name, "retargetability")
        robust = rows.values(name, "robustness")
        if not own or not planners or not robust:
            continue
        mine, theirs = estimate("retargetability", own), estimate("retargetability", planners)
        same, shared = _shared(rows, name)
        found = (
            f"robustness {with_interval(estimate('robustness', robust))}; behaviour bits equal to the "
            f"planner's in {same} of {shared} shared pairs; retargetability {with_interval(mine)} over "
            f"{mine.n} pairs, of the planner {with_interval(theirs)} over {theirs.n}"
        )
        rule = f"{name.label} acts like the planner (robustness at least 0.99), and is less retargetable"
        like = above(estimate("robustness", robust), 0.99)
        where = (("agent", name.label), ("metric", "retargetability"))
        out.append(Check(rule, _both(like, _apart(theirs, mine)), found, where))
    return out


def _not_applicable(rows: Rows, name: AgentName) -> int:
    import polars as pl

    return rows.of(name, "retargetability").filter(pl.col("status") == "not_applicable").height


def _shared(rows: Rows, name: AgentName) -> tuple[int, int]:
    """In how many cells the change of behaviour is as long as the planner's, of those that both were measured in."""
    import polars as pl

    cell = ["world", "goal_a", "goal_b", "seed"]
    mine = rows.of(name, "behaviour_bits").filter(pl.col("status") == "ok").select(*cell, "value")
    theirs = [rows.of(n, "behaviour_bits").filter(pl.col("status") == "ok") for n in rows.role("planner")]
    both = mine.join(pl.concat(theirs).select(*cell, pl.col("value").alias("planner")), on=cell)
    return int((both["value"] == both["planner"]).sum()), both.height


def _many_goals(rows: Rows) -> list[Check]:
    """The slot of a many-goal network: cheap for training goals; lost where goals were shuffled in training."""
    import polars as pl

    out = []
    shuffled = [v for n in rows.role("network, goals shuffled") for v in rows.values(n, "retargetability")]
    for name in rows.role("network, many goals"):
        own = rows.of(name, "retargetability").filter(pl.col("status") == "ok")
        seen = own.filter(pl.col("goal_b_seen"))["value"].sort().to_list()
        held = own.filter(~pl.col("goal_b_seen"))["value"].sort().to_list()
        if not seen:
            continue
        trained = estimate("retargetability", seen)
        found = f"trained goals {with_interval(trained)} over {trained.n} pairs"
        found += f"; held-out goals {with_interval(estimate('retargetability', held))} over {len(held)}" if held else ""
        where = (("agent", name.label), ("metric", "retargetability"))
        out.append(Check(f"{name.label}: above 0 for goals that it was trained on", above(trained, 0.0), found, where))
        if shuffled:
            lost = estimate("retargetability", shuffled)
            aimless = sum(_not_applicable(rows, n) for n in rows.role("network, goals shuffled"))
            rule = f"{name.label} is more retargetable than the network whose goals were shuffled in training"
            words = (
                f"{with_interval(trained)} against {with_interval(lost)} over {lost.n} pairs; {aimless} further pairs "
            )
            words += "of the control could not be measured: it does not reach its own goal"
            out.append(Check(rule, _apart(trained, lost), words, where))
    return out


def _random_edits(rows: Rows) -> list[Check]:
    rates = {
        n.label: estimate("random_success_rate", v) for n in rows.names if (v := rows.values(n, "random_success_rate"))
    }
    if not rates:
        return []
    often = {label: e for label, e in rates.items() if e.value > RARE}
    total = sum(e.n for e in rates.values())
    mean = sum(e.value * e.n for e in rates.values()) / total
    found = f"{number(100 * mean)}% of the draws did, over {total} pairs"
    if often:
        said = ", ".join(f"{label} {number(100 * e.value)}%" for label, e in often.items())
        found += f"; more often: {said} (a slot with few symbols is met by chance)"
    clear = [e for e in often.values() if e.ci_low is not None and e.ci_low > RARE]
    verdict: Verdict = "does not hold" if clear else "cannot tell" if often else "holds"
    rule = f"control: for no agent do more than {number(100 * RARE)}% of random edits of the same size do it"
    return [Check(rule, verdict, found, (("metric", "random_success_rate"),))]


def _plain_code(rows: Rows) -> list[Check]:
    names, first, second = [], [], []
    for name in rows.names:
        a, b = rows.values(name, "retargetability"), rows.values(name, "retargetability_plain")
        if a and b:
            names.append(name)
            first.append(mean_interval(a))
            second.append(mean_interval(b))
    if len(names) < 2:
        return []
    change = order_change([e.value for e in first], [e.value for e in second])
    clear = [p for p in change.swapped if _disjoint(first, p) and _disjoint(second, p)]
    texts = [f"{names[i].label} and {names[j].label}" for i, j in clear]
    unclear = len(change.swapped) - len(clear)
    verdict: Verdict = "does not hold" if clear else "cannot tell" if unclear else "holds"
    found = f"{change.compared} pairs of agents compared by mean retargetability"
    found += "; none swapped" if not change.swapped else ""
    found += f"; swapped, with intervals apart under both codes: {', '.join(texts)}" if clear else ""
    found += f"; {unclear} swapped where intervals overlap" if unclear else ""
    return [Check("control: agents keep their order under the plainer, fixed-width code", verdict, found)]


def _disjoint(estimates: Sequence[Estimate], pair: tuple[int, int]) -> bool:
    a, b = (estimates[k] for k in pair)
    if a.ci_low is None or a.ci_high is None or b.ci_low is None or b.ci_high is None:
        return False
    return a.ci_high < b.ci_low or b.ci_high < a.ci_low


def _bounds(rows: Rows) -> list[Check]:
    wide = wide_rows(rows.results, ["cells_bare_success_bound", "cells_bare_success"])
    wide = wide.drop_nulls(["cells_bare_success_bound", "cells_bare_success"])
    if wide.is_empty():
        return []
    gaps = [f - b for b, f in zip(wide["cells_bare_success_bound"], wide["cells_bare_success"], strict=True)]
    tight = sum(g <= EXACT for g in gaps)
    verdict: Verdict = "does not hold" if min(gaps) < -EXACT else "holds"
    found = f"{len(gaps)} pairs; the search meets the bound in {tight}, and is at most {number(max(gaps))} above it"
    rule = "control: no table patch found writes fewer cells than the proven lower bound"
    return [Check(rule, verdict, found, (("metric", "cells_bare_success"),))]
