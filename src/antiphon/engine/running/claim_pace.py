"""When a worker with free places asks for jobs.

Lives here: the times. Not here: asking (`workers.py`), who says that there may be jobs (`lookout.py`).

What this process did itself (a response queued, a place free again) is a reason to ask at once. What others say is one
to ask in a moment, drawn by lot and seldom: hundreds of processes hear the same, and one of them gets the job. Without
any reason a worker asks by itself, less and less often while there is nothing.

Invariant: unless this process gives reasons itself, it asks no more often than its pace, or every `_HEARD_APART`.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from antiphon.engine.ports.signals import Pace

_GROWTH = 1.5
_HEARD_APART = 0.25
_HEARD_SPREAD = 0.03


class ClaimPace:
    """Times are those of the event loop. `pace`: the one that holds just now; `draw`: a number from 0 to 1."""

    def __init__(self, pace: Callable[[], Pace], draw: Callable[[], float] = random.random) -> None:
        self._pace = pace
        self._draw = draw
        self._seconds = 0.0
        self._at = 0.0
        self._last = float("-inf")
        self._not_before = 0.0

    def left(self, now: float) -> float:
        """Seconds until it is time; 0 when it is."""
        return max(0.0, self._at - now, self._not_before - now)

    def hold_off(self, until: float) -> None:
        """Do not ask before this time, whatever happens."""
        self._not_before = until

    def soon(self) -> None:
        """This process has a reason to ask at once."""
        self._at = self._seconds = 0.0

    def heard(self, now: float) -> None:
        """Another process says that there are jobs."""
        self._at = min(self._at, max(self._last + _HEARD_APART, now + self._draw() * _HEARD_SPREAD))

    def asks(self, now: float) -> None:
        """It asks now; until something is found, the next time is later than this time was."""
        pace = self._pace()
        self._last = now
        self._seconds = min(pace.claim_most, max(pace.claim, self._seconds * _GROWTH))
        # Processes that began together do not go on asking together.
        self._at = now + self._seconds * (0.75 + 0.5 * self._draw())

    def found(self) -> None:
        """There was something, so there may be more before long."""
        self._seconds = 0.0
