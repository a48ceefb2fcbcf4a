"""Runs the contract of keys on PostgreSQL: with one store, and with two on one database, directly and behind
pgbouncer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from antiphon.engine.ports.actions import OnceOnly
from antiphon.stores.idempotency import IdempotencyStore
from antiphon.stores.postgres.database import Database
from antiphon.stores.postgres.tables import PostgresTables
from tests.contracts.key_contract import ONCE, IdempotencyContract
from tests.contracts.store_contract import ALICE
from tests.support.postgres import PATIENT

# The shared contracts already test PostgreSQL in the quick tier.
pytestmark = pytest.mark.full


class _OnPostgres(IdempotencyContract):
    @pytest.fixture
    async def database(self, postgres_url: str) -> AsyncIterator[Database]:
        async with aclosing(Database(postgres_url, PATIENT)) as database:
            yield database

    @pytest.fixture
    def keys(self, database: Database) -> IdempotencyStore:
        return IdempotencyStore(PostgresTables(database))

    async def bind(self, keys: IdempotencyStore, once: OnceOnly, object_id: str) -> None:
        assert isinstance(keys, IdempotencyStore)
        await keys.make(once, object_id, [], [])


class TestPostgresKeys(_OnPostgres):
    @pytest.fixture
    def peer(self, keys: IdempotencyStore) -> IdempotencyStore:
        return keys

    async def test_a_key_is_forgotten_when_its_time_is_over(self, database: Database) -> None:
        keys = IdempotencyStore(PostgresTables(database), keep=0)
        await self.bind(keys, ONCE, "conv_1")
        assert await keys.made(ONCE) is None
        await self.bind(keys, ONCE, "conv_2")
        assert await keys.sweep() == (1,)
        assert await database.fetch("SELECT 1 FROM idempotency") == []

    async def test_nothing_that_counts_is_swept(self, database: Database) -> None:
        keys = IdempotencyStore(PostgresTables(database))
        await self.bind(keys, ONCE, "conv_1")
        await keys.claim(OnceOnly(ALICE, "held", "f"), "resp_1", 1000)
        assert await keys.sweep() == (0,)
        assert await keys.made(ONCE) == "conv_1" and await keys.renew(["resp_1"], 1000) == {"resp_1"}


class TestTwoPostgresStoresOfKeys(_OnPostgres):
    @pytest.fixture
    async def peer(self, postgres_url: str) -> AsyncIterator[IdempotencyStore]:
        async with aclosing(Database(postgres_url, PATIENT)) as database:
            yield IdempotencyStore(PostgresTables(database))
