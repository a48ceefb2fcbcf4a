"""The gRPC server of the external processor, on `grpc.aio`.

Lives here: the service, health, where it listens, limits towards a misbehaving peer, draining. Not here: the message
order (`stream.py`).

Invariants: a handler that fails aborts its call (ending it normally would let the request pass untranslated); an
exception in one stream never touches another; on TCP no call is served without the shared secret.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import socket
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import grpc
import grpc.aio
import structlog

from antiphon.doors.context import DoorContext
from antiphon.doors.extproc._pb import health_pb2
from antiphon.doors.extproc.answers import PeerLeft, ProtocolError
from antiphon.doors.extproc.relay import RelayTimeouts
from antiphon.doors.extproc.stream import StreamOptions, serve_stream
from antiphon.doors.extproc.transport import GrpcMessageStream
from antiphon.errors import ConfigError

__all__ = ["SERVICE", "ExtProcDoor", "Mode"]

_log = structlog.get_logger(__name__)

SERVICE = "envoy.service.ext_proc.v3.ExternalProcessor"
_HEALTH = "grpc.health.v1.Health"
_SECRET = "x-antiphon-secret"
_LONGEST_SOCKET_PATH = 107

_OPTIONS = (
    # Envoy hands bodies on in parts of up to its buffer limit; the door limits whole bodies itself.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_metadata_size", 64 * 1024),
    # One connection carries all streams of an Envoy worker, and a GOAWAY for "too many pings" would kill them all.
    ("grpc.max_concurrent_streams", 100_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    # Two processes on one port would not share the load, but hide that one of them is too many.
    ("grpc.so_reuseport", 0),
)

_NOTING_SECONDS = 10.0

_Context = grpc.aio.ServicerContext[bytes, bytes]
_HealthContext = grpc.aio.ServicerContext[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse]

Mode = Literal["auto", "relay", "drive"]


class ExtProcDoor:
    """Serves `ExternalProcessor/Process` and gRPC health.

    In mode `auto` Envoy makes the model call of a request with a single turn; hosted tools, which need more, do not
    exist yet, so it is the same as `relay`.
    """

    def __init__(self, context: DoorContext, *, mode: Mode, timeouts: RelayTimeouts | None = None) -> None:
        self._context = context
        self._options = StreamOptions(always_drive=mode == "drive", timeouts=timeouts or RelayTimeouts())
        self._server: grpc.aio.Server | None = None
        self._serving = True
        self._socket: Path | None = None

    async def start(self, address: str, mode: int = 0o600) -> str:
        """Listen on `unix:PATH` (with this file mode) or `HOST:PORT`; returns the bound address.

        Raises `ConfigError` when that is impossible, or would be open to everybody.
        """
        server = grpc.aio.server(options=_OPTIONS)
        server.add_generic_rpc_handlers(self._handlers())
        if address.startswith("unix:"):
            path = Path(address.removeprefix("unix:"))
            _make_room(path)
            previous = os.umask(0o777 & ~mode)
            try:
                _bind(server, address)
            finally:
                os.umask(previous)
            self._socket = path
        else:
            if self._context.secret is None:
                raise ConfigError(f"{address} is TCP: set sidecar.secret, or listen on unix:PATH")
            address = f"{address.rpartition(':')[0]}:{_bind(server, address)}"
        await server.start()
        self._server = server
        return address

    async def drain(self, seconds: float, *, notice: float = 0.0) -> bool:
        """Report NOT_SERVING, refuse new requests, wait for those in flight; False when time ran out.

        During `notice` seconds new requests are still served, so that an Envoy with other sidecars can notice first.
        """
        self._serving = False
        if notice > 0:
            await asyncio.sleep(notice)
        self._context.admission.close()
        return await self._context.admission.drained(seconds)

    async def aclose(self) -> None:
        """Stop; what is still in flight is cut, and its rows are written."""
        self._serving = False
        if self._server is not None:
            self._context.admission.close()
            await self._server.stop(grace=0.5)
            # gRPC has cancelled the handlers, but does not wait for them: they still note what was cut.
            await self._context.admission.drained(_NOTING_SECONDS)
            self._server = None
        if self._socket is not None:
            self._socket.unlink(missing_ok=True)
            self._socket = None

    def _handlers(self) -> Iterable[grpc.GenericRpcHandler[bytes, bytes]]:
        # Without (de)serialisers the handler gets and gives bytes.
        process = grpc.stream_stream_rpc_method_handler(self._process)
        check = grpc.unary_unary_rpc_method_handler(
            self._check,
            request_deserializer=health_pb2.HealthCheckRequest.FromString,
            response_serializer=health_pb2.HealthCheckResponse.SerializeToString,
        )
        return (
            grpc.method_handlers_generic_handler(SERVICE, {"Process": process}),
            grpc.method_handlers_generic_handler(_HEALTH, {"Check": check}),
        )

    async def _check(
        self, request: health_pb2.HealthCheckRequest, context: _HealthContext
    ) -> health_pb2.HealthCheckResponse:
        if request.service not in ("", SERVICE):
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        serving = self._serving and not self._context.admission.closed
        answer = health_pb2.HealthCheckResponse
        return answer(status=answer.SERVING if serving else answer.NOT_SERVING)

    async def _process(self, _: object, context: _Context) -> None:
        secret = self._context.secret
        if self._socket is None and (secret is None or not _presents(context, secret)):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, f"metadata {_SECRET} is missing or wrong")
        try:
            await serve_stream(self._context, GrpcMessageStream(context), self._options)
        except PeerLeft as left:
            await context.abort(grpc.StatusCode.CANCELLED, str(left))
        except ProtocolError as error:
            _log.error("extproc_misconfigured", error=str(error))
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        except Exception as error:
            _log.error("extproc_stream_failed", error=type(error).__name__, exc_info=True)
            await context.abort(grpc.StatusCode.INTERNAL, type(error).__name__)


def _bind(server: grpc.aio.Server, address: str) -> int:
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise ConfigError(f"cannot listen on {address}: {error}") from None
    if not port:
        raise ConfigError(f"cannot listen on {address}")
    return port


def _make_room(path: Path) -> None:
    """Remove the socket that a dead process left; refuse to take one that is in use."""
    if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH:
        raise ConfigError(f"unix:{path} is longer than {_LONGEST_SOCKET_PATH} bytes: use a shorter data folder")
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConfigError(f"unix:{path} exists and is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
        else:
            raise ConfigError(f"unix:{path} is in use: is another instance running?")


def _presents(context: _Context, secret: str) -> bool:
    for name, value in context.invocation_metadata() or ():
        if name == _SECRET:
            given = value.encode() if isinstance(value, str) else value
            return hmac.compare_digest(given, secret.encode())
    return False
