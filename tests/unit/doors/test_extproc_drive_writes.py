"""What a driven response sends Envoy, message by message: its head, its parts, its end, and where it breaks off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, cast

import pytest

from antiphon.config.limits import LimitSettings
from antiphon.doors.extproc import wire
from antiphon.doors.extproc._pb import ext_proc_pb2 as pb
from antiphon.doors.extproc.answers import Accounting, head_metadata
from antiphon.doors.extproc.immediate_response import SHARE, Ahead, Drive, answer_streamed, answer_whole
from antiphon.doors.extproc.message_queues import PeerLeft
from antiphon.doors.extproc.peer import Peer, StreamCut
from antiphon.doors.extproc.transport import StreamClosed
from antiphon.engine.exchange.states import State
from antiphon.engine.ports.actions import ClientAction, Finish, SendBody, SendHead, Usage
from antiphon.errors import ApiError
from tests.support.fake_time import fake_time

_HEAD = SendHead(200, (("content-type", "text/event-stream"),), streamed=True)
_FREE = Accounting(lambda *_: 0)
_TOLD: wire.Metadata = {"status": "completed", "response_id": "resp_1"}


class _Known:
    """What is known of its response."""

    model, response_id, output_bytes = "m", "resp_1", 0


class _Exchange:
    """What a drive asks of an exchange."""

    done, state = False, State.STREAMING
    estimated_usage = Usage(30, 4, 34)

    def __init__(self) -> None:
        self.known = _Known()
        self.too_much: list[ApiError] = []

    def receive_too_much(self, error: ApiError) -> None:
        self.too_much.append(error)


class _Stream:
    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def receive_now(self) -> bytes | None:
        return None

    def send_now(self, message: bytes) -> bool:
        self.sent.append(message)
        return True


class Setup:
    """A drive whose actions a test gives, and all that it sent."""

    def __init__(self, limits: LimitSettings) -> None:
        self.now = asyncio.get_running_loop().time
        self.began = self.now()
        self.stream, self.exchange = _Stream(), _Exchange()
        self.actions: list[ClientAction] = []
        ahead = Ahead(limits, self.now)
        runner: Any = type("Runner", (), {"drive": lambda _, exchange: self.drive_(exchange)})()
        self.drive = Drive(runner, Peer(cast(Any, self.stream)), cast(Any, self.exchange), "r1", ahead, _FREE)

    @property
    def paused(self) -> float:
        """Seconds in which nothing was written; on this clock, nothing else takes time."""
        return self.now() - self.began

    async def drive_(self, exchange: object) -> AsyncGenerator[ClientAction, None]:
        for action in self.actions:
            yield action

    async def run(self, *actions: ClientAction) -> list[bytes]:
        self.actions = list(actions)
        await self.drive.run()
        return self.stream.sent


def _setup(**limits: int) -> Setup:
    given: dict[str, Any] = {"drive_stream_bytes": 1 << 30, **limits}
    return Setup(LimitSettings.model_construct(**given))


@fake_time
async def test_a_stream_is_its_head_its_parts_and_one_end() -> None:
    setup = _setup()
    headers = (*_HEAD.headers, ("x-request-id", "r1"))
    assert await setup.run(_HEAD, SendBody(b"a"), SendBody(b"b"), Finish("completed")) == [
        wire.local_head(200, headers, head_metadata("m")),
        wire.local_body(b"a", end=False),
        wire.local_body(b"b", end=False),
        wire.local_body(b"", end=True, metadata=_TOLD),
    ]


@fake_time
async def test_a_long_stream_tells_envoy_its_tokens_so_far() -> None:
    """At most once in five seconds, whatever is sent."""
    setup = _setup(drive_ahead_bytes=SHARE)
    sent = await setup.run(_HEAD, *[SendBody(b"x" * (SHARE // 64))] * 160, Finish("completed"))
    assert setup.paused > 15
    told = [pb.ProcessingResponse.FromString(message).typed_dynamic_metadata for message in sent]
    records = [pb.TokenUsage.FromString(one["envoy.ai.token_usage"].value) for one in told if one]
    assert len(records) == setup.paused // 5
    assert {(one.input_tokens.value, one.total_tokens.value) for one in records} == {(30, 34)}


@fake_time
async def test_what_is_no_stream_goes_out_whole() -> None:
    setup = _setup()
    whole = SendHead(404, (("content-type", "application/json"),))
    *_, last = sent = await setup.run(whole, SendBody(b"{"), SendBody(b"}"), Finish("error"))
    assert len(sent) == 2 and last == wire.local_body(b"{}", True, {**_TOLD, "status": "error"})


@pytest.mark.parametrize("body", [b"", b"rest"])
@fake_time
async def test_a_stream_that_was_cut_has_no_end(body: bytes) -> None:
    setup = _setup()
    setup.exchange.done = True
    with pytest.raises(StreamCut):
        await setup.run(_HEAD, SendBody(body), Finish("cut"))
    assert setup.stream.sent[1:] == ([wire.local_body(body, end=False)] if body else [])


@fake_time
async def test_a_stream_is_no_faster_than_a_client_reads() -> None:
    setup = _setup(drive_ahead_bytes=SHARE)
    part = SendBody(b"x" * (SHARE // 4))
    await setup.run(_HEAD, *[part] * 4, Finish("completed"))
    assert setup.paused == 0, "a burst is no flood"
    setup = _setup(drive_ahead_bytes=SHARE)
    await setup.run(_HEAD, *[part] * 6, Finish("completed"))
    assert setup.paused == pytest.approx(2 * SHARE / 4 / 262_144)


@pytest.mark.parametrize(("size", "fits"), [(1 << 16, True), ((1 << 16) + 1, False)])
@fake_time
async def test_a_stream_has_a_size_its_end_included(size: int, fits: bool) -> None:
    # Four times what was made stands in the events of the end.
    setup = _setup(drive_stream_bytes=(1 << 16) + 4 * 100)
    setup.exchange.known.output_bytes = 100
    await setup.run(_HEAD, SendBody(b"x" * size), Finish("completed"))
    assert (setup.exchange.too_much == []) is fits
    if not fits:
        assert setup.exchange.too_much[0].code == "stream_too_large"
        setup = _setup(drive_stream_bytes=10)
        setup.exchange.state = State.FOLLOWING
        with pytest.raises(StreamCut):
            await setup.run(_HEAD, SendBody(b"x" * size), Finish("completed"))
        assert setup.exchange.too_much == [], "it goes on without this client"


@fake_time
async def test_a_whole_answer_that_is_large_goes_out_in_parts_of_which_the_last_ends_it() -> None:
    setup = _setup()
    peer = Peer(cast(Any, setup.stream))
    body = bytes(300 << 10)
    await answer_whole(peer, 404, (("x-a", "b"),), body, {"model": "m"}, {"status": "error"})
    assert setup.stream.sent == [
        wire.local_head(404, (("x-a", "b"),), {"model": "m"}),
        wire.local_body(body[: 256 << 10], end=False),
        wire.local_body(body[256 << 10 :], end=True, metadata={"status": "error"}),
    ]


@pytest.mark.parametrize("leaves", [False, True])
async def test_parts_that_others_make_are_sent_as_they_come_and_closed_when_envoy_leaves(leaves: bool) -> None:
    closed: list[bool] = []

    async def parts() -> AsyncGenerator[bytes, None]:
        try:
            yield b"a"
            yield b"b"
        finally:
            closed.append(True)

    setup = _setup()
    if leaves:

        def send_now(message: bytes) -> bool:
            if setup.stream.sent:
                raise StreamClosed("it has left")
            setup.stream.sent.append(message)
            return True

        setup.stream.send_now = send_now  # type: ignore[method-assign]
        with pytest.raises(PeerLeft):
            await answer_streamed(Peer(cast(Any, setup.stream)), 200, (), parts())
        assert closed == [True]
        return
    await answer_streamed(Peer(cast(Any, setup.stream)), 200, (("x-a", "b"),), parts())
    assert closed == [True] and setup.stream.sent == [
        wire.local_head(200, (("x-a", "b"),), None),
        *(wire.local_body(part, end=False) for part in (b"a", b"b")),
        wire.local_body(b"", end=True),
    ]
