"""Runs one serving process, for `antiphon serve` and `antiphon extproc`, with or without `antiphon up` as the parent.

This module builds the app from the settings, runs tasks next to the servers, and shuts the process down. One task sends
a request to each upstream, and logs a warning about each upstream that does not answer. `serve.py` and `extproc.py`
start and drain the servers. `supervisor/process.py` handles signals, and `start_checks.py` logs other warnings.
`doctor/` checks the features of upstreams.

Invariants: the servers close before the app, whether the process stops after a signal or after an error. The start does
not wait for an upstream. Each warning is one line with advice, and holds no secret.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, nullcontext
from typing import TYPE_CHECKING

import structlog

from antiphon.app.build import App, Door, build
from antiphon.app.trust import section
from antiphon.app.upstreams import direct_target
from antiphon.commands.doctor.upstream_probes import (
    PLAIN_HTTP_QUESTION,
    ChatProbes,
    certificate_advice,
    prefix_question,
    url_with_prefix,
)
from antiphon.commands.flags import settings_file, settings_of
from antiphon.commands.metrics_listener import metrics_listener
from antiphon.commands.start_checks import log_data_folder
from antiphon.config.settings import Settings
from antiphon.config.upstreams import AuthMode, UpstreamSettings
from antiphon.errors import AntiphonError
from antiphon.observability.logs import configure
from antiphon.supervisor.changed_settings import SettingsFile, saying_that_a_restart_is_needed
from antiphon.supervisor.child_output import DRAINED
from antiphon.supervisor.process import StopSignals, collect_by_time, keep_what_there_is, run_loop, tell_service_manager
from antiphon.supervisor.worker_orders import Obey, obeying, own_end
from antiphon.upstream.client import TLS_FAILED, HttpUpstream

if TYPE_CHECKING:
    from antiphon.commands.doctor.process_doctor import EnvoyPlace, ProcessDoctor
    from antiphon.doors.extproc.server import ExtProcDoor
    from antiphon.doors.http.server import HttpDoor


_log = structlog.get_logger(__name__)


class ServingProcess:
    """A process that serves requests: its settings, its app, and its servers."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        settings: Settings,
        file: SettingsFile | None,
        signals: StopSignals,
        app: App,
    ) -> None:
        self.arguments, self.settings, self.signals, self.app = arguments, settings, signals, app
        self.envoy_ended: asyncio.Event | None = None
        """If this is not None, the process serves after its drain until this event is set."""
        self._file = file
        self._doors: tuple[ExtProcDoor | HttpDoor, ...] = ()

    @property
    def is_worker(self) -> bool:
        """Whether `antiphon up` started this process and sends orders to it."""
        return self.arguments.parent_pipe is not None

    @asynccontextmanager
    async def closing(self, *doors: ExtProcDoor | HttpDoor) -> AsyncIterator[None]:
        """Close these servers and the app when the context ends."""
        self._doors = doors
        try:
            yield
        finally:
            await self._close_doors()
            await self.app.aclose()

    @asynccontextmanager
    async def hearing(self, metrics: str | None, give_way: Callable[[], object], orders: Obey) -> AsyncIterator[None]:
        """While the context is active, serve metrics at the address `metrics`, and handle the parent's orders. A
        process without a parent watches for changed settings instead. The method calls `give_way` when another process
        replaces this one."""

        def yield_place(_: dict[str, object]) -> None:
            give_way()
            self.app.workers.retire()
            self.signals.replace(self.settings.timeouts.response)

        telemetry, loop = self.app.context.telemetry, asyncio.get_running_loop()
        if self.is_worker:
            told = obeying(own_end(), {"give_way": yield_place, **orders})
        else:
            watched = self._file if self.settings.reload.watch else None
            told = saying_that_a_restart_is_needed(self.signals.hangup, watched)
        asking = asking_upstreams(self.settings) if self.arguments.ask_upstreams else nullcontext()
        async with metrics_listener(metrics, telemetry.metrics, self.app.ready), asking, told:
            keep_what_there_is()
            collect_by_time(loop.call_later)
            telemetry.endings.by_time(loop)
            yield

    async def until_stopped(self, drain: Callable[[], Awaitable[bool]]) -> int:
        """Serve until a stop signal, then drain and close the servers. Returns the exit status."""
        tell_service_manager("READY=1")
        drained = await self.signals.wait_and_drain(drain, self.app.context.admission)
        if drained and self.envoy_ended is not None:
            print(DRAINED, file=sys.stderr, flush=True)
            await self.signals.wait_for(self.envoy_ended)
        # The metrics listener stays open until the context ends, so a scrape can still read the number of cut requests.
        await self._close_doors()
        return 0 if drained else 1

    async def _close_doors(self) -> None:
        self.signals.closing()
        await self.app.give_back()
        await asyncio.gather(*(door.aclose() for door in self._doors))


