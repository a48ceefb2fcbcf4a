"""What a connection remembers: chains over the store, a bound, nothing at rest."""

from __future__ import annotations

import pytest

from antiphon.engine.ports.actions import ResponseRecord, StoredItem
from antiphon.engine.running.connection_memory import ConnectionMemory
from tests.support.memory_store import MemoryResponseStore


def _record(name: str, previous: str | None = None, *, text: str = "") -> ResponseRecord:
    return ResponseRecord(
        id=name,
        owner="me",
        previous_response_id=previous,
        status="completed",
        model="m",
        created_at=0.0,
        completed_at=0.0,
        body=b"{}",
        input_items=(StoredItem(f"in_{name}", "message", text.encode()),),
        output_items=(StoredItem(f"out_{name}", "message", b"o"),),
    )


@pytest.fixture
def store() -> MemoryResponseStore:
    return MemoryResponseStore()


async def _chain(memory: ConnectionMemory, name: str) -> list[str] | None:
    chain = await memory.load_chain("me", name)
    return None if chain is None else [item.id for item in chain.items]


async def test_chains_of_what_is_remembered(store: MemoryResponseStore) -> None:
    memory = ConnectionMemory(store, max_bytes=1000)
    memory.keep(_record("a"))
    memory.keep(_record("b", "a"))
    memory.keep(_record("c", "a"))
    assert await _chain(memory, "b") == ["in_a", "out_a", "in_b", "out_b"]
    assert await _chain(memory, "c") == ["in_a", "out_a", "in_c", "out_c"]
    assert await _chain(memory, "d") is None
    assert store.records == {} and "a" in memory and None not in memory
    memory.shed()
    assert await _chain(memory, "a") is None


async def test_chains_that_rest_on_the_store(store: MemoryResponseStore) -> None:
    memory = ConnectionMemory(store, max_bytes=1000)
    await memory.save(_record("a"))
    memory.keep(_record("b", "a"))
    memory.keep(_record("c", "b"))
    assert await _chain(memory, "a") == ["in_a", "out_a"]
    assert await _chain(memory, "c") == ["in_a", "out_a", "in_b", "out_b", "in_c", "out_c"]
    await store.delete("me", "a")
    assert await _chain(memory, "c") is None


async def test_a_forgotten_turn_leaves_those_after_it(store: MemoryResponseStore) -> None:
    memory = ConnectionMemory(store, max_bytes=1000)
    memory.keep(_record("a"))
    memory.keep(_record("b", "a"))
    memory.forget("a")
    memory.forget("a")
    memory.forget(None)
    assert await _chain(memory, "a") is None
    assert await _chain(memory, "b") == ["in_a", "out_a", "in_b", "out_b"]


async def test_the_oldest_go_first(store: MemoryResponseStore) -> None:
    memory = ConnectionMemory(store, max_bytes=250)
    memory.keep(_record("a", text="x" * 99))
    memory.keep(_record("b", text="x" * 99))
    assert "a" in memory and "b" in memory
    memory.keep(_record("c", text="x" * 99))
    assert "a" not in memory and "b" in memory and "c" in memory
    # One that is larger than all there may be is not kept, and takes nothing with it that it need not.
    memory.keep(_record("d", text="x" * 300))
    assert "d" not in memory and "b" in memory and "c" in memory
    memory.keep(_record("e", text="x" * 200))
    assert await _chain(memory, "e") == ["in_e", "out_e"]


async def test_never_more_than_a_few(store: MemoryResponseStore) -> None:
    memory = ConnectionMemory(store, max_bytes=1 << 20)
    for number in range(40):
        memory.keep(_record(f"r{number}"))
    assert [number for number in range(40) if f"r{number}" in memory] == list(range(24, 40))


async def test_items_of_both(store: MemoryResponseStore) -> None:
    memory = ConnectionMemory(store, max_bytes=1000)
    await memory.save(_record("a"))
    memory.keep(_record("b"))
    assert set(await memory.load_items("me", ("in_a", "out_b", "nobody"))) == {"in_a", "out_b"}
