"""What it means to store a response: the `ResponseStore` over SQLite.

Lives here: the SQL that reads, by name. Not here: what a history comes to (`stores/chains.py`), how records become rows
(`response_rows.py`), threads, connections and transactions (`writer.py`, `readers.py`), the schema (`migrations/`).

Invariant: a chain never crosses owners. It is enforced where a response is inserted, so that reading a chain has to
check the owner of its last response only. Nothing stores a conversation twice: every response keeps its own items,
once.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Sequence
from functools import partial

from antiphon.engine.ports.actions import Chain, ResponseRecord, StoredItem
from antiphon.engine.ports.retention import SWEEPER
from antiphon.engine.ports.state import Page, PageQuery, StoredResponse
from antiphon.engine.running.waiting import look_at
from antiphon.errors import PredecessorGone, StoreError, unknown_cursor
from antiphon.stores.chains import load_chain
from antiphon.stores.idempotency import IdempotencyKeys
from antiphon.stores.pages import item_page, named_items, response_page, stored_item
from antiphon.stores.sqlite.readers import Row, SqliteReaders
from antiphon.stores.sqlite.response_rows import DELETE_LAST_OF_CHAIN, DELETE_RESPONSE, save_steps, unsave_steps
from antiphon.stores.sqlite.tables import SqliteTables, sqlite_steps
from antiphon.stores.sqlite.writer import SqliteWriter
from antiphon.stores.tables import RowsMissing, Statement, asked, within

# What was in the conversation before the response at the beginning of a chain; nothing when it is another conversation.
_THERE = f"AND c.locked_by IS NOT '{SWEEPER}'"  # some of a conversation that is being cleared away may be gone already
LOAD_BEFORE = f"""
WITH size (bytes) AS (
  SELECT ifnull(sum(length(body) + ifnull(length(shown), 0)), 0) FROM conversation_items
  WHERE owner = :owner AND conversation_id = :conversation_id AND pos < :pos
)
SELECT size.bytes AS size, i.item_id, i.type, i.body, i.shown FROM conversations c CROSS JOIN size
LEFT JOIN conversation_items i ON i.owner = c.owner AND i.conversation_id = c.id AND i.pos < :pos
  AND size.bytes <= :bytes
WHERE c.owner = :owner AND c.id = :conversation_id AND c.created_at * 1000 <= :pos {_THERE} ORDER BY i.pos LIMIT :limit
"""

# Newest turn first in `turn`. The owner is checked in the seed only: any further condition on `responses` in the
# recursive step makes SQLite build a Bloom filter over the whole table on every call, once ANALYZE has run.
# A chain over a limit stops at the seed and brings no item; its size is in `history_items` and `history_bytes`.
# `depth < :limit` can only matter for a damaged database, in which a chain might run in a circle.
LOAD_CHAIN = """
WITH RECURSIVE turn (id, prev_id, depth, history_items, history_bytes, conversation_id, conversation_pos, status) AS (
  SELECT id, CASE WHEN history_items <= :limit AND history_bytes <= :bytes THEN prev_id END, 0, history_items,
         history_bytes, conversation_id, conversation_pos, status
  FROM responses WHERE id = :id AND owner = :owner
  UNION ALL
  SELECT r.id, r.prev_id, turn.depth + 1, r.history_items, r.history_bytes, r.conversation_id, r.conversation_pos,
         r.status
  FROM turn CROSS JOIN responses r ON r.id = turn.prev_id
  WHERE turn.depth < :limit
)
SELECT turn.prev_id AS prev_id, turn.history_items AS history_items, turn.history_bytes AS history_bytes,
       turn.status AS status, turn.conversation_id AS conversation_id, turn.conversation_pos AS conversation_pos,
       i.item_id, i.type, i.body, i.shown
FROM turn LEFT JOIN response_items i ON i.response_id = turn.id
  AND turn.history_items <= :limit AND turn.history_bytes <= :bytes
