"""Where the keys of requests are kept: the `IdempotencyStore` over PostgreSQL.

Lives here: the SQL by name, and binding a key in the transaction that makes something. Not here: what a key is, and
what clients are told (`engine/ports/idempotency.py`).

Of two that want one key the second waits for the first one's commit, and then sees the row as it is by then.

Invariant: a key is bound to an object in the unit that stores the object, so there is neither without the other; one
that is held for an object that is not stored is a lease.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import timedelta

from antiphon.engine.ports.idempotency import (
    APPROVALS,
    CALLS,
    KEEP_APPROVALS,
    AlreadyMade,
    OnceOnly,
    approval_key,
    calls_key,
    explain,
    in_progress,
)
from antiphon.stores.backend import KEEP_SECONDS
from antiphon.stores.postgres.database import Connection, Database

_PIECE = 500
_TRIES = 3

_FREE = f"""NOT EXISTS (
    SELECT 1 FROM idempotency c WHERE c.owner = known.owner AND c.key = '{CALLS}' || known.object_id
  )"""
# A key that is over is as if it had never been: expired, or held by a process that is gone and has claimed no calls.
# The moment is that at which the row is looked at, which may be long after the statement began.
_TAKE = """
INSERT INTO idempotency AS known (owner, key, fingerprint, object_id, lease_until, expires_at)
VALUES ($1, $2, $3, $4, {lease}, {expires})
ON CONFLICT (owner, key) DO UPDATE
  SET fingerprint = excluded.fingerprint, object_id = excluded.object_id, lease_until = excluded.lease_until,
      expires_at = excluded.expires_at
  WHERE known.expires_at <= clock_timestamp() OR (known.lease_until <= clock_timestamp() AND {free}) {or_own}
RETURNING 1
"""
# As long as it is held nothing but the lease ends it. Its holder may ask again, having heard nothing.
CLAIM = _TAKE.format(
    free=_FREE,
    lease="clock_timestamp() + $5",
    expires="'infinity'",
    or_own="OR (known.object_id = $4 AND known.fingerprint = $3 AND known.lease_until IS NOT NULL)",
)
BIND_NEW = _TAKE.format(free=_FREE, lease="NULL", expires="now() + $5", or_own="")
LOOK = f"""
SELECT fingerprint, object_id, lease_until, lease_until <= now() AND NOT {_FREE} FROM idempotency known
WHERE owner = $1 AND key = $2
"""
MADE = """
SELECT object_id FROM idempotency
WHERE owner = $1 AND key = $2 AND fingerprint = $3 AND lease_until IS NULL AND expires_at > now()
"""
RELEASE = """
DELETE FROM idempotency WHERE owner = $1 AND key = $2 AND object_id = $3 AND lease_until IS NOT NULL
"""
RENEW = """
WITH held AS MATERIALIZED (
  SELECT owner, key FROM idempotency WHERE object_id = ANY($1::text[]) AND lease_until IS NOT NULL
  ORDER BY owner, key FOR NO KEY UPDATE
)
UPDATE idempotency i SET lease_until = clock_timestamp() + $2 FROM held
WHERE i.owner = held.owner AND i.key = held.key RETURNING i.object_id
"""
STAY = """
UPDATE idempotency SET lease_until = NULL, expires_at = now() + $4 WHERE owner = $1 AND key = $2 AND object_id = $3
"""
# Only the response that has used an answer may use it again. All transactions lock the rows in one order.
SPEND = """
INSERT INTO idempotency AS known (owner, key, fingerprint, object_id, lease_until, expires_at)
SELECT $1, key, '', $3, NULL, now() + $4 FROM unnest($2::text[]) AS key ORDER BY key
ON CONFLICT (owner, key) DO UPDATE SET object_id = excluded.object_id, expires_at = excluded.expires_at
  WHERE known.object_id = excluded.object_id OR known.expires_at <= clock_timestamp()
"""
SPENT = "SELECT key, object_id FROM idempotency WHERE owner = $1 AND key = ANY($2::text[]) AND object_id <> $3"
UNSPEND = "DELETE FROM idempotency WHERE owner = $1 AND object_id = $2 AND starts_with(key, $3)"
# This renews the key too: a transaction that would take the key at the same moment waits, and finds it held.
CLAIM_CALLS = """
WITH held AS (
  UPDATE idempotency SET lease_until = clock_timestamp() + $4
  WHERE owner = $1 AND key = $7 AND object_id = $3 AND lease_until IS NOT NULL RETURNING 1
)
INSERT INTO idempotency AS known (owner, key, fingerprint, object_id, lease_until, expires_at, record)
SELECT $1, $2, $6, $3, clock_timestamp() + $4, 'infinity', $5 WHERE $7::text IS NULL OR EXISTS (SELECT 1 FROM held)
ON CONFLICT (owner, key) DO UPDATE SET lease_until = excluded.lease_until, record = excluded.record
  WHERE known.fingerprint = excluded.fingerprint
