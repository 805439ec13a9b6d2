"""Edits are data: patches to parts, bound to the digest of the agent that they were made for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from retarget.agent import Agent, Alphabet, Categorical, Layout, Part, PartLayout, SlotWrite
from retarget.errors import EditError


def _frozen(array: object, dtype: np.dtype | type) -> np.ndarray:
    out = np.array(array, dtype=dtype, order="C")
    out.setflags(write=False)
    return out


def _cells(part: str, index: object) -> np.ndarray:
    array = np.asarray(index)
    if array.size and array.dtype.kind not in "iu":
        raise EditError(f"cells of a patch of part {part!r} are numbered by integers, got {array.dtype}")
    return _frozen(array, np.int64)


def _key(value: object) -> object:
    return (value.dtype.str, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value


@dataclass(frozen=True, eq=False)
class Patch(ABC):
    """One change to one part. Equality is by content (and tells -0.0 from 0.0, as the code does)."""

    part: str
    kind: ClassVar[str] = "patch"

    def _content(self) -> tuple[object, ...]:
        return (type(self).__name__, *(_key(v) for v in self.__dict__.values()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Patch) and self._content() == other._content()

    def __hash__(self) -> int:
        return hash(self._content())

    @property
    @abstractmethod
    def n_cells(self) -> int:
        """How many cells the patch names (for dense patches: all of them)."""

    @abstractmethod
    def check(self, layout: PartLayout) -> None:
        """Raise EditError unless the patch fits the part."""

    @abstractmethod
    def write(self, array: np.ndarray) -> np.ndarray:
        """A patched copy of the part's array."""


@dataclass(frozen=True, eq=False)
class Sparse(Patch):
    """Overwrite k cells, k >= 1. `index` int `[k]` strictly increasing cell numbers in C order, `value` `[k]`."""

    index: np.ndarray
    value: np.ndarray
    kind: ClassVar[str] = "sparse"

    def __post_init__(self) -> None:
        object.__setattr__(self, "index", _cells(self.part, self.index))
        value = np.asarray(self.value)
        object.__setattr__(self, "value", _frozen(value, np.int64 if value.dtype.kind in "iub" else np.float64))

    @property
    def n_cells(self) -> int:
        return int(self.index.size)

    def check(self, layout: PartLayout) -> None:
        if self.index.size == 0:
            raise EditError(f"a sparse patch of part {self.part!r} names no cell; leave the patch out")
        _check_cells(self, layout, self.index, self.value)

    def write(self, array: np.ndarray) -> np.ndarray:
        out = array.copy()
        out.reshape(-1)[self.index] = self.value
        return out


@dataclass(frozen=True, eq=False)
class Dense(Patch):
    """Replace the whole part. `value` has the part's shape."""

    value: np.ndarray
    kind: ClassVar[str] = "dense"

    def __post_init__(self) -> None:
        value = np.asarray(self.value)
        object.__setattr__(self, "value", _frozen(value, np.int64 if value.dtype.kind in "iub" else np.float64))

    @property
    def n_cells(self) -> int:
        return int(self.value.size)

    def check(self, layout: PartLayout) -> None:
        if self.value.shape != layout.shape:
            raise EditError(f"a dense patch of part {self.part!r} needs shape {layout.shape}, got {self.value.shape}")
        _check_values(self, layout.alphabet, self.value.reshape(-1))

    def write(self, array: np.ndarray) -> np.ndarray:
        return self.value.astype(array.dtype)


