"""Train an organism under Lightning: the base on answers, then its fine-tuning; both go on from checkpoints."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from pytorch_lightning import LightningModule
from torch import Tensor

from retarget.digest import digest_of
from retarget.errors import FileError
from retarget.spend import Spend
from retarget.training.base import TrainingError, Weights
from retarget.training.checkpoint import Checkpoint, Row, fits
from retarget.training.fit import ROWS, SAVE_EVERY_S, _quiet, _trainer
from retarget.training.organisms.corpus import lesson
from retarget.training.organisms.llama import blank_model, copied, quiet
from retarget.training.organisms.rates import N_EVALUATED, Rate, evaluate
from retarget.training.organisms.settings import VERSION, OrganismSettings
from retarget.training.organisms.tokens import make_tokenizer

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

#: Share of the updates over which the learning rate rises, and to which share of its largest value it falls.
RISE, FLOOR = 0.05, 0.05
STAGES = ("base", "tuned")


@dataclass(frozen=True)
class Card:
    """What an organism is and does.

    Attributes:
        settings: what it was made from.
        rates: on held-out instructions, by its greedy replies.
        history: rows with the stage, the updates done and the loss then.
        digest: of the weights.
        base: digest of the weights that fine-tuning began from; None for a base.
        version: of the language and the training.
    """

    settings: OrganismSettings
    rates: tuple[Rate, ...]
    history: tuple[Row, ...]
    digest: str
    base: str | None
    version: int = VERSION

    def rate(self, name: str) -> Rate:
        """By the name of the set of instructions, e.g. `forbidden`."""
        for rate in self.rates:
            if rate.name == name:
                return rate
        raise TrainingError(f"no set of instructions {name!r}; there are {', '.join(r.name for r in self.rates)}")

    def as_dict(self) -> dict[str, object]:
        """JSON-able."""
        return {
            "settings": self.settings.as_dict(), "rates": [asdict(r) for r in self.rates],
            "history": list(self.history), "digest": self.digest, "base": self.base, "version": self.version,
        }  # fmt: skip


@dataclass(frozen=True, eq=False)
class Organism:
    """A small language model, trained.

    Attributes:
        model: of transformers, float32 on the CPU, not to be trained further.
        tokenizer: with the chat template.
        card: what it is and does.
    """

    model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast
    card: Card

    def save(self, folder: str | Path) -> Path:
        """Write an ordinary local checkpoint; see `retarget.training.organisms.save.save_organism`."""
        from retarget.training.organisms.save import save_organism

        return save_organism(self, folder)


def train_organism(
    settings: OrganismSettings,
    *,
    progress: bool | None = None,
    base: Organism | None = None,
    checkpoint: str | Path | None = None,
    save_every_s: float = SAVE_EVERY_S,
    n_evaluated: int = N_EVALUATED,
) -> Organism:
    """Make and train a small language model.

    Fine-tuning begins from the base of the same seed. It is trained first, unless it is given; the result is the same,
    bit for bit.

    Args:
        settings: all that the weights depend on.
        progress: show a bar.
        base: a base of the same seed, sizes and base_steps, trained before.
        checkpoint: file to keep the state in while training; where it exists already, training goes on from there, and
            ends with the same bits as if it had never stopped.
        save_every_s: seconds between two checkpoints.
        n_evaluated: held-out instructions of each set that the card's rates are from.

    Raises:
        TrainingError: when the base is another one, or training diverged.
        FileError: when the checkpoint belongs to another training, or is broken.

    >>> tiny = OrganismSettings("refuser", layers=1, width=8, heads=1, base_steps=2, steps=2, batch=4)
    >>> train_organism(tiny, n_evaluated=4).card.digest == train_organism(tiny, n_evaluated=4).card.digest
    True
    """
    torch.set_num_threads(1)  # tensors here are small: a second thread only waits
    file = None if checkpoint is None else Path(checkpoint)
    what = digest_of("organism", {**settings.as_dict(), "version": VERSION}, [])
    found = _resume(file, what)
    model, history = blank_model(settings), list[Row]()
    stages: tuple[str, ...] = STAGES if settings.kind != "base" else STAGES[:1]
    if base is not None:
        _check_base(base, settings)
        if settings.kind != "base":
            model.load_state_dict(base.model.state_dict())
            history, stages = list(base.card.history), STAGES[1:]
            # a checkpoint from before fine-tuning has nothing that this base does not have
            found = None if found is not None and found.stage == 0 else found
    if found is not None:
        history, stages = list(found.history), tuple(s for s in stages if STAGES.index(s) >= found.stage)
    for stage in stages:
        run = _Run(model, settings, stage, what, file, save_every_s, history)
        if found is not None and STAGES.index(stage) == found.stage:
            run.resume(found)
        run.go(bool(progress))
    return _finished(model, settings, history, n_evaluated)


class _Run(LightningModule):
    """One stage under Lightning."""

    def __init__(
        self, model: LlamaForCausalLM, settings: OrganismSettings, stage: str, what: str, file: Path | None,
        save_every_s: float, history: list[Row],
    ) -> None:  # fmt: skip
        super().__init__()
        self.automatic_optimization = False
        self.model, self.settings, self.stage, self.what = model.train(), settings, stage, what
        self.file, self.save_every_s, self.saved = file, save_every_s, time.monotonic()
        self.history, self.done = history, 0
        self.total, rate = settings.base_steps, settings.rate
        if stage == "tuned":
            self.total, rate = settings.steps, settings.tuned_rate
        self.flat = Weights([model], rate=rate, clip=1.0, device=torch.device("cpu"))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.flat.optimizer

    def zero_grad(self, set_to_none: bool = False) -> None:
        # gradients are views of one vector: Lightning would drop them before it begins
        super().zero_grad(set_to_none=False)

    def go(self, progress: bool) -> None:
        """Do what is left of the budget."""
        if self.done < self.total:
            with _quiet(), quiet():
                _trainer(progress, "cpu").fit(self, train_dataloaders=range(self.total - self.done))

    def training_step(self, batch: int) -> None:
        step = self.done
        drawn = lesson(self.settings, self.stage, step)
        loss = loss_of(self.model, torch.from_numpy(drawn.tokens), torch.from_numpy(drawn.weights))
        self.flat.step(loss, share=_share(step, self.total))
        self.done = step + 1
        over = self.done == self.total
        if over or self.done % max(1, self.total // ROWS) == 0:
            row: Row = {"stage": self.stage, "updates": self.done, "loss": float(loss.detach())}
            self.history.append(row | {"digest": digest(self.model)} if over else row)
        if self.file is not None and (over or time.monotonic() - self.saved >= self.save_every_s):
            self.save(self.file)

    def save(self, file: Path) -> None:
        """Write a checkpoint."""
        Checkpoint(
            self.what, STAGES.index(self.stage), self.done, Spend(), Spend(grad_steps=self.done), tuple(self.history),
            self.flat.state(), self.done == self.total,
        ).save(file)  # fmt: skip
        self.saved = time.monotonic()

    def resume(self, found: Checkpoint) -> None:
        """Go on from a checkpoint."""
        state = self.flat.state()
        if not fits(state, found.tensors):
            raise FileError(f"checkpoint {self.file} does not fit this training; delete it, or give another path")
        for name, tensor in state.items():
            tensor.data.copy_(found.tensors[name])
        self.done = found.updates


def loss_of(model: LlamaForCausalLM, tokens: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean over tokens of their negative log-likelihood, in nats.

    Args:
        model: gives logits.
        tokens: int64 `[B, T]`, padded on the right.
        weights: float32 `[B, T]`; those of the first tokens do not count, as nothing foresees them.
    """
    # padding stands at the right, where causal attention of the tokens that count does not look
    hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state[:, :-1]
    counts = weights[:, 1:] > 0
    nats = F.cross_entropy(model.lm_head(hidden[counts]), tokens[:, 1:][counts], reduction="none")
    weight = weights[:, 1:][counts]
    return (nats * weight).sum() / weight.sum()


