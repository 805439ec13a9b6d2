"""Tables that somebody else trained: action values or policies, from `.npy`, `.npz`, `.csv` and `.parquet` files.

Everything a file declares is checked before it is believed: sizes before memory is taken, types before values are
read, shapes against the world. Nothing is ever unpickled.
"""

from __future__ import annotations

import csv
import io
import math
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn, get_args

import numpy as np

from retarget.errors import FileError, nearest

if TYPE_CHECKING:
    from retarget.agent import Agent
    from retarget.world import FiniteWorld

Kind = Literal["auto", "policy", "q"]

#: Files and arrays beyond this are refused unread: a table of a finite world is far smaller.
MAX_BYTES = 256 << 20
#: The same for text, which takes longer to read.
MAX_CSV_BYTES = 32 << 20
#: Rows of probabilities may be this far from a sum of 1 (single precision is); they are then divided by their sum.
SUM_TOLERANCE = 1e-6

_SAVE = "save the array with numpy.save(..., allow_pickle=False)"
_REMEDIES = {
    ".pkl": f"it is a pickle, which can run code when it is read; {_SAVE}",
    ".pickle": f"it is a pickle, which can run code when it is read; {_SAVE}",
    ".joblib": f"it is a pickle, which can run code when it is read; {_SAVE}",
    ".pt": f"it may be a pickle, and holds a network, no table; evaluate it in every state and {_SAVE}",
    ".pth": f"it may be a pickle, and holds a network, no table; evaluate it in every state and {_SAVE}",
    ".ckpt": f"it may be a pickle, and holds a network, no table; evaluate it in every state and {_SAVE}",
    ".zip": f"a zipped agent may hold pickles; evaluate its policy in every state and {_SAVE}",
    ".safetensors": f"it holds a network's tensors, no table; evaluate the network in every state and {_SAVE}",
    ".mat": f"it is a MATLAB file; read it there and {_SAVE}",
    ".json": f"JSON has no arrays; {_SAVE}",
    ".txt": "write it as .csv: a row for each state, a column for each action",
    ".tsv": "write it as .csv: a row for each state, a column for each action",
    ".xlsx": "write it as .csv: a row for each state, a column for each action",
}


@dataclass(frozen=True, eq=False)
class _Raw:
    """An array as the file gave it, what its columns are called, and what its name says that it is."""

    array: np.ndarray
    columns: tuple[str, ...] = ()
    kind: Kind = "auto"


def load_table(path: str | Path, world: FiniteWorld, *, goal: object = None, kind: Kind = "auto") -> Agent:
    """Read a table for a world.

    Args:
        path: `.npy`; `.npz` with one array, or one named `policy` or `q`; `.csv` with or without a line of names, and
            `.parquet`: a row for each state, and a column for each action or one integer column of actions.
        world: a finite world; its states and actions give the shape `[S]` or `[S, A]`.
        goal: the goal that the table was made for; only checked, since a table does not say.
        kind: `policy` or `q` (action values). With `auto`, integers `[S]` are actions; numbers `[S, A]` are
            probabilities if every row is non-negative and sums to 1, and action values otherwise.

    Returns:
        A `TablePolicy` or a `QTable`.

    Raises:
        FileError: in one line: the file, the value in it, and what to do.
        GoalError: when the goal is not one of the world's.

    >>> import tempfile
    >>> from retarget.envs import make_world
    >>> from retarget.world import WorldSpec
    >>> world = make_world(WorldSpec.of("OpenGrid", size=5))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "q.npy"
    ...     np.save(file, np.zeros((world.model.n_states, world.model.n_actions)))
    ...     load_table(file, world).kind
    'q_table'
    """
    if kind not in get_args(Kind):
        raise FileError(f"kind {kind!r} is not one of auto, policy, q{nearest(kind, get_args(Kind))}")
    if goal is not None:
        world.as_goal(goal)
    file = Path(path)
    raw = _reader(file)(file, kind)
    if file.suffix.lower() == ".csv":
        raw = _without_numbered_names(raw, world)
    return _agent(file, raw, world, kind if kind != "auto" else raw.kind)


def _fail(file: Path, message: str) -> NoReturn:
    raise FileError(f"{str(file)!r}: {message}")


def _reader(file: Path) -> Callable[[Path, Kind], _Raw]:
    suffix = file.suffix.lower()
    if suffix not in _READERS:
        known = ", ".join(_READERS)
        _fail(file, f"cannot be read: {_REMEDIES.get(suffix, f'unknown suffix {suffix!r}; a table is one of {known}')}")
    try:
        if not file.exists():
            _fail(file, "there is no such file; check the path")
        if not file.is_file():
            _fail(file, "is no regular file; pass the path of a table")
        size = file.stat().st_size
    except OSError as error:
        _fail(file, f"cannot be opened ({error.strerror}); check the path and its permissions")
    limit = MAX_CSV_BYTES if suffix == ".csv" else MAX_BYTES
    if size > limit:
        _fail(file, f"has {size} bytes, more than the {limit} that a table may have; save it as float32 .npy perhaps")
    if size == 0:
        _fail(file, "is empty; save the table again")
    return _READERS[suffix]


