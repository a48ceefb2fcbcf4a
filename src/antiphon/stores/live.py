"""Stores the requests in progress of all processes in SQLite or PostgreSQL, while a viewer such as the console watches
them.

Lives here: the SQL, the maximum size of a snapshot, and the stored cancellations of requests. Not here: the schedule on
which a process publishes snapshots (`engine/running/live.py`), finished requests (`stores/journal.py`).

A viewer stores the time until which it watches. Only until that time, each process publishes snapshots of its requests
in progress. So without a viewer each process runs one short query a second, and writes nothing. A viewer cancels a
request by a row in the database, which the process that runs the request reads. The row may name an owner. The process
then cancels the request only if the request belongs to this owner.

Invariants: each process has one row, which contains its snapshot. A snapshot has at most `MOST_LIVE` requests. The
database's clock decides which snapshots are fresh, and which cancellations are too old.
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
"""The maximum age in seconds of a snapshot that viewers get."""
CANCEL_SECONDS = 15.0
"""The seconds after which processes ignore a stored cancellation."""
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
    """The instructions of all viewers to a process. `watched`: whether the process must publish snapshots. `cancels`:
    the requests to cancel.

    Each element of `cancels` is an entry id (`entry_…`) and the id of the owner (empty: any owner).
    """

    watched: bool
    cancels: tuple[tuple[str, str], ...]


class _Snapshot(msgspec.Struct, frozen=True):
    requests: tuple[LiveRequest, ...]
    more: int


_DECODER = msgspec.json.Decoder(_Snapshot)


class LiveStore:
    """Stores the requests in progress in a database that the caller closes. Every method raises `StoreError` when the
    database fails."""

    def __init__(self, tables: Tables, clock: Clock = now) -> None:
        """`clock`: the function that returns the current time on SQLite. PostgreSQL uses the server's clock."""
        self._tables = tables
        self._clock = clock

    async def watch(self, seconds: float) -> None:
        """Make all processes publish snapshots for at least `seconds` from now. A viewer calls this method again before
        that time ends."""
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
        """Replace the snapshot of this process. If there are more than `MOST_LIVE` requests, the snapshot has only the
        oldest ones. `more`: the number of requests in progress that `requests` lacks."""
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
        """Return the fresh snapshots of all processes. `owner`: the owner whose requests the snapshots contain (empty:
        all owners)."""
        rows = await self._tables.fetch(READ, {"age": milliseconds(FRESH_SECONDS), **self._now})
        return tuple([_snapshot(row, owner) for row in rows])

    async def ask_cancel(self, entry_id: str, owner: str = "") -> bool:
        """Store a cancellation for the process that runs this request. If `owner` is not empty, the process cancels the
        request only if the request belongs to this owner. Returns False when the database already contains too many
        cancellations."""
        named = {"entry_id": entry_id, "owner": owner, **self._now}
        old = Statement(FORGET_CANCELS, {"age": milliseconds(CANCEL_SECONDS), **self._now})
        return (await self._tables.run([old, Statement(ASK, named)], again=True))[1] > 0

    async def take_cancels(self, ids: Sequence[str]) -> tuple[tuple[str, str], ...]:
        """Delete the stored cancellations of these requests. Returns the cancellations that are not too old, each as an
        entry id and an owner (empty: any owner)."""
        rows: list[Row] = []
        await self._tables.run([Statement(TAKE, {"ids": list(ids), **self._now}, into=rows)], again=True)
        oldest = milliseconds(CANCEL_SECONDS)
        return tuple([(row[0], row[1]) for row in rows if row[2] < oldest])

    async def sweep(self, seconds: float = 60.0) -> tuple[int]:
        """Delete the snapshots that their processes have not replaced for `seconds`, and old cancellations. Returns the
        number of deleted snapshots."""
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
        # A process of another version wrote this snapshot. The viewer still sees the requests of all other processes.
        return LiveSnapshot(process, (), age)
    return LiveSnapshot(
        process,
        tuple([msgspec.structs.replace(one, process=process) for one in found.requests if owner in ("", one.owner)]),
        age,
        0 if owner else found.more,
    )
