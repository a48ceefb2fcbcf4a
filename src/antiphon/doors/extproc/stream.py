"""Serves one ext_proc stream, which is one client request: reads the whole request, then chooses relay, drive or a
local answer.

This module reads the request and handles every failure. `opening.py` reads the first message, `relay.py` relays a model
call, and `immediate_response.py` sends local answers. `wire.py` encodes messages, and `server.py` is the gRPC service.

All rules in this package about Envoy's behaviour were verified with Envoy 1.40.0 in FULL_DUPLEX_STREAMED mode. The
rules of this module:

- The sidecar sends no answer before it has the whole request. The first answer decides whether Envoy makes the model
  call (relay) or this process answers (local). Only an early refusal is sent before the request's end, as an immediate
  response.

- If a handler ended without an answer, Envoy would send the untranslated request upstream, even an incomplete one. So
  `serve_stream` answers or raises, and its caller aborts the call after an exception.

- A request that ended with trailers is never relayed.

- Envoy sends its own local replies to the sidecar as response messages, even before the sidecar has answered the
  request.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from urllib.parse import parse_qsl

import structlog

from antiphon.api.http import AnswerCut, ApiRequest
from antiphon.api.router import is_unhandled
from antiphon.doors.context import DoorContext
from antiphon.doors.extproc.answers import Accounting, refusal_message, with_request_id
from antiphon.doors.extproc.immediate_response import Ahead, Drive, answer_streamed, answer_whole
from antiphon.doors.extproc.message_queues import PeerLeft
from antiphon.doors.extproc.opening import ClientRequest, ProtocolError, caller_of, is_refused_before, read_opening
from antiphon.doors.extproc.peer import Peer, StreamCut
from antiphon.doors.extproc.received import MessageKind, Received
from antiphon.doors.extproc.relay import Relay, translate_local_reply
from antiphon.doors.extproc.transport import MessageStream
from antiphon.doors.request_body import WholeBody, decoded, too_slow
from antiphon.engine.exchange.budget import Hold
from antiphon.engine.exchange.failure import Failure, refusal
from antiphon.engine.ports.actions import CancelReason, Finish, RequestHead
from antiphon.engine.ports.callers import NO_CALLER, Caller
from antiphon.engine.waiting import to_the_end
from antiphon.errors import ApiError, InternalError
from antiphon.observability.observation import Observation
from antiphon.observability.outcome import caller_fields, write_outcome
from antiphon.types.transport import Headers, header_value

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ProcessorOptions:
    """Options of the ext_proc server for all streams.

    If `always_drive` is True, this process makes every model call. If `always_drive` is False, Envoy makes the model
    call of a request that needs only one call. `end_seconds` is how long the sidecar waits for the end of an upstream's
    body after its `[DONE]`.
    """

    always_drive: bool
    ahead: Ahead
    accounting: Accounting
    end_seconds: float = 1.0


async def serve_stream(
    context: DoorContext, stream: MessageStream, options: ProcessorOptions, trace: Headers = ()
) -> None:
    """Serve one stream to its end. The caller must abort the gRPC call after any exception. `trace` is the trace
    context of Envoy's span, which is a child of the client's span. If `trace` is empty, the request's headers provide
    the trace context.

    Raises `ProtocolError` when Envoy's configuration cannot work, `PeerLeft` when Envoy ended the stream early, and
    `StreamCut` when the client's stream must break off.
    """
    peer = Peer(stream)
    opening = await peer.receive()
    if is_refused_before(opening):
        await translate_local_reply(peer, opening, header_value(opening.headers, "x-request-id") or "")
        await peer.let_end()
        return
    request = read_opening(context, opening, trace)
    caller = NO_CALLER
    try:
        caller = caller_of(context, request)
        owner = caller.owner
        with (
            context.admission.admit(owner, "response" if request.is_exchange else "request"),
            context.bodies.hold(owner) as hold,
        ):
            await _serve(context, peer, request, caller, options, hold, ended=opening.end)
    except ApiError as error:
        if peer.answered:
            raise
        # The request was refused before its exchange existed, so this function writes its log line.
        operation = context.router.operation_of(request.method, request.path)
        texts = (request.path, refusal(error), error.message)
        request.path, refused, message = context.refused_texts(request.headers, *texts)
        context.telemetry.metrics.request_finished(operation, error.status, refused.fault)
        context.telemetry.refused("extproc", request.request_id, caller, request.path, refused, message)
        _write_line(request, caller, refused, 0.0)
        await peer.send(refusal_message(error, request.request_id))
    except (ProtocolError, PeerLeft, StreamCut):
        raise
    except Exception as bug:
        if peer.answered:
            raise
        _log.error("request_failed", request_id=request.request_id, error=type(bug).__name__, exc_info=True)
        failure = InternalError("The server had an error while processing your request.")
        await peer.send(refusal_message(failure, request.request_id))
    await peer.let_end()


def _write_line(request: ClientRequest, caller: Caller, failure: Failure, seconds: float) -> None:
    known = {"request_id": request.request_id, "door": "extproc", "method": request.method[:32]}
    known["path"] = request.path[:256]
    known |= caller_fields(caller)
    write_outcome(_log, "request", failure, seconds, known)


async def _serve(
    context: DoorContext,
    peer: Peer,
    request: ClientRequest,
    caller: Caller,
    options: ProcessorOptions,
    hold: Hold,
    *,
    ended: bool,
) -> None:
    if request.is_exchange:
        observed = context.telemetry.observe("relay", request.request_id, caller, request.trace or request.headers)
        try:
            if ended or await _read_body(context, peer, request, hold):
                await _serve_exchange(context, peer, request, caller, options, hold, observed)
        finally:
            # A request that was not read completely gets no telemetry.
            observed.drop()
        return
    if not ended and not await _read_body(context, peer, request, hold):
        return
    # The generated configuration routes the paths of such requests to the sidecar's HTTP port. Only an Envoy with a
    # different configuration sends such requests to the ext_proc server.
    pairs = tuple(parse_qsl(request.query, keep_blank_values=True))
    api_request = ApiRequest(
        request.method,
        request.path,
        pairs,
        request.headers,
        request.body,
        caller.owner,
        request.request_id,
        access=caller.access,
        caller=caller,
    )
    await peer.begin()
    started = time.perf_counter()
    answer = await context.router.handle(api_request)
    headers, failure = with_request_id(answer.headers, request.request_id), answer.failure
    try:
        if answer.stream is not None:
            await answer_streamed(peer, answer.status, headers, answer.stream)
        else:
            await answer_whole(peer, answer.status, headers, answer.body)
    except AnswerCut as cut:
        failure = cut.failure
        raise StreamCut(failure.cause) from None
    finally:
        if failure is not None:
            texts = (request.path, failure, failure.cause)
            request.path, failure, _ = context.refused_texts(request.headers, *texts)
            _write_line(request, caller, failure, time.perf_counter() - started)
            if is_unhandled(failure):
                told = (request.request_id, caller, request.path, failure, failure.cause)
                context.telemetry.refused("extproc", *told)


async def _read_body(context: DoorContext, peer: Peer, request: ClientRequest, hold: Hold) -> bool:
    """Read the request to its end and decompress its body. Returns False when Envoy has answered the client itself
    before the request's end."""
    body = WholeBody(request.headers, hold, context.limits.request_body_bytes)
    # Most requests have arrived completely at this point, and reading them needs no timeout.
    last = None
    while last is None and (here := peer.receive_now()) is not None:
        last = _last(here, body)
    if last is None:
        try:
            async with asyncio.timeout(context.timeouts.request):
                while last is None:
                    last = _last(await peer.receive(), body)
        except TimeoutError:
            raise too_slow(context.timeouts.request) from None
    if last.kind is MessageKind.RESPONSE_HEADERS:
        await translate_local_reply(peer, last, request.request_id)
        return False
    if last.kind is MessageKind.REQUEST_TRAILERS:
        request.trailers = True
    elif last.kind is not MessageKind.REQUEST_BODY:
        raise ProtocolError(f"{last.kind.value} came before the request's end")
    request.body = await decoded(body)
    return True


