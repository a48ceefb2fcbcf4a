"""What `antiphon up` tells a worker while it runs.

Lives here: both ends of the socket between the two, which is the worker's standard input. Not here: what is told
(`generation.py`, `early_ends.py`).

Invariants: nobody else can tell a worker anything; an answer is for the order that it names, however late it comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

_MOST_UNREAD = 1 << 20


class Orders:
    """The parent's end, for one child."""

    def __init__(self) -> None:
        self._ours, self.theirs = socket.socketpair()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._last = 0

    def started(self) -> None:
        """The child has its end."""
        self.theirs.close()

    async def give(self, order: dict[str, Any], seconds: float) -> None:
        """Wait until it is obeyed. Raises `TimeoutError` and `ConnectionError`."""
        self._last += 1
        async with asyncio.timeout(seconds):
            if self._streams is None:
                self._streams = await asyncio.open_unix_connection(sock=self._ours)
            reader, writer = self._streams
            writer.write(json.dumps({**order, "number": self._last}).encode() + b"\n")
            await writer.drain()
            while line := await reader.readline():
                if json.loads(line)["number"] == self._last:
                    return
        raise ConnectionResetError("it has ended")

    def tell(self, said: dict[str, Any]) -> None:
        """Send a message that needs no answer; drop it if the child does not read, or has ended."""
        line = json.dumps(said).encode() + b"\n"
        if self._streams is not None:
            writer = self._streams[1]
            if writer.transport.get_write_buffer_size() < _MOST_UNREAD and not writer.is_closing():
                writer.write(line)
            return
        # A message this short is written whole or not at all.
        with contextlib.suppress(OSError):
            self._ours.send(line, socket.MSG_DONTWAIT)

    def close(self) -> None:
        """The child has ended."""
        if self._streams is not None:
            self._streams[1].close()
        else:
            self._ours.close()


def own_end() -> socket.socket | None:
    """The worker's end, where standard input is one; nothing that this process starts gets to read there."""
    if not stat.S_ISSOCK(os.fstat(0).st_mode):
        return None
    ours = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return ours


Obey = Mapping[str, Callable[[dict[str, Any]], object]]
"""What is done, by what an order says is to be done."""


@asynccontextmanager
async def obeying(ours: socket.socket | None, obey: Obey) -> AsyncIterator[None]:
    """While this lasts, the parent's orders are obeyed, where there is a parent."""
    task = asyncio.ensure_future(take_orders(ours, obey)) if ours is not None else None
    try:
        yield
    finally:
        if task is not None:
            task.cancel()
            await asyncio.wait({task})


async def take_orders(ours: socket.socket, obey: Obey) -> None:
    """Obey the orders one after the other until the parent closes its end. One without a number gets no answer."""
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    try:
        while line := await reader.readline():
            order = json.loads(line)
            obey[order["do"]](order)
            if (number := order.get("number")) is not None:
                writer.write(json.dumps({"number": number}).encode() + b"\n")
                await writer.drain()
    except ConnectionError:
        # The parent is gone, which the pipe tells too.
        pass
    finally:
        writer.close()
