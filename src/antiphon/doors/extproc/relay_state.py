"""Decides, without IO, which messages of one relayed exchange the sidecar sends to Envoy, and when.

This module has the rules about the answers that Envoy accepts, and computes deadlines. `relay.py` waits, sends and runs
timers. `wire.py` encodes messages. `engine/exchange/response_exchange.py` decides the content of the response.

Rules, verified against Envoy 1.40.0:

- The sidecar sends the translated request in two steps: the answer to the request headers, with the exact length, and
  then the body. `stream.py` does not relay a request with trailers.
- The sidecar may send no body chunk before the upstream's first body chunk, because Envoy would reset the stream. The
  answer to the response headers also waits for that chunk, so an early failure still gets its HTTP status.
- If the upstream's response has no body, Envoy accepts a body only inside the answer to the response headers. If the
  upstream's response has trailers but no body, Envoy accepts a body only as an immediate response. A response with
  trailers ends with the answer to the trailers instead of `end_of_stream`.
- An event stream that is complete before the upstream's end (after `[DONE]`) is sent immediately. The sidecar ends the
  stream when the upstream's body ends, because an earlier end would make Envoy drop the upstream's connection.
- After `[DONE]` the sidecar waits only for the end of the upstream's body, and at most `end_seconds`.
- After the upstream's first chunk the sidecar may send chunks at any time. The sidecar sends keep-alive comments, and
  ends the stream when the upstream is silent for too long.
- If the upstream breaks off, Envoy cuts the client's stream, and the sidecar sees only the ext_proc stream's end.

Invariant: no function waits. `outgoing` holds the next messages for Envoy, in order, and `rest` yields further ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from antiphon.config.limits import TimeoutSettings
from antiphon.doors.extproc import wire
from antiphon.doors.extproc.answers import (
    PART,
    Accounting,
    Inflate,
    decoder_for,
    final_metadata,
    head_metadata,
    in_parts,
    refusal_message,
    running_metadata,
    whole_answer,
    with_request_id,
)
from antiphon.doors.extproc.message_queues import Outbox
from antiphon.doors.extproc.opening import ClientRequest, ProtocolError
from antiphon.doors.extproc.received import MessageKind, Received
from antiphon.engine.exchange.response_exchange import ResponseExchange
from antiphon.engine.exchange.states import FOREVER
from antiphon.engine.ports.actions import (
    CallUpstream,
    CancelReason,
    Finish,
    FollowResponse,
    OwnAction,
    RunTools,
    SendBody,
    SendHead,
    UpstreamRequest,
)
from antiphon.errors import ApiError
from antiphon.translation.answer.upstream_errors import map_transport_error
from antiphon.types.transport import (
    BACKEND_HEADER,
    OWN_JSON,
    OWN_STREAM,
    Headers,
    UpstreamError,
    UpstreamFault,
    header_value,
)

# Module constants are faster than lookups in the enumeration class for each message.
_RESPONSE_BODY: Final = MessageKind.RESPONSE_BODY
_RESPONSE_HEADERS: Final = MessageKind.RESPONSE_HEADERS
_RESPONSE_TRAILERS: Final = MessageKind.RESPONSE_TRAILERS

# While a model writes, its stream arrives in chunks smaller than this.
_LARGE: Final = 4 * 1024
# The minimum number of unread bytes at which Envoy stops reading from the upstream: a flow-control window and a buffer.
_FILLS: Final = 128 * 1024
# Without this request header, which describes how the client reached Envoy, Envoy finds no route (404).
_ENVOYS_OWN: Final = "x-forwarded-proto"
# The error messages for responses that Envoy made itself, by status.
_SAID: Final = {
    401: ("The request's credentials were not accepted.", "invalid_api_key"),
    403: ("The request is not allowed.", "permission_denied"),
    408: ("The request was not sent completely in time.", "request_timeout"),
    429: ("There were too many requests, or too many tokens.", "rate_limit_exceeded"),
}


class RelayState:
    """The state of one relayed exchange, or of one that is refused before its model call. All times are monotonic.

    The driver (`relay.py`) sends `outgoing` and then `rest` after each method call that may add messages to them. If
    `due_changed` is set, the driver calls `next_due` again.
    """

    __slots__ = (
        "_accounting",
        "_bodiless",
        "_body_begun",
        "_close_at",
        "_closing",
        "_decoder",
        "_end",
        "_end_seconds",
        "_exchange",
        "_first",
        "_given",
        "_head",
        "_head_answered",
        "_headed",
        "_heard",
        "_keepalive",
        "_record_at",
        "_request",
        "_sent",
        "_timeouts",
        "_told_at",
        "_tries",
        "_upstream_headers",
        "_waiting",
        "cut",
        "due_changed",
        "finish",
        "finished",
        "outgoing",
        "rest",
    )

    def __init__(
        self,
        exchange: ResponseExchange,
        request: ClientRequest,
        timeouts: TimeoutSettings,
        keepalive: float,
        end_seconds: float,
        accounting: Accounting,
    ) -> None:
        self._accounting = accounting
        self._exchange = exchange
        self._request = request
        self._timeouts = timeouts
        self._keepalive = keepalive
        self._end_seconds = end_seconds
        # An action that `say` could not perform; the next `answer` returns it.
        self._first: CallUpstream | OwnAction | None = None
        self.outgoing: list[bytes] = []
        """The messages that the driver must send, in order."""
        self.rest: Iterator[bytes] | None = None
        """The messages of a large body, to send after `outgoing`. The iterator builds each message on demand."""
        self.due_changed = False
        """Whether `next_due` may return an earlier time than before."""
        self.finished = False
        """Whether the response is complete once `outgoing` and `rest` are sent."""
        self.cut = ""
        """The reason to break the client's stream off after `outgoing`. The text is empty without such a reason."""
        # The output of the exchange for the client.
        self._head: SendHead | None = None
        self._waiting: list[bytes] = []
        self.finish: Finish | None = None
        # The state of the upstream's response, as Envoy has delivered it.
        self._upstream_headers: Headers = ()
        self._headed = False
        self._bodiless = False
        self._body_begun = False
        self._end: MessageKind | None = None
        self._decoder: Inflate | None = None
        # The answers that were sent to Envoy.
        self._head_answered = False
        self._closing = False
        # `_heard` is the time of the upstream's last byte, and `_sent` the time of the last byte for the client.
        self._heard: float
        self._sent: float
        self._given = 0
        # The number of upstreams that Envoy may try one after another.
        self._tries = 1
        # `_told_at` is the next time to call `receive_time`, and `_record_at` the time of the next token record.
        # `_close_at` is the time to end a complete stream whose upstream has not ended.
        self._told_at: float
        self._close_at: float
        self._record_at: float

    @property
    def reason_of_the_end(self) -> CancelReason:
        """The side that ended Envoy's stream early. If the upstream fails before its response head, the failure arrives
        as Envoy's own response. After the head, a client that leaves looks like an upstream that breaks off."""
        return CancelReason.CONNECTION_ENDED if self._headed and self._end is None else CancelReason.CLIENT_GONE

    def next_action(self) -> CallUpstream | OwnAction | None:
        """Record the exchange's output for the client. Returns the first action for the runner, or None."""
        exchange = self._exchange
        while (action := exchange.next_action()) is not None:
            if isinstance(action, SendBody):
                self._waiting.append(action.data)
            elif isinstance(action, SendHead):
                self._head = action
            elif isinstance(action, Finish):
                self.finish = action
            else:
                assert not isinstance(action, FollowResponse | RunTools), (
                    "relay mode serves only requests with exactly one model call"
                )
                return action
        return None

    def answer_at_once(self) -> None:
        """Prepare a complete response that needs no model call."""
        head, finish = self._head, self.finish
        assert head is not None and finish is not None
        self.finished = True
        body = self._take_waiting()
        told = final_metadata(self._exchange.known.response_id, finish, self._accounting)
        headers = with_request_id(head.headers, self._request.request_id)
        self.rest = whole_answer(head.status, headers, body, head_metadata(self._exchange.known.model), told)

    # Messages towards the upstream.

    def forward(self, call: UpstreamRequest, now: float) -> None:
        """Prepare the translated request for Envoy. Client headers that the exchange did not select are removed."""
        body = call.body
        headers = (
            (":method", call.method),
            (":path", "/v1" + call.path),
            *call.headers,
            ("content-length", str(len(body))),
            (BACKEND_HEADER, call.upstream),
        )
        named = dict(self._request.headers)
        for name, _ in headers:
            named.pop(name, None)
        remove = tuple([name for name in named if name[:1] != ":" and name != _ENVOYS_OWN])
        self.outgoing.append(wire.request_head(headers, remove, head_metadata(call.model)))
        if len(body) <= PART:
            self.outgoing.append(wire.request_body(body, True))
        else:
            self.rest = (wire.request_body(part, last) for part, last in in_parts(body))
        self._tries = call.tries
        self.hear(now)

    def hear(self, now: float) -> None:
        """Start the upstream's timeout at `now`, because the request was sent."""
        self._heard = now
        self._told_at = self._exchange.receive_time(now)

    # Messages from the upstream.

    def receive(self, received: Received, now: float) -> bool:
        """Process a message from Envoy. Returns True when the upstream floods the sidecar. In that case other streams
        should run before the output is sent. Envoy slows the upstream down, because the queue is bounded."""
        self._heard = now
        if now >= self._told_at:
            # An upstream that never pauses leaves no silence, so `pass_time` is never called for it.
            self._told_at = self._exchange.receive_time(now)
        kind = received.kind
        floods = False
        if kind is _RESPONSE_BODY:
            self._body_begun = True
            data = received.body
            if data:
                exchange, decoder = self._exchange, self._decoder
                if decoder is not None:
                    data = decoder.feed(data)
                exchange.receive_upstream_data(data)
                floods = len(data) >= _LARGE and exchange.floods
            if received.end:
                self._upstream_ended(kind)
        elif kind is _RESPONSE_HEADERS:
            self._take_head(received)
        elif kind is _RESPONSE_TRAILERS:
            self._upstream_ended(kind)
        # A second `end_of_stream` of the request, which some Envoy versions send, is ignored.
        return floods

    def _take_head(self, received: Received) -> None:
        headers = received.headers
        self._upstream_headers = headers
        self._decoder = decoder_for(header_value(headers, "content-encoding"))
        self._exchange.receive_upstream_head(_status_of(headers), headers)
        self._told_at = self._exchange.receive_time(self._heard)
        if received.end:
            self._bodiless = True
            self._decoder = None
            self._upstream_ended(received.kind)
        else:
            # From the head on, `timeouts.idle` applies instead of `timeouts.head`.
            self._headed = True
            self.due_changed = True

    def _upstream_ended(self, how: MessageKind) -> None:
        self._end = how
        error = None
        decoder = self._decoder
        if decoder is not None:
            decoder.end()
            if decoder.fault:
                error = UpstreamError(UpstreamFault.CUT, decoder.fault)
        self._exchange.receive_upstream_end(error)

    # Messages towards the client.

    def answer(self, now: float) -> CallUpstream | OwnAction | None:
        """Prepare the output for the client, as far as Envoy accepts it at this point. Returns an action that the
        driver must perform first, or None. After the action the driver calls `answer` again."""
        action = self._first
        if action is not None:
            self._first = None
            return action
        action = self.next_action()
        if action is not None:
            return action
        if self.finished:
            return None
        if self._closing:
            if self._end is not None or now >= self._close_at:
                self._close()
            return None
        head = self._head
        if head is None:
            return None
        if not self._head_answered:
            if not self._body_begun:
                if self.finish is not None:
                    self._answer_without_body(head, self.finish)
                return None
            self._head_answered = True
            headers, removed = self._response_headers(head)
            self.outgoing.append(wire.response_head(headers, removed))
            self._sent = now
            self._record_at = now + self._accounting.record_seconds
            if head.streamed:
                # A stream that has begun needs keep-alives for its client.
                self.due_changed = True
        if self.finish is not None:
            self._answer_to_the_end(head, self.finish, now)
        elif self._waiting:
            body = self._take_waiting()
            self._given += len(body)
            self._sent = now
            told = None
            if now >= self._record_at:
                self._record_at = now + self._accounting.record_seconds
                told = running_metadata(self._exchange.known.model, self._exchange.estimated_usage)
            self.outgoing.append(wire.response_body(body, False, told))
        return None

    def say(self, outbox: Outbox, now: float) -> bool:
        """Run `answer` and send its output. Returns False if the driver must wait and then call `answer` again."""
        action = self.answer(now)
        if action is not None:
            self._first = action
            return False
        if self.cut or self.rest is not None:
            return False
        return not self.outgoing or outbox.send_now(self.outgoing)

    def _answer_without_body(self, head: SendHead, finish: Finish) -> None:
        """Prepare the complete response of an exchange whose upstream sent no body chunk."""
        self.finished = True
        if finish.outcome == "cut":
            # The upstream sent only a head, in passthrough mode. The client, which has received nothing, gets an error.
            silence = map_transport_error(
                UpstreamError(UpstreamFault.TIMED_OUT, "the upstream sent nothing after the head")
            )
            self.outgoing.append(refusal_message(silence, self._request.request_id))
            return
        body = self._take_waiting()
        told = final_metadata(self._exchange.known.response_id, finish, self._accounting)
        if self._bodiless:
            headers, removed = self._response_headers(head)
            self.outgoing.append(wire.response_replaced(headers, removed, body, told))
        else:
            headers = with_request_id(head.headers, self._request.request_id)
            is_json = header_value(headers, "content-type") == "application/json"
            details = f"{OWN_JSON if is_json else OWN_STREAM}{finish.outcome}"
            self.outgoing.append(wire.immediate(head.status, headers, body, details, told))

    def _answer_to_the_end(self, head: SendHead, finish: Finish, now: float) -> None:
        body = self._take_waiting()
        if finish.outcome == "cut":
            self.finished = True
            self.cut = "the upstream stopped sending"
            if body:
                self.outgoing.append(wire.response_body(body, False))
            return
        told = final_metadata(self._exchange.known.response_id, finish, self._accounting)
        if self._end is None and head.streamed and finish.outcome in ("completed", "incomplete"):
            self._closing = True
            self._close_at = now + self._end_seconds
            self.due_changed = True
            self.outgoing.append(wire.response_body(body, False, told))
            return
        self.finished = True
        trailers = self._end is _RESPONSE_TRAILERS
        if len(body) <= PART:
            self.outgoing.append(wire.response_body(body, not trailers, told))
            if trailers:
                self.outgoing.append(wire.response_trailers())
        else:
            self.rest = _response_parts(body, told, trailers)

    def _close(self) -> None:
        """End a stream whose chunks were all sent. If the upstream sent trailers, the answer to the trailers ends the
        stream."""
        self.finished = True
        trailers = self._end is _RESPONSE_TRAILERS
        self.outgoing.append(wire.response_trailers() if trailers else wire.response_body(b"", True))

    def _take_waiting(self) -> bytes:
        waiting = self._waiting
        body = waiting[0] if len(waiting) == 1 else b"".join(waiting)
        waiting.clear()
        return body

    def _response_headers(self, head: SendHead) -> tuple[Headers, tuple[str, ...]]:
        """Return the headers to set in the response head, and the names of the upstream's headers to remove."""
        headers, upstream = with_request_id(head.headers, self._request.request_id), self._upstream_headers
        named = dict(upstream)
        for name, _ in headers:
            named.pop(name, None)
        raw = head.raw
        # The other headers describe the upstream or a rewritten body, or contain a secret.
        removed = tuple([name for name in named if name[:1] != ":"])
        if raw:
            # An unchanged header must not be set, because Envoy would keep only one of several headers with the same
            # name.
            headers = tuple([pair for pair in headers if pair not in upstream])
        return ((":status", str(head.status)), *headers), removed

    # Methods for silent phases of the stream.

    def next_due(self) -> float:
        """Return the time at which the driver must call `pass_time`, unless a message arrives earlier."""
        if self.finished:
            return FOREVER
        if self._closing:
            return self._close_at
        due = min(self._heard + self._upstream_limit(), self._told_at)
        return min(due, self._sent + self._keepalive) if self._keeps_alive() else due

    def pass_time(self, now: float) -> None:
        """Handle a deadline that passed without a message. After that, `answer` prepares the output."""
        if self._closing or self.finished:
            return
        limit = self._upstream_limit()
        if now >= self._told_at:
            self._told_at = self._exchange.receive_time(now)
        elif now >= self._heard + limit:
            self._exchange.receive_upstream_end(self._silence(limit))
        else:
            self._sent = now
            self._exchange.receive_silence()

    def _upstream_limit(self) -> float:
        """The maximum silence in seconds. Before the response head, it is multiplied by the number of upstreams."""
        return self._timeouts.idle if self._headed else self._timeouts.head * self._tries

    def _keeps_alive(self) -> bool:
        head = self._head
        return self._head_answered and not self._closing and head is not None and head.streamed and not head.raw

    def _silence(self, limit: float) -> UpstreamError:
        """Return the error for a silent upstream. The client may be the cause: if the client does not read, Envoy stops
        reading from the upstream without a message to the sidecar. Envoy does so only after its buffers are full."""
        said = f"the upstream sent no byte for {limit:g} seconds (timeouts.{'idle' if self._headed else 'head'})"
        if self._given < _FILLS:
            return UpstreamError(UpstreamFault.TIMED_OUT, said)
        more = f"after {self._given} bytes of the stream. Either the upstream is silent, or the client does not read"
        return UpstreamError(UpstreamFault.HELD, f"{said} {more}")


def _response_parts(body: bytes, told: wire.Metadata, trailers: bool) -> Iterator[bytes]:
    for part, last in in_parts(body):
        yield wire.response_body(part, last and not trailers, told if last else None)
    if trailers:
        yield wire.response_trailers()


def _status_of(headers: Headers) -> int:
    """Return the status of a response head. Raises `ProtocolError`."""
    status = header_value(headers, ":status") or ""
    if len(status) != 3 or not (status.isascii() and status.isdecimal()):
        raise ProtocolError("a response head has no :status of three digits: the peer is not Envoy")
    return int(status)


def local_reply(received: Received, request_id: str) -> tuple[Headers, bytes]:
    """Return headers and body of the error object that replaces Envoy's own response with the head `received`."""
    status = _status_of(received.headers)
    said, code = _SAID.get(status, ("The request could not be served.", None))
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    body = ApiError(said, status=status, type=kind, code=code).body(request_id)
    plain = (("content-type", "application/json"), ("content-length", str(len(body))))
    return ((":status", str(status)), *with_request_id(plain, request_id)), body
