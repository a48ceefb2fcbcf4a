"""Queries rewritten by a model: what it is asked, and what happens when it does not answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from antiphon.engine.exchange.model_routes import ModelRoute, ModelRoutes, ModelRule
from antiphon.engine.ports.actions import UpstreamRequest
from antiphon.engine.ports.state import UpstreamAnswer, UpstreamCallFailed
from antiphon.search.searcher import ModelRewriter
from antiphon.translation.profiles import PROFILES
from antiphon.types.transport import UpstreamError, UpstreamFault
from antiphon.upstream.client import HttpUpstream, UpstreamTarget
from tests.support.chat_server import Answer, ChatServer, answer, completion, json_answer, never

GENERIC = PROFILES["generic"]
CLIENT = (("authorization", "Bearer sk-client"), ("x-odd", "1"), ("openai-organization", "org"))


@pytest.fixture
async def chat() -> AsyncIterator[ChatServer]:
    async with ChatServer() as server:
        yield server


async def rewrite(chat: ChatServer, query: str, route: ModelRoute | None = None, seconds: float = 5.0) -> str:
    upstream = HttpUpstream(UpstreamTarget(chat.base_url))
    rules = () if route is None else (ModelRule("small", route),)
    rewriter = ModelRewriter(upstream, ModelRoutes(ModelRoute(GENERIC), rules), "small", seconds=seconds)
    try:
        return await rewriter.rewrite(query, CLIENT)
    finally:
        await upstream.aclose()


async def test_the_model_is_asked_and_its_first_line_used(chat: ChatServer) -> None:
    chat.script(json_answer(completion(' "swift flight time"\nThis query …')))
    assert await rewrite(chat, "Hey, how long can swifts fly?") == "swift flight time"
    asked = chat.requests[0]
    assert asked.json["model"] == "small" and asked.json["stream"] is False
    assert asked.json["messages"][1] == {"role": "user", "content": "Hey, how long can swifts fly?"}
    sent = {name.lower(): value for name, value in asked.headers}
    assert sent["authorization"] == "Bearer sk-client" and sent["openai-organization"] == "org"
    assert "x-odd" not in sent


async def test_credentials_of_the_server_are_not_the_clients(chat: ChatServer) -> None:
    chat.script(json_answer(completion("x")))
    await rewrite(chat, "y", ModelRoute(GENERIC, passthrough=False, model="other"))
    assert chat.requests[0].json["model"] == "other"
    assert "authorization" not in {name.lower() for name, _ in chat.requests[0].headers}


async def test_each_of_several_upstreams_gets_its_time_for_an_answer() -> None:
    """Envoy asks one after the other in one call: how many there are decides how long the answer may take."""
    asked: list[UpstreamRequest] = []

    class Recording:
        @asynccontextmanager
        async def call(self, request: UpstreamRequest) -> AsyncIterator[UpstreamAnswer]:
            asked.append(request)
            raise UpstreamCallFailed(UpstreamError(UpstreamFault.UNREACHABLE, "not here"))
            yield

        async def aclose(self) -> None: ...

    route = ModelRoute(GENERIC, upstream="pair", several=("a", "b"), ordered=True)
    rewriter = ModelRewriter(
        Recording(), ModelRoutes(ModelRoute(GENERIC), (ModelRule("small", route),)), "small", seconds=5.0
    )
    assert await rewriter.rewrite("How?", ()) == "How?"
    assert [(one.upstream, one.tries) for one in asked] == [("pair", 2)]


async def test_thoughts_are_no_query(chat: ChatServer) -> None:
    chat.script(json_answer(completion("<think>\nWhat is\nmeant?\n</think>\n\nbirds")))
    assert await rewrite(chat, "y") == "birds"


@pytest.mark.parametrize(
    "given",
    [
        json_answer({"error": "no"}, status=500),
        json_answer({"choices": []}),
        json_answer(completion("")),
        json_answer(completion("<think>only</think>")),
        answer(200, (("content-type", "application/json"),), [b"not json"]),
        json_answer({"choices": [{"message": {"content": 5}}]}),
    ],
)
async def test_without_an_answer_the_query_stays(chat: ChatServer, given: Answer) -> None:
    chat.script(given)
    assert await rewrite(chat, "How?") == "How?"


async def test_a_slow_model_is_not_waited_for(chat: ChatServer) -> None:
    chat.script(never())
    assert await rewrite(chat, "How?", seconds=0.05) == "How?"


async def test_a_model_that_is_not_there() -> None:
    upstream = HttpUpstream(UpstreamTarget("http://127.0.0.1:9/v1"))
    rewriter = ModelRewriter(upstream, ModelRoutes(ModelRoute(GENERIC)), "small", seconds=5.0)
    assert await rewriter.rewrite("How?", ()) == "How?"
    await upstream.aclose()
