"""Laws of networks: batches, memory, edits, hook points, goal slots, blanks, and nobody else's random numbers."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from retarget.agents.network_for import FEATURES, GOAL_INPUTS, Places, network_for, observed_range
from retarget.agents.networks import GRU, MLP
from retarget.agents.neural import GOAL, KINDS, STEER, Architecture, GoalInput, Hook, NetworkAgent, call, record
from retarget.agents.wrappers import ModelWorld
from retarget.edit import Dense, Edit, Slot, Sparse
from retarget.envs import make_world
from retarget.envs.control.mountain_car import MountainCar
from retarget.errors import AgentError, EditError, GoalError
from retarget.goal import RegionGoal, StateGoal
from retarget.judge import judge_of
from retarget.world import FiniteModel

torch.set_num_threads(1)

WORLD, KEYS, CAR = make_world("FourRooms", size=7), make_world("KeyDoor", size=6), MountainCar()
SMALL: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": (8, 6)},
    "cnn": {"convs": (3, 4), "hidden": 8},
    "gru": {"hidden": 8},
    "vin": {"iterations": 6, "hidden": 3},
    "transformer": {"d_model": 8, "n_layers": 2},
}
KIND = pytest.mark.parametrize("kind", KINDS)
MANY = pytest.mark.parametrize("many", [False, True])


@lru_cache(maxsize=32)
def _agent(kind: str, many: bool = True, seed: int = 5) -> NetworkAgent:
    goals = WORLD.goals[:6] if many else None
    return network_for(WORLD, WORLD.goals[2], kind=kind, goals=goals, seed=seed, **SMALL[kind])


def _scores(agent: NetworkAgent, states: Any, *, steps: int = 1) -> np.ndarray:
    with torch.no_grad():
        return agent.scores(agent.tensors, torch.tensor(np.asarray(states)), steps=steps).numpy()


# -- batches and memory --------------------------------------------------------------------------------------------


@KIND
@given(states=st.lists(st.integers(0, WORLD.model.n_states - 1), min_size=1, max_size=7))
@settings(max_examples=20, deadline=None)
def test_a_batch_is_its_rows(kind: str, states: list[int]) -> None:
    agent = _agent(kind)
    together, _ = agent.policy(np.array(states))
    alone = np.concatenate([agent.policy(np.array([s]))[0] for s in states])
    assert np.array_equal(together, alone)
    sampled = replace(agent, decision="sample")
    together, _ = sampled.policy(np.array(states))
    alone = np.concatenate([sampled.policy(np.array([s]))[0] for s in states])
    assert np.allclose(together, alone, rtol=0, atol=1e-12) and np.allclose(together.sum(1), 1)
    assert together.dtype == np.float64 and (together > 0).all()


@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_stepping_with_memory_is_the_folded_pass(episodes: int, steps: int, seed: int) -> None:
    agent, carry, seen = _agent("gru"), None, []
    states = np.random.default_rng(seed).integers(WORLD.model.n_states, size=(episodes, steps))
    with torch.no_grad():
        for t in range(steps):
            out, carry = agent.step(agent.tensors, torch.tensor(states[:, t]), carry)
            seen.append(out)
        folded = agent.scores(agent.tensors, torch.tensor(states.reshape(-1)), steps=steps)
    stepped = torch.stack(seen, 1).reshape(episodes * steps, -1)
    assert torch.allclose(stepped, folded, rtol=0, atol=1e-12)
    assert torch.equal(stepped.argmax(1), folded.argmax(1))


def test_memory_matters_and_only_where_it_is_declared() -> None:
    gru = _agent("gru")
    assert gru.has_memory and not any(_agent(k).has_memory for k in KINDS if k != "gru")
    (first, carry), again = gru.policy(np.array([0, 1])), gru.policy(np.array([0, 1]))
    assert np.array_equal(first, again[0])
    with torch.no_grad():
        fresh, _ = gru.step(gru.tensors, torch.tensor([0, 1]))
        later, _ = gru.step(gru.tensors, torch.tensor([0, 1]), carry)
    assert (fresh - later).abs().max() > 1e-6


@KIND
def test_a_pass_stays_where_its_numbers_are(kind: str) -> None:
    """Nothing that is kept on the processor enters a pass elsewhere (here: the device that holds no numbers)."""
    agent = _agent(kind)
    there = {n: t.to("meta") for n, t in agent.tensors.items()}
    scores = agent.scores(there, torch.zeros(6, dtype=torch.int64, device="meta"))
    assert scores.device.type == "meta" and scores.shape == (6, WORLD.model.n_actions)
    assert np.isfinite(_scores(replace(agent, seed=None), [0, 1])).all()


# -- edits and hook points -----------------------------------------------------------------------------------------


@KIND
@MANY
def test_edits_leave_the_old_agent_and_arrays_come_back(kind: str, many: bool) -> None:
    agent = _agent(kind, many)
    digest, rng = agent.digest, np.random.default_rng(0)
    for name, part in agent.parts.items():
        value = (part.array + 1) % 2 if part.array.dtype.kind == "i" else rng.normal(size=part.array.shape)
        edited = Edit.of(agent, Dense(name, value)).apply(agent)
        assert agent.digest == digest != edited.digest
        assert np.array_equal(edited.parts[name].array, value)
        others = [n for n in agent.parts if n != name]
        assert all(np.array_equal(edited.parts[n].array, agent.parts[n].array) for n in others)
        assert edited.with_arrays({name: part.array}).digest == digest
        assert edited.layout == agent.layout
    assert agent.with_arrays({n: p.array for n, p in agent.parts.items()}).digest == digest


@KIND
@MANY
def test_every_weight_but_the_declared_ones_matters(kind: str, many: bool) -> None:
    agent, states, dead = _agent(kind, many), np.arange(WORLD.model.n_states // 2 * 2), set()
    before, rng = _scores(agent, states, steps=2), np.random.default_rng(1)
    for name, part in agent.parts.items():
        if part.role == "weight":
            changed = agent.with_arrays({name: rng.normal(size=part.array.shape)})
            if np.abs(_scores(changed, states, steps=2) - before).max() < 1e-9:
                dead.add(name.split("attn.")[-1])
    declared = set() if kind != "transformer" else {"k.bias"} if many else {"q.weight", "q.bias", "k.weight", "k.bias"}
    assert dead == declared


@KIND
@MANY
def test_a_vector_at_rest_changes_nothing_and_any_other_fires(kind: str, many: bool) -> None:
    agent, states = _agent(kind, many), np.arange(9)
    before, rng = _scores(agent, states), np.random.default_rng(2)
    assert agent.architecture.hooks
    for hook in agent.architecture.hooks:
        still = agent.with_arrays({STEER + hook.name: np.zeros(hook.width)})
        assert still.digest == agent.digest and np.array_equal(_scores(still, states), before)
        for cell in (0, hook.width - 1):  # its whole length is used
            vector = np.zeros(hook.width)
            vector[cell] = 3.0
            moved = Edit.of(agent, Sparse(STEER + hook.name, [cell], [3.0])).apply(agent)
            assert np.array_equal(moved.parts[STEER + hook.name].array, vector)
        moved = agent.with_arrays({STEER + hook.name: rng.normal(size=hook.width)})
        assert np.abs(_scores(moved, states) - before).max() > 1e-6
        assert np.array_equal(_scores(agent, states), before)  # no hook is left behind


@KIND
def test_a_vector_is_added_to_what_is_recorded(kind: str) -> None:
    agent, rng = _agent(kind), np.random.default_rng(3)
    hook = agent.architecture.hooks[0]
    vector = rng.normal(size=hook.width)
    seen = record(agent, np.arange(4))
    assert set(seen) == {h.name for h in agent.architecture.hooks}
    assert all(seen[h.name].shape[h.axis] == h.width for h in agent.architecture.hooks)
    shape = [1] * seen[hook.name].ndim
    shape[hook.axis] = hook.width
    moved = record(agent.with_arrays({STEER + hook.name: vector}), np.arange(4))[hook.name]
    assert np.allclose(moved, seen[hook.name] + vector.reshape(shape), rtol=0, atol=1e-12)


class _Bypassed(nn.Module):
    """Declares a hook point that its forward pass goes around."""

    recurrent, flops = False, 4.0

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.out, self.unused = nn.Linear(2, 2), nn.Identity()
        self.hooks = (Hook("out", 2), Hook("unused", 2))

    def forward(self, x: torch.Tensor, carry: object = None) -> tuple[torch.Tensor, object]:
        return self.out(x), None


def test_a_vector_that_never_fires_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "bypassed", (__name__, "_Bypassed"))
    monkeypatch.setitem(sys.modules, __name__, sys.modules[_Bypassed.__module__])
    architecture = Architecture.of("bypassed")
    parts = {k: torch.tensor(v, dtype=torch.float64) for k, v in architecture.initial(0).items()}
    x = torch.zeros(1, 2, dtype=torch.float64)
    call(architecture, {**parts, "steer:out": torch.ones(2)}, x, None)
    with pytest.raises(EditError, match="'unused' never fired"):
        call(architecture, {**parts, "steer:unused": torch.ones(2)}, x, None)
    call(architecture, parts, x, None)  # and nothing is left behind


@KIND
def test_scores_are_differentiable_in_every_part(kind: str) -> None:
    agent = _agent(kind)
    parts = {n: torch.tensor(p.array, dtype=torch.float64) for n, p in agent.parts.items() if n != GOAL}
    parts = {n: p.requires_grad_() for n, p in parts.items()}
    slot = torch.tensor(agent.parts[GOAL].array)
    agent.scores({**parts, GOAL: slot}, torch.arange(9)).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in parts.values())
    steer = {n: p.grad for n, p in parts.items() if n.startswith(STEER)}
    assert all(g is not None and g.abs().max() > 0 for g in steer.values())


# -- goals ---------------------------------------------------------------------------------------------------------

SLOTS = [
    *(("mlp", i) for i in GOAL_INPUTS["mlp"]),
    ("gru", "place"),
    ("cnn", "plane"),
    ("vin", "plane"),
    ("transformer", "token"),
]


@pytest.mark.parametrize(("kind", "how"), SLOTS)
@given(st.data())
@settings(max_examples=15, deadline=None)
def test_what_is_written_says_which_goal_it_is(kind: str, how: str, data: st.DataObject) -> None:
    goal = data.draw(st.sampled_from(WORLD.goals))
    agent = network_for(WORLD, WORLD.goals[0], kind=kind, goals=WORLD.goals, goal_input=how, **SMALL[kind])
    (write,) = agent.slot_writes(goal)
    edited = Edit.of(agent, Slot.of(write, agent.parts[GOAL].alphabet)).apply(agent)
    assert _decoded(edited, how) == goal.states[0]
    assert edited.digest == agent.aimed(goal).digest
    assert np.array_equal(edited.parts[GOAL].array, agent.goal_input.encode(goal))  # type: ignore[union-attr]
    assert len(agent.slot_candidates()) == len(WORLD.goals)


def _decoded(agent: NetworkAgent, how: str) -> int:
    """The state that a slot names, by the world's own coordinates."""
    slot, where = agent.parts[GOAL].array, WORLD.coordinates
    if how == "token":
        return int(slot[0])
    if how == "one_hot":
        return int(np.flatnonzero(slot == 1.0)[0])
    cell = slot.astype(int)
    if how == "plane":
        assert slot.sum() == 1.0 and agent.goal_input is not None
        cell = np.array(divmod(int(slot.argmax()), agent.goal_input.columns))
    (found,) = np.flatnonzero((where - where.min(0) + 1 == cell).all(1))
    return int(found)


