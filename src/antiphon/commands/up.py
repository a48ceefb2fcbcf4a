"""`antiphon up`: everything, started, watched and drained.

Lives here: which processes there are, when they count as ready, and the order in which they stop. Not here: one
child's life (`children.py`), Envoy's configuration (`envoy/`).

Invariants: `ready: URL` is printed once, after a request through the listener was answered; a signal lets requests in
flight finish and refuses new ones; when a child dies, all stop and the exit status says so.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp

from antiphon.app import prepare_data
from antiphon.cli import settings_of
from antiphon.commands.children import Child
from antiphon.commands.envoy_config import endpoints
from antiphon.commands.process import run_loop
from antiphon.config import Settings, parse_address
from antiphon.envoy.binary import find_envoy
from antiphon.envoy.bootstrap import bootstrap, to_yaml
from antiphon.envoy.routes import KEY_VARIABLE, SECRET_VARIABLE
from antiphon.errors import ConfigError
from antiphon.observability.logs import configure

__all__ = ["run"]

_START_SECONDS = 60.0
_POLL_SECONDS = 0.05
_STOP_SECONDS = 5.0
# The longest path a Unix socket may have is 107 bytes; ours end in names of up to 24.
_LONGEST_FOLDER = 80


def run(arguments: argparse.Namespace) -> int:
    settings = settings_of(arguments)
    configure(settings.log.level, settings.log.format)
    return run_loop(_Up(settings).run())


class _Died(Exception):
    """A child ended that should not have."""

    def __init__(self, child: Child) -> None:
        super().__init__(child.name)
        self.child = child


class _Up:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._sidecars: list[Child] = []
        self._envoy: Child | None = None
        self._folder: Path | None = None
        self._pipe: tuple[int, int] | None = None
        self._reserved: socket.socket | None = None

    async def run(self) -> int:
        first, second = asyncio.Event(), asyncio.Event()

        def stop() -> None:
            (second if first.is_set() else first).set()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        try:
            prepare_data(self._settings.data)
            start = self._start_envoy() if self._settings.door == "envoy" else self._start_http()
            url = await self._watched(start, first)
            if url is not None:
                self._announce(url)
                await self._watched(first.wait(), first)
            await self._drain(second)
            return 0
        except _Died as death:
            child = death.child
            print(f"antiphon: {child.name} ended with status {await child.wait()}; its last lines:", file=sys.stderr)
            for line in child.last_lines():
                print(f"  {line}", file=sys.stderr)
            return 1
        finally:
            await self._stop_all()

    # Start

    async def _start_envoy(self) -> str:
        settings = self._settings
        binary = find_envoy(settings.envoy.binary)
        folder = self._make_folder()
        settings = self._settings = _with_sockets_in(settings, folder)
        sidecars = endpoints(settings)
        config = folder / "envoy.yaml"
        _write_private(config, to_yaml(bootstrap(settings, sidecars=sidecars)))
        file = folder / "settings.json"
        _write_private(file, json.dumps(_without_secrets(settings)))
        environ = _environment(settings)
        for number in range(settings.workers):
            await self._start_child(f"sidecar {number}", "extproc", file, environ, ("--worker", str(number)))
        secrets = {KEY_VARIABLE: settings.upstream.api_key, SECRET_VARIABLE: settings.sidecar.secret}
        plain = {name: value for name, value in os.environ.items() if not name.startswith("ANTIPHON_")}
        command = [str(binary), "-c", str(config), "--disable-hot-restart", "--log-level", settings.envoy.log_level]
        if settings.envoy.concurrency is not None:
            command += ["--concurrency", str(settings.envoy.concurrency)]
        self._envoy = await Child.start(
            "envoy",
            command,
            {**plain, **{name: value.get_secret_value() for name, value in secrets.items() if value is not None}},
        )
        admin = settings.place(settings.envoy.admin)
        await _until(lambda: _admin_ready(admin, settings.workers))
        where = await _bound_address(admin, settings.listen)
        await _until(lambda: _answers(f"http://{where}/ready"))
        return where

    async def _start_http(self) -> str:
        settings = self._settings
        folder = self._make_folder()
        host, port = parse_address(settings.listen)
        if port == 0:
            # The port is chosen here once, so that all workers share it.
            port = self._reserve(host)
        where = f"{host}:{port}" if ":" not in host else f"[{host}]:{port}"
        settings = self._settings = settings.model_copy(update={"listen": where})
        file = folder / "settings.json"
        _write_private(file, json.dumps(_without_secrets(settings)))
        environ = _environment(settings)
        shared = ("--shared-port",) if settings.workers > 1 else ()
        for number in range(settings.workers):
            await self._start_child(f"http door {number}", "serve", file, environ, shared)
        await _until(lambda: _answers(f"http://{where}/ready"))
        return where

    def _reserve(self, host: str) -> int:
        holder = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind((host, 0))
        port = int(holder.getsockname()[1])
        if self._settings.workers > 1:
            self._reserved = holder
        else:
            holder.close()
        return port

    async def _start_child(
        self, name: str, command: str, file: Path, environ: Mapping[str, str], extra: tuple[str, ...]
    ) -> None:
        if self._pipe is None:
            self._pipe = os.pipe()
        arguments = [sys.executable, "-m", "antiphon", command, "--config", str(file)]
        arguments += ["--parent-pipe", str(self._pipe[0]), *extra]
        self._sidecars.append(await Child.start(name, arguments, environ, pipe=self._pipe[0]))

    def _make_folder(self) -> Path:
        """The folder for sockets and generated files: in the data folder, or where socket paths are short enough."""
        folder = self._settings.data.absolute() / "run"
        if len(str(folder)) > _LONGEST_FOLDER:
            folder = Path(tempfile.mkdtemp(prefix="antiphon-"))
        else:
            folder.mkdir(mode=0o700, exist_ok=True)
            folder = Path(tempfile.mkdtemp(dir=folder))
        self._folder = folder
        return folder

    def _announce(self, where: str) -> None:
        print(f"ready: http://{where}/v1", flush=True)
        if sys.stdout.isatty():
            settings = self._settings
            door = "Envoy" if settings.door == "envoy" else "HTTP door"
            print(f"  {door}, {settings.workers} worker(s), upstream {settings.upstream.url}", flush=True)
            print(f"  data in {settings.data.absolute()}; Ctrl-C drains and stops", flush=True)

    # Watch

    async def _watched(self, work: Any, stop: asyncio.Event) -> Any:
        """Wait for `work`; None when a signal comes first. Raises `_Died` when a child ends."""
        task = asyncio.ensure_future(work)
        signalled = asyncio.ensure_future(stop.wait())
        watchers: dict[asyncio.Task[int], Child] = {}
        try:
            while True:
                for child in self._children():
                    if child not in watchers.values():
                        watchers[asyncio.ensure_future(child.wait())] = child
                waiting: set[asyncio.Future[Any]] = {task, signalled, *watchers}
                # Children are started by the task that is waited for: look for new ones now and then.
                timeout = _POLL_SECONDS if not task.done() and len(watchers) == 0 else 0.5
                done, _ = await asyncio.wait(waiting, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                for finished in done:
                    if finished in watchers:
                        raise _Died(watchers[finished])
                if task in done:
                    return task.result()
                if signalled in done:
                    return None
        finally:
            for pending in (task, signalled, *watchers):
                pending.cancel()

    def _children(self) -> list[Child]:
        return [*self._sidecars, *([self._envoy] if self._envoy is not None else [])]

    # Stop

    async def _drain(self, cut: asyncio.Event) -> None:
        """Refuse what is new, let what is in flight finish; a second signal cuts it short."""
        if self._envoy is not None and self._envoy.status is None:
            await _drain_listeners(self._settings.place(self._settings.envoy.admin))
        for child in self._sidecars:
            child.signal(signal.SIGTERM)
        if self._sidecars:
            ended: asyncio.Future[Any] = asyncio.gather(*(child.wait() for child in self._sidecars))
            second: asyncio.Future[Any] = asyncio.ensure_future(cut.wait())
            seconds = self._settings.timeouts.drain + _STOP_SECONDS
            await asyncio.wait({ended, second}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            second.cancel()

    async def _stop_all(self) -> None:
        await asyncio.gather(*(child.stop(_STOP_SECONDS) for child in self._children()))
        if self._pipe is not None:
            for end in self._pipe:
                os.close(end)
        if self._reserved is not None:
            self._reserved.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _with_sockets_in(settings: Settings, folder: Path) -> Settings:
    """The settings with `{data}` in addresses replaced by the folder of this run."""

    def place(address: str) -> str:
        return address.replace("{data}", str(folder))

    sidecar = settings.sidecar
    return settings.model_copy(
        update={
            "data": settings.data.absolute(),
            "sidecar": sidecar.model_copy(
                update={
                    "grpc": place(sidecar.grpc),
                    "http": place(sidecar.http),
                    "model_door": place(sidecar.model_door),
                }
            ),
            "envoy": settings.envoy.model_copy(update={"admin": place(settings.envoy.admin)}),
        }
    )


_SECRETS = (("upstream", "api_key"), ("owner", "key"), ("sidecar", "secret"))


def _without_secrets(settings: Settings) -> dict[str, Any]:
    values = settings.model_dump(mode="json")
    for section, name in _SECRETS:
        values[section].pop(name)
    return values


def _environment(settings: Settings) -> dict[str, str]:
    """The children's environment: secrets travel here, never in files or arguments."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("ANTIPHON_")}
    for section, name in _SECRETS:
        secret = getattr(getattr(settings, section), name)
        if secret is not None:
            environ[f"ANTIPHON_{section}__{name}".upper()] = secret.get_secret_value()
    return environ


