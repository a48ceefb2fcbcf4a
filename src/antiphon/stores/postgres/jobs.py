"""Queues, claims and finishes background jobs on PostgreSQL, and appends to their streams.

Lives here: the SQL of the job queue, and the conversion of records to rows and of rows to jobs. Not here: the
operations that all backends share (`../jobs.py`), the SQL of finished responses (`responses.py`), the workers
(`engine/running/`).

Like finished responses, queued responses and new stream events go through a write queue that forms groups
(`group_commit.py`). A group of queued responses contains only one response, because the statement `ENQUEUE` checks the
owner's limit of jobs for a single response. A group of new events may contain the events of many streams of this
process. Every other operation on a job is one SQL statement.

The row of a job is the lock for its response and its stream. A statement that appends to the stream, ends the response
or deletes the response locks the job's row first. The statement then locks the conversation, the chain and the
response. The column `last_seq` of a job is the sequence number of the last stored event.

A PostgreSQL statement reads the snapshot that it took when it started. If the statement waits for a row lock, the
snapshot may be older than the locked row. So some statements compare the locked row with the row in the snapshot. The
common table expression `fresh` selects the rows that are equal. If the two rows differ, the statement writes nothing,
and the caller runs the statement again.

Invariants: the statement that deletes a job's row also writes the response's final state and its last event. Every SQL
statement that a worker runs on a job requires that this worker holds the job.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from antiphon.engine.ports.actions import ResponseRecord
from antiphon.engine.ports.jobs import PATIENCE, EventPiece, Job, TooManyJobs
from antiphon.errors import StoreError
from antiphon.ids import Clock, now
from antiphon.stores.jobs import ChangeListener, JobSql, end_parameters, notify_nobody
from antiphon.stores.postgres.database import Database
from antiphon.stores.postgres.failures import code_of
from antiphon.stores.postgres.group_commit import GroupCommit
from antiphon.stores.postgres.responses import COLUMNS, GIVEN, WITH_IT, FinishedResponses, age, response_columns
from antiphon.stores.postgres.tables import NOW

# Stores one queued response with its job. $1 to $27 are the parameters of `responses.py` for this response. $28: the
# request, $29: the owner's limit of jobs, $30: needs, $31 and $32: the last event's number and the events, $33: the
# conversation. If the response cannot be stored, the division by zero (22012) makes the statement fail, so that no
# counter changes. The column `turn` orders the queue of waiting jobs, so that the owners take turns. Each further job
# of an owner gets the turn after the owner's last job. The first job of an owner gets the turn of the first waiting
# job, or else of the last claimed job.
ENQUEUE = f"""
WITH {GIVEN},
  counted AS (
    INSERT INTO owner_queue AS q (owner, jobs, turn)
    SELECT t.owner, 1, coalesce(
      (SELECT turn FROM jobs WHERE worker IS NULL ORDER BY turn, number LIMIT 1),
      (SELECT max(turn) FROM jobs WHERE worker IS NOT NULL), 1
    )
    FROM t LEFT JOIN held USING (id) LEFT JOIN before USING (id)
    WHERE (t.key IS NULL OR held.id IS NOT NULL) AND (t.prev IS NULL OR before.id IS NOT NULL) AND $29::integer > 0
    ON CONFLICT (owner) DO UPDATE
      SET jobs = q.jobs + 1, turn = greatest(CASE WHEN q.jobs > 0 THEN q.turn + 1 END, excluded.turn)
      WHERE q.jobs < $29::integer
    RETURNING turn
  ),
  r AS (
    INSERT INTO {COLUMNS}
    SELECT t.id, t.owner, coalesce(before.chain_id, t.id), t.prev, t.weight + coalesce(before.history_items, 0),
           t.bytes + coalesce(before.history_bytes, 0), t.own_bytes, t.status, t.model, t.created_at, t.completed_at,
           t.input_tokens, t.output_tokens, t.body, $33::text, NULL, 1, t.at
    FROM t CROSS JOIN counted LEFT JOIN before USING (id)
    ON CONFLICT (id) DO NOTHING RETURNING id
  ),
  {WITH_IT},
  job AS (
    INSERT INTO jobs (response_id, owner, request, needs, created_at, queued_at, turn, last_seq)
    SELECT t.id, t.owner, $28::bytea, $30::text[], t.created_at, to_timestamp(t.at / 1000.0), counted.turn,
           coalesce($31::bigint, -1)
    FROM r JOIN t USING (id) CROSS JOIN counted
  ),
  events AS (
    INSERT INTO response_events (response_id, last_seq, data)
    SELECT id, $31::bigint, $32::bytea FROM r WHERE $32::bytea IS NOT NULL
  )
