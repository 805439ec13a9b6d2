"""From rows to one line per agent and world: means with intervals, counts of what could not be measured, growth."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from retarget.analysis.statistics import (
    Estimate,
    geometric_mean_interval,
    growth_exponent,
    line_slope,
    mean_interval,
)

if TYPE_CHECKING:
    import polars as pl

#: Metrics that have a column in the summary, in its order.
METRICS: tuple[str, ...] = (
    "retargetability",
    "retargetability_plain",
    "robustness",
    "robustness_seen",
    "robustness_unseen",
    "worst_case",
    "success",
    "edit_bits",
    "edit_bits_plain",
    "behaviour_bits",
    "behaviour_bits_plain",
    "blank_bits",
    "blank_ratio",
    "compute_ratio",
    "kt_bits",
    "competence_a",
    "competence_b_before",
    "competence_b_after",
    "competence_b_fresh",
    "required_competence",
    "random_competence",
    "random_success_rate",
    "cells_bare_success_bound",
    "cells_bare_success",
    "cells_found",
    "cells_bound",
    "dead_location_bits",
    "policy_entropy",
    "agreement_a",
    "agreement_b",
    "states_to_change",
    "prequential_bits",
    "prequential_blank_bits",
    "prequential_ratio",
)

#: Options that say how hard an agent searches.
DIALS = ("simulations", "depth")

#: Below this many rows an interval over them says more of the rows than of the mean.
FEW = 4

#: Ratios are averaged as ratios: by the geometric mean.
RATIOS = frozenset({"blank_ratio", "compute_ratio", "prequential_ratio"})

#: Shares and competences: their intervals are cut at 0 and 1.
SHARES = frozenset(
    {
        "robustness",
        "robustness_seen",
        "robustness_unseen",
        "worst_case",
        "success",
        "competence_a",
        "competence_b_before",
        "competence_b_after",
        "required_competence",
        "random_competence",
        "random_success_rate",
        "agreement_a",
        "agreement_b",
    }
)

#: Metrics of the behaviour alone: equal for any two agents that act alike everywhere.
BEHAVIOUR_METRICS: tuple[str, ...] = (
    "robustness",
    "worst_case",
    "success",
    "policy_entropy",
    "agreement_a",
    "agreement_b",
    "states_to_change",
    "competence_a",
    "competence_b_before",
    "behaviour_bits",
)

Role = Literal[
    "planner",
    "depth planner",
    "path search",
    "tree search",
    "search, trained values",
    "Bayesian search",
    "learned model, near",
    "learned model, everywhere",
    "network model, near",
    "network model, everywhere",
    "controller",
    "goal-indexed table",
    "table, little training",
    "table, to the limit",
    "table",
    "network",
    "network, many goals",
    "network, goals shuffled",
    "file",
    "other",
]

ROLES: tuple[Role, ...] = (
    "planner",
    "depth planner",
    "path search",
    "tree search",
    "search, trained values",
    "Bayesian search",
    "learned model, everywhere",
    "learned model, near",
    "network model, everywhere",
    "network model, near",
    "controller",
    "goal-indexed table",
    "table, to the limit",
    "table, little training",
    "table",
    "network",
    "network, many goals",
    "network, goals shuffled",
    "file",
    "other",
)

_COMPILED_SUFFIX = re.compile(r"(, compiled| \(compiled\))$")
_COMPILED_PREFIX = re.compile(r"^(compiled table of|compiled) ", re.IGNORECASE)


@dataclass(frozen=True)
class AgentName:
    """What an agent's id and label say about it.

    Attributes:
        agent_id: kind in the catalogue.
        label: as shown to a reader.
        base: the label without the mark of a compiled table.
        compiled: whether it is the table compiled from `base`.
        role: which line of the expectations it stands for.
        depth: search depth, where the label gives one.
    """

    agent_id: str
    label: str
    base: str
    compiled: bool
    role: Role
    depth: int | None

    @property
    def sort_key(self) -> tuple[object, ...]:
        """Order in tables and legends: by role, then depth, then label; a compiled table after its original."""
        return (ROLES.index(self.role), self.depth or 0, natural_key(self.base), self.compiled, self.label)


def agent_name(agent_id: str, label: str) -> AgentName:
    """Read an agent's id and label.

    >>> agent_name("depth_planner", "depth_planner(depth=4), compiled").base
    'depth_planner(depth=4)'
    >>> agent_name("planner", "compiled table of planner").compiled
    True
    """
    base = _COMPILED_PREFIX.sub("", _COMPILED_SUFFIX.sub("", label))
    depth = re.search(r"depth\D{0,3}(\d{1,6})", label)
    return AgentName(
        agent_id, label, base, base != label, _role(agent_id, label.lower()), int(depth.group(1)) if depth else None
    )


def _role(agent_id: str, label: str) -> Role:
    if agent_id == "file":
        return "file"
    if agent_id == "learned_planner":
        return "learned model, near" if re.search(r"\bnear\b", label) else "learned model, everywhere"
    if agent_id == "network_model":
        return "network model, near" if re.search(r"\bnear\b", label) else "network model, everywhere"
    if agent_id == "q_table":
        return _table_role(label)
    if agent_id == "network":
        if "shuffled" in label:
            return "network, goals shuffled"
        return "network, many goals" if re.search(r"many|all goals", label) else "network"
    known: dict[str, Role] = {
        "planner": "planner",
        "depth_planner": "depth planner",
        "path_planner": "path search",
        "tree_search": "tree search",
        "alphazero": "search, trained values",
        "mc_aixi": "Bayesian search",
        "controller": "controller",
        "goal_table": "goal-indexed table",
        "demo_table": "table",
        "demo_network": "network",
        "demo_planner": "learned model, near",
    }
    return known.get(agent_id, "other")


def _table_role(label: str) -> Role:
    if "little" in label or "starts=one" in label:
        return "table, little training"
    limited = re.search(r"episodes=0*[1-9]", label)
    return "table, to the limit" if "limit" in label or (label.startswith("q_table") and not limited) else "table"


def agent_names(rows: pl.DataFrame) -> tuple[AgentName, ...]:
    """Every agent of a table of rows, in the order of tables and legends."""
    pairs = rows.select("agent_id", "agent").unique().rows()
    return tuple(sorted((agent_name(i, a) for i, a in pairs), key=lambda n: n.sort_key))


def natural_key(text: str) -> tuple[object, ...]:
    """A sort key that puts `size=9` before `size=13`.

    >>> sorted(["m(size=13)", "m(size=9)"], key=natural_key)
    ['m(size=9)', 'm(size=13)']
    """
    return tuple((1, int(p), "") if p.isdigit() and p.isascii() else (0, 0, p) for p in re.split(r"([0-9]+)", text))


def worlds(rows: pl.DataFrame) -> tuple[tuple[str, str, int | None], ...]:
    """Every (world_id, world, n_states), by family, then size, then name; no number of states where it is infinite."""
    found = rows.select("world_id", "world", "n_states").unique().rows()
    return tuple(sorted(found, key=lambda w: (w[0], w[2] or 0, natural_key(w[1]))))


def sized(world: str, n_states: int | None) -> str:
    """A world's name with its size, as a reader sees it.

    >>> sized("Maze", 104), sized("Pendulum", None)
    ('Maze, 104 states', 'Pendulum, continuous states')
    """
    return f"{world}, {'continuous' if n_states is None else n_states} states"


def estimate(metric: str, values: Sequence[float]) -> Estimate:
    """The mean of one metric over rows, as it is reported: ratios by the geometric mean, shares cut to [0, 1].

    Of fewer than `FEW` values that differ there is no interval.

    >>> round(estimate("blank_ratio", [0.25, 4.0]).value, 12), estimate("robustness", [0.5, 1.0, 1.0, 0.9]).ci_high
    (1.0, 1.0)
    """
    bounds = {"low": 0.0, "high": 1.0} if metric in SHARES else {}
    geometric = metric in RATIOS and min(values) > 0
    found = geometric_mean_interval(values) if geometric else mean_interval(values, **bounds)
    return found if found.n >= FEW or found.ci_low == found.ci_high else Estimate(found.value, None, None, found.n)


def summarise(results: pl.DataFrame) -> pl.DataFrame:
    """One row per (agent, world), and one per agent over all worlds.

    Args:
        results: rows of `RESULT_COLUMNS`.

    Returns:
        Columns `scope` (`world` or `all`), `role`, `agent_id`, `agent`, `world_id`, `world`, `n_states` (null over
        all worlds); `pairs_ok`, `pairs_not_applicable`, `pairs_failed`: goal pairs by the status of their
        retargetability; then for each metric of `METRICS` its mean over goals and seeds as `<metric>`, the 95%
        interval as `<metric>_low`, `<metric>_high`, and the number of rows as `<metric>_n`. Means are over rows
        that are ok; a failed pair is counted, never averaged.
    """
    import polars as pl

    out: list[dict[str, object]] = []
    for scope, keys in (
        ("all", ["agent_id", "agent"]),
        ("world", ["agent_id", "agent", "world_id", "world", "n_states"]),
    ):
        counts = _counts(results, keys)
        values = _values(results, keys)
        for key in sorted(counts, key=lambda k: (agent_name(k[0], k[1]).sort_key, _world_key(k))):
            row: dict[str, object] = {"scope": scope, "role": agent_name(key[0], key[1]).role}
            row |= dict(
                zip(("agent_id", "agent", "world_id", "world", "n_states"), (*key, None, None, None), strict=False)
            )
            for status in ("ok", "not_applicable", "failed"):
                row[f"pairs_{status}"] = counts[key].get(status, 0)
            for metric in METRICS:
                row |= _estimate_columns(metric, values.get((*key, metric), []))
            out.append(row)
    return pl.DataFrame(out, schema=_summary_schema(), strict=True)


def _world_key(key: tuple[Any, ...]) -> tuple[object, ...]:
    return (key[2], key[4] or 0, natural_key(str(key[3]))) if len(key) > 2 else ()


def _counts(results: pl.DataFrame, keys: list[str]) -> dict[tuple[Any, ...], dict[str, int]]:
    import polars as pl

    out: dict[tuple[Any, ...], dict[str, int]] = {k: {} for k in results.select(keys).unique().rows()}
    pairs = results.filter(pl.col("metric") == "retargetability").group_by([*keys, "status"]).len()
    for row in pairs.rows():
        out[row[: len(keys)]][row[len(keys)]] = row[-1]
    return out


def _values(results: pl.DataFrame, keys: list[str]) -> dict[tuple[Any, ...], list[float]]:
    import polars as pl

    ok = results.filter(pl.col("status") == "ok").group_by([*keys, "metric"]).agg(pl.col("value").sort())
    return {row[:-1]: row[-1] for row in ok.rows()}


def _estimate_columns(metric: str, values: list[float]) -> dict[str, object]:
    found = estimate(metric, values) if values else None
    return {
        metric: found.value if found else None,
        f"{metric}_low": found.ci_low if found else None,
        f"{metric}_high": found.ci_high if found else None,
        f"{metric}_n": len(values),
    }


def _summary_schema() -> dict[str, pl.DataType]:
    import polars as pl

    out: dict[str, pl.DataType] = {n: pl.String() for n in ("scope", "role", "agent_id", "agent", "world_id", "world")}
    out |= {n: pl.Int64() for n in ("n_states", "pairs_ok", "pairs_not_applicable", "pairs_failed")}
    for metric in METRICS:
        out |= {metric: pl.Float64(), f"{metric}_low": pl.Float64(), f"{metric}_high": pl.Float64()}
        out |= {f"{metric}_n": pl.Int64()}
    return out


def metric_means(results: pl.DataFrame) -> pl.DataFrame:
    """Mean, interval and counts of every metric by agent, world and probe, protocol and dose; a user's own included.

    Intervals are over rows, where there are at least `FEW`; of a single row, its own.

    Returns:
        Columns `agent`, `world`, `n_states`, `probe`, `metric`, `unit`, `protocol`, `dose`, `mean`, `ci_low`,
        `ci_high`, `ok`, `not_applicable`, `failed`.
    """
    import polars as pl

    keys = ["agent_id", "agent", "world_id", "world", "n_states", "probe", "metric", "unit", "protocol", "dose"]
    groups = results.group_by(keys).agg(
        pl.col("value").filter(pl.col("status") == "ok").sort().alias("values"),
        pl.col("ci_low", "ci_high").filter(pl.col("status") == "ok"),
        *[(pl.col("status") == s).sum().cast(pl.Int64).alias(s) for s in ("ok", "not_applicable", "failed")],
    )
    out = []
    rank = {name: i for i, name in enumerate(METRICS)}
    for row in sorted(
        groups.iter_rows(named=True),
        key=lambda r: (
            agent_name(r["agent_id"], r["agent"]).sort_key,
            (r["world_id"], r["n_states"] or 0, natural_key(r["world"])),
            rank.get(r["metric"], len(rank)),
            (r["metric"], r["probe"], r["unit"] or "", r["protocol"] or "", -1.0 if r["dose"] is None else r["dose"]),
        ),
    ):
        found = estimate(row["metric"], row["values"]) if row["values"] else None
        if found is not None and found.n == 1:  # one row: its own interval, where it has one
            found = Estimate(found.value, row["ci_low"][0], row["ci_high"][0], 1)
        out.append(
            {k: row[k] for k in ("agent", "world", "n_states", "probe", "metric", "unit", "protocol", "dose")}
            | {"mean": found.value if found else None}
            | {"ci_low": found.ci_low if found else None, "ci_high": found.ci_high if found else None}
            | {k: row[k] for k in ("ok", "not_applicable", "failed")}
        )
    text = ("agent", "world", "probe", "metric", "unit", "protocol")
    names = [
        "agent", "world", "n_states", "probe", "metric", "unit", "protocol", "dose",
        "mean", "ci_low", "ci_high", "ok", "not_applicable", "failed",
    ]  # fmt: skip
    kinds = {n: pl.String() if n in text else pl.Float64() if n in names[7:11] else pl.Int64() for n in names}
    return pl.DataFrame(out, schema=kinds, strict=True)


_CELL = ["agent_id", "agent", "world_id", "world", "n_states", "goal_a", "goal_b", "seed", "gamma", "level"]


def growth(results: pl.DataFrame) -> pl.DataFrame:
    """Growth with the number of states, by agent and family of worlds with at least two sizes.

    One point per world and seed: the mean over goal pairs that have both lengths, so that pairs of one world,
    which share it, do not count as independent sizes.

    Returns:
        Columns `agent_id`, `agent`, `world_id`, `n_sizes`, `n_points`; `edit_exponent`, `behaviour_exponent` (of
        edit bits and behaviour bits in the number of states) and `per_doubling` (change of retargetability when
        the number of states doubles), each with `_low` and `_high`, null with two points only.
    """
    import polars as pl

    points = growth_points(results)
    out = []
    for name in agent_names(results):
        mine = points.filter((pl.col("agent_id") == name.agent_id) & (pl.col("agent") == name.label))
        for family in sorted(mine["world_id"].unique().to_list()):
            rows = mine.filter(pl.col("world_id") == family)
            sizes = rows["n_states"].to_list()
            if len(set(sizes)) < 2:
                continue
            fits = {
                "edit_exponent": growth_exponent(sizes, rows["edit_bits"].to_list()),
                "behaviour_exponent": growth_exponent(sizes, rows["behaviour_bits"].to_list()),
                "per_doubling": line_slope(rows["log2_states"].to_list(), rows["retargetability"].to_list()),
            }
            row: dict[str, object] = {"agent_id": name.agent_id, "agent": name.label, "world_id": family}
            row |= {"n_sizes": len(set(sizes)), "n_points": len(sizes)}
            for key, fit in fits.items():
                row |= {key: fit.value, f"{key}_low": fit.ci_low, f"{key}_high": fit.ci_high}
            out.append(row)
    kinds: dict[str, pl.DataType] = {n: pl.String() for n in ("agent_id", "agent", "world_id")}
    kinds |= {n: pl.Int64() for n in ("n_sizes", "n_points")}
    for key in ("edit_exponent", "behaviour_exponent", "per_doubling"):
        kinds |= {key: pl.Float64(), f"{key}_low": pl.Float64(), f"{key}_high": pl.Float64()}
    return pl.DataFrame(out, schema=kinds, strict=True)


def growth_points(results: pl.DataFrame) -> pl.DataFrame:
    """Mean edit bits, behaviour bits and retargetability by agent, world and seed.

    Only over pairs whose three numbers are all there and whose lengths are positive.
    """
    import polars as pl

    wanted = ["edit_bits", "behaviour_bits", "retargetability"]
    wide = wide_rows(results, wanted).drop_nulls(wanted)
    wide = wide.filter((pl.col("edit_bits") > 0) & (pl.col("behaviour_bits") > 0) & (pl.col("n_states") > 0))
    keys = ["agent_id", "agent", "world_id", "world", "n_states", "seed"]
    return (
        wide.sort(_CELL, nulls_last=True)
        .group_by(keys)
        .agg([pl.col(m).mean() for m in wanted])
        .with_columns(pl.col("n_states").log(2).alias("log2_states"))
        .sort(keys)
    )


def wide_rows(results: pl.DataFrame, metrics: Sequence[str]) -> pl.DataFrame:
    """Cells side by side: one row per agent, world, goals and seed, one column per metric, null where not ok.

    Of metrics that repeat within a cell the first is taken.
    """
    import polars as pl

    rows = results.filter(pl.col("metric").is_in(list(metrics)))
    return (
        rows.group_by(_CELL)
        .agg([pl.col("value").filter(pl.col("metric") == m).first().alias(m) for m in metrics])
        .sort(_CELL, nulls_last=True)
    )


def goal_indexed(results: pl.DataFrame) -> pl.DataFrame:
    """Retargetability and its lengths, split by whether goal B was among the agent's training goals.

    Returns:
        One row per agent and value of `goal_b_seen` (rows where it is null are left out): `agent`, `goal_b_seen`,
        `pairs_ok`, `pairs_not_applicable`, `pairs_failed`, and mean with interval of retargetability, edit bits
        and behaviour bits.
    """
    import polars as pl

    rows = results.filter(pl.col("goal_b_seen").is_not_null())
    keys = ["agent_id", "agent", "goal_b_seen"]
    counts, values = _counts(rows, keys), _values(rows, keys)
    out = []
    for key in sorted(counts, key=lambda k: (agent_name(k[0], k[1]).sort_key, not k[2])):
        row: dict[str, object] = {"agent_id": key[0], "agent": key[1], "goal_b_seen": key[2]}
        row |= {f"pairs_{s}": counts[key].get(s, 0) for s in ("ok", "not_applicable", "failed")}
        for metric in ("retargetability", "edit_bits", "behaviour_bits"):
            row |= _estimate_columns(metric, values.get((*key, metric), []))
        out.append(row)
    kinds = {"agent_id": pl.String(), "agent": pl.String(), "goal_b_seen": pl.Boolean()} | {
        k: v
        for k, v in _summary_schema().items()
        if k.startswith("pairs_") or re.fullmatch(r"(retargetability|edit_bits|behaviour_bits)(_low|_high|_n)?", k)
    }
    return pl.DataFrame(out, schema=kinds, strict=True)


def identical_pairs(results: pl.DataFrame) -> pl.DataFrame:
    """Each agent beside the table compiled from it, metric by metric, over the cells that both have.

    Returns:
        Columns `agent`, `compiled` (labels), `metric`, `behaviour_only` (whether the metric sees behaviour alone),
        `cells` (shared cells in which both are ok), `status_differs` (shared cells in which one is ok and the
        other not), `mean_agent`, `mean_compiled`, `mean_difference` with `_low` and `_high` (paired, agent minus
        table) and `max_difference` (largest absolute difference). Rows only for metrics that both were measured on.
    """
    import polars as pl

    out = []
    names = agent_names(results)
    originals = {(n.agent_id, n.base): n for n in names if not n.compiled}
    for table in (n for n in names if n.compiled):
        agent = originals.get((table.agent_id, table.base))
        agent = agent or next((n for n in names if not n.compiled and n.base == table.base), None)
        if agent is None:
            continue
        for metric in ("retargetability", "retargetability_plain", "edit_bits", *BEHAVIOUR_METRICS):
            row = _compare(results, agent, table, metric)
            if row:
                out.append({"agent": agent.label, "compiled": table.label, "metric": metric} | row)
    kinds: dict[str, pl.DataType] = {n: pl.String() for n in ("agent", "compiled", "metric")}
    kinds |= {"behaviour_only": pl.Boolean(), "cells": pl.Int64(), "status_differs": pl.Int64()}
    for n in ("mean_agent", "mean_compiled", "mean_difference", "mean_difference_low", "mean_difference_high"):
        kinds[n] = pl.Float64()
    return pl.DataFrame(out, schema=kinds | {"max_difference": pl.Float64()}, strict=True)


def _compare(results: pl.DataFrame, agent: AgentName, table: AgentName, metric: str) -> dict[str, object] | None:
    import polars as pl

    on = ["world", "goal_a", "goal_b", "seed", "gamma", "level"]
    rows = results.filter(pl.col("metric") == metric)

    def of(name: AgentName) -> pl.DataFrame:
        mine = rows.filter((pl.col("agent") == name.label) & (pl.col("agent_id") == name.agent_id))
        return mine.select(*on, "status", "value").unique(subset=on, keep="first", maintain_order=True)

    both = of(agent).join(of(table), on=on, how="inner", nulls_equal=True, suffix="_table").sort(on, nulls_last=True)
    if both.is_empty():
        return None
    differs = both.filter(pl.col("status") != pl.col("status_table")).height
    ok = both.filter((pl.col("status") == "ok") & (pl.col("status_table") == "ok"))
    first, second = ok["value"].to_list(), ok["value_table"].to_list()
    out: dict[str, object] = {
        "behaviour_only": metric in BEHAVIOUR_METRICS,
        "cells": ok.height,
        "status_differs": differs,
    }
    if ok.is_empty():
        return out | dict.fromkeys(
            ("mean_agent", "mean_compiled", "mean_difference", "mean_difference_low", "mean_difference_high",
             "max_difference")
        )  # fmt: skip
    gaps = [a - b for a, b in zip(first, second, strict=True)]
    gap = mean_interval(gaps)
    out |= {"mean_agent": mean_interval(first).value, "mean_compiled": mean_interval(second).value}
    out |= {"mean_difference": gap.value, "mean_difference_low": gap.ci_low, "mean_difference_high": gap.ci_high}
    return out | {"max_difference": max(abs(g) for g in gaps)}


def dial_of(label: str) -> tuple[str, int] | None:
    """The kind of search that a label names, without how hard it searches, and how hard; None where it does not say.

    >>> dial_of("tree_search(leaf=rollouts, simulations=64)")
    ('tree_search(leaf=rollouts)', 64)
    >>> dial_of("depth_planner(depth=4)"), dial_of("planner")
    (('depth_planner', 4), None)
    """
    for dial in DIALS:
        found = re.search(rf"\b{dial}=(\d{{1,9}})\b", label)
        if found:
            rest = re.sub(rf"(, )?\b{dial}=\d+(, )?", lambda m: ", " if m.group(1) and m.group(2) else "", label)
            return rest.replace("()", ""), int(found.group(1))
    return None
