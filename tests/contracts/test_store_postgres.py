"""Runs the response contract behind pgbouncer: with one store, and with two on one database.

`test_responses.py` runs the contract directly on PostgreSQL.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from antiphon.engine.ports.state import PageQuery
from antiphon.errors import StoreError
from antiphon.stores.responses import ResponseStore
from tests.contracts.store_contract import ALICE, ResponseStoreContract, record
from tests.support.postgres_stores import TurnStores, turn_stores


@pytest.mark.parametrize("postgres_url", [pytest.param("pgbouncer", marks=pytest.mark.full)], indirect=True)
class _OnPostgres(ResponseStoreContract):
    @pytest.fixture
    async def opened(self, postgres_url: str) -> AsyncIterator[TurnStores]:
        async with aclosing(turn_stores(postgres_url)) as opened:
            yield opened

    @pytest.fixture
    def store(self, opened: TurnStores) -> ResponseStore:
        return opened.responses


class TestPostgresStore(_OnPostgres):
    @pytest.fixture
    def peer(self, store: ResponseStore) -> ResponseStore:
        return store

    async def test_closed_stores_refuse_and_may_be_closed_again(self, opened: TurnStores) -> None:
        store = opened.responses
        await store.save(record("a"))
        await opened.aclose()
        await opened.aclose()
        for call in (
            store.save(record("b")),
            store.get(ALICE, "resp_a"),
            store.load_chain(ALICE, "resp_a"),
            store.load_items(ALICE, ("msg_a_in0",)),
            store.input_items(ALICE, "resp_a", PageQuery()),
            store.delete(ALICE, "resp_a"),
            store.ping(),
        ):
            with pytest.raises(StoreError):
                await call


class TestTwoPostgresStores(_OnPostgres):
    @pytest.fixture
    async def peer(self, opened: TurnStores, postgres_url: str) -> AsyncIterator[ResponseStore]:
        async with aclosing(turn_stores(postgres_url)) as other:
            yield other.responses
