"""Checks of the options that probes take: one line that names the option, what it takes, and what was given."""

from __future__ import annotations

import math

from retarget.errors import ProbeError


def check_range(
    name: str,
    value: object,
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    whole: bool = False,
) -> None:
    """Raise ProbeError unless an option is a finite number in its range.

    Args:
        name: of the option.
        value: what was given.
        low: least value that is allowed.
        above: a bound that the value must exceed, in place of `low`.
        high: most that is allowed.
        whole: whether it must be an int.

    >>> check_range("splits", 8, low=1, whole=True)
    >>> check_range("splits", 0, low=1, whole=True)
    Traceback (most recent call last):
    ...
    retarget.errors.ProbeError: option 'splits' must be at least 1, got 0
    """
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        raise ProbeError(f"option {name!r} must be a {'whole ' if whole else ''}number, got {value!r}")
    if not math.isfinite(value):
        raise ProbeError(f"option {name!r} must be a finite number, got {value!r}")
    fits = (low is None or value >= low) and (above is None or value > above) and (high is None or value <= high)
    if not fits:
        words = (("at least", low), ("above", above), ("at most", high))
        bounds = " and ".join(f"{w} {bound:g}" for w, bound in words if bound is not None)
        raise ProbeError(f"option {name!r} must be {bounds}, got {value!r}")


def check_numbers(name: str, values: object) -> tuple[float, ...]:
    """A list of finite numbers as a tuple; raises ProbeError for anything else, and for an empty one.

    >>> check_numbers("doses", (0.5, 1))
    (0.5, 1.0)
    >>> check_numbers("doses", ("a",))
    Traceback (most recent call last):
    ...
    retarget.errors.ProbeError: option 'doses' takes a list of finite numbers, got ('a',)
    """
    given = tuple(values) if isinstance(values, (tuple, list)) else ()
    sound = all(isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) for v in given)
    if not given or not sound:
        raise ProbeError(f"option {name!r} takes a list of finite numbers, got {values!r}")
    return tuple(float(v) for v in given)


def check_goal_numbers(seen: tuple[str, object], held_out: tuple[str, object]) -> None:
    """Raise ProbeError unless two options, by name and value, ask for one goal at least.

    >>> check_goal_numbers(("n_seen", 0), ("n_held_out", 4))
    """
    for name, value in (seen, held_out):
        check_range(name, value, low=0, whole=True)
    if seen[1] == held_out[1] == 0:
        raise ProbeError(f"options {seen[0]!r} and {held_out[0]!r} are both 0; ask for at least one goal")
