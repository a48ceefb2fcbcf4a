"""What is known of a request and of its response so far, for whoever observes or performs the exchange.

Lives here: the values, and what follows from them. Not here: finding them out (the phases write them, each as soon as
it knows).

Invariant: what is not known yet has the value that a request has of which nothing will be known.
"""

from __future__ import annotations

from antiphon.engine.exchange.failure import Failure
from antiphon.engine.ports.actions import Usage
from antiphon.translation.builder import ResponseBuilder
from antiphon.translation.usage import add_usage
from antiphon.types.json import encode
from antiphon.types.response import UsageObject
from antiphon.types.tolerance import Tolerance
from antiphon.types.views import Manner


class Known:
    """What is known of one request."""

    def __init__(self) -> None:
        self.model = ""
        """The model asked for."""
        self.response_id = ""
        self.streaming = False
        """Whether the client asked for an event stream of ours."""
        self.stored = False
        """Whether the response is to be stored."""
        self.quoted = True
        """Whether the log may have an upstream's words."""
        self.makes_response = False
        """Whether it is for a response that this server makes."""
        self.needs_drive = False
        """Whether Envoy cannot make the model call: there is more to it than one call and its answer."""
        self.replayed = False
        """Whether its client is given what the same request made before."""
        self.manner = Manner()
        """How the answer is to come."""
        self.tolerance: Tolerance | None = None
        self.builder: ResponseBuilder | None = None
        """Where the response grows."""
        self.spent: UsageObject | None = None
        """What the model's turns before the one under way have used."""
        self.failure: Failure | None = None
        """Why it failed, for the log; the first cause counts."""
        self.fallback = ""
        """Which upstream has answered for another."""

    @property
    def unknown(self) -> tuple[str, ...]:
        """What was left out of the request since nobody here knows it."""
        return tuple(self.tolerance.names) if self.tolerance is not None else ()

    @property
    def left_out(self) -> tuple[str, ...]:
        """The unknown parts of the request, and the known tools that do not run here."""
        tools = self.tolerance.tools if self.tolerance is not None else ()
        return tuple(dict.fromkeys((*self.unknown, *tools)))

    @property
    def usage(self) -> Usage | None:
        """Token counts of all model calls, once they are known."""
        used = self.builder.response.usage if self.builder is not None else None
        if self.spent is not None:
            used = add_usage(self.spent, used)
        return Usage.of(used) if used is not None else None

    @property
    def output_bytes(self) -> int:
        """What the response has grown to."""
        return self.builder.size if self.builder is not None else 0

    @property
    def output_items(self) -> bytes:
        """The items that are done, as a JSON array."""
        return encode(self.builder.items) if self.builder is not None else b"[]"

    @property
    def events(self) -> int:
        """How many events its stream has so far."""
        return self.builder.number if self.builder is not None else 0
