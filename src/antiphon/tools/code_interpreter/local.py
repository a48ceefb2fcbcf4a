"""Runs code on this machine in confined processes, one per container. The sandbox needs only Linux with Landlock.

This module manages the pool of sandboxed processes, and accesses the containers' files between runs. A trial tests
whether this machine can confine code, and with which mode of limiting disk space. `machine.py` controls one sandboxed
process, `confinement.py` confines it, and `space.py` limits its disk space. `interpreter.py` is the script that the
process runs.

If code does not stop after its timeout, the sandbox kills the process. The variables are then lost, and the files stay.
Code that exceeds the disk or memory limit gets an error.

The model's code controls all data that a sandboxed process sends. So the sandbox validates all data from these
processes and limits its size.

Invariants:
- Code in a sandboxed process reaches no network, no other process, and no files except those of its container.
- No sandboxed process outlives its `LocalSandbox` or the thread that started it.
- The sandbox uses only a confinement that a trial has tested on this machine.
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
    """A pool of sandboxed processes. A key is a container's id. Each container has files on disk, and at most one
    interpreter process with its variables.

    `folder`: the folder of all containers' files. `limits.python`: the Python that runs the code, whose libraries the
    code can import. `room`: a mode of limiting disk space that `try_out` has tested. `make`: the factory for a
    `Machine`, which tests replace. Every method except `aclose` raises `SandboxFailed`. Keys must be ids that Antiphon
    generated.
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
        """The sandboxed processes that run or start, by key. The most recently used process is last."""
        return MappingProxyType(self._machines)

    @property
    def interpreters(self) -> int:
        """The number of interpreter processes that run or start."""
        return len(self._machines)

    async def run(self, key: str, code: str, memory: int) -> CodeRun:
        """Run code in the container's interpreter, and start the interpreter if it does not run. The caller must run
        only one call per key at a time. `memory`: bytes of address space."""
        async with self._places:
            machine = await self._machine(key, min(memory, self._limits.memory))
            try:
                run = await machine.run(code)
            except BaseException:
                # The call was cancelled or failed, so the state of the process is unknown.
                machine.kill()
                raise
            finally:
                machine.busy = False
                if not machine.alive:
                    self._machines.pop(key, None)
                    await machine.end()
            return run

    async def put(self, key: str, path: str, pieces: AsyncIterator[bytes]) -> SandboxFile:
        """Write or replace a file of a container. Raises `SandboxFailed` if the container is full."""
        (file,) = await self.fill(key, [(path, pieces)])
        return file

    async def fill(self, key: str, files: Sequence[tuple[str, AsyncIterator[bytes]]]) -> list[SandboxFile]:
        """Write several files of a container in order, and create their folders. `files`: pairs of path and content.
        Raises `SandboxFailed` if the container is full."""
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
        """List the files of a container, sorted by path. Returns an empty list if the container has no folder."""
        return await SANDBOX.run(disk.list_files, self._files(key), self._limits.files)

    async def read(self, key: str, path: str, start: int, limit: int) -> bytes:
        """Return at most `limit` bytes of a container's file from offset `start`. Returns no bytes after the end of the
        file."""
        return await SANDBOX.run(disk.read_file, self._files(key), path, start, limit)

    async def remove(self, key: str, path: str) -> None:
        """Delete a file of a container if it exists."""
        await SANDBOX.run(disk.remove_file, self._files(key), path)

    async def stop(self, key: str) -> None:
        """End the container's interpreter in this process, if it runs. Files stay."""
        await self._stop(key, keep=True)

    async def keys(self) -> Sequence[str]:
        """Return the keys of all containers that have a folder on this machine."""
        with suppress(FileNotFoundError):
            return await SANDBOX.run(os.listdir, self._folder)
        return ()

    async def delete(self, key: str) -> None:
        """End the container's interpreter in this process, and delete the container's files."""
        await self._stop(key, keep=False)
        await SANDBOX.run(delete_home, self._folder / key)

    async def aclose(self) -> None:
        """End all interpreters of this process. Files stay."""
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
        # Add the machine before it starts, so that it counts towards the limit during the start.
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
            raise SandboxFailed("The server cannot run the code at the moment. Try again.") from None
        return machine


async def _retire(machine: Machine) -> None:
    """End a sandboxed process that no call uses. If the process's files cannot be copied out, `MachineFiles` logs the
    error, and the current call continues."""
    with suppress(SandboxFailed):
        await machine.end()


HOLDS: dict[Room, str] = {
    "memory": "while code runs, its files are in a file system in memory with a fixed size",
    "counted": "Antiphon may neither mount nor use user namespaces, so code can create only few and small files",
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
    """The result of `try_out`. `reason`: why this machine cannot confine code, or empty if it can. `room`: the mode of
    limiting disk space that works."""

    reason: str
    room: Room = "memory"


async def try_out(
    python: str = "", folder: Path | None = None, rooms: tuple[Room, ...] = get_args(Room), program: Path = PROGRAM
) -> Trial:
    """Test each mode of limiting disk space in order, with code that tries to escape. Returns the first mode that
    confines the code, or the reasons of all failures.

    `folder`: the folder for containers. If this process is root, the result depends on which users may enter this
    folder. `program`: the script that sandboxed processes run.
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
    except OSError as error:
        # The event loop's error does not always name the file.
        return f"the sandbox cannot be started with the interpreter {python}: {error}"
    except SandboxFailed as error:
        return f"the sandbox cannot be started: {error}"
    finally:
        await machine.end(keep=False)
        await SANDBOX.run(delete_home, home)
    if "escaped:;" in run.output:
        return ""
    found = re.search(r"escaped:([a-z,]+);", run.output)
    if found:
        return f"code in the sandbox could perform forbidden operations: {found[1]}"
    return f"the sandbox failed: {run.output[-300:].strip() or run.lost or 'no answer'}"


def make_home(home: Path, user: int | None = None) -> Path:
    """Create the folders of a container if they are missing, and return `home`. `user`: the user id that owns the
    folders; None: the container's own user id. Raises `OSError`."""
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
    """Delete the folders of a container with all their files."""
    disk.clear(home)
    with suppress(OSError):
        home.rmdir()
