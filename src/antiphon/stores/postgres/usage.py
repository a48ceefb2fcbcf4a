"""Where the sums of what model calls took are kept: the `UsageStore` over PostgreSQL.

Lives here: the SQL. Not here: which calls are counted (`observability/observation.py`), when they are written
(`engine/running/usage_book.py`).

Invariants: no number is one that the column cannot hold, or cannot add up: an upstream that counts beyond all measure
would otherwise keep the sums of all others from being written. Rows are added to in one order, so processes that add
to the same days wait for each other and never for each other in a circle.
"""

from __future__ import annotations

from collections.abc import Sequence

from antiphon.engine.ports.usage import KEY, NUMBERS, By, UsageSum
from antiphon.stores.postgres.certain import certainly
from antiphon.stores.postgres.database import Connection, Database

_MOST = 10**15
_COLUMNS = ", ".join((*KEY, *NUMBERS))
_TYPES = ("text",) * len(KEY) + ("bigint",) * len(NUMBERS)
_GIVEN = ", ".join(f"${number}::{kind}[]" for number, kind in enumerate(_TYPES, 1))
ADD = f"""
INSERT INTO usage_days AS u ({_COLUMNS})
SELECT {", ".join(KEY)}, {", ".join(f"least(sum({name}), {_MOST})::bigint" for name in NUMBERS)}
FROM unnest({_GIVEN}) AS given ({_COLUMNS}) GROUP BY {", ".join(KEY)} ORDER BY {", ".join(KEY)}
ON CONFLICT ({", ".join(KEY)})
DO UPDATE SET {", ".join(f"{name} = least(u.{name} + excluded.{name}, {_MOST})" for name in NUMBERS)}
"""
FORGET = """
DELETE FROM usage_days WHERE ctid = ANY(ARRAY(SELECT ctid FROM usage_days WHERE day < $1 LIMIT $2)) RETURNING 1
"""
_PIECE = 1000


class PostgresUsageStore:
    """`UsageStore` on connections that are somebody else's."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, sums: Sequence[UsageSum]) -> None:
        """See `UsageStore`."""
        keys = [[getattr(one, name) for one in sums] for name in KEY]
        numbers = [[min(getattr(one, name), _MOST) for one in sums] for name in NUMBERS]

        async def work(connection: Connection) -> None:
            await connection.execute(ADD, *keys, *numbers)

        await certainly(self._database, work)

    async def sums(self, by: Sequence[By], *, since: str = "", until: str = "", owner: str = "") -> list[UsageSum]:
        """See `UsageStore`."""
        told_apart = ", ".join(dict.fromkeys(by))
        sql = f"""
        SELECT {told_apart + "," if by else ""} {", ".join(f"sum({name})::bigint" for name in NUMBERS)} FROM usage_days
        WHERE ($1 = '' OR day >= $1) AND ($2 = '' OR day <= $2) AND ($3 = '' OR owner = $3)
        {f"GROUP BY {told_apart} ORDER BY {told_apart}" if by else "HAVING count(*) > 0"}
        """
        rows = await self._database.fetch(sql, since, until, owner)
        names = (*dict.fromkeys(by), *NUMBERS)
        return [UsageSum(**dict(zip(names, row, strict=True))) for row in rows]

    async def forget(self, before: str) -> int:
        """See `UsageStore`."""
        gone = 0
        while count := len(await self._database.write(FORGET, before, _PIECE, again=True)):
            gone += count
        return gone
