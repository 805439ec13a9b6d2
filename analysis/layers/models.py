"""Networks that can be read and written while they run: language models, the project's policies, any torch module."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retarget.analysis.layers.readable import Batch, Pass, Readable, Reader, Site, Stream, Write
from retarget.analysis.layers.taps import Stop, Taps
from retarget.digest import digest_of
from retarget.errors import LayersError, nearest

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from retarget.agents.neural import Architecture, NetworkAgent
    from retarget.io.language import Precision

_BLOCK = re.compile(r"blocks\.(\d+)\.")
#: What flows at a place within or outside a block, by how its name ends.
_STREAMS: tuple[tuple[str, Stream], ...] = (
    ("ln_final.hook_in", "residual"),
    ("ln_final.hook_out", "final_norm"),
    ("unembed.hook_in", "final_norm"),
    ("ln1_post.hook_out", "attention"),
    ("ln2_post.hook_out", "mlp"),
    (".attn.hook_out", "attention"),
    (".mlp.hook_out", "mlp"),
    (".ln2.hook_in", "residual"),
    ("embed.hook_out", "embedding"),
)


def _unknown(hook: str, names: Sequence[str], sites: Sequence[Site]) -> LayersError:
    shown = [s.hook for s in sites]
    if len(shown) > 8:
        shown = [*shown[:3], "…", *shown[-2:]]
    return LayersError(f"unknown hook {hook!r}{nearest(hook, names)}; places between layers are {', '.join(shown)}")


# ---------------------------------------------------------------------------------------------------- language models


@dataclass(frozen=True, eq=False)
class BridgeModel(Readable):
    """A causal transformer behind TransformerLens's bridge.

    Layer 0 is `blocks.0.hook_in`, what enters the first block (in models that add positions or scale embeddings:
    afterwards); layer l is `blocks.{l-1}.hook_out`; `ln_final.hook_out` comes last. Other names of the same places are
    taken too, `blocks.{l}.hook_in` and `blocks.{l}.hook_resid_pre` among them.

    Attributes:
        bridge: the bridge, in evaluation mode. Its weights are never changed.
        tokenizer: for text, or None.
        title: the label.
        fingerprint: the digest.
    """

    bridge: Any
    tokenizer: Any = None
    title: str = "model"
    fingerprint: str = ""

    @classmethod
    def open(cls, path: str | Path, *, dtype: Precision = "float32", device: str = "cpu") -> BridgeModel:
        """The model of a local folder: see `retarget.io.language.open_language_model`.

        Raises:
            FileError: see there.
        """
        from retarget.io.language import open_language_model

        found = open_language_model(path, dtype=dtype, device=device)
        return cls(found.bridge, found.tokenizer, found.label, found.digest)

    @classmethod
    def of(cls, bridge: Any, *, tokenizer: Any = None, label: str = "model") -> BridgeModel:
        """Any bridge, such as one that `TransformerBridge.boot_native` made."""
        return cls(bridge, tokenizer, label, _digest("bridge", {"kind": type(bridge).__name__}, bridge))

    @property
    def label(self) -> str:
        return self.title

    @property
    def digest(self) -> str:
        return self.fingerprint

    @property
    def n_context(self) -> int:
        """Most tokens of a row."""
        return int(self.bridge.cfg.n_ctx)

    @property
    def n_vocabulary(self) -> int:
        return int(self.bridge.cfg.d_vocab)

    @property
    def n_layers(self) -> int:
        """Number of blocks, L."""
        return int(self.bridge.cfg.n_layers)

    @cached_property
    def _points(self) -> dict[str, Any]:
        """Hook points by every name."""
        return dict(self.bridge.hook_dict)

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        d, names = int(self.bridge.cfg.d_model), self._points
        chain: list[tuple[str, Stream]] = [("blocks.0.hook_in", "embedding")]
        chain += [(f"blocks.{i}.hook_out", "residual") for i in range(self.n_layers)]
        out = [Site(hook, layer, stream, d) for layer, (hook, stream) in enumerate(chain)]
        if "ln_final.hook_out" in names:
            out.append(Site("ln_final.hook_out", self.n_layers, "final_norm", d))
        missing = [s.hook for s in out if s.hook not in names]
        if missing:
            raise LayersError(f"this network has no {missing[0]!r}, so that its residual stream cannot be read")
        return tuple(out)

    def canonical(self, hook: str) -> str:
        """The one name of a place that is used in tables.

        Raises:
            LayersError: for a name that is unknown, with the nearest one.
        """
        point = self._points.get(hook)
        if point is None:
            raise _unknown(hook, list(self._points), self.sites)
        name = str(point.name or hook)
        before = re.fullmatch(r"blocks\.([1-9]\d*)\.hook_in", name)
        return f"blocks.{int(before[1]) - 1}.hook_out" if before else name

    def site(self, hook: str) -> Site:
        name = self.canonical(hook)
        for known in self.sites:
            if known.hook == name:
                return known
        shape = self._shapes.get(name)
        if shape is None:
            raise LayersError(f"the forward pass never goes through {hook!r}; choose another place")
        if len(shape) != 3 or shape[:2] != (1, self._probe):
            raise LayersError(
                f"{hook!r} holds no vector for each token, its shape is {list(shape)} for {self._probe} tokens; "
                "choose a place of the residual stream, or the output of attention or mlp"
            )
        block = _BLOCK.match(name)
        final = name.startswith(("ln_final", "unembed"))
        layer = int(block[1]) if block else self.n_layers if final else 0
        return Site(name, layer, _stream(name), shape[2])

    @property
    def _probe(self) -> int:
        return min(2, self.n_context)

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of what flows at each place, for one row of two tokens."""
        found: dict[str, tuple[int, ...]] = {}

        def note(x: Any, hook: Any) -> None:
            if hasattr(x, "shape"):
                found[hook.name] = tuple(x.shape)

        tokens = np.zeros((1, self._probe), dtype=np.int64)
        points = {p.name: p for p in self._points.values() if p.name}
        self._forward(Batch(tokens, np.ones(tokens.shape, dtype=np.bool_)), [(p, note) for p in points.values()])
        return found

    def run(
        self,
        batch: Batch,
        *,
        read: Mapping[str, Reader] | None = None,
        write: Sequence[Write] = (),
        logits: bool = True,
    ) -> Pass:
        self._check(batch)
        taps = Taps(self, batch, read, write, stop=not logits)
        if not logits and not taps.sites:
            return taps.checked(None)

        def tap(x: Tensor, hook: Any) -> Tensor | None:
            return taps.at(hook.name, x)

        out = self._forward(batch, [(self._points[name], tap) for name in taps.sites])
        return taps.checked(out if logits else None)

    def _check(self, batch: Batch) -> None:
        tokens = np.asarray(batch.inputs)
        if tokens.ndim != 2 or tokens.dtype.kind not in "iu" or tokens.shape != batch.mask.shape:
            raise LayersError(
                f"a language model needs integer tokens [B, T] with a mask of that shape, "
                f"got {tokens.dtype} {tokens.shape}"
            )
        if tokens.shape[1] > self.n_context:
            raise LayersError(f"rows of {tokens.shape[1]} tokens are longer than the context of {self.n_context}")
        if tokens.min() < 0 or tokens.max() >= self.n_vocabulary:
            wrong = int(tokens.max() if tokens.max() >= self.n_vocabulary else tokens.min())
            raise LayersError(
                f"token {wrong} is not in the vocabulary of {self.n_vocabulary}; use the tokenizer of this model"
            )

    def _forward(self, batch: Batch, hooks: Sequence[tuple[Any, Callable[..., Any]]]) -> Tensor | None:
        """Logits, or None where a hook stopped the pass. Hooks are taken away again, whatever happens."""
        import torch

        where = next(self.bridge.parameters()).device
        tokens = torch.tensor(np.asarray(batch.inputs), dtype=torch.int64, device=where)
        mask = torch.tensor(batch.mask, dtype=torch.int64, device=where)
        handles: list[tuple[Any, Any]] = []
        try:
            for point, function in hooks:
                handles.append((point, point.add_hook(function)))
            with torch.no_grad():
                out: Tensor = self.bridge(tokens, attention_mask=mask, use_cache=False)
            return out
        except Stop:
            return None
        finally:
            for point, handle in handles:
                handle.hook.remove()
                point.fwd_hooks = [h for h in point.fwd_hooks if h is not handle]


