"""Detects that an upstream has stopped sending.

This module uses one timer for all the times that the client waits for bytes of one response body. `client.py` decides
what happens after too much silence.

aiohttp creates and cancels its own read timer for every read of every stream. The timer of this module, when it fires,
checks the length of the current wait, and then runs again for the remaining time.

Invariant: the timer measures only the time during which the client waits for bytes. A consumer that reads the body
slowly never triggers the timer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Silence:
    """Calls the function `tell` once, when a wait for bytes has lasted for `seconds`. `stop` cancels the timer."""

    __slots__ = ("_loop", "_seconds", "_since", "_tell", "_timer")

    def __init__(self, seconds: float, tell: Callable[[], None]) -> None:
        self._seconds = seconds
        self._tell = tell
        self._since: float | None = None
        # The loop and the timer are set at the first wait.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    def wait(self) -> None:
        """Begin a wait for bytes."""
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._seconds, self._look, loop)
        self._since = loop.time()

    def heard(self) -> None:
        """End the wait, because bytes have arrived."""
        self._since = None

    def stop(self) -> None:
        """Stop the timer, so that no silence is reported."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        end = (now if self._since is None else self._since) + self._seconds
        if end > now:
            self._timer = loop.call_at(end, self._look, loop)
        else:
            self._tell()
