"""Containers of several machines: `ContainerRows` over PostgreSQL.

Lives here: the SQL. Not here: what is done with containers (`tools/code_interpreter/`), contents of copies
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
    NewContainer,
    RowContents,
    TooManyContainers,
)
from antiphon.stores.postgres.certain import certainly
from antiphon.stores.postgres.database import Connection, Database, Record
from antiphon.stores.postgres.pending_blobs import LET_GO

_HEAD = """
id, owner, name, extract(epoch FROM created_at)::float8 AS created_at,
extract(epoch FROM last_active_at)::float8 AS last_active_at, idle_seconds, memory, runs, process, machine
"""
_ROW = f"{_HEAD}, contents"
_EXPIRED = "clock_timestamp() > last_active_at + make_interval(secs => idle_seconds)"
_FREE = "(held_by IS NULL OR held_until <= clock_timestamp())"
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
GET = f"SELECT {_ROW} FROM containers WHERE id = $1 AND owner = $2 AND NOT ({_EXPIRED})"
LIST = f"SELECT {_HEAD} FROM containers WHERE owner = $1 AND NOT ({_EXPIRED}) ORDER BY containers.created_at, id"
# What is there and was not taken is somebody else's at the moment. $1: the holder, who may ask again; $2: seconds.
_TAKE = f"""
WITH taken AS (
  UPDATE containers SET held_by = $1, held_until = clock_timestamp() + make_interval(secs => $2){{touch}}
  WHERE {{which}} AND ({_FREE} OR held_by = $1) RETURNING *
)
SELECT true AS mine, {_ROW} FROM taken
UNION ALL SELECT false, {_ROW} FROM containers WHERE {{which}} AND NOT EXISTS (SELECT FROM taken)
"""
TAKE = _TAKE.format(touch=", last_active_at = clock_timestamp()", which=f"id = $3 AND owner = $4 AND NOT ({_EXPIRED})")
TAKE_TO_DELETE = _TAKE.format(touch="", which=f"id = $3 AND (NOT $4 OR {_EXPIRED})")
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
# A content that a sweep has taken is no copy any more.
CAME = "DELETE FROM pending_blobs WHERE key = ANY($1::text[]) AND lease_until > '-infinity' RETURNING 1"
WENT = f"WITH gone AS (SELECT unnest($1::text[]) AS blob) {LET_GO}"
EXPIRED = f"SELECT id FROM containers WHERE {_EXPIRED}"
THERE = "SELECT id FROM containers WHERE id = ANY($1::text[])"
ALL_OF = f"SELECT {_ROW} FROM containers WHERE owner = $1 ORDER BY containers.created_at, id"
EVERY = f"SELECT {_HEAD} FROM containers ORDER BY containers.created_at, id"

_READ_CONTENTS = msgspec.json.Decoder(RowContents)


class PostgresContainerRows:
    """`ContainerRows` on connections that are somebody else's to close."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def make(self, new: NewContainer, holder: str, seconds: float, *, limit: int, per_owner: int) -> ContainerRow:
        """See `ContainerRows.make`."""
        contents = msgspec.json.encode(RowContents())
        given = (new.id, new.owner, new.name, new.idle_seconds, new.memory, contents, holder, seconds)

        async def work(connection: Connection) -> ContainerRow:
            # One at a time: two that count at once would both fit.
            await connection.fetch(LOCK, _LOCK)
            (counted,) = await connection.fetch(COUNT, new.owner)
            if counted["mine"] >= per_owner:
                raise TooManyContainers(of_owner=True)
            if counted["every"] >= limit:
                raise TooManyContainers(of_owner=False)
            made = await connection.fetch(INSERT, *given)
            if not made:
                raise ContainerInUse
            return _row(made[0])

        return await certainly(self._database, work)

    async def get(self, owner: str, container_id: str) -> ContainerRow | None:
        """See `ContainerRows.get`."""
        rows = await self._database.fetch(GET, container_id, owner)
        return _row(rows[0]) if rows else None

    async def list(self, owner: str) -> Sequence[ContainerHead]:
        """See `ContainerRows.list`."""
        return [_head(row) for row in await self._database.fetch(LIST, owner)]

    async def take(self, owner: str, container_id: str, holder: str, seconds: float) -> ContainerRow | None:
        """See `ContainerRows.take`."""
        return _taken(await self._database.write(TAKE, holder, seconds, container_id, owner, again=True))

    async def take_to_delete(
        self, container_id: str, holder: str, seconds: float, *, expired: bool
    ) -> ContainerRow | None:
        """See `ContainerRows.take_to_delete`."""
        return _taken(await self._database.write(TAKE_TO_DELETE, holder, seconds, container_id, expired, again=True))

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

        await certainly(self._database, work)

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

        await certainly(self._database, work)

    async def expired(self) -> Sequence[str]:
        """See `ContainerRows.expired`."""
        return [row["id"] for row in await self._database.fetch(EXPIRED)]

    async def missing(self, container_ids: Sequence[str]) -> frozenset[str]:
        """See `ContainerRows.missing`."""
        if not container_ids:
            return frozenset()
        there = await self._database.fetch(THERE, list(container_ids))
        return frozenset(container_ids) - {row["id"] for row in there}

    async def all_of(self, owner: str) -> Sequence[ContainerRow]:
        """See `ContainerRows.all_of`."""
        return [_row(row) for row in await self._database.fetch(ALL_OF, owner)]

    async def every(self) -> Sequence[ContainerHead]:
        """See `ContainerRows.every`."""
        return [_head(row) for row in await self._database.fetch(EVERY)]


def _taken(rows: Sequence[Record]) -> ContainerRow | None:
    if not rows:
        return None
    if not rows[0]["mine"]:
        raise ContainerInUse
    return _row(rows[0])


def _values(row: Record) -> tuple[str, str, str, float, float, float, int, int, str, str]:
    return (
        row["id"],
        row["owner"],
        row["name"],
        row["created_at"],
        row["last_active_at"],
        row["idle_seconds"],
        row["memory"],
        row["runs"],
        row["process"],
        row["machine"],
    )


def _head(row: Record) -> ContainerHead:
    return ContainerHead(*_values(row))


def _row(row: Record) -> ContainerRow:
    return ContainerRow(*_values(row), contents=_READ_CONTENTS.decode(row["contents"]))
