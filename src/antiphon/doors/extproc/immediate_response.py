"""Sends answers that the sidecar makes itself: whole responses, and streams whose model calls it makes (drive).

Lives here: streamed immediate responses. Not here: what is answered (the exchange, the router), relaying.

Rules kept here, verified against Envoy 1.40.0:

- A streamed immediate response begins only after the request's end of stream; before it Envoy may forward the request.
- It begins with its head, `:status` included, and ends with exactly one `end_of_stream`. Until then the client waits.
- Envoy cancels the call within milliseconds of the end, and as fast when the client leaves. The model call ends with
  the generator, so the generator is closed at once and not whenever it is collected.
- There is no flow control between Envoy and the client: Envoy takes all it is sent. So a stream has a size, its end
  included, and one that is written faster than clients read waits (`Ahead`).

How far a driven stream may be ahead of its client is arithmetic, since nobody here sees the client. Envoy tells us
nothing, so a client is taken to read at `RATE`, several times as fast as models write, and what was written beyond that
is what it may be behind. A stream that is ahead by more than its share waits, which holds its model back. A client that
takes nothing at all is cut off by the listener (`timeouts.send`); until then Envoy holds for it at most its share and
what `RATE` gives, and never more than a stream may have as a whole.

Invariant: whatever the clients do, the shares of all streams together are at most `limits.drive_ahead_bytes`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, Final, cast

from antiphon.config.limits import LimitSettings
from antiphon.doors.extproc import wire
from antiphon.doors.extproc.answers import CostOf, final_metadata, head_metadata, whole_answer, with_request_id
from antiphon.doors.extproc.peer import Peer, StreamCut
from antiphon.engine.exchange.response_exchange import ResponseExchange
from antiphon.engine.exchange.states import State
from antiphon.engine.ports.actions import CancelReason, Finish, SendBody, SendHead
from antiphon.engine.running.runner import Runner
from antiphon.errors import UpstreamFailed
from antiphon.types.transport import Headers

RATE: Final = 256 * 1024
"""Bytes a second that a client is taken to read: some 800 tokens."""
SHARE: Final = 8 << 20
"""Bytes that a stream may be ahead where there are few of them: a burst is no flood."""
_LOOK = 64 * 1024
_TIMES_AT_THE_END = 4
"""How often the whole text stands in the events that end a response: its own, its part's, its item's, the last one."""


async def answer_whole(
    peer: Peer,
    status: int,
    headers: Headers,
    body: bytes,
    head_told: wire.Metadata | None = None,
    end_told: wire.Metadata | None = None,
) -> None:
    """Answer at once with all of it."""
    for message in whole_answer(status, headers, body, head_told, end_told):
        await peer.send(message)


async def answer_streamed(peer: Peer, status: int, headers: Headers, parts: AsyncIterator[bytes]) -> None:
    """An answer whose parts come over time, after the request's end; `parts` is closed at once when Envoy leaves."""
    async with aclosing(cast(Any, parts)):
        await peer.send(wire.local_head(status, headers, None))
        async for part in parts:
            await peer.send(wire.local_body(part, end=False))
    await peer.send(wire.local_body(b"", end=True))


class Drive:
    """One exchange whose model calls are made from here."""

    door = "drive"

    def __init__(
        self, runner: Runner, peer: Peer, exchange: ResponseExchange, request_id: str, ahead: Ahead, cost_of: CostOf
    ) -> None:
        self._runner = runner
        self._cost_of = cost_of
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
        """Who ended Envoy's stream before its time: nobody but the client does, the upstream has another."""
        return CancelReason.CLIENT_GONE

    async def run(self) -> None:
        """Answer the client to the end."""
        exchange, send = self._exchange, self._peer.send
        with self._ahead.stream() as ahead:
            # `drive` is a generator; closing it ends the model call at once.
            async with aclosing(self._runner.drive(exchange)) as actions:
                async for action in actions:
                    if isinstance(action, SendBody):
                        # What comes with the end goes out with the end, as one message.
                        if self._head is None or not self._head.streamed or exchange.done:
                            self._held.append(action.data)
                        else:
                            await send(wire.local_body(action.data, end=False))
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
        """Write no faster than a client reads, and not without an end."""
        exchange, limit = self._exchange, self._ahead.limits.drive_stream_bytes
        self._look_at = self._written + _LOOK
        if self._written + _TIMES_AT_THE_END * exchange.known.output_bytes <= limit:
            if seconds := ahead.seconds(self._written):
                await asyncio.sleep(seconds)
            return
        if exchange.state is State.FOLLOWING:
            # It goes on without this client, which can go on where it was.
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
        told = final_metadata(self._exchange.known.response_id, finish, self._cost_of)
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
    """One per process. `clock` is any steady one, in seconds."""

    def __init__(self, limits: LimitSettings, clock: Callable[[], float]) -> None:
        self.limits = limits
        self.clock = clock
        self._streams = 0

    @property
    def share(self) -> int:
        """What one stream may be ahead now."""
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
    """What one stream has written, and how much of it its client may not have read."""

    __slots__ = ("_ahead", "_at", "_behind", "_seen")

    def __init__(self, ahead: Ahead) -> None:
        self._ahead = ahead
        self._at = ahead.clock()
        self._seen = 0
        self._behind = 0.0

    def seconds(self, written: int) -> float:
        """How long to wait before more is written; `written` counts from the beginning."""
        now = self._ahead.clock()
        self._behind = max(0.0, self._behind - (now - self._at) * RATE) + written - self._seen
        self._at, self._seen = now, written
        return max(0.0, (self._behind - self._ahead.share) / RATE)
