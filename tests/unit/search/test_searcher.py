"""A search over stores: which sides are asked and how deep, what is left out, and what may fail beside it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from structlog.testing import capture_logs

from antiphon.engine.ports.vector_stores import ChunkHit, EmbeddingFailed, FoundChunk, KnownStore
from antiphon.errors import InvalidRequest, NotFound, StoreError
from antiphon.observability.metrics import Metrics
from antiphon.search.searcher import VectorStoreSearcher
from antiphon.types.search import DEFAULT_RANKING, Filter, Ranking
from tests.support.metrics import value_of

A, B, OLD = "vs_" + "a" * 32, "vs_" + "b" * 32, "vs_" + "c" * 32


class _Index:
    """An index that writes down what it is asked. Words find the chunks 0, 1, 2 … and vectors find the same ones."""

    def __init__(self, chunks: int = 30) -> None:
        self.asked: list[tuple[object, ...]] = []
        self.touched: list[tuple[str, Sequence[str]]] = []
        self.fails_to_touch = False
        self.deleted: set[int] = set()
        self._chunks = chunks

    async def known(self, owner: str, store_ids: Sequence[str]) -> list[KnownStore]:
        return [KnownStore(one, number, 1, one == OLD) for number, one in enumerate((A, B, OLD)) if one in store_ids]

    async def match(self, store: KnownStore, query: str, filters: Filter | None, limit: int) -> list[ChunkHit]:
        self.asked.append(("words", store.id, query, filters, limit))
        return [ChunkHit(chunk, 10.0 - chunk / 10) for chunk in range(self._chunks)]

    async def nearest(
        self, store: KnownStore, model: str, vector: bytes, filters: Filter | None, limit: int
    ) -> list[ChunkHit]:
        self.asked.append(("vectors", store.id, model, vector, filters, limit))
        return [ChunkHit(chunk, 1.0 - chunk / 10) for chunk in range(self._chunks)]

    async def hits(self, stores: Sequence[KnownStore], chunks: Sequence[int]) -> dict[int, FoundChunk]:
        return {one: FoundChunk("file", "f", 0.0, {}, str(one)) for one in chunks if one not in self.deleted}

    async def touch(self, owner: str, store_ids: Sequence[str]) -> None:
        if self.fails_to_touch:
            raise StoreError("the disk is full")
        self.touched.append((owner, list(store_ids)))


class _Embedder:
    model = "words"

    def __init__(self, *, fails: bool = False) -> None:
        self.fails = fails

    async def embed(self, texts: Sequence[str]) -> list[bytes]:
        if self.fails:
            raise EmbeddingFailed("nobody there")
        return [text.encode() for text in texts]

    async def aclose(self) -> None:
        pass


def _texts(found: list[FoundChunk]) -> list[str]:
    return [one.text for one in found]


async def test_a_search_returns_ten_hits_unless_told_otherwise() -> None:
    search = VectorStoreSearcher(_Index()).search
    assert _texts(await search("me", [A], ["q"])) == [str(number) for number in range(10)]
    assert _texts(await search("me", [A], ["q"], limit=2)) == ["0", "1"]


@pytest.mark.parametrize(("limit", "candidates"), [(1, 100), (25, 100), (26, 104), (50, 200)])
async def test_each_side_gives_four_times_the_hits_and_at_least_a_hundred(limit: int, candidates: int) -> None:
    index = _Index()
    filters = Filter("eq", "kind", "bird")
    await VectorStoreSearcher(index, embedder=_Embedder()).search("me", [A], ["q"], limit=limit, filters=filters)
    assert index.asked == [
        ("words", A, "q", filters, candidates),
        ("vectors", A, "words", b"q", filters, candidates),
    ]


@pytest.mark.parametrize(
    ("embedder", "ranking", "sides", "first", "by"),
    [
        (None, DEFAULT_RANKING, ["words"], 0.5, "words"),
        (_Embedder(), DEFAULT_RANKING, ["words", "vectors"], 1.0, "vectors"),
        (_Embedder(), Ranking(0, 1.0, 0.0), ["vectors"], 1.0, "vectors"),
        (_Embedder(), Ranking(0, 0.0, 1.0), ["words"], 0.5, "words"),
        (_Embedder(fails=True), Ranking(0, 1.0, 0.0), ["words"], 0.5, "words"),
    ],
)
async def test_a_side_without_weight_or_vector_is_not_asked(
    embedder: _Embedder | None, ranking: Ranking, sides: list[str], first: float, by: str
) -> None:
    index, metrics = _Index(), Metrics()
    searcher = VectorStoreSearcher(index, embedder=embedder, metrics=metrics)
    found = await searcher.search("me", [A], ["q"], ranking=ranking)
    assert [one[0] for one in index.asked] == sides
    assert found[0].score == pytest.approx(first)
    assert value_of(metrics.render().decode(), "antiphon_search_duration_seconds_count", by=by) == 1


async def test_the_threshold_itself_is_good_enough() -> None:
    search = VectorStoreSearcher(_Index(), embedder=_Embedder()).search
    for threshold, texts in ((0.5, ["0", "1", "2", "3", "4", "5"]), (0.51, ["0", "1", "2", "3", "4"])):
        assert _texts(await search("me", [A], ["q"], ranking=Ranking(threshold, 1.0, 0.0))) == texts


async def test_the_same_store_or_query_twice_is_one_and_an_empty_query_is_none() -> None:
    index = _Index(3)
    found = await VectorStoreSearcher(index).search("me", [B, A, B], ["q", " ", "", "q", "r"])
    assert [(one[1], one[2]) for one in index.asked] == [(B, "q"), (A, "q"), (B, "r"), (A, "r")]
    assert index.touched == [("me", [B, A])]
    assert _texts(found) == ["0", "1", "2"]


async def test_a_question_for_stores_alone_is_no_search() -> None:
    index, metrics = _Index(), Metrics()
    assert await VectorStoreSearcher(index, embedder=_Embedder(fails=True), metrics=metrics).search("me", [A], []) == []
    assert index.asked == [] and index.touched == [("me", [A])]
    assert value_of(metrics.render().decode(), "antiphon_search_duration_seconds_count") == 0


async def test_a_chunk_that_was_just_deleted_is_left_out() -> None:
    index = _Index(4)
    index.deleted = {1}
    assert _texts(await VectorStoreSearcher(index).search("me", [A], ["q"])) == ["0", "2", "3"]


async def test_a_search_whose_use_cannot_be_noted_has_its_hits() -> None:
    index = _Index(1)
    index.fails_to_touch = True
    with capture_logs() as lines:
        assert _texts(await VectorStoreSearcher(index).search("me", [A], ["q"])) == ["0"]
    assert [(line["event"], line["error"]) for line in lines] == [("use_not_noted", "the disk is full")]


async def test_stores_that_cannot_be_searched() -> None:
    search = VectorStoreSearcher(_Index()).search
    with pytest.raises(NotFound, match=f"^Vector store with id '{'x' * 128}' not found.$"):
        await search("me", [A, "x" * 200], ["q"])
    with pytest.raises(InvalidRequest, match=f"^The vector store '{OLD}' has expired.$") as raised:
        await search("me", [A, OLD], ["q"])
    assert (raised.value.param, raised.value.code) == ("vector_store_id", "vector_store_expired")
