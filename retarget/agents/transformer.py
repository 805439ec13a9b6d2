"""A small transformer as a policy, on TransformerLens's bridge, so that its tools read and steer it.

TransformerLens is imported when the first one is built: that takes seconds, which nobody else should wait for.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from retarget.agents.neural import Hook
from retarget.errors import AgentError

#: Activations between the layers of a block.
ACTIVATIONS = ("relu", "gelu", "silu")


class Transformer(nn.Module):
    """A causal transformer (Vaswani et al. 2017): int64 tokens `[B, T]` to `[B, outputs]`.

    Layer norms come before the sublayers and once more at the end.

    The action's scores are read at the last token. The unembedding has a row for each action and no other. Two things
    in it are without effect on any output, by its equations: the keys' bias (it adds the same to all scores of a
    query), and, where there is but one token, queries and keys altogether. Edits there cost bits and buy nothing.

    Operations: a layer takes 8 · T · d_model² (queries, keys, values, output) + 4 · T² · d_model (scores, weighted sum)
    + 4 · T · d_model · d_mlp; and 2 · T · d_model · outputs at the end.

    Args:
        n_tokens: T.
        vocabulary: number of tokens.
        outputs: numbers it returns.
        d_model: width of the residual stream.
        n_heads: heads a layer; d_model is a multiple of it.
        n_layers: blocks.
        d_mlp: width of the hidden layer of a block; None for 4 d_model.
        act: `relu`, `gelu` or `silu`.
    """

    recurrent = False

    def __init__(
        self,
        *,
        n_tokens: int,
        vocabulary: int,
        outputs: int,
        d_model: int = 32,
        n_heads: int = 2,
        n_layers: int = 2,
        d_mlp: int | None = None,
        act: str = "relu",
    ) -> None:
        from transformer_lens.config import TransformerBridgeConfig
        from transformer_lens.model_bridge import TransformerBridge

        super().__init__()
        if n_heads < 1 or d_model < 1 or d_model % n_heads:
            raise AgentError(f"d_model must be a multiple of n_heads, got {d_model} and {n_heads}")
        if act not in ACTIVATIONS:
            raise AgentError(f"unknown activation {act!r}; known: {', '.join(ACTIVATIONS)}")
        wide = 4 * d_model if d_mlp is None else d_mlp
        # without a seed of its own, weights come from torch's generator, which `Architecture.build` has seeded
        config = TransformerBridgeConfig(
            d_model=d_model,
            d_head=d_model // n_heads,
            n_heads=n_heads,
            n_layers=n_layers,
            n_ctx=n_tokens,
            d_vocab=vocabulary,
            d_vocab_out=outputs,
            d_mlp=wide,
            act_fn=act,
        )
        self.bridge = TransformerBridge.boot_native(config)  # type: ignore[attr-defined]
        self.masks_at = torch.device("cpu")
        self.masks: list[tuple[nn.Module, str, Tensor]] = []  # as they were made
        # a block's output has several names in the bridge: this is the one that is always there
        self.hooks = tuple(Hook(f"bridge.blocks.{i}.hook_out", d_model) for i in range(n_layers))
        layer = 8 * n_tokens * d_model**2 + 4 * n_tokens**2 * d_model + 4 * n_tokens * d_model * wide
        self.flops = float(n_layers * layer + 2 * n_tokens * d_model * outputs)

    def forward(self, x: Tensor, carry: object = None) -> tuple[Tensor, object]:
        self._follow(x)
        logits: Tensor = self.bridge(x)
        return logits[:, -1], None

    def _follow(self, x: Tensor) -> None:
        """Bring the attention masks, which are constants, to where the tokens are; weights come with the call."""
        if self.masks_at == x.device:
            return
        if not self.masks:
            named = (
                (module, *pair) for module in self.bridge.modules() for pair in module.named_buffers(recurse=False)
            )
            self.masks.extend(named)
        for module, name, mask in self.masks:
            setattr(module, name, mask.to(x.device))
        self.masks_at = x.device
