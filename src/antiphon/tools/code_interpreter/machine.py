"""One machine of the local sandbox: its process, its files, and one run after the other.

Lives here: starting the process, giving it its files, sending it code, time and output, freezing it between runs. Not
here: which machines there are (`local.py`), what the process gives up (`confinement.py`), how much room it has for
files (`space.py`), what it does (`interpreter.py`).

In a room of `memory` code works on copies: the machine's files are brought in before a run, and what changed is taken
out after it, while nothing runs. In a `counted` room it works on the files themselves.

Between two runs the process is stopped, and cannot go on by itself: threads that code left behind neither run nor
write. What cannot be stopped is ended.

Invariant: when `run` has returned, the process is stopped or dead.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import structlog

from antiphon.config.tools import CodeInterpreterSettings
from antiphon.engine.waiting import SANDBOX
from antiphon.errors import Unavailable
from antiphon.tools.code_interpreter import disk
from antiphon.tools.code_interpreter.disk import SandboxFailed

Room = Literal["memory", "counted"]

_log = structlog.get_logger(__name__)
_PROGRAM = Path(__file__).with_name("interpreter.py")
_PICTURE = re.compile(r"picture-\d{1,9}-\d{1,3}\.png")
_PNG = b"\x89PNG\r\n\x1a\n"
_MAX_PICTURES = 10
_START_SECONDS, _GRACE, _LOOK = 60.0, 1.0, 0.1
_STOP_SECONDS, _STOP_LOOK = 5.0, 0.0005
_DESCRIPTORS = 256
_FIRST_USER = 1_000_000_000
_MORE_FILES = 16
_OWN_FOLDERS = 2
"""A machine's `files` and `scratch`, which are counted with what is in them."""
COUNTED_FILES = 64
"""In a counted room: so many files, each of them no larger than this part of the disk."""

_TOO_DEEP = "\n[There are folders within more folders than can be kept: what is innermost goes with this interpreter.]"

_READ, _READ_FREELY, _REST = 64 * 1024, 4 << 20, 0.01
"""What one run prints is read as it comes up to here, and then with pauses: a flood is no work for anybody else."""


@dataclass(frozen=True, slots=True)
class CodeRun:
    """How code went. `output` is what it printed, `pictures` are PNG files. `lost` says why the variables are gone, and
    is empty while they are there; `fresh` that there were none when it began."""

    output: str
    pictures: tuple[bytes, ...] = ()
    failed: bool = False
    lost: str = ""
    fresh: bool = False


class Output:
    """What a run prints: its beginning and its end, up to `limit` bytes together, until the mark."""

    def __init__(self, limit: int) -> None:
        self._max_head = limit * 3 // 4
        self._max_tail = limit - self._max_head
        self.marked = asyncio.Event()
        self._mark = b""
        self._begin()

    def _begin(self) -> None:
        self._head, self._tail, self._held, self._left_out = bytearray(), bytearray(), b"", 0

    def begin(self, mark: bytes) -> None:
        """A new run."""
        self._begin()
        self._mark = mark
        self.marked.clear()

    def feed(self, data: bytes) -> None:
        """More of it."""
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
        # Its end may be the beginning of the mark.
        sure = max(0, len(data) - max(0, len(self._mark) - 1))
        self._held = data[sure:]
        self._keep(data[:sure])

    def take(self) -> str:
        """All of it."""
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


class SandboxNotStarted(SandboxFailed):
    """The process ended, or said why it cannot give up its rights: `reason`."""

    def __init__(self, reason: str) -> None:
        super().__init__("The sandbox cannot be started here.")
        self.reason = reason


