"""GroupCommit of units that are alike: what they add is added together, and means what each would mean alone."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from antiphon.stores.sqlite.units import Insertion, Rows, Step, Unit, adds, run_steps, run_together
from antiphon.stores.tables import RowsMissing, Statement

TABLE = Insertion("INSERT INTO t (n, text) VALUES", "(?, ?)")
# Adds only what is in `t`.
KNOWN = Insertion(
    "INSERT INTO child (n, parent) SELECT given.column1, t.n FROM (VALUES",
    "(?, ?)",
    ") given CROSS JOIN t ON t.n = given.column2",
)


@pytest.fixture
def ran() -> list[str]:
    """The statements that add."""
    return []


@pytest.fixture
def connection(ran: list[str]) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute("CREATE TABLE t (n INTEGER PRIMARY KEY, text TEXT)")
    connection.execute("CREATE TABLE child (n INTEGER PRIMARY KEY, parent INTEGER NOT NULL REFERENCES t (n))")
    connection.execute("PRAGMA foreign_keys=ON")
    connection.set_trace_callback(lambda sql: ran.append(sql) if sql.startswith("INSERT") else None)
    connection.execute("BEGIN")
    yield connection
    connection.close()


def units(*each: Sequence[Any]) -> list[Unit]:
    loop = asyncio.new_event_loop()
    loop.close()
    return [Unit(steps, (), asyncio.Future(loop=loop), loop) for steps in each]


def row(n: int, *, light: bool = True) -> Rows:
    return Rows(TABLE, (n, f"text {n}"), light)


def numbers(connection: sqlite3.Connection, table: str = "t") -> list[int]:
    return [found[0] for found in connection.execute(f"SELECT n FROM {table} ORDER BY n")]


def test_rows_of_units_that_are_alike_are_added_by_one_statement(
    connection: sqlite3.Connection, ran: list[str]
) -> None:
    group = units(*[[row(n), Statement("SELECT 1"), Rows(KNOWN, (n, n, 10 + n, n), light=True)] for n in range(3)])
    assert run_together(connection, group)
    assert len(ran) == 2
    assert numbers(connection) == [0, 1, 2]
    assert numbers(connection, "child") == [0, 1, 2, 10, 11, 12]
    assert [unit.result for unit in group] == [(1, -1, 2)] * 3
    assert connection.execute("SELECT text FROM t WHERE n = 2").fetchone() == ("text 2",)


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 16, 17, 31, 32, 33, 100])
def test_any_number_of_rows(connection: sqlite3.Connection, ran: list[str], count: int) -> None:
    group = units(*[[row(n)] for n in range(count)])
    assert run_together(connection, group)
    assert numbers(connection) == list(range(count))
    assert [unit.result for unit in group] == [(1,)] * count
    assert len(ran) <= count // 32 + 3


def test_rows_of_one_unit(connection: sqlite3.Connection) -> None:
    values: list[Any] = [value for n in range(45) for value in (n, None)]
    assert run_steps(connection, [Rows(TABLE, tuple(values)), Rows(TABLE, ())]) == (45, 0)
    assert numbers(connection) == list(range(45))


@pytest.mark.parametrize(
    "other",
    [
        pytest.param([row(2, light=False)], id="heavy"),
        pytest.param([row(2), row(3)], id="more steps"),
        pytest.param([Rows(KNOWN, (2, 1), light=True)], id="another table"),
        pytest.param([Statement("INSERT INTO t (n) VALUES (2)")], id="a statement"),
    ],
)
def test_a_unit_that_is_not_like_the_others_is_run_alone(
    connection: sqlite3.Connection, ran: list[str], other: list[Step]
) -> None:
    group = units([row(1)], other, [row(9)])
    assert run_together(connection, group)
    assert len(ran) == 1 + len(other), "the first and the last are alike"
    assert [unit.result for unit in group] == [(1,), (1,) * len(other), (1,)]


def test_statements_keep_their_order_before_rows_that_do_not_come_first(
    connection: sqlite3.Connection, ran: list[str]
) -> None:
    """What begins with a statement may look at what the unit before it did."""
    group = units(*[[Statement("INSERT INTO t (n) SELECT count(*) FROM child"), row(n)] for n in (10, 20)])
    assert not run_together(connection, group), "both say the same number"
    assert len(ran) == 3


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(Rows(KNOWN, (5, 99), light=True), id="a row that is missing"),
        pytest.param(Rows(KNOWN, (1, 1), light=True), id="a key that is there"),
    ],
)
def test_one_that_fails_fails_the_group(connection: sqlite3.Connection, bad: Rows) -> None:
    connection.execute("INSERT INTO t (n) VALUES (1)")
    connection.execute("INSERT INTO child VALUES (1, 1)")
    group = units([Rows(KNOWN, (2, 1), light=True)], [bad], [Rows(KNOWN, (3, 1), light=True)])
    assert not run_together(connection, group)
    connection.execute("ROLLBACK")


def test_rows_missing_are_told_apart(connection: sqlite3.Connection) -> None:
    with pytest.raises(RowsMissing):
        run_steps(connection, [Rows(KNOWN, (5, 99))])


def test_what_takes_room() -> None:
    assert [adds(unit) for unit in units([row(1)], [Rows(TABLE, ())], [Statement("SELECT 1")])] == [True, False, False]


SUM = """INSERT INTO t (n, text) VALUES (CAST(:n AS bigint) + 0, :text)
ON CONFLICT (n) DO UPDATE SET text = t.text || excluded.text"""


@pytest.mark.parametrize(("light", "statements"), [(True, 3), (False, 41)])
def test_light_rows_of_a_statement_are_inserted_together(
    connection: sqlite3.Connection, ran: list[str], light: bool, statements: int
) -> None:
    rows = [{"n": n, "text": "a", "other": 0} for n in range(39)]
    again = [{"n": 38, "text": "b"}, {"n": 38, "text": "c"}]
    step = Statement(SUM, [*rows, *again], many=True, light=light)
    assert run_steps(connection, [step]) == (41,)
    assert numbers(connection) == list(range(39))
    assert connection.execute("SELECT text FROM t WHERE n = 38").fetchone() == ("abc",)
    assert len(ran) == statements, "32, 8 and 1 rows, or each row alone"


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO t (n, text) SELECT :n, :text",
        "INSERT INTO t (n, text) VALUES (:n, '') ON CONFLICT (n) DO UPDATE SET text = :text",
    ],
)
def test_a_statement_with_parameters_elsewhere_runs_once_for_each_row(connection: sqlite3.Connection, sql: str) -> None:
    rows = [{"n": n, "text": "a"} for n in range(3)]
    run_steps(connection, [Statement(sql, rows, many=True, light=True)])
    assert numbers(connection) == [0, 1, 2]
