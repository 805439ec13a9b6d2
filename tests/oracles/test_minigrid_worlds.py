"""MiniGrid's worlds against MiniGrid, stepped as anybody would step it."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest

from retarget.envs import check_world, make_world
from retarget.errors import GoalError, WorldError
from retarget.exact import optimal_values
from retarget.goal import StateGoal
from retarget.rng import stream

NAMES = (
    "MiniGrid-Empty-5x5-v0",
    "MiniGrid-Empty-8x8-v0",
    "MiniGrid-FourRooms-v0",
    "MiniGrid-DoorKey-5x5-v0",
    "MiniGrid-LavaGapS6-v0",
    "MiniGrid-Fetch-5x5-N2-v0",
    "MiniGrid-Unlock-v0",
)


def test_without_the_package_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "minigrid", None)
    with pytest.raises(WorldError, match=r"retarget\[minigrid\]") as caught:
        make_world("MiniGrid-Empty-8x8-v0")
    assert "\n" not in str(caught.value)
    for bad in ("MiniGrid-", "MiniGrid-x:y-v0", "MiniGrid-Empty 8x8-v0"):
        with pytest.raises(WorldError, match="no id of MiniGrid"):
            make_world(bad)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", [0, 7])
def test_the_model_moves_as_minigrid_does(name: str, seed: int) -> None:
    pytest.importorskip("minigrid")
    from retarget.envs.minigrid import _build, _explore, _Stage

    world = make_world(name, seed=seed, starts="own")
    found = _explore(_build(name), seed, name)
    assert len(set(found.keys)) == world.model.n_states
    theirs, rng = gymnasium.make(name).unwrapped, stream(0, "minigrid", name, seed)
    paid = set()
    for _ in range(30):
        theirs.reset(seed=seed)
        state = int(world.start_states[0])
        for _ in range(100):
            action = int(rng.choice(7, p=[0.15, 0.15, 0.4, 0.1, 0.05, 0.1, 0.05]))
            _, reward, terminated, truncated, _ = theirs.step(action)
            state = int(world.model.next_state[state, action, 0])
            assert found.keys[state] == _Stage.key(SimpleNamespace(env=theirs))
            assert tuple(world.coordinates[state]) == (theirs.agent_pos[1], theirs.agent_pos[0])
            assert terminated == (world.model.next_state[state, :, 0] == state).all() or not terminated
            if reward > 0:
                paid.add(state)
            if terminated or truncated:
                break
    assert paid <= set(world.goal.states)


@pytest.mark.parametrize("name", NAMES)
def test_they_pass_the_checker_and_are_rebuilt_from_their_specs(name: str) -> None:
    pytest.importorskip("minigrid")
    for world in (make_world(name), make_world(name, seed=3, starts="own", observation="xy")):
        check_world(world)
        assert make_world(world.spec_data).model.digest == world.model.digest


def test_the_shortest_way_across_the_empty_grid_is_known() -> None:
    pytest.importorskip("minigrid")
    for n in (5, 8):
        world = make_world(f"MiniGrid-Empty-{n}x{n}-v0", starts="own")
        # n - 3 steps right, one turn, n - 3 steps down
        best = optimal_values(world.model, world.goal, gamma=0.9)
        assert best[world.start_states[0]] == pytest.approx(0.9 ** (2 * (n - 3) + 1), rel=1e-9)
        assert world.coordinates[list(world.goal.states)].tolist() == [[n - 2, n - 2]] * 2
    # the corner is entered from the left or from above only, and each end is a state; all other cells have four
    assert make_world("MiniGrid-Empty-5x5-v0").model.n_states == 8 * 4 + 2


def test_goals_name_cells_and_objects() -> None:
    pytest.importorskip("minigrid")
    world = make_world("MiniGrid-DoorKey-5x5-v0")
    assert world.as_goal("green goal") == world.goal
    carry, near = world.as_goal("carry yellow key"), world.as_goal("yellow key")
    assert not set(carry.states) & set(near.states)
    assert make_world("MiniGrid-DoorKey-5x5-v0", goal="carry yellow key").goal == carry
    # picking it up takes one action from facing it
    after = world.model.next_state[list(near.states), 3, 0]
    assert set(after.tolist()) <= set(carry.states)
    assert isinstance(world.as_goal((1, 1)), StateGoal)
    with pytest.raises(GoalError, match="did you mean 'yellow key'"):
        world.as_goal("yelow key")


def test_what_has_no_exact_model_is_refused() -> None:
    pytest.importorskip("minigrid")
    for name, word in (
        ("MiniGrid-Dynamic-Obstacles-5x5-v0", "by chance"),
        ("MiniGrid-GoToDoor-5x5-v0", "with and without done"),
        ("MiniGrid-Emty-5x5-v0", "did you mean"),
    ):
        with pytest.raises(WorldError, match=word):
            make_world(name)
    with pytest.raises(WorldError, match="did you mean 'seed'"):
        make_world("MiniGrid-Empty-5x5-v0", sed=1)
    with pytest.raises(WorldError, match="from 0"):
        make_world("MiniGrid-Empty-5x5-v0", seed=-1)


def test_too_many_states_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("minigrid")
    monkeypatch.setattr("retarget.envs.minigrid.MAX_STATES", 33)
    with pytest.raises(WorldError, match="more than 33 states"):
        make_world("MiniGrid-Empty-5x5-v0")


def test_lunar_lander_is_refused_with_the_reason() -> None:
    with pytest.raises(WorldError, match="Box2D"):
        make_world("LunarLander-v3")


def test_what_absorbs_is_where_minigrid_ends() -> None:
    pytest.importorskip("minigrid")
    world = make_world("MiniGrid-LavaGapS6-v0")
    own = np.arange(world.model.n_states)[:, None]
    absorbing = set(np.flatnonzero((world.model.next_state[:, :, 0] == own).all(1)).tolist())
    assert absorbing == set(world.as_goal("red lava").states) & absorbing | set(world.goal.states)
    assert not absorbing & set(world.start_states.tolist())
