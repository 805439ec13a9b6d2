"""Native checkpoints: what is saved comes back; what is broken is one line, quickly, in little memory."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retarget.agent import Agent
from retarget.agents import (
    Controller,
    GoalTable,
    Planner,
    TablePolicy,
    compile_policy,
    exact_planner,
    learned_planner,
    train_q_table,
)
from retarget.agents.network_for import network_for
from retarget.agents.neural import KINDS, NetworkAgent
from retarget.digest import canonical_json
from retarget.envs import make_world
from retarget.envs.control.mountain_car import MountainCar
from retarget.errors import FileError
from retarget.io import native
from retarget.io.native import ARRAYS, CARD, load_agent, read_card, save_agent

torch.set_num_threads(1)

WORLD, CAR = make_world("FourRooms", size=5), MountainCar()
SMALL: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": (4,)},
    "cnn": {"convs": (2,), "hidden": 4},
    "gru": {"hidden": 3},
    "vin": {"iterations": 3, "hidden": 2},
    "transformer": {"d_model": 4, "n_layers": 1},
}


@lru_cache(maxsize=64)
def _network(kind: str = "mlp", many: bool = True) -> NetworkAgent:
    goals = WORLD.goals[:3] if many else None
    agent = network_for(WORLD, WORLD.goals[1], kind=kind, goals=goals, **SMALL[kind])
    return replace(agent, starts=np.arange(4, dtype=np.int32))


def _agents() -> dict[str, Agent]:
    goal, kinds = WORLD.goals[0], {}
    for kind in KINDS:
        for many in (False, True):
            kinds[f"{kind}, {'many goals' if many else 'one goal'}"] = _network(kind, many)
    for how in ("place", "plane"):
        kinds[f"mlp, {how}"] = network_for(WORLD, goal, goals=WORLD.goals[:3], goal_input=how, features="place")
    kinds["box"] = network_for(CAR, CAR.goal, kind="gru", goals=CAR.goals, decision="sample")
    steered = _network()
    kinds["edited"] = steered.with_arrays(
        {"steer:hidden.0": np.full(4, -0.0), "out.bias": np.array([0.1, 1e300, -0.0, 5e-324])}
    )
    learned = learned_planner(WORLD, goal, everywhere=True, episodes=5, epsilon=0.1, seed=0)
    q = train_q_table(WORLD, goal, episodes=9, exploring=True, seed=0)[0]
    symbols = np.zeros((2, WORLD.model.n_states), np.int64)
    return {
        **kinds,
        "planner": exact_planner(WORLD, goal, gamma=0.9, depth=4),
        "learned": learned,
        "q": q,
        "table": compile_policy(q, WORLD),
        "goals": GoalTable(symbols, 1, WORLD.goals[:2], 4, np.arange(3)),
        "controller": Controller(np.array([0, 2]), np.array([[0, -1], [0, 1]]), np.array([[0, 0], [0, 1]]), 3),
    }


AGENTS = _agents()


@contextmanager
def _quick_and_small() -> Iterator[None]:
    """A second of computing, and 200 MB: what other programs take does not count."""
    tracemalloc.start()
    began = time.process_time()
    try:
        yield
        spent, peak = time.process_time() - began, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert spent < 1.0 and peak < 200e6


def _refused(folder: Path, words: str = "") -> str:
    before = sorted(p.name for p in folder.parent.iterdir())
    with _quick_and_small(), pytest.raises(FileError) as caught:
        load_agent(folder)
    message = str(caught.value)
    assert "\n" not in message and folder.name in message and words in message, message
    assert sorted(p.name for p in folder.parent.iterdir()) == before
    return message


# -- what is saved comes back --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AGENTS)
def test_an_agent_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    agent = AGENTS[name]
    folder = save_agent(agent, tmp_path / "agent", extra={"note": ["π", 1.5, None]})
    found = load_agent(folder)
    assert found.digest == agent.digest and type(found) is type(agent) and found.layout == agent.layout
    obs = CAR.observe(CAR.starts(5, rng=np.random.default_rng(0))) if name == "box" else np.array([0, 1])
    assert np.array_equal(agent.policy(obs)[0], found.policy(obs)[0])
    assert found.blank(3).digest == agent.blank(3).digest
    if isinstance(agent, NetworkAgent) and isinstance(found, NetworkAgent):
        assert (found.seed, found.training_goals) == (agent.seed, agent.training_goals)
        assert found.slot_candidates() == agent.slot_candidates()
        for goal in agent.training_goals or ():
            assert found.aimed(goal).digest == agent.aimed(goal).digest
    assert sorted(p.name for p in folder.iterdir()) == [CARD, ARRAYS]
    assert [p.name for p in tmp_path.iterdir()] == ["agent"]


def test_what_else_is_kept_and_who_wrote_it(tmp_path: Path) -> None:
    card = read_card(save_agent(_network(), tmp_path / "a", extra={"env_steps": 5}))
    assert card.extra == {"env_steps": 5} and set(card.versions) == {"retarget", "numpy", "torch", "python"}
    assert card.versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert card.versions["numpy"] == np.__version__


def test_arrays_are_what_safetensors_reads(tmp_path: Path) -> None:
    """An independent reader: the format's own library."""
    agent = _network()
    arrays = safetensors.numpy.load_file(save_agent(agent, tmp_path / "a") / ARRAYS)
    for name, weight in agent.weights.items():
        assert arrays[f"weight/{name}"].dtype == np.float32 and np.array_equal(arrays[f"weight/{name}"], weight)


