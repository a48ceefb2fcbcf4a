"""Starts and watches child processes of `antiphon up`, and forwards their output.

Lives here: one child's life, and the pipe by which children notice that their parent is gone. Not here: which children
there are and in which order they stop (`generation.py`).

Invariants: a child never outlives its parent, however the parent ends; the last lines of every child are known when it
dies; no output of a child can stall the parent or be mistaken for the parent's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from antiphon.supervisor import parent_guard
from antiphon.supervisor.process import CLOSING_SECONDS, ORPHAN_SECONDS
from antiphon.supervisor.worker_orders import Orders

_KEPT_LINES = 20
_LONGEST_LINE = 64 * 1024
_OUTPUT_SECONDS = 1.0
_ORPHANS_END_SECONDS = ORPHAN_SECONDS + CLOSING_SECONDS + 0.5


class ParentPipe:
    """A pipe nobody writes to: who reads it learns of the parent's end by the end of the pipe."""

    def __init__(self) -> None:
        # The writing end is not inherited, so that it closes with this process and no other.
        self.reading, self._writing = os.pipe()

    def close(self) -> None:
        """Tell all children that remain."""
        os.close(self._writing)
        os.close(self.reading)


class Child:
    """One running child process. `write_line` gets each line it prints, without the line end."""

    def __init__(
        self,
        name: str,
        process: asyncio.subprocess.Process,
        write_line: Callable[[str, str], None],
        orders: Orders | None = None,
    ) -> None:
        self.name = name
        self.orders = orders
        """What it can be told; not a foreign program."""
        self._process = process
        self._write_line = write_line
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        assert process.stdout is not None
        self._output = asyncio.ensure_future(self._read(process.stdout))

    @classmethod
    async def start(
        cls,
        name: str,
        command: Sequence[str],
        environ: Mapping[str, str],
        *,
        pipe: ParentPipe,
        write_line: Callable[[str, str], None],
        foreign: bool = False,
        files: Sequence[int] = (),
    ) -> Child:
        """Start it. `foreign` programs know nothing of the pipe: they are killed when this process is gone; all others
        get `--parent-pipe`, and are killed only when they do not end by themselves. Those read their orders on standard
        input. `files` are descriptors that it gets too."""
        seconds = 0.0 if foreign else _ORPHANS_END_SECONDS
        guard = str(Path(parent_guard.__file__))
        guarded = [sys.executable, "-I", "-S", guard, str(pipe.reading), f"{seconds:g}", *command]
        orders = None if foreign else Orders()
        try:
            process = await asyncio.create_subprocess_exec(
                *guarded,
                *(() if foreign else ("--parent-pipe", str(pipe.reading))),
                stdin=asyncio.subprocess.DEVNULL if orders is None else orders.theirs.fileno(),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=dict(environ),
                pass_fds=(pipe.reading, *files),
                # A session of its own: Ctrl-C must reach the parent alone, which stops its children in order.
                start_new_session=True,
            )
        except BaseException:
            if orders is not None:
                orders.close()
            raise
        finally:
            if orders is not None:
                orders.started()
        return cls(name, process, write_line, orders)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Exit status (minus the signal's number when one killed it), or None while it runs."""
        return self._process.returncode

    def last_lines(self) -> list[str]:
        """What it wrote last."""
        return list(self._lines)

    async def wait(self) -> int:
        """Wait for its end, and until all it wrote was read."""
        status = await self._process.wait()
        # Whoever inherited its output may keep that open for longer.
        await asyncio.wait({self._output}, timeout=_OUTPUT_SECONDS)
        return status

    def signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    def kill(self) -> None:
        """End it at once, if it still runs."""
        self.signal(signal.SIGKILL)

    async def stop(self, seconds: float, *, foreign: bool = False) -> None:
        """SIGTERM (SIGINT for `foreign` programs, for which that is blocked), then SIGKILL after `seconds`."""
        self.signal(signal.SIGINT if foreign else signal.SIGTERM)
        try:
            async with asyncio.timeout(seconds):
                await self.wait()
        except TimeoutError:
            self.signal(signal.SIGKILL)
            await self.wait()

    async def _read(self, stream: asyncio.StreamReader) -> None:
        """Cut the output into lines; a line that does not end is cut at a length."""
        pending = b""
        try:
            while data := await stream.read(_LONGEST_LINE):
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    self._take(line)
                if len(pending) > _LONGEST_LINE:
                    self._take(pending)
                    pending = b""
            if pending:
                self._take(pending)
        finally:
            if self.orders is not None:
                self.orders.close()

    def _take(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace").rstrip()
        if text:
            self._lines.append(text)
            self._write_line(self.name, text)


def describe_status(status: int) -> str:
    """An exit status in words."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"
