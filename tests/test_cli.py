"""The command line, as a user meets it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from retarget import __version__
from retarget.cli import _seeds, app
from retarget.cli_shared import parse_options, parse_place
from retarget.envs import make_world
from retarget.errors import RetargetError

TINY = """
name = "tiny"
seeds = [0]
goal_pairs = 2
[[worlds]]
id = "OpenGrid"
size = 5
[[agents]]
id = "planner"
[[agents]]
id = "planner"
compiled = true
[[probes]]
id = "robustness"
[[probes]]
id = "retargetability"
draws = 2
budget = 64
"""


def _retarget(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "retarget.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120, check=False)


def _invoke(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run, and what it printed."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "tiny.toml").write_text(TINY)
    result = _retarget("run", folder / "tiny.toml", "--out", folder / "out", "--workers", 1)
    assert result.returncode == 0, result.stderr
    return folder / "out", result.stdout


def test_a_run_ends_with_a_table_files_and_a_report(finished: tuple[Path, str]) -> None:
    out, text = finished
    assert "planner, compiled" in text.replace("\n", " ") or "compiled" in text
    assert str(out / "report.html") in text.replace("\n", "")
    assert {p.name for p in out.iterdir()} >= {"results.parquet", "frontiers.parquet", "timings.parquet", "report.html"}
    results = pl.read_parquet(out / "results.parquet")
    assert results.filter(pl.col("metric") == "retargetability", pl.col("status") == "ok").height > 0
    assert not results.filter(pl.col("reason").str.contains("Error:")).height


def test_a_report_can_be_written_again(finished: tuple[Path, str]) -> None:
    out, _ = finished
    before = (out / "report.html").read_bytes()
    (out / "report.html").unlink()
    _invoke("report", out)
    assert (out / "report.html").read_bytes() == before


def test_the_same_command_again_changes_nothing(finished: tuple[Path, str]) -> None:
    out, _ = finished
    before = (out / "results.parquet").read_bytes()
    _invoke("run", out.parent / "tiny.toml", "--out", out, "--workers", 1)
    assert (out / "results.parquet").read_bytes() == before


def test_shards_and_seeds(finished: tuple[Path, str], tmp_path: Path) -> None:
    study = finished[0].parent / "tiny.toml"
    first = _invoke("run", study, "--out", tmp_path, "--workers", 1, "--shard", "1/2", "--seeds", "3,5-6")
    assert "the tables come with the last part" in first
    _invoke("run", study, "--out", tmp_path, "--workers", 1, "--shard", "2/2", "--seeds", "3,5-6")
    assert set(pl.read_parquet(tmp_path / "results.parquet")["seed"]) == {3, 5, 6}


def test_a_cell_that_fails_is_counted_and_the_exit_code_says_so(
    finished: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr("retarget.probes.Robustness.measure", broken)
    study = finished[0].parent / "tiny.toml"
    result = CliRunner().invoke(app, ["run", str(study), "--out", str(tmp_path), "--workers", "1"])
    assert result.exit_code == 1
    assert "x RuntimeError: broken on purpose" in result.output and "--retry-failed" in result.output
    assert "broken on purpose" in (tmp_path / "failures.txt").read_text()
    reasons = pl.read_parquet(tmp_path / "results.parquet").filter(pl.col("probe") == "robustness")["reason"]
    assert set(reasons) == {"RuntimeError: broken on purpose"}


# -- measure --------------------------------------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Action values of FrozenLake-like quality: a random table, which is enough to be measured."""
    world = make_world("OpenGrid", size=5)
    path = tmp_path / "q.npy"
    np.save(path, np.random.default_rng(0).normal(size=(world.model.n_states, world.model.n_actions)))
    return path


