"""Implements one client connection of the HTTP server: aiohttp's protocol with timeouts for silent clients.

This module answers bytes that are not HTTP. This module closes a connection whose client sends no request head or does
not read. This module also checks that a client masks its WebSocket frames (RFC 6455, 5.1), because aiohttp's reader
(3.14.5) does not check the mask. `server.py` serves the requests, `listener.py` accepts connections, and `websocket.py`
interprets frames.

Invariant: no write waits forever for the client, whether it writes a stream, a whole response or a frame. Each
connection has one timeout for writes, which starts when the write buffer becomes full, not with each write.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any, Final

import structlog
from aiohttp import web
from aiohttp.http import RawRequestMessage

from antiphon.doors.http.exchange import make_response
from antiphon.errors import ApiError, InternalError, InvalidRequest

_HEADER_BYTES = 64 * 1024
# Makes the socket's close send a reset immediately (SO_LINGER with zero seconds).
_RESET = struct.pack("ii", 1, 0)

_log = structlog.get_logger(__name__)

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class DoorServer(web.Server):
    """Runs aiohttp's server around one handler. When a client disconnects, the server cancels the handler of its
    request. The server creates the connections and tracks the open ones.

    `head_seconds` is the timeout for the first request head on a new connection. `idle_seconds` is the timeout between
    requests. `send_seconds` is how long a client may leave a full write buffer unread. `leaving` returns True when
    clients should send their next request to another process.
    """

    def __init__(
        self,
        handler: Handler,
        *,
        head_seconds: float,
        idle_seconds: float,
        send_seconds: float,
        leaving: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(handler, request_factory=self._request, handler_cancellation=True)
        self._leaving = leaving
        self._idle_seconds = idle_seconds
        self.head_seconds = head_seconds
        self.send_seconds = send_seconds
        self._open: set[HttpConnection] = set()
        # The event `_fewer` is set when a connection closes.
        self._fewer = asyncio.Event()

    def __call__(self) -> HttpConnection:
        return HttpConnection(self, self._idle_seconds)

    def _request(self, *given: Any) -> web.BaseRequest:
        request = _Request(*given, asyncio.get_running_loop(), leaving=self._leaving)
        connection = request.protocol
        assert isinstance(connection, HttpConnection)
        connection.request_begins()
        return request

    @property
    def open(self) -> int:
        """The number of open connections."""
        return len(self._open)

    def opened(self, connection: HttpConnection) -> None:
        self._open.add(connection)

    def closed(self, connection: HttpConnection) -> None:
        self._open.discard(connection)
        self._fewer.set()

    def hurry(self, seconds: float) -> None:
        """Shorten `send_seconds` to `seconds`, also for open connections."""
        self.send_seconds = min(self.send_seconds, seconds)
        for connection in self._open:
            connection.hurry()

    def promise(self) -> None:
        """Promise every open connection one more request, although the server drains. The response to the promised
        request closes the connection."""
        for connection in self._open:
            connection.promised = True

    async def quiet(self, seconds: float) -> None:
        """Wait until each connection with a promised request is closed, or until its client has sent no byte for
        `seconds`."""
        clock = asyncio.get_running_loop().time
        while (rest := max((one.heard_at for one in self._open if one.promised), default=0.0) + seconds) > clock():
            self._fewer.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(rest):
                    await self._fewer.wait()

    def close_idle(self) -> bool:
        """Close the connection that has been idle longest. Returns False when no connection is idle."""
        idle = [connection for connection in self._open if connection.is_idle]
        if not idle:
            return False
        min(idle, key=lambda connection: connection.answered_at).force_close()
        return True

    def close_silent(self, most: int) -> bool:
        """Close the connections that have waited longest for a request head, at most `most`. Returns False when every
        connection has a request in flight."""
        silent = sorted((one for one in self._open if one.awaits_head), key=lambda one: one.waits_since)
        for connection in silent[:most]:
            connection.force_close()
        return bool(silent)


class _Request(web.BaseRequest):
    """A request that decides whether its response has `connection: close`. aiohttp reads `keep_alive` whenever it
    writes a response head.

    The connection closes during a drain, and after a request that makes the next request on the connection unsafe. The
    parser of aiohttp adds the last trailer of a chunked body to the head of the next request. The parser also parses
    the body of a CONNECT as requests, and drops bytes that arrive together with an upgrade request. Such a fault could
    affect other clients, because a proxy may share one connection among several clients.
    """

    def __init__(self, message: RawRequestMessage, *given: Any, leaving: Callable[[], bool]) -> None:
        super().__init__(message, *given)
        self._leaving = leaving
        self._is_last = message.chunked or message.upgrade or message.method == "CONNECT"

    @property
    def keep_alive(self) -> bool:
        return super().keep_alive and not self._is_last and not self._leaving()


class HttpConnection(web.RequestHandler):
    """One client connection. The connection answers bytes that are not HTTP with an OpenAI error object, and closes
    itself if its client stays silent."""

    __slots__ = (
        *("_answered", "_begun", "_begun_requests", "_clock", "_door", "_has_spoken", "_head_timer", "_heard_at"),
        *("_opened_at", "_send_timer", "answered_at", "promised"),
    )

    def __init__(self, door: DoorServer, idle_seconds: float) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(
            door,
            loop=loop,
            keepalive_timeout=idle_seconds,
            access_log=None,  # type: ignore[arg-type]  # aiohttp accepts None, but its stub does not
            auto_decompress=False,
            max_line_size=_HEADER_BYTES,
            max_field_size=_HEADER_BYTES,
        )
        self._clock = loop
        self._door = door
        self._head_timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None
        # The number of requests that have begun, and the number of requests that were answered.
        self._begun_requests = self._answered = 0
        # Whether the client has sent any byte since the last response, and the first bytes that the client sent.
        self._has_spoken = False
        self._begun = b""
        self._heard_at = self._opened_at = 0.0
        self.answered_at = 0.0
        """The time when the last response ended, on the event loop's clock."""
        self.promised = False
        """Whether the server still serves the next request of this connection during a drain."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._door.opened(self)
        self._heard_at = self._opened_at = self._clock.time()
        self._head_timer = self._clock.call_later(self._door.head_seconds, self._head_is_late)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._door.closed(self)
        for timer in (self._head_timer, self._send_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        # aiohttp also calls this method without data, to continue parsing its buffer.
        if data:
            if not self._has_spoken and self._answered == self._begun_requests:
                self._begun = data[:5]
                self._has_spoken = True
            self._heard_at = self._clock.time()
        super().data_received(data)

    def request_begins(self) -> None:
        """Count a request that has begun. aiohttp also creates a request for bytes that are not valid HTTP."""
        self._begun_requests += 1

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Write the rest of a response, and record its end for the idle timeout."""
        finished = await super().finish_response(request, resp, start_time)
        self._answered = self._begun_requests
        self._has_spoken = False
        self.answered_at = self._clock.time()
        return finished

    @property
    def is_idle(self) -> bool:
        """Whether the last request on the connection was answered and no byte has arrived since."""
        return self._answered > 0 and self._answered == self._begun_requests and not self._has_spoken

    @property
    def awaits_head(self) -> bool:
        """Whether no request is in flight on the connection. A part of the next request's head may have arrived."""
        return self._answered == self._begun_requests

    @property
    def waits_since(self) -> float:
        """The time when the connection opened or when the last response ended, on the event loop's clock."""
        return max(self._opened_at, self.answered_at)

    @property
    def heard_at(self) -> float:
        """The time of the last byte from the client or of the end of the last response, whichever is later. The time is
        on the event loop's clock. While a request runs, the value is the current time."""
        if self._answered != self._begun_requests:
            return self._clock.time()
        return max(self._heard_at, self.answered_at)

    def _head_is_late(self) -> None:
        if self._begun_requests == 0:
            self.force_close()

    # Timeout for written bytes that the client does not read.

    def pause_writing(self) -> None:
        super().pause_writing()
        self._send_timer = self._clock.call_later(self._door.send_seconds, self._is_stuck)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None

    def hurry(self) -> None:
        """Restart a running write timeout with the server's shortened `send_seconds`."""
        timer, seconds = self._send_timer, self._door.send_seconds
        if timer is not None and timer.when() > self._clock.time() + seconds:
            timer.cancel()
            self._send_timer = self._clock.call_later(seconds, self._is_stuck)

    def _is_stuck(self) -> None:
        if self.transport is not None:
            _log.info("client_stopped_reading", seconds=self._door.send_seconds)
            # A normal close would wait until the client has read all bytes, and without a reset the kernel would also
            # wait.
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.transport.abort()

    # Methods for bytes that are not HTTP.

    def set_parser(self, parser: Any, data_received_cb: Callable[[], None] | None = None) -> None:
        super().set_parser(MaskedFrames(parser.feed_data, parser.feed_eof), data_received_cb)  # type: ignore[arg-type]

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError("A response has begun, so the server can only cut the connection.")
        error: ApiError
        if status < 500:
            error = InvalidRequest("The request is not valid HTTP.", code="invalid_http", status=status)
        else:
            error = InternalError("The server had an error while processing your request.")
        close = (("content-type", "application/json"), ("connection", "close"))
        # aiohttp parsed no part of such a request, so only its first bytes show whether it is a HEAD request.
        return make_response(error.status, close, b"" if self._begun == b"HEAD " else error.body())


