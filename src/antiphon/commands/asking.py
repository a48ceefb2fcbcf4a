"""Asking one of our own processes by HTTP, once.

Lives here: one function for every address that we ask (a Unix socket, a port, with TLS), and whom our own ports take
for one of us. Not here: what the answers mean (`envoy_admin.py`, `health.py`, `up.py`).

Without aiohttp, which would be all that the parent of the workers needs it for (13 MiB).

Invariants: who does not answer within the time is no error here; an answer is at most `_MOST_BYTES` long.
"""

from __future__ import annotations

import asyncio
import http.client
import io
import socket
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from antiphon.config.processes import SidecarTlsSettings

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
