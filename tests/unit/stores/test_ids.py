"""Ids begin with the time, so that what is stored together lies together; the rest of them is random."""

from __future__ import annotations

import itertools
import sqlite3
from pathlib import Path

from antiphon import ids
from antiphon.engine.ports.actions import ResponseRecord, StoredItem
from antiphon.stores.sqlite.backend import SESSIONS_FILE, SqliteStores
from antiphon.stores.sqlite.database import connect_writer
from antiphon.stores.sqlite.response_rows import save_steps
from antiphon.stores.sqlite.units import run_steps

_BEFORE, _GROUP = 2_000, 16
_PAGE_AND_HEAD = 4096 + 24


def _stopped(at: float) -> ids.Clock:
    return lambda: at


def test_ids_of_later_stand_behind_those_of_before() -> None:
    # A clock of the years in which ids have one digit less or more sorts no differently.
    times = (1_000_000_000.0, 1_750_000_000.0, 1_750_000_000.001, 1_750_000_001.0, 20_000_000_000.0)
    made = [ids.new_id("resp", _stopped(at)) for at in times]
    assert made == sorted(made)
    assert {len(one) for one in made} == {53} and all(ids.is_id(one, "resp") for one in made)


def test_ids_of_one_moment_have_nothing_else_in_common() -> None:
    made = [ids.new_id("resp", _stopped(1_750_000_000.0)).removeprefix("resp_") for _ in range(500)]
    assert {one[:12] for one in made} == {f"{1_750_000_000_000:012x}"}
    rest = [bytes.fromhex(one[12:]) for one in made]
    assert {len(one) for one in rest} == {18}, "128 random bits at least"
    for at in range(18):
        assert len({one[at] for one in rest}) > 100, "every byte of it is random"


def _record() -> ResponseRecord:
    items = [StoredItem(ids.new_id("msg"), "message", b"{}") for _ in range(2)]
    known = (None, "completed", "m", 1.0, 2.0, b"{}")
    return ResponseRecord(ids.new_id("resp"), "owner", *known, (items[0],), (items[1],))


def _save(connection: sqlite3.Connection, count: int) -> None:
    connection.execute("BEGIN")
    for record in itertools.islice(iter(_record, None), count):
        run_steps(connection, save_steps(record))
    connection.execute("COMMIT")


async def test_a_group_of_responses_changes_few_pages_of_a_database(stores: SqliteStores, tmp_path: Path) -> None:
    connection = connect_writer(tmp_path / SESSIONS_FILE)
    _save(connection, _BEFORE)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    _save(connection, _GROUP)
    pages = (tmp_path / f"{SESSIONS_FILE}-wal").stat().st_size // _PAGE_AND_HEAD
    connection.close()
    # Ids that are random from the start change a page for each in each of seven indexes: 134 in all.
    assert pages < 70, "these change 39"
