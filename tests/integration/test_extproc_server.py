"""The gRPC server around the streams: where it listens, who may call, health, draining, pings."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
from pathlib import Path

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from antiphon.doors.extproc._pb import ext_proc_pb2 as pb
from antiphon.doors.extproc.server import SERVICE, ExtProcDoor, TransportName
from antiphon.doors.extproc.transport import HEALTH_WATCH, STANDARD_STREAMS, GrpcStatus
from antiphon.errors import ConfigError
from antiphon.types.transport import SECRET_HEADER
from tests.support.chat_server import completion
from tests.support.extproc_door import JSON, OpenDoor, open_door, request_body
from tests.support.fake_envoy import DEADLINE, FakeEnvoy
from tests.support.http2_peer import Http2Peer

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


async def _health(channel: grpc.aio.Channel, service: str = "") -> int:
    """Health as the public client library asks for it."""
    check = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    answer: health_pb2.HealthCheckResponse = await check(health_pb2.HealthCheckRequest(service=service))
    return int(answer.status)


# Listening


@pytest.mark.parametrize("mode", [0o600, 0o660])
async def test_the_socket_has_the_asked_mode(tmp_path: Path, mode: int) -> None:
    async with open_door(tmp_path) as opened:
        door = ExtProcDoor(opened.context, mode="auto")
        path = tmp_path / "other.sock"
        before = os.umask(0o022)
        os.umask(before)
        assert await door.start(f"unix:{path}", mode) == f"unix:{path}"
        assert stat.S_IMODE(path.stat().st_mode) == mode
        after = os.umask(before)
        assert after == before
        await door.aclose()
        assert not path.exists()


async def test_a_dead_processs_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "grpc.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with open_door(tmp_path) as opened:
        assert await _health(opened.envoy.channel) == _SERVING


async def test_a_living_processs_socket_is_not_taken(tmp_path: Path) -> None:
    async with open_door(tmp_path) as opened:
        second = ExtProcDoor(opened.context, mode="auto")
        with pytest.raises(ConfigError, match="in use"):
            await second.start(opened.address)
        await second.aclose()
        assert await _health(opened.envoy.channel) == _SERVING


async def test_a_file_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    async with open_door(tmp_path) as opened:
        with pytest.raises(ConfigError, match="not a socket"):
            await ExtProcDoor(opened.context, mode="auto").start(f"unix:{path}")
    assert path.read_text() == "mine"


async def test_a_path_that_is_too_long_is_named(tmp_path: Path) -> None:
    async with open_door(tmp_path) as opened:
        with pytest.raises(ConfigError, match="shorter path"):
            await ExtProcDoor(opened.context, mode="auto").start(f"unix:{tmp_path}/{'x' * 100}.sock")


async def test_a_taken_port_is_refused(tmp_path: Path) -> None:
    async with open_door(tmp_path, address="127.0.0.1:0", secret="s") as opened:
        with pytest.raises(ConfigError, match="cannot listen"):
            await ExtProcDoor(opened.context, mode="auto").start(opened.address)


# Who may call


async def test_tcp_without_a_secret_is_refused(tmp_path: Path) -> None:
    async with open_door(tmp_path) as opened:
        with pytest.raises(ConfigError, match=r"sidecar\.secret"):
            await ExtProcDoor(opened.context, mode="auto").start("127.0.0.1:0")


@pytest.mark.parametrize("presented", [None, "wrong", "", "secre", "secrett"])
async def test_on_tcp_a_wrong_secret_is_refused(tmp_path: Path, presented: str | None) -> None:
    async with (
        open_door(tmp_path, address="127.0.0.1:0", secret="secret") as opened,
        FakeEnvoy(opened.address, secret=presented) as stranger,
    ):
        stream = stranger.stream()
        # No message: gRPC's client reports another status if the server ends the stream while the client writes.
        assert await stream.closed() is grpc.StatusCode.UNAUTHENTICATED
        assert stream.answers == []
        assert opened.store.records == {}


async def test_a_test_runs_with_the_transport_that_it_names(tmp_path: Path, extproc_transport: TransportName) -> None:
    """Only grpcio's server names the compressions that it accepts."""
    async with open_door(tmp_path) as opened, Http2Peer(opened.address.removeprefix("unix:")) as peer:
        call = peer.call("/grpc.health.v1.Health/Check")
        peer.send(call, b"", end=True)
        assert await peer.status(call) == GrpcStatus.OK
        assert (b"grpc-accept-encoding" in peer.headers[call]) == (extproc_transport == "grpcio")


