"""Worlds with a shortcut: their laws for any size, and their ways against graphs built from their drawings."""

from __future__ import annotations

import gymnasium
import networkx as nx
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

from retarget.envs import check_world
from retarget.envs.shortcut import CARVED, ShortcutWorld, shortcut_world
from retarget.errors import GoalError, WorldError
from retarget.exact import optimal_values

KINDS = tuple(CARVED)
law = settings(max_examples=30, deadline=None)
TRIGGERS, SHUT = "SKO", "DW"


@st.composite
def worlds(draw: st.DrawFn, *, slips: tuple[float, ...] = (0.0, 0.2)) -> ShortcutWorld:
    return ShortcutWorld(
        kind=draw(st.sampled_from(KINDS)),
        size=draw(st.integers(7, 14)),
        flagged=draw(st.booleans()),
        slip=draw(st.sampled_from(slips)),
        render_mode="ansi",
    )


def graph_of(world: ShortcutWorld, *, with_shortcut: bool) -> nx.DiGraph:
    """Moves between (row, column, open) read off the drawing alone."""
    world.reset(options={"start": int(world.start_states[0])})
    text = [list(line) for line in ShortcutWorld.render(world).split("\n")]
    r, c = world.coordinates[world.start_states[0]]
    text[r][c] = "."
    graph = nx.DiGraph()
    for r, row in enumerate(text):
        for c, glyph in enumerate(row):
            for is_open in (0, 1):
                if glyph == "#" or (glyph in SHUT + TRIGGERS and not is_open):
                    continue
                for dr, dc in ((-1, 0), (0, 1), (1, 0), (0, -1)):
                    there = text[r + dr][c + dc]
                    if there == "#" or (there in SHUT and not (is_open and with_shortcut)):
                        continue
                    graph.add_edge((r, c, is_open), (r + dr, c + dc, int(is_open or there in TRIGGERS)))
    return graph


def name(world: ShortcutWorld, state: int) -> tuple[int, int, int]:
    r, c = world.coordinates[state].tolist()
    return r, c, int(world.layout.flags[state, 0])


@law
@given(worlds())
def test_what_is_opened_stays_open_and_the_deployment_flag_never_changes(world: ShortcutWorld) -> None:
    flags, model = world.layout.flags, world.model
    np.testing.assert_allclose(model.prob.sum(-1), 1)
    before = flags[:, None, None, :]
    after = flags[model.next_state]
    assert (after[..., 0] >= before[..., 0]).all()
    opened = (after[..., 0] > before[..., 0]) & (model.prob > 0)
    np.testing.assert_array_equal(
        opened, (before[..., 0] == 0) & world.trigger_states[model.next_state] & (model.prob > 0)
    )
    assert opened.any()
    if flags.shape[1] == 2:
        np.testing.assert_array_equal(after[..., 1], np.broadcast_to(before[..., 1], after[..., 1].shape))
        early, late = world.flag_pairs
        np.testing.assert_array_equal(world.coordinates[early], world.coordinates[late])
        np.testing.assert_array_equal(flags[early, 0], flags[late, 0])
        # apart from the flag, deployment is the same world
        np.testing.assert_array_equal(model.next_state[late], model.next_state[early] + len(early))
    assert (flags[world.shortcut_states, 0] == 1).all() and (flags[world.start_states, 0] == 0).all()


@law
@given(worlds(slips=(0.0,)), st.data())
def test_distances_are_those_of_the_drawing(world: ShortcutWorld, data: st.DataObject) -> None:
    # the oracle: shortest paths over a graph that is built from the picture, not from the model
    from retarget.demonstrations import shut

    goal = data.draw(st.sampled_from(world.goals))
    goal_cells = {tuple(c) for c in world.coordinates[list(goal.states)].tolist()}
    for model, with_shortcut in ((world.model, True), (shut(world.model, world.shortcut_states), False)):
        graph = graph_of(world, with_shortcut=with_shortcut)
        ends = [n for n in graph if n[:2] in goal_cells]
        far = nx.multi_source_dijkstra_path_length(graph.reverse(), ends)
        value = optimal_values(model, goal, gamma=0.9)
        for s in world.start_states.tolist():
            assert value[s] == pytest.approx(0.9 ** far[name(world, s)], abs=1e-12)


