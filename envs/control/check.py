"""Holds worlds with continuous states, a user's own included, to the laws of the protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from retarget.errors import GoalError, RetargetError, WorldError
from retarget.goal import RegionGoal
from retarget.rng import stream
from retarget.world import BoxWorld, WorldSpec

N_STATES = 48
N_STEPS = 12
MAX_GOALS = 16
_NEEDED = (
    "spec_data", "state_names", "n_actions", "action_range", "observation_size", "horizon", "gamma", "gym_id", "goal",
    "goals", "goal_features", "as_goal", "starts", "observe", "advance", "inside", "expert",
)  # fmt: skip


def continuous(world: object) -> bool:
    """Whether this is meant to be a world with continuous states, or the Gymnasium environment of one."""
    return any(hasattr(getattr(world, "world", world), name) for name in ("advance", "inside", "observe"))


def check_box_world(world: Any, *, seed: int = 0) -> None:
    """Check that a world with continuous states obeys the protocol.

    Checked, by name: `protocol` (everything is there, of its kind), `goals` (the world's own is first, each round
    trips, unknown ones are refused in one line), `starts` (shape, same stream same starts), `spec` (it rebuilds the
    same world), `advance` (shapes, pure, deterministic, n states at once move as one by one), `observe` (float32, as
    long as stated, within its bounds), `inside` (pure, wider regions hold more), `expert` (possible actions, the same
    again), `environment` (the Gymnasium environment tells the same story).

    Args:
        world: a `BoxWorld`, or the Gymnasium environment of one.
        seed: names the random streams.

    Raises:
        WorldError: naming the first law that is broken, and how.

    >>> from retarget.envs import make_world
    >>> check_box_world(make_world("MountainCar"))
    """
    env = world if hasattr(world, "step") else None
    checker = _Checker(getattr(world, "world", world) if env is not None else world, env, seed)
    for law in (checker.protocol, checker.goals, checker.starts, checker.spec, checker.advance, checker.observe,
                checker.inside, checker.expert, checker.environment):  # fmt: skip
        try:
            law()
        except WorldError:
            raise
        except Exception as error:
            fail(law.__name__, f"it raised {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")


def fail(law: str, what: str) -> NoReturn:
    """Raise WorldError for a broken law."""
    raise WorldError(f"the world breaks the law {law!r}: {what}")


class _Checker:
    def __init__(self, world: Any, env: Any, seed: int) -> None:
        self.world, self.env, self.seed = world, env, seed

    # -- helpers ------------------------------------------------------------------------------------------------

    def actions(self, n: int, rng: np.random.Generator) -> np.ndarray:
        if self.world.n_actions is not None:
            return np.asarray(rng.integers(self.world.n_actions, size=n))
        low, high = self.world.action_range
        return np.asarray(rng.uniform(low, high, size=(n, len(low))))

    def states(self) -> np.ndarray:
        """Float64 `[N_STATES, D]`: starts, and what some random steps lead to."""
        rng = stream(self.seed, "check_box_world", "states")
        state = self.world.starts(N_STATES, rng=rng)
        for k in range(N_STEPS):
            after, ended = self.world.advance(state, self.actions(N_STATES, rng))
            moves = ~ended & (np.arange(N_STATES) % N_STEPS >= k)
            state = np.where(moves[:, None], after, state)
        return np.asarray(state)

    def same(self, law: str, what: str, call: Callable[..., Any], *arrays: np.ndarray) -> Any:
        """Call twice: the same both times, and the arguments left alone."""
        before = [a.copy() for a in arrays]
        first, second = call(*arrays), call(*arrays)
        if any(not np.array_equal(a, b) for a, b in zip(arrays, before, strict=True)):
            fail(law, f"{what} wrote to its argument; work on a copy")
        pairs = zip(first, second, strict=True) if isinstance(first, tuple) else [(first, second)]
        if any(not np.array_equal(a, b) for a, b in pairs):
            fail(law, f"{what} gave two answers to one question; leave out chance and memory")
        return first

    def refuses(self, law: str, what: str, call: Callable[[], object]) -> None:
        try:
            call()
        except RetargetError as error:
            if "\n" in str(error):
                fail(law, f"the message on {what} is more than one line")
            return
        fail(law, f"{what} was accepted; raise GoalError, and say what is there")

    def array(self, law: str, what: str, got: Any, shape: tuple[int, ...], dtype: type) -> None:
        if not isinstance(got, np.ndarray) or got.shape != shape or got.dtype != np.dtype(dtype):
            found = f"{got.dtype} {got.shape}" if isinstance(got, np.ndarray) else type(got).__name__
            fail(law, f"{what} must be {np.dtype(dtype)} {shape}, got {found}")
        if got.dtype.kind == "f" and not np.isfinite(got).all():
            fail(law, f"{what} is not finite")

    # -- laws ---------------------------------------------------------------------------------------------------

    def protocol(self) -> None:
        world = self.world
        for name in _NEEDED:
            if not hasattr(world, name):
                fail("protocol", f"it has no {name!r}; give it one, as retarget.world.BoxWorld says")
        kinds = {"spec_data": WorldSpec, "state_names": tuple, "goal": RegionGoal, "goals": tuple,
                 "goal_features": tuple, "horizon": int, "observation_size": int}  # fmt: skip
        for name, kind in kinds.items():
            if not isinstance(getattr(world, name), kind):
                fail("protocol", f"{name} must be a {kind.__name__}, got {type(getattr(world, name)).__name__}")
        if world.horizon < 1 or not 0 < world.gamma < 1:
            fail("protocol", f"horizon must be at least 1 and gamma in (0, 1), got {world.horizon} and {world.gamma}")
        if (world.n_actions is None) == (world.action_range is None):
            fail("protocol", "it needs either n_actions or action_range, and None for the other")
        if world.action_range is not None:
            low, high = world.action_range
            if low.shape != high.shape or low.ndim != 1 or not (low < high).all():
                fail("protocol", f"action_range must be two arrays [K], low below high, got {low!r} and {high!r}")

    def spec(self) -> None:
        from retarget.envs.catalogue import BOX_WORLDS, find_entry
        from retarget.envs.make import make_world

        spec = self.world.spec_data
        entry = find_entry(spec.id)
        if entry is None or entry.name not in BOX_WORLDS:
            return  # a world of the user's own, which nothing here could rebuild
        again = make_world(spec)
        draws = [w.starts(4, rng=stream(self.seed, "check_box_world")) for w in (again, self.world)]
        if (again.goal, again.horizon) != (self.world.goal, self.world.horizon) or not np.array_equal(*draws):
            fail("spec", f"make_world({spec.label}) builds another world")

    def goals(self) -> None:
        world = self.world
        if not world.goals or world.goals[0] != world.goal:
            fail("goals", "the world's own goal must be the first of its goals")
        if len(set(world.goals)) != len(world.goals) or len({g.label for g in world.goals}) != len(world.goals):
            fail("goals", "two goals are the same, or have one label")
        for goal in world.goals[:MAX_GOALS]:
            if world.as_goal(goal) != goal or world.as_goal(goal.label) != goal:
                fail("goals", f"goal {goal.label!r} does not come back from as_goal, as itself and by its label")
            if any(name not in world.goal_features for name, _, _ in goal.targets):
                fail("goals", f"goal {goal.label!r} names a feature that is not among {world.goal_features}")
        number = world.as_goal(world.as_goal(0.0))
        if number != world.as_goal(0.0) or number.targets[0][0] != world.goal_features[0]:
            fail("goals", f"the number 0.0 must set the main feature {world.goal_features[0]!r}, got {number}")
        bad = (None, "no such goal", float("nan"), float("inf"), RegionGoal.of(no_such_feature=(0.0, 1.0)))
        for value in bad:
            self.refuses("goals", f"goal {value!r}", lambda value=value: world.as_goal(value))  # type: ignore[misc]

    def starts(self) -> None:
        world, d = self.world, len(self.world.state_names)
        first = world.starts(N_STATES, rng=stream(self.seed, "check_box_world", "starts"))
        self.array("starts", "starts", first, (N_STATES, d), np.float64)
        if not np.array_equal(first, world.starts(N_STATES, rng=stream(self.seed, "check_box_world", "starts"))):
            fail("starts", "one stream gave two sets of starts; draw from `rng` alone")
        if np.ptp(first, axis=0).max() > 0:
            other = world.starts(N_STATES, rng=stream(self.seed, "check_box_world", "other"))
            if np.array_equal(first, other):
                fail("starts", "two streams gave the same starts; draw from `rng`")
        self.array("starts", "one start", world.starts(1, rng=stream(self.seed, "one")), (1, d), np.float64)

    def advance(self) -> None:
        world, states = self.world, self.states()
        actions = self.actions(N_STATES, stream(self.seed, "check_box_world", "actions"))
        after, ended = self.same("advance", "advance", world.advance, states, actions)
        self.array("advance", "the next states", after, states.shape, np.float64)
        self.array("advance", "ended", ended, (N_STATES,), np.bool_)
        for i in range(N_STATES):
            one, over = world.advance(states[i : i + 1], actions[i : i + 1])
            if not np.allclose(one[0], after[i], rtol=0, atol=1e-12) or over[0] != ended[i]:
                fail("advance", f"state {states[i].tolist()} moves otherwise among others than on its own")
        if world.action_range is not None:
            high = world.action_range[1]
            beyond, _ = world.advance(states, np.broadcast_to(high + 1.0, actions.shape).copy())
            edge, _ = world.advance(states, np.broadcast_to(high, actions.shape).copy())
            if not np.array_equal(beyond, edge):
                fail("advance", "an action above the range must count as the highest; clip it")

    def observe(self) -> None:
        world, states = self.world, self.states()
        seen = self.same("observe", "observe", world.observe, states)
        self.array("observe", "observations", seen, (N_STATES, world.observation_size), np.float32)
        low, high = getattr(world, "observation_range", (-np.inf, np.inf))
        if (seen < low).any() or (seen > high).any():
            row = int(np.argmax(((seen < low) | (seen > high)).any(1)))
            fail("observe", f"observation {seen[row].tolist()} is outside its bounds")
        for i in range(0, N_STATES, 7):
            if not np.array_equal(world.observe(states[i : i + 1])[0], seen[i]):
                fail("observe", f"state {states[i].tolist()} looks otherwise among others than on its own")

    def inside(self) -> None:
        world, states = self.world, self.states()
        for goal in world.goals[:MAX_GOALS]:
            found = self.same("inside", "inside", lambda s, goal=goal: world.inside(s, goal), states)
            self.array("inside", "inside", found, (N_STATES,), np.bool_)
            alone = np.array([world.inside(states[i : i + 1], goal)[0] for i in range(N_STATES)])
            if not np.array_equal(alone, found):
                fail("inside", f"goal {goal.label!r} holds otherwise for states among others than on their own")
            wider = RegionGoal(tuple((n, c, 2 * w) for n, c, w in goal.targets), goal.hold)
            if (found & ~world.inside(states, wider)).any():
                fail("inside", f"a state inside {goal.label!r} is outside the same region twice as wide")
            everywhere = RegionGoal(tuple((n, c, 1e9) for n, c, w in goal.targets), goal.hold)
            if not world.inside(states, everywhere).all():
                fail("inside", f"a region of half width 1e9 round {goal.label!r} leaves some states out")

    def expert(self) -> None:
        world, states = self.world, self.states()
        for goal in (world.goals[0], world.goals[-1]):
            shown = self.same("expert", "the expert's act", world.expert(goal).act, states)
            if world.n_actions is not None:
                self.array("expert", "actions", shown, (N_STATES,), np.int64)
                if shown.min() < 0 or shown.max() >= world.n_actions:
                    fail("expert", f"action {int(shown.max())} does not exist; there are {world.n_actions}")
            else:
                low, high = world.action_range
                self.array("expert", "actions", shown, (N_STATES, len(low)), np.float64)
                if (shown < low - 1e-9).any() or (shown > high + 1e-9).any():
                    fail("expert", "an action is outside the range")

    def environment(self) -> None:
        from retarget.envs.control.gym_env import BoxEnv

        assert isinstance(self.world, BoxWorld)
        env = BoxEnv(self.world) if self.env is None else self.env
        rng = stream(self.seed, "check_box_world", "episodes")
        for goal in self.world.goals[:4]:
            try:
                _, info = env.reset(seed=self.seed, options={"goal": goal})
            except GoalError:
                continue  # every start lies in the goal
            state = info["state"][None]
            for _ in range(min(self.world.horizon, 200)):
                action = self.actions(1, rng)
                state, ended = self.world.advance(state, action)
                entered = bool(self.world.inside(state, goal)[0]) and not ended[0]
                obs, reward, terminated, truncated, info = env.step(action[0])
                story = (float(entered), bool(ended[0]) or (entered and not goal.hold))
                if not np.array_equal(obs, self.world.observe(state)[0]) or (float(reward), terminated) != story:
                    fail("environment", f"toward {goal.label!r} it gave reward {reward}, terminated={terminated}; "
                         f"the world says {story}")  # fmt: skip
                if terminated or truncated:
                    break
