"""Verdicts: criteria joined to the rows of a run, as far as the error of the instrument allows.

The error is measured on agents whose truth is known, in the same run, by the same probe, under the same protocol, dose
and code. Of single rows the bound is an order statistic of the absolute errors: of n rows of known truth, the one of
rank ceil((1 - alpha)(n + 1)); a further error that is exchangeable with those n exceeds it with probability alpha at
most, whatever their distribution (Wilks 1941; Vovk, Gammerman and Shafer 2005). So alpha = 0.05 takes 19 rows of known
truth, and then the bound is the largest error of all. Of means over the rows of an agent the bound is the far end of
Student's interval of the mean error: spread is in the interval of the mean already, bias is not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retarget import __version__
from retarget.errors import StudyError, unknown
from retarget.row import RESULT_COLUMNS, Column, frame, schema
from retarget.study.bounds import Error, error_of, mean_of, no_interval
from retarget.study.criteria import Criterion, Known, Verdict, Where
from retarget.study.identities import compiled_by_rows, identity
from retarget.study.lines import KeyPath
from retarget.study.table import RESULTS

if TYPE_CHECKING:
    import polars as pl

#: Chance that the 95% interval of a row, or of a mean, misses what it estimates.
_INTERVAL_MISS = 0.05
#: Rows of one instrument: the same probe, done in the same way, with lengths in the same code.
_INSTRUMENT = ("probe", "protocol", "dose", "code", "unit", "kind")

VERDICT_COLUMNS: tuple[Column, ...] = (
    Column("criterion", "String", "", "name of the criterion"),
    Column("of", "String", "", "rows: a row apart; agents: the mean over the rows of an agent"),
    Column("metric", "String", "", "what was measured"),
    Column("probe", "String", "", "probe that measured it"),
    Column("protocol", "String", "", "what was done and what it applies to; null where there is one way alone"),
    Column("dose", "Float64", "see protocol", "how much of it; null where there is no dial"),
    Column("code", "String", "", "code that a length is measured in"),
    Column("unit", "String", "", "unit of value, thresholds and errors"),
    Column("kind", "String", "", "kind of claim that the rows are; of an observation nothing is judged"),
    Column("agent_id", "String", "", "kind of agent in the catalogue"),
    Column("agent", "String", "", "agent with its options"),
    Column("world", "String", "", "world with its options; null for a mean over several"),
    Column("goal_a", "String", "", "goal that the agent has; null for a mean over several"),
    Column("goal_b", "String", "", "goal that it is to be given; null for a mean over several"),
    Column("seed", "Int64", "", "seed; null for a mean over several"),
    Column("cell", "String", "", "key of the row's cell; null for a mean"),
    Column("rows", "Int64", "rows", "rows with a value that it speaks of"),
    Column("value", "Float64", "see unit", "the row's value, or the mean; null where there is none"),
    Column("ci_low", "Float64", "see unit", "lower end of its own 95% interval; null where it is exact"),
    Column("ci_high", "Float64", "see unit", "upper end of its own 95% interval; null where it is exact"),
    Column("asked", "String", "", "direction and thresholds"),
    Column("threshold_low", "Float64", "see unit", "lower threshold, where there is one"),
    Column("threshold_high", "Float64", "see unit", "upper threshold, where there is one"),
    Column("bias", "Float64", "see unit", "mean error on the agents of known truth: measured less true"),
    Column("bias_low", "Float64", "see unit", "lower end of its interval at confidence 1 - alpha"),
    Column("bias_high", "Float64", "see unit", "upper end of its interval at confidence 1 - alpha"),
    Column("spread", "Float64", "see unit", "standard deviation of those errors"),
    Column("known_rows", "Int64", "rows", "rows of known truth with a value"),
    Column("error", "Float64", "see unit", "upper bound of the error at confidence 1 - alpha; null where unknown"),
    Column("alpha", "Float64", "1", "chance, at most, that the error exceeds its bound"),
    Column("wrong_at_most", "Float64", "1", "chance, at most, that the verdict is wrong: alpha, and 0.05 for a ci"),
    Column("low", "Float64", "see unit", "lower end of value with interval and error"),
    Column("high", "Float64", "see unit", "upper end of value with interval and error"),
    Column("verdict", "String", "", "meets, does not meet or cannot tell"),
    Column("reason", "String", "", "why it cannot be told; null where it can"),
    Column("version", "String", "", "version of retarget that gave the verdict"),
)


def decide(criterion: Criterion, low: float, high: float) -> Verdict:
    """The verdict on a value that lies anywhere in [low, high].

    >>> from retarget.study.criteria import Criterion
    >>> asked = Criterion("c", "m", "at least", 1.0, None)
    >>> decide(asked, 1.0, 2.0), decide(asked, 0.0, 0.9), decide(asked, 0.5, 1.5)
    ('meets', 'does not meet', 'cannot tell')
    """
    floor = -math.inf if criterion.low is None else criterion.low
    roof = math.inf if criterion.high is None else criterion.high
    inside, apart = floor <= low and high <= roof, high < floor or low > roof
    if not inside and not apart:
        return "cannot tell"
    return "meets" if inside == (criterion.direction != "outside") else "does not meet"


def read_compiled(run: Path) -> frozenset[str]:
    """Labels of the agents of a run that are compiled tables, as its study says; empty where there is no study.

    Raises:
        StudyError: where the study cannot be read.
    """
    path = run / "study.json"
    if not path.is_file():
        return frozenset()
    try:
        agents = json.loads(path.read_text(encoding="utf-8"))["agents"]
        return frozenset(str(a["name"]) for a in agents if a["compiled"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise StudyError(f"{str(path)!r} is no study of ours; run the study again to write it anew") from None


def read_results(run: Path) -> pl.DataFrame:
    """The rows of a finished run.

    Raises:
        StudyError: where there are none, they cannot be read, or are of another version.
    """
    import polars as pl

    path = run / RESULTS
    if not path.is_file():
        raise StudyError(f"{str(run)!r} holds no {RESULTS}; name the folder of a finished run")
    try:
        table = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise StudyError(f"{str(path)!r} cannot be read ({first}); run the study again to write it anew") from None
    wanted = schema(RESULT_COLUMNS)
    odd = [n for n in {**wanted, **table.schema} if table.schema.get(n) != wanted.get(n)]
    if odd:
        raise StudyError(
            f"{str(path)!r} was written by another version or tool: {', '.join(sorted(odd)[:6])} missing, unknown "
            "or of another type; run the study again"
        )
    ok = pl.col("status") == "ok"
    if table.filter(ok != pl.col("value").is_not_null()).height or table.filter(~pl.col("value").is_finite()).height:
        raise StudyError(f"{str(path)!r} has rows whose status and value contradict each other; it is no table of ours")
    return table.select([c.name for c in RESULT_COLUMNS])


def evaluate(results: pl.DataFrame, criteria: Iterable[Criterion], *, compiled: Iterable[str] = ()) -> pl.DataFrame:
    """Verdicts on rows: one for each criterion and row that it speaks of, or each agent.

    Args:
        results: rows of `RESULT_COLUMNS`.
        criteria: from `retarget.study.criteria.load_criteria`.
        compiled: labels of agents that are compiled tables, where the study says so; those that the rows show to be
            are added.

    Returns:
        A frame of `VERDICT_COLUMNS`.

    Raises:
        StudyError: where a criterion names a metric, an agent or a value that the rows do not have, or speaks of none.
    """
    out: list[dict[str, object]] = []
    # a probe that was asked twice gives every row twice, in cells of other names: no second measurement
    same = [c for c in results.columns if c != "cell"]
    results = results.sort("cell", nulls_last=True).unique(subset=same, keep="first", maintain_order=True)
    tables = {*compiled, *compiled_by_rows(results)}
    for criterion in criteria:
        asked = _chosen(results, criterion)
        truths, idle = _known(results, criterion, tables)
        sampled = _sampled(results, criterion)
        for instrument, rows in _by_instrument(asked).items():
            error = _error(criterion, truths.get(instrument, []), idle)
            parts = [[r] for r in rows] if criterion.of == "rows" else _by_agent(rows)
            out += [_judged(criterion, error, part, sampled) for part in parts]
    return frame(out, VERDICT_COLUMNS)


def _chosen(results: pl.DataFrame, criterion: Criterion) -> list[dict[str, Any]]:
    rows = _of_metric(results, criterion)
    rows = _filtered(rows, criterion.where, criterion, ("where",))
    if rows.is_empty():
        raise StudyError(
            f"{criterion.line}: criterion {criterion.name!r} speaks of no row of this run; widen its where"
        )
    units = sorted(rows["unit"].unique().drop_nulls())
    if len(units) > 1:
        raise StudyError(
            f"{criterion.line}: rows of {criterion.metric!r} have the units {', '.join(units)}; name one probe"
        )
    order = ["agent", "world", "goal_a", "goal_b", "seed", "probe", "protocol", "dose", "code", "cell"]
    return rows.sort(order, nulls_last=True).to_dicts()


def _of_metric(results: pl.DataFrame, criterion: Criterion) -> pl.DataFrame:
    names = results["metric"].unique().to_list()
    if criterion.metric not in names:
        raise StudyError(f"{criterion.at('metric')}: {unknown('metric of this run', criterion.metric, names)}")
    return results.filter(results["metric"] == criterion.metric)


def _filtered(rows: pl.DataFrame, where: Where, criterion: Criterion, path: KeyPath) -> pl.DataFrame:
    import polars as pl

    for column, values in where:
        there = rows[column].unique().to_list()
        for i, value in enumerate(values):
            if value not in there and rows.height:
                line, named = criterion.at(*path, column, i), [v for v in there if v is not None]
                if value is None:
                    raise StudyError(f"{line}: {column} is null in no row; known: {', '.join(sorted(map(str, named)))}")
                raise StudyError(f"{line}: {unknown(f'value of {column}', value, named)}")
        rows = rows.filter(
            pl.col(column).is_in([v for v in values if v is not None], nulls_equal=False).fill_null(False)
            | (pl.col(column).is_null() & pl.lit(None in values))
        )
    return rows


_Truths = dict[tuple[object, ...], list[tuple[dict[str, Any], float]]]


def _known(results: pl.DataFrame, criterion: Criterion, tables: Collection[str]) -> tuple[_Truths, str]:
    """Rows of agents of known truth, with the truth, by instrument; and why some were left out: their truth holds by
    construction, however the instrument errs."""
    rows = _of_metric(results, criterion)
    out: dict[tuple[object, ...], list[tuple[dict[str, Any], float]]] = {}
    used: dict[tuple[object, ...], float] = {}
    idle = ""
    for i, known in enumerate(criterion.known):
        for row in _rows_of(results, rows, criterion, known, i):
            why = identity(row, tables)
            if why:
                idle = f"known truth holds by construction: {criterion.metric} of {known.agent!r} {why}"
                continue
            key = (row["cell"], *_instrument(row))
            if used.setdefault(key, known.value) != known.value:
                raise StudyError(
                    f"{criterion.at('known', i)}: {known.agent!r} is given two truths "
                    f"({used[key]:g} and {known.value:g}) for one row; tell them apart with where"
                )
            if (row, known.value) not in out.setdefault(_instrument(row), []):
                out[_instrument(row)].append((row, known.value))
    return out, idle


def _rows_of(
    results: pl.DataFrame, rows: pl.DataFrame, criterion: Criterion, known: Known, number: int
) -> list[dict[str, Any]]:
    agents = results["agent"].unique().to_list()
    if known.agent not in agents:
        line = criterion.at("known", number, "agent")
        raise StudyError(f"{line}: {unknown('agent of this run', known.agent, agents)}")
    mine = rows.filter(rows["agent"] == known.agent)
    return _filtered(mine, known.where, criterion, ("known", number, "where")).to_dicts()


def _sampled(results: pl.DataFrame, criterion: Criterion) -> frozenset[str]:
    """Probes whose rows of this metric have intervals: there, a row with n and without one is an estimate."""
    rows = _of_metric(results, criterion)
    return frozenset(rows.filter(rows["ci_low"].is_not_null())["probe"].to_list())


def _instrument(row: Mapping[str, Any]) -> tuple[object, ...]:
    return tuple(row[c] for c in _INSTRUMENT)


def _by_instrument(rows: list[dict[str, Any]]) -> dict[tuple[object, ...], list[dict[str, Any]]]:
    out: dict[tuple[object, ...], list[dict[str, Any]]] = {}
    for row in rows:
        out.setdefault(_instrument(row), []).append(row)
    return out


def _by_agent(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    out: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        out.setdefault((row["agent_id"], row["agent"]), []).append(row)
    return list(out.values())


def _error(criterion: Criterion, known: list[tuple[dict[str, Any], float]], idle: str) -> Error:
    if not criterion.known:
        return Error(None, None, None, None, 0, None, "no agent of known truth is named: the error is not known")
    ok = [(row, row["value"] - truth) for row, truth in known if row["status"] == "ok"]
    if not ok and idle:
        return Error(None, None, None, None, 0, None, idle)
    if not ok:
        names = ", ".join(dict.fromkeys(k.agent for k in criterion.known))
        reason = f"the agents of known truth ({names}) have no value here: the error is not known"
        return Error(None, None, None, None, 0, None, reason)
    errors = [e for _, e in ok]
    if criterion.of == "rows":
        return error_of(errors, alpha=criterion.alpha)
    low, high = _range(known[0][0])
    truths = [truth for _, truth in known]
    # a metric between low and high errs by no less than low - truth, and no more than high - truth
    limits = low - max(truths), high - min(truths)
    return error_of(errors, alpha=criterion.alpha, clusters=_clusters(ok), limits=limits)


def _range(row: Mapping[str, Any]) -> tuple[float, float]:
    """What the metric of a row can be, as its probe declares it; without end where it says nothing."""
    from retarget.probes import PROBES

    metric = PROBES[row["probe"]].metrics.get(row["metric"]) if row["probe"] in PROBES else None
    if metric is None:
        return -math.inf, math.inf
    return (
        -math.inf if metric.low is None else metric.low,
        math.inf if metric.high is None else metric.high,
    )


def _clusters(pairs: Sequence[tuple[dict[str, Any], float]]) -> list[float]:
    """Means by agent, world and seed: goals of one world, which share it, are not independent."""
    groups: dict[tuple[object, ...], list[float]] = {}
    for row, value in pairs:
        groups.setdefault((row["agent_id"], row["agent"], row["world"], row["seed"]), []).append(value)
    return [math.fsum(v) / len(v) for v in groups.values()]


def _judged(
    criterion: Criterion, error: Error, rows: list[dict[str, Any]], sampled: Collection[str]
) -> dict[str, object]:
    value, low, high, miss, reason = _read_row(rows[0], sampled) if criterion.of == "rows" else _read_mean(rows)
    out: dict[str, object] = {c.name: None for c in VERDICT_COLUMNS}
    out |= {c: rows[0][c] for c in (*_INSTRUMENT, "metric", "agent_id", "agent")}
    for column in ("world", "goal_a", "goal_b", "seed", "cell"):
        there = {r[column] for r in rows}
        out[column] = there.pop() if len(there) == 1 else None
    out |= {"criterion": criterion.name, "of": criterion.of, "rows": sum(r["status"] == "ok" for r in rows)}
    out |= {"value": value, "asked": criterion.asks, "threshold_low": criterion.low, "threshold_high": criterion.high}
    if low is not None and high is not None and miss:
        out |= {"ci_low": low, "ci_high": high}
    out |= {"bias": error.bias, "bias_low": error.bias_low, "bias_high": error.bias_high, "spread": error.spread}
    out |= {"known_rows": error.n, "error": error.bound, "alpha": criterion.alpha, "version": __version__}
    if rows[0]["kind"] == "observation":
        reason = "the rows are observations: nothing normative is claimed of them"
    verdict: Verdict = "cannot tell"
    if not reason and error.bound is None:
        reason = error.reason
    if not reason and low is not None and high is not None and error.bound is not None:
        ends = low - error.bound, high + error.bound
        verdict = decide(criterion, *ends)
        out |= {"low": ends[0], "high": ends[1]}
        if verdict == "cannot tell":
            own = decide(criterion, low, high) == "cannot tell"
            whose = (
                "its own interval is too wide" if own else f"the instrument's error of {error.bound:.4g} is too large"
            )
            reason = f"{whose}: {ends[0]:.4g} to {ends[1]:.4g} is on no one side of {criterion.asks}"
        else:
            out["wrong_at_most"] = criterion.alpha + miss
    return out | {"verdict": verdict, "reason": reason or None}


_Reading = tuple[float | None, float | None, float | None, float, str]


def _read_row(row: Mapping[str, Any], sampled: Collection[str]) -> _Reading:
    """Value, ends of what it may be, chance that the truth of the row is outside them, and why there is no value.

    An n alone makes no estimate of a row: a length in a code is counted, and a characterization describes what there
    is. It does where rows of the same metric have intervals, and where what was measured may have been drawn.
    """
    value, low, high = row["value"], row["ci_low"], row["ci_high"]
    if row["status"] != "ok":
        return None, None, None, 0.0, f"{row['status'].replace('_', ' ')}: {row['reason'] or 'no reason was given'}"
    if low is not None and high is not None:
        return value, min(low, value), max(high, value), _INTERVAL_MISS, ""
    counted = row["code"] is not None or row["kind"] == "characterization"
    if row["n"] is not None and (row["probe"] in sampled or not counted):
        return value, None, None, 0.0, f"an estimate of {row['n']} draws that has no interval"
    return value, value, value, 0.0, ""


def _read_mean(rows: Sequence[dict[str, Any]]) -> _Reading:
    """The same of the mean over an agent's rows: the mean of the means of its worlds and seeds, with Student's t."""
    failed = [r for r in rows if r["status"] == "failed"]
    ok = [(r, r["value"]) for r in rows if r["status"] == "ok"]
    units = _clusters(ok)
    value, low, high = mean_of(units, 1 - _INTERVAL_MISS, _range(rows[0])) if ok else (None, None, None)
    if failed:
        words = f"{len(failed)} of {len(rows)} rows failed: a mean over the others would leave out what was not found"
        return value, None, None, 0.0, words
    if not ok:
        return None, None, None, 0.0, f"none of {len(rows)} rows has a value: {rows[0]['reason'] or 'no reason given'}"
    if low is None or high is None:
        return value, None, None, 0.0, f"the mean has no interval: {no_interval(len(units))}"
    return value, low, high, _INTERVAL_MISS, ""
