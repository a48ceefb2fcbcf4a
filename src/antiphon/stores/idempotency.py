"""The store of idempotency keys, for any backend.

Lives here: the SQL, and the statements that other stores put into the unit that makes something. Not here: what a key
is, and what clients are told (`engine/ports/idempotency.py`); how a backend runs statements (`tables.py`).

Of two requests that want one key the second waits for the first one's commit, and then sees the row as it is by then.

Invariant: a key is bound to an object in the unit that stores the object, so there is neither without the other; one
that is held for an object that is not stored is a lease.
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
from antiphon.stores.pages import Row
from antiphon.stores.tables import RowsMissing, Statement, Tables, milliseconds, renewed

KEEP_SECONDS = 86_400.0
"""Seconds for which a key is remembered, unless the settings say otherwise."""
_PIECE = 500
_TRIES = 3

# A key that is over is as if it had never been: expired, or held by a process that is gone and has claimed no calls.
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
# As long as it is held nothing but the lease ends it. Its holder may ask again, having heard nothing.
CLAIM = _TAKE.format(
    lease="lease_in(:lease)",
    expires="for_ever()",
    or_own="OR (known.object_id = :id AND known.fingerprint = :fingerprint AND known.lease_until IS NOT NULL)",
)
BIND_NEW = _TAKE.format(lease="NULL", expires="date_in(:keep)", or_own="")
# Only what holds the key is bound to it; it may come again (a response that was queued holds it already).
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
# Rows in one order, as everywhere where several are locked.
RENEW = """
WITH held AS MATERIALIZED (
  SELECT owner, key FROM idempotency WHERE object_id IN (:holders...) AND lease_until IS NOT NULL
  ORDER BY owner, key FOR UPDATE
)
UPDATE idempotency AS i SET lease_until = lease_in(:lease) FROM held
WHERE i.owner = held.owner AND i.key = held.key RETURNING object_id
"""
# Only the response that has used an answer may use it again.
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
# A unit that would take the key at the same moment waits, and finds it held.
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
    """Keys of all owners, in tables that the caller closes. Every method raises `StoreError`."""

    def __init__(
        self,
        tables: Tables,
        *,
        keep: float = KEEP_SECONDS,
        bodies: Bodies = PLAIN,
        clock: Clock = now,
        piece: int = _PIECE,
    ) -> None:
        """`keep`: seconds for which a key is remembered after something was made with it; `bodies` seals the records of
        claimed calls; `clock`: the date where the database has none; `piece`: how many a sweep deletes at once."""
        self._tables = tables
        self.keep = keep
        self._bodies = bodies
        self._clock = clock
        self._piece = piece

    def bound(self, once: OnceOnly | None, object_id: str) -> tuple[list[Statement], list[Statement]]:
        """For the unit that stores an object whose key is held: what binds the key, and what takes that back."""
        if once is None:
            return [], []
        named = self._named(once, object_id)
        return [Statement(BIND, named, rows=1)], [Statement(UNBIND, named)]

    def binding(self, once: OnceOnly, object_id: str) -> Statement:
        """For the unit that makes an object at once: the key must be free, or `explain` says why it is not."""
        return Statement(BIND_NEW, self._named(once, object_id), rows=1)

    async def make(
        self, once: OnceOnly | None, object_id: str, unit: Sequence[Statement], undo: Sequence[Statement]
    ) -> None:
        """Run a unit that makes something; with a key only once. Raises `AlreadyMade`, `ApiError` and `RowsMissing`.

        Without `undo`, what is made by a commit that comes too late stays, and its key with it.
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
                    raise  # it was not for the key

    async def claim(self, once: OnceOnly, object_id: str, seconds: float) -> str | None:
        """Hold the key for what is to be made, for so many seconds; None, or what was made with it before.

        Raises `ApiError`: the key stands for another request, or its request is being served. Raises `LeftBehind`.
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
        """What this very request made with the key before; None whenever `claim` is to say more."""
        rows = await self._tables.fetch(MADE, self._named(once, ""))
        return str(rows[0][0]) if rows else None

    async def explain(self, once: OnceOnly) -> None:
        """Why the key is not free: raises `AlreadyMade` or `ApiError`; returns when it is by now."""
        rows = await self._tables.fetch(LOOK, self._named(once, ""))
        explain(once, [(row[0], row[1], row[2], row[3]) for row in rows])

    async def release(self, once: OnceOnly, object_id: str) -> None:
        """Give the key back if it is held for this object and nothing was stored."""
        await self._tables.run([Statement(RELEASE, self._named(once, object_id))], again=True)

    async def stay(self, once: OnceOnly, object_id: str) -> None:
        """Keep the key used, without a lease, although nothing may be stored with it; `object_id` must hold the
        key."""
        await self._tables.run([Statement(BIND, self._named(once, object_id))], again=True)

    async def spend(self, owner: str, requests: Collection[str], response_id: str) -> dict[str, str]:
        """Record that this response uses the answers to these approval requests. Returns those that another response
        has used, each with that response; these do not change. Idempotent."""
        by_key = {approval_key(each): each for each in requests}
        # All units lock the rows in one order.
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
        """Release the approvals that this response uses."""
        await self._tables.run([Statement(UNSPEND, {"owner": owner, "id": response_id})], again=True)

    async def claim_calls(
        self, owner: str, response_id: str, record: bytes, seconds: float, *, by: str, once: OnceOnly | None = None
    ) -> bool:
        """Record, with a lease of so many seconds, that this response sends calls now. `record` is the content for the
        process that finds the lease expired. Idempotent; a later claim replaces the record.

        False, without a record, where another process took this one for dead: a process other than `by` has claimed
        calls of the response, or the response no longer holds the key `once`."""
        named: dict[str, object] = {"owner": owner, "key": calls_key(response_id), "id": response_id, "by": by}
        named |= {"lease": milliseconds(seconds), "record": self._bodies.seal(record)}
        unit = [] if once is None else [Statement(HOLD_KEY, named | {"held": once.key}, rows=1)]
        try:
            await self._tables.run([*unit, Statement(CLAIM_CALLS, named, rows=1)], again=True)
        except RowsMissing:
            return False
        return True

    async def claimed_calls(self, owner: str, response_id: str) -> bytes | None:
        """The record of a response that has claimed calls."""
        rows = await self._tables.fetch(CLAIMED_CALLS, {"owner": owner, "key": calls_key(response_id)})
        return self._bodies.open(bytes(rows[0][0])) if rows else None

    async def left_calls(self) -> list[tuple[str, str]]:
        """Responses with an expired claim, as pairs of owner and response id; a limited number at a time."""
        rows = await self._tables.fetch(LEFT_CALLS, {"limit": _PIECE})
        return [(row[0], row[1]) for row in rows]

    async def end_calls(self, owner: str, response_id: str) -> None:
        """Delete the response's claim, because the response is over."""
        await self._tables.run([Statement(END_CALLS, {"owner": owner, "key": calls_key(response_id)})], again=True)

    async def renew(self, holders: Sequence[str], seconds: float) -> frozenset[str]:
        """Hold the keys of these objects for so many seconds from now; which still were held."""
        return await renewed(self._tables, RENEW, holders, seconds)

    async def sweep(self) -> tuple[int]:
        """Forget what is too old, and the keys whose holder is gone for as long as a key is remembered; how many
        went."""
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
