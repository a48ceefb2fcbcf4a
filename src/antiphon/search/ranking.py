"""From the hits of two sides to one list with scores from 0 to 1.

Lives here: fusion and what a published score means. Not here: where the hits come from.

A hybrid score is reciprocal rank fusion (k = 60) over what it would be at best: 1 is first on both sides. With vectors
alone the score is the cosine (below 0: 0). With keywords alone it is `s / (s + 10)` of the BM25 score `s`, which grows
with the number and rarity of the words that fit and never reaches 1.

Invariant: equal input gives an equal order; ties go by chunk number.
"""

from __future__ import annotations

from collections.abc import Iterable

from antiphon.engine.ports.indexing import ChunkHit
from antiphon.types.search import Ranking

_K = 60
_HALF = 10.0


def merge(lists: Iterable[list[ChunkHit]], limit: int) -> list[ChunkHit]:
    """The best of several lists of one side (from several stores), best first."""
    every = [hit for one in lists for hit in one]
    every.sort(key=lambda hit: (-hit.score, hit.chunk))
    return every[:limit]


def keyword_scores(hits: list[ChunkHit]) -> dict[int, float]:
    """Chunks and scores of a search by keywords."""
    return {hit.chunk: max(0.0, hit.score) / (max(0.0, hit.score) + _HALF) for hit in hits}


def vector_scores(hits: list[ChunkHit]) -> dict[int, float]:
    """Chunks and scores of a search by vectors."""
    return {hit.chunk: min(1.0, max(0.0, hit.score)) for hit in hits}


def fuse(keywords: list[ChunkHit], vectors: list[ChunkHit], ranking: Ranking) -> dict[int, float]:
    """Chunks and scores of a hybrid search; both lists are best first."""
    scores: dict[int, float] = {}
    for weight, hits in ((ranking.text_weight, keywords), (ranking.embedding_weight, vectors)):
        for place, hit in enumerate(hits, 1):
            scores[hit.chunk] = scores.get(hit.chunk, 0.0) + weight / (_K + place)
    best = (ranking.text_weight + ranking.embedding_weight) / (_K + 1)
    return {chunk: score / best for chunk, score in scores.items()}
