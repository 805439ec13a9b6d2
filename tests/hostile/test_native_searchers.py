"""Files of planners that search, written by somebody who means harm: one line, quickly, in little memory."""

from __future__ import annotations

import hashlib
import json
import struct
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

# loaded here, so that no test pays for it
import retarget.training.dynamics as dynamics
from retarget.agent import Agent
from retarget.agents.bayes import BayesPlanner
from retarget.agents.leaves import Blind, Distance, Rollouts, Tables
from retarget.agents.network_model import NetworkModelPlanner
from retarget.agents.neural import Architecture
from retarget.agents.paths import PathPlanner
from retarget.agents.policy_value import PolicyValue
from retarget.agents.search import LearnedTreeSearcher, TreeSearcher
from retarget.digest import canonical_json
from retarget.errors import AgentError, FileError
from retarget.io.native import ARRAYS, CARD, load_agent, save_agent
from retarget.search import TreeSettings

S, A = 5, 3
RNG = np.random.default_rng(0)
NEXT = RNG.integers(0, S, (S, A))
REWARD = np.array([0, 0, 1.0, -0.5, 0])
STARTS = np.arange(S, dtype=np.int32)
PLACE = np.array([[0, 0], [0, 1], [1, 0], [1, 1], [2, 0]])
COUNTS = RNG.integers(0, 9, (S, A, 2)).astype(np.int32)
SHAPE = Architecture.of("mlp", inputs=S + A, outputs=S, hidden=(4,))
PLACED = Architecture.of("mlp", inputs=3 + 2 + A, outputs=S, hidden=(4,))


def _tree(leaf: Any, cls: type[TreeSearcher] = TreeSearcher, k: int = 1) -> TreeSearcher:
    nxt, prob = np.repeat(NEXT[:, :, None], k, 2), np.full((S, A, k), 1 / k)
    return cls(REWARD, nxt, prob, TreeSettings(simulations=8), leaf, 0, cls is not TreeSearcher, STARTS)


AGENTS: dict[str, Agent] = {
    "none": _tree(Blind(), k=2),
    "rollouts": _tree(Rollouts(4)),
    "distance": _tree(Distance(PLACE)),
    "tables": _tree(Tables(np.linspace(0, 1, S), np.zeros((S, A))), LearnedTreeSearcher),
    "network": _tree(PolicyValue.initial(np.eye(S), n_actions=A, hidden=(4, 2), seed=0)),
    "paths": PathPlanner(REWARD, NEXT, "astar", place=PLACE),
    "model": NetworkModelPlanner(REWARD, SHAPE, SHAPE.initial(0), A, None, 0.9, STARTS, 0),
    "placed": NetworkModelPlanner(REWARD, PLACED, PLACED.initial(0), A, PLACE, 0.9),
    "fitted": dynamics.LearnedNetworkModel(REWARD, SHAPE, SHAPE.initial(0), A, None, 0.9, STARTS, 0, COUNTS),
    "aixi": BayesPlanner(REWARD, RNG.integers(0, 9, (S, A, S)).astype(float), simulations=8, starts=STARTS),
}


@contextmanager
def _quick_and_small() -> Iterator[None]:
    """A second of computing, and 100 MB."""
    tracemalloc.start()
    began = time.process_time()
    try:
        yield
        spent, peak = time.process_time() - began, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert spent < 1.0 and peak < 100e6


def _refused(folder: Path, words: str = "") -> None:
    with _quick_and_small(), pytest.raises(FileError) as caught:
        load_agent(folder)
    message = str(caught.value)
    assert "\n" not in message and folder.name in message and words in message, message


def _reseal(folder: Path, card: dict[str, Any]) -> Path:
    """Whoever can write a file can write its hashes."""
    card["arrays"] = hashlib.sha256((folder / ARRAYS).read_bytes()).hexdigest()
    facts = {k: v for k, v in card.items() if k != "seal"}
    card["seal"] = hashlib.sha256(canonical_json(facts).encode()).hexdigest()
    (folder / CARD).write_text(json.dumps(card))
    return folder


