"""Runs the response contract on the store in memory that other tests use."""

from __future__ import annotations

import pytest

from antiphon.stores.responses import ResponseStore
from tests.contracts.store_contract import CHAIN_ITEMS, ResponseStoreContract
from tests.support.memory_store import MemoryResponseStore


class TestMemoryStore(ResponseStoreContract):
    @pytest.fixture
    def store(self) -> ResponseStore:
        return MemoryResponseStore(chain_items=CHAIN_ITEMS)

    @pytest.fixture
    def peer(self, store: ResponseStore) -> ResponseStore:
        return store
