"""`SeveralUpstreams` over real servers: who is asked, who is asked next, and who is left out for a while."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from msgspec.structs import replace

from antiphon.engine.ports.actions import UpstreamRequest
from antiphon.engine.ports.state import UpstreamCallFailed
from antiphon.types.transport import TRIED_HEADER, UPSTREAM_HEADER, UpstreamFault
from antiphon.upstream.client import HttpUpstream, UpstreamTarget
from antiphon.upstream.routing import SeveralUpstreams, UpstreamPool
from tests.support.chat_server import (
    Answer,
    ChatServer,
    Close,
    Reset,
    answer,
    completion,
    event,
    json_answer,
    never,
    text_stream,
)

HEADERS = (("content-type", "application/json"), ("authorization", "Bearer mine"))
POST = UpstreamRequest("POST", "/chat/completions", HEADERS, b'{"stream":true}', "m", True, "a,b", tries=2)
FINE = answer(parts=text_stream("Hello"))


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Two:
    a: ChatServer
    b: ChatServer
    clients: dict[str, HttpUpstream]
    clock: Clock

    def several(self, weights: tuple[int, ...] = (), **more: Any) -> SeveralUpstreams:
        return SeveralUpstreams(self.clients, weights, clock=self.clock, chance=random.Random(7), **more)


@pytest.fixture
async def two() -> AsyncIterator[Two]:
    async with AsyncExitStack() as stack:
        a, b = [await stack.enter_async_context(ChatServer()) for _ in range(2)]
        clients = {
            name: HttpUpstream(UpstreamTarget(server.base_url), head_seconds=0.3 if name == "a" else 30)
            for name, server in (("a", a), ("b", b))
        }
        yield Two(a, b, clients, Clock())
        for client in clients.values():
            await client.aclose()


async def ask(upstream: SeveralUpstreams | UpstreamPool, request: UpstreamRequest = POST) -> tuple[int, str, str]:
    """Status, who answered, how many were asked."""
    async with upstream.call(request) as got:
        headers = [value for name, value in got.headers if name == UPSTREAM_HEADER]
        tried = [value for name, value in got.headers if name == TRIED_HEADER]
        assert len(headers) == len(tried) == 1
        async for _ in got.body():
            pass
        return got.status, headers[0], tried[0]


async def test_the_order_is_the_priority(two: Two) -> None:
    two.a.script(answer(200, (("antiphon-upstream", "forged"), ("x-antiphon-tried", "9")), text_stream("Hello")))
    assert await ask(two.several()) == (200, "a", "1")
    assert not two.b.requests


@pytest.mark.parametrize(
    "first",
    [
        json_answer({}, 429),
        json_answer({}, 500),
        json_answer({}, 503),
        answer(parts=[Reset()], framing="none"),
        answer(parts=[b"HTTP/1.1 200 OK\r\n", Reset()], framing="none"),
        answer(parts=[b"what is that\r\n\r\n", Close()], framing="none"),
        never(),
    ],
    ids=["429", "500", "503", "reset", "reset in the head", "no http", "silence"],
)
async def test_the_next_is_asked_while_there_is_no_answer(two: Two, first: Answer) -> None:
    two.a.script(first)
    assert await ask(two.several()) == (200, "b", "2")
    assert len(two.a.requests) == len(two.b.requests) == 1
    assert two.b.requests[0].body == POST.body


@pytest.mark.parametrize("status", [400, 401, 404, 422])
async def test_what_the_request_is_to_blame_for_is_an_answer(two: Two, status: int) -> None:
    two.a.script(json_answer({}, status))
    assert await ask(two.several()) == (status, "a", "1")
    assert not two.b.requests


async def test_the_last_ones_failure_counts(two: Two) -> None:
    two.a.script(json_answer({}, 500))
    two.b.script(json_answer({}, 429))
    assert await ask(two.several()) == (429, "b", "2")
    two.a.script(json_answer({}, 500))
    await two.b.stop()
    with pytest.raises(UpstreamCallFailed) as failed:
        await ask(two.several())
    assert failed.value.error.fault is UpstreamFault.UNREACHABLE


async def test_nobody_is_asked_once_an_answer_has_begun(two: Two) -> None:
    two.a.script(answer(parts=[event("Hel"), Close()]))
    with pytest.raises(UpstreamCallFailed) as failed:
        await ask(two.several())
    assert failed.value.error.fault is UpstreamFault.CUT
    assert not two.b.requests


async def test_a_clients_key_goes_where_it_belongs(two: Two) -> None:
    several = two.several(passthrough=frozenset({"a"}))
    two.a.script(json_answer({}, 500))
    await ask(several)
    assert two.a.requests[0].header("authorization") == "Bearer mine"
    assert two.b.requests[0].header("authorization") is None


async def test_one_that_nobody_reaches_is_asked_last_for_a_while(two: Two) -> None:
    several = two.several()
    await two.a.stop()
    for _ in range(3):
        assert await ask(several) == (200, "b", "2")
    assert await ask(several) == (200, "b", "1")
    # It is still better than nobody.
    two.b.script(json_answer({}, 500))
    await two.a.start()
    assert await ask(several) == (200, "a", "2")
    assert await ask(several) == (200, "b", "1")
    two.clock.now += 11
    assert await ask(several) == (200, "a", "1")


async def test_errors_that_are_answers_leave_nobody_out(two: Two) -> None:
    several = two.several()
    for status in (500, 429) * 3:
        two.a.script(json_answer({}, status))
        assert await ask(several) == (200, "b", "2")
    assert await ask(several) == (200, "a", "1")


async def test_weights_share_the_requests(two: Two) -> None:
    several = two.several((3, 1))
    for _ in range(200):
        status, _, tried = await ask(several, replace(POST, path="/models", method="GET", body=b""))
        assert (status, tried) == (200, "1")
    assert 130 <= len(two.a.requests) <= 170
    await two.a.stop()
    assert {await ask(several) for _ in range(20)} <= {(200, "b", "1"), (200, "b", "2")}


async def test_the_pool_knows_them_by_their_common_name_and_each_by_its_own(two: Two) -> None:
    pool = UpstreamPool(two.clients, {"a,b": two.several()})
    two.a.script(json_answer(completion(), 503))
    assert await ask(pool) == (200, "b", "2")
    two.a.script(json_answer({}, 503))
    async with pool.call(replace(POST, upstream="a")) as got:
        assert got.status == 503
