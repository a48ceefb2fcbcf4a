"""Detects that an upstream has stopped sending.

Lives here: one timer for all waits of a body. Not here: what silence means (`client.py`).

aiohttp's own read timer is made and cancelled with every read of every stream. This timer checks the length of the wait
when it fires, and runs again for the rest.

Invariant: only waiting time counts. A slow reader makes no silence.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Silence:
    """Calls `tell` once, when a wait has lasted this many seconds. `stop` ends it."""

    __slots__ = ("_loop", "_seconds", "_since", "_tell", "_timer")

    def __init__(self, seconds: float, tell: Callable[[], None]) -> None:
        self._seconds = seconds
        self._tell = tell
        self._since: float | None = None
        # Both are there once there was anything to wait for.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    def wait(self) -> None:
        """A wait begins."""
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._seconds, self._look, loop)
        self._since = loop.time()

    def heard(self) -> None:
        """End the wait."""
        self._since = None

    def stop(self) -> None:
        """Report no silence any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        end = (now if self._since is None else self._since) + self._seconds
        if end > now:
            self._timer = loop.call_at(end, self._look, loop)
        else:
            self._tell()
