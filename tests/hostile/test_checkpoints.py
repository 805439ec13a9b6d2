"""Broken and malicious checkpoints: each is one line within a second and 200 MB, nothing runs, nothing is written."""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save

from retarget.agent import Agent
from retarget.envs import make_world
from retarget.errors import FileError
from retarget.io.load import load
from retarget.io.normalise import Normalisation, load_normalisation

ROOT = Path(__file__).parents[2]
MEGABYTE = 1 << 20


# -- good files, to break ----------------------------------------------------------------------------------------------


def _state(hidden: int = 3) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(0)
    shapes = {"0.weight": (hidden, 2), "0.bias": (hidden,), "2.weight": (3, hidden), "2.bias": (3,)}
    return {f"q_net.q_net.{n}": torch.tensor(rng.normal(size=s), dtype=torch.float32) for n, s in shapes.items()}


def _saved(value: object) -> bytes:
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


def _data(**more: object) -> bytes:
    box = {":type:": "<class 'gymnasium.spaces.box.Box'>", "_shape": [2], ":serialized:": "gASV"}
    acts = {":type:": "<class 'gymnasium.spaces.discrete.Discrete'>", "n": "3", ":serialized:": "gASV"}
    return json.dumps({"observation_space": box, "action_space": acts, "policy_kwargs": {}, **more}).encode()


