"""Starts and watches child processes of `antiphon up`, and forwards their output.

This module manages one child process from start to end. It also creates the pipe by which the children notice that the
parent process has ended. `generation.py` has the list of children and stops them in order.

Invariants: a child ends when the parent process ends, even if the parent process is killed. The parent process keeps
the last output lines of a child. No output of a child can block the parent process or look like its output.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from antiphon.child_signals import send_signal
from antiphon.supervisor import parent_guard
from antiphon.supervisor.process import CLOSING_SECONDS, ORPHAN_SECONDS
from antiphon.supervisor.worker_orders import Orders

_KEPT_LINES = 20
_LONGEST_LINE = 64 * 1024
_OUTPUT_SECONDS = 1.0
_ORPHANS_END_SECONDS = ORPHAN_SECONDS + CLOSING_SECONDS + 0.5


class ParentPipe:
    """A pipe by which the children notice that the parent process has ended. No process writes to the pipe. When the
    parent process ends, the children read end-of-file."""

    def __init__(self) -> None:
        # Children do not inherit the pipe's writing end, so the kernel closes that end when this process ends.
        self.reading, self._writing = os.pipe()

    def close(self) -> None:
        """Close the pipe. The remaining children then end as if the parent process had ended."""
        os.close(self._writing)
        os.close(self.reading)


class Child:
    """One running child process. For each line of the child's output, this class calls `write_line` with the child's
    name and the line."""

    def __init__(
        self,
        name: str,
        process: asyncio.subprocess.Process,
        write_line: Callable[[str, str], None],
        orders: Orders | None = None,
    ) -> None:
        self.name = name
        self.orders = orders
        """The channel for orders to the child, or None for a program that is not Antiphon, such as Envoy."""
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
        """Start a child process. A worker watches the parent pipe (`--parent-pipe`) and reads orders on standard input.
        The guard (`parent_guard.py`) kills a worker that does not end soon after this process has ended. A `foreign`
        program, such as Envoy, does not watch the pipe, so the guard kills it immediately. `files` are descriptors that
        the child inherits."""
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
                # The child has a separate session, so that Ctrl-C reaches only the parent. The parent stops its
                # children in order.
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
        """The process id of the child."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """The exit status, or None while the child runs. If a signal killed the child, the status is the negative
        signal number."""
        return self._process.returncode

    def last_lines(self) -> list[str]:
        """The last lines that the child printed, at most 20."""
        return list(self._lines)

    async def wait(self) -> int:
        """Wait until the child has ended and the parent process has read all of its output. Returns the exit status."""
        status = await self._process.wait()
        # The wait for the output is limited, because a process that inherited the output may keep it open longer.
        await asyncio.wait({self._output}, timeout=_OUTPUT_SECONDS)
        return status

    def signal(self, number: int) -> None:
        """Send a signal, if the child still runs."""
        send_signal(self._process, number)

    def kill(self) -> None:
        """Send SIGKILL, if the child still runs."""
        self.signal(signal.SIGKILL)

    async def stop(self, seconds: float, *, foreign: bool = False) -> None:
        """Send SIGTERM to a worker, or SIGINT to a `foreign` program, which blocks SIGTERM. If the child still runs
        after `seconds`, send SIGKILL."""
        self.signal(signal.SIGINT if foreign else signal.SIGTERM)
        try:
            async with asyncio.timeout(seconds):
                await self.wait()
        except TimeoutError:
            self.signal(signal.SIGKILL)
            await self.wait()

    async def _read(self, stream: asyncio.StreamReader) -> None:
        """Read the child's output and split it into lines. The method also splits very long lines."""
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
    """Describe an exit status in words."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"
