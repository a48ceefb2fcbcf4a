"""The steps of a unit of writes: statements, and rows for a table.

Lives here: rows for a table. Not here: statements (`../tables.py`), how steps are run (`units.py`), transactions,
threads (`writer.py`), SQL of any store.

Invariant: a step can be run again after its transaction was rolled back, and then all that it tells is told anew.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from antiphon.stores.tables import Statement


class Insertion:
    """How rows come into a table: one statement for any number of them, of which each gives as many rows, or fewer."""

    def __init__(self, before: str, row: str, behind: str = "") -> None:
        """`row` with its parameters in brackets, once for each row between what stands `before` and `behind`."""
        self.width = row.count("?")
        self._before = before
        self._row = row
        self._behind = behind
        self._made: dict[int, str] = {}

    def sql(self, count: int) -> str:
        """The statement for so many rows."""
        sql = self._made.get(count)
        if sql is None:
            sql = self._made[count] = f"{self._before} {', '.join([self._row] * count)} {self._behind}"
        return sql


class Rows(Struct, frozen=True):
    """Rows that a unit adds, all of them or none with `RowsMissing`. `values` are those of all rows, one behind the
    other.

    `light`: they may be added together with those of other units. What a statement was given last stays in memory.
    """

    insertion: Insertion
    values: tuple[Any, ...]
    light: bool = False

    @property
    def sql(self) -> str:
        """One of the statements that add them."""
        return self.insertion.sql(1)


Step = Statement | Rows
