"""Renews the leases that this process holds.

Lives here: one task per process that renews every lease before it runs out. Not here: what is held (a conversation's
lock), how a store keeps it, and what becomes of a lease that was lost: whoever acts on one names itself, and the store
finds that it holds nothing.

Invariant: what was dropped is not renewed again, what was taken is renewed until it is dropped or the store says that
it was lost, and the task ends when nothing is held.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from antiphon.engine.ports.state import Leased
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

    def held_in(self, store: Leased) -> int:
        """How many are renewed in this store."""
        return len(self._held.get(store, ()))

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
                self._outage_of(store).recovered()
                for holder, hold in asked.items():
                    if holder not in held and holders.get(holder) is hold:
                        self.drop(store, holder)