Change = Callable[[dict[str, Any]], object]


def _forged(name: str, tmp_path: Path, *, body: Change | None = None, arrays: Change | None = None) -> Path:
    folder = save_agent(AGENTS[name], tmp_path / "a")
    card = json.loads((folder / CARD).read_text())
    if body is not None:
        body(card["body"])
    if arrays is not None:
        found = safetensors.numpy.load_file(folder / ARRAYS)
        arrays(found)
        (folder / ARRAYS).write_bytes(safetensors.numpy.save({n: np.array(a, order="C") for n, a in found.items()}))
    return _reseal(folder, card)


def _put(**changes: object) -> Change:
    """Write into the body: `leaf__steps=3` for its leaf's steps."""

    def apply(body: dict[str, Any]) -> None:
        for path, value in changes.items():
            *into, last = path.split("__")
            where = body
            for key in into:
                where = where[key]
            where[last] = value

    return apply


def _set(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Change:
    def apply(arrays: dict[str, Any]) -> None:
        arrays[name] = change(arrays[name])

    return apply


def _cell(value: float) -> Callable[[np.ndarray], np.ndarray]:
    """The first number replaced."""

    def change(a: np.ndarray) -> np.ndarray:
        out = a.copy()
        out.reshape(-1)[0] = value
        return out

    return change


@pytest.mark.parametrize("name", AGENTS)
def test_a_forger_who_changes_nothing_is_let_in(name: str, tmp_path: Path) -> None:
    """Else the tests below would prove nothing."""
    folder = _forged(name, tmp_path, body=lambda b: None, arrays=lambda a: None)
    with _quick_and_small():
        assert load_agent(folder).digest == AGENTS[name].digest


# -- facts ---------------------------------------------------------------------------------------------------------

BAD: dict[str, list[object]] = {
    "simulations": [0, -1, 65_537, 10**4000, 2.0, True, "8", None],
    "gamma": [0.0, -0.5, 1.5, 10**400, "1", None, True],
    "factor": [-1.0, 10**400, "1", None, False],
    "steps": [-1, 65_537, 10**4000, 1.5, True],
    "seed": [1.5, "0", True, [0]],
}

FIELDS = [
    *[("none", "settings__simulations", v) for v in BAD["simulations"]],
    *[("none", "settings__gamma", v) for v in BAD["gamma"]],
    *[("none", f"settings__{f}", v) for f in ("exploration", "visit_scale", "value_scale", "gumbel_scale")
      for v in BAD["factor"]],
    *[("none", "settings__rollout_steps", v) for v in BAD["steps"]],
    *[("none", "settings__considered", v) for v in (1, 4097, -1, 2.5)],
    *[("none", "settings__method", v) for v in ("alpha", "", None, ["puct"])],
    *[("none", "settings__backup", v) for v in ("min", None)],
    *[("none", "settings__more", 1), ("none", "settings", {}), ("none", "settings", [])],
    *[("none", "seed", v) for v in [*BAD["seed"], None]],
    *[("none", "learned", v) for v in (1, "true", None)],
    *[("none", "leaf", v) for v in (None, {}, [], "none")],
    *[("none", "leaf", v) for v in ({"kind": "oracle"}, {"kind": ["none"]}, {"kind": "none", "x": 1})],
    *[("rollouts", "leaf__steps", v) for v in BAD["steps"]],
    *[("distance", "leaf__place", v) for v in ([[0.0]],)],
    *[("network", "leaf__hidden", v) for v in (4, [0], [-1], [65_537], [4.0], [True], [1] * 65, [10**4000], None)],
    *[("network", "leaf__seed", v) for v in [*BAD["seed"], None]],
    *[("paths", "method", v) for v in ("dfs", None, 1)],
    *[("paths", "gamma", v) for v in [*BAD["gamma"], 1.0]],
    *[("paths", "depth", v) for v in (0, -1, 1 << 63, 10**4000, 2.5, True, "3")],
    *[("model", "gamma", v) for v in [*BAD["gamma"], 1.0]],
    *[("model", "n_actions", v) for v in (0, -1, 1 << 21, 10**4000, 1.5, True)],
    *[("model", "seed", v) for v in BAD["seed"]],
    *[("model", "settings", {"updates": 1, "rate": 0.1, "enough": 0.1})],
    *[("fitted", "settings__updates", v) for v in (-1, 1.5, True, 1 << 63)],
    *[("fitted", "settings__rate", v) for v in (0.0, -1.0, "1", None)],
    *[("fitted", "settings__enough", v) for v in BAD["factor"]],
    *[("aixi", "simulations", v) for v in BAD["simulations"]],
    *[("aixi", "horizon", v) for v in (0, -1, 65_537, 1.5, True)],
    *[("aixi", "gamma", v) for v in [*BAD["gamma"], 1.0]],
    *[("aixi", "bonus", v) for v in BAD["factor"]],
    *[("aixi", "seed", v) for v in [*BAD["seed"], None]],
]  # fmt: skip


@pytest.mark.parametrize(("name", "field", "value"), FIELDS)
def test_facts_out_of_range(name: str, field: str, value: object, tmp_path: Path) -> None:
    _refused(_forged(name, tmp_path, body=_put(**{field: value})), "is wrong")


@pytest.mark.parametrize("name", AGENTS)
def test_facts_that_are_missing_or_too_many(name: str, tmp_path: Path) -> None:
    for field in json.loads((save_agent(AGENTS[name], tmp_path / "a") / CARD).read_text())["body"]:
        _refused(_forged(name, tmp_path, body=lambda b, field=field: b.pop(field)), f"'{field}' is wrong")
    _refused(_forged(name, tmp_path, body=_put(more=1)), "'more' is wrong")


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("none", {"settings__method": "gumbel", "settings__backup": "max"}, "backup 'max' belongs to method 'puct'"),
        ("none", {"settings__rollout_steps": 9}, "rollout_steps are 9 in its settings, 0 in its leaf"),
        ("rollouts", {"leaf__steps": 5}, "rollout_steps are 4 in its settings, 5 in its leaf"),
        ("none", {"seed": 7}, "it was changed since it was saved"),
        ("none", {"settings__exploration": 10**300}, "holds no tree_search"),
        ("none", {"leaf": {"kind": "distance"}}, "of this description has the arrays"),
        ("distance", {"leaf": {"kind": "none"}}, "of this description has the arrays"),
        ("tables", {"leaf": {"kind": "network", "hidden": [], "seed": 0}}, "of this description has the arrays"),
        ("network", {"leaf__hidden": [4]}, "of this description has the arrays"),
        ("network", {"leaf__hidden": [4, 2, 2]}, "of this description has the arrays"),
        ("network", {"leaf__hidden": [65_536] * 64}, "of this description has the arrays"),
        ("network", {"leaf__hidden": [4, 65_536]}, "'leaf/trunk.1.weight' has shape [2, 4], not [65536, 4]"),
        ("network", {"leaf__seed": 1}, "it was changed since it was saved"),
        ("model", {"n_actions": 4}, "takes 8 inputs and has 5 outputs, for 5 states and 4 actions"),
        ("model", {"architecture__outputs": 65_536}, "weights, the arrays hold"),
        ("model", {"architecture__outputs": 65_537}, "'outputs' is wrong"),
        ("model", {"architecture__hidden": [65_536] * 64}, "weights, the arrays hold"),
        ("model", {"architecture__kind": "lstm"}, "unknown kind of network"),
        ("model", {"architecture": {"kind": "gru", "inputs": 1, "outputs": 1}}, "weights, the arrays hold"),
        ("model", {"architecture": {}}, "unknown kind of network"),
        ("model", {"seed": 1 << 70}, ""),
        ("placed", {"n_actions": 4}, "the network of this model needs"),
        ("fitted", {"n_actions": 4}, "for 5 states and 4 actions"),
        ("fitted", {"settings__updates": 1}, "it was changed since it was saved"),
    ],
)
def test_facts_that_do_not_fit_together(name: str, change: dict[str, object], words: str, tmp_path: Path) -> None:
    folder = _forged(name, tmp_path, body=_put(**change))
    if not words:  # the digest does not cover what a network model began from
        assert load_agent(folder).digest == AGENTS[name].digest
    else:
        _refused(folder, words)


