"""Locates, creates and opens a SQLite database, and translates its errors into `StoreError`.

Lives here: the location of a database (files or memory), the writer's connection and its PRAGMAs, waiting for a lock,
and translating errors. Not here: table names, SQL of any store, threads. The writer (`writer.py`) calls `check` before
and after each commit.

SQLite does not notice when another process deletes or replaces an open database file. Later writes go to the deleted
file, and are lost when the process that writes them ends. `check` detects a replaced file by comparing inode numbers. A
comparison of inode numbers is exact, because the system never reuses the inode number of an open file.

A database in memory uses SQLite's `memdb` VFS. All connections of the process open the database by the same name. This
VFS locks the database in the same way as a file without a write-ahead log. So a commit in memory waits for running
queries, and new queries wait for the commit. SQLite deletes the database with its last connection, and limits the
database to one gigabyte by default.

Invariants: every connection that can write to a file has WAL, `synchronous=FULL` and foreign keys on. A `StoreError` of
this module names the database and the cause, and never contains stored data. If `check` succeeds, another process that
opens the same path opens the same files. A database in memory never touches the disk, and no other process can read it.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import TypeVar

from antiphon.errors import StoreError, StoreReason

T = TypeVar("T")


LOCK_SECONDS = 5.0
"""Seconds that a writer waits for another process's write lock."""

# SQLite's busy handler waits up to 100 ms between attempts to get a lock. A process that commits continuously frees the
# lock for only a short time (see `pause_after` in `writer.py`), so rare attempts can miss the lock for seconds.
# Therefore each call to SQLite waits at most 3 ms, and `wait_for_lock` repeats the call until LOCK_SECONDS. So attempts
# are at most 2 ms apart.
_BUSY_SLICE_MS = 3
_JOURNAL_LIMIT = 64 << 20

_ADVICE: dict[int, tuple[StoreReason, str]] = {
    sqlite3.SQLITE_BUSY: (
        "locked",
        (
            "another process held the database's lock for too long; look for a backup or a shell with an open "
            "transaction"
        ),
    ),
    sqlite3.SQLITE_LOCKED: (
        "locked",
        "another connection of this process held the database's lock for too long; try again",
    ),
    sqlite3.SQLITE_READONLY: (
        "read_only",
        "the file cannot be written to; check the permissions of the file and its folder",
    ),
    sqlite3.SQLITE_PERM: ("read_only", "access was refused; check the permissions of the file and its folder"),
    sqlite3.SQLITE_CANTOPEN: ("failed", "the file cannot be opened; check that the folder exists and is writable"),
    sqlite3.SQLITE_FULL: ("full", "the disk is full"),
    sqlite3.SQLITE_IOERR: ("failed", "the disk reported an error; check the disk and the system's log"),
    sqlite3.SQLITE_CORRUPT: ("damaged", "the database is damaged; restore it from a backup or move it away"),
    sqlite3.SQLITE_NOTADB: (
        "damaged",
        "the file is not a database or is damaged; restore it from a backup or move it away",
    ),
    sqlite3.SQLITE_TOOBIG: ("failed", "a value is too large"),
    sqlite3.SQLITE_CONSTRAINT: ("failed", "a constraint of the database refused the write"),
}

# `check` compares all three files of a database. If the `-wal` file is lost, the last commits are lost. If the `-shm`
# file is replaced, two processes use different WAL indexes.
_SUFFIXES = ("", "-wal", "-shm")


def create_file(path: Path) -> None:
    """Create the folder (mode 0700) and an empty database file (mode 0600) unless they exist. Raises `StoreError`."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # O_EXCL never opens an existing file. Closing any descriptor of a file releases all POSIX locks of this process
        # on that file, and SQLite's locks protect the WAL.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        if not path.parent.is_dir():
            raise StoreError(f"The data folder {path.parent} is not a folder.") from None
    except OSError as error:
        raise StoreError(f"The database {path} cannot be created: {error.strerror}.") from error


def connect_writer(path: Path) -> sqlite3.Connection:
    """Open a read-write connection with WAL, for use in the calling thread only. Raises `StoreError` and
    `sqlite3.Error`."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=_BUSY_SLICE_MS / 1000)
    try:
        # `PRAGMA journal_mode` ignores SQLite's busy handler, so `wait_for_lock` repeats the statement.
        (mode,) = wait_for_lock(lambda: connection.execute("PRAGMA journal_mode=WAL").fetchone())
        if mode != "wal":
            raise StoreError(
                f"The database {path} cannot use a write-ahead log here (journal mode {mode}). Move the data folder to "
                "a local disk."
            )
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute(f"PRAGMA journal_size_limit={_JOURNAL_LIMIT}")
    except BaseException:
        connection.close()
        raise
    return connection


def reader_uri(path: Path) -> str:
    """Return the URI with which `sqlite3.connect` opens the database read-only."""
    return path.absolute().as_uri() + "?mode=ro"


