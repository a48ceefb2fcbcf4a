"""What the errors of a database say to whoever reads the log."""

from __future__ import annotations

import errno
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from antiphon.errors import StoreError
from antiphon.stores.sqlite.database import (
    FilePlace,
    free_bytes,
    open_connection,
    place_in,
    place_of,
    store_error,
    wait_for_lock,
    write_lock,
)

WHERE = Path("/data/sessions.db")


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (sqlite3.OperationalError("x"), "SQLite refused it (OperationalError)"),
        (OSError(errno.EINVAL, "x"), "Invalid argument (OSError)"),
        (PermissionError(errno.EACCES, "x"), "Permission denied (PermissionError)"),
        (OSError("words of a library"), "OSError"),
        (ValueError("a stored value"), "ValueError"),
    ],
)
def test_the_cause_is_named_and_nothing_stored(error: Exception, cause: str) -> None:
    assert str(store_error("Opening", WHERE, error)) == f"Opening failed in database /data/sessions.db: {cause}."


@pytest.mark.parametrize(
    ("code", "reason", "told"),
    [
        (sqlite3.SQLITE_BUSY, "locked", "another process held the database's lock for too long"),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, "locked", "another process held the database's lock for too long"),
        (sqlite3.SQLITE_LOCKED, "locked", "another connection of this process held the database's lock for too long"),
        (sqlite3.SQLITE_READONLY, "read_only", "the file cannot be written to"),
        (sqlite3.SQLITE_PERM, "read_only", "access was refused"),
        (sqlite3.SQLITE_CANTOPEN, "failed", "the file cannot be opened"),
        (sqlite3.SQLITE_FULL, "full", "the disk is full"),
        (sqlite3.SQLITE_IOERR, "failed", "the disk reported an error"),
        (sqlite3.SQLITE_IOERR_WRITE, "failed", "the disk reported an error"),
        (sqlite3.SQLITE_CORRUPT, "damaged", "the database is damaged"),
        (sqlite3.SQLITE_NOTADB, "damaged", "the file is not a database or is damaged"),
        (sqlite3.SQLITE_TOOBIG, "failed", "a value is too large"),
        (sqlite3.SQLITE_CONSTRAINT, "failed", "a constraint of the database refused the write"),
        (sqlite3.SQLITE_MISUSE, "failed", "SQLite refused it"),
    ],
)
def test_what_a_code_means(code: int, reason: str, told: str) -> None:
    """An extended code means what its kind does."""
    error = sqlite3.OperationalError("a stored value")
    error.sqlite_errorcode, error.sqlite_errorname = code, "SQLITE_NAME"
    failure = store_error("Writing", WHERE, error)
    assert failure.reason == reason and failure.__cause__ is error
    assert f"/data/sessions.db: {told}" in str(failure) and str(failure).endswith(" (SQLITE_NAME).")
    assert store_error("Reading", WHERE, failure) is failure


