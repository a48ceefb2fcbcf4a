"""Stores the audit log in SQLite or PostgreSQL: who changed keys or stored data, and which operator read them.

Lives here: the names of the actions, the SQL of the table `audit`, the maximum number of rows, and the log event of a
row. Not here: the code that records the actions (`commands/admin/audit.py`, `api/admin.py`, `console/reading.py`,
`engine/running/client_keys.py`), the schedule of the sweep that deletes old rows (`app/build.py`).

Invariants: no row contains a client's token or stored data. If the change is in the same database, one transaction
writes the change and its audit row. If an operator repeats the same read within `CONTENTS_SECONDS` or `LIST_SECONDS`,
all processes together store one row. The sweep keeps the newest `MOST_ROWS` changes and the newest `MOST_ROWS` reads,
so reads never displace changes. The time of a row comes from the database's clock.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final, Literal

import msgspec
import structlog
from msgspec.structs import replace

from antiphon.errors import StoreError
from antiphon.ids import Clock, new_id, now
from antiphon.redaction import without_client_keys
from antiphon.stores.tables import Row, Statement, Tables, milliseconds

ChangeAction = Literal[
    "adopt-owner",
    "backup",
    "delete-owner",
    "deployment-keys --accept",
    "export",
    "file delete",
    "file upload",
    "keys create",
    "keys revoke",
    "keys rotate",
    "move",
    "move-owner",
    "new-keys",
    "prompt delete",
    "prompt set-default",
    "purge",
    "request cancel",
    "request run",
    "response cancel",
    "response delete",
    "restore",
    "usage forget",
    "vector-store attach",
    "vector-store change",
    "vector-store create",
    "vector-store delete",
    "vector-store detach",
]
"""The names of the actions that the audit log counts as changes. `export` changes nothing, but it returns all data of
an owner. `backup` changes nothing, but its archive has all data."""
ReadAction = Literal[
    "read audit",
    "read conversation",
    "read file",
    "read keys",
    "read prompt",
    "read quotas",
    "read request",
    "read response",
    "read search",
    "read usage",
    "read vector-store",
]
"""The names of an operator's reads in the console or by the admin API. Each name begins with `read `."""
Action = ChangeAction | ReadAction

MOST_ROWS = 100_000
"""The maximum number of changes that a sweep keeps, and the maximum number of reads."""
CONTENTS_SECONDS: Final = 60.0
"""The length of a period in seconds. An operator's repeated reads of the same contents in one period store one row."""
LIST_SECONDS: Final = 3600.0
"""The length of a period in seconds. An operator's repeated reads of the same list in one period store one row. The
period is long, because monitoring programs read lists all day."""
_PIECE = 1000
# The object of such a row is the old owner.
_MOVES = "action IN ('adopt-owner', 'move-owner')"
_IS_READ = "substr(action, 1, 5) = 'read '"
_log = structlog.get_logger(__name__)
INSERT = """
INSERT INTO audit (id, at, actor, action, object, owner, detail)
VALUES (:id, now_ms(), :actor, :action, :object, :owner, :detail)
"""
INSERT_READ = """
INSERT INTO audit (id, at, actor, action, object, owner, detail)
VALUES (
  CAST(:id AS text) || '_' || CAST(now_ms() / CAST(:period AS bigint) AS text),
  now_ms(), :actor, :action, :object, :owner, :detail
)
ON CONFLICT (id) DO NOTHING
"""
_LIST = f"""
SELECT id, at, actor, action, object, owner, detail FROM audit
WHERE at >= :since
  AND (:owner = '' OR owner IN (:owner, :named) OR ({_MOVES} AND object IN (:owner, :named))) {{chosen}}
ORDER BY at DESC, id DESC LIMIT :limit
"""
LIST = _LIST.format(chosen="")
LIST_CHANGES = _LIST.format(chosen=f"AND NOT {_IS_READ} ")
FORGET_OLD = f"""
DELETE FROM audit WHERE id IN (
  SELECT id FROM audit WHERE at < now_ms() - CAST(:age AS bigint) ORDER BY at LIMIT {_PIECE}
)
"""
_FORGET_MORE = """
DELETE FROM audit WHERE id IN (
  SELECT id FROM audit WHERE {chosen} ORDER BY at DESC, id DESC LIMIT {piece} OFFSET :most
)
"""
FORGET_MORE = _FORGET_MORE.format(chosen=f"NOT {_IS_READ}", piece=_PIECE)
FORGET_MORE_READS = _FORGET_MORE.format(chosen=_IS_READ, piece=_PIECE)

