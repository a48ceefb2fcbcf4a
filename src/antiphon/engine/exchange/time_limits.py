"""Computes the deadlines of a whole response and of each of its phases.

Lives here: the start time of each limit, and the error for a missed deadline. Not here: the limits
(`config/limits.py`), the handling of a missed deadline (`response_exchange.py`), the timers of the runner and the
relay. The driver of an exchange passes in a monotonic time, and gets the next deadline back.

This module reads no clock. It detects new output only when the driver passes in the time. So the limit `no_output` is
exact to one eighth of its length.

Invariant: every phase that waits for another party has a deadline. Without a separate deadline, the whole response's
deadline applies.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from antiphon.config.limits import TimeoutSettings
from antiphon.errors import ApiError, UpstreamTimedOut

FOREVER: Final = float("inf")
FLOOD_PAUSE: Final = 0.02
"""Seconds between two chunks of flooding streams (many upstream bytes, no output). All flooding streams of a process
share this pace."""
_LOOKS: Final = 8


class Late(Enum):
    """The time limit that a response has exceeded."""

    RESPONSE = "response"
    OUTPUT = "output"
    ERROR_BODY = "error_body"


def too_late(late: Late, times: TimeoutSettings) -> ApiError:
    """The client's error for a response that exceeds its time limit."""
    if late is Late.RESPONSE:
        return UpstreamTimedOut(
            f"The response took longer than {times.response:g} seconds (timeouts.response).", code="response_timeout"
        )
    return UpstreamTimedOut(
        f"For {times.no_output:g} seconds nothing the upstream sent was any output (timeouts.no_output).",
        code="upstream_no_output",
    )


class Watch:
    """Tracks the deadlines of one exchange."""

    __slots__ = ("_began", "_limits", "_mark", "_output", "_phase", "next")

    def __init__(self, limits: TimeoutSettings) -> None:
        self._limits = limits
        self._began: float | None = None
        self._phase: object = None
        self._output = -1
        self._mark = 0.0
        self.next = FOREVER
        """The latest time for the next call of `look`."""

    def look(self, at: float, phase: object, late: Late | None, output: int) -> Late | None:
        """Return the limit that is exceeded at the time `at`, or None.

        `phase` is the exchange's phase. `late` is the limit of the phase, in addition to the response's limit. `output`
        is any number that changes when the upstream sends output.
        """
        limits = self._limits
        if self._began is None:
            self._began = at
        end = self._began + limits.response
        if phase != self._phase or output != self._output:
            self._phase, self._output, self._mark = phase, output, at
        if at >= end:
            return Late.RESPONSE
        self.next = end
        if late is None:
            return None
        seconds = limits.no_output if late is Late.OUTPUT else limits.error_body
        if at >= self._mark + seconds:
            return late
        steps = _LOOKS if late is Late.OUTPUT else 1
        self.next = min(end, self._mark + seconds, at + seconds / steps)
        return None
