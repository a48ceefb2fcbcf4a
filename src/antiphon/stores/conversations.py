"""Stores conversations, their ordered items, and the lock of a running response, in SQLite or PostgreSQL.

Lives here: the SQL of conversations and their items, the size limits of a history, and the pages of lists. This module
also raises the error for a change to a locked conversation. Not here: how a backend runs statements (`tables.py`), the
transaction that stores a response and appends its items to the conversation (`sqlite/`, `postgres/`).

The lock of a conversation is a lease. The column `locked_by` names the response that runs on the conversation. The
column `locked_until` is the time at which the lease expires. A later response overwrites both columns when it takes the
lock. The earlier response no longer matches `locked_by`, so the database rejects that response's items. A response
keeps an expired lock until another response takes the lock. A background response keeps its conversation locked as long
as its job exists.

Clients may choose conversation ids, so a client may delete a conversation and create another with the same id. The
positions of the new conversation's items start above all positions of the old items. So a response of the old
conversation never loads items of the new conversation.

Invariants: every statement selects rows by the owner. Only the statements that renew or release a lock select rows by
the response that holds the lock. A statement that changes items changes no row while the conversation is locked.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from antiphon.engine.ports.actions import OnceOnly, StoredItem
from antiphon.engine.ports.state import Page, PageQuery, StoredConversation
from antiphon.errors import ConversationLocked, ConversationTooLong, HistoryTooLarge
from antiphon.ids import Clock, now
from antiphon.stores.bodies import PLAIN, Bodies
from antiphon.stores.idempotency import IdempotencyStore
from antiphon.stores.retention import SWEEPER
from antiphon.stores.tables import (
    Row,
    RowsMissing,
    Statement,
    Tables,
    both_orders,
    byte_limit,
    check_cursors,
    count_by_owner,
    history_item,
    item_page,
    milliseconds,
    named_items,
    page_parameters,
    renew_leases,
    run_required,
    stored_item,
)

INSERT = """
INSERT INTO conversations (owner, id, created_at, updated_at, place_columns(), metadata)
SELECT :owner, :id, :at, now_ms(), new_places(), :metadata FROM (SELECT new_place() AS place) AS made WHERE true
"""
INSERT_UNKNOWN = f"{INSERT} ON CONFLICT DO NOTHING"
GET = "SELECT id, created_at, metadata FROM conversations WHERE owner = :owner AND id = :id"
_NOT_SWEPT = f"coalesce(locked_by, '') <> '{SWEEPER}'"
UPDATE_METADATA = f"""
UPDATE conversations SET metadata = :metadata, updated_at = greatest(updated_at, now_ms())
WHERE owner = :owner AND id = :id AND {_NOT_SWEPT}
"""
# Locks the conversation's row before the statement that checks its lease. A snapshot from before the row lock could
# miss a job that the last holder of the lease created.
HOLD = "SELECT 1 FROM conversations WHERE owner = :owner AND id = :id FOR UPDATE"
# SQL: true if no response has locked the conversation. A background response keeps the lock as long as its job exists,
# even while no worker runs the job.
_UNLOCKED = """(locked_by IS NULL OR (
  locked_until <= lease_now() AND NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.response_id = locked_by)
))"""
DELETE = f"DELETE FROM conversations WHERE owner = :owner AND id = :id AND {_UNLOCKED}"

# A page contains the conversations strictly between the cursors `:low` and `:high`. Either cursor may be absent.
LIST = both_orders("""
SELECT id, created_at, metadata FROM conversations
WHERE owner = :owner
  AND (created_at, id) > (
    coalesce((SELECT created_at FROM conversations WHERE owner = :owner AND id = :low), -1), coalesce(:low, ''))
  AND (created_at, id) < (
    coalesce((SELECT created_at FROM conversations WHERE owner = :owner AND id = :high), 9223372036854775807),
    coalesce(:high, ''))
