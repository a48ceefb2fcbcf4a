"""A sandbox on this machine: a process without rights for each key. It needs Linux with Landlock, and nothing else.

Lives here: the list of machines, and their files while nothing runs. Also the trial: which room for files this machine
allows, and whether code that tries to get out stays confined. Not here: one machine (`machine.py`), what it gives up
(`confinement.py`), how much room its files have (`space.py`), what it does (`interpreter.py`).

Code that exceeds a time limit ends the process: its variables are lost, its files stay. Code that exceeds a limit of
room gets an error.

Foreign code made everything that comes out of a machine: the sandbox trusts none of it and bounds all of it.

Invariants:
- Code in a machine reaches no network, no file but its own, no other process, and nothing of another machine.
- No process outlives its `LocalSandbox`, nor the thread that started it.
- The sandbox relies on no confinement that a trial has not shown.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import sys
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir
from types import MappingProxyType
from typing import get_args

import structlog

from antiphon.config.tools import CodeInterpreterSettings
from antiphon.engine.waiting import SANDBOX
from antiphon.tools.code_interpreter import disk
from antiphon.tools.code_interpreter.disk import SandboxFailed, SandboxFile
from antiphon.tools.code_interpreter.machine import CodeRun, Machine, SandboxNotStarted
from antiphon.tools.code_interpreter.starting import PROGRAM, Room, user_of

_log = structlog.get_logger(__name__)


class LocalSandbox:
    """Machines by key, each with files that stay, and an interpreter whose variables stay while it lives.

    Files are below `folder`; `limits.python` runs the code: its libraries are what code can import. `room` is one that
    `try_out` found to hold here; `make` makes a machine. Every method but `aclose` raises `SandboxFailed`; keys are ids
    of this gateway's making.
    """

    def __init__(
        self,
        folder: Path,
        limits: CodeInterpreterSettings,
        room: Room = "memory",
        make: Callable[..., Machine] = Machine,
    ) -> None:
        self._folder = folder.absolute()
        self._limits = limits
        self._python = limits.python or sys.executable
        self._room = room
        self._make = make
        self._machines: OrderedDict[str, Machine] = OrderedDict()
        self._places = asyncio.Semaphore(self._limits.machines)

    @property
    def machines(self) -> Mapping[str, Machine]:
        """The machines whose interpreters run or start, by key. The most recently used one is last."""
        return MappingProxyType(self._machines)

    @property
    def interpreters(self) -> int:
        """How many interpreters live."""
        return len(self._machines)

    async def run(self, key: str, code: str, memory: int) -> CodeRun:
        """Run code in this machine, which is made if need be. One at a time for each key."""
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
                if not machine.alive:
                    self._machines.pop(key, None)
                    await machine.end()
            return run

    async def put(self, key: str, path: str, pieces: AsyncIterator[bytes]) -> SandboxFile:
        """Write or replace a file, within the limits of the disk."""
        (file,) = await self.fill(key, [(path, pieces)])
        return file

    async def fill(self, key: str, files: Sequence[tuple[str, AsyncIterator[bytes]]]) -> list[SandboxFile]:
        """Write several, one after the other, with the folders that they are in."""
        home = await SANDBOX.run(make_home, self._folder / key)
        use = await SANDBOX.run(disk.use_of, home, 2 * self._limits.files)
        left, count = self._limits.disk_bytes - use.bytes, use.count
        made = []
        for path, pieces in files:
            if count >= self._limits.files or left <= 0:
                raise SandboxFailed("The container is full.")
            incoming = home / f".incoming-{secrets.token_hex(8)}"
            try:
                with await SANDBOX.run(incoming.open, "xb") as file:
                    async for piece in pieces:
                        left -= len(piece)
                        if left < 0:
                            raise SandboxFailed("The file is too large for the container.")
                        await SANDBOX.run(file.write, piece)
                made.append(await SANDBOX.run(disk.write_file, home / "files", path, incoming, user_of(key)))
            finally:
                with suppress(OSError):
                    incoming.unlink()
            count += 1
        return made

    async def list(self, key: str) -> list[SandboxFile]:
        """All files of the machine, by path; a machine that does not exist has none."""
        return await SANDBOX.run(disk.list_files, self._files(key), self._limits.files)

    async def read(self, key: str, path: str, start: int, limit: int) -> bytes:
        """Bytes of a file from `start`; empty after its end."""
        return await SANDBOX.run(disk.read_file, self._files(key), path, start, limit)

    async def remove(self, key: str, path: str) -> None:
        """Delete a file, if it is there."""
        await SANDBOX.run(disk.remove_file, self._files(key), path)

    async def stop(self, key: str) -> None:
        """End the interpreter, if there is one; files stay."""
        await self._stop(key, keep=True)

    async def keys(self) -> Sequence[str]:
        """All machines that have files."""
        with suppress(FileNotFoundError):
            return await SANDBOX.run(os.listdir, self._folder)
        return ()

    async def delete(self, key: str) -> None:
        """End the machine and delete its files."""
        await self._stop(key, keep=False)
        await SANDBOX.run(delete_home, self._folder / key)

    async def aclose(self) -> None:
        """End all interpreters; files stay."""
        machines, self._machines = list(self._machines.values()), OrderedDict()
        for machine in machines:
            await _retire(machine)

    def _files(self, key: str) -> Path:
        return self._folder / key / "files"

    async def _stop(self, key: str, *, keep: bool) -> None:
        machine = self._machines.pop(key, None)
        if machine is not None:
            await machine.end(keep=keep)

    async def _machine(self, key: str, memory: int) -> Machine:
        known = self._machines.get(key)
        if known is not None and known.memory == memory and known.alive:
            self._machines.move_to_end(key)
            known.busy = True
            return known
        if known is not None:
            del self._machines[key]
            await _retire(known)
        while len(self._machines) >= self._limits.machines:
            idle = next((name for name, one in self._machines.items() if not one.busy), None)
            if idle is None:
                break
            await _retire(self._machines.pop(idle))
        # At once, so that it counts while it starts.
        machine = self._machines[key] = self._make(self._folder / key, self._limits, memory, self._room)
        try:
            await SANDBOX.run(make_home, self._folder / key)
            await machine.start(self._python)
        except BaseException as error:
            self._machines.pop(key, None)
            if isinstance(error, SandboxNotStarted):
                _log.error("sandbox_refused", reason=error.reason[:500])
            if not isinstance(error, OSError):
                raise
            _log.error("sandbox_not_started", error=type(error).__name__, exc_info=True)
            raise SandboxFailed("The code cannot be run at the moment.") from None
        return machine


async def _retire(machine: Machine) -> None:
    """End a machine that no call needs any more. An error about its files goes to the log and fails no call."""
    with suppress(SandboxFailed):
        await machine.end()


HOLDS: dict[Room, str] = {
    "memory": "files of running code are in a file system in memory, of fixed size",
    "counted": "no right to mount and no user namespaces: files of code are counted and each is small",
}

TRIAL_CODE = """
import os, socket, signal, ctypes
out = []
def tried(name, attempt):
    try:
        attempt()
    except BaseException as error:
        return
    out.append(name)