@pytest.mark.parametrize("name", ["tree_search", "learned_tree_search", "path_planner", "network_model", "mc_aixi"])
def test_a_description_of_another_kind(name: str, tmp_path: Path) -> None:
    for own in AGENTS:
        folder = save_agent(AGENTS[own], tmp_path / "a")
        card = json.loads((folder / CARD).read_text())
        if card["type"] == name or {card["type"], name} == {"tree_search", "learned_tree_search"}:
            continue  # these two differ in what may be edited, which is no lie
        _refused(_reseal(folder, card | {"type": name}), "is wrong")


# -- arrays --------------------------------------------------------------------------------------------------------


def _names(name: str) -> list[str]:
    agent = AGENTS[name]
    leaf = getattr(agent, "leaf", None)
    found = ["reward"] + (["counts"] if isinstance(agent, (BayesPlanner, dynamics.LearnedNetworkModel)) else [])
    found += ["next_state"] if isinstance(agent, (TreeSearcher, PathPlanner)) else []
    found += ["prob"] if isinstance(agent, TreeSearcher) else []
    found += [] if leaf is None else [f"leaf/{n}" for n in leaf.parts] + list(leaf.fixed_arrays)
    found += [f"weight/{n}" for n in getattr(agent, "weights", {})]
    found += ["place"] if getattr(agent, "place", None) is not None else []
    return found + (["starts"] if agent.seen_starts is not None else [])