def _write_private(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)


async def _until(check: Any) -> None:
    """Poll until `check` holds. Raises `ConfigError` when it takes too long."""
    try:
        async with asyncio.timeout(_START_SECONDS):
            # Other processes become ready by themselves and tell nobody: there is nothing to wait for but time.
            while not await check():  # noqa: ASYNC110
                await asyncio.sleep(_POLL_SECONDS)
    except TimeoutError:
        raise ConfigError(f"not ready after {_START_SECONDS:g} s; see the log lines above") from None


async def _admin(admin: str, method: str, path: str) -> tuple[int, bytes]:
    """Ask Envoy's admin port; (0, b"") while it does not answer."""
    connector = aiohttp.UnixConnector(admin.removeprefix("unix:")) if admin.startswith("unix:") else None
    base = "http://admin" if connector else f"http://{admin}"
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=5)) as session,
            session.request(method, base + path) as answer,
        ):
            return answer.status, await answer.read()
    except (aiohttp.ClientError, OSError, TimeoutError):
        return 0, b""


async def _admin_ready(admin: str, workers: int) -> bool:
    """Envoy is live, and finds all sidecars healthy."""
    if (await _admin(admin, "GET", "/ready"))[0] != 200:
        return False
    status, body = await _admin(admin, "GET", "/clusters?format=json")
    if status != 200:
        return False
    healthy = 0
    for cluster in json.loads(body).get("cluster_statuses", ()):
        if cluster["name"] in ("sidecar_grpc", "sidecar_http"):
            for host in cluster.get("host_statuses", ()):
                health = host.get("health_status", {})
                healthy += not any(health.get(flag) for flag in ("failed_active_health_check", "pending_active_hc"))
    return healthy == 2 * workers


async def _bound_address(admin: str, listen: str) -> str:
    """The public listener's address, with the port that was given for port 0."""
    status, body = await _admin(admin, "GET", "/listeners?format=json")
    host, port = parse_address(listen)
    if status == 200:
        for entry in json.loads(body).get("listener_statuses", ()):
            if entry["name"] == "public":
                port = entry["local_address"]["socket_address"]["port_value"]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def _drain_listeners(admin: str) -> None:
    await _admin(admin, "POST", "/drain_listeners")


async def _answers(url: str) -> bool:
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session,
            session.get(url.replace("//0.0.0.0:", "//127.0.0.1:")) as answer,
        ):
            return answer.status == 200
    except (aiohttp.ClientError, OSError, TimeoutError):
        return False