# ------------------------------------------------------------------------------------------------------- other networks


@dataclass(frozen=True, eq=False)
class _Seen:
    """What an example's forward pass showed of a place: the shape of its output, how often it is passed, its turn."""

    shape: tuple[int, ...]
    times: int
    turn: int


@dataclass(frozen=True, eq=False)
class ModuleModel(Readable):
    """Any torch module, read and written where submodules give their outputs.

    An output `[B, d]` is read as `[B, 1, d]`; images `[B, C, H, W]` as the mean over their cells, `[B, 1, C]` (what is
    written there is written to every cell); `[B, T, d]` as it is. Episodes `[B, T, ...]` for a module without memory
    are run step by step, and read as `[B, T, d]`. Inputs are what the module itself takes: for a policy, observations
    behind its sensor, with its goal: see `retarget.analysis.layers.policies`.

    Attributes:
        module: the module. Its weights are never changed.
        call: from an input tensor to the output `[B, ...]`.
        example: an input of one row, float or integer, as the module takes it.
        places: names of the submodules that are its sites, in order.
        title, fingerprint: label and digest.
        recurrent: whether it takes whole episodes `[B, T, ...]`.
    """

    module: nn.Module
    call: Callable[[Tensor], Any]
    example: np.ndarray
    places: tuple[str, ...]
    title: str = "module"
    fingerprint: str = ""
    recurrent: bool = False

    @classmethod
    def of(
        cls,
        module: nn.Module,
        *,
        sites: Sequence[str],
        example: np.ndarray,
        label: str = "module",
        recurrent: bool = False,
    ) -> ModuleModel:
        """A torch module.

        Args:
            module: called with one tensor; of several outputs the first counts. Put it in evaluation mode yourself.
            sites: names of submodules, as in `named_modules`, in the order in which they are passed.
            example: an input of one row, to see the shapes of what flows: values do not matter.
            label: for tables.
            recurrent: whether it takes episodes `[B, T, ...]` at once.

        Raises:
            LayersError: for names that are unknown, are never passed, or hold no vectors.

        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
        >>> model = ModuleModel.of(net, sites=["0", "1"], example=np.zeros((1, 2)))
        >>> [(s.hook, s.layer, s.width) for s in model.sites]
        [('0', 1, 3), ('1', 2, 3)]
        """
        found = _digest("module", {"kind": type(module).__name__}, module)
        model = cls(module, module, np.asarray(example), tuple(sites), label, found, recurrent)
        assert model.sites is not None  # wrong names are told now, not when it runs
        return model

    @classmethod
    def of_agent(cls, agent: NetworkAgent, *, label: str | None = None) -> ModuleModel:
        """A policy network: MLP, CNN, GRU, VIN or transformer, with the vectors that steer it.

        Sites are its hook points; for a transformer also `bridge.blocks.0.hook_in`, layer 0, and what comes out of
        the final norm. A value iteration network's backups are passed many times, and are no site.

        >>> from retarget.agents.network_for import network_for
        >>> from retarget.envs import make_world
        >>> world = make_world("OpenGrid", size=5)
        >>> [s.hook for s in ModuleModel.of_agent(network_for(world, world.goals[0], hidden=(8, 8))).sites]
        ['hidden.0', 'hidden.1']
        """
        from retarget.agents.neural import call

        architecture = agent.architecture
        names = [h.name for h in architecture.hooks]
        if architecture.kind == "transformer":
            names = ["bridge.blocks.0.hook_in", *names, "bridge.ln_final.hook_out"]
        if architecture.kind == "vin":
            names.remove("backup")

        def run(x: Tensor) -> Tensor:
            return call(architecture, agent.tensors, x, None)[0]

        return cls(
            architecture.template, run, _example(architecture), tuple(names), label or architecture.kind, agent.digest,
            architecture.recurrent,
        )  # fmt: skip

    @property
    def label(self) -> str:
        return self.title

    @property
    def digest(self) -> str:
        return self.fingerprint

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        out = []
        first = 0 if any(_stream(name) == "embedding" for name in self.places) else 1
        for layer, name in enumerate(self.places, first):
            width = self._width(name, name)
            final = _stream(name) == "final_norm"
            out.append(Site(name, layer - final, _stream(name), width))
        return tuple(out)

    def site(self, hook: str) -> Site:
        name = hook
        if name not in self._seen and f"bridge.{hook}" in self._seen:
            name = f"bridge.{hook}"
        if name not in self._seen:
            known = dict(self.module.named_modules())
            if hook and hook in known:
                raise LayersError(f"the forward pass never goes through {hook!r}; choose another place")
            raise _unknown(hook, list(self._seen), self.sites)
        for site in self.sites:
            if site.hook == name:
                return site
        before = [s.layer for s in self.sites if self._seen[s.hook].turn <= self._seen[name].turn]
        return Site(name, max(before, default=0), _stream(name), self._width(name, hook))

    def _width(self, name: str, shown: str) -> int:
        if name not in self._seen:
            known = dict(self.module.named_modules())
            if name in known:
                raise LayersError(f"the forward pass never goes through {shown!r}; choose another place")
            raise LayersError(
                f"unknown submodule {shown!r}{nearest(shown, self._seen)}; it has {', '.join(list(self._seen)[:12])}"
            )
        shape = self._seen[name].shape
        if len(shape) not in (2, 3, 4):
            raise LayersError(f"{shown!r} holds no vectors, its shape is {list(shape)}; choose another place")
        return shape[1] if len(shape) == 4 else shape[-1]

    @cached_property
    def _seen(self) -> dict[str, _Seen]:
        """Every submodule that an example passes, by name."""
        import torch

        found: dict[str, _Seen] = {}

        def noting(name: str) -> Callable[..., None]:
            def note(module: object, inputs: object, output: object) -> None:
                x = _first(output)
                if x is not None:
                    before = found.get(name)
                    found[name] = _Seen(tuple(x.shape), 1 + (before.times if before else 0), len(found))

            return note

        handles = [m.register_forward_hook(noting(n)) for n, m in self.module.named_modules() if n]
        try:
            with torch.no_grad():
                self.call(self._tensor(self.example))
        finally:
            for handle in handles:
                handle.remove()
        return found

    def _tensor(self, inputs: np.ndarray) -> Tensor:
        import torch

        weight = next(iter(self.module.parameters()), None)
        device = "cpu" if weight is None else weight.device
        if np.asarray(self.example).dtype.kind in "iu":
            return torch.tensor(inputs, dtype=torch.int64, device=device)
        return torch.tensor(inputs, dtype=torch.float32 if weight is None else weight.dtype, device=device)

    def run(
        self,
        batch: Batch,
        *,
        read: Mapping[str, Reader] | None = None,
        write: Sequence[Write] = (),
        logits: bool = True,
    ) -> Pass:
        import torch

        taps = Taps(self, batch, read, write, stop=False)
        x, steps = self._folded(batch)
        handles = []
        try:
            for name in taps.sites:
                handles.append(
                    self.module.get_submodule(name).register_forward_hook(_module_tap(taps, name, batch, steps))
                )
            with torch.no_grad():
                out = _first(self.call(x))
        finally:
            for handle in handles:
                handle.remove()
        if out is not None and (steps is not None or out.ndim == 2):
            out = out.reshape(batch.n, -1, *out.shape[1:])
        return taps.checked(out if logits else None)

    def _folded(self, batch: Batch) -> tuple[Tensor, int | None]:
        """The input as the module takes it, and the number of steps where episodes were cut into them."""
        inputs, base = np.asarray(batch.inputs), np.asarray(self.example).shape
        if self.recurrent and inputs.ndim == len(base) - 1:
            inputs = inputs[:, None]
        steps = None
        if not self.recurrent and inputs.ndim == len(base) + 1:
            steps = inputs.shape[1]
            inputs = inputs.reshape(-1, *inputs.shape[2:])
        if inputs.ndim != len(base) or (inputs.shape[-1] != base[-1] and inputs.dtype.kind == "f"):
            raise LayersError(
                f"inputs of shape {np.shape(batch.inputs)} do not fit a network that takes {('B', *base[1:])}"
            )
        return self._tensor(inputs), steps


