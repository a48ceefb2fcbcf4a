"""Exports, deletes and moves the data of one owner (a tenant) that SQLite or PostgreSQL stores.

Lives here: the SQL that all backends share, the counts per owner, the form of an exported row, and the deletion of
vector stores. This module also moves data to another owner, after a check for obstacles to the move. Not here: how a
backend reads and deletes this data while requests run, and how it keeps foreign keys and byte counts correct
(`sqlite/owner_data.py`, `postgres/owner_data.py`). Not here: the contents of files and containers
(`tools/code_interpreter/owners.py`).

An export contains the vector stores and their files with attributes. The export omits the chunks, because the exported
files contain their text.

`OwnerMoves` moves chains and conversations in batches, so that requests of other owners can write between two batches.
While `OwnerMoves` moves files and vector stores, no process may begin to index one of these files. Otherwise a process
could read the old owner before the move, and then fail to find the file after the move.

Invariants: `owned_rows` covers every table with an owner column, except tables that hold only parts or counts of
covered tables. Tests compare `owned_rows` with the schemas. A move to another owner consists of several transactions.
Each transaction leaves the byte counts of both owners correct. Each transaction moves only rows that still belong to
the old owner, so a repeated move moves the rows that the first move left. No transaction moves a chain with an
unfinished background response, or a conversation that a response has locked.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from antiphon.engine.ports.state import ExportedRow, NotMovable, OwnerCounts
from antiphon.engine.ports.usage_sums import NUMBERS
from antiphon.ids import now
from antiphon.stores.backend import VectorDatabase
from antiphon.stores.bodies import Bodies
from antiphon.stores.tables import Row, Statement, Tables, milliseconds

AT_ONCE = 100
"""The number of rows per read or deletion."""

_COUNTED = {
    # A withdrawn response belongs to no owner (see `LateSaves` in `postgres/responses.py`).
    "responses": "responses WHERE status <> 'withdrawn'",
    "conversations": "conversations",
    "prompts": "prompts",
    "files": "files",
    "vector_stores": "vector_stores WHERE owner IS NOT NULL",
}
_VECTOR_STORES = "SELECT id FROM vector_stores WHERE owner = :owner"

# Yields two output rows per item: its JSON (`body`), and the additional text that the model saw (`shown`, if stored).
_BOTH = "(SELECT 1 = 0 AS more UNION ALL SELECT 1 = 1) AS both_parts"


def count_query(*kinds: str) -> str:
    """Return a query that counts these kinds of objects. A result row has a kind, an owner and the count."""
    return " UNION ALL ".join(
        f"SELECT '{kind}', owner, count(*) FROM {_COUNTED[kind]} GROUP BY owner" for kind in kinds
    )


def owner_counts(rows: Iterable[Row]) -> list[OwnerCounts]:
    """Convert the rows of a `count_query` query to counts per owner, sorted by owner."""
    counts: dict[str, dict[str, int]] = {}
    for kind, owner, count in rows:
        counts.setdefault(owner, {})[kind] = count
    return [OwnerCounts(owner, **counts[owner]) for owner in sorted(counts)]


def owned_rows(place: str) -> dict[str, str]:
    """Return the SQL queries that export the data of one owner, by the kind of the rows.

    Each query selects two columns that identify a row, then the row's JSON
    (`body`) or its fields. `place`: the SQL expression for an item's position in its conversation."""
    return {
        "responses": """
            SELECT id, created_at, status, body FROM responses WHERE owner = :owner ORDER BY created_at, id
        """,
        "response_items": f"""
            SELECT i.response_id, CASE WHEN more THEN 'shown' WHEN i.dir = 0 THEN 'input' ELSE 'output' END AS part,
                   CASE WHEN more THEN i.shown ELSE i.body END AS body
            FROM responses r CROSS JOIN response_items i CROSS JOIN {_BOTH}
            WHERE r.owner = :owner AND i.response_id = r.id AND (NOT more OR i.shown IS NOT NULL)
            ORDER BY r.created_at, r.id, i.dir, i.seq, more
        """,
        "conversations": """
            SELECT id, created_at, metadata AS body FROM conversations WHERE owner = :owner ORDER BY created_at, id
        """,
        "conversation_items": f"""
            SELECT conversation_id, CASE WHEN more THEN pos || ' shown' ELSE {place} END AS part,
                   CASE WHEN more THEN shown ELSE body END AS body
            FROM conversation_items CROSS JOIN {_BOTH} WHERE owner = :owner AND (NOT more OR shown IS NOT NULL)
            ORDER BY conversation_id, pos, more
        """,
        "prompts": "SELECT id, name, metadata AS body FROM prompts WHERE owner = :owner ORDER BY created_at, id",
        "prompt_versions": """
            SELECT v.prompt_id, v.version, v.body FROM prompts p CROSS JOIN prompt_versions v
            WHERE p.owner = :owner AND v.prompt_id = p.id ORDER BY v.prompt_id, v.version
        """,
        "requests": """
            SELECT id, ended_at, request_id, model, upstream, response_id, previous_id, conversation_id, outcome, code,
                   http_status, took, calls, input_tokens, cached_tokens, output_tokens, reasoning_tokens, cost, detail
            FROM requests WHERE owner = :owner ORDER BY ended_at, id
        """,
        "usage_days": """
            SELECT day, model, upstream, calls, input_tokens, cached_tokens, output_tokens, reasoning_tokens,
                   estimated_calls, estimated_input_tokens, estimated_output_tokens, cost
            FROM usage_days WHERE owner = :owner ORDER BY day, model, upstream
        """,
    }