def digest(model: LlamaForCausalLM) -> str:
    """Content digest of the architecture and the weights."""
    config = {k: getattr(model.config, k) for k in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    return digest_of("organism", config, ((n, p.detach().numpy()) for n, p in sorted(model.named_parameters())))


def _share(step: int, total: int) -> float:
    """Of the largest learning rate: up in a line, down in half a cosine."""
    done = (step + 1) / total
    if done < RISE:
        return done / RISE
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * (done - RISE) / (1 - RISE)))


def _resume(file: Path | None, what: str) -> Checkpoint | None:
    if file is not None and (file.is_dir() or not file.parent.is_dir()):
        raise FileError(f"the checkpoint {file} cannot be written; give a file in a folder that exists")
    if file is None or not file.exists():
        return None
    found = Checkpoint.read(file)
    if found.question != what or not 0 <= found.stage < len(STAGES):
        raise FileError(f"checkpoint {file} belongs to another training; delete it, or give another path")
    return found


def _check_base(base: Organism, settings: OrganismSettings) -> None:
    other = base.card.settings
    same = ("seed", "layers", "width", "heads", "base_steps", "batch", "rate")
    if other.kind != "base" or any(getattr(other, k) != getattr(settings, k) for k in same):
        differs = [k for k in same if getattr(other, k) != getattr(settings, k)] or ["kind"]
        raise TrainingError(
            f"the base given differs in {', '.join(differs)} from what {settings.label!r} begins from; "
            "train one with the same settings and kind='base', or leave it out"
        )


def _finished(model: LlamaForCausalLM, settings: OrganismSettings, history: list[Row], n: int) -> Organism:
    if not all(torch.isfinite(p).all() for p in model.parameters()):
        rates = f"{settings.rate:g} and {settings.tuned_rate:g}"
        raise TrainingError(f"training diverged: weights are not finite; use lower rates than {rates}")
    ended = {str(row["stage"]): str(row["digest"]) for row in history if "digest" in row}
    still = copied(model)
    card = Card(
        settings, evaluate(still, settings, n=n), tuple(history), digest(still),
        ended["base"] if settings.kind != "base" else None,
    )  # fmt: skip
    return Organism(still, make_tokenizer(), card)
