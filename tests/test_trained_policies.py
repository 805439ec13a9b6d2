"""From a trained policy to a table and a figure, as a user goes: train, save, measure, report."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from typer.testing import CliRunner

import retarget
from retarget.analysis.checks import check_all
from retarget.analysis.editors import EDITOR_COLUMNS, editor_table
from retarget.analysis.report import report_html
from retarget.analysis.summary import agent_name, metric_means, sized, worlds
from retarget.cli import app
from retarget.row import FRONTIER_COLUMNS, RESULT_COLUMNS, frame
from retarget.study.cells import plan, run_cell
from retarget.study.spec import STUDIES, load_study, parse_study, study_path


def _run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if code == 0:
        assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    else:
        assert isinstance(result.exception, retarget.RetargetError), result.output
        return " ".join(str(result.exception).split())
    return result.output


def _zip_of(path: Path, hidden: int = 4) -> Path:
    """A zip as Stable-Baselines3 writes them, of a small DQN policy in MountainCar that pushes the way it moves."""
    torch.manual_seed(0)
    shapes = {"q_net.q_net.0": (hidden, 2), "q_net.q_net.2": (3, hidden)}
    state: dict[str, torch.Tensor] = {}
    for name, (rows, columns) in shapes.items():
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.zeros(rows, columns), torch.zeros(rows)
    # one unit sees a positive velocity, one a negative one; they vote for a push to the right, and to the left
    state["q_net.q_net.0.weight"][0, 1], state["q_net.q_net.0.weight"][1, 1] = 100.0, -100.0
    state["q_net.q_net.2.weight"][2, 0], state["q_net.q_net.2.weight"][0, 1] = 1.0, 1.0
    both = {**state, **{k.replace("q_net.q_net", "q_net_target.q_net"): v for k, v in state.items()}}
    policy = io.BytesIO()
    torch.save(both, policy)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", json.dumps({"policy_class": {":type:": "<class 'abc.ABCMeta'>"}}))
        archive.writestr("policy.pth", policy.getvalue())
        archive.writestr("_stable_baselines3_version", "2.0.0")
    return path


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A zip measured in MountainCar, and what the command said."""
    folder = tmp_path_factory.mktemp("policies")
    zipped = _zip_of(folder / "pump.zip")
    said = _run(
        "measure", zipped, "--world", "MountainCar-v0", "--goals", "left hill", "--goals", "-1.0", "--budget", 150,
        "--episodes", 10, "--out", folder / "out",
    )  # fmt: skip
    return folder / "out", said


def test_a_zip_becomes_a_table_and_a_figure(measured: tuple[Path, str]) -> None:
    out, said = measured
    assert "return in MountainCar-v0:" in said and "10 greedy episodes" in said
    assert "by goal" in said and "left" in said and "report:" in said
    results = pl.read_parquet(out / "results.parquet")
    assert results["n_states"].is_null().all() and set(results["gamma"]) == {0.99}
    ok = results.filter(metric="competence_a")
    # pushing the way it moves is what the world asks for: an energy pump reaches the hill
    assert ok["value"].min() > 0.5  # type: ignore[operator]
    robust = results.filter(metric="robustness").row(0, named=True)
    assert robust["status"] == "ok" and robust["ci_low"] < robust["value"] < robust["ci_high"] and robust["n"] == 256
    # so small a budget may find nothing: then it says how far it came
    for row in results.filter(metric="edit_bits").iter_rows(named=True):
        assert row["status"] == "ok" or "was not reached: the best edit reaches" in row["reason"]
    behaviour = results.filter(metric="behaviour_bits")
    assert set(behaviour["editor"]) == {"exceptions"} and set(behaviour["status"]) == {"ok"}
    page = (out / "report.html").read_text()
    assert "continuous states" in page and "None states" not in page and "NaN" not in page
    found = results.filter(metric="edit_bits", status="ok").height > 0
    assert ("Editors, and what was saved" in page) == found


def test_rows_of_a_single_cell_keep_their_own_interval(measured: tuple[Path, str]) -> None:
    results = pl.read_parquet(measured[0] / "results.parquet")
    means = metric_means(results)
    row = means.filter(metric="robustness").row(0, named=True)
    own = results.filter(metric="robustness").row(0, named=True)
    assert (row["ci_low"], row["ci_high"]) == (own["ci_low"], own["ci_high"])
    # an interval over two rows would say nothing
    assert means.filter(metric="edit_bits")["ci_low"].is_null().all()
    assert worlds(results) == (("MountainCar", "MountainCar", None),)
    assert sized("MountainCar", None) == "MountainCar, continuous states"


