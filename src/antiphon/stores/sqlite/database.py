"""Locates, creates and opens one SQLite database, and translates its errors.

Lives here: its place (files, or this process's memory) with what the writer, the readers and the figures need from it.
The writer's connection with its settings, waiting for a lock, and the one translation of `sqlite3` errors into
`StoreError` are here too. Not here: table names, SQL of any store, threads, when files are compared (`writer.py`:
before and after each commit).

A process can still write to a database file that another process deleted or replaced. All those writes go into a file
without a name and are lost with the process. SQLite does not notice this. `check` compares inode numbers: while a
process has the file open, no other file gets its number, so the comparison is exact.

A database in memory uses SQLite's `memdb`. Connections of this process share it by its name, with the locks and the
isolation of a file without a write-ahead log. So a commit waits for running queries, and new queries wait for the
commit. It ends with the last connection, and holds at most one gigabyte (SQLite's default).

Invariants: every connection that can write to a file has WAL, `synchronous=FULL` and foreign keys on. A `StoreError` of
this module names the database and the cause, and never contains stored data. After a successful `check`, the next
process that opens the database finds the same files. A database in memory touches no disk, and no other process can
read it.
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

# SQLite's busy handler backs off to 100 ms between attempts. A process that commits group after group frees the lock
# for only microseconds at a time. Such rare attempts can miss it for seconds. Short slices (attempts after 1, 2, 5 ms),
# repeated until LOCK_SECONDS, try hundreds of times per second instead.
_BUSY_SLICE_MS = 10
_JOURNAL_LIMIT = 64 << 20

_ADVICE: dict[int, tuple[StoreReason, str]] = {
    sqlite3.SQLITE_BUSY: (
        "locked",
        ("another process held its lock for too long; look for a backup or a shell with an open transaction"),
    ),
    sqlite3.SQLITE_LOCKED: ("locked", "another connection of this process held its lock for too long; try again"),
    sqlite3.SQLITE_READONLY: ("read_only", "it cannot be written to; check the permissions of the file and its folder"),
    sqlite3.SQLITE_PERM: ("read_only", "access was refused; check the permissions of the file and its folder"),
    sqlite3.SQLITE_CANTOPEN: ("failed", "it cannot be opened; check that the folder exists and is writable"),
    sqlite3.SQLITE_FULL: ("full", "the disk is full"),
    sqlite3.SQLITE_IOERR: ("failed", "the disk reported an error; check the disk and the system's log"),
    sqlite3.SQLITE_CORRUPT: ("damaged", "it is damaged; restore it from a backup or move it away"),
    sqlite3.SQLITE_NOTADB: (
        "damaged",
        "the file is not a database or is damaged; restore it from a backup or move it away",
    ),
    sqlite3.SQLITE_TOOBIG: ("failed", "a value is too large"),
    sqlite3.SQLITE_CONSTRAINT: ("failed", "a rule of the database refused it"),
}

# Without its log a database lacks the last commits. Without the shared-memory index next to it, two processes would use
# two indexes.
_SUFFIXES = ("", "-wal", "-shm")


def create_file(path: Path) -> None:
    """Create the folder (0700) and an empty database file (0600) unless they exist."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Never open an existing file: closing any descriptor of it would release the POSIX locks that SQLite holds on
        # it elsewhere in this process. These locks protect its WAL.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        if not path.parent.is_dir():
            raise StoreError(f"The data folder {path.parent} is not a folder.") from None
    except OSError as error:
        raise StoreError(f"The database {path} cannot be created: {error.strerror}.") from error


