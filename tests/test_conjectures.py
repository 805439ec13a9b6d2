"""The conjectures: planted rows whose truth is known give the verdicts that they must, and the page shows them."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import polars as pl
import pytest
from scipy import stats
from typer.testing import CliRunner

from retarget.analysis.conjecture_checks import (
    check_conjectures,
    check_instrument,
    judged,
    played,
    share_shown,
    shortcut_rates,
    twins_of,
)
from retarget.analysis.conjectures import (
    ENTANGLED,
    EXPECTED,
    JUDGED,
    MEASURES,
    Points,
    correlation,
    families,
    merged,
    pairs_of,
    points_of,
    present,
)
from retarget.analysis.conjectures_page import regime, section_of
from retarget.analysis.report import report_html
from retarget.analysis.summary import agent_name
from retarget.cli import app
from retarget.errors import StudyError
from retarget.rng import stream
from retarget.row import RESULT_COLUMNS, frame
from retarget.study.cells import plan
from retarget.study.spec import load_study, parse_study, small_study

#: (kind, label, retargetability); the compiled table is 0 as every table is.
AGENTS = (
    ("planner", "planner", 3.0),
    ("planner", "planner, compiled", 0.0),
    ("depth_planner", "depth_planner(depth=2)", 1.2),
    ("depth_planner", "depth_planner(depth=8)", 2.4),
    ("learned_planner", "learned_planner(data=near)", -0.5),
    ("learned_planner", "learned_planner(data=everywhere)", 2.8),
    ("controller", "controller", 1.7),
    ("goal_table", "goal_table", 2.1),
    ("q_table", "limit table", 0.1),
    ("q_table", "little table", 0.05),
    ("network", "distilled mlp", -1.6),
    ("network", "many goals mlp", 0.5),
)
WORLDS = (("FourRooms", "FourRooms(size=9)", 40), ("Maze", "Maze(size=9)", 33))
HOSTILE = "</script><img src=x onerror=alert(1)>\"'&"


def row(**given: object) -> dict[str, object]:
    """One row of the results: defaults for what a test does not care about."""
    out: dict[str, object] = dict.fromkeys(c.name for c in RESULT_COLUMNS)
    out |= {"cell": "c", "study": "planted", "goal_a": "1", "goal_b": "2", "gamma": 0.95, "level": 0.95}
    return out | {"kind": "experiment", "unit": "1", "status": "ok", "version": "0"} | given


def measured(given: dict[str, object], **values: float) -> list[dict[str, object]]:
    """Rows of one agent, world and seed: a value for each measure, by its name with underscores."""
    by_name = {m.name.replace(" ", "_").replace("-", "_"): m for m in MEASURES}
    out = []
    for name, value in values.items():
        m = by_name[name]
        dose = {"positive": 1.0, "zero": 0.0}.get(m.doses)
        how = "regime 2 extreme: from states far away" if m.probe == "out_of_distribution" else m.only or None
        for goal, off in (("5", -0.125), ("6", 0.125)):  # two goals, whose mean is the value
            out.append(
                row(**given, probe=m.probe, metric=m.metric, value=value + off, goal_b=goal, dose=dose, protocol=how)
            )
    return out


def planted(seed: int = 0) -> pl.DataFrame:
    """Goal coherence rises with retargetability, least collateral falls, and map gain is drawn without regard to it."""
    rng, rows = stream(seed, "planted"), []
    drawn = {label: float(rng.permutation(len(AGENTS))[0]) for _, label, _ in AGENTS}
    for world_id, world, n in WORLDS:
        for s in (0, 1):
            for i, (id, label, value) in enumerate(AGENTS):
                given = {"world_id": world_id, "world": world, "n_states": n, "agent_id": id, "agent": label, "seed": s}
                whole = value + 0.01 * s
                rows += measured(
                    given, retargetability=whole, goal_coherence=2 * whole, least_collateral=-whole,
                    map_gain=drawn[label], robustness=0.5 + 0.04 * (5 * i % 12), OOD_competence=0.3,
                    goal_directedness=1.5 if id == "planner" else 0.1 * (7 * i % 12),
                )  # fmt: skip
    return frame(rows, RESULT_COLUMNS)


def verdicts(results: pl.DataFrame) -> dict[str, str]:
    return {c.expectation: c.verdict for c in check_conjectures(results, points_of(results))}


# --- points --------------------------------------------------------------------------------------------------------


def test_a_point_is_a_kind_of_agent_in_a_world_with_a_seed():
    points = points_of(planted())
    assert len(points.values) == len(AGENTS) * len(WORLDS) * 2
    at = points.values[("planner", "planner", "Maze", "Maze(size=9)", 1)]
    assert at["retargetability"] == pytest.approx(3.01)  # the mean over its two goals
    assert [m.name for m in points.measures] == [
        "retargetability", "goal coherence", "map gain", "least collateral", "robustness", "OOD competence",
        "goal-directedness",
    ]  # fmt: skip


def test_rows_that_are_not_ok_and_doses_that_do_not_count_are_left_out():
    given = {"world_id": "Maze", "world": "Maze", "agent_id": "planner", "agent": "planner", "seed": 0}
    rows = measured(given, OOD_competence=0.5, narrowness=2.0)
    rows += [r | {"dose": 1.0 - r["dose"], "value": 99.0} for r in rows]  # type: ignore[operator]
    rows += [row(**given, probe="decomposition", metric="shared", status="failed", reason="none")]
    (values,) = points_of(frame(rows, RESULT_COLUMNS)).values.values()
    assert values == pytest.approx({"OOD competence": 0.5, "narrowness": 2.0})


def test_protocols_count_alike_however_many_goals_each_has():
    given = {"world_id": "Maze", "world": "Maze", "agent_id": "planner", "agent": "planner", "seed": 0}
    given |= {"probe": "goal_gradient", "metric": "goal_coherence"}
    rows = [row(**given, protocol="halves", value=1.0, goal_b=str(i)) for i in range(5)]
    rows.append(row(**given, protocol="rooms", value=0.0))
    (values,) = points_of(frame(rows, RESULT_COLUMNS)).values.values()
    assert values["goal coherence"] == 0.5


def test_protocols_that_search_do_not_count_for_the_orbit():
    given = {"world_id": "Maze", "world": "Maze", "agent_id": "planner", "agent": "planner", "seed": 0}
    given |= {"probe": "orbit_retargetability", "metric": "orbit_reached"}
    rows = [row(**given, protocol=how, value=v) for how, v in (("left as it is", 0.25), ("each is retrained", 1.0))]
    (values,) = points_of(frame(rows, RESULT_COLUMNS)).values.values()
    assert values == {"goal orbit": 0.25}


def test_the_order_of_the_rows_does_not_enter():
    results = planted()
    assert points_of(results.sample(fraction=1.0, shuffle=True, seed=3)) == points_of(results)


# --- correlations and verdicts -------------------------------------------------------------------------------------


def test_a_correlation_is_scipys_over_all_points():
    points = points_of(planted())
    found, reason = correlation(points, "map gain", "goal-directedness")
    x, y = zip(*(v for _, v in points.shared(["map gain", "goal-directedness"])), strict=True)
    assert found is not None and reason == ""
    assert found.value == pytest.approx(stats.spearmanr(x, y).statistic)
    assert (found.n, found.kinds) == (48, 12)


def test_planted_truths_are_told():
    told = verdicts(planted())
    for held in ("", "; with robustness held fixed"):
        assert told[f"the more retargetability, the more goal coherence{held}"] == "holds"
        assert told[f"the more retargetability, the more least collateral{held}"] == "does not hold"
        assert told[f"the more retargetability, the more OOD competence{held}"] == "cannot tell"
    turned = planted().with_columns(
        value=pl.when(pl.col("metric") == "least_collateral").then(-pl.col("value")).otherwise(pl.col("value"))
    )
    assert verdicts(turned)["the more retargetability, the more least collateral"] == "holds"


def test_what_is_unrelated_is_seldom_said_to_hold():
    """n = 60 tables with map gains drawn apart from goal coherence; at 2.5% on each side more than 7 of either have
    a chance of 3e-4."""
    told = [verdicts(planted(seed)) for seed in range(60)]
    counts = [t["the more goal coherence, the more map gain"] for t in told]
    assert counts.count("holds") <= 7 and counts.count("does not hold") <= 7


LABELS = ("table a", "table b", "table c", *(f"kind {i}" for i in range(7)), "clone of kind 0", "clone of kind 1")


def unrelated(seed: int, *, tables: bool = True, slope: float = 0.0) -> Points:
    """Kinds of four points: three tables at (0, 0), seven kinds above them whose scores have nothing to do with each
    other (but for a slope), and two clones. Positive scores and zeros make a correlation that is not there among
    kinds that can vary."""
    rng, values = stream(seed, "unrelated"), {}
    own = 1.0 + rng.random((len(LABELS), 2))
    own[:, 1] += slope * own[:, 0]
    own[-2:] = own[3:5]
    own[:3] = 0.0
    for k, label in enumerate(LABELS):
        for world in range(2):
            for s in range(2):
                each = (0.0 if k < 3 else 0.05) * stream(seed, "each", k if k < 10 else k - 7, world, s).random(2)
                x, y = own[k] + each
                values[("a", label, "w", str(world), s)] = {"retargetability": x, "goal coherence": y}
    names = tuple(agent_name("a", label) for label in LABELS)
    measures = tuple(m for m in MEASURES if m.name in ("retargetability", "goal coherence"))
    points = Points(names, measures, values)
    return points if tables else points.only(names[3:])


def test_tables_and_clones_raise_no_false_alarms():
    """n = 400 draws; at 5% false alarms more than 34 have a chance of 2e-3. The plain interval over all kinds, which
    takes tables and clones for evidence, is wrong more often than that: it is what the rule mends."""
    holds = naive = 0
    for seed in range(400):
        points = unrelated(seed)
        (told,) = judged(points)
        holds += told.verdict == "holds"
        found, _ = correlation(points, "retargetability", "goal coherence")
        naive += found is not None and found.ci_low > 0
    assert holds <= 34
    assert naive > 34
    related = [judged(unrelated(seed, slope=10.0))[0].verdict for seed in range(5)]
    assert related == ["holds"] * 5


def test_clones_are_one_kind_and_tables_are_told_apart():
    points = unrelated(1)
    found = {n.label: {m.label for m in f} for f in families(points) for n in f[:1]}
    pairs = [f for f in found.values() if len(f) > 1]
    assert {"kind 0", "clone of kind 0"} in pairs and {"kind 1", "clone of kind 1"} in pairs
    assert {n.label for n in points.tables()} == {"table a", "table b", "table c"}
    one = merged(points)
    assert len(one.names) == len(points.names) - sum(len(f) - 1 for f in pairs)
    (told,) = judged(points)
    assert told.tables == 1 and told.found is not None and told.bare is not None  # the tables are a family too
    assert told.found.kinds == told.bare.kinds + 1
    assert told.p == max(told.found.p, told.bare.p) or told.p == 1.0
    assert judged(unrelated(1, tables=False))[0].tables == 0


def test_a_member_that_differs_anywhere_is_a_kind_of_its_own():
    points = unrelated(1)
    key = next(k for k in points.values if k[1] == "clone of kind 0")
    values = points.values | {key: {**points.values[key], "goal coherence": 9.0}}
    split = Points(points.names, points.measures, values)
    assert len(families(split)) == len(families(points)) + 1


def test_verdicts_are_adjusted_for_their_number():
    found = judged(points_of(planted()))
    assert len(found) == 8  # four pairs, plain and with robustness held fixed
    least = min(found, key=lambda j: j.p)
    assert least.adjusted == pytest.approx(len(found) * least.p)
    assert all(j.adjusted >= j.p for j in found)
    assert all(j.verdict == "cannot tell" for j in found if j.adjusted > 0.05)


def test_pairs_that_share_data_get_no_verdict():
    assert JUDGED and all(frozenset((a, b)) not in ENTANGLED for a, b, _ in JUDGED)
    for a, b in (("slope over table", "map gain"), ("retargetability", "narrowness")):
        assert frozenset((a, b)) in ENTANGLED
    assert not any(rule.startswith("the more retargetability, the more map gain") for rule in verdicts(planted()))
    section = section_of(planted())
    assert section is not None
    cards = {c.title: c for c in section.cards}
    assert [(r[0][0], r[1][0]) for r in cards["Pairs that share data by construction"].rows] == [
        ("retargetability", "map gain")
    ]
    marked = [r for c in section.cards if c.title.startswith("Every pair") for r in c.rows if r[-1][0]]
    assert [(r[0][0], r[1][0]) for r in marked] == [("retargetability", "map gain")]
    (matrix,) = (f for f in section.figures if f.name == "conjecture-matrix")
    assert matrix.svg.count("*<") == 2  # above the diagonal and below it


# --- which rows count ----------------------------------------------------------------------------------------------


def test_rows_that_stand_twice_count_once():
    results = planted()
    twice = pl.concat([results, results.with_columns(cell=pl.lit("another"))])
    assert points_of(twice) == points_of(results)
    assert check_conjectures(twice, points_of(twice)) == check_conjectures(results, points_of(results))
    half = pl.concat([results, results.filter(pl.col("goal_b") == "5").with_columns(cell=pl.lit("another"))])
    assert points_of(half) == points_of(results)


def test_nominal_protocols_are_not_out_of_distribution():
    results = planted().with_columns(
        protocol=pl.when(pl.col("probe") == "out_of_distribution")
        .then(pl.col("protocol") + "; trained: west half (nominal)")
        .otherwise(pl.col("protocol"))
    )
    points = points_of(results)
    assert not any("OOD competence" in v for v in points.values.values())
    told = {c.expectation: c for c in check_conjectures(results, points)}
    check = told["the more retargetability, the more OOD competence"]
    assert check.verdict == "cannot tell" and "got 0" in check.found
    section = section_of(results)
    assert section is not None
    (card,) = (c for c in section.cards if c.title.startswith("Out of distribution"))
    assert card.head[1][0] == "2 extreme (nominal)"


def test_a_protocol_that_one_agent_lacks_does_not_count():
    out = []
    for label, regimes in (("a", {"1 absence": 0.5, "5 narrow": 0.1}), ("b", {"1 absence": 0.5})):
        given = {"world_id": "Maze", "world": "Maze", "agent_id": "x", "agent": label, "seed": 0}
        given |= {"probe": "out_of_distribution", "metric": "ood_competence", "dose": 1.0}
        out += [row(**given, protocol=f"regime {k}: as told; trained: by {label}", value=v) for k, v in regimes.items()]
    a, b = points_of(frame(out, RESULT_COLUMNS)).values.values()
    assert a == b == {"OOD competence": 0.5}


def test_one_measure_is_one_protocol_where_protocols_cannot_be_compared():
    given = {"world_id": "Maze", "world": "Maze", "agent_id": "x", "agent": "x", "seed": 0}
    rows = [
        row(**given, probe=probe, metric=metric, protocol=how, value=value, dose=dose)
        for probe, metric, how, value, dose in (
            ("weights", "noise_competence", "cells redrawn with chance dose in table", 0.25, 1.0),
            ("weights", "noise_competence", "Gaussian noise, dose x rms, in weight", 0.75, 1.0),
            ("intrinsic_dimension", "intrinsic_dimension", "linearised where the agent stands", 2.0, None),
            ("intrinsic_dimension", "intrinsic_dimension", "linearised at every step", 9.0, None),
            ("adaptation", "loca_gap", "a reward that dwarfs goal A's appears; adapted by slot", 0.0, None),
            ("adaptation", "global_competence", "a reward that dwarfs goal A's appears; adapted by slot", 0.5, None),
            ("adaptation", "global_competence", "a wall closes one way into goal A; adapted by model", 1.0, None),
        )
    ]
    (values,) = points_of(frame(rows, RESULT_COLUMNS)).values.values()
    assert values == {"redrawn cells": 0.25, "intrinsic dimension": 2.0, "adapted elsewhere": 0.5}


def test_measures_that_are_missing_are_left_out():
    results = planted().filter(pl.col("metric") != "goal_coherence")
    assert not any("goal coherence" in rule for rule in verdicts(results))
    alone = planted().filter(pl.col("agent") == "planner")
    assert not present(alone) and section_of(alone) is None
    assert "These rows hold one agent alone" in report_html(alone)
    found = check_conjectures(alone, points_of(alone))
    lines = [c for c in found if c.expectation.startswith("the more")]
    assert lines and all(c.verdict == "cannot tell" for c in lines)
    assert "at least 4 kinds of agent, got 1" in lines[0].found
    old = planted().filter(pl.col("probe").is_in(["retargetability", "robustness"]))
    assert not present(old) and 'id="conjectures-top"' not in report_html(old)


def test_every_expectation_names_measures():
    names = {m.name for m in MEASURES}
    assert len(names) == len(MEASURES)
    assert {n for a, b, _ in EXPECTED for n in (a, b)} <= names


def test_every_pair_of_measures_is_there_once():
    points = points_of(planted())
    pairs = pairs_of(points)
    assert len(pairs) == len({frozenset((p.first, p.second)) for p in pairs}) == 7 * 6 // 2
    flat = [p for p in pairs if "OOD competence" in (p.first, p.second)]
    assert all(p.plain is None and "the same for all 48 points" in p.reason for p in flat)
    assert [p.partial for p in pairs if "robustness" in (p.first, p.second)] == [None] * 6


# --- identical behaviour, maps, shortcuts --------------------------------------------------------------------------


def test_an_agent_stands_beside_its_compiled_table():
    twins = {t.metric: t for t in twins_of(planted())}
    assert (twins["meg_known"].far, twins["meg_known"].behaviour) == (0.0, True)
    gap = twins["retargetability"].gap
    assert (gap.value, gap.n) == (pytest.approx(3.0), 4)  # worlds and seeds, not goals
    rule = "retargetability tells planner from its compiled table, which goal-directedness cannot"
    assert verdicts(planted())[rule] == "holds"


@pytest.mark.parametrize(
    ("metric", "to", "verdict"),
    [
        ("meg_known", 1.6, "cannot tell"),
        ("retargetability", 3.0, "does not hold"),
        ("retargetability", -2.0, "holds"),
    ],
)
def test_the_identical_pair_is_told_by_both_halves(metric, to, verdict):
    results = planted()
    here = (pl.col("agent") == "planner, compiled") & (pl.col("metric") == metric)
    if metric == "retargetability" and to == 3.0:  # the same numbers as the planner's
        whole = results.filter((pl.col("agent") == "planner") & (pl.col("metric") == metric))
        other = whole.with_columns(agent=pl.lit("planner, compiled"))
        results = pl.concat([results.filter(~here), other])
    else:
        results = results.with_columns(value=pl.when(here).then(to).otherwise(pl.col("value")))
    rule = "retargetability tells planner from its compiled table, which goal-directedness cannot"
    assert verdicts(results)[rule] == verdict
    sound = {c.rule: c.sound for c in check_instrument(results, points_of(results))}
    identity = "goal-directedness, which sees behaviour alone, is the same for planner and for its compiled table"
    assert sound[identity] == (metric != "meg_known")


def shortcut_rows(rates: dict[tuple[str, str], list[float]]) -> pl.DataFrame:
    rows = []
    for (id, label), values in rates.items():
        for seed, value in enumerate(values):
            given = {"world_id": "Shortcut", "world": "Shortcut", "agent_id": id, "agent": label, "seed": seed}
            rows.append(row(**given, probe="filtered", metric="shortcut_rate_in_time", value=value))
            rows.append(row(**given, probe="filtered", metric="in_time_uniform", value=0.1))
    return frame(rows, RESULT_COLUMNS)


def test_the_predictions_of_filtering():
    omitted, shown, play = ("demo_table", "t(share=0)"), ("demo_table", "t(share=1)"), ("demo_planner", "after play")
    results = shortcut_rows({omitted: [0.0] * 5, shown: [0.9, 1.0, 1.0, 1.0, 0.95], play: [1.0] * 5})
    assert list(verdicts(results).values()) == ["holds"] * 3
    assert [n.label for n, _, _ in shortcut_rates(results)] == ["after play", "t(share=0)", "t(share=1)"]
    turned = shortcut_rows({omitted: [0.5, 0.6, 0.5, 0.6, 0.5], shown: [0.0] * 5, play: [0.1] * 5})
    assert list(verdicts(turned).values()) == ["does not hold"] * 3
    unsure = shortcut_rows({omitted: [0.0, 0.0, 0.0, 0.0, 0.2], shown: [0.0, 1.0, 0.0, 0.1, 0.2], play: [1.0]})
    assert list(verdicts(unsure).values()) == ["cannot tell"] * 3
    assert (share_shown("t(share=0)"), share_shown("t(n=3, share=0.25)"), share_shown("t")) == (0.0, 0.25, None)


def test_labels_are_read_whole():
    assert share_shown("demo_network(share=0.0, share_deployment=1.0)") is None
    assert share_shown("demo_network(share=0.0, share_deployment=0.0)") is None
    assert share_shown("demo_network(share=0.0, share_deployment=-1.0, play=0)") == 0.0
    assert share_shown("demo_planner(play=5000, share=0)") is None and played("demo_planner(play=5000, share=0)")
    flagged, after = ("demo_network", "n(share=0, share_deployment=1)"), ("demo_planner", "p(play=5000, share=0)")
    told = verdicts(shortcut_rows({flagged: [0.5] * 4, after: [1.0, 0.9, 1.0, 1.0]}))
    assert len(told) == 1 and next(iter(told)).startswith("p(play=5000, share=0): takes") and "holds" in told.values()


def depths(rates: dict[int, list[float]], best: float | None = 1.0) -> dict[str, str]:
    rows = {("depth_planner", f"search in Shortcut (depth={d})"): v for d, v in rates.items()}
    if best is not None:
        rows |= {("planner", "planner"): [best] * 4}
    return verdicts(shortcut_rows(rows))


def test_search_is_told_by_its_depth():
    rises, reaches = (
        "search: the deeper, the more often it takes the shortcut in time",
        "search of depth 14 takes the shortcut as often as the optimum",
    )
    full = depths({2: [0.0] * 4, 8: [0.3, 0.5, 0.4, 0.4], 14: [1.0] * 4})
    assert full == {rises: "holds", reaches: "holds"}
    assert depths({2: [0.0] * 4, 14: [0.5, 0.6, 0.5, 0.6]}) == {rises: "holds", reaches: "does not hold"}
    assert depths({2: [0.9] * 4, 14: [0.1] * 4})[rises] == "does not hold"
    assert depths({2: [0.0] * 4, 8: [1.0] * 4, 14: [0.6] * 4})[rises] == "cannot tell"  # it falls on the way
    assert depths({2: [0.0] * 4, 14: [1.0, 1.0, 1.0, 0.9]})[reaches] == "cannot tell"
    assert set(depths({2: [0.0] * 4, 14: [1.0] * 4}, best=None)) == {rises}
    assert depths({14: [1.0] * 4}) == {}  # one depth says nothing of depth


def test_what_cannot_come_out_otherwise_gets_no_verdict():
    results = pl.concat([planted(), shortcut_rows({("planner", "planner"): [1.0] * 4})])
    found = check_instrument(results, points_of(results))
    assert len(found) == 3 and all(c.sound for c in found)
    assert not any("planner: " in rule for rule in verdicts(results))
    broken = shortcut_rows({("planner", "planner"): [0.1] * 4})
    assert [c.sound for c in check_instrument(broken, points_of(broken))] == [False]


# --- the page ------------------------------------------------------------------------------------------------------


class Reader(HTMLParser):
    """Texts of a page, and the ids in it."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.ids += [v for k, v in attrs if k == "id" and v]

    def handle_data(self, data):
        self.texts.append(data.strip())


