"""Waits for Envoy's report on who ended a relayed stream early.

Lives here: requests that wait for a report, and reports that arrive before the request ends. Not here: Envoy's line
(`envoy/failure_lines.py`), its way to the worker (`commands/up.py`), the line of a response (`observation.py`).

A sidecar sees the end of Envoy's stream but not its cause. Envoy's line has the cause; it arrives a moment before or
after.

Invariants: each `ask` gets one answer, at the latest after `_SECONDS` or at the process's end. At most `_MOST` early
reports are kept. Without a source of reports no request waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, NamedTuple

_SECONDS: Final = 2.0
_MOST: Final = 1000


class EarlyEnd(NamedTuple):
    """Envoy's report on one stream. `status` is the client's HTTP status, 0 if it got none."""

    client_left: bool
    details: str
    status: int


_Told = Callable[[EarlyEnd | None], None]


class EarlyEnds:
    """One per process, for the event loop's thread alone."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asked: dict[str, list[tuple[_Told, asyncio.TimerHandle]]] = {}
        self._heard: dict[str, tuple[EarlyEnd, float]] = {}

    def listen(self, loop: asyncio.AbstractEventLoop) -> None:
        """Reports will come: from now on requests wait for them."""
        self._loop = loop

    def ask(self, request_id: str, told: _Told) -> None:
        """Call `told` with Envoy's report on this request, or with None if none comes."""
        loop = self._loop
        if loop is None:
            told(None)
            return
        end, at = self._heard.pop(request_id, (None, 0.0))
        if end is not None and loop.time() - at < _SECONDS:
            told(end)
            return
        timer = loop.call_later(_SECONDS, self._answer, request_id, None)
        self._asked.setdefault(request_id, []).append((told, timer))

    def hear(self, request_id: str, end: EarlyEnd) -> None:
        """Take a report of Envoy's."""
        if self._loop is None or self._answer(request_id, end):
            return
        # Most reports are about other processes' requests. The others may arrive before the request has ended here.
        self._heard.pop(request_id, None)
        self._heard[request_id] = (end, self._loop.time())
        if len(self._heard) > _MOST:
            del self._heard[next(iter(self._heard))]

    def close(self) -> None:
        """No more reports come: answer all that wait."""
        self._loop = None
        for request_id in list(self._asked):
            while self._answer(request_id, None):
                pass

    def _answer(self, request_id: str, end: EarlyEnd | None) -> bool:
        """Answer the first request that waits under this id; return whether there was one. (Several requests may have
        the same id.)"""
        asked = self._asked.get(request_id)
        if not asked:
            return False
        told, timer = asked.pop(0)
        timer.cancel()
        if not asked:
            del self._asked[request_id]
        told(end)
        return True
