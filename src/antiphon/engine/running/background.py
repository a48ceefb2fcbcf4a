"""Queues, cancels and ends background responses, whichever process runs them.

Lives here: the operations that any process can perform on a background response. Not here: running a background
response (`workers.py`), reading its stream (`followers.py`), the form of a stored body
(`engine/ports/stored_bodies.py`), SQL.

A cancellation happens in the store, in one transaction with the last event. The worker notices within a few hundredths
of a second that its job is deleted, and aborts the model call. Events that the worker has not written yet are lost.

Invariant: an ended response never changes. When a cancellation and an end happen concurrently, only the first
transaction takes effect, and both callers see the same final status.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from antiphon.config.state import BackgroundSettings
from antiphon.engine.ports.actions import ResponseRecord, StoredItem
from antiphon.engine.ports.jobs import EventPiece, JobEnd
from antiphon.engine.ports.state import StoredResponse
from antiphon.engine.ports.stored_bodies import ended_body, finished_items, is_background, is_over, last_events
from antiphon.engine.running.followers import Followers
from antiphon.engine.running.idempotency import LeftCalls
from antiphon.errors import InternalError, InvalidRequest
from antiphon.stores.jobs import JobStore
from antiphon.stores.responses import ResponseStore

_TRIES = 20
_PIECES = 1024


class Background:
    """The operations on background responses. Each process has one instance.

    The instance calls `offer_job` after it has queued a response, and `wake_workers` after it has ended a response.
    """

    def __init__(
        self,
        jobs: JobStore,
        responses: ResponseStore,
        followers: Followers,
        settings: BackgroundSettings,
        left: LeftCalls | None = None,
    ) -> None:
        """`left` finds the tool calls that a response has claimed."""
        self._left = left
        self._jobs = jobs
        self._responses = responses
        self._settings = settings
        self.followers = followers
        self.wake_workers: Callable[[], None] = lambda: None
        self.offer_job: Callable[[str], None] = lambda response_id: None

    async def enqueue(
        self, record: ResponseRecord, request: bytes, events: EventPiece | None, needs: Collection[str] = ()
    ) -> None:
        """Queue a response. Raises `StoreError` and `TooManyJobs`."""
        await self._jobs.enqueue(record, request, events, limit=self._settings.per_owner, needs=needs)
        self.offer_job(record.id)

    async def has_stream(self, owner: str, response_id: str) -> bool:
        """Whether the store has events of the response's stream."""
        page = await self._jobs.events(owner, response_id, -1, 1)
        return page is not None and bool(page.pieces)

    async def cancel(self, owner: str, response_id: str) -> StoredResponse | None:
        """Cancel the response and return it. Returns None when the owner has no such response.

        Raises `InvalidRequest` for a response that does not run in the background.
        """
        found = await self._responses.get(owner, response_id)
        if found is not None and not is_background(found.body):
            raise InvalidRequest("Cannot cancel a synchronous response.", code="response_not_cancellable")
        if found is not None and not is_over(found.status):
            await self.end(owner, response_id, "cancelled")
            found = await self._responses.get(owner, response_id)
        return found

    async def end(
        self, owner: str, response_id: str, status: str, *, code: str = "", message: str = "", worker: str | None = None
    ) -> bool:
        """End the response as `cancelled`, or as `failed` with an error. The response keeps its completed items.

        Returns False when the response is already over or deleted, or when `worker` does not hold the job. Raises
        `StoreError`.
        """
        for _ in range(_TRIES):
            found = await self._responses.get(owner, response_id)
            read = await self._whole_items(owner, response_id)
            if found is None or read is None or is_over(found.status):
                return False
            items, last = read
            if claimed := await self.claimed_items(owner, response_id):
                whole = {item.id for item in items}
                items = (*items, *(item for item in claimed if item.id not in whole))
            body = ended_body(found.body, status, code=code, message=message)
            events = last_events(last, body, items, code=code, message=message) if last >= 0 else None
            if await self._jobs.end(JobEnd(response_id, status, body, items, last, events, worker)):
                self.followers.changed(response_id)
                self.wake_workers()
                return True
            if worker is not None and response_id not in await self._jobs.held(worker):
                return False
        raise InternalError("The response could not be ended: its stream grows too fast. Try again.")

    async def claimed_items(self, owner: str, response_id: str) -> tuple[StoredItem, ...] | None:
        """Return the output of a response that has claimed tool calls, or None when the response has no claim."""
        return await self._left.items(owner, response_id) if self._left is not None else None

    async def _whole_items(self, owner: str, response_id: str) -> tuple[tuple[StoredItem, ...], int] | None:
        """Return the completed items of the stream, and the number of its last event (-1 without events).

        Returns None when the response does not exist. The function reads the stream in pages, because the events repeat
        all text several times.
        """
        items: list[StoredItem] = []
        last = -1
        while True:
            page = await self._jobs.events(owner, response_id, last, _PIECES)
            if page is None:
                return None
            items += finished_items(page.pieces)
            if page.pieces:
                last = page.pieces[-1].last
            if not page.more:
                return tuple(items), last
