"""The report: its words, tables and figures, on seeded synthetic rows that follow the schema."""

from __future__ import annotations

import io
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
import pytest
from rich.console import Console

from retarget.analysis.checks import check_all, number
from retarget.analysis.figures import draw_all, plane_figure, representative_pair
from retarget.analysis.page import json_block
from retarget.analysis.report import report_html, write_report
from retarget.analysis.summary import agent_name, goal_indexed, growth, identical_pairs, metric_means, summarise
from retarget.analysis.terminal import terminal_table
from retarget.errors import StudyError
from retarget.rng import stream
from retarget.row import FRONTIER_COLUMNS, RESULT_COLUMNS, frame

WORLDS = (
    ("FourRooms", "FourRooms(size=9)", 40),
    ("FourRooms", "FourRooms(size=13)", 104),
    ("FourRooms", "FourRooms(size=23)", 400),
    ("Maze", "Maze(size=9)", 33),
    ("Maze", "Maze(size=13)", 101),
)
#: (agent_id, label, robustness, has a goal slot)
AGENTS = (
    ("q_table", "little table", 0.3, False),
    ("q_table", "limit table", 1.0, False),
    ("q_table", "limit table, compiled", 1.0, False),
    ("goal_table", "goal_table", 1.0, False),
    ("controller", "controller", 0.6, True),
    ("planner", "planner", 1.0, True),
    ("planner", "planner, compiled", 1.0, False),
    ("depth_planner", "depth_planner(depth=2)", 0.15, True),
    ("depth_planner", "depth_planner(depth=4)", 0.35, True),
    ("depth_planner", "depth_planner(depth=16)", 0.9, True),
    ("learned_planner", "learned_planner(data=near)", 0.7, True),
    ("learned_planner", "learned_planner(data=everywhere)", 0.98, True),
)
UNITS = {"retargetability": "log2 ratio", "robustness": "1", "worst_case": "1", "policy_entropy": "bit"}
HOSTILE = "</script><img src=x onerror=alert(1)>\"'&[bold]\u2028\x00"


def result(**given: object) -> dict[str, object]:
    """One row of the results: defaults for what a test does not care about."""
    row: dict[str, object] = dict.fromkeys(c.name for c in RESULT_COLUMNS)
    row |= {"cell": "c", "study": "synthetic", "probe": "retargetability", "world_id": "FourRooms"}
    row |= {"world": "FourRooms(size=9)", "n_states": 40, "agent_id": "planner", "agent": "planner"}
    row |= {"agent_digest": "d", "goal_a": "1", "goal_b": "2", "seed": 0, "gamma": 0.95, "level": 0.95}
    row |= {"metric": "retargetability", "unit": "log2 ratio", "status": "ok", "version": "0"}
    return row | given


