"""Worlds end to end: registration, Gymnasium's interface, the checker and what it catches, errors, weight."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import retarget.envs
from retarget.envs import (
    WORLDS,
    GridVectorWorld,
    GridWorld,
    VectorWorld,
    check_world,
    make_world,
    rollout,
    world_from_gym,
)
from retarget.envs.registration import NAMES, register_all
from retarget.errors import AgentError, GoalError, RetargetError, WorldError
from retarget.goal import StateGoal
from retarget.world import FiniteModel, FiniteWorld, WorldSpec

MODES = ("index", "xy", "one_hot", "image")
TOY_TEXT = ("FrozenLake-v1", "FrozenLake8x8-v1", "CliffWalking-v1", "CliffWalkingSlippery-v1", "Taxi-v4")


# -- registration -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("slip", [0.0, 0.25])
def test_registered_worlds_pass_both_checkers(name: str, slip: float) -> None:
    world = gymnasium.make(f"retarget/{name}-v0", size=7, slip=slip).unwrapped
    check_env(world)
    check_world(world)
    assert isinstance(world, FiniteWorld)


@pytest.mark.parametrize("name", TOY_TEXT)
def test_wrapped_worlds_pass_both_checkers(name: str) -> None:
    world = make_world(name)
    check_env(world)
    check_world(world)
    assert make_world(world.spec_data).model.digest == world.model.digest


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("with_goal", [False, True])
@pytest.mark.parametrize("name", ["KeyDoor", "Cliff"])
def test_every_observation_mode_passes_check_env(name: str, mode: str, with_goal: bool) -> None:
    check_env(make_world(name, size=6, observation=mode, observe_goal=with_goal))
    envs = gymnasium.make_vec(f"retarget/{name}-v0", num_envs=3, size=6, observation=mode, observe_goal=with_goal)
    obs, _ = envs.reset(seed=0)
    assert obs in envs.observation_space
    assert envs.step(np.array([0, 1, 2]))[0] in envs.observation_space


def test_registration_is_idempotent_and_names_every_world() -> None:
    before = dict(gymnasium.registry)
    register_all()
    assert gymnasium.registry == before
    assert {e.id for e in WORLDS.values()} == {f"retarget/{n}-v0" for n in NAMES} <= set(before)


def test_make_vec_gives_the_compiled_world() -> None:
    envs = gymnasium.make_vec(
        "retarget/FourRooms-v0", num_envs=8192, vectorization_mode="vector_entry_point", max_episode_steps=9
    )
    assert isinstance(envs, GridVectorWorld)
    assert envs.metadata["autoreset_mode"] == gymnasium.vector.AutoresetMode.NEXT_STEP
    envs.reset(seed=0)
    for t in range(1, 9):
        trunc = envs.step(np.zeros(8192, dtype=np.int32))[3]
        assert not trunc.any(), t
    _, _, term, trunc, _ = envs.step(np.zeros(8192, dtype=np.int32))
    assert trunc.any() and not (term & trunc).any()


def test_the_vector_world_agrees_with_gymnasium_sync_loop() -> None:
    """Same start, goal and actions, no slip: the compiled step and Gymnasium's own vectoriser give the same."""
    sync = gymnasium.make_vec("retarget/KeyDoor-v0", num_envs=4, vectorization_mode="sync", size=6)
    fast = gymnasium.make_vec("retarget/KeyDoor-v0", num_envs=4, size=6)
    options = {"start": (1, 1), "goal": (4, 4)}
    np.testing.assert_array_equal(sync.reset(seed=0, options=options)[0], fast.reset(seed=0, options=dict(options))[0])
    rng = np.random.default_rng(0)
    for _ in range(30):
        row = rng.integers(4, size=4)
        a, b = sync.step(row), fast.step(row)
        if a[2].any():
            break
        for x, y in zip(a[:4], b[:4], strict=True):
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
    ("code", "banned"),
    [
        ("import retarget", ("gymnasium", "numba", "torch", "polars")),
        ("import retarget.envs.registration", ("numba", "torch", "polars", "scipy")),
        ("import retarget.envs; retarget.envs.make_world('Maze')", ("numba", "torch", "polars", "scipy")),
    ],
)
def test_imports_are_light(code: str, banned: tuple[str, ...]) -> None:
    probe = f"{code}; import sys; print([m for m in {banned!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_every_public_name_exists() -> None:
    for name in retarget.envs.__all__:
        assert getattr(retarget.envs, name) is not None
    assert set(retarget.envs.__all__) <= set(dir(retarget.envs))
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = retarget.envs.nope


