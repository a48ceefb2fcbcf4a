"""Builds the journal of a process from the settings: the recorder of finished requests and the reporter of live ones.

Lives here: building and starting both, and their sweep. Not here: which requests record what (`observability/`), the
tables (`stores/journal.py`, `stores/live.py`), the pages (`console/`).
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass

from antiphon.config.settings import Settings
from antiphon.engine.running.journal import JournalRecorder
from antiphon.engine.running.live import LiveReporter
from antiphon.ids import new_id
from antiphon.stores import Stores

SWEEP_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class JournalParts:
    """The journal of one process."""

    recorder: JournalRecorder
    live: LiveReporter
    settings: Settings
    stores: Stores

    async def sweep(self) -> tuple[int, ...]:
        """Delete old entries, contents and snapshots. Returns the numbers of deleted objects."""
        console = self.settings.console
        gone = await self.stores.journal.sweep(console.keep, console.most, console.record_keep, console.record_bytes)
        return *gone, *await self.stores.live.sweep()


def open_journal(settings: Settings, stores: Stores, opened: AsyncExitStack) -> JournalParts | None:
    """Start the journal, and register its end in `opened`. Returns None without the console."""
    if not settings.console.enabled:
        return None
    recorder = JournalRecorder(stores.journal, settings.console, never_stored=frozenset(settings.owner.store_never))
    recorder.start()
    opened.push_async_callback(recorder.aclose)
    live = LiveReporter(stores.live, new_id("process"))
    live.start()
    opened.push_async_callback(live.aclose)
    return JournalParts(recorder, live, settings, stores)
