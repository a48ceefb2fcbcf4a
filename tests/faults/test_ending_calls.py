"""Calls that were answered to the end: their peer ends them, or in the end the transport does, and no task waits."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from antiphon.doors.extproc.http2_call import Http2Limits, with_prefix
from antiphon.doors.extproc.peer import Peer
from antiphon.doors.extproc.transport import GrpcStatus, MessageStream
from antiphon.doors.extproc.transport_grpcio import GrpcioTransport
from antiphon.doors.extproc.transport_http2 import Http2Transport
from tests.support.http2_peer import DEADLINE, Http2Peer, Service, serving


async def _answer(stream: MessageStream) -> None:
    await stream.receive()
    await stream.send(b"all")
    await stream.let_end(20 * DEADLINE)


async def _answered(peer: Http2Peer) -> int:
    call = peer.call()
    peer.send(call, b"x")
    assert await peer.answered(call, 8) == with_prefix(b"all")
    return call


async def test_the_peer_ends_what_was_answered(tmp_path: Path) -> None:
    async with serving(tmp_path) as (service, path), Http2Peer(path) as peer:
        service.behave = _answer
        call = await _answered(peer)
        await peer.until(lambda: service.ended == 1)
        assert b"grpc-status" not in peer.headers[call] and call not in peer.resets
        peer.end(call)
        assert await peer.status(call) == GrpcStatus.OK and service.cancelled == 0


async def test_what_still_comes_is_dropped_and_its_window_given_back(tmp_path: Path) -> None:
    """A message that waited when all was answered, and more than any window holds behind it."""
    async with serving(tmp_path, Http2Limits(queued=10)) as (service, path), Http2Peer(path) as peer:
        service.behave = _answer
        call = peer.call()
        peer.send_bytes(call, with_prefix(b"x") + with_prefix(bytes(100)))
        await peer.answered(call, 8)
        peer.send(call, bytes(2 << 20), end=True)
        assert await peer.status(call) == GrpcStatus.OK
        # The connection's window is whole.
        service.behave = service.echo
        other = peer.call()
        peer.send(other, bytes(2 << 20))
        await peer.answered(other, (2 << 20) + 5)


async def test_a_peer_that_does_not_end_it_gets_a_status(tmp_path: Path) -> None:
    waits: dict[bytes, float] = {b"short": 0.001, b"long": DEADLINE}

    async def answer(stream: MessageStream) -> None:
        message = await stream.receive()
        await stream.send(b"all")
        await stream.let_end(waits[message or b""])

    async with serving(tmp_path, Http2Limits(sweep_seconds=0.001)) as (service, path), Http2Peer(path) as peer:
        service.behave = answer
        long, short = peer.call(), peer.call()
        for call, message in ((long, b"long"), (short, b"short")):
            peer.send(call, message)
        assert await peer.status(short) == GrpcStatus.OK
        assert b"grpc-status" not in peer.headers[long]


@pytest.mark.parametrize("size", [100_000, 200_000, 600_000])
async def test_a_peer_that_takes_its_time_gets_all_of_it(size: int, tmp_path: Path) -> None:
    """What it has not taken is not cut off by the call's end, whether it is more than may be queued or less."""
    limits = Http2Limits(sweep_seconds=0.001, linger_seconds=0.0)
    # The connection has more: other calls go on.
    window = 30_000

    async def answer(stream: MessageStream) -> None:
        other_end = Peer(stream)
        await stream.receive()
        await other_end.send_all([bytes(100_000)] * (size // 100_000))
        await stream.let_end(0.001)

    async def briefly(stream: MessageStream) -> None:
        await stream.receive()
        await stream.send(b"all")
        await stream.let_end(0.001)

    async with serving(tmp_path, limits) as (service, path), Http2Peer(path, window=window, auto_window=False) as peer:
        service.behave = answer
        call = peer.call()
        peer.send(call, b"hi")
        await peer.until(lambda: len(peer.data.get(call, b"")) == window)
        # Calls that begin later are over: so were several looks at those that end.
        service.behave = briefly
        for _ in range(3):
            other = peer.call()
            peer.send(other, b"hi")
            assert await peer.status(other) == GrpcStatus.OK
        assert call not in peer.closed and call not in peer.resets
        whole, taken = size + 5 * (size // 100_000), 0
        while taken < whole:
            await peer.until(lambda taken=taken: len(peer.data[call]) > taken)  # type: ignore[misc]
            peer.http2.acknowledge_received_data(len(peer.data[call]) - taken, call)
            taken = len(peer.data[call])
            peer.flush()
        assert taken == whole and await peer.status(call) == GrpcStatus.OK


async def test_an_exception_behind_the_answer_is_told(tmp_path: Path) -> None:
    async def fail(stream: MessageStream) -> None:
        await _answer(stream)
        raise RuntimeError("a bug")

    async with serving(tmp_path) as (service, path), Http2Peer(path) as peer:
        service.behave = fail
        assert await peer.status(await _answered(peer)) == GrpcStatus.INTERNAL


@pytest.mark.parametrize("how", ["end", "reset", "connection", "time"])
async def test_stopping_waits_for_what_was_answered(tmp_path: Path, how: str) -> None:
    service = Service()
    service.behave = _answer
    transport = Http2Transport(service)
    await transport.listen(f"unix:{tmp_path}/s.sock")
    async with Http2Peer(f"{tmp_path}/s.sock") as peer:
        call = await _answered(peer)
        await peer.until(lambda: service.ended == 1)
        (connection,) = transport.connections
        if how == "time":
            await transport.aclose(0.0)
            assert await peer.status(call) == GrpcStatus.OK
            return
        closing = asyncio.create_task(transport.aclose(DEADLINE))
        await peer.until(lambda: peer.goaway is not None)
        assert not closing.done()
        if how == "end":
            peer.end(call)
        elif how == "reset":
            peer.reset(call)
        else:
            peer.abort()
        async with asyncio.timeout(DEADLINE):
            await closing
        assert not connection.ending.count and service.cancelled == 0


async def test_grpcs_own_server_waits_in_the_call_and_not_for_ever(tmp_path: Path) -> None:
    at_once: list[bytes | None] = []

    async def answer(stream: MessageStream) -> None:
        await stream.receive()
        await stream.send(b"all")
        await stream.let_end(0.001)
        at_once.append(stream.receive_now())

    service = Service()
    service.behave = answer
    transport = GrpcioTransport(service)
    path = str(tmp_path / "grpcio.sock")
    await transport.listen(f"unix:{path}")
    async with Http2Peer(path) as peer:
        assert await peer.status(await _answered(peer)) == GrpcStatus.OK
    assert at_once == [None] and service.cancelled == 0
    await transport.aclose(0.0)
