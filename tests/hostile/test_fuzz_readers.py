"""Whatever bytes a reader is given, it returns an agent or raises one FileError, with no warning and no other error."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from retarget.agent import Agent
from retarget.agents.neural import Architecture, NetworkAgent
from retarget.envs import make_world
from retarget.errors import FileError
from retarget.io.archive import opened
from retarget.io.load import load
from retarget.io.native import save_agent
from retarget.io.normalise import Normalisation, load_normalisation
from retarget.io.sb3 import plain_fields
from retarget.io.state_dict import read_state_dict

ROOT = Path(__file__).parents[2]
WORLD = make_world("OpenGrid", size=5)
CAR = make_world("MountainCar")


def _state(prefix: str) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(0)
    shapes = {"0.weight": (4, 2), "0.bias": (4,), "2.weight": (3, 4), "2.bias": (3,)}
    return {prefix + n: torch.tensor(rng.normal(size=s), dtype=torch.float32) for n, s in shapes.items()}


def _saved(state: dict[str, torch.Tensor]) -> bytes:
    out = io.BytesIO()
    torch.save(state, out)
    return out.getvalue()


def _zip(packing: int) -> bytes:
    acts = {":type:": "<class 'gymnasium.spaces.discrete.Discrete'>", "n": "3"}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", packing) as archive:
        archive.writestr("data", json.dumps({"action_space": acts, "policy_kwargs": {"net_arch": [4]}}))
        archive.writestr("policy.pth", _saved(_state("q_net.q_net.")))
    return out.getvalue()


def _table(kind: str) -> bytes:
    out = io.BytesIO()
    q = np.arange(float(WORLD.model.n_states * WORLD.model.n_actions)).reshape(WORLD.model.n_states, -1)
    if kind == "npz":
        np.savez(out, q=q)
    elif kind == "npy":
        np.save(out, q)
    else:
        out.write("\n".join(",".join(map(str, row)) for row in q).encode())
    return out.getvalue()


def _statistics() -> bytes:
    out = io.BytesIO()
    np.savez(out, mean=np.zeros(2), var=np.ones(2), clip_obs=10.0, epsilon=1e-8)
    return out.getvalue()


_CARD = {
    "network": {"kind": "mlp", "inputs": 2, "outputs": 3, "hidden": [4], "act": "tanh"},
    "head": "logits",
    "normalise": {"mean": [0.0, 1.0], "var": [1.0, 2.0]},
}
_ARRAYS = {"hidden.0.0.weight": (4, 2), "hidden.0.0.bias": (4,), "out.weight": (3, 4), "out.bias": (3,)}
_TENSORS = save({n: np.ones(s, dtype="f4") for n, s in _ARRAYS.items()})


def _native() -> dict[str, bytes]:
    import tempfile

    made = Architecture.of("mlp", inputs=2, outputs=3, hidden=(4,))
    with tempfile.TemporaryDirectory() as folder:
        out = save_agent(NetworkAgent(made, made.initial(0)), Path(folder) / "agent")
        return {p.name: p.read_bytes() for p in sorted(out.iterdir())}


def _repacked(path: Path, **changed: bytes) -> Agent:
    """A zip that is whole, with the program of its weights, or its JSON, taken from a file: checksums hide nothing."""
    inner = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(_saved(_state("q_net.q_net.")))) as old, zipfile.ZipFile(inner, "w") as new:
        for name in old.namelist():
            new.writestr(name, changed.get("program", old.read(name)) if name.endswith("data.pkl") else old.read(name))
    whole = path.with_suffix(".zip")
    with zipfile.ZipFile(io.BytesIO(_zip(zipfile.ZIP_STORED))) as old, zipfile.ZipFile(whole, "w") as new:
        new.writestr("data", changed.get("data", old.read("data")))
        new.writestr("policy.pth", inner.getvalue())
    return load(whole)


def _inside(name: str, outer: str = "") -> bytes:
    """A member of the good zip, or of the weights inside it."""
    data = _saved(_state("q_net.q_net.")) if outer else _zip(zipfile.ZIP_STORED)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return archive.read(next(n for n in archive.namelist() if n.endswith(name)))


#: Each reader: name of its file, a good file, other files beside it, and how it is called.
READERS: dict[str, tuple[str, bytes, dict[str, bytes], Callable[[Path], object]]] = {
    "zip": ("a.zip", _zip(zipfile.ZIP_STORED), {}, load),
    "packed zip": ("a.zip", _zip(zipfile.ZIP_DEFLATED), {}, load),
    "program": ("p.bin", _inside("data.pkl", "policy.pth"), {}, lambda p: _repacked(p, program=p.read_bytes())),
    "plain data": ("d.bin", _inside("data"), {}, lambda p: _repacked(p, data=p.read_bytes())),
    "state dict": ("a.pth", _saved(_state("action_net.")), {}, lambda p: load(p, world=CAR)),
    "safetensors": ("a.safetensors", _TENSORS, {"a.json": json.dumps(_CARD).encode()}, load),
    "description": ("a.json", json.dumps(_CARD).encode(), {"a.safetensors": _TENSORS},
                    lambda p: load(p.with_suffix(".safetensors"))),
    "statistics": ("s.npz", _statistics(), {}, load_normalisation),
    "json statistics": ("s.json", json.dumps(_CARD["normalise"]).encode(), {}, load_normalisation),
    "npy": ("a.npy", _table("npy"), {}, lambda p: load(p, world=WORLD)),
    "npz": ("a.npz", _table("npz"), {}, lambda p: load(p, world=WORLD)),
    "csv": ("a.csv", _table("csv"), {}, lambda p: load(p, world=WORLD)),
    "native card": ("agent.json", _native()["agent.json"], _native(), lambda p: load(p.parent)),
    "native arrays": ("arrays.safetensors", _native()["arrays.safetensors"], _native(), lambda p: load(p.parent)),
}  # fmt: skip


def _outcome(folder: Path, kind: str, data: bytes) -> object:
    name, _, others, reader = READERS[kind]
    for other, content in others.items():
        (folder / other).write_bytes(content)
    (folder / name).write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            found = reader(folder / name)
        except FileError as error:
            text = str(error)
            assert "\n" not in text and len(text) < 1000
            return error
    assert isinstance(found, Agent | Normalisation)
    return found


@st.composite
def _mutants(draw: st.DrawFn, good: bytes) -> bytes:
    """A good file with bits flipped, a stretch copied elsewhere, cut out, repeated, or overwritten."""
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 3))):
        at, n = draw(st.integers(0, max(len(data) - 1, 0))), draw(st.integers(1, 16))
        how = draw(st.sampled_from(["flip", "copy", "cut", "repeat", "number", "noise"]))
        if how == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "copy":
            source = draw(st.integers(0, max(len(data) - 1, 0)))
            data[at : at + n] = data[source : source + n]
        elif how == "cut":
            del data[at : at + n]
        elif how == "repeat":
            data[at:at] = data[at : at + n]
        elif how == "number":
            data[at : at + 4] = draw(
                st.sampled_from([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80"])
            )
        else:
            data[at : at + n] = draw(st.binary(min_size=1, max_size=n))
    return bytes(data)


_SETTINGS = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("kind", READERS)
def test_a_good_file_is_read(tmp_path: Path, kind: str) -> None:
    assert not isinstance(_outcome(tmp_path, kind, READERS[kind][1]), FileError)


@pytest.mark.parametrize("kind", READERS)
def test_mutants_of_a_good_file(tmp_path: Path, kind: str) -> None:
    @_SETTINGS
    @given(_mutants(READERS[kind][1]))
    def check(data: bytes) -> None:
        _outcome(tmp_path, kind, data)

    check()


@pytest.mark.parametrize("kind", READERS)
def test_bytes_of_any_kind(tmp_path: Path, kind: str) -> None:
    starts = [
        b"",
        b"PK\x03\x04",
        b"\x80\x02",
        b"\x93NUMPY\x01\x00",
        b"{",
        b"PK\x05\x06" + bytes(18),
        b"\x10" + bytes(7) + b"{",
    ]

    @settings(_SETTINGS, max_examples=40)
    @given(st.sampled_from(starts), st.binary(max_size=300))
    def check(start: bytes, data: bytes) -> None:
        found = _outcome(tmp_path, kind, start + data)
        assert isinstance(found, FileError) or kind == "csv"

    check()


@_SETTINGS
@given(_mutants(_saved(_state("a."))))
def test_what_a_state_dict_holds_is_what_it_says(data: bytes) -> None:
    """A file that passes is one that PyTorch reads, to the same tensors: there is one reading of it, not two."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            found = read_state_dict("a.pth", data)
        except FileError:
            return
    assert all(a.dtype.kind == "f" and a.size for a in found.values())


