"""Gives the stored data of one owner to another owner, for any backend.

Lives here: the order of the work, the obstacles, and the SQL that all backends share. Not here: the statements that
keep foreign keys and counts of bytes (`sqlite/owner_moves.py`, `postgres/owner_moves.py`), containers
(`tools/code_interpreter/owners.py`).

Chains and conversations move in pieces, so that requests of other owners can write in between. While files
and vector stores move, no process may begin to index one of these files. Otherwise a process could read the old owner
before the move, and not find the file after the move.

Invariants: each unit is one transaction and leaves both owners' counts of bytes correct. A unit moves only rows that
still belong to the old owner, so a repeated move moves the rest. No unit moves a chain with an unfinished background
response, or a conversation that a response has locked.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from antiphon.engine.ports.owner_data import NotMovable
from antiphon.engine.ports.usage_sums import NUMBERS
from antiphon.ids import now
from antiphon.stores.tables import Statement, Tables, milliseconds

_SHOWN = 5
"""The number of equal ids that a message lists."""
_LATER, _AGAIN = " Try again when they have ended.", " Run the move again."
_INDEXED = "Files of vector stores are indexed now"
# The seconds for which the processes begin to index no file of the old owner. The last unit ends this time early.
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
# Expired rows may have equal keys, and nobody needs them.
_DROP_EXPIRED_KEYS = f"DELETE FROM idempotency WHERE owner IN (:both...) AND NOT {_LIVE_KEY}"
_MOVE_KEYS = "UPDATE idempotency SET owner = :new WHERE owner = :old"
_MOVE_REQUESTS = (
    "UPDATE requests SET owner = :new WHERE owner = :old",
    "UPDATE request_records SET owner = :new WHERE owner = :old",
)
_LEFT_CHAINS = "SELECT id FROM chains WHERE owner = :old ORDER BY id"
_LEFT_CONVERSATIONS = "SELECT id FROM conversations WHERE owner = :old ORDER BY id"

USAGE_COLUMNS = ("day", "owner", "model", "upstream", *NUMBERS)


@dataclass(frozen=True, slots=True)
class MoveSql:
    """The statements that differ by backend. Each tuple is one unit.

    `chains` and `conversations` move the rows with the ids `:ids` that no request uses. `files` and `usage` move all of
    them. `rest` deletes rows that count nothing any more. `indexing` finds the vector store files of the old owner that
    a process indexes now. `hold` delays the indexing of waiting files by `:lease` milliseconds, and `let_go` ends the
    delay for both owners.
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
    """Moves data from `old` to `new`. The caller closes the tables.

    `vectors`: the tables of the database that holds the vector stores, None if there is no such database.
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
            return [f"{old} is the owner on both sides."]
        found = [await self._told(self._tables, sql, f"Both owners have {what}") for what, sql in _EQUAL.items()]
        found += [await self._told(one, _EQUAL_KEYS, "Both owners have idempotency keys") for one in self._databases()]
        found.append(await self._told(self._tables, JOBS, f"{old} has unfinished background responses", _LATER))
        found.append(await self._told(self._tables, LOCKED, "Responses run in conversations", _LATER))
        found.append(await self._told(self._tables, _HELD_KEYS, "Requests with idempotency keys run", _LATER))
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
            await self._told(self._tables, _LEFT_CHAINS, "Chains came into use during the move", _AGAIN),
            await self._told(self._tables, _LEFT_CONVERSATIONS, "Conversations came into use during the move", _AGAIN),
        ]
        if any(left):
            raise NotMovable(" ".join(one for one in left if one))
        await self._unit(self._tables, self._sql.rest)
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
