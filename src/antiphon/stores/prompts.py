"""Stores prompts and their versions in SQLite or PostgreSQL.

Lives here: the SQL of prompts and their versions, the pages of lists, and the detection of conflicting changes. Not
here: how a backend runs statements (`tables.py`), the syntax of a template (`translation/request/prompt_template.py`).

Invariants: every statement selects prompts by their owner. A stored version never changes. A counter in the prompt's
row assigns the version numbers.
"""

from __future__ import annotations

from functools import partial

from antiphon.engine.ports.actions import OnceOnly, StoredPrompt
from antiphon.engine.ports.state import Page, PageQuery, PromptChange
from antiphon.errors import VersionConflict, unknown_cursor
from antiphon.ids import Clock, now
from antiphon.stores.bodies import PLAIN, Bodies
from antiphon.stores.idempotency import IdempotencyStore
from antiphon.stores.tables import (
    Row,
    RowsMissing,
    Statement,
    Tables,
    both_orders,
    byte_limit,
    check_cursors,
    count_by_owner,
    cut_off,
    milliseconds,
    run_required,
)

INSERT = """
INSERT INTO prompts (id, owner, name, default_version, last_version, created_at, updated_at, metadata)
VALUES (:id, :owner, :name, 1, 1, :at, :at, :metadata)
"""
INSERT_VERSION = """
INSERT INTO prompt_versions (prompt_id, version, created_at, body)
SELECT id, last_version, :at, :body FROM prompts WHERE id = :id AND owner = :owner
"""
_COLUMNS = """
SELECT p.id, p.name, v.version, p.default_version, p.last_version, p.created_at, p.updated_at, p.metadata
"""
GET = f"""{_COLUMNS}, v.body
FROM prompts p JOIN prompt_versions v
  ON v.prompt_id = p.id AND v.version = coalesce(CAST(:version AS integer), p.default_version)
WHERE p.id = :id AND p.owner = :owner
"""
# Selects the prompts after the cursor in list order, or all prompts if `:cursor` is null.
LIST = both_orders(f"""{_COLUMNS}, v.body
FROM prompts p JOIN prompt_versions v ON v.prompt_id = p.id AND v.version = p.default_version
WHERE p.owner = :owner
  AND (CAST(:low AS text) IS NULL OR (p.created_at, p.id) > (
    SELECT created_at, id FROM prompts WHERE id = :low AND owner = :owner
  ))
  AND (CAST(:high AS text) IS NULL OR (p.created_at, p.id) < (
    SELECT created_at, id FROM prompts WHERE id = :high AND owner = :owner
  ))
ORDER BY p.created_at {{order}}, p.id {{order}} LIMIT :limit
""")
VERSIONS = both_orders(f"""
WITH page (place, size) AS (
  SELECT v.version, length(v.body) FROM prompts p JOIN prompt_versions v ON v.prompt_id = p.id
  WHERE p.id = :id AND p.owner = :owner AND v.version > :low AND v.version < :high
  ORDER BY v.version {{order}} LIMIT :limit
),
{byte_limit("place {order}")}
{_COLUMNS}, CASE WHEN cut.fits THEN v.body END AS body
FROM cut JOIN prompts p ON p.id = :id AND p.owner = :owner
JOIN prompt_versions v ON v.prompt_id = p.id AND v.version = cut.place
ORDER BY cut.place {{order}}
""")

# A null `:metadata` leaves the metadata unchanged, and a false `:renamed` leaves the name unchanged.
UPDATE = """
UPDATE prompts SET name = CASE WHEN :renamed THEN :name ELSE name END, metadata = coalesce(:metadata, metadata),
                   updated_at = greatest(updated_at, :at)
WHERE id = :id AND owner = :owner
"""
NEXT_VERSION = """
UPDATE prompts SET last_version = last_version + 1
WHERE id = :id AND owner = :owner AND (CAST(:expected AS integer) IS NULL OR last_version = :expected)
RETURNING last_version
"""
DEFAULT_IS_LAST = "UPDATE prompts SET default_version = last_version WHERE id = :id AND owner = :owner"
SET_DEFAULT = """
UPDATE prompts SET default_version = :version, updated_at = greatest(updated_at, :at)
WHERE id = :id AND owner = :owner
  AND EXISTS (SELECT 1 FROM prompt_versions v WHERE v.prompt_id = prompts.id AND v.version = :version)
"""
DELETE = "DELETE FROM prompts WHERE id = :id AND owner = :owner"


