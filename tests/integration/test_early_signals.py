"""SIGTERM at any moment of a start: the process ends soon, with a status that the docs name."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SECONDS = 60.0
COMMANDS = {
    "serve": ("serve", "--listen", "127.0.0.1:0"),
    "extproc": ("extproc",),
    "up": ("up", "--door", "http", "--listen", "127.0.0.1:0"),
}


async def _status(words: tuple[str, ...], data: Path, lines: int) -> int:
    """The status of a process that is told to leave when it has imported so many modules, or serves."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-X", "importtime", "-m", "antiphon", *words, "--data", str(data)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(SECONDS):
            for _ in range(lines):
                if not (line := await process.stdout.readline()) or line.startswith((b"serving: ", b"ready: ")):
                    break
            process.send_signal(signal.SIGTERM)
            await process.stdout.read()
            return await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize("lines", [1, 150, 400, 700, 10_000])
@pytest.mark.parametrize("command", COMMANDS)
async def test_a_process_that_is_told_to_leave_while_it_starts_ends(command: str, lines: int, folder: Path) -> None:
    # Before it has a handler the kernel ends it; afterwards it ends itself, and nothing was lost.
    assert await _status(COMMANDS[command], folder, lines) in (-signal.SIGTERM, 0)