RETURNING 1
"""
CLAIMED_CALLS = "SELECT record FROM idempotency WHERE owner = $1 AND key = $2"
LEFT_CALLS = """
SELECT owner, object_id FROM idempotency
WHERE expires_at = 'infinity' AND lease_until <= now() AND starts_with(key, $1) LIMIT $2
"""
END_CALLS = "DELETE FROM idempotency WHERE owner = $1 AND key = $2"
SWEEP = f"""
DELETE FROM idempotency WHERE (owner, key) IN (
  SELECT owner, key FROM idempotency known WHERE expires_at <= now()
     OR (expires_at = 'infinity' AND lease_until <= now() - $2::interval
         AND NOT starts_with(key, '{CALLS}') AND {_FREE})
  LIMIT $1 FOR UPDATE SKIP LOCKED
) RETURNING 1
"""


class PostgresIdempotency:
    """`IdempotencyStore` on a database that is somebody else's to close."""

    def __init__(self, database: Database, *, keep: float = KEEP_SECONDS) -> None:
        """`keep`: seconds for which a key is remembered after something was made with it."""
        self.database = database
        self.keep = timedelta(seconds=keep)

    async def bind(self, connection: Connection, once: OnceOnly, object_id: str) -> None:
        """Bind a free key in this transaction, before anything else is done in it. Raises `AlreadyMade`, `ApiError`."""
        for _ in range(_TRIES):
            given = (once.owner, once.key, once.fingerprint, object_id, self.keep)
            if await connection.fetch(BIND_NEW, *given):
                return
            explain(once, await connection.fetch(LOOK, once.owner, once.key))
        raise in_progress()

    async def claim(self, once: OnceOnly, object_id: str, seconds: float) -> str | None:
        """Hold the key; see `IdempotencyStore.claim`."""
        given = (once.owner, once.key, once.fingerprint, object_id, timedelta(seconds=seconds))
        for _ in range(_TRIES):
            if await self.database.write(CLAIM, *given, again=True):
                return None
            try:
                explain(once, await self.database.fetch(LOOK, once.owner, once.key))
            except AlreadyMade as made:
                return made.object_id
        raise in_progress()

    async def made(self, once: OnceOnly) -> str | None:
        """What was made with the key; see `IdempotencyStore.made`."""
        rows = await self.database.fetch(MADE, once.owner, once.key, once.fingerprint)
        return str(rows[0][0]) if rows else None

    async def release(self, once: OnceOnly, object_id: str) -> None:
        """Give the key back; see `IdempotencyStore.release`."""
        await self.database.write(RELEASE, once.owner, once.key, object_id, again=True)

    async def stay(self, once: OnceOnly, object_id: str) -> None:
        """It stays taken; see `IdempotencyStore.stay`."""
        await self.database.write(STAY, once.owner, once.key, object_id, self.keep, again=True)

    async def spend(self, owner: str, requests: Collection[str], response_id: str) -> dict[str, str]:
        """Note who answered these requests for approval; see `IdempotencyStore.spend`."""
        by_key = {approval_key(each): each for each in requests}
        keys = list(by_key)
        await self.database.write(SPEND, owner, keys, response_id, timedelta(seconds=KEEP_APPROVALS), again=True)
        # Behind it: what another has committed meanwhile is seen.
        rows = await self.database.fetch(SPENT, owner, keys, response_id)
        return {by_key[key]: answered_by for key, answered_by in rows}

    async def unspend(self, owner: str, response_id: str) -> None:
        """Forget what this response has answered."""
        await self.database.write(UNSPEND, owner, response_id, APPROVALS, again=True)

    async def claim_calls(
        self, owner: str, response_id: str, record: bytes, seconds: float, *, by: str, once: OnceOnly | None = None
    ) -> bool:
        """Note that calls are sent; see `IdempotencyStore.claim_calls`."""
        given = (owner, calls_key(response_id), response_id, timedelta(seconds=seconds), record, by)
        key = once.key if once is not None else None
        return bool(await self.database.write(CLAIM_CALLS, *given, key, again=True))

    async def claimed_calls(self, owner: str, response_id: str) -> bytes | None:
        """The record of a response that has claimed calls."""
        rows = await self.database.fetch(CLAIMED_CALLS, owner, calls_key(response_id))
        return bytes(rows[0][0]) if rows else None

    async def left_calls(self) -> list[tuple[str, str]]:
        """Responses with an expired claim; see `IdempotencyStore.left_calls`."""
        rows = await self.database.fetch(LEFT_CALLS, CALLS, _PIECE)
        return [(owner, response_id) for owner, response_id in rows]

    async def end_calls(self, owner: str, response_id: str) -> None:
        """The response is over."""
        await self.database.write(END_CALLS, owner, calls_key(response_id), again=True)

    async def renew(self, holders: Sequence[str], seconds: float) -> frozenset[str]:
        """Hold the keys of these objects for so long; which still were held."""
        rows = await self.database.write(RENEW, list(holders), timedelta(seconds=seconds), again=True)
        return frozenset(row[0] for row in rows)

    async def sweep(self) -> tuple[int]:
        """Forget what has expired; how many keys went."""
        gone = 0
        while True:
            count = len(await self.database.write(SWEEP, _PIECE, self.keep, again=True))
            gone += count
            if count < _PIECE:
                return (gone,)
