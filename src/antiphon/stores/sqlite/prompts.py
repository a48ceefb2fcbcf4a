"""The rows of prompts and their versions: `PromptRows` over SQLite.

Lives here: the SQL by name. Not here: what it means (`stores/kept_prompts.py`), threads, connections and transactions.

Invariant: every statement names the owner.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from antiphon.engine.ports.actions import OnceOnly, StoredPrompt
from antiphon.engine.ports.state import PageQuery, PromptChange
from antiphon.stores.kept_prompts import kept_prompt
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


class SqlitePromptRows:
    """`PromptRows` on a writer and readers that the caller closes."""

    def __init__(self, writer: SqliteWriter, readers: SqliteReaders, keys: SqliteIdempotency) -> None:
        self._writer = writer
        self._readers = readers
        self._keys = keys

    async def find(self, owner: str, prompt_id: str, version: int | None) -> StoredPrompt | None:
        """See `PromptRows.find`."""
        rows = await self._readers.fetch(GET_PROMPT, {"id": prompt_id, "owner": owner, "version": version})
        return kept_prompt(rows[0]) if rows else None

    async def page(self, owner: str, page: PageQuery, behind: str | None) -> Sequence[StoredPrompt]:
        """See `PromptRows.page`."""
        forward, backward = (
            (LIST_FORWARD, LIST_BACKWARD) if behind is None else (LIST_FORWARD_BEHIND, LIST_BACKWARD_BEHIND)
        )
        named = {"owner": owner, "cursor": behind, "limit": page.limit + 1}
        return [kept_prompt(row) for row in await self._readers.fetch(backward if page.backward else forward, named)]

    async def versions(
        self, owner: str, prompt_id: str, page: PageQuery, low: int, high: int, size: int
    ) -> Sequence[Row]:
        """See `PromptRows.versions`."""
        named = {"id": prompt_id, "owner": owner, "low": low, "high": high, "limit": page.limit + 1, "bytes": size}
        return await self._readers.fetch(VERSIONS_BACKWARD if page.backward else VERSIONS_FORWARD, named)

    async def insert(self, owner: str, prompt: StoredPrompt, once: OnceOnly | None) -> None:
        """See `PromptRows.insert`."""
        named = {
            "id": prompt.id,
            "owner": owner,
            "name": prompt.name,
            "metadata": prompt.metadata,
            "body": prompt.body,
            "at": milliseconds(prompt.created_at),
        }
        unit = [Statement(INSERT_PROMPT, named), Statement(INSERT_VERSION, named, rows=1)]
        await self._keys.make(once, prompt.id, unit, [Statement(DELETE_PROMPT, named)])

    async def change(
        self, owner: str, prompt_id: str, change: PromptChange, at: float
    ) -> tuple[bool, StoredPrompt | None]:
        """See `PromptRows.change`."""
        named: dict[str, Any] = {
            "id": prompt_id,
            "owner": owner,
            "renamed": change.renamed,
            "name": change.name,
            "metadata": change.metadata,
            "body": change.body,
            "expected": change.expected_version,
            "at": milliseconds(at),
        }
        unit = [Statement(UPDATE_PROMPT, named, rows=1)]
        if change.body is not None:
            unit += [Statement(NEXT_VERSION, named, rows=1), Statement(INSERT_VERSION, named, rows=1)]
            if change.make_default:
                unit.append(Statement(DEFAULT_IS_LAST, named, rows=1))
        try:
            await self._writer.run(unit)
        except RowsMissing:
            return False, await self.find(owner, prompt_id, None)
        found = await self.find(owner, prompt_id, None)
        if change.body is not None and found is not None and not change.make_default:
            found = await self.find(owner, prompt_id, found.last_version)
        return True, found

    async def set_default(self, owner: str, prompt_id: str, version: int, at: float) -> bool:
        """See `PromptRows.set_default`."""
        named = {"id": prompt_id, "owner": owner, "version": version, "at": milliseconds(at)}
        return bool((await self._writer.run([Statement(SET_DEFAULT, named)]))[0])

    async def delete(self, owner: str, prompt_id: str) -> bool:
        """See `PromptRows.delete`."""
        return bool((await self._writer.run([Statement(DELETE_PROMPT, {"id": prompt_id, "owner": owner})]))[0])