def test_a_network_is_trained_saved_and_measured(tmp_path: Path) -> None:
    said = _run(
        "train", "--world", "OpenGrid", "--size", 5, "--option", "goals=many", "--option", "hidden=16", "--out",
        tmp_path / "net",
    )  # fmt: skip
    assert "competence on" in said and "saved:" in said
    agent = retarget.load(tmp_path / "net")
    assert agent.kind == "network" and agent.parts["goal"].role == "goal_slot"
    out = tmp_path / "out"
    said = _run(
        "measure", tmp_path / "net", "--world", "OpenGrid", "--size", 5, "--pairs", 2, "--budget", 100, "--out", out
    )
    assert "slot" in said
    results = pl.read_parquet(out / "results.parquet")
    assert results.filter(metric="edit_bits")["editor"].is_not_null().any()
    assert (tmp_path / "out" / "report.html").is_file()
    # the same again, from Python
    world = retarget.make_world("OpenGrid", size=5)
    table = retarget.measure(agent, world, goals=1, probes=["robustness"])
    assert table.filter(metric="robustness")["value"][0] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "network", "--world", "OpenGrid", "--option", "net=mpl"], "did you mean 'mlp'?"),
        (["train", "network", "--world", "OpenGrid", "--option", "hidden=0"], "hidden of agent 'network' must be at"),
        (["train", "network", "--world", "OpenGrid", "--option", "hiden=8"], "did you mean 'hidden'?"),
        (["train", "netwrok", "--world", "OpenGrid"], "did you mean 'network'?"),
        (["train", "planner", "--world", "MountainCar"], "cannot be made here: MountainCar has continuous states"),
        (["train", "--world", "MountainCar", "--option", "net=cnn"], "needs states with coordinates"),
        (["train", "--world", "MountainCar", "--goal", "left hil"], "left hil"),
        (["measure", "none.zip", "--world", "MountainCar-v0"], "there is no such file"),
    ],
)
def test_what_cannot_be_trained_or_measured_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[Any], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in _run(*arguments, code=2)


def test_a_policy_of_another_world_is_one_line(tmp_path: Path) -> None:
    zipped = _zip_of(tmp_path / "pump.zip")
    message = _run("measure", zipped, "--world", "CartPole-v1", code=2)
    assert "2" in message and "4" in message


def test_every_study_that_comes_along_can_be_read() -> None:
    for name in STUDIES:
        study = load_study(study_path(name))
        assert study.name == name
    names = [a.spec.label for a in load_study("networks").agents]
    assert len(names) == len(set(names))
    roles = {agent_name(a.spec.id, a.spec.label).role for a in load_study("networks").agents}
    assert {"planner", "network", "network, many goals", "network, goals shuffled"} <= roles


CONTROL = """
name = "control_tiny"
seeds = [0]
goal_pairs = 1
[[worlds]]
id = "MountainCar"
[[agents]]
id = "network"
hidden = 8
layers = 1
updates = 200
[[agents]]
id = "planner"
[[probes]]
id = "robustness"
[[probes]]
id = "behaviour"
[[probes]]
id = "retargetability"
budget = 60
draws = 2
"""


def test_a_study_of_a_continuous_world_has_a_report() -> None:
    results, frontiers = [], []
    for cell in plan(parse_study(CONTROL)):
        done = run_cell(cell)
        assert not done.error, done.error
        results += done.rows
        frontiers += done.frontier
    table, edges = frame(results, RESULT_COLUMNS), frame(frontiers, FRONTIER_COLUMNS)
    planner = table.filter(agent="planner")
    assert set(planner["status"]) == {"not_applicable"} and "continuous states" in planner["reason"][0]
    behaviour = table.filter((pl.col("agent") != "planner") & (pl.col("probe") == "behaviour"))
    assert set(behaviour["status"]) == {"not_applicable"}
    assert table.filter(metric="robustness", status="ok").height == 1
    page = report_html(table, edges)
    assert "None states" not in page


def _row(**given: object) -> dict[str, object]:
    row: dict[str, object] = dict.fromkeys(c.name for c in RESULT_COLUMNS)
    row |= {"cell": "c", "study": "s", "probe": "retargetability", "world_id": "W", "world": "W", "n_states": 104}
    row |= {"agent_id": "network", "agent": "distilled mlp", "goal_a": "1", "goal_b": "2", "seed": 0, "gamma": 0.95}
    row |= {"level": 0.95, "metric": "retargetability", "unit": "log2", "status": "ok", "version": "0"}
    return row | given


