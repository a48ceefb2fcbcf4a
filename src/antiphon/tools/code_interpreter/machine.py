"""Runs code in one sandboxed process (`Machine`), one run after the other.

This module starts the process, sends code to it, collects its output, applies timeouts, and stops it between runs.

`local.py` has the list of sandboxed processes, `starting.py` makes the command line, and `machine_files.py` copies
files. `interpreter.py` and `confinement.py` run inside the process.

In mode `memory`, code works on copies in a file system in memory. While the process is stopped, this module copies
files. Before a run, this module copies the container's files into the file system in memory. After the run, it copies
changed files back. In mode `counted`, code works on the files on disk.

SIGSTOP stops the process between two runs, and the process cannot continue by itself. So threads that code has started
neither run nor write files between runs. This module kills a process that it cannot stop.

Invariants: when `run` has returned, the process is stopped or dead. `Output` stores at most `limit` bytes, however much
the code prints.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from antiphon.config.tools import CodeInterpreterSettings
from antiphon.engine.waiting import SANDBOX
from antiphon.errors import Unavailable
from antiphon.tools.code_interpreter import disk
from antiphon.tools.code_interpreter.disk import SandboxFailed
from antiphon.tools.code_interpreter.machine_files import MachineFiles
from antiphon.tools.code_interpreter.starting import PROGRAM, Room, command, environment

_START_SECONDS, _GRACE, _LOOK = 60.0, 1.0, 0.1
_STOP_SECONDS, _STOP_LOOK = 5.0, 0.0005

_TOO_DEEP = (
    "\n[The folders are nested too deeply: the contents of the innermost folders are lost when this interpreter ends.]"
)

_READ, _READ_FREELY, _REST = 64 * 1024, 4 << 20, 0.01
"""Limits of reading a run's output: at most `_READ` bytes per read. After `_READ_FREELY` bytes, a pause of `_REST`
seconds follows each read, so that a flood of output does not slow other requests."""


@dataclass(frozen=True, slots=True)
class CodeRun:
    """The result of running code. `output`: the printed text. `pictures`: PNG files. `lost`: the reason why the process
    ended and its variables are lost, or empty. `fresh`: the process had not run code before."""

    output: str
    pictures: tuple[bytes, ...] = ()
    failed: bool = False
    lost: str = ""
    fresh: bool = False


def has_stopped(pid: int) -> bool:
    """Return whether all threads of a child process have stopped. Reports each stop only once."""
    try:
        return os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG) is not None
    except ChildProcessError:
        return False


def count_threads(pid: int) -> int:
    """Return the number of threads of a process, or 0 if the process has ended."""
    try:
        return len(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return 0


@dataclass(frozen=True, slots=True)
class System:
    """The operating system and event loop functions that `Machine` calls, which tests replace."""

    spawn: Callable[..., Awaitable[asyncio.subprocess.Process]] = asyncio.create_subprocess_exec
    monotonic: Callable[[], float] = time.monotonic
    wait: Callable[..., Awaitable[object]] = asyncio.wait
    stopped: Callable[[int], bool] = has_stopped
    threads: Callable[[int], int] = count_threads


SYSTEM = System()


class SandboxNotStarted(SandboxFailed):
    """Raised when a sandboxed process ended during its start, or could not confine itself. `reason` explains the
    failure."""

    def __init__(self, reason: str) -> None:
        super().__init__("The server cannot start the sandbox.")
        self.reason = reason


class Machine:
    """One sandboxed process. `home`: the folder of the container's files. `memory`: the maximum address space of the
    process in bytes. `room`: the mode of limiting disk space."""

    def __init__(
        self,
        home: Path,
        limits: CodeInterpreterSettings,
        memory: int,
        room: Room,
        *,
        program: Path = PROGRAM,
        system: System = SYSTEM,
    ) -> None:
        self._home = home
        self._limits = limits
        self._room = room
        self._program = program
        self._system = system
        self.memory = memory
        self.busy = True
        self.begun = False
        self.ended = False
        self.files = MachineFiles(home, limits, room)
        self._output = Output(limits.output_bytes)
        self.printed = 0
        """The number of bytes that this module has read of the run's output."""
        self._process: asyncio.subprocess.Process | None = None
        self._requests: asyncio.WriteTransport | None = None
        self._reading: asyncio.Task[None] | None = None
        self._control: socket.socket | None = None

    @property
    def alive(self) -> bool:
        """Whether the process has started and not ended, so that `run` can send code to it."""
        return not self.ended and self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int:
        """The process id of the sandboxed process."""
        assert self._process is not None
        return self._process.pid

    async def start(self, python: str) -> None:
        """Start the process, and wait until it has confined itself. `python`: the interpreter's path. Raises
        `SandboxFailed` and `OSError`."""
        await SANDBOX.run(disk.clear, self._home / "scratch")
        self._control, theirs = socket.socketpair()
        self._control.settimeout(_START_SECONDS)
        try:
            with theirs, os.fdopen(await self._open_requests(), "rb", 0) as requests:
                self._process = await self._system.spawn(
                    *command(python, self._home, self._limits, self.memory, self._room, theirs.fileno(), self._program),
                    stdin=requests,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    cwd="/",
                    env=environment(self._home),
                    start_new_session=True,
                    limit=16 * 1024,
                    pass_fds=(theirs.fileno(),),
                )
        except BaseException:
            # The start failed before the process existed, so close both ends here.
            self._control.close()
            if self._requests is not None:
                self._requests.close()
            raise
        self._reading = asyncio.create_task(self._read())
        try:
            async with asyncio.timeout(_START_SECONDS):
                if self._room == "memory":
                    await self._furnish()
                answer = await self._answer()
        except (TimeoutError, OSError):
            answer = None
        except BaseException:
            await self.end()
            raise
        if answer is None or answer.get("ready") is not True:
            await self.end()
            if answer is None:
                raise SandboxNotStarted(f"the interpreter failed: {self._output.take()[-300:].strip() or 'no answer'}")
            raise SandboxNotStarted(str(answer.get("refused")))

    async def _open_requests(self) -> int:
        """Open the pipe that sends code to the process, and return its reading end. The caller must close the reading
        end. asyncio's own stdin pipe would be a socket, to which the code could write.
        """
        taking, giving = os.pipe()
        try:
            opened = os.fdopen(giving, "wb", 0)
            loop = asyncio.get_running_loop()
            self._requests, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, opened)
        except BaseException:
            os.close(taking)
            raise
        return taking

    async def run(self, code: str) -> CodeRun:
        """Continue the process, send code to it, and wait for the result or a timeout. Afterwards stop the process
        again, or kill it. Sets `begun`."""
        process = self._process
        assert process is not None and self._requests is not None
        fresh = not self.begun
        await self._prepare()
        mark = secrets.token_hex(16)
        self._output.begin(mark.encode())
        self.printed = 0
        self.begun = True
        self._signal(signal.SIGCONT)
        answering = asyncio.create_task(self._answer())
        try:
            # uvloop raises when code writes to a closed transport. If the process has ended, `_answer` returns None.
            if not self._requests.is_closing():
                self._requests.write(json.dumps({"code": code, "mark": mark}).encode() + b"\n")
            said, lost = await self._watch(answering)
        finally:
            if not answering.done():
                answering.cancel()
                await asyncio.wait((answering,))
        answer = answering.result() if answering.done() and not answering.cancelled() else None
        if answer is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(_GRACE):
                    await self._output.marked.wait()
        if not lost and answer is None:
            lost = "the interpreter ended"
        lost = lost or await self._freeze()
        if lost:
            self.kill()
            await self.end()
            pictures: tuple[bytes, ...] = ()
        else:
            pictures = await SANDBOX.run(self.files.pictures, answer or {})
            if self.files.copied:
                await SANDBOX.run(self.files.take_out)
        failed = bool(lost) or bool(said) or answer is None or answer.get("failed") is not False
        if self.files.cut_off:
            said += _TOO_DEEP
        return CodeRun(self._output.take() + said, pictures, failed, lost, fresh)

    # Files

    async def _furnish(self) -> None:
        """Receive the descriptor of the process's file system in memory, and copy the files into it."""
        assert self._control is not None
        _, taken, _, _ = await SANDBOX.run(socket.recv_fds, self._control, 1, 1)
        if not taken:
            return  # no file system: the process reports the reason in its first answer
        self.files.enter(taken[0])
        await SANDBOX.run(self.files.bring_in)
        self._control.send(b"g")

    async def _prepare(self) -> None:
        """Prepare the next run while the process is stopped: copy changed files in, or tell the counter process how
        many files the code may create."""
        if self.files.copied:
            await SANDBOX.run(self.files.bring_in)
        elif self._room == "counted":
            room = await SANDBOX.run(self.files.left)
            await SANDBOX.run(self._ask, f"{room}\n")

    def _ask(self, line: str) -> bytes:
        assert self._control is not None
        try:
            self._control.sendall(line.encode())
            return self._control.recv(16)
        except OSError:
            return b""

    # Time

    async def _watch(self, answering: asyncio.Task[dict[str, object] | None]) -> tuple[str, str]:
        """Wait for the process's answer, and enforce the limits of time and threads. Returns text to append to the
        output, and the reason to end the process. Both strings are empty if the answer came in time."""
        deadline = self._system.monotonic() + self._limits.seconds
        while True:
            left = deadline - self._system.monotonic()
            await self._system.wait((answering,), timeout=max(0.0, min(_LOOK, left)))
            if answering.done():
                return "", ""
            if left <= 0:
                break
            if self._system.threads(self.pid) > self._limits.threads:
                return "", "it had too many threads"
        said = f"\n[Stopped: it took longer than {self._limits.seconds:g} seconds.]"
        self._signal(signal.SIGINT)
        await self._system.wait((answering,), timeout=_GRACE)
        return said, "" if answering.done() else "it did not stop after its timeout"

    async def _freeze(self) -> str:
        """Stop the process, and wait until all its threads have stopped. Returns the reason to end the process, or an
        empty string."""
        self._signal(signal.SIGSTOP)
        deadline = self._system.monotonic() + _STOP_SECONDS
        while not (stopped := self._system.stopped(self.pid)) and self._system.monotonic() < deadline:
            if not self.alive:
                return "the interpreter ended"
            await asyncio.sleep(_STOP_LOOK)
        if not stopped:
            return "it could not be stopped"
        if self._room == "counted" and await SANDBOX.run(self._ask, "held?\n") != b"no\n":
            return "it kept deleted files open"
        return ""

    # The process

    async def _answer(self) -> dict[str, object] | None:
        assert self._process is not None and self._process.stdout is not None
        try:
            answer = json.loads(await self._process.stdout.readline())
        except (ValueError, RecursionError):
            # The process has ended, or the line is no JSON object. A line that is too long also raises ValueError.
            return None
        return answer if isinstance(answer, dict) else None

    async def _read(self) -> None:
        assert self._process is not None and self._process.stderr is not None
        while data := await self._process.stderr.read(_READ):
            self._output.feed(data)
            self.printed += len(data)
            if self.printed > _READ_FREELY and not self.ended:
                await asyncio.sleep(_REST)

    def _signal(self, number: int) -> None:
        assert self._process is not None
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    def kill(self) -> None:
        """Send SIGKILL to the process without waiting. The caller must call `end` afterwards."""
        self.ended = True
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()

    async def end(self, *, keep: bool = True) -> None:
        """Kill the process and wait for its end. With `keep`, copy out the files that code has changed, after the
        process has ended."""
        self.kill()
        process, self._process = self._process, None
        if process is not None:
            assert self._requests is not None and self._reading is not None
            self._requests.close()
            if self._control is not None:
                with suppress(OSError):
                    self._control.shutdown(socket.SHUT_RDWR)
            # Read both pipes to the end, because an unread pipe stays open.
            await asyncio.gather(process.wait(), self._reading, _drain(process), return_exceptions=True)
        try:
            if keep and self.files.copied and self.begun:
                await SANDBOX.run(self.files.take_out)
        finally:
            try:
                await SANDBOX.run(self.files.leave)
            except Unavailable:
                self.files.leave()
            if self._control is not None:
                self._control.close()
                self._control = None


