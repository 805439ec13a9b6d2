"""Zip files that nobody vouches for: everything an archive declares is checked before a byte of it is unpacked.

Only the directory is read when an archive is opened; members are read one by one, in memory, never to disk.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, NoReturn

from retarget.errors import FileError

if TYPE_CHECKING:
    from collections.abc import Iterator

#: A directory may list this many members.
MAX_MEMBERS = 64
#: Members together may unpack to this.
MAX_TOTAL = 1 << 30
#: A member above `FREE_RATIO_BYTES` may be this many times larger than what it is packed into.
MAX_RATIO = 100
FREE_RATIO_BYTES = 1 << 20
#: JSON text beyond this is refused, and so is text of more than so many lists, objects and entries.
MAX_JSON_BYTES = 16 << 20
MAX_JSON_ITEMS = 200_000

_READ_BYTES = 256 << 10
_LOCAL_HEADER = 30
_SYMLINK, _FILE_TYPE = 0o120000, 0o170000


def fail(path: str | Path, message: str) -> NoReturn:
    """Raise the one-line FileError of a file."""
    raise FileError(f"{str(path)!r}: {' '.join(message.split())[:600]}")


def short(error: BaseException) -> str:
    """What a foreign library said, on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:120]}" if text else type(error).__name__


class _InPieces(io.RawIOBase):
    """A file that refuses to hand out more than a piece at once, whatever a directory in it declares."""

    def __init__(self, handle: IO[bytes]) -> None:
        self._handle = handle

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._handle.seek(offset, whence)

    def tell(self) -> int:
        return self._handle.tell()

    def read(self, size: int = -1, /) -> bytes:
        out = self._handle.read(_READ_BYTES + 1 if size < 0 else min(size, _READ_BYTES + 1))
        if len(out) > _READ_BYTES:
            raise zipfile.BadZipFile("its directory is too long for a policy's file")
        return out


@dataclass(frozen=True, eq=False)
class Archive:
    """A zip whose directory has been checked.

    Attributes:
        path: what errors name.
        where: put before a member's name in errors, e.g. `policy.pth: `.
        members: the directory, by name.
    """

    path: Path
    where: str
    members: Mapping[str, zipfile.ZipInfo]
    _zip: zipfile.ZipFile

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.members)

    def read(self, name: str, *, limit: int) -> bytes:
        """The bytes of a member.

        Raises:
            FileError: when it is absent, declares more than `limit` bytes, or holds other bytes than it declares.
        """
        info = self.members.get(name)
        if info is None:
            fail(self.path, f"{self.where}has no member {name!r}; save the agent again")
        if info.file_size > limit:
            fail(self.path, f"{self.where}{name!r} declares {info.file_size} bytes, more than the {limit} it may have")
        out = bytearray()
        try:
            with self._zip.open(info) as member:
                while piece := member.read(min(_READ_BYTES, info.file_size + 1 - len(out))):
                    out += piece
                    if len(out) > info.file_size:
                        break
        except FileError:
            raise
        except Exception as error:  # zipfile and zlib raise a dozen kinds on broken members
            fail(self.path, f"{self.where}{name!r} is broken ({short(error)}); copy the file again")
        if len(out) != info.file_size:
            fail(self.path, f"{self.where}{name!r} declares {info.file_size} bytes but holds others; copy it again")
        return bytes(out)


@contextmanager
def opened(
    path: str | Path, data: bytes | None = None, *, where: str = "", max_members: int = MAX_MEMBERS,
    max_total: int = MAX_TOTAL,
) -> Iterator[Archive]:  # fmt: skip
    """Open a zip, from its path or from bytes in memory, and check its directory.

    Args:
        path: of the file; with `data`, only what errors name.
        data: the zip itself, where it lies inside another file.
        where: put before a member's name in errors.
        max_members, max_total: how many members there may be, and how many bytes they may unpack to together.

    Raises:
        FileError: in one line, for what is no zip; too many members or bytes; names that are absolute, climb out with
            `..`, or come twice; links; members that are encrypted, packed in an unusual way or too tightly, or
            overlap; and bytes in front of the first.
    """
    file = Path(path)
    with _handle(file, data) as handle:
        try:
            archive = zipfile.ZipFile(_InPieces(handle))
        except FileError:
            raise
        except Exception as error:  # a hostile directory can break the parser in many ways
            fail(file, f"{where}is no whole zip file ({short(error)}); copy or save it again")
        with archive:
            infos = archive.infolist()
            _check(file, where, infos, max_members=max_members, max_total=max_total)
            yield Archive(file, where, {i.filename: i for i in infos}, archive)


