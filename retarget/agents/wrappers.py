"""Agents that change nothing but the description: dead parameters added, or the states renamed. For controls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from retarget.agent import Agent, Carry, HasGoalSlot, HasScores, HasTable, Part, Scores, SlotWrite, TableView
from retarget.errors import AgentError
from retarget.goal import StateGoal
from retarget.world import FiniteModel, FiniteWorld, WorldSpec


@dataclass(frozen=True, eq=False)
class _Wrapper(Agent):
    """An agent that acts as the one inside it does."""

    inner: Agent

    @property
    def n_states(self) -> int | None:
        return self.inner.n_states

    @property
    def seen_starts(self) -> np.ndarray | None:
        return self.inner.seen_starts

    @property
    def simulations_per_action(self) -> int:
        return self.inner.simulations_per_action

    @property
    def plans_once(self) -> bool:
        return self.inner.plans_once

    @property
    def flops_per_action(self) -> float:
        return self.inner.flops_per_action

    def scores_at(self, obs: np.ndarray) -> Scores:
        """The scores of the agent inside. Raises AgentError where it has none."""
        if not isinstance(self.inner, HasScores):
            raise AgentError(f"agent {self.inner.kind!r} has no scores of actions that move smoothly with its numbers")
        return self.inner.scores_at(obs)


@dataclass(frozen=True, eq=False)
class Padded(_Wrapper):
    """An agent with cells that nothing reads at the end of one part (which becomes one-dimensional).

    Attributes:
        inner: the agent.
        part: the name of the part that is lengthened.
        dead: values of the dead cells, `[n]`.
    """

    part: str
    dead: np.ndarray
    kind = "padded"

    def __post_init__(self) -> None:
        if self.part not in self.inner.parts:
            raise AgentError(
                f"agent {self.inner.kind!r} has no part {self.part!r}; it has {', '.join(self.inner.parts)}"
            )
        if np.ndim(self.dead) != 1 or np.size(self.dead) == 0:
            raise AgentError(f"dead cells must be a list of at least one value, got shape {np.shape(self.dead)}")

    @property
    def config(self) -> Mapping[str, object]:
        return {"inner": self.inner.digest}

    @cached_property
    def parts(self) -> Mapping[str, Part]:
        out = dict(self.inner.parts)
        old = out[self.part]
        longer = np.concatenate([old.array.reshape(-1), np.asarray(self.dead, dtype=old.array.dtype)])
        out[self.part] = Part(old.name, old.role, longer, old.alphabet)
        return out

    def with_arrays(self, arrays: Mapping[str, np.ndarray]) -> Padded:
        self.check_arrays(arrays)
        old = self.inner.parts[self.part].array
        inner = {k: v for k, v in arrays.items() if k != self.part}
        dead = self.dead
        if self.part in arrays:
            inner[self.part] = arrays[self.part][: old.size].reshape(old.shape)
            dead = arrays[self.part][old.size :]
        return replace(self, inner=self.inner.with_arrays(inner), dead=dead)

    def policy(self, obs: np.ndarray, carry: Carry = None) -> tuple[np.ndarray, Carry]:
        return self.inner.policy(obs, carry)

    def scores_at(self, obs: np.ndarray) -> Scores:
        """The scores of the agent inside; they do not move with the dead cells."""
        inner = super().scores_at(obs)
        if self.part not in inner.parts:
            return inner
        names = list(inner.parts)
        end = sum(inner.parts[n] for n in names[: names.index(self.part) + 1])
        dead = np.zeros((*inner.value.shape, np.size(self.dead)))
        jacobian = np.concatenate([inner.jacobian[:, :, :end], dead, inner.jacobian[:, :, end:]], axis=2)
        counts = {n: c + (np.size(self.dead) if n == self.part else 0) for n, c in inner.parts.items()}
        return Scores(inner.relaxation, inner.value, jacobian, counts)

    def blank(self, seed: int) -> Padded:
        return replace(self, inner=self.inner.blank(seed))


@dataclass(frozen=True, eq=False)
class Relabelled(_Wrapper):
    """An agent in a world whose state `s` is now called `perm[s]`. Its parts stay as they are.

    Attributes:
        inner: the agent, which knows the old names.
        perm: int `[S]`, the new name of each state.
    """

    perm: np.ndarray
    kind = "relabelled"

    @cached_property
    def _old(self) -> np.ndarray:
        return np.argsort(self.perm)

    @property
    def config(self) -> Mapping[str, object]:
        return {"inner": self.inner.digest, "perm": np.asarray(self.perm).tolist()}

    @property
    def parts(self) -> Mapping[str, Part]:
        return self.inner.parts

    @property
    def seen_starts(self) -> np.ndarray | None:
        seen = self.inner.seen_starts
        return None if seen is None else np.sort(np.asarray(self.perm)[seen])

    def with_arrays(self, arrays: Mapping[str, np.ndarray]) -> Relabelled:
        return replace(self, inner=self.inner.with_arrays(arrays))

    def policy(self, obs: np.ndarray, carry: Carry = None) -> tuple[np.ndarray, Carry]:
        return self.inner.policy(self._old[np.asarray(obs)], carry)

    def scores_at(self, obs: np.ndarray) -> Scores:
        return super().scores_at(self._old[np.asarray(obs)])

    def blank(self, seed: int) -> Relabelled:
        return replace(self, inner=self.inner.blank(seed))


class RelabelledSlot(Relabelled):
    """As `Relabelled`, for an agent with a goal slot."""

    def _goal(self, goal: StateGoal) -> StateGoal:
        return StateGoal.of((int(self._old[s]) for s in goal.states), goal.label)

    def slot_writes(self, goal: StateGoal) -> tuple[SlotWrite, ...]:
        inner = self.inner
        return inner.slot_writes(self._goal(goal)) if isinstance(inner, HasGoalSlot) else ()

    def slot_candidates(self) -> tuple[SlotWrite, ...]:
        return self.inner.slot_candidates() if isinstance(self.inner, HasGoalSlot) else ()


def _view(agent: Relabelled) -> TableView:
    if not isinstance(agent.inner, HasTable):
        raise AgentError(f"agent {agent.inner.kind!r} has no table")
    view = agent.inner.table_view()
    return TableView(view.part, view.cell[agent._old], view.value[agent._old], view.fill)


class RelabelledTable(Relabelled):
    """As `Relabelled`, for an agent with a table."""

    def table_view(self) -> TableView:
        return _view(self)


class RelabelledSlotTable(RelabelledSlot):
    """As `Relabelled`, for an agent with both."""

    def table_view(self) -> TableView:
        return _view(self)


def relabel_agent(agent: Agent, perm: np.ndarray) -> Relabelled:
    """The same agent for a world whose state `s` is now called `perm[s]`; capabilities are kept, but for retraining."""
    if isinstance(agent, HasGoalSlot):
        return (RelabelledSlotTable if isinstance(agent, HasTable) else RelabelledSlot)(agent, perm)
    return (RelabelledTable if isinstance(agent, HasTable) else Relabelled)(agent, perm)


def relabel_goal(goal: StateGoal, perm: np.ndarray) -> StateGoal:
    """A goal under its states' new names."""
    return StateGoal.of((int(perm[s]) for s in goal.states), goal.label)