SELECT 1 / count(*)::integer FROM r
"""
COUNT_JOBS = "SELECT jobs FROM owner_queue WHERE owner = $1"

# Claims jobs with an expired lease first, then waiting jobs in the order of their turns. Skips a row that another
# transaction has locked. The result includes jobs that the worker holds but does not run, because the result of an
# earlier claim was lost. $1: worker, $2: duration of the lease, $3: limit, $4: ids of the jobs that the worker runs,
# $5: the worker's capabilities (null: all), $6: patience.
_ABLE = """response_id <> ALL($4::text[]) AND (
      $5::text[] IS NULL OR needs <@ $5::text[] OR queued_at < now() - $6::interval
    )"""
CLAIM = f"""
WITH gone AS MATERIALIZED (
    SELECT response_id FROM jobs WHERE worker IS NOT NULL AND lease_until <= now() AND {_ABLE}
    ORDER BY lease_until, number LIMIT $3::bigint FOR NO KEY UPDATE SKIP LOCKED
  ),
  waiting AS MATERIALIZED (
    SELECT response_id FROM jobs
    WHERE worker IS NULL AND (not_before IS NULL OR not_before <= now()) AND {_ABLE}
    ORDER BY turn, number LIMIT $3::bigint - (SELECT count(*) FROM gone) FOR NO KEY UPDATE SKIP LOCKED
  ),
  taken AS (
    UPDATE jobs j SET worker = $1::text, lease_until = clock_timestamp() + $2::interval, not_before = NULL,
                      attempts = j.attempts + 1, claim = j.claim + 1
    FROM (SELECT response_id FROM gone UNION ALL SELECT response_id FROM waiting) AS w
    WHERE j.response_id = w.response_id
    RETURNING j.response_id, j.owner, j.request, j.attempts, j.last_seq, j.number
  ),
  started AS (
    UPDATE responses r SET status = 'in_progress' FROM taken WHERE r.id = taken.response_id AND r.status = 'queued'
  ),
  mine AS (
    SELECT * FROM taken
    UNION ALL
    SELECT j.response_id, j.owner, j.request, j.attempts, j.last_seq, j.number FROM jobs j
    WHERE j.worker = $1::text AND j.response_id <> ALL($4::text[])
      AND j.response_id NOT IN (SELECT response_id FROM taken)
  )
SELECT mine.response_id, mine.owner, mine.request, r.body, mine.attempts, mine.last_seq
FROM mine JOIN responses r ON r.id = mine.response_id ORDER BY mine.number
"""

SQL = JobSql(
    queue="""
SELECT count(*), min(created_at) FROM jobs
WHERE (worker IS NULL AND (not_before IS NULL OR not_before <= now())) OR (worker IS NOT NULL AND lease_until <= now())
""",
    release="""
UPDATE jobs SET worker = NULL, lease_until = NULL, not_before = CASE WHEN :pause > 0 THEN lease_in(:pause) END,
                attempts = attempts - :uncounted
