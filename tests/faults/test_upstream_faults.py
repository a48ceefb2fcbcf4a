"""What an upstream can do wrong, and which failure each becomes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from antiphon.engine.ports.actions import UpstreamRequest
from antiphon.engine.ports.state import UpstreamCallFailed
from antiphon.types.transport import UpstreamError, UpstreamFault
from antiphon.upstream.client import HttpUpstream, UpstreamTarget
from tests.support.chat_server import (
    DEADLINE,
    Answer,
    ChatServer,
    Close,
    Raw,
    Reset,
    Wait,
    WaitGone,
    answer,
    event,
    never,
    text_stream,
)

SECRET = "sk-never-to-be-seen-0123456789"
POST = UpstreamRequest("POST", "/chat/completions", (("authorization", f"Bearer {SECRET}"),), b"{}", "m", True)
SHORT = 0.05


@pytest.fixture
async def server() -> AsyncIterator[ChatServer]:
    async with ChatServer() as server:
        yield server


async def fail(upstream: HttpUpstream) -> tuple[bytes, UpstreamError]:
    """The body parts that came, and the failure after them."""
    parts: list[bytes] = []
    try:
        async with upstream.call(POST) as got:
            async for part in got.body():
                parts.append(part)
    except UpstreamCallFailed as failure:
        assert SECRET not in str(failure) and "authorization" not in str(failure).lower()
        return b"".join(parts), failure.error
    finally:
        await upstream.aclose()
    raise AssertionError("the call did not fail")


def client(server: ChatServer, **options: float) -> HttpUpstream:
    return HttpUpstream(UpstreamTarget(server.base_url), **options)  # type: ignore[arg-type]


async def test_nobody_listens(unused_tcp_port: int) -> None:
    upstream = HttpUpstream(UpstreamTarget(f"http://127.0.0.1:{unused_tcp_port}/v1"))
    assert (await fail(upstream))[1].fault is UpstreamFault.UNREACHABLE


async def test_no_such_socket() -> None:
    upstream = HttpUpstream(UpstreamTarget("http://door/v1", unix_path="/nonexistent/chat.sock"))
    assert (await fail(upstream))[1].fault is UpstreamFault.UNREACHABLE


async def test_no_such_host() -> None:
    # `.invalid` never resolves; without any name server the failure is the same.
    upstream = HttpUpstream(UpstreamTarget("http://chat.invalid/v1"))
    assert (await fail(upstream))[1].fault is UpstreamFault.UNREACHABLE


async def test_tls_handshake_that_never_ends(server: ChatServer) -> None:
    upstream = HttpUpstream(UpstreamTarget(f"https://127.0.0.1:{server.port}/v1"), connect_seconds=SHORT)
    error = (await fail(upstream))[1]
    assert error.fault is UpstreamFault.UNREACHABLE and "no connection" in error.detail


async def test_never_answers(server: ChatServer) -> None:
    server.script(never())
    error = (await fail(client(server, head_seconds=SHORT)))[1]
    assert error.fault is UpstreamFault.TIMED_OUT and error.detail.endswith("(timeouts.head)")
    async with asyncio.timeout(DEADLINE):
        await server.requests[0].gone.wait()


async def test_a_late_head_is_not_silence(server: ChatServer) -> None:
    """The limit on silence in the body does not limit the wait for the head."""
    gate = asyncio.Event()
    asyncio.get_running_loop().call_later(4 * SHORT, gate.set)
    server.script(Answer(parts=(Wait(gate), Raw(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")), framing="none"))
    upstream = client(server, idle_seconds=SHORT)
    async with upstream.call(POST) as got:
        assert [part async for part in got.body()] == [b"ok"]
    await upstream.aclose()


@pytest.mark.parametrize(
    ("step", "did"),
    [(Close(), "closed"), (Reset(), "reset"), (Raw(b""), "closed")],
    ids=["closed", "reset", "empty"],
)
async def test_hangs_up_without_a_head(server: ChatServer, step: Raw | Close | Reset, did: str) -> None:
    server.script(Answer(parts=(step, Close()), framing="none"))
    parts, error = await fail(client(server))
    assert parts == b"" and error.fault is UpstreamFault.CUT
    assert error.detail == f"the upstream {did} the connection before the head of its answer"
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "garbage",
    [b"SSH-2.0-OpenSSH_9.2\r\n\r\n", b"\x16\x03\x01\x02\x00", b"HTTP/1.1 abc\r\n\r\n"],
    ids=["ssh", "tls", "status"],
)
async def test_speaks_something_else(server: ChatServer, garbage: bytes) -> None:
    server.script(Answer(parts=(Raw(garbage), Close()), framing="none"))
    error = (await fail(client(server)))[1]
    assert error.fault is UpstreamFault.CUT
    assert error.detail == "the upstream's answer is not HTTP before the head of its answer"


@pytest.mark.parametrize("framing", ["chunked", "length"])
@pytest.mark.parametrize("step", [Close(), Reset()], ids=["closed", "reset"])
async def test_stops_in_the_middle(server: ChatServer, framing: str, step: Close | Reset) -> None:
    sent = [event("Hel"), event("lo")]
    gate = asyncio.Event()
    server.script(answer(parts=[*sent, Wait(gate), step], framing=framing, announced=10_000))
    upstream = client(server)
    parts = b""
    with pytest.raises(UpstreamCallFailed) as failure:
        async with upstream.call(POST) as got:
            async for part in got.body():
                parts += part
                if parts == b"".join(sent):
                    gate.set()
    assert parts == b"".join(sent)
    assert failure.value.error == UpstreamError(
        UpstreamFault.CUT, "the upstream ended the body early, or sent an invalid body"
    )
    await upstream.aclose()


async def test_what_arrived_together_with_the_end_is_not_lost(server: ChatServer) -> None:
    """Data and the break in one read: the data comes first, then the failure."""
    server.script(answer(parts=[event("Hel"), Close()]))
    upstream = client(server)
    async with upstream.call(POST) as got:
        await server.requests[0].gone.wait()
        for _ in range(10):
            await asyncio.sleep(0)
        body = got.body()
        assert await anext(body) == event("Hel")
        with pytest.raises(UpstreamCallFailed) as failure:
            await anext(body)
        assert failure.value.error.fault is UpstreamFault.CUT
    await upstream.aclose()


async def test_falls_silent(server: ChatServer) -> None:
    server.script(answer(parts=[event("Hel"), WaitGone()]))
    parts, error = await fail(client(server, idle_seconds=SHORT))
    assert parts == event("Hel") and error.fault is UpstreamFault.TIMED_OUT
    assert error.detail.endswith("(timeouts.idle)")
    async with asyncio.timeout(DEADLINE):
        await server.requests[0].gone.wait()


async def test_silent_from_the_head_on(server: ChatServer) -> None:
    server.script(answer(parts=[WaitGone()]))
    parts, error = await fail(client(server, idle_seconds=SHORT))
    assert parts == b"" and error.fault is UpstreamFault.TIMED_OUT


async def test_a_slow_reader_is_no_silent_upstream(server: ChatServer) -> None:
    """Time that our own reader takes does not count, while the upstream has more to send than fits in between."""
    server.script(answer(parts=[event("x" * 1_000_000)] * 20))
    upstream = client(server, idle_seconds=2 * SHORT)
    size = 0
    async with upstream.call(POST) as got:
        body = got.body()
        size += len(await anext(body))
        await asyncio.sleep(6 * SHORT)  # this is the slow reader, not a wait for something
        async for part in body:
            size += len(part)
    assert size == 20 * len(event("x" * 1_000_000))
    await upstream.aclose()


@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
async def test_json_over_the_limit(server: ChatServer, framing: str) -> None:
    json = (("content-type", "application/json"),)
    server.script(answer(headers=json, parts=[b"x" * 600, b"y" * 600], framing=framing))
    error = (await fail(client(server, body_limit=1000)))[1]
    assert error.fault is UpstreamFault.TOO_LARGE


async def test_a_long_stream_is_no_large_body(server: ChatServer) -> None:
    server.script(answer(parts=text_stream(*["word"] * 50)))
    upstream = client(server, body_limit=100)
    async with upstream.call(POST) as got:
        assert len(b"".join([part async for part in got.body()])) > 100
    await upstream.aclose()


@pytest.mark.parametrize(
    "part",
    [b"not gzip at all", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xff\xff\xff\xff\xff"],
    ids=["plain", "broken"],
)
async def test_encoding_that_is_a_lie(server: ChatServer, part: bytes) -> None:
    server.script(answer(headers=[("content-encoding", "gzip")], parts=[part]))
    assert (await fail(client(server)))[1].fault is UpstreamFault.CUT


async def test_broken_chunk_framing(server: ChatServer) -> None:
    server.script(answer(parts=[event("Hel"), Raw(b"zz\r\nnonsense\r\n"), WaitGone()]))
    parts, error = await fail(client(server))
    assert parts == event("Hel") and error.fault is UpstreamFault.CUT


async def test_a_kept_connection_that_was_closed_meanwhile(server: ChatServer) -> None:
    """The server closes a kept connection when the next request is on its way: that request is sent again."""
    upstream = client(server)
    server.script(answer(parts=text_stream("one")), Answer(parts=(Close(),), framing="none"))
    for _ in range(2):
        async with upstream.call(POST) as got:
            assert got.status == 200
            assert [part async for part in got.body()]
    assert [call.connection for call in server.requests] == [0, 0, 1]
    await upstream.aclose()


async def test_huge_head(server: ChatServer) -> None:
    server.script(
        Answer(parts=(Raw(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 200_000 + b"\r\n\r\n"), WaitGone()), framing="none")
    )
    assert (await fail(client(server)))[1].fault is UpstreamFault.CUT
