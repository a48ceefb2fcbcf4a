"""The store of background jobs and their streams, for any backend.

Lives here: what a process asks of jobs and of streams, for itself and to notice what others did; how long a job is
held, how a response ends early, and which bodies are sealed. Not here: queueing, claiming, adding to a stream and
finishing a response, which each backend does in its own way (`sqlite/jobs.py`, `postgres/jobs.py`); who runs a job
(`engine/running/`), how a backend runs statements (`tables.py`).

A job's row is the lock of its response: adding to the stream and ending the response lock it first.

What a process asks for itself never queues behind what clients read.

Invariants: exactly one unit ends a job: it deletes the job's row, and writes the response's last state and last event
(deleting the response takes the row along); every statement of a worker demands that the worker holds the job. A sealed
piece of a stream has the numbers of the events in it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias

from antiphon.engine.ports.actions import ResponseRecord, StoredItem
from antiphon.engine.ports.jobs import EventPage, EventPiece, Job, JobEnd, Progress, Queue, count_events
from antiphon.engine.ports.signals import News, Pace, Seen
from antiphon.stores.bodies import PLAIN, Bodies
from antiphon.stores.conversations import RELEASE
from antiphon.stores.pages import Row, cut_off
from antiphon.stores.tables import Statement, Tables, changed, milliseconds, within

# A reader takes a stream page by page, and holds a page until its client has taken it.
_PAGE_BYTES = 1 << 20

HELD = "SELECT response_id FROM jobs WHERE worker = :worker"
# Rows in one order, and waited for: one that is being written to is not lost.
RENEW = """
WITH held (id) AS MATERIALIZED (
  SELECT response_id FROM jobs WHERE response_id IN (:ids...) AND worker = :worker
  ORDER BY response_id FOR NO KEY UPDATE
)
UPDATE jobs AS j SET lease_until = lease_in(:lease) FROM held WHERE j.response_id = held.id
RETURNING response_id
"""
UNLOCK = f"{RELEASE} AND NOT EXISTS (SELECT 1 FROM jobs WHERE response_id = :id)"

# For the statement behind it, which then sees all that was added to the stream.
LOCK = """
SELECT 1 FROM jobs WHERE response_id = :id AND (CAST(:worker AS text) IS NULL OR worker = :worker) FOR UPDATE
"""
END_JOB = """
DELETE FROM jobs WHERE response_id = :id
  AND coalesce((SELECT max(last_seq) FROM response_events WHERE response_id = :id), -1) = :last_event
"""
END_RESPONSE = """
UPDATE responses SET status = :status, body = :body, completed_at = :completed_at, input_tokens = :input_tokens,
                     output_tokens = :output_tokens, history_items = history_items + :weight,
                     history_bytes = history_bytes + :bytes, own_bytes = own_bytes + :own_bytes - length(body)
WHERE id = :id
"""
INSERT_OUTPUT = """
INSERT INTO response_items (response_id, dir, seq, item_id, type, body, shown)
VALUES (:id, 1, :seq, :item_id, :type, :body, :shown)
"""
INSERT_EVENTS = "INSERT INTO response_events (response_id, last_seq, data) VALUES (:id, :last, :data)"
PROGRESS = """
SELECT r.id AS id, r.status AS status,
       (SELECT max(last_seq) FROM response_events e WHERE e.response_id = r.id) AS last_seq
