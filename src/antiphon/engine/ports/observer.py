"""Defines the port through which an exchange reports its model calls.

Lives here: the port. Not here: the code that turns the reported model calls into metrics and spans
(`observability/observation.py`).

Invariant: an exchange reports once per call, never per chunk. The observer does not influence the exchange. It only
returns trace headers, which the exchange adds to its model calls.
"""

from __future__ import annotations

from typing import Protocol

from antiphon.engine.ports.actions import Usage
from antiphon.engine.ports.quotas import Reservation
from antiphon.types.transport import Headers


class Observer(Protocol):
    """Records the model calls of one exchange, for metrics, traces and quotas.

    `reservation` is the request's reservation in its quotas, or None without quotas.
    """

    reservation: Reservation | None

    def trace(self) -> Headers:
        """Return the trace headers for a background job, so that the job continues this request's trace.

        When the result is empty, the job uses the trace headers that the client sent.
        """

    def call_began(self, upstream: str, operation: str, model: str, body: bytes) -> Headers:
        """Record that the exchange requests a model call. Returns the headers that continue the trace in the call.

        The headers are `traceparent` and `tracestate` of W3C Trace Context, or none. `body` is the body of the call.
        """

    def call_withdrawn(self) -> None:
        """Record that Antiphon does not make the requested model call. For example, a quota refuses the request.

        The observer then counts no call. Does nothing if no call is open.
        """

    def head_came(self, upstream: str, status: int) -> None:
        """Record the head of the call's answer. `status` is 0 when a proxy answered instead of the upstream."""

    def first_data_came(self) -> None:
        """Record that the first bytes of the answer's body have arrived."""

    def call_ended(self, fault: str = "") -> None:
        """Record the end of the model call. `fault` is a value of `UpstreamFault` when the call ended early.

        Only the first report of a call's end counts. The exchange does not report the end of a cancelled call, because
        the cause may be known only later.
        """

    def call_used(self, usage: Usage, *, estimated: bool = False) -> None:
        """Record the call's token usage. `estimated` means that the sidecar estimated the usage from the sizes of the
        call and its answer."""

    def compacted(self) -> None:
        """Record that the sidecar has compacted the conversation into a summary."""

    def prompts_compared(self, result: str, reason: str) -> None:
        """Record the result of a comparison of prompts: `cache_hit`, `cache_miss`, or why there was no comparison.

        `reason` is empty unless the result is `cache_miss`.
        """


class Unobserved:
    """Implements `Observer` and records nothing."""

    reservation: Reservation | None = None

    def trace(self) -> Headers:
        return ()

    def call_began(self, upstream: str, operation: str, model: str, body: bytes) -> Headers:
        return ()

    def call_withdrawn(self) -> None:
        pass

    def head_came(self, upstream: str, status: int) -> None:
        pass

    def first_data_came(self) -> None:
        pass

    def call_ended(self, fault: str = "") -> None:
        pass

    def call_used(self, usage: Usage, *, estimated: bool = False) -> None:
        pass

    def compacted(self) -> None:
        pass

    def prompts_compared(self, result: str, reason: str) -> None:
        pass


UNOBSERVED = Unobserved()
