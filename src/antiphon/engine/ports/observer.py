"""The port through which an exchange reports its model calls.

Lives here: the port. Not here: what becomes of it (`observability/observation.py`).

Invariant: an exchange tells once per call, never per chunk, and nothing it is told changes what it does; the trace
context that goes with a call is text that it passes on.
"""

from __future__ import annotations

from typing import Protocol

from antiphon.engine.ports.actions import Usage
from antiphon.types.transport import Headers


class Observer(Protocol):
    """Who watches one exchange."""

    def trace(self) -> Headers:
        """The headers that continue the trace in what is left for later; none: those that the client sent."""

    def call_began(self, upstream: str, operation: str, model: str, body: bytes) -> Headers:
        """A model call is asked for; the headers are those that continue the trace in it."""

    def head_came(self, upstream: str, status: int) -> None:
        """Its answer begins; 0: a proxy in between answered, since nobody else did."""

    def first_data_came(self) -> None:
        """The first bytes of its body are there."""

    def call_ended(self, fault: str = "") -> None:
        """It is over; `fault` says why before its end. What was said first holds. The exchange does not call
        this for a cancelled call: its cause may be known only later."""

    def call_used(self, usage: Usage, *, estimated: bool = False) -> None:
        """What the call took, as the upstream counted it, or `estimated` from sizes where it did not say."""

    def compacted(self) -> None:
        """The conversation was summed up."""


class Unobserved:
    """Nobody watches."""

    def trace(self) -> Headers:
        return ()

    def call_began(self, upstream: str, operation: str, model: str, body: bytes) -> Headers:
        return ()

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


UNOBSERVED = Unobserved()
