"""How long things are kept: what is older goes, in pieces so small that no request waits for them.

Lives here: the SQL of ages, and the loop over pieces. Not here: when it is done (`engine/sweeping.py`), how long
anything is kept (settings), files and vector stores (which say themselves when they expire).

A chain goes as a whole, when its latest response is old: nothing is ever taken out of the middle of a conversation.
What runs (background responses, locked conversations) is never old.

Invariant: one piece is one unit of the writer, which other units may join or come between.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from antiphon.stores.sqlite_writer import SqliteWriter, Statement

__all__ = ["KeptFor", "Retention"]

_PIECE = 50

_RUNNING = "SELECT 1 FROM jobs j JOIN responses r ON r.id = j.response_id WHERE r.chain_id = old.id"
DELETE_CHAINS = f"""
DELETE FROM chains WHERE id IN (
  SELECT old.id FROM chains old
  WHERE old.updated_at < :before AND NOT EXISTS ({_RUNNING})
  ORDER BY old.updated_at LIMIT :most
)
"""
DELETE_CONVERSATIONS = """
DELETE FROM conversations WHERE rowid IN (
  SELECT old.rowid FROM conversations old
  WHERE old.updated_at < :before AND (old.locked_by IS NULL OR old.locked_until < :now)
    AND NOT EXISTS (SELECT 1 FROM jobs j WHERE j.response_id = old.locked_by)
  ORDER BY old.updated_at LIMIT :most
)
"""
# Events tell how a response came to be; the response itself stays.
DELETE_EVENTS = """
DELETE FROM response_events WHERE response_id IN (
  SELECT r.id FROM responses r
  WHERE r.background = 1 AND r.created_at < :before
    AND EXISTS (SELECT 1 FROM response_events e WHERE e.response_id = r.id)
    AND NOT EXISTS (SELECT 1 FROM jobs j WHERE j.response_id = r.id)
  ORDER BY r.created_at LIMIT :most
)
"""


@dataclass(frozen=True, slots=True)
class KeptFor:
    """Seconds since the last use (of events: since the response was made); None: for ever."""

    responses: float | None = None
    conversations: float | None = None
    events: float | None = None


class Retention:
    """Deletes what is older than it is to be kept."""

    def __init__(self, writer: SqliteWriter, kept: KeptFor, clock: Callable[[], float] = time.time) -> None:
        self._writer = writer
        self._kept = kept
        self._clock = clock

    async def sweep(self) -> tuple[int, int, int]:
        """Delete everything that is too old; how many chains, conversations and streams of events went."""
        return (
            await self._delete(DELETE_CHAINS, self._kept.responses),
            await self._delete(DELETE_CONVERSATIONS, self._kept.conversations),
            await self._delete(DELETE_EVENTS, self._kept.events),
        )

    async def _delete(self, sql: str, seconds: float | None) -> int:
        if seconds is None:
            return 0
        gone = 0
        while True:
            now = round(self._clock() * 1000)
            named = {"before": now - round(seconds * 1000), "now": now, "most": _PIECE}
            (count,) = await self._writer.run([Statement(sql, named)])
            gone += count
            if not count:
                return gone