WHERE response_id = :id AND worker = :worker
""",
)

# Appends events to many streams in one statement. Each element of the arrays has consecutive events of one stream. The
# new events replace the rows that the same attempt (`claim`) wrote from the first new sequence number on. With
# `restart`, the statement deletes the rows of earlier attempts. Rows with claim 0 stay, because the request that queued
# the response wrote them for all attempts. $1: ids, $2: workers, $3: first numbers, $4: last numbers, $5: events, $6:
# restarts.
APPEND = """
WITH t AS MATERIALIZED (
    SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::bytea[], $6::boolean[])
      AS t (id, worker, first, last, data, restart)
  ),
  locked AS MATERIALIZED (
    SELECT j.response_id AS id, j.claim, j.last_seq, j.watched_until > now() AS watched
    FROM t JOIN jobs j ON j.response_id = t.id AND j.worker = t.worker
    ORDER BY j.response_id FOR NO KEY UPDATE OF j
  ),
  fresh AS MATERIALIZED (
    SELECT l.id, l.claim FROM locked l
    JOIN jobs seen ON seen.response_id = l.id AND seen.claim = l.claim AND seen.last_seq = l.last_seq
  ),
  dropped AS (
    DELETE FROM response_events e USING fresh JOIN t USING (id)
    WHERE e.response_id = t.id AND e.last_seq <> t.last AND (
      (e.claim = fresh.claim AND e.last_seq >= t.first) OR (t.restart AND e.claim > 0 AND e.claim < fresh.claim)
    )
  ),
  added AS (
    INSERT INTO response_events (response_id, last_seq, claim, data)
    SELECT t.id, t.last, fresh.claim, t.data FROM fresh JOIN t USING (id)
    ON CONFLICT (response_id, last_seq) DO UPDATE SET claim = excluded.claim, data = excluded.data
  ),
  counted AS (
    UPDATE jobs j SET last_seq = t.last FROM fresh JOIN t USING (id) WHERE j.response_id = t.id
  )
SELECT locked.id, fresh.id IS NOT NULL AS written, locked.watched FROM locked LEFT JOIN fresh USING (id)
"""

# Ends one response and deletes its job. $1: id, $2: worker, $3: status, $4: body, $5: completed_at, $6 and $7: input
# and output tokens, $8: bytes of the output items. $9 to $12: ids, types, bodies and `shown` of the output items. $13
# and $14: the first and last number of the events in $15. $16: restart, $17: owner, $18: the conversation that the
# response joins, $19: the number of items that join the conversation. $20: the response's age in milliseconds.
FINISH = f"""
WITH
  i AS MATERIALIZED (
    SELECT (n - 1)::integer AS seq, item_id, type, body, shown
    FROM unnest($9::text[], $10::text[], $11::bytea[], $12::bytea[]) WITH ORDINALITY
      AS i (item_id, type, body, shown, n)
  ),
  locked AS MATERIALIZED (
    SELECT claim, last_seq, watched_until > now() AS watched FROM jobs
    WHERE response_id = $1::text AND worker = $2::text FOR UPDATE
  ),
  fresh AS MATERIALIZED (
    SELECT l.claim FROM locked l
    JOIN jobs seen ON seen.response_id = $1::text AND seen.claim = l.claim AND seen.last_seq = l.last_seq
  ),
  place AS MATERIALIZED (
    SELECT c.next_pos FROM fresh CROSS JOIN conversations c
    WHERE c.owner = $17::text AND c.id = $18::text AND c.locked_by = $1::text FOR UPDATE OF c
  ),
  may AS MATERIALIZED (
    SELECT fresh.claim, (SELECT next_pos FROM place) AS next_pos, c.id AS chain_id
    FROM fresh CROSS JOIN responses r JOIN chains c ON c.id = r.chain_id
    WHERE r.id = $1::text AND ($18::text IS NULL OR (SELECT next_pos FROM place) IS NOT NULL)
    FOR NO KEY UPDATE OF c
  ),
  touched AS (
    UPDATE chains c SET updated_at = greatest(c.updated_at, {NOW} - $20::bigint) FROM may WHERE c.id = may.chain_id
  ),
  ended AS (
    UPDATE responses r
    SET status = $3::text, body = $4::bytea, completed_at = $5::bigint, input_tokens = $6::bigint,
        output_tokens = $7::bigint, history_items = r.history_items + (SELECT count(*) FROM i),
        history_bytes = r.history_bytes + $8::bigint,
        own_bytes = r.own_bytes + $8::bigint + length($4::bytea) - length(r.body),
        conversation_pos = coalesce(may.next_pos, r.conversation_pos)
    FROM may WHERE r.id = $1::text
  ),
  items AS (
    INSERT INTO response_items (response_id, dir, seq, item_id, type, body, shown)
    SELECT $1::text, 1, i.seq, i.item_id, i.type, i.body, i.shown FROM may CROSS JOIN i
  ),
  over AS (
    DELETE FROM jobs j USING may WHERE j.response_id = $1::text
  ),
  dropped AS (
    DELETE FROM response_events e USING may
    WHERE e.response_id = $1::text AND e.last_seq IS DISTINCT FROM $14::bigint AND (
      (e.claim = may.claim AND e.last_seq >= $13::bigint) OR ($16::boolean AND e.claim > 0 AND e.claim < may.claim)
    )
  ),
  added AS (
    INSERT INTO response_events (response_id, last_seq, claim, data)
    SELECT $1::text, $14::bigint, may.claim, $15::bytea FROM may WHERE $15::bytea IS NOT NULL
    ON CONFLICT (response_id, last_seq) DO UPDATE SET claim = excluded.claim, data = excluded.data
  ),
  given_back AS (
    UPDATE conversations c
    SET next_pos = c.next_pos + $19::bigint, updated_at = greatest(c.updated_at, {NOW} - $20::bigint),
        locked_by = NULL, locked_until = NULL
    FROM may WHERE c.locked_by = $1::text
  ),
  joined AS (
    INSERT INTO conversation_items (owner, conversation_id, pos, item_id, type, response_id, body, shown)
    SELECT $17::text, $18::text, may.next_pos + row_number() OVER (ORDER BY own.dir, own.seq) - 1, own.item_id,
           own.type, $1::text, own.body, own.shown
    FROM may CROSS JOIN (
      SELECT dir, seq, item_id, type, body, shown FROM response_items WHERE response_id = $1::text
      UNION ALL SELECT 1, seq, item_id, type, body, shown FROM i
    ) AS own WHERE may.next_pos IS NOT NULL
  )