FROM responses r WHERE r.id IN (:ids...)
"""
LOOK = f"{PROGRESS} UNION ALL SELECT response_id, NULL, NULL FROM jobs WHERE worker = :worker"
# No row: no such response. One row without a piece: nothing after that number.
EVENTS = f"""
WITH page (place, size) AS (
  SELECT e.last_seq, length(e.data) FROM response_events e
  WHERE e.response_id = :id AND e.last_seq > :after ORDER BY e.last_seq LIMIT :limit
),
{within("place")}
SELECT r.status, e.last_seq, CASE WHEN cut.fits THEN e.data END AS data
FROM responses r LEFT JOIN cut ON true
LEFT JOIN response_events e ON e.response_id = r.id AND e.last_seq = cut.place
WHERE r.id = :id AND r.owner = :owner
ORDER BY cut.place
"""


ChangeListener: TypeAlias = Callable[[Collection[str]], None]
"""Called with the ids of responses that changed."""


def notify_nobody(response_ids: Collection[str]) -> None:
    """Calls no one."""


@dataclass(frozen=True, slots=True)
class JobSql:
    """What the backends say differently. `queue`: how many jobs wait for a worker, and when the first of them was made;
    `release`: the worker gives back the job `:id`, which no worker claims for `:pause` milliseconds, and takes
    `:uncounted` off its attempts."""

    queue: str
    release: str


Measured: TypeAlias = Callable[[str], AbstractContextManager[object]]
"""Around an operation of this name: how long it takes, and how it ends."""


class JobWriter(Protocol):
    """The hot path: see the methods of these names of `JobStore`. What it gets is sealed already, and what it gives is
    still. Every method raises `StoreError`."""

    async def enqueue(
        self, record: ResponseRecord, request: bytes, events: EventPiece | None, limit: int, needs: list[str]
    ) -> None:
        """Store the queued response and its job."""

    async def claim(
        self, worker: str, seconds: float, limit: int, besides: list[str], able: list[str] | None
    ) -> list[Job]:
        """Take up to `limit` jobs."""

    async def append(self, worker: str, response_id: str, events: EventPiece, restart: bool) -> bool:
        """Add to the stream."""

    async def finish(self, worker: str, record: ResponseRecord, events: EventPiece | None, restart: bool) -> bool:
        """End the response with this record."""


class JobStore:
    """Jobs and the streams of background responses, in tables that the caller closes. Leases last so many seconds by
    the store's own clock. Every method raises `StoreError`."""

    def __init__(
        self,
        tables: Tables,
        writer: JobWriter,
        sql: JobSql,
        bodies: Bodies = PLAIN,
        ended: ChangeListener = notify_nobody,
        measured: Measured = nullcontext,
    ) -> None:
        """`ended` is called with responses that ended early: their workers must stop. `measured`: around what changes
        something, but for `enqueue`."""
        self._measured = measured
        self._ended = ended
        self._tables = tables
        self._writer = writer
        self._sql = sql
        self._bodies = bodies

    async def enqueue(
        self,
        record: ResponseRecord,
        request: bytes,
        events: EventPiece | None,
        *,
        limit: int,
        needs: Collection[str] = (),
    ) -> None:
        """Store the queued response with its input and its job, all or nothing. `needs`: what a worker must be able to,
        to run it.

        Raises `TooManyJobs` when the owner has `limit` jobs. Of a `previous_response_id` holds what holds for
        `ResponseStore.save`.
        """
        sealed = self._bodies.seal_record(record), self._bodies.seal(request), self._sealed(events)
        await self._writer.enqueue(*sealed, limit, sorted(needs))

    async def claim(
        self,
        worker: str,
        seconds: float,
        limit: int,
        besides: Collection[str] = (),
        *,
        able: Collection[str] | None = None,
    ) -> list[Job]:
        """Take up to `limit` jobs that nobody holds, and hold them for so long: first those whose holder is gone, then
        by turns of their owners, an owner's oldest first. All of them or, with an error, none. One that somebody writes
        to at this moment may be left for the next time.

        Only what needs nothing but what the worker is `able` to (None: everything), and what was made more than
        `PATIENCE` seconds ago: where nobody is able to run it, whoever takes it says so.

        None of those `besides`, which the worker still runs: nobody takes over from itself. What the worker holds
        already and is not among them comes along: an earlier claim of which it heard nothing. Their responses are
        `in_progress` from now on.
        """
        fitting = None if able is None else sorted(able)
        with self._measured("claim"):
            claimed = await self._writer.claim(worker, seconds, limit, sorted(besides), fitting)
        bodies = self._bodies
        return [
            replace(job, request=bodies.open(job.request), body=bodies.open_response(job.body, "in_progress"))
            for job in claimed
        ]

    async def held(self, worker: str) -> frozenset[str]:
        """The responses whose jobs this worker holds. What it claimed and is not in here is over."""
        rows = await self._tables.fetch(HELD, {"worker": worker}, own=True)
        return frozenset([row[0] for row in rows])

    async def queue(self) -> Queue:
        """What waits for a worker, whoever was its last."""
        row = (await self._tables.fetch(self._sql.queue, {}, own=True))[0]
        return Queue(row[0], None if row[1] is None else row[1] / 1000)

    async def renew(self, worker: str, response_ids: Collection[str], seconds: float) -> frozenset[str]:
        """Hold these of the worker's jobs for so many seconds from now; returns which of them it still held."""
        named = {"worker": worker, "lease": milliseconds(seconds), "ids": sorted(response_ids)}
        rows: list[Row] = []
        with self._measured("renew"):
            await self._tables.run([Statement(RENEW, named, into=rows)], again=True)
        return frozenset([row[0] for row in rows])

    async def release(self, worker: str, response_id: str, *, pause: float = 0.0, attempted: bool = False) -> None:
        """Give a job back; nobody takes it up for `pause` seconds. `attempted`: whether the claim counts as an
        attempt."""
        named = {"worker": worker, "id": response_id, "pause": milliseconds(pause), "uncounted": 0 if attempted else 1}
        # Once it is given back the worker does not hold it, so a second time does nothing.
        with self._measured("release"):
            await self._tables.run([Statement(self._sql.release, named)], again=True)

    async def append(self, worker: str, response_id: str, events: EventPiece, *, restart: bool = False) -> bool:
        """Add to the stream; False when the worker does not hold the job. `restart`: these are the first events of an
        attempt, those of earlier ones but for `created` and `queued` go.

        What the same attempt has written from these numbers on is written anew: whoever did not hear what became of a
        write may repeat it, and may add to it.
        """
        with self._measured("append"):
            return await self._writer.append(worker, response_id, self._sealed_piece(events), restart)

    async def finish(
        self, worker: str, record: ResponseRecord, events: EventPiece | None, *, restart: bool = False
    ) -> bool:
        """End the response with this record (its input is stored already) and these last events; the job goes.

        False when the worker does not hold the job, or the response's conversation is not its own any more: nothing is
        changed. `restart` as in `append`.
        """
        with self._measured("finish"):
            return await self._writer.finish(worker, self._bodies.seal_record(record), self._sealed(events), restart)

    async def end(self, ending: JobEnd) -> bool:
        """End a response early; the job goes. False when it is over already, or its stream went on meanwhile."""
        bodies, events = self._bodies, self._sealed(ending.events)
        body, items = bodies.seal(ending.body), [bodies.seal_item(item) for item in ending.output_items]
        named = {"id": ending.response_id, "worker": ending.worker, "last_event": ending.last_event}
        unit = [
            Statement(END_JOB, named, rows=1),
            Statement(RELEASE, named),
            Statement(END_RESPONSE, named | ended_as(ending.status, body, items, None), rows=1),
        ]
        if items:
            rows = [
                {"id": ending.response_id, "seq": seq, "item_id": item.id, "type": item.type}
                | {"body": item.body, "shown": item.shown}
                for seq, item in enumerate(items)
            ]
            unit.append(Statement(INSERT_OUTPUT, rows, many=True))
        if events is not None:
            unit.append(Statement(INSERT_EVENTS, named | {"last": events.last, "data": events.data}))
        with self._measured("end"):
            done = await changed(self._tables, Statement(LOCK, named, rows=1, into=[]), *unit)
        if done:
            self._ended([ending.response_id])
        return done

    async def unlock(self, response_id: str) -> None:
        """Give back the conversation that this response has locked, if its job is gone: a worker that did not know that
        yet may have taken the lock again."""
        await self._tables.run([Statement(UNLOCK, {"id": response_id})], again=True)

    async def progress(self, response_ids: Collection[str]) -> dict[str, Progress]:
        """How far these responses are; those that do not exist are left out."""
        rows = await self._tables.fetch(PROGRESS, {"ids": sorted(response_ids)})
        return {row["id"]: _progress(row) for row in rows}

    async def events(self, owner: str, response_id: str, after: int, limit: int) -> EventPage | None:
        """Up to `limit` pieces with events after this number, or None when there is no such response."""
        named = {"owner": owner, "id": response_id, "after": after, "limit": limit + 1, "bytes": _PAGE_BYTES}
        found = await self._tables.fetch(EVENTS, named)
        if not found:
            return None
        rows, cut = cut_off([row for row in found if row["last_seq"] is not None], "data")
        pieces = tuple([EventPiece(row["last_seq"], self._bodies.open(row["data"])) for row in rows[:limit]])
        return EventPage(found[0]["status"], pieces, more=cut or len(rows) > limit)

    def _sealed(self, events: EventPiece | None) -> EventPiece | None:
        return None if events is None else self._sealed_piece(events)

    def _sealed_piece(self, events: EventPiece) -> EventPiece:
        return EventPiece(events.last, self._bodies.seal(events.data), count_events(events.data))


