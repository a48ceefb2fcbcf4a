"""The idempotency keys that responses of this process hold, each until its response is stored or will not be.

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

    def kept(self, response_id: str) -> None:
        """It was stored, and its key with it."""
        if self._held.pop(response_id, None) is not None:
            self._leases.drop(self._store, response_id)

    async def release(self, response_id: str) -> None:
        """It will not be stored; if the key cannot be given back, it runs out."""
        once = self._held.pop(response_id, None)
        if once is None:
            return
        self._leases.drop(self._store, response_id)
        try:
            await self._store.release(once, response_id)
        except StoreError as error:
            _log.info("idempotency_key_not_released", response_id=response_id, error=str(error))

    async def aclose(self) -> None:
        """Renew nothing any more."""
        await self._leases.aclose()
