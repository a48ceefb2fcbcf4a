"""One SQLite database file: how it comes to exist, how it is opened, and what its errors mean.

Lives here: creating the file, the writer's connection with its settings, waiting for a lock, and the one
translation of `sqlite3` errors into `StoreError`. Not here: table names, SQL of any store, threads.

Invariant: every connection that can write has WAL, `synchronous=FULL` and foreign keys on; a `StoreError` made
here names the database and the cause and never holds stored content.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
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


def _primary_code(error: sqlite3.Error) -> int:
    # Extended codes (SQLITE_BUSY_SNAPSHOT, SQLITE_IOERR_WRITE, …) carry the primary code in their low byte.
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
