"""Stores the audit log in SQLite or PostgreSQL: one row for each change that an operator makes to keys or stored data.

Lives here: the SQL of the table `audit`, the maximum number of rows, the conversion of rows, and the log event of a
row. Not here: the choice of the actions that Antiphon records (`commands/admin/audit.py`,
`engine/running/client_keys.py`), the schedule of the sweep (`app/build.py`).

Invariants: no row holds a token or stored data. If the change is in the same database, one transaction writes the
change and its audit row. The sweep keeps only the newest `MOST_ROWS` rows. The time of a row comes from the database's
clock.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import structlog

from antiphon.errors import StoreError
from antiphon.ids import Clock, new_id, now
from antiphon.stores.tables import Row, Statement, Tables, milliseconds

MOST_ROWS = 100_000
"""The maximum number of rows that a sweep keeps."""
_PIECE = 1000
_log = structlog.get_logger(__name__)
INSERT = """
INSERT INTO audit (id, at, actor, action, object, owner, detail)
VALUES (:id, now_ms(), :actor, :action, :object, :owner, :detail)
"""
LIST = """
SELECT id, at, actor, action, object, owner, detail FROM audit
WHERE at >= :since AND (:owner = '' OR owner = :owner OR owner = :named) ORDER BY at DESC, id DESC LIMIT :limit
"""
FORGET_OLD = f"""
DELETE FROM audit WHERE id IN (
  SELECT id FROM audit WHERE at < now_ms() - CAST(:age AS bigint) ORDER BY at LIMIT {_PIECE}
)
"""
FORGET_MORE = f"""
DELETE FROM audit WHERE id IN (SELECT id FROM audit ORDER BY at DESC, id DESC LIMIT {_PIECE} OFFSET :most)
"""

Detail = Mapping[str, object]
"""Additional fields of a row, by name. Each value has a JSON type."""


class AuditEntry(msgspec.Struct, frozen=True):
    """One row of the audit log: who changed what, and when.

    `action` is the name of the operation, such as `keys create`. `object` is what the action changed, such as the id of
    a key. `owner` is the id of the owner, or empty if the action does not concern one owner. `at` is the time in
    seconds since the epoch, or 0 before the store has stored the row.
    """

    actor: str
    action: str
    object: str = ""
    owner: str = ""
    detail: Detail = {}
    at: float = 0.0


def log_audit_entry(noted: AuditEntry) -> None:
    """Write the log event of a stored row."""
    _log.info("audit", actor=noted.actor, action=noted.action, object=noted.object, owner=noted.owner, **noted.detail)


class AuditStore:
    """Stores the audit log in tables that the caller closes. Every method except `statement` raises `StoreError`."""

    def __init__(self, tables: Tables, clock: Clock = now) -> None:
        """`clock`: the source of the current time for a database without a clock (SQLite)."""
        self._tables = tables
        self._clock = clock

    def statement(self, noted: AuditEntry) -> Statement:
        """Return the statement that stores this row. The caller runs the statement in the transaction of the change."""
        named = {"actor": noted.actor, "action": noted.action, "object": noted.object, "owner": noted.owner}
        detail = msgspec.json.encode(noted.detail).decode()
        return Statement(INSERT, {**named, "id": new_id("audit"), "detail": detail, **self._now}, rows=1)

    async def note(self, noted: AuditEntry) -> None:
        """Store this row."""
        await self._tables.run([self.statement(noted)])

    async def list(self, *, since: float = 0.0, owner: str = "", limit: int = 100) -> list[AuditEntry]:
        """Return at most `limit` rows that are not older than `since` (seconds since the epoch), newest first.

        `owner`: the id or the name of an owner; an empty string selects all rows.
        """
        named = {"since": milliseconds(since), "owner": owner, "named": f"n:{owner}", "limit": limit}
        return [_noted(row) for row in await self._tables.fetch(LIST, named)]

    async def sweep(self, seconds: float | None, *, most: int = MOST_ROWS) -> int:
        """Delete rows older than `seconds`, and all but the newest `most`. Returns the number of deleted rows.

        If `seconds` is None, the sweep deletes no row because of its age.
        """
        gone = 0
        if seconds is not None:
            gone = await self._forget(FORGET_OLD, {"age": milliseconds(seconds), **self._now})
        return gone + await self._forget(FORGET_MORE, {"most": most})

    async def _forget(self, sql: str, named: Mapping[str, object]) -> int:
        gone = 0
        while count := (await self._tables.run([Statement(sql, named)], again=True))[0]:
            gone += count
        return gone

    @property
    def _now(self) -> dict[str, object]:
        return {"now_ms": milliseconds(self._clock())}


def _noted(row: Row) -> AuditEntry:
    try:
        detail = msgspec.json.decode(row["detail"], type=dict[str, object])
    except msgspec.DecodeError as error:
        raise StoreError(f"the row {row['id']} of the audit is damaged: {error}") from error
    return AuditEntry(row["actor"], row["action"], row["object"], row["owner"], detail, row["at"] / 1000)
