"""Implements `antiphon serve`: runs one process of the HTTP server, without Envoy."""

from __future__ import annotations

import argparse
import socket

import structlog

from antiphon.commands.serving_process import ServingProcess, run_serving
from antiphon.commands.start_checks import check_console, log_console, warn
from antiphon.config.settings import Settings
from antiphon.doors.http.console import ConsoleAt
from antiphon.doors.http.server import HttpDoor
from antiphon.observability.served_ids import take_lost
from antiphon.supervisor.listen_address import refuse_own_upstream
from antiphon.supervisor.process import QUIET_SECONDS

_log = structlog.get_logger(__name__)

_IDS_IN_A_LINE = 100


def run(arguments: argparse.Namespace) -> int:
    # A process without a parent checks the upstreams itself.
    arguments.ask_upstreams = arguments.ask_upstreams or arguments.parent_pipe is None
    return run_serving(arguments, "http", _check, _serve)


def _check(settings: Settings) -> None:
    check_console(settings)
    refuse_own_upstream(settings)
    warn(settings)


def _inherited(numbers: str) -> list[socket.socket]:
    """The sockets with these descriptor numbers, which the parent has bound."""
    return [socket.socket(fileno=int(one)) for one in numbers.split(",") if one]


def _tell_of_lost(settings: Settings) -> None:
    """Log the requests that earlier processes were serving when they were killed."""
    lost = take_lost(settings.data)
    for begin in range(0, len(lost), _IDS_IN_A_LINE):
        some = lost[begin : begin + _IDS_IN_A_LINE]
        cause = "the process that served these requests was killed"
        _log.error("requests_lost", requests=len(some), fault="ours", cause=cause, request_ids=some)


async def _serve(process: ServingProcess) -> int:
    settings, signals, app, arguments = process.settings, process.signals, process.app, process.arguments
    sockets = _inherited(arguments.sockets)
    _tell_of_lost(settings)
    app.served.open(settings.data)
    too = settings.console.enabled and settings.console.on_client_listener
    door = HttpDoor(app.context, private=False, console=ConsoleAt.CLIENTS if too else ConsoleAt.NOWHERE)
    console = HttpDoor(app.context, console=ConsoleAt.SEPARATE)
    # All workers share the port for clients, so the parent reaches a particular worker on that worker's private port.
    private = HttpDoor(app.context, private=True, drive_exchanges=False)

    async def drain() -> bool:
        seconds = signals.finish_seconds
        notice, quiet = settings.timeouts.notice or 0.0, None
        if signals.replaced:
            notice, quiet = 0.0, QUIET_SECONDS
        return await app.drain(door.drain(seconds, notice=notice, quiet=quiet), seconds)

    def give_way() -> None:
        door.refuse()
        console.refuse()

    async with process.closing(door, private, console):
        if arguments.private_port is not None:
            await private.start(arguments.private_port)
        bound = await door.start(settings.listen, sockets=sockets)
        if settings.console.enabled:
            at = await console.start(settings.console.listen, sockets=_inherited(arguments.console_sockets))
            if not process.is_worker:
                log_console(at)
        # After a reload, open connections may still send requests, but new connections go to the new workers.
        async with process.hearing(settings.metrics.listen, give_way=give_way, orders={}):
            print(f"ready: http://{bound}/v1", flush=True)
            return await process.until_stopped(drain)
