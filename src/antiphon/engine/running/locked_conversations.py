"""Loads, locks and releases the conversation of a response.

Lives here: the runner's work for the request's `conversation` field. Not here: the lock itself (the store), the renewal
of its lease (`stores/leases.py`), the decisions to lock and to release (`engine/exchange/phase.py`).

Invariant: this process renews a lock until its response is saved or queued, or until the lock is released. After a
response is queued, its job holds the lock. If the process dies or a release fails, the lock's lease expires.
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
    """The conversations that this process has locked. `create_unknown`: whether `load` creates a conversation that does
    not exist."""

    def __init__(self, store: ConversationStore, leases: Leases, *, create_unknown: bool = False) -> None:
        self._store = store
        self._leases = leases
        self._create = create_unknown

    @property
    def held(self) -> int:
        """The number of conversations that this process holds for running responses."""
        return self._leases.held_in(self._store)

    async def load(self, action: LoadContext) -> tuple[StoredItem, ...] | None:
        """Load the items of the action's conversation. If `action.lock_for` names a response, lock the conversation for
        that response. Returns None if the conversation does not exist.

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
        """Load items by id that clients added to a conversation directly, not through a response."""
        return await self._store.find_items(owner, item_ids)

    def forget(self, response_id: str) -> None:
        """Stop renewing the response's lock, but do not release it. The store has settled the lock, or a job holds
        it."""
        self._leases.drop(self._store, response_id)

    async def aclose(self) -> None:
        """Stop renewing all locks."""
        await self._leases.aclose()

    async def release(self, response_id: str) -> None:
        """Release the response's lock. If the store fails, the lock's lease expires."""
        self._leases.drop(self._store, response_id)
        try:
            await self._store.release(response_id)
        except StoreError as error:
            # The level is info, because an earlier failure of the store already has a log line.
            _log.info("conversation_not_released", response_id=response_id, error=str(error))
