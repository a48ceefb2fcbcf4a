"""What PostgreSQL deletes of what is too old, piece by piece.

Lives here: the transactions that delete, and how large the next one is. Not here: the SQL (`retention_sql.py`), the
loop over pieces, and what is alike in all backends (`../retention.py`).

A piece holds its locks while its statements run and not while the disk takes its commit, which is not waited for. How
many rows go in one depends on how long they take: where a piece took longer than `_LONG`, the next one is half as
large.

Invariants: one piece is one transaction, of one process at a time, and deletes a bounded number of rows (`_ROWS`, or
one response with its items and events); what goes is locked first, passing over what is in use at the moment, and
looked at behind the lock.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from antiphon.stores.postgres import retention_sql as sql
from antiphon.stores.postgres.database import Connection, Database
from antiphon.stores.retention import Piece, fitting

_ROWS = 500
_FEWEST_ROWS = 20
_LOOKED_AT = 100
_LONG = 0.05
"""Seconds of a piece's statements after which the next piece is smaller."""

_Work = Callable[[Connection, int], Awaitable[Piece]]


class PostgresPieces:
    """`Pieces` on connections that are somebody else's to close."""

    def __init__(self, database: Database, *, rows: int = _ROWS) -> None:
        """`rows`: the most that go in one piece."""
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
        """Nothing goes where another process is at it."""
        took = 0.0

        async def piece(connection: Connection) -> Piece:
            nonlocal took
            await connection.execute(sql.NO_WAIT)
            # As a statement of its own: the next ones see what the one before deleted.
            if not (await connection.fetch(sql.ONE_AT_A_TIME))[0][0]:
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
        """Choose the size of the next piece, after one whose statements took so many seconds."""
        if took > _LONG:
            self._rows = max(min(_FEWEST_ROWS, self._most), self._rows // 2)
        elif took < _LONG / 2:
            self._rows = min(self._most, self._rows + max(1, self._rows // 4))

    async def _delete_responses(self, connection: Connection, age: int) -> Piece:
        chains = [row[0] for row in await connection.fetch(sql.LOCK_CHAINS, age, _LOOKED_AT)]
        if not chains:
            return 0, 0
        found = await connection.fetch(sql.RESPONSES, chains, self._rows + 1)
        piece = fitting(found, self._rows)
        # Only the last one may have more responses than the piece.
        cut = found[len(piece)]["chain_id"] if len(piece) < len(found) else None
        whole = sorted({row["chain_id"] for row in piece} - {cut})
        went = len(await connection.fetch(sql.DELETE_CHAINS, whole)) if whole else 0
        begun = [row["id"] for row in piece if row["chain_id"] == cut]
        if begun:
            await connection.fetch(sql.CLOSE_CHAIN, cut)
            await connection.fetch(sql.DELETE_RESPONSES, cut, begun)
        return len(piece), went

    async def _delete_conversations(self, connection: Connection, age: int) -> Piece:
        locked = await connection.fetch(sql.LOCK_CONVERSATIONS, age, _LOOKED_AT)
        # Again, behind the lock: a job may have been stored meanwhile.
        owners, ids = [row["owner"] for row in locked], [row["id"] for row in locked]
        piece = fitting(await connection.fetch(sql.CONVERSATIONS, owners, ids, self._rows + 1), self._rows)
        if not piece:
            return 0, 0
        if piece[0]["rows"] > self._rows:
            first = piece[0]["owner"], piece[0]["id"]
            await connection.fetch(sql.CLOSE_CONVERSATION, *first)
            return len(await connection.fetch(sql.DELETE_ITEMS, *first, self._rows)), 0
        going = [row["owner"] for row in piece], [row["id"] for row in piece]
        went = len(await connection.fetch(sql.DELETE_CONVERSATIONS, *going))
        return went, went

    async def _delete_events(self, connection: Connection, age: int) -> Piece:
        locked = [row[0] for row in await connection.fetch(sql.LOCK_STREAMS, age, _LOOKED_AT)]
        piece = fitting(await connection.fetch(sql.STREAMS, locked, self._rows + 1), self._rows)
        ids = [row["id"] for row in piece]
        await connection.fetch(sql.DELETE_EVENTS, ids)
        went = len(await connection.fetch(sql.CLOSE_STREAMS, ids))
        return went, went
