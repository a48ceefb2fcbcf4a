"""gRPC's own services on the ext_proc server: health now, health as it changes, reflection."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from antiphon.doors.extproc.standard_services import StandardServices
from antiphon.doors.extproc.transport import (
    HEALTH_CHECK,
    HEALTH_WATCH,
    PROCESS,
    REFLECTION,
    SERVICE,
    CallFailed,
    GrpcStatus,
    StreamClosed,
)


class _Stream:
    """A stream with these messages of its peer; it keeps all sent messages."""

    def __init__(self, *messages: bytes, gone: bool = False) -> None:
        self._messages = list(messages)
        self._gone = gone
        self.sent: list[bytes] = []
        self.news = asyncio.Event()

    async def receive(self) -> bytes | None:
        return self._messages.pop(0) if self._messages else None

    async def send(self, message: bytes) -> None:
        if self._gone:
            raise StreamClosed("it left")
        self.sent.append(message)
        self.news.set()

    @property
    def statuses(self) -> list[str]:
        answers = [health_pb2.HealthCheckResponse.FromString(one) for one in self.sent]
        return [health_pb2.HealthCheckResponse.ServingStatus.Name(one.status) for one in answers]


def _asked(service: str) -> bytes:
    return bytes(health_pb2.HealthCheckRequest(service=service).SerializeToString())


def test_methods_have_the_names_that_peers_call() -> None:
    assert PROCESS == "/envoy.service.ext_proc.v3.ExternalProcessor/Process"
    assert (HEALTH_CHECK, HEALTH_WATCH) == ("/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch")
    assert REFLECTION == "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


@pytest.mark.parametrize("service", ["", SERVICE])
async def test_a_check_is_answered_for_the_process_and_for_the_service(service: str) -> None:
    services = StandardServices()
    before = health_pb2.HealthCheckResponse.FromString(services.check(_asked(service)))
    services.leave()
    services.leave()
    after = health_pb2.HealthCheckResponse.FromString(services.check(_asked(service)))
    assert (before.status, after.status) == (1, 2)


@pytest.mark.parametrize(
    ("message", "status"), [(_asked("another"), GrpcStatus.NOT_FOUND), (b"\xff\xff", GrpcStatus.INTERNAL)]
)
async def test_a_check_of_something_else_fails(message: bytes, status: GrpcStatus) -> None:
    with pytest.raises(CallFailed) as failed:
        StandardServices().check(message)
    assert failed.value.status is status and failed.value.message == str(failed.value) != ""


@pytest.mark.parametrize(("leaves_first", "statuses"), [(False, ["SERVING"]), (True, ["NOT_SERVING"])])
async def test_a_watch_tells_what_is_and_what_changes(leaves_first: bool, statuses: list[str]) -> None:
    services, stream = StandardServices(), _Stream(_asked(SERVICE))
    if leaves_first:
        services.leave()
    watching = asyncio.ensure_future(services.serve(HEALTH_WATCH, cast(Any, stream)))
    await stream.news.wait()
    assert stream.statuses == statuses
    if not leaves_first:
        stream.news.clear()
        services.leave()
        await stream.news.wait()
        assert stream.statuses == [*statuses, "NOT_SERVING"]
    assert not watching.done(), "its peer ends it"
    watching.cancel()


async def test_a_watch_of_something_else_knows_nothing_and_goes_on() -> None:
    services, stream = StandardServices(), _Stream(_asked("another"))
    watching = asyncio.ensure_future(services.serve(HEALTH_WATCH, cast(Any, stream)))
    await stream.news.wait()
    services.leave()
    await asyncio.sleep(0)
    assert stream.statuses == ["SERVICE_UNKNOWN"] and not watching.done()
    watching.cancel()


async def test_a_peer_that_has_left_ends_its_call() -> None:
    with pytest.raises(CallFailed) as failed:
        await StandardServices().serve(HEALTH_WATCH, cast(Any, _Stream(b"", gone=True)))
    assert failed.value.status is GrpcStatus.CANCELLED


async def test_reflection_answers_each_request_with_envoys_names() -> None:
    listed = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
    named = "envoy.service.ext_proc.v3.ProcessingRequest"
    found = reflection_pb2.ServerReflectionRequest(file_containing_symbol=named).SerializeToString()
    services = StandardServices()
    for _ in range(2):
        stream = _Stream(listed, found)
        await services.serve(REFLECTION, cast(Any, stream))
        one, other = (reflection_pb2.ServerReflectionResponse.FromString(each) for each in stream.sent)
        assert {each.name for each in one.list_services_response.service} == {
            *(SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection")
        }
        assert b"envoy.service.ext_proc.v3" in b"".join(other.file_descriptor_response.file_descriptor_proto)
    with pytest.raises(CallFailed) as failed:
        await services.serve(REFLECTION, cast(Any, _Stream(b"\xff\xff")))
    assert failed.value.status is GrpcStatus.INTERNAL
