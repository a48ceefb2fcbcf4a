"""Grants exclusive use of a container, within a process and across processes and machines.

Lives here: waiting for a container, with a lock among the requests of this process and a lease among processes. Not
here: the operations during a use (`containers.py`), storing the lease (`ContainerRows`).

Invariants: each wait has a timeout. Each lease is released, even if the task was cancelled while the store granted the
lease.
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
    """Another request used the container for the whole waiting time."""

    def __init__(self) -> None:
        super().__init__("The container is in use. Try again when the code that runs in it has ended.")


@dataclass(slots=True)
class _Lock:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


class Uses:
    """The current uses of containers by this process. `process`: the name of this process in container rows."""

    def __init__(self, rows: ContainerRows, process: str, *, lease: float = LEASE_SECONDS) -> None:
        self.rows = rows
        self.leases = Leases(lease)
        self.locks: dict[str, _Lock] = {}
        self._process = process
        self._numbers = count(1)

    def users(self, container_id: str) -> int:
        """Return the number of requests of this process that use the container or wait for it."""
        held = self.locks.get(container_id)
        return held.users if held is not None else 0

    @asynccontextmanager
    async def alone(self, container_id: str, *, patience: float = PATIENCE) -> AsyncIterator[ContainerUse]:
        """Wait until no other request of this process uses the container. Inside the block, the caller reserves the
        container among processes with `ContainerUse.take`.

        `patience`: the timeout in seconds for this wait and for `take`. Raises `InUse` on a timeout."""
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
    """One use of a container. `take` begins the use, and `put_back`, `delete` or `let_go` ends it."""

    def __init__(self, uses: Uses, holder: str, container_id: str, deadline: float) -> None:
        self._rows = uses.rows
        self._leases = uses.leases
        self._holder = holder
        self._deadline = deadline
        self._holds = False
        self.container_id = container_id

    async def take(self, taking: Callable[[str, float], Awaitable[ContainerRow | None]]) -> ContainerRow | None:
        """Wait for the lease on the container, and renew the lease until the use ends. `taking` requests the lease for
        a holder and a number of seconds. Returns the row, or None if `taking` returns None. Raises `InUse` and
        `StoreError`."""
        clock, pause = asyncio.get_running_loop().time, _FIRST_LOOK
        while True:
            # The holder in another process sends no notice when it releases the lease, so try again after a pause.
            try:
                row = await to_the_end(taking(self._holder, self._leases.seconds))
                break
            except asyncio.CancelledError:
                # `taking` may have got the lease before the cancellation, so `let_go` must release it.
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
        """Release the lease if this use holds it or may hold it. If the store fails, the lease expires."""
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
                "This process was stalled for so long that another process may have used the "
                "container. The result of this call is lost."
            ) from None
        self._over()

    def _over(self) -> None:
        self._holds = False
        self._leases.drop(self._rows, self._holder)
