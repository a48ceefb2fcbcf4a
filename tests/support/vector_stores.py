"""Vector stores for tests without a server: endpoints, worker, real database, files in memory.

Lives here: assembling the parts, and embedders that need no model. Not here: the tests.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

from antiphon.api.files import Files
from antiphon.api.models import ModelCatalog
from antiphon.api.router import ReadyProbe, Router
from antiphon.api.vector_stores import QueryRewriter, VectorStoreApi
from antiphon.config.state import VectorStoreSettings
from antiphon.engine.ports.files import FileFields
from antiphon.engine.ports.vector_stores import Chunking, DocumentChunk, Embedder, EmbeddingFailed, FileError
from antiphon.ids import new_id, now
from antiphon.observability.metrics import Metrics
from antiphon.search.chunking import cut
from antiphon.search.extract import Unreadable, extract
from antiphon.search.ingest import Ingester, IngestPace
from antiphon.search.readers import ChunkBatch, DocumentReaders, ReadingFailed
from antiphon.search.searcher import VectorStoreSearcher
from antiphon.stores.sqlite.backend import SqliteVectorDatabase, open_vector_database
from antiphon.upstream.client import HttpUpstream, UpstreamTarget
from tests.support.asked_router import AskedRouter
from tests.support.memory_files import MemoryFileStore
from tests.support.memory_store import MemoryResponseStore

ALICE, BOB = "b:alice", "b:bob"

_PACE = IngestPace(idle=0.05, pause=0.05)

_SAME = {"aeroplane": "plane", "aircraft": "plane", "planes": "plane", "feline": "cat", "cats": "cat"}


class WordEmbedder:
    """An embedder whose vectors depend only on words. A text's vector is the sum of its words' vectors, and synonyms
    share a vector."""

    def __init__(self, model: str = "words") -> None:
        self.model = model
        self.fails: EmbeddingFailed | None = None
        self.texts: list[str] = []
        self.gate: asyncio.Event | None = None

    async def embed(self, texts: Sequence[str]) -> list[bytes]:
        if self.gate is not None:
            await self.gate.wait()
        if self.fails is not None:
            raise self.fails
        self.texts += texts
        return [_vector(text) for text in texts]

    async def aclose(self) -> None:
        pass


def _vector(text: str) -> bytes:
    total = np.zeros(256, np.float32)
    for word in re.findall(r"\w+", text.lower()):
        seed = int.from_bytes(hashlib.sha256(_SAME.get(word, word).encode()).digest()[:4], "big")
        total += np.random.default_rng(seed).standard_normal(256, np.float32)
    length = float(np.linalg.norm(total))
    return (total / length if length else total).astype("<f2").tobytes()


class DirectReaders(DocumentReaders):
    """Reads documents in this process, because a separate reading process takes time to start."""

    async def read(self, path: Path, name: str, chunking: Chunking) -> AsyncGenerator[ChunkBatch, None]:
        try:
            document = extract(path, name, 1 << 20)
        except Unreadable as error:
            raise ReadingFailed(FileError(error.code, error.message)) from None
        await asyncio.sleep(0)
        chunks = cut(document.text, chunking.size, chunking.overlap)
        yield ChunkBatch(document.title, [DocumentChunk(text, tokens) for text, tokens in chunks])

    async def rest(self, seconds: float) -> None:
        pass

    async def aclose(self) -> None:
        pass


class VectorStoreSetup(AskedRouter):
    """The parts that a test uses."""

    prefix = "/v1/vector_stores"

    def __init__(
        self,
        database: SqliteVectorDatabase,
        files: MemoryFileStore,
        ingester: Ingester,
        searcher: VectorStoreSearcher,
        rewriter: QueryRewriter | None,
    ) -> None:
        self.database = database
        self.files = files
        self.ingester = ingester
        self.searcher = searcher
        self.upstream = HttpUpstream(UpstreamTarget("http://127.0.0.1:9"))
        responses = MemoryResponseStore()
        self.router = Router(
            store=responses,
            models=ModelCatalog(self.upstream),
            ready=ReadyProbe(responses.ping),
            metrics=Metrics(),
            areas=(
                *Files(files, on_delete=[database.stores.forget_file]).endpoints(),
                *VectorStoreApi(database.stores, searcher, files, rewriter=rewriter).endpoints(),
            ),
        )

    async def file(self, name: str, content: bytes | str, owner: str = ALICE) -> str:
        """Upload a file. Returns its id."""
        file_id = new_id("file").replace("_", "-")
        async with self.files.uploading() as upload:
            await upload.write(content.encode() if isinstance(content, str) else content)
            await upload.keep(owner, FileFields(file_id, name, "assistants", "text/plain", now()))
        return file_id

    async def store(self, **texts: str) -> str:
        """Create a store with these files (`name=text`), and wait until they are indexed. Returns its id."""
        ids = [await self.file(f"{name}.txt", text) for name, text in texts.items()]
        made = await self.ask("POST", "", {"name": "test", "file_ids": ids})
        await self.ingested(made["id"])
        found: str = made["id"]
        return found

    async def ingested(self, store_id: str, seconds: float = 30.0) -> dict[str, Any]:
        """Wait until no file is in progress. Returns the store."""
        async with asyncio.timeout(seconds):
            while True:
                store: dict[str, Any] = await self.ask("GET", f"/{store_id}")
                if not store["file_counts"]["in_progress"]:
                    return store
                await asyncio.sleep(0.005)

    async def names(self, store_id: str, query: str, **options: Any) -> list[str]:
        """The file names of a search's results, without their extensions."""
        found = await self.ask("POST", f"/{store_id}/search", {"query": query, **options})
        return [hit["filename"].removesuffix(".txt") for hit in found["data"]]


@asynccontextmanager
async def open_vector_store_setup(
    folder: Path,
    *,
    embedder: Embedder | None = None,
    rewriter: QueryRewriter | None = None,
    limits: VectorStoreSettings | None = None,
    pace: IngestPace = _PACE,
    lease: float = 60.0,
    matrix_bytes: int = 1 << 20,
    clock: Callable[[], float] = now,
    start: bool = True,
    files: MemoryFileStore | None = None,
    indexing: Callable[[Any], Any] = lambda store: store,
) -> AsyncIterator[VectorStoreSetup]:
    """Open all parts. With `limits`, a separate process reads documents. `indexing` may wrap the store that the
    ingester uses."""
    database = await open_vector_database(folder, clock=clock, matrix_bytes=matrix_bytes)
    files = files or MemoryFileStore(clock=now)
    ingester = Ingester(
        indexing(database.ingestion),
        files,
        DirectReaders(VectorStoreSettings()) if limits is None else DocumentReaders(limits),
        # `model_construct` skips validation, because tests use short leases.
        VectorStoreSettings.model_construct(lease=lease),
        embedder=embedder,
        pace=pace,
    )
    database.stores.on_work = ingester.wake
    searcher = VectorStoreSearcher(database.index, embedder=embedder)
    setup = VectorStoreSetup(database, files, ingester, searcher, rewriter)
    if start:
        ingester.start()
    try:
        yield setup
    finally:
        await ingester.aclose()
        await setup.upstream.aclose()
        await database.aclose()
