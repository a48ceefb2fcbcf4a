"""A `ResponseStore` in memory, for tests of all code above the store.

Lives here: the semantics of the SQLite store, without durability. Not here: failures; tests wrap or subclass the store
for those. The store passes the contract tests, so code that works with it also works with the real store.

Invariant: stored values are immutable, so a caller cannot change stored data.
"""

from __future__ import annotations

from antiphon.engine.ports.actions import Chain, ComparedResponse, ResponseRecord, StoredItem
from antiphon.engine.ports.jobs import is_over, unfinished_response
from antiphon.engine.ports.state import Page, PageQuery, StoredResponse
from antiphon.errors import ChainBroken, ChainTooLong, PredecessorGone, StoreError
from antiphon.stores.responses import ResponseStore
from tests.support.memory_conversations import MemoryConversationStore, for_clients, page_of


class MemoryResponseStore(ResponseStore):
    """Stores records in the dict `records`, which tests may read."""

    def __init__(self, *, chain_items: int = 50_000, conversations: MemoryConversationStore | None = None) -> None:
        self.conversations = conversations
        self._starts: dict[str, int] = {}
        self.records: dict[str, ResponseRecord] = {}
        self._history: dict[str, int] = {}
        self._chain_items = chain_items

    async def save(self, record: ResponseRecord) -> None:
        before = 0
        if record.previous_response_id is not None:
            previous = self._own(record.owner, record.previous_response_id)
            if previous is None:
                raise PredecessorGone()
            before = self._history[previous.id]
        if record.id in self.records:
            raise StoreError("A response with this id is stored already.")
        if record.conversation_id is not None:
            assert self.conversations is not None
            self._starts[record.id] = self.conversations.join(record)
        self.records[record.id] = record
        self._history[record.id] = before + max(1, len(record.input_items) + len(record.output_items))

    async def load_chain(self, owner: str, response_id: str) -> Chain | None:
        turn = self._own(owner, response_id)
        if turn is None:
            return None
        if self._history[turn.id] > self._chain_items:
            raise ChainTooLong(self._chain_items)
        if not is_over(turn.status):
            raise unfinished_response(response_id)
        turns = [turn]
        while turn.previous_response_id is not None:
            gone = turn.previous_response_id
            turn = self.records.get(gone)
            if turn is None:
                raise ChainBroken(response_id, gone)
            turns.append(turn)
        before: tuple[StoredItem, ...] | None = ()
        if turn.conversation_id is not None and self.conversations is not None:
            before = self.conversations.before(owner, turn.conversation_id, self._starts[turn.id])
        if before is None:
            raise ChainBroken(response_id, turn.conversation_id or "")
        items = (*before, *(item for turn in reversed(turns) for item in (*turn.input_items, *turn.output_items)))
        if len(items) > self._chain_items:
            raise ChainTooLong(self._chain_items)
        return Chain(items)

    async def load_items(self, owner: str, item_ids: tuple[str, ...]) -> dict[str, StoredItem]:
        own = [record for record in self.records.values() if record.owner == owner]
        found: dict[str, StoredItem] = {}
        # A later item replaces an earlier one with the same id: outputs after inputs, newer responses after older.
        for items in ([r.input_items for r in own], [r.output_items for r in own]):
            found.update({item.id: item for group in items for item in group})
        return {item_id: found[item_id] for item_id in item_ids if item_id in found}

    async def load_compared(self, owner: str, response_id: str) -> ComparedResponse | None:
        record = self._own(owner, response_id)
        chain = await self.load_chain(owner, response_id)
        if record is None or chain is None:
            return None
        end = len(chain.items) - len(record.output_items)
        return ComparedResponse(record.body, chain.items[:end], chain.items[end:])

    async def get(self, owner: str, response_id: str) -> StoredResponse | None:
        record = self._own(owner, response_id)
        if record is None:
            return None
        return StoredResponse(record.id, record.status, record.body, for_clients(record.output_items))

    async def delete(self, owner: str, response_id: str) -> bool:
        return self._own(owner, response_id) is not None and bool(self.records.pop(response_id))

    async def list(self, owner: str, page: PageQuery) -> Page[StoredResponse]:
        own = [record for record in self.records.values() if record.owner == owner]
        own.sort(key=lambda record: record.created_at)
        shown, more = page_of(own, [record.id for record in own], page, "There is no response with this id")
        found = tuple(StoredResponse(one.id, one.status, one.body, for_clients(one.output_items)) for one in shown)
        return Page(found, has_more=more)

    async def input_items(self, owner: str, response_id: str, page: PageQuery) -> Page[StoredItem] | None:
        record = self._own(owner, response_id)
        if record is None:
            return None
        items = record.input_items
        shown, more = page_of(items, [item.id for item in items], page, "There is no item with this id in the list")
        return Page(for_clients(shown), has_more=more)

    async def ping(self) -> None:
        pass

    def _own(self, owner: str, response_id: str) -> ResponseRecord | None:
        record = self.records.get(response_id)
        return record if record is not None and record.owner == owner else None
