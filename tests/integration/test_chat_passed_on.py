"""Chat Completions and embeddings, passed on by the HTTP door as they are."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from antiphon.api.chat import PassedOn
from antiphon.api.http import ApiRequest, ApiResponse
from antiphon.engine.exchange.model_routes import ModelRoute, ModelRoutes, ModelRule
from antiphon.errors import ApiError
from antiphon.translation.profiles import PROFILES
from antiphon.upstream.client import HttpUpstream, UpstreamTarget
from antiphon.upstream.routing import UpstreamPool
from tests.support.chat_server import (
    ChatServer,
    Close,
    Reset,
    Wait,
    WaitGone,
    answer,
    event,
    json_answer,
    text_stream,
)
from tests.support.embeddings_server import open_embeddings_server
from tests.support.http_door import OpenHttpDoor, open_http_door, post_bytes

CHAT = "/v1/chat/completions"
ASK = b'{"model": "demo-model",  "messages":[{"role":"user","content":"\xe2\x82\xac"}], "unknown": [1, 2.50]}'
STREAM = b'{"model":"demo-model","messages":[],"stream":true}'


async def test_bytes_pass_both_ways(door: OpenHttpDoor) -> None:
    odd = b'{"id" : "x",\n "choices": [], "extra": 1e2}'
    head = (("content-type", "application/json"), ("x-ratelimit-remaining-requests", "7"), ("set-cookie", "a=1"))
    door.chat.script(answer(200, (*head, ("set-cookie", "b=2")), [odd], framing="length"))
    got = await door.ask(post_bytes(body=ASK, path=CHAT + "?api-version=1"))
    assert got.status == 200 and got.body == odd
    assert got.header("x-ratelimit-remaining-requests") == "7" and got.header("x-request-id")
    assert [value for name, value in got.headers if name == "set-cookie"] == ["a=1", "b=2"]
    assert door.chat.requests[0].body == ASK
    assert door.chat.requests[0].path == CHAT + "?api-version=1"


async def test_streams_pass_as_they_come(door: OpenHttpDoor) -> None:
    gate = asyncio.Event()
    parts = text_stream("a", "b")
    door.chat.script(answer(parts=[parts[0], Wait(gate), *parts[1:]]))
    async with door.client() as client:
        await client.send(post_bytes(body=STREAM, path=CHAT))
        head = await client.head()
        assert head.status == 200 and (head.header("content-type") or "").startswith("text/event-stream")
        first = await client.part()
        assert first == parts[0]
        gate.set()
        rest = b""
        while part := await client.part():
            rest += part
    assert first + rest == b"".join(parts)


async def test_headers_of_both_sides(door: OpenHttpDoor) -> None:
    headers = {
        "authorization": "Bearer k",
        "cookie": "secret=1",
        "x-custom": "1",
        "openai-organization": "org",
        "accept": "text/event-stream",
        "traceparent": "00-1-1-01",
        "x-antiphon-owner": "forged",
    }
    await door.ask(post_bytes(body=ASK, path=CHAT, headers=headers))
    got = dict(door.chat.requests[0].headers)
    assert got["authorization"] == "Bearer k" and got["openai-organization"] == "org"
    assert got["accept"] == "text/event-stream" and got["content-type"] == "application/json"
    assert got["traceparent"] == "00-1-1-01"
    assert not {"cookie", "x-custom", "x-antiphon-owner"} & set(got)


@pytest.mark.parametrize("status", [400, 401, 429, 500])
async def test_errors_are_the_upstreams_own(door: OpenHttpDoor, status: int) -> None:
    error = {"error": {"message": "told you", "strange": True}}
    door.chat.script(json_answer(error, status, [("retry-after", "3")]))
    got = await door.ask(post_bytes(body=STREAM, path=CHAT))
    assert (got.status, got.json, got.header("retry-after")) == (status, error, "3")


async def test_an_upstream_that_breaks_off(door: OpenHttpDoor) -> None:
    """Before the end of a JSON answer it is an error; in a stream the client's stream breaks off too."""
    head = (("content-type", "application/json"),)
    door.chat.script(answer(200, head, [b'{"cho', Reset()]))
    got = await door.ask(post_bytes(body=ASK, path=CHAT))
    assert got.status == 502 and got.error["type"] == "server_error"
    door.chat.script(answer(parts=[event("a"), Reset()]))
    got = await door.ask(post_bytes(body=STREAM, path=CHAT))
    assert got.status == 200 and not got.whole
    door.chat.script(*[answer(parts=[Close()], framing="none")] * 4)
    assert (await door.ask(post_bytes(body=ASK, path=CHAT))).status == 502


