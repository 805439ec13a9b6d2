"""Planners that search, saved and loaded: what comes back acts, is edited, aimed and trained as what was saved."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from subprocess import run
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from retarget.agent import Agent, HasFits, HasGoalSlot, HasModel, Trainable
from retarget.agents.bayes import BayesPlanner, mc_aixi
from retarget.agents.leaves import Distance, Leaf, Rollouts, Tables
from retarget.agents.network_model import NetworkModelPlanner, inputs_of
from retarget.agents.neural import Architecture
from retarget.agents.paths import PathPlanner, path_planner
from retarget.agents.planner import learned_planner
from retarget.agents.policy_value import PolicyValue, features_of, shapes_of
from retarget.agents.search import LearnedTreeSearcher, TreeSearcher, tree_searcher
from retarget.catalogue import AgentSpec, Recipe, build_agent, catalogue
from retarget.cli import app
from retarget.envs import make_world
from retarget.io import records
from retarget.io.native import load_agent, read_card, save_agent
from retarget.pairs import GoalPlan
from retarget.search import TreeSettings
from retarget.training.dynamics import DynamicsSettings, network_model_planner

WORLD = make_world("OpenGrid", size=5)
SLIPPERY = make_world("OpenGrid", size=5, slip=0.2)
A, B = WORLD.goals[0], WORLD.goals[5]
SMALL = TreeSettings(simulations=24)


def _leaves() -> dict[str, Leaf]:
    seen = features_of(WORLD)
    net = PolicyValue.initial(seen, n_actions=4, hidden=(6, 3), seed=-5)
    return {
        "rollouts": Rollouts(5),
        "distance": Distance(np.asarray(WORLD.coordinates)),
        "tables": Tables.for_goal(WORLD, A, gamma=0.9),
        "network": net,
        "network without a trunk": PolicyValue.initial(features_of(WORLD, "place"), n_actions=4, hidden=(), seed=1),
        "edited network": net.with_arrays(
            {"value.bias": np.array([0.1]), "policy.bias": np.array([1e300, -0.0, 5e-324, 1])}
        ),
    }  # fmt: skip


def _agents() -> dict[str, Agent]:
    made: dict[str, Agent] = {
        f"tree, {name}": tree_searcher(WORLD, A, settings=SMALL, leaf=leaf, seed=3) for name, leaf in _leaves().items()
    }
    gumbel = TreeSettings(method="gumbel", simulations=16, gamma=1.0, considered=3, gumbel_scale=1.0, value_scale=0.5)
    known = learned_planner(WORLD, A, everywhere=False, episodes=9, epsilon=0.1, seed=0)
    guessed = learned_planner(SLIPPERY, A, everywhere=True, episodes=9, epsilon=0.1, seed=0)
    shape = Architecture.of("mlp", inputs=6, outputs=4)
    fitted = network_model_planner(WORLD, A, everywhere=True, episodes=9, epsilon=0.1, seed=2, hidden=(8,),
                                   features="place", settings=DynamicsSettings(updates=40))  # fmt: skip
    aixi = mc_aixi(WORLD, A, cycles=400, simulations=32, horizon=8, seed=4, everywhere=True)
    paths = path_planner(WORLD, A, method="astar", depth=3)
    return made | {
        "tree, chance": tree_searcher(SLIPPERY, A, settings=gumbel, seed=1 << 70),
        "tree, best": tree_searcher(SLIPPERY, A, settings=replace(SMALL, backup="max")),
        "tree, learned": tree_searcher(WORLD, A, settings=SMALL, model=known, leaf=_leaves()["tables"]),
        "tree, learned with chance": tree_searcher(SLIPPERY, A, settings=SMALL, model=guessed),
        "paths": paths,
        "paths without limit": path_planner(WORLD, A, method="deepening", gamma=0.5),
        "paths, edited": paths.with_arrays({"next_state": np.roll(paths.next_state, 1, axis=1)}),
        "network model": NetworkModelPlanner(np.array([0, 1.0, -0.5, 0]), shape, shape.initial(0), 2),
        "network model, fitted": fitted,
        "network model, blank": fitted.blank(0),
        "aixi": aixi,
        "aixi, edited": aixi.with_arrays({"counts": aixi.counts - 0.5}),
        "aixi, untaught": mc_aixi(WORLD, A, cycles=0, simulations=8, horizon=4, seed=0, everywhere=True),
    }


AGENTS = _agents()


def _same(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def _alike(agent: Agent, found: Agent) -> None:
    """Equal in everything that can be asked of both."""
    assert type(found) is type(agent) and found.digest == agent.digest and found.config == agent.config
    assert list(found.parts) == list(agent.parts) and found.layout == agent.layout
    for name, part in agent.parts.items():
        assert found.parts[name].role == part.role and _same(found.parts[name].array, part.array)
    assert list(found.fixed_arrays) == list(agent.fixed_arrays)
    assert all(_same(found.fixed_arrays[name], array) for name, array in agent.fixed_arrays.items())
    assert _same(found.seen_starts, agent.seen_starts)
    _act_alike(agent, found)


def _act_alike(agent: Agent, found: Agent) -> None:
    states = np.arange(int(agent.n_states or 0))
    assert _same(found.policy(states)[0], agent.policy(states)[0])
    assert found.simulations_per_action == agent.simulations_per_action
    assert found.flops_per_action == agent.flops_per_action


# -- laws ----------------------------------------------------------------------------------------------------------


@st.composite
def _searchers(draw: st.DrawFn) -> Agent:
    """A small searcher with everything drawn: its model, leaf, settings, seed and starts."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    s, a = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    reward = rng.integers(-1, 2, s) * rng.random(s)
    starts = draw(st.sampled_from([None, np.arange(s, dtype=np.int32), rng.integers(0, s, 2), np.zeros(0, np.int64)]))
    seed, gamma = draw(st.integers()), draw(st.floats(0.01, 0.99))
    kind = draw(st.sampled_from(["tree", "paths", "network", "aixi"]))
    if kind == "aixi":
        counts = rng.integers(0, 4, (s, a, s)).astype(float)
        return BayesPlanner(reward, counts, gamma, draw(st.integers(1, 20)), draw(st.integers(1, 9)), 0.5, seed, starts)
    if kind == "paths":
        place = draw(st.sampled_from([None, rng.integers(0, 3, (s, 2))]))
        depth = draw(st.none() | st.integers(1, 1 << 62))
        method: Any = draw(st.sampled_from(["bfs", "astar", "deepening"]))
        return PathPlanner(reward, rng.integers(0, s + 1, (s, a)), method, gamma, depth, place)
    if kind == "network":
        shape = Architecture.of("mlp", inputs=inputs_of(s, a), outputs=s, hidden=draw(st.sampled_from([(), (2, 3)])))
        return NetworkModelPlanner(
            reward, shape, shape.initial(0), a, None, gamma, starts, draw(st.none() | st.just(seed))
        )
    k = draw(st.integers(1, 2))
    prob = rng.dirichlet(np.ones(k), (s, a))
    setting = TreeSettings(
        draw(st.sampled_from(["puct", "gumbel"])), draw(st.integers(1, 20)), gamma, exploration=draw(st.floats(0, 9)),
        gumbel_scale=draw(st.sampled_from([0, 1, 0.5])),
    )  # fmt: skip
    hidden = draw(st.lists(st.integers(1, 4), max_size=2).map(tuple))
    weights = {n: rng.normal(size=shape) for n, shape in shapes_of(2, hidden, a).items()}
    leaf = draw(
        st.sampled_from([
            Rollouts(draw(st.integers(0, 6))), Distance(rng.normal(size=(s, 2))),
            Tables(rng.normal(size=s), rng.normal(size=(s, a))),
            PolicyValue(weights, rng.normal(size=(s, 2)), hidden, a, seed),
        ])
    )  # fmt: skip
    cls = draw(st.sampled_from([TreeSearcher, LearnedTreeSearcher])) if k == 1 else TreeSearcher
    return cls(reward, rng.integers(0, s + 1, (s, a, k)), prob, setting, leaf, seed, draw(st.booleans()), starts)


