"""Who knows what to do: value iteration on a grid of the state space, one look ahead through the true dynamics."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from retarget.errors import WorldError
from retarget.goal import RegionGoal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from retarget.envs.control.base import Axis, ControlWorld

#: Value iteration ends when no value moves by more than this.
TOLERANCE = 1e-7
MAX_ROUNDS = 400
#: Levels of each continuous action that are tried when acting; fewer are tried when values are worked out.
FINE_LEVELS = 41
_CHUNK = 1 << 18


def corners(axes: Sequence[Axis], state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Multilinear interpolation: int32 `[B, 2^D]` grid points round each state float64 `[B, D]`, and their weights.

    States beyond an axis are moved to its end, unless it is periodic.
    """
    index = np.zeros((len(state), 1), dtype=np.int64)
    weight = np.ones((len(state), 1))
    for d, axis in enumerate(axes):
        if axis.periodic:
            place = np.mod((state[:, d] - axis.low) / (axis.high - axis.low), 1.0) * axis.points
            low = np.minimum(place.astype(np.int64), axis.points - 1)
            high = (low + 1) % axis.points
        else:
            place = (np.clip(state[:, d], axis.low, axis.high) - axis.low) / (axis.high - axis.low) * (axis.points - 1)
            low = np.minimum(place.astype(np.int64), axis.points - 2)
            high = low + 1
        share = (place - low)[:, None]
        index = np.concatenate([index * axis.points + low[:, None], index * axis.points + high[:, None]], axis=1)
        weight = np.concatenate([weight * (1 - share), weight * share], axis=1)
    return index.astype(np.int32), weight


def grid_states(axes: Sequence[Axis]) -> np.ndarray:
    """Float64 `[N, D]`: the grid points, in C order."""
    ticks = [a.low + (a.high - a.low) * np.arange(a.points) / (a.points - (0 if a.periodic else 1)) for a in axes]
    return np.stack([m.reshape(-1) for m in np.meshgrid(*ticks, indexing="ij")], axis=1)


def action_levels(world: ControlWorld, levels: int) -> np.ndarray:
    """The actions to try: int64 `[A]`, or float64 `[A, K]`, every combination of evenly spaced levels."""
    if world.n_actions is not None:
        return np.arange(world.n_actions)
    assert world.action_range is not None
    ticks = [np.linspace(low, high, levels) for low, high in zip(*world.action_range, strict=True)]
    return np.stack([m.reshape(-1) for m in np.meshgrid(*ticks, indexing="ij")], axis=1)


def _look(
    world: ControlWorld, goal: RegionGoal, state: np.ndarray, action: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What one step brings: `Q = gain + Σ weight · value[index]`, float `[B]`, int32 and float64 `[B, C]`."""
    after, ended = world.advance(state, np.broadcast_to(action, (len(state), *action.shape)))
    inside = world.inside(after, goal) & ~ended
    index, weight = corners(world.grid, after)
    share = 1 - world.gamma if goal.hold else 1.0
    over = ended if goal.hold else ended | inside
    return world.gamma * share * inside, index, world.gamma * weight * ~over[:, None]


@dataclass(frozen=True, eq=False)
class GridExpert:
    """Acts greedily on interpolated values, one step ahead through the true dynamics.

    Attributes:
        world, goal: whom it shows what.
        value: float64 `[N]` at the grid points: `γ^T` toward a goal to reach; the discounted share of the steps to
            come spent inside, toward one to hold.
        rounds: rounds of policy iteration that it took.
    """

    world: ControlWorld
    goal: RegionGoal
    value: np.ndarray
    rounds: int

    def scores(self, state: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Float64 `[B, A]`: what each action is worth in each state."""
        out = np.empty((len(state), len(actions)))
        for a, action in enumerate(actions):
            gain, index, weight = _look(self.world, self.goal, state, action)
            out[:, a] = gain + (weight * self.value[index]).sum(1)
        return out

    def act(self, state: np.ndarray) -> np.ndarray:
        """Actions for float64 `[B, D]` states; the first of the best, where there are several."""
        state = np.asarray(state, dtype=np.float64)
        actions = action_levels(self.world, FINE_LEVELS)
        best = self.scores(state, actions).argmax(1)
        return np.asarray(actions[best])


@lru_cache(maxsize=64)
def grid_expert(world: ControlWorld, goal: RegionGoal) -> GridExpert:
    """Value iteration for one goal; kept for the next call with the same world and goal.

    Raises:
        WorldError: when the world has no grid, or one with another number of axes than its states have numbers.
    """
    from retarget.envs.control.kernels import solve

    if len(world.grid) != len(world.state_names) or len(world.grid) > 3:
        raise WorldError(
            f"{world.name} has {len(world.state_names)} numbers a state and {len(world.grid)} axes in its grid; "
            "give it one axis each (three at most), or override expert()"
        )
    states = grid_states(world.grid)
    actions = action_levels(world, world.levels)
    shape = (len(states), len(actions))
    gain = np.empty(shape)
    index = np.empty((*shape, 2 ** len(world.grid)), dtype=np.int32)
    weight = np.empty(index.shape, dtype=np.float32)
    for first in range(0, len(states), _CHUNK):
        rows = slice(first, first + _CHUNK)
        for a, action in enumerate(actions):
            gain[rows, a], index[rows, a], weight[rows, a] = _look(world, goal, states[rows], action)
    if not goal.hold:
        there = world.inside(states, goal)
        gain[there], weight[there] = 1.0, 0.0
    value = np.zeros(len(states))
    rounds = solve(value, np.zeros(len(states), dtype=np.int64), gain, index, weight, TOLERANCE, MAX_ROUNDS)
    value.setflags(write=False)
    return GridExpert(world, goal, value, rounds)
