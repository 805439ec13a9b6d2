"""Shifts as Gymnasium wrappers: the dial at 0, seeds, stacks in any order, and what they show against the formulas."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

from retarget.agents import exact_planner
from retarget.envs import BoxEnv, make_world
from retarget.envs.shifts import (
    BlindedObservations,
    StartsBeyond,
    StartsFrom,
    StartsMixed,
    SwappedObservations,
    trained_states,
)
from retarget.envs.shifts_box import BoxStartsFrom, OffsetObservations, ReplacedObservations
from retarget.errors import GoalError, RetargetError
from retarget.exact import Yardstick, policy_table, reach_values
from retarget.shifted import attack, beyond, blinded, inner
from retarget.shifted_box import Disturbance, episodes, trials_from

GAMMA = 0.95
Make = Callable[[Any, float], Any]

FINITE: dict[str, Make] = {
    "blinded": lambda env, dose: BlindedObservations(env, dose=dose),
    "swapped": lambda env, dose: SwappedObservations(env, states=[1, 2, 5, 7], seen=[9, 8, 3, 0], dose=dose),
    "beyond": lambda env, dose: StartsBeyond(env, trained="west half", dose=dose),
    "mixed": lambda env, dose: StartsMixed(env, trained="all but south-east", dose=dose),
    "starts": lambda env, dose: StartsFrom(env, starts=[1, 2, 3], dose=dose),
}
BOX: dict[str, Make] = {
    "replaced": lambda env, dose: ReplacedObservations(env, dose=dose, pool=[[0.1, 0.02], [9.0, -3.0]]),
    "offset": lambda env, dose: OffsetObservations(env, offset=[0.7, -0.03], dose=dose, random_signs=True),
    "starts": lambda env, dose: BoxStartsFrom(env, starts=[[-0.9, 0.0], [0.3, 0.01]], dose=dose),
}


def _world(**options: object) -> Any:
    return make_world("FourRooms", size=7, **options)


def _check(env: gymnasium.Env[Any, Any]) -> None:
    """Gymnasium's own check, with every warning an error but that there is a wrapper, and no spec to render from."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*is different from the unwrapped version.*")
        check_env(env, skip_render_check=True)


def _trajectory(env: gymnasium.Env[Any, Any], seed: int, n: int = 25) -> list[Any]:
    obs, info = env.reset(seed=seed)
    out = [np.asarray(obs).tolist(), np.asarray(info["state"]).tolist()]
    rng = np.random.default_rng(seed)
    for _ in range(n):
        obs, reward, terminated, truncated, info = env.step(int(rng.integers(env.action_space.n)))
        out += [np.asarray(obs).tolist(), np.asarray(info["state"]).tolist(), reward, terminated, truncated]
        if terminated or truncated:
            obs, info = env.reset()
            out += [np.asarray(obs).tolist(), np.asarray(info["state"]).tolist()]
    return out


# ------------------------------------------------------------------------------------------------ laws


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.permutations(sorted(FINITE)), st.sampled_from(["index", "xy", "image"]))
def test_a_stack_of_strength_0_is_not_there(seed: int, names: list[str], mode: str) -> None:
    env = _world(observation=mode, slip=0.25)
    for name in names:
        env = FINITE[name](env, 0.0)
    assert _trajectory(env, seed) == _trajectory(_world(observation=mode, slip=0.25), seed)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.permutations(sorted(BOX)))
def test_a_stack_of_strength_0_is_not_there_in_continuous_worlds(seed: int, names: list[str]) -> None:
    env: Any = BoxEnv("MountainCar")
    for name in names:
        env = BOX[name](env, 0.0)
    assert env.observation_space == BoxEnv("MountainCar").observation_space
    assert _trajectory(env, seed) == _trajectory(BoxEnv("MountainCar"), seed)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.permutations(sorted(FINITE)), st.floats(0.05, 1.0))
