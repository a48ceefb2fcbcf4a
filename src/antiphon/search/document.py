"""What the readers of files return: a document's text and title, or that it is unreadable.

Lives here: both, and how a table becomes text. Not here: the readers (`extract.py`, `extract_office.py`).

Invariant: no message of an `Unreadable` holds content.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Document:
    """A file's text; `title` is empty when it has none."""

    text: str
    title: str = ""


class Unreadable(Exception):
    """The file cannot be read, now or later."""

    def __init__(self, message: str, code: Literal["unsupported_file", "invalid_file"] = "invalid_file") -> None:
        super().__init__(message)
        self.message = message
        self.code = code


def table_text(rows: list[list[str]]) -> str:
    """A table as lines `column: value, …`, so that each row says by itself what its values are."""
    rows = [row for row in rows if any(cell.strip() for cell in row)]
    if len(rows) < 2:
        return "\n".join(", ".join(row) for row in rows)
    header = [cell.strip() for cell in rows[0]]
    lines = []
    for row in rows[1:]:
        cells = []
        for number, cell in enumerate(row):
            if cell := cell.strip():
                column = header[number] if number < len(header) else ""
                cells.append(f"{column}: {cell}" if column else cell)
        lines.append(", ".join(cells))
    return "\n".join(lines)
