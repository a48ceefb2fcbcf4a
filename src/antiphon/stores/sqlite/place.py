"""Where a SQLite database is: in files, or in this process's memory.

Lives here: what the writer, the readers and the figures ask of that place. Not here: the settings of a connection
(`database.py`), what becomes of files under a process (`database_files.py`).

A database in memory is SQLite's own (its `memdb`): connections of this process share it by its name, with the locks
and the isolation of a file without a log beside it, so a commit waits for the queries that run and new ones wait for
it. It is gone with the last connection, and holds at most a gigabyte, as SQLite is built.

Invariant: a database in memory touches no disk, and no other process can see it.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from secrets import token_hex
from typing import Protocol

from antiphon.stores.sqlite.database import LOCK_SECONDS, connect_writer, create_file, reader_uri
from antiphon.stores.sqlite.database_files import DatabaseFiles, free_bytes, size_of_files


class Place(Protocol):
    """Where one database is. `str` of it is for messages."""

    @property
    def name(self) -> str:
        """The database's name in labels."""

    def create(self) -> None:
        """Make it, empty, unless it is there. Raises `StoreError`."""

    def connect(self) -> sqlite3.Connection:
        """The connection that writes, for the calling thread only. Raises `StoreError` and `sqlite3.Error`."""

    @property
    def reader_uri(self) -> str:
        """The URI that opens it without the right to write."""

    def remember(self) -> None:
        """It is open now. Raises `OSError`."""

    def check(self) -> None:
        """Raises `StoreError` unless what is written will be found again."""

    def room(self) -> int:
        """Bytes that are free beside it, as far as that is known."""

    def size(self) -> int:
        """Bytes that it takes."""


class FilePlace:
    """`Place` of a file with its log."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files = DatabaseFiles(path)
        self.check = self._files.check
        self.remember = self._files.remember

    def __str__(self) -> str:
        return str(self._path)

    @property
    def name(self) -> str:
        """The file's name."""
        return self._path.stem

    def create(self) -> None:
        """Folder and file, for this user alone."""
        create_file(self._path)

    def connect(self) -> sqlite3.Connection:
        """The connection that writes."""
        return connect_writer(self._path)

    @property
    def reader_uri(self) -> str:
        """The URI that opens it without the right to write."""
        return reader_uri(self._path)

    def room(self) -> int:
        """Free in the folder."""
        return free_bytes(self._path.parent)

    def size(self) -> int:
        """Of all its files."""
        return size_of_files(self._path)


class MemoryPlace:
    """`Place` in memory; each has a database of its own."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._uri = f"file:/antiphon-{token_hex(16)}?vfs=memdb"

    def __str__(self) -> str:
        return f"memory:{self._name}"

    @property
    def name(self) -> str:
        """The name that it was made with."""
        return self._name

    def create(self) -> None:
        """The first connection does."""

    def connect(self) -> sqlite3.Connection:
        """The connection that writes. Its commits wait for queries."""
        connection = sqlite3.connect(self._uri, uri=True, isolation_level=None, timeout=LOCK_SECONDS)
        connection.execute("PRAGMA foreign_keys=ON")
        return connection

    @property
    def reader_uri(self) -> str:
        """The URI that opens it without the right to write."""
        return f"{self._uri}&mode=ro"

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


def place_of(where: Path | Place) -> Place:
    """The place that is meant: a path is that of a file."""
    return FilePlace(where) if isinstance(where, Path) else where


class Databases(Protocol):
    """Where the databases of one state are."""

    def place(self, file: str) -> Place:
        """Of this one, by the name of its file."""

    def has(self, file: str) -> bool:
        """Whether it may hold anything."""


class Folder:
    """`Databases` in the files of a folder."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def place(self, file: str) -> Place:
        """The file."""
        return FilePlace(self._path / file)

    def has(self, file: str) -> bool:
        """Whether the file is there."""
        return (self._path / file).exists()


class Memory:
    """`Databases` in this process's memory, each gone when it is closed."""

    def place(self, file: str) -> Place:
        """A new one."""
        return MemoryPlace(Path(file).stem)

    def has(self, file: str) -> bool:
        """Whoever opens one finds it empty."""
        return False