Detail = Mapping[str, object]
"""Additional fields of a row, by name. Each value has a JSON type."""


class AuditEntry(msgspec.Struct, frozen=True):
    """One row of the audit log: who changed or read what, and when.

    `object` is what the action changed or read, such as the id of a key. `owner` is the id of the owner, or empty if
    the action does not concern one owner. `at` is the time in seconds since the epoch, or 0 before the store has stored
    the row.
    """

    actor: str
    action: Action
    object: str = ""
    owner: str = ""
    detail: Detail = {}
    at: float = 0.0


def _clean(noted: AuditEntry) -> AuditEntry:
    """The row without client keys, which a caller may send in place of the id of a key or of an owner."""
    object, owner = without_client_keys(noted.object), without_client_keys(noted.owner)
    return noted if (object, owner) == (noted.object, noted.owner) else replace(noted, object=object, owner=owner)


def log_audit_entry(noted: AuditEntry) -> None:
    """Write a log event for a stored row of the audit log."""
    noted = _clean(noted)
    _log.info("audit", actor=noted.actor, action=noted.action, object=noted.object, owner=noted.owner, **noted.detail)


async def note_operator_read(store: AuditStore, noted: AuditEntry, seconds: float = CONTENTS_SECONDS) -> None:
    """Store the row of an operator's read, and log it if the row is new. The caller shows the data only after this
    function has returned, so Antiphon shows no data whose read it cannot record. Raises `StoreError`."""
    if await store.note_read(noted, seconds):
        log_audit_entry(noted)


class AuditStore:
    """Stores the audit log in a database that the caller closes. Every method except `statement` raises `StoreError`
    when the database fails."""

    def __init__(self, tables: Tables, clock: Clock = now) -> None:
        """`clock`: the function that returns the current time on SQLite. PostgreSQL uses the server's clock."""
        self._tables = tables
        self._clock = clock

    def statement(self, noted: AuditEntry) -> Statement:
        """Return the statement that stores this row. The caller runs the statement in the transaction of the change."""
        noted = _clean(noted)
        named = {"actor": noted.actor, "action": noted.action, "object": noted.object, "owner": noted.owner}
        detail = msgspec.json.encode(noted.detail).decode()
        return Statement(INSERT, {**named, "id": new_id("audit"), "detail": detail, **self._now}, rows=1)

    async def note(self, noted: AuditEntry) -> None:
        """Store this row."""
        await self._tables.run([self.statement(noted)])

    async def note_read(self, noted: AuditEntry, seconds: float = CONTENTS_SECONDS) -> bool:
        """Store the row of a read, unless the table already has such a row from the current period of `seconds`.
        Returns whether this call stored a row. The period begins at a multiple of `seconds` since the epoch."""
        noted = _clean(noted)
        named = {"actor": noted.actor, "action": noted.action, "object": noted.object, "owner": noted.owner}
        detail = msgspec.json.encode(noted.detail).decode()
        equal = hashlib.sha256(msgspec.json.encode([*named.values(), detail])).hexdigest()[:32]
        more = {"id": f"audit_{equal}", "period": milliseconds(seconds), "detail": detail, **self._now}
        return (await self._tables.run([Statement(INSERT_READ, {**named, **more})], again=True))[0] > 0

    async def list(
        self, *, since: float = 0.0, owner: str = "", limit: int = 100, changes: bool = False
    ) -> list[AuditEntry]:
        """Return at most `limit` rows that are not older than `since` (seconds since the epoch), newest first.

        `owner`: the id or the name of an owner; an empty string selects all rows. The rows of a move from one owner to
        another belong to both owners. `changes`: return only changes, and
        no reads.
        """
        named = {"since": milliseconds(since), "owner": owner, "named": f"n:{owner}", "limit": limit}
        return [_noted(row) for row in await self._tables.fetch(LIST_CHANGES if changes else LIST, named)]

    async def sweep(self, seconds: float | None, *, most: int = MOST_ROWS) -> int:
        """Delete rows older than `seconds`, and all but the newest `most` changes and the newest `most` reads. Returns
        the number of deleted rows.

        If `seconds` is None, the sweep deletes no row because of its age.
        """
        gone = 0
        if seconds is not None:
            gone = await self._forget(FORGET_OLD, {"age": milliseconds(seconds), **self._now})
        for statement in (FORGET_MORE, FORGET_MORE_READS):
            gone += await self._forget(statement, {"most": most})
        return gone

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
        raise StoreError(f"the row {row['id']} of the audit log is damaged: {error}") from error
    return AuditEntry(row["actor"], row["action"], row["object"], row["owner"], detail, row["at"] / 1000)
