"""Where the keys of requests are kept: the `IdempotencyStore` over SQLite.

Lives here: the SQL by name, and the statements that other stores put into the unit that makes something. Not here: what
a key is, and what clients are told (`engine/ports/idempotency.py`).

Invariant: a key is bound to an object in the unit that stores the object, so there is neither without the other; one
that is held for an object that is not stored is a lease.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

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
from antiphon.ids import Clock, now
from antiphon.stores.backend import KEEP_SECONDS
from antiphon.stores.sqlite.lease_clock import lease_now
from antiphon.stores.sqlite.readers import SqliteReaders
from antiphon.stores.sqlite.writer import SqliteWriter
from antiphon.stores.tables import RowsMissing, Statement, milliseconds

_PIECE = 500
_TRIES = 3
_CALLS = {"calls": CALLS, "long": len(CALLS), "limit": _PIECE}
_HELD = (1 << 63) - 1
"""When a key expires that is held: nothing but the lease ends it."""

# A key that is over is as if it had never been: expired, or held by a process that is gone and has claimed no calls.
_FREE = f"""NOT EXISTS (
    SELECT 1 FROM idempotency c WHERE c.owner = idempotency.owner AND c.key = '{CALLS}' || idempotency.object_id
  )"""
_OVER = f"(expires_at <= :at OR (lease_until <= lease_now() AND {_FREE}))"
FORGET_OVER = f"DELETE FROM idempotency WHERE owner = :owner AND key = :key AND {_OVER}"
_INTO = "INSERT INTO idempotency (owner, key, fingerprint, object_id, lease_until, expires_at)"
CLAIM = f"{_INTO} VALUES (:owner, :key, :fingerprint, :id, lease_now() + :lease, :expires) ON CONFLICT DO NOTHING"
BIND_NEW = f"{_INTO} VALUES (:owner, :key, :fingerprint, :id, NULL, :expires) ON CONFLICT DO NOTHING"
# Only what holds the key is bound to it; it may come again (a response that was queued holds it already).
BIND = """
UPDATE idempotency SET lease_until = NULL, expires_at = :expires
WHERE owner = :owner AND key = :key AND object_id = :id
"""
UNBIND = "DELETE FROM idempotency WHERE owner = :owner AND key = :key AND object_id = :id"
RELEASE = f"{UNBIND} AND lease_until IS NOT NULL"
MADE = """
SELECT object_id FROM idempotency
WHERE owner = :owner AND key = :key AND fingerprint = :fingerprint AND lease_until IS NULL AND expires_at > :at
"""
LOOK = f"""
SELECT fingerprint, object_id, lease_until, lease_until <= :lease_now AND NOT {_FREE} FROM idempotency
WHERE owner = :owner AND key = :key
"""
RENEW = """
UPDATE idempotency SET lease_until = lease_now() + :lease
WHERE object_id IN (SELECT value FROM json_each(:ids)) AND lease_until IS NOT NULL RETURNING object_id
"""
# Only the response that has used an answer may use it again.
SPEND = f"""
{_INTO} VALUES (:owner, :key, '', :id, NULL, :expires)
ON CONFLICT (owner, key) DO UPDATE SET object_id = excluded.object_id, expires_at = excluded.expires_at
  WHERE object_id = excluded.object_id OR expires_at <= :at
"""
SPENT = """
SELECT key, object_id FROM idempotency
WHERE owner = :owner AND key IN (SELECT value FROM json_each(:keys)) AND object_id <> :id
"""
UNSPEND = (
    f"DELETE FROM idempotency WHERE object_id = :id AND owner = :owner AND substr(key, 1, {len(APPROVALS)}) = :kind"
)
SWEEP = """
DELETE FROM idempotency WHERE rowid IN (SELECT rowid FROM idempotency WHERE expires_at <= :at LIMIT :limit)
"""
SWEEP_GONE = f"""
DELETE FROM idempotency WHERE rowid IN (
  SELECT rowid FROM idempotency
  WHERE expires_at = :held AND lease_until <= lease_now() - :keep AND substr(key, 1, :long) <> :calls AND {_FREE}
  LIMIT :limit
)
"""
HOLD_KEY = """
UPDATE idempotency SET lease_until = lease_now() + :lease
WHERE owner = :owner AND key = :held AND object_id = :id AND lease_until IS NOT NULL
"""
CLAIM_CALLS = """
INSERT INTO idempotency (owner, key, fingerprint, object_id, lease_until, expires_at, record)
VALUES (:owner, :key, :by, :id, lease_now() + :lease, :expires, :record)
ON CONFLICT (owner, key) DO UPDATE SET lease_until = excluded.lease_until, record = excluded.record
  WHERE fingerprint = excluded.fingerprint