def test_saving_again_replaces_and_saving_over_other_things_does_not(tmp_path: Path) -> None:
    folder = save_agent(_network(), tmp_path / "a")
    assert load_agent(save_agent(AGENTS["q"], folder)).digest == AGENTS["q"].digest
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(FileError, match="something else"):
        save_agent(_network(), folder)
    assert (folder / "mine.txt").read_text() == "mine"
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileError, match="something else"):
        save_agent(_network(), tmp_path / "file")
    with pytest.raises(FileError, match="cannot be written"):
        save_agent(_network(), tmp_path / "file" / "below")
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["a", "file"]


@pytest.mark.parametrize("step", ["fsync", "rename"])
def test_saving_that_is_cut_off_leaves_the_old_one(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_agent(_network(), tmp_path / "a")

    def broken(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((native.os, "fsync") if step == "fsync" else (Path, "rename")), broken)
    with pytest.raises(FileError, match="No space left"):
        save_agent(AGENTS["q"], folder)
    monkeypatch.undo()
    assert load_agent(folder).digest == _network().digest and [p.name for p in tmp_path.iterdir()] == ["a"]


def test_what_cannot_be_saved_is_one_line(tmp_path: Path) -> None:
    @dataclass(frozen=True, eq=False)
    class Own(TablePolicy):
        pass

    with pytest.raises(FileError, match="class Own cannot be saved"):
        save_agent(Own.from_actions([0, 1], n_actions=2), tmp_path / "a")
    for extra in ({"x": float("nan")}, {"x": object()}, {"x": {1, 2}}):
        with pytest.raises(FileError, match="extra facts"):
            save_agent(_network(), tmp_path / "a", extra=extra)
    with pytest.raises(FileError, match="more than can be read back"):
        save_agent(_network(), tmp_path / "a", extra={"x": "y" * (1 << 20)})
    assert not list(tmp_path.iterdir())


def test_links_to_elsewhere_are_followed(tmp_path: Path) -> None:
    real = save_agent(_network(), tmp_path / "real")
    (tmp_path / "link").symlink_to(real, target_is_directory=True)
    assert load_agent(tmp_path / "link").digest == _network().digest
    (tmp_path / "parts").mkdir()
    for name in (CARD, ARRAYS):
        (tmp_path / "parts" / name).symlink_to(real / name)
    assert load_agent(tmp_path / "parts").digest == _network().digest
    save_agent(AGENTS["q"], tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and load_agent(real).digest == AGENTS["q"].digest


# -- what is missing or was cut ------------------------------------------------------------------------------------


def test_what_is_not_there(tmp_path: Path) -> None:
    assert "no such file" in _refused(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert CARD in _refused(tmp_path / "empty", "no such file")
    for name in (CARD, ARRAYS):
        folder = save_agent(_network(), tmp_path / f"without {name}")
        (folder / name).unlink()
        assert name in _refused(folder, "no such file")
        (folder / name).symlink_to(tmp_path / "nowhere")
        assert name in _refused(folder, "no such file")
        (folder / name).unlink()
        (folder / name).mkdir()
        assert name in _refused(folder, "no regular file")
        (folder / name).rmdir()
        os.mkfifo(folder / name)
        assert name in _refused(folder, "no regular file")
    (tmp_path / "file").write_bytes(b"x")
    _refused(tmp_path / "file", "is no folder")
    with pytest.raises(FileError, match=r"no such file|cannot be opened"):
        load_agent(tmp_path / "nul\0byte")


def _data_at(raw: bytes) -> int:
    return 8 + int(struct.unpack("<Q", raw[:8])[0])


@pytest.mark.parametrize("name", ["mlp, many goals", "table"])
def test_files_cut_at_any_byte(name: str, tmp_path: Path) -> None:
    folder = save_agent(AGENTS[name], tmp_path / "a")
    card, arrays = (folder / CARD).read_bytes(), (folder / ARRAYS).read_bytes()
    for end in range(len(card)):
        (folder / CARD).write_bytes(card[:end])
        _refused(folder)
    (folder / CARD).write_bytes(card)
    header = _data_at(arrays)
    for end in [*range(header + 1), *range(header, len(arrays), 97), len(arrays) - 1]:
        (folder / ARRAYS).write_bytes(arrays[:end])
        _refused(folder)
    (folder / ARRAYS).write_bytes(arrays + b"\0")
    _refused(folder)


@given(st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_change_of_any_byte_is_seen(tmp_path: Path, data: st.DataObject) -> None:
    folder = save_agent(_network(), tmp_path / "a")
    file = folder / data.draw(st.sampled_from([CARD, ARRAYS]))
    raw = bytearray(file.read_bytes())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    file.write_bytes(raw)
    with pytest.raises(FileError) as caught:
        load_agent(folder)
    assert "\n" not in str(caught.value)


# -- what somebody wrote on purpose: hashes and all ----------------------------------------------------------------


def _reseal(folder: Path, card: dict[str, Any]) -> None:
    """Whoever can write a file can write its hashes."""
    card["arrays"] = hashlib.sha256((folder / ARRAYS).read_bytes()).hexdigest()
    facts = {k: v for k, v in card.items() if k != "seal"}
    card["seal"] = hashlib.sha256(canonical_json(facts).encode()).hexdigest()
    (folder / CARD).write_text(json.dumps(card))


def _forge(
    folder: Path,
    *,
    card: Callable[[dict[str, Any]], object] | None = None,
    arrays: Callable[[dict[str, np.ndarray]], object] | None = None,
) -> Path:
    facts = json.loads((folder / CARD).read_text())
    if card is not None:
        card(facts)
    if arrays is not None:
        found = safetensors.numpy.load_file(folder / ARRAYS)
        arrays(found)
        (folder / ARRAYS).write_bytes(safetensors.numpy.save(found))
    _reseal(folder, facts)
    return folder


def _net(tmp_path: Path, kind: str = "mlp", many: bool = True) -> Path:
    return save_agent(_network(kind, many), tmp_path / "a")


def test_a_forger_who_changes_nothing_is_let_in(tmp_path: Path) -> None:
    """Else the tests below would prove nothing."""
    assert load_agent(_forge(_net(tmp_path), arrays=lambda a: None)).digest == _network().digest


def _bits(kind: type) -> Callable[[np.ndarray], np.ndarray]:
    return lambda a: a.view(kind)


def _set(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[dict[str, np.ndarray]], None]:
    def apply(arrays: dict[str, np.ndarray]) -> None:
        arrays[name] = np.ascontiguousarray(change(arrays[name]))

    return apply


def _fill(value: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda a: np.full_like(a, value)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (_set("weight/out.bias", _fill(np.nan)), "finite real numbers"),
        (_set("weight/out.bias", _fill(np.inf)), "finite real numbers"),
        (_set("weight/out.bias", _bits(np.int32)), "has type I32, not F32 or F64"),
        (_set("weight/out.bias", lambda a: a.astype(np.float16)), "has type F16"),
        (_set("weight/hidden.0.0.weight", lambda a: a.T), "should have shape"),
        (_set("weight/out.weight", lambda a: a.reshape(-1)), "should have shape"),
        (_set("weight/out.weight", lambda a: a[:, :-1]), "weights, the arrays hold"),
        (_set("weight/out.weight", lambda a: a + 1), "it was changed since it was saved"),
        (_set("goal", lambda a: a[:-1]), "goal slot has shape"),
        (_set("goal", _fill(np.nan)), "not finite"),
        (_set("goal", _bits(np.int64)), "holds agent"),
        (_set("steer/hidden.0", lambda a: a[:-1]), "no vector of shape"),
        (_set("steer/hidden.0", _fill(np.nan)), "not finite"),
        (_set("steer/hidden.0", _bits(np.int64)), "has type I64"),
        (_set("sensor/features", _fill(np.nan)), "must be finite"),
        (_set("sensor/features", lambda a: a[:, :-1]), "features need shape"),
        (_set("sensor/features", lambda a: a[:0]), "features need shape"),
        (_set("sensor/features", _bits(np.int32)), "has type I32"),
        (_set("starts", lambda a: a + 10_000), "starts of training"),
        (_set("starts", lambda a: a - 1), "starts of training"),
        (_set("starts", lambda a: a.astype(np.float64)), "has type F64"),
        (lambda a: a.pop("weight/out.bias"), "weights, the arrays hold"),
        (lambda a: a.pop("goal"), "needs goal_input, goal"),
        (lambda a: a.pop("sensor/features"), "holds agent"),
        (lambda a: a.update({"weight/extra": np.zeros(0, np.float32)}), "should have shape"),
        (lambda a: a.update({"weight/none": a.pop("weight/out.bias")}), "should have shape"),
        (lambda a: a.update({"steer/none": np.zeros(4)}), "no vector of shape"),
        (lambda a: a.update({"other": np.zeros(4)}), "beside weight/ and steer/ they hold only"),
        (lambda a: a.update({"place": np.zeros((4, 2), np.int64)}), "has no places"),
        (lambda a: a.update({"sensor/mean": np.zeros(4, np.float32)}), "features need shape"),
    ],
)
def test_forged_arrays(tmp_path: Path, arrays: Any, words: str) -> None:
    _refused(_forge(_net(tmp_path), arrays=arrays), words)


def _body(**changes: object) -> Callable[[dict[str, Any]], None]:
    def apply(card: dict[str, Any]) -> None:
        for path, value in changes.items():
            *into, last = path.split("__")
            where = card["body"]
            for key in into:
                where = where[key]
            where[last] = value

    return apply


HUGE = 10**4000


@pytest.mark.parametrize(
    ("card", "words"),
    [
        (_body(architecture__kind="lstm"), "unknown kind of network"),
        (_body(architecture__kind=["mlp"]), "unknown kind of network"),
        (_body(architecture__inputs=1 << 40), "'inputs' is wrong"),
        (_body(architecture__inputs=HUGE), "'inputs' is wrong"),
        (_body(architecture__inputs=-3), "'inputs' is wrong"),
        (_body(architecture__inputs=True), "'inputs' is wrong"),
        (_body(architecture__inputs="24"), "'inputs' is wrong"),
        (_body(architecture__inputs=24.0), "'inputs' is wrong"),
        (_body(architecture__inputs=1 << 24), "weights, the arrays hold"),
        (_body(architecture__hidden=[65_536] * 64), "weights, the arrays hold"),
        (_body(architecture__hidden=[1] * 65), "'hidden' is wrong"),
        (_body(architecture__hidden=[65_537]), "'hidden.0' is wrong"),
        (_body(architecture__hidden=4), "'hidden' is wrong"),
        (_body(architecture__act="__import__"), "'act' is wrong"),
        (_body(architecture__scale=True), "'scale' is wrong"),
        (_body(architecture__device="cuda"), "'device' is wrong"),
        (_body(sensor__join="plane"), "cannot take a goal by 'plane'"),
        (_body(sensor__join="none"), "a sensor that joins it"),
        (_body(sensor__join="glue"), "'sensor.join' is wrong"),
        (_body(sensor__clip=-1.0), "'sensor.clip' is wrong"),
        (_body(sensor__extra=1), "'sensor.extra' is wrong"),
        (_body(head="mean"), "needs a range of actions"),
        (_body(head="other"), "'head' is wrong"),
        (_body(head="values", decision="sample"), "no distribution"),
        (_body(action_range=[[0.0], [1.0]]), "needs a range of actions"),
        (_body(action_range=[[0.0]]), "'action_range"),
        (_body(goal_input=None), "goal_input, goal"),
        (_body(goal_input__kind="set_point"), "a cell for each feature"),
        (_body(goal_input__kind="token"), "goal slot has shape"),
        (_body(goal_input__kind="plane"), "needs places"),
        (_body(goal_input__size=1 << 60), "'goal_input.size' is wrong"),
        (_body(goal_input__size=3), "goal slot has shape"),
        (_body(goal_input__goals="all"), "'goal_input.goals"),
        (_body(training_goals=[{"states": [], "label": ""}]), "'training_goals.0"),
        (_body(training_goals=[{"states": [2, 1], "label": ""}]), "sorted and unique"),
        (_body(training_goals=[{"states": [-1], "label": ""}]), "'training_goals.0"),
        (_body(training_goals=[{"targets": [["x", 0.0, -1.0]], "hold": False, "label": ""}]), "half width above 0"),
        (_body(seed="0"), "'seed' is wrong"),
        (lambda c: c["body"].pop("head"), "'head' is wrong"),
        (lambda c: c["body"].update(more=1), "'more' is wrong"),
        (lambda c: c["body"].pop("architecture"), "'architecture' is wrong"),
        (lambda c: c.update(type="retarget.agents"), "unknown type of agent"),
        (lambda c: c.update(type="q_table"), "extra inputs are not permitted"),
        (lambda c: c.update(version=2), "has version 2 of the format, this retarget reads 1"),
        (lambda c: c.update(version=True), "has version True of the format"),
        (lambda c: c.update(format="other"), "describes no agent"),
        (lambda c: c.update(digest="00"), "it was changed since it was saved"),
        (lambda c: c.update(digest="zz"), "'digest' is wrong"),
        (lambda c: c.update(more=1), "'more' is wrong"),
        (lambda c: c.pop("versions"), "'versions' is wrong"),
    ],
)
def test_forged_descriptions(tmp_path: Path, card: Any, words: str) -> None:
    _refused(_forge(_net(tmp_path), card=card), words)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("cnn", {"convs": [65_536] * 64}),
        ("cnn", {"height": 4096, "width": 4096}),
        ("cnn", {"kernel": 31}),
        ("cnn", {"kernel": 32}),
        ("gru", {"hidden": 65_536}),
        ("vin", {"iterations": 1 << 30}),
        ("vin", {"hidden": 65_536, "inner": 65_536}),
        ("transformer", {"n_layers": 64, "d_model": 65_536}),
        ("transformer", {"n_tokens": 1 << 20}),
        ("transformer", {"vocabulary": 1 << 24}),
        ("transformer", {"n_heads": 1024, "d_mlp": 1}),
    ],
)
def test_options_that_would_fill_the_memory(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    def card(facts: dict[str, Any]) -> None:
        facts["body"]["architecture"].update(options)

    _refused(_forge(_net(tmp_path, kind), card=card))


@pytest.mark.parametrize(
    ("kind", "many", "arrays", "words"),
    [
        ("transformer", True, _set("sensor/features", lambda a: a + 1000), "tokens must be"),
        ("transformer", True, _set("sensor/features", lambda a: a - 1), "tokens must be"),
        ("transformer", True, _set("sensor/features", lambda a: a.astype(np.float32)), "tokens must be"),
        ("transformer", True, _set("goal", lambda a: a + 1000), "one of its tokens"),
        ("transformer", True, _set("goal", lambda a: a - 5), "one of its tokens"),
        ("cnn", True, _set("place", lambda a: a + 1000), "outside the plane"),
        ("cnn", True, _set("place", lambda a: a - 5), "outside the plane"),
        ("cnn", True, _set("place", lambda a: a[:, :1]), "needs places"),
        ("cnn", True, _set("sensor/features", lambda a: a[:, :1]), "features need shape"),
        ("vin", False, _set("sensor/features", lambda a: a[:, :, :-1]), "features need shape"),
        ("gru", False, lambda a: a.pop("sensor/features"), "holds agent"),
    ],
)
def test_forged_arrays_of_other_kinds(tmp_path: Path, kind: str, many: bool, arrays: Any, words: str) -> None:
    _refused(_forge(_net(tmp_path, kind, many), arrays=arrays), words)


@pytest.mark.parametrize(
    ("name", "arrays", "words"),
    [
        ("q", _set("q", _fill(np.nan)), "replace values that are not finite"),
        ("q", _set("visited", lambda a: a[:-1]), "visited needs shape"),
        ("q", _set("visited", lambda a: a.view(np.int8)), "has type I8"),
        ("q", lambda a: a.pop("visited"), "a q_table has the arrays"),
        ("q", lambda a: a.update(more=np.zeros(2)), "a q_table has the arrays"),
        ("table", _set("symbols", lambda a: a + 99), "actions are"),
        ("table", _set("symbols", lambda a: a[:, None]), "integer symbols"),
        ("table", _set("palette", _fill(0.5)), "a palette begins"),
        ("planner", _set("next_state", lambda a: a + 1000), "successors must be"),
        ("planner", _set("reward", _fill(np.nan)), "not finite"),
        ("planner", _set("reward", lambda a: a[:-1]), "a planner needs"),
        ("planner", _set("next_state", lambda a: a.reshape(-1)), "a planner needs"),
        ("goals", _set("symbols", lambda a: a + 9), "symbols must be"),
        ("goals", _set("symbols", lambda a: a[:1]), "needs symbols"),
        ("controller", _set("gain", _fill(np.nan)), "not finite"),
        ("controller", _set("gain", lambda a: a[0]), "a controller needs"),
    ],
)
def test_forged_tables(tmp_path: Path, name: str, arrays: Any, words: str) -> None:
    _refused(_forge(save_agent(AGENTS[name], tmp_path / "a"), arrays=arrays), words)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("planner", {"gamma": 1.0}, "strictly between"),
        ("planner", {"depth": 0}, "'depth' is wrong"),
        ("planner", {"depth": 10**9}, "'depth' is wrong"),
        ("goals", {"active": 7}, "the slot 0 to"),
        ("goals", {"n_actions": 0}, "'n_actions' is wrong"),
        ("goals", {"goals": []}, "needs symbols"),
        ("controller", {"size": 0}, "'size' is wrong"),
        ("q", {"q": 1}, "'q' is wrong"),
    ],
)
def test_forged_facts_of_tables(tmp_path: Path, name: str, change: dict[str, Any], words: str) -> None:
    _refused(_forge(save_agent(AGENTS[name], tmp_path / "a"), card=lambda c: c["body"].update(change)), words)


