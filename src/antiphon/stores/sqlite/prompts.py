"""What it means to keep a prompt: the `PromptStore` over SQLite.

Lives here: the SQL by name for prompts and their versions, and how rows become values. Not here: what a template may
hold (`translation/prompt_template.py`), threads, connections and transactions.

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
from antiphon.stores.sqlite.database import milliseconds
from antiphon.stores.sqlite.idempotency import SqliteIdempotency
from antiphon.stores.sqlite.page_sql import within
from antiphon.stores.sqlite.readers import Row, SqliteReaders
from antiphon.stores.sqlite.statements import RowsMissing, Statement
from antiphon.stores.sqlite.writer import SqliteWriter

INSERT_PROMPT = """
INSERT INTO prompts (id, owner, name, default_version, last_version, created_at, updated_at, metadata)
VALUES (:id, :owner, :name, 1, 1, :at, :at, :metadata)
"""
INSERT_VERSION = """
INSERT INTO prompt_versions (prompt_id, version, created_at, body)
SELECT id, last_version, :at, :body FROM prompts WHERE id = :id AND owner = :owner
"""
_COLUMNS = """
SELECT p.id, p.name, v.version, p.default_version, p.last_version, p.created_at, p.updated_at, p.metadata, v.body
"""
GET_PROMPT = f"""{_COLUMNS}
FROM prompts p JOIN prompt_versions v ON v.prompt_id = p.id AND v.version = ifnull(:version, p.default_version)
WHERE p.id = :id AND p.owner = :owner
"""
# Strictly behind the edge, which is the cursor's place or the list's end.
_LIST = f"""{_COLUMNS}
FROM prompts p JOIN prompt_versions v ON v.prompt_id = p.id AND v.version = p.default_version
WHERE p.owner = :owner {{behind}} ORDER BY p.created_at {{order}}, p.id {{order}} LIMIT :limit
"""
_BEHIND = """
AND (p.created_at, p.id) {sign} (SELECT created_at, id FROM prompts WHERE id = :cursor AND owner = :owner)
"""
LIST_FORWARD = _LIST.format(order="ASC", behind="")
LIST_BACKWARD = _LIST.format(order="DESC", behind="")
LIST_FORWARD_BEHIND = _LIST.format(order="ASC", behind=_BEHIND.format(sign=">"))
LIST_BACKWARD_BEHIND = _LIST.format(order="DESC", behind=_BEHIND.format(sign="<"))
_VERSIONS = f"""
WITH page (place, size) AS (
  SELECT v.version, length(v.body) FROM prompts p JOIN prompt_versions v ON v.prompt_id = p.id
  WHERE p.id = :id AND p.owner = :owner AND v.version > :low AND v.version < :high
  ORDER BY v.version {{order}} LIMIT :limit
),
{{cut}}
{_COLUMNS.rstrip().removesuffix("v.body")} CASE WHEN cut.fits THEN v.body END AS body
FROM cut JOIN prompts p ON p.id = :id JOIN prompt_versions v ON v.prompt_id = p.id AND v.version = cut.place
ORDER BY cut.place {{order}}
"""
VERSIONS_FORWARD = _VERSIONS.format(order="ASC", cut=within("place ASC"))
VERSIONS_BACKWARD = _VERSIONS.format(order="DESC", cut=within("place DESC"))

# What is null stays as it is.
UPDATE_PROMPT = """
UPDATE prompts SET name = CASE WHEN :renamed THEN :name ELSE name END, metadata = ifnull(:metadata, metadata),
                   updated_at = max(updated_at, :at)
WHERE id = :id AND owner = :owner
"""
NEXT_VERSION = """
UPDATE prompts SET last_version = last_version + 1, updated_at = max(updated_at, :at)
WHERE id = :id AND owner = :owner AND (:expected IS NULL OR last_version = :expected)
"""
DEFAULT_IS_LAST = "UPDATE prompts SET default_version = last_version WHERE id = :id AND owner = :owner"
SET_DEFAULT = """
UPDATE prompts SET default_version = :version, updated_at = max(updated_at, :at)
WHERE id = :id AND owner = :owner
  AND EXISTS (SELECT 1 FROM prompt_versions v WHERE v.prompt_id = prompts.id AND v.version = :version)
