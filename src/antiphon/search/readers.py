"""Starts, watches and ends document reader processes.

Lives here: the pool of reader processes, the timeout for reading a file, and the reaction to a crash. Not here: the
code that runs in the process (`reader_process.py`).

A reader process reads one file after another, because the start of a process takes a third of a second. After
`files_per_process` files or a crash, the pool replaces the process.

If a process died while it was idle, the next file is not the cause. So the pool reads this file with another process.
If a reused process dies before its first answer, the pool reads the file once more, in a new process.

Invariant: when the pool has read a file, with success, error or cancellation, the process is either idle in the pool or
dead.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import msgspec
import structlog

from antiphon.child_signals import send_signal
from antiphon.config.state import VectorStoreSettings
from antiphon.engine.ports.vector_stores import Chunking, DocumentChunk, FileError, FileErrorCode
from antiphon.search.read_messages import LENGTH, ReadAnswer, ReadRequest

_log = structlog.get_logger(__name__)
_MAX_ANSWER = 64 << 20
_FILES_PER_PROCESS = 200


@dataclass(frozen=True, slots=True)
class ChunkBatch:
    """A batch of consecutive chunks of a document, with the document's title."""

    title: str
    chunks: list[DocumentChunk]


class ReadingFailed(Exception):
    """The file is unreadable, and a retry would fail in the same way."""

    def __init__(self, error: FileError) -> None:
        super().__init__(error.message)
        self.error = error


class _Died(Exception):
    """The reader process ended before its last answer. `status`: the process's exit status, negative for a signal."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@dataclass(eq=False)
class _Process:
    child: asyncio.subprocess.Process
    files: int = 0
    used_at: float = 0.0

    async def end(self) -> None:
        send_signal(self.child, signal.SIGKILL)
        await self.child.wait()
        # If a call of `read` was cancelled, a pipe to the process may still be open. So close the transport with all
        # pipes.
        transport = getattr(self.child, "_transport", None)
        if transport is not None:
            transport.close()


class DocumentReaders:
    """Reads documents with a pool of reader processes. Concurrent calls of `read` use separate processes."""

    def __init__(self, limits: VectorStoreSettings, *, files_per_process: int = _FILES_PER_PROCESS) -> None:
        self._limits = limits
        self._files_per_process = files_per_process
        self._idle: list[_Process] = []

    async def read(self, path: Path, name: str, chunking: Chunking) -> AsyncGenerator[ChunkBatch, None]:
        """Yield the chunks of a file in batches. `path` must be absolute. `name`: the uploaded file's name. Raises
        `ReadingFailed`."""
        limits = self._limits
        request = ReadRequest(
            path=str(path),
            name=name,
            size=chunking.size,
            overlap=chunking.overlap,
            max_bytes=limits.text_bytes,
            max_tokens=limits.tokens,
            seconds=max(1, round(limits.file_seconds)),
        )
        for attempt in range(2):
            process = await self._take(new=attempt > 0)
            answered = False
            try:
                async with aclosing(self._ask(process, msgspec.json.encode(request) + b"\n")) as pieces:
                    async for piece in pieces:
                        answered = True
                        yield piece
                return
            except _Died as death:
                # If a new process died, the file is the cause. A reused process may have been dying before it got this
                # file.
                if answered or process.files == 1:
                    raise _failed(_why_ended(death.status)) from None
                _log.warning("reader_died_idle", status=death.status)

    async def _ask(self, process: _Process, request: bytes) -> AsyncGenerator[ChunkBatch, None]:
        """Read one file with this process, and afterwards return the process to the pool or end it. Raises
        `ReadingFailed` and `_Died`."""
        reusable = False
        try:
            assert process.child.stdin is not None
            with suppress(ConnectionError):
                process.child.stdin.write(request)
                await process.child.stdin.drain()
            while True:
                # The timeout covers only the wait for the process, not the consumer of the chunks, which may be slow.
                answer = await self._answer(process)
                if answer.code:
                    reusable = not answer.dying
                    raise ReadingFailed(FileError(_code(answer.code), answer.message))
                reusable = answer.end
                yield ChunkBatch(answer.title, [DocumentChunk(text, tokens) for text, tokens in answer.chunks])
                if answer.end:
                    return
        finally:
            if reusable and process.files < self._files_per_process and process.child.returncode is None:
                process.used_at = time.monotonic()
                self._idle.append(process)
            else:
                await process.end()

    async def _take(self, *, new: bool) -> _Process:
        """Take a live idle process from the pool, or start a new process. `new`: start a new process even if an idle
        process exists."""
        while self._idle and not new:
            process = self._idle.pop()
            if process.child.returncode is None:
                process.files += 1
                return process
            _log.warning("reader_died_idle", status=process.child.returncode)
            await process.end()
        process = await self._start()
        process.files += 1
        return process

    async def rest(self, seconds: float) -> None:
        """End the processes that have been idle for `seconds`, because each uses about 160 MB of memory."""
        now = time.monotonic()
        while self._idle and now - self._idle[0].used_at >= seconds:
            # `_take` reuses the last element, so the first element has been idle longest.
            await self._idle.pop(0).end()

    async def aclose(self) -> None:
        """End the idle processes. The caller must cancel running calls of `read` first."""
        while self._idle:
            await self._idle.pop().end()

    async def _start(self) -> _Process:
        # Pass only the environment variables that Python needs, because the environment may contain secrets of the
        # settings.
        environment = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        environment["OMP_NUM_THREADS"] = environment["OPENBLAS_NUM_THREADS"] = "1"
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "antiphon.search.reader_process", str(self._limits.file_memory_bytes)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            # Discard stderr, because libraries quote documents in their warnings.
            stderr=asyncio.subprocess.DEVNULL,
            env=environment,
            cwd="/",
            start_new_session=True,
        )
        return _Process(child)

    async def _answer(self, process: _Process) -> ReadAnswer:
        assert process.child.stdout is not None
        try:
            async with asyncio.timeout(2 * self._limits.file_seconds):
                head = await process.child.stdout.readexactly(LENGTH.size)
                (length,) = LENGTH.unpack(head)
                if length > _MAX_ANSWER:
                    raise _failed("The file could not be read.")
                return msgspec.msgpack.decode(await process.child.stdout.readexactly(length), type=ReadAnswer)
        except TimeoutError:
            raise _failed("The file takes too long to be read.") from None
        except asyncio.IncompleteReadError:
            # A shutdown may also kill the process, but then no caller waits for the file.
            raise _Died(await process.child.wait()) from None
        except msgspec.DecodeError:
            raise _failed("The file could not be read.") from None


def _why_ended(status: int) -> str:
    if status == -signal.SIGXCPU:
        return "The file takes too long to be read."
    return "The file could not be read: the process that read the file ended."


def _failed(message: str) -> ReadingFailed:
    return ReadingFailed(FileError("invalid_file", message))


def _code(text: str) -> FileErrorCode:
    return cast(FileErrorCode, text) if text in ("unsupported_file", "server_error") else "invalid_file"
