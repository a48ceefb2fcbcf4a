"""The interface between the ext_proc service and its gRPC transport.

Lives here: the interfaces between the processor and its gRPC server. Not here: their implementations
(`transport_grpcio.py`, `transport_http2.py`), and what the messages mean (`wire.py`, `stream.py`).

Invariant: `send` returns only once the transport accepted the message, and who is told by `send_now` that too much is
queued waits (`settle`), so that flow control reaches the sender.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Awaitable
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, Protocol

from antiphon.doors.tls import TlsFiles
from antiphon.errors import AntiphonError
from antiphon.types.transport import Headers

SERVICE = "envoy.service.ext_proc.v3.ExternalProcessor"
PROCESS = f"/{SERVICE}/Process"
HEALTH_CHECK = "/grpc.health.v1.Health/Check"
HEALTH_WATCH = "/grpc.health.v1.Health/Watch"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
STANDARD_STREAMS = (HEALTH_WATCH, REFLECTION)
"""Calls of gRPC's standard services that need the same right as `PROCESS`. Any peer may call `HEALTH_CHECK`."""

TransportName = Literal["auto", "grpcio", "http2"]


def chosen_transport(name: TransportName) -> TransportName:
    """The transport that is meant: with `auto` the fast one, where it is installed."""
    if name != "auto":
        return name
    return "http2" if importlib.util.find_spec("ngh2") is not None else "grpcio"


class GrpcStatus(IntEnum):
    """The status codes of gRPC that are used here."""

    OK = 0
    CANCELLED = 1
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


class StreamClosed(AntiphonError):
    """The peer is gone: nothing can be sent any more."""


class CallFailed(AntiphonError):
    """A call ends with this status instead of `OK`."""

    def __init__(self, status: GrpcStatus, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class MessageStream(Protocol):
    """One bidirectional stream of serialised messages."""

    def receive(self) -> Awaitable[bytes | None]:
        """The next message, or None when the peer has ended its side."""

    def receive_now(self) -> bytes | None:
        """The next message, if it is here already; None says no more than that it is not."""

    async def begin(self) -> None:
        """Tell the peer that its call is served here: until then it may hand the same call to another process.

        Raises `StreamClosed` when the peer is gone.
        """

    def send_now(self, message: bytes) -> bool | None:
        """Send one message, if that takes no waiting: None where it was not sent. False: it was, and before anything
        else is sent or done with the stream `settle` is to be waited for. Raises `StreamClosed` if nobody is there."""

    async def settle(self) -> None:
        """Wait until not too much is queued. Raises `StreamClosed` when the peer is gone."""

    async def send(self, message: bytes) -> None:
        """Send one message; waits for flow control. Raises `StreamClosed` when the peer is gone."""

    async def let_end(self, seconds: float) -> None:
        """All was sent: let the peer end the call, at most so long, so that its end here cuts nothing. What still comes
        is dropped. It may be waited for here, or by the transport after this has returned."""


@dataclass(frozen=True, slots=True)
class Presented:
    """What the peer says with a call: the `secret`, and the headers by which its own trace continues here."""

    secret: bytes | None
    trace: Headers = ()


TRACE_METADATA = ("traceparent", "tracestate")


class Calls(Protocol):
    """What is served. A transport calls `process` in a task per stream, and cancels it when the peer leaves."""

    def refusal(self, presented: Presented) -> CallFailed | None:
        """The error for a call of this peer, before the server buffers any of its bytes; None: it may be served."""

    async def process(self, stream: MessageStream, presented: Presented) -> None:
        """Serve one stream of `SERVICE` that is not refused. Raises `CallFailed`."""

    def check(self, message: bytes) -> bytes:
        """Answer one `HEALTH_CHECK`. Raises `CallFailed`."""

    async def standard(self, path: str, stream: MessageStream) -> None:
        """Serve one stream of `STANDARD_STREAMS` that is not refused. Raises `CallFailed`."""


class Transport(Protocol):
    """A gRPC server. It asks `Calls.refusal` before it serves a stream, and buffers almost nothing of a peer without
    the secret."""

    async def listen(self, address: str, tls: TlsFiles | None = None) -> str:
        """Serve at `unix:PATH` or `HOST:PORT` (there with TLS, where files are given); returns the bound address.

        Raises `ConfigError`.
        """

    def announce_end(self) -> None:
        """Ask every peer to open its next call on another connection, where the transport can; calls are served all the
        same, those that come here still too."""

    async def aclose(self, grace: float) -> None:
        """Stop listening; calls that do not end within `grace` seconds are cancelled."""
