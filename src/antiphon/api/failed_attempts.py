"""Limits the failed attempts to present a token, in one process.

Lives here: the count and the error 429. Not here: the check of the tokens
(`api/admin_guard.py`, `console/sessions.py`).

Invariant: at most `most` attempts fail with another error within any `seconds`.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

from antiphon.errors import ApiError


class FailedAttempts:
    """The failed attempts of the last `seconds`. `clock` gives seconds."""

    def __init__(self, most: int = 10, *, seconds: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._most = most
        self._failed: deque[float] = deque()

    def add(self, message: str) -> None:
        """Count a failed attempt. Raises `ApiError` (429), whose message begins with `message`, after too many."""
        now = self._clock()
        while self._failed and now >= self._failed[0] + self._seconds:
            self._failed.popleft()
        if len(self._failed) >= self._most:
            wait = max(1, math.ceil(self._failed[0] + self._seconds - now))
            raise ApiError(
                f"{message} Try again in {wait} seconds.",
                status=429,
                type="rate_limit_exceeded",
                code="too_many_attempts",
                headers=(("retry-after", str(wait)),),
            )
        self._failed.append(now)
