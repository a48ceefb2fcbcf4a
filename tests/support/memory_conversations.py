"""A `ConversationStore` in memory, for tests of all code above the store.

Lives here: the semantics of the SQLite store, without durability. The store passes the contract tests of conversations,
so code that works with it also works with the real store.

Invariant: stored values are immutable, so a caller cannot change stored data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from msgspec import structs

from antiphon.engine.ports.actions import OnceOnly, ResponseRecord, StoredItem
from antiphon.engine.ports.state import Page, PageQuery, StoredConversation
from antiphon.errors import ConversationLocked, ConversationTooLong, InvalidRequest, StoreError
from antiphon.stores.conversations import ConversationStore

T = TypeVar("T")


def for_clients(items: Iterable[StoredItem]) -> tuple[StoredItem, ...]:
    """The items without the data that only later requests need."""
    return tuple(structs.replace(item, shown=None) for item in items)


@dataclass
class _Conversation:
    first_place: int
    created_at: float
    metadata: bytes
    items: list[StoredItem] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)
    next_place: int = 0
    locked_by: str = ""
    locked_until: float = 0.0

    def add(self, items: Sequence[StoredItem]) -> None:
        for item in items:
            self.places[item.id] = self.next_place
            self.next_place += 1
            self.items.append(item)


class MemoryConversationStore(ConversationStore):
    """Stores conversations in a dict. `MemoryResponseStore(conversations=…)` appends to them."""

    def __init__(self, *, max_items: int = 50_000, clock: Callable[[], float]) -> None:
        self._all: dict[tuple[str, str], _Conversation] = {}
        self._most = max_items
        self._clock = clock
        self._made = 0

    async def create(
        self,
        owner: str,
        conversation_id: str,
        metadata: bytes,
        items: Sequence[StoredItem] = (),
        once: OnceOnly | None = None,
    ) -> StoredConversation:
        if (owner, conversation_id) in self._all:
            raise StoreError("There is a conversation with this id already.")
        self._made += 1
        made = _Conversation(self._made * 10**9, self._clock(), metadata, next_place=self._made * 10**9)
        made.add(items)
        self._all[owner, conversation_id] = made
        return StoredConversation(conversation_id, made.created_at, metadata)

    async def made(self, once: OnceOnly) -> str | None:
        """Return None, because this store has no idempotency keys."""
        return None

    async def get(self, owner: str, conversation_id: str) -> StoredConversation | None:
        found = self._all.get((owner, conversation_id))
        return StoredConversation(conversation_id, found.created_at, found.metadata) if found else None

    async def update(self, owner: str, conversation_id: str, metadata: bytes) -> StoredConversation | None:
        if found := self._all.get((owner, conversation_id)):
            found.metadata = metadata
        return await self.get(owner, conversation_id)

    async def delete(self, owner: str, conversation_id: str) -> bool:
        return self._unlocked(owner, conversation_id) is not None and bool(self._all.pop((owner, conversation_id)))

    async def list(self, owner: str, page: PageQuery) -> Page[StoredConversation]:
        ids = [each for whose, each in self._all if whose == owner]
        ids.sort(key=lambda each: (self._all[owner, each].created_at, each))
        shown, more = page_of(ids, list(ids), page, "There is no conversation with this id")
        found = [await self.get(owner, each) for each in shown]
        return Page(tuple(each for each in found if each is not None), more)

    async def add_items(self, owner: str, conversation_id: str, items: Sequence[StoredItem]) -> bool:
        found = self._unlocked(owner, conversation_id)
        if found is not None:
            found.add(items)
        return found is not None

    async def items(self, owner: str, conversation_id: str, page: PageQuery) -> Page[StoredItem] | None:
        found = self._all.get((owner, conversation_id))
        if found is None:
            return None
        shown, more = page_of(found.items, [item.id for item in found.items], page, "There is no item with this id")
        return Page(for_clients(shown), more)

    async def get_item(self, owner: str, conversation_id: str, item_id: str) -> StoredItem | None:
        found = self._all.get((owner, conversation_id))
        return next((item for item in for_clients(found.items) if item.id == item_id), None) if found else None

    async def delete_item(self, owner: str, conversation_id: str, item_id: str) -> bool:
        item = await self.get_item(owner, conversation_id, item_id)
        found = self._unlocked(owner, conversation_id) if item is not None else None
        if item is not None and found is not None:
            found.items[:] = [each for each in found.items if each.id != item_id]
        return item is not None

    async def find_items(self, owner: str, item_ids: Sequence[str]) -> dict[str, StoredItem]:
        own = [item for (whose, _), each in self._all.items() if whose == owner for item in each.items]
        return {item.id: item for item in own if item.id in item_ids}

    async def load(
        self, owner: str, conversation_id: str, *, holder: str = "", seconds: float = 0.0, create: bool = False
    ) -> tuple[StoredItem, ...] | None:
        if create and (owner, conversation_id) not in self._all:
            await self.create(owner, conversation_id, b"{}")
        found = self._all.get((owner, conversation_id))
        if found is None:
            return None
        if holder:
            if found.locked_by != holder:
                self._unlocked(owner, conversation_id)
            found.locked_by, found.locked_until = holder, self._clock() + seconds
        if len(found.items) > self._most:
            raise ConversationTooLong(self._most)
        return tuple(found.items)

    async def release(self, holder: str) -> None:
        for found in self._all.values():
            if found.locked_by == holder:
                found.locked_by = ""

    async def renew(self, holders: Sequence[str], seconds: float) -> frozenset[str]:
        held = [found for found in self._all.values() if found.locked_by in holders]
        for found in held:
            found.locked_until = self._clock() + seconds
        return frozenset(found.locked_by for found in held)

    # For `MemoryResponseStore`.

    def join(self, record: ResponseRecord) -> int:
        """Append a response's items and release its lock. Returns the position of the first item. Raises
        `StoreError`."""
        found = self._all.get((record.owner, record.conversation_id or ""))
        if record.joins_conversation and (found is None or found.locked_by != record.id):
            raise StoreError("The conversation was deleted, or another response uses it now. Send the request again.")
        if found is None:
            return 0
        if found.locked_by == record.id:
            found.locked_by = ""
        start = found.next_place
        if record.joins_conversation:
            found.add((*record.input_items, *record.output_items))
        return start

    def before(self, owner: str, conversation_id: str, start: int) -> tuple[StoredItem, ...] | None:
        """The items before this position, or None if the conversation does not exist."""
        found = self._all.get((owner, conversation_id))
        if found is None or start < found.first_place:
            return None
        return tuple(item for item in found.items if found.places[item.id] < start)

    def _unlocked(self, owner: str, conversation_id: str) -> _Conversation | None:
        found = self._all.get((owner, conversation_id))
        if found is not None and found.locked_by and found.locked_until > self._clock():
            raise ConversationLocked()
        return found


def page_of(values: Sequence[T], ids: Sequence[str], page: PageQuery, missing: str) -> tuple[list[T], bool]:
    """Return a page of `values` (oldest first), and whether more values exist. Raises `InvalidRequest` with the message
    `missing` for a cursor that is not in `ids`."""
    both = list(zip(ids, values, strict=True))
    if page.descending:
        both.reverse()
    names = [name for name, _ in both]
    for name in ("after", "before"):
        if (cursor := getattr(page, name)) is not None and cursor not in names:
            raise InvalidRequest(f"{missing}: '{cursor}'.", param=name)
    start = names.index(page.after) + 1 if page.after is not None else 0
    end = names.index(page.before) if page.before is not None else len(names)
    between = [value for _, value in both[start:end]]
    turned = page.before is not None and page.after is None
    return (between[-page.limit :] if turned else between[: page.limit]), len(between) > page.limit
