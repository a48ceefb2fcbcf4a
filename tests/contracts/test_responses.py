"""The contract of responses on every state."""

from __future__ import annotations

import pytest

from antiphon.engine.ports.state import ResponseStore
from antiphon.stores import Stores
from tests.contracts.store_contract import ResponseStoreContract


class TestResponses(ResponseStoreContract):
    @pytest.fixture
    def store(self, state: Stores) -> ResponseStore:
        return state.responses

    @pytest.fixture
    def peer(self, peers: Stores) -> ResponseStore:
        return peers.responses