@given(_searchers())
@settings(max_examples=120, deadline=None)
def test_any_small_searcher_comes_back_as_it_was(agent: Agent) -> None:
    with tempfile.TemporaryDirectory() as folder:
        _alike(agent, load_agent(save_agent(agent, Path(folder) / "agent")))


# -- one of each kind ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AGENTS)
def test_a_searcher_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    agent = AGENTS[name]
    found = load_agent(save_agent(agent, tmp_path / "agent"))
    _alike(agent, found)
    blank, again = agent.blank(3), found.blank(3)
    assert blank.digest == again.digest and blank.layout == again.layout
    _act_alike(blank, again)
    _alike(again, load_agent(save_agent(again, tmp_path / "blank")))


@pytest.mark.parametrize("name", [n for n in AGENTS if n != "network model"])
def test_a_loaded_searcher_is_aimed_as_the_one_that_was_saved(name: str, tmp_path: Path) -> None:
    agent = AGENTS[name]
    found = load_agent(save_agent(agent, tmp_path / "agent"))
    assert isinstance(agent, HasGoalSlot) and isinstance(found, HasGoalSlot)
    assert found.slot_writes(B) == agent.slot_writes(B) and found.slot_candidates() == agent.slot_candidates()
    slot = np.full(len(agent.parts["reward"].array), 0.0)
    for cell, value in found.slot_writes(B)[0].cells:
        slot[cell] = value
    aimed, other = agent.with_arrays({"reward": slot}), found.with_arrays({"reward": slot})
    assert aimed.digest == other.digest != agent.digest
    _act_alike(aimed, other)
    if isinstance(agent, HasModel):
        assert isinstance(found, HasModel) and _same(found.model_cells()[1], agent.model_cells()[1])
    if isinstance(agent, HasFits):
        assert isinstance(found, HasFits)
        ours, theirs = agent.fits(WORLD, B), found.fits(WORLD, B)
        assert [f.name for f in ours] == [f.name for f in theirs]
        for one, two in zip(ours, theirs, strict=True):
            assert list(one.arrays) == list(two.arrays)
            assert all(_same(np.asarray(one.arrays[n]), np.asarray(two.arrays[n])) for n in one.arrays)
            _act_alike(agent.with_arrays(one.arrays), found.with_arrays(two.arrays))


