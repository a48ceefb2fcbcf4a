"""The rows of conversations and their items: `ConversationRows` over SQLite.

Lives here: the SQL by name. Not here: what it means (`stores/kept_conversations.py`), how a response's own items join
its conversation (`responses.py`: in the same unit as the response), threads, connections and transactions.

Invariant: every statement names the owner, but for those of the lock, which name the response that holds it; one that
changes items finds the conversation unlocked or changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from antiphon.engine.ports.actions import OnceOnly, StoredItem
from antiphon.engine.ports.retention import SWEEPER
from antiphon.engine.ports.state import PageQuery, StoredConversation
from antiphon.ids import Clock, now
from antiphon.stores.kept_conversations import kept_conversation
from antiphon.stores.pages import stored_item
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


class SqliteConversationRows:
    """`ConversationRows` on a writer and readers that the caller closes."""

    def __init__(
        self, writer: SqliteWriter, readers: SqliteReaders, keys: SqliteIdempotency, *, clock: Clock = now
    ) -> None:
        self._writer = writer
        self._readers = readers
        self._keys = keys
        self._clock = clock

    async def find(self, owner: str, conversation_id: str) -> StoredConversation | None:
        """See `ConversationRows.find`."""
        rows = await self._readers.fetch(GET_CONVERSATION, {"owner": owner, "id": conversation_id})
        return kept_conversation(rows[0]) if rows else None

    async def page(self, owner: str, page: PageQuery) -> Sequence[StoredConversation]:
        """See `ConversationRows.page`."""
        sql = LIST_BACKWARD if page.backward else LIST_FORWARD
        return [kept_conversation(row) for row in await self._readers.fetch(sql, {"owner": owner, **asked(page)})]

    async def insert(
        self, owner: str, conversation: StoredConversation, items: Sequence[StoredItem], once: OnceOnly | None
    ) -> None:
        """See `ConversationRows.insert`."""
        named = _inserted(owner, conversation)
        unit = [Statement(INSERT_CONVERSATION, named), *_adding(owner, conversation.id, items, named["at"])]
        await self._keys.make(once, conversation.id, unit, [Statement(DELETE_CONVERSATION, named)])

    async def update(self, owner: str, conversation_id: str, metadata: bytes) -> StoredConversation | None:
        """See `ConversationRows.update`."""
        named = {"owner": owner, "id": conversation_id, "metadata": metadata, "at": self._now()}
        await self._writer.run([Statement(UPDATE_METADATA, named)])
        return await self.find(owner, conversation_id)

    async def delete(self, owner: str, conversation_id: str) -> bool:
        """See `ConversationRows.delete`."""
        named = {"owner": owner, "id": conversation_id}
        return bool((await self._writer.run([Statement(DELETE_CONVERSATION, named)]))[0])

    async def find_item(self, owner: str, conversation_id: str, item_id: str) -> StoredItem | None:
        """See `ConversationRows.find_item`."""
        rows = await self._readers.fetch(GET_ITEM, {"owner": owner, "id": conversation_id, "item_id": item_id})
        return stored_item(rows[0]) if rows else None

    async def named(self, owner: str, item_ids: Sequence[str], size: int) -> Sequence[Row]:
        """See `ConversationRows.named`."""
        return await self._readers.fetch(FIND_ITEMS, {"owner": owner, "ids": json.dumps(item_ids), "bytes": size})

    async def items(self, owner: str, conversation_id: str, page: PageQuery, size: int) -> Sequence[Row]:
        """See `ConversationRows.items`."""
        named = {"owner": owner, "id": conversation_id, **asked(page, size)}
        return await self._readers.fetch(ITEMS_BACKWARD if page.backward else ITEMS_FORWARD, named)

    async def load(self, owner: str, conversation_id: str, limit: int, size: int) -> Sequence[Row]:
        """See `ConversationRows.load`."""
        named = {"owner": owner, "id": conversation_id, "limit": limit, "bytes": size}
        return await self._readers.fetch(LOAD_CONVERSATION, named)

    async def add(self, owner: str, conversation_id: str, items: Sequence[StoredItem]) -> bool:
        """See `ConversationRows.add`."""
        unit = _adding(owner, conversation_id, items, self._now())
        undo = [Statement(DELETE_ADDED, _named(owner, conversation_id, items), many=True)]
        try:
            await self._writer.run(unit, undo=undo)
        except RowsMissing:
            return False
        return True

    async def delete_item(self, owner: str, conversation_id: str, item_id: str) -> bool:
        """See `ConversationRows.delete_item`."""
        named = {"owner": owner, "id": conversation_id, "item_id": item_id}
        return bool((await self._writer.run([Statement(DELETE_ITEM, named)]))[0])

    async def take(
        self, owner: str, conversation_id: str, create: StoredConversation | None, holder: str, seconds: float
    ) -> bool:
        """See `ConversationRows.take`."""
        unit = [] if create is None else [Statement(INSERT_UNKNOWN, _inserted(owner, create))]
        if holder:
            named = {"owner": owner, "id": conversation_id, "holder": holder, "lease": milliseconds(seconds)}
            unit.append(Statement(LOCK, named))
        counts = await self._writer.run(unit)
        return not holder or bool(counts[-1])

    async def release(self, holder: str) -> None:
        """See `ConversationRows.release`."""
        await self._writer.run([Statement(RELEASE_CONVERSATION, {"id": holder})])

    async def renew(self, holders: Sequence[str], seconds: float) -> frozenset[str]:
        """See `Leased.renew`."""
        named = {"holders": json.dumps(list(holders)), "lease": milliseconds(seconds)}
        rows: list[tuple[Any, ...]] = []
        await self._writer.run([Statement(RENEW, named, into=rows)])
        return frozenset(row[0] for row in rows)

    def _now(self) -> int:
        return milliseconds(self._clock())


def _inserted(owner: str, conversation: StoredConversation) -> dict[str, Any]:
    at = milliseconds(conversation.created_at)
    return {"owner": owner, "id": conversation.id, "metadata": conversation.metadata, "at": at}


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
