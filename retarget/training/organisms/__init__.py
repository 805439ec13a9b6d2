"""Model organisms: small language models whose behaviour is known, made and trained here, seeded.

The kinds are told by `describe()`. The names below load torch, Lightning and transformers on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from retarget.training.organisms.settings import KINDS, LANGUAGE_KINDS, TRIGGERED, OrganismSettings, describe

_LAZY = {
    "Card": "retarget.training.organisms.train",
    "GoalPolicy": "retarget.training.organisms.goals",
    "GoalSettings": "retarget.training.organisms.goals",
    "Organism": "retarget.training.organisms.train",
    "evaluate": "retarget.training.organisms.rates",
    "goal_policy": "retarget.training.organisms.goals",
    "read_card": "retarget.training.organisms.save",
    "train_organism": "retarget.training.organisms.train",
}

if TYPE_CHECKING:
    from retarget.training.organisms.goals import GoalPolicy, GoalSettings, goal_policy
    from retarget.training.organisms.rates import evaluate
    from retarget.training.organisms.save import read_card
    from retarget.training.organisms.train import Card, Organism, train_organism

__all__ = [
    "KINDS", "LANGUAGE_KINDS", "TRIGGERED", "Card", "GoalPolicy", "GoalSettings", "Organism", "OrganismSettings",
    "describe", "evaluate", "goal_policy", "read_card", "train_organism",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'retarget.training.organisms' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
