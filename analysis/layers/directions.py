"""Directions that others saved: read without trusting the file, and what they look like beside each other."""

from __future__ import annotations

import ast
import io
import json
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from retarget.analysis.layers.columns import COSINES
from retarget.analysis.layers.select import Evaluation
from retarget.analysis.layers.steering import Direction
from retarget.errors import LayersError
from retarget.io.archive import opened
from retarget.io.limits import MAX_JSON, fail, open_bounded, read_header, read_tensor, short
from retarget.io.state_dict import MAX_BYTES, read_state_dict

if TYPE_CHECKING:
    import polars as pl

SUFFIXES = (".pt", ".pth", ".safetensors", ".npy")
#: Most positions, layers and coordinates.
MAX_SHAPE = (4096, 1024, 1 << 17)
#: A direction of less than this share of the longest one's length is rounding.
ROUNDING = 1e-10
_REAL = ("F16", "F32", "F64")
_REMEDY = "save one tensor [position, layer, d] with torch.save, as safetensors, or with numpy.save"
_FIELDS = ("refusal_score", "steering_score", "kl_div_score")
_NPY = tuple(f"{order}f{size}" for order in "<>" for size in (2, 4, 8))
_MAX_PROGRAM, _MAX_HEADER = 1 << 18, 1 << 14


@dataclass(frozen=True, eq=False)
class SavedDirections:
    """Candidate directions of one model.

    Attributes:
        label: the file's name, without its folder.
        vectors: float64 `[P, L, d]`, read-only. Position p is the one numbered p - P from the end: -P to -1.
    """

    label: str
    vectors: np.ndarray

    def __post_init__(self) -> None:
        vectors = np.array(self.vectors, dtype=np.float64)
        if vectors.ndim != 3 or not vectors.size or not np.isfinite(vectors).all():
            raise LayersError(f"directions must be finite, [position, layer, d], got shape {vectors.shape}")
        vectors.setflags(write=False)
        object.__setattr__(self, "vectors", vectors)

    @property
    def positions(self) -> tuple[int, ...]:
        return tuple(range(-len(self.vectors), 0))

    @property
    def n_layers(self) -> int:
        return int(self.vectors.shape[1])

    @property
    def width(self) -> int:
        return int(self.vectors.shape[2])

    def direction(self, position: int, layer: int) -> Direction:
        """One of them, to be tried on a model of its width.

        Raises:
            LayersError: where there is none.
        """
        if position not in self.positions or not 0 <= layer < self.n_layers:
            raise LayersError(
                f"{self.label!r} has no direction of position {position} and layer {layer}; it has positions "
                f"{self.positions[0]} to -1 and layers 0 to {self.n_layers - 1}"
            )
        return Direction(self.vectors[position, layer], layer, str(position))


# ------------------------------------------------------------------------------------------------------------- reading


def read_mean_diffs(path: str | Path) -> SavedDirections:
    """Differences of means `[position, layer, d]` from `.pt` (`torch.save` of a tensor), `.safetensors` or `.npy`.

    Nothing in the file is run: the program of a `.pt` file is followed symbolically first, see
    `retarget.io.state_dict`. Tensors that were saved on a GPU are read too.

    Raises:
        FileError: in one line, for a file of another kind, a pickle, several tensors, another rank, absurd sizes,
            numbers that are not real or not finite.
    """
    file = Path(path)
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        fail(file, f"is of no kind that is read ({suffix or 'no suffix'}); those are {', '.join(SUFFIXES)}")
    limit = MAX_BYTES if suffix in (".pt", ".pth") else 8 * MAX_BYTES
    handle, size = open_bounded(file, limit, remedy=_REMEDY)
    with handle:
        if suffix == ".safetensors":
            array = _safetensors(file, handle, size)
        elif suffix == ".npy":
            array = _npy(file, handle, size)
        else:
            array = _torch(file, handle.read(size))
    _check_shape(file, array.shape)
    if not np.isfinite(array).all():
        where = np.argwhere(~np.isfinite(array))[0]
        fail(
            file,
            f"holds {array[tuple(where)]} at position {int(where[0]) - len(array)}, layer {int(where[1])}; "
            "directions must be finite: make them again",
        )
    if not array.any():
        fail(file, "holds zeros alone, and no direction; make them again")
    return SavedDirections(file.name, array)


