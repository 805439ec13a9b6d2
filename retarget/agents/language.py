"""Language models as agents: their weights are parts, and a direction can be taken out of them as an edit with bits."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from retarget.agent import Agent, Layout, Part, PartLayout, Real, own
from retarget.agents.neural import STEER, NetworkAgent
from retarget.digest import digest_of
from retarget.edit import Dense, Edit, LowRank, Patch
from retarget.errors import AgentError, EditError
from retarget.rng import word

if TYPE_CHECKING:
    from torch import Tensor, nn

_INFIX = "._original_component"
#: Entries of a configuration that do not change what the network computes.
_IDLE = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "architectures")


class _Parts(Mapping[str, Part]):
    """Parts that are made when they are asked for, in float64, and not kept: a model may be larger than the memory."""

    def __init__(self, agent: LanguageModel) -> None:
        self._agent = agent

    def __getitem__(self, name: str) -> Part:
        return Part(name, "weight", self._agent.array(name), Real())

    def __iter__(self) -> Iterator[str]:
        return iter(self._agent.paths)

    def __len__(self) -> int:
        return len(self._agent.paths)

    def __contains__(self, name: object) -> bool:
        return name in self._agent.paths


@dataclass(frozen=True, eq=False)
class LanguageModel(Agent):
    """A causal language model: observations are tokens, actions are next tokens.

    Parts are its weights by name (role weight), made as they are asked for. Weights that are one and the same tensor
    (an unembedding that is tied to the embedding, see `tied`) are one part, under the first of their names. The
    network is shared with whoever made the agent: its weights must not be changed. Edited parts are kept beside it, in
    float64, and take the network's own precision when it runs.

    Attributes:
        bridge: TransformerLens's bridge around a causal model of `transformers`, in evaluation mode.
        arrays: parts that differ from the network's own, by name.
        kind: for the digest.
    """

    bridge: Any
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    kind: str = "language_model"

    def __post_init__(self) -> None:
        object.__setattr__(self, "arrays", {n: own(np.asarray(a, dtype=np.float64)) for n, a in self.arrays.items()})
        for name, array in self.arrays.items():
            if not np.isfinite(array).all():
                raise AgentError(f"weight {name!r} would hold a value that is not finite")

    @classmethod
    def of(cls, model: Any) -> LanguageModel:
        """The agent of a bridge, or of anything that has one as `bridge`, such as a language model that was opened.

        Raises:
            AgentError: where there is no causal model of `transformers` behind it.
        """
        bridge = getattr(model, "bridge", model)
        network = getattr(bridge, "original_model", None)
        if network is None or not hasattr(getattr(network, "config", None), "to_json_string"):
            raise AgentError(
                f"a {type(bridge).__name__} holds no language model of transformers; open a folder of one first "
                "(a transformer policy is an agent already)"
            )
        return cls(bridge)

    # -- the network's names ---------------------------------------------------------------------------------------

    @property
    def network(self) -> nn.Module:
        """The model of `transformers` within the bridge."""
        return cast("nn.Module", self.bridge.original_model)

    @cached_property
    def paths(self) -> Mapping[str, tuple[str, ...]]:
        """By part: where the network keeps it; several places where weights are tied.

        The bridge reaches one module by several names, of which one is taken: a weight that is swapped twice in one
        place would not be put back. What attention no longer reads (queries, keys and values in one matrix, which
        the bridge has split) is no part.
        """
        modules = dict(self.network.named_modules(remove_duplicate=False))
        places: dict[int, dict[tuple[int, str], str]] = {}
        for path, weight in self.network.named_parameters(remove_duplicate=False):
            owner, _, attribute = path.rpartition(".")
            places.setdefault(id(weight), {}).setdefault((id(modules[owner]), attribute), path)
        found = {next(iter(p.values())).replace(_INFIX, ""): tuple(p.values()) for p in places.values()}
        return {n: p for n, p in found.items() if not _superseded(n, found)}

    @cached_property
    def weights(self) -> Mapping[str, Tensor]:
        """The network's own tensors, by part."""
        found = dict(self.network.named_parameters(remove_duplicate=False))
        return {name: found[paths[0]].detach() for name, paths in self.paths.items()}

    @property
    def tied(self) -> bool:
        """Whether one part is the embedding and the unembedding: an edit of one is then an edit of the other."""
        return any(len(p) > 1 for p in self.paths.values())

    @property
    def architecture(self) -> str:
        """Name of the network's class, e.g. `LlamaForCausalLM`."""
        return type(self.network).__name__

    def array(self, name: str) -> np.ndarray:
        """A part's numbers, float64.

        Raises:
            KeyError: for a part that there is not.
        """
        if name in self.arrays:
            return self.arrays[name]
        found: np.ndarray = self.weights[name].double().cpu().numpy()
        return found

    # -- what the vocabulary asks for ------------------------------------------------------------------------------

    @cached_property
    def parts(self) -> Mapping[str, Part]:
        return _Parts(self)

    @cached_property
    def layout(self) -> Layout:
        return tuple(PartLayout(name, tuple(t.shape), Real()) for name, t in self.weights.items())

    @cached_property
    def digest(self) -> str:
        """As of any agent; parts are read one at a time."""
        return digest_of(self.kind, self.config, ((f"part:weight:{n}", self.array(n)) for n in self.paths))

    @property
    def config(self) -> Mapping[str, object]:
        told = json.loads(cast("Any", self.network).config.to_json_string(use_diff=False))
        return {"architecture": self.architecture, "config": {k: v for k, v in told.items() if k not in _IDLE}}

    def with_arrays(self, arrays: Mapping[str, np.ndarray]) -> LanguageModel:
        shapes = {p.name: p.shape for p in self.layout}
        for name, array in arrays.items():
            if name not in shapes:
                raise EditError(f"agent {self.kind!r} has no part {name!r}; see its parts")
            if np.shape(array) != shapes[name]:
                raise EditError(f"part {name!r} has shape {shapes[name]}, the new array {np.shape(array)}")
        return replace(self, arrays={**self.arrays, **arrays})

    @property
    def plans_once(self) -> bool:
        return False

    @property
    def flops_per_action(self) -> float:
        """For one token of context: two for each weight of a matrix that is multiplied."""
        read = [t.numel() for n, t in self.weights.items() if t.ndim == 2 and not _is_embedding(self, n)]
        return 2.0 * sum(read)

    def blank(self, seed: int) -> LanguageModel:
        """The same architecture with fresh weights, as `transformers` initialises them."""
        import torch
        from transformer_lens.model_bridge import TransformerBridge
        from transformers import AutoModelForCausalLM

        like = next(self.network.parameters())
        # a copy of the settings belongs to no bridge yet
        adapter = type(self.bridge.adapter)(copy.deepcopy(self.bridge.cfg))
        # both the network and its bridge draw from torch's global generator
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(word(seed, "language_model", self.architecture))
            config = cast("Any", self.network).config
            fresh = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
            fresh = fresh.to(device=like.device, dtype=like.dtype).eval()
            return LanguageModel(TransformerBridge(fresh, adapter, self.bridge.tokenizer).eval())

    # -- forward ---------------------------------------------------------------------------------------------------

    @cached_property
    def _swapped(self) -> dict[str, Tensor]:
        """Edited weights as the network takes them, by place."""
        import torch

        out: dict[str, Tensor] = {}
        for name, array in self.arrays.items():
            like = self.weights[name]
            tensor = torch.tensor(array, dtype=like.dtype, device=like.device)
            out |= dict.fromkeys(self.paths[name], tensor)
        return out

    def logits(self, tokens: np.ndarray, mask: np.ndarray) -> Tensor:
        """Scores of the next token, after each token.

        Args:
            tokens: int64 `[B, T]`.
            mask: bool `[B, T]`, True where there is a token; rows are padded on the right.

        Returns:
            `[B, T, V]` on the network's device.
        """
        import torch
        from torch.func import functional_call

        device = next(self.network.parameters()).device
        given = torch.tensor(np.asarray(tokens), dtype=torch.int64, device=device)
        attend = torch.tensor(np.asarray(mask), dtype=torch.int64, device=device)
        with torch.no_grad():
            # ties are told by `paths`: torch's own would find one module under many names
            out = functional_call(
                self.network, self._swapped, (given,), {"attention_mask": attend, "use_cache": False}, tie_weights=False
            )
        found: Tensor = out.logits
        return found

    def policy(self, obs: np.ndarray, carry: object = None) -> tuple[np.ndarray, object]:
        """Distributions over the next token, after the last token of each row.

        Args:
            obs: int64 `[B, T]` tokens; rows that are shorter are filled up on the right with -1 (any number below 0).
            carry: not used.

        Returns:
            float64 `[B, V]`, and None.

        Raises:
            AgentError: for rows without tokens, tokens after padding or beyond the vocabulary.
        """
        tokens = np.asarray(obs)
        if tokens.ndim != 2 or tokens.dtype.kind not in "iu" or not tokens.size:
            raise AgentError(f"a language model sees integer tokens [B, T], got {tokens.dtype} {tokens.shape}")
        mask = tokens >= 0
        if not mask[:, 0].all() or (np.diff(mask.astype(np.int8), axis=1) > 0).any():
            raise AgentError("rows of tokens must begin with a token and be filled up with -1 on the right only")
        size = int(self.bridge.cfg.d_vocab)
        if tokens.max() >= size:
            raise AgentError(f"token {int(tokens.max())} is not in the vocabulary of {size}")
        out = self.logits(np.where(mask, tokens, 0), mask)
        last = out[np.arange(len(tokens)), mask.sum(1) - 1].double().cpu().numpy()
        odds = np.exp(last - last.max(1, keepdims=True))
        return odds / odds.sum(1, keepdims=True), None


