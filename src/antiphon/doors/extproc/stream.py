"""One ext_proc stream: one client request, relayed or driven.

Lives here: the order of messages that Envoy accepts. Not here: their bytes (`wire.py`), the gRPC server (`server.py`),
and every decision about the response (`engine/exchange.py`).

Rules kept here, all verified against Envoy 1.40.0 in FULL_DUPLEX_STREAMED mode:

- Nothing is answered before the whole request is in: the first answer decides for good whether Envoy makes the model
  call (relay) or this process answers (local, drive). The exception is an early refusal, an immediate response.
- A handler that ends without an answer fails open, so every path answers or raises.
- In relay no response body part goes out before the upstream's first body part, and the answer to the response headers
  waits for it, so that an early failure still gets its HTTP status.
- Exactly one `end_of_stream`; with trailers the body ends without it and the trailers are answered instead.
- The handler is cancelled within milliseconds of its last part, and as quickly when the client leaves: everything that
  must be kept is saved before the last part is sent (the exchange does that).
"""

from __future__ import annotations

import asyncio
import time
import zlib
from typing import Literal

import structlog

from antiphon.doors.context import DoorContext
from antiphon.doors.extproc import wire
from antiphon.doors.extproc.transport import MessageStream
from antiphon.doors.extproc.wire import Kind, Received
from antiphon.engine.actions import CallUpstream, CancelReason, Finish, RequestHead, SendBody, SendHead
from antiphon.engine.exchange import ResponseExchange
from antiphon.errors import ApiError, RequestTooLarge
from antiphon.translation.encode import KEEPALIVE
from antiphon.types.transport import Headers, UpstreamError, UpstreamFault

__all__ = ["Mode", "ProtocolError", "serve_stream"]

_log = structlog.get_logger(__name__)

Mode = Literal["auto", "relay", "drive"]

_CHUNK = 256 * 1024
_BACKEND = ("x-antiphon-backend", "upstream")
# Envoy finds no route for a request without it (404); it says how the client reached Envoy, nothing about the client.
_ENVOYS_OWN = frozenset({"x-forwarded-proto"})
_KEPT_RESPONSE_HEADERS = ("x-ratelimit-",)
_AFTER_THE_END = 5.0


class ProtocolError(Exception):
    """Envoy is configured in a way that cannot work, or the peer is not Envoy. The message says what to change."""


async def serve_stream(context: DoorContext, stream: MessageStream, mode: Mode) -> None:
    """Serve one stream to its end. Raises `ProtocolError`; any exception must abort the gRPC call."""
    started = time.perf_counter()
    request = await _read_request(context, stream)
    if request is None:
        return
    try:
        with context.admission.admit():
            context.metrics.in_flight.inc()
            try:
                owner = context.owners.resolve(request.headers)
                head = RequestHead("POST", request.path, request.headers, owner, request.request_id)
                await _Exchange(context, stream, request, started, mode).serve(head)
            finally:
                context.metrics.in_flight.dec()
    except ApiError as error:
        await _refuse(stream, error, request.request_id)
        await _drain(stream)


class _Request:
    """A whole client request."""

    __slots__ = ("body", "headers", "path", "request_id", "trailers")

    def __init__(self, headers: Headers) -> None:
        self.headers = headers
        self.path = _first(headers, ":path") or ""
        self.request_id = _first(headers, "x-request-id") or ""
        self.body = b""
        self.trailers = False


async def _read_request(context: DoorContext, stream: MessageStream) -> _Request | None:
    """Read until the request's end; None when it was refused, or the client left first."""
    message = await stream.receive()
    if message is None:
        return None
    received = wire.decode(message)
    if received.kind is not Kind.REQUEST_HEADERS:
        raise ProtocolError("the first message must be request_headers: set request_header_mode to SEND")
    if received.duplex is not True:
        raise ProtocolError(
            "processing_mode.request_body_mode and response_body_mode must be FULL_DUPLEX_STREAMED "
            "(and all header and trailer modes SEND)"
        )
    request = _Request(received.headers)
    most = context.limits.request_body_bytes
    length = _first(request.headers, "content-length")
    if length is not None and length.isdigit() and int(length) > most:
        await _refuse(stream, _too_large(most), request.request_id)
        await _drain(stream)
        return None
    parts: list[bytes] = []
    size = 0
    while not received.end:
        message = await stream.receive()
        if message is None:
            return None
        received = wire.decode(message)
        if received.kind is Kind.REQUEST_BODY:
            size += len(received.body)
            if size > most:
                await _refuse(stream, _too_large(most), request.request_id)
                await _drain(stream)
                return None
            parts.append(received.body)
        elif received.kind is Kind.REQUEST_TRAILERS:
            request.trailers = True
            break
        else:
            # Envoy answers by itself (an idle timeout, say) while the request is still owed an answer.
            await _pass_local_reply(stream, received)
            return None
    request.body = b"".join(parts)
    return request


