"""Worlds: batched grid worlds as Gymnasium environments, worlds with continuous states, adapters, and the checker.

Importing this package registers the worlds with Gymnasium; the names below load on first use.

>>> import gymnasium, retarget.envs
>>> gymnasium.make("retarget/FourRooms-v0", size=13).unwrapped.model.n_states
104
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from retarget.envs.registration import register_all

_LAZY = {
    "BOX_WORLDS": "retarget.envs.catalogue",
    "WORLDS": "retarget.envs.catalogue",
    "WorldEntry": "retarget.envs.catalogue",
    "WorldOption": "retarget.envs.catalogue",
    "BoxEnv": "retarget.envs.control",
    "ControlWorld": "retarget.envs.control",
    "Feature": "retarget.envs.control",
    "StartBox": "retarget.envs.control",
    "Axis": "retarget.envs.control",
    "FiniteEnv": "retarget.envs.base",
    "GridWorld": "retarget.envs.grid",
    "ShortcutWorld": "retarget.envs.shortcut",
    "BlindedObservations": "retarget.envs.shifts",
    "StartsBeyond": "retarget.envs.shifts",
    "StartsFrom": "retarget.envs.shifts",
    "StartsMixed": "retarget.envs.shifts",
    "SwappedObservations": "retarget.envs.shifts",
    "BoxStartsFrom": "retarget.envs.shifts_box",
    "OffsetObservations": "retarget.envs.shifts_box",
    "ReplacedObservations": "retarget.envs.shifts_box",
    "make_world": "retarget.envs.make",
    "GymWorld": "retarget.envs.from_gym",
    "world_from_gym": "retarget.envs.from_gym",
    "VectorWorld": "retarget.envs.vector",
    "GridVectorWorld": "retarget.envs.vector",
    "Rollout": "retarget.envs.rollouts",
    "rollout": "retarget.envs.rollouts",
    "check_world": "retarget.envs.check",
}

if TYPE_CHECKING:
    from retarget.envs.base import FiniteEnv
    from retarget.envs.catalogue import BOX_WORLDS, WORLDS, WorldEntry, WorldOption
    from retarget.envs.check import check_world
    from retarget.envs.control import Axis, BoxEnv, ControlWorld, Feature, StartBox
    from retarget.envs.from_gym import GymWorld, world_from_gym
    from retarget.envs.grid import GridWorld
    from retarget.envs.make import make_world
    from retarget.envs.rollouts import Rollout, rollout
    from retarget.envs.shifts import BlindedObservations, StartsBeyond, StartsFrom, StartsMixed, SwappedObservations
    from retarget.envs.shifts_box import BoxStartsFrom, OffsetObservations, ReplacedObservations
    from retarget.envs.shortcut import ShortcutWorld
    from retarget.envs.vector import GridVectorWorld, VectorWorld

__all__ = [
    "BOX_WORLDS",
    "WORLDS",
    "Axis",
    "BlindedObservations",
    "BoxEnv",
    "BoxStartsFrom",
    "ControlWorld",
    "Feature",
    "FiniteEnv",
    "GridVectorWorld",
    "GridWorld",
    "GymWorld",
    "OffsetObservations",
    "ReplacedObservations",
    "Rollout",
    "ShortcutWorld",
    "StartBox",
    "StartsBeyond",
    "StartsFrom",
    "StartsMixed",
    "SwappedObservations",
    "VectorWorld",
    "WorldEntry",
    "WorldOption",
    "check_world",
    "make_world",
    "register_all",
    "rollout",
    "world_from_gym",
]


def __getattr__(name: str) -> object:
    if name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'retarget.envs' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])


register_all()
