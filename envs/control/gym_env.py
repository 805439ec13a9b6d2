"""The Gymnasium environment of a world with continuous states: one episode at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, SupportsFloat

import gymnasium
import numpy as np
from gymnasium import spaces

from retarget.errors import GoalError, WorldError, unknown
from retarget.goal import RegionGoal
from retarget.world import BoxWorld

RESET_OPTIONS = ("goal", "start")
_TRIES = 64


class BoxEnv(gymnasium.Env[np.ndarray, Any]):
    """One episode in a `BoxWorld`, goal and start settable.

    The reward is 1.0 for each step that ends inside the goal and 0.0 otherwise. An episode terminates on reaching a
    goal that is not to be held, and where the world ends it (a fall); it is truncated at the world's horizon.

    Args:
        world: a world, or the name of one of ours.
        goal: the goal in force until a reset sets another, in any form that the world's `as_goal` takes.
        render_mode: "ansi" for a line of text, or None.
        options: options of the world, where it is named.

    Raises:
        WorldError: for an unknown world, option or render mode.
        GoalError: for a goal that the world does not have.

    >>> env = BoxEnv("MountainCar", goal="left hill")
    >>> obs, info = env.reset(options={"start": [-1.08, -0.05]})
    >>> env.step(0)[1:4]
    (1.0, True, False)
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 4}  # noqa: RUF012 - as Gymnasium declares it

    def __init__(
        self, world: str | BoxWorld, *, goal: object = None, render_mode: str | None = None, **options: object
    ) -> None:
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise WorldError(unknown("render mode", render_mode, self.metadata["render_modes"]))
        if isinstance(world, str):
            from retarget.envs.make import make_world

            built: object = make_world(world, **options)
        elif options:
            raise WorldError(f"options {sorted(options)} go to the world; build it with them")
        else:
            built = world
        if not isinstance(built, BoxWorld):
            raise WorldError(f"{world!r} is no world with continuous states; use make_world or gymnasium.make for it")
        self.world = built
        self.render_mode = render_mode
        self._goal = built.goal if goal is None else built.as_goal(goal)
        unbounded = np.full(built.observation_size, np.inf, dtype=np.float32)
        low, high = getattr(built, "observation_range", (-unbounded, unbounded))
        self.observation_space = spaces.Box(low, high, dtype=np.float32)
        self.action_space: spaces.Space[Any]
        if built.n_actions is not None:
            self.action_space = spaces.Discrete(built.n_actions)
        else:
            assert built.action_range is not None
            lowest, highest = (np.asarray(bound, dtype=np.float32) for bound in built.action_range)
            self.action_space = spaces.Box(lowest, highest, dtype=np.float32)
        self._state = np.zeros((1, len(built.state_names)))
        self._steps = 0
        self._over = True

    @property
    def goal(self) -> RegionGoal:
        """The goal in force: the last one set, by the constructor or by `reset`."""
        return self._goal

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, object] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode.

        Args:
            seed: seeds `np_random`.
            options: `goal` sets the goal in force, for this and later episodes; `start`, a state float `[D]`, sets
                where this one begins. Without `start` it is drawn, outside a goal that is to be reached.

        Returns:
            the observation float32 `[O]`, and an info dictionary with the `state` float64 `[D]`.

        Raises:
            WorldError: for any other option.
            GoalError: when the goal or start does not exist, or the start lies in a goal that is to be reached.
        """
        chosen = dict(options or {})
        for name in chosen:
            if name not in RESET_OPTIONS:
                raise WorldError(unknown("reset option", name, RESET_OPTIONS))
        goal = self._goal if chosen.get("goal") is None else self.world.as_goal(chosen["goal"])
        start = None if chosen.get("start") is None else self._as_state(chosen["start"], goal)
        super().reset(seed=seed)
        self._state = self._drawn(goal) if start is None else start
        self._goal, self._steps, self._over = goal, 0, False
        return self._observation(), self._info()

    def step(self, action: Any) -> tuple[np.ndarray, SupportsFloat, bool, bool, dict[str, Any]]:
        """Take one action.

        Returns:
            observation, reward (1.0 inside the goal), terminated, truncated, and info with the `state`.

        Raises:
            WorldError: when the episode is over, or there is no such action.
        """
        if self._over:
            raise WorldError("step() was called before reset(), or after the episode's end; call reset() first")
        given = np.asarray(action)
        self._state, ended = self.world.advance(self._state, given.reshape(1, *self.action_space.shape))  # type: ignore[misc]
        inside = bool(self.world.inside(self._state, self._goal)[0]) and not ended[0]
        self._steps += 1
        terminated = bool(ended[0]) or (inside and not self._goal.hold)
        truncated = not terminated and self._steps >= self.world.horizon
        self._over = terminated or truncated
        return self._observation(), float(inside), terminated, truncated, self._info()

    def render(self) -> Any:
        """A line of text with the state and the goal."""
        if self.render_mode is None:
            return None
        numbers = ", ".join(f"{n} {v:.4g}" for n, v in zip(self.world.state_names, self._state[0], strict=True))
        return f"{numbers}; goal {self._goal.label}"

    def _observation(self) -> np.ndarray:
        return np.asarray(self.world.observe(self._state)[0])

    def _info(self) -> dict[str, Any]:
        return {"state": self._state[0].copy()}

    def _as_state(self, value: object, goal: RegionGoal) -> np.ndarray:
        names = self.world.state_names
        try:
            state = np.array(value, dtype=np.float64).reshape(1, -1)
        except (TypeError, ValueError):
            raise GoalError(f"a start is {len(names)} numbers ({', '.join(names)}), got {value!r}") from None
        if state.shape[1] != len(names) or not np.isfinite(state).all():
            raise GoalError(f"a start is {len(names)} finite numbers ({', '.join(names)}), got {value!r}")
        if not goal.hold and self.world.inside(state, goal)[0]:
            raise GoalError(f"start {value!r} lies in the goal {goal.label}; choose another start or goal")
        return state

    def _drawn(self, goal: RegionGoal) -> np.ndarray:
        for _ in range(_TRIES):
            drawn = self.world.starts(1, rng=self.np_random)
            if goal.hold or not self.world.inside(drawn, goal)[0]:
                return drawn
        raise GoalError(
            f"goal {goal.label} covers the starts of {self.world.spec_data.label}; choose another goal or start"
        )
