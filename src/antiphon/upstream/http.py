"""A process's HTTP connections to one upstream, on aiohttp's connector without its session.

Lives here: how connections to the upstream are made and kept (pool, connect timeout, TLS and its server name, Unix
socket, header limits). Also the bytes of a request, and the connection's owner until the answer's end. Not here: the
meaning of a failure, and reading a body (`client.py`).

A session does far more for a request than a model call needs. It handles cookies, redirects, proxies and traces, and
makes large request and response objects. That took half to two thirds of a call's CPU time. The parts that matter are
still aiohttp's: its pool, its connecting, its parser, its writer of heads.

Invariants: a request has no headers but its caller's, a constant user agent, a request for identity encoding, and the
framing headers. A header of the target is not replaced. A connection goes back to the pool only at the end of an answer
whose request was sent whole. Otherwise it is closed.
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
# Servers close idle connections without notice (uvicorn and Node after 5 s): let go of them a little earlier.
_IDLE_SECONDS = 4.0
_READ_BYTES = 256 * 1024
# A larger body goes out in parts, so that it does not hold up the loop.
_LARGE_BODY = 1 << 20
_PART = 64 * 1024
_STALE_CONNECTIONS = 3
_CUT_CONNECTION = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, aiohttp.ClientConnectionResetError)


@dataclass(frozen=True)
class UpstreamTarget:
    """Where model calls go.

    `base_url` ends before `/chat/completions`; `unix_path` is the socket to use instead of the URL's address;
    `headers` are added to every call (the host, an injected credential, the model door's secret) and win over the
    caller's; `ssl` holds the trusted authorities of an https URL.
    """

    base_url: str
    unix_path: str | None = None
    headers: Headers = ()
    ssl: ssl.SSLContext | None = None


class Connections:
    """The connections to one target, made when they are needed and kept for a while; needs a running event loop.

    A kept one that breaks within `stale_seconds` was closed before the server saw the request, which is sent again.
    """

    def __init__(self, target: UpstreamTarget, *, connect_seconds: float, stale_seconds: float) -> None:
        self._base_url = target.base_url.rstrip("/")
        # The headers that are the target's, whatever a request says.
        self._fixed_names = frozenset(name for name, _ in target.headers)
        self._connector = _connector(target)
        # The pool has no limit, so `connect_seconds` is names, TCP and TLS. Head and silence are timed by the caller.
        self._timeout = aiohttp.ClientTimeout(total=None, connect=connect_seconds, sock_connect=None, sock_read=None)
        # All that the pool asks of a request is where it goes, which is the same for all.
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
        """Send the request and wait for the head of its answer; raises what aiohttp's session would."""
        more = _STALE_CONNECTIONS
        while True:
            connection, kept_at = await self._connect()
            try:
                return await self._ask(connection, request)
            except _CUT_CONNECTION:
                # A kept connection that the server closed while we wrote: it never saw the request, or never began
                # to answer. Again, as long as the connection was an old one; a fresh one that breaks is the answer, and
                # so is one that was held for a while: the server may have worked on the request, and died of it.
                if not more or kept_at is None or time.monotonic() - kept_at > self._stale_seconds:
                    raise
                more -= 1

    async def _connect(self) -> tuple[Connection, float | None]:
        """A new connection, or a kept one and when it was taken. Raises `aiohttp.ClientError`."""
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
        """Path and query, for the request's first line."""
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
                # What every call says otherwise, like the user agent, a request may say in its own way.
                headers[name] = value
                given.add(name)
        if request.body or request.method != "GET":
            headers["Content-Length"] = str(len(request.body))
        return headers

    async def _read_head(self, protocol: ResponseHandler) -> tuple[RawResponseMessage, aiohttp.StreamReader]:
        """The head of the answer. Skips heads with a status 1xx."""
        while True:
            try:
                head, content = await protocol.read()
            except HttpProcessingError as error:
                raise aiohttp.ClientResponseError(self._place.request_info, (), message=error.message) from None
            if not 100 <= head.code <= 199 or head.code == 101:
                return head, content

    async def aclose(self) -> None:
        """Close them all; `connect` fails after this."""
        await self._connector.close()


def _connector(target: UpstreamTarget) -> aiohttp.BaseConnector:
    if target.unix_path is not None:
        return aiohttp.UnixConnector(target.unix_path, limit=0, keepalive_timeout=_IDLE_SECONDS)
    return aiohttp.TCPConnector(
        limit=0, limit_per_host=0, ssl=target.ssl or True, keepalive_timeout=_IDLE_SECONDS, ttl_dns_cache=10
    )


def server_name(target: UpstreamTarget) -> str | None:
    """The TLS server name (SNI, and the name the certificate is checked for) when the Host header is overridden."""
    url = urlsplit(target.base_url)
    host = next((value for name, value in target.headers if name == "host"), None)
    if url.scheme != "https" or host is None:
        return None
    name = urlsplit(f"//{host}").hostname
    return name if name != url.hostname else None


class HttpAnswer:
    """An answer whose head has come. Its holder closes it."""

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
        """The connection's; None once the answer is whole or was closed."""
        return self._connection.protocol

    def close(self) -> None:
        """Close the connection, unless the answer's end has given it back."""
        if self._sending is not None:
            self._sending.cancel()
        self._connection.close()

    def _ended(self) -> None:
        if self._sending is None or self._sending.done():
            self._connection.release()
        else:
            # Answered before the request was there: the rest of it must not be taken for another one.
            self.close()


async def _send_parts(writer: StreamWriter, body: bytes) -> None:
    try:
        for part in range(0, len(body), _PART):
            await writer.write(memoryview(body)[part : part + _PART])
    except (aiohttp.ClientError, OSError):
        # Whoever waits for the answer learns that the connection is gone.
        return