# -- names and options --------------------------------------------------------------------------------------------


def test_a_world_has_one_name_for_every_way_to_ask() -> None:
    short = make_world("FourRooms", size=9)
    for other in (make_world("retarget/FourRooms-v0", size=9), make_world(WorldSpec.of("FourRooms", size=9))):
        assert other.spec_data == short.spec_data == WorldSpec.of("FourRooms", size=9)
        assert other.model.digest == short.model.digest
    assert make_world(WorldSpec.of("FourRooms", size=9), size=np.int64(7)).spec_data.label == "FourRooms(size=7)"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("FourRoms", {}, "unknown world 'FourRoms' (did you mean 'FourRooms'?)"),
        ("FrozenLake-v9", {}, "did you mean 'FrozenLake-v1'?"),
        ("os:FrozenLake-v1", {}, "unknown world 'os:FrozenLake-v1'"),
        ("retarget/Nowhere-v0", {}, "unknown world 'retarget/Nowhere-v0'"),
        ("Blackjack-v1", {}, "carries no transition table P"),
        ("FourRooms", {"siez": 9}, "did you mean 'size'?"),
        ("FourRooms", {"layout": "Maze"}, "unknown option of world 'FourRooms' 'layout'"),
        ("FourRooms", {"seed": 1}, "unknown option of world 'FourRooms' 'seed'"),
        ("FourRooms", {"size": 4}, "option 'size' of world 'FourRooms' must be an integer from 5 to 101, got 4"),
        ("FourRooms", {"size": 9.0}, "must be an integer from 5 to 101, got 9.0"),
        ("FourRooms", {"size": True}, "must be an integer from 5 to 101, got True"),
        ("FourRooms", {"slip": 1.0}, "which is excluded, got 1.0"),
        ("FourRooms", {"slip": float("nan")}, "got nan"),
        ("FourRooms", {"max_episode_steps": -1}, "got -1"),
        ("FourRooms", {"observe_goal": 1}, "must be true or false, got 1"),
        ("FourRooms", {"observation": "pixels"}, "one of 'index', 'xy', 'one_hot', 'image', got 'pixels'"),
        ("Maze", {"open_fraction": 1.5}, "got 1.5"),
        ("FrozenLake-v1", {"is_slipery": True}, "did you mean 'is_slippery'?"),
        ("FrozenLake-v1", {"is_slippery": 1}, "takes a value like True, got 1"),
        ("FrozenLake-v1", {"map_name": "5x5"}, "cannot be built with map_name='5x5'"),
        ("FrozenLake-v1", {"observation": "image"}, "must be one of 'index', 'xy', 'one_hot', got 'image'"),
        ("Taxi-v4", {"observation": "xy"}, "needs a grid"),
        ("Taxi-v4", {"fickle_passenger": True}, "moves by more than its table"),
        (3, {}, "a world is named by a string or a WorldSpec, got 3"),
    ],
)
def test_a_bad_world_is_refused_in_one_line(name: Any, options: dict[str, object], message: str) -> None:
    with pytest.raises(WorldError) as caught:
        make_world(name, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_id_that_imports_code_imports_nothing() -> None:
    with pytest.raises(WorldError):
        make_world("antigravity_module_that_would_be_imported:X-v0")
    with pytest.raises(WorldError):
        world_from_gym("this:FrozenLake-v1")
    assert "this" not in sys.modules


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ((0, 0), "goal (0, 0) is a wall in FourRooms(size=13); the nearest free cell is (1, 1)"),
        ((99, 3), "goal (99, 3) is outside the 13x13 grid of FourRooms(size=13); rows run from 0 to 12"),
        ((-1, 3), "goal (-1, 3) is outside the 13x13 grid"),
        (104, "goal 104 is outside FourRooms(size=13), which has states 0 to 103"),
        (-1, "goal -1 is outside"),
        (True, "goal True is no place"),
        (None, "goal None is no place"),
        ("corner", "goal 'corner' is no place in FourRooms(size=13); pass a (row, column) cell or a state index"),
        ([1, 2, 3], "is no place"),
        (1.0, "goal 1.0 is no place"),
        (set(), "a goal needs at least one state"),
        ([(1, 1), (0, 0)], "goal (0, 0) is a wall"),
        (StateGoal.of([104]), "goal state 104 is outside"),
    ],
)
def test_a_bad_goal_names_what_is_there(place: object, message: str) -> None:
    world = make_world("FourRooms", size=13)
    with pytest.raises(GoalError) as caught:
        world.as_goal(place)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    if place is not None:  # left out, the goal stays
        before = world.goal
        with pytest.raises(GoalError):
            world.reset(options={"goal": place})
        assert world.goal == before


