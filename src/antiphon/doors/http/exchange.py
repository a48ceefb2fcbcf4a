"""Serves one `POST /v1/responses` over HTTP: turns the exchange's actions into an aiohttp response.

This module writes the head and the body, and handles a client that disconnects. The runner performs translation, model
calls and storage. `server.py` reads the request.

Invariants: every `SendBody` is one awaited write, so a slow client slows the upstream down. If `ExchangeAnswer.run`
ends before the exchange is complete, `run` abandons the exchange. A stream ends with its terminal event or is cut off,
so a truncated stream never looks complete. The stream of a background response may end earlier, because the client can
resume it by sequence number.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import aclosing
from functools import partial

import structlog
from aiohttp import web
from multidict import CIMultiDict

from antiphon.api.http import AnswerCut, BodyStream
from antiphon.engine.exchange.response_exchange import ResponseExchange
from antiphon.engine.ports.actions import CancelReason, SendBody, SendHead
from antiphon.engine.running.runner import Runner
from antiphon.engine.waiting import to_the_end
from antiphon.errors import InternalError
from antiphon.types.transport import Headers, header_value

SERVER = ("server", "antiphon")

_log = structlog.get_logger(__name__)
_STOPPING = CancelReason.SHUTTING_DOWN


class ExchangeAnswer:
    """Runs one exchange and writes its HTTP response.

    `outcome` is for metrics and the log line. `outcome` stays `cancelled` until the exchange finishes.
    """

    def __init__(
        self, request: web.BaseRequest, exchange: ResponseExchange, runner: Runner, own_headers: Headers
    ) -> None:
        self._request = request
        self._exchange = exchange
        exchange.client_is_slow = partial(_waits_for_client, request)
        self._runner = runner
        self._own_headers = own_headers
        self._head: SendHead | None = None
        self._stream: web.StreamResponse | None = None
        self._body: list[bytes] = []
        self.outcome = "cancelled"

    async def run(self, leaving: Callable[[], CancelReason]) -> web.StreamResponse:
        """Run the exchange and write its response to the last byte. When the task is cancelled, `leaving` returns the
        reason: the client left, or the process stops."""
        try:
            await self._perform()
        except (asyncio.CancelledError, ConnectionError):
            if leaving() is not _STOPPING:
                finish = await self._runner.go_on(self._exchange, lambda: leaving() is _STOPPING)
                self.outcome = finish.outcome if finish is not None else self.outcome
            # The client may leave while the process stops, which causes a second cancellation. `to_the_end` shields the
            # write of the abandoned response from that cancellation.
            await to_the_end(self._runner.abandon(self._exchange, leaving()))
            raise
        except Exception as error:
            _log.error("exchange_failed", response_id=self._exchange.known.response_id, exc_info=True)
            await self._give_up()
            if self._stream is not None:
                raise ConnectionResetError("the stream was cut") from error
            return self._no_answer("The server had an error.")
        if self._stream is not None:
            return self._stream
        if self._head is None:
            return self._no_answer("The request ended without a response.")
        return make_response(self._head.status, self._headers(self._head), b"".join(self._body))

    async def _perform(self) -> None:
        # `drive` is an asynchronous generator; closing it ends the model call immediately.
        async with aclosing(self._runner.drive(self._exchange)) as actions:
            async for action in actions:
                if isinstance(action, SendBody):
                    assert self._head is not None, "the exchange sent a body before its head"
                    if self._stream is not None:
                        await self._stream.write(action.data)
                    else:
                        self._body.append(action.data)
                elif isinstance(action, SendHead):
                    self._head = action
                    if action.streamed:
                        await self._open_stream(action)
                else:
                    self.outcome = action.outcome
        if self.outcome == "cut":
            # The upstream's bytes are incomplete, so the connection is cut before any further byte.
            if self._request.transport is not None:
                self._request.transport.abort()
            raise ConnectionResetError("the upstream broke off its answer")
        if self._stream is not None:
            await self._stream.write_eof()

    async def _open_stream(self, head: SendHead) -> None:
        stream = web.StreamResponse(status=head.status, headers=_served(self._headers(head)))
        await stream.prepare(self._request)
        self._stream = stream

    def _no_answer(self, message: str) -> web.Response:
        headers = (("content-type", "application/json"), *self._own_headers)
        request_id = header_value(self._own_headers, "x-request-id") or ""
        return make_response(500, headers, InternalError(message).body(request_id))

    def _headers(self, head: SendHead) -> Headers:
        """Merge the exchange's headers with the server's own. The exchange's headers take precedence, because a
        passed-through upstream response may have its own `x-request-id`."""
        given = {name for name, _ in head.headers}
        return (*head.headers, *((name, value) for name, value in self._own_headers if name not in given))

    async def _give_up(self) -> None:
        """Handle a bug in the exchange: store the response as `failed` if possible, and cut a stream that has begun."""
        try:
            await self._runner.abandon(self._exchange, CancelReason.SHUTTING_DOWN)
        except Exception:
            _log.error("abandon_failed", response_id=self._exchange.known.response_id, exc_info=True)
        self.outcome = "error"
        if self._stream is not None and self._request.transport is not None:
            self._request.transport.abort()


def make_response(status: int, headers: Headers, body: bytes) -> web.Response:
    """Build a complete response. If the headers contain `connection: close`, the connection closes after the
    response."""
    kept = _served((name, value) for name, value in headers if name != "connection")
    response = web.Response(status=status, headers=kept, body=body or None)
    if any(name == "connection" and value == "close" for name, value in headers):
        response.force_close()
    return response


def _served(headers: Iterable[tuple[str, str]]) -> CIMultiDict[str]:
    """Add a `server` header without versions. aiohttp would otherwise send its own version and Python's."""
    return CIMultiDict((*headers, SERVER))


async def send_stream(request: web.BaseRequest, status: int, headers: Headers, parts: BodyStream) -> web.StreamResponse:
    """Send a response in chunks. When the client disconnects, this function closes `parts` immediately.

    If `parts` raises an error, the server cuts the client's stream, so that the stream does not look complete.
    """
    response = web.StreamResponse(status=status, headers=_served(headers))
    async with aclosing(parts):
        await response.prepare(request)
        try:
            async for part in parts:
                await response.write(part)
        except AnswerCut:
            raise
        except Exception as error:
            if not isinstance(error, ConnectionError):
                _log.error("stream_failed", exc_info=True)
            raise ConnectionResetError("the stream was cut") from error
    await response.write_eof()
    return response


def _waits_for_client(request: web.BaseRequest) -> bool:
    """Whether bytes for the client of this request wait in the process, because the client does not read them."""
    transport = request.transport
    return transport is not None and transport.get_write_buffer_size() > transport.get_write_buffer_limits()[0]