def _bytes(file: Path) -> bytes:
    try:
        with file.open("rb") as handle:
            return handle.read(MAX_BYTES + 1)
    except OSError as error:
        _fail(file, f"cannot be read ({error.strerror}); check its permissions")


def _read_npy(file: Path, kind: Kind) -> _Raw:
    return _Raw(_npy(file, _bytes(file), ""))


def _npy(file: Path, data: bytes, where: str) -> np.ndarray:
    """The array of an `.npy` file's bytes; the header is checked against the bytes that are there."""
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        readers = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        if version not in readers:
            _fail(file, f"{where}has .npy version {version[0]}.{version[1]}, of named fields; {_SAVE}")
        shape, by_column, dtype = readers[version](stream)
    except FileError:
        raise
    except Exception as error:  # a hostile header can break its parser in many ways
        _fail(file, f"{where}is no whole .npy file ({_short(error)}); {_SAVE}")
    if dtype.hasobject:
        _fail(file, f"{where}holds pickled Python objects, which can run code when they are read; {_SAVE}")
    if dtype.kind not in "biuf" or dtype.itemsize > 16:
        _fail(file, f"{where}holds values of type {dtype}; save plain integers or floats")
    wanted, there = math.prod(shape) * dtype.itemsize, len(data) - stream.tell()
    if wanted != there:
        _fail(file, f"{where}declares shape {shape}, {wanted} bytes, but {there} follow; it was cut off: save it again")
    if dtype.kind == "f" and dtype.itemsize not in (2, 4, 8):
        _fail(file, f"{where}holds values of type {dtype}; save float64")
    array = np.frombuffer(data, dtype=dtype, offset=stream.tell())
    return array.reshape(shape, order="F" if by_column else "C")


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:120]}" if text else type(error).__name__


def _read_npz(file: Path, kind: Kind) -> _Raw:
    try:
        with zipfile.ZipFile(file) as archive:
            members = {i.filename: i for i in archive.infolist() if i.filename.endswith(".npy")}
            name = _choose(file, sorted(n[:-4] for n in members), kind)
            info = members[f"{name}.npy"]
            if info.file_size > MAX_BYTES:
                _fail(file, f"array {name!r} declares {info.file_size} bytes, a table has at most {MAX_BYTES}")
            with archive.open(info) as member:
                data = member.read(MAX_BYTES + 1)
    except FileError:
        raise
    except Exception as error:  # zipfile raises a dozen kinds on broken archives
        _fail(file, f"is no whole .npz file ({_short(error)}); save it again with numpy.savez")
    named: Kind = "policy" if name == "policy" else "q" if name == "q" else "auto"
    return _Raw(_npy(file, data, f"array {name!r} "), (), named)


def _choose(file: Path, names: list[str], kind: Kind) -> str:
    if kind != "auto" and kind in names:
        return kind
    named = [n for n in names if n in ("policy", "q")]
    if len(named) == 1:
        return named[0]
    if len(named) == 2:
        _fail(file, "holds both 'policy' and 'q'; say which with kind='policy' or kind='q' (--as on the command line)")
    if len(names) == 1:
        return names[0]
    shown = ", ".join(names[:8]) or "none"
    _fail(file, f"holds {len(names)} arrays ({shown}); save one, or name it 'policy' or 'q'")


_INTEGER = re.compile(r"\s*[+-]?\d{1,18}\s*")


def _read_csv(file: Path, kind: Kind) -> _Raw:
    try:
        text = _bytes(file).decode("utf-8-sig")
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        _fail(file, f"is no CSV text ({_short(error)}); save it as UTF-8, with commas between numbers")
    if not rows:
        _fail(file, "holds no row; save the table again")
    names = () if all(_is_number(v) for v in rows[0]) else tuple(n.strip() for n in rows[0])
    body = rows[1:] if names else rows
    if not body:
        _fail(file, "holds names but no numbers; save the table again")
    width = len(rows[0])
    for r, row in enumerate(body):
        if len(row) != width:
            _fail(file, f"row {r} has {len(row)} values, the first has {width}; give every state the same actions")
    whole = all(_INTEGER.fullmatch(v) for row in body for v in row)
    array = np.empty((len(body), width), dtype=np.int64 if whole else np.float64)
    for r, row in enumerate(body):
        for c, value in enumerate(row):
            if not _is_number(value):
                _fail(file, f"row {r}, column {names[c] if names else c} is {value[:40]!r}; put a number there")
            array[r, c] = int(value) if whole else float(value)
    return _by_columns(file, array, names)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text


