"""Deletes expired data in pieces so small that no request waits for them.

Lives here: the loop over pieces, what fits into one, and whose turn it is. Not here: what goes in a piece, which each
backend deletes in its own way (`sqlite/retention.py`, `postgres/retention.py`); when it is done (`app/build.py`),
how long anything is kept (settings), files and vector stores (which say themselves when they expire).

A chain goes as a whole, when its latest response is old: nothing is ever taken out of the middle of a conversation.
What runs (background responses, locked conversations) is never old. What is too large for one piece is first made
unusable, in the same unit as its first rows go: a chain takes no more responses and has lost its first one, a
conversation is locked by the sweep.

Invariant: a piece deletes a bounded number of rows, or one response with its items and events, and what goes is looked
at once more in the unit in which it goes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from antiphon.config.state import RetentionSettings
from antiphon.stores.pages import R
from antiphon.stores.tables import Statement, Tables, changed, milliseconds

SWEEPER = "retention"
"""Who holds the lock of a conversation that is going; it never runs out."""
TAKE_TURN = """
INSERT INTO sweeps (what, due_at) VALUES (:what, lease_in(:pause))
ON CONFLICT (what) DO UPDATE SET due_at = excluded.due_at WHERE sweeps.due_at <= lease_now()
"""

Piece = tuple[int, int]
"""How many rows were changed, and how many things went whole."""


class Pieces(Protocol):
    """Deletes one piece of what is older than so many milliseconds; nothing where nothing can go just now. Every method
    raises `StoreError`."""

    async def chains(self, age: int) -> Piece:
        """Chains, or responses of one."""

    async def conversations(self, age: int) -> Piece:
        """Conversations, or items of one."""

    async def streams(self, age: int) -> Piece:
        """Events of background responses that are over. Events tell how a response came to be; the response itself
        stays, and is looked at no more (`background`: 2)."""


class Retention:
    """Deletes what is older than it is to be kept, from tables that the caller closes. Every method raises
    `StoreError`."""

    def __init__(self, tables: Tables, pieces: Pieces, kept: RetentionSettings) -> None:
        self._tables = tables
        self._pieces = pieces
        self._kept = kept

    async def take_turn(self, what: str, seconds: float) -> bool:
        """Whether this process is the one to clear this up now; no other is for so many seconds."""
        named = {"what": what, "pause": milliseconds(seconds)}
        return await changed(self._tables, Statement(TAKE_TURN, named, rows=1))

    async def sweep(self) -> tuple[int, int, int]:
        """Delete everything that is too old, in small pieces; how many chains, conversations and streams of events
        went."""
        pieces, kept = self._pieces, self._kept
        return (
            await _sweep(pieces.chains, kept.responses),
            await _sweep(pieces.conversations, kept.conversations),
            await _sweep(pieces.streams, kept.events),
        )


async def _sweep(delete: Callable[[int], Awaitable[Piece]], seconds: float | None) -> int:
    """Piece by piece, until there is nothing or nothing can go."""
    gone = 0
    while seconds is not None:
        rows, whole = await delete(milliseconds(seconds))
        gone += whole
        if not rows:
            break
    return gone


def fitting(rows: Sequence[R], most: int) -> Sequence[R]:
    """The first ones that have no more rows together than may go at once, but one; their column `rows` counts them."""
    total = 0
    for number, row in enumerate(rows):
        total += row["rows"]
        if total > most and number:
            return rows[:number]
    return rows
