"""Each server notes each request for a response in the journal, and an operator can stop it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import aiohttp
from structlog.testing import capture_logs

from antiphon.config.operators import ConsoleSettings
from antiphon.doors.owners import OwnerResolver
from antiphon.engine.ports.journal import REFUSED
from tests.support.chat_server import (
    DEADLINE,
    Reset,
    Wait,
    WaitGone,
    answer,
    completion,
    event,
    json_answer,
    text_stream,
)
from tests.support.extproc_door import JSON, SSE, open_door, request_body
from tests.support.http_door import HttpSetup, open_http_door, post_bytes
from tests.support.journal import Noted, joined
from tests.support.waiting import until

_ASKED = {"model": "m", "input": "hello"}


async def test_the_http_server_notes_a_stream_and_a_refusal() -> None:
    journal = Noted()
    console = ConsoleSettings(record="all")
    async with open_http_door(journal=journal, records=console, request_body_bytes=500) as door:
        door.chat.script(answer(parts=text_stream("one", "two")))
        got = await door.ask(post_bytes({**_ASKED, "stream": True}))
        entry, recording = journal.last, journal.recorded
        assert (entry.door, entry.outcome, entry.status, entry.recorded) == ("http", "completed", 200, True)
        assert joined(recording, "event") == got.body and b"one" in joined(recording, "data")
        await door.ask(post_bytes(body=b"{"))
        assert (journal.last.status, journal.last.fault, journal.last.detail.path) == (400, "client", "/v1/responses")
        await door.ask(post_bytes({**_ASKED, "input": "x" * 1000}))
        assert (journal.last.status, journal.last.detail.path) == (413, "/v1/responses")
        assert journal.last.code == "request_too_large" and journal.last.detail.message
        await door.ask(post_bytes(_ASKED, headers={"authorization": "Bearer a\r\nauthorization: Bearer b"}))
        assert (journal.last.status, journal.last.code, journal.last.response_id) == (400, "duplicate_header", "")
        assert len(journal.entries) == 4
        await door.ask(post_bytes(_ASKED, path="/v1/prompts"))
        assert len(journal.entries) == 4, "only requests for responses"
        await door.ask(post_bytes(_ASKED, path="/v1/respones?key=hidden"))
        assert (journal.last.outcome, journal.last.status, journal.last.code) == (REFUSED, 404, "unknown_url")
        assert journal.last.detail.path == "/v1/respones" and "hidden" not in repr(journal.last)
        await door.ask(post_bytes(_ASKED, path="/v1/models"))
        assert (journal.last.outcome, journal.last.status, journal.last.door) == (REFUSED, 405, "http")


_NO_KEYS = OwnerResolver("bearer", key=b"key", client_keys={})


async def test_both_servers_note_a_wrong_key(tmp_path: Path) -> None:
    journal = Noted()
    async with open_http_door(journal=journal, owners=_NO_KEYS) as door:
        for path in ("/v1/responses", "/v1/files", "/v1/chat/completions"):
            await door.ask(post_bytes(_ASKED, path=path, headers={"authorization": "Bearer wrong-key-of-a-client"}))
            entry = journal.last
            assert (entry.outcome, entry.status, entry.owner, entry.detail.path) == (REFUSED, 401, "", path)
            assert "wrong-key" not in repr(entry)
    assert len(journal.entries) == 3
    journal = Noted()
    async with open_door(tmp_path, journal=journal, owners=_NO_KEYS) as opened:
        stream = opened.stream()
        await stream.request(request_body())
        await stream.complete()
        entry = journal.last
        assert (entry.outcome, entry.status, entry.owner, entry.door) == (REFUSED, 401, "", "extproc")


_OURS = "upstream-secret-0123456789"


async def test_neither_the_entry_nor_the_log_line_of_a_refusal_has_a_key_of_the_path(tmp_path: Path) -> None:
    journal, own = Noted(), "anna-key-0123456789abcdef"
    long, bearer = f"/v1/{'x' * 240}/{own}", {"authorization": f"Bearer {own}"}
    async with open_http_door(journal=journal, secrets=(_OURS,)) as door:
        with capture_logs() as lines:
            for path in (f"/v1/{own}", f"/v1/{_OURS}/x", long, f"/v1/files/{own}", f"/v1/conversations/{own}/items"):
                got = await door.ask(post_bytes(_ASKED, path=path, headers=bearer))
                assert got.status in (400, 404, 405), path
    assert len(lines) == 5 and len(journal.entries) >= 4
    for text in (*map(repr, journal.entries), *map(repr, lines)):
        assert "anna" not in text and "upstream-sec" not in text and "[redacted" in text, text
    assert [entry.detail.path for entry in journal.entries[:2]] == ["/v1/[redacted]", "/v1/[redacted]/x"]
    journal = Noted()
    async with open_door(tmp_path, journal=journal, secrets=(_OURS,)) as opened:
        with capture_logs() as lines:
            for path in (f"/nothing/{own}", f"/v1/{_OURS}", f"/v1/{own}"):
                stream = opened.stream()
                await stream.request(request_body(), path=path, headers=tuple(bearer.items()))
                await stream.complete()
    assert len(journal.entries) == 3
    for text in (*map(repr, journal.entries), *map(repr, lines)):
        assert "anna" not in text and "upstream-sec" not in text, text


async def test_both_servers_note_that_they_are_full(tmp_path: Path) -> None:
    journal, go_on = Noted(), asyncio.Event()
    async with open_http_door(journal=journal, owner_requests=1) as door:
        door.chat.script(answer(parts=[Wait(go_on), event("a")]))
        asked = asyncio.create_task(door.ask(post_bytes(_ASKED)))
        await until(lambda: any(live.calls == 1 for live in door.context.telemetry.live()))
        for path in ("/v1/responses", "/v1/chat/completions"):
            await door.ask(post_bytes(_ASKED, path=path))
            entry = journal.last
            assert (entry.outcome, entry.status, entry.detail.path, entry.door) == (REFUSED, 429, path, "http")
            assert entry.owner
        go_on.set()
        await asyncio.wait_for(asked, DEADLINE)
    journal = Noted()
    async with open_door(tmp_path, journal=journal, owner_requests=1) as opened:
        first, second = opened.stream(), opened.stream()
        await first.request(request_body())
        await first.forwarded()
        await second.request(request_body())
        await second.complete()
        assert (journal.last.outcome, journal.last.status, journal.last.door) == (REFUSED, 429, "extproc")


async def test_an_operator_stops_a_stream_that_is_silent() -> None:
    journal = Noted()
    async with open_http_door(journal=journal) as door:
        door.chat.script(answer(parts=[event("a"), WaitGone()]))
        telemetry = door.context.telemetry
        asked = asyncio.create_task(door.ask(post_bytes({**_ASKED, "stream": True})))
        await until(lambda: any(live.state == "streaming" for live in telemetry.live()))
        (live,) = telemetry.live()
        assert telemetry.stop(live.id)
        got = await asyncio.wait_for(asked, DEADLINE)
        assert b"cancelled_by_operator" in got.body and b"response.failed" in got.body
        assert (journal.last.code, journal.last.fault) == ("cancelled_by_operator", "cancelled")
        assert telemetry.live() == []


async def test_a_websocket_notes_each_turn_and_each_refused_frame() -> None:
    journal = Noted()
    async with open_http_door(HttpSetup(journal=journal)) as door, aiohttp.ClientSession() as session:
        door.chat.script(answer(parts=text_stream("one")))
        async with session.ws_connect(f"http://{door.address}/v1/responses") as socket:
            await socket.send_str("{")
            await socket.receive()
            await socket.send_str(json.dumps({"type": "response.create", **_ASKED, "store": False}))
            while json.loads((await socket.receive()).data)["type"] != "response.completed":
                pass
        await until(lambda: len(journal.entries) == 2)
    refused, turn = journal.entries
    assert (refused.door, refused.status, refused.fault) == ("websocket", 400, "client")
    assert (turn.door, turn.outcome, turn.status, turn.stored) == ("websocket", "completed", 200, False)
    assert turn.response_id and turn.id != refused.id


async def test_the_ext_proc_server_notes_a_relayed_and_a_driven_request(tmp_path: Path) -> None:
    journal = Noted()
    async with open_door(tmp_path, journal=journal, request_body_bytes=500) as opened:
        stream = opened.stream()
        await stream.request(request_body())
        await stream.forwarded()
        upstream = json.dumps(completion("Hello")).encode()
        await stream.response_headers(200, JSON)
        await stream.response_body(upstream, end=True)
        await stream.complete()
        await until(lambda: len(journal.entries) == 1)
        assert (journal.last.door, journal.last.outcome, journal.last.calls) == ("relay", "completed", 1)
        assert joined(journal.recorded, "data") == upstream
        assert joined(journal.recorded, "event") == stream.client.body
        refused = opened.stream()
        await refused.request(request_body("x" * 1000))
        await refused.complete()
        await until(lambda: len(journal.entries) == 2)
        assert (journal.last.door, journal.last.status, journal.last.fault) == ("extproc", 413, "client")


async def test_an_operator_stops_a_relayed_stream(tmp_path: Path) -> None:
    journal = Noted()
    async with open_door(tmp_path, journal=journal) as opened:
        stream = opened.stream()
        await stream.request(request_body(stream=True))
        await stream.forwarded()
        await stream.response_headers(200, SSE)
        await stream.response_body(event("a"))
        telemetry = opened.context.telemetry
        await until(lambda: any(live.state == "streaming" for live in telemetry.live()))
        assert telemetry.stop(telemetry.live()[0].id)
        await stream.complete()
        await until(lambda: len(journal.entries) == 1)
        assert journal.last.code == "cancelled_by_operator"
        assert b"cancelled_by_operator" in stream.client.body


async def test_a_request_for_a_slow_upstream_is_in_flight_before_its_first_byte() -> None:
    journal, go_on = Noted(), asyncio.Event()
    async with open_http_door(journal=journal) as door:
        door.chat.script(answer(parts=[Wait(go_on), event("a")]))
        asked = asyncio.create_task(door.ask(post_bytes(_ASKED)))
        telemetry = door.context.telemetry
        await until(lambda: any(live.calls == 1 for live in telemetry.live()))
        (live,) = telemetry.live()
        assert (live.door, live.first, live.tokens) == ("http", None, 0)
        go_on.set()
        await asyncio.wait_for(asked, DEADLINE)


async def test_a_forwarded_request_has_an_entry_however_it_ends() -> None:
    journal = Noted()
    async with open_http_door(journal=journal) as door:
        chat = "/v1/chat/completions"
        body = {"model": "demo-model", "messages": []}
        door.chat.script(json_answer(completion("Hello")))
        await door.ask(post_bytes(body, path=chat))
        entry = journal.last
        assert (entry.door, entry.model, entry.upstream) == ("pass_through", "demo-model", "default")
        assert (entry.outcome, entry.status, entry.calls, entry.output_tokens) == ("completed", 200, 1, 2)
        assert entry.detail.path == chat and [span.kind for span in entry.detail.spans] == ["call", "first_token"]
        door.chat.script(answer(parts=text_stream("one")))
        await door.ask(post_bytes({**body, "stream": True}, path=chat))
        assert journal.last.detail.stream and journal.last.input_tokens > 0 and journal.last.fault == ""
        door.chat.script(json_answer({"error": {"message": "boom"}}, status=500))
        await door.ask(post_bytes(body, path=chat))
        assert (journal.last.outcome, journal.last.fault, journal.last.status) == ("error", "upstream", 500)
        door.chat.script(answer(parts=[event("a"), Reset()]))
        await door.ask(post_bytes({**body, "stream": True}, path=chat))
        assert (journal.last.fault, journal.last.code) == ("upstream", "upstream_cut")
        assert len(journal.entries) == 4 and len({one.id for one in journal.entries}) == 4
