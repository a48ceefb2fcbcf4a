"""Hands code to the worker process of the same machine that has the container's interpreter.

Lives here: handing code to the process that has a container's interpreter, and running code for other processes. Not
here: a container's owner and its exclusive use (`containers.py`), and files: all these processes see the same ones.

Each process listens on a socket in a folder that they share. A container's record names the process. A process that has
ended, or does not answer with a hello, has lost its variables: the code runs in a new interpreter here. Once a process
has received code, no process runs this code a second time, whatever the outcome: files that it wrote exist.

A message is four bytes of length, the highest first, and MessagePack. Both ends have the same version: they are workers
of one gateway.

Invariants:
- A call passes from one process to one other, never on.
- Each wait has an end. A process that gives a call up has ended its code.
- No message is larger than its limit.
- Processes of different users exchange nothing.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal, TypeVar

import msgspec
import structlog
from msgspec import Struct

from antiphon.config.tools import CodeInterpreterSettings
from antiphon.engine.waiting import to_the_end
from antiphon.errors import ConfigError
from antiphon.tools.code_interpreter.disk import SandboxFailed
from antiphon.tools.code_interpreter.local import LocalSandbox
from antiphon.tools.code_interpreter.machine import CodeRun

_log = structlog.get_logger(__name__)

ASK_BYTES = 16 << 20
HELLO = b"\x01"
"""The first byte from the process that accepts a connection. A stopped process sends none."""
_MOST_GUESTS = 1_024
_ASK_SECONDS, _LEAVE_SECONDS = 10.0, 5.0
_PROCESS = re.compile(r"[0-9a-f]{16}")
_LENGTH = struct.Struct("!I")
_PEER = struct.Struct("3i")

T = TypeVar("T")


class Ask(Struct, array_like=True):
    """`run` code in the machine of this key, or `drop` the machine, files and all. `memory` in bytes."""

    do: Literal["run", "drop"]
    key: str
    code: str = ""
    memory: int = 0


class RunReply(Struct, array_like=True):
    """The outcome of a call; or `refused`, the message of a `SandboxFailed`."""

    run: CodeRun
    refused: str = ""


class NoMessage(Exception):
    """The other process sent something that is no message of this protocol."""


def is_of_our_user(writer: asyncio.StreamWriter) -> bool:
    """Whether the process at the other end is of this process's user."""
    given = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    _, uid, _ = _PEER.unpack(given)
    return bool(uid == os.geteuid())


