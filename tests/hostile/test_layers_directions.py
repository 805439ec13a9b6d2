"""Files of directions and of their figures that are broken, hostile, or simply something else: one line each."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from retarget.analysis.layers.directions import MAX_SHAPE, SavedDirections, geometry, read_evaluations, read_mean_diffs
from retarget.errors import FileError, LayersError

GOOD = np.random.default_rng(0).standard_normal((2, 3, 4))


class _Trap:
    """Would leave a file behind if it were unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def _refused(path: Path, *words: str) -> None:
    with pytest.raises(FileError) as found:
        read_mean_diffs(path)
    text = str(found.value)
    assert "\n" not in text and text.startswith(repr(str(path))) and len(text) < 900, text
    assert all(word in text for word in words), text


def _same(path: Path, array: np.ndarray = GOOD) -> None:
    found = read_mean_diffs(path)
    assert found.label == path.name and found.vectors.dtype == np.float64 and not found.vectors.flags.writeable
    np.testing.assert_array_equal(found.vectors, array)


# ------------------------------------------------------------------------------------------------------------ good ones


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_tensors_of_torch(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = torch.tensor(GOOD, dtype=dtype)
    want = tensor.double().numpy()
    for name, value in {
        "bare.pt": tensor, "named.pth": {"mean_diffs": tensor}, "parameter.pt": torch.nn.Parameter(tensor),
        "ordered.pt": OrderedDict(a=tensor), "beside.pt": {"a": tensor, "step": torch.tensor(3)},
        "strided.pt": torch.stack([tensor, tensor], -1)[..., 0],
    }.items():  # fmt: skip
        torch.save(value, tmp_path / name)
        _same(tmp_path / name, want)


def test_other_kinds_of_files(tmp_path: Path) -> None:
    for dtype in ("<f8", "<f4", "<f2", ">f8"):
        np.save(tmp_path / "a.npy", GOOD.astype(dtype))
        _same(tmp_path / "a.npy", GOOD.astype(dtype).astype(np.float64))
    np.save(tmp_path / "f.npy", np.asfortranarray(GOOD))
    _same(tmp_path / "f.npy")
    save_file({"d": GOOD.astype(np.float32), "n": np.arange(3)}, tmp_path / "a.safetensors")
    _same(tmp_path / "a.safetensors", GOOD.astype(np.float32).astype(np.float64))


# ------------------------------------------------------------------------------------------------------------- bad ones


def test_nothing_is_run(tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    for name, data in {"a.pt": _Trap(trap), "b.pt": {"x": _Trap(trap)}, "c.pt": [torch.zeros(2), _Trap(trap)]}.items():
        torch.save(data, tmp_path / name)
        _refused(tmp_path / name)
    (tmp_path / "p.pt").write_bytes(pickle.dumps(_Trap(trap)))
    _refused(tmp_path / "p.pt", "pickle", "save one tensor")
    torch.save(torch.tensor(GOOD), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    _refused(tmp_path / "old.pt", "pickle")
    np.save(tmp_path / "o.npy", np.array([[[_Trap(trap)]]], dtype=object), allow_pickle=True)
    _refused(tmp_path / "o.npy", "Python objects")
    (tmp_path / "q.npy").write_bytes(pickle.dumps(_Trap(trap)))
    _refused(tmp_path / "q.npy", "no .npy file")
    assert not trap.exists()


def _with_program(path: Path, change: Callable[[bytes], bytes]) -> None:
    """The file of a tensor with another program in it."""
    buffer = io.BytesIO()
    torch.save(torch.tensor(GOOD), buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, change(data) if name.endswith("data.pkl") else data)


def test_programs_that_are_not_a_tensors(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    _with_program(path, lambda p: p)
    _same(path)
    call = b"cposix\nsystem\nX\x02\x00\x00\x00ls\x85R"
    for change in (
        lambda p: p[:-1],  # no end
        lambda p: p[:-1] + b"0.",  # throws the tensor away
        lambda p: p[:-1] + call + b".",  # more behind the tensor
        lambda p: p + call + b".",  # behind its end
        lambda p: p[:2] + call + b"0" + p[2:],  # before it
        lambda p: p.replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_v3"),
        lambda p: b"\x80\x02]q\x00" + p[2:-1] + b"a.",  # a list of it
        lambda p: b"\x80\x02N.",
        lambda p: b"",
        lambda p: p[:2] + b"}" + p[2:],
    ):
        _with_program(path, change)
        _refused(path)


def test_sizes_that_are_not_there(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    # 2 x 3 x 4 numbers, of which the program says more
    _with_program(path, lambda p: p.replace(b"K\x02K\x03K\x04\x87", b"M\xff\xffK\x03K\x04\x87"))
    _refused(path, "does not fit")
    _with_program(path, lambda p: p.replace(b"K\x18", b"J\xff\xff\xff\x7f"))
    _refused(path, "declares")
    np.save(tmp_path / "a.npy", GOOD)
    data = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(data[:-1])
    _refused(tmp_path / "a.npy", "holds 191 bytes")
    (tmp_path / "a.npy").write_bytes(data + b"\0" * 8)
    _refused(tmp_path / "a.npy", "holds 200 bytes")
    (tmp_path / "a.npy").write_bytes(data.replace(b"(2, 3, 4)", b"(999, 99, 4)".ljust(9)[:9]))
    _refused(tmp_path / "a.npy")
    (tmp_path / "big.npy").write_bytes(data[:10] + data[10:].replace(b"(2, 3, 4), }   ", b"(4000, 900, 4)}"))
    _refused(tmp_path / "big.npy", "it was cut off")


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((3, 4)), "not [position, layer, d]"),
        (np.zeros((1, 2, 3, 4)), "not [position, layer, d]"),
        (np.zeros(()), "not [position, layer, d]"),
        (np.zeros((0, 2, 3)), "not [position, layer, d]"),
        (np.zeros((1, MAX_SHAPE[1] + 1, 2)), "make sense"),
        (np.zeros((MAX_SHAPE[0] + 1, 1, 2)), "make sense"),
        (np.zeros((2, 2, 1)), "make sense"),
        (np.where(np.arange(24).reshape(2, 3, 4) == 17, np.nan, 1.0), "holds nan at position -1, layer 1"),
        (np.where(np.arange(24).reshape(2, 3, 4) == 3, -np.inf, 1.0), "holds -inf at position -2, layer 0"),
    ],
)
def test_arrays_that_are_no_directions(tmp_path: Path, array: np.ndarray, words: str) -> None:
    np.save(tmp_path / "a.npy", array)
    _refused(tmp_path / "a.npy", words)
    save_file({"a": array}, tmp_path / "a.safetensors")
    _refused(tmp_path / "a.safetensors", words)
    if array.size:
        torch.save(torch.tensor(array), tmp_path / "a.pt")
        _refused(tmp_path / "a.pt", words)


def test_files_of_other_things(tmp_path: Path) -> None:
    _refused(tmp_path / "missing.pt", "no such file", "save one tensor")
    _refused(tmp_path, "no suffix")
    (tmp_path / "a.bin").write_bytes(b"x")
    _refused(tmp_path / "a.bin", ".bin", ".safetensors")
    for suffix in (".pt", ".safetensors", ".npy"):
        for name, data in {
            "empty": b"",
            "noise": b"\x07" * 300,
            "text": b"hello there\n",
            "zip": b"PK\x03\x04" * 9,
        }.items():
            path = tmp_path / f"{name}{suffix}"
            path.write_bytes(data)
            _refused(path)
    np.save(tmp_path / "i.npy", np.zeros((2, 3, 4), dtype=np.int64))
    _refused(tmp_path / "i.npy", "'<i8'")
    np.save(tmp_path / "c.npy", np.zeros((2, 3, 4), dtype=np.complex128))
    _refused(tmp_path / "c.npy", "'<c16'")
    np.save(tmp_path / "r.npy", np.zeros((2, 3), dtype=[("a", "f8")]))
    _refused(tmp_path / "r.npy")
    torch.save(torch.zeros((2, 3, 4), dtype=torch.int64), tmp_path / "i.pt")
    _refused(tmp_path / "i.pt", "holds 0 real tensors (none)")
    torch.save({"a": torch.zeros(2, 3, 4), "b": torch.zeros(2, 3, 4)}, tmp_path / "two.pt")
    _refused(tmp_path / "two.pt", "holds 2 real tensors ('a', 'b')")
    save_file({"a": GOOD, "b": GOOD}, tmp_path / "two.safetensors")
    _refused(tmp_path / "two.safetensors", "holds 2 real tensors")
    save_torch({"a": torch.zeros((2, 3, 4), dtype=torch.bfloat16)}, tmp_path / "bf.safetensors")
    _refused(tmp_path / "bf.safetensors", "BF16")


@settings(max_examples=60, deadline=None)
@given(suffix=st.sampled_from([".pt", ".npy", ".safetensors"]), data=st.data())
def test_files_with_a_changed_byte(suffix: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever byte was changed: directions come back, or one line."""
    path = tmp_path_factory.mktemp("changed") / f"a{suffix}"
    if suffix == ".pt":
        torch.save(torch.tensor(GOOD), path)
    elif suffix == ".npy":
        np.save(path, GOOD)
    else:
        save_file({"a": GOOD}, path)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.integers(1, len(raw)))] if data.draw(st.booleans()) else raw)
    try:
        found = read_mean_diffs(path)
    except FileError as error:
        assert "\n" not in str(error)
    else:
        assert found.vectors.ndim == 3 and np.isfinite(found.vectors).all()


# -------------------------------------------------------------------------------------------------------------- figures

ROW = {"position": -1, "layer": 2, "refusal_score": 0.5, "steering_score": 1, "kl_div_score": 0.0}


def test_figures_come_back(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([ROW, ROW | {"layer": 3, "kl_div_score": float("nan"), "more": [1]}]))
    one, two = read_evaluations(path)
    assert (one.position, one.layer, one.refusal_score, one.steering_score, one.kl_div_score) == (-1, 2, 0.5, 1.0, 0.0)
    assert two.layer == 3 and np.isnan(two.kl_div_score)


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "{}", "3", "[3]", "[" * 100_000, "\xff", json.dumps([{"position": -1}]), json.dumps([ROW, ROW]),
        *(json.dumps([ROW | {k: v}]) for k, v in [
            ("position", "-1"), ("position", 0.5), ("position", True), ("position", -(10**30)), ("layer", -1),
            ("layer", 10**6), ("layer", None), ("refusal_score", "1"), ("steering_score", None), ("kl_div_score", [1]),
            ("kl_div_score", True), ("refusal_score", 10**400),
        ]),
        "[" + json.dumps(ROW)[:-1] + ', "layer": }]', "9" * 5000,
    ],
)  # fmt: skip
def test_figures_that_are_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(FileError) as found:
        read_evaluations(path)
    assert "\n" not in str(found.value) and len(str(found.value)) < 900


def test_figures_that_are_no_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.json"):
        with pytest.raises(FileError):
            read_evaluations(path)
    (tmp_path / "long.json").write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(FileError, match="more than"):
        read_evaluations(tmp_path / "long.json")


# --------------------------------------------------------------------------------------------------------------- in use


def test_directions_by_place() -> None:
    saved = SavedDirections("a.pt", GOOD)
    assert (saved.positions, saved.n_layers, saved.width) == ((-2, -1), 3, 4)
    one = saved.direction(-2, 1)
    assert (one.position, one.layer, one.digest) == ("-2", 1, None)
    np.testing.assert_array_equal(one.vector, GOOD[0, 1])
    for position, layer in ((0, 0), (-3, 0), (-1, 3), (-1, -1)):
        with pytest.raises(LayersError, match="positions -2 to -1 and layers 0 to 2"):
            saved.direction(position, layer)
    with pytest.raises(LayersError, match="must be finite"):
        SavedDirections("a", np.zeros((2, 2)))


def test_geometry_of_planted_directions() -> None:
    """Orthogonal, parallel and opposite directions of known lengths; one that is zero, one that is rounding."""
    e = np.eye(4)
    vectors = np.stack([[2 * e[0], 2 * e[1], 2 * e[2]], [e[0], -3 * e[0], 2 * e[0]], [0 * e[0], e[1] * 1e-13, e[1]]])
    for scale in (1.0, 1e-200, 1e200, -1.0):
        found = geometry(SavedDirections("a", vectors * scale))
        want = np.array([2, 2, 2, 1, 3, 2, 0, 1e-13, 1]) * abs(scale)
        np.testing.assert_allclose(found.norms["norm"], want, rtol=1e-12)
        assert found.adjacent["cos"].to_list() == [0.0, 0.0, -1.0, -1.0, None, None]
        assert found.adjacent["reason"].is_null().to_list() == [True] * 4 + [False] * 2
        rows = {(r["position"], r["layer"], r["other_layer"]): r for r in found.cosines.rows(named=True)}
        assert len(rows) == 3 * 6 and rows["-2", 2, 0]["cos"] == 1.0 and rows["-2", 1, 0]["cos"] == -1.0
        assert rows["-1", 2, 2]["cos"] == 1.0 and rows["-1", 2, 1]["cos"] is None and rows["-1", 2, 1]["reason"]
        assert found.dimensions["position"].to_list() == [-3, -2, -1, None]
        np.testing.assert_allclose(found.dimensions["participation_ratio"][:3], [3.0, 1.0, 1.0], rtol=1e-12)
        np.testing.assert_allclose(found.dimensions["participation_ratio_unit"][:3], [3.0, 1.0, 1.0], rtol=1e-12)
    nothing = geometry(SavedDirections("a", np.zeros((1, 2, 3))))
    assert nothing.dimensions["participation_ratio"].to_list() == [None, None]
    assert nothing.adjacent["cos"].to_list() == [None] and nothing.norms["norm"].to_list() == [0.0, 0.0]
