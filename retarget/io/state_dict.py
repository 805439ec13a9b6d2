"""State dicts as PyTorch saves them: what the pickle inside says is read as data before PyTorch may see it.

`torch.load(weights_only=True)` runs no code of a file, but it does build whatever size of storage a file asks for. Here
the program inside is first followed symbolically: only the few instructions that a dictionary of tensors needs, no
object is made, and each tensor must lie within bytes that are really there. What passes is packed afresh, and that is
what PyTorch reads.
"""

from __future__ import annotations

import io
import math
import pickletools
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from retarget.errors import FileError
from retarget.io.archive import Archive, fail, opened, short

if TYPE_CHECKING:
    from collections.abc import Mapping

#: A policy's tensors, critics and targets included, may take this.
MAX_BYTES = 32 << 20
MAX_TENSORS = 512
_MAX_PROGRAM = 256 << 10

#: Bytes of an element, by the name of its storage.
_ITEM = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8, "IntStorage": 4,
    "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1, "ComplexFloatStorage": 8,
    "ComplexDoubleStorage": 16,
}  # fmt: skip
_REAL = ("DoubleStorage", "FloatStorage", "HalfStorage", "BFloat16Storage")
_ORDERED, _TENSOR, _PARAMETER = (
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
)
_GLOBALS = {_ORDERED, _TENSOR, _PARAMETER, *(f"torch {name}" for name in _ITEM)}


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass(frozen=True)
class _Storage:
    kind: str
    key: str
    numel: int


@dataclass(frozen=True)
class TensorPlan:
    """What a file says of one tensor: the kind of its numbers, and its shape."""

    kind: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class _RefusedError(Exception):
    """Why a program is none that makes a dictionary of tensors."""


_MARK = object()


