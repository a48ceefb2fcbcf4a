"""Implements `ContainerRows` for PostgreSQL: the rows of code containers that several machines share.

Lives here: the SQL of containers' rows and leases. Not here: the use of containers (`tools/code_interpreter/`), the
contents of snapshots (`stores/blobs/`).

Invariants: a statement that takes or needs a lease checks the lease by the database's clock. One transaction changes a
container's row, and the rows of its contents in `pending_blobs`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from antiphon.engine.ports.containers import (
    ContainerHead,
    ContainerInUse,
    ContainerLost,
    ContainerRow,
    RowContents,
    TooManyContainers,
)
from antiphon.stores.blobs.pending import KEEP, LET_GO, PendingBlobs
from antiphon.stores.tables import Row, RowsMissing, Statement, Tables, milliseconds, renew_leases

# Selects the columns in the order of the fields of `ContainerHead`.
_HEAD = """
id, owner, name, extract(epoch FROM created_at)::float8,
extract(epoch FROM last_active_at)::float8, idle_seconds, memory, runs, process, machine
"""
_ROW = f"{_HEAD}, contents"
_EXPIRED = "clock_timestamp() > last_active_at + make_interval(secs => idle_seconds)"
_LOCK = 0x636F6E74_61696E65  # "containe"

# Serializes the creation of containers. Otherwise two concurrent transactions could both count fewer containers than
# the limit.
LOCK = f"SELECT pg_advisory_xact_lock({_LOCK})"
COUNT = f"""
SELECT count(*) AS every, count(*) FILTER (WHERE owner = :owner) AS mine FROM containers WHERE NOT ({_EXPIRED})
"""
INSERT = f"""
INSERT INTO containers (
  id, owner, name, created_at, last_active_at, idle_seconds, memory, runs, process, machine, contents,
  held_by, held_until
) SELECT
  :id, :owner, :name, clock_timestamp(), clock_timestamp(), :idle_seconds, :memory, 0, '', '', :contents, :holder,
  lease_in(:lease)
FROM ({COUNT}) AS counted WHERE counted.mine < :per_owner AND counted.every < :limit
ON CONFLICT (id) DO NOTHING RETURNING {_ROW}
"""
# Requires that the container belongs to the owner and is not expired. Without an owner, any container qualifies.
_OF = f"({{owner}}::text IS NULL OR owner = {{owner}} AND NOT ({_EXPIRED}))"
GET = f"SELECT {_ROW} FROM containers WHERE id = :id AND {_OF.format(owner=':owner')}"
EVERY = f"""
SELECT {_HEAD} FROM containers
WHERE (:owner::text IS NULL OR owner = :owner) AND (:expired::boolean IS NULL OR :expired = ({_EXPIRED}))
ORDER BY created_at, id
"""
COUNT_OF = f"SELECT count(*) FROM containers WHERE owner IN (:owners...) AND NOT ({_EXPIRED})"
_WHICH = f"id = :id AND {_OF.format(owner=':owner')} AND (NOT :expired::boolean OR {_EXPIRED})"
# The holder of the lease may take the lease again.
TAKE = f"""
UPDATE containers SET held_by = :holder, held_until = lease_in(:lease),
  last_active_at = CASE WHEN :owner::text IS NULL THEN last_active_at ELSE clock_timestamp() END
WHERE {_WHICH} AND (held_by IS NULL OR held_until <= lease_now() OR held_by = :holder) RETURNING {_ROW}
"""
IS_THERE = f"SELECT 1 FROM containers WHERE {_WHICH}"
RENEW = """
WITH held AS MATERIALIZED (SELECT id FROM containers WHERE held_by IN (:holders...) ORDER BY id FOR UPDATE)
UPDATE containers c SET held_until = lease_in(:lease) FROM held
WHERE c.id = held.id AND c.held_by IN (:holders...) RETURNING c.held_by
"""
PUT_BACK = """
UPDATE containers SET last_active_at = clock_timestamp(), runs = :runs, process = :process, machine = :machine,
  contents = :contents, held_by = NULL, held_until = NULL
