"""The conversation contract on PostgreSQL: one store, and two on one database, directly and behind pgbouncer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from antiphon.engine.ports.state import ConversationStore, ResponseStore
from antiphon.stores.postgres.conversations import PostgresConversationStore
from antiphon.stores.postgres.database import Database
from antiphon.stores.postgres.idempotency import PostgresIdempotency
from tests.contracts.conversation_contract import ConversationStoreContract
from tests.contracts.store_contract import CHAIN_ITEMS


def _store(database: Database) -> PostgresConversationStore:
    return PostgresConversationStore(
        database, keys=PostgresIdempotency(database), max_items=CHAIN_ITEMS, history_bytes=1 << 26, page_bytes=1 << 24
    )


class _OnPostgres(ConversationStoreContract):
    @pytest.fixture
    async def store(self, postgres_url: str) -> AsyncIterator[ConversationStore]:
        async with aclosing(Database(postgres_url)) as database:
            yield _store(database)

    @pytest.fixture
    def responses(self) -> ResponseStore:
        pytest.skip("responses on PostgreSQL come with a later change")


class TestPostgresConversations(_OnPostgres):
    @pytest.fixture
    def peer(self, store: ConversationStore) -> ConversationStore:
        return store


class TestTwoPostgresStoresOfConversations(_OnPostgres):
    @pytest.fixture
    async def peer(self, store: ConversationStore, postgres_url: str) -> AsyncIterator[ConversationStore]:
        async with aclosing(Database(postgres_url)) as database:
            yield _store(database)
