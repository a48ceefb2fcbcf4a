"""Exclusive use of a container, within a process and across machines.

Lives here: waiting for one's turn, within this process by a lock and beyond it by the row's lease, and holding it. Not
here: what is done then (`containers.py`), how a lease is kept (`ContainerRows`).

Invariants: each wait ends within a time. A reservation is given back, even if its task was cancelled before it arrived.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count

import structlog

from antiphon.engine.ports.containers import ContainerFailed, ContainerInUse, ContainerLost, ContainerRow, ContainerRows
from antiphon.engine.waiting import to_the_end
from antiphon.errors import StoreError
from antiphon.stores.leases import Leases

_log = structlog.get_logger(__name__)

PATIENCE = 120.0
LEASE_SECONDS = 30.0
_FIRST_LOOK, _LAST_LOOK = 0.05, 0.5


class InUse(ContainerFailed):
    """Another request is using the container."""

    def __init__(self) -> None:
        super().__init__("The container is in use. Try again when the code that runs in it has ended.")


@dataclass(slots=True)
class _Lock:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


class Uses:
    """The uses of containers by this process, which records name `process`."""

    def __init__(self, rows: ContainerRows, process: str, *, lease: float = LEASE_SECONDS) -> None:
        self.rows = rows
        self.leases = Leases(lease)
        self.locks: dict[str, _Lock] = {}
        self._process = process
        self._numbers = count(1)

    def users(self, container_id: str) -> int:
        """How many requests of this process use the container or wait for their turn."""
        held = self.locks.get(container_id)
        return held.users if held is not None else 0

    @asynccontextmanager
    async def alone(self, container_id: str, *, patience: float = PATIENCE) -> AsyncIterator[ContainerUse]:
        """Wait for the turn in this process; the caller then reserves the container.

        `patience`: seconds to wait. Raises `InUse` when they are over."""
        held = self.locks.setdefault(container_id, _Lock())
        held.users += 1
        deadline = asyncio.get_running_loop().time() + patience
        try:
            if held.lock.locked() and not patience:
                raise InUse
            try:
                async with asyncio.timeout_at(deadline if patience else None):
                    await held.lock.acquire()
            except TimeoutError:
                raise InUse from None
            use = ContainerUse(self, f"{self._process}-{next(self._numbers)}", container_id, deadline)
            try:
                yield use
            finally:
                try:
                    await use.let_go()
                finally:
                    held.lock.release()
        finally:
            held.users -= 1
            if not held.users:
                self.locks.pop(container_id, None)


class ContainerUse:
    """One use of a container, held from when it is taken until it is put back or deleted."""

    def __init__(self, uses: Uses, holder: str, container_id: str, deadline: float) -> None:
        self._rows = uses.rows
        self._leases = uses.leases
        self._holder = holder
        self._deadline = deadline
        self._holds = False
        self.container_id = container_id

    async def take(self, taking: Callable[[str, float], Awaitable[ContainerRow | None]]) -> ContainerRow | None:
        """Reserve the container as soon as it is free. `taking` reserves it for a holder and a number of seconds.
        Raises `InUse`, `StoreError`."""
        clock, pause = asyncio.get_running_loop().time, _FIRST_LOOK
        while True:
            # Whoever holds it elsewhere tells nobody when that is over.
            try:
                row = await to_the_end(taking(self._holder, self._leases.seconds))
                break
            except asyncio.CancelledError:
                # What was taken meanwhile is let go.
                self._holds = True
                raise
            except ContainerInUse:
                if clock() >= self._deadline:
                    raise InUse from None
            await asyncio.sleep(min(pause, max(0.0, self._deadline - clock())))
            pause = min(2 * pause, _LAST_LOOK)
        if row is not None:
            self._holds = True
            self._leases.hold(self._rows, self._holder)
        return row

    async def put_back(self, row: ContainerRow, came: Sequence[str] = (), went: Sequence[str] = ()) -> None:
        """See `ContainerRows.put_back`. Raises `ContainerFailed` when the container was lost."""
        await self._ended(self._rows.put_back(row, self._holder, came=came, went=went))

    async def delete(self, row: ContainerRow) -> None:
        """See `ContainerRows.delete`. Raises `ContainerFailed` when the container was lost."""
        await self._ended(self._rows.delete(row, self._holder))

    async def let_go(self) -> None:
        """Hold it no longer, if it is held still, or may be; where that fails its lease runs out."""
        if not self._holds:
            return
        self._over()
        try:
            await to_the_end(self._rows.let_go(self.container_id, self._holder))
        except StoreError as error:
            _log.warning("container_not_let_go", container=self.container_id, error=str(error))

    async def _ended(self, work: Awaitable[None]) -> None:
        try:
            await to_the_end(work)
        except ContainerLost:
            _log.warning("container_lost", container=self.container_id)
            self._over()
            raise ContainerFailed(
                "This process stood still for so long that others may have used the container; what was done is lost."
            ) from None
        self._over()

    def _over(self) -> None:
        self._holds = False
        self._leases.drop(self._rows, self._holder)
