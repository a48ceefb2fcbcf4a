"""The rows of prompts and their versions: `PromptRows` over PostgreSQL.

Lives here: the SQL. Not here: what it means (`stores/kept_prompts.py`), connections.

Invariant: every statement names the owner.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from antiphon.engine.ports.actions import OnceOnly, StoredPrompt
from antiphon.engine.ports.state import PageQuery, PromptChange
from antiphon.stores.kept_prompts import kept_prompt
from antiphon.stores.postgres.certain import certainly
from antiphon.stores.postgres.database import Connection, Database, Record
from antiphon.stores.postgres.idempotency import PostgresIdempotency
from antiphon.stores.postgres.making import make
from antiphon.stores.postgres.page_sql import within
from antiphon.stores.postgres.values import milliseconds

# $1 the prompt, $2 the owner, in all of them.
INSERT = """
WITH made AS (
  INSERT INTO prompts (id, owner, name, default_version, last_version, created_at, updated_at, metadata)
  VALUES ($1, $2, $3, 1, 1, $4, $4, $5) RETURNING id
)
INSERT INTO prompt_versions (prompt_id, version, created_at, body) SELECT id, 1, $4, $6 FROM made
"""
_COLUMNS = """
SELECT p.id, p.name, v.version, p.default_version, p.last_version, p.created_at, p.updated_at, p.metadata, v.body
"""
GET = f"""{_COLUMNS}
FROM prompts p JOIN prompt_versions v ON v.prompt_id = p.id AND v.version = coalesce($3, p.default_version)
WHERE p.id = $1 AND p.owner = $2
"""
# What is null stays as it is. $7: the new version's body, if there is to be one.
CHANGE = """
WITH changed AS (
  UPDATE prompts SET name = CASE WHEN $3 THEN $4 ELSE name END, metadata = coalesce($5, metadata),
    updated_at = greatest(updated_at, $6), last_version = last_version + ($7::bytea IS NOT NULL)::integer,
    default_version = CASE WHEN $7::bytea IS NOT NULL AND $8 THEN last_version + 1 ELSE default_version END
  WHERE id = $1 AND owner = $2 AND ($7::bytea IS NULL OR $9::integer IS NULL OR last_version = $9)
  RETURNING id, last_version
), added AS (
  INSERT INTO prompt_versions (prompt_id, version, created_at, body)
  SELECT id, last_version, $6, $7 FROM changed WHERE $7::bytea IS NOT NULL
)
SELECT last_version FROM changed
"""
SET_DEFAULT = """
UPDATE prompts SET default_version = $3, updated_at = greatest(updated_at, $4)
WHERE id = $1 AND owner = $2
  AND EXISTS (SELECT 1 FROM prompt_versions v WHERE v.prompt_id = prompts.id AND v.version = $3)
RETURNING 1
"""
DELETE = "DELETE FROM prompts WHERE id = $1 AND owner = $2 RETURNING 1"

# $1 the owner. Strictly behind the edge, which is the cursor's place ($3) or the list's end.
_LIST = f"""{_COLUMNS}
FROM prompts p JOIN prompt_versions v ON v.prompt_id = p.id AND v.version = p.default_version
WHERE p.owner = $1 AND ($3::text IS NULL OR {{behind}}) ORDER BY p.created_at {{order}}, p.id {{order}} LIMIT $2
"""
_BEHIND = "(p.created_at, p.id) {sign} (SELECT created_at, id FROM prompts WHERE id = $3 AND owner = $1)"
LIST_FORWARD = _LIST.format(order="ASC", behind=_BEHIND.format(sign=">"))
LIST_BACKWARD = _LIST.format(order="DESC", behind=_BEHIND.format(sign="<"))
# Between the versions $3 and $4, at most $5 of them and $6 bytes.
_VERSIONS = f"""
WITH page (place, size) AS (
  SELECT v.version, length(v.body) FROM prompts p JOIN prompt_versions v ON v.prompt_id = p.id
  WHERE p.id = $1 AND p.owner = $2 AND v.version > $3 AND v.version < $4
  ORDER BY v.version {{order}} LIMIT $5
),
{{cut}}
{_COLUMNS.rstrip().removesuffix("v.body")} CASE WHEN cut.fits THEN v.body END AS body
FROM cut JOIN prompts p ON p.id = $1 AND p.owner = $2
JOIN prompt_versions v ON v.prompt_id = p.id AND v.version = cut.place
ORDER BY cut.place {{order}}
"""
VERSIONS_FORWARD = _VERSIONS.format(order="ASC", cut=within("place ASC", "$6"))
VERSIONS_BACKWARD = _VERSIONS.format(order="DESC", cut=within("place DESC", "$6"))


class PostgresPromptRows:
    """`PromptRows` on connections that the caller closes."""

    def __init__(self, database: Database, keys: PostgresIdempotency) -> None:
        self._database = database
        self._keys = keys

    async def find(self, owner: str, prompt_id: str, version: int | None) -> StoredPrompt | None:
        """See `PromptRows.find`."""
        rows = await self._database.fetch(GET, prompt_id, owner, version)
        return kept_prompt(rows[0]) if rows else None

    async def page(self, owner: str, page: PageQuery, behind: str | None) -> Sequence[StoredPrompt]:
        """See `PromptRows.page`."""
        sql = LIST_BACKWARD if page.backward else LIST_FORWARD
        return [kept_prompt(row) for row in await self._database.fetch(sql, owner, page.limit + 1, behind)]

    async def versions(
        self, owner: str, prompt_id: str, page: PageQuery, low: int, high: int, size: int
    ) -> Sequence[Record]:
        """See `PromptRows.versions`."""
        sql = VERSIONS_BACKWARD if page.backward else VERSIONS_FORWARD
        return await self._database.fetch(sql, prompt_id, owner, low, high, page.limit + 1, size)

    async def insert(self, owner: str, prompt: StoredPrompt, once: OnceOnly | None) -> None:
        """See `PromptRows.insert`."""
        given = (prompt.id, owner, prompt.name, milliseconds(prompt.created_at), prompt.metadata, prompt.body)

        async def work(connection: Connection) -> None:
            await connection.execute(INSERT, *given)

        await make(self._database, self._keys, once, prompt.id, work)

    async def change(
        self, owner: str, prompt_id: str, change: PromptChange, at: float
    ) -> tuple[bool, StoredPrompt | None]:
        """See `PromptRows.change`."""
        given: tuple[Any, ...] = (change.renamed, change.name, change.metadata, milliseconds(at))
        new_version = (change.body, change.make_default, change.expected_version)

        async def work(connection: Connection) -> tuple[bool, StoredPrompt | None]:
            changed = await connection.fetch(CHANGE, prompt_id, owner, *given, *new_version)
            version = changed[0][0] if changed and change.body is not None else None
            found = await connection.fetch(GET, prompt_id, owner, version)
            return bool(changed), kept_prompt(found[0]) if found else None

        return await certainly(self._database, work)

    async def set_default(self, owner: str, prompt_id: str, version: int, at: float) -> bool:
        """See `PromptRows.set_default`."""
        given = (prompt_id, owner, version, milliseconds(at))
        return bool(await self._database.write(SET_DEFAULT, *given, again=True))

    async def delete(self, owner: str, prompt_id: str) -> bool:
        """See `PromptRows.delete`."""

        async def work(connection: Connection) -> bool:
            return bool(await connection.fetch(DELETE, prompt_id, owner))

        return await certainly(self._database, work)
