"""`antiphon serve`: the HTTP door alone."""

from __future__ import annotations

import argparse
import asyncio
import socket
from contextlib import nullcontext
from typing import Any

import structlog

from antiphon.app.build import build
from antiphon.commands.flags import settings_file, settings_of
from antiphon.commands.listen_address import refuse_own_upstream
from antiphon.commands.metrics_listener import metrics_listener
from antiphon.commands.orders import obeying, own_end
from antiphon.commands.process import (
    QUIET_SECONDS,
    StopSignals,
    collect_by_time,
    keep_what_there_is,
    run_loop,
)
from antiphon.commands.reloading import SettingsFile, saying_that_a_restart_is_needed
from antiphon.commands.service_manager import tell
from antiphon.commands.starting import warn
from antiphon.commands.upstream_warnings import asking_upstreams
from antiphon.config.settings import Settings
from antiphon.doors.http.server import HttpDoor
from antiphon.observability.logs import configure
from antiphon.observability.served_ids import take_lost

_log = structlog.get_logger(__name__)

_IDS_IN_A_LINE = 100


def run(arguments: argparse.Namespace) -> int:
    file = SettingsFile.of(settings_file(arguments))
    settings = settings_of(arguments)
    configure(settings.log.level, settings.log.format)
    if arguments.parent_pipe is None:
        refuse_own_upstream(settings)
        warn(settings)
    return run_loop(_serve(arguments, settings, file))


def _tell_of_lost(settings: Settings) -> None:
    """Log the requests that were lost with killed processes: these could not log them."""
    lost = take_lost(settings.data)
    for begin in range(0, len(lost), _IDS_IN_A_LINE):
        some = lost[begin : begin + _IDS_IN_A_LINE]
        cause = "the process that served them was killed"
        _log.error("requests_lost", requests=len(some), fault="ours", cause=cause, request_ids=some)


async def _serve(arguments: argparse.Namespace, settings: Settings, file: SettingsFile | None) -> int:
    parent_pipe, private_port = arguments.parent_pipe, arguments.private_port
    sockets = [socket.socket(fileno=int(one)) for one in arguments.sockets.split(",") if one]
    signals = StopSignals(parent_pipe, settings.timeouts.drain)
    app = await signals.unless_stopped(build(settings, door="http"))
    if app is None:
        return 0
    _tell_of_lost(settings)
    app.served.open(settings.data)
    door = HttpDoor(app.context, private=False)
    # With a shared port nobody can choose whom he asks: the parent has a port of its own to each worker.
    private = HttpDoor(app.context, private=True, drive_exchanges=False)

    async def stop_serving() -> None:
        signals.closing()
        await app.give_back()
        await asyncio.gather(door.aclose(), private.aclose())

    def give_way(_: dict[str, Any]) -> None:
        # Connections that are open bring what they bring; new ones are another worker's.
        door.refuse()
        app.workers.retire()
        signals.replace(settings.timeouts.response)

    try:
        if private_port is not None:
            await private.start(private_port)
        bound = await door.start(settings.listen, sockets=sockets)
        asking = asking_upstreams(settings) if parent_pipe is None or arguments.ask_upstreams else nullcontext()
        listening = metrics_listener(settings.metrics.listen, app.context.telemetry.metrics, app.ready)
        if parent_pipe is None:
            hearing = saying_that_a_restart_is_needed(signals.hangup, file if settings.reload.watch else None)
        else:
            hearing = obeying(own_end(), {"give_way": give_way})
        async with listening, asking, hearing:
            keep_what_there_is()
            collect_by_time(asyncio.get_running_loop().call_later)
            app.context.telemetry.endings.by_time(asyncio.get_running_loop())
            print(f"ready: http://{bound}/v1", flush=True)
            tell("READY=1")

            async def drain() -> bool:
                seconds = signals.finish_seconds
                notice, quiet = settings.timeouts.notice or 0.0, None
                if signals.replaced:
                    notice, quiet = 0.0, QUIET_SECONDS
                return await app.drain(door.drain(seconds, notice=notice, quiet=quiet), seconds)

            drained = await signals.wait_and_drain(drain, app.context.admission)
            # What is cut is in the numbers, and these can still be asked for.
            await stop_serving()
    finally:
        await stop_serving()
        await app.aclose()
    return 0 if drained else 1
