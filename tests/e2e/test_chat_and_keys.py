"""Chat Completions beside Responses, and keys that clients must show: every door."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.e2e.conftest import Setup
from tests.support.chat_server import ChatServer, Wait, WaitGone, answer, event, json_answer, text_stream
from tests.support.gateway import Gateway, post, start_gateway

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

CHAT: dict[str, Any] = {"model": "demo-model", "messages": [{"role": "user", "content": "hi"}]}
KEY = "a-key-of-the-gateway"
MODES = {"relay": ("--mode", "relay"), "drive": ("--mode", "drive"), "http": ("--door", "http")}


async def test_streams_pass_as_they_come(setup: Setup) -> None:
    gate = asyncio.Event()
    parts = text_stream("a", "b")
    setup.server.script(answer(parts=[parts[0], Wait(gate), *parts[1:]]))
    async with (
        aiohttp.ClientSession() as session,
        session.post(setup.gateway.base_url + "/chat/completions", json={**CHAT, "stream": True}) as got,
    ):
        assert got.status == 200 and got.content_type == "text/event-stream"
        async with asyncio.timeout(60):
            body = await got.content.readany()
            assert body == parts[0]
            gate.set()
            body += await got.content.read()
    assert body == b"".join(parts)


async def test_the_call_ends_with_the_client(setup: Setup) -> None:
    setup.server.script(answer(parts=[event("a"), WaitGone()]))
    async with (
        aiohttp.ClientSession() as session,
        session.post(setup.gateway.base_url + "/chat/completions", json={**CHAT, "stream": True}) as got,
    ):
        await got.content.readany()
    async with asyncio.timeout(60):
        await setup.server.requests[-1].gone.wait()


class Locked:
    """A gateway that wants a key, with an upstream that gets its own."""

    def __init__(self, gateway: Gateway, server: ChatServer) -> None:
        self.gateway = gateway
        self.server = server


@pytest_asyncio.fixture(params=MODES, scope="module", loop_scope="session")
async def locked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Locked]:
    environ = {
        "ANTIPHON_OWNER__API_KEYS": f"{KEY},another-key-of-it",
        "ANTIPHON_UPSTREAM__API_KEY": "key-of-upstream",
    }
    async with ChatServer() as server:
        folder = tmp_path_factory.mktemp("keys")
        gateway = await start_gateway(server.base_url, folder, *MODES[request.param], environ=environ)
        yield Locked(gateway, server)
        await gateway.stop()
        log = "\n".join(gateway.log)
        assert KEY not in log and "another-key" not in log and "key-of-upstream" not in log
        # What is handed to Envoy holds no key of a client, not even its digest.
        for written in folder.rglob("*.yaml"):
            assert KEY not in written.read_text()


PATHS = [
    ("POST", "/responses", {"model": "demo-model", "input": "hi"}),
    ("POST", "/chat/completions", CHAT),
    ("POST", "/embeddings", {"model": "demo-model", "input": "hi"}),
    ("GET", "/models", None),
    ("GET", "/responses/resp_1", None),
    ("GET", "/conversations/conv_1", None),
    ("POST", "/responses/input_tokens", {"model": "demo-model", "input": "hi"}),
]


@pytest.mark.parametrize(("method", "path", "body"), PATHS)
async def test_no_key_no_answer(locked: Locked, method: str, path: str, body: Any) -> None:
    locked.server.requests.clear()
    async with aiohttp.ClientSession() as session:
        for headers, code in (
            ({}, "missing_api_key"),
            ({"authorization": "Bearer a-key-of-the-gatewax"}, "invalid_api_key"),
            ({"authorization": f"Basic {KEY}"}, "missing_api_key"),
        ):
            url = locked.gateway.base_url + path
            async with session.request(method, url, json=body, headers=headers) as got:
                assert got.status == 401 and (await got.json())["error"]["code"] == code
    assert locked.server.requests == []


@pytest.mark.parametrize("key", [KEY, "another-key-of-it"])
async def test_a_key_opens_everything(locked: Locked, key: str) -> None:
    locked.server.requests.clear()
    headers = {"authorization": f"Bearer {key}"}
    url = locked.gateway.base_url
    assert (await post(url + "/responses", {"model": "demo-model", "input": "hi"}, headers)).status == 200
    assert (await post(url + "/chat/completions", CHAT, headers)).status == 200
    locked.server.script(json_answer({"object": "list", "data": []}))
    assert (await post(url + "/embeddings", {"model": "demo-model", "input": "x"}, headers)).status == 200
    seen = [request.path for request in locked.server.requests]
    assert seen == ["/v1/chat/completions", "/v1/chat/completions", "/v1/embeddings"]
    # The client's key is for the gateway alone.
    assert {request.header("authorization") for request in locked.server.requests} == {"Bearer key-of-upstream"}


async def test_sockets_want_a_key_too(locked: Locked) -> None:
    url = locked.gateway.base_url + "/responses"
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await session.ws_connect(url)
        assert refused.value.status == 401
        # A page can only put its key among the protocols; that is no key here, and is not logged either.
        headers = {"authorization": f"Bearer {KEY}"}
        async with session.ws_connect(url, headers=headers, protocols=("realtime", KEY)) as socket:
            await socket.send_str(json.dumps({"type": "response.create", "model": "demo-model", "input": "hi"}))
            assert json.loads((await socket.receive()).data)["type"] == "response.created"


async def test_health_is_open(locked: Locked) -> None:
    async with aiohttp.ClientSession() as session, session.get(locked.gateway.origin + "/health") as got:
        assert got.status == 200


async def test_the_document_is_open(locked: Locked) -> None:
    async with aiohttp.ClientSession() as session, session.get(locked.gateway.origin + "/openapi.json") as got:
        assert got.status == 200
        assert "/v1/responses" in (await got.json())["paths"]


async def test_owners_of_different_keys_are_strangers(locked: Locked) -> None:
    url = locked.gateway.base_url + "/responses"
    made = await post(url, {"model": "demo-model", "input": "hi"}, {"authorization": f"Bearer {KEY}"})
    response_id = json.loads(made.body)["id"]
    async with aiohttp.ClientSession() as session:
        for key, status in ((KEY, 200), ("another-key-of-it", 404)):
            async with session.get(f"{url}/{response_id}", headers={"authorization": f"Bearer {key}"}) as got:
                assert got.status == status


async def test_keys_and_passed_through_credentials_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"upstream\.auth"):
        await start_gateway("http://127.0.0.1:9/v1", tmp_path, environ={"ANTIPHON_OWNER__API_KEYS": KEY})
