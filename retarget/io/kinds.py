"""What records of agents are made of: checks of a description and of a header, before any array is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field, ValidationError

from retarget.agents.neural import Architecture
from retarget.digest import canonical_json
from retarget.errors import unknown
from retarget.io.architectures import OPTIONS, Strict, count_weights
from retarget.io.limits import DTYPES, Entry, fail

if TYPE_CHECKING:
    from retarget.agent import Agent

Natural = Annotated[int, Field(ge=0, le=1 << 62)]
Name = Annotated[str, Field(max_length=256)]
Integers = frozenset({"I32", "I64"})
Reals = frozenset({"F32", "F64"})
Doubles = frozenset({"F64"})

Body = Mapping[str, Any]
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class How:
    """How agents of one kind are taken apart and put together, where names of arrays alone do not say it.

    Attributes:
        take: an agent's facts beside its arrays, and its arrays.
        check: raises FileError unless the arrays that a header declares are those of the description.
        make: the agent. Raises the classes' own errors, or ValueError.
        verify: raises the same unless the agent's numbers are those that such an agent can act by.
        on_saving: whether an agent is held to all of this before it is saved, too.
    """

    take: Callable[[Any], tuple[dict[str, object], dict[str, np.ndarray]]]
    check: Callable[[Body, Mapping[str, Entry], Path], None]
    make: Callable[[Body, Arrays], Agent]
    verify: Callable[[Any], None] = lambda agent: None
    on_saving: bool = True


@dataclass(frozen=True)
class Kind:
    """How one class is saved.

    Attributes:
        cls: the class; or MODULE:CLASS where its module takes long to load.
        body: its facts.
        arrays: types of its arrays by the name of the field (`?`: may be missing).
        how: in place of `arrays`, where more has to be said.
    """

    cls: type[Agent] | str
    body: type[Strict]
    arrays: Mapping[str, frozenset[str]]
    how: How | None = None

    @property
    def class_name(self) -> str:
        return self.cls.rpartition(":")[2] if isinstance(self.cls, str) else self.cls.__name__

    def made(self, agent: Agent) -> bool:
        """Whether the agent is of this very class."""
        if isinstance(self.cls, str):
            return f"{type(agent).__module__}:{type(agent).__qualname__}" == self.cls
        return type(agent) is self.cls


def checked(schema: type[Strict], body: Body, file: Path, *, remedy: str = "save the agent again") -> None:
    """Raise FileError unless the body is as the schema says. The body itself is used afterwards, as it was written."""
    from retarget.io.native import first_error

    try:
        schema.model_validate_json(canonical_json(body), strict=True)
    except ValidationError as error:
        fail(file, f"{first_error(error)}; {remedy}")


# -- headers -------------------------------------------------------------------------------------------------------

#: An axis: its length, or a letter; the same letter is the same length everywhere. Only "N" may be 0.
Axis = int | str


@dataclass(frozen=True)
class Wanted:
    """An array that a record asks for: types of its numbers, its axes, and whether it may be missing."""

    dtypes: frozenset[str]
    shape: tuple[Axis, ...]
    optional: bool = False


def check_shapes(what: str, wanted: Mapping[str, Wanted], entries: Mapping[str, Entry], file: Path) -> dict[str, int]:
    """Lengths by letter, from a header.

    Raises:
        FileError: unless it declares these arrays and no others, with types and shapes that fit together.
    """
    needed = {name for name, w in wanted.items() if not w.optional}
    if not needed <= set(entries) <= set(wanted):
        some = _some(entries)
        fail(file, f"a {what} of this description has the arrays {_some(wanted)}; the file has {some or 'none'}")
    sizes: dict[str, int] = {}
    for name in (n for n in wanted if n in entries):
        entry, want = entries[name], wanted[name]
        check_type(name, entry, want.dtypes, file)
        shown = ", ".join(str(sizes.get(axis, axis)) if isinstance(axis, str) else str(axis) for axis in want.shape)
        fits = len(entry.shape) == len(want.shape)
        for axis, length in zip(want.shape, entry.shape, strict=False):
            known = sizes.setdefault(axis, length) if isinstance(axis, str) else axis
            fits = fits and known == length and (length > 0 or axis == "N")
        if not fits:
            found = ", ".join(map(str, entry.shape))
            fail(file, f"array {name[:80]!r} has shape [{found}], not [{shown}]; save the agent again")
    return sizes


def check_type(name: str, entry: Entry, dtypes: frozenset[str], file: Path) -> None:
    """Raise FileError unless a header declares numbers of one of these types."""
    if entry.dtype not in dtypes:
        fail(file, f"array {name[:80]!r} has type {entry.dtype}, not {' or '.join(sorted(dtypes))}")


def _some(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))[:200]


def entries_of(arrays: Arrays, file: Path) -> dict[str, Entry]:
    """What a header will declare of arrays.

    Raises:
        FileError: for numbers of a type that no file may hold.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    for name, array in arrays.items():
        if array.dtype not in names:
            fail(file, f"array {name[:80]!r} has numbers of type {array.dtype}; those saved are {', '.join(DTYPES)}")
    return {name: Entry(names[a.dtype], a.shape, 0, a.nbytes) for name, a in arrays.items()}


# -- weights -------------------------------------------------------------------------------------------------------


def check_architecture(body: Body, entries: Mapping[str, Entry], file: Path) -> tuple[str, dict[str, Any]]:
    """A network's kind and options, where they are known, in range, and need as many weights as the file holds.

    Raises:
        FileError: otherwise. No network is built.
    """
    options = dict(body["architecture"])
    kind = options.pop("kind", None)
    if not isinstance(kind, str) or kind not in OPTIONS:
        fail(file, unknown("kind of network", str(kind)[:40], OPTIONS))
    checked(OPTIONS[kind], options, file)
    expected = count_weights(kind, options)
    found = sum(entry.size for name, entry in entries.items() if name.startswith("weight/"))
    if expected != found:
        fail(file, f"describes a {kind} of {expected} weights, the arrays hold {found}; save the agent again")
    return kind, options


def architecture_from(body: Body) -> Architecture:
    """The architecture of a checked description."""
    options: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in body["architecture"].items()}
    return Architecture.of(options.pop("kind"), **options)


def narrow(array: np.ndarray) -> np.ndarray:
    """In single precision where that loses no bit: weights are trained in it; edits may need more."""
    with np.errstate(over="ignore"):  # a number too large for it comes back as infinity, and is kept as it was
        small = array.astype(np.float32)
    same = np.array_equal(small.astype(np.float64).view(np.int64), array.view(np.int64))
    return small if same else array


def group(arrays: Arrays, prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose names begin so, by the rest of their names."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def check_starts(agent: Agent) -> None:
    """Raise ValueError unless starts of training, where there are any, are states."""
    starts, n_states = agent.seen_starts, agent.n_states
    if starts is None:
        return
    if starts.ndim != 1 or starts.min(initial=0) < 0 or (n_states is not None and starts.max(initial=0) >= n_states):
        raise ValueError("starts of training must be states of the world, in one list")
