"""What the commands share: worlds, goals and folders from the command line, one thread. Everything heavy loads late."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

#: Columns of tables where the output is no terminal.
_LOG_WIDTH = 110

if TYPE_CHECKING:
    from rich.console import Console

    from retarget.goal import Goal
    from retarget.world import World


def parse_goals(world: World, text: str) -> list[Goal]:
    """The goals of one --goals: several cells or states, or one set-point or label."""
    from retarget.world import FiniteWorld

    pieces = text.split() if isinstance(world, FiniteWorld) else [text.strip()]
    return [parse_goal(world, piece) for piece in pieces]


def parse_goal(world: World, text: str) -> Goal:
    """A goal from a cell, a state, a set-point or a label."""
    from retarget.world import FiniteWorld

    if isinstance(world, FiniteWorld):
        return world.as_goal(parse_place(text))
    try:
        return world.as_goal(float(text))
    except ValueError as error:
        from retarget.errors import RetargetError

        if isinstance(error, RetargetError):
            raise
        return world.as_goal(text)


def make_folder(out: Path | None) -> None:
    """Make the folder now, so that nothing is measured in vain, and never mix with a study's tables."""
    from retarget.errors import FileError

    if out is None:
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"folder {str(out)!r} cannot be made ({error.strerror}); choose another --out") from None
    if any(out.glob("journal*.sqlite")):
        raise FileError(f"folder {str(out)!r} holds the journal of a study; choose another --out")


def make_console() -> Console:
    """Where tables are printed; wide enough for them in a log."""
    from rich.console import Console

    # a log or a pipe has no width of its own; 80 columns would cut tables
    wide = None if sys.stdout.isatty() or os.environ.get("COLUMNS") else _LOG_WIDTH
    return Console(width=wide)


def one_thread() -> None:
    """One intra-op thread here too: these variables count only before the libraries load."""
    from retarget.study.executor import THREAD_VARIABLES

    if "numpy" not in sys.modules:
        for name in THREAD_VARIABLES:
            os.environ.setdefault(name, "1")


def parse_options(pairs: list[str], size: int | None = None) -> dict[str, object]:
    """World options from `key=value` and a size; values as in TOML, anything else is a text."""
    import tomllib

    from retarget.errors import WorldError

    options: dict[str, object] = {} if size is None else {"size": size}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            raise WorldError(f"--set {pair!r} is not of the form KEY=VALUE, such as slip=0.1")
        try:
            options[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            options[key.strip()] = text.strip()
    return options


def parse_place(text: str) -> object:
    """A cell from `ROW,COL`, or a state from one number."""
    from retarget.errors import GoalError

    try:
        numbers = tuple(int(piece) for piece in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) not in (1, 2):
        raise GoalError(f"goal {text!r} is neither ROW,COL nor a state's number; write e.g. 3,4 or 17")
    return numbers if len(numbers) == 2 else numbers[0]