async def _pass_local_reply(stream: MessageStream, received: Received) -> None:
    error = ApiError("The request was not sent completely in time.", status=408, type="invalid_request_error")
    body = error.body()
    headers = ((":status", "408"), ("content-type", "application/json"), ("content-length", str(len(body))))
    if received.end:
        await stream.send(wire.response_replaced(headers, (), body, None))
    else:
        await stream.send(wire.response_head(headers, ()))
        while (message := await stream.receive()) is not None:
            if wire.decode(message).kind is Kind.RESPONSE_BODY:
                await stream.send(wire.response_body(body, end=True))
                break
    await _drain(stream)


class _Exchange:
    """The exchange of one stream, and what was sent of it."""

    def __init__(
        self, context: DoorContext, stream: MessageStream, request: _Request, started: float, mode: Mode
    ) -> None:
        self._context = context
        self._runner = context.runner
        self._stream = stream
        self._request = request
        self._started = started
        self._mode = mode
        self._exchange: ResponseExchange = context.new_exchange()
        self._door = "relay"
        self._head: SendHead | None = None
        self._waiting: list[bytes] = []
        self._finish: Finish | None = None
        self._finished = False
        self._upstream_names: tuple[str, ...] = ()
        self._upstream_bodiless = False
        self._body_begun = False
        self._head_answered = False
        self._trailers_owed = False
        self._inflate: _Inflate | None = None
        self._last_sent = 0.0
        self._keepalive: asyncio.Task[None] | None = None
        self._keepalive_send: asyncio.Task[None] | None = None

    async def serve(self, head: RequestHead) -> None:
        exchange = self._exchange
        try:
            exchange.receive_request(head, self._request.body)
            self._request.body = b""
            call: CallUpstream | None = None
            if self._mode == "drive":
                await self._drive()
            else:
                async for action in self._runner.settle(exchange):
                    if isinstance(action, CallUpstream):
                        call = action
                    else:
                        self._note(action)
                if call is not None:
                    await self._relay(call)
                else:
                    await self._answer_at_once()
        finally:
            if self._keepalive is not None:
                self._keepalive.cancel()
            if not exchange.done:
                # The client left, Envoy cut the stream, or something broke: the row is written as failed.
                await self._runner.abandon(exchange, CancelReason.CLIENT_GONE)
            outcome = self._finish.outcome if self._finish is not None else "cancelled"
            self._context.metrics.response_finished(outcome, self._door, time.perf_counter() - self._started)
            _log.info(
                "response",
                request_id=self._request.request_id,
                response_id=exchange.response_id or None,
                door=self._door,
                model=exchange.model or None,
                outcome=outcome,
                milliseconds=round((time.perf_counter() - self._started) * 1000, 1),
            )
        await _drain(self._stream)

    # Relay

    async def _relay(self, call: CallUpstream) -> None:
        await self._send_request(call)
        while not self._finished:
            message = await self._stream.receive()
            if message is None:
                return
            received = wire.decode(message)
            kind = received.kind
            exchange = self._exchange
            if kind is Kind.RESPONSE_BODY:
                self._body_begun = True
                if received.body:
                    self._feed(received.body)
                if received.end:
                    exchange.receive_upstream_end(self._encoding_fault())
            elif kind is Kind.RESPONSE_HEADERS:
                self._receive_head(received)
            elif kind is Kind.RESPONSE_TRAILERS:
                self._trailers_owed = True
                exchange.receive_upstream_end(self._encoding_fault())
            else:
                # What follows the request's end (a duplicate end of stream) means nothing.
                continue
            await self._perform()

    def _receive_head(self, received: Received) -> None:
        status = int(_first(received.headers, ":status") or 0)
        self._upstream_names = tuple(name for name, _ in received.headers if not name.startswith(":"))
        encoding = (_first(received.headers, "content-encoding") or "identity").lower()
        if encoding != "identity":
            self._inflate = _Inflate(encoding)
        self._exchange.receive_upstream_head(status, received.headers)
        if received.end:
            self._upstream_bodiless = True
            self._exchange.receive_upstream_end()

    def _feed(self, body: bytes) -> None:
        if self._inflate is not None:
            body = self._inflate.feed(body)
        self._exchange.receive_upstream_data(body)

    def _encoding_fault(self) -> UpstreamError | None:
        if self._inflate is not None and self._inflate.failed:
            return UpstreamError(UpstreamFault.CUT, "content-encoding")
        return None

    async def _send_request(self, call: CallUpstream) -> None:
        """Hand the translated request to Envoy: new path, headers and body."""
        request = call.request
        headers = (
            (":method", "POST"),
            (":path", "/v1" + request.path),
            ("content-length", str(len(request.body))),
            _BACKEND,
            *request.headers,
        )
        kept = {name for name, _ in headers} | _ENVOYS_OWN
        remove = tuple(
            dict.fromkeys(
                name for name, _ in self._request.headers if not name.startswith(":") and name not in kept
            )
        )
        await self._stream.send(wire.request_head(headers, remove, {"model": request.model}))
        body = request.body
        last = max(0, len(body) - 1) // _CHUNK
        for number in range(last + 1):
            part = body[number * _CHUNK : (number + 1) * _CHUNK]
            end = number == last and not self._request.trailers
            await self._stream.send(wire.request_body(part, end))
        if self._request.trailers:
            await self._stream.send(wire.request_trailers())

    async def _perform(self) -> None:
        """Perform what the exchange asks for now, as far as Envoy allows."""
        async for action in self._runner.settle(self._exchange):
            if not isinstance(action, CallUpstream):
                self._note(action)
        if self._head is None:
            return
        if self._upstream_bodiless:
            if self._finish is not None:
                await self._send_replaced()
            return
        if not (self._body_begun or self._trailers_owed):
            return
        if self._keepalive_send is not None:
            await asyncio.wait({self._keepalive_send})
        if not self._head_answered:
            self._head_answered = True
            await self._stream.send(wire.response_head(self._client_headers(), self._removed_headers()))
            if self._head.streamed and self._finish is None:
                self._keepalive = asyncio.get_running_loop().create_task(self._keep_alive())
        if self._waiting or self._finish is not None:
            body = self._waiting[0] if len(self._waiting) == 1 else b"".join(self._waiting)
            self._waiting.clear()
            self._last_sent = time.monotonic()
            await self._send_part(body)

    async def _send_part(self, body: bytes) -> None:
        if self._finish is None:
            await self._stream.send(wire.response_body(body, end=False))
            return
        self._finished = True
        metadata = self._metadata(self._finish)
        if not self._trailers_owed:
            await self._stream.send(wire.response_body(body, end=True, metadata=metadata))
            return
        if self._body_begun:
            await self._stream.send(wire.response_body(body, end=False, metadata=metadata))
        await self._stream.send(wire.response_trailers())

    async def _send_replaced(self) -> None:
        """The upstream's head came without a body: ours goes into the answer to the headers."""
        self._finished = True
        assert self._finish is not None
        await self._stream.send(
            wire.response_replaced(
                self._client_headers(), self._removed_headers(), b"".join(self._waiting), self._metadata(self._finish)
            )
        )

    async def _keep_alive(self) -> None:
        """Send a comment whenever the client has heard nothing for a while."""
        seconds = self._runner.timeouts.keepalive
        self._last_sent = time.monotonic()
        while not self._finished:
            rest = self._last_sent + seconds - time.monotonic()
            if rest > 0:
                await asyncio.sleep(rest)
                continue
            self._last_sent = time.monotonic()
            send = self._stream.send(wire.response_body(KEEPALIVE, end=False))
            self._keepalive_send = asyncio.ensure_future(send)
            await asyncio.wait({self._keepalive_send})
            self._keepalive_send = None

    # Local answers and drive

    async def _answer_at_once(self) -> None:
        """The whole answer is known before any model call."""
        assert self._head is not None and self._finish is not None
        self._finished = True
        await self._stream.send(
            wire.immediate(
                self._head.status, self._plain_headers(), b"".join(self._waiting), f"antiphon_{self._finish.outcome}"
            )
        )

    async def _drive(self) -> None:
        """Answer from here; the model is called through the model door."""
        self._door = "drive"
        async for action in self._runner.drive(self._exchange):
            self._note(action)
            if self._head is None or (not self._head.streamed and self._finish is None):
                continue
            if not self._head.streamed:
                await self._answer_whole()
                return
            if isinstance(action, SendHead):
                await self._stream.send(
                    wire.local_head(action.status, self._plain_headers(), {"model": self._exchange.model})
                )
            elif isinstance(action, SendBody):
                self._waiting.clear()
                await self._stream.send(wire.local_body(action.data, end=False))
            elif self._finish is not None:
                self._finished = True
                await self._stream.send(wire.local_body(b"", end=True, metadata=self._metadata(self._finish)))

    async def _answer_whole(self) -> None:
        assert self._head is not None and self._finish is not None
        self._finished = True
        metadata: dict[str, str | int] = {"model": self._exchange.model}
        await self._stream.send(wire.local_head(self._head.status, self._plain_headers(), metadata))
        body = b"".join(self._waiting)
        await self._stream.send(wire.local_body(body, end=True, metadata=self._metadata(self._finish)))

    # Shared

    def _note(self, action: SendHead | SendBody | Finish) -> None:
        if isinstance(action, SendBody):
            self._waiting.append(action.data)
        elif isinstance(action, SendHead):
            self._head = action
        else:
            self._finish = action

    def _plain_headers(self) -> Headers:
        assert self._head is not None
        request_id = self._request.request_id
        return (*self._head.headers, ("x-request-id", request_id)) if request_id else self._head.headers

    def _client_headers(self) -> Headers:
        assert self._head is not None
        return ((":status", str(self._head.status)), *self._plain_headers())

    def _removed_headers(self) -> tuple[str, ...]:
        """The upstream's headers that describe its own body or are nobody's business here."""
        kept = {name for name, _ in self._plain_headers()}
        return tuple(
            dict.fromkeys(
                name
                for name in self._upstream_names
                if name not in kept and not name.startswith(_KEPT_RESPONSE_HEADERS)
            )
        )

    def _metadata(self, finish: Finish) -> dict[str, str | int]:
        metadata: dict[str, str | int] = {"status": finish.outcome}
        if self._exchange.response_id:
            metadata["response_id"] = self._exchange.response_id
        if finish.model:
            metadata["model"] = finish.model
        if finish.usage is not None:
            metadata["input_tokens"] = finish.usage.input_tokens
            metadata["output_tokens"] = finish.usage.output_tokens
            metadata["total_tokens"] = finish.usage.total_tokens
        return metadata


