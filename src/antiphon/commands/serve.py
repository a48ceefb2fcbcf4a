"""`antiphon serve`: the HTTP door alone."""

from __future__ import annotations

import argparse

from antiphon.app import build
from antiphon.commands.flags import settings_of
from antiphon.commands.process import StopSignals, keep_what_there_is, run_loop
from antiphon.config import Settings
from antiphon.doors.http.server import HttpDoor
from antiphon.observability.logs import configure

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    settings = settings_of(arguments)
    configure(settings.log.level, settings.log.format)
    return run_loop(_serve(settings, arguments.parent_pipe, arguments.shared_port))


async def _serve(settings: Settings, parent_pipe: int | None, shared_port: bool) -> int:
    signals = StopSignals(parent_pipe)
    app = await build(settings, door="http")
    door = HttpDoor(app.context, private=False)
    try:
        bound = await door.start(settings.listen, shared_port=shared_port)
        keep_what_there_is()
        print(f"ready: http://{bound}/v1", flush=True)

        async def drain() -> bool:
            return await door.drain(settings.timeouts.drain)

        await signals.wait_and_drain(drain)
    finally:
        await door.aclose()
        await app.aclose()
    return 0