def _read_parquet(file: Path, kind: Kind) -> _Raw:
    import polars as pl

    data = io.BytesIO(_bytes(file))
    try:
        declared = pl.read_parquet_schema(data)
        data.seek(0)
        odd = [(n, t) for n, t in declared.items() if not (t.is_numeric() or t == pl.Boolean) or t.is_decimal()]
        if odd or not declared:
            what = f"column {odd[0][0]!r} has type {odd[0][1]}" if odd else "there is no column"
            _fail(file, f"{what}; give numbers: a column for each action, or one integer column 'action'")
        if len(declared) > 4096:
            _fail(file, f"has {len(declared)} columns; a table has one for each action")
        n_rows = int(pl.scan_parquet(data).select(pl.len()).collect().item())
        if n_rows * len(declared) * 8 > MAX_BYTES:
            _fail(file, f"declares {n_rows} rows, more than a table may have")
        data.seek(0)
        table = pl.read_parquet(data)
        holes = [name for name in table.columns if table[name].null_count()]
        if holes:
            row = int(table[holes[0]].is_null().arg_max() or 0)
            _fail(file, f"row {row}, column {holes[0]!r} is null; put a number there")
        whole = all(t.is_integer() for t in declared.values())
        array = np.column_stack([table[c].cast(pl.Int64 if whole else pl.Float64).to_numpy() for c in table.columns])
    except (FileError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the reader is no Exception
        _fail(file, f"is no whole Parquet file ({_short(error)}); save it again")
    return _by_columns(file, array, tuple(declared))


def _by_columns(file: Path, array: np.ndarray, names: tuple[str, ...]) -> _Raw:
    """One column is a list of actions; a column called `action` among others would be a guess."""
    if array.shape[1] == 1:
        return _Raw(array[:, 0], names)
    if "action" in names:
        _fail(file, f"has the columns {', '.join(names)}; keep 'action' alone, or a column for each action")
    return _Raw(array, names)


_READERS: dict[str, Callable[[Path, Kind], _Raw]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def _agent(file: Path, raw: _Raw, world: FiniteWorld, kind: Kind) -> Agent:
    from retarget.agents.tabular import QTable, TablePolicy

    n_states, n_actions = world.model.n_states, world.model.n_actions
    array = raw.array
    if array.shape == (n_states, 1) and n_actions != 1:
        array = array[:, 0]
    _check_shape(file, array, world)
    _check_finite(file, replace(raw, array=array))
    if array.ndim == 1:
        if kind == "q":
            _fail(file, f"holds one number a state; action values need shape ({n_states}, {n_actions})")
        return TablePolicy.from_actions(_actions(file, array, n_actions), n_actions=n_actions)
    values = array.astype(np.float64)
    _check_finite(file, replace(raw, array=values))  # a wider float may become infinite
    problem = _no_distribution(values)
    if kind == "policy" and problem:
        _fail(file, f"{problem}; give probabilities that sum to 1 in every row, or read it as kind='q' (--as q)")
    if kind == "q" or problem:
        return QTable.from_values(values)
    return TablePolicy.from_probabilities(values / values.sum(1, keepdims=True))


def _without_numbered_names(raw: _Raw, world: FiniteWorld) -> _Raw:
    """Drop a first line `0,1,2,…` above a line for every state: pandas names columns like that."""
    n_states, n_actions = world.model.n_states, world.model.n_actions
    first = raw.array[0]
    named = raw.array.shape == (n_states + 1, n_actions) and bool((first == np.arange(n_actions)).all())
    return replace(raw, array=raw.array[1:]) if named and not raw.columns else raw


def _check_shape(file: Path, array: np.ndarray, world: FiniteWorld) -> None:
    n_states, n_actions = world.model.n_states, world.model.n_actions
    if array.shape not in ((n_states,), (n_states, n_actions)):
        _fail(
            file,
            f"has shape {array.shape}, but {world.spec_data.label} has {n_states} states and {n_actions} actions; "
            f"give ({n_states},) actions or ({n_states}, {n_actions}) values, or the world and size it was made for",
        )


def _check_finite(file: Path, raw: _Raw) -> None:
    if np.isfinite(raw.array).all():
        return
    where = [int(i) for i in np.argwhere(~np.isfinite(raw.array))[0]]
    value = raw.array[tuple(where)]
    place = f"row {where[0]}" + (f", action {where[1]}" if len(where) > 1 else "")
    _fail(file, f"{place} is {value}; replace values that are not finite")


def _actions(file: Path, array: np.ndarray, n_actions: int) -> np.ndarray:
    broken = np.flatnonzero((array < 0) | (array >= n_actions) | (array != np.floor(array.astype(np.float64))))
    if broken.size:
        row = int(broken[0])
        _fail(file, f"row {row} holds action {array[row]}; actions are whole numbers from 0 to {n_actions - 1}")
    return array.astype(np.int64)


def _no_distribution(values: np.ndarray) -> str:
    """Why the rows are no distributions, or an empty text."""
    negative = np.argwhere(values < 0)
    if negative.size:
        row, action = (int(i) for i in negative[0])
        return f"row {row}, action {action} is {values[row, action]}"
    sums = values.sum(1)
    off = np.flatnonzero(~(np.abs(sums - 1) <= SUM_TOLERANCE))
    return f"row {int(off[0])} sums to {sums[off[0]]}" if off.size else ""
