"""Who is told of work and of what is gone, what a change answers, and pieces of clearing up at their edges."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from antiphon.config.state import RetentionSettings
from antiphon.engine.ports.state import PageQuery, PromptChange
from antiphon.engine.ports.vector_stores import DocumentChunk, FileError, IngestJob, NewFile, StoreChanges
from antiphon.errors import InvalidRequest, StoreError, VersionConflict
from antiphon.stores.conversations import ConversationStore
from antiphon.stores.retention import Retention
from antiphon.stores.sqlite.backend import SqliteStores, SqliteVectorDatabase, open_vector_database
from antiphon.stores.sqlite.retention import SqlitePieces
from antiphon.stores.sqlite.vectors import sql as vector_sql
from tests.contracts.job_contract import MOST, ONE, finished, piece, queued
from tests.contracts.store_contract import ALICE, BOB, item
from tests.contracts.store_contract import record as make_record


class Told:
    def __init__(self, database: SqliteVectorDatabase) -> None:
        self.work = 0
        self.deleted: list[str] = []
        database.stores.on_work = self._more
        database.stores.on_deleted = self.deleted.append

    def _more(self) -> None:
        self.work += 1

    def since(self) -> int:
        work, self.work = self.work, 0
        return work


@pytest.fixture
async def vectors(tmp_path: Path) -> AsyncIterator[SqliteVectorDatabase]:
    async with aclosing(await open_vector_database(tmp_path, clock=lambda: 1_000.0)) as opened:
        yield opened


@pytest.fixture
def told(vectors: SqliteVectorDatabase) -> Told:
    return Told(vectors)


async def _make(
    database: SqliteVectorDatabase, name: str, *files: str, owner: str = ALICE, days: int | None = None
) -> str:
    added = [NewFile(file, f"{file}.txt") for file in files]
    made = await database.stores.create(
        owner, f"vs_{name}", name=name, description="d", metadata=b"{}", expires_days=days, files=added
    )
    return made.id


async def test_who_ingests_is_told_of_work_and_nobody_of_what_did_nothing(
    vectors: SqliteVectorDatabase, told: Told
) -> None:
    stores = vectors.stores
    await _make(vectors, "a")
    assert told.since() == 0
    await _make(vectors, "b", "file-1")
    assert told.since() == 1
    assert await stores.add_files(ALICE, "vs_a", [NewFile("file-2", "x")], batch_id="vsfb_1") and told.since() == 1
    assert not await stores.add_files(BOB, "vs_a", [NewFile("file-2", "x")]) and told.since() == 0
    assert await stores.set_attributes(ALICE, "vs_a", "file-2", {"k": "v"}) and told.since() == 0
    assert await stores.update(ALICE, "vs_a", StoreChanges(name="n")) is not None and told.since() == 0
    # What is taken away is to be cleared up.
    assert await stores.cancel_batch(ALICE, "vs_a", "vsfb_1") and told.since() == 1
    assert await stores.remove_file(ALICE, "vs_a", "file-2") and told.since() == 1
    assert not await stores.remove_file(ALICE, "vs_a", "file-2") and told.since() == 0
    await stores.forget_file(ALICE, "file-1")
    assert told.since() == 1 and told.deleted == []
    assert not await stores.delete(BOB, "vs_a") and (told.since(), told.deleted) == (0, [])
    assert await stores.delete(ALICE, "vs_a") and (told.since(), told.deleted) == (1, ["vs_a"])
    assert not await stores.delete(ALICE, "vs_a") and told.deleted == ["vs_a"]
    assert await stores.get(ALICE, "vs_b") is not None


async def test_only_so_many_uses_are_remembered(vectors: SqliteVectorDatabase) -> None:
    await _make(vectors, "a")
    await vectors.stores.touch(ALICE, ["vs_a"])
    assert vectors.stores.noted_uses == {(ALICE, "vs_a"): 1_000_000}
    for known, kept in ((9_999, 10_000), (10_000, 10_001), (10_001, 1)):
        vectors.stores.noted_uses = {(ALICE, f"vs_{number}"): 0 for number in range(known)}
        await vectors.stores.touch(ALICE, ["vs_a"])
        assert len(vectors.stores.noted_uses) == kept
    await vectors.stores.delete(ALICE, "vs_a")
    assert vectors.stores.noted_uses == {}
    await vectors.stores.touch(ALICE, [])
    assert vectors.stores.noted_uses == {}


async def test_a_store_that_is_deleted_while_it_is_made_is_said(vectors: SqliteVectorDatabase) -> None:
    async def none(owner: str, store_id: str) -> None:
        return None

    vectors.stores.get = none  # type: ignore[method-assign]
    with pytest.raises(StoreError, match="deleted while it was made"):
        await _make(vectors, "a")
    with pytest.raises(StoreError, match="id of the vector store is not valid"):
        vector_sql.index_table("vs_a'; --")


async def test_changes_of_a_store_are_those_that_were_said(vectors: SqliteVectorDatabase) -> None:
    await _make(vectors, "a", days=2)
    changed = await vectors.stores.update(ALICE, "vs_a", StoreChanges(metadata=b'{"a":"b"}'))
    assert changed is not None and (changed.name, changed.metadata, changed.expires_days) == ("a", b'{"a":"b"}', 2)
    changed = await vectors.stores.update(ALICE, "vs_a", StoreChanges(name="n", expires_days=1))
    assert changed is not None and (changed.name, changed.expires_at) == ("n", 1_000.0 + 86_400)
    changed = await vectors.stores.update(ALICE, "vs_a", StoreChanges(clear_expiry=True))
    assert changed is not None and (changed.expires_days, changed.expires_at, changed.expired) == (None, None, False)
    assert await vectors.stores.update(BOB, "vs_a", StoreChanges(name="theirs")) is None
    kept = await vectors.stores.get(ALICE, "vs_a")
    assert kept is not None and (kept.name, kept.metadata) == ("n", b'{"a":"b"}')


# Ingestion


async def _claimed(database: SqliteVectorDatabase, *claims: str) -> list[IngestJob]:
    return await database.ingestion.claim(claims, 60)


async def _ingest(database: SqliteVectorDatabase, job: IngestJob, count: int) -> None:
    chunks = [DocumentChunk(f"word{number} birds", 2) for number in range(count)]
    assert await database.ingestion.append(job, 0, "title", chunks)
    assert await database.ingestion.complete(job, chunks=count, usage_bytes=count, model="m")


async def _count(database: SqliteVectorDatabase, table: str) -> int:
    return int((await database.tables.readers.fetch(f"SELECT count(*) FROM {table}", {}))[0][0])


@pytest.mark.parametrize(("chunks", "pieces"), [(0, 1), (1, 1), (2, 1), (3, 2), (4, 2), (5, 3)])
async def test_what_was_removed_is_cleared_piece_by_piece(
    vectors: SqliteVectorDatabase, chunks: int, pieces: int
) -> None:
    await _make(vectors, "a", "file-1", "file-2")
    first, second = await _claimed(vectors, "c1", "c2")
    await _ingest(vectors, first, chunks)
    await _ingest(vectors, second, 3)
    assert await vectors.stores.remove_file(ALICE, "vs_a", first.file_id)
    left = [await _count(vectors, "chunks")]
    while await vectors.ingestion.sweep(at_once=2):
        left.append(await _count(vectors, "chunks"))
    assert len(left) - 1 == pieces and left[-1] == 3 and await _count(vectors, "vector_trash") == 0
    assert left == [3 + max(0, chunks - 2 * number) for number in range(pieces + 1)]
    (known,) = await vectors.index.known(ALICE, ["vs_a"])
    assert len(await vectors.index.match(known, "birds", None, 99)) == 3
    text = await vectors.stores.file_text(ALICE, "vs_a", second.file_id, 1, 9)
    assert text == ("word1 birds", "word2 birds")
    assert await vectors.stores.file_text(ALICE, "vs_a", second.file_id, 0, 2) == ("word0 birds", "word1 birds")


async def test_an_expired_store_is_emptied_words_and_all(tmp_path: Path) -> None:
    now = 1_000.0
    async with aclosing(await open_vector_database(tmp_path, clock=lambda: now)) as vectors:
        await _make(vectors, "a", "file-1", "file-3", days=1)
        await _make(vectors, "b", "file-2")
        for job in await _claimed(vectors, "c1", "c2", "c3"):
            await _ingest(vectors, job, 2)
        before = {one.id: one.version for one in await vectors.index.known(ALICE, ["vs_a", "vs_b"])}
        # What is in the trash of the store already loses its words with the others.
        await vectors.stores.remove_file(ALICE, "vs_a", "file-3")
        now += 86_400
        for _ in range(9):
            if not await vectors.ingestion.sweep():
                break
        known = await vectors.index.known(ALICE, ["vs_a", "vs_b"])
        assert [(one.id, one.expired) for one in known] == [("vs_a", True), ("vs_b", False)]
        assert known[0].version == before["vs_a"] + 2 and known[1].version == before["vs_b"]
        assert await vectors.index.match(known[0], "birds", None, 9) == []
        assert len(await vectors.index.match(known[1], "birds", None, 9)) == 2
        assert (await _count(vectors, "chunks"), await _count(vectors, "vector_files")) == (2, 1)
        assert await _count(vectors, "vector_trash") == 0 and not await vectors.ingestion.sweep()


async def test_a_failed_file_leaves_nothing_and_counts(vectors: SqliteVectorDatabase) -> None:
    await _make(vectors, "a", "file-1", "file-2")
    assert await vectors.ingestion.waiting() == 2
    one, two = await _claimed(vectors, "c1", "c2")
    assert await vectors.ingestion.append(one, 0, "t", [DocumentChunk("birds", 1)])
    assert await vectors.ingestion.fail(one, FileError("invalid_file", "It is broken."))
    assert not await vectors.ingestion.fail(one, FileError("invalid_file", "again"))
    assert await vectors.ingestion.waiting() == 1
    found = await vectors.stores.get_file(ALICE, "vs_a", one.file_id)
    assert found is not None and (found.state, found.error) == ("failed", FileError("invalid_file", "It is broken."))
    assert await vectors.stores.file_text(ALICE, "vs_a", one.file_id, 0, 9) == ()
    assert await vectors.ingestion.sweep() and not await vectors.ingestion.sweep()
    assert await _count(vectors, "chunks") == 0
    await _ingest(vectors, two, 1)
    store = await vectors.stores.get(ALICE, "vs_a")
    assert store is not None and (store.counts.completed, store.counts.failed, store.usage_bytes) == (1, 1, 1)


# Prompts


async def test_what_a_change_of_a_prompt_answers(stores: SqliteStores) -> None:
    prompts = stores.prompts
    await prompts.create(ALICE, "pmpt_a", "n", b"{}", b"one")
    for number, (change, version) in enumerate(
        (
            (PromptChange(body=b"two"), 2),
            (PromptChange(body=b"three", make_default=False), 3),
            # Without a new body it is the default version's that is answered.
            (PromptChange(renamed=True, name="x"), 2),
            (PromptChange(renamed=True, name="y", make_default=False), 2),
            (PromptChange(body=b"four", expected_version=3), 4),
        )
    ):
        changed = await prompts.change(ALICE, "pmpt_a", change)
        assert changed is not None and changed.version == version, number
    with pytest.raises(VersionConflict):
        await prompts.change(ALICE, "pmpt_a", PromptChange(body=b"late", expected_version=3))
    assert await prompts.change(ALICE, "pmpt_none", PromptChange(body=b"x")) is None
    chosen = await prompts.set_default(ALICE, "pmpt_a", 1)
    assert chosen is not None and chosen.body == b"one" and await prompts.set_default(ALICE, "pmpt_a", 5) is None


@pytest.mark.parametrize(
    ("cursor", "fine"), [("1", True), ("9" * 9, True), ("9" * 10, False), ("0", False), ("-1", False)]
)
async def test_which_versions_can_be_named(stores: SqliteStores, cursor: str, fine: bool) -> None:
    await stores.prompts.create(ALICE, "pmpt_a", None, b"{}", b"one")
    if fine:
        assert await stores.prompts.versions(ALICE, "pmpt_a", PageQuery(after=cursor)) is not None
        return
    with pytest.raises(InvalidRequest, match="numbered from 1"):
        await stores.prompts.versions(ALICE, "pmpt_a", PageQuery(after=cursor))


# SqlitePieces, one by one


def _aged(stores: SqliteStores, now: float, rows: int, **kept: float) -> Retention:
    given: dict[str, Any] = {"events": None, "audit": None, **kept}
    pieces = SqlitePieces(stores.tables.writer, stores.tables.readers, lambda: now, rows=rows)
    return Retention(stores.tables, pieces, RetentionSettings(**given))


@pytest.mark.parametrize("items", [7, 8, 9, 10, 11, 25])
async def test_a_conversation_goes_at_once_or_item_by_item(stores: SqliteStores, items: int) -> None:
    """With its own row it has one more than items; a piece may have ten."""
    at = 1_000.0
    conversations = ConversationStore(
        stores.tables, stores.keys, max_items=100, history_bytes=1 << 20, page_bytes=1 << 20, clock=lambda: at
    )
    for name in ("conv_a", "conv_b"):
        await conversations.create(ALICE, name, b"{}", [item(f"msg_{number}") for number in range(items)])
        at += 1
    pieces: list[int] = []
    run = stores.tables.writer.run

    async def counted(unit: Any, **named: Any) -> Any:
        # The rows of the audit are one of their own.
        if "audit" not in repr(unit):
            pieces.append(len(unit))
        return await run(unit, **named)

    stores.tables.writer.run = counted  # type: ignore[method-assign, assignment]
    assert await _aged(stores, 5_000.0, 10, conversations=60.0).sweep() == (0, 2, 0)
    # One statement where conversations go whole, two where one goes by its items.
    whole, by_items = pieces.count(1), pieces.count(2)
    assert (whole, by_items) == (2, {7: 0, 8: 0, 9: 0, 10: 2, 11: 2, 25: 4}[items]), pieces
    rows = await stores.tables.readers.fetch("SELECT count(*) FROM conversation_items", {})
    assert rows[0][0] == 0


async def test_pieces_of_chains_and_streams(stores: SqliteStores) -> None:
    for number in range(5):
        old = replace(make_record(f"a{number}"), created_at=100.0 + number, completed_at=100.0 + number)
        await stores.responses.save(old)
    for name in ("x", "y"):
        await stores.background.enqueue(replace(queued(name), created_at=200.0), b"{}", piece(0, 1), limit=MOST)
    assert len(await stores.background.claim(ONE, 10.0, 9)) == 2
    assert await stores.background.finish(ONE, replace(finished("x"), created_at=200.0, completed_at=200.0), None)
    # Four rows each, two in a piece, and one that has more. What runs stays, and its events.
    pieces: list[int] = []
    run = stores.tables.writer.run

    async def counted(unit: Any, **named: Any) -> Any:
        counts = await run(unit, **named)
        if "audit" not in repr(unit):
            pieces.append(counts[-1])
        return counts

    stores.tables.writer.run = counted  # type: ignore[method-assign, assignment]
    assert await _aged(stores, 5_000.0, 8, responses=60.0, events=60.0).sweep() == (6, 0, 0)
    assert pieces[:4] == [2, 2, 1, 1] and await stores.responses.get(ALICE, "resp_y") is not None
    assert await stores.background.finish(ONE, replace(finished("y"), created_at=200.0, completed_at=200.0), None)
    assert await _aged(stores, 5_000.0, 8, events=60.0).sweep() == (0, 0, 1)
    page = await stores.background.events(ALICE, "resp_y", -1, 9)
    assert page is not None and page.pieces == ()