def _module_tap(taps: Taps, name: str, batch: Batch, steps: int | None) -> Callable[..., Any]:
    """A forward hook that shows an output as `[B, T, ..., d]`."""

    def tap(module: object, inputs: object, output: Any) -> Any:
        x = _first(output)
        if x is None:
            return None
        image = x.ndim == 4
        seen = x.movedim(1, -1) if image else x
        if image or x.ndim == 2 or steps is not None:
            seen = seen.reshape(batch.n, steps or 1, *seen.shape[1:])
        new = taps.at(name, seen)
        if new is None:
            return None
        flat = new.reshape(x.movedim(1, -1).shape).movedim(-1, 1) if image else new.reshape(x.shape)
        return flat if output is x else (flat, *output[1:])

    return tap


def _first(output: object) -> Tensor | None:
    """The tensor of an output, or the first of several."""
    import torch

    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    return output if isinstance(output, torch.Tensor) else None


def _stream(name: str) -> Stream:
    """What flows at a place of a transformer, by its name; `other` for any other network."""
    if name.endswith("blocks.0.hook_in"):
        return "embedding"
    if re.search(r"blocks\.\d+\.hook_(in|out)$", name):
        return "residual"
    return next((s for end, s in _STREAMS if name.endswith(end)), "other")


def _example(architecture: Architecture) -> np.ndarray:
    """An input of one row for a policy network."""
    o: dict[str, Any] = dict(architecture.options)
    shapes = {
        "mlp": ("inputs",),
        "gru": ("inputs",),
        "cnn": ("channels", "height", "width"),
        "vin": ("channels", "height", "width"),
        "transformer": ("n_tokens",),
    }
    shape = tuple(int(o[k]) for k in shapes[architecture.kind])
    kind = np.int64 if architecture.kind == "transformer" else np.float64
    return np.zeros((1, 1, *shape) if architecture.recurrent else (1, *shape), dtype=kind)


def _digest(kind: str, config: Mapping[str, object], module: Any) -> str:
    """Over all weights, and the buffers that are saved with them."""
    return digest_of(kind, config, ((n, _array(t)) for n, t in sorted(module.state_dict().items())))


def _array(tensor: torch.Tensor) -> np.ndarray:
    import torch

    tensor = tensor.detach().cpu()
    # NumPy has no bfloat16; float32 holds each of its numbers
    return np.asarray((tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy())
