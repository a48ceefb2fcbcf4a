"""Runs the conversation contract behind pgbouncer: with one store, and with two on one database.

`test_conversations.py` runs the contract directly on PostgreSQL.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from antiphon.stores.conversations import ConversationStore
from antiphon.stores.postgres.tables import PostgresTables
from antiphon.stores.responses import ResponseStore
from tests.contracts.conversation_contract import ConversationStoreContract
from tests.contracts.store_contract import CHAIN_ITEMS
from tests.support.postgres_stores import TurnStores, turn_stores


def _store(stores: TurnStores) -> ConversationStore:
    return ConversationStore(
        PostgresTables(stores.database),
        stores.keys,
        max_items=CHAIN_ITEMS,
        history_bytes=1 << 26,
        page_bytes=1 << 24,
    )


@pytest.mark.parametrize("postgres_url", [pytest.param("pgbouncer", marks=pytest.mark.full)], indirect=True)
class _OnPostgres(ConversationStoreContract):
    @pytest.fixture
    async def stores(self, postgres_url: str) -> AsyncIterator[TurnStores]:
        async with aclosing(turn_stores(postgres_url, chain_items=CHAIN_ITEMS)) as opened:
            yield opened

    @pytest.fixture
    def store(self, stores: TurnStores) -> ConversationStore:
        return _store(stores)

    @pytest.fixture
    def responses(self, stores: TurnStores) -> ResponseStore:
        return stores.responses


class TestPostgresConversations(_OnPostgres):
    @pytest.fixture
    def peer(self, store: ConversationStore) -> ConversationStore:
        return store


class TestTwoPostgresStoresOfConversations(_OnPostgres):
    @pytest.fixture
    async def peer(self, store: ConversationStore, postgres_url: str) -> AsyncIterator[ConversationStore]:
        async with aclosing(turn_stores(postgres_url, chain_items=CHAIN_ITEMS)) as opened:
            yield _store(opened)
