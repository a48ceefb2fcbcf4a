"""The store of daily usage sums and of owners' storage quotas, for any backend.

Lives here: the SQL. Not here: which calls are counted (`observability/observation.py`), when they are written
(`engine/running/usage_recorder.py`), counting what an owner stores (triggers of each backend's migrations).

Invariants: no number is one that a column cannot hold, or cannot add up: an upstream that counts beyond all measure
would otherwise keep the sums of all others from being written. Rows are added to in one order, so processes that add
to the same days wait for each other and never for each other in a circle.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

from antiphon.engine.ports.usage_sums import KEY, NUMBERS, By, UsageSum
from antiphon.errors import OwnerFull
from antiphon.stores.tables import Statement, Tables

_MOST = 10**15
_COLUMNS = (*KEY, *NUMBERS)
ADD = f"""
INSERT INTO usage_days AS u ({", ".join(_COLUMNS)}) VALUES ({", ".join(f":{name}" for name in _COLUMNS)})
ON CONFLICT ({", ".join(KEY)})
DO UPDATE SET {", ".join(f"{name} = least(u.{name} + excluded.{name}, {_MOST})" for name in NUMBERS)}
"""
_PIECE = 1000
FORGET = f"""
DELETE FROM usage_days WHERE ({", ".join(KEY)}) IN (
  SELECT {", ".join(KEY)} FROM usage_days WHERE day < :before LIMIT {_PIECE}
)
"""
OWNER_BYTES = "SELECT CAST(coalesce(sum(bytes), 0) AS bigint) FROM owner_bytes WHERE owner = :owner"


class UsageStore:
    """The sums, in tables that the caller closes. Every method raises `StoreError`."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    async def add(self, sums: Sequence[UsageSum]) -> None:
        """Add these to what there is of the same day, owner, model and upstream, all or none."""
        rows = [
            {name: getattr(one, name) for name in KEY} | {name: min(getattr(one, name), _MOST) for name in NUMBERS}
            for one in sorted(sums, key=attrgetter(*KEY))
        ]
        await self._tables.run([Statement(ADD, rows, many=True)])

    async def sums(self, by: Sequence[By], *, since: str = "", until: str = "", owner: str = "") -> list[UsageSum]:
        """The sums of these days (`YYYY-MM-DD`, both included; empty: all), in the order of `by`; what they are not
        told apart by is empty."""
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
        """Delete the sums of all days before this one; how many rows."""
        gone = 0
        while count := (await self._tables.run([Statement(FORGET, {"before": before})], again=True))[0]:
            gone += count
        return gone


class OwnerQuota:
    """What an owner may still store: `limit` bytes in all. The tables are the caller's to close.

    It is asked before a model is, and not again when the response is saved: what was paid for is kept. So an owner may
    pass the limit by what ran at that moment.
    """

    def __init__(self, tables: Tables, limit: int) -> None:
        self._tables = tables
        self._limit = limit

    async def check(self, owner: str) -> None:
        """Raises `OwnerFull` when the owner has stored as much as one may, and `StoreError`."""
        if (await self._tables.fetch(OWNER_BYTES, {"owner": owner}))[0][0] >= self._limit:
            raise OwnerFull(self._limit)
