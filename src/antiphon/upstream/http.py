"""Manages a process's HTTP connections to one upstream, with aiohttp's connector but without aiohttp's session.

This module has the connection pool, and sends a request over one of its connections. `client.py` reads the body and
classifies failures.

An aiohttp session does more than a model call needs, such as cookies, redirects and proxies. The session took half to
two thirds of a call's CPU time. So this module uses only aiohttp's pool, connector, parser and header writer.

Invariants: a request has only its caller's headers, the target's headers, a constant `user-agent`, `accept-encoding:
identity`, `host` and `content-length`. A caller cannot replace a header of the target. A connection returns to the pool
only after a complete request and a complete response. In all other cases the connection closes.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from dataclasses import dataclass
from urllib.parse import urlsplit
from weakref import WeakSet

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.http import HttpProcessingError, RawResponseMessage, StreamWriter
from multidict import CIMultiDict, CIMultiDictProxy, istr
from yarl import URL

from antiphon.engine.ports.actions import UpstreamRequest
from antiphon.types.transport import Headers

_HEADER_BYTES = 64 * 1024
_DEFAULTS: Headers = (("user-agent", "antiphon"), ("accept-encoding", "identity"))
# Servers close idle connections without notice (uvicorn and Node after 5 s), so the pool closes idle connections a
# little earlier.
_IDLE_SECONDS = 4.0
_READ_BYTES = 256 * 1024
# The client sends a body above this size in chunks, so that the write does not block the event loop.
_LARGE_BODY = 1 << 20
_PART = 64 * 1024
_STALE_CONNECTIONS = 3
_CUT_CONNECTION = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, aiohttp.ClientConnectionResetError)


@dataclass(frozen=True)
class UpstreamTarget:
    """The server to which model calls go: an upstream, or Envoy's model listener.

    `base_url` is the URL without `/chat/completions`. If `unix_path` is set, calls go to this Unix socket instead of
    the URL's host. The client adds `headers` to every call, such as the host, an API key or the shared secret. These
    headers replace the caller's headers of the same names. `ssl` has the trusted certificate authorities for an https
    URL.
    """

    base_url: str
    unix_path: str | None = None
    headers: Headers = ()
    ssl: ssl.SSLContext | None = None


class Connections:
    """The connection pool for one target. A call reuses an idle connection, or opens one. The pool closes a connection
    that is idle for 4 seconds.

    The constructor needs a running event loop. `connect_seconds` limits the time for name resolution, TCP and TLS.

    If a reused connection breaks within `stale_seconds`, `send` sends the request again, because the server closed the
    idle connection before it received the request.
    """

    def __init__(self, target: UpstreamTarget, *, connect_seconds: float, stale_seconds: float) -> None:
        self._base_url = target.base_url.rstrip("/")
        # The names of the target's headers, which a request cannot replace.
        self._fixed_names = frozenset(name for name, _ in target.headers)
        self._connector = _connector(target)
        # The pool has no limit, so `connect` covers only name resolution, TCP and TLS. The caller applies timeouts for
        # the head and for silence.
        self._timeout = aiohttp.ClientTimeout(total=None, connect=connect_seconds, sock_connect=None, sock_read=None)
        # aiohttp's pool needs a request object only for the destination, so all requests share this one.
        self._place = aiohttp.ClientRequest(
            "GET",
            URL(self._base_url, encoded=True),
            headers=CIMultiDict([*_DEFAULTS, *target.headers]),
            skip_auto_headers=[istr("accept")],
            loop=asyncio.get_running_loop(),
            ssl=True,
            server_hostname=server_name(target),
        )
        self._used: WeakSet[ResponseHandler] = WeakSet()
        self._stale_seconds = stale_seconds

    async def send(self, request: UpstreamRequest) -> HttpAnswer:
        """Send the request and wait for the response head. The method skips informational responses (status 1xx).

        Raises the exceptions that aiohttp's session would raise: `aiohttp.ClientError` and `OSError`.
        """
        more = _STALE_CONNECTIONS
        while True:
            connection, kept_at = await self._connect()
            try:
                return await self._ask(connection, request)
            except _CUT_CONNECTION:
                # The server closed a reused connection while this process wrote. The server never saw the request or
                # never began to answer, so the client sends the request again. A new connection that breaks is an
                # error. A reused connection that broke after `stale_seconds` is also an error, because the server may
                # have begun the work and crashed.
                if not more or kept_at is None or time.monotonic() - kept_at > self._stale_seconds:
                    raise
                more -= 1

    async def _connect(self) -> tuple[Connection, float | None]:
        """Return a connection from the pool, and the present time if the connection was used before. For a new
        connection, the time is None. Raises `aiohttp.ClientError`."""
        try:
            connection = await self._connector.connect(self._place, [], self._timeout)
        except TimeoutError as error:
            raise aiohttp.ConnectionTimeoutError("no connection in time") from error
        protocol = connection.protocol
        assert protocol is not None
        if protocol in self._used:
            return connection, time.monotonic()
        self._used.add(protocol)
        return connection, None

    async def _ask(self, connection: Connection, request: UpstreamRequest) -> HttpAnswer:
        protocol = connection.protocol
        assert protocol is not None
        sending: asyncio.Task[None] | None = None
        try:
            protocol.set_response_params(
                read_until_eof=True,
                read_bufsize=_READ_BYTES,
                max_line_size=_HEADER_BYTES,
                max_field_size=_HEADER_BYTES,
            )
            loop = asyncio.get_running_loop()
            writer = StreamWriter(protocol, loop)
            await writer.write_headers(f"{request.method} {self._path(request)} HTTP/1.1", self._headers(request))
            body = request.body
            if len(body) <= _LARGE_BODY:
                await writer.write(body, drain=False)
            else:
                sending = loop.create_task(_send_parts(writer, body))
            head, content = await self._read_head(protocol)
            return HttpAnswer(head, content, connection, sending)
        except BaseException:
            if sending is not None:
                sending.cancel()
            connection.close()
            raise

    def _path(self, request: UpstreamRequest) -> str:
        """Return the path and the query for the request line."""
        base = self._base_url.removesuffix("/v1") if request.above else self._base_url
        return URL(base + request.path, encoded=True).raw_path_qs

    def _headers(self, request: UpstreamRequest) -> CIMultiDict[str]:
        headers = self._place.headers.copy()
        fixed, given = self._fixed_names, set[str]()
        for name, value in request.headers:
            if name in fixed:
                continue
            if name in given:
                headers.add(name, value)
            else:
                # A request may replace a default header, such as the user agent.
                headers[name] = value
                given.add(name)
        if request.body or request.method != "GET":
            headers["Content-Length"] = str(len(request.body))
        return headers

    async def _read_head(self, protocol: ResponseHandler) -> tuple[RawResponseMessage, aiohttp.StreamReader]:
        """Read the response head. The method skips informational responses (status 1xx)."""
        while True:
            try:
                head, content = await protocol.read()
            except HttpProcessingError as error:
                raise aiohttp.ClientResponseError(self._place.request_info, (), message=error.message) from None
            if not 100 <= head.code <= 199 or head.code == 101:
                return head, content

    async def aclose(self) -> None:
        """Close all connections. `send` raises an exception after `aclose`."""
        await self._connector.close()


def _connector(target: UpstreamTarget) -> aiohttp.BaseConnector:
    if target.unix_path is not None:
        return aiohttp.UnixConnector(target.unix_path, limit=0, keepalive_timeout=_IDLE_SECONDS)
    return aiohttp.TCPConnector(
        limit=0, limit_per_host=0, ssl=target.ssl or True, keepalive_timeout=_IDLE_SECONDS, ttl_dns_cache=10
    )


def server_name(target: UpstreamTarget) -> str | None:
    """Return the host name for SNI and for the check of the certificate, if it differs from the URL's host. Otherwise
    return None."""
    url = urlsplit(target.base_url)
    host = next((value for name, value in target.headers if name == "host"), None)
    if url.scheme != "https" or host is None:
        return None
    name = urlsplit(f"//{host}").hostname
    return name if name != url.hostname else None


class HttpAnswer:
    """A response whose head has arrived. The caller must call `close`."""

    def __init__(
        self,
        head: RawResponseMessage,
        content: aiohttp.StreamReader,
        connection: Connection,
        sending: asyncio.Task[None] | None,
    ) -> None:
        self.status = head.code
        self.headers: CIMultiDictProxy[str] = head.headers
        self.content = content
        self._connection = connection
        self._sending = sending
        content.on_eof(self._ended)

    @property
    def protocol(self) -> ResponseHandler | None:
        """aiohttp's protocol object for the connection, or None after the response is complete or closed."""
        return self._connection.protocol

    def close(self) -> None:
        """Close the connection, unless the response is complete and the connection is back in the pool."""
        if self._sending is not None:
            self._sending.cancel()
        self._connection.close()

    def _ended(self) -> None:
        if self._sending is None or self._sending.done():
            self._connection.release()
        else:
            # The server answered before it had the whole request. The connection closes, because the server would read
            # the rest of the body as another request.
            self.close()


async def _send_parts(writer: StreamWriter, body: bytes) -> None:
    try:
        for part in range(0, len(body), _PART):
            await writer.write(memoryview(body)[part : part + _PART])
    except (aiohttp.ClientError, OSError):
        # The reader of the response reports the lost connection.
        return
