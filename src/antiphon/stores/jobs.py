"""Stores background jobs and their event streams, for any backend.

Lives here: the operations on jobs and streams, how long a worker holds a job, how a response ends early, and which
bodies are sealed. Not here: the workers that run a job (`engine/running/`), how a backend runs statements
(`tables.py`). Each backend queues and claims jobs, appends to streams and finishes responses (`sqlite/jobs.py`,
`postgres/jobs.py`).

A job's row is the lock of its response: appending to the stream and ending the response lock that row first.

A process's own queries never queue behind the reads of clients.

Invariants: exactly one transaction ends a job. It deletes the job's row and writes the response's final state and last
event. Deleting the response deletes the job's row as well. Every statement of a worker requires that the worker holds
the job. A sealed piece of a stream carries the sequence numbers of its events in plain text.
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

# A reader reads a stream page by page, and holds a page until its client has received it.
_PAGE_BYTES = 1 << 20

HELD = "SELECT response_id FROM jobs WHERE worker = :worker"
# Locks the rows in one order and waits for locked ones, so a row that another transaction writes keeps its lease.
RENEW = """
WITH held (id) AS MATERIALIZED (
  SELECT response_id FROM jobs WHERE response_id IN (:ids...) AND worker = :worker
  ORDER BY response_id FOR NO KEY UPDATE
)
UPDATE jobs AS j SET lease_until = lease_in(:lease) FROM held WHERE j.response_id = held.id
RETURNING response_id
"""
UNLOCK = f"{RELEASE} AND NOT EXISTS (SELECT 1 FROM jobs WHERE response_id = :id)"

# The next statement then sees every event that was appended to the stream.
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
# No row: no such response. One row without a piece: no event after that number.
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
    """A listener that does nothing."""


@dataclass(frozen=True, slots=True)
class JobSql:
    """The SQL that differs by backend. `queue`: the number of jobs that wait for a worker, and the creation time of the
    oldest. `release`: the worker releases job `:id`, which no worker claims for `:pause` milliseconds, and subtracts
    `:uncounted` from its attempts."""

    queue: str
    release: str


Measured: TypeAlias = Callable[[str], AbstractContextManager[object]]
"""Measures the operation with this name: its duration and its outcome."""


class JobWriter(Protocol):
    """The hot path of `JobStore`: see its methods of the same names. Arguments are already sealed; results are still
    sealed. Every method raises `StoreError`."""

    async def enqueue(
        self, record: ResponseRecord, request: bytes, events: EventPiece | None, limit: int, needs: list[str]
    ) -> None:
        """Store the queued response and its job."""

    async def claim(
        self, worker: str, seconds: float, limit: int, besides: list[str], able: list[str] | None
    ) -> list[Job]:
        """Claim up to `limit` jobs."""

    async def append(self, worker: str, response_id: str, events: EventPiece, restart: bool) -> bool:
        """Append to the stream."""

    async def finish(self, worker: str, record: ResponseRecord, events: EventPiece | None, restart: bool) -> bool:
        """End the response with this record."""


class JobStore:
    """Jobs and event streams of background responses, in tables that the caller closes. The database's clock decides
    when a lease expires. Every method raises `StoreError`."""

    def __init__(
        self,
        tables: Tables,
        writer: JobWriter,
        sql: JobSql,
        bodies: Bodies = PLAIN,
        ended: ChangeListener = notify_nobody,
        measured: Measured = nullcontext,
    ) -> None:
        """`ended` is called with the ids of responses that ended early; their workers must stop. `measured` measures
        every change except `enqueue`."""
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
        """Store the queued response with its input and its job, all or nothing. `needs`: the capabilities that a worker
        must have to run it.

        Raises `TooManyJobs` when the owner has `limit` jobs. The rules for `previous_response_id` are those of
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
        """Claim up to `limit` jobs that no worker holds, for `seconds`, all or, on an error, none.

        The order: jobs with an expired lease first, then one job per owner in turn, each owner's oldest first. A job
        whose row another transaction has locked may be left for the next claim.

        Only jobs whose needs are among `able` (None: any), or that were created more than `PATIENCE` seconds ago. If no
        worker is able to run a job, the worker that claims it reports this.

        Jobs in `besides`, which the worker still runs, are left out: a worker does not take over its own jobs. Other
        jobs that the worker already holds are included, because the result of an earlier claim may have been lost. The
        responses are `in_progress` from now on.
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
        """The responses whose jobs this worker holds. A claimed job that is missing here has ended or belongs to
        another worker."""
        rows = await self._tables.fetch(HELD, {"worker": worker}, own=True)
        return frozenset([row[0] for row in rows])

    async def queue(self) -> Queue:
        """The number and the age of the jobs that wait for a worker."""
        row = (await self._tables.fetch(self._sql.queue, {}, own=True))[0]
        return Queue(row[0], None if row[1] is None else row[1] / 1000)

    async def renew(self, worker: str, response_ids: Collection[str], seconds: float) -> frozenset[str]:
        """Extend the leases of these jobs of the worker to `seconds` from now. Returns those that the worker still
        held."""
        named = {"worker": worker, "lease": milliseconds(seconds), "ids": sorted(response_ids)}
        rows: list[Row] = []
        with self._measured("renew"):
            await self._tables.run([Statement(RENEW, named, into=rows)], again=True)
        return frozenset([row[0] for row in rows])

    async def release(self, worker: str, response_id: str, *, pause: float = 0.0, attempted: bool = False) -> None:
        """Release a job; no worker claims it for `pause` seconds. `attempted`: whether the claim counts as an
        attempt."""
        named = {"worker": worker, "id": response_id, "pause": milliseconds(pause), "uncounted": 0 if attempted else 1}
        # After the release the worker does not hold the job, so repeating the statement does nothing.
        with self._measured("release"):
            await self._tables.run([Statement(self._sql.release, named)], again=True)

    async def append(self, worker: str, response_id: str, events: EventPiece, *, restart: bool = False) -> bool:
        """Append to the stream; False when the worker does not hold the job. `restart`: these are the first events of
        an attempt, and the events of earlier attempts are deleted, except `created` and `queued`.

        Rows that the same attempt wrote from this sequence number on are replaced. So a caller that does not know the
        outcome of a write may repeat it, with more events.
        """
        with self._measured("append"):
            return await self._writer.append(worker, response_id, self._sealed_piece(events), restart)

    async def finish(
        self, worker: str, record: ResponseRecord, events: EventPiece | None, *, restart: bool = False
    ) -> bool:
        """End the response with this record and these last events, and delete the job. The input is already stored.

        False, and nothing changes, when the worker does not hold the job or the response lost its conversation.
        `restart`: see `append`.
        """
        with self._measured("finish"):
            return await self._writer.finish(worker, self._bodies.seal_record(record), self._sealed(events), restart)

    async def end(self, ending: JobEnd) -> bool:
        """End a response early and delete its job. False when it has already ended, or its stream went on meanwhile."""
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
        """Release the conversation that this response has locked, if its job is deleted. A worker that did not know of
        the end may have taken the lock again."""
        await self._tables.run([Statement(UNLOCK, {"id": response_id})], again=True)

    async def progress(self, response_ids: Collection[str]) -> dict[str, Progress]:
        """The status and last event number of these responses; unknown ids are left out."""
        rows = await self._tables.fetch(PROGRESS, {"ids": sorted(response_ids)})
        return {row["id"]: _progress(row) for row in rows}

    async def events(self, owner: str, response_id: str, after: int, limit: int) -> EventPage | None:
        """Up to `limit` pieces with events after this number, or None when the response does not exist."""
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
    """The parameters of `END_RESPONSE`. Without a record the response has no completion time and no usage."""
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
    """`Signals` of a database that does not notify: each process polls it at this pace."""

    def __init__(self, tables: Tables, pace: Pace) -> None:
        self._tables = tables
        self.pace = pace

    async def look(self, followed: Collection[str], worker: str | None) -> Seen:
        """The progress of these streams, and the jobs that this worker holds."""
        return await look(self._tables, followed, worker)

    def tell_queued(self) -> None:
        """Do nothing: the other processes poll."""

    def listen(self, hear: Callable[[News], None]) -> None:
        """Do nothing: there are no notifications."""


async def look(tables: Tables, followed: Collection[str], worker: str | None) -> Seen:
    """The progress of these streams and the jobs that this worker holds, in one statement. See `Signals.look`."""
    rows = await tables.fetch(LOOK, {"ids": sorted(followed), "worker": worker}, own=True)
    progress = {row["id"]: _progress(row) for row in rows if row["status"]}
    return Seen(progress, frozenset([row["id"] for row in rows if row["status"] is None]))


def _progress(row: Row) -> Progress:
    last = row["last_seq"]
    return Progress(row["status"], -1 if last is None else last)
