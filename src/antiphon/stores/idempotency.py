"""Stores idempotency keys in SQLite or PostgreSQL.

Lives here: the SQL of the keys, and the statements that other stores add to the transaction that creates an object. Not
here: the meaning of a key and its errors (`engine/ports/idempotency.py`), how a backend runs statements (`tables.py`).

If two requests use the same key concurrently, the second request waits for the commit of the first request. The second
request then sees the committed row.

Invariant: one transaction binds a key to an object and stores the object, so neither exists without the other. Before
that transaction, a running request holds the key with a lease.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from antiphon.engine.ports.actions import OnceOnly
from antiphon.engine.ports.idempotency import (
    APPROVALS,
    CALLS,
    KEEP_APPROVALS,
    AlreadyMade,
    approval_key,
    calls_key,
    explain,
    in_progress,
)
from antiphon.ids import Clock, now
from antiphon.stores.bodies import PLAIN, Bodies
from antiphon.stores.tables import Row, RowsMissing, Statement, Tables, milliseconds, renew_leases

KEEP_SECONDS = 86_400.0
"""The default lifetime in seconds of a key that is bound to an object."""
_PIECE = 500
_TRIES = 3

# SQL: true if the holder of the key `known` has claimed no tool calls (see `claim_calls`). If the lease of a key has
# expired, another request may take the key only if this condition is true. If the key itself has expired, another
# request may always take the key.
_FREE = f"""NOT EXISTS (
    SELECT 1 FROM idempotency c WHERE c.owner = known.owner AND c.key = '{CALLS}' || known.object_id
  )"""
_TAKE = f"""
INSERT INTO idempotency AS known (owner, key, fingerprint, object_id, lease_until, expires_at)
VALUES (:owner, :key, :fingerprint, :id, {{lease}}, {{expires}})
ON CONFLICT (owner, key) DO UPDATE
  SET fingerprint = excluded.fingerprint, object_id = excluded.object_id, lease_until = excluded.lease_until,
      expires_at = excluded.expires_at
  WHERE known.expires_at <= date_now() OR (known.lease_until <= lease_now() AND {_FREE}) {{or_own}}
"""
# A held key becomes free only when its lease ends. The holder may claim its key again, because the result of the first
# claim may have been lost.
CLAIM = _TAKE.format(
    lease="lease_in(:lease)",
    expires="for_ever()",
    or_own="OR (known.object_id = :id AND known.fingerprint = :fingerprint AND known.lease_until IS NOT NULL)",
)
BIND_NEW = _TAKE.format(lease="NULL", expires="date_in(:keep)", or_own="")
# Only the holder of a key can bind the key to an object. The holder may bind the key again, because a queued response
# has already bound its key when it ends.
BIND = """
UPDATE idempotency SET lease_until = NULL, expires_at = date_in(:keep)
WHERE owner = :owner AND key = :key AND object_id = :id
"""
UNBIND = "DELETE FROM idempotency WHERE owner = :owner AND key = :key AND object_id = :id"
RELEASE = f"{UNBIND} AND lease_until IS NOT NULL"
MADE = """
SELECT object_id FROM idempotency
WHERE owner = :owner AND key = :key AND fingerprint = :fingerprint AND lease_until IS NULL AND expires_at > date_now()
"""
LOOK = f"""
SELECT fingerprint, object_id, lease_until, lease_until <= lease_now() AND NOT {_FREE} FROM idempotency known
WHERE owner = :owner AND key = :key
"""
# Locks the rows in the order of their keys, as every statement that locks several rows does, to avoid deadlocks.
RENEW = """
WITH held AS MATERIALIZED (
  SELECT owner, key FROM idempotency WHERE object_id IN (:holders...) AND lease_until IS NOT NULL
  ORDER BY owner, key FOR UPDATE
)
UPDATE idempotency AS i SET lease_until = lease_in(:lease) FROM held
WHERE i.owner = held.owner AND i.key = held.key RETURNING object_id
"""
# Records which response uses an approval. Only the same response may use the approval again.
SPEND = """
INSERT INTO idempotency AS known (owner, key, fingerprint, object_id, lease_until, expires_at)
VALUES (:owner, :key, '', :id, NULL, date_in(:keep))
ON CONFLICT (owner, key) DO UPDATE SET object_id = excluded.object_id, expires_at = excluded.expires_at
  WHERE known.object_id = excluded.object_id OR known.expires_at <= date_now()
"""
SPENT = "SELECT key, object_id FROM idempotency WHERE owner = :owner AND key IN (:keys...) AND object_id <> :id"
UNSPEND = (
    f"DELETE FROM idempotency WHERE object_id = :id AND owner = :owner"
    f" AND substr(key, 1, {len(APPROVALS)}) = '{APPROVALS}'"
)
# Renews the lease of the request's key, so that a concurrent transaction for the same key waits, and then finds that
# the key is held.
HOLD_KEY = """
UPDATE idempotency SET lease_until = lease_in(:lease)
WHERE owner = :owner AND key = :held AND object_id = :id AND lease_until IS NOT NULL
"""
CLAIM_CALLS = """
INSERT INTO idempotency AS known (owner, key, fingerprint, object_id, lease_until, expires_at, record)
VALUES (:owner, :key, :by, :id, lease_in(:lease), for_ever(), :record)
ON CONFLICT (owner, key) DO UPDATE SET lease_until = excluded.lease_until, record = excluded.record
  WHERE known.fingerprint = excluded.fingerprint
