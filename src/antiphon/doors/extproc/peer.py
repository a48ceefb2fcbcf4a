"""Waits for messages from Envoy and sends messages to it, for one stream.

Lives here: the waits. Not here: what is here already and what leaves at once (`message_queues.py`), what is sent
(`answers.py`, `wire.py`), and when it is legal (`stream.py`, `relay_state.py`, `immediate_response.py`).

Invariant: whoever answers does it through a `Peer`, so `Peer.answered` tells whether Envoy was told anything yet; until
then a failure can still become a proper error.
"""

from __future__ import annotations

from antiphon.doors.extproc.message_queues import GATHERED, Inbox, Outbox, PeerLeft, left
from antiphon.doors.extproc.received import Received
from antiphon.doors.extproc.transport import MessageStream, StreamClosed
from antiphon.errors import AntiphonError

_AFTER_THE_END = 5.0


class StreamCut(AntiphonError):
    """What the client was sent cannot be completed, and nothing can be put behind it: its stream must break off."""


class Peer:
    """Envoy, of one stream."""

    __slots__ = ("inbox", "outbox", "receive_now", "stream")

    def __init__(self, stream: MessageStream, gathered: int = GATHERED) -> None:
        self.stream = stream
        self.inbox = Inbox(stream, gathered)
        self.outbox = Outbox(stream)
        self.receive_now = self.inbox.receive_now

    @property
    def answered(self) -> bool:
        """Whether Envoy was told anything yet."""
        return self.outbox.answered

    async def receive(self) -> Received:
        """The next message, parts of the upstream's body as one (`message_queues.py`). Raises `PeerLeft` when there
        is none any more."""
        received = self.receive_now()
        if received is not None:
            return received
        return self.inbox.read(await self.stream.receive())

    async def begin(self) -> None:
        """Before anything that must not happen twice (a model call, a write): from now on Envoy does not hand the
        request to another process, should this one die. Raises `PeerLeft`."""
        try:
            await self.stream.begin()
        except StreamClosed as closed:
            raise PeerLeft(f"the stream ended before it was answered ({closed})") from None

    async def send(self, message: bytes) -> None:
        """Send one answer; waits for flow control. Raises `PeerLeft` when nobody is there to take it."""
        await self.send_all([message])

    async def send_all(self, messages: list[bytes]) -> None:
        """Send these in the same way; the list is emptied."""
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
        """Everything was answered: Envoy is to end the stream, since ending it here could cut something."""
        await self.stream.let_end(_AFTER_THE_END)
