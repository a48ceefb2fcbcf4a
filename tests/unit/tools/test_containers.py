"""Containers: the lock of each, who may have it, and what is read of somebody else's."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from antiphon.engine.ports.containers import ContainerFailed, ContainerRequest, ContainerRow, RowFile
from antiphon.errors import StoreError
from antiphon.tools.code_interpreter.containers import ContainerRooms
from antiphon.tools.code_interpreter.records import RecordedRows, Records
from tests.support.memory_sandbox import MemorySandbox
from tests.support.waiting import until

OWNER = "b:alice"
REQUEST = ContainerRequest("n", 1 << 30, 60.0)


class _SlowRecords(Records):
    """Records whose lock is given only when `go` is set."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.go, self.asked = threading.Event(), threading.Event()
        self.go.set()

    def lock(self, container_id: str) -> int | None:
        self.asked.set()
        taken = super().lock(container_id)
        assert self.go.wait(30)
        return taken


@pytest.fixture
async def records(tmp_path: Path) -> AsyncIterator[_SlowRecords]:
    made = _SlowRecords(tmp_path)
    yield made
    made.go.set()


async def test_a_lock_that_came_too_late_is_given_back(records: _SlowRecords) -> None:
    at = 0.0
    rooms = ContainerRooms(MemorySandbox(), RecordedRows(records, lambda: at), None)
    made = await rooms.create(OWNER, REQUEST)
    records.go.clear()
    records.asked.clear()
    left = asyncio.create_task(rooms.files(OWNER, made.id))
    await asyncio.to_thread(records.asked.wait, 30)
    left.cancel()
    records.go.set()
    await asyncio.gather(left, return_exceptions=True)
    async with asyncio.timeout(30):
        assert await rooms.files(OWNER, made.id) == []
        at = 1e6
        assert await rooms.sweep() == (1,)


async def test_a_sweep_leaves_what_is_in_use_and_takes_the_rest(records: _SlowRecords, tmp_path: Path) -> None:
    at = 0.0
    rooms = ContainerRooms(MemorySandbox(), RecordedRows(records, lambda: at), None)
    first, second, third = [await rooms.create(OWNER, REQUEST) for _ in range(3)]
    at = 1e6
    elsewhere = Records(tmp_path).lock(first.id)
    assert elsewhere is not None
    async with asyncio.timeout(30), rooms.uses.alone(second.id):
        assert await rooms.sweep() == (1,)
    assert {head.id for head in records.every()} == {first.id, second.id}
    os.close(elsewhere)
    assert await rooms.sweep() == (2,) and records.every() == [] and not rooms.uses.locks
    assert third.id != second.id


async def test_of_two_that_delete_a_container_one_did(records: _SlowRecords) -> None:
    """Both saw it there before either had its lock."""
    rooms = ContainerRooms(MemorySandbox(), RecordedRows(records), None)
    made = await rooms.create(OWNER, REQUEST)
    async with asyncio.timeout(30):
        async with rooms.uses.alone(made.id):
            both = [asyncio.create_task(rooms.delete(OWNER, made.id)) for _ in range(2)]
            await until(lambda: rooms.uses.locks[made.id].users == 3)
        assert sorted(await asyncio.gather(*both)) == [False, True]


async def test_waiting_for_a_container_ends(records: _SlowRecords, tmp_path: Path) -> None:
    rows = RecordedRows(records)
    rooms = ContainerRooms(MemorySandbox(), rows, None)
    made = await rooms.create(OWNER, REQUEST)
    elsewhere = Records(tmp_path).lock(made.id)
    assert elsewhere is not None
    with pytest.raises(ContainerFailed, match="in use"):
        async with rooms.uses.alone(made.id, patience=0.1) as use:
            await use.take(lambda holder, seconds: rows.take(made.id, holder, seconds, OWNER))
    os.close(elsewhere)
    async with rooms.uses.alone(made.id):
        with pytest.raises(ContainerFailed, match="in use"):
            async with rooms.uses.alone(made.id, patience=0.1):
                pass
    assert not rooms.uses.locks


async def test_of_somebody_elses_container_no_more_is_read_than_whose_it_is(tmp_path: Path) -> None:
    """However many files are in it, the answer takes no longer: what follows the first line is not even looked at."""
    records = Records(tmp_path)
    rooms = ContainerRooms(MemorySandbox(), RecordedRows(records), None)
    made = await rooms.create(OWNER, REQUEST)
    record = records.get(made.id)
    assert record is not None
    record.contents.files = [RowFile(f"cfile_{n}", f"f{n}", 1, "v", 1.0, "user") for n in range(2_000)]
    records.put(record)
    assert records.get(made.id, OWNER) == record and records.get(made.id, "b:bob") is None
    path = tmp_path / f"{made.id}.json"
    path.write_bytes(path.read_bytes().partition(b"\n")[0] + b"\nthis is not JSON")
    assert records.get(made.id, "b:bob") is None and await rooms.get("b:bob", made.id) is None
    assert [head.id for head in records.every()] == [made.id]


@pytest.mark.parametrize(
    ("number", "reason"), [(errno.ENOSPC, "full"), (errno.EDQUOT, "full"), (errno.EACCES, "failed")]
)
def test_a_record_that_has_no_room_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, reason: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    records = Records(tmp_path)
    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(StoreError, match=os.strerror(number)) as told:
        records.put(ContainerRow("cntr_1", OWNER, "x", 1.0, 1.0, 1, 1))
    assert told.value.reason == reason and not list(tmp_path.iterdir())
    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(StoreError, match=os.strerror(number)) as told:
        records.lock("cntr_1")
    assert told.value.reason == reason


async def test_a_file_of_the_same_name_takes_the_place_of_the_other(records: _SlowRecords) -> None:
    rooms = ContainerRooms(MemorySandbox(), RecordedRows(records), None)
    made = await rooms.create(OWNER, REQUEST)

    async def content(data: bytes) -> AsyncIterator[bytes]:
        yield data

    names = [("a", b"1"), ("b", b"2"), ("a", b"three")]
    kept = [await rooms.put(OWNER, made.id, name, content(data)) for name, data in names]
    listed = await rooms.files(OWNER, made.id)
    assert listed is not None and None not in kept
    assert sorted((one.id, one.path[-1:], one.size) for one in listed) == sorted(
        (one.id, one.path[-1:], one.size) for one in kept[1:] if one is not None
    )
