"""Child processes of `antiphon up`: started, watched, their output kept and forwarded.

Lives here: one child's life. Not here: which children there are and in which order they stop (`up.py`).

Invariants: a child never outlives its parent (the kernel ends it, or it sees the end of a pipe); the last lines of
every child are known when it dies.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from collections import deque
from collections.abc import Mapping, Sequence

__all__ = ["Child"]

_LINES = 20
_PR_SET_PDEATHSIG = 1


class Child:
    """One running child process."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self._process = process
        self._lines: deque[str] = deque(maxlen=_LINES)
        self._readers = [
            asyncio.ensure_future(self._forward(stream))
            for stream in (process.stdout, process.stderr)
            if stream is not None
        ]

    @classmethod
    async def start(
        cls, name: str, command: Sequence[str], environ: Mapping[str, str], *, pipe: int | None = None
    ) -> Child:
        """Start it; `pipe` is inherited, and the child ends when its other end is closed."""
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=dict(environ),
            pass_fds=() if pipe is None else (pipe,),
            # Of its own group: a terminal's Ctrl-C must reach the parent alone, which drains the children in order.
            start_new_session=True,
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            limit=1 << 20,
        )
        return cls(name, process)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Exit status, or None while it runs."""
        return self._process.returncode

    def last_lines(self) -> list[str]:
        """What it wrote last."""
        return list(self._lines)

    async def wait(self) -> int:
        """Wait for its end, and until all it wrote was read."""
        status = await self._process.wait()
        if self._readers:
            await asyncio.wait(self._readers, timeout=1)
        return status

    def signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self._process.returncode is None:
            self._process.send_signal(number)

    async def stop(self, seconds: float) -> None:
        """SIGTERM, then SIGKILL after `seconds`."""
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(seconds):
                await self.wait()
        except TimeoutError:
            self.signal(signal.SIGKILL)
            await self.wait()

    async def _forward(self, stream: asyncio.StreamReader) -> None:
        while True:
            try:
                line = await stream.readline()
            except ValueError:
                # A line longer than the limit: its rest follows as lines of its own.
                continue
            if not line:
                return
            text = line.decode("utf-8", "replace").rstrip()
            self._lines.append(text)
            if not text.startswith(("ready: ", "serving: ")):
                print(text, file=sys.stderr, flush=True)


def _die_with_parent() -> None:
    """In the child, before it becomes the command: the kernel is to end it when its parent ends."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
