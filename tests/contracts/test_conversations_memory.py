"""Runs the conversation contract on the store in memory that other tests use."""

from __future__ import annotations

import time

import pytest

from tests.contracts.conversation_contract import ConversationStoreContract
from tests.contracts.store_contract import CHAIN_ITEMS
from tests.support.memory_conversations import MemoryConversationStore
from tests.support.memory_store import MemoryResponseStore


class TestMemoryConversations(ConversationStoreContract):
    @pytest.fixture
    def store(self) -> MemoryConversationStore:
        return MemoryConversationStore(max_items=CHAIN_ITEMS, clock=time.time)

    @pytest.fixture
    def responses(self, store: MemoryConversationStore) -> MemoryResponseStore:
        return MemoryResponseStore(chain_items=CHAIN_ITEMS, conversations=store)

    @pytest.fixture
    def peer(self, store: MemoryConversationStore) -> MemoryConversationStore:
        return store
