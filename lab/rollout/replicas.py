"""Runs the service of a rollout: replicas that share a state, and a real Envoy in front that checks their health.

Lives here: processes, their settings, Envoy's configuration in both modes, and the health that Envoy reports for each
replica. Not here: clients (`clients.py`), the shared state (`shared.py`), builds (`builds.py`), the order of restarts
(`course.py`).

In mode `http` a replica is `antiphon serve`. Envoy is then a plain proxy without retries, so that it hides no failure.
In mode `envoy` a replica is `antiphon extproc`, and Envoy has the configuration that Antiphon prints. An additional
replica may run outside the load balancer. This replica gets no requests and only runs background responses, so the run
may kill it.

Invariant: the service signals only processes that it started, by their own handle, and leaves none running.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from antiphon.config.settings import Settings
from antiphon.envoy.bootstrap import bootstrap, to_yaml
from antiphon.envoy.messages import Config, address, http_filter, listener, typed
from antiphon.envoy.sidecars import endpoints
from antiphon.envoy.versions import find_envoy
from antiphon.supervisor.http_probe import ask
from lab.rollout.builds import HERE, Build
from lab.rollout.shared import ONE_FOLDER, Shared

Mode = Literal["http", "envoy"]
MODES: tuple[Mode, ...] = ("http", "envoy")

# The time limit for a start or an end. The table has the actual time.
_LONGEST = 180.0
_LOOK = 0.02
_SOCKETS = {"grpc": "sidecar-0.grpc", "http": "sidecar-0.http", "model_door": "model-door"}
_CLUSTERS: dict[Mode, tuple[str, ...]] = {"http": ("replicas",), "envoy": ("sidecar_grpc", "sidecar_http")}


@dataclass(frozen=True)
class Plan:
    """The configuration of a service."""

    mode: Mode
    replicas: int
    notice: float
    drain: float
    shared: Shared = ONE_FOLDER


@dataclass
class Restart:
    """The times of one replica's restart, in seconds after SIGTERM."""

    number: int
    build: str = ""
    """The build of the new process."""
    unseen: float = 0.0
    """The time until Envoy sent the old process its last request."""
    ended: float = 0.0
    back: float = 0.0
    """The time until the new process accepted requests."""
    status: int | None = None
    told: dict[str, Any] = field(default_factory=dict)
    """The fields of the drain's log line."""