SELECT (SELECT count(*) FROM locked) AS held, (SELECT count(*) FROM fresh) AS fresh, (SELECT count(*) FROM may) AS done,
       (SELECT watched FROM locked) AS watched
"""


_TRIES = 5
_DIVISION_BY_ZERO = "22012"


@dataclass(frozen=True, slots=True, eq=False)
class NewJob:
    """A response that `enqueue` stores together with its job. `record`: the response's row, without the conversation.
    The database adds the response to the conversation `conversation_id` only when the response ends."""

    record: ResponseRecord
    conversation_id: str | None
    request: bytes
    events: EventPiece | None
    needs: list[str]
    limit: int

    @property
    def id(self) -> str:
        """The id of the response."""
        return self.record.id

    @property
    def size(self) -> int:
        """The bytes of the response and its request."""
        return self.record.size + len(self.request)


class QueuedResponses:
    """Implements `Units` for responses that `enqueue` stores."""

    def __init__(self, database: Database, finished: FinishedResponses) -> None:
        self._database = database
        self._finished = finished

    async def write(self, group: Sequence[NewJob]) -> Collection[str]:
        """Store the responses and their jobs. Returns the ids of the stored responses. Raises `StoreError`."""
        done = []
        for job in group:
            events = (job.events.last, job.events.data) if job.events is not None else (None, None)
            given = [
                *response_columns([job.record], self._finished.keep, self._finished.clock()),
                job.request,
                job.limit,
                job.needs,
                *events,
            ]
            try:
                await self._database.write(ENQUEUE, *given, job.conversation_id)
            except StoreError as error:
                if code_of(error.__cause__) != _DIVISION_BY_ZERO:
                    raise
            else:
                done.append(job.id)
        return done

    async def stored(self, group: Sequence[NewJob]) -> Collection[str]:
        """Return the ids of those responses that are stored."""
        return await self._finished.stored([job.record for job in group])

    async def explain(self, unit: NewJob) -> Exception:
        """Return the reason why the statement did not store this response, for example `TooManyJobs`."""
        rows = await self._database.fetch(COUNT_JOBS, unit.record.owner)
        if unit.limit <= 0 or (rows and rows[0][0] >= unit.limit):
            return TooManyJobs(unit.limit)
        return await self._finished.explain(unit.record)

    def withdraw(self, unit: NewJob) -> None:
        """Undo the write of this response if the write takes effect later, because the client has got an error."""
        self._finished.withdraw(unit.record)


@dataclass(frozen=True, slots=True, eq=False)
class Addition:
    """Consecutive events that a worker appends to a response's stream."""

    id: str
    worker: str
    events: EventPiece
    restart: bool

    @property
    def size(self) -> int:
        """The bytes of the events."""
        return len(self.events.data)


class _NotHeld(Exception):
    """The worker does not hold the job."""


