"""Policies of others: what the readers make of a file, against networks written out here by hand."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
import types
import zipfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from torch import nn

from retarget.agents.neural import NetworkAgent, record
from retarget.agents.wrapped import CallableAgent, ForeignNetwork, wrap
from retarget.edit import Edit, Sparse
from retarget.envs import make_world
from retarget.errors import AgentError, FileError
from retarget.io.load import load
from retarget.io.native import save_agent
from retarget.io.normalise import Normalisation

ROOT = Path(__file__).parents[2]
_BOX = "<class 'gymnasium.spaces.box.Box'>"
_DISCRETE = "<class 'gymnasium.spaces.discrete.Discrete'>"


def _box(low: list[float], high: list[float], **more: object) -> dict[str, object]:
    bounds = {"low": str(np.array(low, dtype="f4")), "high": str(np.array(high, dtype="f4"))}
    return {":type:": _BOX, ":serialized:": "gASVAAAA", "dtype": "float32", "_shape": [len(low)], **bounds, **more}


def _discrete(n: int) -> dict[str, object]:
    return {":type:": _DISCRETE, ":serialized:": "gASVAAAA", "n": str(n), "_shape": []}


def _zip(path: Path, tensors: dict[str, torch.Tensor], **data: object) -> Path:
    """A zip as Stable-Baselines3 writes it."""
    weights = io.BytesIO()
    torch.save(tensors, weights)
    plain = {"policy_class": {"__module__": "stable_baselines3.common.policies"}, "policy_kwargs": {}, **data}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", json.dumps(plain))
        with archive.open("policy.pth", mode="w", force_zip64=True) as member:
            member.write(weights.getvalue())
        archive.writestr("_stable_baselines3_version", "2.4.0")
    return path


def _dense(seed: int, *widths: int, bias: bool = True) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    rng = np.random.default_rng(seed)
    return [
        (
            torch.tensor(rng.normal(size=(b, a)), dtype=torch.float32),
            torch.tensor(rng.normal(size=b), dtype=torch.float32) if bias else None,
        )
        for a, b in pairwise(widths)
    ]


def _named(prefixes: list[str], layers: list[tuple[torch.Tensor, torch.Tensor | None]]) -> dict[str, torch.Tensor]:
    out = {}
    for prefix, (weight, bias) in zip(prefixes, layers, strict=True):
        out[f"{prefix}.weight"] = weight
        if bias is not None:
            out[f"{prefix}.bias"] = bias
    return out


def _forward(x: np.ndarray, layers: list[tuple[torch.Tensor, torch.Tensor | None]], act: object) -> np.ndarray:
    """The oracle: matrix products in NumPy."""
    out = x.astype(np.float64)
    for i, (weight, bias) in enumerate(layers):
        out = out @ weight.double().numpy().T + (0.0 if bias is None else bias.double().numpy())
        out = act(out) if i < len(layers) - 1 else out  # type: ignore[operator]
    return out


def _relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0.0)


def _obs(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(64, n)).astype(np.float32)


def _scores(agent: NetworkAgent, obs: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return agent.step(agent.tensors, torch.from_numpy(obs))[0].numpy()


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    hidden=st.lists(st.integers(1, 9), max_size=3),
    inputs=st.integers(1, 6),
    outputs=st.integers(1, 5),
    relu=st.booleans(),
    shared=st.booleans(),
)
def test_actor_critics(
    tmp_path_factory: pytest.TempPathFactory, seed: int, hidden: list[int], inputs: int, outputs: int, relu: bool,
    shared: bool,
) -> None:  # fmt: skip
    layers = _dense(seed, inputs, *hidden, outputs)
    k = 1 if shared and hidden else 0
    names = [f"mlp_extractor.shared_net.{2 * i}" for i in range(k)]
    names += [f"mlp_extractor.policy_net.{2 * i}" for i in range(len(hidden) - k)] + ["action_net"]
    tensors = _named(names, layers) | _named(["mlp_extractor.value_net.0", "value_net"], _dense(seed + 1, inputs, 3, 1))
    said = {"policy_kwargs": {"activation_fn": "<class 'torch.nn.modules.activation.ReLU'>"}} if relu else {}
    spaces = {"observation_space": _box([-1.0] * inputs, [1.0] * inputs), "action_space": _discrete(outputs)}
    agent = load(_zip(tmp_path_factory.mktemp("z") / "a.zip", tensors, **spaces, **said))
    assert isinstance(agent, ForeignNetwork) and agent.head == "logits"
    expected = _forward(_obs(inputs), layers, _relu if relu else np.tanh)
    np.testing.assert_allclose(_scores(agent, _obs(inputs)), expected, rtol=1e-9, atol=1e-9)
    probs, _ = agent.policy(_obs(inputs))
    assert (probs.argmax(1) == expected.argmax(1)).all()
    assert set(agent.tensor_names.values()) == {n for n in tensors if "value_net" not in n}
    assert {n: agent.weights[n].tolist() for n in agent.weights} == {
        n: tensors[name].double().tolist() for n, name in agent.tensor_names.items()
    }


def test_sampling_draws_from_the_logits(tmp_path: Path) -> None:
    layers = _dense(3, 2, 4)
    tensors = _named(["action_net"], layers) | _named(["value_net"], _dense(4, 2, 1))
    agent = load(_zip(tmp_path / "a.zip", tensors), decision="sample")
    logits = _forward(_obs(2), layers, np.tanh)
    np.testing.assert_allclose(
        agent.policy(_obs(2))[0], np.exp(logits) / np.exp(logits).sum(1, keepdims=True), rtol=1e-6
    )


def test_continuous_actor_critics_are_cut_to_their_range(tmp_path: Path) -> None:
    layers = _dense(1, 3, 5, 2)
    tensors = _named(["mlp_extractor.policy_net.0", "action_net"], layers) | {"log_std": torch.zeros(2)}
    box = {"action_space": _box([-1.5, 0.0], [1.0, 0.5])}
    agent = load(_zip(tmp_path / "a.zip", tensors, **box))
    out, _ = agent.policy(_obs(3))
    expected = np.clip(_forward(_obs(3), layers, np.tanh), [-1.5, 0.0], [1.0, 0.5])
    np.testing.assert_allclose(out[:, 0], expected, rtol=1e-6, atol=1e-7)
    assert np.isneginf(out[:, 1]).all()


def test_value_networks(tmp_path: Path) -> None:
    layers = _dense(2, 2, 7, 6, 3)
    tensors = _named([f"q_net.q_net.{i}" for i in (0, 2, 4)], layers)
    tensors |= _named([f"q_net_target.q_net.{i}" for i in (0, 2, 4)], _dense(9, 2, 7, 6, 3))
    agent = load(_zip(tmp_path / "a.zip", tensors, action_space=_discrete(3)))
    assert agent.head == "values"
    np.testing.assert_allclose(_scores(agent, _obs(2)), _forward(_obs(2), layers, _relu), rtol=1e-9)
    with pytest.raises(FileError, match="greedy"):
        load(tmp_path / "a.zip", decision="sample")


@pytest.mark.parametrize("kind", ["sac", "td3", "ars", "ars linear"])
def test_squashed_and_plain_actors(tmp_path: Path, kind: str) -> None:
    layers = _dense(5, 3, 2, bias=False) if kind == "ars linear" else _dense(5, 3, 4, 2)
    names = {
        "sac": ["actor.latent_pi.0", "actor.mu"],
        "td3": ["actor.mu.0", "actor.mu.2"],
        "ars": ["action_net.0", "action_net.2"],
        "ars linear": ["action_net.0"],
    }[kind]
    tensors = _named(names, layers)
    if kind == "sac":
        tensors |= _named(["actor.log_std", "critic.qf0.0", "critic_target.qf0.0"], _dense(6, 4, 2, 3, 3))
    said = {
        "policy_class": {"__module__": "sb3_contrib.ars.policies", "__init__": "<function ARSLinearPolicy.__init__"}
    }
    data = said if kind == "ars linear" else {}
    agent = load(_zip(tmp_path / "a.zip", tensors, action_space=_box([-2.0, -2.0], [2.0, 2.0]), **data))
    raw = _forward(_obs(3), layers, _relu)
    expected = np.clip(raw, -2, 2) if kind == "ars linear" else 2 * np.tanh(raw)
    np.testing.assert_allclose(agent.policy(_obs(3))[0][:, 0], expected, rtol=1e-6, atol=1e-7)


def test_ars_with_discrete_actions_and_a_bare_state_dict(tmp_path: Path) -> None:
    layers = _dense(8, 2, 3, bias=False)
    tensors = _named(["action_net"], layers)
    greedy = _forward(_obs(2), layers, _relu).argmax(1)
    agent = load(_zip(tmp_path / "a.zip", tensors, action_space=_discrete(3)))
    assert (agent.policy(_obs(2))[0].argmax(1) == greedy).all()
    torch.save(tensors, tmp_path / "policy.pth")
    with pytest.raises(FileError, match="say world="):
        load(tmp_path / "policy.pth")
    agent = load(tmp_path / "policy.pth", world=make_world("MountainCar"))
    assert (agent.policy(_obs(2))[0].argmax(1) == greedy).all()


def test_half_and_double_precision_are_read(tmp_path: Path) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        layers = [(w.to(dtype), b.to(dtype)) for w, b in _dense(8, 2, 3) if b is not None]
        tensors = _named(["q_net.q_net.0"], layers)
        agent = load(_zip(tmp_path / "a.zip", tensors, action_space=_discrete(3)))
        np.testing.assert_allclose(_scores(agent, _obs(2)), _forward(_obs(2), layers, _relu), rtol=1e-9)


def test_numbered_observations(tmp_path: Path) -> None:
    world = make_world("OpenGrid", size=5)
    n, a = world.model.n_states, world.model.n_actions
    layers = _dense(8, n, 5, a)
    tensors = _named(["q_net.q_net.0", "q_net.q_net.2"], layers)
    path = _zip(tmp_path / "a.zip", tensors, observation_space=_discrete(n), action_space=_discrete(a))
    agent = load(path, world=world)
    assert agent.n_states == n
    expected = _forward(np.eye(n, dtype=np.float32), layers, _relu).argmax(1)
    assert (agent.policy(np.arange(n))[0].argmax(1) == expected).all()
    with pytest.raises(FileError, match=f"is for {n} states"):
        load(path, world=make_world("OpenGrid", size=6))


def test_normalised_observations_and_what_the_notes_say(tmp_path: Path) -> None:
    layers = _dense(8, 2, 3)
    tensors = _named(["action_net"], layers) | _named(["value_net"], _dense(4, 2, 1))
    with_statistics = _zip(tmp_path / "a.zip", tensors, _last_original_obs={":type:": "<class 'numpy.ndarray'>"})
    assert "VecNormalize" in " ".join(load(with_statistics).notes)
    mean, var = np.array([0.5, -1.0]), np.array([4.0, 0.01])
    np.savez(tmp_path / "s.npz", mean=mean, var=var, clip_obs=1.5, epsilon=1e-8)
    (tmp_path / "s.json").write_text(json.dumps({"mean": mean.tolist(), "var": var.tolist(), "clip_obs": 1.5}))
    seen = np.clip((_obs(2) - mean) / np.sqrt(var + 1e-8), -1.5, 1.5)
    for statistics in (tmp_path / "s.npz", str(tmp_path / "s.json"), Normalisation(mean, var, 1.5)):
        agent = load(with_statistics, normalise=statistics)
        assert agent.notes == ()
        np.testing.assert_allclose(_scores(agent, _obs(2)), _forward(seen, layers, _relu), rtol=1e-5, atol=1e-5)
    plain = _zip(tmp_path / "b.zip", tensors, _last_original_obs=None)
    assert load(plain).notes == ()
    assert "though" in load(plain, normalise=tmp_path / "s.npz").notes[0]
    with pytest.raises(FileError, match="statistics are of 3"):
        load(plain, normalise=Normalisation(np.zeros(3), np.ones(3)))


def test_an_assumed_activation_is_noted_and_can_be_said(tmp_path: Path) -> None:
    layers = _dense(8, 2, 6, 3)
    tensors = _named(["mlp_extractor.policy_net.0", "action_net"], layers)
    own = _zip(tmp_path / "a.zip", tensors, _last_original_obs=None, policy_class={"__module__": "mine"})
    assert ["activation" in n or "mine" in n for n in load(own).notes] == [True, True]
    agent = load(own, activation="relu")
    assert len(agent.notes) == 1
    np.testing.assert_allclose(_scores(agent, _obs(2)), _forward(_obs(2), layers, _relu), rtol=1e-9)
    elu = _zip(
        tmp_path / "b.zip", tensors, policy_kwargs={"activation_fn": "<class 'torch.nn.modules.activation.ELU'>"}
    )
    with pytest.raises(FileError, match="'ELU' is none of"):
        load(elu)
    assert load(elu, activation="silu").architecture.as_dict()["act"] == "silu"


def test_what_the_file_says_is_checked_against_the_world(tmp_path: Path) -> None:
    tensors = _named(["q_net.q_net.0"], _dense(8, 2, 3))
    path = _zip(tmp_path / "a.zip", tensors, observation_space=_box([0, 0], [1, 1]), action_space=_discrete(3))
    assert load(path, world=make_world("MountainCar")).n_states is None
    for world, part in ((make_world("CartPole"), "observations"), (make_world("OpenGrid"), "states|inputs|actions")):
        with pytest.raises(FileError, match=part):
            load(path, world=world)
    tensors = _named(["q_net.q_net.0"], _dense(8, 3, 3))
    with pytest.raises(FileError, match="takes discrete actions, Pendulum does not"):
        load(_zip(tmp_path / "b.zip", tensors, action_space=_discrete(3)), world=make_world("Pendulum"))


def test_safetensors_with_a_description(tmp_path: Path) -> None:
    layers = _dense(8, 4, 6, 2)
    save_file({n: t.numpy() for n, t in _named(["body.0", "top"], layers).items()}, tmp_path / "p.safetensors")
    names = {"hidden.0.0.weight": "body.0.weight", "hidden.0.0.bias": "body.0.bias"}
    names |= {"out.weight": "top.weight", "out.bias": "top.bias"}
    card = {"network": {"kind": "mlp", "inputs": 4, "outputs": 2, "hidden": [6], "act": "tanh"}, "tensors": names}
    (tmp_path / "p.json").write_text(json.dumps(card))
    agent = load(tmp_path / "p.safetensors", world=make_world("CartPole"))
    np.testing.assert_allclose(_scores(agent, _obs(4)), _forward(_obs(4), layers, np.tanh), rtol=1e-9)
    shifted = card | {"normalise": {"mean": [1, 2, 3, 4], "var": [1, 1, 4, 1], "epsilon": 0.0}}
    (tmp_path / "p.json").write_text(json.dumps(shifted))
    seen = (_obs(4) - [1, 2, 3, 4]) / [1, 1, 2, 1]
    agent = load(tmp_path / "p.safetensors")
    np.testing.assert_allclose(_scores(agent, _obs(4)), _forward(seen, layers, np.tanh), rtol=1e-5, atol=1e-5)
    for broken, part in (
        (card | {"head": "mean"}, "action_range"),
        (card | {"haed": "mean"}, "did you mean 'head'"),
        ({"tensors": names}, "needs a kind"),
        (card | {"network": card["network"] | {"hidden": [7]}}, "has shape"),
        (card | {"network": card["network"] | {"outputs": 10**12}}, "outputs"),
        (card | {"network": card["network"] | {"act": "sin"}}, "act"),
        (card | {"tensors": names | {"out.bias": "top.weight"}}, "twice"),
    ):
        (tmp_path / "p.json").write_text(json.dumps(broken))
        with pytest.raises(FileError, match=part):
            load(tmp_path / "p.safetensors")


def test_a_network_with_memory(tmp_path: Path) -> None:
    torch.manual_seed(0)
    cell, out = nn.GRUCell(2, 5).double(), nn.Linear(5, 3).double()
    names = {"weight_ih": "gates_in.weight", "bias_ih": "gates_in.bias"}
    names |= {"weight_hh": "gates_memory.weight", "bias_hh": "gates_memory.bias"}
    arrays = {names[n]: p.detach().numpy() for n, p in cell.named_parameters()}
    arrays |= {f"out.{n}": p.detach().numpy() for n, p in out.named_parameters()}
    save_file(arrays, tmp_path / "g.safetensors")
    (tmp_path / "g.json").write_text(json.dumps({"network": {"kind": "gru", "inputs": 2, "outputs": 3, "hidden": 5}}))
    agent = load(tmp_path / "g.safetensors", decision="sample", world=make_world("MountainCar"))
    carry: object = None
    memory = torch.zeros(64, 5, dtype=torch.float64)
    for t in range(4):
        got, carry = agent.policy(_obs(2, t), carry)
        with torch.no_grad():
            memory = cell(torch.from_numpy(_obs(2, t)).double(), memory)
            np.testing.assert_allclose(got, torch.softmax(out(memory), 1).numpy(), rtol=1e-9)


def test_the_blank_of_a_module() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Parameter(torch.arange(200.0).reshape(100, 2))
            self.fixed = nn.Parameter(torch.full((2,), 7.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :100] @ self.mix + self.fixed

    agent = wrap(Odd(), observation_size=100, n_actions=2)
    drawn = agent.blank(0).parts["mix"].array
    # of its own mean 99.5 and spread 57.7: 200 draws are within 6 standard errors, but for one time in 1e8
    assert abs(drawn.mean() - 99.5) < 6 * 57.7 / np.sqrt(200) and 30 < drawn.std() < 90
    assert (agent.blank(0).parts["fixed"].array == 7.0).all()
    made = wrap(nn.Linear(3, 2), observation_size=3, n_actions=2, fresh=lambda seed: _filled(float(seed)))
    assert (made.blank(5).parts["weight"].array == 5.0).all()


def _filled(value: float) -> nn.Linear:
    net = nn.Linear(3, 2)
    nn.init.constant_(net.weight, value)
    return net


def test_a_module_becomes_a_network_with_its_own_names() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ELU(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))
    agent = wrap(net, observation_size=4, n_actions=3)
    with torch.no_grad():
        expected = net(torch.from_numpy(_obs(4))).argmax(1).numpy()
    assert (agent.policy(_obs(4))[0].argmax(1) == expected).all()
    roles = {p.name: p.role for p in agent.parts.values()}
    assert {n for n, r in roles.items() if r == "weight"} == {n for n, _ in net.named_parameters()}
    assert [n for n, r in roles.items() if r == "activation"] == ["steer:net.0", "steer:net.3"]
    assert record(agent, _obs(4))["net.3"].shape == (64, 6)

    name, last = "5.bias", agent.layout[-3].shape
    assert last == (3,)
    edited = Edit.of(agent, Sparse(name, [1], [1e3])).apply(agent)
    assert (edited.policy(_obs(4))[0].argmax(1) == 1).all()
    with torch.no_grad():  # the user's module is left as it was, and what becomes of it is nothing to the agent
        net[5].bias[2] = 1e3
    assert (agent.policy(_obs(4))[0].argmax(1) == expected).all()

    blank = agent.blank(1)
    assert blank.layout == agent.layout and blank.digest != agent.digest
    assert blank.digest == agent.blank(1).digest != agent.blank(2).digest
    assert np.array_equal(blank.parts["1.weight"].array, np.ones(8))  # as LayerNorm resets itself


def test_what_is_saved_can_be_loaded(tmp_path: Path) -> None:
    path = _zip(tmp_path / "a.zip", _named(["q_net.q_net.0"], _dense(8, 2, 3)), action_space=_discrete(3))
    agent = load(path)
    again = load(save_agent(agent.plain, tmp_path / "agent"))
    assert again.digest == agent.digest == agent.plain.digest and type(again) is NetworkAgent
    wrapped = wrap(nn.Linear(2, 3), observation_size=2, n_actions=3)
    with pytest.raises(FileError, match="cannot be saved"):
        save_agent(wrapped, tmp_path / "wrapped")
    assert pickle.loads(pickle.dumps(wrapped)).digest == wrapped.digest  # as it goes to another process


def test_a_module_for_continuous_actions_and_for_numbered_states() -> None:
    net = nn.Linear(3, 1)
    agent = wrap(net, observation_size=3, action_range=(-0.5, 0.5))
    out, _ = agent.policy(_obs(3))
    expected = net(torch.from_numpy(_obs(3))).detach().numpy().clip(-0.5, 0.5)
    np.testing.assert_allclose(out[:, 0], expected, rtol=1e-5, atol=1e-6)
    features = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    numbered = wrap(nn.Linear(3, 2), features=features, n_actions=2)
    assert numbered.n_states == 5 and numbered.policy(np.arange(5))[0].shape == (5, 2)


def test_a_function_has_no_parts() -> None:
    agent = wrap(lambda x: x[:, :2], observation_size=3, n_actions=2, name="first")
    assert isinstance(agent, CallableAgent) and not agent.parts
    assert (agent.policy(_obs(3))[0].argmax(1) == _obs(3)[:, :2].argmax(1)).all()
    assert agent.digest != wrap(lambda x: x[:, 1:], observation_size=3, n_actions=2, name="last").digest
    continuous = wrap(lambda x: 9 * x[:, :1], observation_size=3, action_range=(-1.0, 1.0), name="nine")
    np.testing.assert_allclose(continuous.policy(_obs(3))[0][:, 0], np.clip(9 * _obs(3)[:, :1], -1, 1), rtol=1e-6)
    drawn = wrap(lambda x: x, features=np.eye(2, dtype="f4"), n_actions=2, decision="sample", name="same")
    np.testing.assert_allclose(drawn.policy(np.arange(2))[0][0], np.exp([1, 0]) / np.exp([1, 0]).sum())
    assert drawn.with_arrays({}) is drawn and drawn.n_states == 2
    with pytest.raises(AgentError, match="no untrained state"):
        agent.blank(0)


@pytest.mark.parametrize(
    ("policy", "options", "part"),
    [
        (nn.Linear(3, 2), {"observation_size": 4, "n_actions": 2}, "cannot be called"),
        (nn.Linear(3, 2), {"observation_size": 3, "n_actions": 3}, "3 numbers"),
        (nn.Linear(3, 2), {"observation_size": 3}, "one of them"),
        (nn.Linear(3, 2), {"observation_size": 3, "n_actions": 2, "action_range": (0, 1)}, "one of them"),
        (nn.Linear(3, 2), {"n_actions": 2}, "one of them"),
        (nn.Linear(3, 1), {"observation_size": 3, "action_range": (1.0, -1.0)}, "lowest"),
        (nn.Tanh(), {"observation_size": 3, "n_actions": 3}, "no parameters"),
        (lambda x: x * np.nan, {"observation_size": 3, "n_actions": 3}, "NaN"),
        (lambda x: 1 / 0, {"observation_size": 3, "n_actions": 3}, "ZeroDivisionError"),
        (7, {"observation_size": 3, "n_actions": 3}, "int"),
    ],
)
def test_what_cannot_be_wrapped_says_so(policy: object, options: dict[str, object], part: str) -> None:
    with pytest.raises(AgentError, match=part):
        wrap(policy, **options)  # type: ignore[arg-type]


def _converter(source: Path, target: Path) -> subprocess.CompletedProcess[str]:
    script = ROOT / "scripts" / "convert_vecnormalize.py"
    return subprocess.run([sys.executable, str(script), str(source), str(target)], capture_output=True, text=True)


def test_the_converter_reads_what_vecnormalize_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "stable_baselines3.common.vec_env.vec_normalize"
    for end in range(1, len(name.split(".")) + 1):
        package = ".".join(name.split(".")[:end])
        monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
    module = sys.modules[name]
    for known in ("VecNormalize", "RunningMeanStd"):
        setattr(module, known, type(known, (), {"__module__": name}))
    running, whole = module.RunningMeanStd(), module.VecNormalize()
    running.mean, running.var, running.count = np.array([0.5, -2.0]), np.array([3.0, 4.0]), 7.0
    whole.obs_rms, whole.clip_obs, whole.epsilon, whole.norm_obs = running, 5.0, 1e-6, True
    whole.old_obs = np.zeros((3, 2), dtype=np.float32)
    for protocol in (2, 4, 5):
        (tmp_path / "v.pkl").write_bytes(pickle.dumps(whole, protocol=protocol))
        done = _converter(tmp_path / "v.pkl", tmp_path / "v.npz")
        assert done.returncode == 0, done.stderr
        found = dict(np.load(tmp_path / "v.npz"))
        assert found["mean"].tolist() == [0.5, -2.0] and found["var"].tolist() == [3.0, 4.0]
        assert (float(found["clip_obs"]), float(found["epsilon"])) == (5.0, 1e-6)


class _Bomb:
    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.write_text, (self.sentinel, "ran"))


def test_the_converter_runs_nothing_that_a_pickle_names(tmp_path: Path) -> None:
    (tmp_path / "v.pkl").write_bytes(pickle.dumps({"obs_rms": _Bomb(tmp_path / "sentinel")}))
    done = _converter(tmp_path / "v.pkl", tmp_path / "v.npz")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "sentinel").exists() and not (tmp_path / "v.npz").exists()
