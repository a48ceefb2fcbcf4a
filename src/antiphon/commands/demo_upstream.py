"""Implements `antiphon demo-upstream`: runs the scripted chat server, to try Antiphon without a model."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal

from aiohttp import web

from antiphon.config.section import parse_address
from antiphon.demo_upstream import make_app
from antiphon.errors import ConfigError
from antiphon.supervisor.process import run_loop


def run(arguments: argparse.Namespace) -> int:
    try:
        host, port = parse_address(arguments.listen)
    except ValueError as error:
        raise ConfigError(f"--listen: {error}") from None
    if host == "unix":
        raise ConfigError("--listen: is not HOST:PORT")
    return run_loop(_serve(host, port))


async def _serve(host: str, port: int) -> int:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    runner = web.AppRunner(make_app(), access_log=None, shutdown_timeout=1.0, handler_cancellation=True)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            raise ConfigError(f"--listen: cannot listen on {host}:{port}: {reason}") from None
        bound = runner.addresses[0][1]
        shown = f"[{host}]" if ":" in host else host
        print(f"ready: http://{shown}:{bound}/v1", flush=True)
        await stopped.wait()
    finally:
        await runner.cleanup()
    return 0
