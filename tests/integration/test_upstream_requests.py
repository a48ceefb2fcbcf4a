"""What `HttpUpstream` writes, byte for byte, beside what aiohttp's own session would; and whose a connection is then.

Not here: how answers come back (`test_upstream_client.py`).
"""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
import pytest
from yarl import URL

from antiphon.engine.ports.actions import UpstreamRequest
from antiphon.engine.ports.state import UpstreamCallFailed
from antiphon.types.transport import Headers, UpstreamFault
from antiphon.upstream.client import HttpUpstream, UpstreamTarget

GUARD = 30.0
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
LENGTH = re.compile(rb"\r\ncontent-length: (\d+)", re.IGNORECASE)
JSON = ("content-type", "application/json")


@dataclass
class _Server:
    """Keeps the bytes of each request, with the number of its connection, and answers with `answer`; with `hasty`,
    as soon as there is a head."""

    answer: bytes = OK
    hasty: bool = False
    port: int = 0
    seen: list[tuple[int, bytes]] = field(default_factory=list)
    connections: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if self.hasty:
                    self.seen.append((number, head))
                    writer.write(self.answer)
                    await reader.read()
                    return
                length = LENGTH.search(head)
                self.seen.append((number, head + await reader.readexactly(int(length[1]) if length else 0)))
                writer.write(self.answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()


@asynccontextmanager
async def _serving(**options: object) -> AsyncIterator[_Server]:
    server = _Server(**options)  # type: ignore[arg-type]
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()


async def _call(upstream: HttpUpstream, request: UpstreamRequest) -> tuple[int, bytes]:
    async with asyncio.timeout(GUARD), upstream.call(request) as answer:
        return answer.status, b"".join([part async for part in answer.body()])


async def _by_a_session(base: str, fixed: Headers, request: UpstreamRequest) -> None:
    names = {name for name, _ in fixed}
    async with (
        aiohttp.ClientSession(
            headers={"user-agent": "antiphon", "accept-encoding": "identity"},
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("accept", "content-type"),
        ) as session,
        session.request(
            request.method,
            URL((base.removesuffix("/v1") if request.above else base) + request.path, encoded=True),
            data=io.BytesIO(request.body) if request.body else None,
            headers=[*fixed, *(pair for pair in request.headers if pair[0] not in names)],
        ) as answer,
    ):
        await answer.read()


def _request(method: str, path: str, headers: Headers, body: bytes, *, above: bool = False) -> UpstreamRequest:
    return UpstreamRequest(method, path, headers, body, "m", False, above=above)


REQUESTS: dict[str, tuple[Headers, UpstreamRequest]] = {
    "a chat call": ((), _request("POST", "/chat/completions", (JSON, ("x-request-id", "req_1")), b'{"a":1}')),
    "a key": ((("authorization", "Bearer k"),), _request("POST", "/chat/completions", (JSON,), b"{}")),
    "the target's word counts": (
        (("authorization", "Bearer k"), ("host", "chat.test")),
        _request("POST", "/x", (("host", "evil"), ("authorization", "Bearer no"), JSON), b"{}"),
    ),
    "one of the client's own": ((), _request("POST", "/x", (("user-agent", "client/1"), ("accept", "a/b")), b"{}")),
    "a header twice": ((), _request("POST", "/x", (("x-a", "1"), ("x-b", "2"), ("x-a", "3")), b"{}")),
    "of the target, twice": ((("x-a", "1"), ("x-a", "2")), _request("POST", "/x", (), b"{}")),
    "letters of the world": ((), _request("POST", "/x", (("x-a", "çé"),), b"{}")),
    "without a body": ((), _request("POST", "/x", (), b"")),
    "got": ((), _request("GET", "/models?after=a%2Fb&limit=2", (("accept", "application/json"),), b"")),
    "deleted": ((), _request("DELETE", "/responses/resp_1", (), b"")),
    "beside the base": ((), _request("GET", "/api/tags", (), b"", above=True)),
    "large": ((), _request("POST", "/x", (JSON,), b"x" * 3_000_000)),
}


@pytest.mark.parametrize("name", REQUESTS)
async def test_the_same_bytes_as_a_session(name: str) -> None:
    fixed, request = REQUESTS[name]
    async with _serving() as server:
        base = f"http://127.0.0.1:{server.port}/v1"
        upstream = HttpUpstream(UpstreamTarget(base, headers=fixed))
        # Twice: what all requests share must not have changed.
        for _ in range(2):
            assert await _call(upstream, request) == (200, b"{}")
        await upstream.aclose()
        await _by_a_session(base, fixed, request)
    sent = [data for _, data in server.seen]
    assert sent[0] == sent[1] == sent[2]
    assert server.connections == 2


async def test_announcements_of_an_answer_are_passed_over() -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"
    async with _serving(answer=early + OK) as server:
        upstream = HttpUpstream(UpstreamTarget(f"http://127.0.0.1:{server.port}/v1"))
        request = _request("POST", "/x", (), b"{}")
        assert [await _call(upstream, request) for _ in range(2)] == [(200, b"{}")] * 2
        assert server.connections == 1
        await upstream.aclose()


async def test_what_is_left_of_a_request_is_not_taken_for_the_next() -> None:
    async with _serving(hasty=True) as server:
        upstream = HttpUpstream(UpstreamTarget(f"http://127.0.0.1:{server.port}/v1"))
        # More than fits into the sockets' buffers.
        request = _request("POST", "/x", (), b"x" * (32 << 20))
        for _ in range(2):
            assert await _call(upstream, request) == (200, b"{}")
        assert [number for number, _ in server.seen] == [1, 2]
        await upstream.aclose()


@pytest.mark.parametrize("header", [("x-a", "1\r\nx-b: 2"), ("x-a\r\nx-b", "1"), ("x-a", "\0")])
async def test_no_header_becomes_two(header: tuple[str, str]) -> None:
    async with _serving() as server:
        upstream = HttpUpstream(UpstreamTarget(f"http://127.0.0.1:{server.port}/v1"))
        with pytest.raises(UpstreamCallFailed) as caught:
            await _call(upstream, _request("POST", "/x", (header,), b"{}"))
        assert caught.value.error.fault is UpstreamFault.CUT
        assert server.seen == []
        await upstream.aclose()
