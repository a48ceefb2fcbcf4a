"""Sends code to the worker process on the same machine that runs the container's interpreter.

This module has the client and the server of the protocol by which a worker process sends code to another worker
process. `containers.py` checks owners, and gives one request exclusive use of a container. The protocol transfers no
files, because all worker processes share the folder of the containers.

Each worker process listens on a Unix socket in a shared folder. A container's row names the process that ran its code
last. The named process first sends one byte, the hello byte, on each connection. If the named process has ended or
sends no hello byte, the variables are lost, and this process runs the code in a new interpreter. After a process has
received code, no other process runs the same code again, even after an error. A second run could repeat changes to
files.

A message is its length as four big-endian bytes, followed by MessagePack. Sender and receiver have the same version of
Antiphon, because they are worker processes of one sidecar.

Invariants:
- The receiver of a call runs the code itself and never forwards it.
- Each wait has a timeout. When the sender hangs up, the receiver ends the code.
- A receiver rejects a message that is larger than its limit.
- Processes of different operating-system users exchange no messages.
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
"""The first byte that a process sends after it has accepted a connection. The kernel accepts connections for a stopped
process, but a stopped process sends no hello."""
_MOST_GUESTS = 1_024
_ASK_SECONDS, _LEAVE_SECONDS = 10.0, 5.0
_PROCESS = re.compile(r"[0-9a-f]{16}")
_LENGTH = struct.Struct("!I")
_PEER = struct.Struct("3i")

T = TypeVar("T")


class Ask(Struct, array_like=True):
    """A request to another worker process. `run`: run `code` in the container `key`. `drop`: end the interpreter of
    `key` and delete its files. `memory`: the memory limit in bytes."""

    do: Literal["run", "drop"]
    key: str
    code: str = ""
    memory: int = 0


class RunReply(Struct, array_like=True):
    """The reply to an `Ask`: the result of the code. If the sandbox raised `SandboxFailed`, `refused` is its
    message."""

    run: CodeRun
    refused: str = ""


class NoMessage(Exception):
    """Raised when the other process sent data that is not a message of this protocol."""


def is_of_our_user(writer: asyncio.StreamWriter) -> bool:
    """Return whether the process at the other end of the socket has the same operating-system user as this process."""
    given = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    _, uid, _ = _PEER.unpack(given)
    return bool(uid == os.geteuid())


class Neighbours:
    """Runs code in whichever worker process has the container's interpreter. Without `folder`, this process runs all
    code. Call `start` before the first use, and `aclose` at the end."""

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
        """`sandbox`: the sandbox of this process, which the caller closes.

        - `hello_seconds`: the timeout for another process's hello byte.
        - `place_seconds`: the maximum time for waiting for a slot and starting the interpreter, in addition to the
          code's own timeout.
        - `ask_bytes`: the maximum size of a request in bytes.
        - `is_ours`: decides whether to trust the process at the other end of a connection.
        """
        self.process = secrets.token_hex(8)
        """The random name of this process in container rows and socket paths."""
        self._sandbox = sandbox
        self._folder = folder
        self._hello_seconds = hello_seconds
        self._ask_bytes = ask_bytes
        self._is_ours = is_ours
        self._run_seconds = limits.seconds + place_seconds
        # Decoding replaces an invalid UTF-8 byte by U+FFFD, which takes three bytes.
        self._answer_bytes = 4 * limits.output_bytes + limits.picture_bytes + (64 << 10)
        self._listening: asyncio.Server | None = None
        self._guests: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Start listening for calls of other worker processes. Raises `ConfigError` if the socket cannot be created in
        `folder`."""
        if self._folder is None:
            return
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        path = self._path(self.process)
        try:
            listening.bind(str(path))
            # No process can connect before the socket listens, so the mode is set in time.
            path.chmod(0o600)
            self._listening = await asyncio.start_unix_server(self._accept, sock=listening, backlog=socket.SOMAXCONN)
        except OSError as error:
            listening.close()
            why = error.strerror or str(error)
            raise ConfigError(
                f"code_interpreter.sockets: the socket in {self._folder} cannot be created: {why}"
            ) from None

    async def run(self, holder: str, key: str, code: str, memory: int) -> tuple[CodeRun, str]:
        """Run code in the process `holder`, which ran the container's code last, if `holder` still runs. If `holder`
        has ended, run the code in this process. `holder` is empty for a new container. Returns the result, and the name
        of the process that ran the code. Raises `SandboxFailed`."""
        if holder != self.process:
            handed = await self._hand(holder, Ask("run", key, code, memory))
            if handed is not None:
                return handed, holder
            # An interpreter in this process has outdated variables, because `holder` ran code after it.
            await self._sandbox.stop(key)
        return await self._sandbox.run(key, code, memory), self.process

    async def delete(self, holder: str, key: str) -> None:
        """End the container's interpreter in this process or in `holder`, and delete the container's files. Raises
        `SandboxFailed`."""
        if holder != self.process:
            try:
                await self._hand(holder, Ask("drop", key))
            except SandboxFailed as failure:
                # The other process ends this interpreter when it needs the slot.
                _log.warning("interpreter_not_ended", container=key, error=str(failure))
        await self._sandbox.delete(key)

    async def finished(self, seconds: float) -> bool:
        """Wait at most `seconds` until this process has finished all calls of other processes. Returns False on a
        timeout."""
        ends = asyncio.get_running_loop().time() + seconds
        while self._guests and (left := ends - asyncio.get_running_loop().time()) > 0:
            await asyncio.wait(self._guests, timeout=left)
        return not self._guests

    async def aclose(self) -> None:
        """Stop listening, and end the running calls of other processes. The senders of the running calls see the
        connection close."""
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

    # Calls to other processes

    async def _hand(self, holder: str, ask: Ask) -> CodeRun | None:
        """Send a request to the process `holder` and return its result. Returns None if `holder` cannot be reached. In
        that case `holder` has not run the code. Raises `SandboxFailed`."""
        if self._folder is None or not _PROCESS.fullmatch(holder):
            return None
        message = framed(ask)
        if len(message) > self._ask_bytes:
            raise SandboxFailed(f"The code is too long. The limit is {self._ask_bytes} bytes.")
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
            raise SandboxFailed("The process that runs the interpreter did not answer in time.") from None
        except NoMessage as error:
            _log.error("interpreter_answer_unreadable", container=ask.key, error=str(error))
            raise SandboxFailed("The process that runs the interpreter gave an invalid answer.") from None
        except (asyncio.IncompleteReadError, OSError):
            _log.warning("interpreter_process_ended", container=ask.key, process=holder)
            return CodeRun("", failed=True, lost="the worker process of the interpreter ended")
        finally:
            await to_the_end(_leave(reader, writer))
        if answer.refused:
            raise SandboxFailed(answer.refused)
        return answer.run

    async def _connect(self, holder: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """Connect to the process `holder` and wait for its hello byte. Returns None if the connection fails."""
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
            # The process was killed, because a regular end deletes the socket.
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

    # Calls from other processes

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._is_ours(writer) or len(self._guests) >= _MOST_GUESTS:
            _log.warning("interpreter_call_refused", ours=self._is_ours(writer), calls=len(self._guests))
            writer.close()
            return
        guest = asyncio.create_task(self._serve(reader, writer))
        self._guests.add(guest)
        guest.add_done_callback(self._guests.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Handle one call of another process. If the calling process hangs up, end the code."""
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
    """Encode a message with its length."""
    body = msgspec.msgpack.encode(message)
    return _LENGTH.pack(len(body)) + body


async def read_message(reader: asyncio.StreamReader, kind: type[T], limit: int) -> T:
    """Read the next message of type `kind`. Raises `NoMessage` if the message is invalid or larger than `limit`. Raises
    `asyncio.IncompleteReadError` or `OSError` if the connection ends before the message does."""
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if length > limit:
        raise NoMessage(f"the message has {length} bytes, more than the limit of {limit}")
    try:
        return msgspec.msgpack.decode(await reader.readexactly(length), type=kind)
    except msgspec.DecodeError as error:
        raise NoMessage(str(error)) from None


async def _leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Close the sending side, and wait until the other process closes the connection. If the call was cancelled, the
    other process has then ended the code."""
    with suppress(OSError, TimeoutError, RuntimeError):
        writer.write_eof()
        async with asyncio.timeout(_LEAVE_SECONDS):
            while await reader.read(1 << 16):
                continue
    writer.close()