def test_the_page_has_the_section_and_its_verdicts_are_computed():
    results = planted()
    html = report_html(results)
    reader = Reader()
    reader.feed(html)
    assert "conjectures-top" in reader.ids and "conjecture-matrix-title" in reader.ids
    assert len(reader.ids) == len(set(reader.ids))
    for check in check_conjectures(results, points_of(results)):
        assert check.expectation in reader.texts and check.found in reader.texts
    section = section_of(results)
    assert section is not None and any("by construction" in words for words in section.caveats)
    assert any("Shared" in words and "raw parameters" in words for words in section.caveats)


def test_the_section_does_not_depend_on_the_order_of_rows():
    results = planted()
    assert section_of(results.sample(fraction=1.0, shuffle=True, seed=2)) == section_of(results)


def test_names_from_users_stay_inert():
    results = planted().with_columns(agent=pl.col("agent").str.replace("controller", HOSTILE, literal=True))
    html = report_html(results)
    assert "<img src=x" not in html
    assert html.count("</script>") == report_html(planted()).count("</script>")


def test_regimes_and_shortcuts_have_tables_of_their_own():
    assert (regime("regime 3 inner: mixed rows"), regime("free text"), regime(None)) == (
        "3 inner",
        "free text",
        "every",
    )
    rows = pl.concat([planted(), shortcut_rows({("planner", "planner"): [1.0] * 4})])
    section = section_of(rows)
    assert section is not None
    titles = {c.title: c for c in section.cards}
    assert titles["Out of distribution, regime by regime"].head[1] == ("2 extreme", "competence")
    assert [r[0][0] for r in titles["Strategies that training left out"].rows] == ["planner"]


