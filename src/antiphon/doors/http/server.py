"""Implements the HTTP server: the public port, and the sidecar's private port behind Envoy.

This module listens, controls access, finds a request's owner, applies limits, drains, and writes one log line per
request. `api/router.py` finds the endpoint of a path, and `exchange.py` writes the response of an exchange.

Invariants: if the head of a request shows that the server must refuse the request, the server does not read the body.
Every response has `x-request-id`, and every error response has OpenAI's error object. The server removes headers that
only a trusted gateway may set, unless the request came over a Unix socket or has the shared secret. The server reads an
upload only as fast as its handler consumes it.
"""

from __future__ import annotations

import asyncio
import hmac
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial

import structlog
from aiohttp import web

from antiphon.api.http import AnswerCut, ApiRequest, ApiResponse, error_response
from antiphon.api.router import METRICS_PATH, Router, is_unhandled, unknown_url
from antiphon.doors.context import DoorContext, Kind
from antiphon.doors.http.connection import DoorServer, is_promised
from antiphon.doors.http.console import OPERATION, OWNER, TO_CONSOLE, ConsoleAccess, ConsoleAt, without_session
from antiphon.doors.http.exchange import ExchangeAnswer, make_response, send_stream
from antiphon.doors.http.incoming_body import CLOSE, UPLOAD_BYTES, BodyKind, BodyLimit, body_pieces, read_whole
from antiphon.doors.http.listener import Listener
from antiphon.doors.http.path import Query, split_target
from antiphon.doors.http.websocket import WebSocketConnection, check_handshake, is_upgrade
from antiphon.doors.listening import TlsFiles
from antiphon.engine.exchange.budget import Hold
from antiphon.engine.exchange.failure import Failure, refusal
from antiphon.engine.exchange.phase import RESPONSES_PATH
from antiphon.engine.exchange.response_exchange import ResponseExchange
from antiphon.engine.ports.actions import CancelReason, RequestHead
from antiphon.engine.ports.callers import NO_CALLER, Caller
from antiphon.engine.running.connection_memory import SocketMemory
from antiphon.engine.waiting import to_the_end
from antiphon.errors import ApiError, InternalError, InvalidRequest, NotFound, Unauthorized
from antiphon.ids import new_id
from antiphon.observability.metric_names import SOCKETS
from antiphon.observability.observation import Observation
from antiphon.observability.outcome import caller_fields, write_outcome
from antiphon.types.transport import (
    SECRET_HEADER,
    Headers,
    cors_headers,
    origin_allowed,
    preflight_headers,
    sent_request_id,
    with_own_request_id,
)

_PRIVATE_PREFIX = "x-antiphon-"
GATEWAY_LEAVES_PATH = "/gateway/leaves"
"""The path on the private port that a draining Envoy calls to close idle WebSockets. Envoy cannot see which of its
WebSockets are idle."""
_QUIET = frozenset({"/health", "/ready", "/metrics", GATEWAY_LEAVES_PATH})
_CLIENT_GONE = 499
_UNAVAILABLE = 503

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _RequestRecord:
    """Collects the facts about one request for its log line."""

    id: str
    method: str
    path: str = ""
    headers: Headers = ()
    trusted: bool = False
    caller: Caller = NO_CALLER
    started: float = field(default_factory=time.perf_counter)
    status: int = _CLIENT_GONE
    failure: Failure | None = None
    response: tuple[Observation, ResponseExchange] | None = None
    """The exchange, if the request creates a response; else None. A request that creates a response gets the log line
    of a response instead of the log line of a request."""
    outcome: str = ""
    added: Headers = ()
    """Headers that the server adds to every response."""
    operation: str = ""
    """The operation in metrics, for a request that the router does not know."""


