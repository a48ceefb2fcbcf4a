"""Implements the `Searcher` port: keyword, vector and hybrid search in vector stores.

Lives here: the choice of keyword search, vector search or both, merging their hits, and computing scores. Not here: SQL
and comparing vectors (`ChunkIndex`), computing vectors (`Embedder`).

Each search requests more hits than the caller's limit, at least a hundred. A hit at rank ten in both searches can be
first after merging. The keyword search and the vector search both apply the client's filters.

A hybrid score is reciprocal rank fusion (k = 60), divided by its maximum. So a hybrid score of 1 means the first rank
in both searches. The score of a vector search is the cosine similarity, or 0 if negative. The score of a keyword search
is `s / (s + 10)`, where `s` is the BM25 score. The keyword score grows with the number and rarity of the matching
words, and never reaches 1.

Invariants: if the embeddings server fails, the search uses keywords only and does not fail. Equal data gives equal
results, because hits with equal scores are sorted by chunk number.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace

import structlog

from antiphon.engine.ports.vector_stores import ChunkHit, ChunkIndex, Embedder, EmbeddingFailed, FoundChunk, KnownStore
from antiphon.errors import InvalidRequest, NotFound, StoreError
from antiphon.ids import is_id
from antiphon.observability import span_names as names
from antiphon.observability.metrics import Metrics
from antiphon.observability.tracing import span
from antiphon.types.search import DEFAULT_RANKING, Filter, Ranking

_log = structlog.get_logger(__name__)

_CANDIDATES = 100
_PER_RESULT = 4
_SHOWN_ID = 128


class VectorStoreSearcher:
    """Implements `Searcher` on a `ChunkIndex`. Without `embedder`, every search uses keywords only."""

    def __init__(
        self,
        index: ChunkIndex,
        *,
        embedder: Embedder | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._index = index
        self._embedder = embedder
        self._metrics = metrics or Metrics()

    async def search(
        self,
        owner: str,
        vector_store_ids: Sequence[str],
        queries: Sequence[str],
        *,
        limit: int = 10,
        filters: Filter | None = None,
        ranking: Ranking = DEFAULT_RANKING,
    ) -> list[FoundChunk]:
        """Return the best chunks over all queries and all stores, best first. A chunk's score is its best score over
        the queries. Raises `NotFound`, `InvalidRequest` and `StoreError`. See `Searcher.search`."""
        # A call without queries only checks that the stores exist, so it gets no retrieval span.
        with span(names.RETRIEVAL, "client") if queries else nullcontext() as traced:
            if traced is not None:
                traced.set({names.OPERATION: names.RETRIEVAL, names.DATA_SOURCE: ",".join(vector_store_ids)})
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
            if queries:
                by = "words" if None in vectors else "vectors"
                self._metrics.searches.add(time.perf_counter() - started, by)
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
        """Run the searches of one query. Returns scores by chunk number."""
        # Without a vector, rank by keywords even if their weight is 0.
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

        # With SQLite, the keyword search runs in a reader's thread and the vector search in a NumPy thread, so both run
        # in parallel.
        keywords, nearest = await asyncio.gather(keyword_side(), vector_side())
        if not nearest:
            return keyword_scores(keywords)
        return fuse(keywords, nearest, ranking) if by_words else vector_scores(nearest)


_K = 60
_HALF = 10.0


def merge(lists: Iterable[list[ChunkHit]], limit: int) -> list[ChunkHit]:
    """Merge the hits of several stores from the same kind of search. Returns the best `limit` hits, best first."""
    every = [hit for one in lists for hit in one]
    every.sort(key=lambda hit: (-hit.score, hit.chunk))
    return every[:limit]


def keyword_scores(hits: list[ChunkHit]) -> dict[int, float]:
    """Convert the BM25 scores of hits to the range from 0 to 1. Returns scores by chunk number."""
    return {hit.chunk: max(0.0, hit.score) / (max(0.0, hit.score) + _HALF) for hit in hits}


def vector_scores(hits: list[ChunkHit]) -> dict[int, float]:
    """Limit the cosine similarities of hits to the range from 0 to 1. Returns scores by chunk number."""
    return {hit.chunk: min(1.0, max(0.0, hit.score)) for hit in hits}


def fuse(keywords: list[ChunkHit], vectors: list[ChunkHit], ranking: Ranking) -> dict[int, float]:
    """Combine the hits of both searches by weighted reciprocal rank fusion. `keywords` and `vectors` must be sorted,
    best first. Returns scores from 0 to 1 by chunk number."""
    scores: dict[int, float] = {}
    for weight, hits in ((ranking.text_weight, keywords), (ranking.embedding_weight, vectors)):
        for place, hit in enumerate(hits, 1):
            scores[hit.chunk] = scores.get(hit.chunk, 0.0) + weight / (_K + place)
    best = (ranking.text_weight + ranking.embedding_weight) / (_K + 1)
    return {chunk: score / best for chunk, score in scores.items()}
