"""What waits for a lock or a key, for how long, and what is left when it does not get it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from antiphon.engine.ports.actions import OnceOnly
from antiphon.engine.ports.idempotency import AlreadyMade, LeftBehind
from antiphon.errors import ApiError, StoreError
from antiphon.stores.compatibility import SchemaStep
from antiphon.stores.idempotency import IdempotencyStore
from antiphon.stores.sqlite import tables as sqlite_tables
from antiphon.stores.sqlite.database import connect_writer, create_file, store_error, wait_for_lock
from antiphon.stores.sqlite.migrate import migrate
from antiphon.stores.sqlite.tables import SqliteTables
from antiphon.stores.tables import RowsMissing, Statement
from tests.contracts.store_contract import ALICE
from tests.support.left_open import left_open

# Waiting for a lock


class _Time:
    def __init__(self) -> None:
        self.now = 100.0

    def wait(self, action: Callable[[], str]) -> str:
        return wait_for_lock(action, 3.0, clock=lambda: self.now, sleep=self.pass_)

    def pass_(self, seconds: float) -> None:
        assert 0 < seconds < 0.1
        self.now += 1.0


def _busy(code: int = sqlite3.SQLITE_BUSY) -> sqlite3.OperationalError:
    made = sqlite3.OperationalError("database is locked")
    made.sqlite_errorcode = code
    return made


@pytest.mark.parametrize("code", [sqlite3.SQLITE_BUSY, sqlite3.SQLITE_BUSY_SNAPSHOT])
@pytest.mark.parametrize(("times", "got"), [(0, True), (3, True), (4, False)])
def test_a_lock_is_waited_for_so_long(code: int, times: int, got: bool) -> None:
    time = _Time()
    tries = 0

    def action() -> str:
        nonlocal tries
        tries += 1
        if tries <= times:
            raise _busy(code)
        return "done"

    if got:
        assert time.wait(action) == "done"
    else:
        # Tried at 0, 1 and 2 seconds, and once more when the time is over.
        with pytest.raises(sqlite3.OperationalError):
            time.wait(action)
        assert tries == 4


def test_other_errors_are_not_waited_for() -> None:
    time = _Time()

    def fails() -> str:
        raise _busy(sqlite3.SQLITE_LOCKED)

    with pytest.raises(sqlite3.OperationalError):
        time.wait(fails)
    assert time.now == 100.0


@pytest.mark.usefixtures("nothing_open")
def test_how_a_database_is_opened_for_writing(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    create_file(path)
    create_file(path)
    connection = connect_writer(path)
    asked = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "journal_size_limit": 64 << 20}
    assert {name: connection.execute(f"PRAGMA {name}").fetchone()[0] for name in asked} == asked
    assert connection.isolation_level is None
    connection.close()
    before = left_open()
    # SQLite has no write-ahead log for a database in memory.
    with pytest.raises(StoreError, match=r"write-ahead log here \(journal mode memory\)") as told:
        connect_writer(Path(":memory:"))
    # Not only when what was raised is forgotten.
    assert left_open() == before and told.value.reason == "failed"
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="is not a folder"):
        create_file(tmp_path / "file" / "x.db")


@pytest.mark.parametrize(
    ("code", "reason", "words"),
    [
        (sqlite3.SQLITE_BUSY, "locked", "held the database's lock for too long"),
        (sqlite3.SQLITE_IOERR | 3 << 8, "failed", "reported an error"),
        (sqlite3.SQLITE_FULL, "full", "the disk is full"),
        (sqlite3.SQLITE_CORRUPT, "damaged", "the database is damaged"),
        (sqlite3.SQLITE_AUTH, "failed", "SQLite refused it"),
    ],
)
def test_what_an_error_of_the_database_means(code: int, reason: str, words: str) -> None:
    made = _busy(code)
    made.sqlite_errorname = "NAMED"
    told = store_error("Reading", Path("/x.db"), made)
    assert told.reason == reason and words in str(told) and str(told).endswith("(NAMED).")
    assert store_error("Reading", Path("/x.db"), told) is told


# Steps of the schema, and leases


def test_steps_that_fail_leave_no_transaction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    with pytest.raises(sqlite3.OperationalError):
        migrate(connection, [SchemaStep(1, "0001_a.sql", "CREATE TABLE a (n);\nCREATE TABLE a (n);\n")])
    assert not connection.in_transaction
    assert connection.execute("SELECT count(*) FROM sqlite_schema").fetchone() == (0,)
    connection.execute("CREATE TABLE lease_clock (boot TEXT)")
    connection.execute("CREATE TABLE t (n)")
    with pytest.raises(sqlite3.OperationalError):
        sqlite_tables.prepare_lease_clock(connection, ["INSERT INTO t VALUES (1)", "DELETE FROM none"], "one")
    assert not connection.in_transaction and connection.execute("SELECT count(*) FROM t").fetchone() == (0,)
    for boot, ends in (("one", 1), ("one", 1), ("two", 2)):
        sqlite_tables.prepare_lease_clock(connection, ["INSERT INTO t VALUES (1)"], boot)
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (ends,)
        assert connection.execute("SELECT boot FROM lease_clock").fetchall() == [(boot,)]
        assert not connection.in_transaction
    (at,) = connection.execute("SELECT lease_now()").fetchone()
    assert 0 <= sqlite_tables.lease_now() - at < 60_000
    connection.close()


# Keys of requests: who was faster


class _Units:
    """A writer whose units end as they are told to, and readers that say what has the key."""

    def __init__(self, *ends: bool) -> None:
        self.ends = list(ends)
        self.ran: list[tuple[list[Statement], list[Statement]]] = []
        self.rows: list[list[tuple[str, str, int | None, int | None]]] = []

    async def run(self, unit: list[Statement], *, undo: list[Statement] = []) -> tuple[int, ...]:  # noqa: B006
        self.ran.append((unit, undo))
        if self.ends and not self.ends.pop(0):
            if any("DO NOTHING" in one.sql and one.rows is None for one in unit):
                return (0, 0)
            raise RowsMissing("none")
        return (0, 1)

    async def fetch(self, sql: str, named: Any, *, own: bool = False) -> list[tuple[str, str, int | None, int | None]]:
        return self.rows.pop(0) if self.rows else []

    def keys(self) -> IdempotencyStore:
        return IdempotencyStore(SqliteTables(self, self), clock=lambda: 5.0)  # type: ignore[arg-type]


ONCE = OnceOnly(ALICE, "k", "f")
UNIT, UNDO = [Statement("UNIT")], [Statement("UNDO")]


@pytest.mark.parametrize(("ends", "tries"), [((True,), 1), ((False, True), 2), ((False, False, True), 3)])
async def test_a_key_that_became_free_is_tried_again(ends: tuple[bool, ...], tries: int) -> None:
    units = _Units(*ends)
    assert await units.keys().claim(ONCE, "resp_a", 1.0) is None
    assert len(units.ran) == tries and all("DELETE" in undo[0].sql for _, undo in units.ran)


async def test_a_key_that_is_never_to_be_had_is_in_progress() -> None:
    units = _Units(False, False, False, True)
    with pytest.raises(ApiError):
        await units.keys().claim(ONCE, "resp_a", 1.0)
    assert len(units.ran) == 3


async def test_what_is_made_with_a_key_is_tried_once_more() -> None:
    units = _Units(False, True)
    await units.keys().make(ONCE, "conv_a", UNIT, UNDO)
    assert [(unit[-1].sql, undo[0].sql, len(undo)) for unit, undo in units.ran] == [("UNIT", "UNDO", 2)] * 2
    units = _Units(False, False, True)
    with pytest.raises(RowsMissing):
        await units.keys().make(ONCE, "conv_a", UNIT, UNDO)
    assert len(units.ran) == 2
    # What may not be undone keeps its key too; without a key there is only the unit.
    for once, undo, said in ((ONCE, [], []), (None, UNDO, UNDO), (None, [], [])):
        units = _Units(True)
        await units.keys().make(once, "conv_a", UNIT, list(undo))
        assert units.ran[0][1] == said and (units.ran[0][0] == UNIT) is (once is None)


@pytest.mark.parametrize(
    ("has", "raised"),
    [
        (("f", "conv_0", None, None), AlreadyMade),
        (("g", "conv_0", None, None), ApiError),
        (("f", "conv_0", 7, 0), ApiError),
        (("f", "conv_0", 7, 1), LeftBehind),
    ],
)
async def test_who_has_a_key_is_told(has: tuple[str, str, int | None, int | None], raised: type[Exception]) -> None:
    units = _Units(False)
    units.rows = [[has]]
    with pytest.raises(raised) as told:
        await units.keys().make(ONCE, "conv_a", UNIT, UNDO)
    if isinstance(told.value, AlreadyMade):
        assert told.value.object_id == "conv_0"
    units = _Units(False)
    units.rows = [[has]]
    if raised is AlreadyMade:
        assert await units.keys().claim(ONCE, "resp_a", 1.0) == "conv_0"
    else:
        with pytest.raises(raised):
            await units.keys().claim(ONCE, "resp_a", 1.0)


def test_what_binds_a_key_and_what_takes_that_back() -> None:
    keys = _Units().keys()
    assert keys.bound(None, "resp_a") == ([], [])
    bind, unbind = keys.bound(ONCE, "resp_a")
    assert bind[0].rows == 1 and "UPDATE" in bind[0].sql and "DELETE" in unbind[0].sql
    named = bind[0].parameters
    assert isinstance(named, dict) and (named["now_ms"], named["keep"]) == (5_000, 86_400_000)