def test_editors_are_counted_and_savings_are_ratios_of_the_blank_to_the_agent() -> None:
    rows = []
    for b, (editor, bits, blank) in enumerate((("slot", 10.0, 80.0), ("slot", 20.0, 40.0), ("bias", 40.0, 40.0))):
        goal = {"goal_b": str(b)}
        rows.append(_row(metric="edit_bits", value=bits, editor=editor, **goal))
        rows.append(_row(metric="blank_bits", value=blank, **goal))
        rows.append(_row(metric="blank_ratio", value=bits / blank, **goal))
    table = editor_table(frame(rows, RESULT_COLUMNS), None).row(0, named=True)
    assert table["winners"] == "slot 2, bias 1"
    assert table["edit_bits"] == pytest.approx((10 * 20 * 40) ** (1 / 3))
    assert table["saved_bits"] == pytest.approx((8 * 2 * 1) ** (1 / 3))
    assert table["retrain_bits"] is None and set(EDITOR_COLUMNS) < set(table)


def test_the_checks_on_networks_follow_the_rows() -> None:
    rng = np.random.default_rng(0)

    def rows(agent_id: str, agent: str, mean: float, robust: float, seen: bool | None = None) -> list[dict[str, Any]]:
        who = {"agent_id": agent_id, "agent": agent, "goal_b_seen": seen}
        alone = who | {"goal_b": None, "goal_b_seen": None}
        out = [
            _row(metric="robustness", probe="robustness", value=robust - 0.001 * i, goal_a=str(i), **alone)
            for i in range(4)
        ]
        return out + [_row(value=mean + rng.normal() / 10, goal_b=str(b), **who) for b in range(12)]

    apart = [*rows("planner", "planner", 2.0, 1.0), *rows("network", "distilled mlp", -1.0, 1.0)]
    slot = rows("network", "many goals mlp", 1.5, 1.0, True)
    lost = rows("network", "shuffled goals mlp", -1.0, 0.1, True)

    def verdicts(given: list[dict[str, Any]]) -> dict[str, str]:
        return {c.expectation: c.verdict for c in check_all(frame(given, RESULT_COLUMNS)) if "mlp" in c.expectation}

    good = verdicts(apart + slot + lost)
    assert len(good) == 3 and set(good.values()) == {"holds"}
    # a network that does not act like the planner, and a control that keeps what it should lose
    unlike = [*rows("planner", "planner", 2.0, 1.0), *rows("network", "distilled mlp", -1.0, 0.5)]
    bad = verdicts([*unlike, *slot, *rows("network", "shuffled goals mlp", 3.0, 0.1, True)])
    assert sorted(bad.values()) == ["does not hold", "does not hold", "holds"]


def test_an_extractor_without_weights_is_refused(tmp_path: Path) -> None:
    """It holds no tensor that would show, and may change every observation."""
    for name, refused in (
        ("__main__.ScaleAndClip", True),
        ("stable_baselines3.common.torch_layers.FlattenExtractor", False),
    ):
        zipped = _zip_of(tmp_path / "pump.zip")
        with zipfile.ZipFile(zipped) as archive:
            members = {n: archive.read(n) for n in archive.namelist()}
        data = json.loads(members["data"])
        data["policy_kwargs"] = {"features_extractor_class": f"<class '{name}'>"}
        members["data"] = json.dumps(data).encode()
        with zipfile.ZipFile(zipped, "w") as archive:
            for member, content in members.items():
                archive.writestr(member, content)
        if refused:
            with pytest.raises(retarget.RetargetError, match="ScaleAndClip"):
                retarget.load(zipped)
        else:
            assert retarget.load(zipped).parts


def test_a_function_has_nothing_to_edit() -> None:
    world = retarget.make_world("MountainCar")

    def pump(obs: np.ndarray) -> np.ndarray:
        return np.eye(3)[np.where(obs[:, 1] > 0, 2, 0)]

    agent = retarget.wrap(pump, observation_size=2, n_actions=3)
    table = retarget.measure(agent, world, goals=["left hill"])
    assert table.filter(metric="robustness")["status"].to_list() == ["ok"]
    row = table.filter(metric="retargetability").row(0, named=True)
    assert row["status"] == "not_applicable" and "nothing to edit" in row["reason"]
