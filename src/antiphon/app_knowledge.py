"""The part of the composition root that is about vector stores.

Lives here: building the database, the worker that ingests, the searcher and the endpoints from the settings, and
closing them in order. Nothing here decides anything about a request.

Invariant: `Knowledge.aclose` gives the files that are worked on back before the database is closed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from antiphon.api.route import Route
from antiphon.api.vector_stores import VectorStoreApi
from antiphon.config import Settings
from antiphon.engine.file_ports import FileStore
from antiphon.engine.indexing import Embedder
from antiphon.engine.ports import Upstream
from antiphon.engine.routes import Routes
from antiphon.errors import ConfigError
from antiphon.observability.metrics import Metrics
from antiphon.search.ingest import Ingester, IngestOptions
from antiphon.search.readers import DocumentReaders, ReadLimits
from antiphon.search.rewrite import ModelRewriter
from antiphon.search.searcher import KnowledgeSearcher
from antiphon.stores.knowledge import KnowledgeStores, open_knowledge
from antiphon.types.transport import Headers
from antiphon.upstream.client import HttpUpstream
from antiphon.upstream.http import UpstreamTarget

if TYPE_CHECKING:
    from antiphon.search.dense import DenseSearch

__all__ = ["Knowledge", "make_embedder", "open_search"]


@dataclass(frozen=True)
class Knowledge:
    """What one process has of vector stores."""

    stores: KnowledgeStores
    searcher: KnowledgeSearcher
    ingester: Ingester
    embedder: Embedder | None
    files: FileStore
    rewrite_model: str | None
    rewrite_seconds: float

    def routes(self, upstream: Upstream, routes: Routes) -> tuple[Route, ...]:
        """The endpoints. `upstream` and `routes` are for the model that rewrites queries."""
        rewriter = None
        if self.rewrite_model is not None:
            rewriter = ModelRewriter(upstream, routes, self.rewrite_model, seconds=self.rewrite_seconds)
        return VectorStoreApi(self.stores.stores, self.searcher, self.files, rewriter=rewriter).routes()

    async def forget_file(self, owner: str, file_id: str) -> None:
        """A file is deleted: no vector store has it any more."""
        await self.stores.stores.forget_file(owner, file_id)

    def start(self) -> None:
        """Begin to ingest."""
        self.stores.stores.on_work = self.ingester.wake
        self.ingester.start()

    async def aclose(self) -> None:
        """Give back what is worked on, then close the connections and the database."""
        await self.ingester.aclose()
        if self.embedder is not None:
            await self.embedder.aclose()
        await self.stores.aclose()


async def open_search(settings: Settings, files: FileStore, metrics: Metrics | None = None) -> Knowledge:
    """Build everything about vector stores. Raises `ConfigError` or `StoreError`."""
    given = settings.vector_stores
    embedder = make_embedder(settings)
    stores = await open_knowledge(settings.data)
    dense: DenseSearch | None = None
    if embedder is not None:
        from antiphon.search.dense import DenseSearch

        dense = DenseSearch(stores.index, given.matrix_bytes)
    readers = DocumentReaders(
        ReadLimits(
            seconds=given.file_seconds,
            memory_bytes=given.file_memory_bytes,
            text_bytes=given.text_bytes,
            tokens=given.tokens,
        )
    )
    ingester = Ingester(
        stores.ingestion,
        files,
        readers,
        embedder=embedder,
        metrics=metrics,
        options=IngestOptions(files=given.ingest, lease=given.lease),
    )
    return Knowledge(
        stores,
        KnowledgeSearcher(stores.index, embedder=embedder, dense=dense, metrics=metrics),
        ingester,
        embedder,
        files,
        given.rewrite_model,
        given.rewrite_seconds,
    )


def make_embedder(settings: Settings) -> Embedder | None:
    """The embeddings server's, when there is one. Raises `ConfigError`."""
    given = settings.embeddings
    if given.url is None:
        return None
    try:
        from antiphon.upstream.embeddings import HttpEmbedder
    except ImportError:
        raise ConfigError("embeddings.url: vectors need NumPy; install the extra 'knowledge'") from None
    headers: Headers = ()
    if given.api_key is not None:
        headers = (("authorization", f"Bearer {given.api_key.get_secret_value()}"),)
    upstream = HttpUpstream(
        UpstreamTarget(given.url, headers=headers), head_seconds=given.seconds, idle_seconds=given.seconds
    )
    return HttpEmbedder(
        upstream,
        given.model,
        dimensions=given.dimensions,
        batch=given.batch,
        concurrent=given.concurrent,
        seconds=given.seconds,
    )
