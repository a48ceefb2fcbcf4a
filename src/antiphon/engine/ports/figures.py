"""What a database says of itself, for metrics.

Lives here: the port. Not here: names of metrics, who asks and how often (`app/measuring.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class DatabaseFigures:
    """What a database said when it was asked. All but `size` is of a server, and empty where there is none."""

    size: int
    """What the database takes, in bytes."""
    tables: Mapping[str, int] = field(default_factory=dict)
    """What each table takes with its indexes, in bytes."""
    connections: Mapping[str, int] = field(default_factory=dict)
    """Clients' connections to the whole server, by state."""
    most_connections: int | None = None
    """How many the server takes."""
    oldest_xmin: int | None = None
    """Transactions that have begun since the oldest that somebody still sees the database by."""


class StoreFigures(Protocol):
    """Figures of one database, as this process sees it."""

    @property
    def name(self) -> str:
        """The database's name in labels."""

    @property
    def waiting(self) -> int:
        """Writes that wait to be written."""

    @property
    def busy(self) -> int:
        """Connections for reading that are in use."""

    @property
    def groups(self) -> Mapping[int, int]:
        """How many transactions there were since the start, by how many writes each of them took along."""

    async def look(self) -> DatabaseFigures:
        """Ask it, with one question. Raises `StoreError`."""
