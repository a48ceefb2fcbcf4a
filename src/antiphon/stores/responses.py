"""What it means to store a response: the `ResponseStore` over SQLite.

Lives here: the SQL by name, and how records become rows and rows become records. Not here: threads, connections
and transactions (`sqlite_writer.py`, `sqlite_readers.py`), the schema (`migrations/`).

Invariant: a chain never crosses owners. It is enforced where a response is inserted (its predecessor must exist
with the same owner, in the same transaction), so that reading a chain has to check the owner of its last response
only. Nothing stores a conversation twice: every response keeps its own items, once.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from typing import Any

from antiphon.engine.actions import Chain, ResponseRecord, StoredItem
from antiphon.engine.job_bodies import is_over, unfinished_response
from antiphon.engine.ports import ItemPage, PageQuery, ResponsePage, StoredResponse
from antiphon.errors import ChainTooLong, InvalidRequest, StoreError
from antiphon.stores.sqlite_readers import Row, SqliteReaders
from antiphon.stores.sqlite_writer import RowsMissing, SqliteWriter, Statement

__all__ = ["SqliteResponseStore", "save_statements"]

# A new tree is named after its first response: ids are unique already.
INSERT_CHAIN = "INSERT INTO chains (id, owner, updated_at) VALUES (:id, :owner, :at)"

_COLUMNS = """
INSERT INTO responses (id, owner, chain_id, prev_id, history_items, status, model, created_at, completed_at,
                       input_tokens, output_tokens, body, conversation_id, conversation_pos)
"""
INSERT_FIRST_RESPONSE = f"""{_COLUMNS}
VALUES (:id, :owner, :id, NULL, :weight, :status, :model, :created_at, :completed_at,
        :input_tokens, :output_tokens, :body, :conversation_id,
        (SELECT next_pos - :joining FROM conversations WHERE owner = :owner AND id = :conversation_id))
"""

# Inserts nothing when the predecessor is gone or belongs to somebody else; the statement demands one row.
INSERT_NEXT_RESPONSE = f"""{_COLUMNS}
SELECT :id, :owner, prev.chain_id, prev.id, prev.history_items + :weight, :status, :model, :created_at, :completed_at,
       :input_tokens, :output_tokens, :body, NULL, NULL
FROM responses prev WHERE prev.id = :prev_id AND prev.owner = :owner
"""

TOUCH_CHAIN = """
UPDATE chains SET updated_at = max(updated_at, :at) WHERE id = (SELECT chain_id FROM responses WHERE id = :id)
"""

INSERT_ITEM = "INSERT INTO response_items (response_id, dir, seq, item_id, type, body) VALUES (?, ?, ?, ?, ?, ?)"

# Only the response that holds the conversation's lock may add to it, and gives the lock back with it.
JOIN_CONVERSATION = """
UPDATE conversations SET next_pos = next_pos + :joining, updated_at = max(updated_at, :at),
                         locked_by = NULL, locked_until = 0
WHERE owner = :owner AND id = :conversation_id AND locked_by = :id
"""
# A response that failed adds nothing: a second try must not find its question asked already.
LEAVE_CONVERSATION = "UPDATE conversations SET locked_by = NULL, locked_until = 0 WHERE locked_by = :id"
INSERT_CONVERSATION_ITEMS = """
INSERT INTO conversation_items (owner, conversation_id, pos, item_id, type, response_id, body)
SELECT :owner, :conversation_id, r.conversation_pos + row_number() OVER (ORDER BY i.dir, i.seq) - 1,
       i.item_id, i.type, r.id, i.body
FROM responses r CROSS JOIN response_items i ON i.response_id = r.id WHERE r.id = :id
"""

# What was in the conversation before the response at the beginning of a chain; nothing when it is another conversation.
LOAD_BEFORE = """
SELECT i.item_id, i.type, i.body FROM conversations c
LEFT JOIN conversation_items i ON i.owner = c.owner AND i.conversation_id = c.id AND i.pos < :pos
WHERE c.owner = :owner AND c.id = :conversation_id AND c.created_at * 1000 <= :pos ORDER BY i.pos LIMIT :most
"""

# Newest turn first in `turn`. The owner is checked in the seed only: any further condition on `responses` in the
# recursive step makes SQLite build a Bloom filter over the whole table on every call, once ANALYZE has run.
# A chain over the limit stops at the seed and brings no item; its size is in `history_items`. `depth < :most` can
# only matter for a damaged database, in which a chain might run in a circle.
LOAD_CHAIN = """
WITH RECURSIVE turn (id, prev_id, depth, history_items, conversation_id, conversation_pos, status) AS (
  SELECT id, CASE WHEN history_items <= :most THEN prev_id END, 0, history_items, conversation_id, conversation_pos,
         status
  FROM responses WHERE id = :id AND owner = :owner
  UNION ALL
  SELECT r.id, r.prev_id, turn.depth + 1, r.history_items, r.conversation_id, r.conversation_pos, r.status
  FROM turn CROSS JOIN responses r ON r.id = turn.prev_id
  WHERE turn.depth < :most
)
SELECT turn.prev_id, turn.history_items, i.item_id, i.type, i.body, turn.conversation_id, turn.conversation_pos,
       turn.status