def _superseded(name: str, names: Mapping[str, object]) -> bool:
    """Whether the bridge reads other parts in this one's place."""
    return ".qkv." in name and name.replace(".qkv.", ".q.") in names


def _module_of(agent: LanguageModel, name: str) -> nn.Module:
    return agent.network.get_submodule(agent.paths[name][0].rpartition(".")[0])


def _is_embedding(agent: LanguageModel, name: str) -> bool:
    from torch import nn

    # an embedding that is tied is multiplied at the end
    return isinstance(_module_of(agent, name), nn.Embedding) and len(agent.paths[name]) == 1


# ------------------------------------------------------------------------------------------- what writes to the stream


@dataclass(frozen=True)
class StreamWriter:
    """A part whose products are added to the residual stream.

    Attributes:
        part: its name.
        axis: the axis of its array that runs along the stream's coordinates.
    """

    part: str
    axis: int


_LLAMA = (
    r"model\.embed_tokens\.weight",
    r"model\.layers\.\d+\.self_attn\.o_proj\.(weight|bias)",
    r"model\.layers\.\d+\.mlp\.down_proj\.(weight|bias)",
)
_GPT2 = (
    r"transformer\.(wte|wpe)\.weight",
    r"transformer\.h\.\d+\.attn\.(o|c_proj)\.(weight|bias)",
    r"transformer\.h\.\d+\.mlp\.c_proj\.(weight|bias)",
)
#: Names of the weights that write to the residual stream with nothing between them and it, by architecture.
WRITERS: dict[str, tuple[str, ...]] = {
    "LlamaForCausalLM": _LLAMA,
    "MistralForCausalLM": _LLAMA,
    "Qwen2ForCausalLM": _LLAMA,
    "Qwen3ForCausalLM": _LLAMA,
    "GemmaForCausalLM": _LLAMA,
    "GPT2LMHeadModel": _GPT2,
}
_POLICY = (
    r"bridge\.(embed|pos_embed)\.weight",
    r"bridge\.blocks\.\d+\.attn\.o\.(weight|bias)",
    r"bridge\.blocks\.\d+\.mlp\.fc_out\.(weight|bias)",
    re.escape(STEER) + r"bridge\.blocks\.\d+\.hook_out",
)


