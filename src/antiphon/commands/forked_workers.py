"""Workers of `antiphon up`, forked by one process that has imported everything.

Lives here: this side of the fork server: starting it, ordering a worker, and a worker as a process that was not started
by this library's means. Not here: the fork server itself and a worker's first steps (`fork_server.py`), a child's life
(`children.py`), when one is started (`supervisor.py`).

It saves each worker the import of everything, and what that takes of memory. That is all: where it cannot be done (no
Linux, a fork server that does not answer) a worker is executed.

Invariant: a worker that was forked is a child of this process like any other.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

import structlog

from antiphon.commands.children import ORPHANS_END_SECONDS, Child, ParentPipe
from antiphon.commands.fork_server import program
from antiphon.commands.orders import Orders

_log = structlog.get_logger(__name__)

_PR_SET_CHILD_SUBREAPER = 36
_ANSWER_SECONDS = 30.0
_LONGEST_ANSWER = 4096


class CannotFork(Exception):
    """Why no worker could be forked."""


class ForkServer:
    """Forks workers. `command`, `state`, `transport`: what they will import (`fork_server.py`)."""

    def __init__(
        self, command: str, state: str, transport: str, *, pipe: ParentPipe, write_line: Callable[[str, str], None]
    ) -> None:
        self._program = program(command, state, transport)
        self._pipe = pipe
        self._write_line = write_line
        self._child: Child | None = None
        self._orders: socket.socket | None = None
        # One at a time: its answers have no names.
        self._busy = asyncio.Lock()

    async def open(self, environ: Mapping[str, str]) -> None:
        """Start it, where it does not run; it imports while others go on. `environ` holds no secrets."""
        async with self._busy:
            await self._open(environ)

    async def start(
        self, name: str, arguments: Sequence[str], environ: Mapping[str, str], *, plain: Mapping[str, str]
    ) -> Child:
        """A worker with these arguments of `antiphon`; `plain` is the environment without secrets. Raises
        `CannotFork`."""
        orders = Orders()
        reading, writing = os.pipe()
        try:
            async with self._busy:
                await self._open(plain)
                order = {"arguments": list(arguments), "environ": dict(environ), "parent": os.getpid()}
                order["seconds"] = ORPHANS_END_SECONDS
                descriptors = [orders.theirs.fileno(), writing, self._pipe.reading]
                with _taking_orphans_in():
                    pid = await self._give(json.dumps(order).encode(), descriptors)
            _check_adopted(pid)
            process = _Forked(pid, await _reader(reading))
        except BaseException as error:
            orders.close()
            with contextlib.suppress(OSError):
                os.close(reading)
            # Whatever it says next belongs to no order any more.
            await self.close()
            if isinstance(error, (OSError, ValueError)):
                raise CannotFork(_said(error)) from None
            raise
        finally:
            os.close(writing)
            orders.started()
        return Child(name, process, self._write_line, orders)

    async def close(self) -> None:
        """End it. The workers go on."""
        if self._orders is not None:
            self._orders.close()
            self._orders = None
        child, self._child = self._child, None
        if child is not None:
            await child.stop(0.0)

    async def _open(self, environ: Mapping[str, str]) -> None:
        if self._child is not None and self._child.status is None:
            return
        await self.close()
        ours, theirs = socket.socketpair()
        with theirs:
            self._child = await Child.start(
                *("fork server", self._program, environ),
                pipe=self._pipe,
                write_line=self._write_line,
                foreign=True,
                stdin=theirs.fileno(),
            )
        ours.setblocking(False)
        self._orders = ours

    async def _give(self, order: bytes, descriptors: Sequence[int]) -> int:
        assert self._orders is not None
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(_ANSWER_SECONDS):
            # With room for four bytes in a socket that has just been read empty, this waits for nothing.
            socket.send_fds(self._orders, [len(order).to_bytes(4, "big")], list(descriptors))
            await loop.sock_sendall(self._orders, order)
            answer = b""
            while not answer.endswith(b"\n"):
                data = await loop.sock_recv(self._orders, _LONGEST_ANSWER)
                if not data:
                    raise ConnectionResetError
                answer += data
        said = json.loads(answer)
        if "pid" not in said:
            raise OSError(str(said["problem"]))
        return int(said["pid"])


class _Forked:
    """A child process that another one forked for this one: the part of `asyncio.subprocess.Process` that is needed."""

    def __init__(self, pid: int, stdout: asyncio.StreamReader) -> None:
        self.pid = pid
        self.stdout = stdout
        self.returncode: int | None = None
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        threading.Thread(target=self._wait, name=f"wait-{pid}", daemon=True).start()

    async def wait(self) -> int:
        """Its exit status, or minus the signal's number."""
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Nothing happens where it has ended: until it is reaped, on this thread, its id is nobody else's."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def _wait(self) -> None:
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        # A loop that is closed belongs to a process that is ending.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._reap)

    def _reap(self) -> None:
        _, status = os.waitpid(self.pid, 0)
        self.returncode = os.waitstatus_to_exitcode(status)
        self._ended.set()


def _said(error: Exception) -> str:
    if isinstance(error, ConnectionError):
        return "the fork server ended; what it wrote is in the log above"
    if isinstance(error, TimeoutError):
        return f"the fork server did not answer within {_ANSWER_SECONDS:g} s"
    return str(error) or type(error).__name__


def _check_adopted(pid: int) -> None:
    """Raises `ChildProcessError` when it is no child of this process."""
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)


def can_fork() -> bool:
    """Whether orphans can be taken in here."""
    return sys.platform == "linux"


@contextlib.contextmanager
def _taking_orphans_in() -> Iterator[None]:
    """For this long only: what workers leave behind when they die is for the system's first process, as ever."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "orphans cannot be taken in")
    try:
        yield
    finally:
        prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


async def _reader(descriptor: int) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    pipe = os.fdopen(descriptor, "rb", buffering=0)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    return reader
