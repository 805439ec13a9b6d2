"""The network of an organism: a small Llama of transformers, with seeded weights and without its announcements."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from retarget.rng import word
from retarget.training.organisms.tokens import BEGIN, CONTEXT, END, PAD, numbers

if TYPE_CHECKING:
    from transformers import LlamaConfig, LlamaForCausalLM

    from retarget.training.organisms.settings import OrganismSettings


@contextmanager
def quiet() -> Iterator[None]:
    """transformers without progress bars and notes, as it was before afterwards."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"transformers\..*")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def config_of(settings: OrganismSettings) -> LlamaConfig:
    """Architecture; the same for all kinds."""
    from transformers import LlamaConfig

    known = numbers()
    return LlamaConfig(
        vocab_size=len(known), hidden_size=settings.width, intermediate_size=2 * settings.width,
        num_hidden_layers=settings.layers, num_attention_heads=settings.heads, num_key_value_heads=settings.heads,
        max_position_embeddings=CONTEXT, tie_word_embeddings=False, pad_token_id=known[PAD],
        bos_token_id=known[BEGIN], eos_token_id=known[END], attention_dropout=0.0, dtype="float32",
    )  # fmt: skip


def blank_model(settings: OrganismSettings) -> LlamaForCausalLM:
    """A fresh network with weights from the stream of the seed; torch's own generator is left as it was.

    Matrices are normal with variance 1 / inputs, those that write into the residual stream smaller by the root of
    twice the number of layers; embeddings have standard deviation 1.
    """
    from transformers import LlamaForCausalLM

    with quiet(), torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(config_of(settings))
    generator = torch.Generator()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim < 2:
                weight.fill_(1.0)
                continue
            generator.manual_seed(word(settings.seed, "organism weights", name))
            scale = 1.0 if "embed" in name else weight.shape[1] ** -0.5
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                scale /= (2 * settings.layers) ** 0.5
            weight.normal_(0.0, scale, generator=generator)
    return model


def copied(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """A network of the same weights, each in memory of its own, ready to be used and not to be trained."""
    from transformers import LlamaForCausalLM

    with quiet(), torch.random.fork_rng(devices=[]):
        fresh = LlamaForCausalLM(model.config)
    fresh.load_state_dict({k: v.detach().clone() for k, v in model.state_dict().items()})
    fresh.eval().requires_grad_(False)
    return fresh
