"""Runs the contract of vector stores on PostgreSQL: with one process and two, directly and behind pgbouncer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from antiphon.stores.idempotency import IdempotencyStore
from antiphon.stores.postgres.backend import PostgresVectorDatabase, open_vectors
from antiphon.stores.postgres.database import Database
from antiphon.stores.postgres.tables import PostgresTables
from tests.contracts.vector_store_contract import VectorStoreContract
from tests.support.postgres import PATIENT

# The shared contracts already test PostgreSQL in the quick tier.
pytestmark = pytest.mark.full

# To simulate that time passes, the statements move all stored times into the past.
PASSES = (
    "UPDATE vector_stores SET created_at = created_at - $1, last_active_at = last_active_at - $1, "
    "expires_at = expires_at - $1",
    "UPDATE vector_files SET created_at = created_at - $1, lease_until = lease_until - $1 * interval '1 ms'",
)


class PostgresWorld:
    """A `World` that moves dates in the database and reads its tables."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def now(self) -> float:
        return float((await self._database.fetch("SELECT unix_ms() / 1000.0"))[0][0])

    async def passes(self, seconds: float) -> None:
        for sql in PASSES:
            await self._database.write(sql, round(seconds * 1000))

    async def count(self, table: str) -> int:
        return int((await self._database.fetch(f"SELECT count(*) FROM {table}"))[0][0])


def opened(database: Database, url: str) -> PostgresVectorDatabase:
    return open_vectors(database, IdempotencyStore(PostgresTables(database)), direct_url=url)


@pytest.fixture
async def database(postgres_url: str) -> AsyncIterator[Database]:
    async with aclosing(Database(postgres_url, PATIENT)) as database:
        yield database


@pytest.fixture
def world(database: Database) -> PostgresWorld:
    return PostgresWorld(database)


@pytest.fixture
async def here(database: Database, postgres_url: str) -> AsyncIterator[PostgresVectorDatabase]:
    async with aclosing(opened(database, postgres_url)) as stores:
        yield stores


@pytest.fixture(params=["the same", pytest.param("another", marks=pytest.mark.full)])
async def there(
    request: pytest.FixtureRequest, here: PostgresVectorDatabase, postgres_url: str
) -> AsyncIterator[PostgresVectorDatabase]:
    """The database object through which the tests read."""
    if request.param == "the same":
        yield here
        return
    async with (
        aclosing(Database(postgres_url, PATIENT)) as database,
        aclosing(opened(database, postgres_url)) as stores,
    ):
        yield stores


class TestPostgresVectorStores(VectorStoreContract):
    pass
