"""Implements `antiphon demo-upstream`, `antiphon record` and `antiphon replay`: each serves a small chat server.

This module interprets the commands' flags and serves until a signal arrives. This module also prints the line with the
address, and a line for each exchange. `demo_upstream.py` and the package `recordings` implement the servers.
`command_arguments.py` has the arguments.

Invariants: standard output gets one line, with the address, when the server listens. SIGTERM or SIGINT ends the
command.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Mapping

from aiohttp import web
from pydantic import TypeAdapter, ValidationError

from antiphon.commands.demo_upstream import make_app
from antiphon.commands.terminal import printable
from antiphon.config.section import BaseUrl, parse_address
from antiphon.errors import ConfigError
from antiphon.observability.log_lines import colors_wanted
from antiphon.recordings.file import CassetteFile, read_file
from antiphon.recordings.scrubbing import environment_secrets
from antiphon.recordings.servers import RecordedExchange, Recorder, ReplayedExchange, Replayer
from antiphon.supervisor.process import run_loop

_DIM, _RED, _GREEN, _YELLOW, _END = "\x1b[2m", "\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[0m"
_LONGEST = 500


def run_demo_upstream(arguments: argparse.Namespace) -> int:
    """Serve the scripted chat server, to try Antiphon without a model."""
    return serve_app(make_app(), arguments.listen)


def run_recorder(arguments: argparse.Namespace) -> int:
    """Serve a proxy that records the exchanges with a chat server. Returns the exit status: 1 if an exchange failed."""
    upstream = _upstream(arguments.upstream)
    secrets = environment_secrets(os.environ) + tuple(_variable("--secret-env", name) for name in arguments.secret_env)
    key = _variable("--key-env", arguments.key_env) if arguments.key_env else ""
    file = CassetteFile(arguments.target, append=arguments.append)
    failed = list[RecordedExchange]()

    def report(outcome: RecordedExchange) -> None:
        if outcome.failed:
            failed.append(outcome)
        _print_recorded(outcome)

    before = file.entries
    try:
        recorder = Recorder(upstream, file, key=key, secrets=secrets, report=report)
        values = {"upstream": upstream, "file": str(arguments.target), "entries": before}
        serve_app(recorder.app, arguments.listen, values if arguments.json else None)
    finally:
        file.close()
    print(f"recorded {counted(file.entries - before, 'exchange')} to {arguments.target}", file=sys.stderr)
    return 1 if failed else 0


def _upstream(url: str) -> str:
    try:
        return str(TypeAdapter(BaseUrl).validate_python(url))
    except ValidationError as error:
        problem = error.errors()[0]["msg"].removeprefix("Value error, ")
        if "credentials" in problem:
            problem = (
                "must not contain a user or a password; put the key into an environment variable and name the "
                "variable with --key-env"
            )
        raise ConfigError(f"--upstream: {problem}") from None


def _variable(flag: str, name: str) -> str:
    value = os.environ.get(name, "")
    if not value:
        raise ConfigError(f"{flag}: the variable {name} is not set")
    if not value.isprintable() or not value.isascii():
        raise ConfigError(f"{flag}: the value of {name} has characters that a key cannot have; use printable ASCII")
    return value


def _print_recorded(outcome: RecordedExchange) -> None:
    model = f" {outcome.model}" if outcome.model else ""
    line = f"{outcome.method} {outcome.path}{model}  {counted(outcome.chunks, 'chunk')}  {outcome.seconds:.2f} s"
    print_exchange(outcome.number, line, status=outcome.status, cut=outcome.cut, note=outcome.note)


def run_replayer(arguments: argparse.Namespace) -> int:
    """Serve recorded answers as a chat server, without a model."""
    entries = read_file(arguments.file)
    replayer = Replayer(
        entries,
        in_time=arguments.speed == "recorded",
        loop=arguments.loop,
        secrets=environment_secrets(os.environ),
        report=_print_played,
    )
    values = {"file": str(arguments.file), "entries": len(entries)}
    return serve_app(replayer.app, arguments.listen, values if arguments.json else None)


def _print_played(played: ReplayedExchange) -> None:
    model = f" {played.model}" if played.model else ""
    line = f"{played.method} {played.path}{model}  {counted(played.chunks, 'chunk')}"
    print_exchange(played.number, line, status=played.status, cut=played.cut, note=played.note)


def serve_app(app: web.Application, listen: str, ready: Mapping[str, object] | None = None) -> int:
    """Serve the application at `listen` (`HOST:PORT`) until a signal arrives. Returns the exit status 0.

    The command prints `ready:` and the URL in one line. If `ready` is given, the line is a JSON object with the values
    of `ready`, and with the URL under the key `ready`. Raises `ConfigError` if the address is wrong or not free."""
    try:
        host, port = parse_address(listen)
    except ValueError as error:
        raise ConfigError(f"--listen: {error}") from None
    if host == "unix":
        raise ConfigError("--listen: is not HOST:PORT")
    return run_loop(_serve(app, host, port, ready))


async def _serve(app: web.Application, host: str, port: int, ready: Mapping[str, object] | None) -> int:
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
    """Print one line for an exchange to standard error, in colour on a terminal. `number` is the number of the
    exchange's entry in the recording, or 0 without an entry. The function replaces control characters in `line` and
    `note`."""
    color = _YELLOW if note or cut else _RED if status >= 400 else _GREEN
    state = f"{status or 'no status'}{' cut' if cut else ''}"
    said = printable(f"{line}{f'  {note}' if note else ''}")[:_LONGEST]
    now = time.strftime("%H:%M:%S")
    entry = f"#{number}" if number else "-"
    if colors_wanted():
        now, state = f"{_DIM}{now}{_END}", f"{color}{state}{_END}"
    print(f"{now}  {entry:>4}  {state}  {said}", file=sys.stderr, flush=True)
