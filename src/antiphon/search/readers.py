"""Reading documents in processes of their own.

Lives here: starting `reader_process`, watching it, and ending it. Not here: what happens in there.

A process reads one file after the other, since starting one costs a third of a second; after a number of files, or one
that went wrong, the next one gets a new process.

Invariant: when a reading ends, however it ends, its process is idle or dead.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import msgspec

from antiphon.engine.indexing import Chunk
from antiphon.engine.knowledge import Chunking, FileError, FileErrorCode
from antiphon.search.reader_process import LENGTH, ReadAnswer, ReadRequest

__all__ = ["DocumentReaders", "Piece", "ReadLimits", "ReadingFailed"]

_MOST_ANSWER = 64 << 20
_FILES_PER_PROCESS = 200


@dataclass(frozen=True, slots=True)
class ReadLimits:
    """For one file: seconds of processor time (and twice as many by the clock), bytes of memory, of text, tokens."""

    seconds: float = 60.0
    memory_bytes: int = 1 << 30
    text_bytes: int = 64 << 20
    tokens: int = 5_000_000


@dataclass(frozen=True, slots=True)
class Piece:
    """Some chunks of a document."""

    title: str
    chunks: list[Chunk]


class ReadingFailed(Exception):
    """The file could not be read; trying again would not help."""

    def __init__(self, error: FileError) -> None:
        super().__init__(error.message)
        self.error = error


@dataclass(eq=False)
class _Process:
    child: asyncio.subprocess.Process
    files: int = 0
    used_at: float = 0.0

    async def end(self) -> None:
        with suppress(ProcessLookupError):
            self.child.kill()
        await self.child.wait()
        # The pipe's transport is closed with the last of its ends; a cancelled reader may have left ours open.
        transport = getattr(self.child, "_transport", None)
        if transport is not None:
            transport.close()


class DocumentReaders:
    """Reads files; as many at once as there are readings."""

    def __init__(self, limits: ReadLimits = ReadLimits()) -> None:
        self._limits = limits
        self._idle: list[_Process] = []

    async def read(self, path: Path, name: str, chunking: Chunking) -> AsyncGenerator[Piece, None]:
        """The chunks of a file (an absolute path), some at a time. Raises `ReadingFailed`."""
        limits = self._limits
        request = ReadRequest(
            path=str(path),
            name=name,
            size=chunking.size,
            overlap=chunking.overlap,
            most_bytes=limits.text_bytes,
            most_tokens=limits.tokens,
            seconds=max(1, round(limits.seconds)),
        )
        process = self._idle.pop() if self._idle else await self._start()
        process.files += 1
        reusable = False
        try:
            assert process.child.stdin is not None
            with suppress(ConnectionError):
                process.child.stdin.write(msgspec.json.encode(request) + b"\n")
                await process.child.stdin.drain()
            while True:
                # The clock runs only while the process works: who takes the chunks may be slow.
                answer = await self._answer(process)
                if answer.code:
                    reusable = not answer.dying
                    raise ReadingFailed(FileError(_code(answer.code), answer.message))
                reusable = answer.end
                yield Piece(answer.title, [Chunk(text, tokens) for text, tokens in answer.chunks])
                if answer.end:
                    return
        finally:
            if reusable and process.files < _FILES_PER_PROCESS and process.child.returncode is None:
                process.used_at = time.monotonic()
                self._idle.append(process)
            else:
                await process.end()

    async def rest(self, seconds: float) -> None:
        """End the processes that had nothing to do for so long: each holds some 160 MB."""
        now = time.monotonic()
        while self._idle and now - self._idle[0].used_at >= seconds:
            # The one used last is taken first, so the first has waited longest.
            await self._idle.pop(0).end()

    async def aclose(self) -> None:
        """End the processes that are idle."""
        while self._idle:
            await self._idle.pop().end()

    async def _start(self) -> _Process:
        # Nothing of our environment but what Python needs: settings there may be secrets.
        environment = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        environment["OMP_NUM_THREADS"] = environment["OPENBLAS_NUM_THREADS"] = "1"
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "antiphon.search.reader_process", str(self._limits.memory_bytes)),
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
            async with asyncio.timeout(2 * self._limits.seconds):
                head = await process.child.stdout.readexactly(LENGTH.size)
                (length,) = LENGTH.unpack(head)
                if length > _MOST_ANSWER:
                    raise _failed("The file could not be read.")
                return msgspec.msgpack.decode(await process.child.stdout.readexactly(length), type=ReadAnswer)
        except TimeoutError:
            raise _failed("The file takes too long to be read.") from None
        except asyncio.IncompleteReadError:
            status = await process.child.wait()
            # Ended from outside while we are shutting down is no judgement on the file, but then nobody asks.
            raise _failed(_why_ended(status)) from None
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
