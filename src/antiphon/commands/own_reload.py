"""Other settings for one process while it serves: `serve`, `extproc`, and a worker of `antiphon up`.

Lives here: whom it listens to, and reading its settings by itself where it has no parent. Not here: when
(`reloading.py`), what may change (`reload_checks.py`), what a parent has it do (`told_settings.py`) and says
(`early_ends.py`).
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from antiphon.app.built import App
from antiphon.commands import early_ends
from antiphon.commands.flags import settings_of
from antiphon.commands.orders import own_end, take_orders
from antiphon.commands.process import StopSignals
from antiphon.commands.reloading import Results, SettingsFile, reasons
from antiphon.commands.told_settings import ToldSettings
from antiphon.config.settings import Settings


@asynccontextmanager
async def reloading(
    app: App, signals: StopSignals, arguments: argparse.Namespace, file: SettingsFile | None, *, envoy: bool
) -> AsyncIterator[None]:
    """While this lasts, other settings are taken when somebody says so. `envoy`: it serves one."""
    if arguments.parent_pipe is None:
        work = _OwnReload(app, arguments, envoy=envoy).run(signals.hangup, file)
    else:
        work = _obey(app, envoy=envoy)
    task = asyncio.get_running_loop().create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def _obey(app: App, *, envoy: bool) -> None:
    if (ours := own_end()) is None:
        return
    told, ends = ToldSettings(app), app.kept.endings.early
    if envoy:
        ends.listen(asyncio.get_running_loop())

    async def obey(order: dict[str, Any]) -> str:
        return "" if early_ends.take(order, ends) else await told.obey(order)

    await take_orders(ours, obey)


class _OwnReload:
    def __init__(self, app: App, arguments: argparse.Namespace, *, envoy: bool) -> None:
        self._app = app
        self._arguments = arguments
        self._before = app.generation.settings
        self._envoy = envoy
        app.measuring.reloads_here()
        self._results = Results(app.measuring.reloaded)

    async def run(self, hangup: asyncio.Event, file: SettingsFile | None) -> None:
        """Whenever there is a reason, till it is cancelled."""
        watched = file if self._before.reload.watch else None
        await reasons(hangup, watched, lambda because: self._results.of(because, self._reload()))

    async def _reload(self) -> tuple[str, ...]:
        after = await asyncio.to_thread(settings_of, self._arguments)
        changed = await asyncio.to_thread(self._check, after)
        self._app.swap(await self._app.prepare(after))
        self._before = after
        return changed

    def _check(self, after: Settings) -> tuple[str, ...]:
        # Imported at the first change, on a thread: with it comes what makes Envoy's configuration.
        from antiphon.commands.reload_checks import check_change

        return check_change(self._before, after, envoy=self._envoy)