ORDER BY turn.depth DESC, i.dir, i.seq
"""

# One item per wanted id, however often clients have used the id: an output before an input, the newest before
# older ones. The index is read backwards until the first item of this owner.
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

# The response itself is the row before its items, so that both come from one snapshot.
GET_RESPONSE = """
SELECT -1 AS seq, id AS item_id, status AS type, body FROM responses WHERE id = :id AND owner = :owner
UNION ALL
SELECT i.seq, i.item_id, i.type, i.body
FROM responses r CROSS JOIN response_items i ON i.response_id = r.id AND i.dir = 1
WHERE r.id = :id AND r.owner = :owner
ORDER BY 1
"""

# A page lies strictly between two items of the list (`low` and `high`, either may be absent). No row: no such
# response. A row without an item: an empty page.
_INPUT_ITEMS = """
WITH edge (low, high) AS (
  SELECT (SELECT min(seq) FROM response_items WHERE response_id = :id AND dir = 0 AND item_id = :low),
         (SELECT min(seq) FROM response_items WHERE response_id = :id AND dir = 0 AND item_id = :high)
),
page (place, size) AS (
  SELECT i.seq, length(i.body)
  FROM response_items i
  WHERE i.response_id = :id AND i.dir = 0
    AND i.seq > ifnull((SELECT low FROM edge), -1) AND i.seq < ifnull((SELECT high FROM edge), 9223372036854775807)
  ORDER BY i.seq {order} LIMIT :limit
),
{cut}
SELECT edge.low AS low, edge.high AS high, i.item_id, i.type, CASE WHEN cut.fits THEN i.body END AS body
FROM responses r CROSS JOIN edge LEFT JOIN cut
LEFT JOIN response_items i ON i.response_id = r.id AND i.dir = 0 AND i.seq = cut.place
WHERE r.id = :id AND r.owner = :owner
ORDER BY cut.place {order}
"""
INPUT_ITEMS_FORWARD = _INPUT_ITEMS.format(order="ASC", cut=within("place ASC"))
INPUT_ITEMS_BACKWARD = _INPUT_ITEMS.format(order="DESC", cut=within("place DESC"))

# A page lies strictly behind the edge, which is the cursor's place or the list's end. The rows of a page first, then
# their output items, all from one snapshot.
_LIST = """
WITH edge (at, number) AS (SELECT created_at, rowid FROM responses WHERE id = :cursor AND owner = :owner),
chosen (number, id, at) AS (
  SELECT r.rowid, r.id, r.created_at FROM responses r
  WHERE r.owner = :owner {behind} ORDER BY r.created_at {order}, r.rowid {order} LIMIT :limit
),
page (place, at, size) AS (
  SELECT c.number, c.at, (SELECT length(body) FROM responses WHERE responses.rowid = c.number) + ifnull(
    (SELECT sum(length(o.body)) FROM response_items o WHERE o.response_id = c.id AND o.dir = 1), 0)
  FROM chosen c
),
{cut}
SELECT r.id, r.status, CASE WHEN cut.fits THEN r.body END AS response, i.item_id, i.type, i.body
FROM cut CROSS JOIN responses r ON r.rowid = cut.place
LEFT JOIN response_items i ON i.response_id = r.id AND i.dir = 1 AND cut.fits
ORDER BY r.created_at {order}, cut.place {order}, i.seq
"""
_BEHIND = "AND (r.created_at, r.rowid) {sign} (SELECT at, number FROM edge)"
_OLDEST, _NEWEST = within("at ASC, place ASC"), within("at DESC, place DESC")
LIST_FORWARD = _LIST.format(order="ASC", behind="", cut=_OLDEST)
LIST_BACKWARD = _LIST.format(order="DESC", behind="", cut=_NEWEST)
LIST_FORWARD_BEHIND = _LIST.format(order="ASC", behind=_BEHIND.format(sign=">"), cut=_OLDEST)
LIST_BACKWARD_BEHIND = _LIST.format(order="DESC", behind=_BEHIND.format(sign="<"), cut=_NEWEST)
IS_RESPONSE = "SELECT 1 FROM responses WHERE id = :cursor AND owner = :owner"

# Both halves of `ping`. The write is a real one (it sets a field of the file header that nothing else uses), so a
# full disk or a lost write permission is seen before a response fails for it.
PROBE_READ = "SELECT count(*) FROM schema_migrations"
PROBE_WRITE = "PRAGMA user_version = 1"


class SqliteResponseStore:
    """`ResponseStore` on a writer and readers that the caller closes."""

    def __init__(
        self,
        writer: SqliteWriter,
        readers: SqliteReaders,
        *,
        chain_items: int,
        history_bytes: int,
        page_bytes: int,
        keys: IdempotencyKeys | None = None,
    ) -> None:
        """`chain_items` and `history_bytes`: the most of a history that is read at all; `page_bytes`: where a page of a
        list ends before its rows do."""
        self._writer = writer
        self._readers = readers
        self._chain_items = chain_items
        self._history_bytes = history_bytes
        self._page_bytes = page_bytes
        self._keys = keys or IdempotencyKeys(SqliteTables(writer, readers))
        self._probe: asyncio.Task[None] | None = None

    async def save(self, record: ResponseRecord) -> None:
        """Store a finished response with its items, all or nothing; see `ResponseStore.save`."""
        try:
            steps, undo = save_steps(record), partial(unsave_steps, record)
            if record.once is None:
                await self._writer.run(steps, undo=undo)
            else:
                bind, unbind = map(sqlite_steps, self._keys.bound(record.once, record.id))
                await self._writer.run([*bind, *steps], undo=lambda: [*unbind, *undo()])
        except RowsMissing:
            if record.once is not None:
                raise StoreError("Its idempotency key, its conversation or its predecessor is not its own.") from None
            if record.conversation_id is not None:
                raise StoreError("The conversation is gone, or another response has taken it over.") from None
            raise PredecessorGone() from None
        except StoreError as error:
            if _is_duplicate(error):
                raise StoreError("A response with this id is stored already.") from error
            raise

    async def load_chain(self, owner: str, response_id: str) -> Chain | None:
        """The history that ends in `response_id`; see `chains.load_chain`."""
        return await load_chain(self, owner, response_id, self._chain_items, self._history_bytes)

    async def chain(self, owner: str, response_id: str, limit: int, size: int) -> Sequence[Row]:
        """See `ChainRows.chain`."""
        named = {"id": response_id, "owner": owner, "limit": limit, "bytes": size}
        return await self._readers.fetch(LOAD_CHAIN, named)

    async def before(
        self, owner: str, conversation_id: str, position: int | None, limit: int, size: int
    ) -> Sequence[Row]:
        """See `ChainRows.before`."""
        named = {"owner": owner, "conversation_id": conversation_id, "pos": position, "limit": limit, "bytes": size}
        return await self._readers.fetch(LOAD_BEFORE, named)

    async def load_items(self, owner: str, item_ids: tuple[str, ...]) -> dict[str, StoredItem]:
        """The owner's items with these ids; see `ResponseStore.load_items`."""
        if not item_ids:
            return {}
        named = {"owner": owner, "ids": json.dumps(sorted(set(item_ids))), "bytes": self._history_bytes}
        return named_items(item_ids, await self._readers.fetch(LOAD_ITEMS, named), self._history_bytes)

    async def get(self, owner: str, response_id: str) -> StoredResponse | None:
        """The response with its output items, or None."""
        rows = await self._readers.fetch(GET_RESPONSE, {"id": response_id, "owner": owner})
        if not rows:
            return None
        _, stored_id, status, body = rows[0]
        return StoredResponse(stored_id, status, body, tuple([stored_item(row) for row in rows[1:]]))

    async def delete(self, owner: str, response_id: str) -> bool:
        """Delete the response and its items; False when there is none for this owner."""
        named = {"id": response_id, "owner": owner}
        counts = await self._writer.run([Statement(DELETE_LAST_OF_CHAIN, named), Statement(DELETE_RESPONSE, named)])
        return any(counts)

    async def list(self, owner: str, page: PageQuery) -> Page[StoredResponse]:
        """A page of the owner's responses; `after` and `before` are meant in the asked order, one of them counts."""
        named = {"owner": owner, "cursor": None, "limit": page.limit + 1, "bytes": self._page_bytes}
        sql = LIST_BACKWARD if page.backward else LIST_FORWARD
        for name, cursor in page.cursors[:1]:
            named["cursor"] = cursor
            if not await self._readers.fetch(IS_RESPONSE, named):
                raise unknown_cursor(name, "There is no response with this id")
            sql = LIST_BACKWARD_BEHIND if page.backward else LIST_FORWARD_BEHIND
        return response_page(await self._readers.fetch(sql, named), page)

    async def input_items(self, owner: str, response_id: str, page: PageQuery) -> Page[StoredItem] | None:
        """A page of the response's own input items, or None when there is no such response.

        `after` and `before` are meant in the asked order. With `before` alone the page is the one that ends just
        before that item. An id that is not in the list is an `InvalidRequest`.
        """
        named = {"id": response_id, "owner": owner, **asked(page, self._page_bytes)}
        sql = INPUT_ITEMS_BACKWARD if page.backward else INPUT_ITEMS_FORWARD
        return item_page(await self._readers.fetch(sql, named), page)

    async def ping(self) -> None:
        """Raise `StoreError` unless the database can be written to and read."""
        # Questions that come while one is being answered share its answer, so they cannot multiply the writes.
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._ask())
            # Whoever asked may have left; an error nobody waits for is not worth a warning.
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
