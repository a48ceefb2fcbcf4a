"""Starts `antiphon up` as a child process for one command, and stops it at the command's end.

Lives here: the process, its log file, its ready line, its end. Not here: the gateway itself (`up.py`), finding a
gateway that already runs (`running_gateway.py`).

Invariants: the gateway never outlives the command, even if the command is killed. Ctrl-C does not reach the gateway,
because the client decides what Ctrl-C means. The gateway's log does not disturb the client's terminal.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from antiphon.child_signals import send_signal
from antiphon.errors import AntiphonError
from antiphon.supervisor import parent_guard
from antiphon.supervisor.children import ParentPipe

_START_SECONDS = 180.0
_CLOSING_SECONDS = 10.0
_TOLD_LINES = 5
_TOLD_BYTES = 16 * 1024


class StartedGateway:
    """A running `antiphon up`. `url` is its base URL."""

    def __init__(self, process: asyncio.subprocess.Process, url: str) -> None:
        self._process = process
        self.url = url

    def signal(self) -> None:
        """Ask the gateway to stop; a second time, to stop immediately."""
        send_signal(self._process, signal.SIGTERM)


@asynccontextmanager
async def started_gateway(words: Sequence[str], log: Path, drain: float) -> AsyncIterator[StartedGateway]:
    """Run `antiphon up` with these arguments while the block runs. Its log lines go to the file `log`. `drain` is the
    setting `timeouts.drain`. Raises `AntiphonError` if the gateway does not become ready."""
    pipe = ParentPipe()
    # The guard ends the gateway if this process is killed.
    guard = [sys.executable, "-I", "-S", str(Path(parent_guard.__file__)), str(pipe.reading), f"{_CLOSING_SECONDS:g}"]
    try:
        with _private(log) as lines:
            process = await asyncio.create_subprocess_exec(
                *(*guard, sys.executable, "-m", "antiphon", "up", *words),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=lines,
                pass_fds=(pipe.reading,),
                start_new_session=True,
            )
        try:
            yield StartedGateway(process, await _ready(process, log))
        finally:
            await _stop(process, drain + _CLOSING_SECONDS)
    finally:
        pipe.close()


def _private(log: Path) -> BinaryIO:
    log.touch(mode=0o600)
    return log.open("ab")


async def _ready(process: asyncio.subprocess.Process, log: Path) -> str:
    """The base URL in the ready line. Raises `AntiphonError`."""
    assert process.stdout is not None
    line = b""
    with suppress(TimeoutError):
        async with asyncio.timeout(_START_SECONDS):
            line = await process.stdout.readline()
    start, _, url = line.decode().strip().partition(" ")
    if start != "ready:":
        raise AntiphonError("\n  ".join(("the gateway did not start:", *_last_lines(log))))
    return url


def _last_lines(log: Path) -> list[str]:
    with log.open("rb") as lines:
        lines.seek(max(0, os.fstat(lines.fileno()).st_size - _TOLD_BYTES))
        return lines.read().decode("utf-8", "replace").splitlines()[-_TOLD_LINES:]


async def _stop(process: asyncio.subprocess.Process, seconds: float) -> None:
    send_signal(process, signal.SIGTERM)
    try:
        async with asyncio.timeout(seconds):
            await process.wait()
    except BaseException as error:
        # After an interruption too, no process may remain.
        send_signal(process, signal.SIGKILL)
        await process.wait()
        if not isinstance(error, TimeoutError):
            raise
