"""The WebSocket of `/v1/responses`, with a real client over a real door."""

from __future__ import annotations

import asyncio
import fcntl
import json
import struct
import termios
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from socket import SHUT_RDWR
from typing import Any

import aiohttp
import pytest
from aiohttp import WSMsgType
from structlog.testing import capture_logs

from antiphon.config.limits import WebSocketSettings
from antiphon.doors.http.websocket import WebSocketConnection
from antiphon.doors.owners import OwnerResolver
from antiphon.engine.ports.actions import ResponseRecord
from tests.support.chat_server import (
    Answer,
    Mark,
    Reset,
    Wait,
    WaitGone,
    answer,
    chunk,
    event,
    json_answer,
    text_stream,
)
from tests.support.http_door import HttpSetup, OpenHttpDoor, open_http_door, post_bytes
from tests.support.judge import check_stream
from tests.support.waiting import until

Event = dict[str, Any]
TERMINAL = ("response.completed", "response.failed", "response.incomplete", "error")
UNSTORED: dict[str, Any] = {"model": "demo-model", "store": False}


class Socket:
    """A client's side of a connection."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.raw = socket

    async def send(self, **fields: Any) -> None:
        await self.raw.send_str(json.dumps({"type": "response.create", **fields}))

    async def receive(self) -> Event:
        async with asyncio.timeout(60):
            message = await self.raw.receive()
        assert message.type is WSMsgType.TEXT, message
        found: Event = json.loads(message.data)
        return found

    async def turn(self) -> list[Event]:
        """Everything up to the turn's end."""
        events = [await self.receive()]
        while events[-1]["type"] not in TERMINAL:
            events.append(await self.receive())
        return events

    async def ask(self, **fields: Any) -> list[Event]:
        await self.send(**fields)
        return await self.turn()

    async def response(self, **fields: Any) -> Event:
        """A turn that is completed; its response."""
        events = await self.ask(**fields)
        assert events[-1]["type"] == "response.completed", events[-1]
        found: Event = events[-1]["response"]
        return found

    async def error(self, **fields: Any) -> Event:
        """A turn that is refused; the envelope."""
        events = await self.ask(**fields)
        assert len(events) == 1 and events[0]["type"] == "error", events
        assert set(events[0]["error"]) - {"headers"} == {"message", "type", "param", "code", "request_id"}
        return events[0]

    async def closed(self) -> int | None:
        """Wait for the server to close; the code it gave."""
        async with asyncio.timeout(60):
            message = await self.raw.receive()
        assert message.type in (WSMsgType.CLOSE, WSMsgType.CLOSED, WSMsgType.CLOSING), message
        return self.raw.close_code


@asynccontextmanager
async def connected(opened: OpenHttpDoor, **options: Any) -> AsyncIterator[Socket]:
    options.setdefault("headers", {"authorization": "Bearer k"})
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"http://{opened.address}/v1/responses", **options) as socket,
    ):
        yield Socket(socket)


@pytest.fixture
async def socket(door: OpenHttpDoor) -> AsyncIterator[Socket]:
    async with connected(door) as made:
        yield made


def sent_to_model(opened: OpenHttpDoor, number: int = -1) -> list[tuple[str, Any]]:
    """The messages of a model call, as (role, content)."""
    return [(one["role"], one.get("content")) for one in opened.chat.requests[number].json["messages"]]


def call_stream(name: str = "f") -> list[bytes]:
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": name, "arguments": "{}"}}
    return [event(chunk({"tool_calls": [call]})), event(chunk(finish_reason="tool_calls")), b"data: [DONE]\n\n"]


TOOL = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}


# One turn


async def test_a_turn_is_the_event_stream_in_frames(door: OpenHttpDoor, socket: Socket) -> None:
    began = time.perf_counter()
    events = await socket.ask(model="demo-model", input="hi")
    check_stream(events)
    over_http = (await door.ask(post_bytes({"model": "demo-model", "input": "hi", "stream": True}))).events
    assert [one["type"] for one in events] == [one["type"] for one in over_http]
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == "Hello"
    assert door.metric("responses_total", outcome="completed", door="websocket") == 1
    assert 0 < door.metric("response_duration_seconds_sum", door="websocket") < time.perf_counter() - began
    assert door.metric("antiphon_responses_in_flight") == 0


