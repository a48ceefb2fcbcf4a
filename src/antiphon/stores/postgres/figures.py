"""What a PostgreSQL database says of itself, and what this process does on it: its `StoreFigures`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from antiphon.stores.postgres.database import Database
from antiphon.stores.postgres.turn_groups import Groups

_SIZE = "SELECT pg_database_size(current_database())"


class PostgresFigures:
    """`StoreFigures` of a database and the groups that are written to it."""

    def __init__(self, database: Database, groups: Sequence[Groups[Any]]) -> None:
        self._database = database
        self._groups = groups

    @property
    def name(self) -> str:
        """What it is called in labels."""
        return "postgresql"

    @property
    def waiting(self) -> int:
        """Writes that wait for their group, and callers that wait for a connection."""
        return sum(groups.waiting for groups in self._groups) + self._database.waiting

    @property
    def busy(self) -> int:
        """Connections at work."""
        return self._database.busy

    @property
    def groups(self) -> Mapping[int, int]:
        """Statements by how many writes they took along."""
        total: Counter[int] = Counter()
        for groups in self._groups:
            total.update(groups.groups)
        return total

    async def size(self) -> int:
        """The whole database, with its indexes and what waits to be vacuumed."""
        return int((await self._database.fetch(_SIZE))[0][0])
