"""Renews the leases that this process holds.

Lives here: one task per process that renews every lease before it expires. Not here: the objects that a lease protects
(a conversation's lock, an upload), the database rows of leases, the reaction to a lost lease. Every write to a
protected object names the lease's holder, so the store rejects the writes of a holder that lost its lease.

Invariant: the task renews a lease until the holder drops the lease or the store reports it as lost. The task never
renews a dropped lease. The task ends when this process holds no lease.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from antiphon.engine.ports.state import Leased
from antiphon.errors import StoreError
from antiphon.observability.repeated_failures import Outage

_log = structlog.get_logger(__name__)


class Leases:
    """Renews the leases of one process, three times in the `seconds` that a lease lasts.

    For example, a process that uses a container:

        leases.hold(rows, holder)  # after the store granted the lease to `holder`
        …
        leases.drop(rows, holder)  # before the store releases it
    """

    def __init__(self, seconds: float = 30.0, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self.seconds = seconds
        self._sleep = sleep
        # Each call of `hold` stores a new object. By this object the task distinguishes a lost lease from a lease that
        # the same holder has taken again.
        self._held: dict[Leased, dict[str, object]] = {}
        self._task: asyncio.Task[None] | None = None
        self._outages: dict[Leased, Outage] = {}

    def hold(self, store: Leased, holder: str) -> None:
        """Start renewing the lease of `holder` in this store."""
        self._held.setdefault(store, {})[holder] = object()
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._renew())

    def drop(self, store: Leased, holder: str) -> None:
        """Stop renewing the lease of `holder` in this store. The caller releases the lease in the store."""
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
        """Return whether the task still renews the lease of `holder`. Returns False after `drop`, and after the store
        has reported the lease as lost."""
        return holder in self._held.get(store, ())

    def held_in(self, store: Leased) -> int:
        """Return the number of leases in this store that the task renews."""
        return len(self._held.get(store, ()))

    async def aclose(self) -> None:
        """Stop the task. The remaining leases expire after at most `seconds`."""
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
                # Compare the result with a copy of the holders. A caller may take a lease during the query, and the
                # result cannot contain this lease.
                asked = dict(holders)
                try:
                    held = await store.renew(tuple(asked), self.seconds)
                except StoreError as error:
                    # The task tries twice more before the leases expire.
                    self._outage_of(store).failed(error=str(error))
                    continue
                self._outage_of(store).recovered()
                for holder, hold in asked.items():
                    if holder not in held and holders.get(holder) is hold:
                        self.drop(store, holder)