def _check_shape(file: Path, shape: tuple[int, ...]) -> None:
    if len(shape) != 3 or 0 in shape:
        fail(file, f"holds a tensor of shape {list(shape)}, not [position, layer, d]; {_REMEDY}")
    if any(n > most for n, most in zip(shape, MAX_SHAPE, strict=True)) or shape[2] < 2:
        fail(file, f"holds {list(shape)} [position, layer, d], where at most {list(MAX_SHAPE)} make sense; {_REMEDY}")


def _one(file: Path, names: list[str]) -> str:
    if len(names) != 1:
        shown = ", ".join(repr(n[:40]) for n in names[:5])
        fail(file, f"holds {len(names)} real tensors ({shown or 'none'}), where one is needed; {_REMEDY}")
    return names[0]


def _torch(file: Path, data: bytes) -> np.ndarray:
    if data[:4] != b"PK\x03\x04":
        kind = "a pickle, which can run code when it is read" if data[:1] == b"\x80" else "no file of torch.save"
        fail(file, f"is {kind}; {_REMEDY}")
    found = read_state_dict(file, _named(file, data))
    return found[_one(file, list(found))]


def _named(file: Path, data: bytes) -> bytes:
    """The file of a bare tensor as that of a dictionary with one tensor; a dictionary's as it is.

    Only dictionaries are followed by `read_state_dict`. So the program is put between the instructions that make one.
    """
    with opened(file, data) as archive:
        programs = [n for n in archive.names if n.endswith("/data.pkl") and n.count("/") == 1]
        if len(programs) != 1:
            return data
        program = archive.read(programs[0], limit=_MAX_PROGRAM)
        if not program.startswith(b"\x80\x02ctorch._utils\n_rebuild_") or not program.endswith(b"."):
            return data
        name = b"directions"
        wrapped = b"\x80\x02}X" + len(name).to_bytes(4, "little") + name + program[2:-1] + b"s."
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as packed:
            for member in archive.names:
                packed.writestr(member, wrapped if member == programs[0] else archive.read(member, limit=MAX_BYTES))
    return out.getvalue()


def _safetensors(file: Path, handle: BinaryIO, size: int) -> np.ndarray:
    entries, data = read_header(file, handle, size)
    name = _one(file, [n for n, e in entries.items() if e.dtype in _REAL])
    _check_shape(file, entries[name].shape)
    return read_tensor(file, handle, entries[name], data)


def _npy(file: Path, handle: BinaryIO, size: int) -> np.ndarray:
    """The array of a .npy file. Its header is read here: NumPy's own reader warns and fails in many ways of its own."""
    start = handle.read(8)
    wide = {b"\x01\x00": 2, b"\x02\x00": 4, b"\x03\x00": 4}.get(start[6:])
    if start[:6] != b"\x93NUMPY" or wide is None:
        fail(file, f"is no .npy file of version 1 to 3; {_REMEDY}")
    length = int.from_bytes(handle.read(wide), "little")
    if length > _MAX_HEADER:
        fail(file, f"declares a header of {length} bytes, more than {_MAX_HEADER}; {_REMEDY}")
    try:
        header = ast.literal_eval(handle.read(length).decode("latin-1").strip())
        descr, fortran, shape = (header[k] for k in ("descr", "fortran_order", "shape"))
    except (ValueError, TypeError, KeyError, SyntaxError, RecursionError, MemoryError) as error:
        fail(file, f"has a header that cannot be read ({short(error)[:80]}); {_REMEDY}")
    if descr == "|O":
        fail(file, f"holds Python objects, which can run code when they are read; {_REMEDY}")
    if descr not in _NPY:
        fail(file, f"holds numbers of type {str(descr)[:40]!r}, not float16, float32 or float64; {_REMEDY}")
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        fail(file, f"declares the shape {str(shape)[:40]!r}, which is none; {_REMEDY}")
    _check_shape(file, shape)
    raw, dtype = handle.read(size), np.dtype(descr)
    if len(raw) != math.prod(shape) * dtype.itemsize:
        fail(file, f"declares shape {list(shape)} of {dtype} and holds {len(raw)} bytes; it was cut off: save it again")
    return np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran else "C")


