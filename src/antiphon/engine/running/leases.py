"""What this process holds for a time, renewed while it lives; conversations that responses hold so.

Lives here: one task per process that renews every lease before it runs out; loading a conversation, locked for its
response, and giving it back. Not here: how a store keeps a lease, when a conversation is taken and given back
(`engine/exchange/phase.py`), and what becomes of a lease that was lost: whoever acts on one names itself, and the store
finds that it holds nothing.

Invariants: what was dropped is not renewed again, what was taken is renewed until it is dropped or the store says that
it was lost, and the task ends when nothing is held. A conversation's lock is renewed until the response was saved, was
queued (its job keeps the conversation then), or gave it back; if all of that fails it runs out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog

from antiphon.engine.ports.actions import LoadContext, StoredItem
from antiphon.engine.ports.state import ConversationStore, Leased
from antiphon.errors import StoreError
from antiphon.observability.outages import Outage

_log = structlog.get_logger(__name__)


class Leases:
    """One per process. `seconds` is how long a lease lasts; it is renewed three times in that time."""

    def __init__(self, seconds: float = 30.0, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self.seconds = seconds
        self._sleep = sleep
        # Each hold is an object of its own: one that was taken anew is another one.
        self._held: dict[Leased, dict[str, object]] = {}
        self._task: asyncio.Task[None] | None = None
        self._outages: dict[Leased, Outage] = {}

    def hold(self, store: Leased, holder: str) -> None:
        """Renew what `holder` holds in this store from now on."""
        self._held.setdefault(store, {})[holder] = object()
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._renew())

    def drop(self, store: Leased, holder: str) -> None:
        """Renew it no longer."""
        holders = self._held.get(store)
        if holders is None:
            return
        holders.pop(holder, None)
        if not holders:
            del self._held[store]
        if not self._held and self._task is not None:
            self._task.cancel()
            self._task = None

    def holds(self, store: Leased, holder: str) -> bool:
        """Whether it is renewed still: neither dropped nor lost."""
        return holder in self._held.get(store, ())

    async def aclose(self) -> None:
        """Renew nothing any more: what is still held runs out."""
        self._held.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def _outage_of(self, store: Leased) -> Outage:
        return self._outages.setdefault(store, Outage(_log, "lease_not_renewed", "lease_renewed_again"))

    async def _renew(self) -> None:
        while self._held:
            await self._sleep(self.seconds / 3)
            for store, holders in list(self._held.items()):
                # As it was asked: what is taken while the store is at work is none of its answer's business.
                asked = dict(holders)
                try:
                    held = await store.renew(tuple(asked), self.seconds)
                except StoreError as error:
                    # The next try is in time still, and the one after it.
                    self._outage_of(store).failed(error=str(error))
                    continue
                self._outage_of(store).over()
                for holder, hold in asked.items():
                    if holder not in held and holders.get(holder) is hold:
                        self.drop(store, holder)


class LockedConversations:
    """One per process. `create_unknown`: a conversation that does not exist is made when a response names it."""

    def __init__(self, store: ConversationStore, leases: Leases, *, create_unknown: bool = False) -> None:
        self._store = store
        self._leases = leases
        self._create = create_unknown

    async def load(self, action: LoadContext) -> tuple[StoredItem, ...] | None:
        """The items of the action's conversation, or None. Raises `ApiError`, among them `ConversationLocked`."""
        assert action.conversation is not None
        items = await self._store.load(
            action.owner,
            action.conversation,
            holder=action.lock_for,
            seconds=self._leases.seconds,
            create=self._create,
        )
        if action.lock_for and items is not None:
            self._leases.hold(self._store, action.lock_for)
        return items

    async def find_items(self, owner: str, item_ids: Sequence[str]) -> dict[str, StoredItem]:
        """Items that clients added to a conversation themselves, by their ids."""
        return await self._store.find_items(owner, item_ids)

    def forget(self, response_id: str) -> None:
        """The response was saved or queued: the lock is the store's business now."""
        self._leases.drop(self._store, response_id)

    async def aclose(self) -> None:
        """Renew no lock any more."""
        await self._leases.aclose()

    async def release(self, response_id: str) -> None:
        """Give the lock back; if that is not possible, it runs out."""
        self._leases.drop(self._store, response_id)
        try:
            await self._store.release(response_id)
        except StoreError as error:
            # Whatever failed before has a line of its own.
            _log.info("conversation_not_released", response_id=response_id, error=str(error))
