"""Other settings for everything that `antiphon up` runs.

Lives here: reading them, what a child of it is to get. Not here: when (`reloading.py`), what may change
(`reload_checks.py`), the workers' agreement (`worker_reload.py`).
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Literal

from antiphon.commands.flags import settings_of
from antiphon.commands.reloading import ReloadCounts, Results, SettingsFile, reasons
from antiphon.commands.starting import check_named_files
from antiphon.config.settings import Settings


def read_settings(arguments: argparse.Namespace) -> Settings:
    """The settings of `up`. Raises `ConfigError`."""
    settings = settings_of(arguments)
    if settings.log.format == "auto":
        # Decided here: for the children standard error is always a pipe.
        form: Literal["console", "json"] = "console" if sys.stderr.isatty() else "json"
        settings = settings.model_copy(update={"log": settings.log.model_copy(update={"format": form})})
    return settings


class UpReload:
    """`read` reads the settings as the start did; `take` brings the workers to them, or raises `ConfigError`."""

    def __init__(self, settings: Settings, read: Callable[[], Settings], file: SettingsFile | None) -> None:
        self.hangup = asyncio.Event()
        """SIGHUP came."""
        self._before = settings
        self._read = read
        self._file = file if settings.reload.watch else None
        self.counts = ReloadCounts()

    async def run(self, take: Callable[[Settings], Awaitable[Any]]) -> None:
        """Whenever there is a reason, till it is cancelled."""
        results = Results(self.counts.count)
        await reasons(self.hangup, self._file, lambda because: results.of(because, self._reload(take)))

    async def _reload(self, take: Callable[[Settings], Awaitable[Any]]) -> tuple[str, ...]:
        after = await asyncio.to_thread(self._read)
        changed = await asyncio.to_thread(_check, self._before, after)
        await asyncio.to_thread(check_named_files, after)
        await take(after)
        self._before = after
        return changed


def _check(before: Settings, after: Settings) -> tuple[str, ...]:
    # Most of what a worker serves with comes with it, and many a gateway is never told of other settings.
    from antiphon.commands.reload_checks import check_change

    return check_change(before, after, envoy=after.door == "envoy")
