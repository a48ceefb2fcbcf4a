"""Waits for messages from Envoy and sends messages to it, for one stream.

`message_queues.py` reads and sends without waiting. `answers.py` and `wire.py` build the answers. `stream.py`,
`relay_state.py` and `immediate_response.py` decide when to send an answer.

Invariant: all answers go through a `Peer`, so `Peer.answered` shows whether any answer was sent. Before the first
answer, a failure can still become a proper error response.
"""

from __future__ import annotations

from antiphon.doors.extproc.message_queues import GATHERED, Inbox, Outbox, PeerLeft, left
from antiphon.doors.extproc.received import Received
from antiphon.doors.extproc.transport import MessageStream, StreamClosed
from antiphon.errors import AntiphonError

_AFTER_THE_END = 5.0


class StreamCut(AntiphonError):
    """Raised when the sidecar cannot complete the client's response. The sidecar must then break off the stream,
    because a normal end would make the response look complete."""


class Peer:
    """Represents Envoy on one stream: receives its messages and sends answers."""

    __slots__ = ("inbox", "outbox", "receive_now", "stream")

    def __init__(self, stream: MessageStream, gathered: int = GATHERED) -> None:
        self.stream = stream
        self.inbox = Inbox(stream, gathered)
        self.outbox = Outbox(stream)
        self.receive_now = self.inbox.receive_now

    @property
    def answered(self) -> bool:
        """Whether any answer was sent to Envoy."""
        return self.outbox.answered

    async def receive(self) -> Received:
        """Return the next message, with joined body chunks (`message_queues.py`). Raises `PeerLeft` at the end of the
        stream."""
        received = self.receive_now()
        if received is not None:
            return received
        return self.inbox.read(await self.stream.receive())

    async def begin(self) -> None:
        """Confirm the call to Envoy before an action that must not happen twice, such as a model call or a write. After
        this confirmation Envoy does not send the request to another process if this process dies. Raises `PeerLeft`."""
        try:
            await self.stream.begin()
        except StreamClosed as closed:
            raise PeerLeft(f"the stream ended before it was answered ({closed})") from None

    async def send(self, message: bytes) -> None:
        """Send one answer, and wait while flow control blocks it. Raises `PeerLeft` when Envoy has ended the stream."""
        await self.send_all([message])

    async def send_all(self, messages: list[bytes]) -> None:
        """Send these answers in order and empty the list. Waits while flow control blocks an answer. Raises `PeerLeft`
        when Envoy has ended the stream."""
        outbox, stream = self.outbox, self.stream
        try:
            while True:
                if outbox.full:
                    await stream.settle()
                    outbox.full = False
                if outbox.send_now(messages):
                    return
                if not outbox.full:
                    await stream.send(messages.pop(0))
        except StreamClosed as closed:
            raise left(closed) from None

    async def let_end(self) -> None:
        """Wait for Envoy to end the stream after a complete response. If the sidecar ended the stream, bytes could be
        lost."""
        await self.stream.let_end(_AFTER_THE_END)
