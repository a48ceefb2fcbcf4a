"""What `antiphon up` tells a worker while it runs, and what that answers.

Lives here: both ends of the socket between the two, which is the worker's standard input. Not here: what is told
(`worker_reload.py`, `early_ends.py`).

Invariants: nobody else can tell a worker anything; what is told may hold secrets, which travel nowhere else; an answer
is for the order that it names, however late it comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from typing import Any

_LONGEST = 64 << 20
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

    async def give(self, order: dict[str, Any], seconds: float) -> str:
        """Wait for what came of it: nothing, or what is wrong. Raises `TimeoutError` and `ConnectionError`."""
        self._last += 1
        async with asyncio.timeout(seconds):
            if self._streams is None:
                self._streams = await asyncio.open_unix_connection(sock=self._ours, limit=_LONGEST)
            reader, writer = self._streams
            writer.write(json.dumps({**order, "number": self._last}).encode() + b"\n")
            await writer.drain()
            while line := await reader.readline():
                answer = json.loads(line)
                if answer["number"] == self._last:
                    return str(answer["problem"])
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


async def take_orders(ours: socket.socket, obey: Callable[[dict[str, Any]], Awaitable[str]]) -> None:
    """Obey the orders one after the other until the parent closes its end. `obey` returns what is wrong, or an empty
    text. An order without a number gets no answer."""
    reader, writer = await asyncio.open_unix_connection(sock=ours, limit=_LONGEST)
    try:
        while line := await reader.readline():
            order = json.loads(line)
            problem = await obey(order)
            if (number := order.get("number")) is not None:
                writer.write(json.dumps({"number": number, "problem": problem}).encode() + b"\n")
                await writer.drain()
    except ConnectionError:
        # The parent is gone, which the pipe tells too.
        pass
    finally:
        writer.close()
