"""Prints aligned tables to a terminal.

Lives here: aligned columns, and names as a terminal may have them. Not here: what is in a table.

Invariant: nothing that a client chose is obeyed by the terminal that shows it (`printable`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO


def write_table(rows: Sequence[Sequence[str]], out: TextIO, *, left: int | None = None) -> None:
    """Write rows of equal length, the first of them the heading. The first `left` columns begin at the left, the others
    are numbers and end at the right; None: all begin at the left."""
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
    """A name as a terminal may have it: clients choose models' names, and what stands in one is nothing to obey."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in name)
