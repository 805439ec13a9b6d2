"""Reading files that nobody vouches for: sizes before memory, structure before values, nothing ever unpickled."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

import numpy as np

from retarget.errors import FileError

#: JSON, and the header of a safetensors file, have at most so many bytes.
MAX_JSON = 1 << 20
#: All tensors of one file together.
MAX_TENSORS = 4 << 30
#: Tensors in one file, and axes of one tensor.
MAX_ENTRIES, MAX_AXES = 8192, 8

#: Types of numbers that are read, by their safetensors names.
DTYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "I16": np.dtype("<i2"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}


def fail(file: Path, message: str) -> NoReturn:
    """Raise FileError in one line that begins with the file."""
    raise FileError(" ".join(f"{str(file)!r}: {message}".split()))


def short(error: BaseException) -> str:
    """An error of somebody else's in a few words of one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def open_bounded(file: Path, limit: int, *, remedy: str) -> tuple[BinaryIO, int]:
    """An open regular file and its size, which is above 0 and at most the limit.

    Raises:
        FileError: with the remedy, where it is missing, empty, too large, or no regular file.
    """
    try:
        if not file.exists():
            fail(file, f"there is no such file; {remedy}")
        if not file.is_file():  # a pipe would block, a device would never end
            fail(file, f"is no regular file; {remedy}")
        size = file.stat().st_size
        if size > limit:
            fail(file, f"has {size} bytes, more than the {limit} that it may have; {remedy}")
        if size == 0:
            fail(file, f"is empty; {remedy}")
        return file.open("rb"), size
    except (OSError, ValueError) as error:
        if isinstance(error, FileError):
            raise
        fail(file, f"cannot be opened ({short(error)}); check the path and its permissions")


def read_json(file: Path, data: bytes, *, what: str = "it") -> object:
    """What JSON text holds: names once each, finite numbers, of any depth that Python can read.

    Raises:
        FileError: where it is no such text.
    """

    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a name occurs twice")
        return found

    def finite(text: str) -> float:
        number = float(text)
        if not math.isfinite(number):
            raise ValueError(f"{text[:40]} is not finite")
        return number

    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=once, parse_constant=finite, parse_float=finite)
    except (ValueError, RecursionError) as error:
        fail(file, f"{what} is no JSON that can be read ({short(error)}); save it again")


@dataclass(frozen=True)
class Entry:
    """A tensor that a safetensors header declares: type, shape, and where its bytes are behind the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def read_header(file: Path, handle: BinaryIO, size: int) -> tuple[dict[str, Entry], int]:
    """Tensors that a safetensors file declares, and where its data begin. Its data are not read.

    Every byte of the file belongs to the header or to one tensor, in order, without holes.

    Args:
        file: for messages.
        handle: open at its beginning.
        size: bytes of the file.

    Raises:
        FileError: where the header is too long, is broken, or does not fit the file.
    """
    start = handle.read(8)
    if len(start) < 8:
        fail(file, "is cut off within its first 8 bytes; save it again")
    length = struct.unpack("<Q", start)[0]
    if length > MAX_JSON:
        fail(file, f"declares a header of {length} bytes, more than {MAX_JSON}; it is no safetensors file of weights")
    if 8 + length > size:
        fail(file, f"declares a header of {length} bytes and has {size - 8} behind it; it was cut off: save it again")
    header = read_json(file, handle.read(length), what="its header")
    if not isinstance(header, dict) or len(header) > MAX_ENTRIES:
        fail(file, f"has a header that is no table of at most {MAX_ENTRIES} tensors; save it again")
    entries = {name: _entry(file, name, value) for name, value in header.items() if name != "__metadata__"}
    at = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != at:
            fail(file, f"tensor {name!r} begins at byte {entry.begin}, not at {at}; it was changed: save it again")
        at = entry.end
    if 8 + length + at != size:
        fail(file, f"declares {at} bytes of tensors and has {size - 8 - length}; it was cut off: save it again")
    return entries, 8 + length


def _entry(file: Path, name: str, value: object) -> Entry:
    shown = repr(name[:80])
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        fail(file, f"tensor {shown} needs dtype, shape and data_offsets and no more; save it again")
    dtype, shape, where = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        fail(file, f"tensor {shown} has numbers of type {str(dtype)[:40]!r}; those read are {', '.join(DTYPES)}")
    if not _naturals(shape) or len(shape) > MAX_AXES or not _naturals(where) or len(where) != 2:
        fail(file, f"tensor {shown} has a shape or place that is none; save it again")
    entry = Entry(dtype, tuple(shape), where[0], where[1])
    if entry.end - entry.begin != entry.size * DTYPES[dtype].itemsize:
        fail(file, f"tensor {shown} of shape {entry.shape} does not fill its {entry.end - entry.begin} bytes")
    return entry


def _naturals(value: object) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n <= MAX_TENSORS for n in value)


def read_tensor(file: Path, handle: BinaryIO, entry: Entry, data: int) -> np.ndarray:
    """One tensor's numbers; `data` is where the header ends. Its size is in the header, which was checked."""
    handle.seek(data + entry.begin)
    raw = handle.read(entry.end - entry.begin)
    if len(raw) != entry.end - entry.begin:
        fail(file, "was cut off while it was read; try again")
    if entry.dtype == "BOOL" and np.frombuffer(raw, np.uint8).max(initial=0) > 1:
        fail(file, "holds a truth value that is neither 0 nor 1; save it again")
    return np.frombuffer(raw, DTYPES[entry.dtype]).reshape(entry.shape)


def tensor_bytes(arrays: Mapping[str, np.ndarray], *, names: Iterable[str] | None = None) -> bytes:
    """Named arrays as the bytes of a safetensors file, those of 8 bytes a number first, so that all are aligned."""
    from safetensors.numpy import save

    order = list(arrays if names is None else names)
    return bytes(save({n: np.ascontiguousarray(arrays[n]) for n in order}))
