"""Agents that are neural networks: an architecture, its weights, what it sees, and where its goal is written.

An `Architecture` is data (a kind and options) that builds a torch module; a `NetworkAgent` is frozen arrays around one.
The module itself is a template that is never changed: weights are handed to it with every call.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np

from retarget.agent import Agent, Alphabet, Categorical, Part, Real, Scores, SlotWrite, own
from retarget.digest import digest_of
from retarget.errors import AgentError, EditError, unknown
from retarget.goal import Goal, RegionGoal
from retarget.rng import word

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from retarget.units import Ablation, UnitLayer

#: Kinds of networks, and the torch module (in which module) that each is.
KINDS: dict[str, tuple[str, str]] = {
    "mlp": ("retarget.agents.networks", "MLP"),
    "cnn": ("retarget.agents.networks", "CNN"),
    "gru": ("retarget.agents.networks", "GRU"),
    "vin": ("retarget.agents.networks", "VIN"),
    "transformer": ("retarget.agents.transformer", "Transformer"),
}

Head = Literal["logits", "values", "mean"]
Decision = Literal["greedy", "sample"]
GOAL, STEER = "goal", "steer:"
_INFIX = "._original_component"


@dataclass(frozen=True)
class Hook:
    """A place in a network where a vector can be added to what flows through.

    Attributes:
        name: name of the submodule whose output it is.
        width: length of the vector.
        axis: axis of the submodule's output that has this length (-1 for vectors, 1 for images `[B, C, H, W]`).
    """

    name: str
    width: int
    axis: int = -1


@dataclass(frozen=True)
class Architecture:
    """What rebuilds an untrained network: a kind and JSON-able options. See `retarget.agents.networks`.

    >>> Architecture.of("mlp", inputs=2, outputs=4, hidden=(8,)).n_weights
    60
    """

    kind: str
    options: tuple[tuple[str, object], ...] = ()

    @classmethod
    def of(cls, kind: str, **options: object) -> Architecture:
        """Raises AgentError for an unknown kind."""
        if kind not in KINDS:
            raise AgentError(unknown("kind of network", kind, KINDS))
        return cls(kind, tuple(sorted(options.items())))

    def build(self, seed: int = 0) -> nn.Module:
        """A fresh module in float32, its weights drawn from the stream (seed, "network", kind)."""
        import torch

        module, name = KINDS[self.kind]
        make: Callable[..., nn.Module] = getattr(importlib.import_module(module), name)
        # torch initialises from its global generator: fork it, so that nobody else's draws change
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(word(seed, "network", self.kind))
            return make(**dict(self.options))

    @property
    def template(self) -> nn.Module:
        """The module in evaluation mode, without gradients, in the precision of evaluation. Never change it."""
        return _template(self)

    @property
    def hooks(self) -> tuple[Hook, ...]:
        """Where vectors can be added."""
        return tuple(self.template.hooks)  # type: ignore[arg-type]

    @property
    def recurrent(self) -> bool:
        return bool(self.template.recurrent)

    @cached_property
    def names(self) -> Mapping[str, str]:
        """The module's own name of each weight, by the part's name."""
        return {name.replace(_INFIX, ""): name for name, _ in self.template.named_parameters()}

    @property
    def n_weights(self) -> int:
        return sum(p.numel() for p in self.template.parameters())

    @property
    def flops(self) -> float:
        """Operations of one forward pass of one observation, by the formula in the module's docstring."""
        return float(self.template.flops)  # type: ignore[arg-type]

    def initial(self, seed: int) -> dict[str, np.ndarray]:
        """Weights before training, float32, by part name."""
        found = dict(self.build(seed).named_parameters())
        return {short: found[name].detach().numpy().copy() for short, name in self.names.items()}

    def as_dict(self) -> dict[str, object]:
        return {"kind": self.kind, **{k: list(v) if isinstance(v, tuple) else v for k, v in self.options}}


