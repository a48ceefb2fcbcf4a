"""Holds the state of one run of a background job, writes its stream to the store, and retries its model call.

This module holds the answer that the exchange sends, and the finished response until the store has it. The module also
writes the job's stream in batches, and retries the model call while the upstream is unreachable. Not here: the code
that claims and runs jobs (`workers.py`), the content of events, the code that reads events, SQL. Not here: model calls
for which a client waits. Such calls fail immediately, without a retry.

With Envoy, a call to an unreachable upstream returns an error answer that Envoy made. Without Envoy, the call raises
`UpstreamCallFailed`.

Invariants: the stream writes numbered batches of whole events in order, one at a time. While the store fails, `add`
waits when more than `ahead` bytes are unwritten. When the worker has lost the job, the stream calls `on_lost` and
writes no further batch. The worker retries a call only if the upstream returned no answer. The metrics count each
failed attempt. Each of the first twenty failed attempts has a log line.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

import msgspec
import structlog

from antiphon.engine.exchange.failure import Failure
from antiphon.engine.exchange.response_exchange import ResponseExchange
from antiphon.engine.ports.actions import Finish, ResponseRecord, SendHead, UpstreamRequest
from antiphon.engine.ports.jobs import EventPiece, Job, count_events
from antiphon.engine.ports.state import DoorWatch, History, Upstream, UpstreamAnswer, UpstreamCallFailed
from antiphon.engine.running.runner import Runner
from antiphon.errors import StoreError
from antiphon.observability.metrics import Metrics
from antiphon.observability.observation import Telemetry
from antiphon.observability.repeated_failures import Outage
from antiphon.stores.jobs import JobStore
from antiphon.translation.answer.upstream_errors import map_upstream_answer
from antiphon.translation.events.encode import DONE, KEEPALIVE
from antiphon.types.json import try_decode
from antiphon.types.transport import Headers, UpstreamFault


class JobEnvironment(NamedTuple):
    """The runner, the exchange factory and the telemetry that a worker needs to run jobs."""

    runner: Runner
    new_exchange: Callable[[], ResponseExchange]
    telemetry: Telemetry


class DoorGone(Exception):
    """The gateway (Envoy) stopped during the model call."""


class _NoDoor:
    """A `DoorWatch` for model calls that go directly to the model server. No gateway can break such a call."""

    async def gone(self, at: float) -> bool:
        return False


@asynccontextmanager
async def no_door() -> AsyncIterator[DoorWatch]:
    """Yield a `DoorWatch` for a process that calls model servers without a gateway."""
    yield _NoDoor()


class _Error(msgspec.Struct):
    message: str = "The response failed."
    code: str | None = None


class _ErrorBody(msgspec.Struct):
    error: _Error = msgspec.field(default_factory=_Error)


_ERROR_BODY = msgspec.json.Decoder(_ErrorBody)


@dataclass(eq=False)
class JobRun:
    """A job that this process runs.

    `lost`: whether the worker has lost the job's lease. `ending`: whether the worker is writing the job's final
    transaction.
    """

    job: Job
    task: asyncio.Task[None] | None = None
    lost: bool = False
    ending: bool = False
    failure: Failure | None = None

    def lose(self) -> None:
        """Cancel the run. Repeated calls do nothing, because a second cancellation would interrupt the cleanup."""
        if not self.lost:
            self.lost = True
            if self.task is not None:
                self.task.cancel()


@dataclass
class JobOutcome:
    """The HTTP answer of an exchange that sent no event stream: the answer's head, body and end."""

    head: SendHead | None = None
    body: list[bytes] = field(default_factory=list)
    finish: Finish | None = None


class DeferredHistory:
    """A `History` that holds the finished response in memory, because the job's final transaction writes the response.

    `save` calls `on_save`, so that the job's stream writes no further events. The job's final transaction writes them.
    """

    def __init__(self, beneath: History, on_save: Callable[[], None]) -> None:
        self.load_chain = beneath.load_chain
        self.load_items = beneath.load_items
        self.load_compared = beneath.load_compared
        self._on_save = on_save
        self.record: ResponseRecord | None = None

    async def save(self, record: ResponseRecord) -> None:
        self.record = record
        self._on_save()


def refusal(outcome: JobOutcome) -> _Error:
    """Return the error in the outcome's body, or a default error when the body is not valid."""
    return (try_decode(_ERROR_BODY, b"".join(outcome.body)) or _ErrorBody()).error


_log = structlog.get_logger(__name__)