def test_measure_prints_a_table_and_writes_files(table: Path, tmp_path: Path) -> None:
    arguments = ["measure", table, "--world", "OpenGrid", "--size", 5, "--goal", "0,0", "--pairs", 3]
    text = _invoke(*arguments, "--out", tmp_path / "out")
    assert "robustness" in text and "retargetability" in text and "q.npy" in text
    results = pl.read_parquet(tmp_path / "out" / "results.parquet")
    assert set(results["agent_id"]) == {"file"} and set(results["goal_a"]) == {"(0,0)"}
    assert results.filter(pl.col("metric") == "retargetability").height == 3
    assert (tmp_path / "out" / "report.html").exists() and (tmp_path / "out" / "frontiers.parquet").exists()
    _invoke(*arguments, "--out", tmp_path / "again")
    for name in ("results.parquet", "frontiers.parquet"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_measure_takes_named_goals_and_other_worlds(tmp_path: Path) -> None:
    lake = make_world("FrozenLake-v1", is_slippery=False)
    np.save(tmp_path / "policy.npy", np.ones(lake.model.n_states, dtype=np.int64))
    text = _invoke(
        "measure", tmp_path / "policy.npy", "--world", "FrozenLake-v1", "--set", "is_slippery=false", "--goals", 3,
        "--goals", 2, "--as", "policy", "--out", tmp_path / "out",
    )  # fmt: skip
    assert "2 other goals" in text
    results = pl.read_parquet(tmp_path / "out" / "results.parquet").filter(pl.col("metric") == "retargetability")
    assert results.height == 2 and set(results["world_id"]) == {"FrozenLake-v1"}


# -- lists ----------------------------------------------------------------------------------------------------------


def test_lists_name_everything_that_a_study_may_ask_for() -> None:
    from retarget.catalogue import catalogue
    from retarget.envs import WORLDS
    from retarget.probes import PROBES

    for command, known in (("worlds", WORLDS), ("agents", catalogue()), ("probes", PROBES)):
        text = _invoke(command)
        assert all(f"{name}: " in text for name in known)
    assert "size = 13" in _invoke("worlds") and "measures retargetability [log2]" in _invoke("probes")


def test_the_version_is_told() -> None:
    assert _invoke("--version").strip() == f"retarget {__version__}"


# -- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "none.toml"], "study file 'none.toml' does not exist"),
        (["run", "broken.toml"], "broken.toml, line 1: unknown key 'sedes' (did you mean 'seeds'?)"),
        (["run", "tiny.toml", "--shard", "3/2"], "shard '3/2'"),
        (["run", "tiny.toml", "--seeds", "x"], "seeds 'x' are not whole numbers"),
        (["run", "tiny.toml", "--seeds", "1,1"], "seed 1 is named twice"),
        (["measure", "q.npy", "--world", "FourRoms"], "unknown world 'FourRoms' (did you mean 'FourRooms'?)"),
        (["measure", "none.npy", "--world", "OpenGrid"], "'none.npy': there is no such file"),
        (["measure", "nan.npy", "--world", "OpenGrid", "--size", "5"], "row 3, action 1 is nan"),
        (["measure", "q.npy", "--world", "OpenGrid", "--size", "5", "--goal", "9,9"], "outside"),
        (["measure", "q.npy", "--world", "OpenGrid", "--size", "5", "--goal", "x"], "goal 'x' is neither"),
        (["measure", "q.npy", "--world", "OpenGrid", "--size", "5", "--pairs", "0"], "ask for at least 1"),
        (["measure", "q.npy", "--world", "OpenGrid", "--set", "slip"], "--set 'slip' is not of the form KEY=VALUE"),
        (["measure", "q.npy", "--world", "OpenGrid", "--size", "5", "--as", "polcy"], "unknown kind of table 'polcy'"),
        (["report", "."], "holds no results.parquet"),
        (["check", "nocolon"], "not of the form MODULE:NAME"),
        (["check", "no_such_module:x"], "cannot be imported"),
        (["check", "json:dmps"], "unknown name in module 'json' 'dmps' (did you mean 'dumps'?)"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path,
    arguments: list[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from retarget.cli import main

    (tmp_path / "tiny.toml").write_text(TINY)
    (tmp_path / "broken.toml").write_text("sedes = [0]\n")
    q = -np.ones((25, 4))
    np.save(tmp_path / "q.npy", q)
    q[3, 1] = np.nan
    np.save(tmp_path / "nan.npy", q)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["retarget", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    error = capsys.readouterr().err
    assert caught.value.code == 2, error
    assert words in error and error.startswith("error: ") and error.count("\n") == 1


def test_a_bad_journal_is_one_line_and_nothing_is_deleted(finished: tuple[Path, str], tmp_path: Path) -> None:
    (tmp_path / "journal.sqlite").write_bytes(b"torn")
    result = _retarget("run", finished[0].parent / "tiny.toml", "--out", tmp_path)
    assert result.returncode == 2 and result.stderr.startswith("error: journal ") and result.stderr.count("\n") == 1
    assert (tmp_path / "journal.sqlite").read_bytes() == b"torn"


def test_an_error_of_our_own_making_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    from retarget import cli

    def broken() -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(cli, "app", broken)
    with pytest.raises(ValueError, match="a bug"):
        cli.main()


@pytest.mark.parametrize(("text", "seeds"), [("0", [0]), ("0,2", [0, 2]), ("3-5", [3, 4, 5]), (" 1 , 7-8", [1, 7, 8])])
def test_seeds_are_read(text: str, seeds: list[int]) -> None:
    assert _seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "5-3", "-1", "1,,2", "0-999999", "1.5"])
def test_what_are_no_seeds_is_refused(text: str) -> None:
    with pytest.raises(RetargetError, match="seeds"):
        _seeds(text)


def test_options_and_places_are_read() -> None:
    assert parse_options(["slip=0.5", "open=true", "name=x y", "n=3"]) == {
        "slip": 0.5,
        "open": True,
        "name": "x y",
        "n": 3,
    }
    assert (parse_place("3,4"), parse_place("17")) == ((3, 4), 17)
    for text in ("", "1,2,3", "a"):
        with pytest.raises(RetargetError, match="neither ROW,COL"):
            parse_place(text)


# -- help -----------------------------------------------------------------------------------------------------------


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom retarget.cli import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'numpy', 'polars', 'numba', 'gymnasium', 'torch', 'pydantic', 'scipy', 'altair', 'networkx'}\n"
        "print('LOADED', sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "LOADED []" in result.stdout and "measure" in result.stdout


def test_help_of_every_command_is_there() -> None:
    for command in ("run", "measure", "report", "worlds", "agents", "probes", "check"):
        assert "Usage" in _invoke(command, "--help")


# -- check ----------------------------------------------------------------------------------------------------------

OWN = '''
import itertools
import numpy as np
import retarget
from retarget.agents.tabular import TablePolicy
from retarget.probe import Metric, Outcome, Probe
from retarget.row import Measurement

class Sound(Probe):
    """Counts states."""
    name = "own"
    metrics = {"states": Metric("states", "number of states", 0.0, None)}
    def measure(self, subject, *, progress=None):
        return Outcome((Measurement.ok("states", subject.world.model.n_states),))

calls = itertools.count()

class Fickle(Sound):
    def measure(self, subject, *, progress=None):
        return Outcome((Measurement.ok("states", next(calls)),))

def world():
    return retarget.make_world("OpenGrid", size=5)

agent = TablePolicy.from_actions(np.zeros(25, int), n_actions=4)
number = 3
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"own_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return name


@pytest.mark.parametrize(("name", "kind"), [("Sound", "probe"), ("world", "world"), ("agent", "agent")])
def test_sound_things_pass_the_check(own: str, name: str, kind: str) -> None:
    more = ["--world", "OpenGrid", "--size", "5"] if kind == "agent" else []
    assert f"ok: {own}:{name} is a sound {kind}" in _invoke("check", f"{own}:{name}", *more)


@pytest.mark.parametrize(
    ("name", "more", "words"),
    [
        ("Fickle", [], "broke the law 'deterministic'"),
        ("number", [], "is a int; name a probe, a world, an agent"),
        ("agent", ["--world", "OpenGrid", "--set", "sise=6"], "did you mean 'size'"),
    ],
)
def test_unsound_things_do_not(own: str, name: str, more: list[str], words: str) -> None:
    with pytest.raises(RetargetError, match=words):
        CliRunner().invoke(app, ["check", f"{own}:{name}", *more], catch_exceptions=False)


def test_a_file_can_be_asked_other_questions(tmp_path: Path) -> None:
    world = make_world("OpenGrid", size=5)
    np.save(tmp_path / "policy.npy", np.zeros(world.model.n_states, np.int64))
    where = ["--world", "OpenGrid", "--size", "5"]
    asked = [str(tmp_path / "policy.npy"), *where, "--probe", "goal_directedness", "--out", str(tmp_path / "r")]
    result = CliRunner().invoke(app, ["measure", *asked])
    assert result.exit_code == 0, result.output
    assert set(pl.read_parquet(tmp_path / "r" / "results.parquet")["probe"]) == {"goal_directedness"}
    wrong = CliRunner().invoke(app, ["measure", str(tmp_path / "policy.npy"), *where, "--probe", "goal_mop"])
    assert wrong.exit_code != 0 and "did you mean 'goal_map'" in str(wrong.exception)
