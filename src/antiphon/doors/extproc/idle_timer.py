"""Doing something while a stream is silent, without a task or a lock per message.

Lives here: one timer per stream, and the mutual exclusion between what it does and what the next message leads to.
Not here: what is done when (`relay.py`).

A read of gRPC must not be cancelled and begun again, so a time limit around every read is no way to notice silence.
Instead the timer acts only while the stream waits for its next message, and the stream goes on with that message only
when the act is over.

Invariants: an act and the handling of a message never overlap; a failed act fails the stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from antiphon.doors.extproc.peer import Peer
from antiphon.doors.extproc.received import Received

_BUSY_RETRY = 0.25
_MAX_AHEAD = 15.0


class Interludes:
    """The silent moments of one stream.

    `next_due` tells the loop time at which to act if nothing changes, `act` acts. The limits are checked when the
    timer runs out, so a message costs nothing here.
    """

    def __init__(self, peer: Peer, next_due: Callable[[], float], act: Callable[[], Awaitable[None]]) -> None:
        self._peer = peer
        self._next_due = next_due
        self._act = act
        self._loop = asyncio.get_running_loop()
        self._owner = asyncio.current_task()
        self._timer: asyncio.TimerHandle | None = None
        self._at = 0.0
        self._running: asyncio.Task[None] | None = None
        self._listening = False
        self._closed = False
        self._failure: BaseException | None = None

    def schedule(self) -> None:
        """Look at the limits again: an earlier moment may be due now."""
        due = self._next_due()
        if self._timer is not None:
            if self._at <= due:
                # It looks by itself then.
                return
            self._timer.cancel()
        if self._closed:
            self._timer = None
            return
        # Never far ahead: of most streams the first timer is the only one, whatever becomes due meanwhile.
        self._at = min(due, self._loop.time() + _MAX_AHEAD)
        self._timer = self._loop.call_at(self._at, self._wake)

    async def receive(self) -> Received:
        """The next message, after whatever happened while it was awaited."""
        inbox = self._peer.inbox
        if not inbox.drained and (here := inbox.receive_now()) is not None:
            # Nothing acts but while the stream waits.
            return here
        try:
            self._listening = True
            message = await self._peer.stream.receive()
            self._listening = False
            while self._running is not None:
                await asyncio.wait({self._running})
        except asyncio.CancelledError:
            if self._failure is None or self._owner is None:
                raise
            self._owner.uncancel()
            raise self._failure from None
        finally:
            self._listening = False
        return inbox.read(message)

    async def aclose(self) -> None:
        """Stop; an act that is under way is cancelled."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        try:
            if self._running is not None:
                self._running.cancel()
                await asyncio.wait({self._running})
        finally:
            # A task that was cancelled, and a failure that was raised, hold their frames, and these hold us.
            self._owner = self._failure = None

    def _wake(self) -> None:
        self._timer = None
        if not self._listening or self._running is not None:
            # The stream is busy, so it is not silent; look again soon.
            self._at = self._loop.time() + _BUSY_RETRY
            self._timer = self._loop.call_at(self._at, self._wake)
        elif self._loop.time() < self._next_due():
            self.schedule()
        else:
            self._running = self._loop.create_task(self._run())
            self._running.add_done_callback(self._ended)

    async def _run(self) -> None:
        await self._act()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running = None
        if task.cancelled() or self._closed:
            if not task.cancelled():
                task.exception()
            return
        self._failure = task.exception()
        if self._failure is None:
            self.schedule()
        elif self._owner is not None:
            self._owner.cancel()
