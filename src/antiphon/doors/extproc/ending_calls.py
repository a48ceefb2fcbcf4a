"""Calls that were answered to the end, and that their peer has not ended yet: no task of theirs waits for it.

Lives here: how long that may take, with one timer for all calls of a connection. Not here: what a call's end is
(`http2_call.py`), and who says that all was answered (`peer.py`).

Envoy ends nearly every call itself, within milliseconds, by a reset; a call that is ended here before may cut what it
has not taken yet, so that one which has not taken all has longer. Invariant: every call in here leaves it by its peer's
end, by the connection's, or at the latest `_SWEEP_SECONDS` after its time by a status.
"""

from __future__ import annotations

import asyncio

from antiphon.doors.extproc.http2_call import Call
from antiphon.doors.extproc.transport import GrpcStatus

_SWEEP_SECONDS = 1.0


class EndingCalls:
    """Those of one connection."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        # When it is over for each, and when it is in any case.
        self._due: dict[Call, tuple[float, float]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._empty: asyncio.Future[None] | None = None

    def add(self, call: Call, seconds: float) -> None:
        """Let the peer end this one, so long; while it has not taken all of it, as long as a call may wait for it."""
        now = self._loop.time()
        self._due[call] = (now + seconds, now + call.limits.seconds)
        if self._timer is None:
            self._timer = self._loop.call_later(_SWEEP_SECONDS, self._sweep)

    def discard(self, call: Call) -> None:
        """It has ended, if it was here."""
        self._due.pop(call, None)
        if not self._due and self._empty is not None and not self._empty.done():
            self._empty.set_result(None)

    def ended(self) -> asyncio.Future[None]:
        """What is done when none is left. For one caller, when none is added any more."""
        self._empty = self._loop.create_future()
        if not self._due:
            self._empty.set_result(None)
        return self._empty

    def finish(self) -> None:
        """End all of them now."""
        for call in tuple(self._due):
            call.finish(GrpcStatus.OK)

    def _sweep(self) -> None:
        self._timer = None
        now = self._loop.time()
        for call, (due, last) in tuple(self._due.items()):
            if due <= now and (last <= now or not call.unsent):
                call.finish(GrpcStatus.OK)
        if self._due:
            self._timer = self._loop.call_later(_SWEEP_SECONDS, self._sweep)