def test_cliffs_and_doors_are_named() -> None:
    with pytest.raises(
        GoalError, match=r"goal \(8, 4\) is a cliff in Cliff\(size=9\); the nearest free cell is \(7, 4\)"
    ):
        make_world("Cliff", size=9, goal=(8, 4))
    with pytest.raises(GoalError, match=r"start \(9, 9\) is outside the 9x9 grid"):
        make_world("Cliff", size=9, start=(9, 9))
    with pytest.raises(GoalError, match="has no grid; pass a state index"):
        make_world("Taxi-v4", goal=(0, 0))


# -- episodes -----------------------------------------------------------------------------------------------------


def test_reset_options_are_honoured() -> None:
    world = make_world("FourRooms", size=9)
    obs, info = world.reset(seed=0, options={"goal": (1, 1), "start": (1, 3)})
    assert obs == info["state"] == world.as_state((1, 3))
    assert world.step(3)[1:4] == (0.0, False, False)
    assert world.step(np.int64(3))[1:4] == (1.0, True, False)
    with pytest.raises(WorldError, match="call reset"):
        world.step(0)
    world.reset()
    assert world.goal.states == (0,), "a goal stays until another is set"
    with pytest.raises(WorldError, match="unknown reset option 'gaol' \\(did you mean 'goal'\\?\\)"):
        world.reset(options={"gaol": 1})
    with pytest.raises(GoalError, match=r"start \(1, 1\) lies in the goal \(1,1\)"):
        world.reset(options={"start": (1, 1)})
    with pytest.raises(GoalError, match="covers every start"):
        world.reset(options={"goal": set(range(world.model.n_states))})
    for action in (4, -1, 1.0, True, "up"):
        world.reset()
        with pytest.raises(WorldError, match="does not exist; actions are 0 to 3"):
            world.step(action)


def test_goals_are_sets_of_cells() -> None:
    world = make_world("OpenGrid", size=5)
    assert world.as_goal([(0, 0), (0, 2)]).states == (0, 2) == world.as_goal({(0, 2), 0}).states
    assert world.as_goal(np.array([[0, 0], [0, 2]])).states == (0, 2)
    assert world.as_goal([1, 2]) == world.as_goal((1, 2)) == StateGoal.of([7])
    for goal in ({3, 4}, [(0, 3), (0, 4)], StateGoal.of([3, 4])):
        built = make_world("OpenGrid", size=5, goal=goal)
        assert built.goal.states == (3, 4) == make_world(built.spec_data).goal.states


def test_a_cell_of_key_door_is_every_state_on_it() -> None:
    world = make_world("KeyDoor", size=7)
    states = world.as_goal((1, 1)).states
    assert world.layout.flags[list(states)].tolist() == [[0, 0], [1, 0], [1, 1]]
    assert len(world.as_goal((5, 5)).states) == 1
    assert all(len({tuple(world.coordinates[s]) for s in g.states}) == 1 for g in world.goals)


def test_set_goals_need_an_observation_that_can_show_them() -> None:
    for mode in ("index", "xy"):
        world = make_world("OpenGrid", size=5, observation=mode, observe_goal=True)
        with pytest.raises(GoalError, match="shows goals of one cell"):
            world.reset(options={"goal": [(0, 0), (0, 1)]})
    for mode in ("one_hot", "image"):
        world = make_world("OpenGrid", size=5, observation=mode, observe_goal=True)
        obs, _ = world.reset(options={"goal": [(0, 0), (0, 1)]})
        assert np.count_nonzero(obs["goal"]) == 2


def test_observing_refuses_what_is_no_state() -> None:
    world = make_world("OpenGrid", size=5)
    with pytest.raises(WorldError, match="state 25 does not exist"):
        world.observe(np.array([0, 25]))
    with pytest.raises(WorldError, match="must be an int array"):
        world.observe(np.zeros(3))


