"""The report of a run: its table, and its verdict.

Lives here: both. Not here: the runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

_SHOWN = 12


@dataclass
class Report:
    """A report. `rows` has names and figures. `wrong` has the failures, and a run without any is good."""

    title: str
    columns: tuple[str, ...] = ("", "")
    rows: list[tuple[object, ...]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def row(self, *cells: object) -> None:
        """Add one row to the table."""
        self.rows.append(cells)

    def table(self) -> str:
        """The report as Markdown, with the failures below the table."""
        lines = [f"\n### {self.title}\n"]
        for cells in (self.columns, ("---",) * len(self.columns), *self.rows):
            lines.append("| " + " | ".join(_shown(cell) for cell in cells) + " |")
        lines += [f"WRONG: {one}" for one in self.wrong[:_SHOWN]]
        if len(self.wrong) > _SHOWN:
            lines.append(f"WRONG: {len(self.wrong) - _SHOWN} more")
        return "\n".join(lines)


def milliseconds(seconds: Sequence[float]) -> str:
    """The median, the 99th percentile and the maximum, in milliseconds."""
    if not seconds:
        return "-"
    ranked = sorted(seconds)
    chosen = (ranked[len(ranked) // 2], ranked[math.ceil(len(ranked) * 0.99) - 1], ranked[-1])
    return " / ".join(f"{one * 1000:.0f}" for one in chosen) + " ms"


def _shown(cell: object) -> str:
    return f"{cell:.1f}" if isinstance(cell, float) else str(cell)