ORDER BY created_at {order}, id {order} LIMIT :limit
""")

# The counter `next_pos` in the conversation's row assigns the positions, so two writers never get the same positions.
MAKE_ROOM = f"""
UPDATE conversations SET next_pos = next_pos + :count, updated_at = greatest(updated_at, now_ms())
WHERE owner = :owner AND id = :id AND {_UNLOCKED}
"""
INSERT_ITEM = """
INSERT INTO conversation_items (owner, conversation_id, pos, item_id, type, body, shown)
SELECT owner, id, next_pos - :count + :seq, :item_id, :type, :body, :shown
FROM conversations WHERE owner = :owner AND id = :id
"""
TAKE_BACK_ITEM = """
DELETE FROM conversation_items WHERE owner = :owner AND conversation_id = :id AND item_id = :item_id
"""
DELETE_ITEM = f"""{TAKE_BACK_ITEM}
  AND EXISTS (SELECT 1 FROM conversations WHERE owner = :owner AND id = :id AND {_UNLOCKED})
"""
GET_ITEM = """
SELECT item_id, type, body FROM conversation_items
WHERE owner = :owner AND conversation_id = :id AND item_id = :item_id
"""
# Loads a conversation's items with the conversation's size. No row means that the conversation does not exist. One row
# without an item means that the conversation is empty.
LOAD = f"""
SELECT c.bytes AS size, i.item_id, i.type, i.body, i.shown FROM conversations c
LEFT JOIN conversation_items i ON i.owner = c.owner AND i.conversation_id = c.id AND c.bytes <= :bytes
WHERE c.owner = :owner AND c.id = :id AND {_NOT_SWEPT} ORDER BY i.pos LIMIT :limit
"""
ITEMS = both_orders(f"""
WITH edge (low, high) AS (
  SELECT (SELECT pos FROM conversation_items WHERE owner = :owner AND conversation_id = :id AND item_id = :low),
         (SELECT pos FROM conversation_items WHERE owner = :owner AND conversation_id = :id AND item_id = :high)
),
page (place, size) AS (
  SELECT pos, length(body) FROM conversation_items
  WHERE owner = :owner AND conversation_id = :id
    AND pos > coalesce((SELECT low FROM edge), -1) AND pos < coalesce((SELECT high FROM edge), 9223372036854775807)
  ORDER BY pos {{order}} LIMIT :limit
),
{byte_limit("place {order}")}
SELECT edge.low AS low, edge.high AS high, i.item_id, i.type, CASE WHEN cut.fits THEN i.body END AS body
FROM conversations c CROSS JOIN edge LEFT JOIN cut ON true
LEFT JOIN conversation_items i ON i.owner = c.owner AND i.conversation_id = c.id AND i.pos = cut.place
WHERE c.owner = :owner AND c.id = :id
ORDER BY cut.place {{order}}
""")
# Finds the newest item for each requested id. The query returns no bodies when they exceed `:bytes` together.
FIND_ITEMS = """
WITH found (conversation_id, pos, size) AS (
  SELECT c.conversation_id, c.pos, length(c.body) + coalesce(length(c.shown), 0) FROM conversation_items c
  WHERE c.owner = :owner AND c.item_id IN (:ids...) AND c.rowid = (
    SELECT max(n.rowid) FROM conversation_items n WHERE n.item_id = c.item_id AND n.owner = c.owner
  )
), total (fits) AS (SELECT sum(size) <= :bytes FROM found)
SELECT i.item_id, i.type, CASE WHEN fits THEN i.body END AS body, CASE WHEN fits THEN i.shown END AS shown
FROM total CROSS JOIN found
JOIN conversation_items i ON i.owner = :owner AND i.conversation_id = found.conversation_id AND i.pos = found.pos
"""

# The same holder may lock twice, because a queued response locks its conversation again when it runs.
_TAKE = """
UPDATE conversations SET locked_by = :holder, locked_until = lease_in(:lease) WHERE owner = :owner AND id = :id
"""
# Handles the common case: no response holds the lock, and the new holder has no stored row. Only a background response
# has a stored row before it runs.
LOCK_FREE = f"{_TAKE} AND locked_by IS NULL AND NOT EXISTS (SELECT 1 FROM responses WHERE id = :holder)"
# A finished background response gets no lock. Its worker may still run the response, because the worker does not know
# yet that a client cancelled it.
LOCK = f"""{_TAKE} AND ({_UNLOCKED} OR locked_by = :holder)
  AND NOT EXISTS (SELECT 1 FROM responses r WHERE r.id = :holder AND r.status NOT IN ('queued', 'in_progress'))
