"""Stores finished responses on PostgreSQL in groups, withdraws responses whose clients got an error, and finds items by
id.

Lives here: the statement that stores a group of responses, the query for the reason of a refusal, and the SQL that
finds items. If the database stores a response after the client got an error, this module deletes the response. Not
here: the code that all backends share (`../responses.py`), the write queue and the recovery from an unknown outcome
(`group_commit.py`), readiness (`health.py`), connections (`database.py`).

The statement skips records that it cannot store, and returns the ids of the stored records. The statement locks the
rows on which it depends before it reads them. The statement always locks rows in the same order: idempotency keys,
conversations, then chains together with the responses that precede the new ones. So two groups with the same chains
never deadlock, and the statement waits for a concurrent deletion of a predecessor.

A server that hung may run an old statement much later. So a withdrawal deletes the response, and inserts a placeholder
row with the response's id and a reserved owner. A statement that stores a response waits for concurrent inserts of its
id, and skips an existing id. So after a withdrawal no late statement can store the response. The retention sweep
deletes the placeholder later.

Invariants: the statement stores either a whole response or no part of a response. A whole response includes its items,
the items that join its conversation, the release of the conversation's lock, and the binding of its idempotency key.
All responses of a chain have the same owner. To withdraw a response is to delete a response whose client got an error.
At most `most` responses wait for their withdrawal at one time. The process logs each response that it could not
withdraw. If the database is unreachable, the process logs when the withdrawals begin to wait and when they have run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from datetime import timedelta

import structlog

from antiphon.engine.ports.actions import ResponseRecord
from antiphon.errors import PredecessorGone, StoreError
from antiphon.ids import Clock, now
from antiphon.observability.repeated_failures import Outage
from antiphon.stores.postgres.database import Connection, Database
from antiphon.stores.postgres.group_commit import GroupCommit
from antiphon.stores.postgres.health import DatabaseReadiness
from antiphon.stores.postgres.tables import NOW, run_steps
from antiphon.stores.responses import delete_statements
from antiphon.stores.tables import milliseconds

_log = structlog.get_logger(__name__)

COLUMNS = """
  responses (id, owner, chain_id, prev_id, history_items, history_bytes, own_bytes, status, model, created_at,
             completed_at, input_tokens, output_tokens, body, conversation_id, conversation_pos, background,
             stored_at)"""

# Converts the parameters to rows: $1 to $18 have one element per response, $19 to $26 have one element per item.
GIVEN = f"""
  t AS MATERIALIZED (
    SELECT *, {NOW} - age AS at
    FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[], $7::text[], $8::text[],
                $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[], $13::bytea[], $14::text[], $15::boolean[],
                $16::bigint[], $17::text[], $18::bigint[])
      AS t (id, owner, prev, weight, bytes, own_bytes, status, model, created_at, completed_at, input_tokens,
            output_tokens, body, conversation, joins, age, key, place)
  ),
  i AS MATERIALIZED (
    SELECT * FROM unnest($19::text[], $20::smallint[], $21::integer[], $22::bigint[], $23::text[], $24::text[],
                         $25::bytea[], $26::bytea[])
      AS i (response_id, dir, seq, place, item_id, type, body, shown)
  ),
  held AS MATERIALIZED (
    SELECT t.id FROM t JOIN idempotency k ON k.owner = t.owner AND k.key = t.key AND k.object_id = t.id
    ORDER BY k.owner, k.key FOR NO KEY UPDATE OF k
  ),
  before AS MATERIALIZED (
    SELECT t.id, p.chain_id, p.history_items, p.history_bytes
    FROM t JOIN responses p ON p.id = t.prev AND p.owner = t.owner JOIN chains c ON c.id = p.chain_id
    WHERE c.expires_at IS NULL ORDER BY c.id FOR NO KEY UPDATE OF c FOR KEY SHARE OF p
  )"""

# Writes the other rows of the stored responses (`r`): chains, items and keys. Finished and queued responses share this
# SQL.
WITH_IT = """
  made AS (
    INSERT INTO chains (id, owner, updated_at) SELECT t.id, t.owner, t.at FROM r JOIN t USING (id) WHERE t.prev IS NULL
  ),
  touched AS (
    UPDATE chains c SET updated_at = greatest(c.updated_at, latest.at)
    FROM (
      SELECT before.chain_id, max(t.at) AS at FROM r JOIN t USING (id) JOIN before USING (id) GROUP BY before.chain_id
    ) AS latest WHERE c.id = latest.chain_id
  ),
  items AS (
    INSERT INTO response_items (response_id, dir, seq, item_id, type, body, shown)
    SELECT i.response_id, i.dir, i.seq, i.item_id, i.type, i.body, i.shown FROM r JOIN i ON i.response_id = r.id
  ),
  bound AS (
    UPDATE idempotency k SET lease_until = NULL, expires_at = now() + $27::interval
    FROM r JOIN t USING (id) WHERE k.owner = t.owner AND k.key = t.key
  )"""

_SAVE = f"""
WITH {GIVEN},
  locked AS MATERIALIZED (
    SELECT t.id, c.next_pos FROM t JOIN conversations c ON c.owner = t.owner AND c.id = t.conversation
    WHERE c.locked_by = t.id ORDER BY c.owner, c.id FOR UPDATE OF c
  ),
  r AS (
    INSERT INTO {COLUMNS}
    SELECT t.id, t.owner, coalesce(before.chain_id, t.id), t.prev, t.weight + coalesce(before.history_items, 0),
           t.bytes + coalesce(before.history_bytes, 0), t.own_bytes, t.status, t.model, t.created_at, t.completed_at,
           t.input_tokens, t.output_tokens, t.body, CASE WHEN t.prev IS NULL THEN t.conversation END,
           CASE WHEN t.prev IS NULL THEN coalesce(locked.next_pos, (
             SELECT next_pos FROM conversations c WHERE c.owner = t.owner AND c.id = t.conversation
           )) END, 0, t.at
    FROM t LEFT JOIN held USING (id) LEFT JOIN locked USING (id) LEFT JOIN before USING (id)
    WHERE (t.key IS NULL OR held.id IS NOT NULL) AND (NOT t.joins OR locked.id IS NOT NULL)
      AND (t.prev IS NULL OR before.id IS NOT NULL)
    ORDER BY t.place
    ON CONFLICT (id) DO NOTHING RETURNING id
  ),
  {WITH_IT},
  given_back AS (
    UPDATE conversations c
    SET next_pos = c.next_pos + n.items, updated_at = greatest(c.updated_at, n.at),
        locked_by = NULL, locked_until = NULL
    FROM (
      SELECT t.owner, t.conversation, CASE WHEN t.joins THEN t.at ELSE 0 END AS at,
             CASE WHEN t.joins THEN (SELECT count(*) FROM i WHERE i.response_id = t.id) ELSE 0 END AS items
      FROM r JOIN t USING (id) JOIN locked USING (id)
    ) AS n WHERE c.owner = n.owner AND c.id = n.conversation
  ),
  joined AS (
    INSERT INTO conversation_items (owner, conversation_id, pos, item_id, type, response_id, body, shown)
    SELECT t.owner, t.conversation, locked.next_pos + i.place, i.item_id, i.type, t.id, i.body, i.shown
    FROM r JOIN t USING (id) JOIN locked USING (id) JOIN i ON i.response_id = t.id WHERE t.joins
    ORDER BY t.place, i.place
  )
