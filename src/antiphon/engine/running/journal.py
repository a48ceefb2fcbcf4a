"""Collects the entries of finished requests in memory, and writes them to the journal once a second.

This module has the bounded queue of a process, and keeps the contents of unstored requests in memory. Not here: the
tables (`stores/journal.py`), the content of an entry (`observability/`), requests in flight (`engine/running/live.py`).

A write for each request would double the cost of an unstored response. So the recorder writes the entries of a second
together. From `_FEW` entries on it writes one row for all of them, and a reader of the journal later moves them into
the journal's table. A process that is killed loses the entries of its last second.

Invariants: `note` never waits and never raises. The queue holds at most `most` entries, and at most `most_bytes` of
contents. The queue has few entries of refused requests (`refusals.py`). The recorder counts the entries and contents
that do not fit, and logs the loss at most once a minute. If the recorder writes an entry twice, the store ignores the
second write. No store gets the contents of a request with `store: false`.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from typing import NamedTuple

import structlog
from msgspec.structs import replace

from antiphon.config.operators import ConsoleSettings
from antiphon.engine.ports.journal import REFUSED, Entry, Recording
from antiphon.engine.running.refusals import Refusals
from antiphon.engine.waiting import stop
from antiphon.errors import StoreError, Unavailable
from antiphon.observability.repeated_failures import Outage
from antiphon.stores.journal import MOST_WRITTEN, JournalStore

_log = structlog.get_logger(__name__)

HELD_SECONDS = 900.0
"""The seconds for which a process holds the contents of requests with `store: false`."""
_UNIT = 500
_FEW = 50
"""The recorder writes fewer entries than these as one row each."""
_MOVE_SECONDS = 0.05
"""The seconds for which a process with few requests moves entries into the journal's table, after each write."""
_LOOK_SECONDS = 60.0
_PART_BYTES = 200
"""The number of bytes that the recorder counts for each part of a recording, in addition to the part's data."""


class _Noted(NamedTuple):
    at: float
    entry: Entry
    recording: Recording | None
    size: int


