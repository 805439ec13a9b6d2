"""Worlds with continuous states against Gymnasium's own environments, plain search, and simple controllers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import gymnasium
import numpy as np
import pytest

from retarget.envs import Axis, BoxEnv, ControlWorld, Feature, StartBox, make_world
from retarget.envs.catalogue import BOX_WORLDS
from retarget.envs.control.expert import corners, grid_states
from retarget.goal import RegionGoal
from retarget.rng import stream
from retarget.trials import follow, values

#: Boxes of states that go beyond those of episodes: every clip and every wrap is met.
BOXES = {
    "MountainCar": ([-1.2, -0.07], [0.6, 0.07]),
    "CartPole": ([-2.5, -3.0, -0.22, -3.0], [2.5, 3.0, 0.22, 3.0]),
    "Pendulum": ([-9.0, -8.0], [9.0, 8.0]),
    "Acrobot": ([-math.pi, -math.pi, -12.5, -28.2], [math.pi, math.pi, 12.5, 28.2]),
}


def some(name: str, n: int) -> tuple[ControlWorld, np.ndarray, np.ndarray]:
    world, rng = make_world(name), stream(0, "control_worlds", name)
    states = rng.uniform(*BOXES[name], size=(n, len(BOXES[name][0])))
    if world.n_actions is not None:
        return world, states, rng.integers(world.n_actions, size=n)
    return world, states, rng.uniform(-3, 3, size=(n, 1))  # beyond the range, too: both clip


@pytest.mark.parametrize("name", BOXES)
def test_steps_and_observations_are_gymnasiums_own(name: str) -> None:
    world, states, actions = some(name, 1500)
    theirs = gymnasium.make(world.gym_id).unwrapped
    after, ended = world.advance(states, actions)
    seen = world.observe(after)
    in_goal = world.inside(after, world.goal)
    for i, (state, action) in enumerate(zip(states, actions, strict=True)):
        theirs.reset(seed=0)
        theirs.state = state.copy()
        obs, _, terminated, _, _ = theirs.step(int(action) if world.n_actions else action)
        np.testing.assert_allclose(after[i], theirs.state, rtol=0, atol=1e-12)
        np.testing.assert_allclose(seen[i], obs, rtol=0, atol=1e-6)
        assert seen[i].dtype == obs.dtype and seen[i].shape == obs.shape
        if name == "CartPole":
            assert terminated == ended[i]
        else:
            assert not ended[i]
        if name == "Acrobot" or (name == "MountainCar" and after[i, 1] >= 0):
            assert terminated == in_goal[i]


@pytest.mark.parametrize("name", BOXES)
def test_the_catalogue_says_what_the_worlds_are(name: str) -> None:
    world, entry = make_world(name), BOX_WORLDS[name]
    spec = gymnasium.spec(world.gym_id)
    assert (entry.gym_id, entry.options["horizon"].default) == (world.gym_id, world.horizon)
    assert world.horizon == spec.max_episode_steps
    assert make_world(world.gym_id) == make_world(entry.id) == make_world(world.spec_data) == world
    theirs, ours = gymnasium.make(world.gym_id), BoxEnv(name)
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space


@pytest.mark.parametrize("name", BOXES)
def test_standard_starts_are_gymnasiums(name: str) -> None:
    # Kolmogorov-Smirnov, n = 500 of theirs; ours are stratified, so that ours deviate less: false alarms below 1e-6
    from scipy.stats import kstwo

    world = make_world(name)
    theirs = gymnasium.make(world.gym_id).unwrapped
    drawn = np.stack([theirs.reset(seed=k) and np.array(theirs.state, dtype=np.float64) for k in range(500)])
    ours = np.sort(world.starts(4000, rng=stream(0, "starts")), axis=0)
    for d in range(drawn.shape[1]):
        if np.ptp(ours[:, d]) == 0:
            assert (drawn[:, d] == ours[0, d]).all()
            continue
        share = np.searchsorted(ours[:, d], np.sort(drawn[:, d])) / len(ours)
        assert np.abs(share - (np.arange(500) + 0.5) / 500).max() < kstwo.isf(1e-7, 500) + 2e-3


class Line(ControlWorld):
    """The integers from 0 to 8: a step left, none, or right. Its states are grid points, so values are exact."""

    name = "Line"
    state_names = ("place",)
    n_actions = 3
    steps = 40
    features = {"place": Feature(0, 8, 0.25, column=0)}  # noqa: RUF012
    standard = StartBox((0.0,), (8.0,))
    menu = (RegionGoal.of(place=(8.0, 0.25)),)
    grid = (Axis(0, 8, 9),)

    def dynamics(self, state: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        after = np.clip(state + (action - 1)[:, None], 0, 8)
        return after, after[:, 0] == 3.0  # a hole


class Clock(Line):
    """The same round a circle of nine hours, without a hole."""

    name = "Clock"
    features = {"place": Feature(-4.5, 4.5, 0.25, column=0, period=9.0)}  # noqa: RUF012
    grid = (Axis(0, 9, 9, periodic=True),)
    menu = (RegionGoal.of(place=(4.0, 0.25)),)

    def dynamics(self, state: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return state + (action - 1)[:, None], np.zeros(len(state), dtype=np.bool_)


@pytest.mark.parametrize("world", [Line(), Clock()])
@pytest.mark.parametrize("hold", [False, True])
@pytest.mark.parametrize("place", [0.0, 4.0, 7.0])
def test_value_iteration_is_brute_force_where_the_grid_is_the_world(
    world: ControlWorld, hold: bool, place: float
) -> None:
    if place == 7.0 and world.name == "Clock":
        place = -2.0
    goal = RegionGoal.of(hold=hold, place=(place, 0.25))
    gamma, spots = world.gamma, range(9)

    def move(s: int, a: int) -> tuple[int, bool]:
        after = (s + a - 1) % 9 if world.name == "Clock" else min(max(s + a - 1, 0), 8)
        return after, world.name == "Line" and after == 3

    there = [s % 9 == place % 9 for s in spots]
    best = [0.0] * 9
    for _ in range(4000):  # plain value iteration on plain lists
        new = []
        for s in spots:
            options = []
            for a in range(3):
                after, hole = move(s, a)
                if hole:
                    options.append(0.0)
                elif hold:
                    options.append(gamma * ((1 - gamma) * there[after] + best[after]))
                else:
                    options.append(gamma * (1.0 if there[after] else best[after]))
            new.append(1.0 if there[s] and not hold else max(options))
        best = new
    expert = world.expert(goal)
    np.testing.assert_allclose(expert.value, best, atol=1e-5)
    states = np.array([[float(s)] for s in spots])
    worth = expert.scores(states, np.arange(3)).max(1)
    np.testing.assert_allclose(worth[~np.array(there)], np.array(best)[~np.array(there)], atol=1e-5)


def test_interpolation_is_exact_on_what_is_linear() -> None:
    axes = (Axis(-1, 2, 7), Axis(0, 1, 5), Axis(-3, 3, 4))
    slope = np.array([0.5, -2.0, 3.0])
    states = stream(0, "corners").uniform([-1, 0, -3], [2, 1, 3], size=(200, 3))
    index, weight = corners(axes, states)
    np.testing.assert_allclose(weight.sum(1), 1, atol=1e-12)
    np.testing.assert_allclose((weight * (grid_states(axes) @ slope)[index]).sum(1), states @ slope, atol=1e-12)


def test_the_mountain_car_expert_is_nearly_as_fast_as_any_sequence_of_actions() -> None:
    world = make_world("MountainCar")
    goal = world.goal
    expert = world.expert(goal)
    rng = stream(0, "near_the_top")
    starts = np.stack([rng.uniform(0.2, 0.45, 40), rng.uniform(0.01, 0.05, 40)], axis=1)
    traces = follow(world, lambda obs, state, carry: (expert.act(state), None), starts, goal)
    found = np.where(traces.inside.any(0), traces.inside.argmax(0), 99)
    checked = 0
    for start, took in zip(starts, found, strict=True):
        plans = np.array(list(itertools.product(range(3), repeat=7)))
        state, first = np.repeat(start[None], len(plans), axis=0), np.full(len(plans), 99)
        for t in range(7):
            state, _ = world.advance(state, plans[:, t])
            first = np.where(world.inside(state, goal) & (first == 99), t + 1, first)
        if first.min() < 99:
            checked += 1
            assert took == first.min()
    assert checked >= 20


def pumps(world: ControlWorld, goal: RegionGoal) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Simple controllers of each world: energy pumping, proportional and derivative control, and constants."""
    centre = goal.targets[0][1]
    name = world.name
    if name == "MountainCar":
        near = {
            f"pd {kp} {kd}": lambda s, kp=kp, kd=kd: np.clip(
                np.round(kp * (centre - s[:, 0]) - kd * s[:, 1]) + 1, 0, 2
            ).astype(int)
            for kp in (10, 200)
            for kd in (50, 1000)
        }
        pump = {
            "pump": lambda s: np.where(s[:, 1] >= 0, 2, 0),
            "left first": lambda s: np.where(s[:, 1] > 0, 2, 0),
        }
        both = {
            f"pump, then {label}": lambda s, hold=hold: np.where(
                np.abs(s[:, 0] - centre) < 0.2, hold(s), pump["pump"](s)
            )
            for label, hold in near.items()
        }
        return {**pump, **near, **both}
    if name == "Pendulum":

        def swing(s: np.ndarray, kp: float, kd: float) -> np.ndarray:
            away = world.features["angle"].offset(s[:, 0], centre)
            energy = s[:, 1] ** 2 / 2 + 15 * np.cos(s[:, 0])
            pump = np.sign(s[:, 1]) * np.sign(15 * math.cos(centre) - energy) * 2
            hold = -kp * away - kd * s[:, 1] - 5 * np.sin(s[:, 0])
            return np.where(np.abs(away) < 0.4, hold, pump)[:, None]

        out = {f"{kp} {kd}": lambda s, kp=kp, kd=kd: swing(s, kp, kd) for kp in (5.0, 15.0) for kd in (1.0, 4.0)}
        return {**out, "spin": lambda s: np.full((len(s), 1), 2.0)}
    if name == "Acrobot":
        return {"pump": lambda s: np.where(s[:, 3] > 0, 2, 0), "brake": lambda s: np.where(s[:, 3] > 0, 0, 2)}
    gains = itertools.product((0.1, 0.3), (0.3, 0.6))
    return {
        f"lean {a} {b}": lambda s, a=a, b=b: (
            s[:, 2] + 0.3 * s[:, 3] + 0.2 * np.clip(a * (s[:, 0] - centre) + b * s[:, 1], -0.6, 0.6) > 0
        ).astype(int)
        for a, b in gains
    }


