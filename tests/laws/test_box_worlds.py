"""Laws of the worlds with continuous states, for any start, goal, state and action; and what the checker catches."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retarget.envs import BOX_WORLDS, BoxEnv, ControlWorld, Feature, check_world, make_world
from retarget.envs.control.check import check_box_world
from retarget.envs.control.mountain_car import MountainCar
from retarget.errors import GoalError, RetargetError, WorldError
from retarget.goal import RegionGoal, StateGoal
from retarget.rng import stream
from retarget.world import BoxWorld, FiniteWorld, WorldSpec

NAMES = tuple(BOX_WORLDS)
law = settings(max_examples=60, deadline=None)
finite = st.floats(-1e6, 1e6)


def actions(world: ControlWorld, n: int, rng: np.random.Generator) -> np.ndarray:
    if world.n_actions is not None:
        return rng.integers(world.n_actions, size=n)
    return rng.uniform(*world.action_range, size=(n, len(world.action_range[0])))


# -- circles ------------------------------------------------------------------------------------------------------


@law
@given(finite, finite, st.floats(0.1, 100))
def test_a_difference_round_the_circle_is_short_odd_and_the_same_after_a_turn(a: float, b: float, turn: float) -> None:
    feature = Feature(-1, 1, 0.1, period=turn)
    away = float(feature.offset(np.array([a]), b)[0])
    slack = 1e-9 * (1 + abs(a) + abs(b)) + 1e-9 * turn
    assert abs(away) <= turn / 2 + slack
    assert abs(math.remainder(away - (a - b), turn)) <= slack
    back = float(feature.offset(np.array([b]), a)[0])
    assert abs(math.remainder(away + back, turn)) <= slack
    turned = float(feature.offset(np.array([a + turn]), b)[0])
    assert abs(math.remainder(turned - away, turn)) <= slack


@law
@given(st.floats(-50, 50), st.floats(0.01, 3.0), st.integers(-3, 3), st.booleans())
def test_angles_have_one_name(angle: float, width: float, turns: int, hold: bool) -> None:
    world = make_world("Pendulum")
    first = world.as_goal({"angle": (angle, width), "hold": hold})
    again = world.as_goal({"angle": (angle + turns * 2 * math.pi, width), "hold": hold})
    assert -math.pi <= first.centres[0] <= math.pi
    assert abs(math.remainder(first.centres[0] - again.centres[0], 2 * math.pi)) < 1e-9
    states = np.array([[angle + 0.5 * width, 0.0], [angle - 0.5 * width + 2 * math.pi, 1.0], [angle + math.pi, 0.0]])
    assert world.inside(states, first).tolist() == [True, True, width >= math.pi - 1e-9]


@law
@given(st.sampled_from(NAMES), st.floats(-0.9, 0.9), st.floats(0.01, 0.5), st.booleans())
def test_inside_is_the_plain_comparison(name: str, part: float, width: float, hold: bool) -> None:
    world = make_world(name)
    feature = world.features[world.goal_features[0]]
    centre = (feature.low + feature.high) / 2 + part * (feature.high - feature.low) / 2
    goal = world.as_goal({world.goal_features[0]: (centre, width), "hold": hold})
    states = world.starts(20, rng=stream(0, "inside"))
    for state, found in zip(states, world.inside(states, goal), strict=True):
        height = -math.cos(state[0]) - math.cos(sum(state[:2]))
        value = height if name == "Acrobot" else float(state[0])
        away = abs(value - centre)
        if name == "Pendulum":
            away = min(abs(value - centre + k * 2 * math.pi) for k in (-2, -1, 0, 1, 2))
        if abs(away - width) > 1e-6:
            assert found == (away < width)


# -- goals and specs ----------------------------------------------------------------------------------------------


@law
@given(
    st.sampled_from(NAMES), st.sampled_from(["standard", "wide"]), st.integers(3, 1000), st.integers(0, 8), st.data()
)
def test_a_spec_rebuilds_its_world(name: str, start: str, horizon: int, which: int, data: st.DataObject) -> None:
    menu = make_world(name).goals
    feature = next(iter(BOX_FEATURES[name].items()))
    point = data.draw(st.floats(feature[1].low * 0.9, feature[1].high * 0.9))
    goal: object = menu[which % len(menu)] if data.draw(st.booleans()) else point
    world = make_world(name, start=start, horizon=horizon, goal=goal)
    options = json.loads(json.dumps(world.spec_data.as_dict()))  # what a journal or a study file gives back
    again = make_world(**{"world": options.pop("id"), **options})
    assert again == world and hash(again) == hash(world)
    assert (again.goal, again.goals, again.horizon, again.gamma) == (world.goal, world.goals, horizon, 1 - 2 / horizon)
    np.testing.assert_array_equal(again.starts(5, rng=stream(0, "x")), world.starts(5, rng=stream(0, "x")))


BOX_FEATURES = {name: make_world(name).features for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_goals_come_from_labels_numbers_texts_and_mappings(name: str) -> None:
    world = make_world(name)
    assert 6 <= len(world.goals) <= 12 and world.goals[0] == world.goal
    main = world.goal_features[0]
    for goal in world.goals:
        assert world.as_goal(goal) is goal
        assert world.as_goal(goal.label) == goal
        assert world.as_goal({n: (c, w) for n, c, w in goal.targets} | {"hold": goal.hold}) == goal
    text = world.as_goal(f"hold {main}=0.25")
    assert text.hold and text.centres == (0.25,) and world.as_goal({main: 0.25, "hold": True}) == text
    assert world.as_goal("0.25") == world.as_goal(0.25) == world.as_goal(np.float64(0.25))
    assert world.as_goal({main: 0.25, "label": "mine"}).label == "mine"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "bad",
    [None, True, "no such goal", "x=", "position=1e", math.nan, math.inf, {}, {"hold": True}, {"speed of light": 1.0},
     {"x": "far"}, {"x": (0, 0)}, {"x": (0, 1, 2)}, [], [1, 2], [("x",)], object(), StateGoal.of([1]),
     {"position": (0.0, math.nan)}, RegionGoal.of(nowhere=(0.0, 1.0)), "hold x=1,x=2,y=3"],
)  # fmt: skip
def test_goals_that_there_are_not_are_refused_in_one_line(name: str, bad: object) -> None:
    with pytest.raises(GoalError) as caught:
        make_world(name).as_goal(bad)
    assert "\n" not in str(caught.value) and len(str(caught.value)) > 20


def test_errors_name_what_is_there() -> None:
    for call, kind, word in (
        (lambda: make_world("MountainCar").as_goal("left hil"), GoalError, "did you mean 'left hill'"),
        (lambda: make_world("CartPole").as_goal(5.0), GoalError, "-2.4 to 2.4"),
        (lambda: make_world("MountainCar", start="everywhere"), WorldError, "'standard', 'wide'"),
        (lambda: make_world("MountainCar", horizon=2), WorldError, "from 3"),
        (lambda: make_world("MountainCar", size=5), WorldError, "unknown option"),
        (lambda: make_world("MountainCa"), WorldError, "did you mean 'MountainCar'"),
        (lambda: make_world("gymnasium.envs:MountainCar-v0"), WorldError, "unknown world"),
        (lambda: MountainCar(start="everywhere"), WorldError, "standard"),
        (lambda: MountainCar(horizon=1), WorldError, "at least 3"),
        (lambda: make_world("Acrobot").as_goal(2.0), GoalError, "-2 to 2"),
        (lambda: BoxEnv("FourRooms"), WorldError, "continuous"),
        (lambda: BoxEnv("MountainCar", render_mode="human"), WorldError, "ansi"),
    ):
        with pytest.raises(kind) as caught:
            call()
        assert word in str(caught.value) and "\n" not in str(caught.value)


# -- starts -------------------------------------------------------------------------------------------------------


@law
@given(st.sampled_from(NAMES), st.sampled_from(["standard", "wide"]), st.integers(1, 200), st.integers(0, 2**32))
def test_starts_fill_every_slice_of_their_box(name: str, start: str, n: int, seed: int) -> None:
    world = make_world(name, start=start)
    box = world.wide if start == "wide" else world.standard
    drawn = world.starts(n, rng=np.random.default_rng(seed))
    assert drawn.shape == (n, len(world.state_names)) and drawn.dtype == np.float64
    for d, (low, high) in enumerate(zip(box.low, box.high, strict=True)):
        assert drawn[:, d].min() >= low and drawn[:, d].max() <= high
        if high > low:
            edges = low + (high - low) * np.arange(n + 1) / n
            count = np.histogram(drawn[:, d], edges + 1e-12 * (high - low))[0]
            assert np.abs(count - 1).max() <= 1 and count.sum() >= n - 1  # one each, but for rounding at an edge
    np.testing.assert_array_equal(drawn, world.starts(n, rng=np.random.default_rng(seed)))


# -- steps --------------------------------------------------------------------------------------------------------


@law
@given(st.sampled_from(NAMES), st.integers(0, 2**32), st.integers(1, 40))
def test_a_batch_moves_as_its_rows_and_in_any_order(name: str, seed: int, n: int) -> None:
    world, rng = make_world(name, start="wide"), np.random.default_rng(seed)
    state, action = world.starts(n, rng=rng), actions(make_world(name), n, rng)
    kept = state.copy()
    after, ended = world.advance(state, action)
    np.testing.assert_array_equal(state, kept)
    order = rng.permutation(n)
    np.testing.assert_array_equal(world.advance(state[order], action[order])[0], after[order])
    rows = [world.advance(state[i : i + 1], action[i : i + 1]) for i in range(n)]
    np.testing.assert_allclose(np.concatenate([r[0] for r in rows]), after, rtol=0, atol=1e-14)
    np.testing.assert_array_equal(np.concatenate([r[1] for r in rows]), ended)


@pytest.mark.parametrize("name", NAMES)
def test_actions_that_there_are_not_are_refused(name: str) -> None:
    world = make_world(name)
    state = world.starts(3, rng=stream(0, "x"))
    bad = [np.zeros((3, 2)), np.zeros(2, dtype=np.int64)]
    if world.n_actions is not None:
        bad += [np.full(3, world.n_actions), np.full(3, -1), np.zeros(3)]
    for action in bad:
        with pytest.raises(WorldError):
            world.advance(state, action)


@pytest.mark.parametrize("name", NAMES)
def test_worlds_pass_the_checker_and_are_of_one_kind(name: str) -> None:
    for start in ("standard", "wide"):
        check_world(make_world(name, start=start), seed=1)
    env = gymnasium.make(f"retarget/{name}-v0", start="wide", goal=make_world(name).goals[1])
    check_world(env)
    world = make_world(name)
    assert isinstance(world, BoxWorld) and not isinstance(world, FiniteWorld)
    assert env.unwrapped.world == make_world(name, start="wide")


@pytest.mark.parametrize("name", NAMES)
def test_episodes_tell_what_the_pure_functions_say(name: str) -> None:
    env = BoxEnv(name, render_mode="ansi")
    world, rng = env.world, stream(0, "episodes", name)
    for goal in (world.goals[0], world.goals[-1]):
        obs, info = env.reset(seed=3, options={"goal": goal})
        state = info["state"][None]
        assert env.goal == goal and obs in env.observation_space and goal.label in env.render()
        for t in range(world.horizon + 1):
            action = actions(world, 1, rng)
            state, ended = world.advance(state, action)
            obs, reward, terminated, truncated, info = env.step(action[0])
            np.testing.assert_array_equal(info["state"], state[0])
            inside = bool(world.inside(state, goal)[0]) and not ended[0]
            assert (reward, terminated) == (float(inside), bool(ended[0]) or (inside and not goal.hold))
            assert truncated == (not terminated and t + 1 == world.horizon)
            if terminated or truncated:
                break
        assert terminated or truncated
        with pytest.raises(WorldError):
            env.step(action[0])


def test_resets_take_goals_and_starts_and_nothing_else() -> None:
    env = BoxEnv("MountainCar")
    assert env.reset(options={"start": [0.1, 0.02], "goal": "left hill"})[1]["state"].tolist() == [0.1, 0.02]
    assert env.goal.label == "left hill"
    env.reset()
    assert env.goal.label == "left hill"
    for bad in ({"start": [0.1]}, {"start": "top"}, {"start": [math.nan, 0.0]}, {"start": [-1.19, 0.0]}):
        with pytest.raises(GoalError):
            env.reset(options=bad)
    with pytest.raises(WorldError, match="gaol"):
        env.reset(options={"gaol": 1})
    with pytest.raises(GoalError, match="covers"):
        env.reset(options={"goal": {"position": (0.0, 5.0), "hold": False}})


# -- planted faults -----------------------------------------------------------------------------------------------


class Impure(MountainCar):
    def dynamics(self, state, action):
        after, ended = super().dynamics(state, action)
        state[:] = after
        return after, ended


class Noisy(MountainCar):
    def dynamics(self, state, action):
        after, ended = super().dynamics(state, action)
        return after + 1e-6 * np.random.default_rng().random(after.shape), ended


class Crowded(MountainCar):
    def dynamics(self, state, action):
        after, ended = super().dynamics(state, action)
        return after - 1e-4 * state.mean(0), ended


class Float32(MountainCar):
    def dynamics(self, state, action):
        after, ended = super().dynamics(state, action)
        return after.astype(np.float32), ended


class IntegerEnd(MountainCar):
    def dynamics(self, state, action):
        after, ended = super().dynamics(state, action)
        return after, ended.astype(int)


class Blurred(MountainCar):
    def observe(self, state):
        return np.asarray(state, dtype=np.float64)


class BeyondBounds(MountainCar):
    def observe(self, state):
        return np.asarray(state * 100, dtype=np.float32)


class Restless(MountainCar):
    def starts(self, n, *, rng):
        return super().starts(n, rng=np.random.default_rng())


class Stuck(MountainCar):
    def starts(self, n, *, rng):
        return super().starts(n, rng=np.random.default_rng(0))


class Accepting(MountainCar):
    def as_goal(self, value):
        try:
            return super().as_goal(value)
        except GoalError:
            return self.menu[0]


class Disordered(MountainCar):
    @property
    def goals(self):
        return self.menu[::-1]


class Outside(MountainCar):
    def inside(self, state, goal):
        return ~super().inside(state, goal)


class Lazy(MountainCar):
    def expert(self, goal):
        class Nobody:
            def act(self, state):
                return np.full(len(state), 7)

        return Nobody()


class Nameless(MountainCar):
    gym_id = property(lambda self: (_ for _ in ()).throw(AttributeError("gym_id")))


class Unrelated(MountainCar):
    @property
    def spec_data(self):
        return WorldSpec.of("CartPole")


class Raising(MountainCar):
    def observe(self, state):
        raise KeyError("position")


@pytest.mark.parametrize(
    ("fault", "broken"),
    [(Impure, "advance"), (Noisy, "advance"), (Crowded, "advance"), (Float32, "advance"), (IntegerEnd, "advance"),
     (Blurred, "observe"), (BeyondBounds, "observe"), (Restless, "starts"), (Stuck, "starts"), (Accepting, "goals"),
     (Disordered, "goals"), (Outside, "inside"), (Lazy, "expert"), (Nameless, "protocol"), (Unrelated, "spec"),
     (Raising, "")],
)  # fmt: skip
def test_the_checker_catches_planted_faults(fault: type[ControlWorld], broken: str) -> None:
    with pytest.raises(WorldError, match=f"breaks the law '{broken}") as caught:
        check_world(fault())
    assert "\n" not in str(caught.value)


def test_the_checker_catches_an_environment_that_tells_another_story() -> None:
    class Generous(BoxEnv):
        def step(self, action):
            obs, _, terminated, truncated, info = super().step(action)
            return obs, 1.0, terminated, truncated, info

    class Endless(BoxEnv):
        def step(self, action):
            obs, reward, _, _, info = super().step(action)
            self._over = False
            return obs, reward, False, False, info

    with pytest.raises(WorldError, match="environment"):
        check_world(Generous("MountainCar"))
    with pytest.raises(WorldError, match="environment"):
        check_world(Endless("CartPole"))
    check_box_world(BoxEnv("CartPole"))


def test_a_world_without_a_grid_says_that_it_has_no_expert() -> None:
    class Gridless(MountainCar):
        grid = ()

    with pytest.raises(WorldError, match="override expert"):
        Gridless().expert(MountainCar.menu[0])


def test_an_expert_is_shared_by_worlds_that_differ_in_start_and_goal_only() -> None:
    one = make_world("MountainCar")
    other = make_world("MountainCar", start="wide", goal="left hill")
    assert other.expert(other.goal).value is one.expert(one.as_goal("left hill")).value
    assert one.expert(one.goal).value is not one.expert(one.as_goal("left hill")).value


def test_worlds_are_listed_without_loading_anything_heavy() -> None:
    code = (
        "import sys; from retarget.envs.catalogue import BOX_WORLDS; from retarget.envs import make_world;"
        "make_world('CartPole').starts(3, rng=__import__('numpy').random.default_rng(0));"
        "bad = {'numba', 'torch', 'polars', 'scipy'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_every_error_is_of_the_family() -> None:
    with pytest.raises(RetargetError):
        make_world("MountainCar").inside(np.zeros((1, 2)), RegionGoal.of(nowhere=(0.0, 1.0)))