class JobStream:
    """Writes the event stream of one attempt of a job to the store. The stream calls `written` after every written
    batch.

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
        """Whether this attempt has written nothing yet. The first write of this attempt deletes the events of an
        earlier attempt.

        `Job.attempts` does not show whether an earlier attempt wrote events, because a released attempt does not count.
        """
        self._changed = asyncio.Event()
        self._closing = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._task: asyncio.Task[None] | None = None
        self._outage = Outage(_log, "events_not_written", "events_written_again")

    async def add(self, data: bytes) -> None:
        """Add the next events. The method leaves out keep-alive comments and `[DONE]`. The call waits while too many
        bytes are unwritten."""
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
            # Release a waiting `add`, because no later write will free memory.
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


_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_ENVOYS_STATUSES = frozenset({502, 503})
_NOBODYS = frozenset({"upstream_unreachable", "endpoint_picker_unavailable", "no_endpoint_picked"})
"""The error codes of Envoy's answers when Envoy reached no server."""
_LARGEST_REPLY = 4096
_MOST_LINES = 20


@dataclass
class _Read:
    """An answer whose first parts `_unless_unreachable` has read. `body` yields these parts again."""

    status: int
    headers: Headers
    begin: list[bytes]
    rest: AsyncIterator[bytes]

    async def body(self) -> AsyncIterator[bytes]:
        for part in self.begin:
            yield part
        async for part in self.rest:
            yield part


class PatientUpstream:
    """Wraps an upstream, and retries each call for up to `seconds` while the upstream is unreachable. Each pause is
    twice the previous pause, up to `_LONGEST_PAUSE` seconds."""

    def __init__(
        self,
        upstream: Upstream,
        seconds: float,
        metrics: Metrics | None = None,
        *,
        response_id: str = "",
        retried: Callable[[int, str], None] = lambda failures, cause: None,
    ) -> None:
        """`retried` receives the number of failed attempts of the call, and why the last attempt failed."""
        self._upstream = upstream
        self._seconds = seconds
        self._metrics = metrics
        self._response_id = response_id
        self._retried = retried
        self.failed_at: float | None = None
        """The event loop time at which a call failed in transport after all retries. None if no call has failed."""

    @asynccontextmanager
    async def call(self, request: UpstreamRequest) -> AsyncIterator[UpstreamAnswer]:
        """Make the call. Retry the call until the upstream answers or `seconds` are over."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._seconds
        pause = _FIRST_PAUSE
        for attempt in count(1):
            last = clock() + pause > deadline
            async with AsyncExitStack() as stack:
                answer: UpstreamAnswer | None = None
                cause = "Envoy could not reach the upstream"
                try:
                    answer = await stack.enter_async_context(self._upstream.call(request))
                    if not last and answer.status in _ENVOYS_STATUSES:
                        answer = await _unless_unreachable(answer)
                except UpstreamCallFailed as failure:
                    if last or failure.error.fault is not UpstreamFault.UNREACHABLE:
                        self.failed_at = clock()
                        raise
                    answer, cause = None, failure.error.detail
                if answer is not None:
                    try:
                        yield answer
                    except UpstreamCallFailed:
                        # The answer broke off in the middle of its body.
                        self.failed_at = clock()
                        raise
                    return
            self._tell(request, attempt, pause, cause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _tell(self, request: UpstreamRequest, attempt: int, pause: float, cause: str) -> None:
        """Report a failed attempt, and count it in the metrics. Log the first `_MOST_LINES` failed attempts."""
        self._retried(attempt, cause)
        if self._metrics is not None:
            self._metrics.upstream_called(request.upstream, "responses", UpstreamFault.UNREACHABLE.value, None)
        if attempt > _MOST_LINES:
            return
        _log.warning(
            "upstream_tried_again",
            fault="upstream",
            cause=cause,
            code="upstream_unreachable",
            upstream=request.upstream,
            response_id=self._response_id,
            attempt=attempt,
            retry_seconds=pause,
        )

    async def aclose(self) -> None:
        """Do nothing, because the process closes the wrapped upstream."""


async def _unless_unreachable(answer: UpstreamAnswer) -> UpstreamAnswer | None:
    """Return the answer, or None if Envoy made the answer because the upstream is unreachable."""
    parts: list[bytes] = []
    rest = answer.body()
    size = 0
    async for part in rest:
        parts.append(part)
        size += len(part)
        if size > _LARGEST_REPLY:
            return _Read(answer.status, answer.headers, parts, rest)
    if map_upstream_answer(answer.status, answer.headers, b"".join(parts)).code in _NOBODYS:
        return None
    return _Read(answer.status, answer.headers, parts, rest)