"""
RELEASE = "UPDATE conversations SET locked_by = NULL WHERE locked_by = :id"
"""Releases the locks that the response `:id` holds."""
# Locks the rows in the order of their keys, as every statement that locks several rows does, to avoid deadlocks.
RENEW = """
WITH held AS MATERIALIZED (
  SELECT owner, id FROM conversations WHERE locked_by IN (:holders...) ORDER BY owner, id FOR UPDATE
)
UPDATE conversations AS c SET locked_until = lease_in(:lease) FROM held
WHERE c.owner = held.owner AND c.id = held.id AND c.locked_by IN (:holders...) RETURNING locked_by
"""


class ConversationStore:
    """Stores conversations in a database that the caller closes.

    Every method raises `StoreError` when the database fails. No method blocks the event loop. Methods that change items
    or delete the conversation raise `ConversationLocked` (409) while a response runs on the conversation. `metadata` is
    a JSON object in bytes.
    """

    def __init__(
        self,
        tables: Tables,
        keys: IdempotencyStore,
        *,
        max_items: int,
        history_bytes: int,
        page_bytes: int,
        bodies: Bodies = PLAIN,
        clock: Clock = now,
    ) -> None:
        """`max_items` and `history_bytes` limit the history that a response may load. `page_bytes`: the maximum bytes
        of a page of items. `bodies` encrypts metadata and items."""
        self._tables = tables
        self._keys = keys
        self._limit = max_items
        self._history_bytes = history_bytes
        self._page_bytes = page_bytes
        self._bodies = bodies
        self._clock = clock

    async def create(
        self,
        owner: str,
        conversation_id: str,
        metadata: bytes,
        items: Sequence[StoredItem] = (),
        once: OnceOnly | None = None,
    ) -> StoredConversation:
        """Create a conversation with these items in one transaction. Raises `AlreadyMade` when the idempotency key
        `once` already belongs to a created conversation."""
        named = self._named(owner, conversation_id, metadata)
        unit = [Statement(INSERT, named), *self._adding(owner, conversation_id, items)]
        await self._keys.make(once, conversation_id, unit, [Statement(DELETE, named)])
        return StoredConversation(conversation_id, named["at"] / 1000, metadata)

    async def made(self, once: OnceOnly) -> str | None:
        """Return the id of the conversation that an earlier request with the same idempotency key created, or None.
        When a client repeats a request, the objects to which the request refers may already be deleted. So call this
        method before you read those objects."""
        return await self._keys.made(once)

    async def get(self, owner: str, conversation_id: str) -> StoredConversation | None:
        """Return the conversation, or None if the owner has no conversation with this id."""
        rows = await self._tables.fetch(GET, {"owner": owner, "id": conversation_id})
        return self._conversation(rows[0]) if rows else None

    async def update(self, owner: str, conversation_id: str, metadata: bytes) -> StoredConversation | None:
        """Replace the metadata and return the conversation, or None if the conversation does not exist."""
        named = self._named(owner, conversation_id, metadata)
        if not await run_required(self._tables, Statement(UPDATE_METADATA, named, rows=1)):
            return None
        return await self.get(owner, conversation_id)

    async def delete(self, owner: str, conversation_id: str) -> bool:
        """Delete the conversation with its items. Returns False when the conversation does not exist. The responses of
        the conversation stay stored."""
        deleted = await self._change(DELETE, {"owner": owner, "id": conversation_id})
        return deleted or await self._missing(owner, conversation_id)

    async def counts(self) -> dict[str, int]:
        """Return the number of conversations of each owner."""
        return await count_by_owner(self._tables, "conversations")

    async def list(self, owner: str, page: PageQuery) -> Page[StoredConversation]:
        """Return a page of the owner's conversations, ordered by creation time. Cursors are ids of conversations.

        With both cursors, the page has only conversations between them. An unknown cursor raises `InvalidRequest`.
        """
        await check_cursors(page, partial(self.get, owner), "There is no conversation with this id")
        rows = await self._tables.fetch(LIST[page.backward], {"owner": owner, **page_parameters(page)})
        found = [self._conversation(row) for row in rows]
        return Page(page.shown(found), has_more=len(found) > page.limit)

    async def add_items(self, owner: str, conversation_id: str, items: Sequence[StoredItem]) -> bool:
        """Append the items in one transaction. Returns False when the conversation does not exist."""
        named = {"owner": owner, "id": conversation_id}
        undo = [Statement(TAKE_BACK_ITEM, [named | {"item_id": item.id} for item in items], many=True)]
        try:
            await self._tables.run(
                [Statement(HOLD, named, into=[]), *self._adding(owner, conversation_id, items)], undo=undo
            )
        except RowsMissing:
            return await self._missing(owner, conversation_id)
        return True

    async def items(self, owner: str, conversation_id: str, page: PageQuery) -> Page[StoredItem] | None:
        """Return a page of the items, or None when the conversation does not exist.

        A page of large items may have fewer than `limit` items, although more items follow (`has_more`). An unknown
        cursor raises `InvalidRequest`.
        """
        named = {"owner": owner, "id": conversation_id, **page_parameters(page, self._page_bytes)}
        return item_page(await self._tables.fetch(ITEMS[page.backward], named), page, self._bodies)

    async def get_item(self, owner: str, conversation_id: str, item_id: str) -> StoredItem | None:
        """Return one item of the conversation, or None if the conversation has no item with this id."""
        rows = await self._tables.fetch(GET_ITEM, {"owner": owner, "id": conversation_id, "item_id": item_id})
        return self._bodies.open_item(stored_item(rows[0])) if rows else None

    async def delete_item(self, owner: str, conversation_id: str, item_id: str) -> bool:
        """Remove one item. Returns False when the conversation has no item with this id."""
        gone = await self._change(DELETE_ITEM, {"owner": owner, "id": conversation_id, "item_id": item_id})
        if gone or await self.get_item(owner, conversation_id, item_id) is None:
            return gone
        raise ConversationLocked()

    async def find_items(self, owner: str, item_ids: Sequence[str]) -> dict[str, StoredItem]:
        """Return the owner's items with these ids, from any conversation. The result lacks unknown ids. Raises
        `HistoryTooLarge` when the items together exceed the limit `history_bytes`."""
        if not item_ids:
            return {}
        named = {"owner": owner, "ids": sorted(set(item_ids)), "bytes": self._history_bytes}
        found = named_items(item_ids, await self._tables.fetch(FIND_ITEMS, named), self._history_bytes)
        return {item_id: self._bodies.open_item(item) for item_id, item in found.items()}

    async def load(
        self, owner: str, conversation_id: str, *, holder: str = "", seconds: float = 0.0, create: bool = False
    ) -> tuple[StoredItem, ...] | None:
        """Return all items, oldest first, or None when the conversation does not exist. With `create`, this method
        creates a missing conversation.

        With a `holder` (a response's id), this method first locks the conversation for `seconds`. The method raises
        `ConversationLocked` if another response holds the lock. The same response may lock its conversation again.
        `ResponseStore.save` of that response, or `release`, releases the lock. Raises `ConversationTooLong` and
        `HistoryTooLarge`.
        """
        named = {"owner": owner, "id": conversation_id}
        if holder or create:
            taken = await self._take(owner, conversation_id, holder, seconds, create)
            if not taken and not await self._missing(owner, conversation_id):
                return None
        # A separate statement reads the items, because the snapshot of a statement that began before the lock might
        # miss the last items.
        most = {"limit": self._limit + 1, "bytes": self._history_bytes}
        rows = await self._tables.fetch(LOAD, {**named, **most})
        if not rows:
            return None
        if rows[0]["size"] > self._history_bytes:
            raise HistoryTooLarge(self._history_bytes, "conversation")
        if len(rows) > self._limit:
            raise ConversationTooLong(self._limit)
        return self._bodies.open_items(tuple([history_item(row) for row in rows if row["item_id"] is not None]))

    async def release(self, holder: str) -> None:
        """Release the locks that the response `holder` has."""
        await self._tables.run([Statement(RELEASE, {"id": holder})], again=True)

    async def renew(self, holders: Sequence[str], seconds: float) -> frozenset[str]:
        """See `Leased.renew`."""
        return await renew_leases(self._tables, RENEW, holders, seconds)

    async def _take(self, owner: str, conversation_id: str, holder: str, seconds: float, create: bool) -> bool:
        """Create a missing conversation if `create` is set, and lock the conversation if `holder` is not empty. Returns
        False when the conversation does not exist or another response holds the lock."""
        named = {"owner": owner, "id": conversation_id}
        locking = {**named, "holder": holder, "lease": milliseconds(seconds)}
        if holder:
            with suppress(RowsMissing):
                await self._tables.run([Statement(LOCK_FREE, locking, rows=1)], again=True)
                return True
        unit = []
        if create:
            unit.append(Statement(INSERT_UNKNOWN, self._named(owner, conversation_id, b"{}")))
        if holder:
            unit += [Statement(HOLD, named, into=[]), Statement(LOCK, locking, rows=1)]
        try:
            await self._tables.run(unit)
        except RowsMissing:
            return False
        return True

    async def _change(self, sql: str, named: dict[str, object]) -> bool:
        """Lock the conversation's row, then run a statement that changes one row. Returns False when the statement
        found no row or the conversation is locked."""
        try:
            await self._tables.run([Statement(HOLD, named, into=[]), Statement(sql, named, rows=1)])
        except RowsMissing:
            return False
        return True

    def _adding(self, owner: str, conversation_id: str, items: Sequence[StoredItem]) -> Sequence[Statement]:
        if not items:
            return []
        named = {"owner": owner, "id": conversation_id, "count": len(items), "now_ms": milliseconds(self._clock())}
        rows = [
            named | {"seq": seq, "item_id": item.id, "type": item.type, "body": item.body, "shown": item.shown}
            for seq, item in enumerate(map(self._bodies.seal_item, items))
        ]
        return [Statement(MAKE_ROOM, named, rows=1), Statement(INSERT_ITEM, rows, many=True)]

    async def _missing(self, owner: str, conversation_id: str) -> bool:
        """Find out why a statement that changes the conversation found no row. Returns False when the conversation does
        not exist. Raises `ConversationLocked` when the conversation exists, because then a response has locked it."""
        if await self.get(owner, conversation_id) is None:
            return False
        raise ConversationLocked()

    def _named(self, owner: str, conversation_id: str, metadata: bytes) -> dict[str, Any]:
        at = milliseconds(self._clock())
        body = self._bodies.seal(metadata)
        return {"owner": owner, "id": conversation_id, "metadata": body, "at": at, "now_ms": at}

    def _conversation(self, row: Row) -> StoredConversation:
        return StoredConversation(row["id"], row["created_at"] / 1000, self._bodies.open(row["metadata"]))
