"""The writer thread: groups, savepoints, limits, closing."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from antiphon.errors import StoreError
from antiphon.stores.sqlite.database import FilePlace
from antiphon.stores.sqlite.units import Insertion, Rows
from antiphon.stores.sqlite.writer import SqliteWriter, WriterLimits, pause_after
from antiphon.stores.tables import RowsMissing, Statement


class Probe:
    """A table `t`, and a gate: the statement `GATE` keeps the writer thread busy until `open` is called."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.gate = threading.Event()
        self.commits = 0
        self.ran: list[str] = []
        """Statements that begin or undo something."""

    def prepare(self, connection: sqlite3.Connection) -> None:
        connection.execute("CREATE TABLE IF NOT EXISTS t (n INTEGER PRIMARY KEY, text TEXT)")
        connection.execute("CREATE TABLE IF NOT EXISTS child (n INTEGER REFERENCES t (n))")
        connection.execute(
            "CREATE TRIGGER IF NOT EXISTS fatal BEFORE INSERT ON t WHEN new.text = 'fatal' "
            "BEGIN SELECT RAISE(ROLLBACK, 'gone'); END"
        )
        connection.create_function("gate", 0, self._wait)
        connection.set_trace_callback(self._trace)

    def _wait(self) -> int:
        self.entered.set()
        assert self.gate.wait(20)
        return 1

    def _trace(self, sql: str) -> None:
        self.commits += sql == "COMMIT"
        if sql.split()[0] in ("BEGIN", "SAVEPOINT", "ROLLBACK"):
            self.ran.append(sql)

    def open(self) -> None:
        self.gate.set()


GATE = Statement("SELECT gate()")


def insert(n: int, text: str = "", *, rows: int | None = None) -> Statement:
    return Statement("INSERT INTO t (n, text) VALUES (?, ?)", (n, text), rows=rows)


def stored(path: Path) -> list[int]:
    connection = sqlite3.connect(path)
    try:
        return [row[0] for row in connection.execute("SELECT n FROM t ORDER BY n")]
    finally:
        connection.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "test.db"


@pytest.fixture
def probe() -> Probe:
    return Probe()


@pytest.fixture
async def writer(path: Path, probe: Probe) -> AsyncIterator[SqliteWriter]:
    writer = SqliteWriter(path, probe.prepare, WriterLimits(queued=100, lock_seconds=0.1))
    await writer.start()
    yield writer
    probe.open()
    await writer.aclose()


async def busy(writer: SqliteWriter, probe: Probe) -> asyncio.Task[tuple[int, ...]]:
    """Keep the thread busy, so that all units queued from now on form the next group."""
    task = asyncio.create_task(writer.run([GATE]))
    assert await asyncio.to_thread(probe.entered.wait, 20)
    return task


async def queue(writer: SqliteWriter, *units: list[Statement] | list[Rows]) -> list[asyncio.Task[tuple[int, ...]]]:
    tasks = [asyncio.create_task(writer.run(unit)) for unit in units]
    await asyncio.sleep(0)  # each task has queued its unit once it ran until its first await
    return tasks


async def test_a_unit_reports_the_rows_of_each_statement(writer: SqliteWriter, path: Path) -> None:
    many = Statement("INSERT INTO t (n) VALUES (?)", [(2,), (3,)], many=True)
    none = Statement("INSERT INTO t (n) VALUES (?)", [], many=True)
    update = Statement("UPDATE t SET text = 'x' WHERE n > :n", {"n": 1})
    assert await writer.run([insert(1), many, none, update]) == (1, 2, 0, 2)
    assert stored(path) == [1, 2, 3]


async def test_units_that_wait_share_one_commit(writer: SqliteWriter, probe: Probe, path: Path) -> None:
    first = await busy(writer, probe)
    before = probe.commits
    tasks = await queue(writer, *[[insert(n)] for n in range(100)])
    probe.open()
    await asyncio.gather(first, *tasks)
    assert probe.commits == before + 2  # the one that was running, and one for the hundred
    assert stored(path) == list(range(100))


async def test_units_of_one_turn_of_the_event_loop_are_one_group(writer: SqliteWriter, path: Path) -> None:
    async def work() -> None:
        time.sleep(0.05)  # noqa: ASYNC251 - of another request, in the same turn: the thread could run meanwhile

    await asyncio.gather(writer.run([insert(1)]), work(), writer.run([insert(2)]))
    assert writer.groups == {2: 1}
    assert stored(path) == [1, 2]


