"""Implements the ext_proc gRPC service, independently of its transport.

This module has the service, its address, its access control and its drain. `stream.py` decides the order of messages,
and `standard_services.py` serves health and reflection. The gRPC servers are in `transport_grpcio.py` and
`transport_http2.py`.

Invariants: a failing handler aborts its call, because Envoy would forward the untranslated request after a normal end.
An exception in one stream never affects another stream. A TCP client without the shared secret can make only health
checks.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import time
from pathlib import Path
from typing import Literal

import structlog

from antiphon.config.problems import extra_missing
from antiphon.doors.context import DoorContext
from antiphon.doors.extproc.answers import Accounting
from antiphon.doors.extproc.immediate_response import Ahead
from antiphon.doors.extproc.message_queues import PeerLeft
from antiphon.doors.extproc.opening import ProtocolError
from antiphon.doors.extproc.peer import StreamCut
from antiphon.doors.extproc.standard_services import StandardServices
from antiphon.doors.extproc.stream import ProcessorOptions, serve_stream
from antiphon.doors.extproc.transport import (
    SERVICE,
    CallFailed,
    Calls,
    GrpcStatus,
    MessageStream,
    Presented,
    Transport,
    TransportName,
    chosen_transport,
)
from antiphon.doors.listening import TlsFiles, make_room
from antiphon.errors import ConfigError
from antiphon.types.transport import SECRET_HEADER

__all__ = ["SERVICE", "ExtProcDoor", "Mode", "TransportName", "open_transport"]

_log = structlog.get_logger(__name__)

_NOTING_SECONDS = 10.0

Mode = Literal["auto", "relay", "drive"]


class ExtProcDoor:
    """Serves `ExternalProcessor/Process`, gRPC health and gRPC reflection.

    In the modes `auto` and `relay` Envoy makes the model call of a request that needs only one call. The sidecar makes
    the model calls of other requests (hosted tools, compaction, background) and, in mode `drive`, of all requests. The
    transport `auto` is `http2` if its library is installed, else `grpcio`. `tls` applies to TCP addresses.
    `ProcessorOptions` explains `end_seconds`, and `Accounting` explains `record_seconds`.
    """

    def __init__(
        self,
        context: DoorContext,
        *,
        mode: Mode,
        transport: TransportName = "auto",
        tls: TlsFiles | None = None,
        end_seconds: float = 1.0,
        record_seconds: float = 5.0,
    ) -> None:
        self._context = context
        self._options = ProcessorOptions(
            always_drive=mode == "drive",
            ahead=Ahead(self._context.limits, time.monotonic),
            accounting=Accounting(self._context.telemetry.cost, record_seconds),
            end_seconds=end_seconds,
        )
        self._transport_name = transport
        self._tls = tls
        self._transport: Transport | None = None
        self._socket: Path | None = None
        self._standard = StandardServices()

    async def start(self, address: str, mode: int = 0o600) -> str:
        """Listen on `unix:PATH` (with this file mode) or `HOST:PORT`. Returns the bound address.

        Raises `ConfigError` when the address is unusable. `start` also raises `ConfigError` for a TCP address without a
        shared secret, because any client could connect.
        """
        transport = open_transport(self._transport_name, self)
        if address.startswith("unix:"):
            path = Path(address.removeprefix("unix:"))
            make_room(path)
            previous = os.umask(0o777 & ~mode)
            try:
                bound = await transport.listen(address)
            finally:
                os.umask(previous)
            self._socket = path
        else:
            if self._context.secret is None:
                raise ConfigError(f"{address} is TCP: set sidecar.secret, or listen on unix:PATH")
            bound = await transport.listen(address, self._tls)
        self._transport = transport
        self._context.admission.on_leave.add(self._standard.leave)
        if self._context.admission.leaving:
            self._standard.leave()
        return bound

    def stay_healthy(self) -> None:
        """Report SERVING during the drain too, because Envoy has no other process to which it could send requests."""
        self._context.admission.on_leave.discard(self._standard.leave)

    async def drain(self, seconds: float, *, notice: float = 0.0) -> bool:
        """Drain the server: report NOT_SERVING, then refuse new requests and wait for those in flight. Returns False
        when the drain takes longer than `seconds`.

        During the first `notice` seconds the server still serves new requests. The server sends a GOAWAY on each
        connection immediately, so Envoy opens its next connections to healthy sidecars.
        """
        # Health reports NOT_SERVING before the GOAWAY is sent, so a peer that reconnects sees this status.
        self._context.admission.leave()
        # Yields once to the event loop, so that each `Watch` task can send NOT_SERVING.
        await asyncio.sleep(0)
        if self._transport is not None:
            self._transport.announce_end()
        return await self._context.admission.drain(seconds, notice)

    async def aclose(self) -> None:
        """Stop the server. Requests in flight are cut, and their responses are stored as failed."""
        self._context.admission.on_leave.discard(self._standard.leave)
        if self._transport is not None:
            self._context.admission.close()
            await self._transport.aclose(0.5)
            # The cancelled handlers may still run for a moment, because they store the failed responses.
            await self._context.admission.drained(_NOTING_SECONDS)
            self._transport = None
        if self._socket is not None:
            self._socket.unlink(missing_ok=True)
            self._socket = None

    # Methods that the transport calls.

    def check(self, message: bytes) -> bytes:
        """Answer one health check."""
        return self._standard.check(message)

    async def standard(self, path: str, stream: MessageStream) -> None:
        """Serve one `Watch` call or one reflection stream. The transport calls this method only after `refusal` has
        returned None."""
        await self._standard.serve(path, stream)

    def refusal(self, presented: Presented) -> CallFailed | None:
        """Return the error for a TCP peer without the secret, or None. On a Unix socket the file mode controls
        access."""
        wanted, secret = self._context.secret, presented.secret
        if self._socket is not None or (wanted and secret and hmac.compare_digest(secret, wanted.encode())):
            return None
        return CallFailed(
            GrpcStatus.UNAUTHENTICATED,
            (
                f"the gRPC metadata {SECRET_HEADER} is missing or wrong: Envoy must send the secret of the setting "
                "sidecar.secret"
            ),
        )

    async def process(self, stream: MessageStream, presented: Presented) -> None:
        """Serve one stream. The transport calls this method only after `refusal` has returned None."""
        try:
            await serve_stream(self._context, stream, self._options, presented.trace)
        except PeerLeft as left:
            raise CallFailed(GrpcStatus.CANCELLED, str(left)) from None
        except StreamCut as cut:
            raise CallFailed(GrpcStatus.UNAVAILABLE, str(cut)) from None
        except ProtocolError as error:
            _log.error("extproc_misconfigured", error=str(error))
            raise CallFailed(GrpcStatus.FAILED_PRECONDITION, str(error)) from None
        except Exception as error:
            _log.error("extproc_stream_failed", error=type(error).__name__, exc_info=True)
            raise CallFailed(GrpcStatus.INTERNAL, type(error).__name__) from None


def open_transport(name: TransportName, calls: Calls) -> Transport:
    """Create the transport with this name. Each transport's module is imported only when it is used, because the
    imports are slow."""
    if chosen_transport(name) == "grpcio":
        from antiphon.doors.extproc.transport_grpcio import GrpcioTransport

        return GrpcioTransport(calls)
    try:
        from antiphon.doors.extproc.transport_http2 import Http2Transport
    except ImportError:
        raise extra_missing("sidecar.transport: http2", "fast") from None
    return Http2Transport(calls)