"""
DELETE_PROMPT = "DELETE FROM prompts WHERE id = :id AND owner = :owner"


class SqlitePromptStore:
    """`PromptStore` on a writer and readers that are somebody else's to close."""

    def __init__(
        self,
        writer: SqliteWriter,
        readers: SqliteReaders,
        *,
        keys: SqliteIdempotency,
        page_bytes: int,
        clock: Clock = now,
    ) -> None:
        """`page_bytes`: where a page of versions ends before its rows do."""
        self._page_bytes = page_bytes
        self._keys = keys
        self._writer = writer
        self._readers = readers
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
        named = {"id": prompt_id, "owner": owner, "name": name, "metadata": metadata, "body": body, "at": at}
        unit = [Statement(INSERT_PROMPT, named), Statement(INSERT_VERSION, named, rows=1)]
        await self._keys.make(once, prompt_id, unit, [Statement(DELETE_PROMPT, named)])
        return StoredPrompt(prompt_id, name, 1, 1, 1, at / 1000, at / 1000, metadata, body)

    async def get(self, owner: str, prompt_id: str, version: int | None = None) -> StoredPrompt | None:
        """This version, or the default one; None when there is no such prompt or version."""
        rows = await self._readers.fetch(GET_PROMPT, {"id": prompt_id, "owner": owner, "version": version})
        return _prompt(rows[0]) if rows else None

    async def list(self, owner: str, page: PageQuery) -> PromptPage:
        """A page of the owner's prompts, each in its default version; `after` and `before` are meant in that order."""
        named = {"owner": owner, "cursor": None, "limit": page.limit + 1}
        sql = LIST_BACKWARD if page.backward else LIST_FORWARD
        for name, cursor in page.cursors[:1]:
            if await self.get(owner, cursor) is None:
                raise unknown_cursor(name, "There is no prompt with this id")
            named["cursor"] = cursor
            sql = LIST_BACKWARD_BEHIND if page.backward else LIST_FORWARD_BEHIND
        rows = await self._readers.fetch(sql, named)
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
        named = {
            "id": prompt_id,
            "owner": owner,
            "low": int(low or 0),
            "high": int(high or newest.last_version + 1),
            "limit": page.limit + 1,
            "bytes": self._page_bytes,
        }
        rows = await self._readers.fetch(VERSIONS_BACKWARD if page.backward else VERSIONS_FORWARD, named)
        found, cut = cut_off(rows)
        shown = page.shown([_prompt(row) for row in found])
        return PromptPage(shown, has_more=cut or len(rows) > page.limit)

    async def change(self, owner: str, prompt_id: str, change: PromptChange) -> StoredPrompt | None:
        """Make the change, all of it or none; returns the version that is its result. Raises `VersionConflict`."""
        named: dict[str, Any] = {
            "id": prompt_id,
            "owner": owner,
            "renamed": change.renamed,
            "name": change.name,
            "metadata": change.metadata,
            "body": change.body,
            "expected": change.expected_version,
            "at": milliseconds(self._clock()),
        }
        unit = [Statement(UPDATE_PROMPT, named, rows=1)]
        if change.body is not None:
            unit += [Statement(NEXT_VERSION, named, rows=1), Statement(INSERT_VERSION, named, rows=1)]
            if change.make_default:
                unit.append(Statement(DEFAULT_IS_LAST, named, rows=1))
        try:
            await self._writer.run(unit)
        except RowsMissing:
            found = await self.get(owner, prompt_id)
            if found is None:
                return None
            raise VersionConflict(found.last_version) from None
        found = await self.get(owner, prompt_id)
        if change.body is not None and found is not None and not change.make_default:
            return await self.get(owner, prompt_id, found.last_version)
        return found

    async def set_default(self, owner: str, prompt_id: str, version: int) -> StoredPrompt | None:
        """Make this version the default; None when there is no such prompt or version."""
        named = {"id": prompt_id, "owner": owner, "version": version, "at": milliseconds(self._clock())}
        (count,) = await self._writer.run([Statement(SET_DEFAULT, named)])
        return await self.get(owner, prompt_id) if count else None

    async def delete(self, owner: str, prompt_id: str) -> bool:
        """Delete the prompt with all its versions; False when there is none."""
        (count,) = await self._writer.run([Statement(DELETE_PROMPT, {"id": prompt_id, "owner": owner})])
        return bool(count)


def _prompt(row: Row) -> StoredPrompt:
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
