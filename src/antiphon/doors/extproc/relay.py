"""One exchange whose model call Envoy makes: both directions are rewritten on one stream.

Lives here: which answers Envoy accepts when, and the timers of a relayed response. Not here: bytes (`wire.py`), and
every decision about the response (`engine/exchange/response_exchange.py`).

Rules kept here, verified against Envoy 1.40.0:

- The request goes out as a headers answer with the exact length and then its body. (One with trailers does not come
  here, see `stream.py`.)
- No response body part goes out before the upstream's first body part (Envoy resets the stream), and the answer to
  the response headers waits for it, so that an early failure still gets its HTTP status.
- A response without a body takes ours only inside the headers answer. One with trailers but without a body takes it
  only as an immediate response. One with trailers ends with the trailers answer instead of `end_of_stream`.
- An event stream that is complete before the upstream's end (after `[DONE]`) is sent at once but ended with the
  upstream: ending it first would make Envoy drop the upstream's connection.
- Of what follows, the end of the upstream's body alone is waited for, and that for `end_seconds` at most.
- After the first part anything may be sent at any time: keep-alive comments, and an end when the upstream is silent.
- An upstream that breaks off cuts the client's stream without asking us; all we see is the end of our own stream.
"""

from __future__ import annotations

import asyncio

from antiphon.config.limits import TimeoutSettings
from antiphon.doors.extproc import wire
from antiphon.doors.extproc.content_coding import Inflate, decoder_for
from antiphon.doors.extproc.idle_timer import Interludes
from antiphon.doors.extproc.immediate_response import answer_whole
from antiphon.doors.extproc.peer import (
    ClientRequest,
    CostOf,
    Peer,
    StreamCut,
    final_metadata,
    head_metadata,
    in_parts,
    refuse,
    with_request_id,
)
from antiphon.doors.extproc.received import Kind, Received
from antiphon.engine.exchange.response_exchange import ResponseExchange
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
from antiphon.engine.running.runner import Runner
from antiphon.errors import ApiError
from antiphon.translation.upstream_errors import map_transport_error
from antiphon.types.transport import (
    BACKEND_HEADER,
    OWN_JSON,
    OWN_STREAM,
    Headers,
    UpstreamError,
    UpstreamFault,
    header_value,
)

# Parts of a stream are small while its model writes.
_LARGE = 4 * 1024
# The least that a client can have left unread when Envoy begins to hold its upstream back: a window and a buffer.
_FILLS = 128 * 1024
# Envoy finds no route (404) for a request without it; it says how the client reached Envoy, nothing about the client.
_ENVOYS_OWN = frozenset({"x-forwarded-proto"})
# Of the upstream's headers, those that are about the client's account and not about the bytes. All others go: they
# describe a body that is rewritten, or the upstream itself. (`x-request-id` is ours.)
_KEPT_RESPONSE_HEADERS = ("x-ratelimit-",)
# Envoy's own answers in place of ours.
_SAID = {
    401: ("The request's credentials were not accepted.", "invalid_api_key"),
    403: ("The request is not allowed.", "permission_denied"),
    408: ("The request was not sent completely in time.", "request_timeout"),
    429: ("There were too many requests, or too many tokens.", "rate_limit_exceeded"),
}


