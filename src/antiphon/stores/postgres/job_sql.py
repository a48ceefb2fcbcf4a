"""Contains the SQL statements of background jobs for PostgreSQL.

Lives here: the SQL that queues, claims, releases and ends jobs. Not here: the conversion of rows (`jobs.py`), the SQL
that all backends share (`../jobs.py`).

The row of a job is the lock for its response and its stream. A statement that appends to the stream, ends the response
or deletes the response locks the job's row first. The statement then locks the conversation, the chain and the
response. The column `last_seq` of a job is the sequence number of the last stored event.

A PostgreSQL statement reads the snapshot that it took when it started. If the statement waits for a row lock, the
snapshot may be older than the locked row. So some statements compare the locked row with the row in the snapshot
(`fresh`). If the two rows differ, the statement writes nothing, and the caller runs the statement again.

Invariant: every statement of a worker requires that the worker holds the job.
"""

from __future__ import annotations

from antiphon.stores.jobs import JobSql
from antiphon.stores.postgres.tables import NOW
from antiphon.stores.postgres.turns import COLUMNS, GIVEN, WITH_IT

# Stores one queued response with its job. $1 to $27 are the parameters of `turns.py` for this response. $28: the
# request, $29: the owner's limit of jobs, $30: needs, $31 and $32: the last event's number and the events, $33: the
# conversation. If the response cannot be stored, the division by zero (22012) makes the statement fail, so that no
# counter changes. Owners take turns in the queue of waiting jobs. Each further job of an owner gets the turn after the
# owner's last job. The first job of an owner gets the turn of the first waiting job, or else of the last claimed job.
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
