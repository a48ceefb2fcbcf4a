"""Deletes expired responses, conversations and event streams in batches that are small enough not to delay requests.

Lives here: the loop over batches, the row limit of a batch, and the choice of the one process that sweeps. In the code,
a batch is called a piece. Not here: when sweeps run (`app/build.py`), the retention periods (settings), files and
vector stores (their rows have an expiry). Each backend implements the deletion of a batch (`sqlite/retention.py`,
`postgres/retention.py`).

A sweep deletes a chain of responses as a whole when the latest response is old. So a history never lacks responses in
its middle. Running background responses and locked conversations never count as old.

A sweep may need several batches for one large chain or conversation. The transaction of the first batch makes this
chain or conversation unusable for clients. A chain then accepts no more responses and loses its first response. A
conversation stays locked until the sweep has deleted the conversation.

Invariant: a batch deletes a bounded number of rows, or one response with its items and events. The batch's transaction
checks again that each row is still expired.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from antiphon.config.state import RetentionSettings
from antiphon.stores.audit import AuditStore
from antiphon.stores.tables import R, Statement, Tables, milliseconds, run_required

SWEEPER = "retention"
"""The value of `locked_by` in a conversation that a sweep is deleting. A conversation lock with this value never
expires."""
TAKE_TURN = """
INSERT INTO sweeps (what, due_at) VALUES (:what, lease_in(:pause))
ON CONFLICT (what) DO UPDATE SET due_at = excluded.due_at WHERE sweeps.due_at <= lease_now()
"""

Piece = tuple[int, int]
"""The result of one batch: the number of changed rows, and the number of objects that the batch deleted completely."""


class Pieces(Protocol):
    """Deletes one batch of the data that is older than `age` milliseconds. A method changes nothing and returns
    `(0, 0)` when no data is old enough, or when other transactions have locked all old data. Every method raises
    `StoreError` when the database fails."""

    async def chains(self, age: int) -> Piece:
        """Delete old chains of responses, or delete the first responses of one large chain."""

    async def conversations(self, age: int) -> Piece:
        """Delete old conversations, or delete the first items of one large conversation."""

    async def streams(self, age: int) -> Piece:
        """Delete the stored events of finished background responses. The response itself stays. The column `background`
        of such a response becomes 2, so that later sweeps skip the response."""


class Retention:
    """Deletes data after its retention period from a database that the caller closes. Every method raises `StoreError`
    when the database fails."""

    def __init__(self, tables: Tables, pieces: Pieces, kept: RetentionSettings) -> None:
        self._tables = tables
        self._pieces = pieces
        self._kept = kept
        self._audit = AuditStore(tables)

    async def take_turn(self, what: str, seconds: float) -> bool:
        """Return whether this process should run the sweep named `what` now. If this method returns True, it returns
        False to all other processes for `seconds`."""
        named = {"what": what, "pause": milliseconds(seconds)}
        return await run_required(self._tables, Statement(TAKE_TURN, named, rows=1))

    async def sweep(self) -> tuple[int, int, int]:
        """Delete all expired data, and old rows of the audit log, in small transactions. Returns how many chains,
        conversations and event streams were deleted."""
        pieces, kept = self._pieces, self._kept
        await self._audit.sweep(kept.audit)
        return (
            await _sweep(pieces.chains, kept.responses),
            await _sweep(pieces.conversations, kept.conversations),
            await _sweep(pieces.streams, kept.events),
        )


async def _sweep(delete: Callable[[int], Awaitable[Piece]], seconds: float | None) -> int:
    """Delete batches until a batch changes no row. Returns the number of completely deleted objects. If `seconds` is
    None, this function deletes nothing."""
    gone = 0
    while seconds is not None:
        rows, whole = await delete(milliseconds(seconds))
        gone += whole
        if not rows:
            break
    return gone


def rows_within(rows: Sequence[R], most: int) -> Sequence[R]:
    """Each row stands for one object, and its column `rows` is the number of the object's database rows. Return the
    first objects that have at most `most` database rows together. The result always has the first object, even if this
    object has more rows."""
    total = 0
    for number, row in enumerate(rows):
        total += row["rows"]
        if total > most and number:
            return rows[:number]
    return rows
