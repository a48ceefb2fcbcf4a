"""Limits how many rows of refused requests a process writes to the journal.

A client without a valid key can send any number of requests that Antiphon refuses. Therefore only the first refusals
of a minute get separate rows. All further refusals of the same kind share one row, which the process writes at the end
of the minute. The kind is the owner, the status and the error code. `journal.py` writes the rows, and
`stores/journal.py` limits the number of all rows of refusals.

Invariants: in a minute, a process makes at most `_SEPARATE` separate rows of one kind, and at most `_MOST_SEPARATE` of
all kinds. It makes at most `_MOST_KINDS` shared rows a minute. The rows together count each refusal once.
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from antiphon.engine.ports.journal import REFUSED, Detail, Entry

MINUTE: Final = 60.0
_SEPARATE: Final = 10
_MOST_SEPARATE: Final = 100
_MOST_KINDS: Final = 100
_Kind = tuple[str, int, str]
_OTHERS: Final[_Kind] = ("", 0, "")
_MIXED: Final = Entry(
    "", "", outcome=REFUSED, detail=Detail(message="Antiphon refused these requests for several reasons.")
)


class Refusals:
    """The refusals of one process since the beginning of the current minute."""

    def __init__(self) -> None:
        self._began = float("-inf")
        self._separate = 0
        self._counts: dict[_Kind, int] = {}
        self._shared: dict[_Kind, tuple[float, Entry]] = {}

    def ends_at(self) -> float | None:
        """The time at which the shared rows are complete, or None without shared rows."""
        return self._began + MINUTE if self._shared else None

    def take(self, entry: Entry, now: float) -> bool:
        """Count a refused request. Returns whether the request gets a separate row. Call `ended` first."""
        if now - self._began >= MINUTE:
            self._began = now
            self._separate = 0
            self._counts.clear()
        kind = (entry.owner, entry.status, entry.code)
        if kind not in self._counts and len(self._counts) >= _MOST_KINDS - 1:
            kind = _OTHERS
        count = self._counts.get(kind, 0)
        if count < _SEPARATE and self._separate < _MOST_SEPARATE and kind not in self._shared:
            self._counts[kind] = count + 1
            self._separate += 1
            return True
        self._counts.setdefault(kind, 0)
        alike = self._shared[kind][1].detail.alike + 1 if kind in self._shared else 1
        if kind == _OTHERS:
            # The row stands for refusals of several owners, so only operators may see it.
            entry = replace(_MIXED, id=entry.id, door=entry.door, fault=entry.fault)
        self._shared[kind] = (now, replace(entry, detail=replace(entry.detail, alike=alike)))
        return False

    def ended(self, now: float, *, all: bool = False) -> list[tuple[float, Entry]]:
        """Remove and return the shared rows of a past minute, each with the time of its last refusal. With `all`,
        return the rows of the current minute too."""
        if not self._shared or not (all or now - self._began >= MINUTE):
            return []
        rows, self._shared = list(self._shared.values()), {}
        return rows
