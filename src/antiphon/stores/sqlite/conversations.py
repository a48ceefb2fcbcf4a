"""What it means to keep a conversation: the `ConversationStore` over SQLite.

Lives here: the SQL by name for conversations, their items and their lock, and how rows become values. Not here: how a
response's own items join its conversation (`responses.py`: in the same unit as the response), and threads,
connections and transactions.

The lock is a lease: `locked_by` names the response that runs on the conversation, `locked_until` when that is over
unless it was renewed. Whoever takes the lock later overwrites both, so a response that lost it finds no row to append
to. A lock that ran out and was taken by nobody still is its response's.

Invariant: every statement names the owner, but for those of the lock, which name the response that holds it; one that
changes items finds the conversation unlocked or changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

from antiphon.engine.ports.actions import OnceOnly, StoredItem
from antiphon.engine.ports.retention import SWEEPER
from antiphon.engine.ports.state import ConversationPage, ItemPage, PageQuery, StoredConversation
from antiphon.errors import ConversationLocked, ConversationTooLong, HistoryTooLarge
from antiphon.ids import Clock, now
from antiphon.stores.pages import check_cursors, history_item, item_page, named_items, stored_item
from antiphon.stores.sqlite.database import milliseconds
from antiphon.stores.sqlite.idempotency import SqliteIdempotency
from antiphon.stores.sqlite.page_sql import asked, within
from antiphon.stores.sqlite.readers import Row, SqliteReaders
from antiphon.stores.sqlite.statements import RowsMissing, Statement
from antiphon.stores.sqlite.writer import SqliteWriter

# Places begin where none of an earlier conversation of the same id can have been: where clients choose the ids, one
# may be deleted and come again, and a response that was made in the first must not find the second's items.
INSERT_CONVERSATION = """
INSERT INTO conversations (owner, id, created_at, updated_at, next_pos, metadata)
VALUES (:owner, :id, :at, :at, :at * 1000, :metadata)
"""
INSERT_UNKNOWN = INSERT_CONVERSATION + " ON CONFLICT DO NOTHING"

GET_CONVERSATION = "SELECT id, created_at, metadata FROM conversations WHERE owner = :owner AND id = :id"
UPDATE_METADATA = """
UPDATE conversations SET metadata = :metadata, updated_at = max(updated_at, :at) WHERE owner = :owner AND id = :id
"""
# A background response keeps its conversation as long as there is a job for it, whoever runs that.
_FREE = "locked_until <= lease_now() AND NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.response_id = locked_by)"
_UNLOCKED = f"(locked_by IS NULL OR ({_FREE}))"
DELETE_CONVERSATION = f"DELETE FROM conversations WHERE owner = :owner AND id = :id AND {_UNLOCKED}"

# A page lies strictly between two conversations of the list, either of which may be absent.
_CONVERSATIONS = """
SELECT c.id, c.created_at, c.metadata FROM conversations c
WHERE c.owner = :owner
  AND (c.created_at, c.id) > (
    ifnull((SELECT created_at FROM conversations WHERE owner = :owner AND id = :low), -1), ifnull(:low, ''))
  AND (c.created_at, c.id) < (
    ifnull((SELECT created_at FROM conversations WHERE owner = :owner AND id = :high), 9223372036854775807),
    ifnull(:high, ''))
ORDER BY c.created_at {order}, c.id {order} LIMIT :limit
"""
LIST_FORWARD = _CONVERSATIONS.format(order="ASC")
LIST_BACKWARD = _CONVERSATIONS.format(order="DESC")

# Places are given out by the row of the conversation, so that two writers never get the same ones.
MAKE_ROOM = f"""
UPDATE conversations SET next_pos = next_pos + :count, updated_at = max(updated_at, :at)
WHERE owner = :owner AND id = :id AND {_UNLOCKED}
"""
INSERT_ITEM = """
INSERT INTO conversation_items (owner, conversation_id, pos, item_id, type, body, shown)
SELECT c.owner, c.id, c.next_pos - ? + ?, ?, ?, ?, ? FROM conversations c WHERE c.owner = ? AND c.id = ?
"""
DELETE_ITEM = f"""
DELETE FROM conversation_items WHERE owner = :owner AND conversation_id = :id AND item_id = :item_id
  AND EXISTS (SELECT 1 FROM conversations WHERE owner = :owner AND id = :id AND {_UNLOCKED})
