"""What a connection remembers: chains over the store, a bound, nothing at rest."""

from __future__ import annotations

from dataclasses import replace

import pytest

from antiphon.engine.ports.actions import ComparedResponse, ResponseRecord, StoredItem
from antiphon.engine.running.connection_memory import ConnectionMemory, SocketMemory
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


async def test_what_is_only_remembered_has_no_prompt_to_compare(store: MemoryResponseStore) -> None:
    memory = ConnectionMemory(store, max_bytes=1000)
    await memory.save(saved := _record("a"))
    memory.keep(_record("b", "a"))
    assert await memory.load_compared("me", "a") == ComparedResponse(b"{}", saved.input_items, saved.output_items)
    assert await memory.load_compared("me", "b") == ComparedResponse()
    assert await memory.load_compared("me", "c") is await memory.load_compared("you", "a") is None


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


@pytest.mark.parametrize(("size", "kept"), [(99, True), (100, True), (101, False)])
def test_a_response_as_large_as_all_there_may_be_is_kept(store: MemoryResponseStore, size: int, kept: bool) -> None:
    memory = ConnectionMemory(store, max_bytes=100)
    memory.keep(_record("a", text="x" * (size - 1)))
    assert ("a" in memory) is kept


@pytest.mark.parametrize("shared", [None, SocketMemory(1000)], ids=["alone", "beside others"])
@pytest.mark.parametrize(("limit", "left"), [(200, ["a", "b"]), (199, ["b"])])
def test_two_that_fit_exactly_are_kept(
    store: MemoryResponseStore, limit: int, left: list[str], shared: SocketMemory | None
) -> None:
    memory = ConnectionMemory(store, max_bytes=limit, shared=shared)
    for name in ("a", "b"):
        memory.keep(_record(name, text="x" * 99))
    assert [name for name in ("a", "b") if name in memory] == left
    # What went makes room again.
    memory.forget("b")
    memory.keep(_record("c", text="x" * 99))
    assert "c" in memory and ("a" in memory) is ("a" in left)
    memory.shed()


def test_a_turn_of_a_conversation_is_not_remembered(store: MemoryResponseStore) -> None:
    memory = ConnectionMemory(store, max_bytes=1000)
    memory.keep(replace(_record("a"), conversation_id="conv_1"))
    assert "a" not in memory


# What all connections share


def test_room_is_given_to_the_last_byte_and_comes_back() -> None:
    shared = SocketMemory(10)
    assert shared.take(10) and not shared.take(1) and shared.used == 10
    shared.give(1)
    assert shared.take(1) and not shared.take(1)


async def test_the_connection_that_is_idle_for_longest_forgets_first(store: MemoryResponseStore) -> None:
    shared = SocketMemory(300)
    one, two, three = (ConnectionMemory(store, max_bytes=300, shared=shared) for _ in range(3))
    for memory, name in ((one, "a"), (two, "b"), (three, "c")):
        memory.keep(_record(name, text="x" * 99))
    assert shared.used == 300 and "a" in one and "b" in two and "c" in three
    await one.load_chain("me", "a")
    three.keep(_record("d", text="x" * 99))
    assert shared.used == 300 and "a" in one and "b" not in two and "c" in three and "d" in three
    # One that is at work now forgets nothing for it as long as another can.
    three.keep(_record("e", text="x" * 99))
    assert shared.used == 300 and "a" not in one and all(name in three for name in "cde")


def test_to_keep_something_is_to_be_at_work(store: MemoryResponseStore) -> None:
    shared = SocketMemory(300)
    one, two = (ConnectionMemory(store, max_bytes=300, shared=shared) for _ in range(2))
    one.keep(_record("a", text="x" * 49))
    two.keep(_record("b", text="x" * 49))
    one.keep(_record("c", text="x" * 49))
    assert shared.take(200) and "b" not in two and "a" in one and "c" in one


@pytest.mark.parametrize("leaves", [True, False])
def test_one_that_left_is_not_asked_to_forget(store: MemoryResponseStore, leaves: bool) -> None:
    shared = SocketMemory(100)
    memory = ConnectionMemory(store, max_bytes=100, shared=shared)
    memory.keep(_record("a", text="x" * 49))
    if leaves:
        memory.shed()
        assert shared.used == 0
    assert not shared.take(101) and shared.used == 0, "there is nobody left to ask"


def test_alone_it_forgets_its_own_oldest_first(store: MemoryResponseStore) -> None:
    shared = SocketMemory(150)
    memory = ConnectionMemory(store, max_bytes=1000, shared=shared)
    memory.keep(_record("a", text="x" * 49))
    memory.keep(_record("b", text="x" * 49))
    memory.keep(_record("c", text="x" * 99))
    assert "a" not in memory and "b" in memory and "c" in memory and shared.used == 150
    memory.keep(_record("d", text="x" * 150))
    assert "c" not in memory and "d" not in memory and shared.used == 0, "there is no room for it at all"
    memory.keep(_record("e"))
    assert "e" in memory and shared.used == 1
    memory.forget("e")
    assert shared.used == 0
