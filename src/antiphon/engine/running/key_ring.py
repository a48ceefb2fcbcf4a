"""Holds the client keys that one process accepts: keys from the settings, and keys that operators create at run time.

Lives here: reloading the stored keys after a change, and the key check while the database is unreachable. Not here: the
SQL (`stores/client_keys.py`), the keys of the settings (`app/keys.py`), the request headers that carry a key
(`doors/owners.py`).

Invariants: a process accepts a new key, and refuses a revoked or expired key, at most `POLL_SECONDS` plus two queries
after the change. While the database is unreachable, the stored keys stay valid for at most `stale` seconds. The keys of
the settings stay valid without the database.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING

import structlog

from antiphon.engine.waiting import stop
from antiphon.errors import StoreError, Unavailable
from antiphon.observability.outages import Outage

if TYPE_CHECKING:
    from antiphon.engine.ports.callers import Caller
    from antiphon.stores.client_keys import ClientKeyStore

POLL_SECONDS = 0.25
"""Seconds between two queries for changes of the stored keys."""

_log = structlog.get_logger(__name__)


class KeyRing:
    """The client keys of one process, as `KnownKeys`. A key in `fixed` (from the settings) replaces an equal stored
    key."""

    def __init__(
        self,
        store: ClientKeyStore,
        fixed: Mapping[bytes, Caller],
        *,
        stale: float,
        poll: float = POLL_SECONDS,
    ) -> None:
        self._store = store
        self._fixed = fixed
        self._stale = stale
        self._poll = poll
        self._known: Mapping[bytes, Caller] = fixed
        self._number = -1
        self._expires_at: int | None = None
        self._read_at = float("-inf")
        self._is_stale = True
        self._task: asyncio.Task[None] | None = None
        self._outage = Outage(_log, "client_keys_not_read", "client_keys_read_again")

    def get(self, digest: bytes, /) -> Caller | None:
        """Return the caller of a token's digest, or None. Raises `Unavailable` for an unknown digest while the stored
        keys cannot be read."""
        found = self._known.get(digest)
        if found is None and self._is_stale:
            raise Unavailable(
                "The server cannot check your API key, because its database is unreachable. Try again later.",
                code="keys_unavailable",
            )
        return found

    async def open(self) -> None:
        """Read the stored keys, and start the task that polls for changes. Raises `StoreError`."""
        await self.refresh()
        self._task = asyncio.get_running_loop().create_task(self._follow())

    async def aclose(self) -> None:
        """Stop the polling task."""
        await stop(self._task)

    async def refresh(self) -> None:
        """Read the stored keys if a key changed or expired since the last call. Raises `StoreError`."""
        began = asyncio.get_running_loop().time()
        # Read the number of changes before the keys. A change between the two queries raises that number, so the next
        # call reads the keys again.
        number, date = await self._store.state()
        if number != self._number or (self._expires_at is not None and date >= self._expires_at):
            valid = await self._store.valid()
            self._known = {**valid.callers, **self._fixed}
            self._number, self._expires_at = number, valid.expires_at
        self._read_at, self._is_stale = began, False

    async def _follow(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(self._poll)
            try:
                async with asyncio.timeout_at(clock() + self._stale if self._is_stale else self._read_at + self._stale):
                    await self.refresh()
                self._outage.recovered()
            except (StoreError, TimeoutError) as error:
                self._outage.failed(cause=str(error) or "the database does not answer")
            except Exception:
                _log.error("client_keys_failed", exc_info=True)
            if clock() >= self._read_at + self._stale and not self._is_stale:
                # Forget the stored keys. The number -1 makes the next `refresh` load all of them again.
                self._known, self._number, self._is_stale = self._fixed, -1, True
