"""Statistics of observations that somebody's policy was trained on, from `.npz` or JSON. Pickles are refused.

Stable-Baselines3's `VecNormalize` keeps them in a pickle; `scripts/convert_vecnormalize.py` makes a `.npz` of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from retarget.errors import FileError, RetargetError
from retarget.io.archive import fail, opened, parse_json, short

if TYPE_CHECKING:
    from retarget.agents.neural import Sensor

MAX_BYTES = 4 << 20
_FIELDS = ("mean", "var", "clip_obs", "epsilon")
_CONVERT = "convert it with scripts/convert_vecnormalize.py, see docs/checkpoints.md"


@dataclass(frozen=True, eq=False)
class Normalisation:
    """What observations are shifted, scaled and cut with: `clip((obs - mean) / sqrt(var + epsilon))`.

    Attributes:
        mean, var: float64 `[O]`.
        clip_obs: cut to [-clip_obs, clip_obs].
        epsilon: added to the variance.

    Raises:
        FileError: for values that are no statistics.

    >>> Normalisation(np.zeros(2), np.ones(2), epsilon=0.0).sensor().scale.tolist()
    [1.0, 1.0]
    """

    mean: np.ndarray
    var: np.ndarray
    clip_obs: float = 10.0
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        for name in ("mean", "var"):
            array = np.asarray(getattr(self, name))
            if array.dtype.kind not in "iuf" or array.ndim != 1 or not array.size or not np.isfinite(array).all():
                raise FileError(f"{name} must be finite numbers [O], got {array.dtype} of shape {array.shape}")
            object.__setattr__(self, name, array.astype(np.float64))
        for name in ("clip_obs", "epsilon"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
                raise FileError(f"{name} must be a number from 0, got {value!r:.40}")
        if self.mean.shape != self.var.shape:
            raise FileError(f"mean has shape {self.mean.shape}, var has {self.var.shape}; they must be alike")
        with np.errstate(all="ignore"):
            scale = 1.0 / np.sqrt(self.var + self.epsilon)
            kept = np.concatenate([scale, self.mean]).astype(np.float32)
        if (self.var < 0).any() or not np.isfinite(kept).all():
            raise FileError("var must not be negative, nor 0 without an epsilon, and all must fit single precision")

    def sensor(self) -> Sensor:
        """The same as a network's sensor."""
        from retarget.agents.neural import Sensor

        return Sensor(mean=self.mean, scale=1.0 / np.sqrt(self.var + self.epsilon), clip=float(self.clip_obs))

    @classmethod
    def of(cls, fields: Mapping[str, object]) -> Normalisation:
        """From plain data, as JSON has it.

        Raises:
            FileError: for missing or unknown fields, and for values that are no statistics.
        """
        if not {"mean", "var"} <= set(fields) <= set(_FIELDS):
            raise FileError(f"statistics have the fields {', '.join(_FIELDS)}, got {', '.join(map(str, fields))[:80]}")
        arrays = {}
        for name in ("mean", "var"):
            try:
                arrays[name] = np.array(fields[name], dtype=np.float64)
            except (ValueError, TypeError, OverflowError) as error:
                raise FileError(f"{name} must be a list of numbers ({short(error)})") from None
        rest = {k: v for k, v in fields.items() if k not in arrays}
        return cls(**arrays, **rest)  # type: ignore[arg-type]


def load_normalisation(path: str | Path) -> Normalisation:
    """Read statistics: `.npz` or JSON with `mean` and `var`, and perhaps `clip_obs` and `epsilon`.

    Raises:
        FileError: in one line: the file, the value in it, and what to do.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "statistics.npz"
    ...     np.savez(file, mean=[0.5, 0.0], var=[1.0, 4.0], clip_obs=5.0)
    ...     load_normalisation(file).clip_obs
    5.0
    """
    file = Path(path)
    try:
        if not file.is_file():
            fail(file, "there is no such file of statistics; check the path")
        with file.open("rb") as handle:
            data = handle.read(MAX_BYTES + 1)
    except OSError as error:
        fail(file, f"cannot be read ({error.strerror}); check its permissions")
    if len(data) > MAX_BYTES:
        fail(file, f"has more than the {MAX_BYTES} bytes that statistics may have; is it another file?")
    if data[:4] == b"PK\x03\x04":
        fields = _npz(file, data)
    elif data[:1] == b"\x80":
        fail(file, f"is a pickle, which can run code when it is read; {_CONVERT}")
    else:
        fields = parse_json(file, data)
    try:
        return Normalisation.of(fields)
    except RetargetError as error:
        fail(file, f"{error}; {_CONVERT}")


def _npz(file: Path, data: bytes) -> dict[str, object]:
    from retarget.io.tables import _npy as npy_array

    fields: dict[str, object] = {}
    with opened(file, data, max_members=8, max_total=MAX_BYTES) as archive:
        for name in archive.names:
            if not name.endswith(".npy") or name[:-4] not in _FIELDS:
                fail(file, f"holds {name[:40]!r}, where only {', '.join(_FIELDS)} are wanted; {_CONVERT}")
            array = npy_array(file, archive.read(name, limit=MAX_BYTES), f"array {name[:-4]!r} ")
            fields[name[:-4]] = array if array.ndim else float(array)
    return fields