async def test_a_thread_that_becomes_free_in_the_middle_of_a_turn_waits_for_its_end(
    writer: SqliteWriter, probe: Probe, path: Path
) -> None:
    first = await busy(writer, probe)

    async def work() -> None:
        probe.open()
        while not writer.groups[1]:
            time.sleep(0.001)  # noqa: ASYNC251 - in the same turn: the thread commits its group
        time.sleep(0.05)  # noqa: ASYNC251 - in the same turn: the thread could take the first unit

    await asyncio.gather(writer.run([insert(1)]), work(), writer.run([insert(2)]), first)
    assert writer.groups == {1: 1, 2: 1}
    assert stored(path) == [1, 2]


async def test_a_group_has_a_limit(path: Path, probe: Probe) -> None:
    writer = SqliteWriter(path, probe.prepare, WriterLimits(group=10))
    await writer.start()
    first = await busy(writer, probe)
    before = probe.commits
    tasks = await queue(writer, *[[insert(n)] for n in range(35)])
    probe.open()
    await asyncio.gather(first, *tasks)
    assert probe.commits == before + 1 + 4
    await writer.aclose()


@pytest.mark.parametrize(
    "bad",
    [
        insert(1),
        insert(50, rows=2),
        Statement("UPDATE t SET text = '' WHERE n = 99", rows=1),
        Statement("INSERT INTO nowhere VALUES (1)"),
        Statement("INSERT INTO child (n) VALUES (12345)"),
        Statement("INSERT INTO t (n) VALUES (?)", (object(),)),
        Statement("INSERT INTO t (n) VALUES (?)", (1 << 70,)),
        Statement("INSERT INTO t (n, text) VALUES (51, ?)", ("\ud800",)),
        Statement("INSERT INTO t (n) VALUES (?)", [(52,), (53,), (1,)], many=True),
    ],
    ids=["duplicate", "rows", "no-row", "no-table", "foreign-key", "type", "overflow", "surrogate", "many"],
)
async def test_a_failing_unit_is_undone_alone(writer: SqliteWriter, probe: Probe, path: Path, bad: Statement) -> None:
    first = await busy(writer, probe)
    before, failing, after = await queue(writer, [insert(1)], [insert(2), bad, insert(3)], [insert(4)])
    probe.open()
    await asyncio.gather(first, before, after)
    with pytest.raises(StoreError):
        await failing
    assert stored(path) == [1, 4]
    await writer.run([insert(5)])
    assert stored(path) == [1, 4, 5]


async def test_one_of_units_that_are_added_together_is_undone_alone(
    writer: SqliteWriter, probe: Probe, path: Path
) -> None:
    first = await busy(writer, probe)
    insertion = Insertion("INSERT INTO t (n) VALUES", "(?)")
    tasks = await queue(writer, *[[Rows(insertion, (n,), light=True)] for n in (1, 2, 2, 3)])
    probe.open()
    await first
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [outcome if outcome == (1,) else type(outcome) for outcome in outcomes] == [(1,), (1,), StoreError, (1,)]
    assert stored(path) == [1, 2, 3]


async def test_units_that_succeed_need_no_savepoint(writer: SqliteWriter, probe: Probe) -> None:
    first = await busy(writer, probe)
    tasks = await queue(writer, *[[insert(n)] for n in range(10)])
    del probe.ran[:]
    probe.open()
    await asyncio.gather(first, *tasks)
    assert probe.ran == ["BEGIN IMMEDIATE"]


async def test_what_the_neighbours_of_a_failing_unit_are_told_is_what_they_did_in_the_end(
    writer: SqliteWriter, probe: Probe, path: Path
) -> None:
    # A counter, which the neighbours read and raise: what they would be told of the first try is wrong in the second.
    await writer.run([insert(1, "1")])
    raised: list[list[tuple[str]]] = [[], [], []]

    def add(n: int) -> list[Statement]:
        returning = "UPDATE t SET text = text + 1 WHERE n = 1 RETURNING text"
        return [
            insert(10 * n),
            Statement(returning, into=raised[n]),
            Statement("UPDATE t SET text = text WHERE n >= 10"),
        ]

    first = await busy(writer, probe)
    before, failing, after = await queue(writer, add(1), [*add(0), insert(1)], add(2))
    del probe.ran[:]
    probe.open()
    await first
    assert (await before, await after) == ((1, 1, 1), (1, 1, 2))
    with pytest.raises(StoreError):
        await failing
    assert (raised[1], raised[2]) == ([("2",)], [("3",)])
    assert stored(path) == [1, 10, 20]
    assert probe.ran == [
        *("BEGIN IMMEDIATE", "ROLLBACK"),
        *("BEGIN IMMEDIATE", "SAVEPOINT unit", "SAVEPOINT unit", "ROLLBACK TO unit", "SAVEPOINT unit"),
    ]


