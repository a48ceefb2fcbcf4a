"""Serves the small chat servers of the command line: `demo-upstream`, `record` and `replay`.

Lives here: listening until a signal, the line with the address, and the lines for exchanges. Not here: the servers
(`demo_upstream.py`, `recordings/`), the arguments (`commands/chat_server_arguments.py`).

Invariants: the only line on standard output names the address, after the server listens. SIGTERM or SIGINT ends the
command.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from typing import Any

from aiohttp import web

from antiphon.commands.terminal import printable
from antiphon.config.section import parse_address
from antiphon.errors import ConfigError
from antiphon.observability.log_lines import colors_wanted
from antiphon.supervisor.process import run_loop

_DIM, _RED, _GREEN, _YELLOW, _END = "\x1b[2m", "\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[0m"
_LONGEST = 500


def serve_app(app: web.Application, listen: str, ready: dict[str, Any] | None = None) -> int:
    """Serve the application at `listen` (`HOST:PORT`) until a signal. Returns the exit status 0.

    The line with the address is `ready: URL`. If `ready` is given, the line is a JSON object with these values and the
    URL as `ready`. Raises `ConfigError` if the address is wrong or not free."""
    try:
        host, port = parse_address(listen)
    except ValueError as error:
        raise ConfigError(f"--listen: {error}") from None
    if host == "unix":
        raise ConfigError("--listen: is not HOST:PORT")
    return run_loop(_serve(app, host, port, ready))


async def _serve(app: web.Application, host: str, port: int, ready: dict[str, Any] | None) -> int:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0, handler_cancellation=True)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            raise ConfigError(f"--listen: cannot listen on {host}:{port}: {reason}") from None
        bound = runner.addresses[0][1]
        url = f"http://{f'[{host}]' if ':' in host else host}:{bound}/v1"
        print(f"ready: {url}" if ready is None else json.dumps({"ready": url, **ready}), flush=True)
        await stopped.wait()
    finally:
        await runner.cleanup()
    return 0


def counted(number: int, noun: str) -> str:
    """The number with the noun in singular or plural."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def print_exchange(number: int, line: str, *, status: int, cut: bool, note: str) -> None:
    """Print one line for an exchange to standard error, in colour on a terminal. `number` is the number of its entry,
    or 0. `line` may contain texts of a client."""
    color = _YELLOW if note or cut else _RED if status >= 400 else _GREEN
    state = f"{status or 'no status'}{' cut' if cut else ''}"
    said = printable(f"{line}{f'  {note}' if note else ''}")[:_LONGEST]
    now = time.strftime("%H:%M:%S")
    entry = f"#{number}" if number else "-"
    if colors_wanted():
        now, state = f"{_DIM}{now}{_END}", f"{color}{state}{_END}"
    print(f"{now}  {entry:>4}  {state}  {said}", file=sys.stderr, flush=True)
