"""One connection of the fast transport, as its peer sees it: what it announces, which calls it takes, how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import ngh2
import pytest

from antiphon.doors.extproc.http2_call import Http2Limits, with_prefix
from antiphon.doors.extproc.transport import CallFailed, GrpcStatus, MessageStream, Presented
from antiphon.doors.extproc.transport_http2 import Http2Transport
from antiphon.types.transport import SECRET_HEADER
from tests.support.http2_peer import PROCESS, Http2Peer, Service
from tests.support.waiting import until


class _Service(Service):
    """Keeps what its peers present; one with a wrong secret is refused."""

    def __init__(self) -> None:
        super().__init__()
        self.presented: list[Presented] = []

    def refusal(self, presented: Presented) -> CallFailed | None:
        self.presented.append(presented)
        return CallFailed(GrpcStatus.UNAUTHENTICATED, "wrong") if presented.secret == b"wrong" else None


@asynccontextmanager
async def _connected(folder: Path, limits: Http2Limits | None = None) -> AsyncIterator[tuple[_Service, Http2Peer]]:
    service = _Service()
    transport = Http2Transport(service, limits)
    path = str(folder / "a.sock")
    await transport.listen(f"unix:{path}")
    try:
        async with Http2Peer(path) as peer:
            yield service, peer
            assert len(transport.connections) <= 1
    finally:
        await transport.aclose(0.0)


async def test_a_peer_is_told_its_limits_first(tmp_path: Path) -> None:
    async with _connected(tmp_path) as (_, peer):
        call = peer.call()
        peer.send(call, b"x")
        await peer.answered(call, 6)
        told = peer.http2.remote_settings
        assert told[ngh2.Setting.MAX_CONCURRENT_STREAMS] == 20_000
        assert told[ngh2.Setting.INITIAL_WINDOW_SIZE] == 256 << 10
        assert told[ngh2.Setting.MAX_FRAME_SIZE] == 256 << 10
        assert told[ngh2.Setting.MAX_HEADER_LIST_SIZE] == 64 << 10
        # What all its calls together may send is nearly without a limit.
        assert peer.http2.remote_window_size > (1 << 31) - (1 << 20)


async def test_an_answer_has_grpcs_head_and_its_end_a_status(tmp_path: Path) -> None:
    async with _connected(tmp_path) as (_, peer):
        call = peer.call()
        peer.send(call, b"", end=True)
        assert await peer.status(call) == GrpcStatus.OK
        assert peer.headers[call][b":status"] == b"200"
        assert peer.headers[call][b"content-type"] == b"application/grpc"
        assert peer.data[call] == with_prefix(b"")


@pytest.mark.parametrize("size", [(16 << 10) - 1, 16 << 10, (1 << 20) + 1])
async def test_a_message_of_any_size_comes_back_whole(size: int, tmp_path: Path) -> None:
    async with _connected(tmp_path) as (_, peer):
        call, message = peer.call(), bytes(range(256)) * (size // 256) + bytes(size % 256)
        peer.send(call, message)
        assert await peer.answered(call, size + 5) == with_prefix(message)


async def test_calls_with_the_same_head_and_with_others_present_their_own(tmp_path: Path) -> None:
    trace = (("traceparent", "00-1-2-01"), ("tracestate", "a=b"))
    heads: list[tuple[tuple[str, str], ...]] = [
        *((), (), ((SECRET_HEADER, "right"), *trace), ((SECRET_HEADER, "right"), *trace)),
        *(((SECRET_HEADER, "wrong"),), (trace[0], ("x-other", "y")), ()),
    ]
    async with _connected(tmp_path) as (service, peer):
        statuses = []
        for head in heads:
            call = peer.call(PROCESS, *head)
            peer.send(call, b"x", end=True)
            statuses.append(await peer.status(call))
        assert service.presented == [
            *(Presented(None), Presented(None), Presented(b"right", trace), Presented(b"right", trace)),
            *(Presented(b"wrong"), Presented(None, trace[:1]), Presented(None)),
        ]
        refused = GrpcStatus.UNAUTHENTICATED
        assert statuses == [0, 0, 0, 0, refused, 0, 0]


@pytest.mark.parametrize(
    ("path", "content_type", "status"),
    [
        (PROCESS, "application/grpc+proto", 0),
        ("/grpc.health.v1.Health/Check", "application/grpc", 0),
        ("/grpc.health.v1.Health/List", "application/grpc", GrpcStatus.UNIMPLEMENTED),
        ("/", "application/grpc", GrpcStatus.UNIMPLEMENTED),
        (PROCESS, "application/json", None),
    ],
)
async def test_a_call_is_known_by_its_path_and_its_type(
    path: str, content_type: str, status: int | None, tmp_path: Path
) -> None:
    async with _connected(tmp_path) as (_, peer):
        call = peer.call(path, content_type=content_type)
        if status is None:
            await peer.until(lambda: call in peer.headers)
            assert peer.headers[call][b":status"] == b"415"
        else:
            peer.send(call, b"", end=True)
            assert await peer.status(call) == status


async def test_a_call_has_its_own_deadline_whatever_others_have(tmp_path: Path) -> None:
    async with _connected(tmp_path) as (service, peer):
        forever = asyncio.Event()
        service.behave = lambda stream: forever.wait()
        late, patient = peer.call(PROCESS, ("grpc-timeout", "1m")), peer.call()
        assert await peer.status(late) == GrpcStatus.DEADLINE_EXCEEDED
        assert patient not in peer.headers
        forever.set()
        assert await peer.status(patient) == GrpcStatus.OK


async def test_a_peer_that_closes_its_half_has_closed_all_of_it(tmp_path: Path) -> None:
    async with _connected(tmp_path) as (service, peer):
        call = peer.call()
        peer.send(call, b"x")
        await peer.answered(call, 6)
        peer.close_half()
        async with asyncio.timeout(60):
            await peer.lost.wait()
            await until(lambda: service.ended == 1)


async def test_a_bug_in_a_call_is_its_own_and_named(tmp_path: Path) -> None:
    async with _connected(tmp_path) as (service, peer):

        async def fail(stream: MessageStream) -> None:
            raise KeyError("secret")

        service.behave = fail
        call = peer.call()
        assert await peer.status(call) == GrpcStatus.INTERNAL
        assert peer.headers[call][b"grpc-message"] == b"KeyError"
        service.behave = service.echo
        other = peer.call()
        peer.send(other, b"x", end=True)
        assert await peer.status(other) == GrpcStatus.OK


async def test_an_end_says_goodbye_and_what_is_left_is_unavailable(tmp_path: Path) -> None:
    service = _Service()
    transport = Http2Transport(service)
    path = str(tmp_path / "a.sock")
    await transport.listen(f"unix:{path}")
    async with Http2Peer(path) as peer:
        call = peer.call()
        peer.send(call, b"x")
        await peer.answered(call, 6)
        await transport.aclose(0.0)
        await transport.aclose(0.0)
        assert await peer.status(call) == GrpcStatus.UNAVAILABLE
        await peer.until(lambda: peer.lost.is_set())
        assert peer.goaway == ngh2.ErrorCode.NO_ERROR and service.cancelled == 1
