"""Implements `antiphon extproc`: runs one sidecar without starting Envoy."""

from __future__ import annotations

import argparse
import asyncio
import sys
from functools import partial

import structlog

from antiphon.commands.serving_process import ServingProcess, run_serving
from antiphon.commands.start_checks import check_console, sidecar_tls, warn_of_contents_here, warn_of_passed_identities
from antiphon.config.settings import Settings
from antiphon.doors.extproc.server import ExtProcDoor
from antiphon.doors.http.console import ConsoleAt
from antiphon.doors.http.server import HttpDoor
from antiphon.envoy.sidecars import endpoint, numbered
from antiphon.supervisor.envoy_reports import take_early_end, take_unknown_path
from antiphon.supervisor.worker_orders import (
    ENVOY_ENDED,
    OUTLIVE_ENVOY,
    PATH_UNKNOWN,
    STREAM_ENDED,
    Obey,
)

_log = structlog.get_logger(__name__)

_NOTICE_SECONDS = 2.0
"""The default of `timeouts.notice` for `extproc`, in seconds. Envoy checks health every second, so Envoy sees the stop
before the sidecar refuses requests."""


def run(arguments: argparse.Namespace) -> int:
    return run_serving(arguments, "envoy", _check, _serve)


def _check(settings: Settings) -> None:
    check_console(settings)
    warn_of_contents_here(settings)
    warn_of_passed_identities(settings)


async def _serve(process: ServingProcess) -> int:
    settings, signals, app, worker = process.settings, process.signals, process.app, process.arguments.worker
    place, tls = endpoint(settings, worker), sidecar_tls(settings)
    processor = ExtProcDoor(app.context, mode=settings.mode, transport=settings.sidecar.transport, tls=tls)
    http = HttpDoor(app.context, private=True, drive_exchanges=False, console=ConsoleAt.GATEWAY)

    async def drain() -> bool:
        # The process serves new requests until Envoy's health checks have noticed the drain.
        seconds = signals.finish_seconds
        given = 0.0 if signals.replaced else settings.timeouts.notice
        notice = min(_NOTICE_SECONDS, seconds / 2) if given is None else given
        return await app.drain(processor.drain(seconds, notice=notice), seconds)

    def outlive_envoy(_: dict[str, object]) -> None:
        processor.stay_healthy()
        process.envoy_ended = envoy_ended

    envoy_ended = asyncio.Event()
    async with process.closing(processor, http):
        grpc_at = await processor.start(settings.place(place.grpc), settings.sidecar.socket_mode)
        http_at = await http.start(settings.place(place.http), settings.sidecar.socket_mode, tls=tls)
        ends, metrics = app.endings.early, settings.metrics.listen
        if process.is_worker:
            ends.listen(asyncio.get_running_loop())
        orders: Obey = {
            STREAM_ENDED: partial(take_early_end, ends),
            PATH_UNKNOWN: partial(take_unknown_path, app.context.telemetry, app.context.router.unknown),
            OUTLIVE_ENVOY: outlive_envoy,
            ENVOY_ENDED: lambda _: envoy_ended.set(),
        }
        # After a reload, this process still serves requests from the old Envoy, but the new generation starts new
        # background responses.
        async with process.hearing(metrics and numbered(metrics, worker), give_way=http.send_away, orders=orders):
            _log.info("serving", grpc=grpc_at, http=http_at)
            print(f"serving: grpc {grpc_at} http {http_at}", file=sys.stderr, flush=True)
            return await process.until_stopped(drain)
