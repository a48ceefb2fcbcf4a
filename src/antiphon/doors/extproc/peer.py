"""Waits for messages from Envoy and sends messages to it, for one stream.

Lives here: the waits. Not here: reading and sending without waiting (`message_queues.py`), the content of answers
(`answers.py`, `wire.py`), when an answer is legal (`stream.py`, `relay_state.py`, `immediate_response.py`).

Invariant: all answers go through a `Peer`, so `Peer.answered` shows whether any was sent. Before the first one, a
failure can still become a proper error response.
"""

from __future__ import annotations

from antiphon.doors.extproc.message_queues import GATHERED, Inbox, Outbox, PeerLeft, left
from antiphon.doors.extproc.received import Received
from antiphon.doors.extproc.transport import MessageStream, StreamClosed
from antiphon.errors import AntiphonError

_AFTER_THE_END = 5.0


class StreamCut(AntiphonError):
    """The client's response cannot be completed, and nothing may follow it: its stream must break off."""


class Peer:
    """Envoy's side of one stream."""

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
        """The next message, with joined body parts (`message_queues.py`). Raises `PeerLeft` at the end."""
        received = self.receive_now()
        if received is not None:
            return received
        return self.inbox.read(await self.stream.receive())

    async def begin(self) -> None:
        """Call this before an action that must not happen twice (a model call, a write). Afterwards Envoy does not send
        the request to another process if this one dies. Raises `PeerLeft`."""
        try:
            await self.stream.begin()
        except StreamClosed as closed:
            raise PeerLeft(f"the stream ended before it was answered ({closed})") from None

    async def send(self, message: bytes) -> None:
        """Send one answer; waits for flow control. Raises `PeerLeft` when Envoy has left."""
        await self.send_all([message])

    async def send_all(self, messages: list[bytes]) -> None:
        """Send these messages in the same way, and empty the list."""
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
        """The response is complete: let Envoy end the stream, because ending it here could cut off bytes."""
        await self.stream.let_end(_AFTER_THE_END)
