"""Writes a background response's stream to the store in numbered batches of whole events.

Lives here: the batches of one job, and when the stream writes them. Not here: the content of events, SQL, the readers.

Invariant: the stream writes batches in order, one at a time. While the store fails, `add` waits when more than `ahead`
bytes are unwritten. When the worker has lost the job, the stream calls `on_lost` and writes no further batch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from antiphon.engine.ports.jobs import EventPiece, Job, count_events
from antiphon.errors import StoreError
from antiphon.observability.outages import Outage
from antiphon.stores.jobs import JobStore
from antiphon.translation.events.encode import DONE, KEEPALIVE

_log = structlog.get_logger(__name__)


class JobStream:
    """The stream of one attempt of a job. The stream calls `written` after every written batch.

    `add` waits while more than `ahead` bytes are unwritten. The stream retries a failed batch after `retry` seconds.
    """

    def __init__(
        self,
        jobs: JobStore,
        worker: str,
        job: Job,
        *,
        batch: float,
        written: Callable[[], None],
        on_lost: Callable[[], None],
        ahead: int = 1 << 20,
        retry: float = 0.2,
    ) -> None:
        self._jobs = jobs
        self._worker = worker
        self._job = job
        self._batch = batch
        self._written = written
        self._on_lost = on_lost
        self._ahead = ahead
        self._retry = retry
        self._number = job.last_event
        self._parts: list[bytes] = []
        self._size = 0
        self._unwritten: EventPiece | None = None
        self.restart = True
        """Whether this attempt has written nothing yet. Its first write then deletes the events of an earlier attempt.

        `Job.attempts` does not show whether an earlier attempt wrote events, because a released attempt does not count.
        """
        self._changed = asyncio.Event()
        self._closing = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._task: asyncio.Task[None] | None = None
        self._outage = Outage(_log, "events_not_written", "events_written_again")

    async def add(self, data: bytes) -> None:
        """Add the next events, without comments and `[DONE]`. The call waits while too many bytes are unwritten."""
        if data == KEEPALIVE:
            return
        data = data.removesuffix(DONE)
        if not data:
            return
        self._parts.append(data)
        self._size += len(data)
        self._changed.set()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._write_on())
        if self._task.done():
            self._task.result()
        elif self._size > self._ahead and not self._closing.is_set():
            self._room.clear()
            await self._room.wait()

    def hold_back(self) -> None:
        """Stop writing batches. The transaction that ends the response writes the remaining events."""
        self._closing.set()
        self._changed.set()

    async def close(self) -> EventPiece | None:
        """Stop writing batches. Returns the unwritten events for the transaction that ends the response."""
        self.hold_back()
        if self._task is not None:
            await self._task
        return self._take()

    def abort(self) -> None:
        """Cancel the write task immediately. Unwritten events are lost."""
        if self._task is not None:
            self._task.cancel()

    def _take(self) -> EventPiece | None:
        data = b"".join(self._parts)
        self._parts.clear()
        self._size = 0
        self._room.set()
        if data:
            before = self._unwritten.data if self._unwritten is not None else b""
            self._number += count_events(data)
            self._unwritten = EventPiece(self._number, before + data)
        return self._unwritten

    async def _write_on(self) -> None:
        try:
            await self._write()
        finally:
            # Release a waiting `add`, because no later write makes room.
            self._room.set()

    async def _write(self) -> None:
        while True:
            await self._changed.wait()
            if self._closing.is_set():
                return
            self._changed.clear()
            # After a failure the loop retries the same batch. Later events wait in memory, and `add` may wait.
            piece = self._unwritten or self._take()
            pause = self._batch
            if piece is not None:
                try:
                    held = await self._jobs.append(self._worker, self._job.response_id, piece, restart=self.restart)
                except StoreError as error:
                    self._outage.failed(response_id=self._job.response_id, error=str(error))
                    pause = self._retry
                    self._changed.set()
                else:
                    self._outage.recovered(response_id=self._job.response_id)
                    self._unwritten = None
                    if self._parts:
                        self._changed.set()
                    if not held:
                        self._on_lost()
                        return
                    self.restart = False
                    self._written()
            try:
                async with asyncio.timeout(pause):
                    await self._closing.wait()
            except TimeoutError:
                pass
