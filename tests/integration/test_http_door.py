"""The HTTP door on real sockets: answers, limits, identity, clients that leave, draining."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import openai
import pytest
import structlog

from antiphon.doors.http.path import split_target
from antiphon.doors.owners import OwnerResolver
from antiphon.engine.ports.callers import Caller
from antiphon.engine.running.idempotency import HeldKeys
from antiphon.engine.running.loading import Ports
from antiphon.engine.running.runner import Runner
from antiphon.errors import ConfigError, InvalidRequest
from antiphon.stores.leases import Leases
from tests.support.chat_server import (
    DEADLINE,
    Close,
    Mark,
    Reset,
    Wait,
    WaitGone,
    answer,
    event,
    json_answer,
    never,
    text_stream,
)
from tests.support.compression import COMPRESSED
from tests.support.http_door import OpenHttpDoor, RawAnswer, open_http_door, post_bytes
from tests.support.ports import KeyStore
from tests.support.waiting import until

ASK: dict[str, Any] = {"model": "demo-model", "input": "Hi"}
STREAM: dict[str, Any] = {**ASK, "stream": True}
HEADER_OWNER = OwnerResolver("header", header="x-antiphon-owner")


# Answers


@pytest.mark.parametrize(
    ("method", "asks", "status"), [("OPTIONS", True, 204), ("OPTIONS", False, 204), ("GET", True, 404)]
)
async def test_a_browsers_preflight_is_answered_and_nothing_else_is_taken_for_one(
    method: str, asks: bool, status: int
) -> None:
    origin = "https://app.example"
    headers = {"origin": origin, **({"access-control-request-method": "POST"} if asks else {})}
    async with open_http_door(cors_origins=(origin,)) as door:
        got = await door.ask(post_bytes(method=method, path="/v1/responses/input_tokens", headers=headers))
    assert got.status == status and got.header("access-control-allow-origin") == origin
    assert (got.header("access-control-allow-methods") is not None) == (asks and method == "OPTIONS")


async def test_json(door: OpenHttpDoor) -> None:
    got = await door.ask(post_bytes(ASK))
    assert got.status == 200 and got.header("content-type") == "application/json"
    assert got.header("content-length") == str(len(got.body)) and got.header("transfer-encoding") is None
    assert got.json["status"] == "completed" and got.json["output"][0]["content"][0]["text"] == "Hello"
    assert door.chat.requests[0].json.get("stream") in (None, False)
    again = await door.ask(post_bytes(method="GET", path=f"/v1/responses/{got.json['id']}"))
    assert again.json == got.json
    assert door.metric("responses_total", door="http", outcome="completed") == 1
    assert door.metric("antiphon_responses_in_flight") == 0


async def test_stream(door: OpenHttpDoor) -> None:
    got = await door.ask(post_bytes(STREAM, headers={"accept": "application/json"}))
    assert got.status == 200 and got.whole
    assert (got.header("content-type") or "").startswith("text/event-stream")
    assert got.header("content-length") is None
    kinds = [one["type"] for one in got.events]
    assert kinds[:2] == ["response.created", "response.in_progress"] and kinds[-1] == "response.completed"
    assert [one["sequence_number"] for one in got.events] == list(range(len(kinds)))
    assert got.body.endswith(b"data: [DONE]\n\n")
    # No event is torn between two chunks.
    assert all(part.startswith((b"event: ", b"data: ")) and part.endswith(b"\n\n") for part in got.parts)
    assert await door.stored("completed") == got.events[-1]["response"]["id"]


async def test_events_flow_while_the_upstream_writes(door: OpenHttpDoor) -> None:
    gate = asyncio.Event()
    door.chat.script(answer(parts=[event("Hel"), Wait(gate), *text_stream("lo")]))
    async with door.client() as client:
        await client.send(post_bytes(STREAM))
        head = await client.head()
        seen = b""
        while b'"delta":"Hel"' not in seen:
            seen += await client.part()
        assert head.status == 200 and not gate.is_set()
        gate.set()
        while part := await client.part():
            seen += part
        assert seen.endswith(b"data: [DONE]\n\n")


async def test_stream_opens_before_a_late_head() -> None:
    gate = asyncio.Event()
    async with open_http_door(head_wait=0.02, keepalive=0.02) as door:
        door.chat.script(answer(parts=[Wait(gate)], framing="none"))
        async with door.client() as client:
            await client.send(post_bytes(STREAM))
            assert (await client.head()).status == 200
            assert b"response.created" in await client.part()
            assert await client.part() == b": keep-alive\n\n"
            gate.set()
            rest = b""
            while part := await client.part():
                rest += part
            assert b"response.failed" in rest


async def test_connection_is_kept(door: OpenHttpDoor) -> None:
    async with door.client() as client:
        for ask in (ASK, STREAM, ASK):
            await client.send(post_bytes(ask))
            assert (await client.read()).status == 200
        await client.send(post_bytes(method="GET", path="/health") + post_bytes(ASK))
        assert [(await client.read()).status for _ in range(2)] == [200, 200]


async def test_continuation(door: OpenHttpDoor) -> None:
    first = (await door.ask(post_bytes(STREAM))).events[-1]["response"]["id"]
    got = await door.ask(post_bytes({**ASK, "previous_response_id": first}))
    assert got.status == 200 and got.json["previous_response_id"] == first
    assert [message["content"] for message in door.chat.requests[-1].json["messages"]] == ["Hi", "Hello", "Hi"]


async def test_openai_client(door: OpenHttpDoor) -> None:
    async with openai.AsyncOpenAI(base_url=door.base_url, api_key="sk-test", max_retries=0) as client:
        got = await client.responses.create(model="demo-model", input="Hi")
        assert got.output_text == "Hello"
        async with client.responses.stream(model="demo-model", input="Hi") as stream:
            kinds = [one.type async for one in stream]
        assert kinds[-1] == "response.completed"
        assert (await client.responses.retrieve(got.id)).output_text == "Hello"
        listed = await client.responses.input_items.list(got.id)
        assert [one.type for one in listed.data] == ["message"]
        assert "demo-model" in [model.id async for model in client.models.list()]
        assert (await client.models.retrieve("demo-model")).id == "demo-model"
        await client.responses.delete(got.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(got.id)
        with pytest.raises(openai.BadRequestError):
            await client.responses.create(model="demo-model", input="Hi", previous_response_id=got.id)


# Wrong requests


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"", 400), (b"{", 400), (b"[]", 400), (b'{"model":"m","input":7}', 400), (b'{"model":"m","input":[]}', 400)],
)
async def test_bad_bodies(door: OpenHttpDoor, body: bytes, status: int) -> None:
    got = await door.ask(post_bytes(body=body))
    assert got.status == status and got.error["type"] == "invalid_request_error"
    assert got.header("x-request-id")
    assert door.chat.requests == [] and door.store.records == {}
    assert door.metric("responses_total", door="http", outcome="error") == 1


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("PUT", "/v1/responses", 405),
        ("POST", "/v1/responses/", 404),
        ("POST", "/V1/responses", 404),
        ("POST", "/api/delete", 404),
        ("POST", "/v1/chat", 404),
        ("POST", "/v1%2Fresponses", 400),
        ("POST", "/v1/responses%00", 400),
        ("POST", "v1/responses", 400),
    ],
)
async def test_paths_that_are_none_of_ours(door: OpenHttpDoor, method: str, path: str, status: int) -> None:
    got = await door.ask(post_bytes(ASK, method=method, path=path))
    assert got.status == status and got.error["type"] == "invalid_request_error"
    assert door.chat.requests == []


@pytest.mark.parametrize(
    "path",
    [
        "/v1//responses",
        "/v1/./responses",
        "/v1/%72esponses",
        "/v1/x/../responses",
        "/v1/responses?a=b",
        "\\v1\\responses",
    ],
)
async def test_spellings_of_our_path(door: OpenHttpDoor, path: str) -> None:
    target = path if path.startswith("/") else "/" + path
    assert (await door.ask(post_bytes(ASK, path=target))).status == 200


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/", "/"),
        ("", "/"),
        ("*", "*"),
        ("//", "/"),
        ("/a//b///c", "/a/b/c"),
        ("/a/./b/", "/a/b/"),
        ("/a/..", "/"),
        ("/a/../../../b", "/b"),
        ("/a/b/..", "/a/"),
        ("/%2e%2E/a", "/a"),
        ("/%41%7e%20%c3%a9", "/A~%20%C3%A9"),
        ("/a%zz%4", "/a%zz%4"),
        ("http://host:1/v1/responses?x=1", "/v1/responses"),
        ("HTTP://host", "/"),
        ("/a#b?c", "/a"),
        ("/a\\b", "/a/b"),
    ],
)
def test_normalisation(target: str, path: str) -> None:
    assert split_target(target)[0] == path


def test_query() -> None:
    assert split_target("/a?x=1&x=2&y=&z=%20%C3%A9+")[1] == (("x", "1"), ("x", "2"), ("y", ""), ("z", " é "))
    with pytest.raises(InvalidRequest):
        split_target("/a?" + "x=1&" * 1000)


@pytest.mark.parametrize("target", ["/a%2fb", "/a%5Cb", "/a%2F..", "/%00", "a", "example.org:443"])
def test_refused_targets(target: str) -> None:
    with pytest.raises(InvalidRequest):
        split_target(target)


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
        b"GET / HTTP/1.1\r\nx: " + b"y" * 100_000 + b"\r\n\r\n",
    ],
    ids=["line", "header", "huge header"],
)
async def test_no_http_at_all(door: OpenHttpDoor, data: bytes) -> None:
    async with door.client() as client:
        await client.send(data)
        got = await client.read()
        assert got.status == 400 and got.error["code"] == "invalid_http"
        assert await client.closed()


async def test_a_head_that_never_ends() -> None:
    async with open_http_door(request_seconds=0.05) as door, door.client() as client:
        await client.send(b"POST /v1/responses HT")
        assert await client.closed()


async def test_other_upgrades_are_not_taken(door: OpenHttpDoor) -> None:
    """What curl sends with --http2 is no reason to refuse anything."""
    h2c = {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2-settings": "AAMAAABkAAQAAP__"}
    assert (await door.ask(post_bytes(ASK, headers=h2c))).status == 200


@pytest.mark.parametrize("coding", COMPRESSED)
async def test_a_compressed_body_is_read(door: OpenHttpDoor, coding: str) -> None:
    body = COMPRESSED[coding](json.dumps(ASK).encode())
    got = await door.ask(post_bytes(body=body, headers={"content-encoding": coding}))
    assert got.status == 200 and got.json["object"] == "response"


async def test_an_unknown_coding_is_refused_before_the_body_is_sent(door: OpenHttpDoor) -> None:
    async with door.client() as client:
        headers = {"content-encoding": "br", "content-length": "1000", "expect": "100-continue"}
        await client.send(post_bytes(body=b"", headers=headers))
        got = await client.head()
        assert got.status == 415 and got.header("connection") == "close"
        assert got.header("accept-encoding") == "gzip, deflate, zstd"


async def test_a_broken_compressed_body_is_refused_and_the_connection_goes_on(door: OpenHttpDoor) -> None:
    async with door.client() as client:
        await client.send(post_bytes(body=b"\x28\xb5\x2f\xfd", headers={"content-encoding": "zstd"}))
        got = await client.read()
        assert got.status == 400 and got.error["code"] == "invalid_body"
        await client.send(post_bytes(ASK))
        assert (await client.read()).status == 200


@pytest.mark.parametrize("coding", COMPRESSED)
async def test_a_compressed_body_has_the_same_limit_when_it_is_plain(coding: str) -> None:
    async with open_http_door(request_body_bytes=10_000) as door:
        body = COMPRESSED[coding](json.dumps({**ASK, "input": "x" * 10_000}).encode())
        assert len(body) < 1000
        got = await door.ask(post_bytes(body=body, headers={"content-encoding": coding}))
        assert got.status == 413 and got.error["code"] == "request_too_large"


def _upload(body: bytes, **headers: str) -> bytes:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    whole = post_bytes(body=body, path="/v1/files", headers=given)
    return whole.replace(b"application/json", b"multipart/form-data; boundary=x", 1)


async def test_an_upload_is_taken_as_it_is_alone(door: OpenHttpDoor) -> None:
    got = await door.ask(_upload(b"anything", content_encoding="gzip"))
    error = (got.status, got.error["type"], got.error["code"])
    assert error == (415, "invalid_request_error", "unsupported_content_encoding")
    assert (got.header("accept-encoding"), got.header("connection")) == ("identity", "close")


async def test_an_upload_that_stops_is_a_408() -> None:
    async with open_http_door(request_seconds=0.1) as door:
        got = await door.ask(_upload(b"--x\r\n", content_length="1000"))
        assert (got.status, got.error["type"], got.error["code"]) == (408, "invalid_request_error", "request_timeout")
        assert got.header("connection") == "close"


async def test_head_request(door: OpenHttpDoor) -> None:
    async with door.client() as client:
        for path, status in (("/v1/models", 200), ("/health", 200), ("/v1/nothing", 404), ("/a%2Fb", 400)):
            await client.send(post_bytes(method="HEAD", path=path))
            got = await client.read(bodiless=True)
            assert got.status == status and int(got.header("content-length") or 0) >= 0
        await client.send(post_bytes(method="OPTIONS"))
        got = await client.read()
        assert got.status == 204 and got.header("allow") == "GET, POST, HEAD, OPTIONS"


# Bodies: size and time


async def test_announced_body_over_the_limit_is_refused_before_it_is_sent() -> None:
    async with open_http_door(request_body_bytes=1000) as door, door.client() as client:
        await client.send(post_bytes(body=b"", headers={"content-length": "1001", "expect": "100-continue"}))
        got = await client.head()
        assert got.status == 413 and got.header("connection") == "close"


async def test_body_over_the_limit_is_refused_during_the_upload() -> None:
    async with open_http_door(request_body_bytes=100_000) as door, door.client() as client:
        await client.send(
            post_bytes(body=b"", headers={"transfer-encoding": "chunked", "content-length": ""}).replace(
                b"content-length: \r\n", b""
            )
        )
        reading = asyncio.create_task(client.read())
        sent = 0
        # The client would go on for ever: only an early answer ends this.
        async with asyncio.timeout(DEADLINE):
            while not reading.done():
                await client.send(b"1000\r\n" + b"x" * 4096 + b"\r\n")
                await asyncio.sleep(0)
                sent += 4096
        got = await reading
        assert got.status == 413 and got.error["code"] == "request_too_large"
        assert door.store.records == {} and door.chat.requests == []


async def test_body_at_the_limit() -> None:
    body = json.dumps(ASK).encode()
    async with open_http_door(request_body_bytes=len(body) + 8) as door:
        assert (await door.ask(post_bytes(body=body + b" " * 8))).status == 200
        assert (await door.ask(post_bytes(body=body + b" " * 9))).status == 413


async def test_body_that_never_comes() -> None:
    async with open_http_door(request_seconds=0.05) as door, door.client() as client:
        await client.send(post_bytes(body=b"{", headers={"content-length": "10"}))
        got = await client.read()
        assert got.status == 408 and got.error["code"] == "request_timeout"
        assert door.metric("antiphon_responses_in_flight") == 0


async def test_body_in_many_pieces(door: OpenHttpDoor) -> None:
    async with door.client() as client:
        for byte in post_bytes(ASK):
            await client.send(bytes([byte]))
            await asyncio.sleep(0)
        assert (await client.read()).status == 200


async def test_broken_upload_framing(door: OpenHttpDoor) -> None:
    async with door.client() as client:
        head = post_bytes(body=b"", headers={"transfer-encoding": "chunked", "content-length": ""})
        await client.send(head.replace(b"content-length: \r\n", b"") + b"5\r\nhello\r\n")
        await client.send(b"zz\r\nnonsense\r\n")
        got = await client.read()
        assert got.status == 400 and got.error["type"] == "invalid_request_error"
        assert door.metric("antiphon_responses_in_flight") == 0


async def test_expect_continue(door: OpenHttpDoor) -> None:
    body = json.dumps(ASK).encode()
    async with door.client() as client:
        await client.send(post_bytes(body=b"", headers={"content-length": str(len(body)), "expect": "100-continue"}))
        assert (await client.head()).status == 100
        await client.send(body)
        assert (await client.read()).status == 200


# Upstream faults through the door


@pytest.mark.parametrize("ask", [ASK, STREAM], ids=["json", "stream"])
@pytest.mark.parametrize(
    ("script", "status", "code"),
    [
        (
            json_answer({"error": {"message": "slow down", "code": "rate_limit_exceeded"}}, 429),
            429,
            "rate_limit_exceeded",
        ),
        (json_answer({"error": {"message": "no such model"}}, 404), 404, "model_not_found"),
        (json_answer({}, 500), 500, "upstream_error"),
        (answer(503, [("content-type", "text/html")], [b"<html>down</html>"]), 503, "upstream_error"),
        (answer(302, [("location", "/elsewhere")]), 502, "upstream_error"),
        (answer(parts=[Close()], framing="none"), 502, "upstream_cut"),
        (answer(parts=[Reset()], framing="none"), 502, "upstream_cut"),
    ],
)
async def test_upstream_errors_have_their_status(
    door: OpenHttpDoor, ask: dict[str, Any], script: Any, status: int, code: str
) -> None:
    door.chat.script(script)
    got = await door.ask(post_bytes(ask))
    assert (got.status, got.error["code"]) == (status, code)
    assert door.store.records == {}


@pytest.mark.parametrize("step", [Close(), Reset()], ids=["closed", "reset"])
async def test_upstream_that_stops_in_the_middle(door: OpenHttpDoor, step: Close | Reset) -> None:
    gate = asyncio.Event()
    door.chat.script(answer(parts=[event("Hel"), Wait(gate), step]))
    async with door.client() as client:
        await client.send(post_bytes(STREAM))
        got = RawAnswer((await client.head()).status, ())
        while b'"delta":"Hel"' not in got.body:
            got.parts.append(await client.part())
        gate.set()
        while part := await client.part():
            got.parts.append(part)
    last = got.events[-1]
    assert last["type"] == "response.failed" and last["response"]["status"] == "failed"
    assert got.body.endswith(b"data: [DONE]\n\n")
    assert await door.stored("failed") == last["response"]["id"]


async def test_upstream_down(door: OpenHttpDoor) -> None:
    await door.chat.stop()
    for ask in (ASK, STREAM):
        got = await door.ask(post_bytes(ask))
        assert (got.status, got.error["code"]) == (502, "upstream_unreachable")


# Clients that leave


@pytest.mark.parametrize("ask", [ASK, STREAM], ids=["json", "stream"])
async def test_client_leaves_before_the_upstreams_head(door: OpenHttpDoor, ask: dict[str, Any]) -> None:
    door.chat.script(never())
    async with door.client() as client:
        await client.send(post_bytes(ask))
        call = await door.chat.received()
        client.leave()
        async with asyncio.timeout(DEADLINE):
            await call.gone.wait()
    await door.stored("failed")
    await finished(door)
    assert door.metric("responses_total", door="http", outcome="cancelled") == 1


async def test_client_leaves_in_the_middle(door: OpenHttpDoor) -> None:
    door.chat.script(answer(parts=[event("Hel"), WaitGone()]))
    async with door.client() as client:
        await client.send(post_bytes(STREAM))
        await client.head()
        while b'"delta":"Hel"' not in await client.part():
            pass
        call = await door.chat.received()
        client.leave()
        # Long before any limit of time.
        async with asyncio.timeout(DEADLINE):
            await call.gone.wait()
    stored = door.store.records[await door.stored("failed")]
    assert json.loads(stored.output_items[0].body)["content"][0]["text"] == "Hel"
    await finished(door)


async def test_client_leaves_while_we_write_to_it(door: OpenHttpDoor) -> None:
    """The client's buffers are full, so the door waits in a write when the client goes."""
    stuck = asyncio.Event()
    door.chat.script(answer(parts=[event("x" * 50_000)] * 1000 + [Mark(stuck), WaitGone()]))
    async with door.client() as client:
        await client.send(post_bytes(STREAM))
        await client.head()
        call = await door.chat.received()
        for _ in range(500):
            await asyncio.sleep(0)
        client.leave()
        async with asyncio.timeout(DEADLINE):
            await call.gone.wait()
        assert not stuck.is_set()
    await door.stored("failed")
    await finished(door)


