"""Manages sessions with MCP servers. Each response has one session per MCP server, which closes after an idle time.

This module has an HTTP client that connects only to checked addresses. With the transports of the MCP SDK, this module
opens and closes sessions. `mcp_servers.py` checks the declared server, and `mcp_tool.py` converts results.

The SDK requires that the same task enters and leaves the SDK's context managers. So each session has a separate task
for this purpose, and other tasks only call the session.

Invariants: every TCP connection goes to an address that a function of type `Permit` has checked. The SDK follows no
redirect to another origin. A session that failed is not used again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import ssl
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from functools import cache, partial
from urllib.parse import urlsplit

import httpx2
from mcp import ClientSession, MCPError
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CONNECTION_CLOSED, Implementation

from antiphon import __version__
from antiphon.config.tools import McpSettings
from antiphon.tools.mcp_servers import McpServer

Permit = Callable[[str, int, bool, bool], Awaitable[str]]
"""`(host, port, secure, registered) -> address`. Resolves a host and returns an address to which Antiphon may connect.
`secure`: the URL is https. `registered`: the operator registered the server. Raises `OSError` if no such address
exists."""

_CLIENT = Implementation(name="antiphon", version=__version__)
# The logs of these libraries quote URLs and responses, which may contain secrets. Antiphon reports the errors itself.
for _name in ("httpx2", "httpcore2", "mcp"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


class Refused(Exception):
    """Raised when an MCP server has no address to which Antiphon may connect."""


class ServerFailed(Exception):
    """Raised when the session with an MCP server fails. `status`: the HTTP status of the server's response, or 0
    without a response. `detail`: the operating system's error, only for the log and for operators."""

    def __init__(self, message: str, status: int = 0, detail: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.detail = detail


Enter = Callable[[McpServer, AsyncExitStack], Awaitable[ClientSession]]


class McpConnections:
    """The MCP sessions of a process, at most `max_sessions`. `permit` checks addresses. `enter(server, stack)` opens a
    session that ends when `stack` closes."""

    def __init__(
        self, permit: Permit, limits: McpSettings, max_sessions: int = 256, enter: Enter | None = None
    ) -> None:
        self._enter = enter or partial(enter_session, permit, limits)
        self._max_sessions = max_sessions
        self._limits = limits
        self._sessions: OrderedDict[tuple[str, str], _McpSession] = OrderedDict()

    @property
    def open(self) -> int:
        """The number of open sessions."""
        return len(self._sessions)

    @contextlib.asynccontextmanager
    async def session(self, server: McpServer, response_id: str) -> AsyncIterator[ClientSession]:
        """Provide the response's session with this server, and open it on the first use. Raises `ServerFailed`."""
        key = (response_id, server.key)
        kept = self._sessions.get(key)
        if kept is None or kept.ended:
            self._make_room()
            made = kept = self._sessions[key] = _McpSession(server, self._enter, self._limits)
            # Remove the session from `_sessions` when its task ends for any reason.
            made.task.add_done_callback(lambda _: self._drop(key, made))
        self._sessions.move_to_end(key)
        try:
            with kept.used():
                yield await asyncio.shield(kept.ready)
        except MCPError as error:
            if error.code == CONNECTION_CLOSED:
                self._drop(key, kept)
            raise
        except Exception as error:
            self._drop(key, kept)
            if isinstance(error, ServerFailed):
                raise
            # The SDK's streams raise various exceptions when the connection breaks.
            raise ServerFailed("The connection broke.") from error

    def _make_room(self) -> None:
        """If the maximum number of sessions is open, close the session that has been idle longest. Raises
        `ServerFailed` if all sessions are in use."""
        if len(self._sessions) < self._max_sessions:
            return
        idle = next(((key, one) for key, one in self._sessions.items() if not one.users), None)
        if idle is None:
            raise ServerFailed("Too many connections are open; try again later.", 503)
        self._drop(*idle)

    def _drop(self, key: tuple[str, str], session: _McpSession) -> None:
        session.close()
        if self._sessions.get(key) is session:
            del self._sessions[key]

    async def aclose(self) -> None:
        """Close all sessions."""
        sessions = list(self._sessions.values())
        self._sessions.clear()
        for session in sessions:
            session.close()
        for session in sessions:
            await session.closed()


class _McpSession:
    """One session with an MCP server, and the task that enters and leaves the SDK's context managers."""

    def __init__(self, server: McpServer, enter: Enter, limits: McpSettings) -> None:
        self._server = server
        self._enter = enter
        self._limits = limits
        # The number of callers that wait for the session or use it.
        self.users = 0
        self._closing = asyncio.Event()
        self.ready: asyncio.Future[ClientSession] = asyncio.get_running_loop().create_future()
        self._idle: asyncio.TimerHandle | None = None
        self.task = asyncio.get_running_loop().create_task(self._hold())

    @property
    def ended(self) -> bool:
        """Whether the session has ended or is closing, so that callers need a new session."""
        return self.task.done() or self._closing.is_set()

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Mark the session as in use inside the `with` block. The idle timeout starts when the last caller leaves the
        block."""
        self.users += 1
        if self._idle is not None:
            self._idle.cancel()
        try:
            yield
        finally:
            self.users -= 1
            if not self.users:
                loop = asyncio.get_running_loop()
                self._idle = loop.call_later(self._limits.idle, self._closing.set)

    def close(self) -> None:
        """Ask the session's task to close the session. Returns immediately."""
        if self._idle is not None:
            self._idle.cancel()
        self._closing.set()

    async def closed(self) -> None:
        """Wait at most `limits.connect` seconds until the session's task ends. After that time, cancel the task."""
        await asyncio.wait({self.task}, timeout=self._limits.connect)
        self.task.cancel()

    async def _hold(self) -> None:
        try:
            async with AsyncExitStack() as stack:
                try:
                    async with asyncio.timeout(self._limits.connect):
                        session = await self._enter(self._server, stack)
                except TimeoutError:
                    raise ServerFailed("The server did not answer in time.") from None
                self.ready.set_result(session)
                await self._closing.wait()
        except asyncio.CancelledError:
            if not self.ready.done():
                self.ready.set_exception(ServerFailed("The connection was closed."))
            raise
        except BaseException as error:
            if not self.ready.done():
                self.ready.set_exception(_failure(error))


async def enter_session(permit: Permit, limits: McpSettings, server: McpServer, stack: AsyncExitStack) -> ClientSession:
    """Connect to a server and initialize an MCP session. Closing `stack` closes the session. Raises `ServerFailed` and
    the SDK's errors."""
    transport = GuardedTransport(server, permit, limits.answer_bytes)
    timeout = httpx2.Timeout(limits.connect, read=300.0)

    def make_client(
        headers: dict[str, str] | None = None,
        timeout: httpx2.Timeout | None = timeout,
        auth: httpx2.Auth | None = None,
    ) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(
            transport=transport,
            headers={**dict(server.headers), **(headers or {})},
            timeout=timeout,
            trust_env=False,
        )

    if urlsplit(server.url).path.rstrip("/").endswith("/sse"):
        streams = await stack.enter_async_context(sse_client(server.url, httpx_client_factory=make_client))
    else:
        client = await stack.enter_async_context(make_client())
        streams = await stack.enter_async_context(streamable_http_client(server.url, http_client=client))
    session = ClientSession(streams[0], streams[1], client_info=_CLIENT)
    await stack.enter_async_context(session)
    try:
        await session.initialize()
    except MCPError as error:
        if transport.last_status >= 300:
            raise ServerFailed(f"Http status code: {transport.last_status}.", transport.last_status) from None
        raise ServerFailed(f"It says: {str(error.message)[:200]}") from None
    return session


@cache
def authorities() -> ssl.SSLContext:
    """Return the TLS context with the certificate authorities. The result is cached, because loading certificates
    blocks for tens of milliseconds."""
    return httpx2.create_ssl_context(trust_env=False)


class GuardedTransport(httpx2.AsyncBaseTransport):
    """An HTTP transport that connects only to addresses that `permit` returns, and limits the size of responses."""

    def __init__(
        self, server: McpServer, permit: Permit, max_bytes: int, inner: httpx2.AsyncBaseTransport | None = None
    ) -> None:
        self._registered = server.registered
        self._permit = permit
        self._limit = max_bytes
        self._inner = inner or httpx2.AsyncHTTPTransport(verify=authorities(), trust_env=False)
        self.last_status = 0

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        url = request.url
        port = url.port or (443 if url.scheme == "https" else 80)
        try:
            address = await self._permit(url.host, port, url.scheme == "https", self._registered)
        except OSError:
            # The message is the same for a host that does not exist and for a private host, so that a client cannot
            # scan the private network.
            raise Refused(
                "The server's address does not exist or is not public; 'fetch.allow_private' allows private ones."
            ) from None
        request.extensions = {**request.extensions, "sni_hostname": url.host}
        request.url = url.copy_with(host=address)
        # The size limit applies to the bytes received, so a compressed response could exceed it after decompression.
        request.headers["accept-encoding"] = "identity"
        answer = await self._inner.handle_async_request(request)
        # Restore the host name in the URL, because the SDK follows a redirect only to the same host and port.
        request.url = url
        self.last_status = answer.status_code
        stream = answer.stream
        if answer.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
            await answer.aclose()
            raise httpx2.ReadError("the server compressed the response, although the request did not allow compression")
        assert isinstance(stream, httpx2.AsyncByteStream)
        answer.stream = _Bounded(
            stream, self._limit, endless="text/event-stream" in answer.headers.get("content-type", "")
        )
        return answer

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Bounded(httpx2.AsyncByteStream):
    """A response body that raises `httpx2.ReadError` when the body exceeds its size limit.

    An event stream (`endless` is True) stays open for the whole session, so its limit is 16 times `limit`. The SDK
    limits the size of each event."""

    def __init__(self, inner: httpx2.AsyncByteStream, limit: int, *, endless: bool) -> None:
        self._inner = inner
        self._left = limit * (16 if endless else 1)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._inner:
            self._left -= len(part)
            if self._left < 0:
                raise httpx2.ReadError("the answer is too large")
            yield part

    async def aclose(self) -> None:
        await self._inner.aclose()


def _failure(error: BaseException) -> ServerFailed:
    """Convert the error of a failed session into a `ServerFailed` with a message that clients may read."""
    for one in _leaves(error):
        if isinstance(one, ServerFailed):
            return one
        if isinstance(one, Refused):
            return ServerFailed(str(one))
        if isinstance(one, httpx2.HTTPStatusError):
            return ServerFailed(f"Http status code: {one.response.status_code}.", one.response.status_code)
        if isinstance(one, httpx2.HTTPError | OSError):
            return ServerFailed("The server cannot be reached.", detail=_system_error(one))
    return ServerFailed(f"The server violates the MCP protocol ({type(error).__name__}).")


def _system_error(error: BaseException | None) -> str:
    """Return the operating system's words for the first cause of the error, such as `connection refused`."""
    found = ""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            # The exception's text may contain the address.
            found = os.strerror(error.errno).lower()
        error = error.__cause__ or error.__context__
    return found


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for one in error.exceptions for leaf in _leaves(one)]
    return [error]
