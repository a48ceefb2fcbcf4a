"""Connections to MCP servers: which are kept, which end when, and what the guarded transport sends and reads.

Servers are played; real ones are in `tests/integration/test_mcp.py`.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, cast

import httpx2
import pytest
from mcp import MCPError
from mcp.types import CONNECTION_CLOSED

from antiphon.config.tools import McpSettings
from antiphon.tools import mcp_connections
from antiphon.tools.mcp_connections import GuardedTransport, McpConnections, Refused, ServerFailed
from antiphon.tools.mcp_servers import McpServer
from tests.support.fake_time import fake_time

SERVER = McpServer("https://a.example/mcp", (("authorization", "Bearer t"),))


async def _anywhere(host: str, port: int, secure: bool, registered: bool) -> str:
    return host


class Played:
    """Sessions that are entered when `ready` is set, with what happened to each."""

    def __init__(self) -> None:
        self.ready = asyncio.Event()
        self.ready.set()
        self.fails: BaseException | None = None
        self.entered = self.left = 0

    async def enter(self, server: McpServer, stack: AsyncExitStack) -> Any:
        @asynccontextmanager
        async def held() -> AsyncIterator[None]:
            self.entered += 1
            try:
                yield
            finally:
                self.left += 1

        await stack.enter_async_context(held())
        await self.ready.wait()
        if self.fails is not None:
            raise self.fails
        return f"session {self.entered}"


@pytest.fixture
def played() -> Played:
    return Played()


def _made(played: Played, limit: int = 2, **limits: Any) -> McpConnections:
    settings = McpSettings(**{"connect": 30.0, "idle": 3600.0, **limits})
    return McpConnections(_anywhere, settings, limit, played.enter)


async def _use(made: McpConnections, response_id: str, fails: Exception | None = None) -> str:
    async with made.session(SERVER, response_id) as session:
        if fails is not None:
            raise fails
        return cast(str, session)


async def _settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_session_is_kept_for_its_response_and_the_idlest_makes_room(played: Played) -> None:
    made = _made(played)
    assert [await _use(made, one) for one in ("a", "a", "b", "a", "c")] == [
        *("session 1", "session 1", "session 2"),
        *("session 1", "session 3"),
    ]
    await _settled()
    assert (played.entered, played.left) == (3, 1) and made.open == 2
    async with made.session(SERVER, "a"), made.session(SERVER, "c"):
        with pytest.raises(ServerFailed, match="Too many connections") as refused:
            await _use(made, "d")
        assert refused.value.status == 503
    await made.aclose()
    assert played.left == played.entered == 3 and not made.open


async def test_a_process_has_256_sessions_at_most(played: Played) -> None:
    made = McpConnections(_anywhere, McpSettings(), enter=played.enter)
    for number in range(256):
        await _use(made, f"resp_{number}")
    assert made.open == played.entered == 256
    await _use(made, "one more")
    await _settled()
    assert made.open == 256 and played.left == 1
    await made.aclose()


@pytest.mark.parametrize(
    ("fails", "raised", "ends"),
    [
        (None, None, False),
        (ServerFailed("no", 401), ServerFailed, True),
        (MCPError(CONNECTION_CLOSED, "closed"), MCPError, True),
        (MCPError(-32602, "an answer"), MCPError, False),
        (ValueError("a stream's"), ServerFailed, True),
    ],
)
async def test_a_session_that_failed_is_not_used_again(
    played: Played, fails: Exception | None, raised: type[Exception] | None, ends: bool
) -> None:
    made = _made(played)
    if raised is None:
        await _use(made, "a")
    else:
        with pytest.raises(raised) as told:
            await _use(made, "a", fails)
        assert told.value is fails or str(told.value) == "The connection broke."
    await _settled()
    assert (played.left == 1) is ends and (made.open == 0) is ends
    assert await _use(made, "a") == ("session 2" if ends else "session 1")
    await made.aclose()


@fake_time
async def test_a_session_ends_when_nobody_has_used_it_for_a_while(played: Played) -> None:
    made = _made(played, idle=60.0)
    async with made.session(SERVER, "a"):
        async with made.session(SERVER, "a"):
            pass
        await asyncio.sleep(100.0)
        assert made.open == 1, "somebody uses it still"
    await asyncio.sleep(59.0)
    await _use(made, "a")
    await asyncio.sleep(59.0)
    assert made.open == 1 and played.left == 0
    await asyncio.sleep(2.0)
    assert made.open == 0 and played.left == 1
    assert await _use(made, "a") == "session 2"
    await made.aclose()


async def test_who_leaves_while_it_is_opened_takes_nobody_along(played: Played) -> None:
    made = _made(played)
    played.ready.clear()
    both = [asyncio.create_task(_use(made, "a")) for _ in range(2)]
    await _settled()
    both[0].cancel()
    await asyncio.gather(both[0], return_exceptions=True)
    played.ready.set()
    assert await both[1] == "session 1" and played.entered == 1
    await made.aclose()


async def test_a_server_that_does_not_answer_in_time(played: Played) -> None:
    made = _made(played, connect=0.001)
    played.ready.clear()
    with pytest.raises(ServerFailed, match="did not answer in time") as told:
        await _use(made, "a")
    await _settled()
    assert told.value.status == 0 and made.open == 0 and played.left == 1
    await made.aclose()


async def test_one_that_cannot_be_opened_says_why_to_all_that_wait(played: Played) -> None:
    made = _made(played)
    played.ready.clear()
    played.fails = ExceptionGroup("g", [ValueError("x"), ExceptionGroup("h", [Refused("it may not be reached.")])])
    both = [asyncio.create_task(_use(made, "a")) for _ in range(2)]
    await _settled()
    played.ready.set()
    found = await asyncio.gather(*both, return_exceptions=True)
    assert [str(one) for one in found] == ["it may not be reached."] * 2 and played.left == 1
    await made.aclose()


async def test_a_failure_that_nobody_waits_for_is_no_noise(played: Played) -> None:
    made = _made(played)
    played.ready.clear()
    played.fails = OSError("gone")
    noise: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: noise.append(context["message"]))
    waiting = asyncio.create_task(_use(made, "a"))
    await _settled()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    played.ready.set()
    await _settled()
    await made.aclose()
    del made, waiting
    gc.collect()
    assert noise == [] and played.left == 1


@pytest.mark.parametrize(
    ("error", "said", "status"),
    [
        (ServerFailed("itself", 7), "itself", 7),
        (Refused("may not"), "may not", 0),
        (
            httpx2.HTTPStatusError("x", request=httpx2.Request("GET", "https://a/"), response=httpx2.Response(418)),
            "Http status code: 418.",
            418,
        ),
        (httpx2.ConnectError("secret"), "The server cannot be reached.", 0),
        (OSError("secret"), "The server cannot be reached.", 0),
        (ValueError("secret"), "The server violates the MCP protocol (ValueError).", 0),
        (ExceptionGroup("g", [ValueError(), OSError()]), "The server cannot be reached.", 0),
    ],
)
async def test_what_a_client_may_know_of_a_failure(
    played: Played, error: BaseException, said: str, status: int
) -> None:
    made = _made(played)
    played.fails = error
    with pytest.raises(ServerFailed) as told:
        await _use(made, "a")
    assert (str(told.value), told.value.status) == (said, status)
    await made.aclose()


# The transport


class _Inner(httpx2.AsyncBaseTransport):
    def __init__(self, *parts: bytes, **headers: str) -> None:
        self.parts, self.headers = parts, {name.replace("_", "-"): value for name, value in headers.items()}
        self.seen: list[tuple[str, str, str, Any]] = []
        self.closed = 0

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        sent = request.headers
        self.seen.append(
            (str(request.url), sent["host"], sent["accept-encoding"], request.extensions.get("sni_hostname"))
        )
        return httpx2.Response(207, headers=self.headers, stream=_Stream(self))

    async def aclose(self) -> None:
        self.closed += 1


class _Stream(httpx2.AsyncByteStream):
    def __init__(self, inner: _Inner) -> None:
        self.inner = inner

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self.inner.parts:
            yield part

    async def aclose(self) -> None:
        self.inner.closed += 10


def _guarded(inner: _Inner, permit: Any = _anywhere, limit: int = 10, *, registered: bool = False) -> GuardedTransport:
    return GuardedTransport(McpServer("https://a.example/", registered=registered), permit, limit, inner)


@pytest.mark.parametrize(
    ("url", "asked", "sent"),
    [
        ("https://a.example/x", ("a.example", 443, True, False), "https://10.0.0.9/x"),
        ("http://a.example/x", ("a.example", 80, False, False), "http://10.0.0.9/x"),
        ("https://a.example:8443/x", ("a.example", 8443, True, False), "https://10.0.0.9:8443/x"),
    ],
)
async def test_the_socket_goes_to_what_was_judged(url: str, asked: tuple[Any, ...], sent: str) -> None:
    judged: list[tuple[Any, ...]] = []

    async def permit(*given: Any) -> str:
        judged.append(given)
        return "10.0.0.9"

    for registered in (False, True):
        inner = _Inner(b"x")
        made = _guarded(inner, permit, registered=registered)
        request = httpx2.Request("GET", url)
        answer = await made.handle_async_request(request)
        assert judged.pop() == (*asked[:3], registered) and made.last_status == answer.status_code == 207
        port = f":{asked[1]}" if asked[1] == 8443 else ""
        assert inner.seen == [(sent, f"a.example{port}", "identity", "a.example")]
        assert str(request.url) == url  # redirects are judged by the name
        await made.aclose()
        assert inner.closed == 1


async def test_what_may_not_be_reached_is_not_asked() -> None:
    async def nowhere(*given: Any) -> str:
        raise PermissionError("it is private")

    inner = _Inner()
    with pytest.raises(Refused, match=r"fetch\.allow_private"):
        await _guarded(inner, nowhere).handle_async_request(httpx2.Request("GET", "https://a.example/"))
    assert inner.seen == []


@pytest.mark.parametrize(
    ("encoding", "read"), [("identity", True), (" Identity ", True), ("", True), ("gzip", False), ("br, gzip", False)]
)
async def test_nothing_that_is_packed_is_read(encoding: str, read: bool) -> None:
    inner = _Inner(b"x", content_encoding=encoding)
    asking = _guarded(inner).handle_async_request(httpx2.Request("GET", "https://a.example/"))
    if read:
        assert await (await asking).aread() == b"x"
    else:
        with pytest.raises(httpx2.ReadError, match="compressed"):
            await asking
        assert inner.closed == 10


@pytest.mark.parametrize(("kind", "limit"), [("application/json", 10), ("text/event-stream; charset=utf-8", 160)])
@pytest.mark.parametrize("more", [-1, 0, 1])
async def test_how_much_is_read(kind: str, limit: int, more: int) -> None:
    inner = _Inner(bytes(5), bytes(limit - 5 + more), content_type=kind)
    answer = await _guarded(inner).handle_async_request(httpx2.Request("GET", "https://a.example/"))
    read = 0
    stream = cast(httpx2.AsyncByteStream, answer.stream)
    try:
        async for part in stream:
            read += len(part)
    except httpx2.ReadError as error:
        assert more == 1 and "too large" in str(error) and read == 5
    else:
        assert more < 1 and read == limit + more
    await stream.aclose()
    assert inner.closed == 10


def test_certificates_are_read_once() -> None:
    assert mcp_connections.authorities() is mcp_connections.authorities()
