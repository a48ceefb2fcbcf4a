"""`PromptStore` whose bodies are sealed at rest.

Lives here: which parts of a prompt those are; its name stays readable. Not here: how (`bodies.py`).

Invariant: metadata and templates come out as they were given.
"""

from __future__ import annotations

from dataclasses import replace

from antiphon.engine.ports.actions import OnceOnly, StoredPrompt
from antiphon.engine.ports.state import PageQuery, PromptChange, PromptPage, PromptStore
from antiphon.stores.sealed.bodies import Bodies


class SealedPrompts:
    """`PromptStore` over another one."""

    def __init__(self, beneath: PromptStore, bodies: Bodies) -> None:
        self._beneath = beneath
        self._bodies = bodies
        self.delete = beneath.delete

    async def create(
        self,
        owner: str,
        prompt_id: str,
        name: str | None,
        metadata: bytes,
        body: bytes,
        once: OnceOnly | None = None,
    ) -> StoredPrompt:
        """Make a prompt whose first version is `body`; see `PromptStore.create`."""
        bodies = self._bodies
        made = await self._beneath.create(owner, prompt_id, name, bodies.seal(metadata), bodies.seal(body), once)
        return replace(made, metadata=metadata, body=body)

    async def get(self, owner: str, prompt_id: str, version: int | None = None) -> StoredPrompt | None:
        """This version, or the default one; None when there is none."""
        return self._opened(await self._beneath.get(owner, prompt_id, version))

    async def change(self, owner: str, prompt_id: str, change: PromptChange) -> StoredPrompt | None:
        """Make the change, all of it or none; see `PromptStore.change`."""
        sealed = replace(change, body=self._sealed(change.body), metadata=self._sealed(change.metadata))
        return self._opened(await self._beneath.change(owner, prompt_id, sealed))

    async def set_default(self, owner: str, prompt_id: str, version: int) -> StoredPrompt | None:
        """Make this version the default; None when there is no such prompt or version."""
        return self._opened(await self._beneath.set_default(owner, prompt_id, version))

    async def versions(self, owner: str, prompt_id: str, page: PageQuery) -> PromptPage | None:
        """A page of a prompt's versions; see `PromptStore.versions`."""
        found = await self._beneath.versions(owner, prompt_id, page)
        return None if found is None else self._opened_page(found)

    async def list(self, owner: str, page: PageQuery) -> PromptPage:
        """A page of the owner's prompts; see `PromptStore.list`."""
        return self._opened_page(await self._beneath.list(owner, page))

    def _sealed(self, value: bytes | None) -> bytes | None:
        return None if value is None else self._bodies.seal(value)

    def _opened(self, found: StoredPrompt | None) -> StoredPrompt | None:
        return None if found is None else self._opened_page(PromptPage((found,), False)).prompts[0]

    def _opened_page(self, found: PromptPage) -> PromptPage:
        opened = [
            replace(one, metadata=self._bodies.open(one.metadata), body=self._bodies.open(one.body))
            for one in found.prompts
        ]
        return PromptPage(tuple(opened), found.has_more)
