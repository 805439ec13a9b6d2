"""Which cells a fitted map from goals to edits writes, the numbers that it writes them from, and their code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from retarget.agent import Agent, Categorical, Layout, PartLayout, Real
from retarget.code import ENUMERATIVE
from retarget.edit import Dense, Edit, Patch, Slot, Sparse
from retarget.editors.goal_features import Features
from retarget.editors.words import Stream, word_of
from retarget.errors import CodeError
from retarget.goal import Goal

#: Kinds of maps, in the order of their three-bit names.
KINDS = ("constant", "nearest", "linear", "network", "slot", "planner")
NAME_BITS = 3
#: Maps with more outputs than this are not fitted.
MOST_OUTPUTS = 4096


def name_bits(kind: str) -> str:
    """The three bits that say which kind of map follows."""
    return format(KINDS.index(kind), f"0{NAME_BITS}b")


@dataclass(frozen=True, eq=False)
class Cells:
    """Which cells a fitted map writes, and how it reads its numbers.

    Attributes:
        agent: whose cells.
        index: by part, int `[k]` rising: the cells that some training edit changes.
        as_score: by categorical part, bool `[k]`: the symbol with the highest score (True), or one number rounded to
            a symbol (False). Cells of real numbers take what is to be added to them.
    """

    agent: Agent
    index: Mapping[str, np.ndarray]
    as_score: Mapping[str, np.ndarray]

    @classmethod
    def touched(cls, agent: Agent, edited: Sequence[Agent]) -> Cells:
        """The union of the cells that the edits change; every symbol by score."""
        index: dict[str, np.ndarray] = {}
        for name, part in agent.parts.items():
            old = part.array.reshape(-1).view(np.int64)
            new = [a.parts[name].array.reshape(-1).view(np.int64) for a in edited]
            cells = np.flatnonzero(np.any([old != n for n in new], axis=0)) if new else np.zeros(0, np.int64)
            if cells.size:
                index[name] = cells
        scores = {n: np.ones(len(c), np.bool_) for n, c in index.items() if _size(agent, n)}
        return cls(agent, index, scores)

    @cached_property
    def layout(self) -> Layout:
        """One part for each part of the agent: a cell that is written is named, with a bit where it may be read in two
        ways."""
        return tuple(
            PartLayout(p.name, (p.n_cells,), Categorical(2 if _size(self.agent, p.name) else 1))
            for p in self.agent.layout
        )

    @property
    def word(self) -> str:
        patches = []
        for name, cells in self.index.items():
            reading = self.as_score[name].astype(np.int64) if name in self.as_score else np.zeros(len(cells), np.int64)
            patches.append(Sparse(name, cells, reading))
        return word_of(Edit("", tuple(patches)), self.layout)

    @classmethod
    def read(cls, agent: Agent, source: Stream) -> Cells:
        """The cells of a code word. Raises CodeError."""
        edit = source.edit(cls(agent, {}, {}).layout, agent_digest="")
        if not all(isinstance(p, Sparse) for p in edit.patches):
            raise CodeError("the cells of a map are named one by one")
        index = {p.part: p.index for p in edit.patches if isinstance(p, Sparse)}
        scores = {p.part: p.value == 1 for p in edit.patches if isinstance(p, Sparse) and _size(agent, p.part)}
        return cls(agent, index, scores)

    @cached_property
    def n_outputs(self) -> int:
        """Numbers that a map gives for one goal: one a cell, or one for each symbol of a cell that is read by score."""
        return sum(self._widths(name).sum() for name in self.index)

    def _widths(self, name: str) -> np.ndarray:
        cells = self.index[name]
        if name not in self.as_score:
            return np.ones(len(cells), np.int64)
        return np.asarray(np.where(self.as_score[name], _size(self.agent, name) or 1, 1))

    def targets(self, edited: Agent) -> np.ndarray:
        """What a map should give for an edited agent: float64 `[n_outputs]`."""
        out: list[np.ndarray] = []
        for name, cells in self.index.items():
            new = edited.parts[name].array.reshape(-1)[cells]
            if name not in self.as_score:
                out.append(new - self.agent.parts[name].array.reshape(-1)[cells])
                continue
            for symbol, scored in zip(new.tolist(), self.as_score[name], strict=True):
                out.append(np.eye(_size(self.agent, name) or 1)[symbol] if scored else np.array([float(symbol)]))
        return np.concatenate(out) if out else np.zeros(0)

    def edit(self, outputs: np.ndarray) -> Edit:
        """The edit that a map's numbers `[n_outputs]` stand for, cell by cell (not in its shortest form)."""
        patches, at = [], 0
        for name, cells in self.index.items():
            old, size = self.agent.parts[name].array.reshape(-1), _size(self.agent, name)
            new = old[cells].copy()
            for i, width in enumerate(self._widths(name).tolist()):
                given = outputs[at : at + width]
                at += width
                if size is None:
                    new[i] = new[i] + given[0]
                elif width == 1:
                    new[i] = int(np.clip(np.rint(given[0]), 0, size - 1))
                else:
                    new[i] = int(np.round(given, 9).argmax())
            changed = new.view(np.int64) != old[cells].view(np.int64)
            if changed.any():
                patches.append(Sparse(name, cells[changed], new[changed]))
        return Edit.of(self.agent, *patches)

    def read_as_numbers(self, numbers: Callable[[np.ndarray], np.ndarray], edited: Sequence[Agent]) -> Cells:
        """The same cells, a symbol read as a number where a fit of it as one (`numbers`: `[N, k]` targets to `[N, k]`
        predictions) gives every training symbol back."""
        scores = {}
        for name, scored in self.as_score.items():
            size = _size(self.agent, name) or 1
            want = np.array([a.parts[name].array.reshape(-1)[self.index[name]] for a in edited], dtype=np.float64)
            got = np.clip(np.rint(numbers(want)), 0, size - 1)
            scores[name] = scored & ~(got == want).all(0)
        return Cells(self.agent, self.index, scores)


