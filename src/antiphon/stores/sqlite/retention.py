"""Deletes expired data from SQLite in small batches (`Piece`).

Lives here: the queries for expired rows, and the statements that delete them. Not here: the loop over batches and the
code that all backends share (`../retention.py`), threads and transactions (`writer.py`).

Invariants: the writer runs each batch as one unit of writes (`units.py`), so requests can write between batches. A
batch deletes at most `_ROWS` rows, or one response with its items and events. The transaction of a batch checks again
that the rows are still expired.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from antiphon.ids import Clock, now
from antiphon.stores.retention import SWEEPER, Piece, rows_within
from antiphon.stores.sqlite.readers import Row, SqliteReaders
from antiphon.stores.sqlite.tables import LeaseClock, lease_now
from antiphon.stores.sqlite.writer import SqliteWriter
from antiphon.stores.tables import Statement, milliseconds

_ROWS = 1000
_LOOKED_AT = 200
_FOR_EVER = (1 << 63) - 1

_RUNNING = "SELECT 1 FROM jobs j JOIN responses r ON r.id = j.response_id WHERE r.chain_id = old.id"
# Selects the responses of expired chains. `rows` is the number of rows that the deletion of a response would delete,
# counted up to the maximum of a batch.
OLD_RESPONSES = f"""
WITH gone (chain_id) AS (
  SELECT old.id FROM chains old WHERE old.updated_at < :before AND NOT EXISTS ({_RUNNING})
  ORDER BY old.updated_at LIMIT :limit
)
SELECT gone.chain_id AS chain_id, r.id AS id, 1
  + (SELECT count(*) FROM (SELECT 1 FROM response_items i WHERE i.response_id = r.id LIMIT :rows))
  + (SELECT count(*) FROM (SELECT 1 FROM response_events e WHERE e.response_id = r.id LIMIT :rows)) AS rows
FROM gone LEFT JOIN responses r ON r.chain_id = gone.chain_id LIMIT :limit
"""
# After this statement, no response can continue the chain, because NEXT_RESPONSES (`response_rows.py`) checks
# `expires_at`. With `updated_at = 0`, the next sweeps select this chain first.
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
SELECT old.rowid AS number, old.owner AS owner, old.id AS id, 1 + (
  SELECT count(*) FROM (
    SELECT 1 FROM conversation_items i WHERE i.owner = old.owner AND i.conversation_id = old.id LIMIT :rows
  )
) AS rows
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

OLD_STREAMS = """
SELECT r.id AS id,
       1 + (SELECT count(*) FROM (SELECT 1 FROM response_events e WHERE e.response_id = r.id LIMIT :rows)) AS rows
FROM responses r
WHERE r.background = 1 AND r.created_at < :before AND NOT EXISTS (SELECT 1 FROM jobs j WHERE j.response_id = r.id)
ORDER BY r.created_at LIMIT :limit
"""
DELETE_EVENTS = "DELETE FROM response_events WHERE response_id IN (SELECT value FROM json_each(:ids))"
CLOSE_STREAMS = "UPDATE responses SET background = 2 WHERE id IN (SELECT value FROM json_each(:ids))"


class SqlitePieces:
    """Implements `Pieces`. The caller closes the writer and the readers."""

    def __init__(
        self,
        writer: SqliteWriter,
        readers: SqliteReaders,
        clock: Clock = now,
        *,
        rows: int = _ROWS,
        leases: LeaseClock = lease_now,
    ) -> None:
        """`rows`: the maximum number of rows that one batch deletes."""
        self._most = rows
        self._writer = writer
        self._readers = readers
        self._clock = clock
        self._lease_now = leases

    async def chains(self, age: int) -> Piece:
        """See `Pieces.chains`."""
        piece, named = await self._look(OLD_RESPONSES, age)
        if not piece:
            return 0, 0
        chains = json.dumps(sorted({row["chain_id"] for row in piece}))
        ids = json.dumps([row["id"] for row in piece if row["id"] is not None])
        return await self._delete(
            Statement(CLOSE_CHAINS, {**named, "chains": chains}),
            Statement(DELETE_RESPONSES, {"ids": ids}),
            Statement(DELETE_CHAINS, {"chains": chains}),
        )

    async def conversations(self, age: int) -> Piece:
        """See `Pieces.conversations`."""
        piece, named = await self._look(OLD_CONVERSATIONS, age)
        if not piece:
            return 0, 0
        if piece[0]["rows"] <= self._most:
            numbers = json.dumps([row["number"] for row in piece])
            return await self._delete(Statement(DELETE_CONVERSATIONS, {**named, "numbers": numbers}))
        first = {"number": piece[0]["number"], "owner": piece[0]["owner"], "id": piece[0]["id"], "rows": self._most}
        changed, _ = await self._delete(
            Statement(CLOSE_CONVERSATION, {**named, **first}), Statement(DELETE_ITEMS, first)
        )
        # Return 0 deleted conversations. This conversation still exists, because it has more items than one batch may
        # delete.
        return changed, 0

    async def streams(self, age: int) -> Piece:
        """See `Pieces.streams`."""
        piece, _ = await self._look(OLD_STREAMS, age)
        if not piece:
            return 0, 0
        ids = {"ids": json.dumps([row["id"] for row in piece])}
        return await self._delete(Statement(DELETE_EVENTS, ids), Statement(CLOSE_STREAMS, ids))

    async def _look(self, sql: str, age: int) -> tuple[Sequence[Row], dict[str, int]]:
        """Find rows that may be deleted, because they are older than `age` milliseconds. Returns the rows that fit into
        one batch, and the SQL parameters for checking the age again."""
        at = milliseconds(self._clock())
        named = {"before": at - age, "now": at, "rows": self._most}
        rows = await self._readers.fetch(sql, {**named, "limit": _LOOKED_AT, "leases": self._lease_now()})
        return rows_within(rows, self._most), named

    async def _delete(self, *unit: Statement) -> Piece:
        """Run the statements in one transaction. Returns the number of changed rows, and the number of objects that the
        last statement deleted."""
        counts = await self._writer.run(unit)
        return sum(counts), counts[-1]
