"""The conjectures: planted rows whose truth is known give the verdicts that they must, and the page shows them."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import polars as pl
import pytest
from scipy import stats
from typer.testing import CliRunner

from retarget.analysis.conjecture_checks import EXPECTED, check_conjectures, share_shown, shortcut_rates, twins_of
from retarget.analysis.conjectures import MEASURES, correlation, pairs_of, points_of, present
from retarget.analysis.conjectures_page import regime, section_of
from retarget.analysis.report import report_html
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
        how = "regime 2 extreme: from states far away" if m.probe == "out_of_distribution" else None
        for goal, off in (("5", -0.125), ("6", 0.125)):  # two goals, whose mean is the value
            out.append(
                row(**given, probe=m.probe, metric=m.metric, value=value + off, goal_b=goal, dose=dose, protocol=how)
            )
    return out


def planted(seed: int = 0) -> pl.DataFrame:
    """Slope over table rises with retargetability, narrowness falls, and map gain is drawn without regard to it."""
    rng, rows = stream(seed, "planted"), []
    drawn = {label: float(rng.permutation(len(AGENTS))[0]) for _, label, _ in AGENTS}
    for world_id, world, n in WORLDS:
        for s in (0, 1):
            for i, (id, label, value) in enumerate(AGENTS):
                given = {"world_id": world_id, "world": world, "n_states": n, "agent_id": id, "agent": label, "seed": s}
                whole = value + 0.01 * s
                rows += measured(
                    given, retargetability=whole, slope_over_table=2 * whole, narrowness=-whole, map_gain=drawn[label],
                    robustness=0.5 + 0.04 * (5 * i % 12), OOD_competence=0.3,
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
        "retargetability", "slope over table", "map gain", "narrowness", "robustness", "OOD competence",
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
        assert (
            told[f"the more retargetability, the more slope over table (they share data by construction){held}"]
            == "holds"
        )
        assert told[f"the more retargetability, the less narrowness{held}"] == "holds"
        assert told[f"the more retargetability, the more OOD competence{held}"] == "cannot tell"
    turned = planted().with_columns(
        value=pl.when(pl.col("metric") == "narrowness").then(-pl.col("value")).otherwise(pl.col("value"))
    )
    assert verdicts(turned)["the more retargetability, the less narrowness"] == "does not hold"


def test_what_is_unrelated_is_seldom_said_to_hold():
    """n = 60 tables with map gains drawn apart from retargetability; at 2.5% on each side more than 7 of either have
    a chance of 3e-4."""
    told = [verdicts(planted(seed)) for seed in range(60)]
    rule = "the more retargetability, the more map gain (they share data by construction)"
    counts = [t[rule] for t in told]
    assert counts.count("holds") <= 7 and counts.count("does not hold") <= 7


def test_measures_that_are_missing_are_left_out():
    results = planted().filter(pl.col("metric") != "slope_over_table")
    assert not any("slope over table" in rule for rule in verdicts(results))
    alone = planted().filter(pl.col("agent") == "planner")
    assert not present(alone) and section_of(alone) is None
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
    rule = "goal-directedness is the same for planner and for its compiled table, and retargetability is not"
    assert verdicts(planted())[rule] == "holds"


@pytest.mark.parametrize(
    ("metric", "to", "verdict"),
    [
        ("meg_known", 1.6, "does not hold"),
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
    rule = "goal-directedness is the same for planner and for its compiled table, and retargetability is not"
    assert verdicts(results)[rule] == verdict


def shortcut_rows(rates: dict[tuple[str, str], list[float]]) -> pl.DataFrame:
    rows = []
    for (id, label), values in rates.items():
        for seed, value in enumerate(values):
            given = {"world_id": "Shortcut", "world": "Shortcut", "agent_id": id, "agent": label, "seed": seed}
            rows.append(row(**given, probe="filtered", metric="shortcut_rate_in_time", value=value))
            rows.append(row(**given, probe="filtered", metric="in_time_uniform", value=0.1))
    return frame(rows, RESULT_COLUMNS)


def test_the_three_predictions_of_filtering():
    omitted, shown, search = ("demo_table", "t(share=0)"), ("demo_table", "t(share=1)"), ("planner", "planner")
    results = shortcut_rows({omitted: [0.0] * 5, shown: [0.9, 1.0, 1.0, 1.0, 0.95], search: [1.0] * 5})
    told = verdicts(results)
    assert list(told.values()) == ["holds"] * 3
    assert [n.label for n, _, _ in shortcut_rates(results)] == ["planner", "t(share=0)", "t(share=1)"]
    turned = shortcut_rows({omitted: [0.5, 0.6, 0.5, 0.6, 0.5], shown: [0.0] * 5, search: [0.1] * 5})
    assert list(verdicts(turned).values()) == ["does not hold"] * 3
    unsure = shortcut_rows({omitted: [0.0, 0.0, 0.0, 0.0, 0.2], shown: [0.0, 1.0, 0.0, 0.1, 0.2], search: [1.0]})
    assert list(verdicts(unsure).values()) == ["cannot tell"] * 3
    assert (share_shown("t(share=0)"), share_shown("t(n=3, share=0.25)"), share_shown("t")) == (0.0, 0.25, None)


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
