"""`antiphon extproc`: the sidecar alone."""

from __future__ import annotations

import argparse
import asyncio
import sys

import structlog

from antiphon.app import build
from antiphon.commands.envoy_config import endpoints
from antiphon.commands.flags import settings_of
from antiphon.commands.process import StopSignals, keep_what_there_is, run_loop
from antiphon.config import Settings
from antiphon.doors.extproc.relay import RelayTimeouts
from antiphon.doors.extproc.server import ExtProcDoor
from antiphon.doors.http.server import HttpDoor
from antiphon.doors.tls import TlsFiles
from antiphon.observability.logs import configure

__all__ = ["run"]

_log = structlog.get_logger(__name__)


def run(arguments: argparse.Namespace) -> int:
    settings = settings_of(arguments)
    configure(settings.log.level, settings.log.format)
    return run_loop(_serve(settings, arguments.worker, arguments.parent_pipe))


def _tls(settings: Settings) -> TlsFiles | None:
    files = settings.sidecar.tls
    return TlsFiles(files.cert, files.key, files.client_ca) if files.cert and files.key else None


async def _serve(settings: Settings, worker: int, parent_pipe: int | None) -> int:
    signals = StopSignals(parent_pipe)
    app = await build(settings, door="envoy")
    wide = settings.model_copy(update={"workers": worker + 1})
    place = endpoints(wide)[worker]
    timeouts = RelayTimeouts(head=settings.timeouts.head, idle=settings.timeouts.idle)
    tls = _tls(settings)
    processor = ExtProcDoor(
        app.context, mode=settings.mode, timeouts=timeouts, transport=settings.sidecar.transport, tls=tls
    )
    http = HttpDoor(app.context, private=True, drive_exchanges=False)
    try:
        grpc_at = await processor.start(settings.place(place.grpc), settings.sidecar.socket_mode)
        http_at = await http.start(settings.place(place.http), settings.sidecar.socket_mode, tls=tls)
        keep_what_there_is()
        _log.info("serving", grpc=grpc_at, http=http_at)
        print(f"serving: grpc {grpc_at} http {http_at}", file=sys.stderr, flush=True)

        async def drain() -> bool:
            # Envoy learns by its health checks (two, each 1 s) that this process takes no more. Where there are others,
            # it goes on serving until then; a last one refuses at once.
            notice = min(2.0, settings.timeouts.drain) if settings.workers > 1 else 0.0
            return await processor.drain(settings.timeouts.drain, notice=notice)

        await signals.wait_and_drain(drain)
    finally:
        await asyncio.gather(processor.aclose(), http.aclose())
        await app.aclose()
    return 0
