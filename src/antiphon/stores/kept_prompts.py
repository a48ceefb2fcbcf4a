"""What it means to keep a prompt: the `PromptStore` over any backend's rows.

Lives here: cursors and pages, what a change comes to, and how rows become values. Not here: the rows
(`sqlite/prompts.py`, `postgres/prompts.py`), what a template may hold (`translation/prompt_template.py`).

Invariant: a version never changes once it is there, and its number is given out by the prompt's row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from antiphon.engine.ports.actions import OnceOnly, StoredPrompt
from antiphon.engine.ports.state import PageQuery, PromptChange, PromptPage
from antiphon.errors import VersionConflict, unknown_cursor
from antiphon.ids import Clock, now
from antiphon.stores.pages import Row, cut_off


class PromptRows(Protocol):
    """The rows of prompts and their versions; every statement names the owner. Every method raises `StoreError`."""

    async def find(self, owner: str, prompt_id: str, version: int | None) -> StoredPrompt | None:
        """This version, or the default one, or None."""

    async def page(self, owner: str, page: PageQuery, behind: str | None) -> Sequence[StoredPrompt]:
        """One more than `page.limit`, where there are so many, behind this prompt, each in its default version."""

    async def versions(
        self, owner: str, prompt_id: str, page: PageQuery, low: int, high: int, size: int
    ) -> Sequence[Row]:
        """Rows of `kept_prompt` between two versions, one more than `page.limit`, where there are so many; no `body`
        where they take more than `size` bytes."""

    async def insert(self, owner: str, prompt: StoredPrompt, once: OnceOnly | None) -> None:
        """The prompt with its first version. Raises `AlreadyMade` and `ApiError`."""

    async def change(
        self, owner: str, prompt_id: str, change: PromptChange, at: float
    ) -> tuple[bool, StoredPrompt | None]:
        """Whether the change was made, all of it or none, and the version that it came to, if there is such a
        prompt."""

    async def set_default(self, owner: str, prompt_id: str, version: int, at: float) -> bool:
        """Make this version the default; False when there is none."""

    async def delete(self, owner: str, prompt_id: str) -> bool:
        """The prompt goes with all its versions; False when there is none."""


class KeptPrompts:
    """`PromptStore` on rows that the caller closes."""

    def __init__(self, prompts: PromptRows, *, page_bytes: int, clock: Clock = now) -> None:
        """`page_bytes`: where a page of versions ends before its rows do."""
        self._prompts = prompts
        self._page_bytes = page_bytes
        self._clock = clock
        self.delete = prompts.delete

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
        at = round(self._clock() * 1000) / 1000
        prompt = StoredPrompt(prompt_id, name, 1, 1, 1, at, at, metadata, body)
        await self._prompts.insert(owner, prompt, once)
        return prompt

    async def get(self, owner: str, prompt_id: str, version: int | None = None) -> StoredPrompt | None:
        """This version, or the default one; None when there is no such prompt or version."""
        return await self._prompts.find(owner, prompt_id, version)

    async def list(self, owner: str, page: PageQuery) -> PromptPage:
        """A page of the owner's prompts, each in its default version; `after` and `before` are meant in that order."""
        behind = None
        for name, cursor in page.cursors[:1]:
            if await self.get(owner, cursor) is None:
                raise unknown_cursor(name, "There is no prompt with this id")
            behind = cursor
        found = await self._prompts.page(owner, page, behind)
        return PromptPage(page.shown(found), has_more=len(found) > page.limit)

    async def versions(self, owner: str, prompt_id: str, page: PageQuery) -> PromptPage | None:
        """A page of a prompt's versions; see `PromptStore.versions`."""
        newest = await self.get(owner, prompt_id)
        if newest is None:
            return None
        for name, cursor in page.cursors:
            if not (cursor.isdecimal() and len(cursor) < 10 and int(cursor) > 0):
                raise unknown_cursor(name, "Versions are numbered from 1 on")
        low, high = page.bounds
        edges = (int(low or 0), int(high or newest.last_version + 1))
        rows = await self._prompts.versions(owner, prompt_id, page, *edges, self._page_bytes)
        found, cut = cut_off(rows)
        return PromptPage(page.shown([kept_prompt(row) for row in found]), has_more=cut or len(rows) > page.limit)

    async def change(self, owner: str, prompt_id: str, change: PromptChange) -> StoredPrompt | None:
        """Make the change, all of it or none; returns the version that is its result. Raises `VersionConflict`."""
        changed, found = await self._prompts.change(owner, prompt_id, change, self._clock())
        if not changed and found is not None:
            raise VersionConflict(found.last_version)
        return found

    async def set_default(self, owner: str, prompt_id: str, version: int) -> StoredPrompt | None:
        """Make this version the default; None when there is no such prompt or version."""
        changed = await self._prompts.set_default(owner, prompt_id, version, self._clock())
        return await self.get(owner, prompt_id) if changed else None


def kept_prompt(row: Row) -> StoredPrompt:
    """The prompt of a row that has a column of each name."""
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
