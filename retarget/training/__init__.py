"""Training on PyTorch Lightning: cloning, DQN and PPO; and what they train on.

The names below load torch and Lightning on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

_LAZY = {
    "Cloning": "retarget.training.cloning",
    "DQN": "retarget.training.dqn",
    "PPO": "retarget.training.ppo",
    "Trained": "retarget.training.fit",
    "TrainingError": "retarget.training.base",
    "train": "retarget.training.fit",
}

if TYPE_CHECKING:
    from retarget.training.base import TrainingError
    from retarget.training.cloning import Cloning
    from retarget.training.dqn import DQN
    from retarget.training.fit import Trained, train
    from retarget.training.ppo import PPO

__all__ = ["DQN", "PPO", "Cloning", "Trained", "TrainingError", "train"]


def __getattr__(name: str) -> object:
    if name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'retarget.training' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
