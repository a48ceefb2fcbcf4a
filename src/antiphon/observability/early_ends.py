"""Who ended a relayed stream early, where Envoy is heard.

Lives here: what waits for Envoy's word, and words that come before anybody asks. Not here: Envoy's line
(`envoy/failure_lines.py`), how it gets here (`commands/up.py`), what is told of a response (`observation.py`).

A sidecar sees the end of Envoy's stream and not its cause; Envoy's line has it, a moment before or after.

Invariants: who asks is answered once, at the latest `_SECONDS` later or at the process's end; of words that nobody
asked for at most `_MOST` are kept. Where nobody is heard, nobody waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, NamedTuple

_SECONDS: Final = 2.0
_MOST: Final = 1000


class EarlyEnd(NamedTuple):
    """Envoy's word on one stream. `status` is what the client got, 0 where it got none."""

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
        """From now on `hear` is told what Envoy says."""
        self._loop = loop

    def ask(self, request_id: str, told: _Told) -> None:
        """Have `told` called with what Envoy says of this request, or with None where it says nothing."""
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
        """Envoy says this."""
        if self._loop is None or self._answer(request_id, end):
            return
        # Most are for other processes; this one's may not have ended here yet.
        self._heard.pop(request_id, None)
        self._heard[request_id] = (end, self._loop.time())
        if len(self._heard) > _MOST:
            del self._heard[next(iter(self._heard))]

    def close(self) -> None:
        """Nothing more is heard: answer all who ask."""
        self._loop = None
        for request_id in list(self._asked):
            while self._answer(request_id, None):
                pass

    def _answer(self, request_id: str, end: EarlyEnd | None) -> bool:
        """Answer who asked first, if anybody did. (A client may give several requests one id.)"""
        asked = self._asked.get(request_id)
        if not asked:
            return False
        told, timer = asked.pop(0)
        timer.cancel()
        if not asked:
            del self._asked[request_id]
        told(end)
        return True