SELECT id FROM r
"""

# Selects the stored responses. Antiphon generates the ids, so a row with this id and owner is this response. $1: ids,
# $2: owners.
_STORED = """
SELECT r.id FROM unnest($1::text[], $2::text[]) AS t (id, owner) JOIN responses r ON r.id = t.id AND r.owner = t.owner
"""

# Finds out why a response was not stored. $1: the response's id, $2: owner, $3: id of the predecessor, $4: id of the
# conversation, $5: idempotency key.
_WHY_NOT = """
SELECT EXISTS (SELECT 1 FROM responses WHERE id = $1::text) AS taken,
       EXISTS (SELECT 1 FROM idempotency WHERE owner = $2::text AND key = $5::text AND object_id = $1::text) AS held,
       EXISTS (SELECT 1 FROM conversations WHERE owner = $2::text AND id = $4::text AND locked_by = $1::text) AS locked,
       EXISTS (SELECT 1 FROM responses p JOIN chains c ON c.id = p.chain_id AND c.expires_at IS NULL
               WHERE p.id = $3::text AND p.owner = $2::text) AS continued
"""
_MOST = 4096
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_CLOSE_SECONDS = 5.0
_TRIES = 5

# The reserved owner of placeholder rows. Real owners have a prefix, so no real owner has this name.
_NOBODY = "withdrawn"
_UNJOIN = """
DELETE FROM conversation_items WHERE owner = $1 AND conversation_id = $2 AND response_id = $3
"""
_UNBIND = "DELETE FROM idempotency WHERE owner = $1 AND key = $2 AND object_id = $3"
# Inserts the placeholder row, unless a row with this id exists. $1: the response's id, $2: the reserved owner, $3: the
# id of the placeholder's chain.
_TAKE_ID = """
WITH made AS (
  INSERT INTO chains (id, owner, updated_at) VALUES ($3::text, $2::text, (extract(epoch FROM now()) * 1000)::bigint)
  ON CONFLICT (id) DO NOTHING
)
INSERT INTO responses (id, owner, chain_id, history_items, history_bytes, own_bytes, status, model, created_at, body)
VALUES ($1::text, $2::text, $3::text, 1, 0, 0, 'withdrawn', '', (extract(epoch FROM now()) * 1000)::bigint, '')
ON CONFLICT (id) DO NOTHING
"""
_IS_OURS = "SELECT 1 FROM responses WHERE id = $1 AND owner = $2"

# Finds one item per requested id, even if several responses have an item with this id. The query prefers output items
# to input items, and newer items to older items.
LOAD_ITEMS = """
WITH found AS MATERIALIZED (
  SELECT f.* FROM (SELECT DISTINCT id FROM unnest(CAST(:ids AS text[])) AS w (id)) AS wanted CROSS JOIN LATERAL (
    SELECT i.response_id, i.dir, i.seq, length(i.body) + coalesce(length(i.shown), 0) AS size
    FROM response_items i JOIN responses r ON r.id = i.response_id
    WHERE i.item_id = wanted.id AND r.owner = :owner
    ORDER BY i.dir DESC, r.number DESC, i.seq DESC LIMIT 1
  ) AS f
),
whole AS MATERIALIZED (SELECT coalesce(sum(size), 0) <= CAST(:bytes AS bigint) AS fits FROM found)
SELECT i.item_id, i.type, CASE WHEN whole.fits THEN i.body END AS body, CASE WHEN whole.fits THEN i.shown END AS shown
FROM found JOIN response_items i USING (response_id, dir, seq) CROSS JOIN whole
"""


def age(record: ResponseRecord, at: float) -> int:
    """Return the milliseconds between the completion (or else the creation) of a response and `at`. Both times come
    from this process's clock, so a wrong clock does not change their difference. Retention periods start at the
    database's `NOW` minus this age."""
    return milliseconds(max(0.0, at - (record.completed_at or record.created_at)))


