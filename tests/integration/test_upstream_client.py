"""`HttpUpstream` against a real server: what is sent, how the answer comes back, how connections are kept."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from antiphon.engine.ports.actions import UpstreamRequest
from antiphon.engine.ports.state import UpstreamCallFailed
from antiphon.types.transport import UpstreamFault
from antiphon.upstream.client import HttpUpstream, UpstreamTarget
from tests.support.chat_server import (
    DEADLINE,
    ChatServer,
    Reset,
    Wait,
    WaitGone,
    answer,
    completion,
    event,
    gzipped,
    json_answer,
    split,
    text_stream,
)
from tests.support.tls import client_context, server_context
from tests.support.waiting import until

POST = UpstreamRequest(
    "POST", "/chat/completions", (("content-type", "application/json"),), b'{"stream":true}', "m", True
)
GET = UpstreamRequest("GET", "/models", (("accept", "application/json"),), b"", "", False)


@pytest.fixture
async def server() -> AsyncIterator[ChatServer]:
    async with ChatServer() as server:
        yield server


@pytest.fixture
async def upstream(server: ChatServer) -> AsyncIterator[HttpUpstream]:
    upstream = HttpUpstream(UpstreamTarget(server.base_url))
    yield upstream
    await upstream.aclose()


async def whole(upstream: HttpUpstream, request: UpstreamRequest = POST) -> tuple[int, dict[str, str], bytes]:
    async with upstream.call(request) as got:
        return got.status, dict(got.headers), b"".join([part async for part in got.body()])


async def test_request_arrives_as_given(server: ChatServer, upstream: HttpUpstream) -> None:
    status, headers, body = await whole(upstream)
    call = await server.received()
    assert (call.method, call.path, call.body) == ("POST", "/v1/chat/completions", POST.body)
    assert status == 200 and headers["content-type"].startswith("text/event-stream")
    assert body == b"".join(text_stream("Hel", "lo"))
    assert dict(call.headers) == {
        "host": f"127.0.0.1:{server.port}",
        "user-agent": "antiphon",
        "accept-encoding": "identity",
        "content-type": "application/json",
        "content-length": str(len(POST.body)),
    }


async def test_a_connection_that_breaks_behind_its_answer_is_no_error(
    server: ChatServer, upstream: HttpUpstream
) -> None:
    """It was kept for the next call; how it ends is nobody's news."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    more, gate = asyncio.Event(), asyncio.Event()
    parts = (b'{"a"', Wait(more), b":1}", Wait(gate), Reset())
    server.script(replace(json_answer({}), parts=parts, framing="length", announced=7))
    async with upstream.call(POST) as got:
        async for _ in got.body():
            more.set()
    gate.set()
    await until(lambda: not server.open_connections)
    # The next call knows it, and nothing holds what nobody waits for.
    await whole(upstream)
    assert server.connections == 2
    await upstream.aclose()
    del got
    gc.collect()
    assert complaints == []


async def test_get_has_no_body(server: ChatServer, upstream: HttpUpstream) -> None:
    status, _, body = await whole(upstream, GET)
    call = await server.received()
    assert status == 200 and b"demo-model" in body
    assert call.body == b"" and call.header("content-length") is None and call.header("transfer-encoding") is None


async def test_target_headers_win_over_the_request(server: ChatServer) -> None:
    upstream = HttpUpstream(
        UpstreamTarget(server.base_url, headers=(("authorization", "Bearer ours"), ("host", "chat.test")))
    )
    request = UpstreamRequest("POST", "/chat/completions", (("authorization", "Bearer theirs"),), b"{}", "m", False)
    await whole(upstream, request)
    call = await server.received()
    assert call.header_values("authorization") == ["Bearer ours"]
    assert call.header_values("host") == ["chat.test"]
    await upstream.aclose()


async def test_large_body_goes_out_whole(server: ChatServer, upstream: HttpUpstream) -> None:
    body = b'{"stream": false, "x": "' + b"y" * (3 << 20) + b'"}'
    await whole(upstream, UpstreamRequest("POST", "/chat/completions", (), body, "m", False))
    call = await server.received()
    assert call.body == body and call.header("content-length") == str(len(body))


