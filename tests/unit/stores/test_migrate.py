"""Schema steps: order, checksums, newer databases, several processes at once."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from antiphon.errors import StoreError
from antiphon.stores.compatibility import SchemaStep
from antiphon.stores.sqlite.backend import SESSIONS_FILE
from antiphon.stores.sqlite.database import connect_writer
from antiphon.stores.sqlite.migrate import applied_steps, migrate, packaged_steps, undo
from tests.contracts.store_process import StoreProcess

ONE = SchemaStep(1, "0001_one.sql", "-- a comment; with a semicolon\nCREATE TABLE one (n INTEGER);\n")
TWO = SchemaStep(
    2,
    "0002_two.sql",
    "CREATE TABLE two (n INTEGER);\n"
    "CREATE TRIGGER copy AFTER INSERT ON one BEGIN\n  INSERT INTO two VALUES (new.n);\n  SELECT ';';\nEND;\n"
    "-- the end\n",
)
BROKEN = SchemaStep(3, "0003_broken.sql", "CREATE TABLE three (n INTEGER);\nCREATE TABLE one (n INTEGER);\n")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    connection = connect_writer(tmp_path / "test.db")
    yield connection
    connection.close()


def tables(connection: sqlite3.Connection) -> set[str]:
    return {row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}


def versions(connection: sqlite3.Connection) -> list[tuple[int, str]]:
    return connection.execute("SELECT version, sha256 FROM schema_migrations ORDER BY version").fetchall()


def test_the_package_holds_its_steps() -> None:
    steps = packaged_steps()
    assert [step.version for step in steps] == list(range(1, len(steps) + 1))
    assert steps[0].name == "0001_responses.sql"


def test_missing_steps_are_applied_in_order_and_recorded(database: sqlite3.Connection) -> None:
    migrate(database, [ONE])
    assert tables(database) == {"schema_migrations", "one"}
    migrate(database, [ONE, TWO])
    migrate(database, [ONE, TWO])
    assert versions(database) == [(1, ONE.sha256), (2, TWO.sha256)]
    database.execute("INSERT INTO one VALUES (7)")
    assert database.execute("SELECT n FROM two").fetchall() == [(7,)]


def test_a_step_that_fails_leaves_nothing(database: sqlite3.Connection) -> None:
    with pytest.raises(sqlite3.OperationalError):
        migrate(database, [ONE, TWO, BROKEN])
    assert tables(database) == set()
    assert not database.in_transaction


def test_half_a_statement_is_refused(database: sqlite3.Connection) -> None:
    with pytest.raises(StoreError, match="0001_half"):
        migrate(database, [SchemaStep(1, "0001_half.sql", "CREATE TABLE one (n INTEGER);\nCREATE TABLE two (\n")])
    assert tables(database) == set()


def test_an_edited_step_is_refused(database: sqlite3.Connection) -> None:
    migrate(database, [ONE])
    edited = SchemaStep(1, "0001_one.sql", ONE.sql.replace("one", "uno"))
    with pytest.raises(StoreError, match=r"0001_one\.sql"):
        migrate(database, [edited, TWO])
    assert tables(database) == {"schema_migrations", "one"}


def test_a_newer_database_is_refused(database: sqlite3.Connection) -> None:
    migrate(database, [ONE, TWO])
    with pytest.raises(StoreError, match="newer"):
        migrate(database, [ONE])


SERVES = next(step for step in packaged_steps() if step.name.endswith("_serves.sql"))
KNOWN = [ONE, TWO, SchemaStep(3, "0003_serves.sql", SERVES.sql)]
ADDS = SchemaStep(4, "0004_adds.sql", "-- serves: 2\nCREATE TABLE four (n INTEGER);\n", down="DROP TABLE four;\n")
TAKES = SchemaStep(5, "0005_takes.sql", "-- serves: 4\nDROP TRIGGER copy;\n")


def test_a_newer_database_whose_steps_only_add_is_served(database: sqlite3.Connection) -> None:
    migrate(database, [*KNOWN, ADDS])
    assert [(one.name, one.serves) for one in applied_steps(database)][2:] == [("0003_serves.sql", 3), (ADDS.name, 2)]
    assert migrate(database, KNOWN) == []
    migrate(database, [*KNOWN, ADDS, TAKES])
    with pytest.raises(StoreError, match=r"0005_takes.*schema 4.*knows only schema 3"):
        migrate(database, KNOWN)
    assert migrate(database, [*KNOWN, ADDS]) == []


def test_the_last_step_is_undone_where_that_is_possible(database: sqlite3.Connection) -> None:
    steps = [*KNOWN, ADDS]
    with pytest.raises(StoreError, match="nothing to undo"):
        undo(database, steps)
    migrate(database, steps)
    with pytest.raises(StoreError, match="newer version of Antiphon"):
        undo(database, KNOWN)
    assert undo(database, steps) == ADDS
    assert "four" not in tables(database)
    with pytest.raises(StoreError, match=r"0003_serves\.down\.sql.*backup"):
        undo(database, steps)
    assert migrate(database, steps) == [ADDS]


def test_a_step_undone_by_half_a_statement_stands(database: sqlite3.Connection) -> None:
    steps = [*KNOWN, SchemaStep(4, ADDS.name, ADDS.sql, down="DROP TABLE four;\nDROP TABLE (\n")]
    migrate(database, steps)
    with pytest.raises(StoreError, match="0004_adds"):
        undo(database, steps)
    assert "four" in tables(database)


@pytest.mark.parametrize("folder", ["migrations", "vector_migrations"])
def test_a_step_that_makes_a_trigger_serves_no_older_build(folder: str) -> None:
    """Which would refuse a trigger that it does not know (`migrate.py`)."""
    for step in packaged_steps(folder):
        assert "CREATE TRIGGER" not in step.sql or step.serves == step.version, step.name


def test_a_history_with_a_gap_is_refused(database: sqlite3.Connection) -> None:
    migrate(database, [ONE])
    database.execute("UPDATE schema_migrations SET version = 5")
    with pytest.raises(StoreError):
        migrate(database, [ONE, TWO])


def test_nothing_to_do_needs_no_lock(database: sqlite3.Connection, tmp_path: Path) -> None:
    migrate(database, [ONE])
    database.execute("BEGIN IMMEDIATE")
    other = sqlite3.connect(tmp_path / "test.db", isolation_level=None, timeout=0)
    migrate(other, [ONE])
    other.close()
    database.execute("ROLLBACK")


def test_many_connections_migrate_at_once(tmp_path: Path) -> None:
    barrier = threading.Barrier(8)
    failures: list[BaseException] = []

    def start() -> None:
        try:
            barrier.wait(20)
            connection = connect_writer(tmp_path / "test.db")
            migrate(connection, [ONE, TWO])
            connection.close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert failures == []


@pytest.mark.full
async def test_several_processes_start_at_once(tmp_path: Path) -> None:
    processes = [StoreProcess() for _ in range(3)]
    try:
        for number in range(3):
            data = tmp_path / str(number)
            await asyncio.gather(*[process.open("sqlite:", data) for process in processes])
            await asyncio.gather(*[process.call("responses.ping") for process in processes])
            await asyncio.gather(*[process.call("aclose") for process in processes])
            connection = sqlite3.connect(data / SESSIONS_FILE)
            assert len(versions(connection)) == len(packaged_steps())
            connection.close()
    finally:
        for process in processes:
            process.close()