def _zip(path: Path, members: dict[str, bytes], *, packing: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def _members(**changed: bytes) -> dict[str, bytes]:
    names = {"policy": "policy.pth", "variables": "pytorch_variables.pth", "optimizer": "policy.optimizer.pth"}
    good = {"data": _data(), "policy.pth": _saved(_state()), "_stable_baselines3_version": b"2.4.0"}
    return good | {names.get(n, n): d for n, d in changed.items()}


def _safetensors(path: Path, **changed: object) -> Path:
    arrays = {"out.weight": np.ones((3, 2), dtype="f4"), "out.bias": np.zeros(3, dtype="f4")}
    path.write_bytes(save(arrays))
    card = {"network": {"kind": "mlp", "inputs": 2, "outputs": 3, "hidden": []}, **changed}
    path.with_suffix(".json").write_text(json.dumps(card))
    return path


@pytest.fixture(autouse=True, scope="module")
def _warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The libraries take longer than a second to import, which is no fault of a file."""
    folder = tmp_path_factory.mktemp("warm")
    assert isinstance(load(_zip(folder / "good.zip", _members())), Agent)
    assert isinstance(load(_safetensors(folder / "good.safetensors")), Agent)


def _refused(path: Path, reader: object = load) -> str:
    folder = sorted(path.parent.rglob("*"))
    began = time.process_time()
    with pytest.raises(FileError) as caught:
        reader(path)  # type: ignore[operator]
    assert time.process_time() - began < 1.0
    text = str(caught.value)
    assert "\n" not in text and len(text) < 1000 and path.stem in text
    assert sorted(path.parent.rglob("*")) == folder
    return text


# -- pickles -----------------------------------------------------------------------------------------------------------


class _Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.write_text, (self.sentinel, "ran"))


@pytest.fixture
def bomb(tmp_path: Path):  # type: ignore[no-untyped-def]
    sentinel = tmp_path.parent / f"{tmp_path.name}-sentinel"
    yield _Bomb(sentinel)
    assert not sentinel.exists()


def test_the_bomb_works(bomb: _Bomb) -> None:
    pickle.loads(pickle.dumps(bomb))
    assert bomb.sentinel.exists()
    bomb.sentinel.unlink()


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_in_every_slot(tmp_path: Path, bomb: _Bomb, protocol: int) -> None:
    evil = pickle.dumps(bomb, protocol=protocol)
    _refused(_zip(tmp_path / "weights.zip", _members(policy=evil)))
    _refused(_zip(tmp_path / "data.zip", _members(data=evil)))
    inner = {"archive/data.pkl": evil, "archive/version": b"3\n"}
    nested = _zip(tmp_path / "inner.pth", inner).read_bytes()
    _refused(_zip(tmp_path / "nested.zip", _members(policy=nested)))
    _refused(tmp_path / "inner.pth")
    for name in ("bare.zip", "bare.pth", "bare.pkl", "bare.safetensors", "bare.npy", "bare"):
        (tmp_path / name).write_bytes(evil)
        _refused(tmp_path / name)
    # what nobody needs is not opened at all
    text = base64.b64encode(evil).decode()
    fields = {n: {":type:": "<class 'dict'>", ":serialized:": text} for n in ("policy_class", "lr_schedule")}
    kwargs = {":type:": "<class 'dict'>", ":serialized:": text}
    ignored = _members(variables=evil, optimizer=evil, data=_data(**fields, policy_kwargs=kwargs))
    assert isinstance(load(_zip(tmp_path / "ignored.zip", ignored)), Agent)


def test_pickles_that_pytorch_wrote(tmp_path: Path, bomb: _Bomb) -> None:
    legacy = io.BytesIO()
    torch.save(_state(), legacy, _use_new_zipfile_serialization=False)
    (tmp_path / "legacy.pth").write_bytes(legacy.getvalue())
    assert "PyTorch 1.6" in _refused(tmp_path / "legacy.pth")
    assert "PyTorch 1.6" in _refused(_zip(tmp_path / "legacy.zip", _members(policy=legacy.getvalue())))
    for i, value in enumerate(
        [torch.nn.Linear(2, 3), {"a": bomb}, {"state_dict": _state()}, [1], {}, {"a": 1}, {1: 2}]
    ):
        path = tmp_path / f"value{i}.pth"
        path.write_bytes(_saved(value))
        assert "state dict" in _refused(path)


@pytest.mark.parametrize(
    "call",
    [
        (torch.FloatStorage, (10**11,)),
        (torch.FloatTensor, (10**6, 10**6)),
        (torch.UntypedStorage, (10**12,)),
        (bytearray, (10**12,)),
        (torch.Size, ([10**9] * 4,)),
        (OrderedDict, ([("a", 1)] * 9,)),
    ],
    ids=lambda call: call[0].__name__,
)
def test_what_pytorch_would_build_at_any_size(tmp_path: Path, call: tuple[object, ...]) -> None:
    class Hungry:
        def __reduce__(self) -> tuple[object, ...]:
            return call

    program = pickle.dumps(OrderedDict(a=Hungry()), protocol=2)
    path = _zip(tmp_path / "hungry.pth", {"archive/data.pkl": program, "archive/version": b"3\n"})
    assert "state dict" in _refused(path)


# -- tensors that lie --------------------------------------------------------------------------------------------------


class _Storage:
    def __init__(self, numel: int, key: str = "0") -> None:
        self.numel, self.key = numel, key


class _Tensor:
    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments

    def __reduce__(self) -> tuple[object, ...]:
        return (torch._utils._rebuild_tensor_v2, (*self.arguments, False, OrderedDict()))


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: object) -> object:
        return ("storage", torch.FloatStorage, value.key, "cpu", value.numel) if isinstance(value, _Storage) else None


def _lying(path: Path, *arguments: object, there: int = 24) -> Path:
    out = io.BytesIO()
    _Pickler(out, 2).dump(OrderedDict({"q_net.q_net.0.weight": _Tensor(*arguments)}))
    return _zip(path, {"a/data.pkl": out.getvalue(), "a/version": b"3\n", "a/data/0": bytes(there)})


def test_the_liar_can_tell_the_truth(tmp_path: Path) -> None:
    assert isinstance(load(_lying(tmp_path / "true.pth", _Storage(6), 0, (3, 2), (2, 1))), Agent)


@pytest.mark.parametrize(
    "arguments",
    [
        (_Storage(10**12), 0, (10**6, 10**6), (10**6, 1)),
        (_Storage(6), 0, (10**6, 10**6), (10**6, 1)),
        (_Storage(6), 0, (10**6, 10**6), (0, 0)),
        (_Storage(6), 0, (2**62, 2**62), (1, 1)),
        (_Storage(6), 1, (3, 2), (2, 1)),
        (_Storage(6), 10**30, (3, 2), (2, 1)),
        (_Storage(6), -1, (3, 2), (2, 1)),
        (_Storage(6), 0, (3, 2), (-2, 1)),
        (_Storage(6), 0, (-3, -2), (2, 1)),
        (_Storage(6), 0, (0, 2), (2, 1)),
        (_Storage(6), 0, (3, 2), (2,)),
        (_Storage(6), 0, (3, "2"), (2, 1)),
        (_Storage(6), 0, (True, 2), (2, 1)),
        (_Storage(6, "../data.pkl"), 0, (3, 2), (2, 1)),
        (_Storage(5), 0, (5, 1), (1, 1)),
        (_Storage(6), 0, (1,) * 100, (1,) * 100),
    ],
    ids=lambda a: str(a[1:])[:60],  # a storage's own name holds an address
)
def test_tensors_of_absurd_shape(tmp_path: Path, arguments: tuple[object, ...]) -> None:
    _refused(_lying(tmp_path / "liar.pth", *arguments))


def test_the_same_storage_described_twice(tmp_path: Path) -> None:
    out = io.BytesIO()
    plans = {"a": _Tensor(_Storage(6), 0, (3, 2), (2, 1)), "b": _Tensor(_Storage(10**9), 0, (3, 2), (2, 1))}
    _Pickler(out, 2).dump(OrderedDict(plans))
    assert "twice" in _refused(_zip(tmp_path / "twice.pth", {"a/data.pkl": out.getvalue(), "a/data/0": bytes(24)}))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool, torch.complex64])
def test_weights_of_the_wrong_type(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {n: t.to(dtype) for n, t in _state().items()}
    _refused(_zip(tmp_path / "type.zip", _members(policy=_saved(state))))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["0.weight", "2.bias"])
def test_weights_that_are_not_finite(tmp_path: Path, name: str, value: float) -> None:
    state = _state()
    state[f"q_net.q_net.{name}"].view(-1)[1] = value
    assert "1 values that are not finite" in _refused(_zip(tmp_path / "nan.zip", _members(policy=_saved(state))))


def test_weights_that_overflow(tmp_path: Path) -> None:
    state = {n: torch.full_like(t, 1e300, dtype=torch.float64) for n, t in _state().items()}
    assert "not finite" in _refused(_zip(tmp_path / "large.zip", _members(policy=_saved(state))))


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"q_net.q_net.2.weight": torch.ones(3, 4)}, "takes 4 numbers"),
        ({"q_net.q_net.0.bias": torch.ones(4)}, "its layer gives 3"),
        ({"q_net.q_net.0.weight": torch.ones(3)}, "2 axes"),
        ({"q_net.q_net.0.weight": torch.ones(3, 5)}, "takes 5 numbers"),
        ({"q_net.q_net.2.weight": torch.ones(4, 3), "q_net.q_net.2.bias": torch.ones(4)}, "gives 4 numbers"),
        ({"q_net.q_net.1.weight": torch.ones(3)}, "has no place"),
        ({"q_net.q_net.3.weight": torch.ones(3)}, "has no place"),
        ({"q_net.features_extractor.cnn.0.weight": torch.ones(3)}, "looks at images"),
        ({"features_extractor.cnn.0.weight": torch.ones(3)}, "looks at images"),
        ({"q_net.q_net.0.bias": torch.zeros(0)}, "shape"),
        ({"x\ny\x1b[2J": torch.zeros(2)}, "has no place"),
    ],
)
def test_networks_that_do_not_fit_together(tmp_path: Path, changes: dict[str, torch.Tensor], part: str) -> None:
    text = _refused(_zip(tmp_path / "misfit.zip", _members(policy=_saved(_state() | changes))))
    assert part in text and text.isprintable()


def test_a_missing_tensor_or_none_at_all(tmp_path: Path) -> None:
    for name in _state():
        rest = {n: t for n, t in _state().items() if n != name}
        _refused(_zip(tmp_path / "missing.zip", _members(policy=_saved(rest))))
    _refused(_zip(tmp_path / "other.zip", _members(policy=_saved({"weight": torch.ones(2, 2)}))))


# -- zips --------------------------------------------------------------------------------------------------------------


def test_absent_members(tmp_path: Path) -> None:
    for name in ("data", "policy.pth"):
        rest = {n: d for n, d in _members().items() if n != name}
        assert repr(name) in _refused(_zip(tmp_path / "absent.zip", rest))
    assert "no policy.pth" in _refused(_zip(tmp_path / "none.zip", {}))
    assert "no policy.pth" in _refused(_zip(tmp_path / "other.zip", {"a.txt": b"text"}))


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "..\\x", "C:x", "a\\b", "..", "\\\\host\\x"])
def test_names_that_lead_out(tmp_path: Path, name: str) -> None:
    assert "leads out" in _refused(_zip(tmp_path / "names.zip", _members() | {name: b"x"}))


def _directory(zipped: bytes) -> int:
    """Where the directory begins (the zip inside has one of its own)."""
    return int(struct.unpack_from("<I", zipped, zipped.rindex(b"PK\x05\x06") + 16)[0])


def _entry(path: Path, info: zipfile.ZipInfo, data: bytes = b"x") -> Path:
    _zip(path, _members())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(info, data)
    return path


def test_links_packings_passwords_and_twins(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    assert "link" in _refused(_entry(tmp_path / "link.zip", link, b"/etc/passwd"))
    for kind in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        odd = zipfile.ZipInfo("odd")
        odd.compress_type = kind
        assert "unusual" in _refused(_entry(tmp_path / "odd.zip", odd))
    good = _zip(tmp_path / "good.zip", _members()).read_bytes()
    at = _directory(good)
    (tmp_path / "secret.zip").write_bytes(good[: at + 8] + b"\x01\x00" + good[at + 10 :])
    assert "encrypted" in _refused(tmp_path / "secret.zip")
    with pytest.warns(UserWarning, match="Duplicate"):
        _entry(tmp_path / "twins.zip", zipfile.ZipInfo("data"))
    assert "twice" in _refused(tmp_path / "twins.zip")


def test_too_many_members(tmp_path: Path) -> None:
    assert "members" in _refused(_zip(tmp_path / "many.zip", _members() | {f"m{i}": b"" for i in range(64)}))
    with zipfile.ZipFile(tmp_path / "crowd.zip", "w") as archive:
        for i in range(30_000):
            archive.writestr(f"m{i}", b"")
    assert "directory" in _refused(tmp_path / "crowd.zip")


def test_members_that_overlap(tmp_path: Path) -> None:
    good = _zip(tmp_path / "good.zip", _members()).read_bytes()
    start, last = _directory(good), good.rindex(b"PK\x05\x06")
    size = 46 + len("data")
    twin = bytearray(good[start : start + size])  # a second name for the bytes of the first member
    twin[46:50] = b"atad"
    end = bytearray(good[last:])
    count, length = struct.unpack_from("<H", end, 10)[0] + 1, struct.unpack_from("<I", end, 12)[0] + size
    struct.pack_into("<HH", end, 8, count, count)
    struct.pack_into("<I", end, 12, length)
    (tmp_path / "overlap.zip").write_bytes(good[:last] + bytes(twin) + bytes(end))
    assert "overlaps" in _refused(tmp_path / "overlap.zip")


def test_bytes_in_front(tmp_path: Path) -> None:
    good = _zip(tmp_path / "good.zip", _members()).read_bytes()
    (tmp_path / "front.zip").write_bytes(b"PK\x03\x04" + bytes(60) + good)
    assert "belong to no member" in _refused(tmp_path / "front.zip")


def test_a_member_that_lies_about_its_size(tmp_path: Path) -> None:
    packed = _zip(tmp_path / "packed.zip", _members(), packing=zipfile.ZIP_DEFLATED)
    assert isinstance(load(packed), Agent)
    good = packed.read_bytes()
    real = struct.pack("<I", len(_data()))
    assert good.count(real) == 2
    for said in (10, len(_data()) + 10):
        (tmp_path / "liar.zip").write_bytes(good.replace(real, struct.pack("<I", said)))
        _refused(tmp_path / "liar.zip")


def test_zip_bombs(tmp_path: Path) -> None:
    zeros = bytes(120 * MEGABYTE)
    assert "zip bomb" in _refused(_zip(tmp_path / "flat.zip", _members(optimizer=zeros), packing=zipfile.ZIP_DEFLATED))
    assert "zip bomb" in _refused(_zip(tmp_path / "weights.zip", _members(policy=zeros), packing=zipfile.ZIP_DEFLATED))
    assert "zip bomb" in _refused(_zip(tmp_path / "data.zip", _members(data=zeros), packing=zipfile.ZIP_DEFLATED))
    inner = {"a/data.pkl": pickle.dumps({}, 2), "a/data/0": zeros[: 30 * MEGABYTE]}
    nested = _zip(tmp_path / "inner.pth", inner, packing=zipfile.ZIP_DEFLATED).read_bytes()
    assert "zip bomb" in _refused(_zip(tmp_path / "nested.zip", _members(policy=nested)))
    assert "zip bomb" in _refused(tmp_path / "inner.pth")
    chance = np.random.default_rng(0).bytes(33 * MEGABYTE)
    assert "more than" in _refused(_zip(tmp_path / "large.zip", _members(policy=chance)))


# -- JSON, safetensors, statistics -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b'{"a": "' + b"x" * (16 * MEGABYTE) + b'"}',
        b'{"a": [' + b"[]," * MEGABYTE + b"[]]}",
        b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a": ' * 50_000 + b"1" + b"}" * 50_000,
        b'{"a": ' + b"9" * 100_000 + b"}",
        b"[]",
        b"null",
        b"",
        b"\xff\xfe{}",
        b'{"a"',
    ],
    ids=["long", "rich", "deep lists", "deep objects", "long number", "list", "null", "empty", "no text", "cut"],
)
def test_json_that_is_too_much_or_none(tmp_path: Path, data: bytes) -> None:
    _refused(_zip(tmp_path / "json.zip", _members(data=data)))
    (tmp_path / "s.json").write_bytes(data)
    _refused(tmp_path / "s.json", load_normalisation)
    path = _safetensors(tmp_path / "s.safetensors")
    path.with_suffix(".json").write_bytes(data)
    _refused(path)


@pytest.mark.parametrize(
    "fields",
    [
        {"observation_space": 7, "action_space": [], "policy_kwargs": "x", "policy_class": None},
        {"policy_kwargs": {"activation_fn": "<class 'os.system'>"}},
        {"policy_kwargs": {"activation_fn": {"a": [1]}}},
        {"action_space": {":type:": "<class 'gymnasium.spaces.multi_discrete.MultiDiscrete'>"}},
        {"action_space": {":type:": "<class 'gymnasium.spaces.discrete.Discrete'>", "n": "9" * 100_000}},
        {"observation_space": {":type:": "<class 'gymnasium.spaces.box.Box'>", "_shape": "[" * 100_000}},
        {"observation_space": {":type:": "<class 'gymnasium.spaces.discrete.Discrete'>", "n": 10**30}},
        {"action_space": {":type:": "<class 'gymnasium.spaces.box.Box'>", "_shape": [1], "low": "1e999", "high": "2"}},
    ],
)
def test_plain_fields_of_any_kind(tmp_path: Path, fields: dict[str, object]) -> None:
    path = _zip(tmp_path / "plain.zip", _members(data=_data(**fields)))
    if fields.get("observation_space") == 7:
        assert isinstance(load(path), Agent)  # what is not said is taken from the tensors
    else:
        _refused(path)


def test_safetensors_with_a_header_that_lies(tmp_path: Path) -> None:
    path = _safetensors(tmp_path / "h.safetensors")
    good = path.read_bytes()
    length = struct.unpack("<Q", good[:8])[0]
    body = good[8 + length :]
    entry = {"dtype": "F32", "shape": [3, 2], "data_offsets": [0, 24]}
    for changed in (
        {"shape": [10**12, 10**12]}, {"shape": [-3, -2]}, {"shape": [0, 2]}, {"shape": "32"}, {"dtype": "I64"},
        {"data_offsets": [0, 10**15]}, {"data_offsets": [-8, 16]}, {"data_offsets": [24, 0]}, {"dtype": "F8_E4M3"},
        {"dtype": 4}, {"x": 1},
    ):  # fmt: skip
        header = {"out.weight": entry | changed, "out.bias": {"dtype": "F32", "shape": [3], "data_offsets": [24, 36]}}
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + body)
        _refused(path)
    for head in (2**63, 2**64 - 1, len(good), length + 1, length - 1, 0, 10**8):
        path.write_bytes(struct.pack("<Q", head) + good[8:])
        _refused(path)
    path.write_bytes(struct.pack("<Q", 100 * MEGABYTE) + b"{" + b" " * (3 * MEGABYTE))
    assert "header" in _refused(path)
    path.write_bytes(good + b"more")
    _refused(path)
    path.with_suffix(".json").unlink()
    assert "description" in _refused(path)


@pytest.mark.parametrize(
    "network",
    [
        {"kind": "mlp", "inputs": 10**9, "outputs": 10**9, "hidden": []},
        {"kind": "mlp", "inputs": 2, "outputs": 3, "hidden": [60_000] * 64},
        {"kind": "mlp", "inputs": 2, "outputs": 3, "hidden": [1] * 10_000},
        {"kind": "mlp", "inputs": 2, "outputs": 0, "hidden": []},
        {"kind": "mlp", "inputs": 2, "outputs": 3, "hidden": [], "scale": float("nan"), "squash": True},
        {"kind": "vin", "channels": 3, "height": 4000, "width": 4000, "outputs": 3, "iterations": 4000},
        {"kind": "os.system"},
        {"kind": ["mlp"]},
        {"kind": "transformer", "n_layers": 10**9},
        [],
    ],
)
def test_descriptions_of_absurd_networks(tmp_path: Path, network: object) -> None:
    _refused(_safetensors(tmp_path / "n.safetensors", network=network))


@pytest.mark.parametrize(
    "fields",
    [
        {"mean": [0.0], "var": [float("nan")]},
        {"mean": [0.0, 1.0], "var": [1.0]},
        {"mean": [0.0], "var": [-1.0]},
        {"mean": [0.0], "var": [0.0], "epsilon": 0.0},
        {"mean": [1e300], "var": [1.0]},
        {"mean": [[0.0]], "var": [[1.0]]},
        {"mean": "x", "var": [1.0]},
        {"mean": [], "var": []},
        {"mean": [0.0]},
        {"mean": [0.0], "var": [1.0], "clip_obs": -1.0},
        {"mean": [0.0], "var": [1.0], "clip_obs": "10"},
        {"mean": [0.0], "var": [1.0], "count": 3},
    ],
)
def test_statistics_that_are_none(tmp_path: Path, fields: dict[str, object]) -> None:
    (tmp_path / "s.json").write_text(json.dumps(fields))
    _refused(tmp_path / "s.json", load_normalisation)
    _refused(_safetensors(tmp_path / "n.safetensors", normalise=fields))
    try:
        np.savez(tmp_path / "s.npz", **{n: np.asarray(v) for n, v in fields.items()})
    except ValueError:
        return
    _refused(tmp_path / "s.npz", load_normalisation)


def test_statistics_that_are_pickles(tmp_path: Path, bomb: _Bomb) -> None:
    (tmp_path / "s.pkl").write_bytes(pickle.dumps(bomb))
    assert "convert_vecnormalize" in _refused(tmp_path / "s.pkl", load_normalisation)
    objects = np.empty(2, dtype=object)
    objects[:] = bomb
    np.savez(tmp_path / "s.npz", mean=objects, var=np.ones(2))
    assert "pickled" in _refused(tmp_path / "s.npz", load_normalisation)


# -- what is another kind of file --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "part"),
    [
        ("a.onnx", b"\x08\x07\x12\x07pytorch", "ONNX"),
        ("a.msgpack", b"\x81\xa6params", "msgpack"),
        ("a.h5", b"\x89HDF\r\n\x1a\n", "HDF5"),
        ("a.zip", b"\x1f\x8b\x08", "gzip"),
        ("a.tar", b"policy.pth" + bytes(100), "tar archive"),
        ("a.joblib", b"\x80\x04\x95", "pickle"),
        ("a.bin", b"\x80\x04\x95", "bare pickle"),
        ("a.bin", b"nothing that anybody knows", "is none of"),
        ("a.zip", b"", "is empty"),
        ("a.npy", b"\x93NUMPY", "say world="),
        ("a.zip", b"PK\x03\x04", "no whole zip"),
        ("a.pth", b"no zip at all", "is none of"),
    ],
)
def test_other_files_say_what_to_do_instead(tmp_path: Path, name: str, data: bytes, part: str) -> None:
    (tmp_path / name).write_bytes(data)
    assert part in _refused(tmp_path / name)


@pytest.mark.parametrize(
    ("members", "part"),
    [
        ({"m/constants.pkl": b"x", "m/data.pkl": b"x"}, "TorchScript"),
        ({"m/code/m.py": b"x", "m/data.pkl": b"x"}, "TorchScript"),
        ({"m/archive_format": b"pt2", "m/models/m.json": b"{}"}, ".pt2"),
        ({"data": b"{}", "parameters": b"x", "parameter_list": b"[]"}, "Stable-Baselines 2"),
        ({"mean.npy": b"x"}, "normalise="),
        ({"a/data.pkl": b"x", "b/data.pkl": b"x"}, "2 data.pkl"),
        ({"data": b"{}", "policy.pth": b"no zip at all"}, "no file of torch.save"),
    ],
)
def test_other_zips_say_what_to_do_instead(tmp_path: Path, members: dict[str, bytes], part: str) -> None:
    assert part in _refused(_zip(tmp_path / "other.zip", members))


def test_folders_pipes_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert "without agent.json" in _refused(tmp_path / "folder")
    assert "no such file" in _refused(tmp_path / "none.zip")
    os.mkfifo(tmp_path / "pipe.zip")
    assert "no regular file" in _refused(tmp_path / "pipe.zip")
    with pytest.raises(FileError, match=r"nul.x00.zip': (there is no such file|cannot be opened)"):
        load(tmp_path / "nul\0.zip")
    assert "no such file" in _refused(tmp_path / "none.npz", load_normalisation)


def test_arguments_that_are_none(tmp_path: Path) -> None:
    path = _zip(tmp_path / "good.zip", _members())
    for options in ({"decision": "best"}, {"kind": "table"}, {"activation": "sin"}):
        with pytest.raises(FileError, match="unknown"):
            load(path, **options)  # type: ignore[arg-type]
    np.save(tmp_path / "q.npy", np.zeros((25, 4)))
    with pytest.raises(FileError, match="no numbered states"):
        load(tmp_path / "q.npy", world=make_world("MountainCar"))


@pytest.mark.parametrize(
    ("changes", "world", "part"),
    [
        ({"head": "mean"}, None, "action_range"),
        ({"head": "mean", "action_range": [[-1], [1]]}, None, "3 numbers each"),
        ({"head": "mean", "action_range": [[-1] * 3, ["x"] * 3]}, None, "action_range"),
        ({"head": "mean", "action_range": 3}, None, "action_range"),
        ({"head": "mean", "action_range": [[-1] * 3, [1] * 3]}, "MountainCar", "discrete actions"),
        ({}, "CartPole", "CartPole has 4 and 2"),
        ({}, "Pendulum", "continuous actions"),
        ({}, "OpenGrid", "numbered states"),
        ({"head": ["logits"]}, None, "head is"),
        ({"tensors": {"out.weight": "out.weight"}}, None, "tensors must name"),
        ({"tensors": {"out.weight": "out.weight", "out.bias": "other"}}, None, "no tensor 'other'"),
        ({"normalise": [1]}, None, "object with mean"),
        ({"normalise": {"mean": [0.0], "var": [1.0]}}, None, "statistics are of 1"),
        ({"network": {"kind": "cnn", "channels": 1, "height": 2, "width": 1, "outputs": 3, "convs": [], "hidden": 2}},
         None, "needs a kind"),
    ],
)  # fmt: skip
def test_descriptions_that_do_not_fit(tmp_path: Path, changes: dict[str, object], world: str | None, part: str) -> None:
    path = _safetensors(tmp_path / "d.safetensors", **changes)
    text = _refused(path, lambda p: load(p, world=None if world is None else make_world(world)))
    assert part in text


@pytest.mark.parametrize(
    ("state", "data", "part"),
    [
        ("mean", {"action_space": {}}, "does not say the range"),
        ("mean", {"action_space": {"low": "[-1. -2. -1.]", "high": "[1. 2. 1.]"}}, "uneven range"),
        ("mean", {"action_space": {"low": "[1. 1. 1.]", "high": "[-1. -1. -1.]"}}, "no range"),
        ("mean", {"action_space": {"n": "3"}}, "its JSON says other"),
        ("logits", {"action_space": {"low": "-1", "high": "1"}}, "its JSON says other"),
        ("logits", {"action_space": {"n": "4"}}, "space of actions has 4"),
        ("logits", {"observation_space": {"n": "2"}, "normalise": True}, "cannot be normalised"),
        ("no bias", {}, "some have none"),
    ],
)
def test_spaces_that_do_not_fit(tmp_path: Path, state: str, data: dict[str, dict[str, str]], part: str) -> None:
    names = {"mean": ("actor.latent_pi.0", "actor.mu"), "logits": ("mlp_extractor.policy_net.0", "action_net")}
    first, last = names.get(state, names["logits"])
    old = {first: "q_net.q_net.0", last: "q_net.q_net.2"}
    tensors = {f"{new}.{end}": _state()[f"{was}.{end}"] for new, was in old.items() for end in ("weight", "bias")}
    if state == "no bias":
        del tensors["action_net.bias"]
    kinds = {"n": "<class 'gymnasium.spaces.discrete.Discrete'>", "low": "<class 'gymnasium.spaces.box.Box'>"}
    fields: dict[str, object] = {}
    for name, space in data.items():
        if name != "normalise":
            kind = next((k for k in kinds if k in space), None)
            fields[name] = space | ({":type:": kinds[kind], "_shape": "[3]"} if kind else {})
    path = _zip(tmp_path / "space.zip", _members(data=_data(**fields), policy=_saved(tensors)))
    given = Normalisation(np.zeros(2), np.ones(2)) if "normalise" in data else None
    assert part in _refused(path, lambda p: load(p, normalise=given))


def test_networks_that_are_too_large(tmp_path: Path) -> None:
    state = {n: t.half() for n, t in _state(400_000).items()}
    assert "weights, more than" in _refused(_zip(tmp_path / "w.zip", _members(policy=_saved(state))))
    many = {f"t{i}": torch.ones(1) for i in range(600)}
    assert "600 tensors" in _refused(_zip(tmp_path / "many.zip", _members(policy=_saved(many))))
    space = {":type:": "<class 'gymnasium.spaces.discrete.Discrete'>", "n": "5000"}
    wide = {"q_net.q_net.0.weight": torch.ones(3, 5000), "q_net.q_net.0.bias": torch.ones(3)}
    path = _zip(tmp_path / "n.zip", _members(data=_data(observation_space=space), policy=_saved(wide)))
    assert "5000 states apart" in _refused(path)


# -- any byte ----------------------------------------------------------------------------------------------------------


def _cut_points(n: int, most: int) -> list[int]:
    return list(range(n)) if n <= most else sorted({*range(0, n, n // most), *range(n - 100, n)})


@pytest.mark.parametrize("kind", ["zip", "pth", "safetensors", "npz", "large"])
def test_a_file_cut_at_any_byte(tmp_path: Path, kind: str) -> None:
    reader: object = load
    if kind == "npz":
        np.savez(tmp_path / "good", mean=np.zeros(2), var=np.ones(2))
        good, reader = (tmp_path / "good.npz").read_bytes(), load_normalisation
    elif kind == "safetensors":
        good = _safetensors(tmp_path / "cut.safetensors").read_bytes()
    elif kind == "pth":
        good = _saved(_state())
    else:
        state = _state(3 if kind == "zip" else 20_000)
        good = _zip(tmp_path / "good.zip", _members(policy=_saved(state))).read_bytes()
    path = tmp_path / f"cut.{'zip' if kind == 'large' else kind}"
    path.write_bytes(good)
    if kind != "pth":  # whose actions are not said to be discrete
        reader(path)  # type: ignore[operator]
    for end in _cut_points(len(good), 200 if kind == "large" else 6000):
        path.write_bytes(good[:end])
        _refused(path, reader)


# -- memory ------------------------------------------------------------------------------------------------------------

_MEASURE = """
import json, pathlib, re, sys
from retarget.errors import FileError
from retarget.io.load import load
def peak():  # of this program alone: what getrusage says begins with the peak of the program that started it
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]) / 1024
good, *paths = sys.argv[1:]
load(good)
before = peak()
peaks = []  # of each file and those before it: none may have taken too much
for path in paths:
    try:
        load(path)
        peaks.append("read")
    except FileError:
        peaks.append(peak() - before)