def owned_vector_rows(number: str, store: str) -> dict[str, str]:
    """Return the queries that export vector stores, by kind, in the form of `owned_rows`. `number`: the name of the
    column with a vector store's integer primary key. `store`: the name of the column that refers to a vector store."""
    return {
        "vector_stores": f"""
            SELECT id, created_at, name, description, metadata, expires_days
            FROM vector_stores WHERE owner = :owner ORDER BY {number}
        """,
        "vector_store_files": f"""
            SELECT f.file_id, s.id AS store, f.filename, f.status, f.attributes
            FROM vector_stores s JOIN vector_files f ON f.{store} = s.{number}
            WHERE s.owner = :owner ORDER BY s.{number}, f.created_at
        """,
    }


def export_row(kind: str, fields: Mapping[str, Any], bodies: Bodies) -> ExportedRow:
    """Convert a row of an `owned_rows` query (columns by name) to an exported row. `bodies` decrypts sealed bodies."""
    (_, row_id), (_, of), *others = fields.items()
    if kind == "responses":
        return ExportedRow(kind, row_id, of, json.loads(bodies.open_response(fields["body"], fields["status"])))
    data = {name: json.loads(bodies.open(value)) if isinstance(value, bytes) else value for name, value in others}
    return ExportedRow(kind, row_id, of, data["body"] if list(data) == ["body"] else data)


DELETE = (
    """
DELETE FROM chains WHERE id IN (
  SELECT id FROM chains WHERE id IN (SELECT chain_id FROM responses WHERE owner = :owner LIMIT :limit)
  ORDER BY id FOR UPDATE
)""",
    """
DELETE FROM conversations WHERE owner = :owner AND id IN (
  SELECT id FROM conversations WHERE owner = :owner ORDER BY id LIMIT :limit FOR UPDATE
)""",
    """
DELETE FROM idempotency WHERE owner = :owner AND key IN (
  SELECT key FROM idempotency WHERE owner = :owner ORDER BY key LIMIT :limit FOR UPDATE
)""",
    "DELETE FROM prompts WHERE id IN (SELECT id FROM prompts WHERE owner = :owner LIMIT :limit)",
    """
DELETE FROM request_records WHERE id IN (
  SELECT id FROM request_records WHERE owner = :owner ORDER BY id LIMIT :limit FOR UPDATE
)""",
    """
DELETE FROM requests WHERE id IN (SELECT id FROM requests WHERE owner = :owner ORDER BY id LIMIT :limit FOR UPDATE)""",
    """
DELETE FROM usage_days WHERE owner = :owner AND (day, model, upstream) IN (
  SELECT day, model, upstream FROM usage_days WHERE owner = :owner LIMIT :limit
)""",
    "DELETE FROM owner_teams WHERE owner IN (SELECT owner FROM owner_teams WHERE owner = :owner LIMIT :limit)",
)
"""The statements that delete an owner's data. The caller repeats each statement, which deletes at most `:limit` rows,
until it deletes no row. The statements lock rows in the same order as all other statements, to avoid deadlocks."""


