"""A call as the processor sees it: its waits, over what the call has already (`http2_call.py`)."""

from __future__ import annotations

import asyncio

from antiphon.doors.extproc.http2_call import Call
from antiphon.doors.extproc.transport import StreamClosed


class CallStream:
    """`MessageStream` of one call."""

    __slots__ = ("_call", "receive", "receive_now", "send_now")

    def __init__(self, call: Call) -> None:
        self._call = call
        self.receive = call.until_message
        self.receive_now = call.receive_now
        self.send_now = call.send_now

    async def begin(self) -> None:
        """Send the head, if it was not sent."""
        self._call.begin()

    async def send(self, message: bytes) -> None:
        """Send one message; waits while too much is queued."""
        if not self._call.send_now(message):
            await self.settle()

    async def settle(self) -> None:
        """Wait while too much is queued."""
        call = self._call
        while (room := call.until_room()) is not None:
            try:
                async with asyncio.timeout(call.limits.seconds):
                    await room
            except TimeoutError:
                # Envoy takes all it is sent: one that does not is no longer there, whatever its connection says.
                raise StreamClosed("the peer took nothing") from None
            finally:
                call.room = None
        if call.gone:
            raise StreamClosed("the peer ended the call")

    async def let_end(self, seconds: float) -> None:
        """Let the peer end the call; the connection waits for it."""
        self._call.let_end(seconds)
