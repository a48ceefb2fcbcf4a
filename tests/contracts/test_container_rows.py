"""Runs the contract of container rows: as records in a data folder, and on PostgreSQL directly and behind pgbouncer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import asyncpg
import pytest

from antiphon.engine.ports.containers import ContainerInUse, ContainerLost, ContainerRows
from antiphon.engine.ports.files import new_blob_key
from antiphon.stores.blobs.pending import PendingRows
from antiphon.stores.postgres.containers import PostgresContainerRows
from antiphon.stores.postgres.database import Database
from antiphon.stores.postgres.tables import PostgresTables
from antiphon.tools.code_interpreter.records import RecordedRows, Records
from tests.contracts.container_contract import ALICE, LEASE, Age, ContainerRowsContract, made, new
from tests.support.postgres import PATIENT


class TestRecords(ContainerRowsContract):
    @pytest.fixture
    def rows(self, tmp_path: Path) -> ContainerRows:
        return RecordedRows(Records(tmp_path))

    @pytest.fixture
    def peer(self, tmp_path: Path) -> ContainerRows:
        """A second instance that acts like another process, because file locks belong to descriptors."""
        return RecordedRows(Records(tmp_path))

    @pytest.fixture
    def age(self, tmp_path: Path) -> Age:
        async def age(container_id: str, seconds: float) -> None:
            row = Records(tmp_path).get(container_id)
            assert row is not None
            row.last_active_at -= seconds
            Records(tmp_path).put(row)

        return age


class TestPostgres(ContainerRowsContract):
    @pytest.fixture
    async def database(self, postgres_url: str) -> AsyncIterator[Database]:
        async with aclosing(Database(postgres_url, PATIENT)) as opened:
            yield opened

    @pytest.fixture
    def rows(self, database: Database) -> ContainerRows:
        return PostgresContainerRows(PostgresTables(database))

    @pytest.fixture
    async def peer(self, postgres_url: str) -> AsyncIterator[ContainerRows]:
        async with aclosing(Database(postgres_url, PATIENT)) as opened:
            yield PostgresContainerRows(PostgresTables(opened))

    @pytest.fixture
    def age(self, database: Database) -> Age:
        async def age(container_id: str, seconds: float) -> None:
            await database.write(
                "UPDATE containers SET last_active_at = last_active_at - make_interval(secs => $2) WHERE id = $1",
                container_id,
                seconds,
            )

        return age

    async def test_a_lease_that_is_over_is_anybodys(
        self, rows: ContainerRows, peer: ContainerRows, database: Database
    ) -> None:
        row = await made(rows)
        held = await rows.take(row.id, "one", LEASE, ALICE)
        assert held is not None
        await database.write("UPDATE containers SET held_until = now() - interval '1 second'")
        # No other call took the container, so its expired lease can be renewed.
        assert await rows.renew(["one"], LEASE) == {"one"}
        with pytest.raises(ContainerInUse):
            await peer.take(row.id, "two", LEASE, ALICE)
        await database.write("UPDATE containers SET held_until = now() - interval '1 second'")
        assert await peer.take(row.id, "two", LEASE, ALICE) is not None
        assert await rows.renew(["one"], LEASE) == frozenset()
        with pytest.raises(ContainerLost):
            await rows.put_back(held, "one")

    async def test_a_content_is_a_rows_or_pending_never_both_or_neither(
        self, rows: ContainerRows, database: Database
    ) -> None:
        pending = PendingRows(PostgresTables(database))
        first, second = new_blob_key(), new_blob_key()
        row = await made(rows)

        async def put_back(came: str, went: list[str], blobs: list[str]) -> None:
            held = await rows.take(row.id, "h", LEASE, ALICE)
            assert held is not None
            held.contents.blobs = dict.fromkeys(blobs, 1)
            await pending.begin(came, 60)
            await rows.put_back(held, "h", came=[came], went=went)

        await put_back(first, [], [first])
        assert not await pending.is_held(first) and list(await pending.taken("", 9)) == []
        await put_back(second, [first], [second])
        assert list(await pending.taken("", 9)) == [first]
        await pending.forget(first)
        held = await rows.take(row.id, "h", LEASE, ALICE)
        assert held is not None and list(held.contents.blobs) == [second]
        await rows.delete(held, "h")
        assert list(await pending.taken("", 9)) == [second]

    async def test_of_a_content_that_a_sweep_took_no_copy_is_made(
        self, rows: ContainerRows, database: Database, postgres_url: str
    ) -> None:
        row = await made(rows)
        pending, key = PendingRows(PostgresTables(database)), new_blob_key()
        await pending.begin(key, 60)
        await database.write("UPDATE pending_blobs SET lease_until = now() - interval '1 second'")
        await pending.take_overdue()
        held = await rows.take(row.id, "h", LEASE, ALICE)
        assert held is not None
        held.runs = 9
        with pytest.raises(ContainerLost):
            await rows.put_back(held, "h", came=[key])
        read = await rows.get(row.id, ALICE)
        assert read is not None and read.runs == 0 and list(await pending.taken("", 9)) == [key]

    async def test_two_that_count_at_once_do_not_both_fit(
        self, rows: ContainerRows, peer: ContainerRows, postgres_url: str
    ) -> None:
        done = await asyncio.gather(
            *((rows, peer)[n % 2].make(new(), f"h{n}", LEASE, limit=3, per_owner=9) for n in range(8)),
            return_exceptions=True,
        )
        assert sum(not isinstance(one, BaseException) for one in done) == 3
        connection = await asyncpg.connect(postgres_url, statement_cache_size=0)
        assert await connection.fetchval("SELECT count(*) FROM containers") == 3
        await connection.close()