@dataclass(frozen=True, eq=False)
class LowRank(Patch):
    """Add `left @ right.T` to a real part of shape `[m, n]`; `left` float `[m, r]`, `right` float `[n, r]`, r >= 1."""

    left: np.ndarray
    right: np.ndarray
    kind: ClassVar[str] = "lowrank"

    def __post_init__(self) -> None:
        object.__setattr__(self, "left", _frozen(self.left, np.float64))
        object.__setattr__(self, "right", _frozen(self.right, np.float64))

    @property
    def n_cells(self) -> int:
        return int(self.left.size + self.right.size)

    def check(self, layout: PartLayout) -> None:
        if isinstance(layout.alphabet, Categorical) or len(layout.shape) != 2:
            raise EditError(
                f"a low-rank patch needs a real matrix; part {self.part!r} is {layout.alphabet} {layout.shape}"
            )
        m, n = layout.shape
        ok = self.left.ndim == 2 == self.right.ndim and self.left.shape[1] == self.right.shape[1] >= 1
        if not ok or self.left.shape[0] != m or self.right.shape[0] != n:
            raise EditError(
                f"a low-rank patch of part {self.part!r} needs left [{m}, r] and right [{n}, r], "
                f"got {self.left.shape} and {self.right.shape}"
            )
        _check_values(self, layout.alphabet, np.concatenate([self.left.reshape(-1), self.right.reshape(-1)]))

    def write(self, array: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):  # the part itself refuses what is not finite
            return np.asarray(array + self.left @ self.right.T)


@dataclass(frozen=True, eq=False)
class Slot(Patch):
    """Set the whole part to `rest`, then write k >= 0 cells. Short for slots, where one cell says it all."""

    rest: float
    index: np.ndarray
    value: np.ndarray
    kind: ClassVar[str] = "slot"

    def __post_init__(self) -> None:
        object.__setattr__(self, "rest", float(self.rest))
        object.__setattr__(self, "index", _cells(self.part, self.index))
        value = np.asarray(self.value)
        kind = np.int64 if value.dtype.kind in "iub" and value.size else np.float64
        object.__setattr__(self, "value", _frozen(value, kind))

    @classmethod
    def of(cls, write: SlotWrite, alphabet: Alphabet) -> Slot:
        """The patch for an agent's own way of writing a goal."""
        cells = sorted(write.cells)
        values = np.array([v for _, v in cells], dtype=alphabet.dtype)
        return cls(write.part, write.rest, np.array([c for c, _ in cells], dtype=np.int64), values)

    @property
    def n_cells(self) -> int:
        return int(self.index.size)

    def check(self, layout: PartLayout) -> None:
        if isinstance(layout.alphabet, Categorical):
            if not self.rest.is_integer():
                raise EditError(f"the rest value {self.rest!r} of part {self.part!r} is no symbol of {layout.alphabet}")
            _check_values(self, layout.alphabet, np.array([int(self.rest)]))
        else:
            _check_values(self, layout.alphabet, np.array([self.rest]))
        if self.rest == 0 and np.signbit(self.rest):
            raise EditError(f"the rest value of part {self.part!r} is -0.0; use 0.0")
        if self.index.size or self.value.size:
            _check_cells(self, layout, self.index, self.value)

    def write(self, array: np.ndarray) -> np.ndarray:
        out = np.full_like(array, self.rest)
        out.reshape(-1)[self.index] = self.value
        return out


def _check_cells(patch: Patch, layout: PartLayout, index: np.ndarray, value: np.ndarray) -> None:
    if index.ndim != 1 or index.shape != value.shape:
        raise EditError(f"a patch of part {patch.part!r} needs one value a cell, got {index.shape} and {value.shape}")
    if index.size and (np.diff(index) <= 0).any():
        raise EditError(f"cells of a patch of part {patch.part!r} must be strictly increasing")
    if index[0] < 0 or index[-1] >= layout.n_cells:
        bad = int(index[0] if index[0] < 0 else index[-1])
        raise EditError(f"cell {bad} is outside part {patch.part!r}, which has cells 0 to {layout.n_cells - 1}")
    _check_values(patch, layout.alphabet, value)


