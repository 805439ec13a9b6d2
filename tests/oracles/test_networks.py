"""Networks against forward passes written out in NumPy, exact distances, and torch's own count of operations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from retarget.agents.network_for import network_for
from retarget.agents.networks import VIN
from retarget.agents.neural import KINDS, Architecture, NetworkAgent, Sensor
from retarget.envs import make_world
from retarget.exact import Yardstick, policy_table
from retarget.io.architectures import count_weights

torch.set_num_threads(1)

WORLD = make_world("FourRooms", size=7)
#: Options of every kind that differ from its defaults.
ODD: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": (5, 7, 3), "act": "tanh"},
    "cnn": {"convs": (3, 5, 2), "hidden": 7, "kernel": 5},
    "gru": {"hidden": 6},
    "vin": {"iterations": 7, "hidden": 3, "inner": 5},
    "transformer": {"d_model": 12, "n_heads": 3, "n_layers": 3, "d_mlp": 10},
}


def _many(kind: str, **options: Any) -> NetworkAgent:
    return network_for(WORLD, WORLD.goals[1], kind=kind, goals=WORLD.goals[:4], seed=3, **options)


def _scores(agent: NetworkAgent, states: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return agent.scores(agent.tensors, torch.tensor(states)).numpy()


def _input(agent: NetworkAgent, states: np.ndarray) -> np.ndarray:
    """What the sensor should give a network that takes vectors: features, then the goal slot."""
    assert agent.sensor.features is not None and agent.goal is not None
    goal = np.repeat(agent.goal[None] * agent.sensor.goal_scale, len(states), axis=0)
    return np.concatenate([agent.sensor.features[states].astype(np.float64), goal], axis=1)


@pytest.mark.parametrize("act", ["relu", "tanh", "silu"])
@pytest.mark.parametrize("features", ["one_hot", "place"])
def test_mlp_is_its_equation(act: str, features: str) -> None:
    agent = _many("mlp", hidden=(6, 5), act=act, features=features)
    states = np.arange(WORLD.model.n_states)
    f = {"relu": lambda z: np.maximum(z, 0), "tanh": np.tanh, "silu": lambda z: z / (1 + np.exp(-z))}[act]
    x, w = _input(agent, states), agent.weights
    for i in range(2):
        x = f(x @ w[f"hidden.{i}.0.weight"].T + w[f"hidden.{i}.0.bias"])
    x = x @ w["out.weight"].T + w["out.bias"]
    assert np.allclose(_scores(agent, states), x, rtol=0, atol=1e-12)


def test_gru_is_its_equation_and_torchs_own() -> None:
    agent = _many("gru", hidden=5)
    episodes, steps = 3, 6
    states = np.random.default_rng(0).integers(WORLD.model.n_states, size=episodes * steps)
    x, w = _input(agent, states).reshape(episodes, steps, -1), agent.weights
    h, out = np.zeros((episodes, 5)), []
    for t in range(steps):
        into = x[:, t] @ w["gates_in.weight"].T + w["gates_in.bias"]
        mem = h @ w["gates_memory.weight"].T + w["gates_memory.bias"]
        r = 1 / (1 + np.exp(-(into[:, :5] + mem[:, :5])))
        z = 1 / (1 + np.exp(-(into[:, 5:10] + mem[:, 5:10])))
        h = (1 - z) * np.tanh(into[:, 10:] + r * mem[:, 10:]) + z * h
        out.append(h @ w["out.weight"].T + w["out.bias"])
    with torch.no_grad():
        found = agent.scores(agent.tensors, torch.tensor(states), steps=steps).numpy()
    assert np.allclose(found.reshape(episodes, steps, -1), np.stack(out, 1), rtol=0, atol=1e-12)

    peer = torch.nn.GRU(x.shape[-1], 5, batch_first=True).double()
    named = ("gates_in.weight", "gates_memory.weight", "gates_in.bias", "gates_memory.bias")
    with torch.no_grad():
        for p, name in zip(peer.parameters(), named, strict=True):
            p.copy_(torch.tensor(w[name]))
        theirs = peer(torch.tensor(x))[0].numpy() @ w["out.weight"].T + w["out.bias"]
    assert np.allclose(found.reshape(episodes, steps, -1), theirs, rtol=0, atol=1e-12)


def test_cnn_is_its_equation() -> None:
    agent = _many("cnn", convs=(3,), hidden=4)
    states, w = np.arange(5), agent.weights
    assert agent.sensor.features is not None and agent.goal is not None
    images = agent.sensor.features[states].astype(np.float64)
    _, _, height, width = images.shape
    goal = np.repeat(agent.goal.reshape(1, 1, height, width), len(states), axis=0)
    padded = np.pad(np.concatenate([images, goal], axis=1), ((0, 0), (0, 0), (1, 1), (1, 1)))
    patches = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    x = np.einsum("bchwij,ocij->bohw", patches, w["convs.0.0.weight"]) + w["convs.0.0.bias"][:, None, None]
    x = np.maximum(x, 0).reshape(len(states), -1)
    x = np.maximum(x @ w["hidden.0.weight"].T + w["hidden.0.bias"], 0)
    assert np.allclose(_scores(agent, states), x @ w["out.weight"].T + w["out.bias"], rtol=0, atol=1e-12)


def _layer_norm(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray((x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * w + b)


@pytest.mark.parametrize("features", ["token", "place"])
def test_transformer_is_its_equation(features: str) -> None:
    agent = _many("transformer", features=features, d_model=8, n_heads=2, n_layers=2)
    states = np.arange(WORLD.model.n_states)
    assert agent.sensor.features is not None and agent.goal is not None
    tokens = np.concatenate([agent.sensor.features, np.full((len(states), 1), agent.goal[0])], axis=1)
    w = {name.removeprefix("bridge."): array for name, array in agent.weights.items()}
    n = tokens.shape[1]
    x = w["embed.weight"][tokens] + w["pos_embed.weight"]
    for i in range(2):
        b = f"blocks.{i}."
        y = _layer_norm(x, w[b + "ln1.weight"], w[b + "ln1.bias"])
        q, k, v = ((y @ w[f"{b}attn.{p}.weight"].T + w[f"{b}attn.{p}.bias"]).reshape(-1, n, 2, 4) for p in "qkv")
        score = np.einsum("bqhd,bkhd->bhqk", q, k) / 2.0
        score = np.where(np.tril(np.ones((n, n), bool)), score, -np.inf)
        share = np.exp(score - score.max(-1, keepdims=True))
        share /= share.sum(-1, keepdims=True)
        z = np.einsum("bhqk,bkhd->bqhd", share, v).reshape(-1, n, 8)
        x = x + z @ w[b + "attn.o.weight"].T + w[b + "attn.o.bias"]
        y = _layer_norm(x, w[b + "ln2.weight"], w[b + "ln2.bias"])
        y = np.maximum(y @ _one(w, b, "in.weight").T + _one(w, b, "in.bias"), 0)
        x = x + y @ _one(w, b, "out.weight").T + _one(w, b, "out.bias")
    x = _layer_norm(x, w["ln_final.weight"], w["ln_final.bias"])[:, -1] @ w["unembed.weight"].T
    assert np.allclose(_scores(agent, states), x, rtol=0, atol=1e-9)


def _one(weights: dict[str, np.ndarray], block: str, end: str) -> np.ndarray:
    found = [a for name, a in weights.items() if name.startswith(block + "mlp.") and name.endswith(end)]
    assert len(found) == 1
    return found[0]


def _plans(agent: NetworkAgent, iterations: int, gamma: float) -> NetworkAgent:
    """A value iteration network set by hand: reward 1 on the goal, -9 in walls, and moves to the four neighbours."""
    w = {name: np.zeros_like(a) for name, a in agent.weights.items()}
    w["look.weight"][0, 1, 1, 1] = 1.0  # the goal plane is behind the walls
    w["look.weight"][1, 0, 1, 1] = 1.0
    w["reward.weight"][0, :2, 0, 0] = 1.0, -9.0
    for a, (row, col) in enumerate(WORLD.action_moves):
        w["backup.weight"][a, :, 1 + row, 1 + col] = 1.0, gamma
    w["out.weight"][:] = np.eye(4)
    return NetworkAgent(
        Architecture.of("vin", **{**dict(agent.architecture.options), "iterations": iterations}), w, agent.sensor,
        goal_input=agent.goal_input, goal=agent.goal,
    )  # fmt: skip


@pytest.mark.parametrize("place", [("OpenGrid", 7), ("FourRooms", 9), ("Maze", 9)])
def test_vin_set_by_hand_is_value_iteration(place: tuple[str, int]) -> None:
    """On a grid without walls around, V after K backups is what K more steps on and off the goal are worth."""
    world, gamma, n = make_world(place[0], size=place[1]), 0.9, 60
    goal = world.goals[len(world.goals) // 2]
    fresh = network_for(world, goal, kind="vin", goals=world.goals, hidden=2, inner=4)
    agent = _plans(fresh, n, gamma)
    yardstick = Yardstick.of(world, goal, gamma=gamma)
    assert yardstick.competence(policy_table(agent, world.model)) == pytest.approx(1.0, abs=1e-12)

    states = np.setdiff1d(np.arange(world.model.n_states), goal.states)
    nxt, far = world.model.next_state[:, :, 0], np.full(world.model.n_states, np.inf)
    far[list(goal.states)] = 0
    for _ in range(world.model.n_states):  # distances by relaxation, no code of the project
        far = np.minimum(far, 1 + far[nxt].min(1))
    assert far.max() < n
    # from distance d the goal is entered after d, d + 2, … steps, until the backups run out
    worth = [sum(gamma ** (d - 1 + 2 * j) for j in range(n) if d + 2 * j <= n) for d in far[states].astype(int)]
    assert np.allclose(_scores(agent, states).max(1), worth, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("odd", [False, True])
def test_operations_and_weights_are_as_many_as_the_formulas_say(kind: str, many: bool, odd: bool) -> None:
    goals = WORLD.goals[:3] if many else None
    agent = network_for(WORLD, WORLD.goals[0], kind=kind, goals=goals, **(ODD[kind] if odd else {}))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        agent.step(agent.tensors, torch.tensor([0]))
    assert counter.get_total_flops() == agent.flops_per_action
    assert count_weights(kind, dict(agent.architecture.options)) == agent.architecture.n_weights
    assert sum(p.array.size for p in agent.parts.values() if p.role == "weight") == agent.architecture.n_weights


def test_vin_without_a_goal_plane_learns_a_map() -> None:
    one, many = (network_for(WORLD, WORLD.goals[0], kind="vin", goals=g) for g in (None, WORLD.goals[:3]))
    assert "own_map" in one.parts and "own_map" not in many.parts
    module = VIN(channels=2, height=3, width=3, outputs=2, own_map=True)
    assert module.own_map is not None and module(torch.zeros(1, 2, 3, 3))[0].shape == (1, 2)


def test_the_sensor_of_a_box_is_shift_scale_and_cut() -> None:
    sensor = Sensor(mean=np.array([1.0, -2.0]), scale=np.array([2.0, 0.5]), clip=3.0)
    x = np.array([[1.0, 0.0], [9.0, -2.0]])
    expected = np.clip((x - [1.0, -2.0]) * [2.0, 0.5], -3, 3)
    assert np.array_equal(sensor(torch.tensor(x), None, dtype=torch.float64).numpy(), expected)
