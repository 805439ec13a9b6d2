"""Content digests: what an artefact is bound to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping

import numpy as np


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no spaces; NaN and infinities are refused.

    >>> canonical_json({"b": 1, "a": [1.5, None]})
    '{"a":[1.5,null],"b":1}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest_of(kind: str, config: Mapping[str, object], arrays: Iterable[tuple[str, np.ndarray]]) -> str:
    """SHA-256 (first 32 hex digits) over a kind, a JSON-able config and named arrays.

    >>> a = digest_of("t", {}, [("x", np.zeros(2))])
    >>> a == digest_of("t", {}, [("x", np.zeros(2))]), a == digest_of("t", {}, [("x", np.ones(2))])
    (True, False)
    """
    h = hashlib.sha256()
    h.update(canonical_json([kind, dict(config)]).encode())
    for name, array in arrays:
        data = np.ascontiguousarray(array)
        h.update(canonical_json([name, data.dtype.str, list(data.shape)]).encode())
        h.update(data.tobytes())
    return h.hexdigest()[:32]