def _size(agent: Agent, name: str) -> int | None:
    alphabet = agent.parts[name].alphabet
    return alphabet.size if isinstance(alphabet, Categorical) else None


@dataclass(frozen=True, eq=False)
class LinearMap:
    """Numbers that are linear in the goal's features.

    Attributes:
        weights: float64 `[F + 1, n_outputs]`.
    """

    cells: Cells
    features: Features
    weights: np.ndarray
    kind: ClassVar[str] = "linear"

    @property
    def label(self) -> str:
        return f"linear in {self.features.label}, 1"

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        return (self.weights,)

    def with_arrays(self, arrays: Sequence[np.ndarray]) -> LinearMap:
        return LinearMap(self.cells, self.features, arrays[0])

    @property
    def word(self) -> str:
        return name_bits(self.kind) + self.cells.word + _numbers_word(self.arrays)

    @property
    def apply_flops(self) -> float:
        return 2.0 * self.weights.size

    def edit(self, goal: Goal) -> Edit:
        return self.cells.edit(self.features(goal) @ self.weights)


@dataclass(frozen=True, eq=False)
class NetworkMap:
    """A network with one hidden layer of tanh units; it sees the features divided by their scale.

    Attributes:
        inner: float64 `[F + 1, H]`.
        outer: float64 `[H + 1, n_outputs]`.
    """

    cells: Cells
    features: Features
    inner: np.ndarray
    outer: np.ndarray
    kind: ClassVar[str] = "network"

    @property
    def label(self) -> str:
        return f"network of {self.inner.shape[1]} units on {self.features.label}"

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        return self.inner, self.outer

    def with_arrays(self, arrays: Sequence[np.ndarray]) -> NetworkMap:
        return NetworkMap(self.cells, self.features, *arrays)

    @property
    def word(self) -> str:
        return name_bits(self.kind) + self.cells.word + _numbers_word(self.arrays)

    @property
    def apply_flops(self) -> float:
        return float(2 * (self.inner.size + self.outer.size) + 8 * self.inner.shape[1])

    def edit(self, goal: Goal) -> Edit:
        seen = self.features(goal) / np.append(self.features.scale, 1.0)
        return self.cells.edit(np.append(np.tanh(seen @ self.inner), 1.0) @ self.outer)


Fitted = LinearMap | NetworkMap


def _numbers_layout(shapes: Sequence[tuple[int, ...]]) -> Layout:
    return tuple(PartLayout(f"w{i}", shape, Real()) for i, shape in enumerate(shapes))


def _numbers_word(arrays: Sequence[np.ndarray]) -> str:
    """Each array dense, or as what is not 0, whichever is shorter."""
    layout = _numbers_layout([a.shape for a in arrays])
    patches: list[Patch] = []
    for part, array in zip(layout, arrays, strict=True):
        flat = array.reshape(-1)
        named = np.flatnonzero(flat)
        options: list[Patch] = [Dense(part.name, array), Slot(part.name, 0.0, named, flat[named])]
        patches.append(min(options, key=lambda p, part=part: ENUMERATIVE.length(Edit("", (p,)), (part,))))  # type: ignore[misc]
    return word_of(Edit("", tuple(patches)), layout)


def read_numbers(source: Stream, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """The numbers of a map, in arrays of these shapes, from where a stream of words stands.

    Raises:
        CodeError: where the word leaves one of the arrays out.
    """
    layout = _numbers_layout(shapes)
    edit = source.edit(layout, agent_digest="")
    if len(edit.patches) != len(layout):
        raise CodeError("the numbers of a map are all written")
    return [p.write(np.zeros(part.shape)) for p, part in zip(edit.patches, layout, strict=True)]