# -- files that lie about themselves -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b"[" * 500 + b"]" * 500,
        b"\xff\xfe{}",
        b"null",
        b'{"format": "retarget agent", "format": "retarget agent"}',
        b'{"format": "retarget agent", "version": NaN}',
        b'{"format": "retarget agent", "version": 1e999}',
        b'{"format": "retarget agent", "version": ' + b"9" * 100_000 + b"}",
        b'{"format": "retarget agent", "version": 1, "body": ' + b'{"a":' * 900 + b"1" + b"}" * 901,
        b"\x80\x04cos\nsystem\n(S'false'\ntR.",
        b" " * ((1 << 20) + 1),
    ],
)
def test_descriptions_that_are_none(tmp_path: Path, text: bytes) -> None:
    folder = _net(tmp_path)
    (folder / CARD).write_bytes(text)
    _refused(folder)


def _header(text: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _declares(dtype: object = "F32", shape: object = (1,), where: object = (0, 4), **more: object) -> bytes:
    return json.dumps({"weight/a": {"dtype": dtype, "shape": shape, "data_offsets": where, **more}}).encode()


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"1234567", "first 8 bytes"),
        (_header(b"{}", length=(1 << 20) + 1), "declares a header of"),
        (_header(b"{}", length=(1 << 64) - 1), "declares a header of"),
        (_header(b"{}", length=100), "has 2 behind it"),
        (_header(b"[]"), "no table"),
        (_header(b"{" * 1000), "no JSON"),
        (_header(b"[" * 1_000_000), "no JSON"),
        (_header(b'{"a":1}'), "needs dtype, shape"),
        (_header(b'{"a":{},"a":{}}'), "twice"),
        (_header(json.dumps({str(i): 0 for i in range(9000)}).encode()), "no table of at most"),
        (_header(_declares(), b"123"), "declares 4 bytes"),
        (_header(_declares(), b"12345"), "declares 4 bytes"),
        (_header(_declares(where=(4, 8)), b"12345678"), "begins at byte 4"),
        (_header(_declares(where=(4, 0)), b"1234"), "does not fill"),
        (_header(_declares(where=(-4, 0)), b"1234"), "shape or place"),
        (_header(_declares(shape=(-1,)), b"1234"), "shape or place"),
        (_header(_declares(shape=(1.0,)), b"1234"), "shape or place"),
        (_header(_declares(shape=(True,)), b"1234"), "shape or place"),
        (_header(_declares(shape=(HUGE,)), b"1234"), "shape or place"),
        (_header(_declares(shape=(1 << 32,) * 8), b"1234"), "does not fill"),
        (_header(_declares(shape=(1,) * 9), b"1234"), "shape or place"),
        (_header(_declares(shape=(2,)), b"1234"), "does not fill"),
        (_header(_declares(dtype="BF16"), b"1234"), "those read are"),
        (_header(_declares(dtype="O"), b"1234"), "those read are"),
        (_header(_declares(dtype=["F32"]), b"1234"), "those read are"),
        (_header(_declares(more=1), b"1234"), "and no more"),
        (_header(b'{"weight/a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
                 b'"weight/b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"1234"), "begins at byte 0"),
    ],
)  # fmt: skip
def test_headers_that_lie(tmp_path: Path, raw: bytes, words: str) -> None:
    folder = _net(tmp_path)
    (folder / ARRAYS).write_bytes(raw)
    _reseal(folder, json.loads((folder / CARD).read_text()))
    _refused(folder, words)


