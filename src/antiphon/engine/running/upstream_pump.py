"""Reads an upstream's answer ahead into a bounded queue, and returns the answer to the runner in parts.

This module has the task that reads the answer, and the bounded queue between this task and the runner. When an upstream
sends a flood of bytes, the module pauses, so that other requests run. Not here: the meaning of the parts
(`engine/exchange/response_exchange.py`), and the time that the runner waits for a part (`runner.py`).

Invariants: An upstream call never outlives its pump, except to read the bytes after `[DONE]`. The queue is bounded and
keeps the order of the parts. If a wait times out, no part of the answer is lost.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import structlog

from antiphon.engine.ports.actions import CallUpstream, SendHead
from antiphon.engine.ports.state import Upstream, UpstreamAnswer, UpstreamCallFailed
from antiphon.types.transport import UpstreamError, UpstreamFault

_log = structlog.get_logger(__name__)


Part = TypeVar("Part")


class PartQueue(Generic[Part]):
    """A bounded queue between one writing task and one reading task. The reader waits with a timeout.

    This queue reuses one timer for all waits. By contrast, `asyncio.Queue` with `asyncio.timeout` would create and
    cancel a timer for every part of every stream. If the timer fires before the current wait's deadline, the queue
    restarts the timer for the remaining time.
    """

    __slots__ = ("_given_until", "_parts", "_room", "_size", "_timer", "_waiter")

    def __init__(self, size: int) -> None:
        self._size = size
        self._parts: deque[Part] = deque()
        # The result of a wait. True: a part arrived. False: the wait timed out.
        self._waiter: asyncio.Future[bool] | None = None
        self._room: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._given_until = 0.0

    async def put(self, part: Part) -> None:
        """Add a part of the answer, after waiting for room in the queue."""
        while len(self._parts) >= self._size:
            self._room = asyncio.get_running_loop().create_future()
            try:
                await self._room
            finally:
                self._room = None
        self._parts.append(part)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(True)

    async def get(self, seconds: float) -> Part:
        """Return the next part. Raises `TimeoutError` when no part comes within `seconds`."""
        if not self._parts and not await self._wait(seconds):
            raise TimeoutError
        part = self._parts.popleft()
        self._make_room()
        return part

    def clear(self) -> None:
        """Drop all queued parts. The writer may add more parts afterwards."""
        self._parts.clear()
        self._make_room()

    def close(self) -> None:
        """Cancel the timer. The reader must not call `get` afterwards."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _make_room(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    async def _wait(self, seconds: float) -> bool:
        loop = asyncio.get_running_loop()
        self._given_until = until = loop.time() + seconds
        if self._timer is not None and self._timer.when() > until:
            self.close()
        if self._timer is None:
            self._timer = loop.call_at(until, self._ring, loop)
        self._waiter = loop.create_future()
        try:
            # A part may arrive in the same iteration of the event loop as the timeout.
            return await self._waiter or bool(self._parts)
        finally:
            self._waiter = None

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        if self._waiter is None or self._waiter.done():
            return
        if loop.time() < self._given_until:
            # An earlier wait set this timer, so restart it for the current wait.
            self._timer = loop.call_at(self._given_until, self._ring, loop)
        else:
            self._waiter.set_result(False)


class UpstreamPump:
    """Reads one upstream answer in a separate task, a bounded number of parts ahead.

    With a separate task, a timer can end a wait without cancelling the read. The pump splits large parts into chunks,
    and lets other requests run after every `piece` bytes. So an upstream that floods delays other requests only
    briefly.
    """

    _AHEAD = 16

    def __init__(
        self,
        upstream: Upstream,
        call: CallUpstream,
        others: Callable[[], Awaitable[None]],
        *,
        piece: int = 32 * 1024,
    ) -> None:
        """`others` lets other requests run. `next` awaits `others` after every `piece` bytes."""
        self._piece_bytes = piece
        self._upstream = upstream
        self._call = call
        self._others = others
        self._queue: PartQueue[SendHead | bytes | UpstreamError | None] = PartQueue(self._AHEAD)
        self._task: asyncio.Task[None] | None = None
        # A large part that is not read to its end, the read position in it, and the bytes handed out since the last
        # call of `others`.
        self._rest = b""
        self._at = 0
        self._taken = 0

    def start(self) -> None:
        """Start the task that makes the upstream call and reads the answer."""
        self._task = asyncio.get_running_loop().create_task(self._read())

    async def next(self, seconds: float) -> SendHead | bytes | UpstreamError | None:
        """Return the next part. The head comes first, then bytes, then None or an error. Raises `TimeoutError` if no
        part comes within `seconds`."""
        if self._taken >= self._piece_bytes:
            self._taken = 0
            await self._others()
        if self._rest:
            return self._piece()
        event = await self._queue.get(seconds)
        if isinstance(event, bytes):
            if len(event) > self._piece_bytes:
                self._rest, self._at = event, 0
                return self._piece()
            self._taken += len(event)
        return event

    def _piece(self) -> bytes:
        """Return the next chunk of a large part. The chunk ends at the end of an SSE event where possible."""
        rest, at = self._rest, self._at
        limit = at + self._piece_bytes
        end = rest.rfind(b"\n\n", at, limit) + 2 if limit < len(rest) else len(rest)
        self._at = end = end if end > at + 1 else limit
        if end >= len(rest):
            self._rest = b""
        piece = rest[at:end]
        self._taken += len(piece)
        return piece

    async def stop(self, *, whole: bool) -> None:
        """End the call. If `whole` is true, the answer is complete, and the task first has 50 ms to read the bytes
        after `[DONE]`."""
        # A cancelled task references its stack frames, and the frames reference this pump. Without `self._task`, no
        # cycle keeps the answer in memory.
        self._queue.close()
        task, self._task = self._task, None
        if task is None or task.done():
            return
        try:
            if whole:
                self._queue.clear()
                await asyncio.wait({task}, timeout=0.05)
        finally:
            # Cancel the reader even if `stop` is cancelled: Envoy ends its call to this process as soon as it has the
            # answer's end.
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
            # Report an error, because otherwise the exchange waits for an end of the answer that never comes.
            _log.error("upstream_read_failed", error=type(bug).__name__, exc_info=True)
            await queue.put(UpstreamError(UpstreamFault.CUT, type(bug).__name__))
        else:
            await queue.put(None)


def _head(answer: UpstreamAnswer) -> SendHead:
    return SendHead(answer.status, answer.headers)
