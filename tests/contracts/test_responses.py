"""Runs the contract of responses on every state."""

from __future__ import annotations

import pytest

from antiphon.stores import Stores
from antiphon.stores.responses import ResponseStore
from tests.contracts.store_contract import ResponseStoreContract


class TestResponses(ResponseStoreContract):
    @pytest.fixture
    def store(self, state: Stores) -> ResponseStore:
        return state.responses

    @pytest.fixture
    def peer(self, peers: Stores) -> ResponseStore:
        return peers.responses
