"""Deadlines of a response, as a whole and for each phase.

Lives here: the marks that limits count from, and what is told when one is passed. Not here: the limits
(`config/limits.py`), what happens then (`response_exchange.py`), timers (the runner's, the relay's): whoever performs
an exchange tells it the time and is told when to do so again.

Any steady clock will do, and it is read by others: this is arithmetic. Output is noticed when the time is told, so a
limit on doing without it is exact to an eighth of itself.

Invariant: every phase in which somebody else must act has a limit of its own, and the response as a whole has one.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from antiphon.config.limits import TimeoutSettings
from antiphon.errors import ApiError, UpstreamTimedOut

FOREVER: Final = float("inf")
FLOOD_PAUSE: Final = 0.02
"""Seconds between two pieces of streams that flood, of all of them together."""
_LOOKS: Final = 8


class Late(Enum):
    """What has taken too long."""

    RESPONSE = "response"
    OUTPUT = "output"
    ERROR_BODY = "error_body"


def too_late(late: Late, times: TimeoutSettings) -> ApiError:
    """What is told of a response that has taken too long."""
    if late is Late.RESPONSE:
        return UpstreamTimedOut(
            f"The response took longer than {times.response:g} seconds (timeouts.response).", code="response_timeout"
        )
    return UpstreamTimedOut(
        f"For {times.no_output:g} seconds nothing the upstream sent was any output (timeouts.no_output).",
        code="upstream_no_output",
    )


class Watch:
    """The marks of one exchange."""

    __slots__ = ("_began", "_limits", "_mark", "_output", "_phase", "next")

    def __init__(self, limits: TimeoutSettings) -> None:
        self._limits = limits
        self._began: float | None = None
        self._phase: object = None
        self._output = -1
        self._mark = 0.0
        self.next = FOREVER
        """When to look again, at the latest."""

    def look(self, at: float, phase: object, late: Late | None, output: int) -> Late | None:
        """What has taken too long by now. `phase` is the phase the exchange is in, `late` the limit that holds in it
        beside the response's, `output` any number that changes with the output."""
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