def test_episodes_are_truncated() -> None:
    world = make_world("OpenGrid", size=5, max_episode_steps=3, goal=(4, 4))
    world.reset(options={"start": (0, 0)})
    assert [world.step(0)[2:4] for _ in range(3)] == [(False, False), (False, False), (False, True)]
    world.reset(options={"start": (4, 1)})
    assert [world.step(1)[2:4] for _ in range(3)][-1] == (True, False), (
        "reaching the goal at the limit is no truncation"
    )


def test_rendering_shows_agent_goal_and_key() -> None:
    world = make_world("KeyDoor", size=5, render_mode="ansi")
    world.reset(options={"start": (2, 1), "goal": (3, 3)})
    assert world.render() == "#####\n#.#.#\n#AD.#\n#K#G#\n#####"
    world.step(2)
    world.step(0)
    assert world.render() == "#####\n#.#.#\n#AD.#\n#.#G#\n#####"
    picture = gymnasium.make("retarget/KeyDoor-v0", size=5, render_mode="rgb_array")
    picture.reset(seed=0)
    image = picture.render()
    assert image.dtype == np.uint8 and image.shape[0] == image.shape[1] >= 100
    assert make_world("OpenGrid").render() is None
    with pytest.raises(WorldError, match="unknown render mode 'human'"):
        make_world("OpenGrid", render_mode="human")
    lake = make_world("FrozenLake-v1", render_mode="ansi")
    lake.reset()
    assert lake.render() == "A...\n....\n....\n...G"
    taxi = make_world("Taxi-v4", render_mode="ansi")
    taxi.reset(options={"start": 1})
    assert taxi.render().startswith("state 1 of 500")


# -- vector worlds ------------------------------------------------------------------------------------------------


def test_vector_reset_takes_one_or_many() -> None:
    envs = VectorWorld(make_world("OpenGrid", size=5), 3)
    obs, _ = envs.reset(seed=0, options={"goal": [(0, 0), (0, 1), {2, 3}], "start": [1, 2, (4, 4)]})
    assert obs.tolist() == [1, 2, 24]
    assert [g.states for g in envs.goals_in_force] == [(0,), (1,), (2, 3)]
    _, reward, term, _, _ = envs.step(np.array([3, 3, 0]))
    assert reward.tolist() == [1, 1, 0] and term.tolist() == [True, True, False]
    mask = np.array([False, True, False])
    obs, _ = envs.reset(options={"start": (3, 3), "reset_mask": mask})
    assert obs.tolist() == [0, 18, 19]
    obs, reward, term, _, _ = envs.step(np.array([0, 0, 0]))
    assert obs[1] == 13 and reward.tolist() == [0, 0, 0] and not term.any()
    assert obs[0] != 0, "the environment that was done began again, at a start outside its goal"
    np.testing.assert_array_equal(envs.states, obs)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"gaol": 1}, WorldError, "unknown reset option 'gaol'"),
        ({"goal": (9, 9)}, GoalError, "outside the 5x5 grid"),
        ({"start": [0, 1, 99]}, GoalError, "start 99 is outside"),
        ({"goal": (0, 0), "start": [3, 0, 4]}, GoalError, "start 0 of environment 1 lies in its goal"),
        ({"goal": set(range(25))}, GoalError, "covers every start"),
        ({"reset_mask": [True]}, WorldError, "reset_mask must be a boolean NumPy array"),
        ({"reset_mask": np.zeros(3, bool)}, WorldError, "selects no environment"),
    ],
)
def test_a_refused_vector_reset_changes_nothing(options: Any, kind: type[RetargetError], message: str) -> None:
    envs = VectorWorld(make_world("OpenGrid", size=5), 3)
    envs.reset(seed=0)
    before, goals = envs.states, envs.goals_in_force
    with pytest.raises(kind, match=message):
        envs.reset(options=options)
    np.testing.assert_array_equal(envs.states, before)
    assert envs.goals_in_force == goals


