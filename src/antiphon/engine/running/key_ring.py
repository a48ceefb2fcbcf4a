"""Holds the client keys that one process accepts: those of the settings, and those that operators create at run time.

Lives here: reading the stored keys again after a change, and what happens while the database is unreachable. Not here:
the SQL (`stores/client_keys.py`), the keys of the settings (`app/keys.py`), the headers of a request
(`doors/owners.py`).

Invariants: a process accepts a created key, and refuses a revoked or expired one, within `POLL_SECONDS` and the time of
two queries. While the database is unreachable, the stored keys stay valid for at most `stale` seconds. The keys of the
settings need no database.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

import structlog

from antiphon.errors import StoreError, Unavailable
from antiphon.observability.outages import Outage

if TYPE_CHECKING:
    from antiphon.engine.ports.callers import Caller
    from antiphon.stores.client_keys import ClientKeyStore

POLL_SECONDS = 0.25
"""Seconds between two queries for changes."""

_log = structlog.get_logger(__name__)


class KeyRing:
    """The keys of one process, as `KnownKeys`. `fixed`: the keys of the settings, which win over stored ones."""

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
        """See `KnownKeys.get`."""
        found = self._known.get(digest)
        if found is None and self._is_stale:
            raise Unavailable(
                "The server cannot check your API key, because its database is unreachable. Try again later.",
                code="keys_unavailable",
            )
        return found

    async def open(self) -> None:
        """Read the stored keys, and start to follow their changes. Raises `StoreError`."""
        await self.refresh()
        self._task = asyncio.get_running_loop().create_task(self._follow())

    async def aclose(self) -> None:
        """Stop following changes."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def refresh(self) -> None:
        """Read the stored keys if one changed or expired since the last call. Raises `StoreError`."""
        began = asyncio.get_running_loop().time()
        # The number is read first: a change after it has another number, so the next call finds it.
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
                # The next reading has to bring all of them back.
                self._known, self._number, self._is_stale = self._fixed, -1, True
