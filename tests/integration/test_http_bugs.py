"""What an HTTP client gets when a bug of ours, or an upstream that breaks off, ends its response before its time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from functools import partial
from typing import Any

import pytest
from structlog.testing import capture_logs

from antiphon.engine.exchange.response_exchange import ResponseExchange
from antiphon.engine.ports.actions import CancelReason, ClientAction, Finish, SendBody, SendHead
from antiphon.engine.running.loading import Ports
from antiphon.engine.running.runner import Runner
from tests.support.http_door import OpenHttpDoor, RawAnswer, open_http_door, post_bytes
from tests.support.waiting import until

_SSE = (("content-type", "text/event-stream"),)
_HEAD = SendHead(200, _SSE, streamed=True)
_WHOLE = SendHead(200, (("content-type", "text/plain"),))


class _Broken:
    """A door whose runner does as a test says; what it is told to abandon is noted."""

    door: OpenHttpDoor

    def __init__(self) -> None:
        self.actions: list[ClientAction | Exception] = []
        self.abandoned: list[CancelReason] = []
        self.abandons_badly = False

    async def ask(self, *actions: ClientAction | Exception) -> RawAnswer:
        self.actions = list(actions)
        answer = await self.door.ask(post_bytes({"model": "m", "input": "hi"}, headers={"x-request-id": "r1"}))
        assert answer.header("x-request-id") == "r1"
        return answer

    async def ended(self, outcome: str, count: int = 1) -> None:
        """The response is counted, once, as this."""
        await until(lambda: self.door.metric("responses_total", door="http", outcome=outcome) == count)
        assert self.door.metric("antiphon_responses_in_flight") == 0 and self.door.context.admission.active == 0


class _Runner(Runner):
    """Does as the test says."""

    def __init__(self, ports: Ports, told: _Broken) -> None:
        super().__init__(ports)
        self._told = told

    async def drive(self, exchange: ResponseExchange) -> AsyncGenerator[ClientAction, None]:
        for action in self._told.actions:
            if isinstance(action, Exception):
                raise action
            yield action

    async def abandon(self, exchange: ResponseExchange, reason: CancelReason) -> None:
        self._told.abandoned.append(reason)
        if self._told.abandons_badly:
            raise ValueError("another bug")


@pytest.fixture
async def broken() -> AsyncIterator[_Broken]:
    made = _Broken()
    async with open_http_door(runner=partial(_Runner, told=made)) as made.door:
        yield made


@pytest.mark.parametrize("again", [False, True], ids=["abandoned", "not even that"])
async def test_a_bug_before_the_head_is_a_500(broken: _Broken, again: bool) -> None:
    broken.abandons_badly = again
    with capture_logs() as lines:
        got = await broken.ask(ValueError("a bug"))
        assert got.status == 500 and got.error["type"] == "server_error" and got.whole
        await broken.ended("error")
    assert broken.abandoned == [CancelReason.SHUTTING_DOWN]
    events = [line["event"] for line in lines if line["log_level"] == "error"]
    assert events[: 1 + again] == ["exchange_failed", *(["abandon_failed"] if again else [])]


@pytest.mark.parametrize("head", [_WHOLE, None])
async def test_a_bug_before_anything_was_sent_is_a_500(broken: _Broken, head: SendHead | None) -> None:
    actions: list[Any] = [head, SendBody(b"some")] if head is not None else []
    got = await broken.ask(*actions, ValueError("a bug"))
    assert got.status == 500 and got.error["type"] == "server_error"


async def test_a_bug_in_the_middle_of_a_stream_cuts_it(broken: _Broken) -> None:
    got = await broken.ask(_HEAD, SendBody(b"data: a\n\n"), ValueError("a bug"))
    assert got.status == 200 and not got.whole
    assert broken.abandoned == [CancelReason.SHUTTING_DOWN]
    await broken.ended("error")


async def test_no_answer_is_a_500(broken: _Broken) -> None:
    got = await broken.ask()
    assert got.status == 500 and got.error["message"] == "The request ended without a response."
    await broken.ended("cancelled")


async def test_an_answer_is_what_was_made_of_it(broken: _Broken) -> None:
    got = await broken.ask(_WHOLE, SendBody(b"so"), SendBody(b"me"), Finish("completed"))
    assert (got.status, got.body, got.whole) == (200, b"some", True)
    assert got.header("content-length") == "4" and got.header("server") == "antiphon"
    got = await broken.ask(_HEAD, SendBody(b"data: a\n\n"), SendBody(b"data: b\n\n"), Finish("completed"))
    assert (got.status, got.parts, got.whole) == (200, [b"data: a\n\n", b"data: b\n\n"], True)
    assert broken.abandoned == []
    await broken.ended("completed", 2)


async def test_a_request_id_of_the_upstreams_wins(broken: _Broken) -> None:
    own = SendHead(200, (("x-request-id", "r1"), ("x-more", "1")))
    got = await broken.ask(own, Finish("completed"))
    assert [value for name, value in got.headers if name == "x-request-id"] == ["r1"] and got.header("x-more") == "1"


async def test_a_stream_that_the_upstream_broke_off_is_cut(broken: _Broken) -> None:
    got = await broken.ask(_HEAD, SendBody(b"data: a\n\n"), Finish("cut"))
    assert got.status == 200 and got.parts == [b"data: a\n\n"] and not got.whole
    await broken.ended("cut")
    # Nothing was sent yet: the connection ends without an answer.
    async with broken.door.client() as client:
        broken.actions = [_WHOLE, SendBody(b"some"), Finish("cut")]
        await client.send(post_bytes({"model": "m", "input": "hi"}))
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await client.head()
    await broken.ended("cut", 2)
