"""Two links hanging from a bar, a motor between them (source: Sutton 1996). Dynamics of Gymnasium's Acrobot-v1."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from retarget.envs.control.base import EDGE, ControlWorld, Feature, StartBox
from retarget.errors import GoalError
from retarget.goal import RegionGoal
from retarget.world import Expert

TOP_SPEEDS = (4 * math.pi, 9 * math.pi)
TOP = 2.0


#: Torque is the sign of a weighted sum of velocity1, velocity2, sin(theta1), sin(theta2), sin(theta1 + theta2) and
#: velocity1 cos(theta2). The first of PUMPS puts energy in, the first of BRAKES takes it out; random search found the
#: others.
PUMPS = np.array(
    [
        [0.0, 1.0, 0.0, 0.0, 0.0, 0.0],
        [-0.279, 0.693, -0.125, 0.279, -1.026, 0.346],
        [-0.668, 0.635, 0.707, -0.159, -0.985, 0.582],
        [-0.885, 0.517, 0.429, -0.607, 0.315, 0.899],
        [-0.687, 0.248, 0.375, 0.264, -1.0, -0.307],
    ]
)
BRAKES = np.array([[0.0, -1.0, 0.0, 0.0, 0.0, 0.0], [-0.281, -1.064, 0.553, 0.311, 0.348, 0.009]])
#: Steps looked ahead: until a goal is reached, and while one is held where nothing rests.
WINDOW, HOLD_WINDOW = 200, 20


@dataclass(frozen=True)
class AcrobotExpert:
    """Tries each torque, followed by each of a few controllers to the end of a window, and takes the best (source:
    Bertsekas, Tsitsiklis and Wu 1997, rollout).

    Attributes:
        goal: what it swings to.
        gamma: discount.
    """

    goal: RegionGoal
    gamma: float

    def act(self, state: np.ndarray) -> np.ndarray:
        """Actions int64 `[B]` for float64 `[B, 4]` states."""
        from retarget.envs.control.kernels import acrobot_choose

        ((_, centre, width),) = self.goal.targets
        out = np.empty(len(state), dtype=np.int64)
        rows = np.ascontiguousarray(state, dtype=np.float64)
        low, high = centre - width - EDGE, centre + width + EDGE
        # at the bottom a brake comes to rest, and one plan will do; elsewhere short plans are made again and again
        rest = self.goal.hold and low <= -TOP
        controllers = BRAKES if rest else np.concatenate([PUMPS, BRAKES[:1]])
        window = HOLD_WINDOW if self.goal.hold and not rest else WINDOW
        acrobot_choose(rows, controllers, low, high, self.goal.hold, self.gamma, window, out)
        return out


def _above(height: float, *, hold: bool = False) -> RegionGoal:
    label = f"{'hold ' if hold else ''}height>={height:g}"
    return RegionGoal.of(hold=hold, height=((height + TOP) / 2, (TOP - height) / 2), label=label)


class Acrobot(ControlWorld):
    """Swing the tip up with a torque of -1, 0 or 1 at the elbow. Its height, from -2 hanging to 2 upright, is
    `-cos(theta1) - cos(theta1 + theta2)` in lengths of a link.

    A number as a goal is a height to reach: the region from there to the top. The world's own goal is 1, the
    original task's.

    >>> Acrobot().as_goal(1.0) == Acrobot().goal
    True
    """

    name = "Acrobot"
    gym_id = "Acrobot-v1"
    state_names = ("theta1 (rad)", "theta2 (rad)", "velocity1 (rad/s)", "velocity2 (rad/s)")
    n_actions = 3
    steps = 500
    features: Mapping[str, Feature] = MappingProxyType({"height": Feature(-TOP, TOP, 0.25, unit="link")})
    standard = StartBox((-0.1,) * 4, (0.1,) * 4)
    wide = StartBox((-math.pi, -math.pi, -2.0, -4.0), (math.pi, math.pi, 2.0, 4.0))
    menu = (
        _above(1.0),
        _above(0.0),
        _above(0.5),
        _above(-1.0),
        _above(1.5),
        _above(1.9),
        RegionGoal.of(hold=True, height=(-1.9, 0.1), label="hold low"),
        _above(0.0, hold=True),
        _above(1.0, hold=True),
    )

    @property
    def observation_range(self) -> tuple[np.ndarray, np.ndarray]:
        high = np.array([1.0, 1.0, 1.0, 1.0, *TOP_SPEEDS], dtype=np.float32)
        return -high, high

    def from_number(self, value: float) -> RegionGoal:
        """To reach a height, or anything above it.

        Raises:
            GoalError: for heights that the tip cannot have.
        """
        if not -TOP < value < TOP:
            raise GoalError(f"height {value:g} is outside -2 to 2; choose a height between")
        return _above(value)

    def observe(self, state: np.ndarray) -> np.ndarray:
        """Float32 `[B, 6]`: cosine and sine of both angles, and the velocities."""
        s = np.asarray(state, dtype=np.float64).T
        out = np.stack([np.cos(s[0]), np.sin(s[0]), np.cos(s[1]), np.sin(s[1]), s[2], s[3]], axis=1)
        return out.astype(np.float32)

    def feature(self, state: np.ndarray, name: str) -> np.ndarray:
        """The height of the tip."""
        return np.asarray(-np.cos(state[:, 0]) - np.cos(state[:, 0] + state[:, 1]))

    def dynamics(self, state: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One step of 0.2 s by the fourth-order Runge-Kutta method; never ends an episode."""
        from retarget.envs.control.kernels import acrobot_steps

        after = np.array(state)
        acrobot_steps(after, np.ascontiguousarray(action - 1, dtype=np.float64))
        return after, np.zeros(len(state), dtype=np.bool_)

    def expert(self, goal: RegionGoal) -> Expert:
        """Pumps energy in or out, improved by trying each torque first."""
        return AcrobotExpert(self.as_goal(goal), self.gamma)
