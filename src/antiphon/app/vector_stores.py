"""Builds vector stores and their search from the settings.

This module builds the database, the ingestion worker, the searcher and the endpoints, and closes these components in
order. Invariant: `VectorSearch.aclose` releases the leases of files in progress before it closes the database.
"""

from __future__ import annotations

from dataclasses import dataclass

from antiphon.api.endpoint import Endpoint
from antiphon.api.vector_stores import VectorStoreApi
from antiphon.config.problems import extra_missing
from antiphon.config.settings import Settings
from antiphon.engine.exchange.model_routes import ModelRoutes
from antiphon.engine.ports.state import Upstream
from antiphon.engine.ports.vector_stores import Embedder
from antiphon.engine.running.counted_calls import CountedUpstream
from antiphon.observability.metrics import Metrics
from antiphon.search.ingest import Ingester
from antiphon.search.readers import DocumentReaders
from antiphon.search.searcher import ModelRewriter, VectorStoreSearcher
from antiphon.stores import Stores, VectorDatabase
from antiphon.stores.files import FileStore
from antiphon.stores.owner_usage import StorageQuota
from antiphon.tools.box import ServerTool
from antiphon.tools.file_search import FileSearch
from antiphon.types.transport import Headers
from antiphon.upstream.client import HttpUpstream
from antiphon.upstream.http import UpstreamTarget


@dataclass(frozen=True)
class VectorSearch:
    """The components of one process that serve vector stores."""

    stores: VectorDatabase
    searcher: VectorStoreSearcher
    ingester: Ingester
    files: FileStore
    rewrite_model: str | None
    rewrite_seconds: float
    embeddings: Upstream | None = None
    """The client of the embeddings server. Both the embedder and clients' calls of `/v1/embeddings` use it."""

    def endpoints(
        self, upstream: Upstream, routes: ModelRoutes, room: StorageQuota | None = None
    ) -> tuple[Endpoint, ...]:
        """Return the endpoints of vector stores. `upstream` and `routes` are for calls of the model that rewrites
        queries. `room` checks the limits of stored data."""
        rewriter = None
        if self.rewrite_model is not None:
            rewriter = ModelRewriter(upstream, routes, self.rewrite_model, seconds=self.rewrite_seconds).rewrite
        return VectorStoreApi(self.stores.stores, self.searcher, self.files, rewriter=rewriter, room=room).endpoints()

    def tool(self) -> ServerTool:
        """Return the tool `file_search`."""
        return FileSearch(self.searcher)

    async def forget_file(self, owner: str, file_id: str) -> None:
        """Remove a deleted file from all vector stores."""
        await self.stores.stores.forget_file(owner, file_id)

    def start(self) -> None:
        """Start the ingestion worker."""
        self.stores.stores.on_work = self.ingester.wake
        self.ingester.start()

    async def aclose(self) -> None:
        """Release the leases of files in progress, then close the connections and the database."""
        await self.ingester.aclose()
        if self.embeddings is not None:
            await self.embeddings.aclose()
        await self.stores.aclose()


async def open_search(settings: Settings, opened: Stores, metrics: Metrics | None = None) -> VectorSearch:
    """Build the components that serve vector stores. Raises `ConfigError` or `StoreError`."""
    given = settings.vector_stores
    embedder, embeddings = make_embedder(settings, metrics) or (None, None)
    stores = await opened.open_vectors(matrix_bytes=given.matrix_bytes)
    if embedder is not None:
        try:
            await stores.check_vectors()
        except BaseException:
            await stores.aclose()
            raise
    readers = DocumentReaders(given)
    ingester = Ingester(stores.ingestion, opened.files, readers, given, embedder=embedder, metrics=metrics)
    return VectorSearch(
        stores,
        VectorStoreSearcher(stores.index, embedder=embedder, metrics=metrics),
        ingester,
        opened.files,
        given.rewrite_model,
        given.rewrite_seconds,
        embeddings,
    )


def make_embedder(settings: Settings, metrics: Metrics | None = None) -> tuple[Embedder, Upstream] | None:
    """Return the embedder, and the client of the embeddings server, which the caller must close. Returns None if
    `embeddings.url` is not set. Raises `ConfigError`."""
    given = settings.embeddings
    if given.url is None:
        return None
    try:
        from antiphon.upstream.embeddings import HttpEmbedder
    except ImportError:
        raise extra_missing("embeddings.url", "vector-stores") from None
    headers: Headers = ()
    if given.api_key is not None:
        headers = (("authorization", f"Bearer {given.api_key.get_secret_value()}"),)
    # This timeout is slightly shorter than the embedder's timeout. So the embedder reports a slow server as a timeout,
    # not as a cancelled call.
    patience = given.seconds * 0.95
    upstream = HttpUpstream(UpstreamTarget(given.url, headers=headers), head_seconds=patience, idle_seconds=patience)
    counted = upstream if metrics is None else CountedUpstream(upstream, metrics, "embeddings", "embeddings")
    return HttpEmbedder(counted, given), upstream
