"""Builds the journal of a process from the settings: the recorder of finished requests and the reporter of live ones.

Lives here: building, starting and connecting both, their sweep, and how a viewer's wish ends a request. Not here: which
requests record what (`observability/`), the tables (`stores/journal.py`, `stores/live.py`), the pages (`console/`).

Invariant: without the console, a process has no journal and runs no query for it.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import structlog

from antiphon.app.sweeping import Sweeper
from antiphon.config.settings import Settings
from antiphon.engine.ports.journal import LiveRequest
from antiphon.engine.running.background import Background
from antiphon.engine.running.journal import JournalRecorder
from antiphon.engine.running.live import LiveReporter
from antiphon.engine.waiting import stop
from antiphon.errors import AntiphonError
from antiphon.ids import new_id
from antiphon.observability.observation import Telemetry
from antiphon.stores import Stores

_SWEEP_SECONDS = 60.0
_log = structlog.get_logger(__name__)


class JournalParts:
    """The journal of one process: `recorder` of finished requests, and `live`, the reporter of requests in flight."""

    def __init__(self, settings: Settings, stores: Stores) -> None:
        self._console = settings.console
        self._stores = stores
        self._ending: set[asyncio.Task[None]] = set()
        never_stored = frozenset(settings.owner.store_never)
        self.recorder = JournalRecorder(stores.journal, settings.console, never_stored=never_stored)
        self.live = LiveReporter(stores.live, new_id("process"))

    def attach(self, telemetry: Telemetry, background: Background) -> None:
        """Report the requests that `telemetry` observes, and start the reports. A viewer's wish ends a request of a
        connected client, or a background response through `background`."""

        def cancel(entry_id: str) -> None:
            if telemetry.stop(entry_id):
                return
            for one in telemetry.live():
                if one.id == entry_id and one.door == "background" and one.response_id:
                    task = asyncio.get_running_loop().create_task(_end(background, one))
                    self._ending.add(task)
                    task.add_done_callback(self._ending.discard)

        self.live.snapshot = telemetry.live
        self.live.cancel = cancel
        self.live.start()

    def sweeper(self) -> Sweeper:
        """Return the sweep of old entries, contents and snapshots."""
        return Sweeper("journal", self.sweep, _SWEEP_SECONDS, self._stores.retention.take_turn)

    async def sweep(self) -> tuple[int, ...]:
        """Delete old entries, contents and snapshots. Returns the numbers of deleted objects."""
        console = self._console
        gone = await self._stores.journal.sweep(console.keep, console.most, console.record_keep, console.record_bytes)
        return *gone, *await self._stores.live.sweep()

    async def aclose(self) -> None:
        """Stop the reports, and write the remaining entries."""
        for task in tuple(self._ending):
            await stop(task)
        await self.live.aclose()
        await self.recorder.aclose()


def open_journal(settings: Settings, stores: Stores, opened: AsyncExitStack) -> JournalParts | None:
    """Start the recorder, and register the end of the journal in `opened`. Returns None without the console."""
    if not settings.console.enabled:
        return None
    parts = JournalParts(settings, stores)
    parts.recorder.start()
    opened.push_async_callback(parts.aclose)
    return parts


async def _end(background: Background, live: LiveRequest) -> None:
    try:
        await background.cancel(live.owner, live.response_id)
    except AntiphonError as error:
        _log.warning("live_request_not_cancelled", response_id=live.response_id, cause=str(error))
