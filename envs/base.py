"""An environment that is its own exact model: Gymnasium's interface over a `FiniteModel`, goal and start settable."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, SupportsFloat

import gymnasium
import numpy as np
from gymnasium import spaces

from retarget.envs.layouts import reachable
from retarget.envs.observe import Observer
from retarget.envs.places import Places, is_index
from retarget.errors import GoalError, WorldError, unknown
from retarget.goal import StateGoal
from retarget.world import FiniteModel, WorldSpec

RESET_OPTIONS = ("goal", "start")


def thresholds(model: FiniteModel) -> np.ndarray:
    """Float64 `[S, A, K]` cumulated probabilities: the successor drawn by u in [0, 1) is the number of entries <= u.

    From the last successor of positive probability on they are exactly 1, so rounding cannot select padding.
    """
    cum = np.cumsum(model.prob, axis=2)
    still = np.cumsum(model.prob[:, :, ::-1] > 0, axis=2)[:, :, ::-1]  # positive entries from here on
    return np.where(still - (model.prob > 0) == 0, 1.0, np.minimum(cum, 1.0))


class FiniteEnv(gymnasium.Env[Any, Any]):
    """A finite world. `GridWorld` and `GymWorld` build on it; it implements the `FiniteWorld` protocol.

    The reward is 1.0 on entering the goal, where the episode terminates, and 0.0 otherwise. The model knows no
    goal: in it, goal states are states like any other.

    Args:
        model: the dynamics.
        starts: int `[N]` states in which an episode may begin.
        places: resolves cells and indices.
        spec_data: what rebuilds the world.
        goal: default goal, in any form that `as_goal` takes.
        start: where every episode begins, or None to draw from `starts`.
        observer: how states become observations.
        coordinates: int `[S, 2]`, or None.
        action_moves: int `[A, 2]`, or None.
        max_episode_steps: steps after which an episode is truncated, or 0 for no limit.
        render_mode: one of the metadata's, or None.

    Raises:
        GoalError: when the goal or the start does not exist, or no start lies outside the goal.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 4}  # noqa: RUF012 - as Gymnasium declares it

    def __init__(
        self,
        model: FiniteModel,
        starts: np.ndarray,
        *,
        places: Places,
        spec_data: WorldSpec,
        goal: object,
        start: object = None,
        observer: Observer,
        coordinates: np.ndarray | None = None,
        action_moves: np.ndarray | None = None,
        max_episode_steps: int = 0,
        render_mode: str | None = None,
    ) -> None:
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise WorldError(unknown("render mode", render_mode, self.metadata["render_modes"]))
        self.places = places
        self._model = model
        self._cum = thresholds(model)
        self._spec_data = spec_data
        self._coordinates = coordinates
        self._action_moves = action_moves
        self._starts = np.unique(starts if start is None else [self.as_state(start)]).astype(np.int32)
        self._starts.setflags(write=False)
        self.observer = observer
        self.max_episode_steps = max_episode_steps
        self.render_mode = render_mode
        self.action_space = spaces.Discrete(model.n_actions)
        self.observation_space = observer.space
        self._state = -1
        self._steps = 0
        self._over = True
        self._set_goal(self.as_goal(goal))

    # -- the protocol -------------------------------------------------------------------------------------------

    @property
    def spec_data(self) -> WorldSpec:
        """The id and options that rebuild this world with `make_world`."""
        return self._spec_data

    @property
    def model(self) -> FiniteModel:
        """The exact dynamics. It knows no goal: goal states are left like any other state."""
        return self._model

    @property
    def goal(self) -> StateGoal:
        """The goal in force: the last one set, by the constructor or by `reset`."""
        return self._goal

    @property
    def start_states(self) -> np.ndarray:
        """Int32 `[N]`, sorted: states in which an episode may begin, the goal's own included."""
        return self._starts

    @cached_property
    def goals(self) -> tuple[StateGoal, ...]:
        """Goals that a study may draw from, one for each place (a cell, or a state where there are no cells).

        Each can be reached from a start that lies outside it.
        """
        everywhere = reachable(self._model.next_state, self._starts, prob=self._model.prob)
        if self._coordinates is None:
            candidates = [self.as_goal(s) for s in range(self._model.n_states)]
        else:
            candidates = [self.as_goal(cell) for cell in self.places.by_cell]
        return tuple(g for g in candidates if self._reaches(g, everywhere))

    @property
    def coordinates(self) -> np.ndarray | None:
        """Int32 `[S, 2]` row and column of each state, or None where states have no place."""
        return self._coordinates

    @property
    def action_moves(self) -> np.ndarray | None:
        """Int32 `[A, 2]` intended (row, column) move of each action, or None."""
        return self._action_moves

    def as_goal(self, value: object) -> StateGoal:
        """A goal of this world.

        Args:
            value: a `StateGoal`; a `(row, column)` cell, which stands for every state on it; a state index; or a
                set or list of cells. State indices in bulk go into a set, `{3, 7}`, because `[3, 7]` is a cell.

        Raises:
            GoalError: when there is no such state; the message says what is there and what is near.

        >>> from retarget.envs import make_world
        >>> make_world("OpenGrid", size=5).as_goal([(0, 1), (0, 0)])
        StateGoal(states=(0, 1), label='(0,1)+(0,0)')
        """
        return self.places.goal(value)

    def as_state(self, value: object) -> int:
        """The state of an index, or of a cell (the lowest-numbered of its states, where it has several).

        Raises:
            GoalError: when there is no such state.
        """
        if isinstance(value, np.ndarray):
            value = value.tolist()
        return self.places.states_of(value, "start")[0]

    # -- Gymnasium's interface ----------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, object] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode.

        Args:
            seed: seeds `np_random`.
            options: `goal` sets the goal in force, for this and later episodes; `start` sets where this one begins.
                Without `start`, it is drawn evenly from the start states outside the goal.

        Returns:
            the observation, and an info dictionary with the `state`.

        Raises:
            WorldError: for any other option.
            GoalError: when the goal or start does not exist, or the start lies in the goal.
        """
        chosen = dict(options or {})
        for name in chosen:
            if name not in RESET_OPTIONS:
                raise WorldError(unknown("reset option", name, RESET_OPTIONS))
        goal = self._goal if chosen.get("goal") is None else self.as_goal(chosen["goal"])
        start = None if chosen.get("start") is None else self.as_state(chosen["start"])
        if start is not None and start in goal.states:
            raise GoalError(f"start {chosen['start']!r} lies in the goal {goal.label}; choose another start or goal")
        super().reset(seed=seed)
        self._set_goal(goal)
        drawn = self._pool[int(self.np_random.integers(len(self._pool)))] if start is None else start
        self._state, self._steps, self._over = int(drawn), 0, False
        return self._observation(), {"state": self._state}

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Take one action.

        Returns:
            observation, reward (1.0 on entering the goal), terminated, truncated, and info with the `state`.

        Raises:
            WorldError: when the episode is over, or there is no such action.
        """
        if self._over:
            raise WorldError("step() was called before reset(), or after the episode's end; call reset() first")
        act = action.item() if isinstance(action, (np.ndarray, np.generic)) and np.size(action) == 1 else action
        if not is_index(act) or not 0 <= act < self._model.n_actions:
            raise WorldError(f"action {action!r} does not exist; actions are 0 to {self._model.n_actions - 1}")
        draw = 0
        if not self._model.is_deterministic:
            draw = int(np.count_nonzero(self._cum[self._state, act] <= self.np_random.random()))
        self._state = int(self._model.next_state[self._state, act, draw])
        self._steps += 1
        terminated = self._state in self._goal.states
        truncated = not terminated and 0 < self.max_episode_steps <= self._steps
        self._over = terminated or truncated
        return self._observation(), float(terminated), terminated, truncated, {"state": self._state}

    def observe(self, states: np.ndarray, goal: object = None) -> Any:
        """Observations of many states at once, as `step` would give them.

        Args:
            states: int `[B]`.
            goal: the goal shown where observations show one; the goal in force by default.

        Returns:
            an array `[B, ...]`, or a dictionary of two where observations show the goal.
        """
        shown = self._goal if goal is None else self.as_goal(goal)
        return self.observer.batch(np.asarray(states), shown)

    def render(self) -> Any:
        """A line of text with the state and the goal."""
        if self.render_mode is None:
            return None
        return f"state {self._state} of {self._model.n_states}, goal {self._goal.label}"

    # -- inside -------------------------------------------------------------------------------------------------

    def _observation(self) -> Any:
        return self.observer.one(self._state, self._goal)

    def _set_goal(self, goal: StateGoal) -> None:
        self.observer.check(goal)
        pool = self._starts[~np.isin(self._starts, goal.states)]
        if not len(pool):
            raise GoalError(
                f"goal {goal.label} covers every start of {self._spec_data.label}; choose another goal or start"
            )
        self._goal = goal
        self._pool = pool

    def _reaches(self, goal: StateGoal, everywhere: np.ndarray) -> bool:
        states = list(goal.states)
        if not everywhere[states].any():
            return False
        is_start, order, first = self._predecessors
        if not is_start[states].any():
            return True
        # One look at the predecessors settles nearly every goal of a world in which every cell is a start.
        before = np.concatenate([order[first[s] : first[s + 1]] for s in states])
        if any(is_start[u] and u not in goal.states for u in before.tolist()):
            return True
        outside = self._starts[~np.isin(self._starts, states)]
        in_goal = goal.mask(self._model.n_states)
        found = reachable(self._model.next_state, outside, prob=self._model.prob, stop=in_goal)
        return bool(found[states].any())

    @cached_property
    def _predecessors(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        # Which states are starts; predecessors sorted by successor; where each successor's block begins.
        is_start = np.zeros(self._model.n_states, dtype=np.bool_)
        is_start[self._starts] = True
        possible = self._model.prob > 0
        into = self._model.next_state[possible]
        by_target = np.argsort(into, kind="stable")
        first = np.searchsorted(into[by_target], np.arange(self._model.n_states + 1))
        return is_start, np.nonzero(possible)[0][by_target], first
