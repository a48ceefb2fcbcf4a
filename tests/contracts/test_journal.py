"""What every `JournalStore` and every `LiveStore` must do, on every state."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from antiphon.config.state import RetentionSettings
from antiphon.engine.ports.journal import (
    REFUSED,
    Detail,
    Entry,
    EntryFilter,
    JournalSpan,
    LiveRequest,
    Part,
    Recording,
)
from antiphon.errors import InvalidRequest, StoreError
from antiphon.stores import Stores
from antiphon.stores.bodies import PLAIN, is_sealed, pack_recording
from antiphon.stores.journal import LEAST_SIZE, JournalStore, cursor_of
from antiphon.stores.live import MOST_LIVE, LiveStore
from tests.contracts.states import open_state
from tests.contracts.store_contract import ALICE, BOB, record

RECORDING = Recording((Part(0.0, "request", b'{"input":"hi"}'), Part(1.5, "head", b"", {"status": 200})), cut=True)
ALL = EntryFilter()


def entry(number: int = 1, **changed: Any) -> Entry:
    given: dict[str, Any] = {
        "id": f"req_{number}",
        "owner": ALICE,
        "key_id": "key_1",
        "key_name": "laptop",
        "team": "lab",
        "door": "http",
        "model": "m",
        "upstream": "u",
        "response_id": f"resp_{number}",
        "outcome": "completed",
        "status": 200,
        "seconds": 1.25,
        "first": 0.5,
        "calls": 1,
        "input_tokens": 10,
        "cached_tokens": 4,
        "output_tokens": 3,
        "reasoning_tokens": 1,
        "cost": 7,
        "age": float(1000 - number),
    }
    return Entry(**{**given, **changed})


def ids(found: Any) -> list[str]:
    return [one.id for one in found]


@pytest.fixture
def store(state: Stores) -> JournalStore:
    return state.journal


@pytest.fixture
def live(state: Stores) -> LiveStore:
    return state.live


async def test_an_entry_is_read_as_it_was_stored_and_stored_once(store: JournalStore) -> None:
    detail = Detail((JournalSpan("call", "u", 0.1, 0.9, {"status": 200}),), ("seed",), message="ä", request_bytes=5)
    first = entry(
        1,
        request_id="job-1",
        detail=detail,
        first=None,
        stored=True,
        estimated=True,
        conversation_id="conv_ä",
        fault="upstream",
    )
    await store.add([first])
    await store.add([entry(1, model="other"), entry(2)])
    found = await store.get("req_1")
    assert found is not None and found.ended_at > 1e9
    assert found == Entry(
        **{name: getattr(first, name) for name in Entry.__struct_fields__} | {"ended_at": found.ended_at, "age": 0.0}
    )
    # The newest request of a response, and no request of another owner.
    await store.add([entry(3, response_id="resp_1")])
    assert ids([await store.get("resp_1")]) == ["req_3"] and await store.get("resp_1", BOB) is None
    assert await store.get("req_1", ALICE) == found and await store.get("req_1", BOB) is None
    assert await store.get("") is None


async def test_an_entry_is_found_by_its_request_id_within_its_owner(store: JournalStore) -> None:
    await store.add([entry(number, request_id="job-9", owner=BOB if number == 3 else ALICE) for number in (1, 2, 3)])
    await store.add([entry(4, request_id="resp_1"), entry(5, request_id="req_1")])
    assert [ids([await store.get("job-9", owner)]) for owner in (ALICE, BOB, "")] == [["req_2"], ["req_3"], ["req_3"]]
    assert await store.get("job-9", "n:other") is None
    # A client that chooses the id of an entry or of a response as its request id hides neither.
    assert ids([await store.get("req_1"), await store.get("resp_1")]) == ["req_1", "req_1"]


async def test_an_entry_is_found_by_a_shortened_id_within_its_owner(store: JournalStore) -> None:
    begin = "019c1159700000ab"
    whole = f"{begin}{'0f' * 16}"
    await store.add([
        entry(1, id=f"req_{whole}", response_id=f"resp_{whole}", request_id=f"req_{'7' * 48}"),
        entry(2, id=f"req_{begin[:-1]}c{'0' * 32}", response_id=f"resp_{begin[:-1]}c{'0' * 32}"),
        entry(3, id=f"req_{'f' * 48}", response_id=f"resp_{'f' * 48}", owner=BOB),
    ])  # fmt: skip
    for short in (f"resp_{begin}", f"req_{begin}", f"resp_{whole[:-1]}", f"req_{'7' * 16}"):
        assert ids([await store.get(short, ALICE), await store.get(short)]) == [f"req_{whole}"] * 2, short
    for other in (
        f"resp_{begin[:-1]}",
        f"resp_{begin}0f1",
        f"resp_{'f' * 16}",
        f"resp_{begin[:-1]}_",
        f"resp_{begin}%",
    ):
        assert await store.get(other, ALICE) is None, other
    assert ids([await store.get(f"resp_{'f' * 16}", BOB)]) == [f"req_{'f' * 48}"]


async def test_an_entry_is_found_by_the_beginning_of_envoys_request_id(store: JournalStore) -> None:
    uuid = "0b9d1c44-5e1f-4a7c-9d38-6f0e2b7a1c55"
    await store.add([
        entry(1, request_id=uuid),
        entry(2, request_id=f"{uuid[:15]}f{uuid[16:]}"),
        entry(3, request_id="1" + uuid[1:], owner=BOB),
    ])  # fmt: skip
    for length in (16, 18, 19, 23, 35, 36):
        assert ids([await store.get(uuid[:length], ALICE), await store.get(uuid[:length])]) == ["req_1"] * 2, length
    for other in (uuid[:15], f"{uuid[:18]}0", f"{uuid[:15]}%", f"1{uuid[1:20]}"):
        assert await store.get(other, ALICE) is None, other


async def test_odd_values_do_not_keep_other_entries_from_being_stored(store: JournalStore) -> None:
    odd = entry(1, model="m" * 5000 + "\ud800", code="\ud83d", cost=10**30, input_tokens=-5, seconds=float(10**30))
    await store.add([odd, entry(2, detail=Detail(message="\udfff", cause="\0"), key_name="n\0")])
    found = (await store.list(ALL)).entries
    assert ids(found) == ["req_2", "req_1"]
    assert (
        found[1].input_tokens == 0 and found[1].cost == 10**15 and len(found[1].model) == 200 and found[1].code == "?"
    )
    assert found[0].detail.message == "?"


async def test_filters_select_and_count(store: JournalStore) -> None:
    await store.add([entry(number) for number in range(1, 6)])
    others: dict[str, Any] = {
        "outcome": "failed",
        "fault": "upstream",
        "code": "server_error",
        "model": "n",
        "upstream": "v",
        "door": "envoy",
        "team": "office",
        "key_id": "key_2",
    }
    await store.add([entry(6 + at, **{name: value}) for at, (name, value) in enumerate(others.items())])
    await store.add([entry(20, owner=BOB, previous_id="resp_3"), entry(21, conversation_id="conv_1")])
    for at, (name, value) in enumerate(others.items()):
        page = await store.list(EntryFilter(**{name: value}))
        assert (ids(page.entries), page.total, page.after) == ([f"req_{6 + at}"], 1, "")
        assert (await store.list(EntryFilter(**{name: value}, owner=BOB))).total == 0
    assert ids((await store.list(EntryFilter(failed=True))).entries) == ["req_7"]
    assert ids((await store.list(EntryFilter(thread="resp_3"))).entries) == ["req_20", "req_3"]
    assert ids((await store.list(EntryFilter(thread="resp_3", owner=ALICE))).entries) == ["req_3"]
    assert ids((await store.list(EntryFilter(thread="conv_1"))).entries) == ["req_21"]
    everything = await store.list(ALL, limit=3)
    assert everything.total == 15 and ids(everything.entries) == ["req_21", "req_20", "req_13"]
    oldest = (await store.list(ALL, limit=100)).entries[-1]
    assert ids((await store.list(EntryFilter(until=oldest.ended_at + 0.5))).entries) == ["req_1"]
    assert (await store.list(EntryFilter(since=oldest.ended_at + 0.5))).total == 14
    with pytest.raises(InvalidRequest, match="cursor"):
        await store.list(ALL, after="nonsense")


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(ages=st.lists(st.sampled_from([0.0, 1.0, 2.0, 60.0]), max_size=25), limit=st.integers(1, 7), tag=st.uuids())
async def test_pages_list_every_entry_once(store: JournalStore, ages: list[float], limit: int, tag: Any) -> None:
    team = str(tag)
    await store.add([entry(0, id=f"req_{team}_{number}", age=age, team=team) for number, age in enumerate(ages)])
    seen: list[Entry] = []
    after = ""
    while True:
        page = await store.list(EntryFilter(team=team), limit=limit, after=after)
        assert page.total == len(ages) and len(page.entries) <= limit
        seen += page.entries
        assert len(seen) <= len(ages)
        # Entries that arrive meanwhile change no later page.
        await store.add([entry(0, id=f"req_{team}_late_{len(seen)}", age=-60.0, team=f"{team}_other")])
        if not page.after:
            break
        assert page.after == cursor_of(page.entries[-1])
        after = page.after
    assert len(seen) == len(set(ids(seen))) == len(ages)
    places = [(one.ended_at, one.id) for one in seen]
    assert places == sorted(places, reverse=True)


async def test_newer_entries_include_those_that_arrive_late(store: JournalStore) -> None:
    await store.add([entry(1, age=100.0), entry(2, age=10.0)])
    cursor = cursor_of((await store.list(ALL)).entries[0])
    await store.add([entry(3, age=11.0), entry(4, age=5.0), entry(5, age=50.0), entry(6, age=4.0, owner=BOB)])
    assert ids(await store.newer(ALL, than=cursor)) == ["req_6", "req_4", "req_2", "req_3"]
    assert ids(await store.newer(EntryFilter(owner=BOB), than=cursor)) == ["req_6"]
    assert ids(await store.newer(ALL, than=cursor, limit=1)) == ["req_6"]
    assert len(await store.newer(ALL, than="")) == 6


async def test_the_neighbours_of_an_entry_are_those_of_the_filter(store: JournalStore) -> None:
    async def near(number: int, chosen: EntryFilter = ALL) -> tuple[str, str]:
        found = await store.get(f"req_{number}")
        assert found is not None
        return await store.neighbours(chosen, found)

    owners = {150: BOB}
    await store.add([entry(at, age=float(400 - at), owner=owners.get(at, ALICE)) for at in range(1, 301)])
    await store.add([entry(301, age=500.0, previous_id="resp_x"), entry(302, age=1.0, previous_id="resp_x")])
    assert await near(151) == ("req_152", "req_150")
    assert await near(151, EntryFilter(owner=ALICE)) == ("req_152", "req_149")
    # Any number of entries may be newer.
    assert await near(1) == ("req_2", "req_301") and await near(302) == ("", "req_300")
    assert await near(301, EntryFilter(thread="resp_x")) == ("req_302", "")


async def test_misses_of_the_prompt_cache_are_found_among_any_number_of_other_requests(store: JournalStore) -> None:
    missed = {"previous_id": "resp_x", "input_tokens": 10, "cached_tokens": 4}
    await store.add([entry(1, **missed), entry(2, owner=BOB, **missed)])
    await store.add([entry(number) for number in range(3, 500)])
    await store.add([entry(500, **{**missed, "cached_tokens": 5}), entry(501, **{**missed, "input_tokens": 0})])
    page = await store.list(EntryFilter(missed=True), limit=10)
    assert ids(page.entries) == ["req_2", "req_1"] and page.total == 2
    assert ids((await store.list(EntryFilter(missed=True, owner=BOB))).entries) == ["req_2"]


async def test_refusals_are_left_out_on_request_and_displace_no_choices(store: JournalStore) -> None:
    await store.add([entry(1), entry(2, owner=BOB, model="n")])
    await store.add([entry(at, model="", outcome="refused", code="wrong") for at in range(3, 40)])
    page = await store.list(EntryFilter(unrefused=True))
    assert ids(page.entries) == ["req_2", "req_1"] and page.total == 2
    assert ids(await store.newer(EntryFilter(unrefused=True, owner=BOB), than="")) == ["req_2"]
    found = await store.choices(recent=5)
    assert (found.models, found.outcomes) == (("m", "n"), ("completed", "refused")) and "wrong" in found.codes
    assert (await store.choices(ALICE, recent=5)).models == ("m",)


async def test_a_request_that_queued_a_response_counts_once(store: JournalStore) -> None:
    await store.add([entry(1, outcome="queued"), entry(2)])
    assert ids((await store.list(EntryFilter(ended=True))).entries) == ["req_2"]
    assert ids((await store.list(EntryFilter())).entries) == ["req_2", "req_1"]
    assert [one.requests for one in await store.sums()] == [1]
    assert sum(one.requests for one in await store.slots(since=1.0, seconds=60.0)) == 1
    assert "queued" in (await store.choices()).outcomes


async def test_choices_sums_and_slots(store: JournalStore) -> None:
    await store.add([entry(number, seconds=float(number), age=10.0) for number in range(1, 21)])
    await store.add([entry(30, model="n", upstream="", fault="client", code="bad", owner=BOB, first=None, age=5000.0)])
    found = await store.choices()
    assert (found.models, found.upstreams, found.outcomes, found.codes) == (
        ("m", "n"),
        ("u",),
        ("completed",),
        ("bad",),
    )
    assert (await store.choices(ALICE)).models == ("m",) and (await store.choices(recent=20)).models == ("m",)
    busy, other = await store.sums()
    assert (busy.name, busy.requests, busy.failed, busy.input_tokens, busy.cached_tokens, busy.cost) == (
        *("m", 20, 0, 200, 80, 140),
    )
    assert busy.seconds == (11.0, 20.0) and busy.first == (0.5, 0.5)
    assert (other.name, other.requests, other.failed, other.first) == ("n", 1, 1, None)
    assert [one.name for one in await store.sums(by="owner")] == [ALICE, BOB]
    assert [one.name for one in await store.sums(ALICE, by="upstream")] == ["u"]
    newest = (await store.list(ALL, limit=1)).entries[0].ended_at
    assert [one.name for one in await store.sums(since=newest - 100)] == ["m"]
    slots = await store.slots(since=newest - 10_000, seconds=1000.0)
    assert sum(one.requests for one in slots) == 21 and slots[0].failed == 1 and slots[0].start % 1000 == 0
    assert [one.start for one in slots] == sorted(one.start for one in slots)
    assert sum(one.requests for one in await store.slots(BOB, since=0.0, seconds=60.0)) == 1


async def test_entries_of_threads_are_the_newest_with_input(store: JournalStore) -> None:
    await store.add([entry(number, age=float(100 - number), previous_id="resp_0") for number in range(1, 6)])
    await store.add([entry(9, input_tokens=0, age=0.0), entry(10, owner=BOB, age=0.0, conversation_id="conv_1")])
    newest = (await store.list(ALL, limit=1)).entries[0].ended_at
    found = await store.thread_entries(since=0.0, most=3)
    assert [(one.owner, one.previous_id, one.conversation_id) for one in found] == [
        (BOB, "", "conv_1"),
        *[(ALICE, "resp_0", "")] * 2,
    ]
    assert [one.response_id for one in await store.thread_entries(ALICE, since=0.0, most=10)] == [
        entry(number).response_id for number in (5, 4, 3, 2, 1)
    ]
    assert (found[1].input_tokens, found[1].cached_tokens) == (entry(1).input_tokens, entry(1).cached_tokens)
    assert len(await store.thread_entries(since=newest - 50, most=10)) == 1


async def test_contents_are_read_by_their_owner_and_go_with_their_response(state: Stores, store: JournalStore) -> None:
    await state.responses.save(record("1"))
    await store.put(entry(1, stored=True), RECORDING)
    await store.put(entry(2, response_id=""), RECORDING)
    assert await store.record("req_1") == await store.record("req_1", ALICE) == RECORDING
    assert await store.record("req_1", BOB) is None and await store.record("req_9") is None
    # An unfinished response is stored after its request may have been noted.
    await store.put(entry(3, response_id="resp_3", outcome="failed", fault="client", stored=True), RECORDING)
    await state.responses.save(record("3"))
    assert await state.responses.delete(ALICE, "resp_1") and await state.responses.delete(ALICE, "resp_3")
    assert await store.record("req_1") is None and await store.record("req_3") is None
    # The row stays. Nothing stores the contents of a deleted response later.
    assert await store.get("req_1") is not None
    await store.put(entry(4, response_id="resp_1", stored=True), RECORDING)
    assert await store.record("req_4") is None and await store.get("req_4") is not None


async def test_contents_go_with_an_expired_response(state_url: str, tmp_path: Path) -> None:
    kept = RetentionSettings(responses=86_400.0)
    async with aclosing(await open_state(state_url, tmp_path, kept=kept)) as opened:
        await opened.responses.save(record("1"))
        await opened.responses.save(record("2", prev="1"))
        await opened.journal.put(entry(1, stored=True), RECORDING)
        await opened.journal.put(entry(2, stored=True), RECORDING)
        assert await opened.journal.record("req_2") == RECORDING
        assert (await opened.retention.sweep())[0] == 1
        assert await opened.journal.record("req_1") is None and await opened.journal.record("req_2") is None


async def test_contents_are_sealed_as_other_bodies_are(store: JournalStore, kind: str) -> None:
    packed = await store.pack(RECORDING)
    assert is_sealed(packed) is kind.startswith("sealed")
    assert await store.unpack(packed) == RECORDING
    with pytest.raises(StoreError, match="damaged"):
        await store.unpack(b"no contents")
    assert len(await pack_recording(Recording((Part(0.0, "data", b"a" * 100_000),)), PLAIN)) < 1000


async def test_the_oldest_contents_make_room_in_the_same_unit(store: JournalStore) -> None:
    packed = await store.pack(RECORDING)
    for number in range(1, 6):
        await store.add([entry(number)], {f"req_{number}": packed}, most_bytes=3 * LEAST_SIZE)
    held = [number for number in range(1, 6) if await store.record(f"req_{number}") is not None]
    assert held == [3, 4, 5]
    await store.add([entry(6), entry(7)], {"req_6": packed, "req_7": packed}, most_bytes=2 * LEAST_SIZE)
    assert [number for number in range(1, 8) if await store.record(f"req_{number}") is not None] == [6, 7]
    assert (await store.list(ALL)).total == 7


async def test_the_sweep_keeps_the_newest(store: JournalStore) -> None:
    packed = await store.pack(RECORDING)
    everything = [entry(number, age=float(100 - number)) for number in range(1, 11)]
    await store.add(everything, {one.id: packed for one in everything})
    assert await store.sweep(3600.0, 10, 3600.0, 1 << 30) == (0, 0)
    assert await store.sweep(3600.0, 8, 95.5, 4 * LEAST_SIZE) == (2, 6)
    assert ids((await store.list(ALL)).entries) == [f"req_{number}" for number in range(10, 2, -1)]
    assert [one.id for one in everything if await store.record(one.id) is not None] == [
        *("req_7", "req_8", "req_9", "req_10")
    ]
    assert await store.sweep(-3600.0, 100, 3600.0, 1 << 30) == (8, 4)
    assert (await store.list(ALL)).total == 0 and await store.record("req_10") is None


async def test_refusals_are_a_tenth_of_the_entries_and_in_no_sum(store: JournalStore) -> None:
    refused = [
        entry(number, owner=("", ALICE)[number % 2], outcome=REFUSED, fault="client", model="", input_tokens=0)
        for number in range(1, 31)
    ]
    await store.add([*refused, entry(100), entry(101, owner=BOB)])
    (busy,) = await store.sums()
    assert (busy.requests, busy.failed) == (2, 0)
    assert sum(one.requests for one in await store.slots(since=0.0, seconds=60.0)) == 2
    assert (await store.list(EntryFilter(owner=ALICE, outcome=REFUSED))).total == 15
    assert (await store.list(EntryFilter(owner=BOB))).total == 1
    assert (await store.sweep(3600.0, 100, 3600.0, 1 << 30))[0] == 20
    assert ids((await store.list(ALL)).entries) == ["req_101", "req_100", *(f"req_{at}" for at in range(30, 20, -1))]


def request(number: int, owner: str = ALICE, age: float = 1.0) -> LiveRequest:
    return LiveRequest(
        *(f"req_{number}", owner, "laptop", "http", "m", "u", f"resp_{number}", "streaming", age, 12, 0.25, 1, True)
    )


async def test_processes_publish_while_a_viewer_watches(live: LiveStore) -> None:
    assert not (await live.look()).watched
    await live.watch(60.0)
    await live.watch(1.0)
    assert (await live.look()).watched
    await live.publish("a", [request(1)])
    await live.publish("a", [request(2), request(3, BOB)])
    await live.publish("b", [request(number, BOB, float(number)) for number in range(MOST_LIVE + 7)])
    first, second = await live.read()
    assert first.process == "a" and ids(first.requests) == ["req_2", "req_3"] and first.requests[0].process == "a"
    assert 0 <= first.age < 5
    # The oldest requests are published.
    assert len(second.requests) == MOST_LIVE and second.more == 7
    assert min(one.age for one in second.requests) == 7.0
    alices, nothing = await live.read(ALICE)
    assert ids(alices.requests) == ["req_2"] and nothing.requests == () and nothing.more == 0
    await live.leave("b")
    assert [one.process for one in await live.read()] == ["a"]
    assert await live.sweep(60.0) == (0,) and await live.sweep(-60.0) == (1,) and await live.read() == ()


async def test_a_wish_to_cancel_is_taken_once(live: LiveStore) -> None:
    assert (
        await live.ask_cancel("req_1") and await live.ask_cancel("req_1", ALICE) and await live.ask_cancel("req_2", BOB)
    )
    assert await live.ask_cancel("req_2", BOB)
    found = await live.look()
    assert not found.watched and set(found.cancels) == {("req_1", ""), ("req_1", ALICE), ("req_2", BOB)}
    assert set(await live.take_cancels(["req_1", "req_7"])) == {("req_1", ""), ("req_1", ALICE)}
    taken = await asyncio.gather(live.take_cancels(["req_2"]), live.take_cancels(["req_2"]))
    assert sorted(map(len, taken)) == [0, 1]
    assert (await live.look()).cancels == () and await live.take_cancels([]) == ()


async def test_entries_stored_together_are_found_like_others(state: Stores, store: JournalStore) -> None:
    detail = Detail((JournalSpan("call", "u", 0.1, 0.9, {"status": 200}),), message="ä")
    await store.add([entry(1, age=100.0)])
    await store.add([entry(2, detail=detail, age=50.0), entry(3, owner=BOB, age=40.0)], together=True)
    # A second write changes nothing, before and after a reader.
    await store.add([entry(2, detail=detail, age=50.0), entry(3, owner=BOB, age=40.0)], together=True)
    page = await store.list(ALL)
    assert ids(page.entries) == ["req_3", "req_2", "req_1"] and (page.total, page.waiting) == (3, 0)
    assert page.entries[1].detail == detail
    assert page.entries[0].ended_at - page.entries[1].ended_at == pytest.approx(10.0, abs=0.01)
    await store.add([entry(2, detail=detail), entry(3, owner=BOB)], together=True)
    await store.move_batches()
    assert ids((await store.list(EntryFilter(owner=BOB))).entries) == ["req_3"]
    assert (await store.list(ALL)).total == 3


async def test_a_lookup_finds_an_entry_that_no_reader_has_moved_yet(store: JournalStore) -> None:
    assert (await store.list(ALL)).total == 0
    await store.add([entry(number) for number in range(60)], together=True)
    # A reader has just looked, so a list does not move the batch, and says so.
    page = await store.list(ALL)
    assert (page.total, page.waiting) == (0, 60)
    found = await store.get("resp_7")
    assert found is not None and found.id == "req_7" and await store.get("resp_none") is None
    assert (await store.list(ALL)).total == 60


async def test_two_readers_move_each_entry_once(store: JournalStore) -> None:
    for part in range(4):
        await store.add([entry(number) for number in range(50 * part, 50 * part + 50)], together=True)
    await asyncio.gather(*(store.move_batches() for _ in range(3)))
    page = await store.list(ALL)
    assert (page.total, page.waiting) == (200, 0)


async def test_a_sweep_deletes_batches_that_are_old_or_too_many(store: JournalStore) -> None:
    assert (await store.list(ALL)).total == 0
    await store.add([entry(0)])
    for part in range(4):
        # The store knows batches of different milliseconds.
        await asyncio.sleep(0.002)
        await store.add([entry(number) for number in range(10 * part + 1, 10 * part + 11)], together=True)
    await store.sweep(3600.0, 20, 3600.0, 1 << 30)
    assert (await store.list(ALL)).waiting == 20
    await store.move_batches()
    # The entries in batches count, so the older entry in the table is deleted.
    assert ids((await store.list(ALL, limit=50)).entries) == [f"req_{number}" for number in range(40, 20, -1)]
    await store.add([entry(number) for number in range(50, 60)], together=True)
    await store.sweep(-3600.0, 1000, 3600.0, 1 << 30)
    assert ((await store.list(ALL)).total, (await store.list(ALL)).waiting) == (0, 0)


async def test_a_sweep_deletes_a_batch_before_newer_rows(store: JournalStore) -> None:
    await store.add([entry(number) for number in range(10)], together=True)
    await asyncio.sleep(0.002)
    await store.add([entry(number, age=0.0) for number in range(10, 25)])
    await store.sweep(3600.0, 20, 3600.0, 1 << 30)
    await store.move_batches()
    assert sorted(ids((await store.list(ALL)).entries)) == [f"req_{number}" for number in range(10, 25)]


async def test_a_repeated_write_with_further_entries_stores_them(store: JournalStore) -> None:
    await store.add([entry(number) for number in range(3)], together=True)
    await store.add([entry(number) for number in range(5)], together=True)
    await store.move_batches()
    assert (await store.list(ALL)).total == 5


async def test_a_client_cannot_store_an_entry_that_no_reader_can_move(store: JournalStore) -> None:
    odd = {"model": "a\0b", "key_name": "\0", "owner": "b:\0", "detail": Detail(message="\0")}
    for together in (True, False):
        await store.add([entry(int(together)), entry(2 + together, **odd)], together=together)
    await store.move_batches()
    assert (await store.list(ALL)).total == 4


async def test_a_lookup_finds_the_newest_entry_of_a_response(store: JournalStore) -> None:
    await store.add([entry(1, response_id="resp_x", outcome="queued", age=9.0)])
    await store.add([entry(2, response_id="resp_x", age=1.0)], together=True)
    found = await store.get("resp_x")
    assert found is not None and found.id == "req_2"


async def test_one_owner_does_not_see_how_much_others_do(store: JournalStore) -> None:
    assert (await store.list(ALL)).total == 0
    await store.add([entry(number) for number in range(60)], together=True)
    assert (await store.list(EntryFilter(owner=BOB))).waiting == 0 and (await store.list(ALL)).waiting == 60


async def test_contents_of_entries_stored_together_are_found(state: Stores, store: JournalStore) -> None:
    one = entry(1, stored=False, recorded=True)
    await store.add([one, entry(2)], {"req_1": await store.pack(RECORDING)}, together=True)
    assert await store.record("req_1", ALICE) == RECORDING and await store.record("req_1", BOB) is None


async def test_an_entry_that_no_batch_can_hold_is_stored_as_a_row(store: JournalStore) -> None:
    await store.add([entry(1, detail=Detail(message="\ud800")), entry(2)], together=True)
    await store.add([entry(number, detail=Detail(message="x" * 50_000)) for number in range(3, 103)], together=True)
    assert (await store.list(ALL)).total == 102
