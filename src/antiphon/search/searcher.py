"""Searches vector stores by keywords, vectors or both (the `Searcher` port), and rewrites search texts into better
queries.

Lives here: the choice of keyword search, vector search or both, merging their hits, and computing scores. This module
also has the prompt that makes a model rewrite a search text, and extracts the query from the model's response. Not
here: the SQL statements and the comparison of vectors (`ChunkIndex`), and computing vectors (`Embedder`).

A chunk at rank ten in both searches can be the first chunk of the merged result. So each search requests at least a
hundred hits, and more than the caller's limit. The keyword search and the vector search both apply the client's
filters.

A hybrid score is reciprocal rank fusion (k = 60), divided by its maximum. So a hybrid score of 1 means the first rank
in both searches. The score of a vector search is the cosine similarity, or 0 if negative. The score of a keyword search
is `s / (s + 10)`, where `s` is the BM25 score. The keyword score grows with the number and rarity of the matching
words, and never reaches 1.

Invariants: if the embeddings server fails, the search uses keywords only and does not fail. Equal data gives equal
results, because hits with equal scores are sorted by chunk number. `rewrite` always returns a query. If the model or
its server fails, `rewrite` returns the original text.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace

import msgspec
import structlog

from antiphon.engine.exchange.model_routes import ModelRoutes
from antiphon.engine.ports.actions import UpstreamRequest
from antiphon.engine.ports.state import Upstream, UpstreamCallFailed
from antiphon.engine.ports.vector_stores import ChunkHit, ChunkIndex, Embedder, EmbeddingFailed, FoundChunk, KnownStore
from antiphon.errors import InvalidRequest, NotFound, StoreError
from antiphon.ids import is_id
from antiphon.observability import span_names as names
from antiphon.observability.metrics import Metrics
from antiphon.observability.tracing import span
from antiphon.types.json import encode
from antiphon.types.search import DEFAULT_RANKING, Filter, Ranking
from antiphon.types.transport import Headers

_log = structlog.get_logger(__name__)

_CANDIDATES = 100
_PER_RESULT = 4
_SHOWN_ID = 128
_ASKED = (
    "Rewrite the user's message as one query for a search over documents: the words and names that a passage with the "
    "answer would hold, in the language of the message. Leave out polite words and instructions. Answer with the query "
    "alone."
)
_THOUGHTS = re.compile(r"<think>.*?</think>", re.DOTALL)
_MAX_QUERY = 1_024
_OF_THE_ACCOUNT = frozenset({"authorization", "openai-organization", "openai-project"})


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
        # A call without queries only checks that the stores exist, so its trace contains no retrieval span.
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


class _Message(msgspec.Struct):
    content: str | None = None


class _CompletionChoice(msgspec.Struct):
    message: _Message


class _Completion(msgspec.Struct):
    choices: list[_CompletionChoice]


class ModelRewriter:
    """Calls `model` through the route that Antiphon's settings give this model, with a timeout of `seconds`."""

    def __init__(self, upstream: Upstream, routes: ModelRoutes, model: str, *, seconds: float) -> None:
        self._upstream = upstream
        self._model = model
        self._route = routes.choose(model)
        self._seconds = seconds

    async def rewrite(self, query: str, headers: Headers) -> str:
        """Return the rewritten query, or `query` itself on a failure. `headers`: the client's request headers. If the
        route passes credentials through, the model server receives the client's credentials."""
        passed = _OF_THE_ACCOUNT if self._route.passthrough else frozenset()
        model = self._route.model or self._model
        body = {
            "model": model,
            "messages": [{"role": "system", "content": _ASKED}, {"role": "user", "content": query}],
            "stream": False,
        }
        request = UpstreamRequest(
            method="POST",
            path="/chat/completions",
            headers=(
                ("content-type", "application/json"),
                ("accept", "application/json"),
                *((name, value) for name, value in headers if name in passed),
            ),
            body=encode(body),
            model=model,
            stream=False,
            upstream=self._route.upstream,
            tries=len(self._route.upstreams),
        )
        try:
            async with asyncio.timeout(self._seconds), self._upstream.call(request) as answer:
                data = b"".join([part async for part in answer.body()])
                if answer.status == 200:
                    return _query(msgspec.json.decode(data, type=_Completion)) or query
                problem = f"status {answer.status}"
        except TimeoutError:
            problem = "timed out"
        except UpstreamCallFailed as error:
            problem = error.error.fault.value
        except (msgspec.DecodeError, UnicodeDecodeError):
            problem = "unreadable answer"
        _log.warning("query_not_rewritten", problem=problem)
        return query


def _query(answer: _Completion) -> str:
    text = answer.choices[0].message.content if answer.choices else None
    lines = _THOUGHTS.sub("", text or "").strip().splitlines()
    return lines[0].strip().strip("\"'`").strip()[:_MAX_QUERY] if lines else ""
