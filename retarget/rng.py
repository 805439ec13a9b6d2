"""Named random streams: the same (seed, purpose, cell) gives the same numbers anywhere, in any order of calls."""

from __future__ import annotations

import hashlib
import json

import numpy as np

from retarget.errors import RetargetError

CellKey = str | int | float | bool | None | tuple["CellKey", ...]


def stream_key(seed: int, purpose: str, *cell: CellKey) -> int:
    """A 128-bit integer that names one stream.

    Args:
        seed: any Python integer, as the user gave it.
        purpose: what the numbers are for, e.g. `"q_learning"`.
        cell: whatever tells two uses of the same purpose apart (strings, numbers, tuples of them).

    >>> stream_key(0, "demo", 1) == stream_key(0, "demo", 1)
    True
    >>> stream_key(0, "demo", 1) == stream_key(0, "demo", "1")
    False
    """
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise RetargetError(f"seed must be an integer, got {seed!r}; pass e.g. seed=0")
    text = json.dumps([int(seed), purpose, cell], separators=(",", ":"), allow_nan=False)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")


def stream(seed: int, purpose: str, *cell: CellKey) -> np.random.Generator:
    """A NumPy generator (Philox) for one named stream.

    >>> float(stream(0, "demo").random()) == float(stream(0, "demo").random())
    True
    """
    return np.random.Generator(np.random.Philox(key=stream_key(seed, purpose, *cell)))


def word(seed: int, purpose: str, *cell: CellKey) -> int:
    """A 63-bit integer for compiled kernels that carry their own counter-based generator."""
    return stream_key(seed, purpose, *cell) >> 65
