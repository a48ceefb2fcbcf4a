"""Stores the requests in flight of all processes while a viewer watches them, for any backend.

Lives here: the SQL, the bound of a snapshot, and the requests to cancel. Not here: when a process publishes
(`engine/running/live.py`), finished requests (`stores/journal.py`).

A viewer tells for how long it watches. Processes publish snapshots only during that time. So without a viewer each
process runs one short query a second, and writes nothing. A process cancels only its own requests, and only for their
owner.

Invariants: a process has one row. A snapshot has at most `MOST_LIVE` requests. The database's clock decides which
snapshots are fresh, and which wishes to cancel are too old.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from antiphon.engine.ports.journal import LiveRequest, LiveSnapshot
from antiphon.errors import StoreError
from antiphon.ids import Clock, now
from antiphon.stores.tables import Row, Statement, Tables, milliseconds

MOST_LIVE = 500
"""The maximum number of requests in the snapshot of one process."""
FRESH_SECONDS = 5.0
"""The age in seconds up to which viewers get a snapshot."""
CANCEL_SECONDS = 15.0
"""The seconds after which processes ignore the wish to cancel a request."""
_MOST_CANCELS = 500
_MOST_PROCESSES = 1000

WATCH = """
INSERT INTO live_viewers AS v (id, watched_until) VALUES (1, now_ms() + CAST(:wait AS bigint))
ON CONFLICT (id) DO UPDATE SET watched_until = greatest(v.watched_until, excluded.watched_until)
"""
LOOK = f"""
SELECT '' AS entry_id, '' AS owner FROM live_viewers WHERE id = 1 AND watched_until > now_ms()
UNION ALL
SELECT entry_id, owner FROM (
  SELECT entry_id, owner FROM live_cancels WHERE asked_at > now_ms() - CAST(:age AS bigint)
  ORDER BY asked_at LIMIT {_MOST_CANCELS}
) AS asked
"""
PUBLISH = """
INSERT INTO live_processes (process, seen_at, snapshot) VALUES (:process, now_ms(), :snapshot)
ON CONFLICT (process) DO UPDATE SET seen_at = excluded.seen_at, snapshot = excluded.snapshot
"""
LEAVE = "DELETE FROM live_processes WHERE process = :process"
READ = f"""
SELECT process, now_ms() - seen_at AS age, snapshot FROM live_processes
WHERE seen_at > now_ms() - CAST(:age AS bigint) ORDER BY process LIMIT {_MOST_PROCESSES}
"""
ASK = f"""
INSERT INTO live_cancels (entry_id, owner, asked_at)
SELECT :entry_id, :owner, now_ms() WHERE (SELECT count(*) FROM live_cancels) < {_MOST_CANCELS}
ON CONFLICT (entry_id, owner) DO UPDATE SET asked_at = excluded.asked_at
"""
TAKE = """
DELETE FROM live_cancels WHERE entry_id IN (:ids...) RETURNING entry_id, owner, now_ms() - asked_at AS age
"""
FORGET_PROCESSES = "DELETE FROM live_processes WHERE seen_at < now_ms() - CAST(:age AS bigint)"
FORGET_CANCELS = "DELETE FROM live_cancels WHERE asked_at < now_ms() - CAST(:age AS bigint)"


class LiveOrders(msgspec.Struct, frozen=True):
    """The orders of all viewers to a process: publish if `watched`, and cancel the requests in `cancels`.

    A cancel is an entry id (`entry_…`) and its owner (empty: any owner).
    """

    watched: bool
    cancels: tuple[tuple[str, str], ...]


class _Snapshot(msgspec.Struct, frozen=True):
    requests: tuple[LiveRequest, ...]
    more: int


_DECODER = msgspec.json.Decoder(_Snapshot)


class LiveStore:
    """Stores the requests in flight in tables that the caller closes. Every method raises `StoreError`."""

    def __init__(self, tables: Tables, clock: Clock = now) -> None:
        """`clock`: the clock of a database that has none (SQLite)."""
        self._tables = tables
        self._clock = clock

    async def watch(self, seconds: float) -> None:
        """Let all processes publish for at least `seconds` from now. A viewer calls this again before the time
        ends."""
        await self._tables.run([Statement(WATCH, {"wait": milliseconds(seconds), **self._now})], again=True)

    async def look(self) -> LiveOrders:
        """Return whether any viewer watches, and which requests to cancel, with one query."""
        named = {"age": milliseconds(CANCEL_SECONDS), **self._now}
        rows = await self._tables.fetch(LOOK, named, own=True)
        return LiveOrders(
            any(not row["entry_id"] for row in rows),
            tuple([(row["entry_id"], row["owner"]) for row in rows if row["entry_id"]]),
        )

    async def publish(self, process: str, requests: Sequence[LiveRequest], *, more: int = 0) -> None:
        """Replace the snapshot of this process. Of more than `MOST_LIVE` requests, the oldest are published. `more`
        counts requests that the caller leaves out."""
        kept = sorted(requests, key=lambda one: -one.age)[:MOST_LIVE] if len(requests) > MOST_LIVE else requests
        snapshot = _Snapshot(tuple(kept), more + len(requests) - len(kept))
        try:
            text = msgspec.json.encode(snapshot).decode()
        except ValueError as error:
            raise StoreError(f"The requests in flight cannot be stored: {error}") from error
        await self._tables.run([Statement(PUBLISH, {"process": process, "snapshot": text, **self._now})], again=True)

    async def leave(self, process: str) -> None:
        """Delete the snapshot of this process, because the process ends."""
        await self._tables.run([Statement(LEAVE, {"process": process})], again=True)

    async def read(self, owner: str = "") -> tuple[LiveSnapshot, ...]:
        """Return the fresh snapshots of all processes. `owner`: the owner whose requests they contain (empty: all
        owners)."""
        rows = await self._tables.fetch(READ, {"age": milliseconds(FRESH_SECONDS), **self._now})
        return tuple([_snapshot(row, owner) for row in rows])

    async def ask_cancel(self, entry_id: str, owner: str = "") -> bool:
        """Ask the process of this request to cancel it, if the request belongs to this owner (empty: any owner).
        Returns False when too many such wishes wait."""
        named = {"entry_id": entry_id, "owner": owner, **self._now}
        old = Statement(FORGET_CANCELS, {"age": milliseconds(CANCEL_SECONDS), **self._now})
        return (await self._tables.run([old, Statement(ASK, named)], again=True))[1] > 0

    async def take_cancels(self, ids: Sequence[str]) -> tuple[tuple[str, str], ...]:
        """Delete the wishes to cancel these requests. Returns those that are not too old, each an entry id and an
        owner (empty: any owner)."""
        rows: list[Row] = []
        await self._tables.run([Statement(TAKE, {"ids": list(ids), **self._now}, into=rows)], again=True)
        oldest = milliseconds(CANCEL_SECONDS)
        return tuple([(row[0], row[1]) for row in rows if row[2] < oldest])

    async def sweep(self, seconds: float = 60.0) -> tuple[int]:
        """Delete the snapshots of processes that have published none for `seconds`, and old wishes to cancel. Returns
        the number of deleted snapshots."""
        named = {"age": milliseconds(seconds), **self._now}
        old = Statement(FORGET_CANCELS, {"age": milliseconds(CANCEL_SECONDS), **self._now})
        return ((await self._tables.run([Statement(FORGET_PROCESSES, named), old], again=True))[0],)

    @property
    def _now(self) -> dict[str, object]:
        return {"now_ms": milliseconds(self._clock())}


def _snapshot(row: Row, owner: str) -> LiveSnapshot:
    process, age = row["process"], max(0.0, row["age"] / 1000)
    try:
        found = _DECODER.decode(row["snapshot"])
    except msgspec.DecodeError:
        # A process of another version wrote it. The viewer still sees the requests of all other processes.
        return LiveSnapshot(process, (), age)
    return LiveSnapshot(
        process,
        tuple([msgspec.structs.replace(one, process=process) for one in found.requests if owner in ("", one.owner)]),
        age,
        0 if owner else found.more,
    )
