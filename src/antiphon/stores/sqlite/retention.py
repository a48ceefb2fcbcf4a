"""How long things are kept: what is older goes, in pieces so small that no request waits for them.

Lives here: the SQL of ages, the loop over pieces, and whose turn it is. Not here: when it is done
(`app/sweeping.py`), how long anything is kept (settings), files and vector stores (which say themselves when they
expire).

A chain goes as a whole, when its latest response is old: nothing is ever taken out of the middle of a conversation.
What runs (background responses, locked conversations) is never old. What is too large for one piece is first made
unusable, in the same unit as its first rows go: a chain takes no more responses and has lost its first one, a
conversation is locked by the sweep.

Invariant: one piece is one unit of the writer, which other units may join or come between, and deletes a bounded number
of rows (`_ROWS`, or one response with its items and events); each unit looks again whether what goes is still old.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

from antiphon.config.state import RetentionSettings
from antiphon.engine.ports.retention import SWEEPER
from antiphon.stores.sqlite.lease_clock import lease_now
from antiphon.stores.sqlite.readers import Row, SqliteReaders
from antiphon.stores.sqlite.writer import SqliteWriter
from antiphon.stores.tables import Statement, milliseconds

_ROWS = 1000
_LOOKED_AT = 200
_FOR_EVER = (1 << 63) - 1

_RUNNING = "SELECT 1 FROM jobs j JOIN responses r ON r.id = j.response_id WHERE r.chain_id = old.id"
# A chain's responses come in the order in which they were stored, its first one first. Rows are counted no further than
# they matter.
OLD_RESPONSES = f"""
WITH gone (chain_id) AS (
  SELECT old.id FROM chains old WHERE old.updated_at < :before AND NOT EXISTS ({_RUNNING})
  ORDER BY old.updated_at LIMIT :limit
)
SELECT gone.chain_id, r.id, 1
  + (SELECT count(*) FROM (SELECT 1 FROM response_items i WHERE i.response_id = r.id LIMIT :rows))
  + (SELECT count(*) FROM (SELECT 1 FROM response_events e WHERE e.response_id = r.id LIMIT :rows))
FROM gone LEFT JOIN responses r ON r.chain_id = gone.chain_id LIMIT :limit
"""
# From here on nothing continues it (`responses.py` looks at `expires_at`), and it stays the oldest.
CLOSE_CHAINS = f"""
UPDATE chains AS old SET expires_at = :now, updated_at = 0
WHERE id IN (SELECT value FROM json_each(:chains)) AND updated_at < :before AND NOT EXISTS ({_RUNNING})
"""
DELETE_RESPONSES = """
DELETE FROM responses WHERE id IN (SELECT value FROM json_each(:ids))
  AND (SELECT expires_at FROM chains WHERE chains.id = responses.chain_id) IS NOT NULL
"""
DELETE_CHAINS = """
DELETE FROM chains WHERE id IN (SELECT value FROM json_each(:chains)) AND expires_at IS NOT NULL
  AND NOT EXISTS (SELECT 1 FROM responses r WHERE r.chain_id = chains.id)
