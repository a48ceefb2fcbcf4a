"""What it means to keep a conversation: the `ConversationStore` over any backend's rows.

Lives here: limits of a history, cursors and pages, and what a change comes to that found the conversation locked. Not
here: the rows (`sqlite/conversations.py`, `postgres/conversations.py`), how a response's own items join its
conversation (in the unit that stores the response).

The lock is a lease: `locked_by` names the response that runs on the conversation, `locked_until` when that is over
unless it was renewed. A response that takes the lock later overwrites both, so the one that lost it finds no row to
append to. A lock that ran out and that no other response took is still its response's. A background response keeps its
conversation as long as there is a job for it.

Invariant: what changes items finds the conversation unlocked or changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

from antiphon.engine.ports.actions import OnceOnly, StoredItem
from antiphon.engine.ports.idempotency import IdempotencyStore
from antiphon.engine.ports.state import ConversationPage, ItemPage, Leased, PageQuery, StoredConversation
from antiphon.errors import ConversationLocked, ConversationTooLong, HistoryTooLarge
from antiphon.ids import Clock, now
from antiphon.stores.pages import Row, check_cursors, history_item, item_page, named_items


class ConversationRows(Leased, Protocol):
    """The rows of conversations and their items; every statement names the owner, but for those of the lock, which name
    the response that holds it. What changes items is False when there was nothing to change, or it was locked. Every
    method raises `StoreError`."""

    async def find(self, owner: str, conversation_id: str) -> StoredConversation | None:
        """The conversation, or None."""

    async def page(self, owner: str, page: PageQuery) -> Sequence[StoredConversation]:
        """One more than `page.limit`, where there are so many, between the cursors."""

    async def insert(
        self, owner: str, conversation: StoredConversation, items: Sequence[StoredItem], once: OnceOnly | None
    ) -> None:
        """The conversation with these items, all or nothing. Raises `AlreadyMade` and `ApiError`."""

    async def update(self, owner: str, conversation_id: str, metadata: bytes) -> StoredConversation | None:
        """Replace the metadata; None when there is no such conversation."""

    async def delete(self, owner: str, conversation_id: str) -> bool:
        """The conversation goes with its items."""

    async def find_item(self, owner: str, conversation_id: str, item_id: str) -> StoredItem | None:
        """One item of the conversation, or None."""

    async def named(self, owner: str, item_ids: Sequence[str], size: int) -> Sequence[Row]:
        """The rows for `named_items`: of each id the newest; no bodies where they take more than `size` bytes."""

    async def items(self, owner: str, conversation_id: str, page: PageQuery, size: int) -> Sequence[Row]:
        """The rows for `item_page`, of which `size` bytes have their bodies."""

    async def load(self, owner: str, conversation_id: str, limit: int, size: int) -> Sequence[Row]:
        """Its `size` and an item in each row, oldest first, at most `limit`; no item where they take more than `size`
        bytes, or there is none. No row: no conversation."""

    async def add(self, owner: str, conversation_id: str, items: Sequence[StoredItem]) -> bool:
        """Append the items, all or none."""

    async def delete_item(self, owner: str, conversation_id: str, item_id: str) -> bool:
        """The item goes."""

    async def take(
        self, owner: str, conversation_id: str, create: StoredConversation | None, holder: str, seconds: float
    ) -> bool:
        """Make the conversation `create` unless it is there, and lock it for the `holder`, if there is one, who may
        have it already."""

    async def release(self, holder: str) -> None:
        """Give the lock back, if `holder` has one."""


class KeptConversations:
    """`ConversationStore` on rows that the caller closes."""

    def __init__(
        self,
        conversations: ConversationRows,
        keys: IdempotencyStore,
        *,
        max_items: int,
        history_bytes: int,
        page_bytes: int,
        clock: Clock = now,
    ) -> None:
        """`max_items`, `history_bytes`: the most that a response's history may have; `page_bytes`: where a page of
        items ends before its rows do."""
        self._conversations = conversations
        self._limit = max_items
        self._history_bytes = history_bytes
        self._page_bytes = page_bytes
        self._clock = clock
        self.made = keys.made
        self.get = conversations.find
        self.get_item = conversations.find_item
        self.update = conversations.update
        self.release = conversations.release
        self.renew = conversations.renew

    async def create(
        self,
        owner: str,
        conversation_id: str,
        metadata: bytes,
        items: Sequence[StoredItem] = (),
        once: OnceOnly | None = None,
    ) -> StoredConversation:
        """Make a conversation with these items, all or nothing."""
        conversation = self._new(conversation_id, metadata)
        await self._conversations.insert(owner, conversation, items, once)
        return conversation

    async def delete(self, owner: str, conversation_id: str) -> bool:
        """Delete the conversation with its items; False when there is none. Raises `ConversationLocked`."""
        return await self._conversations.delete(owner, conversation_id) or await self._missing(owner, conversation_id)

    async def list(self, owner: str, page: PageQuery) -> ConversationPage:
        """A page of the owner's conversations, by their time of creation."""
        await check_cursors(page, partial(self.get, owner), "There is no conversation with this id")
        found = await self._conversations.page(owner, page)
        return ConversationPage(page.shown(found), has_more=len(found) > page.limit)

    async def add_items(self, owner: str, conversation_id: str, items: Sequence[StoredItem]) -> bool:
        """Append the items, all or none; False when there is no such conversation. Raises `ConversationLocked`."""
        added = await self._conversations.add(owner, conversation_id, items)
        return added or await self._missing(owner, conversation_id)

    async def items(self, owner: str, conversation_id: str, page: PageQuery) -> ItemPage | None:
        """A page of the items, or None; see `ConversationStore.items`."""
        return item_page(await self._conversations.items(owner, conversation_id, page, self._page_bytes), page)

    async def delete_item(self, owner: str, conversation_id: str, item_id: str) -> bool:
        """Take one item out; False when it is not there. Raises `ConversationLocked`."""
        gone = await self._conversations.delete_item(owner, conversation_id, item_id)
        if gone or await self.get_item(owner, conversation_id, item_id) is None:
            return gone
        raise ConversationLocked()

    async def find_items(self, owner: str, item_ids: Sequence[str]) -> dict[str, StoredItem]:
        """The owner's items with these ids, in whatever conversation; absent ones are left out."""
        if not item_ids:
            return {}
        rows = await self._conversations.named(owner, sorted(set(item_ids)), self._history_bytes)
        return named_items(item_ids, rows, self._history_bytes)

    async def load(
        self, owner: str, conversation_id: str, *, holder: str = "", seconds: float = 0.0, create: bool = False
    ) -> tuple[StoredItem, ...] | None:
        """All items, oldest first, and the lock for `holder`; see `ConversationStore.load`."""
        if holder or create:
            new = self._new(conversation_id, b"{}") if create else None
            taken = await self._conversations.take(owner, conversation_id, new, holder, seconds)
            if not taken and not await self._missing(owner, conversation_id):
                return None
        # A statement of its own: one that began before the lock was taken might not see the last items.
        rows = await self._conversations.load(owner, conversation_id, self._limit + 1, self._history_bytes)
        if not rows:
            return None
        if rows[0]["size"] > self._history_bytes:
            raise HistoryTooLarge(self._history_bytes, "conversation")
        if len(rows) > self._limit:
            raise ConversationTooLong(self._limit)
        return tuple([history_item(row) for row in rows if row["item_id"] is not None])

    async def _missing(self, owner: str, conversation_id: str) -> bool:
        """Nothing was changed: False when there is no such conversation, else it is locked."""
        if await self.get(owner, conversation_id) is None:
            return False
        raise ConversationLocked()

    def _new(self, conversation_id: str, metadata: bytes) -> StoredConversation:
        return StoredConversation(conversation_id, round(self._clock() * 1000) / 1000, metadata)


def kept_conversation(row: Row) -> StoredConversation:
    """The conversation of a row that has a column of each name."""
    return StoredConversation(row["id"], row["created_at"] / 1000, row["metadata"])
