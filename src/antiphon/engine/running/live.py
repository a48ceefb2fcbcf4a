"""Publishes the requests in flight of a process while a viewer of the console watches, and cancels requests for the
viewer.

This module runs one short query a second, and checks that a cancelled request belongs to the viewer. Not here: the
tables (`stores/live.py`), the list of requests in flight, the code that ends a request.

Invariants: without a viewer, a process runs one short query per interval and writes nothing. A failing or slow database
delays no request. The reporter cancels a request only for its owner, or for a viewer who may act for all owners.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence

import structlog

from antiphon.engine.ports.journal import LiveRequest
from antiphon.engine.waiting import stop
from antiphon.errors import StoreError
from antiphon.observability.repeated_failures import Outage
from antiphon.stores.live import LiveStore

_log = structlog.get_logger(__name__)

_SECONDS = 1.0
_ROUND_SECONDS = 10.0


class LiveReporter:
    """Reports the requests in flight of one process every `seconds`."""

    def __init__(
        self,
        store: LiveStore,
        process: str,
        *,
        snapshot: Callable[[], Sequence[LiveRequest]] = tuple,
        cancel: Callable[[str], object] = lambda _: None,
        seconds: float = _SECONDS,
        round_seconds: float = _ROUND_SECONDS,
    ) -> None:
        """`process`: the unique name of this process. `snapshot` returns the requests in flight. `cancel` begins to
        cancel the request whose entry has the given id. `round_seconds`: the time limit of one round of queries."""
        self._store = store
        self.process = process
        self.snapshot = snapshot
        self.cancel = cancel
        self._seconds = seconds
        self._round_seconds = round_seconds
        self._published = False
        self._task: asyncio.Task[None] | None = None
        self._outage = Outage(_log, "live_requests_not_reported", "live_requests_reported_again")

    def start(self) -> None:
        """Start the task that reports the requests in flight."""
        self._task = asyncio.get_running_loop().create_task(self._report_on())

    async def aclose(self) -> None:
        """Stop the task, and delete this process's snapshot."""
        await stop(self._task)
        if self._published:
            try:
                async with asyncio.timeout(self._round_seconds):
                    await self._store.leave(self.process)
            except (StoreError, TimeoutError):
                # Viewers ignore a snapshot that is more than a few seconds old.
                return

    async def report(self) -> None:
        """Run one round: read which requests to cancel and whether a viewer watches. Cancel these requests, and publish
        a snapshot for a viewer. Raises `StoreError`."""
        look = await self._store.look()
        if not look.watched and not look.cancels:
            return
        requests = self.snapshot()
        if look.cancels:
            await self._cancel(requests, look.cancels)
        if look.watched:
            self._published = True
            await self._store.publish(self.process, requests)

    async def _cancel(self, requests: Iterable[LiveRequest], wishes: Iterable[tuple[str, str]]) -> None:
        owners = {one.id: one.owner for one in requests}
        ids = sorted({entry_id for entry_id, _ in wishes if entry_id in owners})
        if not ids:
            return
        taken = await self._store.take_cancels(ids)
        for entry_id in dict.fromkeys(one for one, owner in taken if owner in ("", owners[one])):
            _log.info("live_request_cancelled", entry_id=entry_id)
            self.cancel(entry_id)

    async def _report_on(self) -> None:
        while True:
            await asyncio.sleep(self._seconds)
            try:
                async with asyncio.timeout(self._round_seconds):
                    await self.report()
                self._outage.recovered()
            except (StoreError, TimeoutError) as error:
                self._outage.failed(cause=str(error) or "the database does not answer")
            except Exception:
                _log.error("live_requests_failed", exc_info=True)