def test_leaves_that_can_be_fitted_are_among_them() -> None:
    """Else the test above would compare nothing with nothing."""
    fitted = [n for n, a in AGENTS.items() if isinstance(a, HasFits) and a.fits(WORLD, B)]
    assert {"tree, tables", "tree, network", "tree, learned"} <= set(fitted)


@pytest.mark.parametrize("name", ["network model, fitted", "aixi"])
def test_a_loaded_searcher_is_trained_further_as_the_one_that_was_saved(name: str, tmp_path: Path) -> None:
    agent = AGENTS[name]
    found = load_agent(save_agent(agent, tmp_path / "agent"))
    assert isinstance(agent, Trainable) and isinstance(found, Trainable)
    (one, spent), (two, again) = (x.retrained(WORLD, B, budget=3, seed=1) for x in (agent, found))
    assert one.digest == two.digest != agent.digest and spent == again


def test_weights_take_half_the_room_where_that_loses_no_bit(tmp_path: Path) -> None:
    """Twice as many numbers of single precision, and the edited ones whole."""
    import safetensors.numpy

    raw = safetensors.numpy.load_file(save_agent(AGENTS["tree, edited network"], tmp_path / "a") / "arrays.safetensors")
    kinds = {name: array.dtype for name, array in raw.items()}
    assert kinds["leaf/trunk.0.weight"] == kinds["features"] == np.float32
    assert kinds["leaf/value.bias"] == kinds["leaf/policy.bias"] == kinds["reward"] == np.float64