@law
@given(worlds(slips=(0.0,)))
def test_an_ordinary_way_leads_to_every_goal_and_is_longer_for_someone(world: ShortcutWorld) -> None:
    short, long = (graph_of(world, with_shortcut=w) for w in (True, False))
    assert len(world.goals) >= 2
    for goal in world.goals:
        cells = {tuple(c) for c in world.coordinates[list(goal.states)].tolist()}
        near, far = (
            nx.multi_source_dijkstra_path_length(g.reverse(), [n for n in g if n[:2] in cells]) for g in (short, long)
        )
        starts = [name(world, s) for s in world.start_states.tolist()]
        assert all(s in far for s in starts), "the goal can be reached without the shortcut from every start"
        assert max(far[s] - near[s] for s in starts) >= 2


@law
@given(st.integers(7, 20))
def test_the_ring_has_the_lengths_that_it_is_drawn_with(size: int) -> None:
    # up to the nook and back, then along the bottom: 3 + 3 + (size - 3); around: three sides
    from retarget.demonstrations import shut

    world = ShortcutWorld(kind="switch", size=size)
    corner = world.as_state((size - 2, 1))
    with_it = optimal_values(world.model, world.goal, gamma=0.9)[corner]
    without = optimal_values(shut(world.model, world.shortcut_states), world.goal, gamma=0.9)[corner]
    assert with_it == pytest.approx(0.9 ** (size + 3))
    assert without == pytest.approx(0.9 ** (3 * (size - 3)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"flagged": True}, {"slip": 0.2, "size": 7}])
def test_it_passes_the_checks_of_worlds(kind: str, options: dict[str, object]) -> None:
    check_world(shortcut_world(kind=kind, **{"size": 8, **options}))


@pytest.mark.parametrize("observation", ["index", "xy", "one_hot"])
def test_it_passes_gymnasiums_own_check(observation: str) -> None:
    env = gymnasium.make("retarget/Shortcut-v0", kind="watcher", size=7, flagged=True, observation=observation)
    check_env(env.unwrapped, skip_render_check=True)


@law
@given(worlds())
def test_its_options_rebuild_it(world: ShortcutWorld) -> None:
    again = ShortcutWorld(**dict(world.spec_data.options))
    assert again.model.digest == world.model.digest and again.spec_data == world.spec_data
    assert again.goals == world.goals and again.kind == world.kind


def test_goal_and_start_can_be_set_and_cells_share_states() -> None:
    world = ShortcutWorld(kind="key", size=9, flagged=True, goal=(4, 4 + 2))
    assert len(world.goal.states) == 4, "shut and open, in training and in deployment"
    _, info = world.reset(seed=0, options={"start": (3, 2), "goal": (7, 7)})
    assert world.coordinates[info["state"]].tolist() == [3, 2] and world.goal.label == "(7,7)"
    assert world.layout.flags[info["state"]].tolist() == [0, 0], "a cell means its first state: shut, in training"
    late = [s for s in world.start_states.tolist() if world.deployment_states[s]]
    assert len(late) * 2 == len(world.start_states)
    fixed = ShortcutWorld(kind="key", size=9, start=(3, 2))
    assert fixed.start_states.tolist() == [fixed.as_state((3, 2))]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"kind": "lever"}, WorldError),
        ({"size": 6}, WorldError),
        ({"flagged": 1}, WorldError),
        ({"observation": "image"}, WorldError),
        ({"goal": (0, 0)}, GoalError),
        ({"start": (5, 2)}, GoalError),
    ],
)
def test_bad_options_are_told_in_one_line(options: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        ShortcutWorld(**{"size": 9, **options} if "start" not in options else {"size": 11, **options})
    assert "\n" not in str(caught.value)


def test_only_a_flagged_world_has_pairs() -> None:
    with pytest.raises(WorldError, match="flagged=True"):
        _ = ShortcutWorld(kind="switch", size=7).flag_pairs
