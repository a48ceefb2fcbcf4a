"""The rows of conversations and their items: `ConversationRows` over PostgreSQL.

Lives here: in which order and in which transactions statements run. Not here: the statements (`conversation_sql.py`),
what it means (`stores/kept_conversations.py`). A lock is a lease by the database's clock.

What is free is taken or changed in one statement. Where a conversation seems held, its row is locked first, and a
second statement, which sees what was done while the first one waited, looks again: whether there is a job for the
holder cannot be told by a statement that began before.

Invariant: every statement names the owner, but for those of the lock, which name the response that holds it; one that
changes items finds the conversation unlocked or changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from antiphon.engine.ports.actions import OnceOnly, StoredItem
from antiphon.engine.ports.state import PageQuery, StoredConversation
from antiphon.stores.kept_conversations import kept_conversation
from antiphon.stores.pages import stored_item
from antiphon.stores.postgres import conversation_sql as sql
from antiphon.stores.postgres.certain import certainly
from antiphon.stores.postgres.database import Connection, Database, Record
from antiphon.stores.postgres.idempotency import PostgresIdempotency
from antiphon.stores.postgres.making import make
from antiphon.stores.postgres.values import milliseconds


class PostgresConversationRows:
    """`ConversationRows` on connections that the caller closes."""

    def __init__(self, database: Database, keys: PostgresIdempotency) -> None:
        self._database = database
        self._keys = keys

    async def find(self, owner: str, conversation_id: str) -> StoredConversation | None:
        """See `ConversationRows.find`."""
        rows = await self._database.fetch(sql.GET, owner, conversation_id)
        return kept_conversation(rows[0]) if rows else None

    async def page(self, owner: str, page: PageQuery) -> Sequence[StoredConversation]:
        """See `ConversationRows.page`."""
        text = sql.LIST_BACKWARD if page.backward else sql.LIST_FORWARD
        rows = await self._database.fetch(text, owner, *page.bounds, page.limit + 1)
        return [kept_conversation(row) for row in rows]

    async def insert(
        self, owner: str, conversation: StoredConversation, items: Sequence[StoredItem], once: OnceOnly | None
    ) -> None:
        """See `ConversationRows.insert`."""

        async def work(connection: Connection) -> None:
            await connection.execute(sql.INSERT, *_inserted(owner, conversation))
            if items:
                await connection.fetch(sql.ADD_ITEMS, owner, conversation.id, *_columns(items))

        await make(self._database, self._keys, once, conversation.id, work)

    async def update(self, owner: str, conversation_id: str, metadata: bytes) -> StoredConversation | None:
        """See `ConversationRows.update`."""
        rows = await self._database.write(sql.UPDATE_METADATA, owner, conversation_id, metadata, again=True)
        return kept_conversation(rows[0]) if rows else None

    async def delete(self, owner: str, conversation_id: str) -> bool:
        """See `ConversationRows.delete`."""
        return await self._held(sql.DELETE, owner, conversation_id)

    async def find_item(self, owner: str, conversation_id: str, item_id: str) -> StoredItem | None:
        """See `ConversationRows.find_item`."""
        rows = await self._database.fetch(sql.GET_ITEM, owner, conversation_id, item_id)
        return stored_item(rows[0]) if rows else None

    async def named(self, owner: str, item_ids: Sequence[str], size: int) -> Sequence[Record]:
        """See `ConversationRows.named`."""
        return await self._database.fetch(sql.FIND_ITEMS, owner, item_ids, size)

    async def items(self, owner: str, conversation_id: str, page: PageQuery, size: int) -> Sequence[Record]:
        """See `ConversationRows.items`."""
        text = sql.ITEMS_BACKWARD if page.backward else sql.ITEMS_FORWARD
        return await self._database.fetch(text, owner, conversation_id, *page.bounds, page.limit + 1, size)

    async def load(self, owner: str, conversation_id: str, limit: int, size: int) -> Sequence[Record]:
        """See `ConversationRows.load`."""
        return await self._database.fetch(sql.LOAD, owner, conversation_id, limit, size)

    async def add(self, owner: str, conversation_id: str, items: Sequence[StoredItem]) -> bool:
        """See `ConversationRows.add`."""
        return await self._held(sql.ADD_ITEMS, owner, conversation_id, *_columns(items))

    async def delete_item(self, owner: str, conversation_id: str, item_id: str) -> bool:
        """See `ConversationRows.delete_item`."""
        return await self._held(sql.DELETE_ITEM, owner, conversation_id, item_id)

    async def take(
        self, owner: str, conversation_id: str, create: StoredConversation | None, holder: str, seconds: float
    ) -> bool:
        """See `ConversationRows.take`."""
        given = (owner, conversation_id, holder, seconds)
        if holder and await self._database.write(sql.LOCK_FREE, *given, again=True):
            return True

        async def work(connection: Connection) -> bool:
            if create is not None:
                await connection.execute(sql.INSERT_UNKNOWN, *_inserted(owner, create))
            if not holder:
                return True
            await connection.fetch(sql.HOLD, owner, conversation_id)
            return bool(await connection.fetch(sql.LOCK, *given))

        return await certainly(self._database, work)

    async def release(self, holder: str) -> None:
        """See `ConversationRows.release`."""
        await self._database.write(sql.RELEASE, holder, again=True)

    async def renew(self, holders: Sequence[str], seconds: float) -> frozenset[str]:
        """See `Leased.renew`."""
        rows = await self._database.write(sql.RENEW, list(holders), seconds, again=True)
        return frozenset(row[0] for row in rows)

    async def _held(self, text: str, owner: str, conversation_id: str, *more: Any) -> bool:
        """Run a statement that changes an unlocked conversation, behind the lock of its row."""

        async def work(connection: Connection) -> bool:
            await connection.fetch(sql.HOLD, owner, conversation_id)
            return bool(await connection.fetch(text, owner, conversation_id, *more))

        return await certainly(self._database, work)


def _inserted(owner: str, conversation: StoredConversation) -> tuple[Any, ...]:
    return owner, conversation.id, milliseconds(conversation.created_at), conversation.metadata


def _columns(items: Sequence[StoredItem]) -> tuple[list[Any], ...]:
    return (
        [item.id for item in items],
        [item.type for item in items],
        [item.body for item in items],
        [item.shown for item in items],
    )
