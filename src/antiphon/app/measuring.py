"""Collects metrics about other components: the event loop, the disk, the databases and the thread pools.

This module reads the values that a metrics scrape needs, and limits how often it reads them. This module also opens the
configured tracer. `observability/metric_names.py` has the names and descriptions of metrics. The counters are in the
code that increments them.

Before a scrape, this module reads the values that need a query or disk access, at most once a second. It reads sizes
and connections at most every ten seconds. Concurrent scrapes share one read. If a disk hangs, one thread waits for the
disk, and scrapes show the values of the last read.

Invariant: without scrapes this module does no work, except one timer in the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import platform
import shutil
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from antiphon import __version__, compiled
from antiphon.config.problems import extra_missing
from antiphon.config.processes import TracingSettings
from antiphon.config.settings import Settings
from antiphon.engine.ports.jobs import Queue
from antiphon.engine.waiting import SIZES, all_pools
from antiphon.ids import now
from antiphon.observability import metric_names as names
from antiphon.observability.logs import dropped_lines
from antiphon.observability.metric_values import Labels
from antiphon.observability.metrics import Metrics
from antiphon.stores import Stores
from antiphon.stores.backend import DatabaseStatistics, StoreStatistics

if TYPE_CHECKING:
    from antiphon.observability.otel import Tracer

_QUEUE_SECONDS = 1.0
_LOOK_SECONDS = 10.0
_LAG_SECONDS = 0.25


class Measuring:
    """Supplies the metrics of one process. `databases` are the objects that return statistics of each database."""

    def __init__(
        self,
        metrics: Metrics,
        settings: Settings,
        stores: Stores,
        *,
        door: Literal["envoy", "http"],
        databases: Sequence[StoreStatistics],
        sandbox: str,
    ) -> None:
        self._metrics = metrics
        self._data = settings.data
        self._stores = stores
        self._databases = databases
        self._groups: dict[str, Counter[int]] = {one.name: Counter() for one in databases}
        self._queue = Queue(0)
        self._said: dict[str, DatabaseStatistics] = {}
        self._blobs = self._free = 0
        self._lag = LoopLag(metrics.lag.add)
        code = "compiled" if compiled() else "sources"
        build = (__version__, platform.python_version(), _transport(settings, door), sandbox, code)
        read = metrics.read
        read(names.BUILD, lambda: {build: 1})
        loaded = now()
        read(names.LOADED, lambda: loaded)
        read(names.LOG_DROPPED, dropped_lines)
        read(names.QUEUED, lambda: self._queue.length)
        read(names.OLDEST, self._waited)
        read(names.WRITER_QUEUE, lambda: {(one.name,): one.waiting for one in databases})
        read(names.READERS, lambda: {(one.name,): one.busy for one in databases})
        read(names.THREADS, lambda: {name: busy for name, (busy, _) in _threads().items()})
        read(names.THREAD_QUEUE, lambda: {name: waiting for name, (_, waiting) in _threads().items()})
        read(names.DATABASE, lambda: {(name,): said.size for name, said in self._said.items()})
        read(names.TABLES, lambda: _each({name: said.tables for name, said in self._said.items()}))
        read(names.CONNECTIONS, lambda: _each({name: said.connections for name, said in self._said.items()}))
        read(names.MOST_CONNECTIONS, lambda: _known({name: said.most_connections for name, said in self._said.items()}))
        read(names.OLDEST_XMIN, lambda: _known({name: said.oldest_xmin for name, said in self._said.items()}))
        read(names.BLOBS, lambda: self._blobs)
        read(names.DISK_FREE, lambda: self._free)
        metrics.before_scrape(self._count_groups)
        metrics.before_scrape(_Sometimes(self._look_at_queue, _QUEUE_SECONDS))
        metrics.before_scrape(_Sometimes(self._look_around, _LOOK_SECONDS))

    def close(self) -> None:
        """Stop the timer that measures the delay of the event loop."""
        self._lag.close()

    def _waited(self) -> float:
        oldest = self._queue.oldest
        return 0.0 if oldest is None else max(0.0, now() - oldest)

    async def _count_groups(self) -> None:
        for one in self._databases:
            groups = Counter(one.groups)
            for size, times in (groups - self._groups[one.name]).items():
                self._metrics.writer_group.add(size, one.name, times=times)
            self._groups[one.name] = groups

    async def _look_at_queue(self) -> None:
        self._queue = await self._stores.background.queue()

    async def _look_around(self) -> None:
        self._free = await SIZES.run(_free_bytes, self._data)
        self._said = {one.name: await one.look() for one in self._databases}
        self._blobs = await self._stores.files.stored_bytes()


class LoopLag:
    """Measures the delay of the event loop, which all requests of the process share. Four times a second, a timer calls
    `add` with the delay in seconds. `close` stops the timer."""

    def __init__(self, add: Callable[[float], None], *, seconds: float = _LAG_SECONDS) -> None:
        """Start the timer in the running event loop."""
        self._add = add
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._ask()

    def close(self) -> None:
        """Stop the timer."""
        self._timer.cancel()

    def _ask(self) -> None:
        # `loop.time()` is not precise enough, because some loops read the clock once per iteration.
        self._due = time.perf_counter() + self._seconds
        self._timer = self._loop.call_later(self._seconds, self._back)

    def _back(self) -> None:
        self._add(max(0.0, time.perf_counter() - self._due))
        self._ask()


class _Sometimes:
    """Runs the function `look` at most once in `seconds`. A caller waits while `look` runs. A call within `seconds`
    after the last run returns immediately."""

    def __init__(self, look: Callable[[], Awaitable[None]], seconds: float) -> None:
        self._look = look
        self._seconds = seconds
        self._next = 0.0
        self._looking: asyncio.Task[None] | None = None

    async def __call__(self) -> None:
        if self._looking is None:
            if time.monotonic() < self._next:
                return
            self._looking = asyncio.ensure_future(self._run())
            self._looking.add_done_callback(self._ended)
        await asyncio.shield(self._looking)

    async def _run(self) -> None:
        await self._look()
        self._next = time.monotonic() + self._seconds

    def _ended(self, looking: asyncio.Task[None]) -> None:
        self._looking = None
        # Retrieve the exception, because the caller that would receive it may be cancelled.
        if not looking.cancelled():
            looking.exception()


def _each(said: Mapping[str, Mapping[str, int]]) -> dict[Labels, float]:
    """Flatten the values of each database to a mapping from (database name, value name) to the value."""
    return {(name, key): value for name, values in said.items() for key, value in values.items()}


def _known(said: Mapping[str, int | None]) -> dict[Labels, float]:
    """Return the values that are not None, by database name."""
    return {(name,): value for name, value in said.items() if value is not None}


def _free_bytes(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        # A missing folder counts as a full disk.
        return 0


def _transport(settings: Settings, door: Literal["envoy", "http"]) -> str:
    if door == "http":
        return ""
    # Only a process with the ext_proc server imports the module `transport`.
    from antiphon.doors.extproc.transport import chosen_transport

    return chosen_transport(settings.sidecar.transport)


def _threads() -> dict[Labels, tuple[int, int]]:
    """Return the number of busy threads and the queue length of the thread pools, summed by pool name."""
    found: dict[Labels, tuple[int, int]] = {}
    for pool in all_pools():
        busy, waiting = found.get((pool.name,), (0, 0))
        found[pool.name,] = (busy + pool.busy, waiting + pool.waiting)
    return found


_IN_FULL = "tracing.traces_endpoint (OTEL_EXPORTER_OTLP_ENDPOINT)"
_CLOSE_SECONDS = 3.0


def open_tracer(settings: TracingSettings) -> Tracer | None:
    """Open the tracer. Returns None if the settings have no collector endpoint. Raises `ConfigError` if the extra
    `otel` is not installed."""
    if settings.traces_url is None:
        return None
    try:
        from antiphon.observability.otel import Tracer
    except ImportError:
        raise extra_missing("tracing.endpoint" if settings.endpoint else _IN_FULL, "otel") from None
    return Tracer(settings, __version__)


async def close_tracer(tracer: Tracer | None) -> None:
    """Send the remaining spans, for at most three seconds, so that an unresponsive collector does not delay the stop of
    the process."""
    if tracer is None:
        return
    loop = asyncio.get_running_loop()
    closed = asyncio.Event()

    def close() -> None:
        try:
            tracer.close()
        finally:
            # The loop may already be closed, and then no coroutine waits for the event.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(closed.set)

    # A daemon thread closes the tracer, because the interpreter would wait for a pool's thread before it exits.
    threading.Thread(target=close, name="close-tracer", daemon=True).start()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_CLOSE_SECONDS):
            await closed.wait()