@lru_cache(maxsize=64)
def _template(architecture: Architecture) -> nn.Module:
    import torch

    torch.set_num_threads(1)  # small tensors on few cores run many times faster on one thread
    module = architecture.build().eval().requires_grad_(False)
    return module.to(getattr(module, "precision", torch.float64))


@dataclass(frozen=True, eq=False)
class GoalInput:
    """How goals are written into a network's goal slot.

    Attributes:
        kind: `one_hot`: a real cell for each state, 1 on the goal's first state; `place`: two real cells, the
            goal's row and column; `plane`: a real cell for each cell of the grid; `token`: one symbol, its first state;
            `set_point`: a real cell for each feature, its centre.
        size: number of cells; for `token` the number of symbols.
        place: int `[S, 2]` row and column of each state (`place`, `plane`).
        columns: width of the grid (`plane`).
        features: names of the features (`set_point`).
        goals: goals that the slot may be tried with blindly.
    """

    kind: Literal["one_hot", "place", "plane", "token", "set_point"]
    size: int
    place: np.ndarray | None = None
    columns: int = 0
    features: tuple[str, ...] = ()
    goals: tuple[Goal, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in ("one_hot", "place", "plane", "token", "set_point"):
            kinds = ("one_hot", "place", "plane", "token", "set_point")
            raise AgentError(unknown("kind of goal input", self.kind, kinds))
        if self.place is not None:
            object.__setattr__(self, "place", own(self.place))

    @property
    def alphabet(self) -> Alphabet:
        return Categorical(self.size) if self.kind == "token" else Real()

    @property
    def shape(self) -> tuple[int, ...]:
        return (1,) if self.kind == "token" else (self.size,)

    def write(self, goal: Goal) -> SlotWrite | None:
        """How this goal is written, or None where the slot cannot express it."""
        if isinstance(goal, RegionGoal):
            centres = {name: centre for name, centre, _ in goal.targets}
            if self.kind != "set_point" or not set(centres) <= set(self.features):
                return None
            cells = tuple((i, centres[f]) for i, f in enumerate(self.features) if centres.get(f, 0.0) != 0.0)
            return SlotWrite(GOAL, 0.0, cells)
        state = goal.states[0]
        if self.kind == "set_point" or (self.kind in ("one_hot", "token") and state >= self.size):
            return None
        if self.kind == "token":
            return SlotWrite(GOAL, float(state), ())
        if self.kind == "one_hot":
            return SlotWrite(GOAL, 0.0, ((state, 1.0),))
        assert self.place is not None
        if state >= len(self.place):
            return None
        row, col = (int(x) for x in self.place[state])
        if self.kind == "plane":
            return SlotWrite(GOAL, 0.0, ((row * self.columns + col, 1.0),))
        return SlotWrite(GOAL, 0.0, tuple((i, float(x)) for i, x in enumerate((row, col)) if x))

    def encode(self, goal: Goal) -> np.ndarray:
        """The slot's content for a goal: float64 `[size]`, or int64 `[1]`.

        Raises:
            AgentError: where the slot cannot express it.
        """
        write = self.write(goal)
        if write is None:
            raise AgentError(f"a goal input of kind {self.kind!r} cannot express goal {goal.label}")
        out = np.full(self.shape, write.rest, dtype=self.alphabet.dtype)
        for cell, value in write.cells:
            out[cell] = value
        return out

    def as_dict(self) -> dict[str, object]:
        return {"kind": self.kind, "size": self.size, "columns": self.columns, "features": list(self.features)}


@dataclass(frozen=True, eq=False)
class Sensor:
    """From observations, and the goal slot where there is one, to the network's input.

    Attributes:
        features: float32 or int64 `[S, ...]`: what each state of a finite world looks like; None in worlds with
            continuous states, where observations are taken as they are.
        mean, scale: float32 `[O]`: observations are shifted and scaled, `(obs - mean) * scale`; None for neither.
        clip: then cut to [-clip, clip]; None for no cut.
        join: how the goal slot enters: `none`; `append` to the vector (times `goal_scale`); as another `plane` of the
            image `[C, H, W]`; as another `token`.
        goal_scale: factor on the goal slot before it is appended.
    """

    features: np.ndarray | None = None
    mean: np.ndarray | None = None
    scale: np.ndarray | None = None
    clip: float | None = None
    join: Literal["none", "append", "plane", "token"] = "none"
    goal_scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("features", "mean", "scale"):
            value = getattr(self, name)
            if value is not None:
                value = np.asarray(value)
                kind = np.int64 if value.dtype.kind in "iu" and name == "features" else np.float32
                if not np.isfinite(value).all():
                    raise AgentError(f"{name} of the sensor must be finite")
                object.__setattr__(self, name, own(value.astype(kind)))

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        named = {"features": self.features, "mean": self.mean, "scale": self.scale}
        return {k: v for k, v in named.items() if v is not None}

    def as_dict(self) -> dict[str, object]:
        return {"clip": self.clip, "join": self.join, "goal_scale": self.goal_scale}

    def __call__(self, obs: Tensor, goal: Tensor | None, *, dtype: torch.dtype) -> Tensor:
        """The network's input `[B, ...]` of int64 `[B]` states or real `[B, O]` observations.

        Args:
            obs: what the world shows.
            goal: content of the slot, `[G]` for all alike or `[B, G]`.
            dtype: of the network.
        """
        import torch

        if self.features is not None:
            x = _on(self, "features", obs.device)[obs]
            x = x if self.join == "token" or not x.is_floating_point() else x.to(dtype)
        else:
            x = obs.to(dtype)
            if self.mean is not None:
                x = x - _on(self, "mean", obs.device).to(dtype)
            if self.scale is not None:
                x = x * _on(self, "scale", obs.device).to(dtype)
            if self.clip is not None:
                x = x.clamp(-self.clip, self.clip)
        if self.join == "none" or goal is None:
            return x
        slot = goal.expand(len(x), -1) if goal.ndim == 1 else goal
        if self.join == "token":
            return torch.cat([x, slot.to(x.dtype)], dim=1)
        slot = slot.to(x.dtype) * self.goal_scale
        if self.join == "plane":
            slot = slot.reshape(len(x), 1, *x.shape[2:])
        return torch.cat([x, slot], dim=1)


def _on(sensor: Sensor, name: str, device: torch.device) -> Tensor:
    """An array of a sensor as a tensor on a device; kept with the sensor, which never changes."""
    import torch

    kept: dict[tuple[str, str], Tensor] = sensor.__dict__.setdefault("_tensors", {})
    key = (name, str(device))
    if key not in kept:
        kept[key] = torch.tensor(getattr(sensor, name), device=device)
    return kept[key]


@dataclass(frozen=True, eq=False)
class NetworkAgent(Agent):
    """A policy network. Parts: `goal` (role goal_slot) where it has one, each weight by its name (role weight), and
    `steer:HOOK` for each hook point (role activation), a vector, zero at rest, that is added to what flows there.

    Attributes:
        architecture: what the weights belong to.
        weights: float32 arrays by part name; the architecture's names and shapes, no others.
        sensor: from observations to the network's input.
        head: what its output is: `logits` of actions, `values` of actions, or the `mean` of a continuous action.
        decision: `greedy` takes the best action (the first of equals); `sample` draws from the logits.
        action_range: lowest and highest action, `[K]` each, for continuous actions; None otherwise.
        goal_input, goal: how goals are written, and what is written now; both None for one goal.
        training_goals: goals that it was trained on; None where it was trained on one.
        starts: int `[N]` start states of training, or None.
        steer: vectors by hook name; None for zeros.
        seed: of its initial weights, or None where they are not known (somebody else's network).

    Raises:
        AgentError: when weights do not fit the architecture, or hold values that are not finite.
    """

    architecture: Architecture
    weights: Mapping[str, np.ndarray]
    sensor: Sensor = field(default_factory=Sensor)
    head: Head = "logits"
    decision: Decision = "greedy"
    action_range: tuple[np.ndarray, np.ndarray] | None = None
    goal_input: GoalInput | None = None
    goal: np.ndarray | None = None
    training_goals: tuple[Goal, ...] | None = None
    starts: np.ndarray | None = None
    steer: Mapping[str, np.ndarray] | None = None
    seed: int | None = None
    kind: str = "network"

    def __post_init__(self) -> None:
        template = dict(self.architecture.template.named_parameters())
        expected = {short: tuple(template[name].shape) for short, name in self.architecture.names.items()}
        found = {name: np.shape(array) for name, array in self.weights.items()}
        if expected != found:
            wrong = sorted(set(expected.items()) ^ set(found.items()))[0][0]
            raise AgentError(
                f"weight {wrong!r} should have shape {expected.get(wrong, 'none')} in this {self.architecture.kind}, "
                f"got {found.get(wrong, 'none')}"
            )
        weights = {}
        for name in expected:  # in the architecture's order
            array = np.asarray(self.weights[name])
            if array.dtype.kind != "f" or not np.isfinite(array).all():
                raise AgentError(f"weight {name!r} must hold finite real numbers; it has {_bad(array)}")
            weights[name] = own(array.astype(np.float64))
        object.__setattr__(self, "weights", weights)
        widths = {h.name: h.width for h in self.architecture.hooks}
        steer = {name: np.zeros(width) for name, width in widths.items()} | dict(self.steer or {})
        for name, vector in steer.items():
            if name not in widths or np.shape(vector) != (widths[name],):
                raise AgentError(f"no vector of shape {np.shape(vector)} can be added at {name!r}; hooks are {widths}")
        object.__setattr__(self, "steer", {n: own(np.asarray(v, dtype=np.float64)) for n, v in steer.items()})
        if (self.goal_input is None) != (self.goal is None) or (self.goal is None) != (self.sensor.join == "none"):
            raise AgentError("a network with a goal slot needs goal_input, goal, and a sensor that joins it; or none")
        if self.goal is not None and self.goal_input is not None:
            if np.shape(self.goal) != self.goal_input.shape:
                raise AgentError(f"the goal slot has shape {self.goal_input.shape}, got {np.shape(self.goal)}")
            object.__setattr__(self, "goal", own(np.asarray(self.goal, dtype=self.goal_input.alphabet.dtype)))
        if self.head == "values" and self.decision == "sample":
            raise AgentError("values of actions are no distribution: decision must be 'greedy'")

    # -- what the vocabulary asks for ------------------------------------------------------------------------------

    @cached_property
    def parts(self) -> Mapping[str, Part]:
        out: dict[str, Part] = {}
        if self.goal is not None and self.goal_input is not None:
            out[GOAL] = Part(GOAL, "goal_slot", self.goal, self.goal_input.alphabet)
        for name, array in self.weights.items():
            out[name] = Part(name, "weight", array, Real())
        for name, vector in (self.steer or {}).items():
            out[STEER + name] = Part(STEER + name, "activation", vector, Real())
        return out

    def with_arrays(self, arrays: Mapping[str, np.ndarray]) -> NetworkAgent:
        self.check_arrays(arrays)
        weights = {n: a for n, a in arrays.items() if n in self.weights}
        steer = {n.removeprefix(STEER): a for n, a in arrays.items() if n.startswith(STEER)}
        return replace(
            self,
            weights={**self.weights, **weights},
            steer={**(self.steer or {}), **steer},
            goal=arrays.get(GOAL, self.goal),
        )

    @property
    def config(self) -> Mapping[str, object]:
        box = None if self.action_range is None else [a.tolist() for a in self.action_range]
        return {
            "architecture": self.architecture.as_dict(),
            "sensor": self.sensor.as_dict(),
            "head": self.head,
            "decision": self.decision,
            "action_range": box,
            "goal_input": None if self.goal_input is None else self.goal_input.as_dict(),
        }

    @property
    def fixed_arrays(self) -> Mapping[str, np.ndarray]:
        place = None if self.goal_input is None else self.goal_input.place
        return self.sensor.arrays if place is None else {**self.sensor.arrays, "goal_place": place}

    @property
    def n_states(self) -> int | None:
        return None if self.sensor.features is None else len(self.sensor.features)

    @property
    def has_memory(self) -> bool:
        return self.architecture.recurrent

    @property
    def plans_once(self) -> bool:
        return False

    @property
    def flops_per_action(self) -> float:
        return self.architecture.flops

    @property
    def seen_starts(self) -> np.ndarray | None:
        return self.starts

    def blank(self, seed: int) -> NetworkAgent:
        """The same network with the weights that training began from (its own seed's, where that is known)."""
        weights = self.architecture.initial(seed if self.seed is None else self.seed)
        return replace(self, weights=weights, steer=None, starts=None, training_goals=None)

    # -- goals -----------------------------------------------------------------------------------------------------

    def slot_writes(self, goal: Goal) -> tuple[SlotWrite, ...]:
        write = None if self.goal_input is None else self.goal_input.write(goal)
        return () if write is None else (write,)

    def slot_candidates(self) -> tuple[SlotWrite, ...]:
        if self.goal_input is None:
            return ()
        return tuple(w for w in map(self.goal_input.write, self.goal_input.goals) if w is not None)

    def aimed(self, goal: Goal) -> NetworkAgent:
        """The same network with a goal written into its slot."""
        if self.goal_input is None:
            raise AgentError("this network has no goal slot to write a goal into")
        return replace(self, goal=self.goal_input.encode(goal))

    # -- forward ---------------------------------------------------------------------------------------------------

    def policy(self, obs: np.ndarray, carry: object = None) -> tuple[np.ndarray, object]:
        import torch

        with torch.no_grad():
            x = torch.from_numpy(np.array(obs, order="C"))  # a copy: torch warns of arrays that are read-only
            scores, after = self.step(self.tensors, x, carry)
        out = scores.double().numpy()
        if self.head == "mean":
            assert self.action_range is not None
            mean = np.clip(out, *self.action_range)
            return np.stack([mean, np.full_like(mean, -np.inf)], axis=1), after
        if self.decision == "greedy":
            probs = np.zeros_like(out)
            probs[np.arange(len(out)), out.argmax(1)] = 1.0
            return probs, after
        shifted = np.exp(out - out.max(1, keepdims=True))
        return shifted / shifted.sum(1, keepdims=True), after

    @property
    def dtype(self) -> torch.dtype:
        """Precision that the network is evaluated in."""
        found: torch.dtype = next(self.architecture.template.parameters()).dtype
        return found

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Parts as tensors, by part name, in the precision of evaluation. `activation` parts at rest are left out."""
        import torch

        out = {}
        for name, part in self.parts.items():
            if part.role != "activation" or part.array.any():
                dtype = torch.int64 if isinstance(part.alphabet, Categorical) else self.dtype
                out[name] = torch.tensor(part.array, dtype=dtype)
        return out

    def step(self, parts: Mapping[str, Tensor], obs: Tensor, carry: object = None) -> tuple[Tensor, object]:
        """Scores `[B, A]` of observations `[B, ...]` as a differentiable function of the parts, and the next memory.

        Args:
            parts: tensors by part name: all weights, the goal where there is a slot, and the vectors to be added.
            obs: int64 `[B]` or real `[B, O]`.
            carry: memory, None at the start of an episode.

        Raises:
            EditError: when a vector that is to be added was never reached by the forward pass.
        """
        x = self.sensor(obs, parts.get(GOAL), dtype=self.dtype)
        if not self.has_memory:
            return call(self.architecture, parts, x, None)
        scores, after = call(self.architecture, parts, x[:, None], carry)
        return scores[:, 0], after

    def scores_at(self, obs: np.ndarray) -> Scores:
        """The network's own scores and their Jacobian in the weights, and in a goal slot that holds real numbers."""
        from retarget.agents.scores import network_scores

        return network_scores(self, obs)

    def scores(self, parts: Mapping[str, Tensor], obs: Tensor, *, steps: int = 1) -> Tensor:
        """Scores `[N, A]` of lessons: rows come in episodes of `steps`, which matters to a network with memory."""
        x = self.sensor(obs, parts.get(GOAL), dtype=self.dtype)
        if not self.has_memory:
            return call(self.architecture, parts, x, None)[0]
        folded = x.reshape(-1, steps, *x.shape[1:])
        return call(self.architecture, parts, folded, None)[0].reshape(len(x), -1)

    # -- units -----------------------------------------------------------------------------------------------------

    def unit_layers(self) -> tuple[UnitLayer, ...]:
        from retarget.agents.ablation import sites

        return tuple(s.layer for s in sites(self.architecture))

    def ablated(self, layer: str, units: Sequence[int], obs: np.ndarray, *, among: np.ndarray) -> Ablation:
        from retarget.agents.ablation import ablated

        return ablated(self, layer, units, obs, among=among)


def call(architecture: Architecture, parts: Mapping[str, Tensor], x: Tensor, carry: object) -> tuple[Tensor, object]:
    """A forward pass with the weights, and the vectors to add, that are given. Every vector must prove that it fired.

    Raises:
        EditError: for a vector whose hook point the forward pass never reached.
    """
    from torch.func import functional_call

    module = architecture.template
    weights = {real: parts[short] for short, real in architecture.names.items()}
    vectors = {h: parts[STEER + h.name] for h in architecture.hooks if STEER + h.name in parts}
    fired: dict[str, int] = dict.fromkeys((h.name for h in vectors), 0)
    handles = [
        module.get_submodule(h.name).register_forward_hook(_adder(h, v, fired), prepend=True)
        for h, v in vectors.items()
    ]
    try:
        scores, after = functional_call(module, weights, (x, carry))
    finally:
        for handle in handles:
            handle.remove()
    for name, times in fired.items():
        if not times:
            raise EditError(f"the vector added at {name!r} never fired: the forward pass does not go through it")
    return scores, after


def _adder(hook: Hook, vector: Tensor, fired: dict[str, int]) -> Callable[..., Tensor]:
    def add(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        fired[hook.name] += 1
        shape = [1] * output.ndim
        shape[hook.axis] = hook.width
        return output + vector.reshape(shape).to(output.dtype)

    return add


def _bad(array: np.ndarray) -> str:
    if array.dtype.kind != "f":
        return f"dtype {array.dtype}"
    return f"{int((~np.isfinite(array)).sum())} of {array.size} that are not"


def record(agent: NetworkAgent, obs: np.ndarray, hooks: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """What flows through hook points for observations `[B, ...]`: float64 arrays by hook name, batch first.

    Raises:
        AgentError: for a hook that the network does not have.
    """
    import torch

    known = [h.name for h in agent.architecture.hooks]
    wanted = known if hooks is None else list(hooks)
    for name in wanted:
        if name not in known:
            raise AgentError(unknown("hook point", name, known))
    seen: dict[str, np.ndarray] = {}

    def keep(name: str) -> Callable[..., None]:
        def look(module: nn.Module, inputs: object, output: Tensor) -> None:
            seen[name] = output.detach().double().numpy().copy()

        return look

    module = agent.architecture.template
    handles = [module.get_submodule(n).register_forward_hook(keep(n)) for n in wanted]
    try:
        with torch.no_grad():
            agent.step(agent.tensors, torch.from_numpy(np.array(obs, order="C")))
    finally:
        for handle in handles:
            handle.remove()
    return seen


def weights_digest(weights: Mapping[str, np.ndarray]) -> str:
    """Content digest of named arrays alone."""
    return digest_of("weights", {}, [(n, np.asarray(w)) for n, w in weights.items()])