async def delete_vector_stores(vectors: VectorDatabase, tables: Tables, owner: str) -> int:
    """Delete the owner's vector stores with all their chunks. Returns the number of deleted stores. `tables`: the
    tables of the database that holds the vector stores. Raises `StoreError`."""
    gone = 0
    for (store_id,) in await tables.fetch(_VECTOR_STORES, {"owner": owner}):
        gone += await vectors.stores.delete(owner, store_id)
    while await vectors.ingestion.sweep():
        pass
    return gone


_SHOWN = 5
"""The maximum number of ids that a message lists."""
_LATER, _AGAIN = " Try again later.", " Run the move again."
_INDEXED = "A process is indexing these files of vector stores"
# The duration in seconds of the delay in which no process begins to index a file of the old owner. After the move of
# the files, the statement `let_go` ends the delay early.
_HOLD_SECONDS = 600.0

_EQUAL = {
    "files": "SELECT id FROM files WHERE owner = :old AND id IN (SELECT id FROM files WHERE owner = :new) ORDER BY id",
    "conversations": """
SELECT id FROM conversations
WHERE owner = :old AND id IN (SELECT id FROM conversations WHERE owner = :new) ORDER BY id
""",
}
_LIVE_KEY = "(lease_until IS NOT NULL OR expires_at > date_now())"
_EQUAL_KEYS = f"""
SELECT key FROM idempotency WHERE owner = :old AND {_LIVE_KEY}
  AND key IN (SELECT key FROM idempotency WHERE owner = :new AND {_LIVE_KEY}) ORDER BY key
"""
JOBS = "SELECT response_id FROM jobs WHERE owner = :old ORDER BY response_id"
LOCKED = """
SELECT id FROM conversations WHERE owner = :old AND locked_by IS NOT NULL AND locked_until > lease_now() ORDER BY id
"""
_HELD_KEYS = "SELECT key FROM idempotency WHERE owner = :old AND lease_until > lease_now() ORDER BY key"

IDLE_CHAINS = """
SELECT id FROM chains WHERE owner = :old AND id > :after
  AND NOT EXISTS (SELECT 1 FROM responses r JOIN jobs j ON j.response_id = r.id WHERE r.chain_id = chains.id)
ORDER BY id LIMIT :limit
"""
UNLOCKED_CONVERSATIONS = """
SELECT id FROM conversations
WHERE owner = :old AND id > :after AND (locked_by IS NULL OR locked_until <= lease_now()) ORDER BY id LIMIT :limit
"""
_MOVE_PROMPTS = "UPDATE prompts SET owner = :new WHERE owner = :old"
_MOVE_VECTOR_STORES = "UPDATE vector_stores SET owner = :new WHERE owner = :old"
# Expired rows of both owners may have equal keys. Antiphon never reads an expired row, so the move deletes them.
_DROP_EXPIRED_KEYS = f"DELETE FROM idempotency WHERE owner IN (:both...) AND NOT {_LIVE_KEY}"
_MOVE_KEYS = "UPDATE idempotency SET owner = :new WHERE owner = :old"
_MOVE_REQUESTS = (
    "UPDATE requests SET owner = :new WHERE owner = :old",
    "UPDATE request_records SET owner = :new WHERE owner = :old",
)
# The moved data belongs to the team of the new owner.
_LEAVE_TEAM = "DELETE FROM owner_teams WHERE owner = :old"
_LEFT_CHAINS = "SELECT id FROM chains WHERE owner = :old ORDER BY id"
_LEFT_CONVERSATIONS = "SELECT id FROM conversations WHERE owner = :old ORDER BY id"

USAGE_COLUMNS = ("day", "owner", "model", "upstream", *NUMBERS)


@dataclass(frozen=True, slots=True)
class MoveSql:
    """The statements of a move that differ by backend. Each tuple has the statements of one transaction.

    `chains` moves the responses of the chains `:ids`, and `conversations` moves the conversations `:ids`. Rows that a
    request uses now stay with the old owner. `files` moves all files, and `usage` moves all usage sums. `rest` deletes
    the old owner's counters that are now 0. `indexing` finds the vector store files of the old owner that a process
    indexes now. `hold` delays the indexing of waiting files by `:lease` milliseconds, and `let_go` ends the delay for
    both owners.
    """

    chains: tuple[str, ...]
    conversations: tuple[str, ...]
    files: tuple[str, ...]
    usage: tuple[str, ...]
    rest: tuple[str, ...]
    indexing: str
    hold: str
    let_go: str