# A frame with a reserved opcode, masked and empty. aiohttp's WebSocket reader refuses this frame.
_REFUSED: Final = b"\x83\x80\0\0\0\0"
_MASKED: Final = 0x80


class MaskedFrames:
    """Checks the WebSocket frames between the socket and aiohttp's reader. The filter passes on no byte of a frame
    before it has checked the frame's mask bit."""

    def __init__(self, feed_data: Callable[[bytes], tuple[bool, bytes]], feed_eof: Callable[[], None]) -> None:
        self._feed_data = feed_data
        self.feed_eof = feed_eof
        self._left = 0
        self._held = b""

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Check received bytes and pass them to the reader. Returns the reader's result: whether the connection has
        ended, and the bytes after the end."""
        if self._held:
            data, self._held = self._held + data, b""
        at = self._left
        while at < len(data):
            size = _frame_size(data, at)
            if size is None:
                data, self._held = data[:at], data[at:]
                break
            if not data[at + 1] & _MASKED:
                data = data[:at] + _REFUSED
                at = len(data)
                break
            at += size
        self._left = max(at - len(data), 0)
        return self._feed_data(data) if data else (False, b"")


def _frame_size(data: bytes, at: int) -> int | None:
    """Return the size in bytes of the frame that starts at offset `at`, or None while its head is incomplete. The size
    of an unmasked frame does not matter, because such a frame ends the connection."""
    if at + 2 > len(data):
        return None
    short = data[at + 1] & 0x7F
    if not data[at + 1] & _MASKED or short < 126:
        return 6 + short
    width = 2 if short == 126 else 8
    if at + 2 + width > len(data):
        return None
    return 6 + width + int.from_bytes(data[at + 2 : at + 2 + width], "big")


def is_promised(request: web.BaseRequest) -> bool:
    """Whether the server promised to serve one more request on this request's connection."""
    connection = request.protocol
    return isinstance(connection, HttpConnection) and connection.promised
