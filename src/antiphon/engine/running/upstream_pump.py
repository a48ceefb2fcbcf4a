"""Reading one upstream answer ahead, a bounded number of parts, and handing it out in pieces.

Lives here: the task that reads, and whose turn it is when an upstream floods. Not here: what the parts mean
(`engine/exchange/response_exchange.py`) and how long they are waited for (`runner.py`).

Invariant: an upstream call never outlives its pump, except to read what follows `[DONE]`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from antiphon.engine.ports.actions import CallUpstream, SendHead
from antiphon.engine.ports.state import Upstream, UpstreamAnswer, UpstreamCallFailed
from antiphon.engine.running.part_queue import PartQueue
from antiphon.types.transport import UpstreamError, UpstreamFault

_log = structlog.get_logger(__name__)


class UpstreamPump:
    """Reads one upstream answer in a task of its own, a bounded number of parts ahead.

    A task, so that a timer can run out without cancelling the read. What is there already is handed out in pieces, and
    others have their turn after each: an upstream that floods us costs them little.
    """

    _AHEAD = 16
    _PIECE = 32 * 1024

    def __init__(self, upstream: Upstream, call: CallUpstream, others: Callable[[], Awaitable[None]]) -> None:
        """`others` lets others have their turn."""
        self._upstream = upstream
        self._call = call
        self._others = others
        self._queue: PartQueue[SendHead | bytes | UpstreamError | None] = PartQueue(self._AHEAD)
        self._task: asyncio.Task[None] | None = None
        # What is left of a large part, and how much was handed out since the others had their turn.
        self._rest = b""
        self._at = 0
        self._taken = 0

    def start(self) -> None:
        """Begin the call."""
        self._task = asyncio.get_running_loop().create_task(self._read())

    async def next(self, seconds: float) -> SendHead | bytes | UpstreamError | None:
        """The next part: the head, bytes, then None or an error. Raises TimeoutError."""
        if self._taken >= self._PIECE:
            self._taken = 0
            await self._others()
        if self._rest:
            return self._piece()
        event = await self._queue.get(seconds)
        if isinstance(event, bytes):
            if len(event) > self._PIECE:
                self._rest, self._at = event, 0
                return self._piece()
            self._taken += len(event)
        return event

    def _piece(self) -> bytes:
        """Some of a large part, whole events where that is possible."""
        rest, at = self._rest, self._at
        limit = at + self._PIECE
        end = rest.rfind(b"\n\n", at, limit) + 2 if limit < len(rest) else len(rest)
        self._at = end = end if end > at + 1 else limit
        if end >= len(rest):
            self._rest = b""
        piece = rest[at:end]
        self._taken += len(piece)
        return piece

    async def stop(self, *, whole: bool) -> None:
        """End the call; when the answer was `whole`, what follows `[DONE]` may still be read (briefly)."""
        # A task that was cancelled holds its frames, and these hold us: whoever keeps it keeps the whole answer.
        self._queue.close()
        task, self._task = self._task, None
        if task is None or task.done():
            return
        try:
            if whole:
                self._queue.clear()
                await asyncio.wait({task}, timeout=0.05)
        finally:
            # Also when we are cancelled while we wait: Envoy ends its call as soon as it has the answer's end.
            task.cancel()
            await asyncio.wait({task})

    async def _read(self) -> None:
        queue = self._queue
        try:
            async with self._upstream.call(self._call.request) as answer:
                await queue.put(_head(answer))
                async for part in answer.body():
                    await queue.put(part)
        except UpstreamCallFailed as failure:
            await queue.put(failure.error)
        except Exception as bug:
            # Never leave the exchange waiting for an end that cannot come.
            _log.error("upstream_read_failed", error=type(bug).__name__, exc_info=True)
            await queue.put(UpstreamError(UpstreamFault.CUT, type(bug).__name__))
        else:
            await queue.put(None)


def _head(answer: UpstreamAnswer) -> SendHead:
    return SendHead(answer.status, answer.headers)
