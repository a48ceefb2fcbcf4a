"""Runs Antiphon's commands as child processes of a test."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.support.envoy_binary import envoy_environ
from tests.support.waiting import until

SECONDS = 90.0


class Command:
    """A running command, with its output so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.out: list[str] = []
        self.err: list[str] = []
        assert process.stdout is not None and process.stderr is not None
        self._readers = [
            asyncio.ensure_future(self._read(stream, lines))
            for stream, lines in ((process.stdout, self.out), (process.stderr, self.err))
        ]

    @staticmethod
    async def _read(stream: asyncio.StreamReader, lines: list[str]) -> None:
        async for line in stream:
            lines.append(line.decode().rstrip())

    async def line(self, start: str) -> str:
        """Wait for a line of standard output or error that begins with `start`. Returns the rest of the line."""
        await until(lambda: any(line.startswith(start) for line in (*self.out, *self.err)), SECONDS)
        return next(line for line in (*self.out, *self.err) if line.startswith(start)).removeprefix(start)

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    async def end(self, number: int | None = None) -> int:
        """Send the signal `number`, if given, and wait for the end. Returns the exit status."""
        if number is not None and self._process.returncode is None:
            self.signal(number)
        async with asyncio.timeout(SECONDS):
            status = await self._process.wait()
            await asyncio.wait(self._readers)
        return status

    def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()


@asynccontextmanager
async def commands() -> AsyncIterator[list[Command]]:
    """A list for the processes that `run_command` starts. Kills the running ones at the end."""
    made: list[Command] = []
    try:
        yield made
    finally:
        for process in made:
            process.kill()
            await process.end()


async def run_command(processes: list[Command], *arguments: str, **environ: str) -> Command:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("ANTIPHON_")}
    process = Command(
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "antiphon", *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**plain, "ANTIPHON_TIMEOUTS__CHECK": "0", **envoy_environ(), **environ},
        )
    )
    processes.append(process)
    return process
