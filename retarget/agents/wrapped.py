"""Policies that somebody else trained: networks read from a file, and modules and functions handed over in Python."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from retarget.agent import Agent, Part, own
from retarget.agents.neural import Architecture, Decision, Head, Hook, NetworkAgent, Sensor, weights_digest
from retarget.errors import AgentError
from retarget.rng import stream, word

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, eq=False)
class ForeignNetwork(NetworkAgent):
    """A network agent from somebody else's file.

    Attributes:
        algorithm: what the file says, or shows, that it was trained with.
        tensor_names: the file's own name of each weight, by part name.
        notes: what the reader could not know, and what it assumed; each a line.
    """

    algorithm: str = ""
    tensor_names: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def plain(self) -> NetworkAgent:
        """The same network, of the same digest, without the facts about its file."""
        return NetworkAgent(**{f.name: getattr(self, f.name) for f in fields(NetworkAgent)})


# -- modules -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ModuleArchitecture(Architecture):
    """An architecture that is a user's own module. It lives in this process only: it cannot be saved.

    Attributes:
        module: what is called, in evaluation mode, with its weights handed in.
        fresh: makes the untrained module of a seed; without it, see `wrap`.
    """

    module: nn.Module | None = None
    fresh: Callable[[int], nn.Module] | None = None

    @property
    def template(self) -> nn.Module:
        assert self.module is not None
        return self.module

    @cached_property
    def names(self) -> Mapping[str, str]:
        return {name.removeprefix("net."): name for name, _ in self.template.named_parameters()}

    def build(self, seed: int = 0) -> nn.Module:
        """The module with weights drawn anew."""
        import torch

        made = copy.deepcopy(self.template)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(word(seed, "network", self.kind))
            if self.fresh is not None:
                made.net = self.fresh(seed)
                return made
            _draw_again(made, seed)
        return made


def _draw_again(module: nn.Module, seed: int) -> None:
    """Reset what can reset itself; draw the rest from a normal distribution of its own mean and spread."""
    import torch

    covered = set()
    for part in module.modules():
        reset = getattr(part, "reset_parameters", None)
        if callable(reset):
            reset()
            covered |= {id(p) for p in part.parameters()}
    rng = stream(seed, "network", "wrapped")
    for parameter in module.parameters():
        if id(parameter) not in covered:
            values = parameter.detach().double().numpy()
            drawn = rng.normal(values.mean(), values.std(), size=values.shape)
            parameter.copy_(torch.as_tensor(drawn).to(parameter.dtype))


@dataclass(frozen=True, eq=False)
class ModuleAgent(NetworkAgent):
    """A network agent around a user's own module. It cannot be saved: no file says how to build the module."""

    kind: str = "module"


# -- functions ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class CallableAgent(Agent):
    """A function as an agent. It has no parts, so its robustness can be measured and nothing else.

    Attributes:
        function: from observations `[B, ...]` to scores `[B, A]`, or to actions `[B, K]` where they are continuous.
        name: stands for the function in digests, where its code cannot: give different functions different names.
        n_outputs: A or K.
        sensor: features of states, and normalisation.
        action_range: lowest and highest action, `[K]` each, or None.
        decision: `greedy`, or `sample` from the softmax of the scores.
    """

    function: Callable[[np.ndarray], np.ndarray]
    name: str
    n_outputs: int
    sensor: Sensor = field(default_factory=Sensor)
    action_range: tuple[np.ndarray, np.ndarray] | None = None
    decision: Decision = "greedy"
    kind: str = "callable"

    @property
    def parts(self) -> Mapping[str, Part]:
        return {}

    def with_arrays(self, arrays: Mapping[str, np.ndarray]) -> CallableAgent:
        self.check_arrays(arrays)
        return self

    @property
    def config(self) -> Mapping[str, object]:
        box = None if self.action_range is None else [a.tolist() for a in self.action_range]
        return {
            "name": self.name, "sensor": self.sensor.as_dict(), "action_range": box, "n_outputs": self.n_outputs,
            "decision": self.decision,
        }  # fmt: skip

    @property
    def fixed_arrays(self) -> Mapping[str, np.ndarray]:
        return self.sensor.arrays

    @property
    def n_states(self) -> int | None:
        return None if self.sensor.features is None else len(self.sensor.features)

    def blank(self, seed: int) -> Agent:
        """Raises AgentError: what a function was before training is not known."""
        raise AgentError(f"{self.name!r} is a function, which has no untrained state; wrap a torch module instead")

    def policy(self, obs: np.ndarray, carry: object = None) -> tuple[np.ndarray, object]:
        import torch

        x = self.sensor(torch.from_numpy(np.array(obs, order="C")), None, dtype=torch.float32).numpy()
        out = np.asarray(self.function(x), dtype=np.float64)
        if out.shape != (len(x), self.n_outputs) or np.isnan(out).any():
            what = "NaN" if out.shape == (len(x), self.n_outputs) else f"shape {out.shape}"
            raise AgentError(f"{self.name!r} must return numbers {(len(x), self.n_outputs)}, got {what}")
        if self.action_range is not None:
            mean = np.clip(out, *self.action_range)
            return np.stack([mean, np.full_like(mean, -np.inf)], axis=1), None
        if self.decision == "greedy":
            return np.eye(self.n_outputs)[out.argmax(1)], None
        shifted = np.exp(out - out.max(1, keepdims=True))
        return shifted / shifted.sum(1, keepdims=True), None


