"""`JobStore` whose bodies are sealed at rest.

Lives here: which parts of a job and of a stream those are. Not here: how (`bodies.py`).

Invariant: a sealed piece of a stream has the numbers of the events in it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from antiphon.engine.ports.actions import ResponseRecord
from antiphon.engine.ports.jobs import EventPage, EventPiece, Job, JobEnd, JobStore, count_events
from antiphon.stores.sealed.bodies import Bodies
from antiphon.stores.sealed.responses import running_body


class SealedJobs:
    """`JobStore` over another one."""

    def __init__(self, beneath: JobStore, bodies: Bodies) -> None:
        self._beneath = beneath
        self._bodies = bodies
        self.held = beneath.held
        self.queue = beneath.queue
        self.renew = beneath.renew
        self.release = beneath.release
        self.unlock = beneath.unlock
        self.progress = beneath.progress

    async def enqueue(
        self,
        record: ResponseRecord,
        request: bytes,
        events: EventPiece | None,
        *,
        limit: int,
        needs: Collection[str] = (),
    ) -> None:
        """Store the queued response and its job; see `JobStore.enqueue`."""
        sealed, bodies = self._sealed(events), self._bodies
        await self._beneath.enqueue(bodies.seal_record(record), bodies.seal(request), sealed, limit=limit, needs=needs)

    async def claim(
        self,
        worker: str,
        seconds: float,
        limit: int,
        besides: Collection[str] = (),
        *,
        able: Collection[str] | None = None,
    ) -> list[Job]:
        """Take up to `limit` jobs; see `JobStore.claim`."""
        claimed = await self._beneath.claim(worker, seconds, limit, besides, able=able)
        bodies = self._bodies
        return [
            replace(job, request=bodies.open(job.request), body=running_body(bodies, job.body, "in_progress"))
            for job in claimed
        ]

    async def append(self, worker: str, response_id: str, events: EventPiece, *, restart: bool = False) -> bool:
        """Add to the stream; see `JobStore.append`."""
        return await self._beneath.append(worker, response_id, self._sealed_piece(events), restart=restart)

    async def finish(
        self, worker: str, record: ResponseRecord, events: EventPiece | None, *, restart: bool = False
    ) -> bool:
        """End the response with this record; see `JobStore.finish`."""
        sealed = self._bodies.seal_record(record)
        return await self._beneath.finish(worker, sealed, self._sealed(events), restart=restart)

    async def end(self, ending: JobEnd) -> bool:
        """End a response early; see `JobStore.end`."""
        items = tuple([self._bodies.seal_item(item) for item in ending.output_items])
        body, events = self._bodies.seal(ending.body), self._sealed(ending.events)
        return await self._beneath.end(replace(ending, body=body, output_items=items, events=events))

    async def events(self, owner: str, response_id: str, after: int, limit: int) -> EventPage | None:
        """A part of the stream; see `JobStore.events`."""
        page = await self._beneath.events(owner, response_id, after, limit)
        if page is None:
            return None
        pieces = tuple([EventPiece(piece.last, self._bodies.open(piece.data)) for piece in page.pieces])
        return EventPage(page.status, pieces, page.more)

    def _sealed(self, events: EventPiece | None) -> EventPiece | None:
        return None if events is None else self._sealed_piece(events)

    def _sealed_piece(self, events: EventPiece) -> EventPiece:
        return EventPiece(events.last, self._bodies.seal(events.data), count_events(events.data))
