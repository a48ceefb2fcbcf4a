"""Sums the token usage of model calls in memory and writes the sums to the store once a second.

Lives here: the `UsageLedger` of a process. Not here: the stored sums (`stores/owner_usage.py`), prices.

A write for each call would double the cost of an unstored response, so the recorder writes many calls as one sum. A
process that is killed loses the usage of its last second.

Invariants: `note` never waits. The recorder retries a sum whose write failed. The recorder never writes a sum twice, so
the recorder drops a sum whose write has an unknown outcome. At most `most` sums are queued. The recorder logs and drops
the usage of a call beyond this limit.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from antiphon.engine.ports.usage_sums import CallUsage, UsageSum
from antiphon.engine.waiting import stop
from antiphon.errors import StoreError
from antiphon.observability.repeated_failures import Outage
from antiphon.stores.owner_usage import UsageStore

_log = structlog.get_logger(__name__)
_Key = tuple[str, str, str, str]
_Sums = dict[_Key, UsageSum]

_DAY = 86_400


class UsageRecorder:
    """Sums the token usage of all model calls of a process, and writes the sums every `seconds`."""

    def __init__(
        self, store: UsageStore, *, seconds: float = 1.0, clock: Callable[[], float] = time.time, most: int = 20_000
    ) -> None:
        self._store = store
        self._most = most
        self._seconds = seconds
        self._clock = clock
        self._waiting: _Sums = {}
        self._noted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._outage = Outage(_log, "usage_not_written", "usage_written_again")
        # The current day as a number and as text. The recorder formats the text only once a day.
        self._day = (-1.0, "")

    @property
    def waiting(self) -> int:
        """The number of queued sums, without the sums of a write in progress."""
        return len(self._waiting)

    def start(self) -> None:
        """Start the task that writes the sums."""
        self._task = asyncio.get_running_loop().create_task(self._write_on())

    def note(self, spent: CallUsage) -> None:
        """Add the usage of one model call to the day's sum of its owner, model and upstream. See `UsageLedger`."""
        now = self._clock()
        if now // _DAY != self._day[0]:
            self._day = now // _DAY, time.strftime("%Y-%m-%d", time.gmtime(now))
        self._add((self._day[1], spent.owner, spent.model, spent.upstream), spent)
        self._noted.set()

    async def aclose(self) -> None:
        """Stop the task and write the remaining sums."""
        await stop(self._task)
        await self.write()
        if self._waiting:
            _log.error("usage_not_written", sums=len(self._waiting))

    async def write(self) -> bool:
        """Write all waiting sums. Returns False if the write failed. The sums stay queued unless the outcome of the
        write is unknown."""
        taken, self._waiting = self._waiting, {}
        if not taken:
            return True
        writing = asyncio.ensure_future(self._store.add(list(taken.values())))
        try:
            # Wait for a commit that has begun. Otherwise the next write would add the same sums again.
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            try:
                await writing
            except StoreError as error:
                if error.reason != "unknown":
                    self._put_back(taken)
            raise
        except StoreError as error:
            if error.reason != "unknown":
                self._put_back(taken)
            kept = error.reason != "unknown"
            # Every loss of sums has a log line. A series of failures without losses has one line (`Outage`).
            if not kept:
                _log.warning("usage_not_written", cause=str(error), sums=len(taken), kept=kept)
            else:
                self._outage.failed(cause=str(error), sums=len(taken), kept=kept)
            return False
        self._outage.recovered()
        return True

    async def _write_on(self) -> None:
        while True:
            await self._noted.wait()
            await asyncio.sleep(self._seconds)
            self._noted.clear()
            if not await self.write():
                self._noted.set()

    def _add(self, key: _Key, spent: CallUsage) -> None:
        found = self._waiting.get(key)
        if found is None:
            if len(self._waiting) >= self._most:
                told = {"input_tokens": spent.usage.input_tokens, "output_tokens": spent.usage.output_tokens}
                _log.error("usage_lost", model=spent.model, upstream=spent.upstream, **told)
                return
            found = self._waiting[key] = UsageSum(*key)
        found.add(spent)

    def _put_back(self, taken: _Sums) -> None:
        later, self._waiting = self._waiting, taken
        for key, one in later.items():
            found = taken.get(key)
            if found is None:
                taken[key] = one
            else:
                found.join(one)
