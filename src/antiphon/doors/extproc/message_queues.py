"""Reads and sends the messages of one stream without waiting: takes messages that have arrived, and sends as much as
the transport accepts.

`Inbox` reads messages and joins body chunks. `Outbox` sends messages and remembers whether any message was sent.
`peer.py` waits for messages and for room in the queue. `wire.py` encodes the messages, and `answers.py` builds the
content of answers. `stream.py` and `relay.py` react to messages. `relay_state.py` and `immediate_response.py` decide
when to send an answer.

Invariants: messages keep their order, and each is delivered once. Joining chunks loses and duplicates no byte of a
body.
"""

from __future__ import annotations

from typing import Final

from antiphon.doors.extproc import wire
from antiphon.doors.extproc.received import MessageKind, Received
from antiphon.doors.extproc.transport import MessageStream, StreamClosed
from antiphon.errors import AntiphonError

# A module constant is faster than a lookup in the enumeration class for each message.
_RESPONSE_BODY: Final = MessageKind.RESPONSE_BODY

GATHERED: Final = 64 * 1024
"""The size in bytes at which the inbox stops joining chunks of an upstream's body, so that other streams get CPU
time."""


class PeerLeft(AntiphonError):
    """Raised when Envoy ended the stream before the sidecar's answer was complete, usually because the client
    disconnected."""


def left(closed: StreamClosed) -> PeerLeft:
    """Convert the transport's error to a `PeerLeft`."""
    return PeerLeft(f"the stream ended while it was answered ({closed})")


class Inbox:
    """Reads the messages from Envoy on one stream."""

    __slots__ = ("_gathered", "_next", "_stream", "drained")

    def __init__(self, stream: MessageStream, gathered: int = GATHERED) -> None:
        self._stream = stream
        self._gathered = gathered
        # The message that follows the joined chunks of a body.
        self._next: Received | None = None
        self.drained = False
        """Whether the last read took every message that had arrived. If `drained` is True, the caller must wait for the
        next message."""

    def receive_now(self) -> Received | None:
        """Return the next message, or None when none has arrived.

        A chunk of the upstream's body is joined with the chunks that follow and have arrived. Handling one message
        costs about as much as translating several chunks, and a busy Envoy delivers many chunks together.
        """
        received = self._next
        if received is not None:
            self._next = None
            return received
        message = self._stream.receive_now()
        return None if message is None else self.read(message)

    def read(self, message: bytes | None) -> Received:
        """Decode a message for which the caller waited, and join it with the chunks that follow. Raises `PeerLeft` when
        `message` is None, which means the end of the stream."""
        if message is None:
            raise PeerLeft("the stream ended early")
        received = wire.decode(message)
        if received.kind is _RESPONSE_BODY and not received.end:
            self._gather(received)
        return received

    def _gather(self, part: Received) -> None:
        """Join `part` with the body chunks that follow and have arrived."""
        stream = self._stream
        message = stream.receive_now()
        if message is not None:
            bodies, size = [part.body], len(part.body)
            while message is not None:
                more = wire.decode(message)
                if more.kind is not _RESPONSE_BODY:
                    self._next = more
                    break
                bodies.append(more.body)
                size += len(more.body)
                part.end = more.end
                if more.end or size >= self._gathered:
                    break
                message = stream.receive_now()
            part.body = b"".join(bodies)
        self.drained = message is None


class Outbox:
    """Sends the messages of one stream without waiting."""

    __slots__ = ("_send_now", "answered", "full")

    def __init__(self, stream: MessageStream) -> None:
        self._send_now = stream.send_now
        self.answered = False
        """Whether any answer was sent to Envoy."""
        self.full = False
        """Whether the transport's queue is full. If `full` is True, the caller must wait for room, even when it has no
        more messages to send."""

    def send_now(self, messages: list[bytes]) -> bool:
        """Send messages from the list until the transport would have to wait, and remove the sent ones. Returns whether
        the list is empty and the queue has room. Raises `PeerLeft` when Envoy has ended the stream."""
        self.answered = True
        sent = 0
        try:
            for message in messages:
                room = self._send_now(message)
                if room is None:
                    break
                sent += 1
                if not room:
                    self.full = True
                    break
        except StreamClosed as closed:
            raise left(closed) from None
        del messages[:sent]
        return not messages and not self.full
