"""Shifts of what an agent sees and where it starts in worlds with continuous states: Gymnasium wrappers with a dial.

As in `retarget.envs.shifts`: `dose` 0 is no shift at all, they stack in any order, and `reset(seed=...)` alone sets
their random numbers. Observations are taken as they come from below, so that the order of a stack is the order in which
they are disturbed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from retarget.envs.control.gym_env import BoxEnv
from retarget.envs.shifts import Options, Shift
from retarget.errors import GoalError, WorldError

#: What a margin is lengthened by, in float32 steps, so that rounding leaves no observation outside its space.
_STEPS = 4.0 * float(np.finfo(np.float32).eps)


def box_env(env: gymnasium.Env[Any, Any]) -> BoxEnv:
    """The environment of a world with continuous states at the bottom of a stack of wrappers.

    Raises:
        WorldError: where it is something else.
    """
    inside = env.unwrapped
    if not isinstance(inside, BoxEnv):
        raise WorldError(f"this shift is for worlds with continuous states, got {type(inside).__name__}")
    return inside


def _rows(value: Any, width: int, what: str) -> np.ndarray:
    rows = np.atleast_2d(np.asarray(value, dtype=np.float64))
    if rows.ndim != 2 or rows.shape[1] != width or not rows.size or not np.isfinite(rows).all():
        raise WorldError(f"{what} must be finite numbers, {width} a row, got shape {np.shape(value)}")
    return rows


class _Seen(Shift):
    def __init__(self, env: gymnasium.Env[Any, Any], *, dose: float, **arguments: object) -> None:
        super().__init__(env, dose=dose, **arguments)
        box_env(env)
        below = env.observation_space
        assert isinstance(below, spaces.Box)
        self.below = below

    def widen(self, low: np.ndarray, high: np.ndarray) -> None:
        """Let observations go from `low` to `high` too, where the strength is not 0."""
        if self.dose > 0:
            low = np.minimum(low - np.abs(low) * _STEPS, self.below.low)
            high = np.maximum(high + np.abs(high) * _STEPS, self.below.high)
            self.observation_space = spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)


class ReplacedObservations(_Seen):
    """Regime 1, absence of information: with probability `dose`, at each step, a row of `pool` stands in place of the
    observation.

    Args:
        env: a `BoxEnv`, or a shift of one.
        dose: strength.
        pool: float `[P, O]`, e.g. observations of other episodes; a row of zeros without.

    Raises:
        WorldError: for a pool of another width, or a world of another kind.
    """

    def __init__(
        self, env: gymnasium.Env[Any, Any], *, dose: float, pool: Sequence[Sequence[float]] | np.ndarray | None = None
    ) -> None:
        super().__init__(env, dose=dose, pool=pool)
        width = self.below.shape[0]
        self.pool = _rows(np.zeros((1, width)) if pool is None else pool, width, "a pool").astype(np.float32)
        self.widen(self.pool.min(0), self.pool.max(0))

    def shift(self, observation: Any, info: dict[str, Any], first: bool) -> tuple[Any, dict[str, Any]]:
        rng = self.draws()
        hit, row = rng.random() < self.dose, int(rng.integers(len(self.pool)))
        return (self.pool[row].copy() if hit else observation), info


class OffsetObservations(_Seen):
    """Regimes 2 and 4: `dose` times `offset` is added to every observation: beyond the trained range where it is as
    wide as that, or found by an adversary (`retarget.shifted_box.offset_attack`).

    Args:
        env: a `BoxEnv`, or a shift of one.
        offset: float `[O]`.
        dose: strength.
        random_signs: draw the sign of each number anew for each episode.

    Raises:
        WorldError: for an offset of another width, or a world of another kind.

    >>> env = OffsetObservations(BoxEnv("MountainCar"), offset=[1.0, 0.0], dose=0.5)
    >>> obs, info = env.reset(options={"start": [-0.5, 0.0]})
    >>> obs.tolist(), info["state"].tolist()
    ([0.0, 0.0], [-0.5, 0.0])
    """

    def __init__(
        self, env: gymnasium.Env[Any, Any], *, offset: Sequence[float] | np.ndarray, dose: float = 1.0,
        random_signs: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(env, dose=dose, offset=offset, random_signs=random_signs)
        self.offset = self.dose * _rows(offset, self.below.shape[0], "an offset")[0]
        self.random_signs = random_signs
        self._now = self.offset
        lower = -np.abs(self.offset) if random_signs else np.minimum(self.offset, 0.0)
        upper = np.abs(self.offset) if random_signs else np.maximum(self.offset, 0.0)
        self.widen(self.below.low + lower, self.below.high + upper)

    def shift(self, observation: Any, info: dict[str, Any], first: bool) -> tuple[Any, dict[str, Any]]:
        if first and self.random_signs:
            self._now = self.offset * self.draws().choice((-1.0, 1.0), size=len(self.offset))
        if self.dose == 0:
            return observation, info
        return np.asarray(observation + self._now, dtype=np.float32), info


class BoxStartsFrom(Shift):
    """Starts drawn from a list of states with probability `dose`, as the world draws them otherwise: regimes 2, 3 and
    5. A start given in the options of `reset` goes before.

    Args:
        env: a `BoxEnv`, or a shift of one.
        starts: float `[N, D]` states, e.g. of `retarget.shifted_box.mixed_starts`; those in a goal to be reached are
            left out.
        dose: strength.

    Raises:
        WorldError: for states of another width, or a world of another kind.
    """

    def __init__(
        self, env: gymnasium.Env[Any, Any], *, starts: Sequence[Sequence[float]] | np.ndarray, dose: float = 1.0
    ) -> None:
        super().__init__(env, dose=dose, starts=starts)
        self.box = box_env(env)
        self.starts = _rows(starts, len(self.box.world.state_names), "starts")

    def begin(self, options: Options) -> dict[str, Any] | None:
        chosen = dict(options or {})
        if self.dose == 0 or chosen.get("start") is not None:
            return None if options is None else chosen
        goal = self.box.goal if chosen.get("goal") is None else self.box.world.as_goal(chosen["goal"])
        rng = self.draws()
        hit, where = rng.random() < self.dose, rng.random()
        if not hit:
            return None if options is None else chosen
        pool = self.starts if goal.hold else self.starts[~self.box.world.inside(self.starts, goal)]
        if not len(pool):
            raise GoalError(f"goal {goal.label} covers every shifted start; choose another goal or other starts")
        return {**chosen, "start": pool[int(where * len(pool))].tolist()}
