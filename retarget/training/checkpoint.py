"""Training checkpoints: safetensors for the tensors, JSON in its header for the rest; nothing is ever unpickled."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from retarget.errors import FileError
from retarget.spend import Spend

FORMAT = "retarget-training-1"
#: Largest checkpoint that is read, in bytes.
LARGEST = 1 << 33

Row = dict[str, float | int | str]


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Where a training stood.

    Attributes:
        question: digest of what is trained, on what, how, and with which seed.
        stage: number of the method at work.
        updates: updates of it that were done.
        spend: what the earlier methods took.
        own: what this one took.
        history: rows so far.
        tensors: state of the learner.
        over: whether this method had finished.
    """

    question: str
    stage: int
    updates: int
    spend: Spend
    own: Spend
    history: tuple[Row, ...]
    tensors: Mapping[str, Tensor]
    over: bool

    def save(self, path: Path) -> None:
        """Write it whole or not at all: a reader sees the old one until the new one is complete."""
        from safetensors.torch import save

        plain = {k: getattr(self, k) for k in ("question", "stage", "updates", "history", "over")}
        plain |= {"spend": asdict(self.spend), "own": asdict(self.own)}
        tensors = {k: v.detach().cpu().contiguous() for k, v in self.tensors.items()}
        data = save(tensors, metadata={"format": FORMAT, "json": json.dumps(plain)})
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise FileError(
                f"cannot write the checkpoint {path} ({error.strerror}); give a folder that exists"
            ) from error

    @classmethod
    def read(cls, path: Path) -> Checkpoint:
        """Read one.

        Raises:
            FileError: when the file is none.
        """
        from safetensors import SafetensorError, safe_open

        if path.stat().st_size > LARGEST:
            raise FileError(f"{path} is larger than {LARGEST} bytes, and no training checkpoint; give another path")
        try:
            with safe_open(path, framework="pt") as file:
                about = file.metadata() or {}
                if about.get("format") != FORMAT:
                    raise FileError(f"{path} is no checkpoint of this version; delete it, or give another path")
                plain = json.loads(about["json"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
            return cls(
                str(plain["question"]), int(plain["stage"]), int(plain["updates"]), Spend(**plain["spend"]),
                Spend(**plain["own"]), tuple(plain["history"]), tensors, bool(plain["over"]),
            )  # fmt: skip
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, FileError):
                raise
            raise FileError(f"{path} is a broken checkpoint ({error}); delete it, or give another path") from error


def fits(state: Mapping[str, Tensor], found: Mapping[str, Tensor], *, grows: tuple[str, ...] = ()) -> bool:
    """Whether tensors that were read have the names, types and shapes that are needed.

    Args:
        state: what is needed.
        found: what was read.
        grows: beginnings of names whose first axis may have any length.

    >>> import torch
    >>> fits({"a": torch.zeros(2)}, {"a": torch.ones(2)}), fits({"a": torch.zeros(2)}, {"a": torch.ones(3)})
    (True, False)
    """
    if state.keys() != found.keys():
        return False
    for name, tensor in state.items():
        other = found[name]
        free = name.startswith(grows) if grows else False
        if other.dtype != tensor.dtype or other.shape[free:] != tensor.shape[free:]:
            return False
    return True
