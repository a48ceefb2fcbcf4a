"""Deletes expired data in pieces so small that no request waits for them.

Lives here: the loop over pieces, the size of a piece, and turns among processes. Not here: when sweeps run
(`app/build.py`), the retention periods (settings), files and vector stores (their rows have an expiry). Each backend
deletes a piece itself (`sqlite/retention.py`, `postgres/retention.py`).

A chain is deleted as a whole, when its latest response is old. So no conversation ever lacks its middle. Background
responses that run and locked conversations never count as old.

Data that is too large for one piece first becomes unusable, in the transaction that deletes its first rows. A chain
accepts no more responses and loses its first one. The sweep locks a conversation.

Invariant: a piece deletes a bounded number of rows, or one response with its items and events. Its transaction checks
again that each row is still expired.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from antiphon.config.state import RetentionSettings
from antiphon.stores.pages import R
from antiphon.stores.tables import Statement, Tables, changed, milliseconds

SWEEPER = "retention"
"""The holder of the lock of a conversation under deletion; this lock never expires."""
TAKE_TURN = """
INSERT INTO sweeps (what, due_at) VALUES (:what, lease_in(:pause))
ON CONFLICT (what) DO UPDATE SET due_at = excluded.due_at WHERE sweeps.due_at <= lease_now()
"""

Piece = tuple[int, int]
"""The number of changed rows, and the number of objects that were deleted completely."""


class Pieces(Protocol):
    """Deletes one piece of the data that is older than `age` milliseconds; deletes nothing when nothing can be deleted
    now. Every method raises `StoreError`."""

    async def chains(self, age: int) -> Piece:
        """Delete chains, or responses of one."""

    async def conversations(self, age: int) -> Piece:
        """Delete conversations, or items of one."""

    async def streams(self, age: int) -> Piece:
        """Delete events of finished background responses. The response itself stays, and later sweeps skip it
        (`background`: 2)."""


class Retention:
    """Deletes data after its retention period, in tables that the caller closes. Every method raises `StoreError`."""

    def __init__(self, tables: Tables, pieces: Pieces, kept: RetentionSettings) -> None:
        self._tables = tables
        self._pieces = pieces
        self._kept = kept

    async def take_turn(self, what: str, seconds: float) -> bool:
        """Whether this process should run this sweep now. If True, no other process gets a turn for `seconds`."""
        named = {"what": what, "pause": milliseconds(seconds)}
        return await changed(self._tables, Statement(TAKE_TURN, named, rows=1))

    async def sweep(self) -> tuple[int, int, int]:
        """Delete all expired data in small pieces. Returns the numbers of deleted chains, conversations and event
        streams."""
        pieces, kept = self._pieces, self._kept
        return (
            await _sweep(pieces.chains, kept.responses),
            await _sweep(pieces.conversations, kept.conversations),
            await _sweep(pieces.streams, kept.events),
        )


async def _sweep(delete: Callable[[int], Awaitable[Piece]], seconds: float | None) -> int:
    """Delete piece by piece, until nothing is left or nothing can be deleted."""
    gone = 0
    while seconds is not None:
        rows, whole = await delete(milliseconds(seconds))
        gone += whole
        if not rows:
            break
    return gone


def fitting(rows: Sequence[R], most: int) -> Sequence[R]:
    """The first rows whose sum of column `rows` is at most `most`; at least one row."""
    total = 0
    for number, row in enumerate(rows):
        total += row["rows"]
        if total > most and number:
            return rows[:number]
    return rows
