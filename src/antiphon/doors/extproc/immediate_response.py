"""Sends responses that the sidecar makes itself: whole responses, and streams for which it calls the model (drive).

This module sends streamed immediate responses. The exchange and the router produce the content of these responses.
`relay.py` handles responses whose model call Envoy makes.

Rules, verified against Envoy 1.40.0:

- A streamed immediate response begins only after the request's end of stream. If the response began earlier, Envoy
  might forward the request.

- A streamed immediate response begins with its head, which includes `:status`. The response ends with exactly one
  `end_of_stream`, because the client waits until this flag arrives.

- Envoy cancels the call within milliseconds after the end of the response, and also after a client disconnects. When
  Envoy cancels the call, the code closes the generator explicitly, which ends the model call. The code does not leave
  this closing to the garbage collector.

- A client that reads slowly does not slow the sidecar down, because Envoy buffers all bytes of an immediate response.
  So each stream has a maximum size, which includes its final events. `Ahead` delays a stream that is written faster
  than clients read.

The sidecar cannot see how much a client has read, so it estimates the unread bytes of each driven stream. The estimate
assumes that a client reads at `RATE`, several times as fast as models write. All bytes that are written faster than
`RATE` count as unread. A stream with more unread bytes than its share waits, and this delay slows its model down. If a
client reads nothing, Envoy's listener cuts it off after `timeouts.send` seconds. Until then, Envoy buffers at most the
stream's share plus the bytes that the sidecar writes at `RATE`. Envoy never buffers more than the maximum size of a
stream.

Invariant: the shares of all streams together are at most `limits.drive_ahead_bytes`, whatever the clients do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Final

from antiphon.api.http import BodyStream
from antiphon.config.limits import LimitSettings
from antiphon.doors.extproc import wire
from antiphon.doors.extproc.answers import (
    Accounting,
    final_metadata,
    head_metadata,
    running_metadata,
    whole_answer,
    with_request_id,
)
from antiphon.doors.extproc.peer import Peer, StreamCut
from antiphon.engine.exchange.response_exchange import ResponseExchange
from antiphon.engine.exchange.states import State
from antiphon.engine.ports.actions import CancelReason, Finish, SendBody, SendHead
from antiphon.engine.running.runner import Runner
from antiphon.errors import UpstreamFailed
from antiphon.types.transport import Headers

RATE: Final = 256 * 1024
"""The assumed reading speed of a client in bytes per second. At this speed a client reads about 800 tokens per
second."""
SHARE: Final = 8 << 20
"""The largest number of unread bytes that a stream may have. With few streams, a burst of up to this size does not
wait."""
_LOOK = 64 * 1024
_TIMES_AT_THE_END = 4
"""The number of final events that repeat the whole text: one each for the text, the content part, the item and the
response."""


async def answer_whole(
    peer: Peer,
    status: int,
    headers: Headers,
    body: bytes,
    head_told: wire.Metadata | None = None,
    end_told: wire.Metadata | None = None,
) -> None:
    """Send a complete response as a streamed immediate response."""
    for message in whole_answer(status, headers, body, head_told, end_told):
        await peer.send(message)


async def answer_streamed(peer: Peer, status: int, headers: Headers, parts: BodyStream) -> None:
    """Send a response in chunks, after the request's `end_of_stream`. When Envoy ends the stream, this function closes
    `parts` immediately."""
    async with aclosing(parts):
        await peer.send(wire.local_head(status, headers, None))
        async for part in parts:
            await peer.send(wire.local_body(part, end=False))
    await peer.send(wire.local_body(b"", end=True))


class Drive:
    """Runs one exchange whose model calls this process makes, and sends its response to Envoy."""

    door = "drive"

    def __init__(
        self,
        runner: Runner,
        peer: Peer,
        exchange: ResponseExchange,
        request_id: str,
        ahead: Ahead,
        accounting: Accounting,
    ) -> None:
        self._runner = runner
        self._accounting = accounting
        self._ahead = ahead
        self._written = 0
        self._look_at = _LOOK
        self._peer = peer
        self._exchange = exchange
        self._request_id = request_id
        self._head: SendHead | None = None
        self._held: list[bytes] = []
        self.finish: Finish | None = None

    @property
    def reason_of_the_end(self) -> CancelReason:
        """The side that ended Envoy's stream early. In drive mode that side is always the client, because the sidecar
        calls the upstream on a separate connection."""
        return CancelReason.CLIENT_GONE

    async def run(self) -> None:
        """Run the exchange and send its response to the end."""
        exchange, send = self._exchange, self._peer.send
        record_at = self._ahead.clock() + self._accounting.record_seconds
        with self._ahead.stream() as ahead:
            # `drive` is an asynchronous generator; closing it ends the model call immediately.
            async with aclosing(self._runner.drive(exchange)) as actions:
                async for action in actions:
                    if isinstance(action, SendBody):
                        # The last bytes are sent in the same message as the end of the stream.
                        if self._head is None or not self._head.streamed or exchange.done:
                            self._held.append(action.data)
                        else:
                            told = None
                            if (now := self._ahead.clock()) >= record_at:
                                record_at = now + self._accounting.record_seconds
                                told = running_metadata(exchange.known.model, exchange.estimated_usage)
                            await send(wire.local_body(action.data, False, told))
                            self._written += len(action.data)
                            if self._written >= self._look_at:
                                await self._hold_back(ahead)
                    elif isinstance(action, SendHead):
                        self._head = action
                        if action.streamed:
                            headers = with_request_id(action.headers, self._request_id)
                            await send(wire.local_head(action.status, headers, head_metadata(exchange.known.model)))
                    else:
                        self.finish = action
                        await self._end(action)

    async def _hold_back(self, ahead: StreamAhead) -> None:
        """Wait while the stream has too many unread bytes. Fail the response when the stream gets too large."""
        exchange, limit = self._exchange, self._ahead.limits.drive_stream_bytes
        room = limit - self._written - _TIMES_AT_THE_END * exchange.known.output_bytes
        # Each byte of output text counts once when it is written, and again for each copy in the final events.
        self._look_at = self._written + min(_LOOK, max(0, room) // (1 + _TIMES_AT_THE_END))
        if room >= 0:
            if seconds := ahead.seconds(self._written):
                await asyncio.sleep(seconds)
            return
        if exchange.state is State.FOLLOWING:
            # The background response continues without this client, and the client can resume the stream later.
            raise StreamCut("the stream is too large (limits.drive_stream_bytes)")
        exchange.receive_too_much(
            UpstreamFailed(
                f"The response's stream is larger than {limit} bytes (limits.drive_stream_bytes).",
                code="stream_too_large",
            )
        )

    async def _end(self, finish: Finish) -> None:
        assert self._head is not None
        head, body = self._head, b"".join(self._held)
        told = final_metadata(self._exchange.known.response_id, finish, self._accounting)
        if finish.outcome == "cut":
            if body:
                await self._peer.send(wire.local_body(body, end=False))
            raise StreamCut("the upstream broke off its answer")
        if head.streamed:
            await self._peer.send(wire.local_body(body, end=True, metadata=told))
        else:
            headers = with_request_id(head.headers, self._request_id)
            await answer_whole(self._peer, head.status, headers, body, head_metadata(self._exchange.known.model), told)


class Ahead:
    """Divides the allowed number of unread bytes among all driven streams of a process. `clock` is a monotonic clock in
    seconds."""

    def __init__(self, limits: LimitSettings, clock: Callable[[], float]) -> None:
        self.limits = limits
        self.clock = clock
        self._streams = 0

    @property
    def share(self) -> int:
        """The number of unread bytes that each stream may have at this moment."""
        return min(SHARE, self.limits.drive_ahead_bytes // max(1, self._streams))

    @contextmanager
    def stream(self) -> Iterator[StreamAhead]:
        """Register one stream for the duration of the `with` block."""
        self._streams += 1
        try:
            yield StreamAhead(self)
        finally:
            self._streams -= 1


class StreamAhead:
    """Counts the written bytes of one stream, and estimates how many of these bytes the client has not read."""

    __slots__ = ("_ahead", "_at", "_behind", "_seen")

    def __init__(self, ahead: Ahead) -> None:
        self._ahead = ahead
        self._at = ahead.clock()
        self._seen = 0
        self._behind = 0.0

    def seconds(self, written: int) -> float:
        """Return how many seconds the stream must wait before its next write. `written` is the number of all bytes
        written so far."""
        now = self._ahead.clock()
        self._behind = max(0.0, self._behind - (now - self._at) * RATE) + written - self._seen
        self._at, self._seen = now, written
        return max(0.0, (self._behind - self._ahead.share) / RATE)
