"""Reads and sends the messages of one stream without waiting: takes messages that have arrived, and sends as much as
the transport accepts.

Lives here: reading messages and joining body parts; sending at once, and whether any message was sent. Not here:
waiting for messages or for room (`peer.py`), bytes (`wire.py`). The reaction to a message and the content of answers
are in `stream.py`, `relay.py` and `answers.py`. `relay_state.py` and `immediate_response.py` decide when an answer is
legal.

Invariants: messages keep their order, and each is delivered once. Joining parts loses and duplicates no byte of a body.
"""

from __future__ import annotations

from typing import Final

from antiphon.doors.extproc import wire
from antiphon.doors.extproc.received import MessageKind, Received
from antiphon.doors.extproc.transport import MessageStream, StreamClosed
from antiphon.errors import AntiphonError

# A module constant, because access to an enumeration's member looks it up in the class each time.
_RESPONSE_BODY: Final = MessageKind.RESPONSE_BODY

GATHERED: Final = 64 * 1024
"""The maximum bytes of an upstream's body per step; then other streams get their turn."""


class PeerLeft(AntiphonError):
    """Envoy ended the stream before its answer: the client has disconnected."""


def left(closed: StreamClosed) -> PeerLeft:
    """The `PeerLeft` for the transport's error."""
    return PeerLeft(f"the stream ended while it was answered ({closed})")


class Inbox:
    """The messages from Envoy on one stream that are not handled yet."""

    __slots__ = ("_gathered", "_next", "_stream", "drained")

    def __init__(self, stream: MessageStream, gathered: int = GATHERED) -> None:
        self._stream = stream
        self._gathered = gathered
        # The message after the joined parts of a body.
        self._next: Received | None = None
        self.drained = False
        """Whether no further message had arrived: the caller must wait for the next one."""

    def receive_now(self) -> Received | None:
        """The next message, if it has arrived.

        A part of the upstream's body includes the parts after it that have arrived. Translating, answering and sending
        a message costs as much as some chunks in it, and from a busy Envoy most parts arrive together.
        """
        received = self._next
        if received is not None:
            self._next = None
            return received
        message = self._stream.receive_now()
        return None if message is None else self.read(message)

    def read(self, message: bytes | None) -> Received:
        """A message that the caller waited for, joined with the parts after it. Raises `PeerLeft` at the end."""
        if message is None:
            raise PeerLeft("the stream ended early")
        received = wire.decode(message)
        if received.kind is _RESPONSE_BODY and not received.end:
            self._gather(received)
        return received

    def _gather(self, part: Received) -> None:
        """Join the parts that follow with this one."""
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
    """Sends messages of one stream without waiting."""

    __slots__ = ("_send_now", "answered", "full")

    def __init__(self, stream: MessageStream) -> None:
        self._send_now = stream.send_now
        self.answered = False
        """Whether any answer was sent to Envoy."""
        self.full = False
        """Whether the queue is full: the caller must wait for room, even when it has nothing more to send."""

    def send_now(self, messages: list[bytes]) -> bool:
        """Send messages from the list as long as that needs no waiting, and remove them. Returns whether none is left
        and there is room for more. Raises `PeerLeft` when the peer has left."""
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
