"""A sandbox on this machine: a process without rights for each key. It needs Linux with Landlock, and nothing else.

Lives here: starting it, sending it code, the limits that are watched from outside (time, disk, output), freezing it
between runs. Not here: what it gives up (`confinement.py`), what it does (`interpreter.py`), files (`disk.py`).

Between two runs a process is stopped: threads that code left behind neither run nor write. What goes over a limit ends
the process; its variables are gone then, its files stay, but for those of the run that filled the disk.

Invariant: no process outlives its `LocalSandbox`, nor the thread that started it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import secrets
import signal
import stat
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import gettempdir

import structlog

from antiphon.tools.code_interpreter import disk
from antiphon.tools.code_interpreter.port import Run, SandboxFailed, SandboxFile, SandboxLimits

__all__ = ["LocalSandbox", "why_unavailable"]

_log = structlog.get_logger(__name__)
_PROGRAM = Path(__file__).with_name("interpreter.py")
_PICTURE = re.compile(r"picture-\d{1,9}-\d{1,3}\.png")
_PNG = b"\x89PNG\r\n\x1a\n"
_MOST_PICTURES = 10
_START_SECONDS, _GRACE, _LOOK = 20.0, 1.0, 0.1
_DESCRIPTORS = 256
_FIRST_USER = 1_000_000_000


class LocalSandbox:
    """`Sandbox` whose files are below `folder`. `python` runs the code: its libraries are what code can import."""

    def __init__(self, folder: Path, limits: SandboxLimits | None = None, python: str = "") -> None:
        self._folder = folder.absolute()
        self._limits = limits or SandboxLimits()
        self._python = python or sys.executable
        self._machines: OrderedDict[str, _Machine] = OrderedDict()
        self._places = asyncio.Semaphore(self._limits.machines)

    async def run(self, key: str, code: str, memory: int) -> Run:
        """See `Sandbox.run`."""
        async with self._places:
            machine = await self._machine(key, min(memory, self._limits.memory))
            try:
                run = await machine.run(code)
            except BaseException:
                # Given up in the middle: nobody knows what it is doing.
                machine.kill()
                raise
            finally:
                machine.busy = False
                if machine.ended:
                    self._machines.pop(key, None)
                    await machine.end()
            return run

    async def put(self, key: str, path: str, pieces: AsyncIterator[bytes]) -> SandboxFile:
        """See `Sandbox.put`."""
        home = await asyncio.to_thread(self._home, key)
        use = await asyncio.to_thread(disk.use_of, home, 2 * self._limits.files)
        left = self._limits.disk_bytes - use.bytes
        if use.count >= self._limits.files or left <= 0:
            raise SandboxFailed("The container is full.")
        incoming = home / f".incoming-{secrets.token_hex(8)}"
        try:
            with await asyncio.to_thread(incoming.open, "xb") as file:
                async for piece in pieces:
                    left -= len(piece)
                    if left < 0:
                        raise SandboxFailed("The file is too large for the container.")
                    await asyncio.to_thread(file.write, piece)
            return await asyncio.to_thread(disk.write_file, home / "files", path, incoming, _user(key))
        finally:
            with suppress(OSError):
                incoming.unlink()

    async def list(self, key: str) -> list[SandboxFile]:
        """See `Sandbox.list`."""
        return await asyncio.to_thread(disk.list_files, self._files(key), self._limits.files)

    async def read(self, key: str, path: str, start: int, most: int) -> bytes:
        """See `Sandbox.read`."""
        return await asyncio.to_thread(disk.read_file, self._files(key), path, start, most)

    async def remove(self, key: str, path: str) -> None:
        """See `Sandbox.remove`."""
        await asyncio.to_thread(disk.remove_file, self._files(key), path)

    async def stop(self, key: str) -> None:
        """See `Sandbox.stop`."""
        machine = self._machines.pop(key, None)
        if machine is not None:
            await machine.end()

    async def keys(self) -> Sequence[str]:
        """See `Sandbox.keys`."""
        with suppress(FileNotFoundError):
            return await asyncio.to_thread(os.listdir, self._folder)
        return ()

    async def delete(self, key: str) -> None:
        """See `Sandbox.delete`."""
        await self.stop(key)
        await asyncio.to_thread(_delete, self._folder / key)

    async def aclose(self) -> None:
        """See `Sandbox.aclose`."""
        machines, self._machines = list(self._machines.values()), OrderedDict()
        for machine in machines:
            await machine.end()

    def _files(self, key: str) -> Path:
        return self._folder / key / "files"

    def _home(self, key: str) -> Path:
        home = self._folder / key
        home.mkdir(mode=0o711, parents=True, exist_ok=True)
        user = _user(key)
        for name in ("files", "scratch"):
            inner = home / name
            if not inner.is_dir():
                inner.mkdir(mode=0o700)
                if user:
                    os.chown(inner, user, user)
        return home

    async def _machine(self, key: str, memory: int) -> _Machine:
        known = self._machines.get(key)
        if known is not None and known.memory == memory and not known.ended:
            self._machines.move_to_end(key)
            known.busy = True
            return known
        if known is not None:
            del self._machines[key]
            await known.end()
        while len(self._machines) >= self._limits.machines:
            idle = next((name for name, one in self._machines.items() if not one.busy), None)
            if idle is None:
                break
            await self._machines.pop(idle).end()
        # At once, so that it counts while it starts.
        machine = self._machines[key] = _Machine(self._folder / key, self._limits, memory)
        try:
            await asyncio.to_thread(self._home, key)
            await machine.start(self._python, _user(key))
        except BaseException as error:
            self._machines.pop(key, None)
            if not isinstance(error, OSError):
                raise
            _log.error("sandbox_not_started", error=type(error).__name__, exc_info=True)
            raise SandboxFailed("The code cannot be run at the moment.") from None
        return machine


class _Machine:
    """One process."""

    def __init__(self, home: Path, limits: SandboxLimits, memory: int) -> None:
        self._home = home
        self._limits = limits
        self.memory = memory
        self.busy = True
        self.begun = False
        self.ended = False
        self._output = _Output(limits.output_bytes)
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None

    async def start(self, python: str, user: int) -> None:
        """Start it, and wait until it has given up its rights. Raises `SandboxFailed`, `OSError`."""
        await asyncio.to_thread(disk.clear, self._home / "scratch")
        self._process = await asyncio.create_subprocess_exec(
            *_command(python, self._home, self._limits, self.memory, user),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            env=_environment(self._home),
            start_new_session=True,
            limit=16 * 1024,
        )
        self._reading = asyncio.create_task(self._read())
        try:
            async with asyncio.timeout(_START_SECONDS):
                answer = await self._answer()
        except TimeoutError:
            answer = None
        except BaseException:
            await self.end()
            raise
        if answer is None or answer.get("ready") is not True:
            refused = answer.get("refused") if answer else self._output.take()
            await self.end()
            _log.error("sandbox_refused", reason=str(refused)[:500])
            raise SandboxFailed("The sandbox cannot be started here.")

    async def run(self, code: str) -> Run:
        """Send the code, watch it, freeze the process again. `begun` says that it has been sent one."""
        process = self._process
        assert process is not None and process.stdin is not None
        fresh = not self.begun
        before = await asyncio.to_thread(disk.list_files, self._home / "files", self._limits.files)
        mark = secrets.token_hex(16)
        self._output.begin(mark.encode())
        self.begun = True
        await self._signal(signal.SIGCONT)
        answering = asyncio.create_task(self._answer())
        try:
            with suppress(ConnectionError, BrokenPipeError):
                process.stdin.write(json.dumps({"code": code, "mark": mark}).encode() + b"\n")
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
        if lost:
            self.kill()
        else:
            await self._signal(signal.SIGSTOP)
            lost = over = await asyncio.to_thread(self._over_disk)
            if over:
                self.kill()
        if lost and self._full:
            await self.end()
            await asyncio.to_thread(disk.remove_changed, self._home / "files", before)
        pictures = await asyncio.to_thread(self._pictures, answer) if answer and not lost else ()
        failed = bool(lost) or bool(said) or answer is None or answer.get("failed") is not False
        return Run(self._output.take() + said, pictures, failed, lost, fresh)

    _full = False

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
            if why := await asyncio.to_thread(self._over):
                return "", why
        said = f"\n[Stopped: it took longer than {self._limits.seconds:g} seconds.]"
        await self._signal(signal.SIGINT)
        await asyncio.wait((answering,), timeout=_GRACE)
        return said, "" if answering.done() else "it did not stop when its time was up"

    def _over(self) -> str:
        assert self._process is not None
        try:
            threads = len(os.listdir(f"/proc/{self._process.pid}/task"))
        except OSError:
            threads = 0
        if threads > self._limits.threads:
            return "it had too many threads"
        return self._over_disk()

    def _over_disk(self) -> str:
        use = disk.use_of(self._home, 2 * self._limits.files + 16)
        held = self._deleted_bytes()
        if use.bytes + held > self._limits.disk_bytes or use.count > self._limits.files + 16 or use.deep:
            self._full = True
            return "its files took more room than it has; those that this code wrote are deleted"
        return ""

    def _deleted_bytes(self) -> int:
        """What it holds open though it is deleted."""
        assert self._process is not None
        folder, held = f"/proc/{self._process.pid}/fd", 0
        with suppress(OSError):
            for name in os.listdir(folder):
                with suppress(OSError):
                    state = os.stat(f"{folder}/{name}")
                    if stat.S_ISREG(state.st_mode) and state.st_nlink == 0:
                        held += state.st_blocks * 512
        return held

    def _pictures(self, answer: dict[str, object]) -> tuple[bytes, ...]:
        names = answer.get("pictures")
        found: list[bytes] = []
        left = self._limits.picture_bytes
        for name in names[:_MOST_PICTURES] if isinstance(names, list) else []:
            if not isinstance(name, str) or not _PICTURE.fullmatch(name):
                continue
            with suppress(SandboxFailed):
                data = disk.read_file(self._home / "scratch", name, 0, left + 1)
                if data.startswith(_PNG) and len(data) <= left:
                    found.append(data)
                    left -= len(data)
            disk.remove_file(self._home / "scratch", name)
        return tuple(found)

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
        while data := await self._process.stderr.read(64 * 1024):
            self._output.feed(data)

    async def _signal(self, number: int) -> None:
        assert self._process is not None
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    def kill(self) -> None:
        """End it at once; `end` must follow."""
        self.ended = True
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()

    async def end(self) -> None:
        """End it, and wait until it is gone."""
        self.kill()
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None and self._reading is not None
        process.stdin.close()
        # To their ends: pipes that nobody reads stay open.
        await asyncio.gather(process.wait(), self._reading, _drain(process), return_exceptions=True)


async def _drain(process: asyncio.subprocess.Process) -> None:
    assert process.stdout is not None
    while await process.stdout.read(64 * 1024):
        continue


class _Output:
    """What a run prints: its beginning and its end, up to `most` bytes together, until the mark."""

    def __init__(self, most: int) -> None:
        self._most_head = most * 3 // 4
        self._most_tail = most - self._most_head
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
        hold = max(0, len(self._mark) - 1)
        self._held = data[len(data) - hold :] if hold else b""
        self._keep(data[: len(data) - hold])

    def take(self) -> str:
        """All of it."""
        self._keep(self._held)
        self._held = b""
        gap = f"\n[{self._left_out} bytes are left out here.]\n".encode() if self._left_out else b""
        return (bytes(self._head) + gap + bytes(self._tail)).decode("utf-8", "replace")

    def _keep(self, data: bytes) -> None:
        room = self._most_head - len(self._head)
        self._head += data[:room]
        self._tail += data[room:] if room < len(data) else b""
        if (over := len(self._tail) - self._most_tail) > 0:
            del self._tail[:over]
            self._left_out += over


_ESCAPE = """
import os, socket, signal, ctypes
out = []
def tried(name, attempt):
    try:
        attempt()
    except BaseException as error:
        return
    out.append(name)
