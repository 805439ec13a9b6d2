"""The journal: every finished cell, on disk before the next one is asked for.

One SQLite file in write-ahead mode, one transaction a cell. `kill -9` at any moment loses the unfinished cells and
nothing else. Nothing here ever deletes or repairs a file: a journal that cannot be trusted is refused, in one line.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from retarget import __version__
from retarget.digest import canonical_json
from retarget.errors import JournalError
from retarget.row import SCHEMA_VERSION

Row = dict[str, object]

_MAGIC = b"SQLite format 3\0"
_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE cells (
    key TEXT PRIMARY KEY,
    rows TEXT NOT NULL,
    frontier TEXT NOT NULL,
    error TEXT NOT NULL,
    wall_s REAL NOT NULL,
    digest TEXT NOT NULL
);
"""


@dataclass(frozen=True)
class Record:
    """One finished cell, as it was kept.

    Attributes:
        key: key of the cell.
        rows, frontier: rows of the two tables.
        error: what ended the cell unexpectedly, in one line, and its traceback; empty when nothing did.
        wall_s: seconds that it took.
    """

    key: str
    rows: tuple[Row, ...]
    frontier: tuple[Row, ...]
    error: str
    wall_s: float


class Journal:
    """An open journal. Use as a context manager; one process at a time.

    Args:
        path: the file; made when it does not exist.
        study_digest: what study it is for.

    Raises:
        JournalError: when the file is damaged, of another version, of another study, or in use.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with Journal(Path(folder) / "journal.sqlite", "abc") as journal:
    ...         journal.add(Record("k", (), (), "", 0.5))
    ...         sorted(journal.keys())
    ['k']
    """

    def __init__(self, path: Path, study_digest: str) -> None:
        self.path = path
        if not path.exists():
            _create(path, study_digest)
        with _explained(path):
            self.db = _connect(path)
        try:
            with _explained(path):
                # an exclusive lock needs no shared memory, which network file systems do not have
                self.db.execute("PRAGMA locking_mode=EXCLUSIVE")
                self.db.execute("BEGIN IMMEDIATE")
                self.db.execute("COMMIT")
                _check(self.db, path, study_digest)  # before anything is written
                self.db.execute("PRAGMA journal_mode=WAL")
                self.db.execute("PRAGMA synchronous=NORMAL")
        except BaseException:
            self.db.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Fold the write-ahead log into the file, so that one plain file is left."""
        with _explained(self.path):
            try:
                self.db.execute("PRAGMA journal_mode=DELETE")
            finally:
                self.db.close()

    def keys(self) -> set[str]:
        """Keys of the finished cells."""
        with _explained(self.path):
            return {str(key) for (key,) in self.db.execute("SELECT key FROM cells")}

    def failed_keys(self) -> set[str]:
        """Keys of the cells that an unexpected error ended."""
        with _explained(self.path):
            return {str(key) for (key,) in self.db.execute("SELECT key FROM cells WHERE error != ''")}

    def add(self, record: Record) -> None:
        """Keep a finished cell, in one transaction; it takes the place of an earlier record of the same cell."""
        rows, frontier = canonical_json(list(record.rows)), canonical_json(list(record.frontier))
        values = (record.key, rows, frontier, record.error, float(record.wall_s))
        with _explained(self.path):
            self.db.execute("INSERT OR REPLACE INTO cells VALUES (?, ?, ?, ?, ?, ?)", (*values, _digest(*values)))

    def records(self) -> Iterator[Record]:
        """Every finished cell, by key."""
        yield from _records(self.db, self.path)


def read_records(path: Path, study_digest: str) -> tuple[Record, ...]:
    """The records of another shard's journal, which is left as it is.

    Raises:
        JournalError: as for opening one.
    """
    with _explained(path):
        db = _connect(path, read_only=True)
    try:
        with _explained(path):
            _check(db, path, study_digest)
        return tuple(_records(db, path))
    finally:
        db.close()


def _records(db: sqlite3.Connection, path: Path) -> Iterator[Record]:
    with _explained(path):
        cursor = db.execute("SELECT key, rows, frontier, error, wall_s, digest FROM cells ORDER BY key")
        for key, rows, frontier, error, wall_s, _ in cursor:
            yield Record(key, tuple(json.loads(rows)), tuple(json.loads(frontier)), error, wall_s)


def _check_records(db: sqlite3.Connection, path: Path) -> None:
    """Compare every record with its digest: a damaged one must be known before the run, not at its end."""
    for key, rows, frontier, error, wall_s, digest in db.execute("SELECT * FROM cells"):
        if _digest(key, rows, frontier, error, wall_s) != digest:
            raise JournalError(
                f"journal {str(path)!r} is damaged: cell {str(key)[:64]!r} is not what was written; it was left as it "
                "is: put back a copy of it, or start again with another --out"
            )


def _digest(*texts: object) -> str:
    return hashlib.sha256("\0".join(map(str, texts)).encode("utf-8", "surrogatepass")).hexdigest()


def _connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    with path.open("rb") as file:
        head = file.read(18)
    if not head.startswith(_MAGIC) or len(head) < 18:  # SQLite would make an empty file its own
        raise sqlite3.DatabaseError("it is no SQLite file, or was cut off")
    page = int.from_bytes(head[16:18], "big")
    page = 1 << 16 if page == 1 else page
    # with a log beside it, a torn page is written again from there; without one it is for good
    if not _log_of(path).exists() and page and path.stat().st_size % page:
        raise sqlite3.DatabaseError("its last page was cut off")
    mode = "ro" if read_only else "rw"
    # a short wait, for another process that is just closing the file
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=1.0, isolation_level=None)


def _log_of(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def _create(path: Path, study_digest: str) -> None:
    """Make the file whole under another name first: a journal that exists always says what it is for."""
    left = _log_of(path)
    if left.exists():  # SQLite would replay it into the new file
        raise JournalError(f"{str(left)!r} is there, but its journal {str(path)!r} is not; use another --out")
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.new-{os.getpid()}")
    meta = {"schema": str(SCHEMA_VERSION), "version": __version__, "study": study_digest}
    with _explained(path):
        draft.unlink(missing_ok=True)
        db = sqlite3.connect(draft)
        try:
            db.executescript(_TABLES)
            db.executemany("INSERT INTO meta VALUES (?, ?)", sorted(meta.items()))
            db.commit()
        finally:
            db.close()
        try:
            path.hardlink_to(draft)  # unlike a rename, this never takes the place of a journal made meanwhile
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            draft.rename(path)
        finally:
            draft.unlink(missing_ok=True)


def _check(db: sqlite3.Connection, path: Path, study_digest: str) -> None:
    verdict = [str(row[0]) for row in db.execute("PRAGMA quick_check(1)")]
    if verdict != ["ok"]:
        raise sqlite3.DatabaseError(verdict[0] if verdict else "no verdict")
    meta = dict(db.execute("SELECT key, value FROM meta"))
    for key, what, now in (
        ("schema", "schema version", str(SCHEMA_VERSION)),
        ("version", "retarget version", __version__),
    ):
        if meta.get(key) != now:
            raise JournalError(
                f"journal {str(path)!r} has {what} {meta.get(key)!r}, this is {now!r}; "
                "use another --out, or the version that made it"
            )
    if meta.get("study") != study_digest:
        raise JournalError(
            f"journal {str(path)!r} belongs to another study (its content differs, in seeds or options perhaps); "
            "use another --out"
        )
    _check_records(db, path)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what SQLite says about a file into one line."""
    try:
        yield
    except sqlite3.Error as error:
        text = " ".join(str(error).split())
        if "locked" in text or "busy" in text:
            raise JournalError(
                f"journal {str(path)!r} is in use by another run; wait for it, or use another --out"
            ) from None
        raise JournalError(
            f"journal {str(path)!r} cannot be used ({text}); it was left as it is: "
            "put back a copy of it, or start again with another --out"
        ) from None
    except OSError as error:
        raise JournalError(f"journal {str(path)!r} cannot be used ({error.strerror}); use another --out") from None
