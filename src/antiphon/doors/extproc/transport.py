"""Defines the interface between the ext_proc service and its gRPC transport.

Lives here: the protocols of the service and of the gRPC server. Not here: their implementations (`transport_grpcio.py`,
`transport_http2.py`), the meaning of messages (`wire.py`, `stream.py`).

Invariant: `send` returns only after the transport has accepted the message. A sender whose `send_now` reports a full
queue waits (`settle`), so flow control reaches the sender.
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
    """The transport to use: `auto` selects the fast one, if it is installed."""
    if name != "auto":
        return name
    return "http2" if importlib.util.find_spec("ngh2") is not None else "grpcio"


class GrpcStatus(IntEnum):
    """The gRPC status codes in use."""

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
    """The peer has left: no message can be sent any more."""


class CallFailed(AntiphonError):
    """A call ends with this status instead of `OK`."""

    def __init__(self, status: GrpcStatus, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class MessageStream(Protocol):
    """One bidirectional stream of serialized messages."""

    def receive(self) -> Awaitable[bytes | None]:
        """The next message, or None when the peer has ended its side."""

    def receive_now(self) -> bytes | None:
        """The next message, if it has arrived. None only means that it has not."""

    async def begin(self) -> None:
        """Confirm to the peer that this process serves the call: before this, it may send the same call to another
        process.

        Raises `StreamClosed` when the peer has left.
        """

    def send_now(self, message: bytes) -> bool | None:
        """Send one message, if that needs no waiting; None: it was not sent. False: it was sent, but the caller must
        await `settle` before any other operation on the stream. Raises `StreamClosed` when the peer has left."""

    async def settle(self) -> None:
        """Wait until the queue has room. Raises `StreamClosed` when the peer has left."""

    async def send(self, message: bytes) -> None:
        """Send one message; waits for flow control. Raises `StreamClosed` when the peer has left."""

    async def let_end(self, seconds: float) -> None:
        """All messages are sent: let the peer end the call within `seconds`, so that no byte is cut off. Messages that
        still come are dropped. The wait may happen here, or in the transport after this returns."""


@dataclass(frozen=True, slots=True)
class Presented:
    """The peer's metadata of a call: the `secret`, and the headers that continue its trace."""

    secret: bytes | None
    trace: Headers = ()


TRACE_METADATA = ("traceparent", "tracestate")


class Calls(Protocol):
    """The served calls. A transport runs `process` in a task per stream, and cancels it when the peer leaves."""

    def refusal(self, presented: Presented) -> CallFailed | None:
        """The error for a call of this peer, before the server buffers any of its bytes; None: it may be served."""

    async def process(self, stream: MessageStream, presented: Presented) -> None:
        """Serve one stream of `SERVICE` that is not refused. Raises `CallFailed`."""

    def check(self, message: bytes) -> bytes:
        """Answer one `HEALTH_CHECK`. Raises `CallFailed`."""

    async def standard(self, path: str, stream: MessageStream) -> None:
        """Serve one stream of `STANDARD_STREAMS` that is not refused. Raises `CallFailed`."""


class Transport(Protocol):
    """A gRPC server. It calls `Calls.refusal` before it serves a stream, and buffers almost no bytes of a peer without
    the secret."""

    async def listen(self, address: str, tls: TlsFiles | None = None) -> str:
        """Serve at `unix:PATH` or `HOST:PORT` (there with TLS, if files are given). Returns the bound address.

        Raises `ConfigError`.
        """

    def announce_end(self) -> None:
        """Ask every peer to open its next call on another connection, if the transport supports it. Calls are still
        served."""

    async def aclose(self, grace: float) -> None:
        """Stop listening; calls that do not end within `grace` seconds are cancelled."""
