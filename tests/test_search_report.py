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
    assert all(p["lone"] for p in compute_points(one)) and compute_figure(one) is None


def test_the_figure_has_a_line_for_each_kind_of_search() -> None:
    figure = compute_figure(frame(ladder() + trained(False)))
    assert figure is not None and [k.label for k in figure.key] == ["tree_search(leaf=none)"]
    assert "operations of one decision" in figure.svg


def lone(agent_id: str, label: str, simulations: float, value: float = 1.0) -> list[dict[str, object]]:
    base = {"flops_per_action": 50.0 * simulations, "simulations_per_action": simulations}
    return [row(agent_id, label, pair, "robustness", value, **base) for pair in range(PAIRS)]


def test_agents_of_one_setting_are_points_with_letters() -> None:
    rows = ladder() + lone("planner", "planner", 600) + lone("path_planner", "path_planner(method=astar)", 5, 0.4)
    rows += lone("mc_aixi", "mc_aixi(data=near, simulations=128)", 128, 0.6) + lone("q_table", "q_table", 0)
    rows += lone("planner", "planner, compiled", 600)
    points = {p["family"]: p for p in compute_points(frame(rows)) if p["lone"]}
    assert set(points) == {"planner", "path_planner(method=astar)", "mc_aixi(data=near)"}
    assert points["planner"]["flops"] == 30_000.0 and points["planner"]["value"] == 1.0
    assert points["mc_aixi(data=near)"]["dial"] == 128 and points["planner"]["dial"] is None
    figure = compute_figure(frame(rows))
    assert figure is not None and [k.label for k in figure.key] == [
        "tree_search(leaf=none)", "a: planner", "b: path_planner(method=astar)", "c: mc_aixi(data=near)",
    ]  # fmt: skip
    assert all(f">{letter}</text>" in figure.svg for letter in "abc")


def test_letters_of_agents_that_lie_together_share_a_text() -> None:
    rows = ladder() + lone("planner", "planner", 600) + lone("learned_planner", "learned_planner(data=near)", 600)
    figure = compute_figure(frame(rows))
    assert figure is not None and ">a b</text>" in figure.svg


def test_the_dial_is_read_from_rows_where_the_label_does_not_say_it() -> None:
    """`tree_search` as it comes has 64 simulations: it is a mark on the line of those that say 16 and 256."""
    rows = []
    for n, label in ((16, "tree_search(simulations=16)"), (64, "tree_search"), (256, "tree_search(simulations=256)")):
        rows += lone("tree_search", label, n, n / 256)
    points = [p for p in compute_points(frame(rows)) if p["metric"] == "robustness"]
    assert [(p["family"], p["dial"], p["lone"]) for p in points] == [("tree_search", n, False) for n in (16, 64, 256)]
    named = compute_points(frame(lone("tree_search", "deep one", 64)))
    assert [(p["family"], p["dial"], p["lone"]) for p in named] == [("deep one", 64, True)]


@pytest.mark.parametrize("rising", [True, False])
def test_more_search_is_held_against_the_numbers(rising: bool) -> None:
    checks = check_all(frame(ladder(rising)))
    want = "holds" if rising else "does not hold"
    assert check(checks, "robustness rises with simulations").verdict == want
    agree = check(checks, "are those of value iteration")
    assert agree.verdict == want
    # the share of other actions halves with each fourfold number of simulations
    assert ("to the power −0.5" in agree.found) == rising


def series(label: str, metric: str, means: dict[int, float | None], **rest: object) -> list[dict[str, object]]:
    """Rows of a search at several settings, about a mean each; failed ones without."""
    out = []
    for n, mean in means.items():
        for pair in range(PAIRS):
            value = None if mean is None else mean + 0.001 * pair
            name = f"tree_search({label}, simulations={n})"
            out.append(row("tree_search", name, pair, metric, value, **{"simulations_per_action": n, **rest}))
    return out


def test_one_simulation_is_no_member_of_a_ladder() -> None:
    """It acts by its prior whatever the slot says: what it does is no first rung, and two are needed."""
    rows = series("leaf=none", "robustness", {1: 0.1, 16: 0.8, 64: 0.8})
    found = check(check_all(frame(rows)), "robustness rises")
    assert found.verdict == "cannot tell" and found.found.startswith("16: ")
    assert check_all(frame(series("leaf=none", "robustness", {1: 0.1, 16: 0.8}))) == ()
    share = {1: 0.2, 4: 0.5, 16: 0.75, 64: 0.875}
    found = check(check_all(frame(series("leaf=none", "agreement_a", share))), "are those of value iteration")
    # without the first rung the slope of 0.5, 0.25, 0.125 is a half a fourfold
    assert found.found.startswith("4: ") and "to the power −0.5" in found.found


