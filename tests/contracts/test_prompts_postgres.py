"""Runs the contract of prompts on PostgreSQL: with one store, and with two on one database, directly and behind
pgbouncer.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from antiphon.stores.idempotency import IdempotencyStore
from antiphon.stores.postgres.database import Database
from antiphon.stores.postgres.tables import PostgresTables
from antiphon.stores.prompts import PromptStore
from tests.contracts.test_prompt_store import PromptStoreContract
from tests.support.postgres import PATIENT

# The shared contracts already test PostgreSQL in the quick tier.
pytestmark = pytest.mark.full


def _store(database: Database) -> PromptStore:
    tables = PostgresTables(database)
    return PromptStore(tables, IdempotencyStore(tables), page_bytes=1 << 24)


class _OnPostgres(PromptStoreContract):
    @pytest.fixture
    async def store(self, postgres_url: str) -> AsyncIterator[PromptStore]:
        async with aclosing(Database(postgres_url, PATIENT)) as database:
            yield _store(database)


class TestPostgresPrompts(_OnPostgres):
    @pytest.fixture
    def peer(self, store: PromptStore) -> PromptStore:
        return store


class TestTwoPostgresStoresOfPrompts(_OnPostgres):
    @pytest.fixture
    async def peer(self, store: PromptStore, postgres_url: str) -> AsyncIterator[PromptStore]:
        async with aclosing(Database(postgres_url, PATIENT)) as database:
            yield _store(database)
