"""Fusion of two sides, and what a score means."""

from __future__ import annotations

import pytest

from antiphon.engine.ports.vector_stores import ChunkHit
from antiphon.search.searcher import fuse, keyword_scores, merge, vector_scores
from antiphon.types.search import Ranking


def hits(*chunks: int) -> list[ChunkHit]:
    return [ChunkHit(chunk, 100.0 - place) for place, chunk in enumerate(chunks)]


def test_first_on_both_sides_is_one() -> None:
    scores = fuse(hits(1, 2), hits(1, 3), Ranking())
    assert scores[1] == pytest.approx(1.0)
    assert scores[2] == scores[3] == pytest.approx(61 / 62 / 2)


def test_weights_say_which_side_counts() -> None:
    keywords, vectors = hits(1, 2, 3), hits(3, 2, 1)
    text = fuse(keywords, vectors, Ranking(0, 0.1, 0.9))
    meaning = fuse(keywords, vectors, Ranking(0, 0.9, 0.1))
    assert max(text, key=lambda chunk: text[chunk]) == 1
    assert max(meaning, key=lambda chunk: meaning[chunk]) == 3
    # Only their proportion matters.
    assert fuse(keywords, vectors, Ranking(0, 2.0, 2.0)) == pytest.approx(fuse(keywords, vectors, Ranking()))


def test_scores_are_between_zero_and_one() -> None:
    for scores in (
        fuse(hits(*range(200)), hits(*range(100, 300)), Ranking(0, 0.3, 1.7)),
        keyword_scores([ChunkHit(1, 1e9), ChunkHit(2, 0.0), ChunkHit(3, -1.0)]),
        vector_scores([ChunkHit(1, 1.001), ChunkHit(2, 0.5), ChunkHit(3, -0.2)]),
    ):
        assert all(0 <= score <= 1 for score in scores.values())


def test_keyword_scores_grow_with_bm25() -> None:
    scores = keyword_scores([ChunkHit(1, 20.0), ChunkHit(2, 10.0), ChunkHit(3, 1.0)])
    assert scores[1] > scores[2] == 0.5 > scores[3] > 0


def test_lists_of_stores_become_one() -> None:
    merged = merge([[ChunkHit(1, 5.0), ChunkHit(2, 1.0)], [ChunkHit(3, 3.0), ChunkHit(0, 1.0)]], 3)
    assert [hit.chunk for hit in merged] == [1, 3, 0]