def test_only_the_seed_of_reset_decides(seed: int, names: list[str], dose: float) -> None:
    def stack() -> Any:
        env = _world(slip=0.25)
        for name in names:
            env = FINITE[name](env, dose)
        return env

    first = _trajectory(stack(), seed)
    np.random.default_rng().random(3)
    second = stack()
    _trajectory(second, seed + 1)  # what went before does not matter
    assert _trajectory(second, seed) == first


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.05, 1.0))
def test_shifts_of_observations_leave_the_world_as_it_is(seed: int, dose: float) -> None:
    shifted = FINITE["blinded"](FINITE["swapped"](_world(slip=0.25), dose), dose)
    plain = _world(slip=0.25)
    rng = np.random.default_rng(seed)
    _, a = shifted.reset(seed=seed)
    _, b = plain.reset(seed=seed)
    for _ in range(20):
        assert a["state"] == b["state"]
        action = int(rng.integers(4))
        *_, done, _, a = shifted.step(action)
        *_, b = plain.step(action)
        if done:
            break


def test_twins_in_one_stack_draw_other_numbers() -> None:
    one = BlindedObservations(make_world("FourRooms", size=13), dose=1.0)
    two = BlindedObservations(one, dose=1.0)
    shown = []
    one.reset(seed=0)
    two.reset(seed=0)
    for seed in range(30):
        shown.append((one.reset(seed=seed)[1]["seen"], two.reset(seed=seed)[1]["seen"]))
    assert sum(a == b for a, b in shown) < 6


# ------------------------------------------------------------------------------------------------ gymnasium's check


@pytest.mark.parametrize("mode", ["index", "xy", "one_hot", "image"])
@pytest.mark.parametrize("name", sorted(FINITE))
def test_every_shift_passes_the_check_of_environments(name: str, mode: str) -> None:
    for with_goal in (False, True):
        for dose in (0.0, 0.6, 1.0):
            _check(FINITE[name](_world(observation=mode, observe_goal=with_goal), dose))


@pytest.mark.parametrize("order", list(itertools.permutations(["blinded", "swapped", "beyond", "starts"]))[::4])
def test_stacks_pass_it_in_any_order(order: tuple[str, ...]) -> None:
    env = _world()
    for name in order:
        env = FINITE[name](env, 0.5)
    _check(env)


@pytest.mark.parametrize("order", list(itertools.permutations(sorted(BOX))))
def test_stacks_of_continuous_worlds_pass_it_in_any_order(order: tuple[str, ...]) -> None:
    env: Any = BoxEnv("MountainCar")
    for name in order:
        env = BOX[name](env, 0.5)
    _check(env)
    for seed in range(10):
        obs, _ = env.reset(seed=seed)
        assert env.observation_space.contains(obs)
        assert env.observation_space.contains(env.step(2)[0])


def test_a_shift_of_a_registered_environment_can_be_made_again() -> None:
    env = BlindedObservations(gymnasium.make("retarget/FourRooms-v0", size=7), dose=0.5)
    assert env.spec is not None
    again = env.spec.make()
    assert again.reset(seed=3)[0] == env.reset(seed=3)[0]
    beyond_ = StartsBeyond(gymnasium.make("retarget/FourRooms-v0", size=7), trained="west half", dose=0.5)
    assert beyond_.spec is not None and beyond_.spec.make().reset(seed=3)[0] == beyond_.reset(seed=3)[0]


# ------------------------------------------------------------------------------------------------ oracles


def test_blinding_shows_another_state_as_often_as_it_should() -> None:
    """20,000 resets at strength 0.3; five standard errors, a false alarm in 2 million."""
    env = BlindedObservations(_world(), dose=0.3)
    n, s = 20_000, env.world.model.n_states
    env.reset(seed=0)
    infos = [env.reset()[1] for _ in range(n)]
    share = 0.3 * (1 - 1 / s)
    hits = [i["seen"] for i in infos if i["seen"] != i["state"]]
    assert abs(len(hits) - n * share) < 5 * math.sqrt(n * share * (1 - share))
    counts = np.bincount(hits, minlength=s)
    assert (np.abs(counts - len(hits) / s) < 5.5 * math.sqrt(len(hits) / s)).all()