def _last(received: Received, body: WholeBody) -> Received | None:
    """Add the message's bytes to the body. Returns the message that ends the request, or None when the request has
    further messages."""
    if received.kind is not MessageKind.REQUEST_BODY:
        return received
    body.add(received.body)
    return received if received.end else None


async def _serve_exchange(
    context: DoorContext,
    peer: Peer,
    request: ClientRequest,
    caller: Caller,
    options: ProcessorOptions,
    hold: Hold,
    observed: Observation,
) -> None:
    exchange = context.new_exchange()
    exchange.hold = hold
    observed.watch(exchange)
    answer: Drive | Relay | None = None
    try:
        asked = (request.method, request.path, request.headers, caller.owner, request.request_id)
        head = RequestHead(*asked, caller.access, caller)
        body, request.body = request.body, b""
        await context.runner.receive(exchange, head, body)
        del body
        # If the route may retry, Envoy sends the body twice after request trailers. The upstream would read the second
        # copy as the next request on its connection, which may belong to another client.
        if options.always_drive or exchange.needs_drive or request.trailers:
            await peer.begin()
            answer = Drive(context.runner, peer, exchange, request.request_id, options.ahead, options.accounting)
        else:
            answer = Relay(
                context.runner, peer, exchange, request, context.timeouts, options.end_seconds, options.accounting
            )
        await answer.run()
    finally:
        finish: Finish | None = None
        try:
            if not exchange.done and not context.admission.closed:
                finish = await context.runner.go_on(exchange, lambda: context.admission.closed)
            if not exchange.done:
                # The client left, Envoy cut the stream, or an error occurred. The response is stored as failed.
                reason = CancelReason.CLIENT_GONE if answer is None else answer.reason_of_the_end
                if context.admission.closed:
                    reason = CancelReason.SHUTTING_DOWN
                # When a client leaves, the stream of messages ends first, and a cancellation follows. `to_the_end`
                # completes the write to the store in spite of the cancellation.
                await to_the_end(context.runner.abandon(exchange, reason))
        finally:
            if answer is not None and answer.finish is not None:
                finish = answer.finish
            outcome = finish.outcome if finish is not None else "cancelled"
            if answer is not None:
                observed.door = answer.door
            observed.end(exchange, outcome)