class Machine:
    """One process, with a home of its own below the sandbox's folder."""

    def __init__(self, home: Path, limits: CodeInterpreterSettings, memory: int, room: Room) -> None:
        self._home = home
        self._limits = limits
        self._room = room
        self._user = user_of(home.name)
        self.memory = memory
        self.busy = True
        self.begun = False
        self.ended = False
        self._output = Output(limits.output_bytes)
        self._printed = 0
        self._process: asyncio.subprocess.Process | None = None
        self._requests: asyncio.WriteTransport | None = None
        self._reading: asyncio.Task[None] | None = None
        self._control: socket.socket | None = None
        self._inside: int | None = None
        # A thread that nobody waits for any more goes on: nothing is closed under it.
        self._inside_lock = threading.Lock()
        self._known: tuple[dict[str, str], dict[str, str]] = ({}, {})

    @property
    def alive(self) -> bool:
        """Whether it can be sent code."""
        return not self.ended and self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int:
        """Of the process that runs code."""
        assert self._process is not None
        return self._process.pid

    async def start(self, python: str) -> None:
        """Start it, and wait until it has given up its rights. Raises `SandboxFailed`, `OSError`."""
        await SANDBOX.run(disk.clear, self._home / "scratch")
        self._control, theirs = socket.socketpair()
        self._control.settimeout(_START_SECONDS)
        try:
            with theirs, os.fdopen(await self._open_requests(), "rb", 0) as requests:
                self._process = await asyncio.create_subprocess_exec(
                    *command(python, self._home, self._limits, self.memory, self._room, theirs.fileno()),
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
            # Given up while the process was being made: there is none whose end would close these.
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
                raise SandboxNotStarted(f"it broke: {self._output.take()[-300:].strip() or 'no answer'}")
            raise SandboxNotStarted(str(answer.get("refused")))

    async def _open_requests(self) -> int:
        """Open the pipe that sends code to the process; the caller must close the reading end. The event loop itself
        would use a socket, into which the code could write.
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
        """Send the code, watch it, freeze the process again. `begun` says that it has been sent one."""
        process = self._process
        assert process is not None and self._requests is not None
        fresh = not self.begun
        await self._prepare()
        mark = secrets.token_hex(16)
        self._output.begin(mark.encode())
        self._printed = 0
        self.begun = True
        self._signal(signal.SIGCONT)
        answering = asyncio.create_task(self._answer())
        try:
            # uvloop's transports raise where one is closed already: that the process ended shows in what it answers.
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
            pictures = await SANDBOX.run(self._pictures, answer or {})
            if self._inside is not None:
                await SANDBOX.run(self._take_out)
        failed = bool(lost) or bool(said) or answer is None or answer.get("failed") is not False
        if disk.is_cut_off(self._known[1]):
            said += _TOO_DEEP
        return CodeRun(self._output.take() + said, pictures, failed, lost, fresh)

    # Files

    async def _furnish(self) -> None:
        """Take the descriptor of its file system, and bring its files there."""
        assert self._control is not None
        _, taken, _, _ = await SANDBOX.run(socket.recv_fds, self._control, 1, 1)
        if not taken:
            return  # it says why in its answer
        with self._inside_lock:
            self._inside = taken[0]
        await SANDBOX.run(self._bring_in)
        self._control.send(b"g")

    async def _prepare(self) -> None:
        """What must be done while nothing runs."""
        if self._inside is not None:
            await SANDBOX.run(self._bring_in)
        elif self._room == "counted":
            room = await SANDBOX.run(self._left)
            await SANDBOX.run(self._ask, f"{room}\n")

    def _bring_in(self) -> None:
        outside, limit = self._known[0], 2 * (self._limits.files + _MORE_FILES)
        with self._inner("files") as inner:
            now = disk.scan(self._home / "files", limit)
            try:
                disk.carry(self._home / "files", inner, outside, now, self._user)
            except OSError as error:
                why = f"The container's files cannot be brought to the code: {error.strerror}."
                raise SandboxFailed(why) from None
            self._known = now, disk.scan(inner, limit)

    def _take_out(self) -> None:
        """What changed while code ran. The process is stopped or dead."""
        inside, limit = self._known[1], 2 * (self._limits.files + _MORE_FILES)
        with self._inner("files") as inner:
            now = disk.scan(inner, limit)
            if now == inside:
                return
            try:
                disk.carry(inner, self._home / "files", inside, now, self._user)
            except OSError as error:
                _log.error("container_files_not_kept", error=error.strerror, container=self._home.name)
                raise SandboxFailed(f"The container's files could not be kept: {error.strerror}.") from None
            self._known = disk.scan(self._home / "files", limit), now

    @contextmanager
    def _inner(self, name: str) -> Iterator[int]:
        """A folder of its file system, which stays open meanwhile."""
        with self._inside_lock:
            if self._inside is None:
                raise SandboxFailed("The container was stopped.")
            opened = disk.open_folder(self._inside, name)
            try:
                yield opened
            finally:
                os.close(opened)

    def _leave(self) -> None:
        with self._inside_lock:
            if self._inside is not None:
                os.close(self._inside)
                self._inside = None

    def _left(self) -> int:
        """How many files may be made in a counted room: each of them could grow as large as a file can be."""
        one = file_bytes(self._limits, "counted")
        most = self._limits.files + _OWN_FOLDERS
        use = disk.use_of(self._home, 2 * self._limits.files + _MORE_FILES, one)
        if use.count > most:
            raise SandboxFailed(
                "The container has more files than its limit. Delete some files, or use another container."
            )
        if use.deep:
            return 0
        return max(0, min((self._limits.disk_bytes - use.bytes) // one, most - use.count))

    def _ask(self, line: str) -> bytes:
        assert self._control is not None
        try:
            self._control.sendall(line.encode())
            return self._control.recv(16)
        except OSError:
            return b""

    def _pictures(self, answer: dict[str, object]) -> tuple[bytes, ...]:
        names = answer.get("pictures")
        wanted = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
        wanted = [name for name in wanted[:_MAX_PICTURES] if _PICTURE.fullmatch(name)]
        if not wanted:
            return ()
        in_memory = self._room == "memory"
        with self._inner("scratch") if in_memory else nullcontext(self._home / "scratch") as scratch:
            return _read_pictures(scratch, wanted, self._limits.picture_bytes)

    # Time

    async def _watch(self, answering: asyncio.Task[dict[str, object] | None]) -> tuple[str, str]:
        """Wait for the answer within the limits: what to add to the output, and why the process must end."""
        deadline = time.monotonic() + self._limits.seconds
        while True:
            left = deadline - time.monotonic()
            await asyncio.wait((answering,), timeout=max(0.0, min(_LOOK, left)))
            if answering.done():
                return "", ""
            if left <= 0:
                break
            if self._too_many_threads():
                return "", "it had too many threads"
        said = f"\n[Stopped: it took longer than {self._limits.seconds:g} seconds.]"
        self._signal(signal.SIGINT)
        await asyncio.wait((answering,), timeout=_GRACE)
        return said, "" if answering.done() else "it did not stop when its time was up"

    def _too_many_threads(self) -> bool:
        try:
            return len(os.listdir(f"/proc/{self.pid}/task")) > self._limits.threads
        except OSError:
            return False

    async def _freeze(self) -> str:
        """Stop it, and wait until every thread has stopped: empty, or why it must end instead."""
        self._signal(signal.SIGSTOP)
        deadline = time.monotonic() + _STOP_SECONDS
        while not (stopped := _stopped(self.pid)) and time.monotonic() < deadline:
            if not self.alive:
                return "the interpreter ended"
            await asyncio.sleep(_STOP_LOOK)
        if not stopped:
            return "it could not be stopped"
        if self._room == "counted" and await SANDBOX.run(self._ask, "held?\n") != b"no\n":
            return "it kept files open that are deleted"
        return ""

    # The process

    async def _answer(self) -> dict[str, object] | None:
        assert self._process is not None and self._process.stdout is not None
        try:
            answer = json.loads(await self._process.stdout.readline())
        except (ValueError, RecursionError):
            # Ended, or not our words: too long a line is a ValueError too.
            return None
        return answer if isinstance(answer, dict) else None

    async def _read(self) -> None:
        assert self._process is not None and self._process.stderr is not None
        while data := await self._process.stderr.read(_READ):
            self._output.feed(data)
            self._printed += len(data)
            if self._printed > _READ_FREELY and not self.ended:
                await asyncio.sleep(_REST)

    def _signal(self, number: int) -> None:
        assert self._process is not None
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    def kill(self) -> None:
        """End it at once; `end` must follow."""
        self.ended = True
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()

    async def end(self, *, keep: bool = True) -> None:
        """End it, and wait until it is gone; `keep` what it wrote."""
        self.kill()
        process, self._process = self._process, None
        if process is not None:
            assert self._requests is not None and self._reading is not None
            self._requests.close()
            if self._control is not None:
                with suppress(OSError):
                    self._control.shutdown(socket.SHUT_RDWR)
            # To their ends: pipes that nobody reads stay open.
            await asyncio.gather(process.wait(), self._reading, _drain(process), return_exceptions=True)
        try:
            if keep and self._inside is not None and self.begun:
                await SANDBOX.run(self._take_out)
        finally:
            try:
                await SANDBOX.run(self._leave)
            except Unavailable:
                self._leave()
            if self._control is not None:
                self._control.close()
                self._control = None


async def _drain(process: asyncio.subprocess.Process) -> None:
    assert process.stdout is not None
    while await process.stdout.read(_READ):
        continue


def _stopped(pid: int) -> bool:
    """Whether all threads of a child have stopped."""
    try:
        return os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG) is not None
    except ChildProcessError:
        return False


def _read_pictures(scratch: disk.Folder, names: list[str], limit: int) -> tuple[bytes, ...]:
    found: list[bytes] = []
    for name in names:
        with suppress(SandboxFailed):
            data = disk.read_file(scratch, name, 0, limit + 1)
            if data.startswith(_PNG) and len(data) <= limit:
                found.append(data)
                limit -= len(data)
        disk.remove_file(scratch, name)
    return tuple(found)


def file_bytes(limits: CodeInterpreterSettings, room: Room) -> int:
    """How large one file may become."""
    return limits.disk_bytes if room == "memory" else max(1, limits.disk_bytes // COUNTED_FILES)


def command(
    python: str, home: Path, limits: CodeInterpreterSettings, memory: int, room: Room, control: int
) -> list[str]:
    """What starts the process, which has `control` as a descriptor."""
    given = {
        "home": str(home),
        "files": str(home / "files"),
        "scratch": str(home / "scratch"),
        "space": room,
        "control": control,
        "disk_bytes": limits.disk_bytes,
        "max_files": limits.files + _MORE_FILES,
        "limits": {
            "memory": memory,
            "file_bytes": file_bytes(limits, room),
            "threads": limits.threads,
            "descriptors": _DESCRIPTORS,
            "uid": user_of(home.name),
        },
    }
    return [python, "-I", "-B", "-X", "utf8", str(_PROGRAM), json.dumps(given)]


def environment(home: Path) -> dict[str, str]:
    """All of it: nothing of this process's own."""
    return {
        "HOME": str(home / "files"),
        "TMPDIR": str(home / "scratch"),
        "MPLCONFIGDIR": str(home / "scratch"),
        "MPLBACKEND": "agg",
        # There are no processes for it, and it would say so each time.
        "JOBLIB_MULTIPROCESSING": "0",
        "LANG": "C.UTF-8",
        "MALLOC_ARENA_MAX": "2",
        "PATH": "/nonexistent",
        # One each: more would take address space for nothing.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }


def user_of(key: str) -> int:
    """As root every machine is a user of its own; otherwise (0) it stays who we are."""
    if os.geteuid() != 0:
        return 0
    return _FIRST_USER + int.from_bytes(hashlib.sha256(key.encode()).digest()[:3], "big")
