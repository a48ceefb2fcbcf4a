"""A call's bookkeeping: every byte that came is given back to the connection's window, once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antiphon.doors.extproc.http2_call import Call, Http2Limits, with_prefix
from antiphon.doors.extproc.http2_connection import EndingCalls
from antiphon.doors.extproc.transport import CallFailed, GrpcStatus, StreamClosed
from antiphon.doors.extproc.transport_http2 import CallStream
from tests.support.fake_time import FakeTimeLoop, in_fake_time


class _Connection:
    """`CallOwner` that counts. It is `full` when a test says so."""

    def __init__(self, window: int = 8) -> None:
        # A part of this window is one byte: all is given back at once.
        self.limits = Http2Limits(message=1_000, queued=100, window=window)
        self.told = 0
        self.full = False
        self.done: list[str] = []

    def begin(self, call: Call) -> None:
        self.done.append("begin")

    def send(self, call: Call, message: bytes) -> None:
        self.done.append(f"send {message.decode()}")

    def is_full(self, call: Call) -> bool:
        return self.full

    def is_queued(self, call: Call) -> bool:
        return self.full

    def block(self, call: Call) -> None:
        self.done.append("block")

    def consumed(self, call: Call, size: int) -> None:
        self.told += size

    def finish(self, call: Call, status: GrpcStatus, message: str) -> None:
        self.done.append(f"finish {status.name}")


_ENDS: dict[str, Callable[[Call], None]] = {
    "finish": lambda call: call.finish(GrpcStatus.OK),
    "lose": lambda call: call.lose(),
}


@pytest.mark.parametrize("end", _ENDS)
@pytest.mark.parametrize("part", [1, 200])
@given(sizes=st.lists(st.integers(0, 1_200), max_size=12), cut=st.integers(1, 400), read=st.integers(0, 12))
def test_no_window_is_lost_however_a_call_ends(part: int, end: str, sizes: list[int], cut: int, read: int) -> None:
    """Of messages of any size, some of them too large, in any pieces, of which any number was read."""

    async def run() -> None:
        connection = _Connection(8 * part)
        call = Call(connection, 1)
        data = b"".join(with_prefix(bytes(size)) for size in sizes)
        sent = 0
        for at in range(0, len(data), cut):
            if call.gone:
                break
            call.take(data[at : at + cut], False)
            sent += len(data[at : at + cut])
        for _ in range(read):
            if CallStream(call).receive_now() is None:
                break
        if not call.gone:
            waits = call.queued > connection.limits.queued
            assert sent - connection.told < part or waits
            assert connection.told < sent or not waits
        _ENDS[end](call)
        assert connection.told == sent

    asyncio.run(run())


async def test_what_waits_to_be_read_is_withheld_from_the_limit_on() -> None:
    """The first message that goes beyond it is, and comes back with the message that makes room."""
    connection = _Connection()
    call = Call(connection, 1)
    first, second = with_prefix(bytes(100)), with_prefix(bytes(1))
    call.take(first, False)
    assert connection.told == len(first), "as much as the limit"
    call.take(second, False)
    call.take(second, False)
    assert connection.told == len(first)
    stream = CallStream(call)
    assert await stream.receive() == bytes(100)
    assert connection.told == len(first) + 2 * len(second)
    assert await stream.receive() == await stream.receive() == bytes(1)
    call.take(first, False)
    assert connection.told == 2 * len(first) + 2 * len(second)


async def test_little_is_given_back_when_it_is_a_part_of_the_window() -> None:
    """Or when the call has answered all: then the connection's window has it back."""
    connection = _Connection(8 * 16)
    call = Call(connection, 1)
    call.take(with_prefix(bytes(10)), False)
    assert connection.told == 0
    call.take(with_prefix(b""), False)
    assert connection.told == 15 + 5
    call.take(with_prefix(b""), False)
    await CallStream(call).let_end(1.0)
    assert connection.told == 15 + 5 + 5


async def test_who_waits_for_a_message_is_woken_by_it_and_by_the_end() -> None:
    call = Call(_Connection(), 1)
    stream = CallStream(call)
    waiting = asyncio.ensure_future(stream.receive())
    await asyncio.sleep(0)
    call.take(with_prefix(b"x")[:3], False)
    await asyncio.sleep(0)
    assert not waiting.done()
    call.take(with_prefix(b"x")[3:], False)
    assert await waiting == b"x"
    waiting = asyncio.ensure_future(stream.receive())
    await asyncio.sleep(0)
    call.take(b"", True)
    assert await waiting is None and await stream.receive() is None


