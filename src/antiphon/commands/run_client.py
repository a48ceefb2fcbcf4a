"""Implements `antiphon run`: runs a client program, such as Codex, on a gateway, and starts the gateway if none runs.

This module chooses the gateway, runs the processes, forwards signals and returns the client's exit status.
`client_programs.py` has the clients and their configuration. `running_gateway.py` finds a gateway that already runs,
and `up.py` implements the gateway.

Invariants: the exit status is the client's; after a signal it is 128 plus the signal's number. A gateway that this
command started does not outlive the command, even if the command is killed. The command removes the private folder at
its end. A killed command leaves the client and the private folder. The next start with the same data folder removes the
private folder. A gateway that ran before the command continues to run. Ctrl-C does not reach a gateway that this
command started, because the client decides what Ctrl-C means. The gateway's log does not disturb the client's terminal.
If the client ends with a status other than 0, the log stays in the data folder. The client gets no `ANTIPHON_…`
variables, which may hold the keys of upstreams.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from antiphon.child_signals import send_signal
from antiphon.commands.client_programs import CLIENTS, ClientProgram, Target
from antiphon.commands.flags import given_words, settings_of
from antiphon.commands.running_gateway import NoGateway, client_key, gateway_url, listen_url, reached
from antiphon.config.section import parse_address
from antiphon.config.settings import Settings
from antiphon.errors import AntiphonError, ConfigError
from antiphon.local_keys import prepare_data
from antiphon.supervisor import parent_guard
from antiphon.supervisor.children import ParentPipe
from antiphon.supervisor.process import hears_hangup
from antiphon.supervisor.run_folder import run_folder

KEY_VARIABLE = "GATEWAY_KEY"
"""The environment variable with the client's key, unless `--key-env` names another variable."""
_NO_KEY = "anything"
_LOG = "gateway.log"
_START_SECONDS = 180.0
_CLOSING_SECONDS = 10.0
_TOLD_LINES = 5
_TOLD_BYTES = 16 * 1024
_FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_OF_KEYBOARD = frozenset({signal.SIGINT, signal.SIGQUIT})
_ENDING = frozenset(_FORWARDED) - {signal.SIGUSR1, signal.SIGUSR2}


class ForwardedSignals:
    """Passes each signal of this process to the target that is set at that time (the gateway or the client). Without a
    target, a signal ends this command."""

    def __init__(self) -> None:
        self.first = 0
        """The signal that ended this command before the client started."""
        self.target: Callable[[int], object] | None = None

    def hear(self) -> None:
        """Install the signal handlers. A signal without a target cancels the running task."""
        task = asyncio.current_task()
        assert task is not None

        def receive(number: int) -> None:
            if self.target is not None:
                self.target(number)
            elif number in _ENDING:
                self.first = self.first or number
                task.cancel()

        for number in _FORWARDED:
            if number != signal.SIGHUP or hears_hangup():
                asyncio.get_running_loop().add_signal_handler(number, receive, number)


def run(arguments: argparse.Namespace) -> int:
    """Run the client. Returns its exit status."""
    program = CLIENTS[arguments.client]
    binary = shutil.which(program.binary)
    if binary is None:
        raise AntiphonError(f"{program.binary} is not on PATH; install it with '{program.install}'")
    settings = settings_of(arguments)
    prepare_data(settings.data)
    signals = ForwardedSignals()
    try:
        return asyncio.run(_run(arguments, settings, program, binary, signals))
    except asyncio.CancelledError:
        return 128 + signals.first


async def _run(
    arguments: argparse.Namespace, settings: Settings, program: ClientProgram, binary: str, signals: ForwardedSignals
) -> int:
    signals.hear()
    key, variable = client_key(arguments.key_env), arguments.key_env or KEY_VARIABLE
    with run_folder(settings.data) as folder:
        async with AsyncExitStack() as stack:
            url, started = await _running(arguments, settings), None
            if url is None:
                log = folder / _LOG
                words = given_words(arguments)
                started = await stack.enter_async_context(started_gateway(words, log, settings.timeouts.drain))
                url = started.url
                told = f"a gateway runs at {url} until {arguments.client} ends; its log is {log}"
                print(f"antiphon: {told}", file=sys.stderr)
            async with reached(url, key) as client:
                model = arguments.model or await client.first_model()
            if not model.isprintable():
                raise ConfigError("--model: contains characters that cannot be printed")
            home = folder / "client"
            home.mkdir(mode=0o700)
            environ = {name: value for name, value in os.environ.items() if not name.startswith("ANTIPHON_")}
            environ |= {variable: key or _NO_KEY, **program.configure(home, Target(url, model, variable))}
            status = await _until_its_end([binary, *arguments.rest], environ, signals)
            # A signal during the gateway's drain makes the drain shorter.
            signals.target = lambda _: None if started is None else started.signal()
        if started is not None and status:
            _keep_log(folder / _LOG, settings.data / f"run-{arguments.client}.log", arguments.client, status)
        return status


