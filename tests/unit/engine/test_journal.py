"""Entries of finished requests: queued within bounds, written together, and contents where they may be."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import structlog

from antiphon.config.operators import ConsoleSettings
from antiphon.engine.ports.journal import REFUSED, Entry, Part, Recording
from antiphon.engine.running.journal import HELD_SECONDS, JournalRecorder
from antiphon.errors import StoreError
from antiphon.stores.journal import JournalStore
from tests.support.fake_time import fake_time
from tests.support.waiting import until

ALL = ConsoleSettings(record="all", record_unstored=True)
CONTENTS = Recording((Part(0.0, "request", b"x" * 800),))
"""A recording of 1000 bytes, as the recorder counts them."""


class Kept(JournalStore):
    """A store that keeps what it is given, fails when told to, and waits where it is held."""

    def __init__(self) -> None:
        self.units: list[tuple[list[Entry], dict[str, bytes], int]] = []
        self.together: list[bool] = []
        self.moves = 0
        self.move_failure: Exception | None = None
        self.failure: Exception | None = None
        self.gate: asyncio.Event | None = None

    async def pack(self, recording: Recording) -> bytes:
        return b"".join(part.data for part in recording.parts)

    async def try_to_move_batches(self, seconds: float) -> None:
        self.moves += 1
        if self.move_failure is not None:
            raise self.move_failure

    async def add(
        self,
        entries: Sequence[Entry],
        packed: Mapping[str, bytes] = {},
        *,
        most_bytes: int = 0,
        together: bool = False,
    ) -> None:
        if self.gate is not None:
            await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        self.units.append((list(entries), dict(packed), most_bytes))
        self.together.append(together)

    @property
    def ids(self) -> list[str]:
        return [one.id for entries, *_ in self.units for one in entries]


class Clock:
    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self) -> float:
        return self.at


def entry(number: int = 1, **changed: Any) -> Entry:
    given: dict[str, Any] = {
        "id": f"req_{number}",
        "owner": "n:anna",
        "door": "http",
        "model": "m",
        "upstream": "u",
        "outcome": "completed",
        "status": 200,
        "stored": True,
        "seconds": 1.0,
        "calls": 1,
        "input_tokens": 1,
        "output_tokens": 1,
    }
    return Entry(**{**given, **changed})


async def test_entries_are_written_together_with_their_age_and_contents() -> None:
    store, clock = Kept(), Clock()
    recorder = JournalRecorder(store, ALL, clock=clock)
    recorder.note(entry(1), CONTENTS)
    clock.at = 2.0
    recorder.note(entry(2), None)
    clock.at = 5.0
    assert recorder.waiting == 2 and await recorder.write() and recorder.waiting == 0
    ((entries, packed, most),) = store.units
    assert [(one.id, one.age, one.recorded) for one in entries] == [("req_1", 5.0, True), ("req_2", 3.0, False)]
    assert list(packed) == ["req_1"] and most == ALL.record_bytes
    assert await recorder.write() and len(store.units) == 1


@fake_time
async def test_what_is_noted_is_written_once_a_second() -> None:
    store = Kept()
    recorder = JournalRecorder(store, ALL)
    recorder.start()
    for number in range(3):
        recorder.note(entry(number), None)
    await asyncio.sleep(0.9)
    assert store.units == []
    await asyncio.sleep(0.2)
    assert store.ids == ["req_0", "req_1", "req_2"] and len(store.units) == 1
    recorder.note(entry(3), None)
    await recorder.aclose()
    assert store.ids[3:] == ["req_3"]


@pytest.mark.parametrize(
    ("settings", "changed", "stored", "held"),
    [
        ({"record": "all"}, {}, True, False),
        ({"record": "all"}, {"stored": False}, False, False),
        ({"record": "off", "record_unstored": True}, {}, False, False),
        ({"record": "off", "record_unstored": True}, {"stored": False}, False, False),
        ({"record": "failures"}, {}, False, False),
        ({"record": "failures"}, {"fault": "upstream"}, True, False),
        ({"record": "failures", "record_unstored": True}, {"stored": False, "fault": "client"}, False, True),
        ({"record": "all", "record_unstored": True}, {"stored": False}, False, True),
        ({"record": "all", "record_unstored": True}, {"owner": "n:secret"}, False, False),
        ({"record": "all", "record_unstored": True}, {"owner": "n:secret", "stored": False}, False, False),
    ],
)
async def test_contents_are_only_where_the_settings_allow_them(
    settings: dict[str, Any], changed: dict[str, Any], stored: bool, held: bool
) -> None:
    store = Kept()
    recorder = JournalRecorder(
        store, ConsoleSettings(**settings), process="process_1", never_stored=frozenset({"n:secret"})
    )
    recorder.note(entry(1, **changed), CONTENTS)
    assert await recorder.write()
    ((entries, packed, _),) = store.units
    assert bool(packed) is stored and (recorder.held("req_1") is not None) is held
    assert entries[0].recorded is (stored or held)
    assert entries[0].detail.held_by == ("process_1" if held else "")


async def test_contents_of_unstored_requests_are_held_for_a_time_and_for_their_owner() -> None:
    clock = Clock()
    recorder = JournalRecorder(Kept(), ALL, clock=clock, held_bytes=2500)
    for number in range(3):
        recorder.note(entry(number, stored=False), CONTENTS)
    assert recorder.held("req_0") is None and recorder.held_bytes == 2000
    assert recorder.held("req_1") == recorder.held("req_1", "n:anna") == CONTENTS
    assert recorder.held("req_1", "n:bob") is None
    # More than fits at all.
    recorder.note(entry(3, stored=False), Recording((Part(0.0, "data", b"x" * 3000),)))
    assert recorder.held("req_3") is None and recorder.held_bytes == 2000
    clock.at = HELD_SECONDS - 1
    recorder.note(entry(4, stored=False), CONTENTS)
    clock.at = HELD_SECONDS
    assert recorder.held("req_1") is None and recorder.held("req_4") is not None and recorder.held_bytes == 1000


@fake_time
async def test_held_contents_expire_without_another_request() -> None:
    recorder = JournalRecorder(Kept(), ALL, clock=asyncio.get_running_loop().time)
    recorder.start()
    recorder.note(entry(1, stored=False), CONTENTS)
    await asyncio.sleep(HELD_SECONDS - 5)
    assert recorder.held_bytes == 1000
    await asyncio.sleep(120)
    assert recorder.held_bytes == 0
    await recorder.aclose()


async def test_what_does_not_fit_is_counted_and_logged_once() -> None:
    store, clock = Kept(), Clock()
    recorder = JournalRecorder(store, ALL, clock=clock, most=3, most_bytes=1500)
    with structlog.testing.capture_logs() as lines:
        for number in range(6):
            recorder.note(entry(number), CONTENTS)
        assert [(line["event"], line["entries"], line["contents"]) for line in lines] == [("journal_full", 0, 1)]
        assert await recorder.write()
        clock.at = 60.0
        recorder.note(entry(7), CONTENTS)
        recorder.note(entry(8), CONTENTS)
    assert store.ids == ["req_0", "req_1", "req_2"]
    assert [len(packed) for _, packed, _ in store.units] == [1]
    assert [(line["entries"], line["contents"]) for line in lines[1:]] == [(3, 5)]
    assert recorder.lost == {("entries",): 3, ("contents",): 6}


async def test_an_outage_loses_nothing_that_fits_and_has_one_line() -> None:
    store, clock = Kept(), Clock()
    store.failure = StoreError("the database is away", reason="unknown")
    recorder = JournalRecorder(store, ALL, clock=clock)
    recorder.note(entry(1), CONTENTS)
    with structlog.testing.capture_logs() as lines:
        assert not await recorder.write()
        recorder.note(entry(2), None)
        assert not await recorder.write()
        assert recorder.waiting == 2
        store.failure = None
        clock.at = 9.0
        assert await recorder.write()
    assert [line["event"] for line in lines] == ["journal_not_written", "journal_written_again"]
    ((entries, packed, _),) = store.units
    assert [(one.id, one.age) for one in entries] == [("req_1", 9.0), ("req_2", 9.0)] and list(packed) == ["req_1"]


async def test_an_entry_that_cannot_be_written_does_not_block_others() -> None:
    store = Kept()
    store.failure = ValueError("a bug")
    recorder = JournalRecorder(store, ALL)
    recorder.note(entry(1), CONTENTS)
    with structlog.testing.capture_logs() as lines:
        assert await recorder.write() and recorder.waiting == 0
    assert {"journal_failed", "journal_full"} == {line["event"] for line in lines}
    store.failure = None
    recorder.note(entry(2), CONTENTS)
    assert await recorder.write() and store.ids == ["req_2"]


async def test_units_are_bounded() -> None:
    store = Kept()
    recorder = JournalRecorder(store, ALL, most_bytes=100 << 20)
    large = Recording((Part(0.0, "data", bytes(7 << 20)),))
    for number in range(5):
        recorder.note(entry(number), large)
    for number in range(5, 1200):
        recorder.note(entry(number), None)
    assert await recorder.write()
    sizes = [(len(entries), sum(map(len, packed.values())) >> 20) for entries, packed, _ in store.units]
    assert sizes == [(2, 14), (2, 14), (500, 7), (500, 0), (196, 0)]
    assert store.ids == [f"req_{number}" for number in range(1200)]


async def test_a_write_that_the_end_interrupts_is_repeated() -> None:
    store = Kept()
    store.gate = asyncio.Event()
    recorder = JournalRecorder(store, ALL, seconds=0)
    recorder.start()
    recorder.note(entry(1), None)
    recorder.note(entry(2), None)
    await until(lambda: recorder.writing)
    closing = asyncio.ensure_future(recorder.aclose())
    store.gate.set()
    await closing
    assert sorted(set(store.ids)) == ["req_1", "req_2"] and recorder.waiting == 0


async def test_entries_that_the_end_could_not_write_are_reported() -> None:
    store = Kept()
    store.failure = StoreError("the database is away")
    recorder = JournalRecorder(store, ALL)
    recorder.note(entry(1), None)
    with structlog.testing.capture_logs() as lines:
        await recorder.aclose()
    assert [(line["event"], line["log_level"]) for line in lines] == [
        ("journal_not_written", "warning"),
        ("journal_not_written", "error"),
    ]


def refused(number: int, **changed: Any) -> Entry:
    return entry(number, **{"outcome": REFUSED, "status": 401, "code": "invalid_api_key", "owner": "", **changed})


async def test_a_flood_of_refusals_gets_few_rows_that_count_each_refusal() -> None:
    store, clock = Kept(), Clock()
    recorder = JournalRecorder(store, ALL, clock=clock)
    for number in range(1000):
        recorder.note(refused(number), None)
    recorder.note(refused(1000, owner="n:anna", status=429, code="owner_full"), None)
    recorder.note(entry(1001), None)
    assert await recorder.write()
    assert store.ids == [*(f"req_{number}" for number in range(10)), "req_1000", "req_1001"]
    clock.at = 59.0
    recorder.note(refused(1002), None)
    assert recorder.waiting == 0
    clock.at = 61.0
    recorder.note(refused(1003), None)
    assert await recorder.write()
    (rows, *_) = store.units[-1]
    assert [(one.id, one.detail.alike, one.age) for one in rows] == [("req_1002", 991, 2.0), ("req_1003", 0, 0.0)]


async def test_refusals_of_many_owners_share_a_row_that_no_owner_sees() -> None:
    store = Kept()
    recorder = JournalRecorder(store, ALL, clock=Clock())
    for number in range(5000):
        recorder.note(refused(number, owner=f"b:{number}", key_name="k"), None)
    await recorder.aclose()
    rows = [one for entries, *_ in store.units for one in entries]
    assert len(rows) == 101 and sum(one.detail.alike or 1 for one in rows) == 5000
    assert [(one.owner, one.key_name, one.code) for one in rows if one.detail.alike] == [("", "", "")]


@fake_time
async def test_the_row_that_refusals_share_comes_without_a_further_refusal() -> None:
    store = Kept()
    recorder = JournalRecorder(store, ALL, clock=asyncio.get_running_loop().time)
    recorder.start()
    for number in range(12):
        recorder.note(refused(number), None)
    await asyncio.sleep(30)
    assert len(store.ids) == 10
    await asyncio.sleep(35)
    assert store.ids[10:] == ["req_11"]
    await recorder.aclose()
    assert len(store.ids) == 11


@fake_time
async def test_many_entries_of_a_second_are_written_as_one_row_and_moved_when_few_come() -> None:
    store = Kept()
    recorder = JournalRecorder(store, ALL)
    recorder.start()
    for number in range(60):
        recorder.note(entry(number), None)
    await asyncio.sleep(1.1)
    assert store.together == [True] and store.moves == 0
    recorder.note(entry(60), None)
    await asyncio.sleep(1.1)
    assert store.together == [True, False] and store.moves == 1
    # A move that fails ends neither the task nor the entries.
    store.move_failure = ValueError("no")
    recorder.note(entry(61), None)
    await asyncio.sleep(1.1)
    store.move_failure = None
    recorder.note(entry(62), None)
    await asyncio.sleep(1.1)
    assert store.ids[-2:] == ["req_61", "req_62"] and store.moves == 3
    await recorder.aclose()