def ended_as(status: str, body: bytes, items: Sequence[StoredItem], record: ResponseRecord | None) -> dict[str, object]:
    """The parameters of `END_RESPONSE`; without a record the response has no time of completion and no usage."""
    size = sum(item.size for item in items)
    completed_at = record.completed_at if record is not None else None
    usage = record.usage if record is not None else None
    return {
        "status": status,
        "body": body,
        "completed_at": None if completed_at is None else milliseconds(completed_at),
        "input_tokens": usage.input_tokens if usage else None,
        "output_tokens": usage.output_tokens if usage else None,
        "weight": len(items),
        "bytes": size,
        "own_bytes": size + len(body),
    }


class AskingSignals:
    """`Signals` of a database whose processes tell each other nothing: each asks, at this pace."""

    def __init__(self, tables: Tables, pace: Pace) -> None:
        self._tables = tables
        self.pace = pace

    async def look(self, followed: Collection[str], worker: str | None) -> Seen:
        """How far these streams are, and what this worker holds."""
        return await look(self._tables, followed, worker)

    def tell_queued(self) -> None:
        """The others ask by themselves."""

    def listen(self, hear: Callable[[News], None]) -> None:
        """There is nothing to hear."""


async def look(tables: Tables, followed: Collection[str], worker: str | None) -> Seen:
    """How far these streams are, and what this worker holds: one statement. See `Signals.look`."""
    rows = await tables.fetch(LOOK, {"ids": sorted(followed), "worker": worker}, own=True)
    progress = {row["id"]: _progress(row) for row in rows if row["status"]}
    return Seen(progress, frozenset([row["id"] for row in rows if row["status"] is None]))


def _progress(row: Row) -> Progress:
    last = row["last_seq"]
    return Progress(row["status"], -1 if last is None else last)