@KIND
def test_another_goal_gives_other_scores(kind: str) -> None:
    agent = _agent(kind)
    a, b = (_scores(agent.aimed(g), np.arange(9)) for g in WORLD.goals[:2])
    assert np.abs(a - b).max() > 1e-9


def test_set_points_decode_to_their_regions() -> None:
    agent = network_for(CAR, CAR.goal, goals=CAR.goals, hidden=(8,))
    assert agent.goal_input is not None
    for goal in CAR.goals:
        found = dict(zip(CAR.goal_features, agent.aimed(goal).parts[GOAL].array, strict=True))
        assert all(found[name] == centre for name, centre, _ in goal.targets)
        named = {name for name, _, _ in goal.targets}
        assert all(found[name] == 0 for name in found if name not in named)


def test_a_slot_refuses_what_it_cannot_express() -> None:
    region = RegionGoal.of(height=(1.0, 0.1))
    assert GoalInput("one_hot", 4).write(region) is None
    assert GoalInput("set_point", 1, features=("x",)).write(region) is None
    assert GoalInput("set_point", 1, features=("x",)).write(StateGoal((0,))) is None
    assert GoalInput("token", 4).write(StateGoal((4,))) is None
    with pytest.raises(AgentError, match="cannot express goal"):
        GoalInput("one_hot", 4).encode(StateGoal((4,), "far"))
    with pytest.raises(AgentError, match="no goal slot"):
        _agent("mlp", False).aimed(WORLD.goals[0])
    assert _agent("mlp", False).slot_candidates() == () == _agent("mlp", False).slot_writes(WORLD.goals[0])


