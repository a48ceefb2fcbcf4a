"""Saves or queues a response and releases its conversation lock and idempotency key, even if the client disconnects
meanwhile.

This module keeps the tasks that outlive their requests, and releases the lock and the key. Not here: the decisions when
to save a response and what to save (`engine/exchange/response_end.py`), the guarantees of a write
(`ResponseStore.save`).

Invariants: A save that has begun completes even if the request's task is cancelled. The transaction that stores the
response also releases its lock and binds its key. If that transaction fails, the saver releases the lock and the key.
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
    """Saves responses to `ports.history`, and queues background responses through `ports.background`.

    `under_way` are the running tasks of this saver. Runners that share their state also share `under_way`
    (`Runner.over`).
    """

    def __init__(self, ports: Ports, under_way: set[asyncio.Task[object]], *, patience: float = 1.0) -> None:
        """`patience`: seconds that a response waits for the release of its lock and key. The release itself continues
        after that time."""
        self._patience = patience
        self._ports = ports
        self._under_way = under_way

    async def release(self, action: ReleaseConversation) -> None:
        """Release the response's conversation lock, key and approvals. The release continues if the request's task is
        cancelled."""
        await asyncio.shield(self.keep_going(self._let_go(action.response_id, counts=action.counts)))

    async def _let_go(self, response_id: str, *, counts: bool) -> None:
        if not self._ports.keeps_locks:
            await self._ports.conversations.release(response_id)
        await self._ports.keys.release(response_id, counts=counts)

    def keep_going(self, work: Coroutine[object, object, _Done]) -> asyncio.Task[_Done]:
        """Start a task that continues if the client disconnects. `finish` waits for all such tasks."""
        task = asyncio.get_running_loop().create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return task

    async def _store_record(self, record: ResponseRecord, saved: asyncio.Future[None]) -> None:
        """Save the response, and release its lock and key if the save did not do so. Sets the outcome on the future
        `saved`. If the request was cancelled, that future has already ended, and the method ignores it."""
        try:
            keys = self._ports.keys
            holds = record.conversation_id is not None or keys.holds(record.id)
            # The record of a failed response does not store the idempotency key. The saver releases the key, so that
            # the client can retry with the same key.
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
        """Stop renewing the response's lock and key if the store has already released or bound them. Otherwise release
        the lock and the key."""
        keys = self._ports.keys
        if kept and record.conversation_id is not None:
            self._ports.conversations.forget(record.id)
        if kept and counts:
            if self._ports.keeps_locks:
                # The job's `DeferredHistory` only keeps the record in memory. The job's final transaction stores the
                # record, and the worker then calls `Runner.forget`.
                return
            if keys.calls(record.id):
                await asyncio.wait({self.keep_going(keys.end_calls(record.id))}, timeout=self._patience)
            keys.hand_to_store(record.id)
        if keys.holds(record.id) or (not kept and record.conversation_id is not None):
            # A store that just failed may fail again, so wait only `_patience` seconds before the client gets its
            # answer. The release happens when the store works again, or the leases expire.
            await asyncio.wait(
                {self.keep_going(self._let_go(record.id, counts=record.sent_calls))}, timeout=self._patience
            )

    async def claim_calls(self, record: ResponseRecord, *, stored: bool) -> StoreError | None:
        """Record in the store that the response is about to send tool calls. Returns the store's error, or None."""
        try:
            with self._ports.metrics.storage("claim_calls"):
                await self._ports.keys.claim_calls(record, stored=stored, queued=self._ports.keeps_locks)
        except StoreError as error:
            return error
        return None

    async def enqueue(self, action: Enqueue) -> StoreError | ApiError | None:
        """Queue the response. The write continues if the request's task is cancelled. Afterwards, either the queued job
        holds the conversation's lock, or this method has released the lock. Returns the error, or None."""
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
            # The job of the queued response takes over the response's lock and key.
            await self._part(record, kept=kept, counts=True)
        return failure

    async def save(self, action: SaveResponse) -> StoreError | None:
        """Save the response. The write continues if the request's task is cancelled. Returns the store's error, or
        None. The write has a time limit (`ResponseStore.save`)."""
        # The request awaits a separate future, so that its cancellation does not cancel the write. `asyncio.shield` and
        # a task's callback would slow every response down for a rare case.
        saved: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.keep_going(self._store_record(action.record, saved))
        try:
            with self._ports.metrics.storage("save"):
                await saved
        except StoreError as error:
            return error
        except asyncio.CancelledError:
            # The save may have failed in the same moment. `look_at` retrieves that exception.
            look_at(saved)
            raise
        return None

    async def finish(self) -> None:
        """Wait for saves that outlive their requests, at most twice the save's timeout."""
        deadline = time.monotonic() + 2 * self._ports.timeouts.save
        while self._under_way and (left := deadline - time.monotonic()) > 0:
            await asyncio.wait(set(self._under_way), timeout=left)
        if self._under_way:
            _log.error("saves_given_up", count=len(self._under_way))

    async def aclose(self) -> None:
        """Wait for saves, and stop renewing the leases of all locks and keys."""
        await self.finish()
        await self._ports.conversations.aclose()
        await self._ports.keys.aclose()
