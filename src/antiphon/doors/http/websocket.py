"""Serves the WebSocket of `/v1/responses`: one connection, its requests one after another.

This module checks the handshake, reads frames ahead and runs a response for each request. This module decides which
responses the connection remembers and when the connection ends. `api/frames.py` interprets frames. The runner performs
translation and model calls. `engine/running/connection_memory.py` stores the remembered responses.

Invariants: a connection runs one response at a time, in the order of the requests, whatever `stream_id` they have. An
error is sent as a frame, and the connection stays open. No response begins after the connection's time limit or during
a drain of the process or its gateway. A running response finishes before the connection closes. If the work on a
response ends early, this module abandons the exchange.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import aclosing
from urllib.parse import urlsplit

import structlog
from aiohttp import WSCloseCode, WSMsgType, web
from aiohttp.http import HttpVersion11
from aiohttp.web_exceptions import HTTPException
from msgspec.structs import replace

from antiphon.api.frames import (
    ClientFrame,
    EventFrames,
    FrameReply,
    NativeFrames,
    answered_error,
    error_frame,
    read_client_frame,
)
from antiphon.config.limits import WebSocketSettings
from antiphon.doors.context import DoorContext
from antiphon.doors.http.exchange import SERVER
from antiphon.doors.request_body import too_large
from antiphon.engine.exchange.failure import Failure, refusal
from antiphon.engine.exchange.response_exchange import ResponseExchange
from antiphon.engine.ports.actions import CancelReason, RequestHead, SendBody, SendHead
from antiphon.engine.ports.callers import Caller
from antiphon.engine.ports.idempotency import HEADER
from antiphon.engine.running.connection_memory import ConnectionMemory, SocketMemory
from antiphon.engine.running.runner import Runner
from antiphon.engine.waiting import to_the_end
from antiphon.errors import ApiError, InternalError, InvalidRequest, Unavailable
from antiphon.ids import new_id
from antiphon.types.transport import Headers

_FRAMES_AHEAD = 16
_CLOSE_SECONDS = 1.0
# Handshake headers that are not copied to the requests. These headers do not apply to a single request, or would be the
# same for each request.
_OF_THE_HANDSHAKE = frozenset({"openai-beta", HEADER, "connection", "upgrade"})
_HANDSHAKE_PREFIX = "sec-websocket-"

_log = structlog.get_logger(__name__)


def is_upgrade(request: web.BaseRequest) -> bool:
    """Whether the request asks for a WebSocket. HTTP/1.0 has no upgrade, so the version must be 1.1."""
    if request.method != "GET" or request.version < HttpVersion11:
        return False
    return request.headers.get("upgrade", "").strip().lower() == "websocket"


def check_handshake(request: web.BaseRequest, limits: WebSocketSettings, active: int) -> None:
    """Check whether this client may open a WebSocket. `active` is the number of open WebSockets. Raises the `ApiError`
    that the client gets as response.

    A browser lets any page connect to any host, and the handshake has no CORS check. So the server accepts only pages
    whose origin is this host or is listed in the settings.
    """
    if not limits.enabled:
        raise ApiError(
            "This server accepts no WebSocket connections. Send a POST request with 'stream': true instead.",
            status=426,
            type="invalid_request_error",
            code="upgrade_not_supported",
            headers=(("upgrade", "HTTP/1.1"), ("connection", "close")),
        )
    origin = request.headers.get("origin")
    if origin is not None and not _is_allowed(origin, request.headers.get("host", ""), limits.origins):
        raise ApiError(
            "This server accepts no WebSocket connections from web pages of this origin. Ask the operator to add the "
            "origin to "
            "'websocket.origins'.",
            status=403,
            type="invalid_request_error",
            code="origin_not_allowed",
        )
    if active >= limits.connections:
        raise Unavailable(
            "This server has reached its limit of WebSocket connections. Try again shortly, or send a POST request.",
            code="overloaded",
            headers=(("retry-after", "1"),),
        )


def _is_allowed(origin: str, host: str, allowed: tuple[str, ...]) -> bool:
    if "*" in allowed or origin in allowed:
        return True
    try:
        return bool(host) and urlsplit(origin).netloc.lower() == host.lower()
    except ValueError:
        return False


class WebSocketConnection:
    """One WebSocket connection from its handshake to its end. `head` is the upgrade request. The caller of the upgrade
    request is the caller of all requests on the connection. `check_key` raises `ApiError` when the client's key is no
    longer accepted. The connection calls `check_key` before each response."""

    def __init__(
        self,
        context: DoorContext,
        head: RequestHead,
        caller: Caller,
        leaving: Callable[[], CancelReason],
        shared: SocketMemory,
        check_key: Callable[[], object],
    ) -> None:
        self._context = context
        self._check_key = check_key
        self._shared = shared
        self._limits = context.websocket
        headers = tuple(
            (name, value)
            for name, value in head.headers
            if name not in _OF_THE_HANDSHAKE and not name.startswith(_HANDSHAKE_PREFIX)
        )
        self._head = replace(head, method="POST", headers=headers)
        self._caller = caller
        # All requests of the connection would share the handshake's idempotency key, although a key identifies one
        # request. So the server ignores the handshake's key.
        self._ignored = HEADER if head.header(HEADER) is not None else ""
        self._leaving = leaving
        self._memory = ConnectionMemory(context.runner.ports.store, max_bytes=self._limits.memory_bytes, shared=shared)
        self._max_bytes = context.limits.request_body_bytes
        self._socket = web.WebSocketResponse(
            timeout=_CLOSE_SECONDS,
            heartbeat=self._limits.ping,
            # aiohttp still reads a frame slightly over the limit, so that the client gets an error with the reason.
            max_msg_size=self._max_bytes + (1 << 16),
            compress=self._limits.compression,
            decode_text=False,
        )
        self._waiting: deque[bytes | ApiError] = deque()
        self._waiting_bytes = 0
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._over = False
        self.busy = False
        """Whether a response is running."""
        self._expired = False
        self._sent_away = False

    def send_away(self) -> None:
        """Close the connection as soon as no response is running. The gateway in front of this connection is about to
        stop."""
        self._sent_away = True
        self._news.set()

    @property
    def waiting(self) -> int:
        """The number of frames that were read and not handled yet."""
        return len(self._waiting)

    @property
    def waiting_bytes(self) -> int:
        """The total size in bytes of the frames that were read and not handled yet."""
        return self._waiting_bytes

    def expire(self) -> None:
        """Close the connection after the running response, because the connection's time limit is reached."""
        self._expired = True
        self._news.set()

    async def run(self, request: web.BaseRequest) -> web.StreamResponse:
        """Do the handshake, then serve the connection until its end. Raises `InvalidRequest` for an invalid
        handshake."""
        self._socket.headers["x-request-id"] = self._head.request_id
        self._socket.headers.update((SERVER,))
        if self._ignored:
            self._socket.headers["antiphon-ignored"] = self._ignored
        try:
            await self._socket.prepare(request)
        except HTTPException as refusal:
            raise InvalidRequest(
                f"The WebSocket handshake is not valid: {refusal.text}.", code="invalid_handshake"
            ) from None
        reader = asyncio.create_task(self._read())
        timer = asyncio.get_running_loop().call_later(self._limits.seconds, self.expire)
        self._context.admission.on_close.add(self._news.set)
        try:
            while (frame := await self._next()) is not None:
                await self._turn(frame)
                # The frame is freed before the wait for the next frame. Only the remembered responses stay in memory.
                del frame
        finally:
            self._context.admission.on_close.discard(self._news.set)
            timer.cancel()
            reader.cancel()
            await asyncio.wait({reader})
            self._shared.give(self._waiting_bytes)
            self._waiting_bytes = 0
            self._memory.shed()
        return self._socket

    # The methods below read frames.

    async def _read(self) -> None:
        """Read frames as they arrive. At most 16 frames wait to be handled. While this method reads, aiohttp answers
        pings."""
        try:
            while True:
                message = await self._socket.receive()
                if message.type is WSMsgType.TEXT:
                    self._put(self._checked(message.data))
                elif message.type is WSMsgType.BINARY:
                    self._put(InvalidRequest("Send JSON in text frames, not in binary ones.", code="invalid_frame"))
                else:
                    # The client closed the connection, or aiohttp has already answered a protocol error.
                    return
                del message
                while len(self._waiting) >= _FRAMES_AHEAD or self._waiting_bytes > self._max_bytes:
                    self._room.clear()
                    await self._room.wait()
        except ConnectionError:
            # The connection broke while aiohttp answered a ping.
            return
        finally:
            self._over = True
            self._news.set()

    def _checked(self, frame: bytes) -> bytes | ApiError:
        """Reserve memory for the frame and return the frame. If the frame is too large or no memory is left, the method
        returns an error instead. The connection sends that error when it handles the frame."""
        if len(frame) > self._max_bytes:
            return too_large(self._max_bytes)
        if self._shared.take(len(frame), self._memory):
            return frame
        return Unavailable(
            f"The WebSocket connections of this server have reached their memory limit ({self._shared.limit} bytes, "
            "'websocket.total_bytes'). Try again shortly.",
            code="overloaded",
        )

    def _put(self, frame: bytes | ApiError) -> None:
        self._waiting.append(frame)
        self._waiting_bytes += len(frame) if isinstance(frame, bytes) else 0
        self._news.set()

    async def _next(self) -> bytes | ApiError | None:
        """Wait for the next frame. Returns None after the connection has ended or this method has closed it."""
        while True:
            if self._over:
                return None
            if self._context.admission.closed or self._sent_away:
                await self._socket.close(code=WSCloseCode.GOING_AWAY, message=b"The server is shutting down.")
                return None
            if self._expired:
                minutes = self._limits.seconds / 60
                await self._send(
                    error_frame(
                        InvalidRequest(
                            f"Responses websocket connection limit reached ({minutes:g} minutes). Create a new "
                            "websocket connection to continue.",
                            code="websocket_connection_limit_reached",
                        ),
                        self._head.request_id,
                    )
                )
                await self._socket.close(message=b"The connection's time is up.")
                return None
            if self._waiting:
                frame = self._waiting.popleft()
                if isinstance(frame, bytes):
                    self._waiting_bytes -= len(frame)
                    self._shared.give(len(frame))
                self._room.set()
                return frame
            self._news.clear()
            await self._news.wait()

    # The methods below run one response.

    async def _turn(self, data: bytes | ApiError) -> None:
        """Serve one frame completely: answer it directly, or run the response that it requests."""
        context = self._context
        try:
            if isinstance(data, ApiError):
                raise data
            self._check_key()
            frame = read_client_frame(data, strict=context.strict)
            if frame is None:
                return
            if isinstance(frame, FrameReply):
                if frame.left_out:
                    _log.warning("event", ignored=(frame.left_out,), request_id=self._head.request_id, door="websocket")
                await self._send(frame.frame)
                return
        except ApiError as error:
            told = (new_id("req"), self._caller, self._head.path, refusal(error), error.message)
            context.telemetry.refused("websocket", *told)
            await self._send(error_frame(error, self._head.request_id))
            return
        turn = _Turn(frame, context.new_exchange(), replace(self._head, request_id=new_id("req")), self._max_bytes)
        runner = context.runner.over(self._memory)
        failure: Failure | None = None
        observed = context.telemetry.observe("websocket", turn.head.request_id, self._caller, self._head.headers)
        observed.watch(turn.exchange)
        self.busy = True
        try:
            owner = self._head.owner
            with context.admission.admit(owner, "websocket"), context.bodies.hold(owner) as hold:
                hold.add(len(turn.frame.body))
                turn.exchange.hold = hold
                await self._perform(turn, runner)
        except ApiError as error:
            turn.outcome = "error"
            failure = turn.exchange.known.failure or refusal(error)
            await runner.abandon(turn.exchange, CancelReason.CLIENT_GONE)
            await self._send(turn.frames.error(error, turn.head.request_id))
        except (asyncio.CancelledError, ConnectionError):
            turn.outcome = "cancelled"
            await to_the_end(runner.abandon(turn.exchange, self._leaving()))
            raise
        except Exception:
            _log.error("turn_failed", response_id=turn.exchange.known.response_id, exc_info=True)
            turn.outcome = "error"
            await runner.abandon(turn.exchange, CancelReason.SHUTTING_DOWN)
            await self._send(turn.frames.error(InternalError("The server had an error."), turn.head.request_id))
        finally:
            self._remember(turn)
            self.busy = False
            observed.end(turn.exchange, turn.outcome, failure)

    async def _perform(self, turn: _Turn, runner: Runner) -> None:
        exchange, previous = turn.exchange, turn.frame.previous_response_id
        exchange.generate = turn.frame.generate
        exchange.error_events = False
        await runner.receive(exchange, turn.head, turn.frame.body)
        if exchange.known.stored and previous in self._memory:
            # The client asked not to store that history (`store: false`), so no stored response may depend on it.
            exchange.actions()
            raise InvalidRequest(
                f"Previous response with id '{previous}' not found among stored responses, because it was made with "
                "'store': false. Continue that response with 'store': false, or send the whole input.",
                param="previous_response_id",
                code="previous_response_not_found",
            )
        # `drive` is an asynchronous generator; closing it ends the model call immediately.
        async with aclosing(runner.drive(exchange)) as actions:
            async for action in actions:
                if isinstance(action, SendBody):
                    for event in turn.receive(action.data):
                        await self._send(event)
                elif isinstance(action, SendHead):
                    turn.open(action)
                else:
                    turn.outcome = action.outcome
        if (error := turn.error()) is not None:
            raise error

    def _remember(self, turn: _Turn) -> None:
        """Update the connection's memory after a response. The connection keeps a successful response that is not
        stored, so that the client can continue it on this connection. After a failure, the connection forgets the
        response that the request's `previous_response_id` names."""
        if turn.outcome in ("completed", "incomplete"):
            if (record := turn.exchange.unstored_record()) is not None:
                self._memory.keep(record)
        else:
            self._memory.forget(turn.frame.previous_response_id)

    async def _send(self, frame: bytes) -> None:
        """Send one text frame. The write waits for a slow client, which slows the upstream down."""
        await self._socket.send_frame(frame, WSMsgType.TEXT)


