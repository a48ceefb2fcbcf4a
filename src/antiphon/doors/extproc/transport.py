"""The message stream between the gRPC server and the processor.

Lives here: the interface a gRPC transport offers, and its implementation on `grpc.aio`. Not here: what the messages
mean (`wire.py`, `stream.py`).

Invariant: `send` returns only once the transport accepted the message, so that flow control reaches the sender.
"""

from __future__ import annotations

from typing import Protocol

import grpc
import grpc.aio

from antiphon.errors import AntiphonError

__all__ = ["GrpcMessageStream", "MessageStream", "StreamClosed"]


class StreamClosed(AntiphonError):
    """The peer is gone: nothing can be sent any more."""


class MessageStream(Protocol):
    """One bidirectional stream of serialised messages."""

    async def receive(self) -> bytes | None:
        """The next message, or None when the peer has ended its side."""

    async def send(self, message: bytes) -> None:
        """Send one message; waits for flow control. Raises `StreamClosed` when the peer is gone."""


class GrpcMessageStream:
    """`MessageStream` over a `grpc.aio` servicer context with raw-bytes (de)serialisers."""

    __slots__ = ("_context",)

    def __init__(self, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        self._context = context

    async def receive(self) -> bytes | None:
        message = await self._context.read()
        return None if message is grpc.aio.EOF else message  # type: ignore[attr-defined]

    async def send(self, message: bytes) -> None:
        try:
            await self._context.write(message)
        except grpc.aio.BaseError as error:
            # The peer ended the call between our looking and our writing.
            raise StreamClosed(type(error).__name__) from None
