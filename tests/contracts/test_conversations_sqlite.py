"""The conversation contract on SQLite: one store, two on one file, and a second one in another process."""

from __future__ import annotations

import asyncio

import pytest

from antiphon.engine.ports.state import ConversationStore, ResponseStore
from antiphon.errors import ConversationLocked
from antiphon.stores.sqlite.opening import SqliteStores
from tests.contracts.conversation_contract import LONG, NO_METADATA, ConversationStoreContract, in_conversation
from tests.contracts.store_contract import ALICE
from tests.contracts.store_process import ProcessPart, StoreProcess


class _OnSqlite(ConversationStoreContract):
    @pytest.fixture
    def store(self, stores: SqliteStores) -> ConversationStore:
        return stores.conversations

    @pytest.fixture
    def responses(self, stores: SqliteStores) -> ResponseStore:
        return stores.responses


class TestSqliteConversations(_OnSqlite):
    @pytest.fixture
    def peer(self, store: ConversationStore) -> ConversationStore:
        return store


class TestTwoSqliteStoresOfConversations(_OnSqlite):
    @pytest.fixture
    def peer(self, other_stores: SqliteStores) -> ConversationStore:
        return other_stores.conversations


class TestSqliteConversationsInTwoProcesses(_OnSqlite):
    @pytest.fixture
    def peer(self, open_process: StoreProcess) -> ProcessPart:
        return ProcessPart(open_process, "conversations")

    async def test_turns_of_both_processes_never_mix(
        self, store: ConversationStore, responses: ResponseStore, peer: ProcessPart, process: StoreProcess
    ) -> None:
        """Each takes the lock, saves, and finds what the other saved before it; a refused try is repeated."""
        await store.create(ALICE, "conv_a", NO_METADATA)

        async def take_turns(where: str, here: bool) -> None:
            for n in range(40):
                saved = in_conversation(f"{where}{n}")
                while True:
                    try:
                        found = await (store if here else peer).load(ALICE, "conv_a", holder=saved.id, seconds=LONG)
                    except ConversationLocked:
                        continue
                    break
                assert found is not None and len(found) % 3 == 0
                if here:
                    await responses.save(saved)
                else:
                    await process.call("save", saved)

        await asyncio.gather(take_turns("here", True), take_turns("there", False))
        loaded = await store.load(ALICE, "conv_a")
        assert loaded is not None and len(loaded) == 240
        for n in range(0, 240, 3):
            assert len({each.id.rpartition("_")[0] for each in loaded[n : n + 3]}) == 1