def test_episodes_in_a_blinded_world_are_worth_what_the_exact_policy_is() -> None:
    """1,500 episodes from one start; five standard errors, a false alarm in 2 million."""
    world = make_world("OpenGrid", size=5, slip=0.2)
    goal = world.as_goal((4, 4))
    agent = exact_planner(world, goal)
    probs = policy_table(agent, world.model)
    start = world.as_state((0, 0))
    exact = reach_values(world.model, blinded(probs, dose=0.5), goal, gamma=GAMMA)[start]
    env = BlindedObservations(world, dose=0.5)
    found = []
    env.reset(seed=1)
    for _ in range(1500):
        obs, _ = env.reset(options={"start": int(start), "goal": goal})
        for t in range(1, 300):
            obs, _, terminated, _, _ = env.step(int(probs[obs].argmax()))
            if terminated:
                found.append(GAMMA**t)
                break
        else:
            found.append(0.0)
    assert abs(np.mean(found) - exact) < 5 * np.std(found) / math.sqrt(len(found))


def test_swaps_of_an_adversary_do_in_the_world_what_it_says() -> None:
    world = make_world("FourRooms", size=7)
    goal = world.goals[0]
    probs = policy_table(exact_planner(world, goal), world.model)
    judge = Yardstick.of(world, goal, gamma=GAMMA)
    swaps = attack(judge, probs, judge.starts, k=3, budget=20, seed=0).swaps
    env = SwappedObservations.of(world, swaps)
    values = []
    for start in judge.starts:
        obs, _ = env.reset(seed=0, options={"start": int(start), "goal": goal})
        value = 0.0
        for t in range(1, 3 * len(probs)):
            obs, _, terminated, _, _ = env.step(int(probs[obs].argmax()))
            if terminated:
                value = GAMMA**t
                break
        values.append(value / judge.optimal[start])
    assert np.mean(values) == pytest.approx(judge.competence(swaps.apply(probs)), abs=1e-12)


@pytest.mark.parametrize(
    ("make", "pick", "trained"),
    [(StartsBeyond, beyond, "west half"), (StartsMixed, inner, "all but south-east")],
)
def test_starts_are_drawn_from_all_of_what_the_formulas_pick(make: Any, pick: Any, trained: str) -> None:
    world = make_world("FourRooms", size=9)
    known = trained_states(world, trained)
    for dose in (0.3, 1.0):
        env = make(world, trained=trained, dose=dose)
        expected = set(pick(world.coordinates, world.coordinates[known], dose=dose).tolist()) - set(world.goal.states)
        env.reset(seed=0)
        assert {env.reset()[1]["state"] for _ in range(600)} == expected
    start = int(known[0])
    assert env.reset(options={"start": start})[1]["state"] == start


def test_narrow_starts_are_drawn_as_often_as_they_should_be() -> None:
    """4,000 resets at strength 0.5; five standard errors, a false alarm in 2 million."""
    world = make_world("FourRooms", size=9)
    pool = [s for s in range(5) if s not in world.goal.states]
    env = StartsFrom(world, starts=pool, dose=0.5)
    env.reset(seed=0)
    hits = sum(env.reset()[1]["state"] in pool for _ in range(4000))
    starts = len(world.start_states) - 1
    share = 0.5 + 0.5 * len(pool) / starts
    assert abs(hits - 4000 * share) < 5 * math.sqrt(4000 * share * (1 - share))


@dataclass(frozen=True, eq=False)
class _Pusher:
    """Enough of an agent for `episodes`: pushes a car the way that it sees itself go."""

    def policy(self, obs: np.ndarray, carry: object = None) -> tuple[np.ndarray, object]:
        right = (np.asarray(obs)[:, 1] >= 0).astype(np.float64)
        return np.stack([1 - right, np.zeros_like(right), right], axis=1), None


