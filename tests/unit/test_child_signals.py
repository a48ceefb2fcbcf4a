"""Signals to child processes: the exit status survives a signal that comes as the process ends."""

from __future__ import annotations

import asyncio
import signal
from asyncio.subprocess import PIPE

import pytest

from antiphon.child_signals import send_signal


async def test_a_signal_to_a_process_that_just_ended_keeps_its_status(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(20):
        process = await asyncio.create_subprocess_exec("/bin/sh", "-c", "exit 3", stdout=PIPE)
        assert process.stdout is not None and await process.stdout.read() == b""
        send_signal(process, signal.SIGTERM)
        assert await process.wait() == 3
        send_signal(process, signal.SIGTERM)
    assert caplog.records == []


async def test_a_running_process_gets_the_signal() -> None:
    process = await asyncio.create_subprocess_exec("/bin/sh", "-c", "kill -STOP $$", stdout=PIPE)
    send_signal(process, signal.SIGKILL)
    assert await process.wait() == -signal.SIGKILL
