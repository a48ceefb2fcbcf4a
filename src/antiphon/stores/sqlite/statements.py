"""Defines the steps of a unit of writes. A step is a statement, or rows to insert.

Lives here: rows to insert and their INSERT statement. Not here: other statements (`../tables.py`), running steps
(`units.py`), transactions and threads (`writer.py`), SQL of any store.

Invariant: a step may run again after its transaction was rolled back, and produces the same results.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from antiphon.stores.tables import Statement


class Insertion:
    """An INSERT statement for any number of rows. Each row of parameters inserts one table row or none."""

    def __init__(self, before: str, row: str, behind: str = "") -> None:
        """`row`: the placeholders of one row in brackets, such as `(?, ?)`. `sql` repeats `row` between `before` and
        `behind`."""
        self.width = row.count("?")
        self._before = before
        self._row = row
        self._behind = behind
        self._made: dict[int, str] = {}

    def sql(self, count: int) -> str:
        """Return the SQL that inserts `count` rows."""
        sql = self._made.get(count)
        if sql is None:
            sql = self._made[count] = f"{self._before} {', '.join([self._row] * count)} {self._behind}"
        return sql


class Rows(Struct, frozen=True):
    """Rows that a unit of writes inserts. If one row cannot be inserted, the unit fails with `RowsMissing`. `values`:
    the values of all rows in one flat tuple.

    `light`: one statement may insert these rows together with rows of other units. Set `light` only for small rows,
    because SQLite keeps the last values of a cached statement in memory.
    """

    insertion: Insertion
    values: tuple[Any, ...]
    light: bool = False

    @property
    def sql(self) -> str:
        """The SQL that inserts one of the rows."""
        return self.insertion.sql(1)


Step = Statement | Rows
