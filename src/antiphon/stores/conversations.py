"""What it means to keep a conversation: the `ConversationStore` over SQLite.

Lives here: the SQL by name for conversations, their items and their lock, and how rows become values. Not here: how a
response's own items join its conversation (`responses.py`: in the same unit as the response), and threads,
connections and transactions.

The lock is a lease: `locked_by` names the response that runs on the conversation, `locked_until` when that is over
unless it was renewed. Whoever takes the lock later overwrites both, so a response that lost it finds no row to append
to. A lock that ran out and was taken by nobody still is its response's.

Invariant: every statement names the owner, and one that changes items finds the conversation unlocked or changes
nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from antiphon.engine.actions import StoredItem
from antiphon.engine.ports import ConversationPage, ItemPage, PageQuery, StoredConversation
from antiphon.errors import ConversationLocked, ConversationTooLong, InvalidRequest
from antiphon.ids import Clock, now
from antiphon.stores.sqlite_readers import Row, SqliteReaders
from antiphon.stores.sqlite_writer import RowsMissing, SqliteWriter, Statement

__all__ = ["SqliteConversationStore"]

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
_FREE = "locked_until <= :at AND NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.response_id = locked_by)"
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
ORDER BY c.created_at {order}, c.id {order} LIMIT :most
"""
LIST_FORWARD = _CONVERSATIONS.format(order="ASC")
LIST_BACKWARD = _CONVERSATIONS.format(order="DESC")

# Places are given out by the row of the conversation, so that two writers never get the same ones.
MAKE_ROOM = f"""
UPDATE conversations SET next_pos = next_pos + :count, updated_at = max(updated_at, :at)
WHERE owner = :owner AND id = :id AND {_UNLOCKED}
"""
INSERT_ITEM = """
INSERT INTO conversation_items (owner, conversation_id, pos, item_id, type, body)
SELECT c.owner, c.id, c.next_pos - ? + ?, ?, ?, ? FROM conversations c WHERE c.owner = ? AND c.id = ?
"""
DELETE_ITEM = f"""
DELETE FROM conversation_items WHERE owner = :owner AND conversation_id = :id AND item_id = :item_id
  AND EXISTS (SELECT 1 FROM conversations WHERE owner = :owner AND id = :id AND {_UNLOCKED})
"""
GET_ITEM = """
SELECT item_id, type, body FROM conversation_items
WHERE owner = :owner AND conversation_id = :id AND item_id = :item_id
"""
# The conversation is the left side: no row means that there is none, a row without an item that it is empty.
LOAD_CONVERSATION = """
SELECT i.item_id, i.type, i.body FROM conversations c
LEFT JOIN conversation_items i ON i.owner = c.owner AND i.conversation_id = c.id
WHERE c.owner = :owner AND c.id = :id ORDER BY i.pos LIMIT :most
"""
_ITEMS = """
WITH edge (low, high) AS (
  SELECT (SELECT pos FROM conversation_items WHERE owner = :owner AND conversation_id = :id AND item_id = :low),
         (SELECT pos FROM conversation_items WHERE owner = :owner AND conversation_id = :id AND item_id = :high)
)
SELECT edge.low, edge.high, i.item_id, i.type, i.body
FROM conversations c CROSS JOIN edge
LEFT JOIN conversation_items i ON i.owner = c.owner AND i.conversation_id = c.id
  AND i.pos > ifnull(edge.low, -1) AND i.pos < ifnull(edge.high, 9223372036854775807)
WHERE c.owner = :owner AND c.id = :id
ORDER BY i.pos {order} LIMIT :most
"""
ITEMS_FORWARD = _ITEMS.format(order="ASC")
ITEMS_BACKWARD = _ITEMS.format(order="DESC")

# One item per wanted id, the newest first.
FIND_ITEMS = """
SELECT i.item_id, i.type, i.body
FROM json_each(:ids) wanted CROSS JOIN conversation_items i ON i.rowid = (
  SELECT max(c.rowid) FROM conversation_items c WHERE c.item_id = wanted.value AND c.owner = :owner
)
"""

# A holder may come again: a response that was queued takes its conversation once more when it runs.
LOCK = f"""
UPDATE conversations SET locked_by = :holder, locked_until = :until
WHERE owner = :owner AND id = :id AND ({_UNLOCKED} OR locked_by = :holder) AND NOT EXISTS (
  -- A background response that is over (it was cancelled): its worker does not know that yet.
  SELECT 1 FROM responses WHERE responses.id = :holder AND responses.status NOT IN ('queued', 'in_progress')
)
"""
RELEASE = "UPDATE conversations SET locked_by = NULL, locked_until = 0 WHERE locked_by = :holder"
RENEW = "UPDATE conversations SET locked_until = :until WHERE locked_by IN (SELECT value FROM json_each(:holders))"
HELD = "SELECT locked_by FROM conversations WHERE locked_by IN (SELECT value FROM json_each(:holders))"


