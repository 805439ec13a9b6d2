"""The report on searches: compute against robustness, where the goal lives, and what is expected; on made-up rows."""

from __future__ import annotations

import polars as pl
import pytest

from retarget.analysis.anatomy import where_table
from retarget.analysis.checks import Check, check_all
from retarget.analysis.compute import compute_figure, compute_points
from retarget.analysis.report import report_html
from retarget.analysis.summary import dial_of
from retarget.rng import stream
from retarget.row import RESULT_COLUMNS, frame

PAIRS = 6


def row(agent_id: str, agent: str, pair: int, metric: str, value: float | None, **rest: object) -> dict[str, object]:
    """One row; without a value it is a failed one."""
    out: dict[str, object] = dict.fromkeys(c.name for c in RESULT_COLUMNS)
    out |= {"cell": f"{agent}/{pair}/{metric}", "study": "synthetic", "probe": "robustness", "world_id": "FourRooms"}
    out |= {"world": "FourRooms(size=9)", "n_states": 40, "agent_id": agent_id, "agent": agent, "agent_digest": "d"}
    out |= {"goal_a": f"{pair}", "goal_b": f"{pair + 9}", "seed": 0, "gamma": 0.95, "level": 0.95, "version": "0"}
    out |= {"metric": metric, "unit": "1", "status": "ok" if value is not None else "failed", "value": value}
    return out | ({} if value is not None else {"reason": "none found"}) | rest


def ladder(rising: bool = True) -> list[dict[str, object]]:
    """Tree searches of four settings, which do better the more they search (or worse)."""
    out = []
    for k, n in enumerate((4, 16, 64, 256)):
        for pair in range(PAIRS):
            noise = 0.01 * float(stream(0, "synthetic", n, pair).random())
            base = {"flops_per_action": 100.0 * n, "simulations_per_action": n}
            label = f"tree_search(leaf=none, simulations={n})"
            step = k if rising else 3 - k
            for metric, value in (
                ("robustness", 0.2 + 0.2 * step + noise), ("agreement_a", 1 - 0.5 / 2**step + noise / 10),
                ("retargetability", 0.4 * step + 0.2 + noise),
            ):  # fmt: skip
                out.append(row("tree_search", label, pair, metric, value, **base))
    return out


def trained(slot_suffices: bool) -> list[dict[str, object]]:
    """Searches with trained values, as the probe `where` sees them, at two settings."""
    out = []
    for n in (8, 512):
        for pair in range(PAIRS):
            label, base = f"alphazero(simulations={n})", {"probe": "where", "flops_per_action": 50.0 * n}
            hit = slot_suffices or (n == 512 and pair > 0)
            reached = 1.0 if hit else 0.3 + 0.01 * pair
            found = {"edit_bits": 40.0, "edit_bits_only_goal_slot": 14.0 if hit else None}
            found |= {"competence_b_only_goal_slot": reached, "competence_b_without_goal_slot": 0.2}
            found |= {"edit_bits_without_goal_slot": None, "competence_b_only_value": 0.4}
            found |= {"edit_bits_only_value": None, "edit_bits_without_value": 30.0, "competence_b_without_value": 0.9}
            out += [row("alphazero", label, pair, m, v, **base) for m, v in found.items()]
    return out


def check(checks: tuple[Check, ...], words: str) -> Check:
    (found,) = [c for c in checks if words in c.expectation]
    return found


@pytest.mark.parametrize(
    ("label", "found"),
    [
        ("tree_search(leaf=none, simulations=64)", ("tree_search(leaf=none)", 64)),
        ("tree_search(backup=max, simulations=8, model=near)", ("tree_search(backup=max, model=near)", 8)),
        ("alphazero(simulations=512)", ("alphazero", 512)),
        ("depth_planner(depth=2)", ("depth_planner", 2)),
        ("alphazero(simulations=8, training_simulations=32)", ("alphazero(training_simulations=32)", 8)),
        ("planner", None),
        ("alphazero(training_simulations=32)", None),
    ],
)
def test_the_dial_is_read_from_a_label(label: str, found: tuple[str, int] | None) -> None:
    assert dial_of(label) == found


def test_points_are_means_in_order_of_the_dial() -> None:
    results = frame(ladder())
    points = [p for p in compute_points(results) if p["metric"] == "robustness"]
    assert [p["dial"] for p in points] == [4, 16, 64, 256]
    assert [p["flops"] for p in points] == [400.0, 1600.0, 6400.0, 25600.0]
    first = results.filter((pl.col("metric") == "robustness") & pl.col("agent").str.contains("=4\\)"))["value"]
    assert points[0]["value"] == pytest.approx(first.mean()) and points[0]["low"] < points[0]["value"]
    one = frame([r for r in ladder() if "simulations=4)" in str(r["agent"])])
    assert compute_points(one) == [] and compute_figure(one) is None


def test_the_figure_has_a_line_for_each_kind_of_search() -> None:
    figure = compute_figure(frame(ladder() + trained(False)))
    assert figure is not None and [k.label for k in figure.key] == ["tree_search(leaf=none)"]
    assert "operations of one decision" in figure.svg


@pytest.mark.parametrize("rising", [True, False])
def test_more_search_is_held_against_the_numbers(rising: bool) -> None:
    checks = check_all(frame(ladder(rising)))
    want = "holds" if rising else "does not hold"
    assert check(checks, "robustness rises with simulations").verdict == want
    agree = check(checks, "are those of value iteration")
    assert agree.verdict == want
    # the share of other actions halves with each fourfold number of simulations
    assert ("to the power −0.5" in agree.found) == rising


@pytest.mark.parametrize("suffices", [True, False])
def test_trained_values_are_held_against_the_numbers(suffices: bool) -> None:
    checks = check_all(frame(trained(suffices)))
    alone = check(checks, "the reward slot alone does not retarget it")
    assert alone.verdict == ("does not hold" if suffices else "holds")
    assert f"8 simulations: {6 if suffices else 0} of 6 pairs" in alone.found
    assert check(checks, "slot, value and prior heads all open").verdict == "holds"
    if not suffices:
        assert check(checks, "the more the slot alone retargets it").verdict == "holds"


def test_where_the_goal_lives_has_a_line_for_each_role_that_was_measured() -> None:
    table = where_table(frame(trained(False)))
    lines = {(r["agent"], r["role"]): r for r in table.rows(named=True)}
    assert set(lines) == {(f"alphazero(simulations={n})", r) for n in (8, 512) for r in ("goal slot", "value")}
    slot = lines["alphazero(simulations=512)", "goal slot"]
    assert slot["pairs"] == PAIRS and slot["bits_only"] == 14.0 and slot["retargeted_only"] == pytest.approx(5 / 6)
    assert slot["bits_without"] is None and slot["retargeted_without"] == 0.0 and slot["reached_without"] == 0.2
    assert where_table(frame(ladder())).is_empty()


def test_the_report_shows_both() -> None:
    page = report_html(frame(ladder() + trained(False)))
    assert "Where the goal lives" in page and "What search buys" in page
    assert "Where the goal lives" not in report_html(frame(ladder()))
