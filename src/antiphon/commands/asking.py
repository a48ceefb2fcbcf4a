"""Asking one of our own processes by HTTP.

Lives here: one function for every address that we ask (a Unix socket, a port, with TLS), whom our own ports take for
one of us, asking until something holds, and what Envoy's admin port is asked. Not here: when it is asked (`up.py`), the
configuration of that port (`envoy/`), the health check of containers (`health.py`).

Without aiohttp, which would be all that the parent of the workers needs it for (13 MiB).

Invariants: who does not answer within the time is no error here, but "not ready", "unknown", or nothing at all; an
answer is at most `_MOST_BYTES` long.
"""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from antiphon.config.processes import SidecarTlsSettings
from antiphon.config.section import parse_address
from antiphon.errors import AntiphonError

START_SECONDS = 60.0
"""How long one part may take until it serves."""
_POLL_SECONDS = 0.05
_ADMIN_SECONDS = 5.0
_READ_BYTES = 64 * 1024
_MOST_BYTES = 64 << 20


async def ask(
    place: str,
    path: str,
    seconds: float,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    tls: ssl.SSLContext | None = None,
) -> bytes | None:
    """The body of a 200 from `unix:PATH`, `HOST:PORT` or `http(s)://HOST:PORT`, else None. An https address needs
    `tls`."""
    head = {"host": "here", "connection": "close", "content-length": "0", **(headers or {})}
    request = "".join(
        [f"{method} {path} HTTP/1.1\r\n", *(f"{name}: {value}\r\n" for name, value in head.items()), "\r\n"]
    )
    try:
        async with asyncio.timeout(seconds):
            return _body_of_200(await _exchange(place, request.encode("latin-1"), tls))
    except (http.client.HTTPException, OSError, TimeoutError):
        return None


async def _exchange(place: str, request: bytes, tls: ssl.SSLContext | None) -> bytes:
    if place.startswith("unix:"):
        reader, writer = await asyncio.open_unix_connection(place.removeprefix("unix:"))
    else:
        url = urlsplit(place if "://" in place else f"http://{place}")
        reader, writer = await asyncio.open_connection(
            url.hostname, url.port, ssl=tls if url.scheme == "https" else None
        )
    try:
        writer.write(request)
        answer = bytearray()
        while data := await reader.read(_READ_BYTES):
            answer += data
            if len(answer) > _MOST_BYTES:
                raise http.client.HTTPException("the answer is too long")
        return bytes(answer)
    finally:
        # At once: there is nothing more to say, and who stands still would be waited for.
        writer.transport.abort()


def _body_of_200(answer: bytes) -> bytes | None:
    response = http.client.HTTPResponse(_Received(answer))
    response.begin()
    return response.read() if response.status == 200 else None


class _Received(socket.socket):
    """What was read already, where the standard library's parser expects a socket."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def makefile(self, *_: Any, **__: Any) -> Any:
        return io.BytesIO(self._answer)


def own_tls(files: SidecarTlsSettings) -> ssl.SSLContext:
    """For our own port on this machine: whether it answers, not who it is."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if files.envoy_cert is not None:
        context.load_cert_chain(files.envoy_cert, files.envoy_key)
    return context


def join_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def answers(where: str, seconds: float) -> bool:
    """Whether a request through the listener is answered; a wildcard address is asked on this machine."""
    host, port = parse_address(where)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return await ask(join_address(host, port), "/ready", seconds) is not None


async def poll(check: Callable[[], Awaitable[bool]], what: str, seconds: float = START_SECONDS) -> None:
    """Ask until it holds. Raises `AntiphonError` when it takes longer than these seconds."""
    clock = asyncio.get_running_loop().time
    last = clock() + seconds
    while not await check():
        if clock() > last:
            raise AntiphonError(f"{what} did not get ready within {seconds:g} s; the log says more")
        await asyncio.sleep(_POLL_SECONDS)


class EnvoyAdmin:
    """Envoy's admin port at `unix:PATH` or `HOST:PORT`."""

    def __init__(self, address: str) -> None:
        self._address = address

    async def is_live(self, seconds: float = _ADMIN_SECONDS) -> bool:
        """Whether Envoy has initialised and listens, and says so within these seconds."""
        return await self._ask("GET", "/ready", seconds) is not None

    async def healthy_endpoints(self, *clusters: str) -> int:
        """How many endpoints of these clusters have passed their health check."""
        healthy = 0
        for cluster in (await self._json("/clusters?format=json")).get("cluster_statuses", ()):
            if cluster["name"] in clusters:
                for host in cluster.get("host_statuses", ()):
                    health = host.get("health_status", {})
                    healthy += not any(health.get(flag) for flag in ("failed_active_health_check", "pending_active_hc"))
        return healthy

    async def bound_port(self, listener: str) -> int | None:
        """The port a TCP listener has; None while it is unknown."""
        for entry in (await self._json("/listeners?format=json")).get("listener_statuses", ()):
            if entry["name"] == listener:
                port = entry.get("local_address", {}).get("socket_address", {}).get("port_value")
                return int(port) if port else None
        return None

    async def say_leaving(self, seconds: float) -> None:
        """`/ready` says no from now on, answers say `connection: close` and HTTP/2 connections get a GOAWAY, while
        everything is served."""
        await self._ask("POST", "/healthcheck/fail", seconds)

    async def refuse_connections(self, seconds: float) -> None:
        """Close the public listener. What is in flight goes on, and so do the private listeners it may need."""
        await self._ask("POST", "/drain_listeners?inboundonly", seconds)

    async def requests_in_flight(self, stat_prefix: str, seconds: float) -> int:
        """Requests on the listener with this prefix that Envoy has not answered whole; 0 when Envoy is gone."""
        path = f"/stats?filter=^http\\.{stat_prefix}\\.downstream_rq_active$"
        body = await self._ask("GET", path, seconds) or b""
        number = body.decode().rpartition(":")[2].strip()
        return int(number) if number.isdigit() else 0

    async def _json(self, path: str) -> dict[str, Any]:
        body = await self._ask("GET", path)
        answer: dict[str, Any] = json.loads(body) if body else {}
        return answer

    async def _ask(self, method: str, path: str, seconds: float = _ADMIN_SECONDS) -> bytes | None:
        """The body of a 200, else None."""
        return await ask(self._address, path, seconds, method=method)
