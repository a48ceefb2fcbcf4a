"""`antiphon up`: everything, started, watched and drained.

Lives here: which processes there are, when they count as ready, and the order in which they stop. Not here: one
child's life (`children.py`), Envoy's configuration (`envoy/`) and admin port (`envoy_admin.py`).

Invariants: `ready: URL` is the one line on standard output, printed after a request through the listener was answered;
a signal lets requests in flight finish and refuses new ones; when a child dies all stop, and the exit status says so.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import structlog

from antiphon.app import prepare_data
from antiphon.commands.child_settings import file_values, secret_environment
from antiphon.commands.children import Child, ParentPipe, describe_status
from antiphon.commands.envoy_admin import EnvoyAdmin
from antiphon.commands.envoy_config import endpoints
from antiphon.commands.flags import settings_of
from antiphon.commands.run_folder import run_folder, write_private
from antiphon.config import Settings, parse_address
from antiphon.envoy.binary import find_envoy
from antiphon.envoy.bootstrap import bootstrap, fill_in_secret, to_yaml
from antiphon.envoy.routes import KEY_VARIABLE, SECRET_VARIABLE, key_variable
from antiphon.errors import AntiphonError, ConfigError
from antiphon.observability.logs import configure

__all__ = ["run"]

_log = structlog.get_logger(__name__)

_START_SECONDS = 60.0
_POLL_SECONDS = 0.05
_STOP_SECONDS = 5.0
_ENVOY_LOG = '{"timestamp":"%Y-%m-%dT%H:%M:%S.%fZ","level":"%l","logger":"envoy.%n","message":"%j"}'


_T = TypeVar("_T")


def run(arguments: argparse.Namespace) -> int:
    settings = settings_of(arguments)
    if settings.log.format == "auto":
        # Decided here: for the children standard error is always a pipe.
        form = "console" if sys.stderr.isatty() else "json"
        settings = settings.model_copy(update={"log": settings.log.model_copy(update={"format": form})})
    configure(settings.log.level, settings.log.format)
    settings = settings.model_copy(update={"listen": _free_address(settings.listen)})
    # Not on uvloop: its subprocesses inherit descriptors they were not given.
    return asyncio.run(_Up(settings).run())


class _Died(AntiphonError):
    """A child ended that should not have."""

    def __init__(self, child: Child, status: int) -> None:
        lines = child.last_lines() or ["(it wrote nothing)"]
        super().__init__("\n  ".join((f"{child.name} {describe_status(status)}; its last lines:", *lines)))


class _Up:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._pipe = ParentPipe()
        self._workers: list[Child] = []
        self._serving: set[str] = set()
        self._port = 0
        self._envoy: Child | None = None
        self._admin: EnvoyAdmin | None = None
        self._ended: asyncio.Queue[tuple[Child, int]] = asyncio.Queue()
        self._watches: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        stop, cut = asyncio.Event(), asyncio.Event()

        def on_signal() -> None:
            (cut if stop.is_set() else stop).set()

        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, on_signal)
        prepare_data(self._settings.data)
        with run_folder(self._settings.data) as folder:
            try:
                where = await self._until(stop, self._start(folder))
                if where is None:
                    return 0
                self._announce(where)
                await self._until(stop, asyncio.Event().wait())
                _log.info("draining")
                drained = await self._until(cut, self._drain(), deaths=False)
                _log.info("drained" if drained else "stopped_with_requests_in_flight")
                return 0 if drained else 1
            finally:
                await self._stop_all()

    async def _until(self, stop: asyncio.Event, work: Coroutine[Any, Any, _T], *, deaths: bool = True) -> _T | None:
        """What `work` returns; None when `stop` is set first. Raises `_Died` when a child ends."""
        task = asyncio.ensure_future(work)
        stopped = asyncio.ensure_future(stop.wait())
        ended = asyncio.ensure_future(self._ended.get())
        waits: set[asyncio.Future[Any]] = {task, stopped, ended}
        try:
            awaited = waits if deaths else {task, stopped}
            await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
            if deaths and ended.done():
                raise _Died(*ended.result())
            return task.result() if task.done() else None
        finally:
            for pending in waits:
                pending.cancel()
            await asyncio.wait(waits)

    # Start

    async def _start(self, folder: Path) -> str:
        """Start everything; the address at which it answers."""
        self._settings = _placed_in(self._settings, folder)
        if self._settings.door == "envoy":
            return await self._start_envoy(folder)
        return await self._start_http(folder)

    async def _start_envoy(self, folder: Path) -> str:
        settings = self._settings
        binary = find_envoy(settings.envoy.binary)
        config = folder / "envoy.yaml"
        text = to_yaml(bootstrap(settings, sidecars=endpoints(settings)))
        write_private(config, fill_in_secret(text, settings))
        for number in range(settings.workers):
            await self._start_worker(folder, f"sidecar {number}", "extproc", "--worker", str(number))
        # The sidecars first: Envoy's first health check then finds them.
        await _poll(self._all_serving, "the sidecar processes")
        command = [str(binary), "-c", str(config), "--disable-hot-restart", "--log-level", settings.envoy.log_level]
        if settings.log.format == "json":
            command += ["--log-format", _ENVOY_LOG]
        if settings.envoy.concurrency is not None:
            command += ["--concurrency", str(settings.envoy.concurrency)]
        self._envoy = await self._start_child("envoy", command, _envoy_environment(settings), guarded=True)
        admin = self._admin = EnvoyAdmin(settings.place(settings.envoy.admin))
        await _poll(admin.is_live, "Envoy")
        all_healthy = 2 * settings.workers

        async def healthy() -> bool:
            return await admin.healthy_endpoints("sidecar_grpc", "sidecar_http") == all_healthy

        await _poll(healthy, "the sidecar processes, as Envoy sees them,")
        host, port = parse_address(settings.listen)
        where = _join(host, port or await admin.bound_port("public") or 0)
        await _poll(lambda: _answers(where), f"http://{where}/ready")
        return where

    async def _start_http(self, folder: Path) -> str:
        host, port = parse_address(self._settings.listen)
        # The port is held here while the workers start, so that with port 0 all of them get the same one.
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as holder:
            if self._settings.workers > 1:
                holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                holder.bind((host, port))
                port = int(holder.getsockname()[1])
            self._settings = self._settings.model_copy(update={"listen": _join(host, port)})
            shared = ("--shared-port",) if self._settings.workers > 1 else ()
            for number in range(self._settings.workers):
                await self._start_worker(folder, f"http door {number}", "serve", *shared)
            await _poll(self._all_serving, "the HTTP door")
        where = _join(host, port or self._port)
        await _poll(lambda: _answers(where), f"http://{where}/ready")
        return where

    async def _start_worker(self, folder: Path, name: str, *command: str) -> None:
        file = folder / "settings.json"
        if not file.exists():
            write_private(file, json.dumps(file_values(self._settings)))
        arguments = [sys.executable, "-m", "antiphon", *command, "--config", str(file)]
        self._workers.append(await self._start_child(name, arguments, _worker_environment(self._settings)))

    async def _start_child(
        self, name: str, command: Sequence[str], environ: Mapping[str, str], *, guarded: bool = False
    ) -> Child:
        child = await Child.start(name, command, environ, pipe=self._pipe, write_line=self._take_line, guarded=guarded)

        async def watch() -> None:
            self._ended.put_nowait((child, await child.wait()))

        task = asyncio.ensure_future(watch())
        self._watches.add(task)
        task.add_done_callback(self._watches.discard)
        return child

    async def _all_serving(self) -> bool:
        return len(self._serving) == self._settings.workers

    def _take_line(self, name: str, line: str) -> None:
        """Forward a line of a child; a worker's first line says that it listens, which is ours to tell."""
        if line.startswith(("ready: ", "serving: ")):
            self._serving.add(name)
            if self._settings.door == "http":
                self._port = parse_address(line.removeprefix("ready: http://").removesuffix("/v1"))[1]
            return
        if self._settings.log.format == "console":
            line = f"{name:<11} | {line}"
        elif line.startswith('{"'):
            line = f'{{"process":"{name}",{line[1:]}'
        else:
            line = json.dumps({"process": name, "level": "info", "message": line})
        print(line, file=sys.stderr, flush=True)

    def _announce(self, where: str) -> None:
        print(f"ready: http://{where}/v1", flush=True)
        if sys.stderr.isatty():
            settings = self._settings
            door = "Envoy" if settings.door == "envoy" else "the HTTP door"
            lines = (
                f"  clients    http://{where}/v1, answered by {door} and {settings.workers} worker process(es)",
                *(
                    f"  upstream   {one.url}, credentials: {one.auth_mode.value}"
                    + ("" if name == "default" else f", for the models of {name}")
                    for name, one in settings.every_upstream.items()
                ),
                f"  data       {settings.data}",
                "  Ctrl-C     finishes what is in flight and stops; again stops at once",
            )
            print("\n".join(lines), file=sys.stderr, flush=True)

    # Stop

    async def _drain(self) -> bool:
        """Refuse what is new, let what is in flight finish; False when the time for it was not enough."""
        clock = asyncio.get_running_loop().time
        last = clock() + self._settings.timeouts.drain + _STOP_SECONDS
        if self._admin is not None:
            await self._admin.refuse_connections()
        for child in self._workers:
            child.signal(signal.SIGTERM)
        # The workers know how long they may take. What they finished may still be on its way through Envoy.
        statuses = await asyncio.gather(*(child.wait() for child in self._workers))
        if self._admin is not None:
            while in_flight := await self._admin.requests_in_flight("antiphon"):
                if clock() > last:
                    _log.warning("cut", requests=in_flight)
                    return False
                await asyncio.sleep(_POLL_SECONDS)
        return not any(statuses)

    async def _stop_all(self) -> None:
        """Stop what still runs, at once. Envoy first: the sidecars then see their clients leave, and note it."""
        if self._envoy is not None:
            await self._envoy.stop(_STOP_SECONDS)
        for child in self._workers:
            # Two different signals, so that they are two even if it was draining already or gets both at once.
            child.signal(signal.SIGINT)
        await asyncio.gather(*(child.stop(_STOP_SECONDS) for child in self._workers))
        self._pipe.close()
        if self._watches:
            await asyncio.wait(self._watches)


