"""Convert the statistics that Stable-Baselines3's VecNormalize keeps in a pickle to a .npz that `retarget` reads.

    python scripts/convert_vecnormalize.py vecnormalize.pkl statistics.npz

A pickle is a program. This script runs only so much of it as makes numpy arrays of plain numbers; whatever else the
pickle names (environments, spaces, generators) becomes an empty stand-in, and nothing that it names is imported. It
needs numpy, and neither Stable-Baselines3 nor Gym. It is a tool of its own: the package never imports it.
"""

from __future__ import annotations

import argparse
import io
import pickle
import pickletools
import sys
from pathlib import Path

import numpy as np

MAX_BYTES = 64 << 20
FIELDS = ("mean", "var", "clip_obs", "epsilon")


class UnconvertibleError(Exception):
    """Why a file is no pickle of a VecNormalize, in one line."""


class Standin:
    """What everything becomes that is not a number, a container or an array. It keeps its state and does nothing."""

    def __new__(cls, *args: object, **kwargs: object) -> Standin:
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        self.state: dict[str, object] = {}

    def __setstate__(self, state: object) -> None:
        self.state = state if isinstance(state, dict) else {}


class Array:
    """An array in the making: checked when its state comes, before memory is taken."""

    array: np.ndarray | None = None

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        match state:
            case (_, tuple(shape), Kind(dtype=np.dtype() as dtype), bool(by_column), bytes(data)):
                pass
            case _:
                return
        if len(shape) > 8 or not all(isinstance(n, int) and 0 <= n <= MAX_BYTES for n in shape):
            return
        if int(np.prod(shape, dtype=object)) * dtype.itemsize == len(data):
            self.array = np.frombuffer(data, dtype=dtype).reshape(shape, order="F" if by_column else "C")


class Kind:
    """A type of numbers in the making."""

    dtype: np.dtype | None = None

    def __init__(self, code: object = "", *args: object) -> None:
        if isinstance(code, str) and code in {f"{k}{n}" for k in "iuf" for n in (2, 4, 8)} | {"b1", "i1", "u1"}:
            self.dtype = np.dtype(code)

    def __setstate__(self, state: object) -> None:
        if self.dtype is not None and isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">", "|", "="):
            self.dtype = self.dtype.newbyteorder(state[1])


def _scalar(kind: object, data: object = b"") -> object:
    if (
        isinstance(kind, Kind)
        and kind.dtype is not None
        and isinstance(data, bytes)
        and len(data) == kind.dtype.itemsize
    ):
        return np.frombuffer(data, dtype=kind.dtype)[0].item()
    return Standin()


def _array(*args: object) -> Array:
    return Array()


def _from_buffer(data: object, kind: object, shape: object, order: object = "C") -> Array:
    made = Array()
    made.__setstate__((1, shape, kind, order == "F", bytes(data) if isinstance(data, (bytes, bytearray)) else None))
    return made


def _encode(text: object, how: object = "") -> bytes:
    """How pickles of protocol 2 and below write bytes."""
    return text.encode("latin1") if isinstance(text, str) and how == "latin1" else b""


_KNOWN = {
    ("numpy", "dtype"): Kind,
    ("numpy", "ndarray"): Array,
    ("_codecs", "encode"): _encode,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _array for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        """Never an import: the few makers of arrays above, and for every other name a new empty stand-in."""
        return _KNOWN.get((module, name)) or type("Standin", (Standin,), {"named": f"{module}.{name}"})

    def persistent_load(self, pid: object) -> object:
        return Standin()


def statistics(data: bytes) -> dict[str, np.ndarray | float]:
    """The fields `mean`, `var`, `clip_obs` and `epsilon` of a pickled VecNormalize.

    Raises:
        UnconvertibleError: in one line, where they are not in it.
    """
    try:
        for opcode, argument, _ in pickletools.genops(data):
            # memory for as many places as the number says would be taken
            if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument > len(data):
                raise ValueError(f"a memo of {argument} places")
        found = _Reader(io.BytesIO(data)).load()
    except Exception as error:  # a broken pickle raises many kinds
        raise UnconvertibleError(
            f"is no whole pickle ({type(error).__name__}: {' '.join(str(error).split())[:120]})"
        ) from None
    if not isinstance(found, Standin) or not str(getattr(found, "named", "")).endswith("VecNormalize"):
        raise UnconvertibleError("holds no VecNormalize; pass the file that VecNormalize.save wrote")
    running = found.state.get("obs_rms")
    if isinstance(running, dict):
        raise UnconvertibleError("keeps statistics of several observations (a Dict space), which are not converted")
    if not isinstance(running, Standin) or found.state.get("norm_obs") is False:
        raise UnconvertibleError("does not normalise observations; load the policy without statistics")
    out: dict[str, np.ndarray | float] = {}
    for name in ("mean", "var"):
        made = running.state.get(name)
        array = made.array if isinstance(made, Array) else None
        if array is None or array.ndim != 1 or array.dtype.kind not in "iuf" or not np.isfinite(array).all():
            raise UnconvertibleError(f"has no {name} of one row of finite numbers; images are not converted")
        out[name] = array.astype(np.float64)
    for name in ("clip_obs", "epsilon"):
        value = found.state.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UnconvertibleError(f"has no number {name}")
        out[name] = float(value)
    return out


def main(arguments: list[str] | None = None) -> int:
    """Convert one file. Returns 0, or 1 after a line on stderr."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("pickle", type=Path, help="what VecNormalize.save wrote")
    parser.add_argument("npz", type=Path, help="where to write the statistics")
    given = parser.parse_args(arguments)
    try:
        with given.pickle.open("rb") as handle:
            data = handle.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise UnconvertibleError(f"has more than {MAX_BYTES} bytes")
        found = statistics(data)
        with given.npz.open("wb") as out:
            np.savez(out, **found)
    except (OSError, UnconvertibleError) as error:
        sys.stderr.write(f"{str(given.pickle)!r}: {error}\n")
        return 1
    sys.stdout.write(f"{given.npz}: statistics of {len(np.atleast_1d(found['mean']))} numbers\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
