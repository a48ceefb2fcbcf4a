"""A `PromptStore` in memory, for tests of all code above the store. The store passes the contract tests of prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from antiphon.engine.ports.actions import OnceOnly, StoredPrompt
from antiphon.engine.ports.state import Page, PageQuery, PromptChange
from antiphon.errors import InvalidRequest, StoreError, VersionConflict
from antiphon.stores.prompts import PromptStore
from tests.support.memory_conversations import page_of


class MemoryPromptStore(PromptStore):
    """Stores all versions of a prompt in a list."""

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self._all: dict[tuple[str, str], list[StoredPrompt]] = {}
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
        if any(prompt_id == each for _, each in self._all):
            raise StoreError("There is a prompt with this id already.")
        at = self._clock()
        made = StoredPrompt(prompt_id, name, 1, 1, 1, at, at, metadata, body)
        self._all[owner, prompt_id] = [made]
        return made

    async def made(self, once: OnceOnly) -> str | None:
        """Return None, because this store has no idempotency keys."""
        return None

    async def get(self, owner: str, prompt_id: str, version: int | None = None) -> StoredPrompt | None:
        versions = self._all.get((owner, prompt_id))
        if versions is None:
            return None
        wanted = versions[0].default_version if version is None else version
        return versions[wanted - 1] if 1 <= wanted <= len(versions) else None

    async def list(self, owner: str, page: PageQuery) -> Page[StoredPrompt]:
        own = [versions for (whose, _), versions in self._all.items() if whose == owner]
        found = [versions[versions[0].default_version - 1] for versions in own]
        found.sort(key=lambda prompt: (prompt.created_at, prompt.id))
        shown, more = page_of(found, [prompt.id for prompt in found], page, "There is no prompt with this id")
        return Page(tuple(shown), more)

    async def versions(self, owner: str, prompt_id: str, page: PageQuery) -> Page[StoredPrompt] | None:
        found = self._all.get((owner, prompt_id))
        if found is None:
            return None
        for name in ("after", "before"):
            cursor = getattr(page, name)
            if cursor is not None and not (cursor.isdecimal() and 0 < int(cursor) < 10**9):
                raise InvalidRequest(f"Versions are numbered from 1 on: '{name}'.", param=name)
        low, high = page.bounds
        between = [each for each in found if int(low or 0) < each.version < int(high or len(found) + 1)]
        walked = between[::-1] if page.backward else between
        return Page(page.shown(walked), len(walked) > page.limit)

    async def change(self, owner: str, prompt_id: str, change: PromptChange) -> StoredPrompt | None:
        versions = self._all.get((owner, prompt_id))
        if versions is None:
            return None
        last = len(versions)
        if change.body is not None and change.expected_version not in (None, last):
            raise VersionConflict(last)
        if change.body is not None:
            versions.append(dataclasses.replace(versions[0], version=last + 1, body=change.body))
        self._update(
            owner,
            prompt_id,
            name=change.name if change.renamed else versions[0].name,
            metadata=versions[0].metadata if change.metadata is None else change.metadata,
            default_version=len(versions)
            if change.body is not None and change.make_default
            else versions[0].default_version,
        )
        if change.body is not None:
            return self._all[owner, prompt_id][-1]
        return await self.get(owner, prompt_id)

    async def set_default(self, owner: str, prompt_id: str, version: int) -> StoredPrompt | None:
        if await self.get(owner, prompt_id, version) is None:
            return None
        self._update(owner, prompt_id, default_version=version)
        return await self.get(owner, prompt_id)

    async def delete(self, owner: str, prompt_id: str) -> bool:
        return self._all.pop((owner, prompt_id), None) is not None

    def _update(self, owner: str, prompt_id: str, **changes: object) -> None:
        versions = self._all[owner, prompt_id]
        changes |= {"last_version": len(versions), "updated_at": self._clock()}
        self._all[owner, prompt_id] = [dataclasses.replace(each, **changes) for each in versions]  # type: ignore[arg-type]
