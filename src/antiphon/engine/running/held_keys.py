"""The idempotency keys that responses of this process hold, and the approvals that they use, until they are over.

Lives here: claiming, keeping and giving back. Not here: what a key is (`engine/ports/idempotency.py`).

Invariant: a key that is held is renewed with the process's other leases, and given back at most once.
"""

from __future__ import annotations

import structlog

from antiphon.engine.ports.actions import OnceOnly
from antiphon.engine.ports.idempotency import IdempotencyStore
from antiphon.engine.running.leases import Leases
from antiphon.errors import ApiError, StoreError

_log = structlog.get_logger(__name__)


class HeldKeys:
    """The keys that responses of this process hold, each until its response is stored or will not be."""

    def __init__(self, store: IdempotencyStore, leases: Leases) -> None:
        self._store = store
        self._leases = leases
        self._held: dict[str, OnceOnly] = {}
        self._answering: dict[str, str] = {}
        """The owners of responses that use approvals, and are not over."""

    async def claim(self, once: OnceOnly, response_id: str) -> str | None:
        """Hold the key for this response; None, or the response that was made with it. Raises `ApiError`."""
        # From now on: whoever leaves in the middle may have it, and gives it back.
        self._held[response_id] = once
        try:
            made = await self._store.claim(once, response_id, self._leases.seconds)
        except ApiError:
            del self._held[response_id]
            raise
        if made is None:
            self._leases.hold(self._store, response_id)
        else:
            del self._held[response_id]
        return made

    async def made(self, once: OnceOnly) -> str | None:
        """The response that was made by this very request before."""
        return await self._store.made(once)

    def of(self, response_id: str) -> OnceOnly | None:
        """The key that this response holds."""
        return self._held.get(response_id)

    async def use_approvals(self, owner: str, requests: tuple[str, ...], response_id: str) -> dict[str, str]:
        """Have this response use these approvals; those that another one has used, each with that. Raises
        `StoreError`."""
        self._answering[response_id] = owner
        return await self._store.spend(owner, requests, response_id)

    def holds(self, response_id: str) -> bool:
        """Whether this response holds a key, or uses approvals."""
        return response_id in self._held or response_id in self._answering

    def kept(self, response_id: str) -> None:
        """What it holds is the store's: it was stored, and its key with it."""
        self._answering.pop(response_id, None)
        if self._held.pop(response_id, None) is not None:
            self._leases.drop(self._store, response_id)

    async def release(self, response_id: str, *, counts: bool = False) -> None:
        """It is over, and will not be stored with its key. `counts`: what it holds stays taken. If the store cannot
        be told, a key runs out, and an approval stays used."""
        once, owner = self._held.pop(response_id, None), self._answering.pop(response_id, None)
        try:
            if once is not None:
                self._leases.drop(self._store, response_id)
                await (self._store.stay if counts else self._store.release)(once, response_id)
            if owner is not None and not counts:
                await self._store.unspend(owner, response_id)
        except StoreError as error:
            _log.info("idempotency_key_not_released", response_id=response_id, error=str(error))

    async def aclose(self) -> None:
        """Renew nothing any more."""
        await self._leases.aclose()