@settings(_SETTINGS, max_examples=60)
@given(st.lists(st.sampled_from(sorted("().01234]abcdhijqRrtu}\x80\x85\x86\x87\x88\x89QbcX")), max_size=40))
def test_programs_of_any_kind(program: list[str]) -> None:
    """Pickle instructions in any order, where a dictionary of tensors is expected."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + "".join(program).encode("latin1") + b".")
    with pytest.raises(FileError):
        read_state_dict("a.pth", out.getvalue())


@settings(_SETTINGS, max_examples=60)
@given(
    st.dictionaries(
        st.sampled_from(["observation_space", "action_space", "policy_kwargs", "policy_class", "_last_original_obs"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
            lambda s: (
                st.lists(s, max_size=3)
                | st.dictionaries(
                    st.sampled_from(
                        [":type:", "n", "_shape", "low", "high", "activation_fn", "squash_output", "__module__"]
                    ),
                    s,
                )
            ),
            max_leaves=8,
        ),
    )
)
def test_plain_fields_of_any_kind(data: dict[str, object]) -> None:
    plain_fields(data)


@_SETTINGS
@given(st.binary(max_size=400))
def test_zips_of_any_bytes(data: bytes) -> None:
    with pytest.raises(FileError), opened("a.zip", data):
        pass


def test_the_converter_survives_mutants(tmp_path: Path) -> None:
    """In one process of its own, as it is a program and no module."""
    program = f"""
import random, runpy, pickle, sys
script = runpy.run_path({str(ROOT / "scripts" / "convert_vecnormalize.py")!r})
rng = random.Random(0)
import types, numpy as np
for name in ("VecNormalize", "RunningMeanStd"):
    globals()[name] = type(name, (), {{}})
running, whole = RunningMeanStd(), VecNormalize()
running.mean, running.var, running.count = np.zeros(2), np.ones(2), 3.0
whole.obs_rms, whole.clip_obs, whole.epsilon, whole.norm_obs = running, 10.0, 1e-8, True
good = pickle.dumps(whole, protocol=4)
assert sorted(script["statistics"](good)) == ["clip_obs", "epsilon", "mean", "var"]
read = 0
for _ in range(1000):
    data = bytearray(good)
    for _ in range(rng.randint(1, 3)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    try:
        script["statistics"](bytes(data))
        read += 1
    except script["UnconvertibleError"] as error:
        assert len(str(error).splitlines()) == 1
assert 0 < read < 1000
"""
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not list(tmp_path.iterdir())
