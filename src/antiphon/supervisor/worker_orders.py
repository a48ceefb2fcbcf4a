"""Sends orders from `antiphon up` to a running worker, over a socket.

Lives here: both ends of the socket between the two, which is the worker's standard input. Not here: what is told
(`generation.py`, `early_ends.py`).

Invariants: nobody else can tell a worker anything; a child is given one order at most that it must answer.
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


class Orders:
    """The parent's end, for one child."""

    def __init__(self) -> None:
        self._ours, self.theirs = socket.socketpair()
        self._ours.setblocking(False)

    def started(self) -> None:
        """The child has its end."""
        self.theirs.close()

    async def give(self, do: str, seconds: float) -> None:
        """Wait until it is obeyed. Raises `TimeoutError` and `ConnectionError`."""
        self.tell({"do": do, "answer": True})
        async with asyncio.timeout(seconds):
            if not await asyncio.get_running_loop().sock_recv(self._ours, 1):
                raise ConnectionResetError("it has ended")

    def tell(self, said: dict[str, object]) -> None:
        """Send a message that needs no answer; drop it if the child does not read, or has ended."""
        # A message this short is written whole or not at all.
        with contextlib.suppress(OSError):
            self._ours.send(json.dumps(said).encode() + b"\n")

    def close(self) -> None:
        """The child has ended."""
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


Obey = Mapping[str, Callable[[dict[str, object]], object]]
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
    """Obey the orders one after the other until the parent closes its end."""
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    try:
        while line := await reader.readline():
            order = json.loads(line)
            obey[order["do"]](order)
            if "answer" in order:
                writer.write(b"\n")
    except ConnectionError:
        # The parent is gone, which the pipe tells too.
        pass
    finally:
        writer.close()
