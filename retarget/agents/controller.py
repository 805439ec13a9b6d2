"""A feedback controller: moves toward a set-point, sees no walls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from retarget.agent import Agent, Carry, Categorical, Part, Real, Scores, SlotWrite, own
from retarget.agents.tabular import default_palette
from retarget.errors import AgentError
from retarget.goal import StateGoal


@dataclass(frozen=True, eq=False)
class Controller(Agent):
    """Proportional control: take the action whose gain points best along (set-point - position).

    Attributes:
        setpoint: int `[2]` row and column.
        gain: float64 `[A, 2]`; action a scores `gain[a] · (setpoint - position)`. Ties go to the lowest action; with
            all scores equal (at the set-point) it acts uniformly.
        position: int `[S, 2]`, the sensor: where each state is.
        size: rows and columns that a set-point can name.

    >>> line = np.array([[0, 0], [0, 1], [0, 2]])
    >>> Controller(np.array([0, 2]), np.array([[0, -1], [0, 1]]), line, 3).policy(np.array([0, 2]))[0].tolist()
    [[0.0, 1.0], [0.5, 0.5]]
    """

    setpoint: np.ndarray
    gain: np.ndarray
    position: np.ndarray
    size: int
    kind = "controller"

    def __post_init__(self) -> None:
        gain, position = np.asarray(self.gain, np.float64), np.asarray(self.position, np.int64)
        setpoint = np.asarray(self.setpoint, np.int64)
        if (
            gain.ndim != 2
            or gain.shape[1] != 2
            or position.ndim != 2
            or position.shape[1] != 2
            or setpoint.shape != (2,)
        ):
            raise AgentError(
                f"a controller needs setpoint [2], gain [A, 2] and position [S, 2], "
                f"got {setpoint.shape}, {gain.shape} and {position.shape}"
            )
        for name, value in (("gain", gain), ("position", position), ("setpoint", setpoint)):
            object.__setattr__(self, name, own(value))

    @cached_property
    def parts(self) -> Mapping[str, Part]:
        return {
            "setpoint": Part("setpoint", "goal_slot", self.setpoint, Categorical(self.size)),
            "gain": Part("gain", "weight", self.gain, Real()),
        }

    @property
    def fixed_arrays(self) -> Mapping[str, np.ndarray]:
        return {"position": self.position}

    @property
    def n_states(self) -> int:
        return len(self.position)

    @property
    def flops_per_action(self) -> float:
        return float(2 + 4 * len(self.gain))

    def with_arrays(self, arrays: Mapping[str, np.ndarray]) -> Controller:
        self.check_arrays(arrays)
        return replace(self, setpoint=arrays.get("setpoint", self.setpoint), gain=arrays.get("gain", self.gain))

    def policy(self, obs: np.ndarray, carry: Carry = None) -> tuple[np.ndarray, Carry]:
        score = (self.setpoint - self.position[np.asarray(obs)]) @ self.gain.T
        flat = score.max(1) == score.min(1)
        symbol = np.where(flat, score.shape[1], score.argmax(1))
        return default_palette(score.shape[1])[symbol], None

    def blank(self, seed: int) -> Controller:
        """The set-point at row 0, column 0. The gains are construction, not training: they stay."""
        return replace(self, setpoint=np.zeros(2, np.int64))

    def _write(self, state: int) -> SlotWrite:
        row, column = (int(x) for x in self.position[state])
        return SlotWrite("setpoint", 0.0, ((0, float(row)), (1, float(column))))

    def slot_writes(self, goal: StateGoal) -> tuple[SlotWrite, ...]:
        return tuple(dict.fromkeys(self._write(s) for s in goal.states))

    def slot_candidates(self) -> tuple[SlotWrite, ...]:
        return tuple(dict.fromkeys(self._write(s) for s in range(len(self.position))))

    def scores_at(self, obs: np.ndarray) -> Scores:
        """Its own scores, with a set-point that may lie between cells."""
        from retarget.agents.scores import controller_scores

        return controller_scores(self.setpoint, self.gain, self.position[np.asarray(obs)])
