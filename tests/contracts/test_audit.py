"""What every `AuditStore` must do, on every state."""

from __future__ import annotations

import asyncio
import hashlib

import pytest

from antiphon.engine.ports.callers import Access, ClientKey
from antiphon.stores import Stores
from antiphon.stores.audit import AuditEntry, AuditStore

KEY = ClientKey("key_1", "laptop", "n:anna", "lab", "ant_abcd", Access(), 0.0)


@pytest.fixture
def store(state: Stores) -> AuditStore:
    return state.audit


async def test_the_newest_rows_come_first_and_an_owner_has_two_names(store: AuditStore) -> None:
    for number in range(4):
        noted = AuditEntry("cli:me", "keys create", f"key_{number}", "n:anna" if number % 2 else "b:1", {"name": "ä"})
        await store.note(noted)
    rows = await store.list()
    assert sorted(one.object for one in rows) == [f"key_{number}" for number in range(4)]
    assert [one.at for one in rows] == sorted((one.at for one in rows), reverse=True) and rows[-1].at > 1e9
    assert rows[0].detail == {"name": "ä"} and rows[0].actor == "cli:me" and rows[0].action == "keys create"
    assert len(await store.list(owner="anna")) == len(await store.list(owner="n:anna")) == 2
    assert await store.list(limit=2) == rows[:2]
    assert await store.list(since=rows[0].at + 60) == []


async def test_both_owners_of_a_move_find_its_row(store: AuditStore) -> None:
    for action in ("move-owner", "adopt-owner"):
        await store.note(AuditEntry("cli:me", action, "b:1", "n:anna"))
        # Rows of one millisecond have no order.
        await asyncio.sleep(0.002)
    await store.note(AuditEntry("console", "file delete", "b:1", "n:ben"))
    for owner in ("b:1", "n:anna", "anna"):
        assert [one.action for one in await store.list(owner=owner, changes=True)] == ["adopt-owner", "move-owner"]


async def test_the_row_of_a_change_is_stored_with_the_change_or_not_at_all(state: Stores, store: AuditStore) -> None:
    row = store.statement(AuditEntry("cli:me", "keys revoke", "key_1", "n:anna"))
    assert not await state.client_keys.revoke("key_1", row)
    assert await store.list() == []
    assert await state.client_keys.create(KEY, hashlib.sha256(b"1").digest(), None)
    assert await state.client_keys.revoke("key_1", row)
    assert [one.action for one in await store.list()] == ["keys revoke"]


async def test_a_sweep_keeps_the_newest_rows(store: AuditStore) -> None:
    for number in range(5):
        await store.note(AuditEntry("cli:me", "purge", str(number)))
    rows = await store.list()
    assert await store.sweep(3600.0) == 0 and await store.sweep(None) == 0
    assert await store.sweep(None, most=3) == 2
    assert await store.list() == rows[:3]
    # A row that is older than the future is any row.
    assert await store.sweep(-3600.0) == 3 and await store.list() == []


async def test_equal_reads_of_a_period_leave_one_row(store: AuditStore) -> None:
    noted = AuditEntry("console", "read file", "file_1", "n:anna")
    # The test ends in the same period, because the period is longer than a year.
    period = 1e9
    assert [await store.note_read(noted, period) for _ in range(3)] == [True, False, False]
    for other in (
        AuditEntry("admin-api", "read file", "file_1", "n:anna"),
        AuditEntry("console", "read response", "file_1", "n:anna"),
        AuditEntry("console", "read file", "file_2", "n:anna"),
        AuditEntry("console", "read file", "file_1", "n:bo"),
    ):
        assert await store.note_read(other, period)
    assert await store.note_read(noted, 2 * period), "another period has another row"
    rows = await store.list()
    assert len(rows) == 6 and rows[-1].at > 1e9
    assert {(one.actor, one.action, one.object, one.owner) for one in rows if one.owner == "n:bo"} == {
        ("console", "read file", "file_1", "n:bo")
    }


async def test_many_reads_displace_no_change(store: AuditStore) -> None:
    await store.note(AuditEntry("cli:me", "keys create", "key_1", "n:anna"))
    for number in range(4):
        await store.note_read(AuditEntry("admin-api", "read usage", owner=f"n:{number}"))
    assert await store.sweep(None, most=2) == 2
    rows = await store.list()
    assert sorted(one.action for one in rows) == ["keys create", "read usage", "read usage"]
    assert [one.action for one in await store.list(changes=True)] == ["keys create"]
    assert [one.action for one in await store.list(changes=True, owner="anna", limit=1)] == ["keys create"]
