"""What is expected of searches, held against the numbers."""

from __future__ import annotations

import math
from itertools import pairwise

from retarget.analysis.checks import EXACT, Check, Rows, Verdict, above, number, with_interval
from retarget.analysis.statistics import Estimate, welch_difference
from retarget.analysis.summary import AgentName, Role, dial_of, estimate

Family = list[tuple[int, AgentName]]


def families(rows: Rows, role: Role) -> dict[str, Family]:
    """Agents of a role that differ in nothing but how hard they search, the laziest first; lone ones are left out."""
    out: dict[str, Family] = {}
    for name in rows.role(role):
        found = dial_of(name.label)
        if found is not None:
            out.setdefault(found[0], []).append((found[1], name))
    return {f: sorted(m, key=lambda x: x[0]) for f, m in out.items() if len(m) > 1}


def _series(rows: Rows, family: Family, metric: str) -> list[tuple[int, Estimate, list[float]]]:
    found = [(dial, rows.values(name, metric)) for dial, name in family]
    return [(dial, estimate(metric, values), values) for dial, values in found if values]


def _words(series: list[tuple[int, Estimate, list[float]]]) -> str:
    return ", ".join(f"{dial}: {with_interval(e)}" for dial, e, _ in series)


def tree_search(rows: Rows) -> list[Check]:
    """More simulations: more robust; retargetable at every number of them that can be measured."""
    out = []
    for family, members in families(rows, "tree search").items():
        robust = _series(rows, members, "robustness")
        if len(robust) > 1:
            falls = [b for a, b in pairwise(robust) if above(welch_difference(a[2], b[2]), 0.0) == "holds"]
            rises = above(welch_difference(robust[-1][2], robust[0][2]), 0.0)
            verdict: Verdict = "does not hold" if falls else rises
            out.append(Check(f"{family}: robustness rises with simulations", verdict, _words(robust)))
        agree = _series(rows, members, "agreement_a")
        if len(agree) > 1:
            rise = above(welch_difference(agree[-1][2], agree[0][2]), 0.0)
            rule = f"{family}: the more it searches, the more of its actions are those of value iteration"
            out.append(Check(rule, rise, f"{_words(agree)}{_rate(agree)}", (("metric", "agreement_a"),)))
        series = _series(rows, members, "retargetability")
        if series:
            verdicts = {above(e, 0.0) for _, e, _ in series}
            verdict = (
                "does not hold" if "does not hold" in verdicts
                else "cannot tell" if "cannot tell" in verdicts else "holds"
            )  # fmt: skip
            rule = f"{family}: retargetability above 0 wherever it can be measured"
            out.append(Check(rule, verdict, _words(series), (("metric", "retargetability"),)))
    return out


def _rate(series: list[tuple[int, Estimate, list[float]]]) -> str:
    """How fast the share of other actions falls: the slope of its logarithm, where it is above 0 twice or more."""
    points = [(math.log2(dial), math.log2(1.0 - e.value)) for dial, e, _ in series if e.value < 1.0]
    if len(points) < 2:
        return ""
    x, y = zip(*points, strict=True)
    mx, my = sum(x) / len(x), sum(y) / len(y)
    slope = sum((a - mx) * (b - my) for a, b in points) / sum((a - mx) ** 2 for a in x)
    return f"; the share of other actions goes with simulations to the power {number(slope)}, where it is not 0"


def _share(rows: Rows, name: AgentName, metric: str) -> tuple[int, int]:
    """Pairs in which such an edit was found, of those in which it was asked for."""
    import polars as pl

    status = rows.of(name, metric).filter(pl.col("status") != "not_applicable")["status"]
    return int((status == "ok").sum()), len(status)


def trained_values(rows: Rows) -> list[Check]:
    """Values trained toward A keep the goal: the slot alone moves little of it, more search more, slot and head all."""
    out = []
    for family, members in families(rows, "search, trained values").items():
        slot = _series(rows, members, "competence_b_only_goal_slot")
        if not slot:
            continue
        shares = {d: _share(rows, n, "edit_bits_only_goal_slot") for d, n in members}
        text = ", ".join(
            f"{d} simulations: {hit} of {n} pairs (best on B {number(e.value)})"
            for d, e, _ in slot for hit, n in [shares[d]]
        )  # fmt: skip
        asked = [(hit, n) for hit, n in shares.values() if n]
        few = [hit / n for hit, n in asked]
        verdict: Verdict = "holds" if few and few[0] <= 0.5 else "does not hold" if few else "cannot tell"
        rule = (
            f"{family}: with values trained toward A, the reward slot alone does not retarget it (fewest simulations)"
        )
        out.append(Check(rule, verdict, text, (("metric", "edit_bits_only_goal_slot"),)))
        rise = welch_difference(slot[-1][2], slot[0][2]) if len(slot) > 1 else None
        if rise is not None:
            rule = f"{family}: the more it searches, the more the slot alone retargets it"
            out.append(Check(rule, above(rise, 0.0), _words(slot), (("metric", "competence_b_only_goal_slot"),)))
        found = [_share(rows, n, "edit_bits") for _, n in members]
        hit, n = sum(f[0] for f in found), sum(f[1] for f in found)
        if n:
            rule = f"{family}: with slot, value and prior heads all open, it is retargeted"
            out.append(Check(rule, "holds" if hit == n else "does not hold", f"in {hit} of {n} pairs"))
    return out


def bayesian(rows: Rows) -> list[Check]:
    """Bayesian search is retargeted through its reward slot."""
    out = []
    for name in rows.role("Bayesian search"):
        values = rows.values(name, "retargetability")
        if values:
            e = estimate("retargetability", values)
            rule = f"{name.label}: retargetability above 0"
            out.append(Check(rule, above(e, EXACT), f"{with_interval(e)} over {e.n} goal pairs"))
    return out
