"""What every kind of answer has in common: the peer, the client's request, headers, metadata, early refusals.

Lives here: values and small functions. Not here: when an answer is legal (`stream.py`, `relay.py`,
`immediate_response.py`).

Invariant: whoever answers does it through `Peer.send`, so `Peer.answered` tells whether Envoy was told anything yet;
until then a failure can still become a proper error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from antiphon.doors.extproc import wire
from antiphon.doors.extproc.received import Kind, Received
from antiphon.doors.extproc.transport import MessageStream, StreamClosed
from antiphon.engine.exchange.response_exchange import ResponseExchange
from antiphon.engine.ports.actions import Finish, Usage
from antiphon.errors import AntiphonError, ApiError
from antiphon.types.transport import OWN_JSON, Headers, header_value

_PART = 256 * 1024
# So many bytes of an upstream's body are enough to be handled at once: then others have their turn.
_GATHERED = 64 * 1024
_AFTER_THE_END = 5.0


class ProtocolError(AntiphonError):
    """Envoy is configured in a way that cannot work, or the peer is not Envoy. The message says what to change."""


class PeerLeft(AntiphonError):
    """Envoy ended the stream before it was answered: the client is gone."""


class StreamCut(AntiphonError):
    """What the client was sent cannot be completed, and nothing can be put behind it: its stream must break off."""


class Peer:
    """The other end of one stream."""

    __slots__ = ("_next", "_stream", "answered", "drained")

    def __init__(self, stream: MessageStream) -> None:
        self._stream = stream
        # What was found behind the parts of a body.
        self._next: Received | None = None
        self.answered = False
        self.drained = False
        """Nothing was here behind the last message: it is to be waited for."""

    async def receive(self) -> Received:
        """The next message. Raises `PeerLeft` when there is none any more.

        A part of the upstream's body comes as one with the parts behind it that are here already: to translate, answer
        and send a message costs as much as some chunks in it, and of a busy Envoy most are behind another.
        """
        if self._next is not None:
            received, self._next = self._next, None
            return received
        message = await self._stream.receive()
        if message is None:
            raise PeerLeft("the stream ended early")
        received = wire.decode(message)
        if received.kind is Kind.RESPONSE_BODY and not received.end:
            self._gather(received)
        return received

    def receive_now(self) -> Received | None:
        """The next message, if it is here already, in the same way."""
        if self._next is not None:
            received, self._next = self._next, None
            return received
        message = self._stream.receive_now()
        if message is None:
            return None
        received = wire.decode(message)
        if received.kind is Kind.RESPONSE_BODY and not received.end:
            self._gather(received)
        return received

    def _gather(self, part: Received) -> None:
        """Put the parts behind this one into it."""
        stream = self._stream
        message = stream.receive_now()
        if message is not None:
            bodies, size = [part.body], len(part.body)
            while message is not None:
                more = wire.decode(message)
                if more.kind is not Kind.RESPONSE_BODY:
                    self._next = more
                    break
                bodies.append(more.body)
                size += len(more.body)
                part.end = more.end
                if more.end or size >= _GATHERED:
                    break
                message = stream.receive_now()
            part.body = b"".join(bodies)
        self.drained = message is None

    async def begin(self) -> None:
        """Before anything that must not happen twice (a model call, a write): from now on Envoy does not hand the
        request to another process, should this one die. Raises `PeerLeft`."""
        try:
            await self._stream.begin()
        except StreamClosed as closed:
            raise PeerLeft(f"the stream ended before it was answered ({closed})") from None

    async def send(self, message: bytes) -> None:
        """Send one answer; waits for flow control. Raises `PeerLeft` when nobody is there to take it."""
        self.answered = True
        try:
            await self._stream.send(message)
        except StreamClosed as closed:
            raise PeerLeft(f"the stream ended while it was answered ({closed})") from None

    async def let_end(self) -> None:
        """Everything was answered: Envoy is to end the stream, since ending it here could cut something."""
        await self._stream.let_end(_AFTER_THE_END)


@dataclass(slots=True)
class ClientRequest:
    """One client request. `trailers` says that they came at its end; `trace`: the headers of
    Envoy's own span, where it traces."""

    method: str
    path: str
    headers: Headers
    request_id: str
    body: bytes = b""
    trailers: bool = False
    trace: Headers = ()


def with_request_id(headers: Headers, request_id: str) -> Headers:
    """A response's headers with the id of its request, unless an upstream whose bytes pass untouched named its own."""
    if not request_id or header_value(headers, "x-request-id") is not None:
        return headers
    return (*headers, ("x-request-id", request_id))


def in_parts(body: bytes) -> Iterator[tuple[bytes | memoryview, bool]]:
    """A whole body as messages of a moderate size, of which several are views of it; the last (the only one of an empty
    body) is marked."""
    last = max(0, len(body) - 1) // _PART
    if not last:
        yield body, True
        return
    view = memoryview(body)
    for number in range(last + 1):
        yield view[number * _PART : (number + 1) * _PART], number == last


CostOf = Callable[[str, Usage], int]
"""What the tokens of a model cost, in millionths of the prices' currency; 0 where nobody knows."""


def head_metadata(model: str) -> wire.Metadata:
    """What Envoy is told with a head."""
    return {"model": model} if model else {}


def final_metadata(exchange: ResponseExchange, finish: Finish, cost_of: CostOf) -> wire.Metadata:
    """What Envoy is told with the end: for access logs, rate limits, metrics. (Numbers are those of the response, so of
    all its calls; `cost` is in millionths of the prices' currency.)"""
    metadata: wire.Metadata = {"status": finish.outcome}
    if exchange.response_id:
        metadata["response_id"] = exchange.response_id
    if finish.model:
        metadata["model"] = finish.model
    if finish.usage is not None:
        metadata["input_tokens"] = finish.usage.input_tokens
        metadata["output_tokens"] = finish.usage.output_tokens
        metadata["total_tokens"] = finish.usage.total_tokens
        if finish.usage.cached_tokens:
            metadata["cached_tokens"] = finish.usage.cached_tokens
        if cost := cost_of(finish.model, finish.usage):
            metadata["cost"] = cost
    return metadata


async def refuse(peer: Peer, error: ApiError, request_id: str) -> None:
    """Answer with an error object at once: legal as the first answer, even in the middle of an upload."""
    headers = with_request_id((("content-type", "application/json"), *error.headers), request_id)
    details = f"{OWN_JSON}{error.code or 'refused'}"
    await peer.send(wire.immediate(error.status, headers, error.body(request_id), details, {"status": "error"}))