def cell_rows(
    world: tuple[str, str, int], agent: tuple[str, str, float, bool], pair: int, seed: int
) -> list[dict[str, object]]:
    """Rows of one agent, world and goal pair."""
    family, world_label, n = world
    agent_id, label, robust, slot = agent
    # Named by the behaviour, so that an agent and its compiled table draw the same numbers.
    rng = stream(seed, "synthetic", world_label, label.removesuffix(", compiled"), pair)
    common = {"world_id": family, "world": world_label, "n_states": n, "agent_id": agent_id, "agent": label}
    common |= {"cell": f"{label}/{world_label}/{pair}/{seed}", "goal_a": f"{pair}", "seed": seed}
    entropy = float(rng.random())
    robustness = min(1.0, robust * float(rng.uniform(0.95, 1.05))) if robust < 1 else 1.0
    out = [
        result(**common, goal_b=None, probe="robustness", metric=m, unit="1", value=v)
        for m, v in (("robustness", robustness), ("robustness_unseen", robustness), ("worst_case", robustness / 2))
    ]
    seen = bool(pair % 2) if agent_id == "goal_table" else None
    common |= {"goal_b": f"{pair + 50}", "goal_b_seen": seen}
    behaviour = 1.9 * n**0.95 * float(rng.uniform(0.8, 1.2))
    edit = (9 + 1.1 * n**0.15) * float(rng.uniform(0.95, 1.1)) if slot or seen else behaviour
    edit = edit * 1.05 if label == "limit table" else edit
    lengths = {
        "edit_bits": edit,
        "behaviour_bits": behaviour,
        "edit_bits_plain": 1.4 * edit,
        "blank_bits": 1.3 * behaviour,
    }
    others = {
        "retargetability": math.log2(behaviour / edit),
        "retargetability_plain": math.log2(behaviour / edit) + 0.1,
    }
    others |= {
        "blank_ratio": edit / (1.3 * behaviour),
        "competence_a": robustness,
        "required_competence": 0.95 * robustness,
    }
    others |= {"random_success_rate": 0.01 * (pair % 2)}
    others |= {"random_competence": 0.2 * robustness, "dead_location_bits": 2.0, "competence_b_after": robustness}
    others |= {"cells_bare_success_bound": 10.0 + pair, "cells_bare_success": 11.0 + pair, "competence_b_before": 0.1}
    alone = {"policy_entropy": entropy, "agreement_b": 0.6, "states_to_change": float(n // 3)}
    gone = "depth=2" in label and pair % 3
    lost = "near" in label and pair % 2
    for metric, value in (lengths | others | alone).items():
        probe = "behaviour" if metric in alone else "retargetability"
        unit = UNITS.get(metric, "bit" if "bits" in metric else "1")
        row = result(
            **common,
            probe=probe,
            metric=metric,
            unit=unit,
            value=value,
            code="enumerative" if "bits" in metric else None,
        )
        if probe == "retargetability" and (gone or lost):
            row |= {"value": None, "status": "not_applicable" if gone else "failed"}
            row["reason"] = (
                "its competence on A, 0.051, is not above a uniform policy's" if gone else "no editor reached 0.93"
            )
        out.append(row)
    return out


def frontier_rows(
    world: tuple[str, str, int], agent: tuple[str, str, float, bool], pair: int, seed: int
) -> list[dict[str, object]]:
    """A frontier for one agent, world and goal pair."""
    family, label, n = world
    row: dict[str, object] = dict.fromkeys(c.name for c in FRONTIER_COLUMNS)
    row |= {
        "cell": "c",
        "study": "synthetic",
        "probe": "retargetability",
        "world_id": family,
        "world": label,
        "n_states": n,
    }
    row |= {"agent_id": agent[0], "agent": agent[1], "agent_digest": "d", "goal_a": f"{pair}", "goal_b": f"{pair + 50}"}
    row |= {"seed": seed, "gamma": 0.95, "level": 0.95, "success": 0.5, "n_cells": 1, "parts": "p"}
    row |= {f"spend_{k}": 0 for k in ("env_steps", "grad_steps", "simulations")} | {"spend_flops": 1.0}
    out = []
    for subject, editor, scale in (
        ("agent", "slot" if agent[3] else "table", 1),
        ("table", "table", 2),
        ("blank", "retrain", 3),
    ):
        for k in range(6):
            bits = 14 + 3 * k if editor == "slot" else int(scale * n**0.9 * (k + 1) / 3) + 6
            out.append(
                row
                | {"subject": subject, "editor": editor, "bits": bits, "plain_bits": 2 * bits}
                | {"competence": agent[2] * min(1.0, 0.1 + 0.18 * k), "on_front": k != 2}
            )
    return out


def synthetic(
    agents: tuple[tuple[str, str, float, bool], ...] = AGENTS, pairs: int = 6, seeds: int = 2
) -> pl.DataFrame:
    """Results of a made-up study in which every expectation holds."""
    cells = [(w, a, p, s) for w in WORLDS for a in agents for p in range(pairs) for s in range(seeds)]
    return frame([row for c in cells for row in cell_rows(*c)])


def synthetic_frontiers(agents: tuple[tuple[str, str, float, bool], ...] = AGENTS) -> pl.DataFrame:
    """Frontiers of the same study."""
    cells = [(w, a, p, 0) for w in WORLDS[-2:] for a in agents for p in range(6)]
    return frame([row for c in cells for row in frontier_rows(*c)], FRONTIER_COLUMNS)


@pytest.fixture(scope="module")
def results() -> pl.DataFrame:
    return synthetic()


@pytest.fixture(scope="module")
def run_dir(results: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    results.write_parquet(out / "results.parquet")
    synthetic_frontiers().write_parquet(out / "frontiers.parquet")
    write_report(out)
    return out


# --- the summary, against plain Python ---------------------------------------------------------------------------


def picked(results: pl.DataFrame, **where: object) -> list[float]:
    """Values that are ok, by plain Python: the oracle of the summary."""
    return [
        r["value"]
        for r in results.iter_rows(named=True)
        if r["status"] == "ok" and all(r[k] == v for k, v in where.items())
    ]


def test_summary_means_are_plain_means(results: pl.DataFrame) -> None:
    rows = {(r["scope"], r["agent"], r["world"]): r for r in summarise(results).iter_rows(named=True)}
    assert len(rows) == len(AGENTS) * (1 + len(WORLDS))
    for agent in ("planner", "learned_planner(data=near)", "little table"):
        for metric in ("retargetability", "robustness", "edit_bits"):
            everywhere = picked(results, agent=agent, metric=metric)
            assert rows["all", agent, None][metric] == pytest.approx(sum(everywhere) / len(everywhere))
            assert rows["all", agent, None][f"{metric}_n"] == len(everywhere)
            maze = picked(results, agent=agent, metric=metric, world="Maze(size=9)")
            assert rows["world", agent, "Maze(size=9)"][metric] == pytest.approx(sum(maze) / len(maze))
    ratios = picked(results, agent="planner", metric="blank_ratio")
    geometric = math.exp(sum(map(math.log, ratios)) / len(ratios))
    assert rows["all", "planner", None]["blank_ratio"] == pytest.approx(geometric)


def test_summary_counts_statuses_and_does_not_average_what_is_missing(results: pl.DataFrame) -> None:
    rows = {r["agent"]: r for r in summarise(results).iter_rows(named=True) if r["scope"] == "all"}
    total = len(WORLDS) * 6 * 2
    near, shallow = rows["learned_planner(data=near)"], rows["depth_planner(depth=2)"]
    assert (near["pairs_ok"], near["pairs_not_applicable"], near["pairs_failed"]) == (total // 2, 0, total // 2)
    assert (shallow["pairs_ok"], shallow["pairs_not_applicable"]) == (total // 3, total - total // 3)


def test_summary_does_not_depend_on_the_order_of_rows(results: pl.DataFrame) -> None:
    shuffled = results.sample(fraction=1.0, shuffle=True, seed=1)
    for function in (summarise, metric_means, goal_indexed, growth, identical_pairs):
        assert function(results).equals(function(shuffled), null_equal=True), function.__name__


def test_growth_recovers_known_exponents() -> None:
    rows = []
    for n in (16, 64, 256):
        world = {"world": f"W(size={n})", "world_id": "W", "n_states": n}
        for metric, value in (("edit_bits", 4.0), ("behaviour_bits", float(n)), ("retargetability", math.log2(n / 4))):
            rows.append(result(**world, metric=metric, value=value))
    (row,) = growth(frame(rows)).rows(named=True)
    assert row["edit_exponent"] == pytest.approx(0.0, abs=1e-12)
    assert row["behaviour_exponent"] == pytest.approx(1.0)
    assert row["per_doubling"] == pytest.approx(1.0)
    assert (row["n_sizes"], row["n_points"]) == (3, 3)


def test_identical_pairs_see_equal_behaviour_and_unequal_insides(results: pl.DataFrame) -> None:
    table = identical_pairs(results).filter(pl.col("agent") == "planner")
    alike = table.filter(pl.col("behaviour_only"))
    assert {"robustness", "policy_entropy", "agreement_b", "states_to_change"} <= set(alike["metric"])
    assert alike["max_difference"].max() == 0
    gap = table.filter(pl.col("metric") == "retargetability").row(0, named=True)
    assert gap["mean_compiled"] == 0
    assert gap["mean_difference_low"] > 2


def test_identical_pair_that_is_not_identical_is_reported(results: pl.DataFrame) -> None:
    off = (pl.col("agent") == "planner, compiled") & (pl.col("metric") == "robustness") & (pl.col("goal_a") == "3")
    broken = results.with_columns(pl.when(off).then(0.9).otherwise(pl.col("value")).alias("value"))
    check = next(c for c in check_all(broken) if "every measure of behaviour is the same for planner" in c.expectation)
    assert check.verdict == "does not hold"
    assert "robustness" in check.found
    assert "does not hold" in report_html(broken.filter(pl.col("world_id") == "Maze"))


@pytest.mark.parametrize(
    ("agent_id", "label", "role", "compiled"),
    [
        ("planner", "planner", "planner", False),
        ("planner", "compiled table of planner", "planner", True),
        ("depth_planner", "depth_planner(depth=4), compiled", "depth planner", True),
        ("q_table", "q_table(episodes=30, starts=one)", "table, little training", False),
        ("q_table", "q_table", "table, to the limit", False),
        ("q_table", "q_table(episodes=500)", "table", False),
        ("learned_planner", "learned_planner(data=near)", "learned model, near", False),
        ("learned_planner", "a linear one", "learned model, everywhere", False),
        ("file", "planner.npy", "file", False),
        ("of_a_user", "mine", "other", False),
    ],
)
def test_agents_are_named_by_what_they_are(agent_id: str, label: str, role: str, compiled: bool) -> None:
    name = agent_name(agent_id, label)
    assert (name.role, name.compiled) == (role, compiled)


# --- the checks --------------------------------------------------------------------------------------------------


def test_every_expectation_holds_on_rows_made_to_hold(results: pl.DataFrame) -> None:
    checks = check_all(results)
    assert len(checks) > 12
    assert {c.verdict for c in checks} == {"holds"}


@pytest.mark.parametrize(
    ("agent", "metric", "change", "expectation"),
    [
        ("little table", "robustness", pl.col("value") + 0.4, "little table: robustness below 0.5"),
        ("limit table", "robustness", pl.col("value") * 0.999, "limit table: robustness 1"),
        ("planner, compiled", "retargetability", pl.col("value") + 1e-6, "exactly 0"),
        ("planner", "retargetability", pl.lit(-0.5), "planner: retargetability above 0"),
        ("planner", "retargetability", pl.lit(-0.5), "planner: retargetability grows"),
        ("planner", "retargetability", pl.lit(-0.5), "at least 1 from 100 states"),
        ("depth_planner(depth=16)", "robustness", pl.lit(0.2), "robustness rises with depth"),
        ("depth_planner(depth=4)", "retargetability", pl.lit(-0.1), "at every depth"),
        ("controller", "retargetability", pl.lit(-0.1), "set-point"),
        ("goal_table", "retargetability", pl.lit(1.0), "held-out"),
        ("planner", "random_success_rate", pl.lit(1.0), "random edits of the same size"),
        ("planner", "retargetability_plain", pl.lit(-9.0), "plainer"),
        ("planner", "cells_bare_success", pl.lit(1.0), "lower bound"),
    ],
)
def test_numbers_against_an_expectation_are_said(
    results: pl.DataFrame, agent: str, metric: str, change: pl.Expr, expectation: str
) -> None:
    where = (pl.col("agent") == agent) & (pl.col("metric") == metric) & (pl.col("status") == "ok")
    changed = results.with_columns(pl.when(where).then(change).otherwise(pl.col("value")).alias("value"))
    found = [c for c in check_all(changed) if expectation in c.expectation]
    assert {c.verdict for c in found} == {"does not hold"}


def test_one_value_is_not_enough_to_tell() -> None:
    (check,) = check_all(frame([result(value=2.0)]))
    assert check.verdict == "cannot tell"
    assert "one value" in check.found


# --- the page ----------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Elements, their attributes, and the text of scripts."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self._inside = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        else:
            self.words.append(data)


def rows_of(source: str, name: str) -> list[dict[str, object]]:
    """The rows that a page carries, decoded as its script does."""
    (data,) = (t for t in json.loads(Page(source).scripts[0]) if t["id"] == name)
    columns = {
        c["name"]: [None if v is None else c["dict"][v] if c["dict"] is not None else v for v in c["data"]]
        for c in data["columns"]
    }
    return [{k: v[i] for k, v in columns.items()} for i in range(data["rows"])]


def test_every_number_is_on_the_page(run_dir: Path, results: pl.DataFrame) -> None:
    source = (run_dir / "report.html").read_text(encoding="utf-8")
    carried = rows_of(source, "results")
    assert len(carried) == results.height
    for column in ("value", "agent", "goal_b", "seed", "status", "reason"):
        assert [r[column] for r in carried] == results[column].to_list()
    assert len(rows_of(source, "frontiers")) == synthetic_frontiers().height


def test_page_is_self_contained_and_sound(run_dir: Path) -> None:
    source = (run_dir / "report.html").read_text(encoding="utf-8")
    outside = [u for u in re.findall(r"https?://[^\s\"'<>)]+", source) if not u.startswith("http://www.w3.org/")]
    assert outside == []
    page = Page(source)
    for tag, attrs in page.elements:
        assert tag not in ("iframe", "object", "embed", "link", "img", "base"), tag
        assert not [a for a in attrs if a.startswith("on")], attrs
        target = attrs.get("href") or attrs.get("src") or attrs.get("xlink:href") or "#"
        assert target.startswith("#"), target
    ids = [a["id"] for _, a in page.elements if a.get("id")]
    assert len(ids) == len(set(ids))
    for reference in re.findall(r"url\(#([^)]+)\)", source):
        assert reference in ids
    for name in ("plane", "plane-by-world", "growth", "depth", "pair", "frontier-0"):
        assert f"{name}-title" in ids
    assert not re.search(r"\b(NaN|undefined|Infinity|None)\b", " ".join(page.words))


def test_report_is_deterministic(run_dir: Path, tmp_path: Path) -> None:
    for name in ("results.parquet", "frontiers.parquet"):
        pl.read_parquet(run_dir / name).filter(pl.col("world") == "Maze(size=13)").write_parquet(tmp_path / name)
    first = write_report(tmp_path).read_bytes()
    assert write_report(tmp_path).read_bytes() == first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["frontiers.parquet", "report.html", "results.parquet"]


def hostile_rows() -> pl.DataFrame:
    rows = []
    for n in (9, 25):
        for metric, value in (
            ("retargetability", 1.0),
            ("robustness", 0.5),
            ("edit_bits", 8.0),
            ("behaviour_bits", 16.0),
        ):
            world = {
                "world": f"{HOSTILE}{n}",
                "world_id": HOSTILE,
                "n_states": n,
                "goal_a": HOSTILE,
                "goal_b": HOSTILE * 2,
            }
            for agent in (HOSTILE, HOSTILE + ", compiled"):
                rows.append(result(**world, agent=agent, agent_id=HOSTILE, study=HOSTILE, metric=metric, value=value))
    rows.append(
        result(agent=HOSTILE, agent_id=HOSTILE, status="failed", reason=HOSTILE, world=f"{HOSTILE}9", n_states=9)
    )
    return frame([r | {"version": HOSTILE, "unit": HOSTILE, "code": HOSTILE, "probe": HOSTILE} for r in rows])


def test_text_of_users_stays_text() -> None:
    results = hostile_rows()
    frontier = frontier_rows((HOSTILE, f"{HOSTILE}9", 9), (HOSTILE, HOSTILE, 1.0, False), 0, 0)
    frontiers = frame(
        [r | {"goal_a": HOSTILE, "goal_b": HOSTILE * 2, "editor": HOSTILE} for r in frontier], FRONTIER_COLUMNS
    )
    source = report_html(results, frontiers)
    page = Page(source)
    assert not [t for t, _ in page.elements if t == "img"]
    assert not [a for _, a in page.elements if any(k.startswith("on") for k in a)]
    assert len(page.scripts) == 2
    assert "\x00" not in source
    assert rows_of(source, "results")[0]["agent"] == HOSTILE.replace("\x00", "�").replace("\u2028", "�")
    assert "onerror" in "".join(page.words)


def test_json_block_reads_back_and_cannot_close_its_element() -> None:
    value = {"a": ["</ScRiPt>", "<!--", "&amp;", "\u2028", "é"]}
    block = json_block(value)
    assert json.loads(block) == value
    assert not set("<>&\u2028") & set(block)


def test_many_edits_are_cut_to_those_on_a_front(results: pl.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    few, frontiers = results.filter(pl.col("agent") == "planner"), synthetic_frontiers()
    monkeypatch.setattr("retarget.analysis.report._MOST_EDITS", frontiers.height - 1)
    source = report_html(few, frontiers)
    assert len(rows_of(source, "frontiers")) == frontiers["on_front"].sum() < frontiers.height
    assert f"all {frontiers.height:,} are in frontiers.parquet" in source


# --- partial data ------------------------------------------------------------------------------------------------


def only(**where: object) -> pl.DataFrame:
    out = synthetic(pairs=2, seeds=1)
    for column, value in where.items():
        out = out.filter(pl.col(column) == value)
    return out


def partial_cases() -> dict[str, pl.DataFrame]:
    table = [
        result(agent="table.npy", agent_id="file", metric=m, value=v, goal_b_seen=None)
        for m, v in (("robustness", 0.7),)
    ]
    nothing = [
        result(status="not_applicable", value=None, reason="too few goals"),
        result(agent="b", status="failed", reason="x"),
    ]
    own = [result(probe="mine", metric="their own", unit="m/s", value=float(k), goal_b=None) for k in range(3)]
    return {
        "one agent": only(agent="planner"),
        "one world": only(world="Maze(size=9)"),
        "only robustness": only(probe="robustness"),
        "only behaviour": only(probe="behaviour"),
        "a file": frame(table),
        "nothing ok": frame(nothing),
        "a user's probe": frame(own),
        "no states": frame([result(n_states=None, value=1.0, metric=m) for m in ("retargetability", "robustness")]),
        "negative": frame([result(value=-2.0, seed=s) for s in range(3)] + [result(metric="robustness", value=0.0)]),
    }


@pytest.mark.parametrize("case", list(partial_cases()))
def test_partial_data_make_a_report(case: str) -> None:
    results = partial_cases()[case]
    source = report_html(results)
    assert len(rows_of(source, "results")) == results.height
    assert not re.search(r"\b(NaN|Infinity|None)\b", " ".join(Page(source).words))
    out = Console(width=160, record=True, file=io.StringIO())
    out.print(terminal_table(results))
    assert str(results["agent"][0]) in out.export_text()


def test_reasons_are_counted(results: pl.DataFrame) -> None:
    words = " ".join(Page(report_html(results.filter(pl.col("world_id") == "Maze"))).words)
    assert "its competence on A, …, is not above a uniform policy's" in words
    assert "no editor reached …" in words


def test_terminal_table_shows_labels_as_they_are() -> None:
    out = Console(width=200, record=True, file=io.StringIO())
    out.print(terminal_table(hostile_rows()))
    assert "[bold]" in out.export_text()


# --- bad input ---------------------------------------------------------------------------------------------------


def test_bad_run_folders_give_one_clear_line(tmp_path: Path, results: pl.DataFrame) -> None:
    with pytest.raises(StudyError, match="does not exist; run the study first") as error:
        write_report(tmp_path)
    assert "\n" not in str(error.value)
    results.clear().write_parquet(tmp_path / "results.parquet")
    with pytest.raises(StudyError, match="holds no results"):
        write_report(tmp_path)
    results.drop("unit", "level").write_parquet(tmp_path / "results.parquet")
    with pytest.raises(StudyError, match=r"lacks .* level, unit;"):
        write_report(tmp_path)
    (tmp_path / "results.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(StudyError, match="cannot be read") as error:
        write_report(tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "report.html").exists()


# --- figures -----------------------------------------------------------------------------------------------------


def test_representative_pair_is_the_median(results: pl.DataFrame) -> None:
    world = "Maze(size=13)"
    pair = representative_pair(results, synthetic_frontiers(), world)
    assert pair is not None and pair[2] == 0
    # The oracle: pairs with a frontier (seed 0) that most agents could be measured on, in order of their mean length.
    means = []
    for p in range(6):
        values = picked(results, world=world, metric="behaviour_bits", goal_a=str(p), seed=0)
        means.append((-len(values), sum(values) / len(values), str(p)))
    most = sorted(m for m in means if m[0] == min(means)[0])
    assert pair[0] == most[(len(most) - 1) // 2][2]


def test_plane_labels_every_agent_once(results: pl.DataFrame) -> None:
    figure = plane_figure(results)
    assert figure is not None
    for _, label, _, _ in AGENTS:
        # Each label is drawn twice: a halo, and the text on it.
        assert len(re.findall(f">{re.escape(label)}</text>", figure.svg)) == 2


def test_figures_follow_the_page_and_carry_no_stand_in_colours(results: pl.DataFrame) -> None:
    for figure in draw_all(results.filter(pl.col("world_id") == "Maze"), None):
        assert not re.search(r"#0[1-9]0|#10000", figure.svg), figure.name
        assert "var(--ink" in figure.svg


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.9999, "0.9999"),
        (0.12345, "0.123"),
        (1234567.0, "1,234,567"),
        (-0.5, "−0.5"),
        (1e-20, "0"),
        (None, "–"),
        (1.0, "1"),
    ],
)
def test_numbers_read_well(value: float | None, shown: str) -> None:
    assert number(value) == shown


# --- in a browser, where there is one ----------------------------------------------------------------------------

BROWSER = next((b for b in ("chromium", "chromium-browser", "google-chrome") if shutil.which(b)), None)


@pytest.mark.skipif(BROWSER is None, reason="no chromium here")
def test_the_table_sorts_and_filters_in_a_browser(run_dir: Path, tmp_path: Path, results: pl.DataFrame) -> None:
    where = {"metric": "retargetability", "agent": "planner", "world": "Maze(size=9)"}
    query = "&".join(f"{k}={v}" for k, v in where.items())
    url = (run_dir / "report.html").as_uri() + f"#results?{query}&sort=-value"
    done = subprocess.run(
        [
            str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
            "--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path}",
            "--virtual-time-budget=3000", "--dump-dom", url,
        ],
        capture_output=True, text=True, timeout=50, check=True,
    )  # fmt: skip
    table = done.stdout.split('<div id="results">', 1)[1].split("</table>", 1)[0]
    heads = [re.sub(r"<span.*", "", h) for h in re.findall(r"<button[^>]*>(.*?)</button>", table.split("<tbody>")[0])]
    column = [h.removesuffix("</span>") for h in heads if h not in ("Save these rows as CSV",)].index("value")
    shown = [re.findall(r"<td[^>]*>(.*?)</td>", row)[column] for row in table.split("<tbody>")[1].split("<tr>")[1:]]
    wanted = sorted(picked(results, **where), reverse=True)
    assert [float(v) for v in shown] == pytest.approx(wanted, rel=1e-5)
