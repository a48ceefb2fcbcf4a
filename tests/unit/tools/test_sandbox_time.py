"""One run in a machine, its process played: time that is over, threads, stopping, what is lost, what is said of it."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from antiphon.config.tools import CodeInterpreterSettings
from antiphon.tools.code_interpreter import machine
from antiphon.tools.code_interpreter.machine import CodeRun, Machine

LIMITS = CodeInterpreterSettings(seconds=10.0, output_bytes=1024)
SAID = "\n[Stopped: it took longer than 10 seconds.]"


class _Stdin:
    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.closed = False

    def write(self, line: bytes) -> None:
        self.lines.append(json.loads(line))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


class Process:
    """As much of a process as a machine asks."""

    def __init__(self) -> None:
        self.stdin = _Stdin()
        self.stdout, self.stderr = asyncio.StreamReader(), asyncio.StreamReader()
        self.returncode: int | None = None
        self.pid = 4711
        self.signals: list[int] = []

    def send_signal(self, number: int) -> None:
        self.signals.append(number)

    def kill(self) -> None:
        self.returncode = -9
        for stream in (self.stdout, self.stderr):
            stream.feed_eof()

    async def wait(self) -> int:
        return self.returncode or 0


class Playing:
    """A machine with such a process; `now` is what its clock says in turn, `stopped` whether it has."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.machine = Machine(home, LIMITS, 99, "memory")
        self.process = Process()
        self.machine._process = self.process  # type: ignore[assignment]
        self.machine._requests = self.process.stdin  # type: ignore[assignment]
        self.machine._reading = asyncio.ensure_future(self.machine._read())
        self.stopped = [True]
        self.now: Iterator[float] = iter(())
        self.waits: list[float | None] = []
        wait = asyncio.wait

        async def waited(tasks: Any, **how: Any) -> Any:
            seconds = how.get("timeout")
            self.waits.append(seconds)
            return await wait(tasks, timeout=None if seconds is None else min(seconds, 0.001))

        monkeypatch.setattr(machine, "_stopped", lambda pid: self.stopped.pop(0) if self.stopped else False)
        # Its own name for the clock: the event loop has another.
        monkeypatch.setattr(machine, "time", SimpleNamespace(monotonic=lambda: next(self.now)))
        monkeypatch.setattr(asyncio, "wait", waited)

    def answers(self, **answer: Any) -> None:
        self.process.stdout.feed_data(json.dumps(answer).encode() + b"\n")

    async def watch(self, *now: float) -> tuple[str, str]:
        self.now = iter((100.0, *now))
        answering = asyncio.ensure_future(self.machine._answer())
        try:
            return await self.machine._watch(answering)
        finally:
            answering.cancel()


@pytest.fixture
async def playing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Playing]:
    made = Playing(tmp_path / "cntr_a", monkeypatch)
    yield made
    made.process.kill()
    await made.machine.end(keep=False)


@pytest.mark.parametrize(("last", "interrupted"), [(109.9, False), (110.0, True), (110.1, True)])
async def test_a_run_is_interrupted_when_its_time_is_over(
    playing: Playing, monkeypatch: pytest.MonkeyPatch, last: float, interrupted: bool
) -> None:
    # Looked at once more than time there is, it would have too many threads.
    looked = iter((False, True))
    monkeypatch.setattr(playing.machine, "_too_many_threads", lambda: next(looked))
    said, lost = await playing.watch(105.0, last, last)
    if interrupted:
        assert (said, lost) == (SAID, "it did not stop when its time was up")
        assert playing.process.signals == [signal.SIGINT] and playing.waits == [0.1, 0.0, 1.0]
    else:
        assert (said, lost) == ("", "it had too many threads") and playing.process.signals == []
        assert playing.waits == [0.1, pytest.approx(0.1)]


async def test_what_stops_when_it_is_interrupted_keeps_its_variables(playing: Playing) -> None:
    send = playing.process.send_signal

    def answers(number: int) -> None:
        send(number)
        playing.answers(failed=True)

    playing.process.send_signal = answers  # type: ignore[method-assign]
    assert await playing.watch(110.0) == (SAID, "")


async def test_what_has_answered_is_over(playing: Playing) -> None:
    playing.answers(failed=False)
    assert await playing.watch(200.0) == ("", "") and playing.process.signals == []