def wrap(
    policy: Callable[..., object],
    *,
    observation_size: int | None = None,
    n_actions: int | None = None,
    action_range: tuple[object, object] | None = None,
    features: np.ndarray | None = None,
    sensor: Sensor | None = None,
    head: Literal["logits", "values"] = "logits",
    decision: Decision = "greedy",
    name: str | None = None,
    fresh: Callable[[int], nn.Module] | None = None,
) -> Agent:
    """Make an agent of a torch module or of a function.

    A module becomes a network: its parameters are parts with the role `weight`, under the names that they have in it,
    and every linear layer but the last is a place where vectors can be added. It is copied, put in evaluation mode, and
    called as `module(x)`. Its blank has weights drawn anew: by `fresh(seed)` where given, else by the layers' own
    `reset_parameters`, and what no layer resets is drawn from a normal distribution of its own mean and spread. A
    module whose decisions depend on what it saw before is not for this. A function has no parts: its robustness can be
    measured, its retargetability cannot.

    Args:
        policy: from float32 observations `[B, ...]` (tensors for a module, arrays for a function) to scores of actions
            `[B, A]`, or to actions `[B, K]`.
        observation_size: length of an observation, in worlds with continuous states.
        n_actions: number of discrete actions; or
        action_range: lowest and highest action, each a number or `[K]` numbers.
        features: `[S, ...]`: what each state of a finite world looks like to the policy, instead of `observation_size`.
        sensor: instead of `features`, where observations are normalised as well.
        head: whether scores are logits or values.
        decision: take the best action, or draw from the logits.
        name: of the policy; stands for a function's code in digests.
        fresh: makes an untrained module of a seed.

    Raises:
        AgentError: when the policy cannot be called so, or returns something else.

    >>> from torch import nn
    >>> wrap(nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3)), observation_size=2, n_actions=3).layout[0].name
    '0.weight'
    >>> wrap(lambda x: x[:, :2], observation_size=4, n_actions=2, name="first two").policy(np.eye(4, dtype="f4"))[0][1]
    array([0., 1.])
    """
    from torch import nn

    box = _range(action_range)
    if (n_actions is None) == (box is None):
        raise AgentError("say n_actions for discrete actions, or action_range for continuous ones; one of them")
    sensor = sensor if sensor is not None else Sensor(features=features)
    if (observation_size is None) == (sensor.features is None):
        raise AgentError("say observation_size, or features of a finite world's states; one of them")
    outputs = int(n_actions) if n_actions is not None else len(box[0])  # type: ignore[index]
    shape = (observation_size,) if observation_size is not None else sensor.features.shape[1:]  # type: ignore[union-attr]
    agent: Agent
    if isinstance(policy, nn.Module):
        heads: Head = head if box is None else "mean"
        agent = _of_module(policy, shape, sensor, heads, decision, box, name, fresh)
    elif callable(policy):
        title = name or getattr(policy, "__qualname__", type(policy).__name__)
        agent = CallableAgent(policy, title, outputs, sensor, box, decision)  # type: ignore[arg-type]
    else:
        raise AgentError(f"a policy is a torch module or a function, got {type(policy).__name__}")
    _try(agent, shape, outputs)
    return agent


def _range(given: tuple[object, object] | None) -> tuple[np.ndarray, np.ndarray] | None:
    if given is None:
        return None
    low, high = (np.atleast_1d(np.asarray(x, dtype=np.float64)) for x in given)
    if low.shape != high.shape or low.ndim != 1 or not (low < high).all() or not np.isfinite([low, high]).all():
        raise AgentError(f"action_range needs a finite lowest below a finite highest action, got {given!r:.80}")
    return own(low), own(high)


def _of_module(
    net: nn.Module, shape: tuple[int, ...], sensor: Sensor, head: Head, decision: Decision,
    box: tuple[np.ndarray, np.ndarray] | None, name: str | None, fresh: Callable[[int], nn.Module] | None,
) -> ModuleAgent:  # fmt: skip
    import torch
    from torch import nn

    from retarget.agents.adapted import Adapted

    torch.set_num_threads(1)  # small tensors on few cores run many times faster on one thread
    net = copy.deepcopy(net).cpu().eval().requires_grad_(False)
    if not any(True for _ in net.parameters()):
        raise AgentError("the module has no parameters; wrap its forward method as a function instead")
    linear = [(n, m) for n, m in net.named_modules() if isinstance(m, nn.Linear)]
    hooks = tuple(Hook(f"net.{n}" if n else "net", m.out_features) for n, m in linear[:-1])
    module = Adapted(net, hooks, 2.0 * sum(p.numel() for p in net.parameters() if p.ndim > 1))
    state = weights_digest({n: b.detach().cpu().numpy() for n, b in net.named_buffers()})
    options = (("buffers", state), ("name", name or type(net).__qualname__), ("text", repr(net)))
    architecture = ModuleArchitecture("module", options, module, fresh)
    weights = {n: p.detach().double().numpy() for n, p in net.named_parameters()}
    return ModuleAgent(architecture, weights, sensor, head, decision, box)


def _try(agent: Agent, shape: tuple[int, ...], outputs: int) -> None:
    """One call, so that a policy that does not fit says so here."""
    obs = np.arange(2) % (agent.n_states or 2)
    if agent.n_states is None:
        obs = stream(0, "wrap").standard_normal((2, *shape)).astype(np.float32)
    try:
        out, _ = agent.policy(obs)
    except AgentError:
        raise
    except Exception as error:  # whatever a user's code raises
        text = " ".join(str(error).split())[:160]
        raise AgentError(
            f"the policy cannot be called with observations of shape {obs.shape} ({type(error).__name__}: {text})"
        ) from error
    expected = (2, outputs) if out.ndim == 2 else (2, 2, outputs)
    if out.shape != expected or np.isnan(out).any():
        what = "NaN" if out.shape == expected else f"distributions of shape {out.shape}"
        raise AgentError(f"the policy must give {outputs} numbers for each observation, got {what}")
