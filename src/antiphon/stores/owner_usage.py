"""Stores daily sums of token usage, and checks owners' storage quotas, for any backend.

Lives here: the SQL of usage sums and quotas. Not here: the selection of counted calls (`observability/observation.py`),
the schedule of writes (`engine/running/usage_recorder.py`), the count of an owner's stored bytes (triggers in each
backend's migrations).

Invariants: every number is at most 10^15, so that the addition never overflows a column. Otherwise one upstream that
reports absurd token counts would block the sums of all other upstreams. Statements update rows in the order of their
keys. So processes that add to the same days wait for each other but never deadlock.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

from antiphon.engine.ports.usage_sums import KEY, NUMBERS, By, UsageSum
from antiphon.errors import OwnerFull
from antiphon.stores.tables import Statement, Tables

MOST = 10**15
"""The maximum of every stored number."""
_COLUMNS = (*KEY, *NUMBERS)
ADD = f"""
INSERT INTO usage_days AS u ({", ".join(_COLUMNS)}) VALUES ({", ".join(f":{name}" for name in _COLUMNS)})
ON CONFLICT ({", ".join(KEY)})
DO UPDATE SET {", ".join(f"{name} = least(u.{name} + excluded.{name}, {MOST})" for name in NUMBERS)}
"""
_PIECE = 1000
FORGET = f"""
DELETE FROM usage_days WHERE ({", ".join(KEY)}) IN (
  SELECT {", ".join(KEY)} FROM usage_days WHERE day < :before LIMIT {_PIECE}
)
"""
OWNER_BYTES = "SELECT CAST(coalesce(sum(bytes), 0) AS bigint) FROM owner_bytes WHERE owner = :owner"


class UsageStore:
    """Stores the usage sums in tables that the caller closes. Every method raises `StoreError`."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    async def add(self, sums: Sequence[UsageSum]) -> None:
        """Add these numbers to the sums of the same day, owner, model and upstream, in one transaction."""
        rows = [
            {name: getattr(one, name) for name in KEY} | {name: min(getattr(one, name), MOST) for name in NUMBERS}
            for one in sorted(sums, key=attrgetter(*KEY))
        ]
        await self._tables.run([Statement(ADD, rows, many=True)])

    async def sums(self, by: Sequence[By], *, since: str = "", until: str = "", owner: str = "") -> list[UsageSum]:
        """Return the sums of the days from `since` to `until` (`YYYY-MM-DD`, both included; empty: no limit). The
        result is grouped and sorted by the fields in `by`. Key fields outside `by` are empty in the result."""
        told_apart = ", ".join(dict.fromkeys(by))
        sql = f"""
        SELECT {told_apart + "," if by else ""} {", ".join(f"CAST(sum({name}) AS bigint)" for name in NUMBERS)}
        FROM usage_days
        WHERE (:since = '' OR day >= :since) AND (:until = '' OR day <= :until) AND (:owner = '' OR owner = :owner)
        {f"GROUP BY {told_apart} ORDER BY {told_apart}" if by else "HAVING count(*) > 0"}
        """
        rows = await self._tables.fetch(sql, {"since": since, "until": until, "owner": owner})
        names = (*dict.fromkeys(by), *NUMBERS)
        return [UsageSum(**{name: row[number] for number, name in enumerate(names)}) for row in rows]

    async def forget(self, before: str) -> int:
        """Delete the sums of all days before the day `before` (`YYYY-MM-DD`). Returns the number of deleted rows."""
        gone = 0
        while count := (await self._tables.run([Statement(FORGET, {"before": before})], again=True))[0]:
            gone += count
        return gone


class OwnerQuota:
    """Checks the storage quota: each owner may store `limit` bytes. The caller closes the tables.

    The engine checks the quota before a model call, not when it saves the response, because the model call has already
    cost money by then. So an owner may exceed the limit by the responses that run concurrently.
    """

    def __init__(self, tables: Tables, limit: int) -> None:
        self._tables = tables
        self._limit = limit

    async def check(self, owner: str) -> None:
        """Raise `OwnerFull` when the owner has stored `limit` bytes or more. Raises `StoreError` when the database
        fails."""
        if (await self._tables.fetch(OWNER_BYTES, {"owner": owner}))[0][0] >= self._limit:
            raise OwnerFull(self._limit)
