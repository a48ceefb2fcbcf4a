"""Serves gRPC's standard services on the ext_proc server: health (`Check` and `Watch`) and reflection.

Both services work on serialised messages, so that both transports can serve them. Reflection uses the servicer of the
package `grpcio-reflection`. `server.py` controls access. The transports handle sockets and limits
(`transport_grpcio.py`, `transport_http2.py`).

The first reflection call loads the reflection servicer. The import of `grpc` with that servicer takes 9 MiB and 30 ms,
and the transport `http2` does not need `grpc`.

This module implements the health service itself. gRPC's health servicer sends under a lock, so one peer that reads
nothing would stop a drain.

Invariants: after `leave` the process and the ext_proc service stay NOT_SERVING, and every `Watch` call sends this
status. No call waits for the peer of another call.
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
"""The names of the services that have a health status: the whole process, and the ext_proc service. Both services
always have the same status."""
_SHOWN_FILE: Final = "envoy/service/ext_proc/v3/external_processor.proto"


class StandardServices:
    """Serves health and reflection for one server. The health status is SERVING until `leave`."""

    def __init__(self) -> None:
        self._left = asyncio.Event()
        # The type is `Any`, because gRPC's stubs lack the asyncio servicers.
        self._reflection: Any = None

    def leave(self) -> None:
        """Switch the health status to NOT_SERVING and notify every `Watch` call. Does not wait, because a peer may read
        nothing."""
        self._left.set()

    def check(self, message: bytes) -> bytes:
        """Answer one `Check` call. Raises `CallFailed` with NOT_FOUND for an unknown service, and with INTERNAL for a
        message that cannot be decoded."""
        if _decoded(health_pb2.HealthCheckRequest, message).service not in _SERVICES:
            raise CallFailed(GrpcStatus.NOT_FOUND, "unknown service")
        return _health("NOT_SERVING" if self._left.is_set() else "SERVING")

    async def serve(self, path: str, stream: MessageStream) -> None:
        """Serve one `Watch` call or one reflection call, chosen by its path. Raises `CallFailed`."""
        try:
            if path == HEALTH_WATCH:
                await self._watch(stream)
            else:
                await self._reflect(stream)
        except StreamClosed as closed:
            raise CallFailed(GrpcStatus.CANCELLED, str(closed)) from None

    async def _watch(self, stream: MessageStream) -> None:
        """Send the health status immediately and after each change. Runs until the peer cancels the call or the server
        stops."""
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
    """Return a pool with the protobuf descriptors that reflection shows. The pool contains no other descriptors of the
    process.

    The generated protobuf classes belong to a protobuf package that Antiphon named. So the same process can also load a
    library that registers Envoy's messages under Envoy's package name. A reflection client needs the names that Envoy
    uses on the wire, so this pool uses Envoy's package name.
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
