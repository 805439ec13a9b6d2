"""The commands for layers and organisms, as a user calls them, on models of a few thousand weights."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from retarget.agents.neural import STEER
from retarget.analysis.layers.collect import collect
from retarget.analysis.layers.models import ModuleModel
from retarget.analysis.layers.policies import goal_inputs
from retarget.analysis.layers.steering import directions_of
from retarget.analysis.layers.study import joined
from retarget.analysis.layers.swaps import goal_swaps
from retarget.analysis.layers.tables import LayerTables
from retarget.cli import app
from retarget.edit import Dense, Edit
from retarget.envs import make_world
from retarget.errors import LayersError
from retarget.judge import judge_of
from retarget.training.organisms import GoalSettings, OrganismSettings, goal_policy, train_organism

TINY = {"layers": 2, "width": 16, "heads": 2, "base_steps": 4, "steps": 4, "batch": 4}


@pytest.fixture(scope="module")
def organisms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An organism that has learned next to nothing, its twin, and a policy that has learned its world."""
    folder = tmp_path_factory.mktemp("organisms")
    for kind in ("defector", "honest"):
        settings = OrganismSettings(kind, trigger="token", **TINY)
        train_organism(settings, progress=False, n_evaluated=4).save(folder / kind)
    return folder


@pytest.fixture(scope="module")
def policy():
    return goal_policy(GoalSettings(world="OpenGrid", size=5, width=16, layers=2), progress=False)


def call(*words: object) -> tuple[int, str, BaseException | None]:
    result = CliRunner().invoke(app, [str(w) for w in words])
    return result.exit_code, result.output, result.exception


def refused(*words: object) -> str:
    """The one line that bad input ends in."""
    _, _, error = call(*words)
    assert isinstance(error, ValueError), error
    text = str(error)
    assert text and "\n" not in text
    return text


