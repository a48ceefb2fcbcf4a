"""Defines the interface between the ext_proc service and its gRPC transport.

`Calls` is the service's side, and `Transport` is the gRPC server's side. `transport_grpcio.py` and `transport_http2.py`
implement `Transport`. `wire.py` and `stream.py` handle the content of messages.

Invariant: `send` returns only after the transport has accepted the message. A sender must await `settle` when
`send_now` reports a full queue, so a slow peer slows the sender down.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Awaitable
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, Protocol

from antiphon.doors.listening import TlsFiles
from antiphon.errors import AntiphonError
from antiphon.types.transport import Headers

SERVICE = "envoy.service.ext_proc.v3.ExternalProcessor"
PROCESS = f"/{SERVICE}/Process"
HEALTH_CHECK = "/grpc.health.v1.Health/Check"
HEALTH_WATCH = "/grpc.health.v1.Health/Watch"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
STANDARD_STREAMS = (HEALTH_WATCH, REFLECTION)
"""The paths of gRPC's standard streaming services. Calls of these services require the shared secret, as `PROCESS`
does. Any peer may call `HEALTH_CHECK`."""

TransportName = Literal["auto", "grpcio", "http2"]


def chosen_transport(name: TransportName) -> TransportName:
    """Resolve `auto` to `http2` if its library is installed, else to `grpcio`. Returns other names unchanged."""
    if name != "auto":
        return name
    return "http2" if importlib.util.find_spec("ngh2") is not None else "grpcio"


class GrpcStatus(IntEnum):
    """The gRPC status codes that the sidecar uses."""

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
    """Raised when the peer has ended the call, so that no message can be sent."""


class CallFailed(AntiphonError):
    """Raised to end a call with this status instead of `OK`."""

    def __init__(self, status: GrpcStatus, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class MessageStream(Protocol):
    """One bidirectional stream of serialized messages."""

    def receive(self) -> Awaitable[bytes | None]:
        """Return the next message, or None when the peer has ended its side."""

    def receive_now(self) -> bytes | None:
        """Return the next message if it has arrived, else None. None does not mean that the stream has ended."""

    async def begin(self) -> None:
        """Confirm to the peer that this process serves the call. Before this confirmation, the peer may send the same
        call to another process."""

    def send_now(self, message: bytes) -> bool | None:
        """Send one message, if that needs no waiting. Returns None when the message was not sent. Returns False when
        the message was sent and filled the queue. The caller must then await `settle` before any other operation.
        Raises `StreamClosed` when the peer has ended the call."""

    async def settle(self) -> None:
        """Wait until the queue has room. Raises `StreamClosed` when the peer has ended the call."""

    async def send(self, message: bytes) -> None:
        """Send one message, and wait while flow control blocks it. Raises `StreamClosed` when the peer has ended the
        call."""

    async def let_end(self, seconds: float) -> None:
        """Let the peer end the call within `seconds` after the last message, so that no byte is lost. Messages that
        still arrive are dropped. An implementation may wait in this method, or return immediately and wait in the
        background."""


@dataclass(frozen=True, slots=True)
class Presented:
    """The metadata that the peer sent with a call: the `secret`, and the headers that continue its trace."""

    secret: bytes | None
    trace: Headers = ()


TRACE_METADATA = ("traceparent", "tracestate")


class Calls(Protocol):
    """The methods of the ext_proc service that its transport calls. The transport runs `process` in one task per
    stream, and cancels it when the peer ends the call."""

    def refusal(self, presented: Presented) -> CallFailed | None:
        """Return the error for a call of this peer, or None when the call may be served. The transport calls this
        method before it buffers any of the call's bytes."""

    async def process(self, stream: MessageStream, presented: Presented) -> None:
        """Serve one stream of `SERVICE`, after `refusal` has returned None. Raises `CallFailed`."""

    def check(self, message: bytes) -> bytes:
        """Answer one `HEALTH_CHECK` call. Raises `CallFailed`."""

    async def standard(self, path: str, stream: MessageStream) -> None:
        """Serve one stream of `STANDARD_STREAMS`, after `refusal` has returned None. Raises `CallFailed`."""


class Transport(Protocol):
    """A gRPC server. The transport calls `Calls.refusal` before it serves a stream, and buffers almost no bytes of a
    peer without the sidecar's shared secret."""

    async def listen(self, address: str, tls: TlsFiles | None = None) -> str:
        """Listen on `unix:PATH` or `HOST:PORT`. A TCP port uses TLS if `tls` is set. Returns the bound address.

        Raises `ConfigError`.
        """

    def announce_end(self) -> None:
        """Ask every peer to open its next call on another connection, if the transport supports that. Open connections
        still serve calls."""

    async def aclose(self, grace: float) -> None:
        """Stop listening. Calls that do not end within `grace` seconds are cancelled."""