class AddedEvents:
    """Implements `Units` for events that workers append to streams. An append is idempotent, so after an unknown
    outcome a repeat is safe, and no undo is needed."""

    def __init__(self, database: Database, changed: ChangeListener = notify_nobody) -> None:
        self._database = database
        self._changed = changed

    async def write(self, group: Sequence[Addition]) -> Collection[str]:
        """Append the events of each `Addition` whose worker holds the job. Returns the ids of the responses that got
        new events."""
        written: list[str] = []
        left = group
        for _ in range(_TRIES):
            columns = zip(
                *[(each.id, each.worker, each.events.first, each.events.last, each.events.data, each.restart)
                  for each in left],
                strict=True,
            )  # fmt: skip
            rows = await self._database.write(APPEND, *map(list, columns))
            written += [row["id"] for row in rows if row["written"]]
            self._changed([row["id"] for row in rows if row["written"] and row["watched"]])
            # The rows of these jobs changed while the statement waited for their locks, so the next statement must
            # write the events.
            again = {row["id"] for row in rows if not row["written"]}
            left = [each for each in left if each.id in again]
            if not left:
                return written
        raise StoreError("Writing failed: another process keeps writing to the same stream.", reason="locked")

    async def stored(self, group: Sequence[Addition]) -> Collection[str]:
        """Return no ids, so that the write queue appends all events again, which is safe."""
        return ()

    async def explain(self, unit: Addition) -> Exception:
        """Return the only possible reason for a refused append: the worker does not hold the job."""
        return _NotHeld()

    def withdraw(self, unit: Addition) -> None:
        """Do nothing, because the worker appends the events again, or another attempt of the job deletes the events."""


class PostgresJobWriter:
    """Implements `JobWriter` on a database and write queues that the caller closes."""

    def __init__(
        self,
        database: Database,
        queued: GroupCommit[NewJob],
        added: GroupCommit[Addition],
        changed: ChangeListener = notify_nobody,
        *,
        clock: Clock = now,
    ) -> None:
        """The writer calls `changed` with the ids of changed responses whose streams other processes watch
        (`signals.py`)."""
        self._database = database
        self._changed = changed
        self._clock = clock
        self._queued = queued
        self._added = added

    async def enqueue(
        self, record: ResponseRecord, request: bytes, events: EventPiece | None, limit: int, needs: list[str]
    ) -> None:
        """See `JobWriter.enqueue`."""
        row = replace(record, conversation_id=None)
        await self._queued.run(NewJob(row, record.conversation_id, request, events, needs, limit))

    async def claim(
        self, worker: str, seconds: float, limit: int, besides: list[str], able: list[str] | None
    ) -> list[Job]:
        """See `JobWriter.claim`."""
        given = (worker, timedelta(seconds=seconds), limit, besides, able, timedelta(seconds=PATIENCE))
        return [Job(*row) for row in await self._database.write(CLAIM, *given)]

    async def append(self, worker: str, response_id: str, events: EventPiece, restart: bool) -> bool:
        """See `JobWriter.append`."""
        try:
            await self._added.run(Addition(response_id, worker, events, restart))
        except _NotHeld:
            return False
        return True

    async def finish(self, worker: str, record: ResponseRecord, events: EventPiece | None, restart: bool) -> bool:
        """See `JobWriter.finish`."""
        joins = record.joins_conversation
        pieces = (events.first, events.last, events.data) if events is not None else (None, None, None)
        ended, items = end_parameters(record.status, record.body, record.output_items, record), record.output_items
        given = [
            record.id,
            worker,
            *[ended[name] for name in ("status", "body", "completed_at", "input_tokens", "output_tokens", "bytes")],
            [item.id for item in items],
            [item.type for item in items],
            [item.body for item in items],
            [item.shown for item in items],
            *pieces,
            restart,
            record.owner,
            record.conversation_id if joins else None,
            len(record.input_items) + len(record.output_items) if joins else 0,
            age(record, self._clock()),
        ]
        for _ in range(_TRIES):
            (row,) = await self._database.write(FINISH, *given)
            if row["fresh"] or not row["held"]:
                if row["done"] and row["watched"]:
                    self._changed([record.id])
                return bool(row["done"])
        raise StoreError("Writing failed: another process keeps writing to the same stream.", reason="locked")