class PromptStore:
    """Stores prompts and their versions in a database that the caller closes.

    Every method raises `StoreError` when the database fails. `metadata` and `body` are JSON objects in bytes.
    """

    def __init__(
        self, tables: Tables, keys: IdempotencyStore, *, page_bytes: int, bodies: Bodies = PLAIN, clock: Clock = now
    ) -> None:
        """`page_bytes`: the maximum bytes of a page of versions. `bodies` encrypts templates and metadata."""
        self._tables = tables
        self._keys = keys
        self._page_bytes = page_bytes
        self._bodies = bodies
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
        """Create a prompt with `body` as its first version. Raises `AlreadyMade` when the idempotency key `once`
        already belongs to a created prompt."""
        at = milliseconds(self._clock())
        seal = self._bodies.seal
        named: dict[str, object] = {"id": prompt_id, "owner": owner, "name": name, "at": at}
        named |= {"metadata": seal(metadata), "body": seal(body)}
        unit = [Statement(INSERT, named), Statement(INSERT_VERSION, named, rows=1)]
        await self._keys.make(once, prompt_id, unit, [Statement(DELETE, named)])
        return StoredPrompt(prompt_id, name, 1, 1, 1, at / 1000, at / 1000, metadata, body)

    async def made(self, once: OnceOnly) -> str | None:
        """Return the id of the prompt that an earlier request with the key `once` created, or None.

        Raises an error when an earlier request used the same key with another body.
        """
        return await self._keys.made(once)

    async def get(self, owner: str, prompt_id: str, version: int | None = None) -> StoredPrompt | None:
        """Return this version of the prompt, or its default version if `version` is None. Returns None when the prompt
        or the version does not exist."""
        rows = await self._tables.fetch(GET, {"id": prompt_id, "owner": owner, "version": version})
        return self._prompt(rows[0]) if rows else None

    async def counts(self) -> dict[str, int]:
        """Return the number of prompts of each owner."""
        return await count_by_owner(self._tables, "prompts")

    async def list(self, owner: str, page: PageQuery) -> Page[StoredPrompt]:
        """Return a page of the owner's prompts by creation time, each in its default version. Cursors are prompt ids.
        An unknown cursor raises `InvalidRequest`."""
        await check_cursors(page, partial(self.get, owner), "There is no prompt with this id")
        low, high = page.bounds
        named = {"owner": owner, "low": low, "high": high, "limit": page.limit + 1}
        rows = await self._tables.fetch(LIST[page.backward], named)
        return Page(page.shown([self._prompt(row) for row in rows]), has_more=len(rows) > page.limit)

    async def versions(self, owner: str, prompt_id: str, page: PageQuery) -> Page[StoredPrompt] | None:
        """Return a page of a prompt's versions by number, or None when the prompt does not exist. Cursors are version
        numbers.

        A page of large versions may have fewer than `limit` versions and set `has_more`. An invalid cursor raises
        `InvalidRequest`.
        """
        newest = await self.get(owner, prompt_id)
        if newest is None:
            return None
        for name, cursor in page.cursors:
            if not (cursor.isdecimal() and len(cursor) < 10 and int(cursor) > 0):
                raise unknown_cursor(name, cursor, "Versions are numbered from 1 on")
        low, high = page.bounds
        named: dict[str, object] = {"id": prompt_id, "owner": owner, "limit": page.limit + 1, "bytes": self._page_bytes}
        named |= {"low": int(low or 0), "high": int(high or newest.last_version + 1)}
        rows = await self._tables.fetch(VERSIONS[page.backward], named)
        found, cut = cut_off(rows)
        return Page(page.shown([self._prompt(row) for row in found]), has_more=cut or len(rows) > page.limit)

    async def change(self, owner: str, prompt_id: str, change: PromptChange) -> StoredPrompt | None:
        """Apply the change in one transaction. Returns the new version, or the default version if the change adds none.
        Returns None when the prompt does not exist.

        Raises `VersionConflict` (409) when the prompt's last version is not `change.expected_version`."""
        named = {
            "id": prompt_id,
            "owner": owner,
            "renamed": change.renamed,
            "name": change.name,
            "metadata": self._sealed(change.metadata),
            "body": self._sealed(change.body),
            "expected": change.expected_version,
            "at": milliseconds(self._clock()),
        }
        made: list[Row] = []
        unit = [Statement(UPDATE, named, rows=1)]
        if change.body is not None:
            unit += [Statement(NEXT_VERSION, named, rows=1, into=made), Statement(INSERT_VERSION, named, rows=1)]
            if change.make_default:
                unit.append(Statement(DEFAULT_IS_LAST, named, rows=1))
        try:
            await self._tables.run(unit)
        except RowsMissing:
            found = await self.get(owner, prompt_id)
            if found is not None:
                raise VersionConflict(found.last_version) from None
            return None
        return await self.get(owner, prompt_id, made[0][0] if made else None)

    async def set_default(self, owner: str, prompt_id: str, version: int) -> StoredPrompt | None:
        """Make this version the default and return it. Returns None when the prompt or the version does not exist."""
        named = {"id": prompt_id, "owner": owner, "version": version, "at": milliseconds(self._clock())}
        if not await run_required(self._tables, Statement(SET_DEFAULT, named, rows=1)):
            return None
        return await self.get(owner, prompt_id)

    async def delete(self, owner: str, prompt_id: str) -> bool:
        """Delete the prompt with all its versions. Returns False when the prompt does not exist."""
        return await run_required(self._tables, Statement(DELETE, {"id": prompt_id, "owner": owner}, rows=1))

    def _sealed(self, body: bytes | None) -> bytes | None:
        return None if body is None else self._bodies.seal(body)

    def _prompt(self, row: Row) -> StoredPrompt:
        return StoredPrompt(
            id=row["id"],
            name=row["name"],
            version=row["version"],
            default_version=row["default_version"],
            last_version=row["last_version"],
            created_at=row["created_at"] / 1000,
            updated_at=row["updated_at"] / 1000,
            metadata=self._bodies.open(row["metadata"]),
            body=self._bodies.open(row["body"]),
        )