def read_evaluations(path: str | Path) -> tuple[Evaluation, ...]:
    """Figures of candidate directions, from a JSON list of `position`, `layer`, `refusal_score`, `steering_score`,
    `kl_div_score`. A figure may be NaN; further entries are passed over.

    Raises:
        FileError: in one line, for anything else, or a candidate that occurs twice.
    """
    file = Path(path)
    remedy = "give a list of objects with position, layer, " + ", ".join(_FIELDS)
    handle, size = open_bounded(file, MAX_JSON, remedy=remedy)
    with handle:
        data = handle.read(size)
    try:
        values = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        fail(file, f"is no JSON that can be read ({short(error)}); {remedy}")
    if not isinstance(values, list) or not values:
        fail(file, f"holds no list of candidates; {remedy}")
    out: dict[tuple[int, int], Evaluation] = {}
    for i, value in enumerate(values, 1):
        one = _evaluation(file, i, value, remedy)
        key = (int(one.position), one.layer)
        if key in out:
            fail(file, f"entry {i} is position {key[0]}, layer {key[1]}, which came before; keep one of the two")
        out[key] = one
    return tuple(out.values())


def _evaluation(file: Path, i: int, value: object, remedy: str) -> Evaluation:
    if not isinstance(value, dict) or not {"position", "layer", *_FIELDS} <= set(value):
        fail(file, f"entry {i} lacks a field; {remedy}")
    position, layer = value["position"], value["layer"]
    if type(position) is not int or type(layer) is not int or not 0 <= layer < MAX_SHAPE[1]:
        fail(file, f"entry {i} has position {str(position)[:40]!r}, layer {str(layer)[:40]!r}; both are whole numbers")
    if abs(position) > MAX_SHAPE[0]:
        fail(file, f"entry {i} has position {str(position)[:40]}; positions count from the end, e.g. -1")
    figures = []
    for name in _FIELDS:
        figure = value[name]
        if isinstance(figure, bool) or not isinstance(figure, (int, float)):
            fail(file, f"entry {i} has {name} {str(figure)[:40]!r}, which is no number; {remedy}")
        try:
            figures.append(float(figure))
        except OverflowError:
            fail(file, f"entry {i} has a {name} too large for a number; {remedy}")
    return Evaluation(position, layer, *figures)


# ------------------------------------------------------------------------------------------------------------ geometry


@dataclass(frozen=True, eq=False)
class Geometry:
    """What saved directions look like beside each other.

    Attributes:
        norms: rows of position, layer, norm.
        adjacent: rows of position, layer (the earlier of the two), cos with the next layer's direction, reason.
        cosines: every pair of layers of one position, with the columns `columns.COSINES`.
        dimensions: rows of position (null for all positions together), participation_ratio of the stacked directions
            as they are, and participation_ratio_unit where each is made of length 1.
    """

    norms: pl.DataFrame
    adjacent: pl.DataFrame
    cosines: pl.DataFrame
    dimensions: pl.DataFrame