FROM turn LEFT JOIN response_items i ON i.response_id = turn.id AND turn.history_items <= :most
ORDER BY turn.depth DESC, i.dir, i.seq
"""

# One item per wanted id, however often clients have used the id: an output before an input, the newest before
# older ones. The index is read backwards until the first item of this owner.
LOAD_ITEMS = """
SELECT i.item_id, i.type, i.body
FROM json_each(:ids) wanted CROSS JOIN response_items i ON i.rowid = (
  SELECT c.rowid FROM response_items c CROSS JOIN responses r ON r.id = c.response_id
  WHERE c.item_id = wanted.value AND r.owner = :owner
  ORDER BY c.dir DESC, c.rowid DESC LIMIT 1
)
"""

# The response itself is the row before its items, so that both come from one snapshot.
GET_RESPONSE = """
SELECT -1 AS seq, id, status, body FROM responses WHERE id = :id AND owner = :owner
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
)
SELECT edge.low, edge.high, i.item_id, i.type, i.body
FROM responses r CROSS JOIN edge
LEFT JOIN response_items i ON i.response_id = r.id AND i.dir = 0
  AND i.seq > ifnull(edge.low, -1) AND i.seq < ifnull(edge.high, 9223372036854775807)
WHERE r.id = :id AND r.owner = :owner
ORDER BY i.seq {order} LIMIT :most
"""
INPUT_ITEMS_FORWARD = _INPUT_ITEMS.format(order="ASC")
INPUT_ITEMS_BACKWARD = _INPUT_ITEMS.format(order="DESC")

# A page lies strictly behind the edge, which is the cursor's place or the list's end. The rows of a page first, then
# their output items, all from one snapshot.
_LIST = """
WITH edge (at, number) AS (SELECT created_at, rowid FROM responses WHERE id = :cursor AND owner = :owner),
page (number, id, created_at, status, body) AS (
  SELECT r.rowid, r.id, r.created_at, r.status, r.body FROM responses r
  WHERE r.owner = :owner {behind} ORDER BY r.created_at {order}, r.rowid {order} LIMIT :most
)
SELECT page.id, page.status, page.body, i.item_id, i.type, i.body
FROM page LEFT JOIN response_items i ON i.response_id = page.id AND i.dir = 1
ORDER BY page.created_at {order}, page.number {order}, i.seq
"""
_BEHIND = "AND (r.created_at, r.rowid) {sign} (SELECT at, number FROM edge)"
LIST_FORWARD = _LIST.format(order="ASC", behind="")
LIST_BACKWARD = _LIST.format(order="DESC", behind="")
LIST_FORWARD_BEHIND = _LIST.format(order="ASC", behind=_BEHIND.format(sign=">"))
LIST_BACKWARD_BEHIND = _LIST.format(order="DESC", behind=_BEHIND.format(sign="<"))
IS_RESPONSE = "SELECT 1 FROM responses WHERE id = :cursor AND owner = :owner"

# First the chain when this response is the last one of it (the response then goes with its chain), else the
# response; items follow by foreign key. One of the two changes a row when there was something to delete.
DELETE_LAST_OF_CHAIN = """
DELETE FROM chains
WHERE id = (SELECT chain_id FROM responses WHERE id = :id AND owner = :owner)
  AND NOT EXISTS (SELECT 1 FROM responses other WHERE other.chain_id = chains.id AND other.id <> :id)