class SqliteConversationStore:
    """`ConversationStore` on a writer and readers that are somebody else's to close."""

    def __init__(self, writer: SqliteWriter, readers: SqliteReaders, *, most_items: int, clock: Clock = now) -> None:
        """`most_items`: the most items that a response's history may have."""
        self._writer = writer
        self._readers = readers
        self._most = most_items
        self._clock = clock

    async def create(
        self, owner: str, conversation_id: str, metadata: bytes, items: Sequence[StoredItem] = ()
    ) -> StoredConversation:
        """Make a conversation with these items, all or nothing."""
        at = self._now()
        named = {"owner": owner, "id": conversation_id, "metadata": metadata, "at": at}
        await self._writer.run([Statement(INSERT_CONVERSATION, named), *_adding(owner, conversation_id, items, at)])
        return StoredConversation(conversation_id, at / 1000, metadata)

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
        low, high = (page.before, page.after) if page.descending else (page.after, page.before)
        for name in ("after", "before"):
            cursor = getattr(page, name)
            if cursor is not None and await self.get(owner, cursor) is None:
                raise InvalidRequest(f"There is no conversation with this id: '{name}'.", param=name)
        turned = page.before is not None and page.after is None
        rows = await self._readers.fetch(
            LIST_BACKWARD if page.descending != turned else LIST_FORWARD,
            {"owner": owner, "low": low, "high": high, "most": page.limit + 1},
        )
        shown = [_conversation(row) for row in rows[: page.limit]]
        if turned:
            shown.reverse()
        return ConversationPage(tuple(shown), has_more=len(rows) > page.limit)

    async def add_items(self, owner: str, conversation_id: str, items: Sequence[StoredItem]) -> bool:
        """Append the items, all or none; False when there is no such conversation. Raises `ConversationLocked`."""
        try:
            await self._writer.run(_adding(owner, conversation_id, items, self._now()))
        except RowsMissing:
            return await self._missing(owner, conversation_id)
        return True

    async def items(self, owner: str, conversation_id: str, page: PageQuery) -> ItemPage | None:
        """A page of the items, or None; see `ConversationStore.items`."""
        low, high = (page.before, page.after) if page.descending else (page.after, page.before)
        # `before` alone is walked towards the list's start, against the asked order, and then turned round.
        turned = page.before is not None and page.after is None
        rows = await self._readers.fetch(
            ITEMS_BACKWARD if page.descending != turned else ITEMS_FORWARD,
            {"owner": owner, "id": conversation_id, "low": low, "high": high, "most": page.limit + 1},
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

    async def get_item(self, owner: str, conversation_id: str, item_id: str) -> StoredItem | None:
        """One item of the conversation, or None."""
        rows = await self._readers.fetch(GET_ITEM, {"owner": owner, "id": conversation_id, "item_id": item_id})
        return _item(rows[0], 0) if rows else None

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
        rows = await self._readers.fetch(FIND_ITEMS, {"owner": owner, "ids": json.dumps(sorted(set(item_ids)))})
        return {row[0]: _item(row, 0) for row in rows}

    async def load(
        self, owner: str, conversation_id: str, *, holder: str = "", seconds: float = 0.0, create: bool = False
    ) -> tuple[StoredItem, ...] | None:
        """All items, oldest first, and the lock for `holder`; see `ConversationStore.load`."""
        at = self._now()
        named: dict[str, Any] = {"owner": owner, "id": conversation_id, "at": at, "metadata": b"{}"}
        unit = [Statement(INSERT_UNKNOWN, named)] if create else []
        if holder:
            unit.append(Statement(LOCK, {**named, "holder": holder, "until": at + _milliseconds(seconds)}))
        if unit:
            counts = await self._writer.run(unit)
            if holder and not counts[-1] and await self._missing(owner, conversation_id) is False:
                return None
        rows = await self._readers.fetch(
            LOAD_CONVERSATION, {"owner": owner, "id": conversation_id, "most": self._most + 1}
        )
        if not rows:
            return None
        if len(rows) > self._most:
            raise ConversationTooLong(self._most)
        return tuple([_item(row, 0) for row in rows if row[0] is not None])

    async def release(self, holder: str) -> None:
        """Give the lock back, if `holder` has one."""
        await self._writer.run([Statement(RELEASE, {"holder": holder})])

    async def renew(self, holders: Sequence[str], seconds: float) -> frozenset[str]:
        """Keep the locks of these holders for so many seconds more; returns who still had one."""
        named = {"holders": json.dumps(list(holders)), "until": self._now() + _milliseconds(seconds)}
        await self._writer.run([Statement(RENEW, named)])
        return frozenset(row[0] for row in await self._readers.fetch(HELD, named))

    async def _missing(self, owner: str, conversation_id: str) -> bool:
        """Nothing was changed: False when there is no such conversation, else it is locked."""
        if await self.get(owner, conversation_id) is None:
            return False
        raise ConversationLocked()

    def _now(self) -> int:
        return _milliseconds(self._clock())


def _adding(owner: str, conversation_id: str, items: Sequence[StoredItem], at: int) -> list[Statement]:
    count = len(items)
    rows = [(count, seq, item.id, item.type, item.body, owner, conversation_id) for seq, item in enumerate(items)]
    named = {"owner": owner, "id": conversation_id, "count": count, "at": at}
    return [Statement(MAKE_ROOM, named, rows=1), Statement(INSERT_ITEM, rows, many=True, rows=count)]


def _conversation(row: Row) -> StoredConversation:
    return StoredConversation(row[0], row[1] / 1000, row[2])


def _item(row: Row, at: int) -> StoredItem:
    return StoredItem(row[at], row[at + 1], row[at + 2])


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
