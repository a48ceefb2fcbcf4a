"""Containers of one machine: `ContainerRows` over the records in the data folder.

Lives here: what a lease is here, a lock on a file that ends with its process, and which records exist. Not here: the
files (`records.py`), rows that several machines share (the store's).

Invariant: a descriptor of a lock is closed when its holder lets go, however that came by it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress

from antiphon.engine.ports.container_rows import (
    ContainerHead,
    ContainerInUse,
    ContainerLost,
    ContainerRow,
    NewContainer,
    TooManyContainers,
)
from antiphon.engine.running.thread_pools import RECORDS
from antiphon.errors import StoreError
from antiphon.ids import Clock, now
from antiphon.tools.code_interpreter.records import Records


class RecordedRows:
    """See the module. Leases do not run out here: the kernel ends them with their process."""

    def __init__(self, records: Records, clock: Clock = now) -> None:
        self._records = records
        self._clock = clock
        self._held: dict[str, int] = {}

    async def make(self, new: NewContainer, holder: str, seconds: float, *, limit: int, per_owner: int) -> ContainerRow:
        """See `ContainerRows.make`."""
        return await RECORDS.run(self._make, new, holder, limit, per_owner)

    async def get(self, owner: str, container_id: str) -> ContainerRow | None:
        """See `ContainerRows.get`."""
        return await RECORDS.run(self._get, owner, container_id)

    async def list(self, owner: str) -> Sequence[ContainerHead]:
        """See `ContainerRows.list`."""
        at = self._clock()
        return [head for head in await self.every() if head.owner == owner and not head.expired(at)]

    async def take(self, owner: str, container_id: str, holder: str, seconds: float) -> ContainerRow | None:
        """See `ContainerRows.take`."""
        return await RECORDS.run(self._take, owner, container_id, holder)

    async def take_to_delete(
        self, container_id: str, holder: str, seconds: float, *, expired: bool
    ) -> ContainerRow | None:
        """See `ContainerRows.take_to_delete`."""
        return await RECORDS.run(self._take_to_delete, container_id, holder, expired)

    async def renew(self, holders: Sequence[str], seconds: float) -> frozenset[str]:
        """See `Leased.renew`."""
        return frozenset(holder for holder in holders if holder in self._held)

    async def put_back(
        self, row: ContainerRow, holder: str, *, came: Sequence[str] = (), went: Sequence[str] = ()
    ) -> None:
        """See `ContainerRows.put_back`."""
        await RECORDS.run(self._put_back, row, holder)

    async def let_go(self, container_id: str, holder: str) -> None:
        """See `ContainerRows.let_go`."""
        self._close(holder)

    async def delete(self, row: ContainerRow, holder: str) -> None:
        """See `ContainerRows.delete`."""
        await RECORDS.run(self._delete, row.id, holder)

    async def expired(self) -> Sequence[str]:
        """See `ContainerRows.expired`."""
        at = self._clock()
        return [head.id for head in await self.every() if head.expired(at)]

    async def missing(self, container_ids: Sequence[str]) -> frozenset[str]:
        """See `ContainerRows.missing`."""
        return await RECORDS.run(self._missing, container_ids)

    async def all_of(self, owner: str) -> Sequence[ContainerRow]:
        """See `ContainerRows.all_of`."""
        return await RECORDS.run(self._all_of, owner)

    async def every(self) -> Sequence[ContainerHead]:
        """See `ContainerRows.every`."""
        return await RECORDS.run(self._records.every)

    # In a thread

    def _make(self, new: NewContainer, holder: str, limit: int, per_owner: int) -> ContainerRow:
        self._lock(new.id, holder)
        try:
            at = self._clock()
            if self._records.head(new.id) is not None:
                raise ContainerInUse
            owners = [head.owner for head in self._records.every() if not head.expired(at)]
            if owners.count(new.owner) >= per_owner:
                raise TooManyContainers(of_owner=True)
            if len(owners) >= limit:
                raise TooManyContainers(of_owner=False)
            row = ContainerRow(new.id, new.owner, new.name, at, at, new.idle_seconds, new.memory)
            self._records.put(row)
        except BaseException:
            self._close(holder)
            raise
        return row

    def _get(self, owner: str, container_id: str) -> ContainerRow | None:
        row = self._records.get(container_id, owner)
        return row if row is not None and not row.expired(self._clock()) else None

    def _take(self, owner: str, container_id: str, holder: str) -> ContainerRow | None:
        # Nothing is locked, and no lock is made, for what is not there.
        if self._get(owner, container_id) is None:
            return None
        self._lock(container_id, holder)
        try:
            row = self._get(owner, container_id)
            if row is not None:
                row.last_active_at = self._clock()
                self._records.put(row)
        except BaseException:
            self._close(holder)
            raise
        if row is None:
            self._close(holder)
        return row

    def _take_to_delete(self, container_id: str, holder: str, expired: bool) -> ContainerRow | None:
        if self._records.head(container_id) is None:
            return None
        self._lock(container_id, holder)
        try:
            row = self._records.get(container_id)
        except BaseException:
            self._close(holder)
            raise
        if row is None or (expired and not row.expired(self._clock())):
            self._close(holder)
            return None
        return row

    def _put_back(self, row: ContainerRow, holder: str) -> None:
        if holder not in self._held:
            raise ContainerLost
        row.last_active_at = self._clock()
        self._records.put(row)
        self._close(holder)

    def _delete(self, container_id: str, holder: str) -> None:
        if holder not in self._held:
            raise ContainerLost
        self._records.delete(container_id)
        self._close(holder)

    def _all_of(self, owner: str) -> Sequence[ContainerRow]:
        rows = [self._records.get(head.id, owner) for head in self._records.every() if head.owner == owner]
        return [row for row in rows if row is not None]

    def _missing(self, container_ids: Sequence[str]) -> frozenset[str]:
        found = set()
        for container_id in container_ids:
            # One that cannot be read is there.
            with suppress(StoreError):
                if self._records.head(container_id) is None:
                    found.add(container_id)
        return frozenset(found)

    def _lock(self, container_id: str, holder: str) -> None:
        lock = self._records.lock(container_id)
        if lock is None:
            raise ContainerInUse
        self._held[holder] = lock

    def _close(self, holder: str) -> None:
        lock = self._held.pop(holder, None)
        if lock is not None:
            os.close(lock)
