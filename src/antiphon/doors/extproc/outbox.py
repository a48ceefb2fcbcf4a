"""What is sent on one stream without waiting, as long as its transport takes it.

Lives here: sending now, and whether anything was sent. Not here: waiting until more is taken (`peer.py`), what is sent
(`answers.py`, `wire.py`), and when it is legal (`stream.py`, `relay_state.py`, `immediate_response.py`).

Invariant: messages leave in their order, and each of them once.
"""

from __future__ import annotations

from antiphon.doors.extproc.transport import MessageStream, StreamClosed
from antiphon.errors import AntiphonError


class PeerLeft(AntiphonError):
    """Envoy ended the stream before it was answered: the client is gone."""


def left(closed: StreamClosed) -> PeerLeft:
    """The same as the transport says it."""
    return PeerLeft(f"the stream ended while it was answered ({closed})")


class Outbox:
    """Of one stream."""

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
