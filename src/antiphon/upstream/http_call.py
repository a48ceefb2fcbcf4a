"""One request on a kept connection, and its answer's head: aiohttp's connections without its session.

Lives here: the bytes of a request, and whose the connection is until the answer's end. Not here: how connections are
made and kept (`http.py`), what a failure means and how a body is read (`client.py`).

A session does far more for a request than a model call needs: cookies, redirects, proxies, traces, a request and a
response object with all they know. That took half to two thirds of a call's CPU time. The parts that matter are still
aiohttp's: its pool, its connecting, its parser, its writer of heads.

Invariants: a header of the target is not replaced; a connection goes back to the pool only at the end of an answer
whose request was sent whole, and is closed otherwise.
"""

from __future__ import annotations

import asyncio

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.http import HttpProcessingError, RawResponseMessage, StreamWriter
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from antiphon.engine.ports.actions import UpstreamRequest
from antiphon.upstream.http import HEADER_BYTES, Connections, ConnectionUse

_READ_BYTES = 256 * 1024
# A larger body goes out in parts, so that it does not hold up the loop.
_LARGE_BODY = 1 << 20
_PART = 64 * 1024
_WITHOUT_BODY = frozenset({"GET", "HEAD"})


class HttpAnswer:
    """An answer whose head has come. Whoever has it closes it."""

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


async def send(connections: Connections, request: UpstreamRequest, use: ConnectionUse) -> HttpAnswer:
    """Send the request and wait for the head of its answer; raises what aiohttp's session would.

    `use` is told whether the connection is a kept one.
    """
    headers = _headers(connections, request)
    connection = await connections.connect(use)
    protocol = connection.protocol
    assert protocol is not None
    sending: asyncio.Task[None] | None = None
    try:
        protocol.set_response_params(
            skip_payload=request.method == "HEAD",
            read_until_eof=True,
            read_bufsize=_READ_BYTES,
            max_line_size=HEADER_BYTES,
            max_field_size=HEADER_BYTES,
        )
        loop = asyncio.get_running_loop()
        writer = StreamWriter(protocol, loop)
        await writer.write_headers(f"{request.method} {_target(connections, request)} HTTP/1.1", headers)
        body = request.body
        if len(body) <= _LARGE_BODY:
            await writer.write(body, drain=False)
        else:
            sending = loop.create_task(_send_parts(writer, body))
        head, content = await _read_head(protocol, connections)
        return HttpAnswer(head, content, connection, sending)
    except BaseException:
        if sending is not None:
            sending.cancel()
        connection.close()
        raise


def _target(connections: Connections, request: UpstreamRequest) -> str:
    """Path and query, as they stand in the request's first line."""
    base = connections.base_url.removesuffix("/v1") if request.above else connections.base_url
    return URL(base + request.path, encoded=True).raw_path_qs


def _headers(connections: Connections, request: UpstreamRequest) -> CIMultiDict[str]:
    headers = connections.headers.copy()
    fixed, given = connections.fixed_names, set[str]()
    for name, value in request.headers:
        if name in fixed:
            continue
        if name in given:
            headers.add(name, value)
        else:
            # What every call says otherwise, like the user agent, a request may say in its own way.
            headers[name] = value
            given.add(name)
    if request.body or request.method not in _WITHOUT_BODY:
        headers["Content-Length"] = str(len(request.body))
    return headers


async def _send_parts(writer: StreamWriter, body: bytes) -> None:
    try:
        for part in range(0, len(body), _PART):
            await writer.write(memoryview(body)[part : part + _PART])
    except (aiohttp.ClientError, OSError):
        # Whoever waits for the answer learns that the connection is gone.
        return


async def _read_head(
    protocol: ResponseHandler, connections: Connections
) -> tuple[RawResponseMessage, aiohttp.StreamReader]:
    """The head of the answer; those that only say that it will come are passed over."""
    while True:
        try:
            head, content = await protocol.read()
        except HttpProcessingError as error:
            raise aiohttp.ClientResponseError(connections.info, (), message=error.message) from None
        if not 100 <= head.code <= 199 or head.code == 101:
            return head, content
