"""Queues, claims and finishes background jobs on PostgreSQL, and appends to their streams.

Lives here: the conversion of records to rows and of rows to jobs. Not here: the SQL (`job_sql.py`), the code that all
backends share (`../jobs.py`), the workers (`engine/running/`).

Like finished responses, queued responses and new stream events go through a write queue that forms groups
(`turn_groups.py`). A group has only one queued response, because the limit of jobs per owner must be exact. A group of
new events may contain the events of many streams of this process. Each other operation on a job is one SQL statement.

Invariant: the statement that deletes a job's row also writes the response's final state and its last event.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from antiphon.engine.ports.actions import ResponseRecord
from antiphon.engine.ports.jobs import PATIENCE, EventPiece, Job, TooManyJobs
from antiphon.errors import StoreError
from antiphon.ids import Clock, now
from antiphon.stores.jobs import ChangeListener, ended_as, notify_nobody
from antiphon.stores.postgres import job_sql as sql
from antiphon.stores.postgres.database import Database
from antiphon.stores.postgres.failures import code_of
from antiphon.stores.postgres.turn_groups import Groups
from antiphon.stores.postgres.turns import SavedTurns, age, turn_columns

_TRIES = 5
_DIVISION_BY_ZERO = "22012"


@dataclass(frozen=True, slots=True, eq=False)
class NewJob:
    """A response that `enqueue` stores together with its job. `record`: the response's row, without the conversation.
    The response joins `conversation_id` only when it ends."""

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


class QueuedTurns:
    """Implements `Units` for responses to queue."""

    def __init__(self, database: Database, turns: SavedTurns) -> None:
        self._database = database
        self._turns = turns

    async def write(self, group: Sequence[NewJob]) -> Collection[str]:
        """Store the responses and their jobs. Returns the ids of the stored responses. Raises `StoreError`."""
        done = []
        for job in group:
            events = (job.events.last, job.events.data) if job.events is not None else (None, None)
            given = [
                *turn_columns([job.record], self._turns.keep, self._turns.clock()),
                job.request,
                job.limit,
                job.needs,
                *events,
            ]
            try:
                await self._database.write(sql.ENQUEUE, *given, job.conversation_id)
            except StoreError as error:
                if code_of(error.__cause__) != _DIVISION_BY_ZERO:
                    raise
            else:
                done.append(job.id)
        return done

    async def stored(self, group: Sequence[NewJob]) -> Collection[str]:
        """Return the ids of those responses that are stored."""
        return await self._turns.stored([job.record for job in group])

    async def explain(self, unit: NewJob) -> Exception:
        """Find out why the statement did not store this response, for example `TooManyJobs`."""
        rows = await self._database.fetch(sql.COUNT_JOBS, unit.record.owner)
        if unit.limit <= 0 or (rows and rows[0][0] >= unit.limit):
            return TooManyJobs(unit.limit)
        return await self._turns.explain(unit.record)

    def withdraw(self, unit: NewJob) -> None:
        """Undo the write of this response if it takes effect later, because the client has got an error."""
        self._turns.withdraw(unit.record)


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
        """Append the events of each addition whose worker holds the job. Returns the ids of the responses that got new
        events."""
        written: list[str] = []
        left = group
        for _ in range(_TRIES):
            columns = zip(
                *[(each.id, each.worker, each.events.first, each.events.last, each.events.data, each.restart)
                  for each in left],
                strict=True,
            )  # fmt: skip
            rows = await self._database.write(sql.APPEND, *map(list, columns))
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
        """Do nothing. The worker appends the events again, or another attempt of the job deletes the events."""


class PostgresJobWriter:
    """Implements `JobWriter` on a database and write queues that the caller closes."""

    def __init__(
        self,
        database: Database,
        queued: Groups[NewJob],
        added: Groups[Addition],
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
        return [Job(*row) for row in await self._database.write(sql.CLAIM, *given)]

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
        ended, items = ended_as(record.status, record.body, record.output_items, record), record.output_items
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
            (row,) = await self._database.write(sql.FINISH, *given)
            if row["fresh"] or not row["held"]:
                if row["done"] and row["watched"]:
                    self._changed([record.id])
                return bool(row["done"])
        raise StoreError("Writing failed: another process keeps writing to the same stream.", reason="locked")
