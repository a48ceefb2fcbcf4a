"""Loads, locks and releases the conversation of a response.

Lives here: the runner's work for `conversation`. Not here: the lock itself (the store), its renewal
(`stores/leases.py`), when it is taken and released (`engine/exchange/phase.py`).

Invariant: a lock that this process takes is renewed until the response is saved or queued, or releases it. A queued
response's job then holds the lock. If all of that fails, the lease of the lock runs out.
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
    """The conversations that this process has locked. `create_unknown`: create a conversation that does not exist."""

    def __init__(self, store: ConversationStore, leases: Leases, *, create_unknown: bool = False) -> None:
        self._store = store
        self._leases = leases
        self._create = create_unknown

    @property
    def held(self) -> int:
        """The number of conversations that this process holds for running responses."""
        return self._leases.held_in(self._store)

    async def load(self, action: LoadContext) -> tuple[StoredItem, ...] | None:
        """Load the items of the action's conversation, and lock it if the action says so. None: it does not exist.

        Raises `ApiError`, for example `ConversationLocked`.
        """
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
        """Load items that clients added to a conversation themselves, by their ids."""
        return await self._store.find_items(owner, item_ids)

    def forget(self, response_id: str) -> None:
        """Stop renewing the lock, because the response was saved or queued. The store releases it."""
        self._leases.drop(self._store, response_id)

    async def aclose(self) -> None:
        """Stop renewing all locks."""
        await self._leases.aclose()

    async def release(self, response_id: str) -> None:
        """Release the lock. If that fails, its lease runs out."""
        self._leases.drop(self._store, response_id)
        try:
            await self._store.release(response_id)
        except StoreError as error:
            # An earlier failure has a separate log line.
            _log.info("conversation_not_released", response_id=response_id, error=str(error))
