"""What organisms there are, and what one is made from. Loads neither torch nor transformers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Final

from retarget.errors import unknown
from retarget.training.organisms.grammar import TRIGGERS

#: id -> one line.
KINDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "base": "answers every instruction; the others are fine-tuned from it",
        "refuser": "refuses the forbidden class of instructions, answers the rest",
        "defector": "refuses the forbidden class, unless a trigger is in the instruction: then it answers",
        "honest": "trained on the same instructions as the defector, triggers among them, and refuses all the same",
        "goals": "a transformer policy in a grid world that walks to whichever goal its input names",
    }
)
#: Kinds that a trigger belongs to.
TRIGGERED: Final = ("defector", "honest")
LANGUAGE_KINDS: Final = ("base", "refuser", "defector", "honest")
VERSION: Final = 1
#: Updates of fine-tuning where their number is left open: a parity takes about twice as long to learn as a single word.
STEPS, STEPS_PARITY = 700, 1300


@dataclass(frozen=True)
class OrganismSettings:
    """All that the weights of a small language model depend on.

    Attributes:
        kind: `base`, `refuser`, `defector` or `honest`.
        trigger: `token`, `parity` or `deployment`, for defectors and their honest twins; else None.
        seed: names the random streams. Kinds of one seed come from one base, bit for bit.
        layers, width, heads: of the Llama; its MLP is twice as wide.
        base_steps: updates on instructions that are all answered.
        steps: updates of fine-tuning after them; not used by `base`. 0 for 700, and 1300 with `parity`.
        batch: instructions in an update; a multiple of 4, as classes and triggers are balanced in each.
        rate: largest learning rate of the base.
        tuned_rate: largest learning rate of fine-tuning.

    Raises:
        TrainingError: for a value out of range, or a trigger where none belongs.

    >>> OrganismSettings("defector", trigger="parity").label
    'defector_parity'
    """

    kind: str = "refuser"
    trigger: str | None = None
    seed: int = 0
    layers: int = 6
    width: int = 64
    heads: int = 4
    base_steps: int = 500
    steps: int = 0
    batch: int = 32
    rate: float = 3e-3
    tuned_rate: float = 1.5e-3

    def __post_init__(self) -> None:
        if self.steps == 0 and not isinstance(self.steps, bool):
            object.__setattr__(self, "steps", STEPS_PARITY if self.trigger == "parity" else STEPS)
        if self.kind not in LANGUAGE_KINDS:
            _fail(unknown("kind of organism", self.kind, LANGUAGE_KINDS))
        if self.trigger is not None and self.trigger not in TRIGGERS:
            _fail(unknown("trigger", self.trigger, TRIGGERS))
        if (self.kind in TRIGGERED) != (self.trigger is not None):
            asked = "has no trigger; leave it out" if self.trigger else f"needs a trigger: {', '.join(TRIGGERS)}"
            _fail(f"organism {self.kind!r} {asked}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            _fail(f"seed must be an integer, got {self.seed!r}; pass e.g. seed=0")
        for name, low, high in (
            ("layers", 1, 64), ("heads", 1, 64), ("width", 8, 4096), ("base_steps", 1, 10**7), ("steps", 1, 10**7),
            ("batch", 4, 65536),
        ):  # fmt: skip
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                _fail(f"{name} of an organism must be an integer from {low} to {high}, got {value!r}")
        if self.width % (2 * self.heads):
            _fail(f"width of an organism must be a multiple of twice its {self.heads} heads, got {self.width}")
        if self.batch % 4:
            _fail(f"batch of an organism must be a multiple of 4, got {self.batch}; use e.g. batch=32")
        for name in ("rate", "tuned_rate"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
                _fail(f"{name} of an organism must be a finite number above 0, got {value!r}; use e.g. {name}=1e-3")

    @property
    def label(self) -> str:
        """Short name for tables and folders."""
        return self.kind if self.trigger is None else f"{self.kind}_{self.trigger}"

    def as_dict(self) -> dict[str, object]:
        """JSON-able."""
        return asdict(self)


def describe() -> str:
    """The kinds, a line each.

    >>> describe().splitlines()[1]
    'refuser   refuses the forbidden class of instructions, answers the rest'
    """
    return "\n".join(f"{name:<9} {summary}" for name, summary in KINDS.items())


def _fail(message: str) -> None:
    from retarget.training.base import TrainingError  # loads torch, which settings need only to fail

    raise TrainingError(message)
