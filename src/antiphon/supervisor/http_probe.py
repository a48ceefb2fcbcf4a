"""Implements a small HTTP client for probes of Antiphon's own processes.

The client connects to a Unix socket, or to a port with or without TLS. `envoy_process.py`, `generation.py` and
`listen_address.py` send the probes. This module does not use aiohttp, because aiohttp would take 13 MiB of memory in
the parent process.

Invariants: `ask` returns None for a timeout or a failed connection, and raises no error. The client reads at most
`_MOST_BYTES` of a response body.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Mapping
from types import MappingProxyType
from urllib.parse import urlsplit

from antiphon.config.processes import SidecarTlsSettings

_HEAD_BYTES = 64 * 1024
_MOST_BYTES = 64 << 20
NO_ANSWER = (OSError, EOFError, ValueError, TimeoutError, asyncio.LimitOverrunError)
Answer = tuple[int, bytes]


async def ask(
    place: str,
    path: str,
    seconds: float,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    tls: ssl.SSLContext | None = None,
) -> bytes | None:
    """Send one request to `unix:PATH`, `HOST:PORT` or `http(s)://HOST:PORT`. Returns the body of a response with status
    200, else None. An https address needs `tls`."""
    connection = Connection(place, tls)
    try:
        async with asyncio.timeout(seconds):
            status, body = await connection.exchange(method, path, headers or {})
    except NO_ANSWER:
        return None
    finally:
        connection.close()
    return body if status == 200 else None


class Connection:
    """A connection for any number of requests, one after another. The first request opens the connection. A request
    after `close` opens it again."""

    def __init__(self, place: str, tls: ssl.SSLContext | None = None) -> None:
        self._place = place
        self._tls = tls
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def exchange(self, method: str, path: str, headers: Mapping[str, str] = MappingProxyType({})) -> Answer:
        """Send a request, and return the status and the body of the response. For an error, close the connection and
        raise one of the exceptions in `NO_ANSWER`."""
        head = {"host": "here", "content-length": "0", **headers}
        lines = [f"{method} {path} HTTP/1.1\r\n", *(f"{name}: {value}\r\n" for name, value in head.items()), "\r\n"]
        try:
            if self._streams is None:
                self._streams = await self._open()
            reader, writer = self._streams
            writer.write("".join(lines).encode("latin-1"))
            return await _read(reader)
        except BaseException:
            # The connection closes, because a late response would be read as the response to the next request.
            self.close()
            raise

    def close(self) -> None:
        """Close the connection immediately, because a server that hangs would delay a graceful close."""
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._place.startswith("unix:"):
            return await asyncio.open_unix_connection(self._place.removeprefix("unix:"), limit=_HEAD_BYTES)
        url = urlsplit(self._place if "://" in self._place else f"http://{self._place}")
        tls = self._tls if url.scheme == "https" else None
        return await asyncio.open_connection(url.hostname, url.port, ssl=tls, limit=_HEAD_BYTES)


async def _read(reader: asyncio.StreamReader) -> Answer:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = re.search(rb"\r\ncontent-length: *(\d+)", head)
    body = await reader.readexactly(min(int(length[1]), _MOST_BYTES)) if length is not None else b""
    while length is None and (size := int(await reader.readline(), 16)) and len(body) < _MOST_BYTES:
        body += (await reader.readexactly(size + 2))[:-2]
    if length is None:
        await reader.readline()
    # A status line without a number raises `ValueError`. `NO_ANSWER` contains this exception.
    return int(head.partition(b" ")[2][:3]), body


def own_tls(files: SidecarTlsSettings) -> ssl.SSLContext:
    """Return a TLS context for probes of Antiphon's ports on this machine. It does not verify certificates, because a
    probe only checks that the port answers."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if files.envoy_cert is not None:
        context.load_cert_chain(files.envoy_cert, files.envoy_key)
    return context
