"""A pole on a cart (source: Barto, Sutton and Anderson 1983; dynamics of Gymnasium's CartPole-v1)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from retarget.envs.control.base import EDGE, ControlWorld, Feature, StartBox
from retarget.goal import RegionGoal
from retarget.world import Expert

GRAVITY, CART, POLE, HALF_LENGTH, PUSH, DT = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
TOTAL = CART + POLE
TRACK, FALL = 2.4, 12 * 2 * math.pi / 360


#: Controllers in a row, found by random search: gain from place to speed, top speed, gain from speed to lean, greatest
#: lean (rad), weight of the angular velocity. The first is careful, the others quick.
CONTROLLERS = np.array(
    [
        [0.678, 0.361, 0.907, 0.112, 0.169],
        [2.095, 2.505, 0.222, 0.194, 0.144],
        [1.581, 2.788, 0.217, 0.192, 0.151],
        [2.187, 4.918, 0.440, 0.195, 0.107],
        [1.116, 3.295, 0.868, 0.193, 0.142],
    ]
)
WINDOW = 250


@dataclass(frozen=True)
class CartPoleExpert:
    """Tries each push, followed by each of a few controllers to the end of a window, and takes the best (source:
    Bertsekas, Tsitsiklis and Wu 1997, rollout).

    Attributes:
        goal: what it steers to.
        gamma: discount.
        window: steps that are looked ahead.
    """

    goal: RegionGoal
    gamma: float
    window: int = WINDOW

    def act(self, state: np.ndarray) -> np.ndarray:
        """Actions int64 `[B]` for float64 `[B, 4]` states."""
        from retarget.envs.control.kernels import cart_pole_choose

        ((_, centre, width),) = self.goal.targets
        out = np.empty(len(state), dtype=np.int64)
        rows = np.ascontiguousarray(state, dtype=np.float64)
        cart_pole_choose(rows, CONTROLLERS, centre, width + EDGE, self.goal.hold, self.gamma, self.window, out)
        return out


class CartPole(ControlWorld):
    """Push a cart left or right. The episode ends when the pole leans by more than 12 degrees or the cart leaves the
    track at |x| = 2.4.

    The world's own goal, `balance`, is to hold x = 0 within 2.4: to stay up and on the track, which is what the
    original task pays for. A number as a goal is a place to hold within 0.25.

    >>> CartPole().goal
    RegionGoal(targets=(('x', 0.0, 2.4),), hold=True, label='balance')
    """

    name = "CartPole"
    gym_id = "CartPole-v1"
    state_names = ("x (m)", "velocity (m/s)", "angle (rad)", "angular velocity (rad/s)")
    n_actions = 2
    steps = 500
    features: Mapping[str, Feature] = MappingProxyType(
        {"x": Feature(-TRACK, TRACK, 0.25, column=0, hold=True, unit="m")}
    )
    standard = StartBox((-0.05,) * 4, (0.05,) * 4)
    wide = StartBox((-2.0, -1.0, -0.15, -1.0), (2.0, 1.0, 0.15, 1.0))
    menu = (
        RegionGoal.of(hold=True, x=(0.0, TRACK), label="balance"),
        *(RegionGoal.of(hold=True, x=(x, 0.25)) for x in (0.0, 1.0, -1.0, 0.5, -0.5, 1.5, -1.5, 2.0, -2.0)),
        RegionGoal.of(x=(2.0, 0.25)),
        RegionGoal.of(x=(-2.0, 0.25)),
    )

    @property
    def observation_range(self) -> tuple[np.ndarray, np.ndarray]:
        high = np.array([2 * TRACK, np.inf, 2 * FALL, np.inf], dtype=np.float32)
        return -high, high

    def dynamics(self, state: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Euler steps of 0.02 s."""
        x, x_dot, theta, theta_dot = state.T
        force = np.where(action == 1, PUSH, -PUSH)
        cos, sin = np.cos(theta), np.sin(theta)
        temp = (force + POLE * HALF_LENGTH * np.square(theta_dot) * sin) / TOTAL
        theta_acc = (GRAVITY * sin - cos * temp) / (HALF_LENGTH * (4.0 / 3.0 - POLE * np.square(cos) / TOTAL))
        x_acc = temp - POLE * HALF_LENGTH * theta_acc * cos / TOTAL
        after = np.stack(
            [x + DT * x_dot, x_dot + DT * x_acc, theta + DT * theta_dot, theta_dot + DT * theta_acc], axis=1
        )
        return after, (np.abs(after[:, 0]) > TRACK) | (np.abs(after[:, 2]) > FALL)

    def expert(self, goal: RegionGoal) -> Expert:
        """A controller in a row (place, speed, lean, push), improved by trying each push first."""
        return CartPoleExpert(self.as_goal(goal), self.gamma)
