"""Runs the contract of keys on SQLite: with one store, and with two on one file."""

from __future__ import annotations

import pytest

from antiphon.engine.ports.actions import OnceOnly
from antiphon.stores import Stores
from antiphon.stores.idempotency import IdempotencyStore
from tests.contracts.key_contract import IdempotencyContract


class _OnSqlite(IdempotencyContract):
    @pytest.fixture
    def keys(self, stores: Stores) -> IdempotencyStore:
        return stores.keys

    async def bind(self, keys: IdempotencyStore, once: OnceOnly, object_id: str) -> None:
        assert isinstance(keys, IdempotencyStore)
        await keys.make(once, object_id, [], [])


class TestSqliteKeys(_OnSqlite):
    @pytest.fixture
    def peer(self, keys: IdempotencyStore) -> IdempotencyStore:
        return keys


class TestTwoSqliteStoresOfKeys(_OnSqlite):
    @pytest.fixture
    def peer(self, other_stores: Stores) -> IdempotencyStore:
        return other_stores.keys
