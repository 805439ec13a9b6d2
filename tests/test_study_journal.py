"""The journal: what is kept, and what happens to a file that something happened to."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterable
from dataclasses import astuple
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import retarget.study.journal as journal_module
from retarget.errors import JournalError
from retarget.study.journal import Journal, Record, read_records

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 60), 1 << 60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=2),
    max_leaves=4,
)
ROWS = st.lists(st.dictionaries(st.text(max_size=4), JSON, max_size=3), max_size=3).map(tuple)
RECORDS = st.lists(
    st.builds(
        Record,
        st.text("0123456789abcdef", min_size=4, max_size=4),
        ROWS,
        ROWS,
        st.sampled_from(["", "E: x"]),
        st.floats(0, 9),
    ),
    max_size=3,
    unique_by=lambda r: r.key,
)


def _text(records: Iterable[Record]) -> str:
    """Every bit of the records, but for the order of keys within a row."""
    return json.dumps([list(astuple(r)) for r in records], sort_keys=True)


@settings(max_examples=8, deadline=None)
@given(RECORDS)
def test_what_is_kept_comes_back_exactly(tmp_path_factory: pytest.TempPathFactory, records: list[Record]) -> None:
    path = tmp_path_factory.mktemp("j") / "journal.sqlite"
    for record in records:  # a new process each time, as far as the file can tell
        with Journal(path, "s") as journal:
            journal.add(record)
    with Journal(path, "s") as journal:
        assert _text(journal.records()) == _text(sorted(records, key=lambda r: r.key))
        assert journal.keys() == {r.key for r in records}
        assert journal.failed_keys() == {r.key for r in records if r.error}
    assert _text(read_records(path, "s")) == _text(sorted(records, key=lambda r: r.key))
    assert [p.name for p in path.parent.iterdir()] == ["journal.sqlite"]


def test_a_later_record_of_a_cell_takes_the_place_of_the_earlier(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", "s") as journal:
        journal.add(Record("k", (), (), "E: x", 1.0))
        journal.add(Record("k", ({"a": 1},), (), "", 2.0))
        assert list(journal.records()) == [Record("k", ({"a": 1},), (), "", 2.0)]


def test_another_study_or_version_is_refused_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal.sqlite"
    with Journal(path, "s") as journal:
        journal.add(Record("k", (), (), "", 1.0))
    before = path.read_bytes()
    with pytest.raises(JournalError, match=r"belongs to another study.*another --out"):
        Journal(path, "other")
    for name, value, words in (
        ("__version__", "9.9", "retarget version '0.1.0'"),
        ("SCHEMA_VERSION", 99, f"schema version '{journal_module.SCHEMA_VERSION}'"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(journal_module, name, value)
            with pytest.raises(JournalError, match=words):
                Journal(path, "s")
    with Journal(path, "s") as journal:
        assert journal.keys() == {"k"}
    assert len(before) == len(path.read_bytes())


def test_a_journal_in_use_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with Journal(path, "s") as journal, pytest.raises(JournalError, match="in use by another run"):
        journal.add(Record("k", (), (), "", 1.0))
        Journal(path, "s")
    with Journal(path, "s") as journal:
        assert journal.keys() == {"k"}


def _torn(tmp_path: Path) -> tuple[Path, list[Record]]:
    """The files of a run that was killed: a journal, and a log beside it that was never folded in."""
    live, dead = tmp_path / "live", tmp_path / "dead"
    live.mkdir()
    records = [Record(f"{i:02x}", ({"a": i, "text": "x" * 300},), (), "", float(i)) for i in range(8)]
    with Journal(live / "journal.sqlite", "s") as journal:
        for record in records:
            journal.add(record)
        shutil.copytree(live, dead)
    assert (dead / "journal.sqlite-wal").stat().st_size > 8 * 300
    return dead, records


def _opened(folder: Path) -> list[Record] | None:
    """The records, or None when the journal is refused in one line."""
    try:
        with Journal(folder / "journal.sqlite", "s") as journal:
            return list(journal.records())
    except JournalError as error:
        assert "\n" not in str(error) and "journal.sqlite" in str(error)
        return None


def test_after_a_kill_everything_is_there(tmp_path: Path) -> None:
    dead, records = _torn(tmp_path)
    assert _opened(dead) == records


def test_a_log_cut_anywhere_loses_only_what_was_cut(tmp_path: Path) -> None:
    dead, records = _torn(tmp_path)
    log = (dead / "journal.sqlite-wal").read_bytes()
    counts = []
    for end in sorted({*range(0, len(log), 997), len(log) - 1, len(log)}):
        shutil.rmtree(tmp_path / "cut", ignore_errors=True)
        shutil.copytree(dead, tmp_path / "cut")
        (tmp_path / "cut" / "journal.sqlite-wal").write_bytes(log[:end])
        found = _opened(tmp_path / "cut")
        assert found is not None and found == records[: len(found)]
        counts.append(len(found))
    assert counts == sorted(counts) and counts[0] == 0 and counts[-2] >= len(records) - 1 and counts[-1] == len(records)


@pytest.mark.parametrize("name", ["journal.sqlite", "journal.sqlite-wal"])
def test_a_damaged_file_is_refused_or_right(tmp_path: Path, name: str) -> None:
    dead, records = _torn(tmp_path)
    good = (dead / name).read_bytes()
    for at in range(0, len(good), max(1, len(good) // 40)):
        shutil.rmtree(tmp_path / "bad", ignore_errors=True)
        shutil.copytree(dead, tmp_path / "bad")
        (tmp_path / "bad" / name).write_bytes(good[:at] + bytes([good[at] ^ 0x55]) + good[at + 1 :])
        found = _opened(tmp_path / "bad")
        assert found is None or all(r in records for r in found)
        assert (tmp_path / "bad" / "journal.sqlite").exists()


def test_a_file_cut_anywhere_is_refused_and_left(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    records = [Record(f"{i:02x}", ({"text": "x" * 3000},), (), "", float(i)) for i in range(8)]
    with Journal(path, "s") as journal:
        for record in records:
            journal.add(record)
    good = path.read_bytes()
    for end in [0, 1, 50, 99, 100, 512, 4096, 8192, len(good) // 2, len(good) - 4096, len(good) - 1]:
        path.write_bytes(good[:end])
        assert _opened(tmp_path) is None
        assert path.read_bytes() == good[:end]
    path.write_bytes(good)
    assert _opened(tmp_path) == records


def test_a_changed_record_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with Journal(path, "s") as journal:
        journal.add(Record("k", ({"value": 1.0},), (), "", 1.0))
    db = sqlite3.connect(path)
    db.execute("UPDATE cells SET rows = replace(rows, '1.0', '2.0')")
    db.commit()
    db.close()
    with pytest.raises(JournalError, match="cell 'k' is not what was written"):
        Journal(path, "s")
    with pytest.raises(JournalError, match="cell 'k' is not what was written"):
        read_records(path, "s")


def test_what_is_no_journal_is_refused_and_left(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    path.write_text("a diary")
    with pytest.raises(JournalError, match="left as it is"):
        Journal(path, "s")
    assert path.read_text() == "a diary"
    other = tmp_path / "other.sqlite"
    db = sqlite3.connect(other)
    db.execute("CREATE TABLE meta (a)")
    db.close()
    with pytest.raises(JournalError):
        Journal(other, "s")


def test_a_log_without_its_journal_is_refused(tmp_path: Path) -> None:
    dead, _ = _torn(tmp_path)
    (dead / "journal.sqlite").unlink()
    with pytest.raises(JournalError, match=r"journal.sqlite-wal.*is not"):
        Journal(dead / "journal.sqlite", "s")
    assert (dead / "journal.sqlite-wal").exists()


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match="cannot be used"):
        Journal(tmp_path / "file" / "journal.sqlite", "s")