# -- blanks and random numbers -------------------------------------------------------------------------------------


@KIND
@MANY
def test_a_blank_has_the_layout_and_the_weights_before_training(kind: str, many: bool) -> None:
    agent = _agent(kind, many)
    name = next(n for n, p in agent.parts.items() if p.role == "weight")
    trained = replace(
        agent.with_arrays({name: agent.parts[name].array + 1.0}), starts=np.arange(3), training_goals=WORLD.goals[:2]
    )
    blank = trained.blank(99)
    assert blank.layout == trained.layout and blank.seen_starts is None and blank.training_goals is None
    assert all(np.array_equal(blank.weights[n], agent.weights[n]) for n in agent.weights)
    other = replace(trained, seed=None).blank(99)
    assert other.layout == trained.layout
    assert any(not np.array_equal(other.weights[n], agent.weights[n]) for n in agent.weights)
    assert all(np.array_equal(other.weights[n], a) for n, a in agent.architecture.initial(99).items())


@KIND
def test_building_draws_nobody_elses_random_numbers(kind: str) -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002 - to see it unused
    one, two = (network_for(WORLD, WORLD.goals[0], kind=kind, seed=s, **SMALL[kind]) for s in (0, 1))
    torch.rand(3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1] and np.array_equal(np.random.get_state()[1], before[2])  # noqa: NPY002
    again = network_for(WORLD, WORLD.goals[0], kind=kind, seed=0, **SMALL[kind])
    assert one.digest == again.digest != two.digest


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"transformer"}))
def test_other_kinds_do_not_wait_for_transformer_lens(kind: str) -> None:
    code = (
        "import sys, retarget; from retarget.agents.network_for import network_for;"
        "w = retarget.make_world('OpenGrid', size=5);"
        f"network_for(w, w.goals[0], kind={kind!r}).policy(w.start_states);"
        "assert 'transformer_lens' not in sys.modules"
    )
    if kind == "mlp":  # one process says it for all: they share their module
        subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert KINDS[kind][0] == "retarget.agents.networks"


