"""What is done while a stream is silent, and never beside the handling of a message."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest

from antiphon.doors.extproc._pb import ext_proc_pb2 as pb
from antiphon.doors.extproc.peer import Peer
from antiphon.doors.extproc.relay import Interludes

_MESSAGE = pb.ProcessingRequest(response_body=pb.HttpBody(body=b"x")).SerializeToString()


class _Stream:
    def __init__(self) -> None:
        self.messages: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def receive(self) -> bytes | None:
        return await self.messages.get()

    def receive_now(self) -> bytes | None:
        return None

    async def begin(self) -> None: ...

    def send_now(self, message: bytes) -> None:
        return None

    async def settle(self) -> None: ...

    async def send(self, message: bytes) -> None: ...

    async def let_end(self, seconds: float) -> None: ...


async def test_a_stream_that_is_busy_when_its_time_comes_is_looked_at_again() -> None:
    """The act waits until the stream is silent, and the next message until the act is over."""
    loop = asyncio.get_running_loop()
    stream, acted, due = _Stream(), asyncio.Event(), loop.time()

    async def act() -> None:
        acted.set()
        stream.messages.put_nowait(_MESSAGE)

    interludes = Interludes(Peer(stream), lambda: due, act)
    interludes.schedule()
    passed = asyncio.Event()
    loop.call_at(due + 0.001, passed.set)
    await passed.wait()
    assert not acted.is_set(), "nobody waits for a message"
    async with asyncio.timeout(60):
        received = await interludes.receive()
    assert received.body == b"x" and acted.is_set()
    await interludes.aclose()


class _Timer:
    def __init__(self, at: float, call: Callable[[], None]) -> None:
        self.at = at
        self.call = call
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class _Loop:
    """A loop whose time a test sets; timers run out when it says so."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: list[_Timer] = []

    def time(self) -> float:
        return self.now

    def call_at(self, at: float, call: Callable[[], None]) -> _Timer:
        self.timers.append(_Timer(at, call))
        return self.timers[-1]

    def create_task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(work)

    @property
    def waiting(self) -> list[float]:
        """How far from now the timers are that run."""
        return [timer.at - self.now for timer in self.timers if not timer.cancelled]

    def pass_to_the_next(self) -> None:
        """The next timer runs out."""
        timer = min((one for one in self.timers if not one.cancelled), key=lambda one: one.at)
        self.timers.remove(timer)
        self.now = timer.at
        timer.call()


class _Setup:
    """Interludes on such a loop, with the stream that they are of."""

    def __init__(self) -> None:
        self.loop, self.stream, self.due = _Loop(), _Stream(), 0.0
        self.acts = 0
        self.failure: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.interludes = Interludes(Peer(self.stream), lambda: self.due, self.act, cast(Any, self.loop))

    async def act(self) -> None:
        await self.gate.wait()
        self.acts += 1
        if self.failure is not None:
            raise self.failure

    def say(self) -> None:
        self.stream.messages.put_nowait(_MESSAGE)


async def _settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture
async def setup() -> _Setup:
    return _Setup()


async def test_the_timer_stands_at_the_earliest_moment_and_never_far_ahead(setup: _Setup) -> None:
    setup.due = 1100.0
    setup.interludes.schedule()
    assert setup.loop.waiting == [15.0]
    for due, waits in ((1012.0, [12.0]), (1012.0, [12.0]), (1013.0, [12.0]), (1005.0, [5.0])):
        setup.due = due
        setup.interludes.schedule()
        assert setup.loop.waiting == waits
    assert len(setup.loop.timers) == 3, "one that is early enough stays"
    await setup.interludes.aclose()
    assert setup.loop.waiting == []
    setup.interludes.schedule()
    assert setup.loop.waiting == []


async def test_a_closed_one_that_is_due_earlier_sets_no_timer(setup: _Setup) -> None:
    setup.due = 1100.0
    setup.interludes.schedule()
    await setup.interludes.aclose()
    setup.due = 1001.0
    setup.interludes.schedule()
    assert setup.loop.waiting == []


async def test_it_acts_when_it_is_due_and_looks_again(setup: _Setup) -> None:
    listening = asyncio.ensure_future(setup.interludes.receive())
    await _settle()
    setup.due = 1030.0
    setup.interludes.schedule()
    setup.loop.pass_to_the_next()
    await _settle()
    assert setup.acts == 0 and setup.loop.waiting == [15.0], "it was not due yet"
    setup.loop.pass_to_the_next()
    setup.due = 1040.0
    await _settle()
    assert setup.acts == 1 and setup.loop.waiting == [10.0]
    setup.say()
    assert (await listening).body == b"x"
    await setup.interludes.aclose()


async def test_who_is_busy_is_looked_at_soon(setup: _Setup) -> None:
    setup.due = 1000.0
    setup.interludes.schedule()
    for _ in range(2):
        setup.loop.pass_to_the_next()
        assert setup.loop.waiting == [0.25]
    await _settle()
    assert setup.acts == 0
    await setup.interludes.aclose()
    assert setup.loop.waiting == []


async def test_a_message_waits_for_an_act_that_is_under_way(setup: _Setup) -> None:
    setup.gate.clear()
    listening = asyncio.ensure_future(setup.interludes.receive())
    await _settle()
    setup.due = 1000.0
    setup.interludes.schedule()
    setup.loop.pass_to_the_next()
    setup.say()
    await _settle()
    assert not listening.done()
    setup.due = 1100.0
    setup.gate.set()
    assert (await listening).body == b"x" and setup.acts == 1
    await setup.interludes.aclose()


async def test_what_fails_in_silence_fails_where_messages_are_awaited(setup: _Setup) -> None:
    setup.failure = ValueError("a bug")
    setup.interludes.schedule()

    async def listen() -> None:
        # Its own task is the one that is to hear of it.
        setup.interludes = Interludes(Peer(setup.stream), lambda: 1000.0, setup.act, cast(Any, setup.loop))
        setup.interludes.schedule()
        with pytest.raises(ValueError, match="a bug"):
            await setup.interludes.receive()
        task = asyncio.current_task()
        assert task is not None and not task.cancelling()
        await setup.interludes.aclose()

    await setup.interludes.aclose()
    listening = asyncio.ensure_future(listen())
    await _settle()
    setup.loop.pass_to_the_next()
    await listening


async def test_to_close_ends_an_act_that_is_under_way(setup: _Setup) -> None:
    setup.gate.clear()
    listening = asyncio.ensure_future(setup.interludes.receive())
    await _settle()
    setup.due = 1000.0
    setup.interludes.schedule()
    setup.loop.pass_to_the_next()
    await _settle()
    await setup.interludes.aclose()
    assert setup.acts == 0 and setup.loop.waiting == []
    listening.cancel()
    await asyncio.wait({listening})
    assert listening.cancelled()
