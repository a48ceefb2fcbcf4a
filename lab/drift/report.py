"""Compares what clients can send with Antiphon's rows and the recorded reasons, and formats the differences as a table.

Lives here: the comparison. Not here: reading clients, Antiphon's rows (`rows.py`), the reasons (`known.toml`).

Invariant: everything that a client has either has a row, or is a line of the table, or is inside such a line. A line
without a reason fails the run.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from lab.drift.found import KINDS, Found, Reading
from lab.drift.rows import Rows, within

KNOWN = Path(__file__).parent / "known.toml"


@dataclass(frozen=True)
class Reason:
    """The reason why names of one kind have no row. A name may contain wildcards."""

    kind: str
    names: tuple[str, ...]
    why: str

    def fits(self, found: Found) -> bool:
        """Whether the reason applies to this pair."""
        return found.kind == self.kind and any(fnmatchcase(found.name, name) for name in self.names)


@dataclass(frozen=True)
class Line:
    """A pair without a row, and the clients that have it. `why` is empty if no reason is recorded."""

    found: Found
    clients: tuple[str, ...]
    why: str = ""


def reasons_in(text: str) -> list[Reason]:
    """The reasons of a file. Raises ValueError for a reason with an unknown kind, without names or without text."""
    reasons = []
    for number, entry in enumerate(tomllib.loads(text).get("known", [])):
        if entry.get("kind") not in KINDS or not entry.get("names") or not entry.get("why", "").strip():
            raise ValueError(f"entry {number + 1} needs a kind of {', '.join(KINDS)}, names and why: {entry}")
        reasons.append(Reason(entry["kind"], tuple(entry["names"]), entry["why"].strip()))
    return reasons


def lines_of(readings: Sequence[Reading], rows: Rows, reasons: Sequence[Reason]) -> list[Line]:
    """Everything without a row, sorted by kind and name."""
    typed = set().union(*(reading.typed for reading in readings))
    clients: dict[Found, list[str]] = {}
    for reading in readings:
        for one in reading.found:
            if not rows.has(one) and not (one.kind == "word" and one.name in typed):
                clients.setdefault(one, []).append(reading.client)
    order = [*KINDS]
    lines = []
    for one in sorted(clients, key=lambda found: (order.index(found.kind), found.name)):
        around = within(one)
        if around is None or around not in clients:
            lines.append(Line(one, tuple(clients[one]), next((each.why for each in reasons if each.fits(one)), "")))
    return lines


def unused(lines: Iterable[Line], reasons: Sequence[Reason]) -> list[str]:
    """The names with a reason that no client has any more, or that now have a row."""
    there = [line.found for line in lines]
    return [
        f"{reason.kind} {name}"
        for reason in reasons
        for name in reason.names
        if not any(found.kind == reason.kind and fnmatchcase(found.name, name) for found in there)
    ]


def table(lines: Sequence[Line]) -> str:
    """The lines as a table. Names of one kind with the same clients and the same reason share one row."""
    together: dict[tuple[str, tuple[str, ...], str], list[str]] = {}
    for line in lines:
        together.setdefault((line.found.kind, line.clients, line.why), []).append(line.found.name)
    rows = ["| what | names | clients | why |", "| --- | --- | --- | --- |"]
    for (kind, clients, why), names in together.items():
        shown = ", ".join(f"`{name}`" for name in names)
        rows.append(f"| {KINDS[kind]} | {shown} | {', '.join(clients)} | {why or '**no row**'} |")
    return "\n".join(rows)
