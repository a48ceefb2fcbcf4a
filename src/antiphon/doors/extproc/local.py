"""Answers made here: whole ones, and model calls that this process makes itself (drive).

Lives here: streamed immediate responses. Not here: what is answered (the exchange, the router), relaying.

Rules kept here, verified against Envoy 1.40.0:

- A streamed immediate response begins only after the request's end of stream; before it Envoy may forward the request.
- It begins with its head, `:status` included, and ends with exactly one `end_of_stream`. Until then the client waits.
- Envoy cancels the call within milliseconds of the end, and as fast when the client leaves. The model call ends with
  the generator, so the generator is closed at once and not whenever it is collected.
- There is no flow control between Envoy and the client: Envoy takes all it is sent. What is ahead of a slow client is
  bounded by the size of one response, which the exchange limits; nothing else may be sent this way.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, cast

from antiphon.doors.extproc import wire
from antiphon.doors.extproc.answers import Peer, StreamCut, final_metadata, head_metadata, in_parts, with_request_id
from antiphon.engine.actions import Finish, SendBody, SendHead
from antiphon.engine.exchange import ResponseExchange
from antiphon.engine.runner import Runner
from antiphon.types.transport import Headers

__all__ = ["Drive", "answer_streamed", "answer_whole"]


async def answer_whole(
    peer: Peer,
    status: int,
    headers: Headers,
    body: bytes,
    head_told: wire.Metadata | None = None,
    end_told: wire.Metadata | None = None,
) -> None:
    """A whole answer, after the request's end. (An operator's `local_reply_config` never rewrites this form.)"""
    await peer.send(wire.local_head(status, headers, head_told))
    for part, last in in_parts(body):
        await peer.send(wire.local_body(part, last, end_told if last else None))


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

    def __init__(self, runner: Runner, peer: Peer, exchange: ResponseExchange, request_id: str) -> None:
        self._runner = runner
        self._peer = peer
        self._exchange = exchange
        self._request_id = request_id
        self._head: SendHead | None = None
        self._held: list[bytes] = []
        self.finish: Finish | None = None

    async def run(self) -> None:
        """Answer the client to the end."""
        exchange = self._exchange
        send = self._peer.send
        async with aclosing(self._runner.drive(exchange)) as actions:
            async for action in actions:
                if isinstance(action, SendBody):
                    # What comes with the end goes out with the end, as one message.
                    if self._head is None or not self._head.streamed or exchange.done:
                        self._held.append(action.data)
                    else:
                        await send(wire.local_body(action.data, end=False))
                elif isinstance(action, SendHead):
                    self._head = action
                    if action.streamed:
                        headers = with_request_id(action.headers, self._request_id)
                        await send(wire.local_head(action.status, headers, head_metadata(exchange.model)))
                else:
                    self.finish = action
                    await self._end(action)

    async def _end(self, finish: Finish) -> None:
        assert self._head is not None
        head, body = self._head, b"".join(self._held)
        told = final_metadata(self._exchange, finish)
        if finish.outcome == "cut":
            if body:
                await self._peer.send(wire.local_body(body, end=False))
            raise StreamCut("the upstream broke off its answer")
        if head.streamed:
            await self._peer.send(wire.local_body(body, end=True, metadata=told))
        else:
            headers = with_request_id(head.headers, self._request_id)
            await answer_whole(self._peer, head.status, headers, body, head_metadata(self._exchange.model), told)