async def test_the_call_ends_with_the_client(door: OpenHttpDoor) -> None:
    door.chat.script(answer(parts=[event("a"), WaitGone()]))
    async with door.client() as client:
        await client.send(post_bytes(body=STREAM, path=CHAT))
        call = await door.chat.received()
        await client.head()
        await client.part()
    async with asyncio.timeout(60):
        await call.gone.wait()


async def test_embeddings_and_what_is_not_there(door: OpenHttpDoor) -> None:
    door.chat.script(json_answer({"object": "list", "data": []}))
    got = await door.ask(post_bytes({"model": "demo-model", "input": "x"}, path="/v1/embeddings"))
    assert got.json == {"object": "list", "data": []} and door.chat.requests[0].path == "/v1/embeddings"
    assert (await door.ask(post_bytes(method="GET", path=CHAT))).status == 405
    assert (await door.ask(post_bytes({}, path="/v1/chat"))).status == 404
    assert (await door.ask(post_bytes({}, path="/v1/rerank"))).status == 404
    assert len(door.chat.requests) == 1


async def test_a_body_over_the_limit() -> None:
    async with open_http_door(request_body_bytes=2_000) as door:
        got = await door.ask(post_bytes(body=b" " * 3_000, path=CHAT))
        assert got.status == 413 and got.error["code"] == "request_too_large" and door.chat.requests == []


# Which upstream

GENERIC = PROFILES["generic"]


@asynccontextmanager
async def two_upstreams() -> AsyncIterator[tuple[PassedOn, ChatServer, ChatServer]]:
    async with ChatServer() as default, ChatServer(base_path="/api/v2") as other:
        pool = UpstreamPool(
            {
                "default": HttpUpstream(UpstreamTarget(default.base_url)),
                "other": HttpUpstream(
                    UpstreamTarget(other.url("/api/v2"), headers=(("authorization", "Bearer injected"),))
                ),
            }
        )
        there = {"upstream": "other", "passthrough": False}
        rules = (
            ModelRule("gone", ModelRoute(GENERIC, mode="disabled")),
            ModelRule("alias", ModelRoute(GENERIC, model="real-1", **there)),  # type: ignore[arg-type]
            ModelRule("other-*", ModelRoute(GENERIC, **there)),  # type: ignore[arg-type]
            ModelRule("native-*", ModelRoute(GENERIC, mode="native", **there)),  # type: ignore[arg-type]
        )
        only = ModelRoute(GENERIC, models=frozenset({"demo-model"}))
        yield PassedOn(pool, ModelRoutes(only, rules), ("/rerank", "/embeddings")), default, other
        await pool.aclose()


async def ask(passed: PassedOn, body: bytes, path: str = CHAT) -> ApiResponse:
    [endpoint] = [endpoint.methods["POST"] for endpoint in passed.endpoints() if endpoint.match(path) is not None]
    headers = (("authorization", "Bearer k"), ("content-type", "application/json"))
    return await endpoint(ApiRequest("POST", path, (), headers, body))