@pytest.mark.parametrize(
    ("stopped", "now", "why"),
    [
        ([True], [0.0], ""),
        ([False, False, True], [0.0, 1.0, 4.9], ""),
        ([False, False], [0.0, 4.9, 5.0], "it could not be stopped"),
    ],
)
async def test_it_is_stopped_or_must_end(playing: Playing, stopped: list[bool], now: list[float], why: str) -> None:
    playing.stopped, playing.now = stopped, iter(now)
    assert await playing.machine._freeze() == why
    assert playing.process.signals == [signal.SIGSTOP]


async def test_one_that_ended_meanwhile_is_not_stopped(playing: Playing) -> None:
    playing.stopped, playing.now = [False], iter((0.0, 1.0))
    playing.process.returncode = 1
    assert await playing.machine._freeze() == "the interpreter ended"


@pytest.mark.parametrize(("answer", "held"), [(b"no\n", False), (b"yes\n", True), (b"", True)])
async def test_in_a_counted_room_it_may_hold_nothing_that_is_deleted(
    playing: Playing, monkeypatch: pytest.MonkeyPatch, answer: bytes, held: bool
) -> None:
    asked: list[str] = []

    def ask(line: str) -> bytes:
        asked.append(line)
        return answer

    playing.machine._room = "counted"
    monkeypatch.setattr(playing.machine, "_ask", ask)
    playing.now = iter((0.0,))
    why = await playing.machine._freeze()
    assert why == ("it kept files open that are deleted" if held else "") and asked == ["held?\n"]


# A whole run


async def _run(playing: Playing, monkeypatch: pytest.MonkeyPatch, *, lost: str = "", printed: str = "out") -> CodeRun:
    async def frozen() -> str:
        return lost

    monkeypatch.setattr(playing.machine, "_freeze", frozen)
    monkeypatch.setattr(playing.machine, "_too_many_threads", lambda: False)

    def prints(line: bytes) -> None:
        _Stdin.write(playing.process.stdin, line)
        mark = playing.process.stdin.lines[-1]["mark"]
        playing.process.stderr.feed_data(printed.encode() + mark.encode())

    monkeypatch.setattr(playing.process.stdin, "write", prints)
    playing.now = iter((100.0, 100.0, 100.0))
    return await playing.machine.run("code")


async def test_a_run_that_went_well(playing: Playing, monkeypatch: pytest.MonkeyPatch) -> None:
    playing.answers(failed=False, pictures=[])
    assert await _run(playing, monkeypatch) == CodeRun("out", (), False, "", True)
    assert playing.process.signals == [signal.SIGCONT] and playing.machine.begun and playing.machine.alive
    playing.answers(failed=True)
    assert await _run(playing, monkeypatch, printed="") == CodeRun("", (), True, "", False)
    sent = playing.process.stdin.lines
    assert [one["code"] for one in sent] == ["code", "code"] and sent[0]["mark"] != sent[1]["mark"]
    assert not playing.process.stdin.closed
    for answer in ({}, {"failed": 0}, {"failed": None}):
        playing.answers(**answer)
        assert (await _run(playing, monkeypatch)).failed  # it is not believed that all went well
    await playing.machine.end()


async def test_one_that_ended_before_it_was_sent_code_is_not_written_to(
    playing: Playing, monkeypatch: pytest.MonkeyPatch
) -> None:
    playing.process.stdin.close()
    playing.process.stdout.feed_eof()
    assert (await _run(playing, monkeypatch)).lost == "the interpreter ended" and playing.process.stdin.lines == []


@pytest.mark.parametrize("why", ["it could not be stopped", ""])
async def test_a_run_whose_process_must_end(playing: Playing, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    if why:
        playing.answers(failed=False)
    else:
        playing.process.stdout.feed_eof()
    run = await _run(playing, monkeypatch, lost=why)
    assert run == CodeRun("out", (), True, why or "the interpreter ended", True)
    assert playing.process.returncode == -9 and playing.process.stdin.closed and not playing.machine.alive


async def test_one_that_is_given_up_in_the_middle_leaves_no_task(
    playing: Playing, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = asyncio.all_tasks()
    begun = asyncio.Event()

    async def watch(answering: Any) -> Any:
        begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(playing.machine, "_watch", watch)
    running = asyncio.create_task(playing.machine.run("code"))
    await begun.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert asyncio.all_tasks() == before
    await playing.machine.end(keep=False)
    assert playing.process.stdin.closed and asyncio.all_tasks() < before
