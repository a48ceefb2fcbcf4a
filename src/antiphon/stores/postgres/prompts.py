"""What it means to keep a prompt: the `PromptStore` over PostgreSQL.

Lives here: the SQL by name for prompts and their versions, and how rows become values. Not here: what a template may
hold (`translation/prompt_template.py`), connections.

Invariant: a version never changes once it is there, its number is given out by the prompt's row, and every statement
names the owner.
"""

from __future__ import annotations

from typing import Any

from antiphon.engine.ports.actions import OnceOnly, StoredPrompt
from antiphon.engine.ports.state import PageQuery, PromptChange, PromptPage
from antiphon.errors import VersionConflict, unknown_cursor
from antiphon.ids import Clock, now
from antiphon.stores.pages import cut_off
from antiphon.stores.postgres.certain import certainly
from antiphon.stores.postgres.database import Connection, Database, Record
from antiphon.stores.postgres.making import KeysInTransactions, make
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


class PostgresPromptStore:
    """`PromptStore` on connections that are somebody else's to close."""

    def __init__(self, database: Database, *, keys: KeysInTransactions, page_bytes: int, clock: Clock = now) -> None:
        """`page_bytes`: where a page of versions ends before its rows do."""
        self._database = database
        self._keys = keys
        self._page_bytes = page_bytes
        self._clock = clock

    async def create(
        self,
        owner: str,
        prompt_id: str,
        name: str | None,
        metadata: bytes,
        body: bytes,
        once: OnceOnly | None = None,
    ) -> StoredPrompt:
        """Make a prompt whose first version is `body`."""
        at = milliseconds(self._clock())

        async def work(connection: Connection) -> None:
            await connection.execute(INSERT, prompt_id, owner, name, at, metadata, body)

        await make(self._database, self._keys, once, prompt_id, work)
        return StoredPrompt(prompt_id, name, 1, 1, 1, at / 1000, at / 1000, metadata, body)

    async def get(self, owner: str, prompt_id: str, version: int | None = None) -> StoredPrompt | None:
        """This version, or the default one; None when there is no such prompt or version."""
        rows = await self._database.fetch(GET, prompt_id, owner, version)
        return _prompt(rows[0]) if rows else None

    async def list(self, owner: str, page: PageQuery) -> PromptPage:
        """A page of the owner's prompts, each in its default version; `after` and `before` are meant in that order."""
        behind = None
        for name, cursor in page.cursors[:1]:
            if await self.get(owner, cursor) is None:
                raise unknown_cursor(name, "There is no prompt with this id")
            behind = cursor
        sql = LIST_BACKWARD if page.backward else LIST_FORWARD
        rows = await self._database.fetch(sql, owner, page.limit + 1, behind)
        return PromptPage(page.shown([_prompt(row) for row in rows]), has_more=len(rows) > page.limit)

    async def versions(self, owner: str, prompt_id: str, page: PageQuery) -> PromptPage | None:
        """A page of a prompt's versions; see `PromptStore.versions`."""
        newest = await self.get(owner, prompt_id)
        if newest is None:
            return None
        for name, cursor in page.cursors:
            if not (cursor.isdecimal() and len(cursor) < 10 and int(cursor) > 0):
                raise unknown_cursor(name, "Versions are numbered from 1 on")
        low, high = page.bounds
        sql = VERSIONS_BACKWARD if page.backward else VERSIONS_FORWARD
        rows = await self._database.fetch(
            sql,
            prompt_id,
            owner,
            int(low or 0),
            int(high or newest.last_version + 1),
            page.limit + 1,
            self._page_bytes,
        )
        found, cut = cut_off(rows)
        shown = page.shown([_prompt(row) for row in found])
        return PromptPage(shown, has_more=cut or len(rows) > page.limit)

    async def change(self, owner: str, prompt_id: str, change: PromptChange) -> StoredPrompt | None:
        """Make the change, all of it or none; returns the version that is its result. Raises `VersionConflict`."""
        given: tuple[Any, ...] = (change.renamed, change.name, change.metadata, milliseconds(self._clock()))
        new_version = (change.body, change.make_default, change.expected_version)

        async def work(connection: Connection) -> StoredPrompt | None:
            changed = await connection.fetch(CHANGE, prompt_id, owner, *given, *new_version)
            version = changed[0][0] if changed and change.body is not None else None
            found = [_prompt(row) for row in await connection.fetch(GET, prompt_id, owner, version)]
            if not found:
                return None
            if not changed:
                raise VersionConflict(found[0].last_version)
            return found[0]

        return await certainly(self._database, work)

    async def set_default(self, owner: str, prompt_id: str, version: int) -> StoredPrompt | None:
        """Make this version the default; None when there is no such prompt or version."""
        at = milliseconds(self._clock())
        changed = await self._database.write(SET_DEFAULT, prompt_id, owner, version, at, again=True)
        return await self.get(owner, prompt_id) if changed else None

    async def delete(self, owner: str, prompt_id: str) -> bool:
        """Delete the prompt with all its versions; False when there is none."""

        async def work(connection: Connection) -> bool:
            return bool(await connection.fetch(DELETE, prompt_id, owner))

        return await certainly(self._database, work)


def _prompt(row: Record) -> StoredPrompt:
    return StoredPrompt(
        id=row["id"],
        name=row["name"],
        version=row["version"],
        default_version=row["default_version"],
        last_version=row["last_version"],
        created_at=row["created_at"] / 1000,
        updated_at=row["updated_at"] / 1000,
        metadata=row["metadata"],
        body=row["body"],
    )
