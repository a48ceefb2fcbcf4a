"""Loads, locks and releases the conversation of a response.

Lives here: what the runner does for `conversation`. Not here: the lock itself (the store), its renewal
(`stores/leases.py`), when it is taken and given back (`engine/exchange/phase.py`).

Invariant: a lock that was taken here is renewed until the response was saved, was queued (its job keeps the
conversation then), or gave it back; if all of that fails it runs out.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from antiphon.engine.ports.actions import LoadContext, StoredItem
from antiphon.errors import StoreError
from antiphon.stores.conversations import ConversationStore
from antiphon.stores.leases import Leases

_log = structlog.get_logger(__name__)


class LockedConversations:
    """One per process. `create_unknown`: a conversation that does not exist is made when a response names it."""

    def __init__(self, store: ConversationStore, leases: Leases, *, create_unknown: bool = False) -> None:
        self._store = store
        self._leases = leases
        self._create = create_unknown

    @property
    def held(self) -> int:
        """How many conversations this process holds for responses under way."""
        return self._leases.held_in(self._store)

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
