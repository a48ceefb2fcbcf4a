"""Several upstreams at once: models find theirs, native ones pass untouched, credentials stay apart. Every door."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import aiohttp
import pytest
import pytest_asyncio
import yaml

from tests.support.chat_server import ChatServer, answer, completion, text_stream
from tests.support.gateway import Gateway, post, start_gateway

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

JSON = (("content-type", "application/json"),)
MODES = {"relay": ("--mode", "relay"), "drive": ("--mode", "drive"), "http": ("--door", "http")}


@dataclass
class Place:
    gateway: Gateway
    default: ChatServer
    other: ChatServer
    native: ChatServer


@pytest_asyncio.fixture(params=MODES, scope="module", loop_scope="session")
async def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    folder = tmp_path_factory.mktemp("upstreams")
    async with AsyncExitStack() as stack:
        default, other, native = [await stack.enter_async_context(ChatServer()) for _ in range(3)]
        settings = {
            "upstream": {"auth": "passthrough"},
            "upstreams": {
                "other": {"url": other.base_url.replace("/v1", "/api/v2"), "api_key": "key-of-other"},
                "native": {"url": native.base_url, "api_key": "key-of-native"},
            },
            "models": [
                {"match": "gone-*", "mode": "disabled"},
                {"match": "fast", "upstream": "other", "model": "very-fast-1", "profile": "openai"},
                {"match": "other-*", "upstream": "other"},
                {"match": "native-*", "upstream": "native", "mode": "native"},
            ],
        }
        config = folder / "settings.yaml"
        config.write_text(yaml.safe_dump(settings))
        gateway = await start_gateway(default.base_url, folder / "data", "--config", str(config), *MODES[request.param])
        yield Place(gateway, default, other, native)
        assert await gateway.stop() == 0
        assert "key-of-" not in "\n".join(gateway.log)


def _completion(server: ChatServer) -> None:
    server.requests.clear()
    server._script.clear()
    server.script(answer(200, JSON, [json.dumps(completion()).encode()]))


async def test_a_model_that_no_rule_names_goes_to_the_default(place: Place) -> None:
    _completion(place.default)
    answered = await post(place.gateway.base_url + "/responses", {"model": "any", "input": "hi"})
    assert answered.status == 200
    assert place.default.requests[-1].json["model"] == "any"


async def test_a_model_finds_its_upstream_with_its_key_path_and_name(place: Place) -> None:
    _completion(place.other)
    answered = await post(
        place.gateway.base_url + "/responses", {"model": "fast", "input": "hi", "max_output_tokens": 99}
    )
    assert answered.status == 200, answered.body
    assert json.loads(answered.body)["model"] == "fast"
    seen = place.other.requests[-1]
    assert seen.path == "/api/v2/chat/completions"
    assert seen.json["model"] == "very-fast-1" and seen.json["max_completion_tokens"] == 99
    assert seen.header("authorization") == "Bearer key-of-other"
    assert seen.header("x-antiphon-backend") is None


async def test_the_clients_credential_goes_to_the_default_alone(place: Place) -> None:
    for server, model, expected in (
        (place.default, "any", "Bearer mine"),
        (place.other, "other-x", "Bearer key-of-other"),
    ):
        _completion(server)
        async with aiohttp.ClientSession() as session:
            headers = {"authorization": "Bearer mine", "x-antiphon-backend": "native"}
            url = place.gateway.base_url + "/responses"
            async with session.post(url, json={"model": model, "input": "hi"}, headers=headers) as response:
                assert response.status == 200
        assert server.requests[-1].header("authorization") == expected


async def test_a_disabled_model_does_not_exist(place: Place) -> None:
    answered = await post(place.gateway.base_url + "/responses", {"model": "gone-1", "input": "hi"})
    assert answered.status == 404
    assert json.loads(answered.body)["error"]["code"] == "model_not_found"


async def test_native_json_passes_untouched(place: Place) -> None:
    place.native.requests.clear()
    place.native._script.clear()
    body = b'{"id": "resp_theirs",  "object":"response", "odd": [1]}'
    place.native.script(answer(200, (*JSON, ("x-theirs", "1")), [body]))
    sent = b'{"model": "native-1", "input": 5, "unknown_field": {"a": 1}}'
    async with aiohttp.ClientSession() as session:
        headers = {"content-type": "application/json", "authorization": "Bearer mine"}
        async with session.post(place.gateway.base_url + "/responses", data=sent, headers=headers) as response:
            assert response.status == 200 and response.headers["content-type"] == "application/json"
            assert await response.read() == body
    seen = place.native.requests[-1]
    assert seen.path == "/v1/responses" and seen.body == sent
    assert seen.header("authorization") == "Bearer key-of-native"


async def test_native_streams_pass_untouched(place: Place) -> None:
    place.native._script.clear()
    parts = [b'event: response.created\ndata: {"odd":1}\n', b"\n", b"event: x\ndata: y\n\n"]
    place.native.script(answer(200, (("content-type", "text/event-stream"),), parts))
    answered = await post(place.gateway.base_url + "/responses", {"model": "native-1", "input": "hi", "stream": True})
    assert answered.status == 200 and answered.headers["content-type"] == "text/event-stream"
    assert answered.body == b"".join(parts)


async def test_native_errors_pass_untouched(place: Place) -> None:
    place.native._script.clear()
    body = b'{"error":{"message":"theirs"}}'
    place.native.script(answer(422, (*JSON, ("retry-after", "7")), [body]))
    answered = await post(place.gateway.base_url + "/responses", {"model": "native-1", "input": "hi"})
    assert (answered.status, answered.body) == (422, body)


async def test_translated_streams_of_another_upstream(place: Place) -> None:
    place.other._script.clear()
    place.other.script(answer(parts=text_stream("hello")))
    answered = await post(place.gateway.base_url + "/responses", {"model": "other-x", "input": "hi", "stream": True})
    assert b"response.completed" in answered.body and b"hello" in answered.body


async def test_models_of_all_upstreams_are_one_list(place: Place) -> None:
    for server, names in (
        (place.default, ["any", "gone-1"]),
        (place.other, ["other-a", "any"]),
        (place.native, ["native-1"]),
    ):
        server._script.clear()
        listed = {"data": [{"id": name, "object": "model"} for name in names]}
        server.script(answer(200, JSON, [json.dumps(listed).encode()]))
    async with aiohttp.ClientSession() as session, session.get(place.gateway.base_url + "/models") as response:
        models = {model["id"] for model in (await response.json())["data"]}
    assert models == {"any", "other-a", "native-1", "fast"}
