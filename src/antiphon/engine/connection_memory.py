"""What one connection remembers of responses that are not stored (`store: false`).

Lives here: the responses of a WebSocket that its later requests may continue, as a layer over the response store. Not
here: when a response is kept or forgotten (`doors/http/websocket.py`), and everything durable.

A remembered response holds its own turn and those before it that are not stored either; what came before those is read
from the store each time, so that a deletion there is noticed here.

Invariants: nothing in here is ever written anywhere; an owner's connection is the only reader; at most `most_bytes` of
items are held, the oldest responses go first.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from antiphon.engine.actions import Chain, ResponseRecord, StoredItem
from antiphon.engine.ports import ItemPage, PageQuery, ResponsePage, ResponseStore, StoredResponse

__all__ = ["ConnectionMemory"]

_MOST_RESPONSES = 16


@dataclass(frozen=True, slots=True)
class _Remembered:
    """`items` are of this turn and of the remembered ones before it; `stored` is the id that the first continued."""

    items: tuple[StoredItem, ...]
    stored: str | None
    size: int


class ConnectionMemory:
    """A `ResponseStore` for one connection of one owner: what it remembers first, then the store beneath."""

    def __init__(self, store: ResponseStore, *, most_bytes: int) -> None:
        self._store = store
        self._most_bytes = most_bytes
        self._known: OrderedDict[str, _Remembered] = OrderedDict()
        self._size = 0

    def __contains__(self, response_id: str | None) -> bool:
        return response_id in self._known

    def keep(self, record: ResponseRecord) -> None:
        """Remember this response, unless it is too large, or its history lies in a conversation that may change."""
        if record.conversation_id is not None:
            return
        before = self._known.get(record.previous_response_id or "")
        earlier, stored = (before.items, before.stored) if before is not None else ((), record.previous_response_id)
        items = (*earlier, *record.input_items, *record.output_items)
        size = sum(len(item.body) for item in items)
        if size > self._most_bytes:
            return
        self._known[record.id] = _Remembered(items, stored, size)
        self._size += size
        while self._size > self._most_bytes or len(self._known) > _MOST_RESPONSES:
            _, gone = self._known.popitem(last=False)
            self._size -= gone.size

    def forget(self, response_id: str | None) -> None:
        """It cannot be continued any more (a turn that continued it failed)."""
        gone = self._known.pop(response_id, None) if response_id is not None else None
        if gone is not None:
            self._size -= gone.size

    # What a runner asks of a store

    async def load_chain(self, owner: str, response_id: str) -> Chain | None:
        known = self._known.get(response_id)
        if known is None:
            return await self._store.load_chain(owner, response_id)
        if known.stored is None:
            return Chain(known.items)
        before = await self._store.load_chain(owner, known.stored)
        return Chain((*before.items, *known.items)) if before is not None else None

    async def load_items(self, owner: str, item_ids: tuple[str, ...]) -> dict[str, StoredItem]:
        here = {item.id: item for known in self._known.values() for item in known.items if item.id in item_ids}
        elsewhere = tuple(item_id for item_id in item_ids if item_id not in here)
        return {**(await self._store.load_items(owner, elsewhere) if elsewhere else {}), **here}

    async def save(self, record: ResponseRecord) -> None:
        await self._store.save(record)

    async def get(self, owner: str, response_id: str) -> StoredResponse | None:
        return await self._store.get(owner, response_id)

    async def delete(self, owner: str, response_id: str) -> bool:
        return await self._store.delete(owner, response_id)

    async def list(self, owner: str, page: PageQuery) -> ResponsePage:
        return await self._store.list(owner, page)

    async def input_items(self, owner: str, response_id: str, page: PageQuery) -> ItemPage | None:
        return await self._store.input_items(owner, response_id, page)

    async def ping(self) -> None:
        await self._store.ping()

    async def aclose(self) -> None:
        """Forgets everything; the store beneath belongs to the process."""
        self._known.clear()
        self._size = 0