def test_offsets_in_the_environment_are_those_of_the_formulas() -> None:
    world = make_world("MountainCar")
    goal = world.goal
    starts = np.array([[-0.5, 0.0], [-0.55, 0.01], [-0.3, -0.02]])
    offset = np.array([0.4, -0.008])
    trials = trials_from(world, goal, starts, gamma=world.gamma, seed=0)
    ratios = episodes(trials, _Pusher(), Disturbance(offset=offset)).ratios  # type: ignore[arg-type]
    env = OffsetObservations(BoxEnv(world), offset=2 * offset, dose=0.5)
    for start, best, ratio in zip(trials.starts, trials.best, ratios, strict=True):
        obs, _ = env.reset(seed=0, options={"start": start.tolist()})
        value = 0.0
        for t in range(1, world.horizon + 1):
            obs, _, terminated, truncated, _ = env.step(2 if obs[1] >= 0 else 0)
            if terminated:
                value = world.gamma**t
            if terminated or truncated:
                break
        assert min(value / best, 1.0) == pytest.approx(ratio, abs=1e-12)


def test_replaced_observations_come_from_the_pool_as_often_as_they_should() -> None:
    """4,000 resets at strength 0.4; five standard errors, a false alarm in 2 million."""
    env = ReplacedObservations(BoxEnv("MountainCar"), dose=0.4, pool=[[5.0, 1.0], [6.0, 1.0]])
    env.reset(seed=0)
    first = np.array([env.reset()[0][0] for _ in range(4000)])
    assert abs((first >= 5).sum() - 1600) < 5 * math.sqrt(4000 * 0.24)
    assert abs((first == 6).sum() - 800) < 5 * math.sqrt(4000 * 0.16)
    assert ReplacedObservations(BoxEnv("MountainCar"), dose=1.0).reset(seed=0)[0].tolist() == [0.0, 0.0]


# ------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: BlindedObservations(_world(), dose=1.5), "from 0 to 1"),
        (lambda: BlindedObservations(BoxEnv("MountainCar"), dose=0.5), "finite worlds"),
        (lambda: OffsetObservations(_world(), offset=[1.0]), "continuous states"),
        (lambda: OffsetObservations(BoxEnv("MountainCar"), offset=[1.0]), "2 a row"),
        (lambda: ReplacedObservations(BoxEnv("MountainCar"), dose=0.5, pool=[[np.nan, 1.0]]), "finite numbers"),
        (lambda: BoxStartsFrom(BoxEnv("MountainCar"), starts=[[1.0, 2.0, 3.0]]), "2 a row"),
        (lambda: SwappedObservations(_world(), states=[1, 1], seen=[2, 3]), "each once"),
        (lambda: SwappedObservations(_world(), states=[1], seen=[999]), "does not exist"),
        (lambda: StartsFrom(_world(), starts=[]), "no start of this kind"),
        (lambda: StartsFrom(_world(), starts=[-1]), "does not exist"),
        (lambda: StartsBeyond(_world(), trained="west haf", dose=1.0), "did you mean 'west half'"),
        (lambda: StartsBeyond(_world(), trained=[], dose=1.0), "at least one"),
        (lambda: StartsMixed(_world(), trained="west half", dose=1.0), "no start of this kind"),
        (lambda: StartsBeyond(make_world("Taxi-v4"), trained=[0], dose=1.0), "no coordinates"),
    ],
)
def test_bad_input_gives_one_clear_line(call: Callable[[], object], words: str) -> None:
    with pytest.raises(RetargetError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


def test_a_goal_on_every_shifted_start_is_refused() -> None:
    env = StartsFrom(_world(), starts=[3])
    with pytest.raises(GoalError, match="covers every shifted start"):
        env.reset(seed=0, options={"goal": 3})
    box = BoxStartsFrom(BoxEnv("MountainCar"), starts=[[0.55, 0.0]])
    with pytest.raises(GoalError, match="covers every shifted start"):
        box.reset(seed=0)