ARRAYS_OF = [(name, array) for name in AGENTS for array in _names(name)]


def test_the_names_of_arrays_are_those_of_the_files(tmp_path: Path) -> None:
    """Else arrays would be left out below."""
    for name, agent in AGENTS.items():
        found = safetensors.numpy.load_file(save_agent(agent, tmp_path / "a") / ARRAYS)
        assert sorted(found) == sorted(_names(name))


@pytest.mark.parametrize(("name", "array"), ARRAYS_OF)
def test_arrays_of_a_wrong_shape(name: str, array: str, tmp_path: Path) -> None:
    for change in (
        lambda a: a[None],
        lambda a: a.reshape(-1) if a.ndim > 1 else a[:, None],
        lambda a: a[:0],
        lambda a: a[..., :0],
        lambda a: np.concatenate([a, a]),
        lambda a: a.reshape(-1)[0],
    ):
        _refused(_forged(name, tmp_path, arrays=_set(array, change)))


@pytest.mark.parametrize(("name", "array"), ARRAYS_OF)
def test_arrays_of_a_wrong_type(name: str, array: str, tmp_path: Path) -> None:
    for dtype in (np.bool_, np.uint8, np.int16, np.float16, np.float32, np.float64, np.int64, np.int32):
        own = safetensors.numpy.load_file(save_agent(AGENTS[name], tmp_path / "a") / ARRAYS)[array].dtype
        free = array.startswith(("weight/", "leaf/trunk", "leaf/value.", "leaf/policy.", "features")) and dtype in (
            np.float32,
            np.float64,
        )  # fmt: skip
        whole = array in ("starts", "counts") and own.kind == "i" and dtype in (np.int32, np.int64)
        if dtype != own and not free and not whole:
            _refused(_forged(name, tmp_path, arrays=_set(array, lambda a, d=dtype: a.astype(d))), "has type")