async def test_rows_missing_is_told_apart(writer: SqliteWriter) -> None:
    with pytest.raises(RowsMissing):
        await writer.run([Statement("DELETE FROM t WHERE n = 7", rows=1)])


async def test_a_commit_that_fails_fails_the_whole_group(writer: SqliteWriter, probe: Probe, path: Path) -> None:
    first = await busy(writer, probe)
    orphan = [Statement("PRAGMA defer_foreign_keys=ON"), Statement("INSERT INTO child (n) VALUES (12345)")]
    tasks = await queue(writer, [insert(1)], orphan, [insert(2)])
    probe.open()
    await first
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(error, StoreError) for error in errors)
    assert len({id(error) for error in errors}) == 3
    await writer.run([insert(3)])
    assert stored(path) == [3]


async def test_an_error_that_ends_the_transaction_fails_the_whole_group(
    writer: SqliteWriter, probe: Probe, path: Path
) -> None:
    first = await busy(writer, probe)
    tasks = await queue(writer, [insert(1)], [insert(2, "fatal")], [insert(3)])
    probe.open()
    await first
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(error, StoreError) for error in errors)
    await writer.run([insert(4)])
    assert stored(path) == [4]


async def test_a_full_disk_is_said_and_survived(path: Path, probe: Probe) -> None:
    def prepare(connection: sqlite3.Connection) -> None:
        probe.prepare(connection)
        connection.execute("PRAGMA max_page_count=30")

    writer = SqliteWriter(path, prepare)
    await writer.start()
    await writer.run([insert(1)])
    with pytest.raises(StoreError, match="disk is full"):
        await writer.run([insert(2, "x" * 500_000)])
    await writer.run([insert(3)])
    await writer.aclose()
    assert stored(path) == [1, 3]


async def test_a_full_queue_refuses_at_once(path: Path, probe: Probe) -> None:
    writer = SqliteWriter(path, probe.prepare, WriterLimits(queued=3))
    await writer.start()
    first = await busy(writer, probe)
    tasks = await queue(writer, [insert(1)], [insert(2)], [insert(3)])
    with pytest.raises(StoreError, match="overloaded"):
        await writer.run([insert(4)])
    probe.open()
    await asyncio.gather(first, *tasks)
    await writer.run([insert(5)])
    await writer.aclose()
    assert stored(path) == [1, 2, 3, 5]


async def test_closing_runs_what_is_queued(path: Path, probe: Probe) -> None:
    writer = SqliteWriter(path, probe.prepare, WriterLimits(group=7))
    await writer.start()
    first = await busy(writer, probe)
    tasks = await queue(writer, *[[insert(n)] for n in range(60)])
    closing = [asyncio.create_task(writer.aclose()) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(StoreError, match="closed"):
        await writer.run([insert(99)])
    probe.open()
    await asyncio.gather(first, *tasks, *closing)
    await writer.aclose()
    assert stored(path) == list(range(60))
    assert sorted(each.name for each in path.parent.iterdir()) == ["test.db"]


async def test_a_caller_that_leaves_withdraws_a_unit_not_begun(writer: SqliteWriter, probe: Probe, path: Path) -> None:
    first = await busy(writer, probe)
    leaving, staying = await queue(writer, [insert(1)], [insert(2)])
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    probe.open()
    await asyncio.gather(first, staying)
    assert stored(path) == [2]


async def test_a_caller_that_leaves_late_harms_nobody(writer: SqliteWriter, probe: Probe, path: Path) -> None:
    leaving = await busy(writer, probe)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    probe.open()
    await writer.run([insert(1)])
    assert stored(path) == [1]


async def test_another_writers_lock_is_waited_for(path: Path, probe: Probe) -> None:
    writer = SqliteWriter(path, probe.prepare, WriterLimits(lock_seconds=20))
    await writer.start()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    (task,) = await queue(writer, [insert(1)])
    done, _ = await asyncio.wait([task], timeout=0.05)
    assert not done
    other.execute("COMMIT")
    other.close()
    await task
    await writer.aclose()


async def test_a_lock_held_too_long_is_an_error_that_passes(writer: SqliteWriter, path: Path) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="SQLITE_BUSY"):
        await writer.run([insert(1)])
    other.execute("COMMIT")
    other.close()
    await writer.run([insert(2)])
    assert stored(path) == [2]


