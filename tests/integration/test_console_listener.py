"""The console on each kind of listener of the HTTP server: which requests reach it, and how its answers end."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from antiphon.doors.http.console import ConsoleAt
from antiphon.doors.owners import OwnerResolver
from antiphon.engine.ports.callers import Access, Caller
from tests.support.chat_server import DEADLINE
from tests.support.console_pages import FakeConsole
from tests.support.http_door import OpenHttpDoor, RawAnswer, open_http_door, post_bytes
from tests.support.waiting import until

ASK: dict[str, Any] = {"model": "demo-model", "input": "Hi"}
ANNA = Caller("n:anna", "anna", access=Access(models=("demo-*",)))
MARK = {"x-antiphon-console": "1"}


async def _get(door: OpenHttpDoor, path: str, headers: dict[str, str] | None = None) -> RawAnswer:
    return await door.ask(post_bytes(method="GET", path=path, headers=headers))


async def test_the_separate_listener_serves_the_console_alone() -> None:
    pages = FakeConsole()
    async with open_http_door(console=pages, console_at=ConsoleAt.SEPARATE) as door:
        for path in ("/console", "/console/", "/console/requests?secret=yes", "//console/../console/a"):
            assert (await _get(door, path)).status == 200
        for path in ("/", "/v1/models", "/health", "/ready", "/metrics", "/consolex", "/v1/../consolex"):
            got = await door.ask(post_bytes(method="POST" if path == "/" else "GET", path=path))
            assert (got.status, got.error["code"]) == (404, "unknown_url"), path
        assert (await door.ask(post_bytes(ASK))).status == 404
        home = await _get(door, "/")
        assert (home.status, home.header("location")) == (302, "/console")
        assert door.metric("antiphon_requests_total", operation="console", status="200", fault="none") == 4
    assert [one.path for one in pages.requests] == ["/console", "/console/", "/console/requests", "/console/a"]


@pytest.mark.parametrize("at", list(ConsoleAt))
async def test_without_pages_no_listener_has_a_console(at: ConsoleAt) -> None:
    async with open_http_door(console_at=at) as door:
        assert (await _get(door, "/console")).status == 404
        assert (await _get(door, "/v1/models")).status == (404 if at is ConsoleAt.SEPARATE else 200)


async def test_the_listener_for_clients_serves_it_only_when_told() -> None:
    pages = FakeConsole()
    async with open_http_door(console=pages) as door:
        got = await _get(door, "/console", MARK)
        assert (got.status, got.error["code"]) == (404, "unknown_url")
    async with open_http_door(console=pages, console_at=ConsoleAt.CLIENTS) as door:
        assert (await _get(door, "/console")).status == 200
        assert (await _get(door, "/v1/models")).status == 200
        assert (await _get(door, "/")).status == 404


@pytest.mark.parametrize("method", ["OPTIONS", "GET"])
@pytest.mark.parametrize("at", [ConsoleAt.CLIENTS, ConsoleAt.SEPARATE])
async def test_pages_of_other_origins_get_no_permission(at: ConsoleAt, method: str) -> None:
    origin = "https://app.example"
    headers = {"origin": origin, "access-control-request-method": "POST"}
    async with open_http_door(console=FakeConsole(), console_at=at, cors_origins=("*",)) as door:
        got = await door.ask(post_bytes(method=method, path="/console/form", headers=headers))
        assert got.status == 200 and got.header("x-request-id")
        assert not [name for name, _ in got.headers if name.startswith("access-control")]


async def test_the_private_port_serves_what_the_gateway_marked(tmp_path: Path) -> None:
    pages = FakeConsole(ANNA)
    settings: dict[str, Any] = {"console": pages, "console_at": ConsoleAt.GATEWAY}
    settings |= {"private": True, "drive_exchanges": False}
    async with open_http_door(**settings, secret="s3cret") as door:
        secret = {"x-antiphon-secret": "s3cret"}
        assert (await _get(door, "/console", {**secret, **MARK})).status == 200
        assert (await _get(door, "/console", secret)).status == 404
        assert (await _get(door, "/console", MARK)).status == 401
        assert (await _get(door, "/console", {**MARK, "x-antiphon-secret": "wrong"})).status == 401
        assert (await door.ask(post_bytes(ASK, headers=secret))).status == 404
        run = {**secret, **MARK, "x-csrf-token": "right"}
        got = await door.ask(post_bytes(ASK, path="/console/run", headers=run))
        assert got.json["status"] == "completed"
    async with open_http_door(**settings, address=f"unix:{tmp_path}/http.sock") as door:
        assert (await _get(door, "/console")).status == 404
        assert (await _get(door, "/console", MARK)).status == 200
    assert not [name for one in pages.requests for name, _ in one.headers if name.startswith("x-antiphon-")]


async def test_the_pages_learn_whom_the_gateway_names_and_no_client_can_say_so() -> None:
    pages = FakeConsole()
    owners = OwnerResolver("header", "x-antiphon-owner")
    named = {"x-antiphon-owner": "anna"}
    gateway: dict[str, Any] = {"private": True, "console_at": ConsoleAt.GATEWAY, "secret": "s3cret"}
    async with open_http_door(console=pages, owners=owners, **gateway) as door:
        await _get(door, "/console", {**named, **MARK, "x-antiphon-secret": "s3cret"})
        await _get(door, "/console", {**MARK, "x-antiphon-secret": "s3cret"})
    for at in (ConsoleAt.SEPARATE, ConsoleAt.CLIENTS):
        async with open_http_door(console=pages, owners=owners, console_at=at) as door:
            assert (await _get(door, "/console", {**named, **MARK})).status == 200
    assert [one.caller.owner for one in pages.requests] == ["h:anna", "", "", ""]


async def test_the_pages_get_the_clients_address_and_no_client_can_choose_it() -> None:
    pages = FakeConsole()
    forged = {"x-antiphon-peer": "192.0.2.7"}
    for at in (ConsoleAt.SEPARATE, ConsoleAt.CLIENTS):
        async with open_http_door(console=pages, console_at=at) as door:
            assert (await _get(door, "/console", {**forged, **MARK})).status == 200
    gateway: dict[str, Any] = {"private": True, "console_at": ConsoleAt.GATEWAY, "secret": "s3cret"}
    async with open_http_door(console=pages, **gateway) as door:
        for named in (forged, {}):
            assert (await _get(door, "/console", {**named, **MARK, "x-antiphon-secret": "s3cret"})).status == 200
    assert [one.peer for one in pages.requests] == ["127.0.0.1", "127.0.0.1", "192.0.2.7", ""]


async def test_the_playground_runs_a_request_in_the_name_of_its_caller() -> None:
    pages = FakeConsole(ANNA)
    headers = {"x-csrf-token": "right", "cookie": "session=abc", "authorization": "Bearer sso"}
    async with open_http_door(console=pages, console_at=ConsoleAt.SEPARATE) as door:
        with capture_logs() as lines:
            got = await door.ask(post_bytes({**ASK, "stream": True}, path="/console/run?a=secret", headers=headers))
        assert got.status == 200 and got.events[-1]["type"] == "response.completed"
        stored = door.store.records[got.events[-1]["response"]["id"]]
        assert stored.owner == "n:anna"
        assert not {"cookie", "x-csrf-token"} & {name for name, _ in door.chat.requests[0].headers}
        assert "secret" not in str(lines) and "session=abc" not in str(lines)
        assert "sso" not in str(door.chat.requests[0].headers)
        refused = await door.ask(post_bytes({**ASK, "model": "other"}, path="/console/run", headers=headers))
        assert refused.status in (403, 404)
        wrong = await door.ask(post_bytes(ASK, path="/console/run", headers={**headers, "x-csrf-token": "wrong"}))
        assert (wrong.status, wrong.error["code"]) == (401, "no_session")
        assert len(door.chat.requests) == 1


async def test_a_path_of_the_playground_without_a_playground_is_a_page() -> None:
    async with open_http_door(console=FakeConsole(), console_at=ConsoleAt.SEPARATE) as door:
        got = await door.ask(post_bytes(ASK, path="/console/run"))
        assert got.json["path"] == "/console/run" and got.json["size"] == 0


@pytest.mark.parametrize(
    ("kind", "streamed"),
    [("application/x-www-form-urlencoded", False), ("multipart/form-data; boundary=x", True)],
)
async def test_forms_arrive_within_their_limits(kind: str, streamed: bool) -> None:
    most = 100_000
    setup: dict[str, Any] = {"request_body_bytes": most, "file_bytes": most}
    async with open_http_door(console=FakeConsole(), console_at=ConsoleAt.SEPARATE, **setup) as door:

        async def send(size: int) -> RawAnswer:
            return await door.ask(
                post_bytes(path="/console/form", headers={"Content-Type": kind}, body=b"x" * size).replace(
                    b"content-type: application/json\r\n", b""
                )
            )

        got = await send(most)
        assert got.json == {"method": "POST", "path": "/console/form", "size": most, "streamed": streamed}
        # A form with an upload may hold more than the file.
        got = await send(2 * most)
        assert got.status == (200 if streamed else 413)
        got = await send(most + (256 << 10) + 1)
        assert (got.status, got.error["code"]) == (413, "request_too_large")


async def test_head_has_no_content() -> None:
    async with open_http_door(console=FakeConsole(), console_at=ConsoleAt.SEPARATE) as door, door.client() as client:
        await client.send(post_bytes(method="HEAD", path="/console/events"))
        assert (await client.head()).status == 200


async def test_a_stream_ends_when_its_reader_leaves() -> None:
    pages = FakeConsole()
    async with open_http_door(console=pages, console_at=ConsoleAt.SEPARATE) as door:
        async with door.client() as client:
            await client.send(post_bytes(method="GET", path="/console/events"))
            await client.head()
            assert await client.part() == b"data: first\n\n"
            assert pages.open_streams == 1 and door.context.admission.active == 1
        await until(lambda: pages.open_streams == 0 and door.context.admission.active == 0)


@pytest.mark.parametrize("how", ["drain", "refuse", "send_away"])
async def test_a_stream_ends_whole_when_the_process_leaves(how: str) -> None:
    pages = FakeConsole()
    async with open_http_door(console=pages, console_at=ConsoleAt.SEPARATE) as door, door.client() as client:
        await client.send(post_bytes(method="GET", path="/console/events"))
        await client.head()
        assert await client.part() == b"data: first\n\n"
        if how == "drain":
            async with asyncio.timeout(DEADLINE):
                assert await door.door.drain(DEADLINE)
        else:
            getattr(door.door, how)()
        # The last chunk is empty: the stream is whole.
        assert await client.part() == b""
        await until(lambda: pages.open_streams == 0 and door.context.admission.active == 0)


async def test_only_the_streams_of_a_gateway_that_leaves_end() -> None:
    pages = FakeConsole()
    async with open_http_door(console=pages, console_at=ConsoleAt.SEPARATE) as door, door.client() as client:
        await client.send(post_bytes(method="GET", path="/console/events"))
        await client.head()
        assert await client.part() == b"data: first\n\n"
        door.door.send_away("192.0.2.1")
        assert (await _get(door, "/console")).status == 200 and pages.open_streams == 1
        door.door.send_away("127.0.0.1")
        assert await client.part() == b""


async def test_a_download_does_not_end_with_the_process() -> None:
    pages = FakeConsole()
    async with open_http_door(console=pages, console_at=ConsoleAt.SEPARATE) as door, door.client() as client:
        await client.send(post_bytes(method="GET", path="/console/download"))
        await client.head()
        assert await client.part() == b"first"
        door.door.refuse()
        pages.goes_on.set()
        assert await client.part() == b"last" and await client.part() == b""


async def test_pages_count_among_the_requests_in_flight() -> None:
    async with open_http_door(console=FakeConsole(), console_at=ConsoleAt.SEPARATE, concurrent=1) as door:
        async with door.client() as client:
            await client.send(post_bytes(method="GET", path="/console/events"))
            await client.head()
            assert (await _get(door, "/console")).status in (429, 503)
        await until(lambda: door.context.admission.active == 0)
        assert (await _get(door, "/console")).status == 200


async def test_silent_connections_keep_nobody_out() -> None:
    """The connections that have sent nothing, or a part of a head, are the first that the full listener closes."""
    setup: dict[str, Any] = {"console_at": ConsoleAt.SEPARATE, "request_seconds": 3600}
    async with open_http_door(console=FakeConsole(), **setup) as door, AsyncExitStack() as opened:
        reader = await opened.enter_async_context(door.client())
        await reader.send(post_bytes(method="GET", path="/console/events"))
        await reader.head()
        for number in range(300):
            silent = await opened.enter_async_context(door.client())
            if number % 2:
                await silent.send(b"GET /console HTTP/1.1\r\n")
        async with asyncio.timeout(4):
            assert (await _get(door, "/console")).status == 200
        assert await reader.part() == b"data: first\n\n"


async def test_who_has_not_signed_in_has_little_time_for_a_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("antiphon.doors.http.console.UNKNOWN_SECONDS", 0.05)
    slow = b"POST /console/form HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n"
    kind = b"content-type: application/x-www-form-urlencoded\r\n"
    for at in (ConsoleAt.SEPARATE, ConsoleAt.CLIENTS):
        async with open_http_door(console=FakeConsole(), console_at=at, request_seconds=3600) as door:
            got = await door.ask(slow + kind + b"\r\ntoken")
            assert (got.status, got.error["code"]) == (408, "request_timeout")
            async with door.client() as client:
                await client.send(slow + kind + b"cookie: a=b\r\n\r\ntoken")
                assert (await door.ask(slow + kind + b"\r\ntoken")).status == 408
                await client.send(b"=1234")
                assert (await client.read()).json["size"] == 10


async def test_a_silent_connection_of_the_separate_listener_closes_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("antiphon.doors.http.console.UNKNOWN_SECONDS", 0.05)
    setup: dict[str, Any] = {"console_at": ConsoleAt.SEPARATE, "request_seconds": 3600}
    async with open_http_door(console=FakeConsole(), **setup) as door, door.client() as client:
        async with asyncio.timeout(DEADLINE):
            with pytest.raises(asyncio.IncompleteReadError):
                await client.exactly(1)