"""
DELETE_ADDED = "DELETE FROM conversation_items WHERE owner = :owner AND conversation_id = :id AND item_id = :item_id"
GET_ITEM = """
SELECT item_id, type, body FROM conversation_items
WHERE owner = :owner AND conversation_id = :id AND item_id = :item_id
"""
# The conversation is the left side: no row means that there is none, a row without an item that it is empty.
LOAD_CONVERSATION = f"""
SELECT c.bytes AS size, i.item_id, i.type, i.body, i.shown FROM conversations c
LEFT JOIN conversation_items i ON i.owner = c.owner AND i.conversation_id = c.id AND c.bytes <= :bytes
WHERE c.owner = :owner AND c.id = :id AND c.locked_by IS NOT '{SWEEPER}' ORDER BY i.pos LIMIT :limit
"""
_ITEMS = """
WITH edge (low, high) AS (
  SELECT (SELECT pos FROM conversation_items WHERE owner = :owner AND conversation_id = :id AND item_id = :low),
         (SELECT pos FROM conversation_items WHERE owner = :owner AND conversation_id = :id AND item_id = :high)
),
page (place, size) AS (
  SELECT i.pos, length(i.body)
  FROM conversation_items i
  WHERE i.owner = :owner AND i.conversation_id = :id
    AND i.pos > ifnull((SELECT low FROM edge), -1) AND i.pos < ifnull((SELECT high FROM edge), 9223372036854775807)
  ORDER BY i.pos {order} LIMIT :limit
),
{cut}
SELECT edge.low AS low, edge.high AS high, i.item_id, i.type, CASE WHEN cut.fits THEN i.body END AS body
FROM conversations c CROSS JOIN edge LEFT JOIN cut
LEFT JOIN conversation_items i ON i.owner = c.owner AND i.conversation_id = c.id AND i.pos = cut.place
WHERE c.owner = :owner AND c.id = :id
ORDER BY cut.place {order}
"""
ITEMS_FORWARD = _ITEMS.format(order="ASC", cut=within("place ASC"))
ITEMS_BACKWARD = _ITEMS.format(order="DESC", cut=within("place DESC"))

# One item per wanted id, the newest first.
FIND_ITEMS = """
WITH found (number, size) AS (
  SELECT i.rowid, length(i.body) + ifnull(length(i.shown), 0)
  FROM json_each(:ids) wanted CROSS JOIN conversation_items i ON i.rowid = (
    SELECT max(c.rowid) FROM conversation_items c WHERE c.item_id = wanted.value AND c.owner = :owner
  )
)
SELECT i.item_id, i.type, CASE WHEN (SELECT sum(size) FROM found) <= :bytes THEN i.body END AS body,
       CASE WHEN (SELECT sum(size) FROM found) <= :bytes THEN i.shown END AS shown
