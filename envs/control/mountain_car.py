"""A car in a valley, too weak to drive straight up (source: Moore 1990; dynamics of Gymnasium's MountainCar-v0)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from retarget.envs.control.base import Axis, ControlWorld, Feature, StartBox
from retarget.goal import RegionGoal

LOW, HIGH, TOP_SPEED = -1.2, 0.6, 0.07
FORCE, GRAVITY = 0.001, 0.0025


class MountainCar(ControlWorld):
    """Push a car left, not at all, or right. The engine's 0.001 is less than the slope's `0.0025 cos(3 position)`.

    It can rest only where |cos(3 position)| <= 0.4: in the valley from -0.66 to -0.39, and on top of the right hill
    from 0.39 on. Elsewhere (the left hill), to hold a place is to come back to it as often as can be. A number as
    a goal is a position to reach.

    >>> car = MountainCar()
    >>> state, ended = car.advance(np.array([[-0.5, 0.0]]), np.array([2]))
    >>> state.round(6).tolist(), ended.tolist(), car.goal.label
    ([[-0.499177, 0.000823]], [False], 'right hill')
    """

    name = "MountainCar"
    gym_id = "MountainCar-v0"
    state_names = ("position", "velocity")
    n_actions = 3
    steps = 200
    features: Mapping[str, Feature] = MappingProxyType(
        {"position": Feature(LOW, HIGH, 0.05, column=0), "velocity": Feature(-TOP_SPEED, TOP_SPEED, 0.01, column=1)}
    )
    standard = StartBox((-0.6, 0.0), (-0.4, 0.0))
    wide = StartBox((LOW, -TOP_SPEED), (HIGH, TOP_SPEED))
    menu = (
        RegionGoal.of(position=(0.55, 0.05), label="right hill"),
        RegionGoal.of(position=(-1.15, 0.05), label="left hill"),
        RegionGoal.of(hold=True, position=(-1.1, 0.1), label="hold left hill"),
        RegionGoal.of(hold=True, position=(0.5, 0.1), label="hold right hill"),
        RegionGoal.of(hold=True, position=(-math.pi / 6, 0.02), label="hold valley"),
        RegionGoal.of(hold=True, position=(-0.62, 0.02), label="hold left of valley"),
        RegionGoal.of(hold=True, position=(-0.42, 0.02), label="hold right of valley"),
        RegionGoal.of(position=(-0.85, 0.05), label="left slope"),
        RegionGoal.of(position=(0.2, 0.05), label="right slope"),
    )
    grid = (Axis(LOW, HIGH, 401), Axis(-TOP_SPEED, TOP_SPEED, 401))

    @property
    def observation_range(self) -> tuple[np.ndarray, np.ndarray]:
        return np.array([LOW, -TOP_SPEED], dtype=np.float32), np.array([HIGH, TOP_SPEED], dtype=np.float32)

    def dynamics(self, state: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Never ends an episode: the right hill is a goal like any other."""
        position, velocity = state[:, 0], state[:, 1]
        velocity = velocity + ((action - 1) * FORCE + np.cos(3 * position) * (-GRAVITY))
        velocity = np.clip(velocity, -TOP_SPEED, TOP_SPEED)
        position = np.clip(position + velocity, LOW, HIGH)
        velocity = np.where((position == LOW) & (velocity < 0), 0.0, velocity)
        return np.stack([position, velocity], axis=1), np.zeros(len(state), dtype=np.bool_)
