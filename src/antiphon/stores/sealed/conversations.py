"""`ConversationStore` whose bodies are sealed at rest.

Lives here: which parts of a conversation those are. Not here: how (`bodies.py`).

Invariant: metadata and items come out as they were given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from antiphon.engine.ports.actions import OnceOnly, StoredItem
from antiphon.engine.ports.state import ConversationPage, ConversationStore, ItemPage, PageQuery, StoredConversation
from antiphon.stores.sealed.bodies import Bodies


class SealedConversations:
    """`ConversationStore` over another one."""

    def __init__(self, beneath: ConversationStore, bodies: Bodies) -> None:
        self._beneath = beneath
        self._bodies = bodies
        self.made = beneath.made
        self.delete = beneath.delete
        self.delete_item = beneath.delete_item
        self.release = beneath.release
        self.renew = beneath.renew

    async def create(
        self,
        owner: str,
        conversation_id: str,
        metadata: bytes,
        items: Sequence[StoredItem] = (),
        once: OnceOnly | None = None,
    ) -> StoredConversation:
        """Make a conversation with these items; see `ConversationStore.create`."""
        sealed, bodies = self._sealed(items), self._bodies
        made = await self._beneath.create(owner, conversation_id, bodies.seal(metadata), sealed, once)
        return replace(made, metadata=metadata)

    async def get(self, owner: str, conversation_id: str) -> StoredConversation | None:
        """The conversation, or None."""
        return self._opened(await self._beneath.get(owner, conversation_id))

    async def update(self, owner: str, conversation_id: str, metadata: bytes) -> StoredConversation | None:
        """Replace the metadata; None when there is no such conversation."""
        return self._opened(await self._beneath.update(owner, conversation_id, self._bodies.seal(metadata)))

    async def add_items(self, owner: str, conversation_id: str, items: Sequence[StoredItem]) -> bool:
        """Append the items; see `ConversationStore.add_items`."""
        return await self._beneath.add_items(owner, conversation_id, self._sealed(items))

    async def items(self, owner: str, conversation_id: str, page: PageQuery) -> ItemPage | None:
        """A page of the items, or None; see `ConversationStore.items`."""
        found = await self._beneath.items(owner, conversation_id, page)
        return None if found is None else ItemPage(self._bodies.open_items(found.items), found.has_more)

    async def get_item(self, owner: str, conversation_id: str, item_id: str) -> StoredItem | None:
        """One item of the conversation, or None."""
        found = await self._beneath.get_item(owner, conversation_id, item_id)
        return None if found is None else self._bodies.open_item(found)

    async def find_items(self, owner: str, item_ids: Sequence[str]) -> dict[str, StoredItem]:
        """The owner's items with these ids; absent ones are left out."""
        found = await self._beneath.find_items(owner, item_ids)
        return {name: self._bodies.open_item(item) for name, item in found.items()}

    async def load(
        self, owner: str, conversation_id: str, *, holder: str = "", seconds: float = 0.0, create: bool = False
    ) -> tuple[StoredItem, ...] | None:
        """All items, oldest first, and the lock for `holder`; see `ConversationStore.load`."""
        found = await self._beneath.load(owner, conversation_id, holder=holder, seconds=seconds, create=create)
        return None if found is None else self._bodies.open_items(found)

    async def list(self, owner: str, page: PageQuery) -> ConversationPage:
        """A page of the owner's conversations, by their time of creation."""
        found = await self._beneath.list(owner, page)
        opened = [replace(one, metadata=self._bodies.open(one.metadata)) for one in found.conversations]
        return ConversationPage(tuple(opened), found.has_more)

    def _sealed(self, items: Sequence[StoredItem]) -> Sequence[StoredItem]:
        return [self._bodies.seal_item(item) for item in items]

    def _opened(self, found: StoredConversation | None) -> StoredConversation | None:
        return None if found is None else replace(found, metadata=self._bodies.open(found.metadata))