async def test_base_path_is_kept(server: ChatServer) -> None:
    upstream = HttpUpstream(UpstreamTarget(server.url("/api/v1/")))
    await whole(upstream)
    assert (await server.received()).path == "/api/v1/chat/completions"
    await upstream.aclose()


@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_every_framing_gives_the_same_bytes(
    server: ChatServer, upstream: HttpUpstream, framing: str, size: int
) -> None:
    data = b"".join(text_stream("Hel", "lo"))
    server.script(answer(parts=split(data, size), framing=framing))
    assert (await whole(upstream))[2] == data


async def test_parts_arrive_as_they_are_sent(server: ChatServer, upstream: HttpUpstream) -> None:
    gate = asyncio.Event()
    server.script(answer(parts=[event("Hel"), Wait(gate), event("lo")]))
    async with upstream.call(POST) as got:
        body = got.body()
        assert await anext(body) == event("Hel")
        gate.set()
        assert await anext(body) == event("lo")
        with pytest.raises(StopAsyncIteration):
            await anext(body)


async def test_head_arrives_before_the_body(server: ChatServer, upstream: HttpUpstream) -> None:
    gate = asyncio.Event()
    server.script(answer(parts=[Wait(gate), event("late")]))
    async with upstream.call(POST) as got:
        assert got.status == 200
        gate.set()
        assert [part async for part in got.body()] == [event("late")]


async def test_gzip_is_unpacked_although_not_asked_for(server: ChatServer, upstream: HttpUpstream) -> None:
    server.script(gzipped(json_answer(completion("packed"))))
    _, headers, body = await whole(upstream)
    assert b"packed" in body
    assert "content-encoding" not in headers and "content-length" not in headers


async def test_header_pairs_are_lower_case_and_duplicates_kept(server: ChatServer, upstream: HttpUpstream) -> None:
    server.script(json_answer({}, headers=[("X-One", "1"), ("x-one", "2"), ("Retry-After", "7")]))
    async with upstream.call(POST) as got:
        assert [value for name, value in got.headers if name == "x-one"] == ["1", "2"]
        assert ("retry-after", "7") in got.headers


@pytest.mark.parametrize("framing", ["chunked", "length"])
async def test_what_described_the_wire_stays_there(server: ChatServer, upstream: HttpUpstream, framing: str) -> None:
    said = (("connection", "keep-alive"), ("keep-alive", "timeout=5"), ("content-type", "text/plain"), ("x-own", "1"))
    server.script(answer(200, said, [b"x"], framing=framing))
    _, headers, body = await whole(upstream)
    assert headers == {"content-type": "text/plain", "x-own": "1"} and body == b"x"


@pytest.mark.parametrize("status", [301, 307, 308])
async def test_redirects_are_not_followed(server: ChatServer, upstream: HttpUpstream, status: int) -> None:
    server.script(json_answer({}, status, [("location", server.url("/elsewhere"))]))
    assert (await whole(upstream))[0] == status
    assert len(server.requests) == 1


async def test_cookies_are_not_kept(server: ChatServer, upstream: HttpUpstream) -> None:
    server.script(json_answer({}, headers=[("set-cookie", "a=b; Path=/")]))
    await whole(upstream)
    await whole(upstream)
    assert server.requests[1].header("cookie") is None


async def test_a_whole_answer_keeps_the_connection(server: ChatServer, upstream: HttpUpstream) -> None:
    for _ in range(3):
        await whole(upstream)
    assert [call.connection for call in server.requests] == [0, 0, 0]


async def test_leaving_early_closes_the_connection_at_once(server: ChatServer, upstream: HttpUpstream) -> None:
    server.script(answer(parts=[event("Hel"), WaitGone()]))
    async with upstream.call(POST) as got:
        await anext(got.body())
        call = await server.received()
        assert not call.gone.is_set()
    async with asyncio.timeout(DEADLINE):
        await call.gone.wait()