@pytest.mark.parametrize("method", [f"/{SERVICE}/Process", "/grpc.health.v1.Health/Check"])
async def test_a_strangers_call_is_over_before_its_message_is_here(
    tmp_path: Path, method: str, extproc_transport: TransportName
) -> None:
    """What is not waited for is not kept, however large the message says that it is."""
    async with (
        open_door(tmp_path, address="127.0.0.1:0", secret="secret") as opened,
        Http2Peer(opened.address) as peer,
    ):
        calls = [peer.call(method) for _ in range(20)]
        for call in calls:
            peer.send_bytes(call, b"\0" + (60 << 20).to_bytes(4, "big") + bytes(1 << 20))
        statuses = {await peer.status(call) for call in calls}
    if method.endswith("Process"):
        assert statuses == {GrpcStatus.UNAUTHENTICATED}
    else:
        assert statuses == {GrpcStatus.OK if extproc_transport == "grpcio" else GrpcStatus.RESOURCE_EXHAUSTED}


async def test_on_tcp_the_right_secret_is_served(tmp_path: Path) -> None:
    async with open_door(tmp_path, address="127.0.0.1:0", secret="secret") as opened:
        assert opened.address.startswith("127.0.0.1:") and not opened.address.endswith(":0")
        stream = opened.stream()
        await stream.request(request_body())
        await stream.forwarded()


async def test_on_a_unix_socket_no_secret_is_asked_for(tmp_path: Path) -> None:
    async with (
        open_door(tmp_path, secret="secret") as opened,
        FakeEnvoy(opened.address) as envoy,
    ):
        stream = envoy.stream()
        await stream.request(request_body())
        await stream.forwarded()


# Health and draining


async def test_health(tmp_path: Path) -> None:
    async with open_door(tmp_path) as opened:
        assert await _health(opened.envoy.channel) == _SERVING
        assert await _health(opened.envoy.channel, SERVICE) == _SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _health(opened.envoy.channel, "another")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert await opened.door.drain(0.01)
        assert await _health(opened.envoy.channel) == _NOT_SERVING


async def test_watch_reports_a_drain(tmp_path: Path) -> None:
    async with open_door(tmp_path, address="127.0.0.1:0", secret="secret") as opened:
        channel, secret = opened.envoy.channel, ((SECRET_HEADER, "secret"),)
        async with asyncio.timeout(DEADLINE):
            watches = {
                service: health_pb2_grpc.HealthStub(channel).Watch(
                    health_pb2.HealthCheckRequest(service=service), metadata=secret
                )
                for service in ("", SERVICE, "another")
            }
            first = {service: (await watch.read()).status for service, watch in watches.items()}
            assert first == {"": _SERVING, SERVICE: _SERVING, "another": _SERVICE_UNKNOWN}
            assert await opened.door.drain(0.01)
            assert [(await watches[service].read()).status for service in ("", SERVICE)] == [_NOT_SERVING] * 2
            # One that begins during the drain is served too.
            late = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), metadata=secret)
            assert (await late.read()).status == _NOT_SERVING


