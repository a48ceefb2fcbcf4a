"""What is done while a stream is silent, and never beside the handling of a message."""

from __future__ import annotations

import asyncio

from antiphon.doors.extproc._pb import ext_proc_pb2 as pb
from antiphon.doors.extproc.idle_timer import Interludes
from antiphon.doors.extproc.peer import Peer

_MESSAGE = pb.ProcessingRequest(response_body=pb.HttpBody(body=b"x")).SerializeToString()


class _Stream:
    def __init__(self) -> None:
        self.messages: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def receive(self) -> bytes | None:
        return await self.messages.get()

    async def begin(self) -> None: ...

    async def send(self, message: bytes) -> None: ...


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
