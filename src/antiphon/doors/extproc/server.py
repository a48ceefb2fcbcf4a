"""The gRPC server of the external processor, on `grpc.aio`.

Lives here: the service, health, limits towards a misbehaving peer, draining. Not here: the message order
(`stream.py`).

Invariants: a handler that fails aborts its call (ending it normally would let the request pass untranslated); an
exception in one stream never touches another; on TCP no call is served without the shared secret.
"""

from __future__ import annotations

import asyncio
import hmac
import os
from collections.abc import Iterable
from pathlib import Path

import grpc
import grpc.aio
import structlog

from antiphon.doors.context import DoorContext
from antiphon.doors.extproc._pb import health_pb2
from antiphon.doors.extproc.stream import Mode, ProtocolError, serve_stream
from antiphon.doors.extproc.transport import GrpcMessageStream
from antiphon.errors import ConfigError

__all__ = ["SERVICE", "ExtProcDoor"]

_log = structlog.get_logger(__name__)

SERVICE = "envoy.service.ext_proc.v3.ExternalProcessor"
_HEALTH = "grpc.health.v1.Health"
_SECRET = "x-antiphon-secret"

# Envoy may ping as often as it likes, and one connection carries all streams of an Envoy worker.
_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_metadata_size", 64 * 1024),
    ("grpc.max_concurrent_streams", 100_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.so_reuseport", 0),
)

_Context = grpc.aio.ServicerContext[bytes, bytes]


class ExtProcDoor:
    """Serves `ExternalProcessor/Process` and gRPC health."""

    def __init__(self, context: DoorContext, *, mode: Mode) -> None:
        self._context = context
        self._mode: Mode = mode
        self._server: grpc.aio.Server | None = None
        self._serving = True
        self._socket: Path | None = None

    async def start(self, address: str, mode: int = 0o600) -> str:
        """Listen on `unix:PATH` (with this file mode) or `HOST:PORT`; returns the bound address."""
        server = grpc.aio.server(options=_OPTIONS)
        server.add_generic_rpc_handlers(self._handlers())
        if address.startswith("unix:"):
            path = self._socket = Path(address.removeprefix("unix:"))
            path.unlink(missing_ok=True)
            previous = os.umask(0o777 & ~mode)
            try:
                bound = _bind(server, f"unix:{path}", address)
                await server.start()
            finally:
                os.umask(previous)
        else:
            port = _bind(server, address, address)
            await server.start()
            bound, address = port, f"{address.rpartition(':')[0]}:{port}"
        if not bound:
            raise ConfigError(f"cannot listen on {address}")
        self._server = server
        return address

    def _handlers(self) -> Iterable[grpc.GenericRpcHandler]:
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
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.aio.ServicerContext[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse],
    ) -> health_pb2.HealthCheckResponse:
        if request.service not in ("", SERVICE):
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        status = health_pb2.HealthCheckResponse.SERVING if self._serving else health_pb2.HealthCheckResponse.NOT_SERVING
        return health_pb2.HealthCheckResponse(status=status)

    async def _process(self, _: object, context: _Context) -> None:
        secret = self._context.secret
        if secret is not None and self._socket is None and not _presents(context, secret):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, f"metadata {_SECRET} is missing or wrong")
        try:
            await serve_stream(self._context, GrpcMessageStream(context), self._mode)
        except asyncio.CancelledError:
            raise
        except ProtocolError as error:
            _log.error("extproc_misconfigured", error=str(error))
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        except Exception as error:
            _log.error("extproc_stream_failed", error=type(error).__name__, exc_info=True)
            await context.abort(grpc.StatusCode.INTERNAL, type(error).__name__)

    async def drain(self, seconds: float) -> bool:
        """Report NOT_SERVING, refuse new requests, wait for those in flight; False when time ran out."""
        self._serving = False
        self._context.admission.close()
        return await self._context.admission.drained(seconds)

    async def aclose(self) -> None:
        """Stop; what is still in flight is cut."""
        self._serving = False
        if self._server is not None:
            await self._server.stop(grace=0.5)
            self._server = None
        if self._socket is not None:
            self._socket.unlink(missing_ok=True)


def _bind(server: grpc.aio.Server, target: str, shown: str) -> int:
    try:
        return server.add_insecure_port(target)
    except RuntimeError as error:
        raise ConfigError(f"cannot listen on {shown}: {error}") from None


def _presents(context: _Context, secret: str) -> bool:
    for name, value in context.invocation_metadata() or ():
        if name == _SECRET:
            given = value.encode() if isinstance(value, str) else value
            return hmac.compare_digest(given, secret.encode())
    return False
