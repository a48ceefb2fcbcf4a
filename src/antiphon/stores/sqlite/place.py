"""Where a SQLite database is: in files, or in this process's memory.

Lives here: what the writer, the readers and the figures ask of that place; whether the files that a database has open
are still those that its path names. Not here: the settings of a connection (`database.py`), when files are compared
(`writer.py`: before and after each commit).

A file that is deleted, or put in another's place, under a process that has it open stays writable: everything that is
written then goes into a file without a name and is lost with the process. SQLite does not notice. The number of an
inode cannot come again as long as somebody has it open, so the comparison is exact.

A database in memory is SQLite's own (its `memdb`): connections of this process share it by its name, with the locks
and the isolation of a file without a log beside it, so a commit waits for the queries that run and new ones wait for
it. It is gone with the last connection, and holds at most a gigabyte, as SQLite is built.

Invariants: what `check` let pass was, at that moment, where the next process that opens the database will find it; a
database in memory touches no disk, and no other process can see it.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from secrets import token_hex

from antiphon.errors import StoreError
from antiphon.stores.sqlite.database import LOCK_SECONDS, connect_writer, create_file, reader_uri

# Without its log a database lacks what was committed last; without the index beside it two processes would use two.
_SUFFIXES = ("", "-wal", "-shm")


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
