"""Clearing up: who does it, and what goes because it is too old.

Lives here: the port, and who holds what is going. Not here: what is too old (settings), when it is done
(`app/build.py`), how it goes (`stores/`).

Invariant: what is younger than it is to be kept, or in use, is never deleted; no request waits for a sweep.
"""

from __future__ import annotations

from typing import Protocol

SWEEPER = "retention"
"""Who holds the lock of a conversation that is going; it never runs out."""


class Retention(Protocol):
    """Deletes what is older than it is to be kept. Every method raises `StoreError`."""

    async def take_turn(self, what: str, seconds: float) -> bool:
        """Whether this process is the one to clear this up now; nobody else is for so many seconds."""

    async def sweep(self) -> tuple[int, int, int]:
        """Delete everything that is too old, in small pieces; how many chains, conversations and streams of events
        went."""