class Neighbours:
    """See the module. Without `folder` there are no others. `start` before it is used, `aclose` in the end."""

    def __init__(
        self,
        sandbox: LocalSandbox,
        limits: CodeInterpreterSettings,
        folder: Path | None = None,
        *,
        hello_seconds: float = 5.0,
        place_seconds: float = 120.0,
        ask_bytes: int = ASK_BYTES,
        is_ours: Callable[[asyncio.StreamWriter], bool] = is_of_our_user,
    ) -> None:
        """`sandbox`: the sandbox of this process; the caller closes it.

        - `hello_seconds`: how long another process may take for its hello.
        - `place_seconds`: how long code may wait for a place and for its interpreter's start. The time that the code
          may run comes in addition.
        - `ask_bytes`: the largest call, mostly its code.
        - `is_ours`: whether this process accepts the process at the other end.
        """
        self.process = secrets.token_hex(8)
        """How records name this process."""
        self._sandbox = sandbox
        self._folder = folder
        self._hello_seconds = hello_seconds
        self._ask_bytes = ask_bytes
        self._is_ours = is_ours
        self._run_seconds = limits.seconds + place_seconds
        # A byte that is no UTF-8 is shown by three.
        self._answer_bytes = 4 * limits.output_bytes + limits.picture_bytes + (64 << 10)
        self._listening: asyncio.Server | None = None
        self._guests: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Take calls of others. Raises `ConfigError` where there can be no socket."""
        if self._folder is None:
            return
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        path = self._path(self.process)
        try:
            listening.bind(str(path))
            # Nobody can connect before it listens.
            path.chmod(0o600)
            self._listening = await asyncio.start_unix_server(self._accept, sock=listening, backlog=socket.SOMAXCONN)
        except OSError as error:
            listening.close()
            why = error.strerror or str(error)
            raise ConfigError(f"code_interpreter.sockets: no socket can be made in {self._folder}: {why}") from None

    async def run(self, holder: str, key: str, code: str, memory: int) -> tuple[CodeRun, str]:
        """Run code where the interpreter is (`holder`, the process that ran code there last; empty: none), else here;
        and which process ran it. Raises `SandboxFailed`."""
        if holder != self.process:
            handed = await self._hand(holder, Ask("run", key, code, memory))
            if handed is not None:
                return handed, holder
            # What an interpreter of ours knows is from before another process ran something.
            await self._sandbox.stop(key)
        return await self._sandbox.run(key, code, memory), self.process

    async def delete(self, holder: str, key: str) -> None:
        """End the interpreter, wherever it is, and delete the machine's files. Raises `SandboxFailed`."""
        if holder != self.process:
            try:
                await self._hand(holder, Ask("drop", key))
            except SandboxFailed as failure:
                # It ends when others need its place.
                _log.warning("interpreter_not_ended", container=key, error=str(failure))
        await self._sandbox.delete(key)

    async def finished(self, seconds: float) -> bool:
        """Wait until nothing that others handed over runs here; False if the time ran out first."""
        ends = asyncio.get_running_loop().time() + seconds
        while self._guests and (left := ends - asyncio.get_running_loop().time()) > 0:
            await asyncio.wait(self._guests, timeout=left)
        return not self._guests

    async def aclose(self) -> None:
        """Take no more calls, and end those that run. Their senders see the connection close."""
        listening, self._listening = self._listening, None
        if listening is None:
            return
        listening.close()
        self._path(self.process).unlink(missing_ok=True)
        for guest in self._guests:
            guest.cancel()
        if self._guests:
            await asyncio.wait(self._guests)

    def _path(self, process: str) -> Path:
        assert self._folder is not None
        return self._folder / f"code-{process}"

    # To others

    async def _hand(self, holder: str, ask: Ask) -> CodeRun | None:
        """The result of another process. None if that process has ended and ran nothing."""
        if self._folder is None or not _PROCESS.fullmatch(holder):
            return None
        message = framed(ask)
        if len(message) > self._ask_bytes:
            raise SandboxFailed(f"The code is too long: {self._ask_bytes} bytes are the limit.")
        streams = await self._connect(holder)
        if streams is None:
            return None
        reader, writer = streams
        try:
            async with asyncio.timeout(self._run_seconds):
                writer.write(message)
                await writer.drain()
                answer = await read_message(reader, RunReply, self._answer_bytes)
        except TimeoutError:
            raise SandboxFailed("The process that has the interpreter did not answer in time.") from None
        except NoMessage as error:
            _log.error("interpreter_answer_unreadable", container=ask.key, error=str(error))
            raise SandboxFailed("The process that has the interpreter gave no answer that can be read.") from None
        except (asyncio.IncompleteReadError, OSError):
            _log.warning("interpreter_process_ended", container=ask.key, process=holder)
            return CodeRun("", failed=True, lost="the process that it was in ended")
        finally:
            await to_the_end(_leave(reader, writer))
        if answer.refused:
            raise SandboxFailed(answer.refused)
        return answer.run

    async def _connect(self, holder: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """A connection to a process that has said hello."""
        writer = None
        try:
            async with asyncio.timeout(self._hello_seconds):
                reader, writer = await asyncio.open_unix_connection(str(self._path(holder)))
                if not self._is_ours(writer):
                    _log.error("interpreter_process_is_not_ours", process=holder)
                elif await reader.readexactly(len(HELLO)) == HELLO:
                    streams, writer = (reader, writer), None
                    return streams
        except ConnectionRefusedError:
            # Killed: it would have taken its socket away.
            with suppress(OSError):
                self._path(holder).unlink()
        except FileNotFoundError:
            pass
        except (TimeoutError, asyncio.IncompleteReadError, OSError) as error:
            _log.warning("interpreter_process_not_reached", process=holder, error=type(error).__name__)
        finally:
            if writer is not None:
                writer.close()
        return None

    # For others

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._is_ours(writer) or len(self._guests) >= _MOST_GUESTS:
            _log.warning("interpreter_call_refused", ours=self._is_ours(writer), calls=len(self._guests))
            writer.close()
            return
        guest = asyncio.create_task(self._serve(reader, writer))
        self._guests.add(guest)
        guest.add_done_callback(self._guests.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One call of another process; when that hangs up, its code is ended."""
        try:
            writer.write(HELLO)
            async with asyncio.timeout(_ASK_SECONDS):
                ask = await read_message(reader, Ask, self._ask_bytes)
            answer = await self._while_connected(reader, ask)
            if answer is not None:
                async with asyncio.timeout(_ASK_SECONDS):
                    writer.write(framed(answer))
                    await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, OSError, NoMessage) as error:
            _log.warning("interpreter_call_broken_off", error=type(error).__name__)
        finally:
            writer.close()

    async def _while_connected(self, reader: asyncio.StreamReader, ask: Ask) -> RunReply | None:
        working, hanging_up = asyncio.create_task(self._done(ask)), asyncio.create_task(reader.read(1))
        try:
            await asyncio.wait({working, hanging_up}, return_when=asyncio.FIRST_COMPLETED)
            return working.result() if working.done() else None
        finally:
            working.cancel()
            hanging_up.cancel()
            await to_the_end(asyncio.wait({working, hanging_up}))

    async def _done(self, ask: Ask) -> RunReply:
        try:
            if ask.do == "drop":
                await self._sandbox.delete(ask.key)
                return RunReply(CodeRun(""))
            return RunReply(await self._sandbox.run(ask.key, ask.code, ask.memory))
        except SandboxFailed as failure:
            return RunReply(CodeRun(""), refused=str(failure))


def framed(message: Ask | RunReply) -> bytes:
    """The bytes of a message."""
    body = msgspec.msgpack.encode(message)
    return _LENGTH.pack(len(body)) + body


async def read_message(reader: asyncio.StreamReader, kind: type[T], limit: int) -> T:
    """The next message. Raises `NoMessage`, and `asyncio.IncompleteReadError` or `OSError` where the connection ends
    before it does."""
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if length > limit:
        raise NoMessage(f"a message of {length} bytes, {limit} are the limit")
    try:
        return msgspec.msgpack.decode(await reader.readexactly(length), type=kind)
    except msgspec.DecodeError as error:
        raise NoMessage(str(error)) from None


async def _leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Hang up, and wait until the other side has: then code that was given up has ended."""
    with suppress(OSError, TimeoutError, RuntimeError):
        writer.write_eof()
        async with asyncio.timeout(_LEAVE_SECONDS):
            while await reader.read(1 << 16):
                continue
    writer.close()
