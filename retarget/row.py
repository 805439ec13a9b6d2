"""Results: three states, null where there is no value, and one documented schema for every table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from retarget.errors import ProbeError
from retarget.spend import Spend

if TYPE_CHECKING:  # Polars is loaded when a table is made, not when a row is
    import polars as pl

Status = Literal["ok", "not_applicable", "failed"]
#: What kind of claim a row is. `observation`: a number read off, judged by nothing. `characterization`: what describes
#: a behaviour or an implementation best, by a fit. `evaluation`: held against a standard (the best that can be done).
#: `experiment`: what an intervention did, beside a control.
Kind = Literal["observation", "characterization", "evaluation", "experiment"]
KINDS: tuple[Kind, ...] = ("observation", "characterization", "evaluation", "experiment")

#: Raised whenever the meaning of a column changes; journals of another version are refused.
SCHEMA_VERSION = 2


@dataclass(frozen=True)
class Measurement:
    """One number that a probe found, or the reason why there is none.

    Attributes:
        metric: a name that the probe declares.
        status: `ok`, `not_applicable` (nothing to measure here) or `failed` (there was, and it was not found).
        value: finite when ok, else None.
        reason: empty when ok, else a sentence.
        ci_low, ci_high: 95% interval, or both None where the value is exact.
        n: sample size of an estimate, None where the value is exact.
        editor: the editor that won, for lengths of edits.
        parts, n_cells: what that edit touches.
        spend: what finding the value took.
        code: the code that a length is measured in.
        protocol: what was done, and to what it applies, where a metric is measured in several ways; e.g. the region
            that counts as inside.
        dose: how much of it, in the unit that the protocol names.

    >>> Measurement.ok("competence", 0.5)
    Measurement(metric='competence', status='ok', value=0.5, reason='')
    >>> Measurement.failed("edit_bits", "no editor reached 0.9").value is None
    True
    """

    metric: str
    status: Status
    value: float | None
    reason: str = ""
    ci_low: float | None = None
    ci_high: float | None = None
    n: int | None = None
    editor: str | None = None
    parts: str | None = None
    n_cells: int | None = None
    spend: Spend | None = None
    code: str | None = None
    protocol: str | None = None
    dose: float | None = None

    def __post_init__(self) -> None:
        if self.status not in ("ok", "not_applicable", "failed"):
            raise ProbeError(f"status {self.status!r} of {self.metric!r} is none of ok, not_applicable, failed")
        numbers = [v for v in (self.value, self.ci_low, self.ci_high, self.dose) if v is not None]
        if any(not math.isfinite(v) for v in numbers):
            raise ProbeError(f"{self.metric!r} holds a number that is not finite; use null with a reason instead")
        if (self.status == "ok") != (self.value is not None) or (self.status == "ok") != (self.reason == ""):
            raise ProbeError(
                f"{self.metric!r}: an ok result has a value and no reason, any other a reason and no value"
            )
        if (self.ci_low is None) != (self.ci_high is None):
            raise ProbeError(f"{self.metric!r} has one end of an interval; give both or neither")

    def __repr__(self) -> str:
        return (
            f"Measurement(metric={self.metric!r}, status={self.status!r}, value={self.value!r}, reason={self.reason!r})"
        )

    @classmethod
    def ok(cls, metric: str, value: float, **rest: object) -> Measurement:
        return cls(metric, "ok", float(value), **rest)  # type: ignore[arg-type]

    @classmethod
    def not_applicable(cls, metric: str, reason: str, **rest: object) -> Measurement:
        return cls(metric, "not_applicable", None, reason, **rest)  # type: ignore[arg-type]

    @classmethod
    def failed(cls, metric: str, reason: str, **rest: object) -> Measurement:
        return cls(metric, "failed", None, reason, **rest)  # type: ignore[arg-type]


@dataclass(frozen=True)
class FrontierPoint:
    """One edit that an editor found: its length, what it buys, and what finding it took.

    Attributes:
        editor: who found it.
        subject: `agent`, `table` (the compiled behaviour) or `blank`.
        bits: length in the project's code.
        plain_bits: length in the fixed-width code.
        competence: on goal B, in [0, 1].
        success: share of starts from which B is reached with probability 1 (within 1e-9), in [0, 1].
        n_cells: cells written.
        parts: names of the parts touched, joined by `+`.
        spend: what the search took up to this point.
        on_front: True for points that no cheaper or equal one of the same subject beats.
    """

    editor: str
    subject: str
    bits: int
    plain_bits: int
    competence: float
    success: float
    n_cells: int
    parts: str
    spend: Spend
    on_front: bool = False


@dataclass(frozen=True)
class Column:
    """A column of a table: its Polars type by name, its unit, and what it means."""

    name: str
    dtype: str
    unit: str
    meaning: str


_IDENTITY = (
    Column("cell", "String", "", "content-derived key of the cell that the row belongs to"),
    Column("study", "String", "", "name of the study"),
    Column("probe", "String", "", "probe that measured it"),
    Column("world_id", "String", "", "registered id of the world"),
    Column("world", "String", "", "world with its options, as shown to a reader"),
    Column("n_states", "Int64", "states", "number of states of the world"),
    Column("agent_id", "String", "", "kind of agent in the catalogue, or `file`"),
    Column("agent", "String", "", "agent with its options, as shown to a reader"),
    Column("agent_digest", "String", "", "content digest of the agent that was measured"),
    Column("goal_a", "String", "", "goal that the agent has"),
    Column("goal_b", "String", "", "goal that it is to be given; null where the probe uses one goal only"),
    Column("goal_b_seen", "Boolean", "", "whether B was among the agent's training goals; null where it has none"),
    Column("seed", "Int64", "", "seed of the cell"),
    Column("gamma", "Float64", "", "discount of competence"),
    Column("level", "Float64", "", "required competence on B as a share of the agent's own on A"),
)

RESULT_COLUMNS: tuple[Column, ...] = (
    *_IDENTITY,
    Column("metric", "String", "", "what was measured"),
    Column("kind", "String", "", "kind of claim: observation, characterization, evaluation or experiment"),
    Column("protocol", "String", "", "what was done and what it applies to; null where a metric has one way alone"),
    Column("dose", "Float64", "see protocol", "how much of it; null where there is no dial"),
    Column("unit", "String", "", "unit of value, ci_low and ci_high"),
    Column("status", "String", "", "ok, not_applicable or failed"),
    Column("reason", "String", "", "why there is no value; null when ok"),
    Column("value", "Float64", "see unit", "the number; null unless ok"),
    Column("ci_low", "Float64", "see unit", "lower end of the 95% interval; null where the value is exact"),
    Column("ci_high", "Float64", "see unit", "upper end of the 95% interval; null where the value is exact"),
    Column("n", "Int64", "samples", "sample size of an estimate; null where the value is exact"),
    Column("code", "String", "", "code that a length is measured in; null for other metrics"),
    Column("editor", "String", "", "editor that found the shortest edit; null where there is none"),
    Column("parts", "String", "", "parts that the shortest edit touches, joined by +"),
    Column("n_cells", "Int64", "cells", "cells that the shortest edit writes"),
    Column("spend_env_steps", "Int64", "steps", "world transitions sampled to find the value"),
    Column("spend_grad_steps", "Int64", "updates", "optimiser updates to find the value"),
    Column("spend_simulations", "Int64", "simulations", "candidate behaviours scored to find the value"),
    Column("spend_flops", "Float64", "operations", "arithmetic operations to find the value, by formula"),
    Column("simulations_per_action", "Int64", "simulations", "search simulations of one decision of the agent"),
    Column("flops_per_action", "Float64", "operations", "arithmetic operations of one decision of the agent"),
    Column("version", "String", "", "version of retarget"),
)

FRONTIER_COLUMNS: tuple[Column, ...] = (
    *_IDENTITY,
    Column("subject", "String", "", "what was edited: agent, table (its compiled behaviour) or blank"),
    Column("editor", "String", "", "editor that found the edit"),
    Column("bits", "Int64", "bit", "length of the edit in the enumerative code"),
    Column("plain_bits", "Int64", "bit", "length of the edit in the fixed-width code"),
    Column("competence", "Float64", "1", "competence on B after the edit"),
    Column("success", "Float64", "1", "share of starts from which B is reached surely after the edit"),
    Column("n_cells", "Int64", "cells", "cells written"),
    Column("parts", "String", "", "parts touched, joined by +"),
    Column("on_front", "Boolean", "", "whether no cheaper edit of the same subject does as well"),
    Column("spend_env_steps", "Int64", "steps", "world transitions sampled so far"),
    Column("spend_grad_steps", "Int64", "updates", "optimiser updates so far"),
    Column("spend_simulations", "Int64", "simulations", "candidate behaviours scored so far"),
    Column("spend_flops", "Float64", "operations", "arithmetic operations so far, by formula"),
)


def schema(columns: tuple[Column, ...]) -> dict[str, pl.DataType]:
    """The strict Polars schema of a table."""
    import polars as pl

    return {c.name: getattr(pl, c.dtype)() for c in columns}


def frame(rows: list[dict[str, object]], columns: tuple[Column, ...] = RESULT_COLUMNS) -> pl.DataFrame:
    """A Polars frame of rows, column by column, in the schema's order and types.

    Raises:
        ProbeError: when a row lacks a column or has an unknown one.
    """
    import polars as pl

    names = [c.name for c in columns]
    for row in rows:
        if row.keys() != set(names):
            odd = sorted(row.keys() ^ set(names))
            raise ProbeError(f"a row has the wrong columns: {', '.join(odd)} missing or unknown")
    data = {name: [row[name] for row in rows] for name in names}
    return pl.DataFrame(data, schema=schema(columns), strict=True)


def columns_as_markdown() -> str:
    """The text of `docs/columns.md`: every column of every table. A test holds the file to it."""
    out = [
        "# Columns",
        "",
        "Every table is in long format: one row a measured number. Null means that there is no value, and `reason`",
        "says why; 0 and NaN never stand for a missing value. The tables of one study are the same bytes however the",
        "run was scheduled, stopped or resumed; wall times, which never are, stand in `timings.parquet` alone.",
    ]
    for title, columns in (("results.parquet", RESULT_COLUMNS), ("frontiers.parquet", FRONTIER_COLUMNS)):
        out += ["", f"## {title}", "", "| column | type | unit | meaning |", "|---|---|---|---|"]
        out += [f"| `{c.name}` | {c.dtype} | {c.unit or '–'} | {c.meaning} |" for c in columns]
    return "\n".join(out) + "\n"
