"""What Envoy has sent on one stream and nobody has handled yet: messages read, parts of a body put together.

Lives here: what is here already. Not here: waiting for what is not (`peer.py`), bytes (`wire.py`), and what a message
leads to (`stream.py`, `relay.py`).

Invariant: messages are handed on in their order, and no byte of a body is lost or doubled where parts become one.
"""

from __future__ import annotations

from typing import Final

from antiphon.doors.extproc import wire
from antiphon.doors.extproc.outbox import PeerLeft
from antiphon.doors.extproc.received import Kind, Received
from antiphon.doors.extproc.transport import MessageStream

# Each is asked for often; a member of an enumeration is looked for in its class every time.
_RESPONSE_BODY: Final = Kind.RESPONSE_BODY

# So many bytes of an upstream's body are enough to be handled at once: then others have their turn.
_GATHERED = 64 * 1024


class Inbox:
    """Of one stream."""

    __slots__ = ("_next", "_stream", "drained")

    def __init__(self, stream: MessageStream) -> None:
        self._stream = stream
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
                if more.end or size >= _GATHERED:
                    break
                message = stream.receive_now()
            part.body = b"".join(bodies)
        self.drained = message is None
