"""A serving process always ends: signals, the parent's end, and the thread that has the last word."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest

import antiphon

SOURCE = Path(antiphon.__file__).parent.parent
SECONDS = 90.0

SERVES = """
import asyncio, os, sys, time
from collections import Counter
from antiphon.supervisor.process import StopSignals, run_loop
from antiphon.observability.logs import configure

configure("info", "json")

class InFlight:
    in_flight = {{"response": 2, "background": 1}}
    ended = Counter({{"response": 4, "websocket": 1, "given_back": 2}})

async def main():
    signals = StopSignals(int(sys.argv[2]) if len(sys.argv) > 2 else None, 0.3)
    print("serving", flush=True)
    {serve}
    async def drain():
        {drain}
        return True
    drained = await signals.wait_and_drain(drain, InFlight())
    signals.closing()
    {close}
    return 0 if drained else 1

sys.exit(run_loop(main()))
"""
HANGS = {
    "the event loop stands still": {"serve": "time.sleep(60)"},
    "the drain never ends": {"drain": "await asyncio.Event().wait()", "close": "time.sleep(60)"},
    "closing never ends": {"close": "await asyncio.Event().wait()"},
    "a thread never ends": {"close": "asyncio.get_running_loop().run_in_executor(None, time.sleep, 60)"},
}


async def _start(pipe: int | None = None, **parts: str) -> asyncio.subprocess.Process:
    code = SERVES.format(**{"serve": "pass", "drain": "pass", "close": "pass", **parts})
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, *(("--parent-pipe", str(pipe)) if pipe is not None else ())),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        pass_fds=() if pipe is None else (pipe,),
    )
    assert process.stdout is not None
    async with asyncio.timeout(SECONDS):
        assert await process.stdout.readline() == b"serving\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_drain_that_ends_is_status_0(number: int) -> None:
    process = await _start(drain="await asyncio.sleep(0)")
    process.send_signal(number)
    assert await asyncio.wait_for(process.wait(), SECONDS) == 0


@pytest.mark.full
@pytest.mark.parametrize(
    "hang",
    [
        "the event loop stands still",
        "a thread never ends",
        *[pytest.param(each, marks=pytest.mark.full) for each in ("the drain never ends", "closing never ends")],
    ],
)
async def test_a_process_that_hangs_ends_all_the_same_and_says_where(hang: str) -> None:
    process = await _start(None, **HANGS[hang])
    assert process.stderr is not None
    process.send_signal(signal.SIGTERM)
    if hang == "the drain never ends":
        process.send_signal(signal.SIGINT)
    async with asyncio.timeout(SECONDS):
        said = (await process.stderr.read()).decode()
        assert await process.wait() == 1
    assert "ended_by_force" in said and "main_thread" in said


@pytest.mark.full
async def test_it_ends_with_its_parent_although_its_loop_stands_still() -> None:
    reading, writing = os.pipe()
    try:
        process = await _start(reading, serve="time.sleep(60)")
    finally:
        os.close(writing)
        os.close(reading)
    assert await asyncio.wait_for(process.wait(), SECONDS) == 1


async def test_a_second_signal_is_the_end_of_a_drain() -> None:
    process = await _start(drain="print('draining', flush=True); await asyncio.Event().wait()")
    assert process.stdout is not None
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(SECONDS):
        assert await process.stdout.readline() == b"draining\n"
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 1
    assert process.stderr is not None
    lines = [json.loads(line) for line in (await process.stderr.read()).splitlines()]
    (told,) = [line for line in lines if line["message"] == "stopped_with_requests_in_flight"]
    assert (told["level"], told["cut"], told["cut_by_kind"]) == ("warning", 3, {"response": 2, "background": 1})
    assert (told["finished"], told["given_back"]) == (5, 2)


async def test_a_drain_says_what_there_is_and_what_became_of_it() -> None:
    process = await _start(drain="await asyncio.sleep(0)")
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    async with asyncio.timeout(SECONDS):
        lines = [json.loads(line) for line in (await process.stderr.read()).splitlines()]
        assert await process.wait() == 0
    begin, end = lines[-2:]
    assert (begin["message"], begin["because"], begin["seconds"]) == ("draining", "SIGTERM", 0.3)
    assert (begin["in_flight"], begin["in_flight_by_kind"]) == (3, {"response": 2, "background": 1})
    assert (end["message"], end["level"], end["finished"], end["given_back"]) == ("drained", "info", 5, 2)
    assert end["finished_by_kind"] == {"response": 4, "websocket": 1} and "cut" not in end