def test_a_lock_is_tried_for_again_and_no_other_failure_is() -> None:
    tries = 0

    def fails(code: int, times: int) -> int:
        nonlocal tries
        tries += 1
        if tries <= times:
            error = sqlite3.OperationalError("x")
            error.sqlite_errorcode = code
            raise error
        return tries

    assert wait_for_lock(lambda: fails(sqlite3.SQLITE_BUSY, 3)) == 4
    for code, seconds in ((sqlite3.SQLITE_FULL, 5.0), (sqlite3.SQLITE_BUSY, 0.0)):
        tries = 0
        with pytest.raises(sqlite3.OperationalError):
            wait_for_lock(lambda code=code: fails(code, 1), seconds)  # type: ignore[misc]
        assert tries == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_transaction_is_all_or_nothing_and_holds_the_lock(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a" / "x.db"
    place = FilePlace(path)
    assert (place.name, str(place)) == ("x", str(path))
    place.create()
    assert (path.parent.stat().st_mode & 0o777, path.stat().st_mode & 0o777) == (0o700, 0o600)
    place.create()
    with closing(place.connect()) as one, closing(place.connect()) as other:
        settings = ("journal_mode", "synchronous", "foreign_keys", "journal_size_limit")
        assert [one.execute(f"PRAGMA {name}").fetchone()[0] for name in settings] == ["wal", 2, 1, 64 << 20]
        with write_lock(one):
            one.execute("CREATE TABLE t (a)")
            with pytest.raises(sqlite3.OperationalError), write_lock(other, 0.0):
                pass
        with pytest.raises(error), write_lock(one):
            one.execute("INSERT INTO t VALUES (1)")
            raise error
        assert not one.in_transaction
        with write_lock(other), open_connection(path, "Reading") as reader:
            assert reader.execute("SELECT count(*) FROM t").fetchone() == (0,)
            with pytest.raises(sqlite3.OperationalError, match="readonly"):
                reader.execute("INSERT INTO t VALUES (1)")
        assert place.size() == sum((tmp_path / "a" / f"x.db{end}").stat().st_size for end in ("", "-wal", "-shm"))
    with open_connection(path, "Writing", writes=True) as connection:
        connection.execute("INSERT INTO t VALUES (1)")
    refused = pytest.raises(StoreError, match=r"^Doing failed in database .*: SQLite refused it")
    with refused, open_connection(path, "Doing") as connection:
        connection.execute("SELECT * FROM none")


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
def test_a_file_that_goes_or_is_replaced_is_noticed(tmp_path: Path, suffix: str) -> None:
    place = FilePlace(tmp_path / "x.db")
    place.create()
    with closing(place.connect()) as connection:
        connection.execute("CREATE TABLE t (a)")
        place.remember()
        place.check()
        file, kept = Path(f"{tmp_path / 'x.db'}{suffix}"), tmp_path / "kept"
        file.rename(kept)
        with pytest.raises(StoreError, match="was deleted or moved away while this process") as raised:
            place.check()
        assert raised.value.reason == "gone" and str(file) in str(raised.value)
        file.write_bytes(b"")
        with pytest.raises(StoreError, match="was replaced by another file"):
            place.check()
        kept.rename(file)
        place.check()


def test_a_folder_that_is_none_and_one_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match=r"The data folder .*/file is not a folder\."):
        FilePlace(tmp_path / "file" / "x.db").create()
    with pytest.raises(StoreError, match=r"The database .* cannot be created: Not a directory\."):
        FilePlace(tmp_path / "file" / "more" / "x.db").create()


def test_a_database_in_memory_is_one_for_all_its_connections_and_no_others() -> None:
    place, other = place_in(None, "x.db"), place_in(None, "x.db")
    assert (place.name, str(place), place.room()) == ("x", "memory:x", 0)
    with closing(place.connect()) as writer, closing(other.connect()):
        place.create()
        place.remember()
        writer.execute("CREATE TABLE t (a PRIMARY KEY, b REFERENCES t)")
        with pytest.raises(sqlite3.IntegrityError):
            writer.execute("INSERT INTO t VALUES (1, 2)")
        assert place.size() > other.size() >= 0
        with closing(sqlite3.connect(place.reader_uri, uri=True)) as reader:
            assert reader.execute("SELECT count(*) FROM t").fetchone() == (0,)
            with pytest.raises(sqlite3.OperationalError, match="readonly"):
                reader.execute("INSERT INTO t VALUES (1, 1)")
        with closing(sqlite3.connect(other.reader_uri, uri=True)) as reader, pytest.raises(sqlite3.OperationalError):
            reader.execute("SELECT count(*) FROM t")
        place.check()


def test_where_a_database_is(tmp_path: Path) -> None:
    assert str(place_in(tmp_path, "x.db")) == str(place_of(tmp_path / "x.db")) == str(tmp_path / "x.db")
    memory = place_in(None, "x.db")
    assert place_of(memory) is memory
    assert free_bytes(tmp_path) > 0 and place_of(tmp_path / "x.db").room() > 0
    assert free_bytes(tmp_path / "none") == 0
    assert place_of(tmp_path / "none.db").size() == 0