# --- the studies ---------------------------------------------------------------------------------------------------


def test_the_studies_hold_what_they_must():
    small, full = load_study("conjectures-small"), load_study("conjectures")
    assert len(full.agents) >= 12 and len(full.seeds) == 5
    assert {w.id for w in full.worlds} >= {"OpenGrid", "FourRooms", "Maze"}
    assert len(small.seeds) == 2 and {w.label for w in small.worlds} >= {"FourRooms(size=9)", "Maze(size=9)"}
    assert {a.spec.label for a in small.agents} <= {a.spec.label for a in full.agents}
    assert {p.id for p in small.probes} == {p.id for p in full.probes}
    assert len(plan(small)) < len(plan(full))


def test_small_studies_go_by_the_name_of_the_whole():
    assert small_study("conjectures") == "conjectures-small"
    with pytest.raises(StudyError, match="'ladder' has no small version; those that have one: conjectures"):
        small_study("ladder")
    found = CliRunner().invoke(app, ["run", "ladder", "--small"])
    assert found.exit_code == 1 and re.search("no small version", str(found.exception))


def test_the_studies_are_read_as_users_studies_are():
    from retarget.study.spec import study_path

    text = study_path("conjectures").read_text(encoding="utf-8")
    assert parse_study(text, source="mine.toml") == load_study("conjectures")
