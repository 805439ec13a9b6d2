"""What an agent is: a policy that returns distributions, and named parts that can be edited."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol, Self, runtime_checkable

import numpy as np

from retarget.digest import digest_of
from retarget.errors import AgentError, EditError
from retarget.goal import Goal
from retarget.spend import Spend

Role = Literal["table", "weight", "model", "goal_slot", "activation", "value", "policy"]
ROLES: tuple[Role, ...] = ("table", "weight", "model", "goal_slot", "activation", "value", "policy")


def own(array: np.ndarray) -> np.ndarray:
    """A read-only array that nobody else can write to: a copy, unless it is one already."""
    array = np.asarray(array)
    if array.flags.writeable or not array.flags.owndata:
        array = array.copy()
        array.setflags(write=False)
    return array


@dataclass(frozen=True)
class Categorical:
    """Cells that are written with one of `size` symbols, 0 to size-1.

    A cell may *hold* a larger number (a row of a fixed palette, say): it can be kept, but not written.
    """

    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise AgentError(f"an alphabet needs at least one symbol, got size={self.size}")

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.int64)


@dataclass(frozen=True)
class Real:
    """Cells that are written with a finite float64."""

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float64)


Alphabet = Categorical | Real


@dataclass(frozen=True, eq=False)
class Part:
    """A named array that an agent exposes for editing.

    Attributes:
        name: unique within the agent.
        role: what the array is for; editors choose by role, never by the agent's kind.
        array: read-only; int64 for categorical alphabets, float64 for real ones. Cells are numbered in C order.
        alphabet: how a cell is written.
    """

    name: str
    role: Role
    array: np.ndarray
    alphabet: Alphabet

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise AgentError(f"part {self.name!r} has the role {self.role!r}; roles are {', '.join(ROLES)}")
        array = np.array(self.array, dtype=self.alphabet.dtype, order="C")
        if array.size == 0:
            raise AgentError(f"part {self.name!r} is empty; leave out parts without cells")
        if not np.isfinite(array).all():
            raise AgentError(f"part {self.name!r} holds a value that is not finite; replace NaN and infinities first")
        if isinstance(self.alphabet, Categorical) and array.min() < 0:
            raise AgentError(f"part {self.name!r} holds the negative symbol {int(array.min())}")
        array.setflags(write=False)
        object.__setattr__(self, "array", array)


@dataclass(frozen=True)
class PartLayout:
    """What a decoder must know of a part: its name, shape and alphabet, not its contents."""

    name: str
    shape: tuple[int, ...]
    alphabet: Alphabet

    @property
    def n_cells(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))


Layout = tuple[PartLayout, ...]
Carry = object


class Agent(ABC):
    """A policy with editable parts. Frozen: every change gives a new agent.

    Subclass as a frozen dataclass (`eq=False`) and give `kind`, `parts`, `with_arrays`, `policy` and `blank`.
    Capabilities beyond these are protocols below (`HasGoalSlot`, `HasTable`, `Trainable`); a probe that needs one
    that is missing reports `not_applicable`.
    """

    kind: str = "agent"

    @property
    @abstractmethod
    def parts(self) -> Mapping[str, Part]:
        """The editable arrays, by name, in a fixed order."""

    @abstractmethod
    def with_arrays(self, arrays: Mapping[str, np.ndarray]) -> Self:
        """The same agent with the named parts replaced by arrays of the same shape."""

    @abstractmethod
    def policy(self, obs: np.ndarray, carry: Carry = None) -> tuple[np.ndarray, Carry]:
        """Distributions over actions.

        Args:
            obs: int `[B]` state indices in a finite world, float32 `[B, O]` observations in one with continuous states.
            carry: recurrent state, None at the start of an episode and for agents without memory.

        Returns:
            float64 `[B, A]` rows that sum to 1, or float64 `[B, 2, K]` mean and log standard deviation (minus infinity
            for a sure action) where actions are continuous; and the next carry.
        """

    @abstractmethod
    def blank(self, seed: int) -> Agent:
        """The same agent before training: same architecture, same layout."""

    @property
    def config(self) -> Mapping[str, object]:
        """JSON-able facts that the digest covers beside the parts (palette, depth, discount, …)."""
        return {}

    @property
    def fixed_arrays(self) -> Mapping[str, np.ndarray]:
        """Arrays that the digest covers and that no edit may touch (palettes, sensors)."""
        return {}

    @property
    def n_states(self) -> int | None:
        """Number of states of the finite world that the agent is for, or None where it does not depend on that."""
        return None

    @property
    def has_memory(self) -> bool:
        """Whether decisions depend on more than the present observation: `policy` then returns a carry."""
        return False

    @property
    def simulations_per_action(self) -> int:
        """Search simulations that one decision takes; 0 for agents that look an action up."""
        return 0

    @property
    def flops_per_action(self) -> float:
        """Arithmetic operations that one decision takes, counted by formula."""
        return 0.0

    @property
    def plans_once(self) -> bool:
        """Whether one decision's work serves all states (a plan, a table); False where each state is decided apart."""
        return True

    @property
    def seen_starts(self) -> np.ndarray | None:
        """Int `[N]` start states of training, or None for an agent that was not trained."""
        return None

    @cached_property
    def digest(self) -> str:
        """Content digest over kind, config, fixed arrays, starts of training and parts."""
        arrays = [(f"fixed:{k}", v) for k, v in self.fixed_arrays.items()]
        arrays += [] if self.seen_starts is None else [("seen_starts", self.seen_starts)]
        arrays += [(f"part:{p.role}:{p.name}", p.array) for p in self.parts.values()]
        return digest_of(self.kind, self.config, arrays)

    @cached_property
    def layout(self) -> Layout:
        """Names, shapes and alphabets of the parts, in order: all that a decoder of edits needs."""
        return tuple(PartLayout(p.name, p.array.shape, p.alphabet) for p in self.parts.values())

    def check_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Raise EditError unless every array names a part and has its shape."""
        for name, array in arrays.items():
            if name not in self.parts:
                raise EditError(f"agent {self.kind!r} has no part {name!r}; it has {', '.join(self.parts)}")
            if np.shape(array) != self.parts[name].array.shape:
                raise EditError(
                    f"part {name!r} has shape {self.parts[name].array.shape}, the new array {np.shape(array)}"
                )


@dataclass(frozen=True)
class SlotWrite:
    """A way to write a goal into a slot: the whole slot at `rest`, except for the cells given.

    Attributes:
        part: name of a part with the role `goal_slot`.
        rest: what every cell not named is set to.
        cells: pairs of (cell number in C order, value).
    """

    part: str
    rest: float
    cells: tuple[tuple[int, float], ...]


@runtime_checkable
class HasGoalSlot(Protocol):
    """An agent that stores its goal in a slot."""

    def slot_writes(self, goal: Goal) -> tuple[SlotWrite, ...]:
        """Ways to write this goal, best guess first; empty where the slot cannot express it."""
        ...

    def slot_candidates(self) -> tuple[SlotWrite, ...]:
        """Everything the slot can hold that an editor may try blindly (at most one write per cell or symbol)."""
        ...


@dataclass(frozen=True, eq=False)
class TableView:
    """Where the behaviour in each state is stored, for agents that look their actions up.

    Attributes:
        part: name of the part that holds the table.
        cell: int `[S, A]`: the cell to write for "always take action a in state s".
        value: float `[S, A]`: what to write there.
        fill: float `[A]`: what to fill the whole part with for "always take action a" in every state; None where no one
            value does that.

    Writing `value[s, a]` to `cell[s, a]` in the *original* table must make action a the behaviour in state s; where
    there is a fill, also in a table filled with any of its values.
    """

    part: str
    cell: np.ndarray
    value: np.ndarray
    fill: np.ndarray | None = None

    @property
    def n_options(self) -> int:
        return int(self.cell.shape[1])


@runtime_checkable
class HasTable(Protocol):
    """An agent whose behaviour in one state can be rewritten with one cell."""

    def table_view(self) -> TableView: ...


@runtime_checkable
class HasModel(Protocol):
    """An agent that plans over a part which names one successor for each state and action."""

    def model_cells(self) -> tuple[str, np.ndarray]:
        """The part's name, and int `[S, A]`: the cell that names the successor of each state and action."""
        ...


