"""Worlds with continuous states: goal families over the dynamics of Gymnasium's classic control."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from retarget.errors import WorldError, unknown

if TYPE_CHECKING:
    from retarget.envs.control.acrobot import Acrobot
    from retarget.envs.control.base import Axis, ControlWorld, Feature, StartBox
    from retarget.envs.control.cart_pole import CartPole
    from retarget.envs.control.gym_env import BoxEnv
    from retarget.envs.control.mountain_car import MountainCar
    from retarget.envs.control.pendulum import Pendulum

_LAZY = {
    "Acrobot": "retarget.envs.control.acrobot",
    "Axis": "retarget.envs.control.base",
    "BoxEnv": "retarget.envs.control.gym_env",
    "CartPole": "retarget.envs.control.cart_pole",
    "ControlWorld": "retarget.envs.control.base",
    "Feature": "retarget.envs.control.base",
    "MountainCar": "retarget.envs.control.mountain_car",
    "Pendulum": "retarget.envs.control.pendulum",
    "StartBox": "retarget.envs.control.base",
}
_WORLDS = ("MountainCar", "CartPole", "Pendulum", "Acrobot")

__all__ = [
    "Acrobot",
    "Axis",
    "BoxEnv",
    "CartPole",
    "ControlWorld",
    "Feature",
    "MountainCar",
    "Pendulum",
    "StartBox",
    "control_world",
]


def control_world(name: str, **options: object) -> ControlWorld:
    """One of the worlds of this package, by name.

    Raises:
        WorldError: for an unknown name, or an option that the world does not take.

    >>> control_world("Pendulum", start="wide").spec_data.label
    'Pendulum(start=wide)'
    """
    if name not in _WORLDS:
        raise WorldError(unknown("world", name, _WORLDS))
    built: ControlWorld = __getattr__(name)(**options)  # type: ignore[operator]
    return built


def __getattr__(name: str) -> object:
    if name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'retarget.envs.control' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