async def test_a_turn_has_one_line_that_says_how_long_it_took(door: OpenHttpDoor, socket: Socket) -> None:
    began = time.perf_counter()
    with capture_logs() as lines:
        response = await socket.response(**UNSTORED, input="hi")
        await socket.error(**UNSTORED, input="hi", previous_response_id="resp_nowhere")
        await until(lambda: door.metric("responses_total", door="websocket", outcome="error") == 1)
    took = time.perf_counter() - began
    assert door.metric("responses_total", door="websocket", outcome="completed") == 1
    assert door.metric("antiphon_responses_in_flight") == 0 and door.context.admission.active == 0
    assert 0 <= door.metric("response_duration_seconds_sum", door="websocket") <= took
    good, bad = [one for one in lines if one["event"] == "response"]
    assert (good["response_id"], good["outcome"], good["door"]) == (response["id"], "completed", "websocket")
    assert (bad["outcome"], bad["fault"]) == ("error", "client")
    assert all(0 <= one["seconds"] <= took for one in (good, bad)) and good["request_id"] != bad["request_id"]


async def test_no_sentinel_and_turns_go_on(door: OpenHttpDoor, socket: Socket) -> None:
    """The frame after a turn's end is the next turn's first."""
    for number in range(3):
        events = await socket.ask(**UNSTORED, input=f"say {number}")
        assert events[0]["type"] == "response.created" and events[-1]["type"] == "response.completed"
    assert len(door.chat.requests) == 3


async def test_stream_may_be_said_and_says_nothing(door: OpenHttpDoor, socket: Socket) -> None:
    for stream in (True, False, None):
        assert (await socket.response(**UNSTORED, input="hi", stream=stream))["status"] == "completed"
    assert all(request.json["stream"] for request in door.chat.requests)


async def test_a_stored_response_is_stored(door: OpenHttpDoor, socket: Socket) -> None:
    made = await socket.response(model="demo-model", input="hi")
    got = await door.ask(
        post_bytes(method="GET", path=f"/v1/responses/{made['id']}", headers={"authorization": "Bearer k"})
    )
    assert got.status == 200 and got.json["output"] == made["output"]
    again = await socket.response(model="demo-model", input="more", previous_response_id=made["id"])
    assert again["previous_response_id"] == made["id"]
    assert sent_to_model(door) == [("user", "hi"), ("assistant", "Hello"), ("user", "more")]


async def test_what_is_ignored_stands_in_the_first_event(socket: Socket) -> None:
    events = await socket.ask(**UNSTORED, input="hi", unknown_field=1)
    assert events[0]["headers"] == {"antiphon-ignored": "unknown_field"}
    assert not any("headers" in one for one in events[1:])
    check_stream(events)


async def test_an_event_that_nobody_knows_is_named_at_once_and_the_next_one_is_served(socket: Socket) -> None:
    """Between two responses, and while one waits: neither notices."""
    await socket.raw.send_str('{"type":"session.update","stream_id":"a"}')
    assert await socket.receive() == {
        "type": "antiphon.ignored",
        "sequence_number": 0,
        "ignored": ["event:session.update"],
        "stream_id": "a",
    }
    check_stream(await socket.ask(**UNSTORED, input="hi"))


async def test_several_requests_are_answered_in_order(door: OpenHttpDoor, socket: Socket) -> None:
    """Sent at once, answered one after another: never two at a time."""
    gate = asyncio.Event()
    door.chat.script(answer(parts=[event("one"), Wait(gate), *text_stream("!")]))
    await socket.send(**UNSTORED, input="first")
    await socket.send(**UNSTORED, input="second")
    await door.chat.received()
    await socket.receive()
    assert len(door.chat.requests) == 1
    gate.set()
    first = await socket.turn()
    assert first[-1]["response"]["output"][0]["content"][0]["text"] == "one!"
    second = await socket.turn()
    assert second[-1]["response"]["output"][0]["content"][0]["text"] == "Hello"
    assert second[0]["sequence_number"] == 0


async def test_lanes_are_echoed(socket: Socket) -> None:
    """OpenAI's `stream_id`: named in every event of its turn, errors included."""
    events = await socket.ask(**UNSTORED, input="hi", stream_id='a"b', unknown_field=1)
    assert {one["stream_id"] for one in events} == {'a"b'} and "headers" in events[0]
    refused = await socket.error(model="demo-model", input=[], stream_id="lane-2")
    assert refused["stream_id"] == "lane-2"
    assert "stream_id" not in (await socket.ask(**UNSTORED, input="hi"))[0]


# Errors


