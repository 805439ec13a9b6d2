"""Where each key of a TOML text stands, so that an error can name its line."""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from collections.abc import Mapping

KeyPath = tuple[str | int, ...]

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_PLAIN = re.compile(r"[^,\]}#\n]*")
# In order: a longer quote first, since a shorter one is its prefix.
_STRINGS = (
    re.compile(r'"""(?:\\.|[^\\])*?"""(?:"{0,2})', re.DOTALL),
    re.compile(r"'''.*?'''(?:'{0,2})", re.DOTALL),
    re.compile(r'"(?:\\.|[^"\\\n])*"'),
    re.compile(r"'[^'\n]*'"),
)


def key_lines(text: str) -> Mapping[KeyPath, int]:
    """Line numbers (from 1) of the tables, keys and array items of a *valid* TOML text.

    Array items are numbered from 0, so the second `[[agents]]` is `("agents", 1)`.

    >>> key_lines('name = "x"\\n[[agents]]\\nid = "a"\\n')[("agents", 0, "id")]
    3
    """
    return _Scanner(text).scan()


def line_of(lines: Mapping[KeyPath, int], path: KeyPath) -> int:
    """The line of a key, or of the nearest table around it; 1 where nothing is known.

    >>> line_of({("a",): 4}, ("a", "b", 0))
    4
    """
    for end in range(len(path), 0, -1):
        if path[:end] in lines:
            return lines[path[:end]]
    return 1


class _Scanner:
    """Walks over a text that `tomllib` has already accepted, noting where things begin."""

    def __init__(self, text: str) -> None:
        self.text = text.replace("\r\n", "\n")
        self.at = 0
        self.newlines = [m.start() for m in re.finditer("\n", self.text)]
        self.lines: dict[KeyPath, int] = {}
        self.counts: dict[KeyPath, int] = {}

    def scan(self) -> dict[KeyPath, int]:
        prefix: KeyPath = ()
        self._skip()
        while self.at < len(self.text):
            line = self._line()
            if self.text[self.at] == "[":
                width = 2 if self.text.startswith("[[", self.at) else 1
                self.at += width
                prefix = self._table(self._key(), width == 2)
                self.at += width
            else:
                path = prefix + self._key()
                self.at += 1  # the equals sign
                self._note(path, line)
                self._value(path)
                self._skip()
                continue
            self._note(prefix, line)
            self._skip()
        return self.lines

    def _line(self) -> int:
        return bisect_right(self.newlines, self.at - 1) + 1

    def _note(self, path: KeyPath, line: int) -> None:
        for end in range(1, len(path) + 1):
            self.lines.setdefault(path[:end], line)

    def _skip(self) -> None:
        match = _BLANK.match(self.text, self.at)
        self.at = match.end() if match else self.at

    def _key(self) -> tuple[str, ...]:
        parts: list[str] = []
        while True:
            self._skip()
            if self.text[self.at] in "\"'":
                raw = self._string()
                parts.append(str(tomllib.loads(f"k = {raw}")["k"]))
            else:
                match = _BARE.match(self.text, self.at)
                if match is None:  # only for a text that is no TOML
                    raise ValueError(f"no key at line {self._line()}")
                parts.append(match.group())
                self.at = match.end()
            self._skip()
            if self.at >= len(self.text) or self.text[self.at] != ".":
                return tuple(parts)
            self.at += 1

    def _table(self, key: tuple[str, ...], array: bool) -> KeyPath:
        path: KeyPath = ()
        for i, part in enumerate(key):
            path = (*path, part)
            last = i == len(key) - 1
            if last and array:
                self.counts[path] = self.counts.get(path, -1) + 1
            if path in self.counts:
                path = (*path, self.counts[path])
        return path

    def _string(self) -> str:
        for pattern in _STRINGS:
            match = pattern.match(self.text, self.at)
            if match:
                self.at = match.end()
                return match.group()
        raise ValueError(f"no string at line {self._line()}")

    def _value(self, path: KeyPath) -> None:
        self._skip()
        first = self.text[self.at]
        if first in "\"'":
            self._string()
        elif first == "[":
            self._items(path)
        elif first == "{":
            self._fields(path)
        else:
            match = _PLAIN.match(self.text, self.at)
            self.at = match.end() if match else self.at

    def _items(self, path: KeyPath) -> None:
        self.at += 1
        number = 0
        self._skip()
        while self.text[self.at] != "]":
            self._note((*path, number), self._line())
            self._value((*path, number))
            number += 1
            self._comma()
        self.at += 1

    def _fields(self, path: KeyPath) -> None:
        self.at += 1
        self._skip()
        while self.text[self.at] != "}":
            line = self._line()
            field = (*path, *self._key())
            self.at += 1  # the equals sign
            self._note(field, line)
            self._value(field)
            self._comma()
        self.at += 1

    def _comma(self) -> None:
        self._skip()
        if self.text[self.at] == ",":
            self.at += 1
            self._skip()
