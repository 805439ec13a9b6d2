"""Shifts of what an agent sees and where it starts, as Gymnasium wrappers with a dial, for finite worlds.

Each wrapper takes `dose` in [0, 1]; at 0 it is not there: the same observations, episodes and random numbers. They can
be stacked in any order, and draw from a generator of their own that `reset(seed=...)` alone sets, so that a shift of
observations leaves the world's own draws as they are. Observations of every mode are disturbed by showing another
state: what the agent is shown stands in the info as `seen`, where it is stands there as `state`. Worlds with continuous
states: `retarget.envs.shifts_box`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, SupportsFloat

import gymnasium
import numpy as np
from gymnasium.utils import RecordConstructorArgs, seeding

from retarget.envs.base import FiniteEnv
from retarget.errors import GoalError, ProbeError, WorldError
from retarget.rng import stream
from retarget.shifted import Swaps, beyond, check_dose, inner, n_swaps, region

Options = Mapping[str, object] | None


class Shift(gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """What shifts share: the dial, and a generator of their own.

    Args:
        env: a world, or a shift of one.
        dose: strength in [0, 1].

    Raises:
        WorldError: for a strength out of range.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], *, dose: float, **arguments: object) -> None:
        recorded: dict[str, Any] = {"dose": dose, **arguments}
        RecordConstructorArgs.__init__(self, **recorded)
        gymnasium.Wrapper.__init__(self, env)
        try:
            self.dose = check_dose(dose)
        except ProbeError as error:
            raise WorldError(str(error)) from None
        # twins in one stack must not draw the same numbers
        self._depth = sum(1 for w in _stack(env) if isinstance(w, Shift))
        self._own: np.random.Generator | None = None

    def draws(self) -> np.random.Generator:
        """The generator of this shift."""
        if self._own is None:
            self._own = seeding.np_random()[0]
        return self._own

    def reset(self, *, seed: int | None = None, options: Options = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self._own = stream(seed, "shift", type(self).__name__, self._depth)
        observation, info = self.env.reset(seed=seed, options=self.begin(options))
        return self.shift(observation, info, True)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        observation, info = self.shift(observation, info, False)
        return observation, reward, terminated, truncated, info

    def begin(self, options: Options) -> dict[str, Any] | None:
        """Options of the reset below; those given, unless a shift of starts says otherwise."""
        return None if options is None else dict(options)

    def shift(self, observation: Any, info: dict[str, Any], first: bool) -> tuple[Any, dict[str, Any]]:
        """What the agent is shown in place of an observation; the observation itself, unless a shift says otherwise.

        Args:
            observation, info: from below.
            first: whether the episode begins.
        """
        return observation, info


def _stack(env: gymnasium.Env[Any, Any]) -> list[gymnasium.Env[Any, Any]]:
    out = [env]
    while isinstance(out[-1], gymnasium.Wrapper):
        out.append(out[-1].env)
    return out


def finite_env(env: gymnasium.Env[Any, Any]) -> FiniteEnv:
    """The finite world at the bottom of a stack of wrappers.

    Raises:
        WorldError: where it is something else.
    """
    inside = env.unwrapped
    if not isinstance(inside, FiniteEnv):
        raise WorldError(
            f"this shift is for finite worlds, got {type(inside).__name__}; see retarget.envs.shifts_box for others"
        )
    return inside


class _Shown(Shift):
    """Shifts that show another state."""

    def __init__(self, env: gymnasium.Env[Any, Any], *, dose: float, **arguments: object) -> None:
        super().__init__(env, dose=dose, **arguments)
        self.world = finite_env(env)

    def seen(self, state: int) -> int:
        """The state shown in place of one that would be shown."""
        raise NotImplementedError

    def shift(self, observation: Any, info: dict[str, Any], first: bool) -> tuple[Any, dict[str, Any]]:
        before = int(info.get("seen", info["state"]))
        after = self.seen(before)
        info = {**info, "seen": after}
        if after == before:
            return observation, info
        return self.world.observer.one(after, self.world.goal), info


class BlindedObservations(_Shown):
    """Regime 1, absence of information: with probability `dose`, at each step, a state drawn evenly from the whole
    world is shown. `retarget.shifted.blinded` is what that makes of a policy, exactly.

    >>> from retarget.envs import make_world
    >>> env = BlindedObservations(make_world("OpenGrid", size=5), dose=1.0)
    >>> _, info = env.reset(seed=0)
    >>> info["state"], info["seen"]
    (20, 16)
    """

    def __init__(self, env: gymnasium.Env[Any, Any], *, dose: float) -> None:
        super().__init__(env, dose=dose)

    def seen(self, state: int) -> int:
        rng = self.draws()
        # both numbers are drawn whatever the strength, so that doses share their draws
        hit, other = rng.random() < self.dose, int(rng.integers(self.world.model.n_states))
        return other if hit else state


class SwappedObservations(_Shown):
    """Regime 4, swapped states: the first `dose` of the swaps given are made; where the agent would be shown one of
    their states, it is shown the other. An adversary that finds them: `retarget.shifted.attack`.

    Args:
        env: a finite world, or a shift of one.
        states: int `[k]`, distinct.
        seen: int `[k]`, what is shown there.
        dose: share of the swaps, in order.

    Raises:
        WorldError: for states that do not exist or are named twice, or lists of different lengths.
    """

    def __init__(
        self, env: gymnasium.Env[Any, Any], *, states: Sequence[int], seen: Sequence[int], dose: float = 1.0
    ) -> None:
        pairs = [int(s) for s in states], [int(s) for s in seen]
        super().__init__(env, dose=dose, states=pairs[0], seen=pairs[1])
        n = self.world.model.n_states
        if len(pairs[0]) != len(pairs[1]) or len(set(pairs[0])) != len(pairs[0]):
            raise WorldError(
                f"swaps need as many states as shown ones, each once, got {len(pairs[0])}, {len(pairs[1])}"
            )
        if any(not 0 <= s < n for s in (*pairs[0], *pairs[1])):
            raise WorldError(f"a swap names a state that does not exist; states are 0 to {n - 1}")
        kept = n_swaps(len(pairs[0]), dose=self.dose)
        self.swaps = dict(zip(pairs[0][:kept], pairs[1][:kept], strict=True))

    @classmethod
    def of(cls, env: gymnasium.Env[Any, Any], swaps: Swaps, *, dose: float = 1.0) -> SwappedObservations:
        """From what an adversary found."""
        return cls(env, states=swaps.states.tolist(), seen=swaps.seen.tolist(), dose=dose)

    def seen(self, state: int) -> int:
        return self.swaps.get(state, state)


class StartsFrom(Shift):
    """Starts drawn from a list with probability `dose`, as the world draws them otherwise. A start given in the options
    of `reset` goes before; of several shifts of starts the outermost that draws one decides.

    Regime 5 at `dose` 1, with narrow starts, is where to fine-tune; with the others, where to evaluate.

    Args:
        env: a finite world, or a shift of one.
        starts: int `[N]` states; those in the goal in force are left out.
        dose: strength.

    Raises:
        WorldError: for states that do not exist, or none.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], *, starts: Sequence[int], dose: float = 1.0) -> None:
        listed = [int(s) for s in starts]
        super().__init__(env, dose=dose, starts=listed)
        self.world = finite_env(env)
        n = self.world.model.n_states
        #: Probability that a start is drawn from the list.
        self.share = self.dose
        if self.dose > 0 and not listed:
            raise WorldError("there is no start of this kind to draw from; name others, or set dose to 0")
        if any(not 0 <= s < n for s in listed):
            raise WorldError(f"a start does not exist; states are 0 to {n - 1}")
        self.starts = np.unique(np.array(listed, dtype=np.int64))

    def begin(self, options: Options) -> dict[str, Any] | None:
        chosen = dict(options or {})
        if self.share == 0 or chosen.get("start") is not None:
            return None if options is None else chosen
        goal = self.world.goal if chosen.get("goal") is None else self.world.as_goal(chosen["goal"])
        rng = self.draws()
        hit, where = rng.random() < self.share, rng.random()
        if not hit:
            return None if options is None else chosen
        pool = self.starts[~np.isin(self.starts, goal.states)]
        if not len(pool):
            raise GoalError(f"goal {goal.label} covers every shifted start; choose another goal or other starts")
        return {**chosen, "start": int(pool[int(where * len(pool))])}


class _Places(StartsFrom):
    """Starts at places that a rule picks, from the states that count as trained; `dose` is how far they are."""

    def __init__(self, env: gymnasium.Env[Any, Any], *, trained: Sequence[int] | str, dose: float) -> None:
        world = finite_env(env)
        place = world.coordinates
        if place is None:
            raise WorldError(f"{world.spec_data.label} has no coordinates that could be extreme or mixed anew")
        known = trained_states(world, trained)
        try:
            found = self.pick(place, place[known], check_dose(dose))
        except ProbeError as error:
            raise WorldError(str(error)) from None
        # what is recorded first is what makes it again
        RecordConstructorArgs.__init__(self, trained=trained, dose=dose)
        super().__init__(env, starts=found.tolist(), dose=dose)
        self.share = float(dose > 0)

    def pick(self, place: np.ndarray, known: np.ndarray, dose: float) -> np.ndarray:
        raise NotImplementedError


class StartsBeyond(_Places):
    """Regime 2, extreme features: starts at states beyond the bounding box of the trained ones, by at most `dose` of
    the farthest.

    Args:
        env: a finite world with coordinates, or a shift of one.
        trained: int `[N]` states, or the name of a region (`retarget.shifted.REGIONS`).
        dose: strength; 0 leaves the world's own starts.

    Raises:
        WorldError: where there are no coordinates, or no such start.

    >>> from retarget.envs import make_world
    >>> env = StartsBeyond(make_world("OpenGrid", size=5), trained="west half", dose=0.5)
    >>> sorted({int(env.unwrapped.coordinates[s][1]) for s in env.starts})
    [3]
    """

    def pick(self, place: np.ndarray, known: np.ndarray, dose: float) -> np.ndarray:
        return beyond(place, known, dose=dose)


class StartsMixed(_Places):
    """Regime 3, inner mixtures: starts at states with a row and a column that were each trained on, never together, no
    farther from a trained state than `dose` of the farthest. Arguments as for `StartsBeyond`."""

    def pick(self, place: np.ndarray, known: np.ndarray, dose: float) -> np.ndarray:
        return inner(place, known, dose=dose)


def trained_states(world: FiniteEnv, trained: Sequence[int] | str) -> np.ndarray:
    """States that count as trained: int `[N]`, from a list or the name of a region.

    Raises:
        WorldError: for states or a region that do not exist, or none.
    """
    n = world.model.n_states
    if isinstance(trained, str):
        from retarget.exact import optimal_values

        near = optimal_values(world.model, world.goal, gamma=0.95) if trained == "near half" else np.zeros(n)
        try:
            return region(trained, np.arange(n), world.coordinates, near)
        except ProbeError as error:
            raise WorldError(str(error)) from None
    states = np.unique(np.asarray(trained, dtype=np.int64))
    if not states.size or states.min() < 0 or states.max() >= n:
        raise WorldError(f"trained states must be among 0 to {n - 1}, at least one, got {len(states)}")
    return states