"""
CLAIMED_CALLS = "SELECT record FROM idempotency WHERE owner = :owner AND key = :key"
LEFT_CALLS = """
SELECT owner, object_id FROM idempotency
WHERE expires_at = :held AND lease_until <= :lease_now AND substr(key, 1, :long) = :calls LIMIT :limit
"""
END_CALLS = "DELETE FROM idempotency WHERE owner = :owner AND key = :key"


def _of_calls(owner: str, response_id: str) -> dict[str, Any]:
    return {"owner": owner, "key": calls_key(response_id)}


class Once:
    """What a unit that makes something has beside it when its request came with a key."""

    def __init__(self, once: OnceOnly, object_id: str, *, keep: float, clock: Clock = now) -> None:
        at = milliseconds(clock())
        self._named = {
            "owner": once.owner,
            "key": once.key,
            "fingerprint": once.fingerprint,
            "id": object_id,
            "at": at,
            "expires": at + milliseconds(keep),
        }

    def new(self) -> list[Statement]:
        """For something that is made at once: the key must be free."""
        return [Statement(FORGET_OVER, self._named), Statement(BIND_NEW, self._named, rows=1)]

    def held(self) -> list[Statement]:
        """For something whose key was claimed before: it must be held still."""
        return [Statement(BIND, self._named, rows=1)]

    def stay(self) -> list[Statement]:
        """For a key that stays taken although nothing is stored."""
        return [Statement(BIND, self._named)]

    def undo(self) -> list[Statement]:
        """When the unit is taken back."""
        return [Statement(UNBIND, self._named)]


class SqliteIdempotency:
    """`IdempotencyStore` on a writer and readers that are somebody else's to close."""

    def __init__(
        self, writer: SqliteWriter, readers: SqliteReaders, *, keep: float = KEEP_SECONDS, clock: Clock = now
    ) -> None:
        """`keep`: seconds for which a key is remembered after something was made with it."""
        self._writer = writer
        self._readers = readers
        self.keep = keep
        self._clock = clock

    def bound(self, once: OnceOnly | None, object_id: str) -> tuple[list[Statement], list[Statement]]:
        """For the unit that stores an object whose key is held: what binds the key, and what takes that back."""
        if once is None:
            return [], []
        beside = Once(once, object_id, keep=self.keep, clock=self._clock)
        return beside.held(), beside.undo()

    async def claim(self, once: OnceOnly, object_id: str, seconds: float) -> str | None:
        """Hold the key; see `IdempotencyStore.claim`."""
        at = milliseconds(self._clock())
        named = {
            "owner": once.owner,
            "key": once.key,
            "fingerprint": once.fingerprint,
            "id": object_id,
            "at": at,
            "lease": milliseconds(seconds),
            "expires": _HELD,
        }
        unit = [Statement(FORGET_OVER, named), Statement(CLAIM, named)]
        for _ in range(_TRIES):
            _, claimed = await self._writer.run(unit, undo=[Statement(RELEASE, named)])
            if claimed:
                return None
            try:
                await self.explain(once)
            except AlreadyMade as made:
                return made.object_id
        raise in_progress()

    async def made(self, once: OnceOnly) -> str | None:
        """What was made with the key; see `IdempotencyStore.made`."""
        named = {
            "owner": once.owner,
            "key": once.key,
            "fingerprint": once.fingerprint,
            "at": milliseconds(self._clock()),
        }
        rows = await self._readers.fetch(MADE, named)
        return str(rows[0][0]) if rows else None

    async def explain(self, once: OnceOnly) -> None:
        """Why the key is not free: raises `AlreadyMade` or `ApiError`; returns when it is by now."""
        named = {"owner": once.owner, "key": once.key, "lease_now": lease_now()}
        explain(once, await self._readers.fetch(LOOK, named))

    async def make(self, once: OnceOnly | None, object_id: str, unit: list[Statement], undo: list[Statement]) -> None:
        """Run a unit that makes something; with a key only once. Raises `AlreadyMade` and `ApiError`.

        Without `undo`, what is made by a commit that comes too late stays, and its key with it.
        """
        if once is None:
            await self._writer.run(unit, undo=undo)
            return
        beside = Once(once, object_id, keep=self.keep, clock=self._clock)
        back = [*undo, *beside.undo()] if undo else []
        for last in (False, True):
            try:
                await self._writer.run([*beside.new(), *unit], undo=back)
                return
            except RowsMissing:
                await self.explain(once)
                if last:
                    raise  # it was not for the key

    async def release(self, once: OnceOnly, object_id: str) -> None:
        """Give the key back; see `IdempotencyStore.release`."""
        await self._writer.run([Statement(RELEASE, {"owner": once.owner, "key": once.key, "id": object_id})])

    async def stay(self, once: OnceOnly, object_id: str) -> None:
        """It stays taken; see `IdempotencyStore.stay`."""
        await self._writer.run(Once(once, object_id, keep=self.keep, clock=self._clock).stay())

    async def spend(self, owner: str, requests: Collection[str], response_id: str) -> dict[str, str]:
        """Note who answered these requests for approval; see `IdempotencyStore.spend`."""
        at = milliseconds(self._clock())
        by_key = {approval_key(each): each for each in requests}
        named = {"owner": owner, "id": response_id, "at": at, "expires": at + milliseconds(KEEP_APPROVALS)}
        rows: list[tuple[str, str]] = []
        await self._writer.run(
            [
                Statement(SPEND, [{**named, "key": key} for key in by_key], many=True),
                Statement(SPENT, {**named, "keys": json.dumps(list(by_key))}, into=rows),
            ]
        )
        return {by_key[key]: answered_by for key, answered_by in rows}

    async def unspend(self, owner: str, response_id: str) -> None:
        """Forget what this response has answered."""
        await self._writer.run([Statement(UNSPEND, {"owner": owner, "id": response_id, "kind": APPROVALS})])

    async def claim_calls(
        self, owner: str, response_id: str, record: bytes, seconds: float, *, by: str, once: OnceOnly | None = None
    ) -> bool:
        """Note that calls are sent; see `IdempotencyStore.claim_calls`."""
        named = {"id": response_id, "lease": milliseconds(seconds), "expires": _HELD, "record": record, "by": by}
        unit = [Statement(CLAIM_CALLS, _of_calls(owner, response_id) | named, rows=1)]
        if once is not None:
            held = {"owner": owner, "held": once.key, "id": response_id, "lease": named["lease"]}
            unit.insert(0, Statement(HOLD_KEY, held, rows=1))
        try:
            await self._writer.run(unit)
        except RowsMissing:
            return False
        return True

    async def claimed_calls(self, owner: str, response_id: str) -> bytes | None:
        """The record of a response that has claimed calls."""
        rows = await self._readers.fetch(CLAIMED_CALLS, _of_calls(owner, response_id))
        return bytes(rows[0][0]) if rows else None

    async def left_calls(self) -> list[tuple[str, str]]:
        """Responses with an expired claim; see `IdempotencyStore.left_calls`."""
        rows = await self._readers.fetch(LEFT_CALLS, {"held": _HELD, "lease_now": lease_now(), **_CALLS})
        return [(owner, response_id) for owner, response_id in rows]

    async def end_calls(self, owner: str, response_id: str) -> None:
        """The response is over."""
        await self._writer.run([Statement(END_CALLS, _of_calls(owner, response_id))])

    async def renew(self, holders: Sequence[str], seconds: float) -> frozenset[str]:
        """Hold the keys of these objects for so long; which still were held."""
        rows: list[tuple[Any, ...]] = []
        named = {"ids": json.dumps(list(holders)), "lease": milliseconds(seconds)}
        await self._writer.run([Statement(RENEW, named, into=rows)])
        return frozenset(row[0] for row in rows)

    async def sweep(self) -> tuple[int]:
        """Forget what has expired; how many keys went."""
        gone = 0
        while True:
            named = {
                "at": milliseconds(self._clock()),
                "held": _HELD,
                "keep": milliseconds(self.keep),
                **_CALLS,
            }
            counts = await self._writer.run([Statement(SWEEP, named), Statement(SWEEP_GONE, named)])
            gone += sum(counts)
            if max(counts) < _PIECE:
                return (gone,)