def connect_writer(path: Path) -> sqlite3.Connection:
    """Open the connection that writes, for use in the calling thread only."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=_BUSY_SLICE_MS / 1000)
    try:
        # Changing the journal mode ignores the busy handler, so this code repeats it.
        (mode,) = wait_for_lock(lambda: connection.execute("PRAGMA journal_mode=WAL").fetchone())
        if mode != "wal":
            raise StoreError(f"The database {path} cannot use a write-ahead log here (journal mode {mode}).")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute(f"PRAGMA journal_size_limit={_JOURNAL_LIMIT}")
    except BaseException:
        connection.close()
        raise
    return connection


def reader_uri(path: Path) -> str:
    """The URI that opens the database read-only."""
    return path.absolute().as_uri() + "?mode=ro"


def wait_for_lock(action: Callable[[], T], seconds: float = LOCK_SECONDS) -> T:
    """Repeat `action` while another process holds the lock that it needs, for at most `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return action()
        except sqlite3.OperationalError as error:
            if _primary_code(error) != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                raise
            time.sleep(0.001)  # so that the loop never spins when SQLite returns at once


@contextmanager
def locked(connection: sqlite3.Connection, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """A transaction that holds the write lock from its beginning. It rolls back on any exception."""
    wait_for_lock(lambda: connection.execute("BEGIN IMMEDIATE"), seconds)
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def store_error(doing: str, where: object, error: BaseException) -> StoreError:
    """The `StoreError` for an error during `doing` at `where`; `raise … from error` keeps the cause."""
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
def opened(path: Path, doing: str, *, writes: bool = False) -> Iterator[sqlite3.Connection]:
    """A separate connection for `doing` something, read-only unless `writes` is set. Raises `StoreError`."""
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
    """A database file with its log. `str(place)` is for messages, `name` for labels; `reader_uri` opens it
    read-only."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files = [f"{path}{suffix}" for suffix in _SUFFIXES]
        self._seen: list[tuple[str, int, int]] = []
        self.name = path.stem
        self.reader_uri = reader_uri(path)

    def __str__(self) -> str:
        return str(self._path)

    def create(self) -> None:
        """Create folder and file, accessible to this user only, unless they exist. Raises `StoreError`."""
        create_file(self._path)

    def connect(self) -> sqlite3.Connection:
        """The connection that writes, for the calling thread only. Raises `StoreError` and `sqlite3.Error`."""
        return connect_writer(self._path)

    def remember(self) -> None:
        """Record the identity of all files, which are open now. The opener calls this once. Raises `OSError`."""
        found = [(path, os.stat(path)) for path in self._files]
        self._seen = [(path, seen.st_dev, seen.st_ino) for path, seen in found]

    def check(self) -> None:
        """Raise `StoreError` unless all files are still in their places."""
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
        """The free bytes in the folder; 0 when unknown."""
        return free_bytes(self._path.parent)

    def size(self) -> int:
        """The bytes of all its files; missing ones count 0."""
        size = 0
        for path in self._files:
            with suppress(OSError):
                size += os.stat(path).st_size
        return size


class MemoryPlace:
    """The same in memory. Each instance has a separate database."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._uri = f"file:/antiphon-{token_hex(16)}?vfs=memdb"
        self.reader_uri = f"{self._uri}&mode=ro"

    def __str__(self) -> str:
        return f"memory:{self.name}"

    def create(self) -> None:
        """Do nothing: the first connection creates the database."""

    def connect(self) -> sqlite3.Connection:
        """Open the connection that writes. Its commits wait for queries."""
        connection = sqlite3.connect(self._uri, uri=True, isolation_level=None, timeout=LOCK_SECONDS)
        connection.execute("PRAGMA foreign_keys=ON")
        return connection

    def remember(self) -> None:
        """Do nothing: no other process can remove it."""

    def check(self) -> None:
        """Do nothing: it exists as long as the writer's connection."""

    def room(self) -> int:
        """0: unknown."""
        return 0

    def size(self) -> int:
        """The bytes of its pages; 0 when it has ended."""
        with closing(sqlite3.connect(self.reader_uri, uri=True, timeout=LOCK_SECONDS)) as connection:
            (size,) = connection.execute(
                "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"
            ).fetchone()
        return int(size)


Place = FilePlace | MemoryPlace


def place_of(where: Path | Place) -> Place:
    """The place itself, or the file at this path."""
    return FilePlace(where) if isinstance(where, Path) else where


def place_in(folder: Path | None, file: str) -> Place:
    """The place of this database file in a folder; without a folder, a new database in memory."""
    return MemoryPlace(Path(file).stem) if folder is None else FilePlace(folder / file)


def free_bytes(folder: Path) -> int:
    """The free bytes of the folder's file system; 0 when unknown."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return 0
    return found.f_bfree * found.f_frsize


def _gone(path: str, what: str) -> StoreError:
    return StoreError(
        f"The file {path} {what} while this process has it open: new writes would be lost. Put the file "
        "back, or restart the process with the file that is there.",
        reason="gone",
    )
