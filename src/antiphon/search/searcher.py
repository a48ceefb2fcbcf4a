"""Searching vector stores: the `Searcher` port.

Lives here: which sides are asked, and how their hits become results. Not here: SQL, vectors, scores.

Both sides are asked for more than the limit (at least a hundred), since what is tenth on each can be first on the two
together; filters are part of what is asked.

Invariant: an embeddings server that fails makes a search worse, never impossible; with equal data, equal results.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace

import structlog

from antiphon.engine.ports.indexing import ChunkHit, ChunkIndex, Embedder, EmbeddingFailed, KnownStore
from antiphon.engine.ports.vector_stores import SearchHit
from antiphon.errors import InvalidRequest, NotFound, StoreError
from antiphon.ids import is_id
from antiphon.observability import span_names as names
from antiphon.observability.metrics import Metrics
from antiphon.observability.tracing import span
from antiphon.search.ranking import fuse, keyword_scores, merge, vector_scores
from antiphon.types.search import DEFAULT_RANKING, Filter, Ranking

_log = structlog.get_logger(__name__)

_CANDIDATES = 100
_PER_RESULT = 4
_SHOWN_ID = 128


class VectorStoreSearcher:
    """`Searcher` over an index; by vectors too where there is an `embedder`."""

    def __init__(
        self,
        index: ChunkIndex,
        *,
        embedder: Embedder | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._index = index
        self._embedder = embedder
        self._metrics = metrics

    async def search(
        self,
        owner: str,
        vector_store_ids: Sequence[str],
        queries: Sequence[str],
        *,
        limit: int = 10,
        filters: Filter | None = None,
        ranking: Ranking = DEFAULT_RANKING,
    ) -> list[SearchHit]:
        """The best hits of all queries over all stores together; see `Searcher.search`."""
        if not queries:
            # Whether the stores are there is no retrieval.
            return await self._search(owner, vector_store_ids, queries, limit, filters, ranking)
        with span(names.RETRIEVAL, "client") as traced:
            if traced is not None:
                traced.set({names.OPERATION: names.RETRIEVAL, names.DATA_SOURCE: ",".join(vector_store_ids)})
            return await self._search(owner, vector_store_ids, queries, limit, filters, ranking)

    async def _search(
        self,
        owner: str,
        vector_store_ids: Sequence[str],
        queries: Sequence[str],
        limit: int,
        filters: Filter | None,
        ranking: Ranking,
    ) -> list[SearchHit]:
        stores = await self._stores(owner, list(dict.fromkeys(vector_store_ids)))
        queries = [query for query in dict.fromkeys(queries) if query.strip()]
        candidates = max(_CANDIDATES, _PER_RESULT * limit)
        started = time.perf_counter()
        vectors = await self._embed(queries, ranking)
        found = await asyncio.gather(
            *(
                self._one(stores, query, vector, filters, ranking, candidates)
                for query, vector in zip(queries, vectors, strict=True)
            )
        )
        scores: dict[int, float] = {}
        for one in found:
            for chunk, score in one.items():
                scores[chunk] = max(score, scores.get(chunk, 0.0))
        best = sorted((-score, chunk) for chunk, score in scores.items() if score >= ranking.threshold)[:limit]
        texts = await self._index.hits(stores, [chunk for _, chunk in best])
        if queries and self._metrics is not None:
            by = "words" if None in vectors else "vectors"
            self._metrics.searched(by, time.perf_counter() - started)
        try:
            await self._index.touch(owner, [store.id for store in stores])
        except StoreError as error:
            _log.warning("use_not_noted", error=str(error))
        return [replace(texts[chunk], score=-minus) for minus, chunk in best if chunk in texts]

    async def _stores(self, owner: str, ids: Sequence[str]) -> list[KnownStore]:
        possible = [one for one in ids if is_id(one, "vs")]
        known = {store.id: store for store in await self._index.known(owner, possible)}
        for one in ids:
            if one not in known:
                raise NotFound(f"Vector store with id '{one[:_SHOWN_ID]}' not found.")
            if known[one].expired:
                raise InvalidRequest(
                    f"The vector store '{one}' has expired.", param="vector_store_id", code="vector_store_expired"
                )
        return [known[one] for one in ids]

    async def _embed(self, queries: Sequence[str], ranking: Ranking) -> list[bytes | None]:
        if self._embedder is None or not ranking.embedding_weight or not queries:
            return [None] * len(queries)
        try:
            return list(await self._embedder.embed(queries))
        except EmbeddingFailed as error:
            _log.warning("searching_without_vectors", upstream="embeddings", cause=str(error))
            return [None] * len(queries)

    async def _one(
        self,
        stores: list[KnownStore],
        query: str,
        vector: bytes | None,
        filters: Filter | None,
        ranking: Ranking,
        limit: int,
    ) -> dict[int, float]:
        """The scores of one query's chunks."""
        # Without a vector words are all there is to go by, whatever they were to count.
        by_words = ranking.text_weight > 0 or vector is None

        async def keyword_side() -> list[ChunkHit]:
            found = [await self._index.match(store, query, filters, limit) for store in stores] if by_words else []
            return merge(found, limit)

        async def vector_side() -> list[ChunkHit]:
            if vector is None or self._embedder is None:
                return []
            model = self._embedder.model
            found = [await self._index.nearest(store, model, vector, filters, limit) for store in stores]
            return merge(found, limit)

        # In threads of their own, the one in SQLite and the other in NumPy.
        keywords, nearest = await asyncio.gather(keyword_side(), vector_side())
        if not nearest:
            return keyword_scores(keywords)
        return fuse(keywords, nearest, ranking) if by_words else vector_scores(nearest)