def test_a_refused_vector_step_changes_nothing() -> None:
    envs = VectorWorld(make_world("OpenGrid", size=5), 3)
    with pytest.raises(WorldError, match="call reset"):
        envs.step(np.zeros(3, int))
    with pytest.raises(WorldError, match="first reset must cover every environment"):
        envs.reset(options={"reset_mask": np.array([True, False, True])})
    with pytest.raises(WorldError, match="one integer for all"):
        envs.reset(seed=[1, 2, 3])  # type: ignore[arg-type]
    envs.reset(seed=0)
    before = envs.states
    for slip in (0.0, 0.5):
        envs = VectorWorld(make_world("OpenGrid", size=5, slip=slip), 3)
        envs.reset(seed=0)
        before = envs.states
        for bad in (4, -1, 2**40):
            with pytest.raises(WorldError, match=f"action {bad} does not exist"):
                envs.step(np.array([0, bad, 0]))
        for shape in (np.zeros(2, int), np.zeros(3), np.zeros((3, 1), int)):
            with pytest.raises(WorldError, match="actions must be an int array"):
                envs.step(shape)
        np.testing.assert_array_equal(envs.states, before)
        assert envs.step(np.zeros(3, np.uint8))[0].shape == (3,)
    for n in (0, 1.0, True):
        with pytest.raises(WorldError, match="num_envs must be an integer"):
            VectorWorld(make_world("OpenGrid"), n)  # type: ignore[arg-type]
    with pytest.raises(WorldError, match="draws nothing"):
        GridVectorWorld("OpenGrid", render_mode="ansi")


def test_vector_data_is_fresh() -> None:
    envs = VectorWorld(make_world("OpenGrid", size=5, observe_goal=True), 4)
    first = envs.reset(seed=0)[0]
    second = envs.step(np.zeros(4, int))[0]
    kept = {k: v.copy() for k, v in second.items()}
    first["observation"][:] = first["goal"][:] = second["observation"][:] = second["goal"][:] = 0
    third = envs.step(np.full(4, 2))[0]
    assert (third["goal"] == kept["goal"]).all()
    assert (third["observation"] >= 5).any()


# -- rollouts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"policy": np.full(25, 4)}, AgentError, "action 4, which does not exist"),
        ({"policy": np.zeros(24, int)}, AgentError, "a policy is int"),
        ({"policy": np.full((25, 4), 0.3)}, AgentError, "sum to 1"),
        ({"policy": np.full((25, 4), np.nan)}, AgentError, "finite"),
        ({"starts": np.array([25])}, GoalError, "start 25 is outside"),
        ({"starts": np.array([-1])}, GoalError, "start -1 is outside"),
        ({"starts": np.array([24])}, GoalError, r"start 24 lies in the goal"),
        ({"starts": np.zeros(3)}, GoalError, "must be an int array"),
        ({"horizon": 0}, WorldError, "horizon must be at least 1"),
        ({"horizon": 2**30 + 1}, WorldError, r"at most 2\^30"),
        ({"gamma": 1.5}, WorldError, "gamma in"),
    ],
)
def test_bad_rollouts_are_refused(changes: dict[str, Any], kind: type[RetargetError], message: str) -> None:
    arguments: dict[str, Any] = {"policy": np.zeros(25, int), **changes}
    with pytest.raises(kind, match=message):
        rollout(make_world("OpenGrid", size=5), arguments.pop("policy"), **arguments)


def test_a_rollout_of_nothing() -> None:
    out = rollout(make_world("OpenGrid", size=5), np.zeros(25, int), starts=np.zeros(0, int))
    assert out.returns.shape == (0,) and out.env_steps == 0


# -- wrapped environments -----------------------------------------------------------------------------------------


class Table(gymnasium.Env):
    """An environment that is nothing but a table."""

    def __init__(self, table: Any, starts: Any = None) -> None:
        self.P = table
        if starts is not None:
            self.initial_state_distrib = np.array(starts)


CHAIN = {0: {0: [(1.0, 1, 0.0, False)]}, 1: {0: [(1.0, 2, 1.0, True)]}, 2: {0: [(1.0, 2, 0.0, True)]}}


def test_any_table_can_be_wrapped() -> None:
    world = world_from_gym(Table(CHAIN))
    assert world.goal.states == (2,) and world.start_states.tolist() == [0, 1]
    assert world.spec_data.id.startswith("unregistered")
    check_world(world)