@pytest.mark.parametrize(("name", "array"), ARRAYS_OF)
def test_numbers_that_are_not_finite_or_no_states(name: str, array: str, tmp_path: Path) -> None:
    kept = safetensors.numpy.load_file(save_agent(AGENTS[name], tmp_path / "a") / ARRAYS)[array]
    bad = [np.nan, np.inf, -np.inf] if kept.dtype.kind == "f" else [-1, -(2**31)]
    if array in ("next_state", "starts"):
        bad += [S + 1, 2**31 - 1]
    if (name, array) == ("paths", "place"):
        bad = []  # where a state lies may be any two numbers: the digest says whether they are its own
    for value in bad:
        _refused(_forged(name, tmp_path, arrays=_set(array, _cell(value))), "that can be used")


@pytest.mark.parametrize("name", AGENTS)
def test_arrays_that_are_missing_or_too_many(name: str, tmp_path: Path) -> None:
    for array in _names(name):
        folder = _forged(name, tmp_path, arrays=lambda a, array=array: a.pop(array))
        _refused(folder)
    for extra in ("more", "leaf/more", "weight/more", "leaf/", "counts/", "../a"):
        _refused(_forged(name, tmp_path, arrays=lambda a, extra=extra: a.update({extra: np.zeros(2)})))


@pytest.mark.parametrize(
    ("name", "arrays", "words"),
    [
        ("none", _set("prob", lambda a: a * 2), "prob of state 0 is no distribution"),
        ("none", _set("prob", _cell(-0.5)), "prob of state 0 is no distribution"),
        ("rollouts", _set("reward", _cell(1e101)), "rewards must lie within"),
        ("rollouts", _set("next_state", _cell(S + 1)), "model successors must be 0 to 5"),
        ("paths", _set("next_state", _cell(S + 1)), "successors must be 0 to 5"),
        ("paths", _set("place", _cell(7)), "it was changed since it was saved"),
        ("placed", _set("place", lambda a: a * 0), "places do not tell the states apart"),
        ("placed", _set("place", _cell(1 << 40)), "the network of this model needs"),
        ("fitted", _set("counts", _cell(-1)), "counts of data must be at least 0"),
        ("fitted", _set("counts", lambda a: a[:, :2]), "counts are of 2 actions, the description names 3"),
        ("network", _set("leaf/value.bias", _cell(1.0)), "it was changed since it was saved"),
        ("tables", _set("leaf/value", _cell(0.5)), "it was changed since it was saved"),
        ("aixi", _set("counts", lambda a: a[:, :, :4]), "array 'counts' has shape [5, 3, 4], not [5, A, 5]"),
        ("aixi", _set("starts", _cell(S)), "starts of training must be states"),
    ],
)
def test_arrays_that_hold_nonsense(name: str, arrays: Change, words: str, tmp_path: Path) -> None:
    _refused(_forged(name, tmp_path, arrays=arrays), words)


def test_a_learned_model_with_two_successors(tmp_path: Path) -> None:
    def double(arrays: dict[str, Any]) -> None:
        arrays["next_state"] = np.repeat(arrays["next_state"], 2, 2)
        arrays["prob"] = np.repeat(arrays["prob"], 2, 2) / 2

    _refused(_forged("tables", tmp_path, arrays=double), "names one successor")


# -- files that lie about their sizes ------------------------------------------------------------------------------