tried("read", lambda: open("/etc/passwd").read(1))
tried("list", lambda: os.listdir("/"))
tried("write", lambda: open("/tmp/.escaped", "w"))
tried("socket", lambda: socket.socket())
tried("unix", lambda: socket.socket(socket.AF_UNIX))
tried("fork", lambda: os._exit(0) if os.fork() == 0 else None)
tried("exec", lambda: os.execv("/bin/true", ["true"]))
tried("kill", lambda: os.kill(os.getppid(), 0))
tried("setuid", lambda: os.setuid(0) if os.getuid() else 1 / 0)
print("escaped:" + ",".join(out) + ";")
"""


def why_unavailable(python: str = "", folder: Path | None = None) -> str:
    """Try the sandbox out: empty when it holds code in on this machine, else the reason. Blocks for a moment.

    `folder` is where containers are to be: as root, it depends on who may pass there.
    """
    python = python or sys.executable
    home = (folder or Path(gettempdir())).absolute() / f"trial-{secrets.token_hex(8)}"
    user = _user(home.name)
    try:
        home.mkdir(mode=0o711, parents=True)
        for name in ("files", "scratch"):
            (home / name).mkdir(mode=0o700)
            if user:
                os.chown(home / name, user, user)
        os.listdir(home / "files")
        done = subprocess.run(
            _command(python, home, SandboxLimits(), 1 << 30, user),
            input=json.dumps({"code": _ESCAPE, "mark": ""}).encode() + b"\n",
            capture_output=True,
            cwd="/",
            env=_environment(home),
            start_new_session=True,
            timeout=_START_SECONDS,
            check=False,
        )
        said = json.loads(done.stdout.partition(b"\n")[0] or b"{}")
    except subprocess.TimeoutExpired:
        return "it did not start in time"
    except (OSError, ValueError) as error:
        return f"it cannot be started: {error}"
    finally:
        _delete(home)
    if "refused" in said:
        return str(said["refused"])
    if b"escaped:;" in done.stderr:
        return ""
    found = re.search(rb"escaped:([a-z,]+);", done.stderr)
    if found:
        return f"code inside could do what it must not: {found[1].decode()}"
    return f"it broke: {done.stderr[-300:].decode('utf-8', 'replace').strip() or 'no answer'}"


def _command(python: str, home: Path, limits: SandboxLimits, memory: int, user: int) -> list[str]:
    given = {
        "files": str(home / "files"),
        "scratch": str(home / "scratch"),
        "limits": {
            "memory": memory,
            "file_bytes": limits.disk_bytes,
            "threads": limits.threads,
            "descriptors": _DESCRIPTORS,
            "uid": user,
        },
    }
    return [python, "-I", "-B", "-X", "utf8", str(_PROGRAM), json.dumps(given)]


def _environment(home: Path) -> dict[str, str]:
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


def _user(key: str) -> int:
    """As root every machine is a user of its own; otherwise (0) it stays who we are."""
    if os.geteuid() != 0:
        return 0
    return _FIRST_USER + int.from_bytes(hashlib.sha256(key.encode()).digest()[:3], "big")


def _delete(home: Path) -> None:
    for name in ("files", "scratch"):
        disk.clear(home / name)
        with suppress(OSError):
            (home / name).rmdir()
    disk.clear(home)
    with suppress(OSError):
        home.rmdir()
