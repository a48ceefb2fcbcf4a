"""The fast gRPC transport against peers that split, flood, stall, lie and leave."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

import ngh2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from antiphon.doors.extproc.http2_call import Call, Http2Limits, MessageSplitter, timeout_seconds, with_prefix
from antiphon.doors.extproc.transport import GrpcStatus, MessageStream, StreamClosed
from antiphon.doors.extproc.transport_http2 import Http2Transport
from tests.support.effort import examples
from tests.support.http2_peer import DEADLINE, PROCESS, Http2Peer, Service, serving

# Messages


@given(st.lists(st.binary(max_size=40), max_size=6), st.data())
def test_messages_come_whole_whatever_the_split(messages: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(with_prefix(message) for message in messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    splitter = MessageSplitter(100)
    seen: list[bytes] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        seen += splitter.feed(stream[start:end])
    assert seen == messages
    assert splitter.held == 0


async def test_a_message_byte_by_byte_is_one_message(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, path), Http2Peer(path) as peer:
        call = peer.call()
        sent = with_prefix(b"first") + with_prefix(b"") + with_prefix(b"third" * 20)
        for number in range(len(sent)):
            peer.send_bytes(call, sent[number : number + 1])
        assert await peer.answered(call, len(sent)) == sent
        peer.end(call)
        assert await peer.status(call) == GrpcStatus.OK


async def test_a_message_larger_than_every_window_arrives(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, path), Http2Peer(path) as peer:
        call = peer.call()
        message = bytes(range(256)) * 8192
        peer.send(call, message)
        assert await peer.answered(call, len(message) + 5) == with_prefix(message)


async def test_a_compressed_message_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path) as (service, path), Http2Peer(path) as peer:
        call, other = peer.call(), peer.call()
        peer.send_bytes(call, b"\x01\x00\x00\x00\x01x")
        assert await peer.status(call) == GrpcStatus.UNIMPLEMENTED
        peer.send(other, b"fine")
        await peer.answered(other, 9)
        assert service.ended == 1


async def test_an_oversized_message_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    async with serving(tmp_path, Http2Limits(message=1000)) as (_, path), Http2Peer(path) as peer:
        call = peer.call()
        peer.send_bytes(call, b"\x00" + (1001).to_bytes(4, "big"))
        assert await peer.status(call) == GrpcStatus.RESOURCE_EXHAUSTED
        assert b"1001" in peer.headers[call][b"grpc-message"]


async def test_a_call_that_ends_inside_a_message_fails(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, path), Http2Peer(path) as peer:
        call = peer.call()
        peer.send_bytes(call, b"\x00\x00\x00\x00\x05abc", end=True)
        assert await peer.status(call) == GrpcStatus.INTERNAL


# Methods


async def test_an_unknown_method_is_unimplemented(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, path), Http2Peer(path) as peer:
        call = peer.call("/another.Service/Method")
        peer.send(call, b"ignored")
        assert await peer.status(call) == GrpcStatus.UNIMPLEMENTED


async def test_what_is_not_grpc_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, path), Http2Peer(path) as peer:
        call = peer.call(content_type="text/html")
        await peer.until(lambda: call in peer.headers)
        assert peer.headers[call][b":status"] == b"415"


CHECK = "/grpc.health.v1.Health/Check"


async def test_a_health_check_is_small_and_soon_over(tmp_path: Path) -> None:
    """Anybody may ask for one; what is more than one small message is refused before it is here."""
    limits = Http2Limits(check_seconds=0.1, checks=2)
    async with serving(tmp_path, limits) as (_, path), Http2Peer(path) as peer:
        large, several = peer.call(CHECK), peer.call(CHECK)
        peer.send_bytes(large, b"\0" + (4097).to_bytes(4, "big"))
        assert await peer.status(large) == GrpcStatus.RESOURCE_EXHAUSTED
        peer.send(several, b"")
        peer.send(several, b"")
        assert await peer.status(several) == GrpcStatus.INTERNAL
        silent, slow, too_many = peer.call(CHECK), peer.call(CHECK), peer.call(CHECK)
        peer.send_bytes(slow, b"\0\0\0\x10\0" + bytes(4095))
        assert await peer.status(too_many) == GrpcStatus.RESOURCE_EXHAUSTED
        for call in (silent, slow):
            assert await peer.status(call) == GrpcStatus.DEADLINE_EXCEEDED
        whole = peer.call(CHECK)
        peer.send(whole, b"", end=True)
        assert await peer.status(whole) == GrpcStatus.OK


async def test_health_without_a_message_or_with_garbage(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, path), Http2Peer(path) as peer:
        empty, garbage = peer.call("/grpc.health.v1.Health/Check"), peer.call("/grpc.health.v1.Health/Check")
        peer.end(empty)
        peer.send(garbage, b"\xff\xff", end=True)
        assert await peer.status(empty) == GrpcStatus.OK
        assert await peer.status(garbage) == GrpcStatus.INTERNAL


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1S", 1.0), ("250m", 0.25), ("2M", 120.0), ("7H", 25200.0), ("5u", 5e-6), ("3n", 3e-9)],
)
def test_timeouts_are_read(text: str, seconds: float) -> None:
    assert timeout_seconds(text.encode()) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "S", "1", "1x", "-1S", "123456789S", "1.5S", "\xff1S"])
def test_what_is_no_timeout_is_none(text: str) -> None:
    assert timeout_seconds(text.encode("latin-1")) is None


async def test_a_deadline_ends_the_call(tmp_path: Path) -> None:
    async with serving(tmp_path) as (service, path), Http2Peer(path) as peer:
        call = peer.call(PROCESS, ("grpc-timeout", "10m"))
        assert await peer.status(call) == GrpcStatus.DEADLINE_EXCEEDED
        await _poll(lambda: service.ended == 1)


# Flow control


async def test_sending_waits_for_a_peer_that_does_not_read(tmp_path: Path) -> None:
    limits = Http2Limits(queued=10_000)
    sent = 0

    async def pour(stream: MessageStream) -> None:
        nonlocal sent
        for _ in range(1000):
            await stream.send(b"x" * 1000)
            sent += 1

    async with (
        serving(tmp_path, limits) as (service, path),
        Http2Peer(path, window=20_000, auto_window=False) as peer,
    ):
        service.behave = pour
        call = peer.call()
        await peer.answered(call, 20_000)
        await _round_trip(peer)
        # What the window holds, what may be queued, and the one that noticed.
        assert sent <= 20 + 10 + 1
        size, whole = 0, 1000 * 1005
        while size < whole:
            received = len(peer.data[call])
            peer.http2.acknowledge_received_data(received - size, call)
            peer.flush()
            size = received
            await peer.answered(call, min(whole, received + 1))
        assert await peer.status(call) == GrpcStatus.OK


async def test_a_peer_that_takes_nothing_is_no_longer_there(tmp_path: Path) -> None:
    gone = asyncio.Event()

    async def pour(stream: MessageStream) -> None:
        try:
            while True:
                await stream.send(b"x" * 1000)
        except StreamClosed:
            gone.set()
            raise

    async with (
        serving(tmp_path, Http2Limits(queued=10_000, seconds=0.05)) as (service, path),
        Http2Peer(path, window=20_000, auto_window=False) as peer,
    ):
        service.behave = pour
        peer.call()
        async with asyncio.timeout(DEADLINE):
            await gone.wait()


async def test_a_service_that_does_not_read_stops_the_peer_and_nobody_else(tmp_path: Path) -> None:
    go = asyncio.Event()
    got = 0

    async def wait(stream: MessageStream) -> None:
        nonlocal got
        if await stream.receive() == b"slow":
            await go.wait()
        while (message := await stream.receive()) is not None:
            got += len(message)
            await stream.send(b"")

    limits = Http2Limits(queued=10_000, window=20_000)
    async with serving(tmp_path, limits) as (service, path), Http2Peer(path) as peer:
        service.behave = wait
        await _round_trip(peer)
        slow, quick = peer.call(), peer.call()
        peer.send(slow, b"slow")
        for _ in range(200):
            peer.send(slow, b"x" * 1000)
        peer.send(quick, b"quick")
        peer.send(quick, b"y" * 15_000)
        assert await peer.answered(quick, 5)
        assert got == 15_000
        assert peer.http2.queued_body_size(slow) > 200_000 - 10_000 - 20_000
        go.set()
        await peer.answered(slow, 200 * 5)
        assert got == 15_000 + 200_000


async def test_calls_that_are_reset_stop_nobody_else(tmp_path: Path) -> None:
    """8 MB are sent for nothing. That all of them are given back to the connection is `test_http2_call.py`."""

    async def ignore(stream: MessageStream) -> None:
        await asyncio.Event().wait()

    async with serving(tmp_path) as (service, path), Http2Peer(path) as peer:
        service.behave = ignore
        for _ in range(40):
            call = peer.call()
            peer.send(call, b"x" * 200_000)
            await _round_trip(peer)
            peer.reset(call)
        service.behave = service.echo
        call = peer.call()
        peer.send(call, b"y" * 1_000_000)
        await peer.answered(call, 1_000_005)
        await _poll(lambda: service.cancelled == 40)


# Ends


async def test_a_reset_ends_a_call_in_every_state(tmp_path: Path) -> None:
    reached = asyncio.Event()
    seen: list[str] = []

    async def receiving(stream: MessageStream) -> None:
        assert await stream.receive() == b"go"
        reached.set()
        seen.append("none" if await stream.receive() is None else "message")
        await asyncio.Event().wait()

    async def sending(stream: MessageStream) -> None:
        assert await stream.receive() == b"go"
        reached.set()
        try:
            while True:
                await stream.send(b"x" * 100_000)
        except StreamClosed:
            seen.append("closed")
            raise

    async def thinking(stream: MessageStream) -> None:
        assert await stream.receive() == b"go"
        reached.set()
        await asyncio.Event().wait()

    async with serving(tmp_path) as (service, path), Http2Peer(path, auto_window=False) as peer:
        for behave in (receiving, sending, thinking):
            reached.clear()
            ended = service.ended
            service.behave = behave
            call = peer.call()
            peer.send(call, b"go")
            await reached.wait()
            peer.reset(call)
            await _poll(lambda ended=ended: service.ended == ended + 1)
        # A call that never sent a message, and one that is over.
        service.behave = service.echo
        peer.reset(peer.call())
        call = peer.call()
        peer.end(call)
        assert await peer.status(call) == GrpcStatus.OK
        assert seen == ["none", "closed"]


async def test_a_half_closed_call_is_answered_to_its_end(tmp_path: Path) -> None:
    async def late(stream: MessageStream) -> None:
        while await stream.receive() is not None:
            pass
        for _ in range(3):
            await stream.send(b"late")

    async with serving(tmp_path) as (service, path), Http2Peer(path) as peer:
        service.behave = late
        call = peer.call()
        peer.send(call, b"only", end=True)
        assert await peer.answered(call, 27) == with_prefix(b"late") * 3
        assert await peer.status(call) == GrpcStatus.OK


async def test_who_does_not_end_its_side_of_an_answered_call_gets_a_reset(
    tmp_path: Path,
) -> None:
    async def answer(stream: MessageStream) -> None:
        await stream.send(b"all")

    async with serving(tmp_path, Http2Limits(linger_seconds=0.0)) as (service, path), Http2Peer(path) as peer:
        call = peer.call()
        service.behave = answer
        peer.send(call, b"x")
        assert await peer.status(call) == GrpcStatus.OK and await peer.answered(call, 8) == with_prefix(b"all")
        await peer.until(lambda: call in peer.resets)
        assert peer.resets == {call: 0}, "which is no error"


async def test_an_exception_in_one_call_touches_no_other(tmp_path: Path) -> None:
    async def fragile(stream: MessageStream) -> None:
        while (message := await stream.receive()) is not None:
            if message == b"bad":
                raise RuntimeError("a bug")
            await stream.send(message)

    async with serving(tmp_path) as (service, path), Http2Peer(path) as peer:
        service.behave = fragile
        good, bad = peer.call(), peer.call()
        peer.send(good, b"one")
        await peer.answered(good, 8)
        peer.send(bad, b"bad")
        assert await peer.status(bad) == GrpcStatus.INTERNAL
        assert b"a bug" not in peer.headers[bad][b"grpc-message"]
        peer.send(good, b"two")
        await peer.answered(good, 16)


async def test_a_connection_that_breaks_ends_its_calls_and_no_others(tmp_path: Path) -> None:
    async with serving(tmp_path) as (service, path), Http2Peer(path) as other:
        call = other.call()
        other.send(call, b"here")
        await other.answered(call, 9)
        async with Http2Peer(path) as peer:
            for _ in range(5):
                peer.send(peer.call(), b"x")
            await peer.until(lambda: len(peer.data) == 5)
        await _poll(lambda: service.ended == 5)
        other.send(call, b"still")
        await other.answered(call, 19)


async def test_stopping_says_goodbye_and_cancels_what_is_left(tmp_path: Path) -> None:
    service = Service()
    transport = Http2Transport(service)
    path = str(tmp_path / "s.sock")
    await transport.listen(f"unix:{path}")
    async with Http2Peer(path) as peer:
        call = peer.call()
        peer.send(call, b"x")
        await peer.answered(call, 6)
        await transport.aclose(0.0)
        await peer.lost.wait()
        assert peer.goaway == 0
        assert peer.headers[call][b"grpc-status"] == b"%d" % GrpcStatus.UNAVAILABLE
        assert service.cancelled == 1


# Floods


async def test_a_flood_of_resets_ends_the_connection(tmp_path: Path) -> None:
    limits = Http2Limits(resets=(50.0, 0.0))
    with capture_logs() as lines:
        await _flooded(tmp_path, limits)
    # Many arrive in one read; the connection is ended once, and nothing fails over the rest.
    assert [line["event"] for line in lines if line["log_level"] != "info"] == ["extproc_reset_flood"]


async def _flooded(tmp_path: Path, limits: Http2Limits) -> None:
    async with serving(tmp_path, limits) as (service, path), Http2Peer(path) as peer:
        for _ in range(60):
            peer.reset(peer.call())
        await asyncio.wait_for(peer.lost.wait(), DEADLINE)
        assert peer.goaway == ngh2.ErrorCode.ENHANCE_YOUR_CALM
        async with Http2Peer(path) as other:
            call = other.call()
            other.send(call, b"served")
            await other.answered(call, 11)
        assert service.ended <= 61


async def test_resets_are_forgiven_with_time(tmp_path: Path) -> None:
    async with serving(tmp_path, Http2Limits(resets=(2.0, 1e9))) as (_, path), Http2Peer(path) as peer:
        for _ in range(20):
            peer.reset(peer.call())
            call = peer.call()
            peer.send(call, b"x")
            await peer.answered(call, 6)
        assert peer.goaway is None


async def test_trailers_end_a_call_as_any_end_does(tmp_path: Path) -> None:
    async with serving(tmp_path) as (service, path), Http2Peer(path) as peer:
        call = peer.call()
        peer.send(call, b"served")
        peer.http2.send_trailers(call, [(b"x-trailer", b"1")])
        peer.flush()
        assert await peer.status(call) == 0 and await peer.answered(call, 11) and service.ended == 1


async def test_resets_of_answered_calls_are_no_flood(tmp_path: Path) -> None:
    """Envoy ends every call with a reset."""
    limits = Http2Limits(resets=(5.0, 0.0))
    async with serving(tmp_path, limits) as (_, path), Http2Peer(path) as peer:
        for _ in range(2000):
            call = peer.call()
            peer.send(call, b"x")
            await peer.answered(call, 6)
            peer.reset(call)
        assert peer.goaway is None


async def test_too_many_headers_are_refused(tmp_path: Path) -> None:
    async with serving(tmp_path, Http2Limits(header_count=20)) as (service, path), Http2Peer(path) as peer:
        peer.call(PROCESS, *((f"x-{number}", "v") for number in range(50)))
        await peer.until(lambda: bool(peer.resets or peer.closed or peer.lost.is_set()))
        assert service.ended == 0
        async with Http2Peer(path) as other:
            call = other.call()
            other.send(call, b"served")
            await other.answered(call, 11)


async def test_pings_are_answered(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, path), Http2Peer(path) as peer:
        for _ in range(500):
            peer.http2.ping(b"12345678")
            peer.flush()
        await peer.until(lambda: peer.pongs == 500)


@pytest.mark.parametrize(
    "garbage",
    [b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 100, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 64, b"\x16\x03\x01"],
)
async def test_garbage_ends_its_connection_alone(tmp_path: Path, garbage: bytes) -> None:
    async with serving(tmp_path) as (_, path), Http2Peer(path) as other:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(garbage)
        writer.write_eof()
        async with asyncio.timeout(DEADLINE):
            while await reader.read(4096):
                pass
        writer.close()
        call = other.call()
        other.send(call, b"served")
        await other.answered(call, 11)


@settings(max_examples=examples(60), deadline=None)
@given(data=st.data())
def test_the_wire_fuzzed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Frames of every kind, some broken, in any order: the connection may end, the server never does."""
    kinds = st.integers(0, 12)
    frame = st.tuples(kinds, st.integers(0, 255), st.integers(0, 9), st.binary(max_size=40))
    frames = data.draw(st.lists(frame, min_size=1, max_size=12))
    resets = data.draw(st.booleans())

    async def run(folder: Path) -> None:
        async with serving(folder) as (service, path), Http2Peer(path) as other, Http2Peer(path) as peer:
            call = peer.call()
            peer.send(call, b"before")
            if resets:
                peer.reset(call)
            for kind, flags, stream, payload in frames:
                size = len(payload).to_bytes(3, "big")
                peer.write(size + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload)
            call = other.call()
            other.send(call, b"served")
            await other.answered(call, 11)
            assert service is not None

    asyncio.run(run(tmp_path_factory.mktemp("fuzz")))


async def _round_trip(peer: Http2Peer) -> None:
    """Everything sent before was seen by the server."""
    pongs = peer.pongs
    peer.http2.ping(b"12345678")
    peer.flush()
    await peer.until(lambda: peer.pongs > pongs)


async def _poll(happened: object, seconds: float = DEADLINE) -> None:
    assert callable(happened)
    async with asyncio.timeout(seconds):
        while not happened():
            await asyncio.sleep(0.001)


async def test_a_call_that_is_over_is_forgotten(tmp_path: Path) -> None:
    async with serving(tmp_path) as (service, path), Http2Peer(path) as peer:
        service.behave = service.echo
        for _ in range(20):
            call = peer.call()
            peer.send(call, b"x", end=True)
            assert await peer.status(call) == GrpcStatus.OK
        gc.collect()
        assert sum(isinstance(one, Call) for one in gc.get_objects()) <= 2