class _Follower:
    """Follows the program of a pickle, with tensors that are plans and globals that are names."""

    def __init__(self) -> None:
        self.stack: list[object] = []
        self.memo: dict[int, object] = {}
        self.storages: dict[str, _Storage] = {}

    def follow(self, program: bytes) -> object:
        for opcode, argument, _ in pickletools.genops(program):
            if opcode.name == "STOP":
                if len(self.stack) != 1:
                    raise _RefusedError("its program ends in the middle")
                return self.stack[0]
            self.step(opcode.name, argument)
        raise _RefusedError("its program has no end")

    def step(self, name: str, argument: object) -> None:
        if name in ("BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"):
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[int(str(argument))] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[int(str(argument))])
        elif name == "PROTO":
            if argument != 2:
                raise _RefusedError(f"it is a pickle of protocol {argument}, where PyTorch writes 2")
        elif name == "GLOBAL":
            self.stack.append(self.named(str(argument)))
        elif name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            items = self.popped() if name == "TUPLE" else [self.stack.pop() for _ in range(int(name[-1]))][::-1]
            self.stack.append(tuple(items))
        elif name in ("SETITEM", "SETITEMS"):
            self.set_items(self.popped() if name == "SETITEMS" else [self.stack.pop(), self.stack.pop()][::-1])
        elif name == "BINPERSID":
            self.stack.append(self.storage(self.stack.pop()))
        elif name == "REDUCE":
            arguments, function = self.stack.pop(), self.stack.pop()
            self.stack.append(self.called(function, arguments))
        elif name == "BUILD":
            self.stack.pop()  # attributes of an OrderedDict: PyTorch's own _metadata
            if not isinstance(self.stack[-1], dict):
                raise _RefusedError("it sets attributes of something that is no dictionary")
        else:
            raise _RefusedError(f"it holds the pickle instruction {name}, which no dictionary of tensors needs")

    def named(self, argument: str) -> _Global:
        if argument not in _GLOBALS:
            raise _RefusedError(f"it names {argument.replace(' ', '.')[:80]!r}, which no dictionary of tensors needs")
        return _Global(argument)

    def popped(self) -> list[object]:
        items: list[object] = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def set_items(self, items: list[object]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise _RefusedError("it fills something that is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str):
                raise _RefusedError("it has a key that is no text")
            target[key] = value

    def storage(self, pid: object) -> _Storage:
        match pid:
            case ("storage", _Global(name=name), str(key), str(), int(numel)) if name.startswith("torch "):
                found = _Storage(name.removeprefix("torch "), key, numel)
            case _:
                raise _RefusedError("it refers to storage in another way than PyTorch does")
        if self.storages.setdefault(key, found) != found:
            raise _RefusedError(f"it describes storage {key[:40]!r} twice, differently")
        return found

    def called(self, function: object, arguments: object) -> object:
        match function, arguments:
            case _Global(name="collections OrderedDict"), ():
                return {}
            case (
                _Global(name="torch._utils _rebuild_tensor_v2"),
                (_Storage() as storage, int(offset), tuple(size), tuple(stride), bool(), dict(), *rest),
            ) if not rest:
                return _plan(storage, offset, size, stride)
            case _Global(name="torch._utils _rebuild_parameter"), (TensorPlan() as plan, bool(), dict()):
                return plan
        raise _RefusedError("it calls something in another way than PyTorch does")


_CONSTANTS: dict[str, Callable[[], object]] = {
    "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
    "NONE": lambda: None, "MARK": lambda: _MARK,
}  # fmt: skip


def _plan(storage: _Storage, offset: int, size: tuple[object, ...], stride: tuple[object, ...]) -> TensorPlan:
    shape = tuple(s for s in size if isinstance(s, int) and not isinstance(s, bool) and s > 0)
    steps = tuple(s for s in stride if isinstance(s, int) and not isinstance(s, bool) and s >= 0)
    if len(shape) != len(size) or len(steps) != len(size) or len(stride) != len(size) or len(size) > 8 or offset < 0:
        raise _RefusedError(f"a tensor declares the shape {str(size)[:60]} with strides {str(stride)[:60]}")
    last = offset + sum((n - 1) * step for n, step in zip(shape, steps, strict=True))
    if math.prod(shape) > storage.numel or last >= storage.numel:
        raise _RefusedError(
            f"a tensor of shape {str(shape)[:60]} does not fit the {storage.numel} numbers of its storage"
        )
    return TensorPlan(storage.kind, shape)


def read_state_dict(path: str | Path, data: bytes, where: str = "") -> dict[str, np.ndarray]:
    """The real tensors of a state dict that `torch.save` wrote: float64 arrays, or float32 where they were that.

    Tensors of other kinds (counters, say) are left out. Nothing in the file is run.

    Args:
        path: what errors name.
        data: the file, or the member of a file.
        where: put before errors, e.g. `policy.pth: `.

    Raises:
        FileError: in one line, for anything but a dictionary of tensors whose numbers are all there.
    """
    if len(data) > MAX_BYTES:
        fail(path, f"{where}has {len(data)} bytes, more than the {MAX_BYTES} that a policy may have")
    _check_kind(path, data, where)
    with opened(path, data, where=where, max_members=2 * MAX_TENSORS, max_total=MAX_BYTES) as archive:
        plans, packed = _checked(archive, where)
    found = _load(Path(path), packed, where)
    if list(found) != list(plans) or any(found[n].shape != p.shape for n, p in plans.items()):
        fail(path, f"{where}does not hold what it declares; save the policy again")
    return {n: a for n, a in found.items() if plans[n].kind in _REAL}


def _check_kind(path: str | Path, data: bytes, where: str) -> None:
    if data[:4] == b"PK\x03\x04":
        return
    if data[:1] == b"\x80":
        fail(
            path,
            f"{where}is a bare pickle, which can run code when it is read; in PyTorch 1.6 or later, "
            "torch.save(model.state_dict(), file), or save it as safetensors",
        )
    fail(path, f"{where}is no file of torch.save; save the state dict again")


def _checked(archive: Archive, where: str) -> tuple[dict[str, TensorPlan], bytes]:
    """Plans by name, and the same zip packed afresh from the members that the plans need."""
    programs = [n for n in archive.names if n.endswith("/data.pkl") and n.count("/") == 1]
    if len(programs) != 1:
        fail(archive.path, f"{where}is no state dict of torch.save: it has {len(programs)} data.pkl; save it again")
    root = programs[0].removesuffix("data.pkl")
    if f"{root}constants.pkl" in archive.names or any(n.startswith(f"{root}code/") for n in archive.names):
        fail(archive.path, f"{where}{TORCHSCRIPT}")
    program = archive.read(programs[0], limit=_MAX_PROGRAM)
    follower = _Follower()
    try:
        plans = _plans(follower.follow(program))
    except _RefusedError as error:
        fail(archive.path, f"{where}is no plain state dict: {error}; save it with torch.save(model.state_dict(), file)")
    except Exception as error:  # a program that pops from an empty stack, say
        fail(archive.path, f"{where}is a broken state dict ({short(error)}); save it again")
    for storage in follower.storages.values():
        info = archive.members.get(f"{root}data/{storage.key}")
        wanted = storage.numel * _ITEM[storage.kind]
        if info is None or info.file_size != wanted:
            there = "nothing" if info is None else f"{info.file_size} bytes"
            fail(archive.path, f"{where}declares {wanted} bytes of numbers where there is {there}; save it again")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as packed:
        packed.writestr("archive/data.pkl", program)
        packed.writestr("archive/version", b"3\n")
        if f"{root}byteorder" in archive.names:
            packed.writestr("archive/byteorder", archive.read(f"{root}byteorder", limit=16))
        for storage in follower.storages.values():
            packed.writestr(f"archive/data/{storage.key}", archive.read(f"{root}data/{storage.key}", limit=MAX_BYTES))
    return plans, out.getvalue()


def _plans(value: object) -> dict[str, TensorPlan]:
    if not isinstance(value, dict) or not value:
        raise _RefusedError("it holds no dictionary of tensors")
    for key, item in value.items():
        if isinstance(item, dict):
            raise _RefusedError(f"it keeps more than weights; take the state dict {key[:40]!r} out of it")
        if not isinstance(item, TensorPlan):
            raise _RefusedError(f"{key[:60]!r} is no tensor")
    if len(value) > MAX_TENSORS:
        raise _RefusedError(f"it holds {len(value)} tensors, more than {MAX_TENSORS}")
    return value


def _load(path: Path, packed: bytes, where: str) -> Mapping[str, np.ndarray]:
    import torch

    try:
        found = torch.load(io.BytesIO(packed), weights_only=True, map_location="cpu")
        return {
            name: (tensor.double() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor).detach().numpy()
            for name, tensor in found.items()
        }
    except FileError:
        raise
    except Exception as error:  # PyTorch raises many kinds
        fail(path, f"{where}cannot be read by PyTorch ({short(error)}); save the state dict again")


TORCHSCRIPT = (
    "is a TorchScript archive, which holds a program; save the weights instead: "
    "torch.save(model.state_dict(), file), or hand the module itself to retarget.io.load.wrap"
)
