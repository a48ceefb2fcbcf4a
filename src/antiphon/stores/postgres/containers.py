"""Containers of several machines: `ContainerRows` over PostgreSQL.

Lives here: the SQL. Not here: what is done with containers (`tools/code_interpreter/`), contents of snapshots
(`stores/blobs/`).

Invariants: a lease is judged by the database's clock in the statement that takes or needs it; a row and the pending
rows of the contents that it names change in one transaction.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from antiphon.engine.ports.container_rows import (
    ContainerHead,
    ContainerInUse,
    ContainerLost,
    ContainerRow,
    RowContents,
    TooManyContainers,
)
from antiphon.stores.postgres.database import Connection, Database, Record, committed_once

_HEAD = """
id, owner, name, extract(epoch FROM created_at)::float8 AS created_at,
extract(epoch FROM last_active_at)::float8 AS last_active_at, idle_seconds, memory, runs, process, machine
"""
_ROW = f"{_HEAD}, contents"
_EXPIRED = "clock_timestamp() > last_active_at + make_interval(secs => idle_seconds)"
_LOCK = 0x636F6E74_61696E65  # "containe"

LOCK = "SELECT pg_advisory_xact_lock($1)"
COUNT = f"""
SELECT count(*) AS every, count(*) FILTER (WHERE owner = $1) AS mine FROM containers WHERE NOT ({_EXPIRED})
"""
INSERT = f"""
INSERT INTO containers (
  id, owner, name, created_at, last_active_at, idle_seconds, memory, runs, process, machine, contents,
  held_by, held_until
) VALUES (
  $1, $2, $3, clock_timestamp(), clock_timestamp(), $4, $5, 0, '', '', $6, $7,
  clock_timestamp() + make_interval(secs => $8)
) ON CONFLICT (id) DO NOTHING RETURNING {_ROW}
"""
# Whose the container must be; an owner's that has expired is none.
_OF = f"({{owner}}::text IS NULL OR owner = {{owner}} AND NOT ({_EXPIRED}))"
GET = f"SELECT {_ROW} FROM containers WHERE id = $1 AND {_OF.format(owner='$2')}"
EVERY = f"""
SELECT {_HEAD} FROM containers
WHERE ($1::text IS NULL OR owner = $1) AND ($2::boolean IS NULL OR $2 = ({_EXPIRED}))
ORDER BY containers.created_at, id
"""
# What is there and was not taken is somebody else's at the moment. $1: the holder, who may ask again; $2: seconds.
_WHICH = f"id = $3 AND {_OF.format(owner='$4')} AND (NOT $5 OR {_EXPIRED})"
TAKE = f"""
WITH taken AS (
  UPDATE containers SET held_by = $1, held_until = clock_timestamp() + make_interval(secs => $2),
    last_active_at = CASE WHEN $4::text IS NULL THEN last_active_at ELSE clock_timestamp() END
  WHERE {_WHICH} AND (held_by IS NULL OR held_until <= clock_timestamp() OR held_by = $1) RETURNING *
)
SELECT true AS mine, {_ROW} FROM taken
UNION ALL SELECT false, {_ROW} FROM containers WHERE {_WHICH} AND NOT EXISTS (SELECT FROM taken)
"""
RENEW = """
WITH held AS MATERIALIZED (SELECT id FROM containers WHERE held_by = ANY($1::text[]) ORDER BY id FOR UPDATE)
UPDATE containers c SET held_until = clock_timestamp() + make_interval(secs => $2) FROM held
WHERE c.id = held.id AND c.held_by = ANY($1::text[]) RETURNING c.held_by
"""
PUT_BACK = """
UPDATE containers SET last_active_at = clock_timestamp(), runs = $3, process = $4, machine = $5, contents = $6,
  held_by = NULL, held_until = NULL