@pytest.mark.parametrize("model", ["other-1", "native-1"])
async def test_a_model_goes_to_its_upstream(model: str) -> None:
    async with two_upstreams() as (passed, default, other):
        body = json.dumps({"model": model, "messages": []}).encode()
        assert (await ask(passed, body)).status == 200
        [got] = other.requests
        assert got.path == "/api/v2/chat/completions" and got.body == body and default.requests == []
        assert got.header("authorization") == "Bearer injected"


async def test_another_name_upstream() -> None:
    async with two_upstreams() as (passed, _, other):
        await ask(passed, b'{"messages": [ ], "model":"alias" , "temperature":1.0}')
        assert other.requests[0].body == b'{"messages":[ ],"model":"real-1","temperature":1.0}'


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b'{"model":"gone"}', 404, "model_not_found"),
        # The default upstream serves one model only.
        (b'{"model":"unknown"}', 404, "model_not_found"),
    ],
)
async def test_models_that_are_not_served(body: bytes, status: int, code: str) -> None:
    async with two_upstreams() as (passed, default, other):
        with pytest.raises(ApiError) as refused:
            await ask(passed, body)
        assert (refused.value.status, refused.value.code) == (status, code)
        assert default.requests == other.requests == []


@pytest.mark.parametrize("body", [b'{"model":"other-1","top_p":NaN}', b'{"model":5,"model":"other-1"}', b"[]"])
async def test_a_body_whose_model_cannot_be_read_has_no_route(body: bytes) -> None:
    async with two_upstreams() as (passed, default, other):
        with pytest.raises(ApiError) as refused:
            await ask(passed, body)
        assert refused.value.status == 400 and default.requests == other.requests == []


async def test_a_single_upstream_judges_a_body_that_cannot_be_read(door: OpenHttpDoor) -> None:
    body = b'{"model":"demo-model","messages":[],"top_p":NaN}'
    door.chat.script(json_answer({}))
    assert (await door.ask(post_bytes(body=body, path=CHAT))).status == 200
    assert door.chat.requests[0].body == body


async def test_a_body_without_a_model_is_the_default_upstreams() -> None:
    async with two_upstreams() as (passed, default, _):
        await ask(passed, b"{}")
        assert default.requests[0].body == b"{}"
    nowhere = PassedOn(UpstreamPool({}), ModelRoutes(ModelRoute(GENERIC, mode="disabled")))
    with pytest.raises(ApiError) as refused:
        await ask(nowhere, b"not json")
    assert (refused.value.status, refused.value.param) == (400, "model")


async def test_the_operators_own_paths() -> None:
    async with two_upstreams() as (passed, default, _):
        default.script(json_answer({"results": []}))
        got = await ask(passed, b'{"query":"x"}', "/v1/rerank")
        assert got.body == b'{"results": []}' and default.requests[0].path == "/v1/rerank"
        assert [endpoint.pattern for endpoint in passed.endpoints()] == [
            "/v1/chat/completions",
            "/v1/embeddings",
            "/v1/rerank",
        ]


async def test_the_embeddings_servers_model_is_asked_there() -> None:
    async with open_embeddings_server() as server, ChatServer() as chat:
        upstream = HttpUpstream(UpstreamTarget(chat.base_url))
        other = HttpUpstream(UpstreamTarget(server.url, headers=(("authorization", "Bearer own"),)))
        chat.default = lambda _: json_answer({"chat": True})
        default = ModelRoute(PROFILES["generic"])
        rules = (ModelRule("ruled", default),)
        shown = {}
        for model, name in (("vectors", "vectors"), ("vectors", "else"), ("ruled", "ruled")):
            passed = PassedOn(upstream, ModelRoutes(default, rules), embeddings=(model, other))
            body = json.dumps({"model": name, "input": ["a"]}).encode()
            answered = await ask(passed, body, "/v1/embeddings")
            shown[name] = "chat" not in json.loads(answered.body)
        assert shown == {"vectors": True, "else": False, "ruled": False}
        assert server.keys == ["Bearer own"]
        await upstream.aclose()
        await other.aclose()
