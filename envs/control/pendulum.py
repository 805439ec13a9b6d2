"""A pendulum with a motor too weak to lift it straight up (dynamics of Gymnasium's Pendulum-v1)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from retarget.envs.control.base import Axis, ControlWorld, Feature, StartBox
from retarget.goal import RegionGoal

TOP_SPEED, TORQUE, DT, G = 8.0, 2.0, 0.05, 10.0
TURN = 2 * math.pi


class Pendulum(ControlWorld):
    """Turn a pendulum with a torque in [-2, 2]. The angle is 0 upright and pi hanging, and is not wrapped in states.

    Gravity's 15 sin(angle) rad/s² stands against at most 6 of the motor, so that only angles with |sin(angle)| <= 0.4
    can be held still: within 0.41 rad of upright or of hanging. At any other angle (pi/2, say) a goal is held as long
    as swinging through it lasts. A number as a goal is an angle to hold.

    >>> Pendulum().as_goal(3 * math.pi).centres == (math.pi,)
    True
    """

    name = "Pendulum"
    gym_id = "Pendulum-v1"
    state_names = ("angle (rad)", "velocity (rad/s)")
    action_range = (np.array([-TORQUE]), np.array([TORQUE]))
    steps = 200
    features: Mapping[str, Feature] = MappingProxyType(
        {
            "angle": Feature(-math.pi, math.pi, 0.2, column=0, period=TURN, hold=True, unit="rad"),
            "velocity": Feature(-TOP_SPEED, TOP_SPEED, 0.5, column=1, hold=True, unit="rad/s"),
        }
    )
    standard = StartBox((-math.pi, -1.0), (math.pi, 1.0))
    wide = StartBox((-math.pi, -TOP_SPEED), (math.pi, TOP_SPEED))
    menu = (
        RegionGoal.of(hold=True, angle=(0.0, 0.2), label="upright"),
        RegionGoal.of(hold=True, angle=(math.pi, 0.2), label="hanging"),
        RegionGoal.of(hold=True, angle=(0.3, 0.1), label="lean left"),
        RegionGoal.of(hold=True, angle=(-0.3, 0.1), label="lean right"),
        RegionGoal.of(hold=True, angle=(math.pi - 0.35, 0.1), label="hang left"),
        RegionGoal.of(hold=True, angle=(0.35 - math.pi, 0.1), label="hang right"),
        RegionGoal.of(hold=True, angle=(math.pi / 2, 0.2), label="level left"),
        RegionGoal.of(hold=True, angle=(-math.pi / 2, 0.2), label="level right"),
        RegionGoal.of(angle=(0.0, 0.2), label="reach upright"),
        RegionGoal.of(hold=True, velocity=(6.0, 1.0), label="spin"),
    )
    grid = (Axis(-math.pi, math.pi, 320, periodic=True), Axis(-TOP_SPEED, TOP_SPEED, 241))
    levels = 5

    @property
    def observation_range(self) -> tuple[np.ndarray, np.ndarray]:
        high = np.array([1.0, 1.0, TOP_SPEED], dtype=np.float32)
        return -high, high

    def observe(self, state: np.ndarray) -> np.ndarray:
        """Float32 `[B, 3]`: cosine and sine of the angle, and the velocity."""
        state = np.asarray(state, dtype=np.float64)
        return np.stack([np.cos(state[:, 0]), np.sin(state[:, 0]), state[:, 1]], axis=1).astype(np.float32)

    def dynamics(self, state: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Unit mass and length; never ends an episode."""
        angle, speed = state[:, 0], state[:, 1]
        speed = np.clip(speed + (3 * G / 2 * np.sin(angle) + 3.0 * action[:, 0]) * DT, -TOP_SPEED, TOP_SPEED)
        return np.stack([angle + speed * DT, speed], axis=1), np.zeros(len(state), dtype=np.bool_)
