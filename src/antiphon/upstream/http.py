"""The one outgoing HTTP session of a process, and its guards.

Lives here: how connections to the upstream are made and kept: pool, connect timeout, TLS and its server name, Unix
socket, header limits, no cookies, no proxies, no redirects. Not here: what a chat call is (`client.py`).

Invariant: a session sends no header that its caller did not ask for, apart from a constant user agent, a request for
identity encoding, and the framing headers.
"""

from __future__ import annotations

import ssl
import time
from dataclasses import dataclass
from types import SimpleNamespace
from urllib.parse import urlsplit

import aiohttp

from antiphon.types.transport import Headers

_HEADER_BYTES = 64 * 1024
_READ_BYTES = 256 * 1024
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


def open_session(target: UpstreamTarget, *, connect_seconds: float) -> aiohttp.ClientSession:
    """A session for this target; needs a running event loop. The caller closes it."""
    connector: aiohttp.BaseConnector
    if target.unix_path is not None:
        connector = aiohttp.UnixConnector(target.unix_path, limit=0, keepalive_timeout=_IDLE_SECONDS)
    else:
        connector = aiohttp.TCPConnector(
            limit=0, limit_per_host=0, ssl=target.ssl or True, keepalive_timeout=_IDLE_SECONDS, ttl_dns_cache=10
        )
    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(_note_reuse)
    return aiohttp.ClientSession(
        connector=connector,
        # The pool has no limit, so `connect` is names, TCP and TLS together. Head and silence are timed by the caller.
        timeout=aiohttp.ClientTimeout(total=None, connect=connect_seconds, sock_connect=None, sock_read=None),
        headers={"user-agent": "antiphon", "accept-encoding": "identity"},
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=("accept", "content-type"),
        max_line_size=_HEADER_BYTES,
        max_field_size=_HEADER_BYTES,
        read_bufsize=_READ_BYTES,
        trust_env=False,
        trace_configs=[trace],
    )


def server_name(target: UpstreamTarget) -> str | None:
    """The TLS server name (SNI, and the name the certificate is checked for) when the Host header is overridden."""
    url = urlsplit(target.base_url)
    host = next((value for name, value in target.headers if name == "host"), None)
    if url.scheme != "https" or host is None:
        return None
    name = urlsplit(f"//{host}").hostname
    return name if name != url.hostname else None


async def _note_reuse(
    _session: aiohttp.ClientSession,
    context: SimpleNamespace,
    _params: aiohttp.TraceConnectionReuseconnParams,
) -> None:
    use = context.trace_request_ctx
    if isinstance(use, ConnectionUse):
        use.reused_at = time.monotonic()