class _Turn:
    """The output of one request: its events, or the error that an HTTP client would get."""

    def __init__(self, frame: ClientFrame, exchange: ResponseExchange, head: RequestHead, limit: int) -> None:
        """`limit` is the maximum size in bytes of one event in a passed-through stream."""
        self.frame = frame
        self._limit = limit
        self.exchange = exchange
        self.head = head
        self.frames = EventFrames(frame.lane)
        self.outcome = "cancelled"
        self._head: SendHead | None = None
        self._body: list[bytes] = []

    def open(self, head: SendHead) -> None:
        self._head = head
        if head.streamed:
            lane = self.frame.lane
            self.frames = NativeFrames(lane, self._limit) if head.raw else EventFrames(lane, _told(head.headers))

    def receive(self, data: bytes) -> list[bytes]:
        """Return the frames to send for this output of the exchange. Returns no frames for a response that is not
        streamed."""
        if self._head is not None and self._head.streamed:
            return self.frames.feed(data)
        self._body.append(data)
        return []

    def error(self) -> ApiError | None:
        """Return the error to send when the response was not streamed or its stream was incomplete. Returns None after
        a complete stream."""
        if self._head is None:
            return InternalError("The request ended without a response.")
        if not self._head.streamed:
            return answered_error(self._head.status, self._head.headers, b"".join(self._body))
        return self.frames.missing()


def _told(headers: Headers) -> Headers:
    """Select the response headers that a WebSocket client would not see otherwise: `antiphon-ignored`."""
    return tuple((name, value) for name, value in headers if name == "antiphon-ignored")