class Service:
    """The replicas and Envoy. `url` is the address for clients."""

    def __init__(self, plan: Plan, upstream: str, folder: Path, build: Build = HERE) -> None:
        self._plan = plan
        self._folder = folder
        self._build = build
        ports = _free_ports(plan.replicas + 3)
        self._places, (public, admin) = [f"127.0.0.1:{port}" for port in ports[:-2]], ports[-2:]
        self._admin = f"127.0.0.1:{admin}"
        self.url = f"http://127.0.0.1:{public}"
        self.aside = plan.replicas
        """The number of the replica outside the load balancer."""
        values: dict[str, Any] = {
            "data": str(folder / "data"),
            "listen": f"127.0.0.1:{public}",
            "workers": plan.replicas,
            "upstream": {"url": upstream, "auth": "none", "profile": "generic"},
            "timeouts": {"notice": plan.notice, "drain": plan.drain, "check": 0},
            "log": {"format": "json"},
            "envoy": {"admin": self._admin},
            # The path of Envoy, which does not depend on the replicas' folders.
            "sidecar": {name: f"unix:{folder}/{socket}.sock" for name, socket in _SOCKETS.items()},
            **plan.shared.settings,
        }
        self._settings = Settings.model_validate(values)
        self._file = folder / "settings.json"
        self._file.write_text(json.dumps(values))
        self._replicas: list[asyncio.subprocess.Process | None] = [None] * (plan.replicas + 1)
        self._envoy: asyncio.subprocess.Process | None = None

    def log(self, number: int) -> Path:
        """The log file of a replica, over all its restarts."""
        return self._folder / f"replica-{number}.log"

    async def start(self) -> None:
        """Start all processes. Returns once Envoy reports every replica as healthy."""
        for number in range(self._plan.replicas):
            await self.start_replica(number, self._build)
        config = self._folder / "envoy.yaml"
        if self._plan.mode == "http":
            config.write_text(to_yaml(_proxy(self._settings, self._places[: self.aside])))
        else:
            config.write_text(to_yaml(bootstrap(self._settings, sidecars=endpoints(self._settings))))
        self._envoy = await self._spawn(
            self._folder / "envoy.log",
            *(str(find_envoy(None)), "-c", str(config), "--concurrency", "1", "--disable-hot-restart"),
            *("--log-level", "warning"),
        )
        await self._until(self._all_healthy, "Envoy takes every replica for healthy")

    async def restart(self, number: int, build: Build | None = None) -> Restart:
        """Send SIGTERM, wait for the end, and start a process of this build. Returns once it accepts requests."""
        build = build or self._build
        process, took = self._replicas[number], Restart(number, build.name)
        assert process is not None
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        ending = asyncio.create_task(process.wait())
        while not ending.done():
            if not took.unseen and not await self._healthy(number):
                took.unseen = time.monotonic() - began
            await asyncio.wait({ending}, timeout=_LOOK)
        took.status, took.ended = ending.result(), time.monotonic() - began
        took.told = _last_drain(self.log(number))
        await self.start_replica(number, build)
        await self._until(self._all_healthy, f"replica {number} is back")
        took.back = time.monotonic() - began
        return took

    async def kill(self, number: int) -> None:
        """Send SIGKILL, so that the process cannot clean up."""
        process = self._replicas[number]
        assert process is not None
        process.kill()
        await process.wait()

    async def refused(self, build: Build) -> str:
        """Start a build that must refuse to start. Returns the process's error message, or an empty string if it
        starts."""
        log = self._folder / "refused.log"
        process = await self._spawn(log, *self._command(self.aside, build))
        try:
            async with asyncio.timeout(_LONGEST):
                if await process.wait() == 0:
                    return ""
        except TimeoutError:
            return ""
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return log.read_text().strip()

    async def stop(self) -> None:
        """Stop all processes immediately."""
        for process in (self._envoy, *self._replicas):
            if process is not None and process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()

    async def start_replica(self, number: int, build: Build) -> None:
        """Start a process in this replica's position. Returns once the process reports that it is ready."""
        process = await self._spawn(self.log(number), *self._command(number, build))
        self._replicas[number] = process
        place = self._places[number]
        if self._plan.mode == "envoy" and number != self.aside:
            place = self._settings.place(endpoints(self._settings)[number].http)

        async def ready() -> bool:
            if process.returncode is not None:
                raise RuntimeError(f"replica {number} ended:\n{self.log(number).read_text()[-3000:]}")
            return await ask(place, "/ready", 5.0) is not None

        await self._until(ready, f"replica {number} is ready")

    def _command(self, number: int, build: Build) -> tuple[str, ...]:
        door = ("serve", "--listen", self._places[number])
        if self._plan.mode == "envoy" and number != self.aside:
            door = ("extproc", "--worker", str(number))
        data = (f"--data={self._folder}/data-{number}",) if self._plan.shared.machines else ()
        return (*build.command, *door, "--config", str(self._file), *data)

    async def _spawn(self, log: Path, *command: str) -> asyncio.subprocess.Process:
        plain = {name: value for name, value in os.environ.items() if not name.startswith("ANTIPHON_")}
        with log.open("ab") as output:
            return await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output, env=plain
            )

    async def _until(self, holds: Callable[[], Awaitable[bool]], what: str) -> None:
        last = time.monotonic() + _LONGEST
        while not await holds():
            if time.monotonic() > last:
                raise RuntimeError(f"not within {_LONGEST:g} s: {what}")
            await asyncio.sleep(_LOOK)

    # The health that Envoy reports.

    async def _all_healthy(self) -> bool:
        seen = await self._hosts()
        wanted = self._plan.replicas * len(_CLUSTERS[self._plan.mode])
        return len(seen) == wanted and all(healthy for _, healthy in seen)

    async def _healthy(self, number: int) -> bool:
        """Whether Envoy sends requests to this replica, according to Envoy's admin interface."""
        places = {self._places[number]}
        if self._plan.mode == "envoy":
            one = endpoints(self._settings)[number]
            places = {self._settings.place(place).removeprefix("unix:") for place in (one.grpc, one.http)}
        hosts = await self._hosts()
        return not hosts or any(healthy for place, healthy in hosts if place in places)

    async def _hosts(self) -> list[tuple[str, bool]]:
        found = []
        status = json.loads(await ask(self._admin, "/clusters?format=json", 5.0) or b"{}")
        for cluster in status.get("cluster_statuses", ()):
            if cluster["name"] in _CLUSTERS[self._plan.mode]:
                for host in cluster.get("host_statuses", ()):
                    health, where = host.get("health_status", {}), host["address"]
                    sick = health.get("failed_active_health_check") or health.get("pending_active_hc")
                    socket_at = where.get("socket_address", {})
                    place = where.get("pipe", {}).get("path") or f"{socket_at['address']}:{socket_at['port_value']}"
                    found.append((place, not sick))
        return found


def _proxy(settings: Settings, replicas: list[str]) -> Config:
    """Envoy's configuration as a plain load balancer with health checks and without retries."""
    manager = typed(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="proxy",
        stream_idle_timeout="3600s",
        request_timeout="0s",
        upgrade_configs=[{"upgrade_type": "websocket"}],
        http_filters=[http_filter("envoy.filters.http.router", typed("filters.http.router.v3.Router"))],
        route_config={
            "name": "all",
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "replicas", "timeout": "0s"}}],
                }
            ],
        },
    )
    hosts = [{"endpoint": {"address": address(place)}} for place in replicas]
    return {
        "admin": {"address": address(settings.envoy.admin)},
        "static_resources": {
            "listeners": [listener("public", settings.listen, manager)],
            "clusters": [
                {
                    "name": "replicas",
                    "type": "STATIC",
                    "connect_timeout": "1s",
                    "lb_policy": "LEAST_REQUEST",
                    "circuit_breakers": {
                        "thresholds": [
                            {
                                "max_connections": 4096,
                                "max_pending_requests": 4096,
                                "max_requests": 4096,
                                "max_retries": 0,
                            }
                        ]
                    },
                    "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
                    "health_checks": [
                        {
                            "timeout": "5s",
                            "interval": "1s",
                            "no_traffic_interval": "1s",
                            "unhealthy_threshold": 2,
                            "healthy_threshold": 1,
                            "http_health_check": {"path": "/ready"},
                        }
                    ],
                    "load_assignment": {"cluster_name": "replicas", "endpoints": [{"lb_endpoints": hosts}]},
                }
            ],
        },
    }


def _last_drain(log: Path) -> dict[str, Any]:
    """The fields of the last drain line of a log: the numbers of responses that finished, were returned to the queue or
    aborted."""
    for line in reversed(log.read_text(errors="replace").splitlines()):
        if '"drained"' in line or '"stopped_with_requests_in_flight"' in line:
            found: dict[str, Any] = json.loads(line)
            return found
    return {}


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()
