"""What it means to keep a conversation: the `ConversationStore` over PostgreSQL.

Lives here: conversations, their items and their lock. Not here: its SQL (`conversation_sql.py`), how a response's own
items join its conversation (in the statement that stores the response).

The lock is a lease by the database's clock: `locked_by` names the response that runs on the conversation,
`locked_until` when that is over unless it was renewed. Whoever takes the lock later overwrites both, so a response that
lost it finds no row to append to. A lock that ran out and was taken by nobody still is its response's. A background
response keeps its conversation as long as there is a job for it.

What is free is taken or changed in one statement. Where a conversation seems held, its row is locked first, and a
second statement, which sees what was done while the first one waited, looks again: whether there is a job for the
holder cannot be told by a statement that began before.

Invariant: every statement names the owner, but for those of the lock, which name the response that holds it; one that
changes items finds the conversation unlocked or changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from antiphon.engine.ports.actions import OnceOnly, StoredItem
from antiphon.engine.ports.state import ConversationPage, ItemPage, PageQuery, StoredConversation
from antiphon.errors import ConversationLocked, ConversationTooLong, HistoryTooLarge
from antiphon.ids import Clock, now
from antiphon.stores.pages import check_cursors, history_item, item_page, named_items, stored_item
from antiphon.stores.postgres import conversation_sql as sql
from antiphon.stores.postgres.certain import certainly
from antiphon.stores.postgres.database import Connection, Database, Record
from antiphon.stores.postgres.making import KeysInTransactions, make


class PostgresConversationStore:
    """`ConversationStore` on connections that are somebody else's to close."""

    def __init__(
        self,
        database: Database,
        *,
        keys: KeysInTransactions,
        max_items: int,
        history_bytes: int,
        page_bytes: int,
        clock: Clock = now,
    ) -> None:
        """`max_items`, `history_bytes`: the most that a response's history may have; `page_bytes`: where a page of
        items ends before its rows do."""
        self._database = database
        self._keys = keys
        self._limit = max_items
        self._history_bytes = history_bytes
        self._page_bytes = page_bytes
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

        async def work(connection: Connection) -> None:
            await connection.execute(sql.INSERT, owner, conversation_id, at, metadata)
            if items:
                await connection.fetch(sql.ADD_ITEMS, owner, conversation_id, *_columns(items))

        await make(self._database, self._keys, once, conversation_id, work)
        return StoredConversation(conversation_id, at / 1000, metadata)

    async def made(self, once: OnceOnly) -> str | None:
        """What this very request made before."""
        return await self._keys.made(once)

    async def get(self, owner: str, conversation_id: str) -> StoredConversation | None:
        """The conversation, or None."""
        rows = await self._database.fetch(sql.GET, owner, conversation_id)
        return _conversation(rows[0]) if rows else None

    async def update(self, owner: str, conversation_id: str, metadata: bytes) -> StoredConversation | None:
        """Replace the metadata; None when there is no such conversation."""
        rows = await self._database.write(sql.UPDATE_METADATA, owner, conversation_id, metadata, again=True)
        return _conversation(rows[0]) if rows else None

    async def delete(self, owner: str, conversation_id: str) -> bool:
        """Delete the conversation with its items; False when there is none. Raises `ConversationLocked`."""

        async def work(connection: Connection) -> bool:
            if not await connection.fetch(sql.HOLD, owner, conversation_id):
                return False
            if not await connection.fetch(sql.DELETE, owner, conversation_id):
                raise ConversationLocked()
            return True

        return await certainly(self._database, work)

    async def list(self, owner: str, page: PageQuery) -> ConversationPage:
        """A page of the owner's conversations, by their time of creation."""
        await check_cursors(page, partial(self.get, owner), "There is no conversation with this id")
        text = sql.LIST_BACKWARD if page.backward else sql.LIST_FORWARD
        rows = await self._database.fetch(text, owner, *page.bounds, page.limit + 1)
        return ConversationPage(page.shown([_conversation(row) for row in rows]), has_more=len(rows) > page.limit)

    async def add_items(self, owner: str, conversation_id: str, items: Sequence[StoredItem]) -> bool:
        """Append the items, all or none; False when there is no such conversation. Raises `ConversationLocked`."""

        async def work(connection: Connection) -> bool:
            if not await connection.fetch(sql.HOLD, owner, conversation_id):
                return False
            added = await connection.fetch(sql.ADD_ITEMS, owner, conversation_id, *_columns(items))
            if not added:
                raise ConversationLocked()
            return True

        return await certainly(self._database, work)

    async def items(self, owner: str, conversation_id: str, page: PageQuery) -> ItemPage | None:
        """A page of the items, or None; see `ConversationStore.items`."""
        text = sql.ITEMS_BACKWARD if page.backward else sql.ITEMS_FORWARD
        arguments = (owner, conversation_id, *page.bounds, page.limit + 1, self._page_bytes)
        return item_page(await self._database.fetch(text, *arguments), page)

    async def get_item(self, owner: str, conversation_id: str, item_id: str) -> StoredItem | None:
        """One item of the conversation, or None."""
        rows = await self._database.fetch(sql.GET_ITEM, owner, conversation_id, item_id)
        return stored_item(rows[0]) if rows else None

    async def delete_item(self, owner: str, conversation_id: str, item_id: str) -> bool:
        """Take one item out; False when it is not there. Raises `ConversationLocked`."""

        async def work(connection: Connection) -> bool:
            if not await connection.fetch(sql.HOLD, owner, conversation_id):
                return False
            if await connection.fetch(sql.DELETE_ITEM, owner, conversation_id, item_id):
                return True
            if await connection.fetch(sql.GET_ITEM, owner, conversation_id, item_id):
                raise ConversationLocked()
            return False

        return await certainly(self._database, work)

    async def find_items(self, owner: str, item_ids: Sequence[str]) -> dict[str, StoredItem]:
        """The owner's items with these ids, in whatever conversation; absent ones are left out."""
        if not item_ids:
            return {}
        rows = await self._database.fetch(sql.FIND_ITEMS, owner, sorted(set(item_ids)), self._history_bytes)
        return named_items(item_ids, rows, self._history_bytes)

    async def load(
        self, owner: str, conversation_id: str, *, holder: str = "", seconds: float = 0.0, create: bool = False
    ) -> tuple[StoredItem, ...] | None:
        """All items, oldest first, and the lock for `holder`; see `ConversationStore.load`."""
        if (holder or create) and not await self._take(owner, conversation_id, holder, seconds, create=create):
            return None
        # A statement of its own: one that began before the lock was taken might not see the last items.
        rows = await self._database.fetch(sql.LOAD, owner, conversation_id, self._limit + 1, self._history_bytes)
        if not rows:
            return None
        if rows[0]["size"] > self._history_bytes:
            raise HistoryTooLarge(self._history_bytes, "conversation")
        if len(rows) > self._limit:
            raise ConversationTooLong(self._limit)
        return tuple([history_item(row) for row in rows if row["item_id"] is not None])

    async def release(self, holder: str) -> None:
        """Give the lock back, if `holder` has one."""
        await self._database.write(sql.RELEASE, holder, again=True)

    async def renew(self, holders: Sequence[str], seconds: float) -> frozenset[str]:
        """Keep the locks of these holders for so many seconds more; returns who still had one."""
        rows = await self._database.write(sql.RENEW, list(holders), seconds, again=True)
        return frozenset(row[0] for row in rows)

    async def _take(self, owner: str, conversation_id: str, holder: str, seconds: float, *, create: bool) -> bool:
        """Lock it, making it with `create`; False when there is none. Raises `ConversationLocked`."""
        if holder:
            given = (owner, conversation_id, holder, seconds)
            if await self._database.write(sql.LOCK_FREE, *given, again=True):
                return True
        at = self._now()

        async def work(connection: Connection) -> bool:
            if create:
                await connection.execute(sql.INSERT_UNKNOWN, owner, conversation_id, at, b"{}")
            if not holder:
                return True
            if not await connection.fetch(sql.HOLD, owner, conversation_id):
                return False
            if not await connection.fetch(sql.LOCK, owner, conversation_id, holder, seconds):
                raise ConversationLocked()
            return True

        return await certainly(self._database, work)

    def _now(self) -> int:
        return round(self._clock() * 1000)


def _columns(items: Sequence[StoredItem]) -> tuple[list[Any], ...]:
    return (
        [item.id for item in items],
        [item.type for item in items],
        [item.body for item in items],
        [item.shown for item in items],
    )


def _conversation(row: Record) -> StoredConversation:
    return StoredConversation(row["id"], row["created_at"] / 1000, row["metadata"])
