"""Deletes expired data from PostgreSQL in small batches (`Piece`).

Lives here: the age checks, the transactions that delete rows, and the row limit of a transaction. Not here: the loop
over batches and the code that all backends share (`../retention.py`).

A batch holds its locks only while its statements run, because its commit does not wait for the disk. The size of a
batch adapts to the duration of the previous batches. If a batch takes longer than `_LONG` seconds, the next batch is
half as large.

In the transaction of a batch, one statement locks rows. The next statement checks the rows again, so that it sees all
changes that other transactions committed before the lock. The parameter `$1` of a locking statement is the minimum age
of the rows in milliseconds, by the database's clock.

The size of a batch counts rows, including PostgreSQL's TOAST rows of about 2000 bytes each. A megabyte of bodies counts
as five hundred rows, because its deletion takes as long as the deletion of five hundred rows.

Invariants: one batch is one transaction, and only one process at a time runs a batch. A batch deletes a bounded number
of rows (`_ROWS`, or one response with its items and events). The transaction locks rows first, skips rows that other
transactions have locked, and checks the rows again after the lock.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from antiphon.stores.postgres.database import Connection, Database
from antiphon.stores.retention import SWEEPER, Piece, rows_within

_ROWS = 500
_FEWEST_ROWS = 20
_LOOKED_AT = 100
_LONG = 0.05
"""The maximum seconds that the statements of a batch should take. After a slower batch, the next batch is smaller."""

# With `synchronous_commit` off, a commit releases its locks before the deletions are durable. After a crash, the next
# sweep deletes the restored rows again.
NO_WAIT = "SET LOCAL synchronous_commit = off"
# The advisory lock that allows one sweeping process at a time. Its key is "retention" in ASCII, shortened.
ONE_AT_A_TIME = "SELECT pg_try_advisory_xact_lock(7310579610909569902)"
_BEFORE = "((extract(epoch FROM now()) * 1000)::bigint - $1)"

# Locks old chains. Skips a chain that another transaction has locked to save a response. The saved response updates the
# chain's `updated_at`, so the chain is no longer old.
LOCK_CHAINS = f"""
SELECT old.id FROM chains old
WHERE old.updated_at < {_BEFORE} AND NOT EXISTS (
  SELECT 1 FROM jobs j JOIN responses r ON r.id = j.response_id WHERE r.chain_id = old.id
)
ORDER BY old.updated_at LIMIT $2 FOR UPDATE OF old SKIP LOCKED
"""
# Selects the responses of the chains, oldest first, each with its number of rows. The count of rows stops at the size
# of a piece ($2).
RESPONSES = """
SELECT chain.id AS chain_id, r.id, 1 + coalesce(r.own_bytes, 0) / 2000
  + (SELECT count(*) FROM (SELECT 1 FROM response_items i WHERE i.response_id = r.id LIMIT $2) AS items)
  + (SELECT coalesce(sum(1 + size / 2000), 0)::bigint FROM (
      SELECT length(e.data) AS size FROM response_events e WHERE e.response_id = r.id LIMIT $2
    ) AS events) AS rows