"""
DELETE_RESPONSE = "DELETE FROM responses WHERE id = :id AND owner = :owner"

# Both halves of `ping`. The write is a real one (it sets a field of the file header that nothing else uses), so a
# full disk or a lost write permission is seen before a response fails for it.
PROBE_READ = "SELECT count(*) FROM schema_migrations"
PROBE_WRITE = "PRAGMA user_version = 1"


class SqliteResponseStore:
    """`ResponseStore` on a writer and readers of one database, which it owns and closes."""

    def __init__(self, writer: SqliteWriter, readers: SqliteReaders, *, chain_items: int) -> None:
        """`chain_items`: the most items of history that `load_chain` returns."""
        self._writer = writer
        self._readers = readers
        self._chain_items = chain_items
        self._probe: asyncio.Task[None] | None = None

    async def save(self, record: ResponseRecord) -> None:
        """Store a finished response with its items, all or nothing; see `ResponseStore.save`."""
        try:
            await self._writer.run(save_statements(record))
        except RowsMissing:
            if record.conversation_id is not None:
                raise StoreError("The conversation is gone, or another response has taken it over.") from None
            raise StoreError("The previous response does not exist any more; its chain cannot be continued.") from None
        except StoreError as error:
            if _is_duplicate(error):
                raise StoreError("A response with this id is stored already.") from error
            raise

    async def load_chain(self, owner: str, response_id: str) -> Chain | None:
        """The history that ends in `response_id`; raises `ChainTooLong` before any of a longer one is read."""
        rows = await self._readers.fetch(LOAD_CHAIN, {"id": response_id, "owner": owner, "most": self._chain_items})
        if not rows:
            return None
        oldest_prev_id, history_items = rows[0][0], rows[0][1]
        if history_items > self._chain_items:
            raise ChainTooLong(self._chain_items)
        if not is_over(rows[-1][7]):
            raise unfinished_response(response_id)
        if oldest_prev_id is not None:
            return None  # an ancestor was deleted
        items = [_item(row, 2) for row in rows if row[2] is not None]
        conversation_id, position = rows[0][5], rows[0][6]
        if conversation_id is not None:
            before = await self._before(owner, conversation_id, position, len(items))
            if before is None:
                return None
            items[:0] = before
        return Chain(tuple(items))

    async def _before(
        self, owner: str, conversation_id: str, position: int | None, others: int
    ) -> list[StoredItem] | None:
        """What a chain's first response found in its conversation; None when that conversation was deleted."""
        most = max(0, self._chain_items - others)
        named = {"owner": owner, "conversation_id": conversation_id, "pos": position, "most": most + 1}
        rows = await self._readers.fetch(LOAD_BEFORE, named)
        items = [_item(row, 0) for row in rows if row[0] is not None]
        if len(items) > most:
            raise ChainTooLong(self._chain_items)
        return items if rows else None

    async def load_items(self, owner: str, item_ids: tuple[str, ...]) -> dict[str, StoredItem]:
        """The owner's items with these ids; see `ResponseStore.load_items`."""
        if not item_ids:
            return {}
        rows = await self._readers.fetch(LOAD_ITEMS, {"owner": owner, "ids": json.dumps(sorted(set(item_ids)))})
        return {row[0]: _item(row, 0) for row in rows}

    async def get(self, owner: str, response_id: str) -> StoredResponse | None:
        """The response with its output items, or None."""
        rows = await self._readers.fetch(GET_RESPONSE, {"id": response_id, "owner": owner})
        if not rows:
            return None
        _, stored_id, status, body = rows[0]
        return StoredResponse(stored_id, status, body, tuple([_item(row, 1) for row in rows[1:]]))

    async def delete(self, owner: str, response_id: str) -> bool:
        """Delete the response and its items; False when there is none for this owner."""
        named = {"id": response_id, "owner": owner}
        counts = await self._writer.run([Statement(DELETE_LAST_OF_CHAIN, named), Statement(DELETE_RESPONSE, named)])
        return any(counts)

    async def list(self, owner: str, page: PageQuery) -> ResponsePage:
        """A page of the owner's responses; `after` and `before` are meant in the asked order, one of them counts."""
        cursor = page.after if page.after is not None else page.before
        turned = page.before is not None and page.after is None
        backward = page.descending != turned
        named = {"owner": owner, "cursor": cursor, "most": page.limit + 1}
        if cursor is None:
            sql = LIST_BACKWARD if backward else LIST_FORWARD
        else:
            if not await self._readers.fetch(IS_RESPONSE, named):
                name = "before" if turned else "after"
                raise InvalidRequest(f"There is no response with this id: '{name}'.", param=name)
            sql = LIST_BACKWARD_BEHIND if backward else LIST_FORWARD_BEHIND
        found: dict[str, tuple[Row, list[StoredItem]]] = {}
        for row in await self._readers.fetch(sql, named):
            items = found.setdefault(row[0], (row, []))[1]
            if row[3] is not None:
                items.append(_item(row, 3))
        responses = [StoredResponse(row[0], row[1], row[2], tuple(items)) for row, items in found.values()]
        shown = responses[: page.limit]
        if turned:
            shown.reverse()
        return ResponsePage(tuple(shown), has_more=len(responses) > page.limit)

    async def input_items(self, owner: str, response_id: str, page: PageQuery) -> ItemPage | None:
        """A page of the response's own input items, or None when there is no such response.

        `after` and `before` are meant in the asked order. With `before` alone the page is the one that ends just
        before that item. An id that is not in the list is an `InvalidRequest`.
        """
        low, high = (page.before, page.after) if page.descending else (page.after, page.before)
        # `before` alone is walked towards the list's start, against the asked order, and then turned round.
        turned = page.before is not None and page.after is None
        backward = page.descending != turned
        rows = await self._readers.fetch(
            INPUT_ITEMS_BACKWARD if backward else INPUT_ITEMS_FORWARD,
            {"id": response_id, "owner": owner, "low": low, "high": high, "most": page.limit + 1},
        )
        if not rows:
            return None
        found = {low: rows[0][0], high: rows[0][1]}
        for name in ("after", "before"):
            if (cursor := getattr(page, name)) is not None and found[cursor] is None:
                raise InvalidRequest(f"There is no item with this id in the list: '{name}'.", param=name)
        items = [_item(row, 2) for row in rows if row[2] is not None]
        shown = items[: page.limit]
        if turned:
            shown.reverse()
        return ItemPage(tuple(shown), has_more=len(items) > page.limit)

    async def ping(self) -> None:
        """Raise `StoreError` unless the database can be written to and read."""
        # Questions that come while one is being answered share its answer, so they cannot multiply the writes.
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._ask())
            self._probe.add_done_callback(_seen)
        await asyncio.shield(self._probe)

    async def aclose(self) -> None:
        """Finish what was accepted, then close. The writer goes last: it folds the log into the file."""
        await self._readers.aclose()
        await self._writer.aclose()

    async def _ask(self) -> None:
        await self._writer.run([Statement(PROBE_WRITE)])
        await self._readers.fetch(PROBE_READ, {})


