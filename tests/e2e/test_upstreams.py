"""Several upstreams at once: models find theirs, native ones pass untouched, credentials stay apart. Every door."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
import yaml

from tests.support.chat_server import ChatServer, Close, WaitGone, answer, completion, json_answer, text_stream
from tests.support.gateway import Answered, Gateway, post, start_gateway

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

_TEXT = {"model": "native-1", "input": "hi"}
JSON = (("content-type", "application/json"),)
MODES = {"relay": ("--mode", "relay"), "drive": ("--mode", "drive"), "http": ("--door", "http")}


@dataclass
class Place:
    gateway: Gateway
    default: ChatServer
    other: ChatServer
    native: ChatServer
    mode: str


@pytest_asyncio.fixture(params=MODES, scope="module", loop_scope="session")
async def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    folder = tmp_path_factory.mktemp("upstreams")
    async with AsyncExitStack() as stack:
        default, other, native = [await stack.enter_async_context(ChatServer()) for _ in range(3)]
        # Profiles by name: what is scripted is asked for by the test alone.
        settings = {
            "upstream": {"auth": "passthrough", "profile": "generic"},
            "upstreams": {
                "other": {
                    "url": other.base_url.replace("/v1", "/api/v2"),
                    "api_key": "key-of-other",
                    "profile": "generic",
                },
                "native": {
                    "url": native.base_url.replace("/v1", "/deep/v9"),
                    "api_key": "key-of-native",
                    "models": ["native-1", "native-cut"],
                },
                "nobody": {"url": "http://127.0.0.1:9/v1", "profile": "generic"},
            },
            "owner": {"source": "single"},
            "timeouts": {"connect": 2},
            "models": [
                {"match": "gone-*", "mode": "disabled"},
                {"match": "fast", "upstream": "other", "model": "very-fast-1", "profile": "openai"},
                {"match": "other-*", "upstream": "other"},
                {"match": "native-*", "upstream": "native", "mode": "native"},
                {"match": "gone-too", "mode": "disabled", "upstream": "nobody"},
            ],
        }
        config = folder / "settings.yaml"
        config.write_text(yaml.safe_dump(settings))
        gateway = await start_gateway(default.base_url, folder / "data", "--config", str(config), *MODES[request.param])
        yield Place(gateway, default, other, native, request.param)
        assert await gateway.stop() == 0
        assert "key-of-" not in "\n".join(gateway.log)


def _completion(server: ChatServer) -> None:
    server.forget()
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


async def test_chat_completions_find_their_upstream_too(place: Place) -> None:
    for server, model, path, called, key in (
        (place.default, "any", "/v1", "any", "Bearer mine"),
        (place.other, "fast", "/api/v2", "very-fast-1", "Bearer key-of-other"),
        (place.native, "native-1", "/deep/v9", "native-1", "Bearer key-of-native"),
    ):
        for below in ("/chat/completions", "/embeddings"):
            server.forget()
            server.script(json_answer({"odd": 1}))
            headers = {"authorization": "Bearer mine", "x-antiphon-backend": "nobody"}
            answered = await post(place.gateway.base_url + below, {"model": model}, headers)
            assert (answered.status, json.loads(answered.body)) == (200, {"odd": 1})
            seen = server.requests[-1]
            assert (seen.path, seen.json, seen.header("authorization")) == (path + below, {"model": called}, key)
    refused = await post(place.gateway.base_url + "/chat/completions", {"model": "gone-1"})
    assert refused.status == 404 and json.loads(refused.body)["error"]["code"] == "model_not_found"


async def test_a_disabled_model_does_not_exist(place: Place) -> None:
    answered = await post(place.gateway.base_url + "/responses", {"model": "gone-1", "input": "hi"})
    assert answered.status == 404
    assert json.loads(answered.body)["error"]["code"] == "model_not_found"


async def test_native_json_passes_untouched(place: Place) -> None:
    place.native.forget()
    body = b'{"id": "resp_theirs",  "object":"response", "odd": [1]}'
    place.native.script(answer(200, (*JSON, ("x-theirs", "1")), [body]))
    sent = b'{"model": "native-1", "input": 5, "unknown_field": {"a": 1}}'
    async with aiohttp.ClientSession() as session:
        headers = {"content-type": "application/json", "authorization": "Bearer mine"}
        async with session.post(place.gateway.base_url + "/responses", data=sent, headers=headers) as response:
            assert response.status == 200 and response.headers["content-type"] == "application/json"
            assert await response.read() == body
    seen = place.native.requests[-1]
    assert seen.path == "/deep/v9/responses" and seen.body == sent
    assert seen.header("authorization") == "Bearer key-of-native"


async def test_native_streams_over_a_websocket(place: Place) -> None:
    """Each event is a frame; a stream without an end gets one, and the prewarm asks nobody."""
    place.native.forget()
    stream = (("content-type", "text/event-stream"),)
    created, delta = b'{"type":"response.created","odd":1.50}', b'{"type":"response.odd.delta"}'
    done = b'{"type":"response.completed","response":{"id":"resp_theirs"}}'
    parts = [b"data: " + created + b"\n", b"\nevent: x\r\ndata: " + delta + b"\r\n\r\n", b"data: " + done + b"\n\n"]
    place.native.script(
        answer(200, stream, [*parts, b"data: [DONE]\n\n"]),
        json_answer({"error": {"message": "not known", "code": "previous_response_not_found"}}, 400),
        answer(200, stream, parts[:2]),
    )
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(
            place.gateway.base_url + "/responses",
            headers={"authorization": "Bearer mine", "openai-beta": "responses_websockets=2026-02-06"},
        ) as socket,
    ):

        async def ask(count: int, **fields: object) -> list[str]:
            await socket.send_json({"type": "response.create", "model": "native-1", "input": "hi", **fields})
            return [(await socket.receive(timeout=20)).data for _ in range(count)]

        assert json.loads((await ask(3, store=False, generate=False))[2])["type"] == "response.completed"
        assert place.native.requests == []
        assert await ask(3, odd={"a": 1}) == [created.decode(), delta.decode(), done.decode()]
        [refused] = await ask(1, previous_response_id="resp_theirs", store=False)
        assert json.loads(refused)["error"]["code"] == "previous_response_not_found"
        assert json.loads((await ask(3))[2])["error"]["code"] == "upstream_cut"
    seen = place.native.requests[0]
    assert seen.path == "/deep/v9/responses" and seen.header("authorization") == "Bearer key-of-native"
    assert seen.header("openai-beta") is None
    assert seen.json == {"model": "native-1", "input": "hi", "odd": {"a": 1}, "stream": True}


async def test_native_streams_pass_untouched(place: Place) -> None:
    place.native.forget_script()
    parts = [b'event: response.created\ndata: {"odd":1}\n', b"\n", b"event: x\ndata: y\n\n"]
    place.native.script(answer(200, (("content-type", "text/event-stream"),), parts))
    answered = await post(place.gateway.base_url + "/responses", {"model": "native-1", "input": "hi", "stream": True})
    assert answered.status == 200 and answered.headers["content-type"] == "text/event-stream"
    assert answered.body == b"".join(parts)


async def test_the_request_id_of_a_native_upstream_is_the_only_one(place: Place) -> None:
    place.native.forget_script()
    theirs = (
        *JSON,
        ("x-request-id", "req_theirs"),
        ("set-cookie", "a=1"),
        ("set-cookie", "b=2"),
        ("x-two", "1"),
        ("x-two", "2"),
    )
    place.native.script(answer(200, theirs, [b"{}"]))
    async with (
        aiohttp.ClientSession() as session,
        session.post(place.gateway.base_url + "/responses", json=_TEXT) as answered,
    ):
        assert answered.headers.getall("x-request-id") == ["req_theirs"]
        assert ", ".join(answered.headers.getall("x-two")) == "1, 2"
        # Envoy keeps one cookie of an answer that it does not get from an upstream itself.
        assert answered.headers.getall("set-cookie") in (["a=1", "b=2"], *([["b=2"]] if place.mode == "drive" else []))


async def test_native_requests_keep_what_the_client_accepts(place: Place) -> None:
    for accept in ("application/json", "text/event-stream"):
        place.native.forget()
        place.native.script(answer(200, JSON, [b"{}"]))
        await post(place.gateway.base_url + "/responses", _TEXT, {"accept": accept, "openai-beta": "x=1"})
        (seen,) = place.native.requests
        assert seen.header("accept") == accept and seen.header("openai-beta") == "x=1"


async def test_a_native_stream_that_breaks_off_is_cut(place: Place) -> None:
    place.native.forget_script()
    place.native.script(answer(200, (("content-type", "text/event-stream"),), [b"data: one\n\n", Close()]))
    answered = await post(place.gateway.base_url + "/responses", {**_TEXT, "stream": True})
    # In relay Envoy may drop the first part together with the connection, and tells so by itself.
    assert answered.cut or (place.mode == "relay" and answered.status == 502), (answered.status, answered.body)


async def test_a_native_answer_that_breaks_off_is_an_error(place: Place) -> None:
    place.native.forget_script()
    place.native.script(answer(200, JSON, [b'{"id": ', Close()]))
    answered = await post(place.gateway.base_url + "/responses", _TEXT)
    if not answered.cut:
        assert answered.status == 502, answered.body
        assert json.loads(answered.body)["error"]["code"] == "upstream_cut"


async def test_a_model_that_its_upstream_is_not_to_serve_does_not_exist(place: Place) -> None:
    place.native.requests.clear()
    answered = await post(place.gateway.base_url + "/responses", {"model": "native-2", "input": "hi"})
    assert answered.status == 404 and json.loads(answered.body)["error"]["code"] == "model_not_found"
    assert not place.native.requests


async def test_ids_of_the_only_native_upstream_are_its_own(place: Place) -> None:
    """With a single owner they are read, listed, deleted and cancelled there; ids of our own stay here."""
    _completion(place.default)
    made = json.loads((await post(place.gateway.base_url + "/responses", {"model": "any", "input": "hi"})).body)
    place.native.forget()
    body = b'{"id":"resp_theirs", "odd": 1}'
    calls = (
        ("GET", "/responses/resp_theirs?include=a&include=b"),
        ("GET", "/responses/resp_theirs/input_items?limit=3"),
        ("DELETE", "/responses/resp_theirs"),
        ("POST", "/responses/resp_theirs/cancel"),
    )
    async with aiohttp.ClientSession() as session:
        for method, path in calls:
            place.native.script(answer(203, (*JSON, ("x-secret", "1")), [body]))
            async with session.request(method, place.gateway.base_url + path, headers={"authorization": "mine"}) as got:
                assert (got.status, await got.read()) == (203, body), (method, path)
                assert "x-secret" not in got.headers
        assert [(seen.method, seen.path) for seen in place.native.requests] == [
            (method, "/deep/v9" + path) for method, path in calls
        ]
        assert {seen.header("authorization") for seen in place.native.requests} == {"Bearer key-of-native"}
        async with session.get(f"{place.gateway.base_url}/responses/{made['id']}") as got:
            assert got.status == 200 and (await got.json())["id"] == made["id"]
        async with session.get(f"{place.gateway.base_url}/responses/resp_x%20y") as got:
            assert got.status == 404
    assert len(place.native.requests) == len(calls)


async def test_native_errors_pass_untouched(place: Place) -> None:
    place.native.forget_script()
    body = b'{"error":{"message":"theirs"}}'
    place.native.script(answer(422, (*JSON, ("retry-after", "7")), [body]))
    answered = await post(place.gateway.base_url + "/responses", {"model": "native-1", "input": "hi"})
    assert (answered.status, answered.body) == (422, body)


async def test_translated_streams_of_another_upstream(place: Place) -> None:
    place.other.forget_script()
    place.other.script(answer(parts=text_stream("hello")))
    answered = await post(place.gateway.base_url + "/responses", {"model": "other-x", "input": "hi", "stream": True})
    assert b"response.completed" in answered.body and b"hello" in answered.body


async def test_models_of_all_upstreams_are_one_list(place: Place) -> None:
    for server, names in (
        (place.default, ["any", "gone-1"]),
        (place.other, ["other-a", "any"]),
        (place.native, ["native-1"]),
    ):
        server.forget_script()
        listed = {"data": [{"id": name, "object": "model"} for name in names]}
        server.script(answer(200, JSON, [json.dumps(listed).encode()]))
    async with aiohttp.ClientSession() as session, session.get(place.gateway.base_url + "/models") as response:
        models = {model["id"] for model in (await response.json())["data"]}
    # What `nobody` would list is missing, and nothing else.
    assert models == {"any", "other-a", "native-1", "native-cut", "fast"}
    for server in (place.default, place.other, place.native):
        assert server.requests[-1].header("authorization") in (None, "Bearer key-of-other", "Bearer key-of-native")


async def test_pitfall_114_codex_finds_its_own_field_in_the_list_of_models(place: Place) -> None:
    url = place.gateway.base_url + "/models?client_version=0.150.0"
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        listed = await response.json()
    assert listed["models"] == [] and listed["data"]


@pytest.mark.parametrize("mode", MODES)
async def test_upstreams_without_a_default(mode: str, tmp_path: Path) -> None:
    """What no rule names does not exist then; native upstreams that are not there, or silent, are errors of ours."""
    async with ChatServer() as server:
        settings = {
            "upstreams": {"one": {"url": server.base_url}, "absent": {"url": "http://127.0.0.1:9/v1"}},
            "models": [
                {"match": "one-native", "upstream": "one", "mode": "native"},
                {"match": "one*", "upstream": "one"},
                {"match": "absent", "upstream": "absent", "mode": "native"},
            ],
            "timeouts": {"connect": 2, "idle": 0.3},
        }
        config = tmp_path / "settings.yaml"
        config.write_text(yaml.safe_dump(settings))
        gateway = await start_gateway(None, tmp_path / "data", "--config", str(config), *MODES[mode])
        url = gateway.base_url + "/responses"

        def refused(answered: Answered) -> tuple[int, str]:
            return answered.status, json.loads(answered.body)["error"]["code"]

        server.script(json_answer(completion()))
        assert (await post(url, {"model": "one", "input": "hi"})).status == 200
        assert refused(await post(url, {"model": "any", "input": "hi"})) == (404, "model_not_found")
        server.script(json_answer(completion()))
        assert (await post(gateway.base_url + "/chat/completions", {"model": "one"})).status == 200
        unknown = await post(gateway.base_url + "/chat/completions", {"model": "any"})
        assert refused(unknown) == (404, "model_not_found")
        assert refused(await post(url, {"model": "absent", "input": "hi"})) == (502, "upstream_unreachable")
        server.script(answer(200, JSON, [b"{", WaitGone()]))
        assert refused(await post(url, {"model": "one-native", "input": "hi"})) == (504, "upstream_timeout")
        server.script(answer(200, (("content-type", "text/event-stream"),), [b"data: one\n\n", WaitGone()]))
        silent = await post(url, {"model": "one-native", "input": "hi", "stream": True})
        assert (silent.status, silent.body, silent.cut) == (200, b"data: one\n\n", True)
        async with aiohttp.ClientSession() as session, session.get(f"{url}/resp_theirs") as got:
            assert got.status == 404, "owners are told apart, so ids of native upstreams are nobody's"
        assert not [line for line in gateway.log if "Traceback" in line or '"level":"error"' in line]
        assert await gateway.stop() == 0
