"""Statements of a unit."""

from __future__ import annotations

import sqlite3

from antiphon.stores.sqlite.statements import numbered


def test_parameters_by_number_are_those_by_name() -> None:
    sql, row = numbered("SELECT :b, :a, :b, :long_name")
    assert sql == "SELECT ?1, ?2, ?1, ?3"
    connection = sqlite3.connect(":memory:")
    (found,) = connection.execute(sql, row({"a": 1, "b": 2, "long_name": 3, "other": 4}))
    connection.close()
    assert found == (2, 1, 2, 3)