def _declare(folder: Path, shapes: dict[str, list[int]]) -> Path:
    """Give arrays other shapes in the header, and the file the length that they take, in a hole on the disk."""
    raw = (folder / ARRAYS).read_bytes()
    length = int(struct.unpack("<Q", raw[:8])[0])
    header = {n: e for n, e in json.loads(raw[8 : 8 + length]).items() if n != "__metadata__"}
    at, size = 0, {"F64": 8, "F32": 4, "I64": 8, "I32": 4}
    for name, entry in header.items():
        entry["shape"] = shapes.get(name, entry["shape"])
        end = at + int(np.prod([int(n) for n in entry["shape"]], dtype=object)) * size[entry["dtype"]]
        entry["data_offsets"], at = [at, end], end
    text = json.dumps(header).encode()
    with (folder / ARRAYS).open("wb") as handle:
        handle.write(struct.pack("<Q", len(text)) + text)
        handle.truncate(8 + len(text) + at)
    return folder


BIG = 1 << 24


@pytest.mark.parametrize(
    ("name", "shapes", "words"),
    [
        ("rollouts", {"next_state": [S, BIG, 1]}, "array 'prob' has shape"),
        ("rollouts", {"next_state": [S, 1 << 32, 0], "prob": [S, 1 << 32, 0]}, "array 'next_state' has shape"),
        ("rollouts", {"next_state": [0, 1, 1], "prob": [0, 1, 1], "reward": [0]}, "array 'reward' has shape"),
        ("network", {"reward": [BIG], "next_state": [BIG, 1, 1], "prob": [BIG, 1, 1]}, "array 'features' has shape"),
        ("aixi", {"reward": [513], "counts": [513, 1, 513]}, "has at most 512 states, this one 513"),
        ("model", {"weight/hidden.0.0.weight": [BIG]}, "weights, the arrays hold"),
        ("placed", {"place": [BIG, 2]}, "array 'place' has shape"),
        ("paths", {"place": [BIG, 2]}, "array 'place' has shape"),
        ("fitted", {"counts": [S, A, BIG]}, "was changed since it was saved"),
    ],
)
def test_headers_of_large_arrays(name: str, shapes: dict[str, list[int]], words: str, tmp_path: Path) -> None:
    if name == "fitted":  # what fits is hashed before it is read: this takes no memory, but the time of a gigabyte
        shapes = {"counts": [S, A, 1 << 20]}
    _refused(_declare(save_agent(AGENTS[name], tmp_path / "a"), shapes), words)


def test_a_layer_that_would_fill_the_memory(tmp_path: Path) -> None:
    """Few weights, many states: 65536 x 65536 numbers from a file of some megabytes."""
    folder = _forged("network", tmp_path, body=_put(leaf__hidden=[65_536]))
    n, wide = 65_536, 65_536
    # of this description: arrays that fit it, and each other
    raw = safetensors.numpy.load_file(folder / ARRAYS)
    kept = {name: raw[name] for name in raw if not name.startswith("leaf/")}
    (folder / ARRAYS).write_bytes(
        safetensors.numpy.save(kept | {
            "leaf/trunk.0.weight": np.zeros((wide, 1), np.float32), "leaf/trunk.0.bias": np.zeros(wide, np.float32),
            "leaf/value.weight": np.zeros((1, wide), np.float32), "leaf/value.bias": np.zeros(1, np.float32),
            "leaf/policy.weight": np.zeros((1, wide), np.float32), "leaf/policy.bias": np.zeros(1, np.float32),
            "features": np.zeros((n, 1), np.float32), "reward": np.zeros(n), "prob": np.ones((n, 1, 1)),
            "next_state": np.zeros((n, 1, 1), np.int32),
        })
    )  # fmt: skip
    _refused(_reseal(folder, json.loads((folder / CARD).read_text())), "a layer of 65536 units for 65536 states")


def test_a_model_of_more_pairs_than_can_be_planned_over(tmp_path: Path) -> None:
    n, actions = 4096, 1 << 13
    folder = _forged(
        "model", tmp_path, body=_put(n_actions=actions, architecture__inputs=n + actions, architecture__outputs=n,
                                     architecture__hidden=[1]),
    )  # fmt: skip
    (folder / ARRAYS).write_bytes(
        safetensors.numpy.save({
            "reward": np.zeros(n), "weight/hidden.0.0.weight": np.zeros((1, n + actions), np.float32),
            "weight/hidden.0.0.bias": np.zeros(1, np.float32), "weight/out.weight": np.zeros((n, 1), np.float32),
            "weight/out.bias": np.zeros(n, np.float32),
        })
    )  # fmt: skip
    _refused(_reseal(folder, json.loads((folder / CARD).read_text())), "is larger than 16777216 of both")


