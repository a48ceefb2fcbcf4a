"""Queues, cancels and ends background responses, whichever process runs them.

This module implements the operations that any process can perform on a background response. The module also probes
whether an upstream accepts requests without a key, and caches the result. Not here: running a background response
(`workers.py`), reading its stream (`followers.py`), the format of a stored response (`engine/ports/jobs.py`), SQL.

A cancellation happens in the store, in one transaction with the last event. The worker notices within a few hundredths
of a second that its job is deleted, and aborts the model call. Events that the worker has not written yet are lost.

A background response runs without its client, and by default the sidecar does not store clients' keys. So this module
probes whether the upstream accepts requests without a key, as Ollama, llama.cpp and a private vLLM do. The probe is an
empty chat request without any data of a client, because servers check the key before the request body. `GET /models`
proves less, because some servers list their models without a key.

Invariants: an ended response never changes. When a cancellation and an end happen concurrently, only the first
transaction takes effect, and both callers see the same final status. The cache holds only the results of probes that
showed whether the upstream needs a key. At most one probe per upstream runs at a time, and each probe has a time limit.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection

import structlog

from antiphon.config.state import BackgroundSettings
from antiphon.engine.ports.actions import ResponseRecord, StoredItem, UpstreamRequest
from antiphon.engine.ports.jobs import (
    EventPiece,
    JobEnd,
    ended_body,
    finished_items,
    is_background,
    is_over,
    last_events,
)
from antiphon.engine.ports.state import StoredResponse, Upstream, UpstreamCallFailed
from antiphon.engine.running.followers import Followers
from antiphon.engine.running.idempotency import LeftCalls
from antiphon.errors import InternalError, InvalidRequest
from antiphon.stores.jobs import JobStore
from antiphon.stores.responses import ResponseStore

_TRIES = 20
_PIECES = 1024


class Background:
    """The operations on background responses. Each process has one instance.

    The instance calls `offer_job` after it has queued a response, and `wake_workers` after it has ended a response. It
    calls `ended_in_queue` for a response that ended before a worker claimed it. The arguments are the owner, the
    response's stored object and the job's request.
    """

    def __init__(
        self,
        jobs: JobStore,
        responses: ResponseStore,
        followers: Followers,
        settings: BackgroundSettings,
        left: LeftCalls | None = None,
    ) -> None:
        """`left` reads the tool calls that responses have claimed. A response claims a call when its process records
        the call in the store, before the process sends the call."""
        self._left = left
        self._jobs = jobs
        self._responses = responses
        self._settings = settings
        self.followers = followers
        self.wake_workers: Callable[[], None] = lambda: None
        self.offer_job: Callable[[str], None] = lambda response_id: None
        self.ended_in_queue: Callable[[str, bytes, bytes], None] = lambda owner, body, request: None

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
            ended = await self._jobs.end(JobEnd(response_id, status, body, items, last, events, worker))
            if ended is not None:
                self.followers.changed(response_id)
                self.wake_workers()
                if ended.status == "queued":
                    self.ended_in_queue(owner, body, ended.request)
                return True
            if worker is not None and response_id not in await self._jobs.held(worker):
                return False
        raise InternalError("The server could not end the response, because its stream grows too fast. Try again.")

    async def claimed_items(self, owner: str, response_id: str) -> tuple[StoredItem, ...] | None:
        """Return the output of a response that has claimed tool calls, or None when the response has no claim."""
        return await self._left.items(owner, response_id) if self._left is not None else None

    async def _whole_items(self, owner: str, response_id: str) -> tuple[tuple[StoredItem, ...], int] | None:
        """Return the completed items of the stream, and the `sequence_number` of the stream's last event (-1 without
        events).

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


_log = structlog.get_logger(__name__)

_REMEMBERED = 300.0
_SECONDS = 5.0
# These statuses mean that the upstream rejected the request body, not the missing key.
_ABOUT_THE_REQUEST = frozenset({400, 404, 405, 413, 415, 422})
_ABOUT_THE_KEY = frozenset({401, 402, 403, 407})


class Keyless:
    """Finds out whether upstreams accept requests without a key, and caches each result for `_REMEMBERED` seconds."""

    def __init__(
        self, upstream: Upstream, clock: Callable[[], float] = time.monotonic, *, seconds: float = _SECONDS
    ) -> None:
        """`seconds`: the time limit of each HTTP request of a probe."""
        self._upstream = upstream
        self._clock = clock
        self._seconds = seconds
        self._known: dict[str, tuple[float, bool]] = {}
        self._asking: dict[str, asyncio.Lock] = {}

    async def ask(self, upstream: str) -> bool | None:
        """Whether this upstream accepts requests without a key. The result is None if the probe did not show this, for
        example because the upstream is unreachable."""
        async with self._asking.setdefault(upstream, asyncio.Lock()):
            known = self._known.get(upstream)
            if known is not None and self._clock() < known[0]:
                return known[1]
            answer = await self._learn(upstream)
            if answer is not None:
                self._known[upstream] = (self._clock() + _REMEMBERED, answer)
                _log.info("upstream_key_needed", upstream=upstream, needed=not answer)
            return answer

    async def _learn(self, upstream: str) -> bool | None:
        status = await self._status(upstream, "POST", "/chat/completions", b'{"messages":[],"max_tokens":1}')
        if 200 <= status < 300 or status in _ABOUT_THE_REQUEST:
            return True
        if status in _ABOUT_THE_KEY:
            return False
        if status == 500:
            # Some servers answer an empty chat request with 500. `GET /models` shows whether such a server requires a
            # key on every path.
            status = await self._status(upstream, "GET", "/models", b"")
            return True if 200 <= status < 300 else False if status in _ABOUT_THE_KEY else None
        return None

    async def _status(self, upstream: str, method: str, path: str, body: bytes) -> int:
        """Send the request and return the answer's status, or 0 if the upstream sent no answer in time."""
        headers = (("content-type", "application/json"), ("accept", "application/json"))
        request = UpstreamRequest(method, path, headers, body, "", False, upstream)
        try:
            async with asyncio.timeout(self._seconds), self._upstream.call(request) as answer:
                return answer.status
        except (UpstreamCallFailed, TimeoutError) as failure:
            _log.warning("upstream_not_asked", upstream=upstream, error=str(failure) or "no answer in time")
            return 0
