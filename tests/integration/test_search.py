"""Searching by meaning and by words together: vectors that come and go, filters, weights, several stores."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from antiphon.engine.ports.vector_stores import EmbeddingFailed, KnownStore
from antiphon.errors import InvalidRequest, NotFound
from antiphon.stores.sqlite.vectors.chunk_index import SqliteChunkIndex
from antiphon.stores.sqlite.vectors.matrices import Matrices
from antiphon.types.search import Filter, Ranking
from tests.support.vector_stores import ALICE, BOB, VectorStoreSetup, WordEmbedder, open_vector_store_setup

TEXTS = {
    "plane": "The aircraft lands on the runway at noon.",
    "cat": "A feline sleeps on the warm carpet.",
    "bird": "Birds build their nests in spring.",
}


@pytest.fixture
def words() -> WordEmbedder:
    return WordEmbedder()


@pytest.fixture
async def setup(tmp_path: Path, words: WordEmbedder) -> AsyncIterator[VectorStoreSetup]:
    async with open_vector_store_setup(tmp_path, embedder=words) as opened:
        yield opened


async def names(setup: VectorStoreSetup, store_id: str, query: str, **options: object) -> list[str]:
    hits = await setup.searcher.search(ALICE, [store_id], [query], **options)  # type: ignore[arg-type]
    return [hit.filename.removesuffix(".txt") for hit in hits]


async def test_what_means_the_same_is_found(setup: VectorStoreSetup) -> None:
    store_id = await setup.store(**TEXTS)
    assert (await names(setup, store_id, "aeroplane"))[0] == "plane"
    assert (await names(setup, store_id, "cats"))[0] == "cat"


async def test_both_sides_count(setup: VectorStoreSetup) -> None:
    store_id = await setup.store(**TEXTS)
    (best, *_) = await setup.searcher.search(ALICE, [store_id], ["aircraft runway"])
    assert best.filename == "plane.txt" and best.score == pytest.approx(1.0)


async def test_weights(setup: VectorStoreSetup, words: WordEmbedder) -> None:
    store_id = await setup.store(**TEXTS)
    asked = len(words.texts)
    only_words = Ranking(embedding_weight=0.0, text_weight=1.0)
    assert await names(setup, store_id, "aeroplane", ranking=only_words) == []
    assert len(words.texts) == asked, "a side that does not count is not asked"
    only_vectors = Ranking(embedding_weight=1.0, text_weight=0.0)
    hits = await setup.searcher.search(ALICE, [store_id], ["feline"], ranking=only_vectors)
    assert hits[0].filename == "cat.txt" and 0.2 < hits[0].score < 1


async def test_a_threshold_is_about_the_published_score(setup: VectorStoreSetup) -> None:
    store_id = await setup.store(**TEXTS)
    hits = await setup.searcher.search(ALICE, [store_id], ["aircraft"], ranking=Ranking(threshold=0.9))
    assert [hit.filename for hit in hits] == ["plane.txt"]


async def test_filters_are_part_of_the_search(setup: VectorStoreSetup) -> None:
    """Of forty files that mean the same the one that fits is found, with a limit of one."""
    store_id = await setup.store(**{f"f{number}": "An aircraft and another aircraft." for number in range(40)})
    chosen = await setup.file("chosen.txt", "Something about an aircraft, and much else that is beside the point.")
    await setup.ask("POST", f"/{store_id}/files", {"file_id": chosen, "attributes": {"only": True}})
    await setup.ingested(store_id)
    assert await names(setup, store_id, "aeroplane", limit=1, filters=Filter("eq", "only", True)) == ["chosen"]
    assert "chosen" not in await names(setup, store_id, "aeroplane", limit=30, filters=Filter("ne", "only", True))


async def test_vectors_follow_the_files(setup: VectorStoreSetup) -> None:
    store_id = await setup.store(**TEXTS)
    assert (await names(setup, store_id, "aeroplane"))[0] == "plane"
    page = await setup.ask("GET", f"/{store_id}/files")
    for file in page["data"]:
        if (await setup.files.get(ALICE, file["id"])).name == "plane.txt":  # type: ignore[union-attr]
            await setup.ask("DELETE", f"/{store_id}/files/{file['id']}")
    assert "plane" not in await names(setup, store_id, "aeroplane")
    again = await setup.file("again.txt", "Many planes.")
    await setup.ask("POST", f"/{store_id}/files", {"file_id": again})
    await setup.ingested(store_id)
    assert (await names(setup, store_id, "aeroplane"))[0] == "again"


async def test_rows_of_removed_files_leave_the_matrix(setup: VectorStoreSetup, words: WordEmbedder) -> None:
    store_id = await setup.store(**TEXTS)
    dense = Matrices(setup.database.index, max_bytes=1 << 20)
    (vector,) = await words.embed(["aeroplane"])

    async def found() -> int:
        (known,) = await setup.database.index.known(ALICE, [store_id])
        return len(await dense.nearest(known, words.model, vector, None, 10))

    assert await found() == 3
    page = await setup.ask("GET", f"/{store_id}/files")
    await setup.ask("DELETE", f"/{store_id}/files/{page['data'][0]['id']}")
    assert await found() == 2


async def test_a_server_that_fails_leaves_the_words(setup: VectorStoreSetup, words: WordEmbedder) -> None:
    store_id = await setup.store(**TEXTS)
    words.fails = EmbeddingFailed("the embeddings server gave no answer")
    assert await names(setup, store_id, "runway") == ["plane"]
    only_vectors = Ranking(embedding_weight=1.0, text_weight=0.0)
    assert await names(setup, store_id, "runway", ranking=only_vectors) == ["plane"]
    assert await names(setup, store_id, "aeroplane") == []


async def test_vectors_of_another_model_are_not_compared(tmp_path: Path) -> None:
    async with open_vector_store_setup(tmp_path, embedder=WordEmbedder("old")) as setup:
        store_id = await setup.store(**TEXTS)
    async with open_vector_store_setup(tmp_path, embedder=WordEmbedder("new")) as setup:
        assert await names(setup, store_id, "aeroplane") == []
        assert await names(setup, store_id, "runway") == ["plane"]
        new = await setup.file("new.txt", "Planes again.")
        await setup.ask("POST", f"/{store_id}/files", {"file_id": new})
        await setup.ingested(store_id)
        assert (await names(setup, store_id, "aeroplane"))[0] == "new"
    async with open_vector_store_setup(tmp_path) as setup:
        assert await names(setup, store_id, "runway") == ["plane"]


async def test_several_stores_and_queries(setup: VectorStoreSetup) -> None:
    one, two = await setup.store(plane=TEXTS["plane"]), await setup.store(cat=TEXTS["cat"], bird=TEXTS["bird"])
    hits = await setup.searcher.search(ALICE, [one, two, one], ["aeroplane", "cats", "aeroplane"], limit=2)
    assert {(hit.filename, hit.vector_store_id) for hit in hits} == {("plane.txt", one), ("cat.txt", two)}
    assert len({hit.text for hit in hits}) == 2


async def test_a_search_for_nothing_says_whether_the_stores_are_there(setup: VectorStoreSetup) -> None:
    store_id = await setup.store(**TEXTS)
    assert await setup.searcher.search(ALICE, [store_id], []) == []
    assert await setup.searcher.search(ALICE, [store_id], ["", "  "]) == []
    for owner, wanted in ((BOB, store_id), (ALICE, "vs_none"), (ALICE, "nonsense"), (ALICE, 'vs_"; DROP')):
        with pytest.raises(NotFound):
            await setup.searcher.search(owner, [wanted], [])


async def test_an_expired_store_is_not_searched(tmp_path: Path) -> None:
    at = [1_700_000_000.0]
    async with open_vector_store_setup(tmp_path, clock=lambda: at[0]) as setup:
        made = await setup.ask("POST", "", {"expires_after": {"anchor": "last_active_at", "days": 1}})
        at[0] += 80_000
        await setup.searcher.search(ALICE, [made["id"]], ["x"])  # which makes it younger
        at[0] += 80_000
        await setup.searcher.search(ALICE, [made["id"]], ["x"])
        at[0] += 86_401
        with pytest.raises(InvalidRequest) as raised:
            await setup.searcher.search(ALICE, [made["id"]], ["x"])
        assert raised.value.code == "vector_store_expired"


async def test_a_store_that_is_deleted_meanwhile_has_no_hits(setup: VectorStoreSetup) -> None:
    store_id = await setup.store(**TEXTS)
    (known,) = await setup.database.index.known(ALICE, [store_id])
    await setup.ask("DELETE", f"/{store_id}")
    assert await setup.database.index.match(known, "runway", None, 10) == []
    assert await setup.database.index.files(known, "words", None) == frozenset()


async def test_searches_and_changes_at_the_same_time(setup: VectorStoreSetup) -> None:
    store_id = await setup.store(**TEXTS)

    async def search() -> None:
        for _ in range(15):
            found = await names(setup, store_id, "cats")
            assert found[0] == "cat"

    async def change() -> None:
        for number in range(8):
            file_id = await setup.file(f"n{number}.txt", f"Number {number} is a plane.")
            await setup.ask("POST", f"/{store_id}/files", {"file_id": file_id})
            await setup.ingested(store_id)
            await setup.ask("DELETE", f"/{store_id}/files/{file_id}")

    await asyncio.gather(search(), search(), change())


async def test_matrices_are_dropped_when_there_is_no_room(setup: VectorStoreSetup, words: WordEmbedder) -> None:
    stores = [await setup.store(**{f"s{number}": f"Number {number} is a plane."}) for number in range(3)]
    dense = Matrices(setup.database.index, max_bytes=4_500)  # two matrices of one row of 256 numbers
    (vector,) = await words.embed(["aeroplane"])
    for _ in range(2):
        for store_id in stores:
            (known,) = await setup.database.index.known(ALICE, [store_id])
            assert len(await dense.nearest(known, words.model, vector, None, 10)) == 1
            assert dense.count <= 2


async def test_a_store_is_never_searched_with_the_vectors_of_a_deleted_one(setup: VectorStoreSetup) -> None:
    for number in range(3):
        store_id = await setup.store(**TEXTS)
        assert (await names(setup, store_id, "aeroplane"))[:1] == ["plane"], number
        await setup.ask("DELETE", f"/{store_id}")


async def test_a_search_keeps_nothing_of_stores_that_are_empty_or_deleted(
    setup: VectorStoreSetup, words: WordEmbedder
) -> None:
    dense = setup.database.index.matrices
    (vector,) = await words.embed(["aeroplane"])

    async def searched(store_id: str) -> int:
        (known,) = await setup.database.index.known(ALICE, [store_id])
        return len(await dense.nearest(known, words.model, vector, None, 10))

    empty, full = (await setup.ask("POST", "", {}))["id"], await setup.store(**TEXTS)
    assert (await searched(empty), dense.count) == (0, 0)
    assert (await searched(full), dense.count) == (3, 1)
    # All its files go: then it is empty too.
    for file in (await setup.ask("GET", f"/{full}/files"))["data"]:
        await setup.ask("DELETE", f"/{full}/files/{file['id']}")
    assert (await searched(full), dense.count) == (0, 0)
    other = await setup.store(**TEXTS)
    assert await searched(other) == 3
    await setup.ask("DELETE", f"/{other}")
    assert dense.count == 0


async def test_matrices_of_deleted_stores_do_not_come_back_with_a_search_under_way(
    setup: VectorStoreSetup, words: WordEmbedder
) -> None:
    index = _SlowIndex(setup.database.index)
    dense = Matrices(index, max_bytes=1 << 20)
    setup.database.stores.on_deleted = dense.forget
    store_id = await setup.store(**TEXTS)
    (vector,) = await words.embed(["aeroplane"])
    (known,) = await setup.database.index.known(ALICE, [store_id])
    search = asyncio.create_task(dense.nearest(known, words.model, vector, None, 10))
    await index.asked.wait()
    await setup.ask("DELETE", f"/{store_id}")
    index.go.set()
    await search
    assert dense.count == 0


class _SlowIndex(SqliteChunkIndex):
    """An index whose vectors come when `go` is set."""

    def __init__(self, index: SqliteChunkIndex) -> None:
        self._index = index
        self.asked, self.go = asyncio.Event(), asyncio.Event()

    async def files(self, store: KnownStore, model: str, filters: Filter | None) -> frozenset[int]:
        return await self._index.files(store, model, filters)

    async def vectors(self, file_numbers: Sequence[int]) -> list[tuple[int, bytes]]:
        self.asked.set()
        await self.go.wait()
        return await self._index.vectors(file_numbers)
