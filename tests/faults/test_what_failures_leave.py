"""A request that went wrong is let go of as a good one is: by counting references, without waiting for the collector.

An exception holds the frames that it passed, these hold the request's and the answer's bytes, and a cycle among them
(an exception that its own frame can reach) keeps all of that until the collector comes by, which it seldom does.
"""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from antiphon.engine.exchange.response_exchange import ResponseExchange
from antiphon.engine.ports.actions import UpstreamRequest
from antiphon.engine.running.upstream_pump import UpstreamPump
from antiphon.upstream.client import HttpUpstream, UpstreamTarget
from tests.support.chat_server import Answer, ChatServer, Close, Raw, Reset, answer, chunk, event, never
from tests.support.extproc_door import open_door, request_body
from tests.support.fake_envoy import DEADLINE
from tests.support.http_door import open_http_door, post_bytes
from tests.support.waiting import until

ASK: dict[str, Any] = {"model": "demo-model", "input": "Hi"}
HELD = (ResponseExchange, UpstreamRequest, UpstreamPump)
JSON = [("content-type", "application/json")]
FAILURES: dict[str, Answer] = {
    "closed before the head": answer(parts=[Close()], framing="none"),
    "reset before the head": answer(parts=[Reset()], framing="none"),
    "no HTTP": answer(parts=[Raw(b"\0\1\2 this is no HTTP\r\n\r\n"), Close()], framing="none"),
    "closed in the body": answer(parts=[event("Hel"), Close()]),
    "reset in the body": answer(parts=[event("Hel"), Reset()]),
    "an error": answer(429, parts=[b'{"error":{"message":"slow down"}}'], headers=JSON),
    "a stream that goes wrong and on": answer(parts=[event(chunk(error={"message": "no"})), *[event("x")] * 2000]),
    "good": answer(),
}


def _held() -> Counter[str]:
    return Counter(type(one).__name__ for one in gc.get_objects() if type(one) in HELD)


@pytest.fixture
def no_collector() -> Iterator[None]:
    """No collector, and nothing of earlier tests among what `_held` looks at."""
    gc.disable()
    gc.freeze()
    yield
    gc.enable()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("failure", FAILURES)
async def test_a_request_that_fails(failure: str, stream: bool, no_collector: None) -> None:
    async with open_http_door() as door:
        before = _held()
        for _ in range(3):
            door.chat.script(FAILURES[failure])
            await door.ask(post_bytes({**ASK, "stream": stream}))
        await until(lambda: door.metric("antiphon_responses_in_flight") == 0 and _held() == before)


async def test_a_client_that_leaves(no_collector: None) -> None:
    async with open_http_door() as door:
        before = _held()
        for number in range(1, 4):
            door.chat.script(answer(parts=[event("Hel"), *never().parts]))
            async with door.client() as client:
                await client.send(post_bytes({**ASK, "stream": True}))
                await client.head()
                await client.part()
            async with asyncio.timeout(DEADLINE):
                while len(door.store.records) < number:
                    await asyncio.sleep(0)
        await until(lambda: door.metric("antiphon_responses_in_flight") == 0 and _held() == before)


@pytest.mark.parametrize("mode", ["drive", "relay"])
async def test_a_client_of_envoys_that_leaves(mode: str, tmp_path: Path, no_collector: None) -> None:
    async with open_door(tmp_path, mode=mode) as opened:
        before = _held()
        for _ in range(3):
            opened.chat.script(never())
            stream = opened.stream()
            await stream.request(request_body(stream=True))
            if mode == "drive":
                await opened.chat.received()
            else:
                await stream.forwarded()
            await stream.leave()
            assert await opened.context.admission.drained(DEADLINE)
        await until(lambda: _held() == before)


async def test_a_call_that_is_cancelled(no_collector: None) -> None:
    async with ChatServer() as server:
        upstream = HttpUpstream(UpstreamTarget(server.base_url))
        before = _held()
        server.script(never())

        async def call() -> None:
            request = UpstreamRequest("POST", "/chat/completions", (), b"{}", "m", True)
            async with upstream.call(request):
                raise AssertionError("it has no answer")

        task = asyncio.ensure_future(call())
        await server.received()
        task.cancel()
        await asyncio.wait({task})
        del task
        await until(lambda: not _held() - before)
        await upstream.aclose()
