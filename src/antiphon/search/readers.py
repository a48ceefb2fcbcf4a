"""Starts, watches and ends document reader processes.

Lives here: starting, watching and ending `reader_process`. Not here: the work inside it.

A process reads one file after another, because starting one takes a third of a second. After a number of files, or a
failure, a new process replaces it.

If a process dies while it is idle, the next file is not the cause: the file gets another process. If a reused process
dies before its first answer, the file gets one new process.

Invariant: when a reading ends, in whatever way, its process is idle or dead.
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

from antiphon.config.state import VectorStoreSettings
from antiphon.engine.ports.indexing import DocumentChunk
from antiphon.engine.ports.vector_stores import Chunking, FileError, FileErrorCode
from antiphon.search.read_messages import LENGTH, ReadAnswer, ReadRequest

_log = structlog.get_logger(__name__)
_MAX_ANSWER = 64 << 20
_FILES_PER_PROCESS = 200


@dataclass(frozen=True, slots=True)
class Piece:
    """Some chunks of a document."""

    title: str
    chunks: list[DocumentChunk]


class ReadingFailed(Exception):
    """The file is unreadable; a retry would not help."""

    def __init__(self, error: FileError) -> None:
        super().__init__(error.message)
        self.error = error


class _Died(Exception):
    """The process ended before its last answer."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@dataclass(eq=False)
class _Process:
    child: asyncio.subprocess.Process
    files: int = 0
    used_at: float = 0.0

    async def end(self) -> None:
        with suppress(ProcessLookupError):
            self.child.kill()
        await self.child.wait()
        # The pipe's transport closes with the last of its ends; a cancelled reader may have left this end open.
        transport = getattr(self.child, "_transport", None)
        if transport is not None:
            transport.close()


class DocumentReaders:
    """Reads files; one process per concurrent reading."""

    def __init__(self, limits: VectorStoreSettings, *, files_per_process: int = _FILES_PER_PROCESS) -> None:
        self._limits = limits
        self._files_per_process = files_per_process
        self._idle: list[_Process] = []

    async def read(self, path: Path, name: str, chunking: Chunking) -> AsyncGenerator[Piece, None]:
        """The chunks of a file (an absolute path), in pieces. Raises `ReadingFailed`."""
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
                # A reused process may have been dying already; for a new one, the file is the cause.
                if answered or process.files == 1:
                    raise _failed(_why_ended(death.status)) from None
                _log.warning("reader_died_idle", status=death.status)

    async def _ask(self, process: _Process, request: bytes) -> AsyncGenerator[Piece, None]:
        """Read one file with one process, which is idle or dead afterwards. Raises `ReadingFailed`, `_Died`."""
        reusable = False
        try:
            assert process.child.stdin is not None
            with suppress(ConnectionError):
                process.child.stdin.write(request)
                await process.child.stdin.drain()
            while True:
                # The timeout covers only the process's work: the consumer of the chunks may be slow.
                answer = await self._answer(process)
                if answer.code:
                    reusable = not answer.dying
                    raise ReadingFailed(FileError(_code(answer.code), answer.message))
                reusable = answer.end
                yield Piece(answer.title, [DocumentChunk(text, tokens) for text, tokens in answer.chunks])
                if answer.end:
                    return
        finally:
            if reusable and process.files < self._files_per_process and process.child.returncode is None:
                process.used_at = time.monotonic()
                self._idle.append(process)
            else:
                await process.end()

    async def _take(self, *, new: bool) -> _Process:
        """A live idle process, or a new one."""
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
        """End the processes that were idle for `seconds`: each takes some 160 MB."""
        now = time.monotonic()
        while self._idle and now - self._idle[0].used_at >= seconds:
            # The most recently used process is reused first, so the first one has been idle longest.
            await self._idle.pop(0).end()

    async def aclose(self) -> None:
        """End the idle processes."""
        while self._idle:
            await self._idle.pop().end()

    async def _start(self) -> _Process:
        # Pass only the variables that Python needs: settings in the environment may be secrets.
        environment = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        environment["OMP_NUM_THREADS"] = environment["OPENBLAS_NUM_THREADS"] = "1"
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "antiphon.search.reader_process", str(self._limits.file_memory_bytes)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            # Libraries quote documents in their warnings.
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
            # A process may also be killed from outside during a shutdown, but then no caller waits for the file.
            raise _Died(await process.child.wait()) from None
        except msgspec.DecodeError:
            raise _failed("The file could not be read.") from None


def _why_ended(status: int) -> str:
    if status == -signal.SIGXCPU:
        return "The file takes too long to be read."
    return "The file could not be read: reading it ended the reading process."


def _failed(message: str) -> ReadingFailed:
    return ReadingFailed(FileError("invalid_file", message))


def _code(text: str) -> FileErrorCode:
    return cast(FileErrorCode, text) if text in ("unsupported_file", "server_error") else "invalid_file"
