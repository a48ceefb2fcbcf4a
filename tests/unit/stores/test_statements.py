"""Statements of a unit."""

from __future__ import annotations

from antiphon.stores.sqlite.units import Insertion


def test_an_insertion_of_any_number_of_rows() -> None:
    insertion = Insertion("INSERT INTO t VALUES", "(?, ?)", "RETURNING 1")
    assert insertion.width == 2
    assert insertion.sql(1) == "INSERT INTO t VALUES (?, ?) RETURNING 1"
    assert insertion.sql(2) == "INSERT INTO t VALUES (?, ?), (?, ?) RETURNING 1"
    assert insertion.sql(2) is insertion.sql(2), "a statement is known by its text"