def response_columns(records: Sequence[ResponseRecord], keep: timedelta, at: float) -> list[object]:
    """Return the parameters $1 to $27 of a statement that stores these records. `keep`: the lifetime of an idempotency
    key. `at`: the current time in seconds since the epoch."""
    rows: list[tuple[object, ...]] = []
    items: list[tuple[object, ...]] = []
    for place, record in enumerate(records):
        usage, size = record.usage, record.size
        own = [
            (record.id, direction, seq, item.id, item.type, item.body, item.shown)
            for direction, given in enumerate((record.input_items, record.output_items))
            for seq, item in enumerate(given)
        ]
        items += [(*row[:3], number, *row[3:]) for number, row in enumerate(own)]
        rows.append(
            (
                record.id,
                record.owner,
                record.previous_response_id,
                max(1, len(own)),
                size - len(record.body),
                size,
                record.status,
                record.model,
                milliseconds(record.created_at),
                None if record.completed_at is None else milliseconds(record.completed_at),
                usage.input_tokens if usage else None,
                usage.output_tokens if usage else None,
                record.body,
                record.conversation_id,
                record.joins_conversation,
                age(record, at),
                record.once.key if record.once else None,
                place,
            )
        )
    return [*_columns(rows, 18), *_columns(items, 8), keep]


def _columns(rows: Sequence[tuple[object, ...]], width: int) -> list[list[object]]:
    return [[row[column] for row in rows] for column in range(width)]


