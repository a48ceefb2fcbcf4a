"""What a database says of itself, for metrics.

Lives here: the port. Not here: names of metrics, who asks and how often (`app/measuring.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


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

    async def size(self) -> int:
        """What the database takes, in bytes. Raises `StoreError`."""
