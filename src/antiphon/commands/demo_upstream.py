"""`antiphon demo-upstream`: the scripted chat server."""

from __future__ import annotations

import argparse
import asyncio
import signal

from aiohttp import web

from antiphon.config import parse_address
from antiphon.demo_upstream import make_app
from antiphon.errors import ConfigError

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    try:
        host, port = parse_address(arguments.listen)
    except ValueError as error:
        raise ConfigError(f"--listen: {error}") from None
    return asyncio.run(_serve(host, port))


async def _serve(host: str, port: int) -> int:
    runner = web.AppRunner(make_app(), handle_signals=False, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, host, port, shutdown_timeout=1)
    try:
        await site.start()
    except OSError as error:
        await runner.cleanup()
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    bound = runner.addresses[0]
    print(f"ready: http://{bound[0]}:{bound[1]}/v1", flush=True)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()
    await runner.cleanup()
    return 0