FROM found CROSS JOIN conversation_items i ON i.rowid = found.number
"""

# A holder may come again: a response that was queued takes its conversation once more when it runs.
LOCK = f"""
UPDATE conversations SET locked_by = :holder, locked_until = lease_now() + :lease
WHERE owner = :owner AND id = :id AND ({_UNLOCKED} OR locked_by = :holder) AND NOT EXISTS (
  -- A background response that is over (it was cancelled): its worker does not know that yet.
  SELECT 1 FROM responses WHERE responses.id = :holder AND responses.status NOT IN ('queued', 'in_progress')
)
"""
RELEASE_CONVERSATION = "UPDATE conversations SET locked_by = NULL, locked_until = 0 WHERE locked_by = :id"
RENEW = """
UPDATE conversations SET locked_until = lease_now() + :lease
WHERE locked_by IN (SELECT value FROM json_each(:holders)) RETURNING locked_by
"""


class SqliteConversationStore:
    """`ConversationStore` on a writer and readers that are somebody else's to close."""

    def __init__(
        self,
        writer: SqliteWriter,
        readers: SqliteReaders,
        *,
        max_items: int,
        history_bytes: int,
        page_bytes: int,
        clock: Clock = now,
        keys: SqliteIdempotency | None = None,
    ) -> None:
        """`max_items`, `history_bytes`: the most that a response's history may have; `page_bytes`: where a page of
        items ends before its rows do."""
        self._keys = keys or SqliteIdempotency(writer, readers)
        self._history_bytes = history_bytes
        self._page_bytes = page_bytes
        self._writer = writer
        self._readers = readers
        self._limit = max_items
        self._clock = clock

    async def create(
        self,
        owner: str,
        conversation_id: str,
        metadata: bytes,
        items: Sequence[StoredItem] = (),
        once: OnceOnly | None = None,
    ) -> StoredConversation:
        """Make a conversation with these items, all or nothing."""
        at = self._now()
        named = {"owner": owner, "id": conversation_id, "metadata": metadata, "at": at}
        unit = [Statement(INSERT_CONVERSATION, named), *_adding(owner, conversation_id, items, at)]
        await self._keys.make(once, conversation_id, unit, [Statement(DELETE_CONVERSATION, named)])
        return StoredConversation(conversation_id, at / 1000, metadata)

    async def made(self, once: OnceOnly) -> str | None:
        """What this very request made before."""
        return await self._keys.made(once)

    async def get(self, owner: str, conversation_id: str) -> StoredConversation | None:
        """The conversation, or None."""
        rows = await self._readers.fetch(GET_CONVERSATION, {"owner": owner, "id": conversation_id})
        return _conversation(rows[0]) if rows else None

    async def update(self, owner: str, conversation_id: str, metadata: bytes) -> StoredConversation | None:
        """Replace the metadata; None when there is no such conversation."""
        named = {"owner": owner, "id": conversation_id, "metadata": metadata, "at": self._now()}
        await self._writer.run([Statement(UPDATE_METADATA, named)])
        return await self.get(owner, conversation_id)

    async def delete(self, owner: str, conversation_id: str) -> bool:
        """Delete the conversation with its items; False when there is none. Raises `ConversationLocked`."""
        named = {"owner": owner, "id": conversation_id, "at": self._now()}
        (count,) = await self._writer.run([Statement(DELETE_CONVERSATION, named)])
        return bool(count) or await self._missing(owner, conversation_id)

    async def list(self, owner: str, page: PageQuery) -> ConversationPage:
        """A page of the owner's conversations, by their time of creation."""
        await check_cursors(page, partial(self.get, owner), "There is no conversation with this id")
        sql = LIST_BACKWARD if page.backward else LIST_FORWARD
        rows = await self._readers.fetch(sql, {"owner": owner, **asked(page)})
        return ConversationPage(page.shown([_conversation(row) for row in rows]), has_more=len(rows) > page.limit)

    async def add_items(self, owner: str, conversation_id: str, items: Sequence[StoredItem]) -> bool:
        """Append the items, all or none; False when there is no such conversation. Raises `ConversationLocked`."""
        try:
            unit = _adding(owner, conversation_id, items, self._now())
            await self._writer.run(
                unit, undo=[Statement(DELETE_ADDED, _named(owner, conversation_id, items), many=True)]
            )
        except RowsMissing:
            return await self._missing(owner, conversation_id)
        return True

    async def items(self, owner: str, conversation_id: str, page: PageQuery) -> ItemPage | None:
        """A page of the items, or None; see `ConversationStore.items`."""
        named = {"owner": owner, "id": conversation_id, **asked(page, self._page_bytes)}
        sql = ITEMS_BACKWARD if page.backward else ITEMS_FORWARD
        return item_page(await self._readers.fetch(sql, named), page)

    async def get_item(self, owner: str, conversation_id: str, item_id: str) -> StoredItem | None:
        """One item of the conversation, or None."""
        rows = await self._readers.fetch(GET_ITEM, {"owner": owner, "id": conversation_id, "item_id": item_id})
        return stored_item(rows[0]) if rows else None

    async def delete_item(self, owner: str, conversation_id: str, item_id: str) -> bool:
        """Take one item out; False when it is not there. Raises `ConversationLocked`."""
        named = {"owner": owner, "id": conversation_id, "item_id": item_id, "at": self._now()}
        (count,) = await self._writer.run([Statement(DELETE_ITEM, named)])
        if count or await self.get_item(owner, conversation_id, item_id) is None:
            return bool(count)
        raise ConversationLocked()

    async def find_items(self, owner: str, item_ids: Sequence[str]) -> dict[str, StoredItem]:
        """The owner's items with these ids, in whatever conversation; absent ones are left out."""
        if not item_ids:
            return {}
        named = {"owner": owner, "ids": json.dumps(sorted(set(item_ids))), "bytes": self._history_bytes}
        return named_items(item_ids, await self._readers.fetch(FIND_ITEMS, named), self._history_bytes)

    async def load(
        self, owner: str, conversation_id: str, *, holder: str = "", seconds: float = 0.0, create: bool = False
    ) -> tuple[StoredItem, ...] | None:
        """All items, oldest first, and the lock for `holder`; see `ConversationStore.load`."""
        at = self._now()
        named: dict[str, Any] = {"owner": owner, "id": conversation_id, "at": at, "metadata": b"{}"}
        unit = [Statement(INSERT_UNKNOWN, named)] if create else []
        if holder:
            unit.append(Statement(LOCK, {**named, "holder": holder, "lease": milliseconds(seconds)}))
        if unit:
            counts = await self._writer.run(unit)
            if holder and not counts[-1] and await self._missing(owner, conversation_id) is False:
                return None
        rows = await self._readers.fetch(
            LOAD_CONVERSATION,
            {"owner": owner, "id": conversation_id, "limit": self._limit + 1, "bytes": self._history_bytes},
        )
        if not rows:
            return None
        if rows[0]["size"] > self._history_bytes:
            raise HistoryTooLarge(self._history_bytes, "conversation")
        if len(rows) > self._limit:
            raise ConversationTooLong(self._limit)
        return tuple([history_item(row) for row in rows if row["item_id"] is not None])

    async def release(self, holder: str) -> None:
        """Give the lock back, if `holder` has one."""
        await self._writer.run([Statement(RELEASE_CONVERSATION, {"id": holder})])

    async def renew(self, holders: Sequence[str], seconds: float) -> frozenset[str]:
        """Keep the locks of these holders for so many seconds more; returns who still had one."""
        named = {"holders": json.dumps(list(holders)), "lease": milliseconds(seconds)}
        rows: list[tuple[Any, ...]] = []
        await self._writer.run([Statement(RENEW, named, into=rows)])
        return frozenset(row[0] for row in rows)

    async def _missing(self, owner: str, conversation_id: str) -> bool:
        """Nothing was changed: False when there is no such conversation, else it is locked."""
        if await self.get(owner, conversation_id) is None:
            return False
        raise ConversationLocked()

    def _now(self) -> int:
        return milliseconds(self._clock())


def _adding(owner: str, conversation_id: str, items: Sequence[StoredItem], at: int) -> list[Statement]:
    count = len(items)
    rows = [
        (count, seq, item.id, item.type, item.body, item.shown, owner, conversation_id)
        for seq, item in enumerate(items)
    ]
    named = {"owner": owner, "id": conversation_id, "count": count, "at": at}
    return [Statement(MAKE_ROOM, named, rows=1), Statement(INSERT_ITEM, rows, many=True, rows=count)]


def _named(owner: str, conversation_id: str, items: Sequence[StoredItem]) -> list[dict[str, str]]:
    return [{"owner": owner, "id": conversation_id, "item_id": item.id} for item in items]


def _conversation(row: Row) -> StoredConversation:
    return StoredConversation(row["id"], row["created_at"] / 1000, row["metadata"])
