"""Noticing what other processes wrote to SQLite: by asking, since nobody tells.

Lives here: the one question. Not here: how often it is asked of what (`engine/running/lookout.py`).

Invariant: one look is one statement, on the connection that clients do not use.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from antiphon.engine.ports.signals import News, Pace, Seen
from antiphon.stores.jobs import look
from antiphon.stores.tables import Tables

_PACE = Pace(look=0.05, claim=0.05, claim_most=0.25)


class SqliteSignals:
    """`Signals` on tables that somebody else owns and closes."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self.pace = _PACE

    async def look(self, followed: Collection[str], worker: str | None) -> Seen:
        """How far these streams are, and what this worker holds."""
        return await look(self._tables, followed, worker)

    def tell_queued(self) -> None:
        """The others ask by themselves."""

    def listen(self, hear: Callable[[News], None]) -> None:
        """There is nothing to hear."""