def test_a_file_larger_than_any_is_not_read(tmp_path: Path) -> None:
    folder = _net(tmp_path)
    with (folder / ARRAYS).open("r+b") as handle:  # sparse: it takes no room on the disk
        handle.truncate((4 << 30) + 1)
    _refused(folder, "more than the")
    with (folder / ARRAYS).open("r+b") as handle:
        handle.truncate(4 << 30)
    _refused(folder, "declares")


def test_features_that_would_fill_the_memory(tmp_path: Path) -> None:
    folder = _net(tmp_path)
    raw = (folder / ARRAYS).read_bytes()
    header = json.loads(raw[8 : _data_at(raw)])
    top = max(e["data_offsets"][1] for n, e in header.items() if n != "__metadata__")
    header["place"] = {"dtype": "I64", "shape": [1 << 27, 2], "data_offsets": [top, top + (1 << 31)]}
    text = json.dumps(header).encode()
    with (folder / ARRAYS).open("wb") as handle:
        handle.write(_header(text, raw[_data_at(raw) :]))
        handle.truncate(8 + len(text) + top + (1 << 31))
    card = json.loads((folder / CARD).read_text())
    _refused(folder, "beside the weights")
    assert card["arrays"] == read_card(folder).arrays


def test_truth_values_are_zero_or_one(tmp_path: Path) -> None:
    folder = save_agent(AGENTS["q"], tmp_path / "a")
    raw = bytearray((folder / ARRAYS).read_bytes())
    header = json.loads(raw[8 : _data_at(bytes(raw))])
    raw[_data_at(bytes(raw)) + header["visited"]["data_offsets"][0]] = 7
    (folder / ARRAYS).write_bytes(raw)
    _reseal(folder, json.loads((folder / CARD).read_text()))
    _refused(folder, "neither 0 nor 1")


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=8,
    ),
    st.data(),
)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_anything_in_the_place_of_anything(tmp_path: Path, value: object, data: st.DataObject) -> None:
    """One value of the description replaced by another, hashes made anew: an agent of the same digest, or one line."""
    name = data.draw(st.sampled_from(["mlp, many goals", "box", "goals", "planner"]))
    folder = save_agent(AGENTS[name], tmp_path / "a")
    card = json.loads((folder / CARD).read_text())
    where: Any = card["body"]
    while True:
        key = data.draw(st.sampled_from(sorted(where)) if isinstance(where, dict) else st.integers(0, len(where) - 1))
        if isinstance(where[key], (dict, list)) and where[key] and data.draw(st.booleans()):
            where = where[key]
        else:
            break
    where[key] = value
    _reseal(folder, card)
    try:
        assert load_agent(folder).digest == AGENTS[name].digest
    except FileError as error:
        assert "\n" not in str(error)


def test_a_planner_is_what_the_planner_was(tmp_path: Path) -> None:
    found = load_agent(save_agent(AGENTS["planner"], tmp_path / "a"))
    assert isinstance(found, Planner) and (found.depth, found.gamma) == (4, 0.9)