class Relay:
    """One exchange, relayed (or refused before there is anything to relay)."""

    door = "relay"

    def __init__(
        self,
        runner: Runner,
        peer: Peer,
        exchange: ResponseExchange,
        request: ClientRequest,
        timeouts: TimeoutSettings,
        end_seconds: float,
        cost_of: CostOf,
    ) -> None:
        self._cost_of = cost_of
        self._runner = runner
        self._peer = peer
        self._exchange = exchange
        self._request = request
        self._timeouts = timeouts
        self._end_seconds = end_seconds
        self._loop = asyncio.get_running_loop()
        # What the exchange wants the client to get.
        self._head: SendHead | None = None
        self._waiting: list[bytes] = []
        self.finish: Finish | None = None
        # What Envoy has told us of the upstream's answer.
        self._upstream_headers: Headers = ()
        self._headed = False
        self._bodiless = False
        self._body_begun = False
        self._end: Kind | None = None
        self._decoder: Inflate | None = None
        # What Envoy was told.
        self._head_answered = False
        self._closing = False
        self._finished = False
        # When the upstream was last heard, and when the client last got something; when the exchange is told the time,
        # and when a stream that is complete ends without its upstream.
        self._heard = 0.0
        self._sent = 0.0
        self._given = 0
        # How many upstreams Envoy may ask, one after the other.
        self._tries = 1
        self._told_at = 0.0
        self._close_at = 0.0

    @property
    def reason_of_the_end(self) -> CancelReason:
        """Who ended Envoy's stream before its time. Of a failure before the upstream's head Envoy tells us (its own
        answer comes instead); behind it a client that leaves and an upstream that breaks off look alike."""
        return CancelReason.CONNECTION_ENDED if self._headed and self._end is None else CancelReason.CLIENT_GONE

    async def run(self) -> None:
        """Answer the client to the end."""
        call = await self._settle()
        if call is None:
            await self._answer_at_once()
            return
        self._tries = call.request.tries
        await self._forward(call.request)
        self._heard = self._loop.time()
        self._told_at = self._exchange.receive_time(self._heard)
        interludes = self._interludes = Interludes(self._peer, self._next_due, self._on_silence)
        interludes.schedule()
        try:
            while not self._finished:
                received = await interludes.receive()
                if not self._finished:
                    self._heard = self._loop.time()
                    await self._take(received)
        finally:
            await interludes.aclose()
            # Each knows the other; without this only the collector could free what they hold.
            del self._interludes

    async def _settle(self) -> CallUpstream | None:
        """Let the exchange go on as far as it can; what it has for the client is noted. The call it wants, if any."""
        # Not `Runner.settle`: an asynchronous generator costs as much per chunk as everything else in here.
        call = None
        while (action := self._noted()) is not None:
            if isinstance(action, CallUpstream):
                call = action
            else:
                await self._perform(action)
        return call

    async def _perform(self, action: CallUpstream | OwnAction) -> None:
        """What the runner does for the exchange."""
        assert not isinstance(action, CallUpstream), "what takes more than a call is driven"
        await self._peer.begin()
        await self._runner.perform(self._exchange, action)

    def _noted(self) -> CallUpstream | OwnAction | None:
        """Note what there is for the client, up to the first action that is for somebody else: that one."""
        # No coroutine: most of what comes has one action, and this is asked for each.
        exchange = self._exchange
        while (action := exchange.next_action()) is not None:
            if isinstance(action, SendBody):
                self._waiting.append(action.data)
            elif isinstance(action, SendHead):
                self._head = action
            elif isinstance(action, Finish):
                self.finish = action
            else:
                assert not isinstance(action, FollowResponse | RunTools), "what takes more than a call is driven"
                return action
        return None

    async def _answer_at_once(self) -> None:
        """The whole answer is known without a model call."""
        assert self._head is not None and self.finish is not None
        self._finished = True
        await answer_whole(
            self._peer,
            self._head.status,
            self._client_headers(),
            b"".join(self._waiting),
            head_metadata(self._exchange.model),
            final_metadata(self._exchange, self.finish, self._cost_of),
        )

    # Towards the upstream

    async def _forward(self, call: UpstreamRequest) -> None:
        """Hand the translated request to Envoy. Of the client's headers only the allowed ones stay."""
        headers = (
            (":method", call.method),
            (":path", "/v1" + call.path),
            *call.headers,
            ("content-length", str(len(call.body))),
            (BACKEND_HEADER, call.upstream),
        )
        named = dict(self._request.headers)
        for name, _ in headers:
            named.pop(name, None)
        remove = tuple([name for name in named if name[:1] != ":" and name not in _ENVOYS_OWN])
        send = self._peer.send
        await send(wire.request_head(headers, remove, head_metadata(call.model)))
        for part, last in in_parts(call.body):
            await send(wire.request_body(part, last))

    # From the upstream

    async def _take(self, received: Received) -> None:
        kind = received.kind
        if self._heard >= self._told_at:
            # An upstream that never pauses leaves no silence to look at the time in.
            self._told_at = self._exchange.receive_time(self._heard)
        if kind is Kind.RESPONSE_BODY:
            self._body_begun = True
            if received.body:
                data = received.body if self._decoder is None else self._decoder.feed(received.body)
                self._exchange.receive_upstream_data(data)
                if len(data) >= _LARGE and self._exchange.floods:
                    # Others come first. What waits meanwhile is bounded, and Envoy holds the upstream back.
                    await self._runner.let_others_go_first()
            if received.end:
                self._upstream_ended(kind)
        elif kind is Kind.RESPONSE_HEADERS:
            self._take_head(received)
        elif kind is Kind.RESPONSE_TRAILERS:
            self._upstream_ended(kind)
        else:
            # What follows the request's end (some Envoys repeat it) means nothing.
            return
        await self._flush()

    def _take_head(self, received: Received) -> None:
        headers = received.headers
        self._upstream_headers = headers
        self._decoder = decoder_for(header_value(headers, "content-encoding"))
        self._exchange.receive_upstream_head(int(header_value(headers, ":status") or 0), headers)
        self._told_at = self._exchange.receive_time(self._heard)
        if received.end:
            self._bodiless = True
            self._decoder = None
            self._upstream_ended(received.kind)
        else:
            # Another limit holds from now on.
            self._headed = True
            self._interludes.schedule()

    def _upstream_ended(self, how: Kind) -> None:
        self._end = how
        error = None
        if self._decoder is not None:
            self._decoder.end()
            if self._decoder.fault:
                error = UpstreamError(UpstreamFault.CUT, self._decoder.fault)
        self._exchange.receive_upstream_end(error)

    # Towards the client

    async def _flush(self) -> None:
        """Send what there is for the client, as far as Envoy takes it now."""
        while (action := self._noted()) is not None:
            await self._perform(action)
        if self._closing:
            await self._close(now=self._heard >= self._close_at)
            return
        head = self._head
        if head is None:
            return
        if not self._head_answered:
            if not self._body_begun:
                if self.finish is not None:
                    await self._answer_without_body(head, self.finish)
                return
            self._head_answered = True
            await self._peer.send(wire.response_head(*self._response_headers(head)))
            self._sent = self._loop.time()
            if head.streamed:
                # The client is to hear something from now on.
                self._interludes.schedule()
        if self.finish is not None:
            await self._send_ending(head, self.finish)
        elif self._waiting:
            body = self._take_waiting()
            self._given += len(body)
            self._sent = self._loop.time()
            await self._peer.send(wire.response_body(body, end=False))

    async def _answer_without_body(self, head: SendHead, finish: Finish) -> None:
        """The answer is complete and no body part came (or will come) from the upstream."""
        self._finished = True
        if finish.outcome == "cut":
            # Somebody else's head came and nothing behind it; the client has seen neither.
            silence = map_transport_error(UpstreamError(UpstreamFault.TIMED_OUT, "nothing came after the head"))
            await refuse(self._peer, silence, self._request.request_id)
            return
        body = self._take_waiting()
        told = final_metadata(self._exchange, finish, self._cost_of)
        if self._bodiless:
            headers, removed = self._response_headers(head)
            await self._peer.send(wire.response_replaced(headers, removed, body, told))
        else:
            headers = self._client_headers()
            is_json = header_value(headers, "content-type") == "application/json"
            details = f"{OWN_JSON if is_json else OWN_STREAM}{finish.outcome}"
            await self._peer.send(wire.immediate(head.status, headers, body, details, told))

    async def _send_ending(self, head: SendHead, finish: Finish) -> None:
        body = self._take_waiting()
        if finish.outcome == "cut":
            self._finished = True
            if body:
                await self._peer.send(wire.response_body(body, end=False))
            raise StreamCut("the upstream fell silent")
        told = final_metadata(self._exchange, finish, self._cost_of)
        orderly = head.streamed and finish.outcome in ("completed", "incomplete")
        if self._end is None and orderly:
            self._closing = True
            self._close_at = self._loop.time() + self._end_seconds
            await self._peer.send(wire.response_body(body, end=False, metadata=told))
            self._interludes.schedule()
            return
        self._finished = True
        trailers = self._end is Kind.RESPONSE_TRAILERS
        for part, last in in_parts(body):
            await self._peer.send(wire.response_body(part, last and not trailers, told if last else None))
        if trailers:
            await self._peer.send(wire.response_trailers())

    async def _close(self, *, now: bool = False) -> None:
        """Everything was sent; end the body with the upstream's."""
        if self._end is None and not now:
            return
        self._finished = True
        trailers = self._end is Kind.RESPONSE_TRAILERS
        await self._peer.send(wire.response_trailers() if trailers else wire.response_body(b"", end=True))

    def _take_waiting(self) -> bytes:
        waiting = self._waiting
        body = waiting[0] if len(waiting) == 1 else b"".join(waiting)
        waiting.clear()
        return body

    def _client_headers(self) -> Headers:
        assert self._head is not None
        return with_request_id(self._head.headers, self._request.request_id)

    def _response_headers(self, head: SendHead) -> tuple[Headers, tuple[str, ...]]:
        """What is set in the answer's head, and which of the upstream's headers do not pass."""
        headers, upstream = self._client_headers(), self._upstream_headers
        named = dict(upstream)
        for name, _ in headers:
            named.pop(name, None)
        removed = tuple(
            [name for name in named if name[:1] != ":" and (head.raw or not name.startswith(_KEPT_RESPONSE_HEADERS))]
        )
        if head.raw:
            # What is to stay as it is is not set: set again, of several headers of one name only one would stay.
            headers = tuple(pair for pair in headers if pair not in upstream)
        return ((":status", str(head.status)), *headers), removed

    # Silence

    def _next_due(self) -> float:
        if self._closing:
            return self._close_at
        due = min(self._heard + self._upstream_limit(), self._told_at)
        return min(due, self._sent + self._runner.timeouts.keepalive) if self._keeps_alive() else due

    def _upstream_limit(self) -> float:
        """Seconds that the upstream may be silent in its present phase."""
        return self._timeouts.idle if self._headed else self._timeouts.head * self._tries

    def _keeps_alive(self) -> bool:
        head = self._head
        return self._head_answered and not self._closing and head is not None and head.streamed and not head.raw

    def _silence(self, limit: float) -> UpstreamError:
        """Whose silence it is. Envoy holds the upstream back when its client does not read, and tells nobody: that can
        be so only when there was enough of the stream to fill what lies in between."""
        said = f"nothing came for {limit:g} seconds (timeouts.{'idle' if self._headed else 'head'})"
        if self._given < _FILLS:
            return UpstreamError(UpstreamFault.TIMED_OUT, said)
        more = f"after {self._given} bytes of the stream: the upstream is silent, or the client does not read"
        return UpstreamError(UpstreamFault.HELD, f"{said} {more}")

    async def _on_silence(self) -> None:
        if self._finished:
            return
        now, limit = self._loop.time(), self._upstream_limit()
        if self._closing:
            await self._close(now=True)
        elif now >= self._told_at:
            self._told_at = self._exchange.receive_time(now)
            await self._flush()
        elif now >= self._heard + limit:
            self._exchange.receive_upstream_end(self._silence(limit))
            await self._flush()
        else:
            self._sent = now
            self._exchange.receive_silence()
            await self._flush()


async def translate_local_reply(peer: Peer, received: Received, request_id: str) -> None:
    """Envoy answered the client by itself while the request was still owed its answer, or before it came here: make it
    an error object."""
    status = int(header_value(received.headers, ":status") or 500)
    said, code = _SAID.get(status, ("The request could not be served.", None))
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    error = ApiError(said, status=status, type=kind, code=code)
    body = error.body(request_id)
    plain = (("content-type", "application/json"), ("content-length", str(len(body))))
    headers = ((":status", str(status)), *with_request_id(plain, request_id))
    if received.end:
        await peer.send(wire.response_replaced(headers, (), body, {"status": "error"}))
        return
    while (await peer.receive()).kind not in (Kind.RESPONSE_BODY, Kind.RESPONSE_TRAILERS):
        pass
    await peer.send(wire.response_head(headers, ()))
    await peer.send(wire.response_body(body, end=True, metadata={"status": "error"}))