@dataclass(frozen=True, eq=False)
class Fit:
    """New contents for some parts, as one way to suit them to a goal.

    Attributes:
        name: what it is, in a word or two, e.g. `exact values` or `no values`.
        arrays: by name of the part, arrays of the part's shape.
    """

    name: str
    arrays: Mapping[str, np.ndarray]


@runtime_checkable
class HasFits(Protocol):
    """An agent with parts beside its goal slot that were made for a goal, and can be made for another by formula."""

    def fits(self, world: object, goal: Goal) -> tuple[Fit, ...]:
        """Ways to suit values, priors or other parts to a goal: from data and closed forms, no search. Each names parts
        of one role only; an editor combines them. Empty where the agent has no such parts."""
        ...


@runtime_checkable
class HasDraws(Protocol):
    """An agent whose decisions rest on random numbers that its seed names: drawn once for each state, so that what is
    found and judged with one seed may hold with no other."""

    @property
    def draws(self) -> bool:
        """Whether the seed matters: such agents may be set up to draw nothing."""
        ...

    def reseeded(self, seed: int) -> Agent:
        """The same agent, parts and all, with other random numbers."""
        ...


@dataclass(frozen=True, eq=False)
class Scores:
    """An agent's preferences among actions, and how they move with its numbers.

    Attributes:
        relaxation: in what sense the agent is differentiable: `none` for a network's own scores; else a few words, as
            `one score a cell` for a table of actions.
        value: float64 `[B, A]` scores (the policy is their soft-max, or their maximum).
        jacobian: float64 `[B, A, P]`: how each score moves with each of the P numbers.
        parts: by name of the part, how many of the P numbers are its cells, in order; P in all. A relaxation may have
            numbers of its own, one for each symbol that a cell can hold, say.
    """

    relaxation: str
    value: np.ndarray
    jacobian: np.ndarray
    parts: Mapping[str, int]

    def __post_init__(self) -> None:
        value, jacobian = np.asarray(self.value, np.float64), np.asarray(self.jacobian, np.float64)
        if value.ndim != 2 or jacobian.ndim != 3 or jacobian.shape[:2] != value.shape:
            raise AgentError(f"scores [B, A] need a Jacobian [B, A, P], got {value.shape} and {jacobian.shape}")
        if sum(self.parts.values()) != jacobian.shape[2]:
            raise AgentError(f"{sum(self.parts.values())} numbers are named, the Jacobian has {jacobian.shape[2]}")
        if not (np.isfinite(value).all() and np.isfinite(jacobian).all()):
            raise AgentError("scores and their Jacobian must be finite")
        for name, array in (("value", value), ("jacobian", jacobian)):
            object.__setattr__(self, name, own(array))


@runtime_checkable
class HasScores(Protocol):
    """An agent whose scores of actions are differentiable in its numbers, in a sense that it states."""

    def scores_at(self, obs: np.ndarray) -> Scores:
        """Scores and their Jacobian at observations, as `policy` takes them.

        Raises:
            AgentError: where there are too many numbers to list them all.
        """
        ...


@runtime_checkable
class Trainable(Protocol):
    """An agent that can be trained further, toward another goal."""

    def retrained(self, world: object, goal: Goal, *, budget: int, seed: int) -> tuple[Agent, Spend]:
        """The agent after training toward `goal` for `budget` episodes (or rounds), and what it took."""
        ...
