"""What a SQLite database says of itself: the `StoreFigures` of its writer, its readers and its files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from antiphon.engine.running.thread_pools import SIZES
from antiphon.stores.sqlite.database_files import size_of_files
from antiphon.stores.sqlite.readers import SqliteReaders
from antiphon.stores.sqlite.writer import SqliteWriter


class SqliteFigures:
    """`StoreFigures` of the database at `path`."""

    def __init__(self, path: Path, writer: SqliteWriter, readers: SqliteReaders) -> None:
        self._path = path
        self._writer = writer
        self._readers = readers

    @property
    def name(self) -> str:
        """The file's name."""
        return self._path.stem

    @property
    def waiting(self) -> int:
        """Writes that wait for the writer."""
        return self._writer.waiting

    @property
    def busy(self) -> int:
        """Readers that are lent."""
        return self._readers.busy

    @property
    def groups(self) -> Mapping[int, int]:
        """Transactions by how many writes they took along; a copy, since the writer's thread goes on counting."""
        return Counter(dict(self._writer.groups))

    async def size(self) -> int:
        """All files of the database; those that are not there count nothing."""
        return await SIZES.run(size_of_files, self._path)