def test_reading_loads_neither_numba_nor_lightning_where_the_agent_needs_none(tmp_path: Path) -> None:
    folder = save_agent(AGENTS["tree, network"], tmp_path / "a")
    code = (
        "import sys; from retarget.io.native import load_agent; load_agent(sys.argv[1]);"
        "print([m for m in ('torch', 'numba', 'pytorch_lightning') if m in sys.modules])"
    )
    done = run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# -- as a user -----------------------------------------------------------------------------------------------------

#: The least of each kind: seconds, not minutes.
LEAST: dict[str, dict[str, Any]] = {
    "q_table": {"episodes": 20},
    "goal_table": {"episodes": 5},
    "learned_planner": {"episodes": 5},
    "tree_search": {"simulations": 8, "leaf": "distance"},
    "alphazero": {"simulations": 8, "training_simulations": 4, "iterations": 1, "hidden": 4},
    "network_model": {"episodes": 5, "hidden": 4},
    "mc_aixi": {"cycles": 50, "simulations": 8, "horizon": 4},
    "network": {"hidden": 4, "training": "clone"},
}


def test_kinds_that_are_said_to_be_saved_are_those_of_the_catalogue() -> None:
    assert set(catalogue()) == records.SAVED


@pytest.mark.parametrize("kind", sorted(records.SAVED))
def test_every_kind_that_is_said_to_be_saved_is(kind: str, tmp_path: Path) -> None:
    world = make_world("Shortcut", size=7) if kind.startswith("demo_") else WORLD
    goal = world.goal if kind.startswith("demo_") else A
    recipe = Recipe(world, goal, 0, 0.95, GoalPlan.draw(world, n_pairs=1, seed=0))
    agent = build_agent(AgentSpec.of(kind, **LEAST.get(kind, {})), recipe)
    _alike(agent, load_agent(save_agent(agent, tmp_path / "a")))


@pytest.mark.parametrize(
    ("kind", "saved_as"),
    [
        ("tree_search", "tree_search"),
        ("alphazero", "tree_search"),
        ("path_planner", "path_planner"),
        ("network_model", "learned_network_model"),
        ("mc_aixi", "mc_aixi"),
    ],
)
def test_trained_on_the_command_line_and_measured_there(kind: str, saved_as: str, tmp_path: Path) -> None:
    options = [x for k, v in LEAST.get(kind, {}).items() for x in ("--option", f"{k}={v}")]
    where = ["--world", "OpenGrid", "--size", "5"]
    trained = CliRunner().invoke(app, ["train", kind, *where, *options, "--out", str(tmp_path / "a")])
    assert trained.exit_code == 0, trained.output
    assert "saved:" in trained.output and read_card(tmp_path / "a").type == saved_as
    measured = CliRunner().invoke(app, ["measure", str(tmp_path / "a"), *where, "--pairs", "1", "--budget", "20"])
    assert measured.exit_code == 0 and "log2 ratio" in measured.output, measured.output


def test_a_kind_that_cannot_be_saved_is_refused_before_it_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: object) -> None:
        raise AssertionError("it was trained")

    monkeypatch.setattr(records, "SAVED", records.SAVED - {"mc_aixi"})
    monkeypatch.setattr("retarget.catalogue.build_agent", never)
    result = CliRunner().invoke(app, ["train", "mc_aixi", "--world", "OpenGrid", "--out", str(tmp_path / "a")])
    assert result.exit_code == 1 and "an agent of kind 'mc_aixi' cannot be saved" in str(result.exception)
    assert not (tmp_path / "a").exists()
    result = CliRunner().invoke(app, ["train", "mc_aixy", "--world", "OpenGrid", "--out", str(tmp_path / "a")])
    assert "unknown agent 'mc_aixy'" in str(result.exception)
