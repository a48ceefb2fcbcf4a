"""An HTTP client for probes of Antiphon's own processes.

Lives here: a connection to any such address (a Unix socket, a port, with TLS), and the TLS client context for own
ports. Not here: the meaning of the answers (`envoy_admin.py`, `generation.py`, `listen_address.py`).

It does not use aiohttp, because the parent of the workers would load it (13 MiB) for this alone.

Invariants: a timeout is no error here. An answer has at most `_MOST_BYTES`.
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
    """The body of a 200 response from `unix:PATH`, `HOST:PORT` or `http(s)://HOST:PORT`, else None. An https address
    needs `tls`."""
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
    """One connection for any number of requests, one after another. It opens with the first one, and again after a
    close."""

    def __init__(self, place: str, tls: ssl.SSLContext | None = None) -> None:
        self._place = place
        self._tls = tls
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def exchange(self, method: str, path: str, headers: Mapping[str, str] = MappingProxyType({})) -> Answer:
        """The status and the body of the response. Raises one of `NO_ANSWER`, and then closes."""
        head = {"host": "here", "content-length": "0", **headers}
        lines = [f"{method} {path} HTTP/1.1\r\n", *(f"{name}: {value}\r\n" for name, value in head.items()), "\r\n"]
        try:
            if self._streams is None:
                self._streams = await self._open()
            reader, writer = self._streams
            writer.write("".join(lines).encode("latin-1"))
            return await _read(reader)
        except BaseException:
            # A late response would be read as the next one.
            self.close()
            raise

    def close(self) -> None:
        """Close at once: no data is left to send, and a hanging peer would delay a graceful close."""
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
    # A status line without a status is a `ValueError`.
    return int(head.partition(b" ")[2][:3]), body


def own_tls(files: SidecarTlsSettings) -> ssl.SSLContext:
    """A TLS context for own ports on this machine: it checks that they answer, not their identity."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if files.envoy_cert is not None:
        context.load_cert_chain(files.envoy_cert, files.envoy_key)
    return context
