"""Holds the public keys of a token issuer that one process knows, and reads them again.

Lives here: when the keys are read, and what happens while the issuer does not answer. Not here: the request to the
issuer (`upstream/issuer.py`), the meaning of the keys and the check of a token (`doors/token_check.py`).

Invariants: two readings never overlap, and their starts are at least `PAUSE_SECONDS` apart. The last keys that were
read stay in force while the issuer does not answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, Generic, TypeVar

import structlog

from antiphon.observability.outages import Outage
from antiphon.upstream.issuer import IssuerUnread

PAUSE_SECONDS: Final = 10.0
"""Seconds between two readings at least, however many tokens name unknown keys."""

_log = structlog.get_logger(__name__)
Keys = TypeVar("Keys")


class IssuerKeys(Generic[Keys]):
    """The keys of an issuer. `fetch` brings the key set as bytes, and raises `IssuerUnread`. `read` decodes it, and
    raises `ValueError`."""

    def __init__(
        self,
        fetch: Callable[[], Awaitable[bytes]],
        read: Callable[[bytes], Keys],
        *,
        refresh: float,
        pause: float = PAUSE_SECONDS,
    ) -> None:
        self._fetch = fetch
        self._read = read
        self._refresh = refresh
        self._pause = pause
        self._data = b""
        self._keys: Keys | None = None
        self._tried_at = self._read_at = float("-inf")
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._outage = Outage(_log, "issuer_keys_not_read", "issuer_keys_read_again")

    @property
    def keys(self) -> Keys | None:
        """The keys that were read last; None before the first. The object changes only with the keys."""
        return self._keys

    def read_soon(self) -> float:
        """Ask for another reading. Returns the seconds until newer keys may be there; 0 if the keys in force are at
        most `pause` seconds old, so that asking again would be of no use."""
        now = asyncio.get_running_loop().time()
        if now < self._read_at + self._pause:
            return 0.0
        self._wanted.set()
        return max(1.0, self._tried_at + self._pause - now)

    async def open(self) -> None:
        """Read the keys once, and start to read them again. An issuer that does not answer does not stop the start."""
        await self._try()
        self._task = asyncio.get_running_loop().create_task(self._follow())

    async def aclose(self) -> None:
        """Stop reading."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _try(self) -> None:
        self._wanted.clear()
        self._tried_at = asyncio.get_running_loop().time()
        try:
            data = await self._fetch()
            if data != self._data or self._keys is None:
                self._keys, self._data = self._read(data), data
        except (IssuerUnread, ValueError) as error:
            self._outage.failed(cause=str(error))
        except Exception:
            _log.error("issuer_keys_failed", exc_info=True)
        else:
            self._read_at = self._tried_at
            self._outage.recovered()

    async def _follow(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(max(0.0, self._tried_at + self._pause - clock()))
            # After a failure the next attempt follows at once after the pause.
            if self._read_at == self._tried_at:
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(self._tried_at + self._refresh):
                        await self._wanted.wait()
            await self._try()
