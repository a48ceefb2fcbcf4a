"""Tests conversations on SQLite with two concurrent processes."""

from __future__ import annotations

import asyncio

from antiphon.errors import ConversationLocked
from antiphon.stores.sqlite.backend import SqliteStores
from tests.contracts.conversation_contract import LONG, NO_METADATA, in_conversation
from tests.contracts.store_contract import ALICE
from tests.contracts.store_process import ProcessStores, StoreProcess


async def test_turns_of_both_processes_never_mix(stores: SqliteStores, open_process: StoreProcess) -> None:
    """Each process takes the lock, saves, and finds the other's earlier turns. A refused attempt is repeated."""
    store, peer = stores.conversations, ProcessStores(open_process).conversations
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
                await stores.responses.save(saved)
            else:
                await open_process.call("responses.save", saved)

    await asyncio.gather(take_turns("here", True), take_turns("there", False))
    loaded = await store.load(ALICE, "conv_a")
    assert loaded is not None and len(loaded) == 240
    for n in range(0, 240, 3):
        assert len({each.id.rpartition("_")[0] for each in loaded[n : n + 3]}) == 1