async def test_a_call_that_is_over_says_nothing_more() -> None:
    for end in _ENDS.values():
        connection = _Connection()
        call = Call(connection, 1)
        stream = CallStream(call)
        await stream.begin()
        await stream.send(b"a")
        end(call)
        done = list(connection.done)
        assert call.gone and done[:2] == ["begin", "send a"]
        for say in (stream.begin, lambda stream=stream: stream.send(b"b")):
            with pytest.raises(StreamClosed):
                await say()
        call.finish(GrpcStatus.OK)
        assert connection.done == done


@pytest.mark.parametrize("how", ["room", "lost", "takes nothing"])
async def test_who_sends_too_much_waits(how: str) -> None:
    connection = _Connection()
    if how == "takes nothing":
        connection.limits = Http2Limits(message=1_000, queued=100, seconds=0.001)
    call = Call(connection, 1)
    stream = CallStream(call)
    assert call.resume(), "nobody waits"
    assert stream.send_now(b"a")
    connection.full = True
    assert stream.send_now(b"b") is False and call.unsent
    settling = asyncio.ensure_future(stream.settle())
    await asyncio.sleep(0)
    assert connection.done == ["send a", "send b", "block"] and not call.resume()
    if how == "room":
        connection.full = False
        assert call.resume() and call.resume()
        await settling
        await stream.send(b"c")
        assert connection.done == ["send a", "send b", "block", "send c"] and not call.unsent
        return
    if how == "lost":
        call.lose()
        assert call.resume()
    with pytest.raises(StreamClosed):
        await settling


async def test_a_call_takes_no_longer_than_its_time() -> None:
    connection = _Connection()
    call = Call(connection, 1)
    cancelled = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    call.start(work(), 0.001)
    async with asyncio.timeout(60):
        await cancelled.wait()
    assert connection.done == ["finish DEADLINE_EXCEEDED"] and call.gone


def test_a_call_that_has_ended_is_not_late() -> None:
    async def run() -> None:
        connection = _Connection()
        call = Call(connection, 1)
        call.start(asyncio.sleep(0), 60.0)
        call.finish(GrpcStatus.OK)
        await asyncio.sleep(61.0)
        assert connection.done == ["finish OK"] and call.task is None

    in_fake_time(run())


async def test_a_call_that_ends_inside_a_message_is_an_error() -> None:
    connection = _Connection()
    call = Call(connection, 1)
    call.take(with_prefix(b"abc")[:-1], True)
    assert connection.done == ["finish INTERNAL"] and call.gone and call.ended


async def test_a_question_is_answered_when_it_has_ended() -> None:
    for parts, asked in (((b"abc",), b"abc"), ((), b"")):
        seen: list[bytes] = []
        call = Call(_Connection(), 1)
        call.unary = lambda _, message, seen=seen: seen.append(message)
        for part in parts:
            call.take(with_prefix(part), False)
            assert seen == []
        call.take(b"", True)
        assert seen == [asked]


@pytest.mark.parametrize(("full", "ended"), [(False, 3.0), (True, 11.0)])
def test_a_call_that_its_peer_does_not_end_is_ended_later_if_it_has_not_taken_all(full: bool, ended: float) -> None:
    async def run() -> None:
        loop, connection = asyncio.get_running_loop(), _Connection()
        connection.full, connection.limits = full, Http2Limits(seconds=10.0)
        ending = EndingCalls(loop, 1.0)
        ending.add(Call(connection, 1), 2.0)
        while not connection.done:
            assert loop.time() < 20
            await asyncio.sleep(0.5)
        assert connection.done == ["finish OK"] and ended - 1 <= loop.time() <= ended

    in_fake_time(run())