async def _drain(process: asyncio.subprocess.Process) -> None:
    assert process.stdout is not None
    while await process.stdout.read(_READ):
        continue


class Output:
    """Collects the output of a run, up to the random bytes (the mark) that end the output. If the output exceeds
    `limit` bytes, the object stores only its beginning (3/4 of `limit`) and its end (1/4 of `limit`)."""

    def __init__(self, limit: int) -> None:
        self._max_head = limit * 3 // 4
        self._max_tail = limit - self._max_head
        self.marked = asyncio.Event()
        self._mark = b""
        self._begin()

    def _begin(self) -> None:
        self._head, self._tail, self._held, self._left_out = bytearray(), bytearray(), b"", 0

    def begin(self, mark: bytes) -> None:
        """Reset for a new run. `mark`: the random bytes that end the run's output."""
        self._begin()
        self._mark = mark
        self.marked.clear()

    def feed(self, data: bytes) -> None:
        """Add data that the process has printed. Sets `marked` when the mark is complete. Ignores data after the
        mark."""
        if self.marked.is_set():
            return
        data = self._held + data
        if self._mark:
            before, mark, _ = data.partition(self._mark)
            if mark:
                self._held = b""
                self._keep(before)
                self.marked.set()
                return
        # Keep back the last bytes, which may be the beginning of the mark.
        sure = max(0, len(data) - max(0, len(self._mark) - 1))
        self._held = data[sure:]
        self._keep(data[:sure])

    def take(self) -> str:
        """Return the collected output as text. A line in the middle tells how many bytes were left out."""
        self._keep(self._held)
        self._held = b""
        gap = f"\n[{self._left_out} bytes are left out here.]\n".encode() if self._left_out else b""
        return (bytes(self._head) + gap + bytes(self._tail)).decode("utf-8", "replace")

    def _keep(self, data: bytes) -> None:
        room = self._max_head - len(self._head)
        self._head += data[:room]
        self._tail += data[room:] if room < len(data) else b""
        if (over := len(self._tail) - self._max_tail) > 0:
            del self._tail[:over]
            self._left_out += over