class _Inflate:
    """Undoes a content-encoding that the upstream used although none was accepted."""

    def __init__(self, encoding: str) -> None:
        self.failed = encoding not in ("gzip", "x-gzip", "deflate")
        self._decoder = zlib.decompressobj(wbits=47)

    def feed(self, data: bytes) -> bytes:
        if self.failed:
            return b""
        try:
            return self._decoder.decompress(data)
        except zlib.error:
            self.failed = True
            return b""


def _first(headers: Headers, name: str) -> str | None:
    for key, value in headers:
        if key == name:
            return value
    return None


def _too_large(most: int) -> RequestTooLarge:
    return RequestTooLarge(f"The request body is larger than {most} bytes.", code="request_too_large")


async def _refuse(stream: MessageStream, error: ApiError, request_id: str) -> None:
    headers: Headers = (("content-type", "application/json"), *error.headers)
    if request_id:
        headers = (*headers, ("x-request-id", request_id))
    await stream.send(wire.immediate(error.status, headers, error.body(), f"antiphon_{error.code or 'refused'}"))


async def _drain(stream: MessageStream) -> None:
    """Everything was answered: wait for Envoy to end the stream, so that ending it here cannot cut anything."""
    try:
        async with asyncio.timeout(_AFTER_THE_END):
            while await stream.receive() is not None:
                pass
    except TimeoutError:
        return