def wait_for_lock(
    action: Callable[[], T],
    seconds: float = LOCK_SECONDS,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Repeat `action` while SQLite reports that another process holds the lock (`SQLITE_BUSY`), for at most `seconds`
    of `clock`. Returns the result of `action`."""
    deadline = clock() + seconds
    while True:
        try:
            return action()
        except sqlite3.OperationalError as error:
            if _primary_code(error) != sqlite3.SQLITE_BUSY or clock() >= deadline:
                raise
            sleep(0.001)  # SQLite sometimes returns immediately: do not spin


@contextmanager
def write_lock(connection: sqlite3.Connection, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Run the block in a transaction that holds the write lock from its beginning. An exception rolls the transaction
    back."""
    wait_for_lock(lambda: connection.execute("BEGIN IMMEDIATE"), seconds)
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def store_error(doing: str, where: object, error: BaseException) -> StoreError:
    """Convert an error into a `StoreError`. `doing` is the operation as a gerund ("Opening"), `where` the database. The
    caller raises the result `from error`."""
    if isinstance(error, StoreError):
        return error
    cause = type(error).__name__
    reason: StoreReason = "failed"
    if isinstance(error, sqlite3.Error):
        reason, cause = _ADVICE.get(_primary_code(error), ("failed", "SQLite refused it"))
        cause += f" ({getattr(error, 'sqlite_errorname', None) or type(error).__name__})"
    elif isinstance(error, OSError) and error.errno:
        cause = f"{os.strerror(error.errno)} ({cause})"
    return StoreError(f"{doing} failed in database {where}: {cause}.", reason=reason, cause=error)


@contextmanager
def store_errors(doing: str, where: object) -> Iterator[None]:
    """Convert SQLite errors in the block to `StoreError`."""
    try:
        yield
    except sqlite3.Error as error:
        raise store_error(doing, where, error) from error


@contextmanager
def open_connection(path: Path, doing: str, *, writes: bool = False) -> Iterator[sqlite3.Connection]:
    """Open a new connection for the block, read-only unless `writes` is set. `doing` names the operation in error
    messages. Raises `StoreError`."""
    with (
        store_errors(doing, path),
        closing(
            connect_writer(path) if writes else sqlite3.connect(reader_uri(path), uri=True, isolation_level=None)
        ) as connection,
    ):
        yield connection


def _primary_code(error: sqlite3.Error) -> int:
    # Extended codes (SQLITE_BUSY_SNAPSHOT, SQLITE_IOERR_WRITE, …) carry the primary code in their low byte.
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF


class FilePlace:
    """A database in a file, with its write-ahead log. Messages use `str(place)`, metric labels use `name`.
    `sqlite3.connect` opens `reader_uri` read-only."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files = [f"{path}{suffix}" for suffix in _SUFFIXES]
        self._seen: list[tuple[str, int, int]] = []
        self.name = path.stem
        self.reader_uri = reader_uri(path)

    def __str__(self) -> str:
        return str(self._path)

    def create(self) -> None:
        """Create the folder and the file unless they exist. Only the current user can access the folder and the file.
        Raises `StoreError`."""
        create_file(self._path)

    def connect(self) -> sqlite3.Connection:
        """Open the read-write connection, for use in the calling thread only. Raises `StoreError` and
        `sqlite3.Error`."""
        return connect_writer(self._path)

    def remember(self) -> None:
        """Record the device and inode numbers of all database files for `check`. The writer calls this method once,
        after opening the files. Raises `OSError`."""
        found = [(path, os.stat(path)) for path in self._files]
        self._seen = [(path, seen.st_dev, seen.st_ino) for path, seen in found]

    def check(self) -> None:
        """Raise `StoreError` if a database file was deleted, moved or replaced since `remember`."""
        for path, device, inode in self._seen:
            try:
                found = os.stat(path)
            except FileNotFoundError:
                raise _gone(path, "was deleted or moved away") from None
            except OSError as error:
                raise _gone(path, f"cannot be read ({error.strerror})") from None
            if found.st_ino != inode or found.st_dev != device:
                raise _gone(path, "was replaced by another file")

    def room(self) -> int:
        """Return the free bytes of the folder's file system, or 0 if unknown."""
        return free_bytes(self._path.parent)

    def size(self) -> int:
        """Return the total bytes of the database file, its `-wal` and its `-shm`. A missing file counts as 0."""
        size = 0
        for path in self._files:
            with suppress(OSError):
                size += os.stat(path).st_size
        return size


class MemoryPlace:
    """A database in this process's memory, with the methods of `FilePlace`. Each instance is a separate database."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._uri = f"file:/antiphon-{token_hex(16)}?vfs=memdb"
        self.reader_uri = f"{self._uri}&mode=ro"

    def __str__(self) -> str:
        return f"memory:{self.name}"

    def create(self) -> None:
        """Do nothing: the first connection creates the database."""

    def connect(self) -> sqlite3.Connection:
        """Open the read-write connection. A commit on this connection waits until running queries end."""
        connection = sqlite3.connect(self._uri, uri=True, isolation_level=None, timeout=LOCK_SECONDS)
        connection.execute("PRAGMA foreign_keys=ON")
        return connection

    def remember(self) -> None:
        """Do nothing: a database in memory has no files that another process could delete or replace."""

    def check(self) -> None:
        """Do nothing: the database exists as long as the writer's connection is open."""

    def room(self) -> int:
        """Return 0: the free memory is unknown."""
        return 0

    def size(self) -> int:
        """Return the total bytes of the database's pages, or 0 after the last connection closed."""
        with closing(sqlite3.connect(self.reader_uri, uri=True, timeout=LOCK_SECONDS)) as connection:
            (size,) = connection.execute(
                "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"
            ).fetchone()
        return int(size)


Place = FilePlace | MemoryPlace


def place_of(where: Path | Place) -> Place:
    """Return `where`, or the `FilePlace` of a path."""
    return FilePlace(where) if isinstance(where, Path) else where


def place_in(folder: Path | None, file: str) -> Place:
    """Return the `FilePlace` of this file name in the folder. Without a folder, return a new database in memory."""
    return MemoryPlace(Path(file).stem) if folder is None else FilePlace(folder / file)


def free_bytes(folder: Path) -> int:
    """Return the free bytes of the folder's file system, or 0 if unknown."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return 0
    return found.f_bfree * found.f_frsize


def _gone(path: str, what: str) -> StoreError:
    return StoreError(
        f"The file {path} {what} while this process has the file open, so new writes would be lost. Put the file "
        "back, or restart the process to use the present file.",
        reason="gone",
    )