@pytest.mark.parametrize("metric", ["robustness", "agreement_a"])
def test_a_clear_fall_in_the_middle_is_no_rise(metric: str) -> None:
    words = "rises with simulations" if metric == "robustness" else "are those of value iteration"
    fall = series("leaf=none", metric, {4: 0.2, 16: 0.7, 64: 0.5, 256: 0.9})
    assert check(check_all(frame(fall)), words).verdict == "does not hold"
    rise = series("leaf=none", metric, {4: 0.2, 16: 0.5, 64: 0.7, 256: 0.9})
    assert check(check_all(frame(rise)), words).verdict == "holds"


@pytest.mark.parametrize(
    ("values", "verdict"),
    [([1.0] * 6, "holds"), ([0.95, 0.7, 0.8, 0.75, 0.72, 0.7], "does not hold"), ([1.0] * 5 + [0.9], "cannot tell")],
)
def test_whether_the_optimum_is_reached_is_a_check_of_its_own(values: list[float], verdict: str) -> None:
    """In the smallest world, at the last rung, to a 40th; larger worlds and earlier rungs do not matter."""
    rows = series("leaf=distance", "agreement_a", {16: 0.3}) + series("leaf=distance", "agreement_a", {64: 0.4},
        world="FourRooms(size=13)", n_states=104)  # fmt: skip
    for pair, value in enumerate(values):
        rows.append(row("tree_search", "tree_search(leaf=distance, simulations=64)", pair, "agreement_a", value))
    found = check(check_all(frame(rows)), "acts as value iteration does")
    assert found.verdict == verdict and "FourRooms(size=9)" in found.expectation and "at 64" in found.expectation


@pytest.mark.parametrize("label", ["leaf=rollouts", "model=near", "backup=max", "leaf=distance, method=gumbel"])
def test_the_optimum_is_not_expected_of_every_search(label: str) -> None:
    rows = series(label, "agreement_a", {16: 0.5, 64: 0.9})
    assert not [c for c in check_all(frame(rows)) if "acts as value iteration" in c.expectation]


def test_rates_are_fitted_world_by_world() -> None:
    """Two worlds whose share of other actions falls with the powers -1/2 and -1, from different heights."""
    rows = []
    for world, start, power in (("A", 0.4, -0.5), ("B", 0.8, -1.0)):
        for n in (4, 16, 64):
            name, value = f"tree_search(leaf=none, simulations={n})", 1 - start * (n / 4) ** power
            rows += [row("tree_search", name, p, "agreement_a", value, world=world) for p in range(PAIRS)]
    found = check(check_all(frame(rows)), "are those of value iteration")
    assert found.found.endswith("to the power −0.5 in A, −1 in B")


def test_pairs_that_could_not_be_measured_are_counted() -> None:
    rows = series("leaf=none", "retargetability", {16: 0.8, 64: 0.9})
    whole = check(check_all(frame(rows)), "wherever it can be measured")
    assert whole.verdict == "holds" and "failed" not in whole.found
    rows[0] |= {"status": "failed", "value": None, "reason": "none found"}
    rows[1] |= {"status": "not_applicable", "value": None, "reason": "aimless"}
    part = check(check_all(frame(rows)), "wherever it can be measured")
    assert part.verdict == "cannot tell"
    assert "over 4 pairs (1 failed, 1 not applicable); 64: " in part.found
    below = series("leaf=none", "retargetability", {16: 0.8, 64: -0.4})
    assert check(check_all(frame(below)), "wherever it can be measured").verdict == "does not hold"


@pytest.mark.parametrize("suffices", [True, False])
def test_trained_values_are_held_against_the_numbers(suffices: bool) -> None:
    checks = check_all(frame(trained(suffices)))
    alone = check(checks, "the reward slot alone does not retarget it")
    assert alone.verdict == ("does not hold" if suffices else "holds")
    assert f"8 simulations: {6 if suffices else 0} of 6 pairs" in alone.found
    assert check(checks, "slot, value and prior heads all open").verdict == "holds"
    if not suffices:
        assert check(checks, "the more the slot alone retargets it").verdict == "holds"


def test_trained_values_are_compared_over_the_pairs_that_all_settings_have() -> None:
    """At 8 simulations only the three hardest pairs were measured; 512 is held against it on the same three."""
    rows = [r for r in trained(False) if r["agent"] != "alphazero(simulations=8)" or str(r["goal_a"]) in "012"]
    alone = check(check_all(frame(rows)), "the reward slot alone does not retarget it")
    assert "at 8 simulations" in alone.expectation
    # pair 0 of those three is not retargeted by 512 simulations either
    assert "8 simulations: 0 of 3 pairs" in alone.found and "512 simulations: 2 of 3 pairs" in alone.found
    assert "only the 3 pairs that all of them have, of up to 6" in alone.found


def test_the_setting_is_named_that_was_used() -> None:
    """One simulation says nothing of the slot: 8 are the fewest that do."""
    extra = [r | {"agent": "alphazero(simulations=1)"} for r in trained(False) if "=8)" in str(r["agent"])]
    alone = check(check_all(frame(trained(False) + extra)), "the reward slot alone does not retarget it")
    assert "at 8 simulations" in alone.expectation and "1 simulations" not in alone.found


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