@pytest.mark.parametrize(
    ("table", "starts", "message"),
    [
        (
            {**CHAIN, 1: {0: [(0.5, 2, 1.0, True), (0.5, 2, 0.0, False)]}},
            [1, 0, 0],
            "state 2 .* both with and without done",
        ),
        ({**CHAIN, 1: {0: [(0.4, 2, 1.0, True)]}}, None, "sum to 1"),
        ({**CHAIN, 1: {0: [(1.0, 7, 1.0, True)]}}, None, "outside 0 to 2"),
        ({**CHAIN, 1: {}}, None, "states with"),
        ({**CHAIN, 1: {0: [(1.0, 2)]}}, None, "malformed|four"),
        ({**CHAIN, 1: {0: [(1.0, 2, float("nan"), True)]}}, None, "finite"),
        ({0: CHAIN[0], 5: CHAIN[1]}, None, "malformed"),
        ({0: {0: []}}, None, "actions"),
        ({}, None, "no transition table"),
        (None, None, "no transition table"),
        ({0: {0: [(1.0, 1, 0.0, False)]}, 1: {0: [(1.0, 0, 0.0, False)]}}, None, "no state that ends an episode"),
        (CHAIN, [1.0, 0.0], "initial_state_distrib"),
        (CHAIN, [0.0, 0.0, 0.0], "no state in which an episode could begin"),
    ],
)
def test_a_bad_table_is_refused_in_one_line(table: Any, starts: Any, message: str) -> None:
    with pytest.raises(WorldError, match=message) as caught:
        world_from_gym(Table(table, starts))
    assert "\n" not in str(caught.value)


def test_wrapped_environments_keep_their_options() -> None:
    slick = world_from_gym(gymnasium.make("FrozenLake-v1", is_slippery=False))
    assert slick.spec_data == WorldSpec.of("FrozenLake-v1", is_slippery=False)
    assert make_world(slick.spec_data).model.digest == slick.model.digest
    changed = gymnasium.make("FrozenLake-v1").unwrapped
    changed.P[0][0] = [(1.0, 5, 0.0, True)]
    assert world_from_gym(changed).spec_data.id.startswith("unregistered"), "a changed table is another world"
    with pytest.raises(WorldError, match="cannot be given with a built environment"):
        world_from_gym(changed, is_slippery=False)
    with pytest.raises(WorldError, match="expected a Gymnasium environment"):
        world_from_gym(3)  # type: ignore[arg-type]


def test_goal_and_start_of_a_wrapped_world_can_be_set() -> None:
    world = make_world("CliffWalking-v1", goal=(0, 0), start=(2, 0), max_episode_steps=5)
    assert world.goal.states == (0,) and world.start_states.tolist() == [24]
    world.reset(seed=0)
    assert [world.step(0)[1:3] for _ in range(2)] == [(0.0, False), (1.0, True)]
    envs = VectorWorld(make_world("FrozenLake-v1"), 64)
    envs.reset(seed=0, options={"goal": (0, 2)})
    hits = sum(int(envs.step(np.full(64, 2))[2].sum()) for _ in range(50))
    assert hits > 0


# -- the checker --------------------------------------------------------------------------------------------------


class Pays(GridWorld):
    def step(self, action: Any) -> Any:
        obs, reward, *rest = super().step(action)
        return obs, float(reward) - 0.01, *rest


class NeverEnds(GridWorld):
    def step(self, action: Any) -> Any:
        obs, reward, _, truncated, info = super().step(action)
        return obs, reward, False, truncated, info


class Mirrored(GridWorld):
    def step(self, action: Any) -> Any:
        return super().step((int(action) + 2) % 4)


class SlipsMore(GridWorld):
    def step(self, action: Any) -> Any:
        slips = self.np_random.random() < 0.1
        return super().step((int(action) + 1) % 4 if slips else action)


class StartsAnywhere(GridWorld):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        obs, info = super().reset(seed=seed, options=options)
        if not (options or {}).get("start") and self.np_random.random() < 0.5:
            self._state = obs = info["state"] = self.goal.states[0]
        return obs, info


class IgnoresStart(GridWorld):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return super().reset(seed=seed, options={k: v for k, v in (options or {}).items() if k != "start"})


class IgnoresGoal(GridWorld):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return super().reset(seed=seed, options={k: v for k, v in (options or {}).items() if k != "goal"})


class AcceptsAnything(GridWorld):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        known = {k: v for k, v in (options or {}).items() if k in ("goal", "start")}
        return super().reset(seed=seed, options=known)


class Unseeded(GridWorld):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return super().reset(options=options)


class OutOfSpace(GridWorld):
    def _observation(self) -> Any:
        return 10**6


class GoalInModel(GridWorld):
    @property
    def model(self) -> FiniteModel:
        base = super().model
        nxt = base.next_state.copy()
        for s in getattr(self, "_goal", StateGoal.of([0])).states:
            nxt[s] = s
        return FiniteModel(nxt, base.prob)


