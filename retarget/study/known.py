"""What a study may name: the worlds, agents and probes that exist, and their options with defaults."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from retarget.errors import StudyError, unknown

if TYPE_CHECKING:
    from retarget.envs import WorldEntry


def check_world_id(world_id: str) -> None:
    """Raise WorldError unless the world is one of ours, or registered with Gymnasium."""
    if _world_entry(world_id) is None:
        from gymnasium.envs.registration import registry

        from retarget.envs import make_world

        if world_id not in registry:
            make_world(world_id)


def check_world_option(world_id: str, name: str, value: object) -> None:
    """Raise WorldError unless the option exists and takes the value.

    Places, and the options of worlds that are not ours, are checked when the world is built.
    """
    entry = _world_entry(world_id)
    if entry is not None:
        entry.resolve({name: value})


def takes_lists(world_id: str, name: str) -> bool:
    """Whether a list is one value of this option (a cell, say), and not one value for each of several worlds."""
    entry = _world_entry(world_id)
    if entry is None:
        return True
    option = entry.options.get(name)
    return option is not None and (option.place or isinstance(option.default, (tuple, list)))


def _world_entry(world_id: str) -> WorldEntry | None:
    """The entry of a world of ours, by short name or registered id; None for any other."""
    from retarget.envs.catalogue import find_entry

    return find_entry(world_id)


def probe_defaults(probe_id: str) -> Mapping[str, object]:
    """Options of a probe, with their defaults (None for an option without one).

    Raises:
        StudyError: for an unknown probe.
    """
    from retarget.probes import PROBES

    if probe_id not in PROBES:
        raise StudyError(unknown("probe", probe_id, PROBES))
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    given = inspect.signature(PROBES[probe_id]).parameters.values()
    return {p.name: None if p.default is p.empty else p.default for p in given if p.kind in named}


def check_option(what: str, name: str, value: object, defaults: Mapping[str, object]) -> None:
    """Raise StudyError unless the option exists, the value is of its default's type, and its numbers are finite.

    Args:
        what: whose option, e.g. `agent 'q_table'`.
        name: name of the option.
        value: what was given; lists come as tuples.
        defaults: options that exist; a default of None takes any value. Where a default is a tuple of numbers, or of
            texts, so is the value.

    >>> check_option("agent 'a'", "depth", 3, {"depth": 1})
    >>> check_option("agent 'a'", "dept", 3, {"depth": 1})
    Traceback (most recent call last):
    ...
    retarget.errors.StudyError: unknown option of agent 'a' 'dept' (did you mean 'depth'?); known: depth
    >>> check_option("agent 'a'", "doses", ("a",), {"doses": (0.5, 1.0)})
    Traceback (most recent call last):
    ...
    retarget.errors.StudyError: option 'doses' of agent 'a' takes numbers such as [0.5, 1.0], got 'a'
    """
    if name not in defaults:
        raise StudyError(unknown(f"option of {what}", name, defaults))
    default = defaults[name]
    odd = _not_finite(value)
    if odd is not None:
        raise StudyError(f"option {name!r} of {what} takes finite numbers, got {odd!r}")
    if default is None:
        return
    if isinstance(default, float):
        fits = _is_number(value)
    elif isinstance(default, (tuple, list)):
        fits = isinstance(value, (tuple, list))
    else:
        fits = type(value) is type(default)
    if not fits:
        raise StudyError(f"option {name!r} of {what} takes a value like {default!r}, got {value!r}")
    if isinstance(default, (tuple, list)) and isinstance(value, (tuple, list)):
        _check_items(what, name, value, default)


def _check_items(what: str, name: str, value: Sequence[object], default: Sequence[object]) -> None:
    """Raise StudyError unless the items are of the type that all items of the default are."""
    if not default:  # an empty default says nothing of what its items would be
        return
    if any(isinstance(v, float) for v in default) and all(_is_number(v) for v in default):
        odd, takes = [v for v in value if not _is_number(v)], "numbers"
    elif len({type(v) for v in default}) == 1 and isinstance(default[0], (int, str)):
        odd = [v for v in value if type(v) is not type(default[0])]
        takes = {bool: "true or false", int: "whole numbers", str: "texts"}[type(default[0])]
    else:
        return
    if odd:
        raise StudyError(f"option {name!r} of {what} takes {takes} such as {list(default)!r}, got {odd[0]!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _not_finite(value: object) -> object | None:
    """The first number in a value, or in lists and tables inside it, that is not finite as a float; None for none."""
    if isinstance(value, (tuple, list)):
        return next((odd for v in value if (odd := _not_finite(v)) is not None), None)
    if isinstance(value, Mapping):
        return _not_finite(tuple(value.values()))
    try:
        return value if isinstance(value, (int, float)) and not math.isfinite(value) else None
    except OverflowError:  # a whole number larger than any float
        return value