class HttpDoor:
    """One listening HTTP server.

    `private` marks the sidecar's private port, which requires the shared secret on TCP. `drive_exchanges` is True if
    this server handles `POST /v1/responses`. Behind Envoy `drive_exchanges` is False, because `POST /v1/responses`
    arrives through ext_proc. `console` says whether this listener serves the console.
    """

    def __init__(
        self,
        context: DoorContext,
        *,
        private: bool = False,
        drive_exchanges: bool = True,
        console: ConsoleAt = ConsoleAt.NOWHERE,
    ) -> None:
        self._context = context
        self._console = ConsoleAccess(context, console)
        self._private = private
        self._drive_exchanges = drive_exchanges
        self._listener: Listener | None = None
        self._server: DoorServer | None = None
        self._running: set[asyncio.Task[object]] = set()
        self._closing = False
        # Maps each open WebSocket to the peer's address.
        self._sockets: dict[WebSocketConnection, str] = {}
        self.socket_memory = SocketMemory(context.websocket.total_bytes)
        """The memory budget that all WebSockets share."""
        context.telemetry.metrics.read(SOCKETS, self._count_sockets)

    async def start(
        self,
        address: str,
        mode: int = 0o600,
        *,
        sockets: Sequence[socket.socket] = (),
        tls: TlsFiles | None = None,
    ) -> str:
        """Listen at `unix:PATH` with the file mode `mode`, or at `HOST:PORT`. TCP uses TLS if `tls` is set. Returns the
        bound address. Raises `ConfigError`.

        `sockets` are sockets that the parent process has already bound to the address, to share the port among workers.
        """
        server = DoorServer(
            self._handle,
            head_seconds=self._console.head_seconds,
            # A proxy keeps connections for an hour, and the proxy must close them before this server does.
            idle_seconds=3_630.0 if self._private else 120.0,
            send_seconds=self._context.timeouts.send,
            leaving=lambda: self._context.admission.leaving,
        )
        self._server = server
        self._listener = Listener(server, self._console.connections, closes_silent=self._console.is_separate)
        # An event stream of the console never ends by itself. So the server ends all open ones when the drain begins,
        # and again after the notice.
        for callbacks in (self._context.admission.on_leave, self._context.admission.on_close):
            callbacks.add(self._console.end_streams)
        return await self._listener.open(address, mode, sockets=sockets, tls=tls)

    async def drain(self, seconds: float, *, notice: float = 0.0, quiet: float | None = None) -> bool:
        """Drain the server: refuse new requests and wait for those in flight. Returns False when the drain takes longer
        than `seconds`. The server still answers health checks.

        During the first `notice` seconds the server still serves new requests, `/ready` fails, and every response has
        `connection: close`. A connection that is open after the notice may send one more request, because its client
        may not have seen `connection: close`. So the drain ends when the open connections have sent no byte for `quiet`
        seconds. `quiet` defaults to `notice`.
        """
        admission, server = self._context.admission, self._server
        quiet = notice if quiet is None else quiet
        if server is not None:
            # A client that does not read may use only half of the drain's time, so that other clients can finish.
            server.hurry(notice + (seconds - notice) / 2)
        if server is None or not quiet:
            return await admission.drain(seconds, notice)
        clock = asyncio.get_running_loop().time
        last = clock() + seconds
        admission.on_close.add(server.promise)
        drained = await admission.drain(seconds, notice)
        with suppress(TimeoutError):
            async with asyncio.timeout_at(last):
                await server.quiet(quiet)
        # Requests that arrived during the wait for quiet connections may still run.
        return drained and await admission.drained(max(0.0, last - clock()))

    def refuse(self) -> None:
        """Stop accepting connections. Open connections stay open, but event streams of the console end."""
        self._console.end_streams()
        if self._listener is not None:
            self._listener.refuse()

    async def aclose(self) -> None:
        """Stop listening and cancel the running requests. The responses of these requests are stored as failed."""
        self._closing = True
        if self._listener is None:
            return
        self._listener.refuse()
        while self._running:
            for task in self._running:
                task.cancel()
            await asyncio.wait(self._running)
        await self._listener.aclose()
        self._listener = None

    # The methods below serve one request.

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            return await self._serve(request)
        finally:
            self._running.discard(task)

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        """Serve one request of any kind and write its log line."""
        context = self._context
        headers = tuple((name.lower(), value) for name, value in request.headers.items())
        given = sent_request_id(headers)
        call = _RequestRecord(given or new_id("req"), request.method)
        call.headers = headers if given else with_own_request_id(headers, call.id)
        # On the private port, Envoy's CORS filter adds the CORS headers instead.
        origins = () if self._private else context.cors_origins
        call.added = (("x-request-id", call.id), *cors_headers(origins, request.headers.get("origin")))
        try:
            response = await self._answer(request, call)
            call.status = response.status
            if context.admission.closed and not is_promised(request):
                # A stream whose head was sent before the drain has no `connection: close`. The connection closes
                # anyway, because the next request on it would be refused.
                response.force_close()
            return response
        except AnswerCut as cut:
            call.status, call.failure = cut.failure.status, cut.failure
            raise
        except (asyncio.CancelledError, ConnectionError):
            raise
        except Exception as failure:
            if isinstance(failure, ApiError):
                error = failure
                call.failure = refusal(error)
                if call.response is None:
                    operation = call.operation or context.router.operation_of(call.method, call.path)
                    context.telemetry.metrics.request_finished(operation, error.status, call.failure.fault)
                    self._note_refusal(call, call.failure, error.message)
            else:
                _log.error("request_failed", request_id=call.id, error=type(failure).__name__, exc_info=True)
                error = InternalError("The server had an error while processing your request.")
            call.status = error.status
            answer = error_response(error, call.id)
            body = b"" if request.method == "HEAD" else answer.body
            return make_response(answer.status, (*answer.headers, *call.added), body)
        finally:
            self._write_log(call)

    async def _answer(self, request: web.BaseRequest, call: _RequestRecord) -> web.StreamResponse:
        call.path = request.raw_path.partition("?")[0]
        call.path, query = split_target(request.raw_path)
        if self._console.is_here(call.path) or self._console.is_separate:
            # Pages of other origins must not read the console, so it has no CORS headers.
            call.added = tuple(pair for pair in call.added if pair[0] == "x-request-id")
        elif (preflight := self._preflight(request, call)) is not None:
            return preflight
        self._check_peer(request, call)
        if self._console.takes(call.method, call.path, call.headers, trusted=call.trusted):
            return await self._serve_console(request, call, query)
        if call.path == RESPONSES_PATH and is_upgrade(request):
            return await self._serve_socket(request, call)
        router = self._context.router
        if call.path == GATEWAY_LEAVES_PATH and self._private and call.method == "POST":
            self.send_away(_peer_address(request))
            return make_response(204, call.added, b"")
        if call.path == METRICS_PATH and not call.trusted:
            # A client that is not the trusted gateway must not see the metrics.
            raise unknown_url(call.method, call.path)
        is_open = router.is_open(call.path)
        caller = call.caller = NO_CALLER if is_open else self._context.caller_of(call.path, call.headers)
        owner = caller.owner
        # Health checks and metrics need no admission, so the server answers them during a drain and at its limit.
        kind: Kind = "response" if Router.is_exchange(call.method, call.path) else "request"
        with (
            nullcontext() if is_open else self._context.admission.admit(owner, kind, promised=is_promised(request)),
            self._context.bodies.hold(owner) as hold,
        ):
            if Router.is_exchange(call.method, call.path):
                return await self._serve_exchange(request, call, caller, hold)
            asked = ApiRequest(
                *(call.method, call.path, query, _without_private(call.headers), b"", owner, call.id, None),
                *(caller.access, caller),
            )
            body: BodyKind = "none"
            if router.reads_body(call.method, call.path):
                body = "stream" if router.streams_body(call.method, call.path) else "whole"
            return await self._ask(request, call, asked, router.handle, hold, body, counts=not is_open)

    async def _serve_console(self, request: web.BaseRequest, call: _RequestRecord, query: Query) -> web.StreamResponse:
        """Serve a page of the console, or a response that the playground creates."""
        call.operation = OPERATION
        console, admission, bodies = self._console, self._context.admission, self._context.bodies
        # The pages get no private headers, so they get the owner and the client's address separately.
        named = self._context.owners.named_by_gateway(call.headers)
        headers = _without_private(call.headers)
        peer = console.client_address(call.headers, _peer_address(request))
        asked = ApiRequest(call.method, call.path, query, headers, request_id=call.id, caller=named, peer=peer)
        if console.redirects(call.method, call.path):
            return make_response(302, (*TO_CONSOLE, *call.added), b"")
        if (caller := await console.runs(asked)) is not None:
            call.caller, call.headers = caller, without_session(call.headers)
            place = admission.admit(caller.owner, "response", promised=is_promised(request))
            with place, bodies.hold(caller.owner) as hold:
                return await self._serve_exchange(request, call, caller, hold, RESPONSES_PATH)
        with admission.admit(OWNER, promised=is_promised(request)), bodies.hold(OWNER) as hold:
            handle, kind = partial(console.handle, _peer_address(request)), console.body_of(asked)
            return await self._ask(request, call, asked, handle, hold, kind, console.form_limit(asked, kind))

    async def _ask(
        self,
        request: web.BaseRequest,
        call: _RequestRecord,
        asked: ApiRequest,
        handle: Callable[[ApiRequest], Awaitable[ApiResponse]],
        hold: Hold,
        kind: BodyKind,
        limit: BodyLimit | None = None,
        *,
        counts: bool = True,
    ) -> web.StreamResponse:
        """Read the body, call the handler, and write its answer. `limit` has limits below those of the settings. If
        `counts` is True, the answer's bytes are charged to the memory budget `hold`."""
        pieces = None
        if kind == "stream":
            hold.add(UPLOAD_BYTES)
            size = limit.size if limit is not None else None
            pieces = body_pieces(request, call.headers, self._context.timeouts.request, size)
            asked = replace(asked, body_stream=pieces)
        elif kind == "whole":
            asked = replace(asked, body=await self._read_body(request, call, hold, limit))
        answer = await handle(asked)
        call.failure = answer.failure
        if answer.failure is not None:
            self._note_refusal(call, answer.failure, noted=is_unhandled(answer.failure))
        if call.method == "GET" and counts:
            # Data from the store counts as memory until the client has received it. Only GET responses count, because a
            # change has already taken effect and its response must be sent.
            hold.add(len(answer.body))
        if pieces is not None and not request.content.is_eof():
            # The connection must close, because the rest of the body would be read as the next request.
            answer = replace(answer, headers=(*answer.headers, *CLOSE))
        headers = (*answer.headers, *call.added)
        if answer.stream is not None:
            return await send_stream(request, answer.status, headers, answer.stream)
        return make_response(answer.status, headers, answer.body)

    def _note_refusal(self, call: _RequestRecord, failure: Failure, message: str = "", *, noted: bool = True) -> None:
        told = message or failure.cause
        call.path, call.failure, told = self._context.refused_texts(call.headers, call.path, failure, told)
        # The journal has no entries of requests for the console's pages.
        if noted and call.operation != OPERATION:
            self._context.telemetry.refused("http", call.id, call.caller, call.path, call.failure, told)

    def _preflight(self, request: web.BaseRequest, call: _RequestRecord) -> web.StreamResponse | None:
        """Return the response to a browser's CORS preflight request, which has no credentials. Returns None for other
        requests."""
        origin = request.headers.get("origin", "")
        asks = call.method == "OPTIONS" and "access-control-request-method" in request.headers
        if not asks or self._private or not origin_allowed(self._context.cors_origins, origin):
            return None
        return make_response(204, (("x-request-id", call.id), *preflight_headers(origin)), b"")

    def _check_peer(self, request: web.BaseRequest, call: _RequestRecord) -> None:
        """Check whether the peer is the trusted gateway. If the peer is not the gateway, remove the headers that only
        the gateway may set."""
        headers = call.headers
        self._check_single(request)
        assert self._listener is not None
        secret = self._context.secret
        call.trusted = self._listener.is_unix
        if not call.trusted and secret is not None:
            given = request.headers.get(SECRET_HEADER, "")
            call.trusted = hmac.compare_digest(given.encode("utf-8", "surrogateescape"), secret.encode())
            if not call.trusted and self._private and not self._context.router.is_open(call.path):
                told = "Only the gateway may use this port. Send the request to the gateway's address for clients."
                raise Unauthorized(told, code="missing_secret")
        if not call.trusted:
            forged = self._context.owners.header
            headers = tuple((name, value) for name, value in _without_private(headers) if name != forged or not forged)
        call.headers = headers

    def _check_single(self, request: web.BaseRequest) -> None:
        """Refuse a request that repeats a header with a credential, or the header that names the owner. If a header has
        two values, one program may read the first and another program the last."""
        for name in ("authorization", SECRET_HEADER, self._context.owners.header):
            if name and len(request.headers.getall(name, ())) > 1:
                raise InvalidRequest(f"The header {name} occurs more than once. Send it once.", code="duplicate_header")

    async def _serve_exchange(
        self, request: web.BaseRequest, call: _RequestRecord, caller: Caller, hold: Hold, path: str = ""
    ) -> web.StreamResponse:
        """Serve a request that creates a response. `path` is the path of the API if the request came on another
        path."""
        if not self._drive_exchanges and call.path == RESPONSES_PATH:
            told = "This port does not create responses. Send the request to the gateway's address for clients."
            raise NotFound(told, code="unknown_url")
        exchange = self._context.new_exchange()
        exchange.hold = hold
        observed = self._context.telemetry.observe("http", call.id, caller, call.headers)
        observed.started = call.started
        observed.watch(exchange)
        call.response, call.outcome = (observed, exchange), "cancelled"
        try:
            body = await self._read_body(request, call, hold)
            headers = _without_private(call.headers)
            api_path = path or call.path
            head = RequestHead(call.method, api_path, headers, caller.owner, call.id, caller.access, caller)
            try:
                await self._context.runner.receive(exchange, head, body)
            except asyncio.CancelledError:
                # The request may already have reserved its idempotency key.
                await to_the_end(self._context.runner.abandon(exchange, self._leaving()))
                raise
            del body
            answer = ExchangeAnswer(request, exchange, self._context.runner, call.added)
            try:
                return await answer.run(self._leaving)
            finally:
                call.outcome = answer.outcome
        except ApiError:
            call.outcome = "error"
            raise

    async def _serve_socket(self, request: web.BaseRequest, call: _RequestRecord) -> web.StreamResponse:
        """Serve a WebSocket. Each request on the WebSocket is admitted separately, so an idle WebSocket does not delay
        a drain."""
        check_handshake(request, self._context.websocket, len(self._sockets))
        caller = call.caller = self._context.owners.resolve(call.headers)
        with self._context.admission.admit(caller.owner):
            pass
        headers = _without_private(call.headers)
        head = RequestHead(call.method, call.path, headers, caller.owner, call.id, caller.access, caller)
        check_key = partial(self._context.owners.resolve, call.headers)
        connection = WebSocketConnection(self._context, head, caller, self._leaving, self.socket_memory, check_key)
        self._sockets[connection] = _peer_address(request)
        # The log line has status 101 however the connection ends, because the response was the upgrade.
        call.status = 101
        try:
            return await connection.run(request)
        finally:
            del self._sockets[connection]

    @property
    def sockets(self) -> tuple[WebSocketConnection, ...]:
        """The open WebSockets."""
        return tuple(self._sockets)

    def send_away(self, address: str | None = None) -> None:
        """Close the WebSockets from this peer address, or all WebSockets if `address` is None. An idle WebSocket closes
        immediately, and a busy one closes after its running response. Event streams of the console end."""
        self._console.end_streams(address)
        for connection, came_from in self._sockets.items():
            if address in (came_from, None):
                connection.send_away()

    def _count_sockets(self) -> dict[tuple[str, ...], float]:
        busy = sum(connection.busy for connection in self._sockets)
        return {("idle",): len(self._sockets) - busy, ("busy",): busy}

    def _leaving(self) -> CancelReason:
        return CancelReason.SHUTTING_DOWN if self._closing else CancelReason.CLIENT_GONE

    async def _read_body(
        self, request: web.BaseRequest, call: _RequestRecord, hold: Hold, limit: BodyLimit | None = None
    ) -> bytes:
        """Read the whole body. Raises `ApiError` when the body exceeds a limit of size, memory or time."""
        size, seconds = self._context.limits.request_body_bytes, self._context.timeouts.request
        limit = limit or BodyLimit(size, seconds)
        return await read_whole(request, call.headers, hold, min(limit.size, size), min(limit.seconds, seconds))

    def _write_log(self, call: _RequestRecord) -> None:
        if call.response is not None:
            observed, exchange = call.response
            observed.end(exchange, call.outcome, call.failure, path=call.path, status=call.status)
            return
        seconds = time.perf_counter() - call.started
        # The log reports failing readiness once, when it begins. So later probes get only a debug line.
        if call.path in _QUIET and (call.status < 400 or call.status == _UNAVAILABLE):
            _log.debug("request", door="http", path=call.path, status=call.status, seconds=round(seconds, 6))
            return
        known = {
            "door": "http",
            "request_id": call.id,
            "method": call.method[:32],
            "path": call.path[:256],
            "status": call.status,
            **caller_fields(call.caller),
        }
        write_outcome(_log, "request", call.failure, seconds, known)


def _peer_address(request: web.BaseRequest) -> str:
    """The host part of the peer's address. For a Unix socket the text is empty."""
    peer = request.transport.get_extra_info("peername") if request.transport is not None else None
    return str(peer[0]) if isinstance(peer, tuple) else ""


def _without_private(headers: Headers) -> Headers:
    return tuple((name, value) for name, value in headers if not name.startswith(_PRIVATE_PREFIX))
