"""Runs the background worker that splits uploaded files into searchable chunks.

Lives here: claiming files, renewing claims, embedding and writing chunks, retries, and triggering the sweep of deleted
chunks. Not here: reading a document (`readers.py`), SQL (`stores/sqlite/vectors/ingestion.py`).

One task looks for files to ingest after each call of `wake` and after each finished file. The task also looks every
`idle` seconds, because other processes add files too. Each file has a separate task. At most `ingest` tasks (a setting)
run concurrently.

Invariants: at most one worker holds the claim of a file. If a worker has lost its claim, the worker's writes change
nothing. After each attempt, the worker marks the file as completed or failed, or schedules another attempt. If a
process crashes, another worker ingests the files of that process again after the claims expire.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from antiphon.config.state import VectorStoreSettings
from antiphon.engine.ports.files import OpenFile
from antiphon.engine.ports.vector_stores import (
    DocumentChunk,
    Embedder,
    EmbeddingFailed,
    FileError,
    Ingestion,
    IngestJob,
)
from antiphon.engine.waiting import DOCUMENTS
from antiphon.errors import StoreError
from antiphon.observability.metrics import Metrics
from antiphon.observability.repeated_failures import Outage
from antiphon.search.readers import DocumentReaders, ReadingFailed
from antiphon.stores.files import FileStore

_log = structlog.get_logger(__name__)

_CLOSE_SECONDS = 5.0
_COPIED = 4 << 20


@dataclass(frozen=True, slots=True)
class IngestPace:
    """The intervals of the worker, and the retry limit. `idle`: seconds between checks for files. `rest`: the idle time
    in seconds after which the worker ends a reader process.

    `attempts`: the maximum number of attempts per file when a process or the embeddings server fails. `pause`: seconds
    before the second attempt. The pause doubles for each further attempt.
    """

    idle: float = 5.0
    attempts: int = 10
    pause: float = 2.0
    rest: float = 60.0


class _ClaimLost(Exception):
    """A write had no effect, because another worker holds the claim or the file was deleted."""


class Ingester:
    """The ingestion worker of one process."""

    def __init__(
        self,
        ingestion: Ingestion,
        files: FileStore,
        readers: DocumentReaders,
        settings: VectorStoreSettings,
        *,
        embedder: Embedder | None = None,
        metrics: Metrics | None = None,
        pace: IngestPace = IngestPace(),
    ) -> None:
        """The worker uses `ingest` and `lease` of the `settings`. `ingest` is the maximum number of concurrent files.
        `lease` is the number of seconds for which a claim is valid without renewal. Without `embedder`, chunks get no
        vectors."""
        self._ingestion = ingestion
        self._files = files
        self._readers = readers
        self._embedder = embedder
        self._metrics = metrics or Metrics()
        self._settings = settings
        self._pace = pace
        self._running: dict[str, asyncio.Task[None]] = {}
        self._outage = Outage(_log, "ingestion_not_read", "ingestion_read_again")
        self._woken = asyncio.Event()
        self._closing = False
        self._renew_at = 0.0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the task that looks for files. Call this method in a running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._look_after())

    def wake(self) -> None:
        """Make the worker look for files immediately, for example after a client added files."""
        self._woken.set()

    async def aclose(self) -> None:
        """Stop the worker, cancel the files in progress, and release their claims. End the worker's idle reader
        processes."""
        self._closing = True
        self._woken.set()
        if self._task is not None:
            await self._task
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._readers.aclose()

    async def _look_after(self) -> None:
        while not self._closing:
            self._woken.clear()
            more = False
            try:
                more = await self._look()
                self._outage.recovered()
            except StoreError as error:
                self._outage.failed(error=str(error))
            except Exception:
                _log.error("ingestion_failed", exc_info=True)
            if more:
                await asyncio.sleep(0)
                continue
            await self._readers.rest(self._pace.rest)
            with suppress(TimeoutError):
                async with asyncio.timeout(min(self._pace.idle, self._settings.lease / 3)):
                    await self._woken.wait()

    async def _look(self) -> bool:
        """Renew claims, claim files, and sweep one batch of deleted chunks. Returns True if more deleted chunks may be
        left to sweep."""
        now, lease = asyncio.get_running_loop().time(), self._settings.lease
        if self._running and now >= self._renew_at:
            held = await self._ingestion.renew(list(self._running), lease)
            for claim, task in list(self._running.items()):
                if claim not in held:
                    task.cancel()
            self._renew_at = now + lease / 3
        free = self._settings.ingest - len(self._running)
        if free > 0:
            claims = [secrets.token_hex(16) for _ in range(free)]
            for job in await self._ingestion.claim(claims, lease):
                self._running[job.claim] = asyncio.get_running_loop().create_task(self._run(job))
        return await self._ingestion.sweep()

    async def _run(self, job: IngestJob) -> None:
        try:
            await self._serve(job)
        except asyncio.CancelledError:
            if self._closing:
                with suppress(StoreError, TimeoutError):
                    async with asyncio.timeout(_CLOSE_SECONDS):
                        await self._ingestion.release(job, attempted=False)
        except _ClaimLost:
            _log.info("ingestion_lost", file_id=job.file_id, vector_store_id=job.store_id)
        except StoreError as error:
            # The claim expires, and a worker then starts another attempt.
            _log.error("ingestion_not_written", file_id=job.file_id, error=str(error))
        except Exception as bug:
            _log.error("ingestion_failed", file_id=job.file_id, error=type(bug).__name__, exc_info=True)
            with suppress(StoreError):
                await self._fail(job, FileError("server_error", "An internal error occurred."))
        finally:
            del self._running[job.claim]
            self._woken.set()

    async def _serve(self, job: IngestJob) -> None:
        if job.attempts > self._pace.attempts:
            await self._fail(job, FileError("server_error", "The file could not be processed in several attempts."))
            return
        try:
            file = await self._files.open(job.owner, job.file_id)
        except StoreError as error:
            if error.reason != "elsewhere":
                raise
            failure = FileError("server_error", f"The file could not be read: {error.words}.")
            if pause := await self._try_again(job, failure):
                _log.warning("content_elsewhere", file_id=job.file_id, retry_seconds=pause)
            return
        if file is None:
            await self._fail(job, FileError("invalid_file", "The file does not exist any more."))
            return
        started = time.perf_counter()
        places, used = 0, 0
        try:
            async with aclosing(file), _on_disk(file) as path:
                pieces = self._readers.read(path, job.filename, job.chunking)
                async with aclosing(pieces):
                    async for piece in pieces:
                        if not piece.chunks:
                            continue
                        chunks = await self._embedded(piece.chunks)
                        title = f"{Path(job.filename).stem} {piece.title}".strip()
                        if not await self._ingestion.append(job, places, title, chunks):
                            raise _ClaimLost
                        places += len(chunks)
                        used += sum(len(one.text.encode()) + len(one.vector or b"") for one in chunks)
        except ReadingFailed as failed:
            await self._fail(job, failed.error)
            return
        except EmbeddingFailed as failed:
            failure = FileError("server_error", f"The text could not be embedded: {failed}")
            if not failed.retry:
                await self._fail(job, failure)
            elif pause := await self._try_again(job, failure):
                _log.warning(
                    "embedding_failed",
                    file_id=job.file_id,
                    upstream="embeddings",
                    cause=str(failed),
                    retry_seconds=pause,
                )
            return
        model = self._embedder.model if self._embedder is not None else None
        if not await self._ingestion.complete(job, chunks=places, usage_bytes=used, model=model):
            raise _ClaimLost
        self._metrics.files.add("completed")
        _log.info(
            "file_ingested",
            file_id=job.file_id,
            vector_store_id=job.store_id,
            chunks=places,
            seconds=round(time.perf_counter() - started, 6),
        )

    async def _embedded(self, chunks: list[DocumentChunk]) -> list[DocumentChunk]:
        if self._embedder is None:
            return chunks
        vectors = await self._embedder.embed([chunk.text for chunk in chunks])
        return [replace(chunk, vector=vector) for chunk, vector in zip(chunks, vectors, strict=True)]

    async def _try_again(self, job: IngestJob, failure: FileError) -> float | None:
        """Release the file for another attempt, and return the pause in seconds. After the last attempt, mark the file
        as failed and return None."""
        if job.attempts >= self._pace.attempts:
            await self._fail(job, failure)
            return None
        pause: float = self._pace.pause * 2 ** (job.attempts - 1)
        await self._ingestion.release(job, pause=pause)
        self._metrics.files.add("retried")
        return pause

    async def _fail(self, job: IngestJob, error: FileError) -> None:
        if not await self._ingestion.fail(job, error):
            raise _ClaimLost
        self._metrics.files.add("failed")
        _log.info("file_not_ingested", file_id=job.file_id, vector_store_id=job.store_id, code=error.code)


@asynccontextmanager
async def _on_disk(file: OpenFile) -> AsyncIterator[Path]:
    """Provide a path on the local disk that the reader process can open. Copies the file to a temporary folder if its
    blob is not on the local disk."""
    if file.path is not None:
        yield await DOCUMENTS.run(file.path.absolute)
        return
    folder = await DOCUMENTS.run(tempfile.mkdtemp, prefix="antiphon-")
    try:
        path = Path(folder, "file")
        for start in range(0, file.file.size, _COPIED):
            await DOCUMENTS.run(_append, path, await file.read(start, _COPIED))
        yield path
    finally:
        await DOCUMENTS.run(shutil.rmtree, folder, True)


def _append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)