"""

_IDLE_AT = f"""(
  locked_by IS NULL OR locked_by = '{SWEEPER}' OR (
    locked_until <= {{now}} AND NOT EXISTS (SELECT 1 FROM jobs j WHERE j.response_id = locked_by)
  )
)"""
_IDLE = _IDLE_AT.format(now="lease_now()")
OLD_CONVERSATIONS = f"""
SELECT old.rowid, old.owner, old.id, 1 + (
  SELECT count(*) FROM (
    SELECT 1 FROM conversation_items i WHERE i.owner = old.owner AND i.conversation_id = old.id LIMIT :rows
  )
)
FROM conversations old WHERE old.updated_at < :before AND {_IDLE_AT.format(now=":leases")}
ORDER BY old.updated_at LIMIT :limit
"""
CLOSE_CONVERSATION = f"""
UPDATE conversations SET locked_by = '{SWEEPER}', locked_until = {_FOR_EVER}, updated_at = 0
WHERE rowid = :number AND updated_at < :before AND {_IDLE}
"""
DELETE_ITEMS = f"""
DELETE FROM conversation_items WHERE rowid IN (
  SELECT rowid FROM conversation_items WHERE owner = :owner AND conversation_id = :id LIMIT :rows
) AND EXISTS (SELECT 1 FROM conversations WHERE rowid = :number AND locked_by = '{SWEEPER}')
"""
DELETE_CONVERSATIONS = f"""
DELETE FROM conversations
WHERE rowid IN (SELECT value FROM json_each(:numbers)) AND updated_at < :before AND {_IDLE}
"""

# Events tell how a response came to be; the response itself stays, and is looked at no more (`background`: 2).
OLD_STREAMS = """
SELECT r.id, 1 + (SELECT count(*) FROM (SELECT 1 FROM response_events e WHERE e.response_id = r.id LIMIT :rows))
FROM responses r
WHERE r.background = 1 AND r.created_at < :before AND NOT EXISTS (SELECT 1 FROM jobs j WHERE j.response_id = r.id)
ORDER BY r.created_at LIMIT :limit
"""
DELETE_EVENTS = "DELETE FROM response_events WHERE response_id IN (SELECT value FROM json_each(:ids))"
CLOSE_STREAMS = "UPDATE responses SET background = 2 WHERE id IN (SELECT value FROM json_each(:ids))"

TAKE_TURN = """
INSERT INTO sweeps (what, due_at) VALUES (:what, lease_now() + :pause)
ON CONFLICT (what) DO UPDATE SET due_at = excluded.due_at WHERE sweeps.due_at <= lease_now()
"""


class SqliteRetention:
    """`Retention` on a writer and readers that somebody else owns and closes."""

    def __init__(
        self,
        writer: SqliteWriter,
        readers: SqliteReaders,
        kept: RetentionSettings,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._writer = writer
        self._readers = readers
        self._kept = kept
        self._clock = clock

    async def take_turn(self, what: str, seconds: float) -> bool:
        """Whether this process is the one to clear this up now; nobody else is for so many seconds."""
        (count,) = await self._writer.run([Statement(TAKE_TURN, {"what": what, "pause": milliseconds(seconds)})])
        return bool(count)

    async def sweep(self) -> tuple[int, int, int]:
        """Delete everything that is too old; how many chains, conversations and streams of events went."""
        return (
            await self._sweep(OLD_RESPONSES, self._delete_responses, self._kept.responses),
            await self._sweep(OLD_CONVERSATIONS, self._delete_conversations, self._kept.conversations),
            await self._sweep(OLD_STREAMS, self._delete_events, self._kept.events),
        )

    async def _sweep(
        self, sql: str, delete: Callable[[Sequence[Row], dict[str, Any]], list[Statement]], seconds: float | None
    ) -> int:
        """Piece by piece, until there is nothing or nothing can go. The last statement of a piece counts what went."""
        gone = 0
        while seconds is not None:
            now = milliseconds(self._clock())
            named = {"before": now - milliseconds(seconds), "now": now, "rows": _ROWS}
            rows = await self._readers.fetch(sql, {**named, "limit": _LOOKED_AT, "leases": lease_now()})
            if not rows:
                break
            counts = await self._writer.run(delete(_piece(rows), named))
            gone += counts[-1]
            if not any(counts):
                break
        return gone

    def _delete_responses(self, piece: Sequence[Row], named: dict[str, Any]) -> list[Statement]:
        chains = json.dumps(sorted({row[0] for row in piece}))
        ids = json.dumps([row[1] for row in piece if row[1] is not None])
        return [
            Statement(CLOSE_CHAINS, {**named, "chains": chains}),
            Statement(DELETE_RESPONSES, {"ids": ids}),
            Statement(DELETE_CHAINS, {"chains": chains}),
        ]

    def _delete_conversations(self, piece: Sequence[Row], named: dict[str, Any]) -> list[Statement]:
        number, owner, conversation_id, rows = piece[0]
        if rows <= _ROWS:
            return [Statement(DELETE_CONVERSATIONS, {**named, "numbers": json.dumps([row[0] for row in piece])})]
        items = {"number": number, "owner": owner, "id": conversation_id, "rows": _ROWS}
        # The last one deletes none: there is more of it.
        nothing = Statement(DELETE_CONVERSATIONS, {**named, "numbers": "[]"})
        return [Statement(CLOSE_CONVERSATION, {**named, "number": number}), Statement(DELETE_ITEMS, items), nothing]

    def _delete_events(self, piece: Sequence[Row], named: dict[str, Any]) -> list[Statement]:
        ids = {"ids": json.dumps([row[0] for row in piece])}
        return [Statement(DELETE_EVENTS, ids), Statement(CLOSE_STREAMS, ids)]


def _piece(rows: Sequence[Row]) -> Sequence[Row]:
    """The first ones that have no more rows together than may go at once, but one; the last column counts them."""
    total = 0
    for number, row in enumerate(rows):
        total += row[-1]
        if total > _ROWS and number:
            return rows[:number]
    return rows