FROM unnest($1::text[]) WITH ORDINALITY AS chain (id, place) LEFT JOIN responses r ON r.chain_id = chain.id
ORDER BY chain.place, r.number LIMIT $2
"""
DELETE_CHAINS = "DELETE FROM chains WHERE id = ANY($1::text[]) RETURNING 1"
# Prevents new responses from continuing the chain, because a save checks the chain's `expires_at`. The next piece takes
# the chain first, because its `updated_at` is 0.
CLOSE_CHAIN = """
UPDATE chains SET expires_at = (extract(epoch FROM now()) * 1000)::bigint, updated_at = 0 WHERE id = $1
"""
DELETE_RESPONSES = "DELETE FROM responses WHERE chain_id = $1 AND id = ANY($2::text[])"

_IDLE = f"""(c.locked_by IS NULL OR c.locked_by = '{SWEEPER}' OR (
  c.locked_until <= clock_timestamp() AND NOT EXISTS (SELECT 1 FROM jobs j WHERE j.response_id = c.locked_by)
))"""
LOCK_CONVERSATIONS = f"""
SELECT c.owner, c.id FROM conversations c WHERE c.updated_at < {_BEFORE} AND {_IDLE}
ORDER BY c.updated_at LIMIT $2 FOR UPDATE SKIP LOCKED
"""
CONVERSATIONS = f"""
SELECT c.owner, c.id, 1 + c.bytes / 2000 + (
  SELECT count(*) FROM (
    SELECT 1 FROM conversation_items i WHERE i.owner = c.owner AND i.conversation_id = c.id LIMIT $3
  ) AS items
) AS rows
FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS old (owner, id, place) JOIN conversations c USING (owner, id)
WHERE {_IDLE} ORDER BY old.place
"""
CLOSE_CONVERSATION = f"""
UPDATE conversations SET locked_by = '{SWEEPER}', locked_until = 'infinity', updated_at = 0
WHERE owner = $1 AND id = $2
"""
DELETE_ITEMS = """
DELETE FROM conversation_items WHERE owner = $1 AND conversation_id = $2 AND pos IN (
  SELECT pos FROM (
    SELECT pos, sum(1 + size / 2000) OVER (ORDER BY pos) AS rows, row_number() OVER (ORDER BY pos) AS place FROM (
      SELECT pos, length(body) + coalesce(length(shown), 0) AS size FROM conversation_items
      WHERE owner = $1 AND conversation_id = $2 ORDER BY pos LIMIT $3
    ) AS first
  ) AS counted WHERE rows <= $3 OR place = 1
) RETURNING 1
"""
DELETE_CONVERSATIONS = """
DELETE FROM conversations c USING unnest($1::text[], $2::text[]) AS old (owner, id)
WHERE c.owner = old.owner AND c.id = old.id RETURNING 1
"""

# Selects the event streams to delete in the order of an index on `created_at`, which is almost the order of
# `stored_at`.
LOCK_STREAMS = f"""
SELECT r.id FROM responses r
WHERE r.background = 1 AND r.stored_at < {_BEFORE} AND NOT EXISTS (SELECT 1 FROM jobs j WHERE j.response_id = r.id)
ORDER BY r.created_at LIMIT $2 FOR NO KEY UPDATE OF r SKIP LOCKED
"""
STREAMS = """
SELECT r.id, 1 + (
  SELECT coalesce(sum(1 + size / 2000), 0)::bigint FROM (
    SELECT length(e.data) AS size FROM response_events e WHERE e.response_id = r.id LIMIT $2
  ) AS events
) AS rows
FROM unnest($1::text[]) WITH ORDINALITY AS r (id, place) ORDER BY r.place
"""
DELETE_EVENTS = "DELETE FROM response_events WHERE response_id = ANY($1::text[])"
CLOSE_STREAMS = "UPDATE responses SET background = 2 WHERE id = ANY($1::text[]) RETURNING 1"

_Work = Callable[[Connection, int], Awaitable[Piece]]


class PostgresPieces:
    """Implements `Pieces` on a connection pool that the caller closes."""

    def __init__(self, database: Database, *, rows: int = _ROWS, long: float = _LONG) -> None:
        """`rows`: the maximum number of rows of one batch. `long`: the seconds after which a batch counts as slow, so
        that the next batch is smaller."""
        self._long = long
        self._database = database
        self._most = rows
        self._rows = rows

    async def chains(self, age: int) -> Piece:
        """See `Pieces.chains`."""
        return await self._delete(self._delete_responses, age)

    async def conversations(self, age: int) -> Piece:
        """See `Pieces.conversations`."""
        return await self._delete(self._delete_conversations, age)

    async def streams(self, age: int) -> Piece:
        """See `Pieces.streams`."""
        return await self._delete(self._delete_events, age)

    async def _delete(self, work: _Work, age: int) -> Piece:
        """Run `work`, which deletes one batch, in a transaction. Does nothing and returns `(0, 0)` if another process
        is deleting a batch."""
        took = 0.0

        async def piece(connection: Connection) -> Piece:
            nonlocal took
            await connection.execute(NO_WAIT)
            # A separate statement takes the lock, so that the next statements see the deletions of the previous
            # process.
            if not (await connection.fetch(ONE_AT_A_TIME))[0][0]:
                return 0, 0
            began = time.monotonic()
            done = await work(connection, age)
            took = time.monotonic() - began
            return done

        changed, whole = await self._database.transaction(piece)
        if changed:
            self._fit(took)
        return changed, whole

    def _fit(self, took: float) -> None:
        """Set the size of the next batch. `took`: the seconds that the statements of the last batch took."""
        if took > self._long:
            self._rows = max(min(_FEWEST_ROWS, self._most), self._rows // 2)
        elif took < self._long / 2:
            self._rows = min(self._most, self._rows + max(1, self._rows // 4))

    async def _delete_responses(self, connection: Connection, age: int) -> Piece:
        chains = [row[0] for row in await connection.fetch(LOCK_CHAINS, age, _LOOKED_AT)]
        if not chains:
            return 0, 0
        found = await connection.fetch(RESPONSES, chains, self._rows + 1)
        piece = rows_within(found, self._rows)
        # Only the last chain may have more responses than fit into the piece.
        cut = found[len(piece)]["chain_id"] if len(piece) < len(found) else None
        whole = sorted({row["chain_id"] for row in piece} - {cut})
        went = len(await connection.fetch(DELETE_CHAINS, whole)) if whole else 0
        begun = [row["id"] for row in piece if row["chain_id"] == cut]
        if begun:
            await connection.fetch(CLOSE_CHAIN, cut)
            await connection.fetch(DELETE_RESPONSES, cut, begun)
        return len(piece), went

    async def _delete_conversations(self, connection: Connection, age: int) -> Piece:
        locked = await connection.fetch(LOCK_CONVERSATIONS, age, _LOOKED_AT)
        # This query checks the conversations again after the lock, because another transaction may have stored a job
        # meanwhile.
        owners, ids = [row["owner"] for row in locked], [row["id"] for row in locked]
        piece = rows_within(await connection.fetch(CONVERSATIONS, owners, ids, self._rows + 1), self._rows)
        if not piece:
            return 0, 0
        if piece[0]["rows"] > self._rows:
            first = piece[0]["owner"], piece[0]["id"]
            await connection.fetch(CLOSE_CONVERSATION, *first)
            return len(await connection.fetch(DELETE_ITEMS, *first, self._rows)), 0
        going = [row["owner"] for row in piece], [row["id"] for row in piece]
        went = len(await connection.fetch(DELETE_CONVERSATIONS, *going))
        return went, went

    async def _delete_events(self, connection: Connection, age: int) -> Piece:
        locked = [row[0] for row in await connection.fetch(LOCK_STREAMS, age, _LOOKED_AT)]
        piece = rows_within(await connection.fetch(STREAMS, locked, self._rows + 1), self._rows)
        ids = [row["id"] for row in piece]
        await connection.fetch(DELETE_EVENTS, ids)
        went = len(await connection.fetch(CLOSE_STREAMS, ids))
        return went, went
