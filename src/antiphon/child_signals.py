"""Sends signals to child processes without losing their exit status.

The packages `supervisor`, `commands` and `search` decide when to stop a process.

Invariant: only asyncio collects the exit status of a child process.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress


def send_signal(process: asyncio.subprocess.Process, number: int) -> None:
    """Send a signal to a child process, if it still runs.

    `Process.send_signal` may collect the exit status of an ended process before asyncio does. asyncio then reports
    status 255 and logs "Unknown child process".
    """
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)