@pytest.mark.parametrize("name", ["network", "fitted"])
def test_files_cut_at_any_byte(name: str, tmp_path: Path) -> None:
    folder = save_agent(AGENTS[name], tmp_path / "a")
    card, arrays = (folder / CARD).read_bytes(), (folder / ARRAYS).read_bytes()
    for end in range(0, len(card), 7):
        (folder / CARD).write_bytes(card[:end])
        _refused(folder)
    (folder / CARD).write_bytes(card)
    for end in [*range(0, len(arrays), 61), len(arrays) - 1]:
        (folder / ARRAYS).write_bytes(arrays[:end])
        _refused(folder)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5)
        | st.floats(allow_nan=False, allow_infinity=False),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=6,
    ),
    st.data(),
)  # fmt: skip
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_anything_in_the_place_of_anything(tmp_path: Path, value: object, data: st.DataObject) -> None:
    """One fact replaced by another, hashes made anew: an agent of the same digest, or one line."""
    name = data.draw(st.sampled_from(sorted(AGENTS)))
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


# -- what cannot be read is not written ----------------------------------------------------------------------------


class OwnLeaf(Blind):
    pass


def _unsavable() -> dict[str, tuple[Agent, str]]:
    wide = PolicyValue.initial(np.eye(S), n_actions=A, hidden=(2,) * 65, seed=0)
    other = Tables(np.zeros(S + 1), np.zeros((S + 1, A)))
    gru = Architecture.of("gru", inputs=S + A, outputs=S, hidden=2)
    tree, aixi = _tree(Blind()), AGENTS["aixi"]
    assert isinstance(aixi, BayesPlanner)
    return {
        "a leaf of one's own": (_tree(OwnLeaf()), "a leaf of class OwnLeaf cannot be saved"),
        "too many layers": (_tree(wide), "'leaf.network.hidden' is wrong"),
        "a leaf for another world": (_tree(other), "array 'leaf/value' has shape [6], not [5]"),
        "no distribution": (replace(tree, prob=tree.prob * 2), "prob of state 0 is no distribution"),
        "two successors": (_tree(Blind(), LearnedTreeSearcher, 2), "names one successor"),
        "starts elsewhere": (replace(tree, starts=np.array([S])), "starts of training must be states"),
        "starts of another type": (replace(tree, starts=STARTS.astype(np.int16)), "'starts' has type I16"),
        "starts of no type": (replace(tree, starts=STARTS.astype(complex)), "numbers of type complex128"),
        "too many walks": (replace(aixi, simulations=65_537), "'simulations' is wrong"),
        "too far": (replace(aixi, horizon=65_537), "'horizon' is wrong"),
        "a network with memory": (NetworkModelPlanner(REWARD, gru, gru.initial(0), A), "is an mlp, not a gru"),
    }


UNSAVABLE = _unsavable()


@pytest.mark.parametrize("name", UNSAVABLE)
def test_what_could_not_be_read_is_not_written(name: str, tmp_path: Path) -> None:
    agent, words = UNSAVABLE[name]
    with pytest.raises(FileError) as caught:
        save_agent(agent, tmp_path / "a")
    assert "\n" not in str(caught.value) and words in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_numbers_that_no_agent_has_are_not_written(tmp_path: Path) -> None:
    broken = BayesPlanner(REWARD, np.full((S, A, S), np.nan))
    with pytest.raises(AgentError, match="not finite"):
        save_agent(broken, tmp_path / "a")
    assert not list(tmp_path.iterdir())