class FinishedResponses:
    """Implements `Units` for finished responses."""

    def __init__(self, database: Database, late_saves: LateSaves, *, keep: timedelta, clock: Clock = now) -> None:
        """`keep`: the lifetime of an idempotency key after the response is stored."""
        self._database = database
        self._late_saves = late_saves
        self.keep = keep
        self.clock = clock

    async def write(self, group: Sequence[ResponseRecord]) -> Collection[str]:
        """Store the records that can be stored, and return their ids. Raises `StoreError` when no record is stored, or
        when the outcome is unknown."""
        return [row[0] for row in await self._database.write(_SAVE, *response_columns(group, self.keep, self.clock()))]

    async def stored(self, group: Sequence[ResponseRecord]) -> Collection[str]:
        """Return the ids of those records that are stored. Raises `StoreError`."""
        columns = [each.id for each in group], [each.owner for each in group]
        return [row[0] for row in await self._database.fetch(_STORED, *columns)]

    async def explain(self, record: ResponseRecord) -> Exception:
        """Return the reason why `write` did not store the record. Raises `StoreError` when the query for the reason
        fails."""
        key = record.once.key if record.once else None
        given = record.id, record.owner, record.previous_response_id, record.conversation_id, key
        (row,) = await self._database.fetch(_WHY_NOT, *given)
        if row["taken"]:
            return StoreError("A response with this id is stored already.")
        if record.previous_response_id is not None and not row["continued"]:
            return PredecessorGone()
        if record.joins_conversation and not row["locked"]:
            return StoreError("The conversation was deleted, or another response uses it now. Send the request again.")
        if key is not None and not row["held"]:
            return StoreError("Another request took over this idempotency key. Send the request again.")
        return StoreError(
            "The predecessor or conversation of the response changed while the store wrote it. Send the request again."
        )

    def withdraw(self, record: ResponseRecord) -> None:
        """Undo the write of this record if the write takes effect later, because the client has got an error."""
        self._late_saves.add(record)


class LateSaves:
    """Deletes responses whose save succeeded after their clients got an error, in a background task of this process."""

    def __init__(self, database: Database, *, most: int = _MOST) -> None:
        self._database = database
        self._most = most
        self._waiting: dict[str, ResponseRecord] = {}
        self._task: asyncio.Task[None] | None = None
        self._outage = Outage(_log, "late_save_not_undone_yet", "late_saves_settled")
        self._done = 0

    @property
    def waiting(self) -> int:
        """The number of responses that wait for their deletion, because their clients got an error."""
        return len(self._waiting)

    def add(self, record: ResponseRecord) -> None:
        """Schedule the deletion of this response, because its client got an error. The deletion runs as soon as the
        database is reachable. If too many responses already wait, this method only logs the response."""
        if len(self._waiting) >= self._most:
            _log.error(
                "late_save_not_undone",
                response_id=record.id,
                error=("Too many responses wait for the database to delete them."),
            )
            return
        self._waiting[record.id] = record
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._work())

    async def aclose(self) -> None:
        """Wait up to five seconds for the pending deletions, then log the responses that could not be deleted."""
        if self._task is not None and not self._task.done():
            await asyncio.wait({self._task}, timeout=_CLOSE_SECONDS)
            self._task.cancel()
        for record in self._waiting.values():
            _log.error("late_save_not_undone", response_id=record.id, error="The process ended.")
        self._waiting.clear()

    async def _work(self) -> None:
        pause = _FIRST_PAUSE
        while self._waiting:
            record = next(iter(self._waiting.values()))
            try:
                was_stored = await self._withdraw(record)
            except StoreError as error:
                self._outage.failed(response_id=record.id, error=str(error))
                await asyncio.sleep(pause)
                pause = min(_LONGEST_PAUSE, pause * 2)
                continue
            pause = _FIRST_PAUSE
            del self._waiting[record.id]
            self._done += 1
            if was_stored:
                _log.warning("late_save_undone", response_id=record.id)
        self._outage.recovered(responses=self._done)
        self._done = 0

    async def _withdraw(self, record: ResponseRecord) -> bool:
        """Delete the response and insert its placeholder row, in one transaction. Returns whether the response was
        stored. Raises `StoreError`."""

        async def work(connection: Connection) -> bool:
            was_stored = False
            for _ in range(_TRIES):
                if any((await run_steps(connection, delete_statements(record.owner, record.id)))[-2:]):
                    was_stored = True
                    await connection.fetch(_UNJOIN, record.owner, record.conversation_id, record.id)
                    if record.once is not None:
                        await connection.fetch(_UNBIND, record.owner, record.once.key, record.id)
                # This insert waits for a concurrent statement that stores the response. If that statement commits, the
                # next iteration deletes the stored response.
                await connection.fetch(_TAKE_ID, record.id, _NOBODY, f"withdrawn {record.id}")
                if await connection.fetch(_IS_OURS, record.id, _NOBODY):
                    return was_stored
            raise StoreError("Another response already has this response's id.", reason="failed")

        return await self._database.transaction(work)


class PostgresResponseWriter:
    """Implements `ResponseWriter` on a write queue that the caller closes."""

    def __init__(self, finished: GroupCommit[ResponseRecord], readiness: DatabaseReadiness) -> None:
        self.ping = readiness.ping
        self.save = finished.run
