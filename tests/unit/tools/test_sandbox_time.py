"""One run in a machine, its process played: time that is over, threads, stopping, what is lost, what is said of it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from antiphon.config.tools import CodeInterpreterSettings
from antiphon.tools.code_interpreter.local import make_home
from antiphon.tools.code_interpreter.machine import CodeRun, Machine, System

LIMITS = CodeInterpreterSettings(seconds=10.0, output_bytes=1024)
SAID = "\n[Stopped: it took longer than 10 seconds.]"


class Process:
    """As much of a process as a machine asks: it says `answers`, one a run, and prints `printed` at each."""

    def __init__(self) -> None:
        self.stdout, self.stderr = asyncio.StreamReader(limit=256), asyncio.StreamReader()
        self.returncode: int | None = None
        self.pid = 4711
        self.signals: list[int] = []
        self.on_signal: Callable[[int], object] = lambda number: None
        self.code: list[dict[str, Any]] = []
        self.answers: list[bytes] = []
        self.printed = "out"
        self.told: list[str] = []
        self.held = b"no\n"
        self.closed = asyncio.Event()
        self.hearing: asyncio.Task[None] | None = None

    async def spawn(self, *command: str, stdin: Any, pass_fds: tuple[int, ...], **how: Any) -> Process:
        requests = asyncio.StreamReader()
        pipe = os.fdopen(os.dup(stdin.fileno()), "rb", 0)
        protocol = asyncio.StreamReaderProtocol(requests)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, pipe)
        control = socket.socket(fileno=os.dup(pass_fds[0]))
        threading.Thread(target=self._is_told, args=(control,), daemon=True).start()
        self.hearing = asyncio.create_task(self._hears(requests, transport))
        self.stdout.feed_data(b'{"ready": true}\n')
        return self

    def _is_told(self, control: socket.socket) -> None:
        with control, control.makefile("r") as lines:
            for line in lines:
                self.told.append(line)
                if line == "held?\n" and not self.held:
                    return
                control.sendall(self.held if line == "held?\n" else b"\n")

    async def _hears(self, requests: asyncio.StreamReader, transport: asyncio.BaseTransport) -> None:
        while line := await requests.readline():
            self.code.append(json.loads(line))
            self.stderr.feed_data(self.printed.encode() + self.code[-1]["mark"].encode())
            if self.answers:
                self.stdout.feed_data(self.answers.pop(0))
        transport.close()
        self.closed.set()

    def send_signal(self, number: int) -> None:
        self.signals.append(number)
        self.on_signal(number)

    def kill(self) -> None:
        self.returncode = -9
        for stream in (self.stdout, self.stderr):
            stream.feed_eof()

    async def wait(self) -> int:
        return self.returncode or 0


def said(**answer: Any) -> bytes:
    return json.dumps(answer).encode() + b"\n"


class Playing:
    """A machine with such a process; `now` is what its clock says in turn, and then the last of it; `stopped` whether
    the process has."""

    def __init__(self, home: Path) -> None:
        self.process = Process()
        self.stopped = [True]
        self.now: Iterator[float] = iter(())
        self.last = 100.0
        self.threads: Iterator[int] = iter(())
        self.waits: list[float | None] = []
        self.hasty = False
        spawn: Any = self.process.spawn
        system = System(spawn, self._monotonic, self._wait, self._stopped, lambda pid: next(self.threads, 0))
        self.machine = Machine(make_home(home), LIMITS, 99, "counted", system=system)

    def _monotonic(self) -> float:
        self.last = next(self.now, self.last)
        return self.last

    def _stopped(self, pid: int) -> bool:
        assert pid == 4711
        return self.stopped.pop(0) if len(self.stopped) > 1 else self.stopped[0]

    async def _wait(self, tasks: Any, **how: float) -> object:
        timeout = how["timeout"]
        self.waits.append(timeout)
        return await asyncio.wait(tasks, timeout=min(timeout, 0.001) if self.hasty else 30.0)

    async def run(self, *now: float, answer: bytes | None = None) -> CodeRun:
        """Code that answers so, or not at all; the clock says 100 first."""
        self.now = iter((100.0, *now))
        self.hasty = answer is None
        self.process.answers = [] if answer is None else [answer]
        return await self.machine.run("code")


@pytest.fixture
async def playing(tmp_path: Path) -> AsyncIterator[Playing]:
    made = Playing(tmp_path / "cntr_a")
    await made.machine.start("python")
    yield made
    await made.machine.end(keep=False)
    if made.process.hearing is not None:
        await made.process.hearing


FREEZING = [signal.SIGCONT, signal.SIGSTOP]


@pytest.mark.parametrize(("last", "interrupted"), [(109.9, False), (110.0, True), (110.1, True)])
async def test_a_run_is_interrupted_when_its_time_is_over(playing: Playing, last: float, interrupted: bool) -> None:
    # Looked at once more than time there is, it would have too many threads.
    playing.threads = iter((0, LIMITS.threads + 1))
    run = await playing.run(105.0, last, last)
    assert run.failed
    if interrupted:
        assert run.output == "out" + SAID and run.lost == "it did not stop after its timeout"
        assert playing.process.signals == [signal.SIGCONT, signal.SIGINT] and playing.waits == [0.1, 0.0, 1.0]
    else:
        assert (run.output, run.lost) == ("out", "it had too many threads")
        assert playing.process.signals == [signal.SIGCONT] and playing.waits == [0.1, pytest.approx(0.1)]


@pytest.mark.parametrize(("threads", "lost"), [(0, ""), (1, "it had too many threads")])
async def test_as_many_threads_as_there_may_be_are_not_too_many(playing: Playing, threads: int, lost: str) -> None:
    playing.threads = iter((LIMITS.threads + threads,))

    def answers(number: int) -> None:
        if number == signal.SIGINT:
            playing.process.stdout.feed_data(said())

    playing.process.on_signal = answers
    assert (await playing.run(100.0, 110.0)).lost == lost


async def test_what_stops_when_it_is_interrupted_keeps_its_variables(playing: Playing) -> None:
    def answers(number: int) -> None:
        if number == signal.SIGINT:
            playing.process.stdout.feed_data(said(failed=True))

    playing.process.on_signal = answers
    run = await playing.run(110.0)
    assert (run.output, run.lost, run.failed) == ("out" + SAID, "", True)
    assert playing.process.signals == [signal.SIGCONT, signal.SIGINT, signal.SIGSTOP]


async def test_what_has_answered_is_over(playing: Playing) -> None:
    run = await playing.run(200.0, answer=said(failed=False))
    assert run == CodeRun("out", (), False, "", True) and playing.process.signals == FREEZING


@pytest.mark.parametrize(
    ("stopped", "now", "why"),
    [
        ([True], [0.0], ""),
        ([False, False, True], [0.0, 1.0, 4.9], ""),
        ([False, False, True], [0.0, 4.9, 5.0], "it could not be stopped"),
    ],
)
async def test_it_is_stopped_or_must_end(playing: Playing, stopped: list[bool], now: list[float], why: str) -> None:
    playing.stopped = stopped
    run = await playing.run(100.0, *now, answer=said(failed=False))
    assert (run.lost, run.failed) == (why, bool(why)) and playing.process.signals == FREEZING
    assert (playing.process.returncode == -9) is bool(why) and playing.machine.alive is not bool(why)


async def test_one_that_ended_meanwhile_is_not_stopped(playing: Playing) -> None:
    playing.stopped = [False]

    def ends(number: int) -> None:
        if number == signal.SIGSTOP:
            playing.process.returncode = 1

    playing.process.on_signal = ends
    assert (await playing.run(answer=said(failed=False))).lost == "the interpreter ended"


@pytest.mark.parametrize(("answer", "held"), [(b"no\n", False), (b"yes\n", True), (b"", True)])
async def test_in_a_counted_room_it_may_hold_nothing_that_is_deleted(
    playing: Playing, answer: bytes, held: bool
) -> None:
    playing.process.held = answer
    run = await playing.run(answer=said(failed=False))
    assert run.lost == ("it kept deleted files open" if held else "")
    # Before the code begins it is told how many files may be made.
    assert playing.process.told[0].strip().isdigit() and playing.process.told[1:] == ["held?\n"]


# A whole run


async def test_a_run_that_went_well(playing: Playing) -> None:
    assert await playing.run(answer=said(failed=False, pictures=[])) == CodeRun("out", (), False, "", True)
    assert playing.process.signals == FREEZING and playing.machine.begun and playing.machine.alive
    playing.process.printed = ""
    assert await playing.run(answer=said(failed=True)) == CodeRun("", (), True, "", False)
    sent = playing.process.code
    assert [one["code"] for one in sent] == ["code", "code"] and sent[0]["mark"] != sent[1]["mark"]
    assert not playing.process.closed.is_set()
    for answer in (said(), said(failed=0), said(failed=None)):
        assert (await playing.run(answer=answer)).failed  # it is not believed that all went well


@pytest.mark.parametrize("answer", [b"[1]\n", b"{\n", b'"x"\n', b"x" * 999 + b"\n", b"\n"])
async def test_what_is_no_answer_ends_it(playing: Playing, answer: bytes) -> None:
    run = await playing.run(answer=answer)
    assert (run.lost, run.failed) == ("the interpreter ended", True) and playing.process.returncode == -9


async def test_one_that_ended_before_it_was_sent_code(playing: Playing) -> None:
    assert playing.process.hearing is not None
    playing.process.hearing.cancel()
    await asyncio.wait((playing.process.hearing,))
    playing.process.kill()
    playing.process.hearing = None
    run = await playing.run()
    assert run.lost == "the interpreter ended" and run.output == "" and playing.process.code == []


async def test_a_run_whose_process_must_end(playing: Playing) -> None:
    playing.stopped = [False]
    run = await playing.run(100.0, 0.0, 5.0, answer=said(failed=False))
    assert run == CodeRun("out", (), True, "it could not be stopped", True)
    assert playing.process.returncode == -9 and not playing.machine.alive
    async with asyncio.timeout(30):
        await playing.process.closed.wait()


async def test_one_that_is_given_up_in_the_middle_leaves_no_task(playing: Playing) -> None:
    before = asyncio.all_tasks()
    playing.process.answers = []
    running = asyncio.create_task(playing.machine.run("code"))
    async with asyncio.timeout(30):
        while not playing.waits:
            await asyncio.sleep(0.001)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert running.cancelled() and asyncio.all_tasks() == before
    await playing.machine.end(keep=False)
    async with asyncio.timeout(30):
        await playing.process.closed.wait()


# A start


@pytest.mark.parametrize("why", [asyncio.CancelledError(), OSError("no more processes")])
async def test_a_start_that_is_given_up_leaves_nothing_open(why: BaseException, tmp_path: Path) -> None:
    async def refuse(*_: Any, **__: Any) -> Any:
        raise why

    before = _sockets_and_pipes()
    started = Machine(make_home(tmp_path / "cntr_a"), LIMITS, 99, "memory", system=System(spawn=refuse))
    with pytest.raises(type(why)):
        await started.start("python3")
    await asyncio.sleep(0)
    # Sockets of earlier tests may close meanwhile.
    assert _sockets_and_pipes() <= before and not started.alive


def _sockets_and_pipes() -> set[str]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found.add(os.readlink(f"/proc/self/fd/{name}"))
    return {one for one in found if one.startswith(("socket:", "pipe:"))}