async def test_a_watch_whose_peer_reads_nothing_stops_neither_another_nor_a_drain(tmp_path: Path) -> None:
    async with (
        asyncio.timeout(DEADLINE),
        open_door(tmp_path, transport="grpcio") as opened,
        Http2Peer(opened.address.removeprefix("unix:"), window=0) as deaf,
    ):
        number = deaf.call(HEALTH_WATCH)
        deaf.send(number, b"", end=True)
        while number not in deaf.headers:
            await asyncio.sleep(0.01)
        # gRPC's server takes the message, and only then notices that the peer's window is closed.
        await asyncio.sleep(0.5)
        watch = health_pb2_grpc.HealthStub(opened.envoy.channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == _SERVING
        assert await opened.door.drain(0.01)
        assert (await watch.read()).status == _NOT_SERVING


@pytest.mark.parametrize("path", STANDARD_STREAMS)
async def test_on_tcp_watch_and_reflection_need_the_secret(tmp_path: Path, path: str) -> None:
    async with (
        open_door(tmp_path, address="127.0.0.1:0", secret="secret") as opened,
        FakeEnvoy(opened.address) as stranger,
    ):
        call = stranger.channel.stream_stream(path, None, None)(None)
        with contextlib.suppress(grpc.aio.AioRpcError):
            # The refusal may come before the message is written.
            await call.write(b"")
        assert await call.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_reflection_shows_the_services_and_envoys_messages(tmp_path: Path) -> None:
    async with open_door(tmp_path) as opened:

        async def ask(**request: str) -> reflection_pb2.ServerReflectionResponse:
            call = reflection_pb2_grpc.ServerReflectionStub(opened.envoy.channel).ServerReflectionInfo()
            async with asyncio.timeout(DEADLINE):
                await call.write(reflection_pb2.ServerReflectionRequest(**request))
                await call.done_writing()
                answer: reflection_pb2.ServerReflectionResponse = await call.read()
                assert await call.code() is grpc.StatusCode.OK
            return answer

        listed = [one.name for one in (await ask(list_services="")).list_services_response.service]
        assert listed == [SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"]
        pool = DescriptorPool()
        for service in listed:
            found = (await ask(file_containing_symbol=service)).file_descriptor_response
            # A file comes before the files that it imports.
            for file in reversed(found.file_descriptor_proto):
                pool.AddSerializedFile(file)
        process = pool.FindServiceByName(SERVICE).methods_by_name["Process"]
        assert process.input_type.full_name == "envoy.service.ext_proc.v3.ProcessingRequest"
        # What a client builds from this is what the server reads.
        request = GetMessageClass(process.input_type)(request_body={"body": b"hi", "end_of_stream": True})
        read = pb.ProcessingRequest.FromString(request.SerializeToString())
        assert (read.request_body.body, read.request_body.end_of_stream) == (b"hi", True)
        unknown = await ask(file_containing_symbol="antiphon.extproc.ProcessingRequest")
        assert unknown.error_response.error_code == GrpcStatus.NOT_FOUND


async def test_a_process_that_refuses_requests_is_not_serving(tmp_path: Path) -> None:
    async with open_door(tmp_path) as opened:
        opened.context.admission.close()
        assert await _health(opened.envoy.channel) == _NOT_SERVING


async def _complete(opened: OpenDoor) -> int | None:
    stream = opened.stream()
    await stream.request(request_body())
    await stream.forwarded()
    await stream.upstream(200, JSON, json.dumps(completion()).encode())
    return (await stream.complete()).status


async def test_during_the_notice_new_requests_are_still_served(tmp_path: Path) -> None:
    async with open_door(tmp_path) as opened:
        draining = asyncio.create_task(opened.door.drain(DEADLINE, notice=0.2))
        while await _health(opened.envoy.channel) == _SERVING:
            pass
        assert await _complete(opened) == 200
        assert await draining


async def test_a_connection_is_told_and_its_calls_are_served_all_the_same(tmp_path: Path) -> None:
    """Calls that were on their way, too."""
    pytest.importorskip("ngh2")
    async with open_door(tmp_path, transport="http2") as opened:
        path = opened.address.removeprefix("unix:")
        async with Http2Peer(path) as peer:
            check = "/grpc.health.v1.Health/Check"
            running, asked = peer.call(), peer.call(check)
            peer.send(asked, b"", end=True)
            assert await peer.status(asked) == 0
            draining = asyncio.create_task(opened.door.drain(DEADLINE, notice=DEADLINE))
            await peer.until(lambda: peer.goaway is not None)
            assert peer.goaway == 0 and opened.context.admission.leaving and not opened.context.admission.closed
            assert not peer.lost.is_set() and running not in peer.closed
        draining.cancel()


async def test_the_notice_is_a_part_of_the_drain(tmp_path: Path) -> None:
    async with open_door(tmp_path) as opened:
        stream = opened.stream()
        await stream.request(request_body())
        await stream.forwarded()
        async with asyncio.timeout(DEADLINE):
            assert not await opened.door.drain(0.05, notice=1000.0)
        assert opened.context.admission.closed


async def test_the_socket_of_a_living_process_is_never_taken(tmp_path: Path) -> None:
    """Also of one that is so busy that nobody gets through to it any more."""
    path = tmp_path / "busy.sock"
    with contextlib.ExitStack() as living:
        listening = living.enter_context(socket.socket(socket.AF_UNIX))
        listening.bind(str(path))
        listening.listen(0)
        for _ in range(64):
            client = living.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            try:
                client.connect(str(path))
            except BlockingIOError:
                break
        else:
            pytest.fail("its queue never was full")
        async with open_door(tmp_path) as opened:
            door = ExtProcDoor(opened.context, mode="auto")
            with pytest.raises(ConfigError, match="is in use"):
                await door.start(f"unix:{path}")
        assert path.exists()
    async with open_door(tmp_path) as opened:
        door = ExtProcDoor(opened.context, mode="auto")
        assert await door.start(f"unix:{path}") == f"unix:{path}"
        await door.aclose()


async def test_a_drain_that_takes_too_long_says_so(tmp_path: Path) -> None:
    async with open_door(tmp_path) as opened:
        stream = opened.stream()
        await stream.request(request_body())
        await stream.forwarded()
        assert not await opened.door.drain(0.01)


async def test_closing_the_door_cuts_what_is_left_and_writes_its_row(tmp_path: Path) -> None:
    async with open_door(tmp_path) as opened:
        stream = opened.stream()
        await stream.request(request_body(stream=True))
        await stream.forwarded()
        assert not await opened.door.drain(0.01)
        await opened.door.aclose()
        await stream.closed()
        assert await opened.context.admission.drained(DEADLINE)
        assert [record.status for record in opened.store.records.values()] == ["failed"]
        assert b"shut down" in next(iter(opened.store.records.values())).body


# A peer's habits


async def test_many_pings_do_not_cost_the_connection(tmp_path: Path) -> None:
    # A default server answers a few quick pings with GOAWAY "too_many_pings", which kills every stream of an Envoy
    # worker. 24 bytes of preface, then frames: length (3 bytes), type, flags, stream (4 bytes), payload.
    ping, settings, goaway, ack = 6, 4, 7, 1
    async with open_door(tmp_path) as opened:
        reader, writer = await asyncio.open_unix_connection(opened.address.removeprefix("unix:"))
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, settings, 0, 0, 0, 0, 0]))
        pongs = 0
        async with asyncio.timeout(DEADLINE):
            while pongs < 20:
                writer.write(bytes([0, 0, 8, ping, 0, 0, 0, 0, 0]) + bytes(8))
                while True:
                    head = await reader.readexactly(9)
                    await reader.readexactly(int.from_bytes(head[:3], "big"))
                    assert head[3] != goaway
                    if head[3] == ping and head[4] == ack:
                        break
                pongs += 1
        writer.close()
        await writer.wait_closed()


async def test_a_part_larger_than_grpcs_default_limit(tmp_path: Path) -> None:
    async with open_door(tmp_path, request_body_bytes=16 << 20) as opened:
        stream = opened.stream()
        await stream.request(request_body("x" * (6 << 20)), part=8 << 20)
        await stream.forwarded()


async def test_many_streams_at_once_on_one_connection(tmp_path: Path) -> None:
    async with open_door(tmp_path, concurrent=500) as opened:
        streams = [opened.stream() for _ in range(200)]
        await asyncio.gather(*(stream.request(request_body(stream=True)) for stream in streams))
        await asyncio.gather(*(stream.forwarded() for stream in streams))
        assert opened.context.admission.active == 200
        answers = (stream.upstream(200, JSON, json.dumps(completion()).encode()) for stream in streams)
        await asyncio.gather(*answers)
        clients = await asyncio.gather(*(stream.complete() for stream in streams))
        assert {client.status for client in clients} == {200}
        assert len(opened.store.records) == 200
