"""Prints aligned tables to a terminal.

Lives here: aligned columns, and escaping of names. Not here: the content of a table.

Invariant: a terminal interprets no control character in a name from a client (`printable`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO


def write_table(rows: Sequence[Sequence[str]], out: TextIO, *, left: int | None = None) -> None:
    """Write rows of equal length, the first of them the heading. The first `left` columns are left-aligned, the others
    (numbers) right-aligned; None: all are left-aligned."""
    columns = len(rows[0])
    left = columns if left is None else left
    widths = [max(len(row[column]) for row in rows) for column in range(columns)]
    for row in rows:
        cells = [
            text.ljust(width) if column < left else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        out.write("  ".join(cells).rstrip() + "\n")


def printable(name: str) -> str:
    """A name without control characters: clients choose models' names, and a terminal must not interpret them."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in name)