def _keep_log(log: Path, kept: Path, client: str, status: int) -> None:
    """Move the log of the stopped gateway from the private folder to the data folder, and print its new path. It
    replaces the log of an earlier client."""
    try:
        shutil.move(log, kept)
    except OSError as error:
        print(f"antiphon: the gateway's log cannot be moved to {kept}: {error.strerror}", file=sys.stderr)
    else:
        print(f"antiphon: {client} ended with the status {status}; the gateway's log is {kept}", file=sys.stderr)


async def _running(arguments: argparse.Namespace, settings: Settings) -> str | None:
    """The base URL of the gateway that already runs, or None if this command must start one. Raises `GatewayError`."""
    if arguments.url is not None:
        url = gateway_url(arguments.url, None)
    elif parse_address(settings.listen)[1] == 0:
        return None
    else:
        url = listen_url(settings.listen)
    async with reached(url, None) as client:
        there = await client.is_there()
    if not there and arguments.url is not None:
        raise NoGateway(f"no gateway answers at {url}; without --url this command starts one")
    names = [word.partition("=")[0] for word in given_words(arguments)]
    unused = [name for name in names if name not in ("--config", "--data", "--listen")]
    if there and unused:
        told = f"a gateway already runs at {url}, so these flags have no effect: {', '.join(unused)}"
        print(f"antiphon: {told}", file=sys.stderr)
    return url if there else None


async def _until_its_end(command: Sequence[str], environ: Mapping[str, str], signals: ForwardedSignals) -> int:
    """Run the client in this terminal, and forward signals to it. Returns its exit status."""
    try:
        process = await asyncio.create_subprocess_exec(*command, env=environ)
    except OSError as error:
        raise AntiphonError(f"{command[0]} cannot be started: {error.strerror}") from None

    def forward(number: int) -> None:
        # The terminal also sends the signals of its keys to the client. If this process forwarded them too, the client
        # would get each signal twice, and a second signal may mean something else.
        if number not in _OF_KEYBOARD or not _in_foreground():
            send_signal(process, number)

    signals.target = forward
    status = await process.wait()
    return status if status >= 0 else 128 - status


def _in_foreground() -> bool:
    """Whether this process is in the terminal's foreground. In that case the terminal sends the signals of keys such as
    Ctrl-C to this process and to the client."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


class StartedGateway:
    """A running `antiphon up`. `url` is its base URL."""

    def __init__(self, process: asyncio.subprocess.Process, url: str) -> None:
        self._process = process
        self.url = url

    def signal(self) -> None:
        """Ask the gateway to stop. A second call asks it to stop immediately."""
        send_signal(self._process, signal.SIGTERM)


@asynccontextmanager
async def started_gateway(words: Sequence[str], log: Path, drain: float) -> AsyncIterator[StartedGateway]:
    """Run `antiphon up` with these arguments during the `with` block. The log lines of `antiphon up` go to the file
    `log`. `drain` is the setting `timeouts.drain`. Raises `AntiphonError` if the gateway does not become ready."""
    pipe = ParentPipe()
    # The guard ends the gateway if this process is killed.
    guard = [sys.executable, "-I", "-S", str(Path(parent_guard.__file__)), str(pipe.reading), f"{_CLOSING_SECONDS:g}"]
    try:
        with _private(log) as lines:
            process = await asyncio.create_subprocess_exec(
                *(*guard, sys.executable, "-m", "antiphon", "up", *words),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=lines,
                pass_fds=(pipe.reading,),
                start_new_session=True,
            )
        try:
            yield StartedGateway(process, await _ready(process, log))
        finally:
            await _stop(process, drain + _CLOSING_SECONDS)
    finally:
        pipe.close()


def _private(log: Path) -> BinaryIO:
    log.touch(mode=0o600)
    return log.open("ab")


async def _ready(process: asyncio.subprocess.Process, log: Path) -> str:
    """Wait until the started gateway prints `ready: URL`, and return this base URL. Raises `AntiphonError`."""
    assert process.stdout is not None
    line = b""
    with suppress(TimeoutError):
        async with asyncio.timeout(_START_SECONDS):
            line = await process.stdout.readline()
    start, _, url = line.decode().strip().partition(" ")
    if start != "ready:":
        raise AntiphonError("\n  ".join(("the gateway did not start:", *_last_lines(log))))
    return url


def _last_lines(log: Path) -> list[str]:
    with log.open("rb") as lines:
        lines.seek(max(0, os.fstat(lines.fileno()).st_size - _TOLD_BYTES))
        return lines.read().decode("utf-8", "replace").splitlines()[-_TOLD_LINES:]


async def _stop(process: asyncio.subprocess.Process, seconds: float) -> None:
    send_signal(process, signal.SIGTERM)
    try:
        async with asyncio.timeout(seconds):
            await process.wait()
    except BaseException as error:
        # After an interruption too, no process may remain.
        send_signal(process, signal.SIGKILL)
        await process.wait()
        if not isinstance(error, TimeoutError):
            raise
