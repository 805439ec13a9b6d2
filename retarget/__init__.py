"""Is a trained policy an optimizer or a lookup table? `retarget` measures it.

Names load on first use, so that help and tables do not wait for the heavy libraries.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_LAZY = {
    "Edit": "retarget.edit",
    "Sparse": "retarget.edit",
    "Dense": "retarget.edit",
    "LowRank": "retarget.edit",
    "Slot": "retarget.edit",
    "StateGoal": "retarget.goal",
    "FiniteModel": "retarget.world",
    "WorldSpec": "retarget.world",
    "Agent": "retarget.agent",
    "Part": "retarget.agent",
    "Probe": "retarget.probe",
    "Subject": "retarget.probe",
    "RetargetError": "retarget.errors",
    "compile_policy": "retarget.agents.compiled",
    "RegionGoal": "retarget.goal",
    "load": "retarget.io.load",
    "load_table": "retarget.io.tables",
    "save": "retarget.io.load",
    "wrap": "retarget.io.load",
    "make_world": "retarget.envs",
    "world_from_gym": "retarget.envs",
    "check_world": "retarget.envs",
    "measure": "retarget.api",
}

if TYPE_CHECKING:
    from retarget.agent import Agent, Part
    from retarget.agents.compiled import compile_policy
    from retarget.api import measure
    from retarget.edit import Dense, Edit, LowRank, Slot, Sparse
    from retarget.envs import check_world, make_world, world_from_gym
    from retarget.errors import RetargetError
    from retarget.goal import RegionGoal, StateGoal
    from retarget.io.load import load, save, wrap
    from retarget.io.tables import load_table
    from retarget.probe import Probe, Subject
    from retarget.world import FiniteModel, WorldSpec

__all__ = [
    "Agent",
    "Dense",
    "Edit",
    "FiniteModel",
    "LowRank",
    "Part",
    "Probe",
    "RegionGoal",
    "RetargetError",
    "Slot",
    "Sparse",
    "StateGoal",
    "Subject",
    "WorldSpec",
    "check_world",
    "compile_policy",
    "load",
    "load_table",
    "make_world",
    "measure",
    "save",
    "world_from_gym",
    "wrap",
]


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'retarget' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