@pytest.mark.parametrize(
    ("frame", "code", "param"),
    [
        ("{", "invalid_json", None),
        ('{"type":"response.create","model":"m","input":"\\ud83d"}', "invalid_json", None),
        ("[]", "invalid_json", None),
        ("null", "invalid_json", None),
        ('{"a":' * 5000, "invalid_json", None),
        ('{"model":"m","input":"hi"}', "invalid_value", "type"),
        ('{"type":7}', "invalid_type", "type"),
        ('{"type":"response.create"}', "missing_required_parameter", "model"),
        ('{"type":"response.create","model":"m","input":"x","background":true}', "unsupported_parameter", "background"),
        ('{"type":"response.create","model":"m","input":"x","generate":"no"}', "invalid_type", "generate"),
        ('{"type":"response.create","model":"m","input":"x","stream_id":1}', "invalid_type", "stream_id"),
        (
            json.dumps({"type": "response.create", "model": "m", "input": "x", "stream_id": "x" * 257}),
            "string_above_max_length",
            "stream_id",
        ),
        (
            '{"type":"response.create","model":"m","input":"x","temperature":9}',
            "decimal_above_max_value",
            "temperature",
        ),
        (
            '{"type":"response.create","model":"m","input":"x","previous_response_id":5}',
            "invalid_type",
            "previous_response_id",
        ),
    ],
)
async def test_what_is_refused(door: OpenHttpDoor, socket: Socket, frame: str, code: str, param: str | None) -> None:
    """An envelope, and the connection stays."""
    await socket.raw.send_str(frame)
    got = await socket.receive()
    assert (got["type"], got["status"]) == ("error", 400)
    assert (got["error"]["code"], got["error"]["param"]) == (code, param)
    assert (await socket.response(**UNSTORED, input="hi"))["status"] == "completed"
    assert len(door.chat.requests) == 1


async def test_acknowledgements_are_not_answered(socket: Socket) -> None:
    await socket.raw.send_str('{"type":"response.processed","response_id":"resp_1"}')
    assert (await socket.ask(**UNSTORED, input="hi"))[0]["type"] == "response.created"


async def test_a_response_is_not_steered(socket: Socket) -> None:
    """The input comes back, and no turn ends by it."""
    await socket.raw.send_str('{"type":"response.steer","previous_response_id":"resp_1","input":"wait"}')
    got = await socket.receive()
    assert got["type"] == "response.steer.failed" and got["steer"]["input"] == "wait"
    assert (await socket.ask(**UNSTORED, input="hi"))[0]["type"] == "response.created"


async def test_input_for_a_response_that_is_over_continues_it(socket: Socket) -> None:
    """What comes back of `response.inject` is the input of the next request."""
    made = await socket.response(**UNSTORED, input="hi")
    item = {"type": "message", "role": "user", "content": "more"}
    await socket.raw.send_json({"type": "response.inject", "response_id": made["id"], "input": [item]})
    got = await socket.receive()
    assert (got["type"], got["response_id"]) == ("response.inject.failed", made["id"])
    again = await socket.response(**UNSTORED, input=got["input"], previous_response_id=got["response_id"])
    assert again["status"] == "completed"


async def test_the_caches_prewarm_is_one_too(door: OpenHttpDoor, socket: Socket) -> None:
    """OpenAI: `prewarm` overrides `generate`; over HTTP there is nothing else."""
    options = {"prewarm": True}
    made = await socket.response(**UNSTORED, input="a", prompt_cache_options=options, generate=True)
    assert made["output"] == []
    body = {**UNSTORED, "input": "a", "prompt_cache_options": options}
    assert (await door.ask(post_bytes(body))).json["output"] == []
    streamed = (await door.ask(post_bytes({**body, "stream": True}))).events
    assert [one["type"] for one in streamed] == ["response.created", "response.in_progress", "response.completed"]
    assert door.chat.requests == []
    await socket.response(**UNSTORED, input="b", previous_response_id=made["id"])
    assert sent_to_model(door) == [("user", "a"), ("user", "b")]


async def test_binary_frames_are_refused(socket: Socket) -> None:
    await socket.raw.send_bytes(b'{"type":"response.create"}')
    assert (await socket.receive())["error"]["code"] == "invalid_frame"
    assert (await socket.response(**UNSTORED, input="hi"))["status"] == "completed"


@pytest.mark.parametrize(
    ("script", "status", "code"),
    [
        (json_answer({"error": {"message": "slow", "type": "t", "code": "c"}}, 429, [("retry-after", "3")]), 429, "c"),
        (json_answer({"error": {"message": "no such model"}}, 404), 404, "model_not_found"),
        (json_answer({"error": {"message": "no"}}, 500), 500, "upstream_error"),
        (answer(200, (("content-type", "text/html"),), [b"<h1>hello</h1>"]), 502, "upstream_invalid"),
    ],
)
async def test_upstream_errors_before_the_first_event(
    door: OpenHttpDoor, socket: Socket, script: Answer, status: int, code: str
) -> None:
    door.chat.script(script)
    got = await socket.error(model="demo-model", input="hi")
    assert (got["status"], got["error"]["code"]) == (status, code)
    assert got.get("headers", {}).get("retry-after") == ("3" if status == 429 else None)
    assert (await socket.response(model="demo-model", input="hi"))["status"] == "completed"


