"""Criteria: thresholds that somebody sets, held against rows only as far as the instrument's own error allows.

A row is a fact; a criterion says what one would like of it. Between the two stands the instrument: its error is
measured on agents whose truth is known, in the same run and under the same protocol, and a verdict is given only where
the value, give or take that error, lies wholly on one side of the threshold.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

from retarget.errors import FileError, StudyError, unknown
from retarget.row import RESULT_COLUMNS
from retarget.study.lines import KeyPath, key_lines, line_of

Direction = Literal["at least", "at most", "between", "outside"]
Of = Literal["rows", "agents"]
Verdict = Literal["meets", "does not meet", "cannot tell"]

DIRECTIONS: tuple[Direction, ...] = ("at least", "at most", "between", "outside")
#: Larger files are no criteria.
MAX_BYTES = 1 << 20
#: Columns that say what was measured. The others say what was found: choosing rows by them would choose the result.
SELECTORS: tuple[str, ...] = (
    "study", "probe", "world_id", "world", "n_states", "agent_id", "agent", "agent_digest", "goal_a", "goal_b",
    "goal_b_seen", "seed", "gamma", "level", "kind", "protocol", "dose", "unit", "code", "version",
)  # fmt: skip
_TOP = ("alpha", "criteria")
_KEYS = (
    "name", "metric", "probe", "protocol", "dose", "code", "direction", "threshold", "of", "where", "known", "alpha",
)  # fmt: skip
_DIRECT = ("probe", "protocol", "dose", "code")
_KNOWN = ("agent", "value", "where")
_DTYPES = {c.name: c.dtype for c in RESULT_COLUMNS}

#: Columns and the values that they may have; None stands for null.
Where = tuple[tuple[str, tuple[object, ...]], ...]


@dataclass(frozen=True)
class Known:
    """An agent of the run whose truth is known: the value that a perfect instrument would read off it.

    Attributes:
        agent: its label.
        value: the truth.
        where: rows for which it is the truth; all of the agent's when empty.
    """

    agent: str
    value: float
    where: Where = ()


@dataclass(frozen=True)
class Criterion:
    """What somebody asks of rows.

    Attributes:
        name: unique in the file.
        metric: which metric it speaks of.
        direction: `at least` or `at most` one threshold, `between` two of them (ends included), or `outside` (ends
            excluded).
        low, high: thresholds; one of them is None for a single one.
        of: `rows` for each row apart, `agents` for the mean over the rows of an agent.
        where: columns of `SELECTORS` and the values that they may have.
        known: agents of known truth.
        alpha: chance, at most, that the instrument's error exceeds the bound it is given, in (0, 0.5].
        line: where it stands in its file, for messages.
        lines: where its keys stand, by path from the criterion on, e.g. `("known", 0, "agent")`.
    """

    name: str
    metric: str
    direction: Direction
    low: float | None
    high: float | None
    of: Of = "rows"
    where: Where = ()
    known: tuple[Known, ...] = ()
    alpha: float = 0.05
    line: str = "criteria"
    lines: tuple[tuple[KeyPath, str], ...] = field(default=(), compare=False, repr=False)

    def at(self, *path: str | int) -> str:
        """Where a key stands, or the nearest table around it.

        >>> Criterion("c", "m", "at least", 1.0, None, lines=((("metric",), "a.toml, line 3"),)).at("metric")
        'a.toml, line 3'
        """
        known = dict(self.lines)
        return next((known[path[:end]] for end in range(len(path), 0, -1) if path[:end] in known), self.line)

    @property
    def asks(self) -> str:
        """The requirement in words."""
        ends = [f"{v:g}" for v in (self.low, self.high) if v is not None]
        return f"{self.direction} {' and '.join(ends)}"


def load_criteria(path: Path) -> tuple[Criterion, ...]:
    """Read and check a file of criteria.

    Raises:
        FileError: where there is no such file, or it is too large.
        StudyError: in one line: the file, the line in it, what is wrong, and the nearest right name.
    """
    if not path.is_file():
        raise FileError(f"file of criteria {str(path)!r} does not exist; pass the path of a TOML file")
    if path.stat().st_size > MAX_BYTES:
        raise FileError(f"{str(path)!r} has {path.stat().st_size} bytes; a file of criteria has at most {MAX_BYTES}")
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise FileError(f"{path}: not UTF-8 text (byte {error.start}); save the criteria as UTF-8") from None
    return parse_criteria(text, source=str(path))


def parse_criteria(text: str, *, source: str = "criteria") -> tuple[Criterion, ...]:
    """Read criteria from TOML text; `source` is what errors call it.

    >>> text = '[[criteria]]\\nname = "an optimizer"\\nmetric = "retargetability"\\n'
    >>> text += 'direction = "at least"\\nthreshold = 1.0\\nknown = [{agent = "limit table", value = 0}]\\n'
    >>> parse_criteria(text)[0].asks
    'at least 1'
    >>> parse_criteria(text.replace("1.0", "nan"))
    Traceback (most recent call last):
    ...
    retarget.errors.StudyError: criteria, line 5: threshold must be a finite number, got nan
    """
    try:
        data = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        at = re.search(r"\(at line (\d+), column \d+\)", str(error))
        line = int(at.group(1)) if at else text.count("\n") + 1
        raise StudyError(f"{source}, line {line}: not valid TOML: {str(error).splitlines()[0]}") from None
    return _Reader(data, source, key_lines(text)).criteria()


class _Reader:
    """Turns parsed TOML into criteria; every complaint goes through `fail`, which finds the line."""

    def __init__(self, data: Mapping[str, Any], source: str, lines: Mapping[KeyPath, int]) -> None:
        self.data, self.source, self.lines = data, source, lines

    def fail(self, path: KeyPath, message: str) -> NoReturn:
        raise StudyError(f"{self.source}, line {line_of(self.lines, path)}: {message}")

    def criteria(self) -> tuple[Criterion, ...]:
        self.known_keys((), self.data, _TOP)
        alpha = self.alpha((), self.data, 0.05)
        found = self.data.get("criteria")
        if not isinstance(found, list) or not found or not all(isinstance(t, dict) for t in found):
            self.fail(("criteria",), "there is no criterion; write a [[criteria]] table with a name and a metric")
        out = tuple(self.criterion(("criteria", i), table, alpha) for i, table in enumerate(found))
        for i, c in enumerate(out):
            if c.name in [other.name for other in out[:i]]:
                self.fail(("criteria", i, "name"), f"two criteria are called {c.name!r}; give one another name")
        return out

    def criterion(self, path: KeyPath, table: Mapping[str, Any], alpha: float) -> Criterion:
        self.known_keys(path, table, _KEYS)
        name, metric = (self.text(path, table, key) for key in ("name", "metric"))
        direction = table.get("direction", "at least")
        if direction not in DIRECTIONS:
            self.fail((*path, "direction"), unknown("direction", direction, DIRECTIONS))
        of = table.get("of", "rows")
        if of not in ("rows", "agents"):
            self.fail((*path, "of"), unknown("choice of", of, ("rows", "agents")))
        low, high = self.threshold(path, table, direction)
        where = self.where(path, table.get("where", {}))
        direct = {key: table[key] for key in _DIRECT if key in table}
        for key, value in direct.items():
            if key in dict(where):
                self.fail((*path, key), f"{key} is given twice; leave it out of where")
            where += ((key, self.values((*path, key), key, value)),)
        known = self.known(path, table.get("known", []))
        line = f"{self.source}, line {line_of(self.lines, path)}"
        share = self.alpha(path, table, alpha)
        lines = {k[len(path) :]: f"{self.source}, line {n}" for k, n in self.lines.items() if k[: len(path)] == path}
        lines |= {("where", *k): at for k, at in lines.items() if k[:1] and k[0] in direct}
        lines.pop((), None)
        return Criterion(name, metric, direction, low, high, of, where, known, share, line, tuple(lines.items()))

    def known_keys(self, path: KeyPath, table: Mapping[str, Any], known: tuple[str, ...]) -> None:
        for key in table:
            if key not in known:
                self.fail((*path, key), unknown("key", key, known))

    def text(self, path: KeyPath, table: Mapping[str, Any], key: str) -> str:
        value = table.get(key)
        if not isinstance(value, str) or not value:
            self.fail((*path, key), f'a criterion needs {key} = "...", got {value!r}')
        return value

    def number(self, path: KeyPath, what: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self.fail(path, f"{what} must be a number, got {value!r}")
        try:
            out = float(value)
        except OverflowError:
            out = math.inf
        if not math.isfinite(out):
            self.fail(path, f"{what} must be a finite number, got {out}")
        return out

    def alpha(self, path: KeyPath, table: Mapping[str, Any], default: float) -> float:
        value = self.number((*path, "alpha"), "alpha", table.get("alpha", default))
        if not 0 < value <= 0.5:
            self.fail((*path, "alpha"), f"alpha must lie in (0, 0.5], got {value!r}")
        return value

    def threshold(
        self, path: KeyPath, table: Mapping[str, Any], direction: Direction
    ) -> tuple[float | None, float | None]:
        if "threshold" not in table:
            self.fail(path, "a criterion needs a threshold: a number, or [low, high] for between and outside")
        given, where = table["threshold"], (*path, "threshold")
        if direction in ("at least", "at most"):
            if isinstance(given, list):
                self.fail(where, f"{direction!r} takes one threshold, got {given!r}; or write between or outside")
            one = self.number(where, "threshold", given)
            return (one, None) if direction == "at least" else (None, one)
        if not isinstance(given, list) or len(given) != 2:
            self.fail(where, f"{direction!r} takes two thresholds [low, high], got {given!r}")
        low, high = (self.number((*where, i), "threshold", v) for i, v in enumerate(given))
        if low > high:
            self.fail(where, f"thresholds are the wrong way round: {given!r}; write [{high:g}, {low:g}]")
        return low, high

    def where(self, path: KeyPath, given: object) -> Where:
        if not isinstance(given, dict):
            self.fail((*path, "where"), f'where must be a table such as {{agent = "planner"}}, got {given!r}')
        out = []
        for column, value in given.items():
            at = (*path, "where", column)
            if column in _DTYPES and column not in SELECTORS:
                self.fail(at, f"column {column!r} says what was found; rows are chosen by what was measured")
            if column not in SELECTORS:
                self.fail(at, unknown("column", column, SELECTORS))
            out.append((column, self.values(at, column, value)))
        return tuple(out)

    def values(self, path: KeyPath, column: str, given: object) -> tuple[object, ...]:
        values = given if isinstance(given, list) else [given]
        if not values:
            self.fail(path, f"{column} is an empty list; give at least one value")
        kinds: dict[str, tuple[type, ...]] = {"String": (str,), "Int64": (int,), "Boolean": (bool,)}
        wanted = kinds.get(_DTYPES[column], (int, float))
        for value in values:
            odd = isinstance(value, bool) and bool not in wanted
            if value != "" and (odd or not isinstance(value, wanted)):
                self.fail(path, f'{column} is of the type {_DTYPES[column]}, got {value!r}; "" stands for null')
        # TOML has no null, and no column holds an empty text
        if _DTYPES[column] == "Float64":
            return tuple(None if v == "" else self.number(path, column, v) for v in values)
        return tuple(None if v == "" else v for v in values)

    def known(self, path: KeyPath, given: object) -> tuple[Known, ...]:
        if not isinstance(given, list) or not all(isinstance(t, dict) for t in given):
            self.fail((*path, "known"), f'known must be a list of {{agent = "...", value = ...}}, got {given!r}')
        out = []
        for i, table in enumerate(given):
            at = (*path, "known", i)
            self.known_keys(at, table, _KNOWN)
            if not isinstance(table.get("agent"), str):
                self.fail(at, f'an agent of known truth needs agent = "...", got {table.get("agent")!r}')
            if "value" not in table:
                self.fail(at, f"the agent of known truth {table['agent']!r} needs value = the truth")
            value = self.number((*at, "value"), "value", table["value"])
            out.append(Known(table["agent"], value, self.where(at, table.get("where", {}))))
        return tuple(out)
