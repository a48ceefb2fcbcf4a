"""Retries model calls of background responses while their upstream cannot be reached.

Lives here: when a background response's model call is made again. Not here: calls that a client waits for (they fail at
once), and anything that the upstream itself answered.

Behind Envoy an upstream that cannot be reached shows as an answer of Envoy's own; without it as a call that failed.

Invariant: a call is made again only if the upstream gave no answer at all; each is counted, and the first twenty of
those that were made for nothing have lines.
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
"""What Envoy answers with where no server was asked."""
_LARGEST_REPLY = 4096
_MOST_LINES = 20
_log = structlog.get_logger(__name__)


@dataclass
class _Read:
    """An answer of which the beginning was read already."""

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
    """An upstream that is asked again for some seconds while it cannot be reached. Each pause is twice the one before,
    up to `_LONGEST_PAUSE` seconds."""

    def __init__(
        self, upstream: Upstream, seconds: float, metrics: Metrics | None = None, *, response_id: str = ""
    ) -> None:
        self._upstream = upstream
        self._seconds = seconds
        self._metrics = metrics
        self._response_id = response_id
        self.failed_at: float | None = None
        """When a call failed in transport for good (by the event loop's time); None: none did."""

    @asynccontextmanager
    async def call(self, request: UpstreamRequest) -> AsyncIterator[UpstreamAnswer]:
        """Make the call, and make it again until there is an answer or the time is over."""
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
                        # In the middle of its body.
                        self.failed_at = clock()
                        raise
                    return
            self._tell(request, attempt, pause, cause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _tell(self, request: UpstreamRequest, attempt: int, pause: float, cause: str) -> None:
        """A call was made for nothing."""
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
        """The upstream is the process's to close."""


async def _unless_unreachable(answer: UpstreamAnswer) -> UpstreamAnswer | None:
    """The answer, or None when it is Envoy's, for an upstream that cannot be reached."""
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
