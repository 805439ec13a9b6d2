"""Taking units out of a network, one at a time, and telling the direct effect of that from the total one.

A unit is replaced by its mean over stated observations (at each place of an image or token of its own). The total
effect on the scores is computed anew downstream; the direct one goes along a path that is held as it was. Where the
total effect is the smaller one, what comes after made up for the loss: self-repair (McGrath et al. 2023, "The Hydra
effect", arXiv 2307.15771; Rushing and Nanda 2024, "Explorations of self-repair in language models", arXiv 2402.15390).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from retarget.errors import AgentError, unknown
from retarget.units import Ablation, UnitLayer, UnvaryingError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from retarget.agents.neural import Architecture, NetworkAgent

#: Rows of one forward pass at most.
ROWS = 4096
_NORM, _UNEMBED = "bridge.ln_final", "bridge.unembed"


@dataclass(frozen=True)
class Site:
    """Where the units of a layer are: an axis of what a submodule gives out, or is given."""

    layer: UnitLayer
    module: str
    axis: int = -1
    width: int = 1
    given: bool = False

    def cells(self, unit: int, ndim: int) -> tuple[slice, ...]:
        """Index of one unit in an activation `[B, ...]`."""
        out = [slice(None)] * ndim
        out[self.axis] = slice(unit * self.width, (unit + 1) * self.width)
        return tuple(out)


def sites(architecture: Architecture) -> tuple[Site, ...]:
    """Layers of units of an architecture, from the input to the scores."""
    hooks = {h.name: h for h in architecture.hooks}
    if architecture.kind == "transformer":
        return _transformer_sites(architecture)
    what = {"cnn": "channel", "gru": "memory unit"}.get(architecture.kind, "hidden unit")
    # one call of a module in a forward pass: what is computed again and again has no one activation to replace
    names = [n for n in hooks if not (architecture.kind == "vin" and n == "backup")]
    out = []
    for i, name in enumerate(names):
        path = "readout" if i == len(names) - 1 else "gates"
        kind = "channel" if hooks[name].axis == 1 else "hidden unit" if what == "channel" else what
        out.append(Site(UnitLayer(name, kind, hooks[name].width, path), name, hooks[name].axis))
    return tuple(out)


def _transformer_sites(architecture: Architecture) -> tuple[Site, ...]:
    bridge: Any = architecture.template.get_submodule("bridge")
    heads, width = int(bridge.cfg.n_heads), int(bridge.cfg.d_head)
    out = []
    for i in range(int(bridge.cfg.n_layers)):
        block = f"bridge.blocks.{i}"
        inside = "_original_component."
        attention = f"{block}.{inside}attn.{inside}o"
        mlp = f"{block}.{inside}mlp.{inside}fc_out"
        neurons = int(bridge.cfg.d_mlp)
        out += [
            Site(UnitLayer(f"blocks.{i}.heads", "head", heads, "residual"), attention, width=width, given=True),
            Site(UnitLayer(f"blocks.{i}.neurons", "neuron", neurons, "residual"), mlp, given=True),
        ]
    return tuple(out)


def ablated(agent: NetworkAgent, layer: str, units: Sequence[int], obs: np.ndarray, *, among: np.ndarray) -> Ablation:
    """See `retarget.units.HasUnits.ablated`."""
    known = {s.layer.name: s for s in sites(agent.architecture)}
    if layer not in known:
        raise AgentError(unknown("layer of units", layer, known))
    site = known[layer]
    odd = [u for u in units if not 0 <= u < site.layer.n_units]
    if odd:
        raise AgentError(f"layer {layer!r} has units 0 to {site.layer.n_units - 1}, got {odd[0]}")
    if np.shape(among) != (np.asarray(obs).size if agent.has_memory else len(obs),) or not np.any(among):
        raise AgentError("means need a mask over the observations with at least one True")
    if agent.has_memory:
        return _of_memory(agent, site, list(units), obs, among)
    return _of_layer(agent, site, list(units), obs, among)


def distribution(agent: NetworkAgent, scores: np.ndarray) -> np.ndarray:
    """Action probabilities of scores `[..., A]`, as the agent's policy makes them."""
    if agent.decision == "greedy":
        return np.asarray(np.eye(scores.shape[-1])[scores.argmax(-1)])
    shifted = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(-1, keepdims=True))