async def test_a_slow_client_holds_the_upstream_back(door: OpenHttpDoor) -> None:
    ahead = asyncio.Event()
    door.chat.script(answer(parts=[*[event("x" * 50_000)] * 600, Mark(ahead), *text_stream("end")]))
    async with door.client() as client:
        await client.send(post_bytes(STREAM))
        await client.head()
        for _ in range(2000):
            await asyncio.sleep(0)
        assert not ahead.is_set(), "30 MB were read ahead of a client that reads nothing"
        size = 0
        while part := await client.part():
            size += len(part)
        assert size > 30_000_000 and ahead.is_set()


async def test_client_leaves_during_the_upload(door: OpenHttpDoor) -> None:
    async with door.client() as client:
        await client.send(post_bytes(body=b"{", headers={"content-length": "10"}))
        await until(lambda: door.context.admission.active)
        client.leave()
    await finished(door)
    assert door.chat.requests == [] and door.store.records == {}


class _SlowRoom:
    """The check of an owner's stored bytes, which comes after the claim of the key, never ends."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def check(self, owner: str, caller: Caller) -> None:
        self.asked.set()
        await asyncio.Event().wait()


@pytest.mark.parametrize("stops", [False, True])
async def test_client_leaves_before_its_request_begins_and_its_key_is_free(stops: bool) -> None:
    keys, room = KeyStore(), _SlowRoom()

    def runner(ports: Ports) -> Runner:
        return Runner(replace(ports, keys=HeldKeys(keys, Leases()), owner_room=cast(Any, room)))

    async with open_http_door(runner=runner) as door, door.client() as client:
        await client.send(post_bytes(ASK, headers={"idempotency-key": "k"}))
        await room.asked.wait()
        assert keys.held == ["k"]
        client.leave()
        if stops:
            await door.door.aclose()
        await until(lambda: keys.held == [] and door.context.admission.active == 0)
        assert door.chat.requests == [] and [one.status for one in door.store.records.values()] == ["failed"]


async def test_client_that_leaves_after_the_end_changes_nothing(door: OpenHttpDoor) -> None:
    async with door.client() as client:
        await client.send(post_bytes(STREAM))
        await client.read()
        client.leave()
    await finished(door)
    assert [record.status for record in door.store.records.values()] == ["completed"]


@pytest.mark.parametrize("ask", [ASK, STREAM], ids=["json", "stream"])
async def test_client_leaves_at_any_moment(door: OpenHttpDoor, ask: dict[str, Any]) -> None:
    """However many turns of the loop the request got: nothing hangs, nothing is stored half, nothing stays open."""
    for turns in range(60):
        async with door.client() as client:
            await client.send(post_bytes(ask))
            for _ in range(turns):
                await asyncio.sleep(0)
            client.leave()
        await finished(door)
    await door.ask(post_bytes(ask))
    await finished(door)
    assert {record.status for record in door.store.records.values()} <= {"completed", "failed"}
    busy = [call for call in door.chat.requests if not call.gone.is_set()]
    assert len({call.connection for call in busy}) <= door.chat.open_connections <= 60
    assert (await door.ask(post_bytes(ask))).status == 200


async def finished(door: OpenHttpDoor) -> None:
    """Wait until nothing is in flight, in the door and towards the upstream."""
    assert await door.context.admission.drained(DEADLINE)
    await until(lambda: not door.metric("antiphon_responses_in_flight"))


# Identity


async def test_tokens_tell_owners_apart(door: OpenHttpDoor) -> None:
    def auth(token: str) -> dict[str, str]:
        return {"authorization": f"Bearer {token}"}

    mine = (await door.ask(post_bytes(ASK, headers=auth("a")))).json["id"]
    path = f"/v1/responses/{mine}"
    assert (await door.ask(post_bytes(method="GET", path=path, headers=auth("a")))).status == 200
    for headers in (auth("b"), {}, {"x-antiphon-owner": "anyone"}):
        assert (await door.ask(post_bytes(method="GET", path=path, headers=headers))).status == 404
        got = await door.ask(post_bytes({**ASK, "previous_response_id": mine}, headers=headers))
        assert got.status == 400 and got.error["code"] == "previous_response_not_found"
    assert all("Bearer" not in record.owner for record in door.store.records.values())


async def test_owner_header_over_a_unix_socket(tmp_path: Path) -> None:
    async with open_http_door(address=f"unix:{tmp_path}/door.sock", owners=HEADER_OWNER) as door:
        got = await door.ask(post_bytes(ASK, headers={"x-antiphon-owner": "alice"}))
        assert got.status == 200 and next(iter(door.store.records.values())).owner == "h:alice"
        got = await door.ask(post_bytes(ASK))
        assert got.status == 401 and got.error["code"] == "missing_identity"
        assert (await door.ask(post_bytes(method="GET", path="/health"))).status == 200


async def test_owner_header_over_tcp_needs_the_secret() -> None:
    async with open_http_door(secret="s3cret", owners=HEADER_OWNER) as door:
        claim = {"x-antiphon-owner": "alice"}
        for secret in (None, "", "wrong", "s3cre", "s3cret2", "é"):
            headers = claim if secret is None else {**claim, "x-antiphon-secret": secret}
            assert (await door.ask(post_bytes(ASK, headers=headers))).status == 401
        assert (await door.ask(post_bytes(ASK, headers={**claim, "x-antiphon-secret": "s3cret"}))).status == 200


async def test_private_port_wants_the_secret() -> None:
    async with open_http_door(private=True, secret="s3cret") as door:
        for path in ("/v1/models", "/v1/responses/resp_1"):
            got = await door.ask(post_bytes(method="GET", path=path))
            assert got.status == 401 and got.error["code"] == "missing_secret"
        assert (await door.ask(post_bytes(ASK))).status == 401
        assert (await door.ask(post_bytes(method="GET", path="/health"))).status == 200
        secret = {"x-antiphon-secret": "s3cret"}
        assert (await door.ask(post_bytes(method="GET", path="/v1/models", headers=secret))).status == 200
        for call in door.chat.requests:
            assert not [name for name, _ in call.headers if name.startswith("x-antiphon-")]


async def test_sidecar_port_creates_no_responses() -> None:
    async with open_http_door(private=True, drive_exchanges=False) as door:
        assert (await door.ask(post_bytes(ASK))).status == 404
        assert door.chat.requests == []


async def test_request_ids(door: OpenHttpDoor) -> None:
    for given in ("abc-123", "1b4e28ba-2fa1-11d2-883f-0016d3cca427"):
        for request in (
            post_bytes(ASK, headers={"x-request-id": given}),
            post_bytes(STREAM, headers={"x-request-id": given}),
        ):
            assert (await door.ask(request)).header("x-request-id") == given
    made = set()
    for given in ("", "a b", "x" * 200, 'a"b', "é"):
        for path in ("/v1/models", "/nowhere", "/%2F"):
            got = await door.ask(post_bytes(method="GET", path=path, headers={"x-request-id": given}))
            made.add(got.header("x-request-id"))
            if got.status >= 400:
                assert got.error["request_id"] == got.header("x-request-id")
    assert len(made) == 15 and all(value and value.startswith("req_") for value in made)


async def test_an_upstream_is_told_the_request_id_of_the_line_and_of_no_other(door: OpenHttpDoor) -> None:
    chat = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    for path, body in (("/v1/responses", ASK), ("/v1/chat/completions", chat)):
        for given in ("good-1", "a b", "x" * 129, "é"):
            got = await door.ask(post_bytes(body, path=path, headers={"x-request-id": given}))
            (told,) = door.chat.requests[-1].header_values("x-request-id")
            assert got.header("x-request-id") == told and (told == given) is (given == "good-1")
        await door.ask(post_bytes(body, path=path))
        assert door.chat.requests[-1].header_values("x-request-id") == []


async def test_log_lines(door: OpenHttpDoor) -> None:
    headers = {"authorization": "Bearer sk-secret", "x-request-id": "r1"}
    began = time.perf_counter()
    with structlog.testing.capture_logs() as logs:
        got = await door.ask(
            post_bytes({**ASK, "input": "private words"}, headers=headers, path="/v1/responses?key=private")
        )
        await door.ask(post_bytes(method="GET", path="/health"))
        await until(lambda: len(logs) == 2)
    line = logs[0]
    assert (line["event"], line["request_id"], line["status"], line["path"]) == ("response", "r1", 200, "/v1/responses")
    assert (line["outcome"], line["model"], line["response_id"]) == ("completed", "demo-model", got.json["id"])
    took = time.perf_counter() - began
    assert 0 <= line["seconds"] <= took and 0 <= logs[1]["seconds"] <= took
    assert 0 <= door.metric("response_duration_seconds_sum", door="http") <= took
    assert logs[1]["log_level"] == "debug"
    assert "private" not in repr(logs) and "secret" not in repr(logs)


async def test_a_request_that_makes_no_response_has_a_line_of_its_own(door: OpenHttpDoor) -> None:
    with structlog.testing.capture_logs() as logs:
        await door.ask(post_bytes(method="DELETE", path="/v1/responses/" + "x" * 300, headers={"x-request-id": "r1"}))
        await door.ask(post_bytes(method="GET", path="/v1/models?a=b", headers={"x-request-id": "r2"}))
        await until(lambda: len(logs) == 2)
    refused, answered = logs
    for line in logs:
        assert 0 < line.pop("seconds") < 60
    assert refused.pop("cause") and refused.pop("code", "") in ("", "not_found")
    common = {"event": "request", "log_level": "info", "door": "http"}
    assert {name: refused[name] for name in (*common, "request_id", "method", "path", "status", "fault")} == common | {
        "request_id": "r1",
        "method": "DELETE",
        "path": ("/v1/responses/" + "x" * 300)[:256],
        "status": 404,
        "fault": "client",
    }
    assert answered == common | {"request_id": "r2", "method": "GET", "path": "/v1/models", "status": 200}
    assert (
        door.metric("antiphon_requests_total", operation="DELETE /v1/responses/{}", status="404", fault="client") == 1
    )


async def test_a_quiet_path_that_fails_is_not_quiet(door: OpenHttpDoor) -> None:
    with structlog.testing.capture_logs() as logs:
        assert (await door.ask(post_bytes(method="GET", path="/metrics"))).status == 404
        assert (await door.ask(post_bytes(method="GET", path="/health"))).status == 200
        await until(lambda: len(logs) == 2)
    assert [line["log_level"] == "debug" for line in logs] == [False, True]


# Load and the end


async def test_too_many_requests_at_once() -> None:
    async with open_http_door(concurrent=1) as door, door.client() as client:
        door.chat.script(answer(parts=[event("Hel"), WaitGone()]))
        await client.send(post_bytes(STREAM))
        await client.head()
        got = await door.ask(post_bytes(ASK))
        assert got.status == 503 and got.error["code"] == "overloaded" and got.header("retry-after") == "1"
        assert "limits.concurrent_requests" in got.error["message"]
        assert door.metric("antiphon_requests_refused_total", setting="limits.concurrent_requests") == 1
        assert (await door.ask(post_bytes(method="GET", path="/health"))).status == 200
        client.leave()
        await finished(door)
        assert (await door.ask(post_bytes(ASK))).status == 200


async def test_drain_lets_streams_finish(door: OpenHttpDoor) -> None:
    gate = asyncio.Event()
    door.chat.script(answer(parts=[event("Hel"), Wait(gate), *text_stream("lo")]))
    async with door.client() as client, door.client() as kept:
        await kept.send(post_bytes(method="GET", path="/health"))
        await kept.read()
        await client.send(post_bytes(STREAM))
        await client.head()
        draining = asyncio.create_task(door.door.drain(DEADLINE))
        await until(lambda: door.context.admission.closed)
        await kept.send(post_bytes(ASK))
        got = await kept.read()
        assert got.status == 503 and got.error["code"] == "shutting_down" and got.header("connection") == "close"
        assert await kept.closed()
        assert (await door.ask(post_bytes(method="GET", path="/health"))).status == 200
        ready = await door.ask(post_bytes(method="GET", path="/ready"))
        assert ready.status == 503
        assert not draining.done()
        gate.set()
        seen = b""
        while part := await client.part():
            seen += part
        assert seen.endswith(b"data: [DONE]\n\n")
        assert await draining is True
    await door.stored("completed")


async def test_metrics_are_shown_to_the_gateway_alone() -> None:
    async with open_http_door(secret="shared-secret") as opened:
        refused = await opened.ask(post_bytes(method="GET", path="/metrics"))
        assert refused.status == 404 and refused.error["code"] == "unknown_url"
        headers = {"x-antiphon-secret": "shared-secret"}
        shown = await opened.ask(post_bytes(method="GET", path="/metrics", headers=headers))
        assert shown.status == 200 and b"antiphon_responses_in_flight" in shown.body


async def test_during_the_notice_requests_are_served_and_ready_says_no(door: OpenHttpDoor) -> None:
    draining = asyncio.create_task(door.door.drain(DEADLINE, notice=DEADLINE))
    await until(lambda: door.context.admission.leaving)
    assert (await door.ask(post_bytes(method="GET", path="/ready"))).status == 503
    assert (await door.ask(post_bytes(ASK))).status == 200
    draining.cancel()


LEAVING = {
    "a response": post_bytes(ASK),
    "a stream": post_bytes(STREAM),
    "a list": post_bytes(method="GET", path="/v1/files"),
    "an error": post_bytes(method="GET", path="/v1/nothing"),
    "health": post_bytes(method="GET", path="/health"),
}


@pytest.mark.parametrize("request_bytes", LEAVING.values(), ids=LEAVING)
async def test_during_the_notice_answers_move_connections_elsewhere(door: OpenHttpDoor, request_bytes: bytes) -> None:
    async with door.client() as kept:
        await kept.send(request_bytes)
        assert (before := await kept.read()).header("connection") is None and before.whole
        draining = asyncio.create_task(door.door.drain(DEADLINE, notice=DEADLINE))
        await until(lambda: door.context.admission.leaving)
        await kept.send(request_bytes)
        got = await kept.read()
        assert (got.status, got.whole, got.header("connection")) == (before.status, True, "close")
        assert await kept.closed()
        draining.cancel()


async def test_a_stream_that_ends_after_the_notice_takes_its_connection_along(door: OpenHttpDoor) -> None:
    gate = asyncio.Event()
    door.chat.script(answer(parts=[event("Hel"), Wait(gate), *text_stream("lo")]))
    async with door.client() as client:
        await client.send(post_bytes(STREAM))
        assert (await client.head()).header("connection") is None
        draining = asyncio.create_task(door.door.drain(DEADLINE))
        await until(lambda: door.context.admission.closed)
        gate.set()
        while await client.part():
            pass
        assert await client.closed() and await draining


async def test_after_the_notice_each_open_connection_brings_one_more_request(door: OpenHttpDoor) -> None:
    """Its client has been told nothing yet; that answer tells it to ask elsewhere."""
    gate = asyncio.Event()
    door.chat.script(answer(parts=[event("Hel"), Wait(gate), *text_stream("lo")]))
    async with door.client() as idle, door.client() as new, door.client() as streaming:
        await idle.send(post_bytes(method="GET", path="/health"))
        await idle.read()
        await streaming.send(post_bytes(STREAM))
        assert (await streaming.head()).header("connection") is None
        draining = asyncio.create_task(door.door.drain(DEADLINE, notice=0.001, quiet=DEADLINE))
        await until(lambda: door.context.admission.closed)
        gate.set()
        while await streaming.part():
            pass
        for client in (idle, new, streaming):
            assert not draining.done()
            await client.send(post_bytes(ASK))
            got = await client.read()
            assert (got.status, got.header("connection")) == (200, "close")
            assert await client.closed()
        # All of them are gone: nobody is waited for.
        assert await draining
        got = await door.ask(post_bytes(ASK))
        assert got.status == 503 and got.error["code"] == "shutting_down"


async def test_a_connection_that_stays_quiet_ends_with_the_drain(door: OpenHttpDoor) -> None:
    async with door.client() as kept:
        # Quiet since its answer, which the client has a little later.
        began = time.monotonic()
        await kept.send(post_bytes(method="GET", path="/health"))
        await kept.read()
        assert await door.door.drain(DEADLINE, notice=0.001, quiet=0.1)
        assert time.monotonic() - began >= 0.1
        # It has nothing in flight, so nothing is cut when the time is over first.
        assert await door.door.drain(0.05, notice=0.001, quiet=DEADLINE)
        await door.door.aclose()
        assert await kept.closed()


async def test_what_a_kept_connection_brought_last_is_waited_for(door: OpenHttpDoor) -> None:
    door.chat.script(answer(parts=[event("Hel"), WaitGone()]))
    async with door.client() as kept:
        await kept.send(post_bytes(method="GET", path="/health"))
        await kept.read()
        draining = asyncio.create_task(door.door.drain(DEADLINE, notice=0.001, quiet=DEADLINE / 2))
        await until(lambda: door.context.admission.closed)
        await kept.send(post_bytes(STREAM))
        assert (await kept.head()).header("connection") == "close"
        assert door.context.admission.active == 1 and not draining.done()
        kept.leave()
        assert await draining


async def test_drain_that_takes_too_long_is_ended(door: OpenHttpDoor) -> None:
    door.chat.script(answer(parts=[event("Hel"), WaitGone()]))
    async with door.client() as client:
        await client.send(post_bytes(STREAM))
        await client.head()
        while b'"delta":"Hel"' not in await client.part():
            pass
        assert await door.door.drain(0.01) is False
        await door.door.aclose()
        record = next(iter(door.store.records.values()))
        assert record.status == "failed" and b"shut down" in record.body
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            while await client.part():
                pass
    async with asyncio.timeout(DEADLINE):
        await door.chat.requests[0].gone.wait()


async def test_close_with_idle_connections(door: OpenHttpDoor) -> None:
    async with door.client() as kept, door.client() as silent:
        await kept.send(post_bytes(method="GET", path="/health"))
        await kept.read()
        await door.door.aclose()
        assert await kept.closed() and await silent.closed()
    with pytest.raises(OSError):
        await door.ask(post_bytes(ASK))


# Listening


async def test_unix_socket_file(tmp_path: Path) -> None:
    path = tmp_path / "run" / "door.sock"
    async with open_http_door(address=f"unix:{path}") as door:
        assert door.address == f"unix:{path}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert (await door.ask(post_bytes(ASK))).status == 200
        with pytest.raises(ConfigError, match="is in use"):
            async with open_http_door(address=f"unix:{path}"):
                pass
        assert (await door.ask(post_bytes(ASK))).status == 200, "the first door keeps its socket"
    assert not path.exists()


async def test_stale_socket_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "door.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    async with open_http_door(address=f"unix:{path}") as door:
        assert (await door.ask(post_bytes(method="GET", path="/health"))).status == 200


async def test_other_files_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(ConfigError, match="not a socket"):
        async with open_http_door(address=f"unix:{path}"):
            pass
    assert path.read_text() == "data"


async def test_a_socket_path_may_be_too_long(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is longer than 107 bytes: use a shorter path"):
        async with open_http_door(address=f"unix:{tmp_path / ('x' * 108)}"):
            pass


@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1:99999", "127.0.0.1:x", "unix:" + "/x" * 200, "256.1.1.1:80"])
async def test_addresses_that_cannot_be_bound(address: str) -> None:
    with pytest.raises(ConfigError):
        async with open_http_door(address=address):
            pass


async def test_port_in_use(door: OpenHttpDoor) -> None:
    with pytest.raises(ConfigError, match=door.address):
        async with open_http_door(address=door.address):
            pass