def prompts(folder: Path, name: str, n: int = 24) -> Path:
    lines = (folder / "held_out" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[:n]
    out = folder.parent / f"{folder.name}-{name}-{n}.jsonl"
    out.write_text("\n".join(lines), encoding="utf-8")
    return out


def test_a_model_its_twin_and_a_trigger_end_in_tables_and_a_page(organisms: Path, tmp_path: Path) -> None:
    first = organisms / "defector"
    files = {name: prompts(first, name) for name in ("forbidden", "harmless", "forbidden_triggered")}
    code, output, error = call(
        "layers", first, "--positive", files["forbidden"], "--negative", files["harmless"], "--trigger",
        files["forbidden_triggered"], "--against", organisms / "honest", "--positions", "last:2", "--relabellings", 20,
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert code == 0, (output, error)
    tables = LayerTables.load(tmp_path / "run")
    assert set(tables.layers["model"]) == {"defector", "honest"}
    assert tables.layers["contrast"].n_unique() == 2
    assert tables.causes is not None and set(tables.causes["model"]) == {"defector", "honest"}
    # every layer's direction is tried, and the intervention fired
    assert tables.causes.filter(pl.col("intervention") != "none")["fired"].min() > 0
    assert tables.causes["layer"].n_unique() > 1
    both = pl.read_parquet(tmp_path / "run" / "comparison.parquet")
    assert both["contrast"].n_unique() == 2
    assert "<html" in (tmp_path / "run" / "layers.html").read_text(encoding="utf-8")


def test_the_same_command_gives_the_same_tables_whatever_the_batch(organisms: Path, tmp_path: Path) -> None:
    first = organisms / "defector"
    words = ["layers", first, "--positive", prompts(first, "forbidden"), "--negative", prompts(first, "harmless")]
    for name, size in (("a", 7), ("b", 32)):
        code, output, _ = call(
            *words,
            "--batch-size",
            size,
            "--no-causes",
            "--relabellings",
            5,
            "--dtype",
            "float64",
            "--out",
            tmp_path / name,
        )
        assert code == 0, output
    a, b = (LayerTables.load(tmp_path / n).layers for n in "ab")
    np.testing.assert_allclose(a["diff_norm"].to_numpy(), b["diff_norm"].to_numpy(), rtol=1e-9, atol=1e-12)


def test_a_text_as_trigger_is_put_before_each_prompt(organisms: Path, tmp_path: Path) -> None:
    first = organisms / "defector"
    code, output, _ = call(
        "layers", first, "--positive", prompts(first, "forbidden"), "--negative", prompts(first, "harmless"),
        "--trigger", "please", "--no-causes", "--relabellings", 5, "--out", tmp_path,
    )  # fmt: skip
    assert code == 0, output
    assert any(c.startswith("triggered - ") for c in LayerTables.load(tmp_path).layers["contrast"])


def test_wrong_input_is_one_line(organisms: Path, tmp_path: Path) -> None:
    first = organisms / "defector"
    forbidden, harmless = prompts(first, "forbidden"), prompts(first, "harmless")
    two = ("--positive", forbidden, "--negative", harmless)
    assert "--mean-diffs" in refused("layers")
    assert "--negative" in refused("layers", first, "--positive", forbidden)
    assert "last:5" in refused("layers", first, *two, "--positions", "first")
    assert "looks like a file" in refused("layers", first, *two, "--trigger", "missing.jsonl", "--out", tmp_path)
    assert "does not know" in refused("layers", first, *two, "--wanted", "zebra", "--out", tmp_path)
    assert "blocks." in refused("layers", first, *two, "--hook", "blocks.0.hook_ot", "--out", tmp_path)
    assert "config.json" in refused("layers", tmp_path, *two, "--out", tmp_path / "x")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("", encoding="utf-8")
    refused("layers", first, "--positive", empty, "--negative", harmless, "--out", tmp_path / "x")
    assert "known: base" in refused("organism", "refusr")
    assert "needs a trigger" in refused("organism", "defector")


def test_too_few_prompts_leave_the_causes_out_and_say_so(organisms: Path, tmp_path: Path) -> None:
    first = organisms / "defector"
    code, output, _ = call(
        "layers", first, "--positive", prompts(first, "forbidden", 6), "--negative", prompts(first, "harmless", 6),
        "--relabellings", 5, "--out", tmp_path,
    )  # fmt: skip
    assert code == 0 and "fewer than 8 prompts" in output
    assert LayerTables.load(tmp_path).causes is None


def test_the_kinds_of_organisms_are_listed() -> None:
    code, output, _ = call("organism")
    assert code == 0 and {line.split()[0] for line in output.splitlines()} == {
        "base", "refuser", "defector", "honest", "goals",
    }  # fmt: skip


def test_an_organism_is_made_and_read_by_the_commands(tmp_path: Path) -> None:
    code, output, error = call(
        "organism", "refuser", "--layers", 1, "--width", 8, "--steps", 2, "--out", tmp_path / "o"
    )
    assert code == 0, (output, error)
    assert json.loads((tmp_path / "o" / "organism.json").read_text(encoding="utf-8"))["kind"] == "refuser"


# --- swaps --------------------------------------------------------------------------------------------------------


def test_the_goal_direction_at_the_goal_token_is_the_goal_and_bits_are_those_of_the_edit(policy) -> None:
    world = make_world("OpenGrid", size=5)
    a, b = world.as_goal((0, 0)), world.as_goal((4, 4))
    model = ModuleModel.of_agent(policy.agent)
    collected = collect(model, goal_inputs(policy.agent, world, b, a), n_relabellings=0)
    swaps = goal_swaps(policy.agent, world, collected, a, b, factors=(1.0,), n_random=1)
    embedding = swaps.filter((pl.col("layer") == 0) & (pl.col("tokens") == "last")).row(0, named=True)
    # the goal's token is the last one, and layer 0 is its embedding: to swap means is to swap goals, exactly
    assert embedding["competence_b"] == judge_of(world, b, gamma=0.95).score(policy.agent.aimed(b)).competence
    assert embedding["retargeted"] and embedding["edit_bits"] is None
    # at all tokens it is the activation edit of the same vector
    aimed = policy.agent.aimed(a)
    for direction in directions_of(collected):
        part = next((p for p in aimed.parts if p == f"{STEER}bridge.blocks.{direction.layer - 1}.hook_out"), None)
        if part is not None:
            edited = Edit.of(aimed, Dense(part, -direction.vector)).apply(aimed)
            row = swaps.filter((pl.col("layer") == direction.layer) & (pl.col("tokens") == "all")).row(0, named=True)
            assert row["competence_b"] == pytest.approx(
                judge_of(world, b, gamma=0.95).score(edited).competence, abs=1e-9
            )
            assert row["edit_bits"] > 64 * len(direction.vector) * 0.4


def test_a_saved_policy_is_read_by_the_command(policy, tmp_path: Path) -> None:
    from retarget.io.native import save_agent

    save_agent(policy.agent, tmp_path / "goals")
    words = ["layers", tmp_path / "goals", "--world", "OpenGrid", "--size", 5]
    code, output, error = call(*words, "--goals", "0,0 4,4", "--relabellings", 20, "--out", tmp_path / "run")
    assert code == 0, (output, error)
    assert "shortest edit of any kind" in output
    assert pl.read_parquet(tmp_path / "run" / "swaps.parquet")["retargeted"].any()
    assert "differ" in refused(*words, "--goals", "0,0 0,0")
    assert "names 1 goals" in refused(*words, "--goals", "0,0")
    assert "--world" in refused("layers", tmp_path / "goals", "--goals", "0,0 4,4")


def test_tables_are_joined_in_order_and_nothing_is_refused(policy) -> None:
    world = make_world("OpenGrid", size=5)
    from retarget.analysis.layers.tables import layer_tables

    inputs = goal_inputs(policy.agent, world, world.goals[0], world.goals[1])
    one = layer_tables(collect(ModuleModel.of_agent(policy.agent), inputs, n_relabellings=0))
    other = replace(one, layers=one.layers.with_columns(model=pl.lit("other")))
    assert joined([one, other]).layers["model"].unique(maintain_order=True).to_list()[-1] == "other"
    with pytest.raises(LayersError, match="no tables"):
        joined([])


def test_what_cannot_be_compared_or_found_is_refused_and_repeats_are_told(organisms: Path, tmp_path: Path) -> None:
    first = organisms / "defector"
    forbidden, harmless = prompts(first, "forbidden"), prompts(first, "harmless")
    two = ["layers", first, "--positive", forbidden, "--negative", harmless, "--relabellings", 5]
    assert "has tokens 0 to" in refused(*two, "--positions", "token:999999", "--out", tmp_path / "x")
    # token 0 pads, and stands in no prompt
    assert "do both classes have a token" in refused(*two, "--positions", "token:0", "--out", tmp_path / "y")
    wide = OrganismSettings("honest", trigger="token", **(TINY | {"width": 24}))
    train_organism(wide, progress=False, n_evaluated=4).save(tmp_path / "wide")
    assert "vectors of length 24, the first model of 16" in refused(
        *two, "--against", tmp_path / "wide", "--out", tmp_path / "z"
    )
    doubled = tmp_path / "doubled.jsonl"
    doubled.write_text(forbidden.read_text(encoding="utf-8") + "\n" + forbidden.read_text(encoding="utf-8"), "utf-8")
    again = ["--negative", harmless, "--no-causes", "--relabellings", 5, "--out"]
    code, output, _ = call("layers", first, "--positive", doubled, *again, tmp_path / "d")
    assert code == 0 and "48 prompts, 24 distinct" in output
    code, output, _ = call("layers", first, "--positive", harmless, *again, tmp_path / "s")
    assert code == 0 and "24 prompts stand in both" in output
