"""Withdraws responses with an unknown commit outcome after their clients got an error.

Lives here: the deletion of withdrawn responses, the retries while the database is unreachable, and the row that blocks
a late write. Not here: the queries for the outcome of a write (`turn_groups.py`).

A server that hung may run an old statement much later. So a withdrawal deletes the response, and inserts a placeholder
row with the response's id and a reserved owner. A statement that stores a response waits for concurrent inserts of its
id, and skips an existing id. So after a withdrawal no late statement can store the response. The retention sweep
deletes the placeholder later.

Invariants: at most `most` withdrawals wait concurrently. The log has one line for each withdrawal that the process
gives up. If withdrawals had to wait for the database, the log has one line for the beginning and one line for the end
of the outage.
"""

from __future__ import annotations

import asyncio

import structlog

from antiphon.engine.ports.actions import ResponseRecord
from antiphon.errors import StoreError
from antiphon.observability.outages import Outage
from antiphon.stores.postgres.database import Connection, Database
from antiphon.stores.postgres.tables import run_steps
from antiphon.stores.responses import deleting

_log = structlog.get_logger(__name__)

_MOST = 4096
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_CLOSE_SECONDS = 5.0
_TRIES = 5

# The reserved owner of placeholder rows. Real owners have a prefix, so no real owner has this name.
_NOBODY = "withdrawn"
_UNJOIN = """
DELETE FROM conversation_items WHERE owner = $1 AND conversation_id = $2 AND response_id = $3
"""
_UNBIND = "DELETE FROM idempotency WHERE owner = $1 AND key = $2 AND object_id = $3"
# Inserts the placeholder row, unless a row with this id exists. $1: the response's id, $2: the reserved owner, $3: the
# id of the placeholder's chain.
_TAKE_ID = """
WITH made AS (
  INSERT INTO chains (id, owner, updated_at) VALUES ($3::text, $2::text, (extract(epoch FROM now()) * 1000)::bigint)
  ON CONFLICT (id) DO NOTHING
)
INSERT INTO responses (id, owner, chain_id, history_items, history_bytes, own_bytes, status, model, created_at, body)
VALUES ($1::text, $2::text, $3::text, 1, 0, 0, 'withdrawn', '', (extract(epoch FROM now()) * 1000)::bigint, '')
ON CONFLICT (id) DO NOTHING
"""
_IS_OURS = "SELECT 1 FROM responses WHERE id = $1 AND owner = $2"


class Withdrawals:
    """Runs the withdrawals of this process in a background task."""

    def __init__(self, database: Database, *, most: int = _MOST) -> None:
        self._database = database
        self._most = most
        self._waiting: dict[str, ResponseRecord] = {}
        self._task: asyncio.Task[None] | None = None
        self._outage = Outage(_log, "late_save_not_undone_yet", "late_saves_settled")
        self._done = 0

    @property
    def waiting(self) -> int:
        """The number of pending withdrawals."""
        return len(self._waiting)

    def add(self, record: ResponseRecord) -> None:
        """Schedule the withdrawal of this response, which runs as soon as the database is reachable. If too many
        withdrawals wait, this method only logs the response."""
        if len(self._waiting) >= self._most:
            _log.error("late_save_not_undone", response_id=record.id, error="Too many of them wait for the database.")
            return
        self._waiting[record.id] = record
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._work())

    async def aclose(self) -> None:
        """Wait up to five seconds for the pending withdrawals, then log the remaining responses."""
        if self._task is not None and not self._task.done():
            await asyncio.wait({self._task}, timeout=_CLOSE_SECONDS)
            self._task.cancel()
        for record in self._waiting.values():
            _log.error("late_save_not_undone", response_id=record.id, error="The process ended.")
        self._waiting.clear()

    async def _work(self) -> None:
        pause = _FIRST_PAUSE
        while self._waiting:
            record = next(iter(self._waiting.values()))
            try:
                was_stored = await self._withdraw(record)
            except StoreError as error:
                self._outage.failed(response_id=record.id, error=str(error))
                await asyncio.sleep(pause)
                pause = min(_LONGEST_PAUSE, pause * 2)
                continue
            pause = _FIRST_PAUSE
            del self._waiting[record.id]
            self._done += 1
            if was_stored:
                _log.warning("late_save_undone", response_id=record.id)
        self._outage.recovered(responses=self._done)
        self._done = 0

    async def _withdraw(self, record: ResponseRecord) -> bool:
        """Withdraw the response in one transaction. Returns whether the response was stored. Raises `StoreError`."""

        async def work(connection: Connection) -> bool:
            was_stored = False
            for _ in range(_TRIES):
                if any((await run_steps(connection, deleting(record.owner, record.id)))[-2:]):
                    was_stored = True
                    await connection.fetch(_UNJOIN, record.owner, record.conversation_id, record.id)
                    if record.once is not None:
                        await connection.fetch(_UNBIND, record.owner, record.once.key, record.id)
                # This insert waits for a concurrent statement that stores the response. If that statement commits, the
                # next iteration deletes the stored response.
                await connection.fetch(_TAKE_ID, record.id, _NOBODY, f"withdrawn {record.id}")
                if await connection.fetch(_IS_OURS, record.id, _NOBODY):
                    return was_stored
            raise StoreError("Another response already has this response's id.", reason="failed")

        return await self._database.transaction(work)