class OwnerMoves:
    """Moves data from the owner `old` to the owner `new`. The caller closes the database.

    `vectors`: the tables of the database that holds the vector stores, or None if this database does not exist.
    """

    def __init__(
        self, tables: Tables, vectors: Tables | None, sql: MoveSql, old: str, new: str, *, at_once: int
    ) -> None:
        self._tables = tables
        self._vectors = vectors
        self._sql = sql
        self._named: dict[str, object] = {"old": old, "new": new, "both": [old, new], "limit": at_once}

    async def obstacles(self) -> list[str]:
        """See `OwnerData.obstacles`."""
        old, new = self._named["old"], self._named["new"]
        if old == new:
            return [f"The old and the new owner are the same: {old}."]
        found = [
            await self._told(self._tables, sql, (f"Both owners have {what} with the same id"))
            for what, sql in _EQUAL.items()
        ]
        found += [
            await self._told(one, _EQUAL_KEYS, ("Both owners used the same idempotency keys"))
            for one in self._databases()
        ]
        found.append(await self._told(self._tables, JOBS, f"{old} has unfinished background responses", _LATER))
        found.append(await self._told(self._tables, LOCKED, "Responses are running in these conversations", _LATER))
        found.append(
            await self._told(self._tables, _HELD_KEYS, ("Requests with these idempotency keys are running"), _LATER)
        )
        if self._vectors is not None:
            found.append(await self._told(self._vectors, self._sql.indexing, _INDEXED, _LATER))
        return [one for one in found if one]

    async def run(self) -> AsyncGenerator[str]:
        """See `OwnerData.move`."""
        if problems := await self.obstacles():
            raise NotMovable(" ".join(problems))
        if self._vectors is not None:
            await self._unit(self._vectors, (self._sql.hold,), lease=milliseconds(_HOLD_SECONDS))
            yield "indexing"
            if claimed := await self._told(self._vectors, self._sql.indexing, _INDEXED, _LATER):
                # A process claimed a file before the delay began.
                await self._unit(self._vectors, (self._sql.let_go,))
                raise NotMovable(claimed)
            await self._unit(self._vectors, (_MOVE_VECTOR_STORES, _DROP_EXPIRED_KEYS, _MOVE_KEYS))
            yield "vector_stores"
        await self._unit(self._tables, self._sql.files)
        yield "files"
        if self._vectors is not None:
            await self._unit(self._vectors, (self._sql.let_go,))
            yield "indexing"
        async for kind in self._pieces("chains", IDLE_CHAINS, self._sql.chains):
            yield kind
        async for kind in self._pieces("conversations", UNLOCKED_CONVERSATIONS, self._sql.conversations):
            yield kind
        await self._unit(self._tables, (_MOVE_PROMPTS,))
        yield "prompts"
        await self._unit(self._tables, _MOVE_REQUESTS)
        yield "requests"
        await self._unit(self._tables, (_DROP_EXPIRED_KEYS, _MOVE_KEYS))
        yield "idempotency"
        await self._unit(self._tables, self._sql.usage)
        yield "usage_days"
        left = [
            await self._told(
                self._tables, _LEFT_CHAINS, ("Requests used these chains of responses during the move"), _AGAIN
            ),
            await self._told(
                self._tables, _LEFT_CONVERSATIONS, ("Requests used these conversations during the move"), _AGAIN
            ),
        ]
        if any(left):
            raise NotMovable(" ".join(one for one in left if one))
        await self._unit(self._tables, (_LEAVE_TEAM, *self._sql.rest))
        yield "counts"

    def _databases(self) -> list[Tables]:
        if self._vectors is None or self._vectors is self._tables:
            return [self._tables]
        return [self._tables, self._vectors]

    async def _pieces(self, kind: str, which: str, unit: Sequence[str]) -> AsyncGenerator[str]:
        after = ""
        while rows := await self._tables.fetch(which, {**self._named, "after": after}):
            ids = [row[0] for row in rows]
            await self._unit(self._tables, unit, ids=ids)
            after = ids[-1]
            yield kind

    async def _unit(self, tables: Tables, unit: Sequence[str], **more: object) -> None:
        named = {**self._named, "now_ms": milliseconds(now()), **more}
        await tables.run([Statement(sql, named) for sql in unit], again=True)

    async def _told(self, tables: Tables, sql: str, what: str, advice: str = "") -> str:
        rows = await tables.fetch(sql, {**self._named, "now_ms": milliseconds(now())})
        if not rows:
            return ""
        ids = ", ".join(str(row[0]) for row in rows[:_SHOWN])
        more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
        return f"{what}: {ids}{more}.{advice}"