WHERE id = $1 AND held_by = $2 RETURNING 1
"""
LET_GO_OF = "UPDATE containers SET held_by = NULL, held_until = NULL WHERE id = $1 AND held_by = $2"
DELETE = "DELETE FROM containers WHERE id = $1 AND held_by = $2 RETURNING 1"
# A content that a sweep has taken is no snapshot any more.
CAME = "DELETE FROM pending_blobs WHERE key = ANY($1::text[]) AND lease_until > '-infinity' RETURNING 1"
WENT = """
INSERT INTO pending_blobs (key, lease_until) SELECT unnest($1::text[]), '-infinity'
ON CONFLICT (key) DO UPDATE SET lease_until = '-infinity'
"""

_READ_CONTENTS = msgspec.json.Decoder(RowContents)


class PostgresContainerRows:
    """`ContainerRows` on connections that are somebody else's to close."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def make(self, row: ContainerRow, holder: str, seconds: float, *, limit: int, per_owner: int) -> ContainerRow:
        """See `ContainerRows.make`."""
        contents = msgspec.json.encode(row.contents)
        given = (row.id, row.owner, row.name, row.idle_seconds, row.memory, contents, holder, seconds)

        async def work(connection: Connection) -> ContainerRow:
            # One at a time: two that count at once would both fit.
            await connection.fetch(LOCK, _LOCK)
            (counted,) = await connection.fetch(COUNT, row.owner)
            if counted["mine"] >= per_owner:
                raise TooManyContainers(of_owner=True)
            if counted["every"] >= limit:
                raise TooManyContainers(of_owner=False)
            made = await connection.fetch(INSERT, *given)
            if not made:
                raise ContainerInUse
            return _row(made[0])

        return await committed_once(self._database, work)

    async def get(self, container_id: str, owner: str | None = None) -> ContainerRow | None:
        """See `ContainerRows.get`."""
        rows = await self._database.fetch(GET, container_id, owner)
        return _row(rows[0]) if rows else None

    async def every(self, owner: str | None = None, *, expired: bool | None = None) -> Sequence[ContainerHead]:
        """See `ContainerRows.every`."""
        rows = await self._database.fetch(EVERY, owner, expired)
        return [ContainerHead(**{name: row[name] for name in ContainerHead.__struct_fields__}) for row in rows]

    async def take(
        self, container_id: str, holder: str, seconds: float, owner: str | None = None, *, expired: bool = False
    ) -> ContainerRow | None:
        """See `ContainerRows.take`."""
        rows = await self._database.write(TAKE, holder, seconds, container_id, owner, expired, again=True)
        if rows and not rows[0]["mine"]:
            raise ContainerInUse
        return _row(rows[0]) if rows else None

    async def renew(self, holders: Sequence[str], seconds: float) -> frozenset[str]:
        """See `Leased.renew`."""
        rows = await self._database.write(RENEW, list(holders), seconds, again=True)
        return frozenset(row[0] for row in rows)

    async def put_back(
        self, row: ContainerRow, holder: str, *, came: Sequence[str] = (), went: Sequence[str] = ()
    ) -> None:
        """See `ContainerRows.put_back`."""
        given = (row.id, holder, row.runs, row.process, row.machine, msgspec.json.encode(row.contents))

        async def work(connection: Connection) -> None:
            if not await connection.fetch(PUT_BACK, *given):
                raise ContainerLost
            if came and len(await connection.fetch(CAME, list(came))) < len(came):
                raise ContainerLost
            if went:
                await connection.execute(WENT, list(went))

        await committed_once(self._database, work)

    async def let_go(self, container_id: str, holder: str) -> None:
        """See `ContainerRows.let_go`."""
        await self._database.write(LET_GO_OF, container_id, holder, again=True)

    async def delete(self, row: ContainerRow, holder: str) -> None:
        """See `ContainerRows.delete`."""

        async def work(connection: Connection) -> None:
            if not await connection.fetch(DELETE, row.id, holder):
                raise ContainerLost
            if row.contents.blobs:
                await connection.execute(WENT, list(row.contents.blobs))

        await committed_once(self._database, work)


def _row(row: Record) -> ContainerRow:
    head = {name: row[name] for name in ContainerHead.__struct_fields__}
    return ContainerRow(**head, contents=_READ_CONTENTS.decode(row["contents"]))
