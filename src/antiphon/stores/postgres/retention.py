"""How long things are kept: what is older goes, in pieces so small that no request waits for them.

Lives here: the loop over pieces, and whose turn it is. Not here: the SQL (`retention_sql.py`), when it is done
(`app/sweeping.py`), how long anything is kept (settings), files and vector stores (which say themselves when they
expire).

A chain goes as a whole, when its latest response is old: nothing is ever taken out of the middle of a conversation.
What runs (background responses, locked conversations) is never old. What is too large for one piece is first made
unusable, in the same transaction as its first rows go: a chain takes no more responses and has lost its first one, a
conversation is locked by the sweep.

A piece holds its locks while its statements run and not while the disk takes its commit, which is not waited for. How
many rows go in one depends on how long they take: where a piece took longer than `_LONG`, the next one is half as
large.

Invariants: one piece is one transaction, of one process at a time, and deletes a bounded number of rows (`_ROWS`, or
one response with its items and events); what goes is locked first, passing over what is in use at the moment, and
looked at behind the lock.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta

from antiphon.config.state import RetentionSettings
from antiphon.stores.postgres import retention_sql as sql
from antiphon.stores.postgres.database import Connection, Database, Record
from antiphon.stores.tables import milliseconds

_ROWS = 500
_FEWEST_ROWS = 20
_LOOKED_AT = 100
_LONG = 0.05
"""Seconds of a piece's statements after which the next piece is smaller."""

_Piece = tuple[int, int]
"""How many rows were changed, and how many things went whole."""
_Sweep = Callable[[Connection, int], Awaitable[_Piece]]


class PostgresRetention:
    """`Retention` on connections that are somebody else's to close."""

    def __init__(self, database: Database, kept: RetentionSettings, *, rows: int = _ROWS) -> None:
        """`rows`: the most that go in one piece."""
        self._database = database
        self._kept = kept
        self._most = rows
        self._rows = rows

    async def take_turn(self, what: str, seconds: float) -> bool:
        """Whether this process is the one to clear this up now; nobody else is for so many seconds."""
        return bool(await self._database.write(sql.TAKE_TURN, what, timedelta(seconds=seconds)))

    async def sweep(self) -> tuple[int, int, int]:
        """Delete everything that is too old; how many chains, conversations and streams of events went."""
        return (
            await self._sweep(self._delete_responses, self._kept.responses),
            await self._sweep(self._delete_conversations, self._kept.conversations),
            await self._sweep(self._delete_events, self._kept.events),
        )

    async def _sweep(self, delete: _Sweep, seconds: float | None) -> int:
        """Piece by piece, until there is nothing, nothing can go, or another process is at it."""
        if seconds is None:
            return 0
        age = milliseconds(seconds)

        took = 0.0

        async def piece(connection: Connection) -> _Piece:
            nonlocal took
            await connection.execute(sql.NO_WAIT)
            # As a statement of its own: the next ones see what the one before deleted.
            if not (await connection.fetch(sql.ONE_AT_A_TIME))[0][0]:
                return 0, 0
            began = time.monotonic()
            done = await delete(connection, age)
            took = time.monotonic() - began
            return done

        gone = 0
        while True:
            changed, whole = await self._database.transaction(piece)
            gone += whole
            if not changed:
                return gone
            self._fit(took)

    def _fit(self, took: float) -> None:
        """Choose the size of the next piece, after one whose statements took so many seconds."""
        if took > _LONG:
            self._rows = max(min(_FEWEST_ROWS, self._most), self._rows // 2)
        elif took < _LONG / 2:
            self._rows = min(self._most, self._rows + max(1, self._rows // 4))

    async def _delete_responses(self, connection: Connection, age: int) -> _Piece:
        chains = [row[0] for row in await connection.fetch(sql.LOCK_CHAINS, age, _LOOKED_AT)]
        if not chains:
            return 0, 0
        found = await connection.fetch(sql.RESPONSES, chains, self._rows + 1)
        piece = self._piece(found)
        # Only the last one may have more responses than the piece.
        cut = found[len(piece)]["chain_id"] if len(piece) < len(found) else None
        whole = sorted({row["chain_id"] for row in piece} - {cut})
        went = len(await connection.fetch(sql.DELETE_CHAINS, whole)) if whole else 0
        begun = [row["id"] for row in piece if row["chain_id"] == cut]
        if begun:
            await connection.fetch(sql.CLOSE_CHAIN, cut)
            await connection.fetch(sql.DELETE_RESPONSES, cut, begun)
        return len(piece), went

    async def _delete_conversations(self, connection: Connection, age: int) -> _Piece:
        locked = await connection.fetch(sql.LOCK_CONVERSATIONS, age, _LOOKED_AT)
        # Again, behind the lock: a job may have been stored meanwhile.
        owners, ids = [row["owner"] for row in locked], [row["id"] for row in locked]
        piece = self._piece(await connection.fetch(sql.CONVERSATIONS, owners, ids, self._rows + 1))
        if not piece:
            return 0, 0
        if piece[0]["rows"] > self._rows:
            first = piece[0]["owner"], piece[0]["id"]
            await connection.fetch(sql.CLOSE_CONVERSATION, *first)
            return len(await connection.fetch(sql.DELETE_ITEMS, *first, self._rows)), 0
        going = [row["owner"] for row in piece], [row["id"] for row in piece]
        went = len(await connection.fetch(sql.DELETE_CONVERSATIONS, *going))
        return went, went

    async def _delete_events(self, connection: Connection, age: int) -> _Piece:
        locked = [row[0] for row in await connection.fetch(sql.LOCK_STREAMS, age, _LOOKED_AT)]
        piece = self._piece(await connection.fetch(sql.STREAMS, locked, self._rows + 1))
        ids = [row["id"] for row in piece]
        await connection.fetch(sql.DELETE_EVENTS, ids)
        went = len(await connection.fetch(sql.CLOSE_STREAMS, ids))
        return went, went

    def _piece(self, rows: Sequence[Record]) -> Sequence[Record]:
        """The first ones that have no more rows together than may go at once, but one."""
        total = 0
        for number, row in enumerate(rows):
            total += row["rows"]
            if total > self._rows and number:
                return rows[:number]
        return rows
