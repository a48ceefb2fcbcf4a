"""What a SQLite database says of itself: the `StoreFigures` of its writer, its readers and its place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from antiphon.engine.ports.figures import DatabaseFigures
from antiphon.engine.running.thread_pools import SIZES
from antiphon.stores.sqlite.place import Place
from antiphon.stores.sqlite.readers import SqliteReaders
from antiphon.stores.sqlite.writer import SqliteWriter


class SqliteFigures:
    """`StoreFigures` of one database."""

    def __init__(self, place: Place, writer: SqliteWriter, readers: SqliteReaders) -> None:
        self._place = place
        self._writer = writer
        self._readers = readers

    @property
    def name(self) -> str:
        """As its place has it."""
        return self._place.name

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

    async def look(self) -> DatabaseFigures:
        """What its place says."""
        return DatabaseFigures(await SIZES.run(self._place.size))
