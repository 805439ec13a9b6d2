"""Many copies of a finite world in one compiled step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from retarget.envs.base import FiniteEnv
from retarget.envs.grid import GridWorld
from retarget.envs.places import is_index
from retarget.errors import GoalError, WorldError, unknown
from retarget.goal import StateGoal
from retarget.rng import word

_RESET_OPTIONS = ("goal", "start", "reset_mask")
_NO_LIMIT = np.iinfo(np.int32).max


class VectorWorld(VectorEnv[Any, Any, np.ndarray]):
    """`num_envs` copies of a finite world, stepped by one compiled kernel.

    An environment that is done begins a new episode on the next step, whose action it ignores
    (`AutoresetMode.NEXT_STEP`). Its random numbers are keyed by (seed, its index, episode, step): environment i
    does the same whatever `num_envs` is. Infos are empty: in a finite world the observation tells the state.

    Args:
        world: the world; its goal, starts, observations and step limit hold for every copy.
        num_envs: number of copies, at least 1.

    >>> from retarget.envs import make_world
    >>> envs = VectorWorld(make_world("OpenGrid", size=5), 3)
    >>> obs, _ = envs.reset(seed=0, options={"start": (4, 3)})
    >>> envs.step(np.array([1, 0, 3]))[1].tolist()
    [1.0, 0.0, 0.0]
    """

    def __init__(self, world: FiniteEnv, num_envs: int = 1) -> None:
        if not is_index(num_envs) or num_envs < 1:
            raise WorldError(f"num_envs must be an integer of at least 1, got {num_envs!r}")
        from retarget.envs import kernels

        self._kernels = kernels
        self.world = world
        self.num_envs = n = int(num_envs)
        self.metadata = {**world.metadata, "autoreset_mode": AutoresetMode.NEXT_STEP}
        self.render_mode = world.render_mode
        self.single_action_space = world.action_space
        self.single_observation_space = world.observation_space
        self.action_space = batch_space(world.action_space, n)
        self.observation_space = batch_space(world.observation_space, n)
        model = world.model
        self._n_actions = model.n_actions
        self._next = model.next_state.reshape(model.n_states * model.n_actions, -1)
        self._cum = world._cum.reshape(self._next.shape)
        self._starts = np.ascontiguousarray(world.start_states, dtype=np.int32)
        self._limit = world.max_episode_steps or _NO_LIMIT
        self._keys = np.zeros(n, np.uint64)
        self._state = np.full(n, -1, np.int32)
        self._steps = np.zeros(n, np.int32)
        self._episode = np.full(n, -1, np.int64)
        self._pending = np.zeros(n + 1, np.int64)
        self._n_pending = 0
        self._seeded = False
        self._goals: tuple[StateGoal, ...] = (world.goal,)
        self._goal_row = np.zeros(n, np.int32)
        self._index_goals()

    @property
    def goals_in_force(self) -> tuple[StateGoal, ...]:
        """The goal of each environment."""
        return tuple(self._goals[row] for row in self._goal_row)

    @property
    def states(self) -> np.ndarray:
        """Int32 `[N]`: a copy of the states that the environments are in."""
        return self._state.copy()

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, object] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode in every environment, or in those of `reset_mask`.

        Args:
            seed: names the streams; without it, the streams go on (and the first reset draws a seed).
            options: `goal` and `start`: one value for all, or a list or array of `num_envs` values, one each (so write
                a single cell as a tuple). Goals stay in force until changed, a start holds for this episode.
                `reset_mask`: boolean `[N]`, the environments to reset.

        Raises:
            WorldError: for another option, a seed that is no integer, or a mask of another shape.
            GoalError: when a goal or start does not exist, or a start lies in its goal.
        """
        chosen = dict(options or {})
        for name in chosen:
            if name not in _RESET_OPTIONS:
                raise WorldError(unknown("reset option", name, _RESET_OPTIONS))
        if seed is not None and not is_index(seed):
            raise WorldError(f"the seed of a vector world is one integer for all environments, got {seed!r}")
        which = self._which(chosen.get("reset_mask"))
        fixed = self._plan(chosen.get("goal"), chosen.get("start"), which)
        super().reset(seed=None if seed is None else int(seed))
        if seed is not None or not self._seeded:
            keys = np.empty(self.num_envs, np.uint64)
            self._kernels.make_keys(np.uint64(word(int(self.np_random_seed or 0), "vector_world")), keys)
            self._keys[which] = keys[which]
            self._episode[which] = -1
            self._seeded = True
        self._episode[which] += 1
        self._kernels.begin(
            which, self._keys, self._episode, self._starts, self._masks, self._goal_row, fixed, self._state, self._steps
        )
        still = self._pending[: self._n_pending]
        still = still[~np.isin(still, which)]
        self._n_pending = len(still)
        self._pending[: len(still)] = still
        return self._observe(self._state.copy()), {}

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One step of every environment.

        Args:
            actions: int `[N]`.

        Returns:
            observations `[N, ...]`, rewards float64 `[N]`, terminations and truncations boolean `[N]`, and an empty
            dictionary; all of it fresh data.

        Raises:
            WorldError: before the first reset, or when an action does not exist; nothing has changed then.
        """
        acts = np.asarray(actions)
        n = self.num_envs
        if acts.shape != (n,) or acts.dtype.kind not in "iu":
            raise WorldError(f"actions must be an int array [{n}], got shape {acts.shape} of {acts.dtype}")
        if not self._seeded or self._state[0] < 0:
            raise WorldError("step() was called before reset(); call reset() first")
        if acts.dtype != np.int64 and acts.dtype != np.int32:
            acts = acts.astype(np.int64)
        obs = np.empty(n, np.int32)
        reward = np.empty(n, np.float64)
        term = np.empty(n, np.bool_)
        trunc = np.empty(n, np.bool_)
        rest = (
            self._n_actions, self._limit, self._n_pending, self._pending, self._keys, self._episode, self._starts,
            self._masks, self._goal_row, self._state, self._steps, obs, reward, term.view(np.uint8),
            trunc.view(np.uint8),
        )  # fmt: skip
        if self._packed is not None:
            done = self._kernels.step_table(acts, self._packed, *rest)
        else:
            done = self._kernels.step_model(acts, self._next, self._cum, *rest)
        if done < 0:
            bad = acts[(acts < 0) | (acts >= self._n_actions)][0]
            raise WorldError(f"action {bad} does not exist; actions are 0 to {self._n_actions - 1}")
        self._n_pending = done
        return self._observe(obs), reward, term, trunc, {}

    # -- inside -------------------------------------------------------------------------------------------------

    def _which(self, mask: object) -> np.ndarray:
        if mask is None:
            return np.arange(self.num_envs)
        if not isinstance(mask, np.ndarray) or mask.shape != (self.num_envs,) or mask.dtype != np.bool_:
            raise WorldError(f"reset_mask must be a boolean NumPy array [{self.num_envs}], got {mask!r}")
        if not mask.any():
            raise WorldError("reset_mask selects no environment; set at least one entry to True")
        if not mask.all() and not self._seeded:
            raise WorldError("the first reset must cover every environment; leave reset_mask out")
        return np.flatnonzero(mask)

    def _plan(self, goal: object, start: object, which: np.ndarray) -> np.ndarray:
        """Check and take over goals; int32 `[N]` fixed starts (-1: draw one). Raises before anything changes."""
        goals, row = self._goals, self._goal_row
        if goal is not None:
            wanted = self._each(goal, self.world.as_goal)
            full = [goals[r] for r in row]
            for i in which:
                full[i] = wanted[i]
            goals = tuple(dict.fromkeys(full))
            number = {g: k for k, g in enumerate(goals)}
            row = np.array([number[g] for g in full], dtype=np.int32)
        for g in goals:
            self.world.observer.check(g)
            if np.isin(self._starts, g.states).all() and start is None:
                raise GoalError(f"goal {g.label} covers every start of {self.world.spec_data.label}; choose another")
        fixed = np.full(self.num_envs, -1, np.int32)
        if start is not None:
            fixed[which] = np.array(self._each(start, self.world.as_state), dtype=np.int32)[which]
            for i in which:
                if fixed[i] in goals[row[i]].states:
                    raise GoalError(f"start {fixed[i]} of environment {i} lies in its goal {goals[row[i]].label}")
        if goal is not None:
            self._goals, self._goal_row = goals, row
            self._index_goals()
        return fixed

    def _each(self, value: object, resolve: Any) -> list[Any]:
        """One value for all, or a list or array of `num_envs` values, one each."""
        if isinstance(value, (list, np.ndarray)) and len(value) == self.num_envs:
            return [resolve(tuple(v) if isinstance(v, np.ndarray) and v.ndim else v) for v in value]
        return [resolve(value)] * self.num_envs

    def _index_goals(self) -> None:
        model = self.world.model
        self._masks = np.stack([g.mask(model.n_states) for g in self._goals]).astype(np.uint8)
        self._packed: np.ndarray | None = None
        if len(self._goals) == 1 and model.is_deterministic:
            nxt = self._next[:, 0]
            self._packed = (2 * nxt + self._masks[0][nxt]).astype(np.int32)
        if self.world.observer.with_goal:
            shown = np.stack([np.asarray(self.world.observer.goal(g)) for g in self._goals])
            self._shown = shown[self._goal_row]

    def _observe(self, states: np.ndarray) -> Any:
        observer = self.world.observer
        seen = states if observer.mode == "index" else observer.states(states)
        return {"observation": seen, "goal": self._shown.copy()} if observer.with_goal else seen


class GridVectorWorld(VectorWorld):
    """Many copies of one grid world: what `gymnasium.make_vec("retarget/FourRooms-v0", num_envs=8192)` gives.

    Args:
        layout: short name or registered id.
        num_envs: number of copies.
        render_mode: None; a vector world draws nothing.
        options: as for `GridWorld`.
    """

    def __init__(self, layout: str, *, num_envs: int = 1, render_mode: str | None = None, **options: object) -> None:
        if render_mode is not None:
            raise WorldError(f"a vector world draws nothing, got render_mode={render_mode!r}; render a single world")
        super().__init__(GridWorld(layout, **options), num_envs)  # type: ignore[arg-type]