WHERE id = :id AND held_by = :holder
"""
STOP_HOLDING = "UPDATE containers SET held_by = NULL, held_until = NULL WHERE id = :id AND held_by = :holder"
GIVE = "UPDATE containers SET owner = :owner WHERE id = :id AND held_by = :holder"
DELETE = "DELETE FROM containers WHERE id = :id AND held_by = :holder"
_READ_CONTENTS = msgspec.json.Decoder(RowContents)


class PostgresContainerRows:
    """Implements `ContainerRows` on a database that the caller closes."""

    def __init__(self, tables: Tables, contents: PendingBlobs | None = None) -> None:
        self._tables = tables
        self.contents = contents

    async def make(self, row: ContainerRow, holder: str, seconds: float, *, limit: int, per_owner: int) -> ContainerRow:
        """See `ContainerRows.make`."""
        named = {**_named(row, holder), "lease": milliseconds(seconds), "limit": limit, "per_owner": per_owner}
        counted: list[Row] = []
        made: list[Row] = []
        count = Statement(COUNT, named, into=counted)
        await self._tables.run([Statement(LOCK, {}, into=[]), count, Statement(INSERT, named, into=made)])
        if made:
            return _row(made[0])
        if counted[0]["mine"] >= per_owner:
            raise TooManyContainers(of_owner=True)
        if counted[0]["every"] >= limit:
            raise TooManyContainers(of_owner=False)
        raise ContainerInUse

    async def get(self, container_id: str, owner: str | None = None) -> ContainerRow | None:
        """See `ContainerRows.get`."""
        rows = await self._tables.fetch(GET, {"id": container_id, "owner": owner})
        return _row(rows[0]) if rows else None

    async def every(self, owner: str | None = None, *, expired: bool | None = None) -> Sequence[ContainerHead]:
        """See `ContainerRows.every`."""
        rows = await self._tables.fetch(EVERY, {"owner": owner, "expired": expired})
        return [ContainerHead(*row) for row in rows]

    async def count(self, owners: Sequence[str]) -> int:
        """See `ContainerRows.count`."""
        return int((await self._tables.fetch(COUNT_OF, {"owners": list(owners)}))[0][0])

    async def take(
        self, container_id: str, holder: str, seconds: float, owner: str | None = None, *, expired: bool = False
    ) -> ContainerRow | None:
        """See `ContainerRows.take`."""
        which = {"id": container_id, "owner": owner, "expired": expired}
        taken: list[Row] = []
        take = Statement(TAKE, {**which, "holder": holder, "lease": milliseconds(seconds)}, into=taken)
        await self._tables.run([take], again=True)
        if taken:
            return _row(taken[0])
        # The container exists, but the statement could not take the lease, so another holder has the lease.
        if await self._tables.fetch(IS_THERE, which):
            raise ContainerInUse
        return None

    async def renew(self, holders: Sequence[str], seconds: float) -> frozenset[str]:
        """See `Leased.renew`."""
        return await renew_leases(self._tables, RENEW, holders, seconds)

    async def put_back(
        self, row: ContainerRow, holder: str, *, came: Sequence[str] = (), went: Sequence[str] = ()
    ) -> None:
        """See `ContainerRows.put_back`."""
        kept = [Statement(KEEP, {"blob": key}, rows=1) for key in came]
        await self._held(Statement(PUT_BACK, _named(row, holder), rows=1), *kept, *_went(went))

    async def let_go(self, container_id: str, holder: str) -> None:
        """See `ContainerRows.let_go`."""
        await self._tables.run([Statement(STOP_HOLDING, {"id": container_id, "holder": holder})], again=True)

    async def give(self, row: ContainerRow, holder: str, owner: str) -> None:
        """See `ContainerRows.give`."""
        await self._held(Statement(GIVE, {"id": row.id, "holder": holder, "owner": owner}, rows=1))

    async def delete(self, row: ContainerRow, holder: str) -> None:
        """See `ContainerRows.delete`."""
        await self._held(Statement(DELETE, _named(row, holder), rows=1), *_went(row.contents.blobs))

    async def _held(self, *unit: Statement) -> None:
        try:
            await self._tables.run(unit)
        except RowsMissing:
            raise ContainerLost from None


def _named(row: ContainerRow, holder: str) -> dict[str, object]:
    return {**msgspec.structs.asdict(row), "contents": msgspec.json.encode(row.contents), "holder": holder}


def _went(keys: Iterable[str]) -> list[Statement]:
    return [Statement(LET_GO, {"blob": key}) for key in keys]


def _row(row: Row) -> ContainerRow:
    named = dict(zip(ContainerRow.__struct_fields__, row, strict=True))
    return ContainerRow(**{**named, "contents": _READ_CONTENTS.decode(named["contents"])})
