"""A journal that keeps its entries in memory, and exchanges that record."""

from __future__ import annotations

import time
from collections.abc import Callable

from antiphon.config.operators import ConsoleSettings
from antiphon.engine.exchange.phase import ExchangeOptions
from antiphon.engine.exchange.recording_exchange import RecordingExchange
from antiphon.engine.ports.journal import Entry, Recording
from antiphon.ids import Clock, IdFactory
from antiphon.redaction import SecretSearch


class Noted:
    """Keeps the entries and recordings that it gets, in order."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.recordings: list[Recording | None] = []

    def note(self, entry: Entry, recording: Recording | None) -> None:
        self.entries.append(entry)
        self.recordings.append(recording)

    @property
    def last(self) -> Entry:
        return self.entries[-1]

    @property
    def recorded(self) -> Recording:
        """The last recording, which must exist."""
        recording = self.recordings[-1]
        assert recording is not None
        return recording


def recording_exchange(
    console: ConsoleSettings,
    options: ExchangeOptions,
    new_id: IdFactory,
    clock: Clock,
    *,
    ticks: Callable[[], float] = time.perf_counter,
) -> RecordingExchange:
    """An exchange that records as these settings of the console ask."""
    limit = console.record_request_bytes if console.record != "off" else 0
    search = SecretSearch(options.secrets)
    return RecordingExchange(options, new_id, clock, ticks, search, limit, console.record_unstored)


def joined(recording: Recording, kind: str) -> bytes:
    """The bytes of all parts of one kind."""
    return b"".join(part.data for part in recording.parts if part.kind == kind)
