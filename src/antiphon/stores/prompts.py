"""What it means to keep a prompt: the `PromptStore` over SQLite.

Lives here: the SQL by name for prompts and their versions, and how rows become values. Not here: what a template may
hold (`translation/prompt_template.py`), threads, connections and transactions.

Invariant: a version never changes once it is there, its number is given out by the prompt's row, and every statement
names the owner.
"""

from __future__ import annotations

from typing import Any

from antiphon.engine.actions import StoredPrompt
from antiphon.engine.ports import PageQuery, PromptChange, PromptPage
from antiphon.errors import InvalidRequest, VersionConflict
from antiphon.ids import Clock, now
from antiphon.stores.sqlite_readers import Row, SqliteReaders
from antiphon.stores.sqlite_writer import RowsMissing, SqliteWriter, Statement

__all__ = ["SqlitePromptStore"]

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
WHERE p.owner = :owner {{behind}} ORDER BY p.created_at {{order}}, p.id {{order}} LIMIT :most
"""
_BEHIND = """
AND (p.created_at, p.id) {sign} (SELECT created_at, id FROM prompts WHERE id = :cursor AND owner = :owner)
"""
LIST_FORWARD = _LIST.format(order="ASC", behind="")
LIST_BACKWARD = _LIST.format(order="DESC", behind="")
LIST_FORWARD_BEHIND = _LIST.format(order="ASC", behind=_BEHIND.format(sign=">"))
LIST_BACKWARD_BEHIND = _LIST.format(order="DESC", behind=_BEHIND.format(sign="<"))
VERSIONS = f"""{_COLUMNS}
FROM prompts p JOIN prompt_versions v ON v.prompt_id = p.id
WHERE p.id = :id AND p.owner = :owner ORDER BY v.version DESC
"""

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

    def __init__(self, writer: SqliteWriter, readers: SqliteReaders, *, clock: Clock = now) -> None:
        self._writer = writer
        self._readers = readers
        self._clock = clock

    async def create(self, owner: str, prompt_id: str, name: str | None, metadata: bytes, body: bytes) -> StoredPrompt:
        """Make a prompt whose first version is `body`."""
        at = round(self._clock() * 1000)
        named = {"id": prompt_id, "owner": owner, "name": name, "metadata": metadata, "body": body, "at": at}
        await self._writer.run([Statement(INSERT_PROMPT, named), Statement(INSERT_VERSION, named, rows=1)])
        return StoredPrompt(prompt_id, name, 1, 1, 1, at / 1000, at / 1000, metadata, body)

    async def get(self, owner: str, prompt_id: str, version: int | None = None) -> StoredPrompt | None:
        """This version, or the default one; None when there is no such prompt or version."""
        rows = await self._readers.fetch(GET_PROMPT, {"id": prompt_id, "owner": owner, "version": version})
        return _prompt(rows[0]) if rows else None

    async def list(self, owner: str, page: PageQuery) -> PromptPage:
        """A page of the owner's prompts, each in its default version; `after` and `before` are meant in that order."""
        cursor = page.after if page.after is not None else page.before
        turned = page.before is not None and page.after is None
        backward = page.descending != turned
        if cursor is None:
            sql = LIST_BACKWARD if backward else LIST_FORWARD
        else:
            if await self.get(owner, cursor) is None:
                name = "before" if turned else "after"
                raise InvalidRequest(f"There is no prompt with this id: '{name}'.", param=name)
            sql = LIST_BACKWARD_BEHIND if backward else LIST_FORWARD_BEHIND
        rows = await self._readers.fetch(sql, {"owner": owner, "cursor": cursor, "most": page.limit + 1})
        shown = [_prompt(row) for row in rows[: page.limit]]
        if turned:
            shown.reverse()
        return PromptPage(tuple(shown), has_more=len(rows) > page.limit)

    async def versions(self, owner: str, prompt_id: str) -> tuple[StoredPrompt, ...]:
        """All versions, newest first; empty when there is no such prompt."""
        rows = await self._readers.fetch(VERSIONS, {"id": prompt_id, "owner": owner})
        return tuple(_prompt(row) for row in rows)

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
            "at": round(self._clock() * 1000),
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
        named = {"id": prompt_id, "owner": owner, "version": version, "at": round(self._clock() * 1000)}
        (count,) = await self._writer.run([Statement(SET_DEFAULT, named)])
        return await self.get(owner, prompt_id) if count else None

    async def delete(self, owner: str, prompt_id: str) -> bool:
        """Delete the prompt with all its versions; False when there is none."""
        (count,) = await self._writer.run([Statement(DELETE_PROMPT, {"id": prompt_id, "owner": owner})])
        return bool(count)


def _prompt(row: Row) -> StoredPrompt:
    return StoredPrompt(
        id=row[0],
        name=row[1],
        version=row[2],
        default_version=row[3],
        last_version=row[4],
        created_at=row[5] / 1000,
        updated_at=row[6] / 1000,
        metadata=row[7],
        body=row[8],
    )