@dataclass(frozen=True, eq=False)
class ModelWorld:
    """A finite world that is its model and nothing else: enough for every probe, not a Gymnasium environment.

    Attributes:
        model: the dynamics.
        goal: the goal in force.
        starts: int `[N]`; by default every state.
        goal_list: goals to draw from; by default every single state that some start can reach.
        coordinates, action_moves: as in `FiniteWorld`.
        name: what it is called.

    >>> ring = FiniteModel.deterministic([[1, 2], [2, 0], [0, 1]])
    >>> len(ModelWorld(ring, StateGoal.of([0])).goals)
    3
    """

    model: FiniteModel
    goal: StateGoal
    starts: np.ndarray | None = None
    goal_list: tuple[StateGoal, ...] | None = None
    coordinates: np.ndarray | None = None
    action_moves: np.ndarray | None = None
    name: str = "model"

    @property
    def spec_data(self) -> WorldSpec:
        return WorldSpec(self.name)

    @cached_property
    def start_states(self) -> np.ndarray:
        return np.arange(self.model.n_states) if self.starts is None else np.asarray(self.starts, np.int64)

    @cached_property
    def goals(self) -> tuple[StateGoal, ...]:
        if self.goal_list is not None:
            return self.goal_list
        from retarget.kernels import all_distances

        model = self.model
        own = np.arange(model.n_states, dtype=np.int32)[:, None, None]
        edges = np.where(model.prob > 0, model.next_state, own).reshape(model.n_states, -1)
        far = all_distances(edges.astype(np.int32))[:, self.start_states] > 0
        return tuple(StateGoal.of([int(s)]) for s in np.flatnonzero(far.any(1)))

    def as_goal(self, value: object) -> StateGoal:
        if isinstance(value, StateGoal):
            return value
        return StateGoal.of([int(value)] if isinstance(value, (int, np.integer)) else value)  # type: ignore[arg-type]

    def as_state(self, value: object) -> int:
        return int(value)  # type: ignore[call-overload,no-any-return]


def relabel_world(world: FiniteWorld, perm: np.ndarray) -> ModelWorld:
    """The same world with state `s` renamed to `perm[s]`."""
    perm = np.asarray(perm)
    old = np.argsort(perm)
    return ModelWorld(
        model=world.model.relabel(perm),
        goal=relabel_goal(world.goal, perm),
        starts=np.sort(perm[world.start_states]),
        goal_list=tuple(relabel_goal(g, perm) for g in world.goals),
        coordinates=None if world.coordinates is None else world.coordinates[old],
        action_moves=world.action_moves,
        name=f"{world.spec_data.label}, relabelled",
    )
