"""Broken and malicious files: each is one line within a second, and no code of theirs runs."""

from __future__ import annotations

import io
import pickle
import struct
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from retarget.agent import Agent
from retarget.envs import make_world
from retarget.errors import FileError
from retarget.io.tables import load_table

WORLD = make_world("OpenGrid", size=5)
S, A = WORLD.model.n_states, WORLD.model.n_actions
Q = -np.arange(1.0, S * A + 1).reshape(S, A)


@contextmanager
def _within_a_second() -> Iterator[None]:
    """A second of computing: the time that other programs take from this one does not count."""
    began = time.process_time()
    yield
    assert time.process_time() - began < 1.0


def _refused(path: Path) -> str:
    with _within_a_second(), pytest.raises(FileError) as caught:
        load_table(path, WORLD)
    assert "\n" not in str(caught.value) and path.name in str(caught.value)
    return str(caught.value)


def _bytes(suffix: str, folder: Path) -> bytes:
    path = folder / f"good.{suffix}"
    if suffix == "npy":
        np.save(path, Q)
    elif suffix == "npz":
        np.savez(path, q=Q)
    else:
        pl.DataFrame({f"a{i}": Q[:, i] for i in range(A)}).write_parquet(path)
    load_table(path, WORLD)
    return path.read_bytes()


@pytest.mark.parametrize("suffix", ["npy", "npz", "parquet"])
def test_a_file_cut_at_any_byte(tmp_path: Path, suffix: str, capfd: pytest.CaptureFixture[str]) -> None:
    good = _bytes(suffix, tmp_path)
    path = tmp_path / f"cut.{suffix}"
    for end in range(len(good)):
        path.write_bytes(good[:end])
        _refused(path)


@pytest.mark.parametrize("suffix", ["npy", "npz", "parquet"])
def test_a_file_with_bytes_changed(tmp_path: Path, suffix: str, capfd: pytest.CaptureFixture[str]) -> None:
    good = _bytes(suffix, tmp_path)
    path = tmp_path / f"bent.{suffix}"
    chance = np.random.default_rng(1)
    for at in range(0, len(good), 3):
        flip = bytes([good[at] ^ int(chance.integers(1, 256))])
        path.write_bytes(good[:at] + flip + good[at + 1 :])
        with _within_a_second():
            try:
                assert isinstance(load_table(path, WORLD), Agent)  # a changed number is still a number
            except FileError as error:
                assert "\n" not in str(error)


def test_bytes_after_the_end(tmp_path: Path) -> None:
    path = tmp_path / "long.npy"
    path.write_bytes(_bytes("npy", tmp_path) + b"more")
    assert "bytes" in _refused(path)


class _Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return (pytest.fail, ("code of the file was run",))


def test_pickles_never_run(tmp_path: Path) -> None:
    objects = np.empty((S, A), dtype=object)
    objects[:] = _Bomb()
    np.save(tmp_path / "objects.npy", objects, allow_pickle=True)
    assert "pickled Python objects" in _refused(tmp_path / "objects.npy")
    np.savez(tmp_path / "objects.npz", q=objects)
    assert "pickled Python objects" in _refused(tmp_path / "objects.npz")
    (tmp_path / "plain.npy").write_bytes(pickle.dumps(_Bomb()))
    assert "no whole .npy file" in _refused(tmp_path / "plain.npy")


def _npy(header: str, version: int = 1) -> bytes:
    text = header.encode("latin1") + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 4), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999999999999999, 99999999999999999999), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (-1, 4), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (25, 4), }",
        "{'descr': '|V8', 'fortran_order': False, 'shape': (25, 4), }",
        "{'descr': [('a', '<f8'), ('b', '|O')], 'fortran_order': False, 'shape': (25,), }",
        "{'descr': '<c16', 'fortran_order': False, 'shape': (25, 4), }",
        "{'descr': '<U9999999', 'fortran_order': False, 'shape': (25, 4), }",
        "{'descr': '<M8[ns]', 'fortran_order': False, 'shape': (25, 4), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (0, 4), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (), }",
        "{'descr': '<f8', 'shape': (25, 4), }",
        "__import__('os').system('false')",
        "(" * 5000,
        "[" * 9000,
        "-" * 9000 + "1",
        "{" + "'a':" * 2000,
    ],
)
def test_headers_that_lie(tmp_path: Path, header: str) -> None:
    for version in (1, 2, 3):
        path = tmp_path / f"v{version}.npy"
        path.write_bytes(_npy(header, version) + b"\0" * 16)
        _refused(path)


def test_a_zip_whose_member_would_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("q.npy", "w", force_zip64=True) as out,
    ):
        out.write(_npy("{'descr': '<f8', 'fortran_order': False, 'shape': (40000000, 1), }"))
        block = bytes(1 << 20)
        for _ in range(300):
            out.write(block)
    assert path.stat().st_size < 1 << 20
    assert "declares" in _refused(path)


def test_a_zip_that_lies_about_a_size(tmp_path: Path) -> None:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("q.npy", bytes(50 << 20))
    real, said = struct.pack("<I", 50 << 20), struct.pack("<I", 1000)
    path = tmp_path / "liar.npz"
    path.write_bytes(data.getvalue().replace(real, said))
    _refused(path)


def test_a_zip_with_nothing_or_nothing_for_us(tmp_path: Path) -> None:
    path = tmp_path / "none.npz"
    with zipfile.ZipFile(path, "w"):
        pass
    assert "holds 0 arrays (none)" in _refused(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../q.txt", "text")
    assert "holds 0 arrays (none)" in _refused(path)


def test_a_parquet_file_that_declares_too_many_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pl.DataFrame({"a": pl.repeat(0.0, 40_000_000, eager=True)}).write_parquet(path)
    assert path.stat().st_size < 1 << 22
    assert "declares 40000000 rows" in _refused(path)


@pytest.mark.parametrize("text", [b"\xff\xfe1,2\n", b"\0\0\0\0", b"1,2,3,4\n" * 20 + b"\x80", b'"' * 9, b"," * 300_000])
def test_text_that_is_none(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(text)
    _refused(path)


def test_one_endless_field(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(b"9" * 1_000_000)
    _refused(path)
    path.write_bytes(b"1e" + b"9" * 100_000 + b"\n")
    _refused(path)
