"""One SQLite database: its location, how it is created and opened, and the meaning of its errors.

Lives here: its place (in files, or in this process's memory) and what the writer, the readers and the figures ask of
that; the writer's connection with its settings, waiting for a lock, and the one translation of `sqlite3` errors into
`StoreError`. Not here: table names, SQL of any store, threads, when files are compared (`writer.py`: before and after
each commit).

A file that is deleted, or put in another's place, under a process that has it open stays writable: everything that is
written then goes into a file without a name and is lost with the process. SQLite does not notice. The number of an
inode cannot come again as long as somebody has it open, so the comparison is exact.

A database in memory is SQLite's own (its `memdb`): connections of this process share it by its name, with the locks
and the isolation of a file without a log beside it, so a commit waits for the queries that run and new ones wait for
it. It is gone with the last connection, and holds at most a gigabyte, as SQLite is built.

Invariants: every connection that can write to a file has WAL, `synchronous=FULL` and foreign keys on; a `StoreError`
made here names the database and the cause and never holds stored content; what `check` let pass was, at that moment,
where the next process that opens the database will find it; a database in memory touches no disk, and no other process
can see it.
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
"""How long a writer waits for the write lock of another process before it gives up."""

# SQLite's own busy handler backs off to 100 ms between attempts. Against a process that commits group after group
# the lock is free for some microseconds at a time, and such rare attempts can miss all of them for seconds. Short
# slices (attempts after 1, 2, 5 ms) repeated until LOCK_SECONDS try hundreds of times per second instead.
_BUSY_SLICE_MS = 10
_JOURNAL_LIMIT = 64 << 20

_ADVICE: dict[int, tuple[StoreReason, str]] = {
    sqlite3.SQLITE_BUSY: ("locked", "another process kept it locked for too long"),
    sqlite3.SQLITE_LOCKED: ("locked", "another connection kept it locked"),
    sqlite3.SQLITE_READONLY: ("read_only", "it cannot be written to; check the permissions of the file and its folder"),
    sqlite3.SQLITE_PERM: ("read_only", "access was refused; check the permissions of the file and its folder"),
    sqlite3.SQLITE_CANTOPEN: ("failed", "it cannot be opened; check that the folder exists and is writable"),
    sqlite3.SQLITE_FULL: ("full", "the disk is full"),
    sqlite3.SQLITE_IOERR: ("failed", "the disk reported an error"),
    sqlite3.SQLITE_CORRUPT: ("damaged", "it is damaged; restore it from a backup or move it away"),
    sqlite3.SQLITE_NOTADB: (
        "damaged",
        "the file is not a database or is damaged; restore it from a backup or move it away",
    ),
    sqlite3.SQLITE_TOOBIG: ("failed", "a value is too large"),
    sqlite3.SQLITE_CONSTRAINT: ("failed", "a rule of the database refused it"),
}

# Without its log a database lacks what was committed last; without the index beside it two processes would use two.
_SUFFIXES = ("", "-wal", "-shm")


def create_file(path: Path) -> None:
    """Create the folder (0700) and an empty database file (0600) when they are not there."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Never open a file that exists: closing any descriptor of it would drop the POSIX locks that SQLite
        # holds on it elsewhere in this process, and with them what protects its WAL.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        if not path.parent.is_dir():
            raise StoreError(f"The data folder {path.parent} is not a folder.") from None
    except OSError as error:
        raise StoreError(f"The database {path} cannot be created: {error.strerror}.") from error


