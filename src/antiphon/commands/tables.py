"""Prints aligned tables to a terminal.

Lives here: aligning columns, and escaping names. Not here: the content of a table.

Invariant: `printable` escapes control characters in names from clients, so no terminal interprets them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO


def write_table(rows: Sequence[Sequence[str]], out: TextIO, *, left: int | None = None) -> None:
    """Write rows of equal length. The first row is the heading. The first `left` columns are left-aligned, and the
    others (numbers) right-aligned. If `left` is None, all columns are left-aligned."""
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
    """The name with escaped control characters. Clients choose the names of models, and a terminal must not interpret
    control characters in them."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in name)