# -- what fits a world ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [WORLD, KEYS], ids=["FourRooms", "KeyDoor"])
@KIND
def test_every_state_looks_different(world: Any, kind: str) -> None:
    for features in FEATURES[kind]:
        agent = network_for(world, world.goals[0], kind=kind, features=features, **SMALL[kind])
        rows = agent.sensor.features.reshape(world.model.n_states, -1)  # type: ignore[union-attr]
        assert len(np.unique(rows, axis=0)) == world.model.n_states
        assert np.abs(rows).max() <= 1 or kind == "transformer"


def test_images_show_walls_agent_and_flags_where_they_are() -> None:
    places = Places.of(KEYS, "cnn")
    images, cells = places.images, KEYS.layout.cells
    wall = images[0, 1]
    top, left = KEYS.coordinates.min(0) - 1
    for row, col in np.ndindex(wall.shape):
        inside = 0 <= row + top < cells.shape[0] and 0 <= col + left < cells.shape[1]
        free = inside and [row + top, col + left] in KEYS.coordinates.tolist()
        assert wall[row, col] == (0.0 if free else 1.0)
    assert (images[:, 0].sum((1, 2)) == 1).all() and (images[:, 0] * images[:, 1]).max() == 0
    assert np.array_equal(images[:, 2:, 0, 0], KEYS.layout.flags)


def test_states_that_share_a_cell_are_told_apart_without_flags_of_the_worlds() -> None:
    model = FiniteModel.deterministic([[1, 0], [2, 0], [3, 1], [3, 3]])
    bare = ModelWorld(model, StateGoal((3,)), coordinates=np.array([[0, 0], [0, 0], [0, 1], [0, 0]]))
    places = Places.of(bare, "cnn")
    assert places.flags.shape == (4, 2) and (places.height, places.width) == (3, 4)
    assert len(np.unique(np.concatenate([places.place, places.flags], axis=1), axis=0)) == 4