class LosesPlaces(GridWorld):
    def as_state(self, value: object) -> int:
        return 0 if value == 3 else super().as_state(value)


class Unreachable(GridWorld):
    @property
    def goals(self) -> tuple[StateGoal, ...]:
        return (StateGoal.of(range(self.model.n_states)),)


class OtherSpec(GridWorld):
    @property
    def spec_data(self) -> WorldSpec:
        return WorldSpec.of("OpenGrid", size=9)


class NoGoals(GridWorld):
    goals = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("kind", "law"),
    [
        (Pays, "steps"),
        (NeverEnds, "steps"),
        (Mirrored, "steps"),
        (SlipsMore, "steps"),
        (StartsAnywhere, "reset"),
        (IgnoresStart, "reset"),
        (IgnoresGoal, "reset"),
        (AcceptsAnything, "reset"),
        (Unseeded, "determinism"),
        (OutOfSpace, "observations"),
        (GoalInModel, "goal_free|spec"),
        (LosesPlaces, "places"),
        (Unreachable, "goals"),
        (OtherSpec, "spec"),
        (NoGoals, "protocol"),
    ],
)
@pytest.mark.parametrize("slip", [0.0, 0.2])
def test_the_checker_names_the_broken_law(kind: type[GridWorld], law: str, slip: float) -> None:
    world = kind("OpenGrid", size=5, slip=slip)
    with pytest.raises(WorldError, match=f"breaks the law '({law})'") as caught:
        check_world(world)
    assert "\n" not in str(caught.value)


def test_the_checker_asks_for_the_whole_protocol() -> None:
    with pytest.raises(WorldError, match="'protocol': it has no 'spec_data'"):
        check_world(gymnasium.make("Blackjack-v1"))


def test_the_checker_leaves_the_goal_as_it_was() -> None:
    world = make_world("OpenGrid", size=5, goal=(2, 2))
    check_world(world)
    assert world.goal.states == (12,)


class WrongShapes(GridWorld):
    changes: dict[str, Any] = {}  # noqa: RUF012 - a test sets it

    def __getattribute__(self, name: str) -> Any:
        changes = type(self).changes
        return changes[name] if name in changes else super().__getattribute__(name)


@pytest.mark.parametrize(
    ("name", "value", "law"),
    [
        ("start_states", np.zeros((2, 2), int), "protocol"),
        ("start_states", np.array([25]), "protocol"),
        ("start_states", np.zeros(0, int), "protocol"),
        ("goal", 3, "protocol"),
        ("action_space", gymnasium.spaces.Discrete(5), "protocol"),
        ("coordinates", np.zeros((3, 2), int), "places"),
        ("action_moves", np.zeros((3, 2), int), "places"),
        ("goals", (), "goals"),
    ],
)
def test_the_checker_looks_at_every_part(name: str, value: object, law: str) -> None:
    world = WrongShapes("OpenGrid", size=5)
    WrongShapes.changes = {name: value}
    try:
        with pytest.raises(WorldError, match=f"breaks the law '{law}'"):
            check_world(world)
    finally:
        WrongShapes.changes = {}


class Talkative(GridWorld):
    def as_goal(self, value: object) -> StateGoal:
        try:
            return super().as_goal(value)
        except GoalError as error:
            raise GoalError(f"{error}\nand so on") from None


class OtherError(GridWorld):
    def as_goal(self, value: object) -> StateGoal:
        if value == "nowhere":
            raise KeyError(value)
        return super().as_goal(value)


class Silent(GridWorld):
    """Shows a place but no state."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return super().reset(seed=seed, options=options)[0], {}


@pytest.mark.parametrize(
    ("world", "law"),
    [
        (Talkative("OpenGrid", size=5), "places"),
        (OtherError("OpenGrid", size=5), "places"),
        (Silent("OpenGrid", size=5, observation="xy"), "reset"),
    ],
)
def test_the_checker_reads_messages_and_infos(world: GridWorld, law: str) -> None:
    with pytest.raises(WorldError, match=f"breaks the law '{law}'"):
        check_world(world)


def test_an_index_observation_tells_the_state_without_an_info() -> None:
    class Bare(GridWorld):
        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            return super().reset(seed=seed, options=options)[0], {}

        def step(self, action: Any) -> Any:
            return *super().step(action)[:4], {}

    check_world(Bare("OpenGrid", size=5))
