"""Runs the contract of conversations on every state."""

from __future__ import annotations

import pytest

from antiphon.stores import Stores
from antiphon.stores.conversations import ConversationStore
from antiphon.stores.responses import ResponseStore
from tests.contracts.conversation_contract import ConversationStoreContract


class TestConversations(ConversationStoreContract):
    @pytest.fixture
    def store(self, state: Stores) -> ConversationStore:
        return state.conversations

    @pytest.fixture
    def responses(self, state: Stores) -> ResponseStore:
        return state.responses

    @pytest.fixture
    def peer(self, peers: Stores) -> ConversationStore:
        return peers.conversations
