"""The WebSocket of `/v1/responses` through whole gateways, real Envoys among them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import WSMsgType

from tests.e2e.conftest import Setup
from tests.support.chat_server import ChatServer, Wait, WaitGone, answer, event, json_answer, text_stream
from tests.support.gateway import Gateway, post, start_gateway
from tests.support.judge import check_stream
from tests.support.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

Event = dict[str, Any]
TERMINAL = ("response.completed", "response.failed", "response.incomplete", "error")
UNSTORED: dict[str, Any] = {"model": "demo-model", "store": False}
KEY = {"authorization": "Bearer k"}


@asynccontextmanager
async def connected(gateway: Gateway, **options: Any) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    options.setdefault("headers", KEY)
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(gateway.base_url + "/responses", max_msg_size=0, **options) as socket,
    ):
        yield socket


async def ask(socket: aiohttp.ClientWebSocketResponse, **fields: Any) -> list[Event]:
    """One turn, up to its end."""
    await socket.send_str(json.dumps({"type": "response.create", **fields}))
    return await turn(socket)


async def turn(socket: aiohttp.ClientWebSocketResponse) -> list[Event]:
    events: list[Event] = []
    while not events or events[-1]["type"] not in TERMINAL:
        async with asyncio.timeout(60):
            message = await socket.receive()
        assert message.type is WSMsgType.TEXT, message
        events.append(json.loads(message.data))
    return events


async def test_turns_are_the_event_streams_of_http(setup: Setup) -> None:
    async with connected(setup.gateway) as socket:
        for _ in range(2):
            events = await ask(socket, model="demo-model", input="hi")
            final = check_stream(events)
            assert final["output"][0]["content"][0]["text"] == "Hello"
        async with aiohttp.ClientSession(headers=KEY) as session:
            async with session.get(f"{setup.gateway.base_url}/responses/{final['id']}") as got:
                assert got.status == 200 and (await got.json())["id"] == final["id"]
            # Stored for this owner alone.
            async with session.get(
                f"{setup.gateway.base_url}/responses/{final['id']}", headers={"authorization": "Bearer other"}
            ) as got:
                assert got.status == 404
    assert setup.server.requests[0].path == "/v1/chat/completions"
    assert setup.server.requests[0].header("authorization") == "Bearer k"


async def test_a_chain_that_is_not_stored(setup: Setup) -> None:
    async with connected(setup.gateway) as socket:
        prewarm = (await ask(socket, **UNSTORED, input=[{"role": "developer", "content": "d"}], generate=False))[-1]
        assert prewarm["type"] == "response.completed" and setup.server.requests == []
        first = (await ask(socket, **UNSTORED, input="one", previous_response_id=prewarm["response"]["id"]))[-1]
        second = await ask(socket, **UNSTORED, input="two", previous_response_id=first["response"]["id"])
        check_stream(second)
        roles = [message["role"] for message in setup.server.requests[-1].json["messages"]]
        assert roles == ["system", "user", "assistant", "user"]
        async with connected(setup.gateway) as other:
            [refused] = await ask(other, **UNSTORED, input="x", previous_response_id=first["response"]["id"])
            assert (refused["status"], refused["error"]["code"]) == (400, "previous_response_not_found")
            check_stream(await ask(other, **UNSTORED, input="fresh"))


async def test_a_strangers_response_is_like_a_missing_one(setup: Setup) -> None:
    async with connected(setup.gateway) as socket:
        made = (await ask(socket, model="demo-model", input="mine"))[-1]["response"]
    async with connected(setup.gateway, headers={"authorization": "Bearer stranger"}) as socket:
        said = []
        for response_id in (made["id"], made["id"][:-8] + "00000000"):
            [refused] = await ask(socket, **UNSTORED, input="x", previous_response_id=response_id)
            # The turn's own, whatever was asked.
            assert refused["error"].pop("request_id").startswith("req_")
            said.append(json.dumps(refused).replace(response_id, "ID"))
        assert said[0] == said[1]
        reference = {"type": "item_reference", "id": made["output"][0]["id"]}
        [refused] = await ask(socket, **UNSTORED, input=[reference])
        assert refused["error"]["code"] == "item_not_found"
    assert len(setup.server.requests) == 1


async def test_errors_leave_the_connection_open(setup: Setup) -> None:
    async with connected(setup.gateway) as socket:
        [refused] = await ask(socket, model="demo-model", input="hi", temperature=9)
        assert (refused["status"], refused["error"]["param"]) == (400, "temperature")
        setup.server.script(json_answer({"error": {"message": "slow down"}}, 429, [("retry-after", "3")]))
        [refused] = await ask(socket, **UNSTORED, input="hi")
        assert refused["status"] == 429 and refused["headers"]["retry-after"] == "3"
        check_stream(await ask(socket, **UNSTORED, input="hi"))


async def test_large_frames_and_compression(setup: Setup) -> None:
    async with connected(setup.gateway, compress=15) as socket:
        assert socket.compress
        text = "x" * 300_000
        setup.server.script(answer(parts=text_stream(*("y" * 30_000 for _ in range(10)))))
        events = await ask(socket, **UNSTORED, input=text)
        assert events[-1]["response"]["output"][0]["content"][0]["text"] == "y" * 300_000
        assert setup.server.requests[-1].json["messages"][0]["content"] == text


async def test_what_is_unknown_is_named_and_the_next_is_served(setup: Setup) -> None:
    """An event by one of ours, everything else in the first event, where an HTTP client would read the header."""
    unknown = [
        {"role": "user", "content": "hi"},
        {"type": "future_call"},
        {"type": "compaction", "encrypted_content": "gAAAA"},
    ]
    async with connected(setup.gateway) as socket:
        await socket.send_str('{"type":"session.update","stream_id":"a"}')
        async with asyncio.timeout(60):
            told = json.loads((await socket.receive()).data)
        assert (told["type"], told["ignored"], told["stream_id"]) == ("antiphon.ignored", ["event:session.update"], "a")
        events = await ask(socket, **UNSTORED, input=unknown, include=["future.thing"])
        named = events[0]["headers"]["antiphon-ignored"].split(", ")
        assert named == ["include:future.thing", "input.future_call", "input.compaction"]
        check_stream(events)
        assert "compacted by another server" in setup.server.requests[-1].json["messages"][1]["content"]
        previous = events[-1]["response"]["id"]
        final = check_stream(await ask(socket, **UNSTORED, input="more", previous_response_id=previous))
        assert final["output"][0]["phase"] == "final_answer"
        first, second = (request.json["messages"] for request in setup.server.requests)
        assert second[: len(first)] == first


async def test_events_arrive_as_they_are_made(setup: Setup) -> None:
    gate = asyncio.Event()
    setup.server.script(answer(parts=[event("early"), Wait(gate), *text_stream(" late")]))
    async with connected(setup.gateway) as socket:
        await socket.send_str(json.dumps({"type": "response.create", **UNSTORED, "input": "hi"}))
        found: Event = {}
        while found.get("delta") != "early":
            async with asyncio.timeout(60):
                found = json.loads((await socket.receive()).data)
        gate.set()
        assert (await turn(socket))[-1]["response"]["output"][0]["content"][0]["text"] == "early late"


async def test_the_model_call_ends_with_the_connection(setup: Setup) -> None:
    setup.server.script(answer(parts=[event("a"), WaitGone()]))
    async with connected(setup.gateway) as socket:
        await socket.send_str(json.dumps({"type": "response.create", **UNSTORED, "input": "hi"}))
        async with asyncio.timeout(60):
            await socket.receive()
    await until(lambda: setup.server.requests)
    async with asyncio.timeout(60):
        await setup.server.requests[-1].gone.wait()


async def test_pages_of_other_origins_are_refused(setup: Setup) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        async with connected(setup.gateway, headers={**KEY, "origin": "https://evil.example"}):
            pass
    assert refused.value.status == 403


@pytest.mark.slow
@pytest.mark.parametrize("door", ["envoy", "http"])
async def test_switched_off(tmp_path: Path, door: str) -> None:
    """The upgrade is refused with 426, at which Codex uses HTTP at once, and HTTP works."""
    async with ChatServer() as server:
        environ = {"ANTIPHON_WEBSOCKET__ENABLED": "false"}
        gateway = await start_gateway(server.base_url, tmp_path, "--door", door, environ=environ)
        try:
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                async with connected(gateway):
                    pass
            assert refused.value.status == 426
            assert (await post(gateway.base_url + "/responses", {**UNSTORED, "input": "hi"})).status == 200
        finally:
            await gateway.stop()


@pytest.mark.slow
@pytest.mark.parametrize("door", ["envoy", "http"])
async def test_a_stop_finishes_the_turn_and_closes(tmp_path: Path, door: str) -> None:
    """SIGTERM: what runs is finished, what is idle ends at once, and the gateway stops long before its drain time."""
    gate = asyncio.Event()
    async with ChatServer() as server:
        server.script(answer(parts=[event("a"), Wait(gate), *text_stream("b")]))
        gateway = await start_gateway(server.base_url, tmp_path, "--door", door)
        try:
            async with connected(gateway) as idle, connected(gateway) as busy:
                await busy.send_str(json.dumps({"type": "response.create", **UNSTORED, "input": "hi"}))
                await server.received()
                stopping = asyncio.create_task(gateway.stop())
                async with asyncio.timeout(60):
                    message = await idle.receive()
                assert message.type in (WSMsgType.CLOSE, WSMsgType.CLOSED) and idle.close_code == 1001
                gate.set()
                assert (await turn(busy))[-1]["type"] == "response.completed"
                async with asyncio.timeout(60):
                    assert (await busy.receive()).type in (WSMsgType.CLOSE, WSMsgType.CLOSED)
                    assert await stopping == 0
        finally:
            await gateway.stop()


async def test_conversations(setup: Setup) -> None:
    """A conversation goes on over sockets and HTTP alike; while a turn runs on it, it is locked for the others."""
    made = await post(setup.gateway.base_url + "/conversations", {}, KEY)
    conversation = json.loads(made.body)["id"]
    gate = asyncio.Event()
    setup.server.script(answer(parts=[event("a"), Wait(gate), *text_stream("b")]))
    async with connected(setup.gateway) as one, connected(setup.gateway) as other:
        await one.send_str(
            json.dumps(
                {"type": "response.create", "model": "demo-model", "input": "first", "conversation": conversation}
            )
        )
        async with asyncio.timeout(60):
            await one.receive()
        [refused] = await ask(other, model="demo-model", input="second", conversation=conversation)
        assert (refused["status"], refused["error"]["code"]) == (409, "conversation_locked")
        gate.set()
        assert (await turn(one))[-1]["type"] == "response.completed"
        check_stream(await ask(other, model="demo-model", input="second", conversation=conversation))
    sent = setup.server.requests[-1].json["messages"]
    assert [message["content"] for message in sent] == ["first", "ab", "second"]
    over_http = await post(
        setup.gateway.base_url + "/responses",
        {"model": "demo-model", "input": "third", "conversation": conversation},
        KEY,
    )
    assert over_http.status == 200 and len(setup.server.requests[-1].json["messages"]) == 5


async def test_a_socket_that_is_left_gives_its_conversation_back(setup: Setup) -> None:
    conversation = json.loads((await post(setup.gateway.base_url + "/conversations", {}, KEY)).body)["id"]
    setup.server.script(answer(parts=[event("a"), WaitGone()]))
    body = {"model": "demo-model", "input": "second", "conversation": conversation}
    async with connected(setup.gateway) as socket:
        await socket.send_str(json.dumps({"type": "response.create", **body, "input": "first"}))
        async with asyncio.timeout(60):
            await socket.receive()
        assert (await post(setup.gateway.base_url + "/responses", body, KEY)).status == 409
    async with asyncio.timeout(60):
        while (after := await post(setup.gateway.base_url + "/responses", body, KEY)).status == 409:
            await asyncio.sleep(0.01)
    assert after.status == 200, after.body
    # What the turn that was left had heard is no part of the conversation.
    assert [message["content"] for message in setup.server.requests[-1].json["messages"]] == ["second"]
