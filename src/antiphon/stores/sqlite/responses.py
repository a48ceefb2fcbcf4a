"""Stores responses on SQLite, converts failed writes into API errors, and finds items by id.

Lives here: the write of a response, the query that finds items by id, and the health check of the database. Not here:
the operations that all backends share (`../responses.py`), the SQL of a stored response (`response_rows.py`), threads,
connections and transactions (`writer.py`, `readers.py`), the schema (`migrations/`).
"""

from __future__ import annotations

import asyncio
import sqlite3
from functools import partial

from antiphon.engine.ports.actions import ResponseRecord
from antiphon.engine.waiting import look_at
from antiphon.errors import PredecessorGone, StoreError
from antiphon.stores.idempotency import IdempotencyStore
from antiphon.stores.sqlite.readers import SqliteReaders
from antiphon.stores.sqlite.response_rows import save_steps, unsave_steps
from antiphon.stores.sqlite.tables import sqlite_steps
from antiphon.stores.sqlite.writer import SqliteWriter
from antiphon.stores.tables import RowsMissing, Statement

# Selects one item per requested id, because clients may have stored an id several times. Output items have priority
# over input items, and newer items over older ones. SQLite reads the index backwards until the first item of this
# owner.
LOAD_ITEMS = """
WITH found (number, size) AS (
  SELECT i.rowid, length(i.body) + ifnull(length(i.shown), 0)
  FROM json_each(:ids) wanted CROSS JOIN response_items i ON i.rowid = (
    SELECT c.rowid FROM response_items c CROSS JOIN responses r ON r.id = c.response_id
    WHERE c.item_id = wanted.value AND r.owner = :owner
    ORDER BY c.dir DESC, c.rowid DESC LIMIT 1
  )
)
SELECT i.item_id, i.type, CASE WHEN (SELECT sum(size) FROM found) <= :bytes THEN i.body END AS body,
       CASE WHEN (SELECT sum(size) FROM found) <= :bytes THEN i.shown END AS shown
FROM found CROSS JOIN response_items i ON i.rowid = found.number
"""

# `ping` runs PROBE_WRITE and PROBE_READ. PROBE_WRITE writes to the disk: it sets `user_version` in the file header,
# which Antiphon does not use otherwise. So `ping` detects a full disk or a lost write permission before a response
# fails.
PROBE_READ = "SELECT count(*) FROM schema_migrations"
PROBE_WRITE = "PRAGMA user_version = 1"


class SqliteResponseWriter:
    """Implements `ResponseWriter` with a `SqliteWriter` and `SqliteReaders`, which the caller closes."""

    def __init__(self, writer: SqliteWriter, readers: SqliteReaders, keys: IdempotencyStore) -> None:
        self._writer = writer
        self._readers = readers
        self._keys = keys
        self._probe: asyncio.Task[None] | None = None

    async def save(self, record: ResponseRecord) -> None:
        """Store a finished response with its items in one transaction. See `History.save`."""
        try:
            steps, undo = save_steps(record), partial(unsave_steps, record)
            if record.once is None:
                await self._writer.run(steps, undo=undo)
            else:
                bind, unbind = map(sqlite_steps, self._keys.bound(record.once, record.id))
                await self._writer.run([*bind, *steps], undo=lambda: [*unbind, *undo()])
        except RowsMissing:
            if record.once is not None:
                raise StoreError(
                    "The response no longer owns its idempotency key or conversation, or its predecessor was "
                    "deleted. Send the request again."
                ) from None
            if record.conversation_id is not None:
                raise StoreError(
                    "The conversation was deleted, or another response uses it now. Send the request again."
                ) from None
            raise PredecessorGone() from None
        except StoreError as error:
            if _is_duplicate(error):
                raise StoreError("A response with this id is stored already.") from error
            raise

    async def ping(self) -> None:
        """Raise `StoreError` unless the database can be written to and read."""
        # Concurrent health checks share one task and its result, so many checks cause one write.
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._ask())
            # If the caller is cancelled, no code awaits the task. `look_at` retrieves the task's error, so that asyncio
            # logs no warning.
            self._probe.add_done_callback(look_at)
        await asyncio.shield(self._probe)

    async def _ask(self) -> None:
        await self._writer.run([Statement(PROBE_WRITE)])
        if (full := self._writer.full) is not None:
            raise StoreError(str(full), reason=full.reason)
        await self._readers.fetch(PROBE_READ, {})


def _is_duplicate(error: StoreError) -> bool:
    cause = error.__cause__
    return isinstance(cause, sqlite3.IntegrityError) and cause.sqlite_errorcode in (
        sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY,
        sqlite3.SQLITE_CONSTRAINT_UNIQUE,
    )
