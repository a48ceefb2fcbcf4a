"""Caches the public keys of a token issuer in one process, and repeats the download regularly.

This module decides when to download the keys, and how long to keep the last keys while the issuer does not answer. Not
here: the request to the issuer (`upstream/issuer.py`), the meaning of the keys and the check of a token
(`doors/issuer_tokens.py`).

Invariants: two downloads never overlap, and their starts are at least `PAUSE_SECONDS` apart. While the issuer does not
answer, the process continues to use the last keys, but only for the time `stale`. A key set without keys is an answer:
the issuer has withdrawn its keys.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sized
from contextlib import suppress
from typing import Final, Generic, TypeVar

import structlog

from antiphon.config.urls import shown_text
from antiphon.engine.waiting import stop
from antiphon.observability.repeated_failures import Outage
from antiphon.upstream.issuer import IssuerUnread

PAUSE_SECONDS: Final = 10.0
"""The minimum number of seconds between two downloads, even if many tokens name unknown keys."""

_log = structlog.get_logger(__name__)
Keys = TypeVar("Keys", bound=Sized)


class IssuerKeys(Generic[Keys]):
    """The keys of an issuer. `fetch` downloads the key set as bytes, or raises `IssuerUnread`. `read` decodes these
    bytes, or raises `ValueError`. `url` is the URL or the file of the key set, for the log. `refresh`: the seconds
    between two downloads. `stale`: the seconds for which the process uses the last keys after a download is due and
    fails."""

    def __init__(
        self,
        fetch: Callable[[], Awaitable[bytes]],
        read: Callable[[bytes], Keys],
        *,
        url: str,
        refresh: float,
        stale: float,
        pause: float = PAUSE_SECONDS,
    ) -> None:
        self._fetch = fetch
        self._read = read
        self._url = url
        self._refresh = refresh
        self._stale = stale
        self._pause = pause
        self._data = b""
        self._keys: Keys | None = None
        self._tried_at = self._read_at = float("-inf")
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._outage = Outage(_log, "issuer_keys_not_read", "issuer_keys_read_again")

    @property
    def keys(self) -> Keys | None:
        """The keys of the last successful download, or None without a recent download. The property returns the same
        object until the keys change."""
        return self._keys

    def read_soon(self) -> float:
        """Request a download, and return the seconds until newer keys may be available. If the current keys are at most
        `pause` seconds old, the method requests no download and returns 0."""
        now = asyncio.get_running_loop().time()
        if now < self._read_at + self._pause:
            return 0.0
        self._wanted.set()
        return max(1.0, self._tried_at + self._pause - now)

    async def open(self) -> None:
        """Download the keys once, and start the task that repeats the download. The process starts even if the issuer
        does not answer."""
        await self._try()
        self._task = asyncio.get_running_loop().create_task(self._follow())

    async def aclose(self) -> None:
        """Stop the task that downloads the keys."""
        await stop(self._task)

    async def _try(self) -> None:
        self._wanted.clear()
        self._tried_at = asyncio.get_running_loop().time()
        try:
            data = await self._fetch()
            if data != self._data or self._keys is None:
                self._keys, self._data = self._read(data), data
                if not self._keys:
                    _log.error("issuer_keys_withdrawn", url=shown_text(self._url))
        except (IssuerUnread, ValueError) as error:
            # The failed URL may be the `jwks_uri` that the issuer's OpenID configuration names.
            failed = error.url if isinstance(error, IssuerUnread) else ""
            self._outage.failed(url=shown_text(failed or self._url), cause=str(error))
        except Exception:
            _log.error("issuer_keys_failed", exc_info=True)
        else:
            self._read_at = self._tried_at
            self._outage.recovered()
        if self._keys is not None and self._tried_at > self._read_at + self._refresh + self._stale:
            self._keys, self._data = None, b""
            _log.error("issuer_keys_too_old", url=shown_text(self._url), seconds=self._tried_at - self._read_at)

    async def _follow(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(max(0.0, self._tried_at + self._pause - clock()))
            # After a failure, the next attempt starts when the pause ends. After a success, the next download starts
            # on a request or after `refresh` seconds.
            if self._read_at == self._tried_at:
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(self._tried_at + self._refresh):
                        await self._wanted.wait()
            await self._try()
