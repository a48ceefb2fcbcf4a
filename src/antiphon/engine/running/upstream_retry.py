"""Retries model calls of background responses while the upstream is unreachable.

Lives here: the retries of a background response's model call. Not here: model calls for which a client waits, because
they fail immediately.

With Envoy, a call to an unreachable upstream returns an error answer that Envoy made. Without Envoy, the call raises
`UpstreamCallFailed`.

Invariant: a call is retried only if the upstream returned no answer. The metrics count each failed attempt. Each of the
first twenty failed attempts has a log line.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import count

import structlog

from antiphon.engine.ports.actions import UpstreamRequest
from antiphon.engine.ports.state import Upstream, UpstreamAnswer, UpstreamCallFailed
from antiphon.observability.metrics import Metrics
from antiphon.translation.answer.upstream_errors import map_upstream_answer
from antiphon.types.transport import Headers, UpstreamFault

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_ENVOYS_STATUSES = frozenset({502, 503})
_NOBODYS = frozenset({"upstream_unreachable", "endpoint_picker_unavailable", "no_endpoint_picked"})
"""The error codes of Envoy's answers when it reached no server."""
_LARGEST_REPLY = 4096
_MOST_LINES = 20
_log = structlog.get_logger(__name__)


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
        self, upstream: Upstream, seconds: float, metrics: Metrics | None = None, *, response_id: str = ""
    ) -> None:
        self._upstream = upstream
        self._seconds = seconds
        self._metrics = metrics
        self._response_id = response_id
        self.failed_at: float | None = None
        """The event loop time at which a call failed in transport after all retries. None: no call has failed."""

    @asynccontextmanager
    async def call(self, request: UpstreamRequest) -> AsyncIterator[UpstreamAnswer]:
        """Make the call, and retry it until the upstream answers or `seconds` are over."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._seconds
        pause = _FIRST_PAUSE
        for attempt in count(1):
            last = clock() + pause > deadline
            async with AsyncExitStack() as stack:
                answer: UpstreamAnswer | None = None
                cause = "Envoy could not reach it"
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
        """Count a failed attempt in the metrics, and log it if it is one of the first `_MOST_LINES`."""
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
    """Return the answer. Returns None if Envoy made the answer because the upstream is unreachable."""
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
