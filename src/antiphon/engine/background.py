"""Background responses as everybody but their workers sees them: queued, followed, cancelled, given up.

Lives here: what a process can do to a background response whoever runs it. Not here: running one (`workers.py`),
reading its stream (`follow.py`), what a stored body looks like (`job_bodies.py`), SQL.

A response is cancelled in the store, in one unit with its last event. Its worker finds its job gone and drops the
model call, within a few hundredths of a second, whatever process it is in; what it had not written yet is lost.

Invariant: a response that is over never changes; of a cancellation and an end at the same time one wins, and both
callers see which.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from antiphon.engine.actions import ResponseRecord
from antiphon.engine.follow import Followers
from antiphon.engine.job_bodies import ended_body, finished_items, is_background, is_over, last_events
from antiphon.engine.jobs import Ending, EventPiece, JobStore
from antiphon.engine.ports import ResponseStore, StoredResponse
from antiphon.errors import InternalError, InvalidRequest

__all__ = ["Background", "BackgroundOptions"]

_TRIES = 20
_ALL = 1 << 30


@dataclass(frozen=True, slots=True)
class BackgroundOptions:
    """`workers` responses run at once in this process; an owner may have `per_owner` unfinished ones.

    `on_restart`: what becomes of a response whose worker died: another try (`attempts` in all) or `failed`. A worker
    holds a job for `lease` seconds and renews that; it looks for work every `idle` seconds and, while it has some,
    every `poll` seconds; events are written every `batch` seconds. A model that cannot be reached is tried again for
    `patience` seconds.
    """

    workers: int = 4
    per_owner: int = 100
    on_restart: Literal["retry", "fail"] = "retry"
    attempts: int = 3
    lease: float = 30.0
    poll: float = 0.05
    idle: float = 0.25
    batch: float = 0.05
    patience: float = 30.0


class Background:
    """One per process. `wake_workers` is called when a response is queued or ended here."""

    def __init__(
        self,
        jobs: JobStore,
        responses: ResponseStore,
        followers: Followers,
        options: BackgroundOptions = BackgroundOptions(),
    ) -> None:
        self._jobs = jobs
        self._responses = responses
        self._options = options
        self.followers = followers
        self.wake_workers: Callable[[], None] = lambda: None

    async def enqueue(self, record: ResponseRecord, request: bytes, events: EventPiece | None) -> None:
        """Queue a response. Raises `StoreError` and `TooManyJobs`."""
        await self._jobs.enqueue(record, request, events, most=self._options.per_owner)
        self.wake_workers()

    async def has_stream(self, owner: str, response_id: str) -> bool:
        """Whether the response has events."""
        page = await self._jobs.events(owner, response_id, -1, 1)
        return page is not None and bool(page.pieces)

    async def cancel(self, owner: str, response_id: str) -> StoredResponse | None:
        """The response, which is over now; None when there is none. Raises `InvalidRequest` for one that was not made
        in the background."""
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
        """End the response as `cancelled`, or as `failed` for a reason; with what it has put out whole.

        False when it was over, or gone, already (or is not this `worker`'s). Raises `StoreError`.
        """
        for _ in range(_TRIES):
            found = await self._responses.get(owner, response_id)
            page = await self._jobs.events(owner, response_id, -1, _ALL)
            if found is None or page is None or is_over(found.status):
                return False
            items = finished_items(page.pieces)
            body = ended_body(found.body, status, code=code, message=message)
            last = page.pieces[-1].last if page.pieces else -1
            events = last_events(last, body, items, code=code, message=message) if page.pieces else None
            if await self._jobs.end(Ending(response_id, status, body, items, last, events, worker)):
                self.followers.changed(response_id)
                self.wake_workers()
                return True
            if worker is not None and response_id not in await self._jobs.held(worker):
                return False
        raise InternalError("The response could not be ended: its stream goes on too fast. Try again.")