async def test_a_failure_in_the_stream_is_one_terminal_event(door: OpenHttpDoor, socket: Socket) -> None:
    """Clients take an `error` frame for a turn's end, so the event of that name does not come before the last one."""
    door.chat.script(answer(parts=[event("a"), Reset()]))
    events = await socket.ask(model="demo-model", input="hi")
    assert [one["type"] for one in events[-2:]] == ["response.output_item.done", "response.failed"]
    assert [one["sequence_number"] for one in events] == list(range(len(events)))
    assert (await socket.ask(model="demo-model", input="hi"))[0]["type"] == "response.created"


async def test_a_bug_of_ours_is_a_500_and_the_connection_stays(
    door: OpenHttpDoor, socket: Socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("antiphon.api.frames.EventFrames.feed", lambda *_: 1 / 0)
        got = await socket.error(**UNSTORED, input="hi")
    assert (got["status"], got["error"]["type"]) == (500, "server_error")
    await until(lambda: door.metric("responses_total", door="websocket", outcome="error") == 1)
    assert (await socket.response(**UNSTORED, input="hi"))["status"] == "completed"


# What a connection remembers


async def test_a_chain_that_is_not_stored_goes_on(door: OpenHttpDoor, socket: Socket) -> None:
    first = await socket.response(**UNSTORED, input="cobalt")
    second = await socket.response(**UNSTORED, input="which?", previous_response_id=first["id"])
    await socket.response(**UNSTORED, input="sure?", previous_response_id=second["id"])
    assert sent_to_model(door) == [
        *(("user", "cobalt"), ("assistant", "Hello")),
        *(("user", "which?"), ("assistant", "Hello")),
        ("user", "sure?"),
    ]
    assert door.store.records == {}


async def test_tool_outputs_alone_go_on(door: OpenHttpDoor, socket: Socket) -> None:
    """What Codex does after each tool call: `store: false`, the id, and the output."""
    door.chat.script(answer(parts=call_stream()))
    made = await socket.response(**UNSTORED, input="use it", tools=[TOOL])
    output = {"type": "function_call_output", "call_id": made["output"][0]["call_id"], "output": "42"}
    await socket.response(**UNSTORED, input=[output], tools=[TOOL], previous_response_id=made["id"])
    assert [role for role, _ in sent_to_model(door)] == ["user", "assistant", "tool"]


async def test_a_turn_can_be_continued_twice(door: OpenHttpDoor, socket: Socket) -> None:
    first = await socket.response(**UNSTORED, input="a")
    await socket.response(**UNSTORED, input="b", previous_response_id=first["id"])
    await socket.response(**UNSTORED, input="c", previous_response_id=first["id"])
    assert sent_to_model(door) == [("user", "a"), ("assistant", "Hello"), ("user", "c")]


async def test_an_unstored_turn_continues_a_stored_one(door: OpenHttpDoor, socket: Socket) -> None:
    stored = await socket.response(model="demo-model", input="a")
    second = await socket.response(**UNSTORED, input="b", previous_response_id=stored["id"])
    third = await socket.response(**UNSTORED, input="c", previous_response_id=second["id"])
    assert len(sent_to_model(door)) == 5
    # What the chain rests on was deleted: it ends, as a stored chain would.
    await door.store.delete(next(iter(door.store.records.values())).owner, stored["id"])
    got = await socket.error(**UNSTORED, input="d", previous_response_id=third["id"])
    assert got["error"]["code"] == "previous_response_not_found"


async def test_nothing_stored_rests_on_what_is_not(door: OpenHttpDoor, socket: Socket) -> None:
    first = await socket.response(**UNSTORED, input="a")
    got = await socket.error(model="demo-model", input="b", previous_response_id=first["id"])
    assert (got["status"], got["error"]["code"]) == (400, "previous_response_not_found")
    assert got["error"]["param"] == "previous_response_id" and door.store.records == {}


async def test_another_connection_knows_nothing_of_it(door: OpenHttpDoor, socket: Socket) -> None:
    made = await socket.response(**UNSTORED, input="a")
    async with connected(door) as other:
        got = await other.error(**UNSTORED, input="b", previous_response_id=made["id"])
        assert got["error"]["code"] == "previous_response_not_found"
        assert (await other.response(**UNSTORED, input="b"))["status"] == "completed"
    over_http = await door.ask(
        post_bytes(
            {**UNSTORED, "input": "b", "previous_response_id": made["id"]}, headers={"authorization": "Bearer k"}
        )
    )
    assert over_http.error["code"] == "previous_response_not_found"


async def test_unknown_ids(socket: Socket) -> None:
    got = await socket.error(**UNSTORED, input="b", previous_response_id="resp_missing_1")
    assert (got["status"], got["error"]["code"]) == (400, "previous_response_not_found")


async def test_a_failed_continuation_forgets(door: OpenHttpDoor, socket: Socket) -> None:
    """An output without its call fails, and takes the id it continued with it."""
    first = await socket.response(**UNSTORED, input="a")
    output = {"type": "function_call_output", "call_id": "call_missing", "output": "x"}
    assert (await socket.error(**UNSTORED, input=[output], previous_response_id=first["id"]))["status"] == 400
    got = await socket.error(**UNSTORED, input="b", previous_response_id=first["id"])
    assert got["error"]["code"] == "previous_response_not_found"
    assert len(door.chat.requests) == 1


@pytest.mark.parametrize("script", [json_answer({}, 500), answer(parts=[event("a"), Reset()])])
async def test_an_upstream_failure_forgets_too(door: OpenHttpDoor, socket: Socket, script: Answer) -> None:
    first = await socket.response(**UNSTORED, input="a")
    door.chat.script(script)
    failed = await socket.ask(**UNSTORED, input="b", previous_response_id=first["id"])
    assert failed[-1]["type"] in ("error", "response.failed")
    got = await socket.error(**UNSTORED, input="b", previous_response_id=first["id"])
    assert got["error"]["code"] == "previous_response_not_found"


async def test_items_of_the_connection_can_be_referenced(door: OpenHttpDoor, socket: Socket) -> None:
    made = await socket.response(**UNSTORED, input="a")
    reference = {"type": "item_reference", "id": made["output"][0]["id"]}
    await socket.response(**UNSTORED, input=[reference, {"role": "user", "content": "b"}])
    assert sent_to_model(door) == [("assistant", "Hello"), ("user", "b")]


async def test_memory_has_a_limit() -> None:
    async with open_http_door(websocket=WebSocketSettings(memory_bytes=2_000)) as opened, connected(opened) as socket:
        small = await socket.response(**UNSTORED, input="a")
        assert (await socket.response(**UNSTORED, input="b", previous_response_id=small["id"]))["status"] == "completed"
        large = await socket.response(**UNSTORED, input="x" * 3_000)
        got = await socket.error(**UNSTORED, input="b", previous_response_id=large["id"])
        assert got["error"]["code"] == "previous_response_not_found"


# Prewarm


async def test_a_prewarm_asks_no_model(door: OpenHttpDoor, socket: Socket) -> None:
    developer = {"role": "developer", "content": "be brief"}
    events = await socket.ask(**UNSTORED, input=[developer], tools=[TOOL], generate=False)
    check_stream(events)
    assert [one["type"] for one in events] == ["response.created", "response.in_progress", "response.completed"]
    made = events[-1]["response"]
    assert made["output"] == [] and made["usage"]["total_tokens"] == 0 and door.chat.requests == []
    # Both of what Codex may do next: the input again, or only what is new.
    await socket.response(**UNSTORED, input=[developer, {"role": "user", "content": "hi"}])
    await socket.response(**UNSTORED, input="hi", previous_response_id=made["id"])
    assert sent_to_model(door, 0) == sent_to_model(door, 1) == [("system", "be brief"), ("user", "hi")]


async def test_a_prewarm_is_checked_like_any_request(door: OpenHttpDoor, socket: Socket) -> None:
    got = await socket.error(
        **UNSTORED, input=[{"type": "function_call_output", "call_id": "x", "output": "y"}], generate=False
    )
    assert got["status"] == 400
    got = await socket.error(**UNSTORED, input="x", generate=False, previous_response_id="resp_none")
    assert got["error"]["code"] == "previous_response_not_found" and door.chat.requests == []


async def test_a_stored_prewarm_is_stored(door: OpenHttpDoor, socket: Socket) -> None:
    made = await socket.response(model="demo-model", input="a", generate=False)
    record: ResponseRecord = door.store.records[made["id"]]
    assert record.status == "completed" and record.output_items == ()
    await socket.response(model="demo-model", input="b", previous_response_id=made["id"])
    assert sent_to_model(door) == [("user", "a"), ("user", "b")]


# The handshake


async def refused(opened: OpenHttpDoor, **options: Any) -> tuple[int, str]:
    """Status and error code of a handshake that fails."""
    options.setdefault("headers", {"authorization": "Bearer k"})
    headers = {
        "connection": "Upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": "AAAAAAAAAAAAAAAAAAAAAA==",
        **options["headers"],
    }
    got = await opened.ask(post_bytes(method="GET", headers=headers))
    return got.status, got.error["code"]


async def test_switched_off_is_a_426() -> None:
    """Codex falls back to HTTP at once."""
    async with open_http_door(websocket=WebSocketSettings(enabled=False)) as opened:
        assert await refused(opened) == (426, "upgrade_not_supported")
        assert await refused(opened, headers={"upgrade": "WebSocket"}) == (426, "upgrade_not_supported")


async def test_pages_of_other_origins_are_refused(door: OpenHttpDoor) -> None:
    assert await refused(door, headers={"origin": "https://evil.example"}) == (403, "origin_not_allowed")
    assert await refused(door, headers={"origin": "null"}) == (403, "origin_not_allowed")
    async with connected(door, headers={"origin": f"http://{door.address}"}) as same:
        assert (await same.response(**UNSTORED, input="hi"))["status"] == "completed"
    allowed = WebSocketSettings(origins=("https://app.example",))
    async with open_http_door(websocket=allowed) as opened:
        assert (await refused(opened, headers={"origin": "https://evil.example"}))[0] == 403
        async with connected(opened, headers={"origin": "https://app.example"}) as page:
            assert (await page.response(**UNSTORED, input="hi"))["status"] == "completed"


async def test_no_more_connections_than_allowed() -> None:
    async with open_http_door(websocket=WebSocketSettings(connections=1)) as opened:
        async with connected(opened):
            assert await refused(opened) == (503, "overloaded") and opened.metric("antiphon_websocket_connections") == 1
        await until(lambda: opened.metric("antiphon_websocket_connections") == 0)
        async with connected(opened) as socket:
            assert (await socket.response(**UNSTORED, input="hi"))["status"] == "completed"


async def test_an_identity_is_wanted_before_the_upgrade() -> None:
    owners = OwnerResolver("header", "x-antiphon-owner")
    async with open_http_door(owners=owners, private=True, secret="s") as opened:
        secret = {"x-antiphon-secret": "s"}
        assert await refused(opened, headers=secret) == (401, "missing_identity")
        assert await refused(opened, headers={"x-antiphon-owner": "me"}) == (401, "missing_secret")
        async with connected(opened, headers={**secret, "x-antiphon-owner": "me"}) as socket:
            await socket.response(model="demo-model", input="hi")
        assert {record.owner for record in opened.store.records.values()} == {"h:me"}


@pytest.mark.parametrize("header", ["sec-websocket-key", "sec-websocket-version"])
async def test_a_broken_handshake(door: OpenHttpDoor, header: str) -> None:
    assert await refused(door, headers={header: "x"}) == (400, "invalid_handshake")


async def test_other_paths_and_methods_take_no_upgrade(door: OpenHttpDoor) -> None:
    headers = {"connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
    assert (await door.ask(post_bytes(method="GET", path="/v1/models", headers=headers))).status == 200
    assert (await door.ask(post_bytes({"model": "demo-model", "input": "hi"}, headers=headers))).status == 200


# Ends


async def test_the_model_call_ends_with_the_connection(door: OpenHttpDoor) -> None:
    door.chat.script(answer(parts=[event("a"), WaitGone()]))
    async with connected(door) as socket:
        await socket.send(model="demo-model", input="hi")
        call = await door.chat.received()
        await socket.receive()
    async with asyncio.timeout(60):
        await call.gone.wait()
    await door.stored("failed")
    await until(lambda: door.metric("responses_total", outcome="cancelled", door="websocket") == 1)
    await until(lambda: door.context.admission.active == 0)


async def test_a_connection_that_breaks(door: OpenHttpDoor) -> None:
    door.chat.script(answer(parts=[event("a"), WaitGone()]))
    async with connected(door) as socket:
        await socket.send(model="demo-model", input="hi")
        call = await door.chat.received()
        await socket.receive()
        socket.raw.get_extra_info("socket").shutdown(SHUT_RDWR)
        async with asyncio.timeout(60):
            await call.gone.wait()
        await door.stored("failed")


async def test_a_client_that_answers_no_ping_is_gone() -> None:
    """Its model call ends with it, although its connection stays open."""
    async with open_http_door(websocket=WebSocketSettings(ping=0.4)) as opened:
        opened.chat.script(answer(parts=[event("a"), WaitGone()]))
        async with connected(opened, autoping=False) as socket:
            await socket.send(model="demo-model", input="hi")
            call = await opened.chat.received()
            async with asyncio.timeout(60):
                await call.gone.wait()
            await opened.stored("failed")


_UPGRADE = (
    b"GET /v1/responses HTTP/1.1\r\nhost: test\r\nauthorization: Bearer k\r\nconnection: upgrade\r\n"
    b"upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)


def _frame(**fields: Any) -> bytes:
    """A text frame of up to 125 bytes, masked with zeros."""
    data = json.dumps({"type": "response.create", **fields}).encode()
    assert len(data) < 126
    return bytes([0x81, 0x80 | len(data)]) + bytes(4) + data


async def test_a_client_that_does_not_read_holds_the_model_back() -> None:
    """What is produced waits in the network, not here, until the client is cut off."""
    written = [asyncio.Event() for _ in range(400)]
    steps = [step for mark in written for step in (event("x" * 100_000), Mark(mark))]
    async with open_http_door(send_seconds=0.5) as door, door.client() as client:
        door.chat.script(answer(parts=[*steps, WaitGone()]))
        await client.send(_UPGRADE + b"\r\n")
        assert (await client.head()).status == 101
        await client.send(_frame(**UNSTORED, input="hi"))
        call = await door.chat.received()
        async with asyncio.timeout(60):
            await call.gone.wait()
        assert written[0].is_set() and not written[-1].is_set()


async def test_an_hour_is_the_limit(door: OpenHttpDoor, socket: Socket) -> None:
    """A turn that runs is finished, no other begins; then the connection says why it ends."""
    gate = asyncio.Event()
    door.chat.script(answer(parts=[event("a"), Wait(gate), *text_stream("b")]))
    await socket.send(**UNSTORED, input="hi")
    await socket.send(**UNSTORED, input="too late")
    await door.chat.received()
    [connection] = door.door.sockets
    connection.expire()
    gate.set()
    assert (await socket.turn())[-1]["type"] == "response.completed"
    got = await socket.receive()
    assert (got["status"], got["error"]["code"]) == (400, "websocket_connection_limit_reached")
    assert await socket.closed() == 1000
    assert len(door.chat.requests) == 1


async def test_an_idle_connection_ends_by_itself() -> None:
    async with open_http_door(websocket=WebSocketSettings(seconds=0.06)) as opened, connected(opened) as socket:
        error = (await socket.receive())["error"]
        assert error["code"] == "websocket_connection_limit_reached" and "(0.001 minutes)" in error["message"]
        assert await socket.closed() == 1000


async def test_draining_ends_idle_connections_and_waits_for_turns(door: OpenHttpDoor) -> None:
    gate = asyncio.Event()
    door.chat.script(answer(parts=[event("a"), Wait(gate), *text_stream("b")]))
    async with connected(door) as idle, connected(door) as busy:
        await busy.send(**UNSTORED, input="hi")
        await door.chat.received()
        drained = asyncio.create_task(door.door.drain(10))
        assert await idle.closed() == 1001
        assert not drained.done()
        gate.set()
        assert (await busy.turn())[-1]["type"] == "response.completed"
        assert await busy.closed() == 1001
        assert await drained
        assert await refused(door) == (503, "shutting_down")


async def test_a_gateway_that_leaves_has_its_own_connections_closed() -> None:
    """Those that came from its address: idle ones at once, the others after their turn."""
    gate = asyncio.Event()
    known = {"authorization": "Bearer k", "x-antiphon-secret": "shared-secret"}
    elsewhere = aiohttp.TCPConnector(local_addr=("127.0.0.2", 0))
    async with (
        open_http_door(HttpSetup(private=True, secret="shared-secret")) as door,
        connected(door, headers=known) as idle,
        connected(door, headers=known) as busy,
        aiohttp.ClientSession(connector=elsewhere) as session,
        session.ws_connect(f"http://{door.address}/v1/responses", headers=known) as of_another,
    ):
        door.chat.script(answer(parts=[event("a"), Wait(gate), *text_stream("b")]))
        await busy.send(**UNSTORED, input="hi")
        await door.chat.received()
        # A client's word counts for nothing.
        assert (await door.ask(post_bytes({}, path="/gateway/leaves"))).status == 401
        assert door.metric("antiphon_websocket_connections", state="idle") == 2
        assert (await door.ask(post_bytes({}, path="/gateway/leaves", headers=known))).status == 204
        assert await idle.closed() == 1001
        gate.set()
        assert (await busy.turn())[-1]["type"] == "response.completed"
        assert await busy.closed() == 1001
        assert (await Socket(of_another).response(**UNSTORED, input="hi"))["status"] == "completed"
    async with open_http_door() as public:
        assert (await public.ask(post_bytes({}, path="/gateway/leaves"))).status == 404


async def test_closing_the_door_ends_everything() -> None:
    async with open_http_door() as opened, connected(opened) as idle, connected(opened) as busy:
        opened.chat.script(answer(parts=[event("a"), WaitGone()]))
        await busy.send(model="demo-model", input="hi")
        await opened.chat.received()
        await busy.receive()
        await opened.door.aclose()
        await idle.closed()
        await opened.stored("failed")


async def test_frames_over_the_limit() -> None:
    """A little over it: told why. Far over it: the protocol's own close code."""
    async with open_http_door(HttpSetup(request_body_bytes=2_000)) as opened, connected(opened) as socket:
        await socket.send(**UNSTORED, input="x" * 2_000)
        got = await socket.receive()
        assert (got["status"], got["error"]["code"]) == (413, "request_too_large")
        assert (await socket.response(**UNSTORED, input="hi"))["status"] == "completed"
        await socket.send(**UNSTORED, input="x" * 100_000)
        assert await socket.closed() == 1009


async def test_a_large_frame_and_compression(door: OpenHttpDoor) -> None:
    async with connected(door, compress=15, headers={"authorization": "Bearer k"}) as socket:
        assert socket.raw.compress
        text = "x" * 900_000
        await socket.response(**UNSTORED, input=text)
        assert sent_to_model(door) == [("user", text)]


async def test_a_flood_of_frames_is_held_back(door: OpenHttpDoor) -> None:
    """Frames beyond a few wait in the network, and are all answered in the end; small ones and large ones."""
    for count, size in ((2_000, 20_000), (60, 900_000)):
        gate = asyncio.Event()
        door.chat.script(answer(parts=[event("a"), Wait(gate), *text_stream("b")]))
        async with connected(door) as socket:
            [connection] = door.door.sockets
            most: list[tuple[int, int]] = []

            async def flood(
                socket: Socket = socket,
                connection: WebSocketConnection = connection,
                most: list[tuple[int, int]] = most,
                count: int = count,
                size: int = size,
            ) -> None:
                for number in range(count):
                    await socket.send(**UNSTORED, input="x" * size, generate=number == 0)
                    most.append((connection.waiting, connection.waiting_bytes))

            sent = asyncio.create_task(flood())
            await door.chat.received()
            queued = socket.raw.get_extra_info("socket").fileno()

            def held(connection: WebSocketConnection = connection, queued: int = queued) -> bool:
                """What comes stays in the network: the client's kernel has some that the door's does not take."""
                full = connection.waiting >= 16 or connection.waiting_bytes > 1 << 20
                return full and struct.unpack("i", fcntl.ioctl(queued, termios.TIOCOUTQ, bytes(4)))[0] > 0

            await until(lambda sent=sent, held=held: sent.done() or held())  # type: ignore[misc]
            assert not sent.done()
            gate.set()
            for _ in range(count):
                assert (await socket.turn())[-1]["type"] == "response.completed"
            await sent
            assert max(waiting for waiting, _ in most) <= 16 and max(size for _, size in most) < 2 << 20


async def test_what_was_answered_makes_room_for_what_comes() -> None:
    """And so does a connection that ends with frames that still waited."""
    settings = WebSocketSettings(total_bytes=60_000, memory_bytes=0)
    async with open_http_door(websocket=settings) as door:
        async with connected(door) as socket:
            for _ in range(5):
                await socket.send(**UNSTORED, input="x" * 25_000)
                assert (await socket.turn())[-1]["type"] == "response.completed"
        gate = asyncio.Event()
        for _ in range(2):
            door.chat.script(answer(parts=[event("a"), Wait(gate), *text_stream("b")]))
            async with connected(door) as leaving:
                [connection] = door.door.sockets
                await leaving.send(**UNSTORED, input="x" * 10)
                await door.chat.received()
                await leaving.send(**UNSTORED, input="x" * 40_000)
                await until(lambda connection=connection: connection.waiting == 1)  # type: ignore[misc]
            await until(lambda: not door.door.sockets)
        async with connected(door) as socket:
            await socket.send(**UNSTORED, input="x" * 40_000)
            assert (await socket.turn())[-1]["type"] == "response.completed"


async def test_headers_of_the_handshake_reach_no_model_call(door: OpenHttpDoor) -> None:
    headers = {
        "authorization": "Bearer k",
        "openai-beta": "responses_websockets=2026-02-06",
        "traceparent": "00-1-1-01",
        "idempotency-key": "one",
    }
    async with connected(door, headers=headers) as socket:
        await socket.response(**UNSTORED, input="hi")
    got = door.chat.requests[0]
    assert got.header("traceparent") == "00-1-1-01" and got.header("authorization") == "Bearer k"
    names = {name for name, _ in got.headers}
    assert not names & {"openai-beta", "idempotency-key", "upgrade", "sec-websocket-key"}


async def test_an_idempotency_key_is_named_where_it_has_no_effect(door: OpenHttpDoor) -> None:
    for line, ignored in ((b"idempotency-key: one\r\n", "idempotency-key"), (b"", None)):
        async with door.client() as client:
            await client.send(_UPGRADE + line + b"\r\n")
            shaken = await client.head()
            assert (shaken.status, shaken.header("antiphon-ignored")) == (101, ignored)
    async with connected(door, headers={"idempotency-key": "one"}) as socket:
        events = await socket.ask(**UNSTORED, input="hi", idempotency_key="two")
        assert "idempotency_key" in json.dumps(events[0]["headers"])
