"""The contract tests of vector stores, their ingestion and their index in every backend.

Lives here: the suite and its helpers. Not here: vectors on PostgreSQL (`test_vectors_postgres.py`), behaviour of one
backend only (`test_vector_stores_*.py`).
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Protocol

import pytest

from antiphon.engine.ports.state import PageQuery
from antiphon.engine.ports.vector_stores import (
    Chunking,
    DocumentChunk,
    FileError,
    FileStateCounts,
    IngestJob,
    NewFile,
    StoreChanges,
)
from antiphon.errors import InvalidRequest
from antiphon.stores.backend import VectorDatabase
from antiphon.types.search import Filter

ALICE, BOB = "b:alice", "b:bob"
DAY = 86_400.0


class World(Protocol):
    """The operations of a test on a backend from outside."""

    async def now(self) -> float:
        """The time that decides the expiry of stores."""

    async def passes(self, seconds: float) -> None:
        """Advance the time of dates and leases by `seconds`."""

    async def count(self, table: str) -> int:
        """The number of rows of a table."""


async def make(database: VectorDatabase, name: str = "one", *files: NewFile, days: int | None = None) -> str:
    store_id = f"vs_{name}"
    await database.stores.create(
        ALICE, store_id, name=name, description=None, metadata=b'{"a":"b"}', expires_days=days, files=files
    )
    return store_id


async def claim(database: VectorDatabase, *names: str) -> list[IngestJob]:
    return await database.ingestion.claim(names or ("c1",), 60)


async def ingest(database: VectorDatabase, job: IngestJob, *texts: str) -> None:
    chunks = [DocumentChunk(text, len(text.split())) for text in texts]
    assert await database.ingestion.append(job, 0, Path(job.filename).stem, chunks)
    assert await database.ingestion.complete(job, chunks=len(texts), usage_bytes=sum(map(len, texts)), model=None)


async def found(database: VectorDatabase, store_id: str, query: str, filters: Filter | None = None) -> list[str]:
    (store,) = await database.index.known(ALICE, [store_id])
    hits = await database.index.match(store, query, filters, 100)
    texts = await database.index.hits([store], [hit.chunk for hit in hits])
    return [texts[hit.chunk].file_id for hit in hits]


async def sweep(database: VectorDatabase) -> None:
    while await database.ingestion.sweep():
        pass


FILES: dict[str, dict[str, str | float | bool]] = {
    "file-1": {"n": 1, "kind": "memo", "open": True},
    "file-2": {"n": 2.5, "kind": "note"},
    "file-3": {"n": "1", "kind": "memo", "open": False},
    "file-4": {},
}


class VectorStoreContract:
    """The suite. Subclasses provide `here` for writes, `there` for reads, and `world`."""

    async def test_a_store_is_kept_with_its_fields(
        self, here: VectorDatabase, there: VectorDatabase, world: World
    ) -> None:
        store_id = await make(here, "one", days=2)
        store = await there.stores.get(ALICE, store_id)
        assert store is not None
        assert (store.name, store.metadata, store.expires_days) == ("one", b'{"a":"b"}', 2)
        assert store.created_at == pytest.approx(await world.now(), abs=60)
        assert store.expires_at == store.created_at + 2 * DAY
        assert store.counts == FileStateCounts() and store.usage_bytes == 0 and not store.expired

    async def test_a_stranger_sees_and_changes_nothing(self, here: VectorDatabase) -> None:
        store_id = await make(here, "one", NewFile("file-1", "a.txt"))
        await here.stores.add_files(ALICE, store_id, [NewFile("file-2", "b.txt")], batch_id="vsfb_1")
        stores = here.stores
        assert await stores.get(BOB, store_id) is None
        assert (await stores.list(BOB, PageQuery())).items == ()
        assert await stores.update(BOB, store_id, StoreChanges(name="x")) is None
        assert not await stores.delete(BOB, store_id)
        assert not await stores.add_files(BOB, store_id, [NewFile("file-3", "c.txt")])
        assert not await stores.add_files(BOB, store_id, [NewFile("file-3", "c.txt")], batch_id="vsfb_2")
        assert await stores.get_file(BOB, store_id, "file-1") is None
        assert await stores.list_files(BOB, store_id, PageQuery()) is None
        assert not await stores.set_attributes(BOB, store_id, "file-1", {"a": 1})
        assert not await stores.remove_file(BOB, store_id, "file-1")
        assert await stores.get_batch(BOB, store_id, "vsfb_1") is None
        assert not await stores.cancel_batch(BOB, store_id, "vsfb_1")
        assert await stores.file_text(BOB, store_id, "file-1", 0, 10) is None
        assert await here.index.known(BOB, [store_id]) == []
        await stores.forget_file(BOB, "file-1")
        page = await stores.list_files(ALICE, store_id, PageQuery())
        assert page is not None and {file.file_id for file in page.items} == {"file-1", "file-2"}
        assert all(file.attributes == {} and file.state == "in_progress" for file in page.items)

    async def test_pages_of_stores(self, here: VectorDatabase, there: VectorDatabase) -> None:
        for number in range(5):
            await make(here, str(number))

        async def names(**query: object) -> tuple[list[str], bool]:
            page = await there.stores.list(ALICE, PageQuery(**query))  # type: ignore[arg-type]
            return [store.id[3:] for store in page.items], page.has_more

        assert await names(limit=2) == (["4", "3"], True)
        assert await names(limit=2, after="vs_3") == (["2", "1"], True)
        assert await names(limit=9, after="vs_1") == (["0"], False)
        assert await names(limit=2, before="vs_1") == (["3", "2"], True)
        assert await names(limit=2, descending=False) == (["0", "1"], True)
        with pytest.raises(InvalidRequest) as raised:
            await names(after="vs_none")
        assert raised.value.param == "after"

    async def test_changes_of_a_store(self, here: VectorDatabase, there: VectorDatabase, world: World) -> None:
        store_id = await make(here, "one", days=1)
        await world.passes(100)
        changed = await here.stores.update(ALICE, store_id, StoreChanges(name="two"))
        assert changed is not None and (changed.name, changed.expires_at) == ("two", changed.last_active_at + DAY)
        assert changed.last_active_at == pytest.approx(await world.now(), abs=60)
        changed = await here.stores.update(ALICE, store_id, StoreChanges(metadata=b"{}", clear_expiry=True))
        assert changed == await there.stores.get(ALICE, store_id)
        assert changed is not None and (changed.name, changed.metadata, changed.expires_at) == ("two", b"{}", None)

    async def test_a_file_goes_from_in_progress_to_completed(self, here: VectorDatabase, there: VectorDatabase) -> None:
        store_id = await make(here, "one", NewFile("file-1", "wings.txt", {"n": 1}, Chunking("static", 200, 50)))
        file = await there.stores.get_file(ALICE, store_id, "file-1")
        assert file is not None and (file.state, file.chunking) == ("in_progress", Chunking("static", 200, 50))
        (job,) = await claim(here)
        assert (job.owner, job.file_id, job.filename, job.attempts) == (ALICE, "file-1", "wings.txt", 1)
        await here.ingestion.append(job, 0, "wings", [DocumentChunk("birds fly", 2)])
        assert await found(there, store_id, "birds") == []  # Not before the file is completed.
        await here.ingestion.append(job, 1, "wings", [DocumentChunk("planes too", 2)])
        assert await here.ingestion.complete(job, chunks=2, usage_bytes=19, model=None)
        assert await found(there, store_id, "birds") == ["file-1"]
        assert await there.stores.file_text(ALICE, store_id, "file-1", 0, 10) == ("birds fly", "planes too")
        assert await there.stores.file_text(ALICE, store_id, "file-1", 1, 10) == ("planes too",)
        store = await there.stores.get(ALICE, store_id)
        assert store is not None and (store.counts, store.usage_bytes) == (FileStateCounts(completed=1), 19)
        assert await claim(here, "c2") == []

    async def test_of_many_that_claim_each_file_goes_to_one(self, here: VectorDatabase, there: VectorDatabase) -> None:
        await make(here, "one", *(NewFile(f"file-{number}", "a.txt") for number in range(10)))
        names = [[f"c{worker}{number}" for number in range(10)] for worker in range(4)]
        every = await asyncio.gather(
            *(claim(where, *each) for where, each in zip([here, there] * 2, names, strict=True))
        )
        jobs = [job for some in every for job in some]
        assert sorted(job.file_id for job in jobs) == [f"file-{number}" for number in range(10)]
        assert len({job.number for job in jobs}) == 10

    async def test_an_attempt_that_died_leaves_nothing(
        self, here: VectorDatabase, there: VectorDatabase, world: World
    ) -> None:
        store_id = await make(here, "one", NewFile("file-1", "a.txt"))
        (dead,) = await claim(here, "dead")
        await here.ingestion.append(dead, 0, "a", [DocumentChunk("old birds", 2)])
        await world.passes(55)
        assert await claim(there, "early") == []
        await world.passes(6)
        (job,) = await claim(there, "next")
        assert job.attempts == 2 and job.number != dead.number
        # The first worker was only slow. Its later writes change nothing.
        assert not await here.ingestion.append(dead, 1, "a", [DocumentChunk("late birds", 2)])
        assert not await here.ingestion.complete(dead, chunks=2, usage_bytes=1, model=None)
        assert not await here.ingestion.fail(dead, FileError("server_error", "no"))
        assert await here.ingestion.renew(["dead", "next"], 60) == {"next"}
        await ingest(there, job, "new birds")
        await sweep(here)
        assert await found(here, store_id, "birds") == ["file-1"]
        assert await there.stores.file_text(ALICE, store_id, "file-1", 0, 10) == ("new birds",)
        assert await world.count("chunks") == 1

    async def test_a_file_that_is_given_back_waits(self, here: VectorDatabase, world: World) -> None:
        await make(here, "one", NewFile("file-1", "a.txt"))
        (job,) = await claim(here)
        await here.ingestion.release(job, pause=10)
        await world.passes(5)
        assert await claim(here, "c2") == []
        await world.passes(5)
        (job,) = await claim(here, "c2")
        assert job.attempts == 2
        await here.ingestion.release(job, attempted=False)
        (job,) = await claim(here, "c3")
        assert job.attempts == 2

    async def test_a_failed_file_says_why(self, here: VectorDatabase, there: VectorDatabase, world: World) -> None:
        store_id = await make(here, "one", NewFile("file-1", "a.txt"))
        (job,) = await claim(here)
        await here.ingestion.append(job, 0, "a", [DocumentChunk("birds", 1)])
        assert await here.ingestion.fail(job, FileError("invalid_file", "It is broken."))
        file = await there.stores.get_file(ALICE, store_id, "file-1")
        assert file is not None and (file.state, file.error) == ("failed", FileError("invalid_file", "It is broken."))
        await sweep(here)
        assert await world.count("chunks") == 0 and await found(there, store_id, "birds") == []

    async def test_the_states_of_files_and_the_counts_of_owners(self, here: VectorDatabase) -> None:
        await make(here, "one", NewFile("file_1", "a.txt"), NewFile("file_2", "b.txt"))
        (job,) = await claim(here)
        assert await here.ingestion.fail(job, FileError("invalid_file", "The file is damaged."))
        other = "file_2" if job.file_id == "file_1" else "file_1"
        await make(here, "two", NewFile(job.file_id, "a.txt"))
        states = await here.stores.states_of(ALICE, ["file_1", "file_2", "file_3"])
        assert states[job.file_id] == FileStateCounts(in_progress=1, failed=1)
        assert states[other] == FileStateCounts(in_progress=1) and len(states) == 2
        assert await here.stores.states_of(BOB, ["file_1"]) == {}
        assert await here.stores.counts() == {ALICE: 2}

    async def test_a_file_that_is_added_again_is_ingested_anew(
        self, here: VectorDatabase, there: VectorDatabase, world: World
    ) -> None:
        store_id = await make(here, "one", NewFile("file-1", "a.txt", {"n": 1}))
        await here.stores.add_files(ALICE, store_id, [NewFile("file-2", "b.txt")], batch_id="vsfb_1")
        for job in await claim(here, "c1", "c2"):
            await ingest(here, job, "old birds")
        await here.stores.add_files(ALICE, store_id, [NewFile("file-2", "b.txt", {"n": 2})])
        assert await found(there, store_id, "birds") == ["file-1"]
        # The file remains in its batch.
        batch = await there.stores.get_batch(ALICE, store_id, "vsfb_1")
        assert batch is not None and batch.counts == FileStateCounts(in_progress=1)
        (job,) = await claim(here, "c3")
        await ingest(here, job, "new birds")
        await sweep(here)
        assert sorted(await found(there, store_id, "birds")) == ["file-1", "file-2"]
        assert await found(there, store_id, "old") == ["file-1"]
        assert await found(there, store_id, "new", Filter("eq", "n", 2)) == ["file-2"]
        assert await world.count("chunks") == 2

    async def test_batches_count_and_cancel(self, here: VectorDatabase, there: VectorDatabase) -> None:
        store_id = await make(here)
        files = [NewFile(f"file-{number}", "a.txt") for number in range(4)]
        assert await here.stores.add_files(ALICE, store_id, files, batch_id="vsfb_1")
        first, second, _third = await claim(here, "c1", "c2", "c3")
        await ingest(here, first, "birds")
        await here.ingestion.fail(second, FileError("unsupported_file", "no"))
        batch = await there.stores.get_batch(ALICE, store_id, "vsfb_1")
        assert batch is not None and batch.counts == FileStateCounts(in_progress=2, completed=1, failed=1)
        assert await there.stores.cancel_batch(ALICE, store_id, "vsfb_1")
        batch = await here.stores.get_batch(ALICE, store_id, "vsfb_1")
        assert (
            batch is not None
            and batch.cancelled
            and batch.counts == FileStateCounts(completed=1, failed=1, cancelled=2)
        )
        assert not await here.ingestion.append(_third, 0, "a", [DocumentChunk("birds", 1)])
        page = await there.stores.list_files(ALICE, store_id, PageQuery(), state="cancelled", batch_id="vsfb_1")
        assert page is not None and {file.state for file in page.items} == {"cancelled"} and len(page.items) == 2
        assert await there.stores.list_files(ALICE, store_id, PageQuery(), batch_id="vsfb_none") is None

    async def test_pages_of_files(self, here: VectorDatabase, there: VectorDatabase, world: World) -> None:
        store_id = await make(here)
        for number in range(5):
            await world.passes(1)
            await here.stores.add_files(ALICE, store_id, [NewFile(f"file-{number}", "a.txt")])

        async def names(**query: object) -> tuple[list[str], bool]:
            page = await there.stores.list_files(ALICE, store_id, PageQuery(**query))  # type: ignore[arg-type]
            assert page is not None
            return [file.file_id[5:] for file in page.items], page.has_more

        assert await names(limit=2) == (["4", "3"], True)
        assert await names(limit=2, after="file-3") == (["2", "1"], True)
        assert await names(limit=2, before="file-1") == (["3", "2"], True)
        assert await names(limit=2, descending=False, after="file-0") == (["1", "2"], True)
        with pytest.raises(InvalidRequest):
            await names(before="file-none")

    async def test_a_removed_file_is_not_found(self, here: VectorDatabase, there: VectorDatabase, world: World) -> None:
        one, two = (
            await make(here, "one", NewFile("file-1", "a.txt")),
            await make(here, "two", NewFile("file-1", "a.txt")),
        )
        for job in await claim(here, "c1", "c2"):
            await ingest(here, job, "birds")
        assert await there.stores.remove_file(ALICE, one, "file-1")
        assert not await there.stores.remove_file(ALICE, one, "file-1")
        assert await found(here, one, "birds") == [] and await found(here, two, "birds") == ["file-1"]
        await there.stores.forget_file(ALICE, "file-1")
        assert await found(here, two, "birds") == []
        await sweep(here)
        assert await world.count("chunks") == 0

    async def test_deleting_a_store_deletes_everything(
        self, here: VectorDatabase, there: VectorDatabase, world: World
    ) -> None:
        store_id = await make(here, "one", NewFile("file-1", "a.txt", {"n": 1}), NewFile("file-2", "b.txt"))
        first, second = await claim(here, "c1", "c2")
        await ingest(here, first, *(f"birds {number}" for number in range(1_200)))
        await here.ingestion.append(second, 0, "b", [DocumentChunk("birds", 1)])
        await there.stores.remove_file(ALICE, store_id, "file-1")
        assert await there.stores.delete(ALICE, store_id)
        assert not await there.stores.delete(ALICE, store_id)
        assert not await here.ingestion.append(second, 1, "b", [DocumentChunk("birds", 1)])
        await sweep(here)
        for table in ("chunks", "vector_files", "file_attributes", "vector_batches", "vector_trash", "vector_stores"):
            assert await world.count(table) == 0, table

    async def test_an_expired_store_loses_its_files(
        self, here: VectorDatabase, there: VectorDatabase, world: World
    ) -> None:
        store_id = await make(here, "one", NewFile("file-1", "a.txt"), days=1)
        (job,) = await claim(here)
        await ingest(here, job, "birds")
        await world.passes(DAY / 2)
        await here.stores.touch(ALICE, [store_id])  # A use restarts the expiry time.
        await world.passes(DAY / 2 + 1)
        await sweep(here)
        store = await there.stores.get(ALICE, store_id)
        assert store is not None and not store.expired and store.counts == FileStateCounts(completed=1)
        # At the very moment of its expiry, the store is gone for its owner, and the sweep deletes it.
        await world.passes((store.expires_at or 0.0) - await world.now())
        store = await there.stores.get(ALICE, store_id)
        assert store is not None and store.expired
        assert [known.expired for known in await there.index.known(ALICE, [store_id])] == [True]
        await sweep(there)
        assert await world.count("chunks") == 0
        store = await here.stores.get(ALICE, store_id)
        assert store is not None and store.expired and store.counts == FileStateCounts()
        assert not await here.stores.add_files(ALICE, store_id, [NewFile("file-2", "b.txt")])

    @pytest.mark.parametrize(
        ("filters", "expected"),
        [
            (Filter("eq", "n", 1), "1"),
            (Filter("eq", "n", 1.0), "1"),
            (Filter("eq", "n", "1"), "3"),
            (Filter("ne", "n", 1), "234"),
            (Filter("gt", "n", 1), "2"),
            (Filter("gte", "n", 1), "12"),
            (Filter("lt", "n", 2.5), "1"),
            (Filter("lte", "n", 2.5), "12"),
            (Filter("gt", "kind", "memo"), "2"),
            (Filter("in", "n", (1, "1")), "13"),
            (Filter("in", "n", ()), ""),
            (Filter("nin", "n", (1, "1")), "24"),
            (Filter("nin", "n", ()), "1234"),
            (Filter("eq", "open", True), "1"),
            (Filter("eq", "open", 1), ""),
            (Filter("ne", "open", True), "234"),
            (Filter("in", "open", (False, True)), "13"),
            (Filter("eq", "no'such\"key", 1), ""),
            (Filter("and", parts=(Filter("eq", "kind", "memo"), Filter("ne", "open", True))), "3"),
            (Filter("or", parts=(Filter("eq", "n", 2.5), Filter("eq", "open", True))), "12"),
            (
                Filter(
                    "and",
                    parts=(
                        Filter("or", parts=(Filter("eq", "n", 1), Filter("eq", "n", 2.5))),
                        Filter("or", parts=(Filter("eq", "kind", "note"), Filter("eq", "kind", "x"))),
                    ),
                ),
                "2",
            ),
        ],
    )
    async def test_filters(self, here: VectorDatabase, filters: Filter, expected: str) -> None:
        store_id = await make(here, "one", *(NewFile(name, "a.txt", attributes) for name, attributes in FILES.items()))
        for job in await claim(here, "c1", "c2", "c3", "c4"):
            await ingest(here, job, "birds")
        assert "".join(sorted(name[5:] for name in await found(here, store_id, "birds", filters))) == expected

    async def test_a_filter_is_no_matter_of_rank(self, here: VectorDatabase) -> None:
        """The search finds the one matching file, although a hundred other files match the words better."""
        files = [NewFile(f"file-{number}", "a.txt", {"last": number == 119}) for number in range(120)]
        store_id = await make(here, "one", *files)
        for job in await claim(here, *(f"c{number}" for number in range(120))):
            await ingest(here, job, "birds" if job.file_id == "file-119" else "birds birds birds", "something else")
        (store,) = await here.index.known(ALICE, [store_id])
        hits = await here.index.match(store, "birds", Filter("eq", "last", True), 1)
        texts = await here.index.hits([store], [hit.chunk for hit in hits])
        assert [texts[hit.chunk].file_id for hit in hits] == ["file-119"]

    async def test_numbers_of_deleted_stores_and_files_are_never_given_out_again(self, here: VectorDatabase) -> None:
        """A cache or another process may know a store by its number, so the number must never mean another store."""
        seen: set[int] = set()
        for name in ("one", "two", "three"):
            store_id = await make(here, name, NewFile("file-1", "a.txt"))
            (store,) = await here.index.known(ALICE, [store_id])
            (job,) = await claim(here)
            assert not {store.number, job.number} & seen
            seen |= {store.number, job.number}
            assert await here.stores.delete(ALICE, store_id)

    async def test_a_hit_belongs_to_a_store_that_was_searched(self, here: VectorDatabase) -> None:
        one, two = await make(here, "one", NewFile("file-1", "a.txt")), await make(here, "two")
        (job,) = await claim(here)
        await ingest(here, job, "birds")
        known = {store.id: store for store in await here.index.known(ALICE, [one, two])}
        chunks = [hit.chunk for hit in await here.index.match(known[one], "birds", None, 10)]
        assert len(await here.index.hits([known[one]], chunks)) == len(chunks) == 1
        assert await here.index.hits([known[two]], chunks) == {}

    async def test_new_attributes_are_what_filters_see(self, here: VectorDatabase, there: VectorDatabase) -> None:
        store_id = await make(here, "one", NewFile("file-1", "a.txt", {"n": 1, "m": 1}))
        (job,) = await claim(here)
        await ingest(here, job, "birds")
        assert await here.stores.set_attributes(ALICE, store_id, "file-1", {"n": 2})
        assert await found(there, store_id, "birds", Filter("eq", "n", 1)) == []
        assert await found(there, store_id, "birds", Filter("eq", "m", 1)) == []
        assert await found(there, store_id, "birds", Filter("eq", "n", 2)) == ["file-1"]
        file = await there.stores.get_file(ALICE, store_id, "file-1")
        assert file is not None and file.attributes == {"n": 2}

    @pytest.mark.parametrize(
        "query",
        ['birds" OR "x', "birds*", "NEAR(birds, 2)", "title:birds", "birds -fly", "(birds", "birds' --", "the birds"],
    )
    async def test_a_query_has_no_syntax(self, here: VectorDatabase, query: str) -> None:
        store_id = await make(here, "one", NewFile("file-1", "a.txt"))
        (job,) = await claim(here)
        await ingest(here, job, "birds fly", "nothing else")
        assert await found(here, store_id, query) == ["file-1"]

    @pytest.mark.parametrize("query", ["検索", "全文検索機能", "搜", "ドキュメント", "naïve", "NAIVE", "Straße"])
    async def test_other_scripts_are_found(self, here: VectorDatabase, query: str) -> None:
        store_id = await make(here, "one", NewFile("file-1", "a.txt"), NewFile("file-2", "b.txt"))
        first, second = await claim(here, "c1", "c2")
        await ingest(here, first, "この検索ドキュメントは速い。搜. A naïve Straße.")
        await ingest(here, second, "something in English")
        assert await found(here, store_id, query) == ["file-1"]

    async def test_the_title_counts_twice(self, here: VectorDatabase) -> None:
        store_id = await make(here, "one", NewFile("file-1", "birds.txt"), NewFile("file-2", "x.txt"))
        first, second = await claim(here, "c1", "c2")
        await ingest(here, first, "some words here", "and others")
        await ingest(here, second, "some birds here", "and others")
        assert (await found(here, store_id, "birds"))[-1] == "file-2"

    async def test_in_a_small_store_words_count_too(self, here: VectorDatabase) -> None:
        store_id = await make(here, "one", NewFile("file-1", "a.txt"), NewFile("file-2", "b.txt"))
        first, second = await claim(here, "c1", "c2")
        await ingest(here, first, "birds have wings")
        await ingest(here, second, "birds fly south")
        (store,) = await here.index.known(ALICE, [store_id])
        best, other = await here.index.match(store, "birds with wings", None, 10)
        assert best.score > other.score > 1
        assert await found(here, store_id, "zzpadding") == []

    async def test_the_version_changes_with_the_completed_files(
        self, here: VectorDatabase, there: VectorDatabase, world: World
    ) -> None:
        store_id = await make(here, "one", NewFile("file-1", "a.txt"), NewFile("file-2", "b.txt"), days=1)
        other = await make(here, "two", NewFile("file-1", "a.txt"))
        seen: list[int] = []

        async def changed() -> bool:
            one, two = await there.index.known(ALICE, [store_id]), await there.index.known(ALICE, [other])
            seen.append(one[0].version)
            assert two[0].version == 0 or len(seen) > 5
            return len(seen) < 2 or seen[-1] != seen[-2]

        await changed()
        first, second, third = await claim(here, "c1", "c2", "c3")
        await here.ingestion.append(first, 0, "a", [DocumentChunk("birds", 1)])
        assert not await changed()
        await here.ingestion.complete(first, chunks=1, usage_bytes=1, model=None)
        assert await changed()
        await here.stores.set_attributes(ALICE, store_id, "file-1", {"a": 1})
        await here.stores.update(ALICE, store_id, StoreChanges(name="x"))
        assert not await changed()
        await here.stores.add_files(ALICE, store_id, [NewFile("file-1", "a.txt")])
        assert await changed()
        await here.stores.remove_file(ALICE, store_id, "file-1")
        assert await changed()
        await ingest(here, second, "birds")
        assert await changed()
        await here.stores.forget_file(ALICE, "file-2")
        assert await changed()
        await here.stores.add_files(ALICE, store_id, [NewFile("file-3", "c.txt")])
        await changed()
        await world.passes(DAY + 1)
        await here.ingestion.sweep()
        assert await changed()
        await ingest(here, third, "birds")
        (store,) = await here.index.known(ALICE, [other])
        assert store.version == 1