def stream_writers(agent: Agent) -> tuple[StreamWriter, ...]:
    """The parts that write to an agent's residual stream: embeddings, outputs of attention and of MLPs, their biases.

    For the project's transformer policies also the vectors that are added between blocks.

    Raises:
        AgentError: for an architecture of which it is not known (in some, a norm comes between), or whose weights are
            not those that it should have.

    >>> from retarget.agents.neural import Architecture, NetworkAgent
    >>> net = Architecture.of("transformer", n_tokens=1, vocabulary=3, outputs=2, d_model=4, n_heads=1, n_layers=1)
    >>> [(w.part, w.axis) for w in stream_writers(NetworkAgent(net, net.initial(0)))][:3]
    [('bridge.embed.weight', 1), ('bridge.pos_embed.weight', 1), ('bridge.blocks.0.attn.o.weight', 0)]
    """
    if isinstance(agent, LanguageModel):
        if agent.architecture not in WRITERS:
            raise AgentError(
                f"which weights of a {agent.architecture} write to its residual stream is not known here; known are "
                f"{', '.join(WRITERS)}: ablate it while it runs instead"
            )
        found = _matching(agent, WRITERS[agent.architecture])
        axes = {name: _axis(agent, name) for name in found}
        layers, width = int(agent.bridge.cfg.n_layers), int(agent.bridge.cfg.d_model)
    elif isinstance(agent, NetworkAgent) and agent.architecture.kind == "transformer":
        found = _matching(agent, _POLICY)
        axes = {name: int("embed" in name) for name in found}
        layers, width = len(agent.architecture.hooks), agent.architecture.hooks[0].width
    else:
        raise AgentError(f"an agent of kind {agent.kind!r} has no residual stream to take a direction out of")
    shapes = {p.name: p.shape for p in agent.layout}
    matrices = [name for name in found if len(shapes[name]) == 2 and "embed" not in name and "wte" not in name]
    blocks = [name for name in matrices if "wpe" not in name]
    wrong = [name for name in found if shapes[name][axes[name]] != width]
    if len(blocks) != 2 * layers or wrong:
        raise AgentError(
            f"of {layers} blocks of width {width}, {len(blocks)} matrices write to the stream, and "
            f"{wrong[:1] or 'none'} of another width; this is not the {agent.kind} that it is taken for"
        )
    return tuple(StreamWriter(name, axes[name]) for name in found)