class JournalRecorder:
    """Implements `Journal` for one process, and writes the entries every `seconds`."""

    def __init__(
        self,
        store: JournalStore,
        settings: ConsoleSettings,
        *,
        process: str = "",
        never_stored: frozenset[str] = frozenset(),
        seconds: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        most: int = 10_000,
        most_bytes: int | None = None,
        held_bytes: int = 32 << 20,
    ) -> None:
        """`process`: the name of this process. `never_stored`: the owners whose contents the recorder never records
        (`*`: all owners). `most_bytes`: the maximum bytes of queued contents. `held_bytes`: the maximum bytes of the
        contents of requests with `store: false`."""
        self._store = store
        self._process = process
        self._settings = settings
        self._never = never_stored
        self._seconds = seconds
        self._clock = clock
        self._most = most
        # This limit is large enough for the contents of any single request.
        self._most_bytes = max(32 << 20, 2 * settings.record_request_bytes) if most_bytes is None else most_bytes
        self._held_most = min(held_bytes, settings.record_bytes)
        self._waiting: deque[_Noted] = deque()
        self._bytes = 0
        self._writing = False
        self._held: OrderedDict[str, _Noted] = OrderedDict()
        self._held_bytes = 0
        self.lost: dict[tuple[str, ...], int] = {("entries",): 0, ("contents",): 0}
        """The number of entries and of contents that this process lost since its start."""
        self._logged = dict(self.lost)
        self._lost_at = float("-inf")
        self._refusals = Refusals()
        self._noted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._outage = Outage(_log, "journal_not_written", "journal_written_again")

    @property
    def waiting(self) -> int:
        """The number of entries that are not written yet."""
        return len(self._waiting)

    @property
    def writing(self) -> bool:
        """Whether a write is in progress."""
        return self._writing

    @property
    def held_bytes(self) -> int:
        """The bytes of the contents of requests with `store: false` in memory."""
        return self._held_bytes

    def start(self) -> None:
        """Start the task that writes the entries."""
        self._task = asyncio.get_running_loop().create_task(self._write_on())

    def note(self, entry: Entry, recording: Recording | None) -> None:
        """See `Journal.note`. Drops contents that the settings do not record, and sets `Entry.recorded`."""
        now = self._clock()
        if entry.outcome == REFUSED:
            self._end_refusals()
            if not self._refusals.take(entry, now):
                self._noted.set()
                return
        if recording is None or not self._is_wanted(entry):
            if entry.recorded:
                entry = replace(entry, recorded=False)
            self._queue(_Noted(now, entry, None, 0))
            return
        size = _size_of(recording)
        if not entry.stored:
            kept = self._hold(_Noted(now, entry, recording, size))
            recording, size = None, 0
            if kept:
                entry = replace(entry, detail=replace(entry.detail, held_by=self._process))
        else:
            kept = self._bytes + size <= self._most_bytes
            if not kept:
                self._lose(contents=1)
                recording, size = None, 0
        if entry.recorded != kept:
            entry = replace(entry, recorded=kept)
        self._queue(_Noted(now, entry, recording, size))

    def _queue(self, noted: _Noted) -> None:
        if self.waiting >= self._most:
            self._lose(entries=1)
            return
        self._waiting.append(noted)
        self._bytes += noted.size
        self._noted.set()

    def _end_refusals(self, *, all: bool = False) -> None:
        """Queue the entries that refused requests of a past minute share. With `all`, queue those of the current minute
        too."""
        for at, entry in self._refusals.ended(self._clock(), all=all):
            self._queue(_Noted(at, entry, None, 0))

    def held(self, request_id: str, owner: str = "") -> Recording | None:
        """Return the contents of a request with `store: false` that this process served. With an `owner`, the method
        returns only contents that belong to this owner."""
        self._forget_held()
        found = self._held.get(request_id)
        return found.recording if found is not None and owner in ("", found.entry.owner) else None

    async def aclose(self) -> None:
        """Stop the task, write the remaining entries, and drop the contents in memory."""
        await stop(self._task)
        self._end_refusals(all=True)
        await self.write()
        self._held.clear()
        self._held_bytes = 0
        if self._waiting:
            _log.error("journal_not_written", entries=len(self._waiting))
        self._log_lost()

    async def write(self) -> bool:
        """Write all waiting entries, in batches. Returns False if a write failed. The entries of a failed write stay in
        the queue."""
        while self._waiting:
            unit = self._take()
            try:
                await self._write_unit(unit)
            except (StoreError, Unavailable) as error:
                self._outage.failed(cause=str(error), entries=self.waiting)
                return False
            except Exception:
                # A batch with such an error would always fail again, and block all other entries.
                self._put_down(unit)
                self._lose(entries=len(unit))
                _log.error("journal_failed", exc_info=True)
                continue
            self._put_down(unit)
        self._outage.recovered()
        return True

    async def _write_on(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._wait_seconds()):
                    await self._noted.wait()
            self._forget_held()
            self._end_refusals()
            if not self._noted.is_set():
                continue
            await asyncio.sleep(self._seconds)
            self._noted.clear()
            few = self.waiting < _FEW
            if not await self.write():
                self._noted.set()
            elif few:
                await self._move()

    async def _move(self) -> None:
        """Move entries that were written together into the journal's table, while this process has little to do."""
        try:
            await self._store.try_to_move_batches(_MOVE_SECONDS)
        except Exception:
            # The task must go on, because it writes all further entries.
            _log.error("journal_failed", exc_info=True)

    def _wait_seconds(self) -> float | None:
        """The longest time until this object has to do something, even if it gets no further entry."""
        ends = self._refusals.ends_at()
        waits = [_LOOK_SECONDS] if self._held else []
        waits += [max(0.0, ends - self._clock())] if ends is not None else []
        return min(waits, default=None)

    def _take(self) -> list[_Noted]:
        """Return the oldest entries that fit into one batch. `_put_down` removes the entries from the queue after the
        write."""
        unit: list[_Noted] = []
        size = 0
        for one in islice(self._waiting, _UNIT):
            size += one.size
            if unit and size > MOST_WRITTEN:
                break
            unit.append(one)
        return unit

    def _put_down(self, unit: list[_Noted]) -> None:
        """Remove the entries of this batch from the queue. They are the oldest entries in the queue."""
        for one in unit:
            self._waiting.popleft()
            self._bytes -= one.size

    async def _write_unit(self, unit: list[_Noted]) -> None:
        packed = {one.entry.id: await self._store.pack(one.recording) for one in unit if one.recording is not None}
        now = self._clock()
        entries = [replace(one.entry, age=one.entry.age + now - one.at) for one in unit]
        self._writing = True
        try:
            most = self._settings.record_bytes
            await self._store.add(entries, packed, most_bytes=most, together=len(entries) >= _FEW)
        finally:
            self._writing = False

    def _is_wanted(self, entry: Entry) -> bool:
        settings = self._settings
        if settings.record == "off" or not self._never.isdisjoint((entry.owner, "*")):
            return False
        if settings.record == "failures" and not entry.fault:
            return False
        return entry.stored or settings.record_unstored

    def _hold(self, noted: _Noted) -> bool:
        """Hold the contents of an unstored request in memory, and drop the oldest contents beyond the maximum. Returns
        False if these contents alone exceed the maximum."""
        self._forget_held()
        self._drop(noted.entry.id)
        if noted.size > self._held_most:
            self._lose(contents=1)
            return False
        self._held[noted.entry.id] = noted
        self._held_bytes += noted.size
        while self._held_bytes > self._held_most:
            self._drop(next(iter(self._held)))
        return True

    def _forget_held(self) -> None:
        oldest = self._clock() - HELD_SECONDS
        while self._held:
            request_id, first = next(iter(self._held.items()))
            if first.at > oldest:
                return
            self._drop(request_id)

    def _drop(self, request_id: str) -> None:
        gone = self._held.pop(request_id, None)
        if gone is not None:
            self._held_bytes -= gone.size

    def _lose(self, *, entries: int = 0, contents: int = 0) -> None:
        """Count lost entries and contents, and log the counts at most once a minute."""
        self.lost["entries",] += entries
        self.lost["contents",] += contents
        now = self._clock()
        if now - self._lost_at >= _LOOK_SECONDS:
            self._lost_at = now
            self._log_lost()

    def _log_lost(self) -> None:
        new = {kind: number - self._logged[kind] for kind, number in self.lost.items()}
        if any(new.values()):
            _log.error("journal_full", entries=new["entries",], contents=new["contents",])
            self._logged = dict(self.lost)


def _size_of(recording: Recording) -> int:
    return sum(_PART_BYTES + len(part.data) for part in recording.parts)
