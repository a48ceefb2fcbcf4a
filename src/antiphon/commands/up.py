"""Implements `antiphon up`: starts, supervises, reloads and drains a whole gateway.

When settings change, this module replaces the running processes (a generation) by new ones. This module also handles
the shutdown. `supervisor/generation.py` implements a generation, and `supervisor/changed_settings.py` reloads the
settings.

Invariants: after the listener has answered a request, the command prints `ready:` and the URL in one line to standard
output. After a stop signal, requests in flight may finish, and new requests are refused. If a child that died or hung
cannot be replaced, all processes stop, and the exit status is not 0. At most two generations exist: the current one,
and one that was replaced or failed to start.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Literal, TypeVar

import structlog

from antiphon.commands.flags import settings_file, settings_of
from antiphon.commands.start_checks import (
    check_console,
    check_named_files,
    console_url,
    log_console,
    log_data_folder,
    warn,
)
from antiphon.config.settings import Settings
from antiphon.errors import AntiphonError, ConfigError
from antiphon.local_keys import prepare_data
from antiphon.observability.logs import configure
from antiphon.supervisor.changed_settings import ReloadCounts, SettingsFile, check_change, reasons
from antiphon.supervisor.children import ParentPipe
from antiphon.supervisor.envoy_process import forget
from antiphon.supervisor.generation import Generation, Surroundings
from antiphon.supervisor.listen_address import HeldPorts, at_addresses, free_address, refuse_own_upstream
from antiphon.supervisor.process import end_at_the_latest, hears_hangup, on_terminal, tell_service_manager
from antiphon.supervisor.run_folder import run_folder
from antiphon.supervisor.supervision import GivenUp, NotStarted

if TYPE_CHECKING:
    from antiphon.supervisor.merged_metrics import MergedMetrics

_log = structlog.get_logger(__name__)

_CLOSING_SECONDS = 1.7
"""Seconds after the drain, or after a second signal, in which all children must end."""
_END_SECONDS = 1.8
"""Seconds after the drain until this process exits, by force if necessary. The documentation promises an end within two
seconds."""
_MEASURE_SECONDS = 2.0

_T = TypeVar("_T")


def run(arguments: argparse.Namespace) -> int:
    file = SettingsFile.of(settings_file(arguments))
    settings = _read(arguments)
    configure(settings.log.level, settings.log.format)
    check_console(settings)
    check_named_files(settings)
    refuse_own_upstream(settings)
    where = free_address(settings.listen)
    console = free_address(settings.console.listen, "console.listen") if settings.console.enabled else None
    warn(settings)

    async def serve() -> int:
        return await _Up(arguments, settings, file, where, console).run()

    # The command does not use uvloop, because subprocesses of uvloop inherit file descriptors that they should not
    # have.
    try:
        return asyncio.run(serve())
    except (ConfigError, NotStarted):
        raise
    except AntiphonError as error:
        if settings.log.format == "console":
            raise
        # A log collector expects the last log line in the same JSON format as the other lines.
        which = {"name": error.name, "deaths": error.deaths} if isinstance(error, GivenUp) else {}
        _log.error("gave_up", problem=str(error), **which)
        return 1


def _read(arguments: argparse.Namespace) -> Settings:
    """Load the settings of `up`, and choose the log format if it is `auto`. Raises `ConfigError`."""
    settings = settings_of(arguments)
    if settings.log.format == "auto":
        # `up` decides the format for its children, because their standard error is always a pipe.
        form: Literal["console", "json"] = "console" if sys.stderr.isatty() else "json"
        settings = settings.model_copy(update={"log": settings.log.model_copy(update={"format": form})})
    return settings


def _announce(settings: Settings) -> None:
    """Print `ready:` and the URL in one line to standard output. On a terminal, print a summary to standard error."""
    log_data_folder(settings)
    where = settings.listen
    print(f"ready: http://{where}/v1", flush=True)
    if settings.console.enabled:
        log_console(settings.console.listen)
    if sys.stderr.isatty():
        door = "Envoy" if settings.door == "envoy" else "the HTTP server"
        lines = (
            f"  clients    http://{where}/v1, answered by {door} and {settings.workers} worker process(es)",
            *(
                f"  upstream   {one.url}, credentials: {one.auth_mode.value}"
                + ("" if name == "default" else f", for the models of {name}")
                for name, one in settings.every_upstream.items()
            ),
            *((f"  console    {console_url(settings.console.listen)}",) if settings.console.enabled else ()),
            f"  data       {settings.data}",
            "  Ctrl-C     finishes the requests in flight and stops; a second Ctrl-C stops at once",
        )
        print("\n".join(lines), file=sys.stderr, flush=True)


class _Up:
    """One run of `antiphon up`. `where` is `settings.listen` with a numeric host, and `console` is `console.listen`.
    `console` is None if the console is not enabled."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        settings: Settings,
        file: SettingsFile | None,
        where: str,
        console: str | None,
    ) -> None:
        self._arguments = arguments
        self._settings = settings
        self._file = file if settings.reload.watch else None
        self._where = where
        self._console = console
        self._hangup = asyncio.Event()
        self._counts = ReloadCounts()
        self._now: Generation | None = None
        self._former: Generation | None = None
        self._retiring: asyncio.Task[None] | None = None
        self._failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        self._clock = asyncio.get_running_loop().time
        self._signalled = 0.0

    async def run(self) -> int:
        stop, cut = asyncio.Event(), asyncio.Event()

        def on_signal() -> None:
            if stop.is_set():
                self._end_at(self._clock() + _CLOSING_SECONDS)
            else:
                self._signalled = self._clock()
            drain = 0.0 if stop.is_set() else self._settings.timeouts.drain
            end_at_the_latest(asyncio.get_running_loop(), drain + _END_SECONDS)
            (cut if stop.is_set() else stop).set()

        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, on_signal)
        terminal = on_terminal()
        if hears_hangup():
            # If the terminal was closed, SIGHUP stops the gateway. While the terminal is open, SIGHUP reloads the
            # settings.
            def on_hangup() -> None:
                (on_signal if terminal and not on_terminal() else self._hangup.set)()

            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, on_hangup)
        prepare_data(self._settings.data)
        with run_folder(self._settings.data, forget) as folder:
            async with self._showing_metrics() as metrics:
                port = HeldPorts(self._where, self._console)
                around = Surroundings(folder, ParentPipe(), port, metrics)
                try:
                    return await self._serve(around, stop, cut)
                finally:
                    await self._stop_all()
                    around.pipe.close()
                    port.close()

    async def _serve(self, around: Surroundings, stop: asyncio.Event, cut: asyncio.Event) -> int:
        settings = at_addresses(self._settings, self._where, self._console)
        if await self._until(stop, self._start(Generation(settings, around))) is None:
            return 0
        assert self._now is not None
        _announce(self._now.settings)
        tell_service_manager("READY=1")

        async def heard(because: str) -> None:
            if self._retiring is not None and not self._retiring.done():
                advice = (
                    "Antiphon reads the changed settings when the requests that began before the last reload have ended"
                )
                _log.info("settings_wait", because=because, advice=advice)
                await asyncio.wait({self._retiring})
            await self._counts.of(because, self._reload(around))

        await self._until(stop, reasons(self._hangup, self._file, heard))
        tell_service_manager("STOPPING=1")
        now, seconds = self._now, self._settings.timeouts.drain
        # From the stop signal on, the workers refuse new connections. After the workers end, the kernel refuses new
        # connections, because this process has closed the port.
        around.port.close()
        # Each worker logs its requests in flight. Only Envoy knows the number of requests that bypass the workers.
        in_flight = {"in_flight": await now.requests_in_flight()} if now.envoy is not None else {}
        _log.info("draining", seconds=seconds, processes=len(now.processes), **in_flight)
        self._end_at(self._signalled + seconds + _CLOSING_SECONDS)
        drained = await self._until(cut, self._drain(now))
        if drained:
            _log.info("drained")
        else:
            # After a full drain, each worker has reported its cut requests, and Envoy counts only the requests that
            # bypass the workers. A second signal cuts the drain before these reports. Then Envoy counts every request,
            # and without Envoy the workers report their requests when they stop.
            passing = await now.requests_in_flight()
            if now.envoy is None:
                await now.stop_workers()
            _log.warning("stopped_with_requests_in_flight", cut=now.cut + passing)
        return 0 if drained else 1

    async def _drain(self, now: Generation) -> bool:
        drained = await now.drain(self._signalled)
        if self._retiring is not None:
            await asyncio.wait(
                {self._retiring}, timeout=self._signalled + self._settings.timeouts.drain - self._clock()
            )
            drained = drained and self._retiring.done()
        return drained

    async def _until(self, stop: asyncio.Event, work: Coroutine[object, object, _T]) -> _T | None:
        """Return the result of `work`, or None if `stop` is set first. Raises `GivenUp` if a process cannot be
        replaced."""
        task = asyncio.ensure_future(work)
        stopped = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait({task, stopped, self._failed}, return_when=asyncio.FIRST_COMPLETED)
            if self._failed.done():
                raise self._failed.result()
            return task.result() if task.done() else None
        finally:
            task.cancel()
            stopped.cancel()
            await asyncio.wait({task, stopped})

    # Generations

    async def _start(self, generation: Generation) -> bool:
        """Start a generation that replaces the current one. If this method raises `AntiphonError`, the current
        generation continues."""
        try:
            await generation.start()
        except BaseException:
            if self._now is None:
                await generation.stop()
                generation.forget()
            else:
                # Clients may already have connected to the new generation, so it must drain.
                self._former, self._retiring = generation, asyncio.ensure_future(generation.withdraw())
            raise
        former, self._now = self._now, generation
        generation.failed.add_done_callback(self._gave_up)
        if former is not None:
            self._former, self._retiring = former, asyncio.ensure_future(former.retire(generation))
        return True

    def _gave_up(self, failed: asyncio.Future[BaseException]) -> None:
        if not self._failed.done() and not failed.cancelled():
            self._failed.set_result(failed.result())

    async def _reload(self, around: Surroundings) -> tuple[str, ...]:
        assert self._now is not None
        settings = await asyncio.to_thread(_read, self._arguments)
        changed = check_change(self._settings, settings)
        there = at_addresses(settings, self._now.settings.listen, self._now.settings.console.listen)
        refuse_own_upstream(there)
        await asyncio.to_thread(check_named_files, settings)
        try:
            await self._start(Generation(there, around, self._now))
        except Exception:
            await self._now.listen_again()
            raise
        configure(settings.log.level, settings.log.format)
        self._settings = settings
        return changed

    # Metrics

    @asynccontextmanager
    async def _showing_metrics(self) -> AsyncIterator[MergedMetrics | None]:
        listen = self._settings.metrics.listen
        if listen is None:
            yield None
            return
        # The module is imported only if `metrics.listen` is set.
        from antiphon.commands.metrics_listener import metrics_listener
        from antiphon.supervisor.merged_metrics import MergedMetrics, own_counts

        metrics = MergedMetrics()

        async def measured() -> bytes:
            shown = [one for one in (self._now, self._former) if one is not None]
            workers = [process for one in shown for process in one.workers]
            await asyncio.gather(*(process.is_alive(_MEASURE_SECONDS) for process in workers))
            if self._now is not None:
                self._now.forget_ended(metrics)
            return metrics.render(own_counts(self._now.processes if self._now is not None else (), self._counts))

        async with metrics_listener(listen, measured) as at:
            _log.info("metrics", listen=at)
            yield metrics

    # Stop

    def _end_at(self, moment: float) -> None:
        for one in (self._now, self._former):
            if one is not None:
                one.end_at(moment)

    async def _stop_all(self) -> None:
        if self._retiring is not None:
            self._retiring.cancel()
            await asyncio.wait({self._retiring})
        # The current Envoy does not stop cleanly if the Envoy that it replaced ends before it.
        for one in (self._now, self._former):
            if one is not None:
                await one.stop()
        if self._now is not None:
            self._now.forget()