@contextmanager
def _handle(file: Path, data: bytes | None) -> Iterator[IO[bytes]]:
    if data is not None:
        yield io.BytesIO(data)
        return
    try:
        handle = file.open("rb")
    except OSError as error:
        fail(file, f"cannot be opened ({error.strerror}); check the path and its permissions")
    with handle:
        yield handle


def _check(file: Path, where: str, infos: list[zipfile.ZipInfo], *, max_members: int, max_total: int) -> None:
    if len(infos) > max_members:
        fail(file, f"{where}has {len(infos)} members, more than the {max_members} that a policy's file may have")
    seen: set[str] = set()
    for info in infos:
        problem = _problem(info)
        if problem:
            fail(file, f"{where}member {info.filename[:80]!r} {problem}")
        if info.filename in seen:
            fail(file, f"{where}member {info.filename[:80]!r} is there twice; save the agent again")
        seen.add(info.filename)
    total = sum(i.file_size for i in infos)
    if total > max_total:
        fail(file, f"{where}declares {total} bytes unpacked, more than the {max_total} that it may have")
    if infos and min(i.header_offset for i in infos) != 0:
        # a zip that was cut off may end with a whole zip that lay inside it
        fail(file, f"{where}begins with bytes that belong to no member; it was cut off or changed: copy it again")
    end = 0
    for info in sorted(infos, key=lambda i: i.header_offset):
        if info.header_offset < end:
            fail(file, f"{where}member {info.filename[:80]!r} overlaps another; save the agent again")
        end = info.header_offset + _LOCAL_HEADER + len(info.orig_filename) + info.compress_size


def _problem(info: zipfile.ZipInfo) -> str:
    """What is wrong with one entry of a directory, or an empty text."""
    name = info.orig_filename
    parts = name.replace("\\", "/").split("/")
    if not name or name.startswith(("/", "\\")) or ".." in parts or ":" in parts[0] or "\0" in name or "\\" in name:
        return "has a name that leads out of the archive; refuse the file"
    if (info.external_attr >> 16) & _FILE_TYPE == _SYMLINK:
        return "is a link; save the agent again without links"
    if info.flag_bits & 0x41:
        return "is encrypted; save it without a password"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "is packed in an unusual way; save it stored or deflated"
    if info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size:
        return "lies about its size; copy the file again"
    if info.file_size > FREE_RATIO_BYTES and info.file_size > MAX_RATIO * info.compress_size:
        return f"unpacks to {info.file_size} bytes from {info.compress_size}, as a zip bomb does; refuse the file"
    return ""


def parse_json(path: str | Path, data: bytes, where: str = "") -> dict[str, object]:
    """The object that a JSON text holds.

    Raises:
        FileError: when the text is too long or too rich, is nested too deeply, or holds no object.
    """
    if len(data) > MAX_JSON_BYTES:
        fail(path, f"{where}has {len(data)} bytes of JSON, more than the {MAX_JSON_BYTES} it may have")
    # each list, object or entry costs far more memory than its text does
    if sum(data.count(mark) for mark in (b"[", b"{", b",")) > MAX_JSON_ITEMS:
        fail(path, f"{where}has more than {MAX_JSON_ITEMS} entries of JSON; keep only what describes the policy")
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        fail(path, f"{where}is no JSON text ({short(error)}); save it again")
    if not isinstance(value, dict):
        fail(path, f"{where}holds a JSON {type(value).__name__}, where an object is needed")
    return value