@pytest.mark.parametrize("start", ["standard", "wide"])
@pytest.mark.parametrize("name", BOXES)
def test_no_simple_controller_beats_the_expert_on_any_goal(name: str, start: str) -> None:
    # the mean over 16 starts, fixed: what is asserted is a fact about these starts, and no estimate
    world = make_world(name, start=start)
    starts = world.starts(16, rng=stream(0, "simple", name))
    for goal in world.goals:
        expert = world.expert(goal)

        def worth(act: Callable[[np.ndarray], np.ndarray], goal: RegionGoal = goal) -> float:
            traces = follow(world, lambda obs, state, carry: (act(state), None), starts, goal)
            return float(values(traces, goal, gamma=world.gamma, horizon=world.horizon).mean())

        best = worth(expert.act)
        for label, act in pumps(world, goal).items():
            assert worth(act) <= best + 2e-3, f"{label} beats the expert of {goal.label}"


def test_the_experts_are_as_good_as_the_best_published_agents() -> None:
    # Gymnasium's own counting: one a step until the goal; good agents take about 100 and about 80 steps
    for name, limit in (("MountainCar", 105.0), ("Acrobot", 75.0)):
        world = make_world(name)
        expert = world.expert(world.goal)
        theirs = gymnasium.make(world.gym_id)
        total = 0
        for seed in range(20):
            theirs.reset(seed=seed)
            over = False
            while not over:
                state = np.array(theirs.unwrapped.state, dtype=np.float64)[None]
                _, _, terminated, truncated, _ = theirs.step(int(expert.act(state)[0]))
                over = terminated or truncated
                total += 1
            assert terminated
        assert total / 20 < limit
    world = make_world("CartPole")
    theirs = gymnasium.make("CartPole-v1")
    expert = world.expert(world.goal)
    for seed in range(5):
        theirs.reset(seed=seed)
        paid = 0.0
        for _ in range(500):
            _, reward, terminated, _, _ = theirs.step(int(expert.act(np.array(theirs.unwrapped.state)[None])[0]))
            paid += float(reward)
            assert not terminated
        assert paid == 500


def test_what_cannot_be_held_is_not_held_and_what_can_is() -> None:
    car, pendulum = make_world("MountainCar"), make_world("Pendulum")
    for world, label, low, high in (
        (car, "hold valley", 0.95, 1.0),
        (car, "hold left hill", 0.05, 0.5),
        (pendulum, "upright", 0.85, 1.0),
        (pendulum, "level left", 0.1, 0.5),
    ):
        goal = world.as_goal(label)
        expert = world.expert(goal)
        starts = world.starts(32, rng=stream(0, "held"))
        traces = follow(world, lambda obs, state, carry, act=expert.act: (act(state), None), starts, goal)
        late = traces.inside[world.horizon // 2 :].mean()
        assert low <= late <= high, (label, late)
