"""Serves gRPC's standard services on the ext_proc server: health (`Check` and `Watch`) and reflection.

Lives here: gRPC's own servicers (`grpcio-health-checking`, `grpcio-reflection`) behind serialised messages, so that
both transports serve them, and the descriptors that reflection shows. Not here: who may call (`server.py`), sockets and
limits (`transport_grpcio.py`, `transport_http2.py`).

The servicers are loaded with the first `Watch` or reflection call. They import `grpc`, which takes 9 MiB and 30 ms, and
the transport `http2` does without it. So `Check`, which Envoy calls every second, is answered without them.

Invariant: after `leave` the process and the ext_proc service stay NOT_SERVING, and every `Watch` has been sent that.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

from google.protobuf import descriptor_pb2, struct_pb2, text_format
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health_pb2

from antiphon.doors.extproc._pb import ext_proc_pb2
from antiphon.doors.extproc.transport import (
    HEALTH_WATCH,
    SERVICE,
    CallFailed,
    GrpcStatus,
    MessageStream,
    StreamClosed,
)

if TYPE_CHECKING:
    import grpc

_Request = TypeVar("_Request", bound=Message)
_SERVICES: Final = ("", SERVICE)
"""The services with a health status: the whole process, and the ext_proc service. Both are always equal."""
_SHOWN_FILE: Final = "envoy/service/ext_proc/v3/external_processor.proto"


class StandardServices:
    """Health and reflection of one server. Both services are SERVING until `leave`."""

    def __init__(self) -> None:
        self._status: health_pb2.HealthCheckResponse.ServingStatus = health_pb2.HealthCheckResponse.SERVING
        # Typed loosely: gRPC's stubs lack the asyncio servicers.
        self._watches: Any = None
        self._reflection: Any = None

    async def leave(self) -> None:
        """Report NOT_SERVING from now on, and send that to every `Watch`."""
        self._status = health_pb2.HealthCheckResponse.NOT_SERVING
        if self._watches is not None:
            await self._watches.enter_graceful_shutdown()

    def check(self, message: bytes) -> bytes:
        """Answer one `Check`. Raises `CallFailed`: NOT_FOUND for an unknown service, INTERNAL for a message that cannot
        be decoded."""
        if _decoded(health_pb2.HealthCheckRequest, message).service not in _SERVICES:
            raise CallFailed(GrpcStatus.NOT_FOUND, "unknown service")
        answer: bytes = health_pb2.HealthCheckResponse(status=self._status).SerializeToString()
        return answer

    async def serve(self, path: str, stream: MessageStream) -> None:
        """Serve one call of `Watch` or of reflection, by its path. Raises `CallFailed`."""
        try:
            if path == HEALTH_WATCH:
                await self._watch(stream)
            else:
                await self._reflect(stream)
        except StreamClosed as closed:
            raise CallFailed(GrpcStatus.CANCELLED, str(closed)) from None

    async def _watch(self, stream: MessageStream) -> None:
        """Send the status now and whenever it changes. It ends when the peer cancels the call, or the server stops."""
        request = _decoded(health_pb2.HealthCheckRequest, await stream.receive() or b"")
        if self._watches is None:
            from grpc_health.v1 import health

            servicer = health.aio.HealthServicer()  # type: ignore[attr-defined]
            for service in _SERVICES:
                await servicer.set(service, self._status)
            # `leave` may have come in between.
            self._watches = self._watches or servicer
            if self._status == health_pb2.HealthCheckResponse.NOT_SERVING:
                await self._watches.enter_graceful_shutdown()
        await self._watches.Watch(request, _WatchContext(stream))

    async def _reflect(self, stream: MessageStream) -> None:
        """Answer each request of a reflection stream."""
        from grpc_health.v1 import health
        from grpc_reflection.v1alpha import reflection, reflection_pb2

        if self._reflection is None:
            shown = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
            pool = _descriptors(reflection_pb2.DESCRIPTOR)
            self._reflection = reflection.aio.ReflectionServicer(shown, pool=pool)  # type: ignore[attr-defined]
        requests = _decoded_each(reflection_pb2.ServerReflectionRequest, stream)
        async for answer in self._reflection.ServerReflectionInfo(requests, None):
            await stream.send(answer.SerializeToString())


class _WatchContext:
    """What the servicer of `Watch` uses of gRPC's servicer context."""

    def __init__(self, stream: MessageStream) -> None:
        self._stream = stream

    async def write(self, message: Message) -> None:
        await self._stream.send(message.SerializeToString())

    async def abort(self, code: grpc.StatusCode, details: str = "") -> NoReturn:
        raise CallFailed(GrpcStatus(code.value[0]), details)


async def _decoded_each(kind: type[_Request], stream: MessageStream) -> AsyncIterator[_Request]:
    while (message := await stream.receive()) is not None:
        yield _decoded(kind, message)


def _decoded(kind: type[_Request], message: bytes) -> _Request:
    request = kind()
    try:
        request.ParseFromString(message)
    except DecodeError:
        raise CallFailed(GrpcStatus.INTERNAL, f"not a {kind.DESCRIPTOR.name}") from None
    return request


def _descriptors(reflection: FileDescriptor) -> DescriptorPool:
    """The files that reflection shows, and no others of the process.

    The generated messages have a package of Antiphon's, so that a library with Envoy's messages can be loaded in the
    same process. A client of reflection needs the names on the wire: here they have Envoy's package.
    """
    pool = DescriptorPool()
    for file in (struct_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR, reflection):
        pool.Add(_proto(file))
    ours = ext_proc_pb2.DESCRIPTOR
    text = text_format.MessageToString(_proto(ours)).replace(ours.package, SERVICE.rpartition(".")[0])
    shown = text_format.Parse(text, descriptor_pb2.FileDescriptorProto())
    shown.name = _SHOWN_FILE
    pool.Add(shown)
    return pool


def _proto(file: FileDescriptor) -> descriptor_pb2.FileDescriptorProto:
    proto = descriptor_pb2.FileDescriptorProto()
    file.CopyToProto(proto)
    return proto
