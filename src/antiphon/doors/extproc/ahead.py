"""How far a driven stream may be ahead of its client, whom nobody here can see.

Lives here: the arithmetic, and what one process lets all its streams be ahead together. Not here: waiting, and ending a
stream that has grown too large (`immediate_response.py`).

Envoy takes all that a streamed immediate response is given, whether its client reads or not, and tells us nothing
(reference: verified against 1.40.0). So a client is taken to read at `RATE`, several times as fast as models write, and
what was written beyond that is what it may be behind. A stream that is ahead by more than its share waits, which holds
its model back. A client that takes nothing at all is cut off by the listener (`timeouts.send`); until then Envoy holds
for it at most its share and what `RATE` gives, and never more than a stream may have as a whole.

Invariant: whatever the clients do, the shares of all streams together are at most `limits.drive_ahead_bytes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from antiphon.config.limits import LimitSettings

RATE: Final = 256 * 1024
"""Bytes a second that a client is taken to read: some 800 tokens."""
SHARE: Final = 8 << 20
"""Bytes that a stream may be ahead where there are few of them: a burst is no flood."""


class Ahead:
    """One per process. `clock` is any steady one, in seconds."""

    def __init__(self, limits: LimitSettings, clock: Callable[[], float]) -> None:
        self.limits = limits
        self.clock = clock
        self._streams = 0

    @property
    def share(self) -> int:
        """What one stream may be ahead now."""
        return min(SHARE, self.limits.drive_ahead_bytes // max(1, self._streams))

    @contextmanager
    def stream(self) -> Iterator[StreamAhead]:
        """One stream, from its beginning to its end."""
        self._streams += 1
        try:
            yield StreamAhead(self)
        finally:
            self._streams -= 1


class StreamAhead:
    """What one stream has written, and how much of it its client may not have read."""

    __slots__ = ("_ahead", "_at", "_behind", "_seen")

    def __init__(self, ahead: Ahead) -> None:
        self._ahead = ahead
        self._at = ahead.clock()
        self._seen = 0
        self._behind = 0.0

    def seconds(self, written: int) -> float:
        """How long to wait before more is written; `written` counts from the beginning."""
        now = self._ahead.clock()
        self._behind = max(0.0, self._behind - (now - self._at) * RATE) + written - self._seen
        self._at, self._seen = now, written
        return max(0.0, (self._behind - self._ahead.share) / RATE)
