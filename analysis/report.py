"""The report: one file that opens offline, says in words what was found, and holds every number."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from retarget.analysis.anatomy import COLUMNS as WHERE_COLUMNS
from retarget.analysis.anatomy import where_table
from retarget.analysis.checks import Check, check_all, number, with_interval
from retarget.analysis.conjectures import about_conjectures
from retarget.analysis.conjectures_page import Card, section_of
from retarget.analysis.editors import EDITOR_COLUMNS, editor_table
from retarget.analysis.figures import Figure, draw_all
from retarget.analysis.page import Cell, embedded, figure_cell, json_block, key_list, label, page, static_table, text
from retarget.analysis.statistics import Estimate
from retarget.analysis.summary import (
    agent_name,
    agent_names,
    goal_indexed,
    growth,
    identical_pairs,
    metric_means,
    summarise,
    worlds,
)
from retarget.errors import StudyError
from retarget.row import FRONTIER_COLUMNS, RESULT_COLUMNS, Column

if TYPE_CHECKING:
    import polars as pl

_RESULTS_SHOWN = (
    "world", "agent", "goal_a", "goal_b", "goal_b_seen", "seed", "probe", "metric", "protocol", "dose", "value", "unit",
    "status", "reason", "editor", "n_cells",
)  # fmt: skip
_RESULTS_PICKS = ("agent", "world", "probe", "metric", "status")
_FRONTIER_SHOWN = (
    "world", "agent", "goal_a", "goal_b", "seed", "subject", "editor", "bits", "plain_bits", "competence", "success",
    "n_cells", "on_front",
)  # fmt: skip
_FRONTIER_PICKS = ("agent", "world", "subject", "editor", "on_front")


def write_report(run_dir: Path) -> Path:
    """Write `report.html` beside a run's tables.

    Args:
        run_dir: holds `results.parquet`, and `frontiers.parquet` where edits were searched for.

    Returns:
        The path of the report. The same tables give the same bytes.

    Raises:
        StudyError: when there is no table of results, it cannot be read, or it has no rows.
    """
    results = _read(run_dir / "results.parquet", RESULT_COLUMNS)
    frontiers = None
    if (run_dir / "frontiers.parquet").exists():
        frontiers = _read(run_dir / "frontiers.parquet", FRONTIER_COLUMNS)
    if results.is_empty():
        raise StudyError(f"{run_dir} holds no results; run the study again with at least one agent, world and probe")
    out = run_dir / "report.html"
    draft = out.with_name(f".{out.name}.new-{os.getpid()}")
    try:
        draft.write_text(report_html(results, frontiers), encoding="utf-8", newline="\n")
        draft.replace(out)
    finally:
        draft.unlink(missing_ok=True)
    return out


def _read(path: Path, columns: tuple[Column, ...]) -> pl.DataFrame:
    import polars as pl

    if not path.is_file():
        raise StudyError(f"{path} does not exist; run the study first, or name the folder of a run")
    try:
        table = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise StudyError(f"{path} cannot be read ({first}); run the study again to write it anew") from None
    missing = [c.name for c in columns if c.name not in table.columns]
    if missing:
        raise StudyError(f"{path} lacks the column(s) {', '.join(missing)}; it was written by another version or tool")
    return table.select([c.name for c in columns])


def report_html(results: pl.DataFrame, frontiers: pl.DataFrame | None = None) -> str:
    """The report of rows that are already in memory, as one HTML text.

    Args:
        results: rows of `RESULT_COLUMNS`, at least one.
        frontiers: rows of `FRONTIER_COLUMNS`, or None.
    """
    checks = check_all(results)
    figures = draw_all(results, frontiers)
    first, rest = (figures[:1], figures[1:]) if figures and figures[0].name == "plane" else ([], figures)
    studies = ", ".join(sorted(results["study"].unique().drop_nulls().to_list()))
    title = f"{studies}: optimizer or lookup table?" if studies else "Optimizer or lookup table?"
    sections = [
        ("found", "What was found", _headline(results, checks) + _figures(first)),
        ("expected", "Held against what was expected", _checks(checks)),
        ("conjectures", "The conjectures", _conjectures(results)),
        ("figures", "Figures", _figures(rest)),
        ("agents", "Agents, over all worlds", _summary(results)),
        ("details", "Pairs, growth and goals", _pairs(results) + _growth(results) + _goals(results)),
        ("where", "Where the goal lives", _where(results)),
        ("editors", "Editors, and what was saved", _editors(results, frontiers)),
        ("controls", "Controls", _controls(results)),
        ("gaps", "What could not be measured", _gaps(results)),
        ("means", "Every metric, by agent and world", _means(results)),
    ]
    shown = _shown(results)
    sections.append(("results", "Every number", _rows_note("results", shown.height, of=results.height, which=_PLAIN)))
    carried = _carried(frontiers)
    if carried is not None and frontiers is not None:
        sections.append(("frontiers", "Edits on the way", _rows_note("frontiers", carried.height, of=frontiers.height)))
    sections.append(("how", "How it was measured", _how(results)))
    sections = [s for s in sections if s[2]]
    nav = "".join(f'<a href="#{name}-top">{text(head)}</a>' for name, head, _ in sections)
    body = f'<header><h1>{text(title)}</h1><p class="muted">{_intro(results)}</p><nav>{nav}</nav></header>\n<main>\n'
    body += "\n".join(
        f'<section><h2 id="{name}-top">{text(head)}</h2>\n{inner}</section>' for name, head, inner in sections
    )
    body += '\n</main>\n<footer class="small muted">Written by retarget. This file needs no network.</footer>'
    return page(title, body, json_block(_data(shown, carried)))


#: A page with more rows than this is slow to open; beyond it only those are carried of metrics that have one way alone.
_MOST_ROWS, _MOST_MEANS = 25_000, 5_000
_PLAIN = "those of metrics that are measured in one way alone"


def _shown(rows: pl.DataFrame, most: int = _MOST_ROWS) -> pl.DataFrame:
    """Rows, or means, that a page carries."""
    import polars as pl

    if rows.height <= most:
        return rows
    return rows.filter(pl.col("protocol").is_null() & pl.col("dose").is_null())


#: A page with more edits than this is slow to open; beyond it only those on a front are carried.
_MOST_EDITS = 20_000


def _carried(frontiers: pl.DataFrame | None) -> pl.DataFrame | None:
    """The edits that the page carries."""
    if frontiers is None or frontiers.is_empty():
        return None
    return frontiers if frontiers.height <= _MOST_EDITS else frontiers.filter(frontiers["on_front"])


def _data(results: pl.DataFrame, frontiers: pl.DataFrame | None) -> list[dict[str, object]]:
    def facts(columns: tuple[Column, ...]) -> dict[str, tuple[str, str]]:
        return {c.name: (c.unit, c.meaning) for c in columns}

    out = [embedded(results, "results", facts=facts(RESULT_COLUMNS), shown=_RESULTS_SHOWN, picks=_RESULTS_PICKS)]
    if frontiers is not None:
        known = facts(FRONTIER_COLUMNS)
        out.append(embedded(frontiers, "frontiers", facts=known, shown=_FRONTIER_SHOWN, picks=_FRONTIER_PICKS))
    return out


def _intro(results: pl.DataFrame) -> str:
    agents, places = len(agent_names(results)), len(worlds(results))
    return (
        f"{_count(agents, 'agent')} in {_count(places, 'world')}. Retargetability: log2 of the length of the change of "
        "behaviour over the length of the edit that causes it; 0 is a lookup table. Robustness: mean competence over "
        "the starts, 1 is optimal from everywhere."
    )


def _card(body: str, *, title: str = "", note: str = "") -> str:
    head = f"<h3>{text(title)}</h3>" if title else ""
    under = f'<p class="small muted">{text(note)}</p>' if note else ""
    return f'<div class="card">{head}{under}{body}</div>'


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


# --- words -------------------------------------------------------------------------------------------------------


def _headline(results: pl.DataFrame, checks: tuple[Check, ...]) -> str:
    lines = [*_pair_words(results), *_growth_words(results), *_extremes(results), *_verdict_words(checks)]
    return f'<div class="lead">{"".join(f"<p>{text(line)}</p>" for line in lines)}</div>'


def _pair_words(results: pl.DataFrame) -> list[str]:
    import polars as pl

    pairs = identical_pairs(results).filter(pl.col("cells") > 0)
    rows = pairs.filter(pl.col("metric") == "retargetability").rows(named=True)
    if not rows:
        return []
    ids = dict(results.select("agent", "agent_id").unique().rows())
    row = min(rows, key=lambda r: agent_name(ids[r["agent"]], r["agent"]).sort_key)
    gap = Estimate(row["mean_difference"], row["mean_difference_low"], row["mean_difference_high"], row["cells"])
    alike = pairs.filter((pl.col("agent") == row["agent"]) & (pl.col("metric") == "robustness"))
    words = (
        f"Between {row['agent']} and the table compiled from it, mean retargetability is {number(row['mean_agent'])} "
        f"against {number(row['mean_compiled'])}: a difference of {with_interval(gap)} over "
        f"{_count(row['cells'], 'shared goal pair')}."
    )
    if alike.height:
        a, b, far = alike.select("mean_agent", "mean_compiled", "max_difference").row(0)
        same = "the same in every row" if far <= 1e-9 else f"apart by up to {number(far)}"
        words += f" Their robustness is {same} ({number(a)} and {number(b)})."
    return [words]


def _growth_words(results: pl.DataFrame) -> list[str]:
    table = growth(results)
    if table.is_empty():
        return []
    name = agent_names(table)[0]
    rows = [r for r in table.rows(named=True) if (r["agent_id"], r["agent"]) == (name.agent_id, name.label)]
    parts = [
        f"{number(r['edit_exponent'])} in {r['world_id']} (the changes of behaviour that they cause with "
        f"{number(r['behaviour_exponent'])})"
        for r in rows
    ]
    return [f"As the number of states grows, the edits of {name.label} grow with exponent {', '.join(parts)}."]


def _extremes(results: pl.DataFrame) -> list[str]:
    import polars as pl

    overall = summarise(results).filter(pl.col("scope") == "all")
    out = []
    for metric, most, least in (
        ("retargetability", "Most retargetable", "least"),
        ("robustness", "Most robust", "least"),
    ):
        rows = overall.drop_nulls(metric).sort(metric, "agent", descending=[True, False]).rows(named=True)
        if not rows:
            continue
        ends = [Estimate(r[metric], r[f"{metric}_low"], r[f"{metric}_high"], r[f"{metric}_n"]) for r in rows]
        if len(rows) == 1:
            out.append(f"{rows[0]['agent']}: {metric} {with_interval(ends[0])}, over {_count(ends[0].n, 'row')}.")
            continue
        tops = [r["agent"] for r in rows if r[metric] == rows[0][metric]]
        lows = [r["agent"] for r in rows if r[metric] == rows[-1][metric]]
        if len(tops) == len(rows):
            out.append(f"All agents have the same {metric}: {number(rows[0][metric])}.")
            continue
        top, low = " · ".join(tops), " · ".join(lows)
        out.append(f"{most}: {top}: {with_interval(ends[0])}; {least}: {low}: {with_interval(ends[-1])}.")
    return out


def _verdict_words(checks: tuple[Check, ...]) -> list[str]:
    if not checks:
        return [
            "No expectation could be held against these rows: they lack the agents that the expectations are about."
        ]
    found = Counter(c.verdict for c in checks)
    words = f"Of {_count(len(checks), 'expectation')}: {found['holds']} hold, {found['does not hold']} against it, "
    words += f"{found['cannot tell']} that these rows cannot tell."
    against = [c.expectation for c in checks if c.verdict == "does not hold"]
    return [words, *([f"Against expectation: {'; '.join(against)}."] if against else [])]


def _checks(checks: tuple[Check, ...]) -> str:
    if not checks:
        return ""
    rank = {"does not hold": 0, "cannot tell": 1, "holds": 2}
    items = "".join(
        f'<li><span class="verdict {c.verdict.replace(" ", "-")}">{c.verdict}</span><span>{text(c.expectation)}</span>'
        f'<span class="found">{text(c.found)}{_link(c)}</span></li>'
        for c in sorted(checks, key=lambda c: rank[c.verdict])
    )
    note = (
        "A mean is above or below a bound when its whole 95% interval is; otherwise it cannot be told. "
        "Expectations against which the numbers speak come first."
    )
    return f'<div class="card"><p class="small muted">{note}</p><ul class="checks">{items}</ul></div>'


def _link(check: Check) -> str:
    if not check.rows:
        return ""
    return f' <a href="#results?{text(urlencode(list(check.rows)))}">rows</a>'


def _conjectures(results: pl.DataFrame) -> str:
    section = section_of(results)
    if section is None:
        if not about_conjectures(results):
            return ""
        words = (
            "These rows hold one agent alone: how measures go together takes at least 4 kinds. Add agents to the study."
        )
        return _card(f"<p>{words}</p>")
    about = "".join(f"<dt>{text(name)}</dt><dd>{text(words)}</dd>" for name, words in section.about)
    caveats = "".join(f"<p>{text(words)}</p>" for words in section.caveats)
    found = (
        "<p>A correlation holds where its p-value, the weaker of that with and that without tables, adjusted for the "
        "number of correlations (Holm), is at most 5% and it has the sign that was expected; it does not hold where it "
        "has the other; else it cannot be told. A difference goes by its whole 95% interval.</p>"
    )
    blocks = [_card(f"<dl>{about}</dl>{found}", title="What is conjectured"), _checks(section.checks)]
    blocks.append(_figures(list(section.figures)))
    blocks += [_folding(card) for card in section.cards]
    return "".join([*blocks, _card(caveats, title="What these numbers cannot say")])


def _folding(card: Card) -> str:
    table = _card(static_table(card.head, card.rows), title=card.title, note=card.note)
    return f"<details><summary>{text(card.folded)}</summary>{table}</details>" if card.folded else table


# --- figures and tables ------------------------------------------------------------------------------------------


def _figures(figures: list[Figure]) -> str:
    def key(f: Figure) -> str:
        return key_list((k.label, k.colour, k.shape, k.hollow) for k in f.key)

    def one(f: Figure) -> str:
        return (
            f'<figure><h3 id="{f.name}-title">{text(f.title)}</h3>{key(f)}<div class="draw">{f.svg}</div>'
            f"<figcaption>{text(f.caption)}</figcaption></figure>"
        )

    folded = [f for f in figures if f.folded]
    out = "".join(one(f) for f in figures if not f.folded)
    if folded:
        out += f"<details><summary>The same figure for {_count(len(folded), 'more world')}</summary>"
        out += f"{''.join(one(f) for f in folded)}</details>"
    return out


def _mean_cell(row: dict[str, object], metric: str) -> Cell:
    value, low, high, n = (row[f"{metric}{end}"] for end in ("", "_low", "_high", "_n"))
    if value is None:
        return figure_cell("–", None)
    assert isinstance(value, float) and isinstance(n, int)
    note = f"n={n}"
    if isinstance(low, float) and isinstance(high, float):
        note = f"{number(low)} to {number(high)}, n={n}" if low != high else f"all equal, n={n}"
    return figure_cell(number(value), value, note)


def _int_cell(value: object) -> Cell:
    return figure_cell(f"{value:,}", float(value)) if isinstance(value, int) else figure_cell("–", None)


_SUMMARY_HEAD = (
    ("retargetability", "log2 ratio"),
    ("robustness", "0 to 1"),
    ("edit_bits", "bit"),
    ("behaviour_bits", "bit"),
    ("blank_ratio", "geometric mean"),
    ("compute_ratio", "geometric mean"),
    ("robustness_seen", "0 to 1"),
    ("robustness_unseen", "0 to 1"),
    ("worst_case", "0 to 1"),
)


def _summary(results: pl.DataFrame) -> str:
    import polars as pl

    overall = summarise(results).filter(pl.col("scope") == "all").rows(named=True)
    used = [(m, u) for m, u in _SUMMARY_HEAD if any(r[m] is not None for r in overall)]
    head = [("agent", ""), *[(m.replace("_", " "), u) for m, u in used]]
    head += [("ok", "goal pairs"), ("n.a.", "goal pairs"), ("failed", "goal pairs")]
    rows = [
        [label(r["agent"]), *[_mean_cell(r, m) for m, _ in used]]
        + [_int_cell(r[f"pairs_{s}"]) for s in ("ok", "not_applicable", "failed")]
        for r in overall
    ]
    note = "Mean over worlds, goals and seeds, with the 95% interval and the number of rows. "
    note += "A failed pair is counted, not averaged."
    return _card(static_table(head, rows), note=note)


def _pairs(results: pl.DataFrame) -> str:
    table = identical_pairs(results).rows(named=True)
    if not table:
        return ""
    head = [
        ("agent", ""), ("metric", ""), ("sees", ""), ("agent, mean", ""), ("table, mean", ""),
        ("largest difference", ""), ("shared rows", ""), ("status differs", "rows"),
    ]  # fmt: skip
    rows = [
        [label(r["agent"]), label(r["metric"].replace("_", " "))]
        + [label("behaviour alone" if r["behaviour_only"] else "the inside too")]
        + [figure_cell(number(r[k]), r[k]) for k in ("mean_agent", "mean_compiled", "max_difference")]
        + [_int_cell(r["cells"]), _int_cell(r["status_differs"])]
        for r in table
    ]
    note = "An agent beside the table of its own behaviour. What sees behaviour alone cannot tell them apart."
    return _card(static_table(head, rows), title="Identical behaviour", note=note)


def _growth(results: pl.DataFrame) -> str:
    table = growth(results).rows(named=True)
    if not table:
        return ""
    keys = ("edit_exponent", "behaviour_exponent", "per_doubling")
    head = [("agent", ""), ("worlds", ""), ("edit bits", "exponent"), ("behaviour bits", "exponent")]
    head += [("retargetability", "per doubling of states"), ("sizes", ""), ("points", "world and seed")]

    def cell(r: dict[str, object], key: str) -> Cell:
        value, low, high = r[key], r[f"{key}_low"], r[f"{key}_high"]
        assert isinstance(value, float)
        if not isinstance(low, float) or not isinstance(high, float):
            return figure_cell(number(value), value, "two points, no interval")
        return figure_cell(number(value), value, f"{number(low)} to {number(high)}" if low != high else "no spread")

    rows = [
        [
            label(r["agent"]),
            label(r["world_id"]),
            *[cell(r, k) for k in keys],
            _int_cell(r["n_sizes"]),
            _int_cell(r["n_points"]),
        ]
        for r in table
    ]
    note = "Least squares on logarithms, one point a world and seed. About 1: every state is rewritten; "
    note += "about 0: the goal is stored apart from the behaviour."
    return _card(static_table(head, rows), title="Growth with the number of states", note=note)


def _goals(results: pl.DataFrame) -> str:
    table = goal_indexed(results).rows(named=True)
    if not any(r["goal_b_seen"] for r in table) or not any(not r["goal_b_seen"] for r in table):
        return ""
    metrics = (("retargetability", "log2 ratio"), ("edit_bits", "bit"), ("behaviour_bits", "bit"))
    head = [("agent", ""), ("goal B", ""), *[(m.replace("_", " "), u) for m, u in metrics]]
    head += [("ok", "goal pairs"), ("n.a.", "goal pairs"), ("failed", "goal pairs")]
    rows = [
        [
            label(r["agent"]),
            label("trained" if r["goal_b_seen"] else "held out"),
            *[_mean_cell(r, m) for m, _ in metrics],
        ]
        + [_int_cell(r[f"pairs_{s}"]) for s in ("ok", "not_applicable", "failed")]
        for r in table
    ]
    return f'<div class="card"><h3>Goals seen in training, and held-out goals</h3>{static_table(head, rows)}</div>'


def _where(results: pl.DataFrame) -> str:
    rows = where_table(results).rows(named=True)
    if not rows:
        return ""
    units = {"bits": "bit", "reached": "competence", "retargeted": "share"}
    head = [("agent", ""), ("parts", ""), ("pairs", "")]
    head += [(words, units[name.split("_")[0]]) for name, words in WHERE_COLUMNS.items()]
    cells = []
    for row in rows:
        line = [label(row["agent"]), label(row["role"]), _int_cell(row["pairs"])]
        cells.append(line + [figure_cell(number(row[name]), row[name]) for name in WHERE_COLUMNS])
    note = (
        "Each kind of part edited alone, and each frozen in turn. Bits are means over the pairs in which such an edit "
        "was found; the best competence on B is a mean over all pairs, the unedited agent's where nothing was better."
    )
    return _card(static_table(head, cells), note=note)


def _editors(results: pl.DataFrame, frontiers: pl.DataFrame | None) -> str:
    rows = editor_table(results, frontiers).rows(named=True)
    if not rows:
        return ""
    head = [("agent", ""), ("world", ""), ("editor that won", "pairs"), *EDITOR_COLUMNS.values()]
    cells = []
    for row in rows:
        line = [label(row["agent"]), label(row["world"]), label(row["winners"])]
        cells.append(line + [figure_cell(number(row[name]), row[name]) for name in EDITOR_COLUMNS])
    note = (
        "Geometric means over the goal pairs that have every number of the row. Saved bits: the blank's shortest edit "
        "over the agent's (above 1, what the agent knows saves bits). Saved compute: the operations to find the two, "
        "likewise. Retrained: the shortest edit that training everything on from the agent gave. All lengths are what "
        "was found within the budget; longer searches of networks find shorter edits, of agent and blank alike."
    )
    return _card(static_table(head, cells), note=note)


def _controls(results: pl.DataFrame) -> str:
    import polars as pl

    overall = summarise(results).filter(pl.col("scope") == "all").rows(named=True)
    metrics = (
        ("required_competence", "needed on B"),
        ("competence_b_before", "before the edit"),
        ("random_competence", "mean of random edits"),
        ("random_success_rate", "share of random edits that retarget"),
        ("competence_b_after", "after the edit found"),
        ("retargetability", "log2 ratio"),
        ("retargetability_plain", "log2 ratio, plain code"),
        ("dead_location_bits", "bit"),
        ("cells_bare_success_bound", "cells, proven"),
        ("cells_bare_success", "cells, found"),
        ("cells_found", "cells, at the level"),
        ("cells_bound", "cells, proven"),
    )
    used = [(m, u) for m, u in metrics if any(r[m] is not None for r in overall)]
    if not [m for m, _ in used if m not in ("retargetability", "competence_b_before", "required_competence")]:
        return ""
    head = [("agent", ""), *[(m.replace("_", " "), u) for m, u in used]]
    rows = [[label(r["agent"]), *[_mean_cell(r, m) for m, _ in used]] for r in overall]
    note = (
        "Random edits have the size of the edit found; dead location bits are what parameters that do nothing add to "
    )
    note += "it; lower bounds are proven, and no table patch can write fewer cells."
    return _card(static_table(head, rows), note=note)


def _gaps(results: pl.DataFrame) -> str:
    import polars as pl

    rows = results.filter(pl.col("status") != "ok")
    totals = Counter(results["status"].to_list())
    words = f"{totals['ok']:,} rows are ok, {totals['not_applicable']:,} not applicable (nothing to measure there), "
    words += f"{totals['failed']:,} failed (there was something, and it was not found)."
    if rows.is_empty():
        return f'<div class="card"><p>{words}</p></div>'
    # Reasons differ by their numbers; one line for all that read the same otherwise.
    groups: Counter[tuple[str, str, str, str]] = Counter()
    for agent, probe, status, reason in rows.select("agent", "probe", "status", "reason").rows():
        groups[(agent, probe, status, re.sub(r"\d+(\.\d+)?", "…", reason or ""))] += 1
    ids = dict(results.select("agent", "agent_id").unique().rows())
    ordered = sorted(
        groups.items(), key=lambda g: (g[0][2] != "failed", agent_name(ids[g[0][0]], g[0][0]).sort_key, g[0], -g[1])
    )
    head = [("agent", ""), ("probe", ""), ("status", ""), ("reason", ""), ("rows", "")]
    table = static_table(
        head,
        [
            [*[label(v.replace("_", " ") if k == 2 else v) for k, v in enumerate(key)], _int_cell(n)]
            for key, n in ordered
        ],
    )
    return f'<div class="card"><p>{words}</p>{table}</div>'


def _means(results: pl.DataFrame) -> str:
    every = metric_means(results)
    means = _shown(every, _MOST_MEANS)
    several = means["protocol"].drop_nulls().len() + means["dose"].drop_nulls().len() > 0
    head = [("agent", ""), ("world", ""), ("states", ""), ("metric", "")]
    head += [("protocol", ""), ("dose", "")] if several else []
    head += [("mean", ""), ("unit", ""), ("ok", "rows"), ("n.a.", "rows"), ("failed", "rows")]
    rows = []
    for r in means.rows(named=True):
        some = r["ci_low"] is not None
        note = (
            ""
            if not some
            else "all equal"
            if r["ci_low"] == r["ci_high"]
            else f"{number(r['ci_low'])} to {number(r['ci_high'])}"
        )
        rows.append(
            [label(r["agent"]), label(r["world"]), _int_cell(r["n_states"]), label(r["metric"].replace("_", " "))]
            + ([label(r["protocol"] or ""), figure_cell(number(r["dose"]), r["dose"], "")] if several else [])
            + [figure_cell(number(r["mean"]), r["mean"], note), label(r["unit"] or "")]
            + [_int_cell(r[s]) for s in ("ok", "not_applicable", "failed")]
        )
    part = f" ({_PLAIN}; the other rows are in results.parquet)" if len(rows) < every.height else ""
    shown = _card(static_table(head, rows))
    return f"<details><summary>Show {_count(len(rows), 'mean')}{part}</summary>{shown}</details>"


def _rows_note(name: str, n: int, *, of: int | None = None, which: str = "those on a front") -> str:
    script = f"This table needs JavaScript. The same numbers are in {name}.parquet beside this file."
    body = f'<noscript><p>{script}</p></noscript><div id="{name}"></div>'
    part = f" ({which}; all {of:,} are in {name}.parquet)" if of is not None and of > n else ""
    return _card(body, note=f"{_count(n, 'row')}{part}. Click a heading to sort; point at it for its meaning.")


def _how(results: pl.DataFrame) -> str:
    def values(column: str) -> str:
        return ", ".join(
            number(v) if isinstance(v, (int, float)) else str(v)
            for v in sorted(results[column].unique().drop_nulls().to_list())
        )

    pairs = results.select("world", "goal_a", "goal_b", "seed").drop_nulls("goal_b").unique()
    facts = [
        ("Competence", f"discounted return against the optimum, reward 1 at the goal; discount γ = {values('gamma')}"),
        ("Required on B", f"{values('level')} of the agent's own competence on A"),
        ("Code of lengths", f"{values('code') or 'no lengths in these rows'}; each length decodes back to its edit"),
        ("Edit bits", "the shortest edit that any editor found: an upper bound"),
        ("Worlds", ", ".join(f"{w} ({n:,} states)" if n else w for _, w, n in worlds(results))),
        ("Seeds", values("seed")),
        ("Goal pairs", f"{pairs.height:,} over all worlds and seeds"),
        ("Intervals", "95%, Student's t over goal pairs and seeds as if they were independent. Pairs of one world "
         "share it: intervals over few worlds are too narrow for worlds not measured. Where all values are equal the "
         "interval is a point: no spread was seen. Single values have none."),
        ("What no code can fix", "the parts that an agent exposes for editing are chosen by whoever wrote it"),
        ("Version", f"retarget {values('version')}"),
    ]  # fmt: skip
    items = "".join(f"<dt>{text(k)}</dt><dd>{text(v)}</dd>" for k, v in facts)
    return f'<div class="card"><dl>{items}</dl></div>'
