"""Where the sums of what model calls took are kept: the `UsageStore` over SQLite.

Lives here: the SQL. Not here: which calls are counted (`observability/observation.py`), when they are written
(`engine/running/usage_book.py`).

Invariant: no number is one that SQLite cannot hold, or cannot add up: an upstream that counts beyond all measure would
otherwise keep the sums of all others from being written.
"""

from __future__ import annotations

from collections.abc import Sequence

from antiphon.engine.ports.usage import KEY, NUMBERS, By, UsageSum
from antiphon.stores.sqlite.readers import SqliteReaders
from antiphon.stores.sqlite.writer import SqliteWriter
from antiphon.stores.tables import Statement

_MOST = 10**15
ADD = f"""
INSERT INTO usage_days ({", ".join((*KEY, *NUMBERS))}) VALUES ({", ".join(f":{name}" for name in (*KEY, *NUMBERS))})
ON CONFLICT ({", ".join(KEY)})
DO UPDATE SET {", ".join(f"{name} = min({name} + excluded.{name}, {_MOST})" for name in NUMBERS)}
"""
FORGET = "DELETE FROM usage_days WHERE day < :before"


class SqliteUsageStore:
    """`UsageStore` on a writer and readers that are somebody else's."""

    def __init__(self, writer: SqliteWriter, readers: SqliteReaders) -> None:
        self._writer = writer
        self._readers = readers

    async def add(self, sums: Sequence[UsageSum]) -> None:
        """See `UsageStore`."""
        rows = [
            {name: getattr(one, name) for name in KEY} | {name: min(getattr(one, name), _MOST) for name in NUMBERS}
            for one in sums
        ]
        await self._writer.run([Statement(ADD, rows, many=True)])

    async def sums(self, by: Sequence[By], *, since: str = "", until: str = "", owner: str = "") -> list[UsageSum]:
        """See `UsageStore`."""
        told_apart = ", ".join(dict.fromkeys(by))
        sql = f"""
        SELECT {told_apart + "," if by else ""} {", ".join(f"sum({name})" for name in NUMBERS)} FROM usage_days
        WHERE (:since = '' OR day >= :since) AND (:until = '' OR day <= :until) AND (:owner = '' OR owner = :owner)
        {f"GROUP BY {told_apart} ORDER BY {told_apart}" if by else "HAVING count(*)"}
        """
        rows = await self._readers.fetch(sql, {"since": since, "until": until, "owner": owner})
        names = (*dict.fromkeys(by), *NUMBERS)
        return [UsageSum(**dict(zip(names, row, strict=True))) for row in rows]

    async def forget(self, before: str) -> int:
        """See `UsageStore`."""
        (count,) = await self._writer.run([Statement(FORGET, {"before": before})])
        return count
