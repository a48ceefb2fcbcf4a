"""Saves or queues a response and releases what it held, even if its client's request ends meanwhile.

Lives here: the tasks that outlive their requests, and what becomes of a response's conversation lock and idempotency
key. Not here: what is stored and when (`engine/exchange/response_end.py`), and what a write
means (`ResponseStore.save`).

Invariant: a save that was begun is finished even when the request's task is cancelled; what a response held goes with
its row, or is given back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import replace
from typing import TypeVar

import structlog

from antiphon.engine.ports.actions import Enqueue, ReleaseConversation, ResponseRecord, SaveResponse
from antiphon.engine.ports.jobs import EventPiece, count_events
from antiphon.engine.running.loading import Ports
from antiphon.engine.waiting import look_at
from antiphon.errors import ApiError, StoreError

_log = structlog.get_logger(__name__)

_Done = TypeVar("_Done")


class Saver:
    """Saves to the history of these, queues in their background; those of one runner and its views share the tasks that
    are `under_way`."""

    def __init__(self, ports: Ports, under_way: set[asyncio.Task[object]], *, patience: float = 1.0) -> None:
        """`patience`: seconds that a response waits for the release of what it held. The release goes on after that."""
        self._patience = patience
        self._ports = ports
        self._under_way = under_way

    async def release(self, action: ReleaseConversation) -> None:
        """Give back what is held; that goes on when the request's task is cancelled meanwhile."""
        await asyncio.shield(self.keep_going(self._let_go(action.response_id, counts=action.counts)))

    async def _let_go(self, response_id: str, *, counts: bool) -> None:
        if not self._ports.keeps_locks:
            await self._ports.conversations.release(response_id)
        await self._ports.keys.release(response_id, counts=counts)

    def keep_going(self, work: Coroutine[object, object, _Done]) -> asyncio.Task[_Done]:
        """A task that is waited for at the end, whoever leaves meanwhile."""
        task = asyncio.get_running_loop().create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return task

    async def _store_record(self, record: ResponseRecord, saved: asyncio.Future[None]) -> None:
        """Save, and see to what the response holds: that goes with the row, or without it. `saved` hears of the end,
        unless nobody waits for it any more."""
        try:
            keys = self._ports.keys
            holds = record.conversation_id is not None or keys.holds(record.id)
            # What failed gives its key back: trying again is trying again.
            if record.counts:
                record = self._with_key(record)
            kept = False
            try:
                await self._ports.history.save(record)
                kept = True
            finally:
                if holds:
                    await self._part(record, kept=kept, counts=record.counts)
        except Exception as error:
            if not saved.done():
                saved.set_exception(error)
        except BaseException:
            saved.cancel()
            raise
        else:
            if not saved.done():
                saved.set_result(None)

    def _with_key(self, record: ResponseRecord) -> ResponseRecord:
        once = self._ports.keys.of(record.id)
        return record if once is None else replace(record, once=once)

    async def _part(self, record: ResponseRecord, *, kept: bool, counts: bool) -> None:
        """This process has done what it could for a response: what it held is the store's now, or nobody's."""
        keys = self._ports.keys
        if kept and record.conversation_id is not None:
            self._ports.conversations.forget(record.id)
        if kept and counts:
            if self._ports.keeps_locks:
                # It is stored with the end of its job, and what it holds is forgotten then.
                return
            if keys.calls(record.id):
                await asyncio.wait({self.keep_going(keys.end_calls(record.id))}, timeout=self._patience)
            keys.hand_to_store(record.id)
        if keys.holds(record.id) or (not kept and record.conversation_id is not None):
            # What could not write just now may not be able to write this: the client hears of it all the same, and
            # what is held goes when the disk goes on, or runs out.
            await asyncio.wait(
                {self.keep_going(self._let_go(record.id, counts=record.sent_calls))}, timeout=self._patience
            )

    async def claim_calls(self, record: ResponseRecord, *, stored: bool) -> StoreError | None:
        """Record that the response sends calls now; return the store's error, if any."""
        try:
            with self._ports.metrics.storage("claim_calls"):
                await self._ports.keys.claim_calls(record, stored=stored, queued=self._ports.keeps_locks)
        except StoreError as error:
            return error
        return None

    async def enqueue(self, action: Enqueue) -> StoreError | ApiError | None:
        """Queue; that goes on when the request's task is cancelled meanwhile, since the lock of the response's
        conversation goes the way of the job."""
        return await asyncio.shield(self.keep_going(self._store_job(action)))

    async def _store_job(self, action: Enqueue) -> StoreError | ApiError | None:
        events = EventPiece(count_events(action.events) - 1, action.events) if action.events else None
        failure: StoreError | ApiError | None = None
        record = self._with_key(action.record)
        kept = False
        try:
            with self._ports.metrics.storage("enqueue"):
                await self._ports.background.enqueue(record, action.request, events, action.needs)
            kept = True
        except (StoreError, ApiError) as error:
            failure = error
        finally:
            # It was only queued, but what it holds goes with its job.
            await self._part(record, kept=kept, counts=True)
        return failure

    async def save(self, action: SaveResponse) -> StoreError | None:
        """Save; the write goes on when the request's task is cancelled meanwhile. The store says in bounded time what
        became of it (`ResponseStore.save`)."""
        # Of its own, so that whoever is cancelled cancels nothing else. A shield, and what is called when a task is
        # done, would be for every response what few need.
        saved: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.keep_going(self._store_record(action.record, saved))
        try:
            with self._ports.metrics.storage("save"):
                await saved
        except StoreError as error:
            return error
        except asyncio.CancelledError:
            # It may have come to its end in the same moment.
            look_at(saved)
            raise
        return None

    async def finish(self) -> None:
        """Wait for saves that outlived their requests; at most the save's time, twice."""
        deadline = time.monotonic() + 2 * self._ports.timeouts.save
        while self._under_way and (left := deadline - time.monotonic()) > 0:
            await asyncio.wait(set(self._under_way), timeout=left)
        if self._under_way:
            _log.error("saves_given_up", count=len(self._under_way))

    async def aclose(self) -> None:
        """Finish, and renew nothing any more that is held."""
        await self.finish()
        await self._ports.conversations.aclose()
        await self._ports.keys.aclose()