def fill():
    for n in range(128):
        with open(f"fill-{n}", "wb") as file: file.write(bytes(12 << 10))
def large():
    with open("large", "wb") as file: file.write(bytes(2 << 20))
open("one", "w").close()
tried("read", lambda: open("/etc/passwd").read(1))
tried("list", lambda: os.listdir("/"))
tried("write", lambda: open("/tmp/.escaped", "w"))
tried("socket", lambda: socket.socket())
tried("unix", lambda: socket.socket(socket.AF_UNIX))
tried("fork", lambda: os._exit(0) if os.fork() == 0 else None)
tried("exec", lambda: os.execv("/bin/true", ["true"]))
tried("kill", lambda: os.kill(os.getppid(), 0))
tried("thaw", lambda: os.kill(os.getpid(), signal.SIGCONT))
tried("large", large)
tried("disk", fill)
tried("setuid", lambda: os.setuid(0) if os.getuid() else 1 / 0)
print("escaped:" + ",".join(out) + ";")
"""
TRIAL_LIMITS = CodeInterpreterSettings(disk_bytes=1 << 20)


@dataclass(frozen=True, slots=True)
class Trial:
    """`reason` says why code cannot be run here, and is empty where it can; `room` is where its files can be."""

    reason: str
    room: Room = "memory"


async def try_out(
    python: str = "", folder: Path | None = None, rooms: tuple[Room, ...] = get_args(Room), program: Path = PROGRAM
) -> Trial:
    """Try the rooms in turn.

    `folder` is the place for containers. As root the answer depends on the users who may enter it; `program` is what
    machines run.
    """
    reasons: list[str] = []
    for room in rooms:
        reason = await _try(python or sys.executable, (folder or Path(gettempdir())).absolute(), room, program)
        if not reason:
            return Trial("", room)
        reasons.append(reason)
    return Trial("; ".join(dict.fromkeys(reasons)))


async def _try(python: str, folder: Path, room: Room, program: Path) -> str:
    home = folder / f"trial-{secrets.token_hex(8)}"
    machine = Machine(home, TRIAL_LIMITS, 1 << 30, room, program=program)
    try:
        await SANDBOX.run(make_home, home)
        await machine.start(python)
        run = await machine.run(TRIAL_CODE)
    except SandboxNotStarted as error:
        return error.reason
    except (OSError, SandboxFailed) as error:
        return f"it cannot be started: {error}"
    finally:
        await machine.end(keep=False)
        await SANDBOX.run(delete_home, home)
    if "escaped:;" in run.output:
        return ""
    found = re.search(r"escaped:([a-z,]+);", run.output)
    if found:
        return f"code inside could do what it must not: {found[1]}"
    return f"it broke: {run.output[-300:].strip() or run.lost or 'no answer'}"


def make_home(home: Path, user: int | None = None) -> Path:
    """The folders of a machine, made if need be; its own user's, unless another is named. Raises `OSError`."""
    home.mkdir(mode=0o711, parents=True, exist_ok=True)
    user = user_of(home.name) if user is None else user
    for name in ("files", "scratch"):
        inner = home / name
        if not inner.is_dir():
            inner.mkdir(mode=0o700)
            if user:
                os.chown(inner, user, user)
    return home


def delete_home(home: Path) -> None:
    """The folders of a machine, with all that is in them."""
    disk.clear(home)
    with suppress(OSError):
        home.rmdir()
