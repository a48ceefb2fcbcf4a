"""Statements of a unit."""

from __future__ import annotations

import sqlite3

from antiphon.stores.sqlite.statements import Insertion, numbered


def test_parameters_by_number_are_those_by_name() -> None:
    sql, row = numbered("SELECT :b, :a, :b, :long_name")
    assert sql == "SELECT ?1, ?2, ?1, ?3"
    connection = sqlite3.connect(":memory:")
    (found,) = connection.execute(sql, row({"a": 1, "b": 2, "long_name": 3, "other": 4}))
    connection.close()
    assert found == (2, 1, 2, 3)


def test_an_insertion_of_any_number_of_rows() -> None:
    insertion = Insertion("INSERT INTO t VALUES", "(?, ?)", "RETURNING 1")
    assert insertion.width == 2
    assert insertion.sql(1) == "INSERT INTO t VALUES (?, ?) RETURNING 1"
    assert insertion.sql(2) == "INSERT INTO t VALUES (?, ?), (?, ?) RETURNING 1"
    assert insertion.sql(2) is insertion.sql(2), "a statement is known by its text"