def _free_address(listen: str) -> str:
    """The address as numbers, if it can be listened on.

    Asked here, since Envoy shares a port with whoever else listens on it without a word, and knows no names.
    """
    host, port = parse_address(listen)
    if host == "unix":
        raise ConfigError(f"listen: {listen} is not HOST:PORT")
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        raise ConfigError(f"listen: cannot listen on {listen}: {error.strerror}") from None
    return _join(str(where[0]), port)


def _placed_in(settings: Settings, folder: Path) -> Settings:
    """The settings with `{data}` in addresses replaced by the folder of this run."""

    def place(address: str) -> str:
        return address.replace("{data}", str(folder))

    sidecar = settings.sidecar
    names = ("grpc", "http", "model_door")
    return settings.model_copy(
        update={
            "data": settings.data.absolute(),
            "sidecar": sidecar.model_copy(update={name: place(getattr(sidecar, name)) for name in names}),
            "envoy": settings.envoy.model_copy(update={"admin": place(settings.envoy.admin)}),
        }
    )


def _plain_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("ANTIPHON_")}


def _worker_environment(settings: Settings) -> dict[str, str]:
    """Secrets travel in the environment, never in files or arguments."""
    return {**_plain_environment(), **secret_environment(settings)}


def _envoy_environment(settings: Settings) -> dict[str, str]:
    secrets = {KEY_VARIABLE: settings.upstream.api_key, SECRET_VARIABLE: settings.sidecar.secret}
    secrets |= {key_variable(name): upstream.api_key for name, upstream in settings.upstreams.items()}
    given = {name: value.get_secret_value() for name, value in secrets.items() if value is not None}
    return {**_plain_environment(), **given}


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def _poll(check: Callable[[], Awaitable[bool]], what: str) -> None:
    """Ask until it holds. Raises `AntiphonError` when it takes too long."""
    clock = asyncio.get_running_loop().time
    last = clock() + _START_SECONDS
    while not await check():
        if clock() > last:
            raise AntiphonError(f"{what} did not get ready within {_START_SECONDS:g} s; the log says more")
        await asyncio.sleep(_POLL_SECONDS)


async def _answers(where: str) -> bool:
    """Whether a request through the listener is answered; a wildcard address is asked on this machine."""
    host, port = parse_address(where)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_STOP_SECONDS)) as session,
            session.get(f"http://{_join(host, port)}/ready") as answer,
        ):
            return answer.status == 200
    except (aiohttp.ClientError, OSError, TimeoutError):
        return False
