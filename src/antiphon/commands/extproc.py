"""`antiphon extproc`: the sidecar alone."""

from __future__ import annotations

import argparse
import asyncio
import sys
from contextlib import nullcontext
from functools import partial
from typing import Any

import structlog

from antiphon.app.build import build
from antiphon.commands import early_ends
from antiphon.commands.flags import settings_file, settings_of
from antiphon.commands.metrics_listener import metrics_listener
from antiphon.commands.orders import Obey, obeying, own_end
from antiphon.commands.process import StopSignals, collect_by_time, keep_what_there_is, run_loop
from antiphon.commands.reloading import SettingsFile, saying_that_a_restart_is_needed
from antiphon.commands.service_manager import tell
from antiphon.commands.starting import sidecar_tls, warn_of_contents_here
from antiphon.commands.upstream_warnings import asking_upstreams
from antiphon.config.settings import Settings
from antiphon.doors.extproc.server import ExtProcDoor
from antiphon.doors.http.server import HttpDoor
from antiphon.envoy.sidecars import endpoints, numbered
from antiphon.observability.logs import configure

_log = structlog.get_logger(__name__)

_NOTICE_SECONDS = 2.0
"""Twice the interval of Envoy's health checks; the first one that is told no is enough."""


def run(arguments: argparse.Namespace) -> int:
    file = SettingsFile.of(settings_file(arguments))
    settings = settings_of(arguments)
    configure(settings.log.level, settings.log.format)
    if arguments.parent_pipe is None:
        warn_of_contents_here(settings)
    return run_loop(_serve(arguments, settings, file))


async def _serve(arguments: argparse.Namespace, settings: Settings, file: SettingsFile | None) -> int:
    worker = arguments.worker
    signals = StopSignals(arguments.parent_pipe, settings.timeouts.drain)
    app = await signals.unless_stopped(build(settings, door="envoy"))
    if app is None:
        return 0
    wide = settings.model_copy(update={"workers": worker + 1})
    place = endpoints(wide)[worker]
    tls = sidecar_tls(settings)
    processor = ExtProcDoor(
        app.context,
        mode=settings.mode,
        transport=settings.sidecar.transport,
        tls=tls,
    )
    http = HttpDoor(app.context, private=True, drive_exchanges=False)

    def give_way(_: dict[str, Any]) -> None:
        # What the former Envoy has is served here, but what begins by itself begins elsewhere.
        app.workers.retire()
        http.send_away()
        signals.replace(settings.timeouts.response)

    async def stop_serving() -> None:
        signals.closing()
        await app.give_back()
        await asyncio.gather(processor.aclose(), http.aclose())

    try:
        grpc_at = await processor.start(settings.place(place.grpc), settings.sidecar.socket_mode)
        http_at = await http.start(settings.place(place.http), settings.sidecar.socket_mode, tls=tls)
        where = settings.metrics.listen
        where = where and numbered(where, worker)
        listening = metrics_listener(where, app.context.telemetry.metrics, app.ready)
        asking = asking_upstreams(settings) if arguments.ask_upstreams else nullcontext()
        if arguments.parent_pipe is None:
            hearing = saying_that_a_restart_is_needed(signals.hangup, file if settings.reload.watch else None)
        else:
            ends = app.endings.early
            ends.listen(asyncio.get_running_loop())
            obey: Obey = {"give_way": give_way, early_ends.ORDER: partial(early_ends.take, ends)}
            hearing = obeying(own_end(), obey)
        async with listening, asking, hearing:
            keep_what_there_is()
            collect_by_time(asyncio.get_running_loop().call_later)
            app.context.telemetry.endings.by_time(asyncio.get_running_loop())
            _log.info("serving", grpc=grpc_at, http=http_at)
            print(f"serving: grpc {grpc_at} http {http_at}", file=sys.stderr, flush=True)
            tell("READY=1")

            async def drain() -> bool:
                # Envoy learns by its health checks that this process takes no more; until then it goes on serving.
                seconds = signals.finish_seconds
                given = 0.0 if signals.replaced else settings.timeouts.notice
                notice = min(_NOTICE_SECONDS, seconds / 2) if given is None else given
                return await app.drain(processor.drain(seconds, notice=notice), seconds)

            drained = await signals.wait_and_drain(drain, app.context.admission)
            # What is cut is in the numbers, and these can still be asked for.
            await stop_serving()
    finally:
        await stop_serving()
        await app.aclose()
    return 0 if drained else 1