def test_a_peer_without_the_secret_has_a_second_to_hear_so() -> None:
    """Its first message ends the call, and so does its own end; the call keeps none of its bytes."""

    async def run() -> None:
        refusal = CallFailed(GrpcStatus.UNAUTHENTICATED, "no secret")
        connections = [_Connection() for _ in range(4)]
        silent, talking, ended, over = (Call(connection, 1) for connection in connections)
        over.ended = True
        for call in (silent, talking, ended, over):
            call.refuse(refusal)
        talking.take(b"abc", False)
        ended.take(b"", True)
        refused = ["finish UNAUTHENTICATED"]
        assert [connection.done for connection in connections] == [[], refused, refused, refused]
        assert talking.gone and talking.queued == 0 and connections[1].told == 3
        await asyncio.sleep(0.9)
        assert connections[0].done == []
        await asyncio.sleep(0.2)
        assert connections[0].done == refused

    in_fake_time(run())


def test_a_question_is_one_small_message_and_soon_over() -> None:
    async def run() -> None:
        refused: list[tuple[bytes, str]] = [
            (with_prefix(bytes(4096)), "nothing"),
            (with_prefix(bytes(4097)), "finish RESOURCE_EXHAUSTED"),
            (with_prefix(b"") * 2, "finish INTERNAL"),
        ]
        for data, done in refused:
            connection, seen = _Connection(8 << 20), list[bytes]()
            call = Call(connection, 1)
            call.start_unary(lambda _, message, seen=seen: seen.append(message))  # type: ignore[misc]
            call.take(data, False)
            assert (connection.done or ["nothing"]) == [done] and not seen
            call.lose()
        connection = _Connection()
        call = Call(connection, 1)
        call.start_unary(lambda *_: None)
        await asyncio.sleep(4.9)
        assert not call.gone
        await asyncio.sleep(0.2)
        assert call.gone and connection.done == ["finish DEADLINE_EXCEEDED"]

    in_fake_time(run())


async def test_what_comes_behind_the_answer_is_dropped_until_the_peers_end() -> None:
    connection = _Connection()
    call = Call(connection, 1)
    call.let_end(2.0)
    assert call.lingers == 2.0
    call.take(b"more", False)
    assert connection.told == 4 and call.queued == 0 and connection.done == [] and not call.ended
    call.take(b"", True)
    assert connection.done == ["finish OK"] and call.ended


def test_the_limits_of_a_peer_unless_others_are_given() -> None:
    """Each is a promise of the docs or of gRPC: what one peer can take of the process's memory and time."""
    limits = Http2Limits()
    assert (limits.message, limits.queued, limits.window) == (64 << 20, 128 << 10, 256 << 10)
    assert (limits.calls, limits.resets) == (20_000, (10_000.0, 1_000.0))
    assert (limits.header_bytes, limits.header_count) == (64 << 10, 256)
    assert (limits.checks, limits.check_message, limits.check_seconds) == (100, 4 << 10, 5.0)
    assert (limits.seconds, limits.refused_seconds, limits.linger_seconds, limits.sweep_seconds) == (
        600.0,
        1.0,
        5.0,
        1.0,
    )


def test_all_that_end_are_looked_at_again_and_again_until_none_is_left() -> None:
    async def run() -> None:
        loop, connections = asyncio.get_running_loop(), (_Connection(), _Connection())
        ending = EndingCalls(loop, 1.0)
        one, other = (Call(connection, 1) for connection in connections)
        ending.add(one, 1.5)
        ending.add(other, 3.5)
        assert ending.count == 2
        ended = ending.ended()
        await asyncio.sleep(1.9)
        assert [connection.done for connection in connections] == [[], []]
        await asyncio.sleep(0.2)
        assert [connection.done for connection in connections] == [["finish OK"], []]
        # A connection takes a call that is over out of it.
        ending.discard(one)
        ending.discard(one)
        assert ending.count == 1 and not ended.done()
        await asyncio.sleep(2.0)
        assert connections[1].done == ["finish OK"]
        ending.discard(other)
        assert ended.done() and ending.ended().done()
        assert isinstance(loop, FakeTimeLoop)
        await asyncio.sleep(2.0)
        assert not loop.timers

    in_fake_time(run())


async def test_to_finish_ends_all_that_wait_for_their_peer() -> None:
    connection = _Connection()
    ending = EndingCalls(asyncio.get_running_loop(), 1.0)
    ending.add(Call(connection, 1), 100.0)
    ending.add(Call(connection, 2), 100.0)
    ending.finish()
    assert connection.done == ["finish OK"] * 2