def _matching(agent: Agent, patterns: tuple[str, ...]) -> list[str]:
    return [name for name in agent.parts if any(re.fullmatch(p, name) for p in patterns)]


def _axis(agent: LanguageModel, name: str) -> int:
    """Along which axis of a weight the stream runs: that depends on the kind of module which holds it."""
    from torch import nn

    if agent.weights[name].ndim == 1:
        return 0
    module = _module_of(agent, name)
    if isinstance(module, nn.Embedding) or type(module).__name__ == "Conv1D":  # rows are tokens, or inputs
        return 1
    if isinstance(module, nn.Linear):
        return 0
    raise AgentError(f"weight {name!r} belongs to a {type(module).__name__}, whose outputs are not known here")


def orthogonalise(agent: Agent, direction: np.ndarray, *, precision: Literal["float32", "float64"] = "float64") -> Edit:
    """The edit that makes an agent unable to write a direction u to its residual stream.

    After Arditi et al. 2024, section 4.1: `W <- W - u u^T W` for every matrix that writes to the stream, a patch of
    rank one each, and `b <- b - u u^T b` for biases. The edited agent computes what the agent computes while u is taken
    out of its stream at every place and token. Where the embedding is the unembedding too (`LanguageModel.tied`), the
    scores lose their part along u as well, which is as if u were taken out behind the final norm too.

    Its length, `retarget.code.edit_bits(edit, agent.layout)`, is an upper bound: u is written down with each matrix.

    Args:
        agent: a `LanguageModel`, or a transformer policy.
        direction: real `[d]`, of any length but 0.
        precision: of the patches' numbers. `float32` is half as long, and exact to rounding in networks of that
            precision.

    Raises:
        EditError: for a direction of another width, that is zero or not finite.
        AgentError: see `stream_writers`.
    """
    writers = stream_writers(agent)
    shapes = {p.name: p.shape for p in agent.layout}
    width = shapes[writers[0].part][writers[0].axis]
    u = np.asarray(direction, dtype=np.float64)
    if u.shape != (width,) or not np.isfinite(u).all() or not u.any():
        raise EditError(f"a direction to take out must be finite, not zero, of shape ({width},); got shape {u.shape}")
    u = (u / np.linalg.norm(u)).astype(precision).astype(np.float64)
    patches: list[Patch] = []
    for writer in writers:
        array = agent.parts[writer.part].array
        if array.ndim == 1:
            new = (array - u * (u @ array) / (u @ u)).astype(precision).astype(np.float64)
            if (new != array).any():
                patches.append(Dense(writer.part, new))
            continue
        part = np.moveaxis(array, writer.axis, 0)
        along = (u @ part / (u @ u)).astype(precision).astype(np.float64)
        if along.any():
            pair = (-u[:, None], along[:, None])
            patches.append(LowRank(writer.part, *(pair if writer.axis == 0 else pair[::-1])))
    return Edit.of(agent, *patches)
