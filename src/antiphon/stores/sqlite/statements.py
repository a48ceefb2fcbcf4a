"""Defines the steps of a unit of writes: statements, and rows for a table.

Lives here: rows for a table. Not here: statements (`../tables.py`), running steps (`units.py`), transactions, threads
(`writer.py`), SQL of any store.

Invariant: a step can run again after its transaction was rolled back, and then produces all its results again.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from antiphon.stores.tables import Statement


class Insertion:
    """How to insert rows into a table: one statement for any number of rows; each row inserts one row or none."""

    def __init__(self, before: str, row: str, behind: str = "") -> None:
        """`row`: the parameters of one row in brackets, repeated between `before` and `behind`."""
        self.width = row.count("?")
        self._before = before
        self._row = row
        self._behind = behind
        self._made: dict[int, str] = {}

    def sql(self, count: int) -> str:
        """The statement for `count` rows."""
        sql = self._made.get(count)
        if sql is None:
            sql = self._made[count] = f"{self._before} {', '.join([self._row] * count)} {self._behind}"
        return sql


class Rows(Struct, frozen=True):
    """Rows that a unit inserts, all of them, or none with `RowsMissing`. `values`: the values of all rows in sequence.

    `light`: one statement may insert them together with rows of other units. SQLite keeps a statement's last values in
    memory.
    """

    insertion: Insertion
    values: tuple[Any, ...]
    light: bool = False

    @property
    def sql(self) -> str:
        """One of the statements that insert them."""
        return self.insertion.sql(1)


Step = Statement | Rows