def geometry(saved: SavedDirections) -> Geometry:
    """Norms, cosines between layers, and how many dimensions the directions span.

    The participation ratio of directions v_i is `(sum s^2)^2 / sum s^4` with s the singular values of their stack:
    1 where all are parallel, n where n are orthogonal and of one length.

    A direction of less than `ROUNDING` of the longest one's length is what rounding leaves where both means are of one
    and the same token, as at the embedding of a template. It has no cosine, and counts for no ratio.

    >>> found = geometry(SavedDirections("a", np.array([[[1.0, 0.0], [0.0, 2.0]]])))
    >>> found.norms["norm"].to_list(), found.adjacent["cos"].to_list(), found.dimensions["participation_ratio"][0]
    ([1.0, 2.0], [0.0], 1.4705882352941178)
    """
    import polars as pl

    from retarget.analysis.layers.tables import frame

    top = float(np.abs(saved.vectors).max())
    # scaled, so that no square overflows or vanishes
    scaled = saved.vectors / (top or 1.0)
    norms = np.linalg.norm(scaled, axis=2)
    scaled = np.where(norms[..., None] > ROUNDING * norms.max(), scaled, 0.0)
    kinds = {"position": pl.Int64(), "layer": pl.Int64()}
    where = [(p, n) for p in saved.positions for n in range(saved.n_layers)]
    lengths = [(p, n, float(norms[p, n]) * top) for p, n in where]
    near, pairs = [], []
    for p in saved.positions:
        cos = _cosines(scaled[p])
        near += [(p, n, cos[n, n + 1]) for n in range(saved.n_layers - 1)]
        pairs += [_pair(saved.label, p, a, b, cos[a, b]) for a in range(saved.n_layers) for b in range(a + 1)]
    adjacent = [(p, n, _defined(c), None if math.isfinite(c) else _NULL) for p, n, c in near]
    stacks: list[tuple[int | None, np.ndarray]] = [(p, scaled[p]) for p in saved.positions]
    stacks.append((None, scaled.reshape(-1, saved.width)))
    dims = [(p, participation(v), participation(v, unit=True)) for p, v in stacks]
    ratios = ("participation_ratio", "participation_ratio_unit")
    return Geometry(
        pl.DataFrame(lengths, schema=kinds | {"norm": pl.Float64()}, orient="row"),
        pl.DataFrame(adjacent, schema=kinds | {"cos": pl.Float64(), "reason": pl.String()}, orient="row"),
        frame(pairs, COSINES),
        pl.DataFrame(dims, schema={"position": pl.Int64(), **dict.fromkeys(ratios, pl.Float64())}, orient="row"),
    )


_NULL = "a direction is zero, or so short that it is rounding"


def _defined(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _cosines(vectors: np.ndarray) -> np.ndarray:
    """Float64 `[L, L]` of `[L, d]`; NaN for vectors that are zero."""
    with np.errstate(invalid="ignore", divide="ignore"):
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(np.clip(unit @ unit.T, -1.0, 1.0))


def _pair(label: str, position: int, layer: int, other: int, cos: float) -> dict[str, object]:
    row: dict[str, object] = {"model": label, "position": str(position)}
    row |= {"layer": layer, "stream": "residual", "other_layer": other, "other_stream": "residual"}
    return row | {"cos": _defined(cos), "reason": None if math.isfinite(cos) else _NULL}


def participation(vectors: np.ndarray, *, unit: bool = False) -> float | None:
    """Participation ratio of `[n, d]` stacked directions, those of length 0 left out; None where none is left.

    >>> participation(np.eye(3)), round(participation(np.ones((4, 2))), 12)
    (3.0, 1.0)
    """
    norms = np.linalg.norm(vectors, axis=1)
    kept = vectors[norms > 0]
    if not len(kept):
        return None
    kept = kept / norms[norms > 0, None] if unit else kept / norms.max()
    squares = np.linalg.eigvalsh(kept @ kept.T).clip(min=0.0)
    return float(squares.sum() ** 2 / (squares**2).sum())
