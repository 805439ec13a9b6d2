"""One family of errors. Each message names the value that was wrong and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RetargetError(ValueError):
    """Base of every error that `retarget` raises on purpose.

    Catch this one to catch them all. The message is one line: the value, then the remedy.
    """


class WorldError(RetargetError):
    """A world is unknown, malformed, or was asked for something that it cannot give."""


class GoalError(RetargetError):
    """A goal or a start does not exist in the world it was given for."""


class AgentError(RetargetError):
    """An agent is malformed, or does not fit the world it is measured in."""


class EditError(RetargetError):
    """An edit does not fit the agent it is applied to."""


class CodeError(RetargetError):
    """A byte string is not the code of any edit of this layout."""


class FileError(RetargetError):
    """A user's file is missing, too large, of another kind, or holds values that cannot be used."""


class StudyError(RetargetError):
    """A study file is broken, or names something that does not exist."""


class JournalError(RetargetError):
    """A journal belongs to another version or to another study."""


class LayersError(RetargetError):
    """A layerwise analysis was asked for a place, a position or a class that is not there."""


class ProbeError(RetargetError):
    """A probe broke one of the laws that it declares, or returned a malformed result."""


def nearest(name: object, known: Iterable[object]) -> str:
    """Return ` (did you mean 'x'?)`, or an empty string when nothing known is close.

    >>> nearest("FourRoms", ["FourRooms", "Maze"])
    " (did you mean 'FourRooms'?)"
    >>> nearest("zzz", ["FourRooms", "Maze"])
    ''
    """
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


#: A line that lists more names than this is no longer one.
_MOST_NAMES = 32


def unknown(what: str, name: object, known: Iterable[object]) -> str:
    """The message for a name that is not among the known ones.

    >>> unknown("world", "FourRoms", ["Maze", "FourRooms"])
    "unknown world 'FourRoms' (did you mean 'FourRooms'?); known: FourRooms, Maze"
    """
    names = sorted(str(k) for k in known)
    shown = ", ".join(names[:_MOST_NAMES]) or "none"
    more = f" and {len(names) - _MOST_NAMES} others" if len(names) > _MOST_NAMES else ""
    return f"unknown {what} {str(name)!r}{nearest(name, names)}; known: {shown}{more}"
