"""The connections of a process to one upstream, and their guards.

Lives here: how connections to the upstream are made and kept: pool, connect timeout, TLS and its server name, Unix
socket, header limits; and what every request on them says. Not here: a request (`http_call.py`), what a chat call is
(`client.py`).

Invariant: no request says what its caller did not ask for, apart from a constant user agent, a request for
identity encoding, and the framing headers.
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
from multidict import CIMultiDict, istr
from yarl import URL

from antiphon.types.transport import Headers

HEADER_BYTES = 64 * 1024
_DEFAULTS: Headers = (("user-agent", "antiphon"), ("accept-encoding", "identity"))
# Servers close idle connections without notice (uvicorn and Node after 5 s): let go of them a little earlier.
_IDLE_SECONDS = 4.0


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


@dataclass
class ConnectionUse:
    """What became known about the connection of one request."""

    reused_at: float | None = None

    def is_stale(self, seconds: float) -> bool:
        """Whether it was a kept one, taken for use at most so many seconds ago."""
        return self.reused_at is not None and time.monotonic() - self.reused_at <= seconds


class Connections:
    """The connections to one target, made when they are needed and kept for a while; needs a running event loop."""

    def __init__(self, target: UpstreamTarget, *, connect_seconds: float) -> None:
        self.base_url = target.base_url.rstrip("/")
        self.fixed_names = frozenset(name for name, _ in target.headers)
        """The headers that are the target's, whatever a request says."""
        self._connector = _connector(target)
        # The pool has no limit, so `connect` is names, TCP and TLS together. Head and silence are timed by the caller.
        self._timeout = aiohttp.ClientTimeout(total=None, connect=connect_seconds, sock_connect=None, sock_read=None)
        # All that the pool asks of a request is where it goes, which is the same for all.
        self._place = aiohttp.ClientRequest(
            "GET",
            URL(self.base_url, encoded=True),
            headers=CIMultiDict([*_DEFAULTS, *target.headers]),
            skip_auto_headers=[istr("accept")],
            loop=asyncio.get_running_loop(),
            ssl=True,
            server_hostname=server_name(target),
        )
        self._used: WeakSet[ResponseHandler] = WeakSet()

    @property
    def headers(self) -> CIMultiDict[str]:
        """What every request says; not to be changed."""
        return self._place.headers

    @property
    def info(self) -> aiohttp.RequestInfo:
        """What aiohttp's errors want to know of a request."""
        return self._place.request_info

    async def connect(self, use: ConnectionUse) -> Connection:
        """A kept connection, of which `use` is told, or a new one. Raises `aiohttp.ClientError`."""
        try:
            connection = await self._connector.connect(self._place, [], self._timeout)
        except TimeoutError as error:
            raise aiohttp.ConnectionTimeoutError("no connection in time") from error
        protocol = connection.protocol
        assert protocol is not None
        if protocol in self._used:
            use.reused_at = time.monotonic()
        else:
            self._used.add(protocol)
        return connection

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
