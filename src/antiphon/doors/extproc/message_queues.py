"""Message queues of one stream, without waiting: takes messages that have arrived, and sends what the transport
accepts.

Lives here: messages read, parts of a body put together; sending now, and whether anything was sent. Not here: waiting
for what is not here, or until more is taken (`peer.py`), bytes (`wire.py`), what a message leads to and what is sent
(`stream.py`, `relay.py`, `answers.py`), and when that is legal (`relay_state.py`, `immediate_response.py`).

Invariants: messages are handed on, and leave, in their order, and each of them once; no byte of a body is lost or
doubled where parts become one.
"""

from __future__ import annotations

from typing import Final

from antiphon.doors.extproc import wire
from antiphon.doors.extproc.received import MessageKind, Received
from antiphon.doors.extproc.transport import MessageStream, StreamClosed
from antiphon.errors import AntiphonError

# Each is asked for often; a member of an enumeration is looked for in its class every time.
_RESPONSE_BODY: Final = MessageKind.RESPONSE_BODY

GATHERED: Final = 64 * 1024
"""So many bytes of an upstream's body are handled at once; then other streams have their turn."""


class PeerLeft(AntiphonError):
    """Envoy ended the stream before it was answered: the client is gone."""


def left(closed: StreamClosed) -> PeerLeft:
    """The same as the transport says it."""
    return PeerLeft(f"the stream ended while it was answered ({closed})")


class Inbox:
    """What Envoy has sent on one stream and nobody has handled yet."""

    __slots__ = ("_gathered", "_next", "_stream", "drained")

    def __init__(self, stream: MessageStream, gathered: int = GATHERED) -> None:
        self._stream = stream
        self._gathered = gathered
        # What was found behind the parts of a body.
        self._next: Received | None = None
        self.drained = False
        """Nothing was here behind the last message: it is to be waited for."""

    def receive_now(self) -> Received | None:
        """The next message, if it is here already.

        A part of the upstream's body comes as one with the parts behind it that are here already: to translate, answer
        and send a message costs as much as some chunks in it, and of a busy Envoy most are behind another.
        """
        received = self._next
        if received is not None:
            self._next = None
            return received
        message = self._stream.receive_now()
        return None if message is None else self.read(message)

    def read(self, message: bytes | None) -> Received:
        """A message that was waited for, with the parts behind it in the same way. Raises `PeerLeft` when there is none
        any more."""
        if message is None:
            raise PeerLeft("the stream ended early")
        received = wire.decode(message)
        if received.kind is _RESPONSE_BODY and not received.end:
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
    """What is sent on one stream without waiting."""

    __slots__ = ("_send_now", "answered", "full")

    def __init__(self, stream: MessageStream) -> None:
        self._send_now = stream.send_now
        self.answered = False
        """Whether Envoy was told anything."""
        self.full = False
        """Too much is queued: that is to be waited for, also when there is nothing more to send."""

    def send_now(self, messages: list[bytes]) -> bool:
        """Send these, which are taken from the list, as long as that takes no waiting; whether none is left, and there
        is room for more. Raises `PeerLeft` when nobody is there to take them."""
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