"""
CLAIMED_CALLS = "SELECT record FROM idempotency WHERE owner = :owner AND key = :key"
_OF_CALLS = f"substr(key, 1, {len(CALLS)}) = '{CALLS}'"
LEFT_CALLS = f"""
SELECT owner, object_id FROM idempotency
WHERE expires_at = for_ever() AND lease_until <= lease_now() AND {_OF_CALLS} LIMIT :limit
"""
END_CALLS = "DELETE FROM idempotency WHERE owner = :owner AND key = :key"
_SWEEP = """
DELETE FROM idempotency WHERE (owner, key) IN (
  SELECT owner, key FROM idempotency AS known WHERE {which} LIMIT :limit FOR UPDATE SKIP LOCKED
)
"""
SWEEP = _SWEEP.format(which="expires_at <= (SELECT date_now())")
SWEEP_GONE = _SWEEP.format(
    which=f"expires_at = for_ever() AND lease_until <= lease_in(:past) AND NOT {_OF_CALLS} AND {_FREE}"
)


class IdempotencyStore:
    """Stores the idempotency keys of all owners in a database that the caller closes. Every method raises `StoreError`
    when the database fails."""

    def __init__(
        self,
        tables: Tables,
        *,
        keep: float = KEEP_SECONDS,
        bodies: Bodies = PLAIN,
        clock: Clock = now,
        piece: int = _PIECE,
    ) -> None:
        """`keep`: seconds for which the store keeps a key after the request created an object. `bodies` encrypts the
        records that `claim_calls` stores. `clock`: the function that returns the current time on SQLite. PostgreSQL
        uses the server's clock. `piece`: the number of rows that a sweep deletes per statement."""
        self._tables = tables
        self.keep = keep
        self._bodies = bodies
        self._clock = clock
        self._piece = piece

    def bound(self, once: OnceOnly | None, object_id: str) -> tuple[list[Statement], list[Statement]]:
        """Return two lists of statements: the first binds the key to an object, and the second undoes the binding. The
        request that creates the object must already hold the key. The caller adds the statements to the transaction
        that stores the object. Both lists are empty if `once` is None."""
        if once is None:
            return [], []
        named = self._named(once, object_id)
        return [Statement(BIND, named, rows=1)], [Statement(UNBIND, named)]

    def binding(self, once: OnceOnly, object_id: str) -> Statement:
        """Return the statement that binds a free key to the object, for the transaction that creates the object. If the
        key is not free, the statement changes no row, the transaction fails, and `explain` raises the reason."""
        return Statement(BIND_NEW, self._named(once, object_id), rows=1)

    async def make(
        self, once: OnceOnly | None, object_id: str, unit: Sequence[Statement], undo: Sequence[Statement]
    ) -> None:
        """Run the transaction `unit`, which creates an object, unless an earlier request with the same key created the
        object.

        Raises `AlreadyMade` in that case. Raises `ApiError` when a different request used the key (422), or while the
        same request still runs (409). Raises `RowsMissing` when a statement of `unit` fails.

        `undo` deletes the object if the commit succeeds after the caller's timeout. Without `undo`, a commit after the
        timeout leaves the object and its key in the store.
        """
        if once is None:
            await self._tables.run(unit, undo=undo)
            return
        named = self._named(once, object_id)
        back = [*undo, Statement(UNBIND, named)] if undo else []
        for last in (False, True):
            try:
                await self._tables.run([self.binding(once, object_id), *unit], undo=back)
                return
            except RowsMissing:
                await self.explain(once)
                if last:
                    raise  # The key was free, so another statement of the unit failed.

    async def claim(self, once: OnceOnly, object_id: str, seconds: float) -> str | None:
        """Hold the key with a lease of `seconds` while the request creates its object. Returns None, or the id of the
        object that an earlier request with this key created.

        Raises `ApiError` when the key belongs to a different request (422), or the same request still runs (409).
        Raises `LeftBehind` when the process of the earlier request died after it had claimed tool calls, so
        the tools may have run.
        """
        named = self._named(once, object_id) | {"lease": milliseconds(seconds)}
        for _ in range(_TRIES):
            claim = Statement(CLAIM, named, rows=1)
            try:
                await self._tables.run([claim], undo=[Statement(RELEASE, named)], again=True)
                return None
            except RowsMissing:
                try:
                    await self.explain(once)
                except AlreadyMade as made:
                    return made.object_id
        raise in_progress()

    async def made(self, once: OnceOnly) -> str | None:
        """Return the id of the object that the same request created earlier with this key. Returns None when the key is
        free, belongs to a different request, or its request still runs. `claim` handles these three cases."""
        rows = await self._tables.fetch(MADE, self._named(once, ""))
        return str(rows[0][0]) if rows else None

    async def explain(self, once: OnceOnly) -> None:
        """Raise the reason why the key is not free: `AlreadyMade`, `LeftBehind` or `ApiError`. Returns if the key has
        become free."""
        rows = await self._tables.fetch(LOOK, self._named(once, ""))
        explain(once, [(row[0], row[1], row[2], row[3]) for row in rows])

    async def release(self, once: OnceOnly, object_id: str) -> None:
        """Release the key that `claim` reserved for this object, unless the object is already stored."""
        await self._tables.run([Statement(RELEASE, self._named(once, object_id))], again=True)

    async def stay(self, once: OnceOnly, object_id: str) -> None:
        """Bind the key to the object `object_id`, although the store has no such object. The request that creates the
        object must already hold the key. Afterwards the key has no lease, so a repeated request cannot create the
        object again."""
        await self._tables.run([Statement(BIND, self._named(once, object_id))], again=True)

    async def spend(self, owner: str, requests: Collection[str], response_id: str) -> dict[str, str]:
        """Record that this response uses the answers to these approval requests. This method is idempotent.

        Returns the approval requests whose answers another response has already used, each with that response's id. The
        records of these requests stay unchanged."""
        by_key = {approval_key(each): each for each in requests}
        # All transactions lock the rows in the order of the keys, to avoid deadlocks.
        keys = sorted(by_key)
        named = {"owner": owner, "id": response_id, "keep": milliseconds(KEEP_APPROVALS), **self._date()}
        rows: list[Row] = []
        unit = [
            Statement(SPEND, [{**named, "key": key} for key in keys], many=True),
            Statement(SPENT, {**named, "keys": keys}, into=rows),
        ]
        await self._tables.run(unit, again=True)
        return {by_key[row[0]]: row[1] for row in rows}

    async def unspend(self, owner: str, response_id: str) -> None:
        """Delete the records of the approvals that this response uses, so that another response may use them."""
        await self._tables.run([Statement(UNSPEND, {"owner": owner, "id": response_id})], again=True)

    async def claim_calls(
        self, owner: str, response_id: str, record: bytes, seconds: float, *, by: str, once: OnceOnly | None = None
    ) -> bool:
        """Record, with a lease of `seconds`, that this response is about to send tool calls. This method is idempotent.
        If the lease expires, another process reads `record` and ends the response. A later claim replaces the record.

        Returns False, and stores no record, when another process has assumed that this process is dead. In that case a
        process other than `by` has claimed tool calls of the response, or the response no longer holds the key
        `once`."""
        named: dict[str, object] = {"owner": owner, "key": calls_key(response_id), "id": response_id, "by": by}
        named |= {"lease": milliseconds(seconds), "record": self._bodies.seal(record)}
        unit = [] if once is None else [Statement(HOLD_KEY, named | {"held": once.key}, rows=1)]
        try:
            await self._tables.run([*unit, Statement(CLAIM_CALLS, named, rows=1)], again=True)
        except RowsMissing:
            return False
        return True

    async def claimed_calls(self, owner: str, response_id: str) -> bytes | None:
        """Return the record that `claim_calls` stored for this response, or None."""
        rows = await self._tables.fetch(CLAIMED_CALLS, {"owner": owner, "key": calls_key(response_id)})
        return self._bodies.open(bytes(rows[0][0])) if rows else None

    async def left_calls(self) -> list[tuple[str, str]]:
        """Return up to 500 responses whose claim of tool calls has expired, as pairs of owner and response id."""
        rows = await self._tables.fetch(LEFT_CALLS, {"limit": _PIECE})
        return [(row[0], row[1]) for row in rows]

    async def end_calls(self, owner: str, response_id: str) -> None:
        """Delete the response's claim of tool calls after the response has ended."""
        await self._tables.run([Statement(END_CALLS, {"owner": owner, "key": calls_key(response_id)})], again=True)

    async def renew(self, holders: Sequence[str], seconds: float) -> frozenset[str]:
        """Renew the leases of the idempotency keys that requests for these objects hold. The leases then expire
        `seconds` from now. Returns the ids of the objects whose requests still held their key."""
        return await renew_leases(self._tables, RENEW, holders, seconds)

    async def sweep(self) -> tuple[int]:
        """Delete expired keys, and keys whose lease expired at least `keep` seconds ago. Returns the number of deleted
        keys."""
        gone = 0
        while True:
            named = {"limit": self._piece, "past": -milliseconds(self.keep), **self._date()}
            unit = [Statement(SWEEP, named), Statement(SWEEP_GONE, named)]
            counts = await self._tables.run(unit, again=True)
            gone += sum(counts)
            if max(counts) < self._piece:
                return (gone,)

    def _named(self, once: OnceOnly, object_id: str) -> dict[str, object]:
        return {
            "owner": once.owner,
            "key": once.key,
            "fingerprint": once.fingerprint,
            "id": object_id,
            "keep": milliseconds(self.keep),
            **self._date(),
        }

    def _date(self) -> dict[str, int]:
        return {"now_ms": milliseconds(self._clock())}
