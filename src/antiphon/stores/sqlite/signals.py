"""Noticing what other processes wrote to SQLite: by asking, since nobody tells.

Lives here: the one question. Not here: how often it is asked of what (`engine/running/lookout.py`).

Invariant: one look is one statement, on the connection that clients do not use.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection

from antiphon.engine.ports.jobs import Progress
from antiphon.engine.ports.signals import News, Pace, Seen
from antiphon.stores.sqlite.jobs import HELD_JOBS, PROGRESS
from antiphon.stores.sqlite.readers import SqliteReaders

_PACE = Pace(look=0.05, claim=0.05, claim_most=0.25)
_LOOK = f"{PROGRESS} UNION ALL SELECT response_id, NULL, NULL FROM ({HELD_JOBS})"


class SqliteSignals:
    """`Signals` on readers that somebody else owns and closes."""

    def __init__(self, readers: SqliteReaders) -> None:
        self._readers = readers
        self.pace = _PACE

    async def look(self, followed: Collection[str], worker: str | None) -> Seen:
        """How far these streams are, and what this worker holds."""
        named = {"ids": json.dumps(sorted(followed)), "worker": worker}
        rows = await self._readers.fetch(_LOOK, named, own=True)
        progress = {name: Progress(status, -1 if last is None else last) for name, status, last in rows if status}
        return Seen(progress, frozenset(name for name, status, _ in rows if status is None))

    def tell_queued(self) -> None:
        """The others ask by themselves."""

    def listen(self, hear: Callable[[News], None]) -> None:
        """There is nothing to hear."""
