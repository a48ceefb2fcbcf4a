"""Leases, expiries and ages at their very moments: a millisecond before, exactly then, a millisecond after.

Both clocks are set: that of leases, and that of dates.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from antiphon.config.state import RetentionSettings
from antiphon.engine.ports.actions import OnceOnly
from antiphon.engine.ports.files import FileFields, FileQuery
from antiphon.engine.ports.jobs import EndedJob, JobEnd
from antiphon.engine.ports.vector_stores import NewFile
from antiphon.errors import ApiError, ConversationLocked
from antiphon.stores.blobs.disk import DiskBlobs
from antiphon.stores.conversations import ConversationStore
from antiphon.stores.files import FileStore
from antiphon.stores.idempotency import IdempotencyStore
from antiphon.stores.retention import Retention
from antiphon.stores.sqlite.backend import SqliteStores, SqliteVectorDatabase, open_sqlite, open_vector_database
from antiphon.stores.sqlite.retention import SqlitePieces
from tests.contracts.job_contract import MOST, ONE, TWO, finished, piece, queued
from tests.contracts.store_contract import ALICE, BOB, item
from tests.contracts.store_contract import record as make_record
from tests.support.sqlite_files import files_of

SECOND = 1_000
MOMENTS = [(-1, False), (0, True), (1, True)]
"""Milliseconds from the moment on, and whether it has come."""


class Clocks:
    """The machine's, which leases go by, and the wall's; both in milliseconds."""

    def __init__(self) -> None:
        self.lease = 5_000_000
        self.wall = 1_700_000_000_000

    def date(self) -> float:
        return self.wall / 1000

    def leases(self) -> int:
        return self.lease


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


@pytest.fixture
async def stores(tmp_path: Path, clocks: Clocks) -> AsyncIterator[SqliteStores]:
    async with aclosing(await open_sqlite(tmp_path, chain_items=100, leases=clocks.leases)) as opened:
        yield opened


@pytest.fixture
async def vectors(tmp_path: Path, clocks: Clocks) -> AsyncIterator[SqliteVectorDatabase]:
    async with aclosing(await open_vector_database(tmp_path, clock=clocks.date, leases=clocks.leases)) as opened:
        yield opened


# Jobs


async def _claimed(stores: SqliteStores, worker: str, seconds: float = 10.0, limit: int = 9) -> list[str]:
    return [job.response_id for job in await stores.background.claim(worker, seconds, limit)]


@pytest.mark.parametrize(("off", "come"), MOMENTS)
async def test_a_job_is_free_when_its_lease_is_over(stores: SqliteStores, clocks: Clocks, off: int, come: bool) -> None:
    jobs = stores.background
    await jobs.enqueue(queued("a"), b"{}", None, limit=MOST)
    assert await _claimed(stores, ONE) == ["resp_a"]
    clocks.lease += 10 * SECOND + off
    assert (await _claimed(stores, TWO) == ["resp_a"]) is come


@pytest.mark.parametrize(("off", "come"), MOMENTS)
async def test_a_renewed_job_is_held_from_then_on(stores: SqliteStores, clocks: Clocks, off: int, come: bool) -> None:
    await stores.background.enqueue(queued("a"), b"{}", None, limit=MOST)
    await _claimed(stores, ONE)
    clocks.lease += 4 * SECOND
    assert await stores.background.renew(ONE, ["resp_a"], 10.0) == {"resp_a"}
    clocks.lease += 10 * SECOND + off
    assert (await _claimed(stores, TWO) == ["resp_a"]) is come


@pytest.mark.parametrize("attempted", [True, False])
@pytest.mark.parametrize(("off", "come"), MOMENTS)
async def test_a_job_that_was_given_back_waits(
    stores: SqliteStores, clocks: Clocks, off: int, come: bool, attempted: bool
) -> None:
    await stores.background.enqueue(queued("a"), b"{}", None, limit=MOST)
    await _claimed(stores, ONE)
    await stores.background.release(ONE, "resp_a", pause=3.0, attempted=attempted)
    clocks.lease += 3 * SECOND + off
    found = await stores.background.claim(TWO, 10.0, 9)
    assert [job.attempts for job in found] == ([1 + attempted] if come else [])


async def test_what_is_claimed_and_what_is_not(stores: SqliteStores, clocks: Clocks) -> None:
    """At most so many, those first whose holders are gone, then by turns; what is not claimed stays queued."""
    jobs = stores.background
    for number, name in enumerate("abcdef"):
        waiting = replace(queued(name), created_at=float(number))
        await jobs.enqueue(waiting, b"{}", None, limit=MOST)
    assert await _claimed(stores, ONE, limit=2) == ["resp_a", "resp_b"]
    for name, status in (("a", "in_progress"), ("b", "in_progress"), ("c", "queued"), ("f", "queued")):
        found = await stores.responses.get(ALICE, f"resp_{name}")
        assert found is not None and found.status == status
    clocks.lease += 10 * SECOND
    # Of what ONE held it runs one still, and does not take that over from itself.
    again = await jobs.claim(ONE, 10.0, 1, ["resp_a"])
    assert [(job.response_id, job.attempts) for job in again] == [("resp_b", 2)]
    assert await _claimed(stores, TWO, limit=3) == ["resp_a", "resp_c", "resp_d"]
    assert await jobs.held(TWO) == {"resp_a", "resp_c", "resp_d"}
    assert await _claimed(stores, ONE, limit=9) == ["resp_b", "resp_e", "resp_f"]


async def test_nothing_is_written_where_nothing_can_be_claimed(
    stores: SqliteStores, vectors: SqliteVectorDatabase, clocks: Clocks
) -> None:
    await stores.background.enqueue(queued("a"), b"{}", None, limit=MOST)
    await _claimed(stores, ONE)
    written = [stores.tables.groups, vectors.tables.groups]
    assert await _claimed(stores, TWO) == [] == await vectors.ingestion.claim(["c1"], 10.0)
    assert [stores.tables.groups, vectors.tables.groups] == written


async def test_a_jobs_events_are_those_of_its_attempt(stores: SqliteStores, clocks: Clocks) -> None:
    """What was written when it was queued stays; a new attempt that begins anew drops what the last one wrote."""
    jobs = stores.background
    for name in ("a", "b"):
        await jobs.enqueue(queued(name), b"{}", piece(0, 0), limit=MOST)
    await _claimed(stores, ONE)
    for name in ("a", "b"):
        assert await jobs.append(ONE, f"resp_{name}", piece(1, 2))
    clocks.lease += 10 * SECOND
    assert await _claimed(stores, TWO) == ["resp_a", "resp_b"]
    # The same numbers as before: of another attempt nothing is taken back.
    assert await jobs.append(TWO, "resp_a", piece(3, 3))
    assert await jobs.append(TWO, "resp_a", piece(3, 4), restart=True)
    assert await jobs.append(TWO, "resp_b", piece(3, 3))
    found = {}
    for name in ("a", "b"):
        page = await jobs.events(ALICE, f"resp_{name}", -1, 10)
        assert page is not None
        found[name] = [(one.first, one.last) for one in page.pieces]
    assert found == {"a": [(0, 0), (3, 4)], "b": [(0, 0), (1, 2), (3, 3)]}


@pytest.mark.parametrize(
    ("worker", "last", "ends"), [(None, 2, True), (ONE, 2, True), (TWO, 2, False), (None, 1, False), (None, 3, False)]
)
async def test_who_may_end_a_response(
    stores: SqliteStores, clocks: Clocks, worker: str | None, last: int, ends: bool
) -> None:
    jobs = stores.background
    await jobs.enqueue(queued("a"), b"{}", piece(0, 2), limit=MOST)
    await jobs.enqueue(queued("b"), b"{}", None, limit=MOST)
    await _claimed(stores, ONE)
    ending = JobEnd("resp_a", "cancelled", b'{"status":"cancelled"}', (item("msg_1"),), last, piece(3, 3), worker)
    assert await jobs.end(ending) == (EndedJob("in_progress") if ends else None)
    assert await jobs.held(ONE) == ({"resp_b"} if ends else {"resp_a", "resp_b"})
    page, found = await jobs.events(ALICE, "resp_a", 2, 9), await stores.responses.get(ALICE, "resp_a")
    assert page is not None and bool(page.pieces) is ends
    assert found is not None and (found.status, len(found.output_items)) == (
        ("cancelled", 1) if ends else ("in_progress", 0)
    )
    without = JobEnd("resp_b", "cancelled", b"{}", (), -1, None, None)
    assert await jobs.end(without) and not await jobs.end(without)


# ConversationStore


@pytest.mark.parametrize(("off", "come"), MOMENTS)
async def test_a_conversation_is_free_when_its_lock_is_over(
    stores: SqliteStores, clocks: Clocks, off: int, come: bool
) -> None:
    kept = stores.conversations
    for name in ("conv_a", "conv_b", "conv_c", "conv_d"):
        await kept.create(ALICE, name, b"{}", [item("msg_1")])
        assert await kept.load(ALICE, name, holder=f"resp_{name}", seconds=10.0) is not None
    clocks.lease += 5 * SECOND
    holders = [f"resp_{name}" for name in ("conv_a", "conv_b", "conv_c", "conv_d")]
    assert await kept.renew([*holders, "resp_none"], 10.0) == set(holders)
    clocks.lease += 10 * SECOND + off
    for changed in (
        kept.load(ALICE, "conv_a", holder="resp_next", seconds=1.0),
        kept.add_items(ALICE, "conv_b", [item("msg_2")]),
        kept.delete_item(ALICE, "conv_c", "msg_1"),
        kept.delete(ALICE, "conv_d"),
    ):
        if come:
            assert await changed
        else:
            with pytest.raises(ConversationLocked):
                await changed
    # Whoever has the lock may come again, and none that reads is kept out.
    assert bool(await kept.load(ALICE, "conv_b", holder="resp_conv_b", seconds=1.0))
    assert await kept.get(ALICE, "conv_a") is not None and await kept.get(ALICE, "conv_none") is None


# Keys of requests


def _once(key: str = "k", fingerprint: str = "f", owner: str = ALICE) -> OnceOnly:
    return OnceOnly(owner, key, fingerprint)


@pytest.mark.parametrize(("off", "come"), MOMENTS)
async def test_a_claimed_key_is_free_when_its_lease_is_over(
    stores: SqliteStores, clocks: Clocks, off: int, come: bool
) -> None:
    keys = IdempotencyStore(stores.tables, clock=clocks.date)
    for key in ("k", "other"):
        assert await keys.claim(_once(key), f"resp_{key}", 10.0) is None
    clocks.lease += 5 * SECOND
    assert await keys.renew(["resp_k", "resp_none"], 10.0) == {"resp_k"}
    clocks.lease += 10 * SECOND + off
    # As long as it is held nothing but the lease ends it.
    clocks.wall += 10**12
    if come:
        assert await keys.claim(_once(fingerprint="else"), "resp_b", 10.0) is None
        assert await keys.renew(["resp_k", "resp_b"], 10.0) == {"resp_b"}
    else:
        with pytest.raises(ApiError):
            await keys.claim(_once(), "resp_b", 10.0)
    assert await keys.claim(_once(owner=BOB), "resp_c", 10.0) is None


@pytest.mark.parametrize(("off", "come"), MOMENTS)
async def test_a_key_is_remembered_for_so_long(stores: SqliteStores, clocks: Clocks, off: int, come: bool) -> None:
    keys = IdempotencyStore(stores.tables, keep=60.0, clock=clocks.date)
    await keys.make(_once(), "conv_a", [], [])
    assert await keys.made(_once()) == "conv_a" and await keys.made(_once(fingerprint="else")) is None
    assert await keys.made(_once(owner=BOB)) is None and await keys.made(_once("other")) is None
    assert await keys.renew(["conv_a"], 10.0) == frozenset()  # it is no lease any more
    clocks.wall += 60 * SECOND + off
    assert (await keys.made(_once()) is None) is come
    if come:
        await keys.make(_once(fingerprint="else"), "conv_b", [], [])
        assert await keys.made(_once(fingerprint="else")) == "conv_b"
    else:
        with pytest.raises(ApiError):
            await keys.make(_once(fingerprint="else"), "conv_b", [], [])


@pytest.mark.parametrize(("off", "come"), MOMENTS)
async def test_keys_are_swept_when_they_are_over(stores: SqliteStores, clocks: Clocks, off: int, come: bool) -> None:
    keys = IdempotencyStore(stores.tables, keep=60.0, clock=clocks.date)
    await keys.make(_once(), "conv_a", [], [])
    clocks.wall += 1
    await keys.make(_once("later"), "conv_b", [], [])
    assert await keys.claim(_once("held"), "resp_a", 10.0) is None
    clocks.wall += 60 * SECOND - 1 + off
    assert await keys.sweep() == (int(come) + (off > 0),)
    assert await keys.made(_once("later")) == (None if off > 0 else "conv_b")
    assert await keys.renew(["resp_a"], 10.0) == {"resp_a"}


async def test_only_who_holds_a_key_gives_it_back(stores: SqliteStores, clocks: Clocks) -> None:
    keys = IdempotencyStore(stores.tables, clock=clocks.date)
    assert await keys.claim(_once(), "resp_a", 10.0) is None
    for once, holder in ((_once(), "resp_b"), (_once("other"), "resp_a"), (_once(owner=BOB), "resp_a")):
        await keys.release(once, holder)
    assert await keys.renew(["resp_a"], 10.0) == {"resp_a"}
    await keys.release(_once(), "resp_a")
    assert await keys.renew(["resp_a"], 10.0) == frozenset()
    await keys.make(_once(), "conv_a", [], [])
    await keys.release(_once(), "conv_a")  # it is bound, and no lease
    assert await keys.made(_once()) == "conv_a"


@pytest.mark.parametrize("there", [0, 1, 2, 3, 4])
async def test_keys_are_swept_piece_by_piece(stores: SqliteStores, clocks: Clocks, there: int) -> None:
    keys = IdempotencyStore(stores.tables, keep=1.0, clock=clocks.date, piece=2)
    for number in range(there):
        await keys.make(_once(f"k{number}"), f"conv_{number}", [], [])
    clocks.wall += 2 * SECOND
    assert await keys.sweep() == (there,) and await keys.sweep() == (0,)


# FileStore


def _files(stores: SqliteStores, folder: Path, clocks: Clocks) -> FileStore:
    return files_of(stores, DiskBlobs(folder / "files"), clock=clocks.date)


@pytest.mark.parametrize(("off", "come"), MOMENTS)
async def test_a_file_is_gone_when_it_expires(
    stores: SqliteStores, tmp_path: Path, clocks: Clocks, off: int, come: bool
) -> None:
    async with aclosing(_files(stores, tmp_path, clocks)) as files:
        for name, expires in (("a", clocks.date() + 60), ("b", None)):
            async with files.uploading() as upload:
                await upload.keep(ALICE, FileFields(f"file-{name}", name, "p", "t", clocks.date(), expires))
        clocks.wall += 60 * SECOND + off
        assert (await files.get(ALICE, "file-a") is None) is come
        page = await files.list(ALICE, FileQuery())
        assert page is not None and [one.id for one in page.items] == (["file-b"] if come else ["file-b", "file-a"])
        expired: list[tuple[str, str]] = []

        async def note(owner: str, file_id: str) -> None:
            expired.append((owner, file_id))

        files.on_expired = note
        assert await files.sweep() == (int(come), 0)
        assert expired == ([(ALICE, "file-a")] if come else [])
        assert await files.delete(ALICE, "file-a") is not come and await files.delete(ALICE, "file-b")
        assert list((tmp_path / "files").glob("??/??/*")) == []


# What is ingested


@pytest.mark.parametrize(("off", "come"), MOMENTS)
async def test_a_file_to_ingest_is_free_when_its_lease_is_over(
    vectors: SqliteVectorDatabase, clocks: Clocks, off: int, come: bool
) -> None:
    await vectors.stores.create(
        ALICE, "vs_1", name=None, description=None, metadata=b"{}", expires_days=None, files=[NewFile("f", "a.txt")]
    )
    (job,) = await vectors.ingestion.claim(["c1"], 10.0)
    clocks.lease += 5 * SECOND
    assert await vectors.ingestion.renew(["c1", "none"], 10.0) == {"c1"}
    clocks.lease += 10 * SECOND + off
    again = await vectors.ingestion.claim(["c2"], 10.0)
    assert [one.attempts for one in again] == ([2] if come else [])
    if come:
        await vectors.ingestion.release(again[0], pause=3.0, attempted=False)
        clocks.lease += 3 * SECOND - 1
        assert await vectors.ingestion.claim(["c3"], 10.0) == []
        clocks.lease += 1
        (third,) = await vectors.ingestion.claim(["c3"], 10.0)
        assert third.attempts == 2 and third.number != job.number


async def test_a_first_attempt_counts_even_when_it_was_none(vectors: SqliteVectorDatabase, clocks: Clocks) -> None:
    """Else the next claim would keep its number, and with it what this one wrote."""
    await vectors.stores.create(
        ALICE, "vs_1", name=None, description=None, metadata=b"{}", expires_days=None, files=[NewFile("f", "a.txt")]
    )
    attempts, numbers = [], set()
    for _ in range(3):
        (job,) = await vectors.ingestion.claim(["c1"], 10.0)
        attempts.append(job.attempts)
        numbers.add(job.number)
        await vectors.ingestion.release(job, attempted=False)
    assert attempts == [1, 2, 2] and len(numbers) == 3


@pytest.mark.parametrize(("off", "written"), [(-1, False), (0, True), (1, True)])
async def test_a_use_is_noted_once_in_a_minute(
    vectors: SqliteVectorDatabase, clocks: Clocks, off: int, written: bool
) -> None:
    for name in ("vs_1", "vs_2"):
        await vectors.stores.create(ALICE, name, name=None, description=None, metadata=b"{}", expires_days=1)
    began = clocks.date()
    # Making it was a use.
    clocks.wall += 60 * SECOND
    await vectors.stores.touch(ALICE, ["vs_1"])
    clocks.wall += 60 * SECOND + off
    await vectors.stores.touch(ALICE, ["vs_1", "vs_2"])
    one, two = await vectors.stores.get(ALICE, "vs_1"), await vectors.stores.get(ALICE, "vs_2")
    assert one is not None and two is not None
    assert one.last_active_at == (clocks.date() if written else began + 60) and two.last_active_at == clocks.date()
    assert one.expires_at == one.last_active_at + 86_400


@pytest.mark.parametrize(("off", "come"), MOMENTS)
async def test_an_expired_store_is_not_used_any_more(
    vectors: SqliteVectorDatabase, clocks: Clocks, off: int, come: bool
) -> None:
    await vectors.stores.create(ALICE, "vs_1", name=None, description=None, metadata=b"{}", expires_days=1)
    clocks.wall += 86_400 * SECOND + off
    (known,) = await vectors.index.known(ALICE, ["vs_1"])
    found = await vectors.stores.get(ALICE, "vs_1")
    assert known.expired is come and found is not None and found.expired is come
    assert await vectors.stores.add_files(ALICE, "vs_1", [NewFile("f", "a.txt")]) is not come
    await vectors.stores.touch(ALICE, ["vs_1"])
    after = await vectors.stores.get(ALICE, "vs_1")
    assert after is not None and (after.last_active_at == clocks.date()) is not come


# Ages


def _retention(stores: SqliteStores, clocks: Clocks, **kept: float) -> Retention:
    given = RetentionSettings.model_validate({"events": None, **kept})
    pieces = SqlitePieces(stores.tables.writer, stores.tables.readers, clocks.date, leases=clocks.leases)
    return Retention(stores.tables, pieces, given)


def _conversations(stores: SqliteStores, clocks: Clocks) -> ConversationStore:
    keys = IdempotencyStore(stores.tables)
    rows = stores.tables
    return ConversationStore(rows, keys, max_items=9, history_bytes=99, page_bytes=99, clock=clocks.date)


@pytest.mark.parametrize(("off", "gone"), [(-1, 0), (0, 0), (1, 1)])
async def test_what_is_older_goes(stores: SqliteStores, clocks: Clocks, off: int, gone: int) -> None:
    """Not what is exactly as old as it may be."""
    at = clocks.date()
    await stores.responses.save(replace(make_record("a"), created_at=at, completed_at=at))
    kept = _conversations(stores, clocks)
    await kept.create(ALICE, "conv_a", b"{}", [item("msg_1")])
    waiting = replace(queued("b"), created_at=at)
    await stores.background.enqueue(waiting, b"{}", piece(0, 1), limit=MOST)
    clocks.wall += 60 * SECOND + off
    swept = _retention(stores, clocks, responses=60.0, conversations=60.0, events=60.0)
    # What runs is not old.
    assert await swept.sweep() == (gone, gone, 0)
    await _claimed(stores, ONE)
    done = replace(finished("b"), created_at=at, completed_at=at)
    assert await stores.background.finish(ONE, done, None)
    events = _retention(stores, clocks, events=60.0)
    assert await events.sweep() == (0, 0, gone) and await events.sweep() == (0, 0, 0)
    assert await _retention(stores, clocks, responses=60.0).sweep() == (gone, 0, 0)


@pytest.mark.parametrize(("off", "come"), MOMENTS)
async def test_a_locked_conversation_is_not_old(stores: SqliteStores, clocks: Clocks, off: int, come: bool) -> None:
    kept = _conversations(stores, clocks)
    await kept.create(ALICE, "conv_a", b"{}")
    assert await kept.load(ALICE, "conv_a", holder="resp_a", seconds=10.0) == ()
    clocks.lease += 10 * SECOND + off
    clocks.wall += 3600 * SECOND
    assert await _retention(stores, clocks, conversations=60.0).sweep() == (0, int(come), 0)


@pytest.mark.parametrize(("off", "come"), MOMENTS)
async def test_a_turn_of_sweeping_lasts_for_so_long(stores: SqliteStores, clocks: Clocks, off: int, come: bool) -> None:
    assert await stores.retention.take_turn("files", 10.0)
    clocks.lease += 10 * SECOND + off
    assert await stores.retention.take_turn("files", 10.0) is come
    assert await stores.retention.take_turn("keys", 10.0) and not await stores.retention.take_turn("keys", 0.0)