def run_serving(
    arguments: argparse.Namespace,
    door: Door,
    check: Callable[[Settings], object],
    serve: Callable[[ServingProcess], Awaitable[int]],
) -> int:
    """Load the settings, build the app, and serve requests with `serve`. `check` checks the settings, unless a parent
    has checked them. Returns the exit status."""
    file = SettingsFile.of(settings_file(arguments))
    settings = settings_of(arguments)
    configure(settings.log.level, settings.log.format)
    if arguments.parent_pipe is None:
        check(settings)
        log_data_folder(settings)

    async def run() -> int:
        signals = StopSignals(arguments.parent_pipe, settings.timeouts.drain)
        doctor = _doctor(settings, door, started=arguments.parent_pipe is not None)
        app = await signals.unless_stopped(build(settings, door=door, doctor=doctor))
        return 0 if app is None else await serve(ServingProcess(arguments, settings, file, signals, app))

    return run_loop(run())


def _doctor(settings: Settings, door: Door, *, started: bool) -> ProcessDoctor | None:
    """The doctor whose findings the console shows, or None without a console. `started` tells whether `antiphon up`
    started this process."""
    if not settings.console.enabled:
        return None
    # Only a process with a console needs the checks, which import much.
    from antiphon.commands.doctor.process_doctor import ProcessDoctor

    envoy: EnvoyPlace = "none" if door == "http" else "started" if started else "elsewhere"
    return ProcessDoctor(settings, envoy=envoy)


@asynccontextmanager
async def asking_upstreams(settings: Settings) -> AsyncIterator[None]:
    """While the context is active, check once that every upstream answers and accepts the API key in the settings. Log
    a warning for each upstream that fails this check."""
    seconds = settings.timeouts.check
    upstreams = list(settings.every_upstream.items()) if seconds else []
    if settings.envoy.endpoint_picker.address is not None:
        # The endpoint picker selects the server, so the URL of the default upstream may lead to no server.
        upstreams = [(name, upstream) for name, upstream in upstreams if name != "default"]
    asking = [asyncio.ensure_future(_ask(*each, seconds)) for each in upstreams]
    try:
        yield
    finally:
        for task in asking:
            task.cancel()
        if asking:
            await asyncio.wait(asking)


async def _ask(name: str, upstream: UpstreamSettings, seconds: float) -> None:
    log = _log.bind(upstream=name, url=upstream.url)
    try:
        client = HttpUpstream(direct_target(name, upstream), connect_seconds=seconds)
    except AntiphonError as error:
        log.warning("upstream_not_usable", problem=str(error))
        return
    async with aclosing(client):
        probes = ChatProbes(client, (), seconds=seconds)
        listed = await probes.get("/models")
        better = await url_with_prefix(probes, upstream.url) if listed.status == 404 else ""
    at = section(name)
    if listed.failure:
        start = f"start the upstream, or correct {at}.url; 'antiphon doctor' shows details"
        if TLS_FAILED in listed.failure:
            start = f"{PLAIN_HTTP_QUESTION} Then set {at}.url to http://…"
        log.warning(
            "upstream_not_reached", problem=listed.failure, advice=certificate_advice(listed.failure, at) or start
        )
    elif listed.status in (401, 403) and upstream.auth_mode is not AuthMode.PASSTHROUGH:
        log.warning(
            "upstream_refuses_the_key",
            problem=listed.problem,
            advice=f"set {at}.api_key to a key that the upstream accepts",
        )
    elif better:
        log.warning(
            "upstream_misconfigured",
            problem=listed.problem,
            advice=f"the upstream's API is below /v1: set {at}.url to {better}",
        )
    elif listed.status == 404:
        advice = (
            f"{prefix_question(at)} If it is, and the server only lacks a list of models, nothing is wrong; "
            "'antiphon doctor' shows details"
        )
        log.warning("upstream_lists_no_models", problem=listed.problem, advice=advice)