print(json.dumps(peaks))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc, which Linux has")
def test_what_hungry_files_take(tmp_path: Path) -> None:
    good = _zip(tmp_path / "good.zip", _members())
    zeros, chance = bytes(64 * MEGABYTE), np.random.default_rng(0).bytes(30 * MEGABYTE)
    nan = {n: torch.full_like(t, float("nan")) for n, t in _state(300_000).items()}
    wide = {n: torch.full_like(t, 1e300, dtype=torch.float64) for n, t in _state(340_000).items()}
    paths = [
        _zip(tmp_path / "flat.zip", _members(policy=zeros), packing=zipfile.ZIP_DEFLATED),
        _zip(tmp_path / "junk.zip", _members(policy=chance)),
        _zip(tmp_path / "nan.zip", _members(policy=_saved(nan))),
        _zip(tmp_path / "wide.zip", _members(policy=_saved(wide))),
        _zip(tmp_path / "rich.zip", _members(data=b'{"a": [' + b"[]," * (5 * MEGABYTE) + b"[]]}")),
        _zip(tmp_path / "deep.zip", _members(data=b'{"a": ' + b"[" * (8 * MEGABYTE))),
        _zip(tmp_path / "text.zip", _members(data=b'{"a": "' + b"\\u1234" * (2 * MEGABYTE))),
        _lying(tmp_path / "liar.pth", _Storage(10**12), 0, (10**6, 10**6), (10**6, 1)),
        _safetensors(tmp_path / "n.safetensors", network={"kind": "mlp", "inputs": 60_000, "outputs": 60_000}),
    ]
    command = [sys.executable, "-c", _MEASURE, str(good), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    peaks = dict(zip([p.name for p in paths], json.loads(done.stdout), strict=True))
    assert all(p != "read" and p < 200 for p in peaks.values()), peaks
