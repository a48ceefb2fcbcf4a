"""Detects that an upstream has stopped sending.

This module uses a single timer for a whole response body, which is cheaper than aiohttp's timer for each read. When the
timer fires and the present wait is not too long yet, the timer starts again for the remaining time. `client.py` decides
what happens when the upstream has sent nothing for too long.

Invariant: only the time in which the process waits for bytes counts, not the time in which the caller handles them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Silence:
    """Calls the function `tell` once, when the process has waited for bytes for `seconds`."""

    __slots__ = ("_loop", "_seconds", "_since", "_tell", "_timer")

    def __init__(self, seconds: float, tell: Callable[[], None]) -> None:
        self._seconds = seconds
        self._tell = tell
        self._since: float | None = None
        # The loop and the timer are set at the first wait.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    def wait(self) -> None:
        """Record that the process now waits for bytes."""
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._seconds, self._look, loop)
        self._since = loop.time()

    def heard(self) -> None:
        """Record that bytes have arrived."""
        self._since = None

    def stop(self) -> None:
        """Cancel the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        end = (now if self._since is None else self._since) + self._seconds
        if end > now:
            self._timer = loop.call_at(end, self._look, loop)
        else:
            self._tell()
