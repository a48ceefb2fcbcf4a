"""A `JobStore` in memory, over a `MemoryResponseStore`.

Lives here: the semantics of the SQLite store, without durability. The store passes the contract tests of jobs, so code
that works with it also works with the real store.

Invariant: a method makes all its changes or none, because no method awaits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from antiphon.engine.ports.actions import ResponseRecord
from antiphon.engine.ports.jobs import (
    PATIENCE,
    EndedJob,
    EventPage,
    EventPiece,
    Job,
    JobEnd,
    Progress,
    Queue,
    TooManyJobs,
    with_status,
)
from antiphon.stores.jobs import JobStore
from tests.support.memory_store import MemoryResponseStore


@dataclass
class _Held:
    owner: str
    request: bytes
    needs: frozenset[str] = frozenset()
    attempts: int = 0
    worker: str | None = None
    until: float = 0.0


class MemoryJobStore(JobStore):
    """Stores jobs and events in dicts, which tests may read."""

    def __init__(self, responses: MemoryResponseStore, clock: Callable[[], float] = time.monotonic) -> None:
        self.responses = responses
        self.clock = clock
        self.jobs: dict[str, _Held] = {}
        self.pieces: dict[str, list[EventPiece]] = {}

    async def enqueue(
        self,
        record: ResponseRecord,
        request: bytes,
        events: EventPiece | None,
        *,
        limit: int,
        needs: Collection[str] = (),
    ) -> None:
        self._sweep()
        if sum(job.owner == record.owner for job in self.jobs.values()) >= limit:
            raise TooManyJobs(limit)
        await self.responses.save(record)
        self.jobs[record.id] = _Held(record.owner, request, frozenset(needs))
        if events is not None:
            self.pieces[record.id] = [events]

    async def claim(
        self,
        worker: str,
        seconds: float,
        limit: int,
        besides: Collection[str] = (),
        *,
        able: Collection[str] | None = None,
    ) -> list[Job]:
        self._sweep()
        free = [
            (one, job)
            for one, job in self.jobs.items()
            if job.until <= self.clock() and one not in besides and self._may_run(one, able)
        ]
        turns: dict[str, int] = {}
        for response_id, job in free:
            turns[response_id] = 0
            if not job.until:
                running = sum(other.owner == job.owner and other.worker is not None for other in self.jobs.values())
                before = sum(turns[one] > 0 and other.owner == job.owner for one, other in free if one in turns)
                turns[response_id] = 1 + before + running
        claimed: list[Job] = []
        for response_id, job in sorted(free, key=lambda each: turns[each[0]])[:limit]:
            record = self.responses.records[response_id]
            record = replace(record, status="in_progress", body=with_status(record.body, "in_progress"))
            self.responses.records[response_id] = record
            job.worker, job.until, job.attempts = worker, self.clock() + seconds, job.attempts + 1
            claimed.append(Job(response_id, job.owner, job.request, record.body, job.attempts, self._last(response_id)))
        return claimed

    async def held(self, worker: str) -> frozenset[str]:
        self._sweep()
        return frozenset(one for one, job in self.jobs.items() if job.worker == worker)

    async def queue(self) -> Queue:
        self._sweep()
        made = [self.responses.records[one].created_at for one, job in self.jobs.items() if job.until <= self.clock()]
        return Queue(len(made), min(made, default=None))

    async def renew(self, worker: str, response_ids: Collection[str], seconds: float) -> frozenset[str]:
        held = frozenset(one for one in response_ids if self._holds(worker, one))
        for response_id in held:
            self.jobs[response_id].until = self.clock() + seconds
        return held

    async def release(self, worker: str, response_id: str, *, pause: float = 0.0, attempted: bool = False) -> None:
        if self._holds(worker, response_id):
            job = self.jobs[response_id]
            job.worker, job.until = None, self.clock() + pause if pause else 0.0
            job.attempts -= 0 if attempted else 1

    async def append(self, worker: str, response_id: str, events: EventPiece, *, restart: bool = False) -> bool:
        if not self._holds(worker, response_id):
            return False
        self._add(response_id, events, restart)
        return True

    async def finish(
        self, worker: str, record: ResponseRecord, events: EventPiece | None, *, restart: bool = False
    ) -> bool:
        if not self._holds(worker, record.id):
            return False
        queued = self.responses.records[record.id]
        self.responses.records[record.id] = replace(
            record, input_items=queued.input_items, previous_response_id=queued.previous_response_id
        )
        del self.jobs[record.id]
        if events is not None:
            self._add(record.id, events, restart)
        return True

    async def end(self, ending: JobEnd) -> EndedJob | None:
        self._sweep()
        job = self.jobs.get(ending.response_id)
        if (
            job is None
            or ending.worker not in (None, job.worker)
            or ending.last_event != self._last(ending.response_id)
        ):
            return None
        record = self.responses.records[ending.response_id]
        self.responses.records[ending.response_id] = replace(
            record, status=ending.status, body=ending.body, output_items=ending.output_items
        )
        del self.jobs[ending.response_id]
        if ending.events is not None:
            self._add(ending.response_id, ending.events, False)
        return EndedJob(record.status, job.request if record.status == "queued" else b"")

    async def unlock(self, response_id: str) -> None:
        """Do nothing, because this store has no conversations."""

    async def progress(self, response_ids: Collection[str]) -> dict[str, Progress]:
        return {
            one: Progress(record.status, self._last(one))
            for one in response_ids
            if (record := self.responses.records.get(one)) is not None
        }

    async def events(self, owner: str, response_id: str, after: int, limit: int) -> EventPage | None:
        record = self.responses.records.get(response_id)
        if record is None or record.owner != owner:
            return None
        pieces = [piece for piece in self.pieces.get(response_id, []) if piece.last > after]
        return EventPage(record.status, tuple(pieces[:limit]), more=len(pieces) > limit)

    def _may_run(self, response_id: str, able: Collection[str] | None) -> bool:
        old = self.responses.records[response_id].created_at < time.time() - PATIENCE
        return able is None or old or self.jobs[response_id].needs <= frozenset(able)

    def _last(self, response_id: str) -> int:
        pieces = self.pieces.get(response_id)
        return pieces[-1].last if pieces else -1

    def _holds(self, worker: str, response_id: str) -> bool:
        self._sweep()
        return response_id in self.jobs and self.jobs[response_id].worker == worker

    def _add(self, response_id: str, events: EventPiece, restart: bool) -> None:
        pieces = self.pieces.setdefault(response_id, [])
        if restart:
            del pieces[1:]
        pieces[:] = [piece for piece in pieces if piece.last < events.first]
        pieces.append(events)

    def _sweep(self) -> None:
        """Delete the jobs of deleted responses."""
        for response_id in set(self.jobs) - set(self.responses.records):
            del self.jobs[response_id]