def _check_values(patch: Patch, alphabet: Alphabet, value: np.ndarray) -> None:
    if isinstance(alphabet, Categorical):
        if value.dtype.kind not in "iub":
            raise EditError(f"part {patch.part!r} takes integer symbols, got {value.dtype}")
        if value.min() < 0 or value.max() >= alphabet.size:
            bad = int(value.min() if value.min() < 0 else value.max())
            raise EditError(f"symbol {bad} cannot be written to part {patch.part!r}: it takes 0 to {alphabet.size - 1}")
    elif value.dtype.kind != "f":
        raise EditError(f"part {patch.part!r} takes real numbers, got {value.dtype}; convert to float64")
    elif not np.isfinite(value).all():
        raise EditError(f"a patch of part {patch.part!r} holds a value that is not finite")


@dataclass(frozen=True)
class Edit:
    """Patches to one agent, at most one for each part, in the order of the agent's parts.

    Attributes:
        agent_digest: the agent that the edit was made for; `apply` refuses any other.
        patches: what is changed. An empty tuple is the edit that changes nothing.

    >>> from retarget.agents.tabular import TablePolicy
    >>> agent = TablePolicy.from_actions([0, 1, 1], n_actions=2)
    >>> edit = Edit.of(agent, Sparse("policy", [2], [0]))
    >>> edit.apply(agent).parts["policy"].array.tolist(), agent.parts["policy"].array.tolist()
    ([0, 1, 0], [0, 1, 1])
    """

    agent_digest: str
    patches: tuple[Patch, ...]

    @classmethod
    def of(cls, agent: Agent, *patches: Patch) -> Edit:
        """Bind patches to an agent, checking that they fit and putting them in order."""
        order = {p.name: i for i, p in enumerate(agent.layout)}
        for patch in patches:
            if patch.part not in order:
                raise EditError(f"agent {agent.kind!r} has no part {patch.part!r}; it has {', '.join(order)}")
        edit = cls(agent.digest, tuple(sorted(patches, key=lambda p: order[p.part])))
        edit.check(agent.layout)
        return edit

    def check(self, layout: Layout) -> None:
        """Raise EditError unless the patches fit the layout: known parts, in order, one patch each."""
        order = {p.name: i for i, p in enumerate(layout)}
        missing = [p.part for p in self.patches if p.part not in order]
        if missing:
            raise EditError(f"there is no part {missing[0]!r}; parts are {', '.join(order)}")
        positions = [order[p.part] for p in self.patches]
        if positions != sorted(set(positions)):
            raise EditError("an edit has at most one patch for each part, in the order of the parts")
        for patch in self.patches:
            patch.check(layout[order[patch.part]])

    def apply(self, agent: Agent) -> Agent:
        """The edited agent. The agent given is left as it was.

        Raises:
            EditError: when the edit was made for another agent.
        """
        if agent.digest != self.agent_digest:
            raise EditError(
                f"this edit was made for agent {self.agent_digest[:12]}, not for {agent.digest[:12]}; "
                "make it again for this agent"
            )
        self.check(agent.layout)
        if not self.patches:
            return agent
        return agent.with_arrays({p.part: p.write(agent.parts[p.part].array) for p in self.patches})

    @property
    def parts_touched(self) -> tuple[str, ...]:
        return tuple(p.part for p in self.patches)

    @property
    def n_cells(self) -> int:
        return sum(p.n_cells for p in self.patches)


def difference(before: Agent, after: Agent) -> Edit:
    """The sparse edit that turns one agent's parts into another's of the same layout.

    Raises:
        EditError: when the layouts differ, or a cell holds a symbol that cannot be written.
    """
    if before.layout != after.layout:
        raise EditError(f"agents {before.kind!r} and {after.kind!r} have different parts; only like can be compared")
    return Edit.of(before, *_differences(before.parts, after.parts))


def _differences(before: Mapping[str, Part], after: Mapping[str, Part]) -> list[Patch]:
    patches: list[Patch] = []
    for name, part in before.items():
        old, new = part.array.reshape(-1), after[name].array.reshape(-1)
        # compare bit patterns, so that what is written back is exactly what was there
        changed = np.flatnonzero(old.view(np.int64) != new.view(np.int64))
        if changed.size:
            patches.append(Sparse(name, changed, new[changed]))
    return patches
