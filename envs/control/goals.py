"""Goals of worlds with continuous states, from whatever a user writes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from retarget.errors import GoalError, nearest, unknown
from retarget.goal import RegionGoal, StateGoal

if TYPE_CHECKING:
    from retarget.envs.control.base import Feature

_TERM = re.compile(r"\s*([A-Za-z_]\w*)\s*=\s*([-+0-9.eE]+)\s*")


def plain_goal(goal: RegionGoal, menu: Sequence[RegionGoal]) -> object:
    """A goal as plain hashable data that `parse_goal` takes: its label where the menu has it, else its numbers.

    >>> plain_goal(RegionGoal.of(hold=True, x=(1.0, 0.5)), ())
    (('hold', True), ('x', 1.0, 0.5))
    """
    if goal in menu:
        return menu[menu.index(goal)].label
    return (("hold", goal.hold), *goal.targets)


def parse_goal(
    value: object,
    features: Mapping[str, Feature],
    menu: Sequence[RegionGoal],
    from_number: Callable[[float], RegionGoal],
) -> RegionGoal:
    """A goal from a `RegionGoal`, a label, a text such as `hold x=1`, a number, a mapping, or what `plain_goal` gave.

    Raises:
        GoalError: with what is there.
    """
    if isinstance(value, RegionGoal):
        return value
    if isinstance(value, (StateGoal, bool)) or value is None:
        raise GoalError(f"{value!r} is no goal here; {_forms(features, menu)}")
    if isinstance(value, str):
        return _from_text(value, features, menu, from_number)
    if isinstance(value, (int, float, np.integer, np.floating)):
        if not math.isfinite(value):
            raise GoalError(f"a set-point must be finite, got {value!r}; {_forms(features, menu)}")
        return from_number(float(value))
    if isinstance(value, Mapping):
        return _from_mapping(value, features)
    if isinstance(value, Iterable):
        return _from_rows(list(value), features, menu)
    raise GoalError(f"{value!r} is no goal here; {_forms(features, menu)}")


def _forms(features: Mapping[str, Feature], menu: Sequence[RegionGoal]) -> str:
    labels = ", ".join(dict.fromkeys(g.label for g in menu))
    return f"give a label ({labels}), a number for {next(iter(features))}, or e.g. {{'{next(iter(features))}': 0.0}}"


def _from_text(
    text: str, features: Mapping[str, Feature], menu: Sequence[RegionGoal], from_number: Callable[[float], RegionGoal]
) -> RegionGoal:
    for goal in menu:
        if goal.label == text:
            return goal
    try:
        return parse_goal(float(text), features, menu, from_number)
    except GoalError:
        raise
    except ValueError:
        pass
    hold = text.startswith("hold ")
    terms = [_TERM.fullmatch(t) for t in text.removeprefix("hold ").split(",")]
    if not all(terms):
        known = ", ".join(dict.fromkeys(g.label for g in menu))
        near = nearest(text, [g.label for g in menu])
        raise GoalError(f"unknown goal {text!r}{near}; known: {known}; or e.g. '{next(iter(features))}=0'")
    try:
        wanted = {m[1]: float(m[2]) for m in terms if m is not None}
    except ValueError as error:
        raise GoalError(f"goal {text!r} has a set-point that is no number ({error})") from error
    return _from_mapping({**wanted, "hold": hold}, features)


def _from_mapping(value: Mapping[object, object], features: Mapping[str, Feature]) -> RegionGoal:
    given = {str(k): v for k, v in value.items()}
    label = given.pop("label", None)
    named = [k for k in given if k != "hold"]
    for name in named:
        if name not in features:
            raise GoalError(unknown("feature", name, [*features, "hold", "label"]))
    if not named:
        raise GoalError(f"a goal names at least one of the features {', '.join(features)}, got {dict(value)!r}")
    hold = given.pop("hold", features[named[0]].hold)
    if not isinstance(hold, (bool, np.bool_)) or not (label is None or isinstance(label, str)):
        raise GoalError(f"a goal's hold is true or false and its label a text, got {hold!r} and {label!r}")
    targets: dict[str, tuple[float, float]] = {}
    for name in named:
        value_of = given[name]
        pair = value_of if isinstance(value_of, (tuple, list)) else (value_of, features[name].width)
        try:
            centre, width = (float(number) for number in pair)
        except (TypeError, ValueError):
            raise GoalError(f"feature {name!r} takes a number, or (set-point, half width), got {pair!r}") from None
        targets[name] = (centre, width)
    return RegionGoal.of(hold=bool(hold), label=label, **targets)


def _from_rows(rows: list[object], features: Mapping[str, Feature], menu: Sequence[RegionGoal]) -> RegionGoal:
    out: dict[object, object] = {}
    for row in rows:
        if not isinstance(row, (tuple, list)) or len(row) not in (2, 3) or not isinstance(row[0], str):
            raise GoalError(f"{rows!r} is no goal here; {_forms(features, menu)}")
        out[row[0]] = row[1] if len(row) == 2 else (row[1], row[2])
    return _from_mapping(out, features)