async def test_every_event_loop_gets_its_own_answers(writer: SqliteWriter, path: Path) -> None:
    def elsewhere() -> None:
        async def several() -> None:
            await asyncio.gather(*[writer.run([insert(n)]) for n in range(100, 150)])

        asyncio.run(several())

    await asyncio.gather(asyncio.to_thread(elsewhere), *[writer.run([insert(n)]) for n in range(50)])
    assert stored(path) == [*range(50), *range(100, 150)]


async def test_a_start_that_fails_says_why_and_leaves_no_thread(path: Path) -> None:
    def prepare(connection: sqlite3.Connection) -> None:
        raise ValueError("cannot")

    writer = SqliteWriter(path, prepare)
    with pytest.raises(StoreError) as caught:
        await writer.start()
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(StoreError, match="closed"):
        await writer.run([insert(1)])
    await writer.aclose()
    assert "antiphon-sqlite-writer" not in [thread.name for thread in threading.enumerate()]


async def test_what_waits_for_a_start_that_fails_is_told(path: Path) -> None:
    def prepare(connection: sqlite3.Connection) -> None:
        raise ValueError("cannot")

    writer = SqliteWriter(path, prepare)
    early = asyncio.create_task(writer.run([insert(1)]))
    await asyncio.sleep(0)
    with pytest.raises(StoreError):
        await writer.start()
    with pytest.raises(StoreError, match="is closed"):
        await early
    await writer.aclose()


async def test_a_writer_never_started_can_be_closed(path: Path, probe: Probe) -> None:
    await SqliteWriter(path, probe.prepare).aclose()


async def test_errors_hold_no_stored_content(writer: SqliteWriter) -> None:
    await writer.run([insert(1, "secret")])
    with pytest.raises(StoreError) as caught:
        await writer.run([insert(1, "secret")])
    assert "secret" not in str(caught.value) and "SQLITE_CONSTRAINT" in str(caught.value)


async def test_the_connection_is_durable(path: Path) -> None:
    seen: dict[str, object] = {}

    def prepare(connection: sqlite3.Connection) -> None:
        for name in ("journal_mode", "synchronous", "foreign_keys"):
            seen[name] = connection.execute(f"PRAGMA {name}").fetchone()[0]

    writer = SqliteWriter(path, prepare)
    await writer.start()
    await writer.aclose()
    assert seen == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


async def test_of_files_that_are_gone_the_error_says_so_whatever_the_statements_said(
    writer: SqliteWriter, path: Path
) -> None:
    path.unlink()
    with pytest.raises(StoreError, match="was deleted") as told:
        await writer.run([insert(1, "fatal")])
    assert told.value.reason == "gone"


# Several writers of one file


@pytest.mark.parametrize(
    ("held", "pause"), [(0.0, 0.0), (0.009, 0.0), (0.01, 0.001), (0.03, 0.003), (0.05, 0.005), (9.0, 0.005)]
)
def test_pause_is_a_tenth_of_a_long_transaction(held: float, pause: float) -> None:
    assert pause_after(held) == pytest.approx(pause)


class SlowDisk(FilePlace):
    """Each transaction holds the write lock for 40 ms: `check` runs before and after each commit."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._checks = 0

    def check(self) -> None:
        super().check()
        self._checks += 1
        if self._checks % 2:
            time.sleep(0.04)


async def test_a_writer_that_commits_without_end_lets_another_write(tmp_path: Path) -> None:
    """On a slow disk, the lock is free only for moments. Another writer gets the lock after few commits."""
    path = tmp_path / "shared.db"
    busy = SqliteWriter(SlowDisk(path), Probe().prepare)
    other = SqliteWriter(path, Probe().prepare)
    await busy.start()
    await other.start()
    done = asyncio.Event()

    async def commit_without_end() -> None:
        n = 1000
        while not done.is_set():
            await busy.run([insert(n := n + 1)])

    try:
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            tasks.create_task(commit_without_end())
            passed = 0
            for n in range(10):
                commits = busy.groups[1]
                while busy.groups[1] == commits:  # until the busy writer holds the lock again
                    await asyncio.sleep(0)
                before = busy.groups[1]
                await other.run([insert(n)])
                passed += busy.groups[1] - before
            done.set()
    finally:
        await other.aclose()
        await busy.aclose()
    assert passed <= 15  # about 50 without the pause
