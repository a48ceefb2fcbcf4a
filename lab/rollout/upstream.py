"""The chat server of a rollout: the demo's server, with the speed of a model.

Lives here: one process that prints `ready: URL`. Not here: the content of the answers
(`antiphon/commands/demo_upstream.py`).

Invariant: the process ends at SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import signal

from aiohttp import web

from antiphon.commands.demo_upstream import make_app


async def _serve(pause: float) -> None:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    runner = web.AppRunner(make_app(pause=pause), access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        print(f"ready: http://127.0.0.1:{runner.addresses[0][1]}/v1", flush=True)
        await stopped.wait()
    finally:
        await runner.cleanup()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--pause", type=float, default=0.5, help="seconds between two words")
    asyncio.run(_serve(parser.parse_args().pause))
