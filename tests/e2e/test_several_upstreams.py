"""Several upstreams for one model: who is asked first, who next, and what of it is told. Every door."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
import yaml

from tests.support.chat_server import (
    Answer,
    ChatServer,
    Close,
    Received,
    Reset,
    Wait,
    WaitGone,
    answer,
    completion,
    event,
    json_answer,
    never,
    text_stream,
)
from tests.support.gateway import Answered, Gateway, post, start_gateway

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

MODES = {"relay": ("--mode", "relay"), "drive": ("--mode", "drive"), "http": ("--door", "http")}


@dataclass
class Place:
    gateway: Gateway
    a: ChatServer
    b: ChatServer
    mode: str

    async def ask(self, model: str = "both", headers: dict[str, str] | None = None, **fields: Any) -> Answered:
        url = self.gateway.base_url + "/responses"
        return await post(url, {"model": model, "input": "hi", **fields}, headers or {})

    def clear(self) -> None:
        for server in (self.a, self.b):
            server.forget()


def _settings(a: ChatServer, b: ChatServer) -> dict[str, Any]:
    return {
        "upstream": {"url": a.base_url, "profile": "generic", "auth": "passthrough"},
        "upstreams": {
            "b": {"url": b.base_url.replace("/v1", "/deep/v2"), "api_key": "key-of-b", "profile": "generic"},
            "open": {"url": b.base_url, "host": "open.example", "auth": "none", "profile": "generic"},
            # The same server under other names: what a test does to one leaves the others in use.
            **{name: {"url": a.base_url, "auth": "none", "profile": "generic"} for name in ("a1", "a2", "a3", "a4")},
            "dead": {"url": "http://127.0.0.1:9/v1", "api_key": "key-of-dead", "profile": "generic"},
            "dead-too": {"url": "http://127.0.0.1:9/v1", "profile": "generic", "auth": "none"},
        },
        "models": [
            {"match": "both", "upstream": ["default", "b"]},
            {"match": "failing", "upstream": ["a1", "b"]},
            {"match": "breaking", "upstream": ["a2", "b"]},
            {"match": "slow", "upstream": ["a3", "b"], "model": "other-name"},
            {"match": "begun", "upstream": ["a4", "b"]},
            {"match": "shared", "upstream": [{"name": "default", "weight": 3}, {"name": "b", "weight": 1}]},
            {"match": "second", "upstream": ["dead", "b"]},
            {"match": "third", "upstream": ["dead", "dead-too", "open"]},
            {"match": "half", "upstream": [{"name": "dead", "weight": 100}, {"name": "b", "weight": 1}]},
            {"match": "nobody", "upstream": ["dead", "dead-too"]},
        ],
        "owner": {"source": "single"},
        "timeouts": {"connect": 2, "head": 5},
    }


@pytest_asyncio.fixture(params=MODES, scope="module", loop_scope="session")
async def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    folder = tmp_path_factory.mktemp("several")
    async with AsyncExitStack() as stack:
        a, b = [await stack.enter_async_context(ChatServer()) for _ in range(2)]
        config = folder / "settings.yaml"
        config.write_text(yaml.safe_dump(_settings(a, b)))
        gateway = await start_gateway(None, folder / "data", "--config", str(config), *MODES[request.param])
        yield Place(gateway, a, b, request.param)
        assert await gateway.stop() == 0
        said = "\n".join(gateway.log)
        assert "key-of-" not in said and "Traceback" not in said, said


def _metadata(answered: Answered) -> Any:
    assert answered.status == 200, answered.body
    return json.loads(answered.body)["metadata"]


async def test_the_first_one_answers_while_it_can(place: Place) -> None:
    place.clear()
    place.a.script(json_answer(completion(), headers=[("antiphon-upstream", "forged"), ("x-antiphon-tried", "7")]))
    answered = await place.ask(headers={"authorization": "Bearer mine"}, metadata={"k": "v"})
    assert _metadata(answered) == {"k": "v"}
    assert answered.headers["antiphon-upstream"] == "default"
    assert "x-antiphon-tried" not in answered.headers
    (seen,) = place.a.requests
    assert (seen.path, seen.header("authorization")) == ("/v1/chat/completions", "Bearer mine")
    assert not [name for name, _ in seen.headers if name.startswith("x-antiphon")]
    assert not place.b.requests


@pytest.mark.parametrize("stream", [False, True])
async def test_the_next_one_gets_the_request_with_its_own_key_path_and_host(place: Place, stream: bool) -> None:
    place.clear()
    place.b.script(*[answer(parts=text_stream("Hello")) if stream else json_answer(completion())] * 2)
    for model, name, path, key, host in (
        ("second", "b", "/deep/v2/chat/completions", "Bearer key-of-b", f"127.0.0.1:{place.b.port}"),
        ("third", "open", "/v1/chat/completions", None, "open.example"),
    ):
        answered = await place.ask(model, {"authorization": "Bearer mine"}, stream=stream, metadata={"k": "v"})
        assert answered.status == 200 and answered.headers["antiphon-upstream"] == name, answered.body
        body = _last(answered) if stream else json.loads(answered.body)
        assert (body["status"], body["metadata"]) == ("completed", {"k": "v", "antiphon_upstream": name})
        seen = place.b.requests[-1]
        assert (seen.path, seen.header("authorization"), seen.header("host")) == (path, key, host)
        assert seen.json["model"] == model
        url = f"{place.gateway.base_url}/responses/{body['id']}"
        async with aiohttp.ClientSession() as session, session.get(url) as stored:
            assert (await stored.json())["metadata"] == body["metadata"]
    line = json.loads(await place.gateway.log_line('"upstream":"open"'))
    assert line["fallback"] is True and line["outcome"] == "completed"
    # Who was passed over, and why: behind Envoy in its own lines, which have the request's id.
    for name in ("dead", "dead-too"):
        await place.gateway.log_line(f'"upstream":"{name}"')
    passed = [json.loads(line) for line in place.gateway.log if '"upstream":"dead' in line]
    if place.mode == "http":
        assert {each["message"] for each in passed} == {"upstream_passed_over"}
        return
    (first, second) = [each for each in passed if each["request_id"] == line["request_id"]]
    assert (first["upstream"], second["upstream"]) == ("dead", "dead-too")
    for each in (first, second):
        assert (each["message"], each["level"], each["flags"]) == ("upstream_try_failed", "warning", "UF")
        assert "Connection_refused" in each["cause"] and "upstream_status" not in each


def _last(answered: Answered) -> Any:
    events = [json.loads(line[6:]) for line in answered.body.decode().splitlines() if line.startswith("data: {")]
    return events[-1]["response"]


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_what_is_the_servers_affair_goes_to_the_next(place: Place, status: int) -> None:
    place.clear()
    place.a.script(json_answer({"error": {"message": "not now"}}, status, [("retry-after", "3")]))
    place.b.script(json_answer(completion()))
    answered = await place.ask("failing")
    assert _metadata(answered) == {"antiphon_upstream": "b"}
    assert "retry-after" not in answered.headers
    assert len(place.a.requests) == len(place.b.requests) == 1
    assert place.a.requests[0].json == place.b.requests[0].json


async def test_what_is_the_requests_affair_does_not(place: Place) -> None:
    place.clear()
    place.a.script(json_answer({"error": {"message": "wrong"}}, 400))
    answered = await place.ask()
    assert (answered.status, answered.headers["antiphon-upstream"]) == (400, "default")
    assert not place.b.requests


async def test_the_last_ones_word_counts(place: Place) -> None:
    place.clear()
    place.a.script(json_answer({"error": {"message": "broken"}}, 500))
    place.b.script(json_answer({"error": {"message": "too many"}}, 429, [("retry-after", "7")]))
    answered = await place.ask()
    assert (answered.status, answered.headers["retry-after"]) == (429, "7")
    assert answered.headers["antiphon-upstream"] == "b"
    nobody = await place.ask("nobody")
    assert (nobody.status, json.loads(nobody.body)["error"]["code"]) == (502, "upstream_unreachable")


@pytest.mark.parametrize("begun", [(), (b"HTTP/1.1 200 OK\r\n",)])
async def test_a_connection_that_breaks_before_the_head(place: Place, begun: tuple[bytes, ...]) -> None:
    place.clear()
    # (One that was kept and breaks says nothing of its server: then a fresh one is tried.)
    place.a.script(*[answer(parts=[*begun, Reset()], framing="none")] * 4)
    place.b.script(answer(parts=text_stream("Hello")))
    answered = await place.ask("breaking", stream=True)
    assert _last(answered)["status"] == "completed" and answered.headers["antiphon-upstream"] == "b"


async def test_silence_before_the_head(place: Place) -> None:
    place.clear()
    place.a.script(never())
    place.b.script(json_answer(completion()))
    answered = await place.ask("slow")
    assert _metadata(answered) == {"antiphon_upstream": "b"}
    assert place.b.requests[0].json["model"] == "other-name"


async def test_nobody_else_is_asked_once_an_answer_has_begun(place: Place) -> None:
    place.clear()
    read = asyncio.Event()
    place.a.script(answer(parts=[event("Hel"), Wait(read), Close()]))
    url, asked = place.gateway.base_url + "/responses", {"model": "begun", "input": "hi", "stream": True}
    async with aiohttp.ClientSession() as session, session.post(url, json=asked) as answered:
        body = b""
        with contextlib.suppress(aiohttp.ClientPayloadError):
            async for part in answered.content.iter_any():
                body += part
                if b"Hel" in body:
                    read.set()
    assert b"Hel" in body and b"response.completed" not in body
    assert not place.b.requests


async def test_requests_are_shared_by_weight(place: Place) -> None:
    place.clear()
    for _ in range(40):
        assert "antiphon_upstream" not in _metadata(await place.ask("shared"))
    first, second = len(place.a.requests), len(place.b.requests)
    assert first + second == 40 and 1 <= second < first, (first, second)
    for _ in range(5):
        answered = await place.ask("half")
        assert _metadata(answered) in ({"antiphon_upstream": "b"}, {})
        assert answered.headers["antiphon-upstream"] == "b"


async def test_what_is_passed_on_has_the_same_choice(place: Place) -> None:
    for path in ("/chat/completions", "/embeddings"):
        place.clear()
        place.b.script(json_answer({"odd": 1}))
        answered = await post(place.gateway.base_url + path, {"model": "second"}, {"authorization": "Bearer mine"})
        assert (answered.status, json.loads(answered.body)) == (200, {"odd": 1})
        assert answered.headers["antiphon-upstream"] == "b" and "x-antiphon-tried" not in answered.headers
        assert place.b.requests[0].path == "/deep/v2" + path
        assert place.b.requests[0].header("authorization") == "Bearer key-of-b"


@pytest.mark.parametrize("mode", MODES)
async def test_one_is_killed_under_load_and_nobody_without_a_first_byte_notices(mode: str, tmp_path: Path) -> None:
    """Some wait for their answer, some have begun to read it, some come just then."""
    waiting, reading, coming = 24, 8, 80
    here = asyncio.Event()

    def by_input(request: Received) -> Answer:
        said = request.json["messages"][-1]["content"]
        if len(a.requests) >= waiting + reading:
            here.set()
        if said == "wait":
            return never()
        if said == "read":
            return answer(parts=[event("Hel"), WaitGone()])
        return answer(parts=text_stream("Hello"))

    async with ChatServer() as a, ChatServer() as b:
        config = tmp_path / "settings.yaml"
        config.write_text(yaml.safe_dump({**_settings(a, b), "timeouts": {"head": 60}}))
        gateway = await start_gateway(None, tmp_path / "data", "--config", str(config), *MODES[mode])
        url = gateway.base_url + "/responses"
        a.default = by_input

        async def ask(said: str) -> Answered:
            return await post(url, {"model": "both", "input": said, "stream": True})

        held = [asyncio.ensure_future(ask("wait")) for _ in range(waiting)]
        begun = [asyncio.ensure_future(ask("read")) for _ in range(reading)]
        async with asyncio.timeout(60):
            await here.wait()
        gate = asyncio.Semaphore(10)

        async def come() -> Answered:
            async with gate:
                return await ask("plain")

        plain = [asyncio.ensure_future(come()) for _ in range(coming)]
        await asyncio.wait(plain, return_when=asyncio.FIRST_COMPLETED)
        await a.stop()
        waited, came = await asyncio.gather(*held), await asyncio.gather(*plain)
        # Of those that came just then some may have had their text, and not its end.
        without = [*waited, *(one for one in came if b"response.output_text.delta" not in one.body)]
        failed = [one for one in without if one.status != 200 or b"response.completed" not in one.body]
        assert not failed, (len(failed), failed[0].status, failed[0].body[-300:])
        cut = await asyncio.gather(*begun)
        assert not [one for one in cut if b"response.completed" in one.body]
        assert not [seen for seen in b.requests if seen.json["messages"][-1]["content"] == "read"]
        assert len([seen for seen in b.requests if seen.json["messages"][-1]["content"] == "wait"]) == waiting
        assert await gateway.stop() == 0
