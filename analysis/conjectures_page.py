"""The conjectures on the page: verdicts, the matrix of rank correlations, agents side by side, and caveats."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from retarget.analysis.checks import Check, number
from retarget.analysis.conjecture_checks import check_conjectures, check_instrument, shortcut_rates, twins_of
from retarget.analysis.conjectures import (
    EXPECTED,
    NOMINAL,
    Measure,
    Pair,
    Points,
    distinct,
    families,
    pairs_of,
    points_of,
    present,
    rows_of,
)
from retarget.analysis.correlations import Correlation
from retarget.analysis.figures import (
    _SERIES,
    _VARIABLES,
    INK,
    MUTED,
    Figure,
    KeyItem,
    _agent_key,
    _data,
    _style,
    svg_of,
)
from retarget.analysis.page import Cell, figure_cell, label
from retarget.analysis.statistics import Estimate
from retarget.analysis.summary import AgentName, agent_name, estimate

if TYPE_CHECKING:
    import polars as pl

ABOUT: tuple[tuple[str, str], ...] = (
    (
        "Three faces of one thing",
        "Retargetability: a change of goal costs fewer bits than the change of behaviour that it causes. "
        "Decomposition: the agents for many goals, coded together, fall apart into reasoning that is paid for once and "
        "goals that cost little each. Gradient of the goal: the direction that changes the goal is the same, whichever "
        "states one looks at. The conjecture says that an agent has all three or none.",
    ),
    (
        "The map is simpler than the edits",
        "A map from goals to edits, with what it takes to mend its edits, is shorter than the edits one by one.",
    ),
    (
        "Narrow interventions are the dual",
        "What is cheap to retarget as a whole is dear to change in one place and nowhere else.",
    ),
    (
        "Robustness where training never went",
        "What is cheap to retarget keeps its competence out of distribution, and finds strategies that its training "
        "left out.",
    ),
    (
        "Behaviour does not tell",
        "Measures that see behaviour alone, such as goal-directedness, are equal for an agent and for the table "
        "compiled from it; retargetability is not.",
    ),
)

CAVEATS: tuple[str, ...] = (
    "Retargetability, shared reasoning and slope over table are made from edits of the same agents toward goals of "
    "the same plan, map gain and narrowness from edits by the same editors: that they agree is partly so by "
    "construction. Such pairs are marked, and get no verdict.",
    "Shared is 1 - slope / whole length, so that it counts raw parameters: a large network has a long whole and looks "
    "shared whatever its goals cost, and a small agent, whose whole is short, does not. Slope over table has no such "
    "term.",
    "Points are means over the rows that are ok. Where no edit was found, or there was nothing to measure, an agent is "
    "missing from the correlations of that measure, and those that are left are not a fair sample of it.",
    "Intervals are over the kinds of agent in this run: another choice of agents is another population. Of twenty "
    "intervals at 95% one misses; the verdicts on correlations, which were named beforehand, are adjusted for their "
    "number (Holm, 5% over all of them).",
    "A table of actions is 0 in retargetability and goal coherence by construction. Each correlation is told with "
    "tables and without, and the weaker verdict counts.",
    "Agents whose points agree to within 2% of the range, in every measure that verdicts are about, are one kind in "
    "correlations. That two agents act alike does not make them one: what is measured is inside.",
    "A rank correlation over a few kinds of agent says that two measures order them alike, not that one causes the "
    "other. With robustness held fixed means: of what is left of both ranks after a line through the ranks of "
    "robustness.",
    "A measure that has several protocols or doses is a mean over those that apply to an agent, each counting alike; "
    "which ones do differs between agents. Regimes out of distribution stand apart in a table of their own.",
)


@dataclass(frozen=True)
class Card:
    """A table of the section.

    Attributes:
        title, note: above it.
        head: name and unit of each column.
        rows: cells.
        folded: words to click on, where it is shown on demand only.
    """

    title: str
    note: str
    head: tuple[tuple[str, str], ...]
    rows: tuple[tuple[Cell, ...], ...]
    folded: str = ""


@dataclass(frozen=True)
class Section:
    """What the section holds, in reading order.

    Attributes:
        about: name and words of each conjecture.
        checks: verdicts.
        figures, cards: drawings and tables.
        caveats: what the numbers cannot say.
    """

    about: tuple[tuple[str, str], ...]
    checks: tuple[Check, ...]
    figures: tuple[Figure, ...]
    cards: tuple[Card, ...]
    caveats: tuple[str, ...]


def section_of(results: pl.DataFrame) -> Section | None:
    """The section on the conjectures; None where the rows are not about them."""
    if not present(results):
        return None
    results = distinct(results)
    points = points_of(results)
    pairs = pairs_of(points)
    figures = [f for f in (matrix_figure(points, pairs), scatter_figure(points)) if f is not None]
    cards = (
        _instrument(results, points), _sharing(pairs), _families(points), _correlations(points, pairs),
        _twins(results), _agents(points), _regimes(results), _shortcuts(results), _measures(results, points),
        _every_pair(pairs),
    )  # fmt: skip
    checks = check_conjectures(results, points)
    return Section(ABOUT, checks, tuple(figures), tuple(c for c in cards if c.rows), CAVEATS)


# --- tables --------------------------------------------------------------------------------------------------------


def _rho(found: Correlation | None) -> Cell:
    if found is None:
        return figure_cell("–", None)
    return figure_cell(number(found.value), found.value, f"{number(found.ci_low)} to {number(found.ci_high)}")


def _mean(metric: str, values: Sequence[float]) -> Cell:
    return _estimate(estimate(metric, values)) if values else figure_cell("–", None)


def _estimate(e: Estimate) -> Cell:
    if e.ci_low is None or e.ci_high is None:
        return figure_cell(number(e.value), e.value, f"n={e.n}")
    words = f"all {e.n} equal" if e.ci_low == e.ci_high else f"{number(e.ci_low)} to {number(e.ci_high)}, n={e.n}"
    return figure_cell(number(e.value), e.value, words)


def _count(value: int | None) -> Cell:
    return figure_cell("–", None) if value is None else figure_cell(f"{value:,}", float(value))


_PAIR_HEAD = (
    ("rank correlation", "95% interval"), ("within worlds", "ranks in each world"),
    ("robustness fixed", "partial"), ("points", ""), ("kinds", "of agent"),
)  # fmt: skip


def _pair_cells(pair: Pair) -> tuple[Cell, ...]:
    plain = pair.plain
    counts = (None, None) if plain is None else (plain.n, plain.kinds)
    return (_rho(plain), _rho(pair.within), _rho(pair.partial), *map(_count, counts))


SHARES = "shares data by construction"


def _instrument(results: pl.DataFrame, points: Points) -> Card:
    rows = tuple(
        (label(c.rule), label("as it must be" if c.sound else "broken"), label(c.found))
        for c in check_instrument(results, points)
    )
    note = "What cannot come out otherwise: it says whether the instrument is sound, and nothing of the agents."
    return Card("Checks of the instrument", note, (("what must be so", ""), ("is it", ""), ("found", "")), rows)


def _sharing(pairs: Sequence[Pair]) -> Card:
    """Pairs of which something was expected and that get no verdict."""
    signs = {frozenset((a, b)): sign for a, b, sign in EXPECTED}
    rows = []
    for pair in pairs:
        sign = signs.get(frozenset((pair.first, pair.second)))
        if pair.entangled and sign:
            rows.append(
                (label(pair.first), label(pair.second), label("more" if sign > 0 else "less"), *_pair_cells(pair))
            )
    note = "Expected to go together, and made from the same edits: that they do is no news, so that none is judged."
    head = (("measure", ""), ("and", ""), ("expected", ""), *_PAIR_HEAD)
    return Card("Pairs that share data by construction", note, head, tuple(rows))


def _families(points: Points) -> Card:
    rows = tuple((label(f[0].label), label(", ".join(n.label for n in f[1:]))) for f in families(points) if len(f) > 1)
    note = (
        "Their points agree to within 2% of the range in every measure that verdicts are about: in correlations they "
        "are one kind, with the mean of their points."
    )
    return Card("Agents that count as one kind", note, (("kind", ""), ("and the same again", "")), rows)


def _correlations(points: Points, pairs: Sequence[Pair]) -> Card:
    signs = {1: "more", -1: "less", 0: "nothing"}
    rows = []
    for measure in points.measures:
        pair = next((p for p in pairs if p.first == "retargetability" and p.second == measure.name), None)
        if pair is not None:
            note = SHARES if pair.entangled else pair.reason
            expected = (signs[measure.sign], note, None, False)
            rows.append((label(measure.name), expected, *_pair_cells(pair)))
    return Card(
        "Retargetability against each other measure",
        "Spearman's rank correlation; a point is a kind of agent in a world with a seed, the mean over its goals. "
        "Intervals leave one kind of agent out at a time (jackknife on Fisher's scale, Student's t).",
        (("measure", ""), ("expected", "with retargetability"), *_PAIR_HEAD),
        tuple(rows),
    )


def _every_pair(pairs: Sequence[Pair]) -> Card:
    rows = tuple(
        (label(p.first), label(p.second), *_pair_cells(p), label(SHARES if p.entangled else ""))
        for p in pairs
        if p.plain is not None
    )
    words = f"Every pair of measures ({len(rows)})"
    return Card(words, "", (("measure", ""), ("and", ""), *_PAIR_HEAD, ("note", "")), rows, words)


def _agents(points: Points) -> Card:
    rows = tuple(
        (label(name.label), *[_mean(m.metric, points.of(name, m.name)) for m in points.measures])
        for name in points.names
        if any(points.of(name, m.name) for m in points.measures)
    )
    return Card(
        "Kinds of agent, measure by measure",
        "Mean over worlds and seeds with a 95% interval (Student's t) and their number; a dash where nothing could be "
        "measured or was found.",
        (("agent", ""), *[(m.name, m.unit) for m in points.measures]),
        rows,
    )


def _twins(results: pl.DataFrame) -> Card:
    rows = tuple(
        (
            label(t.agent), label(t.metric.replace("_", " ")),
            label("behaviour alone" if t.behaviour else "the inside too"),
            figure_cell(number(t.first), t.first), figure_cell(number(t.second), t.second), _estimate(t.gap),
            figure_cell(number(t.far), t.far), _count(t.rows),
        )
        for t in twins_of(results)
    )  # fmt: skip
    head = (
        ("agent", ""), ("measure", ""), ("sees", ""), ("agent, mean", ""), ("table, mean", ""),
        ("difference", "worlds and seeds"), ("largest difference", ""), ("shared rows", ""),
    )  # fmt: skip
    note = "An agent beside the table compiled from it: they act alike in every state."
    return Card("The same behaviour, measure by measure", note, head, rows)


def regime(protocol: str | None) -> str:
    """The regime that a protocol of the out-of-distribution probe names.

    >>> regime("regime 2 extreme: from states far away"), regime(None)
    ('2 extreme', 'every')
    >>> regime("regime 2 extreme: from states far away; trained: west half (nominal)")
    '2 extreme (nominal)'
    """
    found = re.match(r"(?:regime )?(\d \w+)", protocol or "")
    if not found:
        return protocol or "every"
    return f"{found.group(1)} {NOMINAL}" if NOMINAL in (protocol or "") else found.group(1)


def _regimes(results: pl.DataFrame) -> Card:
    import polars as pl

    rows = results.filter(
        (pl.col("probe") == "out_of_distribution")
        & (pl.col("metric") == "ood_competence")
        & (pl.col("status") == "ok")
        & (pl.col("dose") > 0)
    )
    cells: dict[tuple[str, str], dict[str, list[float]]] = {}
    columns: list[str] = []
    if rows.height:
        most = rows.with_columns(top=pl.col("dose").max().over("agent_id", "agent", "protocol"))
        most = most.filter(pl.col("dose") == pl.col("top")).sort("value")
        keys = ["agent_id", "agent", "world", "seed", "protocol"]
        for id, agent, _, _, how, value in most.group_by(keys).agg(pl.col("value").mean()).sort(keys).rows():
            cells.setdefault((id, agent), {}).setdefault(regime(how), []).append(value)
        columns = sorted({c for found in cells.values() for c in found})
    ordered = sorted(cells, key=lambda k: agent_name(*k).sort_key)
    return Card(
        "Out of distribution, regime by regime",
        "Competence on the own goal at the greatest strength of each regime, over worlds and seeds. Nominal: training "
        "went everywhere, and a part of the world stands for what it might have left out; that is not out of "
        "distribution, and enters no correlation.",
        (("agent", ""), *[(c, "competence") for c in columns]),
        tuple((label(k[1]), *[_mean("success", cells[k].get(c, [])) for c in columns]) for k in ordered),
    )


def _shortcuts(results: pl.DataFrame) -> Card:
    rows = tuple(
        (label(name.label), _mean("success", values), figure_cell(number(chance), chance))
        for name, values, chance in shortcut_rates(results)
    )
    head = (("agent", ""), ("shortcut taken in time", "rate"), ("a random policy", "rate"))
    note = "How often the shortcut is put to use from the starts where it pays most, over worlds and seeds."
    return Card("Strategies that training left out", note, head, rows)


_SOURCES = {"ours": "this project", "behaviour": "this project, behaviour alone", "others": "proposed by others"}


def _measures(results: pl.DataFrame, points: Points) -> Card:
    rows = []
    for m in points.measures:
        agents = sum(bool(points.of(n, m.name)) for n in points.names)
        known = sum(m.name in v for v in points.values.values())
        words = (m.name, m.words, f"{m.probe}: {m.metric}", _SOURCES[m.source])
        gaps = Counter(rows_of(results, m)["status"].to_list())
        counts = (agents, known, gaps["ok"], gaps["not_applicable"], gaps["failed"])
        rows.append((*map(label, words), *map(_count, counts)))
    head = (("measure", ""), ("what it is", ""), ("probe and metric", ""), ("source", ""), ("kinds", "of agent"))
    counted = (("points", ""), ("ok", "rows"), ("n.a.", "rows"), ("failed", "rows"))
    note = "What is not applicable or failed is in no mean and in no correlation."
    return Card("The measures", note, (*head, *counted), tuple(rows), f"The {len(rows)} measures in words")


# --- figures -------------------------------------------------------------------------------------------------------


def matrix_figure(points: Points, pairs: Sequence[Pair]) -> Figure | None:
    """Rank correlations of every pair: plain above the diagonal, with robustness held fixed below it."""
    import altair as alt

    rows = [
        c
        for p in pairs
        for c in (_square(p.second, p.first, p.plain, p.entangled), _square(p.first, p.second, p.partial, p.entangled))
        if c
    ]
    if not rows:
        return None
    names = [m.name for m in points.measures]
    base = alt.Chart(_data(rows)).encode(
        x=alt.X(
            "x:N", sort=names, scale=alt.Scale(domain=names), axis=alt.Axis(title=None, labelAngle=-40, orient="top")
        ),
        y=alt.Y("y:N", sort=names, scale=alt.Scale(domain=names), axis=alt.Axis(title=None, labelLimit=200)),
    )
    signs = alt.Scale(domain=["+", "-"], range=[_SERIES[0], _SERIES[1]])
    fill = base.mark_rect().encode(
        color=alt.Color("sign:N", scale=signs, legend=None),
        opacity=alt.Opacity("strength:Q", scale=alt.Scale(domain=[0, 1], range=[0, 0.62]), legend=None),
    )
    font: dict[str, Any] = {"fontSize": 10.5, "baseline": "middle"}
    sure = base.transform_filter("datum.sure").mark_text(**font, color=INK, fontWeight=700).encode(text="text:N")
    open_ = base.transform_filter("!datum.sure").mark_text(**font, color=MUTED).encode(text="text:N")
    size = 46 * len(names)
    return Figure(
        "conjecture-matrix",
        "Which measures order agents alike",
        "Spearman's rank correlation over kinds of agent, worlds and seeds. Above the diagonal: as it is; below: with "
        "robustness held fixed. Bold where the 95% interval leaves out 0; pale figures cannot be told from 0. "
        "With a star: the two share data by construction. Cells "
        "are empty where too few kinds of agent have both measures, or one of the two is the same for all.",
        svg_of(alt.layer(fill, sure, open_).properties(width=size, height=0.62 * size), "conjecture-matrix"),
        key=(KeyItem("the same order", _VARIABLES[_SERIES[0]], "square"),
             KeyItem("the opposite order", _VARIABLES[_SERIES[1]], "square")),
    )  # fmt: skip


def _square(x: str, y: str, found: Correlation | None, entangled: bool) -> dict[str, Any] | None:
    if found is None:
        return None
    sure = found.ci_low > 0 or found.ci_high < 0
    shown = f"{found.value:.2f}".replace("-", "−") + ("*" if entangled else "")
    return {"x": x, "y": y, "text": shown, "sign": "+" if found.value >= 0 else "-"} | {
        "strength": abs(found.value),
        "sure": sure,
    }


def scatter_figure(points: Points) -> Figure | None:
    """Retargetability against each measure that something was expected of: one mark a kind of agent."""
    import altair as alt

    measures = [m for m in points.measures if m.sign and m.name != "retargetability"]
    panels, drawn = [], set[AgentName]()
    for measure in measures:
        rows = _marks(points, measure)
        drawn |= {n for n, _ in rows}
        if len(rows) > 1:
            panels.append((measure, [row for _, row in rows]))
    if not panels:
        return None
    names = [n for n in points.names if n in drawn]
    labels, strokes, fills, shapes = _style(names)
    charts = []
    for measure, rows_ in panels:
        title = f"{measure.name} ({measure.unit})"
        base = alt.Chart(_data(rows_)).mark_point(size=75, strokeWidth=1.8, opacity=1)
        chart = base.encode(
            x=alt.X("x:Q", axis=alt.Axis(title=title, tickCount=5), scale=alt.Scale(zero=False, nice=True)),
            y=alt.Y("y:Q", axis=alt.Axis(title="retargetability (log2)", tickCount=5), scale=alt.Scale(zero=False)),
            stroke=alt.Stroke("agent:N", scale=alt.Scale(domain=labels, range=strokes), legend=None),
            fill=alt.Fill("agent:N", scale=alt.Scale(domain=labels, range=fills), legend=None),
            shape=alt.Shape("agent:N", scale=alt.Scale(domain=labels, range=shapes), legend=None),
        )
        charts.append(chart.properties(width=225, height=180))
    return Figure(
        "conjecture-scatter",
        "Retargetability against what was expected to go with it",
        "One mark a kind of agent: means over the worlds and seeds in which both were measured. Hollow squares are "
        "tables compiled from an agent.",
        svg_of(alt.concat(*charts, columns=3, spacing=22), "conjecture-scatter"),
        key=_agent_key(names),
    )


def _marks(points: Points, measure: Measure) -> list[tuple[AgentName, dict[str, Any]]]:
    shared = points.shared([measure.name, "retargetability"])
    out = []
    for name in points.names:
        mine = [v for k, v in shared if k[:2] == (name.agent_id, name.label)]
        if mine:
            x, y = (sum(v[i] for v in mine) / len(mine) for i in (0, 1))
            out.append((name, {"agent": name.label, "x": x, "y": y}))
    return out
