"""Serves gRPC's standard services on the ext_proc server: health (`Check` and `Watch`) and reflection.

Lives here: health, gRPC's own servicer of reflection (`grpcio-reflection`) behind serialised messages, so that both
transports serve them, and the descriptors that reflection shows. Not here: who may call (`server.py`), sockets and
limits (`transport_grpcio.py`, `transport_http2.py`).

That servicer is loaded with the first reflection call. It imports `grpc`, which takes 9 MiB and 30 ms, and the
transport `http2` does without it.

Health is not gRPC's servicer: that one sends under a lock, so one peer that reads nothing would stop a drain.

Invariants: after `leave` the process and the ext_proc service stay NOT_SERVING, and every `Watch` is sent that. No call
waits for another one's peer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final, TypeVar

from google.protobuf import any_pb2, descriptor_pb2, struct_pb2, text_format, wrappers_pb2
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

_Request = TypeVar("_Request", bound=Message)
_SERVICES: Final = ("", SERVICE)
"""The services with a health status: the whole process, and the ext_proc service. Both are always equal."""
_SHOWN_FILE: Final = "envoy/service/ext_proc/v3/external_processor.proto"


class StandardServices:
    """Health and reflection of one server. Both services are SERVING until `leave`."""

    def __init__(self) -> None:
        self._left = asyncio.Event()
        # Typed loosely: gRPC's stubs lack the asyncio servicers.
        self._reflection: Any = None

    def leave(self) -> None:
        """Report NOT_SERVING from now on, and to every `Watch`. It waits for none: a peer may read nothing."""
        self._left.set()

    def check(self, message: bytes) -> bytes:
        """Answer one `Check`. Raises `CallFailed`: NOT_FOUND for an unknown service, INTERNAL for a message that cannot
        be decoded."""
        if _decoded(health_pb2.HealthCheckRequest, message).service not in _SERVICES:
            raise CallFailed(GrpcStatus.NOT_FOUND, "unknown service")
        return _health("NOT_SERVING" if self._left.is_set() else "SERVING")

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
        if request.service not in _SERVICES:
            await stream.send(_health("SERVICE_UNKNOWN"))
        else:
            if not self._left.is_set():
                await stream.send(_health("SERVING"))
                await self._left.wait()
            await stream.send(_health("NOT_SERVING"))
        await asyncio.Event().wait()

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


def _health(status: str) -> bytes:
    answer: bytes = health_pb2.HealthCheckResponse(status=status).SerializeToString()
    return answer


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
    imported = (any_pb2.DESCRIPTOR, struct_pb2.DESCRIPTOR, wrappers_pb2.DESCRIPTOR)
    for file in (*imported, health_pb2.DESCRIPTOR, reflection):
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
