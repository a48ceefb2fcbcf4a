"""A job store whose writes are counted and timed.

Lives here: what a worker asks of the store, by the names that the metrics have. Not here: what any of it means
(`engine/ports/jobs.py`).

Invariant: it changes nothing. What is read all the time (what is held, how far streams are) is not counted.
"""

from __future__ import annotations

from collections.abc import Collection

from antiphon.engine.ports.actions import ResponseRecord
from antiphon.engine.ports.jobs import EventPiece, Job, JobEnd, JobStore
from antiphon.observability.metrics import Metrics


class CountedJobs:
    """`JobStore` over another one."""

    def __init__(self, beneath: JobStore, metrics: Metrics) -> None:
        self._beneath = beneath
        self._measured = metrics.storage
        self.enqueue = beneath.enqueue
        self.queue = beneath.queue
        self.held = beneath.held
        self.unlock = beneath.unlock
        self.progress = beneath.progress
        self.events = beneath.events

    async def claim(
        self,
        worker: str,
        seconds: float,
        limit: int,
        besides: Collection[str] = (),
        *,
        able: Collection[str] | None = None,
    ) -> list[Job]:
        with self._measured("claim"):
            return await self._beneath.claim(worker, seconds, limit, besides, able=able)

    async def renew(self, worker: str, response_ids: Collection[str], seconds: float) -> frozenset[str]:
        with self._measured("renew"):
            return await self._beneath.renew(worker, response_ids, seconds)

    async def release(self, worker: str, response_id: str, *, pause: float = 0.0, attempted: bool = False) -> None:
        with self._measured("release"):
            await self._beneath.release(worker, response_id, pause=pause, attempted=attempted)

    async def append(self, worker: str, response_id: str, events: EventPiece, *, restart: bool = False) -> bool:
        with self._measured("append"):
            return await self._beneath.append(worker, response_id, events, restart=restart)

    async def finish(
        self, worker: str, record: ResponseRecord, events: EventPiece | None, *, restart: bool = False
    ) -> bool:
        with self._measured("finish"):
            return await self._beneath.finish(worker, record, events, restart=restart)

    async def end(self, ending: JobEnd) -> bool:
        with self._measured("end"):
            return await self._beneath.end(ending)