def save_statements(record: ResponseRecord) -> list[Statement]:
    items = [
        (record.id, direction, seq, item.id, item.type, item.body)
        for direction, given in enumerate((record.input_items, record.output_items))
        for seq, item in enumerate(given)
    ]
    named: dict[str, Any] = {
        "id": record.id,
        "owner": record.owner,
        "prev_id": record.previous_response_id,
        "weight": max(1, len(items)),
        "status": record.status,
        "model": record.model,
        "created_at": _milliseconds(record.created_at),
        "completed_at": None if record.completed_at is None else _milliseconds(record.completed_at),
        "input_tokens": record.usage.input_tokens if record.usage else None,
        "output_tokens": record.usage.output_tokens if record.usage else None,
        "body": record.body,
        "at": _milliseconds(record.completed_at or record.created_at),
        "conversation_id": record.conversation_id,
        "joining": len(items) if record.joins_conversation else 0,
    }
    if record.previous_response_id is None:
        rows = [Statement(INSERT_CHAIN, named), Statement(INSERT_FIRST_RESPONSE, named)]
    else:
        rows = [Statement(INSERT_NEXT_RESPONSE, named, rows=1), Statement(TOUCH_CHAIN, named, rows=1)]
    rows.append(Statement(INSERT_ITEM, items, many=True))
    if record.joins_conversation:
        # First, so that the response's row learns where its items begin.
        return [Statement(JOIN_CONVERSATION, named, rows=1), *rows, Statement(INSERT_CONVERSATION_ITEMS, named)]
    if record.conversation_id is not None:
        rows.append(Statement(LEAVE_CONVERSATION, named))
    return rows


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _item(row: Row, at: int) -> StoredItem:
    return StoredItem(row[at], row[at + 1], row[at + 2])


def _is_duplicate(error: StoreError) -> bool:
    cause = error.__cause__
    return isinstance(cause, sqlite3.IntegrityError) and cause.sqlite_errorcode in (
        sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY,
        sqlite3.SQLITE_CONSTRAINT_UNIQUE,
    )


def _seen(task: asyncio.Task[None]) -> None:
    # Whoever asked may have left; an error nobody waits for is not worth a warning.
    if not task.cancelled():
        task.exception()