async def test_cancelling_the_wait_for_the_head_closes_the_connection(
    server: ChatServer, upstream: HttpUpstream
) -> None:
    server.script(answer(parts=[WaitGone()], framing="none"))
    task = asyncio.create_task(whole(upstream))
    call = await server.received()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(DEADLINE):
        await call.gone.wait()


async def test_a_slow_reader_holds_the_server_back(server: ChatServer, upstream: HttpUpstream) -> None:
    big = event("x" * 100_000)
    server.script(answer(parts=[big] * 400))
    async with upstream.call(POST) as got:
        body = got.body()
        total = len(await anext(body))
        # 40 MB are far more than the buffers between us can hold, and all of them arrive.
        async for part in body:
            assert len(part) <= 1 << 20
            total += len(part)
    assert total == 400 * len(big)


async def test_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "chat.sock"
    async with ChatServer(unix_path=path) as server:
        upstream = HttpUpstream(UpstreamTarget("http://model-door/v1", unix_path=str(path)))
        assert (await whole(upstream))[0] == 200
        call = await server.received()
        assert call.path == "/v1/chat/completions" and call.header("host") == "model-door"
        await upstream.aclose()


async def test_tls_with_our_own_authority() -> None:
    async with ChatServer(tls=server_context()) as server:
        upstream = HttpUpstream(UpstreamTarget(server.base_url, ssl=client_context()))
        assert (await whole(upstream))[0] == 200
        await upstream.aclose()


async def test_host_override_is_the_tls_server_name() -> None:
    names: list[str | None] = []
    context = server_context()
    context.sni_callback = lambda _socket, name, _context: names.append(name)
    async with ChatServer(tls=context) as server:
        base = f"https://127.0.0.1:{server.port}/v1"
        upstream = HttpUpstream(UpstreamTarget(base, headers=(("host", "chat.test:8443"),), ssl=client_context()))
        assert (await whole(upstream))[0] == 200
        assert names == ["chat.test"]
        assert (await server.received()).header("host") == "chat.test:8443"
        await upstream.aclose()


@pytest.mark.parametrize(
    "target",
    [
        lambda port: UpstreamTarget(f"https://localhost:{port}/v1"),
        lambda port: UpstreamTarget(
            f"https://localhost:{port}/v1", headers=(("host", "other.test"),), ssl=client_context()
        ),
    ],
    ids=["unknown authority", "wrong name"],
)
async def test_a_certificate_that_is_not_trusted_is_refused(target: Any) -> None:
    async with ChatServer(tls=server_context()) as server:
        upstream = HttpUpstream(target(server.port))
        with pytest.raises(UpstreamCallFailed) as failure:
            await whole(upstream)
        assert failure.value.error.fault is UpstreamFault.UNREACHABLE
        assert "certificate" in failure.value.error.detail
        assert server.requests == []
        await upstream.aclose()


async def test_closed_client_makes_no_calls(server: ChatServer, upstream: HttpUpstream) -> None:
    await upstream.aclose()
    with pytest.raises(UpstreamCallFailed):
        await whole(upstream)


def test_contexts_are_verifying() -> None:
    assert client_context().verify_mode is ssl.CERT_REQUIRED


@pytest.mark.parametrize(("seconds", "asked"), [(60.0, 2), (-1.0, 1)])
async def test_a_call_is_repeated_only_if_the_server_cannot_have_worked_on_it(seconds: float, asked: int) -> None:
    bodies: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers what is to warm a connection up, and dies of everything else."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                bodies.append(await reader.readexactly(length))
                if bodies[-1] != b"warm":
                    break
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        writer.close()

    running = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = running.sockets[0].getsockname()
    upstream = HttpUpstream(UpstreamTarget(f"http://{host}:{port}/v1"), stale_seconds=seconds)
    await whole(upstream, structs.replace(POST, body=b"warm"))
    with pytest.raises(UpstreamCallFailed) as failed:
        await whole(upstream, structs.replace(POST, body=b"poison"))
    assert failed.value.error.fault is UpstreamFault.CUT
    assert bodies.count(b"poison") == asked
    await upstream.aclose()
    running.close()