def contrast(scores: np.ndarray) -> np.ndarray:
    """Float64 `[R, A]`: 1 on the best action, -1 on the runner-up, so that margins are products with scores."""
    out = np.zeros_like(scores)
    order = np.argsort(-scores, axis=1, kind="stable")
    rows = np.arange(len(scores))
    if scores.shape[1] > 1:
        out[rows, order[:, 1]] = -1.0
        out[rows, order[:, 0]] = 1.0
    return out


@dataclass(eq=False)
class _Tap:
    """A hook at a site, which counts its calls: what flows there is kept, and may be replaced."""

    site: Site
    write: Callable[[Tensor], Tensor]
    seen: list[Tensor] = field(default_factory=list)

    @contextmanager
    def on(self, module: nn.Module) -> Iterator[_Tap]:
        target = module.get_submodule(self.site.module)

        def give_out(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
            return self._pass(output)

        def given(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (self._pass(inputs[0]), *inputs[1:])

        # the last hook in the row: vectors that are added there are added before
        handle = target.register_forward_pre_hook(given) if self.site.given else target.register_forward_hook(give_out)
        try:
            yield self
        finally:
            handle.remove()
        if len(self.seen) != 1:
            raise AgentError(f"the ablation at {self.site.module!r} fired {len(self.seen)} times in one pass, not once")

    def _pass(self, activation: Tensor) -> Tensor:
        written = self.write(activation)
        self.seen.append(written)
        return written


def _of_layer(agent: NetworkAgent, site: Site, units: list[int], obs: np.ndarray, among: np.ndarray) -> Ablation:
    import torch

    x = torch.from_numpy(np.array(obs, order="C"))
    module, parts = agent.architecture.template, agent.tensors
    with _Tap(site, lambda h: h.detach().requires_grad_(True)).on(module) as tap, torch.enable_grad():
        scores = agent.step(parts, x)[0]
    clean = scores.detach().double().numpy()
    pair = contrast(clean)
    slope = None
    if site.layer.path != "residual":
        slope = torch.autograd.grad((scores * torch.from_numpy(pair).to(scores.dtype)).sum(), tap.seen[0])[0]
    h = tap.seen[0].detach()
    mean = h[torch.from_numpy(np.asarray(among))].mean(0, keepdim=True)
    delta = h - mean
    if slope is None:
        slope = _residual_slope(agent, site, x, h, pair)
    direct = _per_unit(site, delta * slope, units).double().numpy()
    change = np.array([float(delta[site.cells(u, h.ndim)].abs().max()) for u in units])
    after = np.concatenate([_without(agent, site, part, x, mean) for part in _chunks(units, len(x))])
    _check_change(site, change)
    margin = (clean * pair).sum(1)
    total = margin - (after * pair).sum(-1)
    return Ablation(margin, total, direct, distribution(agent, after), distribution(agent, clean), change)


def _chunks(units: list[int], rows: int) -> Iterator[list[int]]:
    size = max(1, ROWS // max(1, rows))
    return (units[i : i + size] for i in range(0, len(units), size))


def _per_unit(site: Site, cells: Tensor, units: list[int]) -> Tensor:
    """Sum over the cells of each unit: `[U, R]`."""
    import torch

    return torch.stack([cells[site.cells(u, cells.ndim)].flatten(1).sum(1) for u in units])


def _without(agent: NetworkAgent, site: Site, units: list[int], x: Tensor, mean: Tensor) -> np.ndarray:
    """Scores `[U, R, A]` without each unit, all in one forward pass."""
    import torch

    rows = len(x)

    def replace(h: Tensor) -> Tensor:
        out = h.clone()
        for i, u in enumerate(units):
            cells = site.cells(u, h.ndim)
            out[i * rows : (i + 1) * rows][cells] = mean[cells]
        return out

    with _Tap(site, replace).on(agent.architecture.template), torch.no_grad():
        scores = agent.step(agent.tensors, x.repeat(len(units), *[1] * (x.ndim - 1)))[0]
    return np.asarray(scores.double().numpy().reshape(len(units), rows, -1))


def _residual_slope(agent: NetworkAgent, site: Site, x: Tensor, h: Tensor, pair: np.ndarray) -> Tensor:
    """How the margin moves with what the units add to the residual stream at the last token, the final norm's mean
    taken off and its scale held: `[R, T, width]`, zero at earlier tokens."""
    import torch

    at_norm = Site(site.layer, _NORM, given=True)
    with _Tap(at_norm, lambda r: r).on(agent.architecture.template) as tap, torch.no_grad():
        agent.step(agent.tensors, x)
    last = tap.seen[0][:, -1]
    norm: Any = agent.architecture.template.get_submodule(f"{_NORM}._original_component")
    scale = (last.var(-1, unbiased=False, keepdim=True) + float(norm.eps)).sqrt()
    weights = agent.tensors
    wanted = torch.from_numpy(pair).to(last.dtype) @ weights[f"{_UNEMBED}.weight"] * weights[f"{_NORM}.weight"]
    into = (wanted - wanted.mean(-1, keepdim=True)) / scale
    reader = site.module.replace("._original_component", "")
    slope = torch.zeros_like(h)
    slope[:, -1] = into @ weights[f"{reader}.weight"]
    return slope


def _of_memory(agent: NetworkAgent, site: Site, units: list[int], obs: np.ndarray, among: np.ndarray) -> Ablation:
    """Units of a memory: what reads one (gates and readout) reads its mean instead, which is a change of weights."""
    import torch

    steps = obs.shape[1]
    x = torch.from_numpy(np.array(obs, order="C").reshape(-1, *obs.shape[2:]))
    with _Tap(site, lambda h: h).on(agent.architecture.template) as tap, torch.no_grad():
        clean = agent.scores(agent.tensors, x, steps=steps).double().numpy()
    h = tap.seen[0].double().numpy().reshape(len(x), -1)
    mean = h[np.asarray(among)].mean(0)
    pair = contrast(clean)
    delta = h - mean
    direct = (delta * (pair @ agent.weights["out.weight"])).T[units]
    agents = tuple(_forgetting(agent, u, mean[u]) for u in units)
    with torch.no_grad():
        after = np.stack([a.scores(a.tensors, x, steps=steps).double().numpy() for a in agents])
    margin = (clean * pair).sum(1)
    total = margin - (after * pair).sum(-1)
    change = np.abs(delta).max(0)[units]
    _check_change(site, change)
    return Ablation(margin, total, direct, distribution(agent, after), distribution(agent, clean), change, agents)


def _check_change(site: Site, change: np.ndarray) -> None:
    if not (change > 0).any():
        raise UnvaryingError(f"no unit asked for in layer {site.layer.name!r} varies over these observations")


def _forgetting(agent: NetworkAgent, unit: int, mean: float) -> NetworkAgent:
    # a vector that steers the memory is added for the readout alone: the gates never see it
    steered = float(agent.parts["steer:memory"].array[unit])
    arrays: dict[str, np.ndarray] = {}
    for name, read in (("gates_memory", mean - steered), ("out", mean)):
        weight, bias = agent.weights[f"{name}.weight"].copy(), agent.weights[f"{name}.bias"].copy()
        bias += weight[:, unit] * read
        weight[:, unit] = 0.0
        arrays |= {f"{name}.weight": weight, f"{name}.bias": bias}
    return agent.with_arrays(arrays)
