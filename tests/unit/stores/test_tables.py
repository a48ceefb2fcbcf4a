"""The words of shared SQL in each database: what each of them becomes, and that all are known."""

from __future__ import annotations

import re

import pytest

from antiphon.stores import conversations, idempotency, prompts
from antiphon.stores import owner_usage as usage
from antiphon.stores.postgres.tables import postgres_sql
from antiphon.stores.sqlite.tables import sqlite_sql

_SHARED = [
    sql
    for module in (conversations, idempotency, prompts, usage)
    for name, value in vars(module).items()
    if name.isupper() and not name.startswith("_")
    for sql in (value if isinstance(value, tuple) else (value,))
    if isinstance(sql, str) and " " in sql
]


@pytest.mark.parametrize(
    ("shared", "sqlite", "postgres", "order"),
    [
        ("a = :a AND b = :b AND a < :a", "a = :a AND b = :b AND a < :a", "a = $1 AND b = $2 AND a < $1", "ab"),
        ("x::text = :b", "x::text = :b", "x::text = $1", "b"),
        ("id IN (:a...)", "id IN (SELECT value FROM json_each(:a))", "id = ANY(CAST($1 AS text[]))", "a"),
        ("t <= lease_now()", "t <= lease_now()", "t <= clock_timestamp()", ""),
        ("greatest(at, :a)", "max(at, :a)", "greatest(at, $1)", "a"),
        ("SELECT 1 ORDER BY a, b FOR UPDATE", "SELECT 1 ", "SELECT 1 ORDER BY a, b FOR UPDATE", ""),
    ],
)
def test_each_word_becomes_what_the_database_knows(shared: str, sqlite: str, postgres: str, order: str) -> None:
    text, ordered = postgres_sql(shared)
    assert (sqlite_sql(shared), text) == (sqlite, postgres)
    assert ordered({"a": "a", "b": "b", "c": "c"}) == tuple(order)


def test_a_time_is_the_databases_or_the_callers() -> None:
    assert sqlite_sql("at = now_ms()") == "at = :now_ms"
    text, ordered = postgres_sql("at = now_ms() AND until = lease_in(:a)")
    assert "now_ms" not in text and "$1" in text and ordered({"a": 5}) == (5,)


@pytest.mark.parametrize("sql", _SHARED)
def test_no_word_is_left_as_it_is(sql: str) -> None:
    words = re.compile(r"(?:now_ms|date_now|for_ever)\(|date_in\(|place_columns\(|new_places?\(|lease_in\(|\.\.\.\)")
    assert not words.search(sqlite_sql(sql)) and "FOR UPDATE" not in sqlite_sql(sql)
    text, _ = postgres_sql(sql)
    assert not words.search(text) and not re.search(r"lease_now\(|(?<!:):[a-z_]|\browid\b", text)


def test_there_are_enough_of_them() -> None:
    assert len(_SHARED) > 30
