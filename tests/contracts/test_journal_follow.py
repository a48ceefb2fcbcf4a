"""What `antiphon tail` reads from a journal: each new entry once, and no entry from before its start."""

from __future__ import annotations

from antiphon.commands.journal import Follow
from antiphon.engine.ports.journal import EntryFilter
from antiphon.stores import Stores
from tests.contracts.test_journal import entry, ids


async def test_entries_from_before_the_start_are_never_new(state: Stores) -> None:
    store = state.journal
    await store.add([entry(number, age=60.0 - number) for number in range(30)])
    for lines in (0, 1, 10):
        follow = Follow(store, EntryFilter(), page=4)
        assert ids(await follow.last(lines)) == [f"req_{number}" for number in range(30 - lines, 30)]
        for _ in range(4):
            assert ids(await follow.more()) == []


async def test_an_entry_that_arrives_late_is_new_once(state: Stores) -> None:
    store = state.journal
    await store.add([entry(number, age=20.0 - number / 10) for number in range(30)])
    follow = Follow(store, EntryFilter())
    await follow.last(1)
    await store.add([entry(40, age=18.0)])
    assert ids(await follow.more()) == ["req_40"]
    await store.add([entry(41, age=17.0), entry(42, age=19.0)])
    assert ids(await follow.more()) == ["req_42", "req_41"]
    assert ids(await follow.more()) == [] and follow.left_out == 0


async def test_a_filter_without_entries_at_the_start(state: Stores) -> None:
    follow = Follow(state.journal, EntryFilter(model="m"))
    assert await follow.last(10) == [] and await follow.more() == []
    await state.journal.add([entry(1), entry(2, model="other")])
    assert ids(await follow.more()) == ["req_1"] and await follow.more() == []


async def test_many_entries_of_one_poll_are_all_new_up_to_a_limit(state: Stores) -> None:
    store = state.journal
    await store.add([entry(number, age=60.0) for number in range(5)])
    follow = Follow(store, EntryFilter(), page=3)
    await follow.last(0)
    await store.add([entry(100 + number, age=30.0 - number / 100) for number in range(50)])
    assert ids(await follow.more()) == [f"req_{100 + number}" for number in range(50)] and follow.left_out == 0
    await store.add([entry(200 + number, age=29.0 - number / 100) for number in range(100)])
    # A call reads at most 20 pages. Of the 150 entries within the overlap, 100 are new.
    assert ids(await follow.more()) == [f"req_{240 + number}" for number in range(60)] and follow.left_out == 40
    assert await follow.more() == [] and follow.left_out == 0
    await store.add([entry(300, age=1.0)])
    assert ids(await follow.more()) == ["req_300"] and follow.left_out == 0
