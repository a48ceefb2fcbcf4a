"""Keeps unstored responses (`store: false`) in memory for later requests on the same WebSocket.

Lives here: the responses that later requests of a WebSocket may continue, as a layer over the response store. Not here:
the decision to keep or forget a response (`doors/http/websocket.py`), and durable storage.

A remembered response holds its own items and the items of the unstored responses that it continues. If the chain begins
with stored responses, each request reads these from the store. So a later request cannot continue a stored response
that was deleted.

Invariants: Remembered responses are never written anywhere. Only the owner's connection reads remembered responses. A
connection holds at most `max_bytes` of items, and drops its oldest responses first. All connections of a process share
a `SocketMemory`. When the `SocketMemory` is full, the least recently used connection forgets all of its responses. The
client of that connection must then send the whole input again.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from antiphon.engine.ports.actions import Chain, ComparedResponse, ResponseRecord, StoredItem
from antiphon.engine.ports.state import History

_MAX_RESPONSES = 16


@dataclass(frozen=True, slots=True)
class _Remembered:
    """A remembered response. `items` are its own items, after the items of the unstored responses that it continues.

    `stored` is the id of the stored response that the first of these unstored responses continues, or None.
    """

    items: tuple[StoredItem, ...]
    stored: str | None
    size: int


class SocketMemory:
    """The memory budget that all WebSockets of a process share for remembered responses and queued frames."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        # The order is least recently used first.
        self._memories: OrderedDict[ConnectionMemory, None] = OrderedDict()

    def used_by(self, memory: ConnectionMemory) -> None:
        """Mark this connection as the most recently used. When the memory is full, all other connections forget their
        responses before this connection does."""
        self._memories[memory] = None
        self._memories.move_to_end(memory)

    def take(self, size: int, memory: ConnectionMemory | None = None) -> bool:
        """Reserve `size` bytes. If the memory is full, the least recently used other connections forget their
        responses. Returns False if too little memory becomes free."""
        while self.used + size > self.limit:
            idlest = next((one for one in self._memories if one is not memory), None)
            if idlest is None:
                return False
            idlest.shed()
        self.used += size
        return True

    def give(self, size: int) -> None:
        """Release `size` bytes."""
        self.used -= size

    def leave(self, memory: ConnectionMemory) -> None:
        """Remove a connection that remembers no response any more."""
        self._memories.pop(memory, None)


class ConnectionMemory:
    """The `History` of one WebSocket of one owner. Reads look in the remembered responses first, then in the store."""

    def __init__(self, store: History, *, max_bytes: int, shared: SocketMemory | None = None) -> None:
        self._shared = shared or SocketMemory(max_bytes)
        self._store = store
        self._max_bytes = max_bytes
        self._known: OrderedDict[str, _Remembered] = OrderedDict()
        self._size = 0

    def __contains__(self, response_id: str | None) -> bool:
        return response_id in self._known

    def keep(self, record: ResponseRecord) -> None:
        """Remember this response, unless it is too large or belongs to a conversation."""
        if record.conversation_id is not None:
            return
        before = self._known.get(record.previous_response_id or "")
        earlier, stored = (before.items, before.stored) if before is not None else ((), record.previous_response_id)
        items = (*earlier, *record.input_items, *record.output_items)
        size = sum(item.size for item in items)
        if size > self._max_bytes:
            return
        while self._size + size > self._max_bytes or len(self._known) >= _MAX_RESPONSES:
            self._drop(next(iter(self._known)))
        self._shared.used_by(self)
        while not self._shared.take(size, self):
            if not self._known:
                return
            self._drop(next(iter(self._known)))
        self._known[record.id] = _Remembered(items, stored, size)
        self._size += size

    def forget(self, response_id: str | None) -> None:
        """Forget this response, because a response that continued it failed. No later request can continue this
        response."""
        if response_id is not None and response_id in self._known:
            self._drop(response_id)

    def shed(self) -> None:
        """Forget all responses, because another connection needs the memory."""
        for response_id in tuple(self._known):
            self._drop(response_id)
        self._shared.leave(self)

    def _drop(self, response_id: str) -> None:
        size = self._known.pop(response_id).size
        self._size -= size
        self._shared.give(size)

    # The `History` that a runner uses

    async def load_chain(self, owner: str, response_id: str) -> Chain | None:
        known = self._known.get(response_id)
        if known is None:
            return await self._store.load_chain(owner, response_id)
        self._shared.used_by(self)
        if known.stored is None:
            return Chain(known.items)
        before = await self._store.load_chain(owner, known.stored)
        return Chain((*before.items, *known.items)) if before is not None else None

    async def load_items(self, owner: str, item_ids: tuple[str, ...]) -> dict[str, StoredItem]:
        here = {item.id: item for known in self._known.values() for item in known.items if item.id in item_ids}
        elsewhere = tuple(item_id for item_id in item_ids if item_id not in here)
        return {**(await self._store.load_items(owner, elsewhere) if elsewhere else {}), **here}

    async def load_compared(self, owner: str, response_id: str) -> ComparedResponse | None:
        # A remembered response has only its items, so its prompt cannot be compared.
        return ComparedResponse() if response_id in self else await self._store.load_compared(owner, response_id)

    async def save(self, record: ResponseRecord) -> None:
        await self._store.save(record)