def connect_writer(path: Path) -> sqlite3.Connection:
    """Open the connection that writes, for the calling thread only."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=_BUSY_SLICE_MS / 1000)
    try:
        # Changing the journal mode ignores the busy handler, hence the loop.
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
    """The URI that opens the database without the right to write."""
    return path.absolute().as_uri() + "?mode=ro"


def wait_for_lock(action: Callable[[], T], seconds: float = LOCK_SECONDS) -> T:
    """Repeat `action` while another process holds the lock it needs, for at most `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return action()
        except sqlite3.OperationalError as error:
            if _primary_code(error) != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                raise
            time.sleep(0.001)  # where SQLite returned at once, so that the loop never spins


@contextmanager
def locked(connection: sqlite3.Connection, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """A transaction that has the write lock from its beginning, and is undone where anything fails in it."""
    wait_for_lock(lambda: connection.execute("BEGIN IMMEDIATE"), seconds)
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def store_error(doing: str, where: object, error: BaseException) -> StoreError:
    """The `StoreError` for an error met while `doing` something there; `raise … from error` keeps the cause."""
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
    """Makes an error of SQLite's met inside it a `StoreError`."""
    try:
        yield
    except sqlite3.Error as error:
        raise store_error(doing, where, error) from error


@contextmanager
def opened(path: Path, doing: str, *, writes: bool = False) -> Iterator[sqlite3.Connection]:
    """A connection of its own for `doing` something there, which only reads unless it `writes`. Raises `StoreError`."""
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
    """A file with its log. `str` of it is for messages; `name`: in labels; `reader_uri`: the URI that opens it without
    the right to write."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files = [f"{path}{suffix}" for suffix in _SUFFIXES]
        self._seen: list[tuple[str, int, int]] = []
        self.name = path.stem
        self.reader_uri = reader_uri(path)

    def __str__(self) -> str:
        return str(self._path)

    def create(self) -> None:
        """Make folder and file, for this user alone, unless they are there. Raises `StoreError`."""
        create_file(self._path)

    def connect(self) -> sqlite3.Connection:
        """The connection that writes, for the calling thread only. Raises `StoreError` and `sqlite3.Error`."""
        return connect_writer(self._path)

    def remember(self) -> None:
        """All files are open now; called once, by whoever opened them. Raises `OSError`."""
        found = [(path, os.stat(path)) for path in self._files]
        self._seen = [(path, seen.st_dev, seen.st_ino) for path, seen in found]

    def check(self) -> None:
        """Raises `StoreError` unless all of them are still in their places."""
        for path, device, inode in self._seen:
            try:
                found = os.stat(path)
            except FileNotFoundError:
                raise _gone(path, "was deleted or moved away") from None
            except OSError as error:
                raise _gone(path, f"cannot be looked at ({error.strerror})") from None
            if found.st_ino != inode or found.st_dev != device:
                raise _gone(path, "was replaced by another file")

    def room(self) -> int:
        """Bytes that are free in the folder, as far as that is known."""
        return free_bytes(self._path.parent)

    def size(self) -> int:
        """Bytes of all its files; those that are not there count nothing."""
        size = 0
        for path in self._files:
            with suppress(OSError):
                size += os.stat(path).st_size
        return size


class MemoryPlace:
    """The same in memory; each has a database of its own."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._uri = f"file:/antiphon-{token_hex(16)}?vfs=memdb"
        self.reader_uri = f"{self._uri}&mode=ro"

    def __str__(self) -> str:
        return f"memory:{self.name}"

    def create(self) -> None:
        """The first connection does."""

    def connect(self) -> sqlite3.Connection:
        """The connection that writes. Its commits wait for queries."""
        connection = sqlite3.connect(self._uri, uri=True, isolation_level=None, timeout=LOCK_SECONDS)
        connection.execute("PRAGMA foreign_keys=ON")
        return connection

    def remember(self) -> None:
        """Nobody can take it away."""

    def check(self) -> None:
        """As long as the writer is there, it is."""

    def room(self) -> int:
        """Not known."""
        return 0

    def size(self) -> int:
        """Its pages; none when it is gone."""
        with closing(sqlite3.connect(self.reader_uri, uri=True, timeout=LOCK_SECONDS)) as connection:
            (size,) = connection.execute(
                "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"
            ).fetchone()
        return int(size)


Place = FilePlace | MemoryPlace


def place_of(where: Path | Place) -> Place:
    """The place that is meant: a path is that of a file."""
    return FilePlace(where) if isinstance(where, Path) else where


def place_in(folder: Path | None, file: str) -> Place:
    """Of the database in this file of a folder; without one in memory, a new one each time."""
    return MemoryPlace(Path(file).stem) if folder is None else FilePlace(folder / file)


def free_bytes(folder: Path) -> int:
    """Bytes that are free where the folder is; 0 when it cannot be looked at."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return 0
    return found.f_bfree * found.f_frsize


def _gone(path: str, what: str) -> StoreError:
    return StoreError(
        f"The file {path} {what} while this process has it open: what was written now would be lost. Put it back, or "
        "restart the process on what is there.",
        reason="gone",
    )
