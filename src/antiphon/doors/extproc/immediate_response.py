"""Sends responses that the sidecar makes itself: whole responses, and streams with its own model calls (drive).

Lives here: streamed immediate responses. Not here: the content (the exchange, the router), relaying.

Rules, verified against Envoy 1.40.0:

- A streamed immediate response begins only after the request's end of stream. Before it, Envoy may forward the request.
- It begins with its head, `:status` included, and ends with exactly one `end_of_stream`. Until then the client waits.
- Envoy cancels the call within milliseconds of the end, and as fast when the client leaves. Closing the generator ends
  the model call, so the code closes it at once and does not leave it to the garbage collector.
- There is no flow control between Envoy and the client: Envoy reads all bytes at once. So a stream has a maximum size,
  its end included, and a stream that is written faster than clients read waits (`Ahead`).

The sidecar cannot see how much a client has read, so it estimates how far a driven stream is ahead. It assumes that a
client reads at `RATE`, several times as fast as models write. All bytes written beyond that count as unread. A stream
that is ahead by more than its share waits, which slows its model down. The listener cuts off a client that reads
nothing (`timeouts.send`). Until then Envoy buffers at most its share plus the bytes at `RATE`, and never more than the
maximum of a stream.

Invariant: for any behavior of clients, the shares of all streams together are at most `limits.drive_ahead_bytes`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, Final, cast

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
"""The assumed reading speed of a client in bytes per second: some 800 tokens."""
SHARE: Final = 8 << 20
"""The bytes that a stream may be ahead while there are few streams, so that bursts do not wait."""
_LOOK = 64 * 1024
_TIMES_AT_THE_END = 4
"""The number of copies of the whole text in the final events: of the text, the part, the item and the response."""


async def answer_whole(
    peer: Peer,
    status: int,
    headers: Headers,
    body: bytes,
    head_told: wire.Metadata | None = None,
    end_told: wire.Metadata | None = None,
) -> None:
    """Send a complete response at once."""
    for message in whole_answer(status, headers, body, head_told, end_told):
        await peer.send(message)


async def answer_streamed(peer: Peer, status: int, headers: Headers, parts: AsyncIterator[bytes]) -> None:
    """Send a response in parts, after the request's end; `parts` is closed at once when Envoy leaves."""
    async with aclosing(cast(Any, parts)):
        await peer.send(wire.local_head(status, headers, None))
        async for part in parts:
            await peer.send(wire.local_body(part, end=False))
    await peer.send(wire.local_body(b"", end=True))


class Drive:
    """One exchange with model calls from this process."""

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
        """The side that ended Envoy's stream early: only the client can, because the upstream has another
        connection."""
        return CancelReason.CLIENT_GONE

    async def run(self) -> None:
        """Send the response to the end."""
        exchange, send = self._exchange, self._peer.send
        record_at = self._ahead.clock() + self._accounting.record_seconds
        with self._ahead.stream() as ahead:
            # `drive` is a generator; closing it ends the model call at once.
            async with aclosing(self._runner.drive(exchange)) as actions:
                async for action in actions:
                    if isinstance(action, SendBody):
                        # The last bytes go out with the end, as one message.
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
        """Write no faster than a client reads, and no more than the maximum of a stream."""
        exchange, limit = self._exchange, self._ahead.limits.drive_stream_bytes
        room = limit - self._written - _TIMES_AT_THE_END * exchange.known.output_bytes
        # A byte of text counts here once as it is written, and in each copy at the end.
        self._look_at = self._written + min(_LOOK, max(0, room) // (1 + _TIMES_AT_THE_END))
        if room >= 0:
            if seconds := ahead.seconds(self._written):
                await asyncio.sleep(seconds)
            return
        if exchange.state is State.FOLLOWING:
            # The background response continues without this client, which can resume the stream.
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
    """The limit of unread bytes for all driven streams of a process. `clock`: a monotonic clock in seconds."""

    def __init__(self, limits: LimitSettings, clock: Callable[[], float]) -> None:
        self.limits = limits
        self.clock = clock
        self._streams = 0

    @property
    def share(self) -> int:
        """The bytes that one stream may be ahead now."""
        return min(SHARE, self.limits.drive_ahead_bytes // max(1, self._streams))

    @contextmanager
    def stream(self) -> Iterator[StreamAhead]:
        """One stream, from its beginning to its end."""
        self._streams += 1
        try:
            yield StreamAhead(self)
        finally:
            self._streams -= 1


class StreamAhead:
    """The written bytes of one stream, and the estimate of unread ones."""

    __slots__ = ("_ahead", "_at", "_behind", "_seen")

    def __init__(self, ahead: Ahead) -> None:
        self._ahead = ahead
        self._at = ahead.clock()
        self._seen = 0
        self._behind = 0.0

    def seconds(self, written: int) -> float:
        """The seconds to wait before the next write; `written` counts from the beginning."""
        now = self._ahead.clock()
        self._behind = max(0.0, self._behind - (now - self._at) * RATE) + written - self._seen
        self._at, self._seen = now, written
        return max(0.0, (self._behind - self._ahead.share) / RATE)