@pytest.mark.parametrize("kind", ["mlp", "gru"])
def test_networks_in_a_world_with_continuous_states(kind: str) -> None:
    states = CAR.starts(16, rng=np.random.default_rng(0))
    agent = network_for(CAR, CAR.goal, kind=kind, goals=CAR.goals, **SMALL[kind])
    probs, _ = agent.policy(CAR.observe(states))
    assert probs.shape == (16, CAR.n_actions) and agent.n_states is None
    mean, scale = observed_range(CAR)
    again = observed_range(CAR)
    assert np.array_equal(mean, again[0]) and np.array_equal(scale, again[1])
    seen = agent.sensor(torch.tensor(CAR.observe(states)), agent.tensors[GOAL], dtype=torch.float64)
    assert seen.abs().max() <= 1.5  # goals included
    score = judge_of(CAR, CAR.goal, gamma=CAR.gamma, n=8).score(agent)
    assert 0 <= score.competence <= 1 and score.n == 8


def test_continuous_actions_stay_in_their_range() -> None:
    class Pushed(MountainCar):
        n_actions = None  # type: ignore[assignment]
        action_range = (np.array([-2.0, -1.0]), np.array([2.0, 0.5]))  # type: ignore[assignment]

        def advance(self, state: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            assert action.shape == (len(state), 2)
            return super().dynamics(state, np.zeros(len(state), np.int64))

    world = Pushed()
    for kind in ("mlp", "gru"):
        agent = network_for(world, world.goal, kind=kind, **SMALL[kind])
        loud = agent.with_arrays({"out.bias": np.array([50.0, 50.0])})
        out, _ = loud.policy(world.observe(world.starts(3, rng=np.random.default_rng(0))))
        assert out.shape == (3, 2, 2) and np.allclose(out[:, 0], [2.0, 0.5]) and (out[:, 1] == -np.inf).all()


# -- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "lstm"}, "unknown kind of network 'lstm'"),
        ({"hiden": (3,)}, "unknown option of mlp 'hiden' (did you mean 'hidden'?); known: act, bias, features, head"),
        ({"inputs": 3}, "unknown option of mlp 'inputs'"),
        ({"act": "sine"}, "unknown activation 'sine'"),
        ({"features": "image"}, "unknown features of mlp 'image'"),
        ({"kind": "cnn", "features": "place"}, "unknown features of cnn 'place'"),
        ({"kind": "cnn", "goal_input": "token"}, "unknown goal input for this network 'token'"),
        ({"kind": "cnn", "kernel": 2}, "odd side"),
        ({"kind": "vin", "iterations": 0}, "1 iteration at least"),
        ({"kind": "transformer", "d_model": 9}, "multiple of n_heads"),
        ({"kind": "transformer", "act": "sine"}, "unknown activation 'sine'"),
        ({"goals": ()}, "at least one training goal"),
        ({"head": "mean"}, "head 'mean' does not fit"),
        ({"head": "values", "decision": "sample"}, "values of actions are no distribution"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(options: dict[str, Any], words: str) -> None:
    with pytest.raises(AgentError) as caught:
        network_for(WORLD, WORLD.goals[0], **options)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_worlds_that_do_not_fit_are_one_line() -> None:
    bare = ModelWorld(FiniteModel.deterministic([[1, 0], [1, 0]]), StateGoal((1,)))
    for options in ({"kind": "cnn"}, {"kind": "vin"}, {"features": "place"}):
        with pytest.raises(AgentError, match="coordinates"):
            network_for(bare, bare.goal, **options)  # type: ignore[arg-type]
    assert network_for(bare, bare.goal, kind="transformer", d_model=4).policy(np.array([0]))[0].shape == (1, 2)
    for kind in ("cnn", "vin", "transformer"):
        with pytest.raises(AgentError, match="observations are vectors"):
            network_for(CAR, CAR.goal, kind=kind)
    with pytest.raises(AgentError, match="features are for finite worlds"):
        network_for(CAR, CAR.goal, features="place")
    with pytest.raises(GoalError):
        network_for(WORLD, 10**6)
    with pytest.raises(AgentError, match="more than"):
        Places(np.zeros((10_000, 2), np.int64), np.zeros((10_000, 0)), 200, 200).images  # noqa: B018


def test_goals_that_look_alike_are_refused() -> None:
    where = KEYS.coordinates
    same = next(np.flatnonzero((where == cell).all(1)) for cell in where if ((where == cell).all(1)).sum() > 1)
    goals = [StateGoal.of([int(s)]) for s in same[:2]]
    with pytest.raises(AgentError, match="look alike"):
        network_for(KEYS, goals[0], goals=goals, goal_input="place")
    assert network_for(KEYS, goals[0], goals=goals).goal_input is not None


def test_modules_declare_what_they_are() -> None:
    assert (MLP(inputs=1, outputs=1).recurrent, GRU(inputs=1, outputs=1).recurrent) == (False, True)
