"""Implements the reference transport, on `grpc.aio`.

This module has the gRPC server's options, its handlers and the stream adapter. `server.py` chooses the address and
controls access.

Invariants: every call ends with a status. An exception in one call never affects another call. The transport reads no
message of a peer without the secret, because gRPC's server would buffer a message of any size. So the transport does
not read a health check of a peer without the secret. Such a check returns the status of the whole process, whichever
service its message names.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from functools import partial

import grpc
import grpc.aio

from antiphon.doors.extproc.transport import (
    HEALTH_CHECK,
    PROCESS,
    STANDARD_STREAMS,
    TRACE_METADATA,
    CallFailed,
    Calls,
    Presented,
    StreamClosed,
)
from antiphon.doors.listening import TlsFiles
from antiphon.errors import ConfigError
from antiphon.types.transport import SECRET_HEADER

_OPTIONS = (
    # Envoy sends bodies in chunks of up to its buffer limit. The ext_proc server limits whole bodies itself, so gRPC's
    # message limit is off.
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_metadata_size", 64 * 1024),
    # One connection carries all streams of an Envoy worker thread, and a GOAWAY for "too many pings" would end them
    # all.
    ("grpc.max_concurrent_streams", 100_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    # An Envoy that hangs reads nothing and ends no call. Keepalive pings detect such an Envoy and end its connection
    # and its calls.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # Port sharing is off, because two processes on one port would not share the load, and the mistake would stay
    # hidden.
    ("grpc.so_reuseport", 0),
)

_CHECK_SECONDS = 5.0
_Context = grpc.aio.ServicerContext[bytes, bytes]
_STATUS = {code.value[0]: code for code in grpc.StatusCode}


class GrpcioTransport:
    """Implements `Transport` with `grpc.aio`."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._server: grpc.aio.Server | None = None

    async def listen(self, address: str, tls: TlsFiles | None = None) -> str:
        server = grpc.aio.server(options=_OPTIONS)
        server.add_generic_rpc_handlers(tuple(self._handlers()))
        try:
            if tls is None or address.startswith("unix:"):
                port = server.add_insecure_port(address)
            else:
                port = server.add_secure_port(address, _credentials(tls))
        except RuntimeError as error:
            raise ConfigError(f"cannot listen on {address}: {error}") from None
        if not port:
            raise ConfigError(f"cannot listen on {address}")
        await server.start()
        self._server = server
        return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"

    def announce_end(self) -> None:
        """Do nothing. gRPC's server sends a GOAWAY only when it also refuses calls. The health service reports the
        drain anyway."""

    async def aclose(self, grace: float) -> None:
        if self._server is not None:
            await self._server.stop(grace=grace)
            self._server = None

    def _handlers(self) -> Iterator[grpc.GenericRpcHandler[bytes, bytes]]:
        # Without serializers the handlers get and return bytes.
        handlers = {
            PROCESS: grpc.stream_stream_rpc_method_handler(self._process),
            HEALTH_CHECK: grpc.stream_unary_rpc_method_handler(self._check),
        }
        for path in STANDARD_STREAMS:
            handlers[path] = grpc.stream_stream_rpc_method_handler(partial(self._standard, path))
        for path, handler in handlers.items():
            _, service, method = path.split("/")
            yield grpc.method_handlers_generic_handler(service, {method: handler})

    async def _check(self, _: object, context: _Context) -> bytes:
        try:
            message: bytes | None = None
            if self._calls.refusal(_presented(context)) is None:
                async with asyncio.timeout(_CHECK_SECONDS):
                    message = await _GrpcioStream(context).receive()
            return self._calls.check(message or b"")
        except CallFailed as failed:
            await context.abort(_STATUS[failed.status], failed.message)
        except TimeoutError:
            await context.abort(
                grpc.StatusCode.DEADLINE_EXCEEDED, f"the call took longer than {_CHECK_SECONDS:g} seconds"
            )

    async def _process(self, _: object, context: _Context) -> None:
        presented = _presented(context)
        await self._serve(context, presented, self._calls.process(_GrpcioStream(context), presented))

    async def _standard(self, path: str, _: object, context: _Context) -> None:
        await self._serve(context, _presented(context), self._calls.standard(path, _GrpcioStream(context)))

    async def _serve(self, context: _Context, presented: Presented, work: Coroutine[object, object, None]) -> None:
        """Run a call if its peer has the secret. Without the secret, end the call with the status of the refusal."""
        try:
            if (refusal := self._calls.refusal(presented)) is not None:
                work.close()
                raise refusal
            await work
        except CallFailed as failed:
            await context.abort(_STATUS[failed.status], failed.message)


def _credentials(tls: TlsFiles) -> grpc.ServerCredentials:
    cert, key, client_ca = tls.contents()
    return grpc.ssl_server_credentials([(key, cert)], client_ca, require_client_auth=client_ca is not None)


class _GrpcioStream:
    """Implements `MessageStream` over a servicer context with raw bytes."""

    __slots__ = ("_begun", "_context")

    def __init__(self, context: _Context) -> None:
        self._context = context
        self._begun = False

    async def receive(self) -> bytes | None:
        message = await self._context.read()
        return None if message is grpc.aio.EOF else message  # type: ignore[attr-defined]

    def receive_now(self) -> bytes | None:
        # `grpc.aio` has no way to read without waiting.
        return None

    async def begin(self) -> None:
        if self._begun:
            return
        self._begun = True
        try:
            await self._context.send_initial_metadata(())
        except (grpc.aio.BaseError, asyncio.InvalidStateError) as error:
            raise StreamClosed(type(error).__name__) from None

    def send_now(self, message: bytes) -> bool | None:
        # `grpc.aio` accepts a message only from a caller that awaits the write.
        return None

    async def settle(self) -> None:
        """Do nothing, because `send` has already waited."""

    async def send(self, message: bytes) -> None:
        # `write` also sends the response head, unless `begin` has sent it.
        self._begun = True
        try:
            await self._context.write(message)
        except grpc.aio.BaseError as error:
            # The peer ended the call between the check and the write.
            raise StreamClosed(type(error).__name__) from None

    async def let_end(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                while await self.receive() is not None:
                    pass
        except TimeoutError:
            return


def _presented(context: _Context) -> Presented:
    secret: bytes | None = None
    trace: list[tuple[str, str]] = []
    for name, value in context.invocation_metadata() or ():
        if name == SECRET_HEADER and secret is None:
            secret = value.encode() if isinstance(value, str) else value
        elif name in TRACE_METADATA and isinstance(value, str):
            trace.append((name, value))
    return Presented(secret, tuple(trace))
